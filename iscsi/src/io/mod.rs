//! The tokio driver: sockets, buffers, clock.
//!
//! A `Driver` owns one normal session in full feature phase: the streams of its connections, the
//! `proto` machine, the buffers of tasks in flight. It is polled by its owner's task, so that a lane
//! drives NBD and iSCSI from one task on one thread. Nothing is spawned.
//!
//! Source: `architecture.md` of the project, "The lane"; RFC 7143 for what goes over the wire.
//!
//! Invariants:
//! 1. A command's buffer belongs to the driver from `submit` until the completion, or until
//!    `take_unfinished` after the end: bytes on their way out are never the caller's to change.
//! 2. In the steady state nothing is allocated for an I/O, and payload is not copied on its way out.
//!
//! It does not reconnect and does not repeat commands. A command that is not answered in time is aborted, or takes the
//! session with it (`proto::Timeouts`). `Nexus` does reconnect: one logical unit over sessions that come and go, with
//! the same way of being polled.
//!
//! ```no_run
//! use iscsi::io::{Command, Data, Driver};
//! use iscsi::proto::{Isid, SessionParams};
//! use iscsi::scsi::{Blocks, Cdb, Lba, LunAddress};
//!
//! # async fn first_block() -> Result<(), Box<dyn std::error::Error>> {
//! let mut params = SessionParams::new(
//!     "192.0.2.10".parse()?,
//!     "iqn.2026-11.org.example:host".parse()?,
//!     Isid::random([1, 2, 3], 0),
//! );
//! params.target_name = Some("iqn.2010-10.org.openstack:volume-1".parse()?);
//! let mut driver = Driver::connect(&params).await?;
//! let command = Command {
//!     lun: LunAddress::from_number(1),
//!     cdb: Cdb::read_16(Lba(0), Blocks(1)),
//!     data: Data::In(bytes::BytesMut::zeroed(512)),
//! };
//! driver.submit(7, command).map_err(|_| "no slot is free")?;
//! let completion = std::future::poll_fn(|cx| driver.poll_completion(cx)).await?;
//! println!("{} after {} bytes", completion.status, completion.transferred);
//! driver.logout().await?;
//! # Ok(())
//! # }
//! ```

mod connect;
mod discover;
mod driver;
mod line;
mod network;
mod nexus;
mod receiver;
mod slots;
mod transmitter;

use bytes::{Bytes, BytesMut};

use crate::scsi::reservation::{ReservationType, ReserveOut, ReserveOutParameters};
use crate::scsi::{Cdb, LunAddress, Sense, Status};

pub use discover::{discover, discover_over};
pub use driver::Driver;
pub use network::{Network, Stream, Tcp};
#[cfg(feature = "hazards")]
pub use nexus::Hazards;
pub use nexus::{Event, Failed, Nexus, NexusError, NexusParams, Path, Reinstated};

/// What a command carries besides its CDB.
#[derive(Debug)]
pub enum Data {
    /// No data segment in either direction.
    None,
    /// To the target: the expected data transfer length is `len()`.
    Out(Bytes),
    /// From the target: the buffer's `len()` is the expected data transfer length; filled in place.
    In(BytesMut),
}

impl Data {
    /// How many bytes, in whichever direction; `None` if a command cannot name so many.
    pub fn bytes(&self) -> Option<u32> {
        u32::try_from(match self {
            Self::None => 0,
            Self::Out(data) => data.len(),
            Self::In(buffer) => buffer.len(),
        })
        .ok()
    }
}

impl Data {
    /// The bytes that came, of a read that transferred so many.
    pub(crate) fn filled(&self, transferred: u32) -> &[u8] {
        match self {
            Self::In(buffer) => {
                let came = usize::try_from(transferred).unwrap_or(usize::MAX);
                &buffer[..came.min(buffer.len())]
            }
            Self::Out(_) | Self::None => &[],
        }
    }
}

/// One SCSI command for one logical unit.
#[derive(Debug)]
pub struct Command {
    /// The addressed logical unit.
    pub lun: LunAddress,
    /// The command descriptor block.
    pub cdb: Cdb,
    /// The data buffer; owned by the driver until the completion gives it back.
    pub data: Data,
}

impl Command {
    /// PERSISTENT RESERVE OUT; `kind` is ignored by actions that make no reservation.
    pub(crate) fn reserve_out(
        lun: LunAddress,
        action: ReserveOut,
        kind: ReservationType,
        list: ReserveOutParameters,
    ) -> Self {
        Self {
            lun,
            cdb: Cdb::persistent_reserve_out(action, kind),
            data: Data::Out(list.to_bytes().to_vec().into()),
        }
    }
}

/// The target's answer to one command.
#[derive(Debug)]
pub struct Completion {
    /// The number that came with `submit`.
    pub token: u64,
    /// SCSI status. Where the target failed as a whole (iSCSI service response other than 00h) it is
    /// `Status::TASK_ABORTED`.
    pub status: Status,
    /// Sense data, if the status came with some.
    pub sense: Option<Sense>,
    /// The command's.
    pub cdb: Cdb,
    /// Bytes really moved (checked against bytes seen): `len()` less the underflow.
    pub transferred: u32,
    /// The buffer of the command.
    pub data: Data,
}

/// Which digests the PDUs of a connection carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Digests {
    header: bool,
    data: bool,
}

impl Digests {
    fn of(agreed: &crate::proto::negotiation::Agreed) -> Self {
        Self {
            header: agreed.header_digest,
            data: agreed.data_digest,
        }
    }
}

/// A length of the wire as one of memory.
fn index(number: u32) -> usize {
    usize::try_from(number).expect("buffers have lengths that fit")
}
