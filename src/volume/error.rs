//! Why an operation on a volume failed, and how an error with its causes becomes one line.
//!
//! Invariants:
//! 1. Callers decide by variant, never by text.
//! 2. No variant can hold a secret: causes come from rooms whose errors cannot either.

use std::error::Error as StdError;
use std::path::PathBuf;

use super::platform::MountUser;

/// The error of a room below, or of a fake of it, as a link of the chain.
pub type Cause = Box<dyn StdError + Send + Sync>;

/// Why an operation on a volume failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Neither a record here nor a volume of the cloud has this name.
    #[error("no such volume: {name}")]
    NoSuchVolume {
        /// As asked.
        name: String,
    },
    /// The name cannot be that of a volume here.
    #[error(
        "{name:?} cannot be a volume name; use 1 to 128 letters, digits, '_', '.' and '-', and begin with a \
         letter or digit"
    )]
    Name {
        /// As asked.
        name: String,
    },
    /// A value of a request cannot be used.
    #[error("{what}")]
    Invalid {
        /// What is wrong and what would be right.
        what: String,
    },
    /// One step failed; the source says why.
    #[error("{step}")]
    Step {
        /// What was being done, to what.
        step: String,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// A file of ours could not be read or written.
    #[error("{what} {}", path.display())]
    File {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The volume is wanted by somebody; nothing was changed.
    #[error("{name} is in use: {by}; {remedy}")]
    InUse {
        /// The volume.
        name: String,
        /// By whom.
        by: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Another host, or another program, has the volume attached.
    #[error("{name} is attached elsewhere: {by}; {remedy}")]
    Elsewhere {
        /// The volume.
        name: String,
        /// By whom, since when.
        by: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The volume was to be taken from another host, and that host cannot be kept from writing.
    #[error(
        "{name} is not taken: its LUN cannot be fenced against its holder ({holder}); if that host is surely dead, \
         'take-without-fence' takes it"
    )]
    NoFence {
        /// The volume.
        name: String,
        /// Who has it.
        holder: String,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// A deletion that would destroy more than was asked for.
    #[error("{name} is not deleted: {why}; {remedy}")]
    Guarded {
        /// The volume.
        name: String,
        /// What stands against it.
        why: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The volume is attached already, in a way that excludes what was asked.
    #[error("{name} is attached {mode} already; detach it first")]
    OtherMode {
        /// The volume.
        name: String,
        /// `read-only` or `read-write`.
        mode: &'static str,
    },
    /// The device holds something that we neither mount nor overwrite.
    #[error("{device} holds {found}; {remedy}", device = device.display())]
    NotMountable {
        /// The device it was seen on.
        device: PathBuf,
        /// What was found.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The device is blank, but nothing proves that it is ours to format.
    #[error("{name} is blank, but {reason}, so it is not formatted; {remedy}")]
    NotOurs {
        /// The volume.
        name: String,
        /// Why we may not.
        reason: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Something failed and its undoing did too; what is left is written down and tried again.
    #[error("{left} is left over and will be removed when that becomes possible")]
    Leftover {
        /// What is left.
        left: String,
        /// The first failure.
        #[source]
        source: Box<Self>,
    },
    /// No cloud is configured.
    #[error(
        "no cloud is configured; set OS_CLOUD or the OS_* variables, or add [cloud] to the configuration file"
    )]
    NoCloud,
    /// A command before this one is still being carried out, and too many wait.
    #[error("too many requests wait for {name}; try again later")]
    Overloaded {
        /// The volume.
        name: String,
    },
    /// The daemon is going down.
    #[error("the daemon is stopping; try again when it runs")]
    Stopping,
    /// Another daemon works in the same directories.
    #[error("another cinder-nbd daemon holds {}; stop it, or use other directories", path.display())]
    SecondDaemon {
        /// The lock.
        path: PathBuf,
    },
}

impl Error {
    /// A step that failed.
    pub(crate) fn step(step: impl Into<String>, source: impl Into<Cause>) -> Self {
        Self::Step {
            step: step.into(),
            source: source.into(),
        }
    }

    /// A file that could not be worked on.
    pub(crate) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
        source: std::io::Error,
    ) -> Self {
        Self::File {
            what,
            path: path.into(),
            source,
        }
    }

    /// The volume is held by these mounts, the kernel says.
    pub(crate) fn mounted(name: &str, users: &[MountUser]) -> Self {
        Self::InUse {
            name: name.to_owned(),
            by: name_users(users),
            remedy: "stop what uses it first",
        }
    }

    /// Whether the volume is not there, as opposed to not reachable.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::NoSuchVolume { .. })
    }
}

/// The users in words, the first few of them.
pub(crate) fn name_users(users: &[MountUser]) -> String {
    /// Chosen freely: enough to find the culprit, short enough for a line.
    const NAMED_MAX: usize = 4;
    let mut words: Vec<String> = users
        .iter()
        .take(NAMED_MAX)
        .map(|user| {
            format!(
                "process {} has it mounted on {}",
                user.pid,
                user.mountpoint.display()
            )
        })
        .collect();
    if users.len() > NAMED_MAX {
        words.push(format!("and {} more", users.len() - NAMED_MAX));
    }
    if words.is_empty() {
        "somebody has the device open".to_owned()
    } else {
        words.join(", ")
    }
}

/// An error and its causes in one line: outermost first, joined by colons, no text twice.
pub fn line(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        // Some libraries repeat the source in their own text.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = cause.source();
    }
    // A log line or a terminal line, whatever a server has sent us.
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_becomes_one_line_without_repetition() {
        let inner = std::io::Error::other("refused\nby the peer");
        let middle = Error::step("reserving v1 in Cinder", inner);
        let outer = Error::Leftover {
            left: "attachment 7".to_owned(),
            source: Box::new(middle),
        };
        assert_eq!(
            line(&outer),
            "attachment 7 is left over and will be removed when that becomes possible: reserving v1 in Cinder: \
             refused by the peer"
        );
    }
}
