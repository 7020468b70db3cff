//! Sessions of several connections.

use super::*;
use crate::proto::Misuse;

impl Script {
    /// A session of `count` connections.
    fn of(count: u16) -> Self {
        let mut script = Self::without_pings();
        for cid in 1..count {
            let numbers = ResponseNumbers {
                stat_sn: StatSn(1000 * u32::from(cid)),
                exp_cmd_sn: script.exp_cmd_sn,
                max_cmd_sn: script.max_cmd_sn,
            };
            let established = established(agreed(), numbers);
            assert_eq!(script.session.join(&established, script.now), cid);
            script.stat_sns.push(established.exp_stat_sn);
        }
        script
    }

    /// Submits, and gives the command as it leaves on a connection.
    fn start_on(&mut self, cid: u16, direction: Direction) -> (u16, ScsiCommand) {
        self.cid = cid;
        self.start(direction)
    }

    fn logout_on(&mut self, cid: u16) -> LogoutRequest {
        self.cid = cid;
        let transmit = self.transmit();
        assert_eq!(header::opcode(&transmit.header), Opcode::LOGOUT_REQUEST);
        LogoutRequest::parse(&transmit.header)
    }
}

// F1: RFC 7143 §4.2.2.1
#[test]
fn command_numbers_rise_across_all_connections_in_the_order_of_the_wire() {
    let mut script = Script::of(3);
    let order = [2, 0, 0, 1];
    for (number, cid) in (10..).zip(order) {
        let (_, command) = script.start_on(cid, Direction::None);
        assert_eq!(command.cmd_sn, CmdSn(number));
    }
}

// F20: RFC 7143 §4.2.2.2
#[test]
fn each_connection_counts_its_own_statuses() {
    let mut script = Script::of(2);
    let (_, first) = script.start_on(0, Direction::None);
    let (_, second) = script.start_on(1, Direction::None);
    assert_eq!(
        (first.exp_stat_sn, second.exp_stat_sn),
        (StatSn(100), StatSn(1001))
    );
    script.good(second.initiator_task_tag);
    let (_, third) = script.start_on(1, Direction::None);
    let (_, fourth) = script.start_on(0, Direction::None);
    assert_eq!(
        (third.exp_stat_sn, fourth.exp_stat_sn),
        (StatSn(1002), StatSn(100))
    );
}

// RFC 7143 §4.2.5.1
#[test]
fn all_of_a_task_stays_on_its_connection() {
    let start = || {
        let mut script = Script::of(2);
        let (_, read) = script.start_on(1, Direction::Read(4096));
        let (_, write) = script.start_on(1, Direction::Write(40_000));
        script.cid = 0;
        let itts = (read.initiator_task_tag, write.initiator_task_tag);
        (script, itts.0, itts.1)
    };
    let strayed = |itt: InitiatorTaskTag| Violation::Allegiance {
        task: itt.0,
        expected: 1,
        seen: 0,
    };
    let (mut script, read, _) = start();
    assert_eq!(
        violation(script.data_in(read, 0, 0, 512, None)),
        strayed(read)
    );
    let (mut script, _, write) = start();
    assert_eq!(violation(script.r2t(write, 0, 8192, 512)), strayed(write));
    let (mut script, read, _) = start();
    let end = script.response(read, 0, Residual::None, &[]);
    assert_eq!(violation(end), strayed(read));

    // In its place: the data leaves on the task's connection, and on no other.
    let (mut script, _, write) = start();
    script.cid = 1;
    script.r2t(write, 0, 8192, 512).unwrap();
    assert!(script.session.poll_transmit(0).is_none());
    assert_eq!(script.data_out().0.initiator_task_tag, write);
    let slot = 1;
    let abort = TaskManagementFunction::ABORT_TASK;
    script
        .session
        .handle_task_management(abort, LUN, Some(slot))
        .unwrap();
    assert!(script.session.poll_transmit(0).is_none());
    let request = TaskManagementRequest::parse(&script.transmit().header);
    assert_eq!(request.referenced_task_tag, write);
    script.cid = 0;
    let answer =
        script.function_response(request.initiator_task_tag, TaskManagementOutcome::COMPLETE);
    assert_eq!(
        violation(answer),
        Violation::UnknownTask(request.initiator_task_tag.0)
    );
}

