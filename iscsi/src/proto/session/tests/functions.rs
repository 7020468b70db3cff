//! Task management functions that the owner asks for, and Rejects.

use super::*;
use crate::proto::Misuse;

const OTHER_LUN: u64 = 0x0002_0000_0000_0000;

impl Script {
    fn ask(&mut self, function: TaskManagementFunction, slot: Option<u16>) -> InitiatorTaskTag {
        self.session
            .handle_task_management(function, LUN, slot)
            .unwrap()
    }

    /// Asks, and gives the request as it leaves.
    fn request(
        &mut self,
        function: TaskManagementFunction,
        slot: Option<u16>,
    ) -> TaskManagementRequest {
        let tag = self.ask(function, slot);
        let request = TaskManagementRequest::parse(&self.transmit().header);
        assert_eq!(request.initiator_task_tag, tag);
        request
    }
}

fn ended(tag: InitiatorTaskTag, outcome: TaskManagementOutcome) -> Event {
    Event::FunctionEnded { tag, outcome }
}

fn completed_slot(event: &Event) -> Option<u16> {
    match event {
        Event::Completed(end) => Some(end.slot),
        Event::FunctionEnded { .. } | Event::ConnectionClosed { .. } | Event::Told(_) => None,
    }
}

// F2, F31, F32: RFC 7143 §11.5
#[test]
fn each_function_names_what_it_is_about() {
    let cases = [
        (TaskManagementFunction::ABORT_TASK_SET, LUN),
        (TaskManagementFunction::CLEAR_ACA, LUN),
        (TaskManagementFunction::CLEAR_TASK_SET, LUN),
        (TaskManagementFunction::LOGICAL_UNIT_RESET, LUN),
        (TaskManagementFunction::TARGET_WARM_RESET, 0),
        (TaskManagementFunction::TARGET_COLD_RESET, 0),
    ];
    for (function, lun) in cases {
        let mut script = Script::new();
        let request = script.request(function, None);
        assert!(request.immediate);
        assert_eq!((request.function, request.lun), (function, lun));
        assert_eq!(request.referenced_task_tag, InitiatorTaskTag::RESERVED);
        assert_eq!(request.cmd_sn, CmdSn(10));
    }
    let mut script = Script::new();
    let slot = script.submit_to(OTHER_LUN, 0x88, Direction::Read(512));
    let command = ScsiCommand::parse(&script.transmit().header);
    let abort = script.request(TaskManagementFunction::ABORT_TASK, Some(slot));
    assert_eq!(
        (abort.lun, abort.referenced_task_tag, abort.ref_cmd_sn),
        (OTHER_LUN, command.initiator_task_tag, command.cmd_sn)
    );
}

// F33
#[test]
fn tasks_end_as_the_function_reaches_them() {
    // Function, and which of the tasks on LUN, on OTHER_LUN, and sent afterwards end.
    let cases = [
        (TaskManagementFunction::ABORT_TASK_SET, vec![0]),
        (TaskManagementFunction::CLEAR_TASK_SET, vec![0]),
        (TaskManagementFunction::LOGICAL_UNIT_RESET, vec![0]),
        (TaskManagementFunction::TARGET_WARM_RESET, vec![0, 1]),
        (TaskManagementFunction::TARGET_COLD_RESET, vec![0, 1]),
        (TaskManagementFunction::CLEAR_ACA, vec![]),
    ];
    for (function, expected) in cases {
        for outcome in [0, 1, 2, 5, 255].map(TaskManagementOutcome) {
            let mut script = Script::new();
            script.start(Direction::None);
            script.submit_to(OTHER_LUN, 0, Direction::None);
            script.transmit();
            let request = script.request(function, None);
            let tag = request.initiator_task_tag;
            assert_eq!(script.function_response(tag, outcome).unwrap(), None);
            let events = script.events();
            let slots: Vec<u16> = events.iter().filter_map(completed_slot).collect();
            let is_done = outcome == TaskManagementOutcome::COMPLETE;
            assert_eq!(slots, if is_done { expected.clone() } else { vec![] });
            assert_eq!(events.last(), Some(&ended(tag, outcome)));
        }
    }
}

