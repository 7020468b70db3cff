//! A LUN as a block device, against a real tgtd and against the target of `support`, which can misbehave.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cinder_nbd::block::{Backend, ErrorKind, Operation, Quota, Rate, Rates, Request};
use cinder_nbd::lun::{Error, Lun, LunSpec};
use iscsi::proto::recovery::ReplacementTimeout;
use iscsi::proto::{ChapCredentials, Isid, Secret, SessionParams};
use support::target::{Disk, Fault, Target};
use support::tgt::Tgtd;

const IQN: &str = "iqn.2026-11.test:lun";
const MIB: u64 = 1 << 20;

fn spec(portal: &str, lun: u16) -> LunSpec {
    let name = "iqn.2026-11.org.cinder-nbd:test"
        .parse()
        .expect("a legal name");
    let isid = Isid::random([7, 7, 7], 1);
    let mut session = SessionParams::new(portal.parse().expect("a legal portal"), name, isid);
    session.target_name = Some(IQN.parse().expect("a legal name"));
    LunSpec::new(session, lun)
}

async fn open(portal: &str) -> Lun {
    Lun::open(&spec(portal, 1))
        .await
        .expect("the LUN can be opened")
}

async fn run(lun: &mut Lun, offset: u64, operation: Operation) -> Result<BytesMut, ErrorKind> {
    lun.submit(Request {
        token: 1,
        operation,
        offset,
    })
    .expect("a slot is free");
    poll_fn(|cx| lun.poll_completion(cx)).await.result
}

async fn write(lun: &mut Lun, offset: u64, data: &[u8], fua: bool) -> Result<BytesMut, ErrorKind> {
    let data = Bytes::copy_from_slice(data);
    run(lun, offset, Operation::Write { data, fua }).await
}

async fn read(lun: &mut Lun, offset: u64, bytes: usize) -> Result<BytesMut, ErrorKind> {
    run(lun, offset, Operation::Read(BytesMut::zeroed(bytes))).await
}

/// Bytes that differ from block to block and from seed to seed.
fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut data = Vec::with_capacity(bytes + 8);
    while data.len() < bytes {
        // xorshift64: any generator without short cycles serves.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(bytes);
    data
}

fn tgtd() -> Tgtd {
    let tgtd = Tgtd::start();
    tgtd.add_target(IQN).add_lun_file(1, 64 * MIB);
    tgtd
}

async fn target(disk: Disk) -> Target {
    Target::builder().iqn(IQN).lun(1, disk).start().await
}

#[tokio::test]
async fn tgtd_shows_its_lun_and_nothing_stays_after_close() {
    let tgtd = tgtd();
    let lun = open(&tgtd.portal()).await;
    let geometry = lun.geometry().clone();
    assert_eq!((geometry.size_bytes, geometry.block_bytes), (64 * MIB, 512));
    assert!(geometry.write_cache && !geometry.read_only);
    assert!(lun.identity().is_distinct(), "{}", lun.identity());
    let again = open(&tgtd.portal()).await;
    assert_eq!(lun.identity(), again.identity());
    lun.close().await;
    again.close().await;
    tgtd.wait_sessions(0);
}

#[tokio::test]
async fn what_is_written_to_tgtd_is_read_again() {
    let tgtd = tgtd();
    let mut lun = open(&tgtd.portal()).await;
    let sizes = [
        512,
        4096,
        65_536,
        131_072,
        1 << 20,
        (1 << 20) + 512,
        3 << 20,
        32 << 20,
    ];
    for (number, bytes) in sizes.into_iter().enumerate() {
        let seed = u64::try_from(number).unwrap();
        let offset = seed * 1536 * 512;
        let data = pattern(seed, bytes);
        write(&mut lun, offset, &data, number % 2 == 0)
            .await
            .unwrap();
        run(&mut lun, 0, Operation::Flush).await.unwrap();
        let back = read(&mut lun, offset, bytes).await.unwrap();
        assert!(back == data, "{bytes} bytes at {offset}");
    }
    // The file behind tgtd has it too.
    let file = std::fs::read(tgtd.lun_path(IQN, 1).unwrap()).unwrap();
    let last = pattern(7, 32 << 20);
    let from = 7 * 1536 * 512;
    assert!(file[from..from + last.len()] == last);
    lun.close().await;
}

