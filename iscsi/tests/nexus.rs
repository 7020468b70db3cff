//! The nexus against the target of `support`: what it does when a session is lost, and what it never does.

use std::future::poll_fn;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use iscsi::io::{Command, Data, Event, Nexus, NexusError, NexusParams};
use iscsi::proto::recovery::{RecoveryPolicy, ReplacementTimeout};
use iscsi::proto::{Isid, SessionParams};
use iscsi::scsi::{BlockLength, Blocks, ByteCount, Cdb, Identity, Lba, LunAddress, Status};
use support::stamp::Map;
use support::target::{Disk, Fault, Target};

const IQN: &str = "iqn.2026-11.test:disk";
const MIB: u64 = 1 << 20;
const BLOCK: usize = 512;

fn target() -> Target {
    Target::builder()
        .iqn(IQN)
        .time_to_wait(0)
        .lun(1, Disk::memory(8 * MIB).serial("the-one"))
        .start_blocking()
}

fn params(target: &Target, replacement: Duration) -> NexusParams {
    let portal = target.portal().parse().expect("a portal");
    let name = "iqn.2026-11.org.cinder-nbd:test".parse().expect("a name");
    let mut session = SessionParams::new(portal, name, Isid::random([1, 2, 3], 7));
    session.target_name = Some(IQN.parse().expect("a name"));
    let lun = LunAddress::from_number(1);
    NexusParams {
        policy: RecoveryPolicy {
            replacement_timeout: ReplacementTimeout::After(replacement),
            pause_min: Duration::from_millis(10),
            pause_max: Duration::from_millis(50),
        },
        ..NexusParams::new(session, lun).expect("a target is named")
    }
}

async fn open(target: &Target, replacement: Duration) -> Nexus {
    let params = params(target, replacement);
    Nexus::open(params).await.expect("the nexus opens")
}

fn read(lba: u64, blocks: u32) -> Command {
    let bytes = usize::try_from(blocks).expect("few") * BLOCK;
    Command {
        lun: LunAddress(0),
        cdb: Cdb::read_16(Lba(lba), Blocks(blocks)),
        data: Data::In(BytesMut::zeroed(bytes)),
    }
}

fn write(lba: u64, data: Vec<u8>) -> Command {
    let blocks = u32::try_from(data.len() / BLOCK).expect("few");
    Command {
        lun: LunAddress(0),
        cdb: Cdb::write_16(Lba(lba), Blocks(blocks), false),
        data: Data::Out(Bytes::from(data)),
    }
}

async fn next(nexus: &mut Nexus) -> Event {
    poll_fn(|cx| nexus.poll_event(cx)).await
}

/// As a process that has found what another one left when it was killed.
async fn resume(target: &Target, identity: &Identity) -> Result<Nexus, NexusError> {
    let params = NexusParams {
        resume: Some(identity.clone()),
        ..params(target, Duration::from_mins(2))
    };
    Nexus::open(params).await
}

/// The next command that ends, whichever way; what else is told is counted by its kind.
async fn ended(
    nexus: &mut Nexus,
    losses: &mut usize,
) -> Result<iscsi::io::Completion, iscsi::io::Failed> {
    loop {
        match next(nexus).await {
            Event::Completed(completion) => return Ok(completion),
            Event::Failed(failed) => return Err(failed),
            Event::Lost(_) => *losses += 1,
            Event::Reinstated(_) | Event::Examined(_) | Event::Expired(_) => {}
        }
    }
}

