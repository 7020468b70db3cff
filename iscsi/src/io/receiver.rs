//! Bytes coming in: one large read for many PDUs; large payload straight into the task's buffer.
//!
//! ```text
//!  socket --readv--> [ rest of the task's buffer ][ read-ahead ]
//!                                                   |header|digest|data|pad|digest|header| ...
//! ```
//!
//! Source: RFC 7143 §11.2.3 (digests), §11.2.4 (padding), §13.1 (CRC32C).
//!
//! Invariants:
//! 1. A PDU is reported when its last byte (padding and digest included) is here.
//! 2. The read-ahead grows only for a segment that is handed up whole, and never beyond what we
//!    declared to take in one.
//! 3. Nothing of a PDU is believed before its digests fit. Its data may lie in the task's buffer by
//!    then, but the task has not been answered.

use std::io::{self, IoSliceMut};
use std::task::{Context, Poll, ready};

use super::network::Stream;
use super::slots::Slots;
use super::{Digests, index};
use crate::proto::Violation;
use crate::proto::session::Placement;
use crate::wire::digest::{self, DIGEST_BYTES, Running};
use crate::wire::header::{self, BHS_BYTES, Bhs};

/// Bytes of one read: a batch of small Data-In, while a core's cache still holds it when it is
/// copied on. Chosen freely between 32 KiB and the size of that cache.
const READ_AHEAD_BYTES: usize = 64 << 10;

/// A segment of which so many bytes are missing is read together with no more than the header behind it, so that the
/// next one, which is as long as a rule, is read to its place too. Chosen freely, well above what a small I/O has.
const LARGE_BYTES: usize = 16 << 10;

/// The read-ahead and the place in the stream.
#[derive(Debug)]
pub(super) struct Receiver {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that have not been looked at, half-open.
    start: usize,
    end: usize,
    state: State,
    digests: Digests,
    /// The last segment for a task was a large one.
    is_large: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    /// A segment on its way into a task's buffer.
    Task {
        /// `None`: the task ended meanwhile, and the bytes are thrown away.
        slot: Option<u16>,
        at: usize,
        missing: usize,
        trailer: Trailer,
        /// Of the bytes so far; stands still without data digests.
        digest: Running,
    },
    /// A segment that is handed up whole.
    Own {
        bytes: usize,
        trailer: Trailer,
    },
}

/// What follows a data segment.
#[derive(Clone, Copy, Debug)]
struct Trailer {
    padding: usize,
    has_digest: bool,
}

/// What the bytes at hand hold.
#[derive(Debug)]
pub(super) enum Step<'a> {
    /// A header: `place` must say where its segment goes.
    Header(Bhs),
    /// A PDU is whole; its segment, if it was `Placement::Own`.
    Segment(&'a [u8]),
    /// More bytes are needed.
    More,
    /// A digest does not fit: what follows in the stream cannot be trusted either.
    Corrupt(Corrupt),
}

/// Which digest does not fit. A type of its own because a `Violation` is large, and is asked for at
/// each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Corrupt {
    Header,
    Data,
}

impl From<Corrupt> for Violation {
    fn from(corrupt: Corrupt) -> Self {
        match corrupt {
            Corrupt::Header => Self::HeaderDigest,
            Corrupt::Data => Self::DataDigest,
        }
    }
}

impl Receiver {
    pub(super) fn new(digests: Digests) -> Self {
        Self {
            buffer: vec![0; READ_AHEAD_BYTES],
            start: 0,
            end: 0,
            state: State::Header,
            digests,
            is_large: false,
        }
    }

