//! The driver against the target of `support`: commands that are not answered, task management, several connections,
//! digests that do not fit. Times are short so that the tests are; none of them asserts one.

use std::future::poll_fn;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use iscsi::io::{Command, Completion, Data, Driver};
use iscsi::proto::session::TargetEvent;
use iscsi::proto::{
    DigestPolicy, FunctionError, Isid, Misuse, SessionError, SessionParams, Timeouts, Violation,
};
use iscsi::scsi::{Blocks, Cdb, Lba, LunAddress, Status};
use iscsi::wire::task_management::{TaskManagementFunction, TaskManagementOutcome};
use support::target::{Builder, Disk, Fault, Target};

const IQN: &str = "iqn.2026-11.test:ladder";
const BLOCK: usize = 512;
const LUN_BYTES: u64 = 8 << 20;

fn builder() -> Builder {
    Target::builder()
        .iqn(IQN)
        .unit_attention(false)
        .lun(1, Disk::memory(LUN_BYTES))
        .lun(2, Disk::memory(LUN_BYTES))
}

fn params(target: &Target) -> SessionParams {
    let portal = target.portal().parse().expect("a portal");
    let name = "iqn.2026-11.org.cinder-nbd:test".parse().expect("a name");
    let mut params = SessionParams::new(portal, name, Isid::random([1, 2, 3], 9));
    params.target_name = Some(IQN.parse().expect("a name"));
    params.noop_interval = Duration::ZERO;
    params
}

/// Commands are overdue soon, answers to the steps are waited for as long as it takes.
fn hasty(target: &Target) -> SessionParams {
    let mut params = params(target);
    params.timeouts = Timeouts {
        command: Duration::from_millis(80),
        slow: Duration::from_millis(80),
        ..Timeouts::default()
    };
    params
}

fn read(lun: u16, lba: u64, blocks: u32) -> Command {
    let bytes = usize::try_from(blocks).expect("few blocks") * BLOCK;
    Command {
        lun: LunAddress::from_number(lun),
        cdb: Cdb::read_16(Lba(lba), Blocks(blocks)),
        data: Data::In(BytesMut::zeroed(bytes)),
    }
}

fn write(lun: u16, lba: u64, data: Bytes) -> Command {
    let blocks = u32::try_from(data.len() / BLOCK).expect("few blocks");
    Command {
        lun: LunAddress::from_number(lun),
        cdb: Cdb::write_16(Lba(lba), Blocks(blocks), false),
        data: Data::Out(data),
    }
}

async fn next(driver: &mut Driver) -> Result<Completion, SessionError> {
    poll_fn(|cx| driver.poll_completion(cx)).await
}

/// Bytes that differ by place and round, so that a block in the wrong place shows.
fn pattern(length: usize, round: usize) -> Bytes {
    (0..length)
        .map(|at| u8::try_from((at / BLOCK * 31 + at * 7 + round * 13) % 251).expect("below 256"))
        .collect()
}

// E12: the task is aborted, its owner may repeat it, and the session goes on
#[tokio::test]
async fn command_that_is_not_answered_is_aborted_and_can_be_repeated() {
    let target = builder().start_blocking();
    let mut driver = Driver::connect(&hasty(&target)).await.unwrap();
    target.inject(Fault::NoAnswer { nth: 1 });
    driver.submit(7, write(1, 5, pattern(8192, 1))).unwrap();
    let aborted = next(&mut driver).await.unwrap();
    assert_eq!((aborted.token, aborted.status), (7, Status::TASK_ABORTED));
    let Data::Out(data) = aborted.data else {
        panic!("the buffer comes back")
    };
    driver.submit(8, write(1, 5, data)).unwrap();
    assert_eq!(next(&mut driver).await.unwrap().status, Status::GOOD);
    driver.submit(9, read(1, 5, 16)).unwrap();
    let done = next(&mut driver).await.unwrap();
    assert!(matches!(done.data, Data::In(buffer) if buffer == pattern(8192, 1)));
    driver.logout().await.unwrap();
    assert_eq!(target.violations(), Vec::<String>::new());
}

// E12
#[tokio::test]
async fn target_without_task_management_loses_the_session() {
    for fault in [
        Fault::NoTaskManagement,
        Fault::TaskManagement { response: 5 },
    ] {
        let target = builder().start_blocking();
        let mut params = hasty(&target);
        params.timeouts.abort = Duration::from_millis(50);
        params.timeouts.lu_reset = Duration::from_millis(80);
        let mut driver = Driver::connect(&params).await.unwrap();
        target.inject(fault);
        target.inject(Fault::NoAnswer { nth: 1 });
        driver.submit(7, read(1, 0, 1)).unwrap();
        let end = next(&mut driver).await.unwrap_err();
        let SessionError::Unanswered { attempts, .. } = &end else {
            panic!("{end}")
        };
        assert_eq!(attempts.len(), 3, "{end}");
        assert_eq!(driver.take_unfinished().len(), 1);
    }
}

