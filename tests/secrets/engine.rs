//! The daemon's parts in this process: engine, both sockets, a cloud and a target that are real to them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cinder_nbd::cli::control::server::Control;
use cinder_nbd::config::{Auth, CloudConfig, Config, Domain, Interface, Project, Tls, User};
use cinder_nbd::docker::Plugin;
use cinder_nbd::volume::{ConfiguredCloud, Engine, Parting, Running, Settings};
use iscsi::proto::Secret;
use serde_json::{Value, json};
use support::cloud::{Cloud, Fault};
use support::target::{Disk, Target};
use tokio_util::sync::CancellationToken;

use crate::host::SessionHost;
use crate::log::Log;
use crate::search::{Secrets, files_below};
use crate::{CHAP_SECRET, IQN, LOGIN_FAILED, PASSWORD, WRONG_CHAP_SECRET, assert_none};

struct Bed {
    cloud: Cloud,
    target: Target,
    directory: tempfile::TempDir,
    log: Log,
    secrets: Secrets,
    shutdown: CancellationToken,
    faces: Vec<tokio::task::JoinHandle<()>>,
    running: Option<Running>,
}

impl Bed {
    fn new() -> Self {
        let log = Log::start();
        let cloud = Cloud::builder().password(PASSWORD).start_blocking();
        let target = Target::builder()
            .iqn(IQN)
            .chap("alice", CHAP_SECRET)
            .lun(1, Disk::memory(1 << 20))
            .start_blocking();
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let of_cloud = cloud_config(&cloud);
        log.note(&format!("{of_cloud:#?}"));
        let host = Arc::new(SessionHost::new(log.clone()));
        let clouds = Arc::new(ConfiguredCloud::new(Some(of_cloud)));
        let settings = Settings::try_from(&config).unwrap();
        let (engine, running) = Engine::start(settings, clouds, host).unwrap();
        let shutdown = CancellationToken::new();
        let control = Control::bind(&config.control_socket).unwrap();
        let plugin = Plugin::bind(&config.docker_socket).unwrap();
        let control = control.serve(engine.clone(), shutdown.clone());
        let plugin = plugin.serve(engine.clone(), shutdown.clone());
        let faces = vec![
            tokio::spawn(async move { control.await.unwrap() }),
            tokio::spawn(async move { plugin.await.unwrap() }),
        ];
        log.note(&format!("{engine:#?}"));
        let mut secrets = Secrets::default();
        secrets.add("CHAP secret", CHAP_SECRET);
        secrets.add("wrong CHAP secret", WRONG_CHAP_SECRET);
        Self {
            cloud,
            target,
            directory,
            log,
            secrets,
            shutdown,
            faces,
            running: Some(running),
        }
    }