    /// Reads once; gives the number of bytes, 0 at the end of the stream.
    pub(super) fn poll_read(
        &mut self,
        stream: &mut impl Stream,
        cx: &mut Context<'_>,
        slots: &mut Slots,
    ) -> Poll<io::Result<usize>> {
        self.make_room();
        let header = BHS_BYTES + if self.digests.header { DIGEST_BYTES } else { 0 };
        let mut ahead = &mut self.buffer[self.end..];
        let direct: &mut [u8] = match self.state {
            State::Task {
                slot: Some(slot),
                at,
                missing,
                trailer,
                ..
            } => {
                if missing >= LARGE_BYTES {
                    ahead = &mut ahead[..trailer.bytes() + header];
                }
                &mut slots.incoming(slot)[at..at + missing]
            }
            State::Header if self.is_large && self.end == 0 => {
                ahead = &mut ahead[..header];
                &mut []
            }
            State::Task { slot: None, .. } | State::Header | State::Own { .. } => &mut [],
        };
        let missing = direct.len();
        let got = if direct.is_empty() {
            ready!(stream.poll_read_vectored(cx, &mut [IoSliceMut::new(ahead)]))?
        } else {
            let buffers = &mut [IoSliceMut::new(direct), IoSliceMut::new(ahead)];
            ready!(stream.poll_read_vectored(cx, buffers))?
        };
        let here = got.min(missing);
        if let State::Task {
            at,
            missing,
            trailer,
            digest,
            ..
        } = &mut self.state
            && here > 0
        {
            *at += here;
            *missing -= here;
            if trailer.has_digest {
                *digest = digest.append(&direct[..here]);
            }
        }
        self.end += got - here;
        Poll::Ready(Ok(got))
    }

    /// Looks at the bytes at hand.
    pub(super) fn next(&mut self, slots: &mut Slots) -> Step<'_> {
        match self.state {
            State::Header => self.take_header(),
            State::Task { .. } => self.take_task_segment(slots),
            State::Own { bytes, trailer } => {
                if self.end - self.start < bytes + trailer.bytes() {
                    return Step::More;
                }
                let data = self.start..self.start + bytes;
                self.start += bytes;
                let digest = if trailer.has_digest {
                    Running::default().append(&self.buffer[data.clone()])
                } else {
                    Running::default()
                };
                if !self.take_trailer(trailer, digest) {
                    return Step::Corrupt(Corrupt::Data);
                }
                Step::Segment(&self.buffer[data])
            }
        }
    }

    /// Where the segment behind the header goes that `next` gave.
    pub(super) fn place(&mut self, placement: Placement) {
        let trailer = |bytes| Trailer {
            padding: index(header::padding_bytes(bytes)),
            // RFC 7143 §11.2.3: a segment of no bytes has no digest
            has_digest: self.digests.data && bytes > 0,
        };
        self.is_large =
            matches!(placement, Placement::Task { bytes, .. } if index(bytes) >= LARGE_BYTES);
        self.state = match placement {
            Placement::Task {
                slot,
                offset,
                bytes,
            } => State::Task {
                slot: Some(slot),
                at: index(offset),
                missing: index(bytes),
                trailer: trailer(bytes),
                digest: Running::default(),
            },
            Placement::Own { bytes } => State::Own {
                bytes: index(bytes),
                trailer: trailer(bytes),
            },
        };
    }

    /// The buffer of `slot` goes back to its owner: what still comes for it is thrown away.
    pub(super) fn forget(&mut self, forgotten: u16) {
        if let State::Task { slot, .. } = &mut self.state
            && *slot == Some(forgotten)
        {
            *slot = None;
        }
    }

    fn take_header(&mut self) -> Step<'_> {
        let waiting = &self.buffer[self.start..self.end];
        let Some(bhs) = waiting.first_chunk::<BHS_BYTES>() else {
            return Step::More;
        };
        let bhs = *bhs;
        let mut bytes = BHS_BYTES;
        if self.digests.header {
            // RFC 7143 §11.2.3: the digest stands behind all header segments. No target may send
            // additional ones, but before the digest fits nothing can be said about that.
            let covered = BHS_BYTES + header::ahs_bytes(&bhs);
            bytes = covered + DIGEST_BYTES;
            let Some(whole) = waiting.get(..bytes) else {
                return Step::More;
            };
            // RFC 7143 §7.8, §13.1 (E1)
            if whole[covered..] != digest::of(&whole[..covered]) {
                return Step::Corrupt(Corrupt::Header);
            }
        }
        self.start += bytes;
        Step::Header(bhs)
    }

    fn take_task_segment(&mut self, slots: &mut Slots) -> Step<'_> {
        let State::Task {
            slot,
            at,
            missing,
            trailer,
            digest,
        } = &mut self.state
        else {
            return Step::More;
        };
        let here = (self.end - self.start).min(*missing);
        if here > 0 {
            let from = &self.buffer[self.start..self.start + here];
            if let Some(slot) = *slot {
                slots.incoming(slot)[*at..*at + here].copy_from_slice(from);
            }
            if trailer.has_digest {
                *digest = digest.append(from);
            }
            self.start += here;
            *at += here;
            *missing -= here;
        }
        let (missing, trailer, digest) = (*missing, *trailer, *digest);
        if missing > 0 || self.end - self.start < trailer.bytes() {
            return Step::More;
        }
        if !self.take_trailer(trailer, digest) {
            return Step::Corrupt(Corrupt::Data);
        }
        Step::Segment(&[])
    }

    /// The PDU is whole, if its digest fits; `digest` is that of its data.
    fn take_trailer(&mut self, trailer: Trailer, digest: Running) -> bool {
        if trailer.has_digest {
            // RFC 7143 §7.8 (E2), §13.1: the digest covers the padding too
            let (padding, told) =
                self.buffer[self.start..self.start + trailer.bytes()].split_at(trailer.padding);
            if told != digest.append(padding).finish() {
                return false;
            }
        }
        self.start += trailer.bytes();
        self.state = State::Header;
        true
    }

    /// Moves what is left to the front, so that the rest of the buffer can be read into.
    fn make_room(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        // RFC 7143 §7.7 (E13): a segment that is longer than we declared to take was refused by its header
        if let State::Own { bytes, trailer } = self.state
            && self.buffer.len() < bytes + trailer.bytes()
        {
            self.buffer.resize(bytes + trailer.bytes(), 0);
        }
    }
}

