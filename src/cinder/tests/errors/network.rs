//! What goes wrong before a server has said anything: settings, ways, certificates.

use std::path::Path;

use support::tls;
use tokio::io::AsyncWriteExt;

use super::*;
use crate::config::ClientCertificate;

/// What no request can be made of, and whom none reaches.
pub(super) async fn of_settings_and_ways() -> Vec<Error> {
    let directory = tempfile::tempdir().unwrap();
    let trusting = async |text: Option<&str>| {
        let path = directory.path().join("ca.pem");
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let mut config = config("https://127.0.0.1:1");
        config.tls.cacert = Some(path);
        refused(&config).await
    };
    let proving = async |cert: &str, key: Option<&str>| {
        let mut config = config("https://127.0.0.1:1");
        config.tls.client = Some(ClientCertificate {
            cert: directory.path().join(cert),
            key: key.map(|key| directory.path().join(key)),
        });
        refused(&config).await
    };
    let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    // Not a port that was free a moment ago: another test may have it by now.
    let closed = "http://127.0.0.1:1".to_owned();
    let mut no_text = config("");
    no_text.auth = Auth::None {
        project: "p\n1".into(),
    };
    no_text.endpoint_override = Some(closed.clone());
    let mut elsewhere = no_text.clone();
    elsewhere.auth = Auth::None {
        project: "p1".into(),
    };
    elsewhere.endpoint_override = Some("ftp://cinder.example/v3".into());
    // Nobody is behind the broadcast address.
    let urls = [
        &closed,
        "http://no-such-host.invalid",
        "http://255.255.255.255",
    ];
    let configs = urls.map(config);
    let [closed, unknown, no_route] = &configs;
    let (closed, unknown, no_route) =
        tokio::join!(refused(closed), refused(unknown), refused(no_route));
    vec![
        refused(&config("http://")).await,
        trusting(None).await,
        trusting(Some("")).await,
        trusting(Some(no_certificate)).await,
        // Which has no key.
        proving("ca.pem", None).await,
        proving("absent.pem", None).await,
        proving("ca.pem", Some("absent.key")).await,
        refused(&no_text).await,
        refused(&elsewhere).await,
        closed,
        unknown,
        no_route,
    ]
}

/// What is wrong with a server's proof.
pub(super) async fn of_certificates() -> Vec<Error> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let of = async |server: &tls::Server, cacert: Option<&Path>| {
        let mut config = config(&server.url);
        config.tls.cacert = cacert.map(Path::to_owned);
        refused(&config).await
    };
    let sound = tls::Server::start(path, "DNS:elsewhere.example");
    let authority = sound.authority.clone();
    let own = tls::certificate(path, "own", "subjectAltName=IP:127.0.0.1", None);
    let itself = tls::Server::serve(&own, own.clone());
    let mut errors = vec![
        of(&sound, None).await,
        of(&sound, Some(&authority)).await,
        of(&itself, Some(&own)).await,
    ];
    for (from, until) in [
        ("20200101000000Z", "20200102000000Z"),
        ("20900101000000Z", "20900102000000Z"),
    ] {
        let dated = tls::dated(path, &authority, from, until);
        let server = tls::Server::serve(&dated, authority.clone());
        errors.push(of(&server, Some(&authority)).await);
    }
    // RFC 8446 §6: a fatal alert, `handshake_failure`.
    let alert = b"\x15\x03\x03\x00\x02\x02\x28";
    for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], alert] {
        errors.push(answered(answer).await);
    }
    errors
}

/// Of a server that says this to whoever comes with `https://`.
async fn answered(answer: &[u8]) -> Error {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = config(&format!("https://{}", listener.local_addr().unwrap()));
    let answering = async {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(answer).await.unwrap();
            // It stays until the other side has read.
            std::mem::forget(stream);
        }
    };
    tokio::select! {
        error = refused(&config) => error,
        () = answering => unreachable!("it answers for ever"),
    }
}

/// Of a host that does not even refuse: its queue is full, and time passes at once, as nothing else happens.
pub(super) async fn of_silent_host() -> Error {
    use rustix::net::{AddressFamily, SocketType, bind, connect, getsockname, listen, socket};
    let loopback = std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0);
    let silent = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&silent, &loopback).unwrap();
    listen(&silent, 0).unwrap();
    let address = std::net::SocketAddr::try_from(getsockname(&silent).unwrap()).unwrap();
    // listen(2): a queue of nought holds one.
    let first = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    connect(&first, &address).unwrap();
    tokio::time::pause();
    let mut config = config(&format!("http://{address}"));
    config.request_timeout = Duration::from_mins(1);
    let error = refused(&config).await;
    tokio::time::resume();
    error
}
