//! A device that grows while it is used: from what one lane's backend has found to what the kernel shows.
//!
//! A room of its own because all lanes of a device must agree before the kernel is told: it would send a request for
//! the new part to any of them.
//! Source: `drivers/block/nbd.c` (`nbd_genl_reconfigure`, `nbd_genl_size_set`).
//!
//! ```text
//!   lane 0's backend: has grown --> agreed, wakes the other lanes
//!   each lane, in its next turn: tells its backend, then acknowledges
//!   the last to acknowledge: a thread that lives for one RECONFIGURE with SIZE_BYTES
//! ```
//!
//! Invariants:
//! 1. The kernel hears of a size only when every lane has acknowledged it, and a lane acknowledges before it receives
//!    anything that was sent later. A lane that is gone never does: then the device keeps its size.
//! 2. The size never travels with new sockets, and never shrinks. The driver freezes the queue for it and waits for
//!    what is under way, while it holds a lock that every netlink family needs: with a lane dead that would wait for
//!    the requests that only new sockets can free.
//! 3. One thread at a time tells the kernel; no lane waits for it.
//!
//! Costs: a compare of two pointers and a load a turn.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::block::{Backend, Completion, Geometry, Request};
use crate::sys::netlink::NbdFamily;

use super::sysfs::Sysfs;

/// How often the kernel is told again; it refuses while it is busy with the device.
const TRIES: u32 = 5;
/// Between two of these; chosen freely.
const PAUSE: Duration = Duration::from_secs(1);

/// What the lanes of one device know of its size.
#[derive(Debug)]
pub(super) struct Growth {
    /// The largest size that a lane's backend has found.
    agreed: AtomicU64,
    lanes: Box<[Mark]>,
    device: OnceLock<Device>,
    /// A thread is at work.
    is_telling: AtomicBool,
}

/// One lane.
#[derive(Debug, Default)]
struct Mark {
    /// The size that it takes requests for; zero as long as its backend is not open.
    acknowledged: AtomicU64,
    /// Locked when a lane begins to run and when the device grows, never in between.
    waker: Mutex<Option<Waker>>,
}

impl Mark {
    fn register(&self, waker: &Waker) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
    }

    fn wake(&self) {
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waker) = &*waker {
            waker.wake_by_ref();
        }
    }
}

#[derive(Debug)]
struct Device {
    index: u32,
    identifier: String,
}

impl Growth {
    pub(super) fn new(lanes: usize) -> Arc<Self> {
        Arc::new(Self {
            agreed: AtomicU64::new(0),
            lanes: (0..lanes).map(|_| Mark::default()).collect(),
            device: OnceLock::new(),
            is_telling: AtomicBool::new(false),
        })
    }

    /// The backend of a lane, in `0..lanes`, whose growth is seen, and that hears of the others'.
    pub(super) fn watch<B: Backend>(self: &Arc<Self>, lane: usize, backend: B) -> Watched<B> {
        let watched = Watched {
            shown: backend.geometry().size_bytes,
            backend,
            growth: Arc::clone(self),
            lane,
            registered: None,
        };
        self.agree(watched.shown);
        self.acknowledge(lane, watched.shown);
        watched
    }

    /// From now on the kernel has the device, and is told.
    pub(super) fn begin(self: &Arc<Self>, index: u32, identifier: &str) {
        let identifier = identifier.to_owned();
        if self.device.set(Device { index, identifier }).is_ok() {
            self.tell();
        }
    }

    fn agree(&self, size_bytes: u64) {
        if self.agreed.fetch_max(size_bytes, Ordering::AcqRel) < size_bytes {
            self.lanes.iter().for_each(Mark::wake);
        }
    }

    fn acknowledge(self: &Arc<Self>, lane: usize, size_bytes: u64) {
        self.lanes[lane]
            .acknowledged
            .store(size_bytes, Ordering::Release);
        self.tell();
    }

    /// What every lane takes requests for.
    fn common(&self) -> u64 {
        let sizes = self
            .lanes
            .iter()
            .map(|lane| lane.acknowledged.load(Ordering::Acquire));
        sizes.min().unwrap_or_default()
    }

    /// Starts the thread that tells the kernel, if there is something to tell and none is at work.
    fn tell(self: &Arc<Self>) {
        let Some(device) = self.device.get() else {
            return;
        };
        let common = self.common();
        if common < self.agreed.load(Ordering::Acquire)
            || Sysfs::of(device.index)
                .size_bytes()
                .is_none_or(|shown| shown >= common)
            || self.is_telling.swap(true, Ordering::AcqRel)
        {
            return;
        }
        let growth = Arc::clone(self);
        let thread = std::thread::Builder::new().name("nbd-resize".to_owned());
        if let Err(error) = thread.spawn(move || growth.work()) {
            self.is_telling.store(false, Ordering::Release);
            tracing::error!(
                "nbd{} keeps its size of before, as no thread can be started: {error}",
                device.index
            );
        }
    }

    /// The thread.
    fn work(self: Arc<Self>) {
        let Some(device) = self.device.get() else {
            return;
        };
        let size_bytes = self.common();
        device.resize(size_bytes);
        self.is_telling.store(false, Ordering::Release);
        if self.common() > size_bytes {
            self.tell();
        }
    }
}

