//! Standard INQUIRY data: is there a logical unit, and what is it?
//!
//! Source: SPC-4 6.6.2.

use std::fmt;

use super::Violation;
use super::field::{bit_at, u8_at};

/// Standard INQUIRY data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inquiry {
    /// Is there something behind this LUN?
    pub qualifier: PeripheralQualifier,
    /// What it is.
    pub device_type: DeviceType,
    /// VERSION: 05h SPC-3, 06h SPC-4, 07h SPC-5.
    pub version: u8,
    /// PROTECT: protection information can be used.
    pub protect: bool,
    /// TPGS: asymmetric access, and who changes states.
    pub asymmetric_access: AsymmetricAccess,
    /// T10 VENDOR IDENTIFICATION, printable, without the padding.
    pub vendor: String,
    /// PRODUCT IDENTIFICATION, likewise.
    pub product: String,
    /// PRODUCT REVISION LEVEL, likewise.
    pub revision: String,
}

/// PERIPHERAL QUALIFIER, three bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeripheralQualifier {
    /// 000b: a device is there, as far as the server can tell.
    Connected,
    /// 001b: could be there, is not now.
    NotConnected,
    /// 011b: there can be none under this LUN.
    NotCapable,
    /// All others.
    Other(u8),
}

/// TPGS, two bits: can REPORT TARGET PORT GROUPS be asked, and by whom are access states changed?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AsymmetricAccess {
    /// 00b: there is none, or it is proprietary.
    #[default]
    None,
    /// 01b: the unit changes them.
    Implicit,
    /// 10b: initiators change them.
    Explicit,
    /// 11b: both.
    Both,
}

impl AsymmetricAccess {
    /// From the lower two bits.
    fn from_bits(bits: u8) -> Self {
        match bits & 0x03 {
            0b01 => Self::Implicit,
            0b10 => Self::Explicit,
            0b11 => Self::Both,
            // 00b is what is left of two bits.
            _ => Self::None,
        }
    }
}

/// PERIPHERAL DEVICE TYPE, five bits; an open registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceType(pub u8);

impl Inquiry {
    /// Takes the data apart. Identification strings that are cut off come out as far as they reach.
    ///
    /// # Errors
    /// `TooShort` if fewer than the five bytes came that every answer has.
    pub fn parse(data: &[u8]) -> Result<Self, Violation> {
        if data.len() < HEADER_BYTES {
            return Err(Violation::TooShort {
                what: "the INQUIRY data",
                have: data.len(),
                need: HEADER_BYTES,
            });
        }
        let told = HEADER_BYTES + usize::from(u8_at(data, 4));
        let data = data.get(..told).unwrap_or(data);
        let first = u8_at(data, 0);
        Ok(Self {
            qualifier: PeripheralQualifier::from_bits(first >> 5),
            device_type: DeviceType(first & 0x1F),
            version: u8_at(data, 2),
            protect: bit_at(data, 5, 0),
            asymmetric_access: AsymmetricAccess::from_bits(u8_at(data, 5) >> 4),
            vendor: text(data, 8, 16),
            product: text(data, 16, 32),
            revision: text(data, 32, 36),
        })
    }
}

impl PeripheralQualifier {
    fn from_bits(bits: u8) -> Self {
        match bits {
            0b000 => Self::Connected,
            0b001 => Self::NotConnected,
            0b011 => Self::NotCapable,
            other => Self::Other(other),
        }
    }
}

impl DeviceType {
    /// A direct access block device: a disk.
    pub const DISK: Self = Self(0x00);
    /// Unknown or none.
    pub const NONE: Self = Self(0x1F);
}

impl fmt::Display for DeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            0x00 => "disk",
            0x01 => "tape",
            0x05 => "CD/DVD drive",
            0x07 => "optical memory",
            0x08 => "medium changer",
            0x0C => "storage array controller",
            0x0D => "enclosure",
            0x0E => "simplified disk",
            0x14 => "host-managed zoned disk",
            0x1F => "no device",
            other => return write!(f, "device of type {other:02X}h"),
        };
        f.write_str(name)
    }
}