// F32: RFC 7143 §4.2.3.3
#[test]
fn transfer_tags_are_answered_after_abort_task_set_and_late_answers_taken() {
    let mut script = Script::new();
    let (slot, write) = script.start(Direction::Write(40_000));
    let itt = write.initiator_task_tag;
    script.r2t(itt, 0, 8192, 16_384).unwrap();
    let request = script.request(TaskManagementFunction::ABORT_TASK_SET, None);
    let held = script.submit(Direction::None);
    assert_eq!(script.data_out().0.data_sn, DataSn(0));
    let (last, _) = script.data_out();
    assert!(last.is_final && last.data_sn == DataSn(1));
    script.r2t(itt, 1, 24_576, 8192).unwrap();
    assert!(script.data_out().0.is_final);
    assert!(script.is_quiet(), "commands wait for the answer");

    let tag = request.initiator_task_tag;
    script
        .function_response(tag, TaskManagementOutcome::COMPLETE)
        .unwrap();
    let events = script.events();
    assert_eq!(completed_slot(&events[0]), Some(slot));
    assert_eq!(script.response(itt, 2, Residual::None, &[]).unwrap(), None);
    let command = ScsiCommand::parse(&script.transmit().header);
    assert_eq!(script.good(command.initiator_task_tag).slot, held);
}

#[test]
fn command_that_has_not_left_is_aborted_without_a_word() {
    let mut script = Script::with(agreed(), 10, 0);
    let slot = script.submit(Direction::Write(512));
    let tag = script.ask(TaskManagementFunction::ABORT_TASK, Some(slot));
    let events = script.events();
    assert_eq!(completed_slot(&events[0]), Some(slot));
    assert_eq!(events[1], ended(tag, TaskManagementOutcome::COMPLETE));
    script.max_cmd_sn = CmdSn(20);
    script.async_message(AsyncEvent::VENDOR, 0, &[]).unwrap();
    assert!(script.is_quiet());
    assert_eq!(script.session.free_slots(), 4);
}

#[test]
fn task_that_ended_is_not_aborted() {
    let mut script = Script::new();
    let (slot, command) = script.start(Direction::None);
    let tag = script.ask(TaskManagementFunction::ABORT_TASK, Some(slot));
    script.good(command.initiator_task_tag);
    script.start(Direction::None);
    assert!(
        script.is_quiet(),
        "no function leaves for a task that is over"
    );
    let expected = ended(tag, TaskManagementOutcome::TASK_DOES_NOT_EXIST);
    assert_eq!(script.events(), [expected]);

    let free = script.ask(TaskManagementFunction::ABORT_TASK, Some(3));
    let expected = ended(free, TaskManagementOutcome::TASK_DOES_NOT_EXIST);
    assert_eq!(script.events(), [expected]);
}

// E6: RFC 7143 §7.2.2, §11.5.1
#[test]
fn functions_that_cannot_be_are_refused() {
    let mut script = Script::new();
    let mut ask = |function, slot| script.session.handle_task_management(function, LUN, slot);
    let reassign = TaskManagementFunction::TASK_REASSIGN;
    assert_eq!(ask(reassign, Some(0)), Err(Misuse::RecoveryLevel));
    let abort = TaskManagementFunction::ABORT_TASK;
    assert_eq!(ask(abort, None), Err(Misuse::NoTask));
    let reset = TaskManagementFunction::LOGICAL_UNIT_RESET;
    for _ in 0..8 {
        ask(reset, None).unwrap();
    }
    assert_eq!(ask(reset, None), Err(Misuse::TooManyFunctions));
}

// F34
#[test]
fn answer_to_no_function_is_refused() {
    let mut script = Script::new();
    let tag = InitiatorTaskTag(0x0001_ff02);
    let answer = script.function_response(tag, TaskManagementOutcome::COMPLETE);
    assert_eq!(violation(answer), Violation::UnknownTask(tag.0));
    // Queued, but not sent.
    let mut script = Script::new();
    let tag = script.ask(TaskManagementFunction::LOGICAL_UNIT_RESET, None);
    let answer = script.function_response(tag, TaskManagementOutcome::COMPLETE);
    assert_eq!(violation(answer), Violation::UnknownTask(tag.0));
}

