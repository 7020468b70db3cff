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

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::block::Backend;
use crate::nbd::Error;
use crate::nbd::export::OpenError;
use crate::nbd::link::Relinker;
use crate::sys::netlink::NbdFamily;
use crate::sys::socket;

use super::keep::{DeviceParams, Keepsake, LaneRemains};
use super::lanes::Lanes;
use super::sysfs::Sysfs;
use super::{KernelDevice, ask_kernel, check_identifier, join, path_of};

/// The driver notices a socket's end in a moment; if it does not in this time, somebody else holds the other end.
const ATTEMPTS: u32 = 200;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(10);
/// How long the next lane waits for what is doubtful on the one before: chosen freely; beyond it two slots may be dead
/// at once, and be filled crosswise, which costs the requests in them their time.
const STANDING_TIMEOUT: Duration = Duration::from_secs(10);

/// What the lanes of a device share.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) params: DeviceParams,
    /// Its number, once the kernel has it.
    pub(super) index: OnceLock<u32>,
    /// It is being disconnected.
    pub(super) is_over: AtomicBool,
    /// Held while a slot is filled (invariant 2).
    filling: Mutex<()>,
}

impl Device {
    pub(super) fn new(params: DeviceParams) -> Arc<Self> {
        Arc::new(Self {
            params,
            index: OnceLock::new(),
            is_over: AtomicBool::new(false),
            filling: Mutex::new(()),
        })
    }

    /// Gives something to the keeper, if there is one.
    pub(super) fn keep(&self, lane: usize, what: Keepsake, descriptor: BorrowedFd<'_>) {
        let Some(keeper) = &self.params.keeper else {
            return;
        };
        keeper.forget(lane, what);
        if let Err(error) = keeper.keep(lane, what, descriptor) {
            tracing::warn!("the {what:?} of lane {lane} is not kept for a successor: {error}");
        }
    }

    /// Gives the kernel a new socket for the slot that is dead, or is about to be; our end of it.
    async fn fill(self: Arc<Self>, lane: usize) -> Result<StdStream, Error> {
        let _one = self.filling.lock().await;
        let index = *self.index.get().ok_or(Error::LaneLost)?;
        for _ in 0..ATTEMPTS {
            let device = Arc::clone(&self);
            let ours = ask_kernel("take a new socket", move || {
                let (ours, kernels) = socket::lane_pair()?;
                device.keep(lane, Keepsake::Socket, ours.as_fd());
                // Our copy of the kernel's end is closed when this returns: its end must be the only one.
                let identifier = &device.params.identifier;
                NbdFamily::open()?.reconfigure(index, identifier, &[kernels.as_fd()])?;
                Ok(ours)
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
}

/// One lane's slot in the driver.
pub(super) struct Slot {
    lane: usize,
    device: Arc<Device>,
}

impl Slot {
    pub(super) fn new(lane: usize, device: Arc<Device>) -> Self {
        Self { lane, device }
    }
}

impl Relinker for Slot {
    fn relink(&self) -> Pin<Box<dyn Future<Output = io::Result<StdStream>> + Send>> {
        let filled = Arc::clone(&self.device).fill(self.lane);
        Box::pin(async move { filled.await.map_err(io::Error::other) })
    }

    fn is_over(&self) -> bool {
        self.device.index.get().is_none() || self.device.is_over.load(Ordering::Relaxed)
    }
}

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
    let leave = CancellationToken::new();
    let device = Device::new(params);
    let started = open_lanes(lanes, open, &device, &leave).await;
    let (index, mut started) = match started {
        Ok(started) => started,
        Err(error) => return Err((remains, error)),
    };
    // For another attempt, should this one fail half-way.
    let copies: Vec<_> = remains.iter().map(copy_of).collect();
    let mut remains = remains.into_iter();
    for lane in 0..lanes {
        let stands = started.resume(remains.next().unwrap_or_default());
        let stands = tokio::time::timeout(STANDING_TIMEOUT, stands).await;
        if matches!(stands, Ok(Err(_))) {
            leave.cancel();
            join(started.end()).await;
            let device = path_of(index);
            return Err((copies, Error::NotAdopted { device, lane }));
        }
    }
    Ok(KernelDevice {
        index,
        lanes: started.threads,
        device,
        leave,
    })
}

/// Finds the device, and opens all backends.
async fn open_lanes<B, F, O>(
    lanes: usize,
    open: O,
    device: &Arc<Device>,
    leave: &CancellationToken,
) -> Result<(u32, Lanes), Error>
where
    B: Backend + Send + 'static,
    F: Future<Output = Result<B, OpenError>> + Send,
    O: Fn(usize) -> F + Send + Sync + 'static,
{
    let identifier = &device.params.identifier;
    check_identifier(identifier)?;
    let found = KernelDevice::find(identifier)?;
    let index = found.ok_or_else(|| Error::NoDevice(identifier.clone()))?;
    let mut started = Lanes::start(lanes, &Arc::new(open), device, leave)?;
    let geometry = match started.geometry().await {
        Ok(geometry) => geometry,
        Err(error) => {
            join(started.end()).await;
            return Err(error);
        }
    };
    // A unit that has grown is shown later, by lanes that live (invariant 3); one that has shrunk is another one.
    let shown = Sysfs::of(index).size_bytes();
    if shown.is_some_and(|shown| shown > geometry.size_bytes) {
        join(started.end()).await;
        return Err(Error::Settings {
            device: path_of(index),
            what: "a size of",
            found: shown.unwrap_or_default().to_string(),
            expected: geometry.size_bytes.to_string(),
        });
    }
    let _ = device.index.set(index);
    Ok((index, started))
}

fn copy_of(remains: &LaneRemains) -> LaneRemains {
    let copy = |descriptor: &Option<std::os::fd::OwnedFd>| {
        descriptor.as_ref().and_then(|found| found.try_clone().ok())
    };
    LaneRemains {
        socket: copy(&remains.socket),
        journal: copy(&remains.journal),
    }
}
