//! What is written down: a record for each volume we know by name, an entry for each attachment
//! while it lives.
//!
//! Invariants:
//! 1. What is about to be done is on the disk before it is done (`step` has the table), so whatever a crash interrupts
//!    can be ended or undone from the files alone.
//! 2. A file is replaced whole: written beside, synced, renamed, the directory synced. A reader
//!    sees old or new.
//! 3. No secret is ever written here: an entry can be undone without one, and `address` keeps what a
//!    new login needs. Both directories are root's alone all the same.
//! 4. An entry of an earlier release is read: without `standing` its device is not taken over but
//!    taken down. One of a later layout is left alone.
//!
//! Entries lie in the state directory, not on tmpfs: the kernel's device does not outlive a reboot,
//! but the attachment in Cinder does, and without its id the volume would stay in use by a host
//! that no longer has it.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::Error;
use super::layout::{Fstype, MkfsOptions, Top};
use super::request::{Elsewhere, Reclaim};
use super::standing::Standing;

/// What is known of a volume under its name here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Its name here.
    pub(crate) name: String,
    /// Cinder's UUID.
    pub(crate) volume_id: String,
    /// GiB, as last told by Cinder.
    pub(crate) size_gib: u64,
    /// Cinder's volume type.
    pub(crate) volume_type: Option<String>,
    /// RFC 3339, UTC.
    pub(crate) created_at: Option<String>,
    /// Created by a cinder-nbd, this one or another of the project.
    pub(crate) created_by_us: bool,
    /// What to make when it is blank and ours.
    pub(crate) fstype: Fstype,
    /// As after `mount -o`.
    pub(crate) mount_options: String,
    /// What mkfs is told beyond ours.
    #[serde(default, skip_serializing_if = "MkfsOptions::is_empty")]
    pub(crate) mkfs_options: MkfsOptions,
    /// How the top directory is handed out.
    #[serde(default, skip_serializing_if = "Top::is_default")]
    pub(crate) top: Top,
    /// Attach and mount without the right to write.
    pub(crate) read_only: bool,
    /// How far its filesystem has come.
    pub(crate) formatted: Formatted,
    /// GiB to which the filesystem was made, or has grown; when absent, it is as it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) grown_gib: Option<u64>,
    /// What was begun and is not known to have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pending: Option<Pending>,
    /// What a removal does with the volume in Cinder, if it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reclaim: Option<Reclaim>,
    /// What is done when another host has it, if it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) elsewhere: Option<Elsewhere>,
    /// It was there before it was given this name here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) adopted: bool,
}

impl Record {
    /// Whether a removal deletes the volume in Cinder: if that was asked for, or if it was made for this name.
    pub(crate) fn is_deleted_with_us(&self) -> bool {
        match self.reclaim {
            Some(Reclaim::Delete) => true,
            Some(Reclaim::Retain) => false,
            None => self.created_by_us && !self.adopted,
        }
    }
}

/// What was begun with a volume: whichever process comes next ends it, or finds that it never was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Pending {
    /// Cinder was asked for a volume that carries this mark. Its id is not known yet.
    Create {
        /// In the volume's metadata.
        mark: String,
    },
    /// The volume is being deleted.
    Remove,
    /// The volume, its device and its filesystem get larger.
    Extend {
        /// GiB.
        to_gib: u64,
    },
}

/// A `Pending` without its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PendingKind {
    /// `Pending::Create`.
    Create,
    /// `Pending::Remove`.
    Remove,
    /// `Pending::Extend`.
    Extend,
}

impl Pending {
    /// Which.
    #[cfg(test)]
    pub(crate) fn kind(&self) -> PendingKind {
        match self {
            Self::Create { .. } => PendingKind::Create,
            Self::Remove => PendingKind::Remove,
            Self::Extend { .. } => PendingKind::Extend,
        }
    }
}

