//! A device of the kernel's NBD driver, `/dev/nbdX`, that this process serves.
//!
//! A room of its own because it is the only one that speaks to the driver: netlink to ask, sysfs to see what is true.
//! Source: `drivers/block/nbd.c`; `Documentation/admin-guide/blockdev/nbd.rst`.
//! Read before changing: `lane.rs`; `sys/netlink.rs`.
//!
//! Invariants:
//! 1. The lanes serve before the kernel hears of them: it reads the partition table at the first open, and a read
//!    that nobody answers blocks every later open.
//! 2. A device is disconnected only with proof that nobody uses it, or by force: an exclusive open succeeded and is
//!    held, no process has it open, and everything dirty was written and flushed.
//! 3. After a failure of `connect` nothing is left: neither device nor lane nor session.
//! 4. What the kernel shows is compared with what we asked before anybody uses the device.
//!
//! # Times
//!
//! The kernel waits for an answer to a request for as long as the backend may hold one while its target is away,
//! `WORK_S` more, and `ADOPTION_S` for a new process to take over: what ends first must be the backend's own patience,
//! which knows why. Then the kernel's timer kills the socket and sends the request anew. How long I/O waits while no
//! process serves the device is the caller's choice (`DeviceParams::dead_conn_timeout`).
//!
//! For the same reason `WRITE_ZEROES` is not offered to the kernel: it would ask for up to 4 GiB at once, which a
//! target that writes the zeroes may not finish in time; without it the kernel writes zeroes in ordinary requests.

mod adopt;
mod driver;
mod keep;
mod lanes;
mod queue;
mod resize;
mod sysfs;
mod users;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::block::{Backend, Geometry};
use crate::sys::blkdev;
use crate::sys::netlink::{self, NbdFamily};

use self::adopt::Device;
pub use self::keep::{DeviceParams, Keeper, Keepsake, LaneRemains};
use self::lanes::Lanes;
use self::sysfs::Sysfs;
use super::Error;
use super::export::OpenError;
use super::link::ADOPTION_S;
use super::thread::LaneThread;
use super::wire::{transmission_flag, transmission_flags};

/// How long a request may take whose target is there: every step of the timeout ladder (30 + 10 + 15 + 30 s) once.
const WORK_S: u64 = 90;
/// `NBD_ATTR_TIMEOUT` of a device whose backend holds requests for ever: as long as the driver can count on every
/// machine (it multiplies by the tick's frequency in 32 bits), and yet an end: some three weeks.
const FOREVER_S: u64 = 2_000_000;
/// The driver's largest block; larger ones are refused by kernels of several years.
const BLOCK_BYTES_MAX: u32 = 4096;
/// sysfs shows the identifier in one line of a page.
const IDENTIFIER_BYTES_MAX: usize = 255;
/// A call to the driver may wait for queues to freeze; one that takes longer than this is stuck.
const KERNEL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a transient user (udev probes each device that was written) may delay a disconnect.
const BUSY_GRACE: Duration = Duration::from_secs(3);
/// Between two looks at sysfs or at a busy device.
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// By force, dirty data may take this long to be written; then it is given up.
const FORCED_FLUSH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the lanes of a device that is gone may take to flush and log out.
const LANES_TIMEOUT: Duration = Duration::from_mins(1);

/// A device of the kernel's NBD driver that this process serves.
///
/// Dropped without [`Self::disconnect`] it stays connected and served until the process ends; then its users get I/O
/// errors.
#[derive(Debug)]
pub struct KernelDevice {
    index: u32,
    lanes: Vec<LaneThread<()>>,
    device: Arc<Device>,
    leave: CancellationToken,
}

impl KernelDevice {
    /// Is there a kernel to speak to? Tries to load the module. Blocks for as long as that takes.
    ///
    /// # Errors
    /// No nbd in this kernel, no right to use it; says what to do.
    pub fn probe() -> Result<(), Error> {
        driver::probe()
    }

