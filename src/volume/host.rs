//! This host as it is: the kernel's NBD driver, mounts, tools. Each call is one step; the engine
//! has decided it.
//!
//! Invariant: all lanes of a device show the same LUN. Two that differ are refused before the
//! kernel sees either.
//!
//! What outlives this process is `kept`'s matter.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use iscsi::proto::recovery::ReplacementTimeout;
use iscsi::proto::{IscsiName, Portal, SessionParams};
use uuid::Uuid;

use super::error::{Cause, Error};
use super::kept::{Keeping, Kept};
use super::layout::{Fstype, MkfsOptions};
use super::platform::{
    Content, Device, DeviceSpec, Disconnected, Handing, MountOptions, MountUser, Platform, Release,
    Sizes,
};
use super::{blank, erase, fence, filesystem, portals};
use crate::block::Backend;
use crate::lun::{Identity, Lun, LunSpec};
use crate::nbd::{self, DeviceParams, KernelDevice};
use crate::sys::freeze::{self, Frozen};
use crate::sys::inherited::Inherited;
use crate::sys::notify::Notifier;
use crate::sys::{blkdev, mount};

/// The real platform.
#[derive(Clone, Debug, Default)]
pub struct Host {
    keeping: Arc<Keeping>,
    /// Filesystems frozen now, by their mountpoints. Held for an insertion or a removal only.
    frozen: Arc<Mutex<BTreeMap<PathBuf, Frozen>>>,
}

#[derive(Debug)]
struct HostDevice {
    device: KernelDevice,
    identity: Identity,
    kept: Option<Arc<Kept>>,
}

impl Host {
    /// With whoever holds descriptors for us, if anybody does, and what it held for the process before us.
    pub fn new(holder: Option<Arc<Notifier>>, inherited: Vec<Inherited>) -> Self {
        Self {
            keeping: Arc::new(Keeping::new(holder, inherited)),
            frozen: Arc::default(),
        }
    }

    fn frozen(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Frozen>> {
        self.frozen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the whole host is going down, as far as systemd says; false where there is none.
    pub async fn is_stopping() -> bool {
        /// It answers at once, or it is too busy with going down.
        const PATIENCE: Duration = Duration::from_secs(2);
        let asked = tokio::process::Command::new("systemctl")
            .arg("is-system-running")
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output();
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(output)) => output.stdout.trim_ascii() == b"stopping",
            Ok(Err(_)) | Err(_) => false,
        }
    }
}

impl Device for HostDevice {
    fn path(&self) -> PathBuf {
        self.device.path()
    }

    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn disconnect(self: Box<Self>, how: Release) -> BoxFuture<'static, Disconnected> {
        Box::pin(async move {
            let Self {
                device,
                identity,
                kept,
            } = *self;
            let result = match device.disconnect(how == Release::Forced).await {
                // Nobody uses it, as was just proved, and its target takes no more writes.
                Err((device, nbd::Error::Flush { .. })) if how == Release::LoseUnwritten => {
                    device.disconnect(true).await
                }
                result => result,
            };
            match result {
                Ok(()) => {
                    if let Some(kept) = kept {
                        kept.forget_all();
                    }
                    Ok(())
                }
                Err((device, error)) => {
                    let device: Box<dyn Device> = Box::new(Self {
                        device,
                        identity,
                        kept,
                    });
                    Err((device, error.into()))
                }
            }
        })
    }

    fn hand_over(self: Box<Self>) -> BoxFuture<'static, Result<(), Cause>> {
        Box::pin(async move {
            self.device.hand_over().await;
            Ok(())
        })
    }
}

