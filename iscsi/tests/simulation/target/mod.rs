//! A model target, as small as it can be and still meet all that the initiator does: sessions, window, tasks.
//!
//! It shares no code with `iscsi`: tables, layouts and state are its own.
//!
//! Source: RFC 7143 §4.2.2 (window), §6.3.5 (reinstatement), §11 (PDUs); SAM-5 §5 (tasks).
//!
//! Invariants:
//! 1. A task acts on the unit at one moment for each block, at or after its data is here, and never after its session
//!    was reinstated, its unit reset, or itself aborted.
//! 2. A session whose connection is lost goes on with what it has (real targets do): only a new login with its name,
//!    ISID and portal group ends it.
//! 3. What an initiator must not do is complained about, and fails the schedule.

mod execute;
mod login;
mod pdu;
mod transfer;
mod unit;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::wires::{End, Way};
use super::world::{Env, Event, Millis};
use login::Login;
use pdu::{Digests, Header, NO_TAG, Pdu, op, set};
use transfer::Task;
use unit::Sense;

pub(crate) use unit::{BLOCK, Unit};

/// How the target of a schedule is.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) name: String,
    pub(crate) lun: u16,
    /// Portal group of each portal.
    pub(crate) groups: Vec<u16>,
    /// Most commands that wait or work, a session.
    pub(crate) window: u32,
    pub(crate) keys: Keys,
    /// Between a command's data and the moment it acts.
    pub(crate) work: (Millis, Millis),
    /// Between that moment and the answer.
    pub(crate) answer: (Millis, Millis),
    /// Until a login is answered.
    pub(crate) login: (Millis, Millis),
    /// Percent of data commands that are refused for now: BUSY, TASK SET FULL, ABORTED COMMAND, becoming ready.
    pub(crate) refuses: u64,
    /// Percent of logins at the first portal that are sent to the second.
    pub(crate) redirects: u64,
    /// Percent of logins that are refused for now.
    pub(crate) refuses_logins: u64,
    /// How many tasks may be forgotten or dawdle.
    pub(crate) troubles: u64,
    /// Percent of tasks that are forgotten: neither done nor answered.
    pub(crate) forgets: u64,
    /// Percent of tasks that take `slow` instead of `work`.
    pub(crate) dawdles: u64,
    pub(crate) slow: (Millis, Millis),
    /// Percent of task management requests that are refused or not answered.
    pub(crate) ignores_management: u64,
    /// Percent of reads that are answered well without all of their bytes.
    pub(crate) shortens: u64,
}

/// What the target says in the negotiation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    pub(crate) max_recv: u32,
    pub(crate) max_burst: u32,
    pub(crate) first_burst: u32,
    pub(crate) initial_r2t: bool,
    pub(crate) immediate_data: bool,
    pub(crate) max_outstanding_r2t: u32,
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
}

/// The target process, and the units behind it.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) config: Config,
    pub(crate) unit: Unit,
    /// Who must be behind the LUN for data to move.
    expected_identity: u32,
    expected_blocks: u64,
    links: BTreeMap<usize, Link>,
    sessions: BTreeMap<u16, Session>,
    tasks: BTreeMap<u64, Task>,
    next_tsih: u16,
    next_task: u64,
    is_up: bool,
    /// Until when it does not know its volumes.
    pub(crate) cold_until: Millis,
    /// Logins refused in a row.
    refusals: u8,
    complaints: Vec<String>,
    /// Commands that move data, so far.
    pub(crate) commands: u64,
    /// Writes that acted although their session's connection was lost.
    pub(crate) late_writes: u64,
}

/// One connection.
#[derive(Debug)]
struct Link {
    portal: usize,
    buffer: Vec<u8>,
    phase: Phase,
    digests: Digests,
    stat_sn: u32,
}

#[derive(Debug)]
enum Phase {
    Login(Box<Login>),
    Full { tsih: u16 },
    Over,
}

/// Names an I_T nexus. RFC 7143 §4.4.3.1.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NexusName {
    initiator: String,
    isid: [u8; 6],
    group: u16,
}

