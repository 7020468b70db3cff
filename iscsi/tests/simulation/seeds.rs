//! Which seeds are run, on all cores, and what is said of those that fail.
//!
//! `CINDER_NBD_SIM_SEED` is the first seed, `CINDER_NBD_SIM_COUNT` how many from there on: 1 if only the first is
//! given, and that one tells its story. `cargo xtask simulate` sets them.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::plan::{Kind, Plan};
use super::schedule::{self, Report};

/// What the environment asks for.
pub(crate) fn asked() -> Range<u64> {
    let number = |name| {
        let text = std::env::var(name).ok()?;
        Some(
            text.parse::<u64>()
                .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        )
    };
    let first = number(SEED);
    let count = number(COUNT).unwrap_or_else(|| first.map_or(COUNT_DEFAULT, |_| 1));
    let first = first.unwrap_or(0);
    first..first + count
}

/// Runs all seeds; a single one tells its story.
///
/// # Panics
/// If one fails, with the line that runs it again.
pub(crate) fn judge(seeds: Range<u64>) {
    let count = seeds.end - seeds.start;
    if count == 1 {
        let plan = Plan::of(seeds.start);
        let report = schedule::run(&plan, true);
        println!("{plan:#?}\n{}", report.lines.join("\n"));
    }
    let (sums, failed) = run_all(seeds.clone());
    println!("{count} schedules from seed {}", seeds.start);
    for (kind, sum) in &sums {
        println!("  {kind:<12} {sum}");
    }
    if failed.is_empty() {
        return;
    }
    let mut told = String::new();
    for (kind, count) in &kinds(&failed) {
        writeln!(told, "{kind}: {count} failed").expect("strings take all");
    }
    for (seed, kind, wrong) in failed.iter().take(FAILURES_TOLD) {
        writeln!(
            told,
            "seed {seed}, {kind}: {wrong}\n    again: {AGAIN} {seed}"
        )
        .expect("strings take all");
    }
    panic!("{} of {count} schedules failed\n{told}", failed.len());
}

/// The first seed whose plan goes wrong in a certain way, although it ends well when `guarded`.
///
/// # Panics
/// If there is none, or one goes wrong in another way.
pub(crate) fn first_that_fails(
    seeds: Range<u64>,
    kind: Kind,
    unguard: impl Fn(&mut Plan),
    expected: &str,
) {
    for seed in seeds {
        let guarded = Plan::of_kind(seed, kind);
        let mut plan = guarded.clone();
        unguard(&mut plan);
        let Err(wrong) = schedule::run(&plan, false).verdict else {
            continue;
        };
        if !wrong.contains(expected) {
            continue;
        }
        let verdict = schedule::run(&guarded, false).verdict;
        assert_eq!(verdict, Ok(()), "seed {seed} fails with its guard too");
        println!("seed {seed}: {wrong}");
        return;
    }
    panic!("no schedule fails without its guard: {expected} is not seen");
}

fn kinds(failed: &[Failed]) -> BTreeMap<&str, usize> {
    let mut kinds = BTreeMap::new();
    for (_, kind, _) in failed {
        *kinds.entry(kind.as_str()).or_default() += 1;
    }
    kinds
}

/// What the schedules of a kind came to: a kind in which nothing happens tests nothing.
#[derive(Debug, Default)]
struct Sum {
    schedules: u64,
    sessions: u64,
    failures: usize,
    late_writes: u64,
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>6} schedules, {:>6} sessions, {:>6} requests failed as they may, {:>6} writes acted after the end of \
             their connection",
            self.schedules, self.sessions, self.failures, self.late_writes
        )
    }
}

type Failed = (u64, String, String);

fn run_all(seeds: Range<u64>) -> (BTreeMap<String, Sum>, Vec<Failed>) {
    let next = AtomicU64::new(seeds.start);
    let sums: Mutex<BTreeMap<String, Sum>> = Mutex::default();
    let failed: Mutex<Vec<Failed>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let plan = Plan::of(seed);
                    let report = schedule::run(&plan, false);
                    note(
                        &mut sums.lock().expect("nobody panics on"),
                        plan.kind,
                        &report,
                    );
                    if let Err(wrong) = report.verdict {
                        let kind = format!("{:?}", plan.kind);
                        failed
                            .lock()
                            .expect("nobody panics on")
                            .push((seed, kind, wrong));
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().expect("all threads have ended");
    failed.sort();
    (sums.into_inner().expect("all threads have ended"), failed)
}

fn note(sums: &mut BTreeMap<String, Sum>, kind: Kind, report: &Report) {
    let sum = sums.entry(format!("{kind:?}")).or_default();
    sum.schedules += 1;
    sum.sessions += u64::from(report.sessions);
    sum.failures += report.failures;
    sum.late_writes += report.late_writes;
}

const SEED: &str = "CINDER_NBD_SIM_SEED";
const AGAIN: &str = "cargo xtask simulate --seed";
const COUNT: &str = "CINDER_NBD_SIM_COUNT";
/// What CI is to run at least; half a minute of two cores.
const COUNT_DEFAULT: u64 = 10_000;
const FAILURES_TOLD: usize = 20;
