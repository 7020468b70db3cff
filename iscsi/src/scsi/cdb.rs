//! Command descriptor blocks and the parameter lists that go with them.
//!
//! Source: SPC-4 6 (INQUIRY, MODE SENSE, REPORT LUNS, TEST UNIT READY), SBC-4 5 (READ CAPACITY(16), READ(16),
//! WRITE(16), SYNCHRONIZE CACHE(16), UNMAP, WRITE SAME(16)).
//!
//! Invariants:
//! 1. A CDB shorter than 16 bytes is followed by zeroes, as RFC 7143 §11.3 wants it in the header.
//! 2. The expected data transfer length of a command equals what its CDB names: some targets refuse any other.

use bytes::{BufMut as _, Bytes, BytesMut};

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

    /// REPORT LUNS of all that this nexus may use (SELECT REPORT 00h).
    pub fn report_luns(allocation_bytes: u32) -> Self {
        let mut cdb = Self::of(REPORT_LUNS);
        cdb.0[6..10].copy_from_slice(&allocation_bytes.to_be_bytes());
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

    /// READ(16) of `lba..lba + blocks`.
    pub fn read_16(lba: Lba, blocks: Blocks) -> Self {
        Self::of(READ_16).at(lba, blocks)
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

    /// UNMAP, with the length of the list that `unmap_parameters` makes.
    pub fn unmap(parameter_bytes: u16) -> Self {
        let mut cdb = Self::of(UNMAP);
        cdb.0[7..9].copy_from_slice(&parameter_bytes.to_be_bytes());
        cdb
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

/// The parameter list of UNMAP for one range (SBC-4 5.35.2): one descriptor, 24 bytes.
pub fn unmap_parameters(lba: Lba, blocks: Blocks) -> Bytes {
    let mut list = BytesMut::with_capacity(usize::from(UNMAP_ONE_RANGE_BYTES));
    // UNMAP DATA LENGTH counts what follows it, UNMAP BLOCK DESCRIPTOR DATA LENGTH the descriptors.
    list.put_u16(UNMAP_ONE_RANGE_BYTES - 2);
    list.put_u16(UNMAP_ONE_RANGE_BYTES - 8);
    list.put_u32(0);
    list.put_u64(lba.0);
    list.put_u32(blocks.0);
    list.put_u32(0);
    list.freeze()
}

/// Length of an UNMAP parameter list with one descriptor.
pub const UNMAP_ONE_RANGE_BYTES: u16 = 24;

const TEST_UNIT_READY: u8 = 0x00;
const INQUIRY: u8 = 0x12;
const MODE_SENSE_6: u8 = 0x1A;
const UNMAP: u8 = 0x42;
const MODE_SENSE_10: u8 = 0x5A;
const READ_16: u8 = 0x88;
const WRITE_16: u8 = 0x8A;
const SYNCHRONIZE_CACHE_16: u8 = 0x91;
const WRITE_SAME_16: u8 = 0x93;
const SERVICE_ACTION_IN_16: u8 = 0x9E;
const REPORT_LUNS: u8 = 0xA0;
/// Service action of SERVICE ACTION IN(16).
const READ_CAPACITY_16: u8 = 0x10;

/// Byte 1 of INQUIRY.
const EVPD: u8 = 0x01;
/// Byte 1 of MODE SENSE: no block descriptors.
const DBD: u8 = 0x08;
/// Byte 1 of READ and WRITE.
const FUA: u8 = 0x08;
/// Byte 1 of WRITE SAME.
const WRITE_SAME_UNMAP: u8 = 0x08;

#[cfg(test)]
mod tests {
    use super::*;

    const LBA: Lba = Lba(0x0102_0304_0506_0708);
    const BLOCKS: Blocks = Blocks(0x1112_1314);

    /// Every CDB as bytes, written from the tables of SPC-4 and SBC-4.
    #[test]
    fn commands_have_the_bytes_of_the_standard() {
        let ranged = |operation: u8, flags: u8| {
            [
                operation, flags, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0, 0,
            ]
        };
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
                Cdb::mode_sense_6(0x08, 0xC0),
                [0x1A, 0x08, 0x08, 0, 0xC0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            (
                Cdb::mode_sense_10(0x3F, 0x0200),
                [0x5A, 0x08, 0x3F, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            (
                Cdb::read_capacity_16(32),
                [0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0],
            ),
            (Cdb::read_16(LBA, BLOCKS), ranged(0x88, 0)),
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
    fn unmap_list_counts_itself() {
        assert_eq!(
            unmap_parameters(LBA, BLOCKS)[..],
            [
                0, 22, 0, 16, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0, 0, 0,
                0
            ]
        );
    }
}
