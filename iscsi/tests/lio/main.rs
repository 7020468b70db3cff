//! The driver against the Linux kernel's target (LIO), inside the VM of the test bed (`CINDER_NBD_IN_VM=1`).
//!
//! Source: `support::lio`. Elsewhere each test says that it cannot run: making targets in a developer's own kernel is
//! not a test's business.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and so do its helpers"
)]

mod bed;
mod commands;
mod life;
mod load;
mod login;
mod transfer;
mod unit;
