//! Why a call failed, by kind: one line each, cause and remedy, and the server's request id where it gave one.
//!
//! Invariants:
//! 1. No secret is in any field: what servers say passes `fault`, and Keystone's words are scrubbed of ours.
//! 2. Callers match kinds, never text.

use std::fmt;

use super::fault::Fault;

/// A server's id of one request, which its operators can search for; prints as ` (request ID)` or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestId(pub Option<String>);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .as_ref()
            .map_or(Ok(()), |id| write!(f, " (request {id})"))
    }
}

/// Who holds a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The attachment's id.
    pub attachment_id: String,
    /// `attached`, `reserved`, `attaching`...
    pub status: String,
    /// The connector's `mountpoint`: another cinder-nbd's tag, or `/dev/vdb` of a server.
    pub device: Option<String>,
    /// Shown to administrators only.
    pub host: Option<String>,
    /// A Nova server's id.
    pub server_id: Option<String>,
    /// RFC 3339, UTC.
    pub since: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attachment {} is {}", self.attachment_id, self.status)?;
        // Cinder writes `na` where a connector gave no mountpoint.
        if let Some(device) = self.device.as_deref().filter(|device| *device != "na") {
            write!(f, " as {device}")?;
        }
        if let Some(host) = &self.host {
            write!(f, " on host {host}")?;
        }
        if let Some(server) = &self.server_id {
            write!(f, " to server {server}")?;
        }
        if let Some(since) = &self.since {
            write!(f, " since {since}")?;
        }
        Ok(())
    }
}

