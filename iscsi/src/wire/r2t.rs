//! Ready To Transfer: the target asks for a part of a write's data.
//!
//! Source: RFC 7143 §11.8.

use super::header::{
    self, Bhs, FINAL, Opcode, ResponseNumbers, field, put_u32, put_u64, u32_at, u64_at,
};
use super::serial::R2tSn;
use super::tag::{InitiatorTaskTag, TargetTransferTag};

/// R2T header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct R2t {
    /// To be echoed in the Data-Out.
    pub lun: u64,
    /// Names the task.
    pub initiator_task_tag: InitiatorTaskTag,
    /// To be echoed in the Data-Out.
    pub target_transfer_tag: TargetTransferTag,
    /// Numbers; `StatSN` does not count.
    pub numbers: ResponseNumbers,
    /// Number within the command, from 0.
    pub r2t_sn: R2tSn,
    /// First byte asked for.
    pub buffer_offset: u32,
    /// How many bytes are asked for.
    pub desired_bytes: u32,
}

impl R2t {
    /// Reads the header.
    pub fn parse(bhs: &Bhs) -> Self {
        Self {
            lun: u64_at(bhs, field::LUN),
            initiator_task_tag: InitiatorTaskTag(u32_at(bhs, field::INITIATOR_TASK_TAG)),
            target_transfer_tag: TargetTransferTag(u32_at(bhs, field::WORD_20)),
            numbers: ResponseNumbers::parse(bhs),
            r2t_sn: R2tSn(u32_at(bhs, field::WORD_36)),
            buffer_offset: u32_at(bhs, field::WORD_40),
            desired_bytes: u32_at(bhs, field::WORD_44),
        }
    }

    /// Writes the header.
    pub fn emit(&self) -> Bhs {
        let mut bhs = header::new(Opcode::R2T, false);
        bhs[1] = FINAL;
        put_u64(&mut bhs, field::LUN, self.lun);
        put_u32(
            &mut bhs,
            field::INITIATOR_TASK_TAG,
            self.initiator_task_tag.0,
        );
        put_u32(&mut bhs, field::WORD_20, self.target_transfer_tag.0);
        self.numbers.emit(&mut bhs);
        put_u32(&mut bhs, field::WORD_36, self.r2t_sn.0);
        put_u32(&mut bhs, field::WORD_40, self.buffer_offset);
        put_u32(&mut bhs, field::WORD_44, self.desired_bytes);
        bhs
    }
}
