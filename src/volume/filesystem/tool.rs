//! A program of the filesystem's makers, run to its end.

use std::ffi::OsStr;
use std::process::Output;
use std::time::Duration;

use crate::volume::error::{Cause, Error};

/// One program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    /// Debian's name of what brings it.
    pub(crate) package: &'static str,
    /// A run that takes longer is one whose device has stopped.
    pub(crate) limit: Duration,
}

impl Tool {
    /// Runs it, whatever it says in the end.
    ///
    /// # Errors
    /// It is missing, or took longer than its limit.
    pub(super) async fn ended<W: AsRef<OsStr>>(
        self,
        words: impl IntoIterator<Item = W>,
    ) -> Result<Output, Cause> {
        let Self {
            name,
            package,
            limit,
        } = self;
        let mut command = tokio::process::Command::new(name);
        command
            .args(words)
            .env("LC_ALL", "C")
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(limit, command.output())
            .await
            .map_err(|_| Error::Invalid {
                what: format!(
                    "{name} did not end within {} s; the kernel's log tells whether the device answers",
                    limit.as_secs()
                ),
            })?;
        Ok(output
            .map_err(|error| Error::step(format!("running {name} (package {package})"), error))?)
    }

    /// Runs it; it must succeed.
    ///
    /// # Errors
    /// As `ended`, and its own, in its words.
    pub(crate) async fn run<W: AsRef<OsStr>>(
        self,
        words: impl IntoIterator<Item = W>,
    ) -> Result<(), Cause> {
        let output = self.ended(words).await?;
        if output.status.success() {
            return Ok(());
        }
        Err(self.failed(&output).into())
    }

    /// That it failed, in its words and one line.
    pub(super) fn failed(self, output: &Output) -> Error {
        let said = if output.stderr.trim_ascii().is_empty() {
            &output.stdout
        } else {
            &output.stderr
        };
        let said = String::from_utf8_lossy(said);
        let lines: Vec<&str> = said
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        Error::Invalid {
            what: format!(
                "{} failed ({}): {}",
                self.name,
                output.status,
                lines.join("; ")
            ),
        }
    }
}
