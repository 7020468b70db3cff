//! A cloud and a host that exist in memory, fail where a test says so, and remember every call in
//! its order.
//!
//! Only in tests. They keep what the real ones keep (attachments, devices, mounts), so that a test
//! can ask what was left behind instead of believing the calls.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use iscsi::proto::DigestPolicy;
use iscsi::proto::recovery::ReplacementTimeout;
use iscsi::scsi::{BlockLength, ByteCount, Identity};
use uuid::Uuid;

use super::error::Cause;
use super::platform::{
    Content, Device, DeviceSpec, Disconnected, MountOptions, MountUser, Platform, Release,
};
use super::request::Fstype;
use super::{CREATED_BY, Cloud, Settings};
use crate::cinder::{ConnectionInfo, Connector, NewVolume, Volume};

/// Cloud and host of one test.
#[derive(Clone, Debug, Default)]
pub(crate) struct World(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    calls: Vec<String>,
    failing: BTreeSet<&'static str>,
    gates: BTreeMap<&'static str, Arc<Notify>>,
    volumes: Vec<Volume>,
    attachments: BTreeMap<String, String>,
    numbers: u32,
    devices: BTreeMap<PathBuf, FakeLun>,
    contents: BTreeMap<String, Content>,
    mounts: BTreeMap<PathBuf, PathBuf>,
    users: Vec<MountUser>,
    last_options: Option<MountOptions>,
    /// What a LUN says it is, other than by default.
    serials: BTreeMap<String, String>,
    kept: Vec<Uuid>,
}

#[derive(Clone, Debug)]
struct FakeLun {
    key: String,
    identifier: String,
    /// A process answers its I/O.
    is_served: bool,
}

