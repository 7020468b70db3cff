//! When which fault is made: counted in bytes, drawn from a seed.
//!
//! Faults come one after the other. For each, three things are drawn: what, which way, and how many more bytes go
//! that way (over all connections together) before it is made. How the kernel cuts a stream into reads has no part in
//! it; how the two peers share the bytes between the two ways has, and so a seed gives the same faults at the same
//! distances but not the same run.
//!
//! ```text
//!   to the target   ......1000 bytes......X                     ...250 bytes...X
//!   to the client   .........................70000 bytes......X
//!                                  fault 1               fault 2         fault 3
//! ```

use std::ops::Range;
use std::time::Duration;

use super::{Fault, Way};

/// What a plan may choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `Fault::Kill`.
    Kill,
    /// `Fault::Close`.
    Close,
    /// `Fault::HalfClose`, either way.
    HalfClose,
    /// `Fault::Stall`.
    Stall,
    /// `Fault::Corrupt`, either way.
    Corrupt,
    /// `Fault::Refuse`.
    Refuse,
}

/// Faults by chance. Without a change: 200 of all kinds but corruption, up to 1 MiB apart, pauses up to 50 ms.
#[derive(Clone, Debug)]
pub struct Plan {
    seed: u64,
    kinds: Vec<Kind>,
    faults: u64,
    gap_bytes_max: u64,
    pause_max: Duration,
    uncorrupted_bytes: u64,
}

impl Plan {
    /// The plan of this seed.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            kinds: vec![
                Kind::Kill,
                Kind::Close,
                Kind::HalfClose,
                Kind::Stall,
                Kind::Refuse,
            ],
            faults: 200,
            gap_bytes_max: 1 << 20,
            pause_max: Duration::from_millis(50),
            uncorrupted_bytes: 0,
        }
    }

    /// The kinds to choose from, all alike; one that stands twice comes twice as often.
    #[must_use]
    pub fn kinds(mut self, kinds: &[Kind]) -> Self {
        self.kinds = kinds.to_vec();
        self
    }

    /// After so many the connections are left in peace.
    #[must_use]
    pub fn faults(mut self, count: u64) -> Self {
        self.faults = count;
        self
    }

    /// At most so many bytes between two faults. A quarter of the gaps is far shorter: those faults meet a login.
    #[must_use]
    pub fn gap_bytes_max(mut self, bytes: u64) -> Self {
        self.gap_bytes_max = bytes;
        self
    }

    /// The longest stall, and the longest time without a listener.
    #[must_use]
    pub fn pause_max(mut self, pause: Duration) -> Self {
        self.pause_max = pause;
        self
    }

    /// So many bytes at the beginning of a connection, each way, are not corrupted: digests do not cover a login.
    #[must_use]
    pub fn uncorrupted_bytes(mut self, bytes: u64) -> Self {
        self.uncorrupted_bytes = bytes;
        self
    }
}

/// A plan that is being carried out.
#[derive(Debug)]
pub(super) struct Course {
    plan: Plan,
    chance: Chance,
    left: u64,
    next: Next,
}

#[derive(Debug)]
struct Next {
    kind: Kind,
    way: Way,
    gap_bytes: u64,
}

impl Course {
    pub(super) fn new(plan: Plan) -> Self {
        let mut chance = Chance(plan.seed);
        Self {
            left: if plan.kinds.is_empty() {
                0
            } else {
                plan.faults
            },
            next: Next::draw(&plan, &mut chance),
            chance,
            plan,
        }
    }

