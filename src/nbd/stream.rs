//! What a connection reads from and writes to: a stream socket that is asked without waiting.
//!
//! A room of its own so that a connection does not know which kind of socket it has.
//!
//! Invariants:
//! 1. A call makes at most one read or write that moves bytes, over all parts that were given.
//! 2. When nothing moved, the waker is registered.

use std::io::{self, IoSlice, IoSliceMut};
use std::task::{Context, Poll, ready};

use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// A stream socket, driven by whoever polls it.
pub(super) trait Stream {
    /// Reads once, into all parts in their order; how many bytes, zero at the stream's end.
    ///
    /// # Errors
    /// The connection failed.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        parts: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>>;

    /// Writes once, from all parts in their order; how many bytes, at least one.
    ///
    /// # Errors
    /// The connection failed.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>>;

    /// Sends on what an earlier write left in buffers of the stream's own.
    ///
    /// # Errors
    /// The connection failed.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl Stream for UnixStream {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        parts: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = parts.iter().map(|part| part.len()).sum();
        loop {
            ready!(self.poll_read_ready(cx))?;
            let mut got = 0;
            let outcome = self.try_io(Interest::READABLE, || {
                got = rustix::io::readv(&*self, parts)?;
                drained(got, wanted)
            });
            if let Some(outcome) = settled(outcome, got) {
                return Poll::Ready(outcome);
            }
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = parts.iter().map(|part| part.len()).sum();
        loop {
            ready!(self.poll_write_ready(cx))?;
            let mut gone = 0;
            let outcome = self.try_io(Interest::WRITABLE, || {
                let mut control = SendAncillaryBuffer::default();
                gone = rustix::net::sendmsg(&*self, parts, &mut control, SendFlags::NOSIGNAL)?;
                drained(gone, wanted)
            });
            if let Some(outcome) = settled(outcome, gone) {
                return Poll::Ready(outcome);
            }
        }
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// After a short read or write the socket has no more to give or take: tokio is told that it would block, so that it
/// waits for the next event instead of trying in vain. The count is kept by the caller.
fn drained(done: usize, wanted: usize) -> io::Result<()> {
    if done > 0 && done < wanted {
        Err(io::ErrorKind::WouldBlock.into())
    } else {
        Ok(())
    }
}

/// The outcome of one call, or `None` when it moved nothing and is to be made again.
fn settled(outcome: io::Result<()>, moved: usize) -> Option<io::Result<usize>> {
    match outcome {
        Ok(()) => Some(Ok(moved)),
        Err(_) if moved > 0 => Some(Ok(moved)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            None
        }
        Err(error) => Some(Err(error)),
    }
}
