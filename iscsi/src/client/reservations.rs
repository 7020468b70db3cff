//! Persistent reservations of a disk: who may use it.
//!
//! Source: SPC-4 5.12. A conflict is an answer, `Error::Refused` with `Status::RESERVATION_CONFLICT`, and never
//! repeated: it is somebody's intent.

use super::execute::{ask_whole, perform};
use super::{Commands, Error};
use crate::io::Command;
use crate::scsi::reservation::{
    self, Capabilities, FullStatus, Keys, Reservation, ReservationKey, ReservationType, ReserveIn,
    ReserveOut, ReserveOutParameters,
};
use crate::scsi::{Cdb, LunAddress, Violation};

/// The persistent reservations of one disk; made by `Disk::reservations`, or by `Session::reservations` for
/// one that is not probed.
///
/// ```no_run
/// use iscsi::scsi::reservation::{ReservationKey, ReservationType};
///
/// # async fn example(disk: iscsi::client::Disk) -> Result<(), iscsi::client::Error> {
/// let key = ReservationKey(0x5EED);
/// disk.reservations().register(ReservationKey(0), key, false).await?;
/// disk.reservations().reserve(key, ReservationType::WRITE_EXCLUSIVE).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Reservations {
    carrier: Commands,
    lun: LunAddress,
}

impl Reservations {
    pub(super) fn of(carrier: Commands, lun: LunAddress) -> Self {
        Self { carrier, lun }
    }

    /// All registered keys.
    ///
    /// # Errors
    /// `Refused`, `Violation`, `NotReady`, `Session`.
    pub async fn keys(mut self) -> Result<Keys, Error> {
        read(&mut self, ReserveIn::ReadKeys, Keys::parse).await
    }

    /// The reservation, if there is one.
    ///
    /// # Errors
    /// As `keys`.
    pub async fn reservation(mut self) -> Result<Reservation, Error> {
        let action = ReserveIn::ReadReservation;
        read(&mut self, action, Reservation::parse).await
    }

    /// All registrations with their initiator ports.
    ///
    /// # Errors
    /// As `keys`.
    pub async fn full_status(mut self) -> Result<FullStatus, Error> {
        let action = ReserveIn::ReadFullStatus;
        read(&mut self, action, FullStatus::parse).await
    }

    /// What the unit can do.
    ///
    /// # Errors
    /// As `keys`.
    pub async fn capabilities(mut self) -> Result<Capabilities, Error> {
        let action = ReserveIn::ReportCapabilities;
        read(&mut self, action, Capabilities::parse).await
    }

    /// Registers `new` in place of `existing`; zero is no key, so it also registers first and unregisters at last.
    /// `persist`: registrations outlive a loss of power, if the unit can.
    ///
    /// # Errors
    /// `Refused`, with a reservation conflict if `existing` is not our key; `NotReady`, `Session`.
    pub async fn register(
        mut self,
        existing: ReservationKey,
        new: ReservationKey,
        persist: bool,
    ) -> Result<(), Error> {
        let list = ReserveOutParameters {
            key: existing,
            service_action_key: new,
            persist,
            ..ReserveOutParameters::default()
        };
        change(&mut self, ReserveOut::Register, NO_TYPE, list).await
    }

    /// Registers `new`, whatever our key was.
    ///
    /// # Errors
    /// As `register`, without the conflict.
    pub async fn register_anyway(
        mut self,
        new: ReservationKey,
        persist: bool,
    ) -> Result<(), Error> {
        let list = ReserveOutParameters {
            service_action_key: new,
            persist,
            ..ReserveOutParameters::default()
        };
        let action = ReserveOut::RegisterAndIgnoreExistingKey;
        change(&mut self, action, NO_TYPE, list).await
    }

    /// Reserves the unit for us, who are registered under `key`.
    ///
    /// # Errors
    /// As `register`; a conflict if somebody else holds it.
    pub async fn reserve(
        mut self,
        key: ReservationKey,
        kind: ReservationType,
    ) -> Result<(), Error> {
        change(&mut self, ReserveOut::Reserve, kind, own(key)).await
    }

    /// Gives our reservation up; `kind` must be its type.
    ///
    /// # Errors
    /// As `register`.
    pub async fn release(
        mut self,
        key: ReservationKey,
        kind: ReservationType,
    ) -> Result<(), Error> {
        change(&mut self, ReserveOut::Release, kind, own(key)).await
    }

    /// Removes all registrations, ours too, and the reservation.
    ///
    /// # Errors
    /// As `register`.
    pub async fn clear(mut self, key: ReservationKey) -> Result<(), Error> {
        change(&mut self, ReserveOut::Clear, NO_TYPE, own(key)).await
    }

    /// Removes all registrations under `victim`, and takes the reservation over as `kind` if it was theirs. `abort`:
    /// their commands are aborted too, so that none of them is done later.
    ///
    /// # Errors
    /// As `register`.
    pub async fn preempt(
        mut self,
        key: ReservationKey,
        victim: ReservationKey,
        kind: ReservationType,
        abort: bool,
    ) -> Result<(), Error> {
        let action = if abort {
            ReserveOut::PreemptAndAbort
        } else {
            ReserveOut::Preempt
        };
        let list = ReserveOutParameters {
            service_action_key: victim,
            ..own(key)
        };
        change(&mut self, action, kind, list).await
    }
}

async fn read<T>(
    unit: &mut Reservations,
    action: ReserveIn,
    parse: impl FnOnce(&[u8]) -> Result<T, Violation>,
) -> Result<T, Error> {
    let during = "PERSISTENT RESERVE IN";
    let cdb = |bytes| Cdb::persistent_reserve_in(action, u16::try_from(bytes).unwrap_or(u16::MAX));
    let told = |data: &[u8]| match action {
        // It has another header, and is eight bytes long.
        ReserveIn::ReportCapabilities => Ok(u64::from(Capabilities::DATA_BYTES)),
        ReserveIn::ReadKeys | ReserveIn::ReadReservation | ReserveIn::ReadFullStatus => {
            reservation::told_bytes(data)
        }
    };
    let bytes_max = u32::from(u16::MAX);
    let data = ask_whole(&mut unit.carrier, during, unit.lun, cdb, told, bytes_max).await?;
    parse(&data).map_err(|source| Error::Violation { during, source })
}

async fn change(
    unit: &mut Reservations,
    action: ReserveOut,
    kind: ReservationType,
    list: ReserveOutParameters,
) -> Result<(), Error> {
    let command = Command::reserve_out(unit.lun, action, kind, list);
    perform(&mut unit.carrier, "PERSISTENT RESERVE OUT", command)
        .await
        .map(drop)
}

fn own(key: ReservationKey) -> ReserveOutParameters {
    ReserveOutParameters {
        key,
        ..ReserveOutParameters::default()
    }
}

/// TYPE is ignored by actions that make no reservation.
const NO_TYPE: ReservationType = ReservationType(0);
