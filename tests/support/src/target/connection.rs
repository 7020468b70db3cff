//! One connection of a session: its socket, its serials, and what it negotiated for itself.
//!
//! Source: RFC 7143 §4.2.2.2 (`StatSN` is a connection's), §4.2.5.1 (allegiance).

use super::keys::Agreed;
use super::link::Link;
use super::login::Entered;
use super::pdu::{Bhs, Pdu, later, set_word};

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) link: Link,
    pub(super) cid: u16,
    /// The next `StatSN`.
    pub(super) stat_sn: u32,
    /// What the initiator acknowledged last.
    acknowledged: u32,
    pub(super) agreed: Agreed,
    /// Text that did not fit in one answer, by its tag.
    pub(super) text: Option<(u32, Vec<u8>)>,
    /// Nothing more is looked at; it is closed when all is written.
    pub(super) closing: bool,
}

impl Connection {
    pub(super) fn new(link: Link, entered: &Entered) -> Self {
        Self {
            link,
            cid: entered.cid,
            stat_sn: entered.stat_sn,
            acknowledged: entered.stat_sn,
            agreed: entered.agreed.clone(),
            text: None,
            closing: false,
        }
    }

    /// The longest data segment that the initiator takes.
    pub(super) fn segment_bytes(&self) -> usize {
        usize::try_from(self.agreed.their_segment_bytes).unwrap_or(512)
    }

    /// Writes `StatSN`, and takes it if the PDU carries a status.
    pub(super) fn number(&mut self, bhs: &mut Bhs, takes: bool) {
        set_word(bhs, 24, self.stat_sn);
        self.stat_sn = self.stat_sn.wrapping_add(u32::from(takes));
    }

    /// What is wrong with a PDU's `ExpStatSN`.
    pub(super) fn acknowledge(&mut self, pdu: &Pdu, window: u32) -> Option<String> {
        let told = pdu.exp_stat_sn();
        // RFC 7143 §4.2.2.2: nothing can be acknowledged that was not sent, nor be taken back.
        if later(told, self.stat_sn) {
            return Some(format!("ExpStatSN {told} above {}", self.stat_sn));
        }
        if later(self.acknowledged, told) {
            return Some(format!("ExpStatSN {told} after {}", self.acknowledged));
        }
        self.acknowledged = told;
        let open = self.stat_sn.wrapping_sub(told);
        (open > window.saturating_add(UNACKNOWLEDGED_MAX))
            .then(|| format!("ExpStatSN {told} leaves {open} answers without acknowledgement"))
    }
}

/// Answers beyond the window that may be on their way when a PDU is sent; chosen freely.
const UNACKNOWLEDGED_MAX: u32 = 256;