    /// Serves `backends` (one lane and one socket each, each on a thread of its own) and connects them to a free
    /// `/dev/nbdX`. `identifier` is shown in sysfs `backend`; at most 255 printable bytes.
    ///
    /// A backend that was opened on another thread keeps its sockets' events there; [`Self::connect_with`] opens it
    /// where it is served, and is quicker.
    ///
    /// # Errors
    /// Netlink refused, or the geometry does not fit; nothing is left behind, and the backends are closed.
    ///
    /// # Cancel safety
    /// None: the kernel may have the device already.
    pub async fn connect<B: Backend + Send + 'static>(
        backends: Vec<B>,
        identifier: &str,
    ) -> Result<Self, Error> {
        let lanes = backends.len();
        let backends: Vec<_> = backends
            .into_iter()
            .map(|backend| std::sync::Mutex::new(Some(backend)))
            .collect();
        // Each backend is taken once, by its lane; a lock is the safe way to take it out of what is shared.
        let take = move |lane: usize| {
            let backend = backends[lane]
                .lock()
                .ok()
                .and_then(|mut backend| backend.take());
            async move { backend.ok_or_else(|| OpenError::from("a backend was taken twice")) }
        };
        Self::connect_with(lanes, take, DeviceParams::new(identifier)).await
    }

    /// As [`Self::connect`], with backends that `open` makes on their lanes' threads; its argument is the lane's
    /// number, in `0..lanes`. What a successor needs is given to the keeper.
    ///
    /// # Errors
    /// As [`Self::connect`]; and `open`'s own, in [`Error::Backend`].
    ///
    /// # Cancel safety
    /// As [`Self::connect`].
    pub async fn connect_with<B, F, O>(
        lanes: usize,
        open: O,
        params: DeviceParams,
    ) -> Result<Self, Error>
    where
        B: Backend + Send + 'static,
        F: Future<Output = Result<B, OpenError>> + Send,
        O: Fn(usize) -> F + Send + Sync + 'static,
    {
        check_identifier(&params.identifier)?;
        let leave = CancellationToken::new();
        let device = Device::new(params);
        let mut started = Lanes::start(lanes, &Arc::new(open), &device, &leave)?;
        match connect_lanes(&mut started, &device).await {
            Ok(index) => {
                started.growth.begin(index, &device.params.identifier);
                Ok(Self {
                    index,
                    lanes: started.threads,
                    device,
                    leave,
                })
            }
            Err(error) => {
                leave.cancel();
                device.params.forget_all(lanes);
                join(started.end()).await;
                Err(error)
            }
        }
    }

    /// Serves the device that a process that is gone left under this identifier: its users go on, and what they have
    /// under way is answered. `lanes` is what the device was connected with; `remains` what the keeper gives back, in
    /// order of the lanes (those that are missing at the end are empty).
    ///
    /// `open` must leave a backend behind for which everything is over that the predecessor had under way: nothing of
    /// it may take effect later. It is called for all lanes before one request is sent.
    ///
    /// # Errors
    /// There is no such device; `open`'s own; the kernel does not take the lanes. The device stays as it is, for a later
    /// attempt, and what was left is given back.
    ///
    /// # Cancel safety
    /// None: the kernel may have some of the lanes already.
    pub async fn adopt<B, F, O>(
        lanes: usize,
        remains: Vec<LaneRemains>,
        open: O,
        params: DeviceParams,
    ) -> Result<Self, (Vec<LaneRemains>, Error)>
    where
        B: Backend + Send + 'static,
        F: Future<Output = Result<B, OpenError>> + Send,
        O: Fn(usize) -> F + Send + Sync + 'static,
    {
        adopt::adopt(lanes, remains, open, params).await
    }

    /// The kernel's device of this identifier, `/dev/nbdX`'s X, whether it is served or not. No nbd in this kernel is
    /// none.
    ///
    /// # Errors
    /// sysfs cannot be read.
    pub fn find(identifier: &str) -> Result<Option<u32>, Error> {
        let found = Sysfs::find(identifier);
        let found = found.map_err(|error| refusal("say which devices there are", error.into()))?;
        Ok(found.first().copied())
    }

    /// All connected devices whose identifier begins so: number and identifier. No nbd in this kernel is none.
    ///
    /// # Errors
    /// sysfs cannot be read.
    pub fn all(prefix: &str) -> Result<Vec<(u32, String)>, Error> {
        let found = Sysfs::all(prefix);
        found.map_err(|error| refusal("say which devices there are", error.into()))
    }

    /// Disconnects what a process that is gone left behind under this identifier, if anything: its I/O fails, its
    /// users get errors. Blocks until the device is gone, or only its last users keep it.
    ///
    /// That the process is gone is for the caller to know: the kernel does not tell.
    ///
    /// # Errors
    /// Netlink refused. No nbd in this kernel is none: then there is nothing.
    pub fn disconnect_stale(identifier: &str) -> Result<(), Error> {
        let doing = "disconnect a device that was left behind";
        let refused = |error| refusal(doing, error);
        let stale = Sysfs::find(identifier).map_err(|error| refused(error.into()))?;
        if stale.is_empty() {
            return Ok(());
        }
        let mut family = NbdFamily::open().map_err(refused)?;
        for index in stale {
            family.disconnect(index).map_err(refused)?;
            wait_until_released(index);
        }
        Ok(())
    }

    /// `/dev/nbdX`.
    pub fn path(&self) -> PathBuf {
        path_of(self.index)
    }

    /// Whether every lane is at work. A device that has lost a lane is slower; one that has lost all only fails.
    pub fn is_served(&self) -> bool {
        self.lanes.iter().all(LaneThread::is_running)
    }

    /// Refuses while the device is open elsewhere or mounted (`force` does not); then flushes, disconnects, ends the
    /// lanes and closes the backends.
    ///
    /// # Errors
    /// Busy (named by whom, as far as the kernel tells), or netlink refused; the device then still works.
    ///
    /// # Cancel safety
    /// None: the device may be disconnected and its lanes unobserved.
    pub async fn disconnect(self, force: bool) -> Result<(), (Self, Error)> {
        let index = self.index;
        let guard = if force {
            give_up_after(FORCED_FLUSH_TIMEOUT, move || flush(&path_of(index))).await;
            None
        } else {
            match blocking(move || secure(index)).await {
                Ok(guard) => Some(guard),
                Err(error) => return Err((self, error)),
            }
        };
        let doing = "disconnect the device";
        self.device.is_over.store(true, Ordering::Relaxed);
        let asked = ask_kernel(doing, move || NbdFamily::open()?.disconnect(index)).await;
        if let Err(error) = asked {
            self.device.is_over.store(false, Ordering::Relaxed);
            return Err((self, error));
        }
        // Held until here, so that nobody could mount the device in between.
        drop(guard);
        self.device.params.forget_all(self.lanes.len());
        join(self.lanes).await;
        give_up_after(KERNEL_TIMEOUT, move || wait_until_released(index)).await;
        Ok(())
    }

    /// Leaves the device to a successor: nothing more is taken from the kernel, what is under way is answered, the
    /// backends are flushed and closed. The kernel keeps the device and what is sent to it meanwhile; the keeper keeps
    /// what [`Self::adopt`] needs.
    ///
    /// # Cancel safety
    /// The lanes go on leaving, unobserved.
    pub async fn hand_over(self) {
        self.leave.cancel();
        join(self.lanes).await;
    }
}

