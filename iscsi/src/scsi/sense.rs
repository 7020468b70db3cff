//! Sense data: why a command ended with CHECK CONDITION.
//!
//! Source: SPC-4 4.5 (fixed 70h/71h, descriptor 72h/73h), table 53 (sense keys), annex D (additional sense codes).
//! What to do about it is decided by those who sent the command: `client::probe` and the daemon's `lun`.
//!
//! Invariants:
//! 1. Short sense data gives what it holds; a missing ASC and ASCQ are 00h/00h.
//! 2. A field that the ADDITIONAL SENSE LENGTH excludes is not read, even when bytes are there.

use std::fmt;

use super::field::{bit_at, u8_at, u32_at, u64_at};

/// Parsed sense data, fixed or descriptor format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// Sense key.
    pub key: SenseKey,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
    /// It speaks of an earlier command, one that had been answered with GOOD (response codes 71h and 73h).
    pub deferred: bool,
    /// INFORMATION, if valid: for medium errors the LBA, for a miscompare the offset of the first byte that differs.
    pub information: Option<u64>,
    /// SENSE KEY SPECIFIC, if valid (SKSV).
    pub specific: Option<KeySpecific>,
}

/// SENSE KEY SPECIFIC: what it holds depends on the sense key (SPC-4 4.5.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeySpecific {
    /// Illegal request: which field is wrong.
    Field {
        /// In the CDB; else in the parameter data.
        in_cdb: bool,
        /// Its byte.
        byte: u16,
        /// Its most significant bit, if that is told.
        bit: Option<u8>,
    },
    /// Recovered, medium and hardware errors: how often the device tried.
    Retries(u16),
    /// No sense and not ready: how much of an operation is done, in parts of 65536.
    Progress(u16),
    /// Unit attention: more of them were pending than the device could remember.
    AttentionsLost(bool),
    /// For keys that define none, as it came (three bytes, SKSV included).
    Other(u32),
}

/// Sense key, four bits: a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SenseKey {
    /// Nothing to say.
    NoSense = 0x0,
    /// Done, with a recovery by the device.
    RecoveredError = 0x1,
    /// The logical unit cannot be accessed now.
    NotReady = 0x2,
    /// A flaw of the medium or in its data.
    MediumError = 0x3,
    /// The device is broken.
    HardwareError = 0x4,
    /// The command is not one that this logical unit takes.
    IllegalRequest = 0x5,
    /// Something happened to the logical unit; the command was not done.
    UnitAttention = 0x6,
    /// Access is not allowed, most often: write protected.
    DataProtect = 0x7,
    /// Blank or written medium met unexpectedly.
    BlankCheck = 0x8,
    /// The vendor's own.
    VendorSpecific = 0x9,
    /// A third-party copy failed.
    CopyAborted = 0xA,
    /// The device server gave the command up; it may be repeated.
    AbortedCommand = 0xB,
    /// Not in use.
    Reserved = 0xC,
    /// A buffered device ran out of medium.
    VolumeOverflow = 0xD,
    /// Source and medium differ.
    Miscompare = 0xE,
    /// Done, with a remark.
    Completed = 0xF,
}

impl Sense {
    /// Sense of these codes, for a current command and without information.
    pub fn new(key: SenseKey, asc: u8, ascq: u8) -> Self {
        Self {
            key,
            asc,
            ascq,
            deferred: false,
            information: None,
            specific: None,
        }
    }

