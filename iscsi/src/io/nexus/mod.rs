//! An I_T_L nexus that outlives its sessions: one logical unit, and I/O that goes on after a loss.
//!
//! ```text
//!   submit --> [ held ] --> driver (a session) --> target
//!                 ^            |  loss: what was not answered goes back, in order of submission
//!                 +------------+
//!   attempt: connect, log in (same ISID, TSIH 0), fence, examine -- gate --> held commands leave again
//! ```
//!
//! A room of its own because it is the one place that decides whether a command may be sent a second time.
//!
//! Source: RFC 7143 §6.3.5 (session reinstatement), §7.15 (session errors), §4.4.3.1 (I_T nexus and ISID).
//! Read before changing: `proto::recovery` (when), `attempt` (how), `scsi::identity` (the gate).
//!
//! Invariants:
//! 1. No command leaves for a logical unit that was not examined in this very session and found to be the same.
//! 2. A command is sent again only when the target has ended the session in which it was sent before: by
//!    reinstatement (same name, ISID and portal group) or by a reset of the logical unit. So no write can land late.
//! 3. What cannot be repeated (COMPARE AND WRITE, reservations) is not: its outcome is unknown, and that is said.
//! 4. Every command that `submit` took ends exactly once: `Completed` or `Failed`, with its buffer.
//!
//! It knows one logical unit. Reactions to SCSI status are the owner's, but for the one that says that another path
//! is to be taken.

mod attempt;
mod check;
mod error;
mod params;
mod preference;
mod registration;
mod replay;

use std::collections::VecDeque;
use std::future::Future as _;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use super::network::{Network, Tcp};
use super::{Command, Completion, Driver};
use crate::proto::recovery::{Proved, Recovery};
use crate::proto::session::TASKS_MAX;
use crate::proto::{Portal, SessionError};
use crate::scsi::{Identity, LunAddress, Status, Verdict};
use attempt::{Attempt, NexusKey, Opened, Unfenced};
use check::Check;

pub use error::NexusError;
#[cfg(feature = "hazards")]
pub use params::Hazards;
pub use params::{NexusParams, Path};

/// A logical unit over sessions that come and go. Polled by its owner, like a `Driver`.
#[derive(Debug)]
pub struct Nexus<N: Network = Tcp> {
    network: N,
    params: NexusParams,
    recovery: Recovery,
    link: Link<N>,
    /// Commands that no driver has, in order of submission.
    held: VecDeque<(u64, Command)>,
    events: VecDeque<Event>,
    /// What the unit must be.
    identity: Identity,
    /// Where writes may still be at work at the target, which must be ended before others leave.
    unfenced: Option<Unfenced>,
    /// The unit said so at the login that resumed it.
    lost_power: bool,
    /// Why the last attempt failed, or the session ended.
    cause: Option<Arc<NexusError>>,
    attempts: u32,
    /// The unit is being examined, and commands are held meanwhile.
    check: Option<Box<Check>>,
    /// Paths left in a row since the last command that was done.
    leaves: usize,
    timer: Option<Pin<Box<Sleep>>>,
}

/// What there is between us and the target.
#[derive(Debug)]
enum Link<N: Network> {
    Up {
        driver: Box<Driver<N::Stream>>,
        key: NexusKey,
        path: usize,
    },
    Attempt {
        attempt: Attempt<N::Stream>,
        path: usize,
    },
    Down,
}

/// What the owner must know.
#[derive(Debug)]
pub enum Event {
    /// A command was answered.
    Completed(Completion),
    /// A command will not be answered.
    Failed(Failed),
    /// The session is lost; commands are held from now on.
    Lost(Arc<NexusError>),
    /// Held commands go on.
    Reinstated(Box<Reinstated>),
    /// The target reported a change, and the unit is still the same one; it may have grown.
    Examined(Box<Identity>),
    /// The unit was away for `replacement_timeout`: held commands fail, and so do new ones, until it is back.
    Expired(Arc<NexusError>),
}

