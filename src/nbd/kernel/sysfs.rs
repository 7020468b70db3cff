//! One device of the driver as sysfs shows it: what is true of it, and the settings of its queue.
//!
//! A room of its own because sysfs is the only witness: netlink says what was asked, sysfs what is.
//! Source: `drivers/block/nbd.c` (`pid`, `backend`), `Documentation/block/queue-sysfs`.
//!
//! Invariants:
//! 1. `pid` exists if and only if the device is connected.
//! 2. Settings that were written are read back before they are relied on: they outlive a connection on a used device,
//!    and a kernel may round or refuse them.

use std::io;
use std::path::{Path, PathBuf};

/// Unit of sysfs's `size`, whatever the device's block is.
const SECTOR_BYTES: u64 = 512;

/// `/sys/block/nbdX`.
#[derive(Clone, Debug)]
pub(super) struct Sysfs {
    directory: PathBuf,
}

impl Sysfs {
    pub(super) fn of(index: u32) -> Self {
        Self {
            directory: PathBuf::from(format!("/sys/block/nbd{index}")),
        }
    }

    #[cfg(test)]
    pub(super) fn at(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// The connected devices that show this identifier.
    ///
    /// # Errors
    /// `/sys/block` cannot be read.
    pub(super) fn find(identifier: &str) -> io::Result<Vec<u32>> {
        find_in(Path::new("/sys/block"), identifier)
    }

    /// The connected devices whose identifier begins so, each with its identifier.
    ///
    /// # Errors
    /// `/sys/block` cannot be read.
    pub(super) fn all(prefix: &str) -> io::Result<Vec<(u32, String)>> {
        all_in(Path::new("/sys/block"), prefix)
    }

    pub(super) fn is_connected(&self) -> bool {
        self.directory.join("pid").exists()
    }

    /// An attribute's text without its newline; `None` if it is not there or not readable.
    pub(super) fn read(&self, attribute: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.directory.join(attribute)).ok()?;
        Some(text.trim_end().to_owned())
    }

    pub(super) fn read_number(&self, attribute: &str) -> Option<u64> {
        self.read(attribute)?.parse().ok()
    }

    pub(super) fn size_bytes(&self) -> Option<u64> {
        self.read_number("size")?.checked_mul(SECTOR_BYTES)
    }

    /// Writes a setting where the kernel has it; whether it took is for the caller to read.
    pub(super) fn write(&self, attribute: &str, value: &str) {
        if let Err(error) = std::fs::write(self.directory.join(attribute), value) {
            tracing::debug!("{}/{attribute} stays: {error}", self.directory.display());
        }
    }

    /// Names of devices that stand on this one (device mapper, RAID).
    pub(super) fn holders(&self) -> Vec<String> {
        entries(&self.directory.join("holders"))
    }

    /// Names of the partitions.
    pub(super) fn partitions(&self) -> Vec<String> {
        let mut names = entries(&self.directory);
        names.retain(|name| self.directory.join(name).join("partition").exists());
        names
    }
}

fn find_in(root: &Path, identifier: &str) -> io::Result<Vec<u32>> {
    let all = all_in(root, identifier)?.into_iter();
    let found = all.filter(|(_, shown)| shown == identifier);
    Ok(found.map(|(index, _)| index).collect())
}

fn all_in(root: &Path, prefix: &str) -> io::Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("nbd")?.parse::<u32>().ok());
        let Some(index) = number else { continue };
        let sysfs = Sysfs {
            directory: entry.path(),
        };
        if sysfs.is_connected()
            && let Some(shown) = sysfs.read("backend")
            && shown.starts_with(prefix)
        {
            found.push((index, shown));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn entries(directory: &Path) -> Vec<String> {
    let Ok(found) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut names: Vec<_> = found
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_identifier_only_while_it_is_connected() {
        let root = tempfile::tempdir().unwrap();
        for (name, backend, connected) in [
            ("nbd0", "other", true),
            ("nbd7", "ours", false),
            ("sda", "ours", true),
        ] {
            let directory = root.path().join(name);
            std::fs::create_dir(&directory).unwrap();
            std::fs::write(directory.join("backend"), format!("{backend}\n")).unwrap();
            if connected {
                std::fs::write(directory.join("pid"), "1\n").unwrap();
            }
        }
        assert!(find_in(root.path(), "ours").unwrap().is_empty());
        std::fs::write(root.path().join("nbd7/pid"), "1\n").unwrap();
        assert_eq!(find_in(root.path(), "ours").unwrap(), [7]);
        assert!(find_in(&root.path().join("absent"), "ours").is_err());
    }

    #[test]
    fn attributes_partitions_and_holders_are_read() {
        let root = tempfile::tempdir().unwrap();
        let sysfs = Sysfs {
            directory: root.path().to_owned(),
        };
        std::fs::create_dir_all(root.path().join("nbd0p1")).unwrap();
        std::fs::create_dir_all(root.path().join("holders/dm-3")).unwrap();
        std::fs::create_dir_all(root.path().join("queue")).unwrap();
        std::fs::write(root.path().join("nbd0p1/partition"), "1\n").unwrap();
        std::fs::write(root.path().join("size"), "2048\n").unwrap();
        assert_eq!(sysfs.size_bytes(), Some(1 << 20));
        assert_eq!(sysfs.partitions(), ["nbd0p1"]);
        assert_eq!(sysfs.holders(), ["dm-3"]);
        sysfs.write("queue/scheduler", "none");
        assert_eq!(sysfs.read("queue/scheduler").as_deref(), Some("none"));
        assert_eq!(sysfs.read_number("queue/absent"), None);
    }
}
