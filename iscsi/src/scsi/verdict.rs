//! What an answer means for the command: done, to be repeated and how soon, or failed.
//!
//! A room of its own because two floors decide by it, the library's handles and the daemon's logical unit, and
//! both must decide the same. How often and how long they repeat is theirs.
//! Source: SAM-5 5.3 (status), 5.14 (unit attention); SPC-4 4.5.

use super::sense::code;
use super::{Sense, SenseKey, Status};

/// What to do after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The command was done.
    Good,
    /// The command was not done, something else was reported instead: repeat at once, free of charge.
    UnitAttention,
    /// The command was not done; a write that had been answered with GOOD is lost. Repeat, and tell whoever flushes.
    DeferredError,
    /// The device server has no time, or the unit is on its way to being ready: repeat after a pause.
    Busy,
    /// Too many commands at once: repeat after a pause, and send fewer.
    TaskSetFull,
    /// The device server gave the command up: repeat a few times.
    Aborted,
    /// The command failed; the same again would fail again.
    Failed,
}

impl Verdict {
    /// The meaning of a status, with the sense data that came with it.
    pub fn of(status: Status, sense: Option<&Sense>) -> Self {
        match status {
            Status::GOOD | Status::CONDITION_MET => Self::Good,
            Status::BUSY => Self::Busy,
            Status::TASK_SET_FULL => Self::TaskSetFull,
            Status::TASK_ABORTED => Self::Aborted,
            // Without sense data nobody knows what happened: never take it for success.
            Status::CHECK_CONDITION => sense.map_or(Self::Failed, Self::of_sense),
            // A reservation is somebody's intent: repeating would work against it. Unknown codes are not success.
            _ => Self::Failed,
        }
    }

    fn of_sense(sense: &Sense) -> Self {
        if sense.deferred && sense.key != SenseKey::RecoveredError {
            return Self::DeferredError;
        }
        match sense.key {
            // SPC-4 table 53: the command was done.
            SenseKey::RecoveredError => Self::Good,
            SenseKey::UnitAttention => Self::UnitAttention,
            SenseKey::AbortedCommand => Self::Aborted,
            SenseKey::NotReady
                if sense.is(code::BECOMING_READY) || sense.is(code::ALUA_TRANSITION) =>
            {
                Self::Busy
            }
            SenseKey::NoSense
            | SenseKey::NotReady
            | SenseKey::MediumError
            | SenseKey::HardwareError
            | SenseKey::IllegalRequest
            | SenseKey::DataProtect
            | SenseKey::BlankCheck
            | SenseKey::VendorSpecific
            | SenseKey::CopyAborted
            | SenseKey::Reserved
            | SenseKey::VolumeOverflow
            | SenseKey::Miscompare
            | SenseKey::Completed => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: SenseKey, asc: u8, ascq: u8) -> Verdict {
        Verdict::of(Status::CHECK_CONDITION, Some(&Sense::new(key, asc, ascq)))
    }

    #[test]
    fn each_status_has_its_verdict() {
        for (status, verdict) in [
            (Status::GOOD, Verdict::Good),
            (Status::CONDITION_MET, Verdict::Good),
            (Status::CHECK_CONDITION, Verdict::Failed),
            (Status::BUSY, Verdict::Busy),
            (Status::RESERVATION_CONFLICT, Verdict::Failed),
            (Status::TASK_SET_FULL, Verdict::TaskSetFull),
            (Status::ACA_ACTIVE, Verdict::Failed),
            (Status::TASK_ABORTED, Verdict::Aborted),
            (Status(0x14), Verdict::Failed),
            (Status(0xFF), Verdict::Failed),
        ] {
            assert_eq!(Verdict::of(status, None), verdict, "{status}");
        }
    }

    #[test]
    fn each_sense_key_has_its_verdict() {
        for bits in 0..16 {
            let key = SenseKey::from_bits(bits);
            let expected = match bits {
                1 => Verdict::Good,
                6 => Verdict::UnitAttention,
                0xB => Verdict::Aborted,
                _ => Verdict::Failed,
            };
            assert_eq!(check(key, 0, 0), expected, "{key}");
        }
    }

    #[test]
    fn only_what_will_be_ready_is_waited_for() {
        assert_eq!(check(SenseKey::NotReady, 0x04, 0x01), Verdict::Busy);
        assert_eq!(check(SenseKey::NotReady, 0x04, 0x0A), Verdict::Busy);
        assert_eq!(check(SenseKey::NotReady, 0x04, 0x0B), Verdict::Failed);
        assert_eq!(check(SenseKey::NotReady, 0x3A, 0x00), Verdict::Failed);
    }

    #[test]
    fn sense_data_means_nothing_without_check_condition() {
        let sense = Sense::new(SenseKey::MediumError, 0x11, 0);
        assert_eq!(Verdict::of(Status::GOOD, Some(&sense)), Verdict::Good);
        assert_eq!(Verdict::of(Status::BUSY, Some(&sense)), Verdict::Busy);
    }

    #[test]
    fn a_deferred_error_is_not_the_commands_own() {
        for (key, verdict) in [
            (SenseKey::MediumError, Verdict::DeferredError),
            (SenseKey::AbortedCommand, Verdict::DeferredError),
            (SenseKey::RecoveredError, Verdict::Good),
        ] {
            let sense = Sense {
                deferred: true,
                ..Sense::new(key, 0x0C, 0)
            };
            assert_eq!(Verdict::of(Status::CHECK_CONDITION, Some(&sense)), verdict);
        }
    }
}
