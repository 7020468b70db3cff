//! The room `cinder` against a server that misbehaves on purpose: lost answers, expired tokens, proxies, foreign pages.
//!
//! What the server must be asked, and how often, is checked as much as what comes out.
#![expect(
    clippy::unwrap_used,
    reason = "what does not hold ends the test, in its helpers too"
)]

use std::time::Duration;

use cinder_nbd::cinder::{Cinder, Connector, Error, NewVolume};
use cinder_nbd::config::{Auth, CloudConfig, Domain, Interface, Project, Tls, User};
use iscsi::proto::Secret;
use serde_json::json;
use support::cloud::script::{Reply, Seen, Server, fault, ok, page, volume};

/// A client of the server.
trait Client {
    fn config(&self) -> CloudConfig;
    async fn cinder(&self) -> Cinder;
    async fn refused(&self) -> Error;
}

impl Client for Server {
    fn config(&self) -> CloudConfig {
        CloudConfig {
            place: "the environment".into(),
            auth_url: format!("{}/identity", self.url),
            auth: Auth::Password {
                user: User::Name {
                    name: "demo".into(),
                    domain: Domain::Id("default".into()),
                },
                password: Secret::new("hunter2".into()),
                project: Project::Id("p1".into()),
            },
            region: None,
            interface: Interface::Public,
            endpoint_override: None,
            tls: Tls::default(),
            request_timeout: Duration::from_secs(1),
        }
    }

    async fn cinder(&self) -> Cinder {
        Cinder::connect(&self.config()).await.unwrap()
    }

    async fn refused(&self) -> Error {
        Cinder::connect(&self.config()).await.unwrap_err()
    }
}

fn one_line(error: &Error) -> String {
    let text = error.to_string();
    assert!(
        !text.contains('\n') && !text.contains("hunter2") && !text.contains("token-1"),
        "{text}"
    );
    text
}

const VOLUMES: &str = "/volume/v3/p1/volumes/detail";
const TOKENS: &str = "/identity/v3/auth/tokens";
const ATTACHMENTS: &str = "/volume/v3/p1/attachments";

#[tokio::test]
async fn requests_carry_token_and_microversion() {
    let server = Server::start(|_, _| None).await;
    server.cinder().await.list().await.unwrap();
    let seen = server.seen();
    let list = seen.iter().find(|seen| seen.is("GET", VOLUMES)).unwrap();
    assert_eq!(list.headers["x-auth-token"], "token-1");
    assert_eq!(list.headers["openstack-api-version"], "volume 3.54");
    // The credentials were sent to one place only.
    assert_eq!(
        seen.iter()
            .filter(|seen| seen.body.to_string().contains("hunter2"))
            .count(),
        1
    );
}

#[tokio::test]
async fn an_expired_token_is_renewed_once() {
    let server = Server::start(|seen, before| {
        let first = seen.is("GET", VOLUMES) && !before.iter().any(|seen| seen.is("GET", VOLUMES));
        first.then(|| {
            fault(
                401,
                "error",
                "The request you have made requires authentication.",
            )
        })
    })
    .await;
    assert_eq!(server.cinder().await.list().await.unwrap().len(), 1);
    assert_eq!(
        (server.count("POST", TOKENS), server.count("GET", VOLUMES)),
        (2, 2)
    );
}

#[tokio::test]
async fn a_token_that_is_refused_again_is_an_error_and_no_loop() {
    let server = Server::start(|seen, _| {
        seen.is("GET", VOLUMES).then(|| {
            fault(
                401,
                "error",
                "The request you have made requires authentication.",
            )
        })
    })
    .await;
    let error = server.cinder().await.list().await.unwrap_err();
    assert!(matches!(error, Error::Token { .. }), "{error}");
    assert!(
        one_line(&error).contains("(request req-42); Cinder's own connection to Keystone"),
        "{error}"
    );
    assert_eq!(
        (server.count("POST", TOKENS), server.count("GET", VOLUMES)),
        (2, 2)
    );
}

