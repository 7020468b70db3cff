//! The life of an I_T nexus beyond its sessions: when to log in again, on which path, and when to stop waiting.
//!
//! ```text
//!              Q1 Free                     Q3 LoggedIn                    Q4 Failed (RFC 7143 §8.3)
//!  new ----> pausing <--- login failed ---+              loss          +--> pausing
//!               | pause over              |                            |       |
//!               v                         |   proved                   |       v
//!            attempt on a path -----------+--------> open -------------+    attempt ---> proved ---> open
//!                                                                      |
//!                                              replacement_timeout ----+--> expired: I/O fails, attempts go on
//! ```
//!
//! A round is one attempt on each path. The pause between rounds grows and is random in part, so that a hundred
//! hosts do not come back to a restarted array in step.
//!
//! Source: RFC 7143 §6.3.5 (session reinstatement), §7.15, §8.3, §13.15 (`DefaultTime2Wait`).
//!
//! Invariants:
//! 1. No attempt begins before the time that the target asked for (Time2Wait), whoever is in a hurry.
//! 2. The replacement timer runs from the first loss to the next proof and expires at most once in between.
//! 3. Attempts go on after the timer has expired: a target that returns is found.
//!
//! What an attempt consists of (connect, log in, fence, identity gate) and what becomes of I/O is `io::nexus`'s.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How long I/O waits for a lost session before it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplacementTimeout {
    /// So long; zero fails at once.
    After(Duration),
    /// For ever: whoever waits hangs until the target returns.
    Never,
}

/// A text that is no replacement timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a number of seconds up to {SECONDS_MAX}, 0 to fail at once, or `never`")]
pub struct ReplacementTimeoutError;

/// Seconds, or `never`.
impl FromStr for ReplacementTimeout {
    type Err = ReplacementTimeoutError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "never" {
            return Ok(Self::Never);
        }
        let seconds = text.parse().map_err(|_| ReplacementTimeoutError)?;
        if seconds > SECONDS_MAX {
            return Err(ReplacementTimeoutError);
        }
        Ok(Self::After(Duration::from_secs(seconds)))
    }
}

impl fmt::Display for ReplacementTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(timeout) => write!(f, "{}", timeout.as_secs()),
            Self::Never => f.write_str("never"),
        }
    }
}

/// How patient a nexus is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryPolicy {
    /// How long I/O is held for a lost session. Default 120 s, as open-iscsi has it.
    pub replacement_timeout: ReplacementTimeout,
    /// The pause after the first round that failed; each further one doubles it. Default 1 s.
    pub pause_min: Duration,
    /// The longest pause. Default 30 s.
    pub pause_max: Duration,
}

/// How good a path is, by what the target says of its port group (SPC-4 §5.15.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Preference {
    /// Active/non-optimized: works, by a detour inside of the array.
    Usable,
    /// Active/optimized, or a target without such states.
    Optimal,
}

/// What to do with a path that was proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proved {
    /// Use it.
    Open,
    /// Leave it: a better one may be among those that were not tried in this round.
    LookFurther,
}

/// The life of one nexus.
#[derive(Clone, Debug)]
pub struct Recovery {
    policy: RecoveryPolicy,
    paths: usize,
    state: State,
    /// When the nexus was lost; `None` while it is open and before it was first.
    lost_at: Option<Instant>,
    /// The replacement timer has expired since the loss.
    is_expired: bool,
    /// Rounds that failed since the loss.
    rounds: u32,
    /// The path to begin a round with: the last that was open.
    first: usize,
    /// Paths tried in this round.
    tried: usize,
    /// The best of those that were proved and left in this round.
    fallback: Option<(Preference, usize)>,
    /// No attempt before: what the target asked for.
    not_before: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Pausing { until: Instant },
    Attempting { path: usize },
    Open { path: usize },
}

/// Not yet half a minute, so that a target that is back is found soon; and seldom enough for a dead one.
const PAUSE_MAX: Duration = Duration::from_secs(30);
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// open-iscsi's `node.session.timeo.replacement_timeout`.
const REPLACEMENT_TIMEOUT: Duration = Duration::from_mins(2);
/// Root on iSCSI is run with a day (open-iscsi's README); whoever wants more wants `never`.
const SECONDS_MAX: u64 = 604_800;
/// Doublings after which any pause has reached its maximum.
const DOUBLINGS_MAX: u32 = 16;

impl Default for RecoveryPolicy {
    fn default() -> Self {
        Self {
            replacement_timeout: ReplacementTimeout::After(REPLACEMENT_TIMEOUT),
            pause_min: PAUSE_MIN,
            pause_max: PAUSE_MAX,
        }
    }
}

impl Recovery {
    /// A nexus that is to be opened at once, over one of `paths` paths (at least one).
    pub fn new(policy: RecoveryPolicy, paths: usize, now: Instant) -> Self {
        Self {
            policy,
            paths: paths.max(1),
            state: State::Pausing { until: now },
            lost_at: None,
            is_expired: false,
            rounds: 0,
            first: 0,
            tried: 0,
            fallback: None,
            not_before: now,
        }
    }

