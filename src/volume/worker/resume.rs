//! After a restart: the device that the kernel still has is served again, and until then the volume is
//! what was written down of it.
//!
//! ```text
//!  start: entry attached, with a device --> the kernel still has it? -- no --> undone, as what else was left
//!                                              | yes
//!        +-------- pause, 1 s to 30 s <----- attempt (in a task of its own: what is asked meanwhile is answered)
//!        +----------------------------------->  | done
//!                                              live
//! ```
//!
//! Invariants:
//! 1. A device that the kernel has is given up by force alone, by whoever asks for that: a target that
//!    is away, or that shows another unit, may be right again later.
//! 2. An attempt is never dropped before its end: the kernel may have some of its sockets.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use super::{Marks, RETRY_INTERVAL, Worker};
use crate::volume::attachment::Attached;
use crate::volume::error::{Error, line};
use crate::volume::journal::{Entry, Phase};
use crate::volume::outside::Served;
use crate::volume::recover;

/// How an attempt ended.
pub(super) type Ended = Result<Result<Served, Error>, JoinError>;

/// A device of the kernel that nobody serves.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) entry: Entry,
    /// Once the kernel was asked.
    pub(super) path: Option<PathBuf>,
    attempt: Option<JoinHandle<Result<Served, Error>>>,
    /// Of attempts, in a row.
    failures: u32,
}

/// The first pause after an attempt that failed; doubled each time.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest, as that of a nexus whose target is away.
const PAUSE_MAX: Duration = Duration::from_secs(30);

impl Waiting {
    pub(super) fn new(entry: Entry) -> Self {
        Self {
            entry,
            path: None,
            attempt: None,
            failures: 0,
        }
    }

    fn pause(&self) -> Duration {
        let doubled = PAUSE_MIN.saturating_mul(1 << self.failures.min(5));
        doubled.min(PAUSE_MAX)
    }
}

/// The end of the attempt that is under way; never, when none is.
pub(super) async fn adoption(waiting: &mut Option<Waiting>) -> Ended {
    match waiting
        .as_mut()
        .and_then(|waiting| waiting.attempt.as_mut())
    {
        Some(attempt) => attempt.await,
        None => std::future::pending().await,
    }
}

impl Worker {
    /// The volume is what the entry says until its device is served.
    pub(super) fn expect_back(&mut self, waiting: Waiting) {
        let entry = &waiting.entry;
        self.held = entry.held;
        self.counts = entry.counts.clone();
        self.mountpoint.clone_from(&entry.mountpoint);
        if let Some(standing) = &entry.standing {
            self.marks = Marks {
                created_by_us: standing.created_by_us,
                formatted: standing.formatted,
            };
        }
        self.waiting = Some(waiting);
        self.show();
    }

    /// Begins an attempt, unless one is under way; finds out before whether there is a device at all.
    pub(super) async fn begin_take_over(&mut self) -> Result<(), Error> {
        if self
            .waiting
            .as_ref()
            .is_none_or(|waiting| waiting.attempt.is_some())
        {
            return Ok(());
        }
        self.look().await?;
        let Some(waiting) = &mut self.waiting else {
            return Ok(());
        };
        let (cx, entry) = (Arc::clone(&self.cx), waiting.entry.clone());
        let attempt = async move { recover::take_over(&cx, &entry).await };
        waiting.attempt = Some(tokio::spawn(attempt));
        Ok(())
    }

    /// Asks the kernel for the device, and whether it is still mounted.
    pub(super) async fn look(&mut self) -> Result<(), Error> {
        let Some(waiting) = &mut self.waiting else {
            return Ok(());
        };
        let Some(path) = recover::find_device(&self.cx, &waiting.entry).await? else {
            if let Some(waiting) = self.waiting.take() {
                tracing::info!(
                    volume = self.name,
                    "the kernel has no device of it any more"
                );
                self.forget_use();
                self.left.push(waiting.entry);
                self.must_reclaim = true;
            }
            return Ok(());
        };
        waiting.path = Some(path.clone());
        if let Some(at) = self.mountpoint.clone() {
            let mounted = self.cx.out.is_mounted(&path, &at).await;
            let mounted = mounted
                .map_err(|cause| Error::step(format!("looking at {}", at.display()), cause))?;
            if !mounted {
                self.mountpoint = None;
            }
        }
        Ok(())
    }