/// A command that will not be answered.
#[derive(Debug)]
pub struct Failed {
    /// The number that came with `submit`.
    pub token: u64,
    /// The command, with its buffer.
    pub command: Command,
    /// Why.
    pub cause: Arc<NexusError>,
}

/// How a nexus came back.
#[derive(Clone, Debug)]
pub struct Reinstated {
    /// What the unit is now; it may have grown.
    pub identity: Identity,
    /// Where we are logged in.
    pub portal: Portal,
    /// How long it was away.
    pub after: Duration,
    /// How many attempts it took.
    pub attempts: u32,
    /// How many commands are sent (again).
    pub held: usize,
    /// The unit has lost power or was reset inside meanwhile: a volatile write cache is gone, and with it what was
    /// written and not flushed.
    pub lost_power: bool,
}

impl Nexus {
    /// Logs in over the first path that leads to the logical unit, and records its identity; if one is to be resumed,
    /// the unit must be that one.
    ///
    /// # Errors
    /// Why the last path failed.
    ///
    /// # Cancel safety
    /// When dropped, the connection is closed and the target drops the session.
    pub async fn open(params: NexusParams) -> Result<Self, NexusError> {
        Self::open_over(Tcp, params).await
    }
}

impl<N: Network> Nexus<N> {
    /// As `open`, over a network of the caller's.
    ///
    /// # Errors
    /// As `open`.
    ///
    /// # Cancel safety
    /// As `open`.
    pub async fn open_over(network: N, params: NexusParams) -> Result<Self, NexusError> {
        let mut recovery = Recovery::new(params.policy, params.paths.len(), now());
        let expected = params.resume.clone();
        let unfenced = expected.as_ref().map(|_| Unfenced::Somewhere);
        let mut failure = NexusError::NoPath;
        // A round and the way back to the best of its paths.
        for _ in 0..=params.paths.len() {
            let Some(path) = recovery.poll_attempt(now()) else {
                break;
            };
            match attempt::begin(
                &network,
                &params,
                path,
                expected.as_ref(),
                unfenced.as_ref(),
            )
            .await
            {
                Ok(opened) => match recovery.handle_proved(opened.preference, now()) {
                    Proved::Open => return Ok(Self::of(network, params, recovery, path, opened)),
                    Proved::LookFurther => {}
                },
                Err(error) => {
                    recovery.handle_failed(params.wait_after_failure(), now(), network.random());
                    failure = error;
                }
            }
        }
        Err(failure)
    }

    fn of(
        network: N,
        mut params: NexusParams,
        recovery: Recovery,
        path: usize,
        opened: Opened<N::Stream>,
    ) -> Self {
        if let Some(portal) = opened.moved_to {
            params.paths[path].portal = portal;
        }
        let is_resumed = params.resume.take().is_some();
        if !opened.identity.is_distinct() {
            tracing::warn!(
                unit = %opened.identity,
                "the logical unit has neither a name nor a serial number: after a lost session it cannot be known \
                 again, and its I/O will fail"
            );
        }
        Self {
            network,
            recovery,
            link: Link::Up {
                driver: Box::new(opened.driver),
                key: opened.key,
                path,
            },
            held: VecDeque::with_capacity(usize::from(TASKS_MAX)),
            events: VecDeque::with_capacity(EVENTS_READY),
            identity: opened.identity,
            unfenced: None,
            lost_power: is_resumed && opened.lost_power,
            cause: None,
            attempts: 0,
            check: None,
            leaves: 0,
            timer: None,
            params,
        }
    }

    /// Queues a command for the logical unit; its `lun` is replaced by that of the path. It leaves with the next
    /// `poll_event`, at once or when the session is back.
    ///
    /// # Errors
    /// Gives the command back when no slot is free, when its data is longer than a command can name, or when its token
    /// is `u64::MAX`, which is ours.
    pub fn submit(&mut self, token: u64, mut command: Command) -> Result<(), Command> {
        if self.free_slots() == 0 || command.data.bytes().is_none() || token == check::TOKEN {
            return Err(command);
        }
        if self.recovery.is_expired() {
            let cause = self.cause();
            self.fail(token, command, cause);
            return Ok(());
        }
        if let Link::Up { driver, path, .. } = &mut self.link
            && self.held.is_empty()
            && self.check.is_none()
        {
            command.lun = self.params.paths[*path].lun;
            match driver.submit(token, command) {
                Ok(()) => return Ok(()),
                // The session has just ended, and the next poll says so.
                Err(back) => command = back,
            }
        }
        self.held.push_back((token, command));
        Ok(())
    }

