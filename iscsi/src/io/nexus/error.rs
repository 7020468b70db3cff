//! Why a nexus is not open.

use std::sync::Arc;
use std::time::Duration;

use crate::proto::negotiation::Agreed;
use crate::proto::{LoginError, SessionError};
use crate::scsi::examination::Failure;
use crate::scsi::{Sense, Status};

/// Why a nexus is not open. One line, with what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NexusError {
    /// Connecting or logging in failed.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// The session ended.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The logical unit is not there, or not the one that it was, or could not say.
    #[error("the logical unit did not pass its examination: {}{}", .0, of(.0))]
    Gate(Failure),
    /// The logical unit cannot be told from others.
    #[error(
        "the logical unit has neither a name nor a serial number, so that after a new login it cannot be told from \
         another one; nothing is sent to it"
    )]
    Unprovable,
    /// The logical unit did not become ready.
    #[error("the logical unit was not ready within {} s; see to the target", .waited.as_secs())]
    NotReady {
        /// How long it was asked.
        waited: Duration,
    },
    /// Commands of the lost path may still be at work, and could not be ended.
    #[error(
        "commands sent over another path may still be at work, and the target refuses to reset the logical unit \
         ({answer}); I/O does not move to this path"
    )]
    Fence {
        /// What the target said.
        answer: String,
    },
    /// The unit did not register our key, so that a reservation for registrants would refuse our writes.
    #[error("the logical unit does not register our reservation key: {}", .sense.as_ref().map_or_else(|| .status.to_string(), ToString::to_string))]
    Registration {
        /// Its status.
        status: Status,
        /// The sense data, if any came.
        sense: Option<Sense>,
    },
    /// The unit is reserved for others than us.
    #[error(
        "the logical unit is reserved for another host, which has taken it over; nothing is written to it"
    )]
    Reserved,
    /// The path's port group takes no I/O.
    #[error("the target port group of this path is {state}; no I/O moves to it")]
    PortGroup {
        /// As SPC-4 calls it.
        state: String,
    },
    /// The target reported a change of the unit, which then could not say who it is.
    #[error("the target reported a change of the logical unit, which is not ready to be examined")]
    Doubtful,
    /// The target said that this path takes no I/O any more.
    #[error("the path takes no I/O any more and was left for another one")]
    PathLeft,
    /// The command was at work when its session was lost, and is not one to be sent twice.
    #[error("it is not known whether the command was done, and it must not be done twice: {0}")]
    Unrepeatable(#[source] Arc<Self>),
    /// There is none.
    #[error("no path leads to the logical unit; give at least one")]
    NoPath,
}

impl NexusError {
    /// How long the target wants us to stay away after this.
    pub(super) fn time_to_wait(&self, agreed: &Agreed) -> Duration {
        // RFC 7143 §11.9.1: what the target's last message said holds
        let told = if let Self::Session(end) = self {
            end.time_2_wait()
        } else {
            None
        };
        let wait = told.unwrap_or_else(|| Duration::from_secs(u64::from(agreed.time_2_wait)));
        if agreed.max_connections > 1 {
            wait.max(CONNECTIONS_WAIT)
        } else {
            wait
        }
    }
}

/// Linux 6.1's target falls over (`iscsit_stop_session`) when a session of several connections is reinstated while the
/// last of them are still being taken down. With RFC 7143's default of `DefaultTime2Wait` it has time for that.
pub(super) const CONNECTIONS_WAIT: Duration = Duration::from_secs(2);

/// What differs, behind what failed.
fn of(failure: &Failure) -> String {
    std::error::Error::source(failure).map_or_else(String::new, |source| format!(": {source}"))
}