// E8, E9
#[tokio::test]
async fn io_goes_on_over_lost_connections_and_nothing_is_lost() {
    const DEPTH: u64 = 16;
    let target = target();
    let mut nexus = open(&target, Duration::from_mins(2)).await;
    let mut map = Map::new(BLOCK);
    let mut losses = 0;
    for round in 0..40 {
        let mut under_way = Vec::new();
        for token in 0..DEPTH {
            let stamped = map.write(token * 64 + round % 8, 1 + token % 8);
            nexus
                .submit(token, write(stamped.lba, stamped.data.clone()))
                .expect("a slot is free");
            under_way.push(Some(stamped));
        }
        for number in 0..DEPTH {
            if number == round % DEPTH {
                target.drop_connections();
            }
            let completion = ended(&mut nexus, &mut losses).await.expect("it goes on");
            assert_eq!(completion.status, Status::GOOD, "{:?}", completion.sense);
            let at = usize::try_from(completion.token).expect("a token of ours");
            let stamped = under_way[at].take().expect("each ends once");
            map.answered(&stamped);
        }
    }
    for lba in 0..DEPTH * 64 {
        nexus.submit(lba, read(lba, 1)).expect("a slot is free");
        let completion = ended(&mut nexus, &mut losses).await.expect("it goes on");
        let Data::In(buffer) = &completion.data else {
            panic!("a read gives its buffer back");
        };
        map.check(lba, buffer).expect("what was answered is there");
    }
    assert!(losses >= 20, "only {losses} sessions were lost");
    // One nexus, one name: each login replaced the session before.
    target.wait_sessions(1);
    assert_eq!(target.violations(), Vec::<String>::new());
    nexus.logout().await.expect("the logout succeeds");
}

// E10: the process that served it was killed; the next one knows its identity from a file
#[tokio::test]
async fn a_unit_is_resumed_if_it_is_the_recorded_one() {
    let target = target();
    let first = open(&target, Duration::from_mins(2)).await;
    let seen = first.identity().clone();
    drop(first);
    let recorded = Identity::recorded(
        seen.designators().to_vec(),
        seen.serial().map(str::to_owned),
        BlockLength::new(seen.block_bytes()).expect("a length of blocks"),
        ByteCount(seen.size_bytes()),
    );
    assert_eq!(recorded, seen);
    let nexus = resume(&target, &recorded).await.expect("it is the same");
    assert!(!nexus.has_lost_power());
    target.wait_sessions(1);
    drop(nexus);
    let other = Disk::memory(8 * MIB).serial("another");
    target.set_lun(IQN, 1, other);
    let refused = resume(&target, &recorded).await.expect_err("another unit");
    assert!(matches!(refused, NexusError::Gate(_)), "{refused}");
    target.wait_sessions(0);
    assert_eq!(target.violations(), Vec::<String>::new());
}

// E10
#[tokio::test]
async fn another_unit_behind_the_lun_gets_nothing() {
    let target = target();
    let mut nexus = open(&target, Duration::from_millis(300)).await;
    let other = Disk::memory(8 * MIB).serial("another");
    target.set_lun(IQN, 1, other.clone());
    target.drop_connections();
    nexus
        .submit(1, write(0, vec![7; BLOCK]))
        .expect("a slot is free");
    let mut losses = 0;
    let failed = ended(&mut nexus, &mut losses).await.expect_err("it fails");
    assert!(
        matches!(&*failed.cause, NexusError::Gate(_)),
        "{}",
        failed.cause
    );
    let said = failed.cause.to_string();
    assert!(
        said.contains("it is not the logical unit that it was: the names were"),
        "{said}"
    );
    assert_eq!((other.counts().reads, other.counts().writes), (0, 0));
}

// E11
#[tokio::test]
async fn io_fails_once_after_the_replacement_timeout_and_the_nexus_revives() {
    let target = target();
    let mut nexus = open(&target, Duration::from_millis(100)).await;
    target.inject(Fault::RefuseLogin {
        class: 3,
        detail: 1,
    });
    target.drop_connections();
    nexus.submit(1, read(0, 1)).expect("a slot is free");
    let mut losses = 0;
    let failed = ended(&mut nexus, &mut losses).await.expect_err("it fails");
    assert_eq!(failed.token, 1);
    assert!(nexus.outage().is_some() && nexus.portal().is_none());
    // While it is away, new I/O fails at once.
    nexus.submit(2, read(0, 1)).expect("a slot is free");
    assert_eq!(
        ended(&mut nexus, &mut losses)
            .await
            .expect_err("it fails")
            .token,
        2
    );
    target.clear_faults();
    nexus.cut_short();
    loop {
        if let Event::Reinstated(how) = next(&mut nexus).await {
            assert_eq!(how.portal.to_string(), target.portal());
            break;
        }
    }
    nexus.submit(3, read(0, 1)).expect("a slot is free");
    let completion = ended(&mut nexus, &mut losses).await.expect("it is back");
    assert_eq!((completion.token, completion.status), (3, Status::GOOD));
    assert_eq!((losses, nexus.outage().is_none()), (1, true));
}

