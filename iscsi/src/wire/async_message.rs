//! Asynchronous Message: what a target says unasked.
//!
//! Source: RFC 7143 §11.9.

use super::header::{
    self, Bhs, FINAL, Opcode, ResponseNumbers, field, put_u16, put_u32, put_u64, u16_at, u64_at,
};
use super::tag::InitiatorTaskTag;

/// Asynchronous Message header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncMessage {
    /// The logical unit, in a SCSI event.
    pub lun: u64,
    /// Numbers; `StatSN` counts.
    pub numbers: ResponseNumbers,
    /// What happened.
    pub event: AsyncEvent,
    /// Vendor code of a vendor event.
    pub vendor_code: u8,
    /// By event: the connection that is dropped.
    pub parameter_1: u16,
    /// By event: `Time2Wait` in seconds.
    pub parameter_2: u16,
    /// By event: `Time2Retain`, or the time to log out, in seconds.
    pub parameter_3: u16,
}

/// Asynchronous event; an open registry (RFC 7143 §11.9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AsyncEvent(pub u8);

impl AsyncEvent {
    /// Sense data of a SCSI event stands in the data segment.
    pub const SCSI_EVENT: Self = Self(0);
    /// The target asks for a logout within `parameter_3` seconds.
    pub const LOGOUT_REQUESTED: Self = Self(1);
    /// The target drops the connection `parameter_1`.
    pub const CONNECTION_DROPPED: Self = Self(2);
    /// The target drops all connections of the session.
    pub const SESSION_DROPPED: Self = Self(3);
    /// The target asks for negotiation within `parameter_3` seconds.
    pub const NEGOTIATION_REQUESTED: Self = Self(4);
    /// The tasks of a logical unit are being terminated.
    pub const TASKS_TERMINATED: Self = Self(5);
    /// Vendor's own.
    pub const VENDOR: Self = Self(255);
}

const PARAMETER_1: std::ops::Range<usize> = 38..40;
const PARAMETER_2: std::ops::Range<usize> = 40..42;
const PARAMETER_3: std::ops::Range<usize> = 42..44;

impl AsyncMessage {
    /// Reads the header.
    pub fn parse(bhs: &Bhs) -> Self {
        Self {
            lun: u64_at(bhs, field::LUN),
            numbers: ResponseNumbers::parse(bhs),
            event: AsyncEvent(bhs[36]),
            vendor_code: bhs[37],
            parameter_1: u16_at(bhs, PARAMETER_1),
            parameter_2: u16_at(bhs, PARAMETER_2),
            parameter_3: u16_at(bhs, PARAMETER_3),
        }
    }

    /// Writes the header; the data segment's length is left 0.
    pub fn emit(&self) -> Bhs {
        let mut bhs = header::new(Opcode::ASYNC_MESSAGE, false);
        bhs[1] = FINAL;
        put_u64(&mut bhs, field::LUN, self.lun);
        put_u32(
            &mut bhs,
            field::INITIATOR_TASK_TAG,
            InitiatorTaskTag::RESERVED.0,
        );
        self.numbers.emit(&mut bhs);
        bhs[36] = self.event.0;
        bhs[37] = self.vendor_code;
        put_u16(&mut bhs, PARAMETER_1, self.parameter_1);
        put_u16(&mut bhs, PARAMETER_2, self.parameter_2);
        put_u16(&mut bhs, PARAMETER_3, self.parameter_3);
        bhs
    }
}