// F25: RFC 7143 §11.9.1, §11.14: the right CID, and the others go on
#[test]
fn requested_logout_closes_that_connection_alone() {
    let mut script = Script::of(2);
    let (_, here) = script.start_on(1, Direction::None);
    let (_, there) = script.start_on(0, Direction::None);
    script.cid = 1;
    script
        .async_message(AsyncEvent::LOGOUT_REQUESTED, 10, &[])
        .unwrap();
    let told = TargetEvent::LogoutRequested {
        cid: 1,
        seconds: 10,
    };
    assert_eq!(script.events(), [Event::Told(told)]);
    let waiting = script.submit(Direction::None);
    assert!(script.is_quiet(), "no command leaves there any more");
    script.good(here.initiator_task_tag);
    let logout = script.logout_on(1);
    assert_eq!(
        (logout.reason, logout.cid),
        (LogoutReason::CLOSE_CONNECTION, 1)
    );
    assert_eq!(script.logout_response().unwrap(), None);
    assert_eq!(script.events(), [Event::ConnectionClosed { cid: 1 }]);
    assert_eq!(script.session.connections(), 1);
    script.session.handle_closed(1).unwrap();

    script.cid = 0;
    let command = ScsiCommand::parse(&script.transmit().header);
    assert_eq!(script.good(command.initiator_task_tag).slot, waiting);
    script.good(there.initiator_task_tag);
    script.session.handle_logout();
    let logout = script.logout_on(0);
    assert_eq!(
        (logout.reason, logout.cid),
        (LogoutReason::CLOSE_SESSION, 0)
    );
    let end = script.logout_response();
    assert!(matches!(end, Err(SessionError::LoggedOut)));
}

// F25: RFC 7143 §11.14.1: tasks that do not end in time end with their connection
#[test]
fn connection_that_is_closed_takes_its_tasks_along() {
    let mut script = Script::of(2);
    let (slot, here) = script.start_on(1, Direction::Read(512));
    let (_, there) = script.start_on(0, Direction::None);
    script.cid = 1;
    script
        .async_message(AsyncEvent::LOGOUT_REQUESTED, 10, &[])
        .unwrap();
    script.events();
    let logout = script.wait(6).unwrap().expect("the logout leaves in time");
    assert_eq!(header::opcode(&logout.header), Opcode::LOGOUT_REQUEST);
    script.logout_response().unwrap();
    let events = script.events();
    assert!(
        matches!(&events[0], Event::Completed(end)
            if end.slot == slot && end.status == Status::TASK_ABORTED),
        "{events:?}"
    );
    assert_eq!(events[1], Event::ConnectionClosed { cid: 1 });
    script.cid = 0;
    script.good(there.initiator_task_tag);
    assert!(
        script
            .response(here.initiator_task_tag, 0, Residual::None, &[])
            .is_ok(),
        "a late answer is consumed"
    );
}

// E6: RFC 7143 §11.14
#[test]
fn logouts_that_cannot_be_are_refused() {
    let mut script = Script::of(2);
    let mut ask = |cid, reason| script.session.handle_connection_logout(cid, reason);
    let for_recovery = LogoutReason::REMOVE_FOR_RECOVERY;
    assert_eq!(ask(1, for_recovery), Err(Misuse::RecoveryLevel));
    let close = LogoutReason::CLOSE_CONNECTION;
    assert_eq!(ask(2, close), Err(Misuse::NoConnection));
    assert_eq!(ask(1, close), Ok(()));
    assert_eq!(ask(1, close), Ok(()), "asked for already");
    script.logout_on(1);
    script.logout_response().unwrap();
    let again = script.session.handle_connection_logout(1, close);
    assert_eq!(again, Err(Misuse::NoConnection));
    // The last connection is the session.
    script.session.handle_connection_logout(0, close).unwrap();
    assert_eq!(script.logout_on(0).reason, LogoutReason::CLOSE_SESSION);
}

// F29: RFC 7143 §11.15.1
#[test]
fn every_answer_to_a_logout_has_a_consequence() {
    for (code, is_closed) in [(0, true), (1, true), (2, false), (3, false), (9, false)] {
        let mut script = Script::of(2);
        let close = LogoutReason::CLOSE_CONNECTION;
        script.session.handle_connection_logout(1, close).unwrap();
        script.logout_on(1);
        let outcome = LogoutOutcome(code);
        match script.logout_outcome(outcome) {
            Ok(None) => assert!(is_closed),
            Err(SessionError::LogoutFailed { outcome: told }) => {
                assert!(!is_closed && told == outcome);
            }
            other => panic!("{other:?}"),
        }
    }
    for code in [0, 1, 2, 3, 9] {
        let mut script = Script::new();
        script.session.handle_logout();
        script.logout_on(0);
        let end = script.logout_outcome(LogoutOutcome(code));
        assert!(matches!(end, Err(SessionError::LoggedOut)), "{end:?}");
    }
}

