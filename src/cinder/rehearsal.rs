//! An answer of the cloud taken apart as the calls do it, without a cloud: for `fuzz/`, which reaches what is public
//! only. No part of the daemon uses it.

use std::fmt::Debug;

use bytes::Bytes;
use iscsi::proto::Secret;
use serde::de::DeserializeOwned;

use super::attachments::{elsewhere, holders_among, rows_in};
use super::catalog::{Base, Microversion, Versions, find};
use super::error::{Error, RequestId};
use super::http::Answer;
use super::model::Volume;
use super::pages::{self, the_one};
use super::session::refusal;
use super::snapshots::{self, Snapshot};
use super::transfers::{Transfer, offer_in};
use super::volumes::{self, reason_in, wrong_state};
use super::{connection, keystone};
use crate::config::CloudConfig;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Keystone for a token.
    Token,
    /// Cinder for its versions.
    Versions,
    /// A volume, and who has it.
    Volume,
    /// Volumes by name.
    Volumes,
    /// A snapshot.
    Snapshot,
    /// Snapshots by name.
    Snapshots,
    /// An offer, just made.
    Offer,
    /// Offers by name.
    Offers,
    /// Why something failed.
    Messages,
    /// How to log in.
    Connection,
}

impl Question {
    /// All.
    pub const ALL: [Self; 10] = [
        Self::Token,
        Self::Versions,
        Self::Volume,
        Self::Volumes,
        Self::Snapshot,
        Self::Snapshots,
        Self::Offer,
        Self::Offers,
        Self::Messages,
        Self::Connection,
    ];
}

/// What was understood, as it would be logged, and the errors that repeat words of it.
#[derive(Debug)]
pub struct Understood {
    /// In the words of `Debug`.
    pub debug: String,
    /// What other states of the volume would be answered with.
    pub errors: Vec<Error>,
}

/// Takes an answer apart that came with this status.
///
/// # Errors
/// As the call would have.
pub fn answer(
    config: &CloudConfig,
    question: Question,
    status: u16,
    body: &[u8],
) -> Result<Understood, Error> {
    let answer = Answer {
        url: "http://server/path".to_owned(),
        status,
        body: Bytes::copy_from_slice(body),
        request: RequestId(None),
        token: Some(Secret::new(TOKEN.to_owned())),
        retry_after: None,
        subject_token: Some(Secret::new(TOKEN.to_owned())),
        location: None,
    };
    match question {
        Question::Token => token(config, &answer),
        _ if !answer.is_success() => Err(refusal(&answer, &[])),
        Question::Versions => versions(&answer),
        Question::Volume => volume(&answer),
        Question::Volumes => named(&answer, "volumes", |one: &Volume| {
            (&one.id, one.name.as_deref())
        }),
        Question::Snapshot => Ok(understood(&answer.parse::<snapshots::One>()?.snapshot)),
        Question::Snapshots => named(&answer, "snapshots", |one: &Snapshot| {
            (&one.id, one.name.as_deref())
        }),
        Question::Offer => Ok(understood(&offer_in(&answer)?)),
        Question::Offers => named(&answer, "transfers", |one: &Transfer| {
            (&one.id, one.name.as_deref())
        }),
        Question::Messages => Ok(understood(&reason_in(&answer)?)),
        Question::Connection => Ok(understood(&connection::of(&answer)?)),
    }
}

/// What the stand-in for the header holds.
pub const TOKEN: &str = "gAAAA-the-token-in-the-header";

fn token(config: &CloudConfig, answer: &Answer) -> Result<Understood, Error> {
    let token = keystone::judge(answer, config)?;
    let project = token.project_id.as_deref();
    let base = Base::of(&find(&token.catalog, config)?, project)?;
    let endpoints = [base.endpoint(project, 0), base.endpoint(project, 70)];
    Ok(understood(&(&token, base.version_documents(), endpoints)))
}

fn versions(answer: &Answer) -> Result<Understood, Error> {
    let minor = answer.parse::<Versions>()?.highest_minor();
    let chosen = Microversion::choose(minor.unwrap_or(0));
    Ok(understood(&(minor, chosen)))
}

fn volume(answer: &Answer) -> Result<Understood, Error> {
    // The rows of its attachments come beside it here; Cinder answers them to another question.
    let rows = rows_in(answer).unwrap_or_default();
    let volume = answer.parse::<volumes::One>()?.volume;
    let held = elsewhere(&volume, holders_among(rows, &volume));
    Ok(Understood {
        debug: format!("{volume:?}"),
        errors: vec![held, wrong_state(volume)],
    })
}

/// Each name that is listed is looked for.
fn named<T: DeserializeOwned + Debug>(
    answer: &Answer,
    kind: &'static str,
    of: impl Fn(&T) -> (&str, Option<&str>) + Copy,
) -> Result<Understood, Error> {
    let (listed, marker) = pages::read::<T>(kind, answer)?;
    let debug = format!("{listed:?} {marker:?}");
    let first = listed.first().and_then(|one| of(one).1.map(str::to_owned));
    let found = first.map(|name| the_one("thing", &name, listed, of));
    let errors = found.and_then(Result::err).into_iter().collect();
    Ok(Understood { debug, errors })
}

fn understood(value: &impl Debug) -> Understood {
    Understood {
        debug: format!("{value:?}"),
        errors: Vec::new(),
    }
}
