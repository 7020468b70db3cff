//! What the tests have in common: whether LIO is here, parameters, one command and its answer.

use std::future::poll_fn;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use iscsi::io::{Command, Completion, Data, Driver};
use iscsi::proto::{ChapCredentials, Isid, Secret, SessionError, SessionParams};
use iscsi::scsi::{Blocks, Cdb, Lba, LunAddress, SenseKey, Status};
use support::lio::Lio;

/// In an emulated machine everything takes long; nothing here takes this long.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Whether the tests may make targets in this kernel; if not, it is said.
pub(crate) fn lio_is_here() -> bool {
    let here = std::env::var_os("CINDER_NBD_IN_VM").is_some();
    if !here {
        eprintln!("CANNOT RUN HERE: no LIO of our own; cargo xtask test runs this in a VM");
    }
    here
}

pub(crate) fn params(lio: &Lio) -> SessionParams {
    params_at(&lio.portal(), lio.iqn())
}

pub(crate) fn params_at(portal: &str, target: &str) -> SessionParams {
    let portal = portal.parse().unwrap();
    let name = "iqn.2026-11.org.cinder-nbd:test".parse().unwrap();
    let mut params = SessionParams::new(portal, name, Isid::random([1, 2, 3], 7));
    params.target_name = Some(target.parse().unwrap());
    params
}

pub(crate) fn chap(user: &str, secret: &str) -> ChapCredentials {
    ChapCredentials {
        name: user.to_owned(),
        secret: Secret::new(secret.to_owned()),
    }
}

/// Logs in and takes the unit attentions that follow.
pub(crate) async fn connect(params: &SessionParams, lun: u16) -> Driver {
    let mut driver = Driver::connect(params).await.unwrap();
    settle(&mut driver, lun).await;
    driver
}

/// Takes the unit attentions that a unit has for a new session.
pub(crate) async fn settle(driver: &mut Driver, lun: u16) {
    loop {
        let ready = run(driver, lun, Cdb::test_unit_ready(), Data::None).await;
        if ready.status == Status::GOOD {
            return;
        }
        assert_eq!(ready.sense.unwrap().key, SenseKey::UnitAttention);
    }
}

pub(crate) async fn next(driver: &mut Driver) -> Result<Completion, SessionError> {
    tokio::time::timeout(PATIENCE, poll_fn(|cx| driver.poll_completion(cx)))
        .await
        .expect("an answer comes")
}

pub(crate) async fn run(driver: &mut Driver, lun: u16, cdb: Cdb, data: Data) -> Completion {
    let lun = LunAddress::from_number(lun);
    driver.submit(1, Command { lun, cdb, data }).unwrap();
    next(driver).await.unwrap()
}

/// Bytes that differ by place and round, so that a block in the wrong place shows.
pub(crate) fn pattern(length: usize, round: usize) -> Bytes {
    let byte = |at: usize| u8::try_from((at / 512 * 31 + at * 7 + round * 13) % 251).unwrap();
    (0..length).map(byte).collect()
}

pub(crate) async fn write_and_compare(
    driver: &mut Driver,
    lun: u16,
    lba: u64,
    block: usize,
    data: Bytes,
) {
    let count = Blocks(u32::try_from(data.len() / block).unwrap());
    let cdb = Cdb::write_16(Lba(lba), count, false);
    let written = run(driver, lun, cdb, Data::Out(data.clone())).await;
    assert_eq!(written.status, Status::GOOD, "{:?}", written.sense);
    let buffer = Data::In(BytesMut::zeroed(data.len()));
    let read = run(driver, lun, Cdb::read_16(Lba(lba), count), buffer).await;
    assert_eq!(read.status, Status::GOOD, "{:?}", read.sense);
    assert_eq!(usize::try_from(read.transferred), Ok(data.len()));
    let Data::In(back) = read.data else {
        panic!("the buffer comes back")
    };
    assert!(back == data, "{} bytes at block {lba} differ", data.len());
}