/// Why a call failed, by kind; `Display` is one line with cause and remedy. Never a secret.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The client itself could not be made.
    #[error("{0}")]
    Setup(String),
    /// No connection.
    #[error("cannot reach {url}: {cause}; {remedy}")]
    Unreachable {
        /// Scheme, host and port.
        url: String,
        /// What the system said.
        cause: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A connection, but no trust.
    #[error("no secure connection to {url}: {cause}; {remedy}")]
    Tls {
        /// Scheme, host and port.
        url: String,
        /// What the TLS library said.
        cause: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The request may have been carried out.
    #[error("no answer from {url} within {seconds} s; try again, or raise api_timeout")]
    Timeout {
        /// The address.
        url: String,
        /// The deadline.
        seconds: u64,
    },
    /// The request may have been carried out.
    #[error("the connection to {url} ended before the answer was complete: {cause}; try again")]
    Lost {
        /// The address.
        url: String,
        /// What the system said.
        cause: String,
    },
    /// Something else answers where Keystone should.
    #[error(
        "no Keystone at {url}: {found}; auth_url (OS_AUTH_URL) must be Keystone's address, like https://cloud.example:5000/v3"
    )]
    NotKeystone {
        /// The address that was asked.
        url: String,
        /// What was found there.
        found: String,
    },
    /// Keystone refused.
    #[error(
        "Keystone at {url} refuses the credentials: {message}{request}; check {check} in {place}"
    )]
    Credentials {
        /// Keystone.
        url: String,
        /// Its words.
        message: String,
        /// Its request.
        request: RequestId,
        /// Which settings.
        check: &'static str,
        /// Where they stand.
        place: String,
    },
    /// A token that cannot be renewed, or that Cinder refuses although Keystone has just made it.
    #[error("{url} refuses the token: {message}{request}; {remedy}")]
    Token {
        /// Who refused.
        url: String,
        /// Its words.
        message: String,
        /// Its request.
        request: RequestId,
        /// What to do.
        remedy: &'static str,
    },
    /// No endpoint in the catalog.
    #[error("the catalog has no block storage {wanted}; it has {found}; {remedy}")]
    Catalog {
        /// Region and interface.
        wanted: String,
        /// What there is.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// Something else answers where Cinder should.
    #[error(
        "no Cinder v3 at {url}: {found}; correct the catalog, or set block_storage_endpoint_override (OS_BLOCK_STORAGE_ENDPOINT_OVERRIDE)"
    )]
    NotCinder {
        /// The address that was asked.
        url: String,
        /// What was found there.
        found: String,
    },
    /// The server is too old.
    #[error(
        "Cinder at {url} offers microversions up to {found}, but 3.44 (OpenStack Queens) is needed for the attachments API; use a newer Cinder"
    )]
    Microversion {
        /// Cinder.
        url: String,
        /// Its highest.
        found: String,
    },
    /// 403.
    #[error(
        "not allowed: {message}{request}; ask for a role in the project that allows it (usually member)"
    )]
    Forbidden {
        /// Cinder's words.
        message: String,
        /// Its request.
        request: RequestId,
    },
    /// 404, or no such name.
    #[error("{message}{request}; {remedy}")]
    NotFound {
        /// What is absent.
        message: String,
        /// Its request.
        request: RequestId,
        /// What to do.
        remedy: String,
    },
    /// More than one of that name.
    #[error("{} {kind}s are named `{name}`: {}; give the id of the one that is meant", ids.len(), listed(ids))]
    Ambiguous {
        /// `volume`, `snapshot`, `transfer`.
        kind: &'static str,
        /// The name.
        name: String,
        /// Their ids.
        ids: Vec<String>,
    },
    /// 413. Never repeated: only a person can help.
    #[error("over quota: {message}{request}; delete something, or have the project's quota raised")]
    Quota {
        /// Cinder's words, with its numbers.
        message: String,
        /// Its request.
        request: RequestId,
    },
    /// 429, 502, 503, 504, after repetition.
    #[error("{url} is not available (HTTP {status}): {message}{request}; try again later")]
    Unavailable {
        /// The address.
        url: String,
        /// The status.
        status: u16,
        /// The words of whoever answered.
        message: String,
        /// Its request.
        request: RequestId,
    },
    /// 500: Cinder or its storage failed.
    #[error(
        "Cinder failed (HTTP {status}): {message}{request}; its operators find the reason in cinder-volume's log"
    )]
    Backend {
        /// The status.
        status: u16,
        /// Cinder's words.
        message: String,
        /// Its request.
        request: RequestId,
    },
    /// 400, 409 and the like: our request does not suit.
    #[error("Cinder refuses (HTTP {status}): {message}{request}; {remedy}")]
    Rejected {
        /// The status.
        status: u16,
        /// Cinder's words.
        message: String,
        /// Its request.
        request: RequestId,
        /// What to do.
        remedy: String,
    },
    /// A request that would be refused was not sent.
    #[error("{0}")]
    Misuse(String),
    /// The volume is another's.
    #[error("volume {volume} is {status}{}; {remedy}", holders_text(holders))]
    AttachedElsewhere {
        /// Name or id.
        volume: String,
        /// `in-use`, `reserved`, `attaching`...
        status: String,
        /// By whom.
        holders: Vec<Holder>,
        /// What to do.
        remedy: String,
    },
    /// The volume's state does not allow it.
    #[error("volume {volume} is in state {status}; {remedy}")]
    WrongState {
        /// Name or id.
        volume: String,
        /// The state.
        status: String,
        /// What to do.
        remedy: String,
    },
    /// A new volume ended in `error`.
    #[error("Cinder could not make volume `{name}`: {reason}; {outcome}")]
    CreateFailed {
        /// Its name.
        name: String,
        /// From Cinder's messages.
        reason: String,
        /// Whether it was deleted again, and what to do.
        outcome: String,
    },
    /// A new snapshot ended in `error`.
    #[error("Cinder could not take snapshot `{name}`: {reason}; {remedy}")]
    SnapshotFailed {
        /// Its name.
        name: String,
        /// From Cinder's messages.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// A state did not come within its time.
    #[error("{kind} {id} is still {status} after {seconds} s; {remedy}")]
    Slow {
        /// `volume` or `snapshot`.
        kind: &'static str,
        /// Its id.
        id: String,
        /// The state it is in.
        status: String,
        /// How long we waited.
        seconds: u64,
        /// What to do.
        remedy: String,
    },
    /// The connection information is not for us.
    #[error(
        "the storage behind this volume speaks `{transport}`, and only iscsi is supported; use a volume type on an iSCSI backend"
    )]
    Transport {
        /// `driver_volume_type`.
        transport: String,
    },
    /// LUKS by the front end.
    #[error(
        "volume {volume} is encrypted by the front end (LUKS), which is not supported; use a volume type without encryption"
    )]
    Encrypted {
        /// Its id.
        volume: String,
    },
    /// The connection information lacks something or does not parse.
    #[error(
        "Cinder's connection information is unusable: {0}; use a volume type of another backend, or ask the cloud's operators"
    )]
    ConnectionInfo(String),
    /// The answer is not what the API promises.
    #[error("an answer of {url} is not understood: {what}{request}; is a proxy in between?")]
    Answer {
        /// The address.
        url: String,
        /// What is wrong with it.
        what: String,
        /// Its request.
        request: RequestId,
    },
}

