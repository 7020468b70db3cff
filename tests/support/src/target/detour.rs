//! What a connection sends when a tap has a say: pieces, pauses and ends, in order, and PDUs that are held back.
//!
//! Does not write: `link` takes the pieces one by one.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::pdu::Pdu;
use super::tap::{Gate, Step};

type Wait = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// What comes next on the wire.
#[derive(Debug)]
pub(super) enum Piece {
    Bytes(Vec<u8>),
    /// One write, after which others have a turn.
    Segment(Vec<u8>),
    Wait(Duration),
    Until(Gate),
    Close,
    Reset,
}

/// The queue behind a connection's plain buffer; empty as long as no tap was at work.
#[derive(Default)]
pub(super) struct Detour {
    queue: VecDeque<Piece>,
    pause: Option<Wait>,
    held: Vec<(Wait, Vec<u8>)>,
    /// Reading stops as long as this is there.
    stall: Option<Wait>,
}

impl Detour {
    /// Nothing waits here, so that the plain buffer may be used.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.pause.is_none()
    }

    pub(super) fn is_paused(&self) -> bool {
        self.pause.is_some()
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stall.is_some()
    }

    pub(super) fn bytes(&mut self, bytes: Vec<u8>) {
        self.queue.push_back(Piece::Bytes(bytes));
    }

    pub(super) fn hold(&mut self, gate: &Gate, bytes: Vec<u8>) {
        self.held.push((Box::pin(gate.wait()), bytes));
    }

    pub(super) fn stall(&mut self, gate: &Gate) {
        self.stall = Some(Box::pin(gate.wait()));
    }

    pub(super) fn pause(&mut self, time: Duration) {
        self.pause = Some(Box::pin(tokio::time::sleep(time)));
    }

    pub(super) fn pause_until(&mut self, gate: &Gate) {
        self.pause = Some(Box::pin(gate.wait()));
    }

    pub(super) fn rest(&mut self) {
        self.pause = Some(Box::pin(tokio::task::yield_now()));
    }

    pub(super) fn next(&mut self) -> Option<Piece> {
        self.queue.pop_front()
    }

    /// Queues a step. `digests` as the connection has agreed.
    pub(super) fn step(&mut self, step: Step, digests: (bool, bool)) {
        let encode = |pdu: &Pdu| pdu.encode(digests.0, digests.1);
        let piece = match step {
            Step::Pdu(pdu) => Piece::Bytes(encode(&pdu)),
            Step::BadHeaderDigest(pdu) => {
                let mut bytes = encode(&pdu);
                if digests.0 {
                    bytes[48 + pdu.ahs.len()] ^= 0xff;
                }
                Piece::Bytes(bytes)
            }
            Step::BadDataDigest(pdu) => {
                let mut bytes = encode(&pdu);
                if let Some(last) = bytes
                    .last_mut()
                    .filter(|_| digests.1 && !pdu.data.is_empty())
                {
                    *last ^= 0xff;
                }
                Piece::Bytes(bytes)
            }
            Step::Part(pdu, bytes) => {
                let mut part = encode(&pdu);
                part.truncate(bytes);
                Piece::Bytes(part)
            }
            Step::Segments(pdu, bytes) => {
                let whole = encode(&pdu);
                let segments = whole.chunks(bytes.max(1));
                self.queue
                    .extend(segments.map(|segment| Piece::Segment(segment.to_vec())));
                return;
            }
            Step::Bytes(bytes) => Piece::Bytes(bytes),
            Step::Wait(time) => Piece::Wait(time),
            Step::Until(gate) => Piece::Until(gate),
            Step::Close => Piece::Close,
            Step::Reset => Piece::Reset,
        };
        self.queue.push_back(piece);
    }

    /// Ready when a pause is over, a held PDU is let go, or reading may go on.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut moved = false;
        for wait in [&mut self.pause, &mut self.stall] {
            if wait
                .as_mut()
                .is_some_and(|wait| wait.as_mut().poll(cx).is_ready())
            {
                *wait = None;
                moved = true;
            }
        }
        let queue = &mut self.queue;
        self.held.retain_mut(|(wait, bytes)| {
            let open = wait.as_mut().poll(cx).is_ready();
            if open {
                queue.push_back(Piece::Bytes(std::mem::take(bytes)));
                moved = true;
            }
            !open
        });
        if moved {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl fmt::Debug for Detour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detour")
            .field("queue", &self.queue)
            .field("held", &self.held.len())
            .finish_non_exhaustive()
    }
}
