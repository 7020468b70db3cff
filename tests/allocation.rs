//! The data path allocates nothing: a lane between an NBD client and an iSCSI session, whose thread's allocations are
//! counted while it does steady work. The kernel may be waiting for that work in order to have memory at all.

#![expect(
    unsafe_code,
    reason = "an allocator that counts is an `unsafe impl`, whoever writes it"
)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use cinder_nbd::lun::{Lun, LunSpec};
use cinder_nbd::nbd::{ExportOptions, OpenError, serve_export};
use iscsi::proto::{Isid, SessionParams};
use support::nbd::Client;
use support::target::{Disk, Target};
use tokio_util::sync::CancellationToken;

const IQN: &str = "iqn.2026-11.test:allocation";
const MIB: u64 = 1 << 20;
/// Requests under way at once.
const DEPTH: u64 = 32;

/// Allocations, growths included, of threads that are `COUNTED`.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

fn count() {
    // A thread that ends has no such value any more, and is none of ours.
    if COUNTED.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: every call goes to the system's allocator unchanged, which keeps the contract; counting neither allocates nor
// unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, place: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(place, layout, bytes) }
    }
    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test, as the count is the whole program's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steady_work_of_a_lane_allocates_nothing() {
    let target = Target::builder()
        .iqn(IQN)
        .lun(1, Disk::null(64 * MIB))
        .start()
        .await;
    let spec = spec(&target.portal());
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("export.sock");
    let shutdown = CancellationToken::new();
    let open = move || {
        // On the lane's own thread, which is from here on counted.
        COUNTED.set(true);
        let spec = spec.clone();
        async move { Ok::<_, OpenError>(Lun::open(&spec).await?) }
    };
    let export = tokio::spawn(serve_export(
        ExportOptions::new(&socket),
        open,
        shutdown.clone(),
    ));
    let client = tokio::task::spawn_blocking(move || exercise(&socket));
    let counts = client.await.unwrap();
    shutdown.cancel();
    export.await.unwrap().unwrap();

    assert!(counts.opening > 0, "the lane's thread is counted");
    for (what, allocations) in counts.steady {
        assert_eq!(allocations, 0, "{what}");
    }
}

struct Counts {
    opening: u64,
    steady: Vec<(String, u64)>,
}

fn exercise(socket: &Path) -> Counts {
    let mut client = connect(socket);
    let opening = ALLOCATIONS.load(Ordering::SeqCst);
    let mut steady = Vec::new();
    for bytes in [4096, 65536, 1 << 20] {
        for writes in [false, true] {
            // What is kept for use again is filled by the first rounds.
            for _ in 0..4 {
                batch(&mut client, writes, bytes);
            }
            let before = ALLOCATIONS.load(Ordering::SeqCst);
            for _ in 0..16 {
                batch(&mut client, writes, bytes);
            }
            let what = if writes { "writes" } else { "reads" };
            let allocations = ALLOCATIONS.load(Ordering::SeqCst) - before;
            steady.push((format!("512 {what} of {bytes} bytes"), allocations));
        }
    }
    client.disconnect().unwrap();
    Counts { opening, steady }
}

/// The export's socket is there a moment after it was started.
fn connect(socket: &Path) -> Client {
    for _ in 0..1000 {
        if let Ok(client) = Client::connect_unix(socket, "") {
            return client;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the export did not listen within ten seconds");
}

/// As many requests as fit, and all their answers.
fn batch(client: &mut Client, writes: bool, bytes: u32) {
    let data = vec![0x5a; usize::try_from(bytes).unwrap()];
    let mut cookies = Vec::new();
    let depth = if bytes >= 1 << 20 { 8 } else { DEPTH };
    for number in 0..depth {
        let offset = number * u64::from(bytes);
        let sent = if writes {
            client.send(1, 0, offset, bytes, &data)
        } else {
            client.send(0, 0, offset, bytes, &[])
        };
        cookies.push(sent.unwrap());
    }
    for cookie in cookies {
        client.wait(cookie).unwrap();
    }
}

fn spec(portal: &str) -> LunSpec {
    let name = "iqn.2026-11.org.cinder-nbd:test".parse().unwrap();
    let isid = Isid::random([7, 7, 7], 2);
    let mut session = SessionParams::new(portal.parse().unwrap(), name, isid);
    session.target_name = Some(IQN.parse().unwrap());
    LunSpec::new(session, 1)
}
