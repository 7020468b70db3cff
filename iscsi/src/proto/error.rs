//! Why a login failed and why a session ended, sorted by fault.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::chap::Unproved;
use super::{Portal, Violation};
use crate::wire::login::LoginStatus;
use crate::wire::logout::LogoutOutcome;
use crate::wire::reject::RejectReason;
use crate::wire::task_management::{TaskManagementFunction, TaskManagementOutcome};

/// Whether it helps to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// At once, on the same session.
    Now,
    /// With a new connection and login, after a pause.
    AfterReconnect,
    /// Not before somebody has changed something.
    Never,
}

/// Why a login failed. One line, with what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoginError {
    /// No connection to the portal came to be.
    #[error(
        "cannot reach portal {portal}: {cause}; check the address, the port and that the target runs"
    )]
    Unreachable {
        /// Where.
        portal: Portal,
        /// What the system said.
        cause: Arc<io::Error>,
    },
    /// The connection broke during the login.
    #[error(
        "portal {portal} dropped the connection during login: {cause}; check that it serves iSCSI, \
         exports this target, and whether it wants CHAP"
    )]
    Lost {
        /// Where.
        portal: Portal,
        /// What the system said.
        cause: Arc<io::Error>,
    },
    /// Connect and login together took too long.
    #[error(
        "login at portal {portal} did not end within {}; check the network and the target's load",
        Seconds(*.after)
    )]
    Timeout {
        /// Where.
        portal: Portal,
        /// After which time.
        after: Duration,
    },
    /// The target said no.
    #[error("{status}; {}", remedy(*.status))]
    Refused {
        /// Class and detail.
        status: LoginStatus,
    },
    /// The target accepts none of the ways to authenticate that we offered.
    #[error(
        "the target accepts none of the offered authentication methods ({offered}); set the CHAP \
         name and secret that the target expects"
    )]
    Authentication {
        /// What we offered.
        offered: &'static str,
    },
    /// The target takes none of the CHAP algorithms that we offered.
    #[error(
        "the target takes none of the offered CHAP algorithms ({offered}); offer others, such as MD5"
    )]
    ChapAlgorithm {
        /// What we offered, as `CHAP_A` has it.
        offered: String,
    },
    /// The target did not prove itself to us. Not to be confused with `Refused`: here it is we who
    /// do not trust.
    #[error(
        "the target did not prove itself: {0}; check the name and secret of mutual CHAP, and who \
         answers at this portal"
    )]
    TargetUnproved(#[from] Unproved),
    /// The target does without a digest that we require.
    #[error(
        "the target does not agree to {key}=CRC32C, which is required; enable it there, or do not \
         require it"
    )]
    DigestRefused {
        /// `HeaderDigest` or `DataDigest`.
        key: &'static str,
    },
    /// The target broke a rule.
    #[error("the target broke the iSCSI protocol during login: {0}; report it to its vendor")]
    Violation(#[from] Violation),
    /// The target sent us on too often.
    #[error("more than {0} redirections; check the target's portal configuration")]
    TooManyRedirects(usize),
    /// The target sent us to where we had been.
    #[error("redirections lead back to portal {portal}; check the target's portal configuration")]
    RedirectLoop {
        /// Where we had been.
        portal: Portal,
    },
    /// The caller asked for something that cannot be.
    #[error("{0}")]
    Misuse(Misuse),
}

/// Why a discovery failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoveryError {
    /// The login of the discovery session failed.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// The session ended before the list was complete.
    #[error("discovery at portal {portal} broke off: {cause}; try again")]
    Session {
        /// Where.
        portal: Portal,
        /// Why.
        cause: SessionError,
    },
    /// The list did not come in time.
    #[error("portal {portal} did not answer SendTargets within {}; try again", Seconds(*.after))]
    Timeout {
        /// Where.
        portal: Portal,
        /// After which time.
        after: Duration,
    },
}

