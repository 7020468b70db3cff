//! The verbs that speak to Cinder, against the stand-in of `support`: what works, and the one line
//! for each refusal.
//!
//! After each failure of an attach, the cloud must have no attachment and its target no session.

use support::cloud::{Cloud, Fault};

use crate::bed::{Home, kernel_has_nbd};

fn cloud() -> (Cloud, Home) {
    let cloud = Cloud::builder().quota(2, 10).start_blocking();
    let home = Home::with_environment(cloud.env());
    (cloud, home)
}

#[track_caller]
fn assert_nothing_is_left(cloud: &Cloud, home: &Home) {
    assert!(cloud.attachments().is_empty(), "{:?}", cloud.attachments());
    assert!(
        cloud
            .volumes()
            .iter()
            .all(|volume| volume.status == "available"),
        "{:?}",
        cloud.volumes()
    );
    cloud.target().wait_sessions(0);
    assert_eq!(home.journal(), 0);
}

#[test]
fn a_volume_is_created_listed_shown_and_deleted() {
    let (cloud, home) = cloud();
    let id = home
        .run(&["volume", "create", "v1", "--size", "1500MiB"])
        .ok()
        .stdout
        .trim()
        .to_owned();
    assert_eq!(
        (cloud.volumes()[0].id.as_str(), cloud.volumes()[0].size),
        (id.as_str(), 2)
    );
    let marks = &cloud.volumes()[0].metadata;
    assert!(
        marks.contains(&("cinder-nbd.created_by".to_owned(), "testhost".to_owned())),
        "{marks:?}"
    );

    let table = home.run(&["volume", "list"]).ok().stdout;
    assert!(
        table.contains(&id) && table.contains("v1") && table.contains("2 GiB"),
        "{table}"
    );
    let listed = home.run(&["volume", "list", "--json"]).ok().stdout;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(
        (listed.as_array().unwrap().len(), &listed[0]["name"]),
        (1, &"v1".into())
    );
    for asked in ["v1", &id] {
        let shown = home.run(&["volume", "show", asked, "--json"]).ok().stdout;
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(
            (&shown["id"], &shown["status"]),
            (&id.as_str().into(), &"available".into())
        );
    }
    assert!(
        home.run(&["volume", "show", "v1"])
            .ok()
            .stdout
            .contains("available")
    );
    home.run(&["volume", "delete", "v1"]).ok();
    assert!(cloud.volumes().is_empty());
    assert_eq!(home.run(&["volume", "list"]).ok().stdout, "");
    home.run(&["volume", "delete", "v1"])
        .fails_with(&["deleting v1"]);
}

#[test]
fn a_wrong_password_is_named_and_not_shown() {
    let cloud = Cloud::builder().start_blocking();
    let mut environment = cloud.env();
    for (name, value) in &mut environment {
        if name == "OS_PASSWORD" {
            "wrong-and-secret".clone_into(value);
        }
    }
    let home = Home::with_environment(environment);
    let outcome = home.run(&["volume", "list"]);
    outcome.fails_with(&[
        "listing volumes",
        "refuses the credentials",
        "check user, password",
    ]);
    assert!(!outcome.stderr.contains("wrong-and-secret"));
}

#[test]
fn an_absent_volume_is_named() {
    let (_cloud, home) = cloud();
    home.run(&["volume", "show", "absent"])
        .fails_with(&["showing absent", "no volume"]);
}

#[test]
fn a_quota_is_named() {
    let (cloud, home) = cloud();
    home.run(&["volume", "create", "v1", "--size", "11"])
        .fails_with(&["creating v1", "quota"]);
    assert!(cloud.volumes().is_empty());
}

#[test]
fn an_unavailable_cinder_is_named() {
    let (cloud, home) = cloud();
    cloud.inject(Fault::answer("*", 503));
    home.run(&["volume", "list"])
        .fails_with(&["listing volumes", "503"]);
}

#[test]
fn an_attach_that_cinder_refuses_is_one_line_and_leaves_nothing() {
    let (cloud, home) = cloud();
    home.run(&["volume", "create", "v1"]).ok();
    let daemon = home.daemon();
    home.run(&["attach", "absent"])
        .fails_with(&["attaching absent", "no such volume"]);
    cloud.inject(Fault::answer("*", 503));
    home.run(&["attach", "v1"])
        .fails_with(&["attaching v1", "503"]);
    cloud.clear_faults();
    assert_nothing_is_left(&cloud, &home);
    let (code, log) = daemon.terminate();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn a_kernel_without_nbd_leaves_cinder_untouched() {
    if kernel_has_nbd() {
        eprintln!("CANNOT RUN HERE: this kernel has nbd; the VM test covers what then happens");
        return;
    }
    let (cloud, home) = cloud();
    home.run(&["volume", "create", "v1"]).ok();
    let daemon = home.daemon();
    home.run(&["attach", "v1"])
        .fails_with(&["attaching v1", "nbd", "modprobe nbd"]);
    let touched = cloud
        .requests()
        .into_iter()
        .any(|request| request.name.contains("/attachments"));
    assert!(!touched, "Cinder was asked for an attachment");
    assert_nothing_is_left(&cloud, &home);
    drop(daemon);
}

/// The same through Docker's socket, with the real engine of the built program.
#[test]
fn docker_creates_and_removes_through_the_daemon() {
    let (cloud, home) = cloud();
    let daemon = home.daemon();
    let call = |call: &str, body: &str| home.docker(call, body);
    assert_eq!(call("Plugin.Activate", "")["Implements"][0], "VolumeDriver");
    assert_eq!(
        call(
            "VolumeDriver.Create",
            r#"{"Name":"v1","Opts":{"size":"1"}}"#
        )["Err"],
        ""
    );
    assert_eq!(cloud.volumes()[0].name.as_deref(), Some("v1"));
    assert_eq!(call("VolumeDriver.List", "{}")["Volumes"][0]["Name"], "v1");
    let refused = call(
        "VolumeDriver.Create",
        r#"{"Name":"v2","Opts":{"size":"100"}}"#,
    );
    assert!(
        refused["Err"].as_str().unwrap().contains("quota"),
        "{refused}"
    );
    if !kernel_has_nbd() {
        let refused = call("VolumeDriver.Mount", r#"{"Name":"v1","ID":"c1"}"#);
        assert!(
            refused["Err"].as_str().unwrap().contains("modprobe nbd"),
            "{refused}"
        );
    }
    // A new daemon knows it without asking anybody.
    let (code, log) = daemon.terminate();
    assert_eq!(code, Some(0), "{log}");
    cloud.inject(Fault::answer("*", 503));
    let daemon = home.daemon();
    assert_eq!(
        call("VolumeDriver.Get", r#"{"Name":"v1"}"#)["Volume"]["Name"],
        "v1"
    );
    cloud.clear_faults();
    assert_eq!(call("VolumeDriver.Remove", r#"{"Name":"v1"}"#)["Err"], "");
    assert!(cloud.volumes().is_empty());
    drop(daemon);
}
