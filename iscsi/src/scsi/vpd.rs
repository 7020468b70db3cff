//! Vital product data: which pages there are, who the logical unit is, what it can do and how much at once.
//!
//! Source: SPC-4 7.8 (00h Supported VPD Pages, 80h Unit Serial Number, 83h Device Identification),
//! SBC-4 6.6 (B0h Block Limits, B1h Block Device Characteristics, B2h Logical Block Provisioning).
//!
//! Invariants:
//! 1. A page is taken only if its page code is the one that was asked for.
//! 2. A zero that means "not reported" comes out as `None`.
//! 3. A designator that is not whole makes the page invalid: identity is not guessed from a part.

use std::fmt;

use nom::Parser as _;
use nom::bytes::complete::take;
use nom::combinator::{all_consuming, map};
use nom::multi::{length_data, many0};
use nom::number::complete::u8 as byte;

use super::Violation;
use super::field::{bit_at, u8_at, u16_at, u32_at, u64_at};
use super::inquiry::printable;

/// Page code: Supported VPD Pages.
pub const SUPPORTED_PAGES: u8 = 0x00;
/// Page code: Unit Serial Number.
pub const UNIT_SERIAL_NUMBER: u8 = 0x80;
/// Page code: Device Identification.
pub const DEVICE_IDENTIFICATION: u8 = 0x83;
/// Page code: Block Limits.
pub const BLOCK_LIMITS: u8 = 0xB0;
/// Page code: Block Device Characteristics.
pub const BLOCK_DEVICE_CHARACTERISTICS: u8 = 0xB1;
/// Page code: Logical Block Provisioning.
pub const LOGICAL_BLOCK_PROVISIONING: u8 = 0xB2;

/// Bytes before the content of every page.
pub const HEADER_BYTES: u16 = 4;
/// What a page is first asked for with: old units take one byte of allocation length, and all pages that we read fit
/// in, but for long lists of designators.
pub const PAGE_BYTES_FIRST: u16 = 255;
/// The most that a page is asked for with: a page 83h longer than that is not one that an array sends.
pub const PAGE_BYTES_MAX: u16 = 8192;

/// The length of a whole page, header included, as its header tells it; at least four bytes are needed.
///
/// # Errors
/// `TooShort`; `OtherPage` if it is not page `code`.
pub fn told_bytes(data: &[u8], code: u8) -> Result<usize, Violation> {
    let header = usize::from(HEADER_BYTES);
    if data.len() < header {
        return Err(Violation::TooShort {
            what: "a VPD page",
            have: data.len(),
            need: header,
        });
    }
    let answered = u8_at(data, 1);
    if answered != code {
        return Err(Violation::OtherPage {
            asked: code,
            answered,
        });
    }
    Ok(header + usize::from(u16_at(data, 2)))
}

/// The allocation length to ask for the page again with, if it is longer than the `asked` bytes; `None` if what came
/// is to be taken. A page that grows at every question is taken at the third.
///
/// # Errors
/// As for `told_bytes`.
pub fn ask_again(data: &[u8], code: u8, asked: u16) -> Result<Option<u16>, Violation> {
    let told = told_bytes(data, code)?;
    if told <= usize::from(asked) || asked >= PAGE_BYTES_MAX {
        return Ok(None);
    }
    let told = u16::try_from(told).unwrap_or(u16::MAX).min(PAGE_BYTES_MAX);
    Ok(Some(if asked <= PAGE_BYTES_FIRST {
        told
    } else {
        PAGE_BYTES_MAX
    }))
}

/// What an INQUIRY of the page is called in errors.
pub fn question_name(code: u8) -> &'static str {
    match code {
        SUPPORTED_PAGES => "INQUIRY of VPD page 00h",
        UNIT_SERIAL_NUMBER => "INQUIRY of VPD page 80h",
        DEVICE_IDENTIFICATION => "INQUIRY of VPD page 83h",
        BLOCK_LIMITS => "INQUIRY of VPD page B0h",
        BLOCK_DEVICE_CHARACTERISTICS => "INQUIRY of VPD page B1h",
        LOGICAL_BLOCK_PROVISIONING => "INQUIRY of VPD page B2h",
        _ => "INQUIRY of a VPD page",
    }
}

