//! Commands that are not answered.

use super::*;
use crate::proto::Attempt;

const OTHER_LUN: u64 = 0x0002_0000_0000_0000;
const READ: u8 = 0x88;
const SYNCHRONIZE_CACHE: u8 = 0x91;
/// Rounds make a task late by at most this.
const ROUND: Duration = Duration::from_millis(3750);

impl Script {
    /// As `wait`, past the acknowledgements that statuses get while a function is under way.
    fn wait_for(&mut self, seconds: u64) -> Option<Transmit> {
        loop {
            let transmit = self.wait(seconds).unwrap()?;
            let is_acknowledgement = header::opcode(&transmit.header) == Opcode::NOP_OUT
                && NopOut::parse(&transmit.header).initiator_task_tag == InitiatorTaskTag::RESERVED;
            if !is_acknowledgement {
                return Some(transmit);
            }
        }
    }

    /// Waits for the ladder's ping and answers it; gives when it left, from the beginning.
    fn pass_ping(&mut self, begin: Instant) -> Duration {
        let ping = self.wait_for(200).expect("a ping leaves");
        let at = self.now - begin;
        assert_eq!(header::opcode(&ping.header), Opcode::NOP_OUT);
        self.pong(&ping).unwrap();
        at
    }

    /// The function that leaves within `seconds`.
    fn function(&mut self, seconds: u64) -> TaskManagementRequest {
        let function = self.wait_for(seconds).expect("a function leaves");
        let opcode = header::opcode(&function.header);
        assert_eq!(opcode, Opcode::TASK_MANAGEMENT_REQUEST);
        TaskManagementRequest::parse(&function.header)
    }

    /// Starts a read and waits until it is to be aborted.
    fn stuck_read(&mut self) -> (u16, ScsiCommand, TaskManagementRequest) {
        let (slot, command) = self.start(Direction::Read(4096));
        self.pass_ping(self.now);
        let abort = self.function(0);
        (slot, command, abort)
    }
}

// E12, F31, F2: RFC 7143 §7.11, §11.5: every step in its time, with what it names
#[test]
fn unanswered_command_climbs_to_the_end_of_the_session() {
    let mut script = Script::without_pings();
    let begin = script.now;
    let (_, command) = script.start(Direction::Read(4096));
    let at = script.pass_ping(begin);
    assert!((30 * SECOND..=30 * SECOND + ROUND).contains(&at), "{at:?}");

    let abort = script.function(0);
    assert!(abort.immediate && abort.function == TaskManagementFunction::ABORT_TASK);
    assert_eq!(
        (abort.lun, abort.referenced_task_tag, abort.ref_cmd_sn),
        (LUN, command.initiator_task_tag, command.cmd_sn)
    );
    assert_eq!(abort.cmd_sn, command.cmd_sn.next());

    let aborted_at = script.now;
    let reset = script.function(16);
    assert_eq!(script.now - aborted_at, 15 * SECOND);
    assert_eq!(reset.function, TaskManagementFunction::LOGICAL_UNIT_RESET);
    assert_eq!(
        (reset.lun, reset.referenced_task_tag),
        (LUN, InitiatorTaskTag::RESERVED)
    );
    assert_ne!(reset.initiator_task_tag, abort.initiator_task_tag);

    let reset_at = script.now;
    let Err(SessionError::Unanswered {
        lun,
        after,
        attempts,
    }) = script.wait(100)
    else {
        panic!("the session ends")
    };
    assert_eq!(script.now - reset_at, 30 * SECOND);
    assert_eq!((lun, after), (LUN, 30 * SECOND));
    let attempt = |function, outcome| Attempt { function, outcome };
    assert_eq!(
        attempts,
        [
            attempt(None, Some(TaskManagementOutcome::COMPLETE)),
            attempt(Some(TaskManagementFunction::ABORT_TASK), None),
            attempt(Some(TaskManagementFunction::LOGICAL_UNIT_RESET), None),
        ]
    );
}