    /// Takes sense data apart, without the two length bytes that iSCSI puts in front.
    ///
    /// `None` if it is empty, of a format that is none of the four, or ends before the sense key.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let response_code = data.first()? & 0x7F;
        let deferred = matches!(response_code, FIXED_DEFERRED | DESCRIPTOR_DEFERRED);
        match response_code {
            FIXED_CURRENT | FIXED_DEFERRED => Self::parse_fixed(data, deferred),
            DESCRIPTOR_CURRENT | DESCRIPTOR_DEFERRED => Self::parse_descriptor(data, deferred),
            _ => None,
        }
    }

    /// Is it this additional sense, `asc` and `ascq`?
    pub fn is(&self, code: (u8, u8)) -> bool {
        (self.asc, self.ascq) == code
    }

    fn parse_fixed(data: &[u8], deferred: bool) -> Option<Self> {
        let key = SenseKey::from_bits(*data.get(2)?);
        let data = cut(data);
        let valid = bit_at(data, 0, 7) && data.len() >= 7;
        Some(Self {
            key,
            asc: u8_at(data, 12),
            ascq: u8_at(data, 13),
            deferred,
            information: valid.then(|| u64::from(u32_at(data, 3))),
            specific: KeySpecific::parse(key, data.get(15..).unwrap_or_default()),
        })
    }

    fn parse_descriptor(data: &[u8], deferred: bool) -> Option<Self> {
        let key = SenseKey::from_bits(*data.get(1)?);
        let data = cut(data);
        Some(Self {
            key,
            asc: u8_at(data, 2),
            ascq: u8_at(data, 3),
            deferred,
            information: descriptors(data).find_map(information),
            specific: descriptors(data)
                .filter(|descriptor| u8_at(descriptor, 0) == KEY_SPECIFIC)
                .find_map(|descriptor| {
                    KeySpecific::parse(key, descriptor.get(4..).unwrap_or_default())
                }),
        })
    }
}

impl KeySpecific {
    /// From the three bytes; `None` if they are not all there or not valid.
    fn parse(key: SenseKey, bytes: &[u8]) -> Option<Self> {
        let [flags, high, low] = *bytes.first_chunk()?;
        if flags & SKSV == 0 {
            return None;
        }
        let value = u16::from_be_bytes([high, low]);
        Some(match key {
            SenseKey::IllegalRequest => Self::Field {
                in_cdb: flags & 0x40 != 0,
                byte: value,
                bit: (flags & 0x08 != 0).then_some(flags & 0x07),
            },
            SenseKey::RecoveredError | SenseKey::MediumError | SenseKey::HardwareError => {
                Self::Retries(value)
            }
            SenseKey::NoSense | SenseKey::NotReady => Self::Progress(value),
            SenseKey::UnitAttention => Self::AttentionsLost(flags & 0x01 != 0),
            SenseKey::DataProtect
            | SenseKey::BlankCheck
            | SenseKey::VendorSpecific
            | SenseKey::CopyAborted
            | SenseKey::AbortedCommand
            | SenseKey::Reserved
            | SenseKey::VolumeOverflow
            | SenseKey::Miscompare
            | SenseKey::Completed => Self::Other(u32::from_be_bytes([0, flags, high, low])),
        })
    }
}

impl SenseKey {
    /// From the lower four bits; the others are flags of the fixed format.
    pub fn from_bits(byte: u8) -> Self {
        match byte & 0x0F {
            0x0 => Self::NoSense,
            0x1 => Self::RecoveredError,
            0x2 => Self::NotReady,
            0x3 => Self::MediumError,
            0x4 => Self::HardwareError,
            0x5 => Self::IllegalRequest,
            0x6 => Self::UnitAttention,
            0x7 => Self::DataProtect,
            0x8 => Self::BlankCheck,
            0x9 => Self::VendorSpecific,
            0xA => Self::CopyAborted,
            0xB => Self::AbortedCommand,
            0xD => Self::VolumeOverflow,
            0xE => Self::Miscompare,
            0xF => Self::Completed,
            // 0xC is what is left of four bits.
            _ => Self::Reserved,
        }
    }

    /// The four bits.
    pub fn bits(self) -> u8 {
        self as u8
    }
}

/// `hardware error: internal target failure (4h/44h/00h)`; unknown codes as numbers only.
impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, asc, ascq, .. } = *self;
        if self.deferred {
            f.write_str("of an earlier command: ")?;
        }
        write!(f, "{key}")?;
        if let Some(name) = name_of(asc, ascq) {
            write!(f, ": {name}")?;
        }
        write!(f, " ({:X}h/{asc:02X}h/{ascq:02X}h)", key.bits())
    }
}

