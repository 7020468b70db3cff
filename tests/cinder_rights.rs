//! `docs/clouds.md` against the client: the rights that it lists are those that all of the client's requests need, and no
//! more. `tests/cinder_real/rights.rs` has a real Keystone enforce them.
#![expect(
    clippy::unwrap_used,
    reason = "what does not hold ends the test, in its helpers too"
)]

mod rights;

use std::collections::BTreeMap;
use std::time::Duration;

use cinder_nbd::cinder::{Cinder, Connector, NewSnapshot, NewVolume};
use cinder_nbd::config::{Auth, CloudConfig, Interface, Tls};
use iscsi::proto::Secret;
use support::cloud::Cloud;

use rights::Rule;

/// The stand-in's paths begin with it, as those of a Cinder behind a web server do.
const PREFIX: &str = "/volume";

async fn connect(cloud: &Cloud) -> Cinder {
    let environment: BTreeMap<String, String> =
        cloud.env_application_credential().into_iter().collect();
    let value = |name: &str| environment[name].clone();
    let config = CloudConfig {
        place: "the test".to_owned(),
        auth_url: value("OS_AUTH_URL"),
        auth: Auth::ApplicationCredential {
            id: value("OS_APPLICATION_CREDENTIAL_ID"),
            secret: Secret::new(value("OS_APPLICATION_CREDENTIAL_SECRET")),
        },
        region: None,
        interface: Interface::Public,
        endpoint_override: None,
        tls: Tls::default(),
        request_timeout: Duration::from_secs(10),
    };
    Cinder::connect(&config).await.unwrap()
}

fn new(name: &str) -> NewVolume {
    NewVolume {
        name: name.to_owned(),
        size: 1,
        ..NewVolume::default()
    }
}

/// Everything that the client can be asked for.
async fn ask_for_all(cinder: &Cinder) {
    let volume = cinder.create(&new("v1")).await.unwrap();
    let id = &volume.id;
    let of_no_type = NewVolume {
        volume_type: Some("none such".to_owned()),
        ..new("v2")
    };
    cinder.create(&of_no_type).await.unwrap_err();
    cinder.find("v1").await.unwrap();
    cinder.show(id).await.unwrap();
    cinder.list().await.unwrap();
    cinder.named("v1").await.unwrap();
    cinder.set_metadata(id, "key", "value").await.unwrap();
    cinder.remove_metadata(id, "key").await.unwrap();
    cinder.extend(id, 2).await.unwrap();
    attach(cinder, id).await;
    copies(cinder, id).await;
    let offered = cinder.offer(id, Some("offer")).await.unwrap();
    cinder.transfers().await.unwrap();
    cinder.find_transfer(&offered.transfer.id).await.unwrap();
    cinder
        .accept(&offered.transfer.id, &offered.auth_key)
        .await
        .unwrap();
    let offered = cinder.offer(id, None).await.unwrap();
    cinder.withdraw(&offered.transfer.id).await.unwrap();
    cinder.delete(id).await.unwrap();
}

async fn attach(cinder: &Cinder, id: &str) {
    let attachment = cinder.reserve(id, false).await.unwrap();
    let connector = Connector {
        initiator: "iqn.2026-11.org.cinder-nbd:test".into(),
        host: "test".into(),
        ip: "127.0.0.1".into(),
        mountpoint: "cinder-nbd:test".into(),
        read_only: false,
    };
    cinder
        .connect_attachment(&attachment, &connector)
        .await
        .unwrap();
    cinder.connection_of(&attachment).await.unwrap();
    cinder.complete(&attachment).await.unwrap();
    cinder.attachments(id).await.unwrap();
    cinder.holders(id).await.unwrap();
    cinder.delete_attachment(&attachment).await.unwrap();
}

async fn copies(cinder: &Cinder, id: &str) {
    let wanted = NewSnapshot {
        volume_id: id.to_owned(),
        name: "s1".to_owned(),
        description: None,
    };
    let snapshot = cinder.begin_snapshot(&wanted).await.unwrap();
    let patience = Duration::from_secs(10);
    let snapshot = cinder.await_snapshot(&snapshot.id, patience).await.unwrap();
    cinder.find_snapshot("s1").await.unwrap();
    cinder.show_snapshot(&snapshot.id).await.unwrap();
    cinder.snapshots(Some(id)).await.unwrap();
    drop(cinder.snapshot_failure(&snapshot).await);
    cinder.delete_snapshot(&snapshot.id).await.unwrap();
}

/// Whether a request is one of those that the rule allows.
///
/// keystonemiddleware, `auth_token`: a star is at least one letter of a segment, two are anything.
fn allows(rule: &Rule, method: &str, path: &str) -> bool {
    rule.method == method && matches(rule.path.as_bytes(), path.as_bytes())
}

fn matches(pattern: &[u8], path: &[u8]) -> bool {
    match pattern {
        [] => path.is_empty(),
        [b'*', b'*', rest @ ..] => (0..=path.len()).any(|at| matches(rest, &path[at..])),
        [b'*', rest @ ..] => {
            let segment = path.iter().take_while(|byte| **byte != b'/').count();
            (1..=segment).any(|at| matches(rest, &path[at..]))
        }
        [letter, rest @ ..] => path
            .split_first()
            .is_some_and(|(first, path)| first == letter && matches(rest, path)),
    }
}

#[tokio::test]
async fn the_rights_that_are_listed_are_those_that_are_used() {
    let rules = rights::published();
    let cloud = Cloud::start().await;
    let cinder = connect(&cloud).await;
    let before = cloud.requests().len();
    ask_for_all(&cinder).await;
    let mut used = vec![false; rules.len()];
    for request in cloud.requests().into_iter().skip(before) {
        let method = request.name.split(' ').next().unwrap().to_owned();
        let path = request.path.split('?').next().unwrap();
        let path = path.strip_prefix(PREFIX).unwrap_or(path);
        let rule = rules.iter().position(|rule| allows(rule, &method, path));
        let rule = rule.unwrap_or_else(|| panic!("{method} {path} is not listed"));
        used[rule] = true;
    }
    let idle: Vec<&Rule> = rules
        .iter()
        .zip(&used)
        .filter(|(_, used)| !**used)
        .map(|(rule, _)| rule)
        .collect();
    assert!(idle.is_empty(), "listed, and never used: {idle:?}");
}

#[test]
fn a_rule_is_matched_as_keystone_does() {
    let rule = |path: &str| Rule {
        service: "block-storage".to_owned(),
        method: "GET".to_owned(),
        path: path.to_owned(),
    };
    let both = rule("/v3**/volumes/*");
    assert!(allows(&both, "GET", "/v3/volumes/1"));
    assert!(allows(&both, "GET", "/v3/project/volumes/1"));
    assert!(!allows(&both, "POST", "/v3/volumes/1"));
    assert!(!allows(&both, "GET", "/v3/volumes"));
    assert!(!allows(&both, "GET", "/v3/volumes/1/metadata"));
    assert!(!allows(&both, "GET", "/v2/volumes/1"));
    assert!(!allows(&rule("/v3**/volumes"), "GET", "/v3/volumes/detail"));
}
