//! Volumes: create, list, show, change, delete, and the statuses between.
//!
//! Source: recorded exchanges with Cinder 21.3.1 and 29.0.0.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::faults::Fault;
use super::state::{EXPORTED_LUN, Message, Volume, World, new_id};
use super::{Call, cinder, clock};
use crate::target::Disk;

/// Answers what comes after `/volumes`.
pub(super) fn answer(world: &mut World, call: &Call, path: &[&str]) -> Answer {
    match (call.method.as_str(), path) {
        ("GET", []) => list(world, call, false),
        ("GET", ["detail"]) => list(world, call, true),
        ("POST", []) => create(world, call),
        (method, [id, rest @ ..]) => {
            if world.volume(id).is_none() {
                return absent(id);
            }
            match (method, rest) {
                ("GET", []) => show(world, id),
                ("PUT", []) => update(world, call, id),
                ("DELETE", []) => delete(world, id),
                ("POST", ["action"]) => act(world, call, id),
                (_, ["metadata", rest @ ..]) => metadata(world, call, id, rest),
                _ => cinder::not_found(),
            }
        }
        _ => cinder::not_found(),
    }
}

pub(super) fn absent(id: &str) -> Answer {
    Answer::fault(404, &format!("Volume {id} could not be found."))
}

fn show(world: &World, id: &str) -> Answer {
    let volume = world.volumes.iter().find(|volume| volume.id == id);
    volume.map_or_else(
        || absent(id),
        |volume| Answer::json(200, json!({"volume": view(world, volume, false)})),
    )
}

fn list(world: &World, call: &Call, detail: bool) -> Answer {
    let matching = world.volumes.iter().filter(|volume| {
        let name = call
            .query("name")
            .is_none_or(|name| volume.name.as_deref() == Some(name));
        let status = call
            .query("status")
            .is_none_or(|status| volume.status == status);
        let metadata = call
            .query("metadata")
            .is_none_or(|wanted| has_metadata(volume, wanted));
        name && status && metadata
    });
    // Newest first, as Cinder sorts when not told otherwise.
    let mut found: Vec<&Volume> = matching.collect();
    found.reverse();
    if let Some(marker) = call.query("marker") {
        match found.iter().position(|volume| volume.id == marker) {
            Some(at) => drop(found.drain(..=at)),
            None => return Answer::fault(400, &format!("marker [{marker}] not found")),
        }
    }
    let asked = call.query("limit").and_then(|limit| limit.parse().ok());
    let most = asked.unwrap_or(usize::MAX).min(world.settings.page_max);
    let more = found.len() > most;
    found.truncate(most);
    let views: Vec<Value> = found
        .iter()
        .map(|volume| {
            if detail {
                view(world, volume, false)
            } else {
                json!({"id": volume.id, "name": volume.name, "links": links(world, volume)})
            }
        })
        .collect();
    let mut body = json!({"volumes": views});
    if let Some(last) = found.last().filter(|_| more) {
        let mut href = format!("{}/volume/v3/{}/volumes", world.base, world.project_id);
        href.push_str(if detail { "/detail?" } else { "?" });
        for (key, value) in call.query.iter().filter(|(key, _)| key != "marker") {
            href.extend([key, "=", &encoded(value), "&"]);
        }
        href.extend(["marker=", &last.id]);
        body["volumes_links"] = json!([{"rel": "next", "href": href}]);
    }
    Answer::json(200, body)
}

