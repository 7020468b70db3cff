//! The orderly end: of the session, or of one connection of several.
//!
//! A connection is logged out on itself. The last one that is open takes the session with it.
//!
//! Source: RFC 7143 §11.14, §11.15, §8.1.

use std::io;
use std::time::{Duration, Instant};

use super::connection::{Control, State};
use super::{Event, LOGOUT_SLOT, Misuse, Session, SessionError, TargetEvent, Violation};
use crate::wire::logout::{LogoutOutcome, LogoutReason, LogoutRequest, LogoutResponse};
use crate::wire::serial::{CmdSn, StatSn};
use crate::wire::tag::InitiatorTaskTag;

impl Session {
    /// Asks for the end of the session: no command leaves any more, a logout does.
    pub fn handle_logout(&mut self) {
        if self.is_ending {
            return;
        }
        let carrier = self
            .cids()
            .find(|cid| self.at_ref(*cid).state == State::LoggedIn)
            .or_else(|| self.cids().find(|cid| self.at_ref(*cid).is_open()));
        if let Some(cid) = carrier {
            self.queue_session_logout(cid, false);
        }
    }

    /// Asks for the end of one connection: its commands may end, then a logout leaves.
    ///
    /// # Errors
    /// There is no such connection; or a reason that needs a higher error recovery level.
    pub fn handle_connection_logout(
        &mut self,
        cid: u16,
        reason: LogoutReason,
    ) -> Result<(), Misuse> {
        match reason {
            LogoutReason::CLOSE_SESSION => {
                self.handle_logout();
                return Ok(());
            }
            LogoutReason::CLOSE_CONNECTION => {}
            // RFC 7143 §11.14 (E6): only with ErrorRecoveryLevel 2; no other reason is defined
            LogoutReason(_) => return Err(Misuse::RecoveryLevel),
        }
        let connection = self.connections.get_mut(usize::from(cid));
        let connection = connection.ok_or(Misuse::NoConnection)?;
        match connection.state {
            State::LoggedIn => {
                connection.state = State::LogoutRequested {
                    until: None,
                    is_asked_by_target: false,
                };
                self.log_out_when_idle(cid);
                Ok(())
            }
            State::LogoutRequested { .. } | State::InLogout { .. } => Ok(()),
            State::Free => Err(Misuse::NoConnection),
        }
    }

    /// The target closed a connection.
    ///
    /// # Errors
    /// The session is over: in order after a logout, or because a connection was lost.
    pub fn handle_closed(&mut self, cid: u16) -> Result<(), SessionError> {
        let state = self.at(cid).state;
        match state {
            State::Free => Ok(()),
            // RFC 7143 §11.14 (F29): after the logout the target closes; that its answer is missing
            // changes nothing
            State::InLogout {
                reason: LogoutReason::CLOSE_SESSION,
                is_asked_by_target,
            } => Err(self.logged_out(is_asked_by_target, None)),
            State::InLogout {
                is_asked_by_target, ..
            } => self.free(cid, is_asked_by_target, None),
            // RFC 7143 §11.14 (F29): a session's logout closes all its connections, in any order
            State::LoggedIn | State::LogoutRequested { .. } if self.is_ending => {
                self.free(cid, false, None)
            }
            State::LoggedIn | State::LogoutRequested { .. } => {
                let cause = "the target closed the connection";
                let cause = io::Error::new(io::ErrorKind::UnexpectedEof, cause);
                Err(SessionError::lost(cause))
            }
        }
    }

    /// RFC 7143 §11.9.1 (F25): commands in flight get half of the time that the target gives us.
    pub(super) fn handle_logout_requested(&mut self, cid: u16, seconds: u16, now: Instant) {
        if self.at(cid).state == State::LoggedIn {
            let until = now + Duration::from_secs(u64::from(seconds)) / 2;
            self.at(cid).state = State::LogoutRequested {
                until: Some(until),
                is_asked_by_target: true,
            };
            let event = TargetEvent::LogoutRequested { cid, seconds };
            self.events.push_back(Event::Told(event));
            self.log_out_when_idle(cid);
        }
    }

    /// A task of this connection ended: if it was the last one, a logout that waited may leave.
    pub(super) fn log_out_when_idle(&mut self, cid: u16) {
        let connection = self.at(cid);
        if let State::LogoutRequested {
            is_asked_by_target, ..
        } = connection.state
            && connection.sent == 0
        {
            self.queue_logout(cid, is_asked_by_target);
        }
    }

