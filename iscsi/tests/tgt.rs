//! The driver against a real tgtd, which each test starts for itself.
//!
//! Source: `support::tgt`. tgt 1.0.85 asks for `InitialR2T=Yes` if not told otherwise; the tests that
//! want unsolicited data set its parameters through `tgtadm`.

use std::future::poll_fn;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use iscsi::io::{Command, Completion, Data, Driver, discover};
use iscsi::proto::chap::Unproved;
use iscsi::proto::{
    ChapAlgorithm, ChapCredentials, DigestPolicy, DiscoveryError, Isid, LoginError, Retry, Secret,
    SessionError, SessionParams,
};
use iscsi::scsi::{Blocks, Cdb, Lba, LunAddress, SenseKey, Status};
use iscsi::wire::login::LoginStatus;
use iscsi::wire::task_management::{TaskManagementFunction, TaskManagementOutcome};
use support::tgt::Tgtd;

const IQN: &str = "iqn.2026-11.test:disk";
const LUN_BYTES: u64 = 64 << 20;
const BLOCK: usize = 512;

fn params(tgtd: &Tgtd, target: &str) -> SessionParams {
    let portal = tgtd.portal().parse().expect("a portal");
    let name = "iqn.2026-11.org.cinder-nbd:test".parse().expect("a name");
    let mut params = SessionParams::new(portal, name, Isid::random([1, 2, 3], 7));
    params.target_name = Some(target.parse().expect("a name"));
    params
}

fn chap(user: &str, secret: &str) -> ChapCredentials {
    ChapCredentials {
        name: user.to_owned(),
        secret: Secret::new(secret.to_owned()),
    }
}

async fn next(driver: &mut Driver) -> Result<Completion, SessionError> {
    poll_fn(|cx| driver.poll_completion(cx)).await
}

async fn run(driver: &mut Driver, cdb: Cdb, data: Data) -> Completion {
    let command = Command {
        lun: LunAddress::from_number(1),
        cdb,
        data,
    };
    driver.submit(1, command).expect("a slot is free");
    next(driver).await.expect("the session stands")
}

/// Logs in and takes the unit attention that follows each login.
async fn connect(params: &SessionParams) -> Driver {
    let mut driver = Driver::connect(params).await.expect("the login succeeds");
    let first = run(&mut driver, Cdb::test_unit_ready(), Data::None).await;
    assert_eq!(first.status, Status::CHECK_CONDITION);
    let sense = first.sense.expect("sense data comes with it");
    assert_eq!((sense.key, sense.asc), (SenseKey::UnitAttention, 0x29));
    let second = run(&mut driver, Cdb::test_unit_ready(), Data::None).await;
    assert_eq!(second.status, Status::GOOD);
    driver
}

/// Bytes that differ by place and round, so that a block in the wrong place shows.
fn pattern(length: usize, round: usize) -> Bytes {
    (0..length)
        .map(|at| u8::try_from((at / BLOCK * 31 + at * 7 + round * 13) % 251).expect("below 256"))
        .collect()
}

fn blocks(bytes: usize) -> Blocks {
    Blocks(u32::try_from(bytes / BLOCK).expect("few blocks"))
}

async fn write_and_compare(driver: &mut Driver, lba: u64, data: Bytes) {
    let count = blocks(data.len());
    let cdb = Cdb::write_16(Lba(lba), count, false);
    let written = run(driver, cdb, Data::Out(data.clone())).await;
    assert_eq!(written.status, Status::GOOD, "{:?}", written.sense);
    assert_eq!(usize::try_from(written.transferred), Ok(data.len()));

    let buffer = BytesMut::zeroed(data.len());
    let read = run(driver, Cdb::read_16(Lba(lba), count), Data::In(buffer)).await;
    assert_eq!(read.status, Status::GOOD, "{:?}", read.sense);
    assert_eq!(usize::try_from(read.transferred), Ok(data.len()));
    let Data::In(buffer) = read.data else {
        panic!("the buffer comes back")
    };
    assert!(buffer == data, "{} bytes at block {lba} differ", data.len());
}

