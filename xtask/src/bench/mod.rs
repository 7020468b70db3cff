//! `cargo xtask bench`: our own benches, then what is ours beside its peers on one target, and how it grows.
//!
//! Peers stand at the same time and take turns, so that what else the machine does falls on both; a ratio is that
//! of two runs of one round. Ratios are what the tables are for; their absolute figures belong to the machine.

mod criterion;
mod document;
mod export;
mod fio;
mod growth;
mod kernel;
mod library;
mod machine;
mod peer;
mod plot;
mod process;
mod statistics;
pub(crate) mod target;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::host;
use crate::house::{self, Built};
use crate::run::{Background, Run};
use crate::ui::{self, Stage};
use document::Section;
use target::Tgtd;

/// All that the document has a place for.
#[cfg(test)]
const SECTIONS: [&str; 8] = [
    "machine", "benches", "export", "sizes", "library", "lanes", "volumes", "kernel",
];

#[derive(Args)]
pub(crate) struct Options {
    /// Short runs, one round: shows that it works; the figures are rough.
    #[arg(long)]
    quick: bool,
    /// Rounds of the comparisons; medians are taken over them [default: 5, with --quick 1].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Only these parts.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Write tables and plots to docs/performance.md and docs/plots, each to its place.
    #[arg(long)]
    record: bool,
    /// With the part `kernel`: also say by perf where the guest's time goes in this job (rr1, rw1, rr32, rw32, sr, sw).
    #[arg(long, value_name = "JOB")]
    profile: Option<String>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// criterion's benches: parse, emit, machines, a lane over loopback.
    Benches,
    /// Our export beside qemu-nbd.
    Export,
    /// The same from 4 KiB to 4 MiB.
    Sizes,
    /// The library beside libiscsi's iscsi-perf.
    Library,
    /// One, two and four connections to the export.
    Lanes,
    /// One to 64 volumes at rest.
    Volumes,
    /// In the VM: /dev/nbdX beside the kernel's initiator.
    Kernel,
}

impl Part {
    const ALL: [Self; 7] = [
        Self::Benches,
        Self::Export,
        Self::Sizes,
        Self::Library,
        Self::Lanes,
        Self::Volumes,
        Self::Kernel,
    ];
}

/// What the parts stand on.
struct Ground {
    dir: tempfile::TempDir,
    /// The daemon's program, optimised.
    ours: PathBuf,
    /// The library's example, built as the daemon is.
    perf: PathBuf,
    peer: peer::QemuNbd,
    target: Tgtd,
    is_quick: bool,
    rounds: u32,
}

impl Ground {
    async fn make(options: &Options) -> Result<Self> {
        let peer = peer::QemuNbd::ready().await?;
        let stage = Stage::begin("build the release");
        let built = Built::release(&stage).await?;
        stage.done("");
        let dir = tempfile::Builder::new()
            .prefix("cinder-nbd-bench-")
            .tempdir()?;
        let target = Tgtd::start(dir.path()).await?;
        Ok(Self {
            ours: built.program("cinder-nbd")?,
            perf: built.program("perf")?,
            peer,
            target,
            dir,
            is_quick: options.quick,
            rounds: options.rounds.unwrap_or(if options.quick { 1 } else { 5 }),
        })
    }

    /// How long one run of a comparison takes.
    fn runtime(&self, usual: Duration) -> Duration {
        if self.is_quick {
            Duration::from_millis(700)
        } else {
            usual
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// A bridge from iSCSI to NBD under test.
struct Bridge {
    name: &'static str,
    socket: PathBuf,
    process: Background,
}

pub(crate) async fn perform(options: &Options) -> Result<()> {
    host::install(&[host::BUILD, host::BENCH]).await?;
    let ground = Ground::make(options).await?;
    let results = house::target_dir().await?.join("bench");
    std::fs::create_dir_all(&results).with_context(|| format!("create {}", results.display()))?;
    let mut sections = vec![machine::describe(&ground, options.only.is_empty())?];
    for part in Part::ALL {
        if !options.only.is_empty() && !options.only.contains(&part) {
            continue;
        }
        let section = match part {
            Part::Benches => criterion::measure(options.quick).await?,
            Part::Export => export::measure(&ground).await?,
            Part::Sizes => export::measure_sizes(&ground).await?,
            Part::Library => library::measure(&ground).await?,
            Part::Lanes => growth::measure_lanes(&ground).await?,
            Part::Volumes => growth::measure_volumes(&ground).await?,
            Part::Kernel => kernel::measure(&ground, options.profile.as_deref()).await?,
        };
        ui::line("");
        section.text.lines().for_each(ui::line);
        ui::line("");
        keep(&results, &section)?;
        // at once: a later part that fails does not take this one with it
        if options.record {
            document::record(std::slice::from_ref(&section))?;
        }
        sections.push(section);
    }
    if options.record {
        document::record(&sections[..1])?;
        ui::line(&format!("written to {} and docs/plots", document::DOCUMENT));
    }
    ui::line(&format!("kept in {}", results.display()));
    Ok(())
}

/// Among the build products, whether recorded or not.
fn keep(dir: &Path, section: &Section) -> Result<()> {
    let write = |name: String, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    write(format!("{}.md", section.name), &section.text)?;
    for chart in &section.charts {
        write(format!("{}.svg", chart.file), &chart.draw()?)?;
    }
    Ok(())
}

async fn bridge_ours(ground: &Ground, name: &str) -> Result<Bridge> {
    let socket = ground.path().join(format!("{name}.sock"));
    let process = Run::new(&ground.ours, Duration::MAX)
        .args(["export", "--portal", &ground.target.portal()])
        .args(["--target", target::IQN, "--lun", target::LUN, "--socket"])
        .arg(&socket)
        .background(&ground.path().join(format!("{name}.log")))?;
    bridge("cinder-nbd", socket, process).await
}

async fn bridge_peer(ground: &Ground) -> Result<Bridge> {
    let socket = ground.path().join("qemu.sock");
    let process = ground
        .peer
        .run()
        .args(["--persistent", "--shared=8", "--format=raw"])
        .args(["--cache=none", "--aio=threads", "--socket"])
        .arg(&socket)
        .arg(format!(
            "iscsi://{}/{}/{}",
            ground.target.portal(),
            target::IQN,
            target::LUN
        ))
        .background(&ground.path().join("qemu.log"))?;
    bridge("qemu-nbd", socket, process).await
}

/// Waits until the bridge listens.
async fn bridge(name: &'static str, socket: PathBuf, mut process: Background) -> Result<Bridge> {
    for _ in 0..400 {
        process.is_alive()?;
        if socket.exists() {
            return Ok(Bridge {
                name,
                socket,
                process,
            });
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    anyhow::bail!("{name} made no socket within 10 s")
}