    /// A nexus that is open over a path.
    pub fn opened(policy: RecoveryPolicy, paths: usize, path: usize, now: Instant) -> Self {
        Self {
            state: State::Open { path },
            first: path,
            ..Self::new(policy, paths, now)
        }
    }

    /// The path on which an attempt is due; it is under way then, and its end is to be told.
    pub fn poll_attempt(&mut self, now: Instant) -> Option<usize> {
        let State::Pausing { until } = self.state else {
            return None;
        };
        if until > now {
            return None;
        }
        let path = self.next_path();
        self.state = State::Attempting { path };
        Some(path)
    }

    /// The attempt failed, and no other is to begin within `wait`. `random` is any number: it makes the pauses of many
    /// hosts differ.
    pub fn handle_failed(&mut self, wait: Duration, now: Instant, random: u32) {
        let State::Attempting { .. } = self.state else {
            return;
        };
        self.not_before = self.not_before.max(now + wait);
        if self.tried < self.paths || self.fallback.is_some() {
            // The rest of the round follows without a pause: another path may be well.
            let until = self.not_before.max(now);
            self.state = State::Pausing { until };
            return;
        }
        self.tried = 0;
        self.rounds = self.rounds.saturating_add(1);
        let until = now + self.pause(random);
        self.state = State::Pausing {
            until: until.max(self.not_before),
        };
    }

    /// The attempt led to the logical unit that is wanted.
    pub fn handle_proved(&mut self, preference: Preference, now: Instant) -> Proved {
        let State::Attempting { path } = self.state else {
            return Proved::LookFurther;
        };
        let is_last = self.tried >= self.paths;
        if preference < Preference::Optimal && !is_last {
            if self.fallback.is_none_or(|(best, _)| best < preference) {
                self.fallback = Some((preference, path));
            }
            self.state = State::Pausing { until: now };
            return Proved::LookFurther;
        }
        self.state = State::Open { path };
        self.first = path;
        self.tried = 0;
        self.fallback = None;
        self.rounds = 0;
        self.lost_at = None;
        self.is_expired = false;
        Proved::Open
    }

    /// The session was lost; the target wants us to stay away for `wait` (Time2Wait).
    pub fn handle_lost(&mut self, wait: Duration, now: Instant) {
        let State::Open { .. } = self.state else {
            return;
        };
        // RFC 7143 §13.15: no reinstatement before that
        self.not_before = now + wait;
        self.lost_at = Some(now);
        self.state = State::Pausing {
            until: self.not_before,
        };
    }

    /// The session was left because its path is not to be used any more: the next round begins with another one.
    pub fn handle_path_left(&mut self, now: Instant) {
        if let State::Open { path } = self.state {
            self.handle_lost(Duration::ZERO, now);
            self.first = (path + 1) % self.paths;
        }
    }

    /// Somebody knows that the target is back: a pause ends, but not before the target's own time.
    pub fn cut_short(&mut self, now: Instant) {
        if let State::Pausing { until } = &mut self.state {
            *until = (*until).min(now.max(self.not_before));
        }
    }

    /// Whether the replacement timer expired just now: I/O that was held fails, once.
    // RFC 7143 §7.15 (E11): the initiator decides how long a failed session is waited for
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        let expires = self.expires_at().is_some_and(|at| at <= now);
        self.is_expired |= expires;
        expires
    }

    /// When `poll_attempt` or `handle_timeout` is to be called next; earlier calls do no harm.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let attempt = match self.state {
            State::Pausing { until } => Some(until),
            State::Attempting { .. } | State::Open { .. } => None,
        };
        [attempt, self.expires_at()].into_iter().flatten().min()
    }

    /// I/O fails instead of being held.
    pub fn is_expired(&self) -> bool {
        self.is_expired
    }

    /// When the nexus was lost; `None` while it is open.
    pub fn lost_at(&self) -> Option<Instant> {
        self.lost_at
    }

    fn expires_at(&self) -> Option<Instant> {
        match self.policy.replacement_timeout {
            ReplacementTimeout::After(timeout) if !self.is_expired => {
                self.lost_at.map(|at| at + timeout)
            }
            ReplacementTimeout::After(_) | ReplacementTimeout::Never => None,
        }
    }

    /// The paths in turn, beginning with the one that worked last; behind them the best that was left.
    fn next_path(&mut self) -> usize {
        if self.tried < self.paths {
            let path = (self.first + self.tried) % self.paths;
            self.tried += 1;
            return path;
        }
        self.fallback.take().map_or(self.first, |(_, path)| path)
    }

    /// Doubled with each round up to the maximum; the upper half of it is chance.
    fn pause(&self, random: u32) -> Duration {
        let doublings = self.rounds.saturating_sub(1).min(DOUBLINGS_MAX);
        let whole = self
            .policy
            .pause_min
            .saturating_mul(1 << doublings)
            .min(self.policy.pause_max);
        let half = whole / 2;
        half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests;
