//! Creating, adopting and removing a volume, what is recorded of it, and the end of what a process before us began.
//!
//! ```text
//!  create:  record "creating", with a mark --> Cinder makes it, with the mark --> record with its id
//!  remove:  record "removing" --> Cinder deletes it --> no record
//! ```
//!
//! Invariants:
//! 1. A volume is made once: after a death, or an answer that was lost, it is looked for by the mark in its metadata.
//! 2. Only a volume that was made for its name here is deleted in Cinder, unless its `reclaim` says otherwise; one that
//!    was there before is forgotten.
//! 3. A removal that was begun is ended; one that Cinder refuses leaves all as it was.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::{RETRY_INTERVAL, START_INTERVAL, Worker, marks_of};
use crate::cinder::{NewVolume, Volume};
use crate::volume::error::{Error, line};
use crate::volume::journal::{Formatted, Pending, Record};
use crate::volume::layout::{MkfsOptions, Top};
use crate::volume::platform::Release;
use crate::volume::request::{CreateRequest, SizeGib, View};
use crate::volume::takeover;
use crate::volume::{CREATED_BY, CREATED_FOR};

impl Worker {
    pub(super) async fn create(&mut self, request: CreateRequest) -> Result<View, Error> {
        request.check()?;
        self.settle_volume().await?;
        if self.record.is_some() && self.is_stored {
            // Docker's retry of a call whose answer it did not see.
            return Ok(self.view());
        }
        let existing = match &request.volume_id {
            Some(id) => {
                let found = self.find(id).await?;
                Some(found.ok_or_else(|| Error::NoSuchVolume { name: id.clone() })?)
            }
            None => self.find(&self.name).await?,
        };
        let Some(volume) = existing else {
            return self.create_in_cloud(&request).await;
        };
        let mut record = self.record_of(&volume);
        record.adopted = request.volume_id.is_some();
        self.keep_record(wishes(record, &request)?).await?;
        Ok(self.view())
    }

    async fn create_in_cloud(&mut self, request: &CreateRequest) -> Result<View, Error> {
        let mark = uuid::Uuid::new_v4().to_string();
        let marks = [
            (CREATED_BY.to_owned(), self.cx.settings.host.clone()),
            (CREATED_FOR.to_owned(), mark.clone()),
        ];
        // Nought: as large as what it is made from.
        let is_copy = request.snapshot_id.is_some() || request.source_volid.is_some();
        let default_size = if is_copy {
            0
        } else {
            self.cx.settings.default_size
        };
        let new = NewVolume {
            name: self.name.clone(),
            size: request.size.map_or(default_size, SizeGib::get),
            volume_type: request.volume_type.clone(),
            availability_zone: request.availability_zone.clone(),
            description: request.description.clone(),
            snapshot_id: request.snapshot_id.clone(),
            source_volid: request.source_volid.clone(),
            image: request.image.clone(),
            scheduler_hints: request.scheduler_hints.clone(),
            metadata: BTreeMap::from(marks),
        };
        let begun = Record {
            pending: Some(Pending::Create { mark }),
            ..self.blank_record(new.size)
        };
        self.keep_record(wishes(begun, request)?).await?;
        match self.cx.out.create_volume(new).await {
            Ok(volume) => {
                self.made(&volume).await?;
                Ok(self.view())
            }
            Err(cause) => {
                let error = Error::step(format!("creating {} in Cinder", self.name), cause);
                if let Err(unknown) = self.settle_volume().await {
                    tracing::warn!(
                        volume = self.name,
                        error = line(&unknown),
                        "whether Cinder has made it is not known yet"
                    );
                    self.again_at = Some(Instant::now() + RETRY_INTERVAL);
                }
                match &self.record {
                    Some(record) if record.pending.is_none() => Ok(self.view()),
                    _ => Err(error),
                }
            }
        }
    }

