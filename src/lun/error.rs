//! Why a LUN could not be opened; one line, with the remedy.

use std::sync::Arc;

use iscsi::client;
use iscsi::io::NexusError;
use iscsi::proto::LoginError;
use iscsi::scsi::LunAddress;
use iscsi::scsi::examination::Failure;

/// Why a LUN could not be opened; one line, with the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The session parameters name no target.
    #[error("no target name is given; a discovery session has no LUNs")]
    NoTargetName,
    /// Connecting or logging in failed.
    #[error(transparent)]
    Login(LoginError),
    /// The target has no such LUN for us.
    #[error(
        "target {target} has no LUN {lun} for this initiator; give the number under which the volume is mapped"
    )]
    NoSuchLun {
        /// What was asked for.
        lun: LunAddress,
        /// The target's name.
        target: String,
    },
    /// The LUN did not pass its examination.
    #[error("LUN {lun} of {target} cannot be used")]
    Unusable {
        /// What was asked for.
        lun: LunAddress,
        /// The target's name.
        target: String,
        /// What was met.
        source: client::Error,
    },
}

impl Error {
    pub(super) fn of_nexus(error: NexusError, lun: LunAddress, target: String) -> Self {
        if let NexusError::Login(error) = error {
            return Self::Login(error);
        }
        let error = Arc::new(error);
        if matches!(*error, NexusError::Gate(Failure::NoSuchLun)) {
            return Self::NoSuchLun { lun, target };
        }
        let source = client::Error::Nexus {
            during: "examining the logical unit",
            source: error,
        };
        Self::Unusable {
            lun,
            target,
            source,
        }
    }

    pub(super) fn of_probe(error: client::Error, lun: LunAddress, target: String) -> Self {
        if matches!(error, client::Error::NoSuchLun { .. }) {
            return Self::NoSuchLun { lun, target };
        }
        Self::Unusable {
            lun,
            target,
            source: error,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn a_missing_lun_is_named_with_its_target() {
        let target = "iqn.2010-10.org.openstack:volume-1".to_owned();
        let error = Error::of_probe(client::Error::NoSuchLun { lun: 9.into() }, 9.into(), target);
        assert_eq!(
            error.to_string(),
            "target iqn.2010-10.org.openstack:volume-1 has no LUN 9 for this initiator; \
             give the number under which the volume is mapped"
        );
    }

    #[test]
    fn what_the_probe_met_is_the_source() {
        let met = client::Error::Misuse("met");
        let error = Error::of_probe(met, 1.into(), "iqn.2026-11.test:t".to_owned());
        assert_eq!(
            error.to_string(),
            "LUN 1 of iqn.2026-11.test:t cannot be used"
        );
        assert_eq!(
            error.source().map(ToString::to_string).as_deref(),
            Some("met")
        );
    }
}
