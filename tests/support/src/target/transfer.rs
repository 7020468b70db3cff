//! Data between initiator and disk: Data-In with status, R2T, Data-Out, residuals.
//!
//! Source: RFC 7143 §11.4 (response, residuals), §11.7 (Data-Out, Data-In), §11.8 (R2T), §4.2.5 (bursts).
//!
//! Invariants:
//! 1. A write reaches the disk when its last byte is here, in one piece.
//! 2. Numbers and offsets of Data-Out are checked one by one; a wrong one ends the command with ABORTED COMMAND and
//!    leaves the disk as it was.

use std::collections::VecDeque;

use super::held::{Job, Late};
use super::pdu::{FINAL, NO_TAG, Pdu, header, op, set_word};
use super::scsi::{self, Answer};
use super::session::Session;
use super::shared::Unit;

/// Commands whose data is on its way.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    tasks: Vec<Task>,
    /// Tags of commands that ended early: their data may still come.
    ended: VecDeque<u32>,
}

impl Transfers {
    pub(super) fn has(&self, itt: u32) -> bool {
        self.tasks.iter().any(|task| task.itt == itt)
    }

    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.tasks.len()).unwrap_or(u32::MAX)
    }

    /// True if there was such a task.
    pub(super) fn abort(&mut self, itt: u32) -> bool {
        let before = self.tasks.len();
        self.tasks.retain(|task| task.itt != itt);
        self.end(itt);
        before != self.tasks.len()
    }

    pub(super) fn abort_where(&mut self, which: impl Fn(&Task) -> bool) {
        let tags: Vec<u32> = self
            .tasks
            .iter()
            .filter(|task| which(task))
            .map(|task| task.itt)
            .collect();
        for tag in tags {
            self.abort(tag);
        }
    }

    fn end(&mut self, itt: u32) {
        if self.ended.len() == ENDED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back(itt);
    }
}

/// A command that takes data.
#[derive(Debug)]
pub(super) struct Task {
    /// The connection that it belongs to.
    pub(super) at: usize,
    pub(super) itt: u32,
    pub(super) lun: [u8; 8],
    pub(super) cdb: [u8; 16],
    /// When it is carried out, if not at once.
    late: Option<Late>,
    /// What the command would take.
    planned: usize,
    /// What the initiator expects to transfer.
    expected: usize,
    data: Vec<u8>,
    /// Bytes here so far, from the start.
    got: usize,
    /// Bytes sent unasked or asked for.
    asked: usize,
    /// The next `DataSN` of the unsolicited sequence while it lasts.
    unsolicited: Option<u32>,
    r2ts: VecDeque<R2t>,
    r2t_sn: u32,
}

#[derive(Debug)]
struct R2t {
    tag: u32,
    at: usize,
    end: usize,
    data_sn: u32,
}

impl Session {
    /// An answer without data from the medium; its own data goes as Data-In.
    pub(super) fn answer(&mut self, at: usize, pdu: &Pdu, answer: &Answer) {
        self.note_stray_data(pdu);
        if answer.data.is_empty() || answer.status != scsi::GOOD {
            let residual = expected(pdu);
            return self.respond(at, pdu.itt(), answer, 0, residual, 0);
        }
        self.send_data(at, pdu, answer.data.len(), |from, space| {
            space.copy_from_slice(&answer.data[from..from + space.len()]);
        });
    }

    /// Data of the medium, from a byte on.
    pub(super) fn read(&mut self, at: usize, pdu: &Pdu, unit: &Unit, from: u64, bytes: usize) {
        self.note_stray_data(pdu);
        if bytes == 0 {
            let nothing = Answer::good(Vec::new());
            return self.respond(at, pdu.itt(), &nothing, 0, expected(pdu), 0);
        }
        self.send_data(at, pdu, bytes, |offset, space| {
            let from = from + u64::try_from(offset).unwrap_or(0);
            unit.disk.read(from, space).expect("the store can be read");
        });
    }

