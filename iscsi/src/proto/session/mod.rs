//! A normal session with one connection in full feature phase.
//!
//! ```text
//!   submit --> ready --(window)--> command --> [unsolicited] --\
//!                                                R2T --> sequences --> Data-Out
//!   timeouts, pings, logout --> control --> NOP-Out, Logout
//!
//!   poll_transmit:  control, then sequences, then ready
//!   handle_header:  header -> placement;  handle_segment: the PDU is whole -> event
//! ```
//!
//! Life, in the words of RFC 7143 §8.1: `LoggedIn` -> `LogoutRequested` (the target asked) ->
//! `InLogout` -> over. What ends the session is an `Err`, and nothing may be called after it.
//!
//! Source: RFC 7143 §4.2.2, §4.2.5, §8.1, §11.
//!
//! Invariants:
//! 1. `CmdSN` and `ExpStatSN` are given when a PDU leaves.
//! 2. Control PDUs and Data-Out never wait for the window, nor behind commands.
//! 3. Every queue has a limit: tasks by their slots, sequences by tasks times `MaxOutstandingR2T` + 1,
//!    pings by `PONGS_MAX`.
//!
//! Buffers, sockets and timers are `io`'s; SCSI errors are answers, and are handed up.

mod receive;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::keepalive::{Due, Keepalive};
use super::login::Established;
use super::negotiation::Agreed;
use super::task::{Tasks, Transfer};
use super::transfer::{self, Read, Sequence, Write};
use super::window::Window;
use super::{SessionError, Violation};
use crate::scsi::{Sense, Status};
use crate::wire::data_out::DataOut;
use crate::wire::header::{self, Bhs};
use crate::wire::logout::{LogoutReason, LogoutRequest};
use crate::wire::nop::NopOut;
use crate::wire::scsi_command::{ScsiCommand, TaskAttribute};
use crate::wire::scsi_response::ServiceResponse;
use crate::wire::serial::StatSn;
use crate::wire::tag::{InitiatorTaskTag, TargetTransferTag};

/// Most commands in flight of a session, if its owner does not say otherwise: tgt's and
/// open-iscsi's default too.
pub const TASKS_MAX: u16 = 128;
/// Most pings of the target's that wait to be answered; a target sends one at a time.
const PONGS_MAX: usize = 8;
/// Longest list of sequences that is kept ready; a longer one costs an allocation, not a failure.
const SEQUENCES_READY: usize = 256;

/// What a session is told at its beginning.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Most commands in flight.
    pub tasks: u16,
    /// Quiet time before a ping; zero for none.
    pub noop_interval: Duration,
    /// How long the answer to a ping may take; zero for ever.
    pub noop_timeout: Duration,
}

/// Which way a command's data goes, and how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// No data.
    None,
    /// From the target, bytes.
    Read(u32),
    /// To the target, bytes.
    Write(u32),
}

/// A PDU that leaves: header, payload, and zero bytes up to a whole word.
#[derive(Clone, Debug)]
pub struct Transmit {
    /// Complete, with the data segment's length.
    pub header: Bhs,
    /// The data segment.
    pub payload: Payload,
}

/// Where a data segment comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// There is none.
    None,
    /// Bytes of a task's buffer.
    Task {
        /// Whose.
        slot: u16,
        /// From where.
        offset: u32,
        /// How many.
        bytes: u32,
        /// Whether the PDU is a Data-Out: such a one may be dropped when its task is over.
        is_data_out: bool,
    },
    /// Bytes of the machine's own.
    Own(Bytes),
}

/// Where a data segment that comes in belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Into a task's buffer; `handle_segment` gets an empty slice.
    Task {
        /// Whose.
        slot: u16,
        /// Where to.
        offset: u32,
        /// How many bytes; may be 0.
        bytes: u32,
    },
    /// To `handle_segment`, in one piece.
    Own {
        /// How many bytes; may be 0.
        bytes: u32,
    },
}

/// What the owner must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A command is over, and its slot is free.
    Completed(Completed),
    /// The target reports a SCSI event of a logical unit.
    ScsiEvent {
        /// Which one, a SAM address.
        lun: u64,
        /// What happened.
        sense: Option<Sense>,
    },
    /// An event that means nothing to us.
    UnknownEvent {
        /// RFC 7143 §11.9.1.
        code: u8,
    },
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completed {
    /// Which slot is free now.
    pub slot: u16,
    /// The iSCSI service response.
    pub response: ServiceResponse,
    /// The SCSI status; `Status::TASK_ABORTED` where `response` is not `COMPLETED`, so that it is
    /// never taken for a success.
    pub status: Status,
    /// Sense data, if some came.
    pub sense: Option<Sense>,
    /// Bytes moved.
    pub transferred: u32,
}

