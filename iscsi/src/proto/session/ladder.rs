//! Commands that are not answered: from patience to the end of the session.
//!
//! ```text
//!  overdue --> ping --answered--> ABORT TASK --no, or silence--> LOGICAL UNIT RESET --> session ends
//!               | silence              | done                        | done             |
//!               v                      v                             v                  v
//!          session ends         the task: TASK ABORTED     the LUN's tasks likewise   Unanswered
//! ```
//!
//! The session's tasks are looked at in rounds, some to each timeout, so that an I/O costs no look at
//! the clock: a task may be late by a round. A task's time begins anew with every byte that it, or an
//! older task, moved since the last round, and with every older task that ended; and it does not run
//! out before that of an older one, behind which the target may have put it. One task climbs at a time:
//! the oldest.
//!
//! Source: RFC 7143 §4.2.3, §7.1.4.4 (session recovery), §7.11 (SCSI timeouts), §11.5.
//!
//! Invariants:
//! 1. A write that was not answered ends only with the target's word that it is gone, or with the
//!    session: a write that lands after its owner was told could overwrite a newer one.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use super::{Session, SessionError, Settings};
use crate::proto::Attempt;
use crate::proto::timeouts::Timeouts;
use crate::scsi::Cdb;
use crate::scsi::cdb::TimeoutClass;
use crate::wire::tag::InitiatorTaskTag;
use crate::wire::task_management::{TaskManagementFunction, TaskManagementOutcome};

/// The rounds, and the climb under way.
#[derive(Debug)]
pub(super) struct Ladder {
    timeouts: Timeouts,
    /// For the answer to the ping of a climb.
    ping: Duration,
    /// From round to round; `None` if nothing is timed.
    round: Option<Duration>,
    last_round: Instant,
    next_round: Option<Instant>,
    /// Since when commands wait with none in flight.
    closed_since: Option<Instant>,
    climb: Option<Climb>,
    /// The sent tasks in order of age; kept for its memory.
    order: Vec<u16>,
}

#[derive(Debug)]
struct Climb {
    itt: InitiatorTaskTag,
    cid: u16,
    lun: u64,
    /// What the command was given.
    after: Duration,
    rung: Rung,
    /// Of the ping or the function.
    tag: Option<InitiatorTaskTag>,
    until: Instant,
    answer: Option<TaskManagementOutcome>,
    attempts: Vec<Attempt>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rung {
    Ping,
    Abort,
    Reset,
}

/// Rounds to the shortest timeout; chosen freely: a task is late by at most an eighth.
const ROUNDS: u32 = 8;

impl Ladder {
    pub(super) fn new(settings: &Settings, tasks: usize, now: Instant) -> Self {
        let timeouts = settings.timeouts;
        let shortest = [timeouts.command, timeouts.slow, timeouts.lu_reset]
            .into_iter()
            .filter(|timeout| !timeout.is_zero())
            .min();
        let round = shortest.map(|shortest| shortest / ROUNDS);
        Self {
            timeouts,
            // A ping that may take for ever is given as long as an abort.
            ping: [settings.noop_timeout, timeouts.abort, timeouts.command]
                .into_iter()
                .find(|timeout| !timeout.is_zero())
                .unwrap_or(timeouts.slow),
            round,
            last_round: now,
            next_round: round.map(|round| now + round),
            closed_since: None,
            climb: None,
            order: Vec::with_capacity(tasks),
        }
    }

    /// When the next round or step is due.
    pub(super) fn deadline(&self, is_idle: bool) -> Option<Instant> {
        let round = if is_idle { None } else { self.next_round };
        match &self.climb {
            None => round,
            // The step after an answer is due at once.
            Some(climb) if climb.answer.is_some() => Some(self.last_round),
            Some(climb) => Some(round.map_or(climb.until, |round| round.min(climb.until))),
        }
    }

    /// A function or a ping was answered: if it was the climb's, it goes on.
    pub(super) fn answered(&mut self, tag: InitiatorTaskTag, outcome: TaskManagementOutcome) {
        if let Some(climb) = &mut self.climb
            && climb.tag == Some(tag)
        {
            climb.answer = Some(outcome);
        }
    }

    /// How long a command may be quiet; `None` for ever.
    fn patience(&self, cdb: &[u8; 16]) -> Option<Duration> {
        let timeout = match Cdb(*cdb).timeout_class() {
            TimeoutClass::Normal => self.timeouts.command,
            TimeoutClass::Flush | TimeoutClass::Zeroing => self.timeouts.slow,
        };
        (!timeout.is_zero()).then_some(timeout)
    }

    /// How long a rung may take; `None` if it is left out.
    fn time(&self, rung: Rung) -> Option<Duration> {
        let time = match rung {
            Rung::Ping => self.ping,
            Rung::Abort => self.timeouts.abort,
            Rung::Reset => self.timeouts.lu_reset,
        };
        (!time.is_zero()).then_some(time)
    }
}

impl Session {
    /// The next step of a climb, if it is due.
    pub(super) fn climb(&mut self, now: Instant) -> Result<(), SessionError> {
        let Some(mut climb) = self.ladder.climb.take() else {
            return Ok(());
        };
        if self.tasks.find(climb.itt).is_err() {
            // It has ended, one way or the other.
            return Ok(());
        }
        if climb.answer.is_none() && now < climb.until {
            self.ladder.climb = Some(climb);
            return Ok(());
        }
        climb.attempts.push(Attempt {
            function: climb.rung.function(),
            outcome: climb.answer,
        });
        // RFC 7143 §7.11 (E12), §11.6.1 (F33): what did not end the task, by whatever response, calls for the next rung
        let next = match climb.rung {
            Rung::Ping if climb.answer.is_none() => None,
            Rung::Ping => Some(Rung::Abort),
            Rung::Abort => Some(Rung::Reset),
            Rung::Reset => None,
        };
        self.begin(next, climb, now)
    }

