//! The login of one connection: stages, keys, CHAP, redirection.
//!
//! ```text
//!            AuthMethod        CHAP_A           CHAP_N,R T
//!  Security: MethodOffered --> AlgorithmOffered --> Proving --+
//!                 | None, T                                   | T
//!                 +-------------------------------------------+--> Operational --T--> full feature
//! ```
//!
//! Source: RFC 7143 §6.3, §11.12, §11.13, §12.
//!
//! Invariants:
//! 1. One request is outstanding at a time, and each acknowledges the response before it.
//! 2. T is set only with the last piece of a text, when nothing is left to say in the stage.
//! 3. Rounds and text have limits.
//!
//! The clock of a login, the connection and the following of redirections are `io`'s.

use super::chap::{self, Challenge};
use super::negotiation::{Agreed, Negotiation, Reply};
use super::{LoginError, Misuse, Portal, SessionParams, Violation};
use crate::wire::header::{self, Bhs, Opcode, ResponseNumbers};
use crate::wire::login::{LoginRequest, LoginResponse, LoginStatus, Stage};
use crate::wire::serial::{CmdSn, StatSn};
use crate::wire::tag::InitiatorTaskTag;
use crate::wire::text_keys;

/// A login under way.
#[derive(Debug)]
pub struct Login {
    params: SessionParams,
    negotiation: Negotiation,
    phase: Phase,
    cmd_sn: CmdSn,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    MethodOffered,
    AlgorithmOffered,
    /// All was said in the security stage; the target has to leave it with us.
    SecurityDone,
    Operational,
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
    /// The first command's number.
    pub cmd_sn: CmdSn,
    /// The next status number.
    pub exp_stat_sn: StatSn,
    /// The numbers of the last response.
    pub numbers: ResponseNumbers,
}

/// RFC 7143 §13.12: until it says otherwise the target takes this many bytes in a request.
const REQUEST_BYTES_MAX: usize = 8192;
/// Most text that we hold of one response: a real one has less than 1 KiB.
pub const RESPONSE_TEXT_BYTES_MAX: usize = 65_536;
/// Most requests in a login: a real one has 2 to 5.
const ROUNDS_MAX: u32 = 64;
/// The connection's number in its session.
const CID: u16 = 0;
/// The tag of a login: chosen freely, only one is outstanding.
const TAG: InitiatorTaskTag = InitiatorTaskTag(1);

