//! Making a filesystem, mounting and unmounting it: the work, not the decision (`attachment` and
//! `worker` decide).
//!
//! Invariants:
//! 1. mkfs is never forced. It refuses a device that is mounted or in use, and so it shall.
//! 2. The mountpoint directory exists only while something is mounted there; it is mode 0
//!    underneath, so that nobody but root writes to the host's disk when the volume is not there.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use super::error::{Cause, Error};
use super::platform::MountOptions;
use super::request::Fstype;
use crate::sys::{blkdev, mount};

/// Makes a filesystem on a device that was proved blank.
///
/// # Errors
/// mkfs is missing, failed, or took longer than any sane device needs.
pub(crate) async fn format(device: &Path, fstype: Fstype) -> Result<(), Cause> {
    let tool = match fstype {
        Fstype::Ext4 => "mkfs.ext4",
    };
    let mut command = tokio::process::Command::new(tool);
    // Inode tables and journal are zeroed by the kernel after the mount: minutes on a large volume
    // otherwise, and Docker gives a mount two. No discard: the device was just proved blank. No
    // reserve for root: it holds data only.
    command.args([
        "-q",
        "-m",
        "0",
        "-E",
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
        "--",
    ]);
    command
        .arg(device)
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(FORMAT_TIMEOUT, command.output())
        .await
        .map_err(|_| Error::Invalid {
            what: format!("{tool} did not end within {} s", FORMAT_TIMEOUT.as_secs()),
        })?
        .map_err(|error| Error::step(format!("running {tool} (package e2fsprogs)"), error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::Invalid {
        what: format!("{tool} failed ({}): {}", output.status, said.trim()),
    }
    .into())
}

/// A lazy mkfs writes some MiB a TiB; ten minutes is a target that has stopped.
const FORMAT_TIMEOUT: Duration = Duration::from_mins(10);

/// Makes the mounted filesystem as large as its device, while it is used.
///
/// # Errors
/// The tool is missing, failed, or took longer than a growth does.
pub(crate) async fn grow(device: &Path, mountpoint: &Path, fstype: Fstype) -> Result<(), Cause> {
    let (tool, package, place) = match fstype {
        Fstype::Ext4 => ("resize2fs", "e2fsprogs", device),
    };
    tracing::debug!(device = %device.display(), at = %mountpoint.display(), tool, "growing");
    let mut command = tokio::process::Command::new(tool);
    command
        .arg(place)
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(GROW_TIMEOUT, command.output())
        .await
        .map_err(|_| Error::Invalid {
            what: format!("{tool} did not end within {} s", GROW_TIMEOUT.as_secs()),
        })?
        .map_err(|error| Error::step(format!("running {tool} (package {package})"), error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::Invalid {
        what: format!("{tool} failed ({}): {}", output.status, said.trim()),
    }
    .into())
}

/// Growing writes a few blocks for each 128 MiB; ten minutes is a target that has stopped.
const GROW_TIMEOUT: Duration = Duration::from_mins(10);

/// Bytes of what is mounted there. Blocks.
///
/// # Errors
/// Nothing that can be asked is there.
pub(crate) fn size_bytes(mountpoint: &Path) -> io::Result<u64> {
    let all = rustix::fs::statvfs(mountpoint)?;
    Ok(all.f_blocks.saturating_mul(all.f_frsize))
}

/// Makes the mountpoint and mounts; undoes the first when the second fails. Blocks.
///
/// # Errors
/// The kernel's refusal.
pub(crate) fn mount_at(
    device: &Path,
    mountpoint: &Path,
    fstype: Fstype,
    options: &MountOptions,
    fresh: bool,
) -> io::Result<()> {
    if let Some(parent) = mountpoint.parent() {
        // Docker's daemon is root; nobody else needs the list of names.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(parent)?;
    }
    match std::fs::DirBuilder::new().mode(0o0).create(mountpoint) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if let Some(there) = mount::mounted_at(mountpoint)? {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    format!(
                        "a filesystem of type {} is mounted there already",
                        there.fstype
                    ),
                ));
            }
        }
        Err(error) => return Err(error),
    }
    let mounted = mount::mount(device, mountpoint, fstype.as_str(), options);
    if let Err(error) = mounted {
        // An empty directory that stays harms nobody, and the mount's error is the one to tell.
        let _ = std::fs::remove_dir(mountpoint);
        return Err(error);
    }
    if fresh {
        greet(mountpoint);
    }
    Ok(())
}

/// A fresh filesystem is handed over empty: databases refuse a directory with `lost+found` in it.
/// `e2fsck` makes it anew when it needs one. Only ever done to a filesystem this very run has made,
/// and only if it is empty.
fn greet(mountpoint: &Path) {
    let lost_and_found = mountpoint.join("lost+found");
    if let Err(error) = std::fs::remove_dir(&lost_and_found) {
        tracing::debug!(path = %lost_and_found.display(), %error, "lost+found stays");
    }
    if let Err(error) = std::fs::set_permissions(mountpoint, std::fs::Permissions::from_mode(0o755))
    {
        tracing::debug!(path = %mountpoint.display(), %error, "the root directory keeps its mode");
    }
}

/// Unmounts what is at the mountpoint and removes the directory. Blocks.
///
/// # Errors
/// Busy (unless lazy); the directory is not empty, which means that somebody wrote beneath the
/// mount.
pub(crate) fn unmount_at(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    if mount::mounted_at(mountpoint)?.is_some() {
        mount::unmount(mountpoint, lazy)?;
    }
    match std::fs::remove_dir(mountpoint) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => {
            tracing::warn!(path = %mountpoint.display(), %error, "the mountpoint stays behind");
            Ok(())
        }
    }
}

/// Whether the device's filesystem is what is mounted there. Blocks.
///
/// # Errors
/// `/proc` cannot be read, or this is no device.
pub(crate) fn is_mounted(device: &Path, mountpoint: &Path) -> io::Result<bool> {
    let number = blkdev::number(device)?;
    Ok(mount::mounted_at(mountpoint)?.is_some_and(|entry| entry.device == number))
}

/// Who has the device mounted other than at our mountpoint. A copy of our own mount in a namespace
/// that was cloned from ours is no user: it goes when ours goes, or is seen by the exclusive open
/// later. Blocks.
///
/// # Errors
/// `/proc` cannot be read, or this is no device.
pub(crate) fn users(device: &Path, mountpoint: &Path) -> io::Result<Vec<mount::MountUser>> {
    let number = blkdev::number(device)?;
    let mut users = mount::users(number)?;
    users.retain(|user| user.mountpoint != mountpoint);
    Ok(users)
}
