//! What the tests stand on: parameters, an honest target with its record, a scripted one, and a driver to poll.

use std::future::poll_fn;

use bytes::{Bytes, BytesMut};
use iscsi::io::{Command, Completion, Data, Driver};
use iscsi::proto::{Isid, LoginError, SessionError, SessionParams};
use iscsi::scsi::{Blocks, Cdb, Lba, LunAddress};
use support::target::{Builder, Disk, Pdu, Peer, Script, Target, op};

pub(crate) const IQN: &str = "iqn.2026-11.test:disk";
pub(crate) const INITIATOR: &str = "iqn.2026-11.org.cinder-nbd:conformance";
pub(crate) const LUN: u16 = 1;
pub(crate) const BLOCK: usize = 512;
const DISK_BYTES: u64 = 16 << 20;

/// Flags of a login: T, the stage one is in, the stage one goes to.
pub(crate) mod stage {
    pub(crate) const SECURITY: u8 = 0x00;
    pub(crate) const SECURITY_TO_OPERATIONAL: u8 = 0x81;
    pub(crate) const OPERATIONAL: u8 = 0x04;
    pub(crate) const OPERATIONAL_TO_FULL_FEATURE: u8 = 0x87;
}

pub(crate) fn params(portal: &str) -> SessionParams {
    let portal = portal.parse().expect("a portal");
    let name = INITIATOR.parse().expect("a name");
    let mut params = SessionParams::new(portal, name, Isid::random([1, 2, 3], 7));
    params.target_name = Some(IQN.parse().expect("a name"));
    params
}

/// An honest target with one disk, and all its PDUs on record. Its first answer is no unit attention, and whoever
/// has lost a session may come back at once.
pub(crate) fn target() -> Builder {
    Target::builder()
        .iqn(IQN)
        .lun(LUN, Disk::memory(DISK_BYTES))
        .unit_attention(false)
        .time_to_wait(0)
        .record()
}

/// A driver on a target.
pub(crate) async fn connect(target: &Target) -> Driver {
    Driver::connect(&params(&target.portal()))
        .await
        .expect("the login succeeds")
}

/// Logs in while the test plays the target's part.
pub(crate) async fn log_in<T>(
    params: &SessionParams,
    script: &Script,
    play: impl AsyncFnOnce(&mut Peer) -> T,
) -> (Result<Driver, LoginError>, Peer, T) {
    let target = async {
        let mut peer = script.accept().await;
        let told = play(&mut peer).await;
        (peer, told)
    };
    let (login, (peer, told)) = tokio::join!(Driver::connect(params), target);
    (login, peer, told)
}

/// A login that the test's play must make fail, and after which the initiator says nothing more.
pub(crate) async fn refused(play: impl AsyncFnOnce(&mut Peer)) -> LoginError {
    let script = Script::listen().await;
    refused_with(&params(&script.portal()), &script, play).await
}

pub(crate) async fn refused_with(
    params: &SessionParams,
    script: &Script,
    play: impl AsyncFnOnce(&mut Peer),
) -> LoginError {
    let (login, mut peer, ()) = log_in(params, script, play).await;
    let error = login.expect_err("the login fails");
    let more = peer.until_closed().await;
    assert!(more.is_empty(), "after {error}: {more:?}");
    error
}

/// A session whose target the test plays.
pub(crate) async fn session() -> (Driver, Peer) {
    session_with(|_| {}, &[]).await
}

/// The same with parameters changed, and with the target's answers to keys.
pub(crate) async fn session_with(
    change: impl FnOnce(&mut SessionParams),
    keys: &[(&str, &str)],
) -> (Driver, Peer) {
    let script = Script::listen().await;
    let mut params = params(&script.portal());
    change(&mut params);
    let (login, peer, _) = log_in(&params, &script, async |peer: &mut Peer| {
        peer.login_with(1, keys).await
    })
    .await;
    (login.expect("the login succeeds"), peer)
}

/// Plays the security stage as a target without accounts; gives the first request of the operational stage.
pub(crate) async fn to_operational(peer: &mut Peer) -> Pdu {
    let request = peer.expect(op::LOGIN).await;
    let keys = [("AuthMethod", "None"), ("TargetPortalGroupTag", "1")];
    let answer = Pdu::login_response(&request, stage::SECURITY_TO_OPERATIONAL, 0, &keys);
    peer.send(answer).await;
    peer.expect(op::LOGIN).await
}

/// The driver's next word.
pub(crate) async fn next(driver: &mut Driver) -> Result<Completion, SessionError> {
    poll_fn(|cx| driver.poll_completion(cx)).await
}

/// The driver's next completion.
pub(crate) async fn completion(driver: &mut Driver) -> Completion {
    next(driver).await.expect("the session stands")
}

/// How the session ends.
pub(crate) async fn end(driver: &mut Driver) -> SessionError {
    next(driver).await.expect_err("the session ends")
}

/// Lets the driver run while the test plays the target; nothing is to complete meanwhile.
pub(crate) async fn driven<T>(driver: &mut Driver, play: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        told = play => told,
        end = next(driver) => panic!("came too early: {end:?}"),
    }
}

/// Submits a command and awaits its end.
pub(crate) async fn run(driver: &mut Driver, command: Command) -> Completion {
    submit(driver, 0, command);
    completion(driver).await
}

pub(crate) fn submit(driver: &mut Driver, token: u64, command: Command) {
    driver.submit(token, command).expect("a slot is free");
}

pub(crate) fn ready() -> Command {
    command(Cdb::test_unit_ready(), Data::None)
}

pub(crate) fn read(lba: u64, blocks: u32) -> Command {
    let bytes = usize::try_from(blocks).expect("few blocks") * BLOCK;
    command(
        Cdb::read_16(Lba(lba), Blocks(blocks)),
        Data::In(BytesMut::zeroed(bytes)),
    )
}

pub(crate) fn write(lba: u64, data: &[u8]) -> Command {
    let blocks = Blocks(u32::try_from(data.len() / BLOCK).expect("few blocks"));
    let cdb = Cdb::write_16(Lba(lba), blocks, false);
    command(cdb, Data::Out(Bytes::copy_from_slice(data)))
}

pub(crate) fn command(cdb: Cdb, data: Data) -> Command {
    Command {
        lun: LunAddress::from_number(LUN),
        cdb,
        data,
    }
}

/// Bytes that tell where they belong.
pub(crate) fn pattern(bytes: usize) -> Vec<u8> {
    let byte = |at: usize| u8::try_from((at / 4 + at * 7) % 251).expect("below 251");
    (0..bytes).map(byte).collect()
}

/// The bytes that a read brought.
pub(crate) fn bytes_in(completion: &Completion) -> &[u8] {
    match &completion.data {
        Data::In(bytes) => bytes,
        Data::None | Data::Out(_) => panic!("no read: {completion:?}"),
    }
}
