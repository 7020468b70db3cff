//! How much may be done in a second, and when the next thing may be begun.
//!
//! Source: the generic cell rate algorithm (ITU-T I.371, annex A); the keys are those of Cinder's `qos_specs`, whose meaning
//! is libvirt's `blkdeviotune`.
//!
//! Invariants:
//! 1. Over any long time no more is begun than was allowed; what is saved up for a burst is limited.
//! 2. All lanes of a volume share one `Quota`; it takes no lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A limit, and how far it may be exceeded for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Operations or bytes, not zero.
    pub per_second: u64,
    /// As much as may be done at once after a rest; none is a tenth of a second's.
    pub burst: Option<u64>,
}

/// The limits of a volume; none is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rates {
    /// Operations of any kind but flushes.
    pub total_iops: Option<Rate>,
    /// Reads.
    pub read_iops: Option<Rate>,
    /// Writes, also of zeroes, and discards.
    pub write_iops: Option<Rate>,
    /// Bytes read and written.
    pub total_bytes: Option<Rate>,
    /// Bytes read.
    pub read_bytes: Option<Rate>,
    /// Bytes written.
    pub write_bytes: Option<Rate>,
}

impl Rates {
    /// Whether there is any limit.
    pub fn is_limited(&self) -> bool {
        *self != Self::default()
    }
}

/// What a request does, as far as limits go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A read of so many bytes.
    Read(u64),
    /// A write of so many bytes; none for zeroes and discards, which carry no data.
    Write(u64),
    /// What no limit is for.
    Free,
}

/// The limits at work. Clones share them.
#[derive(Clone, Debug)]
pub struct Quota {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    start: Instant,
    total_iops: Option<Meter>,
    read_iops: Option<Meter>,
    write_iops: Option<Meter>,
    total_bytes: Option<Meter>,
    read_bytes: Option<Meter>,
    write_bytes: Option<Meter>,
}

impl Quota {
    /// With everything saved up that can be.
    pub fn new(rates: &Rates, now: Instant) -> Self {
        let meter = |rate: Option<Rate>| rate.map(Meter::new);
        Self {
            inner: Arc::new(Inner {
                start: now,
                total_iops: meter(rates.total_iops),
                read_iops: meter(rates.read_iops),
                write_iops: meter(rates.write_iops),
                total_bytes: meter(rates.total_bytes),
                read_bytes: meter(rates.read_bytes),
                write_bytes: meter(rates.write_bytes),
            }),
        }
    }

    /// Counts a request, and says when it may be begun: `now` at the earliest.
    pub fn take(&self, what: Use, now: Instant) -> Instant {
        let inner = &*self.inner;
        let (bytes, iops, of_kind) = match what {
            Use::Read(bytes) => (bytes, &inner.read_iops, &inner.read_bytes),
            Use::Write(bytes) => (bytes, &inner.write_iops, &inner.write_bytes),
            Use::Free => return now,
        };
        let since = nanoseconds(now.saturating_duration_since(inner.start));
        let meters = [
            (&inner.total_iops, 1),
            (iops, 1),
            (&inner.total_bytes, bytes),
            (of_kind, bytes),
        ];
        let due = meters
            .into_iter()
            .filter_map(|(meter, cost)| Some(meter.as_ref()?.take(cost, since)))
            .max();
        due.map_or(now, |due| now.max(inner.start + Duration::from_nanos(due)))
    }
}

/// One limit: the time at which all that was taken will have been paid for.
#[derive(Debug)]
struct Meter {
    /// Nanoseconds since the quota's start.
    paid_at: AtomicU64,
    per_second: u64,
    /// How far `paid_at` may lie ahead, in nanoseconds.
    tolerance: u64,
}

impl Meter {
    fn new(rate: Rate) -> Self {
        let per_second = rate.per_second.max(1);
        let burst = rate.burst.unwrap_or(per_second / 10);
        Self {
            paid_at: AtomicU64::new(0),
            per_second,
            tolerance: time_of(burst, per_second),
        }
    }

