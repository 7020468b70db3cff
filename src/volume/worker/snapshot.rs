//! A snapshot while the volume is used: the filesystem is frozen, Cinder takes it, the filesystem is thawed.
//!
//! ```text
//!  entry "frozen" --> freeze (writes wait, what is dirty goes to the target) --> Cinder: snapshot, until it is taken
//!                 --> thaw --> entry: not frozen
//!                      ^ by itself, when the limit is over
//! ```
//!
//! Invariants:
//! 1. Writes wait no longer than the limit, whatever Cinder does; a snapshot that was not taken by then is told to be as
//!    after a loss of power.
//! 2. What a process that dies has frozen, the next one thaws before anything else.
//! 3. A snapshot that was begun is kept, also when something else failed: it was asked for, and it may be of use.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::{RETRY_INTERVAL, Worker};
use crate::cinder::{NewSnapshot, Snapshot};
use crate::volume::error::{Error, line};
use crate::volume::request::{Consistency, SnapshotRequest, Taken};

impl Worker {
    pub(super) async fn snapshot(&mut self, request: SnapshotRequest) -> Result<Taken, Error> {
        let volume = self.find_settled().await?;
        let new = NewSnapshot {
            volume_id: volume.id,
            name: request.name,
            description: request.description,
        };
        let is_writable = self.live.as_ref().is_some_and(|live| !live.read_only);
        match (request.freeze_limit, self.mountpoint.clone()) {
            (Some(limit), Some(at)) if is_writable => self.snapshot_frozen(new, &at, limit).await,
            _ => {
                let is_used = !volume.attachments.is_empty() || volume.status != "available";
                let snapshot = self.begin(new).await?;
                let consistency = if is_used {
                    Consistency::Crash
                } else {
                    Consistency::Unused
                };
                Ok(Taken {
                    snapshot,
                    consistency,
                })
            }
        }
    }

    async fn snapshot_frozen(
        &mut self,
        new: NewSnapshot,
        at: &Path,
        limit: Duration,
    ) -> Result<Taken, Error> {
        self.note_frozen(true).await?;
        let until = Instant::now() + limit;
        if let Err(cause) = self.cx.out.freeze(at, limit).await {
            // A freeze that goes on in the kernel is undone by whoever waits for it there; that the entry says so a while
            // longer is for a process that comes after this one.
            self.again_at = Some(Instant::now() + RETRY_INTERVAL);
            return Err(Error::step(
                format!("freezing the filesystem at {}", at.display()),
                cause,
            ));
        }
        let taken = self.take_until(new, until).await;
        let was_frozen = self.thaw(at).await;
        let snapshot = taken?;
        let is_taken = snapshot.status == "available";
        let consistency = if was_frozen? && is_taken {
            Consistency::Filesystem
        } else {
            tracing::warn!(
                volume = self.name,
                snapshot = snapshot.id,
                status = snapshot.status,
                "not taken within {} s: thawed before",
                limit.as_secs()
            );
            Consistency::Crash
        };
        Ok(Taken {
            snapshot,
            consistency,
        })
    }

    /// Begun, and waited for as long as there is time.
    async fn take_until(&self, new: NewSnapshot, until: Instant) -> Result<Snapshot, Error> {
        let snapshot = self.begin(new).await?;
        let patience = until.saturating_duration_since(Instant::now());
        let looked = self.cx.out.await_snapshot(&snapshot.id, patience).await;
        Ok(looked.unwrap_or_else(|cause| {
            let error = line(&*cause);
            tracing::warn!(
                volume = self.name,
                error,
                "not known whether the snapshot is taken"
            );
            snapshot
        }))
    }

    async fn begin(&self, new: NewSnapshot) -> Result<Snapshot, Error> {
        let begun = self.cx.out.begin_snapshot(new).await;
        begun.map_err(|cause| Error::step(format!("taking a snapshot of {}", self.name), cause))
    }

    /// Thaws; whether it was frozen until now.
    async fn thaw(&mut self, at: &Path) -> Result<bool, Error> {
        match self.cx.out.thaw(at).await {
            Ok(was_frozen) => {
                self.note_frozen(false).await?;
                Ok(was_frozen)
            }
            Err(cause) => {
                self.again_at = Some(Instant::now() + RETRY_INTERVAL);
                let what = format!("thawing the filesystem at {}", at.display());
                Err(Error::step(what, cause))
            }
        }
    }

    /// After a restart, and again until it has worked: what was frozen is thawed.
    pub(super) async fn thaw_left(&mut self) {
        let is_frozen = self.entry().is_some_and(|entry| entry.frozen);
        if !is_frozen || self.live.is_none() {
            return;
        }
        let at: Option<PathBuf> = self.mountpoint.clone();
        let result = match at {
            Some(at) => self.thaw(&at).await.map(drop),
            None => self.note_frozen(false).await,
        };
        if let Err(error) = result {
            let error = line(&error);
            tracing::error!(volume = self.name, error, "writes to it wait; tried again");
            self.last_error = Some(error);
        }
    }

    async fn note_frozen(&mut self, frozen: bool) -> Result<(), Error> {
        let Some(entry) = self.entry_mut() else {
            return Ok(());
        };
        let was = std::mem::replace(&mut entry.frozen, frozen);
        let entry = entry.clone();
        let saved = self.cx.out.save_entry(&entry).await;
        if let (Err(_), Some(entry)) = (&saved, self.entry_mut()) {
            entry.frozen = was;
        }
        saved
    }
}
