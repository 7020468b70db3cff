//! What the engine asks of this host: kernel devices, filesystems, mounts. The real one is
//! `host::Host`.
//!
//! A boundary of its own because the order of steps and of their undoing must be tested where the
//! kernel has no NBD driver: a test's platform fails at any step it likes.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::BoxFuture;
use iscsi::proto::{IscsiName, Portal, SessionParams};
use iscsi::scsi::Identity;
use uuid::Uuid;

use super::error::Cause;
use super::layout::{Fstype, MkfsOptions, Top};
use crate::lun::LunSpec;
pub use crate::sys::mount::{MountOptions, MountUser};

/// What is on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Proved: every place where a signature could be was read, is zero, and libblkid found
    /// nothing.
    Blank,
    /// One filesystem, by the name mount(8) has for it.
    Filesystem(String),
    /// Something else, in words.
    Other(String),
}

impl Content {
    /// What is there, as errors say it; none where nothing is.
    pub fn in_words(self) -> Option<String> {
        match self {
            Self::Blank => None,
            Self::Filesystem(found) => Some(format!("a {found} filesystem")),
            Self::Other(found) => Some(found),
        }
    }
}

/// How a filesystem is given to its users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handing {
    /// What they get.
    pub top: Top,
    /// It was just made: it is theirs empty, with the owner and mode that were asked for.
    pub is_fresh: bool,
}

/// Sizes as the kernel has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of the device.
    pub device: u64,
    /// Bytes of the filesystem on it, where one is mounted.
    pub filesystem: Option<u64>,
}

/// How much stands in the way of a device's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Only if nobody uses it, and all that was written is on the target.
    Clean,
    /// Only if nobody uses it; what can no longer be written is given up.
    LoseUnwritten,
    /// Whoever uses it; what can be written in a short time is written.
    Forced,
}

/// A device to be made, or to be served again.
#[derive(Clone, Debug)]
pub struct DeviceSpec {
    /// Of the attachment; what outlives the process is held under names that begin with it.
    pub id: Uuid,
    /// What the kernel shows as the device's backend.
    pub identifier: String,
    /// A session each.
    pub lanes: Vec<LunSpec>,
    /// How long the kernel holds I/O while nobody serves the device.
    pub dead_conn_timeout: Duration,
}

/// A device the kernel shows, served by us.
pub trait Device: Debug + Send + Sync {
    /// `/dev/nbdX`.
    fn path(&self) -> PathBuf;

    /// What the LUN behind it said it is.
    fn identity(&self) -> Identity;

    /// Flushes, disconnects, logs out; refuses as `how` says.
    ///
    /// # Errors
    /// In use, or the kernel refused: the device comes back and works as before.
    fn disconnect(self: Box<Self>, how: Release) -> BoxFuture<'static, Disconnected>;

    /// Leaves the device to the kernel, for the next process: what is in flight is answered and
    /// flushed, the sessions are logged out; from then on its I/O waits.
    ///
    /// # Errors
    /// Something of that could not be done; the device is left all the same.
    fn hand_over(self: Box<Self>) -> BoxFuture<'static, Result<(), Cause>>;
}

/// Gone; or back, with what stood against it.
pub type Disconnected = Result<(), (Box<dyn Device>, Cause)>;

