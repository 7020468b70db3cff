//! What is said in the logs about commands that were not done, and how often.

use std::fmt;
use std::time::{Duration, Instant};

use iscsi::scsi::{Cdb, Lba, Sense, Status};

/// A command that was not done, for a log line.
#[derive(Debug)]
pub(super) struct Remark<'a> {
    pub(super) cdb: Cdb,
    pub(super) lba: Lba,
    pub(super) status: Status,
    pub(super) sense: Option<&'a Sense>,
}

impl fmt::Display for Remark<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "operation {:02X}h at {}: {}",
            self.cdb.operation_code(),
            self.lba,
            self.status
        )?;
        self.sense.map_or(Ok(()), |sense| write!(f, ": {sense}"))
    }
}

/// Keeps a sick target from filling the logs.
#[derive(Debug)]
pub(super) struct Remarks {
    since: Instant,
    said: u32,
}

impl Remarks {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            said: 0,
        }
    }

    /// May another line be said?
    pub(super) fn may_speak(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= REMARKS_INTERVAL {
            *self = Self {
                since: now,
                said: 0,
            };
        }
        self.said = self.said.saturating_add(1);
        self.said <= REMARKS_MAX
    }
}

/// Ten lines in ten seconds tell what is going on.
const REMARKS_MAX: u32 = 10;
const REMARKS_INTERVAL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sick_target_fills_no_logs() {
        let begin = Instant::now();
        let mut remarks = Remarks::new(begin);
        let said = (0..1000).filter(|_| remarks.may_speak(begin)).count();
        assert_eq!(said, 10);
        assert!(remarks.may_speak(begin + REMARKS_INTERVAL));
    }

    #[test]
    fn a_remark_names_command_place_and_cause() {
        let remark = Remark {
            cdb: Cdb::read_16(Lba(7), iscsi::scsi::Blocks(1)),
            lba: Lba(7),
            status: Status::CHECK_CONDITION,
            sense: Some(&Sense::new(iscsi::scsi::SenseKey::MediumError, 0x11, 0)),
        };
        assert_eq!(
            remark.to_string(),
            "operation 88h at block 7: CHECK CONDITION: medium error: unrecovered read error (3h/11h/00h)"
        );
    }
}
