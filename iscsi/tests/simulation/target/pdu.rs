//! PDUs as the model target reads and writes them: places of fields, opcodes, digests.
//!
//! Source: RFC 7143 §11. Written from the standard once more, and not with `iscsi::wire`: a wrong number there must
//! meet a right one here.

/// A basic header segment.
pub(super) type Header = [u8; 48];

/// One PDU from the initiator.
#[derive(Debug)]
pub(super) struct Pdu {
    pub(super) header: Header,
    pub(super) data: Vec<u8>,
}

/// Which digests a connection uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Digests {
    pub(super) header: bool,
    pub(super) data: bool,
}

impl Pdu {
    /// Takes one whole PDU from the front of the bytes.
    ///
    /// # Errors
    /// A digest is wrong.
    pub(super) fn take(bytes: &mut Vec<u8>, digests: Digests) -> Result<Option<Self>, String> {
        let Some(header) = bytes.first_chunk::<48>().copied() else {
            return Ok(None);
        };
        let ahs = usize::from(header[4]) * 4;
        let length = usize::try_from(word(&header, 4) & 0x00ff_ffff).expect("24 bits");
        let head = 48 + ahs;
        let after_head = head + if digests.header { 4 } else { 0 };
        let padded = length.next_multiple_of(4);
        let has_data_digest = digests.data && length > 0;
        let whole = after_head + padded + if has_data_digest { 4 } else { 0 };
        if bytes.len() < whole {
            return Ok(None);
        }
        if digests.header && !is_digest(&bytes[..head], &bytes[head..after_head]) {
            return Err("a header digest is wrong".to_owned());
        }
        let body = &bytes[after_head..after_head + padded];
        if has_data_digest && !is_digest(body, &bytes[after_head + padded..whole]) {
            return Err("a data digest is wrong".to_owned());
        }
        let data = body[..length].to_vec();
        bytes.drain(..whole);
        Ok(Some(Self { header, data }))
    }

    pub(super) fn opcode(&self) -> u8 {
        self.header[0] & 0x3f
    }

    pub(super) fn is_immediate(&self) -> bool {
        self.header[0] & 0x40 != 0
    }

    pub(super) fn is_final(&self) -> bool {
        self.header[1] & FINAL != 0
    }

    pub(super) fn word(&self, at: usize) -> u32 {
        word(&self.header, at)
    }

    pub(super) fn itt(&self) -> u32 {
        self.word(16)
    }

    /// The logical unit of the first level, in any of its two spellings.
    pub(super) fn lun(&self) -> u16 {
        u16::from_be_bytes([self.header[8] & 0x3f, self.header[9]])
    }
}

/// The bytes of a PDU on the wire.
pub(super) fn emit(mut header: Header, data: &[u8], digests: Digests) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("segments are short");
    header[5..8].copy_from_slice(&length.to_be_bytes()[1..]);
    let mut bytes = header.to_vec();
    if digests.header {
        bytes.extend(crc32c::crc32c(&header).to_le_bytes());
    }
    if !data.is_empty() {
        let start = bytes.len();
        bytes.extend_from_slice(data);
        bytes.resize(start + data.len().next_multiple_of(4), 0);
        if digests.data {
            let digest = crc32c::crc32c(&bytes[start..]);
            bytes.extend(digest.to_le_bytes());
        }
    }
    bytes
}

/// A header of the target's: final, with the tag of the task.
pub(super) fn header(opcode: u8, itt: u32) -> Header {
    let mut header = [0; 48];
    header[0] = opcode;
    header[1] = FINAL;
    set(&mut header, 16, itt);
    header
}

pub(super) fn word(header: &Header, at: usize) -> u32 {
    let [a, b, c, d, ..] = header[at..] else {
        panic!("a field lies within the header");
    };
    u32::from_be_bytes([a, b, c, d])
}

pub(super) fn set(header: &mut Header, at: usize, value: u32) {
    header[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// RFC 7143 §13.1: the digest goes out with its least significant byte first.
fn is_digest(bytes: &[u8], digest: &[u8]) -> bool {
    crc32c::crc32c(bytes).to_le_bytes() == digest
}

pub(super) const FINAL: u8 = 0x80;
pub(super) const NO_TAG: u32 = 0xffff_ffff;

/// RFC 7143 §11.2.1.2.
pub(super) mod op {
    pub(in super::super) const NOP_OUT: u8 = 0x00;
    pub(in super::super) const COMMAND: u8 = 0x01;
    pub(in super::super) const TASK_MANAGEMENT: u8 = 0x02;
    pub(in super::super) const LOGIN: u8 = 0x03;
    pub(in super::super) const TEXT: u8 = 0x04;
    pub(in super::super) const DATA_OUT: u8 = 0x05;
    pub(in super::super) const LOGOUT: u8 = 0x06;
    pub(in super::super) const NOP_IN: u8 = 0x20;
    pub(in super::super) const RESPONSE: u8 = 0x21;
    pub(in super::super) const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    pub(in super::super) const LOGIN_RESPONSE: u8 = 0x23;
    pub(in super::super) const DATA_IN: u8 = 0x25;
    pub(in super::super) const LOGOUT_RESPONSE: u8 = 0x26;
    pub(in super::super) const R2T: u8 = 0x31;
    pub(in super::super) const ASYNC: u8 = 0x32;
    pub(in super::super) const REJECT: u8 = 0x3f;
}
