//! Which commands may be sent a second time, and how they leave again.
//!
//! A command that was in flight when its session was lost may have been done, in part or whole. Sent again it must
//! have the same effect as if it had been done once.
//!
//! Source: SPC-4, SBC-4: operation codes.

use std::collections::VecDeque;

use crate::io::network::Stream;
use crate::io::{Command, Data, Driver};
use crate::scsi::{Cdb, LunAddress};

/// Whether the command has the same effect done twice as done once.
///
/// COMPARE AND WRITE is not among them (the second time it would miscompare with what it wrote), nor are reservations
/// (a key that was registered once is not registered again), nor what we do not know.
pub(super) fn is_repeatable(cdb: &Cdb) -> bool {
    matches!(
        cdb.operation_code(),
        TEST_UNIT_READY
            | REQUEST_SENSE
            | INQUIRY
            | MODE_SENSE_6
            | READ_CAPACITY_10
            | READ_10
            | WRITE_10
            | SYNCHRONIZE_CACHE_10
            | WRITE_SAME_10
            | UNMAP
            | MODE_SENSE_10
            | PERSISTENT_RESERVE_IN
            | READ_16
            | WRITE_16
            | SYNCHRONIZE_CACHE_16
            | WRITE_SAME_16
            | SERVICE_ACTION_IN_16
            | REPORT_LUNS
            | MAINTENANCE_IN
    )
}

/// Whether the command could change the medium when it is done late.
pub(super) fn writes(command: &Command) -> bool {
    // UNMAP and WRITE SAME have a data segment too; what we do not know is taken for a write.
    matches!(command.data, Data::Out(_)) || !is_repeatable(&command.cdb)
}

/// Gives held commands to the driver, oldest first, as many as it takes.
pub(super) fn release<S: Stream>(
    held: &mut VecDeque<(u64, Command)>,
    driver: &mut Driver<S>,
    lun: LunAddress,
) {
    while driver.free_slots() > 0 {
        let Some((token, command)) = held.pop_front() else {
            return;
        };
        let command = Command { lun, ..command };
        if let Err(command) = driver.submit(token, command) {
            // The session has ended, and the next poll says so.
            held.push_front((token, command));
            return;
        }
    }
}

const TEST_UNIT_READY: u8 = 0x00;
const REQUEST_SENSE: u8 = 0x03;
const INQUIRY: u8 = 0x12;
const MODE_SENSE_6: u8 = 0x1A;
const READ_CAPACITY_10: u8 = 0x25;
const READ_10: u8 = 0x28;
const WRITE_10: u8 = 0x2A;
const SYNCHRONIZE_CACHE_10: u8 = 0x35;
const WRITE_SAME_10: u8 = 0x41;
const UNMAP: u8 = 0x42;
const MODE_SENSE_10: u8 = 0x5A;
const PERSISTENT_RESERVE_IN: u8 = 0x5E;
const READ_16: u8 = 0x88;
const WRITE_16: u8 = 0x8A;
const SYNCHRONIZE_CACHE_16: u8 = 0x91;
const WRITE_SAME_16: u8 = 0x93;
/// READ CAPACITY(16) and GET LBA STATUS.
const SERVICE_ACTION_IN_16: u8 = 0x9E;
const REPORT_LUNS: u8 = 0xA0;
/// REPORT TARGET PORT GROUPS and other reports.
const MAINTENANCE_IN: u8 = 0xA3;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::scsi::{Blocks, Lba};

    // E9
    #[test]
    fn what_changes_with_each_time_it_is_done_is_not_repeated() {
        let of = |operation_code| {
            let mut cdb = [0; 16];
            cdb[0] = operation_code;
            Cdb(cdb)
        };
        // COMPARE AND WRITE, PERSISTENT RESERVE OUT, EXTENDED COPY, FORMAT UNIT, MODE SELECT(6), a vendor's own.
        for once in [0x89, 0x5F, 0x83, 0x04, 0x15, 0xC0] {
            assert!(!is_repeatable(&of(once)), "{once:#04x}");
        }
        for repeatable in [
            Cdb::read_16(Lba(0), Blocks(1)),
            Cdb::write_16(Lba(0), Blocks(1), true),
            Cdb::synchronize_cache_16(Lba(0), Blocks(0)),
            Cdb::write_same_16(Lba(0), Blocks(1), true),
            Cdb::unmap(24),
            Cdb::test_unit_ready(),
            Cdb::inquiry(96),
            Cdb::read_capacity_16(32),
            Cdb::report_luns(16),
            Cdb::mode_sense_6(8, 192),
            Cdb::mode_sense_10(8, 192),
        ] {
            assert!(is_repeatable(&repeatable), "{repeatable:?}");
        }
    }

    #[test]
    fn whatever_may_change_the_medium_is_a_write() {
        let command = |cdb, data| Command {
            lun: LunAddress(0),
            cdb,
            data,
        };
        let out = || Data::Out(Bytes::from_static(&[0; 512]));
        assert!(writes(&command(
            Cdb::write_16(Lba(0), Blocks(1), false),
            out()
        )));
        assert!(writes(&command(Cdb::unmap(24), out())));
        assert!(writes(&command(Cdb([0xC0; 16]), Data::None)));
        let flush = Cdb::synchronize_cache_16(Lba(0), Blocks(0));
        assert!(!writes(&command(flush, Data::None)));
    }
}
