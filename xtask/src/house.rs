//! The repository and its build products: where they are, and how cargo makes them.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::run::{Run, tail};
use crate::ui::Stage;

/// A full build on two slow cores with a cold cache, with room to spare.
pub(crate) const BUILD_LIMIT: Duration = Duration::from_hours(1);

/// The repository's root: cargo tells where it runs us from; run without it, we were built there.
pub(crate) fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let told = std::env::var_os("CARGO_MANIFEST_DIR");
        let xtask = told.map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        xtask
            .parent()
            .expect("xtask is a folder of the repository")
            .to_owned()
    });
    &ROOT
}

/// A file or folder of the repository.
pub(crate) fn path(relative: &str) -> PathBuf {
    root().join(relative)
}

/// cargo itself, the one that runs us.
pub(crate) fn cargo(limit: Duration) -> Run {
    Run::new(
        std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
        limit,
    )
    .dir(root())
}

/// Where build products go.
pub(crate) async fn target_dir() -> Result<PathBuf> {
    let output = cargo(Duration::from_mins(2))
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output(|_| {})
        .await?;
    let metadata = output
        .lines()
        .find_map(|line| serde_json::from_str::<Value>(line).ok())
        .context("cargo metadata answered without JSON")?;
    let dir = metadata["target_directory"]
        .as_str()
        .context("cargo metadata names no target")?;
    Ok(dir.into())
}

/// Where the beds keep what is made once: `$CINDER_NBD_BED_DIR`, else a folder among the build products.
pub(crate) async fn bed_dir() -> Result<PathBuf> {
    let dir = match std::env::var_os("CINDER_NBD_BED_DIR") {
        Some(dir) => std::path::absolute(dir).context("CINDER_NBD_BED_DIR")?,
        None => target_dir().await?.join("bed"),
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

/// Builds and gives back the path of each executable, by target name.
pub(crate) async fn build(args: &[&str], stage: &Stage) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let ended = cargo(BUILD_LIMIT)
        .args(args)
        .args(["--message-format", "json-render-diagnostics"])
        .ended(|line| match artefact(line) {
            Message::Executable(name, path) => found.push((name, path)),
            Message::Other => {}
            Message::Text => stage.note(line),
        })
        .await?;
    if !ended.status.success() {
        let said: Vec<&str> = ended
            .output
            .lines()
            .filter(|line| artefact(line) == Message::Text)
            .collect();
        bail!(
            "cargo {}: {}\n{}",
            args.join(" "),
            ended.status,
            tail(&said.join("\n"))
        );
    }
    Ok(found)
}

/// One executable out of what `build` found.
pub(crate) fn executable(built: &[(String, PathBuf)], name: &str) -> Result<PathBuf> {
    let found = built.iter().find(|(target, _)| target == name);
    found
        .map(|(_, path)| path.clone())
        .with_context(|| format!("cargo built no {name}"))
}

/// A line of cargo's output.
#[derive(Debug, PartialEq, Eq)]
enum Message {
    /// For people.
    Text,
    /// For machines: an executable was made, under this target name.
    Executable(String, PathBuf),
    /// For machines, nothing of ours.
    Other,
}

fn artefact(line: &str) -> Message {
    let Some(message) = line
        .starts_with('{')
        .then(|| serde_json::from_str::<Value>(line))
    else {
        return Message::Text;
    };
    let Ok(message) = message else {
        return Message::Text;
    };
    match (
        message["target"]["name"].as_str(),
        message["executable"].as_str(),
    ) {
        (Some(name), Some(path)) => Message::Executable(name.to_owned(), path.into()),
        _ => Message::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_told_from_other_messages() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"x"},"executable":"/t/x"}"#;
        assert_eq!(
            artefact(line),
            Message::Executable("x".to_owned(), "/t/x".into())
        );
        assert_eq!(
            artefact(r#"{"reason":"build-finished","success":true}"#),
            Message::Other
        );
        assert_eq!(artefact("   Compiling x v0.1.0"), Message::Text);
    }
}
