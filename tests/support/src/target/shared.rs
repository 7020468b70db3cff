//! What the connections of one target process have in common: exports, sessions, faults, and the list of
//! rules that initiators broke.
//!
//! Invariants:
//! 1. Locks here guard maps for some lines and are never held across an await.
//! 2. A session that is replaced has ended before its successor's login is answered.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::chap::Account;
use super::disk::Disk;
use super::faults::Faults;
use super::keys::Settings;
use super::link::{Ended, Link};
use super::login::Entered;
use super::pdu::Pdu;
use super::portals::Group;
use super::reserve::{Nexus, Reservations};
use super::scsi::{Answer, Sense};
use super::tap::Wire;

/// A target to be exported: a name, who may log in, and its disks.
#[derive(Clone, Debug)]
pub struct Export {
    iqn: String,
    chap: Option<Account>,
    mutual: Option<Account>,
    luns: BTreeMap<u16, Disk>,
}

impl Export {
    /// A target without disks that anyone may use.
    pub fn new(iqn: &str) -> Self {
        Self {
            iqn: iqn.to_owned(),
            chap: None,
            mutual: None,
            luns: BTreeMap::new(),
        }
    }

    /// Asks for one-way CHAP with this user and secret.
    #[must_use]
    pub fn chap(mut self, user: &str, secret: &str) -> Self {
        self.chap = Some(account(user, secret));
        self
    }

    /// Proves itself with these, if the initiator asks.
    #[must_use]
    pub fn mutual_chap(mut self, user: &str, secret: &str) -> Self {
        self.mutual = Some(account(user, secret));
        self
    }

    /// Adds a disk.
    #[must_use]
    pub fn lun(mut self, number: u16, disk: Disk) -> Self {
        self.luns.insert(number, disk);
        self
    }

    pub(super) fn rename(mut self, iqn: &str) -> Self {
        iqn.clone_into(&mut self.iqn);
        self
    }
}

/// A session that is logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// The initiator's name.
    pub initiator: String,
    /// The target's name; `None` for discovery.
    pub target: Option<String>,
    /// The initiator's part of the session's identifier.
    pub isid: [u8; 6],
    /// The target's part.
    pub tsih: u16,
    /// The tag of the portal group that it came by.
    pub portal_group: u16,
}

/// An export in use.
#[derive(Debug)]
pub(super) struct Live {
    iqn: String,
    chap: Option<Account>,
    mutual: Option<Account>,
    luns: Mutex<BTreeMap<u16, Arc<Unit>>>,
}

impl Live {
    pub(super) fn iqn(&self) -> &str {
        &self.iqn
    }

    pub(super) fn account(&self) -> Option<&Account> {
        self.chap.as_ref()
    }

    pub(super) fn mutual(&self) -> Option<&Account> {
        self.mutual.as_ref()
    }

    pub(super) fn unit(&self, lun: u16) -> Option<Arc<Unit>> {
        lock(&self.luns).get(&lun).cloned()
    }

    pub(super) fn numbers(&self) -> Vec<u16> {
        lock(&self.luns).keys().copied().collect()
    }

    pub(super) fn set(&self, lun: u16, disk: Option<Disk>) {
        match disk {
            Some(disk) => lock(&self.luns).insert(lun, Arc::new(Unit::new(disk))),
            None => lock(&self.luns).remove(&lun),
        };
    }
}

/// A disk with what its sessions are to be told of.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) disk: Disk,
    /// Unit attentions in order, for all or for one; a session remembers how far it has seen.
    events: Mutex<Vec<(Option<Nexus>, Sense)>>,
    /// Whether the reservations must be looked at.
    reserved: AtomicBool,
    reservations: Mutex<Reservations>,
}

impl Unit {
    fn new(disk: Disk) -> Self {
        Self {
            disk,
            events: Mutex::new(Vec::new()),
            reserved: AtomicBool::new(false),
            reservations: Mutex::default(),
        }
    }

    pub(super) fn announce(&self, sense: Sense) {
        lock(&self.events).push((None, sense));
    }

    /// The next unit attention for a nexus; what is not for it is passed over.
    pub(super) fn event(&self, seen: &mut usize, nexus: &Nexus) -> Option<Sense> {
        let events = lock(&self.events);
        while let Some((whom, sense)) = events.get(*seen) {
            if whom.as_ref().is_none_or(|whom| whom == nexus) {
                return Some(*sense);
            }
            *seen += 1;
        }
        None
    }

    pub(super) fn conflicts(&self, nexus: &Nexus, cdb: &[u8; 16]) -> bool {
        self.reserved.load(Ordering::Relaxed) && self.reservations().conflicts(nexus, cdb)
    }

