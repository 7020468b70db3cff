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
mod commands;
mod compare;
mod compose;
mod connection;
mod control;
mod detour;
mod disk;
mod faults;
mod held;
mod keys;
mod link;
mod login;
mod management;
mod opcodes;
mod pages;
mod pdu;
mod portals;
mod raw;
mod record;
mod reserve;
mod rules;
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
use std::time::Duration;

use tokio_util::task::TaskTracker;

pub use chap::answer as chap_response;
pub use compose::{fixed_sense, text};
pub use disk::{Counts, Disk};
pub use faults::Fault;
pub use pdu::{Bhs, CONTINUE, FINAL, NO_TAG, Pdu, at, lun_bytes, lun_number, op};
pub use portals::Access;
pub use raw::{Raw, Refused};
pub use record::Record;
pub use script::{LoginSeen, Peer, Script};
pub use shared::{Export, SessionInfo};
pub use tap::{Direction, Gate, Seen, Step, Verdict};

use keys::Settings;
use portals::Group;
use shared::{Order, Shared};
use tap::Wire;

/// A running target process: some portals, any number of targets.
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
            listen: vec![("127.0.0.1:0".to_owned(), 1)],
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
        let data_too = matches!(fault, Fault::WrongDataDigest { .. });
        if let Fault::WrongHeaderDigest { nth } | Fault::WrongDataDigest { nth } = fault {
            return self.strike(
                nth,
                move |seen| {
                    seen.direction == Direction::FromTarget
                        && seen.pdu.opcode() != op::LOGIN_RESPONSE
                        && !(data_too && seen.pdu.data.is_empty())
                },
                move |seen| {
                    let pdu = seen.pdu.clone();
                    Verdict::Steps(vec![if data_too {
                        Step::BadDataDigest(pdu)
                    } else {
                        Step::BadHeaderDigest(pdu)
                    }])
                },
            );
        }
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
        self.ping_with([0; 8], &[]);
    }

    /// The same with a LUN and with data, which an honest target does not send.
    pub fn ping_with(&self, lun: [u8; 8], data: &[u8]) {
        self.shared.order(&Order::Ping(lun, data.to_vec()));
    }

    /// Asks each session to log out within so many seconds (asynchronous message 1).
    pub fn request_logout(&self, seconds: u16) {
        self.announce(Pdu::async_message(1, 0, [0, 0, seconds]));
    }

    /// Sends each session an asynchronous message (`Pdu::async_message`) and does what it announces: event 2 drops the
    /// connection whose CID is parameter 1, event 3 all, event 5 ends the tasks of its LUN.
    pub fn announce(&self, message: Pdu) {
        self.shared.order(&Order::Async(Box::new(message)));
    }

    /// Carries out what was held, and lets late writes of sessions that are gone land: gives the number of these.
    #[expect(
        clippy::must_use_candidate,
        reason = "most callers hold no late writes"
    )]
    pub fn release(&self) -> usize {
        self.shared.order(&Order::Release);
        self.shared.land_orphans()
    }

    /// How many commands were held since the target started.
    pub fn held(&self) -> u64 {
        self.shared.held.value()
    }

    /// Blocks until so many commands were held since the target started.
    ///
    /// # Panics
    /// If they are not within 10 s.
    pub fn wait_held(&self, count: u64) {
        let held = &self.shared.held;
        assert!(held.wait(count), "{} of {count} are held", held.value());
    }

    /// Tells every session a unit attention of a LUN: 29h/00h reset, 2Ah/01h parameters, 2Ah/09h capacity, 3Fh/0Eh LUNs.
    ///
    /// # Panics
    /// If there is no such LUN.
    pub fn unit_attention(&self, iqn: &str, lun: u16, asc: u8, ascq: u8) {
        let unit = self.export(iqn).unit(lun).expect("the LUN exists");
        unit.announce(scsi::Sense(6, asc, ascq));
    }

    /// Puts a portal group into an ALUA state and announces it (unit attention 2Ah/06h).
    ///
    /// # Panics
    /// If there is no such group.
    pub fn set_access(&self, tag: u16, access: Access) {
        self.group(tag).set_access(access);
        for unit in self.shared.units() {
            unit.announce(scsi::ACCESS_CHANGED);
        }
    }

    /// Cuts the sessions of a portal group and closes each new connection to it at once, until `open_portal`.
    ///
    /// # Panics
    /// If there is no such group.
    pub fn close_portal(&self, tag: u16) {
        self.group(tag).set_open(false);
        self.shared.cut(|info| info.portal_group == tag);
    }

    /// Takes connections again.
    ///
    /// # Panics
    /// If there is no such group.
    pub fn open_portal(&self, tag: u16) {
        self.group(tag).set_open(true);
    }

    /// The power fails and comes back: all connections are cut, their tasks and all reservations are gone, and of each
    /// disk with a volatile cache those unflushed blocks for which `lost` says so. Gives the number of these.
    pub fn crash(&self, mut lost: impl FnMut(u64) -> bool) -> usize {
        for group in &self.shared.groups {
            group.set_open(false);
        }
        self.shared.cut(|_| true);
        self.wait_sessions(0);
        let mut count = 0;
        for unit in self.shared.units() {
            unit.forget_reservations();
            count += unit.disk.power_cut(&mut lost);
        }
        for group in &self.shared.groups {
            group.set_open(true);
        }
        count
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

    /// All portals with the tags of their groups; the first is `portal`.
    pub fn portals(&self) -> Vec<(String, u16)> {
        let groups = self.shared.groups.iter();
        groups
            .map(|group| (group.address.to_string(), group.tag))
            .collect()
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
    /// If it is not so within 10 s.
    pub fn wait_sessions(&self, count: usize) {
        assert!(
            self.shared.wait_sessions(count),
            "{count} sessions expected: {:?}",
            self.session_list()
        );
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

    fn group(&self, tag: u16) -> &Group {
        let mut groups = self.shared.groups.iter();
        groups
            .find(|group| group.tag == tag)
            .unwrap_or_else(|| panic!("no portal group {tag}"))
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
    /// Address and tag of each portal.
    listen: Vec<(String, u16)>,
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
        address.clone_into(&mut self.listen[0].0);
        self
    }

    /// A further portal, in a group of its own with this tag. The first has tag 1.
    #[must_use]
    pub fn portal(mut self, address: &str, tag: u16) -> Self {
        self.listen.push((address.to_owned(), tag));
        self
    }

    /// Sense data goes out in descriptor format.
    #[must_use]
    pub fn descriptor_sense(mut self, on: bool) -> Self {
        self.settings.descriptor_sense = on;
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

    /// `DefaultTime2Wait`, in seconds; 2 unless told otherwise.
    #[must_use]
    pub fn time_to_wait(mut self, seconds: u32) -> Self {
        self.settings.time_to_wait = seconds;
        self
    }

    /// Whether good status rides in the last Data-In, or comes in a PDU of its own.
    #[must_use]
    pub fn status_in_data(mut self, on: bool) -> Self {
        self.settings.status_in_data = on;
        self
    }

    /// CHAP algorithms by their numbers (5 MD5, 6 SHA1, 7 SHA-256, 8 SHA3-256); only 5 if not told. The first of the
    /// initiator's list that is among them is taken.
    #[must_use]
    pub fn chap_algorithms(mut self, numbers: &[u8]) -> Self {
        self.settings.chap_algorithms = numbers.to_vec();
        self
    }

    /// CHAP values are sent in base64 instead of hexadecimal.
    #[must_use]
    pub fn chap_base64(mut self, on: bool) -> Self {
        self.settings.chap_base64 = on;
        self
    }

    /// Limit for `MaxConnections`.
    #[must_use]
    pub fn max_connections(mut self, count: u16) -> Self {
        self.settings.connections = count;
        self
    }

    /// Answers of a login come in pieces of so many bytes, with the C bit.
    #[must_use]
    pub fn login_text_bytes(mut self, bytes: usize) -> Self {
        self.settings.login_text_bytes = Some(bytes);
        self
    }

    /// Answers to text requests come in pieces of so many bytes at most.
    #[must_use]
    pub fn text_bytes(mut self, bytes: usize) -> Self {
        self.settings.text_bytes = Some(bytes);
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
        let (listeners, groups): (Vec<_>, Vec<_>) = self
            .listen
            .iter()
            .map(|(address, tag)| listen(address, *tag))
            .unzip();
        let address = groups[0].address;
        let shared = Arc::new(Shared::new(self.settings, groups, self.wire));
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
                runtime.block_on(serve(listeners, theirs));
            })
            .expect("a thread can be made");
        Target {
            shared,
            address,
            thread: Some(thread),
        }
    }
}

fn listen(address: &str, tag: u16) -> (TcpListener, Group) {
    let listener = TcpListener::bind(address)
        .unwrap_or_else(|error| panic!("cannot listen on {address}: {error}"));
    listener
        .set_nonblocking(true)
        .expect("a listener can be made non-blocking");
    let address = listener.local_addr().expect("a listener has an address");
    (listener, Group::new(tag, address))
}

async fn serve(listeners: Vec<TcpListener>, shared: Arc<Shared>) {
    let tasks = TaskTracker::new();
    for (group, listener) in listeners.into_iter().enumerate() {
        let listener =
            tokio::net::TcpListener::from_std(listener).expect("the listener is non-blocking");
        tasks.spawn(accept(listener, group, Arc::clone(&shared), tasks.clone()));
    }
    shared.stop.cancelled().await;
    tasks.close();
    tasks.wait().await;
}

async fn accept(
    listener: tokio::net::TcpListener,
    group: usize,
    shared: Arc<Shared>,
    connections: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file handles: the next one may succeed.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        if shared.groups[group].is_open() {
            // Answers are written in one piece already.
            let _ = stream.set_nodelay(true);
            connections.spawn(session::serve(stream, group, Arc::clone(&shared)));
        }
    }
}
