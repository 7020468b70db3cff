//! Mounting, unmounting, and who has a device mounted: the kernel's own answer, by device number.
//!
//! Source: proc(5), `/proc/PID/mountinfo`; mount(2), umount2(2).
//!
//! Invariants:
//! 1. A mount is recognised by its device number, never by the name of its source: names are
//!    reused.
//! 2. `users` looks into every mount namespace it can see, because a container's bind mount is not
//!    in ours.
//!
//! What it does not do: judge whether a user is a reason to stay. `volume` does.

use std::collections::BTreeSet;
use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

/// A device number as `/proc` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// The driver's number.
    pub major: u32,
    /// The driver's number for this device.
    pub minor: u32,
}

/// One line of a mountinfo table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Device number of the filesystem.
    pub device: DeviceNumber,
    /// Where, seen from the root of the process whose table it is.
    pub mountpoint: PathBuf,
    /// Filesystem type.
    pub fstype: String,
}

/// A process that sees a device mounted, one for each mount namespace and mountpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MountUser {
    /// One process of the namespace.
    pub pid: u32,
    /// Where it sees the filesystem.
    pub mountpoint: PathBuf,
    /// Whether the namespace is our own.
    pub own_namespace: bool,
}

/// Mount options split as mount(2) wants them: flags of the VFS, and the rest as text for the
/// filesystem.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    read_only: bool,
    flags: u32,
    data: Vec<String>,
}

impl MountOptions {
    /// Splits a comma-separated list as after `mount -o`.
    ///
    /// # Errors
    /// Names the first option that would change what is mounted rather than how (`bind`, `remount`,
    /// ...).
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for word in text
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
        {
            if matches!(
                word,
                "bind" | "rbind" | "remount" | "move" | "shared" | "private" | "slave" | "loop"
            ) {
                return Err(word.to_owned());
            }
            match word {
                "ro" => options.read_only = true,
                "rw" => options.read_only = false,
                "defaults" => {}
                _ => match FLAG_WORDS.iter().find(|(name, _)| *name == word) {
                    Some((_, flag)) => options.flags |= flag.bits(),
                    None => options.data.push(word.to_owned()),
                },
            }
        }
        Ok(options)
    }

    /// The same options, and one for the filesystem.
    #[must_use]
    pub fn with(mut self, word: &str) -> Self {
        self.data.push(word.to_owned());
        self
    }

    /// The same options, read-only.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Whether the mount will be read-only.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn flags(&self) -> MountFlags {
        let flags = MountFlags::from_bits_retain(self.flags);
        if self.read_only {
            flags | MountFlags::RDONLY
        } else {
            flags
        }
    }
}

/// Mounts `source` on `mountpoint` (which must exist) as `fstype`.
///
/// # Errors
/// The kernel's refusal.
pub fn mount(
    source: &Path,
    mountpoint: &Path,
    fstype: &str,
    options: &MountOptions,
) -> io::Result<()> {
    let data = CString::new(options.data.join(","))
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "NUL in the mount options"))?;
    let data = (!options.data.is_empty()).then_some(data);
    rustix::mount::mount(source, mountpoint, fstype, options.flags(), data.as_deref())?;
    Ok(())
}

/// Unmounts what is on top of `mountpoint`. `lazy`: out of the tree now, gone when its last user
/// has left.
///
/// # Errors
/// `ResourceBusy` while files are open there (not lazy); `InvalidInput` when nothing is mounted
/// there.
pub fn unmount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let flags = if lazy {
        UnmountFlags::DETACH
    } else {
        UnmountFlags::empty()
    };
    rustix::mount::unmount(mountpoint, flags | UnmountFlags::NOFOLLOW)?;
    Ok(())
}

/// Writes back everything dirty of the filesystem that `path` lies on.
///
/// # Errors
/// The path cannot be opened, or the write-back failed.
pub fn sync_filesystem(path: &Path) -> io::Result<()> {
    rustix::fs::syncfs(std::fs::File::open(path)?)?;
    Ok(())
}

/// What is mounted exactly at `mountpoint` in our namespace; the topmost when several are stacked.
///
/// # Errors
/// `/proc/self/mountinfo` cannot be read.
pub fn mounted_at(mountpoint: &Path) -> io::Result<Option<MountEntry>> {
    Ok(own_table()?
        .into_iter()
        .rev()
        .find(|entry| entry.mountpoint == mountpoint))
}

/// Where something is mounted beneath a directory, in our namespace; what was mounted last comes first.
///
/// # Errors
/// `/proc/self/mountinfo` cannot be read.
pub fn below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = own_table()?
        .into_iter()
        .map(|entry| entry.mountpoint)
        .filter(|at| at.starts_with(directory) && at != directory)
        .collect();
    found.reverse();
    Ok(found)
}