/// The machine of one session.
#[derive(Debug)]
pub struct Session {
    agreed: Agreed,
    life: Life,
    window: Window,
    exp_stat_sn: StatSn,
    tasks: Tasks,
    /// Slots that wait for the window, in order of submission.
    ready: VecDeque<u16>,
    /// RFC 7143 §4.2.5.2: in order; unsolicited data leaves in the order of its commands.
    sequences: VecDeque<Sequence>,
    control: VecDeque<Control>,
    keepalive: Keepalive,
    /// Pings that left and were not answered.
    pings: u16,
    /// Makes the tags of pings differ.
    pings_sent: u16,
    /// The PDU whose data segment is due.
    pending: Option<receive::Pending>,
}

/// RFC 7143 §8.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    LoggedIn,
    /// The target asked for a logout; commands in flight may end until the time given.
    LogoutRequested {
        until: Instant,
    },
    /// A logout is queued or sent.
    InLogout {
        is_asked_by_target: bool,
    },
}

/// A control PDU that waits to leave.
#[derive(Clone, Debug)]
enum Control {
    Ping,
    Pong {
        lun: u64,
        ttt: TargetTransferTag,
        data: Bytes,
    },
    Logout,
}

/// Tags of control PDUs: behind those of the tasks (`task::SLOTS_MAX`).
const PING_SLOT: u32 = 0xff00;
const LOGOUT_TAG: InitiatorTaskTag = InitiatorTaskTag(0xff01);
/// The connection's number in its session.
const CID: u16 = 0;

impl Session {
    /// The session that a login established.
    pub fn new(established: &Established, settings: Settings, now: Instant) -> Self {
        let tasks = Tasks::new(settings.tasks);
        Self {
            agreed: established.agreed.clone(),
            life: Life::LoggedIn,
            window: Window::new(established.cmd_sn, &established.numbers),
            exp_stat_sn: established.exp_stat_sn,
            ready: VecDeque::with_capacity(tasks.free()),
            tasks,
            sequences: VecDeque::with_capacity(SEQUENCES_READY),
            control: VecDeque::with_capacity(PONGS_MAX + 2),
            keepalive: Keepalive::new(settings.noop_interval, settings.noop_timeout, now),
            pings: 0,
            pings_sent: 0,
            pending: None,
        }
    }

    /// Queues a command; gives the slot that names it from now on. `None` if no slot is free.
    pub fn submit(&mut self, lun: u64, cdb: [u8; 16], direction: Direction) -> Option<u16> {
        let transfer = match direction {
            Direction::None | Direction::Read(0) | Direction::Write(0) => Transfer::None,
            Direction::Read(length) => Transfer::Read(Read::new(length)),
            Direction::Write(length) => {
                Transfer::Write(Write::new(length, transfer::unasked(length, &self.agreed)))
            }
        };
        let slot = self.tasks.insert(lun, cdb, transfer)?;
        self.ready.push_back(slot);
        Some(slot)
    }

