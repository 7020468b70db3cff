//! Everything a developer or newcomer runs: `cargo xtask demo | test | bench | instructions | vm | fuzz | simulate | conformance`.
//!
//! The roof of this program: arguments, signals, exit status. On Ctrl-C or SIGTERM the running task is
//! dropped, and with it every process, VM and folder it had made.

mod bench;
mod conformance;
mod demo;
mod fuzz;
mod host;
mod house;
mod instructions;
mod run;
mod simulate;
mod test;
mod ui;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about,
    max_term_width = 100
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build everything and show the main job on this machine, or in a VM where its kernel has no nbd.
    Demo {
        /// In the VM in any case.
        #[arg(long)]
        vm: bool,
    },
    /// Run all tests, after installing what they need.
    Test(test::Options),
    /// Run the benches, and our export beside qemu-nbd on one target.
    Bench(bench::Options),
    /// Count what an I/O costs in instructions, and compare with docs/instructions.md.
    Instructions(instructions::Options),
    /// Throw bytes at all that takes a stranger's bytes apart, after installing cargo-fuzz if need be.
    Fuzz(fuzz::Options),
    /// Run schedules of the simulation in invented time: one seed again, or as many as hours hold.
    Simulate(simulate::Options),
    /// Make docs/conformance.md of the checklist and the tags in the sources.
    Conformance,
    /// Make the guest image if need be, boot it, and run a shell script in it.
    Vm {
        /// The script; without it only the image is made.
        script: Option<PathBuf>,
        /// Host-built programs to put on the script's path.
        #[arg(long)]
        program: Vec<PathBuf>,
        /// Seconds the script may take.
        #[arg(long, default_value_t = 300)]
        seconds: u64,
        /// Give the guest a network; the host's loopback is 10.0.2.2 in it.
        #[arg(long)]
        network: bool,
        /// Where to keep what the script leaves in $OUT, and the kernel log.
        #[arg(long)]
        keep: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // one thread: a child's parent-death signal is bound to the thread that made it
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("xtask: start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(until_signal(perform(arguments.verb)));
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn perform(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Demo { vm } => demo::perform(vm).await.map(|()| ExitCode::SUCCESS),
        Verb::Test(options) => test::perform(&options).await,
        Verb::Bench(options) => bench::perform(&options).await.map(|()| ExitCode::SUCCESS),
        Verb::Instructions(options) => instructions::perform(&options).await,
        Verb::Simulate(options) => simulate::perform(&options).await,
        Verb::Fuzz(options) => fuzz::perform(&options).await,
        Verb::Conformance => write_conformance(),
        Verb::Vm {
            script,
            program,
            seconds,
            network,
            keep,
        } => {
            let image = vm::Image::ready().await?;
            let Some(script) = script else {
                return Ok(ExitCode::SUCCESS);
            };
            let text = std::fs::read_to_string(&script)
                .with_context(|| format!("read {}", script.display()))?;
            let mut job = vm::Job::new(text, Duration::from_secs(seconds));
            for path in &program {
                let name = path.file_name().and_then(|name| name.to_str());
                job = job.program(name.context("a program needs a name")?, path);
            }
            if network {
                job = job.network();
            }
            if let Some(dir) = keep {
                job = job.keep(dir);
            }
            let outcome = job.run(&image, ui::line).await?;
            Ok(u8::try_from(outcome.status).map_or(ExitCode::FAILURE, ExitCode::from))
        }
    }
}

/// A document that lacks something is written all the same; what it lacks is said.
fn write_conformance() -> Result<ExitCode> {
    let made = conformance::make(house::root()).context("read the sources")?;
    let path = house::path(conformance::DOCUMENT);
    std::fs::write(&path, made.document).with_context(|| format!("write {}", path.display()))?;
    for complaint in &made.complaints {
        ui::line(complaint);
    }
    Ok(if made.complaints.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs the task until it ends or a signal tells us to end; then the task is dropped.
async fn until_signal(task: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    let number = tokio::select! {
        ended = task => return ended,
        _ = interrupt.recv() => 2,
        _ = terminate.recv() => 15,
        _ = hangup.recv() => 1,
    };
    eprintln!("xtask: interrupted; everything started here has been ended");
    Ok(ExitCode::from(128 + number))
}
