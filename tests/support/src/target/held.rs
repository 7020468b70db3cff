//! Tasks that are carried out late: complete, with all their data, and waiting for a time or for the test.
//!
//! This is where a late write comes from. An honest target drops these tasks with their session; one with
//! `Fault::LateWrites` carries them out although the session is gone.

use std::sync::Arc;

use tokio::time::Instant;

use super::link::Ended;
use super::pdu::{Pdu, lun_number};
use super::scsi;
use super::session::Session;
use super::shared::{Orphan, Unit};
use super::transfer::Task;

/// How long a task waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    Until(Instant),
    Released,
}

#[derive(Debug)]
pub(super) enum Job {
    /// A command that takes no data, as it came.
    Command { at: usize, pdu: Pdu },
    /// A command with all its data.
    Write(Box<Task>, Vec<u8>),
}

impl Job {
    pub(super) fn at(&self) -> usize {
        match self {
            Self::Command { at, .. } => *at,
            Self::Write(task, _) => task.at,
        }
    }

    fn itt(&self) -> u32 {
        match self {
            Self::Command { pdu, .. } => pdu.itt(),
            Self::Write(task, _) => task.itt,
        }
    }

    pub(super) fn lun(&self) -> [u8; 8] {
        match self {
            Self::Command { pdu, .. } => pdu.lun_bytes(),
            Self::Write(task, _) => task.lun,
        }
    }
}

/// A session's late tasks, in their order.
#[derive(Debug, Default)]
pub(super) struct Held {
    jobs: Vec<(Late, Job)>,
}

impl Held {
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.jobs.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn has(&self, itt: u32) -> bool {
        self.jobs.iter().any(|(_, job)| job.itt() == itt)
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        let due = self.jobs.iter().filter_map(|(late, _)| match late {
            Late::Until(due) => Some(*due),
            Late::Released => None,
        });
        due.min()
    }

    /// True if there was such a task.
    pub(super) fn abort(&mut self, itt: u32) -> bool {
        let before = self.jobs.len();
        self.jobs.retain(|(_, job)| job.itt() != itt);
        before != self.jobs.len()
    }

    pub(super) fn abort_where(&mut self, which: impl Fn(&Job) -> bool) {
        self.jobs.retain(|(_, job)| !which(job));
    }

    fn take(&mut self, which: impl Fn(Late) -> bool) -> Vec<Job> {
        let taken = self.jobs.extract_if(.., |(late, _)| which(*late));
        taken.map(|(_, job)| job).collect()
    }
}

impl Session {
    pub(super) fn hold(&mut self, late: Late, job: Job) {
        self.held.jobs.push((late, job));
        self.shared.held.add(1);
    }

    /// Carries out what waited for the test.
    pub(super) fn release(&mut self) -> Result<(), Ended> {
        let jobs = self.held.take(|late| late == Late::Released);
        self.carry_out(jobs)
    }

    pub(super) fn run_due(&mut self) -> Result<(), Ended> {
        let now = Instant::now();
        let jobs = self
            .held
            .take(|late| matches!(late, Late::Until(due) if due <= now));
        self.carry_out(jobs)
    }

    /// The session is over: its tasks are dropped, or land later all the same if a fault says so.
    pub(super) fn abandon_held(&mut self) {
        let late_writes = self.shared.faults.writes_late();
        for job in self.held.take(|_| true) {
            let Job::Write(task, data) = job else {
                continue;
            };
            if let Some(unit) = self.unit(task.lun).filter(|_| late_writes) {
                self.shared.orphan(Orphan {
                    unit,
                    cdb: task.cdb,
                    data,
                });
            }
        }
    }

    pub(super) fn unit(&self, lun: [u8; 8]) -> Option<Arc<Unit>> {
        self.export.as_ref()?.unit(lun_number(lun)?)
    }

    fn carry_out(&mut self, jobs: Vec<Job>) -> Result<(), Ended> {
        for job in jobs {
            match job {
                Job::Command { at, pdu } => self.execute(at, &pdu, None)?,
                Job::Write(task, data) => self.finish(&task, &data),
            }
        }
        Ok(())
    }
}

impl Orphan {
    /// Lands on the disk.
    pub(super) fn land(self) {
        let _ = scsi::finish(&self.unit.disk, &self.cdb, &self.data);
    }
}
