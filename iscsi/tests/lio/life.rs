//! LIO goes away under load and comes back: stamped blocks tell whether a write was lost or landed late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iscsi::proto::{DigestPolicy, SessionParams};
use support::lio::{Lio, Medium};
use support::proxy::{Kind, Plan, Proxy};

use crate::bed::{PATIENCE, lio_is_here, params};
use crate::load::{DISK_MIB, FLUSH_EVERY, Load};

#[tokio::test]
async fn a_group_taken_out_of_service_and_back_under_load_loses_nothing() {
    if !lio_is_here() {
        return;
    }
    let mut lio = Lio::start("disabled");
    lio.add_lun(0, Medium::File, DISK_MIB);
    let params = params(&lio);
    let report = load_while(lio, &params, 8, |lio| {
        lio.disable();
        lio.enable();
    });
    assert!(report.await >= 8);
}

#[tokio::test]
async fn a_target_deleted_and_made_again_under_load_loses_nothing() {
    if !lio_is_here() {
        return;
    }
    let mut lio = Lio::start("deleted");
    lio.add_lun(0, Medium::Ramdisk, DISK_MIB);
    let params = params(&lio);
    let report = load_while(lio, &params, 8, |lio| {
        lio.delete();
        lio.create();
    });
    assert!(report.await >= 8);
}

// Linux 6.1 dies (`iscsit_stop_session`, a connection that is freed already) when a session of several connections is
// ended from outside while they live: by taking its group out of service, or by reinstating it before it has cleared the
// old session away. So the one is not tried, a connection that is cut is cut on both sides, and Time2Wait is long enough
// for an emulated machine.
#[tokio::test]
async fn connections_of_one_session_are_cut_one_at_a_time_and_nothing_is_lost() {
    if !lio_is_here() {
        return;
    }
    let mut lio = Lio::start("four-cut");
    lio.add_lun(0, Medium::Ramdisk, DISK_MIB)
        .set("param/MaxConnections", "4");
    let proxy = Proxy::start(&lio.portal());
    let mut params = params(&lio);
    params.portal = proxy.portal().parse().unwrap();
    params.offers.max_connections = 4;
    params.offers.time_2_wait = 6;
    let plan = Plan::new(seed())
        .kinds(&[Kind::Kill, Kind::Close])
        .faults(CUTS);
    let reinstated = load_through(&proxy, &params, plan).await;
    assert!(reinstated > 0);
}

// E1, E2
#[tokio::test]
async fn bits_turned_over_on_the_way_are_found_by_digests_and_nothing_is_lost() {
    if !lio_is_here() {
        return;
    }
    let mut lio = Lio::start("corrupted");
    lio.add_lun(0, Medium::Ramdisk, DISK_MIB)
        .set("param/DefaultTime2Wait", "0");
    let proxy = Proxy::start(&lio.portal());
    let mut params = params(&lio);
    params.portal = proxy.portal().parse().unwrap();
    params.offers.header_digest = DigestPolicy::Require;
    params.offers.data_digest = DigestPolicy::Require;
    let plan = Plan::new(seed())
        .kinds(&[Kind::Corrupt])
        .uncorrupted_bytes(LOGIN_BYTES_MAX)
        .faults(BITS);
    let reinstated = load_through(&proxy, &params, plan).await;
    assert!(reinstated > 0);
}

/// Reads and writes while the proxy makes its faults, and tells how often the session came back.
async fn load_through(proxy: &Proxy, params: &SessionParams, plan: Plan) -> u64 {
    let mut load = Load::begin(params).await;
    proxy.begin(plan.gap_bytes_max(GAP_BYTES_MAX));
    load.run_until(|| proxy.is_done()).await;
    eprintln!("{:?}", proxy.counts());
    load.finish().await
}

/// Reads and writes while the target is disturbed so many times, and tells how often the session came back.
async fn load_while(lio: Lio, params: &SessionParams, times: u64, disturb: fn(&mut Lio)) -> u64 {
    let mut load = Load::begin(params).await;
    let answered = Arc::clone(&load.answered);
    let is_over = Arc::new(AtomicBool::new(false));
    let tell_over = Arc::clone(&is_over);
    let disturbing = std::thread::spawn(move || {
        let mut lio = lio;
        for _ in 0..times {
            // In the midst of it: the session stands, and commands are on their way.
            let from = answered.load(Ordering::Relaxed);
            let deadline = Instant::now() + PATIENCE;
            while answered.load(Ordering::Relaxed) < from + 3 * FLUSH_EVERY {
                assert!(Instant::now() < deadline, "the load does not get on");
                std::thread::sleep(Duration::from_millis(5));
            }
            disturb(&mut lio);
        }
        tell_over.store(true, Ordering::Relaxed);
        lio
    });
    load.run_until(|| is_over.load(Ordering::Relaxed) || disturbing.is_finished())
        .await;
    let lio = disturbing.join().unwrap();
    let reinstated = load.finish().await;
    drop(lio);
    reinstated
}

/// Printed, and given again by the environment.
fn seed() -> u64 {
    let given = std::env::var("CINDER_NBD_CHAOS_SEED").ok();
    let seed = given.map_or(20_261_125, |seed| seed.parse().unwrap());
    eprintln!("CINDER_NBD_CHAOS_SEED={seed}");
    seed
}

/// Each costs Time2Wait.
const CUTS: u64 = 4;
const BITS: u64 = 40;
/// Some commands of 32 KiB.
const GAP_BYTES_MAX: u64 = 1 << 20;
/// A login without CHAP takes less than half of it, each way.
const LOGIN_BYTES_MAX: u64 = 4096;
