//! Attachments: reserve, connect, complete, delete; in two steps or in one.
//!
//! Source: recorded exchanges with Cinder 21.3.1 and 29.0.0, microversions 3.27 to 3.70.
//!
//! Invariants:
//! 1. As in Cinder, a failed connection leaves its attachment `reserved`: who does not delete it is found out.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::cinder::Microversion;
use super::faults::Fault;
use super::state::{Attachment, EXPORTED_LUN, World, new_id};
use super::{Call, cinder, clock, volumes};

/// Answers what comes after `/attachments`.
pub(super) fn answer(
    world: &mut World,
    call: &Call,
    path: &[&str],
    version: Microversion,
) -> Answer {
    match (call.method.as_str(), path) {
        ("GET", []) => list(world, call, false),
        ("GET", ["detail"]) => list(world, call, true),
        ("POST", []) => create(world, call, version),
        (method, [id, rest @ ..]) => {
            if world.attachment(id).is_none() {
                return absent(id);
            }
            match (method, rest) {
                ("GET", []) => show(world, id, None),
                ("PUT", []) => update(world, call, id),
                ("DELETE", []) => delete(world, id),
                ("POST", ["action"]) if version >= Microversion(44) => act(world, call, id),
                _ => cinder::not_found(),
            }
        }
        _ => cinder::not_found(),
    }
}

fn absent(id: &str) -> Answer {
    Answer::fault(
        404,
        &format!("Volume attachment could not be found with filter: attachment_id = {id}."),
    )
}

fn list(world: &World, call: &Call, detail: bool) -> Answer {
    let wanted = call.query("volume_id");
    let list: Vec<Value> = world
        .attachments
        .iter()
        .filter(|attachment| wanted.is_none_or(|id| id == attachment.volume))
        .map(|attachment| {
            if detail {
                view(world, attachment)
            } else {
                brief(attachment)
            }
        })
        .collect();
    Answer::json(200, json!({"attachments": list}))
}

/// With `status`, that is told in place of the true one.
fn show(world: &World, id: &str, status: Option<&str>) -> Answer {
    let Some(attachment) = world
        .attachments
        .iter()
        .find(|attachment| attachment.id == id)
    else {
        return absent(id);
    };
    let mut view = view(world, attachment);
    if let Some(status) = status {
        view["status"] = status.into();
        view["attached_at"] = "".into();
    }
    Answer::json(200, json!({"attachment": view}))
}

fn create(world: &mut World, call: &Call, version: Microversion) -> Answer {
    let body = call.json().unwrap_or_default();
    let nothing = Map::new();
    let wish = body["attachment"].as_object().unwrap_or(&nothing);
    let Some(volume_id) = wish.get("volume_uuid").and_then(Value::as_str) else {
        return Answer::fault(400, "'volume_uuid' is a required property");
    };
    let mode = match mode(wish, version) {
        Ok(mode) => mode,
        Err(answer) => return answer,
    };
    if let Err(answer) = reservable(world, volume_id) {
        return answer;
    }
    let id = new_id();
    world.attachments.push(Attachment {
        id: id.clone(),
        volume: volume_id.to_owned(),
        status: "reserved",
        mode,
        instance: wish
            .get("instance_uuid")
            .and_then(Value::as_str)
            .map(str::to_owned),
        connector: None,
        attached: None,
        broken: false,
    });
    world.recompute(volume_id);
    match wish
        .get("connector")
        .filter(|connector| connector.as_object().is_some_and(|one| !one.is_empty()))
    {
        None => show(world, &id, None),
        Some(connector) => match connect(world, &id, connector) {
            // The first answer is older than the change that it made.
            Ok(()) => show(world, &id, Some("reserved")),
            Err(answer) => answer,
        },
    }
}

/// The wish's `mode`, known from 3.54 on.
fn mode(wish: &Map<String, Value>, version: Microversion) -> Result<Option<String>, Answer> {
    let Some(mode) = wish.get("mode") else {
        return Ok(None);
    };
    if version < Microversion(54) {
        return Err(Answer::fault(
            400,
            "Invalid input for field/attribute attachment. Additional properties are not allowed ('mode' was unexpected)",
        ));
    }
    let shown = mode
        .as_str()
        .map_or_else(|| mode.to_string(), str::to_owned);
    if shown == "rw" || shown == "ro" {
        return Ok(Some(shown));
    }
    Err(Answer::fault(
        400,
        &format!(
            "Invalid input for field/attribute mode. Value: {shown}. '{shown}' is not one of ['rw', 'ro']"
        ),
    ))
}

fn reservable(world: &mut World, id: &str) -> Result<(), Answer> {
    let Some(volume) = world.volume(id) else {
        return Err(volumes::absent(id));
    };
    let status = volume.status.clone();
    let sharing = volume.multiattach && status == "in-use";
    if status.starts_with("error") {
        return Err(Answer::fault(
            400,
            &format!(
                "Invalid volume: Volume attachments can not be created if the volume is in an error state. The Volume {id} currently has a status of: {status} "
            ),
        ));
    }
    if status != "available" && status != "downloading" && !sharing {
        return Err(Answer::fault(
            400,
            &format!(
                "Invalid volume: Volume {id} status must be available or downloading to reserve, but the current status is {status}."
            ),
        ));
    }
    Ok(())
}

