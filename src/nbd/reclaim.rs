//! A process beneath the page cache: what it does so that the kernel can free memory through it.
//!
//! A room of its own because it is one rule in several places: the kernel frees memory by writing dirty pages to our
//! devices, so nothing that a write needs may itself wait for free memory.
//!
//! - Memory is locked (`prepare_process`): the program's pages are read-only and clean, the first that would be taken
//!   away, and the next write would wait for a disk, which may be one of ours.
//! - I/O threads are marked (`thread`, `PR_SET_IO_FLUSHER`): their allocations never wait for I/O, and the limit that
//!   slows down those who make pages dirty is not applied to them.
//! - Buffers are taken and touched at attach (`pool`, `Pool::reserve`), and steady work allocates nothing.
//! - The out-of-memory killer takes others first: a device whose daemon is killed costs every process that uses it.

use crate::sys::process;

/// As the systemd unit has it: behind everything but what is never killed.
const OOM_SCORE: i32 = -900;

/// To be called once, early, by a process that serves kernel devices. What is not allowed is told in the log with its
/// remedy, and done without.
pub fn prepare_process() {
    if let Err(error) = process::lock_memory() {
        let limit = process::lockable_bytes().unwrap_or_default();
        tracing::warn!(
            "memory cannot be locked ({error}): RLIMIT_MEMLOCK is {limit} bytes; set LimitMEMLOCK=infinity in the unit or give CAP_IPC_LOCK, or a host that is short of memory may stall on these devices"
        );
    }
    if let Err(error) = process::lower_oom_score(OOM_SCORE) {
        tracing::warn!(
            "the out-of-memory score stays ({error}): set OOMScoreAdjust={OOM_SCORE} in the unit, or the daemon may be killed before those who use its devices"
        );
    }
}
