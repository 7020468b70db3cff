//! `/dev/nbdX` beside the kernel's own initiator and `qemu-nbd -c`, in the guest, by counted instructions.
//!
//! Source: `tests/beds/vm/jobs/bench.sh`, whose reports are read here. Read before changing:
//! - Time in that guest is a count of instructions, two nanoseconds each: what an I/O costs in all, target and fio
//!   included, on one processor without caches. Figures repeat within two per cent on a busy host.
//! - A thread's time is the scheduler's own count. Interrupts are on the account of whoever was interrupted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Ground;
use super::document::Section;
use super::fio::Report;
use super::statistics::{amount, median};
use crate::house;
use crate::ui::Stage;
use crate::vm::{Image, Job};

/// The guest's own time, so instructions: a minute is usual.
const LIMIT: Duration = Duration::from_mins(10);

const KERNEL: &str = "kernel";
const OURS: &str = "ours";
/// The ways as the job names them, and as we do.
const WAYS: [(&str, &str); 3] = [
    (KERNEL, "open-iscsi (kernel)"),
    (OURS, "cinder-nbd"),
    ("qemu", "qemu-nbd -c"),
];
const JOBS: [(&str, &str); 6] = [
    ("rr1", "4 KiB random read, depth 1"),
    ("rw1", "4 KiB random write, depth 1"),
    ("rr32", "4 KiB random read, depth 32"),
    ("rw32", "4 KiB random write, depth 32"),
    ("sr", "1 MiB read, depth 4"),
    ("sw", "1 MiB write, depth 4"),
];
/// Who the processor worked for.
const PARTS: [&str; 6] = [
    "fio",
    "bridge",
    "target",
    "kernel workers",
    "softirq",
    "rest",
];

/// One job over one way.
struct Sample {
    job: String,
    way: String,
    report: Report,
    /// Microseconds an I/O, by `PARTS`.
    parts: [f64; PARTS.len()],
}

pub(super) async fn measure(ground: &Ground, profile: Option<&str>) -> Result<Section> {
    let image = Image::ready().await?;
    let stage = Stage::begin("VM: /dev/nbdX and the kernel's initiator");
    let keep = house::target_dir().await?.join("bench/vm");
    if keep.exists() {
        std::fs::remove_dir_all(&keep).with_context(|| format!("clear {}", keep.display()))?;
    }
    let settings = ground.path().join("bench.env");
    let (rounds, ios, mib) = if ground.is_quick {
        (1, 1500, 32)
    } else {
        (2, 4000, 96)
    };
    std::fs::write(
        &settings,
        format!(
            "ROUNDS={rounds} IOS={ios} MIB={mib} PROFILE='{}'\n",
            profile.unwrap_or_default()
        ),
    )?;
    let mut job = Job::of_file("bench", LIMIT)?
        .counted()
        .file("bench.env", &settings)
        .program("cinder-nbd", &ground.ours)
        .program("qemu-nbd", &ground.peer.path()?)
        .module("qemu/block-iscsi.so", &ground.peer.driver()?)
        .keep(keep.clone());
    if let Some(dir) = ground.peer.libraries() {
        job = job.libraries(&dir);
    }
    if profile.is_some() {
        job = job.program("perf", Path::new("/usr/bin/perf"));
    }
    let outcome = job.run(&image, |line| stage.note(line)).await?;
    ensure!(
        outcome.status == 0,
        "the job in the guest: exit {}\n{}",
        outcome.status,
        crate::run::tail(&outcome.output)
    );
    let samples = read(&keep)?;
    stage.done(&format!("{} runs", samples.len()));
    Ok(Section {
        name: "kernel",
        text: render(&samples, rounds),
        charts: Vec::new(),
    })
}