#[derive(Debug)]
struct Session {
    nexus: NexusName,
    /// `None` once the connection is lost.
    wire: Option<usize>,
    /// Whether the login was answered: nothing is said before.
    is_open: bool,
    agreed: Keys,
    /// Longest segment that the initiator takes.
    initiator_max_recv: u32,
    exp_cmd_sn: u32,
    max_cmd_sn: u32,
    attentions: VecDeque<Sense>,
    /// Tags in use.
    tags: BTreeSet<u32>,
    next_ttt: u32,
    /// Pings of the target's that wait for their answers.
    pings: BTreeSet<u32>,
}

/// Something that the target does later.
#[derive(Debug)]
pub(crate) enum Due {
    LoginAnswer {
        wire: usize,
        bytes: Vec<u8>,
        is_last: bool,
    },
    Act {
        task: u64,
        from: usize,
    },
    Answer {
        task: u64,
    },
    Manage {
        tsih: u16,
        itt: u32,
        response: u8,
    },
    Close {
        wire: usize,
    },
}

impl Target {
    pub(crate) fn new(config: Config, unit: Unit) -> Self {
        Self {
            config,
            expected_identity: unit.identity,
            expected_blocks: unit.blocks,
            unit,
            links: BTreeMap::new(),
            sessions: BTreeMap::new(),
            tasks: BTreeMap::new(),
            next_tsih: 1,
            next_task: 1,
            is_up: true,
            cold_until: 0,
            refusals: 0,
            complaints: Vec::new(),
            commands: 0,
            late_writes: 0,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.is_up
    }

    /// Connections in full feature phase on which a changed byte is noticed.
    pub(crate) fn guarded_wires(&self) -> Vec<usize> {
        let both = Digests {
            header: true,
            data: true,
        };
        self.links
            .iter()
            .filter(|(_, link)| link.digests == both)
            .map(|(wire, _)| *wire)
            .collect()
    }

    pub(crate) fn sessions_ever(&self) -> u16 {
        self.next_tsih - 1
    }

    pub(crate) fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// Whether something will still act on the unit.
    pub(crate) fn is_at_work(&self) -> bool {
        self.tasks
            .values()
            .any(|task| task.is_complete() && !task.is_forgotten)
    }

    pub(crate) fn handle_connected(&mut self, wire: usize, portal: usize) {
        self.links.insert(
            wire,
            Link {
                portal,
                buffer: Vec::new(),
                phase: Phase::Login(Box::default()),
                digests: Digests::default(),
                stat_sn: 0,
            },
        );
    }

    pub(crate) fn handle_bytes(&mut self, env: &mut Env, wire: usize, bytes: &[u8]) {
        let Some(link) = self.links.get_mut(&wire) else {
            // Nobody listens any more: the system answers with a reset.
            let at = env.now + env.dice.between(0, 3);
            let (way, end) = (Way::Down, End::Reset);
            env.schedule(at, Event::Ended { wire, way, end });
            return;
        };
        link.buffer.extend_from_slice(bytes);
        while let Some(link) = self.links.get_mut(&wire) {
            match Pdu::take(&mut link.buffer, link.digests) {
                Ok(Some(pdu)) => self.handle_pdu(env, wire, &pdu),
                Ok(None) => return,
                Err(complaint) => {
                    if !env.wires[wire].up.was_corrupted {
                        self.complain(env, format!("wire {wire}: {complaint}"));
                    }
                    self.close(env, wire);
                }
            }
        }
    }

    /// The initiator's end is gone, as far as the target can see.
    pub(crate) fn handle_end(&mut self, env: &mut Env, wire: usize) {
        env.tell(format_args!("wire {wire}: the target sees its end"));
        self.close(env, wire);
    }

    pub(crate) fn handle_due(&mut self, env: &mut Env, due: Due) {
        match due {
            Due::LoginAnswer {
                wire,
                bytes,
                is_last,
            } => {
                let Some(link) = self.links.get(&wire) else {
                    return;
                };
                if let Phase::Full { tsih } = link.phase
                    && let Some(session) = self.sessions.get_mut(&tsih)
                {
                    session.is_open = true;
                }
                env.send(wire, Way::Down, &bytes);
                if is_last {
                    self.close(env, wire);
                }
            }
            Due::Act { task, from } => self.act(env, task, from),
            Due::Answer { task } => self.answer(env, task),
            Due::Manage {
                tsih,
                itt,
                response,
            } => {
                let mut header = pdu::header(op::TASK_MANAGEMENT_RESPONSE, itt);
                header[2] = response;
                self.say(env, tsih, header, &[], true);
            }
            Due::Close { wire } => self.close(env, wire),
        }
    }

    /// The process ends: connections are reset or just fall silent, sessions and tasks vanish. What was written stays,
    /// as the host lives.
    pub(crate) fn stop(&mut self, env: &mut Env, is_silent: bool) {
        env.tell(format_args!("target: stops"));
        for wire in std::mem::take(&mut self.links).into_keys() {
            env.wires[wire].is_closed = true;
            if is_silent {
                env.wires[wire].down.is_black_hole = true;
            } else {
                env.finish(wire);
            }
        }
        self.sessions.clear();
        self.tasks.clear();
        self.is_up = false;
    }

    pub(crate) fn start(&mut self, env: &mut Env) {
        env.tell(format_args!("target: starts"));
        self.is_up = true;
    }

    /// Each session hears of it with its next command.
    pub(crate) fn announce(&mut self, sense: Sense) {
        for session in self.sessions.values_mut() {
            session.attentions.push_back(sense);
        }
    }

    /// Sends every session an asynchronous message.
    pub(crate) fn notify(&mut self, env: &mut Env, event: u8, parameters: [u16; 3]) {
        let tsihs: Vec<u16> = self.sessions.keys().copied().collect();
        for tsih in tsihs {
            let mut header = pdu::header(op::ASYNC, NO_TAG);
            header[36] = event;
            for (at, parameter) in [38, 40, 42].into_iter().zip(parameters) {
                header[at..at + 2].copy_from_slice(&parameter.to_be_bytes());
            }
            let data: &[u8] = if event == 0 { &REPORTED_CHANGE } else { &[] };
            self.say(env, tsih, header, data, true);
        }
    }

    /// Asks every session for a sign of life.
    pub(crate) fn ping(&mut self, env: &mut Env) {
        let tsihs: Vec<u16> = self.sessions.keys().copied().collect();
        for tsih in tsihs {
            let Some(session) = self.sessions.get_mut(&tsih) else {
                continue;
            };
            let ttt = session.take_ttt();
            session.pings.insert(ttt);
            let mut header = pdu::header(op::NOP_IN, NO_TAG);
            set(&mut header, 20, ttt);
            self.say(env, tsih, header, b"alive?", false);
        }
    }

    fn complain(&mut self, env: &mut Env, complaint: String) {
        env.tell(format_args!("COMPLAINT: {complaint}"));
        self.complaints.push(complaint);
    }

    /// Lets a connection go; its session goes on with what it has.
    fn close(&mut self, env: &mut Env, wire: usize) {
        if self.links.remove(&wire).is_none() {
            return;
        }
        env.wires[wire].is_closed = true;
        env.finish(wire);
        for session in self.sessions.values_mut() {
            if session.wire == Some(wire) {
                session.wire = None;
            }
        }
        self.forget_idle();
    }

    /// A session without a connection lives as long as its tasks; one that waits for data waits in vain.
    fn forget_idle(&mut self) {
        let lost: Vec<u16> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.wire.is_none())
            .map(|(tsih, _)| *tsih)
            .collect();
        for tsih in lost {
            self.tasks
                .retain(|_, task| task.tsih != tsih || task.is_complete());
            if !self.tasks.values().any(|task| task.tsih == tsih) {
                self.sessions.remove(&tsih);
            }
        }
    }

