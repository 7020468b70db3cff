//! A session in full feature phase: its connections, the order of its commands, its window.
//!
//! Source: RFC 7143 §4.2.2 (numbering), §6.3.4 and following.
//!
//! Invariants:
//! 1. One task owns the session with all its connections; commands run in the order of their numbers.
//! 2. `MaxCmdSN` never falls: a window once granted stays granted.
//! 3. What the initiator does wrong is noted, even where we go on.
//! 4. Level 0: a connection that is lost takes the session with it, and the session's tasks.
//!
//! SCSI commands are in `commands`, their data in `transfer`, all else that can be asked in `control` and `management`.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use super::commands::Attention;
use super::connection::Connection;
use super::held::Held;
use super::link::{Ended, Link};
use super::login::{Entered, login};
use super::pdu::{Bhs, NO_TAG, Pdu, later, op, set_word};
use super::reserve::Nexus;
use super::rules;
use super::shared::{Live, Place, SessionInfo, Shared};
use super::transfer::Transfers;

/// Serves a connection from its first byte to its last, or until its session takes it.
pub(super) async fn serve(stream: tokio::net::TcpStream, group: usize, shared: Arc<Shared>) {
    let number = shared.count_connection();
    let mut link = Link::new(stream, number, Arc::clone(&shared.wire));
    let entered = tokio::select! {
        () = shared.stop.cancelled() => return,
        entered = login(&mut link, group, &shared) => entered,
    };
    let (ended, mut links) = match entered {
        // Why a login failed is noted there.
        Err(ended) => (ended, vec![link]),
        Ok(entered) if entered.joins.is_some() => return shared.join(link, entered).await,
        Ok(entered) => {
            let info = SessionInfo {
                initiator: entered.initiator.clone(),
                target: entered
                    .export
                    .as_ref()
                    .map(|export| export.iqn().to_owned()),
                isid: entered.isid,
                tsih: entered.tsih,
                portal_group: shared.groups[group].tag,
            };
            let place = shared.enter(info, entered.cid, entered.agreed.connections_max);
            Session::new(link, Arc::clone(&shared), &entered)
                .run(place)
                .await
        }
    };
    if matches!(ended, Ended::Shut) {
        for link in &mut links {
            tokio::select! {
                () = shared.stop.cancelled() => return,
                () = link.farewell() => {}
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) export: Option<Arc<Live>>,
    /// The initiator's name and ISID: one end of the nexus.
    pub(super) nexus: Nexus,
    pub(super) transfers: Transfers,
    pub(super) held: Held,
    /// How many unit attentions of a LUN were reported; the first may be that of the login.
    pub(super) attention: BTreeMap<u16, Attention>,
    /// The portal group that it came by, as an index.
    pub(super) group: usize,
    tsih: u16,
    /// Slots: a connection keeps its index, by which its tasks know it.
    connections: Vec<Option<Connection>>,
    /// Commands that came before their turn, by number; on one connection there are none.
    early: BTreeMap<u32, Early>,
    exp_cmd_sn: u32,
    max_cmd_sn: u32,
    next_tag: u32,
}

/// A command before its turn, on its connection, with the unsolicited data that came behind it.
#[derive(Debug)]
struct Early {
    at: usize,
    command: Pdu,
    data: Vec<Pdu>,
}

impl Session {
    fn new(link: Link, shared: Arc<Shared>, entered: &Entered) -> Self {
        let attention = entered
            .export
            .as_ref()
            .map_or_else(BTreeMap::new, |export| {
                Attention::at_login(export, shared.settings.unit_attention)
            });
        let mut session = Self {
            exp_cmd_sn: entered.exp_cmd_sn,
            max_cmd_sn: entered.exp_cmd_sn.wrapping_sub(1),
            shared,
            export: entered.export.clone(),
            nexus: (entered.initiator.clone(), entered.isid),
            transfers: Transfers::default(),
            held: Held::default(),
            attention,
            group: entered.group,
            tsih: entered.tsih,
            connections: Vec::new(),
            early: BTreeMap::new(),
            next_tag: 1,
        };
        session.admit(link, entered);
        session
    }

    /// What was wrong is noted before the session is seen to end.
    async fn run(mut self, mut place: Place) -> (Ended, Vec<Link>) {
        let ended = match self.serve(&mut place).await {
            Ok(()) => Ended::Ours,
            Err(ended) => ended,
        };
        if let Ended::Violation(what) = &ended {
            self.broke(what.clone());
        }
        if let Some(number) = self.early.keys().next() {
            self.broke(format!("CmdSN {number} came and {} never", self.exp_cmd_sn));
        }
        self.abandon_held();
        let connections = self.connections.into_iter().flatten();
        (
            ended,
            connections.map(|connection| connection.link).collect(),
        )
    }

    async fn serve(&mut self, place: &mut Place) -> Result<(), Ended> {
        loop {
            let mut again = false;
            for at in 0..self.connections.len() {
                if self.connections[at].is_some() {
                    again |= self.serve_connection(at)?;
                }
            }
            if self.connections.iter().all(Option::is_none) {
                return Ok(());
            }
            if again {
                continue;
            }
            let due = self.held.next_due();
            tokio::select! {
                biased;
                () = place.cancel.cancelled() => return Ok(()),
                order = place.orders.recv() => if let Some(order) = order {
                    self.obey(&order)?;
                },
                joined = place.joins.recv() => if let Some((link, entered)) = joined {
                    self.admit(link, &entered);
                },
                moved = poll_fn(|cx| {
                    for connection in self.connections.iter_mut().flatten() {
                        if let Poll::Ready(moved) = connection.link.poll_progress(cx) {
                            return Poll::Ready(moved);
                        }
                    }
                    Poll::Pending
                }) => moved?,
                () = async {
                    match due {
                        Some(due) => tokio::time::sleep_until(due).await,
                        None => std::future::pending().await,
                    }
                } => self.run_due()?,
            }
        }
    }

    /// Handles what has come and writes what is due; true if there is more to do at once.
    fn serve_connection(&mut self, at: usize) -> Result<bool, Ended> {
        loop {
            let connection = self.on(at);
            if connection.closing || connection.link.due() >= DUE_BYTES_MAX {
                break;
            }
            let Some(pdu) = connection.link.parse()? else {
                break;
            };
            let pdus = connection.link.pdus;
            self.shared.count_pdu(pdus)?;
            if self.shared.faults.is_silent() {
                continue;
            }
            self.handle(at, &pdu)?;
            if self.connections[at].is_none() {
                return Ok(true);
            }
        }
        let connection = self.on(at);
        // Held back by what was due and not for want of PDUs: some may be here whole, and no byte need follow them.
        let full = connection.link.due() >= DUE_BYTES_MAX;
        let written = connection.link.write_some()?;
        if written && connection.closing {
            self.close(at);
            return Ok(true);
        }
        Ok(written && full)
    }

    fn handle(&mut self, at: usize, pdu: &Pdu) -> Result<(), Ended> {
        let window = self.shared.settings.window;
        if let Some(what) = self.on(at).acknowledge(pdu, window) {
            self.broke(what);
        }
        if let Some(what) = rules::reserved(pdu) {
            self.broke(what);
        }
        match pdu.opcode() {
            op::DATA_OUT => {
                // RFC 7143 §4.2.2.1: data has no turn of its own; that of a command that waits waits with it.
                let mut early = self.early.values_mut();
                match early.find(|early| early.at == at && early.command.itt() == pdu.itt()) {
                    Some(early) => early.data.push(pdu.clone()),
                    None => self.on_data_out(at, pdu),
                }
                Ok(())
            }
            op::LOGIN => Err(Ended::Violation("login in full feature phase".into())),
            _ if pdu.immediate() => self.act(at, pdu),
            _ => self.in_turn(at, pdu),
        }
    }

    /// RFC 7143 §4.2.2.1: what lies outside the window is ignored in silence; on one connection there are no gaps, over
    /// several a command waits for those before it.
    fn in_turn(&mut self, at: usize, pdu: &Pdu) -> Result<(), Ended> {
        let number = pdu.cmd_sn();
        if later(number, self.max_cmd_sn) || later(self.exp_cmd_sn, number) {
            self.broke(format!(
                "CmdSN {number} outside the window from {} to {}",
                self.exp_cmd_sn, self.max_cmd_sn
            ));
            return Ok(());
        }
        if number != self.exp_cmd_sn {
            if self.connections.iter().flatten().count() == 1 {
                return Err(Ended::Violation(format!(
                    "CmdSN {number} after {}",
                    self.exp_cmd_sn
                )));
            }
            let early = Early {
                at,
                command: pdu.clone(),
                data: Vec::new(),
            };
            if self.early.insert(number, early).is_some() {
                self.broke(format!("CmdSN {number} sent twice"));
            }
            return Ok(());
        }
        self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
        self.act(at, pdu)?;
        while let Some(early) = self.early.remove(&self.exp_cmd_sn) {
            self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
            if self.connections[early.at].is_some() {
                self.act(early.at, &early.command)?;
                for data in &early.data {
                    self.on_data_out(early.at, data);
                }
            }
        }
        Ok(())
    }

    fn act(&mut self, at: usize, pdu: &Pdu) -> Result<(), Ended> {
        match pdu.opcode() {
            op::SCSI_COMMAND => return self.on_command(at, pdu),
            op::NOP_OUT => self.on_nop(at, pdu),
            op::TASK_MANAGEMENT => self.on_task_management(at, pdu),
            op::TEXT => self.on_text(at, pdu),
            op::LOGOUT => self.on_logout(at, pdu),
            // RFC 7143 §11.17.1: command not supported.
            _ => self.reject(at, pdu, 5),
        }
        Ok(())
    }

    /// Takes a connection in and welcomes it.
    fn admit(&mut self, link: Link, entered: &Entered) {
        let mut connection = Connection::new(link, entered);
        // RFC 7143 §13: what is the session's was negotiated by its leading connection, and holds for all.
        if let Some(first) = self.connections.iter().flatten().next() {
            connection.agreed = first.agreed.for_further(&connection.agreed);
        }
        let mut free = self.connections.iter().position(Option::is_none);
        // RFC 7143 §6.3.4: a login with a CID that is in use takes that connection's place.
        let known = |held: &Option<Connection>| {
            held.as_ref().is_some_and(|held| held.cid == connection.cid)
        };
        if let Some(old) = self.connections.iter().position(known) {
            self.close(old);
            free = Some(old);
        }
        let at = free.unwrap_or(self.connections.len());
        if at == self.connections.len() {
            self.connections.push(None);
        }
        self.connections[at] = Some(connection);
        let mut bhs = entered.answer.bhs;
        self.stamp(at, &mut bhs, true);
        let connection = self.on(at);
        connection.link.push(bhs, &entered.answer.data);
        // RFC 7143 §13.1: digests begin with the full feature phase, so after this answer.
        connection.link.header_digest = entered.agreed.header_digest;
        connection.link.data_digest = entered.agreed.data_digest;
    }

    /// Ends a connection and its tasks.
    pub(super) fn close(&mut self, at: usize) {
        self.transfers.abort_where(|task| task.at == at);
        self.held.abort_where(|held| held.at() == at);
        if let Some(connection) = self.connections[at].take() {
            self.shared.part(self.tsih, connection.cid);
        }
    }

    pub(super) fn on(&mut self, at: usize) -> &mut Connection {
        self.connections[at]
            .as_mut()
            .expect("a task ends with its connection")
    }

    /// The slots in use.
    pub(super) fn slots(&self) -> Vec<usize> {
        let all = self.connections.iter().enumerate();
        all.filter_map(|(at, held)| held.as_ref().map(|_| at))
            .collect()
    }

    /// Numbers, and sends what carries a status.
    pub(super) fn send(&mut self, at: usize, mut bhs: Bhs, data: &[u8]) {
        self.stamp(at, &mut bhs, true);
        self.on(at).link.push(bhs, data);
    }

    /// `StatSN`, `ExpCmdSN`, `MaxCmdSN` as they are at this moment; `takes` if the PDU carries a status.
    pub(super) fn stamp(&mut self, at: usize, bhs: &mut Bhs, takes: bool) {
        self.on(at).number(bhs, takes);
        self.stamp_window(bhs);
    }

    pub(super) fn stamp_window(&mut self, bhs: &mut Bhs) {
        let open = self.transfers.count() + self.held.count();
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
}

/// Answers waiting for the socket before we look at more commands; chosen freely, some large reads.
const DUE_BYTES_MAX: usize = 1 << 20;
