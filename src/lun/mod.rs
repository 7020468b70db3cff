//! A LUN as a block device: login, identity, geometry, splitting by the LUN's limits, sense to error.
//!
//! A room of its own because it is the only one that knows both worlds: bytes and requests of the waist above,
//! blocks and CDBs of the library below.
//! Read before changing: `machine` (all decisions), then `Lun` (which only carries).
//!
//! Invariants:
//! 1. No task, thread, channel or lock: whoever polls the `Lun` drives it.
//! 2. Once the session is lost, no command leaves any more and every request ends with `ErrorKind::Io`.
//!
//! It does not log in again after a loss: that needs the identity gate, for which `Identity` is recorded here.

mod error;
mod failure;
mod limits;
mod machine;
mod pace;

use std::pin::Pin;
use std::task::{Context, Poll};

use iscsi::client::probe;
use iscsi::io::Driver;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::block::{Backend, Completion, Geometry, Request};

pub use error::Error;
pub use iscsi::scsi::Identity;

use limits::{Limits, geometry};
use machine::Machine;

/// Which logical unit, and how to reach it.
#[derive(Clone, Debug)]
pub struct LunSpec {
    /// Session parameters (portal, names, CHAP, ISID).
    pub session: iscsi::proto::SessionParams,
    /// The logical unit number at that target, 0..16384.
    pub lun: u16,
    /// Refuse writes.
    pub read_only: bool,
}

/// A logical unit that is logged in to.
#[derive(Debug)]
pub struct Lun {
    /// None once the session is lost.
    driver: Option<Driver>,
    machine: Machine,
    geometry: Geometry,
    identity: Identity,
    /// For logs: `LUN 1 of iqn...`.
    name: String,
    timer: Pin<Box<Sleep>>,
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
        let target = spec
            .session
            .target_name
            .clone()
            .ok_or(Error::NoTargetName)?;
        let name = format!("LUN {} of {target}", spec.lun);
        let mut driver = Driver::connect(&spec.session).await.map_err(Error::Login)?;
        let info = match probe(&mut driver, spec.lun).await {
            Ok(info) => info,
            Err(error) => {
                // What the probe met is what there is to tell; the logout is a courtesy to the target.
                let _ = driver.logout().await;
                return Err(Error::of_probe(error, spec.lun, target.to_string()));
            }
        };
        tracing::info!(lun = %name, found = %info, "logged in");
        let limits = Limits::of(&info, spec.read_only);
        let now = Instant::now();
        Ok(Self {
            driver: Some(driver),
            geometry: geometry(&info, &limits),
            identity: info.identity(),
            machine: Machine::new(limits, now.into_std()),
            name,
            timer: Box::pin(sleep_until(now)),
        })
    }

    /// The identity recorded at login.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The session is gone: all that was taken fails, and all that comes.
    fn lose(&mut self, cause: &dyn std::fmt::Display) {
        tracing::error!(lun = %self.name, %cause, "the session is lost; all further requests fail");
        self.machine.handle_lost();
        self.driver = None;
    }

    /// One round of work; `None` when there is nothing to do until the waker is called.
    fn turn(&mut self, cx: &mut Context<'_>, now: Instant) -> Option<()> {
        let driver = self.driver.as_mut()?;
        while driver.free_slots() > 0 {
            let Some((task, command)) = self.machine.poll_command(now.into_std()) else {
                break;
            };
            if let Err(command) = driver.submit(task, command) {
                // The session has ended and the next poll says why; the machine keeps its books until then.
                self.machine.handle_unsent(task, command, now.into_std());
                break;
            }
        }
        match driver.poll_completion(cx) {
            Poll::Ready(Ok(completion)) => {
                self.machine
                    .handle_completion(completion, &self.name, now.into_std());
                Some(())
            }
            Poll::Ready(Err(error)) => {
                self.lose(&Chain(&error));
                Some(())
            }
            Poll::Pending => self.wait(cx, now),
        }
    }

    /// Arms the timer; `Some` if its time has come already.
    fn wait(&mut self, cx: &mut Context<'_>, now: Instant) -> Option<()> {
        let due = Instant::from_std(self.machine.poll_deadline()?);
        if self.timer.deadline() != due {
            self.timer.as_mut().reset(due);
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return None;
        }
        if self.machine.handle_time(now.into_std()) {
            // ERL 0 and no task management yet: only the end of the session stops a command for sure, and a write
            // that lands after its error was reported could overwrite a newer one.
            self.lose(&"a command was not answered in time");
        }
        Some(())
    }
}

impl Backend for Lun {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn free_slots(&self) -> usize {
        self.machine.free_slots()
    }

    fn submit(&mut self, request: Request) -> Result<(), Request> {
        self.machine.submit(request)
    }

    fn poll_completion(&mut self, cx: &mut Context<'_>) -> Poll<Completion> {
        loop {
            if let Some(completion) = self.machine.poll_completion() {
                return Poll::Ready(completion);
            }
            // Read afresh each turn: a timer that fired lies between two of them.
            if self.turn(cx, Instant::now()).is_none() {
                return self
                    .machine
                    .poll_completion()
                    .map_or(Poll::Pending, Poll::Ready);
            }
        }
    }

    async fn close(mut self) {
        if let Some(driver) = self.driver.take()
            && let Err(error) = driver.logout().await
        {
            tracing::warn!(lun = %self.name, cause = %Chain(&error), "the logout failed");
        }
    }
}

/// An error with its sources, for a log line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
