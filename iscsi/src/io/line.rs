//! One connection's wire: its stream, with what comes in and what goes out.

use std::io;
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
    stream: S,
    pub(super) receiver: Receiver,
    pub(super) transmitter: Transmitter,
}

impl<S: Stream> Line<S> {
    pub(super) fn new(stream: S, digests: Digests) -> Self {
        Self {
            stream,
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
