//! What is left over of us: found, named, and on request removed.
//!
//! ```text
//!  where                       ours, if                                     left over, if
//!  journal                     it is in our state directory                 no daemon runs, and no device of it stands
//!  volumes' attachments        they bear our tag (host and state directory) no entry has that volume
//!  volumes' reservations       the volume has our tag, and no other host's  no entry has that volume
//!  volumes' metadata           the tag's value is us; the fence's key is us no entry has that volume
//!  kernel devices              our identifier, and a row of ours or none    no entry has that identifier
//!  mounts and directories      they are beneath our mount directory         no entry names them
//!  kept addresses              they are in our runtime directory            no entry has that id
//! ```
//!
//! A room of its own because it must be able to work without the journal, which may be what was lost.
//!
//! Invariants:
//! 1. What is outside is looked at first and the journal last: an entry is written before what it is for, so what is
//!    begun meanwhile by a daemon that runs is never taken for a leftover.
//! 2. What may be another daemon's, another host's or another program's is named and left alone.
//! 3. A device that somebody uses is left alone, and so is the attachment by which it is here.
//! 4. It needs no journal of its own: what it has not ended it finds again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Settings;
use super::cloud::Cloud;
use super::context::{ATTACHING, Context, FENCED};
use super::engine::{lock, open};
use super::error::{Error, line};
use super::journal::{Entry, Phase};
use super::platform::Platform;
use super::recover;
use super::takeover;
use crate::cinder::Volume;

/// One thing that is left over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Of which kind.
    pub kind: FindingKind,
    /// Which: an id, a device, a path.
    pub what: String,
    /// The volume it belongs to, by the name or id that is known.
    pub volume: Option<String>,
    /// What a repair does about it, or what somebody can do.
    pub remedy: String,
    /// A repair does something about it.
    pub is_repairable: bool,
    /// What became of the repair: none if none was asked for; an error in one line.
    pub outcome: Option<Result<(), String>>,
}

/// Kinds of leftovers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FindingKind {
    /// A journal entry that no daemon goes on with.
    Entry,
    /// An attachment with our tag.
    Attachment,
    /// A reservation that was never exported.
    Reservation,
    /// Our tag in a volume's metadata.
    Tag,
    /// Our persistent reservation, and the mark that says so.
    Fence,
    /// A device of the kernel.
    Device,
    /// A mount beneath our directory.
    Mount,
    /// A directory in which nothing is mounted.
    Directory,
    /// An address, with its secret.
    Address,
    /// Cinder could not be asked.
    Unknown,
}

impl std::fmt::Display for FindingKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Entry => "journal entry",
            Self::Attachment => "attachment",
            Self::Reservation => "reservation",
            Self::Tag => "tag",
            Self::Fence => "fence",
            Self::Device => "device",
            Self::Mount => "mount",
            Self::Directory => "directory",
            Self::Address => "address",
            Self::Unknown => "unknown",
        })
    }
}

/// Looks, and repairs if that is wished, where no daemon runs: its lock is taken meanwhile.
///
/// # Errors
/// A daemon runs; a directory of ours cannot be read.
pub async fn examine_alone(
    settings: Settings,
    cloud: Arc<dyn Cloud>,
    platform: Arc<dyn Platform>,
    is_repaired: bool,
) -> Result<Vec<Finding>, Error> {
    let _lock = lock(&settings)?;
    let cx = open(settings, cloud, platform)?;
    examine(&cx, false, is_repaired).await
}