// F31, F33: the owner's functions; what else completes meanwhile is kept
#[tokio::test]
async fn owner_resets_a_unit_and_aborts_a_command() {
    let target = builder().start_blocking();
    let mut driver = Driver::connect(&params(&target)).await.unwrap();
    target.inject(Fault::HoldCommand { nth: 1 });
    driver.submit(1, read(1, 0, 1)).unwrap();
    driver.submit(2, read(2, 0, 1)).unwrap();
    let abort = TaskManagementFunction::ABORT_TASK;
    let lun = LunAddress::from_number(1);
    // The second answer shows that both have arrived.
    assert_eq!(next(&mut driver).await.unwrap().token, 2);
    let outcome = driver.task_management(abort, lun, Some(1)).await.unwrap();
    assert_eq!(outcome, TaskManagementOutcome::COMPLETE);
    let aborted = next(&mut driver).await.unwrap();
    assert_eq!((aborted.token, aborted.status), (1, Status::TASK_ABORTED));

    target.inject(Fault::HoldCommand { nth: 1 });
    driver.submit(3, read(1, 0, 1)).unwrap();
    driver.submit(4, read(2, 0, 1)).unwrap();
    assert_eq!(next(&mut driver).await.unwrap().token, 4);
    driver.submit(5, read(2, 0, 1)).unwrap();
    let reset = TaskManagementFunction::LOGICAL_UNIT_RESET;
    let outcome = driver.task_management(reset, lun, None).await.unwrap();
    assert_eq!(outcome, TaskManagementOutcome::COMPLETE);
    let mut ends = Vec::new();
    for _ in 0..2 {
        let end = next(&mut driver).await.unwrap();
        ends.push((end.token, end.status));
    }
    ends.sort_unstable_by_key(|(token, _)| *token);
    assert_eq!(ends, [(3, Status::TASK_ABORTED), (5, Status::GOOD)]);

    let reassign = TaskManagementFunction::TASK_REASSIGN;
    let refused = driver.task_management(reassign, lun, None).await;
    assert!(matches!(
        refused,
        Err(FunctionError::Misuse(Misuse::RecoveryLevel))
    ));
    driver.logout().await.unwrap();
    assert_eq!(target.violations(), Vec::<String>::new());
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("a few")
}

/// Writes and reads back in many sizes, several commands at once.
async fn exercise(driver: &mut Driver) {
    for (round, size) in [512, 4096, 8192, 65_536, 66_048, 1 << 20]
        .into_iter()
        .enumerate()
    {
        for part in 0..4_u64 {
            let lba = part * 2048;
            let data = pattern(size, round * 4 + index(part));
            assert!(driver.submit(part, write(1, lba, data)).is_ok());
        }
        for _ in 0..4 {
            let done = next(driver).await.expect("the session stands");
            assert_eq!(done.status, Status::GOOD, "{size}: {:?}", done.sense);
        }
        for part in 0..4_u64 {
            let blocks = u32::try_from(size / BLOCK).expect("few blocks");
            assert!(driver.submit(part, read(1, part * 2048, blocks)).is_ok());
        }
        for _ in 0..4 {
            let done = next(driver).await.expect("the session stands");
            let expected = pattern(size, round * 4 + index(done.token));
            assert!(
                matches!(done.data, Data::In(buffer) if buffer == expected),
                "{size} bytes differ"
            );
        }
    }
}

// L15: all four pairs of digests
#[tokio::test]
async fn digests_guard_data_both_ways() {
    let policies = [DigestPolicy::None, DigestPolicy::Prefer];
    for header in policies {
        for data in policies {
            let target = builder().digests(true).start_blocking();
            let mut params = params(&target);
            params.offers.header_digest = header;
            params.offers.data_digest = data;
            let mut driver = Driver::connect(&params).await.unwrap();
            let agreed = driver.agreed();
            assert_eq!(agreed.header_digest, header == DigestPolicy::Prefer);
            assert_eq!(agreed.data_digest, data == DigestPolicy::Prefer);
            exercise(&mut driver).await;
            driver.logout().await.unwrap();
            assert_eq!(target.violations(), Vec::<String>::new());
        }
    }
}

