//! `cargo xtask test`: installs what the tests need, runs all of them, says at the end what passed.
//!
//! A suite is a row of checks. A check that fails does not stop the others; a suite whose ground cannot be
//! made (no image, no cloud) fails as one check. What a test says it cannot do here is repeated at the end:
//! it did not pass in silence.

mod chaos;
mod cinder;
mod lint;
mod summary;
mod unit;
mod vm;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};

pub(crate) use summary::Summary;

use crate::host;
use crate::ui::{self, Stage};

#[derive(Args)]
pub(crate) struct Options {
    /// Only these suites, separated by commas.
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Suite>,
    /// Says what there is and runs nothing.
    #[arg(long)]
    list: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    Fmt,
    Lint,
    Unit,
    Chaos,
    Vm,
    Cinder,
}

impl Suite {
    /// In order: what is quick and fails often comes first.
    const ALL: [Self; 6] = [
        Self::Fmt,
        Self::Lint,
        Self::Unit,
        Self::Chaos,
        Self::Vm,
        Self::Cinder,
    ];

    fn about(self) -> &'static str {
        match self {
            Self::Fmt => "fmt     rustfmt finds nothing to do",
            Self::Lint => {
                "lint    clippy and rustdoc without a warning; the core without tokio; cargo-deny: licences, sources, bans"
            }
            Self::Unit => {
                "unit    unit, property and interop tests on the host (tgt, libnbd, qemu, fio as judges)"
            }
            Self::Chaos => {
                "chaos   fio over an export whose network and target fail again and again (tgt, fio)"
            }
            Self::Vm => {
                "vm      a real kernel (NBD, iSCSI target) and a real Docker engine, in a VM that is made for it"
            }
            Self::Cinder => {
                "cinder  a real Keystone and Cinder on loopback, also from inside the VM"
            }
        }
    }
}

/// Runs the suites; the exit code says whether all passed.
pub(crate) async fn perform(options: &Options) -> Result<ExitCode> {
    if options.list {
        for suite in Suite::ALL {
            ui::line(suite.about());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = |suite: Suite| options.only.is_empty() || options.only.contains(&suite);
    let mut packages = vec![host::BUILD];
    if chosen(Suite::Unit) || chosen(Suite::Chaos) {
        packages.push(host::INTEROP);
    }
    if chosen(Suite::Vm) || chosen(Suite::Cinder) {
        packages.push(host::VM);
    }
    host::install(&packages).await?;

    let mut summary = Summary::new();
    for suite in Suite::ALL.into_iter().filter(|suite| chosen(*suite)) {
        match suite {
            Suite::Fmt => lint::fmt(&mut summary).await,
            Suite::Lint => lint::lint(&mut summary).await,
            Suite::Unit => unit::unit(&mut summary).await,
            Suite::Chaos => chaos::chaos(&mut summary).await,
            Suite::Vm => vm::vm(&mut summary).await,
            Suite::Cinder => cinder::cinder(&mut summary).await,
        }
    }
    Ok(summary.close())
}

/// A program as one check: its output is shown when it fails.
async fn check(summary: &mut Summary, name: &str, run: crate::run::Run) {
    let stage = Stage::begin(name);
    let ended = run.output(|line| stage.note(line)).await;
    summary.take(stage, ended.map(|_| summary::Tally::one()));
}

/// Time for a check that compiles everything, on two slow cores.
const COMPILE_LIMIT: Duration = Duration::from_hours(1);
