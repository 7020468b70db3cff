//! NOP-Out and NOP-In: pings both ways.
//!
//! Source: RFC 7143 §11.18, §11.19.

use super::header::{self, Bhs, Opcode, ResponseNumbers, field, put_u32, put_u64, u32_at, u64_at};
use super::serial::{CmdSn, StatSn};
use super::tag::{InitiatorTaskTag, TargetTransferTag};

/// NOP-Out: our ping, or our answer to the target's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NopOut {
    /// For immediate delivery.
    pub immediate: bool,
    /// The LUN of the NOP-In that is answered; else 0.
    pub lun: u64,
    /// Reserved value: no answer is wanted.
    pub initiator_task_tag: InitiatorTaskTag,
    /// Echoed from a NOP-In that is answered; else the reserved value.
    pub target_transfer_tag: TargetTransferTag,
    /// Command number; not consumed by an immediate PDU.
    pub cmd_sn: CmdSn,
    /// The next status number we expect.
    pub exp_stat_sn: StatSn,
}

impl NopOut {
    /// Reads the header.
    pub fn parse(bhs: &Bhs) -> Self {
        Self {
            immediate: header::is_immediate(bhs),
            lun: u64_at(bhs, field::LUN),
            initiator_task_tag: InitiatorTaskTag(u32_at(bhs, field::INITIATOR_TASK_TAG)),
            target_transfer_tag: TargetTransferTag(u32_at(bhs, field::WORD_20)),
            cmd_sn: CmdSn(u32_at(bhs, field::WORD_24)),
            exp_stat_sn: StatSn(u32_at(bhs, field::WORD_28)),
        }
    }

    /// Writes the header; the data segment's length is left 0.
    pub fn emit(&self) -> Bhs {
        let mut bhs = header::new(Opcode::NOP_OUT, self.immediate);
        bhs[1] = header::FINAL;
        put_u64(&mut bhs, field::LUN, self.lun);
        put_u32(
            &mut bhs,
            field::INITIATOR_TASK_TAG,
            self.initiator_task_tag.0,
        );
        put_u32(&mut bhs, field::WORD_20, self.target_transfer_tag.0);
        put_u32(&mut bhs, field::WORD_24, self.cmd_sn.0);
        put_u32(&mut bhs, field::WORD_28, self.exp_stat_sn.0);
        bhs
    }
}

/// NOP-In: the target's ping, or its answer to ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NopIn {
    /// To be echoed with the transfer tag.
    pub lun: u64,
    /// The tag of our ping; the reserved value in the target's own.
    pub initiator_task_tag: InitiatorTaskTag,
    /// Not the reserved value: the target wants an answer.
    pub target_transfer_tag: TargetTransferTag,
    /// Numbers; `StatSN` counts only where `initiator_task_tag` names our ping.
    pub numbers: ResponseNumbers,
}

impl NopIn {
    /// Reads the header.
    pub fn parse(bhs: &Bhs) -> Self {
        Self {
            lun: u64_at(bhs, field::LUN),
            initiator_task_tag: InitiatorTaskTag(u32_at(bhs, field::INITIATOR_TASK_TAG)),
            target_transfer_tag: TargetTransferTag(u32_at(bhs, field::WORD_20)),
            numbers: ResponseNumbers::parse(bhs),
        }
    }

    /// Writes the header; the data segment's length is left 0.
    pub fn emit(&self) -> Bhs {
        let mut bhs = header::new(Opcode::NOP_IN, false);
        bhs[1] = header::FINAL;
        put_u64(&mut bhs, field::LUN, self.lun);
        put_u32(
            &mut bhs,
            field::INITIATOR_TASK_TAG,
            self.initiator_task_tag.0,
        );
        put_u32(&mut bhs, field::WORD_20, self.target_transfer_tag.0);
        self.numbers.emit(&mut bhs);
        bhs
    }
}
