//! The stand-in for Keystone and Cinder, held against what real ones were recorded to say.

#![expect(
    clippy::unwrap_used,
    reason = "clippy takes the helpers of tests for something else"
)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::cloud::{Catalog, Cloud, Fault};

#[test]
fn keystone_tells_its_versions_and_gives_scoped_tokens() {
    let user = User::of(Cloud::builder().start_blocking());
    let versions = user.identity("GET", "/", &Value::Null);
    assert_eq!(versions.status, 300);
    assert_eq!(versions.body["versions"]["values"][0]["id"], "v3.14");
    let version = user.identity("GET", "/v3", &Value::Null);
    assert_eq!(
        (version.status, &version.body["version"]["status"]),
        (200, &json!("stable"))
    );

    let answer = user.identity("POST", "/v3/auth/tokens", &password(&user.cloud));
    assert_eq!(answer.status, 201);
    assert!(
        answer
            .header("x-subject-token")
            .unwrap()
            .starts_with("gAAAA")
    );
    let token = &answer.body["token"];
    assert_eq!(token["methods"], json!(["password"]));
    assert!(token["expires_at"].as_str().unwrap().ends_with(".000000Z"));
    let kinds: Vec<&Value> = token["catalog"]
        .as_array()
        .unwrap()
        .iter()
        .map(|service| &service["type"])
        .collect();
    assert_eq!(kinds, ["identity", "block-storage", "volumev3"]);
    let project = token["project"]["id"].as_str().unwrap();
    assert!(
        token["catalog"][2]["endpoints"][0]["url"]
            .as_str()
            .unwrap()
            .ends_with(project)
    );
}

#[test]
fn keystone_refuses_as_it_does() {
    let user = User::of(Cloud::builder().start_blocking());
    let tokens = |body: &Value| user.identity("POST", "/v3/auth/tokens", body);
    let message = |answer: &Answer| answer.body["error"]["message"].as_str().unwrap().to_owned();

    let mut wrong = password(&user.cloud);
    wrong["auth"]["identity"]["password"]["user"]["password"] = "no".into();
    let answer = tokens(&wrong);
    assert_eq!(
        (answer.status, answer.body["error"]["title"].as_str()),
        (401, Some("Unauthorized"))
    );
    assert!(
        answer
            .header("www-authenticate")
            .unwrap()
            .starts_with("Keystone uri=")
    );
    let mut other = password(&user.cloud);
    other["auth"]["scope"]["project"]["name"] = "nothing".into();
    assert_eq!(tokens(&other).status, 401);

    assert_eq!(tokens(&credential(&user.cloud)).status, 201);
    let mut unknown = credential(&user.cloud);
    unknown["auth"]["identity"]["application_credential"]["id"] = "0".repeat(32).into();
    let answer = tokens(&unknown);
    assert_eq!(answer.status, 404);
    assert!(message(&answer).starts_with("Could not find Application Credential: 000"));
    let mut scoped = credential(&user.cloud);
    scoped["auth"]["scope"] = json!({"project": {"name": "demo"}});
    let answer = tokens(&scoped);
    assert_eq!(answer.status, 401);
    assert!(message(&answer).ends_with("Application credentials cannot request a scope."));

    assert_eq!(tokens(&json!({"auth": {}})).status, 400);
    assert_eq!(tokens(&Value::Null).status, 400);
    let page = user.identity("GET", "/v3/nothing", &Value::Null);
    assert_eq!((page.status, page.body), (404, Value::Null));
}

#[test]
fn tokens_end_and_tokens_without_project_are_useless() {
    let user = User::of(Cloud::builder().start_blocking());
    assert_eq!(user.cinder("GET", "/volumes", &Value::Null).status, 200);
    user.cloud.expire_tokens();
    let answer = user.cinder("GET", "/volumes", &Value::Null);
    assert_eq!(
        (answer.status, &answer.body["error"]["code"]),
        (401, &json!(401))
    );

    let mut unscoped = password(&user.cloud);
    unscoped["auth"].as_object_mut().unwrap().remove("scope");
    let answer = user.identity("POST", "/v3/auth/tokens", &unscoped);
    assert_eq!(answer.status, 201);
    assert!(answer.body["token"].get("catalog").is_none());
    let token = answer.header("x-subject-token").unwrap();
    let answer = user.send(
        "GET",
        "/volume/v3/volumes",
        &Value::Null,
        &[("X-Auth-Token", &token)],
    );
    assert_eq!(
        answer.body["badRequest"]["message"],
        "Malformed request url"
    );
}

