//! The one door to what is outside of this process: Cinder, the kernel, media, our files.
//!
//! A room of its own because a change that is made past the table of steps could not be survived: the fields here are
//! private, so whoever changes something names the step, and every step has its two points where a test lets the
//! process die.
//!
//! Read before changing: `step`.
//!
//! Invariant: a function here either asks, and changes nothing, or is one `Step`, begun at its point `Before` and ended at
//! its point `After`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use iscsi::proto::{IscsiName, Portal, SessionParams};
use iscsi::scsi::Identity;
use uuid::Uuid;

use super::address::{Address, Addresses};
use super::cloud::Cloud;
use super::error::{Cause, Error};
use super::journal::{Entry, Record, Store};
use super::layout::{Fstype, MkfsOptions};
use super::platform::{
    Content, Device, DeviceSpec, Handing, MountOptions, MountUser, Platform, Release, Sizes,
};
use super::step::Step;
use crate::cinder::{ConnectionInfo, Connector, Holder, NewSnapshot, NewVolume, Snapshot, Volume};
use crate::lun::LunSpec;

/// Cloud, host and disk.
#[derive(Debug)]
pub(crate) struct Outside {
    cloud: Arc<dyn Cloud>,
    platform: Arc<dyn Platform>,
    store: Store,
    addresses: Addresses,
    #[cfg(test)]
    witness: Option<Arc<dyn Witness>>,
}

/// A device that is served. What is done to it is done by `Outside`.
#[derive(Debug)]
pub(crate) struct Served(Box<dyn Device>);

impl Served {
    /// `/dev/nbdX`.
    pub(crate) fn path(&self) -> PathBuf {
        self.0.path()
    }

    /// What the LUN behind it said it is.
    pub(crate) fn identity(&self) -> Identity {
        self.0.identity()
    }
}

/// Sees every step, and may keep one from being done.
#[cfg(test)]
pub(crate) trait Witness: std::fmt::Debug + Send + Sync {
    /// Never ends for a process that dies here.
    fn reach(&self, point: super::step::Point) -> futures_util::future::BoxFuture<'_, ()>;
}

impl Outside {
    pub(crate) fn new(
        cloud: Arc<dyn Cloud>,
        platform: Arc<dyn Platform>,
        store: Store,
        addresses: Addresses,
    ) -> Self {
        Self {
            cloud,
            platform,
            store,
            addresses,
            #[cfg(test)]
            witness: None,
        }
    }

    /// With somebody who looks on.
    #[cfg(test)]
    pub(crate) fn watched(mut self, witness: Option<Arc<dyn Witness>>) -> Self {
        self.witness = witness;
        self
    }

    /// One step, with its two points.
    async fn take<T>(&self, step: Step, work: impl Future<Output = T>) -> T {
        tracing::trace!(?step, intent = ?step.intent(), "step");
        #[cfg(test)]
        if let Some(witness) = &self.witness {
            witness.reach(super::step::Point::Before(step)).await;
        }
        let done = work.await;
        #[cfg(test)]
        if let Some(witness) = &self.witness {
            witness.reach(super::step::Point::After(step)).await;
        }
        done
    }
}

/// Questions to Cinder.
impl Outside {
    pub(crate) fn has_cloud(&self) -> bool {
        self.cloud.is_configured()
    }

    pub(crate) async fn local_ip(&self) -> Option<String> {
        self.cloud.local_ip().await
    }

    pub(crate) async fn find_volume(&self, asked: &str) -> Result<Option<Volume>, Cause> {
        self.cloud.find(asked).await
    }

    pub(crate) async fn volumes_named(&self, name: &str) -> Result<Vec<Volume>, Cause> {
        self.cloud.named(name).await
    }

    pub(crate) async fn all_volumes(&self) -> Result<Vec<Volume>, Cause> {
        self.cloud.list().await
    }

    pub(crate) async fn holders(&self, volume_id: &str) -> Result<Vec<Holder>, Cause> {
        self.cloud.holders(volume_id).await
    }

    pub(crate) async fn snapshots(&self, volume_id: &str) -> Result<Vec<Snapshot>, Cause> {
        self.cloud.snapshots(volume_id).await
    }

    pub(crate) async fn await_snapshot(
        &self,
        id: &str,
        patience: Duration,
    ) -> Result<Snapshot, Cause> {
        self.cloud.await_snapshot(id, patience).await
    }

    pub(crate) async fn connection_of(&self, attachment: &str) -> Result<ConnectionInfo, Cause> {
        self.cloud.connection_of(attachment).await
    }
}

/// Changes in Cinder.
impl Outside {
    pub(crate) async fn create_volume(&self, new: NewVolume) -> Result<Volume, Cause> {
        self.take(Step::CreateVolume, self.cloud.create(new)).await
    }