#[tokio::test]
async fn a_given_token_cannot_be_renewed_and_says_so() {
    let server = Server::start(|seen, _| {
        seen.is("GET", VOLUMES)
            .then(|| fault(401, "error", "Expired."))
    })
    .await;
    let mut config = server.config();
    config.auth = Auth::Token {
        token: Secret::new("given".into()),
        project: None,
    };
    let error = Cinder::connect(&config)
        .await
        .unwrap()
        .list()
        .await
        .unwrap_err();
    assert!(
        one_line(&error).contains("a given token cannot be renewed"),
        "{error}"
    );
    assert_eq!(server.count("POST", TOKENS), 1);
}

#[tokio::test]
async fn a_proxy_without_servers_is_asked_again_and_then_named() {
    let server = Server::start(|seen, before| {
        let times = before.iter().filter(|seen| seen.is("GET", VOLUMES)).count();
        (seen.is("GET", VOLUMES) && times < 2).then(|| page(503, "503 Service Unavailable"))
    })
    .await;
    server.cinder().await.list().await.unwrap();
    assert_eq!(server.count("GET", VOLUMES), 3);

    let server = Server::start(|seen, _| {
        seen.is("GET", VOLUMES)
            .then(|| page(503, "503 Service Unavailable"))
    })
    .await;
    let error = server.cinder().await.list().await.unwrap_err();
    assert_eq!(
        one_line(&error),
        format!(
            "{}{VOLUMES} is not available (HTTP 503): 503 Service Unavailable; try again later",
            server.url
        )
    );
    assert_eq!(server.count("GET", VOLUMES), 4);
}

#[tokio::test]
async fn keystone_that_is_not_available_is_named_after_repetition() {
    let server = Server::start(|seen, _| {
        seen.is("POST", TOKENS)
            .then(|| page(503, "No server is available"))
    })
    .await;
    let error = server.refused().await;
    assert!(
        matches!(error, Error::Unavailable { status: 503, .. }),
        "{error}"
    );
    assert_eq!(server.count("POST", TOKENS), 4);
}

#[tokio::test]
async fn quota_is_never_repeated() {
    let server = Server::start(|seen, _| {
        seen.is("POST", "/volume/v3/p1/volumes").then(|| {
            fault(413, "overLimit", "VolumeLimitExceeded: Maximum number of volumes allowed (2) exceeded for quota 'volumes'.")
        })
    })
    .await;
    let new = NewVolume {
        name: "v".into(),
        size: 1,
        ..NewVolume::default()
    };
    let error = server.cinder().await.create(&new).await.unwrap_err();
    assert!(matches!(error, Error::Quota { .. }), "{error}");
    assert_eq!(server.count("POST", "/volume/v3/p1/volumes"), 1);
}

