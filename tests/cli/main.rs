//! The command line from outside: the built program, its exit codes, its one line, and what it
//! leaves behind.
//!
//! One test program for all verbs, so that they share `bed`.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in what it stands on"
)]

mod bed;
mod cloud;
mod filesystems;
mod frozen;
mod kernel;
mod supervise;
mod target;
mod usage;
mod volumes;
