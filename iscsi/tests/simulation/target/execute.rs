//! Tasks acting on the unit, and their answers.
//!
//! Source: RFC 7143 §11.4 (response), §11.7 (Data-In).

use super::pdu::{self, NO_TAG, op, set};
use super::transfer::{Task, index, length};
use super::unit::{self, Outcome};
use super::{BLOCK, Due, Target};
use crate::world::Env;

impl Target {
    /// A task acts, from one of its blocks on; other tasks may come in between.
    pub(super) fn act(&mut self, env: &mut Env, number: u64, from: usize) {
        let Some(task) = self.tasks.get_mut(&number) else {
            return;
        };
        if task.outcome.is_some() {
            let at = env.now;
            env.schedule_due(at, Due::Answer { task: number });
            return;
        }
        let blocks = match task.cdb[0] {
            unit::READ_16 | unit::WRITE_16 => task.length / BLOCK,
            _ => 0,
        };
        let left = blocks.saturating_sub(from);
        let to = if left > 1 && env.dice.is_within_percent(40) {
            from + 1 + env.dice.index(left - 1)
        } else {
            blocks
        };
        self.act_on(env, number, from..to);
        if to < blocks {
            let at = env.now + env.dice.between(1, 20);
            let (task, from) = (number, to);
            env.schedule_due(at, Due::Act { task, from });
            return;
        }
        let (low, high) = self.config.answer;
        let at = env.now + env.dice.between(low, high);
        env.schedule_due(at, Due::Answer { task: number });
    }

    /// The rest of it at once: its end is near.
    pub(super) fn act_all(&mut self, env: &mut Env, number: u64) {
        let blocks = self
            .tasks
            .get(&number)
            .filter(|task| task.cdb[0] == unit::WRITE_16)
            .map_or(0, |task| task.length / BLOCK);
        self.act_on(env, number, 0..blocks);
    }

    fn act_on(&mut self, env: &mut Env, number: u64, blocks: std::ops::Range<usize>) {
        let Some(task) = self
            .tasks
            .get_mut(&number)
            .filter(|task| task.outcome.is_none())
        else {
            return;
        };
        let (lba, count) = unit::range(&task.cdb);
        let at = |block: usize| lba + u64::try_from(block).expect("an index");
        let (start, end) = (at(blocks.start), at(blocks.end));
        let is_last = u64::try_from(blocks.end).expect("an index") == count;
        match task.cdb[0] {
            unit::WRITE_16 => {
                let is_forced = task.cdb[1] & FUA != 0;
                for block in blocks {
                    let bytes = &task.data[block * BLOCK..(block + 1) * BLOCK];
                    self.unit.write(at(block), bytes, is_forced);
                }
                let session = self.sessions.get(&task.tsih);
                let is_late = session.is_none_or(|session| session.wire.is_none());
                self.late_writes += u64::from(is_late);
                let late = if is_late { ", LATE" } else { "" };
                let itt = task.itt;
                env.tell(format_args!(
                    "task {itt:#010x}: writes {start}..{end}{late}"
                ));
                if is_last {
                    task.outcome = Some(Outcome::Good(Vec::new()));
                }
            }
            unit::READ_16 => {
                for block in blocks {
                    task.data.extend_from_slice(self.unit.block(at(block)));
                }
                env.tell(format_args!(
                    "task {:#010x}: reads {start}..{end}",
                    task.itt
                ));
                if is_last {
                    task.outcome = Some(Outcome::Good(std::mem::take(&mut task.data)));
                }
            }
            unit::REPORT_LUNS => {
                task.outcome = Some(unit::report_luns(&task.cdb, self.config.lun));
            }
            _ => task.outcome = Some(self.unit.answer(&task.cdb)),
        }
    }

