//! Operational keys: what we offer, what an answer may be, what comes of both.
//!
//! One table (`keys`) says for each key its range, default and result function; one function judges
//! an answer, one makes ours when the target offers first. All values are numbers here; `Yes` is 1.
//!
//! Source: RFC 7143 §6.2 (negotiation), §13 (keys).
//!
//! Invariants:
//! 1. A key is settled at most once in a login.
//! 2. A settled value lies in its key's range and never beyond what we offered.
//!
//! When keys may be sent is `login`'s matter.

mod keys;

use super::Violation;
use super::violation::excerpt;
use keys::{Function, Kind, Rule, Scope};

pub use keys::Key;

/// What a login agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// `HeaderDigest`: CRC32C behind each header.
    pub header_digest: bool,
    /// `DataDigest`: CRC32C behind each data segment.
    pub data_digest: bool,
    /// `MaxConnections`: how many connections the session may have.
    pub max_connections: u16,
    /// `InitialR2T`: no unsolicited Data-Out.
    pub initial_r2t: bool,
    /// `ImmediateData`: data may come with the command.
    pub immediate_data: bool,
    /// `MaxRecvDataSegmentLength` that we declared, bytes.
    pub ours_max_recv_data_segment_bytes: u32,
    /// `MaxRecvDataSegmentLength` that the target declared, bytes.
    pub theirs_max_recv_data_segment_bytes: u32,
    /// `MaxBurstLength`, bytes.
    pub max_burst_bytes: u32,
    /// `FirstBurstLength`, bytes; never above `max_burst_bytes`.
    pub first_burst_bytes: u32,
    /// `MaxOutstandingR2T`.
    pub max_outstanding_r2t: u16,
    /// `DefaultTime2Wait`, seconds.
    pub time_2_wait: u16,
    /// `DefaultTime2Retain`, seconds.
    pub time_2_retain: u16,
    /// `TargetPortalGroupTag`, if the target said it.
    pub target_portal_group_tag: Option<u16>,
    /// `TargetAlias`, if the target said it, shortened.
    pub target_alias: Option<String>,
}

/// What we say to a key that the target sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing: it was an answer or a declaration.
    None,
    /// The result of a key that the target offered.
    Value(String),
    /// We do not know the key.
    NotUnderstood,
}

/// The negotiation of one login.
#[derive(Clone, Debug)]
pub struct Negotiation {
    is_discovery: bool,
    /// In the order of `keys::RULES`.
    items: [Item; keys::RULES.len()],
    is_declared: bool,
    theirs_max_recv: Option<u32>,
    tag: Option<u16>,
    alias: Option<String>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Item {
    is_offered: bool,
    settled: Option<u32>,
}

/// RFC 7143 §6.2: the three words that stand for no value.
const IRRELEVANT: &str = "Irrelevant";
const NOT_UNDERSTOOD: &str = "NotUnderstood";
const REJECT: &str = "Reject";

const MAX_RECV_KEY: &str = "MaxRecvDataSegmentLength";

impl Negotiation {
    /// The beginning of a login.
    pub fn new(is_discovery: bool) -> Self {
        Self {
            is_discovery,
            items: [Item::default(); keys::RULES.len()],
            is_declared: false,
            theirs_max_recv: None,
            tag: None,
            alias: None,
        }
    }

    /// Our offers and our declaration, each key once: those that the session type has a use for and
    /// that were not settled already.
    pub fn poll_offers(&mut self) -> Vec<(&'static str, String)> {
        let is_discovery = self.is_discovery;
        // RFC 7143 §13.12: declared, one value for each direction
        let declared = (!self.is_declared)
            .then(|| (MAX_RECV_KEY, keys::MAX_RECV_DATA_SEGMENT_BYTES.to_string()));
        self.is_declared = true;
        let offers = keys::RULES
            .iter()
            .zip(&mut self.items)
            .filter(|(rule, item)| {
                let has_use = rule.scope == Scope::Any || !is_discovery;
                has_use && !item.is_offered && item.settled.is_none()
            })
            .map(|(rule, item)| {
                item.is_offered = true;
                (rule.name, rule.spell(rule.ours))
            });
        offers.chain(declared).collect()
    }

