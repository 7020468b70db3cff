//! Transfers: offer, list, accept, take back. There is one project, which may accept its own offers.
//!
//! Source: `cinder/api/contrib/volume_transfer.py`, `cinder/transfer/api.py`; recorded exchanges with Cinder 21.3.1.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::answer::Answer;
use super::state::{World, new_id};
use super::{Call, cinder, clock, volumes};

#[derive(Clone, Debug)]
pub(super) struct Transfer {
    id: String,
    name: Option<String>,
    volume: String,
    key: String,
    created: SystemTime,
}

/// Answers what comes after `/os-volume-transfer`.
pub(super) fn answer(world: &mut World, call: &Call, path: &[&str]) -> Answer {
    match (call.method.as_str(), path) {
        ("GET", [] | ["detail"]) => {
            let views: Vec<Value> = world.transfers.iter().map(view).collect();
            Answer::json(200, json!({"transfers": views}))
        }
        ("POST", []) => offer(world, call),
        ("POST", [id, "accept"]) => accept(world, call, id),
        ("DELETE", [id]) => match take(world, id) {
            Some(_) => Answer::empty(202),
            None => absent(id),
        },
        _ => cinder::not_found(),
    }
}

fn absent(id: &str) -> Answer {
    Answer::fault(404, &format!("Transfer {id} could not be found."))
}

fn offer(world: &mut World, call: &Call) -> Answer {
    let body = call.json().unwrap_or_default();
    let wish = &body["transfer"];
    let id = wish["volume_id"].as_str().unwrap_or_default().to_owned();
    let Some(volume) = world.volume(&id) else {
        return volumes::absent(&id);
    };
    if volume.status != "available" {
        return Answer::fault(400, "Invalid volume: status must be available");
    }
    volume.set_status("awaiting-transfer");
    let transfer = Transfer {
        id: new_id(),
        name: wish["name"].as_str().map(str::to_owned),
        volume: id,
        key: crate::random::letters(16),
        created: SystemTime::now(),
    };
    let mut shown = view(&transfer);
    shown["auth_key"] = transfer.key.as_str().into();
    world.transfers.push(transfer);
    Answer::json(202, json!({"transfer": shown}))
}

fn accept(world: &mut World, call: &Call, id: &str) -> Answer {
    let body = call.json().unwrap_or_default();
    let Some(transfer) = world.transfers.iter().find(|one| one.id == id) else {
        return absent(id);
    };
    if body["accept"]["auth_key"].as_str() != Some(&transfer.key) {
        let message = format!("Invalid auth key: Attempt to transfer {id} with invalid auth key.");
        return Answer::fault(400, &message);
    }
    let shown = view(transfer);
    take(world, id);
    Answer::json(202, json!({"transfer": shown}))
}

/// Ends an offer; its volume is free again.
fn take(world: &mut World, id: &str) -> Option<Transfer> {
    let at = world.transfers.iter().position(|one| one.id == id)?;
    let transfer = world.transfers.remove(at);
    if let Some(volume) = world.volume(&transfer.volume) {
        volume.set_status("available");
    }
    Some(transfer)
}

fn view(transfer: &Transfer) -> Value {
    json!({
        "id": transfer.id,
        "name": transfer.name,
        "volume_id": transfer.volume,
        "created_at": clock::text(transfer.created, true),
        "links": [],
    })
}