    fn handle_pdu(&mut self, env: &mut Env, wire: usize, pdu: &Pdu) {
        let Some(link) = self.links.get(&wire) else {
            return;
        };
        match link.phase {
            Phase::Login(_) => self.handle_login(env, wire, pdu),
            Phase::Full { tsih } => self.handle_request(env, wire, tsih, pdu),
            Phase::Over => {}
        }
    }

    fn handle_request(&mut self, env: &mut Env, wire: usize, tsih: u16, pdu: &Pdu) {
        let stat_sn = self.links.get(&wire).map_or(0, |link| link.stat_sn);
        // RFC 7143 §4.2.2.2: an initiator acknowledges no more than it can have seen
        let acknowledged = pdu.word(28);
        if stat_sn.wrapping_sub(acknowledged) > i32::MAX.unsigned_abs() {
            let what = format!("ExpStatSN {acknowledged} beyond {stat_sn}");
            self.complain(env, what);
        }
        if pdu.opcode() != op::DATA_OUT && !self.count_command(env, tsih, pdu) {
            return;
        }
        match pdu.opcode() {
            op::COMMAND => self.handle_command(env, tsih, pdu),
            op::DATA_OUT => self.handle_data(env, tsih, pdu),
            op::NOP_OUT => self.handle_nop(env, tsih, pdu),
            op::TASK_MANAGEMENT => self.handle_management(env, tsih, pdu),
            op::LOGOUT => {
                let header = pdu::header(op::LOGOUT_RESPONSE, pdu.itt());
                self.say(env, tsih, header, &[], true);
                // RFC 7143 §11.14: a logout ends the session's tasks
                self.end_session(env, tsih);
                if let Some(link) = self.links.get_mut(&wire) {
                    link.phase = Phase::Over;
                }
                let at = env.now + env.dice.between(0, 5);
                env.schedule_due(at, Due::Close { wire });
            }
            op::TEXT => {
                let mut header = pdu::header(op::REJECT, NO_TAG);
                header[2] = 0x05; // command not supported
                self.say(env, tsih, header, &pdu.header, true);
            }
            other => self.complain(env, format!("opcode {other:#04x} in full feature phase")),
        }
    }