    /// Drives the session, or the way to a new one; one event at a time. Never ends.
    pub fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(event);
            }
            if let Some(completion) = ready!(self.poll_turn(cx)) {
                return Poll::Ready(Event::Completed(completion));
            }
        }
    }

    /// Logs out in order, if there is a session. Commands in flight are lost: whoever needs them awaits them before.
    ///
    /// # Errors
    /// As `Driver::logout`.
    ///
    /// # Cancel safety
    /// When dropped, the connection is closed and the target drops the session.
    pub async fn logout(self) -> Result<(), SessionError> {
        match self.link {
            Link::Up { driver, .. } => driver.logout().await,
            Link::Attempt { .. } | Link::Down => Ok(()),
        }
    }

    /// Somebody knows that the target is back: the next attempt begins as soon as the target allows it.
    pub fn cut_short(&mut self) {
        self.recovery.cut_short(now());
        self.timer = None;
    }

    /// As of `Driver`; `None` while there is no session.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.link {
            Link::Up { driver, .. } => driver.descriptor(),
            Link::Attempt { .. } | Link::Down => None,
        }
    }

    /// As of `Driver`.
    pub fn handle_readable(&mut self) {
        if let Link::Up { driver, .. } = &mut self.link {
            driver.handle_readable();
        }
    }

    /// How many more commands `submit` takes now.
    pub fn free_slots(&self) -> usize {
        let slots = match &self.link {
            Link::Up { driver, .. } => driver.free_slots(),
            Link::Attempt { .. } | Link::Down => usize::from(TASKS_MAX),
        };
        slots.saturating_sub(self.held.len())
    }

    /// The logical unit's identity, as the last examination saw it.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether the unit that was resumed had lost power meanwhile: what the process before us wrote and did not flush may
    /// be gone.
    pub fn has_lost_power(&self) -> bool {
        self.lost_power
    }

    /// The portal at which we are logged in; `None` while the session is lost.
    pub fn portal(&self) -> Option<&Portal> {
        match &self.link {
            Link::Up { driver, .. } => Some(driver.portal()),
            Link::Attempt { .. } | Link::Down => None,
        }
    }

    /// Why the session is lost, and since when; `None` while there is one.
    pub fn outage(&self) -> Option<(Instant, Arc<NexusError>)> {
        Some((self.recovery.lost_at()?, self.cause()))
    }

    /// `Ready(None)`: something was done, look again.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Option<Completion>> {
        if self.check.is_some() {
            self.ask_check();
        }
        match &mut self.link {
            Link::Up { driver, path, .. } => {
                if !self.held.is_empty() && self.check.is_none() {
                    let lun = self.params.paths[*path].lun;
                    replay::release(&mut self.held, driver, lun);
                }
                let polled = driver.poll_completion(cx);
                if driver.has_events() {
                    self.heed_events();
                }
                match polled {
                    Poll::Ready(Ok(completion)) => {
                        return Poll::Ready(self.look_at(completion));
                    }
                    Poll::Ready(Err(error)) => {
                        self.lose(NexusError::Session(error));
                        return Poll::Ready(None);
                    }
                    // A question is due at once.
                    Poll::Pending if self.is_check_due() => return Poll::Ready(None),
                    // Nothing else is due while the session stands.
                    Poll::Pending => return Poll::Pending,
                }
            }
            Link::Attempt { attempt, path } => {
                if let Poll::Ready(ended) = attempt.poll(cx) {
                    let path = *path;
                    self.conclude(path, ended);
                    return Poll::Ready(None);
                }
            }
            Link::Down => {}
        }
        self.poll_timer(cx)
    }

    /// Gives the answer to the owner, unless it says that this path is the wrong one and there is another.
    fn look_at(&mut self, completion: Completion) -> Option<Completion> {
        if completion.token == check::TOKEN {
            self.conclude_check(&completion);
            return None;
        }
        if completion.status == Status::GOOD {
            self.leaves = 0;
            return Some(completion);
        }
        self.heed(completion.sense.as_ref());
        // S7: standby or unavailable: the command was not done, and goes on elsewhere. Not in a circle, though.
        let verdict = Verdict::of(completion.status, completion.sense.as_ref());
        if verdict != Verdict::SwitchPath || self.leaves + 1 >= self.params.paths.len() {
            return Some(completion);
        }
        self.leaves += 1;
        let (token, command) = anew(completion);
        self.lose(NexusError::PathLeft);
        if self.recovery.is_expired() {
            // With no patience at all the others have failed just now, and so does this one.
            let cause = self.cause();
            self.fail(token, command, cause);
        } else {
            self.held.push_front((token, command));
        }
        None
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Option<Completion>> {
        let Some(due) = self.recovery.poll_timeout() else {
            return Poll::Pending;
        };
        let due = tokio::time::Instant::from_std(due);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        ready!(timer.as_mut().poll(cx));
        self.handle_timeout(now());
        Poll::Ready(None)
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.recovery.handle_timeout(now) {
            self.expire();
        }
        if let Some(path) = self.recovery.poll_attempt(now) {
            let expected = Some(&self.identity);
            let fence = self.unfenced.as_ref();
            let attempt = attempt::begin(&self.network, &self.params, path, expected, fence);
            self.attempts += 1;
            self.link = Link::Attempt { attempt, path };
        }
    }

    /// The session is gone: what it had not answered is held, or fails if it must not be sent again.
    // RFC 7143 §7.14 (E8): at error recovery level 0 a failed connection is answered by a new session, whatever failed
    fn lose(&mut self, cause: NexusError) {
        let Link::Up { driver, key, .. } = &mut self.link else {
            return;
        };
        // RFC 7143 §7.14 (E8): reset, closed, silent or confused: whatever ended the session, a new one is made in its place
        let is_left = matches!(cause, NexusError::PathLeft);
        let wait = cause.time_to_wait(driver.agreed());
        let cause = Arc::new(cause);
        let answered = driver.take_answered();
        let mut unfinished = driver.take_unfinished();
        unfinished.retain(|(token, _)| *token != check::TOKEN);
        self.check = None;
        if unfinished
            .iter()
            .any(|(_, command)| replay::writes(command))
        {
            self.unfenced = Some(Unfenced::Nexus(key.clone()));
        }
        self.link = Link::Down;
        self.attempts = 0;
        self.cause = Some(Arc::clone(&cause));
        tracing::warn!(unit = %self.identity, %cause, held = unfinished.len(), "the session is lost; I/O is held");
        self.events.push_back(Event::Lost(Arc::clone(&cause)));
        // RFC 7143 §7.2.1 (E5): only on a session of its own is a command sent again, in order of submission
        for (token, command) in unfinished.into_iter().rev() {
            if command.cdb.is_idempotent() {
                self.held.push_front((token, command));
            } else {
                let cause = Arc::new(NexusError::Unrepeatable(Arc::clone(&cause)));
                self.fail(token, command, cause);
            }
        }
        self.settle_answered(answered);
        let now = now();
        if is_left {
            self.recovery.handle_path_left(now);
        } else {
            self.recovery.handle_lost(wait, now);
        }
        if self.recovery.handle_timeout(now) {
            self.expire();
        }
    }

    /// What had been answered when a session is given up goes to the owner, or on elsewhere as its neighbours do.
    fn settle_answered(&mut self, answered: VecDeque<Completion>) {
        let is_left = |completion: &Completion| {
            let verdict = Verdict::of(completion.status, completion.sense.as_ref());
            completion.status != Status::GOOD && verdict == Verdict::SwitchPath
        };
        let of_the_owner = answered
            .into_iter()
            .filter(|completion| completion.token != check::TOKEN);
        let (left, done): (Vec<_>, Vec<_>) = of_the_owner.partition(is_left);
        for completion in left.into_iter().rev() {
            self.held.push_front(anew(completion));
        }
        self.events.extend(done.into_iter().map(Event::Completed));
    }

    /// An attempt has ended.
    fn conclude(&mut self, path: usize, ended: Result<Opened<N::Stream>, NexusError>) {
        self.link = Link::Down;
        let lost_at = self.recovery.lost_at();
        let opened = match ended {
            Ok(opened) => opened,
            Err(error) => {
                let wait = self.params.wait_after_failure();
                self.recovery
                    .handle_failed(wait, now(), self.network.random());
                self.remark(&error, path);
                self.cause = Some(Arc::new(error));
                return;
            }
        };
        match self.recovery.handle_proved(opened.preference, now()) {
            Proved::LookFurther => {}
            Proved::Open => self.reinstate(path, opened, lost_at),
        }
    }

    fn reinstate(&mut self, path: usize, opened: Opened<N::Stream>, lost_at: Option<Instant>) {
        if let Some(portal) = opened.moved_to {
            self.params.paths[path].portal = portal;
        }
        let report = Reinstated {
            identity: opened.identity.clone(),
            portal: opened.driver.portal().clone(),
            after: lost_at.map_or(Duration::ZERO, |at| now().saturating_duration_since(at)),
            attempts: self.attempts,
            held: self.held.len(),
            lost_power: opened.lost_power,
        };
        tracing::info!(
            unit = %report.identity, portal = %report.portal, after_ms = report.after.as_millis(),
            attempts = report.attempts, held = report.held, "the session is back; I/O goes on"
        );
        self.identity = opened.identity;
        self.unfenced = None;
        self.cause = None;
        self.timer = None;
        self.link = Link::Up {
            driver: Box::new(opened.driver),
            key: opened.key,
            path,
        };
        self.events.push_back(Event::Reinstated(Box::new(report)));
    }

    fn expire(&mut self) {
        let cause = self.cause();
        // RFC 7143 §7.15 (E11): held I/O fails once; attempts go on, and the unit revives
        tracing::error!(unit = %self.identity, %cause, held = self.held.len(), "the target was away for too long; I/O fails until it is back");
        for (token, command) in std::mem::take(&mut self.held) {
            self.fail(token, command, Arc::clone(&cause));
        }
        self.events.push_back(Event::Expired(cause));
    }

    fn fail(&mut self, token: u64, command: Command, cause: Arc<NexusError>) {
        self.events.push_back(Event::Failed(Failed {
            token,
            command,
            cause,
        }));
    }

    /// A line for the first failure and for each that differs from the one before, not for every round.
    fn remark(&self, error: &NexusError, path: usize) {
        let portal = &self.params.paths[path].portal;
        let is_known = self
            .cause
            .as_ref()
            .is_some_and(|known| known.to_string() == error.to_string());
        if is_known {
            tracing::debug!(%portal, cause = %error, "an attempt to log in again failed");
        } else {
            tracing::warn!(%portal, cause = %error, "an attempt to log in again failed; the next ones follow");
        }
    }

    fn cause(&self) -> Arc<NexusError> {
        let unknown = || Arc::new(NexusError::NoPath);
        self.cause.clone().unwrap_or_else(unknown)
    }
}

/// The command of an answer that it was not done.
fn anew(completion: Completion) -> (u64, Command) {
    let Completion {
        token, cdb, data, ..
    } = completion;
    // Its LUN is that of the path on which it will leave.
    let lun = LunAddress(0);
    (token, Command { lun, cdb, data })
}

/// Losses, reinstatements and failures of a full table come to a few more than it has slots.
const EVENTS_READY: usize = 136;

/// The clock of the whole crate: tokio's, so that tests can stop it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
