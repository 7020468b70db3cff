//! The command line, and the control socket by which it speaks to the daemon.
//!
//! ```text
//!  verb                          needs
//!  attach detach list status     the daemon, through the control socket
//!  volume create|list|show|...   the cloud
//!  doctor                        the daemon, or else its lock; the cloud as far as it can be asked
//!  export discover               a target; no daemon, no root, no kernel module
//!  supervise                     nothing; it starts the daemon, again and again
//!  daemon                        wired in `main.rs`: it joins rooms that do not know each other
//! ```
//!
//! Invariants:
//! 1. Answers go to stdout, all else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage.
//! 2. A failure is one line: what was being done, the cause, the remedy.
//! 3. A secret is read from a file, never taken from the command line.

pub mod arguments;
pub mod control;

mod cloud;
mod device;
mod discover;
mod doctor;
mod export;
mod output;
mod secret;
mod supervise;

use crate::config::Config;
use arguments::{Arguments, Verb};

/// Carries out a verb other than `daemon`, which the roof does.
///
/// # Errors
/// The chain to be joined in one line, outermost first.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let file = arguments.config.as_deref();
    match arguments.verb {
        Verb::Daemon => anyhow::bail!("the daemon is started by the program, not by its library"),
        Verb::Supervise => supervise::run(file).await,
        Verb::Attach(options) => device::attach(&Config::load_local(file)?, options).await,
        Verb::Detach(options) => device::detach(&Config::load_local(file)?, options).await,
        Verb::List(options) => device::list(&Config::load_local(file)?, options).await,
        Verb::Status(options) => device::status(&Config::load_local(file)?, options).await,
        Verb::Doctor(options) => doctor::run(&Config::load(file)?, options).await,
        Verb::Export(options) => export::run(&Config::load_local(file)?, options).await,
        Verb::Discover(options) => discover::run(&Config::load_local(file)?, options).await,
        Verb::Volume(verb) => cloud::run(&Config::load(file)?, verb).await,
    }
}
