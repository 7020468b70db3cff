//! What LIO's logical units do beyond reading and writing: unmap, zero, compare and write, reserve, tell their paths.

use iscsi::client::{Compared, Disk, Error};
use iscsi::io::{Nexus, NexusParams, Path};
use iscsi::scsi::port_groups::AccessState;
use iscsi::scsi::reservation::{ReservationKey, ReservationType};
use iscsi::scsi::unmap::Extent;
use iscsi::scsi::{Blocks, Lba, LunAddress, Status};
use support::lio::{Lio, Medium};

use crate::bed::{lio_is_here, params, pattern};

#[tokio::test]
async fn a_thin_file_is_unmapped_and_zeroed() {
    if !lio_is_here() {
        return;
    }
    let mut lio = Lio::start("thin");
    let thin = [("emulate_tpu", "1"), ("emulate_tpws", "1")];
    lio.add_lun_with(0, Medium::File, 32, &thin);
    let disk = Disk::open(&params(&lio), 0).await.unwrap();
    assert!(disk.info().provisioning.unmap && disk.info().provisioning.write_same_unmap);
    let data = pattern(8 << 20, 5);
    disk.write(Lba(0), data.clone(), false).await.unwrap();
    let extent = |lba, blocks| Extent {
        lba: Lba(lba),
        blocks: Blocks(blocks),
    };
    let extents = [extent(0, 1024), extent(4096, 2048), extent(12_288, 8)];
    disk.unmap(&extents).await.unwrap();
    disk.write_zeroes(Lba(8192), Blocks(64), false)
        .await
        .unwrap();
    disk.write_zeroes(Lba(9000), Blocks(512), true)
        .await
        .unwrap();
    let mut expected = data.to_vec();
    for (lba, blocks) in [
        (0, 1024),
        (4096, 2048),
        (12_288, 8),
        (8192, 64),
        (9000, 512),
    ] {
        expected[lba * 512..(lba + blocks) * 512].fill(0);
    }
    let back = disk.read(Lba(0), Blocks(16_384)).await.unwrap();
    let differs = back.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(differs.map(|at| at / 512), None, "this block differs");
    disk.close().await.unwrap();
}

#[tokio::test]
async fn compare_and_write_writes_only_over_what_was_expected() {
    if !lio_is_here() {
        return;
    }
    for medium in [Medium::Ramdisk, Medium::File] {
        let mut lio = Lio::start("caw");
        lio.add_lun(0, medium, 4);
        let disk = Disk::open(&params(&lio), 0).await.unwrap();
        let (old, new) = (pattern(512, 1), pattern(512, 2));
        disk.write(Lba(9), old.clone(), false).await.unwrap();
        let compared = disk
            .compare_and_write(Lba(9), &old, &new, false)
            .await
            .unwrap();
        assert_eq!(compared, Compared::Equal);
        assert!(disk.read(Lba(9), Blocks(1)).await.unwrap() == new);
        let compared = disk
            .compare_and_write(Lba(9), &old, &pattern(512, 3), false)
            .await;
        assert!(matches!(compared.unwrap(), Compared::Differs { .. }));
        assert!(disk.read(Lba(9), Blocks(1)).await.unwrap() == new);
        disk.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_reservation_keeps_the_writes_of_others_out() {
    if !lio_is_here() {
        return;
    }
    let mut lio = Lio::start("reserved");
    lio.add_lun(0, Medium::Ramdisk, 4);
    let holder = Disk::open(&params(&lio), 0).await.unwrap();
    let mut of_other = params(&lio);
    of_other.initiator_name = "iqn.2026-11.org.cinder-nbd:other".parse().unwrap();
    let other = Disk::open(&of_other, 0).await.unwrap();
    let key = ReservationKey(0x5EED);
    let kind = ReservationType::WRITE_EXCLUSIVE;

    holder
        .reservations()
        .register(ReservationKey(0), key, false)
        .await
        .unwrap();
    holder.reservations().reserve(key, kind).await.unwrap();
    let held = other.reservations().reservation().await.unwrap();
    assert_eq!(held.holder, Some((key, kind)));
    assert_eq!(other.reservations().keys().await.unwrap().keys, [key]);
    let refused = other
        .write(Lba(0), pattern(512, 1), false)
        .await
        .unwrap_err();
    let Error::Refused { status, .. } = refused else {
        panic!("{refused}")
    };
    assert_eq!(status, Status::RESERVATION_CONFLICT);
    holder.write(Lba(0), pattern(512, 2), false).await.unwrap();
    assert!(other.read(Lba(0), Blocks(1)).await.unwrap() == pattern(512, 2));

    holder.reservations().release(key, kind).await.unwrap();
    other.write(Lba(0), pattern(512, 3), false).await.unwrap();
    holder.reservations().clear(key).await.unwrap();
    assert!(holder.reservations().keys().await.unwrap().keys.is_empty());
    holder.close().await.unwrap();
    other.close().await.unwrap();
}

#[tokio::test]
async fn of_two_paths_the_optimized_one_is_taken() {
    if !lio_is_here() {
        return;
    }
    let mut lio = Lio::start("paths");
    lio.add_lun(0, Medium::Ramdisk, 4)
        .access(0, 16, NON_OPTIMIZED);
    lio.add_group().add_lun_again(0).access(0, 17, OPTIMIZED);
    let disk = Disk::open(&params(&lio), 0).await.unwrap();
    let groups = disk.target_port_groups().await.unwrap().unwrap();
    let state = |id| groups.group(id).unwrap().state;
    assert_eq!(
        (state(16), state(17)),
        (
            AccessState::ActiveNonOptimized,
            AccessState::ActiveOptimized
        )
    );
    disk.close().await.unwrap();

    let lun = LunAddress::from_number(0);
    let mut nexus = NexusParams::new(params(&lio), lun).unwrap();
    nexus.paths.push(Path {
        portal: lio.portal_of(2).parse().unwrap(),
        ..nexus.paths[0].clone()
    });
    let nexus = Nexus::open(nexus).await.unwrap();
    assert_eq!(nexus.portal().unwrap().to_string(), lio.portal_of(2));
    nexus.logout().await.unwrap();
}

/// Asymmetric access states (SPC-4 table 302).
const OPTIMIZED: u8 = 0;
const NON_OPTIMIZED: u8 = 1;
