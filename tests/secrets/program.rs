//! The built program as a user runs it: daemon beneath its supervisor, export, and the verbs that end by themselves.
//!
//! All that it writes goes into files: at this verbosity a pipe that nobody reads would stop it.

use std::fmt::Write;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use support::cloud::{Cloud, Fault};
use support::nbd::Client;
use support::target::{Disk, Target};

use crate::bed::{Home, signal, wait_until};
use crate::search::Secrets;
use crate::{AUTH_KEY, CHAP_SECRET, IQN, LOGIN_FAILED, PASSWORD, WRONG_CHAP_SECRET, assert_none};

struct Bed {
    cloud: Cloud,
    home: Home,
    /// What the user has written.
    inputs: tempfile::TempDir,
    /// What the program has written.
    outputs: tempfile::TempDir,
    runs: usize,
    secrets: Secrets,
}

impl Bed {
    fn new() -> Self {
        let cloud = Cloud::builder().password(PASSWORD).start_blocking();
        let inputs = tempfile::tempdir().unwrap();
        let clouds_yaml = inputs.path().join("clouds.yaml");
        write_secret(&clouds_yaml, &clouds(&cloud));
        let environment = [
            ("OS_CLIENT_CONFIG_FILE", clouds_yaml.to_str().unwrap()),
            ("OS_CLOUD", "by-password"),
            ("CINDER_NBD_LOG", "trace"),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut secrets = Secrets::default();
        secrets.add("CHAP secret", CHAP_SECRET);
        secrets.add("wrong CHAP secret", WRONG_CHAP_SECRET);
        secrets.add("key of a transfer", AUTH_KEY);
        Self {
            cloud,
            home: Home::with_environment(environment.into()),
            inputs,
            outputs: tempfile::tempdir().unwrap(),
            runs: 0,
            secrets,
        }
    }

    fn input(&self, name: &str, secret: &str) -> String {
        let path = self.inputs.path().join(name);
        write_secret(&path, secret);
        path.display().to_string()
    }

    /// Starts it; what it writes is searched at the end.
    fn start(&mut self, mut command: Command) -> (Child, PathBuf) {
        self.runs += 1;
        let file = |kind: &str| self.outputs.path().join(format!("{}.{kind}", self.runs));
        let stdout = file("stdout");
        command
            .stdout(File::create(&stdout).unwrap())
            .stderr(File::create(file("stderr")).unwrap());
        (command.spawn().unwrap(), stdout)
    }

    fn run_command(&mut self, command: Command) -> ExitStatus {
        let (mut child, _) = self.start(command);
        let mut status = None;
        wait_until("the command ends", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        self.secrets.add_all(self.cloud.secrets());
        status.unwrap()
    }

    fn run(&mut self, words: &[&str]) -> ExitStatus {
        self.run_command(self.home.command(words))
    }

    #[track_caller]
    fn ok(&mut self, words: &[&str]) {
        assert!(self.run(words).success(), "{words:?}: {}", self.last());
    }

    #[track_caller]
    fn fails(&mut self, words: &[&str]) {
        assert!(!self.run(words).success(), "{words:?}");
    }

    /// What the last run said on stderr.
    fn last(&self) -> String {
        let path = self.outputs.path().join(format!("{}.stderr", self.runs));
        std::fs::read_to_string(path).unwrap()
    }

    fn docker(&mut self, call: &str, body: &str) {
        let answer = self.home.docker(&format!("VolumeDriver.{call}"), body);
        self.runs += 1;
        let path = self.outputs.path().join(format!("{}.answer", self.runs));
        std::fs::write(path, answer.to_string()).unwrap();
        self.secrets.add_all(self.cloud.secrets());
    }

    /// What everybody on this host can see of a process, and what its owner can.
    fn in_proc(&self, pid: u32) -> Vec<String> {
        let mut found = Vec::new();
        for file in ["cmdline", "environ", "comm"] {
            let path = format!("/proc/{pid}/{file}");
            let text = std::fs::read(&path).unwrap();
            assert!(!text.is_empty(), "{path}");
            found.extend(self.secrets.in_text(&path, &text));
        }
        found
    }

    fn found(&self) -> Vec<String> {
        let sessions = self.home.path("run/sessions");
        let is_meant = |path: &Path| path.starts_with(&sessions);
        let mut found = self.secrets.in_files(self.outputs.path(), |_| false);
        found.extend(self.secrets.in_files(self.home.directory.path(), is_meant));
        // The inputs are what the user wrote, and for nobody else's eyes; they can be found.
        assert_none(&self.secrets.in_files(self.inputs.path(), |_| true));
        assert!(
            self.secrets.in_files(self.inputs.path(), |_| false).len() > 3,
            "the search does not find what is there"
        );
        found
    }
}

fn write_secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// The stand-in's credentials, and wrong ones.
fn clouds(cloud: &Cloud) -> String {
    let entry = |variables: &[(String, String)], also: &str| {
        let mut text = String::new();
        for (name, value) in variables {
            let key = name.trim_start_matches("OS_").to_lowercase();
            if key != "identity_api_version" {
                writeln!(text, "    {key}: {}", serde_json::json!(value)).unwrap();
            }
        }
        text + also
    };
    let wrong = format!("    password: {}\n", serde_json::json!(WRONG_CHAP_SECRET));
    let with_wrong: Vec<_> = cloud
        .env()
        .into_iter()
        .filter(|(name, _)| name != "OS_PASSWORD")
        .collect();
    format!(
        "clouds:\n  by-password:\n{}  by-credential:\n{}  refused:\n{}",
        entry(&cloud.env(), ""),
        entry(&cloud.env_application_credential(), ""),
        entry(&with_wrong, &wrong)
    )
}

#[test]
fn the_verbs_of_the_cloud_write_no_secret() {
    let mut bed = Bed::new();
    bed.ok(&["volume", "create", "v1", "--size", "1", "--json"]);
    bed.ok(&["volume", "list"]);
    let told = bed.last();
    assert!(told.contains("cloud answered"), "not all is logged: {told}");
    bed.ok(&["volume", "show", "v1", "--json"]);
    bed.ok(&["volume", "snapshot", "create", "v1", "s1"]);
    bed.ok(&["volume", "snapshot", "list"]);
    bed.ok(&["doctor"]);
    for cloud in ["by-credential", "refused", "absent"] {
        let mut command = bed.home.command(&["volume", "list", "--json"]);
        command.env("OS_CLOUD", cloud);
        let is_ok = bed.run_command(command).success();
        assert_eq!(is_ok, cloud == "by-credential", "{}", bed.last());
    }
    bed.cloud
        .inject(Fault::quote_once("GET /volumes/detail", 403));
    bed.fails(&["volume", "list"]);
    assert!(bed.last().contains("[secret]"), "{}", bed.last());
    for status in [400, 401, 500] {
        bed.cloud
            .inject(Fault::quote_once("POST /auth/tokens", status));
        let ended = bed.run(&["volume", "list"]);
        // A Keystone that fails is asked again.
        assert_eq!(ended.success(), status == 500, "{status}: {}", bed.last());
    }
    let key = bed.input("key", AUTH_KEY);
    let accept = [
        "volume",
        "transfer",
        "accept",
        "t1",
        "--auth-key-file",
        &key,
    ];
    bed.cloud.inject(Fault::Quote {
        request: "POST /os-volume-transfer/t1/accept".to_owned(),
        status: 400,
        times: None,
    });
    bed.fails(&accept);
    assert!(bed.last().contains("[secret]"), "{}", bed.last());
    bed.cloud.clear_faults();
    bed.fails(&accept);
    bed.fails(&["volume", "create", "v2", "--sise", "1"]);
    assert_none(&bed.found());
}

#[test]
fn a_daemon_and_its_supervisor_write_and_show_no_secret() {
    let mut bed = Bed::new();
    let (mut supervisor, _) = bed.start(bed.home.command(&["supervise"]));
    let socket = bed.home.path("run/control.sock");
    wait_until("the daemon listens", || {
        UnixStream::connect(&socket).is_ok()
    });
    bed.docker("Create", r#"{"Name":"v1","Opts":{"size":"1"}}"#);
    bed.docker("Create", r#"{"Name":"v2","Opts":{"sise":"1"}}"#);
    bed.docker("Mount", r#"{"Name":"v1","ID":"c1"}"#);
    let daemon = children_of(supervisor.id());
    assert_eq!(daemon.len(), 1);
    let mut found = bed.in_proc(supervisor.id());
    found.extend(bed.in_proc(daemon[0]));
    bed.docker("Get", r#"{"Name":"v1"}"#);
    bed.docker("List", "{}");
    bed.cloud.expire_tokens();
    bed.cloud
        .inject(Fault::quote_once("POST /auth/tokens", 401));
    bed.docker("Create", r#"{"Name":"v3","Opts":{"size":"1"}}"#);
    let target = target();
    let (right, wrong) = (
        bed.input("right", CHAP_SECRET),
        bed.input("wrong", WRONG_CHAP_SECRET),
    );
    for secret in [&wrong, &right] {
        let portal = target.portal();
        // Where the kernel has no NBD both are refused, before the target is asked.
        bed.run(&words("attach", &portal, secret));
    }
    for words in [
        &["list", "--json"][..],
        &["status"],
        &["doctor", "--json"],
        &["detach", "--all"],
    ] {
        bed.run(words);
    }
    bed.docker("Unmount", r#"{"Name":"v1","ID":"c1"}"#);
    found.extend(bed.found());
    bed.docker("Remove", r#"{"Name":"v1"}"#);
    signal(supervisor.id(), "TERM");
    assert!(supervisor.wait().unwrap().success());
    found.extend(bed.found());
    assert_none(&found);
}

#[test]
fn an_export_writes_and_shows_no_secret() {
    let mut bed = Bed::new();
    let target = target();
    let portal = target.portal();
    let socket = bed.home.path("export.sock");
    let (right, wrong) = (
        bed.input("right", CHAP_SECRET),
        bed.input("wrong", WRONG_CHAP_SECRET),
    );
    let with_socket = |secret| {
        let mut command = bed.home.command(&words("export", &portal, secret));
        command.arg("--socket").arg(&socket);
        command
    };
    let (refused, served) = (with_socket(&wrong), with_socket(&right));
    assert!(!bed.run_command(refused).success());
    assert!(bed.last().contains("CHAP"), "{}", bed.last());
    bed.fails(&["discover", "--portal", "127.0.0.1:1"]);
    let (mut export, _) = bed.start(served);
    wait_until("the export listens", || {
        UnixStream::connect(&socket).is_ok()
    });
    let found = bed.in_proc(export.id());
    let mut client = Client::connect_unix(&socket, "").unwrap();
    wait_until("the client has its session", || target.sessions() > 0);
    let logins = target.logins();
    target.inject(support::target::Fault::CloseAtLogin);
    target.drop_connections();
    wait_until("a login fails", || bed.last().contains(LOGIN_FAILED));
    target.clear_faults();
    wait_until("it has logged in again", || target.logins() > logins);
    assert_eq!(client.read(0, 512).unwrap(), vec![0; 512]);
    drop(client);
    signal(export.id(), "TERM");
    assert!(export.wait().unwrap().success());
    assert_none(&found);
    assert_none(&bed.found());
}

fn target() -> Target {
    Target::builder()
        .iqn(IQN)
        .chap("alice", CHAP_SECRET)
        .lun(1, Disk::memory(1 << 20))
        .start_blocking()
}

fn words<'a>(verb: &'a str, portal: &'a str, secret_file: &'a str) -> [&'a str; 11] {
    [
        verb,
        "--portal",
        portal,
        "--target",
        IQN,
        "--lun",
        "1",
        "--chap-user",
        "alice",
        "--chap-secret-file",
        secret_file,
    ]
}

fn children_of(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).unwrap();
    text.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}
