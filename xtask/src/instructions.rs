//! `cargo xtask instructions`: what an I/O costs in instructions, so that a regression shows on a noisy machine.
//!
//! `xtask/measured/src/instructions.rs` runs twice under valgrind's callgrind, with different numbers of I/Os; the difference by
//! the difference in number is the cost of one. Of a lane it is the lane's own thread that counts, not its client or its
//! target. `docs/instructions.md` is the record that a run is compared with. Only user space is counted: what the
//! kernel does is not here.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::host;
use crate::house::{self, Built};
use crate::run::Run;
use crate::ui::{self, Stage};

#[derive(Args)]
pub(crate) struct Options {
    /// Write the figures to docs/instructions.md; what grew is explained in the commit that records it.
    #[arg(long)]
    record: bool,
}

const DOCUMENT: &str = "docs/instructions.md";
/// Beyond what the order of threads and the places of memory do to the count (seen: 1 %).
const GROWTH_MAX: f64 = 1.03;
/// I/Os of the shorter run: enough that one more turn of the loop here or there does not show.
const COUNT: u32 = 640;
/// valgrind counts each step of a `rep movsb`, so a copied byte as an instruction: glibc is told to copy with vectors.
const NO_REP: &str =
    "glibc.cpu.x86_rep_movsb_threshold=1000000000:glibc.cpu.x86_rep_stosb_threshold=1000000000";
/// Of one run under valgrind, on a busy machine.
const LIMIT: Duration = Duration::from_mins(3);

/// What the program is asked for.
struct Work {
    what: &'static str,
    direction: &'static str,
    bytes: u32,
    depth: u32,
}

const fn work(what: &'static str, direction: &'static str, bytes: u32, depth: u32) -> Work {
    Work {
        what,
        direction,
        bytes,
        depth,
    }
}

const WORKS: [Work; 10] = [
    work("driver", "read", 4096, 1),
    work("driver", "read", 4096, 32),
    work("driver", "write", 4096, 1),
    work("driver", "write", 4096, 32),
    work("driver", "read", 65536, 8),
    work("lane", "read", 4096, 1),
    work("lane", "read", 4096, 32),
    work("lane", "write", 4096, 1),
    work("lane", "write", 4096, 32),
    work("lane", "read", 65536, 8),
];

impl Work {
    fn name(&self) -> String {
        let Self {
            what,
            direction,
            bytes,
            depth,
        } = self;
        format!("{what}: {direction} {} KiB, depth {depth}", bytes / 1024)
    }
}

pub(crate) async fn perform(options: &Options) -> Result<ExitCode> {
    let figures = count().await?;
    let path = house::path(DOCUMENT);
    let compiler = compiler().await?;
    if options.record {
        std::fs::write(&path, document(&figures, &compiler))
            .with_context(|| format!("write {}", path.display()))?;
        ui::line(&format!("written to {DOCUMENT}"));
        return Ok(ExitCode::SUCCESS);
    }
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let recorded = Recorded::of(&text)?;
    let mut grown = Vec::new();
    for (name, now) in &figures {
        let before = recorded.figure(name);
        let ratio = before.map(|before| now / before);
        let against = ratio.map_or_else(
            || "not recorded".to_owned(),
            |ratio| format!("{:+.1} %", (ratio - 1.0) * 100.0),
        );
        ui::line(&format!("{name:<36} {now:>10.0}  {against}"));
        if ratio.is_none_or(|ratio| ratio > GROWTH_MAX) {
            grown.push(name.as_str());
        }
    }
    if grown.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    if recorded.compiler != compiler {
        ui::line(&format!(
            "not judged: {DOCUMENT} was made with {}, this is {compiler}; `cargo xtask instructions --record` makes it anew",
            recorded.compiler
        ));
        return Ok(ExitCode::SUCCESS);
    }
    ui::line(&format!(
        "grown by more than {:.0} %, or new: {}. If it is worth it, `cargo xtask instructions --record`, and say why in the commit",
        (GROWTH_MAX - 1.0) * 100.0,
        grown.join("; ")
    ));
    Ok(ExitCode::FAILURE)
}

/// All figures: instructions an I/O.
async fn count() -> Result<Vec<(String, f64)>> {
    host::install(&[host::BUILD, host::INSTRUCTIONS]).await?;
    let stage = Stage::begin("count instructions");
    let program = Built::release(&stage).await?.program("instructions")?;
    let dir = tempfile::tempdir()?;
    let mut figures = Vec::new();
    for work in &WORKS {
        stage.note(&work.name());
        let short = run(&program, work, COUNT, dir.path()).await?;
        let long = run(&program, work, COUNT * 2, dir.path()).await?;
        figures.push((work.name(), (long - short) / f64::from(COUNT)));
    }
    stage.done(&format!("{} figures", figures.len()));
    Ok(figures)
}