    /// RFC 7143 §4.2.2.1: whether the PDU's number is the one that is due, within the window.
    fn count_command(&mut self, env: &mut Env, tsih: u16, pdu: &Pdu) -> bool {
        let Some(session) = self.sessions.get_mut(&tsih) else {
            return false;
        };
        let (cmd_sn, due) = (pdu.word(24), session.exp_cmd_sn);
        if pdu.is_immediate() {
            return true;
        }
        let beyond = cmd_sn.wrapping_sub(session.max_cmd_sn);
        if cmd_sn != due || (beyond != 0 && beyond < i32::MAX.unsigned_abs()) {
            let max = session.max_cmd_sn;
            let opcode = pdu.opcode();
            let what = format!("CmdSN {cmd_sn} of opcode {opcode:#04x}, due is {due}, max {max}");
            self.complain(env, what);
            return false;
        }
        session.exp_cmd_sn = due.wrapping_add(1);
        true
    }

    fn handle_nop(&mut self, env: &mut Env, tsih: u16, pdu: &Pdu) {
        let Some(session) = self.sessions.get_mut(&tsih) else {
            return;
        };
        let ttt = pdu.word(20);
        if ttt != NO_TAG {
            if !session.pings.remove(&ttt) || pdu.data != b"alive?" {
                self.complain(env, format!("an answer to no ping: {ttt:#x}"));
            }
            return;
        }
        if pdu.itt() != NO_TAG {
            let mut header = pdu::header(op::NOP_IN, pdu.itt());
            set(&mut header, 20, NO_TAG);
            self.say(env, tsih, header, &pdu.data, true);
        }
    }

    fn handle_management(&mut self, env: &mut Env, tsih: u16, pdu: &Pdu) {
        let function = pdu.header[1] & 0x7f;
        env.tell(format_args!("session {tsih}: task management {function}"));
        if env.dice.is_within_percent(self.config.ignores_management) {
            if env.dice.is_within_percent(50) {
                return;
            }
            self.answer_management(env, tsih, pdu.itt(), NOT_SUPPORTED);
            return;
        }
        let response = match function {
            ABORT_TASK => {
                let tag = pdu.word(20);
                let found = self
                    .tasks
                    .iter()
                    .find(|(_, task)| task.tsih == tsih && task.itt == tag)
                    .map(|(number, _)| *number);
                match found {
                    Some(task) => {
                        self.end_tasks(env, |number, _| number == task);
                        FUNCTION_COMPLETE
                    }
                    None => NO_SUCH_TASK,
                }
            }
            ABORT_TASK_SET => {
                self.end_tasks(env, |_, task| task.tsih == tsih);
                FUNCTION_COMPLETE
            }
            // Of all nexuses: that is what makes it a fence.
            CLEAR_TASK_SET | LOGICAL_UNIT_RESET | TARGET_WARM_RESET => {
                self.end_tasks(env, |_, _| true);
                for (other, session) in &mut self.sessions {
                    if *other != tsih {
                        session.attentions.push_back(unit::POWER_ON_OCCURRED);
                    }
                }
                FUNCTION_COMPLETE
            }
            _ => NOT_SUPPORTED,
        };
        self.answer_management(env, tsih, pdu.itt(), response);
    }

