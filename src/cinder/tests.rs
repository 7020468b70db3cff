//! What the rooms' own tests share, and refusals by status with bodies recorded from Cinder 21.3.1.

use bytes::Bytes;
use iscsi::proto::Secret;

use super::error::{Error, RequestId};
use super::fault::Fault;
use super::http::Answer;
use crate::config::{Auth, CloudConfig, Domain, Interface, Project, Tls, User};

mod errors;

pub(super) fn config(auth_url: &str) -> CloudConfig {
    CloudConfig {
        place: "the environment".into(),
        auth_url: auth_url.into(),
        auth: Auth::Password {
            user: User::Name {
                name: "demo".into(),
                domain: Domain::Id("default".into()),
            },
            password: Secret::new("hunter2".into()),
            project: Project::Name {
                name: "shop".into(),
                domain: Domain::Name("Default".into()),
            },
        },
        region: None,
        interface: Interface::Public,
        endpoint_override: None,
        tls: Tls::default(),
        request_timeout: std::time::Duration::from_secs(5),
    }
}

pub(super) fn answer(status: u16, body: &str) -> Answer {
    Answer {
        url: "http://server/path".into(),
        status,
        body: Bytes::copy_from_slice(body.as_bytes()),
        request: RequestId(Some("req-1".into())),
        token: None,
        retry_after: None,
        subject_token: None,
        location: None,
    }
}

fn refused(status: u16, body: &str) -> Error {
    let fault = Fault::parse(status, body.as_bytes(), &[]);
    Error::from_refusal(
        "http://server/path",
        status,
        fault,
        RequestId(Some("req-1".into())),
    )
}

#[test]
fn quota_tells_its_numbers() {
    let body = r#"{"overLimit": {"code": 413, "message": "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed gigabytes quota. Requested 9G, quota is 3G and 0G has been consumed.", "retryAfter": "0"}}"#;
    assert_eq!(
        refused(413, body).to_string(),
        "over quota: VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed gigabytes quota. \
         Requested 9G, quota is 3G and 0G has been consumed (request req-1); delete something, or have the project's \
         quota raised"
    );
}

#[test]
fn absent_things_and_absent_services_are_told_apart() {
    let volume = r#"{"itemNotFound": {"code": 404, "message": "Volume 11111111-1111-4111-8111-111111111111 could not be found."}}"#;
    assert!(refused(404, volume).is_not_found());
    // An unknown path says nothing about a volume: taken for "absent" it would make us forget one.
    let path = r#"{"message": "The resource could not be found.<br /><br />\n\n\n", "code": "404 Not Found", "title": "Not Found"}"#;
    for body in [path, "<html><title>404 Not Found</title></html>", ""] {
        let error = refused(404, body);
        assert!(!error.is_not_found() && error.is_unavailable(), "{error}");
    }
}

#[test]
fn each_status_has_its_kind() {
    let body = |name: &str| format!(r#"{{"{name}": {{"code": 1, "message": "Why."}}}}"#);
    assert!(matches!(
        refused(403, &body("forbidden")),
        Error::Forbidden { .. }
    ));
    assert!(matches!(
        refused(400, &body("badRequest")),
        Error::Rejected { status: 400, .. }
    ));
    assert!(matches!(
        refused(409, &body("conflictingRequest")),
        Error::Rejected { status: 409, .. }
    ));
    assert!(matches!(
        refused(406, &body("computeFault")),
        Error::Rejected { status: 406, .. }
    ));
    assert!(matches!(
        refused(500, &body("computeFault")),
        Error::Backend { status: 500, .. }
    ));
    for status in [429, 502, 503, 504] {
        assert!(
            matches!(refused(status, ""), Error::Unavailable { .. }),
            "{status}"
        );
    }
    assert!(matches!(refused(302, ""), Error::NotCinder { .. }));
}

#[test]
fn every_error_is_one_line_with_a_remedy() {
    let errors = [
        refused(400, "a\nb"),
        refused(403, "\r\n"),
        refused(404, "{}"),
        refused(413, ""),
        refused(500, "<html>\n\n</html>"),
        refused(503, "x\n"),
        Error::Ambiguous {
            kind: "volume",
            name: "n".into(),
            ids: (0..20).map(|n| n.to_string()).collect(),
        },
        Error::Lost {
            url: "u".into(),
            cause: "reset".into(),
        },
    ];
    for error in errors {
        let text = error.to_string();
        assert!(
            !text.contains(['\n', '\r']) && text.contains("; "),
            "{text}"
        );
    }
}
