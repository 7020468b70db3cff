//! The tokio driver: sockets, buffers, clock. CONTRACT (signatures fixed, bodies to come):
//!
//! A `Driver` owns one connection of one normal session in full feature phase: its `TcpStream`, the
//! `proto` machine, the buffers of tasks in flight. It is polled by its owner's task, so that a lane
//! drives NBD and iSCSI from one task on one thread. Nothing is spawned.

use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};

use crate::proto::{LoginError, SessionError, SessionParams};
use crate::scsi::{Cdb, LunAddress, Sense, Status};

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

/// The target's answer to one command.
#[derive(Debug)]
pub struct Completion {
    /// The number that came with `submit`.
    pub token: u64,
    /// SCSI status; `Response` code other than 00h is `Err(response)` in `outcome` of `SessionError`.
    pub status: Status,
    /// Sense data, if the status came with some.
    pub sense: Option<Sense>,
    /// Bytes really moved (checked against bytes seen): `len()` less the underflow.
    pub transferred: u32,
    /// The buffer of the command.
    pub data: Data,
}

/// One iSCSI connection, driven by whoever polls it.
#[derive(Debug)]
pub struct Driver {
    _private: (),
}

impl Driver {
    /// Connects, logs in and enters full feature phase.
    ///
    /// # Errors
    /// By cause: unreachable, refused (status class/detail), rule broken by the target, misuse.
    #[expect(clippy::unused_async, reason = "contract")]
    pub async fn connect(_params: &SessionParams) -> Result<Self, LoginError> {
        unimplemented!()
    }

    /// How many more commands `submit` takes now (task slots; the window is the machine's matter).
    pub fn free_slots(&self) -> usize {
        unimplemented!()
    }

    /// Queues a command. It leaves with the next `poll_completion` or `poll_flush`.
    ///
    /// # Errors
    /// Gives the command back when no slot is free or the session has ended.
    pub fn submit(&mut self, _token: u64, _command: Command) -> Result<(), Command> {
        unimplemented!()
    }

    /// Writes what is queued, reads what is there, keeps the timers; one completion at a time.
    /// `Err` is final: the session is gone; `take_unfinished` says what was in flight.
    pub fn poll_completion(
        &mut self,
        _cx: &mut Context<'_>,
    ) -> Poll<Result<Completion, SessionError>> {
        unimplemented!()
    }

    /// After an error: the commands that were not answered, in order of submission.
    pub fn take_unfinished(&mut self) -> Vec<(u64, Command)> {
        unimplemented!()
    }

    /// Logs out in order (reason 0, close the session) and closes the socket; bounded by a few seconds.
    ///
    /// # Errors
    /// The connection was lost or the target broke a rule meanwhile; the session is gone anyway.
    #[expect(clippy::unused_async, reason = "contract")]
    pub async fn logout(self) -> Result<(), SessionError> {
        unimplemented!()
    }
}