// E12
#[test]
fn target_that_answers_no_ping_is_not_asked_for_more() {
    let mut script = Script::without_pings();
    script.start(Direction::Read(4096));
    script.wait(40).unwrap().expect("a ping leaves");
    let Err(SessionError::Unanswered { attempts, .. }) = script.wait(11) else {
        panic!("the session ends")
    };
    assert_eq!(attempts.len(), 1);
}

// E12, F33: RFC 7143 §11.6.1, responses 0 and 1
#[test]
fn aborted_task_ends_as_aborted_and_what_comes_late_is_consumed() {
    for outcome in [
        TaskManagementOutcome::COMPLETE,
        TaskManagementOutcome::TASK_DOES_NOT_EXIST,
    ] {
        let mut script = Script::without_pings();
        let (slot, command, abort) = script.stuck_read();
        let itt = command.initiator_task_tag;
        let answer = script.function_response(abort.initiator_task_tag, outcome);
        assert_eq!(answer.unwrap(), None);
        assert_eq!(script.aborted(), [slot]);
        assert_eq!(script.session.free_slots(), 4);

        // Its slot is used again, and the late data must not reach the new buffer.
        let (same_slot, next) = script.start(Direction::Read(4096));
        assert_eq!(same_slot, slot);
        let (placement, event) = script.data_in(itt, 0, 0, 4096, None).unwrap();
        assert_eq!((placement, event), (Placement::Own { bytes: 4096 }, None));
        assert_eq!(script.r2t(itt, 0, 0, 512).unwrap(), None);
        assert_eq!(script.response(itt, 0, Residual::None, &[]).unwrap(), None);
        let (_, event) = script
            .data_in(next.initiator_task_tag, 0, 0, 4096, Some(GOOD))
            .unwrap();
        assert_eq!(completed(Ok(event)).transferred, 4096);
        assert!(script.wait(100).unwrap().is_none(), "nothing is left to do");
    }
}

// E12: Data-Out goes on until the abort is answered, and not beyond
#[test]
fn data_of_an_aborted_write_stops() {
    let mut script = Script::without_pings();
    let (slot, command) = script.start(Direction::Write(40_000));
    let itt = command.initiator_task_tag;
    script.pass_ping(script.now);
    let abort = script.function(0);
    script.r2t(itt, 0, 8192, 16_384).unwrap();
    assert_eq!(script.data_out().0.data_sn, DataSn(0));
    script
        .function_response(abort.initiator_task_tag, TaskManagementOutcome::COMPLETE)
        .unwrap();
    assert_eq!(script.aborted(), [slot]);
    assert!(script.drain().is_empty());
}

// F33: RFC 7143 §11.6.1: no other response is an end of the task
#[test]
fn refused_abort_is_followed_by_a_reset() {
    for code in [2, 3, 4, 5, 6, 77, 255] {
        let mut script = Script::without_pings();
        let (slot, _, abort) = script.stuck_read();
        let outcome = TaskManagementOutcome(code);
        script
            .function_response(abort.initiator_task_tag, outcome)
            .unwrap();
        assert_eq!(script.aborted(), []);
        let reset = script.function(0);
        assert_eq!(reset.function, TaskManagementFunction::LOGICAL_UNIT_RESET);
        script
            .function_response(reset.initiator_task_tag, TaskManagementOutcome::COMPLETE)
            .unwrap();
        assert_eq!(script.aborted(), [slot]);
    }
}

// F33
#[test]
fn refused_reset_ends_the_session() {
    let mut script = Script::without_pings();
    let (_, _, abort) = script.stuck_read();
    let no = TaskManagementOutcome::FUNCTION_NOT_SUPPORTED;
    script
        .function_response(abort.initiator_task_tag, no)
        .unwrap();
    let reset = script.function(0);
    script
        .function_response(reset.initiator_task_tag, no)
        .unwrap();
    let Err(SessionError::Unanswered { attempts, .. }) = script.wait(1) else {
        panic!("the session ends")
    };
    assert_eq!(attempts[2].outcome, Some(no));
}

