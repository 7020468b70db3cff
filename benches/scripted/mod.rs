//! The least of an iSCSI target that a driver takes for one: bytes in, bytes out, no socket, no clock, no disk.
//!
//! For benches that count instructions: its share is small and always the same, and when it answers is the bench's
//! choice. Reads give zeroes, writes go nowhere; a write's data must all be immediate. What is not a read, a write or
//! one of the questions of a login is refused.
//!
//! Source: RFC 7143 §11, SPC-4 and SBC-4 for the answers; constants of their own, as everywhere in tests.

pub(crate) mod driver;
pub(crate) mod lane;

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use iscsi::io::{Network, Stream};
use iscsi::proto::Portal;

/// Blocks of 512 bytes on the one logical unit.
const BLOCKS: u64 = 1 << 21;
/// The commands that may be in flight.
const WINDOW: u32 = 128;
const HEADER: usize = 48;

/// A connection's target.
#[derive(Debug, Default)]
pub(crate) struct Target {
    inbox: Vec<u8>,
    stat_sn: u32,
    exp_cmd_sn: u32,
    /// Of the initiator: the longest data segment that it takes.
    segment_bytes_max: usize,
    /// Answers to reads and writes, kept back until so many are there.
    pub(crate) burst: usize,
    held: usize,
    held_bytes: Vec<u8>,
}

impl Target {
    pub(crate) fn new(burst: usize) -> Self {
        Self {
            segment_bytes_max: 8192,
            burst,
            ..Self::default()
        }
    }

    /// Takes what the initiator sent, cut anywhere; appends what is to be answered.
    pub(crate) fn handle(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut inbox = std::mem::take(&mut self.inbox);
        inbox.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(header) = inbox[at..].first_chunk::<HEADER>() {
            let data_bytes = number(&header[5..8]);
            let whole = HEADER + data_bytes.next_multiple_of(4);
            let Some(pdu) = inbox[at..].get(..whole) else {
                break;
            };
            self.handle_pdu(header, &pdu[HEADER..HEADER + data_bytes], out);
            at += whole;
        }
        inbox.drain(..at);
        self.inbox = inbox;
    }

    fn handle_pdu(&mut self, header: &[u8; HEADER], data: &[u8], out: &mut Vec<u8>) {
        // I, the bit of immediate delivery, is not part of the opcode
        match header[0] & 0x3F {
            0x00 => self.answer(0x20, header, out),
            0x01 => {
                self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
                self.handle_command(header, out);
            }
            0x03 => self.handle_login(header, data, out),
            0x06 => self.answer(0x26, header, out),
            opcode => panic!("the bench's target knows no opcode {opcode:#x}"),
        }
    }

    fn handle_login(&mut self, header: &[u8; HEADER], data: &[u8], out: &mut Vec<u8>) {
        self.exp_cmd_sn = u32::from_be_bytes(part(header, 24));
        let mut keys = Vec::new();
        for pair in data
            .split(|byte| *byte == 0)
            .filter(|pair| !pair.is_empty())
        {
            let pair = String::from_utf8_lossy(pair);
            let (key, value) = pair.split_once('=').expect("a pair");
            let answer = match key {
                "InitiatorName" | "InitiatorAlias" | "TargetName" | "SessionType" => continue,
                "MaxRecvDataSegmentLength" => {
                    self.segment_bytes_max = value.parse().expect("a length");
                    "262144"
                }
                "AuthMethod" | "HeaderDigest" | "DataDigest" => "None",
                "InitialR2T" => "No",
                "MaxConnections" => "1",
                _ => value,
            };
            keys.extend_from_slice(format!("{key}={answer}\0").as_bytes());
        }
        // security negotiation comes first, and in it the portal group is named
        if header[1] & 0x0C == 0 {
            keys.extend_from_slice(b"TargetPortalGroupTag=1\0");
        }
        let mut answer = self.header(0x23, header);
        answer[1] = header[1];
        answer[5..8]
            .copy_from_slice(&u32::try_from(keys.len()).expect("few keys").to_be_bytes()[1..]);
        answer[8..14].copy_from_slice(&header[8..14]);
        answer[15] = 1; // TSIH
        out.extend_from_slice(&answer);
        keys.resize(keys.len().next_multiple_of(4), 0);
        out.extend_from_slice(&keys);
    }