    /// Takes one key of the target's: an answer, an offer or a declaration.
    ///
    /// # Errors
    /// The value is illegal, does not follow from our offer, or comes twice.
    pub fn handle(&mut self, key: &str, value: &str) -> Result<Reply, Violation> {
        if let Some(at) = keys::RULES.iter().position(|rule| rule.name == key) {
            return self.handle_negotiated(at, value);
        }
        match key {
            MAX_RECV_KEY => self.handle_max_recv(value),
            "TargetPortalGroupTag" => {
                // RFC 7143 §13.9: 16 bits, zero is legal
                let tag = value.parse().map_err(|_| Violation::value(key, value))?;
                // Some targets repeat it in both stages; a contradiction is another matter.
                if self.tag.is_some_and(|known| known != tag) {
                    return Err(Violation::KeyRepeated(key.to_owned()));
                }
                self.tag = Some(tag);
                Ok(Reply::None)
            }
            "TargetAlias" => {
                self.alias = Some(excerpt(value));
                Ok(Reply::None)
            }
            // RFC 7143 §13.8: of use in a redirection and in discovery only
            "TargetAddress" => Ok(Reply::None),
            // RFC 7143 §13.23, RFC 7144 §7.1.1: we speak the older of each
            "TaskReporting" => Ok(Reply::Value("RFC3720".to_owned())),
            "iSCSIProtocolLevel" => Ok(Reply::Value("1".to_owned())),
            // RFC 7143 §13.25: obsolete, but to be answered
            "IFMarker" | "OFMarker" => Ok(Reply::Value("No".to_owned())),
            "IFMarkInt" | "OFMarkInt" => Ok(Reply::Value(REJECT.to_owned())),
            // RFC 7143 §12: security keys have their stage
            "AuthMethod" | "CHAP_A" | "CHAP_I" | "CHAP_C" | "CHAP_N" | "CHAP_R" => {
                Err(Violation::KeyOutOfPlace(key.to_owned()))
            }
            // RFC 7143 §6.2: what looks like an answer is not answered again
            _ if matches!(value, IRRELEVANT | NOT_UNDERSTOOD | REJECT) => Ok(Reply::None),
            // RFC 7143 §6.2: an unknown key is answered so, and the login goes on
            _ => Ok(Reply::NotUnderstood),
        }
    }

    /// What was agreed; a key that was not settled has its default.
    ///
    /// # Errors
    /// The lengths contradict each other.
    pub fn finish(&self) -> Result<Agreed, Violation> {
        let max_burst_bytes = self.value(Key::MaxBurstLength);
        let mut first_burst_bytes = self.value(Key::FirstBurstLength);
        if first_burst_bytes > max_burst_bytes {
            // RFC 7143 §13.14: FirstBurstLength is never above MaxBurstLength. As an answer that is
            // the target's fault; as a default it is only cut.
            if self.is_settled(Key::FirstBurstLength) {
                let value = first_burst_bytes.to_string();
                return Err(Violation::value("FirstBurstLength", &value));
            }
            first_burst_bytes = max_burst_bytes;
        }
        Ok(Agreed {
            header_digest: false,
            data_digest: false,
            max_connections: saturate(self.value(Key::MaxConnections)),
            initial_r2t: self.value(Key::InitialR2T) != 0,
            immediate_data: self.value(Key::ImmediateData) != 0,
            ours_max_recv_data_segment_bytes: keys::MAX_RECV_DATA_SEGMENT_BYTES,
            theirs_max_recv_data_segment_bytes: self
                .theirs_max_recv
                .unwrap_or(keys::MAX_RECV_DATA_SEGMENT_BYTES_DEFAULT),
            max_burst_bytes,
            first_burst_bytes,
            max_outstanding_r2t: saturate(self.value(Key::MaxOutstandingR2T)),
            time_2_wait: saturate(self.value(Key::DefaultTime2Wait)),
            time_2_retain: saturate(self.value(Key::DefaultTime2Retain)),
            target_portal_group_tag: self.tag,
            target_alias: self.alias.clone(),
        })
    }

