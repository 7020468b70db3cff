//! A host without NBD: a device is a session with the target, logged in as the real one is, and a mount is a directory.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use cinder_nbd::block::Backend;
use cinder_nbd::lun::{Identity, Lun, LunSpec};
use cinder_nbd::volume::{
    Content, Device, DeviceSpec, Disconnected, Fstype, Handing, Host, MkfsOptions, MountOptions,
    MountUser, Platform, Release, Sizes,
};
use futures_util::future::BoxFuture;
use iscsi::proto::{IscsiName, Portal, SessionParams};
use tokio::sync::oneshot;

use crate::log::Log;

/// What a step failed with.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The host; what it asks of a target, the real one does.
#[derive(Clone, Debug)]
pub(crate) struct SessionHost(Arc<Inner>);

struct Inner {
    real: Host,
    log: Log,
    is_formatted: AtomicBool,
    mounts: Mutex<BTreeSet<PathBuf>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.real.fmt(f)
    }
}

/// A session that is served by a thread of its own, as a lane is.
#[derive(Debug)]
struct Session {
    identity: Identity,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl SessionHost {
    /// `log` gets what a careless line about a device would hold.
    pub(crate) fn new(log: Log) -> Self {
        Self(Arc::new(Inner {
            real: Host::default(),
            log,
            is_formatted: AtomicBool::new(false),
            mounts: Mutex::default(),
        }))
    }
}

async fn log_in(spec: LunSpec) -> Result<Session, Cause> {
    let (told, hears) = oneshot::channel();
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(serve(&spec, told, stopped));
    });
    let identity = hears.await??;
    Ok(Session {
        identity,
        stop: Some(stop),
        thread: Some(thread),
    })
}

async fn serve(
    spec: &LunSpec,
    told: oneshot::Sender<Result<Identity, Cause>>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut lun = match Lun::open(spec).await {
        Ok(lun) => lun,
        Err(error) => {
            told.send(Err(error.into())).unwrap();
            return;
        }
    };
    told.send(Ok(lun.identity().clone())).unwrap();
    // Nothing is asked, so nothing completes; the session is kept up meanwhile.
    let forever = std::future::poll_fn(|cx| {
        let _ = lun.poll_completion(cx);
        Poll::<()>::Pending
    });
    tokio::select! {
        () = forever => {}
        _ = &mut stopped => {}
    }
    lun.close().await;
}

impl Device for Session {
    fn path(&self) -> PathBuf {
        PathBuf::from("/dev/nbd-of-the-test")
    }

    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn disconnect(mut self: Box<Self>, _: Release) -> BoxFuture<'static, Disconnected> {
        Box::pin(async move {
            drop(self.stop.take());
            let thread = self.thread.take().unwrap();
            tokio::task::spawn_blocking(move || thread.join().unwrap())
                .await
                .unwrap();
            Ok(())
        })
    }

    fn hand_over(self: Box<Self>) -> BoxFuture<'static, Result<(), Cause>> {
        Box::pin(async move {
            self.disconnect(Release::Forced)
                .await
                .map_err(|(_, why)| why)
        })
    }
}

/// A step that has nothing to do here.
fn done<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, Result<T, Cause>> {
    Box::pin(std::future::ready(Ok(value)))
}

