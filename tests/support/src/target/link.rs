//! A connection's bytes: PDUs out of the socket, PDUs into it, digests, and nothing of their meaning.
//!
//! Source: RFC 7143 §11.1 (segments, padding), §13.1 (digests).
//!
//! Invariants:
//! 1. Reading goes on while answers wait to be written: an initiator that writes first and reads later is served.
//! 2. A read's data is copied once, from the disk into the send buffer; a write's immediate data not at all.
//! 3. What leaves, leaves in order: while something waits in the detour (`tap`), all goes by it.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rustix::net::Shutdown;
use tokio::net::TcpStream;

use super::detour::{Detour, Piece};
use super::pdu::{BHS_BYTES, Bhs, Pdu};
use super::tap::{Direction, Seen, Step, Verdict, Wire};

/// Why a connection is over.
#[derive(Debug)]
pub(super) enum Ended {
    /// The initiator closed it, or it broke.
    Closed,
    /// The initiator broke a rule after which one cannot go on; the text names it.
    Violation(String),
    /// A fault told us to, or the session is over.
    Ours,
    /// A tap closed it in an orderly way: what the initiator still sends is read and forgotten.
    Shut,
}

impl From<io::Error> for Ended {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

#[derive(Debug)]
pub(super) struct Link {
    stream: TcpStream,
    received: BytesMut,
    outgoing: Vec<u8>,
    sent: usize,
    detour: Detour,
    /// Was before a tap, and is handled when the gate has opened.
    parked: Option<Pdu>,
    wire: Arc<Wire>,
    /// Counted from 1 as accepted.
    pub(super) number: u64,
    pub(super) header_digest: bool,
    pub(super) data_digest: bool,
    /// Longest data segment that we declared (8192 until negotiated).
    pub(super) segment_bytes_max: usize,
    /// Received so far, whole.
    pub(super) pdus: u64,
}

impl Link {
    pub(super) fn new(stream: TcpStream, number: u64, wire: Arc<Wire>) -> Self {
        Self {
            stream,
            received: BytesMut::with_capacity(RECEIVE_BYTES),
            outgoing: Vec::with_capacity(RECEIVE_BYTES),
            sent: 0,
            detour: Detour::default(),
            parked: None,
            wire,
            number,
            header_digest: false,
            data_digest: false,
            segment_bytes_max: 8192,
            pdus: 0,
        }
    }

    /// The next PDU if it is here whole and no tap has taken it.
    pub(super) fn parse(&mut self) -> Result<Option<Pdu>, Ended> {
        loop {
            if self.detour.is_stalled() {
                return Ok(None);
            }
            if let Some(pdu) = self.parked.take() {
                return Ok(Some(pdu));
            }
            let Some(pdu) = self.parse_next()? else {
                return Ok(None);
            };
            if !self.wire.is_on() {
                return Ok(Some(pdu));
            }
            let seen = Seen {
                connection: self.number,
                direction: Direction::FromInitiator,
                pdu,
            };
            match self.wire.judge(&seen) {
                Verdict::Pass => return Ok(Some(seen.pdu)),
                Verdict::Steps(steps) => self.leave(steps),
                Verdict::Hold(gate) => {
                    self.detour.stall(&gate);
                    self.parked = Some(seen.pdu);
                }
            }
        }
    }

    /// Waits for the next PDU, writing what is due meanwhile. For login; the session has a loop of its own.
    pub(super) async fn next(&mut self) -> Result<Pdu, Ended> {
        loop {
            if let Some(pdu) = self.parse()? {
                return Ok(pdu);
            }
            self.progress().await?;
        }
    }

    /// Writes until nothing is due.
    pub(super) async fn flush(&mut self) -> Result<(), Ended> {
        while !self.write_some()? {
            self.progress().await?;
        }
        Ok(())
    }

    /// Reads and writes what the socket takes; waits until it takes something.
    ///
    /// # Cancel safety
    /// Nothing is lost when dropped: bytes move only after the await.
    pub(super) async fn progress(&mut self) -> Result<(), Ended> {
        poll_fn(|cx| self.poll_progress(cx)).await
    }

