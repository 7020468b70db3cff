//! E: errors and what comes after them. By `io::Nexus`, which logs in anew, and by the driver, whose session ends.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::time::Duration;

use iscsi::io::{Command, Completion, Data, Driver, Event, Failed, Nexus, NexusParams};
use iscsi::proto::recovery::{RecoveryPolicy, ReplacementTimeout};
use iscsi::proto::{DigestPolicy, SessionError, Violation};
use iscsi::scsi::{Blocks, Cdb, Lba, LunAddress, Status};
use support::target::{Direction, Disk, Fault, Pdu, Seen, Step, Target, Verdict, at, op};

use crate::bed::{
    BLOCK, IQN, LUN, bytes_in, command, driven, end, next, params, pattern, read, ready, run,
    session, submit, target, write,
};

/// SBC-4: READ(16), WRITE(16) and SYNCHRONIZE CACHE(16).
const READ_16: u8 = 0x88;
const WRITE_16: u8 = 0x8a;
const SYNCHRONIZE_CACHE_16: u8 = 0x91;
/// RFC 7143 §11.5.1: TASK REASSIGN.
const TASK_REASSIGN: u8 = 8;
const GOOD: u8 = 0;

/// Longer than any test takes: whoever waits that long has failed.
const PATIENT: ReplacementTimeout = ReplacementTimeout::After(Duration::from_mins(2));

fn nexus_params(target: &Target, replacement_timeout: ReplacementTimeout) -> NexusParams {
    let mut session = params(&target.portal());
    // The larger of the two sides' counts: neither is to make the tests wait.
    session.offers.time_2_wait = 0;
    NexusParams {
        policy: RecoveryPolicy {
            replacement_timeout,
            pause_min: Duration::from_millis(10),
            pause_max: Duration::from_millis(50),
        },
        ..NexusParams::new(session, LunAddress::from_number(LUN)).expect("a target is named")
    }
}

async fn open(target: &Target) -> Nexus {
    let nexus = Nexus::open(nexus_params(target, PATIENT)).await;
    nexus.expect("the nexus opens")
}

async fn event(nexus: &mut Nexus) -> Event {
    poll_fn(|cx| nexus.poll_event(cx)).await
}

/// The next command that ends.
async fn ended(nexus: &mut Nexus) -> Result<Completion, Failed> {
    loop {
        match event(nexus).await {
            Event::Completed(completion) => return Ok(completion),
            Event::Failed(failed) => return Err(failed),
            Event::Lost(_) | Event::Reinstated(_) | Event::Examined(_) | Event::Expired(_) => {}
        }
    }
}

async fn good(nexus: &mut Nexus) -> Completion {
    let completion = ended(nexus).await.expect("it goes on");
    assert_eq!(completion.status, Status::GOOD, "{:?}", completion.sense);
    completion
}

fn flush() -> Command {
    let cdb = Cdb::synchronize_cache_16(Lba(0), Blocks(0));
    command(cdb, Data::None)
}

/// A read, a write or a flush of a session; not what an examination asks.
fn is_io(seen: &Seen) -> bool {
    [READ_16, WRITE_16, SYNCHRONIZE_CACHE_16]
        .iter()
        .any(|operation_code| seen.command(*operation_code))
}

/// On no connection a number or a tag comes twice, and nothing that level 0 has not leaves.
fn check_level_0(target: &Target) {
    let mut numbers = BTreeSet::new();
    let mut tags = BTreeSet::new();
    for seen in target.record().all() {
        if seen.direction == Direction::FromTarget {
            continue;
        }
        let (connection, pdu) = (seen.connection, &seen.pdu);
        let opcode = pdu.opcode();
        assert_ne!(opcode, op::SNACK, "{pdu:?}");
        if opcode == op::TASK_MANAGEMENT {
            assert_ne!(pdu.flags() & 0x7f, TASK_REASSIGN, "{pdu:?}");
        }
        if opcode == op::LOGOUT {
            // 2: remove the connection for recovery.
            assert_ne!(pdu.flags() & 0x7f, 2, "{pdu:?}");
        }
        if opcode == op::SCSI_COMMAND {
            let number = (connection, pdu.cmd_sn());
            assert!(numbers.insert(number), "sent twice: {pdu:?}");
            assert!(tags.insert((connection, pdu.itt())), "sent twice: {pdu:?}");
        }
    }
}

/// A session with digests on both.
async fn with_digests() -> (Target, Driver) {
    let target = target().digests(true).start().await;
    let mut params = params(&target.portal());
    params.offers.header_digest = DigestPolicy::Require;
    params.offers.data_digest = DigestPolicy::Require;
    let driver = Driver::connect(&params).await;
    let mut driver = driver.expect("the target knows CRC32C");
    // All is well so far: what ends the session later is what the test does.
    assert_eq!(run(&mut driver, read(8, 2)).await.status, Status::GOOD);
    (target, driver)
}

