//! `SendTargets` over a discovery session.

use crate::proto::discovery::{Discovered, Discovery, DiscoveryStep};
use crate::proto::{DiscoveredTarget, DiscoveryError, SessionError, SessionParams, Violation};
use crate::wire::header;

use super::connect::{self, Aim, Connected};
use super::network::{Network, Stream, Tcp};

/// Asks a portal for its targets, in a session that ends with it. The target name of `params` is
/// not used; its login timeout holds for the login, and once more for the list. Targets have CHAP
/// credentials of their own for discovery: those of a target's session are not to be given here.
///
/// # Errors
/// The login failed, or the session ended before the list was complete.
///
/// # Cancel safety
/// When dropped, the connection is closed and the target drops the session.
pub async fn discover(params: &SessionParams) -> Result<Vec<DiscoveredTarget>, DiscoveryError> {
    discover_over(&Tcp, params).await
}

/// As `discover`, over a network of the caller's.
///
/// # Errors
/// As `discover`.
///
/// # Cancel safety
/// As `discover`.
pub async fn discover_over<N: Network>(
    network: &N,
    params: &SessionParams,
) -> Result<Vec<DiscoveredTarget>, DiscoveryError> {
    let params = SessionParams {
        target_name: None,
        ..params.clone()
    };
    let connected = connect::connect(network, &params, Aim::Leading).await?;
    let portal = connected.portal.clone();
    let after = params.login_timeout;
    let found = tokio::time::timeout(after, ask(connected))
        .await
        .map_err(|_| DiscoveryError::Timeout {
            portal: portal.clone(),
            after,
        })?
        .map_err(|cause| DiscoveryError::Session { portal, cause })?;
    for name in &found.left_out {
        tracing::warn!(%name, "left out what is no legal iSCSI name or address");
    }
    Ok(found.targets)
}

async fn ask<S: Stream>(connected: Connected<S>) -> Result<Discovered, SessionError> {
    let Connected {
        mut stream,
        established,
        portal,
        permanent_portal: _,
    } = connected;
    let limit = established.agreed.ours_max_recv_data_segment_bytes;
    let mut discovery = Discovery::new(portal, &established);
    let mut found = None;
    loop {
        let step = async {
            if let Some((bhs, data)) = discovery.poll_transmit() {
                connect::write_pdu(&mut stream, &bhs, &data)
                    .await
                    .map_err(SessionError::lost)?;
            }
            let bhs = connect::read_header(&mut stream)
                .await
                .map_err(SessionError::lost)?;
            let bytes = header::data_segment_bytes(&bhs);
            if bytes > limit {
                return Err(Violation::SegmentTooLong { bytes, limit }.into());
            }
            if header::ahs_bytes(&bhs) != 0 {
                return Err(Violation::AdditionalHeader.into());
            }
            let data = connect::read_segment(&mut stream, bytes)
                .await
                .map_err(SessionError::lost)?;
            Ok(discovery.handle_pdu(&bhs, &data)?)
        };
        match (step.await, found.take()) {
            (Ok(DiscoveryStep::Found(list)), _) => found = Some(list),
            (Ok(DiscoveryStep::Ended), Some(list)) => return Ok(list),
            (Ok(DiscoveryStep::Ended | DiscoveryStep::Continue), list) => found = list,
            // With the list in hand a target that does not stay for the logout does no harm.
            (Err(error), Some(list)) => {
                tracing::debug!(%error, "discovery session ended without an answer to the logout");
                return Ok(list);
            }
            (Err(error), None) => return Err(error),
        }
    }
}
