//! The one table from a SCSI failure to the small error of the waist.
//!
//! Source: SPC-4 table 53 and annex D; SBC-4 4.7.3.6 (out of space: 27h/07h).

use iscsi::scsi::{Sense, SenseKey, Status};

use crate::block::ErrorKind;

/// What a command that failed for good means to a block device.
pub(super) fn kind_of(status: Status, sense: Option<&Sense>) -> ErrorKind {
    match (status, sense) {
        (Status::CHECK_CONDITION, Some(sense)) => kind_of_sense(sense),
        // Busy for too long, a reservation of somebody else, an answer without reason.
        _ => ErrorKind::Io,
    }
}

fn kind_of_sense(sense: &Sense) -> ErrorKind {
    match (sense.key, sense.asc, sense.ascq) {
        (SenseKey::IllegalRequest, 0x20, 0x00) => ErrorKind::Unsupported,
        (SenseKey::IllegalRequest, 0x21, _) => ErrorKind::OutOfRange,
        (SenseKey::IllegalRequest, 0x1A | 0x24 | 0x26, _) => ErrorKind::Invalid,
        // Thin provisioning tells "full" with the key of write protection.
        (SenseKey::DataProtect, 0x27, 0x07) | (SenseKey::VolumeOverflow, _, _) => {
            ErrorKind::NoSpace
        }
        (SenseKey::DataProtect, _, _) => ErrorKind::ReadOnly,
        _ => ErrorKind::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table() {
        for (key, asc, ascq, kind) in [
            (SenseKey::NoSense, 0x00, 0x00, ErrorKind::Io),
            (SenseKey::NotReady, 0x04, 0x0B, ErrorKind::Io),
            (SenseKey::NotReady, 0x3A, 0x00, ErrorKind::Io),
            (SenseKey::MediumError, 0x11, 0x00, ErrorKind::Io),
            (SenseKey::MediumError, 0x0C, 0x02, ErrorKind::Io),
            (SenseKey::HardwareError, 0x44, 0x00, ErrorKind::Io),
            (SenseKey::IllegalRequest, 0x20, 0x00, ErrorKind::Unsupported),
            (SenseKey::IllegalRequest, 0x21, 0x00, ErrorKind::OutOfRange),
            (SenseKey::IllegalRequest, 0x1A, 0x00, ErrorKind::Invalid),
            (SenseKey::IllegalRequest, 0x24, 0x00, ErrorKind::Invalid),
            (SenseKey::IllegalRequest, 0x26, 0x00, ErrorKind::Invalid),
            (SenseKey::IllegalRequest, 0x25, 0x00, ErrorKind::Io),
            (SenseKey::IllegalRequest, 0x20, 0x02, ErrorKind::Io),
            (SenseKey::UnitAttention, 0x29, 0x00, ErrorKind::Io),
            (SenseKey::DataProtect, 0x27, 0x00, ErrorKind::ReadOnly),
            (SenseKey::DataProtect, 0x27, 0x07, ErrorKind::NoSpace),
            (SenseKey::DataProtect, 0x20, 0x02, ErrorKind::ReadOnly),
            (SenseKey::BlankCheck, 0x00, 0x00, ErrorKind::Io),
            (SenseKey::VendorSpecific, 0x80, 0x00, ErrorKind::Io),
            (SenseKey::CopyAborted, 0x00, 0x00, ErrorKind::Io),
            (SenseKey::AbortedCommand, 0x47, 0x05, ErrorKind::Io),
            (SenseKey::Reserved, 0x00, 0x00, ErrorKind::Io),
            (SenseKey::VolumeOverflow, 0x00, 0x00, ErrorKind::NoSpace),
            (SenseKey::Miscompare, 0x1D, 0x00, ErrorKind::Io),
            (SenseKey::Completed, 0x00, 0x00, ErrorKind::Io),
        ] {
            let sense = Sense::new(key, asc, ascq);
            assert_eq!(
                kind_of(Status::CHECK_CONDITION, Some(&sense)),
                kind,
                "{sense}"
            );
        }
    }

    #[test]
    fn a_status_without_sense_data_is_an_input_output_error() {
        let sense = Sense::new(SenseKey::DataProtect, 0x27, 0);
        for status in [
            Status::BUSY,
            Status::RESERVATION_CONFLICT,
            Status::TASK_SET_FULL,
        ] {
            assert_eq!(kind_of(status, Some(&sense)), ErrorKind::Io);
        }
        assert_eq!(kind_of(Status::CHECK_CONDITION, None), ErrorKind::Io);
    }
}
