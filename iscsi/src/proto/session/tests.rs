//! Sessions by script, in invented time: the test is the target.

mod connections;
mod data;
mod functions;
mod ladder;

use super::*;
use crate::proto::Offers;
use crate::proto::negotiation::{Negotiation, Role};
use crate::scsi::SenseKey;
use crate::wire::async_message::{AsyncEvent, AsyncMessage};
use crate::wire::data_in::{DataIn, DataInStatus};
use crate::wire::data_out::DataOut;
use crate::wire::header::{self, Opcode, ResponseNumbers};
use crate::wire::logout::{LogoutOutcome, LogoutReason, LogoutRequest, LogoutResponse};
use crate::wire::nop::{NopIn, NopOut};
use crate::wire::r2t::R2t;
use crate::wire::reject::{Reject, RejectReason};
use crate::wire::scsi_command::ScsiCommand;
use crate::wire::scsi_response::{Residual, ScsiResponse};
use crate::wire::serial::{DataSn, R2tSn, StatSn};
use crate::wire::tag::TargetTransferTag;
use crate::wire::task_management::{
    TaskManagementFunction, TaskManagementRequest, TaskManagementResponse,
};

const LUN: u64 = 0x0001_0000_0000_0000;
const SECOND: Duration = Duration::from_secs(1);
const NO_TAG: TargetTransferTag = TargetTransferTag::RESERVED;

/// A session and the target's side of it.
struct Script {
    session: Session,
    now: Instant,
    /// The connection that the next PDU comes on.
    cid: u16,
    /// The next status number of each connection.
    stat_sns: Vec<StatSn>,
    exp_cmd_sn: CmdSn,
    max_cmd_sn: CmdSn,
}

const SETTINGS: Settings = Settings {
    tasks: 4,
    noop_interval: Duration::from_secs(5),
    noop_timeout: Duration::from_secs(10),
    timeouts: Timeouts {
        command: Duration::from_secs(30),
        slow: Duration::from_mins(1),
        abort: Duration::from_secs(15),
        lu_reset: Duration::from_secs(30),
    },
};

fn established(agreed: Agreed, numbers: ResponseNumbers) -> Established {
    Established {
        agreed,
        tsih: 1,
        cid: 0,
        is_target_proved: false,
        warnings: Vec::new(),
        cmd_sn: numbers.exp_cmd_sn,
        exp_stat_sn: numbers.stat_sn.next(),
        numbers,
    }
}

fn agreed() -> Agreed {
    Agreed {
        header_digest: false,
        data_digest: false,
        max_connections: 1,
        initial_r2t: true,
        immediate_data: true,
        theirs_max_recv_data_segment_bytes: 8192,
        max_burst_bytes: 16_384,
        first_burst_bytes: 12_288,
        max_outstanding_r2t: 2,
        ..Negotiation::new(Role::Leading, &Offers::default())
            .finish()
            .unwrap()
    }
}

impl Script {
    fn new() -> Self {
        Self::with(agreed(), 10, 64)
    }

    /// A session whose first command has the number `cmd_sn` and whose window holds `window`.
    fn with(agreed: Agreed, cmd_sn: u32, window: u32) -> Self {
        Self::with_settings(agreed, cmd_sn, window, SETTINGS)
    }

    fn with_settings(agreed: Agreed, cmd_sn: u32, window: u32, settings: Settings) -> Self {
        let numbers = ResponseNumbers {
            stat_sn: StatSn(99),
            exp_cmd_sn: CmdSn(cmd_sn),
            max_cmd_sn: CmdSn(cmd_sn.wrapping_add(window).wrapping_sub(1)),
        };
        let established = Established {
            exp_stat_sn: StatSn(100),
            cmd_sn: CmdSn(cmd_sn),
            ..established(agreed, numbers)
        };
        let now = Instant::now();
        Self {
            session: Session::new(&established, settings, now),
            now,
            cid: 0,
            stat_sns: vec![StatSn(100)],
            exp_cmd_sn: numbers.exp_cmd_sn,
            max_cmd_sn: numbers.max_cmd_sn,
        }
    }

    /// A session that pings nobody by itself.
    fn without_pings() -> Self {
        let settings = Settings {
            noop_interval: Duration::ZERO,
            ..SETTINGS
        };
        Self::with_settings(agreed(), 10, 64, settings)
    }

    fn submit(&mut self, direction: Direction) -> u16 {
        self.submit_to(LUN, 0x2a, direction)
    }

    fn submit_to(&mut self, lun: u64, operation_code: u8, direction: Direction) -> u16 {
        let mut cdb = [0; 16];
        cdb[0] = operation_code;
        self.session
            .submit(lun, cdb, direction)
            .expect("a slot is free")
    }

