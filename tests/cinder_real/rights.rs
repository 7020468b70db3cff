//! The least rights of `docs/clouds.md`, as a real Keystone has them kept.

use serde_json::{Value, json};

use super::*;

#[path = "../rights/mod.rs"]
mod published;

/// A client of Keystone as the bed's user; tests alone make credentials.
struct Keystone {
    http: reqwest::Client,
    url: String,
    user: String,
    token: String,
}

impl Keystone {
    async fn log_in(config: &CloudConfig) -> Self {
        let Auth::Password {
            user: cinder_nbd::config::User::Name { name, .. },
            password,
            project: Project::Name { name: project, .. },
        } = &config.auth
        else {
            panic!("the bed gives user, password and project by name");
        };
        let domain = json!({"id": "default"});
        let body = json!({"auth": {
            "identity": {"methods": ["password"],
                "password": {"user": {"name": name, "domain": domain, "password": password.expose()}}},
            "scope": {"project": {"name": project, "domain": domain}}}});
        let url = config.auth_url.trim_end_matches("/v3").to_owned() + "/v3";
        let http = reqwest::Client::new();
        let answer = http.post(format!("{url}/auth/tokens")).json(&body).send();
        let answer = answer.await.unwrap().error_for_status().unwrap();
        let token = answer.headers()["X-Subject-Token"].to_str().unwrap();
        let token = token.to_owned();
        let body: Value = answer.json().await.unwrap();
        let user = body["token"]["user"]["id"].as_str().unwrap().to_owned();
        Self {
            http,
            url,
            user,
            token,
        }
    }

    /// An application credential that may do these things; its id and secret.
    async fn credential(&self, rules: &[published::Rule]) -> Auth {
        let url = format!("{}/users/{}/application_credentials", self.url, self.user);
        let body =
            json!({"application_credential": {"name": name("rights"), "access_rules": rules}});
        let request = self.http.post(url).header("X-Auth-Token", &self.token);
        let answer = request.json(&body).send().await.unwrap();
        let made: Value = answer.error_for_status().unwrap().json().await.unwrap();
        let made = &made["application_credential"];
        Auth::ApplicationCredential {
            id: made["id"].as_str().unwrap().to_owned(),
            secret: Secret::new(made["secret"].as_str().unwrap().to_owned()),
        }
    }
}

async fn with(bed: &Bed, rules: &[published::Rule]) -> Cinder {
    let keystone = Keystone::log_in(&bed.config).await;
    let config = CloudConfig {
        auth: keystone.credential(rules).await,
        ..bed.config.clone()
    };
    Cinder::connect(&config).await.unwrap()
}

#[tokio::test]
async fn the_published_rights_are_enough_for_a_volumes_life() {
    let Some(bed) = bed() else { return };
    let cinder = with(&bed, &published::published()).await;
    let volume = cinder.create(&new(&name("rights"))).await.unwrap();
    cinder
        .set_metadata(&volume.id, "key", "value")
        .await
        .unwrap();
    cinder.remove_metadata(&volume.id, "key").await.unwrap();
    cinder.extend(&volume.id, 2).await.unwrap();
    let attachment = cinder.reserve(&volume.id, false).await.unwrap();
    let connected = cinder.connect_attachment(&attachment, &connector()).await;
    connected.unwrap();
    cinder.complete(&attachment).await.unwrap();
    cinder.connection_of(&attachment).await.unwrap();
    assert_eq!(cinder.holders(&volume.id).await.unwrap().len(), 1);
    cinder.delete_attachment(&attachment).await.unwrap();
    finish(&cinder, &volume).await;
}

#[tokio::test]
async fn what_is_not_among_the_rights_is_refused_and_nothing_is_left() {
    let Some(bed) = bed() else { return };
    let all = bed.cinder().await;
    let volume = all.create(&new(&name("less"))).await.unwrap();
    let rules: Vec<_> = published::published()
        .into_iter()
        .filter(|rule| rule.method == "GET")
        .collect();
    let cinder = with(&bed, &rules).await;
    assert_eq!(cinder.find(&volume.id).await.unwrap().id, volume.id);
    let error = cinder.reserve(&volume.id, false).await.unwrap_err();
    assert!(matches!(error, Error::Token { .. }), "{error}");
    assert_eq!(status(&all, &volume).await, "available");
    finish(&all, &volume).await;
}
