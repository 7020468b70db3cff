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

/// What cargo made: executables by the name of their target.
pub(crate) struct Built(Vec<Executable>);

#[derive(Debug, PartialEq, Eq)]
struct Executable {
    name: String,
    is_test: bool,
    path: PathBuf,
}

impl Built {
    /// The daemon, the demo and what is measured, optimised. One set of arguments for all who want them: another selection of
    /// packages would have other features of their dependencies, and compile those again.
    pub(crate) async fn release(stage: &Stage) -> Result<Self> {
        Self::of(
            &[
                "build",
                "--release",
                "-p",
                "cinder-nbd",
                "-p",
                "demo",
                "-p",
                "measured",
                "--bins",
            ],
            stage,
        )
        .await
    }

    /// All programs and tests as `cargo test --workspace` makes them.
    pub(crate) async fn all(stage: &Stage) -> Result<Self> {
        Self::of(&["build", "--workspace", "--bins", "--tests"], stage).await
    }

    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        self.find(name, false)
    }

    pub(crate) fn test(&self, name: &str) -> Result<PathBuf> {
        self.find(name, true)
    }

    async fn of(args: &[&str], stage: &Stage) -> Result<Self> {
        let mut found = Vec::new();
        let ended = cargo(BUILD_LIMIT)
            .args(args)
            .args(["--message-format", "json-render-diagnostics"])
            .ended(|line| match message(line) {
                Message::Made(executable) => found.push(executable),
                Message::Other => {}
                Message::Text => stage.note(line),
            })
            .await?;
        if !ended.status.success() {
            let said = ended
                .output
                .lines()
                .filter(|line| message(line) == Message::Text);
            let said: Vec<&str> = said.collect();
            bail!(
                "cargo {}: {}\n{}",
                args.join(" "),
                ended.status,
                tail(&said.join("\n"))
            );
        }
        Ok(Self(found))
    }

    fn find(&self, name: &str, is_test: bool) -> Result<PathBuf> {
        let mut all = self.0.iter();
        let found = all.find(|made| made.name == name && made.is_test == is_test);
        found
            .map(|made| made.path.clone())
            .with_context(|| format!("cargo built no {name}"))
    }
}

/// A line of cargo's output.
#[derive(Debug, PartialEq, Eq)]
enum Message {
    /// For people.
    Text,
    /// For machines: an executable was made.
    Made(Executable),
    /// For machines, nothing of ours.
    Other,
}

fn message(line: &str) -> Message {
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
        (Some(name), Some(path)) => Message::Made(Executable {
            name: name.to_owned(),
            is_test: message["profile"]["test"].as_bool().unwrap_or_default(),
            path: path.into(),
        }),
        _ => Message::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_told_from_other_messages() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"x"},"profile":{"test":true},
            "executable":"/t/x"}"#;
        let made = Executable {
            name: "x".to_owned(),
            is_test: true,
            path: "/t/x".into(),
        };
        assert_eq!(message(&line.replace('\n', "")), Message::Made(made));
        assert_eq!(
            message(r#"{"reason":"build-finished","success":true}"#),
            Message::Other
        );
        assert_eq!(message("   Compiling x v0.1.0"), Message::Text);
    }

    #[test]
    fn a_program_and_its_unit_tests_are_two_executables() {
        let made = |is_test, path: &str| Executable {
            name: "x".into(),
            is_test,
            path: path.into(),
        };
        let built = Built(vec![made(true, "/tests"), made(false, "/program")]);
        assert_eq!(built.program("x").unwrap(), Path::new("/program"));
        assert_eq!(built.test("x").unwrap(), Path::new("/tests"));
        assert!(built.program("y").is_err());
    }
}
