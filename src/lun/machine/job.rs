//! One request at work: which command comes next, and what its answers add up to.
//!
//! ```text
//!   data commands, several out at once ──(all answered)──► SYNCHRONIZE CACHE, if stability was asked ──► end
//!              ▲                          │
//!              └── WRITE SAME refused: ───┘ all of it again, as zeroes that are sent
//! ```
//!
//! Invariants:
//! 1. Commands cover the request's range once, each within the LUN's limits; a trim covers the whole groups in it.
//! 2. The flush leaves when no data command is out, and not at all after a failure.
//! 3. The pieces of a read lie in one buffer, the caller's, and are joined without a copy.

use bytes::{Bytes, BytesMut};
use iscsi::io::Data;
use iscsi::scsi::unmap::{self, UnmapLimits};
use iscsi::scsi::{Blocks, Cdb, Extent, Lba};

use super::status::{self, STATUS_BYTES};
use crate::block::{ErrorKind, Operation};
use crate::lun::limits::{Fua, Limits};

/// One request at work.
#[derive(Debug)]
pub(super) struct Active {
    /// The front's number.
    pub(super) token: u64,
    /// Commands that were begun and not settled.
    pub(super) out: u32,
    /// It stands in the queue of those with commands to send.
    pub(super) queued: bool,
    job: Job,
    begin: Lba,
    blocks: Blocks,
    next: Lba,
    left: Blocks,
    flush: Flush,
    restart: bool,
    failed: Option<ErrorKind>,
    /// Pieces of a read that took several commands.
    pieces: Vec<(Lba, BytesMut)>,
}

#[derive(Debug)]
enum Job {
    /// What is still to be read; the whole again at the end.
    Read(BytesMut),
    /// What is still to be written.
    Write {
        rest: Bytes,
        fua: bool,
    },
    Flush,
    Unmap {
        blocks_max: Blocks,
    },
    WriteSame {
        blocks_max: Blocks,
        unmap: bool,
        /// Zeroes that are sent would be too slow.
        fast: bool,
    },
    Zeroes {
        fua: bool,
    },
    Prefetch,
    /// The extents that were told.
    Status {
        one: bool,
        extents: BytesMut,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    No,
    Wanted,
    Sent,
}

/// A command to be sent.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) cdb: Cdb,
    pub(super) lba: Lba,
    /// Bytes that GOOD must have moved; `None` where the data is only a parameter.
    pub(super) bytes: Option<u32>,
    pub(super) data: Data,
}

impl Active {
    /// A flush: no data, only the second stage.
    pub(super) fn flush(token: u64) -> Self {
        Self {
            flush: Flush::Wanted,
            ..Self::idle(token, Job::Flush, Lba(0), Blocks(0))
        }
    }

    /// A request on a range that was found legal.
    pub(super) fn new(
        token: u64,
        operation: Operation,
        begin: Lba,
        blocks: Blocks,
        limits: &Limits,
    ) -> Self {
        let plain = |job| Self::idle(token, job, begin, blocks);
        let fua_bit = |fua: bool| fua && limits.fua == Fua::Bit;
        match operation {
            Operation::Flush => Self::flush(token),
            Operation::Read(data) => plain(Job::Read(data)),
            Operation::Write { data, fua } => plain(Job::Write {
                rest: data,
                fua: fua_bit(fua),
            })
            .flushed_if(fua && limits.fua == Fua::Flush),
            Operation::Trim { .. } => match limits.unmap {
                Some(unmap) => {
                    let (begin, blocks) = whole_groups(begin, blocks, unmap);
                    Self::idle(
                        token,
                        Job::Unmap {
                            blocks_max: unmap.blocks_max,
                        },
                        begin,
                        blocks,
                    )
                }
                // Not advertised, and only advice: nothing to do is a legal answer.
                None => Self::idle(
                    token,
                    Job::Unmap {
                        blocks_max: Blocks(1),
                    },
                    begin,
                    Blocks(0),
                ),
            },
            Operation::WriteZeroes {
                no_hole, fast, fua, ..
            } => match limits.write_same {
                // WRITE SAME has no FUA bit.
                Some(same) => plain(Job::WriteSame {
                    blocks_max: same.blocks_max,
                    unmap: same.unmap && !no_hole,
                    fast,
                })
                .flushed_if(fua && limits.fua != Fua::Needless),
                None => plain(Job::Zeroes { fua: fua_bit(fua) })
                    .flushed_if(fua && limits.fua == Fua::Flush),
            },
            Operation::Cache { .. } if limits.prefetch => plain(Job::Prefetch),
            Operation::Cache { .. } => Self::idle(token, Job::Prefetch, begin, Blocks(0)),
            Operation::BlockStatus { one, .. } => {
                let extents = BytesMut::new();
                let mut active = plain(Job::Status { one, extents });
                if !limits.lba_status {
                    active.assume_allocated(limits);
                }
                active
            }
        }
    }

