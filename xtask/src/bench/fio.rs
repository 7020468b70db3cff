//! One measurement: fio with its NBD engine against a bridge, and the bridge's own processor time meanwhile.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Bridge;
use super::process::Cpu;
use crate::run::Run;

/// What fio is to do.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) name: String,
    pub(super) rw: &'static str,
    pub(super) block_bytes: u32,
    /// On each connection.
    pub(super) depth: u32,
    pub(super) connections: u32,
}

impl Work {
    pub(super) fn new(
        name: impl Into<String>,
        rw: &'static str,
        block_bytes: u32,
        depth: u32,
    ) -> Self {
        Self {
            name: name.into(),
            rw,
            block_bytes,
            depth,
            connections: 1,
        }
    }

    pub(super) fn connections(mut self, connections: u32) -> Self {
        self.connections = connections;
        self
    }
}

/// What fio says of one job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    pub(super) count: f64,
    pub(super) iops: f64,
    pub(super) mib_per_s: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) runtime_us: f64,
    /// fio's own, user and system.
    pub(super) cpu_us: f64,
}

impl Report {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).context("read fio's report")?;
        Self::of(&text)
    }

    /// Of a job that only reads or only writes.
    fn of(text: &str) -> Result<Self> {
        // some versions put a line of their own before the JSON
        let json = &text[text.find('{').context("fio's report has no JSON")?..];
        let report: Value = serde_json::from_str(json).context("read fio's report")?;
        let job = &report["jobs"][0];
        ensure!(
            job["error"].as_i64() == Some(0),
            "fio's error {}",
            job["error"]
        );
        let number = |value: &Value, what: &str| {
            value
                .as_f64()
                .with_context(|| format!("fio's report has no {what}"))
        };
        let has_read = number(&job["read"]["total_ios"], "total_ios of reads")? > 0.0;
        let side = &job[if has_read { "read" } else { "write" }];
        let count = number(&side["total_ios"], "total_ios of writes")?;
        // fio reports success of a job that could not even connect
        ensure!(count > 0.0, "fio did nothing");
        let percentiles = &side["clat_ns"]["percentile"];
        let runtime_us = number(&side["runtime"], "runtime")? * 1000.0;
        let share = number(&job["usr_cpu"], "usr_cpu")? + number(&job["sys_cpu"], "sys_cpu")?;
        Ok(Self {
            count,
            iops: number(&side["iops"], "iops")?,
            mib_per_s: number(&side["bw_bytes"], "bw_bytes")? / f64::from(1 << 20),
            p50_us: number(&percentiles["50.000000"], "median")? / 1000.0,
            p99_us: number(&percentiles["99.000000"], "99th percentile")? / 1000.0,
            runtime_us,
            cpu_us: runtime_us * share / 100.0,
        })
    }
}

/// What came out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) report: Report,
    /// The bridge's alone.
    pub(super) cpu_us_per_io: f64,
}

pub(super) async fn measure(
    work: &Work,
    bridge: &Bridge,
    dir: &Path,
    runtime: Duration,
) -> Result<Sample> {
    let path = dir.join("fio.json");
    let cpu = Cpu::of(&bridge.process)?;
    Run::new("fio", runtime + Duration::from_mins(1))
        .dir(dir)
        .args(["--name=j", "--ioengine=nbd", "--size=4g", "--time_based"])
        .args([
            "--randrepeat=1",
            "--norandommap",
            "--group_reporting",
            "--thread",
        ])
        .arg(format!(
            "--uri=nbd+unix:///?socket={}",
            bridge.socket.display()
        ))
        .arg(format!("--runtime={}ms", runtime.as_millis()))
        .arg(format!("--rw={}", work.rw))
        .arg(format!("--bs={}", work.block_bytes))
        .arg(format!("--iodepth={}", work.depth))
        .arg(format!("--numjobs={}", work.connections))
        .arg("--output-format=json")
        .arg("--output")
        .arg(&path)
        .output(|_| {})
        .await
        .with_context(|| format!("{} on {}", work.name, bridge.name))?;
    let spent_us = cpu.spent_us()?;
    let report =
        Report::read(&path).with_context(|| format!("{} on {}", work.name, bridge.name))?;
    Ok(Sample {
        report,
        cpu_us_per_io: spent_us / report.count,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let text = r#"fio: note
            {"jobs":[{"error":0,"usr_cpu":10.0,"sys_cpu":15.0,"write":{"total_ios":0},
            "read":{"total_ios":1000,"iops":2000.5,"bw_bytes":8194048,"runtime":500,
            "clat_ns":{"percentile":{"50.000000":400000,"99.000000":900000}}}}]}"#;
        let report = Report::of(text).unwrap();
        assert!((report.p99_us - 900.0).abs() < 1e-9);
        assert!((report.mib_per_s - 7.814_453_125).abs() < 1e-9);
        assert!((report.cpu_us - 125_000.0).abs() < 1e-6);
    }

    #[test]
    fn an_error_of_fio_is_ours() {
        assert!(Report::of(r#"{"jobs":[{"error":5}]}"#).is_err());
        let idle = r#"{"jobs":[{"error":0,"read":{"total_ios":0},"write":{"total_ios":0}}]}"#;
        let error = Report::of(idle).unwrap_err();
        assert!(error.to_string().ends_with("fio did nothing"), "{error:#}");
    }
}
