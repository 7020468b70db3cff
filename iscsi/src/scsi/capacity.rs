//! READ CAPACITY(16) parameter data: how many blocks of what length, and how they are provisioned.
//!
//! Source: SBC-4 5.20.2.

use super::field::{bit_at, u8_at, u16_at, u32_at, u64_at};
use super::{BlockLength, ByteCount, Lba, Violation};

/// What READ CAPACITY(16) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// One past the last block: addresses are `0..end`.
    pub end: Lba,
    /// Bytes a logical block.
    pub block_length: BlockLength,
    /// Logical blocks a physical block, as an exponent of two, 0..=15.
    pub physical_exponent: u8,
    /// The first logical block at which a physical one begins.
    pub lowest_aligned: Lba,
    /// `PROT_EN`: formatted with protection information, of type `P_TYPE` + 1.
    pub protection_type: Option<u8>,
    /// LBPME: logical block provisioning management is on (thin).
    pub provisioning: bool,
    /// LBPRZ: an unmapped block reads as zeroes.
    pub unmapped_reads_zero: bool,
}

impl Capacity {
    /// Bytes of parameter data, to be asked for in the CDB.
    pub const DATA_BYTES: u32 = 32;

    /// Takes the data apart; flags beyond what came read as zero.
    ///
    /// # Errors
    /// `TooShort` below 12 bytes, `BlockLength`, `Capacity` beyond 63 bits of bytes.
    pub fn parse(data: &[u8]) -> Result<Self, Violation> {
        if data.len() < ADDRESS_AND_LENGTH_BYTES {
            return Err(Violation::TooShort {
                what: "the READ CAPACITY(16) data",
                have: data.len(),
                need: ADDRESS_AND_LENGTH_BYTES,
            });
        }
        let block_bytes = u32_at(data, 8);
        let block_length =
            BlockLength::new(block_bytes).ok_or(Violation::BlockLength(block_bytes))?;
        let last = u64_at(data, 0);
        let end = last
            .checked_add(1)
            .map(Lba)
            .filter(|end| {
                block_length
                    .offset_of(*end)
                    .is_some_and(|bytes| bytes.0 <= BYTES_MAX)
            })
            .ok_or_else(|| Violation::Capacity {
                blocks: last.saturating_add(1),
                block_bytes,
            })?;
        Ok(Self {
            end,
            block_length,
            physical_exponent: u8_at(data, 13) & 0x0F,
            lowest_aligned: Lba(u64::from(u16_at(data, 14) & 0x3FFF)),
            protection_type: bit_at(data, 12, 0).then(|| ((u8_at(data, 12) >> 1) & 0x07) + 1),
            provisioning: bit_at(data, 14, 7),
            unmapped_reads_zero: bit_at(data, 14, 6),
        })
    }

    /// The size of the medium in bytes, at most 2^63 - 1.
    pub fn bytes(&self) -> ByteCount {
        // `parse` has seen that it fits; a hand-made value saturates rather than wraps.
        self.block_length
            .offset_of(self.end)
            .unwrap_or(ByteCount(BYTES_MAX))
    }
}

/// RETURNED LOGICAL BLOCK ADDRESS and LOGICAL BLOCK LENGTH.
const ADDRESS_AND_LENGTH_BYTES: usize = 12;
/// File offsets of the kernel and of NBD are signed.
const BYTES_MAX: u64 = i64::MAX.unsigned_abs();

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A 1 GiB unit of tgtd with thin provisioning: 512-byte blocks, eight to a physical one.
    const THIN: [u8; 32] = [
        0, 0, 0, 0, 0, 0x1F, 0xFF, 0xFF, 0, 0, 2, 0, 0, 3, 0xC0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0,
    ];

    #[test]
    fn a_gibibyte_is_a_gibibyte() {
        let capacity = Capacity::parse(&THIN).unwrap();
        assert_eq!(capacity.end, Lba(2_097_152));
        assert_eq!(capacity.bytes(), ByteCount(1 << 30));
        assert_eq!(capacity.block_length, BlockLength::B512);
        assert_eq!(capacity.physical_exponent, 3);
        assert!(capacity.provisioning && capacity.unmapped_reads_zero);
        assert_eq!(capacity.protection_type, None);
    }

    #[test]
    fn protection_and_alignment_are_read() {
        let mut data = THIN;
        data[12] = 0b0000_0101;
        data[14] = 0x3F;
        data[15] = 0x07;
        let capacity = Capacity::parse(&data).unwrap();
        assert_eq!(capacity.protection_type, Some(3));
        assert_eq!(capacity.lowest_aligned, Lba(0x3F07));
        assert!(!capacity.provisioning && !capacity.unmapped_reads_zero);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let mut data = THIN;
        data[..8].fill(0xFF);
        assert!(matches!(
            Capacity::parse(&data),
            Err(Violation::Capacity { .. })
        ));
        data[..8].copy_from_slice(&(1u64 << 54).to_be_bytes());
        assert!(matches!(
            Capacity::parse(&data),
            Err(Violation::Capacity { .. })
        ));
        data[..8].copy_from_slice(&((1u64 << 54) - 2).to_be_bytes());
        assert!(Capacity::parse(&data).is_ok());
        data[8..12].copy_from_slice(&520u32.to_be_bytes());
        assert_eq!(Capacity::parse(&data), Err(Violation::BlockLength(520)));
        assert!(matches!(
            Capacity::parse(&THIN[..11]),
            Err(Violation::TooShort { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_endured(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(capacity) = Capacity::parse(&data) {
                prop_assert!(capacity.bytes().0 <= BYTES_MAX);
            }
        }
    }
}