fn target_with_disk() -> Tgtd {
    let tgtd = Tgtd::start();
    tgtd.add_target(IQN).add_lun_file(1, LUN_BYTES);
    tgtd
}

fn set(tgtd: &Tgtd, key: &str, value: &str) {
    tgtd.tgtadm(&[
        "--lld", "iscsi", "--op", "update", "--mode", "target", "--tid", "1", "--name", key,
        "--value", value,
    ]);
}

#[tokio::test]
async fn login_without_chap_and_logout_leave_no_session() {
    let tgtd = target_with_disk();
    let driver = connect(&params(&tgtd, IQN)).await;
    assert_eq!(tgtd.sessions(), 1);
    driver.logout().await.unwrap();
    tgtd.wait_sessions(0);
}

#[tokio::test]
async fn login_with_chap() {
    let tgtd = target_with_disk();
    tgtd.add_chap("user", "a-secret-of-16-b");
    let mut params = params(&tgtd, IQN);
    params.chap = Some(chap("user", "a-secret-of-16-b"));
    connect(&params).await.logout().await.unwrap();
}

#[tokio::test]
async fn chap_is_offered_and_not_needed() {
    let tgtd = target_with_disk();
    let mut params = params(&tgtd, IQN);
    params.chap = Some(chap("user", "a-secret-of-16-b"));
    connect(&params).await.logout().await.unwrap();
}

#[tokio::test]
async fn wrong_secret_wrong_name_and_no_chap_are_refused_in_plain_words() {
    let tgtd = target_with_disk();
    tgtd.add_chap("user", "a-secret-of-16-b");
    let mut params = params(&tgtd, IQN);
    let wrong = [
        chap("user", "another-secret-b"),
        chap("other", "a-secret-of-16-b"),
    ];
    for chap in wrong.map(Some).into_iter().chain([None]) {
        params.chap = chap;
        let error = Driver::connect(&params)
            .await
            .expect_err("the login is refused");
        let LoginError::Refused { status } = &error else {
            panic!("{error}")
        };
        assert_eq!(*status, LoginStatus::AUTHENTICATION_FAILURE);
        assert_eq!(error.retry(), Retry::Never);
        assert!(
            error
                .to_string()
                .contains("refused the CHAP name or secret"),
            "{error}"
        );
        assert!(
            !format!("{error} {error:?}").contains("secret-of"),
            "{error:?}"
        );
    }
    tgtd.wait_sessions(0);
}

/// Gives the target an account to prove itself with.
fn add_outgoing(tgtd: &Tgtd, user: &str, secret: &str) {
    let account = ["--lld", "iscsi", "--mode", "account", "--op"];
    let new = ["new", "--user", user, "--password", secret];
    let bind = ["bind", "--tid", "1", "--user", user, "--outgoing"];
    tgtd.tgtadm(&[&account[..], &new].concat());
    tgtd.tgtadm(&[&account[..], &bind].concat());
}

// C10, C12
#[tokio::test]
async fn login_with_mutual_chap() {
    let tgtd = target_with_disk();
    tgtd.add_chap("user", "a-secret-of-16-b");
    add_outgoing(&tgtd, "target", "b-secret-of-16-b");
    let mut params = params(&tgtd, IQN);
    params.chap = Some(chap("user", "a-secret-of-16-b"));
    params.mutual_chap = Some(chap("target", "b-secret-of-16-b"));
    connect(&params).await.logout().await.unwrap();

    for (name, secret, expected) in [
        ("target", "c-secret-of-16-b", Unproved::Response),
        (
            "other",
            "b-secret-of-16-b",
            Unproved::Name("target".to_owned()),
        ),
    ] {
        params.mutual_chap = Some(chap(name, secret));
        let error = Driver::connect(&params).await.unwrap_err();
        assert_eq!(error.retry(), Retry::Never);
        let LoginError::TargetUnproved(unproved) = error else {
            panic!("{error}")
        };
        assert_eq!(unproved, expected);
    }
    tgtd.wait_sessions(0);
}

