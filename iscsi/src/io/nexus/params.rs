//! What a nexus needs to know from its owner: the session, the paths, the patience.

use std::time::Duration;

use super::error::CONNECTIONS_WAIT;
use crate::proto::recovery::RecoveryPolicy;
use crate::proto::{IscsiName, Misuse, Portal, SessionParams};
use crate::scsi::reservation::ReservationKey;
use crate::scsi::{Identity, LunAddress};

/// One way to the logical unit.
///
/// Cinder gives several as `target_portals`, `target_iqns` and `target_luns`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Where.
    pub portal: Portal,
    /// At which target.
    pub target_name: IscsiName,
    /// Under which number.
    pub lun: LunAddress,
}

/// All that a nexus needs.
#[derive(Clone, Debug)]
pub struct NexusParams {
    /// For every session; portal and target name are the path's. Its ISID is kept through all reinstatements, so it
    /// must not be used by another session of this initiator name.
    pub session: SessionParams,
    /// At least one; the first is tried first. Each must lead to the same logical unit, and is examined for it.
    pub paths: Vec<Path>,
    /// How patient.
    pub policy: RecoveryPolicy,
    /// The unit that a process before this one used with the same names and ISID, and whose end nobody has seen: the
    /// first login is a reinstatement then. The unit must be that one, and what the earlier sessions may have left at
    /// work over another portal group is ended by a LOGICAL UNIT RESET before anything else leaves.
    pub resume: Option<Identity>,
    /// Each login registers this key for persistent reservations before any other command that writes: where a unit is
    /// reserved for registrants (write exclusive - registrants only), this nexus is one of them.
    pub registration: Option<ReservationKey>,
    /// Guards that are off.
    #[cfg(feature = "hazards")]
    pub hazards: Hazards,
}

/// Guards that a test takes away, to see that it would notice. Never for data that somebody needs.
#[cfg(feature = "hazards")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hazards {
    /// Each login has an ISID of its own: the target does not end the old session.
    pub fresh_isid: bool,
    /// No examination after a login.
    pub no_gate: bool,
    /// No reset of the logical unit when I/O moves to another path.
    pub no_fence: bool,
}

impl NexusParams {
    /// One path, as the session's parameters have it, and the default patience.
    ///
    /// # Errors
    /// `Misuse::NoTarget` if the session names no target.
    pub fn new(session: SessionParams, lun: LunAddress) -> Result<Self, Misuse> {
        let target_name = session.target_name.clone().ok_or(Misuse::NoTarget)?;
        let path = Path {
            portal: session.portal.clone(),
            target_name,
            lun,
        };
        Ok(Self {
            session,
            paths: vec![path],
            policy: RecoveryPolicy::default(),
            resume: None,
            registration: None,
            #[cfg(feature = "hazards")]
            hazards: Hazards::default(),
        })
    }

    /// How long to stay away after an attempt that failed: some of its connections may have come to be.
    pub(super) fn wait_after_failure(&self) -> Duration {
        if self.session.offers.max_connections > 1 {
            CONNECTIONS_WAIT
        } else {
            Duration::ZERO
        }
    }

    /// The parameters of a session over one of the paths.
    pub(super) fn session_over(&self, path: &Path) -> SessionParams {
        SessionParams {
            portal: path.portal.clone(),
            target_name: Some(path.target_name.clone()),
            ..self.session.clone()
        }
    }
}