    fn transmit(&mut self) -> Transmit {
        let cid = self.cid;
        self.session.poll_transmit(cid).expect("a PDU may leave")
    }

    /// Everything that may leave, on all connections.
    fn drain(&mut self) -> Vec<Transmit> {
        let session = &mut self.session;
        let mut left = Vec::new();
        for cid in session.cids() {
            left.extend(std::iter::from_fn(|| session.poll_transmit(cid)));
        }
        left
    }

    /// What is told besides the answer to a PDU.
    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.session.poll_event()).collect()
    }

    /// The slots of the tasks that were aborted; nothing else is told.
    fn aborted(&mut self) -> Vec<u16> {
        let is_aborted = |event| {
            let Event::Completed(end) = event else {
                panic!("not aborted: {event:?}")
            };
            assert_eq!((end.status, end.response), (Status::TASK_ABORTED, None));
            end.slot
        };
        self.events().into_iter().map(is_aborted).collect()
    }

    /// Lets time pass as a driver does, until a PDU wants to leave or `seconds` have passed.
    fn wait(&mut self, seconds: u64) -> Result<Option<Transmit>, SessionError> {
        let end = self.now + Duration::from_secs(seconds);
        loop {
            if let Some(transmit) = self.session.poll_transmit(self.cid) {
                return Ok(Some(transmit));
            }
            match self.session.poll_timeout() {
                Some(due) if due <= end => self.now = self.now.max(due),
                Some(_) | None => {
                    self.now = end;
                    return Ok(None);
                }
            }
            self.session.handle_timeout(self.now)?;
        }
    }

    /// Submits, and gives the command as it leaves.
    fn start(&mut self, direction: Direction) -> (u16, ScsiCommand) {
        let slot = self.submit(direction);
        let command = ScsiCommand::parse(&self.transmit().header);
        (slot, command)
    }

    fn data_out(&mut self) -> (DataOut, Payload) {
        let transmit = self.transmit();
        assert_eq!(header::opcode(&transmit.header), Opcode::DATA_OUT);
        (DataOut::parse(&transmit.header), transmit.payload)
    }

    fn is_quiet(&mut self) -> bool {
        self.session.poll_transmit(self.cid).is_none()
    }

    fn numbers(&self) -> ResponseNumbers {
        ResponseNumbers {
            stat_sn: self.stat_sns[usize::from(self.cid)],
            exp_cmd_sn: self.exp_cmd_sn,
            max_cmd_sn: self.max_cmd_sn,
        }
    }

    /// The numbers of a PDU that carries a status.
    fn status_numbers(&mut self) -> ResponseNumbers {
        let numbers = self.numbers();
        let stat_sn = &mut self.stat_sns[usize::from(self.cid)];
        *stat_sn = stat_sn.next();
        numbers
    }

    /// Gives a PDU with a data segment of our own.
    fn give(&mut self, mut bhs: Bhs, data: &[u8]) -> Result<Option<Event>, SessionError> {
        header::set_data_segment_bytes(&mut bhs, u32::try_from(data.len()).unwrap());
        self.session.handle_heard(self.cid, self.now);
        let placement = self.session.handle_header(self.cid, &bhs, self.now)?;
        assert_eq!(
            placement,
            Placement::Own {
                bytes: u32::try_from(data.len()).unwrap()
            }
        );
        self.session.handle_segment(self.cid, data)
    }

    fn response(
        &mut self,
        itt: InitiatorTaskTag,
        status: u8,
        residual: Residual,
        sense: &[u8],
    ) -> Result<Option<Event>, SessionError> {
        let response = ScsiResponse {
            residual,
            bidirectional_residual: Residual::None,
            response: ServiceResponse::COMPLETED,
            status,
            initiator_task_tag: itt,
            snack_tag: 0,
            numbers: self.status_numbers(),
            exp_data_sn: DataSn(0),
        };
        self.give(response.emit(), sense)
    }

    fn good(&mut self, itt: InitiatorTaskTag) -> Completed {
        completed(self.response(itt, 0, Residual::None, &[]))
    }

    fn r2t(
        &mut self,
        itt: InitiatorTaskTag,
        number: u32,
        offset: u32,
        bytes: u32,
    ) -> Result<Option<Event>, SessionError> {
        let r2t = R2t {
            lun: LUN,
            initiator_task_tag: itt,
            target_transfer_tag: TargetTransferTag(1000 + number),
            numbers: self.numbers(),
            r2t_sn: R2tSn(number),
            buffer_offset: offset,
            desired_bytes: bytes,
        };
        self.give(r2t.emit(), &[])
    }

    fn data_in(
        &mut self,
        itt: InitiatorTaskTag,
        number: u32,
        offset: u32,
        bytes: u32,
        status: Option<DataInStatus>,
    ) -> Result<(Placement, Option<Event>), SessionError> {
        let numbers = if status.is_some() {
            self.status_numbers()
        } else {
            self.numbers()
        };
        let data_in = DataIn {
            is_final: status.is_some(),
            acknowledge: false,
            status,
            lun: 0,
            initiator_task_tag: itt,
            target_transfer_tag: NO_TAG,
            numbers,
            data_sn: DataSn(number),
            buffer_offset: offset,
        };
        let mut bhs = data_in.emit();
        header::set_data_segment_bytes(&mut bhs, bytes);
        let placement = self.session.handle_header(self.cid, &bhs, self.now)?;
        Ok((placement, self.session.handle_segment(self.cid, &[])?))
    }

    fn async_message(
        &mut self,
        event: AsyncEvent,
        parameter_3: u16,
        data: &[u8],
    ) -> Result<Option<Event>, SessionError> {
        let message = AsyncMessage {
            lun: LUN,
            numbers: self.status_numbers(),
            event,
            vendor_code: 0,
            parameter_1: 0,
            parameter_2: 2,
            parameter_3,
        };
        self.give(message.emit(), data)
    }

    /// The answer to a task management function.
    fn function_response(
        &mut self,
        tag: InitiatorTaskTag,
        response: TaskManagementOutcome,
    ) -> Result<Option<Event>, SessionError> {
        let response = TaskManagementResponse {
            response,
            initiator_task_tag: tag,
            numbers: self.status_numbers(),
        };
        self.give(response.emit(), &[])
    }

    /// The answer to a ping of ours.
    fn pong(&mut self, ping: &Transmit) -> Result<Option<Event>, SessionError> {
        let ping = NopOut::parse(&ping.header);
        assert_ne!(ping.initiator_task_tag, InitiatorTaskTag::RESERVED);
        let answer = NopIn {
            lun: 0,
            initiator_task_tag: ping.initiator_task_tag,
            target_transfer_tag: NO_TAG,
            numbers: self.status_numbers(),
        };
        self.give(answer.emit(), &[])
    }

    fn reject(
        &mut self,
        reason: RejectReason,
        rejected: &Bhs,
    ) -> Result<Option<Event>, SessionError> {
        let reject = Reject {
            reason,
            numbers: self.status_numbers(),
            data_sn: DataSn(0),
        };
        self.give(reject.emit(), rejected)
    }

    fn logout_response(&mut self) -> Result<Option<Event>, SessionError> {
        self.logout_outcome(LogoutOutcome::CLOSED)
    }

    fn logout_outcome(&mut self, outcome: LogoutOutcome) -> Result<Option<Event>, SessionError> {
        let response = LogoutResponse {
            response: outcome,
            initiator_task_tag: InitiatorTaskTag(u32::from(self.cid) << 16 | LOGOUT_SLOT),
            numbers: self.status_numbers(),
            time_2_wait: 2,
            time_2_retain: 0,
        };
        self.give(response.emit(), &[])
    }
}

