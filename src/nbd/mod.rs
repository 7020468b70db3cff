//! An NBD export: handshake and transmission as machines, the lane that drives them, the listener of an export on a
//! Unix socket, and the kernel's device.
//!
//! A room of its own because everything that speaks NBD is here, and nothing here knows what serves the blocks:
//! `block::Backend` is all it sees of that.
//!
//! ```text
//!  export (strangers)      kernel (netlink, sysfs)
//!      |   \                   |
//!  handshake \                 |
//!               lane (one thread, one front, one backend)
//!                 |
//!             connection (a front)
//!             |      |      \
//!    transmission  stream   pool
//!             |
//!            wire
//! ```

mod connection;
mod error;
mod export;
mod front;
pub mod handshake;
mod journal;
mod kernel;
mod lane;
mod link;
mod pool;
mod stream;
mod thread;
pub mod transmission;
pub mod wire;

pub use connection::End;
pub use error::Error;
pub use export::{ExportOptions, OpenError, serve_export};
pub use kernel::{DeviceParams, Keeper, Keepsake, KernelDevice, LaneRemains};
