//! An iSCSI target in this process: what tests, demo and benchmarks log in to where no real one is needed, and the
//! only one that can be told to misbehave.
//!
//! Source: RFC 7143; SPC-4 and SBC-3 for the disk. Judged by libiscsi's tools (`tests/judged_by_libiscsi.rs`).
//!
//! It runs on a thread of its own, so a test that blocks its thread, or has no runtime, is served all the same.
//!
//! Invariants:
//! 1. It is strict where an initiator could be wrong: what breaks a rule is in `violations`.
//! 2. Dropping the handle ends the thread and all connections.

mod chap;
mod compose;
mod detour;
mod disk;
mod faults;
mod keys;
mod link;
mod login;
mod opcodes;
mod pages;
mod pdu;
mod raw;
mod record;
mod script;
mod scsi;
mod session;
mod shared;
mod tap;
mod transfer;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio_util::task::TaskTracker;

pub use compose::{fixed_sense, text};
pub use disk::{Counts, Disk};
pub use faults::Fault;
pub use pdu::{Bhs, CONTINUE, FINAL, NO_TAG, Pdu, at, lun_bytes, lun_number, op};
pub use raw::{Raw, Refused};
pub use record::Record;
pub use script::{LoginSeen, Peer, Script};
pub use shared::{Export, SessionInfo};
pub use tap::{Direction, Gate, Seen, Step, Verdict};

use keys::Settings;
use shared::{Order, Shared};
use tap::Wire;

/// A running target process: one portal, any number of targets.
///
/// ```
/// use support::target::{Disk, Target};
///
/// let target = Target::builder()
///     .iqn("iqn.2026-11.test:disk")
///     .chap("user", "a-secret-of-16-b")
///     .lun(1, Disk::memory(1 << 20))
///     .start_blocking();
/// assert_eq!(target.sessions(), 0);
/// assert!(target.violations().is_empty());
/// ```
#[derive(Debug)]
pub struct Target {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Target {
    /// Begins a target; `start` ends it.
    pub fn builder() -> Builder {
        Builder {
            listen: "127.0.0.1:0".to_owned(),
            settings: Settings::default(),
            wire: Arc::default(),
            export: Export::new("iqn.2026-11.org.cinder-nbd.test:disk"),
            more: Vec::new(),
            bare: false,
        }
    }

    /// Adds a target, or replaces the one of the same name for later logins.
    pub fn add(&self, export: Export) {
        self.shared.add(export);
    }

    /// Removes a target and cuts its sessions; false if there is none.
    #[expect(clippy::must_use_candidate, reason = "removing twice is no mistake")]
    pub fn remove(&self, iqn: &str) -> bool {
        self.shared.remove(iqn)
    }

    /// Puts a disk at a LUN of a target, in place of what was there: sessions stay and see the new one.
    ///
    /// # Panics
    /// If there is no such target.
    pub fn set_lun(&self, iqn: &str, lun: u16, disk: Disk) {
        self.export(iqn).set(lun, Some(disk));
    }

    /// Takes a LUN away; sessions stay.
    ///
    /// # Panics
    /// If there is no such target.
    pub fn remove_lun(&self, iqn: &str, lun: u16) {
        self.export(iqn).set(lun, None);
    }

    /// Resizes a LUN's disk and announces it (unit attention 2Ah/09h) to every session.
    ///
    /// # Panics
    /// If there is no such LUN, or its disk cannot have this length.
    pub fn resize(&self, iqn: &str, lun: u16, bytes: u64) {
        let unit = self.export(iqn).unit(lun).expect("the LUN exists");
        unit.disk.resize(bytes);
        unit.announce(scsi::CAPACITY_CHANGED);
    }

    /// Begins to misbehave; a changed window is told at once.
    pub fn inject(&self, fault: Fault) {
        let window = matches!(fault, Fault::Window(_));
        self.shared.faults.inject(fault);
        if window {
            self.shared.order(&Order::Window);
        }
    }

    /// From now on asks `tap` about each PDU of either side, on every connection. It must not call back into this
    /// target; of several taps the first that does not pass a PDU decides.
    ///
    /// ```
    /// use support::target::{Target, Verdict, op};
    ///
    /// let target = Target::builder().start_blocking();
    /// target.tap(|seen| {
    ///     if seen.sent(op::NOP_IN) {
    ///         Verdict::drop()
    ///     } else {
    ///         Verdict::Pass
    ///     }
    /// });
    /// ```
    pub fn tap(&self, tap: impl FnMut(&Seen) -> Verdict + Send + 'static) {
        self.shared.wire.tap(Box::new(tap));
    }

