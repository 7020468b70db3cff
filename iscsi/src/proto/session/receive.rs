//! What a session does with the target's PDUs.
//!
//! A PDU comes in two steps, because its payload does not pass through here: `handle_header` judges
//! the header and says where the data segment belongs; `handle_segment` acts when it is there.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{
    Completed, Control, Event, LOGOUT_TAG, Life, PING_SLOT, PONGS_MAX, Placement, Session,
    SessionError, Violation,
};
use crate::proto::task::Transfer;
use crate::proto::transfer;
use crate::scsi::{Sense, Status};
use crate::wire::FromTarget;
use crate::wire::async_message::{AsyncEvent, AsyncMessage};
use crate::wire::data_in::DataIn;
use crate::wire::header::{self, Bhs, Opcode, ResponseNumbers};
use crate::wire::logout::LogoutResponse;
use crate::wire::nop::NopIn;
use crate::wire::r2t::R2t;
use crate::wire::reject::Reject;
use crate::wire::scsi_response::{Residual, ScsiResponse, ServiceResponse, sense_data};
use crate::wire::serial::StatSn;
use crate::wire::tag::{InitiatorTaskTag, TargetTransferTag};

/// A PDU whose header was accepted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pending {
    DataIn(DataIn),
    ScsiResponse(ScsiResponse),
    R2t(R2t),
    NopIn(NopIn),
    Async(AsyncMessage, Instant),
    Reject(Reject),
    Logout(LogoutResponse),
}