    /// The end of an attempt.
    pub(super) async fn conclude(&mut self, ended: Ended) {
        let Some(mut waiting) = self.waiting.take() else {
            return;
        };
        waiting.attempt = None;
        let error = match ended {
            Ok(Ok(device)) => return self.go_on(waiting, device).await,
            Ok(Err(error)) => error,
            Err(error) => Error::step("serving the device again", error),
        };
        let pause = waiting.pause();
        waiting.failures = waiting.failures.saturating_add(1);
        let text = line(&error);
        if self.last_error.as_deref() != Some(&text) {
            tracing::error!(
                volume = self.name,
                error = text,
                "its I/O waits; this is tried again until it succeeds"
            );
        }
        self.last_error = Some(text);
        self.again_at = Some(Instant::now() + pause);
        self.waiting = Some(waiting);
    }

    async fn go_on(&mut self, waiting: Waiting, device: Served) {
        let mut entry = waiting.entry;
        // One that was on its way back is in use again, until it is seen below that nobody wants it.
        let was_leaving = std::mem::replace(&mut entry.phase, Phase::Attached) == Phase::Detaching;
        let standing = entry.standing.as_ref();
        let told = |text: Option<&String>| text.cloned().unwrap_or_default();
        let live = Attached {
            portal: told(standing.map(|standing| &standing.portal)),
            target: told(standing.map(|standing| &standing.target)),
            read_only: standing.is_some_and(|standing| standing.read_only),
            entry,
            device,
        };
        tracing::info!(
            volume = self.name,
            device = %live.device.path().display(),
            mounts = self.count(),
            "served again"
        );
        let entry = live.entry.clone();
        self.live = Some(live);
        self.last_error = None;
        if was_leaving && let Err(error) = self.cx.out.save_entry(&entry).await {
            tracing::warn!(
                volume = self.name,
                error = line(&error),
                "the journal still says that it is on its way back"
            );
        }
        self.note().await;
        self.thaw_left().await;
        self.measure().await;
        // What nobody wants any more, and what else was left, comes off now.
        self.again_at = Some(Instant::now());
    }

    /// For what needs the device: the end of the attempt under way, or of one that begins now.
    pub(super) async fn take_over_now(&mut self) -> Result<(), Error> {
        if self.waiting.is_none() {
            return Ok(());
        }
        self.begin_take_over().await?;
        if self.waiting.is_none() {
            return Ok(());
        }
        let ended = adoption(&mut self.waiting).await;
        self.conclude(ended).await;
        match (&self.waiting, &self.last_error) {
            (Some(_), Some(cause)) => Err(self.unserved(cause)),
            _ => Ok(()),
        }
    }

    /// At the end of the daemon: the attempt under way gets its time; the device is left as it is.
    pub(super) async fn stop_waiting(&mut self, deadline: Instant) {
        if self
            .waiting
            .as_ref()
            .is_some_and(|waiting| waiting.attempt.is_some())
            && let Ok(ended) = tokio::time::timeout_at(deadline, adoption(&mut self.waiting)).await
        {
            self.conclude(ended).await;
        }
        if self.waiting.is_some() {
            tracing::warn!(
                volume = self.name,
                "its device is not served; it is left to the kernel for the next daemon"
            );
        }
    }

    /// By force: the device that cannot be served goes, unless somebody else has it mounted.
    pub(super) async fn give_up_waiting(&mut self) -> Result<(), Error> {
        let Some(waiting) = &self.waiting else {
            return Ok(());
        };
        if let Some(path) = waiting.path.clone() {
            let at = self.mountpoint.clone().unwrap_or_default();
            let users = self.users(&path, &at).await?;
            if !users.is_empty() {
                return Err(Error::mounted(&self.name, &users));
            }
        }
        if let Some(waiting) = self.waiting.take() {
            self.forget_use();
            self.left.push(waiting.entry);
            self.must_reclaim = true;
            self.again_at = Some(Instant::now() + RETRY_INTERVAL);
        }
        self.settle_left().await
    }

    /// Why something cannot be done before the device is served.
    pub(super) fn unserved(&self, cause: &str) -> Error {
        Error::InUse {
            name: self.name.clone(),
            by: format!("its device waits to be served again: {cause}"),
            remedy: "mend that; it is tried again by itself",
        }
    }

    fn forget_use(&mut self) {
        self.held = false;
        self.counts.clear();
        self.mountpoint = None;
    }
}