    /// The answer leaves, if there is a connection left for it.
    pub(super) fn answer(&mut self, env: &mut Env, number: u64) {
        let Some(task) = self.tasks.remove(&number) else {
            return;
        };
        if let Some(session) = self.sessions.get_mut(&task.tsih) {
            session.tags.remove(&task.itt);
        }
        match task.outcome.clone() {
            Some(Outcome::Good(data)) => self.answer_good(env, &task, data),
            Some(Outcome::Check((key, asc, ascq))) => {
                let mut sense = vec![0, 18, 0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq];
                sense.resize(20, 0);
                let what = format_args!("{key:#04x}/{asc:#04x}/{ascq:#04x}");
                env.tell(format_args!(
                    "task {:#010x}: check condition {what}",
                    task.itt
                ));
                self.respond(env, &task, CHECK_CONDITION, &sense, task.length);
            }
            Some(Outcome::Status(status)) => {
                env.tell(format_args!(
                    "task {:#010x}: status {status:#04x}",
                    task.itt
                ));
                self.respond(env, &task, status, &[], task.length);
            }
            None => {}
        }
        self.forget_idle();
    }

    fn answer_good(&mut self, env: &mut Env, task: &Task, mut data: Vec<u8>) {
        let is_read = task.cdb[0] == unit::READ_16;
        let mut is_owned_up = true;
        if is_read && env.dice.is_within_percent(self.config.shortens) {
            let bytes = env.dice.index(data.len().max(1));
            let is_whole = env.dice.is_within_percent(50);
            data.truncate(if is_whole {
                bytes / BLOCK * BLOCK
            } else {
                bytes
            });
            is_owned_up = env.dice.is_within_percent(50);
            let (itt, bytes) = (task.itt, data.len());
            env.tell(format_args!(
                "task {itt:#010x}: only {bytes} bytes, owned up to: {is_owned_up}"
            ));
        }
        data.truncate(task.length);
        let missing = if is_owned_up && data.len() < task.length && !task_writes(task) {
            task.length - data.len()
        } else {
            0
        };
        if data.is_empty() {
            self.respond(env, task, GOOD, &[], missing);
            return;
        }
        let Some(session) = self.sessions.get(&task.tsih) else {
            return;
        };
        let burst = index(session.agreed.max_burst);
        let most = index(session.initiator_max_recv).min(burst);
        let segment = env.dice.pick(&[512, 700, 4096, most]).min(most);
        let is_collapsed = env.dice.is_within_percent(50);
        let (mut offset, mut data_sn) = (0, 0);
        while offset < data.len() {
            let burst_end = (offset / burst + 1) * burst;
            let end = data.len().min(offset + segment).min(burst_end);
            let is_last = end == data.len();
            let mut header = pdu::header(op::DATA_IN, task.itt);
            header[1] = if is_last || end == burst_end {
                pdu::FINAL
            } else {
                0
            };
            let has_status = is_last && is_collapsed;
            if has_status {
                header[1] |= STATUS;
                set_residual(&mut header, missing);
            }
            set(&mut header, 20, NO_TAG);
            set(&mut header, 36, data_sn);
            set(&mut header, 40, length(offset));
            self.say(env, task.tsih, header, &data[offset..end], has_status);
            offset = end;
            data_sn += 1;
        }
        if !is_collapsed {
            self.respond(env, task, GOOD, &[], missing);
        }
    }

    fn respond(&mut self, env: &mut Env, task: &Task, status: u8, data: &[u8], missing: usize) {
        let mut header = pdu::header(op::RESPONSE, task.itt);
        header[3] = status;
        set_residual(&mut header, missing);
        self.say(env, task.tsih, header, data, true);
    }
}

fn task_writes(task: &Task) -> bool {
    task.cdb[0] == unit::WRITE_16
}

fn set_residual(header: &mut pdu::Header, missing: usize) {
    if missing > 0 {
        header[1] |= UNDERFLOW;
        set(header, 44, length(missing));
    }
}

const GOOD: u8 = 0;
const CHECK_CONDITION: u8 = 2;
const STATUS: u8 = 0x01;
const UNDERFLOW: u8 = 0x02;
/// Force unit access, in WRITE(16).
const FUA: u8 = 0x08;
