//! The demo itself. A program of its own, so that `xtask` stays quick to build and this one can run as root, on
//! the host or inside the VM.
//!
//! The roof: arguments, signals, exit status. A signal drops what is under way, and its guards undo it.

mod bed;
mod daemon;
mod faults;
mod play;
mod plugin;
mod story;
mod traces;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(about)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show the main job from the first volume to an empty house. Needs root and a kernel with nbd.
    Play {
        /// The `cinder-nbd` program to show.
        #[arg(long)]
        daemon: PathBuf,
    },
    /// Serve the stand-in for Keystone, Cinder and the iSCSI target until a signal comes.
    Serve {
        /// Where to write the `OS_*` variables, as shell assignments.
        #[arg(long)]
        environment: PathBuf,
        /// A named pipe to take faults from, a line each: `delay SECONDS TIMES METHOD ROUTE`, `clear`.
        #[arg(long)]
        faults: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let verb = Arguments::parse().verb;
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("demo: start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(until_signal(verb)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn until_signal(verb: Verb) -> Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let serves = matches!(verb, Verb::Serve { .. });
    tokio::select! {
        ended = perform(verb) => return ended.map(|()| ExitCode::SUCCESS),
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(if serves {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(130)
    })
}

async fn perform(verb: Verb) -> Result<()> {
    match verb {
        Verb::Play { daemon } => play::play(&daemon).await,
        Verb::Serve {
            environment,
            faults,
        } => bed::serve(&environment, faults.as_deref()).await,
    }
}
