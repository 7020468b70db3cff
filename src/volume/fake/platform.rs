//! The host of a test: devices, what is on them, mounts, fences.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::BoxFuture;
use iscsi::proto::{IscsiName, Portal, SessionParams};
use iscsi::scsi::Identity;
use uuid::Uuid;

use super::super::error::Cause;
use super::super::layout::{Fstype, MkfsOptions};
use super::super::platform::{
    Content, Device, DeviceSpec, Disconnected, Handing, MountOptions, MountUser, Platform, Release,
    Sizes,
};
use super::super::{blank, erase, filesystem};
use super::{FakeLun, Row, World};
use crate::lun::LunSpec;

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
    let first = &lanes[0].losses;
    let is_known_to_all = lanes.iter().all(|lane| lane.losses.is_shared_with(first));
    assert!(
        is_known_to_all,
        "what one lane lost, another does not hear of"
    );
    key_of_lun(&lanes[0])
}

fn key_of_lun(spec: &LunSpec) -> String {
    let target = spec.session.target_name.as_ref();
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
            let is_ours = |row: &Row| row.volume == key && row.host.as_deref() == Some(self.host);
            let is_cloud = inner.volumes.iter().any(|volume| volume.id == key);
            if is_cloud && !inner.attachments.values().any(is_ours) {
                return Err("the target does not let us in".into());
            }
            match inner.fences.get(&key) {
                None => {}
                Some(host) if *host == self.host => {
                    let mut lanes = spec.lanes.iter();
                    let all = lanes.all(|lane| lane.registration.is_some());
                    assert!(all, "a lane that its own fence keeps out");
                }
                Some(_) => return Err("the unit is reserved for another host".into()),
            }
            let more = spec.lanes.iter().flat_map(|lane| &lane.more_paths);
            inner.more_portals = more.map(|path| path.portal.clone()).collect();
            let lun = FakeLun {
                host: self.host,
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
            let found =
                devices.find(|(_, lun)| lun.host == self.host && lun.identifier == identifier);
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
            let is_ours = |row: &Row| row.volume == key && row.host.as_deref() == Some(self.host);
            let is_cloud = inner.volumes.iter().any(|volume| volume.id == key);
            if is_cloud && !inner.attachments.values().any(is_ours) {
                return Err("the target does not let us in".into());
            }
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
            let image = self.inner().image_on(device)?;
            if let Some(image) = image {
                return blank::examine(&image).await;
            }
            let inner = self.inner();
            let lun = inner.devices.get(device).expect("a device of the test");
            Ok(inner
                .contents
                .get(&lun.key)
                .cloned()
                .unwrap_or(Content::Blank))
        })
    }

    fn mend<'a>(
        &'a self,
        device: &'a Path,
        _: Fstype,
        _: bool,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("mend").await?;
            let inner = self.inner();
            assert!(
                !inner.mounts.values().any(|mounted| mounted == device),
                "mended while it is mounted"
            );
            Ok(())
        })
    }

    fn erase<'a>(&'a self, device: &'a Path) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("erase").await?;
            let image = self.inner().image_on(device)?;
            if let Some(image) = image {
                erase::erase(&image).await?;
            }
            let mut inner = self.inner();
            assert!(
                !inner.mounts.values().any(|mounted| mounted == device),
                "erased while it is mounted"
            );
            let key = inner.key_on(device)?;
            inner.contents.insert(key, Content::Blank);
            Ok(())
        })
    }

    fn format<'a>(
        &'a self,
        device: &'a Path,
        fstype: Fstype,
        options: MkfsOptions,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("format").await?;
            let image = self.inner().image_on(device)?;
            if let Some(image) = image {
                filesystem::format(&image, fstype, &options).await?;
            }
            let mut inner = self.inner();
            let key = inner.key_on(device)?;
            *inner.formatted.entry(key.clone()).or_default() += 1;
            let gib = inner.lun_gib.get(&key).copied().unwrap_or(1);
            inner.filesystem_gib.insert(key.clone(), gib);
            let before = inner
                .contents
                .insert(key, Content::Filesystem(fstype.as_str().to_owned()));
            let was_blank = before.is_none_or(|content| content == Content::Blank);
            assert!(was_blank, "formatted what was not blank");
            Ok(())
        })
    }

    fn mount<'a>(
        &'a self,
        device: &'a Path,
        mountpoint: &'a Path,
        _: Fstype,
        options: MountOptions,
        handing: Handing,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("mount").await?;
            let mut inner = self.inner();
            inner.last_options = Some(options);
            assert!(
                !handing.is_fresh || inner.formatted.values().any(|times| *times > 0),
                "handed out as fresh what was never made"
            );
            assert!(!inner.mounts.contains_key(mountpoint), "mounted twice");
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
            let mut inner = self.inner();
            assert!(
                !inner.frozen.contains(mountpoint),
                "unmounted while it is frozen"
            );
            inner.mounts.remove(mountpoint);
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

    fn devices(&self) -> BoxFuture<'_, Result<Vec<(PathBuf, String)>, Cause>> {
        Box::pin(async move {
            self.enter("devices").await?;
            let inner = self.inner();
            let ours = inner
                .devices
                .iter()
                .filter(|(_, lun)| lun.host == self.host);
            Ok(ours
                .map(|(path, lun)| (path.clone(), lun.identifier.clone()))
                .collect())
        })
    }

    fn is_free<'a>(&'a self, device: &'a Path) -> BoxFuture<'a, Result<bool, Cause>> {
        Box::pin(async move {
            self.enter("is_free").await?;
            let inner = self.inner();
            let is_mounted = inner.mounts.values().any(|mounted| mounted == device);
            Ok(!is_mounted && inner.users.is_empty())
        })
    }

    fn mounts_below<'a>(&'a self, at: &'a Path) -> BoxFuture<'a, Result<Vec<PathBuf>, Cause>> {
        Box::pin(async move {
            self.enter("mounts_below").await?;
            let mounts = self.mountpoints().into_iter();
            Ok(mounts.filter(|mount| mount.starts_with(at)).collect())
        })
    }

    fn portals(
        &self,
        session: SessionParams,
        target: IscsiName,
    ) -> BoxFuture<'_, Result<Vec<Portal>, Cause>> {
        Box::pin(async move {
            assert!(session.target_name.is_none() && session.chap.is_some());
            self.enter("portals").await?;
            let shown = self.inner().portals.clone();
            let of_it = shown.into_iter().filter(|(name, _)| *name == target);
            Ok(of_it.map(|(_, portal)| portal).collect())
        })
    }

    fn fence(&self, spec: LunSpec, _: u64) -> BoxFuture<'_, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("fence").await?;
            let mut inner = self.inner();
            if inner.no_reservations {
                return Err("PERSISTENT RESERVE OUT: invalid command operation code".into());
            }
            inner.fences.insert(key_of_lun(&spec), self.host);
            Ok(())
        })
    }

    fn unfence(&self, spec: LunSpec, _: u64) -> BoxFuture<'_, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("unfence").await?;
            self.inner().fences.remove(&key_of_lun(&spec));
            Ok(())
        })
    }

    fn freeze<'a>(
        &'a self,
        mountpoint: &'a Path,
        limit: Duration,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("freeze").await?;
            assert!(!limit.is_zero(), "no time to freeze in");
            let mut inner = self.inner();
            assert!(
                inner.mounts.contains_key(mountpoint),
                "frozen where nothing is mounted"
            );
            inner.frozen.insert(mountpoint.to_owned());
            Ok(())
        })
    }

    fn thaw<'a>(&'a self, mountpoint: &'a Path) -> BoxFuture<'a, Result<bool, Cause>> {
        Box::pin(async move {
            self.enter("thaw").await?;
            Ok(self.inner().frozen.remove(mountpoint))
        })
    }

    fn sizes<'a>(
        &'a self,
        device: &'a Path,
        mountpoint: Option<&'a Path>,
    ) -> BoxFuture<'a, Result<Sizes, Cause>> {
        Box::pin(async move {
            let inner = self.inner();
            let lun = inner.devices.get(device).ok_or("no such device")?;
            let of =
                |sizes: &BTreeMap<String, u64>| sizes.get(&lun.key).copied().unwrap_or(1) << 30;
            Ok(Sizes {
                device: of(&inner.lun_gib),
                filesystem: mountpoint.map(|_| of(&inner.filesystem_gib)),
            })
        })
    }

    fn grow_device<'a>(
        &'a self,
        device: &'a Path,
        bytes: u64,
    ) -> BoxFuture<'a, Result<u64, Cause>> {
        Box::pin(async move {
            self.enter("grow_device").await?;
            let mut inner = self.inner();
            let key = inner.key_on(device)?;
            let volume = inner.volumes.iter().find(|volume| volume.id == key);
            let gib = volume.ok_or("no such volume")?.size;
            assert!(gib << 30 >= bytes, "more than Cinder has given");
            inner.lun_gib.insert(key, gib);
            Ok(gib << 30)
        })
    }

    fn grow_filesystem<'a>(
        &'a self,
        device: &'a Path,
        mountpoint: &'a Path,
        _: Fstype,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("grow_filesystem").await?;
            let mut inner = self.inner();
            let mounted = inner.mounts.get(mountpoint).map(PathBuf::as_path);
            assert_eq!(mounted, Some(device), "grown where it is not mounted");
            let key = inner.key_on(device)?;
            let gib = inner.lun_gib.get(&key).copied().unwrap_or(1);
            inner.filesystem_gib.insert(key, gib);
            Ok(())
        })
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
                inner.frozen.remove(at);
                inner.mounts.remove(at);
            }
            inner.devices.retain(|_, lun| lun.identifier != identifier);
            Ok(())
        })
    }
}
