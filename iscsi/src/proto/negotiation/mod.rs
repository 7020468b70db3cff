//! Operational keys: what we offer, what an answer may be, what comes of both.
//!
//! One table (`keys`) says for each key its range, default and result function; one function judges
//! an answer, one makes ours when the target offers first. All values are numbers here; `Yes` is 1,
//! and a word is its place among the key's words.
//!
//! Source: RFC 7143 §6.2 (negotiation), §13 (keys).
//!
//! Invariants:
//! 1. A key is settled at most once in a login.
//! 2. A settled value lies in its key's range and never beyond what we offered.
//! 3. Values are handed out whole, at the end: a negotiation that broke off changes nothing that was
//!    agreed before it.
//!
//! When keys may be sent is `login`'s matter.

mod keys;

use std::collections::BTreeSet;

use super::offers::SEGMENT_RANGE;
use super::violation::excerpt;
use super::{Offers, Violation};
use crate::wire::text_keys;
use keys::{Function, Kind, Ours, Rule, Scope};

pub use keys::Key;

/// What a login agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// `HeaderDigest=CRC32C`, from the first PDU of full feature phase. Of this connection.
    pub header_digest: bool,
    /// `DataDigest=CRC32C`, likewise.
    pub data_digest: bool,
    /// `MaxConnections` of the session.
    pub max_connections: u16,
    /// `InitialR2T`: no unsolicited Data-Out.
    pub initial_r2t: bool,
    /// `ImmediateData`: data may come with the command.
    pub immediate_data: bool,
    /// `MaxRecvDataSegmentLength` that we declared, bytes. Of this connection.
    pub ours_max_recv_data_segment_bytes: u32,
    /// `MaxRecvDataSegmentLength` that the target declared, bytes. Of this connection.
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

impl Agreed {
    /// The values of a further connection in a session: what belongs to the session is `leading`'s,
    /// as only its leading connection negotiates that.
    #[must_use]
    pub fn in_session_of(&self, leading: &Self) -> Self {
        Self {
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            ours_max_recv_data_segment_bytes: self.ours_max_recv_data_segment_bytes,
            theirs_max_recv_data_segment_bytes: self.theirs_max_recv_data_segment_bytes,
            ..leading.clone()
        }
    }
}

/// What the connection that logs in is to its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The first connection of a normal session.
    Leading,
    /// Another connection of a normal session: it negotiates only what is its own.
    Further,
    /// The connection of a discovery session.
    Discovery,
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
    role: Role,
    /// In the order of `keys::RULES`.
    items: [Item; keys::RULES.len()],
    ours_max_recv: u32,
    is_declared: bool,
    theirs_max_recv: Option<u32>,
    tag: Option<u16>,
    alias: Option<String>,
    /// Keys outside of the table that came.
    others: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    ours: Ours,
    is_offered: bool,
    settled: Option<u32>,
}

/// RFC 7143 §6.2: the three words that stand for no value.
const IRRELEVANT: &str = "Irrelevant";
const NOT_UNDERSTOOD: &str = "NotUnderstood";
const REJECT: &str = "Reject";

const MAX_RECV_KEY: &str = "MaxRecvDataSegmentLength";
/// Most keys outside of the table in one login: real targets send fewer than five.
const OTHER_KEYS_MAX: usize = 1024;

impl Negotiation {
    /// The beginning of a login.
    pub fn new(role: Role, offers: &Offers) -> Self {
        let has_digests = role != Role::Discovery;
        Self {
            role,
            items: keys::RULES.map(|rule| Item {
                ours: Ours::of(rule.key, offers, has_digests),
                is_offered: false,
                settled: None,
            }),
            ours_max_recv: offers.max_recv_data_segment_bytes,
            is_declared: false,
            theirs_max_recv: None,
            tag: None,
            alias: None,
            others: BTreeSet::new(),
        }
    }

