//! An NBD export: handshake and transmission as machines, the lane that drives them, the listeners of an export, and
//! the kernel's device.
//!
//! A room of its own because everything that speaks NBD is here, and nothing here knows what serves the blocks:
//! `block::Backend` is all it sees of that.
//!
//! ```text
//!  export (strangers)      kernel (netlink, sysfs)
//!  endpoint  \                 |
//!  handshake   \               |
//!               lane (one thread, one front, one backend; vigil)
//!               /   \
//!   connection (a client's)   link (the kernel's)      two fronts
//!         stream (tls)          journal
//!                \             /
//!           transmission, reply, pool
//!                     |
//!                    wire
//! ```

mod connection;
mod courtesy;
mod endpoint;
mod error;
mod export;
mod front;
pub mod handshake;
mod journal;
mod kernel;
mod lane;
mod link;
mod pool;
mod reclaim;
mod reply;
mod stream;
#[cfg(test)]
mod tests;
mod thread;
mod tls;
pub mod transmission;
mod vigil;
pub mod wire;

pub use connection::End;
pub use endpoint::Endpoint;
pub use error::Error;
pub use export::{Export, ExportOptions, OpenError, serve_export, serve_single};
pub use kernel::{DeviceParams, Keeper, Keepsake, KernelDevice, LaneRemains};
pub use reclaim::prepare_process;
pub use tls::{Tls, TlsError};
pub use vigil::set_busy_poll;
