//! What a filesystem is to be: its type, what mkfs is told beyond ours, and how its top directory is handed out.
//!
//! Checked when a volume is created, long before mkfs runs: a wrong word is told to whoever asks for the volume, not to
//! whoever mounts it first.

use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::Error;

/// A filesystem that can be made and mounted here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Fstype {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs, on one device.
    Btrfs,
}

impl Fstype {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// As mount(8) spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The options of its mkfs that say how, and not what or whether: none names another device, none forces. Source:
    /// mke2fs(8), mkfs.xfs(8), mkfs.btrfs(8).
    fn mkfs_flags(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["-b", "-i", "-I", "-L", "-m", "-N", "-O", "-T"],
            Self::Xfs => &["-b", "-i", "-L", "-m", "-n"],
            Self::Btrfs => &["-d", "-L", "-m", "-n", "-O", "-s"],
        }
    }
}

impl FromStr for Fstype {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let known = Self::ALL.into_iter().find(|one| one.as_str() == text);
        known.ok_or_else(|| Error::Invalid {
            what: format!("{text:?} is no known fstype; use ext4, xfs or btrfs"),
        })
    }
}

/// What mkfs is told beyond what it is always told: options and their values, in turn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MkfsOptions(Vec<String>);

impl MkfsOptions {
    /// Reads `-O ^has_journal -m 1`.
    ///
    /// # Errors
    /// An option that is not one of those which say how the filesystem is made, or one without its value.
    pub fn parse(text: &str, fstype: Fstype) -> Result<Self, Error> {
        let words: Vec<&str> = text.split_whitespace().collect();
        for pair in words.chunks(2) {
            let known = fstype.mkfs_flags();
            if !known.contains(&pair[0]) {
                return Err(Error::Invalid {
                    what: format!(
                        "mkfs option {:?} is not allowed for {}; allowed are {}, each with its value behind a space",
                        pair[0],
                        fstype.as_str(),
                        known.join(" ")
                    ),
                });
            }
            let is_value = |word: &str| {
                let legal =
                    |letter: char| letter.is_ascii_alphanumeric() || "_.,=:^%-".contains(letter);
                !word.starts_with('-') && word.chars().all(legal)
            };
            if !pair.get(1).is_some_and(|word| is_value(word)) {
                return Err(Error::Invalid {
                    what: format!("mkfs option {} needs a value behind a space", pair[0]),
                });
            }
        }
        Ok(Self(words.into_iter().map(str::to_owned).collect()))
    }

    /// As mkfs wants them.
    pub fn words(&self) -> &[String] {
        &self.0
    }

    /// Whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// How the top directory is handed out. Owner and mode are set once, on a filesystem that was just made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Top {
    /// Owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Permission bits; 0755 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Users get this directory of the filesystem instead of its top; made with the filesystem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subdir: Option<PathBuf>,
}

impl Top {
    /// Whether nothing was asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What users of a filesystem that is mounted there get.
    pub fn beneath(&self, mountpoint: &Path) -> PathBuf {
        match &self.subdir {
            Some(subdir) => mountpoint.join(subdir),
            None => mountpoint.to_owned(),
        }
    }
}

/// Reads a directory beneath the top: no way out of it.
///
/// # Errors
/// Empty, absolute, or with `.` or `..` in it.
pub fn parse_subdir(text: &str) -> Result<PathBuf, Error> {
    let path = Path::new(text);
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if text.is_empty()
        || text.contains(char::is_control)
        || text.contains("/./")
        || text.starts_with("./")
        || !path.components().all(is_plain)
    {
        return Err(Error::Invalid {
            what: format!(
                "{text:?} is no directory beneath the volume's top; write it as in data or data/db"
            ),
        });
    }
    Ok(path.components().collect())
}

/// Reads permission bits, as chmod(1) takes them in octal.
///
/// # Errors
/// No octal number up to 7777.
pub fn parse_mode(text: &str) -> Result<u32, Error> {
    let mode = u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777);
    mode.filter(|_| !text.starts_with('+'))
        .ok_or_else(|| Error::Invalid {
            what: format!("{text:?} is no mode; write it in octal, as in 0770"),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_filesystems_are_read_and_others_refused_by_name() {
        for fstype in Fstype::ALL {
            assert_eq!(fstype.as_str().parse::<Fstype>().unwrap(), fstype);
        }
        for text in ["", "EXT4", "ext2", "zfs"] {
            let error = text.parse::<Fstype>().unwrap_err().to_string();
            assert!(
                error.contains(&format!("{text:?}")) && error.contains("xfs"),
                "{error}"
            );
        }
    }

    #[test]
    fn only_harmless_options_reach_mkfs() {
        let parse = |text: &str, fstype| MkfsOptions::parse(text, fstype);
        let words = parse(" -O ^has_journal  -m 1 ", Fstype::Ext4).unwrap();
        assert_eq!(words.words(), ["-O", "^has_journal", "-m", "1"]);
        assert!(parse("", Fstype::Xfs).unwrap().is_empty());
        assert!(parse("-m reflink=0 -n size=8192", Fstype::Xfs).is_ok());
        for (text, fstype, word) in [
            ("-F", Fstype::Ext4, "-F"),
            ("-b 4096 -F", Fstype::Ext4, "-F"),
            ("-f", Fstype::Xfs, "-f"),
            ("-f", Fstype::Btrfs, "-f"),
            ("-d file=/etc/passwd", Fstype::Xfs, "-d"),
            ("-l logdev=/dev/sda", Fstype::Xfs, "-l"),
            ("-J device=/dev/sda", Fstype::Ext4, "-J"),
            ("/dev/sda", Fstype::Ext4, "/dev/sda"),
            ("-b", Fstype::Ext4, "-b needs a value"),
            ("-b -F", Fstype::Ext4, "-b needs a value"),
            ("-L /dev/sda", Fstype::Ext4, "-L needs a value"),
        ] {
            let error = parse(text, fstype).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn a_subdir_stays_beneath_the_top() {
        assert_eq!(parse_subdir("data/db/").unwrap(), Path::new("data/db"));
        for text in [
            "", "/", "/data", "..", "a/../b", "./a", "a/./b", "a\0b", "a\nb",
        ] {
            assert!(parse_subdir(text).is_err(), "{text}");
        }
        let top = Top {
            subdir: Some("data".into()),
            ..Top::default()
        };
        assert_eq!(top.beneath(Path::new("/m/v")), Path::new("/m/v/data"));
        assert_eq!(Top::default().beneath(Path::new("/m/v")), Path::new("/m/v"));
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(parse_mode("0770").unwrap(), 0o770);
        assert_eq!(parse_mode("1777").unwrap(), 0o1777);
        for text in ["", "8", "+7", "rwx", "17777", "-1"] {
            assert!(parse_mode(text).is_err(), "{text}");
        }
    }
}
