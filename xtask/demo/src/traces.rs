//! What an attachment leaves on a host when something is forgotten: devices, mounts, processes, files.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// What was there before us, which is not ours to judge.
pub(crate) struct Before {
    devices: BTreeSet<String>,
    mounts: BTreeSet<String>,
}

impl Before {
    pub(crate) fn look() -> Result<Self> {
        Ok(Self {
            devices: devices()?,
            mounts: mounts()?,
        })
    }

    /// # Errors
    /// Names what is there now and was not before.
    pub(crate) fn nothing_new(&self, dir: &Path) -> Result<()> {
        let new = |before: &BTreeSet<String>, now: &BTreeSet<String>| {
            now.difference(before)
                .cloned()
                .collect::<Vec<_>>()
                .join(", ")
        };
        let devices = new(&self.devices, &devices()?);
        if !devices.is_empty() {
            bail!("connected devices are left: {devices}");
        }
        let mounts = new(&self.mounts, &mounts()?);
        if !mounts.is_empty() {
            bail!("mounts are left: {mounts}");
        }
        let processes = processes_of(dir)?;
        if !processes.is_empty() {
            bail!("processes are left: {}", processes.join(", "));
        }
        Ok(())
    }
}

/// NBD devices that are connected: those with a `pid` file.
fn devices() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/sys/block").context("look into /sys/block")? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with("nbd") && path.join("pid").exists() {
            found.insert(name);
        }
    }
    Ok(found)
}

/// Mount points of this namespace.
fn mounts() -> Result<BTreeSet<String>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    Ok(table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(str::to_owned)
        .collect())
}

/// Processes that name a folder of ours on their command line.
fn processes_of(dir: &Path) -> Result<Vec<String>> {
    let dir = dir.to_str().context("a path that is not UTF-8")?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").context("look into /proc")? {
        let path = entry?.path();
        // one that ends while we look is gone, which is what we want
        let Ok(line) = std::fs::read(path.join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(dir) {
            found.push(line.trim().to_owned());
        }
    }
    Ok(found)
}
