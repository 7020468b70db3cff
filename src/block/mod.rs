//! The waist: what a block device is to those above, whoever serves it.
//!
//! A room of its own because `nbd` (who asks) and `lun` (who serves) must not know each other: both know this.
//! Source: the errno table follows the values that the NBD protocol allows on the wire (`proto.md: Error values`).
//! Read before changing: both rooms, and `Backend` first; every word in it is a promise that one of them relies on.
//!
//! Invariants:
//! 1. Buffers travel by ownership: a read's buffer goes down with the request and comes back with the completion.
//! 2. Every request that `submit` took is completed exactly once, in any order.
//! 3. The mapping of `ErrorKind` to an errno stands here and nowhere else.

mod extent;
mod quota;

use std::os::fd::BorrowedFd;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};

pub use extent::Extent;
pub use quota::{Quota, Rate, Rates, Use};

/// What the backend can do and how large it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Capacity in bytes, a multiple of `block_bytes`.
    pub size_bytes: u64,
    /// Logical block length in bytes, a power of two, 512..=65536; requests are multiples of it.
    pub block_bytes: u32,
    /// Physical block length in bytes, at least `block_bytes`.
    pub physical_block_bytes: u32,
    /// Good I/O size in bytes, a hint, at least `block_bytes`.
    pub preferred_bytes: u32,
    /// The largest read or write in bytes that `submit` takes, at least `block_bytes`; larger ones the front
    /// refuses. All others carry no data and may cover any number of blocks up to `u32::MAX` bytes: the backend
    /// splits them as its medium wants.
    pub request_bytes_max: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Volatile write cache: flush matters.
    pub write_cache: bool,
    /// Trim frees space.
    pub can_trim: bool,
    /// Zeroes can be written without sending them.
    pub can_write_zeroes: bool,
    /// Spinning medium (VPD B1h).
    pub rotational: bool,
}

#[cfg(test)]
impl Geometry {
    /// A MiB of blocks of 512 bytes, with a cache and without further abilities: what a test changes is what it is about.
    pub(crate) fn plain() -> Self {
        Self {
            size_bytes: 1 << 20,
            block_bytes: 512,
            physical_block_bytes: 512,
            preferred_bytes: 4096,
            request_bytes_max: 1 << 20,
            read_only: false,
            write_cache: true,
            can_trim: false,
            can_write_zeroes: false,
            rotational: false,
        }
    }
}

/// One request of a front, in bytes; offset and length are multiples of the block length and in range.
#[derive(Debug)]
pub struct Request {
    /// The front's number, given back with the completion.
    pub token: u64,
    /// What to do.
    pub operation: Operation,
    /// First byte.
    pub offset: u64,
}

impl Request {
    /// What of it is limited by a quota.
    pub fn charge(&self) -> Use {
        let bytes = |len: usize| u64::try_from(len).unwrap_or(u64::MAX);
        match &self.operation {
            Operation::Read(buffer) => Use::Read(bytes(buffer.len())),
            Operation::Write { data, .. } => Use::Write(bytes(data.len())),
            Operation::Trim { .. } | Operation::WriteZeroes { .. } => Use::Write(0),
            Operation::Flush | Operation::Cache { .. } | Operation::BlockStatus { .. } => Use::Free,
        }
    }
}

/// What to do at the offset.
#[derive(Debug)]
pub enum Operation {
    /// Fill the buffer (its `len()`).
    Read(BytesMut),
    /// Write these bytes; `fua`: stable before the answer.
    Write {
        #[doc = "The payload."]
        data: Bytes,
        #[doc = "Force unit access."]
        fua: bool,
    },
    /// All writes answered before are stable when this is answered.
    Flush,
    /// The range's content is no longer needed.
    Trim {
        #[doc = "Length in bytes."]
        len: u32,
    },
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        #[doc = "Length in bytes."]
        len: u32,
        #[doc = "Keep the range allocated."]
        no_hole: bool,
        #[doc = "Fail with [`ErrorKind::NotFast`], at once, where it would take as long as writing zeroes."]
        fast: bool,
        #[doc = "Force unit access."]
        fua: bool,
    },
    /// The range will soon be read: advice, which is answered well whether it is followed or not.
    Cache {
        #[doc = "Length in bytes."]
        len: u32,
    },
    /// Which parts of the range hold data; answered with packed [`Extent`]s from the offset on, at least one,
    /// and no further than the range.
    BlockStatus {
        #[doc = "Length in bytes, not zero."]
        len: u32,
        #[doc = "The first extent is enough."]
        one: bool,
    },
}

