//! SCSI Data-In.
//!
//! Source: RFC 7143 §11.7. With the S bit it carries the command's status too, and only then do its
//! status fields mean anything.

use super::header::{
    self, Bhs, FINAL, Opcode, ResponseNumbers, bit, field, flag, put_u32, put_u64, u32_at, u64_at,
};
use super::scsi_response::{OVERFLOW, Residual, UNDERFLOW};
use super::serial::DataSn;
use super::tag::{InitiatorTaskTag, TargetTransferTag};

/// SCSI Data-In header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataIn {
    /// F: last PDU of its sequence.
    pub is_final: bool,
    /// A: the target wants a data acknowledgement (error recovery level above 0 only).
    pub acknowledge: bool,
    /// S: the status of the command, if it stands in this PDU.
    pub status: Option<DataInStatus>,
    /// The LUN, where `acknowledge` is set.
    pub lun: u64,
    /// Names the task.
    pub initiator_task_tag: InitiatorTaskTag,
    /// Names the data for acknowledgement; else the reserved value.
    pub target_transfer_tag: TargetTransferTag,
    /// Numbers; `StatSN` counts only with a status.
    pub numbers: ResponseNumbers,
    /// Number within the command, from 0.
    pub data_sn: DataSn,
    /// Where in the task's buffer the data segment belongs, in bytes.
    pub buffer_offset: u32,
}

/// What a Data-In says of the command's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataInStatus {
    /// SCSI status.
    pub status: u8,
    /// What was not moved.
    pub residual: Residual,
}

const ACKNOWLEDGE: u8 = 0x40;
const STATUS: u8 = 0x01;

impl DataIn {
    /// Reads the header.
    pub fn parse(bhs: &Bhs) -> Self {
        let status = flag(bhs[1], STATUS).then(|| DataInStatus {
            status: bhs[3],
            residual: Residual::from_flags(
                bhs[1],
                OVERFLOW,
                UNDERFLOW,
                u32_at(bhs, field::WORD_44),
            ),
        });
        Self {
            is_final: flag(bhs[1], FINAL),
            acknowledge: flag(bhs[1], ACKNOWLEDGE),
            status,
            lun: u64_at(bhs, field::LUN),
            initiator_task_tag: InitiatorTaskTag(u32_at(bhs, field::INITIATOR_TASK_TAG)),
            target_transfer_tag: TargetTransferTag(u32_at(bhs, field::WORD_20)),
            numbers: ResponseNumbers::parse(bhs),
            data_sn: DataSn(u32_at(bhs, field::WORD_36)),
            buffer_offset: u32_at(bhs, field::WORD_40),
        }
    }

    /// Writes the header; the data segment's length is left 0.
    pub fn emit(&self) -> Bhs {
        let mut bhs = header::new(Opcode::DATA_IN, false);
        bhs[1] = bit(self.is_final, FINAL) | bit(self.acknowledge, ACKNOWLEDGE);
        if let Some(end) = self.status {
            bhs[1] |= STATUS | end.residual.flags(OVERFLOW, UNDERFLOW);
            bhs[3] = end.status;
            put_u32(&mut bhs, field::WORD_44, end.residual.count());
        }
        put_u64(&mut bhs, field::LUN, self.lun);
        put_u32(
            &mut bhs,
            field::INITIATOR_TASK_TAG,
            self.initiator_task_tag.0,
        );
        put_u32(&mut bhs, field::WORD_20, self.target_transfer_tag.0);
        self.numbers.emit(&mut bhs);
        put_u32(&mut bhs, field::WORD_36, self.data_sn.0);
        put_u32(&mut bhs, field::WORD_40, self.buffer_offset);
        bhs
    }
}
