//! One connection's wire: its stream, with what comes in and what goes out.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::task::{Context, Poll};

use super::Digests;
use super::network::Stream;
use super::receiver::Receiver;
use super::slots::Slots;
use super::transmitter::Transmitter;
use crate::proto::session::Completed;

use super::Data;

/// The wire of one connection in full feature phase.
#[derive(Debug)]
pub(super) struct Line<S> {
    stream: Seen<S>,
    pub(super) receiver: Receiver,
    pub(super) transmitter: Transmitter,
}

impl<S: Stream> Line<S> {
    pub(super) fn new(stream: S, digests: Digests) -> Self {
        Self {
            stream: Seen {
                stream,
                is_readable: false,
            },
            receiver: Receiver::new(digests),
            transmitter: Transmitter::new(digests),
        }
    }

    /// Writes all that is queued.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slots: &Slots,
    ) -> Poll<io::Result<()>> {
        self.transmitter.poll_write(&mut self.stream, cx, slots)
    }

    /// Reads once; gives the number of bytes, 0 at the end of the stream.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        slots: &mut Slots,
    ) -> Poll<io::Result<usize>> {
        self.receiver.poll_read(&mut self.stream, cx, slots)
    }

    /// What can be read when bytes have come, where there is such a thing.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.stream.stream.descriptor()
    }

    /// The owner saw that the descriptor can be read.
    pub(super) fn handle_readable(&mut self) {
        self.stream.is_readable = true;
    }

    /// A task is over and its buffer goes back to its owner: nothing refers to it any more.
    pub(super) fn forget(&mut self, completed: &Completed, data: &Data) {
        self.receiver.forget(completed.slot);
        if let Data::Out(data) = data
            && !self.transmitter.is_empty()
        {
            self.transmitter.forget(completed.slot, data);
        }
    }
}

/// A stream of which the owner may know, before the reactor does, that it can be read.
#[derive(Debug)]
struct Seen<S> {
    stream: S,
    is_readable: bool,
}

impl<S: Stream> Stream for Seen<S> {
    fn poll_read_vectored(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        if std::mem::take(&mut self.is_readable) {
            match self.stream.read_vectored(buffers) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
        }
        self.stream.poll_read_vectored(cx, buffers)
    }

    fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.poll_write_vectored(cx, buffers)
    }
}
