//! The status byte with which a device server ends a command.
//!
//! Source: SAM-5 5.3.1. An open registry: codes that we do not know survive and are printed as numbers.

use std::fmt;

/// SAM status byte; an open registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub u8);

impl Status {
    /// Done without error.
    pub const GOOD: Self = Self(0x00);
    /// See the sense data.
    pub const CHECK_CONDITION: Self = Self(0x02);
    /// A PRE-FETCH or the like met its condition.
    pub const CONDITION_MET: Self = Self(0x04);
    /// Come back later.
    pub const BUSY: Self = Self(0x08);
    /// Another initiator holds a reservation.
    pub const RESERVATION_CONFLICT: Self = Self(0x18);
    /// No room in the task set: fewer commands at once.
    pub const TASK_SET_FULL: Self = Self(0x28);
    /// An auto contingent allegiance is open.
    pub const ACA_ACTIVE: Self = Self(0x30);
    /// Aborted by another initiator, with TAS set.
    pub const TASK_ABORTED: Self = Self(0x40);
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::GOOD => "GOOD",
            Self::CHECK_CONDITION => "CHECK CONDITION",
            Self::CONDITION_MET => "CONDITION MET",
            Self::BUSY => "BUSY",
            Self::RESERVATION_CONFLICT => "RESERVATION CONFLICT",
            Self::TASK_SET_FULL => "TASK SET FULL",
            Self::ACA_ACTIVE => "ACA ACTIVE",
            Self::TASK_ABORTED => "TASK ABORTED",
            Self(other) => return write!(f, "status {other:02X}h"),
        };
        f.write_str(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_sam() {
        // SAM-5 table 42, written down a second time.
        for (status, code, name) in [
            (Status::GOOD, 0x00, "GOOD"),
            (Status::CHECK_CONDITION, 0x02, "CHECK CONDITION"),
            (Status::CONDITION_MET, 0x04, "CONDITION MET"),
            (Status::BUSY, 0x08, "BUSY"),
            (Status::RESERVATION_CONFLICT, 0x18, "RESERVATION CONFLICT"),
            (Status::TASK_SET_FULL, 0x28, "TASK SET FULL"),
            (Status::ACA_ACTIVE, 0x30, "ACA ACTIVE"),
            (Status::TASK_ABORTED, 0x40, "TASK ABORTED"),
        ] {
            assert_eq!(status.0, code);
            assert_eq!(status.to_string(), name);
        }
        assert_eq!(Status(0x22).to_string(), "status 22h");
    }
}
