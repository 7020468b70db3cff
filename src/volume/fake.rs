//! A cloud and a host that exist in memory, fail where a test says so, and remember every call in
//! its order.
//!
//! Only in tests. They keep what the real ones keep (attachments, devices, mounts), so that a test
//! can ask what was left behind instead of believing the calls.

mod cloud;
mod platform;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use iscsi::proto::recovery::ReplacementTimeout;
use iscsi::proto::{ChapCredentials, DigestPolicy, IscsiName, Portal, Secret};
use iscsi::scsi::{BlockLength, ByteCount, Identity};
use uuid::Uuid;

use super::error::Cause;
use super::layout::Fstype;
use super::platform::{Content, MountOptions, MountUser};
use super::request::Elsewhere;
use super::{CREATED_BY, Settings};
use crate::cinder::{ConnectionInfo, Volume, VolumeAttachment};

/// Cloud and host of one test.
#[derive(Clone, Debug)]
pub(crate) struct World {
    inner: Arc<Mutex<Inner>>,
    /// The process that this handle belongs to: one that is dead does nothing any more.
    life: u64,
    /// Which host it is.
    host: &'static str,
}

impl Default for World {
    fn default() -> Self {
        Self {
            inner: Arc::default(),
            life: 0,
            host: "testhost",
        }
    }
}

/// A row of an attachment.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) volume: String,
    pub(crate) status: &'static str,
    pub(crate) tag: Option<String>,
    /// To whom it is exported.
    pub(crate) host: Option<String>,
}

#[derive(Debug, Default)]
struct Inner {
    calls: Vec<String>,
    failing: BTreeSet<&'static str>,
    gates: BTreeMap<&'static str, Arc<Notify>>,
    /// Calls that are done, and then fail.
    unanswered: BTreeSet<&'static str>,
    /// Gates for one volume alone, by its id.
    own_gates: BTreeMap<(&'static str, String), Arc<Notify>>,
    volumes: Vec<Volume>,
    attachments: BTreeMap<String, Row>,
    lives: BTreeMap<&'static str, u64>,
    snapshots: BTreeMap<String, Vec<String>>,
    taken: Vec<(String, bool)>,
    /// LUNs that take writes of this host alone.
    fences: BTreeMap<String, &'static str>,
    no_reservations: bool,
    /// What Cinder gives for discovery, what the target then shows, and where lanes could go beside the first portal.
    discovery: Option<ChapCredentials>,
    portals: Vec<(IscsiName, Portal)>,
    more_portals: Vec<Portal>,
    /// Filesystems made on each LUN.
    formatted: BTreeMap<String, u32>,
    /// GiB that a volume's LUN and its filesystem have.
    lun_gib: BTreeMap<String, u64>,
    filesystem_gib: BTreeMap<String, u64>,
    numbers: u32,
    devices: BTreeMap<PathBuf, FakeLun>,
    contents: BTreeMap<String, Content>,
    /// Files that are looked at and formatted in place of `contents`, by the real code.
    images: BTreeMap<String, PathBuf>,
    mounts: BTreeMap<PathBuf, PathBuf>,
    /// Mountpoints whose filesystem takes no writes.
    frozen: BTreeSet<PathBuf>,
    users: Vec<MountUser>,
    last_options: Option<MountOptions>,
    /// What a LUN says it is, other than by default.
    serials: BTreeMap<String, String>,
    kept: Vec<Uuid>,
}

impl Inner {
    /// The LUN that a device shows.
    fn key_on(&self, device: &Path) -> Result<String, Cause> {
        let lun = self.devices.get(device).ok_or("no such device")?;
        Ok(lun.key.clone())
    }

    /// The file that stands for it, if the test has given one.
    fn image_on(&self, device: &Path) -> Result<Option<PathBuf>, Cause> {
        Ok(self.images.get(&self.key_on(device)?).cloned())
    }
}

#[derive(Clone, Debug)]
struct FakeLun {
    host: &'static str,
    key: String,
    identifier: String,
    /// A process answers its I/O.
    is_served: bool,
}

impl World {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .expect("no test panics while it holds this")
    }

    /// From now on this call fails.
    pub(crate) fn fail(&self, call: &'static str) {
        self.inner().failing.insert(call);
    }

    /// From now on this call is done, and its answer is lost.
    pub(crate) fn lose_answer(&self, call: &'static str) {
        self.inner().unanswered.insert(call);
    }

    /// All calls succeed again.
    pub(crate) fn heal(&self) {
        let mut inner = self.inner();
        inner.failing.clear();
        inner.unanswered.clear();
    }

    /// As `gate`, for the volume of this name alone.
    pub(crate) fn gate_for(&self, call: &'static str, name: &str) -> Arc<Notify> {
        let gate = Arc::new(Notify::new());
        let mut inner = self.inner();
        let mut volumes = inner.volumes.iter();
        let volume = volumes.find(|volume| volume.name.as_deref() == Some(name));
        let id = volume.expect("a volume of the test").id.clone();
        inner.own_gates.insert((call, id), Arc::clone(&gate));
        gate
    }

