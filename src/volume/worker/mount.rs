//! From a device to a mounted filesystem, and the decision whether one may be made.
//!
//! Invariant: mkfs runs only on a device that was proved blank, of a volume that a cinder-nbd
//! created (our record and the volume's metadata both say so) and never formatted.

use std::path::{Path, PathBuf};

use tokio::time::Instant;

use super::{BEGIN_INTERVAL, RETRY_INTERVAL, Worker};
use crate::volume::attachment::Attached;
use crate::volume::error::{Cause, Error, line};
use crate::volume::journal::{Formatted, Record};
use crate::volume::layout::Fstype;
use crate::volume::platform::{Content, Handing, Release};
use crate::volume::request::{AttachRequest, parse_mount_options};

impl Worker {
    pub(super) async fn mount(&mut self, id: &str) -> Result<PathBuf, Error> {
        self.again_at = None;
        if let Some(at) = self.standing_mount().await? {
            self.forget_dead(id).await;
            self.count_up(id);
            self.note().await;
            return Ok(at);
        }
        self.settle_volume().await?;
        if self.record.is_none() {
            let found = self.find(&self.name).await?;
            let volume = found.ok_or_else(|| Error::NoSuchVolume {
                name: self.name.clone(),
            })?;
            let record = self.record_of(&volume);
            self.cx.out.save_record(&record).await?;
            self.record = Some(record);
        }
        if !self.is_stored
            && let Some(record) = &self.record
        {
            self.cx.out.save_record(record).await?;
            self.is_stored = true;
        }
        let read_only = self.record.as_ref().is_some_and(|record| record.read_only);
        let request = AttachRequest {
            read_only,
            ..AttachRequest::default()
        };
        self.ensure_attached(request).await?;
        match self.bring_up().await {
            Ok(at) => {
                self.grow_at_mount().await;
                self.count_up(id);
                self.note().await;
                Ok(at)
            }
            Err(error) => {
                if let Err(undo) = self.release(Release::Clean).await {
                    tracing::warn!(
                        volume = self.name,
                        error = line(&undo),
                        "undoing a mount failed"
                    );
                    self.again_at = Some(Instant::now() + RETRY_INTERVAL);
                }
                Err(error)
            }
        }
    }

    pub(super) async fn unmount(&mut self, id: &str) -> Result<(), Error> {
        self.discount(id);
        self.forget_dead("").await;
        self.note().await;
        if self.count() > 0 || self.mountpoint.is_none() {
            return Ok(());
        }
        self.release(Release::Clean).await
    }

    /// Forgets what is counted of callers that have gone without a word: of an engine that was killed, and its containers with
    /// it. It mounts again with their old IDs; so does `docker cp`, of a container that has the volume, but then the kernel
    /// knows a user.
    async fn forget_dead(&mut self, id: &str) {
        if self.count() == 0 {
            return;
        }
        match self.is_used().await {
            Ok(false) if self.told_at.elapsed() >= BEGIN_INTERVAL => self.counts.clear(),
            // Without an ID all callers are one, and the other may be about to use what it was told.
            Ok(false) if !id.is_empty() => drop(self.counts.remove(id)),
            Ok(_) => {}
            // One counted too many costs less than a Mount that is refused.
            Err(error) => {
                tracing::warn!(volume = self.name, error = line(&error), "counts stay");
            }
        }
    }

    /// The mountpoint, if it is really mounted: somebody may have unmounted it by hand. Whether the device is served
    /// does not matter.
    pub(super) async fn standing_mount(&mut self) -> Result<Option<PathBuf>, Error> {
        if self.device().is_none() {
            self.look().await?;
        }
        let (Some(device), Some(at)) = (self.device(), &self.mountpoint) else {
            return Ok(None);
        };
        let mounted = self.cx.out.is_mounted(&device, at).await;
        if mounted.map_err(|cause| Error::step(format!("looking at {}", at.display()), cause))? {
            return Ok(Some(self.handed_out(at)));
        }
        tracing::warn!(
            volume = self.name,
            "was unmounted by somebody else; mounting it again"
        );
        self.mountpoint = None;
        Ok(None)
    }

    /// What users of the mounted filesystem get.
    pub(super) fn handed_out(&self, mountpoint: &Path) -> PathBuf {
        match &self.record {
            Some(record) => record.top.beneath(mountpoint),
            None => mountpoint.to_owned(),
        }
    }

