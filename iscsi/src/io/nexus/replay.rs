//! How held commands leave again, and which of those that were lost may still change the medium.
//!
//! A command that was in flight when its session was lost may have been done, in part or whole. Only one that has the
//! same effect done twice as done once is sent again (`Cdb::is_idempotent`).

use std::collections::VecDeque;

use crate::io::network::Stream;
use crate::io::{Command, Data, Driver};
use crate::scsi::LunAddress;

/// Whether the command could change the medium when it is done late.
pub(super) fn writes(command: &Command) -> bool {
    // UNMAP and WRITE SAME have a data segment too; what we do not know is taken for a write.
    matches!(command.data, Data::Out(_)) || !command.cdb.is_idempotent()
}

/// Gives held commands to the driver, oldest first, as many as it takes.
// (E9): once each, and in the order in which they were first submitted
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::scsi::{Blocks, Cdb, Lba};

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
            assert!(!of(once).is_idempotent(), "{once:#04x}");
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
            assert!(repeatable.is_idempotent(), "{repeatable:?}");
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