/// The answer to one request.
#[derive(Debug)]
pub struct Completion {
    /// The front's number.
    pub token: u64,
    /// For a read the filled buffer, for a block status packed [`Extent`]s, else an empty one; or the kind of failure.
    pub result: Result<BytesMut, ErrorKind>,
}

/// The small error of the waist; one table in this room maps it to an errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The medium or the transport failed.
    #[error("input/output error")]
    Io,
    /// The range is outside of the device.
    #[error("outside of the device")]
    OutOfRange,
    /// Out of space on a thin-provisioned backend.
    #[error("no space left on the backend")]
    NoSpace,
    /// The device is read-only.
    #[error("the device is read-only")]
    ReadOnly,
    /// The operation is not known here.
    #[error("not supported")]
    Unsupported,
    /// The request is malformed (alignment, length, flags).
    #[error("invalid request")]
    Invalid,
    /// We are going down.
    #[error("shutting down")]
    Shutdown,
    /// Zeroes were wanted only if they are faster than writing them, and they are not.
    #[error("no faster than writing zeroes")]
    NotFast,
}

impl ErrorKind {
    /// The errno of this kind, as it goes on the wire: Linux's numbers, from the set that NBD clients must know.
    ///
    /// `Unsupported` is `EINVAL` because the protocol keeps `ENOTSUP` for the fast-zero flag.
    pub const fn errno(self) -> u32 {
        // proto.md: Error values.
        match self {
            Self::ReadOnly => 1,                                        // EPERM
            Self::Io => 5,                                              // EIO
            Self::OutOfRange | Self::Unsupported | Self::Invalid => 22, // EINVAL
            Self::NoSpace => 28,                                        // ENOSPC
            Self::NotFast => 95,                                        // ENOTSUP
            Self::Shutdown => 108,                                      // ESHUTDOWN
        }
    }
}

/// A block device driven by whoever polls it: no task, no thread, no channel of its own.
pub trait Backend {
    /// Size and abilities.
    fn geometry(&self) -> &Geometry;
    /// How many more requests `submit` takes now.
    fn free_slots(&self) -> usize;
    /// Takes a request; it leaves with the next poll.
    ///
    /// # Errors
    /// Gives the request back when no slot is free.
    fn submit(&mut self, request: Request) -> Result<(), Request>;
    /// Drives the backend; the next completion. Never ends: after a lost backend all requests complete with errors.
    fn poll_completion(&mut self, cx: &mut Context<'_>) -> Poll<Completion>;
    /// The new size in bytes, once, when the medium has been found to be larger than `geometry` said before. It never
    /// shrinks under a front.
    fn take_growth(&mut self) -> Option<u64> {
        None
    }
    /// Another backend of the same medium has found it to have `size_bytes`: from now on requests may go up to there.
    /// A smaller size than `geometry` says is ignored.
    fn handle_growth(&mut self, size_bytes: u64) {
        let _ = size_bytes;
    }
    /// What can be read when the backend has something to do, if it is one descriptor: for waiting awake.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// That descriptor was seen to be readable: the next poll need not wait for the reactor to say so.
    fn handle_readable(&mut self) {}
    /// Flushes nothing, ends the backend in order (logout).
    fn close(self) -> impl Future<Output = ()> + Send;
}

#[cfg(test)]
mod tests {
    use super::ErrorKind;

    /// proto.md: Error values. The last column of the table, row by row.
    #[test]
    fn every_kind_has_an_errno_that_the_protocol_allows() {
        let table = [
            (ErrorKind::Io, 5),
            (ErrorKind::OutOfRange, 22),
            (ErrorKind::NoSpace, 28),
            (ErrorKind::ReadOnly, 1),
            (ErrorKind::Unsupported, 22),
            (ErrorKind::Invalid, 22),
            (ErrorKind::Shutdown, 108),
            (ErrorKind::NotFast, 95),
        ];
        for (kind, errno) in table {
            // No arm for "the rest": a new kind does not compile until it has a row above.
            match kind {
                ErrorKind::Io
                | ErrorKind::OutOfRange
                | ErrorKind::NoSpace
                | ErrorKind::ReadOnly
                | ErrorKind::Unsupported
                | ErrorKind::Invalid
                | ErrorKind::Shutdown
                | ErrorKind::NotFast => {}
            }
            assert_eq!(kind.errno(), errno, "{kind:?}");
            assert!(
                [1, 5, 12, 22, 28, 75, 95, 108].contains(&kind.errno()),
                "{kind:?}"
            );
        }
    }
}
