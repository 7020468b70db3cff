//! Cinder's front: tokens, microversions, version documents, and which room answers.
//!
//! Source: recorded exchanges with Cinder 21.3.1 and 29.0.0; Block Storage API v3.

use serde_json::{Value, json};

use super::answer::Answer;
use super::state::World;
use super::{Call, attachments, clock, keystone, snapshots, transfers, volumes};

/// A microversion; only the minor part moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Microversion(pub(super) u32);

/// Answers what comes after `/volume`.
pub(super) fn answer(world: &mut World, call: &Call) -> Answer {
    let Some((first, rest)) = call.path.split_first() else {
        return Answer::json(300, json!({"versions": [version(world)]}));
    };
    if first != "v3" {
        return not_found();
    }
    let Some(token) = keystone::valid(world, call.token.as_ref()).cloned() else {
        return Answer::unauthorized(&keystone::uri(world));
    };
    let mut path: Vec<&str> = rest.iter().map(String::as_str).collect();
    if path.is_empty() {
        return Answer::json(200, json!({"versions": [version(world)]}));
    }
    // A project id may stand before the resource; it must be the token's.
    let named = super::is_id(path[0]);
    if token.project.is_none() || named && token.project.as_deref() != Some(path[0]) {
        return Answer::fault(400, "Malformed request url");
    }
    if named {
        path.remove(0);
    }
    let version = match microversion(world, call) {
        Ok(version) => version,
        Err(answer) => return answer,
    };
    dispatch(world, call, &path, version)
        .header("OpenStack-API-Version", format!("volume 3.{}", version.0))
        .header("Vary", "OpenStack-API-Version".into())
}

pub(super) fn not_found() -> Answer {
    Answer::page(404, "Not Found", "The resource could not be found.")
}

fn dispatch(world: &mut World, call: &Call, path: &[&str], version: Microversion) -> Answer {
    match path.split_first() {
        Some((&"volumes", rest)) => volumes::answer(world, call, rest),
        Some((&"snapshots", rest)) => snapshots::answer(world, call, rest),
        Some((&"os-volume-transfer", rest)) => transfers::answer(world, call, rest),
        Some((&"attachments", rest)) if version >= Microversion(27) => {
            attachments::answer(world, call, rest, version)
        }
        Some((&"attachments", _)) => Answer::fault(404, "The resource could not be found."),
        Some((&"types", [])) if call.method == "GET" => {
            let types: Vec<Value> = world.types.iter().map(volume_type).collect();
            Answer::json(200, json!({"volume_types": types}))
        }
        Some((&"types", [id])) if call.method == "GET" => {
            match world
                .types
                .iter()
                .find(|(known, name, _)| known == id || name == id)
            {
                Some(found) => Answer::json(200, json!({"volume_type": volume_type(found)})),
                None => Answer::fault(404, &format!("Volume type {id} could not be found.")),
            }
        }
        Some((&"messages", [])) if call.method == "GET" => messages(world, call),
        Some((&"limits", [])) if call.method == "GET" => limits(world),
        _ => not_found(),
    }
}

fn microversion(world: &World, call: &Call) -> Result<Microversion, Answer> {
    let most = world.settings.microversion_max;
    let Some(asked) = &call.microversion else {
        return Ok(Microversion(0));
    };
    let asked = asked.strip_prefix("volume ").unwrap_or(asked).trim();
    if asked == "latest" {
        return Ok(Microversion(most));
    }
    let parsed = asked
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)));
    match parsed {
        Some((3, minor)) if minor <= most => Ok(Microversion(minor)),
        Some(_) => Err(Answer::fault(
            406,
            &format!(
                "Version {asked} is not supported by the API. Minimum is 3.0 and maximum is 3.{most}."
            ),
        )),
        None => Err(Answer::fault(
            400,
            &format!(
                "API Version String {asked} is of invalid format. Must be of format MajorNum.MinorNum."
            ),
        )),
    }
}

fn version(world: &World) -> Value {
    json!({
        "id": "v3.0",
        "status": "CURRENT",
        "version": format!("3.{}", world.settings.microversion_max),
        "min_version": "3.0",
        "updated": "2022-08-31T00:00:00Z",
        "links": [
            {"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/"},
            {"rel": "self", "href": format!("{}/volume/v3/", world.base)},
        ],
        "media-types": [{
            "base": "application/json",
            "type": "application/vnd.openstack.volume+json;version=3",
        }],
    })
}

fn volume_type((id, name, multiattach): &(String, String, bool)) -> Value {
    let specs = if *multiattach {
        json!({"multiattach": "<is> True"})
    } else {
        json!({})
    };
    json!({
        "id": id,
        "name": name,
        "is_public": true,
        "description": null,
        "extra_specs": specs,
        "qos_specs_id": null,
    })
}

fn messages(world: &World, call: &Call) -> Answer {
    let wanted = call.query("resource_uuid");
    // Newest first.
    let list: Vec<Value> = world
        .messages
        .iter()
        .rev()
        .filter(|message| wanted.is_none_or(|id| id == message.volume))
        .map(|message| {
            json!({
                "id": super::state::new_id(),
                "event_id": message.event,
                "user_message": message.text,
                "message_level": "ERROR",
                "resource_type": "VOLUME",
                "resource_uuid": message.volume,
                "created_at": clock::text(message.created, false),
            })
        })
        .collect();
    Answer::json(200, json!({"messages": list}))
}

fn limits(world: &World) -> Answer {
    let used: u64 = world.volumes.iter().map(|volume| volume.size).sum();
    Answer::json(
        200,
        json!({"limits": {"rate": [], "absolute": {
            "maxTotalVolumes": world.settings.quota_volumes,
            "maxTotalVolumeGigabytes": world.settings.quota_gigabytes,
            "totalVolumesUsed": world.volumes.len(),
            "totalGigabytesUsed": used,
        }}}),
    )
}
