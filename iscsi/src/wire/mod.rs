//! Bytes <-> values: one file per PDU of RFC 7143 §11, text keys, serial numbers, digests.
//!
//! It is a room of its own because it has no state at all: what stands here can be read beside the
//! RFC's drawings, and fuzzed without a session.
//!
//! Source: RFC 7143 §11 (formats), §6.1 (text), §4.2.2.1 (serial numbers), §13.1 (digests).
//!
//! Invariants:
//! 1. `parse` and `emit` of a header are total over `[u8; 48]`: any header has a value, and reserved
//!    bits are written zero and ignored when read.
//! 2. Lengths of data segments are not in the typed headers: `header` reads and writes them.
//!
//! It does not judge what a header says; `proto` does.

pub mod async_message;
pub mod binary;
pub mod data_in;
pub mod data_out;
pub mod digest;
pub mod header;
pub mod login;
pub mod logout;
pub mod nop;
pub mod r2t;
pub mod reject;
pub mod scsi_command;
pub mod scsi_response;
pub mod serial;
pub mod tag;
pub mod task_management;
pub mod text;
pub mod text_keys;

pub use header::{BHS_BYTES, Bhs};

use header::Opcode;

/// A PDU header that a target sends, by its opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromTarget {
    /// RFC 7143 §11.19.
    NopIn(nop::NopIn),
    /// RFC 7143 §11.4.
    ScsiResponse(scsi_response::ScsiResponse),
    /// RFC 7143 §11.6.
    TaskManagementResponse(task_management::TaskManagementResponse),
    /// RFC 7143 §11.13.
    LoginResponse(login::LoginResponse),
    /// RFC 7143 §11.11.
    TextResponse(text::TextResponse),
    /// RFC 7143 §11.7.
    DataIn(data_in::DataIn),
    /// RFC 7143 §11.15.
    LogoutResponse(logout::LogoutResponse),
    /// RFC 7143 §11.8.
    R2t(r2t::R2t),
    /// RFC 7143 §11.9.
    AsyncMessage(async_message::AsyncMessage),
    /// RFC 7143 §11.17.
    Reject(reject::Reject),
}

impl FromTarget {
    /// Reads the header by its opcode; `Err` gives an opcode that no target may send.
    ///
    /// # Errors
    /// The opcode, if it is not one of a target's.
    pub fn parse(bhs: &Bhs) -> Result<Self, Opcode> {
        let opcode = header::opcode(bhs);
        match opcode {
            Opcode::NOP_IN => Ok(Self::NopIn(nop::NopIn::parse(bhs))),
            Opcode::SCSI_RESPONSE => {
                Ok(Self::ScsiResponse(scsi_response::ScsiResponse::parse(bhs)))
            }
            Opcode::TASK_MANAGEMENT_RESPONSE => Ok(Self::TaskManagementResponse(
                task_management::TaskManagementResponse::parse(bhs),
            )),
            Opcode::LOGIN_RESPONSE => Ok(Self::LoginResponse(login::LoginResponse::parse(bhs))),
            Opcode::TEXT_RESPONSE => Ok(Self::TextResponse(text::TextResponse::parse(bhs))),
            Opcode::DATA_IN => Ok(Self::DataIn(data_in::DataIn::parse(bhs))),
            Opcode::LOGOUT_RESPONSE => Ok(Self::LogoutResponse(logout::LogoutResponse::parse(bhs))),
            Opcode::R2T => Ok(Self::R2t(r2t::R2t::parse(bhs))),
            Opcode::ASYNC_MESSAGE => {
                Ok(Self::AsyncMessage(async_message::AsyncMessage::parse(bhs)))
            }
            Opcode::REJECT => Ok(Self::Reject(reject::Reject::parse(bhs))),
            other => Err(other),
        }
    }
}

#[cfg(test)]
mod tests;