impl World {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no test panics while it holds this")
    }

    /// From now on this call fails.
    pub(crate) fn fail(&self, call: &'static str) {
        self.inner().failing.insert(call);
    }

    /// All calls succeed again.
    pub(crate) fn heal(&self) {
        self.inner().failing.clear();
    }

    /// From now on this call waits until the gate is notified.
    pub(crate) fn gate(&self, call: &'static str) -> Arc<Notify> {
        let gate = Arc::new(Notify::new());
        self.inner().gates.insert(call, Arc::clone(&gate));
        gate
    }

    /// The calls since the last look, by name.
    pub(crate) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.inner().calls)
    }

    /// How often a call was made since the last look.
    pub(crate) fn count(&self, call: &str) -> usize {
        self.inner()
            .calls
            .iter()
            .filter(|made| *made == call)
            .count()
    }

    /// Puts a volume into the cloud that nobody of us has made.
    pub(crate) fn add_foreign(&self, name: &str) -> String {
        self.add(name, BTreeMap::new())
    }

    /// Puts a volume into the cloud.
    pub(crate) fn add(&self, name: &str, metadata: BTreeMap<String, String>) -> String {
        let mut inner = self.inner();
        inner.numbers += 1;
        let id = format!("volume-{}", inner.numbers);
        inner.volumes.push(Volume {
            id: id.clone(),
            name: Some(name.to_owned()),
            status: "available".to_owned(),
            size: 1,
            volume_type: None,
            availability_zone: None,
            created_at: Some("2026-11-22T20:00:00.000000".to_owned()),
            updated_at: None,
            description: None,
            multiattach: false,
            encrypted: false,
            metadata,
            attachments: Vec::new(),
        });
        id
    }

    pub(crate) fn mark(&self, id: &str, key: &str, value: Option<&str>) {
        let mut inner = self.inner();
        let volume = inner
            .volumes
            .iter_mut()
            .find(|volume| volume.id == id)
            .expect("a volume of the test");
        match value {
            Some(value) => drop(volume.metadata.insert(key.to_owned(), value.to_owned())),
            None => drop(volume.metadata.remove(key)),
        }
    }

    /// What is on the LUN of a volume id or target.
    pub(crate) fn set_content(&self, key: &str, content: Content) {
        self.inner().contents.insert(key.to_owned(), content);
    }

    pub(crate) fn set_users(&self, users: Vec<MountUser>) {
        self.inner().users = users;
    }

    pub(crate) fn volumes(&self) -> Vec<Volume> {
        self.inner().volumes.clone()
    }

    pub(crate) fn options_of_last_mount(&self) -> Option<MountOptions> {
        self.inner().last_options.clone()
    }

    /// Another unit is behind the LUN of a volume id or target.
    pub(crate) fn exchange(&self, key: &str, serial: &str) {
        self.inner()
            .serials
            .insert(key.to_owned(), serial.to_owned());
    }

    /// As a kill does: devices and mounts stay, but nobody serves them.
    pub(crate) fn kill(&self) {
        for lun in self.inner().devices.values_mut() {
            lun.is_served = false;
        }
    }

    /// Whether there are devices, and each is served.
    pub(crate) fn all_served(&self) -> bool {
        let inner = self.inner();
        !inner.devices.is_empty() && inner.devices.values().all(|lun| lun.is_served)
    }

    /// The attachments for which held things were kept at the last start.
    pub(crate) fn kept(&self) -> Vec<Uuid> {
        self.inner().kept.clone()
    }

    fn identity_of(&self, key: &str) -> Identity {
        let serial = self.inner().serials.get(key).cloned();
        Identity::recorded(
            Vec::new(),
            serial.or_else(|| Some(format!("serial-{key}"))),
            BlockLength::B512,
            ByteCount(1 << 30),
        )
    }

    /// Forgets devices and mounts, as a reboot does.
    pub(crate) fn reboot(&self) {
        let mut inner = self.inner();
        inner.devices.clear();
        inner.mounts.clear();
    }

    pub(crate) fn unmount_by_hand(&self) {
        self.inner().mounts.clear();
    }

    pub(crate) fn mountpoints(&self) -> Vec<PathBuf> {
        self.inner().mounts.keys().cloned().collect()
    }

    pub(crate) fn devices(&self) -> Vec<PathBuf> {
        self.inner().devices.keys().cloned().collect()
    }

    pub(crate) fn attachments(&self) -> Vec<String> {
        self.inner().attachments.keys().cloned().collect()
    }

    /// Nothing is attached, no device, no mount.
    pub(crate) fn is_clean(&self) -> bool {
        self.attachments().is_empty() && self.devices().is_empty() && self.mountpoints().is_empty()
    }

    /// Settings beneath a directory of the test.
    pub(crate) fn settings(directory: &Path) -> Settings {
        Settings {
            runtime_dir: directory.join("run"),
            state_dir: directory.join("state"),
            mount_dir: directory.join("mnt"),
            host: "testhost".to_owned(),
            initiator_name: "iqn.2026-11.org.cinder-nbd:testhost".to_owned(),
            ip: None,
            lanes: 2,
            replacement_timeout: ReplacementTimeout::Never,
            dead_conn_timeout: Duration::from_mins(10),
            header_digest: DigestPolicy::None,
            data_digest: DigestPolicy::None,
            default_size: 1,
            default_fstype: Fstype::Ext4,
        }
    }

    fn info_of(&self, attachment_id: &str) -> Result<ConnectionInfo, Cause> {
        let volume = self.inner().attachments.get(attachment_id).cloned();
        let volume = volume.ok_or("no such attachment")?;
        Ok(ConnectionInfo {
            target_portal: "127.0.0.1:3260".parse()?,
            target_iqn: format!("iqn.2026-11.example:{volume}").parse()?,
            target_lun: 1,
            more_paths: Vec::new(),
            chap: None,
            read_only: false,
        })
    }

    async fn enter(&self, call: &'static str) -> Result<(), Cause> {
        let gate = {
            let mut inner = self.inner();
            inner.calls.push(call.to_owned());
            inner.gates.get(call).cloned()
        };
        if let Some(gate) = gate {
            gate.notified().await;
        }
        if self.inner().failing.contains(call) {
            return Err(format!("{call} fails in this test").into());
        }
        Ok(())
    }
}

impl Cloud for World {
    fn is_configured(&self) -> bool {
        true
    }