/// Looks, and repairs if that is wished.
pub(super) async fn examine(
    cx: &Context,
    has_daemon: bool,
    is_repaired: bool,
) -> Result<Vec<Finding>, Error> {
    let seen = Seen::of(cx).await?;
    let (_, entries) = cx.out.load()?;
    let mut findings = Vec::new();
    // From the top down, each floor when the one above it is dealt with: mounts, devices, attachments.
    let mut found = Vec::new();
    if !has_daemon {
        for entry in &entries {
            found.push(of_entry(cx, entry).await?);
        }
    }
    found.extend(of_places(&seen, &entries));
    end(cx, found, is_repaired, &mut findings).await;
    let mut found = Vec::new();
    for (device, identifier) in &seen.devices {
        if !entries
            .iter()
            .any(|entry| entry.identifier() == *identifier)
        {
            found.push(of_device(cx, device, identifier, &seen).await);
        }
    }
    end(cx, found, is_repaired, &mut findings).await;
    let mut found = Vec::new();
    if let Err(error) = &seen.volumes {
        found.push(Leftover::new(FindingKind::Unknown, "Cinder", None, error));
    }
    let busy: BTreeSet<&str> = entries
        .iter()
        .filter_map(|entry| entry.volume_id.as_deref())
        .collect();
    for volume in seen.volumes.iter().flatten() {
        if !busy.contains(volume.id.as_str()) {
            found.extend(of_volume(cx, volume).await);
        }
    }
    end(cx, found, is_repaired, &mut findings).await;
    Ok(findings)
}

/// Repairs if that is wished, and keeps what is to be told.
async fn end(cx: &Context, found: Vec<Leftover>, is_repaired: bool, told: &mut Vec<Finding>) {
    for Leftover { mut finding, act } in found {
        if let (true, Some(act)) = (is_repaired, act) {
            let done = repair(cx, act).await;
            if let Err(error) = &done {
                tracing::warn!(what = finding.what, error = line(error), "not repaired");
            }
            finding.outcome = Some(done.map_err(|error| line(&error)));
        }
        told.push(finding);
    }
}

/// A finding, and what there is to do.
struct Leftover {
    finding: Finding,
    act: Option<Act>,
}

/// A repair.
enum Act {
    Undo(Box<Entry>),
    DeleteRow { id: String, volume_id: String },
    Untag { volume_id: String, key: String },
    LiftFence { volume_id: String },
    Disconnect { device: PathBuf, identifier: String },
    Unmount(PathBuf),
    RemoveDirectory(PathBuf),
    ForgetAddress(Uuid),
}

impl Leftover {
    fn new(kind: FindingKind, what: impl Into<String>, volume: Option<&str>, remedy: &str) -> Self {
        Self {
            finding: Finding {
                kind,
                what: what.into(),
                volume: volume.map(str::to_owned),
                remedy: remedy.to_owned(),
                is_repairable: false,
                outcome: None,
            },
            act: None,
        }
    }

    fn with(mut self, act: Act) -> Self {
        self.finding.is_repairable = true;
        self.act = Some(act);
        self
    }
}

/// All that is outside, seen before the journal is read.
struct Seen {
    /// Or why they are not known.
    volumes: Result<Vec<Volume>, String>,
    devices: Vec<(PathBuf, String)>,
    mounts: Vec<PathBuf>,
    directories: Vec<PathBuf>,
    addresses: Vec<Uuid>,
}

impl Seen {
    async fn of(cx: &Context) -> Result<Self, Error> {
        let volumes = if cx.out.has_cloud() {
            let asked = cx.out.all_volumes().await;
            asked.map_err(|cause| {
                format!(
                    "could not be asked, so what is left there is not known: {}",
                    line(&*cause)
                )
            })
        } else {
            Ok(Vec::new())
        };
        let mount_dir = &cx.settings.mount_dir;
        let addresses = cx.out.kept_addresses();
        let devices = recover::our_devices(cx).await?;
        let mounts = cx.out.mounts_below(mount_dir).await;
        Ok(Self {
            volumes,
            devices,
            mounts: mounts
                .map_err(|cause| Error::step("asking the kernel for its mounts", cause))?,
            directories: directories_in(mount_dir)?,
            addresses,
        })
    }

    fn volume(&self, id: &str) -> Option<&Volume> {
        self.volumes.iter().flatten().find(|volume| volume.id == id)
    }
}

async fn of_entry(cx: &Context, entry: &Entry) -> Result<Leftover, Error> {
    let what = format!("{} ({:?})", entry.id, entry.phase);
    let leftover = |remedy| Leftover::new(FindingKind::Entry, &*what, Some(&entry.volume), remedy);
    let device = recover::find_device(cx, entry).await?;
    Ok(match device {
        Some(_) if entry.is_standing() => {
            leftover("its device waits for a daemon: start it, 'cinder-nbd detach' takes it off")
        }
        _ => leftover("what was begun is undone, in the kernel and in Cinder")
            .with(Act::Undo(Box::new(entry.clone()))),
    })
}

