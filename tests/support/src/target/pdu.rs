//! The 48 bytes before everything: opcodes, field places and the PDUs that this target sends.
//!
//! Source: RFC 7143 §11 (all layouts), §11.2.1.2 (opcodes). Written from the standard and not shared with the
//! initiator, so that a wrong number there meets a right one here.
//!
//! Does not read or write sockets (`link`), nor number answers (`session`).

use bytes::Bytes;

/// A basic header segment.
pub(super) type Bhs = [u8; BHS_BYTES];

/// A PDU as it came in; additional header segments are skipped, since nothing here uses them.
#[derive(Clone, Debug)]
pub(super) struct Pdu {
    pub(super) bhs: Bhs,
    pub(super) data: Bytes,
}

impl Pdu {
    pub(super) fn opcode(&self) -> u8 {
        self.bhs[0] & 0x3f
    }

    pub(super) fn immediate(&self) -> bool {
        self.bhs[0] & 0x40 != 0
    }

    pub(super) fn flags(&self) -> u8 {
        self.bhs[1]
    }

    pub(super) fn is_final(&self) -> bool {
        self.bhs[1] & FINAL != 0
    }

    pub(super) fn itt(&self) -> u32 {
        self.word(16)
    }

    /// Target transfer tag of Data-Out, NOP-Out and Text; expected data transfer length of a command.
    pub(super) fn word20(&self) -> u32 {
        self.word(20)
    }

    pub(super) fn cmd_sn(&self) -> u32 {
        self.word(24)
    }

    pub(super) fn exp_stat_sn(&self) -> u32 {
        self.word(28)
    }

    pub(super) fn word(&self, at: usize) -> u32 {
        word(&self.bhs, at)
    }

    pub(super) fn lun_bytes(&self) -> [u8; 8] {
        let mut lun = [0; 8];
        lun.copy_from_slice(&self.bhs[8..16]);
        lun
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
    set_word(&mut bhs, 16, itt);
    bhs
}

/// SAM-5 4.7: the eight bytes of a LUN as a number; `None` for what this target does not use.
pub(super) fn lun_number(lun: [u8; 8]) -> Option<u16> {
    let low = u16::from_be_bytes([lun[0], lun[1]]);
    match lun[0] >> 6 {
        // Peripheral addressing; initiators that put a number above 255 here are understood as they mean it.
        0 => Some(low),
        // Flat space addressing.
        1 => Some(low & 0x3fff),
        _ => None,
    }
}

/// The eight bytes for REPORT LUNS.
pub(super) fn lun_bytes(lun: u16) -> [u8; 8] {
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
pub(super) const FINAL: u8 = 0x80;
pub(super) const CONTINUE: u8 = 0x40;
/// A tag that names nothing.
pub(super) const NO_TAG: u32 = 0xffff_ffff;

pub(super) mod op {
    pub(in super::super) const NOP_OUT: u8 = 0x00;
    pub(in super::super) const SCSI_COMMAND: u8 = 0x01;
    pub(in super::super) const TASK_MANAGEMENT: u8 = 0x02;
    pub(in super::super) const LOGIN: u8 = 0x03;
    pub(in super::super) const TEXT: u8 = 0x04;
    pub(in super::super) const DATA_OUT: u8 = 0x05;
    pub(in super::super) const LOGOUT: u8 = 0x06;
    pub(in super::super) const NOP_IN: u8 = 0x20;
    pub(in super::super) const SCSI_RESPONSE: u8 = 0x21;
    pub(in super::super) const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    pub(in super::super) const LOGIN_RESPONSE: u8 = 0x23;
    pub(in super::super) const TEXT_RESPONSE: u8 = 0x24;
    pub(in super::super) const DATA_IN: u8 = 0x25;
    pub(in super::super) const LOGOUT_RESPONSE: u8 = 0x26;
    pub(in super::super) const R2T: u8 = 0x31;
    pub(in super::super) const ASYNC: u8 = 0x32;
    pub(in super::super) const REJECT: u8 = 0x3f;
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
}