/// Instructions of one run, on the thread that drives the initiator.
async fn run(program: &Path, work: &Work, count: u32, dir: &Path) -> Result<f64> {
    let out = tempfile::tempdir_in(dir)?;
    Run::new("valgrind", LIMIT)
        .args(["--tool=callgrind", "--separate-threads=yes"])
        .env("GLIBC_TUNABLES", NO_REP)
        .arg(format!("--callgrind-out-file={}/out", out.path().display()))
        .arg(program)
        .args([work.what, work.direction])
        .args([work.bytes, work.depth, count].map(|number| number.to_string()))
        .output(|_| {})
        .await
        .with_context(|| format!("count {}", work.name()))?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(out.path())? {
        let text = std::fs::read_to_string(entry?.path()).context("read callgrind's report")?;
        if drives(&text) {
            found.push(total(&text).context("callgrind's report has no totals")?);
        }
    }
    ensure!(
        found.len() == 1,
        "{}: {} threads drive the initiator",
        work.name(),
        found.len()
    );
    Ok(found[0])
}

/// Does a thread's report name the initiator's driver?
fn drives(report: &str) -> bool {
    let mut lines = report.lines();
    lines.any(|line| line.starts_with("fn=") && line.contains("iscsi::io::driver::"))
}

fn total(report: &str) -> Option<f64> {
    let mut lines = report.lines();
    let figure = lines.find_map(|line| line.strip_prefix("totals: "))?;
    figure.trim().parse().ok()
}

async fn compiler() -> Result<String> {
    let said = Run::new("rustc", Duration::from_mins(1))
        .dir(house::root())
        .arg("--version");
    Ok(said.output(|_| {}).await?.trim().to_owned())
}

fn document(figures: &[(String, f64)], compiler: &str) -> String {
    let mut text = format!(
        "# Instructions an I/O\n\n\
         Made by `cargo xtask instructions --record` with {compiler}; `cargo xtask instructions` fails when a figure has grown by more than {:.0} %.\n\
         Counted by valgrind, in user space alone, so the same on a busy machine. `driver` is the library (`Nexus`, `Driver`, the session machine) over an\n\
         invented network, with the scripted target's share in it. `lane` is the lane's thread of an export: NBD, the LUN, the library and tokio, over sockets.\n\n\
         | work | instructions |\n|---|---:|\n",
        (GROWTH_MAX - 1.0) * 100.0
    );
    for (name, figure) in figures {
        // writing to a String cannot fail
        let _ = writeln!(text, "| {name} | {figure:.0} |");
    }
    text
}

/// What the document says.
struct Recorded {
    compiler: String,
    figures: Vec<(String, f64)>,
}

impl Recorded {
    fn of(text: &str) -> Result<Self> {
        let compiler = text
            .split_once("--record` with ")
            .and_then(|(_, rest)| rest.split_once(';'))
            .with_context(|| format!("{DOCUMENT} does not say which compiler made it"))?
            .0;
        let figures = text.lines().filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            match cells.as_slice() {
                ["", name, figure, ""] => Some(((*name).to_owned(), figure.parse().ok()?)),
                _ => None,
            }
        });
        Ok(Self {
            compiler: compiler.to_owned(),
            figures: figures.collect(),
        })
    }

    fn figure(&self, name: &str) -> Option<f64> {
        let mut figures = self.figures.iter();
        figures.find_map(|(known, figure)| (known == name).then_some(*figure))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_read_again() {
        let figures = vec![("driver: read 4 KiB, depth 1".to_owned(), 1234.0)];
        let recorded = Recorded::of(&document(&figures, "rustc 1.95.0 (x)")).unwrap();
        assert_eq!(recorded.compiler, "rustc 1.95.0 (x)");
        assert_eq!(recorded.figure(&figures[0].0), Some(1234.0));
        assert_eq!(recorded.figure("lane: none"), None);
    }

    #[test]
    fn the_committed_record_has_every_figure() {
        let text = std::fs::read_to_string(house::path(DOCUMENT)).unwrap();
        let recorded = Recorded::of(&text).unwrap();
        for work in &WORKS {
            assert!(recorded.figure(&work.name()).is_some(), "{}", work.name());
        }
    }

    #[test]
    fn the_driving_thread_is_known_by_its_functions() {
        let report = "fn=(1) main\nfn=(7) iscsi::io::driver::Driver<S>::poll_completion\n1 2\ntotals: 5000\n";
        assert!(drives(report));
        assert!(!drives("fn=(1) main\ncfn=(7) iscsi::io::driver::x\n"));
        assert_eq!(total(report), Some(5000.0));
    }
}
