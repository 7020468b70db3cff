//! The other direction: the target proves itself to us.

use std::fmt;

use subtle::ConstantTimeEq as _;

use super::{Challenge, ChapAlgorithm};
use crate::proto::violation::excerpt;
use crate::proto::{ChapCredentials, Secret};
use crate::wire::binary;

/// Random bytes that one login with mutual CHAP needs.
pub const CHANCE_BYTES: usize = 1 + CHALLENGE_BYTES;
/// Length of our challenges: 128 bits do not repeat, and old targets have no room for more than
/// some fifty bytes.
const CHALLENGE_BYTES: usize = 16;

/// Our challenge to the target, drawn anew for each login and used once.
pub struct OurChallenge {
    identifier: u8,
    challenge: [u8; CHALLENGE_BYTES],
}

/// The target knows the secret that it was to know. Cannot be had but from `OurChallenge::judge`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetProved(());

/// How a target failed to prove itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unproved {
    /// It left the security stage, or went on in it, without an answer to our challenge.
    #[error("it did not answer our challenge")]
    Silent,
    /// It has another name than the one expected.
    #[error("it calls itself {0:?}")]
    Name(String),
    /// Its response is not what the secret makes of our challenge.
    #[error("its response is wrong")]
    Response,
    /// It challenged us with our own challenge, or answered with our own secret.
    #[error("it sends back what is ours")]
    Reflected,
}

impl OurChallenge {
    /// From random bytes, which must be fresh for each login.
    pub fn new(chance: [u8; CHANCE_BYTES]) -> Self {
        // RFC 7143 §12.1.3, §9.2.1 (C4, C7): neither follows from what the target said or was asked before
        let [identifier, challenge @ ..] = chance;
        Self {
            identifier,
            challenge,
        }
    }

    /// `CHAP_I` and `CHAP_C`.
    ///
    /// # Errors
    /// `theirs` is the same challenge.
    pub fn spell(&self, theirs: &Challenge) -> Result<(String, String), Unproved> {
        // RFC 7143 §9.2.1 (C8): a challenge of one direction must not come back in the other
        if theirs.bytes == self.challenge {
            return Err(Unproved::Reflected);
        }
        Ok((self.identifier.to_string(), binary::to_hex(&self.challenge)))
    }

    /// Judges the target's answer: `CHAP_N` and `CHAP_R`. `own` is the secret that we proved
    /// ourselves with.
    ///
    /// # Errors
    /// See `Unproved`.
    pub fn judge(
        self,
        algorithm: ChapAlgorithm,
        expected: &ChapCredentials,
        own: &Secret,
        name: &str,
        response: &str,
    ) -> Result<TargetProved, Unproved> {
        let response = binary::parse(response).ok_or(Unproved::Response)?;
        let hash = |secret| algorithm.hash(self.identifier, secret, &self.challenge);
        // RFC 7143 §9.2.1 (C11): an answer that we could have given ourselves proves nothing
        if bool::from(hash(own).ct_eq(&response)) {
            return Err(Unproved::Reflected);
        }
        // RFC 7143 §12.1.3 (C9): one name only has this secret
        if name != expected.name {
            return Err(Unproved::Name(excerpt(name)));
        }
        // RFC 7143 §12.1.3 (C10, C13): in constant time; of another length is not equal either
        if bool::from(hash(&expected.secret).ct_eq(&response)) {
            Ok(TargetProved(()))
        } else {
            Err(Unproved::Response)
        }
    }
}

impl fmt::Debug for OurChallenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Who reads it in a log before the login ends could look for an answer to it.
        f.write_str("OurChallenge")
    }
}