    /// A command that wants data: what came along, then R2Ts for the rest.
    pub(super) fn take(
        &mut self,
        at: usize,
        pdu: &Pdu,
        cdb: &[u8; 16],
        planned: usize,
        late: Option<Late>,
    ) {
        let expected = if pdu.flags() & WRITE == 0 {
            0
        } else {
            size(pdu.expected())
        };
        self.check_unsolicited(at, pdu, expected);
        if scsi::wants_all(cdb[0]) && expected != planned {
            self.transfers.end(pdu.itt());
            let refusal = Answer::check(scsi::INVALID_FIELD);
            return self.respond(at, pdu.itt(), &refusal, 0, expected, 0);
        }
        let wanted = planned.min(expected);
        let came = pdu.data.len().min(wanted);
        let mut task = Task {
            at,
            late,
            itt: pdu.itt(),
            lun: pdu.lun_bytes(),
            cdb: *cdb,
            planned,
            expected,
            data: Vec::new(),
            got: came,
            asked: came,
            unsolicited: (!pdu.is_final()).then_some(0),
            r2ts: VecDeque::new(),
            r2t_sn: 0,
        };
        if came == wanted && pdu.is_final() {
            // All data is here: straight from the receive buffer to the disk.
            return self.complete(task, &pdu.data[..came]);
        }
        task.data = vec![0; wanted];
        task.data[..came].copy_from_slice(&pdu.data[..came]);
        self.transfers.tasks.push(task);
        self.go_on(self.transfers.tasks.len() - 1);
    }

    pub(super) fn on_data_out(&mut self, at: usize, pdu: &Pdu) {
        let Some(index) = self
            .transfers
            .tasks
            .iter()
            .position(|task| task.itt == pdu.itt())
        else {
            if pdu.ttt() != NO_TAG && !self.transfers.ended.contains(&pdu.itt()) {
                self.broke(format!("Data-Out for no task, tag {:#x}", pdu.itt()));
                // RFC 7143 §11.17.1: invalid PDU field.
                self.reject(at, pdu, 9);
            }
            return;
        };
        let first_burst = size(self.on(at).agreed.first_burst);
        let task = &mut self.transfers.tasks[index];
        let wrong = if task.at != at {
            // RFC 7143 §4.2.5.1: all of a task goes over one connection.
            Err("Data-Out on another connection than its command".into())
        } else if pdu.ttt() == NO_TAG {
            unsolicited(task, pdu, first_burst)
        } else {
            solicited(task, pdu)
        };
        if let Err(what) = wrong {
            // RFC 7143 §7.8 with §11.4.7.2: at level 0 lost or misplaced data ends the command.
            self.broke(what);
            let task = self.transfers.tasks.swap_remove(index);
            self.transfers.end(task.itt);
            let answer = Answer::check(scsi::PROTOCOL_CRC);
            let missing = task.expected - task.got;
            self.respond(task.at, task.itt, &answer, 0, missing, task.r2t_sn);
            return;
        }
        self.go_on(index);
    }

    /// Asks for more, or carries out what is complete.
    fn go_on(&mut self, index: usize) {
        let task = &self.transfers.tasks[index];
        if task.unsolicited.is_some() {
            return;
        }
        if task.got == task.data.len() && task.r2ts.is_empty() {
            let mut task = self.transfers.tasks.swap_remove(index);
            let data = std::mem::take(&mut task.data);
            return self.complete(task, &data);
        }
        let slot = task.at;
        let agreed = &self.on(slot).agreed;
        let (most, burst) = (size(agreed.outstanding_r2t), size(agreed.max_burst));
        while self.transfers.tasks[index].r2ts.len() < most {
            let tag = self.tag();
            let task = &mut self.transfers.tasks[index];
            let bytes = (task.data.len() - task.asked).min(burst);
            if bytes == 0 {
                return;
            }
            let at = task.asked;
            task.asked += bytes;
            task.r2ts.push_back(R2t {
                tag,
                at,
                end: at + bytes,
                data_sn: 0,
            });
            let mut bhs = header(op::R2T, task.itt);
            bhs[8..16].copy_from_slice(&task.lun);
            set_word(&mut bhs, 20, tag);
            set_word(&mut bhs, 36, task.r2t_sn);
            set_word(&mut bhs, 40, word(at));
            set_word(&mut bhs, 44, word(bytes));
            task.r2t_sn += 1;
            // RFC 7143 §11.8: an R2T tells StatSN and does not take it.
            self.stamp(slot, &mut bhs, false);
            self.on(slot).link.push(bhs, &[]);
        }
    }