fn completed(result: Result<Option<Event>, SessionError>) -> Completed {
    match result {
        Ok(Some(Event::Completed(completed))) => completed,
        other => panic!("not completed: {other:?}"),
    }
}

fn violation<T: std::fmt::Debug>(result: Result<T, SessionError>) -> Violation {
    match result {
        Err(SessionError::Violation(violation)) => violation,
        other => panic!("not a violation: {other:?}"),
    }
}

const GOOD: DataInStatus = DataInStatus {
    status: 0,
    residual: Residual::None,
};

// F1, F3, F5, F20: RFC 7143 §4.2.2.1: numbers are given in the order in which commands leave
#[test]
fn window_closed_by_target_holds_commands() {
    let mut script = Script::with(agreed(), 10, 2);
    script.submit(Direction::None);
    script.submit(Direction::None);
    let third = script.submit(Direction::None);
    let first = ScsiCommand::parse(&script.transmit().header);
    let second = ScsiCommand::parse(&script.transmit().header);
    assert_eq!((first.cmd_sn, second.cmd_sn), (CmdSn(10), CmdSn(11)));
    assert!(script.is_quiet());

    // The response acknowledges both and keeps the window closed.
    script.exp_cmd_sn = CmdSn(12);
    script.good(first.initiator_task_tag);
    assert!(script.is_quiet());

    // A NOP-In opens it.
    script.max_cmd_sn = CmdSn(12);
    let nop_in = NopIn {
        lun: 0,
        initiator_task_tag: InitiatorTaskTag::RESERVED,
        target_transfer_tag: NO_TAG,
        numbers: script.numbers(),
    };
    assert_eq!(script.give(nop_in.emit(), &[]).unwrap(), None);
    let command = ScsiCommand::parse(&script.transmit().header);
    // RFC 7143 §4.2.2.2: ExpStatSN is as of the moment in which the PDU leaves
    assert_eq!(
        (command.cmd_sn, command.exp_stat_sn),
        (CmdSn(12), StatSn(101))
    );
    assert_eq!(script.good(command.initiator_task_tag).slot, third);
}