/// All of `ROUND.JOB.WAY.json`, with the threads' times beside it.
fn read(dir: &Path) -> Result<Vec<Sample>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    paths.sort();
    let mut samples = Vec::new();
    for path in paths {
        let name = path.file_name().and_then(|name| name.to_str());
        let words: Vec<&str> = name.unwrap_or_default().split('.').collect();
        let [_, job, way, "json"] = words.as_slice() else {
            continue;
        };
        let sample = (|| {
            let report = Report::read(&path)?;
            let threads = |kind| {
                let path = path.with_extension(kind);
                let text = std::fs::read_to_string(&path)
                    .with_context(|| format!("read {}", path.display()))?;
                threads(&text).with_context(|| format!("{} has a strange form", path.display()))
            };
            let parts = parts(&report, &threads("before")?, &threads("after")?);
            anyhow::Ok(Sample {
                job: (*job).to_owned(),
                way: (*way).to_owned(),
                report,
                parts,
            })
        })();
        samples.push(sample.with_context(|| format!("{job} over {way}"))?);
    }
    ensure!(!samples.is_empty(), "the job in the guest left no reports");
    Ok(samples)
}

/// One thread's process, name and nanoseconds.
struct Thread {
    process: u32,
    name: String,
    spent: f64,
}

/// Lines `NANOSECONDS PROCESS THREAD NAME`, by thread.
fn threads(text: &str) -> Option<BTreeMap<u32, Thread>> {
    text.lines()
        .map(|line| {
            let mut words = line.splitn(4, ' ');
            let spent = words.next()?.parse().ok()?;
            let process = words.next()?.parse().ok()?;
            let thread = words.next()?.parse().ok()?;
            let name = words.next()?.to_owned();
            Some((
                thread,
                Thread {
                    process,
                    name,
                    spent,
                },
            ))
        })
        .collect()
}

fn parts(
    report: &Report,
    before: &BTreeMap<u32, Thread>,
    after: &BTreeMap<u32, Thread>,
) -> [f64; PARTS.len()] {
    let [fio, bridge, target, workers, softirq, rest] = [0, 1, 2, 3, 4, 5];
    let mut spent = [0.0; PARTS.len()];
    for (number, thread) in after {
        let process = after.get(&thread.process).map_or("", |main| &main.name);
        let part = match (process, thread.name.as_str()) {
            ("cinder-nbd" | "qemu-nbd", _) => bridge,
            (_, name) if name.starts_with("kworker") => workers,
            (_, name) if name.starts_with("ksoftirqd") => softirq,
            (_, name) if name.starts_with("iscsi_") => target,
            _ => continue,
        };
        let earlier = before.get(number).map_or(0.0, |thread| thread.spent);
        spent[part] += (thread.spent - earlier) / 1000.0;
    }
    spent[fio] = report.cpu_us;
    spent[rest] = (report.runtime_us - spent.iter().sum::<f64>()).max(0.0);
    spent.map(|us| us / report.count)
}

fn render(samples: &[Sample], rounds: u32) -> String {
    let of = |job: &str, way: &str, figure: &dyn Fn(&Sample) -> f64| {
        let wanted = samples
            .iter()
            .filter(|one| one.job == job && one.way == way);
        median(wanted.map(figure).collect())
    };
    let mut text = format!(
        "One LIO target with a RAM disk, guest of one processor, medians of {rounds} rounds. `by kernel` is IOPS by those of open-iscsi on the \
         same target. The parts are microseconds of guest time an I/O.\n\n\
         | job | way | IOPS | by kernel | p50 us | p99 us | us per I/O | {} |\n|---|---|---:|---:|---:|---:|---:|{}\n",
        PARTS.join(" | "),
        "---:|".repeat(PARTS.len())
    );
    for (job, title) in JOBS {
        for (way, name) in WAYS {
            let iops = of(job, way, &|one| one.report.iops);
            let parts: Vec<String> = (0..PARTS.len())
                .map(|part| amount(of(job, way, &|one| one.parts[part])))
                .collect();
            // writing to a String cannot fail
            let _ = writeln!(
                text,
                "| {title} | {name} | {} | {:.2} | {} | {} | {} | {} |",
                amount(iops),
                iops / of(job, KERNEL, &|one| one.report.iops),
                amount(of(job, way, &|one| one.report.p50_us)),
                amount(of(job, way, &|one| one.report.p99_us)),
                amount(of(job, way, &|one| one.report.runtime_us / one.report.count)),
                parts.join(" | "),
            );
        }
    }
    text
}
