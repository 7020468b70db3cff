//! A fence around a LUN, against a real tgtd and against the target of `support`: the holder's writes are refused by the
//! unit itself, ours are not, and afterwards all is as it was.

use std::future::poll_fn;

use bytes::{Bytes, BytesMut};
use cinder_nbd::block::{Backend, ErrorKind, Operation, Request};
use cinder_nbd::lun::{Lun, LunSpec};
use cinder_nbd::volume::{Host, Platform, line};
use iscsi::client::{Disk, Session};
use iscsi::proto::{Isid, SessionParams};
use iscsi::scsi::reservation::{ReservationKey, ReservationType};
use support::proxy::{Fault as Cut, Proxy};
use support::target::{Disk as Medium, Target};
use support::tgt::Tgtd;

const IQN: &str = "iqn.2026-11.test:fence";
const BYTES: u64 = 16 << 20;
const KEY: u64 = 0x0123_4567_89ab_cdef;

fn session(portal: &str, host: &str, qualifier: u16) -> SessionParams {
    let name = format!("iqn.2026-11.org.cinder-nbd:{host}");
    let name = name.parse().expect("a name");
    let isid = Isid::random([3, 2, 1], qualifier);
    let mut session = SessionParams::new(portal.parse().expect("a portal"), name, isid);
    session.target_name = Some(IQN.parse().expect("a name"));
    session
}

fn spec(portal: &str, host: &str, qualifier: u16) -> LunSpec {
    LunSpec::new(session(portal, host, qualifier), 1)
}

async fn run(lun: &mut Lun, operation: Operation) -> Result<BytesMut, ErrorKind> {
    let request = Request {
        token: 1,
        operation,
        offset: 0,
    };
    lun.submit(request).expect("a slot is free");
    poll_fn(|cx| lun.poll_completion(cx)).await.result
}

async fn write(lun: &mut Lun, byte: u8) -> Result<BytesMut, ErrorKind> {
    let data = Bytes::from(vec![byte; 4096]);
    run(lun, Operation::Write { data, fua: true }).await
}

async fn first_byte(lun: &mut Lun) -> u8 {
    let read = run(lun, Operation::Read(BytesMut::zeroed(4096))).await;
    read.expect("reading is for everyone")[0]
}

/// What is true of a fence, whatever the target.
async fn assert_fences(portal: &str) {
    let host = Host::default();
    let mut holder = Lun::open(&spec(portal, "holder", 1)).await.expect("opens");
    write(&mut holder, 1).await.expect("nobody is fenced yet");
    let raised = host.fence(spec(portal, "taker", 15), KEY).await;
    raised.unwrap_or_else(|error| panic!("{}", line(&*error)));
    // The control session has gone, its reservation has not.
    write(&mut holder, 2).await.expect_err("it is fenced");
    assert_eq!(first_byte(&mut holder).await, 1);
    // Up already, by us: up.
    let again = host.fence(spec(portal, "taker", 15), KEY).await;
    again.unwrap_or_else(|error| panic!("{}", line(&*error)));
    let lowered = host.unfence(spec(portal, "taker", 15), KEY).await;
    lowered.unwrap_or_else(|error| panic!("{}", line(&*error)));
    let mut taker = Lun::open(&spec(portal, "taker", 1)).await.expect("opens");
    write(&mut taker, 3)
        .await
        .expect("nobody is fenced any more");
    write(&mut holder, 4)
        .await
        .expect("nobody is fenced any more");
    assert_eq!(first_byte(&mut taker).await, 4);
    // Nothing to lower is lowered.
    let lowered = host.unfence(spec(portal, "taker", 15), KEY).await;
    lowered.unwrap_or_else(|error| panic!("{}", line(&*error)));
    holder.close().await;
    taker.close().await;
}

#[tokio::test]
async fn a_fence_keeps_the_holder_out_and_comes_down_again_with_tgt() {
    let tgtd = Tgtd::start();
    tgtd.add_target(IQN).add_lun_file(1, BYTES);
    assert_fences(&tgtd.portal()).await;
}

#[tokio::test]
async fn a_fence_keeps_the_holder_out_and_comes_down_again_with_the_target_of_support() {
    let builder = Target::builder().iqn(IQN).lun(1, Medium::memory(BYTES));
    let target = builder.start().await;
    assert_fences(&target.portal()).await;
    target.stop();
}

/// A holder that has reserved the unit for itself.
async fn reserved(portal: &str, theirs: ReservationKey) -> Disk {
    let disk = Disk::open(&session(portal, "holder", 1), 1)
        .await
        .expect("the holder may");
    let registered = disk.reservations();
    let none = ReservationKey(0);
    registered
        .register(none, theirs, false)
        .await
        .expect("the holder may");
    let kind = ReservationType::WRITE_EXCLUSIVE;
    disk.reservations()
        .reserve(theirs, kind)
        .await
        .expect("the holder may");
    disk
}

