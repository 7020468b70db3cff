//! The plugin over a real Unix socket, with an engine on a cloud and a host of the test's making.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::volume::fake::World;
use crate::volume::{Content, Running};

mod errors;

struct Bed {
    world: World,
    directory: tempfile::TempDir,
    http: reqwest::Client,
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), Error>>,
    _running: Running,
}

impl Bed {
    fn new() -> Self {
        let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
        let settings = World::settings(directory.path());
        let (cloud, platform) = (Arc::new(world.clone()), Arc::new(world.clone()));
        let (engine, running) = Engine::start(settings, cloud, platform).unwrap();
        let socket = directory.path().join("plugins/cinder.sock");
        let shutdown = CancellationToken::new();
        let plugin = Plugin::bind(&socket).unwrap();
        let server = tokio::spawn(plugin.serve(engine, shutdown.clone()));
        let http = reqwest::Client::builder()
            .unix_socket(socket)
            .no_proxy()
            .build()
            .unwrap();
        Self {
            world,
            directory,
            http,
            shutdown,
            server,
            _running: running,
        }
    }

    async fn call_raw(
        &self,
        call: &str,
        content_type: Option<&str>,
        body: String,
    ) -> (u16, String, Value) {
        let mut request = self.http.post(format!("http://plugin/{call}")).body(body);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let kind = response.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        (
            status,
            kind,
            serde_json::from_slice(&response.bytes().await.unwrap()).unwrap(),
        )
    }

    async fn call(&self, call: &str, body: Value) -> (u16, Value) {
        let (status, kind, answer) = self
            .call_raw(call, Some(CONTENT_TYPE), body.to_string())
            .await;
        assert_eq!(kind, CONTENT_TYPE);
        (status, answer)
    }

    async fn done(&self, call: &str, body: Value) -> Value {
        let (status, answer) = self.call(call, body).await;
        assert_eq!(
            (status, &answer["Err"]),
            (200, &json!("")),
            "{call}: {answer}"
        );
        answer
    }

    async fn err(&self, call: &str, body: Value) -> String {
        let (status, answer) = self.call(call, body).await;
        assert_eq!(status, 500, "{call}: {answer}");
        let text = answer["Err"].as_str().unwrap().to_owned();
        assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
        text
    }
}

#[tokio::test]
async fn the_engine_finds_a_global_volume_driver() {
    let bed = Bed::new();
    // The engine activates with an empty body and its own content type; others send none at all.
    for content_type in [Some(CONTENT_TYPE), Some("application/json"), None] {
        let (status, _, answer) = bed
            .call_raw("Plugin.Activate", content_type, String::new())
            .await;
        assert_eq!(
            (status, answer),
            (200, json!({ "Implements": ["VolumeDriver"] }))
        );
    }
    let answer = bed.done("VolumeDriver.Capabilities", json!({})).await;
    assert_eq!(answer["Capabilities"]["Scope"], "global");
    let (status, answer) = bed.call("VolumeDriver.Shrink", json!({})).await;
    assert_eq!(status, 404);
    assert!(
        answer["Err"]
            .as_str()
            .unwrap()
            .contains("VolumeDriver.Shrink")
    );
}

#[tokio::test]
async fn a_volume_lives_from_create_to_remove() {
    let bed = Bed::new();
    let named = json!({ "Name": "v1" });
    // The engine asks for it before it creates it.
    assert!(
        bed.err("VolumeDriver.Get", named.clone())
            .await
            .starts_with("no such volume")
    );
    bed.done(
        "VolumeDriver.Create",
        json!({ "Name": "v1", "Opts": { "size": "3", "ro": "false" } }),
    )
    .await;
    assert_eq!(bed.world.volumes()[0].size, 3);
    assert_eq!(
        bed.done("VolumeDriver.Path", named.clone()).await["Mountpoint"],
        ""
    );

    let mount = json!({ "Name": "v1", "ID": "c1" });
    let at = bed.done("VolumeDriver.Mount", mount.clone()).await["Mountpoint"].clone();
    let expected = bed.directory.path().join("mnt/v1");
    assert_eq!(at, expected.to_str().unwrap());
    assert_eq!(
        bed.done("VolumeDriver.Path", named.clone()).await["Mountpoint"],
        at
    );

    let volume = bed.done("VolumeDriver.Get", named.clone()).await["Volume"].clone();
    assert_eq!(
        (&volume["Name"], &volume["Mountpoint"]),
        (&json!("v1"), &at)
    );
    assert_eq!(volume["CreatedAt"], "2026-11-22T20:00:00Z");
    assert_eq!(
        (&volume["Status"]["state"], &volume["Status"]["size_gib"]),
        (&json!("mounted"), &json!(3))
    );
    assert!(
        volume["Status"]["device"]
            .as_str()
            .unwrap()
            .starts_with("/dev/nbd")
    );

    let volumes = bed.done("VolumeDriver.List", json!({})).await["Volumes"].clone();
    assert_eq!(
        (volumes.as_array().unwrap().len(), &volumes[0]["Name"]),
        (1, &json!("v1"))
    );
    assert!(
        bed.err("VolumeDriver.Remove", named.clone())
            .await
            .contains("in use")
    );
    bed.done("VolumeDriver.Unmount", mount).await;
    assert!(bed.world.is_clean());
    bed.done("VolumeDriver.Remove", named.clone()).await;
    assert!(bed.world.volumes().is_empty());
    assert!(
        bed.err("VolumeDriver.Get", named)
            .await
            .starts_with("no such volume")
    );
}

