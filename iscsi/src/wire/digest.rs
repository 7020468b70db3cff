//! CRC32C digests of headers and data.
//!
//! Source: RFC 7143 §13.1: the Castagnoli polynomial over the bytes sent, pad bytes included; the
//! value goes on the wire with its least significant byte first, unlike all else in iSCSI.

/// Size of a digest on the wire.
pub const DIGEST_BYTES: usize = 4;

/// The digest of bytes that come piece by piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Running(u32);

impl Running {
    /// The digest so far, with `bytes` behind it.
    #[must_use]
    pub fn append(self, bytes: &[u8]) -> Self {
        Self(crc32c::crc32c_append(self.0, bytes))
    }

    /// As it stands on the wire.
    pub fn finish(self) -> [u8; DIGEST_BYTES] {
        self.0.to_le_bytes()
    }
}

/// The digest of a segment that stands in one piece; `bytes` includes the padding.
pub fn of(bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    Running::default().append(bytes).finish()
}

/// The digest of a segment that stands in pieces, in order; the last pieces are its padding.
pub fn of_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> [u8; DIGEST_BYTES] {
    pieces
        .into_iter()
        .fold(Running::default(), Running::append)
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 7143 §13.1 points to the vectors of RFC 3720 §B.4: 32 bytes of zeroes and of ones
    #[test]
    fn digests_equal_the_published_vectors() {
        assert_eq!(of(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(of(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
    }

    #[test]
    fn pieces_and_whole_agree() {
        let bytes: Vec<u8> = (0..=99).collect();
        assert_eq!(
            of(&bytes),
            of_pieces([&bytes[..1], &bytes[1..64], &bytes[64..]])
        );
    }
}
