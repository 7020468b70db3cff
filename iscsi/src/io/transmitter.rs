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
/// Slices in one call: header, payload and padding of each PDU; with digests fewer PDUs go at once.
const SLICES_MAX: usize = PDUS_MAX * 3 + 2;

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

/// A PDU that waits, and its digests where it has some.
#[derive(Debug)]
struct Queued {
    transmit: Transmit,
    header_digest: [u8; DIGEST_BYTES],
    data_digest: [u8; DIGEST_BYTES],
    /// All of it on the wire.
    bytes: usize,
}

const PADDING: [u8; 3] = [0; 3];

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
        self.bytes += queued.bytes;
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
            } = queued.transmit.payload
            else {
                return true;
            };
            if of != slot {
                return true;
            }
            if is_data_out && at > begun {
                dropped += queued.bytes;
                return false;
            }
            queued.transmit.payload = Payload::Own(data.slice(range(offset, bytes)));
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
            let payload = bytes_of(&queued.transmit.payload, slots);
            let parts = [
                &queued.transmit.header[..],
                self.header_digest(queued),
                payload,
                padding(payload.len()),
                self.data_digest(queued, payload),
            ];
            if count + parts.len() > SLICES_MAX {
                break;
            }
            for part in parts {
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

    fn header_digest<'a>(&self, queued: &'a Queued) -> &'a [u8] {
        if self.digests.header {
            &queued.header_digest
        } else {
            &[]
        }
    }

    fn data_digest<'a>(&self, queued: &'a Queued, payload: &[u8]) -> &'a [u8] {
        if self.digests.data && !payload.is_empty() {
            &queued.data_digest
        } else {
            &[]
        }
    }

    fn advance(&mut self, written: usize) {
        self.bytes -= written;
        self.front_sent += written;
        while let Some(front) = self.queue.front() {
            let whole = front.bytes;
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
        let data = match &transmit.payload {
            Payload::None => 0,
            Payload::Own(data) => data.len(),
            Payload::Task { bytes, .. } => index(*bytes),
        };
        debug_assert_eq!(data, index(header::data_segment_bytes(&transmit.header)));
        let mut queued = Self {
            transmit,
            header_digest: [0; DIGEST_BYTES],
            data_digest: [0; DIGEST_BYTES],
            bytes: BHS_BYTES + data.next_multiple_of(4),
        };
        if digests.header {
            queued.header_digest = digest::of(&queued.transmit.header);
            queued.bytes += DIGEST_BYTES;
        }
        // RFC 7143 §11.2.3: a segment of no bytes has no digest
        if digests.data && data > 0 {
            let data = bytes_of(&queued.transmit.payload, slots);
            // RFC 7143 §13.1: the digest covers the padding too
            queued.data_digest = digest::of_pieces([data, padding(data.len())]);
            queued.bytes += DIGEST_BYTES;
        }
        queued
    }
}

/// The zero bytes behind a segment of `length` bytes.
fn padding(length: usize) -> &'static [u8] {
    &PADDING[..length.next_multiple_of(4) - length]
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
            .map(|pdu| pdu.transmit.payload.clone())
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
            transmitter.queue[0].transmit.payload,
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
        assert_eq!(queued.header_digest, digest::of(&header));
        assert_eq!(queued.data_digest, [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(queued.bytes, 48 + 4 + 32 + 4);

        let empty = Transmit {
            header: [0; BHS_BYTES],
            payload: Payload::None,
        };
        assert_eq!(Queued::new(empty, digests, &slots).bytes, 48 + 4);
    }
}
