//! The library beside libiscsi: its example `perf` and libiscsi's `iscsi-perf`, in turns on one LUN.
//!
//! Both read one block size at chance places with so many commands in flight, from one thread. `iscsi-perf` cannot
//! write, so there is nothing to set beside our writes.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::document::Section;
use super::plot::{Chart, Kind, Series};
use super::statistics::{Ratio, amount, median};
use super::{Ground, target};
use crate::run::Run;
use crate::ui::Stage;

const DEPTHS: [u32; 3] = [1, 32, 128];
const BYTES: u32 = 4096;
/// tgt's null backend has blocks of 512 bytes.
const BLOCK_BYTES: u32 = 512;

const OURS: &str = "iscsi (ours)";
const PEER: &str = "libiscsi";
const NAMES: [&str; 2] = [OURS, PEER];

#[derive(Clone, Copy, Debug)]
struct Sample {
    depth: u32,
    name: &'static str,
    iops: f64,
    /// Of the whole process, its login included.
    cpu_us_per_io: f64,
}

pub(super) async fn measure(ground: &Ground) -> Result<Section> {
    let stage = Stage::begin("library beside libiscsi");
    // both take whole seconds
    let seconds = if ground.is_quick { 1 } else { 2 };
    let mut samples = Vec::new();
    for round in 0..ground.rounds {
        for depth in DEPTHS {
            let mut order = NAMES;
            if round % 2 == 1 {
                order.reverse();
            }
            for name in order {
                stage.note(&format!("round {}: depth {depth}, {name}", round + 1));
                samples.push(one(ground, name, depth, seconds).await?);
            }
        }
    }
    stage.done(&format!("{} runs of {seconds} s", samples.len()));
    Ok(Section {
        name: "library",
        text: table(&samples),
        charts: charts(&samples),
    })
}

async fn one(ground: &Ground, name: &'static str, depth: u32, seconds: u32) -> Result<Sample> {
    let limit = Duration::from_secs(u64::from(seconds)) + Duration::from_mins(1);
    let run = if name == OURS {
        Run::new(&ground.perf, limit)
            .args([&ground.target.portal(), target::IQN, target::LUN, "--json"])
            .args(["--depth", &depth.to_string(), "--bytes", &BYTES.to_string()])
            .args(["--seconds", &seconds.to_string()])
    } else {
        Run::new("iscsi-perf", limit)
            .args(["-r", "-m", &depth.to_string(), "-t", &seconds.to_string()])
            .args(["-b", &(BYTES / BLOCK_BYTES).to_string()])
            .arg(format!(
                "iscsi://{}/{}/{}",
                ground.target.portal(),
                target::IQN,
                target::LUN
            ))
    };
    let (before, output) = (children_cpu_us(), run.output(|_| {}).await?);
    // nobody else of ours is waited for meanwhile
    let cpu_us = children_cpu_us() - before;
    let iops = if name == OURS {
        let report: Value = serde_json::from_str(output.trim()).context("read perf's report")?;
        report["iops"].as_f64()
    } else {
        average(&output)
    };
    let iops = iops.with_context(|| format!("{name} did not say how fast it was: {output:?}"))?;
    Ok(Sample {
        depth,
        name,
        iops,
        cpu_us_per_io: cpu_us / (iops * f64::from(seconds)),
    })
}

/// Time of all children that have ended and were waited for.
fn children_cpu_us() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    super::process::children_us(&stat).unwrap_or(f64::NAN)
}

/// `iops average 12345 (48 MB/s)`, the last of them: it rewrites its line as it goes.
fn average(output: &str) -> Option<f64> {
    let (_, rest) = output.rsplit_once("iops average")?;
    rest.split_whitespace().next()?.parse().ok()
}

fn of(samples: &[Sample], depth: u32, name: &str, figure: fn(&Sample) -> f64) -> Vec<f64> {
    let wanted = samples.iter();
    let wanted = wanted.filter(|one| one.depth == depth && one.name == name);
    wanted.map(figure).collect()
}

const IOPS: fn(&Sample) -> f64 = |one| one.iops;
const CPU: fn(&Sample) -> f64 = |one| one.cpu_us_per_io;

fn table(samples: &[Sample]) -> String {
    let mut text = format!(
        "4 KiB random reads.\n\n\
         | depth | {OURS} IOPS | {PEER} IOPS | ratio | {OURS} CPU us per I/O | {PEER} CPU us per I/O | ratio |\n\
         |---|---:|---:|---:|---:|---:|---:|\n"
    );
    for depth in DEPTHS {
        let _ = write!(text, "| {depth} |");
        for figure in [IOPS, CPU] {
            let [ours, peers] = NAMES.map(|name| of(samples, depth, name, figure));
            let ratio = Ratio::of(&ours, &peers);
            // writing to a String cannot fail
            let _ = write!(
                text,
                " {} | {} | {ratio} |",
                amount(median(ours)),
                amount(median(peers))
            );
        }
        text.push('\n');
    }
    text
}

fn charts(samples: &[Sample]) -> Vec<Chart> {
    let chart = |file, title: &str, up, figure| Chart {
        file,
        title: title.to_owned(),
        kind: Kind::Bars,
        across: "commands in flight",
        up,
        categories: DEPTHS.map(|depth| depth.to_string()).into(),
        series: NAMES
            .map(|name| Series {
                name: name.to_owned(),
                values: DEPTHS
                    .map(|depth| median(of(samples, depth, name, figure)))
                    .into(),
            })
            .into(),
        mark: None,
    };
    vec![
        chart(
            "library-iops",
            "The library beside libiscsi, 4 KiB random reads",
            "IOPS",
            IOPS,
        ),
        chart(
            "library-cpu",
            "Processor time of the library's process, 4 KiB random reads",
            "CPU us per I/O",
            CPU,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_average_is_taken() {
        let output = "iops current 10 average 5\riops average 51234 (200 MB/s)     \riops average 50000 (195 MB/s) \n";
        assert_eq!(average(output), Some(50000.0));
        assert_eq!(average("failed"), None);
    }
}