// F29, E8
#[test]
fn close_after_a_logout_is_no_failure_and_any_other_is_one() {
    let mut script = Script::new();
    script.session.handle_logout();
    script.logout_on(0);
    let end = script.session.handle_closed(0);
    assert!(matches!(end, Err(SessionError::LoggedOut)), "{end:?}");

    let mut script = Script::new();
    script
        .async_message(AsyncEvent::LOGOUT_REQUESTED, 10, &[])
        .unwrap();
    script.logout_on(0);
    let end = script.session.handle_closed(0).unwrap_err();
    assert_eq!(end.time_2_wait(), Some(2 * SECOND), "{end:?}");

    let mut script = Script::of(2);
    let close = LogoutReason::CLOSE_CONNECTION;
    script.session.handle_connection_logout(1, close).unwrap();
    script.logout_on(1);
    script.session.handle_closed(1).unwrap();
    assert_eq!(script.events(), [Event::ConnectionClosed { cid: 1 }]);

    let end = script.session.handle_closed(0);
    assert!(matches!(end, Err(SessionError::Lost { .. })), "{end:?}");

    // A session's logout closes the other connections too, maybe before its answer is here.
    let mut script = Script::of(2);
    script.session.handle_logout();
    script.logout_on(0);
    script.session.handle_closed(1).unwrap();
    let end = script.logout_response();
    assert!(matches!(end, Err(SessionError::LoggedOut)), "{end:?}");
}

// F25: both are asked at the same time, and each answers for itself
#[test]
fn last_of_several_connections_that_are_logged_out_ends_the_session() {
    let mut script = Script::of(2);
    for cid in 0..2 {
        script.cid = cid;
        script
            .async_message(AsyncEvent::LOGOUT_REQUESTED, 10, &[])
            .unwrap();
    }
    assert_eq!(script.logout_on(0).reason, LogoutReason::CLOSE_CONNECTION);
    assert_eq!(script.logout_on(1).reason, LogoutReason::CLOSE_CONNECTION);
    script.logout_response().unwrap();
    script.cid = 0;
    let end = script.logout_response();
    assert!(
        matches!(end, Err(SessionError::LogoutRequested { .. })),
        "{end:?}"
    );
}

// F29: RFC 7143 §11.14
#[test]
fn nothing_new_leaves_after_a_logout_and_its_silence_ends_the_session() {
    let mut script = Script::new();
    script.session.handle_logout();
    script.logout_on(0);
    script.submit(Direction::None);
    let begin = script.now;
    let end = script.wait(100);
    assert!(matches!(end, Err(SessionError::Silent { .. })), "{end:?}");
    assert_eq!(script.now - begin, 15 * SECOND);
}

// F26: RFC 7143 §11.9.1, codes 2 and 3
#[test]
fn drop_notices_say_which_connection_and_for_how_long() {
    for (event, connection) in [
        (AsyncEvent::CONNECTION_DROPPED, Some(1)),
        (AsyncEvent::SESSION_DROPPED, None),
    ] {
        let mut script = Script::of(2);
        let message = AsyncMessage {
            lun: 0,
            numbers: script.status_numbers(),
            event,
            vendor_code: 0,
            parameter_1: 1,
            parameter_2: 3,
            parameter_3: 20,
        };
        let end = script.give(message.emit(), &[]).unwrap_err();
        assert_eq!(end.time_2_wait(), Some(3 * SECOND));
        assert!(
            matches!(end, SessionError::Dropped { connection: told, retain: 20, .. }
                if told == connection),
            "{end:?}"
        );
    }
}

// E12: a reset reaches the tasks of its unit on every connection
#[test]
fn reset_ends_tasks_on_all_connections() {
    let mut script = Script::of(2);
    let (first, _) = script.start_on(0, Direction::None);
    let (second, _) = script.start_on(1, Direction::Read(512));
    script.cid = 0;
    let reset = TaskManagementFunction::LOGICAL_UNIT_RESET;
    script
        .session
        .handle_task_management(reset, LUN, None)
        .unwrap();
    let request = TaskManagementRequest::parse(&script.transmit().header);
    script.submit(Direction::None);
    assert!(script.drain().is_empty(), "commands wait on both");
    script
        .function_response(request.initiator_task_tag, TaskManagementOutcome::COMPLETE)
        .unwrap();
    let events = script.events();
    let slots: Vec<u16> = events
        .iter()
        .filter_map(|event| match event {
            Event::Completed(end) => Some(end.slot),
            Event::FunctionEnded { .. } | Event::ConnectionClosed { .. } | Event::Told(_) => None,
        })
        .collect();
    assert_eq!(slots, [first, second]);
    assert_eq!(script.drain().len(), 1);
}

// F22: each connection is pinged on its own
#[test]
fn silence_on_one_connection_ends_the_session() {
    let mut script = Script::new();
    let numbers = script.numbers();
    script
        .session
        .join(&established(agreed(), numbers), script.now);
    script.stat_sns.push(numbers.stat_sn.next());
    for _ in 0..3 {
        script.now += 4 * SECOND;
        script.session.handle_heard(0, script.now);
        script.session.handle_timeout(script.now).unwrap();
    }
    assert!(script.session.poll_transmit(0).is_none());
    script.cid = 1;
    assert_eq!(header::opcode(&script.transmit().header), Opcode::NOP_OUT);
    script.now += 12 * SECOND;
    script.session.handle_heard(0, script.now);
    let end = script.session.handle_timeout(script.now);
    assert!(matches!(end, Err(SessionError::Silent { .. })));
}