    /// The next command; to be asked for only while there is one.
    pub(super) fn next_command(&mut self, limits: &Limits, zeroes: &Bytes) -> Next {
        self.out += 1;
        if self.left.0 == 0 {
            self.flush = Flush::Sent;
            // Zero blocks from zero: the whole medium. Ranges are less well trodden paths in targets.
            let cdb = Cdb::synchronize_cache_16(Lba(0), Blocks(0));
            return Next {
                cdb,
                lba: Lba(0),
                bytes: None,
                data: Data::None,
            };
        }
        let lba = self.next;
        let (piece, bytes) = self.take_piece(limits);
        let in_memory = usize::try_from(bytes).unwrap_or(usize::MAX);
        match &mut self.job {
            Job::Read(rest) => Next {
                cdb: Cdb::read_16(lba, piece),
                lba,
                bytes: Some(bytes),
                data: Data::In(take_front_mut(rest, in_memory)),
            },
            Job::Write { rest, fua } => Next {
                cdb: Cdb::write_16(lba, piece, *fua),
                lba,
                bytes: Some(bytes),
                data: Data::Out(take_front(rest, in_memory)),
            },
            Job::Zeroes { fua } => Next {
                cdb: Cdb::write_16(lba, piece, *fua),
                lba,
                bytes: Some(bytes),
                data: Data::Out(zeroes.slice(..in_memory.min(zeroes.len()))),
            },
            Job::WriteSame { unmap, .. } => {
                let block = usize::try_from(limits.block_length.bytes()).unwrap_or(usize::MAX);
                Next {
                    cdb: Cdb::write_same_16(lba, piece, *unmap),
                    lba,
                    bytes: None,
                    data: Data::Out(zeroes.slice(..block.min(zeroes.len()))),
                }
            }
            Job::Prefetch => Next {
                cdb: Cdb::pre_fetch_16(lba, piece),
                lba,
                bytes: None,
                data: Data::None,
            },
            Job::Status { .. } => Next {
                cdb: Cdb::get_lba_status(lba, STATUS_BYTES),
                lba,
                bytes: None,
                // Zeroes: what the target leaves out is then no extent.
                data: Data::In(BytesMut::zeroed(status::IN_MEMORY)),
            },
            // A flush has no data stage, so what is left here is a trim.
            Job::Unmap { .. } | Job::Flush => {
                let extents = [Extent { lba, blocks: piece }];
                Next {
                    cdb: Cdb::unmap(unmap::list_bytes(&extents)),
                    lba,
                    bytes: None,
                    data: Data::Out(unmap::list(&extents)),
                }
            }
        }
    }

    /// A piece of a read, or the answer to a question, came back.
    pub(super) fn handle_piece(&mut self, lba: Lba, piece: BytesMut, limits: &Limits) {
        match &mut self.job {
            // One command was enough: no list is needed.
            Job::Read(rest)
                if lba == self.begin
                    && rest.is_empty()
                    && self.out == 1
                    && self.pieces.is_empty() =>
            {
                *rest = piece;
            }
            Job::Read(_) => self.pieces.push((lba, piece)),
            Job::Status { one, extents } => {
                *extents = status::extents(&piece, self.begin, self.blocks, limits);
                if extents.is_empty() {
                    status::assume_allocated(extents, self.blocks, limits);
                }
                if *one {
                    extents.truncate(crate::block::Extent::PACKED_BYTES);
                }
            }
            Job::Write { .. }
            | Job::Flush
            | Job::Unmap { .. }
            | Job::WriteSame { .. }
            | Job::Zeroes { .. }
            | Job::Prefetch => {}
        }
    }