/// Page 00h: the page codes that the logical unit has.
///
/// # Errors
/// As for `told_bytes`.
pub fn parse_supported_pages(data: &[u8]) -> Result<Vec<u8>, Violation> {
    content(data, SUPPORTED_PAGES).map(<[u8]>::to_vec)
}

/// Page 80h: the serial number, printable, without padding; `None` if it is blank.
///
/// # Errors
/// As for `told_bytes`.
pub fn parse_serial(data: &[u8]) -> Result<Option<String>, Violation> {
    let serial = printable(content(data, UNIT_SERIAL_NUMBER)?);
    Ok((!serial.is_empty()).then_some(serial))
}

/// Page 83h: all designators, in the order of the page.
///
/// # Errors
/// As for `told_bytes`; `LengthBeyondEnd` if a designator is not whole.
pub fn parse_designators(data: &[u8]) -> Result<Vec<Designator>, Violation> {
    const WHAT: &str = "VPD page 83h";
    let beyond = Violation::LengthBeyondEnd { what: WHAT };
    if data.len() < told_bytes(data, DEVICE_IDENTIFICATION)? {
        return Err(beyond);
    }
    let content = content(data, DEVICE_IDENTIFICATION)?;
    match all_consuming(many0(designator)).parse(content) {
        Ok((_, designators)) => Ok(designators),
        Err(_) => Err(beyond),
    }
}

/// One designation descriptor of page 83h.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Designator {
    /// Whose name it is.
    pub association: Association,
    /// CODE SET: 1h binary, 2h ASCII, 3h UTF-8.
    pub code_set: u8,
    /// DESIGNATOR TYPE.
    pub kind: DesignatorKind,
    /// The name itself.
    pub identifier: Vec<u8>,
}

/// ASSOCIATION, two bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Association {
    /// The logical unit.
    LogicalUnit,
    /// The target port that was asked: differs from path to path.
    TargetPort,
    /// The target device.
    TargetDevice,
    /// Not in use.
    Reserved,
}

/// DESIGNATOR TYPE, four bits; an open registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DesignatorKind(pub u8);

impl Designator {
    /// Is it a name of the logical unit that no other has?
    ///
    /// Types that only number ports, groups or the vendor's own things are no such names.
    pub fn is_unit_name(&self) -> bool {
        self.association == Association::LogicalUnit
            && matches!(
                self.kind,
                DesignatorKind::T10_VENDOR
                    | DesignatorKind::EUI_64
                    | DesignatorKind::NAA
                    | DesignatorKind::SCSI_NAME
                    | DesignatorKind::UUID
            )
            && !self.identifier.is_empty()
    }

    /// The target port group of the port that was asked: the key into REPORT TARGET PORT GROUPS.
    pub fn target_port_group(&self) -> Option<u16> {
        self.port_number(DesignatorKind::TARGET_PORT_GROUP)
    }

    /// Which port of the target it is that was asked.
    pub fn relative_target_port(&self) -> Option<u16> {
        self.port_number(DesignatorKind::RELATIVE_TARGET_PORT)
    }

    /// SPC-4 7.8.6.7, 7.8.6.8: two reserved bytes and the number.
    fn port_number(&self, kind: DesignatorKind) -> Option<u16> {
        let [_, _, high, low] = *<&[u8; 4]>::try_from(&self.identifier[..]).ok()?;
        let is_port = self.kind == kind && self.association == Association::TargetPort;
        is_port.then(|| u16::from_be_bytes([high, low]))
    }

    fn is_text(&self) -> bool {
        matches!(self.code_set, CODE_SET_ASCII | CODE_SET_UTF_8)
    }
}

