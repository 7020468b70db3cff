//! A LUN as a block device: login, identity, geometry, splitting by the LUN's limits, sense to error.
//!
//! A room of its own because it is the only one that knows both worlds: bytes and requests of the waist above,
//! blocks and CDBs of the library below.
//! Read before changing: `machine` (all decisions), then `Lun` (which only carries).
//!
//! Invariants:
//! 1. No task, thread, channel or lock: whoever polls the `Lun` drives it.
//! 2. A lost session is the nexus's matter: requests wait for it, and fail with `ErrorKind::Io` when it was away for
//!    longer than the replacement timeout.

mod error;
mod failure;
mod limits;
mod losses;
mod machine;
mod pace;
#[cfg(test)]
mod tests;
mod throttle;

use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use iscsi::client::probe;
use iscsi::io::{Event, Nexus, NexusParams, Path};
use iscsi::proto::SessionParams;
use iscsi::proto::recovery::RecoveryPolicy;
use iscsi::scsi::reservation::ReservationKey;
use iscsi::scsi::{LunAddress, Status};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::block::{Backend, Completion, Geometry, Quota, Request};

pub use error::Error;
pub use iscsi::scsi::Identity;
pub use losses::Losses;

use limits::{Limits, geometry};
use machine::Machine;
use throttle::Throttle;

/// Which logical unit, and how to reach it.
#[derive(Clone, Debug)]
pub struct LunSpec {
    /// Session parameters (portal, names, CHAP, ISID): the first path.
    pub session: SessionParams,
    /// The logical unit at that target.
    pub lun: LunAddress,
    /// Further paths to the same unit.
    pub more_paths: Vec<Path>,
    /// What to do when the session is lost.
    pub recovery: RecoveryPolicy,
    /// Refuse writes.
    pub read_only: bool,
    /// Shared by all lanes of a volume: what one of them learns was lost fails the next flush of each.
    pub losses: Losses,
    /// How much may be done in a second; shared by all lanes of a volume.
    pub quota: Option<Quota>,
    /// The key under which each login registers for persistent reservations: where the unit takes writes of the
    /// registered alone, this session is one of them.
    pub registration: Option<u64>,
    /// The unit that a process before this one served with the same names and ISID: it must be that one, and what those
    /// sessions may have left at work is ended first.
    pub resume: Option<Identity>,
}

impl LunSpec {
    /// One path, the default patience, writable.
    pub fn new(session: SessionParams, lun: impl Into<LunAddress>) -> Self {
        Self {
            session,
            lun: lun.into(),
            more_paths: Vec::new(),
            recovery: RecoveryPolicy::default(),
            read_only: false,
            losses: Losses::default(),
            quota: None,
            registration: None,
            resume: None,
        }
    }

    fn nexus(&self) -> Result<NexusParams, Error> {
        let mut params =
            NexusParams::new(self.session.clone(), self.lun).map_err(|_| Error::NoTargetName)?;
        params.paths.extend_from_slice(&self.more_paths);
        params.policy = self.recovery;
        params.resume.clone_from(&self.resume);
        params.registration = self.registration.map(ReservationKey);
        Ok(params)
    }
}

const POWER_LOST: &str =
    "the target has lost power meanwhile: the next flush fails if it has a volatile cache";

/// A logical unit that is logged in to.
#[derive(Debug)]
pub struct Lun {
    nexus: Nexus,
    machine: Machine,
    throttle: Option<Throttle>,
    geometry: Geometry,
    /// For logs: `LUN 1 of iqn...`.
    name: String,
    timer: Pin<Box<Sleep>>,
    /// The unit has grown, and nobody has asked yet.
    has_grown: bool,
    /// The clock, read only where something depends on it: a read of it costs as much as a good part of an I/O's work.
    now: Instant,
}

impl Lun {
    /// Logs in, asks INQUIRY/VPD/READ CAPACITY(16), records the identity.
    ///
    /// # Errors
    /// Login failed, no such LUN, not a disk, sizes out of range. Nothing is left behind at the target.
    ///
    /// # Cancel safety
    /// The connection is closed; the target ends the session by itself.
    pub async fn open(spec: &LunSpec) -> Result<Self, Error> {
        let params = spec.nexus()?;
        let target = params.paths[0].target_name.to_string();
        let name = format!("LUN {} of {target}", spec.lun);
        let mut nexus = match Nexus::open(params).await {
            Ok(nexus) => nexus,
            Err(error) => return Err(Error::of_nexus(error, spec.lun, target)),
        };
        let info = match probe(&mut nexus, spec.lun).await {
            Ok(info) => info,
            Err(error) => {
                // What the probe met is what there is to tell; the logout is a courtesy to the target.
                let _ = nexus.logout().await;
                return Err(Error::of_probe(error, spec.lun, target));
            }
        };
        tracing::info!(lun = %name, found = %info, "logged in");
        let limits = Limits::of(&info, spec.read_only);
        let now = Instant::now();
        let geometry = geometry(&info, &limits);
        let mut machine = Machine::new(limits, spec.losses.clone(), now.into_std());
        if nexus.has_lost_power() {
            tracing::warn!(lun = %name, "{POWER_LOST}");
            machine.handle_power_lost();
        }
        Ok(Self {
            nexus,
            geometry,
            machine,
            throttle: spec.quota.clone().map(Throttle::new),
            name,
            timer: Box::pin(sleep_until(now)),
            has_grown: false,
            now,
        })
    }

