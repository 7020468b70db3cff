//! Requests to Cinder with a token that is renewed, and repeated where that is safe.
//!
//! Invariants:
//! 1. HTTP is repeated here and nowhere else, at most `ATTEMPTS` times; 413 never.
//! 2. A request that may have been carried out is repeated only if carrying it out twice is as once (`Repeat::Always`).
//! 3. A refused token is renewed once for a request.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use iscsi::proto::Secret;
use reqwest::{Method, Url};
use serde_json::Value;

use super::catalog::{Base, Microversion, Versions, find};
use super::error::Error;
use super::http::{Answer, Failure, Http, Request, without_query};
use super::keystone::{Token, authenticate};
use crate::config::{Auth, CloudConfig};

/// The first and three more: with the pauses below about two seconds, which outlasts a restarting proxy.
const ATTEMPTS: u32 = 4;

/// Doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// A server may ask for more than a person at a terminal, or Docker's 120 s, can wait.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Whether a request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Reading, deleting, setting: twice is as once.
    Always,
    /// Making something: only if the server cannot have heard it.
    IfUnheard,
}

/// A request relative to Cinder's endpoint. No `Debug`: its body may hold a secret.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    /// `volumes/ID`, each segment as is: they are percent-encoded here.
    pub(super) path: &'a [&'a str],
    pub(super) query: &'a [(&'a str, &'a str)],
    pub(super) body: Option<Value>,
    /// What is secret in the body: not told in an error, also if Cinder quotes it.
    pub(super) secret: Option<&'a Secret>,
    pub(super) repeat: Repeat,
    /// `None`: the configured one.
    pub(super) deadline: Option<Duration>,
}

impl<'a> Call<'a> {
    pub(super) fn get(path: &'a [&'a str]) -> Self {
        Self {
            method: Method::GET,
            path,
            query: &[],
            body: None,
            secret: None,
            repeat: Repeat::Always,
            deadline: None,
        }
    }

    pub(super) fn post(path: &'a [&'a str], body: Value) -> Self {
        Self {
            method: Method::POST,
            body: Some(body),
            repeat: Repeat::IfUnheard,
            ..Self::get(path)
        }
    }

    pub(super) fn put(path: &'a [&'a str], body: Value) -> Self {
        Self {
            method: Method::PUT,
            ..Self::post(path, body)
        }
    }

    pub(super) fn delete(path: &'a [&'a str]) -> Self {
        Self {
            method: Method::DELETE,
            ..Self::get(path)
        }
    }

    pub(super) fn query(self, query: &'a [(&'a str, &'a str)]) -> Self {
        Self { query, ..self }
    }

    pub(super) fn secret(self, secret: &'a Secret) -> Self {
        Self {
            secret: Some(secret),
            ..self
        }
    }

    pub(super) fn repeat(self, repeat: Repeat) -> Self {
        Self { repeat, ..self }
    }

    pub(super) fn deadline(self, deadline: Duration) -> Self {
        Self {
            deadline: Some(deadline),
            ..self
        }
    }
}

/// An authenticated client of one Cinder.
#[derive(Debug)]
pub(super) struct Session {
    http: Http,
    config: CloudConfig,
    endpoint: Url,
    microversion: Microversion,
    /// Held for a clone or a store only.
    token: RwLock<Arc<Token>>,
}

impl Session {
    /// Authenticates, finds the endpoint and its microversion.
    pub(super) async fn open(config: &CloudConfig) -> Result<Self, Error> {
        let http = Http::new(&config.tls)?;
        let token = obtain(&http, config).await?;
        let url = find(&token.catalog, config)?;
        let project = token.project_id.as_deref();
        let base = Base::of(&url, project)?;
        let highest = highest_minor(&http, config, &token, &base).await?;
        let microversion = Microversion::choose(highest).ok_or_else(|| Error::Microversion {
            url: without_query(&base.versioned),
            found: format!("3.{highest}"),
        })?;
        let endpoint = base.endpoint(project, highest);
        tracing::debug!(endpoint = without_query(&endpoint), microversion = %microversion.header(), "found Cinder");
        Ok(Self {
            http,
            config: config.clone(),
            endpoint,
            microversion,
            token: RwLock::new(Arc::new(token)),
        })
    }

    /// Sends, renews, repeats; any status but success is an error.
    pub(super) async fn call(&self, call: Call<'_>) -> Result<Answer, Error> {
        let url = self.url(call.path, call.query);
        let microversion = self.microversion.header();
        let mut patience = Patience::new();
        let mut is_renewed = false;
        loop {
            let token = self.token();
            let request = Request {
                method: call.method.clone(),
                url: url.clone(),
                token: Some(&token.secret),
                microversion: Some(&microversion),
                body: call.body.as_ref(),
                deadline: call.deadline.unwrap_or(self.config.request_timeout),
            };
            let (error, again) = match self.http.send(request).await {
                Ok(answer) if answer.is_success() => return Ok(answer),
                Ok(answer) if answer.status == 401 && !is_renewed => {
                    is_renewed = true;
                    self.renew(&token, &answer).await?;
                    continue;
                }
                Ok(answer) => {
                    let error = refusal(&answer, call.secret.as_slice());
                    (error, Again::after_answer(&answer, call.repeat))
                }
                Err(failure) => {
                    let again = Again::after_failure(&failure, call.repeat);
                    (failure.error, again)
                }
            };
            if !patience.wait(again).await {
                return Err(error);
            }
            tracing::debug!(%error, "the cloud is asked again");
        }
    }

    pub(super) fn microversion(&self) -> Microversion {
        self.microversion
    }

