//! The login of one connection: stages, keys, CHAP, redirection.
//!
//! ```text
//!  Security (file `security`) --T, Trust--> Operational --T--> Ended: full feature phase
//!       |                                        |
//!       +------ refused, redirected, a rule broken: Ended
//! ```
//!
//! Source: RFC 7143 §6.3, §11.12, §11.13, §12.
//!
//! Invariants:
//! 1. One request is outstanding at a time, and each acknowledges the response before it.
//! 2. T is set only with the last piece of a text, when nothing is left to say in the stage.
//! 3. Rounds and text have limits.
//! 4. The security stage is left only with a `Trust`: a target that was to prove itself did so.
//!
//! The clock of a login, the connection, the drawing of random bytes and the following of redirections
//! are `io`'s.

mod security;
mod warning;

use super::chap::{self, CHANCE_BYTES, OurChallenge};
use super::negotiation::{Agreed, Negotiation, Reply, Role};
use super::{ChapAlgorithm, DigestPolicy, LoginError, Misuse, Portal, SessionParams, Violation};
use crate::wire::header::{self, Bhs, Opcode, ResponseNumbers};
use crate::wire::login::{LoginRequest, LoginResponse, LoginStatus, Stage};
use crate::wire::serial::{CmdSn, StatSn};
use crate::wire::tag::InitiatorTaskTag;
use crate::wire::text_keys;
use security::{Security, Trust, Words};

pub use warning::LoginWarning;

/// A login under way.
#[derive(Debug)]
pub struct Login {
    params: SessionParams,
    negotiation: Negotiation,
    role: Role,
    phase: Phase,
    /// Our challenge to the target, until it is said.
    challenge: Option<OurChallenge>,
    cmd_sn: CmdSn,
    /// Of the session that the connection joins; 0 for a new one.
    tsih: u16,
    cid: u16,
    /// The next status number; `None` before the first response.
    stat_sn: Option<StatSn>,
    /// The request's text that has not left.
    outgoing: Vec<u8>,
    /// The response's text so far.
    incoming: Vec<u8>,
    wants_transit: bool,
    /// What the request that is outstanding said; `None` while it is our turn.
    sent: Option<Sent>,
    rounds: u32,
}

/// Where a login stands.
#[derive(Debug)]
enum Phase {
    Security(Security),
    Operational(Trust),
    Ended,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    transit: bool,
    is_continued: bool,
}

/// What became of a response.
#[derive(Debug)]
pub enum LoginStep {
    /// The next request is ready.
    Continue,
    /// The target is elsewhere.
    Redirect(Redirect),
    /// Full feature phase.
    Established(Box<Established>),
}

/// Where a target has moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Its portal.
    pub portal: Portal,
    /// For good: later logins go there at once.
    pub is_permanent: bool,
}

/// What a login leaves to the session.
#[derive(Clone, Debug)]
pub struct Established {
    /// The negotiated values.
    pub agreed: Agreed,
    /// The target's half of the session's identity.
    pub tsih: u16,
    /// The connection's number in its session.
    pub cid: u16,
    /// Whether the target has proved itself (mutual CHAP).
    pub is_target_proved: bool,
    /// What is no failure, but should be known.
    pub warnings: Vec<LoginWarning>,
    /// The first command's number.
    pub cmd_sn: CmdSn,
    /// The next status number.
    pub exp_stat_sn: StatSn,
    /// The numbers of the last response.
    pub numbers: ResponseNumbers,
}

/// RFC 7143 §13.12: what either side takes in one PDU of a login, as nothing is agreed yet.
pub const PDU_TEXT_BYTES_MAX: u32 = 8192;
const REQUEST_BYTES_MAX: usize = 8192;
/// Most text that we hold of one response: a real one has less than 1 KiB.
pub const RESPONSE_TEXT_BYTES_MAX: usize = 65_536;
/// Most requests in a login: a real one has 2 to 5.
const ROUNDS_MAX: u32 = 64;
/// The leading connection's number in its session; chosen freely.
const LEADING_CID: u16 = 0;
/// The tag of a login: chosen freely, only one is outstanding.
const TAG: InitiatorTaskTag = InitiatorTaskTag(1);

