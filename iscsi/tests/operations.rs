//! The operations of a `Disk` beyond reading and writing, against a real tgtd.
//!
//! tgt 1.0.85 has persistent reservations (without READ FULL STATUS), UNMAP and WRITE SAME on thin-provisioned units,
//! and REPORT LUNS. What it has not must come out as "not supported" and not as a failure.

use std::process::Command;

use bytes::Bytes;
use iscsi::client::{Disk, Error, Session, report_luns};
use iscsi::proto::{Isid, SessionParams};
use iscsi::scsi::lba_status::ProvisioningStatus;
use iscsi::scsi::lun::SelectReport;
use iscsi::scsi::reservation::{ReservationKey, ReservationType};
use iscsi::scsi::{Blocks, Extent, Lba, Status};
use support::tgt::Tgtd;

const IQN: &str = "iqn.2026-11.test:disk";
const LUN_BYTES: u64 = 16 << 20;
/// Flat space addressing begins at 256.
const HIGH_LUN: u16 = 300;

/// LUN 1 with blocks of 512 bytes, LUN 300 with blocks of 4096, both thin-provisioned.
fn target() -> Tgtd {
    let tgtd = Tgtd::start();
    tgtd.add_target(IQN).add_lun_file(1, LUN_BYTES);
    let path = tgtd.lun_path(IQN, 1).expect("LUN 1 has a file");
    let path = path.with_file_name("disk-4096");
    let made = Command::new("truncate")
        .args(["-s", &LUN_BYTES.to_string()])
        .arg(&path)
        .status();
    assert!(made.is_ok_and(|status| status.success()), "no file is made");
    let high = HIGH_LUN.to_string();
    tgtd.tgtadm(&[
        "--lld",
        "iscsi",
        "--op",
        "new",
        "--mode",
        "logicalunit",
        "--tid",
        "1",
        "--lun",
        &high,
        "--blocksize",
        "4096",
        "-b",
        path.to_str().expect("ASCII"),
    ]);
    for lun in ["1", &high] {
        let unit = ["--mode", "logicalunit", "--tid", "1", "--lun", lun];
        let update = ["--lld", "iscsi", "--op", "update"];
        let thin = ["--params", "thin_provisioning=1"];
        tgtd.tgtadm(&[&update[..], &unit[..], &thin[..]].concat());
    }
    tgtd
}

fn params(tgtd: &Tgtd, initiator: &str, qualifier: u16) -> SessionParams {
    let portal = tgtd.portal().parse().expect("a portal");
    let name = format!("iqn.2026-11.org.cinder-nbd:{initiator}");
    let name = name.parse().expect("a name");
    let mut params = SessionParams::new(portal, name, Isid::random([1, 2, 3], qualifier));
    params.target_name = Some(IQN.parse().expect("a name"));
    params
}

async fn open(tgtd: &Tgtd, initiator: &str, lun: u16) -> Disk {
    let disk = Disk::open(&params(tgtd, initiator, 1), lun).await;
    disk.expect("the disk opens")
}

fn filled(disk: &Disk, blocks: u32, byte: u8) -> Bytes {
    let bytes = usize::try_from(disk.block_size() * blocks).expect("few");
    Bytes::from(vec![byte; bytes])
}

fn extent(lba: u64, blocks: u32) -> Extent {
    Extent {
        lba: Lba(lba),
        blocks: Blocks(blocks),
    }
}

fn is_conflict<T>(result: &Result<T, Error>) -> bool {
    matches!(
        result,
        Err(Error::Refused {
            status: Status::RESERVATION_CONFLICT,
            ..
        })
    )
}