    async fn pass(&self, call: &'static str, volume_id: &str) {
        let gate = self
            .inner()
            .own_gates
            .get(&(call, volume_id.to_owned()))
            .cloned();
        if let Some(gate) = gate {
            gate.notified().await;
        }
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

    /// This file is the LUN of a volume id, to be looked at and formatted as the real host does.
    pub(crate) fn set_image(&self, key: &str, image: &Path) {
        let images = &mut self.inner().images;
        images.insert(key.to_owned(), image.to_owned());
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

    /// As a kill does: devices and mounts stay, but nobody serves them, and what the dead process was about is not done.
    pub(crate) fn kill(&self) {
        let mut inner = self.inner();
        *inner.lives.entry(self.host).or_default() += 1;
        let luns = inner.devices.values_mut();
        for lun in luns.filter(|lun| lun.host == self.host) {
            lun.is_served = false;
        }
    }

    /// For the process that is alive.
    pub(crate) fn living(&self) -> Self {
        let life = self.inner().lives.get(self.host).copied();
        Self {
            life: life.unwrap_or_default(),
            ..self.clone()
        }
    }

    /// Another host beside the same cloud.
    pub(crate) fn on(&self, host: &'static str) -> Self {
        Self {
            host,
            ..self.clone()
        }
        .living()
    }

    fn is_dead(&self) -> bool {
        let inner = self.inner();
        inner.lives.get(self.host).copied().unwrap_or_default() != self.life
    }

    /// Whether there are devices, and each is served.
    pub(crate) fn all_served(&self) -> bool {
        let inner = self.inner();
        let mut ours = inner.devices.values().filter(|lun| lun.host == self.host);
        let mut all = ours.clone();
        ours.next().is_some() && all.all(|lun| lun.is_served)
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

    /// The rows of a volume.
    pub(crate) fn rows(&self, volume_id: &str) -> Vec<Row> {
        let inner = self.inner();
        let rows = inner.attachments.values();
        rows.filter(|row| row.volume == volume_id)
            .cloned()
            .collect()
    }

    /// Puts a row there that is nobody's here.
    pub(crate) fn add_row(&self, volume_id: &str, row: Row) -> String {
        let mut inner = self.inner();
        inner.numbers += 1;
        let id = format!("attachment-{}", inner.numbers);
        let row = Row {
            volume: volume_id.to_owned(),
            ..row
        };
        inner.attachments.insert(id.clone(), row);
        id
    }

    pub(crate) fn drop_rows(&self, volume_id: &str) {
        let rows = &mut self.inner().attachments;
        rows.retain(|_, row| row.volume != volume_id);
    }

    pub(crate) fn set_multiattach(&self, id: &str) {
        let mut inner = self.inner();
        let mut volumes = inner.volumes.iter_mut();
        let volume = volumes.find(|volume| volume.id == id);
        volume.expect("a volume of the test").multiattach = true;
    }

    pub(crate) fn set_status(&self, id: &str, status: &str) {
        let mut inner = self.inner();
        let mut volumes = inner.volumes.iter_mut();
        let volume = volumes.find(|volume| volume.id == id);
        volume.expect("a volume of the test").status = status.to_owned();
    }

    pub(crate) fn set_snapshots(&self, id: &str, snapshots: &[&str]) {
        let snapshots = snapshots.iter().map(|&id| id.to_owned()).collect();
        self.inner().snapshots.insert(id.to_owned(), snapshots);
    }

    /// Names of a volume's snapshots, each with whether the filesystem was frozen when it was taken.
    pub(crate) fn taken(&self) -> Vec<(String, bool)> {
        self.inner().taken.clone()
    }

    pub(crate) fn is_frozen(&self) -> bool {
        !self.inner().frozen.is_empty()
    }

    pub(crate) fn set_size(&self, id: &str, gib: u64) {
        let mut inner = self.inner();
        let mut volumes = inner.volumes.iter_mut();
        let volume = volumes.find(|volume| volume.id == id);
        volume.expect("a volume of the test").size = gib;
    }

    /// Cinder gives credentials for discovery, and each target then shows these.
    pub(crate) fn show_portals(&self, target: &str, portals: &[&str]) {
        let mut inner = self.inner();
        inner.discovery = Some(ChapCredentials {
            name: "finder".to_owned(),
            secret: Secret::new("look-around-12".to_owned()),
        });
        let shown = portals
            .iter()
            .map(|portal| (target.parse().unwrap(), portal.parse().unwrap()));
        inner.portals.extend(shown);
    }

    /// Where the lanes of the last device could go beside the first portal.
    pub(crate) fn more_portals(&self) -> Vec<String> {
        let inner = self.inner();
        inner.more_portals.iter().map(ToString::to_string).collect()
    }

    pub(crate) fn forbid_reservations(&self) {
        self.inner().no_reservations = true;
    }

    pub(crate) fn drop_fence(&self, volume_id: &str) {
        self.inner().fences.remove(volume_id);
    }

    /// Whom alone the volume's LUN takes writes of.
    pub(crate) fn fenced_for(&self, volume_id: &str) -> Option<&'static str> {
        self.inner().fences.get(volume_id).copied()
    }

    /// How often a filesystem was made on it.
    pub(crate) fn formats(&self, volume_id: &str) -> u32 {
        let inner = self.inner();
        inner.formatted.get(volume_id).copied().unwrap_or_default()
    }

    /// GiB of LUN and filesystem.
    pub(crate) fn grown(&self, volume_id: &str) -> (u64, u64) {
        let inner = self.inner();
        let of = |sizes: &BTreeMap<String, u64>| sizes.get(volume_id).copied().unwrap_or(1);
        (of(&inner.lun_gib), of(&inner.filesystem_gib))
    }

    /// Whether a write of this host arrives: it has a device that is served, an export, and no fence against it.
    pub(crate) fn can_write(&self, volume_id: &str) -> bool {
        let inner = self.inner();
        let mut luns = inner.devices.values();
        let is_served =
            luns.any(|lun| lun.host == self.host && lun.key == volume_id && lun.is_served);
        let mut rows = inner.attachments.values();
        let is_exported =
            rows.any(|row| row.volume == volume_id && row.host.as_deref() == Some(self.host));
        let fence = inner.fences.get(volume_id);
        is_served && is_exported && fence.is_none_or(|host| *host == self.host)
    }

    /// Volumes as Cinder shows them: their state is that of their rows.
    fn shown(inner: &Inner, volume: &Volume) -> Volume {
        let mut volume = volume.clone();
        let rows = inner.attachments.iter();
        let rows: Vec<_> = rows.filter(|(_, row)| row.volume == volume.id).collect();
        let order = ["attached", "attaching", "detaching", "reserved"];
        let most = order
            .iter()
            .find(|status| rows.iter().any(|(_, row)| row.status == **status));
        if volume.status == "available" {
            volume.status = match most {
                Some(&"attached") => "in-use",
                Some(status) => status,
                None => "available",
            }
            .to_owned();
        }
        let attached = rows.iter().filter(|(_, row)| row.status == "attached");
        volume.attachments = attached
            .map(|(id, row)| VolumeAttachment {
                attachment_id: (*id).clone(),
                host_name: None,
                device: row.tag.clone(),
                server_id: None,
                attached_at: Some("2026-11-22T18:35:56Z".to_owned()),
            })
            .collect();
        volume
    }

    /// Forgets devices and mounts, as a reboot does.
    pub(crate) fn reboot(&self) {
        *self.inner().lives.entry(self.host).or_default() += 1;
        self.lose_devices();
    }

    /// As when somebody has disconnected them by hand.
    pub(crate) fn lose_devices(&self) {
        let mut inner = self.inner();
        inner.devices.retain(|_, lun| lun.host != self.host);
        inner.mounts.clear();
        inner.frozen.clear();
    }

    pub(crate) fn unmount_by_hand(&self) {
        self.inner().mounts.clear();
    }

    /// A device of ours of which no journal knows.
    pub(crate) fn add_device(&self, identifier: &str, key: &str) -> PathBuf {
        let mut inner = self.inner();
        inner.numbers += 1;
        let path = PathBuf::from(format!("/dev/nbd{}", inner.numbers));
        let lun = FakeLun {
            host: self.host,
            key: key.to_owned(),
            identifier: identifier.to_owned(),
            is_served: false,
        };
        inner.devices.insert(path.clone(), lun);
        path
    }

    pub(crate) fn add_mount(&self, at: &Path, device: &Path) {
        let mounts = &mut self.inner().mounts;
        mounts.insert(at.to_owned(), device.to_owned());
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
            elsewhere: Elsewhere::Refuse,
        }
    }

    fn info_of(&self, attachment_id: &str) -> Result<ConnectionInfo, Cause> {
        let row = self.inner().attachments.get(attachment_id).cloned();
        let volume = row.ok_or("no such attachment")?.volume;
        Ok(ConnectionInfo {
            first_path: iscsi::io::Path {
                portal: "127.0.0.1:3260".parse()?,
                target_name: format!("iqn.2026-11.example:{volume}").parse()?,
                lun: 1.into(),
            },
            discovery_chap: self.inner().discovery.clone(),
            more_paths: Vec::new(),
            chap: None,
            read_only: false,
            rates: crate::block::Rates::default(),
        })
    }

    async fn enter(&self, call: &'static str) -> Result<(), Cause> {
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
        let gate = {
            let mut inner = self.inner();
            inner.calls.push(call.to_owned());
            inner.gates.get(call).cloned()
        };
        if let Some(gate) = gate {
            gate.notified().await;
            if self.is_dead() {
                std::future::pending::<()>().await;
            }
        }
        if self.inner().failing.contains(call) {
            return Err(format!("{call} fails in this test").into());
        }
        Ok(())
    }
}

/// Metadata of a volume that a cinder-nbd has made.
pub(crate) fn ours() -> BTreeMap<String, String> {
    BTreeMap::from([(CREATED_BY.to_owned(), "testhost".to_owned())])
}
