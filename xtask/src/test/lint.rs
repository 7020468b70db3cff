//! Checks that run no code of ours: format, lints, documentation, dependencies.

use std::time::Duration;

use super::{COMPILE_LIMIT, Summary, check};
use crate::house::{self, cargo};
use crate::run::Run;
use crate::ui::Stage;

pub(super) async fn fmt(summary: &mut Summary) {
    let run =
        cargo(Duration::from_mins(2)).args(["fmt", "--all", "--check", "--", "--color", "never"]);
    check(summary, "rustfmt", run).await;
}

pub(super) async fn lint(summary: &mut Summary) {
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    check(summary, "clippy", cargo(COMPILE_LIMIT).args(clippy)).await;
    // The machines alone, for whoever brings sockets and a clock of his own.
    let core = ["check", "-p", "iscsi", "--no-default-features"];
    let core = cargo(COMPILE_LIMIT)
        .args(core)
        .env("RUSTFLAGS", "-D warnings")
        .env("CARGO_TARGET_DIR", house::root().join("target/core"));
    check(summary, "iscsi without tokio", core).await;
    let doc = [
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ];
    let doc = cargo(COMPILE_LIMIT)
        .args(doc)
        .env("RUSTDOCFLAGS", "-D warnings");
    check(summary, "rustdoc", doc).await;
    deny(summary).await;
}

/// Licences, sources and duplicates need the lock file alone; advisories need their database, thus a network.
async fn deny(summary: &mut Summary) {
    let Some(program) = deny_program(summary).await else {
        return;
    };
    let run = |what: &[&str]| {
        Run::new(&program, Duration::from_mins(10))
            .dir(house::root())
            .arg("check")
            .args(what)
    };
    check(
        summary,
        "deny licences sources bans",
        run(&["licenses", "sources", "bans"]),
    )
    .await;
    let stage = Stage::begin("deny advisories");
    match run(&["advisories"]).ended(|line| stage.note(line)).await {
        Ok(ended) if !ended.status.success() && ended.output.contains("failed to fetch") => {
            stage.quietly();
            summary
                .remark("deny advisories: the database cannot be fetched from here; not checked");
        }
        Ok(ended) if ended.status.success() => {
            summary.take(stage, Ok(super::summary::Tally::one()));
        }
        Ok(ended) => summary.take(stage, Err(anyhow::anyhow!(crate::run::tail(&ended.output)))),
        Err(error) => summary.take(stage, Err(error)),
    }
}

/// cargo-deny as installed, else built once among our own build products.
async fn deny_program(summary: &mut Summary) -> Option<std::path::PathBuf> {
    let has = Run::new("cargo-deny", Duration::from_secs(30))
        .arg("--version")
        .ended(|_| {})
        .await;
    if has.is_ok_and(|ended| ended.status.success()) {
        return Some("cargo-deny".into());
    }
    let stage = Stage::begin("build cargo-deny (once)");
    let made = async {
        let tools = house::target_dir().await?.join("tools");
        let program = tools.join("bin/cargo-deny");
        if !program.exists() {
            cargo(COMPILE_LIMIT)
                .args(["install", "cargo-deny", "--locked", "--root"])
                .arg(&tools)
                .output(|line| stage.note(line))
                .await?;
        }
        anyhow::Ok(program)
    };
    match made.await {
        Ok(program) => {
            stage.quietly();
            Some(program)
        }
        Err(error) => {
            summary.take(stage, Err(error));
            None
        }
    }
}
