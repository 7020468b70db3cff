//! Network portals, as people and targets write them.
//!
//! Source: RFC 7143 §13.8 (`TargetAddress`).

use std::fmt;
use std::str::FromStr;

use crate::wire::text_keys;

/// The port of iSCSI (RFC 7143 §4.1).
pub(crate) const PORT: u16 = 3260;
/// Longest host: a domain name has at most 255 bytes (RFC 7143 §6.1).
const HOST_BYTES_MAX: usize = 255;

/// A network portal: `host:port`, IPv6 in brackets; port 3260 if absent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Portal {
    /// Host name or address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// Text that is no portal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no portal; use HOST[:PORT], with an IPv6 address in brackets")]
pub struct PortalError(String);

impl Portal {
    /// Reads a `TargetAddress`: a portal and, behind a comma, its portal group tag.
    ///
    /// # Errors
    /// The text is no portal, or its tag is no number of 16 bits.
    pub fn from_target_address(text: &str) -> Result<(Self, Option<u16>), PortalError> {
        match text.rsplit_once(',') {
            None => Ok((text.parse()?, None)),
            Some((portal, tag)) => {
                let tag = text_keys::read_number(tag).and_then(|tag| u16::try_from(tag).ok());
                let tag = tag.ok_or_else(|| PortalError(text.to_owned()))?;
                Ok((portal.parse()?, Some(tag)))
            }
        }
    }
}

impl FromStr for Portal {
    type Err = PortalError;

    fn from_str(text: &str) -> Result<Self, PortalError> {
        let error = || PortalError(text.to_owned());
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, after) = rest.split_once(']').ok_or_else(error)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| error())?;
            match after {
                "" => (host, None),
                _ => (host, Some(after.strip_prefix(':').ok_or_else(error)?)),
            }
        } else if text.parse::<std::net::Ipv6Addr>().is_ok() {
            (text, None)
        } else {
            match text.split_once(':') {
                None => (text, None),
                Some((host, port)) => (host, Some(port)),
            }
        };
        let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || host.len() > HOST_BYTES_MAX || !host.chars().all(is_host) {
            return Err(error());
        }
        let port = match port {
            None => PORT,
            Some(digits) => digits.parse().map_err(|_| error())?,
        };
        if port == 0 {
            return Err(error());
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 7143 §13.8
    #[test]
    fn portals_are_read_and_written() {
        for (text, written) in [
            ("10.0.0.1", "10.0.0.1:3260"),
            ("10.0.0.1:3261", "10.0.0.1:3261"),
            ("storage.example:860", "storage.example:860"),
            ("[fe80::1]", "[fe80::1]:3260"),
            ("[fe80::1]:3261", "[fe80::1]:3261"),
            ("::1", "[::1]:3260"),
        ] {
            assert_eq!(text.parse::<Portal>().unwrap().to_string(), written);
        }
    }

    // L26: RFC 7143 §13.8
    #[test]
    fn target_addresses_carry_a_tag_or_none() {
        let (portal, tag) = Portal::from_target_address("[fe80::1]:3261,65535").unwrap();
        assert_eq!(
            (portal.to_string().as_str(), tag),
            ("[fe80::1]:3261", Some(65535))
        );
        // Without brackets too, and with a tag in hex
        let (portal, tag) = Portal::from_target_address("fe80::1,0x10").unwrap();
        assert_eq!(
            (portal.to_string().as_str(), tag),
            ("[fe80::1]:3260", Some(16))
        );
        assert_eq!(Portal::from_target_address("10.0.0.1").unwrap().1, None);
        assert!(Portal::from_target_address("10.0.0.1:3260,65536").is_err());
        assert!(Portal::from_target_address("10.0.0.1:3260,").is_err());
    }

    #[test]
    fn what_is_no_portal_is_refused() {
        for text in [
            "",
            ":3260",
            "a:b",
            "a:0",
            "a:65536",
            "a:1:2",
            "[::1",
            "[x]",
            "[::1]3260",
            "[::1]:",
            "a b",
            "a,1",
            "a/b",
        ] {
            assert!(text.parse::<Portal>().is_err(), "{text:?}");
        }
    }
}