// E1
#[tokio::test]
async fn wrong_header_digest_ends_the_connection() {
    let (target, mut driver) = with_digests().await;
    let is_answer = |seen: &Seen| seen.sent(op::SCSI_RESPONSE);
    target.strike(1, is_answer, |seen| {
        Verdict::Steps(vec![Step::BadHeaderDigest(seen.pdu.clone())])
    });
    submit(&mut driver, 0, ready());
    end(&mut driver).await;
    assert_eq!(driver.take_unfinished().len(), 1);
    drop(driver);
    target.record().closed(1).await;
    check_level_0(&target);
}

// E2
#[tokio::test]
async fn data_with_a_wrong_digest_is_never_given_out() {
    let (target, mut driver) = with_digests().await;
    let is_data = |seen: &Seen| seen.sent(op::DATA_IN);
    target.strike(1, is_data, |seen| {
        Verdict::Steps(vec![Step::BadDataDigest(seen.pdu.clone())])
    });
    submit(&mut driver, 0, read(0, 8));
    end(&mut driver).await;
    assert_eq!(driver.take_unfinished().len(), 1);
    drop(driver);
    target.record().closed(1).await;
    check_level_0(&target);
}

// E2: and by a nexus the read is done again, in a new session
#[tokio::test]
async fn read_with_a_wrong_digest_is_done_again_in_a_new_session() {
    let target = target().digests(true).start().await;
    let medium = target.disk(IQN, LUN).expect("it has one");
    let data = pattern(8 * BLOCK);
    medium.write(0, &data).expect("memory can be written");
    let mut params = nexus_params(&target, PATIENT);
    params.session.offers.data_digest = DigestPolicy::Require;
    let mut nexus = Nexus::open(params).await.expect("the nexus opens");
    let is_data = |seen: &Seen| seen.sent(op::DATA_IN);
    target.strike(1, is_data, |seen| {
        Verdict::Steps(vec![Step::BadDataDigest(seen.pdu.clone())])
    });
    nexus.submit(0, read(0, 8)).expect("a slot is free");
    let done = good(&mut nexus).await;
    assert!(bytes_in(&done) == data);
    assert_eq!(target.logins(), 2);
    check_level_0(&target);
}

/// What becomes of a command that is rejected.
async fn rejected(answer: impl FnOnce(&Pdu) -> Pdu) -> Result<Completion, SessionError> {
    let (mut driver, mut peer) = session().await;
    submit(&mut driver, 0, ready());
    let target = async {
        let command = peer.expect(op::SCSI_COMMAND).await;
        peer.send(answer(&command)).await;
    };
    tokio::join!(next(&mut driver), target).0
}

// E3
#[tokio::test]
async fn rejected_command_has_failed_or_its_session_has_whatever_the_reason() {
    // 02h data digest error, 03h SNACK, 04h protocol error, 05h not supported, 06h immediate commands, 07h task in
    // progress, 08h invalid data ack, 09h invalid field, 0Ah long operation, 0Bh negotiation reset.
    for reason in 0x02..=0x0b {
        match rejected(|command| Pdu::reject(command, reason)).await {
            Ok(completion) => assert_ne!(completion.status, Status::GOOD, "{reason:#04x}"),
            Err(error) => {
                let told = matches!(
                    error,
                    SessionError::Rejected { .. } | SessionError::Violation(_)
                );
                assert!(told, "{reason:#04x}: {error}");
            }
        }
    }
}

// E3: 0Ch, the target waits for a logout
#[tokio::test]
async fn target_that_waits_for_a_logout_gets_one() {
    let (mut driver, mut peer) = session().await;
    submit(&mut driver, 0, ready());
    let target = async {
        let command = peer.expect(op::SCSI_COMMAND).await;
        peer.send(Pdu::reject(&command, 0x0c)).await;
        let request = peer.expect(op::LOGOUT).await;
        peer.send(Pdu::logout_response(&request, 0)).await;
    };
    let ended = async {
        loop {
            match next(&mut driver).await {
                Ok(completion) => assert_ne!(completion.status, Status::GOOD),
                Err(error) => return error,
            }
        }
    };
    let (error, ()) = tokio::join!(ended, target);
    let told = matches!(error, SessionError::LogoutRequested { .. });
    assert!(told, "{error}");
}

