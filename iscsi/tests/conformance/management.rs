//! F and E: task management, by the owner's wish and by the ladder, and sessions of several connections.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use iscsi::io::Driver;
use iscsi::proto::session::TargetEvent;
use iscsi::proto::{SessionError, Timeouts};
use iscsi::scsi::{LunAddress, Status};
use iscsi::wire::task_management::TaskManagementFunction;
use support::target::{Direction, Fault, NO_TAG, Pdu, Script, Seen, Target, Verdict, at, op};

use crate::bed::{
    BLOCK, LUN, bytes_in, completion, driven, end, params, pattern, read, ready, run, session,
    session_with, submit, target, write,
};

/// RFC 7143 §11.5.1.
const ABORT_TASK: u8 = 1;
const ABORT_TASK_SET: u8 = 2;
const LOGICAL_UNIT_RESET: u8 = 5;
const FUNCTIONS_BUT_ABORT_TASK: [u8; 6] = [ABORT_TASK_SET, 3, 4, LOGICAL_UNIT_RESET, 6, 7];
/// RFC 7143 §11.6.1: function complete, task does not exist.
const COMPLETE: u8 = 0;
const TASK_DOES_NOT_EXIST: u8 = 1;
const GOOD: u8 = 0;

/// For what is not answered: the test waits so long.
const IMPATIENT: Duration = Duration::from_millis(250);
/// For what is answered: longer than a busy machine needs.
const PATIENT: Duration = Duration::from_secs(10);

fn lun() -> LunAddress {
    LunAddress::from_number(LUN)
}

fn function_of(pdu: &Pdu) -> u8 {
    pdu.flags() & 0x7f
}

/// What a request says of its task: `RefCmdSN` lies where a target has `MaxCmdSN`.
fn names(pdu: &Pdu) -> (u32, u32) {
    (pdu.ttt(), pdu.word(at::MAX_CMD_SN))
}

// F31, F2
#[tokio::test]
async fn abort_names_lun_tag_and_number_of_its_task_and_is_immediate() {
    let (mut driver, mut peer) = session().await;
    submit(&mut driver, 0, ready());
    submit(&mut driver, 1, read(0, 1));
    let commands = driven(&mut driver, async {
        [peer.recv().await, peer.recv().await]
    })
    .await;
    let target = async {
        let request = peer.expect(op::TASK_MANAGEMENT).await;
        peer.send(Pdu::task_management_response(&request, COMPLETE))
            .await;
        request
    };
    let function = TaskManagementFunction(ABORT_TASK);
    let (outcome, request) = tokio::join!(driver.task_management(function, lun(), Some(1)), target);
    assert_eq!(outcome.expect("it is answered").0, COMPLETE);
    assert!(request.immediate());
    assert_eq!(function_of(&request), ABORT_TASK);
    assert_eq!(request.lun_bytes(), commands[1].lun_bytes());
    assert_eq!(names(&request), (commands[1].itt(), commands[1].cmd_sn()));
    assert_eq!(request.cmd_sn(), commands[1].cmd_sn() + 1);
    assert!(
        commands
            .iter()
            .all(|command| command.itt() != request.itt())
    );
    let aborted = completion(&mut driver).await;
    assert_eq!((aborted.token, aborted.status), (1, Status::TASK_ABORTED));
    submit(&mut driver, 2, ready());
    let next = driven(&mut driver, peer.expect(op::SCSI_COMMAND)).await;
    assert_eq!(
        next.cmd_sn(),
        request.cmd_sn(),
        "an immediate one uses none up"
    );
}

// F31: no task is named where none is meant
#[tokio::test]
async fn functions_over_many_tasks_name_none() {
    for function in FUNCTIONS_BUT_ABORT_TASK {
        let (mut driver, mut peer) = session().await;
        let target = async {
            let request = peer.expect(op::TASK_MANAGEMENT).await;
            peer.send(Pdu::task_management_response(&request, COMPLETE))
                .await;
            request
        };
        let asked = driver.task_management(TaskManagementFunction(function), lun(), None);
        let (outcome, request) = tokio::join!(asked, target);
        assert_eq!(outcome.expect("it is answered").0, COMPLETE);
        assert_eq!(function_of(&request), function);
        assert_eq!(request.ttt(), NO_TAG);
        assert!(request.data.is_empty() && request.immediate());
    }
}