#[test]
fn function_that_is_not_answered_ends_the_session() {
    let mut script = Script::without_pings();
    script.request(TaskManagementFunction::LOGICAL_UNIT_RESET, None);
    let end = script.wait(100);
    let function = TaskManagementFunction::LOGICAL_UNIT_RESET;
    assert!(
        matches!(end, Err(SessionError::FunctionUnanswered { function: f, .. }) if f == function),
        "{end:?}"
    );
}

// RFC 7143 §4.2.2.3.4: the target may wait for our acknowledgement before it answers
#[test]
fn statuses_are_acknowledged_at_once_while_a_function_is_under_way() {
    let mut script = Script::new();
    let (_, command) = script.start(Direction::None);
    script.request(TaskManagementFunction::LOGICAL_UNIT_RESET, None);
    script.good(command.initiator_task_tag);
    let told = NopOut::parse(&script.transmit().header);
    assert_eq!(told.initiator_task_tag, InitiatorTaskTag::RESERVED);
    assert_eq!(told.exp_stat_sn, StatSn(101));
}

// E3: RFC 7143 §7.3, §11.17.1
#[test]
fn rejected_command_ends_the_session_for_every_reason() {
    for reason in [2, 3, 4, 5, 6, 7, 8, 9, 0x0a, 0x0b, 0x55].map(RejectReason) {
        let mut script = Script::new();
        script.submit(Direction::None);
        let command = script.transmit().header;
        let end = script.reject(reason, &command);
        assert!(
            matches!(end, Err(SessionError::Rejected { reason: r, opcode: 1 }) if r == reason),
            "{end:?}"
        );
    }
    // A SNACK that we never sent, and a header that is none.
    let mut snack = [0; 48];
    snack[0] = 0x10;
    let end = Script::new().reject(RejectReason::SNACK_REJECT, &snack);
    assert!(matches!(
        end,
        Err(SessionError::Rejected { opcode: 0x10, .. })
    ));
}

// E3, F25
#[test]
fn target_that_waits_for_a_logout_gets_one() {
    let mut script = Script::new();
    script.submit(Direction::None);
    let command = script.transmit().header;
    script
        .reject(RejectReason::WAITING_FOR_LOGOUT, &command)
        .unwrap();
    script.submit(Direction::None);
    script.session.handle_timeout(script.now).unwrap();
    let logout = LogoutRequest::parse(&script.transmit().header);
    assert_eq!(logout.reason, LogoutReason::CLOSE_SESSION);
    assert!(script.is_quiet());
}

// E3: a target that refuses pings lives all the same
#[test]
fn rejected_ping_is_a_sign_of_life() {
    let mut script = Script::new();
    let ping = script.wait(6).unwrap().expect("a ping leaves");
    assert!(matches!(
        script.reject(RejectReason::PROTOCOL_ERROR, &ping.header),
        Ok(None)
    ));
}

// E3: RFC 7143 §7.8: the task's own response follows, and is never good
#[test]
fn write_whose_data_was_rejected_does_not_end_well() {
    let rejected_write = || {
        let mut script = Script::new();
        let (slot, write) = script.start(Direction::Write(16_384));
        let itt = write.initiator_task_tag;
        script.r2t(itt, 0, 8192, 8192).unwrap();
        let data_out = script.transmit();
        script
            .reject(RejectReason::DATA_DIGEST_ERROR, &data_out.header)
            .unwrap();
        (script, slot, itt)
    };
    let (mut script, slot, itt) = rejected_write();
    let sense = [
        0, 18, 0x70, 0, 0x0b, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x47, 5, 0, 0, 0, 0,
    ];
    let end = completed(script.response(itt, 2, Residual::None, &sense));
    assert_eq!((end.slot, end.status), (slot, Status::CHECK_CONDITION));

    let (mut script, _, itt) = rejected_write();
    let end = script.response(itt, 0, Residual::None, &[]);
    assert_eq!(violation(end), Violation::GoodAfterReject);

    // A Data-Out of no task that we know.
    let mut script = Script::new();
    let mut stray = [0; 48];
    stray[0] = 0x05;
    let end = script.reject(RejectReason::DATA_DIGEST_ERROR, &stray);
    assert_eq!(violation(end), Violation::UnknownTask(0));
}
