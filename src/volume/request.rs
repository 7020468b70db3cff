//! What is asked of the engine, and what it tells: requests, targets, sizes, views.
//!
//! Parsed here once for the command line, the control socket and Docker alike; a value that exists
//! is legal.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use iscsi::proto::{ChapCredentials, IscsiName, Portal};
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::layout::{Fstype, MkfsOptions, Top};
use crate::cinder::Snapshot;
use crate::sys::mount::MountOptions;

/// A name under which a volume is known here: what Docker's own driver allows, so that no name
/// needs escaping.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(String);

impl VolumeName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let begins_well = text.starts_with(|first: char| first.is_ascii_alphanumeric());
        let legal =
            |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.' | '-');
        if begins_well && text.len() <= NAME_BYTES_MAX && text.chars().all(legal) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::Name {
                name: text.to_owned(),
            })
        }
    }
}

/// Chosen freely: below the 255 of a file name and of Cinder's `name`, and enough for Docker's
/// 64-letter ids.
const NAME_BYTES_MAX: usize = 128;

/// A volume's size in whole GiB, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SizeGib(u64);

impl SizeGib {
    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }

    /// A number of GiB; nothing for zero.
    pub fn new(gib: u64) -> Option<Self> {
        (gib > 0).then_some(Self(gib))
    }
}

impl FromStr for SizeGib {
    type Err = Error;

    /// `10`, `10G`, `10GB` and `10GiB` are ten GiB, as in Cinder, whose GB are GiB; smaller units
    /// are rounded up.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Invalid {
            what: format!("{text:?} is no size; write whole GiB as in 10, or 10GiB, 512MiB, 2TiB"),
        };
        let trimmed = text.trim();
        let split = trimmed
            .find(|letter: char| !letter.is_ascii_digit())
            .unwrap_or(trimmed.len());
        let (digits, unit) = trimmed.split_at(split);
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let gib = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "g" | "gb" | "gib" => Some(number),
            "t" | "tb" | "tib" => number.checked_mul(1 << 10),
            "m" | "mb" | "mib" => Some(number.div_ceil(1 << 10)),
            "k" | "kb" | "kib" => Some(number.div_ceil(1 << 20)),
            _ => None,
        };
        gib.filter(|gib| (1..=SIZE_GIB_MAX).contains(gib))
            .map(Self)
            .ok_or_else(wrong)
    }
}

/// 8 EiB, beyond which the byte count of a device does not fit the kernel's signed 64 bits.
const SIZE_GIB_MAX: u64 = (1 << 33) - 1;

/// What a removal does with the volume in Cinder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reclaim {
    /// It stays, and is forgotten here.
    Retain,
    /// It is deleted.
    Delete,
}

impl FromStr for Reclaim {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "retain" => Ok(Self::Retain),
            "delete" => Ok(Self::Delete),
            _ => Err(Error::Invalid {
                what: format!("{text:?} is no way to reclaim a volume; use retain or delete"),
            }),
        }
    }
}

/// What is done when a volume that is to be attached is attached elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Elsewhere {
    /// Nothing; the error says by whom and since when.
    #[default]
    Refuse,
    /// It is waited for, and then refused.
    Wait(Duration),
    /// Its holder is kept from writing, by a persistent reservation, and then its attachment is deleted.
    Take,
    /// Its attachment is deleted. Right only for a host that is surely dead.
    TakeWithoutFence,
}

impl FromStr for Elsewhere {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Invalid {
            what: format!(
                "{text:?} is no answer to a volume that is attached elsewhere; use refuse, wait=SECONDS (up to {}), \
                 take or take-without-fence",
                WAIT_MAX.as_secs()
            ),
        };
        match text {
            "refuse" => Ok(Self::Refuse),
            "take" => Ok(Self::Take),
            "take-without-fence" => Ok(Self::TakeWithoutFence),
            _ => {
                let seconds = text.strip_prefix("wait").ok_or_else(wrong)?;
                let seconds = seconds.strip_prefix(['=', ':', ' ']).ok_or_else(wrong)?;
                let seconds = seconds.parse().map_err(|_| wrong())?;
                let patience = Duration::from_secs(seconds);
                (patience <= WAIT_MAX)
                    .then_some(Self::Wait(patience))
                    .ok_or_else(wrong)
            }
        }
    }
}

impl std::fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refuse => f.write_str("refuse"),
            Self::Wait(patience) => write!(f, "wait={}", patience.as_secs()),
            Self::Take => f.write_str("take"),
            Self::TakeWithoutFence => f.write_str("take-without-fence"),
        }
    }
}

impl TryFrom<String> for Elsewhere {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Elsewhere> for String {
    fn from(elsewhere: Elsewhere) -> Self {
        elsewhere.to_string()
    }
}

/// Chosen freely: longer than any failover takes, and the volume answers nothing else meanwhile.
const WAIT_MAX: Duration = Duration::from_hours(1);

/// How to attach a volume by hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachRequest {
    /// Without the right to write.
    pub read_only: bool,
    /// Beside others that have it, writing too: for what is made to be shared.
    pub raw: bool,
    /// If it is attached elsewhere; the volume's own answer, or the configured one, when absent.
    pub elsewhere: Option<Elsewhere>,
}