// F32
#[tokio::test]
async fn open_transfer_tags_are_served_after_abort_task_set_and_late_answers_taken() {
    let keys = [
        ("ImmediateData", "No"),
        ("InitialR2T", "Yes"),
        ("MaxRecvDataSegmentLength", "1024"),
    ];
    let (mut driver, mut peer) = session_with(|_| {}, &keys).await;
    submit(&mut driver, 0, write(0, &pattern(4 * BLOCK)));
    let command = driven(&mut driver, peer.expect(op::SCSI_COMMAND)).await;
    let target = async {
        let request = peer.expect(op::TASK_MANAGEMENT).await;
        peer.send(Pdu::r2t(&command, 0x77, 0, 0, 2048)).await;
        let mut bytes = 0;
        while bytes < 2048 {
            let data_out = peer.expect(op::DATA_OUT).await;
            assert_eq!(data_out.ttt(), 0x77);
            bytes += data_out.data.len();
            assert_eq!(data_out.is_final(), bytes == 2048);
        }
        // It was done before the function reached it.
        peer.send(Pdu::scsi_response(&command, 0x08)).await;
        peer.send(Pdu::task_management_response(&request, COMPLETE))
            .await;
    };
    let function = TaskManagementFunction(ABORT_TASK_SET);
    let (outcome, ()) = tokio::join!(driver.task_management(function, lun(), None), target);
    assert_eq!(outcome.expect("it is answered").0, COMPLETE);
    let late = completion(&mut driver).await;
    assert_eq!((late.token, late.status), (0, Status::BUSY));
}

// F33
#[tokio::test]
async fn each_response_to_an_abort_has_a_consequence() {
    for response in [0, 1, 2, 3, 4, 5, 6, 77, 255] {
        let (mut driver, mut peer) = session().await;
        submit(&mut driver, 0, ready());
        let command = driven(&mut driver, peer.expect(op::SCSI_COMMAND)).await;
        let target = async {
            let request = peer.expect(op::TASK_MANAGEMENT).await;
            peer.send(Pdu::task_management_response(&request, response))
                .await;
        };
        let function = TaskManagementFunction(ABORT_TASK);
        let asked = driver.task_management(function, lun(), Some(0));
        let (outcome, ()) = tokio::join!(asked, target);
        assert_eq!(outcome.expect("it is answered").0, response);
        if response != COMPLETE && response != TASK_DOES_NOT_EXIST {
            // The task stands, and its answer counts.
            peer.send(Pdu::scsi_response(&command, GOOD)).await;
            assert_eq!(completion(&mut driver).await.status, Status::GOOD);
            continue;
        }
        let ended = completion(&mut driver).await;
        assert_eq!(ended.status, Status::TASK_ABORTED, "response {response}");
    }
}

// E12
#[tokio::test]
async fn answer_that_comes_after_the_abort_does_no_harm() {
    let (mut driver, mut peer) = session().await;
    submit(&mut driver, 0, read(0, 1));
    let command = driven(&mut driver, peer.expect(op::SCSI_COMMAND)).await;
    let target = async {
        let request = peer.expect(op::TASK_MANAGEMENT).await;
        peer.send(Pdu::task_management_response(&request, COMPLETE))
            .await;
        let data = pattern(BLOCK);
        peer.send(Pdu::data_in(&command, 0, 0, &data, true).with_status(GOOD))
            .await;
    };
    let function = TaskManagementFunction(ABORT_TASK);
    let asked = driver.task_management(function, lun(), Some(0));
    let (outcome, ()) = tokio::join!(asked, target);
    outcome.expect("it is answered");
    let aborted = completion(&mut driver).await;
    assert_eq!(aborted.status, Status::TASK_ABORTED);
    // The session goes on, and a new task has nothing of the old one's.
    submit(&mut driver, 1, ready());
    let next = driven(&mut driver, peer.expect(op::SCSI_COMMAND)).await;
    assert_ne!(next.itt(), command.itt());
    peer.send(Pdu::scsi_response(&next, GOOD)).await;
    let done = completion(&mut driver).await;
    assert_eq!((done.token, done.status), (1, Status::GOOD));
}

/// A session on an honest target that is soon out of patience; so long it waits for the answers to its functions.
async fn hasty(target: &Target, abort: Duration, lu_reset: Duration) -> Driver {
    let mut params = params(&target.portal());
    params.timeouts = Timeouts {
        command: IMPATIENT,
        slow: IMPATIENT,
        abort,
        lu_reset,
    };
    Driver::connect(&params).await.expect("the login succeeds")
}

/// What the initiator sent but commands and logins, as opcode and function.
fn climbed(target: &Target) -> Vec<(u8, u8)> {
    let rungs = |seen: &Seen| {
        seen.direction == Direction::FromInitiator
            && [op::NOP_OUT, op::TASK_MANAGEMENT].contains(&seen.pdu.opcode())
    };
    let rung = |pdu: &Pdu| match pdu.opcode() {
        op::TASK_MANAGEMENT => (op::TASK_MANAGEMENT, function_of(pdu)),
        opcode => (opcode, 0),
    };
    target.record().pdus(rungs).iter().map(rung).collect()
}

