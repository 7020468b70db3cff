//! From requests in bytes to SCSI commands in blocks, and back: the decisions of a LUN, without I/O.
//!
//! ```text
//!   submit ──► Active request ──► poll_command: pieces within the limits ──► (driver)
//!                 │  ▲                                   ▲                        │
//!   poll_      all│  │more pieces,             repeats,  │                        ▼
//!   completion ◄──┘  └─ then a cache flush     paused ───┴──── handle_completion ─┘
//! ```
//!
//! Source: SBC-4 4.15 (caches), 5.20 to 5.49 (commands); SAM-5 5.3 (status), 5.14 (unit attention).
//!
//! Invariants:
//! 1. Every request that `submit` took ends exactly once, and only when none of its commands is out.
//! 2. A request that must be stable before its answer ends after a cache flush that left after all its writes were
//!    answered (NBD: a flush covers the writes answered before; FUA covers the write itself).
//! 3. A command is repeated only if the answer says that it was not done, or was given up. What a lost session leaves
//!    open is the nexus's to settle.
//! 4. A read ends well only if every byte of it was moved.
//! 5. Steady work on requests of one command each allocates nothing.

mod job;
mod remarks;
mod status;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use iscsi::client::Patience;
use iscsi::io::{Command, Completion as Answer, Data};
use iscsi::scsi::sense::code;
use iscsi::scsi::{Attention, ByteCount, Cdb, Lba, Sense, SenseKey, Verdict};

use super::failure::kind_of;
use super::limits::Limits;
use super::losses::Losses;
use super::pace::{DEPTH_MAX, Pace};
use crate::block::{Completion, ErrorKind, Operation, Request};
use job::{Active, Next};
use remarks::{Remark, Remarks};

/// All requests and commands of one LUN.
#[derive(Debug)]
pub(super) struct Machine {
    limits: Limits,
    active: Vec<Option<Active>>,
    active_free: Vec<usize>,
    tasks: Vec<Option<Task>>,
    tasks_free: Vec<usize>,
    /// Requests with commands to send, oldest first; a request is in it at most once.
    ready: VecDeque<usize>,
    /// Tasks that are to be repeated.
    repeats: Vec<Repeat>,
    done: VecDeque<Completion>,
    /// Commands at the driver.
    out: usize,
    pace: Pace,
    /// Zeroes to send, and the one block that WRITE SAME repeats.
    zeroes: Bytes,
    /// Writes that had been answered were lost, on this lane or another of the volume: the next flush must say so.
    losses: Losses,
    /// How many of them the front has heard of.
    losses_told: u64,
    remarks: Remarks,
}

/// One command of a request, from its first sending to its last answer.
#[derive(Debug)]
struct Task {
    request: usize,
    cdb: Cdb,
    lba: Lba,
    /// Bytes that GOOD must have moved; `None` for commands whose data is only a parameter.
    bytes: Option<u32>,
    patience: Patience,
}

#[derive(Debug)]
struct Repeat {
    due: Instant,
    task: usize,
    data: Data,
}

impl Machine {
    pub(super) fn new(limits: Limits, losses: Losses, now: Instant) -> Self {
        let zeroes = limits.block_length.bytes_of(limits.zeroes_max).0;
        let zeroes = usize::try_from(zeroes).unwrap_or_default();
        Self {
            limits,
            active: (0..REQUESTS_MAX).map(|_| None).collect(),
            active_free: (0..REQUESTS_MAX).rev().collect(),
            tasks: (0..DEPTH_MAX).map(|_| None).collect(),
            tasks_free: (0..DEPTH_MAX).rev().collect(),
            ready: VecDeque::with_capacity(REQUESTS_MAX),
            repeats: Vec::with_capacity(DEPTH_MAX),
            done: VecDeque::with_capacity(REQUESTS_MAX),
            out: 0,
            pace: Pace::new(),
            zeroes: Bytes::from(vec![0; zeroes]),
            losses_told: losses.count(),
            losses,
            remarks: Remarks::new(now),
        }
    }

