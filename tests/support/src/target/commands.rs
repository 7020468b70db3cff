//! SCSI commands of a session: what strikes them, the unit attention that comes first, and then the disk's plan.
//!
//! Source: RFC 7143 §11.3; SAM-5 §5.14 (unit attention).

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::faults::Strike;
use super::held::{Job, Late};
use super::link::Ended;
use super::pdu::{Pdu, lun_number};
use super::portals;
use super::scsi::{self, Answer, Plan};
use super::session::Session;
use super::shared::Live;

/// What a session has yet to be told of a LUN.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attention {
    login: bool,
    seen: usize,
}

impl Attention {
    /// What there is at the login: `first` if it is to be told of itself.
    pub(super) fn at_login(export: &Live, first: bool) -> BTreeMap<u16, Self> {
        let seen = |lun| export.unit(lun).map_or(0, |unit| unit.events());
        let states = export.numbers().into_iter().map(|lun| {
            let seen = seen(lun);
            (lun, Self { login: first, seen })
        });
        states.collect()
    }
}

impl Session {
    pub(super) fn on_command(&mut self, at: usize, pdu: &Pdu) -> Result<(), Ended> {
        if self.export.is_none() {
            return Err(Ended::Violation(
                "SCSI command in a discovery session".into(),
            ));
        }
        if self.transfers.has(pdu.itt()) || self.held.has(pdu.itt()) {
            return Err(Ended::Violation(format!(
                "task tag {:#x} is in use",
                pdu.itt()
            )));
        }
        let strike = self.shared.faults.on_command();
        let mut late = self.late(pdu);
        match strike {
            Some(Strike::Drop { executed: false }) => return Err(Ended::Ours),
            Some(Strike::NoAnswer) => return Ok(()),
            Some(Strike::Reject(reason)) => {
                self.reject(at, pdu, reason);
                return Ok(());
            }
            Some(Strike::CheckCondition(sense)) => {
                self.answer(at, pdu, &Answer::check(sense));
                return Ok(());
            }
            Some(Strike::Deferred(sense)) => {
                let mut answer = Answer::check(sense);
                answer.deferred = true;
                self.answer(at, pdu, &answer);
                return Ok(());
            }
            Some(Strike::Status(status)) => {
                self.answer(at, pdu, &Answer::status(status));
                return Ok(());
            }
            Some(Strike::Hold) => late = Some(Late::Released),
            Some(Strike::Delay(time)) => late = Some(Late::Until(Instant::now() + time)),
            Some(Strike::Drop { executed: true } | Strike::ShortRead(_)) | None => {}
        }
        match late {
            Some(late) if scsi::takes_data(&pdu.cdb()) => self.execute_late(at, pdu, late),
            Some(late) => {
                let pdu = pdu.clone();
                self.hold(late, Job::Command { at, pdu });
                Ok(())
            }
            None => self.execute(at, pdu, strike.as_ref()),
        }
    }

    /// Carries a command out; for one that wants data that is: asks for it.
    pub(super) fn execute(
        &mut self,
        at: usize,
        pdu: &Pdu,
        strike: Option<&Strike>,
    ) -> Result<(), Ended> {
        let cdb = pdu.cdb();
        match self.plan(pdu, &cdb) {
            Plan::Done(answer) => self.answer(at, pdu, &answer),
            Plan::Read { at: from, bytes } => {
                let missing = match strike {
                    Some(Strike::ShortRead(missing)) => usize::try_from(*missing).unwrap_or(0),
                    _ => 0,
                };
                if let Some(answer) = self.unreadable(pdu, from, bytes) {
                    self.answer(at, pdu, &answer);
                } else if let Some(unit) = self.unit(pdu.lun_bytes()) {
                    self.read(at, pdu, &unit, from, bytes.saturating_sub(missing));
                }
            }
            Plan::Take { bytes } => self.take(at, pdu, &cdb, bytes, None),
        }
        if matches!(strike, Some(Strike::Drop { .. })) {
            return Err(Ended::Ours);
        }
        Ok(())
    }

    /// What a read says that meets a bad block; SBC-3 §4.14: INFORMATION is the first such.
    fn unreadable(&self, pdu: &Pdu, from: u64, bytes: usize) -> Option<Answer> {
        let block = u64::from(self.unit(pdu.lun_bytes())?.disk.block_size());
        let begin = from / block;
        let end = begin + u64::try_from(bytes).ok()?.div_ceil(block);
        let bad = self.shared.faults.bad_block(begin, end)?;
        let mut answer = Answer::check(scsi::MEDIUM_ERROR);
        answer.information = u32::try_from(bad).ok();
        Some(answer)
    }

    /// A command that wants data takes it now and is carried out later.
    fn execute_late(&mut self, at: usize, pdu: &Pdu, late: Late) -> Result<(), Ended> {
        let cdb = pdu.cdb();
        match self.plan(pdu, &cdb) {
            Plan::Take { bytes } => self.take(at, pdu, &cdb, bytes, Some(late)),
            Plan::Done(answer) => self.answer(at, pdu, &answer),
            Plan::Read { .. } => return Err(Ended::Violation("a read takes no data".into())),
        }
        Ok(())
    }

    fn late(&self, pdu: &Pdu) -> Option<Late> {
        if !self.shared.faults.is_any() {
            return None;
        }
        if let Some(delay) = self.shared.faults.delay() {
            return Some(Late::Until(Instant::now() + delay));
        }
        let held = self.shared.faults.holds(scsi::takes_data(&pdu.cdb()));
        held.then_some(Late::Released)
    }

    fn plan(&mut self, pdu: &Pdu, cdb: &[u8; 16]) -> Plan {
        let Some(export) = &self.export else {
            return Plan::Done(Answer::check(scsi::NO_SUCH_LUN));
        };
        let lun = lun_number(pdu.lun_bytes());
        let Some((lun, unit)) = lun.and_then(|lun| export.unit(lun).map(|unit| (lun, unit))) else {
            return scsi::plan_absent(cdb, &export.numbers());
        };
        // A LUN added later is new to this session from its beginning.
        let state = self.attention.entry(lun).or_insert(Attention {
            login: false,
            seen: 0,
        });
        let pending = if state.login {
            Some(scsi::POWER_ON)
        } else {
            unit.event(&mut state.seen, &self.nexus)
        };
        if let Some(sense) = pending {
            let told = scsi::reports_attention(cdb[0]);
            if told || cdb[0] == scsi::op::REQUEST_SENSE {
                if state.login {
                    state.login = false;
                } else {
                    state.seen += 1;
                }
            }
            if told {
                return Plan::Done(Answer::check(sense));
            }
        }
        if let Some(sense) = self.shared.groups[self.group].refuses(cdb) {
            return Plan::Done(Answer::check(sense));
        }
        if unit.conflicts(&self.nexus, cdb) {
            return Plan::Done(Answer::status(scsi::RESERVATION_CONFLICT));
        }
        match cdb[0] {
            scsi::op::REPORT_LUNS => scsi::plan_absent(cdb, &export.numbers()),
            scsi::op::PERSISTENT_RESERVE_IN => Plan::Done(unit.reservations().read(cdb)),
            scsi::op::MAINTENANCE_IN if cdb[1] & 0x1f == scsi::op::REPORT_TARGET_PORT_GROUPS => {
                let report = portals::report(&self.shared.groups, cdb);
                Plan::Done(Answer::good(report))
            }
            _ => scsi::plan(&unit.disk, cdb, pending, self.shared.port(self.group)),
        }
    }
}
