//! The proof: a driver as strict as the kernel's asks a lane in another process, which is killed at any moment, ends in
//! order, or loses its link; every request is answered once, without the help of a timer, and what was answered is true.
//!
//! The driver never repeats a request that was sent wholly. So an answer that a successor does not give is missed, and
//! one that it gives for what was answered ends the link, as in `drivers/block/nbd.c`. Blocks are stamped with the number
//! of their write: an old write that is done again after a newer one was answered is read.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream as StdStream;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use tokio_util::sync::CancellationToken;

use crate::block::{Backend, Completion, Geometry, Operation, Request as BackendRequest};
use crate::nbd::journal::Journal;
use crate::nbd::lane;
use crate::nbd::wire::{Request, command};
use crate::sys::socket;

use super::{Link, Relinker};

mod refused;

const CHILD: &str = "CINDER_NBD_TEST_LINK_CHILD";
const SEED: &str = "CINDER_NBD_LINK_SEED";
const ROUNDS: &str = "CINDER_NBD_LINK_ROUNDS";
const BLOCK: usize = 512;
const BLOCKS: usize = 2048;
const DEPTH: usize = 128;
/// Nothing here takes long; what takes this long is lost.
const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn whatever_befalls_the_server_every_request_is_answered_once_and_truly() {
    let seed = number(SEED).unwrap_or_else(|| {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        u64::from(now.subsec_nanos()) | 1
    });
    let rounds = number(ROUNDS).unwrap_or(100);
    eprintln!("{SEED}={seed} {ROUNDS}={rounds}");
    let mut driver = Driver::new(seed);
    let mut server = driver.start();
    for round in 0..rounds {
        let answers = driver.answered + driver.random.below(400);
        driver.run(|driver| driver.answered >= answers);
        if driver.random.below(2) == 0 {
            // Answers stay in the socket, or do not fit in it.
            driver.is_deaf = true;
            let moment = Instant::now() + Duration::from_micros(driver.random.below(3000));
            driver.run(|_| Instant::now() >= moment);
            driver.is_deaf = false;
        }
        match driver.random.below(10) {
            0 => driver.end_link(),
            1 => {
                let pid = rustix::process::Pid::from_child(&server);
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
                let ended = driver.run_until_exit(&mut server);
                // It may not even have begun to listen.
                let is_killed = std::os::unix::process::ExitStatusExt::signal(&ended).is_some();
                assert!(ended.success() || is_killed, "{ended}");
                server = driver.start();
            }
            _ => {
                for _ in 0..driver.random.below(3000) {
                    std::hint::spin_loop();
                }
                server.kill().unwrap();
                server.wait().unwrap();
                server = driver.start();
                // Sometimes the successor dies before it has done anything, or a little later.
                if driver.random.below(4) == 0 {
                    let moment =
                        Instant::now() + Duration::from_micros(driver.random.below(30_000));
                    driver.run(|_| Instant::now() >= moment);
                    server.kill().unwrap();
                    server.wait().unwrap();
                    server = driver.start();
                }
            }
        }
        if round % 10 == 9 {
            driver.settle();
        }
    }
    driver.settle();
    server.kill().unwrap();
    server.wait().unwrap();
    eprintln!(
        "{rounds} rounds: {} answers, {} links, {} doubtful answers refused",
        driver.answered, driver.links, driver.refused
    );
    assert!(driver.links > 1);
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn index(&mut self, end: usize) -> usize {
        usize::try_from(self.below(u64::try_from(end).unwrap())).unwrap()
    }
}

// --- the driver

struct Driver {
    random: Random,
    medium: File,
    control: Option<OwnedFd>,
    /// What the keeper has.
    socket: Option<OwnedFd>,
    journal: Option<OwnedFd>,
    /// The slot's socket; `None` when it is dead.
    link: Option<StdStream>,
    /// Sent wholly, and not answered.
    in_flight: HashMap<u64, Asked>,
    /// Being sent, or to be sent.
    outgoing: VecDeque<(u64, Asked, Vec<u8>)>,
    /// Bytes of the first one that are sent.
    sent: usize,
    received: Vec<u8>,
    received_bytes_wanted: usize,
    dead: Option<StdStream>,
    cookie: u64,
    write: u64,
    /// By block: the write that was answered last, and whether something is under way.
    truth: Vec<u64>,
    busy: Vec<bool>,
    paused: bool,
    is_deaf: bool,
    /// Something that was asked on this link was answered.
    is_proved: bool,
    asked_before: u64,
    answered: u64,
    links: u64,
    refused: u64,
}

