//! The record: every PDU of a target in the order in which it was received or left, to be asked and waited for.
//!
//! Invariants:
//! 1. Nothing here polls or sleeps: whoever waits is woken by the PDU.
//! 2. A wait that is in vain panics with the tail of what was seen.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::pdu::Pdu;
use super::tap::{Direction, Seen};

/// What went over the wires of a target since the record was begun; a handle.
#[derive(Clone, Debug, Default)]
pub struct Record {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    on: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    notify: Notify,
}

#[derive(Debug, Default)]
struct State {
    seen: Vec<Seen>,
    /// Connections that have ended.
    closed: Vec<u64>,
}

impl Record {
    /// All so far.
    pub fn all(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// PDUs of the initiator with this opcode.
    pub fn received(&self, opcode: u8) -> Vec<Pdu> {
        self.pdus(|seen| seen.received(opcode))
    }

    /// PDUs of the target with this opcode.
    pub fn sent(&self, opcode: u8) -> Vec<Pdu> {
        self.pdus(|seen| seen.sent(opcode))
    }

    /// All PDUs of the initiator.
    pub fn initiators(&self) -> Vec<Pdu> {
        self.pdus(|seen| seen.direction == Direction::FromInitiator)
    }

    /// Those for which `which` holds.
    pub fn pdus(&self, which: impl Fn(&Seen) -> bool) -> Vec<Pdu> {
        let state = self.state();
        let found = state.seen.iter().filter(|seen| which(seen));
        found.map(|seen| seen.pdu.clone()).collect()
    }

    /// How many there are for which `which` holds.
    pub fn count(&self, which: impl Fn(&Seen) -> bool) -> usize {
        self.state().seen.iter().filter(|seen| which(seen)).count()
    }

    /// Forgets what was seen.
    pub fn clear(&self) {
        self.state().seen.clear();
    }

    /// Blocks until there is a PDU for which `which` holds, and gives the first.
    ///
    /// # Panics
    /// If none comes in 10 s.
    pub fn wait(&self, which: impl Fn(&Seen) -> bool) -> Seen {
        self.wait_count(1, which)
    }

    /// Blocks until there are so many PDUs for which `which` holds, and gives the last of these.
    ///
    /// # Panics
    /// If they do not come in 10 s, or none was asked for.
    pub fn wait_count(&self, count: usize, which: impl Fn(&Seen) -> bool) -> Seen {
        self.block(|state| state.nth(count, &which))
    }

    /// Blocks until a connection has ended.
    ///
    /// # Panics
    /// If it does not in 10 s.
    pub fn wait_closed(&self, connection: u64) {
        self.block(|state| state.closed.contains(&connection).then_some(()));
    }

    /// As `wait`, without blocking the thread.
    ///
    /// # Panics
    /// If none comes in 10 s.
    pub async fn seen(&self, which: impl Fn(&Seen) -> bool) -> Seen {
        self.seen_count(1, which).await
    }

    /// As `wait_count`, without blocking the thread.
    ///
    /// # Panics
    /// If they do not come in 10 s.
    pub async fn seen_count(&self, count: usize, which: impl Fn(&Seen) -> bool) -> Seen {
        self.until(|state| state.nth(count, &which)).await
    }

    /// As `wait_closed`, without blocking the thread.
    ///
    /// # Panics
    /// If it does not in 10 s.
    pub async fn closed(&self, connection: u64) {
        self.until(|state| state.closed.contains(&connection).then_some(()))
            .await;
    }

    pub(super) fn begin(&self) {
        self.inner.on.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_on(&self) -> bool {
        self.inner.on.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, seen: Seen) {
        if self.is_on() {
            self.change(|state| state.seen.push(seen));
        }
    }

    pub(super) fn close(&self, connection: u64) {
        self.change(|state| state.closed.push(connection));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.inner.changed.notify_all();
        self.inner.notify.notify_waiters();
    }

    fn block<T>(&self, found: impl Fn(&State) -> Option<T>) -> T {
        let deadline = Instant::now() + WAIT;
        let mut state = self.state();
        loop {
            if let Some(found) = found(&state) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain; seen: {:#?}", state.tail());
            state = self
                .inner
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    async fn until<T>(&self, found: impl Fn(&State) -> Option<T>) -> T {
        let search = async {
            loop {
                let mut notified = std::pin::pin!(self.inner.notify.notified());
                // Listening before looking: what comes between is not missed.
                notified.as_mut().enable();
                let result = found(&self.state());
                match result {
                    Some(result) => return result,
                    None => notified.await,
                }
            }
        };
        let result = tokio::time::timeout(WAIT, search).await;
        result.unwrap_or_else(|_| panic!("waited in vain; seen: {:#?}", self.state().tail()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.inner.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn nth(&self, count: usize, which: impl Fn(&Seen) -> bool) -> Option<Seen> {
        let mut found = self.seen.iter().filter(|seen| which(seen));
        found.nth(count.saturating_sub(1)).cloned()
    }

    fn tail(&self) -> &[Seen] {
        &self.seen[self.seen.len().saturating_sub(30)..]
    }
}

/// Far above what loopback needs: longer is a failed test.
const WAIT: Duration = Duration::from_secs(10);
