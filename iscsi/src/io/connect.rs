//! Connection and login: one PDU at a time, as the machine says; redirections are followed here.

use std::io;
use std::sync::Arc;

use super::network::{self, Network, Stream};
use crate::proto::login::{Established, Login, LoginStep, RESPONSE_TEXT_BYTES_MAX, Redirect};
use crate::proto::{LoginError, Portal, SessionParams, Violation};
use crate::wire::header::{self, BHS_BYTES, Bhs};
use crate::wire::serial::CmdSn;

/// Most redirections of one login: an array sends on once, a chain of them at most a few times.
const REDIRECTS_MAX: usize = 4;
/// The first command's number; chosen freely, as the target takes it from the login.
const FIRST_CMD_SN: CmdSn = CmdSn(1);

/// A connection in full feature phase.
#[derive(Debug)]
pub(super) struct Connected<S> {
    pub(super) stream: S,
    pub(super) established: Box<Established>,
    /// Where the login ended: the asked portal, or where the target sent us.
    pub(super) portal: Portal,
}

/// Connects and logs in within the login timeout.
///
/// # Errors
/// See `LoginError`.
pub(super) async fn connect<N: Network>(
    network: &N,
    params: &SessionParams,
) -> Result<Connected<N::Stream>, LoginError> {
    let after = params.login_timeout;
    tokio::time::timeout(after, follow(network, params))
        .await
        .unwrap_or_else(|_| {
            Err(LoginError::Timeout {
                portal: params.portal.clone(),
                after,
            })
        })
}

async fn follow<N: Network>(
    network: &N,
    params: &SessionParams,
) -> Result<Connected<N::Stream>, LoginError> {
    let mut params = params.clone();
    for _ in 0..=REDIRECTS_MAX {
        match log_in(network, &params).await? {
            Ok(connected) => return Ok(connected),
            Err(redirect) => {
                tracing::info!(
                    from = %params.portal,
                    to = %redirect.portal,
                    permanent = redirect.is_permanent,
                    "the target sends us to another portal"
                );
                params.portal = redirect.portal;
            }
        }
    }
    Err(LoginError::TooManyRedirects(REDIRECTS_MAX))
}

/// One login at one portal.
async fn log_in<N: Network>(
    network: &N,
    params: &SessionParams,
) -> Result<Result<Connected<N::Stream>, Redirect>, LoginError> {
    let mut login = Login::new(params, FIRST_CMD_SN).map_err(LoginError::Misuse)?;
    let portal = &params.portal;
    let mut stream = network
        .connect(portal)
        .await
        .map_err(|cause| LoginError::Unreachable {
            portal: portal.clone(),
            cause: Arc::new(cause),
        })?;
    let lost = |cause| LoginError::Lost {
        portal: portal.clone(),
        cause: Arc::new(cause),
    };
    loop {
        if let Some((bhs, text)) = login.poll_transmit() {
            write_pdu(&mut stream, &bhs, &text).await.map_err(lost)?;
        }
        let bhs = read_header(&mut stream).await.map_err(lost)?;
        let bytes = header::data_segment_bytes(&bhs);
        if usize::try_from(bytes).map_or(true, |bytes| bytes > RESPONSE_TEXT_BYTES_MAX) {
            return Err(Violation::TextTooLong {
                limit: RESPONSE_TEXT_BYTES_MAX,
            }
            .into());
        }
        if header::ahs_bytes(&bhs) != 0 {
            return Err(Violation::AdditionalHeader.into());
        }
        let text = read_segment(&mut stream, bytes).await.map_err(lost)?;
        match login.handle_response(&bhs, &text)? {
            LoginStep::Continue => {}
            LoginStep::Redirect(redirect) => return Ok(Err(redirect)),
            LoginStep::Established(established) => {
                return Ok(Ok(Connected {
                    stream,
                    established,
                    portal: portal.clone(),
                }));
            }
        }
    }
}

/// Writes a PDU of a few bytes, outside of the hot path.
pub(super) async fn write_pdu(stream: &mut impl Stream, bhs: &Bhs, data: &[u8]) -> io::Result<()> {
    let mut pdu = Vec::with_capacity(BHS_BYTES + data.len() + 3);
    pdu.extend_from_slice(bhs);
    pdu.extend_from_slice(data);
    pdu.resize(pdu.len().next_multiple_of(4), 0);
    network::write_all(stream, &pdu).await
}

pub(super) async fn read_header(stream: &mut impl Stream) -> io::Result<Bhs> {
    let mut bhs = [0; BHS_BYTES];
    network::read_exact(stream, &mut bhs).await?;
    Ok(bhs)
}

/// Reads a data segment and its padding; the caller has checked `bytes` against a limit.
pub(super) async fn read_segment(stream: &mut impl Stream, bytes: u32) -> io::Result<Vec<u8>> {
    let length = usize::try_from(bytes).map_err(io::Error::other)?;
    let mut data = vec![0; length.next_multiple_of(4)];
    network::read_exact(stream, &mut data).await?;
    data.truncate(length);
    Ok(data)
}
