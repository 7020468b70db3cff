//! Why an export or a kernel device failed: one line each, with the remedy.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::sys::netlink;

/// Why an export or a device failed; sorted by fault: the machine we run on, our caller, the kernel's refusal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel has no driver.
    #[error(
        "this kernel has no nbd driver: load it with 'modprobe nbd' or boot a kernel that has CONFIG_BLK_DEV_NBD"
    )]
    NoDriver,
    /// The module is there and not loaded, and loading it is not for us.
    #[error(
        "the nbd module is not loaded, and this process may not load it: run 'modprobe nbd' on the host, or give the daemon CAP_SYS_MODULE"
    )]
    NotLoaded,
    /// The driver is there and does not answer here.
    #[error(
        "the nbd driver is loaded, but not to be reached from here: kernels before 6.12 answer in the host's network namespace only, so run the daemon there"
    )]
    OutOfReach,
    /// The driver has no device left.
    #[error(
        "no nbd device is free ({source}; the module has nbds_max={devices}): detach one, or load the module with a larger nbds_max"
    )]
    NoneFree {
        /// How many the module made when it was loaded.
        devices: u64,
        /// What the driver said.
        source: io::Error,
    },
    /// The kernel has the device, and nobody made its file.
    #[error(
        "the kernel has {} now, but the file does not appear: the daemon's /dev must be the host's (in a container: mount it), or udev must run", device.display()
    )]
    NoNode {
        /// `/dev/nbdX`.
        device: PathBuf,
    },
    /// The right to configure devices is missing.
    #[error("the nbd driver needs CAP_SYS_ADMIN in the initial user namespace: run as root")]
    NotPermitted,
    /// The export's socket cannot be made.
    #[error("cannot listen on {place}")]
    Listen {
        /// Its path or address.
        place: String,
        /// What the system said.
        source: io::Error,
    },
    /// Strangers would be served in the clear.
    #[error(
        "{0} can be reached from other hosts and has no TLS: give it a certificate and a key, or listen on loopback or a Unix socket"
    )]
    TlsRequired(SocketAddr),
    /// A name or a description that clients could not be told.
    #[error(
        "the export's name or description has {bytes} bytes: at most {most} can be told to clients"
    )]
    TextTooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        most: usize,
    },
    /// There is nothing to listen on.
    #[error("the export has nothing to listen on: give it a socket or an address")]
    NoEndpoints,
    /// What a client was to be served on is no stream.
    #[error(
        "standard input and output are no connection: run it with two pipes or one stream socket on them"
    )]
    NoConnection(#[source] io::Error),
    /// The only client was not served.
    #[error("the client was not served: {0}")]
    Client(String),
    /// The system has no sockets or threads left for a lane.
    #[error("cannot start a lane")]
    Lane(#[source] io::Error),
    /// A backend could not be opened on its lane.
    #[error("cannot open the volume")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A thread of ours panicked.
    #[error("a thread of the device ended unexpectedly: a bug; the log says where")]
    LaneLost,
    /// There is nothing to serve.
    #[error("a kernel device needs at least one lane")]
    NoLanes,
    /// The lanes do not agree.
    #[error(
        "the lanes of one device have different geometries: their sessions do not reach the same volume"
    )]
    Geometry,
    /// The driver cannot show blocks of this size.
    #[error(
        "the volume has blocks of {0} bytes, the kernel's nbd driver takes 512 to 4096: use 'export' instead"
    )]
    BlockBytes(u32),
    /// An empty device, or one that is no multiple of its blocks.
    #[error(
        "the volume has {0} bytes, which is no positive multiple of its blocks: see to the target"
    )]
    SizeBytes(u64),
    /// An identifier the kernel would not show.
    #[error("the backend identifier {0:?} must be 1 to 255 printable bytes")]
    Identifier(String),
    /// There is no device to adopt.
    #[error("the kernel has no device with the backend {0:?}: attach the volume anew")]
    NoDevice(String),
    /// The kernel keeps a device's old socket.
    #[error(
        "the kernel did not take a new socket for lane {lane} of {}: is another process serving it?", device.display()
    )]
    NotAdopted {
        /// `/dev/nbdX`.
        device: PathBuf,
        /// Which lane.
        lane: usize,
    },
    /// The kernel refused, or was not understood.
    #[error("the kernel would not {doing}")]
    Netlink {
        /// What was asked of it.
        doing: &'static str,
        /// How it answered.
        source: netlink::Error,
    },
    /// The kernel did not answer.
    #[error(
        "the kernel did not {doing} within {seconds} s: look for blocked I/O in the kernel's log"
    )]
    Deadline {
        /// What was asked of it.
        doing: &'static str,
        /// How long we waited.
        seconds: u64,
    },
    /// The kernel took the device, but shows other settings than ours.
    #[error("{} shows {what} {found} instead of {expected}: not used, and disconnected again", device.display())]
    Settings {
        /// `/dev/nbdX`.
        device: PathBuf,
        /// Which setting.
        what: &'static str,
        /// In sysfs.
        found: String,
        /// Ours.
        expected: String,
    },
    /// Somebody uses the device.
    #[error("{} is in use by {users}: end that first", device.display())]
    Busy {
        /// `/dev/nbdX`.
        device: PathBuf,
        /// By whom, as far as the kernel tells.
        users: String,
    },
    /// The device cannot be opened to be flushed.
    #[error("cannot open {}", device.display())]
    Open {
        /// `/dev/nbdX`.
        device: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Dirty data could not be written.
    #[error(
        "cannot write back what {} holds: it stays connected; use force to give the data up", device.display()
    )]
    Flush {
        /// `/dev/nbdX`.
        device: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}
