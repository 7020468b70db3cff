//! Async handles for users of the library: `discover`, `Session`, `Disk`.
//!
//! ```no_run
//! use iscsi::client::Disk;
//! use iscsi::proto::SessionParams;
//!
//! # async fn example(params: SessionParams) -> Result<(), iscsi::client::Error> {
//! let disk = Disk::open(&params, 1).await?;
//! let first = disk.read(iscsi::scsi::Lba(0), iscsi::scsi::Blocks(8)).await?;
//! println!("{} bytes of {}", first.len(), disk.info().capacity.bytes().0);
//! disk.close().await
//! # }
//! ```
//!
//! Whoever wants no task and no channel between himself and the wire polls an `io::Driver` and uses `probe` alone:
//! the daemon's lanes do.

mod builder;
mod disk;
mod error;
mod execute;
mod inventory;
mod owner;
mod patience;
mod probe;
mod reservations;
mod session;
mod unit;

pub use crate::io::discover;
pub use builder::DiskBuilder;
pub use disk::Disk;
pub use error::Error;
pub use execute::Execute;
pub use inventory::{report_luns, target_port_groups};
pub use owner::Commands;
pub use patience::Patience;
pub use probe::{LunInfo, WriteSameLimits, probe};
pub use reservations::Reservations;
pub use session::Session;
pub use unit::Compared;
