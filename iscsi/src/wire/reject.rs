//! Reject: the target could not take a PDU; its header stands in the data segment.
//!
//! Source: RFC 7143 §11.17.

use super::header::{self, Bhs, FINAL, Opcode, ResponseNumbers, field, put_u32, u32_at};
use super::serial::DataSn;
use super::tag::InitiatorTaskTag;

/// Reject header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Why.
    pub reason: RejectReason,
    /// Numbers; `StatSN` counts.
    pub numbers: ResponseNumbers,
    /// `DataSN` or `R2TSN` of the rejected PDU, where the reason has one.
    pub data_sn: DataSn,
}

/// Reason of a reject; an open registry (RFC 7143 §11.17.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RejectReason(pub u8);

impl RejectReason {
    /// A data digest did not fit.
    pub const DATA_DIGEST_ERROR: Self = Self(0x02);
    /// A SNACK was rejected.
    pub const SNACK_REJECT: Self = Self(0x03);
    /// The PDU broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(0x04);
    /// The target does not know the PDU.
    pub const COMMAND_NOT_SUPPORTED: Self = Self(0x05);
    /// Too many PDUs for immediate delivery.
    pub const TOO_MANY_IMMEDIATE: Self = Self(0x06);
    /// A task is in progress.
    pub const TASK_IN_PROGRESS: Self = Self(0x07);
    /// A data acknowledgement did not fit.
    pub const INVALID_DATA_ACK: Self = Self(0x08);
    /// A field of the PDU is not valid.
    pub const INVALID_PDU_FIELD: Self = Self(0x09);
    /// The target is short of something.
    pub const LONG_OPERATION: Self = Self(0x0a);
    /// Obsolete: negotiation reset.
    pub const NEGOTIATION_RESET: Self = Self(0x0b);
    /// The target waits for a logout.
    pub const WAITING_FOR_LOGOUT: Self = Self(0x0c);
}

impl std::fmt::Display for RejectReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words = match *self {
            Self::DATA_DIGEST_ERROR => "data digest error",
            Self::SNACK_REJECT => "SNACK rejected",
            Self::PROTOCOL_ERROR => "protocol error",
            Self::COMMAND_NOT_SUPPORTED => "command not supported",
            Self::TOO_MANY_IMMEDIATE => "too many immediate commands",
            Self::TASK_IN_PROGRESS => "task in progress",
            Self::INVALID_DATA_ACK => "invalid data acknowledgement",
            Self::INVALID_PDU_FIELD => "invalid PDU field",
            Self::LONG_OPERATION => "out of resources for a long operation",
            Self::NEGOTIATION_RESET => "negotiation reset",
            Self::WAITING_FOR_LOGOUT => "waiting for logout",
            Self(other) => return write!(f, "reason {other:#04x}"),
        };
        f.write_str(words)
    }
}

impl Reject {
    /// Reads the header.
    pub fn parse(bhs: &Bhs) -> Self {
        Self {
            reason: RejectReason(bhs[2]),
            numbers: ResponseNumbers::parse(bhs),
            data_sn: DataSn(u32_at(bhs, field::WORD_36)),
        }
    }

    /// Writes the header; the data segment's length is left 0.
    pub fn emit(&self) -> Bhs {
        let mut bhs = header::new(Opcode::REJECT, false);
        bhs[1] = FINAL;
        bhs[2] = self.reason.0;
        put_u32(
            &mut bhs,
            field::INITIATOR_TASK_TAG,
            InitiatorTaskTag::RESERVED.0,
        );
        self.numbers.emit(&mut bhs);
        put_u32(&mut bhs, field::WORD_36, self.data_sn.0);
        bhs
    }
}
