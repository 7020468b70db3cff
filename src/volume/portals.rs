//! Further portals of a target that Cinder did not list, asked of the target itself.
//!
//! Source: os-brick, `initiator/connectors/iscsi.py`: lists that are missing are found by `SendTargets`.
//!
//! Only where the driver gives credentials for it: those are the arrays with several portals. Elsewhere discovery would
//! bring the addresses of interfaces that we cannot reach, each of them a delay whenever the volume is away.

use std::time::Duration;

use iscsi::io::Path;
use iscsi::proto::{ChapCredentials, IscsiName, Portal, SessionParams};

use super::address::Address;
use super::context::Context;
use super::error::{Cause, Error, line};
use super::journal::Entry;
use super::lanes::{LANES_MAX, lane_isid, session_params};

/// Chosen freely: the volume can be used without them.
const PATIENCE: Duration = Duration::from_secs(5);

/// As with listed ones: each is one more to try when the volume is away.
const PORTALS_MAX: usize = 15;

/// The portals beside the first; none if the target does not answer, which is a warning.
pub(crate) async fn further(
    cx: &Context,
    entry: &Entry,
    address: &Address,
    chap: ChapCredentials,
) -> Vec<Path> {
    match ask(cx, entry, address, chap).await {
        Ok(portals) => portals
            .into_iter()
            .filter(|portal| *portal != address.portal)
            .take(PORTALS_MAX)
            .map(|portal| Path {
                portal,
                target_name: address.target.clone(),
                lun: address.lun,
            })
            .collect(),
        Err(error) => {
            let (volume, error) = (&entry.volume, line(&error));
            tracing::warn!(
                volume,
                error,
                "further portals are not known: discovery failed"
            );
            Vec::new()
        }
    }
}

async fn ask(
    cx: &Context,
    entry: &Entry,
    address: &Address,
    chap: ChapCredentials,
) -> Result<Vec<Portal>, Error> {
    let asking = |cause: Cause| {
        Error::step(
            format!("asking {} for further portals", address.portal),
            cause,
        )
    };
    let initiator: IscsiName = cx
        .settings
        .initiator_name
        .parse()
        .map_err(|error| Error::step("using our initiator name", error))?;
    let session = session_params(
        address.portal.clone(),
        initiator,
        None,
        Some(chap),
        lane_isid(entry.id, LANES_MAX - 1),
    );
    let asked = cx.out.portals(session, address.target.clone());
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(portals) => portals.map_err(asking),
        Err(_) => Err(asking(
            format!("no answer within {} s", PATIENCE.as_secs()).into(),
        )),
    }
}

/// Of the target itself.
pub(crate) async fn send_targets(
    session: SessionParams,
    target: IscsiName,
) -> Result<Vec<Portal>, Cause> {
    let shown = iscsi::client::discover(&session).await?;
    let of_it = shown.into_iter().filter(|shown| shown.name == target);
    Ok(of_it
        .flat_map(|shown| shown.portals)
        .map(|found| found.portal)
        .collect())
}
