//! Our key for persistent reservations, registered anew with each login.
//!
//! A unit that is reserved for registrants refuses everybody else's writes; some targets forget a registration together
//! with its session, so a nexus that is to be one of them says so again before anything else leaves.
//!
//! Source: SPC-4 5.12.7 (registering), 5.12.11 (preempting), 6.15 and 6.16.
//!
//! Invariant: we never become a registrant beneath another's reservation. Anybody may register there, and then write:
//! a host from which the unit was taken would be back that way. So the holder is asked for *after* the registration, and
//! one that is not us ends the attempt without a trace. Whoever takes the unit becomes its holder first and removes all
//! other registrations then, so that one of the two always sees the other.

use bytes::BytesMut;

use super::NexusError;
use super::attempt::{POLL_INTERVAL, ask};
use crate::io::network::Stream;
use crate::io::{Command, Completion, Data, Driver};
use crate::scsi::examination::REPEATS_MAX;
use crate::scsi::reservation::{
    Reservation, ReservationKey, ReservationType, ReserveIn, ReserveOut, ReserveOutParameters,
};
use crate::scsi::{Cdb, LunAddress, Verdict};

/// A header and one reservation.
const RESERVATION_BYTES: u16 = 24;

pub(super) async fn renew<S: Stream>(
    driver: &mut Driver<S>,
    lun: LunAddress,
    key: ReservationKey,
) -> Result<(), NexusError> {
    let list = ReserveOutParameters {
        service_action_key: key,
        ..ReserveOutParameters::default()
    };
    let action = ReserveOut::RegisterAndIgnoreExistingKey;
    perform(driver, || change(lun, action, list)).await?;
    let seen = perform(driver, || Command {
        lun,
        cdb: Cdb::persistent_reserve_in(ReserveIn::ReadReservation, RESERVATION_BYTES),
        data: Data::In(BytesMut::zeroed(RESERVATION_BYTES.into())),
    });
    let seen = seen.await?;
    let seen = Reservation::parse(seen.data.filled(seen.transferred));
    // Who holds it is not known: as if it were another.
    let is_ours = seen.is_ok_and(|seen| {
        let holder = seen.holder.map(|(holder, _)| holder);
        holder.is_none_or(|holder| holder == key || holder == ReservationKey(0))
    });
    if is_ours {
        return Ok(());
    }
    let list = ReserveOutParameters {
        key,
        ..ReserveOutParameters::default()
    };
    perform(driver, || change(lun, ReserveOut::Register, list)).await?;
    Err(NexusError::Reserved)
}

fn change(lun: LunAddress, action: ReserveOut, list: ReserveOutParameters) -> Command {
    Command::reserve_out(lun, action, ReservationType(0), list)
}

/// Until it is done, or refused.
async fn perform<S: Stream>(
    driver: &mut Driver<S>,
    command: impl Fn() -> Command,
) -> Result<Completion, NexusError> {
    let mut repeats = 0;
    loop {
        let answer = ask(driver, command()).await?;
        match Verdict::of(answer.status, answer.sense.as_ref()) {
            Verdict::Good => return Ok(answer),
            Verdict::Busy | Verdict::BecomingReady | Verdict::TaskSetFull => {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Verdict::UnitAttention | Verdict::DeferredError | Verdict::Aborted
                if repeats < REPEATS_MAX =>
            {
                repeats += 1;
            }
            Verdict::UnitAttention
            | Verdict::DeferredError
            | Verdict::Aborted
            | Verdict::SwitchPath
            | Verdict::ReservationConflict
            | Verdict::OurFault
            | Verdict::Failed => {
                return Err(NexusError::Registration {
                    status: answer.status,
                    sense: answer.sense,
                });
            }
        }
    }
}
