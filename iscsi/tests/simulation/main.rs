//! Simulation: the library's initiator over invented wires in invented time, against a model target.
//!
//! ```text
//!   seed --> plan: wires, target, work, faults
//!   workload --> initiator (iscsi::io) --> wires --> model target --> unit
//!      |  each answer                                                  | at the end
//!      +------------------------> oracle <-----------------------------+
//! ```
//!
//! One seed is one story: the same seed gives the same trace. A seed that fails is printed with the line that runs it
//! again, and then tells its story in lines.
//!
//! Read before changing: `oracle` (what is right), `target` (what a target may do), `world` (what time is).

#![expect(
    clippy::print_stdout,
    reason = "the story of a seed is what one wants to see"
)]

mod dice;
mod faults;
mod network;
mod oracle;
mod plan;
mod schedule;
mod seeds;
mod subject;
mod target;
mod trace;
mod wires;
mod workload;
mod world;

use plan::{Kind, Plan};

#[test]
fn calm_schedules_end_well() {
    for seed in 0..200 {
        let plan = Plan::of_kind(seed, Kind::Calm);
        let report = schedule::run(&plan, false);
        if let Err(wrong) = &report.verdict {
            let again = schedule::run(&plan, true);
            panic!("seed {seed}: {wrong}\n{}", again.lines.join("\n"));
        }
    }
}

#[test]
fn short_schedules_end_well() {
    seeds::judge(seeds::asked());
}

#[test]
fn the_same_seed_tells_the_same_story() {
    for seed in 0..100 {
        let plan = Plan::of(seed);
        let (first, second) = (schedule::run(&plan, false), schedule::run(&plan, true));
        assert_eq!(first.hash, second.hash, "seed {seed}, a {:?}", plan.kind);
        assert_eq!(first.verdict, second.verdict, "seed {seed}");
        let other = schedule::run(&Plan::of(seed + 100), false);
        assert_ne!(first.hash, other.hash, "seeds {seed} and {}", seed + 100);
    }
}

// RFC 7143 §6.3.5. Without the same ISID the target goes on with what the lost session had sent.
#[test]
fn late_write_is_found_without_reinstatement() {
    let unguard = |plan: &mut Plan| plan.hazards.fresh_isid = true;
    seeds::first_that_fails(0..1000, Kind::Lossy, unguard, "holds Stamp");
}

// SAM-5: a reset of the unit ends what came over another nexus.
#[test]
fn late_write_over_the_lost_path_is_found_without_the_fence() {
    let unguard = |plan: &mut Plan| plan.hazards.no_fence = true;
    seeds::first_that_fails(0..5000, Kind::PathsApart, unguard, "holds Stamp");
}

// A reset ends tasks, not bytes that are still to come: those must be gone with their socket.
#[test]
fn late_write_from_a_stalled_path_is_found_when_its_socket_lingers() {
    let unguard = |plan: &mut Plan| plan.weather.lingers = true;
    seeds::first_that_fails(0..5000, Kind::PathsApart, unguard, "holds Stamp");
}

// RFC 7143 §11.4.5: a good status does not say that all bytes came. Whoever does not count them takes what the buffer
// held before for what the block holds.
#[test]
fn stale_read_is_found_without_counting_bytes() {
    let unguard = |plan: &mut Plan| plan.trusts_status = true;
    seeds::first_that_fails(0..1000, Kind::ShortReads, unguard, "holds Stamp");
}

#[test]
fn remapped_lun_is_found_without_the_gate() {
    let unguard = |plan: &mut Plan| plan.hazards.no_gate = true;
    seeds::first_that_fails(0..100, Kind::Remapped, unguard, "ANOTHER UNIT");
}

#[test]
fn shrunk_lun_is_found_without_the_gate() {
    let unguard = |plan: &mut Plan| plan.hazards.no_gate = true;
    seeds::first_that_fails(0..100, Kind::Shrunk, unguard, "HAS SHRUNK");
}