    fn handle_negotiated(&mut self, at: usize, value: &str) -> Result<Reply, Violation> {
        let rule = &keys::RULES[at];
        let item = &mut self.items[at];
        // RFC 7143 §6.3: a key is negotiated once in a login
        if item.settled.is_some() {
            return Err(Violation::KeyRepeated(rule.name.to_owned()));
        }
        if item.is_offered {
            item.settled = Some(judge_answer(rule, value)?);
            return Ok(Reply::None);
        }
        if self.is_discovery && rule.scope == Scope::Normal {
            // RFC 7143 §13: keys of normal sessions are irrelevant in a discovery session
            item.settled = Some(rule.default);
            return Ok(Reply::Value(IRRELEVANT.to_owned()));
        }
        let theirs = rule
            .read(value)
            .ok_or_else(|| Violation::value(rule.name, value))?;
        let result = rule.result(theirs);
        item.settled = Some(result);
        Ok(Reply::Value(rule.spell(result)))
    }

    fn handle_max_recv(&mut self, value: &str) -> Result<Reply, Violation> {
        if self.theirs_max_recv.is_some() {
            return Err(Violation::KeyRepeated(MAX_RECV_KEY.to_owned()));
        }
        let bytes = keys::read_number(value)
            .filter(|bytes| keys::SEGMENT_RANGE.contains(bytes))
            .ok_or_else(|| Violation::value(MAX_RECV_KEY, value))?;
        // RFC 7143 §13.12: declared, not negotiated: no answer
        self.theirs_max_recv = Some(bytes);
        Ok(Reply::None)
    }

    fn value(&self, key: Key) -> u32 {
        keys::RULES
            .iter()
            .zip(&self.items)
            .find(|(rule, _)| rule.key == key)
            .map_or(0, |(rule, item)| item.settled.unwrap_or(rule.default))
    }

    fn is_settled(&self, key: Key) -> bool {
        let mut both = keys::RULES.iter().zip(&self.items);
        both.any(|(rule, item)| rule.key == key && item.settled.is_some())
    }
}

/// What is settled by the target's answer to our offer.
fn judge_answer(rule: &Rule, value: &str) -> Result<u32, Violation> {
    // RFC 7143 §6.2: these are answers too; the key keeps its default
    if matches!(value, IRRELEVANT | NOT_UNDERSTOOD | REJECT) {
        return Ok(rule.default);
    }
    let theirs = rule
        .read(value)
        // RFC 7143 §6.2.1: of a list one value is picked
        .filter(|_| !value.contains(','))
        .ok_or_else(|| Violation::value(rule.name, value))?;
    // RFC 7143 §6.2.2: the answer is the result, so it must be one that our offer can lead to
    let follows = match rule.function {
        Function::Minimum | Function::And => theirs <= rule.ours,
        Function::Maximum | Function::Or => theirs >= rule.ours,
    };
    if !follows {
        return Err(Violation::answer(rule.name, value, &rule.spell(rule.ours)));
    }
    Ok(theirs)
}

/// The ranges of these keys end below 2^16.
fn saturate(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

impl Rule {
    /// The value of the text, if it is legal for the key.
    fn read(&self, text: &str) -> Option<u32> {
        match self.kind {
            Kind::Boolean => match text {
                "Yes" => Some(1),
                "No" => Some(0),
                _ => None,
            },
            Kind::Number(low, high) => {
                keys::read_number(text).filter(|number| (low..=high).contains(number))
            }
            // RFC 7143 §6.2.1: an answer is one value; an offer is a list, and we know only `None`
            Kind::Digest => text.split(',').any(|name| name == "None").then_some(0),
        }
    }

    fn spell(&self, value: u32) -> String {
        match (self.kind, value) {
            (Kind::Boolean, 0) => "No".to_owned(),
            (Kind::Boolean, _) => "Yes".to_owned(),
            (Kind::Number(..), number) => number.to_string(),
            (Kind::Digest, _) => "None".to_owned(),
        }
    }

    fn result(&self, theirs: u32) -> u32 {
        match self.function {
            Function::Minimum | Function::And => theirs.min(self.ours),
            Function::Maximum | Function::Or => theirs.max(self.ours),
        }
    }
}

#[cfg(test)]
mod tests;
