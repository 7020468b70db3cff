//! What a logical unit is, so that it is known again.
//!
//! A LUN number is no identity: a target may map another volume under it while we are away, and writing to that one
//! would destroy somebody's data. Names, serial number, block length and capacity together are the identity.
//! A room of its own because two floors stand on it: the gate that a session passes before I/O is replayed, and
//! whoever records what was attached.
//! Source: SPC-4 7.8.5 (80h), 7.8.6 (83h); SBC-4 5.20 (READ CAPACITY(16)).
//!
//! Invariants:
//! 1. What may change between two logins to the same unit is left out: ports, groups, the order of a page.
//! 2. What was recorded must be there again: an answer that is missing is a mismatch and never a pass.

use std::fmt;

use super::vpd::Designator;
use super::{BlockLength, ByteCount, Capacity};

/// What a logical unit is (VPD 83h and 80h, block length, capacity).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    names: Vec<Designator>,
    serial: Option<String>,
    block_length: BlockLength,
    size: ByteCount,
}

impl Identity {
    /// From the answers: all designators of page 83h, the serial number of page 80h, READ CAPACITY(16).
    pub fn new(designators: &[Designator], serial: Option<&str>, capacity: &Capacity) -> Self {
        let mut names: Vec<Designator> = designators
            .iter()
            .filter(|name| name.is_unit_name())
            .cloned()
            .collect();
        names.sort();
        names.dedup();
        Self {
            names,
            serial: serial.map(str::to_owned),
            block_length: capacity.block_length,
            size: capacity.bytes(),
        }
    }

    /// As it was written down.
    pub fn recorded(
        mut names: Vec<Designator>,
        serial: Option<String>,
        block_length: BlockLength,
        size: ByteCount,
    ) -> Self {
        names.retain(Designator::is_unit_name);
        names.sort();
        names.dedup();
        Self {
            names,
            serial,
            block_length,
            size,
        }
    }

    /// Is `seen` the logical unit that was recorded as `self`?
    ///
    /// Names, serial number and block length must be equal. A unit that has grown is the same one (`grown_to` tells
    /// by how much); one that has shrunk is not: what we know to be there is gone.
    ///
    /// # Errors
    /// The first thing that differs.
    pub fn matches(&self, seen: &Self) -> Result<(), Mismatch> {
        // SPC-4 7.8.6: the names come first, for they are what makes a unit that unit.
        if self.names != seen.names {
            return Err(Mismatch::Names {
                was: list(&self.names),
                is: list(&seen.names),
            });
        }
        if self.serial != seen.serial {
            return Err(Mismatch::Serial {
                was: self.serial.clone(),
                is: seen.serial.clone(),
            });
        }
        if self.block_length != seen.block_length {
            return Err(Mismatch::BlockLength {
                was: self.block_length,
                is: seen.block_length,
            });
        }
        if seen.size < self.size {
            return Err(Mismatch::Shrunk {
                was: self.size,
                is: seen.size,
            });
        }
        Ok(())
    }

    /// The size that `seen` has now, if it is larger than the recorded one.
    pub fn grown_to(&self, seen: &Self) -> Option<ByteCount> {
        (seen.size > self.size).then_some(seen.size)
    }

    /// The names of VPD 83h that only this logical unit has, sorted, in their usual spelling.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.names.iter().map(ToString::to_string)
    }

    /// The same as values, to be written down.
    pub fn designators(&self) -> &[Designator] {
        &self.names
    }

    /// The serial number of VPD 80h.
    pub fn serial(&self) -> Option<&str> {
        self.serial.as_deref()
    }

    /// Bytes a logical block.
    pub fn block_bytes(&self) -> u32 {
        self.block_length.bytes()
    }

    /// Bytes altogether.
    pub fn size_bytes(&self) -> u64 {
        self.size.0
    }

    /// Does it tell this logical unit from all others? Without a name and a serial number only its size is known,
    /// and a match says little.
    pub fn is_distinct(&self) -> bool {
        !self.names.is_empty() || self.serial.is_some()
    }
}

/// `naa.6001405..., serial 0001, 1073741824 bytes in blocks of 512`.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.names {
            write!(f, "{name}, ")?;
        }
        if let Some(serial) = &self.serial {
            write!(f, "serial {serial}, ")?;
        }
        let (size, block) = (self.size.0, self.block_bytes());
        write!(f, "{size} bytes in blocks of {block}")
    }
}

