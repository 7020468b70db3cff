//! SCSI Data-Out.
//!
//! Source: RFC 7143 §11.7.

use super::header::{self, Bhs, FINAL, Opcode, bit, field, flag, put_u32, put_u64, u32_at, u64_at};
use super::serial::{DataSn, StatSn};
use super::tag::{InitiatorTaskTag, TargetTransferTag};

/// SCSI Data-Out header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataOut {
    /// F: last PDU of its sequence.
    pub is_final: bool,
    /// The task's LUN where the data was asked for; 0 in unsolicited data.
    pub lun: u64,
    /// Names the task.
    pub initiator_task_tag: InitiatorTaskTag,
    /// The R2T's tag; the reserved value in unsolicited data.
    pub target_transfer_tag: TargetTransferTag,
    /// The next status number we expect.
    pub exp_stat_sn: StatSn,
    /// Number in its sequence, from 0.
    pub data_sn: DataSn,
    /// Where in the task's buffer the data segment belongs, in bytes.
    pub buffer_offset: u32,
}

impl DataOut {
    /// Reads the header.
    pub fn parse(bhs: &Bhs) -> Self {
        Self {
            is_final: flag(bhs[1], FINAL),
            lun: u64_at(bhs, field::LUN),
            initiator_task_tag: InitiatorTaskTag(u32_at(bhs, field::INITIATOR_TASK_TAG)),
            target_transfer_tag: TargetTransferTag(u32_at(bhs, field::WORD_20)),
            exp_stat_sn: StatSn(u32_at(bhs, field::WORD_28)),
            data_sn: DataSn(u32_at(bhs, field::WORD_36)),
            buffer_offset: u32_at(bhs, field::WORD_40),
        }
    }

    /// Writes the header; the data segment's length is left 0.
    pub fn emit(&self) -> Bhs {
        let mut bhs = header::new(Opcode::DATA_OUT, false);
        bhs[1] = bit(self.is_final, FINAL);
        put_u64(&mut bhs, field::LUN, self.lun);
        put_u32(
            &mut bhs,
            field::INITIATOR_TASK_TAG,
            self.initiator_task_tag.0,
        );
        put_u32(&mut bhs, field::WORD_20, self.target_transfer_tag.0);
        put_u32(&mut bhs, field::WORD_28, self.exp_stat_sn.0);
        put_u32(&mut bhs, field::WORD_36, self.data_sn.0);
        put_u32(&mut bhs, field::WORD_40, self.buffer_offset);
        bhs
    }
}
