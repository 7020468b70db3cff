//! Taking a volume off this host: when nobody wants it, when that was not possible before, and when
//! the daemon stops.
//!
//! Invariant: a mount is taken down only when the count is at zero *and* the kernel knows no other
//! user; the one exception is the end of the daemon, after the time given, and then all that is
//! dirty is written back before.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::{RETRY_INTERVAL, Worker};
use crate::volume::attachment;
use crate::volume::engine::Parting;
use crate::volume::error::{Error, line};
use crate::volume::platform::{MountUser, Release};

/// Between two looks at a busy volume while the daemon stops.
const STOP_INTERVAL: Duration = Duration::from_millis(500);
/// For the write-back of a busy volume when the daemon stops.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

impl Worker {
    /// The end of the daemon, as it was asked for.
    pub(super) async fn stop(&mut self, deadline: Instant, parting: Parting) {
        self.stop_waiting(deadline).await;
        if self.waiting.is_some() {
            self.again_at = None;
            return;
        }
        if parting == Parting::LeaveUsed && self.leave_if_used(deadline).await {
            self.again_at = None;
            return;
        }
        self.take_off(deadline).await;
    }

    /// Leaves the device to the kernel for the next daemon, if somebody uses it; false if nobody does.
    async fn leave_if_used(&mut self, deadline: Instant) -> bool {
        if self.live.is_none() {
            return false;
        }
        let is_known = self.mountpoint.is_some() || self.held || self.count() > 0;
        // Not known to be used: if the kernel lets it go, nobody has it open.
        if !is_known && self.release(Release::Clean).await.is_ok() {
            return false;
        }
        self.note().await;
        let Some(live) = self.live.take() else {
            return false;
        };
        let path = live.device.path();
        let outcome = tokio::time::timeout_at(deadline, self.cx.out.hand_over(live.device)).await;
        let left = match outcome {
            Ok(Ok(())) => {
                tracing::info!(
                    volume = self.name,
                    device = %path.display(),
                    "in use: left to the kernel, its I/O waits for the next daemon"
                );
                return true;
            }
            Ok(Err(cause)) => line(&*cause),
            Err(_) => "its target did not answer in time".to_owned(),
        };
        tracing::warn!(
            volume = self.name,
            device = %path.display(),
            why = left,
            "left to the kernel as after a crash: the next daemon answers what is in flight"
        );
        true
    }

    /// Everything of this volume off this host before the deadline. Who is still busy then is
    /// flushed and cut off: this process is the path to the data, so the device ends with it in any
    /// case. Ended in order, all that was written is on the target, and another host may attach.
    async fn take_off(&mut self, deadline: Instant) {
        self.counts.clear();
        self.held = false;
        while let Err(error) = self.release(Release::Clean).await {
            if self.live.is_none() {
                tracing::warn!(
                    volume = self.name,
                    error = line(&error),
                    "left for the next start"
                );
                break;
            }
            if Instant::now() + STOP_INTERVAL >= deadline {
                self.cut_off(&error).await;
                break;
            }
            tokio::time::sleep(STOP_INTERVAL).await;
        }
        if let Err(error) = self.settle_left().await {
            tracing::warn!(
                volume = self.name,
                error = line(&error),
                "left for the next start"
            );
        }
        self.again_at = None;
    }

    async fn cut_off(&mut self, why: &Error) {
        let Some(live) = self.live.take() else { return };
        tracing::error!(
            volume = self.name,
            device = %live.device.path().display(),
            why = line(why),
            "still in use while the daemon stops: flushed and cut off, later writes of its users fail"
        );
        if let Some(at) = self.mountpoint.take() {
            match tokio::time::timeout(SYNC_TIMEOUT, self.cx.out.sync(&at)).await {
                Ok(Ok(())) => {}
                Ok(Err(cause)) => tracing::error!(
                    volume = self.name,
                    error = line(&*cause),
                    "write-back failed"
                ),
                Err(_) => tracing::error!(volume = self.name, "write-back did not end in time"),
            }
            if let Err(cause) = self.cx.out.unmount(&at, true).await {
                tracing::error!(
                    volume = self.name,
                    error = line(&*cause),
                    "lazy unmount failed"
                );
            }
        }
        if let Err(failure) = attachment::detach(&self.cx, live, Release::Forced).await {
            let error = self.keep(failure);
            tracing::error!(
                volume = self.name,
                error = line(&error),
                "left for the next start"
            );
        }
    }

    /// The timer's work: what is left of earlier attempts.
    pub(super) async fn tidy(&mut self) {
        if self.waiting.is_some() {
            if let Err(error) = self.begin_take_over().await {
                self.last_error = Some(line(&error));
                self.again_at = Some(Instant::now() + RETRY_INTERVAL);
            }
            if self.waiting.is_some() {
                return;
            }
        }
        self.thaw_left().await;
        let result = if self.live.is_some() && self.count() == 0 && !self.held {
            self.release(Release::Clean).await
        } else {
            Ok(())
        };
        let result = match result {
            Ok(()) => self.settle_left().await,
            Err(error) => Err(error),
        };
        let result = match result {
            Ok(()) => self.settle_pending().await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!(
                volume = self.name,
                error = line(&error),
                "will be tried again"
            );
            self.last_error = Some(line(&error));
            self.again_at = Some(Instant::now() + RETRY_INTERVAL);
        }
    }

    /// Takes down, as far as nobody wants it: the mount when none is counted, the device when it is
    /// not held. On an error it stands as the error says, and may be tried again.
    pub(super) async fn release(&mut self, how: Release) -> Result<(), Error> {
        if self.waiting.is_some() {
            let cause = self.last_error.as_deref();
            return Err(self.unserved(cause.unwrap_or("that is being done")));
        }
        let Some(live) = &self.live else {
            return Ok(());
        };
        let path = live.device.path();
        if let Some(at) = self.mountpoint.clone() {
            let users = self.users(&path, &at).await?;
            if !users.is_empty() {
                return Err(Error::mounted(&self.name, &users));
            }
            let unmounted = self.cx.out.unmount(&at, false).await;
            unmounted
                .map_err(|cause| Error::step(format!("unmounting {}", at.display()), cause))?;
            self.mountpoint = None;
            self.counts.clear();
        }
        if self.held {
            return Ok(());
        }
        let Some(live) = self.live.take() else {
            return Ok(());
        };
        self.sizes = None;
        let detached = attachment::detach(&self.cx, live, how).await;
        let result = detached.map_err(|failure| self.keep(failure));
        self.forget_unstored();
        result
    }

    /// Whether the kernel knows a user beside our own mount.
    pub(super) async fn is_used(&self) -> Result<bool, Error> {
        let Some(path) = self.device() else {
            return Ok(false);
        };
        let at = self.mountpoint.clone().unwrap_or_default();
        Ok(!self.users(&path, &at).await?.is_empty())
    }

    /// Who has the device mounted elsewhere than there, as the kernel says.
    pub(super) async fn users(&self, device: &Path, at: &Path) -> Result<Vec<MountUser>, Error> {
        let users = self.cx.out.users(device, at).await;
        users.map_err(|cause| Error::step(format!("asking who uses {}", device.display()), cause))
    }
}
