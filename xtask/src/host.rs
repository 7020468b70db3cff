//! The machine we stand on: who we are, what distribution, and the packages it lacks.
//!
//! The one place where package names of the host stand. `apt-get update` runs only when something is missing.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::run::Run;
use crate::ui::Stage;

/// To make and boot the guest; its emulator is `vm::emulator`'s matter.
pub(crate) const VM: &[&str] = &[
    "binutils",
    "cpio",
    "debian-archive-keyring",
    "e2fsprogs",
    "kmod",
    "mmdebstrap",
    "patchelf",
    "tar",
    "util-linux",
    "xz-utils",
    "zstd",
];
/// To build: `aws-lc` and others compile C.
pub(crate) const BUILD: &[&str] = &["gcc", "libc6-dev", "make", "cmake", "pkg-config"];
/// libFuzzer's runtime is C++.
pub(crate) const FUZZ: &[&str] = &["g++"];
/// To show the demo on the host.
pub(crate) const DEMO: &[&str] = &["e2fsprogs", "kmod", "mount"];
/// The independent judges on the host.
pub(crate) const INTEROP: &[&str] = &[
    "bcache-tools",
    "btrfs-progs",
    "cryptsetup-bin",
    "dosfstools",
    "e2fsprogs",
    "exfatprogs",
    "f2fs-tools",
    "fdisk",
    "fio",
    "genisoimage",
    "libiscsi-bin",
    "libnbd-bin",
    "nbd-client",
    "nbdkit",
    "nilfs-tools",
    "ntfs-3g",
    "openssl",
    "procps",
    "python3-libnbd",
    "qemu-utils",
    "squashfs-tools",
    "systemd",
    "tgt",
    "xfsprogs",
];
/// The peers of the comparison, `qemu-nbd` aside (see `bench::peer`).
pub(crate) const BENCH: &[&str] = &["fio", "libiscsi-bin", "tgt"];
/// To count instructions.
pub(crate) const INSTRUCTIONS: &[&str] = &["valgrind"];

/// apt's downloads on a slow line.
const APT_LIMIT: Duration = Duration::from_mins(20);

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A field of `/etc/os-release`, without its quotes.
pub(crate) fn os_release(field: &str) -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix('='))
        .map(|value| value.trim_matches('"').to_owned())
}

/// Is a program on the path, or where Debian puts those of root?
pub(crate) fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(name).is_file())
}

/// Installs those of the packages that are missing; says so, as it changes the machine.
pub(crate) async fn install(packages: &[&[&str]]) -> Result<()> {
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("no apt-get here: this command installs what it needs on Debian and Ubuntu only");
    }
    let wanted: BTreeSet<&str> = packages
        .iter()
        .flat_map(|list| list.iter().copied())
        .collect();
    let missing = missing(&wanted).await?;
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root() && !has_program("sudo") {
        bail!(
            "packages are missing ({}): run as root, or install sudo",
            missing.join(" ")
        );
    }
    let stage = Stage::begin("install packages");
    stage.note(&missing.join(" "));
    if let Err(first) = apt_install(&missing, &stage).await {
        // most often: no package lists yet, or stale ones
        update_lists(&stage).await?;
        apt_install(&missing, &stage).await.with_context(|| {
            format!(
                "install {}; before the update of the lists: {first:#}",
                missing.join(" ")
            )
        })?;
    }
    stage.done(&missing.join(" "));
    Ok(())
}

pub(crate) async fn update_lists(stage: &Stage) -> Result<()> {
    stage.note("apt-get update");
    let updated = apt(&["update", "-q"]).output(|line| stage.note(line));
    updated.await.map(drop)
}

async fn apt_install(packages: &[String], stage: &Stage) -> Result<()> {
    // What somebody else has put on this machine stays: where a package of ours would push it off, apt refuses.
    apt(&[
        "install",
        "-q",
        "-y",
        "--no-install-recommends",
        "--no-remove",
    ])
    .args(packages)
    .output(|line| stage.note(line))
    .await?;
    Ok(())
}

fn apt(args: &[&str]) -> Run {
    Run::new("apt-get", APT_LIMIT)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .arg("-o")
        .arg("DPkg::Lock::Timeout=300")
        .args(args)
        .privileged()
}

async fn missing(wanted: &BTreeSet<&str>) -> Result<Vec<String>> {
    // one line a package that dpkg knows; an unknown one is missing too
    let ended = Run::new("dpkg-query", Duration::from_secs(30))
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(wanted)
        .ended(|_| {})
        .await?;
    let installed: BTreeSet<&str> = ended
        .output
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect();
    Ok(wanted
        .difference(&installed)
        .map(|name| (*name).to_owned())
        .collect())
}
