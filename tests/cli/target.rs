//! The verbs that log in to a target, against a real tgtd: what works, and the one line for each
//! thing that is wrong.
//!
//! After each failure the target must have no session of ours.

use std::os::unix::net::UnixStream;

use crate::bed::{Home, Outcome, Running, kernel_has_nbd, wait_until};
use support::tgt::Tgtd;

const IQN: &str = "iqn.2026-11.example:disk";
const USER: &str = "alice";
const SECRET: &str = "a-secret-of-16-b";

fn target() -> Tgtd {
    let tgtd = Tgtd::start();
    tgtd.add_target(IQN)
        .add_lun_file(1, 64 << 20)
        .add_chap(USER, SECRET);
    tgtd
}

fn words<'a>(
    verb: &'a str,
    portal: &'a str,
    iqn: &'a str,
    lun: &'a str,
    secret: &'a str,
) -> Vec<&'a str> {
    let mut words = vec![verb, "--portal", portal, "--target", iqn, "--lun", lun];
    words.extend(["--chap-user", USER, "--chap-secret-file", secret]);
    words
}

/// What is wrong, tried with `export` and, through a daemon, with `attach`.
fn both(home: &Home, words_of: impl Fn(&'static str) -> Vec<String>) -> Vec<Outcome> {
    let socket = home.path("never.sock").display().to_string();
    let mut export = words_of("export");
    export.extend(["--socket".to_owned(), socket]);
    let attach = words_of("attach");
    let run = |words: &[String]| home.run(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let outcomes = vec![run(&export)];
    assert!(!home.path("never.sock").exists());
    if kernel_has_nbd() {
        let daemon = home.daemon();
        let attached = run(&attach);
        assert_eq!(home.journal(), 0);
        drop(daemon);
        return outcomes.into_iter().chain([attached]).collect();
    }
    outcomes
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[test]
fn a_closed_port_is_named() {
    let home = Home::new();
    let secret = home.secret(SECRET);
    // Nobody listens on a port that was just given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let portal = format!("127.0.0.1:{port}");
    for outcome in both(&home, |verb| {
        owned(&words(verb, &portal, IQN, "1", &secret))
    }) {
        outcome.fails_with(&[&portal, "refused"]);
    }
}

#[test]
fn a_wrong_secret_is_named_and_not_shown() {
    let (home, tgtd) = (Home::new(), target());
    let (secret, portal) = (home.secret("quite-another-one"), tgtd.portal());
    for outcome in both(&home, |verb| {
        owned(&words(verb, &portal, IQN, "1", &secret))
    }) {
        outcome.fails_with(&[IQN, "CHAP"]);
        assert!(!outcome.stderr.contains("quite-another-one"));
    }
    tgtd.wait_sessions(0);
}

#[test]
fn an_unknown_target_is_named() {
    let (home, tgtd) = (Home::new(), target());
    let (secret, portal) = (home.secret(SECRET), tgtd.portal());
    for outcome in both(&home, |verb| {
        owned(&words(
            verb,
            &portal,
            "iqn.2026-11.example:other",
            "1",
            &secret,
        ))
    }) {
        outcome.fails_with(&["iqn.2026-11.example:other"]);
    }
    tgtd.wait_sessions(0);
}

#[test]
fn a_lun_that_is_not_there_is_named() {
    let (home, tgtd) = (Home::new(), target());
    let (secret, portal) = (home.secret(SECRET), tgtd.portal());
    for outcome in both(&home, |verb| {
        owned(&words(verb, &portal, IQN, "7", &secret))
    }) {
        outcome.fails_with(&["LUN 7", IQN]);
    }
    tgtd.wait_sessions(0);
}

#[test]
fn a_kernel_without_nbd_is_named_before_the_target_is_touched() {
    if kernel_has_nbd() {
        eprintln!("CANNOT RUN HERE: this kernel has nbd; the VM test covers what then happens");
        return;
    }
    let (home, tgtd) = (Home::new(), target());
    let (secret, portal) = (home.secret(SECRET), tgtd.portal());
    let daemon = home.daemon();
    let outcome = home.run(&words("attach", &portal, IQN, "1", &secret));
    outcome.fails_with(&["nbd", "modprobe nbd"]);
    assert_eq!(tgtd.sessions(), 0);
    assert_eq!(home.journal(), 0);
    assert_eq!(home.run(&["list", "--json"]).ok().stdout.trim(), "[]");
    let (code, log) = daemon.terminate();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains(SECRET), "the secret is in the log");
}

#[test]
fn an_export_serves_until_sigterm_and_logs_out() {
    let (home, tgtd) = (Home::new(), target());
    let (secret, portal) = (home.secret(SECRET), tgtd.portal());
    let socket = home.path("export.sock");
    let mut command = home.command(&words("export", &portal, IQN, "1", &secret));
    command.arg("--socket").arg(&socket);
    let mut export = Running::start(command);
    assert_eq!(
        export.first_line(),
        format!("nbd+unix:///?socket={}", socket.display())
    );
    let client = UnixStream::connect(&socket).unwrap();
    drop(client);
    let (code, log) = export.terminate();
    assert_eq!(code, Some(0), "{log}");
    assert!(!socket.exists());
    tgtd.wait_sessions(0);
}

#[test]
fn an_export_answers_a_real_client() {
    let (home, tgtd) = (Home::new(), target());
    let (secret, portal) = (home.secret(SECRET), tgtd.portal());
    let socket = home.path("export.sock");
    let mut command = home.command(&words("export", &portal, IQN, "1", &secret));
    command
        .arg("--socket")
        .arg(&socket)
        .arg("--read-only")
        .arg("--json");
    let export = Running::start(command);
    wait_until("the export listens", || {
        UnixStream::connect(&socket).is_ok()
    });
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let info = std::process::Command::new("nbdinfo")
        .args(["--json", &uri])
        .output()
        .expect("nbdinfo is installed (apt-get install libnbd-bin; cargo xtask test does it)");
    assert!(
        info.status.success(),
        "{}",
        String::from_utf8_lossy(&info.stderr)
    );
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    let export_info = &info["exports"][0];
    assert_eq!(
        (&export_info["export-size"], &export_info["is_read_only"]),
        (&(64 << 20).into(), &true.into())
    );
    let (code, log) = export.terminate();
    assert_eq!(code, Some(0), "{log}");
    tgtd.wait_sessions(0);
}

#[test]
fn an_export_does_not_take_the_socket_of_another() {
    let (home, tgtd) = (Home::new(), target());
    let (secret, portal) = (home.secret(SECRET), tgtd.portal());
    let socket = home.path("export.sock");
    let _other = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let socket_text = socket.display().to_string();
    let mut words = words("export", &portal, IQN, "1", &secret);
    words.extend(["--socket", &socket_text]);
    home.run(&words).fails_with(&[&socket_text]);
    assert!(
        UnixStream::connect(&socket).is_ok(),
        "the other's socket is gone"
    );
    tgtd.wait_sessions(0);
}

#[test]
fn targets_are_discovered() {
    let (home, tgtd) = (Home::new(), target());
    let portal = tgtd.portal();
    let table = home.run(&["discover", "--portal", &portal]).ok().stdout;
    assert!(
        table.starts_with("TARGET") && table.contains(IQN),
        "{table}"
    );
    let found = home
        .run(&["discover", "--portal", &portal, "--json"])
        .ok()
        .stdout;
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found[0]["target"], IQN);
    assert!(
        found[0]["portals"]
            .as_array()
            .is_some_and(|portals| !portals.is_empty())
    );
    tgtd.wait_sessions(0);
}

#[test]
fn a_portal_without_a_target_is_named() {
    let home = Home::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let portal = format!("127.0.0.1:{port}");
    home.run(&["discover", "--portal", &portal])
        .fails_with(&["discovering", &portal, "refused"]);
}

#[test]
fn an_absent_secret_file_is_named() {
    let (home, tgtd) = (Home::new(), target());
    let portal = tgtd.portal();
    let socket = home.path("s").display().to_string();
    let mut words = words("export", &portal, IQN, "1", "/no/such/secret");
    words.extend(["--socket", &socket]);
    home.run(&words).fails_with(&["/no/such/secret"]);
}