    /// The next PDU to leave.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        if let Some(control) = self.control.pop_front() {
            return Some(self.transmit_control(control));
        }
        if let Some(transmit) = self.transmit_data_out() {
            return Some(transmit);
        }
        self.transmit_command()
    }

    /// Bytes came: the target lives.
    pub fn handle_heard(&mut self, now: Instant) {
        self.keepalive.heard(now);
    }

    /// Does what is due at `now`.
    ///
    /// # Errors
    /// The target was silent for too long.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), SessionError> {
        if let Life::LogoutRequested { until } = self.life
            && until <= now
        {
            self.queue_logout(true);
        }
        match self.keepalive.due(now) {
            Due::Nothing => Ok(()),
            Due::Ping => {
                self.control.push_back(Control::Ping);
                Ok(())
            }
            Due::GiveUp => Err(SessionError::Silent {
                after: self.keepalive.timeout(),
            }),
        }
    }

    /// When `handle_timeout` is to be called next; earlier calls do no harm.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let until = match self.life {
            Life::LogoutRequested { until } => Some(until),
            Life::LoggedIn | Life::InLogout { .. } => None,
        };
        [until, self.keepalive.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Asks for the end of the session: no command leaves any more, a logout does.
    pub fn handle_logout(&mut self) {
        match self.life {
            Life::LoggedIn | Life::LogoutRequested { .. } => self.queue_logout(false),
            Life::InLogout { .. } => {}
        }
    }

    /// How many more commands `submit` takes.
    pub fn free_slots(&self) -> usize {
        self.tasks.free()
    }

    /// What the login agreed on.
    pub fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    fn queue_logout(&mut self, is_asked_by_target: bool) {
        self.life = Life::InLogout { is_asked_by_target };
        self.control.push_back(Control::Logout);
    }

    fn transmit_control(&mut self, control: Control) -> Transmit {
        // RFC 7143 §11.2.1.1, §4.2.2.1: immediate PDUs carry the next CmdSN and do not consume it
        let (cmd_sn, exp_stat_sn) = (self.window.peek(), self.exp_stat_sn);
        let ping = |initiator_task_tag, target_transfer_tag, lun| NopOut {
            immediate: true,
            lun,
            initiator_task_tag,
            target_transfer_tag,
            cmd_sn,
            exp_stat_sn,
        };
        match control {
            Control::Ping => {
                self.pings += 1;
                self.pings_sent = self.pings_sent.wrapping_add(1);
                let itt = InitiatorTaskTag(u32::from(self.pings_sent) << 16 | PING_SLOT);
                let header = ping(itt, TargetTransferTag::RESERVED, 0).emit();
                Transmit {
                    header,
                    payload: Payload::None,
                }
            }
            Control::Pong { lun, ttt, data } => {
                // RFC 7143 §11.18: tag, LUN and data come back; no answer to the answer
                let mut header = ping(InitiatorTaskTag::RESERVED, ttt, lun).emit();
                let length = u32::try_from(data.len()).expect("below our MaxRecvDataSegmentLength");
                header::set_data_segment_bytes(&mut header, length);
                Transmit {
                    header,
                    payload: Payload::Own(data),
                }
            }
            Control::Logout => {
                let request = LogoutRequest {
                    immediate: true,
                    reason: LogoutReason::CLOSE_SESSION,
                    initiator_task_tag: LOGOUT_TAG,
                    cid: CID,
                    cmd_sn,
                    exp_stat_sn,
                };
                Transmit {
                    header: request.emit(),
                    payload: Payload::None,
                }
            }
        }
    }

    fn transmit_data_out(&mut self) -> Option<Transmit> {
        loop {
            let sequence = self.sequences.front_mut()?;
            let Ok((slot, task)) = self.tasks.find(sequence.itt) else {
                // The task ended early: nobody waits for the rest.
                self.sequences.pop_front();
                continue;
            };
            let Transfer::Write(write) = &mut task.transfer else {
                self.sequences.pop_front();
                continue;
            };
            let piece = sequence.next_piece(self.agreed.theirs_max_recv_data_segment_bytes);
            write.note_sent(&piece, sequence.ttt != TargetTransferTag::RESERVED);
            let data_out = DataOut {
                is_final: piece.is_final,
                // RFC 7143 §11.7.4, §11.8.5: LUN and tag as the R2T has them
                lun: sequence.lun,
                initiator_task_tag: sequence.itt,
                target_transfer_tag: sequence.ttt,
                exp_stat_sn: self.exp_stat_sn,
                data_sn: piece.data_sn,
                buffer_offset: piece.offset,
            };
            if piece.is_final {
                self.sequences.pop_front();
            }
            let mut header = data_out.emit();
            header::set_data_segment_bytes(&mut header, piece.bytes);
            let payload = Payload::Task {
                slot,
                offset: piece.offset,
                bytes: piece.bytes,
                is_data_out: true,
            };
            return Some(Transmit { header, payload });
        }
    }

    fn transmit_command(&mut self) -> Option<Transmit> {
        // RFC 7143 §11.14: after a logout request no command follows; §11.9.1: nor after being asked
        if self.life != Life::LoggedIn || self.ready.is_empty() {
            return None;
        }
        // RFC 7143 §4.2.2.1: the target ignores commands beyond MaxCmdSN, so none may leave
        let cmd_sn = self.window.take()?;
        let slot = self.ready.pop_front()?;
        let (itt, task) = self.tasks.mark_sent(slot);
        let (read, write, length, unasked) = match &task.transfer {
            Transfer::None => (false, false, 0, None),
            Transfer::Read(_) => (true, false, task.transfer.progress().1, None),
            Transfer::Write(write) => {
                let unasked = transfer::unasked(write.length(), &self.agreed);
                (false, true, write.length(), Some(unasked))
            }
        };
        let immediate = unasked.map_or(0, |unasked| unasked.immediate);
        let follows = unasked.filter(|unasked| unasked.end > unasked.immediate);
        let command = ScsiCommand {
            immediate: false,
            // RFC 7143 §11.3.1: F if and only if no unsolicited data follows
            is_final: follows.is_none(),
            read,
            write,
            attribute: TaskAttribute::SIMPLE,
            lun: task.lun,
            initiator_task_tag: itt,
            expected_data_transfer_bytes: length,
            cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
            cdb: task.cdb,
        };
        let mut header = command.emit();
        header::set_data_segment_bytes(&mut header, immediate);
        if let Some(unasked) = follows {
            self.sequences
                .push_back(Sequence::unsolicited(itt, unasked));
        }
        let payload = if immediate == 0 {
            Payload::None
        } else {
            Payload::Task {
                slot,
                offset: 0,
                bytes: immediate,
                is_data_out: false,
            }
        };
        Some(Transmit { header, payload })
    }
}

#[cfg(test)]
mod tests;
