//! `cargo xtask simulate`: schedules of `iscsi/tests/simulation` in invented time, one to look at or as many as hours
//! hold.
//!
//! The tests run the first ten thousand seeds each time; here others are tried.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::house::{BUILD_LIMIT, cargo};
use crate::run::{Ended, Run};
use crate::ui::{self, Stage};

#[derive(Args)]
pub(crate) struct Options {
    /// The first seed; alone, it is run once and tells its story.
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds from the first on.
    #[arg(long, conflicts_with = "hours")]
    count: Option<u64>,
    /// Goes on for so many hours with seeds that nobody has tried.
    #[arg(long)]
    hours: Option<f64>,
}

/// Simulates; the exit code says whether nothing was found.
pub(crate) async fn perform(options: &Options) -> Result<ExitCode> {
    let found = match options.hours {
        Some(hours) => !for_hours(hours, options.seed).await?,
        None => !once(options).await?.status.success(),
    };
    Ok(if found {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

async fn once(options: &Options) -> Result<Ended> {
    let mut run = simulation();
    for (name, value) in [(SEED, options.seed), (COUNT, options.count)] {
        if let Some(value) = value {
            run = run.env(name, value.to_string());
        }
    }
    run.ended(ui::line).await
}

/// True if nothing was found.
async fn for_hours(hours: f64, seed: Option<u64>) -> Result<bool> {
    let time = Duration::try_from_secs_f64(hours * 3600.0).context("--hours")?;
    let started = Instant::now();
    // The clock in nanoseconds begins where no other run has begun.
    let clock = || SystemTime::UNIX_EPOCH.elapsed().map(|now| now.as_nanos());
    let mut first = match seed {
        Some(seed) => seed,
        None => u64::try_from(clock()? & u128::from(u32::MAX)).unwrap_or(0) << 20,
    };
    let stage = Stage::begin("simulate");
    let begun = first;
    while started.elapsed() < time {
        let batch = simulation()
            .env(SEED, first.to_string())
            .env(COUNT, BATCH.to_string());
        let ended = batch.ended(|line| stage.note(line)).await?;
        if !ended.status.success() {
            stage.failed(&format!("after {} schedules", first - begun));
            ui::line(&ended.output);
            return Ok(false);
        }
        first = first.wrapping_add(BATCH);
    }
    stage.done(&format!("{} schedules from seed {begun}", first - begun));
    Ok(true)
}

fn simulation() -> Run {
    cargo(BUILD_LIMIT).args([
        "test",
        "-p",
        "iscsi",
        "--test",
        "simulation",
        "short_schedules_end_well",
        "--",
        "--exact",
        "--nocapture",
    ])
}

/// What `iscsi/tests/simulation/seeds.rs` reads.
const SEED: &str = "CINDER_NBD_SIM_SEED";
const COUNT: &str = "CINDER_NBD_SIM_COUNT";
/// Some minutes: an interrupted run loses no more.
const BATCH: u64 = 50_000;
