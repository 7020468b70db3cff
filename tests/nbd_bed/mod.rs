//! What the NBD tests stand on: a backend in memory whose answers can be held, failed and reordered; programs with a
//! deadline.

use std::collections::VecDeque;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use cinder_nbd::block::{Backend, Completion, ErrorKind, Extent, Geometry, Operation, Request};

/// Requests a memory backend takes at once; fewer than a lane, so that lanes meet the limit.
const SLOTS: usize = 32;

/// A medium in memory, shared by all backends that were opened on it.
#[derive(Clone)]
pub(crate) struct Medium {
    geometry: Geometry,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    data: Vec<u8>,
    /// Answers are kept back while this is set.
    held: bool,
    /// The next requests fail with this.
    failing: Option<ErrorKind>,
    wakers: Vec<Waker>,
    counts: Counts,
}

/// What the backends of a medium did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) opened: u32,
    pub(crate) closed: u32,
    pub(crate) reads: u32,
    pub(crate) writes: u32,
    pub(crate) fua: u32,
    pub(crate) flushes: u32,
    pub(crate) trims: u32,
    pub(crate) zeroes: u32,
    pub(crate) caches: u32,
    pub(crate) statuses: u32,
}

impl Medium {
    pub(crate) fn new(size_bytes: usize) -> Self {
        Self::with(size_bytes, |_| {})
    }

    pub(crate) fn with(size_bytes: usize, change: impl FnOnce(&mut Geometry)) -> Self {
        let mut geometry = Geometry {
            size_bytes: u64::try_from(size_bytes).unwrap(),
            block_bytes: 512,
            physical_block_bytes: 4096,
            preferred_bytes: 64 << 10,
            request_bytes_max: 32 << 20,
            read_only: false,
            write_cache: true,
            can_trim: true,
            can_write_zeroes: true,
            rotational: false,
        };
        change(&mut geometry);
        let state = State {
            data: vec![0; size_bytes],
            ..State::default()
        };
        Self {
            geometry,
            state: Arc::new(Mutex::new(state)),
        }
    }