    /// Calls, and keeps what was answered among what is searched; its failure, if it is one.
    async fn call(
        &mut self,
        socket: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, String> {
        let http = reqwest::Client::builder()
            .unix_socket(self.directory.path().join(socket))
            .no_proxy()
            .build()
            .unwrap();
        let url = format!("http://daemon/{path}");
        let request = match body {
            Some(body) => http.post(url).body(body.to_string()),
            None => http.get(url),
        };
        let text = request.send().await.unwrap().text().await.unwrap();
        self.log.note(&text);
        // Volumes come and go, and their secrets with them.
        self.secrets.add_all(self.cloud.secrets());
        let answer: Value = serde_json::from_str(&text).unwrap();
        let failure = ["Err", "error"]
            .into_iter()
            .find_map(|key| answer.get(key)?.as_str().filter(|text| !text.is_empty()));
        match failure {
            Some(failure) => Err(failure.to_owned()),
            None => Ok(answer),
        }
    }

    async fn docker(&mut self, call: &str, body: Value) -> Result<Value, String> {
        let path = format!("VolumeDriver.{call}");
        self.call("docker.sock", &path, Some(body)).await
    }

    async fn control(&mut self, path: &str, body: Option<Value>) -> Result<Value, String> {
        self.call("run/control.sock", path, body).await
    }

    async fn attach_static(&mut self, secret: &str) -> Result<Value, String> {
        let body = json!({"portal": self.target.portal(), "target": IQN, "lun": 1, "chap_user": "alice",
            "chap_secret": secret});
        self.control("v1/attach-static", Some(body)).await
    }

    /// What stands in the files of the daemon.
    fn in_files(&self) -> Vec<String> {
        let sessions = self.directory.path().join("run/sessions");
        self.secrets
            .in_files(self.directory.path(), |path| path.starts_with(&sessions))
    }

    /// What libraries and our rooms write at their lowest level is heard, and a secret in it is found.
    fn assert_careless_lines_are_found(&self) {
        for heard in ["cloud answered", "hyper_util", "logged in"] {
            assert!(self.log.contains(heard), "nothing of {heard:?} was logged");
        }
        let before = self.log.text().len();
        tracing::trace!(body = ?json!({ "password": PASSWORD }), "careless");
        log::trace!("chap: {:?}", CHAP_SECRET.as_bytes());
        let found = self.secrets.in_text("log", &self.log.text()[before..]);
        for name in ["password", "CHAP secret"] {
            let is_found = found
                .iter()
                .any(|line| line.contains(&format!(": {name}, ")));
            assert!(is_found, "a line with the {name} is not found: {found:?}");
        }
    }

    /// Ends everything, and tells what was found in all that was written.
    async fn end(mut self) -> Vec<String> {
        let mut found = self.in_files();
        self.shutdown.cancel();
        for face in self.faces.drain(..) {
            face.await.unwrap();
        }
        let running = self.running.take().unwrap();
        running
            .stop(Duration::from_secs(10), Parting::TakeOff)
            .await;
        self.target.wait_sessions(0);
        self.cloud.target().wait_sessions(0);
        found.extend(self.secrets.in_files(self.directory.path(), |_| false));
        found.extend(self.secrets.in_text("log", &self.log.text()));
        self.assert_careless_lines_are_found();
        found
    }
}

fn config(directory: &Path) -> Config {
    let at = directory.display();
    let text = format!(
        "runtime_dir = \"{at}/run\"\nstate_dir = \"{at}/state\"\ndocker_socket = \"{at}/docker.sock\"\n\
         host = \"testhost\"\nlanes = 2\n"
    );
    let path = directory.join("config.toml");
    std::fs::write(&path, text).unwrap();
    Config::load_local(Some(&path)).unwrap()
}

fn cloud_config(cloud: &Cloud) -> CloudConfig {
    let domain = || Domain::Name("Default".to_owned());
    CloudConfig {
        place: "the test".to_owned(),
        auth_url: cloud.auth_url(),
        auth: Auth::Password {
            user: User::Name {
                name: "demo".to_owned(),
                domain: domain(),
            },
            password: Secret::new(PASSWORD.to_owned()),
            project: Project::Name {
                name: "demo".to_owned(),
                domain: domain(),
            },
        },
        region: Some("RegionOne".to_owned()),
        interface: Interface::Public,
        endpoint_override: None,
        tls: Tls::default(),
        request_timeout: Duration::from_secs(10),
    }
}

#[tokio::test]
async fn a_whole_life_with_all_its_failures_writes_no_secret() {
    let mut bed = Bed::new();
    bed.call("docker.sock", "Plugin.Activate", Some(json!({})))
        .await
        .unwrap();
    bed.docker("Create", json!({"Name": "v1", "Opts": {"size": "1"}}))
        .await
        .unwrap();
    bed.docker("Mount", json!({"Name": "v1", "ID": "c1"}))
        .await
        .unwrap();
    let sessions = files_below(&bed.directory.path().join("run/sessions"));
    assert_eq!(sessions.len(), 1);
    // The files can be searched: what the next daemon needs is in this one, and nowhere else.
    let found = bed.secrets.in_files(bed.directory.path(), |_| false);
    assert!(found.iter().any(|line| line.contains("/run/sessions/")));
    assert_none(&bed.in_files());
    looks(&mut bed).await;
    refusals_of_the_cloud(&mut bed).await;
    losses(&mut bed).await;
    targets_of_no_cloud(&mut bed).await;
    bed.docker("Unmount", json!({"Name": "v1", "ID": "c1"}))
        .await
        .unwrap();
    bed.docker("Remove", json!({"Name": "v1"})).await.unwrap();
    assert_none(&bed.end().await);
}

/// Everything that shows something.
async fn looks(bed: &mut Bed) {
    for call in ["Get", "Path", "List"] {
        bed.docker(call, json!({"Name": "v1"})).await.unwrap();
    }
    bed.control("v1/volumes", None).await.unwrap();
    bed.control("v1/status", None).await.unwrap();
    bed.control("v1/doctor", Some(json!({"repair": false})))
        .await
        .unwrap();
    bed.docker("Create", json!({"Name": "v9", "Opts": {"sise": "1"}}))
        .await
        .unwrap_err();
    // Not understood, with a secret in it.
    let wrong = json!({"portal": CHAP_SECRET, "chap_secret": [CHAP_SECRET], "lun": CHAP_SECRET});
    bed.control("v1/attach-static", Some(wrong))
        .await
        .unwrap_err();
}

/// Each with an answer that quotes what was sent.
async fn refusals_of_the_cloud(bed: &mut Bed) {
    let create = |name: &str| json!({"Name": name, "Opts": {"size": "1"}});
    for status in [400, 403, 409, 413, 500] {
        bed.cloud.inject(Fault::quote_once("POST /volumes", status));
        let refused = bed.docker("Create", create("v2")).await.unwrap_err();
        assert!(refused.contains("[secret]"), "{refused}");
        bed.docker("Remove", create("v2")).await.ok();
    }
    // A refused token is renewed; Keystone refuses to.
    for status in [400, 401, 403, 500, 503] {
        bed.cloud.expire_tokens();
        bed.cloud.inject(Fault::Quote {
            request: "POST /auth/tokens".to_owned(),
            status,
            times: None,
        });
        let refused = bed.docker("Create", create("v3")).await.unwrap_err();
        assert!(refused.contains("[secret]"), "{refused}");
        bed.cloud.clear_faults();
    }
    // A token is refused twice: the second time it is told.
    bed.cloud.inject(Fault::Quote {
        request: "POST /volumes".to_owned(),
        status: 401,
        times: None,
    });
    bed.docker("Create", create("v4")).await.unwrap_err();
    bed.cloud.clear_faults();
    bed.cloud.expire_tokens();
    bed.docker("Create", create("v5")).await.unwrap();
    bed.cloud.inject(Fault::ConnectFails);
    let attach = json!({"volume": "v5"});
    bed.control("v1/attach", Some(attach.clone()))
        .await
        .unwrap_err();
    bed.cloud
        .inject(Fault::quote_once("PUT /attachments/{id}", 500));
    bed.control("v1/attach", Some(attach)).await.unwrap_err();
    bed.cloud.inject(Fault::lose_answer("POST /volumes"));
    bed.docker("Create", create("v6")).await.ok();
    bed.control("v1/doctor", Some(json!({"repair": true})))
        .await
        .unwrap();
}

/// The target drops its connections, and does not let us in again for a while.
async fn losses(bed: &mut Bed) {
    let logins = bed.cloud.target().logins();
    bed.cloud
        .target()
        .inject(support::target::Fault::CloseAtLogin);
    bed.cloud.target().drop_connections();
    let log = &bed.log;
    until("a login fails", || log.contains(LOGIN_FAILED)).await;
    bed.cloud.target().clear_faults();
    let target = bed.cloud.target();
    until("it has logged in again", || target.logins() > logins).await;
    bed.docker("Get", json!({"Name": "v1"})).await.unwrap();
}

/// Looks again and again, for no more than a minute.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let looked = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_mins(1), looked).await;
    assert!(in_time.is_ok(), "{what}: not within a minute");
}

async fn targets_of_no_cloud(bed: &mut Bed) {
    let refused = bed.attach_static(WRONG_CHAP_SECRET).await.unwrap_err();
    assert!(refused.contains("CHAP"), "{refused}");
    let attached = bed.attach_static(CHAP_SECRET).await.unwrap();
    let name = attached["name"].as_str().unwrap().to_owned();
    bed.control("v1/volumes", None).await.unwrap();
    assert_none(&bed.in_files());
    bed.control("v1/detach", Some(json!({ "volume": name })))
        .await
        .unwrap();
}
