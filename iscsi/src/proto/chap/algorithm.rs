//! The hash algorithms of CHAP.
//!
//! Source: RFC 7143 §12.1.3 (5); the iSCSI registry of IANA, "CHAP Algorithm Numbers" (6 to 8).

use std::fmt;

use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::Sha256;
use sha3::Sha3_256;
use zeroize::Zeroizing;

use crate::proto::Secret;
use crate::wire::text_keys;

/// A hash algorithm of CHAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChapAlgorithm {
    /// 5. The one that all targets know.
    Md5,
    /// 6.
    Sha1,
    /// 7.
    Sha256,
    /// 8.
    Sha3_256,
}

impl ChapAlgorithm {
    /// All, the strongest first.
    pub const ALL: [Self; 4] = [Self::Sha3_256, Self::Sha256, Self::Sha1, Self::Md5];

    /// Its number in `CHAP_A`.
    pub fn number(self) -> u8 {
        match self {
            Self::Md5 => 5,
            Self::Sha1 => 6,
            Self::Sha256 => 7,
            Self::Sha3_256 => 8,
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let number = text_keys::read_number(text)?;
        Self::ALL
            .into_iter()
            .find(|algorithm| u32::from(algorithm.number()) == number)
    }

    /// RFC 1994 §4.1: the hash over identifier, secret and challenge.
    pub(super) fn hash(
        self,
        identifier: u8,
        secret: &Secret,
        challenge: &[u8],
    ) -> Zeroizing<Vec<u8>> {
        let secret = secret.expose().as_bytes();
        match self {
            Self::Md5 => hash::<Md5>(identifier, secret, challenge),
            Self::Sha1 => hash::<Sha1>(identifier, secret, challenge),
            Self::Sha256 => hash::<Sha256>(identifier, secret, challenge),
            Self::Sha3_256 => hash::<Sha3_256>(identifier, secret, challenge),
        }
    }
}

impl fmt::Display for ChapAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Md5 => "MD5",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA-256",
            Self::Sha3_256 => "SHA3-256",
        })
    }
}

fn hash<D: Digest>(identifier: u8, secret: &[u8], challenge: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut hash = D::new();
    hash.update([identifier]);
    hash.update(secret);
    hash.update(challenge);
    Zeroizing::new(hash.finalize().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::binary;

    // C1: the numbers and lengths a second time, the digests computed by md5sum, sha1sum, sha256sum
    // and openssl dgst -sha3-256 over "A0123456789abcdefabcd"
    #[test]
    fn each_algorithm_has_its_number_and_its_hash() {
        let secret = Secret::new("0123456789abcdef".to_owned());
        for (number, digest) in [
            ("5", "1b07382da15416ba61f956eb507a98a3"),
            ("6", "39bf1b88efdfb2c5a65f8137a65b0c5087508b6f"),
            (
                "7",
                "042f0e173fce8afee45f61e7fe635685274fe709436ec65622c1ad3972b4f54b",
            ),
            (
                "8",
                "743ba88a251a0292952ba1d4a0ff6ca4c92c821834d7737f455e610cb650999c",
            ),
        ] {
            let algorithm = ChapAlgorithm::parse(number).unwrap();
            assert_eq!(algorithm.number().to_string(), number);
            assert_eq!(
                binary::to_hex(&algorithm.hash(b'A', &secret, b"abcd")),
                format!("0x{digest}"),
                "{algorithm}"
            );
        }
    }

    // C2
    #[test]
    fn other_numbers_and_words_are_no_algorithm() {
        for text in ["", "4", "9", "5,6", "MD5", "-5", "+5", " 5", "0b5"] {
            assert_eq!(ChapAlgorithm::parse(text), None, "{text}");
        }
        assert_eq!(ChapAlgorithm::parse("0x5"), Some(ChapAlgorithm::Md5));
    }
}
