//! What is asked of the initiator, and the judgement of each answer.
//!
//! Plays the owner of the initiator: SCSI conditions are repeated as the library's own handles do.
//!
//! Invariants:
//! 1. Writes of one block are never in flight together.
//! 2. Each request ends exactly once; a second end, or the end of one that is unknown, is an error.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use iscsi::client::Patience;
use iscsi::io::{Command, Completion, Data};
use iscsi::scsi::{Blocks, Cdb, Lba, LunAddress, Verdict};
use tokio::time::Instant;

use super::dice::Dice;
use super::oracle::{Moment, Oracle, Write};
use super::plan::Plan;
use super::subject::{Answer, Subject};
use super::target::BLOCK;
use super::world::{Millis, Shared};

/// The owner of one initiator.
#[derive(Debug)]
pub(crate) struct Workload<'a> {
    plan: &'a Plan,
    dice: Dice,
    world: Shared,
    pub(crate) oracle: Oracle,
    flying: BTreeMap<u64, Request>,
    repeats: Vec<(Instant, u64)>,
    next_token: u64,
    sent: usize,
    pub(crate) failures: usize,
    /// Buffers of reads that are over, for the next ones of the same place: their old contents must not show.
    buffers: BTreeMap<(u64, u64), BytesMut>,
}

#[derive(Debug)]
struct Request {
    lba: u64,
    blocks: u64,
    action: Action,
    patience: Patience,
}

#[derive(Debug)]
enum Action {
    Read { since: Moment },
    Write(Write),
    Flush { since: Moment },
}

impl<'a> Workload<'a> {
    pub(crate) fn new(plan: &'a Plan, world: Shared) -> Self {
        Self {
            plan,
            dice: Dice::new(plan.seed, 3),
            world,
            oracle: Oracle::default(),
            flying: BTreeMap::new(),
            repeats: Vec::new(),
            next_token: 1,
            sent: 0,
            failures: 0,
            buffers: BTreeMap::new(),
        }
    }

    /// All requests of the plan, from the first to the last answer.
    ///
    /// # Errors
    /// What was wrong with one of the answers.
    pub(crate) async fn run(&mut self, subject: &mut impl Subject) -> Result<(), String> {
        let work = self.plan.work;
        let mut next = Instant::now();
        while self.sent < work.requests || !self.flying.is_empty() {
            let has_room = self.sent < work.requests && self.flying.len() < work.depth;
            if has_room && next <= Instant::now() {
                if let Some(request) = self.think() {
                    self.sent += 1;
                    self.begin(subject, request)?;
                }
                next = Instant::now() + self.pause();
                continue;
            }
            let failures = self.failures;
            self.turn(subject, has_room.then_some(next)).await?;
            if self.failures > failures {
                // Whoever meets errors does not go on as if there were none.
                next = Instant::now() + Duration::from_millis(self.dice.between(0, 10_000));
            }
        }
        Ok(())
    }

    /// Reads all that was ever touched, when nothing may fail any more.
    ///
    /// # Errors
    /// As `run`.
    pub(crate) async fn read_all(&mut self, subject: &mut impl Subject) -> Result<(), String> {
        let well_again = Instant::now() + self.until_well();
        while Instant::now() < well_again {
            self.turn(subject, Some(well_again)).await?;
        }
        let since = self.oracle.begin();
        let flush = Request {
            lba: 0,
            blocks: 0,
            action: Action::Flush { since },
            patience: Patience::default(),
        };
        self.begin(subject, flush)?;
        for lba in self.oracle.touched() {
            while self.flying.len() >= AT_ONCE {
                self.turn(subject, None).await?;
            }
            let request = self.read(lba, 1);
            self.begin(subject, request)?;
        }
        while !self.flying.is_empty() {
            self.turn(subject, None).await?;
        }
        Ok(())
    }

    /// Waits until something comes, or a repeat or `next` is due.
    async fn turn(
        &mut self,
        subject: &mut impl Subject,
        next: Option<Instant>,
    ) -> Result<(), String> {
        let repeat = self.repeats.iter().map(|(due, _)| *due).min();
        let due = [repeat, next].into_iter().flatten().min();
        let far = Instant::now() + Duration::from_hours(1);
        tokio::select! {
            biased;
            answer = poll_fn(|cx| subject.poll_answer(cx)) => self.handle(subject, answer),
            () = tokio::time::sleep_until(due.unwrap_or(far)) => self.repeat(subject),
        }
    }

    fn repeat(&mut self, subject: &mut impl Subject) -> Result<(), String> {
        let now = Instant::now();
        let due = self.repeats.extract_if(.., |(due, _)| *due <= now);
        for token in due.map(|(_, token)| token).collect::<Vec<_>>() {
            self.send(subject, token)?;
        }
        Ok(())
    }

    /// Invents a request; `None` if chance found no room for it.
    fn think(&mut self) -> Option<Request> {
        let work = self.plan.work;
        let blocks = self.dice.between(1, work.blocks);
        let lba = self.dice.between(0, self.plan.blocks - blocks);
        let percent = self.dice.between(0, 99);
        if percent < work.flushes {
            let since = self.oracle.begin();
            return Some(Request {
                lba: 0,
                blocks: 0,
                action: Action::Flush { since },
                patience: Patience::default(),
            });
        }
        if percent < work.flushes + work.reads {
            return Some(self.read(lba, blocks));
        }
        let is_taken = self.flying.values().any(|request| {
            matches!(request.action, Action::Write(_))
                && lba < request.lba + request.blocks
                && request.lba < lba + blocks
        });
        (!is_taken).then(|| Request {
            lba,
            blocks,
            action: Action::Write(self.oracle.write(lba, blocks)),
            patience: Patience::default(),
        })
    }