#[test]
fn microversions_are_checked_and_told() {
    let user = User::of(Cloud::builder().microversion_max(43).start_blocking());
    let ask = |version: &str, path: &str| {
        user.send(
            "GET",
            &format!("/volume/v3/{path}"),
            &Value::Null,
            &[
                ("X-Auth-Token", &user.token),
                ("OpenStack-API-Version", version),
            ],
        )
    };
    assert_eq!(
        ask("volume 3.27", "volumes")
            .header("openstack-api-version")
            .unwrap(),
        "volume 3.27"
    );
    assert_eq!(
        ask("volume latest", "volumes")
            .header("openstack-api-version")
            .unwrap(),
        "volume 3.43"
    );
    let answer = ask("volume 3.44", "volumes");
    assert_eq!(
        (answer.status, &answer.body["computeFault"]["code"]),
        (406, &json!(406))
    );
    assert_eq!(ask("volume abc", "volumes").status, 400);
    assert_eq!(
        ask("volume 3.26", "attachments").body["itemNotFound"]["code"],
        404
    );
    assert_eq!(ask("volume 3.27", "attachments").status, 200);
    // Without a token: versions at the root, and nothing below.
    let root = user.send("GET", "/volume/", &Value::Null, &[]);
    assert_eq!(
        (root.status, &root.body["versions"][0]["version"]),
        (300, &json!("3.43"))
    );
    assert_eq!(
        user.send("GET", "/volume/v3/", &Value::Null, &[]).status,
        401
    );
}

#[test]
fn volumes_live_through_their_statuses() {
    let user = User::of(
        Cloud::builder()
            .delay(Duration::from_millis(30))
            .start_blocking(),
    );
    let answer = user.create(&json!({"size": 1, "name": "twice", "metadata": {"k": "v"}}));
    assert_eq!(answer.status, 202);
    let volume = &answer.body["volume"];
    assert_eq!(
        (&volume["status"], &volume["bootable"]),
        (&json!("creating"), &json!("false"))
    );
    let id = volume["id"].as_str().unwrap().to_owned();
    user.wait(&id, "available");
    user.create(&json!({"size": "1", "name": "twice"}));

    let found = user.cinder("GET", "/volumes/detail?name=twice", &Value::Null);
    assert_eq!(found.body["volumes"].as_array().unwrap().len(), 2);
    let found = user.cinder(
        "GET",
        "/volumes/detail?metadata=%7B%27k%27%3A+%27v%27%7D",
        &Value::Null,
    );
    assert_eq!(found.body["volumes"].as_array().unwrap().len(), 1);
    let path = format!("/volumes/{id}/metadata");
    let merged = user.cinder("POST", &path, &json!({"metadata": {"more": "x"}}));
    assert_eq!(merged.body["metadata"], json!({"k": "v", "more": "x"}));

    assert_eq!(
        user.cinder("DELETE", &format!("/volumes/{id}"), &Value::Null)
            .status,
        202
    );
    user.wait(&id, "");
    let gone = user.cinder("GET", &format!("/volumes/{id}"), &Value::Null);
    let message = format!("Volume {id} could not be found.");
    assert_eq!(
        gone.body,
        json!({"itemNotFound": {"code": 404, "message": message}})
    );
}