/// `naa.6000...`, `eui.0011...`, `t10.IET 00010001`, a SCSI name as it is; others `type-N.hex`.
impl fmt::Display for Designator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            DesignatorKind::NAA => f.write_str("naa.")?,
            DesignatorKind::EUI_64 => f.write_str("eui.")?,
            DesignatorKind::T10_VENDOR => f.write_str("t10.")?,
            DesignatorKind::UUID => f.write_str("uuid.")?,
            DesignatorKind::SCSI_NAME => {}
            DesignatorKind(other) => write!(f, "type-{other}.")?,
        }
        if self.is_text() {
            return f.write_str(&printable(&self.identifier));
        }
        self.identifier
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl DesignatorKind {
    /// T10 vendor ID based.
    pub const T10_VENDOR: Self = Self(0x1);
    /// EUI-64 based.
    pub const EUI_64: Self = Self(0x2);
    /// NAA.
    pub const NAA: Self = Self(0x3);
    /// Relative target port identifier: which port of the target it is that was asked.
    pub const RELATIVE_TARGET_PORT: Self = Self(0x4);
    /// Target port group: the key into REPORT TARGET PORT GROUPS.
    pub const TARGET_PORT_GROUP: Self = Self(0x5);
    /// SCSI name string.
    pub const SCSI_NAME: Self = Self(0x8);
    /// UUID.
    pub const UUID: Self = Self(0xA);
}

/// Page B0h: how much one command may do. `None`: not reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockLimits {
    /// WSNZ: a WRITE SAME of zero blocks is refused.
    pub write_same_non_zero: bool,
    /// MAXIMUM COMPARE AND WRITE LENGTH, blocks; `None`: it is not implemented.
    pub compare_and_write_max: Option<u8>,
    /// OPTIMAL TRANSFER LENGTH GRANULARITY, blocks.
    pub optimal_granularity: Option<u32>,
    /// MAXIMUM TRANSFER LENGTH, blocks.
    pub transfer_max: Option<u32>,
    /// OPTIMAL TRANSFER LENGTH, blocks: a hint and never a limit.
    pub optimal_transfer: Option<u32>,
    /// MAXIMUM UNMAP LBA COUNT, blocks a command; `None`: UNMAP is not implemented.
    pub unmap_blocks_max: Option<u32>,
    /// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT; `None`: UNMAP is not implemented.
    pub unmap_descriptors_max: Option<u32>,
    /// OPTIMAL UNMAP GRANULARITY, blocks.
    pub unmap_granularity: Option<u32>,
    /// UNMAP GRANULARITY ALIGNMENT, if UGAVALID.
    pub unmap_alignment: Option<u32>,
    /// MAXIMUM WRITE SAME LENGTH, blocks.
    pub write_same_max: Option<u64>,
}

impl BlockLimits {
    /// Takes page B0h apart; the short page of SBC-2 leaves the rest unreported.
    ///
    /// # Errors
    /// As for `told_bytes`.
    pub fn parse(data: &[u8]) -> Result<Self, Violation> {
        let page = whole(data, BLOCK_LIMITS)?;
        let alignment = u32_at(page, 32);
        Ok(Self {
            write_same_non_zero: bit_at(page, 4, 0),
            compare_and_write_max: Some(u8_at(page, 5)).filter(|blocks| *blocks != 0),
            optimal_granularity: reported(u32::from(u16_at(page, 6))),
            transfer_max: reported(u32_at(page, 8)),
            optimal_transfer: reported(u32_at(page, 12)),
            unmap_blocks_max: reported(u32_at(page, 20)),
            unmap_descriptors_max: reported(u32_at(page, 24)),
            unmap_granularity: reported(u32_at(page, 28)),
            unmap_alignment: (alignment & UGAVALID != 0).then_some(alignment & !UGAVALID),
            write_same_max: Some(u64_at(page, 36)).filter(|blocks| *blocks != 0),
        })
    }
}

/// Page B1h: what kind of medium it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCharacteristics {
    /// MEDIUM ROTATION RATE: 0 not reported, 1 does not rotate, else rounds a minute.
    pub rotation_rate: u16,
}

impl BlockCharacteristics {
    /// Takes page B1h apart.
    ///
    /// # Errors
    /// As for `told_bytes`.
    pub fn parse(data: &[u8]) -> Result<Self, Violation> {
        let page = whole(data, BLOCK_DEVICE_CHARACTERISTICS)?;
        Ok(Self {
            rotation_rate: u16_at(page, 4),
        })
    }

