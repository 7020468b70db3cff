//! `docs/errors.md`, the section "Formatting and mounting": each of its lines happens, without a device and without root.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Output};
use std::time::Duration;

use support::errors::Section;

use super::check::{refuse_twin, twin_of};
use super::tool::Tool;
use super::*;
use crate::volume::error::{Cause, line};
use crate::volume::layout::MkfsOptions;
use crate::volume::{blank, erase, host};

/// A file with this filesystem, in a directory of its own.
async fn made(directory: &Path, fstype: Fstype) -> std::path::PathBuf {
    let path = directory.join(fstype.as_str());
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(256 << 20).unwrap();
    let options = MkfsOptions::default();
    format(&path, fstype, &options).await.unwrap();
    path
}

/// A tool that is not there, one that does not end, and one that fails.
async fn of_tools(directory: &Path) -> Vec<Cause> {
    let tool = |name, limit| Tool {
        name,
        package: "coreutils",
        limit,
    };
    let minute = Duration::from_mins(1);
    let small = directory.join("small");
    std::fs::write(&small, [0; 4096]).unwrap();
    let refused = format(&small, Fstype::Xfs, &MkfsOptions::default()).await;
    vec![
        tool("no-such-tool", minute).run(["1"]).await.unwrap_err(),
        tool("sleep", Duration::ZERO).run(["60"]).await.unwrap_err(),
        refused.unwrap_err(),
    ]
}

/// What stands against mounting a filesystem that is there.
async fn of_checks(directory: &Path) -> Vec<Cause> {
    let ext4 = made(directory, Fstype::Ext4).await;
    // As in `check`: the root directory is gone, and the filesystem knows that something is wrong.
    for damage in ["clri <2>", "set_super_value state 2"] {
        let words = ["-w".as_ref(), "-R".as_ref(), damage.as_ref()];
        let debugfs = Tool {
            name: "debugfs",
            package: "e2fsprogs",
            limit: Duration::from_mins(1),
        };
        debugfs
            .run(words.into_iter().chain([ext4.as_os_str()]))
            .await
            .unwrap();
    }
    let btrfs = made(directory, Fstype::Btrfs).await;
    let asked = tokio::process::Command::new("blkid")
        .args(["-p", "-s", "UUID", "-o", "value"])
        .arg(&btrfs)
        .output();
    let uuid = String::from_utf8(asked.await.unwrap().stdout).unwrap();
    let mounted = directory.join("sys");
    let devices = mounted.join(uuid.trim()).join("devices");
    std::fs::create_dir_all(devices.join("nbd0")).unwrap();
    vec![
        mend(&ext4, Fstype::Ext4, false).await.unwrap_err(),
        refuse_twin(&btrfs, &mounted).await.unwrap_err(),
        twin_of(&mounted, "", &btrfs).unwrap_err().into(),
    ]
}

/// What keeps a device from being looked at, or emptied.
async fn of_looks(directory: &Path) -> Vec<Cause> {
    let ended = |status| Output {
        status: ExitStatus::from_raw(status),
        stdout: Vec::new(),
        stderr: b"I/O error".to_vec(),
    };
    let empty = directory.join("empty");
    std::fs::write(&empty, "").unwrap();
    let nowhere = Path::new("/nonexistent/nbd0");
    vec![
        blank::judge_probe(&ended(4 << 8)).unwrap_err(),
        blank::judge_probe(&ended(9)).unwrap_err(),
        blank::inspect(nowhere).await.unwrap_err(),
        // blkid(8): status 2 is also what it says of a file that it cannot read.
        blank::examine(&empty).await.unwrap_err(),
        erase::erase(nowhere).await.unwrap_err(),
    ]
}

/// What the kernel, or what is on the volume, has against a mount.
fn of_mounts(directory: &Path) -> Vec<io::Error> {
    let (options, handing) = (MountOptions::default(), Handing::default());
    let mount_there = |at| mount_at(directory, at, Fstype::Ext4, &options, &handing);
    let refused = |number| explain(&io::Error::from_raw_os_error(number), Fstype::Xfs);
    let theirs = Handing {
        top: Top {
            subdir: Some("data".into()),
            ..Top::default()
        },
        is_fresh: false,
    };
    vec![
        mount_there(Path::new("/proc")).unwrap_err(),
        hand_out(directory, &theirs).unwrap_err(),
        refused(libc::ENODEV),
        refused(libc::EPERM),
        refused(libc::EINVAL),
    ]
}

/// A target that does not become larger; time passes at once.
async fn of_growing(directory: &Path) -> Cause {
    let path = directory.join("grown");
    std::fs::write(&path, [0; 4096]).unwrap();
    tokio::time::pause();
    let error = host::grow_device(&path, 8192).await.unwrap_err();
    tokio::time::resume();
    error
}

#[tokio::test]
async fn every_error_of_a_filesystem_happens_and_stands_in_the_document() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let mut errors = of_tools(directory).await;
    errors.extend(of_checks(directory).await);
    errors.extend(of_looks(directory).await);
    errors.extend(of_mounts(directory).into_iter().map(Cause::from));
    errors.push(of_growing(directory).await);
    let texts: Vec<String> = errors.iter().map(|error| line(&**error)).collect();
    Section::read("Formatting and mounting").assert_is_of(&texts);
}