    fn local_ip(&self) -> BoxFuture<'_, Option<String>> {
        Box::pin(async { Some("192.0.2.7".to_owned()) })
    }

    fn find<'a>(&'a self, asked: &'a str) -> BoxFuture<'a, Result<Option<Volume>, Cause>> {
        Box::pin(async move {
            self.enter("find").await?;
            let inner = self.inner();
            let mut found = inner
                .volumes
                .iter()
                .filter(|volume| volume.id == asked || volume.name.as_deref() == Some(asked));
            let first = found.next().cloned();
            if found.next().is_some() {
                return Err(format!("several volumes are named {asked}").into());
            }
            Ok(first)
        })
    }

    fn create(&self, new: NewVolume) -> BoxFuture<'_, Result<Volume, Cause>> {
        Box::pin(async move {
            self.enter("create").await?;
            let id = self.add(&new.name, new.metadata);
            let mut inner = self.inner();
            let volume = inner
                .volumes
                .iter_mut()
                .find(|volume| volume.id == id)
                .expect("just added");
            volume.size = new.size;
            Ok(volume.clone())
        })
    }

    fn delete<'a>(&'a self, volume_id: &'a str) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("delete").await?;
            self.inner().volumes.retain(|volume| volume.id != volume_id);
            Ok(())
        })
    }

    fn reserve<'a>(&'a self, volume_id: &'a str, _: bool) -> BoxFuture<'a, Result<String, Cause>> {
        Box::pin(async move {
            self.enter("reserve").await?;
            let mut inner = self.inner();
            if inner.attachments.values().any(|volume| volume == volume_id) {
                return Err("attached elsewhere".into());
            }
            inner.numbers += 1;
            let id = format!("attachment-{}", inner.numbers);
            inner.attachments.insert(id.clone(), volume_id.to_owned());
            Ok(id)
        })
    }

    fn connect_attachment<'a>(
        &'a self,
        attachment_id: &'a str,
        connector: Connector,
    ) -> BoxFuture<'a, Result<ConnectionInfo, Cause>> {
        Box::pin(async move {
            self.enter("connect_attachment").await?;
            assert_eq!(
                (connector.host.as_str(), connector.ip.as_str()),
                ("testhost", "192.0.2.7")
            );
            self.info_of(attachment_id)
        })
    }

    fn connection_of<'a>(
        &'a self,
        attachment_id: &'a str,
    ) -> BoxFuture<'a, Result<ConnectionInfo, Cause>> {
        Box::pin(async move {
            self.enter("connection_of").await?;
            self.info_of(attachment_id)
        })
    }

    fn complete<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(self.enter("complete"))
    }

    fn delete_attachment<'a>(&'a self, attachment_id: &'a str) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("delete_attachment").await?;
            let mut inner = self.inner();
            let volume = inner.attachments.remove(attachment_id);
            let in_use = inner
                .devices
                .values()
                .any(|lun| Some(&lun.key) == volume.as_ref());
            assert!(!in_use, "an attachment was deleted beneath its device");
            Ok(())
        })
    }

    fn attachments<'a>(
        &'a self,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Vec<(String, String)>, Cause>> {
        Box::pin(async move {
            self.enter("attachments").await?;
            Ok(Vec::new())
        })
    }

    fn set_metadata<'a>(
        &'a self,
        volume_id: &'a str,
        key: &'a str,
        value: &'a str,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("set_metadata").await?;
            self.mark(volume_id, key, Some(value));
            Ok(())
        })
    }
}

#[derive(Debug)]
struct FakeDevice {
    world: World,
    path: PathBuf,
    key: String,
}

impl Device for FakeDevice {
    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    fn identity(&self) -> Identity {
        self.world.identity_of(&self.key)
    }

    fn disconnect(self: Box<Self>, how: Release) -> BoxFuture<'static, Disconnected> {
        Box::pin(async move {
            let call = match how {
                Release::Clean => "disconnect",
                Release::LoseUnwritten => "disconnect_unwritten",
                Release::Forced => "disconnect_by_force",
            };
            let mut failed = self.world.enter(call).await.err();
            let busy = how != Release::Forced && !self.world.inner().users.is_empty();
            if busy && failed.is_none() {
                failed = Some("the device is busy".into());
            }
            if let Some(error) = failed {
                let device: Box<dyn Device> = self;
                return Err((device, error));
            }
            self.world.inner().devices.remove(&self.path);
            Ok(())
        })
    }

    fn hand_over(self: Box<Self>) -> BoxFuture<'static, Result<(), Cause>> {
        Box::pin(async move {
            let handed = self.world.enter("hand_over").await;
            if let Some(lun) = self.world.inner().devices.get_mut(&self.path) {
                lun.is_served = false;
            }
            handed
        })
    }
}

/// The key of the LUN that all lanes lead to, each by a session of its own.
fn key_of(spec: &DeviceSpec) -> String {
    let lanes = &spec.lanes;
    let isids: BTreeSet<[u8; 6]> = lanes.iter().map(|lane| lane.session.isid.0).collect();
    assert_eq!(isids.len(), lanes.len(), "two lanes share an ISID");
    let target = lanes[0].session.target_name.as_ref();
    let target = target.expect("a target").to_string();
    target.trim_start_matches("iqn.2026-11.example:").to_owned()
}

