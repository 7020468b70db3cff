//! The login as the target sees it: one stage after the other, keys answered, sessions reinstated.
//!
//! Source: RFC 7143 §6.3, §6.3.5 (reinstatement), §13 (keys).
//!
//! No authentication: that is `tests/conformance`'s.

use std::collections::{BTreeSet, VecDeque};

use super::pdu::{self, Pdu, op, set};
use super::{Due, Keys, NexusName, Phase, Session, Target};
use crate::world::Env;

/// A login under way.
#[derive(Debug, Default)]
pub(super) struct Login {
    text: Vec<u8>,
    initiator: String,
    /// What was agreed, once the keys were seen.
    agreed: Option<Keys>,
    initiator_max_recv: Option<u32>,
    is_declared: bool,
}

impl Target {
    pub(super) fn handle_login(&mut self, env: &mut Env, wire: usize, pdu: &Pdu) {
        if pdu.opcode() != op::LOGIN {
            self.complain(env, format!("opcode {:#04x} during login", pdu.opcode()));
            self.close(env, wire);
            return;
        }
        let keys = self.config.keys;
        let Some(link) = self.links.get_mut(&wire) else {
            return;
        };
        let group = self.config.groups[link.portal];
        let Phase::Login(login) = &mut link.phase else {
            return;
        };
        login.text.extend(&pdu.data);
        let flags = pdu.header[1];
        let (is_continued, stage) = (flags & CONTINUE != 0, flags >> 2 & 3);
        let mut answer = Vec::new();
        let mut may_transit = !is_continued;
        if !is_continued {
            let text = std::mem::take(&mut login.text);
            let heard = String::from_utf8_lossy(&text).into_owned();
            if stage == 0 {
                say(&mut answer, "TargetPortalGroupTag", &group.to_string());
            }
            for pair in heard.split_terminator('\0') {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                login.handle_key(key, value, &keys, &mut answer);
            }
            if stage == 1 && !login.is_declared {
                login.is_declared = true;
                say(
                    &mut answer,
                    "MaxRecvDataSegmentLength",
                    &keys.max_recv.to_string(),
                );
                // Some targets take another round to leave the stage.
                may_transit = !env.dice.is_within_percent(20);
            }
        }
        let transits = flags & TRANSIT != 0 && may_transit;
        if stage == 0 && self.refusals < REFUSALS_MAX && self.sends_away(env, wire) {
            // The other portal may be dead, so this counts as a refusal.
            self.refusals += 1;
            let text = b"TargetAddress=192.0.2.2:3260\0";
            self.answer_login(env, wire, pdu, text, 0, 0, [0x01, 0x01]);
            return;
        }
        if env.now < self.cold_until && env.dice.is_within_percent(50) {
            // RFC 7143 §11.13.5: not found
            self.answer_login(env, wire, pdu, &[], 0, 0, [0x02, 0x03]);
            return;
        }
        let is_leaving = transits && flags & 3 == 3;
        if is_leaving
            && self.refusals < REFUSALS_MAX
            && env.dice.is_within_percent(self.config.refuses_logins)
        {
            self.refusals += 1;
            // RFC 7143 §11.13.5: service unavailable, or out of resources: try again
            let status = [0x03, env.dice.pick(&[0x01, 0x02])];
            self.answer_login(env, wire, pdu, &[], 0, 0, status);
            return;
        }
        let mut tsih = 0;
        if is_leaving {
            self.refusals = 0;
            tsih = self.establish(env, wire, pdu, group);
        }
        let next = if transits { TRANSIT | flags & 3 } else { 0 };
        self.answer_login(env, wire, pdu, &answer, next | stage << 2, tsih, [0, 0]);
    }

    fn sends_away(&self, env: &mut Env, wire: usize) -> bool {
        let portal = self.links.get(&wire).map(|link| link.portal);
        let percent = self.config.redirects;
        portal == Some(0) && self.config.groups.len() > 1 && env.dice.is_within_percent(percent)
    }

    /// Makes the session, after ending the one that had its name.
    fn establish(&mut self, env: &mut Env, wire: usize, pdu: &Pdu, group: u16) -> u16 {
        let mut isid = [0; 6];
        isid.copy_from_slice(&pdu.header[8..14]);
        let link = self.links.get_mut(&wire).expect("its PDU is handled");
        let Phase::Login(login) = &mut link.phase else {
            return 0;
        };
        let nexus = NexusName {
            initiator: login.initiator.clone(),
            isid,
            group,
        };
        let agreed = login.agreed.unwrap_or(UNSAID);
        let initiator_max_recv = login.initiator_max_recv.unwrap_or(8192);
        if pdu.word(12) & 0xffff != 0 {
            self.complain(env, "a leading login with a TSIH".to_owned());
        }
        self.reinstate(env, &nexus);
        let tsih = self.next_tsih;
        self.next_tsih += 1;
        let cmd_sn = pdu.word(24);
        self.sessions.insert(
            tsih,
            Session {
                nexus,
                wire: Some(wire),
                is_open: false,
                agreed,
                initiator_max_recv,
                exp_cmd_sn: cmd_sn,
                max_cmd_sn: cmd_sn.wrapping_add(self.config.window).wrapping_sub(1),
                // SAM-5 §5.14: a new nexus hears of what happened before it
                attentions: VecDeque::from([super::unit::POWER_ON_OCCURRED]),
                tags: BTreeSet::new(),
                next_ttt: 0,
                pings: BTreeSet::new(),
            },
        );
        env.tell(format_args!("wire {wire}: session {tsih}, group {group}"));
        tsih
    }