impl Login {
    /// The beginning of a login; `cmd_sn` is the number of the session's first command.
    ///
    /// # Errors
    /// Credentials that cannot be spoken.
    pub fn new(params: &SessionParams, cmd_sn: CmdSn) -> Result<Self, Misuse> {
        if let Some(credentials) = &params.chap {
            chap::check(credentials)?;
        }
        let mut login = Self {
            negotiation: Negotiation::new(params.target_name.is_none()),
            params: params.clone(),
            phase: Phase::MethodOffered,
            cmd_sn,
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

    /// The next request: header and data segment without padding. `None` while a response is due.
    #[expect(
        clippy::missing_panics_doc,
        reason = "the text was cut to fit just before"
    )]
    pub fn poll_transmit(&mut self) -> Option<(Bhs, Vec<u8>)> {
        if self.sent.is_some() || self.phase == Phase::Ended {
            return None;
        }
        let rest = self
            .outgoing
            .split_off(self.outgoing.len().min(REQUEST_BYTES_MAX));
        let text = std::mem::replace(&mut self.outgoing, rest);
        // RFC 7143 §6.2: C with all pieces of a text but the last, and T only without C
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
            tsih: 0,
            initiator_task_tag: TAG,
            cid: CID,
            // RFC 7143 §11.12.8: constant through a login, as its requests are immediate
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
        let Some(sent) = self
            .sent
            .take()
            .filter(|_| opcode == Opcode::LOGIN_RESPONSE)
        else {
            return Err(Violation::PduDuringLogin(opcode).into());
        };
        if header::ahs_bytes(bhs) != 0 {
            return Err(Violation::AdditionalHeader.into());
        }
        let response = LoginResponse::parse(bhs);
        self.collect(text)?;
        // RFC 7143 §11.13.5: numbers of a response that ends the login mean nothing
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
            // RFC 7143 §6.2: a piece of a text is answered by an empty PDU
            return self.next_round();
        }
        let text = std::mem::take(&mut self.incoming);
        let pairs = text_keys::parse(&text).map_err(Violation::from)?;
        self.wants_transit = true;
        match self.phase {
            Phase::MethodOffered => self.handle_method(&pairs)?,
            Phase::AlgorithmOffered => self.handle_challenge(&pairs)?,
            Phase::SecurityDone | Phase::Operational => {
                self.handle_others(&pairs, response.transit)?;
            }
            Phase::Ended => return Err(Violation::PduDuringLogin(opcode).into()),
        }
        if response.transit {
            if self.phase == Phase::Operational {
                return self.establish(&response).map(LoginStep::Established);
            }
            self.enter_operational();
        }
        self.next_round()
    }

    fn next_round(&mut self) -> Result<LoginStep, LoginError> {
        self.rounds += 1;
        if self.rounds >= ROUNDS_MAX {
            return Err(Violation::LoginRounds(ROUNDS_MAX).into());
        }
        Ok(LoginStep::Continue)
    }

    fn stage(&self) -> Stage {
        match self.phase {
            Phase::MethodOffered | Phase::AlgorithmOffered | Phase::SecurityDone => Stage::SECURITY,
            Phase::Operational | Phase::Ended => Stage::OPERATIONAL,
        }
    }

    fn say(&mut self, key: &str, value: &str) {
        text_keys::emit(&mut self.outgoing, key, value);
    }

    /// RFC 7143 §6.3.1: the first request says who talks, to whom, and for what.
    fn say_who_we_are(&mut self) {
        let params = self.params.clone();
        self.say("InitiatorName", params.initiator_name.as_str());
        match &params.target_name {
            Some(target) => {
                self.say("SessionType", "Normal");
                self.say("TargetName", target.as_str());
            }
            None => self.say("SessionType", "Discovery"),
        }
        // RFC 7143 §12.1: in the order of our preference
        self.say("AuthMethod", self.offered_methods());
    }

    fn offered_methods(&self) -> &'static str {
        if self.params.chap.is_some() {
            "CHAP,None"
        } else {
            "None"
        }
    }

    fn collect(&mut self, text: &[u8]) -> Result<(), Violation> {
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
        // RFC 7143 §11.13.4: the first StatSN, zero or not, is the base
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
        // RFC 7143 §6.3: the target follows our stage, transits only when asked, and never with C
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

    /// The answer to `AuthMethod`.
    fn handle_method(&mut self, pairs: &[(&str, &str)]) -> Result<(), LoginError> {
        let method = once(pairs, "AuthMethod")?;
        let others: Vec<_> = pairs
            .iter()
            .filter(|(key, _)| *key != "AuthMethod")
            .copied()
            .collect();
        self.handle_others(&others, false)?;
        match method {
            Some("CHAP") if self.params.chap.is_some() => {
                self.say("CHAP_A", chap::ALGORITHM_MD5);
                self.phase = Phase::AlgorithmOffered;
                self.wants_transit = false;
            }
            Some("None") => self.phase = Phase::SecurityDone,
            // A target without accounts may pass over the key when there was nothing to choose.
            None if self.params.chap.is_none() => self.phase = Phase::SecurityDone,
            Some("Reject") => {
                return Err(LoginError::Authentication {
                    offered: self.offered_methods(),
                });
            }
            Some(other) => {
                let offer = self.offered_methods();
                return Err(Violation::answer("AuthMethod", other, offer).into());
            }
            None => return Err(Violation::KeyMissing("AuthMethod").into()),
        }
        Ok(())
    }

    /// `CHAP_A`, `CHAP_I` and `CHAP_C`: the challenge.
    fn handle_challenge(&mut self, pairs: &[(&str, &str)]) -> Result<(), LoginError> {
        let take = |key| once(pairs, key)?.ok_or(Violation::KeyMissing(key));
        let challenge = Challenge::parse(take("CHAP_A")?, take("CHAP_I")?, take("CHAP_C")?)?;
        let others: Vec<_> = pairs
            .iter()
            .filter(|(key, _)| !matches!(*key, "CHAP_A" | "CHAP_I" | "CHAP_C"))
            .copied()
            .collect();
        self.handle_others(&others, false)?;
        let Some(credentials) = self.params.chap.clone() else {
            return Err(Violation::KeyOutOfPlace("CHAP_C".to_owned()).into());
        };
        // RFC 7143 §12.1.3: name and response in one request
        self.say("CHAP_N", &credentials.name);
        self.say("CHAP_R", &challenge.response(&credentials));
        self.phase = Phase::SecurityDone;
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

    fn enter_operational(&mut self) {
        self.phase = Phase::Operational;
        for (key, value) in self.negotiation.poll_offers() {
            self.say(key, &value);
        }
    }

    fn establish(&mut self, response: &LoginResponse) -> Result<Box<Established>, LoginError> {
        // RFC 7143 §11.13.3: the last response names the new session
        if response.tsih == 0 {
            return Err(Violation::TsihZero.into());
        }
        self.phase = Phase::Ended;
        Ok(Box::new(Established {
            agreed: self.negotiation.finish()?,
            tsih: response.tsih,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: response.numbers.stat_sn.next(),
            numbers: response.numbers,
        }))
    }

    fn redirect(&mut self, status: LoginStatus) -> Result<Redirect, LoginError> {
        self.phase = Phase::Ended;
        let pairs = text_keys::parse(&self.incoming).map_err(Violation::from)?;
        // RFC 7143 §13.8: the address of a redirection has no portal group tag
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