async fn of_volume(cx: &Context, volume: &Volume) -> Vec<Leftover> {
    let mut found = Vec::new();
    let (name, id) = (Some(volume.label()), &volume.id);
    let tags = volume.metadata.iter();
    let tags = tags.filter(|(key, _)| key.starts_with(ATTACHING));
    let (ours, others): (Vec<_>, Vec<_>) = tags.partition(|(_, host)| **host == cx.name());
    let tag = cx.tag();
    // What is fenced by us is opened by an export, so that comes before the rows go.
    let key = cx.fence_mark();
    if volume.metadata.get(FENCED) == Some(&key) {
        let fence = |remedy| Leftover::new(FindingKind::Fence, &*key, name, remedy);
        found.push(if volume.attachments.is_empty() {
            fence("nobody has the volume; whoever attaches it next with cinder-nbd ends it")
        } else {
            let volume_id = id.clone();
            fence("it is ended: the LUN takes writes again of whoever has it")
                .with(Act::LiftFence { volume_id })
        });
    }
    for row in &volume.attachments {
        if row.device.as_deref() == Some(&*tag) {
            let remedy = "it is deleted: no journal entry of ours has the volume";
            let act = Act::DeleteRow {
                id: row.attachment_id.clone(),
                volume_id: id.clone(),
            };
            let what = &*row.attachment_id;
            found.push(Leftover::new(FindingKind::Attachment, what, name, remedy).with(act));
        }
    }
    if !ours.is_empty() && volume.status != "available" {
        let rows = takeover::holders(cx, volume.label(), id).await;
        let known = |row: &str| {
            volume
                .attachments
                .iter()
                .any(|one| one.attachment_id == row)
        };
        for row in rows.unwrap_or_default() {
            if known(&row.attachment_id) {
                continue;
            }
            let what = format!("{} ({})", row.attachment_id, row.status);
            found.push(if others.is_empty() {
                let remedy = "it is deleted: our tag says that we began it";
                Leftover::new(FindingKind::Reservation, what, name, remedy).with(Act::DeleteRow {
                    id: row.attachment_id,
                    volume_id: id.clone(),
                })
            } else {
                let remedy = "it may be that of another host, whose tag is there too: left alone";
                Leftover::new(FindingKind::Reservation, what, name, remedy)
            });
        }
    }
    for (key, _) in ours {
        let remedy = "it is taken out of the volume's metadata";
        let act = Act::Untag {
            volume_id: id.clone(),
            key: key.clone(),
        };
        found.push(Leftover::new(FindingKind::Tag, &**key, name, remedy).with(act));
    }
    found
}

async fn of_device(cx: &Context, device: &Path, identifier: &str, seen: &Seen) -> Leftover {
    let mut parts = identifier.splitn(4, ':').skip(2);
    let (volume_id, name) = (parts.next().unwrap_or_default(), parts.next());
    let name = name.filter(|name| !name.is_empty()).unwrap_or(volume_id);
    let leftover = |remedy: &str| {
        let what = format!("{} ({identifier})", device.display());
        Leftover::new(FindingKind::Device, what, Some(name), remedy)
    };
    if volume_id.is_empty() {
        return leftover(
            "it is of a static target, so nothing says whose it is: if no other cinder-nbd serves it, 'nbd-client -d'",
        );
    }
    if seen.volumes.is_err() {
        return leftover("whose it is cannot be said while Cinder cannot be asked: left alone");
    }
    let rows = seen.volume(volume_id).map(|volume| &volume.attachments);
    let tag = cx.tag();
    let is_others = |row: &crate::cinder::VolumeAttachment| row.device.as_deref() != Some(&*tag);
    if rows.is_some_and(|rows| rows.iter().any(is_others)) {
        return leftover("Cinder says that its volume is another's, so it may be too: left alone");
    }
    let users = cx.out.users(device, Path::new("")).await;
    let is_free = cx.out.is_free(device).await.unwrap_or(false);
    if !is_free || !users.is_ok_and(|users| users.is_empty()) {
        return leftover(
            "somebody uses it, or it is still mounted: left alone as long as that is so",
        );
    }
    leftover("it is disconnected; nobody uses it").with(Act::Disconnect {
        device: device.to_owned(),
        identifier: identifier.to_owned(),
    })
}