    /// Ready when bytes moved, or may move again.
    pub(super) fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let due = self.due();
        let written = self.write_some()?;
        // Whoever waits for room has it now, and nothing else may come to wake him.
        if self.due() < due {
            return Poll::Ready(Ok(()));
        }
        if self.detour.poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        // A stalled connection is not read either: its initiator shall feel it.
        let reads =
            !self.detour.is_stalled() && (written || self.received.len() <= RECEIVED_MAX_BYTES);
        if reads && let Poll::Ready(read) = self.poll_read(cx) {
            return Poll::Ready(read);
        }
        if !written && !self.detour.is_paused() {
            ready!(self.stream.poll_write_ready(cx))?;
            self.write_some()?;
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }

    /// Reads and forgets until the initiator closes too: an early close would be a reset.
    pub(super) async fn farewell(&mut self) {
        loop {
            self.received.clear();
            if poll_fn(|cx| self.poll_read(cx)).await.is_err() {
                return;
            }
        }
    }

    /// Queues a PDU.
    pub(super) fn push(&mut self, bhs: Bhs, data: &[u8]) {
        self.push_with(bhs, data.len(), |space| space.copy_from_slice(data));
    }

    /// Queues a PDU whose data segment is filled in place.
    pub(super) fn push_with(&mut self, mut bhs: Bhs, bytes: usize, fill: impl FnOnce(&mut [u8])) {
        if self.wire.is_on() || !self.detour.is_idle() {
            let mut data = vec![0; bytes];
            fill(&mut data);
            return self.offer(Pdu::new(bhs, data));
        }
        let length = u32::try_from(bytes)
            .expect("a data segment is below 2^24")
            .to_be_bytes();
        bhs[5..8].copy_from_slice(&length[1..]);
        self.outgoing.extend_from_slice(&bhs);
        if self.header_digest {
            self.outgoing
                .extend_from_slice(&crc32c::crc32c(&bhs).to_le_bytes());
        }
        let start = self.outgoing.len();
        self.outgoing.resize(start + bytes.next_multiple_of(4), 0);
        fill(&mut self.outgoing[start..start + bytes]);
        if self.data_digest && bytes > 0 {
            // RFC 7143 §13.1: the padding is under the digest.
            let digest = crc32c::crc32c(&self.outgoing[start..]);
            self.outgoing.extend_from_slice(&digest.to_le_bytes());
        }
    }

    /// Whether bytes are here that no PDU was made of.
    pub(super) fn has_more(&self) -> bool {
        !self.received.is_empty()
    }

    /// How many bytes wait to be written.
    pub(super) fn due(&self) -> usize {
        self.outgoing.len() - self.sent
    }

    /// Writes without waiting; true if nothing is due.
    pub(super) fn write_some(&mut self) -> Result<bool, Ended> {
        loop {
            while self.sent < self.outgoing.len() {
                match self.stream.try_write(&self.outgoing[self.sent..]) {
                    Ok(count) => self.sent += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(error) => return Err(error.into()),
                }
            }
            self.outgoing.clear();
            self.sent = 0;
            if self.detour.is_idle() {
                return Ok(true);
            }
            if self.detour.is_paused() {
                return Ok(false);
            }
            self.take_piece()?;
        }
    }

    /// Queues what a test wants to send, past every tap.
    pub(super) fn leave(&mut self, steps: Vec<Step>) {
        for step in steps {
            if let Step::Pdu(pdu)
            | Step::BadHeaderDigest(pdu)
            | Step::BadDataDigest(pdu)
            | Step::Part(pdu, _)
            | Step::Segments(pdu, _) = &step
            {
                self.note(pdu.clone());
            }
            self.detour
                .step(step, (self.header_digest, self.data_digest));
        }
    }

    /// A PDU of ours before the taps.
    fn offer(&mut self, pdu: Pdu) {
        let seen = Seen {
            connection: self.number,
            direction: Direction::FromTarget,
            pdu,
        };
        let verdict = if self.wire.is_on() {
            self.wire.judge(&seen)
        } else {
            Verdict::Pass
        };
        let bytes = || seen.pdu.encode(self.header_digest, self.data_digest);
        match verdict {
            Verdict::Pass => {
                self.detour.bytes(bytes());
                self.note(seen.pdu);
            }
            Verdict::Hold(gate) => {
                self.detour.hold(&gate, bytes());
                self.note(seen.pdu);
            }
            Verdict::Steps(steps) => self.leave(steps),
        }
    }

