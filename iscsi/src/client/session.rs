//! A session that many futures may use, with all the logical units behind it.
//!
//! It ends with its connection: what was in flight may or may not have been done, and that is what its users are
//! told. A disk that outlives its sessions is `Disk::open`'s.

use super::execute::perform;
use super::owner::{self, Commands, Task};
use super::{Disk, Error};
use crate::io::{Command, Data, Driver};
use crate::proto::SessionParams;
use crate::scsi::reservation::{ReservationKey, ReservationType, ReserveOut, ReserveOutParameters};
use crate::scsi::{Cdb, LunAddress};

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
    pub async fn disk(&self, lun: u16) -> Result<Disk, Error> {
        Disk::of(self.commands(), lun).await
    }

    /// Registers `key` on a logical unit that is not probed, whatever our key was: one that is reserved by others answers
    /// the probe's MODE SENSE with a conflict (SPC-4 table 66), until we are registered.
    ///
    /// # Errors
    /// `Refused`, `NotReady`, `Session`.
    pub async fn register(&self, lun: u16, key: ReservationKey) -> Result<(), Error> {
        let list = ReserveOutParameters {
            service_action_key: key,
            ..ReserveOutParameters::default()
        };
        let action = ReserveOut::RegisterAndIgnoreExistingKey;
        let command = Command {
            lun: LunAddress::from_number(lun),
            // TYPE is ignored by an action that makes no reservation.
            cdb: Cdb::persistent_reserve_out(action, ReservationType(0)),
            data: Data::Out(list.to_bytes().to_vec().into()),
        };
        let mut carrier = self.commands();
        perform(&mut carrier, "PERSISTENT RESERVE OUT", command)
            .await
            .map(drop)
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