    pub(crate) fn open(&self) -> MemoryBackend {
        self.state().counts.opened += 1;
        MemoryBackend {
            medium: self.clone(),
            queue: VecDeque::new(),
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.state().counts
    }

    pub(crate) fn bytes(&self, range: std::ops::Range<usize>) -> Vec<u8> {
        self.state().data[range].to_vec()
    }

    pub(crate) fn fill(&self, at: usize, bytes: &[u8]) {
        self.state().data[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Keeps answers back, or lets them go.
    pub(crate) fn hold(&self, held: bool) {
        let mut state = self.state();
        state.held = held;
        state.wakers.drain(..).for_each(Waker::wake);
    }

    pub(crate) fn fail(&self, kind: Option<ErrorKind>) {
        self.state().failing = kind;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// A backend on a medium. Writes take effect when they complete; completions come newest first.
pub(crate) struct MemoryBackend {
    medium: Medium,
    queue: VecDeque<Request>,
}

impl Backend for MemoryBackend {
    fn geometry(&self) -> &Geometry {
        &self.medium.geometry
    }

    fn free_slots(&self) -> usize {
        SLOTS - self.queue.len()
    }

    fn submit(&mut self, request: Request) -> Result<(), Request> {
        if self.free_slots() == 0 {
            return Err(request);
        }
        self.queue.push_back(request);
        Ok(())
    }

    fn poll_completion(&mut self, cx: &mut Context<'_>) -> Poll<Completion> {
        let mut state = self.medium.state();
        let next = if state.held {
            None
        } else {
            self.queue.pop_back()
        };
        let Some(request) = next else {
            state.wakers.push(cx.waker().clone());
            return Poll::Pending;
        };
        let token = request.token;
        let result = match (state.failing, &request.operation) {
            (Some(kind), _) => Err(kind),
            // As a LUN: what keeps its space has to be written.
            (None, Operation::WriteZeroes { fast, no_hole, .. }) if *fast && *no_hole => {
                Err(ErrorKind::NotFast)
            }
            (None, _) => Ok(execute(&mut state, &self.medium.geometry, request)),
        };
        Poll::Ready(Completion { token, result })
    }

    async fn close(self) {
        assert!(
            self.queue.is_empty(),
            "a backend is closed when nothing is under way"
        );
        self.medium.state().counts.closed += 1;
    }
}

fn execute(state: &mut State, geometry: &Geometry, request: Request) -> BytesMut {
    let at = usize::try_from(request.offset).unwrap();
    let counts = &mut state.counts;
    let block = u64::from(geometry.block_bytes);
    assert!(request.offset.is_multiple_of(block), "requests are aligned");
    match request.operation {
        Operation::Read(mut buffer) => {
            counts.reads += 1;
            assert!(buffer.len() <= usize::try_from(geometry.request_bytes_max).unwrap());
            let length = buffer.len();
            buffer.copy_from_slice(&state.data[at..at + length]);
            return buffer;
        }
        Operation::Write { data, fua } => {
            counts.writes += 1;
            counts.fua += u32::from(fua);
            assert!(data.len() <= usize::try_from(geometry.request_bytes_max).unwrap());
            state.data[at..at + data.len()].copy_from_slice(&data);
        }
        Operation::Flush => counts.flushes += 1,
        // Trimmed ranges read as a pattern, so that nobody can rely on zeroes.
        Operation::Trim { len } => {
            counts.trims += 1;
            state.data[at..at + usize::try_from(len).unwrap()].fill(0xdd);
        }
        Operation::WriteZeroes { len, fua, .. } => {
            counts.zeroes += 1;
            counts.fua += u32::from(fua);
            state.data[at..at + usize::try_from(len).unwrap()].fill(0);
        }
        Operation::Cache { len } => {
            counts.caches += 1;
            assert!(at + usize::try_from(len).unwrap() <= state.data.len());
        }
        Operation::BlockStatus { len, one } => {
            counts.statuses += 1;
            return block_status(&state.data[at..at + usize::try_from(len).unwrap()], one);
        }
    }
    BytesMut::new()
}

/// Stretches of 4 KiB that hold nothing but zeroes are holes; a few extents at a time, so that clients ask again.
fn block_status(data: &[u8], one: bool) -> BytesMut {
    let most = if one { 1 } else { 3 };
    let mut packed = BytesMut::new();
    for page in data.chunks(4096) {
        let empty = page.iter().all(|byte| *byte == 0);
        let extent = Extent {
            bytes: u32::try_from(page.len()).unwrap(),
            is_hole: empty,
            reads_zero: empty,
        };
        let before = packed.len();
        extent.pack(&mut packed);
        if packed.len() > most * Extent::PACKED_BYTES {
            packed.truncate(before);
            break;
        }
    }
    packed
}

/// Runs a program of the host to its end, at most two minutes; a missing one fails the test with what to install.
#[track_caller]
pub(crate) fn run(program: &str, arguments: &[&str]) -> Output {
    let package = match program {
        "nbdinfo" | "nbdcopy" => "libnbd-bin",
        "nbdsh" => "libnbd-bin python3-libnbd",
        "qemu-io" | "qemu-img" => "qemu-utils",
        other => other,
    };
    // nbdsh is a script for the first python3 of the path, which may not be the one that the package is for.
    let command: &[&str] = if program == "nbdsh" {
        &["/usr/bin/python3", "-m", "nbd"]
    } else {
        &[program]
    };
    let output = Command::new("timeout")
        .args(["--kill-after=5", "120"])
        .args(command)
        .args(arguments)
        .output()
        .expect("coreutils has timeout");
    let status = output.status.code();
    let missing = matches!(status, Some(126 | 127))
        || String::from_utf8_lossy(&output.stderr).contains("No module named");
    assert!(!missing, "{program} is missing: apt-get install {package}");
    assert_ne!(
        status,
        Some(124),
        "{program} {arguments:?} took more than two minutes"
    );
    output
}

/// The same, and it must succeed; gives its standard output.
#[track_caller]
pub(crate) fn run_ok(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Waits for something that another thread or process does; ten seconds at most.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("waited ten seconds in vain for {what}");
}
