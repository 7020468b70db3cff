//! Data to and from LIO in all the ways that can be agreed on.

use bytes::BytesMut;
use iscsi::io::{Command, Data, Driver};
use iscsi::proto::DigestPolicy;
use iscsi::scsi::{Blocks, Cdb, Lba, LunAddress, Status};
use support::lio::{Lio, Medium};

use crate::bed::{connect, lio_is_here, next, params, pattern, run, write_and_compare};

const BLOCK: usize = 512;

// F8, L19: the four combinations
#[tokio::test]
async fn all_combinations_of_immediate_and_unsolicited_data_write_the_same() {
    if !lio_is_here() {
        return;
    }
    let combinations = [("Yes", "Yes"), ("Yes", "No"), ("No", "Yes"), ("No", "No")];
    for (round, (initial_r2t, immediate_data)) in combinations.into_iter().enumerate() {
        let mut lio = Lio::start("r2t");
        lio.add_lun(0, Medium::Ramdisk, 16)
            .set("param/InitialR2T", initial_r2t)
            .set("param/ImmediateData", immediate_data)
            .set("param/MaxOutstandingR2T", "4");
        let mut driver = connect(&params(&lio), 0).await;
        assert_eq!(driver.agreed().initial_r2t, initial_r2t == "Yes");
        assert_eq!(driver.agreed().immediate_data, immediate_data == "Yes");
        for size in [BLOCK, 8192, 65_536, 66_048, 262_144 + BLOCK, 2 << 20] {
            write_and_compare(&mut driver, 0, 3, BLOCK, pattern(size, round)).await;
        }
        driver.logout().await.unwrap();
    }
}

#[tokio::test]
async fn the_whole_window_is_used_and_every_command_answered() {
    if !lio_is_here() {
        return;
    }
    let mut lio = Lio::start("window");
    lio.add_lun(0, Medium::Ramdisk, 16);
    let mut driver = connect(&params(&lio), 0).await;
    fill_the_window(&mut driver).await;
    driver.logout().await.unwrap();
}

// L4, L16: as many as both want, and CmdSN rises over all of them
#[tokio::test]
async fn a_session_has_as_many_connections_as_lio_grants() {
    if !lio_is_here() {
        return;
    }
    for (granted, wanted) in [(4, 4), (2, 4), (4, 3), (1, 4)] {
        let mut lio = Lio::start("connections");
        lio.add_lun(0, Medium::Ramdisk, 16)
            .set("param/MaxConnections", &granted.to_string());
        let mut params = params(&lio);
        params.offers.max_connections = wanted;
        let mut driver = connect(&params, 0).await;
        let both = usize::from(wanted.min(granted));
        assert_eq!((driver.connections(), established(&lio)), (both, both));
        fill_the_window(&mut driver).await;
        for size in [BLOCK, 66_048, 2 << 20] {
            write_and_compare(&mut driver, 0, 3, BLOCK, pattern(size, 1)).await;
        }
        driver.logout().await.unwrap();
    }
}

/// The kernel's own count of connections to the portal, in state 01 (established).
fn established(lio: &Lio) -> usize {
    let portal: std::net::SocketAddrV4 = lio.portal().parse().unwrap();
    let port = format!(":{:04X}", portal.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table
        .lines()
        .map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[1].ends_with(&port) && row[3] == "01")
        .count()
}

async fn fill_the_window(driver: &mut Driver) {
    let slots = u64::try_from(driver.free_slots()).unwrap();
    let lun = LunAddress::from_number(0);
    for round in 0..4 {
        for token in 0..slots {
            let data = Data::Out(pattern(8 * BLOCK, usize::try_from(token).unwrap() + round));
            let cdb = Cdb::write_16(Lba(token * 8), Blocks(8), false);
            driver.submit(token, Command { lun, cdb, data }).unwrap();
        }
        for _ in 0..slots {
            assert_eq!(next(driver).await.unwrap().status, Status::GOOD);
        }
    }
    for token in 0..slots {
        let data = Data::In(BytesMut::zeroed(8 * BLOCK));
        let cdb = Cdb::read_16(Lba(token * 8), Blocks(8));
        driver.submit(token, Command { lun, cdb, data }).unwrap();
    }
    for _ in 0..slots {
        let read = next(driver).await.unwrap();
        let expected = pattern(8 * BLOCK, usize::try_from(read.token).unwrap() + 3);
        assert!(matches!(read.data, Data::In(data) if data == expected));
    }
}

// L15: each digest alone and both, over data of all lengths
#[tokio::test]
async fn digests_guard_headers_and_data() {
    if !lio_is_here() {
        return;
    }
    let mut lio = Lio::start("digests");
    lio.add_lun(0, Medium::Ramdisk, 16);
    for (header, data) in [(true, false), (false, true), (true, true)] {
        let policy = |wanted| {
            if wanted {
                DigestPolicy::Require
            } else {
                DigestPolicy::None
            }
        };
        let mut params = params(&lio);
        params.offers.header_digest = policy(header);
        params.offers.data_digest = policy(data);
        let mut driver = connect(&params, 0).await;
        let agreed = driver.agreed();
        assert_eq!((agreed.header_digest, agreed.data_digest), (header, data));
        for size in [BLOCK, 8192, 66_048, 2 << 20] {
            write_and_compare(&mut driver, 0, 3, BLOCK, pattern(size, 1)).await;
        }
        // With pad bytes: the digest covers them too.
        for length in [5_u16, 6, 7, 8, 36] {
            let buffer = Data::In(BytesMut::zeroed(usize::from(length)));
            let found = run(&mut driver, 0, Cdb::inquiry(length), buffer).await;
            assert_eq!(
                (found.status, found.transferred),
                (Status::GOOD, length.into())
            );
        }
        driver.logout().await.unwrap();
    }
}

// L11, L15: a list without a common value
#[tokio::test]
async fn a_digest_that_is_required_and_refused_ends_the_login() {
    if !lio_is_here() {
        return;
    }
    let mut lio = Lio::start("undigested");
    lio.add_lun(0, Medium::Ramdisk, 8)
        .set("param/HeaderDigest", "None")
        .set("param/DataDigest", "None");
    let mut params = params(&lio);
    params.offers.header_digest = DigestPolicy::Require;
    assert!(Driver::connect(&params).await.is_err());
    params.offers.header_digest = DigestPolicy::Prefer;
    params.offers.data_digest = DigestPolicy::Prefer;
    let driver = connect(&params, 0).await;
    assert!(!driver.agreed().header_digest && !driver.agreed().data_digest);
    driver.logout().await.unwrap();
}