    /// When what costs so much may be begun.
    fn take(&self, cost: u64, now: u64) -> u64 {
        let time = time_of(cost, self.per_second);
        let pay = |paid_at: u64| Some(paid_at.max(now).saturating_add(time));
        // Nothing else is published with it.
        let before = self
            .paid_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay)
            .unwrap_or_else(|unchanged| unchanged);
        now.max(before.saturating_sub(self.tolerance))
    }
}

/// How long so much takes at this rate, in nanoseconds.
fn time_of(amount: u64, per_second: u64) -> u64 {
    let time = u128::from(amount) * 1_000_000_000 / u128::from(per_second);
    u64::try_from(time).unwrap_or(u64::MAX)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn iops(per_second: u64, burst: Option<u64>) -> Rates {
        Rates {
            total_iops: Some(Rate { per_second, burst }),
            ..Rates::default()
        }
    }

    #[test]
    fn what_is_beyond_the_burst_is_begun_at_the_rate() {
        let start = Instant::now();
        let quota = Quota::new(&iops(100, None), start);
        let due: Vec<Duration> = (0..30)
            .map(|_| quota.take(Use::Read(4096), start) - start)
            .collect();
        // A tenth of a second's, and the one that exceeds it, are free.
        assert!(due[..11].iter().all(Duration::is_zero), "{due:?}");
        assert_eq!(due[11], Duration::from_millis(10));
        assert_eq!(due[29], Duration::from_millis(190));
        // After a rest as much as before, and no more.
        let later = start + Duration::from_mins(5);
        let due: Vec<Duration> = (0..12)
            .map(|_| quota.take(Use::Write(512), later) - later)
            .collect();
        assert!(due[..11].iter().all(Duration::is_zero), "{due:?}");
        assert!(!due[11].is_zero());
    }

    #[test]
    fn each_kind_has_its_own_limits_and_the_strictest_counts() {
        let start = Instant::now();
        let rate = |per_second| {
            Some(Rate {
                per_second,
                burst: Some(0),
            })
        };
        let rates = Rates {
            read_bytes: rate(1 << 20),
            write_iops: rate(10),
            total_iops: rate(1000),
            ..Rates::default()
        };
        let quota = Quota::new(&rates, start);
        let after = |what| (quota.take(what, start) - start).as_millis();
        assert_eq!(after(Use::Read(1 << 20)), 0);
        assert_eq!(after(Use::Read(4096)), 1000);
        assert_eq!(after(Use::Write(1 << 30)), 2);
        assert_eq!(after(Use::Write(0)), 100);
        assert_eq!(after(Use::Free), 0);
    }

    #[test]
    fn lanes_share_one_quota() {
        let start = Instant::now();
        let quota = Quota::new(&iops(1000, Some(0)), start);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let lane = quota.clone();
                scope.spawn(move || {
                    for _ in 0..250 {
                        lane.take(Use::Read(512), start);
                    }
                });
            }
        });
        assert_eq!(
            quota.take(Use::Read(512), start) - start,
            Duration::from_secs(1)
        );
    }

    proptest! {
        /// Whatever is asked for and whenever: what is due within any time is that time's share and one burst.
        #[test]
        fn no_more_than_the_rate_over_time(
            per_second in 1_u64..10_000,
            burst in 0_u64..1000,
            pauses in prop::collection::vec(0_u64..50, 1..200),
        ) {
            let start = Instant::now();
            let quota = Quota::new(&iops(per_second, Some(burst)), start);
            let mut now = start;
            let mut due = Vec::new();
            for pause in pauses {
                now += Duration::from_millis(pause);
                let at = quota.take(Use::Write(1), now);
                prop_assert!(at >= now);
                due.push((at - start).as_nanos());
            }
            due.sort_unstable();
            for (first, from) in due.iter().enumerate() {
                for (last, to) in due.iter().enumerate().skip(first) {
                    let done = u128::try_from(last - first + 1).unwrap();
                    let share = (to - from) * u128::from(per_second) / 1_000_000_000;
                    prop_assert!(done <= share + u128::from(burst) + 3, "{done} in {} ns", to - from);
                }
            }
        }
    }
}