    /// `count` bytes are about to go this way, on a connection that has carried `before` in that way: how many of
    /// them go before a fault, and which. With a fault at least one byte is left over.
    pub(super) fn take(&mut self, way: Way, before: u64, count: usize) -> (usize, Option<Fault>) {
        if self.left == 0 || way != self.next.way {
            return (count, None);
        }
        let mut gap = self.next.gap_bytes;
        if self.next.kind == Kind::Corrupt {
            gap = gap.max(self.plan.uncorrupted_bytes.saturating_sub(before));
        }
        match usize::try_from(gap) {
            Ok(gap) if gap < count => {
                let fault = self.fault();
                self.left -= 1;
                self.next = Next::draw(&self.plan, &mut self.chance);
                (gap, Some(fault))
            }
            _ => {
                let carried = u64::try_from(count).unwrap_or(u64::MAX);
                self.next.gap_bytes = self.next.gap_bytes.saturating_sub(carried);
                (count, None)
            }
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.left == 0
    }

    fn fault(&mut self) -> Fault {
        match self.next.kind {
            Kind::Kill => Fault::Kill,
            Kind::Close => Fault::Close,
            Kind::HalfClose => Fault::HalfClose(self.next.way),
            Kind::Stall => Fault::Stall(self.pause()),
            Kind::Corrupt => Fault::Corrupt(self.next.way),
            Kind::Refuse => Fault::Refuse(self.pause()),
        }
    }

    fn pause(&mut self) -> Duration {
        let most = u64::try_from(self.plan.pause_max.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.chance.within(0..most.saturating_add(1)))
    }
}

impl Next {
    fn draw(plan: &Plan, chance: &mut Chance) -> Self {
        let kinds = u64::try_from(plan.kinds.len()).unwrap_or(u64::MAX);
        let kind = usize::try_from(chance.within(0..kinds)).unwrap_or(0);
        let way = if chance.within(0..2) == 0 {
            Way::ToTarget
        } else {
            Way::ToClient
        };
        let most = plan.gap_bytes_max.max(1);
        let most = if chance.within(0..SHORT_GAP_EVERY) == 0 {
            most.min(SHORT_GAP_BYTES)
        } else {
            most
        };
        Self {
            kind: plan.kinds.get(kind).copied().unwrap_or(Kind::Kill),
            way,
            gap_bytes: chance.within(0..most),
        }
    }
}

/// Numbers from a seed: splitmix64, which is good enough to scatter faults and fits in four lines.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn within(&mut self, range: Range<u64>) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        range.start + word % (range.end - range.start).max(1)
    }
}

/// One gap in so many is short.
const SHORT_GAP_EVERY: u64 = 4;
/// A login with its probes moves about so much each way.
const SHORT_GAP_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds bytes in pieces and notes after how many of each way which fault came.
    fn run(seed: u64, pieces: &[usize]) -> Vec<(u64, Fault)> {
        let mut course = Course::new(Plan::new(seed).faults(20).gap_bytes_max(5000));
        let mut carried = [0; 2];
        let mut seen = Vec::new();
        for piece in pieces.iter().cycle().take(200_000) {
            for (way, carried) in [Way::ToTarget, Way::ToClient].into_iter().zip(&mut carried) {
                let mut rest = *piece;
                while rest > 0 {
                    let (gone, fault) = course.take(way, *carried, rest);
                    rest -= gone;
                    *carried += u64::try_from(gone).unwrap();
                    seen.extend(fault.map(|fault| (*carried, fault)));
                }
            }
        }
        seen
    }

    #[test]
    fn a_seed_gives_the_same_faults_and_another_others() {
        let one = run(7, &[100, 3, 64]);
        assert_eq!(one.len(), 20);
        assert_eq!(one, run(7, &[100, 3, 64]));
        assert_ne!(one, run(8, &[100, 3, 64]));
        // However the stream is cut, the faults are the same in the same order.
        let faults = |seen: Vec<(u64, Fault)>| -> Vec<Fault> {
            seen.into_iter().map(|(_, fault)| fault).collect()
        };
        assert_eq!(faults(one), faults(run(7, &[1])));
    }

    #[test]
    fn the_beginning_of_a_connection_is_not_corrupted() {
        let plan = Plan::new(3)
            .kinds(&[Kind::Corrupt])
            .gap_bytes_max(10)
            .faults(1000)
            .uncorrupted_bytes(500);
        let mut course = Course::new(plan);
        let mut corrupted = 0;
        for before in (0..1000).cycle().take(100_000) {
            for way in [Way::ToTarget, Way::ToClient] {
                let (gone, fault) = course.take(way, before, 1);
                if fault.is_some() {
                    assert!(before >= 500, "byte {before} was corrupted");
                    assert_eq!(gone, 0);
                    corrupted += 1;
                }
            }
        }
        assert_eq!(corrupted, 1000);
    }

    #[test]
    fn no_kind_means_no_fault() {
        let mut course = Course::new(Plan::new(1).kinds(&[]));
        assert_eq!(course.take(Way::ToTarget, 0, 1 << 30), (1 << 30, None));
        assert_eq!(course.take(Way::ToClient, 0, 1 << 30), (1 << 30, None));
    }
}
