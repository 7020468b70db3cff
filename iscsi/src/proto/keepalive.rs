//! When to ping, and when to give the target up.
//!
//! Any byte from the target is a sign of life: a ping leaves only after a quiet interval, and what
//! comes meanwhile counts as its answer. Pings on a loaded link kill healthy sessions otherwise.
//!
//! Source: RFC 7143 §10.6 (implementer's notes on NOP), §11.18.

use std::time::{Duration, Instant};

/// The clock hand of a session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keepalive {
    /// Zero: no pings.
    interval: Duration,
    /// Zero: wait for ever.
    timeout: Duration,
    last_heard: Instant,
    pinged: Option<Instant>,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    Ping,
    GiveUp,
}

impl Keepalive {
    pub(crate) fn new(interval: Duration, timeout: Duration, now: Instant) -> Self {
        Self {
            interval,
            timeout,
            last_heard: now,
            pinged: None,
        }
    }

    /// Bytes came.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.last_heard = now;
        self.pinged = None;
    }

    /// What is due at `now`; a ping is due once for each quiet interval.
    pub(crate) fn due(&mut self, now: Instant) -> Due {
        match self.deadline() {
            Some(deadline) if deadline <= now => {
                if self.pinged.is_some() {
                    Due::GiveUp
                } else {
                    self.pinged = Some(now);
                    Due::Ping
                }
            }
            Some(_) | None => Due::Nothing,
        }
    }

    /// When `due` is to be asked again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.interval.is_zero() {
            return None;
        }
        match self.pinged {
            None => Some(self.last_heard + self.interval),
            Some(_) if self.timeout.is_zero() => None,
            Some(at) => Some(at + self.timeout),
        }
    }

    pub(crate) fn last_heard(&self) -> Instant {
        self.last_heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn ping_comes_after_quiet_and_any_traffic_is_life() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(5 * SECOND, 10 * SECOND, start);
        assert_eq!(keepalive.due(start + 4 * SECOND), Due::Nothing);
        keepalive.heard(start + 4 * SECOND);
        assert_eq!(keepalive.due(start + 8 * SECOND), Due::Nothing);
        assert_eq!(keepalive.due(start + 9 * SECOND), Due::Ping);
        assert_eq!(keepalive.due(start + 9 * SECOND), Due::Nothing);
        keepalive.heard(start + 18 * SECOND);
        assert_eq!(keepalive.due(start + 19 * SECOND), Due::Nothing);
        assert_eq!(keepalive.due(start + 23 * SECOND), Due::Ping);
        assert_eq!(keepalive.due(start + 32 * SECOND), Due::Nothing);
        assert_eq!(keepalive.due(start + 33 * SECOND), Due::GiveUp);
    }

    #[test]
    fn zero_switches_off() {
        let start = Instant::now();
        let mut never = Keepalive::new(Duration::ZERO, SECOND, start);
        assert_eq!(
            (never.deadline(), never.due(start + 900 * SECOND)),
            (None, Due::Nothing)
        );
        let mut patient = Keepalive::new(SECOND, Duration::ZERO, start);
        assert_eq!(patient.due(start + SECOND), Due::Ping);
        assert_eq!(patient.due(start + 900 * SECOND), Due::Nothing);
    }
}
