//! The basic header segment: what all PDUs share, and where each field stands.
//!
//! Source: RFC 7143 §11.2.1.
//!
//! ```text
//!  0        1        2        3        4        5        6        7
//! .I opcode  specific fields            AHS words  data segment length
//!  8 ........................ 15  16 ........ 19  20 ................ 47
//!  LUN or specific                 ITT             specific
//! ```

use std::ops::Range;

use super::serial::{CmdSn, StatSn};

/// Size of the basic header segment.
pub const BHS_BYTES: usize = 48;

/// A basic header segment as it stands on the wire, big-endian.
pub type Bhs = [u8; BHS_BYTES];

/// Largest data segment that the 24-bit field can name.
pub const DATA_SEGMENT_BYTES_MAX: u32 = (1 << 24) - 1;

/// Named byte ranges of the basic header segment, half-open.
pub(crate) mod field {
    use std::ops::Range;

    pub(crate) const LUN: Range<usize> = 8..16;
    pub(crate) const ISID: Range<usize> = 8..14;
    pub(crate) const TSIH: Range<usize> = 14..16;
    pub(crate) const INITIATOR_TASK_TAG: Range<usize> = 16..20;
    /// Also: connection id (login, logout), expected data transfer length, referenced task tag.
    pub(crate) const WORD_20: Range<usize> = 20..24;
    /// `CmdSN` of requests, `StatSN` of responses.
    pub(crate) const WORD_24: Range<usize> = 24..28;
    /// `ExpStatSN` of requests, `ExpCmdSN` of responses.
    pub(crate) const WORD_28: Range<usize> = 28..32;
    /// `MaxCmdSN` of responses; specific in requests.
    pub(crate) const WORD_32: Range<usize> = 32..36;
    pub(crate) const WORD_36: Range<usize> = 36..40;
    pub(crate) const WORD_40: Range<usize> = 40..44;
    pub(crate) const WORD_44: Range<usize> = 44..48;
    pub(crate) const CDB: Range<usize> = 32..48;
}

/// Bit 7 of byte 1: F (final), also T (transit) in login.
pub(crate) const FINAL: u8 = 0x80;
/// Bit 6 of byte 1: C (continue) in login and text.
pub(crate) const CONTINUE: u8 = 0x40;

/// Bit 6 of byte 0: the PDU is for immediate delivery.
const IMMEDIATE: u8 = 0x40;
/// The opcode's six bits in byte 0.
const OPCODE_MASK: u8 = 0x3f;

/// An operation code; an open registry (RFC 7143 §11.2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Opcode(pub u8);

impl Opcode {
    /// NOP-Out, initiator.
    pub const NOP_OUT: Self = Self(0x00);
    /// SCSI Command, initiator.
    pub const SCSI_COMMAND: Self = Self(0x01);
    /// Task Management Function Request, initiator.
    pub const TASK_MANAGEMENT_REQUEST: Self = Self(0x02);
    /// Login Request, initiator.
    pub const LOGIN_REQUEST: Self = Self(0x03);
    /// Text Request, initiator.
    pub const TEXT_REQUEST: Self = Self(0x04);
    /// SCSI Data-Out, initiator.
    pub const DATA_OUT: Self = Self(0x05);
    /// Logout Request, initiator.
    pub const LOGOUT_REQUEST: Self = Self(0x06);
    /// NOP-In, target.
    pub const NOP_IN: Self = Self(0x20);
    /// SCSI Response, target.
    pub const SCSI_RESPONSE: Self = Self(0x21);
    /// Task Management Function Response, target.
    pub const TASK_MANAGEMENT_RESPONSE: Self = Self(0x22);
    /// Login Response, target.
    pub const LOGIN_RESPONSE: Self = Self(0x23);
    /// Text Response, target.
    pub const TEXT_RESPONSE: Self = Self(0x24);
    /// SCSI Data-In, target.
    pub const DATA_IN: Self = Self(0x25);
    /// Logout Response, target.
    pub const LOGOUT_RESPONSE: Self = Self(0x26);
    /// Ready To Transfer, target.
    pub const R2T: Self = Self(0x31);
    /// Asynchronous Message, target.
    pub const ASYNC_MESSAGE: Self = Self(0x32);
    /// Reject, target.
    pub const REJECT: Self = Self(0x3f);
}