fn update(world: &mut World, call: &Call, id: &str) -> Answer {
    let body = call.json().unwrap_or_default();
    let connector = &body["attachment"]["connector"];
    if connector.as_object().is_none_or(Map::is_empty) {
        return Answer::fault(
            400,
            "Invalid input for field/attribute attachment. 'connector' is a required property",
        );
    }
    match connect(world, id, connector) {
        Ok(()) => show(world, id, Some("reserved")),
        Err(answer) => answer,
    }
}

fn connect(world: &mut World, id: &str, connector: &Value) -> Result<(), Answer> {
    let failing = world.faults.take(&Fault::ConnectFails);
    let Some(attachment) = world.attachment(id) else {
        return Err(absent(id));
    };
    let volume = attachment.volume.clone();
    let reason = if failing {
        Some(
            "Bad or unexpected response from the storage volume backend API: Driver initialize connection failed (error: Bad or unexpected response from the storage volume backend API: injected failure of initialize_connection).",
        )
    } else if connector["initiator"].as_str().is_none_or(str::is_empty) {
        Some("Invalid input received: Connector doesn't have required information: initiator")
    } else {
        None
    };
    if let Some(reason) = reason {
        attachment.broken = true;
        return Err(Answer::fault(
            500,
            &format!("Unable to create attachment for volume ({reason})."),
        ));
    }
    attachment.connector = Some(connector.clone());
    attachment.status = "attaching";
    attachment.broken = false;
    attachment.mode.get_or_insert_with(|| "rw".into());
    world.recompute(&volume);
    world.export(&volume);
    Ok(())
}

fn act(world: &mut World, call: &Call, id: &str) -> Answer {
    let body = call.json().unwrap_or_default();
    if body.get("os-complete").is_none() {
        let name = body
            .as_object()
            .and_then(|body| body.keys().next().cloned());
        return Answer::fault(
            400,
            &format!("There is no such action: {}", name.unwrap_or_default()),
        );
    }
    let Some(attachment) = world.attachment(id) else {
        return absent(id);
    };
    attachment.status = "attached";
    attachment.attached.get_or_insert_with(SystemTime::now);
    let volume = attachment.volume.clone();
    world.recompute(&volume);
    Answer::empty(204)
}

fn delete(world: &mut World, id: &str) -> Answer {
    let failing = world.faults.take(&Fault::DetachFails);
    let Some(at) = world
        .attachments
        .iter()
        .position(|attachment| attachment.id == id)
    else {
        return absent(id);
    };
    // CVE-2023-2088: with an instance, Nova is asked, and there is none here.
    if failing || world.attachments[at].instance.is_some() {
        return Answer::fault(
            500,
            "The server has either erred or is incapable of performing the requested operation.",
        );
    }
    let volume = world.attachments.remove(at).volume;
    world.recompute(&volume);
    let left: Vec<Value> = world.attachments_of(&volume).map(brief).collect();
    Answer::json(200, json!({"attachments": left}))
}

fn brief(attachment: &Attachment) -> Value {
    json!({
        "id": attachment.id,
        "status": attachment.status,
        "instance": attachment.instance,
        "volume_id": attachment.volume,
    })
}

fn view(world: &World, attachment: &Attachment) -> Value {
    let mut view = brief(attachment);
    view["attached_at"] = attachment
        .attached
        .map_or_else(String::new, |time| clock::text(time, false))
        .into();
    view["detached_at"] = "".into();
    // The text "null" while nothing is known, and null once a driver failed.
    view["attach_mode"] = match &attachment.mode {
        Some(mode) => mode.clone().into(),
        None if attachment.broken => Value::Null,
        None => "null".into(),
    };
    view["connection_info"] = match &attachment.connector {
        Some(_) => connection_info(world, attachment),
        None if attachment.broken => Value::Null,
        None => json!({}),
    };
    view
}

fn connection_info(world: &World, attachment: &Attachment) -> Value {
    let Some(volume) = world
        .volumes
        .iter()
        .find(|volume| volume.id == attachment.volume)
    else {
        return json!({});
    };
    json!({
        "target_discovered": false,
        "target_portal": world.target.portal(),
        "target_iqn": volume.iqn(),
        "target_lun": EXPORTED_LUN,
        "volume_id": volume.id,
        "auth_method": "CHAP",
        "auth_username": volume.user,
        "auth_password": volume.secret,
        "encrypted": false,
        "qos_specs": null,
        // Also for a read-only attachment.
        "access_mode": "rw",
        "cacheable": false,
        "driver_volume_type": "iscsi",
        "attachment_id": attachment.id,
        "enforce_multipath": false,
    })
}
