//! The full feature phase of one connection: commands in order, window, answers, and everything but data transfer.
//!
//! Source: RFC 7143 §4.2.2 (numbering), §11 (PDUs), §6.3.4 and following.
//!
//! Invariants:
//! 1. One task owns the connection and everything of its session; commands run in the order of their numbers.
//! 2. `MaxCmdSN` never falls: a window once granted stays granted.
//! 3. What the initiator does wrong is noted, even where we go on.
//!
//! Data-In, R2T and Data-Out are in `transfer`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::faults::Strike;
use super::keys::put;
use super::link::{Ended, Link};
use super::login::{Entered, login};
use super::pdu::{CONTINUE, NO_TAG, Pdu, header, later, lun_number, op, set_word};
use super::scsi::{self, Answer, Plan, Sense};
use super::shared::{Live, Order, Place, SessionInfo, Shared};
use super::transfer::Transfers;

/// Serves a connection from its first byte to its last.
pub(super) async fn serve(stream: tokio::net::TcpStream, number: u64, shared: Arc<Shared>) {
    let mut link = Link::new(stream, number, Arc::clone(&shared.wire));
    let entered = tokio::select! {
        () = shared.stop.cancelled() => return,
        entered = login(&mut link, &shared) => entered,
    };
    // Why a login failed is noted there.
    let ended = match entered {
        Err(ended) => ended,
        Ok(entered) => {
            let place = shared.enter(SessionInfo {
                initiator: entered.initiator.clone(),
                target: entered
                    .export
                    .as_ref()
                    .map(|export| export.iqn().to_owned()),
                isid: entered.isid,
                tsih: entered.tsih,
            });
            let (ended, left) = Session::new(link, Arc::clone(&shared), entered)
                .run(place)
                .await;
            link = left;
            ended
        }
    };
    if matches!(ended, Ended::Shut) {
        tokio::select! {
            () = shared.stop.cancelled() => {}
            () = link.farewell() => {}
        }
    }
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) link: Link,
    pub(super) entered: Entered,
    pub(super) transfers: Transfers,
    pub(super) stat_sn: u32,
    exp_cmd_sn: u32,
    max_cmd_sn: u32,
    next_tag: u32,
    /// How many unit attentions of a LUN were reported; the first may be that of the login.
    attention: BTreeMap<u16, Attention>,
    /// Text that did not fit in one answer, by its tag.
    text: Option<(u32, Vec<u8>)>,
    closing: bool,
}

#[derive(Clone, Copy, Debug)]
struct Attention {
    login: bool,
    seen: usize,
}

impl Session {
    fn new(link: Link, shared: Arc<Shared>, entered: Entered) -> Self {
        let attention = entered
            .export
            .as_ref()
            .map_or_else(BTreeMap::new, |export| {
                let seen = |lun| export.unit(lun).map_or(0, |unit| unit.events());
                let login = shared.settings.unit_attention;
                export
                    .numbers()
                    .into_iter()
                    .map(|lun| {
                        (
                            lun,
                            Attention {
                                login,
                                seen: seen(lun),
                            },
                        )
                    })
                    .collect()
            });
        Self {
            stat_sn: entered.stat_sn,
            exp_cmd_sn: entered.exp_cmd_sn,
            max_cmd_sn: entered.max_cmd_sn,
            shared,
            link,
            entered,
            transfers: Transfers::default(),
            next_tag: 1,
            attention,
            text: None,
            closing: false,
        }
    }

    /// What was wrong is noted before the session is seen to end.
    async fn run(mut self, mut place: Place) -> (Ended, Link) {
        let ended = match self.serve(&mut place).await {
            Ok(()) => Ended::Ours,
            Err(ended) => ended,
        };
        if let Ended::Violation(what) = &ended {
            self.broke(what.clone());
        }
        (ended, self.link)
    }

