//! The command line itself: help, usage errors, and what it says when there is no daemon or no
//! cloud.

use crate::bed::{Home, program, run};

const VERBS: [&[&str]; 13] = [
    &[],
    &["daemon"],
    &["attach"],
    &["detach"],
    &["export"],
    &["discover"],
    &["list"],
    &["status"],
    &["volume"],
    &["volume", "create"],
    &["volume", "list"],
    &["volume", "show"],
    &["volume", "delete"],
];

#[test]
fn every_verb_has_help_with_an_example() {
    for verb in VERBS {
        let mut command = program();
        command.args(verb).arg("--help");
        let outcome = run(command).ok();
        assert!(
            outcome.stdout.contains("Usage: cinder-nbd"),
            "{verb:?}: {}",
            outcome.stdout
        );
        let is_verb = !verb.is_empty();
        assert!(
            !is_verb || outcome.stdout.contains("Example"),
            "{verb:?} has no example"
        );
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    let target = ["--portal", "127.0.0.1", "--target", "iqn.2026-11.example:a"];
    let cases: [&[&str]; 8] = [
        &[],
        &["frobnicate"],
        &["attach"],
        &[
            "attach", "v1", target[0], target[1], target[2], target[3], "--lun", "0",
        ],
        &[
            "export",
            target[0],
            target[1],
            target[2],
            target[3],
            "--socket",
            "/tmp/never",
        ],
        &["discover", "--portal", "bad portal"],
        &["detach"],
        &["volume", "create", "v1", "--size", "none"],
    ];
    for words in cases {
        let mut command = program();
        command.args(words);
        let outcome = run(command);
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (Some(2), ""),
            "{words:?}: {outcome:?}"
        );
        assert!(!outcome.stderr.is_empty(), "{words:?}");
    }
}

#[test]
fn the_secret_has_no_place_on_the_command_line() {
    let mut command = program();
    command.args(["export", "--help"]);
    let help = run(command).ok().stdout;
    assert!(help.contains("--chap-secret-file"));
    assert!(!help.contains("--chap-secret ") && !help.contains("--chap-password"));
}

#[test]
fn without_a_daemon_the_remedy_is_named() {
    let home = Home::new();
    for words in [
        ["attach", "v1"].as_slice(),
        &["detach", "v1"],
        &["list"],
        &["list", "--json"],
        &["status"],
    ] {
        home.run(words)
            .fails_with(&["the daemon is not running", "systemctl start cinder-nbd"]);
    }
}

#[test]
fn without_a_cloud_the_remedy_is_named() {
    let home = Home::new();
    for words in [
        ["volume", "list"].as_slice(),
        &["volume", "create", "v1"],
        &["volume", "show", "v1"],
        &["volume", "delete", "v1"],
    ] {
        home.run(words)
            .fails_with(&["no cloud is configured", "OS_CLOUD"]);
    }
}

#[test]
fn a_configuration_that_is_not_there_is_named() {
    let mut command = program();
    command.args(["--config", "/no/such/file.toml", "status"]);
    run(command).fails_with(&["/no/such/file.toml"]);
}

#[test]
fn the_daemon_shows_itself_and_ends_cleanly() {
    let home = Home::new();
    let daemon = home.daemon();
    let status = home.run(&["status", "--json"]).ok().stdout;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(
        (&status["host"], &status["cloud"]),
        (&"testhost".into(), &false.into())
    );
    assert_eq!(home.run(&["list", "--json"]).ok().stdout.trim(), "[]");
    assert_eq!(home.run(&["list"]).ok().stdout, "");
    home.run(&["attach", "v1"])
        .fails_with(&["attaching v1", "no cloud is configured"]);
    home.run(&["detach", "v1"])
        .fails_with(&["v1 is not attached here"]);

    // One daemon to a directory, and the first is not disturbed.
    home.run(&["daemon"])
        .fails_with(&["another cinder-nbd daemon holds", "state/lock"]);
    home.run(&["status"]).ok();

    let (code, log) = daemon.terminate();
    assert_eq!(code, Some(0), "{log}");
    assert!(!home.path("run/control.sock").exists() && !home.path("docker.sock").exists());
}

#[test]
fn sockets_are_for_root_alone() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let _daemon = home.daemon();
    for socket in ["run/control.sock", "docker.sock"] {
        let mode = home.path(socket).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{socket}");
    }
}
