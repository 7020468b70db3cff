//! What a driver needs of a network: to reach a portal, and to move bytes both ways.
//!
//! A room of its own so that the driver can run over invented wires in invented time: the simulation of
//! `iscsi/tests/simulation` runs all of this crate over them.
//!
//! Invariants:
//! 1. A read or a write that is `Pending` has arranged for a wake-up; both directions may be pending at once.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::proto::Portal;

/// Reaches portals.
pub trait Network: Clone + fmt::Debug + Send + Sync + 'static {
    /// A connection.
    type Stream: Stream;

    /// Connects to a portal.
    ///
    /// # Errors
    /// As the system says.
    fn connect(&self, portal: &Portal) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Chance, for pauses that are to differ from host to host. Where the system has none they do not differ.
    fn random(&self) -> u32 {
        getrandom::u32().unwrap_or_default()
    }
}

/// A connection: an ordered stream of bytes each way. Dropping it ends it, and what was written and has not left this
/// host never leaves.
pub trait Stream: fmt::Debug + Send + Unpin + 'static {
    /// Reads once into the buffers, in order; 0 is the end of the stream.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_read_vectored(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>>;

    /// Writes once from the buffers, in order.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>>;

    /// What can be read when bytes have come, where there is such a thing.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Reads once into the buffers, in order, and arranges for no wake-up: for who saw by the descriptor that there is
    /// something to read.
    ///
    /// # Errors
    /// `WouldBlock`: there is nothing. Else the connection is broken.
    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let _ = buffers;
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// The network of this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp;

impl Network for Tcp {
    type Stream = TcpStream;

    async fn connect(&self, portal: &Portal) -> io::Result<TcpStream> {
        let stream = TcpStream::connect((portal.host.as_str(), portal.port)).await?;
        // PDUs leave whole in one call: nothing is to be gained by waiting for more.
        stream.set_nodelay(true)?;
        // A socket that is merely closed goes on sending what it has, for minutes: when the path heals, the target would
        // do commands that were given up, after newer ones over another path. Dropped, this one resets and forgets.
        stream.set_zero_linger()?;
        Ok(stream)
    }
}

impl Stream for TcpStream {
    fn poll_read_vectored(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = buffers.iter().map(|buffer| buffer.len()).sum();
        loop {
            ready!(self.poll_read_ready(cx))?;
            let read = once(self, Interest::READABLE, wanted, || match &mut *buffers {
                [buffer] => self.try_read(buffer),
                _ => self.try_read_vectored(buffers),
            });
            if let Some(read) = read {
                return Poll::Ready(read);
            }
        }
    }

    fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = buffers.iter().map(|buffer| buffer.len()).sum();
        loop {
            ready!(self.poll_write_ready(cx))?;
            let write = || self.try_write_vectored(buffers);
            if let Some(written) = once(self, Interest::WRITABLE, wanted, write) {
                return Poll::Ready(written);
            }
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Ok(rustix::io::readv(&*self, buffers)?)
    }
}

/// One call for `wanted` bytes; `None` if it would block: the readiness is cleared then, and the next turn waits for
/// a new one.
fn once(
    stream: &TcpStream,
    interest: Interest,
    wanted: usize,
    call: impl FnOnce() -> io::Result<usize>,
) -> Option<io::Result<usize>> {
    let mut moved = None;
    let done = stream.try_io(interest, || {
        let bytes = call()?;
        moved = Some(bytes);
        // Fewer than wanted means an empty or a full socket: so much is known without asking again. The readiness is
        // cleared as it was before the call, so that what has come since wakes us.
        if bytes > 0 && bytes < wanted {
            Err(io::ErrorKind::WouldBlock.into())
        } else {
            Ok(())
        }
    });
    match (moved, done) {
        (Some(bytes), _) => Some(Ok(bytes)),
        (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => None,
        (None, Err(error)) => Some(Err(error)),
        // `try_io` gives what its closure gave, and that was an error.
        (None, Ok(())) => None,
    }
}

/// Writes all of it, outside of the hot path.
pub(super) async fn write_all(stream: &mut impl Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let slices = [IoSlice::new(bytes)];
        match poll_fn(|cx| stream.poll_write_vectored(cx, &slices)).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => bytes = &bytes[written..],
        }
    }
    Ok(())
}

/// Reads as many bytes as the buffer has, outside of the hot path.
pub(super) async fn read_exact(stream: &mut impl Stream, buffer: &mut [u8]) -> io::Result<()> {
    let mut at = 0;
    while at < buffer.len() {
        let rest = &mut buffer[at..];
        match poll_fn(|cx| stream.poll_read_vectored(cx, &mut [IoSliceMut::new(rest)])).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => at += read,
        }
    }
    Ok(())
}
