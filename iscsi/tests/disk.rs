//! The library's handles against a real tgtd.

use bytes::Bytes;
use iscsi::client::{Disk, Error, Session};
use iscsi::proto::{Isid, SessionParams};
use iscsi::scsi::{Blocks, Lba};
use support::target::{Disk as Medium, Target};
use support::tgt::Tgtd;

const IQN: &str = "iqn.2026-11.test:client";

fn params(tgtd: &Tgtd) -> SessionParams {
    let name = "iqn.2026-11.org.cinder-nbd:test"
        .parse()
        .expect("a legal name");
    let isid = Isid::random([3, 2, 1], 1);
    let mut params = SessionParams::new(tgtd.portal().parse().expect("a legal portal"), name, isid);
    params.target_name = Some(IQN.parse().expect("a legal name"));
    params
}

fn tgtd() -> Tgtd {
    let tgtd = Tgtd::start();
    tgtd.add_target(IQN)
        .add_lun_file(1, 16 << 20)
        .add_lun_file(2, 8 << 20);
    tgtd
}

#[tokio::test]
async fn a_disk_reads_what_it_wrote() {
    let tgtd = tgtd();
    let disk = Disk::open(&params(&tgtd), 1).await.unwrap();
    assert_eq!((disk.block_size(), disk.blocks()), (512, 32_768));
    let data: Bytes = (0..3u32 << 20)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect();
    disk.write(Lba(5), data.clone(), false).await.unwrap();
    disk.flush().await.unwrap();
    disk.write(Lba(30_000), data.slice(..4096), true)
        .await
        .unwrap();
    let blocks = Blocks(u32::try_from(data.len() / 512).unwrap());
    assert!(disk.read(Lba(5), blocks).await.unwrap() == data);
    assert!(disk.read(Lba(30_000), Blocks(8)).await.unwrap() == data[..4096]);
    assert!(disk.read(Lba(0), Blocks(0)).await.unwrap().is_empty());
    disk.close().await.unwrap();
    tgtd.wait_sessions(0);
}

#[tokio::test]
async fn disks_share_a_session_and_futures_run_at_once() {
    let tgtd = tgtd();
    let session = Session::connect(&params(&tgtd)).await.unwrap();
    let (one, two) = (
        session.disk(1).await.unwrap(),
        session.disk(2).await.unwrap(),
    );
    assert_eq!(tgtd.sessions(), 1);
    assert_ne!(one.info().designators, two.info().designators);
    // A dropped future does no harm to others.
    drop(one.read(Lba(0), Blocks(8)));
    let (a, b, c, d) = tokio::join!(
        one.read(Lba(0), Blocks(8)),
        two.read(Lba(8), Blocks(4096)),
        one.read(Lba(16), Blocks(16)),
        two.read(Lba(1), Blocks(1)),
    );
    let lengths = [a, b, c, d].map(|read| read.unwrap().len());
    assert_eq!(lengths, [4096, 2 << 20, 8192, 512]);
    drop((one, two));
    session.logout().await.unwrap();
    tgtd.wait_sessions(0);
}

#[tokio::test]
async fn misuse_is_refused_before_anything_is_sent() {
    let tgtd = tgtd();
    let disk = Disk::open(&params(&tgtd), 1).await.unwrap();
    let beyond = disk.read(Lba(32_767), Blocks(2)).await;
    assert!(matches!(beyond, Err(Error::Misuse(_))), "{beyond:?}");
    let part = disk
        .write(Lba(0), Bytes::from_static(&[0; 100]), false)
        .await;
    assert!(matches!(part, Err(Error::Misuse(_))), "{part:?}");
    disk.close().await.unwrap();
}

#[tokio::test]
async fn a_lun_that_is_not_there_leaves_no_session() {
    let tgtd = tgtd();
    let error = Disk::open(&params(&tgtd), 7).await.unwrap_err();
    assert!(
        matches!(error, Error::NoSuchLun { lun } if lun == 7.into()),
        "{error:?}"
    );
    tgtd.wait_sessions(0);
}

#[tokio::test]
async fn a_lost_session_is_told_to_all_with_its_cause() {
    let tgtd = tgtd();
    let session = Session::connect(&params(&tgtd)).await.unwrap();
    let disk = session.disk(1).await.unwrap();
    tgtd.freeze();
    let (first, second, ()) = tokio::join!(
        disk.read(Lba(0), Blocks(8)),
        disk.read(Lba(8), Blocks(8)),
        async { tgtd.kill() }
    );
    for lost in [first, second, disk.read(Lba(0), Blocks(1)).await] {
        assert!(
            matches!(
                lost,
                Err(Error::Session {
                    source: Some(_),
                    ..
                })
            ),
            "{lost:?}"
        );
    }
    disk.close().await.unwrap();
    assert!(session.logout().await.is_err());
}

// E8: whoever holds a disk does not notice
#[tokio::test]
async fn a_disk_outlives_its_sessions() {
    let target = Target::builder()
        .iqn(IQN)
        .time_to_wait(0)
        .lun(1, Medium::memory(4 << 20))
        .start_blocking();
    let disk = Disk::builder(
        "iqn.2026-11.org.cinder-nbd:test".parse().unwrap(),
        target.portal().parse().unwrap(),
        IQN.parse().unwrap(),
        1,
    )
    .open()
    .await
    .unwrap();
    for round in 0..20u8 {
        let data = Bytes::from(vec![round; 64 << 10]);
        let lba = Lba(u64::from(round) * 128);
        target.drop_connections();
        disk.write(lba, data.clone(), false).await.unwrap();
        assert!(disk.read(lba, Blocks(128)).await.unwrap() == data);
    }
    assert!(target.logins() > 10);
    assert_eq!(target.violations(), Vec::<String>::new());
    disk.close().await.unwrap();
    target.wait_sessions(0);
}
