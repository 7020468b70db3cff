//! A normal session in full feature phase, with one connection or several.
//!
//! ```text
//!   submit --> ready --(window)--> command --> [unsolicited] --\        of the session
//!  ----------------------------------------------- R2T --> sequences --> Data-Out
//!   timeouts, pings, functions, logout --> control --> NOP-Out, ...     of each connection
//!
//!   poll_urgent: control, then sequences;  poll_command: ready;  poll_transmit: both, in this order
//!   handle_header: header -> placement;    handle_segment: the PDU is whole -> event
//! ```
//!
//! `CmdSN`, window and tasks are the session's; status numbers, data and pings a connection's. A task
//! stays on the connection that carried its command (allegiance). What ends the session is an `Err`,
//! and nothing may be called after it. The loss of any connection is such an end: at error recovery
//! level 0 the session is begun anew as a whole (RFC 7143 §7.1.4.4), as its tasks on that connection
//! could not be taken over.
//!
//! Rooms: `connection` (what each one keeps, states of §8.1), `transmit`, `receive`, `unasked`
//! (asynchronous messages, Reject), `management` (task management functions), `ladder` (commands that
//! are not answered), `logout`.
//!
//! Source: RFC 7143 §4.2.2, §4.2.5, §8.1, §11.
//!
//! Invariants:
//! 1. `CmdSN` and `ExpStatSN` are given when a PDU leaves.
//! 2. Control PDUs and Data-Out never wait for the window, nor behind commands.
//! 3. Every queue has a limit: tasks by their slots, sequences by tasks times `MaxOutstandingR2T` + 1,
//!    pings by `PONGS_MAX`, functions by `FUNCTIONS_MAX`, connections by `CONNECTIONS_MAX`.
//!
//! Buffers, sockets and timers are `io`'s; SCSI errors are answers, and are handed up.

mod connection;
mod ladder;
mod logout;
mod management;
mod receive;
mod transmit;
mod unasked;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::keepalive::Due;
use super::login::Established;
use super::negotiation::Agreed;
use super::task::{Tasks, Transfer};
use super::timeouts::Timeouts;
use super::transfer::{self, Read, Write};
use super::window::Window;
use super::{Misuse, SessionError, Violation};
use crate::scsi::{Sense, Status};
use crate::wire::header::Bhs;
use crate::wire::scsi_response::ServiceResponse;
use crate::wire::serial::CmdSn;
use crate::wire::tag::InitiatorTaskTag;
use crate::wire::task_management::TaskManagementOutcome;

use connection::{Connection, Control, State};
use ladder::Ladder;
use management::Function;

/// Most commands in flight of a session, if its owner does not say otherwise: tgt's and
/// open-iscsi's default too.
pub const TASKS_MAX: u16 = 128;
/// Most connections of a session; chosen freely: more than a host has paths to a target.
pub const CONNECTIONS_MAX: u16 = 8;
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
    /// How long commands may take, and the steps against those that take longer.
    pub timeouts: Timeouts,
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

/// What whoever drives the session must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A command is over, and its slot is free.
    Completed(Completed),
    /// A task management function that the owner asked for is over.
    FunctionEnded {
        /// The tag that `handle_task_management` gave.
        tag: InitiatorTaskTag,
        /// How it went.
        outcome: TaskManagementOutcome,
    },
    /// A connection was closed in order; the others go on.
    ConnectionClosed {
        /// Which one.
        cid: u16,
    },
    /// Something for the session's owner.
    Told(TargetEvent),
}

/// What a target says unasked, for the session's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TargetEvent {
    /// A SCSI event of a logical unit: its capacity, its LUNs or its state may have changed.
    ScsiEvent {
        /// Which one, a SAM address.
        lun: u64,
        /// What happened.
        sense: Option<Sense>,
    },
    /// The target wants a connection to be logged out; this has begun.
    LogoutRequested {
        /// Which one.
        cid: u16,
        /// How long the target waits, seconds.
        seconds: u16,
    },
    /// The target ends all tasks of a logical unit.
    TasksTerminated {
        /// Which one, a SAM address.
        lun: u64,
    },
    /// An event of the vendor's own.
    Vendor {
        /// The vendor's code.
        code: u8,
    },
    /// An event that means nothing to us.
    Unknown {
        /// RFC 7143 §11.9.1.
        code: u8,
    },
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completed {
    /// Which slot is free now.
    pub slot: u16,
    /// The iSCSI service response; `None` if the task was aborted and there is none.
    pub response: Option<ServiceResponse>,
    /// The SCSI status; `Status::TASK_ABORTED` where `response` is not `COMPLETED`, so that it is
    /// never taken for a success.
    pub status: Status,
    /// Sense data, if some came.
    pub sense: Option<Sense>,
    /// Bytes moved.
    pub transferred: u32,
    /// Bytes that the target would have moved beyond the buffer: the CDB named more than it holds.
    pub overflow: u32,
}

/// The machine of one session.
#[derive(Debug)]
pub struct Session {
    agreed: Agreed,
    settings: Settings,
    window: Window,
    tasks: Tasks,
    /// Slots that wait for the window, in order of submission.
    ready: VecDeque<u16>,
    /// By CID, without gaps.
    connections: Vec<Connection>,
    /// Task management functions under way.
    functions: Vec<Function>,
    ladder: Ladder,
    /// What is to be told besides the answer to the PDU at hand.
    events: VecDeque<Event>,
    /// A logout of the whole session is queued or sent.
    is_ending: bool,
    /// Makes the tags of pings and functions differ.
    tags: u16,
}

