//! Names of logs, and where they go: plain lines on stderr, chosen by `CINDER_NBD_LOG` (else `RUST_LOG`).
//!
//! Invariants:
//! 1. stdout belongs to the answers of the command line; nothing is logged there.
//! 2. No secret is ever given to a log: types that hold one print `[secret]`.
//!
//! Figures (Prometheus) are a later room of this floor.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// The variable that says what is logged, in `tracing`'s words: `debug`, `warn,cinder_nbd::cinder=trace`.
pub const VARIABLE: &str = "CINDER_NBD_LOG";

/// Who is speaking: a daemon reports what it does, a command only what is amiss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    /// Runs for days: times and `info` lines.
    Daemon,
    /// Runs once: warnings, without times.
    Command,
}

/// Starts logging. A second call, as in tests, changes nothing.
pub fn start(speaker: Speaker) {
    let directives = [VARIABLE, "RUST_LOG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok());
    let (filter, rejected) = filter(directives.as_deref(), speaker);
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match speaker {
        Speaker::Daemon => lines.try_init().is_ok(),
        Speaker::Command => lines.without_time().with_target(false).try_init().is_ok(),
    };
    if let (true, Some(rejected)) = (started, rejected) {
        tracing::warn!("{VARIABLE} is ignored: {rejected}; try {VARIABLE}=debug");
    }
}

/// The filter, and what is wrong with the words if they are not understood.
fn filter(directives: Option<&str>, speaker: Speaker) -> (EnvFilter, Option<String>) {
    let default = match speaker {
        Speaker::Daemon => "info",
        Speaker::Command => "warn",
    };
    match directives
        .filter(|text| !text.is_empty())
        .map(EnvFilter::try_new)
    {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(default), Some(error.to_string())),
        None => (EnvFilter::new(default), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_warns_and_a_daemon_informs() {
        assert_eq!(filter(None, Speaker::Command).0.to_string(), "warn");
        assert_eq!(filter(Some(""), Speaker::Daemon).0.to_string(), "info");
    }

    #[test]
    fn words_not_understood_are_told_and_the_default_stands() {
        let (filter, rejected) = filter(Some("cinder_nbd=loudly"), Speaker::Daemon);
        assert_eq!(filter.to_string(), "info");
        assert!(rejected.is_some());
    }
}