impl Platform for World {
    fn probe(&self) -> BoxFuture<'_, Result<(), Cause>> {
        Box::pin(self.enter("probe"))
    }

    fn connect(&self, spec: DeviceSpec) -> BoxFuture<'_, Result<Box<dyn Device>, Cause>> {
        Box::pin(async move {
            self.enter("connect").await?;
            let key = key_of(&spec);
            let fresh = spec.lanes.iter().all(|lane| lane.resume.is_none());
            assert!(fresh, "a new device resumes nothing");
            let mut inner = self.inner();
            inner.numbers += 1;
            let path = PathBuf::from(format!("/dev/nbd{}", inner.numbers));
            let lun = FakeLun {
                key: key.clone(),
                identifier: spec.identifier,
                is_served: true,
            };
            inner.devices.insert(path.clone(), lun);
            drop(inner);
            let device: Box<dyn Device> = Box::new(FakeDevice {
                world: self.clone(),
                path,
                key,
            });
            Ok(device)
        })
    }

    fn find<'a>(&'a self, identifier: &'a str) -> BoxFuture<'a, Result<Option<PathBuf>, Cause>> {
        Box::pin(async move {
            self.enter("find_device").await?;
            let inner = self.inner();
            let mut devices = inner.devices.iter();
            let found = devices.find(|(_, lun)| lun.identifier == identifier);
            Ok(found.map(|(path, _)| path.clone()))
        })
    }

    fn adopt(&self, spec: DeviceSpec) -> BoxFuture<'_, Result<Box<dyn Device>, Cause>> {
        Box::pin(async move {
            self.enter("adopt").await?;
            let key = key_of(&spec);
            for lane in &spec.lanes {
                let recorded = lane.resume.as_ref().expect("a recorded identity");
                recorded.matches(&self.identity_of(&key))?;
            }
            let mut inner = self.inner();
            let mut devices = inner.devices.iter_mut();
            let (path, lun) = devices
                .find(|(_, lun)| lun.identifier == spec.identifier)
                .ok_or("the kernel has no such device")?;
            assert!(!lun.is_served, "two processes serve one device");
            assert_eq!(lun.key, key, "the device of another LUN");
            lun.is_served = true;
            let device: Box<dyn Device> = Box::new(FakeDevice {
                world: self.clone(),
                path: path.clone(),
                key,
            });
            Ok(device)
        })
    }

    fn keep_only(&self, ids: &[Uuid]) {
        self.inner().kept = ids.to_vec();
    }

    fn inspect<'a>(&'a self, device: &'a Path) -> BoxFuture<'a, Result<Content, Cause>> {
        Box::pin(async move {
            self.enter("inspect").await?;
            let inner = self.inner();
            let lun = inner.devices.get(device).expect("a device of the test");
            Ok(inner
                .contents
                .get(&lun.key)
                .cloned()
                .unwrap_or(Content::Blank))
        })
    }

    fn format<'a>(&'a self, device: &'a Path, fstype: Fstype) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("format").await?;
            let mut inner = self.inner();
            let key = inner
                .devices
                .get(device)
                .expect("a device of the test")
                .key
                .clone();
            inner
                .contents
                .insert(key, Content::Filesystem(fstype.as_str().to_owned()));
            Ok(())
        })
    }

    fn mount<'a>(
        &'a self,
        device: &'a Path,
        mountpoint: &'a Path,
        _: Fstype,
        options: MountOptions,
        _: bool,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("mount").await?;
            let mut inner = self.inner();
            inner.last_options = Some(options);
            inner
                .mounts
                .insert(mountpoint.to_owned(), device.to_owned());
            Ok(())
        })
    }

    fn unmount<'a>(&'a self, mountpoint: &'a Path, lazy: bool) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter(if lazy { "unmount_lazily" } else { "unmount" })
                .await?;
            self.inner().mounts.remove(mountpoint);
            Ok(())
        })
    }

    fn is_mounted<'a>(
        &'a self,
        device: &'a Path,
        mountpoint: &'a Path,
    ) -> BoxFuture<'a, Result<bool, Cause>> {
        Box::pin(async move {
            self.enter("is_mounted").await?;
            Ok(self
                .inner()
                .mounts
                .get(mountpoint)
                .is_some_and(|mounted| mounted == device))
        })
    }

    fn users<'a>(
        &'a self,
        _: &'a Path,
        _: &'a Path,
    ) -> BoxFuture<'a, Result<Vec<MountUser>, Cause>> {
        Box::pin(async move {
            self.enter("users").await?;
            Ok(self.inner().users.clone())
        })
    }

    fn sync<'a>(&'a self, _: &'a Path) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(self.enter("sync"))
    }

    fn reclaim<'a>(
        &'a self,
        identifier: &'a str,
        mountpoint: Option<&'a Path>,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("reclaim").await?;
            let mut inner = self.inner();
            if let Some(at) = mountpoint {
                inner.mounts.remove(at);
            }
            inner.devices.retain(|_, lun| lun.identifier != identifier);
            Ok(())
        })
    }
}

/// Metadata of a volume that a cinder-nbd has made.
pub(crate) fn ours() -> BTreeMap<String, String> {
    BTreeMap::from([(CREATED_BY.to_owned(), "testhost".to_owned())])
}
