//! What a session keeps for each of its connections.
//!
//! ```text
//!               async message, our wish          all tasks answered, or time is up
//!   LoggedIn ------------------------> LogoutRequested ------------> InLogout --answer--> Free
//! ```
//!
//! `XptWait` and `InLogin` are the login's: a connection joins its session in full feature phase.
//! `CleanupWait` does not occur, because at level 0 the loss of a connection ends the session.
//!
//! Source: RFC 7143 §8.1 (states), §4.2.2.2 (status numbers).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::receive::Pending;
use super::{PONGS_MAX, SEQUENCES_READY, Settings, Violation, earlier};
use crate::proto::keepalive::Keepalive;
use crate::proto::login::Established;
use crate::proto::transfer::Sequence;
use crate::wire::header::ResponseNumbers;
use crate::wire::logout::LogoutReason;
use crate::wire::serial::StatSn;
use crate::wire::tag::{InitiatorTaskTag, TargetTransferTag};

/// A connection in full feature phase.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) state: State,
    pub(super) exp_stat_sn: StatSn,
    /// What the target was last told of it.
    told_stat_sn: StatSn,
    /// RFC 7143 §4.2.5.2: in order; unsolicited data leaves in the order of its commands.
    pub(super) sequences: VecDeque<Sequence>,
    pub(super) control: VecDeque<Control>,
    pub(super) keepalive: Keepalive,
    /// Pings that left and were not answered.
    pub(super) pings: u16,
    /// Tasks that were sent here and not answered.
    pub(super) sent: usize,
    /// The PDU whose data segment is due.
    pub(super) pending: Option<Pending>,
}

/// RFC 7143 §8.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    LoggedIn,
    /// No command leaves here any more; those in flight may end, until the time given.
    LogoutRequested {
        until: Option<Instant>,
        is_asked_by_target: bool,
    },
    /// A logout is queued or sent.
    InLogout {
        reason: LogoutReason,
        is_asked_by_target: bool,
    },
    /// Closed in order.
    Free,
}

/// A control PDU that waits to leave.
#[derive(Clone, Debug)]
pub(super) enum Control {
    Ping(InitiatorTaskTag),
    Pong {
        lun: u64,
        ttt: TargetTransferTag,
        data: Bytes,
    },
    /// Tells the target our status number, and expects nothing.
    Acknowledge {
        lun: u64,
    },
    /// A task management function, by its tag.
    Function(InitiatorTaskTag),
    Logout(LogoutReason),
}

/// How far the target's status numbers may run ahead of what we told it before an idle connection
/// tells it unasked. Every command tells it anyway; chosen freely below a common window of 64.
const UNTOLD_MAX: u32 = 32;
/// How long a connection is idle before it does so; chosen freely, above any pause of a busy one.
const UNTOLD_FOR: Duration = Duration::from_secs(1);

impl Connection {
    pub(super) fn new(established: &Established, settings: &Settings, now: Instant) -> Self {
        Self {
            state: State::LoggedIn,
            exp_stat_sn: established.exp_stat_sn,
            told_stat_sn: established.exp_stat_sn,
            sequences: VecDeque::with_capacity(SEQUENCES_READY),
            control: VecDeque::with_capacity(PONGS_MAX + 2),
            keepalive: Keepalive::new(settings.noop_interval, settings.noop_timeout, now),
            pings: 0,
            sent: 0,
            pending: None,
        }
    }

    /// RFC 7143 §4.2.2.2: status numbers rise by one on a connection. A gap means that a status was
    /// lost, which error recovery level 0 cannot mend.
    pub(super) fn count_status(&mut self, numbers: ResponseNumbers) -> Result<(), Violation> {
        let (StatSn(expected), StatSn(seen)) = (self.exp_stat_sn, numbers.stat_sn);
        if expected != seen {
            return Err(Violation::StatSn { expected, seen });
        }
        self.exp_stat_sn = self.exp_stat_sn.next();
        Ok(())
    }

    /// The status number for a PDU that leaves now.
    pub(super) fn tell_stat_sn(&mut self) -> StatSn {
        self.told_stat_sn = self.exp_stat_sn;
        self.exp_stat_sn
    }

    /// When the target is to be told our status number although nothing else is to be said.
    pub(super) fn acknowledge_at(&self) -> Option<Instant> {
        (self.untold() >= UNTOLD_MAX && self.control.is_empty())
            .then(|| self.keepalive.last_heard() + UNTOLD_FOR)
    }

    /// How many statuses came since the target was last told.
    pub(super) fn untold(&self) -> u32 {
        self.told_stat_sn.steps_to(self.exp_stat_sn)
    }

    /// When something is due here.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let logout = match self.state {
            State::LoggedIn | State::InLogout { .. } => None,
            State::LogoutRequested { until, .. } => until,
            State::Free => return None,
        };
        let quiet = self.keepalive.deadline();
        if logout.is_none() && self.untold() < UNTOLD_MAX {
            return quiet;
        }
        earlier(earlier(logout, self.acknowledge_at()), quiet)
    }

    pub(super) fn is_open(&self) -> bool {
        self.state != State::Free
    }
}