#[tokio::test]
async fn zeroes_and_trims_hold_on_tgtd() {
    let tgtd = tgtd();
    let mut lun = open(&tgtd.portal()).await;
    let data = pattern(3, 4 << 20);
    write(&mut lun, 0, &data, false).await.unwrap();
    let zeroes = Operation::WriteZeroes {
        len: 2 << 20,
        no_hole: false,
        fast: false,
        fua: true,
    };
    run(&mut lun, 1 << 20, zeroes).await.unwrap();
    let back = read(&mut lun, 0, 4 << 20).await.unwrap();
    assert!(back[..1 << 20] == data[..1 << 20]);
    assert!(back[1 << 20..3 << 20].iter().all(|byte| *byte == 0));
    assert!(back[3 << 20..] == data[3 << 20..]);
    run(&mut lun, 0, Operation::Trim { len: 1 << 20 })
        .await
        .unwrap();
    lun.close().await;
}

#[tokio::test]
async fn many_requests_at_once_end_each_once() {
    let tgtd = tgtd();
    let mut lun = open(&tgtd.portal()).await;
    let count = lun.free_slots();
    for at in 0..u64::try_from(count).unwrap() {
        let data = Bytes::from(pattern(at, 16_384));
        let operation = Operation::Write { data, fua: false };
        lun.submit(Request {
            token: at,
            operation,
            offset: at * 16_384,
        })
        .unwrap();
    }
    let mut seen = vec![false; count];
    for _ in 0..count {
        let done = poll_fn(|cx| lun.poll_completion(cx)).await;
        assert!(done.result.is_ok());
        let token = usize::try_from(done.token).unwrap();
        assert!(
            !std::mem::replace(&mut seen[token], true),
            "{token} ended twice"
        );
    }
    for at in 0..u64::try_from(count).unwrap() {
        let back = read(&mut lun, at * 16_384, 16_384).await.unwrap();
        assert!(back == pattern(at, 16_384), "{at}");
    }
    lun.close().await;
}

/// A batch whose data exceeds every buffer on the way, and nothing after it: no byte may wait for a later one.
#[tokio::test]
async fn a_batch_of_long_reads_ends_without_a_push() {
    let tgtd = tgtd();
    let ours = target(Disk::memory(64 * MIB)).await;
    for portal in [tgtd.portal(), ours.portal()] {
        let mut lun = open(&portal).await;
        for token in 0..8 {
            let operation = Operation::Read(BytesMut::zeroed(4 << 20));
            let offset = token * 4 * MIB;
            lun.submit(Request {
                token,
                operation,
                offset,
            })
            .unwrap();
        }
        for _ in 0..8 {
            let done = poll_fn(|cx| lun.poll_completion(cx));
            // Less than the 5 s after which a ping would hide a stall.
            let done = tokio::time::timeout(Duration::from_secs(4), done).await;
            assert!(done.expect("it does not stall").result.is_ok());
        }
        lun.close().await;
    }
}