    async fn serve(&mut self, place: &mut Place) -> Result<(), Ended> {
        loop {
            while !self.closing && self.link.due() < DUE_BYTES_MAX {
                let Some(pdu) = self.link.parse()? else { break };
                self.shared.count_pdu(self.link.pdus)?;
                if self.shared.faults.is_silent() {
                    continue;
                }
                if let Some(delay) = self.delay(&pdu) {
                    self.link.write_some()?;
                    tokio::select! {
                        () = place.cancel.cancelled() => return Ok(()),
                        () = tokio::time::sleep(delay) => {}
                    }
                }
                self.handle(&pdu)?;
            }
            // Held back by what was due and not for want of PDUs: some may be here whole, and no byte need follow them.
            let held = self.link.due() >= DUE_BYTES_MAX;
            let written = self.link.write_some()?;
            if written && self.closing {
                return Ok(());
            }
            if written && held {
                continue;
            }
            tokio::select! {
                biased;
                () = place.cancel.cancelled() => return Ok(()),
                order = place.orders.recv() => if let Some(order) = order {
                    self.obey(&order);
                },
                moved = self.link.progress() => moved?,
            }
        }
    }

    fn handle(&mut self, pdu: &Pdu) -> Result<(), Ended> {
        // RFC 7143 §4.2.2.2: nothing can be acknowledged that was not sent.
        if later(pdu.exp_stat_sn(), self.stat_sn) {
            self.broke(format!(
                "ExpStatSN {} above {}",
                pdu.exp_stat_sn(),
                self.stat_sn
            ));
        }
        match pdu.opcode() {
            op::DATA_OUT => {
                self.on_data_out(pdu);
                Ok(())
            }
            op::LOGIN => Err(Ended::Violation("login in full feature phase".into())),
            opcode => {
                if !self.is_in_turn(pdu)? {
                    return Ok(());
                }
                match opcode {
                    op::SCSI_COMMAND => return self.on_command(pdu),
                    op::NOP_OUT => self.on_nop(pdu),
                    op::TASK_MANAGEMENT => self.on_task_management(pdu),
                    op::TEXT => self.on_text(pdu),
                    op::LOGOUT => self.on_logout(pdu),
                    // RFC 7143 §11.17.1: command not supported.
                    _ => self.reject(pdu, 5),
                }
                Ok(())
            }
        }
    }

    /// RFC 7143 §4.2.2.1: what lies outside the window is ignored in silence; on one connection there are no gaps.
    fn is_in_turn(&mut self, pdu: &Pdu) -> Result<bool, Ended> {
        let number = pdu.cmd_sn();
        if pdu.immediate() {
            return Ok(true);
        }
        if later(number, self.max_cmd_sn) || later(self.exp_cmd_sn, number) {
            self.broke(format!(
                "CmdSN {number} outside the window from {} to {}",
                self.exp_cmd_sn, self.max_cmd_sn
            ));
            return Ok(false);
        }
        if number != self.exp_cmd_sn {
            return Err(Ended::Violation(format!(
                "CmdSN {number} after {}",
                self.exp_cmd_sn
            )));
        }
        self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
        Ok(true)
    }

