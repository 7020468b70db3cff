//! Stamped blocks, and the map that says which of them a disk may hold.
//!
//! Every block written carries its own address, the number of the write and a checksum, and is filled with a pattern
//! of both: a block that lies elsewhere, is older than it may be, or was written by halves is found out by looking at
//! it alone. The map knows what was written, answered and flushed, and so what may be read:
//!
//! ```text
//!   writes of one block:   n1 -- n2 -- n3 -- n4 -- n5
//!                          |           |           |
//!                          flushed     answered    sent
//!   read now:              . . . . . . n3 or n4 or n5      nothing older
//!   read after a loss:     n1 or n2 or n3 or n4 or n5      nothing older than what was flushed
//! ```
//!
//! Invariants:
//! 1. Write numbers rise and are never used twice.
//! 2. A write that failed stays possible until a later one of the same block is answered; then its return is an
//!    error (a late write landing after a newer one).
//! 3. Writes of one block that overlap in time have no order: the caller does not do that.

use std::collections::BTreeMap;

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing but zeroes: never written, trimmed, or zeroed.
    Zero,
    /// A good stamp with the number of its write.
    Stamp(u64),
}

/// Why a block may not be as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// Neither zero nor a whole stamp.
    #[error("block {lba} is torn or foreign: begins {begins:02x?}")]
    Torn {
        /// Which block.
        lba: u64,
        /// Its first bytes.
        begins: [u8; 8],
    },
    /// A whole stamp of another address.
    #[error("block {lba} holds block {found}")]
    Misplaced {
        /// Which block.
        lba: u64,
        /// Whose contents it has.
        found: u64,
    },
    /// A content that it must not have any more, or never had.
    #[error("block {lba} holds {found:?}, allowed are {allowed:?}")]
    Forbidden {
        /// Which block.
        lba: u64,
        /// What it has.
        found: Content,
        /// What it might have.
        allowed: Vec<Content>,
    },
}

/// A write on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Its number.
    pub number: u64,
    /// First block.
    pub lba: u64,
    /// Blocks.
    pub blocks: u64,
    /// What is written.
    pub data: Vec<u8>,
}

/// A flush on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    /// What was answered before this moment is covered.
    moment: u64,
}

/// The map of a disk's blocks.
#[derive(Debug)]
pub struct Map {
    block_bytes: usize,
    next: u64,
    blocks: BTreeMap<u64, Vec<Entry>>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    number: u64,
    content: Content,
    /// When it was answered.
    answered: Option<u64>,
}

impl Map {
    /// For a disk that holds zeroes, with blocks of this many bytes.
    ///
    /// # Panics
    /// For blocks that have no room for a stamp.
    pub fn new(block_bytes: usize) -> Self {
        assert!(
            block_bytes >= STAMP_BYTES,
            "a stamp needs {STAMP_BYTES} bytes"
        );
        Self {
            block_bytes,
            next: 1,
            blocks: BTreeMap::new(),
        }
    }

    /// Begins a write of stamped blocks.
    #[must_use]
    pub fn write(&mut self, lba: u64, blocks: u64) -> Write {
        let number = self.begin(lba, blocks, Content::Stamp);
        let data = (lba..lba + blocks)
            .flat_map(|lba| stamp(lba, number, self.block_bytes))
            .collect();
        Write {
            number,
            lba,
            blocks,
            data,
        }
    }

    /// Begins to zero or trim a range, where trimmed blocks read as zero.
    #[must_use]
    pub fn zero(&mut self, lba: u64, blocks: u64) -> Write {
        let number = self.begin(lba, blocks, |_| Content::Zero);
        let bytes = usize::try_from(blocks).unwrap_or(0) * self.block_bytes;
        Write {
            number,
            lba,
            blocks,
            data: vec![0; bytes],
        }
    }

    /// A write was answered with success. One that failed, or was never answered, is simply not told.
    pub fn answered(&mut self, write: &Write) {
        let moment = self.tick();
        for lba in write.lba..write.lba + write.blocks {
            let entries = self.blocks.entry(lba).or_default();
            if let Some(entry) = entries
                .iter_mut()
                .find(|entry| entry.number == write.number)
            {
                entry.answered = Some(moment);
            }
        }
    }