/// How far the filesystem of a volume of ours has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Formatted {
    /// Never touched.
    No,
    /// mkfs was begun; whether it ended is not known, and nobody was given what it made.
    Begun,
    /// It has, or had, a filesystem: if it looks blank now, something is wrong.
    Done,
}

/// One attachment, from before its first step until after its last undo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The layout; 0 in releases that did not take devices over.
    #[serde(default)]
    pub(crate) version: u32,
    /// Ours; the kernel's device carries it as its backend identifier, lanes derive their ISID from
    /// it.
    pub(crate) id: Uuid,
    /// The volume's name here.
    pub(crate) volume: String,
    /// Cinder's UUID of the volume; none for a static target.
    pub(crate) volume_id: Option<String>,
    /// Cinder's UUID of the attachment, once reserved.
    pub(crate) attachment_id: Option<String>,
    /// How far it is. The name in the file is that of the first release.
    #[serde(rename = "step")]
    pub(crate) phase: Phase,
    /// Attachments that the volume had before ours: what is not among them and nameless may be ours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) before: Vec<String>,
    /// Another host's attachment that is being taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) theirs: Option<String>,
    /// What was done to have the volume, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) taken: Option<String>,
    /// Where it is, or is about to be, mounted.
    pub(crate) mountpoint: Option<PathBuf>,
    /// The device, once there is one.
    #[serde(default)]
    pub(crate) standing: Option<Standing>,
    /// The LUN takes writes of this host alone, for as long as it is attached.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) fenced: bool,
    /// The filesystem is, or is about to be, frozen for a snapshot.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) frozen: bool,
    /// Attached by hand, and hence kept.
    #[serde(default)]
    pub(crate) held: bool,
    /// Mounts that Docker has asked for and not given back, by the id it asked with.
    #[serde(default)]
    pub(crate) counts: BTreeMap<String, u32>,
}

/// How far an attachment is: what is done next, or was done last. `step` says what is done in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// Another host's attachment is being taken away.
    Taking,
    /// Cinder is being asked for an attachment; its id is not known yet.
    Reserving,
    /// The id is known, the export is being made.
    Connecting,
    /// Login and kernel device are being made.
    Exporting,
    /// Cinder is being told that we have it.
    Completing,
    /// In use.
    Attached,
    /// On the way back.
    Detaching,
}

/// The layout of an entry as it is written now.
pub(crate) const ENTRY_VERSION: u32 = 1;

impl Entry {
    /// An entry before its first step.
    pub(crate) fn new(volume: &str, volume_id: Option<&str>, phase: Phase) -> Self {
        Self {
            version: ENTRY_VERSION,
            id: Uuid::new_v4(),
            volume: volume.to_owned(),
            volume_id: volume_id.map(str::to_owned),
            attachment_id: None,
            phase,
            before: Vec::new(),
            theirs: None,
            taken: None,
            mountpoint: None,
            standing: None,
            fenced: false,
            frozen: false,
            held: false,
            counts: BTreeMap::new(),
        }
    }

    /// Whether the kernel may have a device of it that shall be served again. One that was on its way back too: what
    /// was written to it may not be on the target yet.
    pub(crate) fn is_standing(&self) -> bool {
        matches!(self.phase, Phase::Attached | Phase::Detaching) && self.standing.is_some()
    }

    /// What sysfs shows as the device's backend, and what udev names it by: `cinder-nbd:ENTRY:VOLUME:NAME`. VOLUME is
    /// empty for a static target, NAME (which may contain colons) for one that cannot be the name of a file. The same
    /// as long as the entry lives.
    pub(crate) fn identifier(&self) -> String {
        let volume_id = self.volume_id.as_deref().filter(|id| is_link_name(id));
        let name = Some(&*self.volume).filter(|name| is_link_name(name));
        format!(
            "cinder-nbd:{}:{}:{}",
            self.id,
            volume_id.unwrap_or_default(),
            name.unwrap_or_default()
        )
    }
}

