//! Commands coming in, and the data of writes: immediate, unsolicited, asked for.
//!
//! Source: RFC 7143 §11.3 (command), §11.7 (Data-Out), §11.8 (R2T).

use super::pdu::{self, NO_TAG, Pdu, op, set};
use super::unit::{self, Outcome};
use super::{BLOCK, Due, Target};
use crate::world::Env;

/// One SCSI command at the target.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) tsih: u16,
    pub(super) itt: u32,
    pub(super) cdb: [u8; 16],
    lun: [u8; 8],
    /// Expected data transfer length.
    pub(super) length: usize,
    is_write: bool,
    /// Of a write: what came. Of a read: what is sent.
    pub(super) data: Vec<u8>,
    received: usize,
    /// Unsolicited Data-Outs are still to come, the next with this number.
    unsolicited: Option<u32>,
    /// How far R2Ts have asked.
    asked: usize,
    next_r2t_sn: u32,
    bursts: Vec<Burst>,
    pub(super) outcome: Option<Outcome>,
    pub(super) is_forgotten: bool,
}

/// One R2T that is being answered.
#[derive(Debug)]
struct Burst {
    ttt: u32,
    next: usize,
    end: usize,
    data_sn: u32,
}

impl Task {
    /// Whether it waits for nothing of the initiator's.
    pub(super) fn is_complete(&self) -> bool {
        !self.is_write || self.received == self.length || self.outcome.is_some()
    }
}