/// What to create, or which existing volume to take under a name.
#[derive(Clone, Debug, Default)]
pub struct CreateRequest {
    /// Size; the configured default when absent.
    pub size: Option<SizeGib>,
    /// Cinder's volume type.
    pub volume_type: Option<String>,
    /// Filesystem; the configured default when absent.
    pub fstype: Option<Fstype>,
    /// Cinder's availability zone.
    pub availability_zone: Option<String>,
    /// Make it from this snapshot.
    pub snapshot_id: Option<String>,
    /// Make it from this volume.
    pub source_volid: Option<String>,
    /// Make it from this image.
    pub image: Option<String>,
    /// Do not create: take this volume of the cloud.
    pub volume_id: Option<String>,
    /// As after `mount -o`; checked.
    pub mount_options: Option<String>,
    /// What mkfs is told beyond ours; checked against the filesystem.
    pub mkfs_options: Option<String>,
    /// How the top directory is handed out.
    pub top: Top,
    /// Where Cinder is to put it: names and values of its scheduler hints.
    pub scheduler_hints: BTreeMap<String, String>,
    /// Shown by Cinder.
    pub description: Option<String>,
    /// Attach and mount without the right to write.
    pub read_only: bool,
    /// What a removal does with it; when absent, one that was made for this name is deleted and one that was there
    /// stays.
    pub reclaim: Option<Reclaim>,
    /// If it is attached elsewhere; the configured answer when absent.
    pub elsewhere: Option<Elsewhere>,
}

impl CreateRequest {
    /// Checks what only makes sense together.
    ///
    /// # Errors
    /// Two sources, or a source and a volume that exists, or mount options that cannot be.
    pub fn check(&self) -> Result<(), Error> {
        let sources = [
            ("snapshot_id", &self.snapshot_id),
            ("source_volid", &self.source_volid),
            ("image", &self.image),
            ("volume_id", &self.volume_id),
        ];
        let given: Vec<&str> = sources
            .iter()
            .filter(|(_, value)| value.is_some())
            .map(|(name, _)| *name)
            .collect();
        if given.len() > 1 {
            return Err(Error::Invalid {
                what: format!(
                    "{} exclude each other; give one of them",
                    given.join(" and ")
                ),
            });
        }
        if self.volume_id.is_some() && (self.size.is_some() || self.volume_type.is_some()) {
            return Err(Error::Invalid {
                what: "volume_id takes a volume as it is; leave size and type away".to_owned(),
            });
        }
        parse_mount_options(self.mount_options.as_deref().unwrap_or_default()).map(drop)
    }

    /// The mkfs options, for a filesystem that may be the default one.
    ///
    /// # Errors
    /// One that is not allowed there.
    pub fn mkfs_options(&self, fstype: Fstype) -> Result<MkfsOptions, Error> {
        MkfsOptions::parse(self.mkfs_options.as_deref().unwrap_or_default(), fstype)
    }
}

/// The options as mount(2) wants them.
pub(crate) fn parse_mount_options(text: &str) -> Result<MountOptions, Error> {
    // mount(2) would refuse a zero byte, but only when the volume is made and attached.
    if text.contains(char::is_control) {
        return Err(Error::Invalid {
            what: format!("mount options {text:?} hold a control character; leave it away"),
        });
    }
    MountOptions::parse(text).map_err(|word| Error::Invalid {
        what: format!("mount option {word:?} changes what is mounted, not how; leave it away"),
    })
}

/// A LUN that no cloud knows of.
#[derive(Clone, Debug)]
pub struct StaticTarget {
    /// Where.
    pub portal: Portal,
    /// Target name.
    pub target: IscsiName,
    /// Logical unit.
    pub lun: u16,
    /// CHAP, when the target asks for it.
    pub chap: Option<ChapCredentials>,
    /// Refuse writes.
    pub read_only: bool,
}

impl StaticTarget {
    /// The name under which it is listed, in the manner of `/dev/disk/by-path`.
    pub fn name(&self) -> String {
        format!("{}-lun-{}", self.target, self.lun)
    }
}

