//! The few system calls the daemon makes itself: mounts, block devices, sockets, the kernel's NBD
//! driver.
//!
//! A room of its own so that `unsafe` has one address: everything here is safe to call, and no
//! other room may hold an `unsafe` block. Most calls go through `rustix`, whose wrappers are safe;
//! what is left says why.
//!
//! What it does not do: decide. When a device may be flushed, unmounted or disconnected is
//! `volume`'s matter.

pub mod blkdev;
pub mod freeze;
pub mod holder;
pub mod inherited;
pub mod listener;
pub mod memory;
pub mod mount;
pub mod netlink;
pub mod notify;
pub mod process;
pub mod socket;
