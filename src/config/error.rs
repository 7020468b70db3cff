//! Why settings could not be read: one line each, naming the key or variable and what to set.
//!
//! Invariants:
//! 1. No value of a setting is repeated here but paths, names of clouds and `auth_type`, so no secret can be.
//! 2. Keys and names are printed as they are written, but what would break the line is escaped.

use std::path::PathBuf;

/// A key or name as it is written, in one line.
pub(super) fn printed(text: &str) -> String {
    text.escape_debug().to_string()
}

/// Settings that cannot be used; `Display` is one line with cause and remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that was asked for, or that exists, cannot be read.
    #[error("cannot read {}: {cause}; check the path and its permissions", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// Not TOML or YAML, or a value of the wrong type.
    #[error("{}{}: {cause}; correct it there", path.display(), line.map(|n| format!(" line {n}")).unwrap_or_default())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Line, counted from 1, where known.
        line: Option<usize>,
        /// What the parser said, on one line.
        cause: String,
    },
    /// A key that does not exist.
    #[error("{}{}: unknown key `{key}`; {advice}", path.display(), line.map(|n| format!(" line {n}")).unwrap_or_default())]
    UnknownKey {
        /// Which file.
        path: PathBuf,
        /// Line, counted from 1, where known.
        line: Option<usize>,
        /// The key as written.
        key: String,
        /// The nearest word, or the list of words.
        advice: String,
    },
    /// A value outside of its range.
    #[error("{place}: {key} {problem}")]
    Value {
        /// File or environment.
        place: String,
        /// Key or variable.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// Something that authentication needs is absent.
    #[error("{place} gives no {what}; set {remedy}")]
    Missing {
        /// File or environment.
        place: String,
        /// What is absent, in words.
        what: &'static str,
        /// The keys or variables to set.
        remedy: String,
    },
    /// The cloud's name is in no clouds.yaml.
    #[error("no cloud named `{name}` in {looked}; {advice}")]
    NoSuchCloud {
        /// The name asked for.
        name: String,
        /// The file that was read, or the places that were looked into.
        looked: String,
        /// What to do.
        advice: String,
    },
}
