//! One measurement: fio with its NBD engine against a bridge, and the bridge's own processor time meanwhile.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Bridge;
use crate::run::Run;

/// What is measured.
pub(super) struct Job {
    pub(super) name: &'static str,
    rw: &'static str,
    block: &'static str,
    depth: &'static str,
}

pub(super) const JOBS: &[Job] = &[
    job("4 KiB random read, depth 1", "randread", "4k", "1"),
    job("4 KiB random write, depth 1", "randwrite", "4k", "1"),
    job("4 KiB random read, depth 32", "randread", "4k", "32"),
    job("4 KiB random write, depth 32", "randwrite", "4k", "32"),
    job("1 MiB read, depth 4", "read", "1m", "4"),
    job("1 MiB write, depth 4", "write", "1m", "4"),
];

const fn job(
    name: &'static str,
    rw: &'static str,
    block: &'static str,
    depth: &'static str,
) -> Job {
    Job {
        name,
        rw,
        block,
        depth,
    }
}

/// What came out.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) job: &'static str,
    pub(super) bridge: &'static str,
    pub(super) iops: f64,
    pub(super) mib_per_s: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) cpu_us_per_io: f64,
}

pub(super) async fn measure(
    job: &Job,
    bridge: &Bridge,
    dir: &Path,
    runtime: Duration,
) -> Result<Sample> {
    let report = dir.join("fio.json");
    let pid = bridge.process.id().context("the bridge has ended")?;
    let before = cpu_seconds(pid)?;
    Run::new("fio", runtime + Duration::from_mins(1))
        .dir(dir)
        .args([
            "--name=j",
            "--ioengine=nbd",
            "--size=4g",
            "--time_based",
            "--randrepeat=1",
        ])
        .arg(format!(
            "--uri=nbd+unix:///?socket={}",
            bridge.socket.display()
        ))
        .arg(format!("--runtime={}", runtime.as_secs()))
        .args([format!("--rw={}", job.rw), format!("--bs={}", job.block)])
        .arg(format!("--iodepth={}", job.depth))
        .arg("--output-format=json")
        .arg("--output")
        .arg(&report)
        .output(|_| {})
        .await
        .with_context(|| format!("{} on {}", job.name, bridge.name))?;
    let cpu = cpu_seconds(pid)? - before;
    let text = std::fs::read_to_string(&report).context("read fio's report")?;
    sample(job, bridge.name, &text, cpu)
}

fn sample(job: &Job, bridge: &'static str, text: &str, cpu_seconds: f64) -> Result<Sample> {
    // some versions put a line of their own before the JSON
    let json = &text[text.find('{').context("fio's report has no JSON")?..];
    let report: Value = serde_json::from_str(json).context("read fio's report")?;
    let errors = &report["jobs"][0]["error"];
    anyhow::ensure!(
        errors.as_i64() == Some(0),
        "{} on {bridge}: fio's error {errors}",
        job.name
    );
    let side = &report["jobs"][0][if job.rw.ends_with("read") {
        "read"
    } else {
        "write"
    }];
    let number = |value: &Value, what: &str| {
        value
            .as_f64()
            .with_context(|| format!("fio's report has no {what}"))
    };
    let percentiles = &side["clat_ns"]["percentile"];
    let count = number(&side["total_ios"], "total_ios")?;
    // fio reports success of a job that could not even connect
    anyhow::ensure!(count > 0.0, "{} on {bridge}: fio did nothing", job.name);
    Ok(Sample {
        job: job.name,
        bridge,
        iops: number(&side["iops"], "iops")?,
        mib_per_s: number(&side["bw_bytes"], "bw_bytes")? / f64::from(1 << 20),
        p50_us: number(&percentiles["50.000000"], "median")? / 1000.0,
        p99_us: number(&percentiles["99.000000"], "99th percentile")? / 1000.0,
        cpu_us_per_io: cpu_seconds * 1e6 / count,
    })
}

/// User and system time of all threads of a process so far.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the bridge has ended")?;
    let ticks = ticks(&stat).context("/proc/PID/stat has a strange form")?;
    let per_second = u32::try_from(rustix::param::clock_ticks_per_second()).context("CLK_TCK")?;
    Ok(f64::from(ticks) / f64::from(per_second))
}

/// Fields 14 and 15 of `proc_pid_stat(5)`; the name in field 2 may hold anything, so count from its end.
fn ticks(stat: &str) -> Option<u32> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_a_hostile_name() {
        let stat = "12 (a) b) S 1 2 3 4 5 6 7 8 9 10 100 23 0 0 20 0 3 0";
        assert_eq!(ticks(stat), Some(123));
    }

    #[test]
    fn a_report_becomes_a_sample() {
        let text = r#"fio: note
            {"jobs":[{"error":0,"read":{"total_ios":1000,"iops":2000.5,"bw_bytes":8194048,
            "clat_ns":{"percentile":{"50.000000":400000,"99.000000":900000}}}}]}"#;
        let sample = sample(&JOBS[0], "x", text, 0.05).unwrap();
        assert!((sample.cpu_us_per_io - 50.0).abs() < 1e-9);
        assert!((sample.p99_us - 900.0).abs() < 1e-9);
        assert!((sample.mib_per_s - 7.814_453_125).abs() < 1e-9);
    }

    #[test]
    fn an_error_of_fio_is_ours() {
        assert!(sample(&JOBS[0], "x", r#"{"jobs":[{"error":5}]}"#, 0.0).is_err());
        let idle = r#"{"jobs":[{"error":0,"read":{"total_ios":0,"iops":0,"bw_bytes":0}}]}"#;
        let error = sample(&JOBS[0], "x", idle, 0.0).unwrap_err();
        assert!(error.to_string().ends_with("fio did nothing"), "{error:#}");
    }
}