#[tokio::test]
async fn both_block_lengths_read_and_write_at_low_and_high_luns() {
    let tgtd = target();
    for (lun, block_bytes) in [(1, 512), (HIGH_LUN, 4096)] {
        let disk = open(&tgtd, "a", lun).await;
        assert_eq!(disk.block_size(), block_bytes);
        assert_eq!(disk.blocks() * u64::from(block_bytes), LUN_BYTES);
        // More than one command may move, up to the last block.
        let last = disk.blocks() - 1;
        let blocks = (3 << 20) / block_bytes + 1;
        let begin = Lba(last + 1 - u64::from(blocks));
        let data = filled(&disk, blocks, 7);
        disk.write(begin, data.clone(), true).await.unwrap();
        assert!(disk.read(begin, Blocks(blocks)).await.unwrap() == data);
        disk.flush().await.unwrap();
        disk.flush_range(begin, Blocks(1)).await.unwrap();
        let beyond = disk.read(Lba(last), Blocks(2)).await;
        assert!(matches!(beyond, Err(Error::Misuse(_))), "{beyond:?}");
        disk.close().await.unwrap();
    }
    // What the one wrote, the other does not see.
    let low = open(&tgtd, "a", 1).await;
    assert!(low.read(Lba(0), Blocks(8)).await.unwrap() == filled(&low, 8, 0));
    low.close().await.unwrap();
}

#[tokio::test]
async fn unmapped_and_zeroed_blocks_read_as_zeroes() {
    let tgtd = target();
    for lun in [1, HIGH_LUN] {
        let disk = open(&tgtd, "a", lun).await;
        let data = filled(&disk, 64, 9);
        disk.write(Lba(0), data.clone(), false).await.unwrap();
        assert!(disk.info().provisioning.unmap, "{:?}", disk.info());
        disk.unmap(&[extent(8, 8), extent(24, 8)]).await.unwrap();
        disk.write_zeroes(Lba(40), Blocks(8), true).await.unwrap();
        disk.write_zeroes(Lba(56), Blocks(8), false).await.unwrap();
        let seen = disk.read(Lba(0), Blocks(64)).await.unwrap();
        let block = usize::try_from(disk.block_size()).expect("few");
        for (group, bytes) in seen.chunks(8 * block).enumerate() {
            let expected = if group % 2 == 1 { 0 } else { 9 };
            assert!(
                bytes.iter().all(|byte| *byte == expected),
                "LUN {lun}, group {group}"
            );
        }
        disk.close().await.unwrap();
    }
}

/// tgt 1.0.85 tells a maximum in page B0h and does not know the command.
#[tokio::test]
async fn a_unit_that_cannot_compare_and_write_is_left_as_it_was() {
    let tgtd = target();
    for lun in [1, HIGH_LUN] {
        let disk = open(&tgtd, "a", lun).await;
        let (zero, one) = (filled(&disk, 1, 0), filled(&disk, 1, 1));
        let result = disk.compare_and_write(Lba(5), &zero, &one, false).await;
        assert!(matches!(result, Err(Error::Unsupported(_))), "{result:?}");
        assert!(disk.read(Lba(5), Blocks(1)).await.unwrap() == zero);
        disk.close().await.unwrap();
    }
}

#[tokio::test]
async fn what_tgt_does_not_know_is_none_and_no_failure() {
    let tgtd = target();
    let disk = open(&tgtd, "a", HIGH_LUN).await;
    assert_eq!(disk.target_port_groups().await.unwrap(), None);
    let status = disk.reservations().full_status().await;
    assert!(matches!(status, Err(Error::Refused { .. })), "{status:?}");
    disk.read(Lba(0), Blocks(1)).await.unwrap();
    disk.close().await.unwrap();
}

#[tokio::test]
async fn a_written_block_is_mapped() {
    let tgtd = target();
    for lun in [1, HIGH_LUN] {
        let disk = open(&tgtd, "a", lun).await;
        disk.write(Lba(64), filled(&disk, 8, 3), true)
            .await
            .unwrap();
        let statuses = disk.lba_status(Lba(64)).await.unwrap();
        let statuses = statuses.expect("tgt knows GET LBA STATUS");
        assert_eq!(statuses[0].extent.lba, Lba(64), "{statuses:?}");
        assert_eq!(statuses[0].provisioning, ProvisioningStatus::MAPPED);
        disk.close().await.unwrap();
    }
}