impl Platform for Host {
    fn probe(&self) -> BoxFuture<'_, Result<(), Cause>> {
        Box::pin(async { Ok(tokio::task::spawn_blocking(KernelDevice::probe).await??) })
    }

    fn connect(&self, spec: DeviceSpec) -> BoxFuture<'_, Result<Box<dyn Device>, Cause>> {
        let kept = self.keeping.of_device(spec.id, spec.lanes.len());
        if let Some(kept) = &kept {
            kept.settle();
        }
        Box::pin(async move {
            let made = make(spec, kept.clone(), Way::New).await;
            if let (Err(_), Some(kept)) = (&made, &kept) {
                kept.forget_all();
            }
            made
        })
    }

    fn find<'a>(&'a self, identifier: &'a str) -> BoxFuture<'a, Result<Option<PathBuf>, Cause>> {
        let identifier = identifier.to_owned();
        Box::pin(async move {
            let find = move || KernelDevice::find(&identifier);
            let found = tokio::task::spawn_blocking(find).await??;
            Ok(found.map(|index| PathBuf::from(format!("/dev/nbd{index}"))))
        })
    }

    fn adopt(&self, spec: DeviceSpec) -> BoxFuture<'_, Result<Box<dyn Device>, Cause>> {
        let kept = self.keeping.of_device(spec.id, spec.lanes.len());
        Box::pin(async move {
            let made = make(spec, kept.clone(), Way::Adopted).await;
            if let (Err(_), Some(kept)) = (&made, &kept) {
                self.keeping.take_back(kept);
            }
            made
        })
    }

    fn keep_only(&self, ids: &[Uuid]) {
        self.keeping.keep_only(ids);
    }

    fn inspect<'a>(&'a self, device: &'a Path) -> BoxFuture<'a, Result<Content, Cause>> {
        Box::pin(blank::inspect(device))
    }

    fn erase<'a>(&'a self, device: &'a Path) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(erase::erase(device))
    }

    fn format<'a>(
        &'a self,
        device: &'a Path,
        fstype: Fstype,
        options: MkfsOptions,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move { filesystem::format(device, fstype, &options).await })
    }

    fn mend<'a>(
        &'a self,
        device: &'a Path,
        fstype: Fstype,
        read_only: bool,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(filesystem::mend(device, fstype, read_only))
    }

    fn mount<'a>(
        &'a self,
        device: &'a Path,
        mountpoint: &'a Path,
        fstype: Fstype,
        options: MountOptions,
        handing: Handing,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        let (device, at) = (device.to_owned(), mountpoint.to_owned());
        blocking(move || filesystem::mount_at(&device, &at, fstype, &options, &handing))
    }

    fn unmount<'a>(&'a self, mountpoint: &'a Path, lazy: bool) -> BoxFuture<'a, Result<(), Cause>> {
        let at = mountpoint.to_owned();
        blocking(move || filesystem::unmount_at(&at, lazy))
    }

    fn is_mounted<'a>(
        &'a self,
        device: &'a Path,
        mountpoint: &'a Path,
    ) -> BoxFuture<'a, Result<bool, Cause>> {
        let (device, at) = (device.to_owned(), mountpoint.to_owned());
        blocking(move || filesystem::is_mounted(&device, &at))
    }

    fn users<'a>(
        &'a self,
        device: &'a Path,
        mountpoint: &'a Path,
    ) -> BoxFuture<'a, Result<Vec<MountUser>, Cause>> {
        let (device, at) = (device.to_owned(), mountpoint.to_owned());
        blocking(move || filesystem::users(&device, &at))
    }

    fn sync<'a>(&'a self, mountpoint: &'a Path) -> BoxFuture<'a, Result<(), Cause>> {
        let at = mountpoint.to_owned();
        blocking(move || mount::sync_filesystem(&at))
    }

    fn devices(&self) -> BoxFuture<'_, Result<Vec<(PathBuf, String)>, Cause>> {
        Box::pin(async {
            let found = tokio::task::spawn_blocking(|| KernelDevice::all("cinder-nbd:")).await??;
            let devices = found.into_iter();
            Ok(devices
                .map(|(index, identifier)| (PathBuf::from(format!("/dev/nbd{index}")), identifier))
                .collect())
        })
    }

    fn is_free<'a>(&'a self, device: &'a Path) -> BoxFuture<'a, Result<bool, Cause>> {
        let device = device.to_owned();
        blocking(move || blkdev::is_free(&device))
    }

    fn mounts_below<'a>(
        &'a self,
        directory: &'a Path,
    ) -> BoxFuture<'a, Result<Vec<PathBuf>, Cause>> {
        let directory = directory.to_owned();
        blocking(move || mount::below(&directory))
    }

    fn portals(
        &self,
        session: SessionParams,
        target: IscsiName,
    ) -> BoxFuture<'_, Result<Vec<Portal>, Cause>> {
        Box::pin(portals::send_targets(session, target))
    }

    fn fence(&self, spec: LunSpec, key: u64) -> BoxFuture<'_, Result<(), Cause>> {
        Box::pin(fence::raise(spec, key))
    }

    fn unfence(&self, spec: LunSpec, key: u64) -> BoxFuture<'_, Result<(), Cause>> {
        Box::pin(fence::lower(spec, key))
    }

    fn freeze<'a>(
        &'a self,
        mountpoint: &'a Path,
        limit: Duration,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        let at = mountpoint.to_owned();
        Box::pin(async move {
            let frozen = blocking(move || freeze::freeze(&at, limit)).await?;
            self.frozen().insert(mountpoint.to_owned(), frozen);
            Ok(())
        })
    }

    fn thaw<'a>(&'a self, mountpoint: &'a Path) -> BoxFuture<'a, Result<bool, Cause>> {
        let (at, ours) = (mountpoint.to_owned(), self.frozen().remove(mountpoint));
        blocking(move || match ours {
            Some(frozen) => frozen.thaw(),
            None => freeze::thaw(&at),
        })
    }

    fn sizes<'a>(
        &'a self,
        device: &'a Path,
        mountpoint: Option<&'a Path>,
    ) -> BoxFuture<'a, Result<Sizes, Cause>> {
        let (device, at) = (device.to_owned(), mountpoint.map(Path::to_owned));
        blocking(move || {
            Ok(Sizes {
                device: device_bytes(&device)?,
                filesystem: at.as_deref().map(filesystem::size_bytes).transpose()?,
            })
        })
    }

    fn grow_device<'a>(
        &'a self,
        device: &'a Path,
        bytes: u64,
    ) -> BoxFuture<'a, Result<u64, Cause>> {
        Box::pin(grow_device(device, bytes))
    }

    fn grow_filesystem<'a>(
        &'a self,
        device: &'a Path,
        mountpoint: &'a Path,
        fstype: Fstype,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(filesystem::grow(device, mountpoint, fstype))
    }

    fn reclaim<'a>(
        &'a self,
        identifier: &'a str,
        mountpoint: Option<&'a Path>,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        let identifier = identifier.to_owned();
        let mountpoint = mountpoint.map(Path::to_owned);
        Box::pin(async move {
            if let Some(at) = mountpoint {
                // Lazily: the device beneath is dead, so waiting for its users would be waiting for
                // nothing.
                blocking(move || {
                    // A frozen filesystem would outlive its mounts, and hold the device.
                    let thawed = freeze::thaw(&at);
                    tracing::trace!(?thawed, "before a forced unmount");
                    filesystem::unmount_at(&at, true)
                })
                .await?;
            }
            Ok(
                tokio::task::spawn_blocking(move || KernelDevice::disconnect_stale(&identifier))
                    .await??,
            )
        })
    }
}