#[test]
fn wrong_wishes_are_refused_in_cinders_words() {
    let user = User::of(Cloud::builder().quota(2, 3).start_blocking());
    let rows = [
        (
            json!({"size": 0}),
            400,
            "Invalid input for field/attribute size. Value: 0. 0 is less than the minimum of 1",
        ),
        (
            json!({"size": "x"}),
            400,
            "Invalid input for field/attribute size. Value: x. 'x' does not match '^[0-9]+$'",
        ),
        (
            json!({"size": 1, "volume_type": "nothing"}),
            404,
            "Volume type with name nothing could not be found.",
        ),
        (
            json!({"size": 1, "availability_zone": "mars"}),
            400,
            "Availability zone 'mars' is invalid.",
        ),
        (
            json!({"size": 9}),
            413,
            "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed gigabytes quota. Requested 9G, quota is 3G and 0G has been consumed.",
        ),
        (
            json!({"size": 1, "name": "n".repeat(256)}),
            400,
            "Invalid input received: name has 256 characters, more than 255.",
        ),
    ];
    for (wish, status, message) in rows {
        let answer = user.create(&wish);
        let (_, fault) = answer.body.as_object().unwrap().iter().next().unwrap();
        assert_eq!(
            (answer.status, fault["message"].as_str()),
            (status, Some(message)),
            "{wish}"
        );
    }
    assert_eq!(user.create(&json!({"size": 1})).status, 202);
    assert_eq!(user.create(&json!({"size": 1})).status, 202);
    let answer = user.create(&json!({"size": 1}));
    assert_eq!(answer.body["overLimit"]["retryAfter"], "0");
    let answer = user.cinder("PATCH", "/volumes", &Value::Null);
    assert_eq!(
        (answer.status, &answer.body["code"]),
        (404, &json!("404 Not Found"))
    );
}

#[test]
fn attachment_in_two_steps_exports_and_its_end_cuts_the_session() {
    let user = User::of(Cloud::builder().start_blocking());
    let id = user.volume();
    let answer = user.cinder(
        "POST",
        "/attachments",
        &json!({"attachment": {"volume_uuid": id, "mode": "rw"}}),
    );
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body["attachment"]["connection_info"], json!({}));
    let attachment = answer.body["attachment"]["id"].as_str().unwrap().to_owned();
    user.wait(&id, "reserved");
    let second = user.cinder(
        "POST",
        "/attachments",
        &json!({"attachment": {"volume_uuid": id}}),
    );
    assert_eq!(
        second.body["badRequest"]["message"],
        format!(
            "Invalid volume: Volume {id} status must be available or downloading to reserve, but the current status is reserved."
        )
    );

    let path = format!("/attachments/{attachment}");
    let connector = json!({"initiator": "iqn.2026-11.test:host", "host": "host", "ip": "127.0.0.1", "mountpoint": "here"});
    let answer = user.cinder(
        "PUT",
        &path,
        &json!({"attachment": {"connector": connector}}),
    );
    let info = answer.body["attachment"]["connection_info"].clone();
    assert_eq!(
        (&info["driver_volume_type"], &info["target_lun"]),
        (&json!("iscsi"), &json!(1))
    );
    assert_eq!(info["auth_username"].as_str().unwrap().len(), 20);
    assert_eq!(info["auth_password"].as_str().unwrap().len(), 16);
    user.wait(&id, "attaching");
    let complete = || {
        user.cinder(
            "POST",
            &format!("{path}/action"),
            &json!({"os-complete": {}}),
        )
        .status
    };
    assert_eq!((complete(), complete()), (204, 204));
    let shown = user.wait(&id, "in-use");
    assert_eq!(shown["attachments"][0]["device"], "here");

    assert!(reachable(&info));
    let busy = user.cinder("DELETE", &format!("/volumes/{id}"), &Value::Null);
    assert_eq!(busy.status, 400);
    let answer = user.cinder("DELETE", &path, &Value::Null);
    assert_eq!(
        (answer.status, &answer.body),
        (200, &json!({"attachments": []}))
    );
    user.wait(&id, "available");
    assert!(!reachable(&info));
    let again = user.cinder("DELETE", &path, &Value::Null);
    assert_eq!(
        again.body["itemNotFound"]["message"],
        format!("Volume attachment could not be found with filter: attachment_id = {attachment}.")
    );
    assert!(user.cloud.attachments().is_empty() && user.cloud.target().targets().is_empty());
}

#[test]
fn failed_connection_leaves_the_volume_reserved() {
    let user = User::of(Cloud::builder().start_blocking());
    let id = user.volume();
    user.cloud.inject(Fault::ConnectFails);
    let wish = json!({"attachment": {"volume_uuid": id, "connector": {"initiator": "iqn.2026-11.test:h", "host": "h"}}});
    let answer = user.cinder("POST", "/attachments", &wish);
    assert_eq!(
        (answer.status, &answer.body["computeFault"]["code"]),
        (500, &json!(500))
    );
    user.wait(&id, "reserved");
    let listed = user.cinder(
        "GET",
        &format!("/attachments/detail?volume_id={id}"),
        &Value::Null,
    );
    assert_eq!(
        listed.body["attachments"][0]["connection_info"],
        Value::Null
    );
    let left = listed.body["attachments"][0]["id"].as_str().unwrap();
    assert_eq!(
        user.cinder("DELETE", &format!("/attachments/{left}"), &Value::Null)
            .status,
        200
    );
    user.wait(&id, "available");
}