    pub(super) fn reservations(&self) -> MutexGuard<'_, Reservations> {
        lock(&self.reservations)
    }

    /// PERSISTENT RESERVE OUT.
    pub(super) fn reserve(&self, nexus: &Nexus, cdb: &[u8; 16], data: &[u8]) -> Answer {
        let mut reservations = self.reservations();
        let (answer, told) = reservations.write(nexus, cdb, data);
        self.reserved
            .store(reservations.is_held(), Ordering::Relaxed);
        let told = told.into_iter().map(|(nexus, sense)| (Some(nexus), sense));
        lock(&self.events).extend(told);
        answer
    }

    /// As after a power cycle.
    pub(super) fn forget_reservations(&self) {
        *self.reservations() = Reservations::default();
        self.reserved.store(false, Ordering::Relaxed);
    }

    pub(super) fn events(&self) -> usize {
        lock(&self.events).len()
    }
}

/// What a session is asked from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// A PDU as it is; numbered like an answer if told so.
    Send { pdu: Box<Pdu>, numbered: bool },
    /// A NOP-In that wants an answer, with LUN and data.
    Ping([u8; 8], Vec<u8>),
    /// An asynchronous message, and what it announces.
    Async(Box<Pdu>),
    /// A NOP-In that only tells the window.
    Window,
    /// Carry out what is held.
    Release,
    /// Another session ended the tasks of a LUN.
    AbortLun([u8; 8]),
    /// Another session ended all tasks.
    AbortAll,
    /// Another session reset the target.
    Close,
}

/// Tag, LUN and data of a NOP-In that wants an answer.
type Ping = (u32, [u8; 8], Vec<u8>);

/// A write whose session is gone and that will land all the same.
#[derive(Debug)]
pub(super) struct Orphan {
    pub(super) unit: Arc<Unit>,
    pub(super) cdb: [u8; 16],
    pub(super) data: Vec<u8>,
}

/// A number that can be waited for.
#[derive(Debug, Default)]
pub(super) struct Counter {
    value: Mutex<u64>,
    changed: Condvar,
}

impl Counter {
    pub(super) fn add(&self, count: u64) {
        *lock(&self.value) += count;
        self.changed.notify_all();
    }

    pub(super) fn value(&self) -> u64 {
        *lock(&self.value)
    }

    /// Blocks until it is `least` or more; false if it is not within 10 s.
    pub(super) fn wait(&self, least: u64) -> bool {
        let guard = lock(&self.value);
        let wait = Duration::from_secs(10);
        let waited = self
            .changed
            .wait_timeout_while(guard, wait, |value| *value < least);
        *waited.unwrap_or_else(PoisonError::into_inner).0 >= least
    }
}

#[derive(Debug)]
struct Entry {
    info: SessionInfo,
    orders: mpsc::Sender<Order>,
    joins: mpsc::Sender<(Link, Entered)>,
    /// CIDs of all connections that it had.
    cids: Vec<u16>,
    connections_max: u16,
    cancel: CancellationToken,
    ended: CancellationToken,
}

/// Why a connection may not join a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JoinRefused {
    NoSession,
    TooMany,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) faults: Faults,
    pub(super) wire: Arc<Wire>,
    pub(super) groups: Vec<Group>,
    connections: AtomicU64,
    pub(super) logins: AtomicU64,
    pub(super) pongs: AtomicU64,
    pub(super) stop: CancellationToken,
    exports: Mutex<BTreeMap<String, Arc<Live>>>,
    sessions: Mutex<Vec<Entry>>,
    sessions_changed: Condvar,
    violations: Mutex<Vec<String>>,
    orphans: Mutex<Vec<Orphan>>,
    /// Pings that wait for an answer: tag, LUN, data.
    pings: Mutex<Vec<Ping>>,
    /// How many tasks were ever held.
    pub(super) held: Counter,
    tsih: AtomicU16,
}

impl Shared {
    pub(super) fn new(settings: Settings, groups: Vec<Group>, wire: Arc<Wire>) -> Self {
        Self {
            settings,
            faults: Faults::default(),
            wire,
            groups,
            connections: AtomicU64::new(0),
            logins: AtomicU64::new(0),
            pongs: AtomicU64::new(0),
            stop: CancellationToken::new(),
            exports: Mutex::new(BTreeMap::new()),
            sessions: Mutex::new(Vec::new()),
            sessions_changed: Condvar::new(),
            violations: Mutex::new(Vec::new()),
            orphans: Mutex::new(Vec::new()),
            pings: Mutex::new(Vec::new()),
            held: Counter::default(),
            tsih: AtomicU16::new(0),
        }
    }

