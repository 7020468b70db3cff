//! iSCSI names: `iqn.`, `eui.`, `naa.`.
//!
//! Source: RFC 7143 §4.2.7; RFC 3722 (which letters; upper case folds to lower). Letters beyond ASCII
//! are refused: no target we know of uses them, and folding them needs Unicode tables.

use std::fmt;
use std::str::FromStr;

/// Longest name (RFC 7143 §4.2.7.1).
const NAME_BYTES_MAX: usize = 223;

/// An iSCSI name (`iqn.`, `eui.`, `naa.`), at most 223 bytes, checked and in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IscsiName(String);

/// What is wrong with a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Longer than 223 bytes.
    #[error("iSCSI name is longer than {NAME_BYTES_MAX} bytes")]
    TooLong,
    /// Not one of the three kinds.
    #[error(
        "iSCSI name {0:?} is of no known kind; use iqn.YYYY-MM.domain[:unique], eui. with 16 hex \
         digits or naa. with 16 or 32"
    )]
    Kind(String),
    /// A letter that a name cannot have.
    #[error("iSCSI name {0:?} has a character other than letters, digits, '.', ':', '-' and '_'")]
    Character(String),
}

impl IscsiName {
    /// The name as it goes on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IscsiName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong);
        }
        // '_' is not in RFC 3722's set, but stands in names that vendors give.
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '_');
        if !text.chars().all(legal) {
            return Err(NameError::Character(text.to_owned()));
        }
        let name = text.to_ascii_lowercase();
        let is_kind = match name.split_at_checked(4) {
            Some(("iqn.", rest)) => is_qualified(rest),
            Some(("eui.", digits)) => digits.len() == 16 && is_hex(digits),
            Some(("naa.", digits)) => matches!(digits.len(), 16 | 32) && is_hex(digits),
            _ => false,
        };
        if is_kind {
            Ok(Self(name))
        } else {
            Err(NameError::Kind(name))
        }
    }
}

impl fmt::Display for IscsiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// RFC 7143 §4.2.7.4: a date of the form yyyy-mm, a dot, a domain.
fn is_qualified(rest: &str) -> bool {
    let Some((date, domain)) = rest.split_once('.') else {
        return false;
    };
    let date = date.as_bytes();
    let is_date = date.len() == 7
        && date[4] == b'-'
        && date
            .iter()
            .enumerate()
            .all(|(at, byte)| at == 4 || byte.is_ascii_digit());
    is_date && !domain.is_empty() && !domain.starts_with(':')
}

fn is_hex(digits: &str) -> bool {
    digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    // L17: RFC 7143 §4.2.7
    #[test]
    fn names_of_three_kinds_are_read_and_folded() {
        for (text, name) in [
            (
                "iqn.2010-10.org.openstack:volume-1f",
                "iqn.2010-10.org.openstack:volume-1f",
            ),
            ("iqn.2001-04.com.Example", "iqn.2001-04.com.example"),
            ("eui.02004567A425678D", "eui.02004567a425678d"),
            ("naa.52004567BA64678D", "naa.52004567ba64678d"),
            (
                "naa.62004567BA64678D0123456789ABCDEF",
                "naa.62004567ba64678d0123456789abcdef",
            ),
        ] {
            assert_eq!(text.parse::<IscsiName>().unwrap().as_str(), name);
        }
    }

    // L17
    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            "iqn",
            "iqn.",
            "iqn.2010-10",
            "iqn.2010-10.",
            "iqn.2010-10.:x",
            "iqn.201-010.org",
            "eui.123",
            "naa.52004567BA64678",
            "disk1",
            "iqn.2010-10.org x",
            "iqn.2010-10.org=1",
            "iqn.2010-10.org\0",
        ] {
            assert!(text.parse::<IscsiName>().is_err(), "{text:?}");
        }
        let long = format!("iqn.2010-10.org:{}", "x".repeat(NAME_BYTES_MAX));
        assert_eq!(long.parse::<IscsiName>(), Err(NameError::TooLong));
    }
}