// E3
#[tokio::test]
async fn reject_of_what_was_never_sent_ends_the_session() {
    let strange = |command: &Pdu| Pdu::reject(&command.clone().with(at::ITT, 0x0bad_cafe), 9);
    let error = rejected(strange).await.expect_err("nobody sent it");
    let told = matches!(
        error,
        SessionError::Rejected { .. } | SessionError::Violation(_)
    );
    assert!(told, "{error}");
    // Without the header that was rejected nobody knows what it is about.
    let error = rejected(|command| Pdu::reject(command, 9).with_data(Vec::new())).await;
    error.expect_err("it is about nothing");
}

// E4, E7
#[tokio::test]
async fn gap_in_the_data_of_a_read_is_no_complete_read_and_no_snack() {
    let (mut driver, mut peer) = session().await;
    submit(&mut driver, 0, read(0, 2));
    let data = pattern(2 * BLOCK);
    let target = async {
        let command = peer.expect(op::SCSI_COMMAND).await;
        // The second of three is missing.
        peer.send(Pdu::data_in(&command, 0, 0, &data[..BLOCK], false))
            .await;
        let last = Pdu::data_in(&command, 2, 768, &data[768..], true);
        peer.send(last.with_status(GOOD)).await;
    };
    let (error, ()) = tokio::join!(end(&mut driver), target);
    let is_gap = matches!(error, SessionError::Violation(Violation::DataSn { .. }));
    assert!(is_gap, "{error}");
    assert_eq!(driver.take_unfinished().len(), 1);
    drop(driver);
    let more = peer.until_closed().await;
    assert!(more.iter().all(|pdu| pdu.opcode() != op::SNACK), "{more:?}");
}

/// A nexus whose connection fails like this at a read, a write and a flush in turn.
async fn survives(strike: impl Fn(&Seen) -> Verdict + Clone + Send + 'static) {
    let target = target().start().await;
    let mut nexus = open(&target).await;
    let data = pattern(16 * BLOCK);
    for (token, make) in (0..).zip([
        (|data| write(32, data)) as fn(&[u8]) -> Command,
        |_| flush(),
        |_| read(32, 16),
    ]) {
        let strike = strike.clone();
        target.strike(1, is_io, strike);
        nexus.submit(token, make(&data)).expect("a slot is free");
        let done = good(&mut nexus).await;
        assert_eq!(done.token, token);
        if let Data::In(bytes) = &done.data {
            assert!(bytes[..] == data[..]);
        }
    }
    assert_eq!(target.logins(), 4, "each failure has cost one session");
    check_level_0(&target);
    assert_eq!(target.violations(), Vec::<String>::new());
}

// E8, E5
#[tokio::test]
async fn reset_connection_is_followed_by_a_reinstated_session() {
    survives(|_| Verdict::reset()).await;
}

// E8
#[tokio::test]
async fn closed_connection_is_followed_by_a_reinstated_session() {
    survives(|_| Verdict::close()).await;
}

// E8
#[tokio::test]
async fn close_in_the_middle_of_a_pdu_is_followed_by_a_reinstated_session() {
    survives(|seen| {
        let answer = Pdu::scsi_response(&seen.pdu, GOOD);
        Verdict::Steps(vec![Step::Part(answer, 20), Step::Close])
    })
    .await;
}

// E8: nothing comes any more, and nothing is refused
#[tokio::test]
async fn silent_target_is_found_out_by_a_ping_and_followed_by_a_reinstated_session() {
    let target = target().start().await;
    let mut params = nexus_params(&target, PATIENT);
    params.session.noop_interval = Duration::from_millis(100);
    params.session.noop_timeout = Duration::from_millis(400);
    let mut nexus = Nexus::open(params).await.expect("the nexus opens");
    target.inject(Fault::Silent);
    nexus.submit(0, read(0, 1)).expect("a slot is free");
    let lost = event(&mut nexus).await;
    assert!(matches!(lost, Event::Lost(_)), "{lost:?}");
    target.clear_faults();
    good(&mut nexus).await;
    // Whoever hung in the old session was told to end by the new login.
    target.wait_sessions(1);
    check_level_0(&target);
}