/// In what a logical unit differs from the one that was recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Page 83h has other names of the unit, fewer or more.
    #[error("the names were {was}, are {is}")]
    Names {
        /// The recorded ones, in one line.
        was: String,
        /// Those that are there now.
        is: String,
    },
    /// Page 80h has another serial number.
    #[error("serial was {}, is {}", or_missing(.was.as_ref()), or_missing(.is.as_ref()))]
    Serial {
        /// The recorded one.
        was: Option<String>,
        /// The one that is there now.
        is: Option<String>,
    },
    /// The logical blocks have another length.
    #[error("the block length was {was}, is {is}")]
    BlockLength {
        /// The recorded one.
        was: BlockLength,
        /// The one that is there now.
        is: BlockLength,
    },
    /// There are fewer bytes than there were.
    #[error("the capacity was {} bytes, is {} bytes", .was.0, .is.0)]
    Shrunk {
        /// The recorded size.
        was: ByteCount,
        /// The size that is there now.
        is: ByteCount,
    },
}

fn list(names: &[Designator]) -> String {
    if names.is_empty() {
        return MISSING.to_owned();
    }
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    names.join(" and ")
}

fn or_missing(serial: Option<&String>) -> &str {
    serial.map_or(MISSING, String::as_str)
}

const MISSING: &str = "missing";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::Lba;
    use crate::scsi::vpd::{Association, DesignatorKind};

    fn naa(association: Association, last: u8) -> Designator {
        Designator {
            association,
            code_set: 1,
            kind: DesignatorKind::NAA,
            identifier: vec![0x60, 0, 0, 0, 0, 0, 0, last],
        }
    }

    fn unit(last: u8) -> Designator {
        naa(Association::LogicalUnit, last)
    }

    fn capacity(blocks: u64, block_bytes: u32) -> Capacity {
        Capacity {
            end: Lba(blocks),
            block_length: BlockLength::new(block_bytes).unwrap(),
            physical_exponent: 0,
            lowest_aligned: Lba(0),
            protection_type: None,
            provisioning: false,
            unmapped_reads_zero: false,
        }
    }

    fn identity(names: &[Designator], serial: Option<&str>) -> Identity {
        Identity::new(names, serial, &capacity(2048, 512))
    }

    #[test]
    fn the_path_and_the_order_do_not_matter() {
        let relative_port = Designator {
            kind: DesignatorKind::RELATIVE_TARGET_PORT,
            ..naa(Association::TargetPort, 1)
        };
        let here = identity(
            &[unit(1), unit(2), naa(Association::TargetPort, 7)],
            Some("s"),
        );
        let there = identity(&[relative_port, unit(2), unit(1), unit(2)], Some("s"));
        assert_eq!(here.matches(&there), Ok(()));
        assert_eq!(there.matches(&here), Ok(()));
    }

    #[test]
    fn what_differs_is_said_in_one_line() {
        let was = identity(&[unit(1)], Some("X"));
        for (is, line) in [
            (
                identity(&[unit(2)], Some("X")),
                "the names were naa.6000000000000001, are naa.6000000000000002",
            ),
            (
                identity(&[unit(1), unit(2)], Some("X")),
                "the names were naa.6000000000000001, are naa.6000000000000001 and naa.6000000000000002",
            ),
            (
                identity(&[], Some("X")),
                "the names were naa.6000000000000001, are missing",
            ),
            (identity(&[unit(1)], Some("Y")), "serial was X, is Y"),
            (identity(&[unit(1)], None), "serial was X, is missing"),
            (
                Identity::new(&[unit(1)], Some("X"), &capacity(2048, 4096)),
                "the block length was 512 bytes, is 4096 bytes",
            ),
            (
                Identity::new(&[unit(1)], Some("X"), &capacity(2047, 512)),
                "the capacity was 1048576 bytes, is 1048064 bytes",
            ),
        ] {
            assert_eq!(was.matches(&is).unwrap_err().to_string(), line);
        }
        // A name where none was is as suspicious as the other way round.
        let nameless = identity(&[], None);
        assert_eq!(
            nameless.matches(&was).unwrap_err().to_string(),
            "the names were missing, are naa.6000000000000001"
        );
    }

    #[test]
    fn a_unit_that_has_grown_is_the_same_one() {
        let was = identity(&[unit(1)], Some("X"));
        let is = Identity::new(&[unit(1)], Some("X"), &capacity(4096, 512));
        assert_eq!(was.matches(&is), Ok(()));
        assert_eq!(was.grown_to(&is), Some(ByteCount(2 << 20)));
        assert_eq!(was.grown_to(&was), None);
        assert!(is.matches(&was).is_err());
    }

    #[test]
    fn it_prints_as_people_search_for_it() {
        assert_eq!(
            identity(&[unit(1)], Some("sn-1")).to_string(),
            "naa.6000000000000001, serial sn-1, 1048576 bytes in blocks of 512"
        );
        assert!(identity(&[unit(1)], None).is_distinct());
        assert!(identity(&[], Some("sn-1")).is_distinct());
        let blank = identity(&[naa(Association::TargetPort, 1)], None);
        assert!(!blank.is_distinct());
        assert_eq!(blank.to_string(), "1048576 bytes in blocks of 512");
    }
}
