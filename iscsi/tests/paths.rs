//! A nexus with two portals of one target: which path it takes, when it leaves it, and what it does about writes that
//! may still be at work where it came from.

use std::future::poll_fn;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use iscsi::io::{Command, Completion, Data, Event, Nexus, NexusError, NexusParams, Path};
use iscsi::proto::recovery::{RecoveryPolicy, ReplacementTimeout};
use iscsi::proto::{Isid, SessionParams};
use iscsi::scsi::{Blocks, Cdb, Lba, LunAddress, Status};
use support::target::{Access, Disk, Fault, Target};

const IQN: &str = "iqn.2026-11.test:disk";
const BLOCK: usize = 512;
/// RFC 7143 §11.5.1.
const TASK_MANAGEMENT_REQUEST: u8 = 0x02;
const LOGICAL_UNIT_RESET: u8 = 5;

fn target() -> Target {
    Target::builder()
        .iqn(IQN)
        .time_to_wait(0)
        .portal("127.0.0.1:0", 2)
        .lun(1, Disk::memory(1 << 20).serial("the-one"))
        .record()
        .start_blocking()
}

/// Both portals, that of group 1 first.
fn params(target: &Target) -> NexusParams {
    let lun = LunAddress::from_number(1);
    let name = "iqn.2026-11.org.cinder-nbd:test".parse().expect("a name");
    let mut portals = target.portals();
    portals.sort_by_key(|(_, tag)| *tag);
    let first = portals[0].0.parse().expect("a portal");
    let mut session = SessionParams::new(first, name, Isid::random([1, 2, 3], 9));
    session.target_name = Some(IQN.parse().expect("a name"));
    let mut params = NexusParams::new(session, lun).expect("a target is named");
    params.paths = portals
        .iter()
        .map(|(portal, _)| Path {
            portal: portal.parse().expect("a portal"),
            target_name: IQN.parse().expect("a name"),
            lun,
        })
        .collect();
    params.policy = RecoveryPolicy {
        replacement_timeout: ReplacementTimeout::After(Duration::from_mins(2)),
        pause_min: Duration::from_millis(10),
        pause_max: Duration::from_millis(50),
    };
    params
}

fn portal_of(target: &Target, tag: u16) -> String {
    let portals = target.portals();
    let found = portals.into_iter().find(|(_, other)| *other == tag);
    found.expect("there is such a portal").0
}

fn at(nexus: &Nexus) -> Option<String> {
    nexus.portal().map(ToString::to_string)
}

fn write(block: u8) -> Command {
    Command {
        lun: LunAddress(0),
        cdb: Cdb::write_16(Lba(7), Blocks(1), false),
        data: Data::Out(Bytes::from(vec![block; BLOCK])),
    }
}

fn read() -> Command {
    Command {
        lun: LunAddress(0),
        cdb: Cdb::read_16(Lba(7), Blocks(1)),
        data: Data::In(BytesMut::zeroed(BLOCK)),
    }
}

async fn done(nexus: &mut Nexus) -> Completion {
    let completion = answer(nexus).await;
    assert_eq!(completion.status, Status::GOOD, "{:?}", completion.sense);
    completion
}

async fn answer(nexus: &mut Nexus) -> Completion {
    loop {
        match poll_fn(|cx| nexus.poll_event(cx)).await {
            Event::Completed(completion) => return completion,
            Event::Failed(failed) => panic!("{}", failed.cause),
            Event::Lost(_) | Event::Reinstated(_) | Event::Examined(_) | Event::Expired(_) => {}
        }
    }
}

async fn perform(nexus: &mut Nexus, command: Command) -> Completion {
    nexus.submit(1, command).expect("a slot is free");
    done(nexus).await
}

