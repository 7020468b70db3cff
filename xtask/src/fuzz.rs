//! `cargo xtask fuzz`: each target of `fuzz/` for some minutes, one after the other.
//!
//! Inputs that reach new code are collected among the build products; `--keep` takes those that are still needed into
//! the committed corpora, which `tests/fuzz_corpora.rs` replays with every ordinary test run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::host;
use crate::house::{self, BUILD_LIMIT, cargo};
use crate::run::{Run, tail};
use crate::ui::{self, Stage};

#[derive(Args)]
pub(crate) struct Options {
    /// Minutes for each target.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Only these targets, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Afterwards adds to fuzz/corpus the inputs that reach what nothing there reaches.
    #[arg(long)]
    keep: bool,
}

/// What a target's run came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    executions: u64,
    /// Edges of the program that were reached.
    coverage: u64,
    /// Inputs that each reach something of their own.
    corpus: u64,
}

/// Fuzzes; the exit code says whether nothing was found.
pub(crate) async fn perform(options: &Options) -> Result<ExitCode> {
    host::install(&[host::BUILD, host::FUZZ]).await?;
    let targets = chosen(&options.only)?;
    let fuzz = ready().await?;
    let stage = Stage::begin("build the fuzz targets");
    let built = fuzz(BUILD_LIMIT).args(["fuzz", "build"]);
    built.output(|line| stage.note(line)).await?;
    stage.done("");
    let mut found = false;
    for target in &targets {
        found |= !run(&fuzz, target, options).await?;
    }
    Ok(if found {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The targets by their sources, in order of their names.
fn chosen(only: &[String]) -> Result<Vec<String>> {
    let folder = house::path("fuzz/fuzz_targets");
    let mut targets = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
            targets.push(name.to_owned());
        }
    }
    targets.sort();
    for name in only {
        anyhow::ensure!(
            targets.contains(name),
            "no fuzz target {name}; there are {}",
            targets.join(", ")
        );
    }
    targets.retain(|name| only.is_empty() || only.contains(name));
    Ok(targets)
}

/// cargo with cargo-fuzz, as installed, else built once among our own build products.
async fn ready() -> Result<impl Fn(Duration) -> Run> {
    let tools = house::target_dir().await?.join("tools");
    let has = Run::new("cargo-fuzz", Duration::from_secs(30))
        .arg("--version")
        .ended(|_| {})
        .await;
    let installed = has.is_ok_and(|ended| ended.status.success());
    if !installed && !tools.join("bin/cargo-fuzz").exists() {
        let stage = Stage::begin("build cargo-fuzz (once)");
        cargo(BUILD_LIMIT)
            .args(["install", "cargo-fuzz", "--locked", "--root"])
            .arg(&tools)
            .output(|line| stage.note(line))
            .await?;
        stage.quietly();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = vec![tools.join("bin")];
    places.extend(std::env::split_paths(&path));
    let path = std::env::join_paths(places).context("PATH")?;
    // The sanitizers are options of a nightly compiler; this lets the house's compiler take them.
    Ok(move |limit| cargo(limit).env("RUSTC_BOOTSTRAP", "1").env("PATH", &path))
}

/// Fuzzes one target; false if something was found.
async fn run(fuzz: &impl Fn(Duration) -> Run, target: &str, options: &Options) -> Result<bool> {
    let committed = house::path("fuzz/corpus").join(target);
    let collected = house::target_dir().await?.join("fuzz-corpus").join(target);
    for folder in [&committed, &collected] {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let stage = Stage::begin(format!("fuzz {target}"));
    let seconds = options.minutes * 60;
    let limit = Duration::from_secs(seconds) + ENDING_LIMIT;
    let ended = command(fuzz(limit), target, &[&collected, &committed])
        .arg(format!("-max_total_time={seconds}"))
        .args(LIMITS)
        .ended(|line| stage.note(line))
        .await?;
    if !ended.status.success() {
        stage.line(&tail(&ended.output));
        stage.failed("found something; the input is in fuzz/artifacts");
        return Ok(false);
    }
    let tally = tally(&ended.output);
    stage.done(&format!(
        "{} executions, {} edges, {} inputs",
        tally.executions, tally.coverage, tally.corpus
    ));
    if options.keep {
        let stage = Stage::begin(format!("keep {target}"));
        // Copies from the second folder what reaches more than the first does, few and small; the first keeps its own.
        command(fuzz(BUILD_LIMIT), target, &[&committed, &collected])
            .arg("-set_cover_merge=1")
            .output(|line| stage.note(line))
            .await?;
        stage.quietly();
        ui::line(&format!("      {target}: see git status fuzz/corpus"));
    }
    Ok(true)
}

fn command(run: Run, target: &str, folders: &[&PathBuf]) -> Run {
    let folders = folders.iter().map(|folder| Path::as_os_str(folder));
    run.args(["fuzz", "run", target]).args(folders).arg("--")
}

/// Takes libFuzzer's last words apart: `#123 DONE cov: 7 ft: 9 corp: 3/12b`.
fn tally(output: &str) -> Tally {
    let mut tally = Tally::default();
    for line in output.lines().filter(|line| line.contains("DONE")) {
        let mut words = line.split_whitespace();
        let number = |word: Option<&str>| -> u64 {
            let digits = word.unwrap_or_default().trim_start_matches('#');
            let digits = digits.split('/').next().unwrap_or_default();
            digits.parse().unwrap_or_default()
        };
        tally.executions = number(words.next());
        while let Some(word) = words.next() {
            match word {
                "cov:" => tally.coverage = number(words.next()),
                "corp:" => tally.corpus = number(words.next()),
                _ => {}
            }
        }
    }
    tally
}

/// An input that takes 10 s is a loop. One allocation of 64 MiB is beyond all our named limits, the longest data
/// segment of 16 MiB included.
const LIMITS: [&str; 2] = ["-timeout=10", "-malloc_limit_mb=64"];
/// For the build's check and the last input.
const ENDING_LIMIT: Duration = Duration::from_mins(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_taken_apart() {
        let output =
            "#2\tINITED cov: 5\n#1234\tDONE   cov: 812 ft: 2034 corp: 332/41Kb lim: 4096\nx";
        let told = Tally {
            executions: 1234,
            coverage: 812,
            corpus: 332,
        };
        assert_eq!(tally(output), told);
        assert_eq!(tally("killed"), Tally::default());
    }
}