    pub(crate) async fn delete_volume(&self, id: &str) -> Result<(), Cause> {
        self.take(Step::DeleteVolume, self.cloud.delete(id)).await
    }

    pub(crate) async fn extend_volume(&self, id: &str, gib: u64) -> Result<(), Cause> {
        self.take(Step::ExtendVolume, self.cloud.extend(id, gib))
            .await
    }

    pub(crate) async fn begin_snapshot(&self, new: NewSnapshot) -> Result<Snapshot, Cause> {
        self.take(Step::TakeSnapshot, self.cloud.begin_snapshot(new))
            .await
    }

    pub(crate) async fn tag(&self, id: &str, key: &str, value: &str) -> Result<(), Cause> {
        let work = self.cloud.set_metadata(id, key, value);
        self.take(Step::TagVolume, work).await
    }

    pub(crate) async fn untag(&self, id: &str, key: &str) -> Result<(), Cause> {
        let work = self.cloud.remove_metadata(id, key);
        self.take(Step::UntagVolume, work).await
    }

    pub(crate) async fn mark_formatted(&self, id: &str, fstype: &str) -> Result<(), Cause> {
        let work = self.cloud.set_metadata(id, super::FORMATTED, fstype);
        self.take(Step::MarkFormatted, work).await
    }

    pub(crate) async fn reserve(&self, id: &str, read_only: bool) -> Result<String, Cause> {
        self.take(Step::Reserve, self.cloud.reserve(id, read_only))
            .await
    }

    pub(crate) async fn connect_attachment(
        &self,
        attachment: &str,
        connector: Connector,
    ) -> Result<ConnectionInfo, Cause> {
        let work = self.cloud.connect_attachment(attachment, connector);
        self.take(Step::Connect, work).await
    }

    pub(crate) async fn complete(&self, attachment: &str) -> Result<(), Cause> {
        self.take(Step::Complete, self.cloud.complete(attachment))
            .await
    }

    pub(crate) async fn delete_attachment(&self, attachment: &str) -> Result<(), Cause> {
        let work = self.cloud.delete_attachment(attachment);
        self.take(Step::DeleteAttachment, work).await
    }

    /// Another host's.
    pub(crate) async fn take_away(&self, attachment: &str) -> Result<(), Cause> {
        let work = self.cloud.delete_attachment(attachment);
        self.take(Step::TakeAway, work).await
    }
}

/// Questions to the host.
impl Outside {
    pub(crate) async fn probe(&self) -> Result<(), Cause> {
        self.platform.probe().await
    }

    pub(crate) async fn find_device(&self, identifier: &str) -> Result<Option<PathBuf>, Cause> {
        self.platform.find(identifier).await
    }

    pub(crate) async fn our_devices(&self) -> Result<Vec<(PathBuf, String)>, Cause> {
        self.platform.devices().await
    }

    pub(crate) async fn is_free(&self, device: &Path) -> Result<bool, Cause> {
        self.platform.is_free(device).await
    }

    pub(crate) async fn mounts_below(&self, directory: &Path) -> Result<Vec<PathBuf>, Cause> {
        self.platform.mounts_below(directory).await
    }

    pub(crate) async fn inspect(&self, device: &Path) -> Result<Content, Cause> {
        self.platform.inspect(device).await
    }

    pub(crate) async fn is_mounted(&self, device: &Path, at: &Path) -> Result<bool, Cause> {
        self.platform.is_mounted(device, at).await
    }

    pub(crate) async fn users(&self, device: &Path, at: &Path) -> Result<Vec<MountUser>, Cause> {
        self.platform.users(device, at).await
    }

    pub(crate) async fn sizes(&self, device: &Path, at: Option<&Path>) -> Result<Sizes, Cause> {
        self.platform.sizes(device, at).await
    }

    pub(crate) async fn portals(
        &self,
        session: SessionParams,
        target: IscsiName,
    ) -> Result<Vec<Portal>, Cause> {
        self.platform.portals(session, target).await
    }

    /// Writes back what is dirty: nothing is there afterwards that was not meant to be.
    pub(crate) async fn sync(&self, at: &Path) -> Result<(), Cause> {
        self.platform.sync(at).await
    }
}

/// Changes on the host.
impl Outside {
    pub(crate) fn keep_only(&self, ids: &[Uuid]) {
        self.platform.keep_only(ids);
    }

    pub(crate) async fn fence(&self, spec: LunSpec, key: u64) -> Result<(), Cause> {
        self.take(Step::Fence, self.platform.fence(spec, key)).await
    }

    pub(crate) async fn unfence(&self, spec: LunSpec, key: u64) -> Result<(), Cause> {
        self.take(Step::Unfence, self.platform.unfence(spec, key))
            .await
    }

