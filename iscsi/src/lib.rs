//! An iSCSI initiator (RFC 7143) in pure Rust: machines without I/O, and a tokio driver over them.
//!
//! # A tour
//!
//! A disk, from a handful of facts. It outlives its sessions: when the target goes away, calls wait, and go on after a
//! new login, if the logical unit is still the same one.
//!
//! ```no_run
//! use iscsi::client::Disk;
//! use iscsi::scsi::{Blocks, Lba};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let disk = Disk::builder(
//!     "iqn.2026-11.org.example:host".parse()?,
//!     "192.0.2.10:3260".parse()?,
//!     "iqn.2010-10.org.openstack:volume-1".parse()?,
//!     1,
//! )
//! .open()
//! .await?;
//! println!("{}", disk.info());
//! let data = disk.read(Lba(0), Blocks(8)).await?;
//! disk.write(Lba(8), data.freeze(), false).await?;
//! disk.flush().await?;
//! disk.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! What is there, from the top down:
//!
//! | face | for whom | recovers |
//! |---|---|---|
//! | [`client::Disk`] | one logical unit, async calls from many tasks | yes |
//! | [`client::Session`] | all logical units of a target, and commands of one's own | no |
//! | [`client::discover`] | the targets behind a portal | |
//! | [`io::Nexus`] | one logical unit, polled by its owner: no task, no channel, buffers by ownership | yes |
//! | [`io::Driver`] | one session, likewise | no |
//! | [`proto`] | the machines, for other sockets and other clocks | |
//! | [`scsi`], [`wire`] | commands, sense data, pages; PDUs | |
//!
//! [`proto::SessionParams`] says how a session is to be: CHAP one-way and mutual, digests, timeouts, several connections.
//! Errors say what was being done, to what, and what to do; those of a login whether it helps to try again.
//!
//! ```text
//!  3 client      async handles: Session, Disk
//!  2 io          sockets, buffers, clock, tasks
//!  1 proto       machines; told the time
//!  0 wire  scsi  bytes <-> values
//! ```
//!
//! Without the feature `tokio` (on by default) there are the machines of floors 0 and 1 alone, for whoever brings
//! sockets and a clock of his own.
//!
//! What it promises: a read that returns has every byte; a write is not lost, not repeated out of order, and does not
//! land late from a session that is over; nothing is sent to a logical unit that is not the one that was opened; nothing
//! that a target sends makes it panic, or allocate beyond a named limit.
#![forbid(unsafe_code)]

#[cfg(feature = "tokio")]
pub mod client;
#[cfg(feature = "tokio")]
pub mod io;
pub mod proto;
pub mod scsi;
pub mod wire;