/// The device's size as it is now.
fn device_bytes(device: &Path) -> std::io::Result<u64> {
    blkdev::size_bytes(&mut std::fs::File::open(device)?)
}

/// One read past the kernel's cache, so that the unit has something to answer: that is how a lane hears that it has
/// grown.
fn knock(device: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed())
        .open(device)?;
    let mut block = Box::new(Block([0; 4096]));
    std::os::unix::fs::FileExt::read_at(&file, &mut block.0, 0).map(drop)
}

/// As `O_DIRECT` wants it: no block of a device is larger than a page.
#[repr(align(4096))]
struct Block([u8; 4096]);

/// How long a device may take to show its new size: a session that drops, a login, and the kernel's own word.
const GROW_PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks; chosen freely.
const GROW_INTERVAL: Duration = Duration::from_millis(500);

pub(super) async fn grow_device(device: &Path, bytes: u64) -> Result<u64, Cause> {
    let deadline = tokio::time::Instant::now() + GROW_PATIENCE;
    loop {
        let path = device.to_owned();
        let looked = blocking(move || {
            knock(&path)?;
            device_bytes(&path)
        });
        let now = looked.await?;
        if now >= bytes {
            return Ok(now);
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(Error::Invalid {
                what: format!(
                    "its target still shows {now} bytes instead of {bytes} after {} s; detaching and attaching it \
                     again shows the new size",
                    GROW_PATIENCE.as_secs()
                ),
            }
            .into());
        }
        tokio::time::sleep(GROW_INTERVAL).await;
    }
}