/// What a caller did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misuse {
    /// A normal session without a target.
    #[error("a normal session needs a target name; give one, or discover it first")]
    NoTarget,
    /// A CHAP name that is empty, too long, or has a zero byte.
    #[error("the CHAP name must have 1 to 255 bytes and no zero byte; correct it")]
    ChapName,
    /// A CHAP secret that is empty.
    #[error("the CHAP secret is empty; give the secret that the target expects")]
    ChapSecret,
    /// A logout for recovery, or a reassignment: both need a higher error recovery level than 0.
    #[error("connection recovery needs error recovery level 2, and sessions of ours have level 0")]
    RecoveryLevel,
    /// A connection that the session does not have.
    #[error("the session has no connection with this number")]
    NoConnection,
    /// ABORT TASK without the task.
    #[error("ABORT TASK needs the task that is to be aborted")]
    NoTask,
    /// More task management functions at once than a session keeps track of.
    #[error("too many task management functions under way; wait for one to be answered")]
    TooManyFunctions,
    /// No CHAP algorithm to offer, or one twice.
    #[error("the list of CHAP algorithms is empty or has one twice; correct it")]
    ChapAlgorithms,
    /// Mutual CHAP without credentials of our own.
    #[error("mutual CHAP needs CHAP credentials of the initiator too; give both")]
    MutualAlone,
    /// Authentication is required, and there is nothing to authenticate with.
    #[error("authentication is required, but there are no CHAP credentials; give some")]
    NoCredentials,
    /// One secret for both directions.
    #[error(
        "the secrets of initiator and target are the same, so that neither would prove anything; \
         give the target another one"
    )]
    EqualSecrets,
    /// Mutual CHAP, and no random bytes for its challenge.
    #[error("mutual CHAP needs random bytes for its challenge")]
    NoChance,
    /// A value to offer that the key cannot have.
    #[error("{key} can be offered from {low} to {high}; correct it")]
    Offer {
        /// The key.
        key: &'static str,
        /// The lowest legal value.
        low: u32,
        /// The highest legal value.
        high: u32,
    },
    /// A first burst that is longer than a burst.
    #[error("FirstBurstLength cannot be above MaxBurstLength; correct one of them")]
    FirstBurst,
    /// A further connection of a session that is none.
    #[error("a further connection needs a normal session with a TSIH other than 0")]
    NoSession,
}

/// Why a session ended.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The connection broke.
    #[error("the iSCSI connection was lost: {cause}")]
    Lost {
        /// What the system said.
        cause: Arc<io::Error>,
    },
    /// The target did not answer a ping.
    #[error("the target did not answer a ping within {}", Seconds(*.after))]
    Silent {
        /// After which time.
        after: Duration,
    },
    /// The target broke a rule.
    #[error("the target broke the iSCSI protocol: {0}")]
    Violation(#[from] Violation),
    /// The target rejected a PDU of ours.
    #[error("the target rejected a PDU with opcode {opcode:#04x}: {reason}")]
    Rejected {
        /// Why.
        reason: RejectReason,
        /// Of the rejected PDU.
        opcode: u8,
    },
    /// The target said that it drops the connection or the session.
    #[error(
        "the target dropped {}; the session may be taken up again after {wait} s, for {retain} s",
        Dropped(*.connection)
    )]
    Dropped {
        /// The connection's CID; `None` for the whole session.
        connection: Option<u16>,
        /// `Time2Wait`, seconds.
        wait: u16,
        /// `Time2Retain`, seconds.
        retain: u16,
    },
    /// The target asked us to log out, and we did.
    #[error("the target asked for a logout; it may be logged in to again after {wait} s")]
    LogoutRequested {
        /// `Time2Wait`, seconds.
        wait: u16,
        /// `Time2Retain`, seconds.
        retain: u16,
    },
    /// A command was not answered, and nothing got rid of it but the end of the session.
    #[error(
        "a command to LUN address {lun:#018x} was not answered within {}{}; the session was dropped",
        Seconds(*.after), Attempts(.attempts)
    )]
    Unanswered {
        /// The logical unit, a SAM address.
        lun: u64,
        /// The time that the command had.
        after: Duration,
        /// What was tried, in order.
        attempts: Vec<Attempt>,
    },
    /// A task management function was not answered, and held up what comes after it.
    #[error("the target did not answer {function} within {}", Seconds(*.after))]
    FunctionUnanswered {
        /// Which one.
        function: TaskManagementFunction,
        /// After which time.
        after: Duration,
    },
    /// Commands wait, none is in flight, and the target takes none.
    #[error("the target kept its command window closed for {}", Seconds(*.after))]
    WindowClosed {
        /// For which time.
        after: Duration,
    },
    /// The target did not close one connection of several as it was asked to.
    #[error("the target did not close a connection in order: {outcome}")]
    LogoutFailed {
        /// What it said.
        outcome: LogoutOutcome,
    },
    /// We logged out.
    #[error("the session was logged out")]
    LoggedOut,
    /// The logout was not answered in time.
    #[error("the target did not answer the logout within {}", Seconds(*.after))]
    LogoutTimeout {
        /// After which time.
        after: Duration,
    },
}

/// Why a task management function came to nothing.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FunctionError {
    /// The caller asked for something that cannot be.
    #[error("{0}")]
    Misuse(#[from] Misuse),
    /// The session ended meanwhile.
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl LoginError {
    /// Whether it helps to try again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Unreachable { .. } | Self::Lost { .. } | Self::Timeout { .. } => {
                Retry::AfterReconnect
            }
            // RFC 7143 §11.13.5: class 3 is the target's trouble and may pass; class 2 is ours
            Self::Refused { status } if status.class == 3 => Retry::AfterReconnect,
            Self::Refused { .. }
            | Self::Authentication { .. }
            | Self::ChapAlgorithm { .. }
            | Self::TargetUnproved(_)
            | Self::DigestRefused { .. }
            | Self::Violation(_)
            | Self::TooManyRedirects(_)
            | Self::RedirectLoop { .. }
            | Self::Misuse(_) => Retry::Never,
        }
    }
}

