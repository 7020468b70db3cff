//! What an answer means for the command: done, to be repeated and how soon, or failed.
//!
//! A room of its own because two floors decide by it, the library's handles and the daemon's logical unit, and
//! both must decide the same. How often and how long they repeat is theirs.
//! Source: SAM-5 5.3 (status), 5.14 (unit attention); SPC-4 4.5.

use super::sense::code;
use super::{Sense, SenseKey, Status};

/// What to do after an answer. Each has one meaning:
///
/// | verdict | was it done? | repeat |
/// |---|---|---|
/// | `Good` | yes | |
/// | `UnitAttention` | no | at once, free of charge |
/// | `DeferredError` | no | at once; an earlier write is lost |
/// | `Busy`, `BecomingReady` | no | after a pause |
/// | `TaskSetFull` | no | after a pause, and fewer at once |
/// | `Aborted` | unknown | a few times, as a new command |
/// | `SwitchPath` | no | on another path |
/// | `ReservationConflict`, `OurFault`, `Failed` | no, or in part | never |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The command was done.
    Good,
    /// The command was not done, something else was reported instead: repeat at once, free of charge. `Attention`
    /// says what else there is to do.
    UnitAttention,
    /// The command was not done; a write that had been answered with GOOD is lost. Repeat, and tell whoever flushes.
    DeferredError,
    /// The device server has no time: repeat after a pause.
    Busy,
    /// The unit is on its way to being ready, or the port on its way into another access state: poll, for longer than
    /// a busy server.
    BecomingReady,
    /// Too many commands at once: repeat after a pause, and send fewer.
    TaskSetFull,
    /// The device server gave the command up, or its data was mangled on the way: repeat a few times. Whether it was
    /// done in part is not known.
    Aborted,
    /// Not through this target port: another path may work, this one will not by itself.
    SwitchPath,
    /// Another initiator holds a reservation. That is somebody's intent: repeating would work against it.
    ReservationConflict,
    /// The target says that we sent data that it did not expect, or less than we should: a defect of this initiator,
    /// to be logged as such. The same again would fail again.
    OurFault,
    /// The command failed; the same again would fail again.
    Failed,
}

impl Verdict {
    /// The meaning of a status, with the sense data that came with it.
    pub fn of(status: Status, sense: Option<&Sense>) -> Self {
        match status {
            Status::GOOD | Status::CONDITION_MET => Self::Good,
            // SAM-5: BUSY is a matter of time
            Status::BUSY => Self::Busy,
            // SAM-5: TASK SET FULL is a matter of how many commands are out
            Status::TASK_SET_FULL => Self::TaskSetFull,
            // Also how the driver tells of a command that the target failed as a whole (iSCSI response 01h).
            Status::TASK_ABORTED => Self::Aborted,
            // SAM-5: RESERVATION CONFLICT is an answer, and no trouble that passes
            Status::RESERVATION_CONFLICT => Self::ReservationConflict,
            // Without sense data nobody knows what happened: never take it for success.
            Status::CHECK_CONDITION => sense.map_or(Self::Failed, Self::of_sense),
            // An open registry: unknown codes are not success.
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
            // SAM-5: unit attention is told once, in place of the command
            SenseKey::UnitAttention => Self::UnitAttention,
            // RFC 7143 §11.4.7.2: how a target reports unsolicited data that breaks what was negotiated
            SenseKey::AbortedCommand
                if sense.is(code::UNEXPECTED_UNSOLICITED_DATA)
                    || sense.is(code::NOT_ENOUGH_UNSOLICITED_DATA) =>
            {
                Self::OurFault
            }
            // RFC 7143 §11.4.7.2: a protocol service CRC error too comes with this key
            SenseKey::AbortedCommand => Self::Aborted,
            SenseKey::NotReady => Self::of_not_ready(sense),
            SenseKey::NoSense
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

    /// SPC-4: LOGICAL UNIT NOT READY has many causes. What ends by itself is waited for; a format, a sanitize or a rebuild takes hours and is not.
    fn of_not_ready(sense: &Sense) -> Self {
        match (sense.asc, sense.ascq) {
            code::BECOMING_READY
            | code::OPERATION_IN_PROGRESS
            | code::ALUA_TRANSITION
            | code::SPACE_ALLOCATION_IN_PROGRESS
            | code::START_IN_PROGRESS
            | code::CONFIGURATION_IN_PROGRESS => Self::BecomingReady,
            code::ALUA_STANDBY | code::ALUA_UNAVAILABLE => Self::SwitchPath,
            // An open registry.
            (_, _) => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: SenseKey, asc: u8, ascq: u8) -> Verdict {
        Verdict::of(Status::CHECK_CONDITION, Some(&Sense::new(key, asc, ascq)))
    }

    // S3, S4, S5, S8: what the driver makes of SCSI response 01h (task aborted) is no success either.
    #[test]
    fn each_status_has_its_verdict() {
        for (status, verdict) in [
            (Status::GOOD, Verdict::Good),
            (Status::CONDITION_MET, Verdict::Good),
            (Status::CHECK_CONDITION, Verdict::Failed),
            (Status::BUSY, Verdict::Busy),
            (Status::RESERVATION_CONFLICT, Verdict::ReservationConflict),
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

    // S7
    #[test]
    fn only_what_will_be_ready_is_waited_for() {
        for (asc, ascq, verdict) in [
            (0x04, 0x00, Verdict::Failed),
            (0x04, 0x01, Verdict::BecomingReady),
            (0x04, 0x02, Verdict::Failed),
            (0x04, 0x03, Verdict::Failed),
            (0x04, 0x04, Verdict::Failed),
            (0x04, 0x07, Verdict::BecomingReady),
            (0x04, 0x0A, Verdict::BecomingReady),
            (0x04, 0x0B, Verdict::SwitchPath),
            (0x04, 0x0C, Verdict::SwitchPath),
            (0x04, 0x14, Verdict::BecomingReady),
            (0x04, 0x1A, Verdict::BecomingReady),
            (0x04, 0x1B, Verdict::Failed),
            (0x04, 0x1D, Verdict::BecomingReady),
            (0x3A, 0x00, Verdict::Failed),
        ] {
            assert_eq!(
                check(SenseKey::NotReady, asc, ascq),
                verdict,
                "{asc:x}/{ascq:x}"
            );
        }
        // The codes mean it with this key only.
        assert_eq!(check(SenseKey::HardwareError, 0x04, 0x01), Verdict::Failed);
    }

    // S1, S2: data that we should not have sent, or too little of it, would be so again.
    #[test]
    fn mangled_data_is_sent_again_and_our_own_fault_is_not() {
        for (asc, ascq, verdict) in [
            (0x47, 0x05, Verdict::Aborted),
            (0x0C, 0x0C, Verdict::OurFault),
            (0x0C, 0x0D, Verdict::OurFault),
            (0x0C, 0x00, Verdict::Aborted),
            (0x4B, 0x00, Verdict::Aborted),
        ] {
            assert_eq!(check(SenseKey::AbortedCommand, asc, ascq), verdict);
        }
        // A write error of the medium has the same code and another key.
        assert_eq!(check(SenseKey::MediumError, 0x0C, 0x0C), Verdict::Failed);
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
