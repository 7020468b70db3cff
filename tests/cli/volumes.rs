//! `volume clone|extend|snapshot|transfer`, with and without a daemon, against the stand-in of `support`.

use serde_json::Value;
use support::cloud::{Cloud, Fault, VolumeInfo};

use crate::bed::Home;

fn bed() -> (Cloud, Home) {
    let cloud = Cloud::builder().quota(4, 20).start_blocking();
    let home = Home::with_environment(cloud.env());
    home.run(&["volume", "create", "v1", "--size", "2"]).ok();
    (cloud, home)
}

fn volume(cloud: &Cloud, name: &str) -> VolumeInfo {
    let mut volumes = cloud.volumes().into_iter();
    let found = volumes.find(|volume| volume.name.as_deref() == Some(name));
    found.unwrap_or_else(|| panic!("no volume {name}: {:?}", cloud.volumes()))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_clone_has_the_data_and_at_least_the_size_of_its_source() {
    let (cloud, home) = bed();
    let source = volume(&cloud, "v1");
    let disk = cloud.disk(&source.id).unwrap();
    disk.write(1 << 30, b"what was written").unwrap();
    home.run(&["volume", "clone", "v1", "v2"]).ok();
    let clone = volume(&cloud, "v2");
    assert_eq!(clone.size, 2);
    let mut read = [0; 16];
    let disk = cloud.disk(&clone.id).unwrap();
    disk.read(1 << 30, &mut read).unwrap();
    assert_eq!(&read, b"what was written");
    home.run(&["volume", "clone", &source.id, "v3", "--size", "3"])
        .ok();
    assert_eq!(volume(&cloud, "v3").size, 3);
    home.run(&["volume", "clone", "v1", "v4", "--size", "1"])
        .fails_with(&["cloning v1 as v4", "cannot be smaller"]);
    home.run(&["volume", "clone", "absent", "v4"])
        .fails_with(&["cloning absent as v4", "no volume `absent`"]);
    // Without a size, what is made from another is as large as that.
    home.run(&["volume", "create", "v4", "--source", "v1"]).ok();
    assert_eq!(volume(&cloud, "v4").size, 2);
}

#[test]
fn a_volume_is_extended_with_and_without_a_daemon_and_never_shrinks() {
    let (cloud, home) = bed();
    let told = home
        .run(&["volume", "extend", "v1", "3GiB", "--json"])
        .ok()
        .stdout;
    assert_eq!(json(&told)["size_gib"], 3);
    let daemon = home.daemon();
    let id = volume(&cloud, "v1").id;
    let told = home.run(&["volume", "extend", "v1", "4"]).ok().stdout;
    assert_eq!(told.trim(), id);
    assert_eq!(volume(&cloud, "v1").size, 4);
    let shrink = ["volume", "extend", "v1", "2"];
    home.run(&shrink)
        .fails_with(&["extending v1 to 2 GiB", "4 GiB", "do not shrink"]);
    home.run(&["volume", "extend", "v1", "21"])
        .fails_with(&["extending v1 to 21 GiB", "quota"]);
    let (code, log) = daemon.terminate();
    assert_eq!(code, Some(0), "{log}");
    home.run(&shrink)
        .fails_with(&["extending v1 to 2 GiB", "4 GiB", "do not shrink"]);
    assert_eq!(volume(&cloud, "v1").size, 4);
}

#[test]
fn a_snapshot_is_taken_listed_shown_used_and_deleted() {
    let (cloud, home) = bed();
    let taken = home
        .run(&[
            "volume",
            "snapshot",
            "create",
            "v1",
            "s1",
            "--description",
            "before",
            "--json",
        ])
        .ok()
        .stdout;
    let taken = json(&taken);
    assert_eq!(taken["snapshot"]["status"], "available", "{taken}");
    assert_eq!(taken["consistency"], "unused", "{taken}");
    let id = taken["snapshot"]["id"].as_str().unwrap();
    let table = home.run(&["volume", "snapshot", "list"]).ok().stdout;
    assert!(table.contains(id) && table.contains("2 GiB"), "{table}");
    let listed = home
        .run(&["volume", "snapshot", "list", "v1", "--json"])
        .ok()
        .stdout;
    assert_eq!(json(&listed)[0]["description"], "before");
    let shown = home.run(&["volume", "snapshot", "show", "s1"]).ok().stdout;
    assert!(
        shown.contains(&volume(&cloud, "v1").id) && shown.contains("before"),
        "{shown}"
    );
    home.run(&["volume", "create", "v2", "--snapshot", "s1"])
        .ok();
    assert_eq!(volume(&cloud, "v2").size, 2);
    home.run(&["volume", "delete", "v1"])
        .fails_with(&["deleting v1", "delete its snapshots first"]);
    home.run(&["volume", "snapshot", "create", "v2", "s1"]).ok();
    home.run(&["volume", "snapshot", "delete", "s1"])
        .fails_with(&["2 snapshots are named `s1`", id]);
    home.run(&["volume", "snapshot", "delete", id]).ok();
    assert_eq!(cloud.snapshots().len(), 1);
    home.run(&["volume", "snapshot", "show", id])
        .fails_with(&["showing snapshot", "no snapshot"]);
}

#[test]
fn a_snapshot_of_what_others_use_says_what_is_in_it() {
    let (cloud, home) = bed();
    cloud.attach_elsewhere(&volume(&cloud, "v1").id, "web2");
    let taken = home.run(&["volume", "snapshot", "create", "v1", "s1", "--json"]);
    assert_eq!(json(&taken.ok().stdout)["consistency"], "crash");
    let daemon = home.daemon();
    let taken = home.run(&["volume", "snapshot", "create", "v1", "s2"]).ok();
    assert!(
        taken.stderr.contains("as after a loss of power"),
        "{}",
        taken.stderr
    );
    drop(daemon);
}

#[test]
fn a_snapshot_that_cinder_cannot_take_is_named() {
    let (cloud, home) = bed();
    cloud.inject(Fault::CreateFails);
    home.run(&["volume", "snapshot", "create", "v1", "s1"])
        .fails_with(&[
            "taking snapshot s1 of v1",
            "could not take",
            "snapshot delete",
        ]);
    home.run(&["volume", "snapshot", "delete", "s1"]).ok();
    // The answer is lost: it is found by its mark, and there is no second one.
    cloud.inject(Fault::lose_answer("POST /snapshots"));
    home.run(&["volume", "snapshot", "create", "v1", "s2"]).ok();
    assert_eq!(cloud.snapshots().len(), 1);
    cloud.set_status(&volume(&cloud, "v1").id, "error");
    home.run(&["volume", "snapshot", "create", "v1", "s3"])
        .fails_with(&["status must be available"]);
}

#[test]
fn a_volume_is_given_away_with_a_key_that_is_told_once() {
    let (cloud, home) = bed();
    let told = home
        .run(&["volume", "transfer", "create", "v1", "--json"])
        .ok()
        .stdout;
    let told = json(&told);
    let (id, key) = (
        told["id"].as_str().unwrap(),
        told["auth_key"].as_str().unwrap(),
    );
    assert_eq!(volume(&cloud, "v1").status, "awaiting-transfer");
    let listed = home.run(&["volume", "transfer", "list"]).ok().stdout;
    assert!(listed.contains(id) && !listed.contains(key), "{listed}");
    let accept =
        |file: &str| home.run(&["volume", "transfer", "accept", id, "--auth-key-file", file]);
    let refused = accept(&home.secret("0123456789abcdef"));
    refused.fails_with(&["accepting", "check id and key"]);
    assert!(!refused.stderr.contains("0123456789abcdef"));
    let accepted = accept(&home.secret(key)).ok().stdout;
    assert_eq!(accepted.trim(), volume(&cloud, "v1").id);
    assert_eq!(volume(&cloud, "v1").status, "available");
    // What the stand-in has recorded has no key in it: ours was sent in the body alone.
    assert!(
        cloud
            .requests()
            .iter()
            .all(|request| !request.path.contains(key))
    );
    let offer = ["volume", "transfer", "create", "v1", "--name", "t1"];
    home.run(&offer).ok();
    home.run(&["volume", "transfer", "delete", "t1"]).ok();
    assert_eq!(volume(&cloud, "v1").status, "available");
    // The answer, and with it the key, is lost: the offer is taken back.
    cloud.inject(Fault::lose_answer("POST /os-volume-transfer"));
    home.run(&offer).fails_with(&["offering v1"]);
    assert_eq!(volume(&cloud, "v1").status, "available");
}