#[tokio::test]
async fn a_holder_with_a_reservation_of_its_own_is_preempted() {
    let builder = Target::builder().iqn(IQN).lun(1, Medium::memory(BYTES));
    let target = builder.start().await;
    let portal = target.portal();
    let disk = reserved(&portal, ReservationKey(0xbad)).await;
    let raised = Host::default().fence(spec(&portal, "taker", 15), KEY).await;
    raised.unwrap_or_else(|error| panic!("{}", line(&*error)));
    let held = disk.reservations().reservation().await.unwrap().holder;
    let kind = ReservationType::WRITE_EXCLUSIVE_REGISTRANTS_ONLY;
    assert_eq!(held, Some((ReservationKey(KEY), kind)));
    let keys = disk.reservations().keys().await.unwrap().keys;
    assert_eq!(keys, [ReservationKey(KEY)]);
    disk.close().await.unwrap();
    target.stop();
}

/// tgt has no PREEMPT AND ABORT: what the holder has at work could be done later, so that is no fence.
#[tokio::test]
async fn a_fence_that_would_not_end_what_is_at_work_is_not_raised() {
    let tgtd = Tgtd::start();
    tgtd.add_target(IQN).add_lun_file(1, BYTES);
    let portal = tgtd.portal();
    let theirs = ReservationKey(0xbad);
    let disk = reserved(&portal, theirs).await;
    let raised = Host::default().fence(spec(&portal, "taker", 15), KEY).await;
    let error = line(&*raised.unwrap_err());
    assert!(error.contains("PERSISTENT RESERVE OUT"), "{error}");
    let held = disk.reservations().reservation().await.unwrap().holder;
    assert_eq!(held, Some((theirs, ReservationType::WRITE_EXCLUSIVE)));
    let keys = disk.reservations().keys().await.unwrap().keys;
    assert_eq!(keys, [theirs], "a registration of ours stayed");
    // The same of one that is only registered: there the reservation was ours for a moment.
    let kind = ReservationType::WRITE_EXCLUSIVE;
    disk.reservations().release(theirs, kind).await.unwrap();
    let raised = Host::default().fence(spec(&portal, "taker", 15), KEY).await;
    raised.unwrap_err();
    let held = disk.reservations().reservation().await.unwrap().holder;
    assert_eq!(held, None);
    disk.close().await.unwrap();
}

#[tokio::test]
async fn a_fence_that_cannot_be_raised_says_so() {
    // Nobody there: a port that was free a moment ago may be another test's by now.
    let host = Host::default();
    let raised = host.fence(spec("127.0.0.1:1", "taker", 15), KEY).await;
    let error = line(&*raised.unwrap_err());
    assert!(error.contains("refused"), "{error}");
}

/// A host that holds the volume behind its own fence, and one that has lost it.
async fn assert_registrants(portal: &str, drop_sessions: impl Fn()) {
    let host = Host::default();
    let mut holder = Lun::open(&spec(portal, "holder", 1)).await.expect("opens");
    let raised = host.fence(spec(portal, "taker", 15), KEY).await;
    raised.unwrap_or_else(|error| panic!("{}", line(&*error)));
    let mut registered = spec(portal, "taker", 1);
    registered.registration = Some(KEY);
    let mut taker = Lun::open(&registered).await.expect("opens");
    write(&mut taker, 1).await.expect("it is registered");
    write(&mut holder, 2).await.expect_err("it is fenced");
    // The sessions come back: the taker's is one of a registrant again, the holder's is not.
    drop_sessions();
    write(&mut taker, 3).await.expect("it is registered again");
    write(&mut holder, 4).await.expect_err("it is fenced still");
    assert_eq!(first_byte(&mut holder).await, 3);
    // One that would register beneath another's reservation is let in by every unit, and stays out by itself.
    let mut intruder = spec(portal, "holder", 2);
    intruder.registration = Some(0xbad);
    let refused = Lun::open(&intruder).await.map(drop);
    let refused = line(&refused.expect_err("it is another's"));
    assert!(refused.contains("reserved for another host"), "{refused}");
    let reader = Session::connect(&session(portal, "reader", 1)).await;
    let reader = reader.expect("reading is for everyone");
    let keys = reader.reservations(1).keys().await;
    let keys = keys.expect("reading is for everyone").keys;
    assert!(
        keys.iter().all(|key| *key == ReservationKey(KEY)),
        "{keys:?}"
    );
    reader.logout().await.expect("logs out");
    taker.close().await;
    let lowered = host.unfence(spec(portal, "taker", 15), KEY).await;
    lowered.unwrap_or_else(|error| panic!("{}", line(&*error)));
    write(&mut holder, 5)
        .await
        .expect("nobody is fenced any more");
    holder.close().await;
}

#[tokio::test]
async fn who_holds_the_fence_writes_after_a_lost_session_and_nobody_else_does_with_tgt() {
    let tgtd = Tgtd::start();
    tgtd.add_target(IQN).add_lun_file(1, BYTES);
    let proxy = Proxy::start(&tgtd.portal());
    assert_registrants(&proxy.portal(), || proxy.make(Cut::Kill)).await;
}

#[tokio::test]
async fn who_holds_the_fence_writes_after_a_lost_session_and_nobody_else_does() {
    let builder = Target::builder().iqn(IQN).lun(1, Medium::memory(BYTES));
    let target = builder.start().await;
    assert_registrants(&target.portal(), || target.drop_connections()).await;
    target.stop();
}
