//! Command descriptor blocks, and what can be said of a command by its operation code alone.
//!
//! Source: SPC-4 6 (INQUIRY, MODE SENSE, PERSISTENT RESERVE IN and OUT, REPORT LUNS, REPORT TARGET PORT GROUPS,
//! TEST UNIT READY), SBC-4 5 (COMPARE AND WRITE, GET LBA STATUS, READ CAPACITY(16), READ(16), WRITE(16),
//! SYNCHRONIZE CACHE(16), UNMAP, WRITE SAME(16)). Parameter lists: `unmap`, `reservation`.
//!
//! Invariants:
//! 1. A CDB shorter than 16 bytes is followed by zeroes, as RFC 7143 §11.3 wants it in the header.
//! 2. The expected data transfer length of a command equals what its CDB names: some targets refuse any other.

use super::lun::SelectReport;
use super::reservation::{ReservationType, ReserveIn, ReserveOut, ReserveOutParameters};
use super::{Blocks, Lba};

/// A command descriptor block of up to 16 bytes, as it stands in the BHS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cdb(pub [u8; 16]);

impl Cdb {
    /// TEST UNIT READY.
    pub fn test_unit_ready() -> Self {
        Self::of(TEST_UNIT_READY)
    }

    /// INQUIRY for the standard data.
    pub fn inquiry(allocation_bytes: u16) -> Self {
        let mut cdb = Self::of(INQUIRY);
        cdb.0[3..5].copy_from_slice(&allocation_bytes.to_be_bytes());
        cdb
    }

    /// INQUIRY for a vital product data page.
    pub fn inquiry_vpd(page: u8, allocation_bytes: u16) -> Self {
        let mut cdb = Self::inquiry(allocation_bytes);
        cdb.0[1] = EVPD;
        cdb.0[2] = page;
        cdb
    }

    /// REPORT LUNS of all that a number addresses; SPC-4 6.33 wants an allocation length of at least 16.
    pub fn report_luns(allocation_bytes: u32) -> Self {
        Self::report_luns_of(SelectReport::ADDRESSED, allocation_bytes)
    }

    /// REPORT LUNS of a choice of units.
    pub fn report_luns_of(select: SelectReport, allocation_bytes: u32) -> Self {
        let mut cdb = Self::of(REPORT_LUNS);
        cdb.0[2] = select.0;
        cdb.0[6..10].copy_from_slice(&allocation_bytes.to_be_bytes());
        cdb
    }

    /// REPORT TARGET PORT GROUPS; `extended`: with the header that tells the transition time.
    pub fn report_target_port_groups(extended: bool, allocation_bytes: u32) -> Self {
        let mut cdb = Self::of(MAINTENANCE_IN);
        cdb.0[1] = REPORT_TARGET_PORT_GROUPS | if extended { EXTENDED_HEADER } else { 0 };
        cdb.0[6..10].copy_from_slice(&allocation_bytes.to_be_bytes());
        cdb
    }

    /// PERSISTENT RESERVE IN.
    pub fn persistent_reserve_in(action: ReserveIn, allocation_bytes: u16) -> Self {
        let mut cdb = Self::of(PERSISTENT_RESERVE_IN);
        cdb.0[1] = action.bits();
        cdb.0[7..9].copy_from_slice(&allocation_bytes.to_be_bytes());
        cdb
    }

    /// PERSISTENT RESERVE OUT with the basic parameter list. The type is of no meaning for the actions that make,
    /// release or take no reservation. SCOPE is the logical unit, the only one that there is.
    pub fn persistent_reserve_out(action: ReserveOut, kind: ReservationType) -> Self {
        let mut cdb = Self::of(PERSISTENT_RESERVE_OUT);
        cdb.0[1] = action.bits();
        cdb.0[2] = kind.0 & 0x0F;
        cdb.0[5..9].copy_from_slice(&ReserveOutParameters::BYTES.to_be_bytes());
        cdb
    }

    /// MODE SENSE(6) of the current values of a page, without block descriptors.
    pub fn mode_sense_6(page: u8, allocation_bytes: u8) -> Self {
        let mut cdb = Self::of(MODE_SENSE_6);
        cdb.0[1] = DBD;
        cdb.0[2] = page & 0x3F;
        cdb.0[4] = allocation_bytes;
        cdb
    }