impl Login {
    /// The beginning of the login of a session's leading connection, or of a discovery session;
    /// `cmd_sn` is the number of the session's first command.
    ///
    /// # Errors
    /// Parameters that cannot be; see `SessionParams::check`.
    pub fn new(params: &SessionParams, cmd_sn: CmdSn) -> Result<Self, Misuse> {
        let role = match params.target_name {
            Some(_) => Role::Leading,
            None => Role::Discovery,
        };
        // RFC 7143 §11.12.6 (L2): TSIH 0 asks for a new session; with a known ISID it replaces the old one
        Self::begin(params, role, cmd_sn, 0, LEADING_CID)
    }

    /// The beginning of the login of a further connection of the session `tsih`, with the number
    /// `cid`; `cmd_sn` is the session's next command's. What comes of it says nothing of the session's
    /// own values: see `Agreed::in_session_of`.
    ///
    /// # Errors
    /// As `new`, and a session that cannot have one.
    pub fn further(
        params: &SessionParams,
        cmd_sn: CmdSn,
        tsih: u16,
        cid: u16,
    ) -> Result<Self, Misuse> {
        if tsih == 0 || params.target_name.is_none() {
            return Err(Misuse::NoSession);
        }
        // RFC 7143 §11.12.7 (L4): the session's ISID and TSIH, and a number of the connection's own
        Self::begin(params, Role::Further, cmd_sn, tsih, cid)
    }

    fn begin(
        params: &SessionParams,
        role: Role,
        cmd_sn: CmdSn,
        tsih: u16,
        cid: u16,
    ) -> Result<Self, Misuse> {
        params.check()?;
        let mut login = Self {
            negotiation: Negotiation::new(role, &params.offers),
            params: params.clone(),
            role,
            phase: Phase::Security(Security::MethodOffered),
            challenge: None,
            cmd_sn,
            tsih,
            cid,
            stat_sn: None,
            outgoing: Vec::new(),
            incoming: Vec::new(),
            wants_transit: params.chap.is_none(),
            sent: None,
            rounds: 0,
        };
        login.say_who_we_are();
        Ok(login)
    }

    /// Random bytes for our challenge to the target, fresh for each login. Needed with mutual CHAP.
    #[must_use]
    pub fn with_chance(mut self, chance: [u8; CHANCE_BYTES]) -> Self {
        self.challenge = Some(OurChallenge::new(chance));
        self
    }

