//! A PDU: its 48 bytes, where their fields lie, and its bytes on the wire.
//!
//! Source: RFC 7143 §11 (all layouts), §11.2.1.2 (opcodes), §13.1 (digests). Written from the standard and not shared
//! with the initiator, so that a wrong number there meets a right one here.
//!
//! Does not read or write sockets (`link`, `script`), nor number answers (`session`); `compose` makes PDUs.

use std::fmt;

use bytes::Bytes;

/// A basic header segment.
pub type Bhs = [u8; BHS_BYTES];

/// A PDU of either side. `DataSegmentLength` and `TotalAHSLength` are made from what it holds when it is sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Pdu {
    /// The basic header segment.
    pub bhs: Bhs,
    /// Additional header segments; multiples of four bytes.
    pub ahs: Bytes,
    /// The data segment without its padding.
    pub data: Bytes,
}

impl Pdu {
    /// A PDU of header and data.
    pub fn new(bhs: Bhs, data: impl Into<Bytes>) -> Self {
        Self {
            bhs,
            ahs: Bytes::new(),
            data: data.into(),
        }
    }

    /// Writes a big-endian word (`at` names the places).
    #[must_use]
    pub fn with(mut self, at: usize, value: u32) -> Self {
        set_word(&mut self.bhs, at, value);
        self
    }

    /// Writes one byte of the header.
    #[must_use]
    pub fn with_byte(mut self, at: usize, value: u8) -> Self {
        self.bhs[at] = value;
        self
    }

    /// Another data segment.
    #[must_use]
    pub fn with_data(mut self, data: impl Into<Bytes>) -> Self {
        self.data = data.into();
        self
    }

    /// Additional header segments.
    #[must_use]
    pub fn with_ahs(mut self, ahs: impl Into<Bytes>) -> Self {
        self.ahs = ahs.into();
        self
    }

    /// The eight bytes of a LUN.
    #[must_use]
    pub fn with_lun(mut self, lun: [u8; 8]) -> Self {
        self.bhs[8..16].copy_from_slice(&lun);
        self
    }

    /// The opcode without the immediate bit; `op` names them.
    pub fn opcode(&self) -> u8 {
        self.bhs[0] & 0x3f
    }

    /// The I bit.
    pub fn immediate(&self) -> bool {
        self.bhs[0] & 0x40 != 0
    }

    /// The second byte.
    pub fn flags(&self) -> u8 {
        self.bhs[1]
    }

    /// The F bit (T of a login).
    pub fn is_final(&self) -> bool {
        self.bhs[1] & FINAL != 0
    }

    /// Initiator task tag.
    pub fn itt(&self) -> u32 {
        self.word(at::ITT)
    }

    /// Target transfer tag.
    pub fn ttt(&self) -> u32 {
        self.word(at::TTT)
    }

    /// Expected data transfer length of a SCSI command.
    pub fn expected(&self) -> u32 {
        self.word(at::TTT)
    }

    /// `CmdSN` of an initiator's PDU.
    pub fn cmd_sn(&self) -> u32 {
        self.word(at::CMD_SN)
    }

    /// `ExpStatSN` of an initiator's PDU.
    pub fn exp_stat_sn(&self) -> u32 {
        self.word(at::EXP_STAT_SN)
    }

    /// `StatSN` of a target's PDU.
    pub fn stat_sn(&self) -> u32 {
        self.word(at::STAT_SN)
    }

    /// `ExpCmdSN` of a target's PDU.
    pub fn exp_cmd_sn(&self) -> u32 {
        self.word(at::EXP_CMD_SN)
    }

    /// `MaxCmdSN` of a target's PDU.
    pub fn max_cmd_sn(&self) -> u32 {
        self.word(at::MAX_CMD_SN)
    }

    /// `DataSN`, `R2TSN` or `ExpDataSN`.
    pub fn data_sn(&self) -> u32 {
        self.word(at::DATA_SN)
    }

    /// Buffer offset of Data-In, Data-Out and R2T.
    pub fn offset(&self) -> u32 {
        self.word(at::OFFSET)
    }

    /// Desired length of an R2T, residual count of Data-In and response.
    pub fn desired(&self) -> u32 {
        self.word(at::LENGTH)
    }

    /// A big-endian word of the header.
    pub fn word(&self, at: usize) -> u32 {
        word(&self.bhs, at)
    }

    /// The LUN as its eight bytes.
    pub fn lun_bytes(&self) -> [u8; 8] {
        let mut lun = [0; 8];
        lun.copy_from_slice(&self.bhs[8..16]);
        lun
    }

    /// The LUN as a number; `None` for an address method that this target does not use.
    pub fn lun(&self) -> Option<u16> {
        lun_number(self.lun_bytes())
    }