impl Session {
    /// Judges a header; says where its data segment belongs.
    ///
    /// # Errors
    /// The target broke a rule.
    pub fn handle_header(&mut self, bhs: &Bhs, now: Instant) -> Result<Placement, SessionError> {
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
            FromTarget::DataIn(data_in) => {
                let (slot, task) = self.tasks.find(data_in.initiator_task_tag)?;
                let Transfer::Read(read) = &mut task.transfer else {
                    return Err(Violation::UnknownTask(data_in.initiator_task_tag.0).into());
                };
                let offset = read.place(&data_in, bytes)?;
                self.window.update(&data_in.numbers);
                self.pending = Some(Pending::DataIn(data_in));
                return Ok(Placement::Task {
                    slot,
                    offset,
                    bytes,
                });
            }
            FromTarget::ScsiResponse(response) => {
                (Pending::ScsiResponse(response), response.numbers)
            }
            FromTarget::R2t(r2t) => (Pending::R2t(no_data(r2t, bytes)?), r2t.numbers),
            FromTarget::NopIn(nop_in) => (Pending::NopIn(nop_in), nop_in.numbers),
            FromTarget::AsyncMessage(message) => (Pending::Async(message, now), message.numbers),
            FromTarget::Reject(reject) => (Pending::Reject(reject), reject.numbers),
            FromTarget::LogoutResponse(response) => {
                (Pending::Logout(no_data(response, bytes)?), response.numbers)
            }
            // We ask for neither in full feature phase.
            FromTarget::TaskManagementResponse(response) => {
                return Err(Violation::UnknownTask(response.initiator_task_tag.0).into());
            }
            FromTarget::TextResponse(response) => {
                return Err(Violation::UnknownTask(response.initiator_task_tag.0).into());
            }
            FromTarget::LoginResponse(_) => {
                return Err(Violation::Pdu(Opcode::LOGIN_RESPONSE).into());
            }
        };
        self.window.update(&numbers);
        self.pending = Some(pending);
        Ok(Placement::Own { bytes })
    }

    /// The PDU is whole: acts on it. `data` is its data segment without padding, where
    /// `handle_header` said `Own`.
    ///
    /// # Errors
    /// The session is over: by a rule broken, by a rejection, by a logout.
    pub fn handle_segment(&mut self, data: &[u8]) -> Result<Option<Event>, SessionError> {
        match self.pending.take() {
            Some(Pending::DataIn(data_in)) => self.handle_data_in(&data_in),
            Some(Pending::ScsiResponse(response)) => self.handle_scsi_response(&response, data),
            Some(Pending::R2t(r2t)) => self.handle_r2t(&r2t),
            Some(Pending::NopIn(nop_in)) => self.handle_nop_in(&nop_in, data),
            Some(Pending::Async(message, now)) => self.handle_async(&message, data, now),
            Some(Pending::Reject(reject)) => self.handle_reject(&reject, data),
            Some(Pending::Logout(response)) => Err(self.handle_logged_out(&response)),
            None => Ok(None),
        }
    }

    fn handle_data_in(&mut self, data_in: &DataIn) -> Result<Option<Event>, SessionError> {
        // RFC 7143 §11.7.3: without S the PDU carries no status, and its StatSN does not count
        let Some(end) = data_in.status else {
            return Ok(None);
        };
        self.count_status(data_in.numbers)?;
        self.complete(
            data_in.initiator_task_tag,
            ServiceResponse::COMPLETED,
            Status(end.status),
            end.residual,
            None,
        )
    }

    fn handle_scsi_response(
        &mut self,
        response: &ScsiResponse,
        data: &[u8],
    ) -> Result<Option<Event>, SessionError> {
        self.count_status(response.numbers)?;
        // RFC 7143 §11.4.2: the status has a meaning only if the command completed at the target
        let status = if response.response == ServiceResponse::COMPLETED {
            Status(response.status)
        } else {
            Status::TASK_ABORTED
        };
        let sense = Sense::parse(sense_data(data));
        self.complete(
            response.initiator_task_tag,
            response.response,
            status,
            response.residual,
            sense,
        )
    }

    fn complete(
        &mut self,
        itt: InitiatorTaskTag,
        response: ServiceResponse,
        status: Status,
        residual: Residual,
        sense: Option<Sense>,
    ) -> Result<Option<Event>, SessionError> {
        let (slot, task) = self.tasks.find(itt)?;
        let (moved, length) = task.transfer.progress();
        let is_good = status == Status::GOOD;
        let transferred = transfer::moved(moved, length, residual, is_good)?;
        // Sequences of a task that ended early are passed over when their turn comes.
        self.tasks.remove(slot);
        if matches!(self.life, Life::LogoutRequested { .. }) && self.tasks.sent() == 0 {
            self.queue_logout(true);
        }
        Ok(Some(Event::Completed(Completed {
            slot,
            response,
            status,
            sense,
            transferred,
        })))
    }

    fn handle_r2t(&mut self, r2t: &R2t) -> Result<Option<Event>, SessionError> {
        let (_, task) = self.tasks.find(r2t.initiator_task_tag)?;
        let lun = task.lun;
        let Transfer::Write(write) = &mut task.transfer else {
            return Err(Violation::UnknownTask(r2t.initiator_task_tag.0).into());
        };
        let sequence = write.answer(r2t, lun, &self.agreed)?;
        self.sequences.push_back(sequence);
        Ok(None)
    }

    fn handle_nop_in(
        &mut self,
        nop_in: &NopIn,
        data: &[u8],
    ) -> Result<Option<Event>, SessionError> {
        if nop_in.initiator_task_tag != InitiatorTaskTag::RESERVED {
            // RFC 7143 §11.19: the answer to our ping; its status number counts
            self.count_status(nop_in.numbers)?;
            if nop_in.initiator_task_tag.0 & 0xffff != PING_SLOT || self.pings == 0 {
                return Err(Violation::UnknownTask(nop_in.initiator_task_tag.0).into());
            }
            self.pings -= 1;
        }
        // RFC 7143 §11.19.2: an answer is wanted if and only if there is a transfer tag
        if nop_in.target_transfer_tag != TargetTransferTag::RESERVED {
            if self.control.len() >= PONGS_MAX {
                return Err(Violation::TooManyPings(PONGS_MAX).into());
            }
            // A segment longer than the target takes itself is cut: it broke the rule first.
            let bytes_max = self.agreed.theirs_max_recv_data_segment_bytes;
            let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
            self.control.push_back(Control::Pong {
                lun: nop_in.lun,
                ttt: nop_in.target_transfer_tag,
                data: Bytes::copy_from_slice(&data[..data.len().min(bytes_max)]),
            });
        }
        Ok(None)
    }

    fn handle_async(
        &mut self,
        message: &AsyncMessage,
        data: &[u8],
        now: Instant,
    ) -> Result<Option<Event>, SessionError> {
        self.count_status(message.numbers)?;
        match message.event {
            AsyncEvent::SCSI_EVENT => {
                let sense = Sense::parse(sense_data(data));
                Ok(Some(Event::ScsiEvent {
                    lun: message.lun,
                    sense,
                }))
            }
            // RFC 7143 §11.9.1: a request to negotiate may be met by a logout as well
            AsyncEvent::LOGOUT_REQUESTED | AsyncEvent::NEGOTIATION_REQUESTED => {
                self.handle_logout_requested(message.parameter_3, now);
                Ok(None)
            }
            // RFC 7143 §11.9.1: at level 0 a session with a connection less is begun anew
            event @ (AsyncEvent::CONNECTION_DROPPED | AsyncEvent::SESSION_DROPPED) => {
                Err(SessionError::Dropped {
                    connection: (event == AsyncEvent::CONNECTION_DROPPED)
                        .then_some(message.parameter_1),
                    wait: message.parameter_2,
                    retain: message.parameter_3,
                })
            }
            // TASKS_TERMINATED comes only with TaskReporting=FastAbort, which we do not agree to.
            AsyncEvent(code) => Ok(Some(Event::UnknownEvent { code })),
        }
    }

    /// Commands in flight get half of the time that the target gives us.
    fn handle_logout_requested(&mut self, seconds: u16, now: Instant) {
        if self.life != Life::LoggedIn {
            return;
        }
        if self.tasks.sent() == 0 {
            self.queue_logout(true);
        } else {
            let until = now + Duration::from_secs(u64::from(seconds)) / 2;
            self.life = Life::LogoutRequested { until };
        }
    }

    fn handle_reject(
        &mut self,
        reject: &Reject,
        data: &[u8],
    ) -> Result<Option<Event>, SessionError> {
        self.count_status(reject.numbers)?;
        // RFC 7143 §11.17: the data segment is the header of the rejected PDU
        let opcode = data
            .first_chunk::<48>()
            .map_or(Opcode(0x3f), header::opcode);
        if opcode == Opcode::NOP_OUT {
            // A target that refuses pings lives all the same.
            self.pings = self.pings.saturating_sub(1);
            return Ok(None);
        }
        // RFC 7143 §7.3: at error recovery level 0 nothing less than a new session helps
        Err(SessionError::Rejected {
            reason: reject.reason,
            opcode: opcode.0,
        })
    }

    fn handle_logged_out(&mut self, response: &LogoutResponse) -> SessionError {
        if let Err(violation) = self.count_status(response.numbers) {
            return violation.into();
        }
        let known = response.initiator_task_tag == LOGOUT_TAG;
        match self.life {
            // RFC 7143 §11.15.1: whatever the response says, the connection ends here
            Life::InLogout {
                is_asked_by_target: true,
            } if known => SessionError::LogoutRequested {
                wait: response.time_2_wait,
                retain: response.time_2_retain,
            },
            Life::InLogout {
                is_asked_by_target: false,
            } if known => SessionError::LoggedOut,
            Life::InLogout { .. } | Life::LoggedIn | Life::LogoutRequested { .. } => {
                Violation::UnknownTask(response.initiator_task_tag.0).into()
            }
        }
    }

    /// RFC 7143 §4.2.2.2: status numbers rise by one on a connection. A gap means that a status was
    /// lost, which error recovery level 0 cannot mend.
    fn count_status(&mut self, numbers: ResponseNumbers) -> Result<(), Violation> {
        let (StatSn(expected), StatSn(seen)) = (self.exp_stat_sn, numbers.stat_sn);
        if expected != seen {
            return Err(Violation::StatSn { expected, seen });
        }
        self.exp_stat_sn = self.exp_stat_sn.next();
        Ok(())
    }
}

fn no_data<T>(pdu: T, bytes: u32) -> Result<T, Violation> {
    if bytes == 0 {
        Ok(pdu)
    } else {
        Err(Violation::SegmentTooLong { bytes, limit: 0 })
    }
}