    /// Begins a flush.
    #[must_use]
    pub fn flush(&mut self) -> Flush {
        Flush {
            moment: self.tick(),
        }
    }

    /// A flush was answered with success: what was answered before it began is there for good.
    pub fn flushed(&mut self, flush: Flush) {
        for entries in self.blocks.values_mut() {
            let durable = entries
                .iter()
                .rposition(|entry| entry.answered.is_some_and(|moment| moment < flush.moment));
            if let Some(durable) = durable {
                entries.drain(..durable);
            }
        }
    }

    /// Checks what was read while nothing was lost: the newest answered write or one that is still on its way.
    ///
    /// # Errors
    /// The first block that is otherwise.
    pub fn check(&self, lba: u64, data: &[u8]) -> Result<(), Mismatch> {
        self.each(lba, data, |entries| {
            let newest = entries
                .iter()
                .rposition(|entry| entry.answered.is_some())
                .unwrap_or(0);
            &entries[newest..]
        })
    }

    /// Checks what was read after connections, power or processes were lost: what was flushed, or anything later.
    /// From then on what was seen is what there is.
    ///
    /// # Errors
    /// The first block that is otherwise; the map is as before then.
    pub fn check_after_loss(&mut self, lba: u64, data: &[u8]) -> Result<(), Mismatch> {
        self.each(lba, data, |entries| entries)?;
        let moment = self.tick();
        for (lba, block) in (lba..).zip(data.chunks(self.block_bytes)) {
            let content = look(lba, block)?;
            self.blocks.insert(
                lba,
                vec![Entry {
                    number: moment,
                    content,
                    answered: Some(moment),
                }],
            );
        }
        Ok(())
    }

    /// Blocks that were ever written or zeroed.
    pub fn touched(&self) -> impl Iterator<Item = u64> + '_ {
        self.blocks.keys().copied()
    }

    fn begin(&mut self, lba: u64, blocks: u64, content: impl Fn(u64) -> Content) -> u64 {
        let number = self.tick();
        for lba in lba..lba + blocks {
            let entries = self.blocks.entry(lba).or_insert_with(|| vec![UNTOUCHED]);
            entries.push(Entry {
                number,
                content: content(number),
                answered: None,
            });
        }
        number
    }

    /// Numbers of writes and moments are one sequence.
    fn tick(&mut self) -> u64 {
        let now = self.next;
        self.next += 1;
        now
    }

    fn each(
        &self,
        lba: u64,
        data: &[u8],
        allowed: impl Fn(&[Entry]) -> &[Entry],
    ) -> Result<(), Mismatch> {
        for (lba, block) in (lba..).zip(data.chunks(self.block_bytes)) {
            let found = look(lba, block)?;
            let entries = self
                .blocks
                .get(&lba)
                .map_or(&[UNTOUCHED][..], Vec::as_slice);
            let allowed = allowed(entries);
            if !allowed.iter().any(|entry| entry.content == found) {
                let allowed = allowed.iter().map(|entry| entry.content).collect();
                return Err(Mismatch::Forbidden {
                    lba,
                    found,
                    allowed,
                });
            }
        }
        Ok(())
    }
}

/// A stamped block: address, number, pattern of both, and the checksum of all that last.
pub fn stamp(lba: u64, number: u64, block_bytes: usize) -> Vec<u8> {
    let mut block = Vec::with_capacity(block_bytes + 8);
    block.extend(MAGIC);
    block.extend(lba.to_be_bytes());
    block.extend(number.to_be_bytes());
    let mut word = lba.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number;
    while block.len() < block_bytes - 4 {
        // xorshift64: any pattern that differs from block to block and from write to write does.
        word |= 1;
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        block.extend(word.to_be_bytes());
    }
    block.truncate(block_bytes - 4);
    let sum = crc32c::crc32c(&block);
    block.extend(sum.to_be_bytes());
    block
}

