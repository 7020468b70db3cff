//! What all volumes share: the settings, the door to the outside, and who we are.

use uuid::Uuid;

use super::Settings;
use super::error::Error;
use super::outside::Outside;
use crate::cinder::Volume;

/// What all volumes share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) out: Outside,
    /// Of the state directory: two hosts may have one name.
    pub(crate) installation: Uuid,
}

impl Context {
    /// What others see of our attachments, as their device: the connector's host is shown to administrators only.
    pub(crate) fn tag(&self) -> String {
        format!("cinder-nbd:{}", self.name())
    }

    /// This host, and this state directory on it.
    pub(crate) fn name(&self) -> String {
        let id = self.installation.simple().to_string();
        format!("{}:{}", self.settings.host, &id[..8])
    }

    /// Our key for persistent reservations; never zero, which would be none.
    pub(crate) fn reservation_key(&self) -> u64 {
        self.installation.as_u64_pair().0 | 1
    }

    /// What `FENCED` says of a LUN that we have reserved.
    pub(crate) fn fence_mark(&self) -> String {
        format!("{:016x}", self.reservation_key())
    }

    /// The volume by UUID or name, which the error calls `name`; none: it is certain that there is none.
    pub(crate) async fn find_volume(
        &self,
        asked: &str,
        name: &str,
    ) -> Result<Option<Volume>, Error> {
        let found = self.out.find_volume(asked).await;
        found.map_err(|cause| Error::step(format!("asking Cinder for {name}"), cause))
    }
}

/// Key in a volume's metadata, one for each entry that attaches it or has it attached: whose. The entry's id follows.
///
/// A reserved attachment does not say whose it is: after a crash in `Reserve` this does.
pub(crate) const ATTACHING: &str = "cinder-nbd.at.";
/// Key in a volume's metadata: its LUN has a reservation of this key, in hexadecimal digits, which keeps out whoever
/// had it before. Whoever attaches it next ends that.
pub(crate) const FENCED: &str = "cinder-nbd.fenced";

/// The key for an entry.
pub(crate) fn attaching(id: Uuid) -> String {
    format!("{ATTACHING}{id}")
}
