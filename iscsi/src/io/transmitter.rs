//! PDUs on their way out: many in one vectored write, payload straight from the tasks' buffers.
//!
//! Source: RFC 7143 §11.2.3 (digests), §11.2.4 (padding), §13.1 (CRC32C).
//!
//! Invariants:
//! 1. PDUs leave in the order they came; a PDU that has begun to leave ends.
//! 2. A buffer that is not the driver's any more is not referred to: `forget` sees to it before.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::network::Stream;
use super::slots::Slots;
use super::{Digests, index};
use crate::proto::session::{Payload, Transmit};
use crate::wire::digest::{self, DIGEST_BYTES};
use crate::wire::header::{self, BHS_BYTES};

/// Most PDUs that are taken from the machine ahead of the socket: what was taken has its number and
/// its place, so that later pings and data wait behind it.
const PDUS_MAX: usize = 32;
/// Most bytes likewise; one large write fills a socket buffer.
const BYTES_MAX: usize = 1 << 20;
/// Slices in one call: head, payload and tail of each PDU.
const SLICES_MAX: usize = PDUS_MAX * 3;

/// The queue before the socket.
#[derive(Debug)]
pub(super) struct Transmitter {
    queue: VecDeque<Queued>,
    digests: Digests,
    /// Bytes of the first PDU that have left.
    front_sent: usize,
    /// Bytes of the queue that have not left.
    bytes: usize,
}

/// A PDU that waits.
#[derive(Debug)]
struct Queued {
    /// The header, and its digest if there is one.
    head: [u8; BHS_BYTES + DIGEST_BYTES],
    head_bytes: usize,
    payload: Payload,
    payload_bytes: usize,
    /// The padding, and the data's digest if there is one.
    tail: [u8; PADDING_BYTES_MAX + DIGEST_BYTES],
    tail_bytes: usize,
}

/// RFC 7143 §11.2.4: segments are padded to whole words of four bytes.
const PADDING_BYTES_MAX: usize = 3;

impl Transmitter {
    pub(super) fn new(digests: Digests) -> Self {
        Self {
            queue: VecDeque::with_capacity(PDUS_MAX),
            digests,
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

    /// Bytes that wait to leave.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, transmit: Transmit, slots: &Slots) {
        let queued = Queued::new(transmit, self.digests, slots);
        self.bytes += queued.bytes();
        self.queue.push_back(queued);
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
        self.queue.retain_mut(|queued| {
            at += 1;
            let Payload::Task {
                slot: of,
                offset,
                bytes,
                is_data_out,
            } = queued.payload
            else {
                return true;
            };
            if of != slot {
                return true;
            }
            if is_data_out && at > begun {
                dropped += queued.bytes();
                return false;
            }
            queued.payload = Payload::Own(data.slice(range(offset, bytes)));
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
        for queued in &self.queue {
            let head = &queued.head[..queued.head_bytes];
            let tail = &queued.tail[..queued.tail_bytes];
            for part in [head, bytes_of(&queued.payload, slots), tail] {
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
            let whole = front.bytes();
            if self.front_sent < whole {
                break;
            }
            self.front_sent -= whole;
            self.queue.pop_front();
        }
    }
}

impl Queued {
    fn new(transmit: Transmit, digests: Digests, slots: &Slots) -> Self {
        let payload_bytes = match &transmit.payload {
            Payload::None => 0,
            Payload::Own(data) => data.len(),
            Payload::Task { bytes, .. } => index(*bytes),
        };
        debug_assert_eq!(
            payload_bytes,
            index(header::data_segment_bytes(&transmit.header))
        );
        let mut queued = Self {
            head: [0; BHS_BYTES + DIGEST_BYTES],
            head_bytes: BHS_BYTES,
            payload: transmit.payload,
            payload_bytes,
            tail: [0; PADDING_BYTES_MAX + DIGEST_BYTES],
            tail_bytes: payload_bytes.next_multiple_of(4) - payload_bytes,
        };
        queued.head[..BHS_BYTES].copy_from_slice(&transmit.header);
        if digests.header {
            queued.head[BHS_BYTES..].copy_from_slice(&digest::of(&transmit.header));
            queued.head_bytes += DIGEST_BYTES;
        }
        // RFC 7143 §11.2.3: a segment of no bytes has no digest
        if digests.data && payload_bytes > 0 {
            let padding = queued.tail_bytes;
            let data = bytes_of(&queued.payload, slots);
            // RFC 7143 §13.1: the digest covers the padding too
            let digest = digest::of_pieces([data, &queued.tail[..padding]]);
            queued.tail[padding..padding + DIGEST_BYTES].copy_from_slice(&digest);
            queued.tail_bytes += DIGEST_BYTES;
        }
        queued
    }

    fn bytes(&self) -> usize {
        self.head_bytes + self.payload_bytes + self.tail_bytes
    }
}

fn bytes_of<'a>(payload: &'a Payload, slots: &'a Slots) -> &'a [u8] {
    match payload {
        Payload::None => &[],
        Payload::Own(data) => data,
        Payload::Task {
            slot,
            offset,
            bytes,
            ..
        } => &slots.outgoing(*slot)[range(*offset, *bytes)],
    }
}

fn range(offset: u32, bytes: u32) -> std::ops::Range<usize> {
    index(offset)..index(offset) + index(bytes)
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
        let mut transmitter = Transmitter::new(Digests::default());
        for transmit in [data_out(1, 0, 5), data_out(2, 0, 4), data_out(1, 5, 6)] {
            transmitter.push(transmit, &Slots::new(0));
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
        let mut transmitter = Transmitter::new(Digests::default());
        let mut command = data_out(1, 0, 4);
        command.payload = Payload::Task {
            slot: 1,
            offset: 0,
            bytes: 4,
            is_data_out: false,
        };
        transmitter.push(command, &Slots::new(0));
        transmitter.forget(1, &Bytes::from_static(b"abcd"));
        assert_eq!(
            transmitter.queue[0].payload,
            Payload::Own(Bytes::from_static(b"abcd"))
        );
    }

    // L15; RFC 7143 §13.1, with the values of RFC 3720 §B.4 for 32 bytes of zeroes
    #[test]
    fn digests_follow_header_and_padded_data() {
        let digests = Digests {
            header: true,
            data: true,
        };
        let slots = Slots::new(0);
        let mut header = [0; BHS_BYTES];
        header::set_data_segment_bytes(&mut header, 30);
        let payload = Payload::Own(Bytes::from_static(&[0; 30]));
        let queued = Queued::new(Transmit { header, payload }, digests, &slots);
        assert_eq!(queued.head[BHS_BYTES..], digest::of(&header));
        assert_eq!(queued.tail[..6], [0, 0, 0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(queued.bytes(), 48 + 4 + 32 + 4);

        let empty = Transmit {
            header: [0; BHS_BYTES],
            payload: Payload::None,
        };
        assert_eq!(Queued::new(empty, digests, &slots).bytes(), 48 + 4);
    }
}