    pub(super) fn add(&self, export: Export) {
        let luns = export
            .luns
            .into_iter()
            .map(|(lun, disk)| (lun, Arc::new(Unit::new(disk))));
        let live = Live {
            iqn: export.iqn.clone(),
            chap: export.chap,
            mutual: export.mutual,
            luns: Mutex::new(luns.collect()),
        };
        lock(&self.exports).insert(export.iqn, Arc::new(live));
    }

    /// Takes an export away and cuts its sessions.
    pub(super) fn remove(&self, iqn: &str) -> bool {
        let found = lock(&self.exports).remove(iqn).is_some();
        self.cut(|info| info.target.as_deref() == Some(iqn));
        found
    }

    pub(super) fn find(&self, iqn: &str) -> Option<Arc<Live>> {
        lock(&self.exports).get(iqn).cloned()
    }

    pub(super) fn names(&self) -> Vec<String> {
        lock(&self.exports).keys().cloned().collect()
    }

    /// Cuts the sessions for which `which` holds; their connections are reset without a word.
    pub(super) fn cut(&self, which: impl Fn(&SessionInfo) -> bool) {
        for entry in lock(&self.sessions)
            .iter()
            .filter(|entry| which(&entry.info))
        {
            entry.cancel.cancel();
        }
    }

    pub(super) fn sessions(&self) -> Vec<SessionInfo> {
        lock(&self.sessions)
            .iter()
            .map(|entry| entry.info.clone())
            .collect()
    }

    /// Blocks until there are so many normal sessions; false if it is not so within 10 s.
    pub(super) fn wait_sessions(&self, count: usize) -> bool {
        let normal = |entries: &Vec<Entry>| {
            let normal = entries.iter().filter(|entry| entry.info.target.is_some());
            normal.count()
        };
        let guard = lock(&self.sessions);
        let wait = Duration::from_secs(10);
        let waited = self
            .sessions_changed
            .wait_timeout_while(guard, wait, |entries| normal(entries) != count);
        normal(&waited.unwrap_or_else(PoisonError::into_inner).0) == count
    }

    /// An order to each session; one whose queue is full has enough to do.
    pub(super) fn order(&self, order: &Order) {
        for entry in &*lock(&self.sessions) {
            let _ = entry.orders.try_send(order.clone());
        }
    }

    /// An order to each session but those of one initiator port.
    pub(super) fn order_others(&self, order: &Order, nexus: &Nexus) {
        for entry in &*lock(&self.sessions) {
            if (entry.info.initiator.as_str(), entry.info.isid) != (nexus.0.as_str(), nexus.1) {
                let _ = entry.orders.try_send(order.clone());
            }
        }
    }

    /// Whether a connection may join a session, by the names on its login.
    pub(super) fn may_join(
        &self,
        nexus: (&str, [u8; 6]),
        group: usize,
        tsih: u16,
        cid: u16,
    ) -> Result<(), JoinRefused> {
        let sessions = lock(&self.sessions);
        let entry = sessions
            .iter()
            .find(|entry| {
                entry.info.tsih == tsih
                    && (entry.info.initiator.as_str(), entry.info.isid) == nexus
                    && entry.info.portal_group == self.groups[group].tag
            })
            .ok_or(JoinRefused::NoSession)?;
        let known = entry.cids.contains(&cid);
        if !known && entry.cids.len() >= usize::from(entry.connections_max) {
            return Err(JoinRefused::TooMany);
        }
        Ok(())
    }

    /// Hands a connection to the session that it joins.
    pub(super) async fn join(&self, link: Link, entered: Entered) {
        let joins = lock(&self.sessions)
            .iter_mut()
            .find(|entry| Some(entry.info.tsih) == entered.joins)
            .map(|entry| {
                if !entry.cids.contains(&entered.cid) {
                    entry.cids.push(entered.cid);
                }
                entry.joins.clone()
            });
        if let Some(joins) = joins {
            let _ = joins.send((link, entered)).await;
        }
    }

    /// A connection left a session.
    pub(super) fn part(&self, tsih: u16, cid: u16) {
        for entry in &mut *lock(&self.sessions) {
            if entry.info.tsih == tsih {
                entry.cids.retain(|known| *known != cid);
            }
        }
    }

    pub(super) fn orphan(&self, orphan: Orphan) {
        lock(&self.orphans).push(orphan);
    }

    /// A unit's late writes will not land.
    pub(super) fn drop_orphans(&self, of: Option<&Arc<Unit>>) {
        lock(&self.orphans).retain(|orphan| of.is_none_or(|unit| !Arc::ptr_eq(unit, &orphan.unit)));
    }

    /// Lets late writes land.
    pub(super) fn land_orphans(&self) -> usize {
        let orphans = std::mem::take(&mut *lock(&self.orphans));
        let count = orphans.len();
        for orphan in orphans {
            orphan.land();
        }
        count
    }