/// Tags of control PDUs, in their lower half: behind those of the tasks (`task::SLOTS_MAX`).
const PING_SLOT: u32 = 0xff00;
const LOGOUT_SLOT: u32 = 0xff01;
const FUNCTION_SLOT: u32 = 0xff02;

impl Session {
    /// The session that a login established, with its leading connection.
    pub fn new(established: &Established, settings: Settings, now: Instant) -> Self {
        let tasks = Tasks::new(settings.tasks);
        let mut session = Self {
            agreed: established.agreed.clone(),
            window: Window::new(established.cmd_sn, &established.numbers),
            ready: VecDeque::with_capacity(tasks.free()),
            ladder: Ladder::new(&settings, tasks.free(), now),
            tasks,
            connections: Vec::with_capacity(1),
            functions: Vec::new(),
            events: VecDeque::new(),
            is_ending: false,
            tags: 0,
            settings,
        };
        session.join(established, now);
        session
    }

    /// A further login joined the session, before its first command; gives the connection's CID, which
    /// must be the login's.
    pub fn join(&mut self, established: &Established, now: Instant) -> u16 {
        let cid = u16::try_from(self.connections.len()).unwrap_or(u16::MAX);
        self.window.update(&established.numbers);
        // RFC 7143 §13.12: each connection has lengths of its own. A task is cut into pieces before it
        // is known where it goes, so that the shortest length holds for all.
        let (agreed, joined) = (&mut self.agreed, &established.agreed);
        agreed.theirs_max_recv_data_segment_bytes = agreed
            .theirs_max_recv_data_segment_bytes
            .min(joined.theirs_max_recv_data_segment_bytes);
        agreed.ours_max_recv_data_segment_bytes = agreed
            .ours_max_recv_data_segment_bytes
            .max(joined.ours_max_recv_data_segment_bytes);
        let connection = Connection::new(established, &self.settings, now);
        self.connections.push(connection);
        cid
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

    /// Bytes came: the target lives.
    ///
    /// # Panics
    /// If no connection has this CID, as all that name one.
    pub fn handle_heard(&mut self, cid: u16, now: Instant) {
        self.at(cid).keepalive.heard(now);
    }

    /// Does what is due at `now`.
    ///
    /// # Errors
    /// The target was silent for too long, or does not answer a command whatever is done.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), SessionError> {
        for cid in self.cids() {
            if !self.at(cid).is_open() {
                continue;
            }
            let connection = self.at(cid);
            if let State::LogoutRequested {
                until: Some(until),
                is_asked_by_target,
            } = connection.state
                && until <= now
            {
                self.queue_logout(cid, is_asked_by_target);
            }
            let connection = self.at(cid);
            if connection.acknowledge_at().is_some_and(|at| at <= now) {
                connection
                    .control
                    .push_back(Control::Acknowledge { lun: 0 });
            }
            match self.at(cid).keepalive.due(now) {
                Due::Nothing => {}
                // RFC 7143 §11.14 (F29): nothing new after a logout; that it is not answered is noticed all
                // the same
                Due::Ping if matches!(self.at(cid).state, State::InLogout { .. }) => {}
                Due::Ping => {
                    self.queue_ping(cid);
                }
                Due::GiveUp => {
                    return Err(SessionError::Silent {
                        after: self.settings.noop_timeout,
                    });
                }
            }
        }
        self.climb(now)?;
        self.watch(now)
    }

    /// When `handle_timeout` is to be called next; earlier calls do no harm.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let is_idle = self.tasks.is_empty() && self.functions.is_empty();
        let mut due = self.ladder.deadline(is_idle);
        // A driver asks whenever it has nothing to do: this loop is on the path of a lone I/O.
        for connection in &self.connections {
            due = earlier(due, connection.deadline());
        }
        due
    }

    /// What is to be told besides what `handle_segment` gave; to be asked after it and after
    /// `handle_timeout`, until there is nothing.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// How many more commands `submit` takes.
    pub fn free_slots(&self) -> usize {
        self.tasks.free()
    }

    /// What the login agreed on.
    pub fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    /// The number that the login of a further connection carries.
    pub fn cmd_sn(&self) -> CmdSn {
        self.window.peek()
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.connections
            .iter()
            .filter(|connection| connection.is_open())
            .count()
    }

    fn queue_ping(&mut self, cid: u16) -> InitiatorTaskTag {
        let itt = self.next_tag(PING_SLOT);
        self.at(cid).control.push_back(Control::Ping(itt));
        itt
    }

    /// A tag that no other PDU of this session has now.
    fn next_tag(&mut self, slot: u32) -> InitiatorTaskTag {
        self.tags = self.tags.wrapping_add(1);
        InitiatorTaskTag(u32::from(self.tags) << 16 | slot)
    }

    fn at(&mut self, cid: u16) -> &mut Connection {
        &mut self.connections[usize::from(cid)]
    }

    fn at_ref(&self, cid: u16) -> &Connection {
        &self.connections[usize::from(cid)]
    }

    /// The CIDs of all connections that were ever opened.
    fn cids(&self) -> std::ops::Range<u16> {
        0..u16::try_from(self.connections.len()).unwrap_or(u16::MAX)
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, None) => one,
        (None, other) => other,
    }
}

#[cfg(test)]
mod tests;