    /// MODE SENSE(10) of the current values of a page, without block descriptors.
    pub fn mode_sense_10(page: u8, allocation_bytes: u16) -> Self {
        let mut cdb = Self::of(MODE_SENSE_10);
        cdb.0[1] = DBD;
        cdb.0[2] = page & 0x3F;
        cdb.0[7..9].copy_from_slice(&allocation_bytes.to_be_bytes());
        cdb
    }

    /// READ CAPACITY(16).
    pub fn read_capacity_16(allocation_bytes: u32) -> Self {
        let mut cdb = Self::of(SERVICE_ACTION_IN_16);
        cdb.0[1] = READ_CAPACITY_16;
        cdb.0[10..14].copy_from_slice(&allocation_bytes.to_be_bytes());
        cdb
    }

    /// GET LBA STATUS, from the block on.
    pub fn get_lba_status(lba: Lba, allocation_bytes: u32) -> Self {
        let mut cdb = Self::of(SERVICE_ACTION_IN_16).at(lba, Blocks(allocation_bytes));
        cdb.0[1] = GET_LBA_STATUS;
        cdb
    }

    /// READ(16) of `lba..lba + blocks`.
    pub fn read_16(lba: Lba, blocks: Blocks) -> Self {
        Self::of(READ_16).at(lba, blocks)
    }

    /// PRE-FETCH(16) of `lba..lba + blocks`, answered at once (IMMED).
    pub fn pre_fetch_16(lba: Lba, blocks: Blocks) -> Self {
        let mut cdb = Self::of(PRE_FETCH_16).at(lba, blocks);
        cdb.0[1] |= PRE_FETCH_IMMED;
        cdb
    }

    /// WRITE(16) of `lba..lba + blocks`; `fua`: on the medium before the status comes.
    pub fn write_16(lba: Lba, blocks: Blocks, fua: bool) -> Self {
        let mut cdb = Self::of(WRITE_16).at(lba, blocks);
        if fua {
            cdb.0[1] |= FUA;
        }
        cdb
    }

    /// SYNCHRONIZE CACHE(16); zero blocks mean: to the end of the medium.
    ///
    /// IMMED stays clear: the status must mean that the data is on the medium.
    pub fn synchronize_cache_16(lba: Lba, blocks: Blocks) -> Self {
        Self::of(SYNCHRONIZE_CACHE_16).at(lba, blocks)
    }

    /// WRITE SAME(16) of one block of data over `lba..lba + blocks`; `unmap`: the range may be deallocated if it
    /// then reads as that block. Zero blocks would mean "to the end": the caller does not ask for it by accident.
    pub fn write_same_16(lba: Lba, blocks: Blocks, unmap: bool) -> Self {
        let mut cdb = Self::of(WRITE_SAME_16).at(lba, blocks);
        if unmap {
            cdb.0[1] |= WRITE_SAME_UNMAP;
        }
        cdb
    }

    /// WRITE SAME(16) of zeroes without a data-out buffer (NDOB, SBC-4): not every unit that has WRITE SAME takes it.
    pub fn write_same_16_no_data(lba: Lba, blocks: Blocks, unmap: bool) -> Self {
        let mut cdb = Self::write_same_16(lba, blocks, unmap);
        cdb.0[1] |= NDOB;
        cdb
    }

    /// COMPARE AND WRITE at `lba`: the data is `blocks` blocks to compare with, then as many to write.
    pub fn compare_and_write(lba: Lba, blocks: u8, fua: bool) -> Self {
        let mut cdb = Self::of(COMPARE_AND_WRITE).at(lba, Blocks(u32::from(blocks)));
        if fua {
            cdb.0[1] |= FUA;
        }
        cdb
    }

    /// UNMAP, with the length of the list that `unmap::list` makes.
    pub fn unmap(parameter_bytes: u16) -> Self {
        let mut cdb = Self::of(UNMAP);
        cdb.0[7..9].copy_from_slice(&parameter_bytes.to_be_bytes());
        cdb
    }

    /// How long an answer may reasonably take.
    pub fn timeout_class(&self) -> TimeoutClass {
        match self.operation_code() {
            SYNCHRONIZE_CACHE_10 | SYNCHRONIZE_CACHE_16 => TimeoutClass::Flush,
            UNMAP | WRITE_SAME_10 | WRITE_SAME_16 => TimeoutClass::Zeroing,
            _ => TimeoutClass::Normal,
        }
    }

