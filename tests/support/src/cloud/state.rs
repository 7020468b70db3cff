//! What the cloud holds: accounts, tokens, volumes, attachments, messages; and what time does to them.
//!
//! Invariants:
//! 1. A volume's status follows from its attachments wherever Cinder derives it so.
//! 2. A volume is exported from the connection of its first attachment to the deletion of its last.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde_json::Value;
use uuid::Uuid;

use super::faults::Faults;
use super::snapshots::Snapshot;
use super::transfers::Transfer;
use super::{Recorded, Settings};
use crate::target::{Disk, Export, Target};

#[derive(Debug)]
pub(super) struct World {
    pub(super) settings: Settings,
    /// `http://127.0.0.1:PORT`.
    pub(super) base: String,
    pub(super) target: Arc<Target>,
    pub(super) faults: Faults,
    pub(super) user_id: String,
    pub(super) project_id: String,
    pub(super) credential_id: String,
    pub(super) tokens: BTreeMap<String, Token>,
    /// In order of creation.
    pub(super) volumes: Vec<Volume>,
    pub(super) attachments: Vec<Attachment>,
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) transfers: Vec<Transfer>,
    pub(super) messages: Vec<Message>,
    pub(super) recorded: Vec<Recorded>,
    pub(super) types: Vec<(String, String, bool)>,
}

#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) expires: SystemTime,
    /// Unscoped tokens have none.
    pub(super) project: Option<String>,
    pub(super) credential: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Volume {
    pub(super) id: String,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) size: u64,
    pub(super) status: String,
    pub(super) kind: String,
    pub(super) zone: String,
    pub(super) multiattach: bool,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) snapshot: Option<String>,
    pub(super) source: Option<String>,
    pub(super) created: SystemTime,
    pub(super) updated: Option<SystemTime>,
    /// The status that comes by itself, and when; the empty one is the end.
    pub(super) next: Option<(Instant, &'static str)>,
    pub(super) user: String,
    pub(super) secret: String,
    pub(super) disk: Disk,
}

impl Volume {
    pub(super) fn iqn(&self) -> String {
        format!("iqn.2010-10.org.openstack:volume-{}", self.id)
    }

    pub(super) fn set_status(&mut self, status: &str) {
        status.clone_into(&mut self.status);
        self.updated = Some(SystemTime::now());
    }
}

#[derive(Clone, Debug)]
pub(super) struct Attachment {
    pub(super) id: String,
    pub(super) volume: String,
    pub(super) status: &'static str,
    pub(super) mode: Option<String>,
    pub(super) instance: Option<String>,
    pub(super) connector: Option<Value>,
    pub(super) attached: Option<SystemTime>,
    /// The driver failed: `connection_info` is null.
    pub(super) broken: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) volume: String,
    pub(super) event: &'static str,
    pub(super) text: &'static str,
    pub(super) created: SystemTime,
}

impl World {
    pub(super) fn new(settings: Settings, base: String, target: Arc<Target>) -> Self {
        Self {
            settings,
            base,
            target,
            faults: Faults::default(),
            user_id: simple_id(),
            project_id: simple_id(),
            credential_id: simple_id(),
            tokens: BTreeMap::new(),
            volumes: Vec::new(),
            attachments: Vec::new(),
            snapshots: Vec::new(),
            transfers: Vec::new(),
            messages: Vec::new(),
            recorded: Vec::new(),
            types: vec![
                (new_id(), "filetgt".into(), false),
                (new_id(), "multi".into(), true),
                (new_id(), "__DEFAULT__".into(), false),
            ],
        }
    }

    /// Lets what is due happen.
    pub(super) fn settle(&mut self, now: Instant) {
        for volume in &mut self.volumes {
            if let Some((_, status)) = volume.next.take_if(|(due, _)| *due <= now) {
                volume.set_status(status);
            }
        }
        self.volumes.retain(|volume| !volume.status.is_empty());
        for snapshot in &mut self.snapshots {
            if let Some((_, status)) = snapshot.next.take_if(|(due, _)| *due <= now) {
                status.clone_into(&mut snapshot.status);
            }
        }
        self.snapshots
            .retain(|snapshot| !snapshot.status.is_empty());
    }

    pub(super) fn volume(&mut self, id: &str) -> Option<&mut Volume> {
        self.volumes.iter_mut().find(|volume| volume.id == id)
    }

    pub(super) fn snapshot(&self, id: &str) -> Option<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.id == id)
    }

    pub(super) fn attachment(&mut self, id: &str) -> Option<&mut Attachment> {
        self.attachments
            .iter_mut()
            .find(|attachment| attachment.id == id)
    }

    pub(super) fn attachments_of<'a>(
        &'a self,
        volume: &'a str,
    ) -> impl Iterator<Item = &'a Attachment> + 'a {
        self.attachments
            .iter()
            .filter(move |attachment| attachment.volume == volume)
    }

    /// Status after a change of its attachments (`cinder/db`: attached before attaching before reserved).
    pub(super) fn recompute(&mut self, id: &str) {
        let has = |status: &str| self.attachments_of(id).any(|one| one.status == status);
        let status = if has("attached") && !has("attaching") {
            "in-use"
        } else if has("attaching") {
            "attaching"
        } else if has("reserved") {
            "reserved"
        } else {
            "available"
        };
        let mut export = None;
        if let Some(volume) = self.volume(id) {
            volume.set_status(status);
            export = Some(volume.iqn());
        }
        let connected = self.attachments_of(id).any(|one| one.connector.is_some());
        if let Some(iqn) = export.filter(|_| !connected) {
            self.target.remove(&iqn);
        }
    }

    /// Exports a volume unless it is already, each time with the same credentials, as Cinder with tgt does: whoever was
    /// let in once can log in again.
    pub(super) fn export(&mut self, id: &str) {
        let target = Arc::clone(&self.target);
        if let Some(volume) = self.volume(id) {
            let iqn = volume.iqn();
            if !target.targets().contains(&iqn) {
                let export = Export::new(&iqn)
                    .chap(&volume.user, &volume.secret)
                    .lun(EXPORTED_LUN, volume.disk.clone());
                target.add(export);
            }
        }
    }
}

/// A UUID as Cinder writes it.
pub(super) fn new_id() -> String {
    Uuid::new_v4().to_string()
}

/// A UUID as Keystone writes it.
pub(super) fn simple_id() -> String {
    Uuid::new_v4().simple().to_string()
}

/// LUN of every exported volume, as tgt numbers its first disk.
pub(super) const EXPORTED_LUN: u16 = 1;
