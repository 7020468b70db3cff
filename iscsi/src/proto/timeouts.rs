//! How long a command may take, and how long each step to get rid of it.
//!
//! ```text
//!  command, slow        abort            lu_reset
//!  |-- no byte moved --|-- ping, ABORT TASK --|-- LOGICAL UNIT RESET --| session dropped
//! ```
//!
//! A room of its own because callers set it, the session's ladder climbs by it, and layers above must
//! stay longer than its sum.
//!
//! The ladder itself is `session::ladder`'s.

use std::time::Duration;

/// Times of the ladder that a command climbs which is not answered. Zero switches a step off: for
/// `command` and `slow` nothing is timed, for `abort` and `lu_reset` the step is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For commands that move data or ask. Default 30 s.
    pub command: Duration,
    /// For commands that flush or may write a whole range (`Cdb::timeout_class`). Default 60 s.
    pub slow: Duration,
    /// For the answer to ABORT TASK. Default 15 s.
    pub abort: Duration,
    /// For the answer to LOGICAL UNIT RESET. Default 30 s.
    pub lu_reset: Duration,
}

impl Timeouts {
    /// Everything switched off: commands wait for ever.
    pub const OFF: Self = Self {
        command: Duration::ZERO,
        slow: Duration::ZERO,
        abort: Duration::ZERO,
        lu_reset: Duration::ZERO,
    };
}

/// Linux's SCSI command timer, and open-iscsi's times for the steps; SYNCHRONIZE CACHE takes many
/// seconds on a busy NAS.
impl Default for Timeouts {
    fn default() -> Self {
        Self {
            command: Duration::from_secs(30),
            slow: Duration::from_mins(1),
            abort: Duration::from_secs(15),
            lu_reset: Duration::from_secs(30),
        }
    }
}
