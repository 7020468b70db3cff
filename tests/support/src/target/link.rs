//! A connection's bytes: PDUs out of the socket, PDUs into it, digests, and nothing of their meaning.
//!
//! Source: RFC 7143 §11.1 (segments, padding), §13.1 (digests).
//!
//! Invariants:
//! 1. Reading goes on while answers wait to be written: an initiator that writes first and reads later is served.
//! 2. A read's data is copied once, from the disk into the send buffer; a write's immediate data not at all.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::pdu::{BHS_BYTES, Bhs, Pdu};

/// Why a connection is over.
#[derive(Debug)]
pub(super) enum Ended {
    /// The initiator closed it, or it broke.
    Closed,
    /// The initiator broke a rule after which one cannot go on; the text names it.
    Violation(String),
    /// A fault told us to, or the session is over.
    Ours,
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
    pub(super) header_digest: bool,
    pub(super) data_digest: bool,
    /// Longest data segment that we declared (8192 until negotiated).
    pub(super) segment_bytes_max: usize,
    /// Received so far, whole.
    pub(super) pdus: u64,
}

impl Link {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            received: BytesMut::with_capacity(RECEIVE_BYTES),
            outgoing: Vec::with_capacity(RECEIVE_BYTES),
            sent: 0,
            header_digest: false,
            data_digest: false,
            segment_bytes_max: 8192,
            pdus: 0,
        }
    }

    /// The next PDU if it is here whole.
    pub(super) fn parse(&mut self) -> Result<Option<Pdu>, Ended> {
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
        whole.advance(header_bytes + ahs_bytes);
        if data_digest_bytes > 0 {
            check_digest("data", &whole[..padded], &whole[padded..])?;
        }
        whole.truncate(data_bytes);
        Ok(Some(Pdu { bhs, data: whole }))
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
            self.stream.writable().await?;
        }
        Ok(())
    }

    /// Reads and writes what the socket takes; waits until it takes something.
    ///
    /// # Cancel safety
    /// Nothing is lost when dropped: bytes move only after the await.
    pub(super) async fn progress(&mut self) -> Result<(), Ended> {
        let written = self.write_some()?;
        let mut interest = Interest::READABLE;
        if !written {
            interest = interest.add(Interest::WRITABLE);
            if self.received.len() > RECEIVED_MAX_BYTES {
                interest = Interest::WRITABLE;
            }
        }
        let ready = self.stream.ready(interest).await?;
        if ready.is_writable() && !written {
            self.write_some()?;
        }
        if ready.is_readable() {
            if self.received.capacity() - self.received.len() < RECEIVE_BYTES / 4 {
                self.received.reserve(RECEIVE_BYTES);
            }
            match self.stream.try_read_buf(&mut self.received) {
                Ok(0) => return Err(Ended::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Queues a PDU.
    pub(super) fn push(&mut self, bhs: Bhs, data: &[u8]) {
        self.push_with(bhs, data.len(), |space| space.copy_from_slice(data));
    }

    /// Queues a PDU whose data segment is filled in place.
    pub(super) fn push_with(&mut self, mut bhs: Bhs, bytes: usize, fill: impl FnOnce(&mut [u8])) {
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

    /// How many bytes wait to be written.
    pub(super) fn due(&self) -> usize {
        self.outgoing.len() - self.sent
    }

    /// Writes without waiting; true if nothing is due.
    pub(super) fn write_some(&mut self) -> Result<bool, Ended> {
        while self.sent < self.outgoing.len() {
            match self.stream.try_write(&self.outgoing[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Ok(true)
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