    pub(super) fn queue_logout(&mut self, cid: u16, is_asked_by_target: bool) {
        if self.is_ending {
            // The session's own logout is under way; this connection ends with it, at no time of its own.
            self.at(cid).state = State::LogoutRequested {
                until: None,
                is_asked_by_target,
            };
            return;
        }
        if self.connections() == 1 {
            self.queue_session_logout(cid, is_asked_by_target);
        } else {
            let reason = LogoutReason::CLOSE_CONNECTION;
            self.queue_logout_of(cid, reason, is_asked_by_target);
        }
    }

    pub(super) fn logout_request(
        cid: u16,
        reason: LogoutReason,
        cmd_sn: CmdSn,
        exp_stat_sn: StatSn,
    ) -> LogoutRequest {
        LogoutRequest {
            immediate: true,
            reason,
            initiator_task_tag: tag(cid),
            // RFC 7143 §11.14.3: reserved where the whole session is meant
            cid: if reason == LogoutReason::CLOSE_SESSION {
                0
            } else {
                cid
            },
            cmd_sn,
            exp_stat_sn,
        }
    }

    pub(super) fn handle_logged_out(
        &mut self,
        cid: u16,
        response: &LogoutResponse,
    ) -> Result<Option<Event>, SessionError> {
        self.count_status(cid, response.numbers)?;
        let is_known = response.initiator_task_tag == tag(cid);
        match self.at(cid).state {
            // RFC 7143 §11.15.1 (F29): whatever the response says, the session ends here
            State::InLogout {
                reason: LogoutReason::CLOSE_SESSION,
                is_asked_by_target,
            } if is_known => Err(self.logged_out(is_asked_by_target, Some(response))),
            State::InLogout {
                is_asked_by_target, ..
            } if is_known => match response.response {
                LogoutOutcome::CLOSED | LogoutOutcome::CID_NOT_FOUND => {
                    self.free(cid, is_asked_by_target, Some(response))?;
                    Ok(None)
                }
                outcome => Err(SessionError::LogoutFailed { outcome }),
            },
            State::InLogout { .. }
            | State::LoggedIn
            | State::LogoutRequested { .. }
            | State::Free => Err(Violation::UnknownTask(response.initiator_task_tag.0).into()),
        }
    }

    fn queue_session_logout(&mut self, cid: u16, is_asked_by_target: bool) {
        self.is_ending = true;
        self.queue_logout_of(cid, LogoutReason::CLOSE_SESSION, is_asked_by_target);
    }

    fn queue_logout_of(&mut self, cid: u16, reason: LogoutReason, is_asked_by_target: bool) {
        let connection = self.at(cid);
        connection.state = State::InLogout {
            reason,
            is_asked_by_target,
        };
        connection.control.push_back(Control::Logout(reason));
    }

    fn logged_out(
        &self,
        is_asked_by_target: bool,
        response: Option<&LogoutResponse>,
    ) -> SessionError {
        if !is_asked_by_target {
            return SessionError::LoggedOut;
        }
        // RFC 7143 §11.15.3: without a word of the target's, what was negotiated holds
        SessionError::LogoutRequested {
            wait: response.map_or(self.agreed.time_2_wait, |response| response.time_2_wait),
            retain: response.map_or(self.agreed.time_2_retain, |response| response.time_2_retain),
        }
    }

    /// A connection is closed, and the session goes on without it, unless it was the last: several can
    /// be logged out at the same time.
    fn free(
        &mut self,
        cid: u16,
        is_asked_by_target: bool,
        response: Option<&LogoutResponse>,
    ) -> Result<(), SessionError> {
        let connection = self.at(cid);
        connection.state = State::Free;
        connection.control.clear();
        connection.sequences.clear();
        if self.connections() == 0 {
            return Err(self.logged_out(is_asked_by_target, response));
        }
        // RFC 7143 §11.14.1: with its connection end all its tasks
        self.abort_tasks(|task| task.cid == cid);
        self.events.push_back(Event::ConnectionClosed { cid });
        Ok(())
    }
}

fn tag(cid: u16) -> InitiatorTaskTag {
    InitiatorTaskTag(u32::from(cid) << 16 | LOGOUT_SLOT)
}
