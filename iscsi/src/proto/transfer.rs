//! How far a task's data is: what may come next, what may go next.
//!
//! A write, with `FirstBurstLength` F and a length above it:
//!
//! ```text
//!  0            immediate        F (InitialR2T=No)                          length
//!  |-- with the --|-- unsolicited --|---- R2T 0 ----|---- R2T 1 ----| ... |
//!  |   command    |    Data-Out     |   Data-Out    |   Data-Out    |
//! ```
//!
//! Source: RFC 7143 §11.7, §11.8, §4.2.5.2, §13.10-§13.14.
//!
//! Invariants:
//! 1. Bytes are placed only inside the buffer, at the next offset, once: `DataPDUInOrder` and
//!    `DataSequenceInOrder` are `Yes` in all our sessions.
//! 2. Offsets and lengths of the target's are added in 64 bits.

use super::Violation;
use super::negotiation::Agreed;
use super::task::Transfer;
use crate::wire::data_in::DataIn;
use crate::wire::r2t::R2t;
use crate::wire::scsi_response::Residual;
use crate::wire::serial::{DataSn, R2tSn};
use crate::wire::tag::{InitiatorTaskTag, TargetTransferTag};

/// Data coming in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    length: u32,
    received: u32,
    next_data_sn: DataSn,
}

/// Data going out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    length: u32,
    /// Bytes that left in PDUs.
    sent: u32,
    /// Where the next R2T must begin.
    next_offset: u32,
    next_r2t_sn: R2tSn,
    /// R2Ts whose last Data-Out has not left.
    outstanding: u16,
    /// The target rejected a part of the data.
    is_rejected: bool,
}

/// A run of Data-Out PDUs: the answer to one R2T, or the unsolicited data of one command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequence {
    pub(crate) itt: InitiatorTaskTag,
    pub(crate) ttt: TargetTransferTag,
    pub(crate) lun: u64,
    offset: u32,
    end: u32,
    data_sn: DataSn,
}

/// What one Data-Out carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u32,
    pub(crate) bytes: u32,
    pub(crate) data_sn: DataSn,
    pub(crate) is_final: bool,
}

/// What of a write may leave unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unasked {
    /// Bytes with the command.
    pub(crate) immediate: u32,
    /// Where the unsolicited Data-Out ends; equal to `immediate` if there is none.
    pub(crate) end: u32,
}

impl Read {
    pub(crate) fn new(length: u32) -> Self {
        Self {
            length,
            received: 0,
            next_data_sn: DataSn::default(),
        }
    }

    /// Where the data of a Data-In belongs.
    ///
    /// # Errors
    /// It is not the next one, or not inside the buffer.
    pub(crate) fn place(&mut self, data_in: &DataIn, bytes: u32) -> Result<u32, Violation> {
        // RFC 7143 §11.7.2: A is for error recovery levels above 0
        if data_in.acknowledge {
            return Err(Violation::Acknowledge);
        }
        // RFC 7143 §11.7.3: status comes only with the last PDU
        if data_in.status.is_some() && !data_in.is_final {
            return Err(Violation::StatusWithoutFinal);
        }
        // RFC 7143 §11.7.5: Data-In PDUs of a command are numbered from 0
        // RFC 7143 §11.16 (E7): a gap ends the session, no SNACK asks for it
        if data_in.data_sn != self.next_data_sn {
            let (expected, seen) = (self.next_data_sn.0, data_in.data_sn.0);
            return Err(Violation::DataSn { expected, seen });
        }
        let offset = data_in.buffer_offset;
        check_inside(offset, bytes, self.length)?;
        // RFC 7143 §11.7.5, §13.18, §13.19: in order
        if offset != self.received {
            return Err(Violation::BufferOffset {
                expected: self.received,
                seen: offset,
            });
        }
        self.next_data_sn = self.next_data_sn.next();
        self.received += bytes;
        Ok(offset)
    }
}

impl Write {
    /// A write of `length` bytes that begins as `unasked` says.
    pub(crate) fn new(length: u32, unasked: Unasked) -> Self {
        Self {
            length,
            sent: unasked.immediate,
            next_offset: unasked.end,
            next_r2t_sn: R2tSn::default(),
            outstanding: 0,
            is_rejected: false,
        }
    }

    pub(crate) fn length(&self) -> u32 {
        self.length
    }

