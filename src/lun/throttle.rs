//! Requests that wait because their volume may not do more in a second.
//!
//! Invariants:
//! 1. What is limited is begun in the order it came in; what is not (flushes) does not wait: a flush is for what was
//!    answered before.
//! 2. A volume without limits has none of this, and pays one comparison a request.

use std::collections::VecDeque;
use std::time::Instant;

use crate::block::{Quota, Request, Use};

/// The queue of one lane.
#[derive(Debug)]
pub(super) struct Throttle {
    quota: Quota,
    waiting: VecDeque<(Instant, Request)>,
}

impl Throttle {
    pub(super) fn new(quota: Quota) -> Self {
        Self {
            quota,
            waiting: VecDeque::new(),
        }
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Gives the request back if it may be begun now; else keeps it.
    pub(super) fn admit(&mut self, request: Request, now: Instant) -> Option<Request> {
        let charge = request.charge();
        let due = self.quota.take(charge, now);
        if charge == Use::Free || (self.waiting.is_empty() && due <= now) {
            return Some(request);
        }
        self.waiting.push_back((due, request));
        None
    }

    /// The next one, if its time has come.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Request> {
        let (_, request) = self.waiting.pop_front_if(|(due, _)| *due <= now)?;
        Some(request)
    }

    /// What could not be begun is the next one again.
    pub(super) fn give_back(&mut self, request: Request, now: Instant) {
        self.waiting.push_front((now, request));
    }

    /// When the next one may be begun.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting.front().map(|(due, _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::BytesMut;

    use super::*;
    use crate::block::{Operation, Rate, Rates};

    fn request(token: u64, operation: Operation) -> Request {
        Request {
            token,
            operation,
            offset: 0,
        }
    }

    #[test]
    fn what_exceeds_the_limit_waits_in_order_and_flushes_pass() {
        let now = Instant::now();
        let rates = Rates {
            read_iops: Some(Rate {
                per_second: 10,
                burst: Some(0),
            }),
            ..Rates::default()
        };
        let mut throttle = Throttle::new(Quota::new(&rates, now));
        let read = |token| request(token, Operation::Read(BytesMut::zeroed(512)));
        assert!(throttle.admit(read(1), now).is_some());
        assert!(throttle.admit(read(2), now).is_none());
        assert!(throttle.admit(read(3), now).is_none());
        assert!(throttle.admit(request(4, Operation::Flush), now).is_some());
        assert_eq!(throttle.waiting(), 2);
        assert_eq!(throttle.deadline(), Some(now + Duration::from_millis(100)));
        assert!(throttle.poll(now + Duration::from_millis(99)).is_none());
        let later = now + Duration::from_secs(1);
        assert_eq!(throttle.poll(later).map(|one| one.token), Some(2));
        // Its time has come, but it is not its turn.
        assert!(throttle.admit(read(5), later).is_none());
        assert_eq!(throttle.poll(later).map(|one| one.token), Some(3));
        assert_eq!(throttle.poll(later).map(|one| one.token), Some(5));
    }
}
