//! Waiting awake: a lane whose next event is due within microseconds looks for it instead of going to sleep.
//!
//! A room of its own because it is a policy, and neither the front nor the backend has a part in it.
//!
//! A thread that sleeps is woken by whoever sends to it, at that one's cost, and on another processor: an interrupt, and in
//! a virtual machine two exits to the hypervisor. With one request under way that is most of its latency. So a lane with
//! little under way waits awake for as long as such waits took of late, and sleeps at once when they take longer.
//!
//! Invariants:
//! 1. It only delays going to sleep: whoever polls registers its wakers before, and nothing is read here.
//! 2. A wait is never longer than `AWAKE_MAX`, and a lane whose waits are longer than that (a slow target, an idle client)
//!    soon does not wait awake at all.
//! 3. Whoever else wants the processor gets it (`sched_yield`); where there is only one, nothing waits awake.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The longest wait. Chosen freely: above what a target on a fast network takes, below what a sleep would cost twice.
const AWAKE_MAX: Duration = Duration::from_micros(64);
/// The first wait of one that may pay.
const AWAKE_FIRST: Duration = Duration::from_micros(16);
/// With more requests under way than this, sleeping lets answers gather, and one turn does the work of many.
const FEW: usize = 2;

static IS_ALLOWED: AtomicBool = AtomicBool::new(true);

/// Whether lanes that begin from now on may wait awake for what is due within microseconds, where that pays. True unless it is said
/// otherwise; one setting of the process.
pub fn set_busy_poll(is_allowed: bool) {
    IS_ALLOWED.store(is_allowed, Ordering::Relaxed);
}

/// How long a lane waits awake.
#[derive(Debug)]
pub(super) struct Vigil {
    is_possible: bool,
    /// For the client's next request, and for an answer of the backend: what each wait may take.
    windows: [Duration; 2],
    /// The wait under way, and which window is its.
    since: Option<(Instant, usize)>,
}

impl Vigil {
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            is_possible: processors > 1 && IS_ALLOWED.load(Ordering::Relaxed),
            windows: [Duration::ZERO; 2],
            since: None,
        }
    }

    /// Something moved: what the wait before it took decides about the next one.
    pub(super) fn end(&mut self) {
        if let Some((since, window)) = self.since.take() {
            self.windows[window] = next_window(self.windows[window], since.elapsed());
        }
    }

    /// Nothing moves, with so many requests `under_way`: waits until a descriptor can be read, or not at all. Which of them
    /// can be read.
    pub(super) fn keep(
        &mut self,
        under_way: usize,
        descriptors: [Option<BorrowedFd<'_>>; 2],
    ) -> [bool; 2] {
        let (true, ..=FEW, [Some(front), Some(backend)]) =
            (self.is_possible, under_way, descriptors)
        else {
            return [false; 2];
        };
        let window = usize::from(under_way > 0);
        let since = Instant::now();
        self.since = Some((since, window));
        let patience = self.windows[window];
        if patience.is_zero() {
            return [false; 2];
        }
        let mut watched = [
            PollFd::from_borrowed_fd(front, PollFlags::IN),
            PollFd::from_borrowed_fd(backend, PollFlags::IN),
        ];
        // An error here shows again, with its words, where the descriptor is read.
        while poll(&mut watched, Some(&Timespec::default())) == Ok(0) {
            if since.elapsed() >= patience {
                return [false; 2];
            }
            rustix::thread::sched_yield();
        }
        watched.map(|one| !one.revents().is_empty())
    }
}

/// After a wait that took so long: one that a longer window would have caught widens it, one that none can catch narrows it.
fn next_window(window: Duration, waited: Duration) -> Duration {
    if waited > AWAKE_MAX {
        let half = window / 2;
        if half < AWAKE_FIRST {
            Duration::ZERO
        } else {
            half
        }
    } else if waited > window {
        (window * 2).clamp(AWAKE_FIRST, AWAKE_MAX)
    } else {
        window
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    const US: Duration = Duration::from_micros(1);

    fn awake(windows: [Duration; 2]) -> Vigil {
        Vigil {
            is_possible: true,
            windows,
            since: None,
        }
    }

    #[test]
    fn a_window_follows_the_waits() {
        let mut window = Duration::ZERO;
        for expected in [16, 32, 64, 64] {
            // Longer than the window, and a longer one would have caught it.
            window = next_window(window, AWAKE_MAX.min(window + US));
            assert_eq!(window, expected * US);
        }
        assert_eq!(next_window(32 * US, 20 * US), 32 * US, "it was caught");
        for expected in [32, 16, 0, 0] {
            window = next_window(window, AWAKE_MAX + US);
            assert_eq!(window, expected * US);
        }
    }

    #[test]
    fn what_can_be_read_is_told_apart() {
        let (front, mut client) = UnixStream::pair().unwrap();
        let (backend, mut target) = UnixStream::pair().unwrap();
        let mut vigil = awake([Duration::from_mins(1); 2]);
        let mut keep =
            |under_way| vigil.keep(under_way, [Some(front.as_fd()), Some(backend.as_fd())]);
        target.write_all(b"x").unwrap();
        assert_eq!(keep(1), [false, true]);
        client.write_all(b"x").unwrap();
        assert_eq!(keep(0), [true, true]);
        // A peer that has gone is something to read, too.
        drop((client, target));
        assert_eq!(keep(2), [true, true]);
    }

    #[test]
    fn nothing_is_waited_for_where_it_does_not_pay() {
        let (quiet, _peer) = UnixStream::pair().unwrap();
        let both = [Some(quiet.as_fd()), Some(quiet.as_fd())];
        let endless = [Duration::from_mins(1); 2];
        assert_eq!(awake([Duration::ZERO; 2]).keep(1, both), [false; 2]);
        assert_eq!(awake(endless).keep(FEW + 1, both), [false; 2]);
        assert_eq!(
            awake(endless).keep(1, [Some(quiet.as_fd()), None]),
            [false; 2]
        );
        let mut alone = awake(endless);
        alone.is_possible = false;
        assert_eq!(alone.keep(1, both), [false; 2]);
    }

    #[test]
    fn a_wait_for_nothing_ends_and_narrows_the_window() {
        let (quiet, _peer) = UnixStream::pair().unwrap();
        let mut vigil = awake([AWAKE_FIRST; 2]);
        assert_eq!(vigil.keep(1, [Some(quiet.as_fd()); 2]), [false; 2]);
        // It sleeps on, longer than anything is waited for.
        let begun = vigil.since.take().unwrap();
        vigil.since = begun
            .0
            .checked_sub(2 * AWAKE_MAX)
            .map(|since| (since, begun.1));
        assert!(vigil.since.is_some(), "the clock is older than that");
        vigil.end();
        assert_eq!(vigil.windows, [AWAKE_FIRST, Duration::ZERO]);
    }
}