    fn on_command(&mut self, pdu: &Pdu) -> Result<(), Ended> {
        let Some(export) = self.entered.export.clone() else {
            return Err(Ended::Violation(
                "SCSI command in a discovery session".into(),
            ));
        };
        if self.transfers.has(pdu.itt()) {
            return Err(Ended::Violation(format!(
                "task tag {:#x} is in use",
                pdu.itt()
            )));
        }
        let strike = self.shared.faults.on_command();
        match strike {
            Some(Strike::Drop { executed: false }) => return Err(Ended::Ours),
            Some(Strike::NoAnswer) => return Ok(()),
            Some(Strike::Reject(reason)) => {
                self.reject(pdu, reason);
                return Ok(());
            }
            Some(Strike::CheckCondition { key, asc, ascq }) => {
                self.answer(pdu, &Answer::check(Sense(key, asc, ascq)));
                return Ok(());
            }
            Some(Strike::Status(status)) => {
                self.answer(pdu, &Answer::status(status));
                return Ok(());
            }
            Some(Strike::Drop { executed: true } | Strike::ShortRead(_)) | None => {}
        }
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&pdu.bhs[32..48]);
        match self.plan(&export, pdu, &cdb) {
            Plan::Done(answer) => self.answer(pdu, &answer),
            Plan::Read { at, bytes } => {
                let unit = lun_number(pdu.lun_bytes()).and_then(|lun| export.unit(lun));
                let missing = match strike {
                    Some(Strike::ShortRead(missing)) => usize::try_from(missing).unwrap_or(0),
                    _ => 0,
                };
                if let Some(unit) = unit {
                    self.read(pdu, &unit, at, bytes.saturating_sub(missing));
                }
            }
            Plan::Take { bytes } => self.take(pdu, &cdb, bytes),
        }
        if matches!(strike, Some(Strike::Drop { .. })) {
            return Err(Ended::Ours);
        }
        Ok(())
    }

    fn plan(&mut self, export: &Live, pdu: &Pdu, cdb: &[u8; 16]) -> Plan {
        let lun = lun_number(pdu.lun_bytes());
        let luns = export.numbers();
        let Some((lun, unit)) = lun.and_then(|lun| export.unit(lun).map(|unit| (lun, unit))) else {
            return scsi::plan_absent(cdb, &luns);
        };
        // A LUN added later is new to this session from its beginning.
        let state = self.attention.entry(lun).or_insert(Attention {
            login: false,
            seen: 0,
        });
        let event = unit.event(state.seen);
        let pending = if state.login {
            Some(scsi::POWER_ON)
        } else {
            event
        };
        let told = scsi::reports_attention(cdb[0]);
        if pending.is_some() && (told || cdb[0] == scsi::op::REQUEST_SENSE) {
            if state.login {
                state.login = false;
            } else {
                state.seen += 1;
            }
        }
        match pending {
            Some(sense) if told => Plan::Done(Answer::check(sense)),
            Some(_) | None => scsi::plan(&unit.disk, cdb, &luns, pending),
        }
    }

    fn on_nop(&mut self, pdu: &Pdu) {
        if pdu.ttt() != NO_TAG {
            // RFC 7143 §11.18: the answer to our ping has no task tag of its own unless it is one too.
            self.shared.pongs.fetch_add(1, Ordering::Relaxed);
            if !pdu.immediate() && pdu.itt() == NO_TAG {
                self.broke("NOP-Out with a reserved task tag must be immediate".into());
            }
        }
        if pdu.itt() == NO_TAG {
            return;
        }
        let mut bhs = header(op::NOP_IN, pdu.itt());
        set_word(&mut bhs, 20, NO_TAG);
        let most = usize::try_from(self.entered.agreed.their_segment_bytes).unwrap_or(0);
        let data = pdu.data.slice(..pdu.data.len().min(most));
        self.send(bhs, &data);
    }

    fn on_task_management(&mut self, pdu: &Pdu) {
        let function = pdu.flags() & 0x7f;
        let unit = lun_number(pdu.lun_bytes()).and_then(|lun| {
            self.entered
                .export
                .as_ref()
                .and_then(|export| export.unit(lun))
        });
        // RFC 7143 §11.6.1: 0 complete, 1 no such task, 2 no such LUN, 4 reassignment not supported, 5 not supported.
        let response = match function {
            1 => u8::from(!self.transfers.abort(pdu.ttt())),
            2 | 4 | 5 if unit.is_none() => 2,
            2 | 4 => {
                self.transfers.abort_lun(pdu.lun_bytes());
                0
            }
            5 => {
                self.transfers.abort_lun(pdu.lun_bytes());
                if let Some(unit) = unit {
                    unit.announce(scsi::RESET);
                }
                0
            }
            6 | 7 => {
                self.transfers.abort_all();
                if let Some(export) = &self.entered.export {
                    for unit in export.numbers().iter().filter_map(|lun| export.unit(*lun)) {
                        unit.announce(scsi::RESET);
                    }
                }
                // A cold reset takes the sessions with it (RFC 7143 §11.5.1).
                self.closing = function == 7;
                0
            }
            8 => 4,
            _ => 5,
        };
        let mut bhs = header(op::TASK_MANAGEMENT_RESPONSE, pdu.itt());
        bhs[2] = response;
        self.send(bhs, &[]);
    }

    fn on_text(&mut self, pdu: &Pdu) {
        let mut text = match self.text.take() {
            Some((tag, rest)) if tag == pdu.ttt() => rest,
            _ if pdu.ttt() != NO_TAG => return self.reject(pdu, 9),
            _ => {
                let mut text = Vec::new();
                for (key, value) in super::keys::pairs(&pdu.data).unwrap_or_default() {
                    if key == "SendTargets" {
                        self.list_targets(&value, &mut text);
                    } else {
                        put(&mut text, &key, "NotUnderstood");
                    }
                }
                text
            }
        };
        let mut bhs = header(op::TEXT_RESPONSE, pdu.itt());
        set_word(&mut bhs, 20, NO_TAG);
        let most = usize::try_from(self.entered.agreed.their_segment_bytes).unwrap_or(512);
        let rest = if text.len() > most {
            text.split_off(most)
        } else {
            Vec::new()
        };
        if !rest.is_empty() {
            // RFC 7143 §11.11: more follows when the initiator asks with this tag.
            bhs[1] = CONTINUE;
            let tag = self.tag();
            set_word(&mut bhs, 20, tag);
            self.text = Some((tag, rest));
        }
        self.send(bhs, &text);
    }

    fn list_targets(&self, which: &str, text: &mut Vec<u8>) {
        let own = self.entered.export.as_ref().map(|export| export.iqn());
        for name in self.shared.names() {
            let listed = match which {
                "All" => true,
                "" => own == Some(name.as_str()),
                asked => asked == name,
            };
            if listed {
                put(text, "TargetName", &name);
                put(text, "TargetAddress", &format!("{},1", self.shared.portal));
            }
        }
    }

    fn on_logout(&mut self, pdu: &Pdu) {
        let mut bhs = header(op::LOGOUT_RESPONSE, pdu.itt());
        // Reason 2 wants recovery, which error recovery level 0 has not.
        bhs[2] = if pdu.flags() & 0x7f == 2 { 2 } else { 0 };
        self.send(bhs, &[]);
        self.closing = true;
    }

    fn obey(&mut self, order: &Order) {
        if self.shared.faults.is_silent() {
            return;
        }
        if let Order::Send { pdu, numbered } = order {
            if *numbered {
                return self.send(pdu.bhs, &pdu.data);
            }
            return self.link.leave(vec![super::tap::Step::Pdu(*pdu.clone())]);
        }
        let mut bhs = match order {
            Order::Ping | Order::Window => header(op::NOP_IN, NO_TAG),
            Order::LogoutRequest(_) | Order::Send { .. } => header(op::ASYNC, NO_TAG),
        };
        set_word(&mut bhs, 20, NO_TAG);
        match order {
            Order::Ping => {
                let tag = self.tag();
                set_word(&mut bhs, 20, tag);
            }
            Order::Window | Order::Send { .. } => {}
            Order::LogoutRequest(seconds) => {
                bhs[36] = 1;
                bhs[42..44].copy_from_slice(&seconds.to_be_bytes());
                self.send(bhs, &[]);
                return;
            }
        }
        // RFC 7143 §11.19: an unsolicited NOP-In tells StatSN and does not take it.
        self.stamp(&mut bhs);
        self.link.push(bhs, &[]);
    }

    pub(super) fn reject(&mut self, pdu: &Pdu, reason: u8) {
        let mut bhs = header(op::REJECT, NO_TAG);
        bhs[2] = reason;
        self.send(bhs, &pdu.bhs);
    }

    /// Numbers, and sends what carries a status.
    pub(super) fn send(&mut self, mut bhs: super::pdu::Bhs, data: &[u8]) {
        self.stamp(&mut bhs);
        self.stat_sn = self.stat_sn.wrapping_add(1);
        self.link.push(bhs, data);
    }

    /// `StatSN`, `ExpCmdSN`, `MaxCmdSN` as they are at this moment.
    pub(super) fn stamp(&mut self, bhs: &mut super::pdu::Bhs) {
        set_word(bhs, 24, self.stat_sn);
        self.stamp_window(bhs);
    }

    pub(super) fn stamp_window(&mut self, bhs: &mut super::pdu::Bhs) {
        let open = self.transfers.count();
        let width = self.shared.window().saturating_sub(open);
        let last = self.exp_cmd_sn.wrapping_add(width).wrapping_sub(1);
        if later(last, self.max_cmd_sn) {
            self.max_cmd_sn = last;
        }
        set_word(bhs, 28, self.exp_cmd_sn);
        set_word(bhs, 32, self.max_cmd_sn);
    }

    pub(super) fn tag(&mut self) -> u32 {
        let tag = self.next_tag;
        self.next_tag = if tag == NO_TAG - 1 { 1 } else { tag + 1 };
        tag
    }

    pub(super) fn broke(&self, what: String) {
        self.shared.violation(what);
    }

    fn delay(&self, pdu: &Pdu) -> Option<Duration> {
        if pdu.opcode() != op::SCSI_COMMAND {
            return None;
        }
        self.shared.faults.delay()
    }
}

/// Answers waiting for the socket before we look at more commands; chosen freely, some large reads.
const DUE_BYTES_MAX: usize = 1 << 20;
