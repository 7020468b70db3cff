//! Binary values in text: hexadecimal (`0x`) and base64 (`0b`).
//!
//! Source: RFC 7143 §6.1 (hex-constant, base64-constant), RFC 4648 §4.

/// Longest binary value that is decoded: CHAP's challenge and response end here (RFC 7143 §12.1.3).
pub const BINARY_BYTES_MAX: usize = 1024;

/// Writes bytes as a hex constant: `0x` and two lower-case digits for each.
pub fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + bytes.len() * 2);
    text.push_str("0x");
    for byte in bytes {
        for nibble in [byte >> 4, byte & 0x0f] {
            text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
        }
    }
    text
}

/// Reads a hex or base64 constant; `None` if it is neither, is empty, or has more than
/// `BINARY_BYTES_MAX` bytes.
pub fn parse(text: &str) -> Option<Vec<u8>> {
    let (prefix, digits) = text.split_at_checked(2)?;
    let bytes = match prefix {
        "0x" | "0X" => hex(digits.as_bytes())?,
        "0b" | "0B" => base64(digits.as_bytes())?,
        _ => return None,
    };
    (1..=BINARY_BYTES_MAX)
        .contains(&bytes.len())
        .then_some(bytes)
}

fn hex(digits: &[u8]) -> Option<Vec<u8>> {
    if digits.len() > BINARY_BYTES_MAX * 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len().div_ceil(2));
    // An odd number of digits lacks the leading zero.
    let (first, rest) = digits.split_at(digits.len() % 2);
    if let [digit] = first {
        bytes.push(nibble(*digit)?);
    }
    for pair in rest.chunks_exact(2) {
        bytes.push((nibble(pair[0])? << 4) | nibble(pair[1])?);
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn base64(digits: &[u8]) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(4) || digits.len() > BINARY_BYTES_MAX.div_ceil(3) * 4 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3);
    let quads = digits.len() / 4;
    for (index, quad) in digits.chunks_exact(4).enumerate() {
        let padding = quad
            .iter()
            .rev()
            .take_while(|digit| **digit == b'=')
            .count();
        if padding > 2 || (padding > 0 && index + 1 != quads) {
            return None;
        }
        let mut word = 0_u32;
        for digit in &quad[..4 - padding] {
            word = (word << 6) | sextet(*digit)?;
        }
        word <<= 6 * padding;
        let [_, first, second, third] = word.to_be_bytes();
        let whole = [first, second, third];
        let (kept, dropped) = whole.split_at(3 - padding);
        // Bits behind the last byte must be zero, or the value had two spellings.
        if dropped.iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend_from_slice(kept);
    }
    Some(bytes)
}

fn sextet(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // C5
    #[test]
    fn hex_in_both_cases_and_with_an_odd_number_of_digits() {
        assert_eq!(parse("0xDeadbeef"), Some(vec![0xde, 0xad, 0xbe, 0xef]));
        assert_eq!(parse("0X1a2"), Some(vec![0x01, 0xa2]));
        assert_eq!(to_hex(&[0x00, 0x0f, 0xff]), "0x000fff");
    }

    // C5: RFC 4648 §10: test vectors
    #[test]
    fn base64_equals_the_published_vectors() {
        for (text, bytes) in [
            ("0bZg==", &b"f"[..]),
            ("0bZm8=", b"fo"),
            ("0BZm9v", b"foo"),
            ("0bZm9vYg==", b"foob"),
            ("0bZm9vYmE=", b"fooba"),
            ("0bZm9vYmFy", b"foobar"),
        ] {
            assert_eq!(parse(text).as_deref(), Some(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_binary_value_is_refused() {
        for text in [
            "",
            "0",
            "0x",
            "0b",
            "12",
            "0xzz",
            "0bZg=",
            "0bZ===",
            "0bZg==Zg==",
            "0bZh==",
            "0b====",
            "\u{e9}x",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    // C5, C6: RFC 7143 §12.1.3: binary values up to 1024 bytes
    #[test]
    fn limit_is_1024_bytes_in_either_spelling() {
        assert_eq!(
            parse(&to_hex(&[7; 1024])).map(|bytes| bytes.len()),
            Some(1024)
        );
        assert_eq!(parse(&to_hex(&[7; 1025])), None);
        let zeroes = format!("0b{}AA==", "AAAA".repeat(341));
        assert_eq!(parse(&zeroes).map(|bytes| bytes.len()), Some(1024));
        assert_eq!(parse(&format!("0b{}", "AAAA".repeat(342))), None);
    }

    proptest! {
        #[test]
        fn hex_survives_a_round_trip(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            prop_assert_eq!(parse(&to_hex(&bytes)), Some(bytes));
        }

        #[test]
        fn any_text_is_answered(text in ".{0,100}") {
            let _ = parse(&text);
        }
    }
}
