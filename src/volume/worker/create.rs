//! Creating, adopting and removing a volume, and what is recorded of it.
//!
//! Invariant: only a volume that carries a cinder-nbd's mark is ever deleted in Cinder; one that
//! does not is forgotten.

use std::collections::BTreeMap;

use super::{Worker, marks_of};
use crate::cinder::{NewVolume, Volume};
use crate::volume::CREATED_BY;
use crate::volume::error::Error;
use crate::volume::journal::{Formatted, Record};
use crate::volume::platform::Release;
use crate::volume::request::{CreateRequest, SizeGib, View};

impl Worker {
    pub(super) async fn create(&mut self, request: CreateRequest) -> Result<View, Error> {
        request.check()?;
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
        let volume = match existing {
            Some(volume) => volume,
            None => self.create_in_cloud(&request).await?,
        };
        let mut record = self.record_of(&volume);
        record.fstype = request.fstype.unwrap_or(record.fstype);
        record.mount_options = request.mount_options.unwrap_or_default();
        record.read_only = request.read_only;
        self.cx.store.save_record(&record).await?;
        self.record = Some(record);
        self.is_stored = true;
        Ok(self.view())
    }

    pub(super) async fn create_in_cloud(&self, request: &CreateRequest) -> Result<Volume, Error> {
        let mark = (CREATED_BY.to_owned(), self.cx.settings.host.clone());
        let new = NewVolume {
            name: self.name.clone(),
            size: request
                .size
                .map_or(self.cx.settings.default_size, SizeGib::get),
            volume_type: request.volume_type.clone(),
            availability_zone: request.availability_zone.clone(),
            description: request.description.clone(),
            snapshot_id: request.snapshot_id.clone(),
            source_volid: request.source_volid.clone(),
            image: request.image.clone(),
            metadata: BTreeMap::from([mark]),
        };
        let created = self.cx.cloud.create(new).await;
        created.map_err(|cause| Error::step(format!("creating {} in Cinder", self.name), cause))
    }

    pub(super) async fn remove(&mut self) -> Result<(), Error> {
        if self.count() > 0 {
            return Err(self.counted("unmount it first"));
        }
        if self.held {
            return Err(Error::InUse {
                name: self.name.clone(),
                by: "it was attached by hand".to_owned(),
                remedy: "detach it first",
            });
        }
        self.release(Release::Clean).await?;
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
        if record.created_by_us {
            let deleted = self.cx.cloud.delete(&record.volume_id).await;
            deleted
                .map_err(|cause| Error::step(format!("deleting {} in Cinder", self.name), cause))?;
        } else {
            tracing::info!(
                volume = self.name,
                id = record.volume_id,
                "forgotten, not deleted: not created by us"
            );
        }
        self.cx.store.forget_record(&self.name).await?;
        self.record = None;
        self.is_stored = false;
        Ok(())
    }

    pub(super) async fn find(&self, asked: &str) -> Result<Option<Volume>, Error> {
        let found = self.cx.cloud.find(asked).await;
        found.map_err(|cause| Error::step(format!("asking Cinder for {asked}"), cause))
    }

    /// A record for a volume that had none.
    pub(super) fn record_of(&self, volume: &Volume) -> Record {
        let marks = marks_of(volume);
        Record {
            name: self.name.clone(),
            volume_id: volume.id.clone(),
            size_gib: volume.size,
            volume_type: volume.volume_type.clone(),
            created_at: volume.created_at.clone(),
            created_by_us: marks.created_by_us,
            fstype: self.cx.settings.default_fstype,
            mount_options: String::new(),
            read_only: false,
            formatted: if marks.formatted {
                Formatted::Done
            } else {
                Formatted::No
            },
        }
    }
}
