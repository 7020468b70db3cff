//! What the connections of one target process have in common: exports, sessions, faults, and the list of
//! rules that initiators broke.
//!
//! Invariants:
//! 1. Locks here guard maps for some lines and are never held across an await.
//! 2. A session that is replaced has ended before its successor's login is answered.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::chap::Account;
use super::disk::Disk;
use super::faults::Faults;
use super::keys::Settings;
use super::link::Ended;
use super::pdu::Pdu;
use super::scsi::Sense;
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
    /// Unit attentions in order; a session remembers how far it has seen.
    events: Mutex<Vec<Sense>>,
}

impl Unit {
    fn new(disk: Disk) -> Self {
        Self {
            disk,
            events: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn announce(&self, sense: Sense) {
        lock(&self.events).push(sense);
    }

    pub(super) fn event(&self, index: usize) -> Option<Sense> {
        lock(&self.events).get(index).copied()
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
    /// A NOP-In that wants an answer.
    Ping,
    /// Asynchronous message 1: log out within so many seconds.
    LogoutRequest(u16),
    /// A NOP-In that only tells the window.
    Window,
}

#[derive(Debug)]
struct Entry {
    info: SessionInfo,
    orders: mpsc::Sender<Order>,
    cancel: CancellationToken,
    ended: CancellationToken,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) faults: Faults,
    pub(super) wire: Arc<Wire>,
    pub(super) portal: String,
    pub(super) logins: AtomicU64,
    pub(super) pongs: AtomicU64,
    pub(super) stop: CancellationToken,
    exports: Mutex<BTreeMap<String, Arc<Live>>>,
    sessions: Mutex<Vec<Entry>>,
    violations: Mutex<Vec<String>>,
    tsih: AtomicU16,
}

impl Shared {
    pub(super) fn new(settings: Settings, portal: String, wire: Arc<Wire>) -> Self {
        Self {
            settings,
            faults: Faults::default(),
            wire,
            portal,
            logins: AtomicU64::new(0),
            pongs: AtomicU64::new(0),
            stop: CancellationToken::new(),
            exports: Mutex::new(BTreeMap::new()),
            sessions: Mutex::new(Vec::new()),
            violations: Mutex::new(Vec::new()),
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

    /// An order to each session; one whose queue is full has enough to do.
    pub(super) fn order(&self, order: &Order) {
        for entry in &*lock(&self.sessions) {
            let _ = entry.orders.try_send(order.clone());
        }
    }

    /// Enters a session; it leaves when the place is dropped.
    pub(super) fn enter(self: &Arc<Self>, info: SessionInfo) -> Place {
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        let cancel = self.stop.child_token();
        let ended = CancellationToken::new();
        self.logins.fetch_add(1, Ordering::Relaxed);
        let tsih = info.tsih;
        lock(&self.sessions).push(Entry {
            info,
            orders: sender,
            cancel: cancel.clone(),
            ended: ended.clone(),
        });
        Place {
            shared: Arc::clone(self),
            tsih,
            orders,
            cancel,
            ended,
        }
    }

    pub(super) async fn reinstate(&self, initiator: &str, isid: [u8; 6], iqn: &str) {
        let old: Vec<_> = lock(&self.sessions)
            .iter()
            .filter(|entry| {
                entry.info.initiator == initiator
                    && entry.info.isid == isid
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
    pub(super) cancel: CancellationToken,
    ended: CancellationToken,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.shared.sessions).retain(|entry| entry.info.tsih != self.tsih);
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