    pub(crate) async fn make_device(&self, spec: DeviceSpec) -> Result<Served, Cause> {
        let work = self.platform.connect(spec);
        self.take(Step::MakeDevice, work).await.map(Served)
    }

    pub(crate) async fn adopt(&self, spec: DeviceSpec) -> Result<Served, Cause> {
        self.take(Step::Adopt, self.platform.adopt(spec))
            .await
            .map(Served)
    }

    /// Comes back with the device when it stays.
    pub(crate) async fn disconnect(
        &self,
        device: Served,
        how: Release,
    ) -> Result<(), (Served, Cause)> {
        let work = device.0.disconnect(how);
        let gone = self.take(Step::Disconnect, work).await;
        gone.map_err(|(device, cause)| (Served(device), cause))
    }

    pub(crate) async fn hand_over(&self, device: Served) -> Result<(), Cause> {
        self.take(Step::HandOver, device.0.hand_over()).await
    }

    pub(crate) async fn reclaim(&self, identifier: &str, at: Option<&Path>) -> Result<(), Cause> {
        let work = self.platform.reclaim(identifier, at);
        self.take(Step::Reclaim, work).await
    }

    pub(crate) async fn erase(&self, device: &Path) -> Result<(), Cause> {
        self.take(Step::Erase, self.platform.erase(device)).await
    }

    pub(crate) async fn format(
        &self,
        device: &Path,
        fstype: Fstype,
        options: MkfsOptions,
    ) -> Result<(), Cause> {
        let work = self.platform.format(device, fstype, options);
        self.take(Step::Format, work).await
    }

    pub(crate) async fn mend(
        &self,
        device: &Path,
        fstype: Fstype,
        read_only: bool,
    ) -> Result<(), Cause> {
        let work = self.platform.mend(device, fstype, read_only);
        self.take(Step::Mend, work).await
    }

    pub(crate) async fn mount(
        &self,
        device: &Path,
        at: &Path,
        fstype: Fstype,
        options: MountOptions,
        handing: Handing,
    ) -> Result<(), Cause> {
        let work = self.platform.mount(device, at, fstype, options, handing);
        self.take(Step::Mount, work).await
    }

    pub(crate) async fn unmount(&self, at: &Path, lazy: bool) -> Result<(), Cause> {
        self.take(Step::Unmount, self.platform.unmount(at, lazy))
            .await
    }

    pub(crate) async fn freeze(&self, at: &Path, limit: Duration) -> Result<(), Cause> {
        self.take(Step::Freeze, self.platform.freeze(at, limit))
            .await
    }

    pub(crate) async fn thaw(&self, at: &Path) -> Result<bool, Cause> {
        self.take(Step::Thaw, self.platform.thaw(at)).await
    }

    pub(crate) async fn grow_device(&self, device: &Path, bytes: u64) -> Result<u64, Cause> {
        let work = self.platform.grow_device(device, bytes);
        self.take(Step::GrowDevice, work).await
    }

    pub(crate) async fn grow_filesystem(
        &self,
        device: &Path,
        at: &Path,
        fstype: Fstype,
    ) -> Result<(), Cause> {
        let work = self.platform.grow_filesystem(device, at, fstype);
        self.take(Step::GrowFilesystem, work).await
    }
}

/// Our files.
impl Outside {
    pub(crate) async fn save_record(&self, record: &Record) -> Result<(), Error> {
        self.take(Step::WriteRecord, self.store.save_record(record))
            .await
    }

    pub(crate) async fn forget_record(&self, name: &str) -> Result<(), Error> {
        self.take(Step::EraseRecord, self.store.forget_record(name))
            .await
    }

    pub(crate) async fn save_entry(&self, entry: &Entry) -> Result<(), Error> {
        self.take(Step::WriteEntry, self.store.save_entry(entry))
            .await
    }

    pub(crate) async fn forget_entry(&self, entry: &Entry) -> Result<(), Error> {
        self.take(Step::EraseEntry, self.store.forget_entry(entry))
            .await
    }

    pub(crate) async fn keep_address(&self, id: Uuid, address: &Address) -> Result<(), Error> {
        self.take(Step::KeepAddress, self.addresses.save(id, address))
            .await
    }

    pub(crate) async fn forget_address(&self, id: Uuid) -> Result<(), Error> {
        self.take(Step::DropAddress, self.addresses.forget(id))
            .await
    }

    pub(crate) async fn address_of(&self, id: Uuid) -> Option<Address> {
        self.addresses.load(id).await
    }

    /// Attachments of which an address is kept.
    pub(crate) fn kept_addresses(&self) -> Vec<Uuid> {
        self.addresses.ids()
    }

    pub(crate) fn load(&self) -> Result<(Vec<Record>, Vec<Entry>), Error> {
        self.store.load()
    }
}