// E9
#[tokio::test]
async fn what_was_in_flight_is_done_again_once_and_in_order_in_a_session_of_the_same_isid() {
    let target = target().start().await;
    let mut nexus = open(&target).await;
    let data = |fill: u8| vec![fill; 2 * BLOCK];
    let commands = [
        write(8, &data(1)),
        read(64, 4),
        // Over a part of the first.
        write(9, &data(2)),
        flush(),
        write(8, &data(3)),
        read(8, 1),
    ];
    let cdbs: Vec<[u8; 16]> = commands.iter().map(|command| command.cdb.0).collect();
    let count = commands.len();
    // The first session answers none of them and is reset at the last.
    target.tap(|seen| {
        if seen.connection == 1 && is_io(seen) {
            Verdict::drop()
        } else {
            Verdict::Pass
        }
    });
    let record = target.record();
    for (token, command) in (0..).zip(commands) {
        nexus.submit(token, command).expect("a slot is free");
    }
    let all_sent = record.seen_count(count, is_io);
    tokio::select! {
        _ = all_sent => target.drop_connections(),
        event = event(&mut nexus) => panic!("too early: {event:?}"),
    }
    let mut ended = BTreeSet::new();
    for _ in 0..count {
        assert!(ended.insert(good(&mut nexus).await.token));
    }
    let again: Vec<[u8; 16]> = record
        .pdus(|seen| seen.connection > 1 && is_io(seen))
        .iter()
        .map(Pdu::cdb)
        .collect();
    assert_eq!(again, cdbs, "once each, in the order of submission");
    let logins = record.received(op::LOGIN);
    for login in &logins {
        assert_eq!((login.isid(), login.tsih()), (logins[0].isid(), 0));
    }
    let medium = target.disk(IQN, LUN).expect("it has one");
    let mut back = vec![0; 3 * BLOCK];
    medium.read(8 * 512, &mut back).expect("memory can be read");
    assert!(back == [data(3), data(2)[BLOCK..].to_vec()].concat());
    check_level_0(&target);
    assert_eq!(target.violations(), Vec::<String>::new());
}

// E9: what was acknowledged before the loss is not sent again
#[tokio::test]
async fn what_was_answered_is_not_done_again() {
    let target = target().start().await;
    let mut nexus = open(&target).await;
    nexus.submit(0, write(0, &pattern(BLOCK))).expect("a slot");
    good(&mut nexus).await;
    target.drop_connections();
    nexus.submit(1, read(0, 1)).expect("a slot is free");
    let done = good(&mut nexus).await;
    assert!(bytes_in(&done) == pattern(BLOCK));
    let writes = target.record().count(|seen| seen.command(WRITE_16));
    assert_eq!(writes, 1);
}

// E10
#[tokio::test]
async fn another_unit_behind_the_lun_gets_no_write_and_gives_no_data() {
    let target = target().start().await;
    let params = nexus_params(&target, ReplacementTimeout::After(Duration::from_secs(2)));
    let mut nexus = Nexus::open(params).await.expect("the nexus opens");
    let other = Disk::memory(16 << 20).serial("another-one");
    target.set_lun(IQN, LUN, other.clone());
    target.drop_connections();
    nexus.submit(0, write(0, &pattern(BLOCK))).expect("a slot");
    nexus.submit(1, read(0, 1)).expect("a slot is free");
    for _ in 0..2 {
        let failed = ended(&mut nexus).await.expect_err("it is another unit");
        if let Data::In(bytes) = &failed.command.data {
            assert!(bytes.iter().all(|byte| *byte == 0));
        }
    }
    let logins = target.logins();
    assert!(logins > 1, "it was looked at");
    assert_eq!(
        target
            .record()
            .count(|seen| seen.connection > 1 && is_io(seen)),
        0
    );
    let mut first = vec![0; BLOCK];
    other.read(0, &mut first).expect("memory can be read");
    assert!(first.iter().all(|byte| *byte == 0));
}

// E11
#[tokio::test]
async fn io_fails_once_after_the_replacement_timeout_and_the_device_revives() {
    let target = target().start().await;
    let params = nexus_params(
        &target,
        ReplacementTimeout::After(Duration::from_millis(100)),
    );
    let mut nexus = Nexus::open(params).await.expect("the nexus opens");
    target.inject(Fault::RefuseLogin {
        class: 3,
        detail: 1,
    });
    target.drop_connections();
    for token in 0..4 {
        nexus.submit(token, read(token, 1)).expect("a slot is free");
    }
    let mut failed = BTreeSet::new();
    let mut expired = 0;
    while failed.len() < 4 || expired == 0 {
        match event(&mut nexus).await {
            Event::Failed(end) => assert!(failed.insert(end.token), "{end:?}"),
            Event::Expired(_) => expired += 1,
            Event::Lost(_) | Event::Examined(_) => {}
            other @ (Event::Completed(_) | Event::Reinstated(_)) => panic!("{other:?}"),
        }
    }
    assert_eq!((failed.len(), expired), (4, 1));
    nexus.submit(9, read(0, 1)).expect("it is taken and fails");
    let late = ended(&mut nexus).await.expect_err("there is nothing yet");
    assert_eq!(late.token, 9);
    target.clear_faults();
    loop {
        match event(&mut nexus).await {
            Event::Reinstated(_) => break,
            Event::Lost(_) | Event::Examined(_) => {}
            other @ (Event::Completed(_) | Event::Failed(_) | Event::Expired(_)) => {
                panic!("{other:?}")
            }
        }
    }
    nexus.submit(10, read(0, 1)).expect("a slot is free");
    assert_eq!(good(&mut nexus).await.token, 10);
}

