//! Trust: a certificate of an own authority, of another name, and the settings that help; the other side is `openssl s_server`.
#![expect(
    clippy::unwrap_used,
    reason = "what does not hold ends the test, in its helpers too"
)]

use std::time::Duration;

use cinder_nbd::cinder::{Cinder, Error};
use cinder_nbd::config::{Auth, ClientCertificate, CloudConfig, Interface, Tls};
use iscsi::proto::Secret;
use support::tls::{Server, certificate};

/// What a client of the server is told.
trait Client {
    async fn refused(&self, tls: Tls) -> Error;
}

impl Client for Server {
    async fn refused(&self, tls: Tls) -> Error {
        let config = CloudConfig {
            place: "the environment".into(),
            auth_url: self.url.clone(),
            auth: Auth::Token {
                token: Secret::new("t".into()),
                project: None,
            },
            region: None,
            interface: Interface::Public,
            endpoint_override: None,
            tls,
            request_timeout: Duration::from_secs(2),
        };
        // There is no Keystone behind it: what matters is how far it comes.
        Cinder::connect(&config).await.unwrap_err()
    }
}

#[tokio::test]
async fn an_unknown_authority_is_named_and_cacert_helps() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), "IP:127.0.0.1");
    let error = server.refused(Tls::default()).await;
    let text = error.to_string();
    assert!(matches!(error, Error::Tls { .. }), "{text}");
    assert!(
        text.starts_with(&format!("no secure connection to {}: ", server.url)),
        "{text}"
    );
    assert!(
        text.ends_with("set cacert (OS_CACERT) to the PEM file of the authority that signed it"),
        "{text}"
    );

    let trusted = Tls {
        cacert: Some(server.authority.clone()),
        insecure: false,
        client: None,
    };
    let error = server.refused(trusted).await;
    assert!(
        !matches!(error, Error::Tls { .. } | Error::Unreachable { .. }),
        "{error}"
    );
    let error = server
        .refused(Tls {
            cacert: None,
            insecure: true,
            client: None,
        })
        .await;
    assert!(
        !matches!(error, Error::Tls { .. } | Error::Unreachable { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_certificate_of_another_name_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), "DNS:elsewhere.example");
    let trusted = Tls {
        cacert: Some(server.authority.clone()),
        insecure: false,
        client: None,
    };
    let error = server.refused(trusted).await;
    let text = error.to_string();
    assert!(matches!(error, Error::Tls { .. }), "{text}");
    assert!(
        text.ends_with("the address must use a name that the certificate holds"),
        "{text}"
    );
}

#[tokio::test]
async fn a_self_signed_authority_as_server_is_explained() {
    let directory = tempfile::tempdir().unwrap();
    let own = certificate(directory.path(), "own", "subjectAltName=IP:127.0.0.1", None);
    let server = Server::serve(&own, own.clone());
    let trusted = Tls {
        cacert: Some(server.authority.clone()),
        insecure: false,
        client: None,
    };
    let text = server.refused(trusted).await.to_string();
    assert!(
        text.ends_with("it needs one signed by that authority (CA:FALSE)"),
        "{text}"
    );
}

#[tokio::test]
async fn a_server_that_asks_who_we_are_is_shown_our_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start_asking(directory.path(), "IP:127.0.0.1");
    let ours = "subjectAltName=DNS:us.example";
    let cert = certificate(directory.path(), "us", ours, Some(&server.authority));
    let trusting = |client| Tls {
        cacert: Some(server.authority.clone()),
        insecure: false,
        client,
    };
    // It ends the connection, and that is all that is heard of it.
    let error = server.refused(trusting(None)).await;
    assert!(
        matches!(
            error,
            Error::Tls { .. } | Error::Lost { .. } | Error::Unreachable { .. }
        ),
        "{error}"
    );
    let key = cert.with_extension("key");
    let two = ClientCertificate {
        cert: cert.clone(),
        key: Some(key.clone()),
    };
    let both = directory.path().join("both.pem");
    let text = [cert, key].map(|file| std::fs::read_to_string(file).unwrap());
    std::fs::write(&both, text.concat()).unwrap();
    let one = ClientCertificate {
        cert: both,
        key: None,
    };
    for shown in [two, one] {
        let error = server.refused(trusting(Some(shown))).await;
        // It has taken the request, which it cannot answer.
        let is_let_in = matches!(error, Error::NotKeystone { .. } | Error::Timeout { .. });
        assert!(is_let_in, "{error:?}");
    }
}
