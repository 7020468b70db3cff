//! CHAP: our answer to the target's challenge, and the target's answer to ours.
//!
//! Source: RFC 7143 §12.1.3, §9.2.1; RFC 1994 §4.1.
//!
//! Invariants:
//! 1. `TargetProved` comes only of a response that was right.
//! 2. What we take for right was computed with a secret that is not our own, over a challenge that is
//!    ours: nothing that we said ourselves can be said back to us.
//! 3. Secrets and digests are compared in constant time and wiped.

mod algorithm;
mod mutual;

pub use algorithm::ChapAlgorithm;
pub use mutual::{CHANCE_BYTES, OurChallenge, TargetProved, Unproved};

use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::{ChapCredentials, Misuse, Secret, SessionParams, Violation};
use crate::wire::{binary, text_keys};

/// Longest `CHAP_N` (RFC 7143 §6.1: text values have at most 255 bytes).
const NAME_BYTES_MAX: usize = 255;
/// RFC 7143 §9.2.1: a secret of fewer than 96 bits can be guessed by whoever hears one login.
const SECRET_BYTES_ADVISED: usize = 12;

/// The target's challenge, read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    algorithm: ChapAlgorithm,
    identifier: u8,
    bytes: Vec<u8>,
}

impl Challenge {
    /// Reads the three values that a target sends in its turn.
    ///
    /// # Errors
    /// An algorithm that is not among the `offered`, an identifier that is no byte, a challenge that
    /// is no binary value of 1 to 1024 bytes.
    pub fn parse(
        offered: &[ChapAlgorithm],
        algorithm: &str,
        identifier: &str,
        challenge: &str,
    ) -> Result<Self, Violation> {
        // RFC 7143 §12.1.3 (C1, C2): the target picks one of the offered algorithms
        let algorithm = ChapAlgorithm::parse(algorithm)
            .filter(|picked| offered.contains(picked))
            .ok_or_else(|| Violation::ChapAlgorithm(super::violation::excerpt(algorithm)))?;
        // RFC 7143 §12.1.3 (C3): CHAP_I is one byte, in decimal or hex
        let identifier = text_keys::read_number(identifier)
            .and_then(|number| u8::try_from(number).ok())
            .ok_or(Violation::ChapIdentifier)?;
        // RFC 7143 §12.1.3 (C5, C6): 1 to 1024 bytes
        let bytes = binary::parse(challenge).ok_or(Violation::ChapChallenge)?;
        Ok(Self {
            algorithm,
            identifier,
            bytes,
        })
    }

    /// `CHAP_R`: the hash over identifier, secret and challenge, in hex.
    pub fn response(&self, credentials: &ChapCredentials) -> Zeroizing<String> {
        let hash = self
            .algorithm
            .hash(self.identifier, &credentials.secret, &self.bytes);
        Zeroizing::new(binary::to_hex(&hash))
    }

    /// The algorithm that the target picked; it holds for both directions.
    pub fn algorithm(&self) -> ChapAlgorithm {
        self.algorithm
    }
}

/// `CHAP_A`: the offer, in the order of our preference.
pub fn offer(algorithms: &[ChapAlgorithm]) -> String {
    let numbers: Vec<_> = algorithms
        .iter()
        .map(|algorithm| algorithm.number().to_string())
        .collect();
    numbers.join(",")
}

/// Whether the authentication that is asked for can be had at all.
///
/// # Errors
/// See `Misuse`.
pub fn check(params: &SessionParams) -> Result<(), Misuse> {
    let algorithms = &params.chap_algorithms;
    let is_repeated = (1..algorithms.len()).any(|at| algorithms[..at].contains(&algorithms[at]));
    if algorithms.is_empty() || is_repeated {
        return Err(Misuse::ChapAlgorithms);
    }
    let Some(ours) = &params.chap else {
        // RFC 7143 §12.1.3: the target proves itself only to who proved himself
        return if params.mutual_chap.is_some() {
            Err(Misuse::MutualAlone)
        } else if params.require_authentication {
            Err(Misuse::NoCredentials)
        } else {
            Ok(())
        };
    };
    check_credentials(ours)?;
    if let Some(theirs) = &params.mutual_chap {
        check_credentials(theirs)?;
        // RFC 7143 §9.2.1 (C11): one secret for both directions would let the target answer us with our
        // own words
        let (ours, theirs) = (ours.secret.expose(), theirs.secret.expose());
        if bool::from(ours.as_bytes().ct_eq(theirs.as_bytes())) {
            return Err(Misuse::EqualSecrets);
        }
    }
    Ok(())
}

/// Whether the secret is shorter than it should be.
pub fn is_short(secret: &Secret) -> bool {
    secret.expose().len() < SECRET_BYTES_ADVISED
}

fn check_credentials(credentials: &ChapCredentials) -> Result<(), Misuse> {
    let name = &credentials.name;
    // RFC 7143 §12.1.3, §6.1 (C9): a text value
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains('\0') {
        return Err(Misuse::ChapName);
    }
    if credentials.secret.expose().is_empty() {
        return Err(Misuse::ChapSecret);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