// E3: a Reject is an answer as well
#[test]
fn rejected_functions_are_answered_functions() {
    let mut script = Script::without_pings();
    let (_, _, abort) = script.stuck_read();
    script
        .reject(RejectReason::COMMAND_NOT_SUPPORTED, &abort.emit())
        .unwrap();
    let reset = script.function(0);
    script
        .reject(RejectReason::PROTOCOL_ERROR, &reset.emit())
        .unwrap();
    // The Reject itself was acknowledged.
    script.drain();
    let Err(SessionError::Unanswered { attempts, .. }) = script.wait(1) else {
        panic!("the session ends")
    };
    let outcomes: Vec<_> = attempts.iter().map(|attempt| attempt.outcome).collect();
    assert_eq!(
        outcomes[1..],
        [
            Some(TaskManagementOutcome::FUNCTION_NOT_SUPPORTED),
            Some(TaskManagementOutcome::REJECTED)
        ]
    );
}

// E12: only the tasks of the LUN that is reset end, and commands wait meanwhile
#[test]
fn reset_ends_the_tasks_of_its_own_unit_only() {
    let mut script = Script::without_pings();
    let other = script.submit_to(OTHER_LUN, SYNCHRONIZE_CACHE, Direction::None);
    let flush = ScsiCommand::parse(&script.transmit().header);
    // The flush of the other unit is older, so that the read's time is out only after the flush's.
    let (stuck, _) = script.start(Direction::Read(4096));
    let (too, _) = script.start(Direction::None);
    let begin = script.now;
    let at = script.pass_ping(begin);
    assert!(
        (60 * SECOND..=60 * SECOND + 2 * ROUND).contains(&at),
        "{at:?}"
    );
    let abort = script.function(0);
    assert_eq!(abort.lun, OTHER_LUN, "the oldest climbs first");
    script.good(flush.initiator_task_tag);
    script
        .function_response(
            abort.initiator_task_tag,
            TaskManagementOutcome::TASK_DOES_NOT_EXIST,
        )
        .unwrap();
    assert_eq!(script.aborted(), [], "{other} was answered");

    script.pass_ping(script.now);
    let abort = script.function(0);
    let kept = script.submit_to(OTHER_LUN, READ, Direction::None);
    let kept_command = ScsiCommand::parse(&script.transmit().header);
    let reset = {
        script
            .function_response(abort.initiator_task_tag, TaskManagementOutcome::REJECTED)
            .unwrap();
        script.function(0)
    };
    assert_eq!(reset.lun, LUN);
    assert!(script.drain().is_empty());
    script
        .function_response(reset.initiator_task_tag, TaskManagementOutcome::COMPLETE)
        .unwrap();
    assert_eq!(script.aborted(), [stuck, too]);
    assert_eq!(script.good(kept_command.initiator_task_tag).slot, kept);
}

// E12
#[test]
fn commands_wait_while_a_reset_is_under_way() {
    let mut script = Script::without_pings();
    let (_, _, abort) = script.stuck_read();
    script
        .function_response(abort.initiator_task_tag, TaskManagementOutcome::REJECTED)
        .unwrap();
    let reset = script.function(0);
    let next = script.submit(Direction::None);
    assert!(script.is_quiet());
    script
        .function_response(reset.initiator_task_tag, TaskManagementOutcome::COMPLETE)
        .unwrap();
    assert_eq!(script.aborted().len(), 1);
    let command = ScsiCommand::parse(&script.transmit().header);
    assert_eq!(script.good(command.initiator_task_tag).slot, next);
}