impl SessionError {
    /// Whether it helps to try again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Lost { .. }
            | Self::Silent { .. }
            | Self::Violation(_)
            | Self::Rejected { .. }
            | Self::Dropped { .. }
            | Self::LogoutRequested { .. }
            | Self::Unanswered { .. }
            | Self::FunctionUnanswered { .. }
            | Self::WindowClosed { .. }
            | Self::LogoutFailed { .. } => Retry::AfterReconnect,
            Self::LoggedOut | Self::LogoutTimeout { .. } => Retry::Never,
        }
    }

    /// How long the target asked us to stay away (`Time2Wait`), if this end came with its word.
    pub fn time_2_wait(&self) -> Option<Duration> {
        match self {
            Self::Dropped { wait, .. } | Self::LogoutRequested { wait, .. } => {
                Some(Duration::from_secs(u64::from(*wait)))
            }
            Self::Lost { .. }
            | Self::Silent { .. }
            | Self::Violation(_)
            | Self::Rejected { .. }
            | Self::Unanswered { .. }
            | Self::FunctionUnanswered { .. }
            | Self::WindowClosed { .. }
            | Self::LogoutFailed { .. }
            | Self::LoggedOut
            | Self::LogoutTimeout { .. } => None,
        }
    }

    /// The connection broke: what a driver says when its socket does.
    pub fn lost(cause: io::Error) -> Self {
        Self::Lost {
            cause: Arc::new(cause),
        }
    }
}

/// What to do about a refused login.
fn remedy(status: LoginStatus) -> &'static str {
    match (status.class, status.detail) {
        (2, 1) => "check both, and whether the target expects CHAP at all",
        (2, 2) => "add the initiator name to the target's access list",
        (2, 3 | 4) => "check the target name, or discover what the portal offers",
        (2, 5..=11) => "check the target's configuration",
        (3, _) => "try again later",
        (_, _) => "see the target's log",
    }
}

/// A step against a command that is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The function asked for; `None` is a ping.
    pub function: Option<TaskManagementFunction>,
    /// What the target said; `None` is silence.
    pub outcome: Option<TaskManagementOutcome>,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.function, self.outcome) {
            (None, None) => f.write_str("a ping was not answered"),
            (None, Some(_)) => f.write_str("a ping was answered"),
            (Some(function), None) => write!(f, "{function} was not answered"),
            (Some(function), Some(outcome)) => write!(f, "{function} was answered: {outcome}"),
        }
    }
}

/// Attempts as the middle of a sentence.
struct Attempts<'a>(&'a [Attempt]);

impl fmt::Display for Attempts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|attempt| write!(f, ", {attempt}"))
    }
}

/// What an asynchronous message says is dropped.
struct Dropped(Option<u16>);

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(cid) => write!(f, "connection {cid}"),
            None => f.write_str("all connections"),
        }
    }
}

/// A duration as people read it.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_to_do_in_one_line() {
        let refused = LoginError::Refused {
            status: LoginStatus::AUTHENTICATION_FAILURE,
        };
        let text = refused.to_string();
        assert!(
            text.starts_with("authentication failed: the target refused the CHAP name or secret")
        );
        assert!(text.contains("; check both"));
        assert!(!text.contains('\n'));
        assert_eq!(refused.retry(), Retry::Never);
        let busy = LoginError::Refused {
            status: LoginStatus::SERVICE_UNAVAILABLE,
        };
        assert_eq!(busy.retry(), Retry::AfterReconnect);
    }

    #[test]
    fn end_by_the_ladder_says_what_was_done() {
        let attempt = |function, outcome| Attempt { function, outcome };
        let end = SessionError::Unanswered {
            lun: 1 << 48,
            after: Duration::from_secs(30),
            attempts: vec![
                attempt(None, Some(TaskManagementOutcome::COMPLETE)),
                attempt(
                    Some(TaskManagementFunction::ABORT_TASK),
                    Some(TaskManagementOutcome::REJECTED),
                ),
                attempt(Some(TaskManagementFunction::LOGICAL_UNIT_RESET), None),
            ],
        };
        assert_eq!(
            end.to_string(),
            "a command to LUN address 0x0001000000000000 was not answered within 30 s, \
             a ping was answered, ABORT TASK was answered: rejected, \
             LOGICAL UNIT RESET was not answered; the session was dropped"
        );
        assert_eq!(end.retry(), Retry::AfterReconnect);
    }
}