impl fmt::Display for SenseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSense => "no sense",
            Self::RecoveredError => "recovered error",
            Self::NotReady => "not ready",
            Self::MediumError => "medium error",
            Self::HardwareError => "hardware error",
            Self::IllegalRequest => "illegal request",
            Self::UnitAttention => "unit attention",
            Self::DataProtect => "data protect",
            Self::BlankCheck => "blank check",
            Self::VendorSpecific => "vendor specific",
            Self::CopyAborted => "copy aborted",
            Self::AbortedCommand => "aborted command",
            Self::Reserved => "reserved sense key",
            Self::VolumeOverflow => "volume overflow",
            Self::Miscompare => "miscompare",
            Self::Completed => "completed",
        })
    }
}

/// Additional sense codes that someone here decides by, as (ASC, ASCQ). SPC-4 annex D.
pub mod code {
    /// Write error: unexpected unsolicited data (RFC 7143 §11.4.7.2).
    pub const UNEXPECTED_UNSOLICITED_DATA: (u8, u8) = (0x0C, 0x0C);
    /// Write error: not enough unsolicited data (RFC 7143 §11.4.7.2).
    pub const NOT_ENOUGH_UNSOLICITED_DATA: (u8, u8) = (0x0C, 0x0D);
    /// An operation is in progress: poll.
    pub const OPERATION_IN_PROGRESS: (u8, u8) = (0x04, 0x07);
    /// Thin provisioning is finding space: poll.
    pub const SPACE_ALLOCATION_IN_PROGRESS: (u8, u8) = (0x04, 0x14);
    /// START STOP UNIT is in progress: poll.
    pub const START_IN_PROGRESS: (u8, u8) = (0x04, 0x1A);
    /// A configuration is in progress: poll.
    pub const CONFIGURATION_IN_PROGRESS: (u8, u8) = (0x04, 0x1D);
    /// COMPARE AND WRITE found other data.
    pub const MISCOMPARE_DURING_VERIFY: (u8, u8) = (0x1D, 0x00);
    /// Becoming ready: poll.
    pub const BECOMING_READY: (u8, u8) = (0x04, 0x01);
    /// ALUA state transition: poll.
    pub const ALUA_TRANSITION: (u8, u8) = (0x04, 0x0A);
    /// This port is in standby: another path.
    pub const ALUA_STANDBY: (u8, u8) = (0x04, 0x0B);
    /// This port is unavailable: another path.
    pub const ALUA_UNAVAILABLE: (u8, u8) = (0x04, 0x0C);
    /// The operation code is not known.
    pub const INVALID_OPERATION_CODE: (u8, u8) = (0x20, 0x00);
    /// The range is not on the medium.
    pub const LBA_OUT_OF_RANGE: (u8, u8) = (0x21, 0x00);
    /// A field of the CDB is not one that this unit takes.
    pub const INVALID_FIELD_IN_CDB: (u8, u8) = (0x24, 0x00);
    /// There is no such logical unit.
    pub const LOGICAL_UNIT_NOT_SUPPORTED: (u8, u8) = (0x25, 0x00);
    /// Thin provisioning: no space left.
    pub const SPACE_ALLOCATION_FAILED: (u8, u8) = (0x27, 0x07);
    /// The capacity is another one.
    pub const CAPACITY_DATA_HAS_CHANGED: (u8, u8) = (0x2A, 0x09);
    /// Protocol service CRC error: the data was mangled on its way.
    pub const PROTOCOL_SERVICE_CRC_ERROR: (u8, u8) = (0x47, 0x05);