/// Runs what blocks on a thread of its own, and awaits it.
fn blocking<T, F>(work: F) -> BoxFuture<'static, Result<T, Cause>>
where
    T: Send + 'static,
    F: FnOnce() -> std::io::Result<T> + Send + 'static,
{
    Box::pin(async move { Ok(tokio::task::spawn_blocking(work).await??) })
}

/// How long the most patient lane holds I/O for a target that is away; `None` for ever.
fn holds(lanes: &[LunSpec]) -> Option<Duration> {
    let mut most = Duration::ZERO;
    for lane in lanes {
        match lane.recovery.replacement_timeout {
            ReplacementTimeout::After(timeout) => most = most.max(timeout),
            ReplacementTimeout::Never => return None,
        }
    }
    Some(most)
}

/// Whether the kernel has the device already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    New,
    Adopted,
}

/// Each lane logs in on its own thread; the first one's unit is what the others must show.
async fn make(
    spec: DeviceSpec,
    kept: Option<Arc<Kept>>,
    way: Way,
) -> Result<Box<dyn Device>, Cause> {
    let lanes = spec.lanes.len();
    let params = DeviceParams {
        identifier: spec.identifier,
        holds: holds(&spec.lanes),
        dead_conn_timeout: spec.dead_conn_timeout,
        keeper: kept.clone().map(|kept| {
            let keeper: Arc<dyn nbd::Keeper> = kept;
            keeper
        }),
    };
    let first = Arc::new(OnceLock::new());
    let open = opener(spec.lanes, Arc::clone(&first), way);
    let device = match way {
        Way::New => KernelDevice::connect_with(lanes, open, params).await?,
        Way::Adopted => {
            let remains = kept.as_ref().map(|kept| kept.take_remains());
            let remains = remains.unwrap_or_default();
            let adopted = KernelDevice::adopt(lanes, remains, open, params).await;
            let device = adopted.map_err(|(unused, error)| {
                if let Some(kept) = &kept {
                    kept.give_back(unused);
                }
                error
            })?;
            if let Some(kept) = &kept {
                kept.settle();
            }
            device
        }
    };
    let identity: Option<&Identity> = first.get();
    let identity = identity.cloned().ok_or("no lane has seen the unit")?;
    Ok(Box::new(HostDevice {
        device,
        identity,
        kept,
    }))
}

/// Opens one lane's LUN, on that lane's thread.
fn opener(
    lanes: Vec<LunSpec>,
    first: Arc<OnceLock<Identity>>,
    way: Way,
) -> impl Fn(usize) -> BoxFuture<'static, Result<Lun, Cause>> + Send + Sync + 'static {
    let lanes = Arc::new(lanes);
    // One login after the other when a unit is resumed: each may have to reset it, which would end what the examination
    // of another has under way.
    let turn = (way == Way::Adopted).then(|| Arc::new(tokio::sync::Mutex::new(())));
    move |lane| {
        let (lanes, first, turn) = (Arc::clone(&lanes), Arc::clone(&first), turn.clone());
        Box::pin(async move {
            let _turn = match &turn {
                Some(turn) => Some(turn.lock().await),
                None => None,
            };
            let spec = lanes.get(lane).ok_or("there is no such lane")?;
            let lun = Lun::open(spec).await?;
            if first.get_or_init(|| lun.identity().clone()) == lun.identity() {
                return Ok(lun);
            }
            lun.close().await;
            let what = "two logins to one LUN show different units; check the target's mapping";
            Err(Error::Invalid {
                what: what.to_owned(),
            }
            .into())
        })
    }
}