    /// Does it turn? Rates up to 0400h are reserved and say nothing.
    pub fn is_rotational(&self) -> bool {
        self.rotation_rate > ROTATION_RESERVED_LAST
    }
}

/// Page B2h: how blocks are allocated and given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Provisioning {
    /// LBPU: UNMAP works.
    pub unmap: bool,
    /// LBPWS: WRITE SAME(16) with UNMAP works.
    pub write_same_unmap: bool,
    /// LBPRZ: an unmapped block reads as zeroes (001b; other patterns are not zeroes).
    pub unmapped_reads_zero: bool,
    /// `ANC_SUP`: blocks can be anchored.
    pub anchor: bool,
    /// PROVISIONING TYPE: 1 resource, 2 thin.
    pub kind: u8,
}

impl Provisioning {
    /// Takes page B2h apart.
    ///
    /// # Errors
    /// As for `told_bytes`.
    pub fn parse(data: &[u8]) -> Result<Self, Violation> {
        let page = whole(data, LOGICAL_BLOCK_PROVISIONING)?;
        Ok(Self {
            unmap: bit_at(page, 5, 7),
            write_same_unmap: bit_at(page, 5, 6),
            // SBC-4 6.6.6: three bits; xx1b means zeroes, 010b the provisioning initialization pattern.
            unmapped_reads_zero: bit_at(page, 5, 2),
            anchor: bit_at(page, 5, 1),
            kind: u8_at(page, 6) & 0x07,
        })
    }
}

/// The page with its header, cut at the length that it tells.
fn whole(data: &[u8], code: u8) -> Result<&[u8], Violation> {
    let told = told_bytes(data, code)?;
    Ok(data.get(..told).unwrap_or(data))
}

/// The page without its header.
fn content(data: &[u8], code: u8) -> Result<&[u8], Violation> {
    Ok(whole(data, code)?
        .get(usize::from(HEADER_BYTES)..)
        .unwrap_or_default())
}

/// SPC-4 7.8.6.1: protocol and code set, association and type, reserved, length, name.
fn designator(input: &[u8]) -> nom::IResult<&[u8], Designator> {
    let header = (byte, byte, take(1_usize));
    map(
        (header, length_data(byte)),
        |((codes, flags, _), identifier): (_, &[u8])| Designator {
            association: match (flags >> 4) & 0x03 {
                0 => Association::LogicalUnit,
                1 => Association::TargetPort,
                2 => Association::TargetDevice,
                _ => Association::Reserved,
            },
            code_set: codes & 0x0F,
            kind: DesignatorKind(flags & 0x0F),
            identifier: identifier.to_vec(),
        },
    )
    .parse(input)
}

/// Zero says "not reported" in page B0h.
fn reported(value: u32) -> Option<u32> {
    (value != 0).then_some(value)
}