    /// ASC of all "power on, reset, or bus device reset occurred".
    pub const ASC_RESET: u8 = 0x29;
    /// ASC of all "medium not present".
    pub const ASC_MEDIUM_NOT_PRESENT: u8 = 0x3A;
    /// ASC of all "write protected" and of thin provisioning's hard threshold.
    pub const ASC_WRITE_PROTECTED: u8 = 0x27;
}

/// Limits the data to what ADDITIONAL SENSE LENGTH covers, when that field is there.
fn cut(data: &[u8]) -> &[u8] {
    let Some(additional) = data.get(7) else {
        return data;
    };
    let told = HEADER_BYTES + usize::from(*additional);
    data.get(..told).unwrap_or(data)
}

/// The descriptors of descriptor-format sense, each with its two header bytes; ends at the first that is not whole.
fn descriptors(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = data.get(HEADER_BYTES..).unwrap_or_default();
    std::iter::from_fn(move || {
        let told = 2 + usize::from(*rest.get(1)?);
        let (descriptor, after) = rest.split_at_checked(told)?;
        rest = after;
        Some(descriptor)
    })
}

/// The value of an information descriptor (type 00h, VALID set).
fn information(descriptor: &[u8]) -> Option<u64> {
    let valid = u8_at(descriptor, 0) == 0x00 && bit_at(descriptor, 2, 7);
    (valid && descriptor.len() >= 12).then(|| u64_at(descriptor, 4))
}

/// The names of the codes that one meets on disks; SPC-4 annex D in our spelling.
fn name_of(asc: u8, ascq: u8) -> Option<&'static str> {
    Some(match (asc, ascq) {
        (0x04, 0x00) => "logical unit not ready, cause not reported",
        (0x04, 0x01) => "logical unit is becoming ready",
        (0x04, 0x02) => "logical unit needs to be started",
        (0x04, 0x03) => "logical unit needs manual intervention",
        (0x04, 0x04) => "a format is in progress",
        (0x04, 0x07) => "an operation is in progress",
        (0x04, 0x0A) => "asymmetric access state is changing",
        (0x04, 0x0B) => "the target port is in standby",
        (0x04, 0x0C) => "the target port is unavailable",
        (0x04, 0x14) => "space allocation is in progress",
        (0x04, 0x1B) => "a sanitize is in progress",
        (0x08, _) => "logical unit communication failure",
        (0x0C, 0x0C) => "unexpected unsolicited data",
        (0x0C, 0x0D) => "not enough unsolicited data",
        (0x0C, _) => "write error",
        (0x11, 0x13) => "a retransmission was refused",
        (0x11, _) => "unrecovered read error",
        (0x1A, _) => "parameter list length error",
        (0x1D, 0x00) => "miscompare during verify",
        (0x20, 0x00) => "invalid command operation code",
        (0x21, 0x00) => "logical block address out of range",
        (0x24, 0x00) => "invalid field in CDB",
        (0x25, 0x00) => "logical unit not supported",
        (0x26, _) => "invalid field in parameter list",
        (0x27, 0x07) => "space allocation failed",
        (0x27, _) => "write protected",
        (0x29, 0x01) => "power on occurred",
        (0x29, 0x07) => "I_T nexus loss occurred",
        (0x29, _) => "power on, reset, or bus device reset occurred",
        (0x2A, 0x01) => "mode parameters changed",
        (0x2A, 0x03) => "reservations were preempted",
        (0x2A, 0x04) => "reservations were released",
        (0x2A, 0x05) => "registrations were preempted",
        (0x2A, 0x06) => "asymmetric access state changed",
        (0x2A, 0x09) => "capacity data has changed",
        (0x2F, _) => "commands cleared by another initiator",
        (0x38, 0x07) => "thin provisioning soft threshold reached",
        (0x3A, _) => "medium not present",
        (0x3F, 0x0E) => "reported LUNs data has changed",
        (0x3F, 0x05) => "the device identifier has changed",
        (0x3F, 0x03) => "INQUIRY data has changed",
        (0x44, _) => "internal target failure",
        (0x47, 0x05) => "protocol service CRC error",
        (0x4B, _) => "data phase error",
        (0x55, _) => "resources of the target are exhausted",
        (0x67, _) => "logical unit configuration failed",
        _ => return None,
    })
}

