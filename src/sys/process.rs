//! This process as the kernel's memory management sees it: locked memory, and who is killed first when there is none.
//!
//! Source: mlockall(2), proc(5) (`oom_score_adj`), getrlimit(2).

use std::io;

use rustix::mm::MlockAllFlags;
use rustix::process::Resource;

/// Where a process's place in the order of the out-of-memory killer stands.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Keeps every page of this process in memory from its first use on, those of later threads and buffers too. Pages
/// that are never used cost nothing.
///
/// # Errors
/// Without `CAP_IPC_LOCK`, when the process is larger than `RLIMIT_MEMLOCK`; nothing is changed then.
pub fn lock_memory() -> io::Result<()> {
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    Ok(rustix::mm::mlockall(flags)?)
}

/// `RLIMIT_MEMLOCK` in bytes; `None` is without limit.
pub fn lockable_bytes() -> Option<u64> {
    rustix::process::getrlimit(Resource::Memlock).current
}

/// Puts this process so far back in the order of the out-of-memory killer, -1000 (never) to 1000 (first), unless it
/// is further back already.
///
/// # Errors
/// Without `CAP_SYS_RESOURCE` it can only come forward; or there is no `/proc`.
pub fn lower_oom_score(to: i32) -> io::Result<()> {
    let now = std::fs::read_to_string(OOM_SCORE)?;
    if now.trim().parse::<i32>().is_ok_and(|now| now <= to) {
        return Ok(());
    }
    std::fs::write(OOM_SCORE, to.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the rights are here: afterwards it is as far back as was asked, or an error said why not.
    #[test]
    fn the_score_is_lowered_and_never_raised() {
        let score = || {
            let text = std::fs::read_to_string(OOM_SCORE).unwrap();
            text.trim().parse::<i32>().unwrap()
        };
        let before = score();
        lower_oom_score(1000).unwrap();
        assert_eq!(score(), before, "it is further back already");
        match lower_oom_score(-1) {
            Ok(()) => assert!(score() <= -1),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
                assert_eq!(score(), before);
            }
        }
    }
}
