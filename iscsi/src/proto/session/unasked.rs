//! What a target says without being asked: asynchronous messages and Reject.
//!
//! | event | consequence |
//! |---|---|
//! | 0 SCSI event | told |
//! | 1 logout | told; no command leaves any more, a logout does in time |
//! | 2, 3 dropped | the session ends; `Time2Wait` and `Time2Retain` are in the error |
//! | 4 negotiation | a logout instead, which the standard allows |
//! | 5 tasks terminated | told; data for the LUN stops, the number is acknowledged, its tasks climb |
//! | 255, others | told |
//!
//! | rejected PDU, reason | consequence |
//! |---|---|
//! | any, 0Ch waiting for logout | a logout |
//! | ping, any other | the target lives, and that is all a ping asks |
//! | function, any other | it was answered: "not supported" for 05h, else "rejected" |
//! | Data-Out, any other | its task's own response follows, and must not be good |
//! | command, SNACK, logout, anything else | the session ends: at level 0 nothing is sent twice |
//!
//! Source: RFC 7143 §11.9, §11.17, §7.3, §7.8.

use std::time::Instant;

use super::connection::Control;
use super::receive::is_ping;
use super::{Event, Session, SessionError, TargetEvent, Violation};
use crate::proto::task::Transfer;
use crate::scsi::Sense;
use crate::wire::async_message::{AsyncEvent, AsyncMessage};
use crate::wire::header::{self, Bhs, Opcode, field};
use crate::wire::reject::{Reject, RejectReason};
use crate::wire::scsi_response::sense_data;
use crate::wire::tag::InitiatorTaskTag;
use crate::wire::task_management::TaskManagementOutcome;

impl Session {
    pub(super) fn handle_async(
        &mut self,
        cid: u16,
        message: &AsyncMessage,
        data: &[u8],
        now: Instant,
    ) -> Result<Option<Event>, SessionError> {
        self.count_status(cid, message.numbers)?;
        let lun = message.lun;
        let told = match message.event {
            AsyncEvent::SCSI_EVENT => TargetEvent::ScsiEvent {
                lun,
                sense: Sense::parse(sense_data(data)),
            },
            // RFC 7143 §11.9.1 (F27): a request to negotiate may be met by a logout as well
            AsyncEvent::LOGOUT_REQUESTED | AsyncEvent::NEGOTIATION_REQUESTED => {
                self.handle_logout_requested(cid, message.parameter_3, now);
                return Ok(None);
            }
            // RFC 7143 §11.9.1 (F26): at level 0 a session with a connection less is begun anew
            event @ (AsyncEvent::CONNECTION_DROPPED | AsyncEvent::SESSION_DROPPED) => {
                return Err(SessionError::Dropped {
                    connection: (event == AsyncEvent::CONNECTION_DROPPED)
                        .then_some(message.parameter_1),
                    wait: message.parameter_2,
                    retain: message.parameter_3,
                });
            }
            AsyncEvent::TASKS_TERMINATED => {
                self.handle_tasks_terminated(cid, lun);
                TargetEvent::TasksTerminated { lun }
            }
            AsyncEvent::VENDOR => TargetEvent::Vendor {
                code: message.vendor_code,
            },
            AsyncEvent(code) => TargetEvent::Unknown { code },
        };
        Ok(Some(Event::Told(told)))
    }

    pub(super) fn handle_reject(
        &mut self,
        cid: u16,
        reject: &Reject,
        data: &[u8],
        now: Instant,
    ) -> Result<Option<Event>, SessionError> {
        self.count_status(cid, reject.numbers)?;
        let reason = reject.reason;
        if reason == RejectReason::WAITING_FOR_LOGOUT {
            self.handle_logout_requested(cid, 0, now);
            return Ok(None);
        }
        // RFC 7143 §11.17, §7.3 (E3): the data segment is the header of the rejected PDU
        let Some(bhs) = data.first_chunk::<48>() else {
            let opcode = NO_OPCODE;
            return Err(SessionError::Rejected { reason, opcode });
        };
        let itt = InitiatorTaskTag(header::u32_at(bhs, field::INITIATOR_TASK_TAG));
        match header::opcode(bhs) {
            Opcode::NOP_OUT => {
                self.handle_ping_answered(cid, itt);
                Ok(None)
            }
            Opcode::TASK_MANAGEMENT_REQUEST => {
                let outcome = if reason == RejectReason::COMMAND_NOT_SUPPORTED {
                    TaskManagementOutcome::FUNCTION_NOT_SUPPORTED
                } else {
                    TaskManagementOutcome::REJECTED
                };
                self.answer_function(cid, itt, outcome)?;
                Ok(None)
            }
            Opcode::DATA_OUT => self.handle_data_out_rejected(cid, itt, reason, bhs),
            Opcode(opcode) => Err(SessionError::Rejected { reason, opcode }),
        }
    }

    /// RFC 7143 §11.9.1 (F28), code 5: stop the data for the LUN, then acknowledge the message by a NOP-Out
    /// that carries its LUN. What becomes of the tasks is asked for by the ladder, at once.
    fn handle_tasks_terminated(&mut self, cid: u16, lun: u64) {
        let connection = &mut self.connections[usize::from(cid)];
        let tasks = &mut self.tasks;
        connection.sequences.retain(|sequence| {
            tasks
                .find(sequence.itt)
                .is_ok_and(|(_, task)| task.lun != lun)
        });
        connection.control.push_back(Control::Acknowledge { lun });
        let slots: Vec<u16> = self.tasks.sent_slots().collect();
        for slot in slots {
            let task = self.tasks.task_mut(slot);
            task.watch.is_doomed |= task.cid == cid && task.lun == lun;
        }
    }

    /// RFC 7143 §7.3, §7.8, §11.17.1 (E3): a task that had begun gets its own response after all its data.
    fn handle_data_out_rejected(
        &mut self,
        cid: u16,
        itt: InitiatorTaskTag,
        reason: RejectReason,
        bhs: &Bhs,
    ) -> Result<Option<Event>, SessionError> {
        match self.tasks.find_on(cid, itt) {
            Ok((_, task)) => match &mut task.transfer {
                Transfer::Write(write) => {
                    write.note_rejected();
                    Ok(None)
                }
                Transfer::None | Transfer::Read(_) => Err(SessionError::Rejected {
                    reason,
                    opcode: header::opcode(bhs).0,
                }),
            },
            // The status may have been sent before the Reject, which then changes nothing.
            Err(unknown) => self.pass_over(itt, unknown),
        }
    }

    /// A ping came back, or was refused: either way the target has read it.
    pub(super) fn handle_ping_answered(&mut self, cid: u16, itt: InitiatorTaskTag) {
        if is_ping(itt) {
            let connection = self.at(cid);
            connection.pings = connection.pings.saturating_sub(1);
            self.ladder.answered(itt, TaskManagementOutcome::COMPLETE);
        }
    }

    /// RFC 7143 §7.11 (E12), §11.2.1.8 (F34): a PDU for a task that is not there is late if the task
    /// was aborted, and breaks a rule otherwise.
    pub(super) fn pass_over(
        &self,
        itt: InitiatorTaskTag,
        unknown: Violation,
    ) -> Result<Option<Event>, SessionError> {
        if self.tasks.is_aborted(itt) {
            Ok(None)
        } else {
            Err(unknown.into())
        }
    }
}

/// Stands for the opcode of a rejected PDU that the target did not tell.
const NO_OPCODE: u8 = 0x3f;