impl Error {
    /// The thing asked for does not exist: the only kind that says so.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// The cloud could not be asked: nothing is known about the volume, and a local record still holds.
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Setup(_)
                | Self::Unreachable { .. }
                | Self::Tls { .. }
                | Self::Timeout { .. }
                | Self::Lost { .. }
                | Self::NotKeystone { .. }
                | Self::Credentials { .. }
                | Self::Token { .. }
                | Self::Catalog { .. }
                | Self::NotCinder { .. }
                | Self::Microversion { .. }
                | Self::Unavailable { .. }
                | Self::Answer { .. }
        )
    }

    /// The same refusal with a remedy that fits the call better.
    pub(super) fn with_remedy(mut self, better: String) -> Self {
        if let Self::Rejected { remedy, .. } | Self::NotFound { remedy, .. } = &mut self {
            *remedy = better;
        }
        self
    }

    /// The request may have been carried out although it failed for us: whoever changes something must look.
    pub(super) fn is_uncertain(&self) -> bool {
        matches!(
            self,
            Self::Timeout { .. }
                | Self::Lost { .. }
                | Self::Unavailable { .. }
                | Self::Backend { .. }
                | Self::Answer { .. }
        )
    }

    /// Cinder's refusals by status; 401 is `session`'s.
    pub(super) fn from_refusal(url: &str, status: u16, fault: Fault, request: RequestId) -> Self {
        let message = fault.message;
        match (status, fault.name) {
            // A 404 without a fault's name is no word of Cinder's about a volume: an unknown path, or a proxy.
            (300..400, _) | (404, None) => Self::NotCinder {
                url: url.to_owned(),
                found: message,
            },
            (403, _) => Self::Forbidden { message, request },
            (404, Some(_)) => Self::NotFound {
                message,
                request,
                remedy: REMEDY_NOT_FOUND.to_owned(),
            },
            (413, _) => Self::Quota { message, request },
            (429 | 502..=504, _) => Self::Unavailable {
                url: url.to_owned(),
                status,
                message,
                request,
            },
            (500.., _) => Self::Backend {
                status,
                message,
                request,
            },
            (_, _) => Self::Rejected {
                status,
                message,
                request,
                remedy: "change the request accordingly".to_owned(),
            },
        }
    }
}

/// Names and projects are what is mostly mistaken.
const REMEDY_NOT_FOUND: &str = "check the name or id with `cinder-nbd volume list`, and that OS_PROJECT_NAME is the right project";

/// Enough to choose from; the rest is counted.
const LISTED_MAX: usize = 10;

/// The first of them, with commas.
pub(super) fn listed(ids: &[String]) -> String {
    let mut text = ids
        .iter()
        .take(LISTED_MAX)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if ids.len() > LISTED_MAX {
        text.push_str(" and others");
    }
    text
}

fn holders_text(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return String::new();
    }
    let holders = holders.iter().take(LISTED_MAX + 1).map(Holder::to_string);
    format!(": {}", listed(&holders.collect::<Vec<_>>()))
}
