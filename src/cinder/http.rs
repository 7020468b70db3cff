//! One HTTP request and its answer, within a deadline and a size; what went wrong on the way, by kind.
//!
//! A room of its own because it decides what a retry may assume: whether a failed request can have been carried out.
//!
//! Invariants:
//! 1. Every request has a deadline, every answer a greatest size.
//! 2. A token is only sent to the address it was meant for: redirects are never followed.
//! 3. Connections are not kept: a server that drops idle ones unannounced (plain uwsgi does) would make the answer to
//!    a later POST get lost, which costs more than the handshakes of the five calls of an attach.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use iscsi::proto::Secret;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde_json::Value;

use super::error::{Error, RequestId};
use super::fault::{Fault, from_text};
use crate::config::{ClientCertificate, Tls};

/// A list of 1000 volumes is about 2 MiB; chosen freely above that.
const BODY_BYTES_MAX: usize = 32 << 20;

/// Beyond it a host counts as unreachable: two lost SYNs.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(7);

/// A client for one cloud.
#[derive(Clone, Debug)]
pub(super) struct Http {
    client: reqwest::Client,
}

/// A request. No `Debug`: its body may hold a password.
#[derive(Clone)]
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) token: Option<&'a Secret>,
    /// `OpenStack-API-Version`.
    pub(super) microversion: Option<&'a str>,
    pub(super) body: Option<&'a Value>,
    pub(super) deadline: Duration,
}

/// An answer of any status. No `Debug`: its body may hold CHAP secrets.
pub(super) struct Answer {
    pub(super) url: String,
    pub(super) status: u16,
    pub(super) body: Bytes,
    pub(super) request: RequestId,
    /// The token that was sent.
    pub(super) token: Option<Secret>,
    pub(super) retry_after: Option<Duration>,
    pub(super) subject_token: Option<Secret>,
    pub(super) location: Option<String>,
}

/// A request without an answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    /// The server may have seen it whole.
    pub(super) sent: bool,
}

impl Http {
    /// A client that trusts as told.
    pub(super) fn new(tls: &Tls) -> Result<Self, Error> {
        let own = tls.client.as_ref().map(own_certificate).transpose()?;
        let base = || {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("cinder-nbd/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT_TIMEOUT)
                .pool_max_idle_per_host(0)
                .referer(false)
                .http1_only();
            match &own {
                Some(own) => builder.identity(own.clone()),
                None => builder,
            }
        };
        let built = if tls.insecure {
            tracing::warn!(
                "certificates are not checked (insecure): anyone on the way can read the password"
            );
            base().tls_danger_accept_invalid_certs(true).build()
        } else if let Some(path) = &tls.cacert {
            base().tls_certs_only(authorities(path)?).build()
        } else {
            // A host without any authority is still good for http://; https:// then fails with the remedy.
            base()
                .build()
                .or_else(|_| base().tls_certs_only([]).build())
        };
        let client = built.map_err(|error| {
            Error::Setup(format!(
                "cannot set up TLS: {}; check cacert (OS_CACERT)",
                chain(&error)
            ))
        })?;
        Ok(Self { client })
    }

    /// Sends, and reads the answer whole.
    pub(super) async fn send(&self, request: Request<'_>) -> Result<Answer, Failure> {
        let place = origin(&request.url);
        let deadline = request.deadline;
        match tokio::time::timeout(deadline, self.exchange(request)).await {
            Ok(result) => result,
            Err(_) => Err(Failure {
                error: Error::Timeout {
                    url: place,
                    seconds: deadline.as_secs(),
                },
                sent: true,
            }),
        }
    }

    async fn exchange(&self, request: Request<'_>) -> Result<Answer, Failure> {
        let place = origin(&request.url);
        let mut headers = HeaderMap::new();
        headers.insert("accept", HeaderValue::from_static("application/json"));
        if let Some(token) = request.token {
            let mut value = HeaderValue::from_str(token.expose()).map_err(|_| Failure {
                error: Error::Misuse(
                    "project_id (OS_PROJECT_ID) holds characters that no request may carry; correct it"
                        .to_owned(),
                ),
                sent: false,
            })?;
            value.set_sensitive(true);
            headers.insert("x-auth-token", value);
        }
        if let Some(microversion) = request.microversion
            && let Ok(value) = HeaderValue::from_str(microversion)
        {
            headers.insert(HeaderName::from_static("openstack-api-version"), value);
        }
        let mut builder = self
            .client
            .request(request.method.clone(), request.url.clone())
            .headers(headers);
        if let Some(body) = request.body {
            builder = builder.json(body);
        }
        let mut response = builder
            .send()
            .await
            .map_err(|error| failure(&place, &error))?;
        let mut answer = Answer::head(&request, &response);
        let mut body = BytesMut::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| failure(&place, &error))?
        {
            if body.len() + chunk.len() > BODY_BYTES_MAX {
                let what = format!("it is longer than {BODY_BYTES_MAX} bytes");
                let error = Error::Answer {
                    url: place,
                    what,
                    request: answer.request,
                };
                return Err(Failure { error, sent: true });
            }
            body.extend_from_slice(&chunk);
        }
        answer.body = body.freeze();
        tracing::debug!(method = %request.method, url = printed(&request.url), status = answer.status, request = ?answer.request.0, "cloud answered");
        Ok(answer)
    }
}

