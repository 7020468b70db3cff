//! Machines without I/O: negotiation, login, CHAP, window, tasks, connection, session. CONTRACT part:

use std::time::Duration;

/// A secret that prints as `[secret]` and is wiped when dropped.
#[derive(Clone)]
pub struct Secret(zeroize::Zeroizing<String>);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: String) -> Self {
        Self(zeroize::Zeroizing::new(secret))
    }
    /// The secret itself, for the one place that computes with it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

/// CHAP name and secret, one-way (the target asks us).
#[derive(Clone, Debug)]
pub struct ChapCredentials {
    /// `CHAP_N`.
    pub name: String,
    /// The shared secret.
    pub secret: Secret,
}

/// A network portal: `host:port`, IPv6 in brackets; port 3260 if absent. Has `FromStr` and `Display`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Portal {
    /// Host name or address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// An iSCSI name (`iqn.`, `eui.`, `naa.`), at most 223 bytes, checked and normalised. `FromStr`, `Display`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IscsiName(String);

/// The initiator's part of a session's name: 48 bits (RFC 7143 §11.12.5). Stable for one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Isid(pub [u8; 6]);

/// All that a login needs.
#[derive(Clone, Debug)]
pub struct SessionParams {
    /// Where.
    pub portal: Portal,
    /// Who we are.
    pub initiator_name: IscsiName,
    /// Whom we want; `None` for a discovery session.
    pub target_name: Option<IscsiName>,
    /// CHAP; `None` offers `AuthMethod=None` only.
    pub chap: Option<ChapCredentials>,
    /// Our half of the session's identity.
    pub isid: Isid,
    /// For connect and login together. Default 15 s.
    pub login_timeout: Duration,
    /// Quiet time before a ping, and how long its answer may take. Default 5 s and 10 s; 0 = off.
    pub noop_interval: Duration,
    /// See `noop_interval`.
    pub noop_timeout: Duration,
}

/// Why a login failed. One line; says what to do. By fault: `Unreachable`, `Refused`, `Violation`, `Misuse`.
#[derive(Debug, thiserror::Error)]
#[error("contract")]
#[non_exhaustive]
pub enum LoginError {}

/// Why a session ended: `Lost`, `Violation`, `Refused`, `LoggedOut`.
#[derive(Debug, thiserror::Error)]
#[error("contract")]
#[non_exhaustive]
pub enum SessionError {}