    /// The sequence that an R2T asks for.
    ///
    /// # Errors
    /// It has no tag, is not the next one, not inside the buffer, too long, or one too many.
    pub(crate) fn answer(
        &mut self,
        r2t: &R2t,
        lun: u64,
        agreed: &Agreed,
    ) -> Result<Sequence, Violation> {
        let (offset, bytes) = (r2t.buffer_offset, r2t.desired_bytes);
        // RFC 7143 §11.8.5: this value marks unsolicited data, so what it would ask for could not be told from that
        if r2t.target_transfer_tag == TargetTransferTag::RESERVED {
            return Err(Violation::R2tTag);
        }
        // RFC 7143 §11.8.3: R2Ts of a command are numbered from 0
        if r2t.r2t_sn != self.next_r2t_sn {
            let (expected, seen) = (self.next_r2t_sn.0, r2t.r2t_sn.0);
            return Err(Violation::DataSn { expected, seen });
        }
        // RFC 7143 §11.8.4: never for nothing, never above MaxBurstLength
        if bytes == 0 {
            return Err(Violation::R2tEmpty);
        }
        if bytes > agreed.max_burst_bytes {
            let limit = agreed.max_burst_bytes;
            return Err(Violation::BurstTooLong {
                bytes: u64::from(bytes),
                limit,
            });
        }
        check_inside(offset, bytes, self.length)?;
        // RFC 7143 §13.19: sequences in order
        if offset != self.next_offset {
            return Err(Violation::BufferOffset {
                expected: self.next_offset,
                seen: offset,
            });
        }
        // RFC 7143 §13.17
        if self.outstanding >= agreed.max_outstanding_r2t {
            return Err(Violation::R2tTooMany(agreed.max_outstanding_r2t));
        }
        self.outstanding += 1;
        self.next_r2t_sn = self.next_r2t_sn.next();
        self.next_offset += bytes;
        Ok(Sequence {
            itt: r2t.initiator_task_tag,
            ttt: r2t.target_transfer_tag,
            lun,
            offset,
            end: offset + bytes,
            data_sn: DataSn::default(),
        })
    }

    /// The target rejected a Data-Out: the write must not end well.
    pub(crate) fn note_rejected(&mut self) {
        self.is_rejected = true;
    }

    /// A Data-Out left.
    pub(crate) fn note_sent(&mut self, piece: &Piece, is_solicited: bool) {
        self.sent += piece.bytes;
        if piece.is_final && is_solicited {
            self.outstanding -= 1;
        }
    }
}

impl Sequence {
    /// The unsolicited data behind a command.
    pub(crate) fn unsolicited(itt: InitiatorTaskTag, unasked: Unasked) -> Self {
        Self {
            itt,
            ttt: TargetTransferTag::RESERVED,
            // RFC 7143 §11.7.4: the LUN stands only beside a transfer tag
            lun: 0,
            offset: unasked.immediate,
            end: unasked.end,
            data_sn: DataSn::default(),
        }
    }

    /// The next Data-Out, of at most `bytes_max` bytes.
    pub(crate) fn next_piece(&mut self, bytes_max: u32) -> Piece {
        let bytes = (self.end - self.offset).min(bytes_max);
        let piece = Piece {
            offset: self.offset,
            bytes,
            // RFC 7143 §11.7.5: numbered from 0 in each sequence
            data_sn: self.data_sn,
            // RFC 7143 §11.7.1: F on the last PDU of a sequence
            is_final: self.offset + bytes == self.end,
        };
        // RFC 7143 §11.7.6 (F14): the next one begins where this one ends
        self.offset += bytes;
        self.data_sn = self.data_sn.next();
        piece
    }
}

/// What of a write of `length` bytes leaves unasked.
pub(crate) fn unasked(length: u32, agreed: &Agreed) -> Unasked {
    let burst = length.min(agreed.first_burst_bytes);
    // RFC 7143 §13.11, §13.14: immediate and unsolicited data together stay within FirstBurstLength
    let immediate = if agreed.immediate_data {
        burst.min(agreed.theirs_max_recv_data_segment_bytes)
    } else {
        0
    };
    // RFC 7143 §13.10: with InitialR2T=Yes nothing follows unasked
    let end = if agreed.initial_r2t { immediate } else { burst };
    Unasked { immediate, end }
}

/// How many bytes a task moved, as it ends.
///
/// # Errors
/// A residual beyond the transfer; or `is_good`, and yet bytes are missing that the target did not
/// own up to.
pub(crate) fn moved(
    transfer: &Transfer,
    residual: Residual,
    is_good: bool,
) -> Result<u32, Violation> {
    let (moved, length) = transfer.progress();
    // RFC 7143 §11.4.5.1: an overflow means that all that was expected was moved
    let missing = match residual {
        Residual::Underflow(count) => count,
        Residual::None | Residual::Overflow(_) => 0,
    };
    if missing > length {
        return Err(Violation::Residual {
            residual: missing,
            length,
        });
    }
    if is_good && matches!(transfer, Transfer::Write(write) if write.is_rejected) {
        return Err(Violation::GoodAfterReject);
    }
    if is_good && moved < length - missing {
        return Err(Violation::ShortTransfer {
            moved,
            length,
            residual: missing,
        });
    }
    Ok(moved.min(length - missing))
}

