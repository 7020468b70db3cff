//! The login phase: who comes, whether it may, and what the session will be like.
//!
//! Source: RFC 7143 §6.3 (phases), §11.12, §11.13 (PDUs and statuses), §12.1 (authentication).
//!
//! Invariants:
//! 1. A target with CHAP is not reached without a right answer to a fresh challenge.
//! 2. Whatever an initiator does wrong here is noted as a violation, and the login refused.

use std::sync::Arc;

use super::chap::{self, Challenge};
use super::keys::{Agreed, Negotiation, pairs, put};
use super::link::{Ended, Link};
use super::pdu::{Bhs, CONTINUE, FINAL, Pdu, header, op, set_word};
use super::rules;
use super::shared::{JoinRefused, Live, Shared};

/// A login that succeeded.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) initiator: String,
    /// The target; `None` for discovery.
    pub(super) export: Option<Arc<Live>>,
    pub(super) isid: [u8; 6],
    pub(super) agreed: Agreed,
    pub(super) exp_cmd_sn: u32,
    pub(super) stat_sn: u32,
    pub(super) tsih: u16,
    pub(super) cid: u16,
    pub(super) group: usize,
    /// The session that this connection joins.
    pub(super) joins: Option<u16>,
    /// The last answer, to be numbered and sent by the session.
    pub(super) answer: Pdu,
}

/// Serves a connection's login phase to its end.
pub(super) async fn login(
    link: &mut Link,
    group: usize,
    shared: &Shared,
) -> Result<Entered, Ended> {
    let mut login = Login {
        shared,
        group,
        link,
        negotiation: Negotiation::default(),
        initiator: None,
        export: None,
        chap: Chap::Before,
        stage: None,
        stat_sn: FIRST_STAT_SN,
        exp_cmd_sn: 0,
        leading: [0; 16],
        text: Vec::new(),
        rest: None,
        declared: false,
    };
    let result = login.run().await;
    if let Err(ended) = &result {
        if let Ended::Violation(what) = ended {
            shared.violation(what.clone());
        }
        if matches!(ended, Ended::Shut) {
            return result;
        }
        // A refusal is still to be read by the initiator; a welcome leaves when the session is entered in the list.
        let _ = login.link.flush().await;
    }
    result
}

struct Login<'a> {
    shared: &'a Shared,
    /// The portal group, as an index.
    group: usize,
    link: &'a mut Link,
    negotiation: Negotiation,
    initiator: Option<String>,
    export: Option<Arc<Live>>,
    chap: Chap,
    /// The stage we are in; `None` before the first request.
    stage: Option<u8>,
    stat_sn: u32,
    exp_cmd_sn: u32,
    /// Bytes 8 to 24 of the first request: ISID, TSIH, tag and CID, which stay for the whole login.
    leading: [u8; 16],
    /// Text of requests with the continue bit.
    text: Vec<u8>,
    /// What is still to be said of an answer that is told in pieces, and the flags of its end.
    rest: Option<(Vec<u8>, u8)>,
    declared: bool,
}

enum Chap {
    Before,
    /// AuthMethod=CHAP was agreed.
    Chosen,
    Challenged(Challenge),
    Done,
}

/// Status class and detail, and what was wrong.
struct Refusal(u8, u8, String);