impl Answer {
    fn head(asked: &Request<'_>, response: &reqwest::Response) -> Self {
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let request = ["x-openstack-request-id", "x-compute-request-id"]
            .into_iter()
            .find_map(header);
        Self {
            url: without_query(&asked.url),
            status: response.status().as_u16(),
            body: Bytes::new(),
            // Printed in errors: only what looks like an id.
            request: RequestId(request.filter(|id| is_id(id)).map(str::to_owned)),
            token: asked.token.cloned(),
            retry_after: header("retry-after")
                .and_then(|text| text.parse().ok())
                .map(Duration::from_secs),
            subject_token: header("x-subject-token").map(|token| Secret::new(token.to_owned())),
            location: header("location").map(from_text),
        }
    }

    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The reason of a refusal; `sent` are the secrets of the request beside its token.
    pub(super) fn fault(&self, sent: &[&Secret]) -> Fault {
        if (300..400).contains(&self.status)
            && let Some(location) = &self.location
        {
            return Fault {
                name: None,
                message: format!("it redirects to {location}"),
            };
        }
        let sent: Vec<&Secret> = sent.iter().copied().chain(&self.token).collect();
        Fault::parse(self.status, &self.body, &sent)
    }

    /// The body as the type that the API promises.
    pub(super) fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| {
            // Syntax and missing fields; values, which may be secret, are not quoted by category and position.
            let what = match error.classify() {
                serde_json::error::Category::Data => "JSON, but not what the API promises",
                serde_json::error::Category::Syntax
                | serde_json::error::Category::Eof
                | serde_json::error::Category::Io => "it is not JSON",
            };
            let what = format!("{what} (line {}, column {})", error.line(), error.column());
            Error::Answer {
                url: self.url.clone(),
                what,
                request: self.request.clone(),
            }
        })
    }
}