/// SPC-4 4.4.1: ASCII, left-aligned, padded with spaces. A hostile byte must not reach a terminal.
pub(super) fn text(data: &[u8], from: usize, to: usize) -> String {
    let field = data.get(from..to.min(data.len())).unwrap_or_default();
    printable(field)
}

/// Printable ASCII without outer spaces; anything else becomes `?`, zero bytes end it.
pub(super) fn printable(field: &[u8]) -> String {
    let text: String = field
        .iter()
        .take_while(|byte| **byte != 0)
        .map(|byte| {
            if matches!(byte, b' '..=b'~') {
                char::from(*byte)
            } else {
                '?'
            }
        })
        .collect();
    text.trim().to_owned()
}

/// Up to and with ADDITIONAL LENGTH.
const HEADER_BYTES: usize = 5;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// tgtd's disk, as captured: SPC-3, "IET     VIRTUAL-DISK    0001".
    fn tgt_disk() -> Vec<u8> {
        let mut data = vec![0x00, 0x00, 0x05, 0x02, 0x3D, 0x00, 0x00, 0x02];
        data.extend_from_slice(b"IET     VIRTUAL-DISK    0001");
        data.resize(66, 0);
        data
    }

    #[test]
    fn asymmetric_access_is_read_from_its_bits() {
        for (byte, expected) in [
            (0x00, AsymmetricAccess::None),
            (0x1F, AsymmetricAccess::Implicit),
            (0xE0, AsymmetricAccess::Explicit),
            (0x30, AsymmetricAccess::Both),
        ] {
            let inquiry = Inquiry::parse(&[0, 0, 5, 2, 31, byte]).unwrap();
            assert_eq!(inquiry.asymmetric_access, expected, "{byte:02x}");
        }
        let cut = Inquiry::parse(&[0, 0, 5, 2, 0, 0x30]).unwrap();
        assert_eq!(cut.asymmetric_access, AsymmetricAccess::None);
    }

    #[test]
    fn a_disk_is_a_disk() {
        let inquiry = Inquiry::parse(&tgt_disk()).unwrap();
        assert_eq!(inquiry.qualifier, PeripheralQualifier::Connected);
        assert_eq!(inquiry.device_type, DeviceType::DISK);
        assert_eq!(inquiry.version, 5);
        assert_eq!(
            (
                inquiry.vendor.as_str(),
                inquiry.product.as_str(),
                inquiry.revision.as_str()
            ),
            ("IET", "VIRTUAL-DISK", "0001")
        );
    }

    #[test]
    fn an_absent_unit_says_so() {
        let mut data = tgt_disk();
        data[0] = 0x7F;
        let inquiry = Inquiry::parse(&data).unwrap();
        assert_eq!(inquiry.qualifier, PeripheralQualifier::NotCapable);
        assert_eq!(inquiry.device_type, DeviceType::NONE);
        data[0] = 0x20;
        assert_eq!(
            Inquiry::parse(&data).unwrap().qualifier,
            PeripheralQualifier::NotConnected
        );
    }

    #[test]
    fn cut_off_strings_come_as_far_as_they_reach() {
        let inquiry = Inquiry::parse(&tgt_disk()[..20]).unwrap();
        assert_eq!(
            (inquiry.vendor.as_str(), inquiry.product.as_str()),
            ("IET", "VIRT")
        );
        assert_eq!(inquiry.revision, "");
        assert!(Inquiry::parse(&tgt_disk()[..4]).is_err());
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        let mut data = tgt_disk();
        data[8..16].copy_from_slice(b"\x1b[31mX\r\xff");
        assert_eq!(Inquiry::parse(&data).unwrap().vendor, "?[31mX??");
    }

    proptest! {
        #[test]
        fn any_bytes_are_endured(data in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Inquiry::parse(&data);
        }
    }
}
