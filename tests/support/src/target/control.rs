//! What is neither a command nor its management: pings, text, logout, rejects, and what the test orders.
//!
//! Source: RFC 7143 §11.9 (async), §11.10, §11.11 (text), §11.14, §11.15 (logout), §11.17 to §11.19.

use std::sync::atomic::Ordering;

use super::keys::{pairs, put};
use super::link::Ended;
use super::pdu::{CONTINUE, NO_TAG, Pdu, header, op, set_word};
use super::session::Session;
use super::shared::Order;
use super::tap::Step;

impl Session {
    pub(super) fn on_nop(&mut self, at: usize, pdu: &Pdu) {
        if pdu.ttt() != NO_TAG {
            // RFC 7143 §11.18: the answer to our ping has no task tag of its own unless it is one too.
            self.shared.pongs.fetch_add(1, Ordering::Relaxed);
            if !pdu.immediate() && pdu.itt() == NO_TAG {
                self.broke("NOP-Out with a reserved task tag must be immediate".into());
            }
            if !self.shared.answer_ping(pdu) {
                self.broke(format!("NOP-Out answers no ping of ours: {pdu:?}"));
            }
        }
        if pdu.itt() == NO_TAG {
            return;
        }
        let mut bhs = header(op::NOP_IN, pdu.itt());
        set_word(&mut bhs, 20, NO_TAG);
        let most = self.on(at).segment_bytes();
        let data = pdu.data.slice(..pdu.data.len().min(most));
        self.send(at, bhs, &data);
    }

    pub(super) fn on_text(&mut self, at: usize, pdu: &Pdu) {
        let mut text = match self.on(at).text.take() {
            Some((tag, rest)) if tag == pdu.ttt() => {
                if !pdu.data.is_empty() {
                    self.broke("text in a request for the rest of an answer".into());
                }
                rest
            }
            _ if pdu.ttt() != NO_TAG => return self.reject(at, pdu, 9),
            _ => {
                let mut text = Vec::new();
                for (key, value) in pairs(&pdu.data).unwrap_or_default() {
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
        let most = self.on(at).segment_bytes();
        let most = most.min(self.shared.settings.text_bytes.unwrap_or(most));
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
            self.on(at).text = Some((tag, rest));
        }
        self.send(at, bhs, &text);
    }

    fn list_targets(&self, which: &str, text: &mut Vec<u8>) {
        let own = self.export.as_ref().map(|export| export.iqn());
        for name in self.shared.names() {
            let listed = match which {
                "All" => true,
                "" => own == Some(name.as_str()),
                asked => asked == name,
            };
            if listed {
                put(text, "TargetName", &name);
                for address in self.shared.addresses() {
                    put(text, "TargetAddress", &address);
                }
            }
        }
    }

    pub(super) fn on_logout(&mut self, at: usize, pdu: &Pdu) {
        let reason = pdu.flags() & 0x7f;
        let named = self
            .slots()
            .into_iter()
            .find(|at| self.on(*at).cid == pdu.cid());
        // RFC 7143 §11.15.1: 1 for a CID that is none, 2 where recovery is not supported, as at level 0.
        let (response, ends) = match (reason, named) {
            (0, _) => (0, self.slots()),
            (1, Some(named)) => (0, vec![named]),
            (1, None) => (1, Vec::new()),
            (2, _) => (2, Vec::new()),
            _ => {
                self.broke(format!("logout for reason {reason}"));
                return self.reject(at, pdu, 9);
            }
        };
        let mut bhs = header(op::LOGOUT_RESPONSE, pdu.itt());
        bhs[2] = response;
        let settings = &self.shared.settings;
        for (place, seconds) in [(40, settings.time_to_wait), (42, settings.time_to_retain)] {
            let seconds = u16::try_from(seconds).unwrap_or(u16::MAX).to_be_bytes();
            bhs[place..place + 2].copy_from_slice(&seconds);
        }
        self.send(at, bhs, &[]);
        for slot in ends {
            if slot == at || reason == 0 {
                self.on(slot).closing = true;
            } else {
                self.close(slot);
            }
        }
    }

    pub(super) fn reject(&mut self, at: usize, pdu: &Pdu, reason: u8) {
        let mut bhs = header(op::REJECT, NO_TAG);
        bhs[2] = reason;
        self.send(at, bhs, &pdu.bhs);
    }

    /// Does what the test wants.
    pub(super) fn obey(&mut self, order: &Order) -> Result<(), Ended> {
        match order {
            Order::AbortLun(lun) => self.abort_lun(*lun),
            Order::AbortAll => {
                self.transfers.abort_where(|_| true);
                self.held.abort_where(|_| true);
            }
            Order::Close => return Err(Ended::Ours),
            Order::Release => return self.release(),
            Order::Ping(..) | Order::Window | Order::Async(_) | Order::Send { .. }
                if self.shared.faults.is_silent() => {}
            Order::Ping(lun, data) => self.ping(*lun, data),
            Order::Window => {
                let mut bhs = Pdu::ping(NO_TAG).bhs;
                self.tell(&mut bhs, &[]);
            }
            Order::Async(pdu) => self.tell_event(pdu),
            Order::Send { pdu, numbered } => {
                for at in self.slots().into_iter().take(1) {
                    if *numbered {
                        self.send(at, pdu.bhs, &pdu.data);
                    } else {
                        self.on(at).link.leave(vec![Step::Pdu(*pdu.clone())]);
                    }
                }
            }
        }
        Ok(())
    }

    fn ping(&mut self, lun: [u8; 8], data: &[u8]) {
        let tag = self.tag();
        let pdu = Pdu::ping(tag).with_lun(lun);
        self.shared.pinged(tag, lun, data);
        self.tell(&mut { pdu.bhs }, data);
    }

    /// RFC 7143 §11.19: an unsolicited NOP-In tells `StatSN` and does not take it.
    fn tell(&mut self, bhs: &mut super::pdu::Bhs, data: &[u8]) {
        for at in self.slots().into_iter().take(1) {
            self.stamp(at, bhs, false);
            self.on(at).link.push(*bhs, data);
        }
    }

    /// An asynchronous message, and what it announces.
    fn tell_event(&mut self, pdu: &Pdu) {
        for at in self.slots().into_iter().take(1) {
            self.send(at, pdu.bhs, &pdu.data);
        }
        match pdu.bhs[36] {
            // RFC 7143 §11.9.1: the target drops one connection, or all.
            2 => {
                let named = u16::from_be_bytes([pdu.bhs[38], pdu.bhs[39]]);
                for at in self.slots() {
                    if self.on(at).cid == named {
                        self.on(at).link.leave(vec![Step::Close]);
                    }
                }
            }
            3 => {
                for at in self.slots() {
                    self.on(at).link.leave(vec![Step::Close]);
                }
            }
            // All tasks of the LUN were terminated.
            5 => self.abort_lun(pdu.lun_bytes()),
            _ => {}
        }
    }
}