    /// Has the command the same effect done twice as done once? Others must not be repeated when it is not known
    /// whether they were done: the second COMPARE AND WRITE would meet what the first has written, the second REGISTER
    /// the key that the first has changed. What we do not know is not taken for harmless.
    pub fn is_idempotent(&self) -> bool {
        matches!(
            self.operation_code(),
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
                | PRE_FETCH_16
                | WRITE_16
                | SYNCHRONIZE_CACHE_16
                | WRITE_SAME_16
                | SERVICE_ACTION_IN_16
                | REPORT_LUNS
                | MAINTENANCE_IN
        )
    }

    /// The operation code.
    pub fn operation_code(&self) -> u8 {
        self.0[0]
    }

    fn of(operation_code: u8) -> Self {
        let mut cdb = [0; 16];
        cdb[0] = operation_code;
        Self(cdb)
    }

    /// Address and length where all 16-byte block commands have them.
    fn at(mut self, lba: Lba, blocks: Blocks) -> Self {
        self.0[2..10].copy_from_slice(&lba.0.to_be_bytes());
        self.0[10..14].copy_from_slice(&blocks.0.to_be_bytes());
        self
    }
}

/// How long the answer to a command may reasonably take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimeoutClass {
    /// As long as the data takes.
    Normal,
    /// As long as a cache of any size takes: NAS boxes were seen to need many seconds.
    Flush,
    /// As long as writing the range takes where the unit cannot unmap.
    Zeroing,
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
const PERSISTENT_RESERVE_OUT: u8 = 0x5F;
const READ_16: u8 = 0x88;
const PRE_FETCH_16: u8 = 0x90;
const COMPARE_AND_WRITE: u8 = 0x89;
const WRITE_16: u8 = 0x8A;
const SYNCHRONIZE_CACHE_16: u8 = 0x91;
const WRITE_SAME_16: u8 = 0x93;
const SERVICE_ACTION_IN_16: u8 = 0x9E;
const REPORT_LUNS: u8 = 0xA0;
const MAINTENANCE_IN: u8 = 0xA3;
/// Service action of SERVICE ACTION IN(16).
const READ_CAPACITY_16: u8 = 0x10;
/// Service action of SERVICE ACTION IN(16).
const GET_LBA_STATUS: u8 = 0x12;
/// Service action of MAINTENANCE IN.
const REPORT_TARGET_PORT_GROUPS: u8 = 0x0A;
/// PARAMETER DATA FORMAT 001b in byte 1 of REPORT TARGET PORT GROUPS.
const EXTENDED_HEADER: u8 = 1 << 5;

/// Byte 1 of INQUIRY.
const EVPD: u8 = 0x01;
/// Byte 1 of MODE SENSE: no block descriptors.
const DBD: u8 = 0x08;
/// Byte 1 of WRITE and COMPARE AND WRITE.
const FUA: u8 = 0x08;
const PRE_FETCH_IMMED: u8 = 0x02;
/// Byte 1 of WRITE SAME.
const WRITE_SAME_UNMAP: u8 = 0x08;
/// Byte 1 of WRITE SAME(16): no data-out buffer.
const NDOB: u8 = 0x01;

#[cfg(test)]
mod tests {
    use super::*;

    const LBA: Lba = Lba(0x0102_0304_0506_0708);
    const BLOCKS: Blocks = Blocks(0x1112_1314);