    /// All data is here: now, or later if a fault says so.
    fn complete(&mut self, task: Task, data: &[u8]) {
        match task.late {
            None => self.finish(&task, data),
            Some(late) => self.hold(late, Job::Write(Box::new(task), data.to_vec())),
        }
    }

    pub(super) fn finish(&mut self, task: &Task, data: &[u8]) {
        let answer = self.unit(task.lun).map_or_else(
            || Answer::check(scsi::NO_SUCH_LUN),
            |unit| match task.cdb[0] {
                scsi::op::PERSISTENT_RESERVE_OUT => unit.reserve(&self.nexus, &task.cdb, data),
                _ => scsi::finish(&unit.disk, &task.cdb, data),
            },
        );
        let over = task.planned.saturating_sub(task.expected);
        let under = task.expected.saturating_sub(task.planned);
        self.respond(task.at, task.itt, &answer, over, under, task.r2t_sn);
    }

    fn send_data(
        &mut self,
        slot: usize,
        pdu: &Pdu,
        bytes: usize,
        mut fill: impl FnMut(usize, &mut [u8]),
    ) {
        let expected = if pdu.flags() & READ == 0 {
            0
        } else {
            size(pdu.expected())
        };
        let total = bytes.min(expected);
        let (over, under) = (
            bytes.saturating_sub(expected),
            expected.saturating_sub(bytes),
        );
        let agreed = &self.on(slot).agreed;
        let (segment, burst) = (size(agreed.their_segment_bytes), size(agreed.max_burst));
        let with_status = self.shared.settings.status_in_data;
        let mut at = 0;
        let mut data_sn = 0;
        while at < total {
            let in_burst = burst - at % burst;
            let length = segment.min(in_burst).min(total - at);
            let last = at + length == total;
            let mut bhs = header(op::DATA_IN, pdu.itt());
            bhs[1] = if last || length == in_burst { FINAL } else { 0 };
            set_word(&mut bhs, 20, NO_TAG);
            set_word(&mut bhs, 36, data_sn);
            set_word(&mut bhs, 40, word(at));
            if last && with_status {
                bhs[1] |= STATUS | residual_flags(over, under);
                set_word(&mut bhs, 44, word(over.max(under)));
                self.stamp(slot, &mut bhs, true);
            } else {
                self.stamp_window(&mut bhs);
            }
            let link = &mut self.on(slot).link;
            link.push_with(bhs, length, |space| fill(at, space));
            at += length;
            data_sn += 1;
        }
        if total == 0 || !with_status {
            let good = Answer::good(Vec::new());
            self.respond(slot, pdu.itt(), &good, over, under, data_sn);
        }
    }

    /// A SCSI Response PDU.
    fn respond(
        &mut self,
        at: usize,
        itt: u32,
        answer: &Answer,
        over: usize,
        under: usize,
        exp_data_sn: u32,
    ) {
        let mut bhs = header(op::SCSI_RESPONSE, itt);
        bhs[1] |= residual_flags(over, under);
        bhs[3] = answer.status;
        set_word(&mut bhs, 36, exp_data_sn);
        set_word(&mut bhs, 44, word(over.max(under)));
        let mut data = Vec::new();
        if answer.sense.is_some() {
            let sense = answer.sense_bytes(self.shared.settings.descriptor_sense);
            // RFC 7143 §11.4.7: two bytes of length before the sense data.
            data.extend(u16::try_from(sense.len()).unwrap_or(0).to_be_bytes());
            data.extend(sense);
        }
        self.send(at, bhs, &data);
    }

    fn check_unsolicited(&mut self, at: usize, pdu: &Pdu, expected: usize) {
        let agreed = self.on(at).agreed.clone();
        if !pdu.data.is_empty() && !agreed.immediate_data {
            self.broke("immediate data although ImmediateData=No".into());
        }
        if pdu.data.len() > size(agreed.first_burst) {
            self.broke(format!(
                "immediate data of {} bytes above FirstBurstLength",
                pdu.data.len()
            ));
        }
        if pdu.data.len() > expected {
            self.broke("immediate data above the expected transfer length".into());
        }
        if !pdu.is_final() && agreed.initial_r2t {
            self.broke("F=0 on a command although InitialR2T=Yes".into());
        }
    }