    /// The target does not tell: all of the range holds data, for all we know.
    pub(super) fn assume_allocated(&mut self, limits: &Limits) {
        if let Job::Status { extents, .. } = &mut self.job {
            status::assume_allocated(extents, self.blocks, limits);
            self.left = Blocks(0);
        }
    }

    /// No more commands: it was advice.
    pub(super) fn leave_the_rest(&mut self) {
        self.left = Blocks(0);
    }

    /// No more commands; what is out is waited for.
    pub(super) fn fail(&mut self, kind: ErrorKind) {
        self.failed.get_or_insert(kind);
        self.left = Blocks(0);
        self.flush = Flush::No;
        self.restart = false;
    }

    /// WRITE SAME does not work here: once nothing is out, all of it again as zeroes that are sent.
    ///
    /// Zeroes over zeroes are zeroes, so what was done already does no harm.
    pub(super) fn zero_by_writing(&mut self) {
        self.job = Job::Zeroes { fua: false };
        self.left = Blocks(0);
        self.restart = true;
    }

    /// Nothing is out: what comes next? False at the end.
    pub(super) fn go_on(&mut self) -> bool {
        if std::mem::take(&mut self.restart) {
            self.next = self.begin;
            self.left = self.blocks;
        }
        self.has_command()
    }

    /// Is there a command to send now?
    pub(super) fn has_command(&self) -> bool {
        self.left.0 > 0 || (self.flush == Flush::Wanted && self.out == 0 && !self.restart)
    }

    /// Is it writing zeroes by WRITE SAME?
    pub(super) fn is_write_same(&self) -> bool {
        matches!(self.job, Job::WriteSame { .. })
    }

    /// Must its zeroes be made by the target, or not at all?
    pub(super) fn is_fast(&self) -> bool {
        matches!(self.job, Job::WriteSame { fast: true, .. })
    }

    /// Is it advice to read ahead?
    pub(super) fn is_prefetch(&self) -> bool {
        matches!(self.job, Job::Prefetch)
    }

    /// Is it a question after the block status?
    pub(super) fn is_status(&self) -> bool {
        matches!(self.job, Job::Status { .. })
    }

    /// Is its flush out?
    pub(super) fn is_flushing(&self) -> bool {
        self.flush == Flush::Sent
    }

    /// Was it asked for a flush, and for nothing else?
    pub(super) fn is_flush_request(&self) -> bool {
        matches!(self.job, Job::Flush)
    }

    /// The answer for the front.
    pub(super) fn into_result(self) -> Result<BytesMut, ErrorKind> {
        if let Some(kind) = self.failed {
            return Err(kind);
        }
        let rest = match self.job {
            Job::Read(rest) => rest,
            Job::Status { extents, .. } => return Ok(extents),
            Job::Write { .. }
            | Job::Flush
            | Job::Unmap { .. }
            | Job::WriteSame { .. }
            | Job::Zeroes { .. }
            | Job::Prefetch => return Ok(BytesMut::new()),
        };
        let mut pieces = self.pieces;
        pieces.sort_unstable_by_key(|(lba, _)| *lba);
        let mut whole = BytesMut::new();
        for (_, piece) in pieces {
            whole.unsplit(piece);
        }
        // One piece that was all, or the spare room behind the last: the caller may want it back.
        whole.unsplit(rest);
        Ok(whole)
    }

    fn idle(token: u64, job: Job, begin: Lba, blocks: Blocks) -> Self {
        Self {
            token,
            out: 0,
            queued: false,
            job,
            begin,
            blocks,
            next: begin,
            left: blocks,
            flush: Flush::No,
            restart: false,
            failed: None,
            pieces: Vec::new(),
        }
    }

