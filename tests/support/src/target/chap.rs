//! CHAP on the target's side: challenge, check, and the proof for initiators that want one.
//!
//! Source: RFC 7143 §12.1.3 (keys), §6.1 (binary values), RFC 1994 (what is digested).

use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::Sha256;
use sha3::Sha3_256;

/// A user and its secret.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) user: String,
    pub(super) secret: String,
}

/// A challenge that was sent.
#[derive(Clone, Debug)]
pub(super) struct Challenge {
    pub(super) algorithm: u8,
    pub(super) identifier: u8,
    pub(super) bytes: Vec<u8>,
}

impl Challenge {
    /// A fresh one.
    pub(super) fn random(algorithm: u8, bytes: usize) -> Self {
        let mut identifier = [0];
        let mut challenge = vec![0; bytes];
        crate::random::fill(&mut identifier);
        crate::random::fill(&mut challenge);
        Self {
            algorithm,
            identifier: identifier[0],
            bytes: challenge,
        }
    }

    pub(super) fn is_answered_by(&self, account: &Account, user: &str, response: &[u8]) -> bool {
        let right = answer(
            self.algorithm,
            self.identifier,
            &account.secret,
            &self.bytes,
        );
        user == account.user && response == right
    }
}

/// The response by an algorithm of `CHAP_A`: a digest over identifier, secret and challenge.
///
/// ```
/// assert_eq!(support::target::chap_response(5, 1, "secret", b"CHALLENGE").len(), 16);
/// ```
///
/// # Panics
/// If there is no such algorithm.
pub fn answer(algorithm: u8, identifier: u8, secret: &str, challenge: &[u8]) -> Vec<u8> {
    let bytes = [&[identifier], secret.as_bytes(), challenge].concat();
    match algorithm {
        MD5 => Md5::digest(bytes).to_vec(),
        SHA1 => Sha1::digest(bytes).to_vec(),
        SHA256 => Sha256::digest(bytes).to_vec(),
        SHA3_256 => Sha3_256::digest(bytes).to_vec(),
        _ => panic!("no CHAP algorithm {algorithm}"),
    }
}

/// RFC 7143 §12.1.3 and IANA's registry of CHAP algorithms.
pub(super) const MD5: u8 = 5;
const SHA1: u8 = 6;
const SHA256: u8 = 7;
const SHA3_256: u8 = 8;

/// `0b` and base64 with padding.
pub(super) fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::from("0b");
    for piece in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..piece.len()].copy_from_slice(piece);
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for digit in 0..4 {
            let index = usize::try_from(bits >> (18 - 6 * digit) & 0x3f).unwrap_or(0);
            text.push(if digit > piece.len() {
                '='
            } else {
                char::from(ALPHABET[index])
            });
        }
    }
    text
}

/// `0x` and hexadecimal digits.
pub(super) fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::from("0x"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A binary value, `0x` hexadecimal (odd counts of digits too) or `0b` base64.
pub(super) fn from_text(text: &str) -> Option<Vec<u8>> {
    let lower = text.get(..2)?.to_ascii_lowercase();
    let rest = &text[2..];
    match lower.as_str() {
        "0x" => from_hex(rest),
        "0b" => from_base64(rest),
        _ => None,
    }
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = digits
        .chars()
        .map(|digit| {
            digit
                .to_digit(16)
                .and_then(|value| u8::try_from(value).ok())
        })
        .collect();
    let mut digits = digits?;
    if digits.len() % 2 == 1 {
        digits.insert(0, 0);
    }
    Some(
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect(),
    )
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bits = 0_u32;
    let mut count = 0;
    let mut bytes = Vec::new();
    for digit in text.trim_end_matches('=').bytes() {
        let value = ALPHABET.iter().position(|known| *known == digit)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    Some(bytes)
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_values_are_read_in_both_alphabets() {
        assert_eq!(from_text("0xfF01").unwrap(), [0xff, 1]);
        assert_eq!(from_text("0X101").unwrap(), [1, 1]);
        assert_eq!(from_text("0bTWFu").unwrap(), b"Man");
        assert_eq!(from_text("0bTWE=").unwrap(), b"Ma");
        assert!(from_text("123").is_none() && from_text("0xzz").is_none());
        assert_eq!(from_text(&to_hex(b"round")).unwrap(), b"round");
    }

    #[test]
    fn base64_is_written_as_it_is_read() {
        for (bytes, text) in [(&b"Man"[..], "0bTWFu"), (b"Ma", "0bTWE="), (b"M", "0bTQ==")] {
            assert_eq!(to_base64(bytes), text);
            assert_eq!(from_text(text).unwrap(), bytes);
        }
    }

    #[test]
    fn answer_is_a_digest_over_identifier_secret_challenge() {
        // printf '\x01secretCHALLENGE' | md5sum, sha1sum, sha256sum, openssl dgst -sha3-256
        let rows = [
            (5, "0xfc36736b5e16415197db2bcd56591853"),
            (6, "0xb696342222ef06ee02284a766721a1d9dd4008d9"),
            (
                7,
                "0xc9b3d4a9a15c52708eb6393628987c2ae6f75dabb48ed332015dfec6967cdf95",
            ),
            (
                8,
                "0xbfe36f334926c6458a1e26d91656cce17c8e0a5062bb4a3a3d4d111c89800d74",
            ),
        ];
        for (algorithm, digest) in rows {
            assert_eq!(
                to_hex(&answer(algorithm, 1, "secret", b"CHALLENGE")),
                digest
            );
        }
    }
}