#[test]
fn multiattach_and_instances_are_as_in_cinder() {
    let user = User::of(Cloud::builder().start_blocking());
    let created = user.create(&json!({"size": 1, "volume_type": "multi"}));
    let id = created.body["volume"]["id"].as_str().unwrap().to_owned();
    user.wait(&id, "available");
    let first = user.cloud.attach_elsewhere(&id, "other");
    user.wait(&id, "in-use");
    let wish = json!({"attachment": {"volume_uuid": id, "instance_uuid": id,
        "connector": {"initiator": "iqn.2026-11.test:h", "host": "h"}}});
    let answer = user.cinder("POST", "/attachments", &wish);
    assert_eq!(answer.body["attachment"]["status"], "reserved");
    user.wait(&id, "attaching");
    let second = answer.body["attachment"]["id"].as_str().unwrap();
    // CVE-2023-2088: with an instance, the user cannot delete without Nova.
    assert_eq!(
        user.cinder("DELETE", &format!("/attachments/{second}"), &Value::Null)
            .status,
        500
    );
    let left = user.cinder("DELETE", &format!("/attachments/{first}"), &Value::Null);
    assert_eq!(left.body["attachments"][0]["id"], second);
}

#[test]
fn a_volume_that_fails_says_why() {
    let user = User::of(Cloud::builder().start_blocking());
    user.cloud.inject(Fault::CreateFails);
    let created = user.create(&json!({"size": 1}));
    let id = created.body["volume"]["id"].as_str().unwrap();
    user.wait(id, "error");
    let told = user.cinder(
        "GET",
        &format!("/messages?resource_uuid={id}"),
        &Value::Null,
    );
    assert_eq!(
        told.body["messages"][0]["event_id"],
        "VOLUME_VOLUME_008_012"
    );
}

#[test]
fn lists_come_in_pages() {
    let user = User::of(Cloud::builder().page_max(2).start_blocking());
    let made: Vec<String> = (0..5).map(|_| user.volume()).collect();
    let mut path = "/volumes/detail?limit=2".to_owned();
    let mut seen = Vec::new();
    loop {
        let page = user.cinder("GET", &path, &Value::Null);
        let volumes = page.body["volumes"].as_array().unwrap().clone();
        assert!(volumes.len() <= 2);
        seen.extend(
            volumes
                .iter()
                .map(|volume| volume["id"].as_str().unwrap().to_owned()),
        );
        let Some(next) = page.body["volumes_links"][0]["href"].as_str() else {
            break;
        };
        path = next[next.find("/volumes").unwrap()..].to_owned();
    }
    seen.reverse();
    assert_eq!(seen, made);
}

#[test]
fn injected_faults_strike_and_are_recorded() {
    let user = User::of(
        Cloud::builder()
            .catalog(Catalog::BlockStorage)
            .start_blocking(),
    );
    user.cloud.inject(Fault::answer_once("GET /volumes", 503));
    let answer = user.cinder("GET", "/volumes", &Value::Null);
    assert_eq!(
        (answer.status, &answer.body["code"]),
        (503, &json!("503 Service Unavailable"))
    );
    assert_eq!(user.cinder("GET", "/volumes", &Value::Null).status, 200);

    user.cloud.inject(Fault::lose_answer("POST /volumes"));
    assert!(
        user.try_send(
            "POST",
            "/volume/v3/volumes",
            &json!({"volume": {"size": 1}}),
            &[("X-Auth-Token", &user.token)]
        )
        .is_none()
    );
    assert_eq!(user.cloud.volumes().len(), 1);

    let requests = user.cloud.requests();
    let names: Vec<(&str, u16)> = requests
        .iter()
        .map(|one| (one.name.as_str(), one.status))
        .collect();
    assert_eq!(
        names,
        [
            ("POST /auth/tokens", 201),
            ("GET /volumes", 503),
            ("GET /volumes", 200),
            ("POST /volumes", 0)
        ]
    );
    let given = &requests[0].body["auth"]["identity"]["password"]["user"]["password"];
    assert_eq!(given, "[secret]");
}

