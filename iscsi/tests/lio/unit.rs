//! LIO's logical units: their numbers and block sizes.

use iscsi::client::{Disk, Session};
use iscsi::scsi::{Blocks, Lba};
use support::lio::{Lio, Medium};

use crate::bed::{connect, lio_is_here, params, pattern, settle, write_and_compare};

// LIO reads the first two bytes of a LUN as one number, whatever the addressing method in them: our flat 256 (41 00) is
// its LUN 4100h.
#[tokio::test]
async fn luns_beyond_255_go_out_in_flat_form() {
    if !lio_is_here() {
        return;
    }
    let numbers: [(u16, u32); 6] = [
        (0, 0),
        (1, 1),
        (255, 255),
        (256, 0x4100),
        (511, 0x41FF),
        (16_383, 0x7FFF),
    ];
    let mut lio = Lio::start("luns");
    for (_, theirs) in numbers {
        lio.add_lun(theirs, Medium::Ramdisk, 1);
    }
    let mut driver = connect(&params(&lio), 0).await;
    for (round, (number, _)) in numbers.into_iter().enumerate() {
        settle(&mut driver, number).await;
        write_and_compare(&mut driver, number, 0, 512, pattern(4096, round)).await;
    }
    driver.logout().await.unwrap();
    let session = Session::connect(&params(&lio)).await.unwrap();
    for (round, (number, _)) in numbers.into_iter().enumerate() {
        let disk = session.disk(number).await.unwrap();
        assert!(disk.read(Lba(0), Blocks(8)).await.unwrap() == pattern(4096, round));
    }
    session.logout().await.unwrap();
}

#[tokio::test]
async fn blocks_of_4096_bytes_are_read_and_written_as_such() {
    if !lio_is_here() {
        return;
    }
    let mut lio = Lio::start("blocks");
    lio.add_lun_with(0, Medium::File, 16, &[("block_size", "4096")]);
    let disk = Disk::open(&params(&lio), 0).await.unwrap();
    assert_eq!((disk.block_size(), disk.blocks()), (4096, 4096));
    let data = pattern(3 << 20, 1);
    disk.write(Lba(1), data.clone(), false).await.unwrap();
    disk.write(Lba(4095), pattern(4096, 2), true).await.unwrap();
    assert!(disk.read(Lba(1), Blocks(768)).await.unwrap() == data);
    assert!(disk.read(Lba(4095), Blocks(1)).await.unwrap() == pattern(4096, 2));
    disk.flush().await.unwrap();
    disk.close().await.unwrap();
}
