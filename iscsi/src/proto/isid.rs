//! ISID: the initiator's part of a session's name.
//!
//! Source: RFC 7143 §11.12.5.

use std::fmt;

/// The initiator's part of a session's name: 48 bits. Stable for one lane: a login with the ISID of
/// a session that still stands replaces that session at the target (RFC 7143 §6.3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Isid(pub [u8; 6]);

/// RFC 7143 §11.12.5: T = 10b, the naming authority is chance.
const RANDOM_FORMAT: u8 = 0b10 << 6;

impl Isid {
    /// The "random" format: three bytes drawn once for each process or lane set, and a qualifier
    /// that tells the sessions of one initiator apart.
    pub fn random(random: [u8; 3], qualifier: u16) -> Self {
        let [high, low] = qualifier.to_be_bytes();
        Self([RANDOM_FORMAT, random[0], random[1], random[2], high, low])
    }

    /// The qualifier: the last 16 bits.
    pub fn qualifier(self) -> u16 {
        u16::from_be_bytes([self.0[4], self.0[5]])
    }
}

impl fmt::Display for Isid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // L2: RFC 7143 §11.12.5
    #[test]
    fn random_format_has_its_mark_and_its_qualifier() {
        let isid = Isid::random([0xaa, 0xbb, 0xcc], 0x0102);
        assert_eq!(isid.0, [0x80, 0xaa, 0xbb, 0xcc, 1, 2]);
        assert_eq!(isid.qualifier(), 0x0102);
        assert_eq!(isid.to_string(), "80aabbcc0102");
    }
}