/// First byte of the sense key specific bytes: they are valid.
const SKSV: u8 = 0x80;
/// Type of the sense key specific descriptor.
const KEY_SPECIFIC: u8 = 0x02;
const FIXED_CURRENT: u8 = 0x70;
const FIXED_DEFERRED: u8 = 0x71;
const DESCRIPTOR_CURRENT: u8 = 0x72;
const DESCRIPTOR_DEFERRED: u8 = 0x73;
/// Both formats have ADDITIONAL SENSE LENGTH in byte 7, and it counts from byte 8.
const HEADER_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What tgtd answers to INQUIRY of a page that it lacks: fixed, 18 bytes.
    const FIXED: [u8; 18] = [
        0x70, 0, 0x05, 0, 0, 0, 0, 0x0A, 0, 0, 0, 0, 0x24, 0x00, 0, 0, 0, 0,
    ];

    /// Descriptor format with an information descriptor: medium error at LBA `1_0000_0002h`.
    const DESCRIPTOR: [u8; 20] = [
        0x72, 0x03, 0x11, 0x04, 0, 0, 0, 12, 0, 0x0A, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 2,
    ];

    #[test]
    fn fixed_format_is_understood() {
        assert_eq!(
            Sense::parse(&FIXED).unwrap(),
            Sense::new(SenseKey::IllegalRequest, 0x24, 0x00)
        );
    }

    #[test]
    fn fixed_information_needs_its_valid_bit() {
        let mut data = FIXED;
        data[3..7].copy_from_slice(&[0, 0, 1, 2]);
        assert_eq!(Sense::parse(&data).unwrap().information, None);
        data[0] = 0xF0;
        assert_eq!(Sense::parse(&data).unwrap().information, Some(0x102));
    }

    #[test]
    fn descriptor_format_is_understood() {
        let sense = Sense::parse(&DESCRIPTOR).unwrap();
        assert_eq!(
            (sense.key, sense.asc, sense.ascq),
            (SenseKey::MediumError, 0x11, 0x04)
        );
        assert_eq!(sense.information, Some(0x1_0000_0002));
        assert!(!sense.deferred);
    }

    #[test]
    fn information_is_found_behind_another_descriptor() {
        let mut data = vec![
            0x72, 0x03, 0x11, 0x00, 0, 0, 0, 20, 0x02, 0x06, 0, 0, 0, 0, 0, 0,
        ];
        data.extend_from_slice(&DESCRIPTOR[8..]);
        assert_eq!(
            Sense::parse(&data).unwrap().information,
            Some(0x1_0000_0002)
        );
    }

    // S8: both formats say the same.
    #[test]
    fn key_specific_bytes_are_read_by_the_sense_key() {
        for (key, bytes, specific) in [
            (
                SenseKey::IllegalRequest,
                [0xCB, 0, 10],
                Some(KeySpecific::Field {
                    in_cdb: true,
                    byte: 10,
                    bit: Some(3),
                }),
            ),
            (
                SenseKey::IllegalRequest,
                [0x80, 1, 0],
                Some(KeySpecific::Field {
                    in_cdb: false,
                    byte: 256,
                    bit: None,
                }),
            ),
            (SenseKey::IllegalRequest, [0x4B, 0, 10], None),
            (
                SenseKey::NotReady,
                [0x80, 0x80, 0],
                Some(KeySpecific::Progress(0x8000)),
            ),
            (
                SenseKey::NoSense,
                [0x80, 0, 1],
                Some(KeySpecific::Progress(1)),
            ),
            (
                SenseKey::MediumError,
                [0x80, 0, 7],
                Some(KeySpecific::Retries(7)),
            ),
            (
                SenseKey::UnitAttention,
                [0x81, 0, 0],
                Some(KeySpecific::AttentionsLost(true)),
            ),
            (
                SenseKey::Miscompare,
                [0x80, 2, 3],
                Some(KeySpecific::Other(0x0080_0203)),
            ),
        ] {
            let mut fixed = FIXED;
            fixed[2] = key.bits();
            fixed[15..18].copy_from_slice(&bytes);
            assert_eq!(Sense::parse(&fixed).unwrap().specific, specific, "{key}");
            let mut descriptor = vec![0x72, key.bits(), 0, 0, 0, 0, 0, 8, 0x02, 6, 0, 0];
            descriptor.extend_from_slice(&bytes);
            descriptor.push(0);
            let sense = Sense::parse(&descriptor).unwrap();
            assert_eq!(sense.specific, specific, "{key}");
            // Cut off within the three bytes: not there.
            assert_eq!(Sense::parse(&fixed[..17]).unwrap().specific, None);
            assert_eq!(Sense::parse(&descriptor[..14]).unwrap().specific, None);
        }
    }

    #[test]
    fn deferred_is_told_apart() {
        for (code, deferred) in [(0x70, false), (0x71, true), (0x72, false), (0x73, true)] {
            assert_eq!(
                Sense::parse(&[code, 3, 3, 0]).unwrap().deferred,
                deferred,
                "{code:x}"
            );
        }
    }

    // S8: short sense data.
    #[test]
    fn short_sense_gives_what_it_holds() {
        assert_eq!(
            Sense::parse(&FIXED[..3]).unwrap(),
            Sense::new(SenseKey::IllegalRequest, 0, 0)
        );
        let thirteen = Sense::parse(&FIXED[..13]).unwrap();
        assert_eq!((thirteen.asc, thirteen.ascq), (0x24, 0));
        assert_eq!(
            Sense::parse(&DESCRIPTOR[..4]).unwrap(),
            Sense::new(SenseKey::MediumError, 0x11, 0x04)
        );
        assert_eq!(Sense::parse(&DESCRIPTOR[..19]).unwrap().information, None);
    }

    // S8: a sense length of zero.
    #[test]
    fn empty_and_foreign_formats_are_no_sense_data() {
        for data in [
            &[][..],
            &[0x70],
            &[0x70, 0],
            &[0x72],
            &[0x7F, 0, 0, 0],
            &[0x00, 1, 2, 3],
        ] {
            assert_eq!(Sense::parse(data), None, "{data:?}");
        }
    }

    #[test]
    fn additional_length_hides_what_it_does_not_cover() {
        let mut data = FIXED;
        data[7] = 4;
        assert_eq!(Sense::parse(&data).unwrap().asc, 0);
    }

    #[test]
    fn keys_survive_their_bits() {
        for bits in 0..16 {
            assert_eq!(SenseKey::from_bits(bits).bits(), bits);
            assert_eq!(SenseKey::from_bits(bits | 0xF0).bits(), bits);
        }
    }

    #[test]
    fn display_names_key_and_code() {
        assert_eq!(
            Sense::new(SenseKey::IllegalRequest, 0x25, 0).to_string(),
            "illegal request: logical unit not supported (5h/25h/00h)"
        );
        assert_eq!(
            Sense::new(SenseKey::VendorSpecific, 0x99, 0x7).to_string(),
            "vendor specific (9h/99h/07h)"
        );
        let deferred = Sense {
            deferred: true,
            ..Sense::new(SenseKey::MediumError, 0x0C, 0x02)
        };
        assert_eq!(
            deferred.to_string(),
            "of an earlier command: medium error: write error (3h/0Ch/02h)"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_endured(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(sense) = Sense::parse(&data) {
                prop_assert!(!sense.to_string().is_empty());
            }
        }

        #[test]
        fn any_bytes_behind_a_known_format_are_endured(
            format in 0x70u8..=0x73,
            data in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut data = data;
            data.insert(0, format);
            let _ = Sense::parse(&data);
        }
    }
}