// C12: a target without an account to prove itself with
#[tokio::test]
async fn target_that_cannot_prove_itself_is_not_trusted() {
    let tgtd = target_with_disk();
    tgtd.add_chap("user", "a-secret-of-16-b");
    let mut params = params(&tgtd, IQN);
    params.chap = Some(chap("user", "a-secret-of-16-b"));
    params.mutual_chap = Some(chap("target", "b-secret-of-16-b"));
    let error = Driver::connect(&params).await.unwrap_err();
    // It says so itself, before it would have to.
    assert!(
        matches!(&error, LoginError::Refused { status } if *status == LoginStatus::AUTHENTICATION_FAILURE),
        "{error}"
    );
    tgtd.wait_sessions(0);
}

// L24: tgt without accounts does not authenticate at all
#[tokio::test]
async fn strict_login_to_a_target_without_accounts_fails() {
    let tgtd = target_with_disk();
    let mut params = params(&tgtd, IQN);
    params.chap = Some(chap("user", "a-secret-of-16-b"));
    params.require_authentication = true;
    let error = Driver::connect(&params).await.unwrap_err();
    assert!(
        matches!(&error, LoginError::Refused { status } if *status == LoginStatus::AUTHENTICATION_FAILURE),
        "{error}"
    );
    tgtd.wait_sessions(0);
}

// C1: tgt 1.0.85 has MD5 at 5 and SHA1, by an old draft, at 7; it refuses what it does not know with
// status 0200
#[tokio::test]
async fn list_of_algorithms_ends_with_one_that_tgt_knows() {
    let tgtd = target_with_disk();
    tgtd.add_chap("user", "a-secret-of-16-b");
    let mut params = params(&tgtd, IQN);
    params.chap = Some(chap("user", "a-secret-of-16-b"));
    for algorithm in ChapAlgorithm::ALL {
        params.chap_algorithms = vec![algorithm];
        match (algorithm, Driver::connect(&params).await) {
            (ChapAlgorithm::Md5, Ok(driver)) => driver.logout().await.unwrap(),
            (_, Err(LoginError::Refused { status })) => assert_eq!(status.class, 2, "{algorithm}"),
            (_, login) => panic!("{algorithm}: {login:?}"),
        }
    }
    for list in [
        ChapAlgorithm::ALL.to_vec(),
        vec![ChapAlgorithm::Md5, ChapAlgorithm::Sha1],
    ] {
        params.chap_algorithms = list;
        let driver = Driver::connect(&params).await.expect("MD5 is in the list");
        driver.logout().await.unwrap();
    }
}

// L15: what is agreed; its use in full feature phase has tests of its own
#[tokio::test]
async fn digests_are_agreed_or_refused() {
    let tgtd = target_with_disk();
    let mut params = params(&tgtd, IQN);
    params.offers.header_digest = DigestPolicy::Require;
    let error = Driver::connect(&params).await.unwrap_err();
    assert!(
        matches!(
            error,
            LoginError::DigestRefused {
                key: "HeaderDigest"
            }
        ),
        "{error}"
    );
    set(&tgtd, "HeaderDigest", "CRC32C");
    set(&tgtd, "DataDigest", "CRC32C");
    for policy in [DigestPolicy::Require, DigestPolicy::Prefer] {
        params.offers.header_digest = policy;
        params.offers.data_digest = policy;
        let driver = Driver::connect(&params).await.expect("both take CRC32C");
        assert!(driver.agreed().header_digest && driver.agreed().data_digest);
    }
}

#[tokio::test]
async fn unknown_target_is_named_as_such() {
    let tgtd = target_with_disk();
    let error = Driver::connect(&params(&tgtd, "iqn.2026-11.test:other"))
        .await
        .unwrap_err();
    assert!(matches!(&error, LoginError::Refused { status } if *status == LoginStatus::NOT_FOUND));
    assert!(error.to_string().contains("no such target"), "{error}");
}

// tgtd without any target takes the connection and closes it.
#[tokio::test]
async fn portal_that_hangs_up_is_named_as_such() {
    let tgtd = Tgtd::start();
    let error = Driver::connect(&params(&tgtd, IQN)).await.unwrap_err();
    assert!(matches!(error, LoginError::Lost { .. }), "{error}");
}

