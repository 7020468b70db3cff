//! Services that stop, die and come back, tokens that are taken back, states that an administrator sets.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::*;

impl Bed {
    /// `stop`, `cont` or `restart` of one of the bed's services.
    fn service(&self, name: &str, what: &str) {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/beds/openstack/service");
        let mut command = Command::new(program);
        let status = command.arg(&self.state).args([name, what]).status();
        assert!(status.unwrap().success(), "{name} {what}");
    }

    async fn administrator(&self) -> Administrator {
        let words = std::fs::read_to_string(self.state.join("passwords.json")).unwrap();
        let words: Value = serde_json::from_str(&words).unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = self.config.auth_url.clone();
        let domain = json!({"id": "default"});
        let body = json!({"auth": {
            "identity": {"methods": ["password"], "password": {
                "user": {"name": "admin", "domain": domain, "password": words["admin"]}}},
            "scope": {"project": {"name": "admin", "domain": domain}}}});
        let asked = http.post(format!("{url}/auth/tokens")).json(&body).send();
        let answer = asked.await.unwrap().error_for_status().unwrap();
        let token = answer.headers()["x-subject-token"]
            .to_str()
            .unwrap()
            .to_owned();
        let answer: Value = answer.json().await.unwrap();
        let services = answer["token"]["catalog"].as_array().unwrap();
        let storage = services.iter().find(|one| one["type"] == "volumev3");
        let endpoints = storage.unwrap()["endpoints"].as_array().unwrap();
        let public = endpoints.iter().find(|one| one["interface"] == "public");
        Administrator {
            http,
            token,
            keystone: url,
            cinder: public.unwrap()["url"].as_str().unwrap().to_owned(),
            demo_password: words["demo"].as_str().unwrap().to_owned(),
        }
    }
}

struct Administrator {
    http: reqwest::Client,
    token: String,
    keystone: String,
    cinder: String,
    demo_password: String,
}

impl Administrator {
    async fn call(&self, request: reqwest::RequestBuilder) -> Value {
        let answer = request.header("X-Auth-Token", &self.token).send().await;
        let answer = answer.unwrap().error_for_status().unwrap();
        let text = answer.text().await.unwrap();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// A change of the password, to what it is, takes back every token of the user.
    async fn revoke_all(&self) {
        let url = format!("{}/users?name=demo", self.keystone);
        let found = self.call(self.http.get(url)).await;
        let id = found["users"][0]["id"].as_str().unwrap().to_owned();
        let body = json!({"user": {"password": self.demo_password}});
        let url = format!("{}/users/{id}", self.keystone);
        self.call(self.http.patch(url).json(&body)).await;
    }

    async fn set_status(&self, volume: &Volume, status: &str) {
        let url = format!("{}/volumes/{}/action", self.cinder, volume.id);
        let body = json!({"os-reset_status": {"status": status}});
        self.call(self.http.post(url).json(&body)).await;
    }
}

#[tokio::test]
async fn a_token_that_ends_midway_is_replaced_and_nobody_notices() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let volume = cinder.create(&new(&name("midway"))).await.unwrap();
    let attachment = cinder.reserve(&volume.id, false).await.unwrap();
    bed.administrator().await.revoke_all().await;
    // Keystone counts in seconds: a token of the same second would be taken back too.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let connected = cinder.connect_attachment(&attachment, &connector()).await;
    connected.unwrap();
    cinder.complete(&attachment).await.unwrap();
    cinder.delete_attachment(&attachment).await.unwrap();
    finish(&cinder, &volume).await;
}

#[tokio::test]
async fn a_volume_service_that_is_silent_during_an_attach_leaves_what_can_be_undone() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let volume = cinder.create(&new(&name("silent"))).await.unwrap();
    let attachment = cinder.reserve(&volume.id, false).await.unwrap();
    bed.service("cinder-volume", "stop");
    let connected = cinder.connect_attachment(&attachment, &connector()).await;
    bed.service("cinder-volume", "cont");
    let error = connected.unwrap_err();
    assert!(
        matches!(error, Error::Backend { .. } | Error::Unavailable { .. }),
        "{error}"
    );
    one_line(&error);
    cinder.delete_attachment(&attachment).await.unwrap();
    // What was asked of it while it was away it may do now: the end counts.
    let until = Instant::now() + Duration::from_secs(30);
    while status(&cinder, &volume).await != "available" {
        assert!(Instant::now() < until, "{}", status(&cinder, &volume).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(cinder.attachments(&volume.id).await.unwrap().is_empty());
    finish(&cinder, &volume).await;
}

#[tokio::test]
async fn an_api_that_is_restarted_is_waited_for_or_named() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let volume = cinder.create(&new(&name("restarted"))).await.unwrap();
    let is_back = Arc::new(AtomicBool::new(false));
    let asking = tokio::spawn({
        let (cinder, id) = (cinder.clone(), volume.id.clone());
        let is_back = Arc::clone(&is_back);
        async move {
            let mut errors = Vec::new();
            while !is_back.load(Ordering::SeqCst) {
                errors.extend(cinder.show(&id).await.err());
            }
            errors
        }
    });
    tokio::task::spawn_blocking(move || bed.service("cinder-api", "restart"))
        .await
        .unwrap();
    is_back.store(true, Ordering::SeqCst);
    for error in asking.await.unwrap() {
        // Never "there is no such volume": a local record must not be forgotten for it.
        assert!(error.is_unavailable(), "{error}");
        one_line(&error);
    }
    finish(&cinder, &volume).await;
}

#[tokio::test]
async fn a_volume_in_error_is_named_and_can_be_deleted() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let volume = cinder.create(&new(&name("error"))).await.unwrap();
    let administrator = bed.administrator().await;
    administrator.set_status(&volume, "error").await;
    let error = cinder.reserve(&volume.id, false).await.unwrap_err();
    assert!(matches!(error, Error::WrongState { .. }), "{error}");
    assert!(one_line(&error).contains("is in state error"), "{error}");
    let error = cinder.extend(&volume.id, 2).await.unwrap_err();
    one_line(&error);
    // As after a driver that could not delete: the next attempt may.
    administrator.set_status(&volume, "error_deleting").await;
    let error = cinder.reserve(&volume.id, false).await.unwrap_err();
    assert!(one_line(&error).contains("error_deleting"), "{error}");
    administrator.set_status(&volume, "error").await;
    finish(&cinder, &volume).await;
}
