//! No secret is in anything that is written, at the highest verbosity and through every kind of failure: log, answers,
//! errors, files, command lines, environments.
//!
//! Two runs: `engine`, the daemon's parts in this process, which attach and mount where the kernel has no NBD, and
//! `program`, the built program as a user runs it. Both look for password, application credential, tokens and CHAP
//! secrets in all the forms of `search`.
//!
//! What is meant to hold a secret, and is passed over if its mode is 0600: `sessions/ID.json` beneath the runtime
//! directory, and what the user has written: clouds.yaml, `[cloud]` of the configuration, files of secrets.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in what it stands on"
)]

#[expect(dead_code, reason = "shared with the tests of the command line")]
#[path = "../cli/bed.rs"]
mod bed;
mod engine;
mod host;
mod log;
mod program;
mod search;

/// Characters that every way of writing treats in its own way.
const PASSWORD: &str = "p@ss w\"rd<&%+/\\12'xyz";
/// Of a target that no cloud knows of.
const CHAP_SECRET: &str = "a-chap secret/+\"<16";
const WRONG_CHAP_SECRET: &str = "quite \"another\" secret";
const AUTH_KEY: &str = "the&key of<a>transfer";
/// What is logged when the target is away for more than one attempt.
const LOGIN_FAILED: &str = "an attempt to log in again failed";
const IQN: &str = "iqn.2026-11.example:disk";

#[track_caller]
fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}
