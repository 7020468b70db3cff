//! What of a device outlives this process, and who keeps it: the words between this room and whoever does.
//!
//! A room of its own because `nbd` knows neither systemd's store nor our own parent process: it hands descriptors to a
//! `Keeper`, and a successor is given them back as `LaneRemains`.
//! Read before changing: `adopt.rs`; ARCHITECTURE.md: Restart without loss.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Keeps descriptors beyond this process's life.
///
/// It keeps a duplicate; what it is lent stays the lender's. A call may block for as long as a message to the holder
/// takes.
pub trait Keeper: Send + Sync {
    /// Keeps this descriptor for this lane, beside what is kept of other kinds. What was kept of the same kind is
    /// forgotten before, by [`Self::forget`].
    ///
    /// # Errors
    /// The holder cannot be told; then a successor lacks it, and is slower.
    fn keep(&self, lane: usize, what: Keepsake, descriptor: BorrowedFd<'_>) -> io::Result<()>;

    /// What was kept is not needed any more. Nothing kept is no fault.
    fn forget(&self, lane: usize, what: Keepsake);
}

/// What is kept of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Keepsake {
    /// Our end of the socket pair whose other end the kernel has: while it is open, the kernel's link is alive.
    Socket,
    /// The memory with the lane's journal.
    Journal,
}

/// What a predecessor left of one lane; either may be missing, and then the kernel's own timer brings the requests back
/// that were under way.
#[derive(Debug, Default)]
pub struct LaneRemains {
    /// See [`Keepsake::Socket`].
    pub socket: Option<OwnedFd>,
    /// See [`Keepsake::Journal`].
    pub journal: Option<OwnedFd>,
}

/// How a device is shown, and what happens to its I/O when something is away.
#[derive(Clone)]
pub struct DeviceParams {
    /// Shown in sysfs as `backend`, 1 to 255 printable bytes; a device is found again by it.
    pub identifier: String,
    /// How long a backend may hold a request while its target is away; `None` for ever.
    pub holds: Option<Duration>,
    /// How long the kernel holds I/O while no process serves the device; whole seconds. Zero: not at all, I/O fails at
    /// once.
    pub dead_conn_timeout: Duration,
    /// Who keeps the lanes' sockets and journals; `None`: nobody, and they end with this process.
    pub keeper: Option<Arc<dyn Keeper>>,
}

impl DeviceParams {
    /// Nothing is held, nobody keeps anything, and I/O fails at once when this process is gone.
    pub fn new(identifier: impl Into<String>) -> Self {
        Self {
            identifier: identifier.into(),
            holds: Some(Duration::ZERO),
            dead_conn_timeout: Duration::ZERO,
            keeper: None,
        }
    }

    /// Forgets everything of these lanes: their device is gone.
    pub(super) fn forget_all(&self, lanes: usize) {
        let Some(keeper) = &self.keeper else { return };
        for lane in 0..lanes {
            keeper.forget(lane, Keepsake::Socket);
            keeper.forget(lane, Keepsake::Journal);
        }
    }
}

impl fmt::Debug for DeviceParams {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DeviceParams")
            .field("identifier", &self.identifier)
            .field("holds", &self.holds)
            .field("dead_conn_timeout", &self.dead_conn_timeout)
            .field("keeper", &self.keeper.is_some())
            .finish()
    }
}