/// Every mount of `device` that a process on this host sees, whichever namespace it lives in.
///
/// # Errors
/// `/proc` cannot be read. Processes that end meanwhile are passed over.
pub fn users(device: DeviceNumber) -> io::Result<Vec<MountUser>> {
    let own = std::fs::read_link("/proc/self/ns/mnt")?;
    let mut seen = BTreeSet::new();
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|text| text.parse::<u32>().ok()) else {
            continue;
        };
        let base = PathBuf::from(format!("/proc/{pid}"));
        // A process may end between the listing and these reads; kernel threads have no table.
        let Ok(namespace) = std::fs::read_link(base.join("ns/mnt")) else {
            continue;
        };
        let root = std::fs::read_link(base.join("root")).unwrap_or_default();
        // The table shows what lies beneath the process's root, so a chroot has a table of its own.
        if !seen.insert((namespace.clone(), root)) {
            continue;
        }
        let Ok(text) = std::fs::read(base.join("mountinfo")) else {
            continue;
        };
        for entry in parse_table(&text)
            .into_iter()
            .filter(|entry| entry.device == device)
        {
            let own_namespace = namespace == own;
            found.insert(MountUser {
                pid,
                mountpoint: entry.mountpoint,
                own_namespace,
            });
        }
    }
    Ok(found.into_iter().collect())
}

fn own_table() -> io::Result<Vec<MountEntry>> {
    Ok(parse_table(&std::fs::read("/proc/self/mountinfo")?))
}

/// Lines that do not have the documented form are passed over: later kernels may add, not change.
fn parse_table(text: &[u8]) -> Vec<MountEntry> {
    text.split(|byte| *byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let mountpoint = unescape(fields.nth(1)?);
    let fstype = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(MountEntry {
        device: DeviceNumber {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        },
        mountpoint: PathBuf::from(OsString::from_vec(mountpoint)),
        fstype: String::from_utf8_lossy(fstype).into_owned(),
    })
}

/// Space, tab, newline and backslash are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = escaped {
            plain.push(byte);
            rest = &tail[3..];
        } else {
            plain.push(*first);
            rest = tail;
        }
    }
    plain
}

const FLAG_WORDS: [(&str, MountFlags); 9] = [
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
    ("lazytime", MountFlags::LAZYTIME),
    ("nodev", MountFlags::NODEV),
    ("nosuid", MountFlags::NOSUID),
    ("noexec", MountFlags::NOEXEC),
    ("sync", MountFlags::SYNCHRONOUS),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_by_device_number_with_escapes_and_optional_fields() {
        let table = b"36 35 43:0 / /mnt/a\\040b rw,noatime shared:1 master:2 - ext4 /dev/nbd0 rw\n\
            37 35 43:32 / /mnt/plain rw - xfs /dev/nbd1 rw\n\
            broken line\n\
            38 35 0:5 / /back\\134slash rw - tmpfs none rw\n";
        let entries = parse_table(table);
        assert_eq!(entries.len(), 3);
        assert_eq!(
            entries[0].device,
            DeviceNumber {
                major: 43,
                minor: 0
            }
        );
        assert_eq!(entries[0].mountpoint, Path::new("/mnt/a b"));
        assert_eq!(entries[0].fstype, "ext4");
        assert_eq!(
            entries[1].device,
            DeviceNumber {
                major: 43,
                minor: 32
            }
        );
        assert_eq!(entries[2].mountpoint, Path::new("/back\\slash"));
    }

    #[test]
    fn an_unfinished_escape_is_left_as_it_stands() {
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\"), b"\\");
        assert_eq!(unescape(b"\\999x"), b"\\999x");
    }

    #[test]
    fn our_own_table_knows_the_root() {
        let root = mounted_at(Path::new("/"))
            .unwrap()
            .expect("a root is mounted");
        assert!(
            users(root.device)
                .unwrap()
                .iter()
                .any(|user| user.own_namespace)
        );
        assert_eq!(mounted_at(Path::new("/proc/self/no/such")).unwrap(), None);
    }

    #[test]
    fn options_are_split_into_flags_and_the_filesystems_own() {
        let options = MountOptions::parse("noatime, ro,data=ordered,nodev,commit=5").unwrap();
        assert!(options.is_read_only());
        let wanted = MountFlags::NOATIME | MountFlags::NODEV | MountFlags::RDONLY;
        assert_eq!(options.flags(), wanted);
        assert_eq!(options.data, ["data=ordered", "commit=5"]);
        assert_eq!(MountOptions::parse("").unwrap(), MountOptions::default());
        assert_eq!(MountOptions::parse("noatime,bind").unwrap_err(), "bind");
    }
}
