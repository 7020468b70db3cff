//! What a login needs to know from its caller.

use std::time::Duration;

use super::{IscsiName, Isid, Portal, Secret, Timeouts};

/// CHAP name and secret, one-way (the target asks us).
#[derive(Clone, Debug)]
pub struct ChapCredentials {
    /// `CHAP_N`.
    pub name: String,
    /// The shared secret.
    pub secret: Secret,
}

/// All that a login needs.
#[derive(Clone, Debug)]
pub struct SessionParams {
    /// Where.
    pub portal: Portal,
    /// Who we are.
    pub initiator_name: IscsiName,
    /// Whom we want; `None` for a discovery session.
    pub target_name: Option<IscsiName>,
    /// CHAP, if the target asks for it; `None` offers `AuthMethod=None` only.
    pub chap: Option<ChapCredentials>,
    /// Our half of the session's identity.
    pub isid: Isid,
    /// For connect and login together. Default 15 s.
    pub login_timeout: Duration,
    /// Quiet time before a ping. Default 5 s; 0 = no pings.
    pub noop_interval: Duration,
    /// How long the answer to a ping may take. Default 10 s; 0 = for ever.
    pub noop_timeout: Duration,
    /// How long commands may take, and the steps against those that take longer.
    pub timeouts: Timeouts,
}

impl SessionParams {
    /// Parameters with the default times, no target and no CHAP.
    pub fn new(portal: Portal, initiator_name: IscsiName, isid: Isid) -> Self {
        Self {
            portal,
            initiator_name,
            target_name: None,
            chap: None,
            isid,
            login_timeout: LOGIN_TIMEOUT,
            noop_interval: NOOP_INTERVAL,
            noop_timeout: NOOP_TIMEOUT,
            timeouts: Timeouts::default(),
        }
    }
}

/// open-iscsi's login timeout too: a busy array takes seconds.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);
/// Quiet time before a ping, and the answer's time: short enough that the kernel's own timeouts
/// above us come later.
const NOOP_INTERVAL: Duration = Duration::from_secs(5);
const NOOP_TIMEOUT: Duration = Duration::from_secs(10);
