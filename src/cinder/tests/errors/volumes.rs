//! What goes wrong with volumes, attachments, snapshots and offers.

use super::*;

pub(super) async fn all() -> Vec<Error> {
    let (names, creations, reservations, connections, deletions, copies, offers) = tokio::join!(
        of_names(),
        of_creations(),
        of_reservations(),
        of_connections(),
        of_deletions(),
        of_snapshots(),
        of_transfers(),
    );
    [
        names,
        creations,
        reservations,
        connections,
        deletions,
        copies,
        offers,
    ]
    .concat()
}

async fn of_names() -> Vec<Error> {
    let none: Script = |seen, _| {
        let (snapshots, transfers) = ("snapshots/detail", "os-volume-transfer/detail");
        if asks(seen, "GET", snapshots) {
            return Some(ok(&json!({"snapshots": []})));
        }
        asks(seen, "GET", transfers).then(|| ok(&json!({"transfers": []})))
    };
    let two: Script = |seen, _| {
        let both = json!([
            volume("available", &json!({})),
            volume("available", &json!({}))
        ]);
        asks(seen, "GET", "volumes/detail").then(|| ok(&json!({"volumes": both})))
    };
    vec![
        failed(none, async |cinder| cinder.find("other").await).await,
        failed(none, async |cinder| cinder.find_snapshot("s").await).await,
        failed(none, async |cinder| cinder.find_transfer("t").await).await,
        failed(two, async |cinder| cinder.find("v").await).await,
    ]
}

fn new_volume() -> NewVolume {
    NewVolume {
        name: "v".into(),
        size: 1,
        ..NewVolume::default()
    }
}

async fn of_creations() -> Vec<Error> {
    let create = async |script: Script, new: NewVolume| {
        failed(script, async |cinder| cinder.create(&new).await).await
    };
    let no_type: Script = |seen, _| {
        if asks(seen, "GET", "types") {
            return Some(ok(&json!({"volume_types": [{"id": "1", "name": "lvm"}]})));
        }
        asks(seen, "POST", "volumes")
            .then(|| fault(404, "itemNotFound", "Volume type fast could not be found."))
    };
    let no_types: Script = |seen, _| {
        asks(seen, "POST", "volumes")
            .then(|| fault(404, "itemNotFound", "Volume type fast could not be found."))
    };
    let no_image: Script = |seen, _| {
        asks(seen, "POST", "volumes")
            .then(|| fault(404, "itemNotFound", "Image i could not be found."))
    };
    // It ends in error, and goes when it is deleted.
    let goes: Script = |seen, before| {
        if asks(seen, "DELETE", "volumes/v-1") {
            return Some(status(202, &json!({})));
        }
        if before.iter().any(|seen| seen.method == "DELETE") {
            absent_volume(seen)
        } else {
            made_in_error(seen)
        }
    };
    let stays: Script = |seen, _| match seen.method.as_str() {
        "DELETE" => Some(fault(400, "badRequest", "Invalid volume.")),
        _ => made_in_error(seen),
    };
    let fast = NewVolume {
        volume_type: Some("fast".into()),
        ..new_volume()
    };
    let empty = NewVolume {
        size: 0,
        ..new_volume()
    };
    vec![
        create(no_type, fast.clone()).await,
        create(no_types, fast).await,
        create(no_image, new_volume()).await,
        create(goes, new_volume()).await,
        create(stays, new_volume()).await,
        create(BEHAVED, empty).await,
    ]
}

fn made_in_error(seen: &Seen) -> Option<Reply> {
    let is_it = asks(seen, "POST", "volumes") || asks(seen, "GET", "volumes/v-1");
    is_it.then(|| ok(&json!({"volume": volume("error", &json!({}))})))
}

fn absent_volume(seen: &Seen) -> Option<Reply> {
    asks(seen, "GET", "volumes/v-1").then(|| fault(404, "itemNotFound", "Volume v-1 is gone."))
}