// E1, E2
#[tokio::test]
async fn digest_that_does_not_fit_ends_the_session() {
    let faults = [
        (Fault::WrongHeaderDigest { nth: 1 }, Violation::HeaderDigest),
        (Fault::WrongDataDigest { nth: 1 }, Violation::DataDigest),
    ];
    for (fault, expected) in faults {
        let target = builder().digests(true).start_blocking();
        let mut params = params(&target);
        params.offers.header_digest = DigestPolicy::Prefer;
        params.offers.data_digest = DigestPolicy::Prefer;
        let mut driver = Driver::connect(&params).await.unwrap();
        target.inject(fault);
        driver.submit(1, read(1, 0, 8)).unwrap();
        let end = next(&mut driver).await.unwrap_err();
        assert!(
            matches!(&end, SessionError::Violation(violation) if *violation == expected),
            "{end}"
        );
        assert_eq!(driver.take_unfinished().len(), 1);
    }
}

// L4, L16, F1: several connections, all of them used, in each of the four ways to send data
#[tokio::test]
async fn data_goes_over_several_connections() {
    for (initial_r2t, immediate_data) in
        [(true, true), (true, false), (false, true), (false, false)]
    {
        let target = builder()
            .max_connections(4)
            .initial_r2t(initial_r2t)
            .immediate_data(immediate_data)
            .digests(true)
            .start_blocking();
        let mut params = params(&target);
        params.offers.max_connections = 3;
        params.offers.data_digest = DigestPolicy::Prefer;
        let mut driver = Driver::connect(&params).await.unwrap();
        assert_eq!(
            (driver.agreed().max_connections, driver.connections()),
            (3, 3)
        );
        exercise(&mut driver).await;
        driver.close_connection(1).await.unwrap();
        assert_eq!(driver.connections(), 2);
        exercise(&mut driver).await;
        driver.logout().await.unwrap();
        assert_eq!(target.violations(), Vec::<String>::new());
    }
}

// E12 over several connections: the abort goes where the task went
#[tokio::test]
async fn stuck_commands_on_several_connections_are_aborted() {
    let target = builder().max_connections(2).start_blocking();
    let mut params = hasty(&target);
    params.offers.max_connections = 2;
    let mut driver = Driver::connect(&params).await.unwrap();
    target.inject(Fault::NoAnswer { nth: 1 });
    target.inject(Fault::NoAnswer { nth: 2 });
    for token in 0..4 {
        driver.submit(token, read(1, 0, 1)).unwrap();
    }
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(next(&mut driver).await.unwrap().status);
    }
    let aborted = |status: &&Status| **status == Status::TASK_ABORTED;
    assert_eq!(statuses.iter().filter(aborted).count(), 2);
    driver.logout().await.unwrap();
    assert_eq!(target.violations(), Vec::<String>::new());
}

// F25: an orderly end that the target wants, with all connections
#[tokio::test]
async fn requested_logouts_end_one_connection_after_the_other() {
    let target = builder().max_connections(2).start_blocking();
    let mut params = params(&target);
    params.offers.max_connections = 2;
    let mut driver = Driver::connect(&params).await.unwrap();
    target.request_logout(5);
    // Commands go on over the other connection.
    while driver.connections() == 2 {
        driver.submit(1, read(1, 0, 1)).unwrap();
        assert_eq!(next(&mut driver).await.unwrap().status, Status::GOOD);
    }
    assert!(matches!(
        driver.take_event(),
        Some(TargetEvent::LogoutRequested { seconds: 5, .. })
    ));
    target.request_logout(5);
    let end = next(&mut driver).await.unwrap_err();
    assert!(matches!(end, SessionError::LogoutRequested { .. }), "{end}");
    target.wait_sessions(0);
    assert_eq!(target.violations(), Vec::<String>::new());
}

// E8: at level 0 the loss of one connection is that of the session
#[tokio::test]
async fn lost_connection_of_several_ends_the_session() {
    let target = builder().max_connections(2).start_blocking();
    let mut params = params(&target);
    params.offers.max_connections = 2;
    let mut driver = Driver::connect(&params).await.unwrap();
    target.inject(Fault::DropAtCommand {
        nth: 2,
        executed: true,
    });
    for token in 0..2 {
        driver.submit(token, read(1, 0, 1)).unwrap();
    }
    let end = loop {
        match next(&mut driver).await {
            Ok(_) => {}
            Err(end) => break end,
        }
    };
    assert!(matches!(end, SessionError::Lost { .. }), "{end}");
    assert!(!driver.take_unfinished().is_empty());
}
