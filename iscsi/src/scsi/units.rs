//! Logical block addresses, numbers of blocks, numbers of bytes: three types, and the one place that converts.
//!
//! Source: SBC-4 4.5 (logical blocks), 5.20 (READ CAPACITY(16)).
//!
//! Invariants:
//! 1. A `BlockLength` is a power of two from 512 to 65536.
//! 2. Every conversion is checked: what does not fit or is not a whole number of blocks is `None`.

use std::fmt;

/// A logical block address; zero is the first block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lba(pub u64);

/// A number of logical blocks that one command can name (its transfer length).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blocks(pub u32);

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteCount(pub u64);

/// Bytes a logical block: a power of two from 512 to 65536.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockLength {
    /// Exponent of two, 9..=16: there is no other value to be wrong.
    exponent: u8,
}

impl Lba {
    /// The address `blocks` further on.
    pub fn checked_add(self, blocks: Blocks) -> Option<Self> {
        self.0.checked_add(u64::from(blocks.0)).map(Self)
    }
}

impl BlockLength {
    /// The smallest one, that of most disks.
    pub const B512: Self = Self {
        exponent: EXPONENT_MIN,
    };

    /// From a number of bytes; `None` if no disk of ours has such blocks.
    pub fn new(bytes: u32) -> Option<Self> {
        // NBD and the page cache need a power of two; 520-byte and the like carry protection data inline.
        if !bytes.is_power_of_two() {
            return None;
        }
        let exponent = u8::try_from(bytes.trailing_zeros()).ok()?;
        (EXPONENT_MIN..=EXPONENT_MAX)
            .contains(&exponent)
            .then_some(Self { exponent })
    }

    /// Bytes a block, 512..=65536.
    pub fn bytes(self) -> u32 {
        1 << self.exponent
    }

    /// The address of the block that begins at byte `offset`; `None` if none begins there.
    pub fn lba_at(self, offset: ByteCount) -> Option<Lba> {
        self.whole(offset).map(Lba)
    }

    /// The number of blocks in so many bytes; `None` if not whole or beyond 32 bits.
    pub fn blocks_in(self, count: ByteCount) -> Option<Blocks> {
        u32::try_from(self.whole(count)?).ok().map(Blocks)
    }

    /// The largest number of whole blocks in so many bytes, at most `u32::MAX`.
    pub fn blocks_within(self, count: ByteCount) -> Blocks {
        Blocks(u32::try_from(count.0 >> self.exponent).unwrap_or(u32::MAX))
    }

    /// The bytes of so many blocks. At most 2^48, so it always fits.
    pub fn bytes_of(self, blocks: Blocks) -> ByteCount {
        ByteCount(u64::from(blocks.0) << self.exponent)
    }

    /// The first byte of a block; `None` beyond 64 bits.
    pub fn offset_of(self, lba: Lba) -> Option<ByteCount> {
        lba.0.checked_mul(u64::from(self.bytes())).map(ByteCount)
    }

    fn whole(self, count: ByteCount) -> Option<u64> {
        let rest = count.0 & (u64::from(self.bytes()) - 1);
        (rest == 0).then_some(count.0 >> self.exponent)
    }
}

impl fmt::Display for BlockLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes())
    }
}

impl fmt::Display for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}", self.0)
    }
}

/// 512 bytes, the least that any SCSI disk has.
const EXPONENT_MIN: u8 = 9;
/// 65536 bytes: the kernel's NBD driver takes no larger block, and no array offers one.
const EXPONENT_MAX: u8 = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_powers_of_two_from_512_to_65536_are_block_lengths() {
        for good in [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536] {
            assert_eq!(BlockLength::new(good).map(BlockLength::bytes), Some(good));
        }
        for bad in [
            0,
            1,
            256,
            511,
            513,
            520,
            528,
            4104,
            131_072,
            1 << 31,
            u32::MAX,
        ] {
            assert_eq!(BlockLength::new(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_part_of_a_block_is_no_address() {
        let four_k = BlockLength::new(4096).unwrap();
        assert_eq!(four_k.lba_at(ByteCount(8192)), Some(Lba(2)));
        assert_eq!(four_k.lba_at(ByteCount(8704)), None);
        assert_eq!(four_k.blocks_in(ByteCount(4095)), None);
        assert_eq!(four_k.blocks_within(ByteCount(4095)), Blocks(0));
        assert_eq!(four_k.blocks_within(ByteCount(u64::MAX)), Blocks(u32::MAX));
    }

    #[test]
    fn overflow_is_none() {
        let largest = BlockLength::new(65536).unwrap();
        assert_eq!(largest.offset_of(Lba(1 << 48)), None);
        assert_eq!(
            largest.offset_of(Lba((1 << 48) - 1)),
            Some(ByteCount(u64::MAX - 65535))
        );
        assert_eq!(BlockLength::B512.blocks_in(ByteCount(1 << 41)), None);
        assert_eq!(Lba(u64::MAX).checked_add(Blocks(1)), None);
    }

    proptest! {
        #[test]
        fn bytes_and_blocks_are_inverse(exponent in 9u32..=16, blocks: u32, lba: u64) {
            let length = BlockLength::new(1 << exponent).unwrap();
            prop_assert_eq!(length.blocks_in(length.bytes_of(Blocks(blocks))), Some(Blocks(blocks)));
            if let Some(offset) = length.offset_of(Lba(lba)) {
                prop_assert_eq!(length.lba_at(offset), Some(Lba(lba)));
            }
        }
    }
}
