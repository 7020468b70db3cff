//! An NBD export: handshake and transmission as machines, the lane that drives them, the listener of an
//! export on a Unix socket, and the kernel's device. CONTRACT part:

use std::path::PathBuf;

use crate::block::Backend;

/// Why an export or a device failed; one line, with the remedy.
#[derive(Debug, thiserror::Error)]
#[error("contract")]
#[non_exhaustive]
pub enum Error {}

/// Where a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Fixed newstyle handshake first (any client).
    Handshake,
    /// Already in transmission (the kernel).
    Transmission,
}

/// Settings of an export on a Unix socket.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// Where to listen; a stale socket is replaced, a live one is an error.
    pub socket: PathBuf,
    /// Connections at once. Default 16.
    pub connections_max: usize,
}

/// Serves an export until `shutdown` fires: each client connection is a lane with a backend of its own.
/// On shutdown: no new connections, requests in flight are answered, backends are flushed and closed.
///
/// # Errors
/// The socket cannot be made. What befalls one client ends that client only, and is logged.
#[expect(clippy::unused_async, reason = "contract")]
pub async fn serve_export<B, F, O>(
    _options: ExportOptions,
    _open: O,
    _shutdown: tokio_util::sync::CancellationToken,
) -> Result<(), Error>
where
    B: Backend + Send + 'static,
    F: Future<Output = Result<B, Box<dyn std::error::Error + Send + Sync>>> + Send,
    O: Fn() -> F + Send + Sync + 'static,
{
    unimplemented!()
}

/// A device of the kernel's NBD driver that this process serves.
#[derive(Debug)]
pub struct KernelDevice {
    _private: (),
}

impl KernelDevice {
    /// Is there a kernel to speak to? Tries to load the module.
    ///
    /// # Errors
    /// No nbd in this kernel, no right to use it; says what to do.
    pub fn probe() -> Result<(), Error> {
        unimplemented!()
    }

    /// Serves `backends` (one lane and one socket each, each on a thread of its own) and connects them to a
    /// free `/dev/nbdX`. `identifier` is shown in sysfs `backend`; short, no newline.
    ///
    /// # Errors
    /// Netlink refused; nothing is left behind.
    #[expect(clippy::unused_async, reason = "contract")]
    pub async fn connect<B: Backend + Send + 'static>(
        _backends: Vec<B>,
        _identifier: &str,
    ) -> Result<Self, Error> {
        unimplemented!()
    }

    /// `/dev/nbdX`.
    pub fn path(&self) -> PathBuf {
        unimplemented!()
    }

    /// Refuses while the device is open elsewhere or mounted (`force` does not); then flushes, disconnects,
    /// ends the lanes and closes the backends.
    ///
    /// # Errors
    /// Busy (named by whom, as far as the kernel tells), or netlink refused; the device then still works.
    #[expect(clippy::unused_async, reason = "contract")]
    pub async fn disconnect(self, _force: bool) -> Result<(), (Self, Error)> {
        unimplemented!()
    }
}
