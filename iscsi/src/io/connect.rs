//! Connection and login: one PDU at a time, as the machine says; redirections are followed here, and a
//! list of CHAP algorithms that a target cannot read is taken back here.
//!
//! Source: RFC 7143 §6.3, §11.13.5; §12.1.3 for the list.
//!
//! Invariants:
//! 1. The login timeout holds for all connections that one login takes.
//! 2. Each hop is a login of its own, with random bytes of its own.

use std::io;
use std::sync::Arc;

use super::network::{self, Network, Stream};
use crate::proto::chap::CHANCE_BYTES;
use crate::proto::login::{Established, Login, LoginStep, PDU_TEXT_BYTES_MAX, Redirect};
use crate::proto::{ChapAlgorithm, LoginError, Misuse, Portal, SessionParams, Violation};
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
    /// Where later logins go instead of the asked portal: the target has moved for good.
    pub(super) permanent_portal: Option<Portal>,
}

/// What is logged in for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Aim {
    /// A new session, normal or for discovery.
    Leading,
    /// A further connection of a session.
    Further { cmd_sn: CmdSn, tsih: u16, cid: u16 },
}

/// Connects and logs in within the login timeout.
///
/// # Errors
/// See `LoginError`.
pub(super) async fn connect<N: Network>(
    network: &N,
    params: &SessionParams,
    aim: Aim,
) -> Result<Connected<N::Stream>, LoginError> {
    let after = params.login_timeout;
    tokio::time::timeout(after, follow(network, params, aim))
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
    aim: Aim,
) -> Result<Connected<N::Stream>, LoginError> {
    let mut params = params.clone();
    let mut seen = vec![params.portal.clone()];
    let mut permanent_portal = None;
    let mut is_permanent = true;
    while seen.len() <= REDIRECTS_MAX + 1 {
        let redirect = match log_in(network, &mut params, aim).await? {
            Outcome::Arrived {
                stream,
                established,
            } => {
                for warning in &established.warnings {
                    tracing::warn!(portal = %params.portal, "{warning}");
                }
                return Ok(Connected {
                    stream,
                    established,
                    portal: params.portal,
                    permanent_portal,
                });
            }
            Outcome::SentOn(redirect) => redirect,
        };
        tracing::info!(
            from = %params.portal,
            to = %redirect.portal,
            permanent = redirect.is_permanent,
            "the target sends us to another portal"
        );
        let portal = redirect.portal;
        // RFC 7143 §11.13.5 (L26): what lies behind a temporary hop is not where the target lives
        is_permanent &= redirect.is_permanent;
        if is_permanent {
            permanent_portal = Some(portal.clone());
        }
        if seen.contains(&portal) {
            return Err(LoginError::RedirectLoop { portal });
        }
        seen.push(portal.clone());
        params.portal = portal;
        // Discovery spoke of the portal that we were asked for.
        params.expected_tpgt = None;
    }
    Err(LoginError::TooManyRedirects(REDIRECTS_MAX))
}

/// Where a login led.
enum Outcome<S> {
    Arrived {
        stream: S,
        established: Box<Established>,
    },
    SentOn(Redirect),
}

/// Why a login failed.
enum Failed {
    AtLast(LoginError),
    /// With MD5 alone it may succeed.
    ButForMd5(LoginError),
}

/// One login at one portal; a second with MD5 alone, where the target cannot read our list.
async fn log_in<N: Network>(
    network: &N,
    params: &mut SessionParams,
    aim: Aim,
) -> Result<Outcome<N::Stream>, LoginError> {
    let error = match attempt(network, params, aim).await {
        Ok(outcome) => return Ok(outcome),
        Err(Failed::AtLast(error)) => return Err(error),
        Err(Failed::ButForMd5(error)) => error,
    };
    tracing::info!(
        portal = %params.portal,
        %error,
        "the target does not take our list of CHAP algorithms; trying MD5 alone"
    );
    params.chap_algorithms = vec![ChapAlgorithm::Md5];
    attempt(network, params, aim)
        .await
        .map_err(|(Failed::AtLast(error) | Failed::ButForMd5(error))| error)
}

async fn attempt<N: Network>(
    network: &N,
    params: &SessionParams,
    aim: Aim,
) -> Result<Outcome<N::Stream>, Failed> {
    let mut login = begin(params, aim).map_err(Failed::AtLast)?;
    let mut stream = network.connect(&params.portal).await.map_err(|cause| {
        Failed::AtLast(LoginError::Unreachable {
            portal: params.portal.clone(),
            cause: Arc::new(cause),
        })
    })?;
    loop {
        match step(&mut stream, &mut login, &params.portal).await {
            Ok(LoginStep::Continue) => {}
            Ok(LoginStep::Redirect(redirect)) => return Ok(Outcome::SentOn(redirect)),
            Ok(LoginStep::Established(established)) => {
                return Ok(Outcome::Arrived {
                    stream,
                    established,
                });
            }
            Err(error) if login.may_try_md5(&error) => return Err(Failed::ButForMd5(error)),
            Err(error) => return Err(Failed::AtLast(error)),
        }
    }
}

fn begin(params: &SessionParams, aim: Aim) -> Result<Login, LoginError> {
    let login = match aim {
        Aim::Leading => Login::new(params, FIRST_CMD_SN),
        Aim::Further { cmd_sn, tsih, cid } => Login::further(params, cmd_sn, tsih, cid),
    };
    let login = login.map_err(LoginError::Misuse)?;
    if params.mutual_chap.is_none() {
        return Ok(login);
    }
    let mut chance = [0; CHANCE_BYTES];
    getrandom::fill(&mut chance).map_err(|_| LoginError::Misuse(Misuse::NoChance))?;
    Ok(login.with_chance(chance))
}

/// One request and its response.
async fn step(
    stream: &mut impl Stream,
    login: &mut Login,
    portal: &Portal,
) -> Result<LoginStep, LoginError> {
    let lost = |cause| LoginError::Lost {
        portal: portal.clone(),
        cause: Arc::new(cause),
    };
    if let Some((bhs, text)) = login.poll_transmit() {
        write_pdu(stream, &bhs, &text).await.map_err(lost)?;
    }
    let bhs = read_header(stream).await.map_err(lost)?;
    let bytes = header::data_segment_bytes(&bhs);
    if bytes > PDU_TEXT_BYTES_MAX {
        return Err(Violation::SegmentTooLong {
            bytes,
            limit: PDU_TEXT_BYTES_MAX,
        }
        .into());
    }
    if header::ahs_bytes(&bhs) != 0 {
        return Err(Violation::AdditionalHeader.into());
    }
    let text = read_segment(stream, bytes).await.map_err(lost)?;
    login.handle_response(&bhs, &text)
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
