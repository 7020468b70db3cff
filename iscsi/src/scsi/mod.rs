//! SCSI values: CDBs, status, sense, INQUIRY and VPD pages, capacity, mode pages, LUN addresses, units.
//!
//! A room of its own because SCSI does not know its transport: nothing here speaks of iSCSI, and `wire` does
//! not know what a CDB means. Source: SAM-5, SPC-4, SBC-4 (T10).
//!
//! Invariants:
//! 1. Whatever bytes a target sends, parsing ends without a panic and allocates no more than they are long.
//! 2. Only `units` multiplies or divides blocks by bytes.
//! 3. Reserved bits are written zero and ignored when read.
//!
//! It sends nothing: `io` carries commands, `client::probe` decides what to ask; `examination` is the short form of
//! that, without I/O, for those who replay commands after a new login.

pub mod attention;
pub mod capacity;
pub mod cdb;
pub mod examination;
pub mod identity;
pub mod inquiry;
pub mod lba_status;
pub mod lun;
pub mod mode;
pub mod port_groups;
pub mod reservation;
pub mod sense;
pub mod status;
pub mod units;
pub mod unmap;
pub mod verdict;
pub mod vpd;

mod field;

pub use attention::Attention;
pub use capacity::Capacity;
pub use cdb::Cdb;
pub use examination::Examination;
pub use identity::Identity;
pub use inquiry::Inquiry;
pub use lun::LunAddress;
pub use port_groups::TargetPortGroups;
pub use sense::{Sense, SenseKey};
pub use status::Status;
pub use units::{BlockLength, Blocks, ByteCount, Lba};
pub use unmap::Extent;
pub use verdict::Verdict;

/// What a target sent is not what the standard says: the transport was sound, the content is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// The data ends before a field that must be there.
    #[error("{what} is {have} bytes long, at least {need} are needed")]
    TooShort {
        /// Which data.
        what: &'static str,
        /// Its length.
        have: usize,
        /// The least length.
        need: usize,
    },
    /// A length inside the data points beyond its end.
    #[error("{what} holds a length that points beyond its end")]
    LengthBeyondEnd {
        /// Which data.
        what: &'static str,
    },
    /// Another VPD page came than the one that was asked for.
    #[error("VPD page {asked:02X}h was asked for and page {answered:02X}h came")]
    OtherPage {
        /// The page code in the CDB.
        asked: u8,
        /// The page code in the answer.
        answered: u8,
    },
    /// A logical block length that no disk has.
    #[error("a logical block length of {0} bytes is not a power of two from 512 to 65536")]
    BlockLength(u32),
    /// A capacity that does not fit into 63 bits of bytes.
    #[error("a capacity of {blocks} blocks of {block_bytes} bytes is beyond 2^63 bytes")]
    Capacity {
        /// Number of blocks; saturated.
        blocks: u64,
        /// Bytes a block.
        block_bytes: u32,
    },
}