    pub(super) async fn remove(&mut self) -> Result<(), Error> {
        // An engine asks for this when no container of it has the volume; one that was killed leaves counts of those it had.
        let may_begin = self.told_at.elapsed() < START_INTERVAL;
        if self.count() > 0 && (may_begin || self.is_used().await?) {
            return Err(self.counted("unmount it first"));
        }
        if self.held {
            return Err(Error::InUse {
                name: self.name.clone(),
                by: "it was attached by hand".to_owned(),
                remedy: "detach it first",
            });
        }
        self.settle_volume().await?;
        self.release(Release::Clean).await?;
        self.counts.clear();
        self.settle_left().await?;
        let record = if let Some(record) = self.record.clone() {
            record
        } else {
            let found = self.find(&self.name).await?;
            let volume = found.ok_or_else(|| Error::NoSuchVolume {
                name: self.name.clone(),
            })?;
            self.record_of(&volume)
        };
        if !record.is_deleted_with_us() {
            tracing::info!(
                volume = self.name,
                id = record.volume_id,
                "forgotten, not deleted: it was there before, or is to be retained"
            );
            return self.erase_record().await;
        }
        self.guard(&record).await?;
        let begun = Record {
            pending: Some(Pending::Remove),
            ..record
        };
        self.keep_record(begun).await?;
        self.end_removal().await
    }

    /// Ends what a process before us, or a call whose outcome was not known, has begun with the volume itself.
    pub(super) async fn settle_volume(&mut self) -> Result<(), Error> {
        let pending = self
            .record
            .as_ref()
            .and_then(|record| record.pending.clone());
        match pending {
            Some(Pending::Create { mark }) => self.end_creation(&mark).await,
            Some(Pending::Remove) => self.end_removal().await,
            Some(Pending::Extend { .. }) | None => Ok(()),
        }
    }

    /// As `settle_volume`, and what is being extended too.
    pub(super) async fn settle_pending(&mut self) -> Result<(), Error> {
        self.settle_volume().await?;
        self.end_extension().await
    }

    async fn end_creation(&mut self, mark: &str) -> Result<(), Error> {
        let named = self.cx.out.volumes_named(&self.name).await;
        let named = named
            .map_err(|cause| Error::step(format!("asking Cinder for {}", self.name), cause))?;
        let is_ours = |volume: &&Volume| {
            volume
                .metadata
                .get(CREATED_FOR)
                .is_some_and(|found| found == mark)
        };
        let Some(volume) = named.iter().find(is_ours) else {
            tracing::info!(volume = self.name, "was not created: forgotten");
            return self.erase_record().await;
        };
        match volume.status.as_str() {
            "creating" | "downloading" => Err(Error::InUse {
                name: self.name.clone(),
                by: format!("Cinder is making it ({})", volume.status),
                remedy: "it is looked at again by itself",
            }),
            "error" => {
                tracing::warn!(
                    volume = self.name,
                    id = volume.id,
                    "its creation failed: deleted"
                );
                let failed = Record {
                    volume_id: volume.id.clone(),
                    pending: Some(Pending::Remove),
                    ..self.blank_record(volume.size)
                };
                self.keep_record(failed).await?;
                self.end_removal().await
            }
            _ => self.made(volume).await,
        }
    }

    async fn made(&mut self, volume: &Volume) -> Result<(), Error> {
        let fresh = self.record_of(volume);
        let record = match self.record.clone() {
            Some(begun) => Record {
                fstype: begun.fstype,
                mount_options: begun.mount_options,
                mkfs_options: begun.mkfs_options,
                top: begun.top,
                read_only: begun.read_only,
                reclaim: begun.reclaim,
                elsewhere: begun.elsewhere,
                ..fresh
            },
            None => fresh,
        };
        self.keep_record(record).await
    }

    async fn end_removal(&mut self) -> Result<(), Error> {
        let Some(record) = self.record.clone() else {
            return Ok(());
        };
        let Err(cause) = self.cx.out.delete_volume(&record.volume_id).await else {
            return self.erase_record().await;
        };
        let error = Error::step(format!("deleting {} in Cinder", self.name), cause);
        match self.cx.out.find_volume(&record.volume_id).await {
            Ok(None) => self.erase_record().await,
            Ok(Some(volume)) if volume.status != "deleting" => {
                let kept = Record {
                    pending: None,
                    ..record
                };
                self.keep_record(kept).await?;
                Err(error)
            }
            Ok(Some(_)) | Err(_) => {
                self.again_at = Some(Instant::now() + RETRY_INTERVAL);
                Err(error)
            }
        }
    }

