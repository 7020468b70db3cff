//! Logical unit addresses: the number that people and Cinder use, and the eight bytes on the wire.
//!
//! Source: SAM-5 4.7 (LUN structure; peripheral, flat and extended flat addressing), SPC-4 6.33 (REPORT LUNS).
//!
//! ```text
//!   0..=255        00 nn 00 00 00 00 00 00    peripheral device addressing, bus 0
//!   256..=16383    4n nn 00 00 00 00 00 00    flat space addressing
//!   16384..        D2 nn nn nn 00 00 00 00    extended flat space addressing, 24 bits
//! ```

use std::fmt;

use nom::Parser as _;
use nom::multi::many0;
use nom::number::complete::be_u64;

use super::Violation;
use super::field::u32_at;

/// An eight-byte SAM LUN address (single-level; peripheral below 256, flat above), most significant byte first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LunAddress(pub u64);

impl LunAddress {
    /// The address of the logical unit with this number.
    ///
    /// Arrays with hundreds of volumes behind one target need the flat form: a raw number in two bytes would
    /// address something else.
    pub fn from_number(number: u16) -> Self {
        let [high, low] = number.to_be_bytes();
        let bytes = if number < FLAT_FIRST {
            [0, low, 0, 0, 0, 0, 0, 0]
        } else if number < EXTENDED_FIRST {
            [METHOD_FLAT | high, low, 0, 0, 0, 0, 0, 0]
        } else {
            [EXTENDED_FLAT, 0, high, low, 0, 0, 0, 0]
        };
        Self(u64::from_be_bytes(bytes))
    }

    /// Flat space addressing whatever the number, 0..16384: some arrays take no other (SAM-3 allows it below 256).
    ///
    /// `None` from 16384 on: the form has 14 bits.
    pub fn flat(number: u16) -> Option<Self> {
        let [high, low] = number.to_be_bytes();
        (number < EXTENDED_FIRST).then(|| Self::of_two_bytes(METHOD_FLAT | high, low))
    }

    /// The number as it stands in the first two bytes: what Linux sends for a number that is given to it.
    ///
    /// Below 256 that is peripheral device addressing; above, the upper byte is method and bus as the array means them.
    pub fn raw(number: u16) -> Self {
        let [high, low] = number.to_be_bytes();
        Self::of_two_bytes(high, low)
    }

    fn of_two_bytes(first: u8, second: u8) -> Self {
        Self::from_bytes([first, second, 0, 0, 0, 0, 0, 0])
    }

    /// From the eight bytes of a PDU or of REPORT LUNS.
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_be_bytes(bytes))
    }

    /// The eight bytes as they stand in a PDU.
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// The number of a single-level address in any of the three forms; `None` for hierarchies and well-known units.
    pub fn number(self) -> Option<u32> {
        match self.to_bytes() {
            // A flat address may hold a small number: some targets use it for all.
            [first, low, 0, 0, 0, 0, 0, 0] if first & METHOD_MASK == METHOD_FLAT => {
                Some(u32::from_be_bytes([0, 0, first & !METHOD_MASK, low]))
            }
            [0, low, 0, 0, 0, 0, 0, 0] => Some(u32::from(low)),
            [EXTENDED_FLAT, high, mid, low, 0, 0, 0, 0] => {
                Some(u32::from_be_bytes([0, high, mid, low]))
            }
            _ => None,
        }
    }

    /// The number of a well-known logical unit: 01h answers REPORT LUNS, 02h ACCESS CONTROLS, 03h target logs.
    pub fn well_known(self) -> Option<u8> {
        match self.to_bytes() {
            [WELL_KNOWN, number, 0, 0, 0, 0, 0, 0] => Some(number),
            _ => None,
        }
    }
}

impl From<u16> for LunAddress {
    /// As `from_number`.
    fn from(number: u16) -> Self {
        Self::from_number(number)
    }
}

impl fmt::Display for LunAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.number(), self.well_known()) {
            (Some(number), _) => write!(f, "{number}"),
            (None, Some(number)) => write!(f, "well-known {number:02X}h"),
            (None, None) => write!(f, "{:#018x}", self.0),
        }
    }
}

/// SELECT REPORT: which logical units REPORT LUNS lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SelectReport(pub u8);

impl SelectReport {
    /// Those that a number addresses.
    pub const ADDRESSED: Self = Self(0x00);
    /// Well-known ones only.
    pub const WELL_KNOWN: Self = Self(0x01);
    /// All.
    pub const ALL: Self = Self(0x02);
}

/// The length of the whole answer to REPORT LUNS, as its header tells it.
///
/// # Errors
/// `TooShort` if the header is not whole.
pub fn report_luns_told_bytes(data: &[u8]) -> Result<u64, Violation> {
    if data.len() < REPORT_HEADER_BYTES {
        return Err(Violation::TooShort {
            what: WHAT,
            have: data.len(),
            need: REPORT_HEADER_BYTES,
        });
    }
    Ok(8 + u64::from(u32_at(data, 0)))
}

