//! Bytes coming in: one large read for many PDUs; large payload straight into the task's buffer.
//!
//! ```text
//!  socket --readv--> [ rest of the task's buffer ][ read-ahead ]
//!                                                   |header|data|pad|header| ...
//! ```
//!
//! Invariants:
//! 1. A PDU is reported when its last byte (padding included) is here.
//! 2. The read-ahead grows only for a segment that is handed up whole, and never beyond what we
//!    declared to take in one.

use std::io::{self, IoSliceMut};
use std::task::{Context, Poll, ready};

use super::network::Stream;
use super::slots::Slots;
use crate::proto::session::Placement;
use crate::wire::header::{self, BHS_BYTES, Bhs};

/// Bytes of one read: a batch of small Data-In, while a core's cache still holds it when it is
/// copied on. Chosen freely between 32 KiB and the size of that cache.
const READ_AHEAD_BYTES: usize = 64 << 10;

/// The read-ahead and the place in the stream.
#[derive(Debug)]
pub(super) struct Receiver {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that have not been looked at, half-open.
    start: usize,
    end: usize,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    /// A segment on its way into a task's buffer.
    Task {
        slot: u16,
        at: usize,
        missing: usize,
        padding: usize,
    },
    /// A segment that is handed up whole.
    Own {
        bytes: usize,
        padding: usize,
    },
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
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; READ_AHEAD_BYTES],
            start: 0,
            end: 0,
            state: State::Header,
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
        let ahead = &mut self.buffer[self.end..];
        let direct: &mut [u8] = match self.state {
            State::Task {
                slot, at, missing, ..
            } => &mut slots.incoming(slot)[at..at + missing],
            State::Header | State::Own { .. } => &mut [],
        };
        let missing = direct.len();
        let got = if direct.is_empty() {
            ready!(stream.poll_read_vectored(cx, &mut [IoSliceMut::new(ahead)]))?
        } else {
            let buffers = &mut [IoSliceMut::new(direct), IoSliceMut::new(ahead)];
            ready!(stream.poll_read_vectored(cx, buffers))?
        };
        self.note_direct(got.min(missing));
        self.end += got.saturating_sub(missing);
        Poll::Ready(Ok(got))
    }

    /// Looks at the bytes at hand.
    pub(super) fn next(&mut self, slots: &mut Slots) -> Step<'_> {
        match self.state {
            State::Header => match self.buffer[self.start..self.end].first_chunk::<BHS_BYTES>() {
                Some(bhs) => {
                    let bhs = *bhs;
                    self.start += BHS_BYTES;
                    Step::Header(bhs)
                }
                None => Step::More,
            },
            State::Task {
                slot,
                at,
                missing,
                padding,
            } => {
                let here = (self.end - self.start).min(missing);
                if here > 0 {
                    let from = &self.buffer[self.start..self.start + here];
                    slots.incoming(slot)[at..at + here].copy_from_slice(from);
                    self.start += here;
                    self.note_direct(here);
                }
                if here < missing || self.end - self.start < padding {
                    return Step::More;
                }
                self.start += padding;
                self.state = State::Header;
                Step::Segment(&[])
            }
            State::Own { bytes, padding } => {
                if self.end - self.start < bytes + padding {
                    return Step::More;
                }
                let data = self.start..self.start + bytes;
                self.start += bytes + padding;
                self.state = State::Header;
                Step::Segment(&self.buffer[data])
            }
        }
    }

    /// Where the segment behind the header goes that `next` gave.
    pub(super) fn place(&mut self, placement: Placement) {
        self.state = match placement {
            Placement::Task {
                slot,
                offset,
                bytes,
            } => State::Task {
                slot,
                at: index(offset),
                missing: index(bytes),
                padding: index(header::padding_bytes(bytes)),
            },
            Placement::Own { bytes } => State::Own {
                bytes: index(bytes),
                padding: index(header::padding_bytes(bytes)),
            },
        };
    }

    /// So many bytes went into the task's buffer.
    fn note_direct(&mut self, bytes: usize) {
        if let State::Task { at, missing, .. } = &mut self.state {
            *at += bytes;
            *missing -= bytes;
        }
    }

    /// Moves what is left to the front, so that the rest of the buffer can be read into.
    fn make_room(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if let State::Own { bytes, padding } = self.state
            && self.buffer.len() < bytes + padding
        {
            self.buffer.resize(bytes + padding, 0);
        }
    }
}

fn index(number: u32) -> usize {
    usize::try_from(number).expect("buffers have lengths that fit")
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::io::{Command, Data};
    use crate::scsi::{Cdb, LunAddress};

    fn receiver(bytes: &[u8]) -> Receiver {
        let mut receiver = Receiver::new();
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
}
