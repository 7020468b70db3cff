//! MODE SENSE data: is the medium write protected, does FUA work, is there a write cache?
//!
//! Source: SPC-4 7.5 (header, page format), SBC-4 6.5.1 (device-specific parameter), 6.5.6 (Caching page).

use super::Violation;
use super::field::{bit_at, u8_at, u16_at};

/// What the mode parameters of a disk say, as far as a block device cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeParameters {
    /// WP: writes are refused.
    pub write_protected: bool,
    /// DPOFUA: the FUA bit of reads and writes is obeyed.
    pub fua_supported: bool,
    /// WCE of the Caching page; `None` if that page did not come.
    pub write_cache: Option<bool>,
}

/// Page code of the Caching page.
pub const PAGE_CACHING: u8 = 0x08;
/// Page code that asks for all pages.
pub const PAGE_ALL: u8 = 0x3F;

impl ModeParameters {
    /// Takes the answer to MODE SENSE(6) apart.
    ///
    /// # Errors
    /// `TooShort` if the header is not whole, `LengthBeyondEnd` if the block descriptors are not.
    pub fn parse_6(data: &[u8]) -> Result<Self, Violation> {
        Self::parse(
            data,
            4,
            2,
            usize::from(u8_at(data, 3)),
            1 + usize::from(u8_at(data, 0)),
        )
    }

    /// Takes the answer to MODE SENSE(10) apart.
    ///
    /// # Errors
    /// As for `parse_6`.
    pub fn parse_10(data: &[u8]) -> Result<Self, Violation> {
        Self::parse(
            data,
            8,
            3,
            usize::from(u16_at(data, 6)),
            2 + usize::from(u16_at(data, 0)),
        )
    }

    fn parse(
        data: &[u8],
        header: usize,
        device_specific: usize,
        descriptors: usize,
        told: usize,
    ) -> Result<Self, Violation> {
        const WHAT: &str = "the MODE SENSE data";
        if data.len() < header {
            return Err(Violation::TooShort {
                what: WHAT,
                have: data.len(),
                need: header,
            });
        }
        let data = data.get(..told.max(header)).unwrap_or(data);
        let pages = data
            .get(header + descriptors..)
            .ok_or(Violation::LengthBeyondEnd { what: WHAT })?;
        Ok(Self {
            write_protected: bit_at(data, device_specific, 7),
            fua_supported: bit_at(data, device_specific, 4),
            // SBC-4 6.5.6: WCE is bit 2 of the third byte.
            write_cache: page(pages, PAGE_CACHING).map(|page| bit_at(page, 2, 2)),
        })
    }
}

/// The page of this code, header included and possibly cut off; at least as long as WCE needs.
fn page(mut pages: &[u8], code: u8) -> Option<&[u8]> {
    loop {
        let first = *pages.first()?;
        // SPC-4 7.5.7: SPF set means a subpage, with a two-byte length.
        let (header, length) = if first & 0x40 == 0 {
            (2, usize::from(u8_at(pages, 1)))
        } else {
            (4, usize::from(u16_at(pages, 2)))
        };
        if first & 0x7F == code && pages.len() > 2 && length > 0 {
            return Some(pages);
        }
        pages = pages.get(header + length..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn header_bits_and_cache_bit_are_read_from_the_short_form() {
        // Header with DPOFUA, one block descriptor, Caching page with WCE.
        let mut data = vec![0, 0, 0x10, 8, 0, 0, 0, 0, 0, 0, 2, 0, 0x08, 0x12, 0x04];
        data.resize(12 + 20, 0);
        data[0] = 31;
        assert_eq!(
            ModeParameters::parse_6(&data).unwrap(),
            ModeParameters {
                write_protected: false,
                fua_supported: true,
                write_cache: Some(true)
            }
        );
        data[2] = 0x80;
        data[14] = 0;
        assert_eq!(
            ModeParameters::parse_6(&data).unwrap(),
            ModeParameters {
                write_protected: true,
                fua_supported: false,
                write_cache: Some(false)
            }
        );
    }

    #[test]
    fn the_cache_page_is_found_behind_others_and_subpages() {
        // MODE SENSE(10): control page 0Ah, subpage 0Ah/01h, then Caching.
        let mut data = vec![
            0, 0, 0, 0x10, 0, 0, 0, 0, 0x0A, 2, 0, 0, 0x4A, 1, 0, 1, 0xFF,
        ];
        data.extend_from_slice(&[0x88, 0x12, 0x04]);
        data[1] = 18 + 2;
        let mode = ModeParameters::parse_10(&data).unwrap();
        assert_eq!(mode.write_cache, Some(true));
        assert!(mode.fua_supported);
    }

    #[test]
    fn no_page_is_no_answer_about_the_cache() {
        let mode = ModeParameters::parse_6(&[3, 0, 0x90, 0]).unwrap();
        assert_eq!(mode.write_cache, None);
        assert!(mode.write_protected && mode.fua_supported);
    }

    #[test]
    fn bad_lengths_are_refused() {
        assert!(ModeParameters::parse_6(&[3, 0, 0]).is_err());
        assert!(ModeParameters::parse_10(&[0, 6, 0, 0, 0, 0, 0]).is_err());
        assert_eq!(
            ModeParameters::parse_6(&[3, 0, 0, 200]),
            Err(Violation::LengthBeyondEnd {
                what: "the MODE SENSE data"
            })
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_endured(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = ModeParameters::parse_6(&data);
            let _ = ModeParameters::parse_10(&data);
        }
    }
}
