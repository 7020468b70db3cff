//! Text Request and Response: keys outside of login, here `SendTargets`.
//!
//! Source: RFC 7143 §11.10, §11.11.

use super::header::{
    self, Bhs, CONTINUE, FINAL, Opcode, ResponseNumbers, bit, field, flag, put_u32, put_u64,
    u32_at, u64_at,
};
use super::serial::{CmdSn, StatSn};
use super::tag::{InitiatorTaskTag, TargetTransferTag};

/// Text Request header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextRequest {
    /// For immediate delivery.
    pub immediate: bool,
    /// F: we have no more to say.
    pub is_final: bool,
    /// C: the keys go on in the next request.
    pub is_continued: bool,
    /// The LUN of the response that is answered; else 0.
    pub lun: u64,
    /// Names the exchange.
    pub initiator_task_tag: InitiatorTaskTag,
    /// Echoed from the response that is answered; the reserved value in a first request.
    pub target_transfer_tag: TargetTransferTag,
    /// Command number.
    pub cmd_sn: CmdSn,
    /// The next status number we expect.
    pub exp_stat_sn: StatSn,
}

impl TextRequest {
    /// Reads the header.
    pub fn parse(bhs: &Bhs) -> Self {
        Self {
            immediate: header::is_immediate(bhs),
            is_final: flag(bhs[1], FINAL),
            is_continued: flag(bhs[1], CONTINUE),
            lun: u64_at(bhs, field::LUN),
            initiator_task_tag: InitiatorTaskTag(u32_at(bhs, field::INITIATOR_TASK_TAG)),
            target_transfer_tag: TargetTransferTag(u32_at(bhs, field::WORD_20)),
            cmd_sn: CmdSn(u32_at(bhs, field::WORD_24)),
            exp_stat_sn: StatSn(u32_at(bhs, field::WORD_28)),
        }
    }

    /// Writes the header; the data segment's length is left 0.
    pub fn emit(&self) -> Bhs {
        let mut bhs = header::new(Opcode::TEXT_REQUEST, self.immediate);
        bhs[1] = bit(self.is_final, FINAL) | bit(self.is_continued, CONTINUE);
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

/// Text Response header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextResponse {
    /// F: the target has no more to say.
    pub is_final: bool,
    /// C: the keys go on in the next response.
    pub is_continued: bool,
    /// To be echoed with the transfer tag.
    pub lun: u64,
    /// Names the exchange.
    pub initiator_task_tag: InitiatorTaskTag,
    /// To be echoed in the next request; the reserved value ends the exchange.
    pub target_transfer_tag: TargetTransferTag,
    /// Numbers; `StatSN` counts.
    pub numbers: ResponseNumbers,
}

impl TextResponse {
    /// Reads the header.
    pub fn parse(bhs: &Bhs) -> Self {
        Self {
            is_final: flag(bhs[1], FINAL),
            is_continued: flag(bhs[1], CONTINUE),
            lun: u64_at(bhs, field::LUN),
            initiator_task_tag: InitiatorTaskTag(u32_at(bhs, field::INITIATOR_TASK_TAG)),
            target_transfer_tag: TargetTransferTag(u32_at(bhs, field::WORD_20)),
            numbers: ResponseNumbers::parse(bhs),
        }
    }

    /// Writes the header; the data segment's length is left 0.
    pub fn emit(&self) -> Bhs {
        let mut bhs = header::new(Opcode::TEXT_RESPONSE, false);
        bhs[1] = bit(self.is_final, FINAL) | bit(self.is_continued, CONTINUE);
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
