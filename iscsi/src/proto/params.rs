//! What a login needs to know from its caller.

use std::time::Duration;

use super::chap::{self, ChapAlgorithm};
use super::{IscsiName, Isid, Misuse, Offers, Portal, Secret, Timeouts};

/// A CHAP name and its secret.
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
    /// The portal group that discovery told for the portal. Another one is a warning, no failure.
    pub expected_tpgt: Option<u16>,
    /// What we prove ourselves with, if the target asks for it; `None` offers `AuthMethod=None` only.
    pub chap: Option<ChapCredentials>,
    /// What the target has to prove itself with (mutual CHAP). Implies `require_authentication`.
    pub mutual_chap: Option<ChapCredentials>,
    /// The CHAP algorithms that we offer, in order of preference. Default MD5 alone, as old targets
    /// refuse any list; where a longer one is refused and has MD5 in it, MD5 is tried alone, once.
    pub chap_algorithms: Vec<ChapAlgorithm>,
    /// Never log in without CHAP: `AuthMethod=None` is neither offered nor accepted.
    pub require_authentication: bool,
    /// What we bring to the negotiation of the session's values.
    pub offers: Offers,
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
    /// Parameters with the default times and offers, no target and no CHAP.
    pub fn new(portal: Portal, initiator_name: IscsiName, isid: Isid) -> Self {
        Self {
            portal,
            initiator_name,
            target_name: None,
            expected_tpgt: None,
            chap: None,
            mutual_chap: None,
            chap_algorithms: vec![ChapAlgorithm::Md5],
            require_authentication: false,
            offers: Offers::default(),
            isid,
            login_timeout: LOGIN_TIMEOUT,
            noop_interval: NOOP_INTERVAL,
            noop_timeout: NOOP_TIMEOUT,
            timeouts: Timeouts::default(),
        }
    }

    /// Whether a login can be tried with them.
    ///
    /// # Errors
    /// The first thing that cannot be.
    pub fn check(&self) -> Result<(), Misuse> {
        self.offers.check()?;
        chap::check(self)
    }

    /// Whether a login without authentication is refused.
    pub fn is_authentication_required(&self) -> bool {
        self.require_authentication || self.mutual_chap.is_some()
    }
}

/// open-iscsi's login timeout too: a busy array takes seconds.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);
/// Quiet time before a ping, and the answer's time: short enough that the kernel's own timeouts
/// above us come later.
const NOOP_INTERVAL: Duration = Duration::from_secs(5);
const NOOP_TIMEOUT: Duration = Duration::from_secs(10);
