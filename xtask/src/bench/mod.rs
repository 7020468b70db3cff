//! `cargo xtask bench`: our own benches, then our export beside `qemu-nbd` on one target.
//!
//! Both bridges stand at the same time and take turns, so that what else the machine does falls on both.
//! Ratios of one run are what the table is for; its absolute figures belong to the machine.

mod fio;
mod peer;
mod table;
pub(crate) mod target;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::host;
use crate::house::{self, Built, cargo};
use crate::run::{Background, Run};
use crate::ui::{self, Stage};
use fio::{JOBS, Sample};
use target::Tgtd;

#[derive(Args)]
pub(crate) struct Options {
    /// Short runs: shows that it works; the figures are rough.
    #[arg(long)]
    quick: bool,
    /// Rounds of the comparison; medians are taken over them.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only the comparison, without the criterion benches.
    #[arg(long)]
    table_only: bool,
}

/// A bridge from iSCSI to NBD under test.
struct Bridge {
    name: &'static str,
    socket: PathBuf,
    process: Background,
}

pub(crate) async fn perform(options: &Options) -> Result<()> {
    host::install(&[host::BUILD, host::BENCH]).await?;
    let results = house::target_dir().await?.join("bench");
    std::fs::create_dir_all(&results).with_context(|| format!("create {}", results.display()))?;
    if !options.table_only {
        criterion(options.quick).await?;
    }
    let stage = Stage::begin("build the release");
    let built = Built::release(&stage).await?;
    stage.done("");
    let ours = built.program("cinder-nbd")?;
    let peer = peer::QemuNbd::ready().await?;
    let dir = tempfile::Builder::new()
        .prefix("cinder-nbd-bench-")
        .tempdir()?;
    let target = Tgtd::start(dir.path()).await?;
    let bridges = [
        bridge_ours(&ours, &target, dir.path()).await?,
        bridge_peer(&peer, &target, dir.path()).await?,
    ];
    let samples = compare(options, &bridges, dir.path()).await?;
    let text = table::render(&samples, options.rounds, &peer.version, target::ABOUT);
    let path = results.join("table.md");
    std::fs::write(&path, &text).with_context(|| format!("write {}", path.display()))?;
    ui::line("");
    text.lines().for_each(ui::line);
    ui::line(&format!("\nkept in {}", path.display()));
    Ok(())
}

async fn criterion(quick: bool) -> Result<()> {
    let stage = Stage::begin("criterion benches");
    let mut run = cargo(house::BUILD_LIMIT).args(["bench", "-p", "cinder-nbd", "--benches", "--"]);
    if quick {
        run = run.arg("--quick");
    }
    // a result takes two lines when its name is long
    let mut name = String::new();
    run.output(|line| {
        stage.note(line);
        if line.contains("time:") || line.contains("thrpt:") {
            let own = !line.starts_with(' ');
            stage.line(&if own {
                line.to_owned()
            } else {
                format!("{name} {}", line.trim())
            });
        }
        if line.starts_with(|first: char| first.is_ascii_alphanumeric()) {
            line.split_whitespace()
                .next()
                .unwrap_or_default()
                .clone_into(&mut name);
        }
    })
    .await?;
    stage.done("");
    Ok(())
}

/// All jobs on both bridges, in turns; the order changes each round.
async fn compare(options: &Options, bridges: &[Bridge; 2], dir: &Path) -> Result<Vec<Sample>> {
    let runtime = Duration::from_secs(if options.quick { 1 } else { 5 });
    let mut samples = Vec::new();
    let stage = Stage::begin("compare with qemu-nbd");
    for bridge in bridges {
        // what is set up at first use is not what we measure
        fio::measure(&JOBS[2], bridge, dir, Duration::from_secs(1)).await?;
    }
    for round in 0..options.rounds {
        for job in JOBS {
            let mut order: Vec<&Bridge> = bridges.iter().collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for bridge in order {
                stage.note(&format!(
                    "round {} of {}: {}, {}",
                    round + 1,
                    options.rounds,
                    job.name,
                    bridge.name
                ));
                samples.push(fio::measure(job, bridge, dir, runtime).await?);
            }
        }
    }
    stage.done(&format!(
        "{} runs of {} s",
        samples.len(),
        runtime.as_secs()
    ));
    Ok(samples)
}

async fn bridge_ours(program: &Path, target: &Tgtd, dir: &Path) -> Result<Bridge> {
    let socket = dir.join("ours.sock");
    let process = Run::new(program, Duration::MAX)
        .args([
            "export",
            "--portal",
            &target.portal(),
            "--target",
            target::IQN,
        ])
        .args(["--lun", target::LUN, "--socket"])
        .arg(&socket)
        .background(&dir.join("ours.log"))?;
    bridge("cinder-nbd", socket, process).await
}

async fn bridge_peer(peer: &peer::QemuNbd, target: &Tgtd, dir: &Path) -> Result<Bridge> {
    let socket = dir.join("qemu.sock");
    let process = peer
        .run()
        .args([
            "--persistent",
            "--shared=8",
            "--format=raw",
            "--cache=none",
            "--aio=threads",
        ])
        .arg("--socket")
        .arg(&socket)
        .arg(format!(
            "iscsi://{}/{}/{}",
            target.portal(),
            target::IQN,
            target::LUN
        ))
        .background(&dir.join("qemu.log"))?;
    bridge("qemu-nbd", socket, process).await
}

/// Waits until the bridge listens.
async fn bridge(name: &'static str, socket: PathBuf, mut process: Background) -> Result<Bridge> {
    for _ in 0..200 {
        process.is_alive()?;
        if socket.exists() {
            return Ok(Bridge {
                name,
                socket,
                process,
            });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("{name} made no socket within 10 s")
}