    fn handle_command(&mut self, header: &[u8; HEADER], out: &mut Vec<u8>) {
        let expected = number(&header[20..24]);
        let (opcode, service) = (header[32], header[33] & 0x1F);
        match opcode {
            0x88 | 0x8A => {
                let mut held = std::mem::take(&mut self.held_bytes);
                if opcode == 0x88 {
                    self.data_in(header, None, expected, &mut held);
                } else {
                    self.answer(0x21, header, &mut held);
                }
                self.held_bytes = held;
                self.held += 1;
                if self.held >= self.burst {
                    out.append(&mut self.held_bytes);
                    self.held = 0;
                }
            }
            // TEST UNIT READY, SYNCHRONIZE CACHE
            0x00 | 0x35 | 0x91 => self.answer(0x21, header, out),
            0x12 if header[33] & 1 == 0 => self.data_in(header, Some(&inquiry()), expected, out),
            0x12 => match page(header[34]) {
                Some(page) => self.data_in(header, Some(&page), expected, out),
                None => self.refuse(header, expected, out),
            },
            // READ CAPACITY(16)
            0x9E if service == 0x10 => {
                let mut capacity = [0; 32];
                capacity[..8].copy_from_slice(&(BLOCKS - 1).to_be_bytes());
                capacity[8..12].copy_from_slice(&512_u32.to_be_bytes());
                self.data_in(header, Some(&capacity), expected, out);
            }
            _ => self.refuse(header, expected, out),
        }
    }

    /// The data, zeroes where none are given, in as many PDUs as it takes, the status with the last.
    fn data_in(
        &mut self,
        command: &[u8; HEADER],
        data: Option<&[u8]>,
        expected: usize,
        out: &mut Vec<u8>,
    ) {
        let whole = data.map_or(expected, |data| data.len().min(expected));
        let (mut offset, mut data_sn) = (0, 0_u32);
        loop {
            let bytes = (whole - offset).min(self.segment_bytes_max);
            let is_last = offset + bytes == whole;
            let mut header = if is_last {
                self.header(0x25, command)
            } else {
                self.numbers(0x25, command)
            };
            if is_last {
                let is_short = whole < expected;
                // F, S, and U where less came than was expected
                header[1] = 0x81 | if is_short { 0x02 } else { 0 };
                header[44..48].copy_from_slice(&word(expected - whole));
            }
            header[5..8].copy_from_slice(&word(bytes)[1..]);
            header[20..24].fill(0xFF);
            header[36..40].copy_from_slice(&data_sn.to_be_bytes());
            header[40..44].copy_from_slice(&word(offset));
            out.extend_from_slice(&header);
            match data {
                Some(data) => out.extend_from_slice(&data[offset..offset + bytes]),
                None => out.resize(out.len() + bytes, 0),
            }
            out.resize(out.len() + (bytes.next_multiple_of(4) - bytes), 0);
            (offset, data_sn) = (offset + bytes, data_sn + 1);
            if is_last {
                return;
            }
        }
    }

    /// CHECK CONDITION: ILLEGAL REQUEST, invalid command operation code.
    fn refuse(&mut self, command: &[u8; HEADER], expected: usize, out: &mut Vec<u8>) {
        let mut header = self.header(0x21, command);
        header[3] = 0x02;
        if expected > 0 {
            header[1] |= 0x02;
            header[44..48].copy_from_slice(&word(expected));
        }
        header[7] = 20;
        out.extend_from_slice(&header);
        let mut sense = [0; 20];
        (sense[1], sense[2], sense[4], sense[9], sense[14]) = (18, 0x70, 0x05, 10, 0x20);
        out.extend_from_slice(&sense);
    }

    /// A PDU of a header alone that says "done".
    fn answer(&mut self, opcode: u8, to: &[u8; HEADER], out: &mut Vec<u8>) {
        let mut header = self.header(opcode, to);
        if opcode == 0x20 {
            header[20..24].fill(0xFF);
        }
        out.extend_from_slice(&header);
    }

