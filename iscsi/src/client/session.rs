//! A session that many futures may use, with all the logical units behind it.
//!
//! It ends with its connection: what was in flight may or may not have been done, and that is what its users are
//! told. A disk that outlives its sessions is `Disk::open`'s.

use super::owner::{self, Commands, Task};
use super::{Disk, Error, Reservations};
use crate::io::Driver;
use crate::proto::SessionParams;
use crate::scsi::LunAddress;

/// A normal session with a target, logged in.
///
/// `logout` ends it in order and waits for its task. A session that is merely dropped ends too, once all its disks
/// are dropped, but nobody learns how.
#[derive(Debug)]
pub struct Session {
    commands: Commands,
    task: Task,
}

impl Session {
    /// Connects and logs in, and starts the task that drives the session on the current runtime.
    ///
    /// # Errors
    /// `Login` with the cause.
    ///
    /// # Cancel safety
    /// The connection is dropped; the target ends a half-made login by itself.
    pub async fn connect(params: &SessionParams) -> Result<Self, Error> {
        let (commands, task) = owner::start(Driver::connect(params).await?);
        Ok(Self { commands, task })
    }

    /// Probes a logical unit and gives a handle of it; many may exist at once.
    ///
    /// # Errors
    /// As `probe`.
    pub async fn disk(&self, lun: impl Into<LunAddress>) -> Result<Disk, Error> {
        Disk::of(self.commands(), lun.into()).await
    }

    /// The persistent reservations of a logical unit that is not probed, for one call: one that is reserved by others may
    /// answer the probe's MODE SENSE with a conflict (SPC-4 table 66).
    pub fn reservations(&self, lun: impl Into<LunAddress>) -> Reservations {
        Reservations::of(self.commands(), lun.into())
    }

    /// A carrier for commands of one's own.
    pub fn commands(&self) -> Commands {
        self.commands.clone()
    }

    /// Waits for what is in flight, logs out and waits for the task. Disks of this session must be gone: as long as
    /// one is not, the session goes on and so does this wait.
    ///
    /// # Errors
    /// `Session` if it ended in another way.
    ///
    /// # Cancel safety
    /// The session ends all the same.
    pub async fn logout(self) -> Result<(), Error> {
        let Self { commands, task } = self;
        drop(commands);
        task.ended().await
    }
}