impl Transfer {
    /// Bytes moved so far, and bytes in all.
    pub(crate) fn progress(&self) -> (u32, u32) {
        match self {
            Self::None => (0, 0),
            Self::Read(read) => (read.received, read.length),
            Self::Write(write) => (write.sent, write.length),
        }
    }
}

fn check_inside(offset: u32, bytes: u32, length: u32) -> Result<(), Violation> {
    if u64::from(offset) + u64::from(bytes) > u64::from(length) {
        return Err(Violation::BeyondBuffer {
            offset,
            bytes,
            length,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn agreed(initial_r2t: bool, immediate_data: bool, first_burst: u32, segment: u32) -> Agreed {
        Agreed {
            header_digest: false,
            data_digest: false,
            max_connections: 1,
            initial_r2t,
            immediate_data,
            ours_max_recv_data_segment_bytes: 262_144,
            theirs_max_recv_data_segment_bytes: segment,
            max_burst_bytes: 262_144,
            first_burst_bytes: first_burst,
            max_outstanding_r2t: 1,
            time_2_wait: 2,
            time_2_retain: 0,
            target_portal_group_tag: None,
            target_alias: None,
        }
    }

    // RFC 7143 §13.10, §13.11, §13.14: the four combinations
    #[test]
    fn unasked_data_is_what_the_keys_allow() {
        let cases = [
            (
                true,
                true,
                Unasked {
                    immediate: 8192,
                    end: 8192,
                },
            ),
            (
                true,
                false,
                Unasked {
                    immediate: 0,
                    end: 0,
                },
            ),
            (
                false,
                true,
                Unasked {
                    immediate: 8192,
                    end: 65_536,
                },
            ),
            (
                false,
                false,
                Unasked {
                    immediate: 0,
                    end: 65_536,
                },
            ),
        ];
        for (initial_r2t, immediate_data, expected) in cases {
            let agreed = agreed(initial_r2t, immediate_data, 65_536, 8192);
            assert_eq!(unasked(1 << 20, &agreed), expected);
        }
        let small = agreed(false, true, 65_536, 8192);
        assert_eq!(
            unasked(100, &small),
            Unasked {
                immediate: 100,
                end: 100
            }
        );
    }

    // F19; RFC 7143 §11.4.5
    #[test]
    fn residuals_shorten_and_missing_bytes_are_caught() {
        let moved = |received, length, residual, is_good| {
            let read = Read {
                received,
                ..Read::new(length)
            };
            moved(&Transfer::Read(read), residual, is_good)
        };
        assert_eq!(moved(4096, 4096, Residual::None, true), Ok(4096));
        assert_eq!(moved(36, 255, Residual::Underflow(219), true), Ok(36));
        assert_eq!(moved(4096, 4096, Residual::Overflow(512), true), Ok(4096));
        assert_eq!(moved(4096, 4096, Residual::Underflow(1024), true), Ok(3072));
        assert_eq!(moved(0, 4096, Residual::None, false), Ok(0));
        assert_eq!(
            moved(2048, 4096, Residual::None, true),
            Err(Violation::ShortTransfer {
                moved: 2048,
                length: 4096,
                residual: 0
            })
        );
        assert_eq!(
            moved(0, 4096, Residual::Underflow(4097), false),
            Err(Violation::Residual {
                residual: 4097,
                length: 4096
            })
        );
    }

    proptest! {
        // RFC 7143 §11.7: a sequence is covered without gap or overlap, F on its last PDU only
        #[test]
        fn pieces_cover_their_sequence(
            immediate in 0_u32..10_000, more in 1_u32..1_000_000, segment in 512_u32..300_000
        ) {
            let unasked = Unasked { immediate, end: immediate + more };
            let mut sequence = Sequence::unsolicited(InitiatorTaskTag(1), unasked);
            let mut at = immediate;
            for number in 0.. {
                let piece = sequence.next_piece(segment);
                prop_assert_eq!((piece.offset, piece.data_sn), (at, DataSn(number)));
                prop_assert!(piece.bytes > 0 && piece.bytes <= segment);
                at += piece.bytes;
                prop_assert_eq!(piece.is_final, at == unasked.end);
                if piece.is_final {
                    break;
                }
            }
        }
    }
}