    /// Does something to the nth PDU (from 1) for which `which` holds, and then no more.
    pub fn strike(
        &self,
        nth: u64,
        which: impl Fn(&Seen) -> bool + Send + 'static,
        verdict: impl FnOnce(&Seen) -> Verdict + Send + 'static,
    ) {
        self.shared.wire.strike(nth, which, verdict);
    }

    /// The record of all PDUs, begun with the first call (or with the builder's).
    pub fn record(&self) -> Record {
        self.shared.wire.record()
    }

    /// Sends a PDU on every session. Numbered like an answer, if told so; else as it is and past every tap.
    pub fn send(&self, pdu: Pdu, numbered: bool) {
        let pdu = Box::new(pdu);
        self.shared.order(&Order::Send { pdu, numbered });
    }

    /// Behaves again: no faults and no taps; every session is told its window.
    pub fn clear_faults(&self) {
        self.shared.wire.clear();
        self.shared.faults.clear();
        self.shared.order(&Order::Window);
    }

    /// Sends each session a NOP-In that wants an answer; `pongs` counts those.
    pub fn ping(&self) {
        self.shared.order(&Order::Ping);
    }

    /// Asks each session to log out within so many seconds (asynchronous message 1).
    pub fn request_logout(&self, seconds: u16) {
        self.shared.order(&Order::LogoutRequest(seconds));
    }

    /// Cuts every session's connection without a word.
    pub fn drop_connections(&self) {
        self.shared.cut(|_| true);
    }

    /// Closes the portal and every connection, and waits for the thread.
    pub fn stop(mut self) {
        self.end();
    }

    /// `127.0.0.1:PORT`.
    pub fn portal(&self) -> String {
        self.address.to_string()
    }

    /// The portal as a socket address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Names of the targets.
    pub fn targets(&self) -> Vec<String> {
        self.shared.names()
    }

    /// A LUN's disk, to look at what was written.
    pub fn disk(&self, iqn: &str, lun: u16) -> Option<Disk> {
        Some(self.shared.find(iqn)?.unit(lun)?.disk.clone())
    }

    /// How many normal sessions are logged in.
    pub fn sessions(&self) -> usize {
        self.session_list()
            .iter()
            .filter(|session| session.target.is_some())
            .count()
    }

    /// All sessions, discovery included.
    pub fn session_list(&self) -> Vec<SessionInfo> {
        self.shared.sessions()
    }