    /// From a device to a mounted filesystem.
    pub(super) async fn bring_up(&mut self) -> Result<PathBuf, Error> {
        let record = self.record.clone().ok_or_else(|| Error::NoSuchVolume {
            name: self.name.clone(),
        })?;
        let Some(live) = &mut self.live else {
            return Err(Error::Invalid {
                what: format!("{} is not attached", record.name),
            });
        };
        let device = live.device.path();
        let at = self.cx.settings.mount_dir.join(&record.name);
        live.entry.mountpoint = Some(at.clone());
        let entry = live.entry.clone();
        self.cx.out.save_entry(&entry).await?;
        let inspected = self.cx.out.inspect(&device).await;
        let content = inspected.map_err(|cause| step("looking at what is on", &device, cause))?;
        let fresh = match content {
            Content::Filesystem(found) if found == record.fstype.as_str() => {
                let read_only = record.read_only || live.read_only;
                let mended = self.cx.out.mend(&device, record.fstype, read_only).await;
                mended.map_err(|cause| step("checking the filesystem on", &device, cause))?;
                // What mkfs has made before it could be handed out.
                record.formatted == Formatted::Begun && self.may_format(&record).is_ok()
            }
            Content::Filesystem(found) => {
                let remedy = "it was asked for as another filesystem and is left alone; use 'cinder-nbd attach', or lose it with 'cinder-nbd volume format'";
                return Err(Error::NotMountable {
                    device,
                    found: format!("a {found} filesystem"),
                    remedy,
                });
            }
            Content::Other(found) => {
                let remedy =
                    "it is neither mounted nor formatted; look at it with 'cinder-nbd attach'";
                return Err(Error::NotMountable {
                    device,
                    found,
                    remedy,
                });
            }
            Content::Blank => {
                self.may_format(&record)?;
                self.format(record.clone(), &device).await?;
                true
            }
        };
        let mut options = parse_mount_options(&self.options_of(&record))?;
        if record.read_only {
            options = options.read_only();
        }
        let handing = Handing {
            top: record.top.clone(),
            is_fresh: fresh,
        };
        let mounted = self
            .cx
            .out
            .mount(&device, &at, record.fstype, options, handing)
            .await;
        mounted.map_err(|cause| step("mounting", &device, cause))?;
        self.mountpoint = Some(at.clone());
        if record.formatted != Formatted::Done {
            self.remember(Formatted::Done).await?;
        }
        Ok(record.top.beneath(&at))
    }

    /// The options of the record; a volume that another host may be writing is read as it is, without its log.
    fn options_of(&self, record: &Record) -> String {
        let is_shared = |live: &Attached| live.read_only && !live.entry.before.is_empty();
        if !self.live.as_ref().is_some_and(is_shared) {
            return record.mount_options.clone();
        }
        let without_log = match record.fstype {
            Fstype::Ext4 => "noload",
            Fstype::Xfs => "norecovery",
            Fstype::Btrfs => "rescue=nologreplay",
        };
        let options = [record.mount_options.as_str(), without_log];
        let options = options.into_iter().filter(|option| !option.is_empty());
        options.collect::<Vec<_>>().join(",")
    }

    /// Whether this blank volume is ours to format.
    pub(super) fn may_format(&self, record: &Record) -> Result<(), Error> {
        const BY_HAND: &str = "if it shall be, 'cinder-nbd volume format' makes a filesystem on it";
        let reason = if record.read_only || self.live.as_ref().is_some_and(|live| live.read_only) {
            "it is read-only"
        } else if record.formatted == Formatted::Done || self.marks.formatted {
            "it had a filesystem before; its data is lost, or this is another volume"
        } else if !record.created_by_us || !self.marks.created_by_us {
            "it was not created by cinder-nbd"
        } else {
            return Ok(());
        };
        Err(Error::NotOurs {
            name: self.name.clone(),
            reason,
            remedy: BY_HAND,
        })
    }

    pub(super) async fn format(&mut self, record: Record, device: &Path) -> Result<(), Error> {
        self.remember(Formatted::Begun).await?;
        tracing::info!(
            volume = self.name,
            fstype = record.fstype.as_str(),
            "making a filesystem"
        );
        let options = record.mkfs_options.clone();
        let formatted = self.cx.out.format(device, record.fstype, options).await;
        formatted.map_err(|cause| step("making a filesystem on", device, cause))?;
        self.marks.formatted = true;
        if let Some(record) = &mut self.record {
            record.grown_gib = Some(record.size_gib);
        }
        self.remember(Formatted::Begun).await?;
        // For other hosts; they would find the filesystem all the same.
        let fstype = record.fstype.as_str();
        let marked = self.cx.out.mark_formatted(&record.volume_id, fstype).await;
        if let Err(cause) = marked {
            tracing::warn!(
                volume = self.name,
                error = line(&*cause),
                "not marked as formatted in Cinder"
            );
        }
        Ok(())
    }

    pub(super) async fn remember(&mut self, formatted: Formatted) -> Result<(), Error> {
        let Some(record) = &mut self.record else {
            return Ok(());
        };
        record.formatted = formatted;
        self.cx.out.save_record(record).await
    }
}

fn step(what: &str, device: &Path, cause: Cause) -> Error {
    Error::step(format!("{what} {}", device.display()), cause)
}