    /// The sixteen bytes of CDB in a SCSI command's header.
    pub fn cdb(&self) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&self.bhs[32..48]);
        cdb
    }

    /// The six bytes of ISID of a login.
    pub fn isid(&self) -> [u8; 6] {
        let mut isid = [0; 6];
        isid.copy_from_slice(&self.bhs[8..14]);
        isid
    }

    /// TSIH of a login.
    pub fn tsih(&self) -> u16 {
        u16::from_be_bytes([self.bhs[14], self.bhs[15]])
    }

    /// CID of a login or logout request.
    pub fn cid(&self) -> u16 {
        u16::from_be_bytes([self.bhs[20], self.bhs[21]])
    }

    /// Current and next stage of a login.
    pub fn stages(&self) -> (u8, u8) {
        (self.bhs[1] >> 2 & 3, self.bhs[1] & 3)
    }

    /// Status class and detail of a login response.
    pub fn login_status(&self) -> (u8, u8) {
        (self.bhs[36], self.bhs[37])
    }

    /// The text keys of the data segment, in order; what is no pair comes with an empty value.
    pub fn keys(&self) -> Vec<(String, String)> {
        self.data
            .split(|byte| *byte == 0)
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let pair = String::from_utf8_lossy(pair);
                let (key, value) = pair.split_once('=').unwrap_or((&pair, ""));
                (key.to_owned(), value.to_owned())
            })
            .collect()
    }

    /// The value of a text key.
    pub fn key(&self, name: &str) -> Option<String> {
        let found = self.keys().into_iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value)
    }

    /// The bytes on the wire, with digests where they are agreed upon.
    ///
    /// # Panics
    /// If a segment is longer than its field can say.
    pub fn encode(&self, header_digest: bool, data_digest: bool) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BHS_BYTES + self.data.len() + 12);
        bytes.extend(self.bhs);
        bytes[4] = u8::try_from(self.ahs.len() / 4).expect("AHS fit their length field");
        let length = u32::try_from(self.data.len()).expect("a data segment is below 2^24");
        bytes[5..8].copy_from_slice(&length.to_be_bytes()[1..]);
        bytes.extend(&self.ahs);
        if header_digest {
            bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        }
        let start = bytes.len();
        bytes.extend(&self.data);
        bytes.resize(start + self.data.len().next_multiple_of(4), 0);
        if data_digest && !self.data.is_empty() {
            // RFC 7143 §13.1: the padding is under the digest.
            bytes.extend(crc32c::crc32c(&bytes[start..]).to_le_bytes());
        }
        bytes
    }
}

impl fmt::Debug for Pdu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} flags {:#04x} itt {:#x} ttt {:#x} sn {} exp {} max {} word36 {:#x} offset {} length {} data {}",
            op::name(self.opcode()),
            self.flags(),
            self.itt(),
            self.ttt(),
            self.word(24),
            self.word(28),
            self.word(32),
            self.word(36),
            self.word(40),
            self.word(44),
            self.data.len(),
        )
    }
}

/// Big-endian word of a header.
pub(super) fn word(bhs: &Bhs, at: usize) -> u32 {
    u32::from_be_bytes([bhs[at], bhs[at + 1], bhs[at + 2], bhs[at + 3]])
}

