//! A server of a kernel device that is killed, and one that goes on: both are copies of this test program, and the test is
//! the keeper of what lies between them.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use cinder_nbd::block::{Backend, Completion, Geometry, Operation, Request};
use cinder_nbd::nbd::{DeviceParams, Keeper, Keepsake, KernelDevice, LaneRemains};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::{block_on, kernel_is_here, node_of, wait_for};

/// Names the medium to the copy of this program that serves.
const CHILD: &str = "CINDER_NBD_TEST_ADOPTION_CHILD";
const IDENTIFIER: &str = "adoption";
const LANES: usize = 2;
const SIZE: usize = 16 << 20;
const BLOCK: usize = 4096;
const ROUNDS: u32 = 12;

/// Writers with direct I/O, each of its own blocks, see no error and no wrong byte, whatever befalls the server.
#[test]
fn a_killed_server_is_followed_by_one_that_goes_on() {
    if !kernel_is_here() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let medium = directory.path().join("medium");
    File::create(&medium)
        .unwrap()
        .set_len(u64::try_from(SIZE).unwrap())
        .unwrap();
    let mut kept = Kept::default();
    let mut server = kept.start(&medium);
    let mut node = None;
    wait_for("the device", || {
        node = node_of(IDENTIFIER);
        node.is_some()
    });
    let node = node.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..4)
        .map(|number| {
            let (node, stop, written) = (node.clone(), Arc::clone(&stop), Arc::clone(&written));
            std::thread::spawn(move || write(&node, number, &stop, &written))
        })
        .collect();
    let go_on = || {
        let before = written.load(Ordering::Relaxed);
        wait_for("writers to go on", || {
            written.load(Ordering::Relaxed) > before + 100
        });
    };
    for round in 0..ROUNDS {
        go_on();
        if round % 4 == 3 {
            let pid = rustix::process::Pid::from_child(&server);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            assert!(server.wait().unwrap().success(), "it hands over");
        } else {
            server.kill().unwrap();
            server.wait().unwrap();
        }
        server = kept.start(&medium);
        eprintln!("round {round}: another server");
    }
    go_on();
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.join().unwrap();
    }
    assert_eq!(node_of(IDENTIFIER).as_deref(), Some(&*node));
    server.kill().unwrap();
    server.wait().unwrap();
    KernelDevice::disconnect_stale(IDENTIFIER).unwrap();
    assert_eq!(KernelDevice::find(IDENTIFIER).unwrap(), None);
}

/// Not a test by itself: the process that the one above kills.
#[test]
fn child_that_serves_or_adopts() {
    let Some(medium) = std::env::var_os(CHILD) else {
        return;
    };
    let control = io::stdin().as_fd().try_clone_to_owned().unwrap();
    let mut remains: Vec<LaneRemains> = Vec::new();
    for _ in 0..LANES {
        remains.push(hear_remains(&control));
    }
    let open = move |_| {
        let file = OpenOptions::new().read(true).write(true).open(&medium);
        async move { Ok(FileBackend::new(file?)) }
    };
    let params = DeviceParams {
        dead_conn_timeout: Duration::from_mins(2),
        keeper: Some(Arc::new(Line(control))),
        ..DeviceParams::new(IDENTIFIER)
    };
    block_on(async {
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        let device = if KernelDevice::find(IDENTIFIER).unwrap().is_some() {
            let adopted = KernelDevice::adopt(LANES, remains, open, params).await;
            adopted.map_err(|(_, error)| error).unwrap()
        } else {
            KernelDevice::connect_with(LANES, open, params)
                .await
                .unwrap()
        };
        terminate.recv().await;
        device.hand_over().await;
    });
    std::process::exit(0);
}