impl Device {
    fn resize(&self, size_bytes: u64) {
        let index = self.index;
        let sysfs = Sysfs::of(index);
        let mut tries = 0;
        loop {
            let told = NbdFamily::open()
                .and_then(|mut family| family.resize(index, &self.identifier, size_bytes));
            // sysfs is the witness, whatever the answer was.
            if sysfs.size_bytes() == Some(size_bytes) {
                return tracing::info!("nbd{index} has grown to {size_bytes} bytes");
            }
            tries += 1;
            let why = told
                .err()
                .map_or_else(|| "without a reason".to_owned(), |error| error.to_string());
            if tries == TRIES {
                return tracing::error!(
                    "nbd{index} keeps its size, though the volume has {size_bytes} bytes now: the kernel refuses ({why}); detach and attach it to use them"
                );
            }
            tracing::debug!("nbd{index} is not {size_bytes} bytes yet: {why}");
            std::thread::sleep(PAUSE);
        }
    }
}

/// A backend of one lane of several.
#[derive(Debug)]
pub(super) struct Watched<B> {
    backend: B,
    growth: Arc<Growth>,
    lane: usize,
    /// The size that the lane's front was told.
    shown: u64,
    /// The waker that `growth` has of us.
    registered: Option<Waker>,
}

impl<B: Backend> Backend for Watched<B> {
    fn geometry(&self) -> &Geometry {
        self.backend.geometry()
    }

    fn free_slots(&self) -> usize {
        self.backend.free_slots()
    }

    fn submit(&mut self, request: Request) -> Result<(), Request> {
        self.backend.submit(request)
    }

    fn poll_completion(&mut self, cx: &mut Context<'_>) -> Poll<Completion> {
        let polled = self.backend.poll_completion(cx);
        let is_known = |waker: &Waker| waker.will_wake(cx.waker());
        if polled.is_pending() && !self.registered.as_ref().is_some_and(is_known) {
            self.growth.lanes[self.lane].register(cx.waker());
            self.registered = Some(cx.waker().clone());
        }
        polled
    }

    /// Asked after `poll_completion`, so that a size which another lane finds later wakes us.
    fn take_growth(&mut self) -> Option<u64> {
        if let Some(size_bytes) = self.backend.take_growth() {
            self.growth.agree(size_bytes);
        }
        let agreed = self.growth.agreed.load(Ordering::Acquire);
        if agreed <= self.shown {
            return None;
        }
        self.shown = agreed;
        self.backend.handle_growth(agreed);
        self.growth.acknowledge(self.lane, agreed);
        Some(agreed)
    }

    fn handle_growth(&mut self, size_bytes: u64) {
        self.backend.handle_growth(size_bytes);
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.backend.descriptor()
    }

    fn handle_readable(&mut self) {
        self.backend.handle_readable();
    }

    fn close(self) -> impl Future<Output = ()> + Send {
        self.backend.close()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    /// A backend that finds out that it has grown when it is told to.
    struct Fake {
        geometry: Geometry,
        found: Option<u64>,
    }

    impl Backend for Fake {
        fn geometry(&self) -> &Geometry {
            &self.geometry
        }
        fn free_slots(&self) -> usize {
            1
        }
        fn submit(&mut self, request: Request) -> Result<(), Request> {
            Err(request)
        }
        fn poll_completion(&mut self, _: &mut Context<'_>) -> Poll<Completion> {
            Poll::Pending
        }
        fn take_growth(&mut self) -> Option<u64> {
            let found = self.found.take()?;
            self.handle_growth(found);
            Some(found)
        }
        fn handle_growth(&mut self, size_bytes: u64) {
            self.geometry.size_bytes = size_bytes;
        }
        async fn close(self) {}
    }

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn watched(growth: &Arc<Growth>, lane: usize) -> Watched<Fake> {
        let geometry = Geometry::plain();
        let found = None;
        growth.watch(lane, Fake { geometry, found })
    }

    #[test]
    fn a_size_is_common_only_when_every_lane_has_acknowledged_it() {
        let growth = Growth::new(2);
        let mut one = watched(&growth, 0);
        assert_eq!(growth.common(), 0, "the other one is not open yet");
        let mut other = watched(&growth, 1);
        assert_eq!(growth.common(), 1 << 20);

        one.backend.found = Some(2 << 20);
        assert_eq!(one.take_growth(), Some(2 << 20));
        assert_eq!(growth.common(), 1 << 20);
        assert_eq!(
            other.take_growth(),
            Some(2 << 20),
            "what the first has found"
        );
        assert_eq!(other.geometry().size_bytes, 2 << 20);
        assert_eq!(growth.common(), 2 << 20);
        assert_eq!((one.take_growth(), other.take_growth()), (None, None));
        // Its own session tells the second later what it knows already.
        other.backend.found = Some(2 << 20);
        assert_eq!(other.take_growth(), None);
        assert_eq!(growth.common(), 2 << 20);
    }

    #[test]
    fn a_lane_that_sleeps_is_woken_each_time_another_has_found_more() {
        let growth = Growth::new(2);
        let (mut one, mut other) = (watched(&growth, 0), watched(&growth, 1));
        let counter = Arc::new(Counter::default());
        let waker = Waker::from(Arc::clone(&counter));
        let cx = &mut Context::from_waker(&waker);
        assert!(other.poll_completion(cx).is_pending());
        for (round, mib) in [2_u64, 3, 5].into_iter().enumerate() {
            one.backend.found = Some(mib << 20);
            assert_eq!(one.take_growth(), Some(mib << 20));
            assert_eq!(counter.0.load(Ordering::SeqCst), round + 1);
            assert!(other.poll_completion(cx).is_pending());
            assert_eq!(other.take_growth(), Some(mib << 20));
        }
    }
}