    /// RFC 7143 §6.3.5: the old session's tasks end before the new login is answered.
    fn reinstate(&mut self, env: &mut Env, nexus: &NexusName) {
        let old: Vec<u16> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.nexus == *nexus)
            .map(|(tsih, _)| *tsih)
            .collect();
        for tsih in old {
            env.tell(format_args!("session {tsih}: reinstated"));
            let wire = self.sessions.get(&tsih).and_then(|session| session.wire);
            self.end_session(env, tsih);
            if let Some(wire) = wire {
                self.close(env, wire);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one PDU")]
    fn answer_login(
        &mut self,
        env: &mut Env,
        wire: usize,
        request: &Pdu,
        text: &[u8],
        flags: u8,
        tsih: u16,
        status: [u8; 2],
    ) {
        let Some(link) = self.links.get_mut(&wire) else {
            return;
        };
        let mut header = pdu::header(op::LOGIN_RESPONSE, request.itt());
        header[1] = flags;
        header[8..14].copy_from_slice(&request.header[8..14]);
        header[14..16].copy_from_slice(&tsih.to_be_bytes());
        let cmd_sn = request.word(24);
        set(&mut header, 24, link.stat_sn);
        set(&mut header, 28, cmd_sn);
        set(
            &mut header,
            32,
            cmd_sn.wrapping_add(self.config.window).wrapping_sub(1),
        );
        header[36..38].copy_from_slice(&status);
        link.stat_sn = link.stat_sn.wrapping_add(1);
        // RFC 7143 §13.1: digests begin with the full feature phase
        let bytes = pdu::emit(header, text, link.digests);
        if tsih != 0
            && let Some(session) = self.sessions.get(&tsih)
        {
            link.phase = Phase::Full { tsih };
            link.digests.header = session.agreed.header_digest;
            link.digests.data = session.agreed.data_digest;
        }
        let is_last = status[0] != 0;
        if is_last {
            env.tell(format_args!("wire {wire}: login refused for now"));
        }
        let (low, high) = self.config.login;
        let at = env.now + env.dice.between(low, high);
        env.schedule_due(
            at,
            Due::LoginAnswer {
                wire,
                bytes,
                is_last,
            },
        );
    }
}

impl Login {
    /// Takes a key of the initiator's and answers it.
    fn handle_key(&mut self, key: &str, value: &str, ours: &Keys, answer: &mut Vec<u8>) {
        let number = || value.parse::<u32>().unwrap_or_default();
        let agreed = self.agreed.get_or_insert(UNSAID);
        let result = match key {
            "InitiatorName" => {
                value.clone_into(&mut self.initiator);
                return;
            }
            "SessionType" | "TargetName" | "InitiatorAlias" => return,
            "MaxRecvDataSegmentLength" => {
                self.initiator_max_recv = Some(number());
                return;
            }
            "AuthMethod" => "None".to_owned(),
            "HeaderDigest" => digest(value, ours.header_digest, &mut agreed.header_digest),
            "DataDigest" => digest(value, ours.data_digest, &mut agreed.data_digest),
            "InitialR2T" => {
                agreed.initial_r2t = ours.initial_r2t || value == "Yes";
                boolean(agreed.initial_r2t)
            }
            "ImmediateData" => {
                agreed.immediate_data = ours.immediate_data && value == "Yes";
                boolean(agreed.immediate_data)
            }
            "MaxBurstLength" => {
                agreed.max_burst = number().min(ours.max_burst);
                agreed.max_burst.to_string()
            }
            "FirstBurstLength" => {
                agreed.first_burst = number().min(ours.first_burst);
                agreed.first_burst.to_string()
            }
            "MaxOutstandingR2T" => {
                agreed.max_outstanding_r2t = number().min(ours.max_outstanding_r2t);
                agreed.max_outstanding_r2t.to_string()
            }
            "MaxConnections" => "1".to_owned(),
            "DefaultTime2Wait" | "DefaultTime2Retain" | "ErrorRecoveryLevel" => value.to_owned(),
            "DataPDUInOrder" | "DataSequenceInOrder" => "Yes".to_owned(),
            _ => "NotUnderstood".to_owned(),
        };
        say(answer, key, &result);
    }
}

fn say(answer: &mut Vec<u8>, key: &str, value: &str) {
    answer.extend(format!("{key}={value}\0").bytes());
}

fn boolean(value: bool) -> String {
    if value { "Yes" } else { "No" }.to_owned()
}

fn digest(offer: &str, is_wanted: bool, agreed: &mut bool) -> String {
    let mut names = offer.split(',');
    *agreed = is_wanted && names.any(|name| name == "CRC32C");
    let can_be_none = offer.split(',').any(|name| name == "None");
    *agreed |= !can_be_none;
    if *agreed { "CRC32C" } else { "None" }.to_owned()
}

/// RFC 7143 §13: what holds for keys that nobody mentions.
const UNSAID: Keys = Keys {
    max_recv: 8192,
    max_burst: 262_144,
    first_burst: 65_536,
    initial_r2t: true,
    immediate_data: true,
    max_outstanding_r2t: 1,
    header_digest: false,
    data_digest: false,
};

/// In a row: each costs up to the longest pause, and they must end before the patience of the initiator.
const REFUSALS_MAX: u8 = 2;
const TRANSIT: u8 = 0x80;
const CONTINUE: u8 = 0x40;