    /// Blocks until `sessions` is as told: a closed socket is noticed a moment later.
    ///
    /// # Panics
    /// If it is not so within 5 s.
    pub fn wait_sessions(&self, count: usize) {
        let deadline = Instant::now() + WAIT;
        while self.sessions() != count {
            let sessions = self.session_list();
            assert!(
                Instant::now() < deadline,
                "{count} sessions expected: {sessions:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How many logins succeeded so far.
    pub fn logins(&self) -> u64 {
        self.shared.logins.load(Ordering::Relaxed)
    }

    /// How many of our pings were answered.
    pub fn pongs(&self) -> u64 {
        self.shared.pongs.load(Ordering::Relaxed)
    }

    /// What initiators did against the rules, in order; empty for a good one. A refused secret, name or LUN is none.
    pub fn violations(&self) -> Vec<String> {
        self.shared.violations()
    }

    fn export(&self, iqn: &str) -> Arc<shared::Live> {
        self.shared
            .find(iqn)
            .unwrap_or_else(|| panic!("no target {iqn}"))
    }

    fn end(&mut self) {
        self.shared.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic in there was printed; dropping must not add another.
            let _ = thread.join();
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.end();
    }
}

/// A target about to start. `iqn`, `chap`, `mutual_chap` and `lun` describe its first export.
#[derive(Debug)]
pub struct Builder {
    listen: String,
    settings: Settings,
    wire: Arc<Wire>,
    export: Export,
    more: Vec<Export>,
    bare: bool,
}

impl Builder {
    /// Address to listen on; the default is a free port of 127.0.0.1.
    #[must_use]
    pub fn listen(mut self, address: &str) -> Self {
        address.clone_into(&mut self.listen);
        self
    }

    /// The first export's name.
    #[must_use]
    pub fn iqn(mut self, iqn: &str) -> Self {
        self.export = self.export.rename(iqn);
        self
    }

    /// The first export asks for one-way CHAP.
    #[must_use]
    pub fn chap(mut self, user: &str, secret: &str) -> Self {
        self.export = self.export.chap(user, secret);
        self
    }

    /// The first export proves itself with these, if the initiator asks.
    #[must_use]
    pub fn mutual_chap(mut self, user: &str, secret: &str) -> Self {
        self.export = self.export.mutual_chap(user, secret);
        self
    }

    /// A disk of the first export.
    #[must_use]
    pub fn lun(mut self, number: u16, disk: Disk) -> Self {
        self.export = self.export.lun(number, disk);
        self
    }

    /// A further export.
    #[must_use]
    pub fn export(mut self, export: Export) -> Self {
        self.more.push(export);
        self
    }

    /// No first export: targets are added later.
    #[must_use]
    pub fn without_export(mut self) -> Self {
        self.bare = true;
        self
    }

    /// As `Target::tap`, from the first connection on.
    #[must_use]
    pub fn tap(self, tap: impl FnMut(&Seen) -> Verdict + Send + 'static) -> Self {
        self.wire.tap(Box::new(tap));
        self
    }

    /// Records all PDUs from the first connection on (`Target::record`).
    #[must_use]
    pub fn record(self) -> Self {
        self.wire.record();
        self
    }

    /// Limit for `MaxBurstLength`.
    #[must_use]
    pub fn max_burst(mut self, bytes: u32) -> Self {
        self.settings.max_burst = bytes;
        self
    }

    /// Limit for `FirstBurstLength`.
    #[must_use]
    pub fn first_burst(mut self, bytes: u32) -> Self {
        self.settings.first_burst = bytes;
        self
    }

    /// Whether `ImmediateData` is allowed.
    #[must_use]
    pub fn immediate_data(mut self, allowed: bool) -> Self {
        self.settings.immediate_data = allowed;
        self
    }

    /// Whether `InitialR2T` is required.
    #[must_use]
    pub fn initial_r2t(mut self, required: bool) -> Self {
        self.settings.initial_r2t = required;
        self
    }

    /// Our `MaxRecvDataSegmentLength`.
    #[must_use]
    pub fn max_recv_data_segment(mut self, bytes: u32) -> Self {
        self.settings.segment_bytes = bytes;
        self
    }

    /// Limit for `MaxOutstandingR2T`.
    #[must_use]
    pub fn max_outstanding_r2t(mut self, count: u32) -> Self {
        self.settings.outstanding_r2t = count;
        self
    }

    /// Commands that a session may have outstanding.
    #[must_use]
    pub fn window(mut self, commands: u32) -> Self {
        self.settings.window = commands;
        self
    }

    /// Whether CRC32C digests are agreed to when offered.
    #[must_use]
    pub fn digests(mut self, supported: bool) -> Self {
        self.settings.digests = supported;
        self
    }

    /// Whether the first command after login gets unit attention 29h/00h, as most targets do.
    #[must_use]
    pub fn unit_attention(mut self, on: bool) -> Self {
        self.settings.unit_attention = on;
        self
    }

    /// Whether good status rides in the last Data-In, or comes in a PDU of its own.
    #[must_use]
    pub fn status_in_data(mut self, on: bool) -> Self {
        self.settings.status_in_data = on;
        self
    }

    /// Bytes of a CHAP challenge, 1 to 1024.
    #[must_use]
    pub fn challenge_bytes(mut self, bytes: usize) -> Self {
        self.settings.challenge_bytes = bytes;
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// If the address cannot be listened on.
    #[expect(
        clippy::unused_async,
        reason = "asynchronous callers read better with it; see start_blocking"
    )]
    pub async fn start(self) -> Target {
        self.start_blocking()
    }

    /// Starts it; listening already when this returns.
    ///
    /// # Panics
    /// If the address cannot be listened on.
    pub fn start_blocking(self) -> Target {
        let listener = TcpListener::bind(&self.listen)
            .unwrap_or_else(|error| panic!("cannot listen on {}: {error}", self.listen));
        listener
            .set_nonblocking(true)
            .expect("a listener can be made non-blocking");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared::new(self.settings, address.to_string(), self.wire));
        if !self.bare {
            shared.add(self.export);
        }
        for export in self.more {
            shared.add(export);
        }
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("iscsi-target".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime can be made");
                runtime.block_on(accept(listener, theirs));
            })
            .expect("a thread can be made");
        Target {
            shared,
            address,
            thread: Some(thread),
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let listener =
        tokio::net::TcpListener::from_std(listener).expect("the listener is non-blocking");
    let connections = TaskTracker::new();
    let mut number = 0;
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file handles: the next one may succeed.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        // Answers are written in one piece already.
        let _ = stream.set_nodelay(true);
        number += 1;
        connections.spawn(session::serve(stream, number, Arc::clone(&shared)));
    }
    connections.close();
    connections.wait().await;
}

/// Far above what loopback needs.
const WAIT: Duration = Duration::from_secs(5);
