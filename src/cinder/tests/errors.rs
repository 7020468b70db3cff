//! `docs/errors.md`, the section of this room: each of its lines happens, and each kind of error has its line.
//!
//! The other side is a cloud that is a script (`support::cloud::script`), and `openssl s_server` for certificates.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use support::cloud::script::{Reply, Seen, Server, fault, ok, page, status, volume};
use support::errors::Section;

use super::*;
use crate::cinder::{Cinder, Connector, NewSnapshot, NewVolume};

mod network;
mod refusals;
mod volumes;

/// What the server does with a request: the script of one error.
type Script = fn(&Seen, &[Seen]) -> Option<Reply>;

const BEHAVED: Script = |_, _| None;

/// Settings for this server; it has no name to be looked up.
fn settings(server: &Server) -> CloudConfig {
    config(&format!("{}/identity", server.url))
}

/// Why no client comes to be.
async fn refused(config: &CloudConfig) -> Error {
    Cinder::connect(config).await.unwrap_err()
}

/// Why no client comes to be of the server that does so.
async fn unopened(script: Script) -> Error {
    refused(&settings(&Server::start(script).await)).await
}

/// Why a call fails at the server that does so.
async fn failed<T>(script: Script, call: impl AsyncFnOnce(Cinder) -> Result<T, Error>) -> Error {
    let server = Server::start(script).await;
    let cinder = Cinder::connect(&settings(&server)).await.unwrap();
    call(cinder).await.map(drop).unwrap_err()
}

/// Whether it is this request of the project's part of Cinder.
fn asks(seen: &Seen, method: &str, path: &str) -> bool {
    seen.is(method, &format!("/volume/v3/p1/{path}"))
}

fn is_login(seen: &Seen) -> bool {
    seen.is("POST", "/identity/v3/auth/tokens")
}

/// A name for each kind: one that is new does not compile here until it has one.
fn kind(error: &Error) -> &'static str {
    match error {
        Error::Setup(_) => "Setup",
        Error::Unreachable { .. } => "Unreachable",
        Error::Tls { .. } => "Tls",
        Error::Timeout { .. } => "Timeout",
        Error::Lost { .. } => "Lost",
        Error::NotKeystone { .. } => "NotKeystone",
        Error::Credentials { .. } => "Credentials",
        Error::Token { .. } => "Token",
        Error::Catalog { .. } => "Catalog",
        Error::NotCinder { .. } => "NotCinder",
        Error::Microversion { .. } => "Microversion",
        Error::Forbidden { .. } => "Forbidden",
        Error::NotFound { .. } => "NotFound",
        Error::Ambiguous { .. } => "Ambiguous",
        Error::Quota { .. } => "Quota",
        Error::Unavailable { .. } => "Unavailable",
        Error::Backend { .. } => "Backend",
        Error::Rejected { .. } => "Rejected",
        Error::Misuse(_) => "Misuse",
        Error::AttachedElsewhere { .. } => "AttachedElsewhere",
        Error::WrongState { .. } => "WrongState",
        Error::CreateFailed { .. } => "CreateFailed",
        Error::SnapshotFailed { .. } => "SnapshotFailed",
        Error::Slow { .. } => "Slow",
        Error::Transport { .. } => "Transport",
        Error::Encrypted { .. } => "Encrypted",
        Error::ConnectionInfo(_) => "ConnectionInfo",
        Error::Answer { .. } => "Answer",
    }
}

const KINDS: usize = 28;

#[tokio::test]
async fn every_error_of_the_cloud_happens_and_stands_in_the_document() {
    let (network, trust, refusals, volumes) = tokio::join!(
        Box::pin(network::of_settings_and_ways()),
        Box::pin(network::of_certificates()),
        Box::pin(refusals::all()),
        Box::pin(volumes::all()),
    );
    let mut errors: Vec<Error> = [network, trust, refusals, volumes].concat();
    // These two turn the clock, which the others must not see.
    errors.extend(volumes::of_patience().await);
    errors.push(network::of_silent_host().await);
    let kinds: BTreeSet<_> = errors.iter().map(kind).collect();
    assert_eq!(kinds.len(), KINDS, "not all kinds happened: {kinds:?}");
    let texts: Vec<String> = errors.iter().map(Error::to_string).collect();
    Section::read("Cloud").assert_is_of(&texts);
}