impl Login<'_> {
    async fn run(&mut self) -> Result<Entered, Ended> {
        loop {
            let pdu = self.link.next().await?;
            self.shared.count_pdu(self.link.pdus)?;
            if pdu.opcode() != op::LOGIN {
                return Err(Ended::Violation(format!(
                    "opcode {:#x} in login",
                    pdu.opcode()
                )));
            }
            if self.shared.faults.closes_at_login() {
                return Err(Ended::Ours);
            }
            if self.link.has_more() {
                // RFC 7143 §6.3: one request, then its answer.
                self.shared
                    .violation("a PDU after a login request that is not answered yet".into());
            }
            if let Some(what) = rules::reserved(&pdu) {
                self.shared.violation(what);
            }
            match self.step(&pdu) {
                Ok(Some((flags, text))) => {
                    let finished = flags & FINAL != 0 && flags & 3 == FULL_FEATURE;
                    if finished {
                        return Ok(self.enter(&pdu, flags, &text).await);
                    }
                    self.respond(&pdu, flags, &text, (0, 0));
                }
                // More of the request is to come.
                Ok(None) => self.respond(&pdu, pdu.flags() & 0x0c, &[], (0, 0)),
                Err(Refusal(class, detail, why)) => {
                    self.respond(&pdu, 0, &[], (class, detail));
                    return Err(Ended::Violation(why));
                }
            }
            self.link.flush().await?;
        }
    }

    /// One request: the flags and the text of its answer.
    fn step(&mut self, pdu: &Pdu) -> Result<Option<(u8, Vec<u8>)>, Refusal> {
        if let Some((rest, flags)) = self.rest.take() {
            return Ok(Some(self.go_on(pdu, rest, flags)));
        }
        self.text.extend_from_slice(&pdu.data);
        if self.text.len() > TEXT_BYTES_MAX {
            return Err(Refusal(3, 2, "login text without end".into()));
        }
        let (stage, next) = (pdu.flags() >> 2 & 3, pdu.flags() & 3);
        self.check_header(pdu, stage, next)?;
        if pdu.flags() & CONTINUE != 0 {
            return Ok(None);
        }
        let text = std::mem::take(&mut self.text);
        let offered = pairs(&text).map_err(broken)?;
        for (key, _) in &offered {
            self.negotiation.note(key).map_err(broken)?;
        }
        if self.initiator.is_none() {
            self.identify(&offered)?;
        }
        let mut answer = Vec::new();
        if !self.declared && self.export.is_some() {
            // RFC 7143 §13.9: in the first answer of the login.
            let tag = self.shared.groups[self.group].tag;
            put(&mut answer, "TargetPortalGroupTag", &tag.to_string());
            self.declared = true;
        }
        let ready = if stage == SECURITY {
            self.security(&offered, &mut answer)?
        } else {
            self.operational(&offered, &mut answer)?
        };
        let mut flags = stage << 2;
        if pdu.is_final() && ready {
            flags |= FINAL | next;
        }
        Ok(Some(self.piece(answer, flags)))
    }

    /// An answer, or its first piece with the C bit.
    fn piece(&mut self, mut text: Vec<u8>, flags: u8) -> (u8, Vec<u8>) {
        let most = self.shared.settings.login_text_bytes;
        if let Some(most) = most.filter(|most| text.len() > *most) {
            let rest = text.split_off(most);
            self.rest = Some((rest, flags));
            return (flags & 0x0c | CONTINUE, text);
        }
        if flags & FINAL != 0 {
            self.stage = Some(flags & 3);
        }
        (flags, text)
    }

    /// The next piece. RFC 7143 §6.2: it is asked for with an empty request of the same stage.
    fn go_on(&mut self, pdu: &Pdu, rest: Vec<u8>, flags: u8) -> (u8, Vec<u8>) {
        if !pdu.data.is_empty() || pdu.flags() & CONTINUE != 0 {
            self.shared
                .violation("text in a request for the rest of an answer".into());
        }
        if pdu.stages().0 != flags >> 2 & 3 {
            self.shared
                .violation("the stage changed within an answer".into());
        }
        // Only a request with T may be answered with T.
        let flags = if pdu.is_final() { flags } else { flags & 0x0c };
        self.piece(rest, flags)
    }

    fn check_header(&mut self, pdu: &Pdu, stage: u8, next: u8) -> Result<(), Refusal> {
        match self.stage {
            None => {
                // RFC 7143 §11.12.4: version-min is the one that must fit.
                if pdu.bhs[3] > 0 {
                    return Err(Refusal(2, 5, "no common version".into()));
                }
                self.leading.copy_from_slice(&pdu.bhs[8..24]);
                self.negotiation.joining = pdu.tsih() != 0;
                self.exp_cmd_sn = pdu.cmd_sn();
                self.stage = Some(stage);
            }
            Some(known) => {
                if pdu.bhs[8..24] != self.leading {
                    return Err(broken("ISID, TSIH, tag or CID changed in a login".into()));
                }
                if stage != known {
                    return Err(broken(format!(
                        "stage {stage} in a request, we are in {known}"
                    )));
                }
                if pdu.exp_stat_sn() != self.stat_sn {
                    // RFC 7143 §11.12.9: each request acknowledges the answer before.
                    self.shared.violation(format!(
                        "login with ExpStatSN {}, not {}",
                        pdu.exp_stat_sn(),
                        self.stat_sn
                    ));
                }
                if pdu.cmd_sn() != self.exp_cmd_sn {
                    self.shared
                        .violation("CmdSN changed within a login".to_owned());
                }
            }
        }
        if stage > OPERATIONAL || pdu.is_final() && (next <= stage || next == 2) {
            return Err(broken(format!("no way from stage {stage} to {next}")));
        }
        if pdu.is_final() && pdu.flags() & CONTINUE != 0 {
            return Err(broken("both T and C are set".into()));
        }
        Ok(())
    }

    fn identify(&mut self, offered: &[(String, String)]) -> Result<(), Refusal> {
        let value = |key: &str| {
            offered
                .iter()
                .find(|(known, _)| known == key)
                .map(|(_, value)| value.as_str())
        };
        let initiator = value("InitiatorName")
            .filter(|name| !name.is_empty() && name.len() <= 223)
            .ok_or_else(|| Refusal(2, 7, "login without InitiatorName".into()))?;
        self.initiator = Some(initiator.to_owned());
        if let Some((class, detail)) = self.shared.faults.refusal() {
            return Err(Refusal(class, detail, String::new()));
        }
        match value("SessionType") {
            Some("Discovery") => {
                self.negotiation.discovery = true;
                return Ok(());
            }
            Some("Normal") | None => {}
            Some(other) => return Err(Refusal(2, 9, format!("SessionType={other}"))),
        }
        let name = value("TargetName")
            .ok_or_else(|| Refusal(2, 7, "normal session without TargetName".into()))?;
        if let Some((_, permanent)) = self.shared.faults.redirect() {
            return Err(Refusal(1, 1 + u8::from(permanent), String::new()));
        }
        // An unknown target is the user's mistake and no broken rule: no text.
        self.export = Some(self.shared.find(name).ok_or(Refusal(2, 3, String::new()))?);
        self.join()
    }

    /// RFC 7143 §11.13.5: 020Ah for a session that is none, 0206h for a connection too many.
    fn join(&self) -> Result<(), Refusal> {
        let Some(tsih) = self.joins() else {
            return Ok(());
        };
        let initiator = self.initiator.as_deref().unwrap_or_default();
        let cid = u16::from_be_bytes([self.leading[12], self.leading[13]]);
        let joined = self
            .shared
            .may_join((initiator, self.isid()), self.group, tsih, cid);
        joined.map_err(|refused| match refused {
            JoinRefused::NoSession => {
                Refusal(2, 10, format!("login to TSIH {tsih}, which is none"))
            }
            JoinRefused::TooMany => Refusal(2, 6, "more connections than MaxConnections".into()),
        })
    }

    fn joins(&self) -> Option<u16> {
        Some(u16::from_be_bytes([self.leading[6], self.leading[7]])).filter(|tsih| *tsih != 0)
    }

    fn isid(&self) -> [u8; 6] {
        let mut isid = [0; 6];
        isid.copy_from_slice(&self.leading[..6]);
        isid
    }

    /// The security stage; true when the initiator may leave it.
    fn security(
        &mut self,
        offered: &[(String, String)],
        answer: &mut Vec<u8>,
    ) -> Result<bool, Refusal> {
        let needed = self
            .export
            .as_ref()
            .is_some_and(|export| export.account().is_some());
        let mut response = None;
        let mut user = None;
        let mut theirs = (None, None);
        for (key, value) in offered {
            match key.as_str() {
                "AuthMethod" => {
                    let wanted = if needed { "CHAP" } else { "None" };
                    if !value.split(',').any(|method| method == wanted) {
                        return Err(Refusal(2, 1, String::new()));
                    }
                    put(answer, "AuthMethod", wanted);
                    if needed {
                        self.chap = Chap::Chosen;
                    }
                }
                "CHAP_A" => self.challenge(value, answer)?,
                "CHAP_N" => user = Some(value.as_str()),
                "CHAP_R" => response = chap::from_text(value),
                "CHAP_I" => theirs.0 = value.parse::<u8>().ok(),
                "CHAP_C" => theirs.1 = chap::from_text(value),
                // Operational keys may come in this stage already.
                _ => self.negotiate(key, value, answer)?,
            }
        }
        if let (Some(user), Some(response)) = (user, response) {
            self.prove(user, &response, theirs, answer)?;
        }
        Ok(!needed || matches!(self.chap, Chap::Done))
    }

    fn challenge(&mut self, algorithms: &str, answer: &mut Vec<u8>) -> Result<(), Refusal> {
        if !matches!(self.chap, Chap::Chosen) {
            return Err(broken("CHAP_A out of turn".into()));
        }
        // RFC 7143 §12.1.3: MD5 must be among the offered.
        let md5 = chap::MD5.to_string();
        if !algorithms.split(',').any(|algorithm| algorithm == md5) {
            return Err(Refusal(2, 1, format!("CHAP_A={algorithms} without MD5")));
        }
        let settings = &self.shared.settings;
        let chosen = algorithms
            .split(',')
            .filter_map(|algorithm| algorithm.parse().ok())
            .find(|algorithm| settings.chap_algorithms.contains(algorithm))
            .ok_or(Refusal(2, 1, String::new()))?;
        let challenge = Challenge::random(chosen, settings.challenge_bytes);
        put(answer, "CHAP_A", &chosen.to_string());
        put(answer, "CHAP_I", &challenge.identifier.to_string());
        put(answer, "CHAP_C", &self.binary(&challenge.bytes));
        self.chap = Chap::Challenged(challenge);
        Ok(())
    }

    fn prove(
        &mut self,
        user: &str,
        response: &[u8],
        theirs: (Option<u8>, Option<Vec<u8>>),
        answer: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let Chap::Challenged(challenge) = &self.chap else {
            return Err(broken("CHAP_R out of turn".into()));
        };
        let export = self.export.clone();
        let export = export.as_ref();
        let good = export
            .and_then(|export| export.account())
            .is_some_and(|account| challenge.is_answered_by(account, user, response));
        if !good {
            // A wrong secret is what the test wants to see, not a broken rule.
            return Err(Refusal(2, 1, String::new()));
        }
        if let (Some(identifier), Some(bytes)) = theirs {
            if bytes == challenge.bytes {
                return Err(broken("our own challenge came back".into()));
            }
            let mutual =
                export
                    .and_then(|export| export.mutual())
                    .ok_or(Refusal(2, 1, String::new()))?;
            let proof = chap::answer(challenge.algorithm, identifier, &mutual.secret, &bytes);
            put(answer, "CHAP_N", &mutual.user);
            put(answer, "CHAP_R", &self.binary(&proof));
        }
        self.chap = Chap::Done;
        Ok(())
    }

    fn binary(&self, bytes: &[u8]) -> String {
        if self.shared.settings.chap_base64 {
            chap::to_base64(bytes)
        } else {
            chap::to_hex(bytes)
        }
    }

    /// The operational stage; true when nothing is open.
    fn operational(
        &mut self,
        offered: &[(String, String)],
        answer: &mut Vec<u8>,
    ) -> Result<bool, Refusal> {
        let needed = self
            .export
            .as_ref()
            .is_some_and(|export| export.account().is_some());
        if needed && !matches!(self.chap, Chap::Done) {
            return Err(Refusal(2, 1, String::new()));
        }
        for (key, value) in offered {
            self.negotiate(key, value, answer)?;
        }
        let ours = &self.shared.settings;
        if self.link.segment_bytes_max == 8192 && ours.segment_bytes != 8192 {
            put(
                answer,
                "MaxRecvDataSegmentLength",
                &ours.segment_bytes.to_string(),
            );
            self.link.segment_bytes_max = usize::try_from(ours.segment_bytes).unwrap_or(8192);
        }
        for (key, value) in self.negotiation.proposals(ours) {
            put(answer, key, &value);
        }
        Ok(!self.negotiation.is_waiting())
    }

    fn negotiate(&mut self, key: &str, value: &str, answer: &mut Vec<u8>) -> Result<(), Refusal> {
        let given = self
            .negotiation
            .offer(key, value, &self.shared.settings)
            .map_err(broken)?;
        if let Some(given) = given {
            put(answer, key, &given);
        }
        Ok(())
    }

    async fn enter(&mut self, pdu: &Pdu, flags: u8, text: &[u8]) -> Entered {
        self.negotiation.finish();
        let initiator = self.initiator.clone().unwrap_or_default();
        let (isid, joins) = (self.isid(), self.joins());
        if let Some(export) = self.export.as_ref().filter(|_| joins.is_none()) {
            // RFC 7143 §6.3.5: the same name and ISID with TSIH 0 ends the old session first.
            self.shared
                .reinstate(
                    &initiator,
                    isid,
                    export.iqn(),
                    self.shared.groups[self.group].tag,
                )
                .await;
        }
        let tsih = joins.unwrap_or_else(|| self.shared.next_tsih());
        let mut answer = Pdu::new(response(pdu, flags, (0, 0)), text.to_vec());
        answer.bhs[14..16].copy_from_slice(&tsih.to_be_bytes());
        Entered {
            initiator,
            export: self.export.take(),
            isid,
            agreed: self.negotiation.agreed.clone(),
            exp_cmd_sn: self.exp_cmd_sn,
            stat_sn: self.stat_sn,
            tsih,
            cid: pdu.cid(),
            group: self.group,
            joins,
            answer,
        }
    }

    fn respond(&mut self, pdu: &Pdu, flags: u8, text: &[u8], status: (u8, u8)) {
        let mut bhs = response(pdu, flags, status);
        set_word(&mut bhs, 24, self.stat_sn);
        set_word(&mut bhs, 28, self.exp_cmd_sn);
        // The window opens with the last answer.
        set_word(&mut bhs, 32, self.exp_cmd_sn.wrapping_sub(1));
        self.stat_sn = self.stat_sn.wrapping_add(1);
        let mut text = text.to_vec();
        if status.0 == 1 {
            let to = self.shared.faults.redirect().map(|(to, _)| to);
            put(&mut text, "TargetAddress", &to.unwrap_or_default());
        }
        self.link.push(bhs, &text);
    }
}

/// A response's header but for its serials.
fn response(pdu: &Pdu, flags: u8, status: (u8, u8)) -> Bhs {
    let mut bhs = header(op::LOGIN_RESPONSE, pdu.itt());
    bhs[1] = flags;
    bhs[8..16].copy_from_slice(&pdu.bhs[8..16]);
    (bhs[36], bhs[37]) = status;
    bhs
}

/// RFC 7143 §11.13.5: 0200h, the initiator's error of no special kind.
fn broken(why: String) -> Refusal {
    Refusal(2, 0, why)
}

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;
/// Neither zero nor near a wrap; an initiator must take what it gets.
const FIRST_STAT_SN: u32 = 0x1000;
/// Chosen freely: no initiator needs more.
const TEXT_BYTES_MAX: usize = 64 * 1024;
