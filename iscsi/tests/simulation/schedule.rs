//! One schedule from beginning to end.

use std::time::Duration;

use super::dice::Dice;
use super::network::Wires;
use super::plan::{Plan, When};
use super::subject::{Lasting, Subject};
use super::target::{Target, Unit};
use super::trace::Trace;
use super::workload::Workload;
use super::world::{Event, Shared};

/// What came of a schedule.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) hash: u64,
    pub(crate) lines: Vec<String>,
    pub(crate) failures: usize,
    pub(crate) late_writes: u64,
    /// How many logins succeeded.
    pub(crate) sessions: u16,
    /// What was wrong.
    pub(crate) verdict: Result<(), String>,
}

/// Runs a schedule in invented time.
pub(crate) fn run(plan: &Plan, is_told: bool) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O is always there");
    runtime.block_on(play(plan, is_told))
}

async fn play(plan: &Plan, is_told: bool) -> Report {
    let unit = Unit::new(OURS, plan.blocks, plan.has_cache);
    let target = Target::new(plan.target.clone(), unit);
    let dice = Dice::new(plan.seed, 4);
    let trace = Trace::new(is_told);
    let world = Shared::new(dice, plan.weather, target, plan.portals(), trace);
    let mut workload = Workload::new(plan, world.clone());
    let verdict = tokio::select! {
        biased;
        never = world.run() => match never {},
        ended = tokio::time::timeout(BOUND, act(plan, &world, &mut workload)) => {
            ended.unwrap_or_else(|_| Err(format!("no end within {BOUND:?}")))
        }
    };
    let failures = workload.failures;
    let mut world = world.lock();
    let complaints = world.target.complaints();
    let verdict = match complaints.first() {
        Some(complaint) => Err(complaint.clone()),
        None => verdict,
    };
    if let Err(wrong) = &verdict {
        world.env.tell(format_args!("WRONG: {wrong}"));
    }
    Report {
        hash: world.env.trace().hash(),
        lines: world.env.trace().take_lines(),
        failures,
        late_writes: world.target.late_writes,
        sessions: world.target.sessions_ever(),
        verdict,
    }
}

async fn act(plan: &Plan, world: &Shared, workload: &mut Workload<'_>) -> Result<(), String> {
    let wires = Wires(world.clone());
    let mut subject = open(&wires, plan).await?;
    {
        let world = &mut *world.lock();
        world.env.refresh();
        for (when, fault) in &plan.faults {
            match *when {
                When::At(at) => world.env.schedule(world.env.now + at, Event::Fault(*fault)),
                When::Command(_) | When::Connection(_) => world.lurking.push((*when, *fault)),
            }
        }
    }
    workload.run(&mut subject).await?;
    if plan.ends_well {
        workload.read_all(&mut subject).await?;
    }
    subject.close().await;
    // What is still at work at the target lands now, if it may.
    while world.lock().target.is_at_work() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let since = workload.oracle.begin();
    if plan.ends_well {
        for lba in workload.oracle.touched() {
            let block = world.lock().target.unit.block(lba).to_vec();
            let judged = workload.oracle.read(lba, &block, since);
            judged.map_err(|wrong| format!("at the end: {wrong}"))?;
        }
    }
    Ok(())
}

async fn open(wires: &Wires, plan: &Plan) -> Result<Lasting, String> {
    // A login may be refused for now.
    let mut failure = String::new();
    for _ in 0..OPENS_MAX {
        match Lasting::open(wires, plan).await {
            Ok(subject) => return Ok(subject),
            Err(error) => failure = error,
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Err(failure)
}

/// The identity of the volume.
const OURS: u32 = 0x0011_2233;
/// In invented time: far above the sum of all that a plan holds.
const BOUND: Duration = Duration::from_hours(1);
/// One login in four is refused at most.
const OPENS_MAX: usize = 30;