/// The addresses in REPORT LUNS parameter data, as many whole ones as are there.
///
/// # Errors
/// `TooShort` if the header is not whole.
pub fn parse_report_luns(data: &[u8]) -> Result<Vec<LunAddress>, Violation> {
    let list = data.get(REPORT_HEADER_BYTES..).ok_or(Violation::TooShort {
        what: WHAT,
        have: data.len(),
        need: REPORT_HEADER_BYTES,
    })?;
    // The length may exceed what the allocation length let through: take what came.
    let told = usize::try_from(u32_at(data, 0)).unwrap_or(usize::MAX);
    let list = list.get(..told).unwrap_or(list);
    let parsed: nom::IResult<&[u8], Vec<u64>> = many0(be_u64).parse(list);
    Ok(parsed.map_or_else(
        |_| Vec::new(),
        |(_, luns)| luns.into_iter().map(LunAddress).collect(),
    ))
}

const WHAT: &str = "the REPORT LUNS data";
/// First number that needs flat space addressing.
const FLAT_FIRST: u16 = 256;
/// First number beyond its 14 bits.
const EXTENDED_FIRST: u16 = 1 << 14;
/// Address method, the two upper bits of the first byte.
const METHOD_MASK: u8 = 0xC0;
const METHOD_FLAT: u8 = 0x40;
/// Method 11b, length 01b (three bytes of value), extended method 2h.
const EXTENDED_FLAT: u8 = 0xD2;
/// Method 11b, length 00b, extended method 1h.
const WELL_KNOWN: u8 = 0xC1;
/// LUN LIST LENGTH and four reserved bytes.
const REPORT_HEADER_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_form_has_its_bytes() {
        for (number, bytes) in [
            (0, [0x00, 0x00, 0, 0, 0, 0, 0, 0]),
            (1, [0x00, 0x01, 0, 0, 0, 0, 0, 0]),
            (255, [0x00, 0xFF, 0, 0, 0, 0, 0, 0]),
            (256, [0x41, 0x00, 0, 0, 0, 0, 0, 0]),
            (300, [0x41, 0x2C, 0, 0, 0, 0, 0, 0]),
            (16383, [0x7F, 0xFF, 0, 0, 0, 0, 0, 0]),
            (16384, [0xD2, 0x00, 0x40, 0x00, 0, 0, 0, 0]),
        ] {
            assert_eq!(
                LunAddress::from_number(number).to_bytes(),
                bytes,
                "{number}"
            );
        }
    }

    #[test]
    fn an_array_may_want_flat_form_or_the_number_as_it_stands() {
        let bytes = |address: LunAddress| address.to_bytes();
        assert_eq!(
            bytes(LunAddress::flat(5).unwrap()),
            [0x40, 5, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            bytes(LunAddress::flat(16_383).unwrap()),
            [0x7F, 0xFF, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(LunAddress::flat(16_384), None);
        assert_eq!(bytes(LunAddress::raw(5)), [0, 5, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(LunAddress::raw(300)), [1, 0x2C, 0, 0, 0, 0, 0, 0]);
        // what os-brick gives Linux for 300 in flat form: 300 + 16384
        assert_eq!(LunAddress::raw(16_684), LunAddress::from_number(300));
    }

    #[test]
    fn a_small_number_in_flat_form_is_understood() {
        assert_eq!(
            LunAddress::from_bytes([0x40, 5, 0, 0, 0, 0, 0, 0]).number(),
            Some(5)
        );
    }

    #[test]
    fn hierarchies_and_well_known_units_have_no_number() {
        for bytes in [
            [0x01, 0x05, 0, 0, 0, 0, 0, 0],
            [0x00, 0x05, 0, 1, 0, 0, 0, 0],
            [0xC1, 0x01, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(LunAddress::from_bytes(bytes).number(), None, "{bytes:?}");
        }
    }

    #[test]
    fn well_known_units_are_told_apart() {
        let report_luns = LunAddress::from_bytes([0xC1, 0x01, 0, 0, 0, 0, 0, 0]);
        assert_eq!(report_luns.well_known(), Some(1));
        assert_eq!(report_luns.to_string(), "well-known 01h");
        assert_eq!(LunAddress::from_number(0x1C1).well_known(), None);
        assert_eq!(LunAddress::from_number(300).to_string(), "300");
        let hierarchy = LunAddress::from_bytes([1, 5, 0, 0, 0, 0, 0, 0]);
        assert_eq!(hierarchy.to_string(), "0x0105000000000000");
    }

    #[test]
    fn the_length_of_the_list_is_told() {
        assert_eq!(report_luns_told_bytes(&[0, 0, 1, 0, 0, 0, 0, 0]), Ok(264));
        assert_eq!(report_luns_told_bytes(&[0xFF; 8]), Ok(0x1_0000_0007));
        assert!(report_luns_told_bytes(&[0; 7]).is_err());
    }

    #[test]
    fn report_luns_gives_what_came() {
        // Two units told, the second cut off by the allocation length.
        let data = [0, 0, 0, 16, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0];
        assert_eq!(
            parse_report_luns(&data).unwrap(),
            vec![LunAddress::from_number(1)]
        );
        assert!(parse_report_luns(&data[..7]).is_err());
        // A length shorter than the data hides what is behind it.
        let data = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(parse_report_luns(&data).unwrap(), vec![]);
    }

    proptest! {
        #[test]
        fn numbers_survive(number: u16) {
            prop_assert_eq!(LunAddress::from_number(number).number(), Some(u32::from(number)));
        }

        #[test]
        fn any_bytes_are_endured(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse_report_luns(&data);
        }
    }
}