/// Writes a big-endian word.
pub(super) fn set_word(bhs: &mut Bhs, at: usize, value: u32) {
    bhs[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// A header with its opcode, the final bit and the task's tag.
pub(super) fn header(opcode: u8, itt: u32) -> Bhs {
    let mut bhs = [0; BHS_BYTES];
    bhs[0] = opcode;
    bhs[1] = FINAL;
    set_word(&mut bhs, at::ITT, itt);
    bhs
}

/// SAM-5 4.7: the eight bytes of a LUN as a number; `None` for what this target does not use.
pub fn lun_number(lun: [u8; 8]) -> Option<u16> {
    let low = u16::from_be_bytes([lun[0], lun[1]]);
    match lun[0] >> 6 {
        // Peripheral addressing; initiators that put a number above 255 here are understood as they mean it.
        0 => Some(low),
        // Flat space addressing.
        1 => Some(low & 0x3fff),
        _ => None,
    }
}

/// The eight bytes of a LUN: peripheral addressing up to 255, flat space addressing above.
pub fn lun_bytes(lun: u16) -> [u8; 8] {
    let mut bytes = [0; 8];
    let number = if lun < 256 { lun } else { lun | 0x4000 };
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// Whether `a` is later than `b`. RFC 1982, as RFC 7143 §4.2.2 wants it.
pub(super) fn later(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 0x8000_0000
}

pub(super) const BHS_BYTES: usize = 48;
/// F, and T of a login.
pub const FINAL: u8 = 0x80;
/// C of a login or text.
pub const CONTINUE: u8 = 0x40;
/// A tag that names nothing.
pub const NO_TAG: u32 = 0xffff_ffff;

/// Where the words of a header lie; some have two names.
pub mod at {
    /// Initiator task tag.
    pub const ITT: usize = 16;
    /// Target transfer tag; expected data transfer length of a command; referenced task tag of a task management.
    pub const TTT: usize = 20;
    /// `CmdSN`, initiator.
    pub const CMD_SN: usize = 24;
    /// `StatSN`, target.
    pub const STAT_SN: usize = 24;
    /// `ExpStatSN`, initiator.
    pub const EXP_STAT_SN: usize = 28;
    /// `ExpCmdSN`, target.
    pub const EXP_CMD_SN: usize = 28;
    /// `MaxCmdSN`, target; `RefCmdSN` of a task management.
    pub const MAX_CMD_SN: usize = 32;
    /// `DataSN`, `R2TSN`, `ExpDataSN`.
    pub const DATA_SN: usize = 36;
    /// Buffer offset.
    pub const OFFSET: usize = 40;
    /// Desired data transfer length; residual count.
    pub const LENGTH: usize = 44;
}

/// Opcodes.
pub mod op {
    /// NOP-Out.
    pub const NOP_OUT: u8 = 0x00;
    /// SCSI Command.
    pub const SCSI_COMMAND: u8 = 0x01;
    /// Task Management Function Request.
    pub const TASK_MANAGEMENT: u8 = 0x02;
    /// Login Request.
    pub const LOGIN: u8 = 0x03;
    /// Text Request.
    pub const TEXT: u8 = 0x04;
    /// SCSI Data-Out.
    pub const DATA_OUT: u8 = 0x05;
    /// Logout Request.
    pub const LOGOUT: u8 = 0x06;
    /// SNACK Request.
    pub const SNACK: u8 = 0x10;
    /// NOP-In.
    pub const NOP_IN: u8 = 0x20;
    /// SCSI Response.
    pub const SCSI_RESPONSE: u8 = 0x21;
    /// Task Management Function Response.
    pub const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    /// Login Response.
    pub const LOGIN_RESPONSE: u8 = 0x23;
    /// Text Response.
    pub const TEXT_RESPONSE: u8 = 0x24;
    /// SCSI Data-In.
    pub const DATA_IN: u8 = 0x25;
    /// Logout Response.
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    /// Ready To Transfer.
    pub const R2T: u8 = 0x31;
    /// Asynchronous Message.
    pub const ASYNC: u8 = 0x32;
    /// Reject.
    pub const REJECT: u8 = 0x3f;

    pub(super) fn name(opcode: u8) -> &'static str {
        match opcode {
            NOP_OUT => "NOP-Out",
            SCSI_COMMAND => "SCSI Command",
            TASK_MANAGEMENT => "Task Management",
            LOGIN => "Login",
            TEXT => "Text",
            DATA_OUT => "Data-Out",
            LOGOUT => "Logout",
            SNACK => "SNACK",
            NOP_IN => "NOP-In",
            SCSI_RESPONSE => "SCSI Response",
            TASK_MANAGEMENT_RESPONSE => "Task Management Response",
            LOGIN_RESPONSE => "Login Response",
            TEXT_RESPONSE => "Text Response",
            DATA_IN => "Data-In",
            LOGOUT_RESPONSE => "Logout Response",
            R2T => "R2T",
            ASYNC => "Async",
            REJECT => "Reject",
            _ => "unknown opcode",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn luns_survive_a_round_trip_and_serials_wrap() {
        for lun in [0, 1, 255, 256, 0x3fff] {
            assert_eq!(lun_number(lun_bytes(lun)), Some(lun));
        }
        assert_eq!(lun_number([0x80, 0, 0, 0, 0, 0, 0, 0]), None);
        assert!(later(0, 0xffff_ffff) && !later(0xffff_ffff, 0) && !later(5, 5));
    }

    #[test]
    fn encoded_pdu_has_its_lengths_padding_and_digests() {
        let pdu = Pdu::new(header(op::NOP_IN, 7), &b"abcde"[..]);
        let plain = pdu.encode(false, false);
        assert_eq!((plain.len(), &plain[4..8]), (56, &[0, 0, 0, 5][..]));
        let digested = pdu.with_ahs(vec![0; 4]).encode(true, true);
        assert_eq!(digested.len(), 48 + 4 + 4 + 8 + 4);
        assert_eq!(digested[4], 1);
        // RFC 7143 appendix A.4 (CRC examples): 32 bytes of zeroes have the digest aa 36 91 8a.
        assert_eq!(
            crc32c::crc32c(&[0; 32]).to_le_bytes(),
            [0xaa, 0x36, 0x91, 0x8a]
        );
    }
}
