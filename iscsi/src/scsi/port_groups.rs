//! REPORT TARGET PORT GROUPS: through which ports a logical unit is best reached (ALUA).
//!
//! Source: SPC-4 5.16 (asymmetric access), 6.37 (REPORT TARGET PORT GROUPS). Which group the port belongs to that
//! was asked, page 83h says: `vpd::Designator::target_port_group`.
//!
//! Invariants:
//! 1. A group whose ports are not all there makes the answer invalid: a path is not chosen by half of an answer.

use std::fmt;

use super::Violation;
use super::field::{bit_at, u8_at, u16_at, u32_at};

/// What REPORT TARGET PORT GROUPS says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetPortGroups {
    /// IMPLICIT TRANSITION TIME: the longest that a change of state takes, in seconds; with the extended header
    /// only, and if told.
    pub transition_seconds: Option<u8>,
    /// All groups, in the order of the answer.
    pub groups: Vec<TargetPortGroup>,
}

/// Target ports that share an access state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetPortGroup {
    /// TARGET PORT GROUP.
    pub id: u16,
    /// PREF: the unit would rather be reached through this group.
    pub preferred: bool,
    /// The access state now.
    pub state: AccessState,
    /// STATUS CODE: why it is in that state; 1 by SET TARGET PORT GROUPS, 2 by itself.
    pub status_code: u8,
    /// The states that the group can be in: bit 0 active/optimized, 1 active/non-optimized, 2 standby,
    /// 3 unavailable, 4 logical block dependent, 6 offline, 7 transitioning.
    pub supported: u8,
    /// Relative target port identifiers.
    pub ports: Vec<u16>,
}

/// ASYMMETRIC ACCESS STATE, four bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessState {
    /// 0h: the best there is.
    ActiveOptimized,
    /// 1h: works, slower.
    ActiveNonOptimized,
    /// 2h: takes only a few commands, no I/O.
    Standby,
    /// 3h: takes even fewer.
    Unavailable,
    /// 4h: optimized for some of the blocks.
    LogicalBlockDependent,
    /// Eh: the ports are not there.
    Offline,
    /// Fh: on the way to another state.
    Transitioning,
    /// All others.
    Reserved(u8),
}

impl TargetPortGroups {
    /// Takes the data apart; which of the two headers it has, it says itself (SPC-4 table 300).
    ///
    /// # Errors
    /// `TooShort` if the header is not whole; `LengthBeyondEnd` if a group is not.
    pub fn parse(data: &[u8]) -> Result<Self, Violation> {
        let told = told_bytes(data)?;
        let beyond = Violation::LengthBeyondEnd { what: WHAT };
        let data = data
            .get(..usize::try_from(told).unwrap_or(usize::MAX))
            .ok_or(beyond)?;
        // A unit that does not know the extended header answers with the short one.
        let extended = (u8_at(data, LENGTH_BYTES) >> 4) & 0x07 == FORMAT_EXTENDED;
        let (header, seconds) = if extended {
            (EXTENDED_HEADER_BYTES, u8_at(data, 5))
        } else {
            (LENGTH_BYTES, 0)
        };
        let mut rest = data.get(header..).ok_or(beyond)?;
        let mut groups = Vec::new();
        while !rest.is_empty() {
            let ports = usize::from(u8_at(rest, 7)) * PORT_BYTES;
            let (group, after) = rest.split_at_checked(GROUP_BYTES + ports).ok_or(beyond)?;
            groups.push(TargetPortGroup::of(group));
            rest = after;
        }
        Ok(Self {
            transition_seconds: (seconds != 0).then_some(seconds),
            groups,
        })
    }

    /// The group with this identifier.
    pub fn group(&self, id: u16) -> Option<&TargetPortGroup> {
        self.groups.iter().find(|group| group.id == id)
    }
}

impl TargetPortGroup {
    fn of(descriptor: &[u8]) -> Self {
        let ports = descriptor.get(GROUP_BYTES..).unwrap_or_default();
        Self {
            id: u16_at(descriptor, 2),
            preferred: bit_at(descriptor, 0, 7),
            state: AccessState::from_bits(u8_at(descriptor, 0)),
            status_code: u8_at(descriptor, 5),
            supported: u8_at(descriptor, 1),
            ports: ports
                .chunks_exact(PORT_BYTES)
                .map(|port| u16_at(port, 2))
                .collect(),
        }
    }
}

impl AccessState {
    /// From the lower four bits.
    pub fn from_bits(byte: u8) -> Self {
        match byte & 0x0F {
            0x0 => Self::ActiveOptimized,
            0x1 => Self::ActiveNonOptimized,
            0x2 => Self::Standby,
            0x3 => Self::Unavailable,
            0x4 => Self::LogicalBlockDependent,
            0xE => Self::Offline,
            0xF => Self::Transitioning,
            other => Self::Reserved(other),
        }
    }

    /// May I/O be sent? A state that we do not know is no promise.
    pub fn takes_io(self) -> bool {
        match self {
            Self::ActiveOptimized | Self::ActiveNonOptimized | Self::LogicalBlockDependent => true,
            Self::Standby
            | Self::Unavailable
            | Self::Offline
            | Self::Transitioning
            | Self::Reserved(_) => false,
        }
    }

    /// The better path has the lower rank.
    pub fn rank(self) -> u8 {
        match self {
            Self::ActiveOptimized => 0,
            Self::LogicalBlockDependent => 1,
            Self::ActiveNonOptimized => 2,
            // It will be something else soon.
            Self::Transitioning => 3,
            Self::Standby => 4,
            Self::Unavailable => 5,
            Self::Offline | Self::Reserved(_) => 6,
        }
    }
}

