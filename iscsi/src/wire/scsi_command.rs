//! SCSI Command.
//!
//! Source: RFC 7143 §11.3. Commands longer than 16 bytes (AHS) are not spoken here.

use super::header::{self, Bhs, FINAL, Opcode, bit, field, flag, put_u32, put_u64, u32_at, u64_at};
use super::serial::{CmdSn, StatSn};
use super::tag::InitiatorTaskTag;

/// SCSI Command header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiCommand {
    /// For immediate delivery.
    pub immediate: bool,
    /// F: no unsolicited Data-Out follows.
    pub is_final: bool,
    /// R: the target sends data.
    pub read: bool,
    /// W: the initiator sends data.
    pub write: bool,
    /// Task attribute, 0..8.
    pub attribute: TaskAttribute,
    /// The addressed logical unit, a SAM address.
    pub lun: u64,
    /// Names the task.
    pub initiator_task_tag: InitiatorTaskTag,
    /// Bytes the CDB moves in its direction.
    pub expected_data_transfer_bytes: u32,
    /// Command number.
    pub cmd_sn: CmdSn,
    /// The next status number we expect.
    pub exp_stat_sn: StatSn,
    /// The command descriptor block, padded with zeroes.
    pub cdb: [u8; 16],
}

/// Task attribute; an open registry of three bits (RFC 7143 §11.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskAttribute(pub u8);

impl TaskAttribute {
    /// Untagged.
    pub const UNTAGGED: Self = Self(0);
    /// SIMPLE.
    pub const SIMPLE: Self = Self(1);
    /// ORDERED.
    pub const ORDERED: Self = Self(2);
    /// HEAD OF QUEUE.
    pub const HEAD_OF_QUEUE: Self = Self(3);
    /// ACA.
    pub const ACA: Self = Self(4);
}

const READ: u8 = 0x40;
const WRITE: u8 = 0x20;
const ATTRIBUTE_MASK: u8 = 0x07;

impl ScsiCommand {
    /// Reads the header.
    pub fn parse(bhs: &Bhs) -> Self {
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&bhs[field::CDB]);
        Self {
            immediate: header::is_immediate(bhs),
            is_final: flag(bhs[1], FINAL),
            read: flag(bhs[1], READ),
            write: flag(bhs[1], WRITE),
            attribute: TaskAttribute(bhs[1] & ATTRIBUTE_MASK),
            lun: u64_at(bhs, field::LUN),
            initiator_task_tag: InitiatorTaskTag(u32_at(bhs, field::INITIATOR_TASK_TAG)),
            expected_data_transfer_bytes: u32_at(bhs, field::WORD_20),
            cmd_sn: CmdSn(u32_at(bhs, field::WORD_24)),
            exp_stat_sn: StatSn(u32_at(bhs, field::WORD_28)),
            cdb,
        }
    }

    /// Writes the header; the data segment's length is left 0.
    pub fn emit(&self) -> Bhs {
        let mut bhs = header::new(Opcode::SCSI_COMMAND, self.immediate);
        bhs[1] = bit(self.is_final, FINAL)
            | bit(self.read, READ)
            | bit(self.write, WRITE)
            | (self.attribute.0 & ATTRIBUTE_MASK);
        put_u64(&mut bhs, field::LUN, self.lun);
        put_u32(
            &mut bhs,
            field::INITIATOR_TASK_TAG,
            self.initiator_task_tag.0,
        );
        put_u32(&mut bhs, field::WORD_20, self.expected_data_transfer_bytes);
        put_u32(&mut bhs, field::WORD_24, self.cmd_sn.0);
        put_u32(&mut bhs, field::WORD_28, self.exp_stat_sn.0);
        bhs[field::CDB].copy_from_slice(&self.cdb);
        bhs
    }
}