    fn note(&self, pdu: Pdu) {
        self.wire.record.add(Seen {
            connection: self.number,
            direction: Direction::FromTarget,
            pdu,
        });
    }

    fn take_piece(&mut self) -> Result<(), Ended> {
        match self.detour.next() {
            Some(Piece::Bytes(bytes)) => self.outgoing = bytes,
            Some(Piece::Segment(bytes)) => {
                self.outgoing = bytes;
                self.detour.rest();
            }
            Some(Piece::Wait(time)) => self.detour.pause(time),
            Some(Piece::Until(gate)) => self.detour.pause_until(&gate),
            Some(Piece::Close) => {
                rustix::net::shutdown(&self.stream, Shutdown::Write).map_err(io::Error::from)?;
                return Err(Ended::Shut);
            }
            Some(Piece::Reset) => {
                rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO))
                    .map_err(io::Error::from)?;
                return Err(Ended::Ours);
            }
            None => {}
        }
        Ok(())
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            if self.received.capacity() - self.received.len() < RECEIVE_BYTES / 4 {
                self.received.reserve(RECEIVE_BYTES);
            }
            match self.stream.try_read_buf(&mut self.received) {
                Ok(0) => return Poll::Ready(Err(Ended::Closed)),
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn parse_next(&mut self) -> Result<Option<Pdu>, Ended> {
        let header_bytes = BHS_BYTES + digest_bytes(self.header_digest);
        let Some(bhs) = self.received.first_chunk::<BHS_BYTES>() else {
            return Ok(None);
        };
        let bhs: Bhs = *bhs;
        let ahs_bytes = usize::from(bhs[4]) * 4;
        let data_bytes = usize::from(bhs[5]) << 16 | usize::from(bhs[6]) << 8 | usize::from(bhs[7]);
        if data_bytes > self.segment_bytes_max {
            // RFC 7143 §13.12: MaxRecvDataSegmentLength binds the sender.
            return Err(Ended::Violation(format!(
                "data segment of {data_bytes} bytes, MaxRecvDataSegmentLength is {}",
                self.segment_bytes_max
            )));
        }
        let padded = data_bytes.next_multiple_of(4);
        let data_digest_bytes = if data_bytes > 0 {
            digest_bytes(self.data_digest)
        } else {
            0
        };
        let total = header_bytes + ahs_bytes + padded + data_digest_bytes;
        if self.received.len() < total {
            let missing = total - self.received.len();
            self.received.reserve(missing.max(RECEIVE_BYTES / 2));
            return Ok(None);
        }
        let mut whole = self.received.split_to(total).freeze();
        self.pdus += 1;
        if self.header_digest {
            let end = BHS_BYTES + ahs_bytes;
            check_digest("header", &whole[..end], &whole[end..end + 4])?;
        }
        let ahs = whole.slice(BHS_BYTES..BHS_BYTES + ahs_bytes);
        whole.advance(header_bytes + ahs_bytes);
        if data_digest_bytes > 0 {
            check_digest("data", &whole[..padded], &whole[padded..])?;
        }
        whole.truncate(data_bytes);
        Ok(Some(Pdu {
            bhs,
            ahs,
            data: whole,
        }))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.wire.record.close(self.number);
    }
}

fn digest_bytes(on: bool) -> usize {
    if on { 4 } else { 0 }
}

fn check_digest(what: &str, bytes: &[u8], digest: &[u8]) -> Result<(), Ended> {
    if crc32c::crc32c(bytes).to_le_bytes() == digest {
        return Ok(());
    }
    Err(Ended::Violation(format!("{what} digest is wrong")))
}

/// Read-ahead: some 4 KiB writes, or a burst of 256 KiB with its header.
const RECEIVE_BYTES: usize = 320 * 1024;
/// Commands taken while the initiator does not read its answers; chosen freely.
const RECEIVED_MAX_BYTES: usize = 8 << 20;
