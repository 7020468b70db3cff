//! This host as it is: the kernel's NBD driver, mounts, tools. Each call is one step; the engine
//! has decided it.
//!
//! Invariant: all lanes of a device show the same LUN. Two that differ are refused before the
//! kernel sees either.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use iscsi::proto::recovery::ReplacementTimeout;

use super::error::{Cause, Error};
use super::platform::{Content, Device, Disconnected, MountOptions, MountUser, Platform, Release};
use super::request::Fstype;
use super::{blank, filesystem};
use crate::block::Backend;
use crate::lun::{Lun, LunSpec};
use crate::nbd::{self, DeviceParams, KernelDevice};
use crate::sys::mount;

/// The real platform.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host;

#[derive(Debug)]
struct HostDevice {
    device: KernelDevice,
    identity: String,
}

impl Device for HostDevice {
    fn path(&self) -> PathBuf {
        self.device.path()
    }

    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn disconnect(self: Box<Self>, how: Release) -> BoxFuture<'static, Disconnected> {
        Box::pin(async move {
            let Self { device, identity } = *self;
            let result = match device.disconnect(how == Release::Forced).await {
                // Nobody uses it, as was just proved, and its target takes no more writes.
                Err((device, nbd::Error::Flush { .. })) if how == Release::LoseUnwritten => {
                    device.disconnect(true).await
                }
                result => result,
            };
            result.map_err(|(device, error)| {
                let device: Box<dyn Device> = Box::new(Self { device, identity });
                (device, error.into())
            })
        })
    }
}

impl Platform for Host {
    fn probe(&self) -> BoxFuture<'_, Result<(), Cause>> {
        Box::pin(async { Ok(tokio::task::spawn_blocking(KernelDevice::probe).await??) })
    }

    fn connect(
        &self,
        lanes: Vec<LunSpec>,
        identifier: String,
    ) -> BoxFuture<'_, Result<Box<dyn Device>, Cause>> {
        Box::pin(connect(lanes, identifier))
    }

    fn inspect<'a>(&'a self, device: &'a Path) -> BoxFuture<'a, Result<Content, Cause>> {
        Box::pin(blank::inspect(device))
    }

    fn format<'a>(&'a self, device: &'a Path, fstype: Fstype) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(filesystem::format(device, fstype))
    }

    fn mount<'a>(
        &'a self,
        device: &'a Path,
        mountpoint: &'a Path,
        fstype: Fstype,
        options: MountOptions,
        fresh: bool,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        let (device, at) = (device.to_owned(), mountpoint.to_owned());
        blocking(move || filesystem::mount_at(&device, &at, fstype, &options, fresh))
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
                blocking(move || filesystem::unmount_at(&at, true)).await?;
            }
            Ok(
                tokio::task::spawn_blocking(move || KernelDevice::disconnect_stale(&identifier))
                    .await??,
            )
        })
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

/// Each lane logs in on its own thread; the first one's unit is what the others must show.
async fn connect(lanes: Vec<LunSpec>, identifier: String) -> Result<Box<dyn Device>, Cause> {
    let count = lanes.len();
    let params = DeviceParams {
        holds: holds(&lanes),
        ..DeviceParams::new(identifier)
    };
    let lanes = Arc::new(lanes);
    let first = Arc::new(OnceLock::new());
    let seen = Arc::clone(&first);
    let open = move |lane: usize| {
        let (lanes, seen) = (Arc::clone(&lanes), Arc::clone(&seen));
        async move {
            let spec = lanes.get(lane).ok_or("there is no such lane")?;
            let lun = Lun::open(spec).await?;
            if seen.get_or_init(|| lun.identity().clone()) == lun.identity() {
                return Ok(lun);
            }
            lun.close().await;
            let what = "two logins to one LUN show different units; check the target's mapping";
            Err(Error::Invalid {
                what: what.to_owned(),
            }
            .into())
        }
    };
    let device = KernelDevice::connect_with(count, open, params).await?;
    let identity = first.get().map(ToString::to_string).unwrap_or_default();
    Ok(Box::new(HostDevice { device, identity }))
}