impl Platform for SessionHost {
    fn probe(&self) -> BoxFuture<'_, Result<(), Cause>> {
        done(())
    }

    fn connect(&self, spec: DeviceSpec) -> BoxFuture<'_, Result<Box<dyn Device>, Cause>> {
        Box::pin(async move {
            self.0.log.note(&format!("{spec:#?}"));
            let lane = spec.lanes.into_iter().next().unwrap();
            let device: Box<dyn Device> = Box::new(log_in(lane).await?);
            self.0.log.note(&format!("{device:#?}"));
            Ok(device)
        })
    }

    fn find<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<PathBuf>, Cause>> {
        done(None)
    }

    fn adopt(&self, _: DeviceSpec) -> BoxFuture<'_, Result<Box<dyn Device>, Cause>> {
        Box::pin(std::future::ready(Err("there is no earlier device".into())))
    }

    fn keep_only(&self, ids: &[uuid::Uuid]) {
        self.0.real.keep_only(ids);
    }

    fn inspect<'a>(&'a self, _: &'a Path) -> BoxFuture<'a, Result<Content, Cause>> {
        done(if self.0.is_formatted.load(Ordering::SeqCst) {
            Content::Filesystem("ext4".to_owned())
        } else {
            Content::Blank
        })
    }

    fn erase<'a>(&'a self, _: &'a Path) -> BoxFuture<'a, Result<(), Cause>> {
        self.0.is_formatted.store(false, Ordering::SeqCst);
        done(())
    }

    fn format<'a>(
        &'a self,
        _: &'a Path,
        _: Fstype,
        _: MkfsOptions,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        self.0.is_formatted.store(true, Ordering::SeqCst);
        done(())
    }

    fn mend<'a>(&'a self, _: &'a Path, _: Fstype, _: bool) -> BoxFuture<'a, Result<(), Cause>> {
        done(())
    }

    fn mount<'a>(
        &'a self,
        _: &'a Path,
        mountpoint: &'a Path,
        _: Fstype,
        _: MountOptions,
        _: Handing,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            std::fs::create_dir_all(mountpoint)?;
            self.0.mounts.lock().unwrap().insert(mountpoint.to_owned());
            Ok(())
        })
    }

    fn unmount<'a>(&'a self, mountpoint: &'a Path, _: bool) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            if self.0.mounts.lock().unwrap().remove(mountpoint) {
                std::fs::remove_dir(mountpoint)?;
            }
            Ok(())
        })
    }

    fn is_mounted<'a>(
        &'a self,
        _: &'a Path,
        mountpoint: &'a Path,
    ) -> BoxFuture<'a, Result<bool, Cause>> {
        done(self.0.mounts.lock().unwrap().contains(mountpoint))
    }

    fn users<'a>(
        &'a self,
        _: &'a Path,
        _: &'a Path,
    ) -> BoxFuture<'a, Result<Vec<MountUser>, Cause>> {
        done(Vec::new())
    }

    fn sync<'a>(&'a self, _: &'a Path) -> BoxFuture<'a, Result<(), Cause>> {
        done(())
    }

    fn reclaim<'a>(&'a self, _: &'a str, _: Option<&'a Path>) -> BoxFuture<'a, Result<(), Cause>> {
        done(())
    }

    fn devices(&self) -> BoxFuture<'_, Result<Vec<(PathBuf, String)>, Cause>> {
        done(Vec::new())
    }

    fn is_free<'a>(&'a self, _: &'a Path) -> BoxFuture<'a, Result<bool, Cause>> {
        done(true)
    }

    fn mounts_below<'a>(&'a self, _: &'a Path) -> BoxFuture<'a, Result<Vec<PathBuf>, Cause>> {
        done(Vec::new())
    }

    fn portals(
        &self,
        session: SessionParams,
        target: IscsiName,
    ) -> BoxFuture<'_, Result<Vec<Portal>, Cause>> {
        self.0.real.portals(session, target)
    }

    fn fence(&self, spec: LunSpec, key: u64) -> BoxFuture<'_, Result<(), Cause>> {
        self.0.real.fence(spec, key)
    }

    fn unfence(&self, spec: LunSpec, key: u64) -> BoxFuture<'_, Result<(), Cause>> {
        self.0.real.unfence(spec, key)
    }

    fn freeze<'a>(&'a self, _: &'a Path, _: Duration) -> BoxFuture<'a, Result<(), Cause>> {
        done(())
    }

    fn thaw<'a>(&'a self, _: &'a Path) -> BoxFuture<'a, Result<bool, Cause>> {
        done(true)
    }

    fn sizes<'a>(
        &'a self,
        _: &'a Path,
        _: Option<&'a Path>,
    ) -> BoxFuture<'a, Result<Sizes, Cause>> {
        done(Sizes::default())
    }

    fn grow_device<'a>(&'a self, _: &'a Path, bytes: u64) -> BoxFuture<'a, Result<u64, Cause>> {
        done(bytes)
    }

    fn grow_filesystem<'a>(
        &'a self,
        _: &'a Path,
        _: &'a Path,
        _: Fstype,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        done(())
    }
}