    /// One that carries a status, and so a number of its own.
    fn header(&mut self, opcode: u8, to: &[u8; HEADER]) -> [u8; HEADER] {
        let mut header = self.numbers(opcode, to);
        header[1] = 0x80;
        header[24..28].copy_from_slice(&self.stat_sn.to_be_bytes());
        self.stat_sn = self.stat_sn.wrapping_add(1);
        header
    }

    fn numbers(&self, opcode: u8, to: &[u8; HEADER]) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[0] = opcode;
        header[16..20].copy_from_slice(&to[16..20]);
        header[28..32].copy_from_slice(&self.exp_cmd_sn.to_be_bytes());
        let last = self.exp_cmd_sn.wrapping_add(WINDOW - 1);
        header[32..36].copy_from_slice(&last.to_be_bytes());
        header
    }
}

/// Standard INQUIRY data: a disk by SPC-4.
fn inquiry() -> [u8; 36] {
    let mut data = [b' '; 36];
    data[..8].copy_from_slice(&[0, 0, 6, 2, 31, 0, 0, 2]);
    data[8..12].copy_from_slice(b"TEST");
    data
}

/// Vital product data: which there are, the serial number, a name.
fn page(code: u8) -> Option<Vec<u8>> {
    let body: &[u8] = match code {
        0x00 => &[0x00, 0x80, 0x83],
        0x80 => b"scripted",
        // binary, NAA, 8 bytes
        0x83 => &[0x01, 0x03, 0, 8, 0x60, 1, 2, 3, 4, 5, 6, 7],
        _ => return None,
    };
    let mut page = vec![0, code, 0, u8::try_from(body.len()).expect("short")];
    page.extend_from_slice(body);
    Some(page)
}

/// A big-endian number of up to four bytes.
fn number(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | usize::from(*byte))
}

fn part(header: &[u8; HEADER], at: usize) -> [u8; 4] {
    *header[at..].first_chunk().expect("four bytes")
}

fn word(number: usize) -> [u8; 4] {
    u32::try_from(number)
        .expect("lengths are small")
        .to_be_bytes()
}

/// A network whose one connection ends in a [`Target`], in the caller's own thread and without the system.
#[derive(Clone, Debug)]
pub(crate) struct Invented {
    pub(crate) burst: usize,
}

impl Network for Invented {
    type Stream = Wire;

    async fn connect(&self, _: &Portal) -> io::Result<Wire> {
        Ok(Wire(Arc::new(Mutex::new(Ends {
            target: Target::new(self.burst),
            answers: Vec::new(),
            read: 0,
            waker: None,
        }))))
    }

    fn random(&self) -> u32 {
        1
    }
}

/// What is written is answered before the write returns.
#[derive(Debug)]
pub(crate) struct Wire(Arc<Mutex<Ends>>);

#[derive(Debug)]
struct Ends {
    target: Target,
    answers: Vec<u8>,
    /// How much of the answers was read.
    read: usize,
    waker: Option<Waker>,
}

impl Stream for Wire {
    fn poll_read_vectored(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Ends {
            answers,
            read,
            waker,
            ..
        } = &mut *ends;
        if answers.is_empty() {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let begin = *read;
        for buffer in buffers {
            let bytes = buffer.len().min(answers.len() - *read);
            buffer[..bytes].copy_from_slice(&answers[*read..*read + bytes]);
            *read += bytes;
        }
        let moved = *read - begin;
        if *read == answers.len() {
            answers.clear();
            *read = 0;
        }
        Poll::Ready(Ok(moved))
    }

    fn poll_write_vectored(
        &mut self,
        _: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Ends {
            target,
            answers,
            waker,
            ..
        } = &mut *ends;
        for buffer in buffers {
            target.handle(buffer, answers);
        }
        if !answers.is_empty()
            && let Some(waker) = waker.take()
        {
            waker.wake();
        }
        Poll::Ready(Ok(buffers.iter().map(|buffer| buffer.len()).sum()))
    }
}