/// The volume in this state, which can be neither reserved nor deleted.
fn held(seen: &Seen, state: &str) -> Option<Reply> {
    if asks(seen, "POST", "attachments") || asks(seen, "DELETE", "volumes/v-1") {
        return Some(fault(400, "badRequest", "Invalid volume."));
    }
    if asks(seen, "GET", "attachments/detail") && state != "attaching" {
        let row = json!({"id": "a-9", "status": "attached", "attached_at": ""});
        return Some(ok(&json!({"attachments": [row]})));
    }
    asks(seen, "GET", "volumes/v-1").then(|| ok(&json!({"volume": volume(state, &json!({}))})))
}

async fn of_reservations() -> Vec<Error> {
    let scripts: [Script; 9] = [
        |seen, _| held(seen, "in-use"),
        |seen, _| held(seen, "reserved"),
        |seen, _| held(seen, "attaching"),
        |seen, _| held(seen, "available"),
        |seen, _| held(seen, "creating"),
        |seen, _| held(seen, "maintenance"),
        |seen, _| held(seen, "awaiting-transfer"),
        |seen, _| held(seen, "error"),
        |seen, _| held(seen, "error_extending"),
    ];
    let mut errors = Vec::new();
    for script in scripts {
        let reserve = async |cinder: Cinder| cinder.reserve("v-1", false).await;
        errors.push(failed(script, reserve).await);
    }
    errors
}

/// An attachment with this connection.
fn connected(seen: &Seen, info: &Value) -> Option<Reply> {
    asks(seen, "PUT", "attachments/a-1")
        .then(|| ok(&json!({"attachment": {"id": "a-1", "connection_info": info}})))
}

async fn of_connections() -> Vec<Error> {
    let scripts: [Script; 3] = [
        |seen, _| connected(seen, &json!({"driver_volume_type": "rbd"})),
        |seen, _| connected(seen, &json!({"driver_volume_type": "iscsi"})),
        |seen, _| {
            let luks =
                json!({"driver_volume_type": "iscsi", "encrypted": true, "volume_id": "v-1"});
            connected(seen, &luks)
        },
    ];
    let connector = Connector {
        initiator: "iqn.2026-11.org.cinder-nbd:h".into(),
        host: "h".into(),
        ip: "127.0.0.1".into(),
        mountpoint: "cinder-nbd:h".into(),
        read_only: false,
    };
    let mut errors = Vec::new();
    for script in scripts {
        let connect = async |cinder: Cinder| cinder.connect_attachment("a-1", &connector).await;
        errors.push(failed(script, connect).await);
    }
    errors
}

async fn of_deletions() -> Vec<Error> {
    // The deletion is taken, and ends in another state.
    let fails: Script = |seen, _| match seen.method.as_str() {
        "DELETE" => Some(status(202, &json!({}))),
        _ => asks(seen, "GET", "volumes/v-1")
            .then(|| ok(&json!({"volume": volume("error_deleting", &json!({}))}))),
    };
    let has_snapshots: Script = |seen, _| held(seen, "available");
    vec![
        failed(fails, async |cinder| cinder.delete("v-1").await).await,
        failed(has_snapshots, async |cinder| cinder.delete("v-1").await).await,
    ]
}

fn snapshot(state: &str) -> Value {
    json!({"snapshot": {"id": "s-1", "name": "s", "volume_id": "v-1", "status": state, "size": 1}})
}