/// A client with a token, as small as can be: one connection a request.
struct User {
    cloud: Cloud,
    host: String,
    token: String,
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> Option<String> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
    }
}

impl User {
    fn of(cloud: Cloud) -> Self {
        let url = cloud.auth_url();
        let host = url["http://".len()..].split('/').next().unwrap().to_owned();
        let mut user = Self {
            cloud,
            host,
            token: String::new(),
        };
        let answer = user.identity("POST", "/v3/auth/tokens", &password(&user.cloud));
        user.token = answer.header("x-subject-token").unwrap();
        user
    }

    fn identity(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.send(method, &format!("/identity{path}"), body, &[])
    }

    fn cinder(&self, method: &str, path: &str, body: &Value) -> Answer {
        let headers = [
            ("X-Auth-Token", self.token.as_str()),
            ("OpenStack-API-Version", "volume 3.54"),
        ];
        self.send(method, &format!("/volume/v3{path}"), body, &headers)
    }

    fn create(&self, wish: &Value) -> Answer {
        self.cinder("POST", "/volumes", &json!({"volume": wish}))
    }

    /// A new volume of 1 GiB that is available.
    fn volume(&self) -> String {
        let created = self.create(&json!({"size": 1}));
        let id = created.body["volume"]["id"].as_str().unwrap().to_owned();
        self.wait(&id, "available");
        id
    }

    /// Polls until the status is as told; the empty one is "gone".
    fn wait(&self, id: &str, status: &str) -> Value {
        for _ in 0..500 {
            let answer = self.cinder("GET", &format!("/volumes/{id}"), &Value::Null);
            let volume = answer.body["volume"].clone();
            if answer.status == 404 && status.is_empty() || volume["status"] == status {
                return volume;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{id} does not become `{status}`");
    }

    fn send(&self, method: &str, path: &str, body: &Value, headers: &[(&str, &str)]) -> Answer {
        self.try_send(method, path, body, headers).unwrap()
    }

    /// `None` if the connection closes without an answer.
    fn try_send(
        &self,
        method: &str,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> Option<Answer> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let mut stream = TcpStream::connect(&self.host).unwrap();
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n",
            self.host
        );
        for (name, value) in headers {
            head.extend([*name, ": ", *value, "\r\n"]);
        }
        write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        Some(Answer {
            status,
            headers,
            body: serde_json::from_str(body).unwrap_or_default(),
        })
    }
}

fn variable(list: &[(String, String)], name: &str) -> String {
    list.iter().find(|(key, _)| key == name).unwrap().1.clone()
}

fn password(cloud: &Cloud) -> Value {
    let env = cloud.env();
    json!({"auth": {
        "identity": {"methods": ["password"], "password": {"user": {
            "name": variable(&env, "OS_USERNAME"),
            "domain": {"name": variable(&env, "OS_USER_DOMAIN_NAME")},
            "password": variable(&env, "OS_PASSWORD"),
        }}},
        "scope": {"project": {
            "name": variable(&env, "OS_PROJECT_NAME"),
            "domain": {"name": variable(&env, "OS_PROJECT_DOMAIN_NAME")},
        }},
    }})
}

fn credential(cloud: &Cloud) -> Value {
    let env = cloud.env_application_credential();
    json!({"auth": {"identity": {"methods": ["application_credential"], "application_credential": {
        "id": variable(&env, "OS_APPLICATION_CREDENTIAL_ID"),
        "secret": variable(&env, "OS_APPLICATION_CREDENTIAL_SECRET"),
    }}}})
}

/// Whether libiscsi can log in with a connection info.
fn reachable(info: &Value) -> bool {
    let text = |key: &str| info[key].as_str().unwrap().to_owned();
    let url = format!(
        "iscsi://{}%{}@{}/{}/{}",
        text("auth_username"),
        text("auth_password"),
        text("target_portal"),
        text("target_iqn"),
        info["target_lun"]
    );
    Command::new("iscsi-readcapacity16")
        .arg(url)
        .output()
        .unwrap()
        .status
        .success()
}