fn is_id(id: &str) -> bool {
    id.len() <= 64
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Certificate and key, from one file or two.
fn own_certificate(files: &ClientCertificate) -> Result<reqwest::Identity, Error> {
    let read = |path: &std::path::Path, word: &str| {
        std::fs::read(path).map_err(|error| {
            Error::Setup(format!(
                "cannot read {}: {error}; check {word}",
                path.display()
            ))
        })
    };
    let mut pem = read(&files.cert, "cert (OS_CERT)")?;
    if let Some(key) = &files.key {
        pem.push(b'\n');
        pem.extend(read(key, "key (OS_KEY)")?);
    }
    // What is wrong with it is not said: it might quote the key.
    reqwest::Identity::from_pem(&pem).map_err(|_| {
        Error::Setup(format!(
            "no certificate with its key in {}; cert and key (OS_CERT, OS_KEY) must be PEM files, the key without a password",
            files.cert.display()
        ))
    })
}

fn authorities(path: &std::path::Path) -> Result<Vec<reqwest::Certificate>, Error> {
    let place = path.display();
    let pem = std::fs::read(path).map_err(|error| {
        Error::Setup(format!(
            "cannot read {place}: {error}; check cacert (OS_CACERT)"
        ))
    })?;
    let bundle = reqwest::Certificate::from_pem_bundle(&pem).unwrap_or_default();
    if bundle.is_empty() {
        return Err(Error::Setup(format!(
            "no certificate in {place}; cacert (OS_CACERT) must be a PEM file with the cloud's authority"
        )));
    }
    Ok(bundle)
}

/// What went wrong, by kind, from the error and its sources.
fn failure(place: &str, error: &reqwest::Error) -> Failure {
    let cause = chain(error);
    let lower = cause.to_lowercase();
    let url = place.to_owned();
    if let Some(remedy) = tls_remedy(&lower) {
        return Failure {
            error: Error::Tls { url, cause, remedy },
            sent: false,
        };
    }
    if error.is_builder() {
        return Failure {
            error: Error::Setup(format!("cannot ask {url}: {cause}; correct the address")),
            sent: false,
        };
    }
    if error.is_connect() {
        let (cause, remedy) = connect_remedy(&lower, error.is_timeout(), cause);
        return Failure {
            error: Error::Unreachable { url, cause, remedy },
            sent: false,
        };
    }
    Failure {
        error: Error::Lost { url, cause },
        sent: true,
    }
}

fn connect_remedy(lower: &str, is_timeout: bool, cause: String) -> (String, &'static str) {
    if lower.contains("dns") || lower.contains("lookup") || lower.contains("resolve") {
        return (
            "the host name is unknown".to_owned(),
            "check the host in the address and this machine's name resolution",
        );
    }
    if lower.contains("refused") {
        return (
            "connection refused".to_owned(),
            "is the service running, and the port right?",
        );
    }
    if is_timeout {
        let cause = format!("no connection within {} s", CONNECT_TIMEOUT.as_secs());
        return (cause, "check the address, the network and firewalls");
    }
    (cause, "check the address and the network")
}

/// The words are those of rustls; the kinds are not reachable through reqwest without rustls' own types.
fn tls_remedy(lower: &str) -> Option<&'static str> {
    if lower.contains("unknownissuer") || lower.contains("unknown issuer") {
        return Some("set cacert (OS_CACERT) to the PEM file of the authority that signed it");
    }
    if lower.contains("notvalidforname") || lower.contains("not valid for name") {
        return Some("the address must use a name that the certificate holds");
    }
    if lower.contains("causedasendentity") {
        return Some(
            "the server shows an authority's own certificate: it needs one signed by that authority (CA:FALSE)",
        );
    }
    if lower.contains("expired") {
        return Some("the certificate must be renewed; is this machine's clock right?");
    }
    if lower.contains("notvalidyet") || lower.contains("not valid yet") {
        return Some("is this machine's clock right?");
    }
    if lower.contains("invalidcontenttype") || lower.contains("corrupt message") {
        return Some("the port does not speak TLS: the address probably begins with http://");
    }
    if lower.contains("certificate") || lower.contains("tls") || lower.contains("handshake") {
        return Some("check the certificate, and cacert (OS_CACERT)");
    }
    None
}

/// The sources' words without those that a later one repeats.
fn chain(error: &reqwest::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut source: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(error) = source {
        let text = from_text(&error.to_string());
        if !text.is_empty() && !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        source = error.source();
    }
    // The innermost says why; the outer ones ("client error (Connect)") say what we know.
    parts.pop().unwrap_or_else(|| "unknown reason".to_owned())
}

/// Scheme, host and port: what a user can check.
fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// Without query and without user information.
pub(super) fn without_query(url: &Url) -> String {
    format!("{}{}", origin(url), url.path())
}

