//! Making a filesystem, checking, mounting, growing and unmounting it: the work, not the decision (`worker` decides).
//!
//! Invariants:
//! 1. mkfs is never forced, a check never destroys.
//! 2. The mountpoint directory exists only while something is mounted there; it is mode 0
//!    underneath, so that nobody but root writes to the host's disk when the volume is not there.

mod check;
mod grow;
mod make;
pub(super) mod tool;

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::layout::{Fstype, Top};
use super::platform::{Handing, MountOptions};
use crate::sys::{blkdev, mount};

pub(crate) use check::mend;
pub(crate) use grow::grow;
pub(crate) use make::format;

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
    handing: &Handing,
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
                        "a filesystem of type {} is mounted there already; unmount it first",
                        there.fstype
                    ),
                ));
            }
        }
        Err(error) => return Err(error),
    }
    // A clone of an XFS has its UUID, and the kernel would not mount it beside its origin; nothing but that check depends
    // on it.
    let options = match fstype {
        Fstype::Xfs => options.clone().with("nouuid"),
        Fstype::Ext4 | Fstype::Btrfs => options.clone(),
    };
    let mounted = mount::mount(device, mountpoint, fstype.as_str(), &options);
    if let Err(error) = mounted {
        // An empty directory that stays harms nobody, and the mount's error is the one to tell.
        let _ = std::fs::remove_dir(mountpoint);
        return Err(explain(&error, fstype));
    }
    let handed = hand_out(mountpoint, handing);
    if handed.is_err() {
        // What cannot be handed out is not left mounted, and its own error is the one to tell.
        let _ = unmount_at(mountpoint, false);
    }
    handed
}

/// The kernel's refusal with what to do about it; the number alone says next to nothing.
fn explain(error: &io::Error, fstype: Fstype) -> io::Error {
    let fstype = fstype.as_str();
    let text = match rustix::io::Errno::from_io_error(error) {
        Some(rustix::io::Errno::NODEV) => {
            format!("this kernel cannot mount {fstype}: load its module with 'modprobe {fstype}'")
        }
        Some(rustix::io::Errno::PERM) => {
            "the kernel does not let this process mount: run the daemon as root with CAP_SYS_ADMIN"
                .to_owned()
        }
        _ => format!("{error}; the kernel's log (dmesg) says why"),
    };
    io::Error::new(error.kind(), text)
}

/// What users are to get is there.
fn hand_out(mountpoint: &Path, Handing { top, is_fresh }: &Handing) -> io::Result<()> {
    if *is_fresh {
        greet(mountpoint, top)?;
    }
    let Some(subdir) = &top.subdir else {
        return Ok(());
    };
    // Whoever writes to the volume may have put a link in its place, that leads out of it.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let found = rustix::fs::open(mountpoint, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .and_then(|top| {
            rustix::fs::openat2(
                &top,
                subdir,
                OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            )
        });
    found.map(drop).map_err(|error| {
        let error = io::Error::from(error);
        io::Error::new(
            error.kind(),
            format!(
                "the volume has no directory {} of its own to hand out: {error}",
                subdir.display()
            ),
        )
    })
}

/// A fresh filesystem is handed over empty: databases refuse a directory with `lost+found` in it.
/// `e2fsck` makes it anew when it needs one. Only ever done to a filesystem that was just made, and that nobody
/// was given yet.
fn greet(mountpoint: &Path, top: &Top) -> io::Result<()> {
    let lost_and_found = mountpoint.join("lost+found");
    if let Err(error) = std::fs::remove_dir(&lost_and_found) {
        tracing::debug!(path = %lost_and_found.display(), %error, "lost+found stays");
    }
    let theirs = top.beneath(mountpoint);
    std::fs::create_dir_all(&theirs)?;
    // Before the mode: a change of owner takes some of its bits away.
    std::os::unix::fs::chown(&theirs, top.uid, top.gid)?;
    let mode = top.mode.unwrap_or(0o755);
    std::fs::set_permissions(&theirs, std::fs::Permissions::from_mode(mode))
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

#[cfg(test)]
mod tests;
