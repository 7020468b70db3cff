//! The sessions of an attachment: how many, under which names, to where.
//!
//! A room of its own because the process that comes next must make exactly the same ones.

use std::time::{Duration, Instant};

use iscsi::proto::recovery::ReplacementTimeout;
use iscsi::proto::{ChapCredentials, IscsiName, Isid, Portal, SessionParams};
use uuid::Uuid;

use super::address::Address;
use super::context::Context;
use super::error::Error;
use super::journal::Entry;
use super::platform::DeviceSpec;
use crate::block::Quota;
use crate::lun::{Losses, LunSpec};

/// The sessions of an attachment; the same ones whenever it is asked for.
pub(crate) fn lanes_of(
    cx: &Context,
    entry: &Entry,
    count: usize,
    address: &Address,
) -> Result<Vec<LunSpec>, Error> {
    let initiator: IscsiName = cx
        .settings
        .initiator_name
        .parse()
        .map_err(|error| Error::step("using our initiator name", error))?;
    let losses = Losses::default();
    let rates = address.rates;
    let quota = rates
        .is_limited()
        .then(|| Quota::new(&rates, Instant::now()));
    let lane = |lane| {
        let session = session_params(
            address.portal.clone(),
            initiator.clone(),
            Some(address.target.clone()),
            address.chap.clone(),
            lane_isid(entry.id, lane),
        );
        let mut spec = LunSpec::new(session, address.lun);
        spec.session.offers.header_digest = cx.settings.header_digest;
        spec.session.offers.data_digest = cx.settings.data_digest;
        spec.recovery.replacement_timeout = cx.settings.replacement_timeout;
        spec.read_only = address.read_only;
        spec.more_paths.clone_from(&address.more_paths);
        spec.losses = losses.clone();
        spec.registration = entry.fenced.then(|| cx.reservation_key());
        spec.quota.clone_from(&quota);
        spec
    };
    Ok((0..count).map(lane).collect())
}

/// A session that is there for a moment, before there are lanes or instead of them: it bears the last lane's name.
pub(crate) fn control_of(cx: &Context, entry: &Entry, address: &Address) -> Result<LunSpec, Error> {
    let mut lanes = lanes_of(cx, entry, LANES_MAX, address)?;
    let mut control = lanes
        .pop()
        .expect("as many lanes as were asked for, and that is more than none");
    // Whoever waits for it holds up a volume, not I/O.
    control.recovery.replacement_timeout = ReplacementTimeout::After(CONTROL_PATIENCE);
    Ok(control)
}

/// Chosen freely: above a login's own time.
const CONTROL_PATIENCE: Duration = Duration::from_secs(20);

/// What the host is asked for.
pub(crate) fn spec_of(cx: &Context, entry: &Entry, lanes: Vec<LunSpec>) -> DeviceSpec {
    DeviceSpec {
        id: entry.id,
        identifier: entry.identifier(),
        lanes,
        dead_conn_timeout: cx.settings.dead_conn_timeout,
    }
}

/// More lanes than this gain nothing and cost a thread and a session each.
pub(crate) const LANES_MAX: usize = 16;

/// Our half of a lane's session name: stable for the attachment, different for every lane of every
/// attachment, as two sessions of one initiator to one target must differ in it (the later would
/// reinstate the earlier).
///
/// RFC 7143 §11.12.5: type 10b, a random number of 24 bits, a qualifier of 16 bits.
pub fn lane_isid(id: Uuid, lane: usize) -> Isid {
    let random = id.as_bytes();
    let lane = u8::try_from(lane % LANES_MAX).unwrap_or_default();
    // The last bytes of a version 4 UUID are all random; the lane takes the lowest four bits of the
    // qualifier.
    let qualifier = u16::from_be_bytes([random[12], (random[11] << 4) | lane]);
    Isid::random([random[15], random[14], random[13]], qualifier)
}

/// A session's parameters with the usual times.
pub fn session_params(
    portal: Portal,
    initiator_name: IscsiName,
    target_name: Option<IscsiName>,
    chap: Option<ChapCredentials>,
    isid: Isid,
) -> SessionParams {
    SessionParams {
        target_name,
        chap,
        ..SessionParams::new(portal, initiator_name, isid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7143 §11.12.5
    #[test]
    fn lanes_differ_in_their_isid_and_keep_it() {
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        assert_eq!(lane_isid(one, 0), lane_isid(one, 0));
        assert_ne!(lane_isid(one, 0), lane_isid(one, 1));
        assert_ne!(lane_isid(one, 0), lane_isid(other, 0));
        assert_eq!(lane_isid(one, 0).0[0] >> 6, 0b10);
    }
}
