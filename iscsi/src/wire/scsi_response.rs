//! SCSI Response.
//!
//! Source: RFC 7143 §11.4. The sense data stands in the data segment behind a two-byte length.

use super::header::{self, Bhs, FINAL, Opcode, ResponseNumbers, bit, field, flag, put_u32, u32_at};
use super::serial::DataSn;
use super::tag::InitiatorTaskTag;

/// SCSI Response header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiResponse {
    /// What the residual counts.
    pub residual: Residual,
    /// What the residual of the bidirectional read part counts.
    pub bidirectional_residual: Residual,
    /// iSCSI service response.
    pub response: ServiceResponse,
    /// SCSI status; has a meaning only where `response` is `COMPLETED`.
    pub status: u8,
    /// Names the task.
    pub initiator_task_tag: InitiatorTaskTag,
    /// SNACK tag of a resegmented transfer; 0 otherwise.
    pub snack_tag: u32,
    /// Numbers; `StatSN` counts.
    pub numbers: ResponseNumbers,
    /// How many Data-In or R2T PDUs the target sent for the command.
    pub exp_data_sn: DataSn,
}

/// The bytes that were, or would have been, moved beyond or short of what was expected
/// (RFC 7143 §11.4.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// As many as expected.
    None,
    /// So many bytes were not moved of those expected.
    Underflow(u32),
    /// So many bytes would have been moved beyond those expected.
    Overflow(u32),
}

/// iSCSI service response; an open registry (RFC 7143 §11.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceResponse(pub u8);

impl ServiceResponse {
    /// The command completed at the target; the status says how.
    pub const COMPLETED: Self = Self(0x00);
    /// The target failed; the status says nothing.
    pub const TARGET_FAILURE: Self = Self(0x01);
}

const BIDIRECTIONAL_OVERFLOW: u8 = 0x10;
const BIDIRECTIONAL_UNDERFLOW: u8 = 0x08;
pub(crate) const OVERFLOW: u8 = 0x04;
pub(crate) const UNDERFLOW: u8 = 0x02;

impl Residual {
    pub(crate) fn from_flags(flags: u8, overflow: u8, underflow: u8, count: u32) -> Self {
        // RFC 7143 §11.4.1: O and U exclude each other. Both set says nothing of use: the larger
        // distrust wins, and an underflow shortens what we believe to have.
        match (flag(flags, overflow), flag(flags, underflow)) {
            (_, true) => Self::Underflow(count),
            (true, false) => Self::Overflow(count),
            (false, false) => Self::None,
        }
    }

    pub(crate) fn flags(self, overflow: u8, underflow: u8) -> u8 {
        bit(matches!(self, Self::Overflow(_)), overflow)
            | bit(matches!(self, Self::Underflow(_)), underflow)
    }

    pub(crate) fn count(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Underflow(count) | Self::Overflow(count) => count,
        }
    }
}

impl ScsiResponse {
    /// Reads the header.
    pub fn parse(bhs: &Bhs) -> Self {
        Self {
            residual: Residual::from_flags(
                bhs[1],
                OVERFLOW,
                UNDERFLOW,
                u32_at(bhs, field::WORD_44),
            ),
            bidirectional_residual: Residual::from_flags(
                bhs[1],
                BIDIRECTIONAL_OVERFLOW,
                BIDIRECTIONAL_UNDERFLOW,
                u32_at(bhs, field::WORD_40),
            ),
            response: ServiceResponse(bhs[2]),
            status: bhs[3],
            initiator_task_tag: InitiatorTaskTag(u32_at(bhs, field::INITIATOR_TASK_TAG)),
            snack_tag: u32_at(bhs, field::WORD_20),
            numbers: ResponseNumbers::parse(bhs),
            exp_data_sn: DataSn(u32_at(bhs, field::WORD_36)),
        }
    }

    /// Writes the header; the data segment's length is left 0.
    pub fn emit(&self) -> Bhs {
        let mut bhs = header::new(Opcode::SCSI_RESPONSE, false);
        bhs[1] = FINAL
            | self.residual.flags(OVERFLOW, UNDERFLOW)
            | self
                .bidirectional_residual
                .flags(BIDIRECTIONAL_OVERFLOW, BIDIRECTIONAL_UNDERFLOW);
        bhs[2] = self.response.0;
        bhs[3] = self.status;
        put_u32(
            &mut bhs,
            field::INITIATOR_TASK_TAG,
            self.initiator_task_tag.0,
        );
        put_u32(&mut bhs, field::WORD_20, self.snack_tag);
        self.numbers.emit(&mut bhs);
        put_u32(&mut bhs, field::WORD_36, self.exp_data_sn.0);
        put_u32(
            &mut bhs,
            field::WORD_40,
            self.bidirectional_residual.count(),
        );
        put_u32(&mut bhs, field::WORD_44, self.residual.count());
        bhs
    }
}

/// The sense data in the data segment of a SCSI Response; empty if there is none.
///
/// A length beyond the segment gives what is there: the sense parser copes with short data.
pub fn sense_data(segment: &[u8]) -> &[u8] {
    // RFC 7143 §11.4.7: SenseLength, sense data, then response data
    let Some((length, rest)) = segment.split_first_chunk::<2>() else {
        return &[];
    };
    let length = usize::from(u16::from_be_bytes(*length));
    rest.get(..length).unwrap_or(rest)
}
