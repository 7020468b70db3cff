//! What a session does with the target's PDUs.
//!
//! A PDU comes in two steps, because its payload does not pass through here: `handle_header` judges
//! the header and says where the data segment belongs; `handle_segment` acts when it is there.

use std::time::Instant;

use bytes::Bytes;

use super::connection::Control;
use super::{Completed, Event, PING_SLOT, PONGS_MAX, Placement, Session, SessionError, Violation};
use crate::proto::task::Transfer;
use crate::proto::transfer;
use crate::scsi::{Sense, Status};
use crate::wire::FromTarget;
use crate::wire::async_message::AsyncMessage;
use crate::wire::data_in::DataIn;
use crate::wire::header::{self, Bhs, Opcode, ResponseNumbers};
use crate::wire::logout::LogoutResponse;
use crate::wire::nop::NopIn;
use crate::wire::r2t::R2t;
use crate::wire::reject::Reject;
use crate::wire::scsi_response::{Residual, ScsiResponse, ServiceResponse, sense_data};
use crate::wire::tag::{InitiatorTaskTag, TargetTransferTag};
use crate::wire::task_management::TaskManagementResponse;

/// A PDU whose header was accepted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pending {
    DataIn(DataIn),
    ScsiResponse(ScsiResponse),
    R2t(R2t),
    NopIn(NopIn),
    Async(AsyncMessage, Instant),
    Reject(Reject, Instant),
    Logout(LogoutResponse),
    Function(TaskManagementResponse),
}

impl Session {
    /// Judges a header; says where its data segment belongs.
    ///
    /// # Errors
    /// The target broke a rule.
    pub fn handle_header(
        &mut self,
        cid: u16,
        bhs: &Bhs,
        now: Instant,
    ) -> Result<Placement, SessionError> {
        // RFC 7143 §7.7 (E13): a format error ends the session, before a byte of what it promises is waited for
        let bytes = header::data_segment_bytes(bhs);
        let limit = self.agreed.ours_max_recv_data_segment_bytes;
        // RFC 7143 §13.12: no segment is longer than its receiver declared
        if bytes > limit {
            return Err(Violation::SegmentTooLong { bytes, limit }.into());
        }
        // RFC 7143 §11.2.2: additional headers belong to commands
        if header::ahs_bytes(bhs) != 0 {
            return Err(Violation::AdditionalHeader.into());
        }
        let pdu = FromTarget::parse(bhs).map_err(Violation::Pdu)?;
        let (pending, numbers) = match pdu {
            FromTarget::DataIn(data_in) => return self.place_data_in(cid, &data_in, bytes),
            FromTarget::ScsiResponse(response) => {
                (Pending::ScsiResponse(response), response.numbers)
            }
            FromTarget::R2t(r2t) => (Pending::R2t(no_data(r2t, bytes)?), r2t.numbers),
            FromTarget::NopIn(nop_in) => (Pending::NopIn(nop_in), nop_in.numbers),
            FromTarget::AsyncMessage(message) => (Pending::Async(message, now), message.numbers),
            FromTarget::Reject(reject) => (Pending::Reject(reject, now), reject.numbers),
            FromTarget::LogoutResponse(response) => {
                (Pending::Logout(no_data(response, bytes)?), response.numbers)
            }
            FromTarget::TaskManagementResponse(response) => {
                let numbers = response.numbers;
                (Pending::Function(no_data(response, bytes)?), numbers)
            }
            // We ask for no text in full feature phase.
            FromTarget::TextResponse(response) => {
                return Err(Violation::UnknownTask(response.initiator_task_tag.0).into());
            }
            FromTarget::LoginResponse(_) => {
                return Err(Violation::Pdu(Opcode::LOGIN_RESPONSE).into());
            }
        };
        self.window.update(&numbers);
        self.at(cid).pending = Some(pending);
        Ok(Placement::Own { bytes })
    }

    /// The PDU is whole: acts on it. `data` is its data segment without padding, where
    /// `handle_header` said `Own`. What else there is to be told, `poll_event` says.
    ///
    /// # Errors
    /// The session is over: by a rule broken, by a rejection, by a logout.
    pub fn handle_segment(&mut self, cid: u16, data: &[u8]) -> Result<Option<Event>, SessionError> {
        match self.at(cid).pending.take() {
            Some(Pending::DataIn(data_in)) => self.handle_data_in(cid, &data_in),
            Some(Pending::ScsiResponse(response)) => {
                self.handle_scsi_response(cid, &response, data)
            }
            Some(Pending::R2t(r2t)) => self.handle_r2t(cid, &r2t),
            Some(Pending::NopIn(nop_in)) => self.handle_nop_in(cid, &nop_in, data),
            Some(Pending::Async(message, now)) => self.handle_async(cid, &message, data, now),
            Some(Pending::Reject(reject, now)) => self.handle_reject(cid, &reject, data, now),
            Some(Pending::Logout(response)) => self.handle_logged_out(cid, &response),
            Some(Pending::Function(response)) => self.handle_function_response(cid, &response),
            None => Ok(None),
        }
    }

    /// RFC 7143 §4.2.2.2: see `Connection::count_status`. While a function is under way that ends many
    /// tasks each status is acknowledged at once: the target may hold its answer back until all are (RFC 7143 §4.2.2.3.4).
    pub(super) fn count_status(
        &mut self,
        cid: u16,
        numbers: ResponseNumbers,
    ) -> Result<(), Violation> {
        let is_fenced = self.holds_commands();
        let connection = self.at(cid);
        connection.count_status(numbers)?;
        if is_fenced && connection.control.is_empty() {
            connection
                .control
                .push_back(Control::Acknowledge { lun: 0 });
        }
        Ok(())
    }