// E12, F31
#[tokio::test]
async fn command_without_answer_is_aborted_after_a_ping() {
    let target = target().start().await;
    let mut driver = hasty(&target, PATIENT, PATIENT).await;
    target.inject(Fault::NoAnswer { nth: 1 });
    let done = run(&mut driver, read(0, 1)).await;
    assert_eq!(done.status, Status::TASK_ABORTED);
    let rungs = climbed(&target);
    assert_eq!(
        rungs[..2],
        [(op::NOP_OUT, 0), (op::TASK_MANAGEMENT, ABORT_TASK)]
    );
    let command = target.record().received(op::SCSI_COMMAND)[0].clone();
    let abort = target.record().received(op::TASK_MANAGEMENT)[0].clone();
    assert_eq!(names(&abort), (command.itt(), command.cmd_sn()));
    assert_eq!(abort.lun_bytes(), command.lun_bytes());
    assert_eq!(run(&mut driver, read(0, 1)).await.status, Status::GOOD);
    assert_eq!(target.violations(), Vec::<String>::new());
}

// E12
#[tokio::test]
async fn abort_that_fails_is_followed_by_a_reset_of_the_unit() {
    let target = target().start().await;
    let mut driver = hasty(&target, IMPATIENT, PATIENT).await;
    target.inject(Fault::NoAnswer { nth: 1 });
    // The abort is lost on its way.
    let is_abort =
        |seen: &Seen| seen.received(op::TASK_MANAGEMENT) && function_of(&seen.pdu) == ABORT_TASK;
    target.strike(1, is_abort, |_| Verdict::drop());
    let done = run(&mut driver, read(0, 1)).await;
    assert_eq!(done.status, Status::TASK_ABORTED);
    let functions: Vec<u8> = climbed(&target)
        .into_iter()
        .filter(|(opcode, _)| *opcode == op::TASK_MANAGEMENT)
        .map(|(_, function)| function)
        .collect();
    assert_eq!(functions, [ABORT_TASK, LOGICAL_UNIT_RESET]);
}

// E12
#[tokio::test]
async fn ladder_ends_with_the_session_and_nothing_is_told_twice() {
    let target = target().start().await;
    let mut driver = hasty(&target, IMPATIENT, IMPATIENT).await;
    target.inject(Fault::NoAnswer { nth: 1 });
    target.tap(|seen| {
        if seen.received(op::TASK_MANAGEMENT) {
            Verdict::drop()
        } else {
            Verdict::Pass
        }
    });
    submit(&mut driver, 7, write(0, &pattern(BLOCK)));
    let error = end(&mut driver).await;
    assert!(matches!(error, SessionError::Unanswered { .. }), "{error}");
    let unfinished = driver.take_unfinished();
    assert_eq!(unfinished.len(), 1);
    assert_eq!(unfinished[0].0, 7);
    drop(driver);
    target.record().closed(1).await;
}

// F28: no data goes to the unit whose tasks the target ends, and the status number is acknowledged
#[tokio::test]
async fn terminated_tasks_of_a_unit_send_no_more_data() {
    let keys = [("ImmediateData", "No"), ("InitialR2T", "Yes")];
    let (mut driver, mut peer) = session_with(|_| {}, &keys).await;
    submit(&mut driver, 0, write(0, &pattern(4 * BLOCK)));
    let command = driven(&mut driver, peer.expect(op::SCSI_COMMAND)).await;
    // 5: all tasks of the unit are being terminated. The R2T crossed it.
    let message = Pdu::async_message(5, 0, [0; 3]).with_lun(command.lun_bytes());
    peer.send(message).await;
    peer.send(Pdu::r2t(&command, 1, 0, 0, 2048)).await;
    peer.send(Pdu::ping(7)).await;
    let before = driven(&mut driver, async {
        let mut before = Vec::new();
        loop {
            let pdu = peer.recv().await;
            if pdu.ttt() == 7 {
                return before;
            }
            before.push(pdu);
        }
    })
    .await;
    assert!(
        before.iter().all(|pdu| pdu.opcode() != op::DATA_OUT),
        "{before:?}"
    );
    let told = driver.take_event();
    let is_told = matches!(told, Some(TargetEvent::TasksTerminated { .. }));
    assert!(is_told, "{told:?}");
}

/// A target that takes so many connections a session, and a driver that wants four.
async fn wide(count: u16) -> (Target, Driver) {
    let target = target().max_connections(count).window(16).start().await;
    let mut params = params(&target.portal());
    params.offers.max_connections = 4;
    let driver = Driver::connect(&params).await;
    (target, driver.expect("the login succeeds"))
}