    /// With a second stage. A request of no blocks has nothing to make stable.
    fn flushed_if(mut self, wanted: bool) -> Self {
        if wanted && self.blocks.0 > 0 {
            self.flush = Flush::Wanted;
        }
        self
    }

    /// Takes the next blocks of the range, as many as one command may name; and how many bytes that is.
    fn take_piece(&mut self, limits: &Limits) -> (Blocks, u32) {
        let most = match self.job {
            Job::Read(_) | Job::Write { .. } | Job::Flush | Job::Prefetch => limits.transfer_max,
            // The target tells as much as it likes.
            Job::Status { .. } => self.left,
            Job::Zeroes { .. } => limits.zeroes_max,
            Job::Unmap { blocks_max } | Job::WriteSame { blocks_max, .. } => blocks_max,
        };
        let piece = self.left.min(most);
        self.left.0 -= piece.0;
        // The range lies on the medium, so its end is an address.
        self.next = self.next.checked_add(piece).unwrap_or(self.next);
        let bytes = limits.block_length.bytes_of(piece).0;
        (piece, u32::try_from(bytes).unwrap_or(u32::MAX))
    }
}

/// The first bytes; all of them without touching a reference count.
fn take_front(rest: &mut Bytes, bytes: usize) -> Bytes {
    if bytes >= rest.len() {
        std::mem::take(rest)
    } else {
        rest.split_to(bytes)
    }
}

/// As `take_front`; splitting would allocate.
fn take_front_mut(rest: &mut BytesMut, bytes: usize) -> BytesMut {
    if bytes >= rest.len() {
        std::mem::take(rest)
    } else {
        rest.split_to(bytes)
    }
}

/// The groups of `granularity` blocks that lie whole in the range: a unit may refuse or ignore parts of them.
fn whole_groups(begin: Lba, blocks: Blocks, unmap: UnmapLimits) -> (Lba, Blocks) {
    let (granularity, alignment) = (u64::from(unmap.granularity), u64::from(unmap.alignment));
    // In a frame in which groups begin at multiples of the granularity.
    let shift = (granularity - alignment) % granularity;
    let end = begin.0 + u64::from(blocks.0) + shift;
    let first = (begin.0 + shift).next_multiple_of(granularity);
    let last = end - end % granularity;
    let whole = last.saturating_sub(first);
    (
        Lba(first.saturating_sub(shift)),
        Blocks(u32::try_from(whole).unwrap_or(blocks.0)),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn groups(begin: u64, blocks: u32, granularity: u32, alignment: u32) -> (u64, u32) {
        let unmap = UnmapLimits {
            blocks_max: Blocks(1),
            descriptors_max: 1,
            granularity,
            alignment,
        };
        let (begin, blocks) = whole_groups(Lba(begin), Blocks(blocks), unmap);
        (begin.0, blocks.0)
    }

    #[test]
    fn only_whole_groups_are_given_back() {
        assert_eq!(groups(0, 16, 8, 0), (0, 16));
        assert_eq!(groups(1, 16, 8, 0), (8, 8));
        assert_eq!(groups(1, 6, 8, 0).1, 0);
        assert_eq!(groups(0, 16, 8, 4), (4, 8));
        assert_eq!(groups(4, 8, 8, 4), (4, 8));
        assert_eq!(groups(7, 3, 1, 0), (7, 3));
    }

    proptest! {
        #[test]
        fn groups_stay_in_the_range(
            begin in 0u64..1 << 50, blocks: u32, granularity in 1u32.., alignment: u32,
        ) {
            let alignment = alignment % granularity;
            let (first, whole) = groups(begin, blocks, granularity, alignment);
            if whole > 0 {
                prop_assert!(first >= begin);
                prop_assert!(first + u64::from(whole) <= begin + u64::from(blocks));
                prop_assert_eq!(u64::from(whole) % u64::from(granularity), 0);
                let remainder = first % u64::from(granularity);
                prop_assert_eq!(remainder, u64::from(alignment));
            }
        }
    }
}