/// Whether udev can make a link of this name as it is: one that it had to change might be another device's.
fn is_link_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.:=@_".contains(&byte);
    (1..=LINK_BYTES_MAX).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(is_plain)
}

/// With all else that is in an identifier, below the 255 bytes that the kernel's driver is given.
const LINK_BYTES_MAX: usize = 160;

/// The two directories.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    records: PathBuf,
    entries: PathBuf,
}

impl Store {
    /// Makes the directories beneath the state directory.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, Error> {
        let store = Self {
            records: state_dir.join("volumes"),
            entries: state_dir.join("attachments"),
        };
        for directory in [&store.records, &store.entries] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|error| Error::file("making the directory", directory, error))?;
        }
        Ok(store)
    }

    /// All records and entries; a file that cannot be understood is named in the log and left
    /// alone.
    pub(crate) fn load(&self) -> Result<(Vec<Record>, Vec<Entry>), Error> {
        let mut entries: Vec<Entry> = load(&self.entries)?;
        entries.retain(|entry| {
            let is_known = entry.version <= ENTRY_VERSION;
            if !is_known {
                tracing::error!(
                    volume = entry.volume,
                    id = %entry.id,
                    "left alone: its journal entry was written by a later release; install that one again"
                );
            }
            is_known
        });
        Ok((load(&self.records)?, entries))
    }

    /// Who we are to other hosts, beside our host name, which somebody else may have too: made once, and lost with
    /// the directory.
    pub(crate) fn installation(state_dir: &Path) -> Result<Uuid, Error> {
        let path = state_dir.join("installation");
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                if let Ok(id) = text.trim().parse() {
                    return Ok(id);
                }
                tracing::warn!(path = %path.display(), "not understood: made anew");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("reading", path, error)),
        }
        let id = Uuid::new_v4();
        write_durably(&path, format!("{id}\n").as_bytes())
            .map_err(|error| Error::file("writing", path, error))?;
        Ok(id)
    }

    /// Writes a record.
    pub(crate) async fn save_record(&self, record: &Record) -> Result<(), Error> {
        write(
            self.records.join(format!("{}.json", record.name)),
            to_json(record),
        )
        .await
    }

    /// Removes a record. Absent is done.
    pub(crate) async fn forget_record(&self, name: &str) -> Result<(), Error> {
        remove(self.records.join(format!("{name}.json"))).await
    }

    /// Writes an entry.
    pub(crate) async fn save_entry(&self, entry: &Entry) -> Result<(), Error> {
        write(
            self.entries.join(format!("{}.json", entry.id)),
            to_json(entry),
        )
        .await
    }

    /// Removes an entry. Absent is done.
    pub(crate) async fn forget_entry(&self, entry: &Entry) -> Result<(), Error> {
        remove(self.entries.join(format!("{}.json", entry.id))).await
    }
}

fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("these types have no map with odd keys");
    text.push(b'\n');
    text
}

fn load<T: DeserializeOwned>(directory: &Path) -> Result<Vec<T>, Error> {
    let failed = |error| Error::file("reading the directory", directory, error);
    let mut values = Vec::new();
    for file in std::fs::read_dir(directory).map_err(failed)? {
        let path = file.map_err(failed)?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = std::fs::read(&path).map_err(|error| Error::file("reading", &path, error))?;
        match serde_json::from_slice(&text) {
            Ok(value) => values.push(value),
            // One bad file must not keep all other volumes away.
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "left alone: not understood");
            }
        }
    }
    Ok(values)
}

pub(super) async fn write(path: PathBuf, text: Vec<u8>) -> Result<(), Error> {
    blocking(move || {
        write_durably(&path, &text).map_err(|error| Error::file("writing", path, error))
    })
    .await
}

pub(super) async fn remove(path: PathBuf) -> Result<(), Error> {
    blocking(move || remove_durably(&path).map_err(|error| Error::file("removing", path, error)))
        .await
}

