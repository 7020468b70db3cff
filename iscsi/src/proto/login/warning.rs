//! What a login found that is no failure, but that somebody should know.

use std::fmt;

/// Something that does not keep a login from succeeding.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoginWarning {
    /// The portal belongs to another portal group than discovery said (RFC 7143 §13.9).
    PortalGroup {
        /// What discovery said.
        expected: u16,
        /// What the target says.
        seen: u16,
    },
    /// A CHAP secret of fewer than 96 bits (RFC 7143 §9.2.1).
    ShortSecret {
        /// Whether it is the target's, of mutual CHAP.
        is_targets: bool,
    },
}

impl fmt::Display for LoginWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PortalGroup { expected, seen } => write!(
                f,
                "the portal is in portal group {seen}, discovery had said {expected}; discover anew"
            ),
            Self::ShortSecret { is_targets } => write!(
                f,
                "the CHAP secret of the {} has fewer than 12 bytes (96 bits) and can be guessed by \
                 whoever hears one login; choose a longer one",
                if *is_targets { "target" } else { "initiator" }
            ),
        }
    }
}