    pub(super) fn endpoint(&self) -> &Url {
        &self.endpoint
    }

    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    fn token(&self) -> Arc<Token> {
        Arc::clone(&self.token.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A new token in place of the refused one, unless another call has brought it already.
    async fn renew(&self, refused: &Arc<Token>, answer: &Answer) -> Result<(), Error> {
        if !Arc::ptr_eq(refused, &self.token()) {
            return Ok(());
        }
        let remedy = match self.config.auth {
            Auth::Token { .. } => {
                "a given token cannot be renewed: set a new one, or use an application credential"
            }
            Auth::None { .. } => {
                "this Cinder wants a token: remove auth_type none and set auth_url"
            }
            Auth::Password { .. }
            | Auth::ApplicationCredential { .. }
            | Auth::NamedApplicationCredential { .. } => {
                let token = obtain(&self.http, &self.config).await?;
                *self.token.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(token);
                return Ok(());
            }
        };
        Err(token_refused(answer, remedy))
    }
}

/// Whether a request that failed is worth another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    Never,
    Soon,
    /// The server said when.
    After(Duration),
}

impl Again {
    /// 429 was not carried out; what a proxy answers for a silent server may have been.
    fn after_answer(answer: &Answer, repeat: Repeat) -> Self {
        let may = match answer.status {
            429 => true,
            502..=504 => repeat == Repeat::Always,
            _ => false,
        };
        match answer.retry_after {
            _ if !may => Self::Never,
            Some(time) => Self::After(time),
            None => Self::Soon,
        }
    }

    /// Connections that failed, not deadlines that passed: those have waited long enough.
    fn after_failure(failure: &Failure, repeat: Repeat) -> Self {
        let may = !failure.sent || repeat == Repeat::Always;
        let is_connection = matches!(
            failure.error,
            Error::Unreachable { .. } | Error::Lost { .. }
        );
        if may && is_connection {
            Self::Soon
        } else {
            Self::Never
        }
    }
}

/// Attempts and pauses of one request.
struct Patience {
    attempts_left: u32,
    pause: Duration,
}

impl Patience {
    fn new() -> Self {
        Self {
            attempts_left: ATTEMPTS - 1,
            pause: FIRST_PAUSE,
        }
    }

    /// Pauses, and says whether to go on.
    async fn wait(&mut self, again: Again) -> bool {
        let pause = match again {
            Again::Never => return false,
            Again::Soon => self.pause,
            Again::After(time) => time.min(PAUSE_MAX),
        };
        let Some(left) = self.attempts_left.checked_sub(1) else {
            return false;
        };
        self.attempts_left = left;
        self.pause *= 2;
        tokio::time::sleep(pause).await;
        true
    }
}

/// A token; one made in vain harms nobody, so that asking again is safe.
async fn obtain(http: &Http, config: &CloudConfig) -> Result<Token, Error> {
    let mut patience = Patience::new();
    loop {
        let failure = match authenticate(http, config).await {
            Ok(token) => return Ok(token),
            Err(failure) => failure,
        };
        let again = if matches!(failure.error, Error::Unavailable { .. }) {
            Again::Soon
        } else {
            Again::after_failure(&failure, Repeat::Always)
        };
        if !patience.wait(again).await {
            return Err(failure.error);
        }
        tracing::debug!(error = %failure.error, "Keystone is asked again");
    }
}

/// Why Cinder refuses.
pub(super) fn refusal(answer: &Answer, sent: &[&Secret]) -> Error {
    if answer.status == 401 {
        let remedy =
            "Cinder's own connection to Keystone, or a clock, is wrong: tell its operators";
        return token_refused(answer, remedy);
    }
    Error::from_refusal(
        &answer.url,
        answer.status,
        answer.fault(sent),
        answer.request.clone(),
    )
}

fn token_refused(answer: &Answer, remedy: &'static str) -> Error {
    Error::Token {
        url: answer.url.clone(),
        message: answer.fault(&[]).message,
        request: answer.request.clone(),
        remedy,
    }
}

/// Asks the version documents; the first that is one.
async fn highest_minor(
    http: &Http,
    config: &CloudConfig,
    token: &Token,
    base: &Base,
) -> Result<u32, Error> {
    let mut first_error = None;
    for url in base.version_documents() {
        let request = Request {
            method: Method::GET,
            url,
            token: Some(&token.secret),
            microversion: None,
            body: None,
            deadline: config.request_timeout,
        };
        let answer = send_patiently(http, &request).await?;
        match answer.status {
            // `GET /` is 300 Multiple Choices with the same document.
            200 | 300 => {
                let versions: Result<Versions, Error> = answer.parse();
                if let Ok(minor) = versions.map(|versions| versions.highest_minor().unwrap_or(0)) {
                    return Ok(minor);
                }
                let found = "what answers there tells no versions".to_owned();
                first_error.get_or_insert(Error::NotCinder {
                    url: answer.url,
                    found,
                });
            }
            _ => {
                first_error.get_or_insert_with(|| refusal(&answer, &[]));
            }
        }
    }
    Err(first_error.unwrap_or_else(|| Error::NotCinder {
        url: without_query(&base.versioned),
        found: "no version document".to_owned(),
    }))
}

/// A read, repeated as `Session::call` repeats reads.
async fn send_patiently(http: &Http, request: &Request<'_>) -> Result<Answer, Error> {
    let mut patience = Patience::new();
    loop {
        let (result, again) = match http.send(request.clone()).await {
            Ok(answer) => {
                let again = Again::after_answer(&answer, Repeat::Always);
                (Ok(answer), again)
            }
            Err(failure) => {
                let again = Again::after_failure(&failure, Repeat::Always);
                (Err(failure.error), again)
            }
        };
        if !patience.wait(again).await {
            return result;
        }
    }
}