async fn of_snapshots() -> Vec<Error> {
    let is_taken: Script =
        |seen, _| asks(seen, "POST", "snapshots").then(|| status(202, &snapshot("error")));
    let refuses: Script = |seen, _| {
        asks(seen, "DELETE", "snapshots/s-1").then(|| fault(400, "badRequest", "Invalid snapshot."))
    };
    let keeps: Script = |seen, _| {
        if asks(seen, "DELETE", "snapshots/s-1") {
            return Some(status(202, &json!({})));
        }
        asks(seen, "GET", "snapshots/s-1").then(|| ok(&snapshot("available")))
    };
    let take = async |cinder: Cinder| {
        let taken = cinder.begin_snapshot(&NewSnapshot::default()).await?;
        Err::<(), _>(cinder.snapshot_failure(&taken).await)
    };
    vec![
        failed(is_taken, take).await,
        failed(refuses, async |cinder| cinder.delete_snapshot("s-1").await).await,
        failed(keeps, async |cinder| cinder.delete_snapshot("s-1").await).await,
    ]
}

async fn of_transfers() -> Vec<Error> {
    let refuses: Script = |seen, _| {
        if asks(seen, "GET", "os-volume-transfer/detail") {
            return Some(ok(&json!({"transfers": []})));
        }
        asks(seen, "POST", "os-volume-transfer").then(|| {
            fault(
                400,
                "badRequest",
                "Invalid volume: status must be available.",
            )
        })
    };
    let wrong_key: Script = |seen, _| {
        asks(seen, "POST", "os-volume-transfer/t-1/accept")
            .then(|| fault(400, "badRequest", "Invalid auth key."))
    };
    let absent: Script = |seen, _| {
        asks(seen, "POST", "os-volume-transfer/t-1/accept")
            .then(|| fault(404, "itemNotFound", "Transfer t-1 could not be found."))
    };
    let key = Secret::new("k".into());
    vec![
        failed(refuses, async |cinder| cinder.offer("v-1", None).await).await,
        failed(wrong_key, async |cinder| cinder.accept("t-1", &key).await).await,
        failed(absent, async |cinder| cinder.accept("t-1", &key).await).await,
    ]
}

/// The volume, or snapshot, that stays in this state for ever.
fn lasting(seen: &Seen, state: &str) -> Option<Reply> {
    if seen.method == "DELETE" || seen.path.ends_with("/action") {
        return Some(status(202, &json!({})));
    }
    if asks(seen, "GET", "snapshots/s-1") {
        return Some(ok(&snapshot(state)));
    }
    let is_it = asks(seen, "POST", "volumes") || asks(seen, "GET", "volumes/v-1");
    is_it.then(|| ok(&json!({"volume": volume(state, &json!({}))})))
}

/// States that do not come: the clock is turned once they have been looked at.
pub(super) async fn of_patience() -> Vec<Error> {
    let created = hurried(
        |seen, _| lasting(seen, "creating"),
        "volumes/v-1",
        async |cinder| cinder.create(&new_volume()).await.map(drop),
    );
    let created = created.await;
    let extended = hurried(
        |seen, _| lasting(seen, "extending"),
        "volumes/v-1",
        async |cinder| cinder.extend("v-1", 2).await,
    );
    let extended = extended.await;
    let deleted = hurried(
        |seen, _| lasting(seen, "deleting"),
        "volumes/v-1",
        async |cinder| cinder.delete("v-1").await,
    );
    let deleted = deleted.await;
    let copy = hurried(
        |seen, _| lasting(seen, "deleting"),
        "snapshots/s-1",
        async |cinder| cinder.delete_snapshot("s-1").await,
    );
    vec![created, extended, deleted, copy.await]
}

async fn hurried(
    script: Script,
    looked_at: &str,
    call: impl AsyncFnOnce(Cinder) -> Result<(), Error>,
) -> Error {
    const LATER: Duration = Duration::from_hours(2);
    let server = Server::start(script).await;
    let mut config = settings(&server);
    config.request_timeout = LATER * 2;
    let cinder = Cinder::connect(&config).await.unwrap();
    let path = format!("/volume/v3/p1/{looked_at}");
    let hurry = async {
        while server.count("GET", &path) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::pause();
        tokio::time::advance(LATER).await;
        tokio::time::resume();
    };
    let (result, ()) = tokio::join!(call(cinder), hurry);
    result.unwrap_err()
}
