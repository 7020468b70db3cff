//! Adoption: lanes of this process take over the device that a predecessor left, one after the other.
//!
//! A room of its own because here stands what is known of the driver's dead and live sockets.
//! Source: `drivers/block/nbd.c` (`nbd_genl_reconfigure`, `nbd_reconnect_socket`, `recv_work`).
//! Read before changing: ARCHITECTURE.md: Restart without loss; `lanes.rs`.
//!
//! Invariants:
//! 1. All backends are open, and with that all is over that the predecessor had under way, before the first lane is
//!    given a link.
//! 2. The driver fills its dead slots in order, and drops a socket that finds none without a word: so at any time at
//!    most one slot is made dead, its own lane's, and whether a socket was taken is looked at (our end hangs up if not).
//! 3. The message says nothing of the size: a changed one freezes the queue while it holds a lock that all of netlink
//!    needs.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::block::Backend;
use crate::nbd::Error;
use crate::nbd::export::OpenError;
use crate::sys::netlink::NbdFamily;
use crate::sys::socket;

use super::keep::{DeviceParams, Keepsake, LaneRemains};
use super::lanes::Lanes;
use super::{KernelDevice, ask_kernel, check_identifier, join, path_of};

/// How old a request may be that is taken over: `NBD_ATTR_TIMEOUT` is so much longer than a backend's patience, so that
/// the kernel's timer cannot bring it back by another lane while ours still has it.
pub(super) const ADOPTION_S: u64 = 60;
/// The driver notices a socket's end in a moment; if it does not in this time, somebody else holds the other end.
const ATTEMPTS: u32 = 200;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(10);

/// See [`KernelDevice::adopt`].
pub(super) async fn adopt<B, F, O>(
    lanes: usize,
    remains: Vec<LaneRemains>,
    open: O,
    params: DeviceParams,
) -> Result<KernelDevice, (Vec<LaneRemains>, Error)>
where
    B: Backend + Send + 'static,
    F: Future<Output = Result<B, OpenError>> + Send,
    O: Fn(usize) -> F + Send + Sync + 'static,
{
    let index = match find(&params) {
        Ok(index) => index,
        Err(error) => return Err((remains, error)),
    };
    let leave = CancellationToken::new();
    let mut started = match Lanes::start(lanes, &Arc::new(open), &leave) {
        Ok(started) => started,
        Err(error) => return Err((remains, error)),
    };
    if let Err(error) = started.geometry().await {
        join(started.end()).await;
        return Err((remains, error));
    }
    let mut remains = remains.into_iter();
    for lane in 0..lanes {
        // Its socket ends here, and with it the kernel's slot.
        drop(remains.next());
        match relink(index, lane, &params).await {
            Ok(stream) => started.give(stream),
            Err(error) => {
                leave.cancel();
                join(started.end()).await;
                return Err((remains.collect(), error));
            }
        }
    }
    Ok(KernelDevice {
        index,
        lanes: started.threads,
        params,
        leave,
    })
}

fn find(params: &DeviceParams) -> Result<u32, Error> {
    check_identifier(&params.identifier)?;
    KernelDevice::find(&params.identifier)?
        .ok_or_else(|| Error::NoDevice(params.identifier.clone()))
}

/// Gives the kernel a new socket for the slot that is dead, or is about to be; our end of it.
async fn relink(index: u32, lane: usize, params: &DeviceParams) -> Result<StdStream, Error> {
    for _ in 0..ATTEMPTS {
        let (ours, kernels) = socket::lane_pair().map_err(Error::Lane)?;
        if let Some(keeper) = &params.keeper {
            keeper.forget(lane, Keepsake::Socket);
            if let Err(error) = keeper.keep(lane, Keepsake::Socket, ours.as_fd()) {
                tracing::warn!("the socket of lane {lane} is not kept: {error}");
            }
        }
        let identifier = params.identifier.clone();
        ask_kernel("take a new socket", move || {
            // Our copy of the kernel's end is closed when this returns: its end must be the only one.
            NbdFamily::open()?.reconfigure(index, &identifier, &[kernels.as_fd()])
        })
        .await?;
        if !socket::has_hung_up(&ours).map_err(Error::Lane)? {
            return Ok(ours);
        }
        tokio::time::sleep(ATTEMPT_PAUSE).await;
    }
    Err(Error::NotAdopted {
        device: path_of(index),
        lane,
    })
}
