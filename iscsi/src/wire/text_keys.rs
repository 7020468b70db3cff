//! Text keys: `key=value` pairs, each ended by a zero byte.
//!
//! Source: RFC 7143 §6.1. What the values mean is `proto`'s matter.

use nom::Parser as _;
use nom::bytes::complete::{tag, take_till, take_while_m_n};
use nom::multi::many0_count;
use nom::sequence::{separated_pair, terminated};

/// Longest key name (RFC 7143 §6.1).
pub const KEY_BYTES_MAX: usize = 63;
/// Longest value: RFC 7143 §6.1 names 255 bytes for most and 8192 for the largest binary ones; a
/// list of addresses may be longer than the former, so the latter holds for all.
pub const VALUE_BYTES_MAX: usize = 8192;
/// Most pairs in one text: a login has fewer than 50; a discovery two or more for each target.
pub const PAIRS_MAX: usize = 65_536;

/// What is wrong with a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// Not `key=value` with a zero byte after it.
    #[error("text is not a list of key=value pairs")]
    Malformed,
    /// A value is not UTF-8.
    #[error("a text value is not UTF-8")]
    NotUtf8,
    /// A value is longer than `VALUE_BYTES_MAX`.
    #[error("a text value is longer than {VALUE_BYTES_MAX} bytes")]
    ValueTooLong,
    /// More pairs than `PAIRS_MAX`.
    #[error("a text has more than {PAIRS_MAX} keys")]
    TooManyPairs,
}

/// Reads all pairs of a text, in order. Zero bytes between pairs are passed over: some targets
/// count their padding as data.
///
/// # Errors
/// See `TextError`.
pub fn parse(text: &[u8]) -> Result<Vec<(&str, &str)>, TextError> {
    let mut pairs = Vec::new();
    let mut rest = skip_zeroes(text);
    while !rest.is_empty() {
        if pairs.len() == PAIRS_MAX {
            return Err(TextError::TooManyPairs);
        }
        let (after, (key, value)) = pair(rest).map_err(|_| TextError::Malformed)?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(TextError::ValueTooLong);
        }
        let key = std::str::from_utf8(key).map_err(|_| TextError::Malformed)?;
        let value = std::str::from_utf8(value).map_err(|_| TextError::NotUtf8)?;
        pairs.push((key, value));
        rest = skip_zeroes(after);
    }
    Ok(pairs)
}

/// Appends one pair with its zero byte.
pub fn emit(text: &mut Vec<u8>, key: &str, value: &str) {
    text.extend_from_slice(key.as_bytes());
    text.push(b'=');
    text.extend_from_slice(value.as_bytes());
    text.push(0);
}

/// RFC 7143 §6.1: a number is decimal, or hex behind `0x`; `None` if it is neither, or has more than
/// 32 bits.
pub fn read_number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // `from_str_radix` would take a sign.
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

fn pair(input: &[u8]) -> nom::IResult<&[u8], (&[u8], &[u8])> {
    terminated(
        separated_pair(
            take_while_m_n(1, KEY_BYTES_MAX, is_key_byte),
            tag(&b"="[..]),
            take_till(|byte| byte == 0),
        ),
        tag(&b"\0"[..]),
    )
    .parse(input)
}

fn skip_zeroes(input: &[u8]) -> &[u8] {
    let zero = tag::<_, _, nom::error::Error<&[u8]>>(&b"\0"[..]);
    many0_count(zero)
        .parse(input)
        .map_or(input, |(rest, _)| rest)
}

/// RFC 7143 §6.1: a key name has letters, digits and a few marks; `#` stands in `X#` keys.
fn is_key_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b".-+@_#".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pairs_come_apart_and_go_together() {
        let text = b"AuthMethod=CHAP,None\0TargetPortalGroupTag=1\0Empty=\0";
        let pairs = parse(text).unwrap();
        assert_eq!(
            pairs,
            [
                ("AuthMethod", "CHAP,None"),
                ("TargetPortalGroupTag", "1"),
                ("Empty", "")
            ]
        );
        let mut again = Vec::new();
        for (key, value) in pairs {
            emit(&mut again, key, value);
        }
        assert_eq!(again, text);
    }

    #[test]
    fn value_may_hold_an_equals_sign_and_trailing_zeroes_are_passed_over() {
        assert_eq!(
            parse(b"CHAP_C=0bAA==\0\0\0").unwrap(),
            [("CHAP_C", "0bAA==")]
        );
        assert_eq!(parse(b"").unwrap(), []);
    }

    // RFC 7143 §6.1: numerical values
    #[test]
    fn numbers_are_decimal_or_hex_without_a_sign() {
        for (text, number) in [
            ("0", Some(0)),
            ("008192", Some(8192)),
            ("4294967295", Some(u32::MAX)),
            ("4294967296", None),
            ("0x1F", Some(31)),
            ("0XfF", Some(255)),
            ("0x100000000", None),
            ("0x", None),
            ("0x+1", None),
            ("+1", None),
            ("-1", None),
            ("1 ", None),
            ("1e3", None),
            ("0b1", None),
            ("", None),
        ] {
            assert_eq!(read_number(text), number, "{text:?}");
        }
    }

    #[test]
    fn bad_texts_are_refused_by_name() {
        assert_eq!(parse(b"AuthMethod"), Err(TextError::Malformed));
        assert_eq!(parse(b"AuthMethod=CHAP"), Err(TextError::Malformed));
        assert_eq!(parse(b"=x\0"), Err(TextError::Malformed));
        assert_eq!(parse(b"a b=x\0"), Err(TextError::Malformed));
        assert_eq!(parse(b"a=\xff\0"), Err(TextError::NotUtf8));
        let mut long_key = vec![b'a'; KEY_BYTES_MAX + 1];
        long_key.extend_from_slice(b"=1\0");
        assert_eq!(parse(&long_key), Err(TextError::Malformed));
        let mut long_value = b"a=".to_vec();
        long_value.resize(VALUE_BYTES_MAX + 3, b'x');
        long_value.push(0);
        assert_eq!(parse(&long_value), Err(TextError::ValueTooLong));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&text);
        }

        #[test]
        fn pairs_survive_a_round_trip(
            pairs in proptest::collection::vec(("[A-Za-z0-9.+@_#-]{1,63}", "[^\0]{0,40}"), 0..20)
        ) {
            let mut text = Vec::new();
            for (key, value) in &pairs {
                emit(&mut text, key, value);
            }
            let back: Vec<_> =
                parse(&text).unwrap().into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            prop_assert_eq!(back, pairs);
        }
    }
}
