//! What is looked at before a filesystem that was there is mounted.
//!
//! Source: e2fsck(8), exit code; xfs(5), `nouuid`; btrfs(5), "Filesystem with multiple devices" and `/sys/fs/btrfs`.
//!
//! Invariant: nothing here destroys. `e2fsck -p` replays the journal and mends what needs no answer; what needs one is
//! for people. XFS and Btrfs replay their logs when they are mounted and have no such check.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::tool::Tool;
use crate::volume::error::{Cause, Error};
use crate::volume::layout::Fstype;

const E2FSCK: Tool = Tool {
    name: "e2fsck",
    package: "e2fsprogs",
    // A filesystem that was not unmounted in order is read whole when its journal does not suffice.
    limit: Duration::from_hours(1),
};
const BLKID: Tool = Tool {
    name: "blkid",
    package: "util-linux",
    limit: Duration::from_mins(1),
};

/// Looks whether the filesystem may be mounted; for one that may be written, mends what can be mended without asking.
///
/// # Errors
/// It needs a check by hand, or it is a copy of a Btrfs that this host has mounted.
pub(crate) async fn mend(device: &Path, fstype: Fstype, read_only: bool) -> Result<(), Cause> {
    match fstype {
        Fstype::Ext4 if !read_only => mend_ext4(device).await,
        Fstype::Ext4 | Fstype::Xfs => Ok(()),
        Fstype::Btrfs => refuse_twin(device, Path::new("/sys/fs/btrfs")).await,
    }
}

async fn mend_ext4(device: &Path) -> Result<(), Cause> {
    let words: [&std::ffi::OsStr; 3] = ["-p".as_ref(), "--".as_ref(), device.as_ref()];
    let output = E2FSCK.ended(words).await?;
    // e2fsck(8): 1 errors were corrected, 2 the same, and a system that has it as its root should reboot.
    match output.status.code() {
        Some(0) => Ok(()),
        Some(1..=3) => {
            let said = String::from_utf8_lossy(&output.stdout);
            tracing::warn!(device = %device.display(), said = said.trim(), "e2fsck has mended the filesystem");
            Ok(())
        }
        // 4: errors were left, as their mending wants answers.
        Some(code) if code & 4 != 0 => Err(Error::Invalid {
            what: format!(
                "its ext4 filesystem is damaged beyond what is mended without asking; 'cinder-nbd attach', then e2fsck by hand: {}",
                E2FSCK.failed(&output)
            ),
        }
        .into()),
        _ => Err(E2FSCK.failed(&output).into()),
    }
}

/// The kernel tells one Btrfs from another by its UUID alone: a clone beside its mounted origin is taken for a device of
/// it, and data goes to the wrong one.
pub(super) async fn refuse_twin(device: &Path, mounted: &Path) -> Result<(), Cause> {
    let words: [&std::ffi::OsStr; 7] = [
        "-p".as_ref(),
        "-s".as_ref(),
        "UUID".as_ref(),
        "-o".as_ref(),
        "value".as_ref(),
        "--".as_ref(),
        device.as_ref(),
    ];
    let output = BLKID.ended(words).await?;
    if !output.status.success() {
        return Err(BLKID.failed(&output).into());
    }
    let uuid = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let Some(twin) = twin_of(mounted, &uuid, device)? else {
        return Ok(());
    };
    Err(Error::Invalid {
        what: format!(
            "a copy of it (UUID {uuid}) is mounted from {}, and Btrfs tells them apart by that alone; unmount that one, or give this one \
             another by 'cinder-nbd attach' and btrfstune -u",
            twin.display()
        ),
    }
    .into())
}

/// Another device from which a Btrfs of this UUID is mounted. `mounted` is `/sys/fs/btrfs`.
pub(super) fn twin_of(
    mounted: &Path,
    uuid: &str,
    device: &Path,
) -> std::io::Result<Option<PathBuf>> {
    // Without a UUID the path would be that of all of them.
    if uuid.is_empty() || uuid.contains('/') {
        return Err(std::io::Error::other(
            "blkid names no UUID of the Btrfs; look at it with 'cinder-nbd attach' and btrfs check",
        ));
    }
    let devices = match std::fs::read_dir(mounted.join(uuid).join("devices")) {
        Ok(devices) => devices,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for found in devices {
        let name = found?.file_name();
        if Some(name.as_os_str()) != device.file_name() {
            return Ok(Some(Path::new("/dev").join(name)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::filesystem::format;
    use crate::volume::layout::MkfsOptions;

    async fn ext4() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        format(file.path(), Fstype::Ext4, &MkfsOptions::default())
            .await
            .unwrap();
        file
    }

    #[tokio::test]
    async fn a_sound_filesystem_passes() {
        let file = ext4().await;
        mend(file.path(), Fstype::Ext4, false).await.unwrap();
    }

    #[tokio::test]
    async fn damage_that_wants_answers_is_left_alone_and_said() {
        let file = ext4().await;
        // The root directory is gone, and the filesystem knows that something is wrong.
        for damage in ["clri <2>", "set_super_value state 2"] {
            let words = ["-w", "-R", damage].map(std::ffi::OsStr::new);
            let words = words.into_iter().chain([file.path().as_os_str()]);
            let debugfs = Tool {
                name: "debugfs",
                ..E2FSCK
            };
            debugfs.run(words).await.unwrap();
        }
        let error = mend(file.path(), Fstype::Ext4, false)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("e2fsck") && !error.contains('\n'), "{error}");
        // Read-only, nothing is changed.
        let before = std::fs::read(file.path()).unwrap();
        mend(file.path(), Fstype::Ext4, true).await.unwrap();
        assert!(before == std::fs::read(file.path()).unwrap());
    }

    #[test]
    fn a_mounted_copy_of_a_btrfs_is_found() {
        let sys = tempfile::tempdir().unwrap();
        let find = |uuid: &str| twin_of(sys.path(), uuid, Path::new("/dev/nbd1"));
        assert_eq!(find("u").unwrap(), None);
        std::fs::create_dir_all(sys.path().join("u/devices/nbd1")).unwrap();
        assert_eq!(find("u").unwrap(), None, "itself");
        std::fs::create_dir_all(sys.path().join("u/devices/nbd0")).unwrap();
        assert_eq!(find("u").unwrap(), Some(PathBuf::from("/dev/nbd0")));
        assert!(find("").is_err());
    }
}
