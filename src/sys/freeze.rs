//! Freezing a mounted filesystem for a moment, with a clock that nobody can forget.
//!
//! Source: `fs/ioctl.c`, `fs/super.c` of the kernel: `FIFREEZE` writes back what is dirty and lets no write begin until
//! `FITHAW`; a filesystem that is not frozen answers `FITHAW` with EINVAL.
//!
//! Invariants:
//! 1. Whoever freezes thaws: a thread of its own holds the filesystem and thaws it when told, when its time is over, or
//!    when whoever should tell is gone; no task that hangs keeps it from that.
//! 2. A freeze that takes longer than its time is undone as soon as it is done.
//!
//! What it cannot do: outlive the process. The journal says that a filesystem was frozen, and the next process thaws it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use rustix::ioctl::{NoArg, Opcode};

/// A frozen filesystem; dropped, it is thawed.
#[derive(Debug)]
pub struct Frozen {
    release: Sender<()>,
    /// Whether it was still frozen when it was thawed.
    thawed: Receiver<io::Result<bool>>,
}

/// Freezes the filesystem that is mounted at `mountpoint`, for at most `limit` from now on.
///
/// Blocks until it is frozen, or until the limit.
///
/// # Errors
/// No right; frozen already (EBUSY); a filesystem without the ability (EOPNOTSUPP); not done within the limit (`TimedOut`).
pub fn freeze(mountpoint: &Path, limit: Duration) -> io::Result<Frozen> {
    let directory = File::open(mountpoint)?;
    let deadline = Instant::now() + limit;
    let (told_frozen, frozen) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let (told_thawed, thawed) = mpsc::channel();
    let hold = move || {
        let result = request::<FIFREEZE>(&directory);
        let is_frozen = result.is_ok();
        // Nobody waits any more: the time is over, and what was frozen since is undone below.
        let _ = told_frozen.send(result);
        if is_frozen {
            let left = deadline.saturating_duration_since(Instant::now());
            match released.recv_timeout(left) {
                Ok(()) | Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {}
            }
            let is_late = Instant::now() >= deadline;
            let _ =
                told_thawed.send(thaw_open(&directory).map(|was_frozen| was_frozen && !is_late));
        }
    };
    std::thread::Builder::new()
        .name("freeze".to_owned())
        .spawn(hold)?;
    match frozen.recv_timeout(limit) {
        Ok(result) => result?,
        Err(_) => {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("not frozen within {} s", limit.as_secs()),
            ));
        }
    }
    Ok(Frozen { release, thawed })
}

impl Frozen {
    /// Thaws it. Whether it was frozen until now; false means that its time had been over before.
    ///
    /// # Errors
    /// The kernel's.
    pub fn thaw(self) -> io::Result<bool> {
        // The thread has ended, if its time is over: its word is there all the same.
        let _ = self.release.send(());
        self.thawed
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that thaws it is gone")))
    }
}

/// Thaws what an earlier process has frozen; false if it is not frozen.
///
/// # Errors
/// The kernel's.
pub fn thaw(mountpoint: &Path) -> io::Result<bool> {
    thaw_open(&File::open(mountpoint)?)
}

fn thaw_open(directory: &File) -> io::Result<bool> {
    match request::<FITHAW>(directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
        Err(error) => Err(error),
    }
}

#[expect(unsafe_code, reason = "rustix has no wrapper for FIFREEZE and FITHAW")]
fn request<const OPCODE: Opcode>(directory: &File) -> io::Result<()> {
    // SAFETY: both requests ignore their argument and touch no memory of ours, which is what `NoArg` promises; a
    // filesystem that does not know them answers with an error. The descriptor is borrowed for the whole call.
    unsafe { rustix::ioctl::ioctl(directory, NoArg::<OPCODE>::new())? };
    Ok(())
}

const FIFREEZE: Opcode = rustix::ioctl::opcode::read_write::<libc::c_int>(b'X', 119);
const FITHAW: Opcode = rustix::ioctl::opcode::read_write::<libc::c_int>(b'X', 120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_header() {
        assert_eq!((FIFREEZE, FITHAW), (0xc004_5877, 0xc004_5878));
    }

    #[test]
    fn what_is_not_frozen_is_told_so_and_what_cannot_freeze_is_an_error() {
        let directory = Path::new("/proc");
        assert!(freeze(directory, Duration::from_secs(1)).is_err());
        let thawed = thaw(directory);
        assert!(matches!(thawed, Ok(false) | Err(_)), "{thawed:?}");
        assert!(freeze(Path::new("/no/such/place"), Duration::from_secs(1)).is_err());
    }
}