    /// Our offers and our declaration, each key once: those that the connection has a use for and
    /// that were not settled already.
    pub fn poll_offers(&mut self) -> Vec<(&'static str, String)> {
        let role = self.role;
        // RFC 7143 §13.14: irrelevant where no data can come unasked
        let is_asked_only = self.ours(Key::InitialR2T) == Ours::Value(1)
            && self.ours(Key::ImmediateData) == Ours::Value(0);
        // RFC 7143 §13.12: declared, one value for each direction
        let declared = (!self.is_declared).then(|| (MAX_RECV_KEY, self.ours_max_recv.to_string()));
        self.is_declared = true;
        let offers = keys::RULES
            .iter()
            .zip(&mut self.items)
            .filter(|(rule, item)| {
                let has_use = rule.is_said()
                    && rule.scope.has_use(role)
                    && !(rule.key == Key::FirstBurstLength && is_asked_only);
                has_use && !item.is_offered && item.settled.is_none()
            })
            .map(|(rule, item)| {
                item.is_offered = true;
                (rule.name, rule.spell_offer(item.ours))
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
        if key == MAX_RECV_KEY {
            return self.handle_max_recv(value);
        }
        let is_answer = matches!(value, IRRELEVANT | NOT_UNDERSTOOD | REJECT);
        if key == "TargetPortalGroupTag" {
            // RFC 7143 §13.9 (L25): 16 bits, zero is legal
            let tag = text_keys::read_number(value).and_then(|tag| u16::try_from(tag).ok());
            let tag = tag.ok_or_else(|| Violation::value(key, value))?;
            // Some targets repeat it in both stages; a contradiction is another matter.
            if self.tag.is_some_and(|known| known != tag) {
                return Err(Violation::KeyRepeated(key.to_owned()));
            }
            self.tag = Some(tag);
            return Ok(Reply::None);
        }
        // RFC 7143 §6.2 (L9): a key comes once in a login, declared or offered, known or not
        if self.others.len() == OTHER_KEYS_MAX {
            return Err(Violation::KeysTooMany(OTHER_KEYS_MAX));
        }
        if !self.others.insert(key.to_owned()) {
            return Err(Violation::KeyRepeated(key.to_owned()));
        }
        match key {
            "TargetAlias" => {
                self.alias = Some(excerpt(value));
                Ok(Reply::None)
            }
            // RFC 7143 §13.8: of use in a redirection and in discovery only. The others are ours to
            // declare, or say what the target runs on; nothing follows from them.
            "TargetAddress" | "TargetName" | "InitiatorName" | "InitiatorAlias" | "SessionType"
            | "X#NodeArchitecture" => Ok(Reply::None),
            // RFC 7143 §12: security keys have their stage
            "AuthMethod" | "CHAP_A" | "CHAP_I" | "CHAP_C" | "CHAP_N" | "CHAP_R" => {
                Err(Violation::KeyOutOfPlace(key.to_owned()))
            }
            // RFC 7143 §6.2: what looks like an answer is not answered again
            _ if is_answer => Ok(Reply::None),
            // RFC 7143 §13.25 (L18): obsolete, but to be answered
            "IFMarker" | "OFMarker" => Ok(Reply::Value("No".to_owned())),
            "IFMarkInt" | "OFMarkInt" => Ok(Reply::Value(REJECT.to_owned())),
            // RFC 7143 §6.2 (L13): an unknown key is answered so, and the login goes on
            _ => Ok(Reply::NotUnderstood),
        }
    }

    /// What was agreed; a key that was not settled has its default. RFC 7143 §6.4 (L30): only what is
    /// given here holds, whatever became of later words.
    ///
    /// # Errors
    /// The lengths contradict each other.
    pub fn finish(&self) -> Result<Agreed, Violation> {
        let max_burst_bytes = self.value(Key::MaxBurstLength);
        let mut first_burst_bytes = self.value(Key::FirstBurstLength);
        if first_burst_bytes > max_burst_bytes {
            // RFC 7143 §13.14 (L21): FirstBurstLength is never above MaxBurstLength. As an answer that is
            // the target's fault; as a default it is only cut.
            if self.is_settled(Key::FirstBurstLength) {
                let value = first_burst_bytes.to_string();
                return Err(Violation::value("FirstBurstLength", &value));
            }
            first_burst_bytes = max_burst_bytes;
        }
        Ok(Agreed {
            header_digest: self.value(Key::HeaderDigest) == keys::CRC32C,
            data_digest: self.value(Key::DataDigest) == keys::CRC32C,
            max_connections: saturate(self.value(Key::MaxConnections)),
            initial_r2t: self.value(Key::InitialR2T) != 0,
            immediate_data: self.value(Key::ImmediateData) != 0,
            ours_max_recv_data_segment_bytes: self.ours_max_recv,
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
        // RFC 7143 §6.3 (L9): a key is negotiated once in a login
        if item.settled.is_some() {
            return Err(Violation::KeyRepeated(rule.name.to_owned()));
        }
        if item.is_offered {
            item.settled = Some(judge_answer(rule, item.ours, value)?);
            return Ok(Reply::None);
        }
        // RFC 7143 §13: what is the session's is settled on its leading connection
        if self.role == Role::Further && !rule.scope.has_use(Role::Further) {
            return Err(Violation::KeyOutOfPlace(rule.name.to_owned()));
        }
        item.settled = Some(rule.default);
        if matches!(value, IRRELEVANT | NOT_UNDERSTOOD | REJECT) {
            return Ok(Reply::None);
        }
        if !rule.scope.has_use(self.role) {
            // RFC 7143 §13 (L23): keys of normal sessions are irrelevant in a discovery session
            return Ok(Reply::Value(IRRELEVANT.to_owned()));
        }
        let (result, answer) = respond(rule, item.ours, value)?;
        item.settled = Some(result);
        Ok(Reply::Value(answer))
    }

    fn handle_max_recv(&mut self, value: &str) -> Result<Reply, Violation> {
        if self.theirs_max_recv.is_some() {
            return Err(Violation::KeyRepeated(MAX_RECV_KEY.to_owned()));
        }
        let bytes = text_keys::read_number(value)
            .filter(|bytes| SEGMENT_RANGE.contains(bytes))
            .ok_or_else(|| Violation::value(MAX_RECV_KEY, value))?;
        // RFC 7143 §13.12 (L20): declared, not negotiated: no answer
        self.theirs_max_recv = Some(bytes);
        Ok(Reply::None)
    }

    fn ours(&self, key: Key) -> Ours {
        self.row(key).1.ours
    }

    fn value(&self, key: Key) -> u32 {
        let (rule, item) = self.row(key);
        match (item.settled, rule.function, item.ours) {
            (Some(value), _, _) => value,
            // RFC 7143 §6.2.2: where the offer decides alone, the answer may be left out
            (None, Function::And, Ours::Value(0)) | (None, Function::Or, Ours::Value(1))
                if item.is_offered =>
            {
                rule.decided()
            }
            (None, _, _) => rule.default,
        }
    }

    fn is_settled(&self, key: Key) -> bool {
        self.row(key).1.settled.is_some()
    }

    fn row(&self, key: Key) -> (&'static Rule, &Item) {
        let mut rows = keys::RULES.iter().zip(&self.items);
        rows.find(|(rule, _)| rule.key == key)
            .expect("the table has a row for each key")
    }
}

/// What is settled by the target's answer to our offer.
fn judge_answer(rule: &Rule, ours: Ours, value: &str) -> Result<u32, Violation> {
    // RFC 7143 §6.2: these are answers too; the key keeps its default
    if matches!(value, IRRELEVANT | NOT_UNDERSTOOD | REJECT) {
        return Ok(rule.default);
    }
    let theirs = rule
        .read(value)
        .ok_or_else(|| Violation::value(rule.name, value))?;
    let follows = match (rule.function, ours) {
        // RFC 7143 §6.2.1 (L11): one of the offered words is picked. The default stands for `Reject`
        // with some targets (tgt); a login that cannot do with it fails by that.
        (_, Ours::Words(words)) => words.contains(&theirs) || theirs == rule.default,
        // RFC 7143 §6.2.2 (L12, L16, L19, L21, L22): the answer is the result, so it must be one that our offer can lead to
        (Function::Minimum | Function::And, Ours::Value(ours)) => theirs <= ours,
        (Function::Maximum | Function::Or, Ours::Value(ours)) => theirs >= ours,
        (Function::First, Ours::Value(ours)) => theirs == ours,
    };
    if !follows {
        return Err(Violation::answer(rule.name, value, &rule.spell_offer(ours)));
    }
    Ok(theirs)
}

/// What is settled by the target's offer, and our answer.
fn respond(rule: &Rule, ours: Ours, value: &str) -> Result<(u32, String), Violation> {
    let ours = match ours {
        Ours::Words(words) => {
            // RFC 7143 §6.2.1: the first of the offered words that we take; with none it is rejected
            let mut offered = value.split(',').filter_map(|word| rule.read(word));
            let picked = offered.find(|word| words.contains(word));
            return Ok(match picked {
                Some(word) => (word, rule.spell(word)),
                None => (rule.default, REJECT.to_owned()),
            });
        }
        Ours::Value(ours) => ours,
    };
    let theirs = rule
        .read(value)
        .ok_or_else(|| Violation::value(rule.name, value))?;
    let result = match rule.function {
        Function::Minimum | Function::And => theirs.min(ours),
        Function::Maximum | Function::Or => theirs.max(ours),
        Function::First => ours,
    };
    Ok((result, rule.spell(result)))
}

/// The ranges of these keys end below 2^16.
fn saturate(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

impl Scope {
    fn has_use(self, role: Role) -> bool {
        match (self, role) {
            (Self::Connection, _)
            | (Self::Session | Self::NormalSession, Role::Leading)
            | (Self::Session, Role::Discovery) => true,
            // RFC 7143 §13: "irrelevant" in a discovery session, "leading only"
            (Self::NormalSession, Role::Discovery)
            | (Self::Session | Self::NormalSession, Role::Further) => false,
        }
    }
}

impl Rule {
    /// Whether we bring it up. The default of the others is what we want.
    fn is_said(&self) -> bool {
        !matches!(self.key, Key::TaskReporting | Key::ISCSIProtocolLevel)
    }

    /// The result of a boolean that one side decides alone.
    fn decided(&self) -> u32 {
        u32::from(self.function == Function::Or)
    }

    /// The value of the text, if it is legal for the key.
    fn read(&self, text: &str) -> Option<u32> {
        match self.kind {
            Kind::Boolean => match text {
                "Yes" => Some(1),
                "No" => Some(0),
                _ => None,
            },
            Kind::Number(low, high) => {
                text_keys::read_number(text).filter(|number| (low..=high).contains(number))
            }
            Kind::Words(words) => (0..)
                .zip(words)
                .find_map(|(at, word)| (*word == text).then_some(at)),
        }
    }

    fn spell(&self, value: u32) -> String {
        match self.kind {
            Kind::Boolean if value == 0 => "No".to_owned(),
            Kind::Boolean => "Yes".to_owned(),
            Kind::Number(..) => value.to_string(),
            Kind::Words(words) => {
                let mut words = (0..).zip(words);
                let word = words.find_map(|(at, word)| (at == value).then_some(*word));
                word.unwrap_or(REJECT).to_owned()
            }
        }
    }

    fn spell_offer(&self, ours: Ours) -> String {
        match ours {
            Ours::Value(value) => self.spell(value),
            Ours::Words(words) => {
                let words: Vec<_> = words.iter().map(|word| self.spell(*word)).collect();
                words.join(",")
            }
        }
    }
}

#[cfg(test)]
mod tests;