    /// The identity recorded at login.
    pub fn identity(&self) -> &Identity {
        self.nexus.identity()
    }

    /// One round of work; `None` when there is nothing to do until the waker is called.
    fn turn(&mut self, cx: &mut Context<'_>) -> Option<()> {
        if self.machine.is_timed() {
            // Afresh each turn: a timer that fired lies between two of them.
            self.now = Instant::now();
        }
        self.begin_due();
        while self.nexus.free_slots() > 0 {
            let Some((task, command)) = self.machine.poll_command(self.now.into_std()) else {
                break;
            };
            if let Err(command) = self.nexus.submit(task, command) {
                self.machine
                    .handle_unsent(task, command, self.now.into_std());
                break;
            }
        }
        match self.nexus.poll_event(cx) {
            Poll::Ready(event) => {
                self.handle_event(event);
                Some(())
            }
            Poll::Pending => self.wait(cx),
        }
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Completed(answer) => {
                if answer.status != Status::GOOD {
                    self.now = Instant::now();
                }
                self.machine
                    .handle_completion(answer, &self.name, self.now.into_std());
            }
            // The nexus has told its log why.
            Event::Failed(failed) => self.machine.handle_failed(failed.token),
            Event::Reinstated(how) => {
                self.see_size(how.identity.size_bytes());
                if how.lost_power {
                    tracing::warn!(lun = %self.name, "{POWER_LOST}");
                    self.machine.handle_power_lost();
                }
            }
            Event::Examined(identity) => self.see_size(identity.size_bytes()),
            Event::Lost(_) | Event::Expired(_) => {}
        }
    }

    /// A size that the gate let pass: never less than before.
    fn see_size(&mut self, size_bytes: u64) {
        let before = self.geometry.size_bytes;
        self.handle_growth(size_bytes);
        if self.geometry.size_bytes > before {
            tracing::info!(lun = %self.name, from = before, to = size_bytes, "the unit has grown");
            self.has_grown = true;
        }
    }

    /// Begins what the quota lets begin now.
    fn begin_due(&mut self) {
        let Some(throttle) = self.throttle.as_mut().filter(|one| one.waiting() > 0) else {
            return;
        };
        self.now = Instant::now();
        let now = self.now.into_std();
        while self.machine.free_slots() > 0
            && let Some(request) = throttle.poll(now)
        {
            if let Err(request) = self.machine.submit(request) {
                throttle.give_back(request, now);
                break;
            }
        }
    }

    /// Arms the timer; `Some` if its time has come already.
    fn wait(&mut self, cx: &mut Context<'_>) -> Option<()> {
        let throttled = self.throttle.as_ref().and_then(Throttle::deadline);
        let due = self.machine.poll_deadline().into_iter().chain(throttled);
        let due = Instant::from_std(due.min()?);
        if self.timer.deadline() != due {
            self.timer.as_mut().reset(due);
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return None;
        }
        Some(())
    }
}

impl Backend for Lun {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn free_slots(&self) -> usize {
        let waiting = self.throttle.as_ref().map_or(0, Throttle::waiting);
        self.machine.free_slots().saturating_sub(waiting)
    }

    fn submit(&mut self, request: Request) -> Result<(), Request> {
        if self.throttle.is_none() {
            return self.machine.submit(request);
        }
        if self.free_slots() == 0 {
            return Err(request);
        }
        self.now = Instant::now();
        let throttle = self.throttle.as_mut();
        match throttle.and_then(|throttle| throttle.admit(request, self.now.into_std())) {
            Some(request) => self.machine.submit(request),
            None => Ok(()),
        }
    }

    fn poll_completion(&mut self, cx: &mut Context<'_>) -> Poll<Completion> {
        loop {
            if let Some(completion) = self.machine.poll_completion() {
                return Poll::Ready(completion);
            }
            if self.turn(cx).is_none() {
                return self
                    .machine
                    .poll_completion()
                    .map_or(Poll::Pending, Poll::Ready);
            }
        }
    }

    fn take_growth(&mut self) -> Option<u64> {
        std::mem::take(&mut self.has_grown).then_some(self.geometry.size_bytes)
    }

    fn handle_growth(&mut self, size_bytes: u64) {
        if size_bytes > self.geometry.size_bytes && self.machine.handle_growth(size_bytes) {
            self.geometry.size_bytes = size_bytes;
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.nexus.descriptor()
    }

    fn handle_readable(&mut self) {
        self.nexus.handle_readable();
    }

    async fn close(self) {
        if let Err(error) = self.nexus.logout().await {
            tracing::warn!(lun = %self.name, cause = %error, "the logout failed");
        }
    }
}