/// Runs what blocks on a thread of its own, and awaits it.
async fn blocking<F>(work: F) -> Result<(), Error>
where
    F: FnOnce() -> Result<(), Error> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::step("writing the journal", error)),
    }
}

fn write_durably(path: &Path, text: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&beside, path)?;
    sync_directory(path)
}

fn remove_durably(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_directory(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or_else(|| Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn what_is_saved_is_loaded_and_what_is_forgotten_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let mut entry = Entry::new("v1", Some("u-1"), Phase::Reserving);
        store.save_entry(&entry).await.unwrap();
        entry.phase = Phase::Attached;
        entry.attachment_id = Some("a-1".to_owned());
        store.save_entry(&entry).await.unwrap();
        assert_eq!(store.load().unwrap(), (Vec::new(), vec![entry.clone()]));
        store.forget_entry(&entry).await.unwrap();
        store.forget_entry(&entry).await.unwrap();
        assert_eq!(store.load().unwrap(), (Vec::new(), Vec::new()));
    }

    #[tokio::test]
    async fn files_are_roots_alone_and_a_broken_one_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let entry = Entry::new("v1", None, Phase::Exporting);
        store.save_entry(&entry).await.unwrap();
        let entries = directory.path().join("attachments");
        std::fs::write(entries.join("broken.json"), "{").unwrap();
        std::fs::write(entries.join("half.new"), "{").unwrap();
        assert_eq!(store.load().unwrap().1, std::slice::from_ref(&entry));
        let file = entries.join(format!("{}.json", entry.id));
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            entries.metadata().unwrap().permissions().mode() & 0o777,
            0o700
        );
    }

    #[tokio::test]
    async fn an_entry_of_an_earlier_release_is_read_and_one_of_a_later_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let entries = directory.path().join("attachments");
        // As 0.1.0 wrote it.
        let earlier = r#"{"id": "0b0a58f2-98f5-4bbd-9a3e-0f3c4f6e2c11", "volume": "v1", "volume_id": "u-1",
            "attachment_id": "a-1", "step": "attached", "mountpoint": "/mnt/v1"}"#;
        std::fs::write(entries.join("earlier.json"), earlier).unwrap();
        let mut later = Entry::new("v2", None, Phase::Attached);
        later.version = ENTRY_VERSION + 1;
        store.save_entry(&later).await.unwrap();
        let found = store.load().unwrap().1;
        assert_eq!(found.len(), 1);
        assert!(!found[0].is_standing());
        assert_eq!(
            (found[0].volume.as_str(), found[0].phase),
            ("v1", Phase::Attached)
        );
    }

    #[test]
    fn the_identifier_names_entry_volume_and_name() {
        let id = Uuid::new_v4().to_string();
        let entry = Entry::new("data_1", Some(&id), Phase::Exporting);
        assert_eq!(
            entry.identifier(),
            format!("cinder-nbd:{}:{id}:data_1", entry.id)
        );
        let iqn = "iqn.2010-10.org.example:v1-lun-1";
        let entry = Entry::new(iqn, None, Phase::Exporting);
        assert_eq!(
            entry.identifier(),
            format!("cinder-nbd:{}::{iqn}", entry.id)
        );
    }

    #[test]
    fn a_name_that_is_no_link_is_left_out_and_the_rest_fits_the_kernel() {
        let long = "x".repeat(161);
        for name in [
            "", ".", "../etc", "a/b", "a b", "a\nb", "\u{e4}", "$x", &long,
        ] {
            let entry = Entry::new(name, None, Phase::Exporting);
            let expected = format!("cinder-nbd:{}::", entry.id);
            assert_eq!(entry.identifier(), expected, "{name:?}");
        }
        let id = Uuid::new_v4().to_string();
        let longest = Entry::new(&long[1..], Some(&id), Phase::Exporting);
        assert!(longest.identifier().len() <= 255);
        assert!(longest.identifier().ends_with('x'));
    }
}