// L4, L16
#[tokio::test]
async fn further_connections_have_the_sessions_names_and_numbers_of_their_own() {
    for count in [1, 2, 4, 9] {
        let (target, driver) = wide(count).await;
        assert_eq!(driver.connections(), usize::from(count.min(4)));
        let mut first = BTreeMap::new();
        for seen in target.record().all() {
            if seen.received(op::LOGIN) {
                first.entry(seen.connection).or_insert(seen.pdu);
            }
        }
        let requests: Vec<Pdu> = first.into_values().collect();
        assert_eq!(requests.len(), driver.connections());
        let tsih = target.session_list()[0].tsih;
        let mut cids = BTreeSet::new();
        for (index, request) in requests.iter().enumerate() {
            assert_eq!(request.isid(), requests[0].isid());
            assert_eq!(request.tsih(), if index == 0 { 0 } else { tsih });
            assert!(cids.insert(request.cid()), "CID {} twice", request.cid());
        }
        driver.logout().await.expect("the logout is answered");
        assert_eq!(target.violations(), Vec::<String>::new());
    }
}

// L3: a connection that ends in another session is not used, and the others go on
#[tokio::test]
async fn further_connection_that_ends_in_another_session_is_closed() {
    let script = Script::listen().await;
    let mut params = params(&script.portal());
    params.offers.max_connections = 2;
    let target = async {
        let mut leading = script.accept().await;
        leading.login_with(7, &[("MaxConnections", "2")]).await;
        let mut further = script.accept().await;
        let request = further.expect(op::LOGIN).await;
        assert_eq!((request.tsih(), request.cid()), (7, 1));
        // Whatever it asks: welcome, in session 9.
        let mut request = request;
        loop {
            let is_last = request.is_final() && request.stages().1 == 3;
            let tsih = if is_last { 9 } else { 7 };
            let keys: &[(&str, &str)] = if request.key("AuthMethod").is_some() {
                &[("AuthMethod", "None")]
            } else {
                &[]
            };
            further
                .send(Pdu::login_response(&request, request.flags(), tsih, keys))
                .await;
            match further.try_recv().await {
                Some(next) => {
                    assert_eq!(next.opcode(), op::LOGIN, "{next:?}");
                    request = next;
                }
                None => return leading,
            }
        }
    };
    let (login, mut leading) = tokio::join!(Driver::connect(&params), target);
    let mut driver = login.expect("one connection is left");
    assert_eq!(driver.connections(), 1);
    submit(&mut driver, 0, ready());
    let command = driven(&mut driver, leading.expect(op::SCSI_COMMAND)).await;
    leading.send(Pdu::scsi_response(&command, GOOD)).await;
    assert_eq!(completion(&mut driver).await.status, Status::GOOD);
}

// F1, F8, F12: over several connections
#[tokio::test]
async fn command_numbers_rise_by_one_across_connections() {
    let (target, mut driver) = wide(4).await;
    let login = target.record().received(op::LOGIN)[0].cmd_sn();
    let datas: Vec<Vec<u8>> = (1..33).map(|blocks| pattern(blocks * BLOCK)).collect();
    for (token, data) in (0..).zip(&datas) {
        submit(&mut driver, token, write(token * 64, data));
    }
    for _ in &datas {
        assert_eq!(completion(&mut driver).await.status, Status::GOOD);
    }
    for (token, data) in (0..).zip(&datas) {
        let blocks = u32::try_from(data.len() / BLOCK).expect("few");
        let done = run(&mut driver, read(token * 64, blocks)).await;
        assert!(bytes_in(&done) == data);
    }
    let mut numbers = Vec::new();
    let mut last: BTreeMap<u64, u32> = BTreeMap::new();
    for seen in target.record().all() {
        if seen.received(op::SCSI_COMMAND) {
            let number = seen.pdu.cmd_sn();
            numbers.push(number);
            if let Some(before) = last.insert(seen.connection, number) {
                assert!(before < number, "on connection {}", seen.connection);
            }
        }
    }
    assert_eq!(last.len(), 4, "all of them are used: {last:?}");
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(login..login + 64), "{numbers:?}");
    driver.logout().await.expect("the logout is answered");
    assert_eq!(target.violations(), Vec::<String>::new());
}

// E8, F1: at level 0 the loss of one connection is the loss of the session
#[tokio::test]
async fn loss_of_one_connection_of_several_ends_the_session() {
    let (target, mut driver) = wide(4).await;
    let is_answer = |seen: &Seen| seen.sent(op::SCSI_RESPONSE) || seen.sent(op::DATA_IN);
    target.strike(3, is_answer, |_| Verdict::reset());
    for token in 0..8 {
        submit(&mut driver, token, read(token, 1));
    }
    let mut answered = 0;
    while crate::bed::next(&mut driver).await.is_ok() {
        answered += 1;
    }
    let unfinished = driver.take_unfinished();
    assert_eq!(answered + unfinished.len(), 8, "each has one end");
    assert!(!unfinished.is_empty());
}
