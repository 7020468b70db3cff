//! Why a handle could not do what it was asked.

use std::sync::Arc;
use std::time::Duration;

use crate::io::NexusError;
use crate::proto::{LoginError, Misuse, SessionError};
use crate::scsi::examination::Failure;
use crate::scsi::inquiry::DeviceType;
use crate::scsi::{LunAddress, Sense, Status, Violation};

/// Why a handle could not do what it was asked; sorted by fault.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Connecting or logging in failed.
    #[error(transparent)]
    Login(Arc<LoginError>),
    /// The session is gone; what was in flight may or may not have been done.
    #[error("the session ended while {during}")]
    Session {
        /// What was being done.
        during: &'static str,
        /// Why it ended; none if it had been ended in order.
        source: Option<Arc<SessionError>>,
    },
    /// The logical unit was away for too long, or is not the one that it was.
    #[error("{during}: the logical unit is not reachable")]
    Nexus {
        /// What was being done.
        during: &'static str,
        /// Why.
        source: Arc<NexusError>,
    },
    /// The target has no such logical unit.
    #[error(
        "there is no LUN {lun}; ask for the number under which the target maps the volume to this initiator"
    )]
    NoSuchLun {
        /// What was asked for.
        lun: LunAddress,
    },
    /// The logical unit is something else than a disk.
    #[error("LUN {lun} is a {found} and not a disk; use the number of a disk")]
    NotADisk {
        /// What was asked for.
        lun: LunAddress,
        /// What it is.
        found: DeviceType,
    },
    /// The target refused a command.
    #[error("{during}: {}", refusal(*.status, .sense.as_ref()))]
    Refused {
        /// What was being done.
        during: &'static str,
        /// The status.
        status: Status,
        /// The sense data, if any came.
        sense: Option<Sense>,
    },
    /// The logical unit did not become ready in time, or reported one unit attention after another.
    #[error("{during}: not ready after {} s: {}; try again later", .waited.as_secs(), refusal(*.status, .sense.as_ref()))]
    NotReady {
        /// What was being done.
        during: &'static str,
        /// How long it was polled.
        waited: Duration,
        /// The last status.
        status: Status,
        /// The last sense data.
        sense: Option<Sense>,
    },
    /// The target's answer is not what the standard says.
    #[error("{during}: the target broke a rule")]
    Violation {
        /// What was being done.
        during: &'static str,
        /// Which rule.
        source: Violation,
    },
    /// Fewer bytes came than were asked for, with GOOD status.
    #[error("{during}: only {moved} of {asked} bytes were moved")]
    Short {
        /// What was being done.
        during: &'static str,
        /// Bytes moved.
        moved: u32,
        /// Bytes asked for.
        asked: usize,
    },
    /// The logical unit says that it does not have what was asked for.
    #[error("the logical unit does not support {0}")]
    Unsupported(&'static str),
    /// We were misused: a range outside of the disk, or a length that is not whole blocks.
    #[error("{0}")]
    Misuse(&'static str),
}

impl Error {
    /// Why a nexus could not be opened.
    pub(super) fn of_nexus(error: NexusError, lun: LunAddress) -> Self {
        if let NexusError::Login(error) = error {
            return error.into();
        }
        if matches!(error, NexusError::Gate(Failure::NoSuchLun)) {
            return Self::NoSuchLun { lun };
        }
        Self::Nexus {
            during: "examining the logical unit",
            source: Arc::new(error),
        }
    }
}

impl From<Misuse> for Error {
    fn from(misuse: Misuse) -> Self {
        LoginError::Misuse(misuse).into()
    }
}

/// Sense data says more than the status does.
fn refusal(status: Status, sense: Option<&Sense>) -> String {
    sense.map_or_else(|| status.to_string(), ToString::to_string)
}

impl From<LoginError> for Error {
    fn from(error: LoginError) -> Self {
        Self::Login(Arc::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::SenseKey;

    #[test]
    fn each_error_is_one_line_with_its_cause() {
        let sense = Some(Sense::new(SenseKey::NotReady, 0x04, 0x01));
        let status = Status::CHECK_CONDITION;
        let during = "READ CAPACITY(16)";
        let waited = Duration::from_secs(30);
        for (error, line) in [
            (
                Error::NoSuchLun { lun: 7.into() },
                "there is no LUN 7; ask for the number under which the target maps the volume to this initiator",
            ),
            (
                Error::NotADisk {
                    lun: 0.into(),
                    found: DeviceType(0x0C),
                },
                "LUN 0 is a storage array controller and not a disk; use the number of a disk",
            ),
            (
                Error::Refused {
                    during,
                    status,
                    sense,
                },
                "READ CAPACITY(16): not ready: logical unit is becoming ready (2h/04h/01h)",
            ),
            (
                Error::Refused {
                    during,
                    status: Status::RESERVATION_CONFLICT,
                    sense: None,
                },
                "READ CAPACITY(16): RESERVATION CONFLICT",
            ),
            (
                Error::NotReady {
                    during,
                    waited,
                    status: Status::BUSY,
                    sense: None,
                },
                "READ CAPACITY(16): not ready after 30 s: BUSY; try again later",
            ),
            (
                Error::Short {
                    during,
                    moved: 512,
                    asked: 4096,
                },
                "READ CAPACITY(16): only 512 of 4096 bytes were moved",
            ),
        ] {
            assert_eq!(error.to_string(), line);
        }
    }
}