#[derive(Clone)]
struct Asked {
    command: u16,
    first: usize,
    blocks: usize,
    write: u64,
}

impl Driver {
    fn new(seed: u64) -> Self {
        let medium = rustix::fs::memfd_create("medium", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let medium = File::from(medium);
        for block in 0..BLOCKS {
            let at = u64::try_from(block * BLOCK).unwrap();
            medium.write_all_at(&stamp(block, 0), at).unwrap();
        }
        Self {
            random: Random(seed),
            medium,
            control: None,
            socket: None,
            journal: None,
            link: None,
            in_flight: HashMap::new(),
            outgoing: VecDeque::new(),
            sent: 0,
            received: Vec::new(),
            received_bytes_wanted: 16,
            dead: None,
            cookie: 0,
            write: 0,
            truth: vec![0; BLOCKS],
            busy: vec![false; BLOCKS],
            paused: false,
            is_deaf: false,
            is_proved: false,
            asked_before: 0,
            answered: 0,
            links: 0,
            refused: 0,
        }
    }

    /// A server, with what the one before left.
    fn start(&mut self) -> Child {
        // What the one before said last counts.
        while self.heed() {}
        let flags = SocketFlags::CLOEXEC;
        let kind = SocketType::SEQPACKET;
        let (ours, childs) =
            rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "nbd::link::tests::child_that_serves",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .stdin(Stdio::from(childs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let word = [
            u8::from(self.socket.is_some()),
            u8::from(self.journal.is_some()),
        ];
        let mut descriptors = vec![self.medium.as_fd()];
        descriptors.extend(self.socket.iter().map(AsFd::as_fd));
        descriptors.extend(self.journal.iter().map(AsFd::as_fd));
        tell(&ours, &word, &descriptors).unwrap();
        self.control = Some(ours);
        child
    }

    fn run(&mut self, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            self.turn();
            assert!(
                Instant::now() < deadline,
                "stuck: {} in flight, {} to be sent, link {}, links {}, refused {}: {}",
                self.in_flight.len(),
                self.outgoing.len(),
                self.link.is_some(),
                self.links,
                self.refused,
                self.left()
            );
        }
    }

    fn run_until_exit(&mut self, child: &mut Child) -> std::process::ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.turn();
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "a server does not leave");
        }
    }

    /// What the journal says, for those who look for a bug.
    fn left(&self) -> String {
        let Some(journal) = self
            .journal
            .as_ref()
            .and_then(|found| found.try_clone().ok())
        else {
            return "no journal".to_owned();
        };
        let known: Vec<_> = self.in_flight.keys().collect();
        match Journal::open(journal) {
            Ok((journal, left)) => {
                let left: Vec<_> = left
                    .iter()
                    .map(|left| (left.request.cookie, left.progress))
                    .collect();
                format!(
                    "{} unparsed, {left:?}, waited for {known:?}",
                    journal.unparsed().len()
                )
            }
            Err(error) => error.to_string(),
        }
    }

    /// Everything is answered, and the medium is what the answers said.
    fn settle(&mut self) {
        self.paused = true;
        self.run(|driver| driver.in_flight.is_empty() && driver.outgoing.is_empty());
        self.paused = false;
        let mut found = vec![0; BLOCKS * BLOCK];
        self.medium.read_exact_at(&mut found, 0).unwrap();
        for (block, found) in found.chunks(BLOCK).enumerate() {
            assert!(
                found == stamp(block, self.truth[block]),
                "block {block} is not what was answered"
            );
        }
    }

    /// The link dies, as the kernel's timer kills it: long after doubtful answers were cleared.
    fn end_link(&mut self) {
        if let Some(link) = self.link.as_ref().filter(|_| self.is_proved) {
            link.shutdown(std::net::Shutdown::Both).unwrap();
        }
    }

    fn turn(&mut self) {
        while !self.paused && self.in_flight.len() + self.outgoing.len() < DEPTH && self.ask() {}
        let mut polled = Vec::new();
        if let Some(control) = &self.control {
            polled.push(PollFd::new(control, PollFlags::IN));
        }
        if let Some(link) = &self.link {
            let mut wanted = PollFlags::IN;
            if !self.outgoing.is_empty() {
                wanted |= PollFlags::OUT;
            }
            polled.push(PollFd::new(link, wanted));
        }
        let pause = Timespec {
            tv_sec: 0,
            tv_nsec: 2_000_000,
        };
        rustix::event::poll(&mut polled, Some(&pause)).unwrap();
        drop(polled);
        self.send();
        if !self.is_deaf {
            self.receive();
        }
        self.heed();
    }

    /// A new request, unless the blocks that chance chose are busy.
    fn ask(&mut self) -> bool {
        let large = self.random.below(16) == 0;
        let blocks = 1 + self.random.index(if large { 200 } else { 16 });
        let first = self.random.index(BLOCKS - blocks);
        if self.busy[first..first + blocks].iter().any(|busy| *busy) {
            return false;
        }
        let command = match self.random.below(10) {
            0 => command::FLUSH,
            1..=4 => command::READ,
            _ => command::WRITE,
        };
        let mut asked = Asked {
            command,
            first,
            blocks,
            write: 0,
        };
        if command == command::FLUSH {
            asked.blocks = 0;
        }
        if command == command::WRITE {
            self.write += 1;
            asked.write = self.write;
        }
        self.busy[first..first + asked.blocks].fill(true);
        self.queue(asked);
        true
    }

    fn queue(&mut self, asked: Asked) {
        self.cookie += 1;
        let is_flush = asked.command == command::FLUSH;
        let request = Request {
            flags: 0,
            command: asked.command,
            cookie: self.cookie,
            offset: if is_flush {
                0
            } else {
                u64::try_from(asked.first * BLOCK).unwrap()
            },
            length: u32::try_from(asked.blocks * BLOCK).unwrap(),
        };
        let mut bytes = request.emit().to_vec();
        if asked.command == command::WRITE {
            for block in asked.first..asked.first + asked.blocks {
                bytes.extend_from_slice(&stamp(block, asked.write));
            }
        }
        self.outgoing.push_back((self.cookie, asked, bytes));
    }

    fn send(&mut self) {
        while let (Some(link), Some((_, _, bytes))) = (&mut self.link, self.outgoing.front()) {
            // As the driver does: the header, then the payload page by page; a socket takes any part of it.
            let end = if self.sent < 28 {
                28
            } else {
                bytes.len().min(self.sent + 4096)
            };
            match link.write(&bytes[self.sent..end]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Dead; the reader sees it too, after all that was answered.
                Err(_) => return,
            }
            if self.sent == bytes.len() {
                self.sent = 0;
                if let Some((cookie, asked, _)) = self.outgoing.pop_front() {
                    self.in_flight.insert(cookie, asked);
                }
            }
        }
    }

    /// As the driver does: a header, then its data, and nothing behind an answer that it refuses.
    fn receive(&mut self) {
        let mut piece = vec![0; 256 << 10];
        while let Some(link) = &mut self.link {
            let wanted = self.received_bytes_wanted;
            let missing = (wanted - self.received.len()).min(piece.len());
            match link.read(&mut piece[..missing]) {
                Ok(0) => self.bury(),
                Ok(count) => {
                    self.received.extend_from_slice(&piece[..count]);
                    self.take_answers();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.bury(),
            }
        }
    }

    fn take_answers(&mut self) {
        loop {
            let Some(header) = self.received.first_chunk::<16>() else {
                return;
            };
            assert_eq!(header[..4], 0x6744_6698_u32.to_be_bytes());
            assert_eq!(header[4..8], [0; 4], "nothing fails here");
            let cookie = u64::from_be_bytes(header[8..].try_into().unwrap());
            let Some(asked) = self.in_flight.get(&cookie) else {
                self.refused += 1;
                return self.bury();
            };
            let is_read = asked.command == command::READ;
            let length = 16 + if is_read { asked.blocks * BLOCK } else { 0 };
            self.received_bytes_wanted = length;
            if self.received.len() < length {
                return;
            }
            self.received_bytes_wanted = 16;
            let asked = self.in_flight.remove(&cookie).unwrap();
            let range = asked.first..asked.first + asked.blocks;
            if is_read {
                for (block, found) in range.clone().zip(self.received[16..length].chunks(BLOCK)) {
                    let expected = stamp(block, self.truth[block]);
                    assert!(found == expected, "block {block} was read wrongly");
                }
            } else if asked.command == command::WRITE {
                self.truth[range.clone()].fill(asked.write);
            }
            self.busy[range].fill(false);
            self.is_proved |= cookie > self.asked_before;
            self.received.drain(..length);
            self.answered += 1;
        }
    }

    /// The slot's socket is dead: what was not sent wholly is sent anew, under another cookie.
    fn bury(&mut self) {
        // Its bytes stay unread until another socket takes its place.
        self.dead = self.link.take();
        link_dies(self.dead.as_ref());
        self.sent = 0;
        self.received.clear();
        self.received_bytes_wanted = 16;
        for (_, asked, _) in std::mem::take(&mut self.outgoing) {
            self.queue(asked);
        }
    }

    /// What the server says on its other line; whether it did.
    fn heed(&mut self) -> bool {
        let Some(control) = &self.control else {
            return false;
        };
        let Some((word, mut descriptors)) = hear(control, RecvFlags::DONTWAIT) else {
            return false;
        };
        match word {
            b'J' => self.journal = descriptors.pop(),
            // A new socket: our end is kept first, whether the slot is dead or not.
            b'R' => {
                let kernels = StdStream::from(descriptors.pop().unwrap());
                self.socket = descriptors.pop();
                self.receive();
                let is_taken = self.link.is_none();
                if is_taken {
                    self.links += 1;
                    (self.is_proved, self.asked_before) = (false, self.cookie);
                    self.link = Some(kernels);
                    self.dead = None;
                } else {
                    drop(kernels);
                }
                let control = self.control.as_ref().unwrap();
                // Who asked may be dead.
                let _ = tell(control, &[u8::from(is_taken)], &[]);
            }
            _ => return false,
        }
        true
    }
}