    pub(super) fn pinged(&self, tag: u32, lun: [u8; 8], data: &[u8]) {
        lock(&self.pings).push((tag, lun, data.to_vec()));
    }

    /// Whether a NOP-Out answers a ping of ours: RFC 7143 §11.18 wants tag and LUN back.
    pub(super) fn answer_ping(&self, pdu: &Pdu) -> bool {
        let mut pings = lock(&self.pings);
        let found = pings.iter().position(|(tag, lun, data)| {
            let echoed = pdu.data.is_empty() || pdu.data == *data;
            *tag == pdu.ttt() && *lun == pdu.lun_bytes() && echoed
        });
        found.map(|index| pings.swap_remove(index)).is_some()
    }

    /// All portals as `SendTargets` tells them.
    pub(super) fn addresses(&self) -> Vec<String> {
        let groups = self.groups.iter();
        groups
            .map(|group| format!("{},{}", group.address, group.tag))
            .collect()
    }

    /// The tag of a group, if there are several.
    pub(super) fn port(&self, group: usize) -> Option<u16> {
        (self.groups.len() > 1).then(|| self.groups[group].tag)
    }

    /// The number of a new connection, from 1.
    pub(super) fn count_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// All disks.
    pub(super) fn units(&self) -> Vec<Arc<Unit>> {
        let exports = lock(&self.exports);
        let units = exports.values().flat_map(|live| {
            let luns = lock(&live.luns);
            luns.values().cloned().collect::<Vec<_>>()
        });
        units.collect()
    }

    /// Enters a session; it leaves when the place is dropped.
    pub(super) fn enter(
        self: &Arc<Self>,
        info: SessionInfo,
        cid: u16,
        connections_max: u16,
    ) -> Place {
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        let (joins_sender, joins) = mpsc::channel(ORDERS_MAX);
        let cancel = self.stop.child_token();
        let ended = CancellationToken::new();
        self.logins.fetch_add(1, Ordering::Relaxed);
        let tsih = info.tsih;
        lock(&self.sessions).push(Entry {
            info,
            orders: sender,
            joins: joins_sender,
            cids: vec![cid],
            connections_max,
            cancel: cancel.clone(),
            ended: ended.clone(),
        });
        self.sessions_changed.notify_all();
        Place {
            shared: Arc::clone(self),
            tsih,
            orders,
            joins,
            cancel,
            ended,
        }
    }

    pub(super) async fn reinstate(&self, initiator: &str, isid: [u8; 6], iqn: &str, tag: u16) {
        let old: Vec<_> = lock(&self.sessions)
            .iter()
            .filter(|entry| {
                entry.info.initiator == initiator
                    && entry.info.isid == isid
                    // RFC 7143 §4.4.1: another portal group is another target port.
                    && entry.info.portal_group == tag
                    && entry.info.target.as_deref() == Some(iqn)
            })
            .map(|entry| (entry.cancel.clone(), entry.ended.clone()))
            .collect();
        for (cancel, ended) in old {
            cancel.cancel();
            ended.cancelled().await;
        }
    }

    /// Never zero, which means "none".
    pub(super) fn next_tsih(&self) -> u16 {
        self.tsih.fetch_add(1, Ordering::Relaxed) % 0xfffe + 1
    }

    pub(super) fn window(&self) -> u32 {
        self.faults.window().unwrap_or(self.settings.window)
    }

    /// Ends a connection that has had its share of PDUs.
    pub(super) fn count_pdu(&self, pdus: u64) -> Result<(), Ended> {
        match self.faults.pdus_max() {
            Some(most) if pdus >= most => Err(Ended::Ours),
            Some(_) | None => Ok(()),
        }
    }

    /// Notes a rule that an initiator broke; an empty text is a refusal without fault.
    pub(super) fn violation(&self, what: String) {
        if !what.is_empty() {
            tracing::debug!(what, "an initiator broke a rule");
            let mut violations = lock(&self.violations);
            if violations.len() < VIOLATIONS_MAX {
                violations.push(what);
            }
        }
    }

    pub(super) fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }
}

/// A session's place in the list.
#[derive(Debug)]
pub(super) struct Place {
    shared: Arc<Shared>,
    tsih: u16,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) joins: mpsc::Receiver<(Link, Entered)>,
    pub(super) cancel: CancellationToken,
    ended: CancellationToken,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.shared.sessions).retain(|entry| entry.info.tsih != self.tsih);
        self.shared.sessions_changed.notify_all();
        self.ended.cancel();
    }
}

fn account(user: &str, secret: &str) -> Account {
    Account {
        user: user.to_owned(),
        secret: secret.to_owned(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Orders that may wait for one session; chosen freely.
const ORDERS_MAX: usize = 16;
/// Enough to see what goes wrong; chosen freely.
const VIOLATIONS_MAX: usize = 1000;