/// The three numbers that every response carries (RFC 7143 §11.2.1, §4.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ResponseNumbers {
    /// Status number of this response, or the next one where the PDU carries no status.
    pub stat_sn: StatSn,
    /// The next command number that the target expects.
    pub exp_cmd_sn: CmdSn,
    /// The last command number that the target takes now.
    pub max_cmd_sn: CmdSn,
}

impl ResponseNumbers {
    pub(crate) fn parse(bhs: &Bhs) -> Self {
        Self {
            stat_sn: StatSn(u32_at(bhs, field::WORD_24)),
            exp_cmd_sn: CmdSn(u32_at(bhs, field::WORD_28)),
            max_cmd_sn: CmdSn(u32_at(bhs, field::WORD_32)),
        }
    }

    pub(crate) fn emit(self, bhs: &mut Bhs) {
        put_u32(bhs, field::WORD_24, self.stat_sn.0);
        put_u32(bhs, field::WORD_28, self.exp_cmd_sn.0);
        put_u32(bhs, field::WORD_32, self.max_cmd_sn.0);
    }
}

/// The opcode of a header, without the immediate bit.
pub fn opcode(bhs: &Bhs) -> Opcode {
    Opcode(bhs[0] & OPCODE_MASK)
}

/// Whether the header asks for immediate delivery.
pub fn is_immediate(bhs: &Bhs) -> bool {
    bhs[0] & IMMEDIATE != 0
}

/// Length of the additional header segments in bytes, 0..=1020, a multiple of 4.
pub fn ahs_bytes(bhs: &Bhs) -> usize {
    usize::from(bhs[4]) * 4
}

/// Length of the data segment in bytes without its padding, 0..2^24.
pub fn data_segment_bytes(bhs: &Bhs) -> u32 {
    u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]])
}

/// Writes the data segment's length; the upper eight bits of `length` are not representable and
/// are dropped.
pub fn set_data_segment_bytes(bhs: &mut Bhs, length: u32) {
    let [_, high, middle, low] = length.to_be_bytes();
    bhs[5] = high;
    bhs[6] = middle;
    bhs[7] = low;
}

/// How many zero bytes follow a data segment of `length` bytes, 0..4.
///
/// RFC 7143 §11.2.4: a data segment is padded to a whole number of four-byte words.
pub fn padding_bytes(length: u32) -> u32 {
    length.wrapping_neg() & 3
}

pub(crate) fn new(opcode: Opcode, immediate: bool) -> Bhs {
    let mut bhs = [0; BHS_BYTES];
    bhs[0] = opcode.0 | if immediate { IMMEDIATE } else { 0 };
    bhs
}

pub(crate) fn u16_at(bhs: &Bhs, at: Range<usize>) -> u16 {
    let mut bytes = [0; 2];
    bytes.copy_from_slice(&bhs[at]);
    u16::from_be_bytes(bytes)
}

pub(crate) fn u32_at(bhs: &Bhs, at: Range<usize>) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&bhs[at]);
    u32::from_be_bytes(bytes)
}

pub(crate) fn u64_at(bhs: &Bhs, at: Range<usize>) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&bhs[at]);
    u64::from_be_bytes(bytes)
}

pub(crate) fn put_u16(bhs: &mut Bhs, at: Range<usize>, value: u16) {
    bhs[at].copy_from_slice(&value.to_be_bytes());
}

pub(crate) fn put_u32(bhs: &mut Bhs, at: Range<usize>, value: u32) {
    bhs[at].copy_from_slice(&value.to_be_bytes());
}

pub(crate) fn put_u64(bhs: &mut Bhs, at: Range<usize>, value: u64) {
    bhs[at].copy_from_slice(&value.to_be_bytes());
}

pub(crate) fn flag(byte: u8, mask: u8) -> bool {
    byte & mask != 0
}

pub(crate) fn bit(set: bool, mask: u8) -> u8 {
    if set { mask } else { 0 }
}