/// Without user information: an address may hold a password, though none of ours should.
fn printed(url: &Url) -> String {
    match url.query() {
        Some(query) => format!("{}?{query}", without_query(url)),
        None => without_query(url),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(url: &str, tls: &Tls) -> Error {
        let http = Http::new(tls).unwrap();
        let request = Request {
            method: Method::GET,
            url: Url::parse(url).unwrap(),
            token: None,
            microversion: None,
            body: None,
            deadline: Duration::from_secs(5),
        };
        http.send(request)
            .await
            .map(|answer| answer.status)
            .unwrap_err()
            .error
    }

    #[tokio::test]
    async fn a_closed_port_is_named_refused() {
        // Not one that was free a moment ago: another test may have it by now.
        let address = "127.0.0.1:1";
        let error = get(&format!("http://{address}/v3"), &Tls::default()).await;
        assert_eq!(
            error.to_string(),
            format!(
                "cannot reach http://{address}: connection refused; is the service running, and the port right?"
            )
        );
        assert!(error.is_unavailable());
    }

    #[tokio::test]
    async fn an_unknown_host_is_named_so() {
        let error = get("http://no-such-host.invalid/v3", &Tls::default())
            .await
            .to_string();
        assert!(
            error.starts_with(
                "cannot reach http://no-such-host.invalid: the host name is unknown; "
            ),
            "{error}"
        );
    }

    #[tokio::test]
    async fn https_to_a_plain_port_says_so() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        });
        let error = get(&format!("https://{address}/v3"), &Tls::default())
            .await
            .to_string();
        server.await.unwrap();
        assert!(
            error.starts_with("no secure connection to https://127.0.0.1:"),
            "{error}"
        );
        assert!(
            error.ends_with("the address probably begins with http://"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_connection_that_ends_early_may_have_been_heard() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            use tokio::io::AsyncReadExt;
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.read(&mut [0; 1024]).await;
        });
        let error = get(&format!("http://{address}/v3"), &Tls::default()).await;
        server.await.unwrap();
        assert!(
            matches!(error, Error::Lost { .. }) && error.is_uncertain(),
            "{error}"
        );
    }

    #[tokio::test]
    async fn silence_ends_at_the_deadline() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let http = Http::new(&Tls::default()).unwrap();
        let request = Request {
            method: Method::GET,
            url: Url::parse(&format!("http://{address}/")).unwrap(),
            token: None,
            microversion: None,
            body: None,
            deadline: Duration::from_millis(50),
        };
        let failure = http
            .send(request)
            .await
            .map(|answer| answer.status)
            .unwrap_err();
        assert!(
            failure.sent && matches!(failure.error, Error::Timeout { .. }),
            "{}",
            failure.error
        );
    }

    #[test]
    fn an_address_is_printed_without_user_and_password() {
        let url = Url::parse("http://user:hunter2@cloud:8776/v3/volumes?name=v1").unwrap();
        assert_eq!(printed(&url), "http://cloud:8776/v3/volumes?name=v1");
        assert_eq!(without_query(&url), "http://cloud:8776/v3/volumes");
    }

    #[test]
    fn authorities_must_be_there_and_be_certificates() {
        let missing = Tls {
            client: None,
            cacert: Some("/nonexistent/ca.pem".into()),
            insecure: false,
        };
        assert!(
            Http::new(&missing)
                .unwrap_err()
                .to_string()
                .contains("check cacert (OS_CACERT)")
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        let empty = Tls {
            client: None,
            cacert: Some(file.path().to_owned()),
            insecure: false,
        };
        assert!(
            Http::new(&empty)
                .unwrap_err()
                .to_string()
                .starts_with("no certificate in ")
        );
    }

    #[test]
    fn each_fault_of_a_certificate_has_its_remedy() {
        for (cause, word) in [
            ("invalid peer certificate: UnknownIssuer", "OS_CACERT"),
            (
                "invalid peer certificate: certificate not valid for name \"x\"",
                "name",
            ),
            (
                "invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))",
                "CA:FALSE",
            ),
            ("invalid peer certificate: Expired", "renewed"),
            ("invalid peer certificate: NotValidYet", "clock"),
            (
                "received corrupt message of type InvalidContentType",
                "http://",
            ),
        ] {
            let remedy = tls_remedy(&cause.to_lowercase()).unwrap();
            assert!(remedy.contains(word), "{cause}: {remedy}");
        }
        assert_eq!(tls_remedy("connection reset by peer"), None);
    }
}