/// This host.
pub trait Platform: Debug + Send + Sync + 'static {
    /// Whether the kernel can make devices.
    fn probe(&self) -> BoxFuture<'_, Result<(), Cause>>;

    /// Logs in once a lane and makes a device of it. On failure nothing is left.
    fn connect(&self, spec: DeviceSpec) -> BoxFuture<'_, Result<Box<dyn Device>, Cause>>;

    /// The device that carries the identifier, if the kernel has one.
    fn find<'a>(&'a self, identifier: &'a str) -> BoxFuture<'a, Result<Option<PathBuf>, Cause>>;

    /// Logs in once a lane, as `resume` of each says, and serves the device that the kernel has. On
    /// failure the kernel still has it, and it may be tried again.
    fn adopt(&self, spec: DeviceSpec) -> BoxFuture<'_, Result<Box<dyn Device>, Cause>>;

    /// Gives up what an earlier process left to be held for attachments other than these.
    fn keep_only(&self, ids: &[Uuid]);

    /// What is on the device. An error is an error, never "blank".
    fn inspect<'a>(&'a self, device: &'a Path) -> BoxFuture<'a, Result<Content, Cause>>;

    /// Destroys what is on the device, as far as `inspect` can see. Whether this may be done is decided before.
    fn erase<'a>(&'a self, device: &'a Path) -> BoxFuture<'a, Result<(), Cause>>;

    /// Makes a filesystem. Whether this may be done is decided before.
    fn format<'a>(
        &'a self,
        device: &'a Path,
        fstype: Fstype,
        options: MkfsOptions,
    ) -> BoxFuture<'a, Result<(), Cause>>;

    /// Looks at a filesystem that was there before it is mounted, and mends what can be mended without asking; nothing
    /// is mended read-only.
    fn mend<'a>(
        &'a self,
        device: &'a Path,
        fstype: Fstype,
        read_only: bool,
    ) -> BoxFuture<'a, Result<(), Cause>>;

    /// Makes the mountpoint and mounts. What users get of it is there then, or nothing is mounted.
    fn mount<'a>(
        &'a self,
        device: &'a Path,
        mountpoint: &'a Path,
        fstype: Fstype,
        options: MountOptions,
        handing: Handing,
    ) -> BoxFuture<'a, Result<(), Cause>>;

    /// Unmounts and removes the mountpoint. Nothing mounted there is done.
    fn unmount<'a>(&'a self, mountpoint: &'a Path, lazy: bool) -> BoxFuture<'a, Result<(), Cause>>;

    /// Whether the device is mounted there in our namespace.
    fn is_mounted<'a>(
        &'a self,
        device: &'a Path,
        mountpoint: &'a Path,
    ) -> BoxFuture<'a, Result<bool, Cause>>;

    /// Who has the device mounted anywhere else than at our mountpoint.
    fn users<'a>(
        &'a self,
        device: &'a Path,
        mountpoint: &'a Path,
    ) -> BoxFuture<'a, Result<Vec<MountUser>, Cause>>;

    /// Writes back what is dirty on the filesystem.
    fn sync<'a>(&'a self, mountpoint: &'a Path) -> BoxFuture<'a, Result<(), Cause>>;

    /// Removes what a dead daemon left of an attachment: the mount, and the device that carries the
    /// identifier.
    fn reclaim<'a>(
        &'a self,
        identifier: &'a str,
        mountpoint: Option<&'a Path>,
    ) -> BoxFuture<'a, Result<(), Cause>>;

    /// The devices of any cinder-nbd that the kernel has: path and identifier.
    fn devices(&self) -> BoxFuture<'_, Result<Vec<(PathBuf, String)>, Cause>>;

    /// Whether nobody holds the device: no mount, no exclusive opener.
    fn is_free<'a>(&'a self, device: &'a Path) -> BoxFuture<'a, Result<bool, Cause>>;

    /// Where something is mounted beneath a directory, in our namespace.
    fn mounts_below<'a>(
        &'a self,
        directory: &'a Path,
    ) -> BoxFuture<'a, Result<Vec<PathBuf>, Cause>>;

    /// The portals that show the target to a discovery session (`SendTargets`), which names no target.
    fn portals(
        &self,
        session: SessionParams,
        target: IscsiName,
    ) -> BoxFuture<'_, Result<Vec<Portal>, Cause>>;

    /// Registers `key` on the logical unit, reserves it for the registered, and removes all other registrations
    /// together with their commands: from then on it takes writes of this session alone.
    fn fence(&self, spec: LunSpec, key: u64) -> BoxFuture<'_, Result<(), Cause>>;

    /// Removes reservation and registrations, whoever made them. A unit that knows none has none.
    fn unfence(&self, spec: LunSpec, key: u64) -> BoxFuture<'_, Result<(), Cause>>;

    /// Lets no write begin on a mounted filesystem, until `thaw` or until the time is over, and writes back what is dirty
    /// before.
    fn freeze<'a>(
        &'a self,
        mountpoint: &'a Path,
        limit: Duration,
    ) -> BoxFuture<'a, Result<(), Cause>>;

    /// Whether it was frozen until now. One that this process has not frozen is thawed as well.
    fn thaw<'a>(&'a self, mountpoint: &'a Path) -> BoxFuture<'a, Result<bool, Cause>>;

    /// How large the device is, and what is mounted of it.
    fn sizes<'a>(
        &'a self,
        device: &'a Path,
        mountpoint: Option<&'a Path>,
    ) -> BoxFuture<'a, Result<Sizes, Cause>>;

    /// Has the device look at its unit until it has this size; its size then. The session may go and come back
    /// meanwhile.
    fn grow_device<'a>(&'a self, device: &'a Path, bytes: u64)
    -> BoxFuture<'a, Result<u64, Cause>>;

    /// Makes the mounted filesystem as large as its device. One that is so large is done.
    fn grow_filesystem<'a>(
        &'a self,
        device: &'a Path,
        mountpoint: &'a Path,
        fstype: Fstype,
    ) -> BoxFuture<'a, Result<(), Cause>>;
}