/// What a block holds, if it is whole and at its place.
///
/// # Errors
/// `Torn` or `Misplaced`.
pub fn look(lba: u64, block: &[u8]) -> Result<Content, Mismatch> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(Content::Zero);
    }
    let torn = || {
        let mut begins = [0; 8];
        let length = block.len().min(8);
        begins[..length].copy_from_slice(&block[..length]);
        Mismatch::Torn { lba, begins }
    };
    let (body, sum) = block.split_last_chunk::<4>().ok_or_else(torn)?;
    if block.len() < STAMP_BYTES || crc32c::crc32c(body).to_be_bytes() != *sum || body[..8] != MAGIC
    {
        return Err(torn());
    }
    let word = |at: usize| {
        body[at..]
            .first_chunk::<8>()
            .map_or(0, |bytes| u64::from_be_bytes(*bytes))
    };
    if word(8) != lba {
        return Err(Mismatch::Misplaced {
            lba,
            found: word(8),
        });
    }
    Ok(Content::Stamp(word(16)))
}

const MAGIC: [u8; 8] = *b"stamped:";
/// Magic, address, number and checksum.
const STAMP_BYTES: usize = 28;
const UNTOUCHED: Entry = Entry {
    number: 0,
    content: Content::Zero,
    answered: Some(0),
};

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 512;

    #[test]
    fn stamps_tell_address_and_number_and_betray_tearing() {
        let old = stamp(7, 1, BLOCK);
        let new = stamp(7, 2, BLOCK);
        assert_eq!(look(7, &new), Ok(Content::Stamp(2)));
        assert_eq!(look(8, &new), Err(Mismatch::Misplaced { lba: 8, found: 7 }));
        for cut in [1, 24, 28, 256, 508, 511] {
            let torn = [&new[..cut], &old[cut..]].concat();
            assert!(
                torn == old || matches!(look(7, &torn), Err(Mismatch::Torn { .. })),
                "{cut}"
            );
        }
        assert_eq!(look(7, &[0; BLOCK]), Ok(Content::Zero));
    }

    #[test]
    fn answered_writes_are_read_and_older_ones_are_not() {
        let mut map = Map::new(BLOCK);
        let first = map.write(3, 2);
        let zero = [0; 2 * BLOCK];
        // On its way: old or new.
        assert_eq!(
            (map.check(3, &zero), map.check(3, &first.data)),
            (Ok(()), Ok(()))
        );
        map.answered(&first);
        assert!(matches!(
            map.check(3, &zero),
            Err(Mismatch::Forbidden { lba: 3, .. })
        ));
        // The second fails; either may be there until the third is answered.
        let second = map.write(3, 1);
        assert_eq!(
            (map.check(3, &first.data), map.check(3, &second.data)),
            (Ok(()), Ok(()))
        );
        let third = map.write(3, 1);
        map.answered(&third);
        assert_eq!(map.check(3, &third.data), Ok(()));
        assert!(
            map.check(3, &second.data).is_err(),
            "a late write landed after a newer one"
        );
    }

    #[test]
    fn after_a_loss_what_was_flushed_is_there_and_the_rest_may_be() {
        let mut map = Map::new(BLOCK);
        let first = map.write(0, 1);
        map.answered(&first);
        let flush = map.flush();
        // Answered after the flush began: not covered by it.
        let second = map.write(0, 1);
        map.answered(&second);
        map.flushed(flush);
        let third = map.write(0, 1);
        assert!(map.check_after_loss(0, &[0; BLOCK]).is_err());
        assert!(map.check(0, &first.data).is_err());
        assert_eq!(map.check(0, &third.data), Ok(()));
        assert_eq!(map.check_after_loss(0, &first.data), Ok(()));
        // What was seen after the loss is what there is.
        assert!(map.check(0, &second.data).is_err());
        assert_eq!(map.check(0, &first.data), Ok(()));
        let fourth = map.write(0, 1);
        assert_eq!(map.check(0, &first.data), Ok(()));
        map.answered(&fourth);
        assert!(map.check(0, &first.data).is_err());
        assert_eq!(map.check(0, &fourth.data), Ok(()));
    }

    #[test]
    fn zeroed_blocks_read_as_zero() {
        let mut map = Map::new(4096);
        let write = map.write(0, 4);
        map.answered(&write);
        let zero = map.zero(1, 2);
        map.answered(&zero);
        let mut data = write.data.clone();
        assert!(map.check(0, &data).is_err());
        data[4096..3 * 4096].fill(0);
        assert_eq!(map.check(0, &data), Ok(()));
        assert_eq!(map.touched().collect::<Vec<_>>(), [0, 1, 2, 3]);
    }
}
