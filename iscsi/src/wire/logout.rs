//! Logout Request and Response.
//!
//! Source: RFC 7143 §11.14, §11.15.

use super::header::{
    self, Bhs, FINAL, Opcode, ResponseNumbers, field, put_u16, put_u32, u16_at, u32_at,
};
use super::serial::{CmdSn, StatSn};
use super::tag::InitiatorTaskTag;

/// Logout Request header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogoutRequest {
    /// For immediate delivery.
    pub immediate: bool,
    /// What is to be ended.
    pub reason: LogoutReason,
    /// Names the request.
    pub initiator_task_tag: InitiatorTaskTag,
    /// The connection, where `reason` ends one.
    pub cid: u16,
    /// Command number; not consumed by an immediate PDU.
    pub cmd_sn: CmdSn,
    /// The next status number we expect.
    pub exp_stat_sn: StatSn,
}

/// Reason of a logout; an open registry of seven bits (RFC 7143 §11.14.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogoutReason(pub u8);

impl LogoutReason {
    /// Close the session.
    pub const CLOSE_SESSION: Self = Self(0);
    /// Close one connection.
    pub const CLOSE_CONNECTION: Self = Self(1);
    /// Remove a connection for recovery.
    pub const REMOVE_FOR_RECOVERY: Self = Self(2);
}

const REASON_MASK: u8 = 0x7f;
const CID: std::ops::Range<usize> = 20..22;
const TIME_2_WAIT: std::ops::Range<usize> = 40..42;
const TIME_2_RETAIN: std::ops::Range<usize> = 42..44;

impl LogoutRequest {
    /// Reads the header.
    pub fn parse(bhs: &Bhs) -> Self {
        Self {
            immediate: header::is_immediate(bhs),
            reason: LogoutReason(bhs[1] & REASON_MASK),
            initiator_task_tag: InitiatorTaskTag(u32_at(bhs, field::INITIATOR_TASK_TAG)),
            cid: u16_at(bhs, CID),
            cmd_sn: CmdSn(u32_at(bhs, field::WORD_24)),
            exp_stat_sn: StatSn(u32_at(bhs, field::WORD_28)),
        }
    }

    /// Writes the header.
    pub fn emit(&self) -> Bhs {
        let mut bhs = header::new(Opcode::LOGOUT_REQUEST, self.immediate);
        bhs[1] = FINAL | (self.reason.0 & REASON_MASK);
        put_u32(
            &mut bhs,
            field::INITIATOR_TASK_TAG,
            self.initiator_task_tag.0,
        );
        put_u16(&mut bhs, CID, self.cid);
        put_u32(&mut bhs, field::WORD_24, self.cmd_sn.0);
        put_u32(&mut bhs, field::WORD_28, self.exp_stat_sn.0);
        bhs
    }
}

/// Logout Response header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogoutResponse {
    /// How it went.
    pub response: LogoutOutcome,
    /// Names the request.
    pub initiator_task_tag: InitiatorTaskTag,
    /// Numbers; `StatSN` counts.
    pub numbers: ResponseNumbers,
    /// Seconds to wait before a reinstatement.
    pub time_2_wait: u16,
    /// Seconds after the wait for which the target keeps its state.
    pub time_2_retain: u16,
}

/// How a logout went; an open registry (RFC 7143 §11.15.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogoutOutcome(pub u8);

impl LogoutOutcome {
    /// Closed.
    pub const CLOSED: Self = Self(0);
    /// No such connection.
    pub const CID_NOT_FOUND: Self = Self(1);
    /// The target has no connection recovery.
    pub const RECOVERY_NOT_SUPPORTED: Self = Self(2);
    /// The clean-up failed.
    pub const CLEANUP_FAILED: Self = Self(3);
}

impl std::fmt::Display for LogoutOutcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words = match *self {
            Self::CLOSED => "closed",
            Self::CID_NOT_FOUND => "no such connection",
            Self::RECOVERY_NOT_SUPPORTED => "connection recovery not supported",
            Self::CLEANUP_FAILED => "clean-up failed",
            Self(other) => return write!(f, "response {other:#04x}"),
        };
        f.write_str(words)
    }
}

impl LogoutResponse {
    /// Reads the header.
    pub fn parse(bhs: &Bhs) -> Self {
        Self {
            response: LogoutOutcome(bhs[2]),
            initiator_task_tag: InitiatorTaskTag(u32_at(bhs, field::INITIATOR_TASK_TAG)),
            numbers: ResponseNumbers::parse(bhs),
            time_2_wait: u16_at(bhs, TIME_2_WAIT),
            time_2_retain: u16_at(bhs, TIME_2_RETAIN),
        }
    }

    /// Writes the header.
    pub fn emit(&self) -> Bhs {
        let mut bhs = header::new(Opcode::LOGOUT_RESPONSE, false);
        bhs[1] = FINAL;
        bhs[2] = self.response.0;
        put_u32(
            &mut bhs,
            field::INITIATOR_TASK_TAG,
            self.initiator_task_tag.0,
        );
        self.numbers.emit(&mut bhs);
        put_u16(&mut bhs, TIME_2_WAIT, self.time_2_wait);
        put_u16(&mut bhs, TIME_2_RETAIN, self.time_2_retain);
        bhs
    }
}
