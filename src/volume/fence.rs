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

use iscsi::client::{Error as Refusal, Reservations, Session};
use iscsi::scsi::reservation::{ReservationKey, ReservationType};
use iscsi::scsi::{LunAddress, Status};

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
    bounded(spec, ours, async |unit| {
        let up = put_up(unit, ours).await;
        if up.is_err() {
            take_down(unit, ours).await;
        }
        up
    })
    .await
}

async fn put_up(unit: &Unit<'_>, ours: ReservationKey) -> Result<(), Cause> {
    match unit.reservations().reservation().await?.holder {
        None => unit.reservations().reserve(ours, KIND).await?,
        // Held by all registrants, of whom we are one: there is nobody to preempt but each of them, below.
        Some((ReservationKey(0), _)) => {}
        Some((holder, _)) if holder != ours => preempt(unit, ours, holder).await?,
        Some(_) => {}
    }
    let mut others = unit.reservations().keys().await?.keys;
    others.sort_unstable();
    others.dedup();
    for other in others.into_iter().filter(|other| *other != ours) {
        preempt(unit, ours, other).await?;
    }
    match unit.reservations().reservation().await?.holder {
        Some((holder, KIND)) if holder == ours => Ok(()),
        _ => Err(Error::Invalid {
            what: "the unit does not say that the reservation is ours".to_owned(),
        }
        .into()),
    }
}

/// A fence that did not come up whole: what there is of ours goes, and nothing of anybody else's.
async fn take_down(unit: &Unit<'_>, ours: ReservationKey) {
    let undone = async {
        // Of a reservation that is not ours it is GOOD, and nothing.
        unit.reservations().release(ours, KIND).await?;
        let none = ReservationKey(0);
        unit.reservations().register(ours, none, false).await
    };
    if let Err(error) = undone.await {
        tracing::warn!(%error, "a registration of ours stays on the unit");
    }
}

/// Everyone the unit is exported to may write again.
///
/// # Errors
/// No login, or the unit refused. One that knows no reservations has none.
pub(crate) async fn lower(spec: LunSpec, key: u64) -> Result<(), Cause> {
    let ours = ReservationKey(key);
    let cleared = bounded(spec, ours, async |unit| {
        Ok(unit.reservations().clear(ours).await?)
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

/// The unit, as far as its reservations go.
struct Unit<'a> {
    session: &'a Session,
    lun: LunAddress,
}

impl Unit<'_> {
    fn reservations(&self) -> Reservations {
        self.session.reservations(self.lun)
    }
}

async fn preempt(
    unit: &Unit<'_>,
    ours: ReservationKey,
    other: ReservationKey,
) -> Result<(), Refusal> {
    let reservations = unit.reservations();
    reservations.preempt(ours, other, KIND, true).await
}

/// Registered, and without a probe: a unit that is reserved by others refuses a part of that.
async fn bounded(
    spec: LunSpec,
    ours: ReservationKey,
    work: impl AsyncFnOnce(&Unit<'_>) -> Result<(), Cause>,
) -> Result<(), Cause> {
    let whole = async {
        let session = Session::connect(&spec.session).await?;
        let done = {
            let unit = Unit {
                session: &session,
                lun: spec.lun,
            };
            match unit.reservations().register_anyway(ours, false).await {
                Ok(()) => work(&unit).await,
                Err(error) => Err(error.into()),
            }
        };
        // The registration and the reservation outlive the session (SPC-4 5.12.5); a logout that fails changes nothing.
        if let Err(error) = session.logout().await {
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