// F6: RFC 7143 §4.2.2.1, RFC 1982
#[test]
fn command_numbers_wrap_at_two_to_the_32() {
    let mut script = Script::with(agreed(), u32::MAX, 2);
    let (_, last) = script.start(Direction::None);
    let (_, first) = script.start(Direction::None);
    assert_eq!((last.cmd_sn, first.cmd_sn), (CmdSn(u32::MAX), CmdSn(0)));
    script.submit(Direction::None);
    assert!(script.is_quiet());
    script.exp_cmd_sn = CmdSn(1);
    script.max_cmd_sn = CmdSn(1);
    script.good(last.initiator_task_tag);
    assert_eq!(
        ScsiCommand::parse(&script.transmit().header).cmd_sn,
        CmdSn(1)
    );
}

// F9, F16, F17: RFC 7143 §11.3
#[test]
fn read_is_placed_and_ends_with_the_status_of_its_last_pdu() {
    let mut script = Script::new();
    let (slot, command) = script.start(Direction::Read(12_288));
    assert!(command.read && !command.write && command.is_final && !command.immediate);
    assert_eq!(
        (command.expected_data_transfer_bytes, command.lun),
        (12_288, LUN)
    );
    let itt = command.initiator_task_tag;

    let (placement, event) = script.data_in(itt, 0, 0, 8192, None).unwrap();
    assert_eq!(
        placement,
        Placement::Task {
            slot,
            offset: 0,
            bytes: 8192
        }
    );
    assert_eq!(event, None);
    // RFC 7143 §11.7: an empty Data-In is fine
    script.data_in(itt, 1, 8192, 0, None).unwrap();
    let (placement, event) = script.data_in(itt, 2, 8192, 4096, Some(GOOD)).unwrap();
    assert_eq!(
        placement,
        Placement::Task {
            slot,
            offset: 8192,
            bytes: 4096
        }
    );
    let end = completed(Ok(event));
    assert_eq!(
        (end.slot, end.status, end.transferred),
        (slot, Status::GOOD, 12_288)
    );
    assert_eq!(script.session.free_slots(), 4);
}

// F19, E4: RFC 7143 §11.4.5: bytes are counted, not believed
#[test]
fn short_read_is_taken_only_with_its_underflow() {
    let mut script = Script::new();
    let (_, command) = script.start(Direction::Read(255));
    let itt = command.initiator_task_tag;
    let status = DataInStatus {
        status: 0,
        residual: Residual::Underflow(219),
    };
    let (_, event) = script.data_in(itt, 0, 0, 36, Some(status)).unwrap();
    assert_eq!(completed(Ok(event)).transferred, 36);

    let (_, command) = script.start(Direction::Read(4096));
    let end = script.response(command.initiator_task_tag, 0, Residual::None, &[]);
    assert_eq!(
        violation(end),
        Violation::ShortTransfer {
            moved: 0,
            length: 4096,
            residual: 0
        }
    );
}

// F34
#[test]
fn data_in_out_of_order_or_out_of_bounds_is_refused() {
    let cases = [
        (
            1,
            0,
            512,
            Violation::DataSn {
                expected: 0,
                seen: 1,
            },
        ),
        (
            0,
            512,
            512,
            Violation::BufferOffset {
                expected: 0,
                seen: 512,
            },
        ),
        (
            0,
            0,
            4097,
            Violation::BeyondBuffer {
                offset: 0,
                bytes: 4097,
                length: 4096,
            },
        ),
        (
            0,
            u32::MAX,
            512,
            Violation::BeyondBuffer {
                offset: u32::MAX,
                bytes: 512,
                length: 4096,
            },
        ),
        (
            0,
            0,
            262_145,
            Violation::SegmentTooLong {
                bytes: 262_145,
                limit: 262_144,
            },
        ),
    ];
    for (number, offset, bytes, expected) in cases {
        let mut script = Script::new();
        let (_, command) = script.start(Direction::Read(4096));
        let itt = command.initiator_task_tag;
        assert_eq!(
            violation(script.data_in(itt, number, offset, bytes, None)),
            expected
        );
    }
    let mut script = Script::new();
    let (_, write) = script.start(Direction::Write(512));
    let itt = write.initiator_task_tag;
    assert_eq!(
        violation(script.data_in(itt, 0, 0, 0, None)),
        Violation::UnknownTask(itt.0)
    );
}