    /// A round: notes what moved, and begins a climb for the oldest task whose time is out.
    pub(super) fn watch(&mut self, now: Instant) -> Result<(), SessionError> {
        match self.ladder.next_round {
            Some(at) if at <= now => {}
            Some(_) | None => return Ok(()),
        }
        self.ladder.last_round = now;
        self.ladder.next_round = self.ladder.round.map(|round| now + round);
        self.watch_functions(now)?;
        self.watch_window(now)?;
        let Some((slot, after)) = self.oldest_overdue(now) else {
            return Ok(());
        };
        if self.ladder.climb.is_some() {
            return Ok(());
        }
        let Some(itt) = self.tasks.sent_tag(slot) else {
            return Ok(());
        };
        let task = self.tasks.task(slot);
        let climb = Climb {
            itt,
            cid: task.cid,
            lun: task.lun,
            after,
            rung: Rung::Ping,
            tag: None,
            until: now,
            answer: None,
            attempts: Vec::new(),
        };
        self.begin(Some(Rung::Ping), climb, now)
    }

    fn begin(
        &mut self,
        first: Option<Rung>,
        mut climb: Climb,
        now: Instant,
    ) -> Result<(), SessionError> {
        let mut next = first;
        while let Some(rung) = next {
            next = match rung {
                Rung::Ping => Some(Rung::Abort),
                Rung::Abort => Some(Rung::Reset),
                Rung::Reset => None,
            };
            let Some(time) = self.ladder.time(rung) else {
                continue;
            };
            let tag = match rung.function() {
                None => Some(self.queue_ping(climb.cid)),
                Some(function) => {
                    let task = (rung == Rung::Abort).then_some(climb.itt);
                    self.queue_function(function, climb.lun, task, true).ok()
                }
            };
            if tag.is_none() {
                continue;
            }
            climb.rung = rung;
            climb.tag = tag;
            climb.answer = None;
            climb.until = now + time;
            self.ladder.climb = Some(climb);
            return Ok(());
        }
        Err(SessionError::Unanswered {
            lun: climb.lun,
            after: climb.after,
            attempts: climb.attempts,
        })
    }

    fn oldest_overdue(&mut self, now: Instant) -> Option<(u16, Duration)> {
        let next = self.window.peek();
        let ended = self.tasks.take_oldest_ended();
        let mut order = std::mem::take(&mut self.ladder.order);
        order.clear();
        order.extend(self.tasks.sent_slots());
        order.sort_unstable_by_key(|slot| Reverse(self.tasks.task(*slot).cmd_sn.steps_to(next)));
        let mut deadline: Option<Instant> = None;
        let mut overdue = None;
        for slot in &order {
            let task = self.tasks.task_mut(*slot);
            let moved = task.transfer.progress().0;
            let is_pushed = ended.is_some_and(|ended| ended.precedes(task.cmd_sn));
            let since = match task.watch.quiet_since {
                Some(since) if moved == task.watch.moved && !is_pushed => since,
                Some(_) | None => now,
            };
            task.watch.quiet_since = Some(since);
            task.watch.moved = moved;
            let is_doomed = task.watch.is_doomed;
            let Some(patience) = self.ladder.patience(&task.cdb) else {
                continue;
            };
            let due = deadline.map_or(since + patience, |older| older.max(since + patience));
            deadline = Some(due);
            if overdue.is_none() && (due <= now || is_doomed) {
                overdue = Some((*slot, patience));
            }
        }
        self.ladder.order = order;
        overdue
    }

    /// Commands that wait for the window with none in flight that could open it.
    fn watch_window(&mut self, now: Instant) -> Result<(), SessionError> {
        let is_stuck = self.has_command() && self.tasks.sent() == 0 && !self.window.is_open();
        if !is_stuck || self.ladder.timeouts.command.is_zero() {
            self.ladder.closed_since = None;
            return Ok(());
        }
        let after = now - *self.ladder.closed_since.get_or_insert(now);
        if after >= self.ladder.timeouts.command {
            return Err(SessionError::WindowClosed { after });
        }
        Ok(())
    }

    /// Functions that the owner waits for, and that hold up commands until they are answered.
    fn watch_functions(&mut self, now: Instant) -> Result<(), SessionError> {
        let after = self.ladder.timeouts.lu_reset;
        match self.oldest_function(now) {
            Some((since, function)) if !after.is_zero() && since + after <= now => {
                Err(SessionError::FunctionUnanswered { function, after })
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl Rung {
    fn function(self) -> Option<TaskManagementFunction> {
        match self {
            Self::Ping => None,
            Self::Abort => Some(TaskManagementFunction::ABORT_TASK),
            Self::Reset => Some(TaskManagementFunction::LOGICAL_UNIT_RESET),
        }
    }
}
