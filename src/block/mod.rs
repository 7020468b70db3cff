//! The waist: what a block device is to those above, whoever serves it. CONTRACT.

use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};

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
    /// The largest request in bytes that `submit` takes; larger ones the front refuses.
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
        #[doc = "Force unit access."]
        fua: bool,
    },
}

/// The answer to one request.
#[derive(Debug)]
pub struct Completion {
    /// The front's number.
    pub token: u64,
    /// For a read the filled buffer, else an empty one; or the kind of failure.
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
    /// Flushes nothing, ends the backend in order (logout).
    fn close(self) -> impl Future<Output = ()> + Send;
}