// E12. Found by the simulation: commands waited for ever.
#[test]
fn reset_that_is_not_answered_though_its_task_was_ends_the_session() {
    let mut script = Script::without_pings();
    let (_, command, abort) = script.stuck_read();
    script
        .function_response(abort.initiator_task_tag, TaskManagementOutcome::REJECTED)
        .unwrap();
    script.function(0);
    script
        .data_in(command.initiator_task_tag, 0, 0, 4096, Some(GOOD))
        .unwrap();
    script.submit(Direction::None);
    let begin = script.now;
    let ended = (0..10).find_map(|_| script.wait(40).err());
    let ended = ended.expect("the session ends");
    assert!(
        matches!(ended, SessionError::FunctionUnanswered { .. }),
        "{ended:?}"
    );
    assert!(script.now - begin <= 30 * SECOND + 2 * ROUND);
}

// E12: progress extends, the task's own and that of an older one
#[test]
fn bytes_that_move_extend_the_time() {
    let mut script = Script::without_pings();
    let (_, older) = script.start(Direction::Read(8192));
    script.start(Direction::Read(4096));
    for number in 0..8 {
        assert!(script.wait(25).unwrap().is_none(), "after {number}");
        let bytes = 1024;
        script
            .data_in(
                older.initiator_task_tag,
                number,
                number * bytes,
                bytes,
                None,
            )
            .unwrap();
    }
    let last_moved = script.now;
    let at = script.pass_ping(last_moved);
    assert!(
        (30 * SECOND..=30 * SECOND + 2 * ROUND).contains(&at),
        "{at:?}"
    );
    let abort = script.function(0);
    assert_eq!(abort.referenced_task_tag, older.initiator_task_tag);
}

// E12
#[test]
fn younger_task_that_moves_does_not_extend_an_older_ones_time() {
    let mut script = Script::without_pings();
    let begin = script.now;
    script.start(Direction::Read(8192));
    let (_, younger) = script.start(Direction::Read(8192));
    script.wait(25).unwrap();
    script
        .data_in(younger.initiator_task_tag, 0, 0, 1024, None)
        .unwrap();
    let at = script.pass_ping(begin);
    assert!(at <= 30 * SECOND + ROUND, "{at:?}");
}

// E12
#[test]
fn older_command_that_ends_extends_the_time_of_those_behind_it() {
    let mut script = Script::without_pings();
    let (_, older) = script.start(Direction::None);
    script.start(Direction::None);
    script.wait(25).unwrap();
    let ended = script.now;
    script.good(older.initiator_task_tag);
    let at = script.pass_ping(ended);
    assert!(at >= 30 * SECOND, "{at:?}");
}

#[test]
fn answer_during_the_climb_ends_it() {
    let mut script = Script::without_pings();
    let (slot, command, abort) = script.stuck_read();
    let (_, event) = script
        .data_in(command.initiator_task_tag, 0, 0, 4096, Some(GOOD))
        .unwrap();
    assert_eq!(completed(Ok(event)).slot, slot);
    script
        .function_response(
            abort.initiator_task_tag,
            TaskManagementOutcome::TASK_DOES_NOT_EXIST,
        )
        .unwrap();
    assert_eq!(script.events(), []);
    assert!(script.wait_for(500).is_none());
}

#[test]
fn slow_commands_have_their_own_time() {
    let mut script = Script::without_pings();
    let begin = script.now;
    script.submit_to(LUN, SYNCHRONIZE_CACHE, Direction::None);
    script.transmit();
    let at = script.pass_ping(begin);
    assert!((60 * SECOND..=60 * SECOND + ROUND).contains(&at), "{at:?}");
}