/// The filter is a Python dictionary in text.
fn has_metadata(volume: &Volume, wanted: &str) -> bool {
    let wanted: Map<String, Value> =
        serde_json::from_str(&wanted.replace('\'', "\"")).unwrap_or_default();
    wanted
        .iter()
        .all(|(key, value)| volume.metadata.get(key).map(String::as_str) == value.as_str())
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_' | b'.' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

fn create(world: &mut World, call: &Call) -> Answer {
    let Some(body) = call.json() else {
        return Answer::fault(400, "Malformed request body");
    };
    let Some(wish) = body["volume"].as_object() else {
        return Answer::fault(400, MALFORMED);
    };
    let volume = match checked(world, wish) {
        Ok(volume) => volume,
        Err(answer) => return answer,
    };
    let answer = Answer::json(202, json!({"volume": view(world, &volume, true)}));
    world.volumes.push(volume);
    answer
}

fn checked(world: &mut World, wish: &Map<String, Value>) -> Result<Volume, Answer> {
    if let Some(key) = wish.keys().find(|key| !KEYS.contains(&key.as_str())) {
        let shown = Value::Object(wish.clone());
        return Err(Answer::fault(
            400,
            &format!(
                "Invalid input for field/attribute volume. Value: {shown}. Additional properties are not allowed ('{key}' was unexpected)"
            ),
        ));
    }
    let text = |key: &str| wish.get(key).and_then(Value::as_str).map(str::to_owned);
    let name = text("name");
    let length = name.as_ref().map_or(0, String::len);
    if length > 255 {
        return Err(Answer::fault(
            400,
            &format!("Invalid input received: name has {length} characters, more than 255."),
        ));
    }
    let (source, snapshot) = (text("source_volid"), text("snapshot_id"));
    let origin = origin(world, source.as_deref(), snapshot.as_deref())?;
    let (size, disk) = sized(world, wish, origin)?;
    let kind = text("volume_type").unwrap_or_else(|| "filetgt".into());
    let Some((_, kind, multiattach)) = world
        .types
        .iter()
        .find(|(id, name, _)| *id == kind || *name == kind)
        .cloned()
    else {
        return Err(Answer::fault(
            404,
            &format!("Volume type with name {kind} could not be found."),
        ));
    };
    let zone = text("availability_zone").unwrap_or_else(|| "nova".into());
    if zone != "nova" {
        return Err(Answer::fault(
            400,
            &format!("Availability zone '{zone}' is invalid."),
        ));
    }
    let metadata = pairs(wish.get("metadata"))?;
    let id = new_id();
    let next = outcome(world, &id);
    Ok(Volume {
        id,
        name,
        description: text("description"),
        size,
        status: "creating".into(),
        kind,
        zone,
        multiattach,
        metadata,
        snapshot,
        source,
        created: SystemTime::now(),
        updated: None,
        next,
        user: crate::random::letters(20),
        secret: crate::random::letters(16),
        disk,
    })
}

/// What becomes of a new volume, and when.
fn outcome(world: &mut World, id: &str) -> Option<(Instant, &'static str)> {
    let due = Instant::now() + world.settings.delay;
    if world.faults.take(&Fault::CreateHangs) {
        return None;
    }
    if !world.faults.take(&Fault::CreateFails) {
        return Some((due, "available"));
    }
    world.messages.push(Message {
        volume: id.to_owned(),
        event: "VOLUME_VOLUME_008_012",
        text: "create volume from backend storage:Driver failed to create the volume.",
        created: SystemTime::now(),
    });
    Some((due, "error"))
}

/// Size and disk of what a volume is made from.
fn origin(
    world: &World,
    source: Option<&str>,
    snapshot: Option<&str>,
) -> Result<Option<(u64, Disk)>, Answer> {
    if let Some(id) = snapshot {
        let found = world.snapshot(id);
        let found = found.ok_or_else(|| super::snapshots::absent(id))?;
        return Ok(Some((found.size, found.disk.clone())));
    }
    let Some(id) = source else { return Ok(None) };
    let found = world.volumes.iter().find(|volume| volume.id == id);
    let found = found.ok_or_else(|| absent(id))?;
    Ok(Some((found.size, found.disk.clone())))
}

/// Size in GiB within quota, and a disk of that size, filled from a source if there is one.
fn sized(
    world: &World,
    wish: &Map<String, Value>,
    origin: Option<(u64, Disk)>,
) -> Result<(u64, Disk), Answer> {
    let least = origin.as_ref().map(|(size, _)| *size);
    let size = size(wish, least)?;
    if let Some(least) = least.filter(|least| *least > size) {
        let message = format!(
            "Invalid input received: Volume size '{size}GB' cannot be smaller than original size '{least}GB'. They must be >= original size."
        );
        return Err(Answer::fault(400, &message));
    }
    let (count, used) = (
        world.volumes.len(),
        world.volumes.iter().map(|one| one.size).sum::<u64>(),
    );
    let settings = &world.settings;
    if used + size > settings.quota_gigabytes {
        return Err(Answer::fault(
            413,
            &format!(
                "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed gigabytes quota. Requested {size}G, quota is {}G and {used}G has been consumed.",
                settings.quota_gigabytes
            ),
        ));
    }
    if count >= settings.quota_volumes {
        return Err(Answer::fault(
            413,
            &format!(
                "VolumeLimitExceeded: Maximum number of volumes allowed ({}) exceeded for quota 'volumes'.",
                settings.quota_volumes
            ),
        ));
    }
    let disk = Disk::temporary(size << 30)
        .map_err(|error| Answer::fault(500, &format!("no room for a volume: {error}")))?;
    if let Some((_, from)) = origin {
        from.copy_onto(&disk).map_err(|error| {
            Answer::fault(500, &format!("the source cannot be copied: {error}"))
        })?;
    }
    Ok((size, disk))
}

/// The wished size, or that of the source.
fn size(wish: &Map<String, Value>, source: Option<u64>) -> Result<u64, Answer> {
    let Some(given) = wish.get("size").filter(|given| !given.is_null()) else {
        return source.ok_or_else(|| Answer::fault(400, MALFORMED));
    };
    let shown = given
        .as_str()
        .map_or_else(|| given.to_string(), str::to_owned);
    match shown.parse::<u64>() {
        Ok(0) => Err(Answer::fault(
            400,
            "Invalid input for field/attribute size. Value: 0. 0 is less than the minimum of 1",
        )),
        Ok(size) => Ok(size),
        Err(_) => Err(Answer::fault(
            400,
            &format!(
                "Invalid input for field/attribute size. Value: {shown}. '{shown}' does not match '^[0-9]+$'"
            ),
        )),
    }
}

fn update(world: &mut World, call: &Call, id: &str) -> Answer {
    let body = call.json().unwrap_or_default();
    let metadata = match body["volume"]
        .get("metadata")
        .map(|given| pairs(Some(given)))
        .transpose()
    {
        Ok(metadata) => metadata,
        Err(answer) => return answer,
    };
    if let Some(volume) = world.volume(id) {
        for (key, place) in [
            ("name", &mut volume.name),
            ("description", &mut volume.description),
        ] {
            if let Some(text) = body["volume"][key].as_str() {
                *place = Some(text.to_owned());
            }
        }
        if let Some(metadata) = metadata {
            volume.metadata = metadata;
        }
        volume.updated = Some(SystemTime::now());
    }
    show(world, id)
}

fn delete(world: &mut World, id: &str) -> Answer {
    let attached = world.attachments_of(id).next().is_some();
    let has_snapshots = world.snapshots.iter().any(|one| one.volume == id);
    let failing = world.faults.take(&Fault::DeleteFails);
    let delay = world.settings.delay;
    if let Some(volume) = world.volume(id) {
        let ready = matches!(
            volume.status.as_str(),
            "available" | "error" | "error_restoring" | "error_extending" | "error_managing"
        );
        if !ready || attached || has_snapshots {
            return Answer::fault(400, NOT_DELETABLE);
        }
        volume.set_status("deleting");
        volume.next = Some((
            Instant::now() + delay,
            if failing { "error_deleting" } else { "" },
        ));
    }
    Answer::empty(202)
}

fn act(world: &mut World, call: &Call, id: &str) -> Answer {
    let body = call.json().unwrap_or_default();
    if let Some(wish) = body.get("os-extend") {
        return extend(world, id, wish["new_size"].as_u64().unwrap_or_default());
    }
    let name = body
        .as_object()
        .and_then(|body| body.keys().next().cloned())
        .unwrap_or_default();
    Answer::fault(400, &format!("There is no such action: {name}"))
}

/// The disk grows at once; `extending` lasts as long as creating does.
fn extend(world: &mut World, id: &str, size: u64) -> Answer {
    let used: u64 = world.volumes.iter().map(|one| one.size).sum();
    let (quota, due) = (
        world.settings.quota_gigabytes,
        Instant::now() + world.settings.delay,
    );
    let target = std::sync::Arc::clone(&world.target);
    let Some(volume) = world.volume(id) else {
        return absent(id);
    };
    let before = match volume.status.as_str() {
        "available" => "available",
        "in-use" => "in-use",
        status => {
            let message =
                format!("Invalid volume: Volume {id} status must be available, but is {status}.");
            return Answer::fault(400, &message);
        }
    };
    if size <= volume.size {
        return Answer::fault(
            400,
            &format!(
                "Invalid input received: New size for extend must be greater than current size. (current: {}, extended: {size}).",
                volume.size
            ),
        );
    }
    if used - volume.size + size > quota {
        let message = format!(
            "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed gigabytes quota. Requested {}G, quota is {quota}G and {used}G has been consumed.",
            size - volume.size
        );
        return Answer::fault(413, &message);
    }
    volume.size = size;
    volume.set_status("extending");
    volume.next = Some((due, before));
    let iqn = volume.iqn();
    if target.targets().contains(&iqn) {
        target.resize(&iqn, EXPORTED_LUN, size << 30);
    } else {
        volume.disk.resize(size << 30);
    }
    Answer::empty(202)
}

fn metadata(world: &mut World, call: &Call, id: &str, path: &[&str]) -> Answer {
    let body = call.json().unwrap_or_default();
    let Some(volume) = world.volume(id) else {
        return absent(id);
    };
    match (call.method.as_str(), path) {
        ("GET", []) => {}
        ("POST" | "PUT", []) => match pairs(body.get("metadata")) {
            Ok(given) => {
                if call.method == "PUT" {
                    volume.metadata.clear();
                }
                volume.metadata.extend(given);
            }
            Err(answer) => return answer,
        },
        ("GET" | "PUT" | "DELETE", [key]) => {
            if call.method == "PUT" {
                let value = body["meta"][*key].as_str().unwrap_or_default();
                volume.metadata.insert((*key).to_owned(), value.to_owned());
            }
            let Some(value) = volume.metadata.get(*key).cloned() else {
                let message = format!("Volume {id} has no metadata with key {key}.");
                return Answer::fault(404, &message);
            };
            if call.method == "DELETE" {
                volume.metadata.remove(*key);
                return Answer::empty(200);
            }
            return Answer::json(200, json!({"meta": { *key: value }}));
        }
        _ => return cinder::not_found(),
    }
    Answer::json(200, json!({"metadata": volume.metadata}))
}

pub(super) fn pairs(given: Option<&Value>) -> Result<BTreeMap<String, String>, Answer> {
    let mut pairs = BTreeMap::new();
    for (key, value) in given.and_then(Value::as_object).into_iter().flatten() {
        let Some(text) = value.as_str() else {
            return Err(Answer::fault(
                400,
                &format!(
                    "Invalid input for field/attribute {key}. Value: {value}. {value} is not of type 'string'"
                ),
            ));
        };
        if text.len() > 255 {
            return Err(Answer::fault(
                400,
                &format!(
                    "Invalid input for field/attribute {key}. Value: {text}. '{text}' is too long"
                ),
            ));
        }
        pairs.insert(key.clone(), text.to_owned());
    }
    Ok(pairs)
}

/// A volume as it is shown; `fresh` in the answer to its creation.
fn view(world: &World, volume: &Volume, fresh: bool) -> Value {
    let attachments: Vec<Value> = world
        .attachments_of(&volume.id)
        .filter(|attachment| attachment.status == "attached")
        .map(|attachment| {
            let mountpoint = attachment
                .connector
                .as_ref()
                .and_then(|one| one["mountpoint"].as_str());
            json!({
                "id": volume.id,
                "attachment_id": attachment.id,
                "volume_id": volume.id,
                "server_id": attachment.instance,
                // Only administrators are told.
                "host_name": null,
                "device": mountpoint.unwrap_or("na"),
                "attached_at": attachment.attached.map(|time| clock::text(time, false)),
            })
        })
        .collect();
    let settled = !fresh && volume.status != "creating";
    let mut shown = json!({
        "id": volume.id,
        "status": volume.status,
        "size": volume.size,
        "availability_zone": volume.zone,
        "created_at": clock::text(volume.created, fresh),
        "updated_at": volume.updated.map(|time| clock::text(time, false)),
        "name": volume.name,
        "description": volume.description,
        "volume_type": volume.kind,
        "snapshot_id": volume.snapshot,
        "source_volid": volume.source,
        "metadata": volume.metadata,
        "links": links(world, volume),
        "user_id": world.user_id,
        "bootable": "false",
        "encrypted": false,
        "replication_status": null,
        "consistencygroup_id": null,
        "multiattach": volume.multiattach,
        "attachments": attachments,
        "group_id": null,
        "shared_targets": !settled,
        "service_uuid": if settled { json!("7ed4fd28-b5b1-4ac0-b3d0-95684c857ea4") } else { Value::Null },
    });
    if !fresh {
        shown["os-vol-tenant-attr:tenant_id"] = world.project_id.clone().into();
    }
    shown
}

fn links(world: &World, volume: &Volume) -> Value {
    let tail = format!("{}/volumes/{}", world.project_id, volume.id);
    json!([
        {"rel": "self", "href": format!("{}/volume/v3/{tail}", world.base)},
        {"rel": "bookmark", "href": format!("{}/volume/{tail}", world.base)},
    ])
}

const KEYS: [&str; 12] = [
    "size",
    "name",
    "description",
    "volume_type",
    "availability_zone",
    "metadata",
    "snapshot_id",
    "source_volid",
    "imageRef",
    "consistencygroup_id",
    "group_id",
    "backup_id",
];
const MALFORMED: &str = "The server could not comply with the request since it is either malformed or otherwise incorrect.";
const NOT_DELETABLE: &str = "Invalid volume: Volume status must be available or error or error_restoring or error_extending or error_managing and must not be migrating, attached, belong to a group, have snapshots, awaiting a transfer, or be disassociated from snapshots after volume transfer.";