#[tokio::test]
async fn closed_port_is_unreachable() {
    let tgtd = target_with_disk();
    tgtd.kill();
    let error = Driver::connect(&params(&tgtd, IQN)).await.unwrap_err();
    assert!(matches!(error, LoginError::Unreachable { .. }), "{error}");
    assert_eq!(error.retry(), Retry::AfterReconnect);
    assert!(error.to_string().contains(&tgtd.portal()), "{error}");
}

#[tokio::test]
async fn target_that_does_not_answer_the_login_runs_into_the_timeout() {
    let tgtd = target_with_disk();
    tgtd.freeze();
    let mut params = params(&tgtd, IQN);
    params.login_timeout = Duration::from_millis(200);
    let error = Driver::connect(&params).await.unwrap_err();
    assert!(matches!(error, LoginError::Timeout { .. }), "{error}");
    tgtd.thaw();
}

#[tokio::test]
async fn discovery_lists_targets_with_their_portals() {
    let tgtd = target_with_disk();
    // Enough names for several text PDUs.
    for number in 0..200 {
        tgtd.add_target(&format!("iqn.2026-11.test:{}-{number}", "x".repeat(100)));
    }
    let found = discover(&params(&tgtd, IQN)).await.unwrap();
    assert_eq!(found.len(), 201);
    let disk = found
        .iter()
        .find(|target| target.name.as_str() == IQN)
        .unwrap();
    assert_eq!(disk.portals[0].to_string(), format!("{},1", tgtd.portal()));
    tgtd.kill();
    let error = discover(&params(&tgtd, IQN)).await.unwrap_err();
    assert!(
        matches!(error, DiscoveryError::Login(LoginError::Unreachable { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn data_of_all_sizes_comes_back_as_it_was_written() {
    let tgtd = target_with_disk();
    let mut driver = connect(&params(&tgtd, IQN)).await;
    // Around the segment (8192), the first burst (65536) and the burst (262144) of tgt.
    let sizes = [
        1, 2, 15, 16, 17, 127, 128, 129, 511, 512, 513, 1024, 2048, 8192,
    ];
    for (round, count) in sizes.into_iter().enumerate() {
        let lba = u64::try_from(round).unwrap() * 1000;
        write_and_compare(&mut driver, lba, pattern(count * BLOCK, round)).await;
    }
    driver.logout().await.unwrap();
    // Not only the same way back: the target's own file has it too.
    let file = std::fs::read(tgtd.lun_path(IQN, 1).unwrap()).unwrap();
    assert!(file[13 * 1000 * BLOCK..][..4 << 20] == pattern(4 << 20, 13));
}

// RFC 7143 §13.10, §13.11: the four combinations
#[tokio::test]
async fn all_combinations_of_immediate_and_unsolicited_data_write_the_same() {
    let combinations = [("Yes", "Yes"), ("Yes", "No"), ("No", "Yes"), ("No", "No")];
    for (round, (initial_r2t, immediate_data)) in combinations.into_iter().enumerate() {
        let tgtd = target_with_disk();
        set(&tgtd, "InitialR2T", initial_r2t);
        set(&tgtd, "ImmediateData", immediate_data);
        set(&tgtd, "MaxOutstandingR2T", "4");
        let mut driver = connect(&params(&tgtd, IQN)).await;
        assert_eq!(driver.agreed().initial_r2t, initial_r2t == "Yes");
        assert_eq!(driver.agreed().immediate_data, immediate_data == "Yes");
        for size in [BLOCK, 8192, 65_536, 66_048, 1 << 20] {
            write_and_compare(&mut driver, 0, pattern(size, round)).await;
        }
        driver.logout().await.unwrap();
    }
}

// L15, E1, E2: a stranger's CRC32C
#[tokio::test]
async fn digests_of_header_and_data_agree_with_tgt() {
    let policies = [DigestPolicy::None, DigestPolicy::Require];
    for header in policies {
        for data in policies {
            let tgtd = target_with_disk();
            set(&tgtd, "HeaderDigest", "CRC32C,None");
            set(&tgtd, "DataDigest", "CRC32C,None");
            let mut params = params(&tgtd, IQN);
            params.offers.header_digest = header;
            params.offers.data_digest = data;
            let mut driver = connect(&params).await;
            let agreed = driver.agreed();
            assert_eq!(agreed.header_digest, header == DigestPolicy::Require);
            assert_eq!(agreed.data_digest, data == DigestPolicy::Require);
            for (round, size) in [BLOCK, 8192, 66_048, 1 << 20, 4 << 20]
                .into_iter()
                .enumerate()
            {
                write_and_compare(&mut driver, 0, pattern(size, round)).await;
            }
            // 1 and 3 bytes: the digest covers the padding.
            for bytes in [1, 3] {
                let buffer = Data::In(BytesMut::zeroed(usize::from(bytes)));
                let few = run(&mut driver, Cdb::inquiry(bytes), buffer).await;
                assert_eq!(
                    (few.status, few.transferred),
                    (Status::GOOD, u32::from(bytes))
                );
            }
            driver.logout().await.unwrap();
        }
    }
}

// F31, F33
#[tokio::test]
async fn tgt_answers_task_management() {
    let tgtd = target_with_disk();
    let mut driver = connect(&params(&tgtd, IQN)).await;
    let lun = LunAddress::from_number(1);
    let reset = TaskManagementFunction::LOGICAL_UNIT_RESET;
    let outcome = driver.task_management(reset, lun, None).await.unwrap();
    assert_eq!(outcome, TaskManagementOutcome::COMPLETE);
    // RFC 7143 §11.5.1: the reset is told to whoever asks next
    let told = run(&mut driver, Cdb::test_unit_ready(), Data::None).await;
    assert_eq!(told.status, Status::CHECK_CONDITION);
    write_and_compare(&mut driver, 9, pattern(8192, 1)).await;
    driver.logout().await.unwrap();
}

#[tokio::test]
async fn one_byte_comes_and_the_residual_is_told() {
    let tgtd = target_with_disk();
    let mut driver = connect(&params(&tgtd, IQN)).await;
    let one = run(&mut driver, Cdb::inquiry(1), Data::In(BytesMut::zeroed(1))).await;
    assert_eq!((one.status, one.transferred), (Status::GOOD, 1));

    let long = run(
        &mut driver,
        Cdb::inquiry(4096),
        Data::In(BytesMut::zeroed(4096)),
    )
    .await;
    assert_eq!(long.status, Status::GOOD);
    assert!(
        (36..255).contains(&long.transferred),
        "{}",
        long.transferred
    );
    driver.logout().await.unwrap();
}

#[tokio::test]
async fn refused_write_gives_its_buffer_back_and_the_session_goes_on() {
    let tgtd = target_with_disk();
    let mut driver = connect(&params(&tgtd, IQN)).await;
    let beyond = Cdb::write_16(Lba(LUN_BYTES), Blocks(256), false);
    let data = pattern(256 * BLOCK, 0);
    let refused = run(&mut driver, beyond, Data::Out(data.clone())).await;
    assert_eq!(refused.status, Status::CHECK_CONDITION);
    assert_eq!(refused.sense.expect("sense data comes with it").asc, 0x21);
    assert!(matches!(refused.data, Data::Out(back) if back == data));
    write_and_compare(&mut driver, 0, data).await;
    driver.logout().await.unwrap();
}

#[tokio::test]
async fn full_queue_is_answered_to_the_last_command() {
    let tgtd = target_with_disk();
    let mut driver = connect(&params(&tgtd, IQN)).await;
    let lun = LunAddress::from_number(1);
    let slots = driver.free_slots();
    for round in 0..3 {
        for token in 0..u64::try_from(slots).unwrap() {
            let data = pattern(8 * BLOCK, usize::try_from(token).unwrap() + round);
            let cdb = Cdb::write_16(Lba(token * 8), Blocks(8), false);
            driver
                .submit(
                    token,
                    Command {
                        lun,
                        cdb,
                        data: Data::Out(data),
                    },
                )
                .unwrap();
        }
        let extra = Command {
            lun,
            cdb: Cdb::test_unit_ready(),
            data: Data::None,
        };
        assert!(driver.submit(999, extra).is_err());
        let mut tokens: Vec<u64> = Vec::new();
        for _ in 0..slots {
            let completion = next(&mut driver).await.unwrap();
            assert_eq!(completion.status, Status::GOOD);
            tokens.push(completion.token);
        }
        tokens.sort_unstable();
        assert!(tokens.into_iter().eq(0..u64::try_from(slots).unwrap()));
    }
    for token in 0..u64::try_from(slots).unwrap() {
        let cdb = Cdb::read_16(Lba(token * 8), Blocks(8));
        let data = Data::In(BytesMut::zeroed(8 * BLOCK));
        driver.submit(token, Command { lun, cdb, data }).unwrap();
    }
    for _ in 0..slots {
        let completion = next(&mut driver).await.unwrap();
        let expected = pattern(8 * BLOCK, usize::try_from(completion.token).unwrap() + 2);
        assert!(matches!(completion.data, Data::In(buffer) if buffer == expected));
    }
    driver.logout().await.unwrap();
}

#[tokio::test]
async fn idle_session_is_kept_by_pings() {
    let tgtd = target_with_disk();
    let mut params = params(&tgtd, IQN);
    params.noop_interval = Duration::from_millis(50);
    params.noop_timeout = Duration::from_millis(200);
    let mut driver = connect(&params).await;
    let idle = tokio::time::timeout(Duration::from_secs(1), next(&mut driver)).await;
    assert!(
        idle.is_err(),
        "an idle session has nothing to say: {idle:?}"
    );
    write_and_compare(&mut driver, 5, pattern(4096, 1)).await;
    driver.logout().await.unwrap();
}

#[tokio::test]
async fn silent_target_is_given_up() {
    let tgtd = target_with_disk();
    let mut params = params(&tgtd, IQN);
    params.noop_interval = Duration::from_millis(50);
    params.noop_timeout = Duration::from_millis(200);
    let mut driver = connect(&params).await;
    tgtd.freeze();
    let lun = LunAddress::from_number(1);
    let command = Command {
        lun,
        cdb: Cdb::test_unit_ready(),
        data: Data::None,
    };
    driver.submit(42, command).unwrap();
    let end = tokio::time::timeout(Duration::from_secs(5), next(&mut driver)).await;
    let error = end.expect("the ping's time ends").unwrap_err();
    assert!(matches!(error, SessionError::Silent { .. }), "{error}");
    tgtd.thaw();
}

#[tokio::test]
async fn killed_target_ends_the_session_and_unfinished_commands_come_back_in_order() {
    let tgtd = target_with_disk();
    let mut driver = connect(&params(&tgtd, IQN)).await;
    tgtd.freeze();
    let lun = LunAddress::from_number(1);
    for token in [7, 5, 6] {
        let data = Data::Out(pattern(1 << 20, 0));
        let cdb = Cdb::write_16(Lba(0), blocks(1 << 20), false);
        driver.submit(token, Command { lun, cdb, data }).unwrap();
    }
    let waiting = tokio::time::timeout(Duration::from_millis(100), next(&mut driver)).await;
    assert!(waiting.is_err());
    tgtd.kill();
    let error = next(&mut driver).await.unwrap_err();
    assert!(matches!(error, SessionError::Lost { .. }), "{error}");
    assert_eq!(error.retry(), Retry::AfterReconnect);
    assert!(next(&mut driver).await.is_err(), "an end is final");
    let late = Command {
        lun,
        cdb: Cdb::test_unit_ready(),
        data: Data::None,
    };
    assert!(driver.submit(8, late).is_err());
    let unfinished = driver.take_unfinished();
    let tokens: Vec<u64> = unfinished.iter().map(|(token, _)| *token).collect();
    assert_eq!(tokens, [7, 5, 6]);
    let is_whole =
        |command: &Command| matches!(&command.data, Data::Out(data) if data.len() == 1 << 20);
    assert!(unfinished.iter().all(|(_, command)| is_whole(command)));
}