// F7, F11, F12, F13, F14, F15: RFC 7143 §11.7.1-§11.7.5, §11.8: bursts in order, several PDUs each, DataSN from 0, F on the last
#[test]
fn write_is_sent_as_immediate_data_and_answers_to_r2ts() {
    let mut script = Script::new();
    let slot = script.submit(Direction::Write(40_000));
    let transmit = script.transmit();
    let command = ScsiCommand::parse(&transmit.header);
    assert!(command.write && command.is_final);
    assert_eq!(header::data_segment_bytes(&transmit.header), 8192);
    let immediate = Payload::Task {
        slot,
        offset: 0,
        bytes: 8192,
        is_data_out: false,
    };
    assert_eq!(transmit.payload, immediate);
    assert!(script.is_quiet());

    let itt = command.initiator_task_tag;
    script.r2t(itt, 0, 8192, 16_384).unwrap();
    script.r2t(itt, 1, 24_576, 15_424).unwrap();
    let mut left = Vec::new();
    for _ in 0..4 {
        let (data_out, payload) = script.data_out();
        assert_eq!((data_out.initiator_task_tag, data_out.lun), (itt, LUN));
        let Payload::Task {
            offset,
            bytes,
            is_data_out: true,
            ..
        } = payload
        else {
            panic!("{payload:?}")
        };
        assert_eq!(data_out.buffer_offset, offset);
        let tag = data_out.target_transfer_tag.0;
        left.push((tag, data_out.data_sn.0, offset, bytes, data_out.is_final));
    }
    assert_eq!(
        left,
        [
            (1000, 0, 8192, 8192, false),
            (1000, 1, 16_384, 8192, true),
            (1001, 0, 24_576, 8192, false),
            (1001, 1, 32_768, 7232, true),
        ]
    );
    assert!(script.is_quiet());
    assert_eq!(script.good(itt).transferred, 40_000);
}

// F8, F10: RFC 7143 §13.10, §13.14, §11.3.1: unsolicited data within FirstBurstLength, F withheld
#[test]
fn unsolicited_data_follows_its_command() {
    let mut script = Script::with(
        Agreed {
            initial_r2t: false,
            ..agreed()
        },
        10,
        64,
    );
    let (_, command) = script.start(Direction::Write(40_000));
    assert!(!command.is_final);
    let (data_out, payload) = script.data_out();
    assert_eq!(data_out.target_transfer_tag, NO_TAG);
    // RFC 7143 §11.7.4: no LUN without a transfer tag
    assert_eq!(
        (data_out.lun, data_out.data_sn, data_out.is_final),
        (0, DataSn(0), true)
    );
    assert!(matches!(
        payload,
        Payload::Task {
            offset: 8192,
            bytes: 4096,
            ..
        }
    ));
    assert!(script.is_quiet());
    script
        .r2t(command.initiator_task_tag, 0, 12_288, 16_384)
        .unwrap();
    assert_eq!(script.data_out().0.buffer_offset, 12_288);

    let small = Script::with(
        Agreed {
            initial_r2t: false,
            ..agreed()
        },
        10,
        64,
    )
    .start(Direction::Write(100))
    .1;
    assert!(
        small.is_final,
        "nothing follows a command that has all its data"
    );
}

// F34: RFC 7143 §11.8
#[test]
fn r2ts_that_break_a_rule_are_refused() {
    let cases = [
        (
            1,
            8192,
            512,
            Violation::DataSn {
                expected: 0,
                seen: 1,
            },
        ),
        (
            0,
            0,
            512,
            Violation::BufferOffset {
                expected: 8192,
                seen: 0,
            },
        ),
        (0, 8192, 0, Violation::R2tEmpty),
        (
            0,
            8192,
            16_385,
            Violation::BurstTooLong {
                bytes: 16_385,
                limit: 16_384,
            },
        ),
        (
            0,
            u32::MAX - 10,
            4096,
            Violation::BeyondBuffer {
                offset: u32::MAX - 10,
                bytes: 4096,
                length: 20_000,
            },
        ),
        (
            0,
            8192,
            11_809,
            Violation::BeyondBuffer {
                offset: 8192,
                bytes: 11_809,
                length: 20_000,
            },
        ),
    ];
    for (number, offset, bytes, expected) in cases {
        let mut script = Script::new();
        let (_, command) = script.start(Direction::Write(20_000));
        let itt = command.initiator_task_tag;
        assert_eq!(violation(script.r2t(itt, number, offset, bytes)), expected);
    }
    // RFC 7143 §13.17
    let mut script = Script::new();
    let (_, command) = script.start(Direction::Write(20_000));
    let itt = command.initiator_task_tag;
    script.r2t(itt, 0, 8192, 512).unwrap();
    script.r2t(itt, 1, 8704, 512).unwrap();
    assert_eq!(
        violation(script.r2t(itt, 2, 9216, 512)),
        Violation::R2tTooMany(2)
    );
}

