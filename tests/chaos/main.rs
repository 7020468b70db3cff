//! `cinder-nbd export` under load while its network or its target fails, again and again.
//!
//! fio writes, reads and verifies over the export. Between the export and tgtd stands a proxy that cuts, stalls and
//! corrupts at random bytes; or tgtd itself is killed and comes back. Judged is what an application sees: no error,
//! and no block but the one that was written last.
//!
//! Minutes long, so not among the ordinary tests: `cargo xtask test --only chaos` runs them. A run that fails prints
//! its seed; `CINDER_NBD_CHAOS_SEED` gives it again.

#![expect(
    clippy::unwrap_used,
    reason = "a test's bed that cannot be made is a failed test"
)]

mod bed;

use std::time::Duration;

use bed::{Bed, Load};
use support::proxy::{Kind, Plan, Proxy};

#[test]
#[ignore = "minutes long: cargo xtask test --only chaos"]
fn two_hundred_cuts_and_stalls_are_not_noticed_above() {
    let bed = Bed::new();
    let plan = Plan::new(bed.seed).gap_bytes_max(2 << 20).kinds(&[
        Kind::Kill,
        Kind::Kill,
        Kind::Close,
        Kind::HalfClose,
        Kind::HalfClose,
        Kind::Stall,
        Kind::Stall,
        Kind::Refuse,
    ]);
    disturb(&bed, plan, &[]);
}

#[test]
#[ignore = "minutes long: cargo xtask test --only chaos"]
fn two_hundred_turned_bits_and_cuts_are_not_noticed_above_with_digests() {
    let bed = Bed::new();
    bed.allow_digests();
    let plan = Plan::new(bed.seed)
        .gap_bytes_max(2 << 20)
        .uncorrupted_bytes(LOGIN_BYTES_MAX)
        .kinds(&[
            Kind::Corrupt,
            Kind::Corrupt,
            Kind::Corrupt,
            Kind::Kill,
            Kind::HalfClose,
            Kind::Stall,
        ]);
    let digests = ["--header-digest", "require", "--data-digest", "require"];
    disturb(&bed, plan, &digests);
}

#[test]
#[ignore = "minutes long: cargo xtask test --only chaos"]
fn twenty_deaths_of_the_target_are_not_noticed_above() {
    let bed = Bed::new();
    let export = bed.export(&bed.tgtd.portal(), &[]);
    let mut deaths = 0;
    let mut pass = 0;
    while deaths < DEATHS {
        let mut load = Load::start(&bed, &export, pass);
        pass += 1;
        // In the midst of its work: not before its session stands, and while there is something to lose.
        while deaths < DEATHS && load.wait_moved(&bed.tgtd, bed.draw(deaths, 1 << 20..24 << 20)) {
            bed.tgtd.kill();
            // Part of what is tested, not a wait for something: some deaths are short, some are not.
            std::thread::sleep(Duration::from_millis(bed.draw(deaths, 0..800)));
            bed.tgtd.restart();
            deaths += 1;
        }
        load.finish();
    }
    let reconnects = export.finish();
    eprintln!("{deaths} deaths of tgtd in {pass} runs of fio: {reconnects} reconnects");
    assert!(
        reconnects >= deaths,
        "{deaths} deaths, and only {reconnects} reconnects in the log"
    );
}

/// Runs fio over the export, and through the proxy with this plan, until all of its faults were made.
fn disturb(bed: &Bed, plan: Plan, options: &[&str]) {
    let proxy = Proxy::start(&bed.tgtd.portal());
    let export = bed.export(&proxy.portal(), options);
    proxy.begin(plan.faults(FAULTS));
    let mut pass = 0;
    while proxy.counts().faults() < FAULTS {
        assert!(pass < PASSES_MAX, "too few faults: {:?}", proxy.counts());
        // A client whose first login fails is told so. That is right, and not what is tested here.
        proxy.pause();
        let before = proxy.counts().to_target_bytes;
        let mut load = Load::start(bed, &export, pass);
        pass += 1;
        let stands = |counts: &support::proxy::Counts| counts.to_target_bytes > before + (1 << 20);
        if !proxy.wait_until(bed::PATIENCE, stands) {
            load.give_up("fio does not write");
        }
        proxy.resume();
        load.finish();
    }
    proxy.pause();
    let reconnects = export.finish();
    let counts = proxy.counts();
    eprintln!("{counts:?} in {pass} runs of fio: {reconnects} reconnects");
    assert!(reconnects > 0, "the log tells of no reconnect: {counts:?}");
    // Not each cut meets another connection: a connection may be cut twice before it is noticed.
    assert!(
        reconnects <= counts.connections,
        "more reconnects than connections: {counts:?}"
    );
}

const FAULTS: u64 = 200;
const DEATHS: u64 = 20;
/// One is enough as a rule, as fio carries some hundred MiB.
const PASSES_MAX: u64 = 40;
/// A login without CHAP takes less than half of it, each way.
const LOGIN_BYTES_MAX: u64 = 4096;
