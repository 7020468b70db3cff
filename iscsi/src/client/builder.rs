//! A disk from a handful of facts, with defaults for the rest.

use super::{Disk, Error};
use crate::io::{Network as _, NexusParams, Path, Tcp};
use crate::proto::recovery::ReplacementTimeout;
use crate::proto::{ChapCredentials, DigestPolicy, IscsiName, Isid, Portal, Secret, SessionParams};
use crate::scsi::LunAddress;

/// Begun by `Disk::builder`, ended by `open`.
///
/// ```no_run
/// use iscsi::client::Disk;
/// use iscsi::proto::{DigestPolicy, Secret};
/// use iscsi::scsi::{Blocks, Lba};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let disk = Disk::builder(
///     "iqn.2026-11.org.example:host".parse()?,
///     "192.0.2.10".parse()?,
///     "iqn.2010-10.org.openstack:volume-1".parse()?,
///     1,
/// )
/// .chap("user", Secret::new("a secret of some length".to_owned()))
/// .digests(DigestPolicy::Prefer)
/// .portal("192.0.2.11".parse()?)
/// .open()
/// .await?;
/// let first = disk.read(Lba(0), Blocks(8)).await?;
/// # drop(first);
/// disk.close().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is done before `open`"]
pub struct DiskBuilder {
    session: SessionParams,
    paths: Vec<Path>,
    replacement_timeout: Option<ReplacementTimeout>,
}

impl DiskBuilder {
    pub(super) fn new(
        initiator_name: IscsiName,
        portal: Portal,
        target_name: IscsiName,
        lun: LunAddress,
    ) -> Self {
        // RFC 7143 §11.12.5: the naming authority is chance, so that two disks of one host never end each other's
        // session.
        let [a, b, c, d] = Tcp.random().to_be_bytes();
        let isid = Isid::random([a, b, c], u16::from(d));
        let path = Path {
            portal: portal.clone(),
            target_name: target_name.clone(),
            lun,
        };
        let mut session = SessionParams::new(portal, initiator_name, isid);
        session.target_name = Some(target_name);
        Self {
            session,
            paths: vec![path],
            replacement_timeout: None,
        }
    }

    /// What we prove ourselves with, if the target asks (CHAP).
    pub fn chap(mut self, name: &str, secret: Secret) -> Self {
        let name = name.to_owned();
        self.session.chap = Some(ChapCredentials { name, secret });
        self
    }

    /// What the target has to prove itself with (mutual CHAP).
    pub fn mutual_chap(mut self, name: &str, secret: Secret) -> Self {
        let name = name.to_owned();
        self.session.mutual_chap = Some(ChapCredentials { name, secret });
        self
    }

    /// Digests of headers and data. Default: none.
    pub fn digests(mut self, policy: DigestPolicy) -> Self {
        self.session.offers.header_digest = policy;
        self.session.offers.data_digest = policy;
        self
    }

    /// How many connections the session may have, where the target grants them (MC/S). Default 1.
    pub fn connections(mut self, count: u16) -> Self {
        self.session.offers.max_connections = count;
        self
    }

    /// A further portal of the same target, for when the first is away.
    pub fn portal(mut self, portal: Portal) -> Self {
        let first = self.paths[0].clone();
        self.paths.push(Path { portal, ..first });
        self
    }

    /// A further path to the same logical unit, under another name or number.
    pub fn path(mut self, path: Path) -> Self {
        self.paths.push(path);
        self
    }

    /// How long calls wait for a target that is away before they fail. Default: two minutes.
    pub fn replacement_timeout(mut self, timeout: ReplacementTimeout) -> Self {
        self.replacement_timeout = Some(timeout);
        self
    }

    /// Changes what has no method here: timeouts, lengths, the ISID.
    pub fn session(mut self, change: impl FnOnce(&mut SessionParams)) -> Self {
        change(&mut self.session);
        self
    }

    /// Logs in and probes the logical unit.
    ///
    /// # Errors
    /// As `Disk::over`.
    ///
    /// # Cancel safety
    /// As `Disk::over`.
    pub async fn open(self) -> Result<Disk, Error> {
        let lun = self.paths[0].lun;
        let mut params = NexusParams::new(self.session, lun)?;
        params.paths = self.paths;
        if let Some(timeout) = self.replacement_timeout {
            params.policy.replacement_timeout = timeout;
        }
        Disk::over(params).await
    }
}