// F34
#[test]
fn early_check_condition_ends_a_write_and_its_data() {
    let mut script = Script::new();
    let (slot, command) = script.start(Direction::Write(40_000));
    let itt = command.initiator_task_tag;
    script.r2t(itt, 0, 8192, 16_384).unwrap();
    script.data_out();
    let sense = [
        0, 18, 0x70, 0, 0x07, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x27, 0, 0, 0, 0, 0,
    ];
    let end = completed(script.response(itt, 2, Residual::None, &sense));
    assert_eq!((end.slot, end.status), (slot, Status::CHECK_CONDITION));
    let sense = end.sense.expect("sense data came");
    assert_eq!((sense.key, sense.asc), (SenseKey::DataProtect, 0x27));
    assert!(script.is_quiet(), "nobody waits for the rest of the data");
    // The slot's next task is another one, for all that names the old.
    let (same_slot, next) = script.start(Direction::Write(40_000));
    assert_eq!(same_slot, slot);
    assert_ne!(next.initiator_task_tag, itt);
    assert!(script.is_quiet());
    assert_eq!(
        violation(script.r2t(itt, 1, 24_576, 512)),
        Violation::UnknownTask(itt.0)
    );
}

// F19
#[test]
fn write_that_is_good_without_its_data_is_refused() {
    let mut script = Script::new();
    let (_, command) = script.start(Direction::Write(40_000));
    let end = script.response(command.initiator_task_tag, 0, Residual::None, &[]);
    assert_eq!(
        violation(end),
        Violation::ShortTransfer {
            moved: 8192,
            length: 40_000,
            residual: 0
        }
    );
}

// S8: RFC 7143 §11.4.3
#[test]
fn target_failure_is_never_a_success() {
    let mut script = Script::new();
    let (_, command) = script.start(Direction::Read(512));
    let response = ScsiResponse {
        residual: Residual::None,
        bidirectional_residual: Residual::None,
        response: ServiceResponse::TARGET_FAILURE,
        status: 0,
        initiator_task_tag: command.initiator_task_tag,
        snack_tag: 0,
        numbers: script.status_numbers(),
        exp_data_sn: DataSn(0),
    };
    let end = completed(script.give(response.emit(), &[]));
    assert_eq!(
        (end.status, end.response),
        (Status::TASK_ABORTED, Some(ServiceResponse::TARGET_FAILURE))
    );
}

// F34
#[test]
fn answers_to_nothing_are_refused() {
    let mut script = Script::new();
    let (_, command) = script.start(Direction::None);
    let itt = command.initiator_task_tag;
    script.good(itt);
    assert_eq!(
        violation(script.response(itt, 0, Residual::None, &[])),
        Violation::UnknownTask(itt.0)
    );
    let mut script = Script::new();
    script.submit(Direction::None);
    // Queued, not sent: its tag would be generation 1 in slot 0.
    let early = script.response(InitiatorTaskTag(0x0001_0000), 0, Residual::None, &[]);
    assert_eq!(violation(early), Violation::UnknownTask(0x0001_0000));
}

// F20: RFC 7143 §4.2.2.2
#[test]
fn gap_in_the_status_numbers_is_refused() {
    let mut script = Script::new();
    let (_, command) = script.start(Direction::None);
    script.stat_sns[0] = StatSn(102);
    let end = script.response(command.initiator_task_tag, 0, Residual::None, &[]);
    assert_eq!(
        violation(end),
        Violation::StatSn {
            expected: 100,
            seen: 102
        }
    );
}

// F2, F21: RFC 7143 §11.18, §11.19
#[test]
fn ping_of_the_target_is_echoed_past_a_closed_window() {
    let mut script = Script::with(agreed(), 10, 0);
    script.submit(Direction::None);
    assert!(script.is_quiet());
    let nop_in = NopIn {
        lun: LUN,
        initiator_task_tag: InitiatorTaskTag::RESERVED,
        target_transfer_tag: TargetTransferTag(0x77),
        numbers: script.numbers(),
    };
    assert_eq!(script.give(nop_in.emit(), b"echo").unwrap(), None);
    let transmit = script.transmit();
    let nop_out = NopOut::parse(&transmit.header);
    assert!(nop_out.immediate);
    assert_eq!(nop_out.initiator_task_tag, InitiatorTaskTag::RESERVED);
    assert_eq!(
        (nop_out.target_transfer_tag, nop_out.lun),
        (TargetTransferTag(0x77), LUN)
    );
    assert_eq!(
        (nop_out.cmd_sn, nop_out.exp_stat_sn),
        (CmdSn(10), StatSn(100))
    );
    assert_eq!(transmit.payload, Payload::Own(Bytes::from_static(b"echo")));

    for _ in 0..PONGS_MAX {
        script.give(nop_in.emit(), b"").unwrap();
    }
    assert_eq!(
        violation(script.give(nop_in.emit(), b"")),
        Violation::TooManyPings(PONGS_MAX)
    );
}