#[tokio::test]
async fn a_redirect_is_not_followed_with_the_password() {
    let server = Server::start(|seen, _| {
        seen.is("POST", TOKENS).then(|| {
            Reply::Answer(
                301,
                "Location: https://elsewhere.example/v3/auth/tokens\r\n",
                String::new(),
            )
        })
    })
    .await;
    let error = server.refused().await;
    assert!(
        one_line(&error).contains(
            "HTTP 301, it redirects to https://elsewhere.example/v3/auth/tokens; auth_url"
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_cinder_that_is_too_old_or_none_is_named() {
    let old = |version: &'static str| {
        move |seen: &Seen, _: &[Seen]| {
            let is_version = seen.is("GET", "/volume/v3/");
            is_version.then(|| ok(&json!({"versions": [{"id": "v3.0", "version": version}]})))
        }
    };
    let server = Server::start(old("3.43")).await;
    let error = server.refused().await;
    assert!(
        one_line(&error).contains("up to 3.43, but 3.44 (OpenStack Queens) is needed"),
        "{error}"
    );

    let server = Server::start(old("3.50")).await;
    server.cinder().await.list().await.unwrap();
    let seen = server.seen();
    assert_eq!(
        seen.last().unwrap().headers["openstack-api-version"],
        "volume 3.44"
    );

    let server =
        Server::start(|seen, _| (seen.method == "GET").then(|| page(404, "404 Not Found"))).await;
    let error = server.refused().await;
    assert!(matches!(error, Error::NotCinder { .. }), "{error}");
    assert!(
        one_line(&error).contains("block_storage_endpoint_override"),
        "{error}"
    );
}

#[tokio::test]
async fn a_catalog_without_storage_says_what_it_has() {
    let server = Server::start(|seen, _| {
        seen.is("POST", TOKENS).then(|| {
            let body = json!({"token": {"project": {"id": "p1"},
                "catalog": [{"type": "compute", "endpoints": []}, {"type": "identity", "endpoints": []}]}});
            Reply::Answer(201, "X-Subject-Token: token-1\r\n", body.to_string())
        })
    })
    .await;
    let text = one_line(&server.refused().await);
    assert!(
        text.contains("it has the types compute, identity; is Cinder installed in this cloud?"),
        "{text}"
    );
}

#[tokio::test]
async fn pages_are_followed_by_marker_and_not_by_address() {
    let server = Server::start(|seen, _| {
        if !seen.is("GET", VOLUMES) {
            return None;
        }
        let next = json!([{"rel": "next", "href": "http://127.0.0.1:1/wrong?marker=x"}]);
        let one = |id: &str| json!([{"id": id, "name": "v", "status": "available", "size": 1}]);
        Some(
            match seen.path.split_once("marker=").map(|(_, marker)| marker) {
                None => ok(&json!({"volumes": one("a"), "volumes_links": next})),
                Some("a") => ok(&json!({"volumes": one("b"), "volumes_links": next})),
                Some(_) => ok(&json!({"volumes": one("c")})),
            },
        )
    })
    .await;
    let ids: Vec<String> = server
        .cinder()
        .await
        .list()
        .await
        .unwrap()
        .into_iter()
        .map(|volume| volume.id)
        .collect();
    assert_eq!(ids, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_servers_wider_filter_does_not_give_another_volume() {
    // `name~=` and case-insensitive databases: "V" is not "v".
    let server = Server::start(|_, _| None).await;
    let cinder = server.cinder().await;
    assert_eq!(cinder.find("v").await.unwrap().id, "v-1");
    assert!(cinder.find("V").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn a_lost_answer_to_a_reservation_is_looked_for_and_deleted() {
    for lost in [
        || Reply::HangUp,
        || page(504, "Gateway Timeout"),
        || {
            fault(
                500,
                "computeFault",
                "Unable to create attachment for volume.",
            )
        },
    ] {
        let server = Server::start(move |seen, before| {
            if seen.is("POST", ATTACHMENTS) {
                return Some(lost());
            }
            let is_list = seen.is("GET", "/volume/v3/p1/attachments/detail");
            let old = json!({"id": "old", "status": "reserved", "attached_at": "", "connection_info": null});
            let new = json!({"id": "new", "status": "reserved", "attached_at": "", "connection_info": null});
            let busy = json!({"id": "busy", "status": "attaching", "connection_info": {"auth_password": "x"}});
            match before.iter().any(|seen| seen.is("POST", ATTACHMENTS)) {
                true if is_list => Some(ok(&json!({"attachments": [old, new, busy]}))),
                false if is_list => Some(ok(&json!({"attachments": [old]}))),
                _ => None,
            }
        })
        .await;
        let error = server
            .cinder()
            .await
            .reserve("v-1", false)
            .await
            .unwrap_err();
        one_line(&error);
        // Not sent twice, for it may have been carried out; only the new and idle one is deleted.
        assert_eq!(server.count("POST", ATTACHMENTS), 1, "{error}");
        let seen = server.seen();
        let deleted: Vec<&str> = seen
            .iter()
            .filter(|seen| seen.method == "DELETE")
            .map(|seen| seen.path.as_str())
            .collect();
        assert_eq!(deleted, ["/volume/v3/p1/attachments/new"], "{error}");
    }
}

#[tokio::test]
async fn a_lost_answer_to_a_creation_finds_the_volume_and_makes_no_second() {
    let server = Server::start(|seen, before| {
        if seen.is("POST", "/volume/v3/p1/volumes") {
            return Some(Reply::HangUp);
        }
        let made = before
            .iter()
            .find(|seen| seen.is("POST", "/volume/v3/p1/volumes"))?;
        let ours = volume("available", &made.body["volume"]["metadata"]);
        let other =
            json!({"id": "v-0", "name": "v", "status": "available", "size": 1, "metadata": {}});
        seen.is("GET", VOLUMES)
            .then(|| ok(&json!({"volumes": [other, ours]})))
    })
    .await;
    let new = NewVolume {
        name: "v".into(),
        size: 1,
        ..NewVolume::default()
    };
    assert_eq!(server.cinder().await.create(&new).await.unwrap().id, "v-1");
    assert_eq!(server.count("POST", "/volume/v3/p1/volumes"), 1);
}

#[tokio::test]
async fn a_lost_answer_to_a_read_is_asked_again() {
    let server = Server::start(|seen, before| {
        let first = seen.is("GET", VOLUMES) && !before.iter().any(|seen| seen.is("GET", VOLUMES));
        first.then_some(Reply::HangUp)
    })
    .await;
    server.cinder().await.list().await.unwrap();
    assert_eq!(server.count("GET", VOLUMES), 2);
}

#[tokio::test]
async fn silence_ends_at_the_deadline_and_is_not_repeated() {
    let server = Server::start(|seen, _| seen.is("GET", VOLUMES).then_some(Reply::Silence)).await;
    let error = server.cinder().await.list().await.unwrap_err();
    assert!(
        matches!(error, Error::Timeout { seconds: 1, .. }),
        "{error}"
    );
    assert_eq!(server.count("GET", VOLUMES), 1);
}

#[tokio::test]
async fn an_attached_volume_names_its_holder() {
    let server = Server::start(|seen, _| {
        if seen.is("POST", ATTACHMENTS) {
            let text = "Invalid volume: Volume v-1 status must be available or downloading to reserve, but the current status is in-use.";
            return Some(fault(400, "badRequest", text));
        }
        seen.is("GET", "/volume/v3/p1/volumes/v-1").then(|| {
            let mut volume = volume("in-use", &json!({}));
            volume["attachments"] = json!([{"id": "v-1", "attachment_id": "a-9", "volume_id": "v-1", "server_id": null,
                "host_name": "web1", "device": "cinder-nbd:web1", "attached_at": "2026-11-22T18:35:56.000000"}]);
            ok(&json!({"volume": volume}))
        })
    })
    .await;
    let error = server
        .cinder()
        .await
        .reserve("v-1", false)
        .await
        .unwrap_err();
    assert_eq!(
        one_line(&error),
        "volume v is in-use: attachment a-9 is attached as cinder-nbd:web1 on host web1 since 2026-11-22T18:35:56Z; \
         detach it there first, or, if that host is surely dead, `openstack --os-volume-api-version 3.44 volume \
         attachment delete a-9`"
    );
}

#[tokio::test]
async fn a_volume_in_another_state_says_which_and_what_to_do() {
    let server = Server::start(|seen, _| {
        if seen.is("POST", ATTACHMENTS) {
            return Some(fault(400, "badRequest", "Invalid volume."));
        }
        seen.is("GET", "/volume/v3/p1/volumes/v-1")
            .then(|| ok(&json!({"volume": volume("creating", &json!({}))})))
    })
    .await;
    let error = server
        .cinder()
        .await
        .reserve("v-1", false)
        .await
        .unwrap_err();
    assert_eq!(
        one_line(&error),
        "volume v is in state creating; wait until Cinder has finished with it"
    );
}

#[tokio::test]
async fn connection_information_for_others_is_refused_and_its_secret_kept() {
    let server = Server::start(|seen, _| {
        seen.is("PUT", "/volume/v3/p1/attachments/a-1").then(|| {
            ok(&json!({"attachment": {"id": "a-1", "connection_info":
                {"driver_volume_type": "rbd", "auth_password": "hunter2", "name": "pool/volume"}}}))
        })
    })
    .await;
    let connector = Connector {
        initiator: "iqn.2026-11.org.cinder-nbd:h".into(),
        host: "h".into(),
        ip: "127.0.0.1".into(),
        mountpoint: "cinder-nbd:h".into(),
        read_only: false,
    };
    let error = server
        .cinder()
        .await
        .connect_attachment("a-1", &connector)
        .await
        .unwrap_err();
    assert!(
        one_line(&error).contains("speaks `rbd`, and only iscsi is supported"),
        "{error}"
    );
}

#[tokio::test]
async fn the_way_to_a_volume_is_told_again() {
    let server = Server::start(|seen, _| {
        seen.is("GET", "/volume/v3/p1/attachments/a-1").then(|| {
            ok(
                &json!({"attachment": {"id": "a-1", "status": "attached", "connection_info":
                {"driver_volume_type": "iscsi", "target_portal": "192.0.2.1:3260", "target_lun": 1,
                "target_iqn": "iqn.2010-10.org.openstack:volume-1", "auth_method": "CHAP",
                "auth_username": "me", "auth_password": "hunter2hunter2"}}}),
            )
        })
    })
    .await;
    let info = server.cinder().await.connection_of("a-1").await.unwrap();
    assert_eq!(info.first_path.portal.to_string(), "192.0.2.1:3260");
    assert_eq!(info.first_path.lun, 1.into());
    assert_eq!(info.chap.unwrap().secret.expose(), "hunter2hunter2");
}

#[tokio::test]
async fn an_attachment_that_is_gone_is_deleted() {
    let server = Server::start(|seen, _| {
        (seen.method == "DELETE").then(|| {
            fault(
                404,
                "itemNotFound",
                "Volume attachment could not be found with filter: attachment_id = a-1.",
            )
        })
    })
    .await;
    server
        .cinder()
        .await
        .delete_attachment("a-1")
        .await
        .unwrap();
    // A proxy's 404 says nothing about the attachment.
    let server =
        Server::start(|seen, _| (seen.method == "DELETE").then(|| page(404, "404 Not Found")))
            .await;
    assert!(matches!(
        server.cinder().await.delete_attachment("a-1").await,
        Err(Error::NotCinder { .. })
    ));
}

#[tokio::test]
async fn an_answer_that_is_no_json_is_named() {
    let server = Server::start(|seen, _| {
        seen.is("GET", VOLUMES)
            .then(|| page(200, "Log in to the hotel's network"))
    })
    .await;
    let error = server.cinder().await.list().await.unwrap_err();
    assert!(one_line(&error).contains("it is not JSON"), "{error}");
}

#[tokio::test]
async fn cinder_without_keystone_works_by_its_address() {
    let server = Server::start(|_, _| None).await;
    let mut config = server.config();
    config.auth = Auth::None {
        project: "p1".into(),
    };
    config.auth_url = String::new();
    config.endpoint_override = Some(format!("{}/volume/v3/p1", server.url));
    let cinder = Cinder::connect(&config).await.unwrap();
    assert_eq!(cinder.list().await.unwrap().len(), 1);
    assert_eq!(server.count("POST", TOKENS), 0);
    assert_eq!(
        server.seen().last().unwrap().headers["x-auth-token"],
        "admin:p1"
    );
}