fn of_places(seen: &Seen, entries: &[Entry]) -> Vec<Leftover> {
    let mut found = Vec::new();
    let is_known = |at: &Path| {
        entries
            .iter()
            .any(|entry| entry.mountpoint.as_deref() == Some(at))
    };
    for at in seen.mounts.iter().filter(|at| !is_known(at)) {
        let remedy = "it is unmounted, unless something on it is in use";
        let what = at.display().to_string();
        found.push(
            Leftover::new(FindingKind::Mount, what, None, remedy).with(Act::Unmount(at.clone())),
        );
    }
    let is_mounted = |at: &PathBuf| seen.mounts.iter().any(|mount| mount.starts_with(at));
    for at in &seen.directories {
        if !is_known(at) && !is_mounted(at) {
            let remedy = "it is removed if it is empty";
            let act = Act::RemoveDirectory(at.clone());
            let what = at.display().to_string();
            found.push(Leftover::new(FindingKind::Directory, what, None, remedy).with(act));
        }
    }
    for id in &seen.addresses {
        if !entries.iter().any(|entry| entry.id == *id) {
            let remedy = "it is removed: nobody can log in with it any more";
            let act = Act::ForgetAddress(*id);
            found.push(Leftover::new(FindingKind::Address, id.to_string(), None, remedy).with(act));
        }
    }
    found
}

async fn repair(cx: &Context, act: Act) -> Result<(), Error> {
    match act {
        Act::Undo(entry) => recover::reclaim(cx, *entry)
            .await
            .map_err(|(_, error)| error),
        Act::DeleteRow { id, volume_id } => {
            if let Some(device) = recover::device_of_volume(cx, &volume_id).await? {
                return Err(Error::Invalid {
                    what: format!("{} is still attached by it", device.display()),
                });
            }
            let deleted = cx.out.delete_attachment(&id).await;
            deleted.map_err(|cause| Error::step(format!("deleting attachment {id}"), cause))
        }
        Act::Untag { volume_id, key } => {
            let untagged = cx.out.untag(&volume_id, &key).await;
            untagged.map_err(|cause| Error::step(format!("removing {key}"), cause))
        }
        Act::LiftFence { volume_id } => {
            // As if a take had died: that is what it was.
            let entry = Entry::new(&volume_id, Some(&volume_id), Phase::Taking);
            takeover::step_back(cx, &entry).await
        }
        Act::Disconnect { device, identifier } => {
            if !cx.out.is_free(&device).await.unwrap_or(false) {
                return Err(Error::Invalid {
                    what: format!("{} is in use by now", device.display()),
                });
            }
            let gone = cx.out.reclaim(&identifier, None).await;
            gone.map_err(|cause| Error::step(format!("disconnecting {}", device.display()), cause))
        }
        Act::Unmount(at) => {
            let (_, entries) = cx.out.load()?;
            if entries
                .iter()
                .any(|entry| entry.mountpoint.as_ref() == Some(&at))
            {
                return Ok(());
            }
            let gone = cx.out.unmount(&at, false).await;
            gone.map_err(|cause| Error::step(format!("unmounting {}", at.display()), cause))
        }
        Act::RemoveDirectory(at) => match std::fs::remove_dir(&at) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::file("removing the directory", at, error)),
        },
        Act::ForgetAddress(id) => cx.out.forget_address(id).await,
    }
}

/// None if there is no such directory yet.
fn directories_in(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |error| Error::file("reading the directory", directory, error);
    let files = match std::fs::read_dir(directory) {
        Ok(files) => files,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for file in files {
        let file = file.map_err(failed)?;
        if file.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(file.path());
        }
    }
    found.sort_unstable();
    Ok(found)
}