#[tokio::test]
async fn a_lun_that_is_not_there_is_named_and_no_session_stays() {
    let tgtd = tgtd();
    let error = Lun::open(&spec(&tgtd.portal(), 9)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "target iqn.2026-11.test:lun has no LUN 9 for this initiator; \
         give the number under which the volume is mapped"
    );
    // LUN 0 of tgt is its controller.
    let error = Lun::open(&spec(&tgtd.portal(), 0)).await.unwrap_err();
    let Error::Unusable { lun, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(lun.number(), Some(0));
    tgtd.wait_sessions(0);
}

#[tokio::test]
async fn a_wrong_secret_is_a_login_error() {
    let tgtd = tgtd();
    tgtd.add_chap("user", "a-secret-of-16-b");
    let mut spec = spec(&tgtd.portal(), 1);
    spec.session.chap = Some(ChapCredentials {
        name: "user".to_owned(),
        secret: Secret::new("another-secret-16".to_owned()),
    });
    let error = Lun::open(&spec).await.unwrap_err();
    assert!(matches!(error, Error::Login(_)), "{error:?}");
    spec.session.chap = Some(ChapCredentials {
        name: "user".to_owned(),
        secret: Secret::new("a-secret-of-16-b".to_owned()),
    });
    Lun::open(&spec).await.unwrap().close().await;
    tgtd.wait_sessions(0);
}

#[tokio::test]
async fn without_a_replacement_timeout_everything_fails_at_once_after_a_loss() {
    let tgtd = tgtd();
    let mut spec = spec(&tgtd.portal(), 1);
    spec.recovery.replacement_timeout = ReplacementTimeout::After(Duration::ZERO);
    let mut lun = Lun::open(&spec).await.expect("the LUN opens");
    tgtd.freeze();
    for token in 0..8 {
        let operation = Operation::Read(BytesMut::zeroed(4096));
        lun.submit(Request {
            token,
            operation,
            offset: 0,
        })
        .unwrap();
    }
    // They leave, and nobody answers.
    poll_fn(|cx| {
        assert!(lun.poll_completion(cx).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
    tgtd.kill();
    let mut tokens = Vec::new();
    for _ in 0..8 {
        let done = poll_fn(|cx| lun.poll_completion(cx)).await;
        assert_eq!(done.result, Err(ErrorKind::Io));
        tokens.push(done.token);
    }
    tokens.sort_unstable();
    assert_eq!(tokens, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(read(&mut lun, 0, 512).await, Err(ErrorKind::Io));
    assert_eq!(run(&mut lun, 0, Operation::Flush).await, Err(ErrorKind::Io));
    lun.close().await;
}

/// Told under the standing session, and by the gate of the next one: both ways the unit is used up to its new end.
#[tokio::test]
async fn a_unit_that_grows_is_used_up_to_its_new_end_without_another_attach() {
    // Zeroes to read; a disk in memory cannot grow.
    let target = target(Disk::null(8 * MIB)).await;
    let mut lun = open(&target.portal()).await;
    assert_eq!(lun.take_growth(), None);
    let behind = read(&mut lun, 8 * MIB, 512).await;
    assert_eq!(behind, Err(ErrorKind::OutOfRange));

    target.resize(IQN, 1, 12 * MIB);
    // The next command is told, and the unit is examined.
    let mut grown = None;
    for _ in 0..100 {
        read(&mut lun, 0, 512).await.unwrap();
        grown = lun.take_growth();
        if grown.is_some() {
            break;
        }
    }
    assert_eq!(grown, Some(12 * MIB));
    assert_eq!(lun.geometry().size_bytes, 12 * MIB);
    assert_eq!(lun.take_growth(), None, "it is told once");
    read(&mut lun, 12 * MIB - 512, 512).await.unwrap();
    let behind = read(&mut lun, 12 * MIB, 512).await;
    assert_eq!(behind, Err(ErrorKind::OutOfRange));

    // What another lane has seen; and less than that is nothing.
    lun.handle_growth(16 * MIB);
    lun.handle_growth(8 * MIB);
    assert_eq!(lun.geometry().size_bytes, 16 * MIB);
    assert_eq!(lun.take_growth(), None);
    lun.close().await;
}

#[tokio::test]
async fn passing_faults_do_not_reach_the_front() {
    let target = target(Disk::memory(8 * MIB)).await;
    let mut lun = open(&target.portal()).await;
    let data = pattern(1, 65_536);
    for fault in [
        Fault::Status {
            nth: 1,
            status: 0x08,
        },
        Fault::Status {
            nth: 1,
            status: 0x28,
        },
        Fault::CheckCondition {
            nth: 1,
            key: 0x6,
            asc: 0x29,
            ascq: 0x00,
        },
        Fault::CheckCondition {
            nth: 1,
            key: 0x6,
            asc: 0x3F,
            ascq: 0x0E,
        },
        Fault::CheckCondition {
            nth: 1,
            key: 0x2,
            asc: 0x04,
            ascq: 0x0A,
        },
        Fault::CheckCondition {
            nth: 1,
            key: 0xB,
            asc: 0x47,
            ascq: 0x05,
        },
    ] {
        target.inject(fault.clone());
        write(&mut lun, 4096, &data, false)
            .await
            .unwrap_or_else(|kind| panic!("{fault:?}: {kind}"));
        target.inject(fault.clone());
        let back = read(&mut lun, 4096, data.len()).await;
        assert!(back.unwrap_or_else(|kind| panic!("{fault:?}: {kind}")) == data);
    }
    lun.close().await;
    assert_eq!(target.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn lasting_faults_reach_the_front_by_their_kind() {
    let target = target(Disk::memory(8 * MIB)).await;
    let mut lun = open(&target.portal()).await;
    for ((key, asc, ascq), kind) in [
        ((0x3, 0x11, 0x00), ErrorKind::Io),
        ((0x5, 0x21, 0x00), ErrorKind::OutOfRange),
        ((0x7, 0x27, 0x00), ErrorKind::ReadOnly),
        ((0x7, 0x27, 0x07), ErrorKind::NoSpace),
    ] {
        target.inject(Fault::CheckCondition {
            nth: 1,
            key,
            asc,
            ascq,
        });
        assert_eq!(write(&mut lun, 0, &[1; 512], false).await, Err(kind));
    }
    target.inject(Fault::Status {
        nth: 1,
        status: 0x18,
    });
    assert_eq!(read(&mut lun, 0, 512).await, Err(ErrorKind::Io));
    target.inject(Fault::ShortRead {
        nth: 1,
        missing: 512,
    });
    assert_eq!(read(&mut lun, 0, 4096).await, Err(ErrorKind::Io));
    // The session has borne it all.
    assert!(read(&mut lun, 0, 4096).await.is_ok());
    lun.close().await;
}

#[tokio::test]
async fn what_was_flushed_or_forced_survives_a_power_cut() {
    for fua in [false, true] {
        let disk = Disk::memory(8 * MIB).volatile_cache();
        let target = target(disk).await;
        let mut lun = open(&target.portal()).await;
        assert!(lun.geometry().write_cache);
        let data = pattern(9, 2 << 20);
        write(&mut lun, 0, &data, fua).await.unwrap();
        if !fua {
            run(&mut lun, 0, Operation::Flush).await.unwrap();
        }
        let zeroes = Operation::WriteZeroes {
            len: 4096,
            no_hole: true,
            fast: false,
            fua,
        };
        run(&mut lun, 4096, zeroes).await.unwrap();
        target.disk(IQN, 1).unwrap().power_cut(|_| true);
        let back = read(&mut lun, 0, 2 << 20).await.unwrap();
        assert!(back[..4096] == data[..4096] && back[8192..] == data[8192..]);
        if fua {
            assert!(back[4096..8192].iter().all(|byte| *byte == 0));
        } else {
            assert!(back[4096..8192] == data[4096..8192]);
        }
        lun.close().await;
    }
}

#[tokio::test]
async fn a_protected_lun_is_read_only_and_large_blocks_are_kept() {
    let target = target(Disk::memory(8 * MIB).block_bytes(4096).read_only()).await;
    let mut lun = open(&target.portal()).await;
    assert_eq!(lun.geometry().block_bytes, 4096);
    assert!(lun.geometry().read_only && !lun.geometry().can_trim);
    assert_eq!(
        write(&mut lun, 0, &[1; 4096], false).await,
        Err(ErrorKind::ReadOnly)
    );
    assert_eq!(read(&mut lun, 512, 4096).await, Err(ErrorKind::Invalid));
    assert!(read(&mut lun, 4096, 4096).await.is_ok());
    lun.close().await;
    let writable = Target::builder()
        .iqn(IQN)
        .lun(1, Disk::memory(MIB))
        .start()
        .await;
    let spec = LunSpec {
        read_only: true,
        ..spec(&writable.portal(), 1)
    };
    let lun = Lun::open(&spec).await.unwrap();
    assert!(lun.geometry().read_only);
    lun.close().await;
}

#[tokio::test]
async fn a_trim_and_zeroes_are_commands_and_not_data_where_the_target_can() {
    let target = target(Disk::memory(64 * MIB)).await;
    let mut lun = open(&target.portal()).await;
    assert!(lun.geometry().can_trim && lun.geometry().can_write_zeroes);
    write(&mut lun, 0, &pattern(5, 1 << 20), false)
        .await
        .unwrap();
    let zeroes = Operation::WriteZeroes {
        len: 48 << 20,
        no_hole: false,
        fast: false,
        fua: false,
    };
    run(&mut lun, 0, zeroes).await.unwrap();
    let back = read(&mut lun, 0, 1 << 20).await.unwrap();
    assert!(back.iter().all(|byte| *byte == 0));
    run(&mut lun, 0, Operation::Trim { len: 64 << 20 })
        .await
        .unwrap();
    lun.close().await;
    assert_eq!(target.violations(), Vec::<String>::new());
}

/// The lower bound of a time is no matter of the machine: what is limited cannot be faster.
#[tokio::test]
async fn a_limited_volume_does_no_more_in_a_second_on_all_its_lanes() {
    let target = target(Disk::memory(MIB)).await;
    let rates = Rates {
        total_iops: Some(Rate {
            per_second: 100,
            burst: Some(10),
        }),
        ..Rates::default()
    };
    let quota = Quota::new(&rates, Instant::now());
    let mut lanes = Vec::new();
    for lane in 0..2 {
        let mut spec = spec(&target.portal(), 1);
        spec.session.isid = Isid::random([7, 7, 7], lane);
        spec.quota = Some(quota.clone());
        lanes.push(Lun::open(&spec).await.expect("the LUN can be opened"));
    }
    let before = Instant::now();
    for (at, lun) in lanes.iter_mut().enumerate() {
        let data = pattern(u64::try_from(at).expect("two lanes"), 4096);
        let offset = u64::try_from(at * 4096).expect("two lanes");
        for _ in 0..10 {
            write(lun, offset, &data, false).await.expect("written");
            let back = read(lun, offset, 4096).await.expect("read");
            assert_eq!(back, data);
        }
        // What is not limited does not wait.
        run(lun, 0, Operation::Flush).await.expect("flushed");
    }
    // Forty, of which ten are saved up and one exceeds them.
    let least = Duration::from_millis(280);
    assert!(before.elapsed() >= least, "{:?}", before.elapsed());
    for lun in lanes {
        lun.close().await;
    }
}
