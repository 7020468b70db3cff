//! The command line from outside: the built program, its exit codes, its one line, and what it leaves behind.
//!
//! One test program for all verbs, so that they share `bed`.

mod bed;
mod cloud;
mod kernel;
mod target;
mod usage;