    /// Takes a request.
    ///
    /// # Errors
    /// Gives it back when no slot is free.
    pub(super) fn submit(&mut self, request: Request) -> Result<(), Request> {
        let Some(slot) = self.active_free.pop() else {
            return Err(request);
        };
        let token = request.token;
        match self.accept(request) {
            Ok(active) => {
                self.active[slot] = Some(active);
                self.go_on(slot);
            }
            Err(kind) => {
                self.active_free.push(slot);
                self.done.push_back(Completion {
                    token,
                    result: Err(kind),
                });
            }
        }
        Ok(())
    }

    /// The driver's answer to a task.
    pub(super) fn handle_completion(&mut self, answer: Answer, name: &str, now: Instant) {
        let slot = usize::try_from(answer.token).unwrap_or(usize::MAX);
        let Some(task) = self.tasks.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        self.out = self.out.saturating_sub(1);
        let Answer {
            status,
            sense,
            transferred,
            data,
            ..
        } = answer;
        let verdict = Verdict::of(status, sense.as_ref());
        let pause = task.patience.pause(verdict);
        match verdict {
            Verdict::Good => self.pace.handle_good(),
            Verdict::TaskSetFull => self.pace.handle_full(self.out),
            Verdict::UnitAttention => {
                let attention = sense.as_ref().and_then(Attention::of);
                if attention.is_some_and(Attention::lost_power) && self.limits.has_volatile_cache()
                {
                    self.losses.note();
                }
            }
            Verdict::DeferredError => self.losses.note(),
            Verdict::Busy
            | Verdict::BecomingReady
            | Verdict::Aborted
            | Verdict::SwitchPath
            | Verdict::ReservationConflict
            | Verdict::OurFault
            | Verdict::Failed => {}
        }
        if verdict != Verdict::Good && self.remarks.may_speak(now) {
            let what = Remark {
                cdb: task.cdb,
                lba: task.lba,
                status,
                sense: sense.as_ref(),
            };
            tracing::warn!(lun = name, %what, repeated = pause.is_some(), "a command was not done");
        }
        if let Some(pause) = pause {
            self.repeats.push(Repeat {
                due: now + pause,
                task: slot,
                data,
            });
            return;
        }
        let short = task.bytes.is_some_and(|bytes| bytes != transferred);
        let outcome = match verdict {
            Verdict::Good if short => Err(ErrorKind::Io),
            Verdict::Good => Ok(data),
            Verdict::UnitAttention
            | Verdict::DeferredError
            | Verdict::Busy
            | Verdict::BecomingReady
            | Verdict::TaskSetFull
            | Verdict::Aborted
            | Verdict::SwitchPath
            | Verdict::ReservationConflict
            | Verdict::OurFault
            | Verdict::Failed => Err(kind_of(status, sense.as_ref())),
        };
        if let Some(task) = self.free_task(slot) {
            self.settle(&task, outcome, sense.as_ref());
        }
    }

    /// The driver did not take a command: it stays to be sent.
    pub(super) fn handle_unsent(&mut self, task: u64, command: Command, now: Instant) {
        self.out = self.out.saturating_sub(1);
        let task = usize::try_from(task).unwrap_or(usize::MAX);
        self.repeats.push(Repeat {
            due: now,
            task,
            data: command.data,
        });
    }

    /// A command will not be answered: its session was lost, and what was to be done about it was done.
    pub(super) fn handle_failed(&mut self, task: u64) {
        self.out = self.out.saturating_sub(1);
        let slot = usize::try_from(task).unwrap_or(usize::MAX);
        if let Some(task) = self.free_task(slot) {
            self.settle(&task, Err(ErrorKind::Io), None);
        }
    }

    /// The unit has lost power meanwhile: what its volatile cache held is gone, whoever wrote it.
    pub(super) fn handle_power_lost(&mut self) {
        if self.limits.has_volatile_cache() {
            self.losses.note();
        }
    }