// F22: RFC 7143 §11.18
#[test]
fn quiet_target_is_pinged_and_given_up_when_it_does_not_answer() {
    let mut script = Script::new();
    let start = script.now;
    assert_eq!(script.session.poll_timeout(), Some(start + 5 * SECOND));
    script.session.handle_timeout(start + 5 * SECOND).unwrap();
    let ping = NopOut::parse(&script.transmit().header);
    assert!(ping.immediate && ping.target_transfer_tag == NO_TAG);
    assert_ne!(ping.initiator_task_tag, InitiatorTaskTag::RESERVED);
    let answer = NopIn {
        lun: 0,
        initiator_task_tag: ping.initiator_task_tag,
        target_transfer_tag: NO_TAG,
        numbers: script.status_numbers(),
    };
    script.now = start + 6 * SECOND;
    script.give(answer.emit(), &[]).unwrap();
    let again = NopIn {
        numbers: script.status_numbers(),
        ..answer
    };
    let unasked = violation(script.give(again.emit(), &[]));
    assert_eq!(unasked, Violation::UnknownTask(ping.initiator_task_tag.0));

    let mut script = Script::new();
    let start = script.now;
    script.session.handle_timeout(start + 5 * SECOND).unwrap();
    let end = script.session.handle_timeout(start + 15 * SECOND);
    assert!(matches!(end, Err(SessionError::Silent { .. })));
}

// Order of leaving: pings, then data, then commands
#[test]
fn control_leaves_before_data_and_data_before_commands() {
    let mut script = Script::new();
    let (_, write) = script.start(Direction::Write(40_000));
    script
        .r2t(write.initiator_task_tag, 0, 8192, 16_384)
        .unwrap();
    script.submit(Direction::None);
    script
        .session
        .handle_timeout(script.now + 5 * SECOND)
        .unwrap();
    let mut opcodes = Vec::new();
    while let Some(transmit) = script.session.poll_transmit(0) {
        opcodes.push(header::opcode(&transmit.header));
    }
    assert_eq!(
        opcodes,
        [
            Opcode::NOP_OUT,
            Opcode::DATA_OUT,
            Opcode::DATA_OUT,
            Opcode::SCSI_COMMAND
        ]
    );
}

// F29: RFC 7143 §11.14: after a logout request no command follows
#[test]
fn logout_holds_commands_and_ends_the_session() {
    let mut script = Script::new();
    script.submit(Direction::None);
    script.session.handle_logout();
    script.session.handle_logout();
    let logout = LogoutRequest::parse(&script.transmit().header);
    assert!(logout.immediate && logout.reason == LogoutReason::CLOSE_SESSION);
    assert!(script.is_quiet());
    assert!(matches!(
        script.logout_response(),
        Err(SessionError::LoggedOut)
    ));

    let unasked = violation(Script::new().logout_response());
    assert_eq!(unasked, Violation::UnknownTask(LOGOUT_SLOT));
}

// F25: RFC 7143 §11.9.1, code 1
#[test]
fn requested_logout_lets_commands_in_flight_end_first() {
    let mut script = Script::new();
    let (_, command) = script.start(Direction::None);
    script
        .async_message(AsyncEvent::LOGOUT_REQUESTED, 10, &[])
        .unwrap();
    script.submit(Direction::None);
    assert!(script.is_quiet());
    script.good(command.initiator_task_tag);
    assert_eq!(
        header::opcode(&script.transmit().header),
        Opcode::LOGOUT_REQUEST
    );
    assert!(matches!(
        script.logout_response(),
        Err(SessionError::LogoutRequested { .. })
    ));
}

// F25, F27: RFC 7143 §11.9.1, codes 1 and 4: in time, whatever is in flight
#[test]
fn requested_logout_does_not_wait_beyond_its_time() {
    for event in [
        AsyncEvent::LOGOUT_REQUESTED,
        AsyncEvent::NEGOTIATION_REQUESTED,
    ] {
        let mut script = Script::new();
        script.start(Direction::None);
        script.async_message(event, 6, &[]).unwrap();
        assert_eq!(script.session.poll_timeout(), Some(script.now + 3 * SECOND));
        script
            .session
            .handle_timeout(script.now + 2 * SECOND)
            .unwrap();
        assert!(script.is_quiet());
        script
            .session
            .handle_timeout(script.now + 3 * SECOND)
            .unwrap();
        assert_eq!(
            header::opcode(&script.transmit().header),
            Opcode::LOGOUT_REQUEST
        );
    }
}

