//! What a connection reads from and writes to: a stream socket that is asked without waiting.
//!
//! A room of its own so that a connection does not know which kind of socket it has.
//!
//! Invariants:
//! 1. A call makes at most one read or write that moves bytes, over all parts that were given.
//! 2. When nothing moved, the waker is registered.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll, ready};

use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::{Interest, Join};
use tokio::net::unix::pipe;
use tokio::net::{TcpStream, UnixStream};

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

    /// What can be read when bytes have come, if the stream keeps none of them back.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Reads as `poll_read`, and registers no waker: for who saw by the descriptor that there is something to read.
    ///
    /// # Errors
    /// `WouldBlock`: there is nothing. Else the connection failed.
    fn read(&mut self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize>;

    /// Reads as `poll_read`; `is_seen`: there is something, of which the reactor may not know yet.
    ///
    /// # Errors
    /// The connection failed.
    fn poll_read_seen(
        &mut self,
        cx: &mut Context<'_>,
        parts: &mut [IoSliceMut<'_>],
        is_seen: bool,
    ) -> Poll<io::Result<usize>> {
        if is_seen && let Some(outcome) = settled_alone(self.read(parts)) {
            return Poll::Ready(outcome);
        }
        self.poll_read(cx, parts)
    }

    /// Sends on what an earlier write left in buffers of the stream's own.
    ///
    /// # Errors
    /// The connection failed.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// The two kinds of sockets have the same faces, and no trait of theirs says so.
macro_rules! stream_socket {
    ($socket:ty) => {
        impl Stream for $socket {
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
                        let flags = SendFlags::NOSIGNAL;
                        gone = rustix::net::sendmsg(&*self, parts, &mut control, flags)?;
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

            fn descriptor(&self) -> Option<BorrowedFd<'_>> {
                Some(self.as_fd())
            }

            fn read(&mut self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
                Ok(rustix::io::readv(&*self, parts)?)
            }
        }
    };
}

stream_socket!(UnixStream);
stream_socket!(TcpStream);

/// A pipe from the client and one to it.
pub(super) type Pipes = Join<pipe::Receiver, pipe::Sender>;

impl Stream for Pipes {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        parts: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.reader().poll_read_ready(cx))?;
            let outcome = self.reader().try_read_vectored(parts);
            if let Some(outcome) = settled_alone(outcome) {
                return Poll::Ready(outcome);
            }
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.writer().poll_write_ready(cx))?;
            let outcome = self.writer().try_write_vectored(parts);
            if let Some(outcome) = settled_alone(outcome) {
                return Poll::Ready(outcome);
            }
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.reader().as_fd())
    }

    fn read(&mut self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Ok(rustix::io::readv(self.reader(), parts)?)
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
        Err(error) => settled_alone(Err(error)),
    }
}

/// The same for a call that counts by itself.
fn settled_alone(outcome: io::Result<usize>) -> Option<io::Result<usize>> {
    match outcome {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            None
        }
        outcome => Some(outcome),
    }
}