/// A small generator: the same numbers for the same seed.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        // Vigna's splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }
}

/// Bytes that are nearly an honest target's, or nothing like it.
fn mangled(chance: &mut Chance, command: &Pdu, stat_sn: u32) -> Vec<u8> {
    let data = chance.bytes(512);
    let honest = [
        Pdu::data_in(command, 0, 0, &data, true).with_status(GOOD),
        Pdu::scsi_response(command, GOOD),
        Pdu::r2t(command, 1, 0, 0, 512),
        Pdu::ping(7).with_data(data.clone()),
        Pdu::async_message(1, 0, [0, 0, 1]),
        Pdu::reject(command, 9),
    ];
    let which = usize::from(chance.byte()) % (honest.len() + 1);
    let Some(pdu) = honest.get(which) else {
        return chance.bytes(300);
    };
    let mut bytes = pdu.clone().with(at::STAT_SN, stat_sn).encode(false, false);
    for _ in 0..chance.byte() % 4 {
        let at = usize::from(chance.byte()) % 48;
        bytes[at] = chance.byte();
    }
    let cut = usize::from(chance.byte());
    if chance.byte().is_multiple_of(4) && cut < bytes.len() {
        bytes.truncate(cut);
    }
    bytes
}

// E13
#[tokio::test]
async fn whatever_a_target_sends_ends_the_session_or_a_command_and_nothing_worse() {
    for seed in 0..200 {
        let mut chance = Chance(seed);
        let (mut driver, mut peer) = session().await;
        submit(&mut driver, 0, read(0, 1));
        let command = driven(&mut driver, peer.expect(op::SCSI_COMMAND)).await;
        for _ in 0..4 {
            let bytes = mangled(&mut chance, &command, peer.stat_sn);
            peer.send_bytes(&bytes).await;
        }
        peer.close().await;
        // Whatever was made of it: the close is the end at the latest.
        let mut completions = 0;
        while next(&mut driver).await.is_ok() {
            completions += 1;
            assert!(completions < 2, "seed {seed}: answered twice");
        }
    }
}

// E13: a header that promises 2^24-1 bytes, or 1020 of additional headers, and then nothing
#[tokio::test]
async fn lengths_that_a_target_promises_cost_nothing() {
    for (ahs, length) in [(0xff, [0, 0, 0]), (0, [0xff; 3]), (0xff, [0xff; 3])] {
        for opcode in [
            op::NOP_IN,
            op::SCSI_RESPONSE,
            op::DATA_IN,
            op::ASYNC,
            op::REJECT,
        ] {
            let (mut driver, mut peer) = session().await;
            submit(&mut driver, 0, read(0, 1));
            let target = async {
                let command = peer.expect(op::SCSI_COMMAND).await;
                let mut bhs = Pdu::scsi_response(&command, GOOD).bhs;
                bhs[0] = opcode;
                bhs[4] = ahs;
                bhs[5..8].copy_from_slice(&length);
                peer.send_bytes(&bhs).await;
            };
            let (error, ()) = tokio::join!(end(&mut driver), target);
            let told = matches!(error, SessionError::Violation(_));
            assert!(told, "{opcode:#04x} {ahs} {length:?}: {error}");
        }
    }
}

// E6, E8: at level 0 nothing but a login follows a loss
#[tokio::test]
async fn lost_connection_is_not_logged_out_of_another_one() {
    let target = target().start().await;
    let mut nexus = open(&target).await;
    target.strike(1, is_io, |_| Verdict::reset());
    nexus.submit(0, read(0, 1)).expect("a slot is free");
    good(&mut nexus).await;
    nexus.logout().await.expect("the logout is answered");
    let second: Vec<u8> = target
        .record()
        .pdus(|seen| seen.connection == 2 && seen.direction == Direction::FromInitiator)
        .iter()
        .map(Pdu::opcode)
        .filter(|opcode| *opcode != op::LOGIN && *opcode != op::NOP_OUT)
        .collect();
    let (last, before) = second.split_last().expect("there was something");
    assert_eq!(*last, op::LOGOUT);
    assert!(before.iter().all(|opcode| *opcode == op::SCSI_COMMAND));
    check_level_0(&target);
}
