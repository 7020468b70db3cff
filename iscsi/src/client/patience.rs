//! How often one command is repeated, and after which pauses.
//!
//! A room of its own because the handles here and the daemon's lanes repeat commands alike.
//!
//! Invariants:
//! 1. Unit attentions are free of charge, but have a limit of their own.
//! 2. Pauses grow, and their sum has a limit.

use std::time::Duration;

use crate::scsi::Verdict;

/// How often and how long one command has been repeated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patience {
    attentions: u32,
    aborts: u32,
    pauses: u32,
    waited: Duration,
}

impl Patience {
    /// How long to wait before the command is repeated; `None`: not any more.
    pub fn pause(&mut self, verdict: Verdict) -> Option<Duration> {
        match verdict {
            Verdict::Good
            | Verdict::SwitchPath
            | Verdict::ReservationConflict
            | Verdict::OurFault
            | Verdict::Failed => return None,
            Verdict::UnitAttention | Verdict::DeferredError => {
                self.attentions += 1;
                return (self.attentions <= UNIT_ATTENTIONS_MAX).then_some(Duration::ZERO);
            }
            Verdict::Aborted => {
                self.aborts += 1;
                if self.aborts > ABORTS_MAX {
                    return None;
                }
            }
            Verdict::Busy | Verdict::BecomingReady | Verdict::TaskSetFull => {}
        }
        let pause = PAUSE_FIRST.saturating_mul(1 << self.pauses.min(PAUSE_DOUBLINGS_MAX));
        self.pauses += 1;
        self.waited += pause;
        let most = if verdict == Verdict::BecomingReady {
            READY_WAIT_MAX
        } else {
            WAIT_MAX
        };
        (self.waited <= most).then_some(pause)
    }

    /// The sum of all pauses so far.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

/// One nexus has a few conditions queued at most (reset, mode parameters, capacity, LUN list): 10 is plenty.
const UNIT_ATTENTIONS_MAX: u32 = 10;
/// An aborted command is repeated because its cause was the transport's; three in a row have another cause.
const ABORTS_MAX: u32 = 3;
/// Short enough not to be felt, long enough not to be a hot loop.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
/// 10 ms doubled seven times: pauses stay at 1.28 s.
const PAUSE_DOUBLINGS_MAX: u32 = 7;
/// A server that is busy for longer than commands may take elsewhere is better looked at by a person.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Arrays take tens of seconds to hand a unit to their other controller; a minute is what multipath software gives.
const READY_WAIT_MAX: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_attentions_do_not_use_up_what_busy_may_wait() {
        let mut patience = Patience::default();
        for _ in 0..UNIT_ATTENTIONS_MAX {
            assert_eq!(patience.pause(Verdict::UnitAttention), Some(Duration::ZERO));
        }
        assert_eq!(patience.pause(Verdict::UnitAttention), None);
        assert_eq!(patience.pause(Verdict::Busy), Some(PAUSE_FIRST));
    }

    // S2, S5
    #[test]
    fn what_is_done_or_failed_is_not_repeated() {
        for verdict in [
            Verdict::Good,
            Verdict::Failed,
            Verdict::ReservationConflict,
            Verdict::OurFault,
            Verdict::SwitchPath,
        ] {
            assert_eq!(Patience::default().pause(verdict), None, "{verdict:?}");
        }
    }

    // S7
    #[test]
    fn a_unit_that_becomes_ready_is_polled_for_a_minute() {
        let mut patience = Patience::default();
        let pauses = std::iter::from_fn(|| patience.pause(Verdict::BecomingReady));
        let sum: Duration = pauses.sum();
        assert!(sum <= READY_WAIT_MAX && sum > WAIT_MAX, "{sum:?}");
        // What is busy after that has had its time.
        assert_eq!(patience.pause(Verdict::Busy), None);
    }

    #[test]
    fn pauses_double_and_end() {
        let mut patience = Patience::default();
        let pauses: Vec<Duration> =
            std::iter::from_fn(|| patience.pause(Verdict::TaskSetFull)).collect();
        assert_eq!(pauses[..3], [10, 20, 40].map(Duration::from_millis));
        assert!(
            pauses
                .iter()
                .all(|pause| *pause <= Duration::from_millis(1280))
        );
        let sum: Duration = pauses.iter().sum();
        assert!(sum <= WAIT_MAX && sum > WAIT_MAX / 2, "{sum:?}");
    }
}