    /// As bytes, written from the tables of SPC-4.
    #[test]
    fn commands_have_the_bytes_of_the_standard() {
        for (cdb, bytes) in [
            (Cdb::test_unit_ready(), [0; 16]),
            (
                Cdb::inquiry(0x0124),
                [0x12, 0, 0, 0x01, 0x24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            (
                Cdb::inquiry_vpd(0x83, 0x0124),
                [0x12, 1, 0x83, 0x01, 0x24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            (
                Cdb::report_luns(0x2000),
                [0xA0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0],
            ),
            (
                Cdb::report_luns_of(SelectReport::WELL_KNOWN, 16),
                [0xA0, 0, 1, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0],
            ),
            (
                Cdb::report_luns_of(SelectReport::ALL, 16),
                [0xA0, 0, 2, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0],
            ),
            (
                Cdb::report_target_port_groups(false, 0x0102_0304),
                [0xA3, 0x0A, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0],
            ),
            (
                Cdb::report_target_port_groups(true, 256),
                [0xA3, 0x2A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
            ),
            (
                Cdb::persistent_reserve_in(ReserveIn::ReadFullStatus, 0x0203),
                [0x5E, 3, 0, 0, 0, 0, 0, 2, 3, 0, 0, 0, 0, 0, 0, 0],
            ),
            (
                Cdb::persistent_reserve_out(
                    ReserveOut::PreemptAndAbort,
                    ReservationType::EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
                ),
                [0x5F, 5, 0x08, 0, 0, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0],
            ),
            (
                Cdb::mode_sense_6(0x08, 0xC0),
                [0x1A, 0x08, 0x08, 0, 0xC0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            (
                Cdb::mode_sense_10(0x3F, 0x0200),
                [0x5A, 0x08, 0x3F, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
        ] {
            assert_eq!(cdb.0, bytes);
            assert_eq!(cdb.operation_code(), bytes[0]);
        }
    }

    /// Those that address blocks, from SBC-4.
    #[test]
    fn block_commands_have_the_bytes_of_the_standard() {
        let ranged = |operation: u8, flags: u8| {
            [
                operation, flags, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0, 0,
            ]
        };
        for (cdb, bytes) in [
            (Cdb::get_lba_status(LBA, 0x1112_1314), ranged(0x9E, 0x12)),
            (
                Cdb::compare_and_write(LBA, 7, false),
                [0x89, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 7, 0, 0],
            ),
            (
                Cdb::compare_and_write(LBA, 7, true),
                [0x89, 0x08, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 7, 0, 0],
            ),
            (
                Cdb::write_same_16_no_data(LBA, BLOCKS, false),
                ranged(0x93, 0x01),
            ),
            (
                Cdb::write_same_16_no_data(LBA, BLOCKS, true),
                ranged(0x93, 0x09),
            ),
            (
                Cdb::read_capacity_16(32),
                [0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0],
            ),
            (Cdb::read_16(LBA, BLOCKS), ranged(0x88, 0)),
            (Cdb::pre_fetch_16(LBA, BLOCKS), ranged(0x90, 0x02)),
            (Cdb::write_16(LBA, BLOCKS, false), ranged(0x8A, 0)),
            (Cdb::write_16(LBA, BLOCKS, true), ranged(0x8A, 0x08)),
            (Cdb::synchronize_cache_16(LBA, BLOCKS), ranged(0x91, 0)),
            (Cdb::write_same_16(LBA, BLOCKS, false), ranged(0x93, 0)),
            (Cdb::write_same_16(LBA, BLOCKS, true), ranged(0x93, 0x08)),
            (
                Cdb::unmap(24),
                [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0],
            ),
        ] {
            assert_eq!(cdb.0, bytes);
            assert_eq!(cdb.operation_code(), bytes[0]);
        }
    }

    #[test]
    fn slow_commands_are_told_by_their_operation_code() {
        for (operation, class) in [
            (0x35, TimeoutClass::Flush),
            (0x91, TimeoutClass::Flush),
            (0x41, TimeoutClass::Zeroing),
            (0x42, TimeoutClass::Zeroing),
            (0x93, TimeoutClass::Zeroing),
            (0x00, TimeoutClass::Normal),
            (0x88, TimeoutClass::Normal),
            (0x8A, TimeoutClass::Normal),
            (0xFF, TimeoutClass::Normal),
        ] {
            assert_eq!(Cdb::of(operation).timeout_class(), class, "{operation:x}");
        }
    }

    /// A list of its own, so that a command joins it only by being thought of twice.
    #[test]
    fn only_what_is_known_to_be_harmless_may_be_done_twice() {
        let harmless: Vec<u8> = (0..=0xFF)
            .filter(|operation| Cdb::of(*operation).is_idempotent())
            .collect();
        assert_eq!(
            harmless,
            [
                0x00, 0x03, 0x12, 0x1A, 0x25, 0x28, 0x2A, 0x35, 0x41, 0x42, 0x5A, 0x5E, 0x88, 0x8A,
                0x90, 0x91, 0x93, 0x9E, 0xA0, 0xA3
            ]
        );
    }
}