// E9: what cannot be repeated is not
#[tokio::test]
async fn a_command_that_must_not_be_done_twice_is_not_sent_again() {
    let target = target();
    let mut nexus = open(&target, Duration::from_mins(2)).await;
    target.inject(Fault::DropAtCommand {
        nth: 1,
        executed: true,
    });
    let mut cdb = [0; 16];
    cdb[0] = 0x89;
    cdb[13] = 1;
    let compare_and_write = Command {
        lun: LunAddress(0),
        cdb: Cdb(cdb),
        data: Data::Out(Bytes::from(vec![0; 2 * BLOCK])),
    };
    nexus.submit(1, compare_and_write).expect("a slot is free");
    let mut losses = 0;
    let failed = ended(&mut nexus, &mut losses).await.expect_err("unknown");
    assert!(matches!(&*failed.cause, NexusError::Unrepeatable(_)));
    assert!(matches!(&failed.command.data, Data::Out(data) if data.len() == 2 * BLOCK));
    // And the nexus is as good as before.
    nexus.submit(2, read(0, 1)).expect("a slot is free");
    assert!(ended(&mut nexus, &mut losses).await.is_ok());
}

#[tokio::test]
async fn opening_fails_with_what_the_target_said() {
    let target = target();
    let mut wrong = params(&target, Duration::ZERO);
    wrong.paths[0].lun = LunAddress::from_number(9);
    let error = Nexus::open(wrong).await.expect_err("there is no LUN 9");
    assert!(matches!(error, NexusError::Gate(_)), "{error}");
    target.inject(Fault::RefuseLogin {
        class: 2,
        detail: 3,
    });
    let error = Nexus::open(params(&target, Duration::ZERO))
        .await
        .expect_err("no such target");
    assert!(matches!(error, NexusError::Login(_)), "{error}");
}

// S6: 2Ah/09h has the capacity read anew
#[tokio::test]
async fn unit_that_has_grown_is_examined_under_the_standing_session() {
    let target = target();
    let mut nexus = open(&target, Duration::from_mins(2)).await;
    assert_eq!(nexus.identity().size_bytes(), 8 * MIB);
    target.resize(IQN, 1, 6 * MIB);
    target.resize(IQN, 1, 8 * MIB - 4096);
    target.resize(IQN, 1, 8 * MIB);
    nexus.submit(1, read(0, 1)).expect("a slot is free");
    let mut examined = 0;
    loop {
        match next(&mut nexus).await {
            Event::Examined(_) => {
                examined += 1;
                break;
            }
            Event::Completed(completion) => assert_eq!(completion.status, Status::CHECK_CONDITION),
            event @ (Event::Failed(_)
            | Event::Lost(_)
            | Event::Reinstated(_)
            | Event::Expired(_)) => panic!("{event:?}"),
        }
    }
    nexus.submit(2, read(0, 1)).expect("a slot is free");
    let completion = ended(&mut nexus, &mut 0).await.expect("it goes on");
    assert_eq!((completion.token, completion.status), (2, Status::GOOD));
    assert_eq!((examined, target.logins()), (1, 1));
}

// E10: the same, without a lost session
#[tokio::test]
async fn unit_that_is_exchanged_under_a_standing_session_gets_nothing_more() {
    let target = target();
    let mut nexus = open(&target, Duration::from_millis(300)).await;
    let other = Disk::memory(8 * MIB).serial("another");
    target.set_lun(IQN, 1, other.clone());
    // 3Fh/0Eh: reported LUNs data has changed
    target.unit_attention(IQN, 1, 0x3f, 0x0e);
    nexus.submit(1, read(0, 1)).expect("a slot is free");
    let mut losses = 0;
    let attention = ended(&mut nexus, &mut losses).await.expect("the attention");
    assert_eq!(attention.status, Status::CHECK_CONDITION);
    nexus
        .submit(2, write(0, vec![7; BLOCK]))
        .expect("a slot is free");
    let failed = ended(&mut nexus, &mut losses).await.expect_err("it fails");
    assert!(
        matches!(&*failed.cause, NexusError::Gate(_)),
        "{}",
        failed.cause
    );
    assert_eq!((other.counts().writes, losses), (0, 1));
}