    /// Data with a command that takes none: noted, and what follows is ignored.
    fn note_stray_data(&mut self, pdu: &Pdu) {
        if !pdu.is_final() {
            self.transfers.end(pdu.itt());
        }
        if !pdu.data.is_empty() && pdu.flags() & WRITE == 0 {
            self.broke("data with a command that writes nothing".into());
        }
    }
}

fn unsolicited(task: &mut Task, pdu: &Pdu, first_burst: usize) -> Result<(), String> {
    let Some(data_sn) = &mut task.unsolicited else {
        return Err("unsolicited Data-Out after the sequence ended".into());
    };
    if pdu.word(36) != *data_sn {
        return Err(format!("DataSN {} in place of {data_sn}", pdu.word(36)));
    }
    *data_sn += 1;
    let end = task.got + pdu.data.len();
    if end > first_burst {
        return Err(format!(
            "{end} unsolicited bytes above FirstBurstLength {first_burst}"
        ));
    }
    copy(task, pdu, end.min(task.expected))?;
    task.asked = task.got;
    if !pdu.is_final() && end >= first_burst.min(task.expected) {
        return Err(format!(
            "F=0 on unsolicited data that ends at {end}, where it must"
        ));
    }
    if pdu.is_final() {
        task.unsolicited = None;
    }
    Ok(())
}

fn solicited(task: &mut Task, pdu: &Pdu) -> Result<(), String> {
    let lun = task.lun;
    let got = task.got;
    let Some(r2t) = task.r2ts.front_mut().filter(|r2t| r2t.tag == pdu.ttt()) else {
        return Err(format!("Data-Out for no open R2T, tag {:#x}", pdu.ttt()));
    };
    if pdu.lun_bytes() != lun {
        // RFC 7143 §11.7.4: with a target tag the LUN goes along.
        return Err("Data-Out with another LUN than its R2T".into());
    }
    if pdu.word(36) != r2t.data_sn {
        return Err(format!(
            "DataSN {} in place of {}",
            pdu.word(36),
            r2t.data_sn
        ));
    }
    r2t.data_sn += 1;
    let (at, end) = (r2t.at, r2t.end);
    if got < at || got + pdu.data.len() > end {
        return Err(format!(
            "Data-Out from {got} beyond its R2T, which ends at {end}"
        ));
    }
    let complete = got + pdu.data.len() == end;
    if pdu.is_final() != complete {
        return Err(format!(
            "F={} at {} of an R2T to {end}",
            pdu.is_final(),
            got + pdu.data.len()
        ));
    }
    copy(task, pdu, end)?;
    if complete {
        task.r2ts.pop_front();
    }
    Ok(())
}

/// Takes the data at the place where it must be, up to `end` (what lies beyond the plan is dropped).
fn copy(task: &mut Task, pdu: &Pdu, end: usize) -> Result<(), String> {
    let at = size(pdu.word(40));
    if at != task.got {
        return Err(format!("buffer offset {at} in place of {}", task.got));
    }
    let stop = (at + pdu.data.len()).min(task.data.len()).min(end);
    if let Some(length) = stop.checked_sub(at) {
        task.data[at..stop].copy_from_slice(&pdu.data[..length]);
        task.got = stop;
    }
    Ok(())
}

fn residual_flags(over: usize, under: usize) -> u8 {
    if over > 0 {
        0x04
    } else if under > 0 {
        0x02
    } else {
        0
    }
}

/// What the initiator expects to transfer, if it expects any.
fn expected(pdu: &Pdu) -> usize {
    if pdu.flags() & (READ | WRITE) == 0 {
        0
    } else {
        size(pdu.expected())
    }
}

fn size(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn word(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

const READ: u8 = 0x40;
const WRITE: u8 = 0x20;
/// S bit of Data-In.
const STATUS: u8 = 0x01;
/// Tags of ended commands to remember; as many as a window is wide.
const ENDED_MAX: usize = 128;