// F26, F28: RFC 7143 §11.9.1, codes 0, 2, 3, 255
#[test]
fn other_events_are_told() {
    let mut script = Script::new();
    let sense = [
        0, 18, 0x70, 0, 0x06, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x2a, 9, 0, 0, 0, 0,
    ];
    let event = script
        .async_message(AsyncEvent::SCSI_EVENT, 0, &sense)
        .unwrap();
    let Some(Event::Told(TargetEvent::ScsiEvent {
        lun: LUN,
        sense: Some(sense),
    })) = event
    else {
        panic!("{event:?}")
    };
    assert_eq!((sense.asc, sense.ascq), (0x2a, 9));
    let vendor = script.async_message(AsyncEvent::VENDOR, 0, &[]).unwrap();
    assert_eq!(vendor, Some(Event::Told(TargetEvent::Vendor { code: 0 })));
    for event in [AsyncEvent::CONNECTION_DROPPED, AsyncEvent::SESSION_DROPPED] {
        let end = Script::new().async_message(event, 20, &[]);
        assert!(
            matches!(
                end,
                Err(SessionError::Dropped {
                    wait: 2,
                    retain: 20,
                    ..
                })
            ),
            "{end:?}"
        );
    }
}

// F34
#[test]
fn pdus_that_have_no_place_are_refused() {
    let mut bhs = [0; 48];
    for (opcode, expected) in [
        (0x23, Violation::Pdu(Opcode::LOGIN_RESPONSE)),
        (0x01, Violation::Pdu(Opcode::SCSI_COMMAND)),
        (0x3e, Violation::Pdu(Opcode(0x3e))),
        (0x24, Violation::UnknownTask(0)),
        (0x25, Violation::UnknownTask(0)),
    ] {
        let mut script = Script::new();
        bhs[0] = opcode;
        assert_eq!(
            violation(script.session.handle_header(0, &bhs, script.now)),
            expected
        );
    }
    let mut script = Script::new();
    bhs[0] = 0x31;
    header::set_data_segment_bytes(&mut bhs, 4);
    let refused = violation(script.session.handle_header(0, &bhs, script.now));
    assert_eq!(refused, Violation::SegmentTooLong { bytes: 4, limit: 0 });
    bhs[4] = 1;
    let refused = violation(script.session.handle_header(0, &bhs, script.now));
    assert_eq!(refused, Violation::AdditionalHeader);
}

// F10
#[test]
fn full_table_takes_no_more_and_direction_without_bytes_is_none() {
    let mut script = Script::new();
    let (_, command) = script.start(Direction::Write(0));
    assert!(!command.write && command.expected_data_transfer_bytes == 0);
    for _ in 0..3 {
        script.submit(Direction::None);
    }
    assert_eq!(script.session.free_slots(), 0);
    assert_eq!(script.session.submit(LUN, [0; 16], Direction::None), None);
}

proptest::proptest! {
    // Hostile targets: whatever headers come, nothing panics and nothing is placed out of bounds
    #[test]
    fn any_header_is_answered(
        headers in proptest::collection::vec(
            (proptest::sample::select(vec![0x20_u8, 0x21, 0x22, 0x25, 0x26, 0x31, 0x32, 0x3f]),
             proptest::array::uniform32(proptest::num::u8::ANY), 0_u8..3, 0_u32..9000),
            1..20,
        )
    ) {
        let mut script = Script::new();
        let (_, read) = script.start(Direction::Read(8192));
        let (_, write) = script.start(Direction::Write(40_000));
        for (opcode, noise, which, bytes) in headers {
            let mut bhs = [0; 48];
            bhs[0] = opcode;
            bhs[1] = noise[0];
            bhs[16..].copy_from_slice(&noise);
            let itt = [read.initiator_task_tag.0, write.initiator_task_tag.0, u32::MAX];
            bhs[16..20].copy_from_slice(&itt[usize::from(which)].to_be_bytes());
            header::set_data_segment_bytes(&mut bhs, bytes);
            match script.session.handle_header(0, &bhs, script.now) {
                Ok(Placement::Task { offset, bytes, .. }) => {
                    proptest::prop_assert!(u64::from(offset) + u64::from(bytes) <= 8192);
                    let _ = script.session.handle_segment(0, &[]);
                }
                Ok(Placement::Own { bytes }) => {
                    let data = vec![0; usize::try_from(bytes).unwrap()];
                    let _ = script.session.handle_segment(0, &data);
                }
                Err(_) => break,
            }
            while script.session.poll_transmit(0).is_some() {}
        }
    }
}