    /// What a deletion would take with it beside the volume.
    async fn guard(&self, record: &Record) -> Result<(), Error> {
        let (name, id) = (&self.name, &record.volume_id);
        let found = self.find(id).await?;
        if found.is_some_and(|volume| volume.status != "available" && volume.status != "error") {
            let holders = takeover::holders(&self.cx, name, id).await?;
            if !holders.is_empty() {
                let by: Vec<String> = holders.iter().map(ToString::to_string).collect();
                return Err(Error::Elsewhere {
                    name: name.clone(),
                    by: by.join(", "),
                    remedy: "detach it there before it is removed",
                });
            }
        }
        let snapshots = match self.cx.out.snapshots(id).await {
            Ok(snapshots) => snapshots,
            Err(cause) => {
                // Cinder refuses by itself to delete a volume that has some; it only says less.
                let error = line(&*cause);
                tracing::warn!(volume = name, error, "not known whether it has snapshots");
                Vec::new()
            }
        };
        if snapshots.is_empty() {
            return Ok(());
        }
        Err(Error::Guarded {
            name: name.clone(),
            why: format!(
                "it has {} snapshots ({})",
                snapshots.len(),
                first(
                    &snapshots
                        .iter()
                        .map(|one| one.id.clone())
                        .collect::<Vec<_>>()
                )
            ),
            remedy: "delete them first, or create it with reclaim=retain to have it forgotten only",
        })
    }

    pub(super) async fn keep_record(&mut self, record: Record) -> Result<(), Error> {
        self.cx.out.save_record(&record).await?;
        self.record = Some(record);
        self.is_stored = true;
        Ok(())
    }

    async fn erase_record(&mut self) -> Result<(), Error> {
        self.cx.out.forget_record(&self.name).await?;
        self.record = None;
        self.is_stored = false;
        Ok(())
    }

    /// The volume as Cinder has it, after all that was begun with it has ended.
    pub(super) async fn find_settled(&mut self) -> Result<Volume, Error> {
        self.take_over_now().await?;
        self.settle_pending().await?;
        let asked = match &self.record {
            Some(record) => record.volume_id.clone(),
            None => self.name.clone(),
        };
        let found = self.find(&asked).await?;
        found.ok_or_else(|| Error::NoSuchVolume {
            name: self.name.clone(),
        })
    }

    pub(super) async fn find(&self, asked: &str) -> Result<Option<Volume>, Error> {
        self.cx.find_volume(asked, asked).await
    }

    /// A record for a volume that had none.
    pub(super) fn record_of(&self, volume: &Volume) -> Record {
        let marks = marks_of(volume);
        Record {
            volume_id: volume.id.clone(),
            volume_type: volume.volume_type.clone(),
            created_at: volume.created_at.clone(),
            created_by_us: marks.created_by_us,
            formatted: if marks.formatted {
                Formatted::Done
            } else {
                Formatted::No
            },
            ..self.blank_record(volume.size)
        }
    }

    /// A record of a volume of which nothing is known but the size.
    fn blank_record(&self, size_gib: u64) -> Record {
        Record {
            name: self.name.clone(),
            volume_id: String::new(),
            size_gib,
            volume_type: None,
            created_at: None,
            created_by_us: false,
            fstype: self.cx.settings.default_fstype,
            mount_options: String::new(),
            mkfs_options: MkfsOptions::default(),
            top: Top::default(),
            read_only: false,
            formatted: Formatted::No,
            grown_gib: None,
            pending: None,
            reclaim: None,
            elsewhere: None,
            adopted: false,
        }
    }
}

/// What was asked for beyond the volume itself.
fn wishes(record: Record, request: &CreateRequest) -> Result<Record, Error> {
    let fstype = request.fstype.unwrap_or(record.fstype);
    Ok(Record {
        fstype,
        mkfs_options: request.mkfs_options(fstype)?,
        top: request.top.clone(),
        mount_options: request.mount_options.clone().unwrap_or_default(),
        read_only: request.read_only,
        reclaim: request.reclaim,
        elsewhere: request.elsewhere,
        ..record
    })
}

/// The first few of them, for a line.
fn first(ids: &[String]) -> String {
    /// Chosen freely.
    const NAMED_MAX: usize = 3;
    let mut text = ids[..ids.len().min(NAMED_MAX)].join(", ");
    if ids.len() > NAMED_MAX {
        text.push_str(", ...");
    }
    text
}