impl fmt::Display for AccessState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ActiveOptimized => "active/optimized",
            Self::ActiveNonOptimized => "active/non-optimized",
            Self::Standby => "standby",
            Self::Unavailable => "unavailable",
            Self::LogicalBlockDependent => "logical block dependent",
            Self::Offline => "offline",
            Self::Transitioning => "transitioning",
            Self::Reserved(other) => return write!(f, "access state {other:X}h"),
        })
    }
}

/// The length of the whole answer, as its header tells it.
///
/// # Errors
/// `TooShort` if not even that came.
pub fn told_bytes(data: &[u8]) -> Result<u64, Violation> {
    if data.len() < LENGTH_BYTES {
        return Err(Violation::TooShort {
            what: WHAT,
            have: data.len(),
            need: LENGTH_BYTES,
        });
    }
    // RETURN DATA LENGTH counts from byte 4.
    Ok(4 + u64::from(u32_at(data, 0)))
}

const WHAT: &str = "the REPORT TARGET PORT GROUPS data";
/// RETURN DATA LENGTH.
const LENGTH_BYTES: usize = 4;
/// The length, the format with the transition time, two reserved bytes.
const EXTENDED_HEADER_BYTES: usize = 8;
/// Bits 6 to 4 of byte 4. The short header has a group there, whose bits are zero.
const FORMAT_EXTENDED: u8 = 1;
const GROUP_BYTES: usize = 8;
const PORT_BYTES: usize = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Two groups, the first optimized and preferred with ports 1 and 2, the other in standby with port 0103h.
    const GROUPS: [u8; 28] = [
        0x80, 0xCF, 0, 1, 0, 2, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, //
        0x02, 0xCF, 0x01, 0x02, 0, 1, 0, 1, 0, 0, 1, 3,
    ];

    fn short() -> Vec<u8> {
        let mut data = vec![0, 0, 0, 28];
        data.extend_from_slice(&GROUPS);
        data
    }

    fn extended() -> Vec<u8> {
        let mut data = vec![0, 0, 0, 32, 0x10, 60, 0, 0];
        data.extend_from_slice(&GROUPS);
        data
    }

    #[test]
    fn both_headers_are_understood() {
        let groups = vec![
            TargetPortGroup {
                id: 1,
                preferred: true,
                state: AccessState::ActiveOptimized,
                status_code: 2,
                supported: 0xCF,
                ports: vec![1, 2],
            },
            TargetPortGroup {
                id: 0x0102,
                preferred: false,
                state: AccessState::Standby,
                status_code: 1,
                supported: 0xCF,
                ports: vec![0x0103],
            },
        ];
        let parsed = TargetPortGroups::parse(&short()).unwrap();
        assert_eq!((parsed.transition_seconds, &parsed.groups), (None, &groups));
        assert_eq!(parsed.group(0x0102), Some(&groups[1]));
        assert_eq!(parsed.group(7), None);
        let parsed = TargetPortGroups::parse(&extended()).unwrap();
        assert_eq!(
            (parsed.transition_seconds, parsed.groups),
            (Some(60), groups)
        );
        // No groups at all, and a transition time that is not told.
        assert_eq!(
            TargetPortGroups::parse(&[0; 4]).unwrap(),
            TargetPortGroups::default()
        );
        assert_eq!(
            TargetPortGroups::parse(&[0, 0, 0, 4, 0x10, 0, 0, 0]).unwrap(),
            TargetPortGroups::default()
        );
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let beyond = Err(Violation::LengthBeyondEnd { what: WHAT });
        for data in [short(), extended()] {
            for length in 4..data.len() {
                assert_eq!(TargetPortGroups::parse(&data[..length]), beyond, "{length}");
            }
        }
        // One port more than there is.
        let mut data = short();
        data[4 + 16 + 7] = 2;
        assert_eq!(TargetPortGroups::parse(&data), beyond);
        assert!(matches!(
            TargetPortGroups::parse(&[0, 0, 0]),
            Err(Violation::TooShort { .. })
        ));
        assert_eq!(told_bytes(&[0xFF; 4]), Ok(0x1_0000_0003));
    }

    // S7: what a port's state means for I/O.
    #[test]
    fn each_state_has_its_meaning() {
        for (bits, name, takes_io) in [
            (0x0, "active/optimized", true),
            (0x1, "active/non-optimized", true),
            (0x2, "standby", false),
            (0x3, "unavailable", false),
            (0x4, "logical block dependent", true),
            (0x5, "access state 5h", false),
            (0xE, "offline", false),
            (0xF, "transitioning", false),
        ] {
            let state = AccessState::from_bits(bits | 0x80);
            assert_eq!(
                (state.to_string().as_str(), state.takes_io()),
                (name, takes_io)
            );
        }
        let ranks =
            [0x0, 0x4, 0x1, 0xF, 0x2, 0x3, 0xE].map(|bits| AccessState::from_bits(bits).rank());
        assert!(ranks.is_sorted_by(|one, next| one < next));
    }

    proptest! {
        #[test]
        fn any_bytes_are_endured(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut data = data;
            let _ = TargetPortGroups::parse(&data);
            // With a length that is right the groups are reached.
            if data.len() >= 4 {
                let length = u32::try_from(data.len() - 4).unwrap();
                data[..4].copy_from_slice(&length.to_be_bytes());
                if let Ok(parsed) = TargetPortGroups::parse(&data) {
                    prop_assert!(parsed.groups.len() <= data.len() / 8);
                }
            }
        }
    }
}