/// What is behind a refused answer is never read.
fn link_dies(link: Option<&StdStream>) {
    if let Some(link) = link {
        let _ = link.shutdown(std::net::Shutdown::Both);
    }
}

fn stamp(block: usize, write: u64) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    for (index, word) in bytes.chunks_mut(8).enumerate() {
        let mark = u64::try_from(block).unwrap() << 40 ^ write << 8 ^ u64::try_from(index).unwrap();
        word.copy_from_slice(&mark.to_be_bytes());
    }
    bytes
}

fn tell(
    socket: &OwnedFd,
    word: &[u8],
    descriptors: &[std::os::fd::BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(word)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

fn hear_all(socket: &OwnedFd, flags: RecvFlags) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut word = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut word)];
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let got = rustix::net::recvmsg(socket, &mut parts, &mut control, flags).ok()?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    (got.bytes > 0).then(|| (word[..got.bytes].to_vec(), descriptors))
}

fn hear(socket: &OwnedFd, flags: RecvFlags) -> Option<(u8, Vec<OwnedFd>)> {
    hear_all(socket, flags).map(|(word, descriptors)| (word[0], descriptors))
}

// --- the server

/// Not a test by itself: the process that the one above kills.
#[test]
fn child_that_serves() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let control = io::stdin().as_fd().try_clone_to_owned().unwrap();
    let Some((word, descriptors)) = hear_all(&control, RecvFlags::empty()) else {
        return;
    };
    let mut descriptors = descriptors.into_iter();
    let medium = File::from(descriptors.next().unwrap());
    let socket = (word[0] != 0).then(|| StdStream::from(descriptors.next().unwrap()));
    let journal = (word[1] != 0).then(|| descriptors.next().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(serve(Arc::new(control), medium, socket, journal));
    std::process::exit(0);
}

