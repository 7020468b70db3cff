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
use super::plot::{Chart, Kind, Series};
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

/// What a copy costs: the emulator counts each step of a `rep movsb` as an instruction, and real processors do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copies {
    /// A byte a step, as the kernel does where the processor says it is good at it.
    Bytes,
    /// Eight bytes a step.
    Words,
}

impl Copies {
    /// Behind a title.
    fn note(self) -> &'static str {
        match self {
            Self::Bytes => "",
            Self::Words => " (eight bytes a step)",
        }
    }
}

pub(super) async fn measure(ground: &Ground, profile: Option<&str>) -> Result<Section> {
    let samples = run(ground, Copies::Bytes, profile).await?;
    let wide = run(ground, Copies::Words, None).await?;
    let text = format!(
        "One LIO target with a RAM disk. `by kernel` is IOPS by those of open-iscsi on the same target; the parts are microseconds of guest time an I/O.\n\n\
         {}\n\
         The emulator counts a copied byte as an instruction, which no real processor does. The same with a kernel that copies eight bytes at a time:\n\n{}",
        table(&samples),
        table(&wide)
    );
    let mut charts = charts_of(&samples, Copies::Bytes);
    charts.extend(charts_of(&wide, Copies::Words));
    Ok(Section {
        name: "kernel",
        text,
        charts,
    })
}

async fn run(ground: &Ground, copies: Copies, profile: Option<&str>) -> Result<Vec<Sample>> {
    let image = Image::ready().await?;
    let stage = Stage::begin(match copies {
        Copies::Bytes => "VM: /dev/nbdX and open-iscsi",
        Copies::Words => "VM: the same, wide copies",
    });
    let keep = house::target_dir().await?.join("bench").join(match copies {
        Copies::Bytes => "vm",
        Copies::Words => "vm-wide",
    });
    if keep.exists() {
        std::fs::remove_dir_all(&keep).with_context(|| format!("clear {}", keep.display()))?;
    }
    let settings = ground.path().join("bench.env");
    // one round: a second differs by less than two per cent
    let (ios, mib) = match (ground.is_quick, copies) {
        (true, _) => (500, 16),
        (false, Copies::Bytes) => (3000, 64),
        (false, Copies::Words) => (2000, 64),
    };
    let profile = profile.unwrap_or_default();
    std::fs::write(
        &settings,
        format!("IOS={ios} MIB={mib} PROFILE='{profile}'\n"),
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
    if copies == Copies::Words {
        job = job.wide_copies();
    }
    if !profile.is_empty() {
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
    Ok(samples)
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

/// The median over the rounds.
fn of(samples: &[Sample], job: &str, way: &str, figure: &dyn Fn(&Sample) -> f64) -> f64 {
    let wanted = samples.iter();
    let wanted = wanted.filter(|one| one.job == job && one.way == way);
    median(wanted.map(figure).collect())
}

fn charts_of(samples: &[Sample], copies: Copies) -> Vec<Chart> {
    let iops = |job, way| of(samples, job, way, &|one| one.report.iops);
    let by_kernel = WAYS
        .iter()
        .filter(|(way, _)| *way != KERNEL)
        .map(|(way, name)| Series {
            name: (*name).to_owned(),
            values: JOBS
                .map(|(job, _)| iops(job, way) / iops(job, KERNEL))
                .into(),
        });
    // the two that say most; a MiB has another scale
    let jobs = ["rr1", "rr32"];
    let columns: Vec<(&str, &str, String)> = JOBS
        .iter()
        .filter(|(job, _)| jobs.contains(job))
        .flat_map(|(job, title)| {
            let short = title.replace("4 KiB random ", "");
            WAYS.map(|(way, name)| (*job, way, format!("{name}, {short}")))
        })
        .collect();
    let parts = PARTS.iter().enumerate().map(|(part, name)| Series {
        name: (*name).to_owned(),
        values: columns
            .iter()
            .map(|(job, way, _)| of(samples, job, way, &|one| one.parts[part]))
            .collect(),
    });
    vec![
        Chart {
            file: match copies {
                Copies::Bytes => "kernel-iops",
                Copies::Words => "kernel-iops-wide",
            },
            title: format!(
                "IOPS in the guest, by those of the kernel's initiator{}",
                copies.note()
            ),
            kind: Kind::Bars,
            across: "job",
            up: "ratio of IOPS",
            categories: JOBS.map(|(_, title)| title.to_owned()).into(),
            series: by_kernel.collect(),
            mark: Some((1.0, "as fast as open-iscsi")),
        },
        Chart {
            file: match copies {
                Copies::Bytes => "kernel-parts",
                Copies::Words => "kernel-parts-wide",
            },
            title: format!(
                "What a 4 KiB random read costs in the guest{}",
                copies.note()
            ),
            kind: Kind::Stack,
            across: "way",
            up: "us of guest time per I/O",
            categories: columns.iter().map(|(_, _, name)| name.clone()).collect(),
            series: parts.collect(),
            mark: None,
        },
    ]
}

fn table(samples: &[Sample]) -> String {
    let of = |job: &str, way: &str, figure: &dyn Fn(&Sample) -> f64| of(samples, job, way, figure);
    let mut text = format!(
        "| job | way | IOPS | by kernel | p50 us | p99 us | us per I/O | {} |\n|---|---|---:|---:|---:|---:|---:|{}\n",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_to_whom_the_thread_belongs() {
        let before = "1000 7 7 cinder-nbd\n500 7 8 nbd0 lane\n0 2 2 kworker/0:1H-kblockd\n";
        let after = "1000 7 7 cinder-nbd\n20500 7 8 nbd0 lane\n5000 2 2 kworker/0:1H-kblockd\n\
            3000 9 9 iscsi_trx\n1000 1 1 busybox\n";
        let report = Report {
            count: 10.0,
            iops: 1.0,
            mib_per_s: 1.0,
            p50_us: 1.0,
            p99_us: 1.0,
            runtime_us: 100.0,
            cpu_us: 40.0,
        };
        let parts = parts(&report, &threads(before).unwrap(), &threads(after).unwrap());
        let expected = [4.0, 2.0, 0.3, 0.5, 0.0, 3.2];
        for (part, (found, wanted)) in parts.iter().zip(expected).enumerate() {
            assert!((found - wanted).abs() < 1e-9, "{}: {found}", PARTS[part]);
        }
    }

    #[test]
    fn a_strange_line_is_not_taken_for_a_thread() {
        assert!(threads("12 a b c").is_none());
    }
}