#[tokio::test]
async fn a_repeated_create_makes_one_volume() {
    let bed = Bed::new();
    for _ in 0..2 {
        bed.done("VolumeDriver.Create", json!({ "Name": "v1", "Opts": null }))
            .await;
    }
    assert_eq!(bed.world.volumes().len(), 1);
}

#[tokio::test]
async fn what_cannot_be_is_said_in_one_line() {
    let bed = Bed::new();
    let create = |opts: Value| json!({ "Name": "v1", "Opts": opts });
    for (call, body, wanted) in [
        (
            "VolumeDriver.Create",
            create(json!({ "sice": "1" })),
            "did you mean `size`",
        ),
        (
            "VolumeDriver.Create",
            create(json!({ "size": "huge" })),
            "is no size",
        ),
        (
            "VolumeDriver.Create",
            create(json!({ "fstype": "zfs" })),
            "no known fstype",
        ),
        (
            "VolumeDriver.Create",
            json!({ "Name": "../v1" }),
            "cannot be a volume name",
        ),
        ("VolumeDriver.Create", json!({}), "cannot be a volume name"),
        (
            "VolumeDriver.Create",
            json!({ "Name": 7 }),
            "not understood",
        ),
        (
            "VolumeDriver.Mount",
            json!({ "Name": "absent", "ID": "c" }),
            "no such volume",
        ),
        (
            "VolumeDriver.Remove",
            json!({ "Name": "absent" }),
            "no such volume",
        ),
    ] {
        let text = bed.err(call, body.clone()).await;
        assert!(text.contains(wanted), "{call} {body}: {text}");
    }
    assert!(bed.world.volumes().is_empty());
}

#[tokio::test]
async fn a_failed_mount_names_its_cause_and_leaves_nothing() {
    let bed = Bed::new();
    bed.done("VolumeDriver.Create", json!({ "Name": "v1" }))
        .await;
    let id = bed.world.volumes()[0].id.clone();
    bed.world
        .set_content(&id, Content::Other("a gpt partition table".to_owned()));
    let text = bed
        .err("VolumeDriver.Mount", json!({ "Name": "v1", "ID": "c1" }))
        .await;
    assert!(text.contains("a gpt partition table"), "{text}");
    assert!(bed.world.is_clean());
    let volume = bed.done("VolumeDriver.Get", json!({ "Name": "v1" })).await["Volume"].clone();
    assert!(
        volume["Status"]["last_error"]
            .as_str()
            .unwrap()
            .contains("gpt")
    );
}

#[tokio::test]
async fn an_outage_of_the_cloud_does_not_make_docker_forget() {
    let bed = Bed::new();
    bed.done("VolumeDriver.Create", json!({ "Name": "v1" }))
        .await;
    bed.world.fail("find");
    bed.done("VolumeDriver.Get", json!({ "Name": "v1" })).await;
    bed.done("VolumeDriver.Path", json!({ "Name": "v1" })).await;
    let volumes = bed.done("VolumeDriver.List", json!({})).await["Volumes"].clone();
    assert_eq!(volumes.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_socket_goes_with_its_server() {
    let bed = Bed::new();
    let socket: PathBuf = bed.directory.path().join("plugins/cinder.sock");
    assert!(socket.exists());
    bed.shutdown.cancel();
    bed.server.await.unwrap().unwrap();
    assert!(!socket.exists());
}