/// What is known here of one volume, without asking anybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Its name here.
    pub name: String,
    /// Cinder's UUID; none for a static target.
    pub volume_id: Option<String>,
    /// GiB, as last told by Cinder.
    pub size_gib: Option<u64>,
    /// Bytes of the device, as the kernel has it; none when it is not here.
    #[serde(default)]
    pub device_bytes: Option<u64>,
    /// Bytes of the mounted filesystem.
    #[serde(default)]
    pub filesystem_bytes: Option<u64>,
    /// Whom it was taken from, and how.
    #[serde(default)]
    pub taken: Option<String>,
    /// What was begun and will be ended: `creating`, `removing`, `extending to N GiB`.
    #[serde(default)]
    pub pending: Option<String>,
    /// Cinder's volume type.
    pub volume_type: Option<String>,
    /// RFC 3339, UTC.
    pub created_at: Option<String>,
    /// Whether cinder-nbd created it, and hence deletes it on removal.
    pub created_by_us: bool,
    /// Filesystem asked for.
    pub fstype: Option<String>,
    /// `detached`, `attached`, `mounted`, `waiting` when the kernel has a device that is not served yet, or `cleaning`
    /// when an undo is still to be done.
    pub state: State,
    /// Attached without the right to write.
    pub read_only: bool,
    /// `/dev/nbdX`.
    pub device: Option<PathBuf>,
    /// Target name and LUN it is attached through.
    pub target: Option<String>,
    /// Portal it is attached through.
    pub portal: Option<String>,
    /// What the LUN said it is.
    pub identity: Option<String>,
    /// Where it is mounted.
    pub mountpoint: Option<PathBuf>,
    /// How many mounts Docker has asked for and not given back: a hint.
    pub mounts: u32,
    /// Attached by hand, and hence kept until detached by hand.
    pub held: bool,
    /// The last failure, in one line.
    pub last_error: Option<String>,
}

impl std::fmt::Display for SizeGib {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} GiB", self.0)
    }
}

/// A snapshot that is asked for.
#[derive(Clone, Debug)]
pub struct SnapshotRequest {
    /// Its name.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// How long writes to the mounted filesystem may wait for it; none does not freeze.
    pub freeze_limit: Option<Duration>,
}

/// A snapshot that was taken, or is being taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Taken {
    /// As Cinder shows it.
    pub snapshot: Snapshot,
    /// What is in it.
    pub consistency: Consistency,
}

/// What a snapshot of a volume has in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// The filesystem was frozen while it was taken: all that had been written, at rest.
    Filesystem,
    /// Nobody had the volume.
    Unused,
    /// As after a loss of power: filesystem and programs recover as they do then.
    Crash,
}

impl std::fmt::Display for Consistency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Filesystem => "the filesystem was frozen meanwhile",
            Self::Unused => "nobody used the volume",
            Self::Crash => "in use: as after a loss of power",
        })
    }
}

/// Where a volume is in its life on this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not here.
    #[default]
    Detached,
    /// A device.
    Attached,
    /// A device with a filesystem that is mounted.
    Mounted,
    /// The kernel has the device from an earlier daemon; its I/O waits until it is served again.
    Waiting,
    /// Gone from here, but Cinder has not confirmed yet.
    Cleaning,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Detached => "detached",
            Self::Attached => "attached",
            Self::Mounted => "mounted",
            Self::Waiting => "waiting",
            Self::Cleaning => "cleaning",
        })
    }
}

/// The daemon in figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Of the daemon.
    pub version: String,
    /// Of the daemon.
    pub pid: u32,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// Our name in connectors.
    pub host: String,
    /// Our IQN.
    pub initiator_name: String,
    /// Whether a cloud is configured.
    pub cloud: bool,
    /// What the kernel's NBD driver is: `ready`, or why not.
    pub kernel: String,
    /// Known volumes.
    pub volumes: usize,
    /// Attached ones among them.
    pub attached: usize,
    /// Mounted ones among them.
    pub mounted: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_gib_and_round_up() {
        for (text, gib) in [
            ("1", 1),
            ("10", 10),
            ("10G", 10),
            ("10GB", 10),
            ("10 GiB", 10),
            ("1500MiB", 2),
            ("1M", 1),
            ("2T", 2048),
            ("1048577k", 2),
        ] {
            assert_eq!(text.parse::<SizeGib>().unwrap().get(), gib, "{text}");
        }
        for text in [
            "",
            "0",
            "-1",
            "1.5G",
            "ten",
            "1X",
            "0M",
            "99999999999999999999",
            "18446744073709551615T",
        ] {
            assert!(text.parse::<SizeGib>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_what_dockers_own_driver_allows() {
        for name in ["a", "v1", "A.b-c_d", "0f", &"x".repeat(128)] {
            assert!(name.parse::<VolumeName>().is_ok(), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            "-a",
            "_a",
            "a/b",
            "a b",
            "a\n",
            "\u{e4}",
            &"x".repeat(129),
        ] {
            assert!(name.parse::<VolumeName>().is_err(), "{name}");
        }
    }

    #[test]
    fn what_mount_would_refuse_is_refused_before_anything_is_made() {
        for options in ["noatime\0", "a\nb", "bind"] {
            let request = CreateRequest {
                mount_options: Some(options.to_owned()),
                ..CreateRequest::default()
            };
            assert!(request.check().is_err(), "{options:?}");
        }
    }

    #[test]
    fn sources_exclude_each_other() {
        let both = CreateRequest {
            snapshot_id: Some("s".to_owned()),
            image: Some("i".to_owned()),
            ..CreateRequest::default()
        };
        let text = both.check().unwrap_err().to_string();
        assert!(text.contains("snapshot_id and image"), "{text}");
        let adopted = CreateRequest {
            volume_id: Some("v".to_owned()),
            size: SizeGib::new(1),
            ..CreateRequest::default()
        };
        assert!(adopted.check().is_err());
    }
}