fn check_identifier(identifier: &str) -> Result<(), Error> {
    let printable = identifier.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if identifier.is_empty() || identifier.len() > IDENTIFIER_BYTES_MAX || !printable {
        return Err(Error::Identifier(identifier.to_owned()));
    }
    Ok(())
}

/// `NBD_ATTR_TIMEOUT`. Not zero, which is 30 s and a killed link for a device with several sockets.
fn request_timeout_s(holds: Option<Duration>) -> u64 {
    holds.map_or(FOREVER_S, |holds| {
        (holds.as_secs() + WORK_S + ADOPTION_S).min(FOREVER_S)
    })
}

/// The lanes begin, and the kernel gets their sockets; the device's number.
async fn connect_lanes(started: &mut Lanes, device: &Device) -> Result<u32, Error> {
    let geometry = started.geometry().await?;
    let kernel_ends = started.begin(device)?;
    let index = attach(geometry, kernel_ends, &device.params).await?;
    let _ = device.index.set(index);
    Ok(index)
}

/// Gives the sockets to the kernel and makes sure of what it made of them; the device's number.
async fn attach(
    geometry: Geometry,
    sockets: Vec<StdStream>,
    params: &DeviceParams,
) -> Result<u32, Error> {
    let block = geometry.block_bytes;
    if !block.is_power_of_two() || !(512..=BLOCK_BYTES_MAX).contains(&block) {
        return Err(Error::BlockBytes(block));
    }
    if geometry.size_bytes == 0 || !geometry.size_bytes.is_multiple_of(u64::from(block)) {
        return Err(Error::SizeBytes(geometry.size_bytes));
    }
    let mut server_flags = transmission_flags(&geometry) & !transmission_flag::SEND_WRITE_ZEROES;
    if sockets.len() == 1 {
        server_flags &= !transmission_flag::CAN_MULTI_CONN;
    }
    let owned = params.identifier.clone();
    let timeout_s = request_timeout_s(params.holds);
    let dead_conn_timeout_s = params.dead_conn_timeout.as_secs();
    let size_bytes = geometry.size_bytes;
    let asked = ask_kernel("connect a device", move || {
        let settings = netlink::Connect {
            size_bytes,
            block_bytes: block,
            server_flags,
            timeout_s,
            dead_conn_timeout_s,
            identifier: &owned,
        };
        let borrowed: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        // Our copies of the kernel's ends are closed when this returns: its end must be the only one.
        NbdFamily::open()?.connect(&settings, &borrowed)
    })
    .await;
    let owned = params.identifier.clone();
    match asked {
        Ok(index) => {
            let tuned = blocking(move || {
                queue::tune(index, &geometry, &owned)?;
                wait_for_node(index)
            })
            .await;
            if tuned.is_err() {
                let _ =
                    ask_kernel("disconnect", move || NbdFamily::open()?.disconnect(index)).await;
            }
            tuned.map(|()| index)
        }
        // The answer was lost, perhaps not the request: what has our identifier now is ours, and nobody's.
        Err(error @ (Error::Deadline { .. } | Error::Netlink { .. })) => {
            if let Err(error) = blocking(move || KernelDevice::disconnect_stale(&owned)).await {
                tracing::error!("a device may be left behind: {error}");
            }
            Err(driver::explained(error))
        }
        Err(error) => Err(error),
    }
}

