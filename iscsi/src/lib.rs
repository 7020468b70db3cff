//! An iSCSI initiator (RFC 7143) in pure Rust: machines without I/O, and a tokio driver over them.
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
#![forbid(unsafe_code)]

#[cfg(feature = "tokio")]
pub mod client;
#[cfg(feature = "tokio")]
pub mod io;
pub mod proto;
pub mod scsi;
pub mod wire;
