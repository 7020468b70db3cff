//! Keeping another host from writing to a LUN, by persistent reservations, and ending that.
//!
//! A room of its own because it speaks to the unit itself, over a session of its own, before there is a device.
//!
//! Source: SPC-4 5.12.7 (registering), 5.12.9 (reserving), 5.12.11 (preempting), 5.12.11.3 (clearing).
//!
//! ```text
//!  raise:  REGISTER AND IGNORE EXISTING KEY, ours
//!          nobody holds it: RESERVE, write exclusive - registrants only;  somebody does: PREEMPT AND ABORT of the holder's key
//!          PREEMPT AND ABORT of every other key: what these have at work is ended, and nothing of theirs is done later
//!          READ RESERVATION: it is ours, or the fence is not up
//!  lower:  REGISTER AND IGNORE EXISTING KEY, CLEAR
//! ```
//!
//! Invariant: `raise` ends well only if the unit itself has said that the reservation is ours.

use std::time::Duration;

use iscsi::client::{Disk, Error as Refusal, Session};
use iscsi::scsi::Status;
use iscsi::scsi::reservation::{ReservationKey, ReservationType};

use super::error::{Cause, Error};
use crate::lun::LunSpec;

/// Registrants write, all others are refused; readers are harmless.
const KIND: ReservationType = ReservationType::WRITE_EXCLUSIVE_REGISTRANTS_ONLY;
/// For the login and all commands. Chosen freely, above what a target that works needs.
const PATIENCE: Duration = Duration::from_mins(1);

/// From now on the unit takes writes of this session alone.
///
/// # Errors
/// No login, no persistent reservations, or somebody else has made another one meanwhile.
pub(crate) async fn raise(spec: LunSpec, key: u64) -> Result<(), Cause> {
    let ours = ReservationKey(key);
    bounded(spec, ours, async |disk| {
        match disk.reservations().reservation().await?.holder {
            None => disk.reservations().reserve(ours, KIND).await?,
            // Held by all registrants, of whom we are one: there is nobody to preempt but each of them, below.
            Some((ReservationKey(0), _)) => {}
            Some((holder, _)) if holder != ours => preempt(disk, ours, holder).await?,
            Some(_) => {}
        }
        let mut others = disk.reservations().keys().await?.keys;
        others.sort_unstable();
        others.dedup();
        for other in others.into_iter().filter(|other| *other != ours) {
            preempt(disk, ours, other).await?;
        }
        match disk.reservations().reservation().await?.holder {
            Some((holder, KIND)) if holder == ours => Ok(()),
            _ => Err(Error::Invalid {
                what: "the unit does not say that the reservation is ours".to_owned(),
            }
            .into()),
        }
    })
    .await
}

/// Everyone the unit is exported to may write again.
///
/// # Errors
/// No login, or the unit refused. One that knows no reservations has none.
pub(crate) async fn lower(spec: LunSpec, key: u64) -> Result<(), Cause> {
    let ours = ReservationKey(key);
    let cleared = bounded(spec, ours, async |disk| {
        Ok(disk.reservations().clear(ours).await?)
    });
    match cleared.await {
        // Another unit than the one that was fenced: an array may make the LUN anew.
        Err(cause) if knows_no_reservations(&*cause) => {
            tracing::debug!("the unit knows no persistent reservations: there is none to end");
            Ok(())
        }
        ended => ended,
    }
}

fn knows_no_reservations(cause: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    matches!(
        cause.downcast_ref::<Refusal>(),
        Some(Refusal::Refused { status, during: "PERSISTENT RESERVE OUT", .. }) if *status == Status::CHECK_CONDITION
    )
}

async fn preempt(disk: &Disk, ours: ReservationKey, other: ReservationKey) -> Result<(), Refusal> {
    let reservations = disk.reservations();
    reservations.preempt(ours, other, KIND, true).await
}

async fn bounded(
    spec: LunSpec,
    ours: ReservationKey,
    work: impl AsyncFnOnce(&Disk) -> Result<(), Cause>,
) -> Result<(), Cause> {
    let whole = async {
        let session = Session::connect(&spec.session).await?;
        // Before the probe, which a unit that is reserved answers to registrants alone.
        let registered = session.register(spec.lun, ours).await;
        let done = match registered {
            Ok(()) => match session.disk(spec.lun).await {
                Ok(disk) => work(&disk).await,
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        };
        // The registration and the reservation outlive the session (SPC-4 5.12.5); a logout that fails changes nothing.
        let closed = session.logout().await;
        if let Err(error) = closed {
            tracing::debug!(%error, "the control session did not end in order");
        }
        done
    };
    tokio::time::timeout(PATIENCE, whole)
        .await
        .map_err(|_| Error::Invalid {
            what: format!("the target did not answer within {} s", PATIENCE.as_secs()),
        })?
}