    /// The unit has so many bytes now; whether that is more than before, and whole blocks.
    pub(super) fn handle_growth(&mut self, size_bytes: u64) -> bool {
        let end = self.limits.block_length.lba_at(ByteCount(size_bytes));
        let grown = end.filter(|end| *end > self.limits.end);
        self.limits.end = grown.unwrap_or(self.limits.end);
        grown.is_some()
    }

    /// The next command to send, with its task's number.
    pub(super) fn poll_command(&mut self, now: Instant) -> Option<(u64, Command)> {
        if self.out >= self.pace.depth() {
            return None;
        }
        let (slot, data) = match self.due(now) {
            Some(repeat) => (repeat.task, repeat.data),
            None => self.begin()?,
        };
        let task = self.tasks[slot].as_mut()?;
        self.out += 1;
        let command = Command {
            lun: self.limits.lun,
            cdb: task.cdb,
            data,
        };
        Some((u64::try_from(slot).unwrap_or(u64::MAX), command))
    }

    /// The next request that has ended.
    pub(super) fn poll_completion(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    /// Whether what `poll_command` gives depends on the time.
    pub(super) fn is_timed(&self) -> bool {
        !self.repeats.is_empty()
    }

    /// When to come back even if nothing happens.
    pub(super) fn poll_deadline(&self) -> Option<Instant> {
        let held = self.out >= self.pace.depth();
        self.repeats
            .iter()
            .map(|repeat| repeat.due)
            .min()
            .filter(|_| !held)
    }

    /// How many more requests `submit` takes.
    pub(super) fn free_slots(&self) -> usize {
        self.active_free.len()
    }

    /// Turns a request into work, or says why it cannot be done.
    fn accept(&self, request: Request) -> Result<Active, ErrorKind> {
        let Request {
            token,
            operation,
            offset,
        } = request;
        let (bytes, writes) = match &operation {
            Operation::Read(data) => (data.len(), false),
            Operation::Write { data, .. } => (data.len(), true),
            Operation::Flush => return Ok(Active::flush(token)),
            Operation::Trim { len } | Operation::WriteZeroes { len, .. } => {
                (usize::try_from(*len).unwrap_or(usize::MAX), true)
            }
            Operation::Cache { len } | Operation::BlockStatus { len, .. } => {
                (usize::try_from(*len).unwrap_or(usize::MAX), false)
            }
        };
        let length = self.limits.block_length;
        let begin = length.lba_at(ByteCount(offset)).ok_or(ErrorKind::Invalid)?;
        let bytes = u64::try_from(bytes).map_err(|_| ErrorKind::Invalid)?;
        let blocks = length
            .blocks_in(ByteCount(bytes))
            .ok_or(ErrorKind::Invalid)?;
        match begin.checked_add(blocks) {
            Some(end) if end <= self.limits.end => {}
            _ => return Err(ErrorKind::OutOfRange),
        }
        if writes && self.limits.read_only {
            return Err(ErrorKind::ReadOnly);
        }
        if let Operation::WriteZeroes {
            no_hole,
            fast: true,
            ..
        } = operation
            && (no_hole || !self.limits.can_unmap_to_zeroes())
        {
            return Err(ErrorKind::NotFast);
        }
        Ok(Active::new(token, operation, begin, blocks, &self.limits))
    }

    /// Takes the repeat that has waited longest, if its time has come.
    fn due(&mut self, now: Instant) -> Option<Repeat> {
        let at = (0..self.repeats.len()).min_by_key(|at| self.repeats[*at].due)?;
        (self.repeats[at].due <= now).then(|| self.repeats.swap_remove(at))
    }

    /// Begins the next command of the oldest request that has one.
    fn begin(&mut self) -> Option<(usize, Data)> {
        loop {
            let request = *self.ready.front()?;
            let active = self.active.get_mut(request).and_then(Option::as_mut)?;
            if active.has_command() {
                let slot = self.tasks_free.pop()?;
                let Next {
                    cdb,
                    lba,
                    bytes,
                    data,
                } = active.next_command(&self.limits, &self.zeroes);
                let patience = Patience::default();
                self.tasks[slot] = Some(Task {
                    request,
                    cdb,
                    lba,
                    bytes,
                    patience,
                });
                return Some((slot, data));
            }
            // Its commands are all out, or it has failed meanwhile.
            active.queued = false;
            self.ready.pop_front();
        }
    }

    /// The last answer of a task goes into its request.
    fn settle(&mut self, task: &Task, outcome: Result<Data, ErrorKind>, sense: Option<&Sense>) {
        let can_do_without = self.can_do_without_flush(sense);
        let Some(active) = self.active.get_mut(task.request).and_then(Option::as_mut) else {
            return;
        };
        match outcome {
            Ok(Data::In(piece)) => active.handle_piece(task.lba, piece, &self.limits),
            Ok(Data::Out(_) | Data::None) => {}
            Err(kind) if active.is_write_same() && refuses_command(sense) => {
                // It was told that the unit can, and it cannot: send the zeroes from now on.
                self.limits.write_same = None;
                if active.is_fast() {
                    active.fail(ErrorKind::NotFast);
                } else {
                    active.zero_by_writing();
                }
                tracing::debug!(%kind, "WRITE SAME(16) is refused; zeroes are sent instead");
            }
            Err(_) if active.is_prefetch() => {
                self.limits.prefetch &= !refuses_command(sense);
                active.leave_the_rest();
            }
            Err(_) if active.is_status() && refuses_command(sense) => {
                self.limits.lba_status = false;
                active.assume_allocated(&self.limits);
            }
            Err(_) if active.is_flushing() && can_do_without => {}
            Err(kind) => active.fail(kind),
        }
        active.out -= 1;
        self.go_on(task.request);
    }

    /// After acceptance and after each answer: more commands, or the end.
    fn go_on(&mut self, request: usize) {
        let Some(active) = self.active.get_mut(request).and_then(Option::as_mut) else {
            return;
        };
        if active.out > 0 {
            return;
        }
        if !active.go_on() {
            self.finish(request);
        } else if !active.queued {
            active.queued = true;
            self.ready.push_back(request);
        }
    }

    fn finish(&mut self, request: usize) {
        let Some(active) = self.active.get_mut(request).and_then(Option::take) else {
            return;
        };
        if active.queued {
            // Only after a failure: else a request leaves the queue with its last command.
            self.ready.retain(|ready| *ready != request);
        }
        self.active_free.push(request);
        let token = active.token;
        let (stable, flush) = (active.is_flushing(), active.is_flush_request());
        let mut result = active.into_result();
        if stable && result.is_ok() {
            let losses = self.losses.count();
            if losses != self.losses_told {
                result = Err(ErrorKind::Io);
                if flush {
                    // The front hears of it once by a flush, as a file system does of a failed writeback.
                    self.losses_told = losses;
                }
            }
        }
        self.done.push_back(Completion { token, result });
    }

    /// SBC-4: a unit without a volatile cache need not know SYNCHRONIZE CACHE. One that says it has a cache must.
    fn can_do_without_flush(&self, sense: Option<&Sense>) -> bool {
        self.limits.write_cache != Some(true)
            && sense.is_some_and(|sense| {
                sense.key == SenseKey::IllegalRequest && sense.is(code::INVALID_OPERATION_CODE)
            })
    }

    fn free_task(&mut self, slot: usize) -> Option<Task> {
        let task = self.tasks.get_mut(slot)?.take()?;
        self.tasks_free.push(slot);
        Some(task)
    }
}

/// Is it the command, or a bit of it, that the unit does not know?
fn refuses_command(sense: Option<&Sense>) -> bool {
    sense.is_some_and(|sense| {
        sense.key == SenseKey::IllegalRequest
            && (sense.is(code::INVALID_OPERATION_CODE) || sense.is(code::INVALID_FIELD_IN_CDB))
    })
}

/// As deep as the kernel's NBD driver queues on one socket.
const REQUESTS_MAX: usize = 128;
