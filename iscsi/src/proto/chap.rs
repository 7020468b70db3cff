//! CHAP: our answer to the target's challenge (one-way, MD5).
//!
//! Source: RFC 7143 §12.1.3; RFC 1994 §4.1.

use md5::{Digest as _, Md5};
use zeroize::Zeroizing;

use super::{ChapCredentials, Misuse, Violation};
use crate::wire::binary;

/// `CHAP_A` of MD5 (RFC 7143 §12.1.3), which all targets know.
pub const ALGORITHM_MD5: &str = "5";
/// Longest `CHAP_N` (RFC 7143 §6.1: text values have at most 255 bytes).
const NAME_BYTES_MAX: usize = 255;

/// The target's challenge, read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    identifier: u8,
    challenge: Vec<u8>,
}

impl Challenge {
    /// Reads the three values that a target sends in its turn.
    ///
    /// # Errors
    /// An algorithm other than the one we offered, an identifier that is no byte, a challenge that
    /// is no binary value of 1 to 1024 bytes.
    pub fn parse(algorithm: &str, identifier: &str, challenge: &str) -> Result<Self, Violation> {
        // RFC 7143 §12.1.3: the target picks one of the offered algorithms
        if algorithm != ALGORITHM_MD5 {
            return Err(Violation::ChapAlgorithm(super::violation::excerpt(
                algorithm,
            )));
        }
        // RFC 7143 §12.1.3: CHAP_I is one byte, in decimal or hex
        let number = match identifier
            .strip_prefix("0x")
            .or_else(|| identifier.strip_prefix("0X"))
        {
            Some(digits) => u8::from_str_radix(digits, 16),
            None => identifier.parse(),
        };
        let identifier = number.map_err(|_| Violation::ChapIdentifier)?;
        let challenge = binary::parse(challenge).ok_or(Violation::ChapChallenge)?;
        Ok(Self {
            identifier,
            challenge,
        })
    }

    /// `CHAP_R`: MD5 over identifier, secret and challenge, in hex.
    pub fn response(&self, credentials: &ChapCredentials) -> Zeroizing<String> {
        let mut hash = Md5::new();
        hash.update([self.identifier]);
        hash.update(credentials.secret.expose().as_bytes());
        hash.update(&self.challenge);
        Zeroizing::new(binary::to_hex(&hash.finalize()))
    }
}

/// Whether the credentials can be spoken at all.
///
/// # Errors
/// See `Misuse`.
pub fn check(credentials: &ChapCredentials) -> Result<(), Misuse> {
    let name = &credentials.name;
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains('\0') {
        return Err(Misuse::ChapName);
    }
    if credentials.secret.expose().is_empty() {
        return Err(Misuse::ChapSecret);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Secret;

    fn credentials() -> ChapCredentials {
        ChapCredentials {
            name: "user".to_owned(),
            secret: Secret::new("0123456789abcdef".to_owned()),
        }
    }

    // RFC 1994 §4.1; the digest was computed by md5sum over the 21 bytes
    #[test]
    fn response_is_md5_over_identifier_secret_and_challenge() {
        let challenge = Challenge::parse("5", "65", "0x61626364").unwrap();
        let same = Challenge::parse("5", "0x41", "0bYWJjZA==").unwrap();
        assert_eq!(challenge, same);
        assert_eq!(
            *challenge.response(&credentials()),
            "0x1b07382da15416ba61f956eb507a98a3"
        );
    }

    // RFC 7143 §12.1.3
    #[test]
    fn bad_values_are_refused_by_name() {
        assert_eq!(
            Challenge::parse("7", "1", "0x61"),
            Err(Violation::ChapAlgorithm("7".to_owned()))
        );
        for identifier in ["256", "-1", "", "x", "0x100"] {
            assert_eq!(
                Challenge::parse("5", identifier, "0x61"),
                Err(Violation::ChapIdentifier)
            );
        }
        for challenge in ["", "0x", "abcd", "0b!"] {
            assert_eq!(
                Challenge::parse("5", "1", challenge),
                Err(Violation::ChapChallenge)
            );
        }
    }

    #[test]
    fn challenges_of_1_and_1024_bytes_are_taken() {
        for length in [1, 255, 256, 1024] {
            let text = binary::to_hex(&vec![0xa5; length]);
            assert!(Challenge::parse("5", "0", &text).is_ok(), "{length}");
        }
        assert_eq!(
            Challenge::parse("5", "0", &binary::to_hex(&[0; 1025])),
            Err(Violation::ChapChallenge)
        );
    }

    #[test]
    fn credentials_that_cannot_be_spoken_are_misuse() {
        let mut bad = credentials();
        bad.name = String::new();
        assert_eq!(check(&bad), Err(Misuse::ChapName));
        bad.name = "x".repeat(256);
        assert_eq!(check(&bad), Err(Misuse::ChapName));
        bad = credentials();
        bad.secret = Secret::new(String::new());
        assert_eq!(check(&bad), Err(Misuse::ChapSecret));
        assert_eq!(check(&credentials()), Ok(()));
    }
}