    fn read(&mut self, lba: u64, blocks: u64) -> Request {
        let since = self.oracle.begin();
        Request {
            lba,
            blocks,
            action: Action::Read { since },
            patience: Patience::default(),
        }
    }

    fn begin(&mut self, subject: &mut impl Subject, request: Request) -> Result<(), String> {
        let token = self.next_token;
        self.next_token += 1;
        let (name, lba, blocks) = (request.name(), request.lba, request.blocks);
        self.world.tell(format_args!(
            "request {token}: {name} lba {lba} blocks {blocks}"
        ));
        self.flying.insert(token, request);
        self.send(subject, token)
    }

    fn send(&mut self, subject: &mut impl Subject, token: u64) -> Result<(), String> {
        let lun = LunAddress::from_number(self.plan.target.lun);
        let request = self.flying.get(&token).ok_or("a repeat of nothing")?;
        let buffer = self.buffers.remove(&(request.lba, request.blocks));
        subject
            .submit(token, request.command(lun, buffer))
            .map_err(|_| format!("request {token} is not taken, though few are in flight"))
    }

    fn handle(&mut self, subject: &mut impl Subject, answer: Answer) -> Result<(), String> {
        match answer {
            Answer::News(news) => {
                self.world.tell(format_args!("initiator: {news}"));
                Ok(())
            }
            Answer::Failed { token, cause } => self.fail(token, &cause),
            Answer::Completed(completion) => self.complete(subject, completion),
        }
    }

    fn complete(
        &mut self,
        subject: &mut impl Subject,
        completion: Completion,
    ) -> Result<(), String> {
        let token = completion.token;
        let request = self
            .flying
            .get_mut(&token)
            .ok_or_else(|| format!("request {token} ends twice"))?;
        let verdict = Verdict::of(completion.status, completion.sense.as_ref());
        if let Some(pause) = request.patience.pause(verdict) {
            if pause.is_zero() {
                return self.send(subject, token);
            }
            self.repeats.push((Instant::now() + pause, token));
            return Ok(());
        }
        if verdict != Verdict::Good {
            return self.fail(
                token,
                &format!("{:?}, {:?}", completion.status, completion.sense),
            );
        }
        let bytes = usize::try_from(completion.transferred).map_err(|error| error.to_string())?;
        let wanted = match &request.action {
            Action::Flush { .. } => 0,
            Action::Read { .. } | Action::Write(_) => request.length(),
        };
        if bytes != wanted && !self.plan.trusts_status {
            return self.fail(token, &format!("{bytes} bytes of {wanted}"));
        }
        self.judge(token, completion.data)
    }

    /// A request that ended well.
    fn judge(&mut self, token: u64, data: Data) -> Result<(), String> {
        let request = self.flying.remove(&token).ok_or("looked up before")?;
        self.world.tell(format_args!("request {token}: done"));
        match request.action {
            Action::Write(write) => self.oracle.written(&write, true),
            Action::Flush { since } => {
                let world = self.world.lock();
                self.oracle
                    .flushed(since, |lba| world.target.unit.durable(lba))?;
            }
            Action::Read { since } => {
                let Data::In(buffer) = data else {
                    return Err(format!("request {token}: a read without its buffer"));
                };
                self.oracle.read(request.lba, &buffer, since)?;
                self.buffers.insert((request.lba, request.blocks), buffer);
            }
        }
        Ok(())
    }

    fn fail(&mut self, token: u64, cause: &str) -> Result<(), String> {
        let request = self
            .flying
            .remove(&token)
            .ok_or_else(|| format!("request {token} ends twice"))?;
        self.world
            .tell(format_args!("request {token}: FAILED, {cause}"));
        self.failures += 1;
        if let Action::Write(write) = &request.action {
            self.oracle.written(write, false);
        }
        let now = self.now();
        if self.plan.may_fail.contains(&now) {
            Ok(())
        } else {
            let name = request.name();
            Err(format!("request {token}, a {name}, failed: {cause}"))
        }
    }

    fn now(&self) -> Millis {
        let mut world = self.world.lock();
        world.env.refresh();
        world.env.now
    }

    fn until_well(&self) -> Duration {
        let end = self.plan.may_fail.end;
        let is_finite = end < Millis::MAX;
        Duration::from_millis(if is_finite {
            end.saturating_sub(self.now())
        } else {
            0
        })
    }

    fn pause(&mut self) -> Duration {
        let (low, high) = self.plan.work.pause;
        Duration::from_millis(self.dice.between(low, high))
    }
}

impl Request {
    fn name(&self) -> &'static str {
        match self.action {
            Action::Read { .. } => "read",
            Action::Write(_) => "write",
            Action::Flush { .. } => "flush",
        }
    }

    fn length(&self) -> usize {
        usize::try_from(self.blocks).expect("small") * BLOCK
    }

    fn command(&self, lun: LunAddress, buffer: Option<BytesMut>) -> Command {
        let (lba, blocks) = (
            Lba(self.lba),
            Blocks(u32::try_from(self.blocks).expect("small")),
        );
        let (cdb, data) = match &self.action {
            Action::Read { .. } => (
                Cdb::read_16(lba, blocks),
                Data::In(buffer.unwrap_or_else(|| BytesMut::zeroed(self.length()))),
            ),
            Action::Write(write) => (
                Cdb::write_16(lba, blocks, self.lba.is_multiple_of(5)),
                Data::Out(Bytes::from(write.data.clone())),
            ),
            Action::Flush { .. } => (Cdb::synchronize_cache_16(lba, blocks), Data::None),
        };
        Command { lun, cdb, data }
    }
}

/// Reads in flight while all is read.
const AT_ONCE: usize = 8;