#[test]
fn steps_of_no_time_are_left_out() {
    let with = |timeouts| {
        let settings = Settings {
            noop_interval: Duration::ZERO,
            timeouts,
            ..SETTINGS
        };
        Script::with_settings(agreed(), 10, 64, settings)
    };
    let mut never = with(Timeouts::OFF);
    never.start(Direction::Read(4096));
    assert_eq!(never.session.poll_timeout(), None);

    let mut flush = with(Timeouts {
        command: Duration::ZERO,
        ..Timeouts::default()
    });
    flush.start(Direction::Read(4096));
    assert!(flush.wait(1000).unwrap().is_none());

    let mut no_abort = with(Timeouts {
        abort: Duration::ZERO,
        ..Timeouts::default()
    });
    no_abort.start(Direction::Read(4096));
    no_abort.pass_ping(no_abort.now);
    let first = no_abort.function(0).function;
    assert_eq!(first, TaskManagementFunction::LOGICAL_UNIT_RESET);

    let mut neither = with(Timeouts {
        abort: Duration::ZERO,
        lu_reset: Duration::ZERO,
        ..Timeouts::default()
    });
    neither.start(Direction::Read(4096));
    neither.pass_ping(neither.now);
    let end = neither.wait(1);
    assert!(matches!(end, Err(SessionError::Unanswered { .. })));
}

// F3: a target that takes no command at all is not waited for without end
#[test]
fn window_that_stays_closed_ends_the_session() {
    let settings = Settings {
        noop_interval: Duration::ZERO,
        ..SETTINGS
    };
    let mut script = Script::with_settings(agreed(), 10, 0, settings);
    let begin = script.now;
    script.submit(Direction::None);
    let end = script.wait(100);
    assert!(
        matches!(end, Err(SessionError::WindowClosed { .. })),
        "{end:?}"
    );
    let at = script.now - begin;
    assert!(
        (30 * SECOND..=30 * SECOND + 2 * ROUND).contains(&at),
        "{at:?}"
    );
}

// F28: RFC 7143 §11.9.1, code 5
#[test]
fn tasks_that_the_target_terminates_send_no_more_data_and_climb_at_once() {
    let mut script = Script::without_pings();
    let (slot, write) = script.start(Direction::Write(40_000));
    let itt = write.initiator_task_tag;
    script.r2t(itt, 0, 8192, 16_384).unwrap();
    let event = script
        .async_message(AsyncEvent::TASKS_TERMINATED, 0, &[])
        .unwrap();
    let told = TargetEvent::TasksTerminated { lun: LUN };
    assert_eq!(event, Some(Event::Told(told)));
    let acknowledgement = NopOut::parse(&script.transmit().header);
    assert_eq!(
        (
            acknowledgement.initiator_task_tag,
            acknowledgement.target_transfer_tag
        ),
        (InitiatorTaskTag::RESERVED, NO_TAG)
    );
    assert_eq!(
        (acknowledgement.lun, acknowledgement.exp_stat_sn),
        (LUN, StatSn(101))
    );
    assert!(script.is_quiet(), "no Data-Out for that unit");
    let at = script.pass_ping(script.now);
    assert!(at <= ROUND, "{at:?}");
    let abort = script.function(0);
    script
        .function_response(
            abort.initiator_task_tag,
            TaskManagementOutcome::TASK_DOES_NOT_EXIST,
        )
        .unwrap();
    assert_eq!(script.aborted(), [slot]);
}

// F23: RFC 7143 §11.18
#[test]
fn status_numbers_that_ran_ahead_are_acknowledged_when_idle() {
    let mut script = Script::without_pings();
    for _ in 0..40 {
        script.async_message(AsyncEvent::VENDOR, 0, &[]).unwrap();
    }
    let begin = script.now;
    let told = script.wait(10).unwrap().expect("an acknowledgement leaves");
    assert_eq!(script.now - begin, SECOND);
    let told = NopOut::parse(&told.header);
    assert!(told.immediate);
    assert_eq!(
        (told.initiator_task_tag, told.target_transfer_tag),
        (InitiatorTaskTag::RESERVED, NO_TAG)
    );
    assert_eq!(told.exp_stat_sn, StatSn(140));
    assert!(script.wait(100).unwrap().is_none(), "once is enough");
}
