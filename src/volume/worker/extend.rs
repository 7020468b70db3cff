//! Making a volume larger while it is used: Cinder, the device, the filesystem, one after the other.
//!
//! ```text
//!  record "extending to N" --> Cinder: os-extend --> the device looks at its unit (its session may go and come back)
//!                          --> the mounted filesystem grows --> record: grown to N
//! ```
//!
//! Invariants:
//! 1. Each floor is grown only when the one below has its new size.
//! 2. An extension that Cinder has not begun when a process dies never was; one that it has begun is ended.
//! 3. A volume that was made larger behind our back grows its filesystem at the next mount, if the filesystem was as
//!    large as the volume before; one that is smaller on purpose stays so.

use tokio::time::Instant;

use super::{RETRY_INTERVAL, Worker};
use crate::volume::error::{Error, line};
use crate::volume::journal::{Pending, Record};
use crate::volume::request::{SizeGib, View};

/// In bytes.
const GIB: u64 = 1 << 30;

impl Worker {
    pub(super) async fn extend(&mut self, to: SizeGib) -> Result<View, Error> {
        let volume = self.find_settled().await?;
        if to.get() < volume.size {
            return Err(Error::Invalid {
                what: format!(
                    "{} has {} GiB, and volumes do not shrink; give at least that",
                    self.name, volume.size
                ),
            });
        }
        let was_stored = self.is_stored;
        let known = self.record.clone();
        let begun = Record {
            pending: Some(Pending::Extend { to_gib: to.get() }),
            ..known.unwrap_or_else(|| self.record_of(&volume))
        };
        self.keep_record(begun).await?;
        let extended = self.cx.out.extend_volume(&volume.id, to.get()).await;
        let result = match extended {
            Ok(()) => self.end_extension().await,
            Err(cause) => {
                // Whether Cinder has begun all the same is seen below.
                let error = Error::step(format!("extending {} in Cinder", self.name), cause);
                self.end_extension().await.and(Err(error))
            }
        };
        if result.is_err() && self.is_extending().is_some() {
            self.again_at = Some(Instant::now() + RETRY_INTERVAL);
        }
        if !was_stored && self.is_extending().is_none() {
            self.cx.out.forget_record(&self.name).await?;
            self.is_stored = false;
        }
        result?;
        let view = self.view();
        self.forget_unstored();
        Ok(view)
    }

    /// Goes on with an extension that was begun.
    pub(super) async fn end_extension(&mut self) -> Result<(), Error> {
        let (Some(to_gib), Some(record)) = (self.is_extending(), self.record.clone()) else {
            return Ok(());
        };
        let found = self.find(&record.volume_id).await?;
        let size_gib = found.as_ref().map_or(0, |volume| volume.size);
        if size_gib < to_gib {
            if found.is_some_and(|volume| volume.status == "extending") {
                return Err(Error::InUse {
                    name: self.name.clone(),
                    by: "Cinder is extending it".to_owned(),
                    remedy: "it is looked at again by itself",
                });
            }
            tracing::info!(
                volume = self.name,
                to_gib,
                "Cinder has not extended it: forgotten"
            );
            let as_it_was = Record {
                pending: None,
                ..record
            };
            return self.keep_record(as_it_was).await;
        }
        self.grow_here(size_gib).await?;
        let is_writable = self.live.as_ref().is_some_and(|live| !live.read_only);
        let grown_gib = if self.mountpoint.is_some() && is_writable {
            Some(size_gib)
        } else {
            // As large as the volume was: then it is the next mount that makes it grow.
            record.grown_gib.or(Some(record.size_gib))
        };
        let ended = Record {
            size_gib,
            grown_gib,
            pending: None,
            ..record
        };
        self.keep_record(ended).await
    }

    /// After a mount: the filesystem grows if the volume has since it was made, or last grew. A failure is no reason to
    /// refuse the mount; it is tried again.
    pub(super) async fn grow_at_mount(&mut self) {
        let Some(record) = self.record.clone() else {
            return;
        };
        let size_gib = record.size_gib;
        let is_writable = self.live.as_ref().is_some_and(|live| !live.read_only);
        let has_grown = record.grown_gib.is_some_and(|grown| grown < size_gib);
        let result = if record.grown_gib.is_none() {
            let seen = Record {
                grown_gib: Some(size_gib),
                ..record
            };
            self.keep_record(seen).await
        } else if is_writable && has_grown && self.is_extending().is_none() {
            let begun = Record {
                pending: Some(Pending::Extend { to_gib: size_gib }),
                ..record
            };
            match self.keep_record(begun).await {
                Ok(()) => self.end_extension().await,
                Err(error) => Err(error),
            }
        } else if is_writable {
            self.end_extension().await
        } else {
            Ok(())
        };
        if let Err(error) = result {
            let error = line(&error);
            tracing::warn!(
                volume = self.name,
                error,
                "mounted, but not grown; tried again"
            );
            self.last_error = Some(error);
            self.again_at = Some(Instant::now() + RETRY_INTERVAL);
        }
        self.measure().await;
    }

    /// Device and filesystem, as far as they are here and may be written.
    async fn grow_here(&mut self, size_gib: u64) -> Result<(), Error> {
        let Some(live) = &self.live else {
            return Ok(());
        };
        let device = live.device.path();
        let grown = self.cx.out.grow_device(&device, size_gib * GIB).await;
        let bytes = grown
            .map_err(|cause| Error::step(format!("having {} grow", device.display()), cause))?;
        tracing::info!(volume = self.name, device = %device.display(), bytes, "the device has grown");
        let fstype = self.record.as_ref().map(|record| record.fstype);
        if !live.read_only
            && let (Some(at), Some(fstype)) = (self.mountpoint.clone(), fstype)
        {
            let grown = self.cx.out.grow_filesystem(&device, &at, fstype).await;
            grown.map_err(|cause| {
                let step = format!("growing the filesystem on {}", device.display());
                Error::step(step, cause)
            })?;
        }
        self.measure().await;
        Ok(())
    }

    pub(super) fn is_extending(&self) -> Option<u64> {
        match self.record.as_ref()?.pending {
            Some(Pending::Extend { to_gib }) => Some(to_gib),
            Some(Pending::Create { .. } | Pending::Remove) | None => None,
        }
    }
}