/// Lets the nexus send what it has, without waiting for answers.
async fn send(nexus: &mut Nexus) {
    poll_fn(|cx| {
        assert!(nexus.poll_event(cx).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
}

fn resets(target: &Target) -> usize {
    let pdus = target.record().all();
    pdus.iter()
        .filter(|seen| seen.received(TASK_MANAGEMENT_REQUEST))
        .filter(|seen| seen.pdu.bhs[1] & 0x7f == LOGICAL_UNIT_RESET)
        .count()
}

// E8: a process before this one may have had writes under way over either portal
#[tokio::test]
async fn a_unit_with_two_paths_is_resumed_behind_a_reset() {
    let target = target();
    let first = Nexus::open(params(&target)).await.expect("it opens");
    let identity = first.identity().clone();
    drop(first);
    assert_eq!(resets(&target), 0);
    let mut both = params(&target);
    both.resume = Some(identity.clone());
    let mut nexus = Nexus::open(both).await.expect("it is the same unit");
    assert_eq!(resets(&target), 1);
    perform(&mut nexus, write(1)).await;
    drop(nexus);
    // Over the only path the login itself has ended what was there before.
    let mut single = params(&target);
    single.paths.truncate(1);
    single.resume = Some(identity);
    let nexus = Nexus::open(single).await.expect("it is the same unit");
    assert_eq!(resets(&target), 1);
    nexus.logout().await.expect("the logout succeeds");
}

// E8: the other portal
#[tokio::test]
async fn io_goes_on_over_the_other_portal() {
    let target = target();
    let mut nexus = Nexus::open(params(&target)).await.expect("it opens");
    assert_eq!(at(&nexus), Some(portal_of(&target, 1)));
    perform(&mut nexus, write(1)).await;
    target.close_portal(1);
    let completion = perform(&mut nexus, read()).await;
    assert!(matches!(completion.data, Data::In(data) if data[..] == [1; BLOCK]));
    assert_eq!(at(&nexus), Some(portal_of(&target, 2)));
    // Nothing was unanswered but a read, so there was nothing to end.
    assert_eq!(resets(&target), 0);
    assert_eq!(target.violations(), Vec::<String>::new());
}

// E9: the answer to the late-write hazard between two portal groups
#[tokio::test]
async fn write_of_the_lost_path_does_not_land_after_a_newer_one() {
    let target = target();
    let mut nexus = Nexus::open(params(&target)).await.expect("it opens");
    // A target that goes on with what a lost connection had sent, as queues behind a controller do.
    target.inject(Fault::LateWrites);
    target.inject(Fault::HoldWrites);
    nexus.submit(1, write(1)).expect("a slot is free");
    send(&mut nexus).await;
    target.wait_held(1);
    target.clear_faults();
    target.inject(Fault::LateWrites);
    target.close_portal(1);
    assert_eq!(done(&mut nexus).await.token, 1);
    assert_eq!(at(&nexus), Some(portal_of(&target, 2)));
    assert_eq!(resets(&target), 1);
    perform(&mut nexus, write(2)).await;
    // Whatever the first path still held may come now.
    target.release();
    let completion = perform(&mut nexus, read()).await;
    assert!(matches!(completion.data, Data::In(data) if data[..] == [2; BLOCK]));
}

#[tokio::test]
async fn path_is_not_taken_if_the_old_writes_cannot_be_ended() {
    let target = target();
    let mut params = params(&target);
    params.policy.replacement_timeout = ReplacementTimeout::After(Duration::from_millis(300));
    let mut nexus = Nexus::open(params).await.expect("it opens");
    target.inject(Fault::TaskManagement { response: 5 });
    target.inject(Fault::HoldWrites);
    nexus.submit(1, write(1)).expect("a slot is free");
    send(&mut nexus).await;
    target.wait_held(1);
    target.close_portal(1);
    let failed = loop {
        match poll_fn(|cx| nexus.poll_event(cx)).await {
            Event::Failed(failed) => break failed,
            Event::Completed(completion) => panic!("{completion:?}"),
            Event::Lost(_) | Event::Reinstated(_) | Event::Examined(_) | Event::Expired(_) => {}
        }
    };
    assert!(
        matches!(
            &*failed.cause,
            NexusError::Fence { .. } | NexusError::Login(_)
        ),
        "{}",
        failed.cause
    );
    assert_eq!(nexus.portal(), None);
}

// SPC-4 §5.15.2.4
#[tokio::test]
async fn path_is_chosen_by_what_the_target_says_of_its_port_groups() {
    let target = target();
    target.set_access(1, Access::NonOptimized);
    let nexus = Nexus::open(params(&target)).await.expect("it opens");
    assert_eq!(at(&nexus), Some(portal_of(&target, 2)), "the optimized one");
    target.set_access(2, Access::Standby);
    let nexus = Nexus::open(params(&target)).await.expect("it opens");
    assert_eq!(
        at(&nexus),
        Some(portal_of(&target, 1)),
        "no other takes I/O"
    );
    target.set_access(1, Access::Unavailable);
    let error = Nexus::open(params(&target)).await.expect_err("none does");
    assert!(
        matches!(error, NexusError::PortGroup { .. } | NexusError::Gate(_)),
        "{error}"
    );
}

// S7: standby (04h/0Bh) switches the path
#[tokio::test]
async fn path_that_turns_standby_is_left() {
    let target = target();
    let mut nexus = Nexus::open(params(&target)).await.expect("it opens");
    perform(&mut nexus, write(1)).await;
    target.set_access(1, Access::Standby);
    // What is announced first is the owner's to take.
    nexus.submit(1, read()).expect("a slot is free");
    let attention = answer(&mut nexus).await;
    assert_eq!(attention.status, Status::CHECK_CONDITION);
    let sense = attention.sense.expect("sense data comes with it");
    assert_eq!((sense.asc, sense.ascq), (0x2a, 0x06));
    let completion = perform(&mut nexus, read()).await;
    assert!(matches!(completion.data, Data::In(data) if data[..] == [1; BLOCK]));
    assert_eq!(at(&nexus), Some(portal_of(&target, 2)));
}

// S7: what was answered together with the command whose path is left is not lost with the session
#[tokio::test]
async fn none_of_many_commands_is_lost_when_their_path_turns_standby() {
    let target = target();
    let mut nexus = Nexus::open(params(&target)).await.expect("it opens");
    perform(&mut nexus, write(1)).await;
    target.set_access(1, Access::Standby);
    nexus.submit(0, read()).expect("a slot is free");
    assert_eq!(answer(&mut nexus).await.status, Status::CHECK_CONDITION);
    let tokens = 1..=32;
    for token in tokens.clone() {
        nexus.submit(token, read()).expect("a slot is free");
    }
    // The answers are all there when the first of them is looked at.
    send(&mut nexus).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut answered = Vec::new();
    while answered.len() < 32 {
        let completion = answer(&mut nexus).await;
        assert_eq!(completion.status, Status::GOOD);
        answered.push(completion.token);
    }
    answered.sort_unstable();
    assert_eq!(answered, tokens.collect::<Vec<u64>>());
    assert_eq!(at(&nexus), Some(portal_of(&target, 2)));
}

// S7, E11: without patience a command fails where its path is left; it is not held for a path that nobody waits for
#[tokio::test]
async fn path_that_turns_standby_fails_its_command_when_there_is_no_patience() {
    let target = target();
    let mut params = params(&target);
    params.policy.replacement_timeout = ReplacementTimeout::After(Duration::ZERO);
    let mut nexus = Nexus::open(params).await.expect("it opens");
    perform(&mut nexus, write(1)).await;
    target.set_access(1, Access::Standby);
    nexus.submit(1, read()).expect("a slot is free");
    assert_eq!(answer(&mut nexus).await.status, Status::CHECK_CONDITION);
    nexus.submit(2, read()).expect("a slot is free");
    nexus.submit(3, read()).expect("a slot is free");
    let mut failed = Vec::new();
    // Before the way to the other portal is taken, which would answer them all.
    while failed.len() < 2 {
        match poll_fn(|cx| nexus.poll_event(cx)).await {
            Event::Failed(failure) => failed.push(failure.token),
            Event::Lost(_) | Event::Expired(_) => {}
            event @ (Event::Completed(_) | Event::Reinstated(_) | Event::Examined(_)) => {
                panic!("{event:?}")
            }
        }
    }
    failed.sort_unstable();
    assert_eq!(failed, [2, 3]);
    while !matches!(
        poll_fn(|cx| nexus.poll_event(cx)).await,
        Event::Reinstated(_)
    ) {}
    perform(&mut nexus, read()).await;
    assert_eq!(at(&nexus), Some(portal_of(&target, 2)));
}
