//! Task Management Function Request and Response.
//!
//! Source: RFC 7143 §11.5, §11.6; codes above 8 from RFC 7144 §6.

use std::fmt;

use super::header::{
    self, Bhs, FINAL, Opcode, ResponseNumbers, field, put_u32, put_u64, u32_at, u64_at,
};
use super::serial::{CmdSn, DataSn, StatSn};
use super::tag::InitiatorTaskTag;

/// Task Management Function Request header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagementRequest {
    /// For immediate delivery.
    pub immediate: bool,
    /// What to do, 0..128.
    pub function: TaskManagementFunction,
    /// The logical unit, where the function has one.
    pub lun: u64,
    /// Names this request.
    pub initiator_task_tag: InitiatorTaskTag,
    /// The task to abort or reassign; else the reserved value.
    pub referenced_task_tag: InitiatorTaskTag,
    /// Command number; not consumed by an immediate PDU.
    pub cmd_sn: CmdSn,
    /// The next status number we expect.
    pub exp_stat_sn: StatSn,
    /// `CmdSN` of the referenced task.
    pub ref_cmd_sn: CmdSn,
    /// The next data number we expect, for a reassignment.
    pub exp_data_sn: DataSn,
}

/// Task management function; an open registry of seven bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskManagementFunction(pub u8);

impl TaskManagementFunction {
    /// ABORT TASK.
    pub const ABORT_TASK: Self = Self(1);
    /// ABORT TASK SET.
    pub const ABORT_TASK_SET: Self = Self(2);
    /// CLEAR ACA.
    pub const CLEAR_ACA: Self = Self(3);
    /// CLEAR TASK SET.
    pub const CLEAR_TASK_SET: Self = Self(4);
    /// LOGICAL UNIT RESET.
    pub const LOGICAL_UNIT_RESET: Self = Self(5);
    /// TARGET WARM RESET.
    pub const TARGET_WARM_RESET: Self = Self(6);
    /// TARGET COLD RESET.
    pub const TARGET_COLD_RESET: Self = Self(7);
    /// TASK REASSIGN.
    pub const TASK_REASSIGN: Self = Self(8);
}

impl fmt::Display for TaskManagementFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match *self {
            Self::ABORT_TASK => "ABORT TASK",
            Self::ABORT_TASK_SET => "ABORT TASK SET",
            Self::CLEAR_ACA => "CLEAR ACA",
            Self::CLEAR_TASK_SET => "CLEAR TASK SET",
            Self::LOGICAL_UNIT_RESET => "LOGICAL UNIT RESET",
            Self::TARGET_WARM_RESET => "TARGET WARM RESET",
            Self::TARGET_COLD_RESET => "TARGET COLD RESET",
            Self::TASK_REASSIGN => "TASK REASSIGN",
            Self(other) => return write!(f, "task management function {other}"),
        };
        f.write_str(words)
    }
}

const FUNCTION_MASK: u8 = 0x7f;

impl TaskManagementRequest {
    /// Reads the header.
    pub fn parse(bhs: &Bhs) -> Self {
        Self {
            immediate: header::is_immediate(bhs),
            function: TaskManagementFunction(bhs[1] & FUNCTION_MASK),
            lun: u64_at(bhs, field::LUN),
            initiator_task_tag: InitiatorTaskTag(u32_at(bhs, field::INITIATOR_TASK_TAG)),
            referenced_task_tag: InitiatorTaskTag(u32_at(bhs, field::WORD_20)),
            cmd_sn: CmdSn(u32_at(bhs, field::WORD_24)),
            exp_stat_sn: StatSn(u32_at(bhs, field::WORD_28)),
            ref_cmd_sn: CmdSn(u32_at(bhs, field::WORD_32)),
            exp_data_sn: DataSn(u32_at(bhs, field::WORD_36)),
        }
    }

    /// Writes the header.
    pub fn emit(&self) -> Bhs {
        let mut bhs = header::new(Opcode::TASK_MANAGEMENT_REQUEST, self.immediate);
        bhs[1] = FINAL | (self.function.0 & FUNCTION_MASK);
        put_u64(&mut bhs, field::LUN, self.lun);
        put_u32(
            &mut bhs,
            field::INITIATOR_TASK_TAG,
            self.initiator_task_tag.0,
        );
        put_u32(&mut bhs, field::WORD_20, self.referenced_task_tag.0);
        put_u32(&mut bhs, field::WORD_24, self.cmd_sn.0);
        put_u32(&mut bhs, field::WORD_28, self.exp_stat_sn.0);
        put_u32(&mut bhs, field::WORD_32, self.ref_cmd_sn.0);
        put_u32(&mut bhs, field::WORD_36, self.exp_data_sn.0);
        bhs
    }
}

/// Task Management Function Response header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagementResponse {
    /// How it went.
    pub response: TaskManagementOutcome,
    /// Names the request.
    pub initiator_task_tag: InitiatorTaskTag,
    /// Numbers; `StatSN` counts.
    pub numbers: ResponseNumbers,
}

/// How a task management function went; an open registry (RFC 7143 §11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskManagementOutcome(pub u8);

impl TaskManagementOutcome {
    /// Function complete.
    pub const COMPLETE: Self = Self(0);
    /// The task does not exist.
    pub const TASK_DOES_NOT_EXIST: Self = Self(1);
    /// The LUN does not exist.
    pub const LUN_DOES_NOT_EXIST: Self = Self(2);
    /// The task is still allegiant to its connection.
    pub const TASK_STILL_ALLEGIANT: Self = Self(3);
    /// Allegiance reassignment is not supported.
    pub const REASSIGNMENT_NOT_SUPPORTED: Self = Self(4);
    /// The function is not supported.
    pub const FUNCTION_NOT_SUPPORTED: Self = Self(5);
    /// Not authorised.
    pub const NOT_AUTHORIZED: Self = Self(6);
    /// Rejected.
    pub const REJECTED: Self = Self(255);
}

impl fmt::Display for TaskManagementOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match *self {
            Self::COMPLETE => "function complete",
            Self::TASK_DOES_NOT_EXIST => "the task does not exist",
            Self::LUN_DOES_NOT_EXIST => "the LUN does not exist",
            Self::TASK_STILL_ALLEGIANT => "the task is still allegiant",
            Self::REASSIGNMENT_NOT_SUPPORTED => "reassignment not supported",
            Self::FUNCTION_NOT_SUPPORTED => "function not supported",
            Self::NOT_AUTHORIZED => "not authorized",
            Self::REJECTED => "rejected",
            Self(other) => return write!(f, "response {other:#04x}"),
        };
        f.write_str(words)
    }
}

impl TaskManagementResponse {
    /// Reads the header.
    pub fn parse(bhs: &Bhs) -> Self {
        Self {
            response: TaskManagementOutcome(bhs[2]),
            initiator_task_tag: InitiatorTaskTag(u32_at(bhs, field::INITIATOR_TASK_TAG)),
            numbers: ResponseNumbers::parse(bhs),
        }
    }

    /// Writes the header.
    pub fn emit(&self) -> Bhs {
        let mut bhs = header::new(Opcode::TASK_MANAGEMENT_RESPONSE, false);
        bhs[1] = FINAL;
        bhs[2] = self.response.0;
        put_u32(
            &mut bhs,
            field::INITIATOR_TASK_TAG,
            self.initiator_task_tag.0,
        );
        self.numbers.emit(&mut bhs);
        bhs
    }
}