impl Trailer {
    fn bytes(self) -> usize {
        self.padding + if self.has_digest { DIGEST_BYTES } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::io::{Command, Data};
    use crate::scsi::{Cdb, LunAddress};

    fn receiver(bytes: &[u8]) -> Receiver {
        receiver_with(Digests::default(), bytes)
    }

    fn receiver_with(digests: Digests, bytes: &[u8]) -> Receiver {
        let mut receiver = Receiver::new(digests);
        receiver.buffer[..bytes.len()].copy_from_slice(bytes);
        receiver.end = bytes.len();
        receiver
    }

    #[test]
    fn segments_are_whole_only_with_their_padding() {
        let mut slots = Slots::new(1);
        let mut bytes = vec![7; BHS_BYTES];
        bytes.extend_from_slice(b"abcde\0\0");
        let mut receiver = receiver(&bytes);
        assert!(matches!(receiver.next(&mut slots), Step::Header(bhs) if bhs == [7; BHS_BYTES]));
        receiver.place(Placement::Own { bytes: 5 });
        assert!(matches!(receiver.next(&mut slots), Step::More));
        receiver.make_room();
        assert_eq!((receiver.start, receiver.end), (0, 7));
        receiver.end += 1;
        assert!(matches!(receiver.next(&mut slots), Step::Segment(b"abcde")));
        assert!(matches!(receiver.next(&mut slots), Step::More));
    }

    #[test]
    fn data_goes_to_its_place_in_the_task_in_pieces() {
        let mut slots = Slots::new(1);
        let data = Data::In(BytesMut::zeroed(8));
        slots.insert(
            0,
            1,
            Command {
                lun: LunAddress(0),
                cdb: Cdb([0; 16]),
                data,
            },
        );
        let mut receiver = receiver(b"xy");
        receiver.place(Placement::Task {
            slot: 0,
            offset: 2,
            bytes: 5,
        });
        assert!(matches!(receiver.next(&mut slots), Step::More));
        receiver.make_room();
        receiver.buffer[..6].copy_from_slice(b"zuv\0\0\0");
        receiver.end = 6;
        assert!(matches!(receiver.next(&mut slots), Step::Segment(b"")));
        assert_eq!(slots.incoming(0), b"\0\0xyzuv\0");
        assert_eq!((receiver.start, receiver.end), (6, 6));
    }

    /// A stream that has all its bytes at hand.
    #[derive(Debug)]
    struct AtHand {
        bytes: Vec<u8>,
        at: usize,
    }

    impl Stream for AtHand {
        fn poll_read_vectored(
            &mut self,
            _cx: &mut Context<'_>,
            buffers: &mut [IoSliceMut<'_>],
        ) -> Poll<io::Result<usize>> {
            let begin = self.at;
            for buffer in buffers {
                let bytes = buffer.len().min(self.bytes.len() - self.at);
                buffer[..bytes].copy_from_slice(&self.bytes[self.at..self.at + bytes]);
                self.at += bytes;
            }
            Poll::Ready(Ok(self.at - begin))
        }

        fn poll_write_vectored(
            &mut self,
            _cx: &mut Context<'_>,
            _buffers: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            unreachable!("a receiver does not write")
        }
    }

    #[test]
    fn large_segments_behind_the_first_are_read_to_their_place() {
        const SEGMENT: usize = 256 << 10;
        for digests in [Digests::default(), BOTH] {
            let mut slots = Slots::new(1);
            let data = Data::In(BytesMut::zeroed(3 * SEGMENT));
            let command = Command {
                lun: LunAddress(0),
                cdb: Cdb([0; 16]),
                data,
            };
            slots.insert(0, 1, command);
            let expected: Vec<u8> = (0..3 * SEGMENT)
                .map(|at| u8::try_from(at / 512 % 251).unwrap())
                .collect();
            let mut bytes = Vec::new();
            for segment in expected.chunks(SEGMENT) {
                let header = [0; BHS_BYTES];
                bytes.extend_from_slice(&header);
                if digests.header {
                    bytes.extend_from_slice(&digest::of(&header));
                }
                bytes.extend_from_slice(segment);
                if digests.data {
                    bytes.extend_from_slice(&digest::of(segment));
                }
            }
            let mut stream = AtHand { bytes, at: 0 };
            let mut receiver = Receiver::new(digests);
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let (mut reads, mut segments, mut copied) = (0, 0, 0);
            while segments < 3 {
                let read = receiver.poll_read(&mut stream, &mut cx, &mut slots);
                assert!(matches!(read, Poll::Ready(Ok(1..))));
                reads += 1;
                copied += receiver.end - receiver.start;
                loop {
                    match receiver.next(&mut slots) {
                        Step::Header(_) => receiver.place(Placement::Task {
                            slot: 0,
                            offset: u32::try_from(segments * SEGMENT).unwrap(),
                            bytes: u32::try_from(SEGMENT).unwrap(),
                        }),
                        Step::Segment(_) => segments += 1,
                        Step::More => break,
                        Step::Corrupt(corrupt) => panic!("{corrupt:?}"),
                    }
                }
            }
            assert!(slots.incoming(0) == expected);
            // One read for the first header and what follows, one for each segment; beyond the first read only headers
            // and digests went through the read-ahead.
            assert_eq!(reads, 4);
            assert!(copied <= READ_AHEAD_BYTES + 3 * 64, "{copied}");
        }
    }

    const BOTH: Digests = Digests {
        header: true,
        data: true,
    };

    /// A PDU of five bytes of data with both digests.
    fn pdu() -> Vec<u8> {
        let mut bytes = vec![0; BHS_BYTES];
        header::set_data_segment_bytes((&mut bytes[..]).try_into().unwrap(), 5);
        let header_digest = digest::of(&bytes);
        bytes.extend_from_slice(&header_digest);
        bytes.extend_from_slice(b"abcde\0\0\0");
        bytes.extend_from_slice(&digest::of(b"abcde\0\0\0"));
        bytes
    }

    fn read_slot() -> Slots {
        let mut slots = Slots::new(1);
        let command = Command {
            lun: LunAddress(0),
            cdb: Cdb([0; 16]),
            data: Data::In(BytesMut::zeroed(8)),
        };
        slots.insert(0, 1, command);
        slots
    }

    /// Takes `bytes` apart, cut at `cut`; the place of the data is `placement`.
    fn take(bytes: &[u8], cut: usize, placement: Placement) -> Result<Vec<u8>, Violation> {
        let mut slots = read_slot();
        let mut receiver = Receiver::new(BOTH);
        for piece in [&bytes[..cut], &bytes[cut..]] {
            receiver.make_room();
            receiver.buffer[receiver.end..receiver.end + piece.len()].copy_from_slice(piece);
            receiver.end += piece.len();
            loop {
                match receiver.next(&mut slots) {
                    Step::Header(_) => receiver.place(placement),
                    Step::Segment(data) if !data.is_empty() => return Ok(data.to_vec()),
                    Step::Segment(_) => return Ok(slots.incoming(0)[..5].to_vec()),
                    Step::More => break,
                    Step::Corrupt(corrupt) => return Err(corrupt.into()),
                }
            }
        }
        panic!("the PDU did not end")
    }

    const PLACES: [Placement; 2] = [
        Placement::Own { bytes: 5 },
        Placement::Task {
            slot: 0,
            offset: 0,
            bytes: 5,
        },
    ];

    // E1, E2, L15; RFC 7143 §13.1: header and data each have a digest, the data's covers the padding
    #[test]
    fn digests_are_checked_wherever_the_stream_is_cut() {
        for placement in PLACES {
            for cut in 0..pdu().len() {
                assert_eq!(take(&pdu(), cut, placement), Ok(b"abcde".to_vec()));
            }
        }
    }

    // E1, E2
    #[test]
    fn any_bit_turned_is_found_and_named() {
        for placement in PLACES {
            for bit in 0..pdu().len() * 8 {
                let mut bytes = pdu();
                bytes[bit / 8] ^= 1 << (bit % 8);
                // More header segments would be waited for first, until the digest behind them is there.
                bytes.extend_from_slice(&[0; 1024]);
                let expected = if bit / 8 < BHS_BYTES + DIGEST_BYTES {
                    Violation::HeaderDigest
                } else {
                    Violation::DataDigest
                };
                assert_eq!(take(&bytes, 50, placement), Err(expected), "bit {bit}");
            }
        }
    }

    // RFC 7143 §11.2.3: no digest behind a segment of no bytes
    #[test]
    fn empty_segment_has_no_digest() {
        let mut slots = read_slot();
        let mut bytes = vec![0; BHS_BYTES];
        bytes.extend_from_slice(&digest::of(&[0; BHS_BYTES]));
        let mut receiver = receiver_with(BOTH, &bytes);
        assert!(matches!(receiver.next(&mut slots), Step::Header(_)));
        receiver.place(Placement::Own { bytes: 0 });
        assert!(matches!(receiver.next(&mut slots), Step::Segment(b"")));
        assert!(matches!(receiver.next(&mut slots), Step::More));
    }

    // A task can end by an answer on another connection while its data is half here.
    #[test]
    fn data_of_a_forgotten_task_goes_nowhere() {
        let mut slots = read_slot();
        let mut receiver = receiver_with(BOTH, &pdu()[..BHS_BYTES + DIGEST_BYTES + 2]);
        assert!(matches!(receiver.next(&mut slots), Step::Header(_)));
        receiver.place(PLACES[1]);
        assert!(matches!(receiver.next(&mut slots), Step::More));
        receiver.forget(0);
        slots.remove(0);
        receiver.make_room();
        let rest = &pdu()[BHS_BYTES + DIGEST_BYTES + 2..];
        receiver.buffer[..rest.len()].copy_from_slice(rest);
        receiver.end = rest.len();
        assert!(matches!(receiver.next(&mut slots), Step::Segment(b"")));
    }
}
