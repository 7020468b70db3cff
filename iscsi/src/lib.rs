//! An iSCSI initiator (RFC 7143) in pure Rust: machines without I/O, and a tokio driver over them.
//!
//! ```text
//!  3 client      async handles: Session, Disk
//!  2 io          sockets, buffers, clock, tasks
//!  1 proto       machines; told the time
//!  0 wire  scsi  bytes <-> values
//! ```
#![forbid(unsafe_code)]

pub mod client;
pub mod io;
pub mod proto;
pub mod scsi;
pub mod wire;
