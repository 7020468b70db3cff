//! Snapshots: take, list, show, delete; a copy of the disk.
//!
//! Source: `cinder/api/v3/snapshots.py`, `cinder/api/v2/views/snapshots.py`; recorded exchanges with Cinder 21.3.1.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use serde_json::{Value, json};

use super::answer::Answer;
use super::faults::Fault;
use super::state::{World, new_id};
use super::{Call, cinder, clock, volumes};
use crate::target::Disk;

#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) id: String,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) volume: String,
    pub(super) size: u64,
    pub(super) status: String,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) created: SystemTime,
    pub(super) next: Option<(Instant, &'static str)>,
    pub(super) disk: Disk,
}

/// Answers what comes after `/snapshots`.
pub(super) fn answer(world: &mut World, call: &Call, path: &[&str]) -> Answer {
    match (call.method.as_str(), path) {
        ("GET", [] | ["detail"]) => list(world, call),
        ("POST", []) => create(world, call),
        ("GET", [id]) => match world.snapshot(id) {
            Some(snapshot) => Answer::json(200, json!({"snapshot": view(snapshot)})),
            None => absent(id),
        },
        ("DELETE", [id]) => delete(world, id),
        _ => cinder::not_found(),
    }
}

pub(super) fn absent(id: &str) -> Answer {
    Answer::fault(404, &format!("Snapshot {id} could not be found."))
}

fn list(world: &World, call: &Call) -> Answer {
    let matching = |snapshot: &&Snapshot| {
        let of_volume = call
            .query("volume_id")
            .is_none_or(|id| id == snapshot.volume);
        let named = call.query("name");
        of_volume && named.is_none_or(|name| snapshot.name.as_deref() == Some(name))
    };
    let mut found: Vec<Value> = world.snapshots.iter().filter(matching).map(view).collect();
    found.reverse();
    Answer::json(200, json!({"snapshots": found}))
}

fn create(world: &mut World, call: &Call) -> Answer {
    let body = call.json().unwrap_or_default();
    let wish = &body["snapshot"];
    let text = |key: &str| wish[key].as_str().map(str::to_owned);
    let Some(volume_id) = text("volume_id") else {
        return Answer::fault(400, "'volume_id' is a required property");
    };
    let is_forced = wish["force"].as_bool().unwrap_or_default();
    let Some(volume) = world.volume(&volume_id) else {
        return volumes::absent(&volume_id);
    };
    let may = volume.status == "available" || is_forced && volume.status == "in-use";
    if !may {
        return Answer::fault(
            400,
            &format!(
                "Invalid volume: Volume {volume_id} status must be available, but current status is: {}.",
                volume.status
            ),
        );
    }
    let (size, from) = (volume.size, volume.disk.clone());
    let Ok(disk) = Disk::temporary(size << 30) else {
        return Answer::fault(500, "no room for a snapshot");
    };
    if let Err(error) = from.copy_onto(&disk) {
        return Answer::fault(500, &format!("the volume cannot be copied: {error}"));
    }
    let metadata = match volumes::pairs(wish.get("metadata")) {
        Ok(metadata) => metadata,
        Err(answer) => return answer,
    };
    let hangs = world.faults.take(&Fault::CreateHangs);
    let fails = world.faults.take(&Fault::CreateFails);
    let status = if fails { "error" } else { "available" };
    let snapshot = Snapshot {
        id: new_id(),
        name: text("name"),
        description: text("description"),
        volume: volume_id,
        size,
        status: "creating".to_owned(),
        metadata,
        created: SystemTime::now(),
        next: (!hangs).then(|| (Instant::now() + world.settings.delay, status)),
        disk,
    };
    let answer = Answer::json(202, json!({"snapshot": view(&snapshot)}));
    world.snapshots.push(snapshot);
    answer
}

fn delete(world: &mut World, id: &str) -> Answer {
    let due = Instant::now() + world.settings.delay;
    let Some(snapshot) = world.snapshots.iter_mut().find(|one| one.id == id) else {
        return absent(id);
    };
    if !["available", "error"].contains(&snapshot.status.as_str()) {
        return Answer::fault(
            400,
            "Invalid snapshot: Snapshot status must be available or error.",
        );
    }
    "deleting".clone_into(&mut snapshot.status);
    snapshot.next = Some((due, ""));
    Answer::empty(202)
}

fn view(snapshot: &Snapshot) -> Value {
    json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "description": snapshot.description,
        "volume_id": snapshot.volume,
        "status": snapshot.status,
        "size": snapshot.size,
        "metadata": snapshot.metadata,
        "created_at": clock::text(snapshot.created, true),
        "updated_at": null,
        "group_snapshot_id": null,
        "os-extended-snapshot-attributes:progress": "100%",
    })
}