#[tokio::test]
async fn all_luns_are_listed_whatever_their_number() {
    let tgtd = target();
    for lun in 2..=160 {
        tgtd.add_lun_null(lun);
    }
    let session = Session::connect(&params(&tgtd, "a", 1)).await.unwrap();
    let luns = report_luns(&mut session.commands(), SelectReport::ADDRESSED).await;
    let mut numbers: Vec<u32> = luns
        .unwrap()
        .iter()
        .filter_map(|lun| lun.number())
        .collect();
    numbers.sort_unstable();
    // LUN 0 is tgt's controller. 162 units are more than the first answer holds.
    let expected: Vec<u32> = (0..=160).chain([u32::from(HIGH_LUN)]).collect();
    assert_eq!(numbers, expected);
    session.logout().await.unwrap();
}

#[tokio::test]
async fn a_reservation_keeps_others_out_until_it_is_preempted() {
    let tgtd = target();
    let (one, two) = (
        open(&tgtd, "a", HIGH_LUN).await,
        open(&tgtd, "b", HIGH_LUN).await,
    );
    let (key_one, key_two, none) = (
        ReservationKey(0xA1),
        ReservationKey(0xB2),
        ReservationKey(0),
    );
    let kind = ReservationType::WRITE_EXCLUSIVE;
    let data = filled(&one, 1, 1);

    one.reservations()
        .register(none, key_one, false)
        .await
        .unwrap();
    one.reservations().reserve(key_one, kind).await.unwrap();
    let held = two.reservations().reservation().await.unwrap();
    assert_eq!(held.holder, Some((key_one, kind)));
    assert!(is_conflict(&two.write(Lba(0), data.clone(), false).await));
    two.read(Lba(0), Blocks(1)).await.unwrap();
    // The key is wrong, and then the holder is another.
    assert!(is_conflict(
        &two.reservations().register(key_one, key_two, false).await
    ));
    two.reservations()
        .register_anyway(key_two, false)
        .await
        .unwrap();
    assert!(is_conflict(
        &two.reservations().reserve(key_two, kind).await
    ));
    let keys = one.reservations().keys().await.unwrap();
    assert_eq!(keys.keys.len(), 2);
    assert!(keys.keys.contains(&key_one) && keys.keys.contains(&key_two));

    let preempt = two.reservations().preempt(key_two, key_one, kind, false);
    preempt.await.unwrap();
    let held = one.reservations().reservation().await.unwrap();
    assert_eq!(held.holder, Some((key_two, kind)));
    assert!(is_conflict(&one.write(Lba(0), data.clone(), false).await));
    two.write(Lba(0), data.clone(), false).await.unwrap();

    two.reservations().release(key_two, kind).await.unwrap();
    one.write(Lba(0), data, false).await.unwrap();
    two.reservations().clear(key_two).await.unwrap();
    let keys = two.reservations().keys().await.unwrap();
    assert_eq!(keys.keys, []);
    one.close().await.unwrap();
    two.close().await.unwrap();
}

#[tokio::test]
async fn every_type_of_reservation_is_made_and_released() {
    let tgtd = target();
    let disk = open(&tgtd, "a", 1).await;
    let key = ReservationKey(0x0102_0304_0506_0708);
    disk.reservations()
        .register(ReservationKey(0), key, false)
        .await
        .unwrap();
    let capabilities = disk.reservations().capabilities().await.unwrap();
    for kind in [1, 3, 5, 6, 7, 8].map(ReservationType) {
        assert_ne!(capabilities.knows(kind), Some(false), "{kind}");
        disk.reservations().reserve(key, kind).await.unwrap();
        let held = disk.reservations().reservation().await.unwrap();
        assert_eq!(held.holder.map(|(_, kind)| kind), Some(kind), "{kind}");
        disk.reservations().release(key, kind).await.unwrap();
    }
    let held = disk.reservations().reservation().await.unwrap();
    assert_eq!(held.holder, None);
    disk.close().await.unwrap();
}