    fn answer_management(&mut self, env: &mut Env, tsih: u16, itt: u32, response: u8) {
        let (low, high) = self.config.answer;
        let at = env.now + env.dice.between(low, high);
        env.schedule_due(
            at,
            Due::Manage {
                tsih,
                itt,
                response,
            },
        );
    }

    /// Ends tasks before anything else happens: a write with its data at hand may still act, or not any more.
    fn end_tasks(&mut self, env: &mut Env, which: impl Fn(u64, &Task) -> bool) {
        let ended: Vec<u64> = self
            .tasks
            .iter()
            .filter(|(number, task)| which(**number, task))
            .map(|(number, _)| *number)
            .collect();
        for number in ended {
            let is_complete = self.tasks.get(&number).is_some_and(Task::is_complete);
            if is_complete && env.dice.is_within_percent(30) {
                self.act_all(env, number);
            }
            self.forget(number);
        }
        self.forget_idle();
    }

    fn forget(&mut self, task: u64) {
        if let Some(task) = self.tasks.remove(&task)
            && let Some(session) = self.sessions.get_mut(&task.tsih)
        {
            session.tags.remove(&task.itt);
        }
    }

    fn end_session(&mut self, env: &mut Env, tsih: u16) {
        self.end_tasks(env, |_, task| task.tsih == tsih);
        self.sessions.remove(&tsih);
    }

    /// Sends a PDU of the full feature phase with its numbers; `has_status`: it takes a status number.
    fn say(&mut self, env: &mut Env, tsih: u16, mut header: Header, data: &[u8], has_status: bool) {
        let taken = self.tasks.values().filter(|task| task.tsih == tsih).count();
        let taken = u32::try_from(taken).expect("a window of tasks");
        let Some(session) = self.sessions.get_mut(&tsih) else {
            return;
        };
        // RFC 7143 §4.2.2.1: the window never shrinks from its upper end
        let free = self.config.window.saturating_sub(taken);
        let max = session.exp_cmd_sn.wrapping_add(free).wrapping_sub(1);
        if max.wrapping_sub(session.max_cmd_sn) < i32::MAX.unsigned_abs() {
            session.max_cmd_sn = max;
        }
        let Some(wire) = session.wire.filter(|_| session.is_open) else {
            return;
        };
        let Some(link) = self.links.get_mut(&wire) else {
            return;
        };
        set(&mut header, 24, link.stat_sn);
        set(&mut header, 28, session.exp_cmd_sn);
        set(&mut header, 32, session.max_cmd_sn);
        if has_status {
            link.stat_sn = link.stat_sn.wrapping_add(1);
        }
        let bytes = pdu::emit(header, data, link.digests);
        env.send(wire, Way::Down, &bytes);
    }
}

impl Session {
    fn take_ttt(&mut self) -> u32 {
        self.next_ttt = self.next_ttt.wrapping_add(1) & 0x7fff_ffff;
        self.next_ttt
    }
}

/// RFC 7143 §11.5.1, §11.6.1.
const ABORT_TASK: u8 = 1;
const ABORT_TASK_SET: u8 = 2;
const CLEAR_TASK_SET: u8 = 4;
const LOGICAL_UNIT_RESET: u8 = 5;
const TARGET_WARM_RESET: u8 = 6;
const FUNCTION_COMPLETE: u8 = 0;
const NO_SUCH_TASK: u8 = 1;
const NOT_SUPPORTED: u8 = 5;
/// Sense data of an asynchronous message, behind its length: 2Ah/09h, capacity data has changed.
const REPORTED_CHANGE: [u8; 20] = [
    0, 18, 0x70, 0, 0x06, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x2a, 0x09, 0, 0, 0, 0,
];