    /// The next request: header and data segment without padding. `None` while a response is due.
    #[expect(
        clippy::missing_panics_doc,
        reason = "the text was cut to fit just before"
    )]
    pub fn poll_transmit(&mut self) -> Option<(Bhs, Vec<u8>)> {
        if self.sent.is_some() || matches!(self.phase, Phase::Ended) {
            return None;
        }
        let rest = self
            .outgoing
            .split_off(self.outgoing.len().min(REQUEST_BYTES_MAX));
        let text = std::mem::replace(&mut self.outgoing, rest);
        // RFC 7143 §6.2 (L5, L28): C with all pieces of a text but the last, and T only without C
        let is_continued = !self.outgoing.is_empty();
        let transit = self.wants_transit && !is_continued;
        self.sent = Some(Sent {
            transit,
            is_continued,
        });
        let current_stage = self.stage();
        let request = LoginRequest {
            transit,
            is_continued,
            current_stage,
            next_stage: match (transit, current_stage) {
                (false, _) => Stage(0),
                (true, Stage::SECURITY) => Stage::OPERATIONAL,
                (true, _) => Stage::FULL_FEATURE,
            },
            version_max: 0,
            version_min: 0,
            isid: self.params.isid.0,
            tsih: self.tsih,
            initiator_task_tag: TAG,
            cid: self.cid,
            // RFC 7143 §11.12.8 (L8): constant through a login, as its requests are immediate
            cmd_sn: self.cmd_sn,
            exp_stat_sn: self.stat_sn.unwrap_or_default(),
        };
        let mut bhs = request.emit();
        let length = u32::try_from(text.len()).expect("cut to REQUEST_BYTES_MAX above");
        header::set_data_segment_bytes(&mut bhs, length);
        Some((bhs, text))
    }

    /// Takes a PDU of the target's: its header and its data segment without padding.
    ///
    /// # Errors
    /// The target refused the login, or broke a rule.
    pub fn handle_response(&mut self, bhs: &Bhs, text: &[u8]) -> Result<LoginStep, LoginError> {
        let opcode = header::opcode(bhs);
        // RFC 7143 §6.3 (L1, L14): one request, one response, and nothing else in between
        let Some(sent) = self
            .sent
            .take()
            .filter(|_| opcode == Opcode::LOGIN_RESPONSE)
        else {
            return Err(Violation::PduDuringLogin(opcode).into());
        };
        // RFC 7143 §7.5 (L29): a format error; there is no way on from it
        if header::ahs_bytes(bhs) != 0 {
            return Err(Violation::AdditionalHeader.into());
        }
        let bytes = header::data_segment_bytes(bhs);
        if bytes > PDU_TEXT_BYTES_MAX {
            return Err(Violation::SegmentTooLong {
                bytes,
                limit: PDU_TEXT_BYTES_MAX,
            }
            .into());
        }
        let response = LoginResponse::parse(bhs);
        self.collect(text)?;
        // RFC 7143 §11.13.5 (L27): numbers of a response that ends the login mean nothing
        match response.status.class {
            0 => {}
            1 => return self.redirect(response.status).map(LoginStep::Redirect),
            _ => {
                return Err(LoginError::Refused {
                    status: response.status,
                });
            }
        }
        self.check(&response, sent)?;
        if sent.is_continued || response.is_continued {
            // RFC 7143 §6.2 (L28): a piece of a text is answered by an empty PDU
            return self.next_round();
        }
        let text = std::mem::take(&mut self.incoming);
        let pairs = text_keys::parse(&text).map_err(Violation::from)?;
        self.wants_transit = true;
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Security(security) => {
                let security = self.handle_security(security, &pairs)?;
                self.leave_security(security, response.transit)?;
            }
            Phase::Operational(trust) => {
                self.handle_others(&pairs, response.transit)?;
                if response.transit {
                    return self.establish(&response, trust).map(LoginStep::Established);
                }
                self.phase = Phase::Operational(trust);
            }
            Phase::Ended => return Err(Violation::PduDuringLogin(opcode).into()),
        }
        self.next_round()
    }

    /// Whether, after `error`, one more login that offers MD5 alone may succeed: the target cannot read
    /// our list of CHAP algorithms, or means another one than we by a number (tgt has SHA1 at 7).
    pub fn may_try_md5(&self, error: &LoginError) -> bool {
        let algorithms = &self.params.chap_algorithms;
        if algorithms.len() < 2 || !algorithms.contains(&ChapAlgorithm::Md5) {
            return false;
        }
        let is_last_word = matches!(error, LoginError::Lost { .. })
            || matches!(error, LoginError::Refused { status } if matches!(
                *status,
                LoginStatus::INITIATOR_ERROR | LoginStatus::AUTHENTICATION_FAILURE
            ));
        match &self.phase {
            Phase::Security(Security::AlgorithmOffered) => is_last_word,
            Phase::Security(Security::Proving { picked, .. }) => {
                is_last_word && *picked != ChapAlgorithm::Md5
            }
            Phase::Security(Security::MethodOffered | Security::Settled(_))
            | Phase::Operational(_)
            | Phase::Ended => matches!(error, LoginError::ChapAlgorithm { .. }),
        }
    }

    fn next_round(&mut self) -> Result<LoginStep, LoginError> {
        self.rounds += 1;
        // RFC 7143 §6.3 (L6): a target may stay in a stage, but not for ever
        if self.rounds >= ROUNDS_MAX {
            return Err(Violation::LoginRounds(ROUNDS_MAX).into());
        }
        Ok(LoginStep::Continue)
    }

    fn stage(&self) -> Stage {
        match self.phase {
            Phase::Security(_) => Stage::SECURITY,
            Phase::Operational(_) | Phase::Ended => Stage::OPERATIONAL,
        }
    }

    fn say(&mut self, key: &str, value: &str) {
        text_keys::emit(&mut self.outgoing, key, value);
    }

    /// RFC 7143 §6.3.1 (L10): the first request says who talks, to whom, and for what; none of it is said
    /// again.
    fn say_who_we_are(&mut self) {
        let params = self.params.clone();
        self.say("InitiatorName", params.initiator_name.as_str());
        match self.role {
            Role::Leading => self.say("SessionType", "Normal"),
            Role::Discovery => self.say("SessionType", "Discovery"),
            // RFC 7143 §13.21: "leading only"
            Role::Further => {}
        }
        if let Some(target) = &params.target_name {
            self.say("TargetName", target.as_str());
        }
        self.say("AuthMethod", security::offered_methods(&params));
    }

    fn collect(&mut self, text: &[u8]) -> Result<(), Violation> {
        // RFC 7143 §6.2 (L28): pieces are joined, up to a limit of ours
        if self.incoming.len() + text.len() > RESPONSE_TEXT_BYTES_MAX {
            return Err(Violation::TextTooLong {
                limit: RESPONSE_TEXT_BYTES_MAX,
            });
        }
        self.incoming.extend_from_slice(text);
        Ok(())
    }

    /// What every successful response must keep to.
    fn check(&mut self, response: &LoginResponse, sent: Sent) -> Result<(), Violation> {
        if response.initiator_task_tag != TAG {
            return Err(Violation::LoginTag);
        }
        if response.version_active != 0 {
            return Err(Violation::Version(response.version_active));
        }
        // RFC 7143 §11.13.2: the initiator port is ours to name
        if response.isid != self.params.isid.0 {
            return Err(Violation::Isid);
        }
        // RFC 7143 §11.13.4 (L7): the first StatSN, zero or not, is the base
        let seen = response.numbers.stat_sn;
        if let Some(expected) = self.stat_sn.filter(|expected| *expected != seen) {
            return Err(Violation::StatSn {
                expected: expected.0,
                seen: seen.0,
            });
        }
        self.stat_sn = Some(seen.next());
        let next_stage = match self.stage() {
            Stage::SECURITY => Stage::OPERATIONAL,
            _ => Stage::FULL_FEATURE,
        };
        // RFC 7143 §6.3 (L5): the target follows our stage, transits only when asked, and never with C
        let is_in_step = response.current_stage == self.stage()
            && (!response.transit
                || (sent.transit && !response.is_continued && response.next_stage == next_stage));
        if !is_in_step {
            return Err(Violation::LoginStage);
        }
        // RFC 7143 §6.2: between our pieces the target has nothing to say
        if sent.is_continued && !self.incoming.is_empty() {
            return Err(Violation::TextExchange);
        }
        Ok(())
    }

    /// One step of the security stage.
    fn handle_security(
        &mut self,
        security: Security,
        pairs: &[(&str, &str)],
    ) -> Result<Security, LoginError> {
        let keys: &[&str] = match &security {
            Security::MethodOffered => &["AuthMethod"],
            Security::AlgorithmOffered => &["CHAP_A", "CHAP_I", "CHAP_C"],
            Security::Proving { .. } => &["CHAP_N", "CHAP_R"],
            Security::Settled(_) => &[],
        };
        let is_own = |key: &str| keys.contains(&key);
        let take = |key| once(pairs, key);
        let (security, words) = match security {
            Security::MethodOffered => security::handle_method(&self.params, take("AuthMethod")?)?,
            Security::AlgorithmOffered => {
                let challenge = [take("CHAP_A")?, take("CHAP_I")?, take("CHAP_C")?];
                let ours = self.own_challenge()?;
                security::handle_challenge(&self.params, ours, challenge)?
            }
            Security::Proving { picked, asked } => {
                let proof = [take("CHAP_N")?, take("CHAP_R")?];
                let trust = security::handle_proof(&self.params, picked, asked, proof)?;
                (Security::Settled(trust), Words::new())
            }
            Security::Settled(trust) => (Security::Settled(trust), Words::new()),
        };
        let others: Vec<_> = pairs
            .iter()
            .filter(|(key, _)| !is_own(key))
            .copied()
            .collect();
        // What is offered with the end of this stage can be answered in the next.
        self.handle_others(&others, false)?;
        for (key, value) in &words {
            self.say(key, value);
        }
        self.wants_transit = !matches!(security, Security::AlgorithmOffered);
        Ok(security)
    }

    fn own_challenge(&mut self) -> Result<Option<OurChallenge>, LoginError> {
        if self.params.mutual_chap.is_none() {
            return Ok(None);
        }
        let challenge = self.challenge.take();
        challenge
            .map(Some)
            .ok_or(LoginError::Misuse(Misuse::NoChance))
    }

    /// Goes to the operational stage, if the target does and may.
    fn leave_security(&mut self, security: Security, is_left: bool) -> Result<(), LoginError> {
        self.phase = match (security, is_left) {
            (security, false) => Phase::Security(security),
            (Security::Settled(trust), true) => {
                self.offer();
                Phase::Operational(trust)
            }
            // `check` has seen that we asked for the stage's end, which we do with all said.
            (
                Security::MethodOffered | Security::AlgorithmOffered | Security::Proving { .. },
                true,
            ) => {
                return Err(Violation::LoginStage.into());
            }
        };
        Ok(())
    }

    /// Keys that are not of the security stage, in either stage.
    fn handle_others(&mut self, pairs: &[(&str, &str)], is_last: bool) -> Result<(), Violation> {
        for (key, value) in pairs {
            match self.negotiation.handle(key, value)? {
                Reply::None => {}
                // RFC 7143 §6.3: with the last response of a stage nothing can be offered
                Reply::Value(_) if is_last => {
                    return Err(Violation::KeyOutOfPlace((*key).to_owned()));
                }
                Reply::NotUnderstood if is_last => {}
                Reply::Value(answer) => self.say(key, &answer),
                Reply::NotUnderstood => self.say(key, "NotUnderstood"),
            }
        }
        Ok(())
    }

    fn offer(&mut self) {
        for (key, value) in self.negotiation.poll_offers() {
            self.say(key, &value);
        }
    }

    fn establish(
        &mut self,
        response: &LoginResponse,
        trust: Trust,
    ) -> Result<Box<Established>, LoginError> {
        // RFC 7143 §11.13.3 (L3): the last response names the new session, or the one that was joined
        match (self.tsih, response.tsih) {
            (_, 0) => return Err(Violation::TsihZero.into()),
            (0, _) => {}
            (expected, seen) if expected == seen => {}
            (expected, seen) => return Err(Violation::Tsih { expected, seen }.into()),
        }
        let agreed = self.negotiation.finish()?;
        self.check_digests(&agreed)?;
        Ok(Box::new(Established {
            warnings: self.warnings(&agreed),
            agreed,
            tsih: response.tsih,
            cid: self.cid,
            is_target_proved: matches!(trust, Trust::Proved(_)),
            cmd_sn: self.cmd_sn,
            exp_stat_sn: response.numbers.stat_sn.next(),
            numbers: response.numbers,
        }))
    }

    /// Whether the digests that we require are there.
    fn check_digests(&self, agreed: &Agreed) -> Result<(), LoginError> {
        let offers = &self.params.offers;
        let digests = [
            ("HeaderDigest", offers.header_digest, agreed.header_digest),
            ("DataDigest", offers.data_digest, agreed.data_digest),
        ];
        let mut refused = digests
            .into_iter()
            .filter(|(_, policy, is_on)| *policy == DigestPolicy::Require && !is_on);
        match refused.next() {
            Some((key, _, _)) if self.role != Role::Discovery => {
                Err(LoginError::DigestRefused { key })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn warnings(&self, agreed: &Agreed) -> Vec<LoginWarning> {
        let params = &self.params;
        let mut warnings = Vec::new();
        // RFC 7143 §13.9 (L25): the tag, zero too, is compared with the expected one
        if let (Some(expected), Some(seen)) = (params.expected_tpgt, agreed.target_portal_group_tag)
            && expected != seen
        {
            warnings.push(LoginWarning::PortalGroup { expected, seen });
        }
        let directions = [(&params.chap, false), (&params.mutual_chap, true)];
        for (credentials, is_targets) in directions {
            if credentials
                .as_ref()
                .is_some_and(|known| chap::is_short(&known.secret))
            {
                warnings.push(LoginWarning::ShortSecret { is_targets });
            }
        }
        warnings
    }

    fn redirect(&mut self, status: LoginStatus) -> Result<Redirect, LoginError> {
        self.phase = Phase::Ended;
        let pairs = text_keys::parse(&self.incoming).map_err(Violation::from)?;
        // RFC 7143 §13.8 (L26): the address of a redirection; a portal group tag is passed over
        let portal = once(&pairs, "TargetAddress")?
            .and_then(|address| Portal::from_target_address(address).ok())
            .ok_or(Violation::RedirectAddress)?
            .0;
        Ok(Redirect {
            portal,
            is_permanent: status == LoginStatus::MOVED_PERMANENTLY,
        })
    }
}

/// The value of a key that must not come twice.
fn once<'a>(pairs: &[(&str, &'a str)], key: &str) -> Result<Option<&'a str>, Violation> {
    let mut values = pairs
        .iter()
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| *value);
    let first = values.next();
    match values.next() {
        None => Ok(first),
        Some(_) => Err(Violation::KeyRepeated(key.to_owned())),
    }
}

#[cfg(test)]
mod tests;