fn write(node: &str, number: usize, stop: &AtomicBool, written: &AtomicU64) {
    let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(node)
        .unwrap();
    let mut space = vec![0; 3 * BLOCK];
    let start = space.as_ptr().align_offset(BLOCK);
    let blocks = SIZE / BLOCK / 4;
    let mut truth = vec![None; blocks];
    let mut seed = 88_172_645_463_325_252 + u64::try_from(number).unwrap();
    while !stop.load(Ordering::Relaxed) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let block = usize::try_from(seed % 64).unwrap() * 17 % blocks;
        let at = u64::try_from((number * blocks + block) * BLOCK).unwrap();
        let buffer = &mut space[start..start + BLOCK];
        if let Some(expected) = truth[block] {
            file.read_exact_at(buffer, at).unwrap();
            assert!(
                buffer
                    .chunks(8)
                    .all(|word| word == u64::to_be_bytes(expected)),
                "block {block}"
            );
        }
        for word in buffer.chunks_mut(8) {
            word.copy_from_slice(&seed.to_be_bytes());
        }
        file.write_all_at(buffer, at).unwrap();
        truth[block] = Some(seed);
        written.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the test keeps between two servers.
#[derive(Default)]
struct Kept {
    descriptors: HashMap<(u8, u8), OwnedFd>,
    line: Option<OwnedFd>,
}

impl Kept {
    /// A server, with all that the one before left.
    fn start(&mut self, medium: &Path) -> Child {
        // All that was said before its death.
        while let Some((word, descriptors)) = self.line.as_ref().and_then(hear) {
            let place = (word[0], word[1]);
            match descriptors.into_iter().next() {
                Some(descriptor) => self.descriptors.insert(place, descriptor),
                None => self.descriptors.remove(&place),
            };
        }
        let (ours, childs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        for lane in 0..u8::try_from(LANES).unwrap() {
            let found = |what| self.descriptors.get(&(lane, what)).map(AsFd::as_fd);
            let (socket, journal) = (found(0), found(1));
            let word = [u8::from(socket.is_some()), u8::from(journal.is_some())];
            let descriptors: Vec<_> = socket.into_iter().chain(journal).collect();
            tell(&ours, &word, &descriptors).unwrap();
        }
        rustix::fs::fcntl_setfl(&ours, rustix::fs::OFlags::NONBLOCK).unwrap();
        self.line = Some(ours);
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "adoption::child_that_serves_or_adopts",
                "--nocapture",
            ])
            .env(CHILD, medium)
            .stdin(Stdio::from(childs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }
}

/// The server's way to the test.
struct Line(OwnedFd);

impl Keeper for Line {
    fn keep(&self, lane: usize, what: Keepsake, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        tell(&self.0, &place(lane, what), &[descriptor])
    }

    fn forget(&self, lane: usize, what: Keepsake) {
        tell(&self.0, &place(lane, what), &[]).unwrap();
    }
}

fn place(lane: usize, what: Keepsake) -> [u8; 2] {
    let kind = match what {
        Keepsake::Socket => 0,
        Keepsake::Journal => 1,
    };
    [u8::try_from(lane).unwrap(), kind]
}

fn hear_remains(control: &OwnedFd) -> LaneRemains {
    let (word, descriptors) = hear(control).unwrap();
    let mut descriptors = descriptors.into_iter();
    LaneRemains {
        socket: (word[0] != 0).then(|| descriptors.next().unwrap()),
        journal: (word[1] != 0).then(|| descriptors.next().unwrap()),
    }
}

fn tell(socket: &OwnedFd, word: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let word = [IoSlice::new(word)];
    rustix::net::sendmsg(socket, &word, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn hear(socket: &OwnedFd) -> Option<([u8; 2], Vec<OwnedFd>)> {
    let mut word = [0; 2];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut word)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = rustix::net::recvmsg(socket, &mut parts, &mut control, flags).ok()?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    (got.bytes > 0).then_some((word, descriptors))
}

/// A file as a backend.
struct FileBackend {
    medium: File,
    geometry: Geometry,
    queue: Vec<Request>,
}

impl FileBackend {
    fn new(medium: File) -> Self {
        let mut geometry = super::Medium::new(SIZE).open().geometry().clone();
        geometry.can_write_zeroes = false;
        Self {
            medium,
            geometry,
            queue: Vec::new(),
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

    fn submit(&mut self, request: Request) -> Result<(), Request> {
        self.queue.push(request);
        Ok(())
    }

    fn poll_completion(&mut self, _cx: &mut Context<'_>) -> Poll<Completion> {
        let Some(request) = self.queue.pop() else {
            return Poll::Pending;
        };
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
        assert!(
            self.queue.is_empty(),
            "a backend is closed when nothing is under way"
        );
    }
}