async fn serve(
    control: Arc<OwnedFd>,
    medium: File,
    socket: Option<StdStream>,
    journal: Option<OwnedFd>,
) {
    let backend = FileBackend::new(medium);
    let leave = CancellationToken::new();
    let mut terminate =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    let token = leave.clone();
    tokio::spawn(async move {
        terminate.recv().await;
        token.cancel();
    });
    let (journal, left) = match journal {
        Some(journal) => Journal::open(journal).unwrap(),
        None => (Journal::create().unwrap(), Vec::new()),
    };
    tell(&control, b"J", &[journal.file()]).unwrap();
    let relinker = Arc::new(Asker { control });
    let (standing, _stands) = tokio::sync::oneshot::channel();
    let geometry = backend.geometry().clone();
    let link = Link::resume(socket, journal, left, &geometry, relinker, standing);
    lane::serve(link, backend, &leave).await;
}

struct Asker {
    control: Arc<OwnedFd>,
}

impl Relinker for Asker {
    fn relink(&self) -> Pin<Box<dyn Future<Output = io::Result<StdStream>> + Send>> {
        let control = Arc::clone(&self.control);
        Box::pin(async move {
            let asked = tokio::task::spawn_blocking(move || {
                loop {
                    let (ours, kernels) = socket::lane_pair()?;
                    // A small buffer, so that answers leave in part.
                    if std::process::id().is_multiple_of(2) {
                        rustix::net::sockopt::set_socket_send_buffer_size(&ours, 4096)?;
                    }
                    tell(&control, b"R", &[ours.as_fd(), kernels.as_fd()])?;
                    drop(kernels);
                    let taken = hear(&control, RecvFlags::empty());
                    let (taken, _) = taken.ok_or(io::ErrorKind::BrokenPipe)?;
                    if taken != 0 {
                        return Ok(ours);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            asked.await.unwrap()
        })
    }

    fn is_over(&self) -> bool {
        false
    }
}

/// A file as a backend; what is done, is done at any time and in any order.
struct FileBackend {
    medium: File,
    geometry: Geometry,
    queue: Vec<BackendRequest>,
    random: Random,
}

impl FileBackend {
    fn new(medium: File) -> Self {
        Self {
            medium,
            geometry: Geometry {
                size_bytes: u64::try_from(BLOCKS * BLOCK).unwrap(),
                block_bytes: u32::try_from(BLOCK).unwrap(),
                physical_block_bytes: 4096,
                preferred_bytes: 64 << 10,
                request_bytes_max: 32 << 20,
                read_only: false,
                write_cache: true,
                can_trim: true,
                can_write_zeroes: true,
                rotational: false,
            },
            queue: Vec::new(),
            random: Random(u64::from(std::process::id()) | 1),
        }
    }
}

impl Backend for FileBackend {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn free_slots(&self) -> usize {
        64 - self.queue.len()
    }

    fn submit(&mut self, request: BackendRequest) -> Result<(), BackendRequest> {
        self.queue.push(request);
        Ok(())
    }

    fn poll_completion(&mut self, cx: &mut Context<'_>) -> Poll<Completion> {
        if self.queue.is_empty() {
            return Poll::Pending;
        }
        if self.random.below(4) == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let request = self.queue.swap_remove(self.random.index(self.queue.len()));
        let mut answer = BytesMut::new();
        match request.operation {
            Operation::Read(mut buffer) => {
                self.medium
                    .read_exact_at(&mut buffer, request.offset)
                    .unwrap();
                answer = buffer;
            }
            Operation::Write { data, .. } => {
                self.medium.write_all_at(&data, request.offset).unwrap();
            }
            Operation::Flush
            | Operation::Trim { .. }
            | Operation::WriteZeroes { .. }
            | Operation::Cache { .. }
            | Operation::BlockStatus { .. } => {}
        }
        Poll::Ready(Completion {
            token: request.token,
            result: Ok(answer),
        })
    }

    async fn close(self) {
        assert!(self.queue.is_empty());
    }
}