    fn place_data_in(
        &mut self,
        cid: u16,
        data_in: &DataIn,
        bytes: u32,
    ) -> Result<Placement, SessionError> {
        let placement = match self.tasks.find_on(cid, data_in.initiator_task_tag) {
            Ok((slot, task)) => {
                let Transfer::Read(read) = &mut task.transfer else {
                    return Err(Violation::UnknownTask(data_in.initiator_task_tag.0).into());
                };
                let offset = read.place(data_in, bytes)?;
                Placement::Task {
                    slot,
                    offset,
                    bytes,
                }
            }
            Err(unknown) => {
                // Its buffer is gone: the bytes are taken in, and looked at by nobody.
                self.pass_over(data_in.initiator_task_tag, unknown)?;
                Placement::Own { bytes }
            }
        };
        self.window.update(&data_in.numbers);
        self.at(cid).pending = Some(Pending::DataIn(*data_in));
        Ok(placement)
    }

    fn handle_data_in(
        &mut self,
        cid: u16,
        data_in: &DataIn,
    ) -> Result<Option<Event>, SessionError> {
        // RFC 7143 §11.7.3: without S the PDU carries no status, and its StatSN does not count
        let Some(end) = data_in.status else {
            return Ok(None);
        };
        self.count_status(cid, data_in.numbers)?;
        self.complete(
            cid,
            data_in.initiator_task_tag,
            ServiceResponse::COMPLETED,
            Status(end.status),
            end.residual,
            None,
        )
    }

    fn handle_scsi_response(
        &mut self,
        cid: u16,
        response: &ScsiResponse,
        data: &[u8],
    ) -> Result<Option<Event>, SessionError> {
        self.count_status(cid, response.numbers)?;
        // RFC 7143 §11.4.2: the status has a meaning only if the command completed at the target
        let status = if response.response == ServiceResponse::COMPLETED {
            Status(response.status)
        } else {
            Status::TASK_ABORTED
        };
        let sense = Sense::parse(sense_data(data));
        self.complete(
            cid,
            response.initiator_task_tag,
            response.response,
            status,
            response.residual,
            sense,
        )
    }

    fn complete(
        &mut self,
        cid: u16,
        itt: InitiatorTaskTag,
        response: ServiceResponse,
        status: Status,
        residual: Residual,
        sense: Option<Sense>,
    ) -> Result<Option<Event>, SessionError> {
        let (slot, task) = match self.tasks.find_on(cid, itt) {
            Ok(found) => found,
            Err(unknown) => return self.pass_over(itt, unknown),
        };
        let transferred = transfer::moved(&task.transfer, residual, status == Status::GOOD)?;
        // Sequences of a task that ended early are passed over when their turn comes.
        self.tasks.remove(slot);
        self.at(cid).sent -= 1;
        self.log_out_when_idle(cid);
        Ok(Some(Event::Completed(Completed {
            slot,
            response: Some(response),
            status,
            sense,
            transferred,
            // RFC 7143 §11.4.5.1: all that was asked for came, and more was there
            overflow: match residual {
                Residual::Overflow(bytes) => bytes,
                Residual::None | Residual::Underflow(_) => 0,
            },
        })))
    }

    fn handle_r2t(&mut self, cid: u16, r2t: &R2t) -> Result<Option<Event>, SessionError> {
        let task = match self.tasks.find_on(cid, r2t.initiator_task_tag) {
            Ok((_, task)) => task,
            Err(unknown) => return self.pass_over(r2t.initiator_task_tag, unknown),
        };
        let lun = task.lun;
        let Transfer::Write(write) = &mut task.transfer else {
            return Err(Violation::UnknownTask(r2t.initiator_task_tag.0).into());
        };
        let sequence = write.answer(r2t, lun, &self.agreed)?;
        self.at(cid).sequences.push_back(sequence);
        Ok(None)
    }

    fn handle_nop_in(
        &mut self,
        cid: u16,
        nop_in: &NopIn,
        data: &[u8],
    ) -> Result<Option<Event>, SessionError> {
        let itt = nop_in.initiator_task_tag;
        if itt != InitiatorTaskTag::RESERVED {
            // RFC 7143 §11.19: the answer to our ping; its status number counts
            self.count_status(cid, nop_in.numbers)?;
            if !is_ping(itt) || self.at(cid).pings == 0 {
                return Err(Violation::UnknownTask(itt.0).into());
            }
            self.handle_ping_answered(cid, itt);
        }
        // RFC 7143 §11.19.2: an answer is wanted if and only if there is a transfer tag
        if nop_in.target_transfer_tag != TargetTransferTag::RESERVED {
            // A segment longer than the target takes itself is cut: it broke the rule first.
            let bytes_max = self.agreed.theirs_max_recv_data_segment_bytes;
            let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
            let connection = self.at(cid);
            if connection.control.len() >= PONGS_MAX {
                return Err(Violation::TooManyPings(PONGS_MAX).into());
            }
            connection.control.push_back(Control::Pong {
                lun: nop_in.lun,
                ttt: nop_in.target_transfer_tag,
                data: Bytes::copy_from_slice(&data[..data.len().min(bytes_max)]),
            });
        }
        Ok(None)
    }
}

pub(super) fn is_ping(itt: InitiatorTaskTag) -> bool {
    itt != InitiatorTaskTag::RESERVED && itt.0 & SLOT_MASK == PING_SLOT
}

const SLOT_MASK: u32 = 0xffff;

fn no_data<T>(pdu: T, bytes: u32) -> Result<T, Violation> {
    if bytes == 0 {
        Ok(pdu)
    } else {
        Err(Violation::SegmentTooLong { bytes, limit: 0 })
    }
}