impl Target {
    pub(super) fn handle_command(&mut self, env: &mut Env, tsih: u16, pdu: &Pdu) {
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&pdu.header[32..48]);
        let (itt, length) = (pdu.itt(), index(pdu.word(20)));
        let (lba, blocks) = unit::range(&cdb);
        env.tell(format_args!(
            "session {tsih}: task {itt:#010x} is {:#04x} lba {lba} blocks {blocks}",
            cdb[0]
        ));
        self.commands += u64::from(unit::is_medium_access(&cdb));
        self.check_command(env, tsih, pdu, &cdb);
        let is_write = pdu.header[1] & WRITE != 0;
        let mut data = if is_write {
            vec![0; length]
        } else {
            Vec::new()
        };
        let immediate = pdu.data.len().min(data.len());
        data[..immediate].copy_from_slice(&pdu.data[..immediate]);
        let mut lun = [0; 8];
        lun.copy_from_slice(&pdu.header[8..16]);
        let outcome = self.refuse(env, tsih, pdu.lun(), &cdb);
        let number = self.next_task;
        self.next_task += 1;
        self.tasks.insert(
            number,
            Task {
                tsih,
                itt,
                cdb,
                lun,
                length,
                is_write,
                data,
                received: immediate,
                unsolicited: (!pdu.is_final()).then_some(0),
                asked: 0,
                next_r2t_sn: 0,
                bursts: Vec::new(),
                outcome,
                is_forgotten: false,
            },
        );
        self.advance(env, number);
    }

    /// What the initiator must keep to with a command.
    fn check_command(&mut self, env: &mut Env, tsih: u16, pdu: &Pdu, cdb: &[u8; 16]) {
        let Some(session) = self.sessions.get_mut(&tsih) else {
            return;
        };
        let (itt, length, agreed) = (pdu.itt(), index(pdu.word(20)), session.agreed);
        let mut wrong = Vec::new();
        if !session.tags.insert(itt) || itt == NO_TAG {
            wrong.push("the tag is in use");
        }
        if matches!(cdb[0], unit::READ_16 | unit::WRITE_16) {
            let (_, blocks) = unit::range(cdb);
            if u64::try_from(length / BLOCK).ok() != Some(blocks) || length % BLOCK != 0 {
                wrong.push("its length is not the CDB's");
            }
        }
        let immediate = pdu.data.len();
        if immediate > index(agreed.max_recv.min(agreed.first_burst)).min(length) {
            wrong.push("too much immediate data");
        }
        if immediate > 0 && !agreed.immediate_data {
            wrong.push("immediate data was declined");
        }
        if !pdu.is_final() && (agreed.initial_r2t || pdu.header[1] & WRITE == 0) {
            wrong.push("unsolicited data was declined");
        }
        let is_other_unit = self.unit.identity != self.expected_identity;
        if unit::is_medium_access(cdb) && is_other_unit {
            wrong.push("it would act on ANOTHER UNIT");
        }
        if unit::is_medium_access(cdb) && self.unit.blocks < self.expected_blocks {
            wrong.push("it would act on a unit that HAS SHRUNK");
        }
        for what in wrong {
            self.complain(env, format!("task {itt:#010x}, {:#04x}: {what}", cdb[0]));
        }
    }

    /// Why the unit does not do it, this time or ever.
    fn refuse(&mut self, env: &mut Env, tsih: u16, lun: u16, cdb: &[u8; 16]) -> Option<Outcome> {
        let session = self.sessions.get_mut(&tsih)?;
        if lun != self.config.lun || env.now < self.cold_until {
            return (cdb[0] != unit::REPORT_LUNS)
                .then_some(Outcome::Check(unit::UNIT_NOT_SUPPORTED));
        }
        if !unit::passes_attention(cdb)
            && let Some(sense) = session.attentions.pop_front()
        {
            return Some(Outcome::Check(sense));
        }
        if !unit::is_medium_access(cdb) {
            return None;
        }
        if env.dice.is_within_percent(self.config.refuses) {
            return Some(match env.dice.between(0, 3) {
                0 => Outcome::Status(unit::BUSY),
                1 => Outcome::Status(unit::TASK_SET_FULL),
                2 => Outcome::Check(unit::BECOMING_READY),
                _ => Outcome::Check(unit::COMMAND_PHASE_ERROR),
            });
        }
        let (lba, blocks) = unit::range(cdb);
        let is_beyond = lba.saturating_add(blocks) > self.unit.blocks;
        (matches!(cdb[0], unit::READ_16 | unit::WRITE_16) && is_beyond)
            .then_some(Outcome::Check(unit::LBA_OUT_OF_RANGE))
    }

    pub(super) fn handle_data(&mut self, env: &mut Env, tsih: u16, pdu: &Pdu) {
        let (itt, ttt) = (pdu.itt(), pdu.word(20));
        let (data_sn, offset) = (pdu.word(36), index(pdu.word(40)));
        let Some(session) = self.sessions.get(&tsih) else {
            return;
        };
        let agreed = session.agreed;
        let found = self
            .tasks
            .iter_mut()
            .find(|(_, task)| task.tsih == tsih && task.itt == itt);
        // Data of a task that has ended is on its way for a while.
        let Some((&number, task)) = found else {
            return;
        };
        let end = offset + pdu.data.len();
        let mut wrong = pdu.data.len() > index(agreed.max_recv) || end > task.length;
        if ttt == NO_TAG {
            let limit = index(agreed.first_burst).min(task.length);
            wrong |= task.unsolicited != Some(data_sn) || offset != task.received || end > limit;
            task.unsolicited = (!pdu.is_final()).then_some(data_sn + 1);
        } else if let Some(at) = task.bursts.iter().position(|burst| burst.ttt == ttt) {
            let burst = &mut task.bursts[at];
            wrong |= offset != burst.next || data_sn != burst.data_sn || end > burst.end;
            wrong |= pdu.is_final() != (end == burst.end) || pdu.header[8..16] != task.lun;
            burst.next = end;
            burst.data_sn += 1;
            if pdu.is_final() {
                task.bursts.remove(at);
            }
        } else {
            wrong = true;
        }
        if wrong {
            let what = format!("Data-Out of {itt:#010x}: {ttt:#x} {data_sn} {offset}..{end}");
            self.complain(env, what);
            return;
        }
        task.data[offset..end].copy_from_slice(&pdu.data);
        task.received += pdu.data.len();
        self.advance(env, number);
    }

    /// Asks for more data, or lets the task go on its way.
    fn advance(&mut self, env: &mut Env, number: u64) {
        let Some(task) = self.tasks.get_mut(&number) else {
            return;
        };
        let tsih = task.tsih;
        let Some(session) = self.sessions.get_mut(&tsih) else {
            return;
        };
        let agreed = session.agreed;
        if task.outcome.is_some() || !task.is_write || task.received == task.length {
            self.begin(env, number);
            return;
        }
        if task.unsolicited.is_some() {
            return;
        }
        task.asked = task.asked.max(task.received);
        let mut requests = Vec::new();
        while task.asked < task.length && task.bursts.len() < index(agreed.max_outstanding_r2t) {
            let most = index(agreed.max_burst).min(task.length - task.asked);
            let bytes = match env.dice.between(0, 2) {
                0 => env.dice.index(most) + 1,
                _ => most,
            };
            let mut header = pdu::header(op::R2T, task.itt);
            header[8..16].copy_from_slice(&task.lun);
            let ttt = session.take_ttt();
            set(&mut header, 20, ttt);
            set(&mut header, 36, task.next_r2t_sn);
            set(&mut header, 40, length(task.asked));
            set(&mut header, 44, length(bytes));
            requests.push(header);
            task.next_r2t_sn += 1;
            task.bursts.push(Burst {
                ttt,
                next: task.asked,
                end: task.asked + bytes,
                data_sn: 0,
            });
            task.asked += bytes;
        }
        for header in requests {
            self.say(env, tsih, header, &[], false);
        }
    }

    /// The task will act after a while, or never.
    fn begin(&mut self, env: &mut Env, number: u64) {
        let Some(task) = self.tasks.get_mut(&number) else {
            return;
        };
        let mut wait = self.config.work;
        let may_be_slow = unit::is_medium_access(&task.cdb) && self.config.troubles > 0;
        if may_be_slow && task.outcome.is_none() {
            if env.dice.is_within_percent(self.config.forgets) {
                env.tell(format_args!("task {:#010x}: forgotten", task.itt));
                task.is_forgotten = true;
                self.config.troubles -= 1;
                return;
            }
            if env.dice.is_within_percent(self.config.dawdles) {
                wait = self.config.slow;
                self.config.troubles -= 1;
            }
        }
        let at = env.now + env.dice.between(wait.0, wait.1);
        let (task, from) = (number, 0);
        env.schedule_due(at, Due::Act { task, from });
    }
}

pub(super) fn index(number: u32) -> usize {
    usize::try_from(number).expect("32 bits")
}

pub(super) fn length(index: usize) -> u32 {
    u32::try_from(index).expect("transfers are short")
}

const WRITE: u8 = 0x20;
