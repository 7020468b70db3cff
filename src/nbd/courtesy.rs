//! Giving way: a lane with much under way lets others run before it looks at what woke it.
//!
//! A room of its own for the same reason as `vigil`, whose opposite it is.
//!
//! The first of many answers wakes the lane, and the scheduler likes to run it at once in the place of whoever was about
//! to send the others: on a host whose processors are all at work, each answer then costs a system call and two switches.
//! One `sched_yield` later several have come, and one turn does the work of many.
//!
//! Invariants:
//! 1. Who computes and never sleeps would keep the processor for milliseconds: a yield that took long is followed by
//!    turns without one, twice as many each time.
//! 2. A lane with little under way never yields here: its latency is what counts.

use std::time::{Duration, Instant};

/// Requests under way beyond which there is something to gather; chosen freely.
const MANY: usize = 8;
/// A yield that takes longer was to somebody who does not sleep soon. Chosen freely: above what tens of answers take to be
/// made, far below the shortest slice that the scheduler gives.
const LONG: Duration = Duration::from_micros(300);
/// Fewest and most turns without a yield after a long one; the most are done in a second or so.
const TURNS_MIN: u32 = 64;
const TURNS_MAX: u32 = 1 << 13;

/// When a lane gives way.
#[derive(Debug, Default)]
pub(super) struct Courtesy {
    /// Turns until the next yield.
    wait: u32,
    /// Turns that are waited after a yield.
    penalty: u32,
}

impl Courtesy {
    /// At the begin of a turn with so many requests `under_way`.
    pub(super) fn give_way(&mut self, under_way: usize) {
        if under_way <= MANY {
            return;
        }
        if self.wait > 0 {
            self.wait -= 1;
            return;
        }
        let begun = Instant::now();
        rustix::thread::sched_yield();
        self.judge(begun.elapsed());
    }

    fn judge(&mut self, took: Duration) {
        if took > LONG {
            self.penalty = (self.penalty * 2).clamp(TURNS_MIN, TURNS_MAX);
        } else {
            // Slowly, so that one short yield among long ones does not bring them back.
            self.penalty -= self.penalty.div_ceil(8);
        }
        self.wait = self.penalty;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_come_back_soon_is_given_way_ever_less() {
        let mut courtesy = Courtesy::default();
        let mut waits = Vec::new();
        for _ in 0..16 {
            courtesy.judge(LONG * 2);
            waits.push(courtesy.wait);
        }
        assert!(
            waits
                .windows(2)
                .all(|pair| pair[1] == (pair[0] * 2).min(TURNS_MAX)),
            "{waits:?}"
        );
        assert_eq!((waits[0], waits[15]), (TURNS_MIN, TURNS_MAX));
        // Turns pass, and each short yield takes an eighth of it back, until there is none.
        for _ in 0..TURNS_MAX {
            courtesy.give_way(MANY + 1);
        }
        assert_eq!(courtesy.wait, 0);
        courtesy.judge(LONG);
        assert_eq!(courtesy.wait, TURNS_MAX / 8 * 7);
        for _ in 0..100 {
            courtesy.judge(LONG);
        }
        assert_eq!(courtesy.wait, 0);
    }

    #[test]
    fn little_under_way_never_gives_way() {
        let mut courtesy = Courtesy {
            wait: 3,
            penalty: 4,
        };
        courtesy.give_way(MANY);
        assert_eq!(courtesy.wait, 3);
        courtesy.give_way(MANY + 1);
        assert_eq!(courtesy.wait, 2);
    }
}