/// The device's node is made by the kernel (devtmpfs) or udev, a moment after the device.
fn wait_for_node(index: u32) -> Result<(), Error> {
    let path = path_of(index);
    let deadline = Instant::now() + BUSY_GRACE;
    loop {
        match blkdev::number(&path) {
            Ok(_) => return Ok(()),
            Err(_) if Instant::now() <= deadline => std::thread::sleep(LOOK_PAUSE),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoNode { device: path });
            }
            Err(source) => {
                return Err(Error::Open {
                    device: path,
                    source,
                });
            }
        }
    }
}

/// Proves that nobody uses the device, and writes back what is dirty. While the file is held nobody can mount it.
fn secure(index: u32) -> Result<File, Error> {
    let device = path_of(index);
    let deadline = Instant::now() + BUSY_GRACE;
    loop {
        let users = match open_exclusively(&device) {
            Ok(file) => {
                let openers = users::openers(&format!("nbd{index}"), file.as_raw_fd());
                if openers.is_empty() {
                    let flushed = blkdev::drop_cache(&file);
                    return flushed
                        .map(|()| file)
                        .map_err(|source| Error::Flush { device, source });
                }
                users::in_words(&openers)
            }
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => users::describe(index),
            Err(source) => return Err(Error::Open { device, source }),
        };
        if Instant::now() > deadline {
            return Err(Error::Busy { device, users });
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}

fn open_exclusively(path: &Path) -> io::Result<File> {
    let exclusive =
        i32::try_from(rustix::fs::OFlags::EXCL.bits()).expect("O_EXCL is a small constant");
    // For reading: closing a file that was open for writing would wake udev's watch.
    OpenOptions::new()
        .read(true)
        .custom_flags(exclusive)
        .open(path)
}

/// Best effort, before a disconnect by force.
fn flush(path: &Path) {
    let flushed = File::open(path).and_then(|file| file.sync_all());
    if let Err(error) = flushed {
        tracing::warn!(
            "{}: what was not written is given up: {error}",
            path.display()
        );
    }
}

/// A device that is disconnected is free once its last user has closed it; by force there may be some left, who get
/// errors from now on.
fn wait_until_released(index: u32) {
    let sysfs = Sysfs::of(index);
    let deadline = Instant::now() + BUSY_GRACE;
    while sysfs.is_connected() {
        if Instant::now() > deadline {
            let users = users::describe(index);
            return tracing::warn!("nbd{index} is disconnected, but not free yet: used by {users}");
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}

async fn join(lanes: Vec<LaneThread<()>>) {
    let ended = async {
        for lane in lanes {
            lane.join().await;
        }
    };
    if tokio::time::timeout(LANES_TIMEOUT, ended).await.is_err() {
        tracing::error!("a lane did not end: its session is left to the target's own timeout");
    }
}

/// Asks the driver something on a thread that may block.
async fn ask_kernel<T, A>(doing: &'static str, ask: A) -> Result<T, Error>
where
    T: Send + 'static,
    A: FnOnce() -> Result<T, netlink::Error> + Send + 'static,
{
    match tokio::time::timeout(KERNEL_TIMEOUT, tokio::task::spawn_blocking(ask)).await {
        Ok(Ok(answer)) => answer.map_err(|error| refusal(doing, error)),
        Ok(Err(_)) => Err(Error::LaneLost),
        Err(_) => Err(Error::Deadline {
            doing,
            seconds: KERNEL_TIMEOUT.as_secs(),
        }),
    }
}

/// Runs what blocks on a thread of its own, and awaits it.
async fn blocking<T, W>(work: W) -> Result<T, Error>
where
    T: Send + 'static,
    W: FnOnce() -> Result<T, Error> + Send + 'static,
{
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(Error::LaneLost))
}

/// Runs what blocks, and leaves it behind when it takes too long: it ends when the device does.
async fn give_up_after<W: FnOnce() + Send + 'static>(limit: Duration, work: W) {
    if tokio::time::timeout(limit, tokio::task::spawn_blocking(work))
        .await
        .is_err()
    {
        tracing::warn!(
            "dirty data could not be written in {} s: given up",
            limit.as_secs()
        );
    }
}

fn refusal(doing: &'static str, error: netlink::Error) -> Error {
    match error {
        netlink::Error::NoFamily => Error::NoDriver,
        netlink::Error::NotPermitted => Error::NotPermitted,
        source @ (netlink::Error::Refused(_)
        | netlink::Error::Socket(_)
        | netlink::Error::System(_)
        | netlink::Error::Malformed(_)) => Error::Netlink { doing, source },
    }
}

fn path_of(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{index}"))
}
