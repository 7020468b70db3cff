//! PDUs on their way out: many in one vectored write, payload straight from the tasks' buffers.
//!
//! Invariants:
//! 1. PDUs leave in the order they came; a PDU that has begun to leave ends.
//! 2. A buffer that is not the driver's any more is not referred to: `forget` sees to it before.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use super::network::Stream;
use super::slots::Slots;
use crate::proto::session::{Payload, Transmit};
use crate::wire::header::{self, BHS_BYTES};
use bytes::Bytes;

/// Most PDUs that are taken from the machine ahead of the socket: what was taken has its number and
/// its place, so that later pings and data wait behind it.
const PDUS_MAX: usize = 32;
/// Most bytes likewise; one large write fills a socket buffer.
const BYTES_MAX: usize = 1 << 20;
/// Slices in one call: header, payload and padding of each PDU.
const SLICES_MAX: usize = PDUS_MAX * 3;

const PADDING: [u8; 3] = [0; 3];

/// The queue before the socket.
#[derive(Debug)]
pub(super) struct Transmitter {
    queue: VecDeque<Transmit>,
    /// Bytes of the first PDU that have left.
    front_sent: usize,
    /// Bytes of the queue that have not left.
    bytes: usize,
}

impl Transmitter {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::with_capacity(PDUS_MAX),
            front_sent: 0,
            bytes: 0,
        }
    }

    /// Whether the next PDU may be taken from the machine.
    pub(super) fn has_room(&self) -> bool {
        self.queue.len() < PDUS_MAX && self.bytes < BYTES_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn push(&mut self, transmit: Transmit) {
        self.bytes += pdu_bytes(&transmit);
        self.queue.push_back(transmit);
    }

    /// Writes what is queued.
    pub(super) fn poll_write(
        &mut self,
        stream: &mut impl Stream,
        cx: &mut Context<'_>,
        slots: &Slots,
    ) -> Poll<io::Result<()>> {
        while !self.queue.is_empty() {
            match ready!(self.poll_write_once(stream, cx, slots))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.advance(written),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The buffer of `slot` goes back to its owner: Data-Outs from it that have not begun are
    /// dropped, the rest of other PDUs is kept apart. `data` is the buffer.
    pub(super) fn forget(&mut self, slot: u16, data: &Bytes) {
        let begun = usize::from(self.front_sent > 0);
        let mut at = 0;
        let mut dropped = 0;
        self.queue.retain_mut(|transmit| {
            at += 1;
            let Payload::Task {
                slot: of,
                offset,
                bytes,
                is_data_out,
            } = transmit.payload
            else {
                return true;
            };
            if of != slot {
                return true;
            }
            if is_data_out && at > begun {
                dropped += pdu_bytes(transmit);
                return false;
            }
            transmit.payload = Payload::Own(data.slice(range(offset, bytes)));
            true
        });
        self.bytes -= dropped;
    }

    fn poll_write_once(
        &self,
        stream: &mut impl Stream,
        cx: &mut Context<'_>,
        slots: &Slots,
    ) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        let mut skip = self.front_sent;
        for transmit in &self.queue {
            let payload: &[u8] = match &transmit.payload {
                Payload::None => &[],
                Payload::Own(data) => data,
                Payload::Task {
                    slot,
                    offset,
                    bytes,
                    ..
                } => &slots.outgoing(*slot)[range(*offset, *bytes)],
            };
            let padding = &PADDING[..payload.len().next_multiple_of(4) - payload.len()];
            for part in [&transmit.header[..], payload, padding] {
                let passed = skip.min(part.len());
                skip -= passed;
                let part = &part[passed..];
                if !part.is_empty() {
                    slices[count] = IoSlice::new(part);
                    count += 1;
                }
            }
        }
        stream.poll_write_vectored(cx, &slices[..count])
    }

    fn advance(&mut self, written: usize) {
        self.bytes -= written;
        self.front_sent += written;
        while let Some(front) = self.queue.front() {
            let whole = pdu_bytes(front);
            if self.front_sent < whole {
                break;
            }
            self.front_sent -= whole;
            self.queue.pop_front();
        }
    }
}

fn pdu_bytes(transmit: &Transmit) -> usize {
    let payload = match &transmit.payload {
        Payload::None => 0,
        Payload::Own(data) => data.len(),
        Payload::Task { bytes, .. } => index(*bytes),
    };
    debug_assert_eq!(payload, index(header::data_segment_bytes(&transmit.header)));
    BHS_BYTES + payload.next_multiple_of(4)
}

fn range(offset: u32, bytes: u32) -> std::ops::Range<usize> {
    index(offset)..index(offset) + index(bytes)
}

fn index(number: u32) -> usize {
    usize::try_from(number).expect("buffers have lengths that fit")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_out(slot: u16, offset: u32, bytes: u32) -> Transmit {
        let mut header = [0; BHS_BYTES];
        header::set_data_segment_bytes(&mut header, bytes);
        let payload = Payload::Task {
            slot,
            offset,
            bytes,
            is_data_out: true,
        };
        Transmit { header, payload }
    }

    #[test]
    fn forgotten_data_outs_are_dropped_unless_they_have_begun() {
        let mut transmitter = Transmitter::new();
        for transmit in [data_out(1, 0, 5), data_out(2, 0, 4), data_out(1, 5, 6)] {
            transmitter.push(transmit);
        }
        assert_eq!(transmitter.bytes, 56 + 52 + 56);
        transmitter.advance(50);
        transmitter.forget(1, &Bytes::from_static(b"hello world"));
        let payloads: Vec<_> = transmitter
            .queue
            .iter()
            .map(|pdu| pdu.payload.clone())
            .collect();
        let other = Payload::Task {
            slot: 2,
            offset: 0,
            bytes: 4,
            is_data_out: true,
        };
        assert_eq!(
            payloads,
            [Payload::Own(Bytes::from_static(b"hello")), other]
        );
        assert_eq!(transmitter.bytes, 6 + 52);
        transmitter.advance(6 + 52);
        assert!(transmitter.is_empty());
        assert_eq!((transmitter.bytes, transmitter.front_sent), (0, 0));
    }

    #[test]
    fn command_that_has_not_begun_is_kept_with_its_data() {
        let mut transmitter = Transmitter::new();
        let mut command = data_out(1, 0, 4);
        command.payload = Payload::Task {
            slot: 1,
            offset: 0,
            bytes: 4,
            is_data_out: false,
        };
        transmitter.push(command);
        transmitter.forget(1, &Bytes::from_static(b"abcd"));
        assert_eq!(
            transmitter.queue[0].payload,
            Payload::Own(Bytes::from_static(b"abcd"))
        );
    }
}
