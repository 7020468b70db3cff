//! CRC32C digests of headers and data.
//!
//! Source: RFC 7143 §13.1: the Castagnoli polynomial over the bytes sent, pad bytes included; the
//! value goes on the wire with its least significant byte first, unlike all else in iSCSI.
//!
//! Sessions of this crate negotiate `None` so far; the functions serve whoever speaks digests.

/// The digest of a segment that stands in one piece; `bytes` includes the padding.
pub fn of(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).to_le_bytes()
}

/// The digest of a segment that stands in pieces, in order; the last pieces are its padding.
pub fn of_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> [u8; 4] {
    pieces
        .into_iter()
        .fold(0, crc32c::crc32c_append)
        .to_le_bytes()
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