const CODE_SET_ASCII: u8 = 0x2;
const CODE_SET_UTF_8: u8 = 0x3;
/// Upper bit of UNMAP GRANULARITY ALIGNMENT.
const UGAVALID: u32 = 1 << 31;
/// Rates 0002h to 0400h are reserved.
const ROTATION_RESERVED_LAST: u16 = 0x0400;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(code: u8, content: &[u8]) -> Vec<u8> {
        let mut page = vec![0, code];
        page.extend_from_slice(&u16::try_from(content.len()).unwrap().to_be_bytes());
        page.extend_from_slice(content);
        page
    }

    /// Page 83h as tgtd sends it: T10 vendor id, NAA 3, and the relative port that we add.
    fn designation() -> Vec<u8> {
        let mut content = vec![0x02, 0x01, 0, 12];
        content.extend_from_slice(b"IET     0001");
        content.extend_from_slice(&[0x01, 0x03, 0, 8, 0x30, 0, 0, 0, 0x01, 0, 0, 0x01]);
        content.extend_from_slice(&[0x51, 0x94, 0, 4, 0, 0, 0, 1]);
        page(0x83, &content)
    }

    #[test]
    fn page_codes_are_those_of_the_standard() {
        assert_eq!(
            [
                SUPPORTED_PAGES,
                UNIT_SERIAL_NUMBER,
                DEVICE_IDENTIFICATION,
                BLOCK_LIMITS,
                BLOCK_DEVICE_CHARACTERISTICS,
                LOGICAL_BLOCK_PROVISIONING
            ],
            [0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2]
        );
    }

    #[test]
    fn supported_pages_are_listed() {
        let data = page(0x00, &[0x00, 0x80, 0x83, 0xB0, 0xB2]);
        assert_eq!(
            parse_supported_pages(&data).unwrap(),
            [0x00, 0x80, 0x83, 0xB0, 0xB2]
        );
    }

    #[test]
    fn serial_loses_its_padding() {
        assert_eq!(
            parse_serial(&page(0x80, b"    beaf11  "))
                .unwrap()
                .as_deref(),
            Some("beaf11")
        );
        assert_eq!(parse_serial(&page(0x80, b"        ")).unwrap(), None);
        assert_eq!(parse_serial(&page(0x80, b"\0\0\0")).unwrap(), None);
    }

    #[test]
    fn designators_are_taken_apart_and_named() {
        let designators = parse_designators(&designation()).unwrap();
        let names: Vec<String> = designators.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "t10.IET     0001",
                "naa.3000000001000001",
                "type-4.00000001"
            ]
        );
        let unit: Vec<bool> = designators.iter().map(Designator::is_unit_name).collect();
        assert_eq!(unit, [true, true, false]);
        assert_eq!(designators[2].association, Association::TargetPort);
    }

    #[test]
    fn ports_and_groups_are_numbers_of_the_port_that_was_asked() {
        let designators = parse_designators(&page(
            0x83,
            &[
                0x51, 0x94, 0, 4, 0, 0, 0x01, 0x02, // relative target port
                0x51, 0x95, 0, 4, 0xFF, 0xFF, 0,
                7, // target port group; reserved bytes are ignored
                0x51, 0x95, 0, 3, 0, 0, 9, // too short to be one
                0x51, 0x85, 0, 4, 0, 0, 0, 9, // of the logical unit, which has none
            ],
        ))
        .unwrap();
        let ports: Vec<_> = designators
            .iter()
            .map(|name| (name.relative_target_port(), name.target_port_group()))
            .collect();
        assert_eq!(
            ports,
            [
                (Some(0x0102), None),
                (None, Some(7)),
                (None, None),
                (None, None)
            ]
        );
    }

    #[test]
    fn a_designator_that_is_not_whole_makes_the_page_invalid() {
        let beyond = Err(Violation::LengthBeyondEnd {
            what: "VPD page 83h",
        });
        let mut data = designation();
        data[4 + 3] = 200;
        assert_eq!(parse_designators(&data), beyond);
        // Cut off by the allocation length: the page tells more than came.
        let data = designation();
        assert_eq!(parse_designators(&data[..data.len() - 8]), beyond);
        // One stray byte behind the last.
        let mut data = designation();
        data.push(0x01);
        data[3] += 1;
        assert_eq!(parse_designators(&data), beyond);
    }

    #[test]
    fn a_page_is_asked_for_three_times_at_most() {
        let told = |bytes: u16| [0, 0x83, bytes.to_be_bytes()[0], bytes.to_be_bytes()[1]];
        assert_eq!(ask_again(&told(251), 0x83, 255), Ok(None));
        assert_eq!(ask_again(&told(252), 0x83, 255), Ok(Some(256)));
        assert_eq!(ask_again(&told(0xFFFF), 0x83, 255), Ok(Some(8192)));
        assert_eq!(ask_again(&told(253), 0x83, 256), Ok(Some(8192)));
        assert_eq!(ask_again(&told(0xFFFF), 0x83, 8192), Ok(None));
        assert!(ask_again(&told(252), 0x80, 255).is_err());
    }

    #[test]
    fn another_page_than_asked_is_refused() {
        assert_eq!(
            parse_serial(&page(0x83, b"x")),
            Err(Violation::OtherPage {
                asked: 0x80,
                answered: 0x83
            })
        );
        assert!(matches!(
            BlockLimits::parse(&[0, 0xB0, 0]),
            Err(Violation::TooShort { .. })
        ));
    }

    /// Page B0h with each field at its place, after SBC-4 table 287.
    #[test]
    fn block_limits_are_read_from_their_places() {
        let mut data = page(0xB0, &[0; 60]);
        data[4] = 0x01;
        data[5] = 0x20;
        data[6..8].copy_from_slice(&[0, 8]);
        data[8..12].copy_from_slice(&[0, 1, 0, 0]);
        data[12..16].copy_from_slice(&[0, 0, 0x40, 0]);
        data[20..24].copy_from_slice(&[0, 2, 0, 0]);
        data[24..28].copy_from_slice(&[0, 0, 0, 4]);
        data[28..32].copy_from_slice(&[0, 0, 0, 16]);
        data[32..36].copy_from_slice(&[0x80, 0, 0, 3]);
        data[36..44].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(
            BlockLimits::parse(&data).unwrap(),
            BlockLimits {
                write_same_non_zero: true,
                compare_and_write_max: Some(32),
                optimal_granularity: Some(8),
                transfer_max: Some(0x1_0000),
                optimal_transfer: Some(0x4000),
                unmap_blocks_max: Some(0x2_0000),
                unmap_descriptors_max: Some(4),
                unmap_granularity: Some(16),
                unmap_alignment: Some(3),
                write_same_max: Some(1 << 32),
            }
        );
    }

    #[test]
    fn the_short_page_of_sbc_2_reports_no_more() {
        let mut data = page(0xB0, &[0; 12]);
        data[8..12].copy_from_slice(&[0, 0, 1, 0]);
        assert_eq!(
            BlockLimits::parse(&data).unwrap(),
            BlockLimits {
                transfer_max: Some(256),
                ..BlockLimits::default()
            }
        );
    }

    #[test]
    fn alignment_without_its_valid_bit_is_not_reported() {
        let mut data = page(0xB0, &[0; 60]);
        data[35] = 7;
        assert_eq!(BlockLimits::parse(&data).unwrap().unmap_alignment, None);
    }

    #[test]
    fn only_real_rates_rotate() {
        for (rate, rotational) in [
            (0u16, false),
            (1, false),
            (0x0400, false),
            (0x0401, true),
            (7200, true),
        ] {
            let data = page(0xB1, &rate.to_be_bytes());
            let characteristics = BlockCharacteristics::parse(&data).unwrap();
            assert_eq!(characteristics.is_rotational(), rotational, "{rate}");
        }
    }

    #[test]
    fn provisioning_bits_are_read_from_their_places() {
        let data = page(0xB2, &[0, 0b1100_0110, 0x02, 0]);
        assert_eq!(
            Provisioning::parse(&data).unwrap(),
            Provisioning {
                unmap: true,
                write_same_unmap: true,
                unmapped_reads_zero: true,
                anchor: true,
                kind: 2
            }
        );
        // LBPRZ 010b: a pattern that need not be zero.
        let data = page(0xB2, &[0, 0b1000_1000, 0x01, 0]);
        assert!(!Provisioning::parse(&data).unwrap().unmapped_reads_zero);
    }

    proptest! {
        #[test]
        fn any_bytes_are_endured(
            code in proptest::sample::select(vec![0x00u8, 0x80, 0x83, 0xB0, 0xB1, 0xB2]),
            data in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut data = data;
            if let Some(answered) = data.get_mut(1) {
                *answered = code;
            }
            let _ = told_bytes(&data, code);
            let _ = parse_supported_pages(&data);
            let _ = parse_serial(&data);
            if let Ok(designators) = parse_designators(&data) {
                for designator in designators {
                    prop_assert!(designator.to_string().is_ascii());
                }
            }
            let _ = BlockLimits::parse(&data);
            let _ = BlockCharacteristics::parse(&data);
            let _ = Provisioning::parse(&data);
        }
    }
}
