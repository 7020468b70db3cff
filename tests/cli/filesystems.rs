//! Each filesystem on a kernel that has nbd: made, handed out, checked, and beside its own clone.
//!
//! As `kernel`, these say so and end where the kernel has no nbd.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use crate::kernel::Host;

const FSTYPES: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// What is mounted there, as `/proc` has it.
fn mounted_type(at: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(1) == at.to_str());
    line.and_then(|line| line.split(' ').nth(2))
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn each_filesystem_is_made_as_asked_and_its_data_outlives_an_unmount() {
    let Some(host) = Host::new() else { return };
    for fstype in FSTYPES {
        let options = format!(
            r#""fstype":"{fstype}","uid":"999","gid":"998","mode":"0750","mkfs_opts":"-L made","mount_opts":"noatime""#
        );
        host.create(fstype, &options);
        let at = host.mount(fstype);
        assert_eq!(mounted_type(&at), fstype);
        let top = std::fs::metadata(&at).unwrap();
        assert_eq!(
            (top.uid(), top.gid(), top.mode() & 0o7777),
            (999, 998, 0o750),
            "{fstype}"
        );
        assert_eq!(std::fs::read_dir(&at).unwrap().count(), 0, "{fstype}");
        std::fs::write(at.join("kept"), vec![0x5a; 3 << 20]).unwrap();
        // Their user's own, from now on.
        std::os::unix::fs::chown(&at, Some(1000), None).unwrap();
        host.unmount(fstype);
        let at = host.mount(fstype);
        assert_eq!(std::fs::read(at.join("kept")).unwrap(), vec![0x5a; 3 << 20]);
        assert_eq!(
            std::fs::metadata(&at).unwrap().uid(),
            1000,
            "{fstype}: set a second time"
        );
        host.unmount(fstype);
    }
    host.assert_nothing_is_left();
}

#[test]
fn a_directory_of_the_volume_is_handed_out_and_a_link_in_its_place_is_not() {
    let Some(host) = Host::new() else { return };
    host.create("v1", r#""subdir":"data/db","uid":"70","mode":"0700""#);
    let at = host.mount("v1");
    assert!(at.ends_with("v1/data/db"), "{}", at.display());
    let theirs = std::fs::metadata(&at).unwrap();
    assert_eq!((theirs.uid(), theirs.mode() & 0o7777), (70, 0o700));
    assert_eq!(host.view("v1")["mountpoint"], at.to_str().unwrap());
    // Somebody who has the whole volume puts a link there.
    std::fs::remove_dir(&at).unwrap();
    std::os::unix::fs::symlink("/etc", &at).unwrap();
    host.unmount("v1");
    let refused = host.call("VolumeDriver.Mount", r#"{"Name":"v1","ID":"c1"}"#);
    assert!(
        refused["Err"].as_str().unwrap().contains("data/db"),
        "{refused}"
    );
    host.assert_nothing_is_left();
}

/// Copies one attached volume's bytes onto another's.
fn copy(host: &Host, from: &str, to: &str) {
    let attach = |name: &str| {
        host.home
            .run(&["attach", name])
            .ok()
            .stdout
            .trim()
            .to_owned()
    };
    let (origin, clone) = (attach(from), attach(to));
    let copied = Command::new("dd")
        .args([format!("if={origin}"), format!("of={clone}")])
        .args(["bs=1M", "conv=fsync,sparse", "status=none"])
        .status()
        .unwrap();
    assert!(copied.success());
    host.home.run(&["detach", from]).ok();
    host.home.run(&["detach", to]).ok();
}

#[test]
fn a_clone_is_mounted_beside_its_origin_or_refused_where_that_would_mix_them() {
    let Some(host) = Host::new() else { return };
    for fstype in FSTYPES {
        let (origin, clone) = (format!("{fstype}-a"), format!("{fstype}-b"));
        for name in [&origin, &clone] {
            host.create(name, &format!(r#""fstype":"{fstype}""#));
        }
        let at = host.mount(&origin);
        std::fs::write(at.join("whose"), b"origin").unwrap();
        host.unmount(&origin);
        copy(&host, &origin, &clone);
        host.mount(&origin);
        if fstype == "btrfs" {
            let refused = host.call(
                "VolumeDriver.Mount",
                &format!(r#"{{"Name":"{clone}","ID":"c1"}}"#),
            );
            assert!(
                refused["Err"].as_str().unwrap().contains("btrfstune"),
                "{refused}"
            );
        } else {
            let beside = host.mount(&clone);
            std::fs::write(beside.join("whose"), b"clone").unwrap();
            host.unmount(&clone);
        }
        assert_eq!(std::fs::read(at.join("whose")).unwrap(), b"origin");
        host.unmount(&origin);
    }
    host.assert_nothing_is_left();
}
