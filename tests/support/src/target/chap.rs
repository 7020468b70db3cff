//! CHAP with MD5 on the target's side: challenge, check, and the proof for initiators that want one.
//!
//! Source: RFC 7143 §12.1.3 (keys), §6.1 (binary values), RFC 1994 (the digest).

use md5::{Digest, Md5};

/// A user and its secret.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) user: String,
    pub(super) secret: String,
}

/// A challenge that was sent.
#[derive(Clone, Debug)]
pub(super) struct Challenge {
    pub(super) identifier: u8,
    pub(super) bytes: Vec<u8>,
}

impl Challenge {
    /// A fresh one.
    pub(super) fn random(bytes: usize) -> Self {
        let mut identifier = [0];
        let mut challenge = vec![0; bytes];
        crate::random::fill(&mut identifier);
        crate::random::fill(&mut challenge);
        Self {
            identifier: identifier[0],
            bytes: challenge,
        }
    }

    pub(super) fn is_answered_by(&self, account: &Account, user: &str, response: &[u8]) -> bool {
        user == account.user && response == answer(self.identifier, &account.secret, &self.bytes)
    }
}

/// MD5 over identifier, secret and challenge.
pub(super) fn answer(identifier: u8, secret: &str, challenge: &[u8]) -> [u8; 16] {
    let mut digest = Md5::new();
    digest.update([identifier]);
    digest.update(secret.as_bytes());
    digest.update(challenge);
    digest.finalize().into()
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
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
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
    fn answer_is_md5_over_identifier_secret_challenge() {
        // printf '\x01secretCHALLENGE' | md5sum
        assert_eq!(
            to_hex(&answer(1, "secret", b"CHALLENGE")),
            "0xfc36736b5e16415197db2bcd56591853"
        );
    }
}
