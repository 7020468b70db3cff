//! What a LUN is, so that it is known again.
//!
//! A LUN number is no identity: a target may map another volume under it while we are away, and writing to that one
//! would destroy somebody's data. Names, serial number, block length and capacity together are the identity.

use std::fmt;

use iscsi::client::LunInfo;
use iscsi::scsi::vpd::Designator;

/// What a LUN is, so that it is known again (VPD 83h/80h, block size, capacity): the identity gate compares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    names: Vec<Designator>,
    serial: Option<String>,
    block_bytes: u32,
    size_bytes: u64,
}

impl Identity {
    pub(super) fn of(info: &LunInfo) -> Self {
        // Ports and groups differ from path to path; the order of the page is nobody's promise.
        let mut names: Vec<Designator> = info
            .designators
            .iter()
            .filter(|name| name.is_unit_name())
            .cloned()
            .collect();
        names.sort();
        names.dedup();
        Self {
            names,
            serial: info.serial.clone(),
            block_bytes: info.capacity.block_length.bytes(),
            size_bytes: info.capacity.bytes().0,
        }
    }

    /// The names of VPD 83h that only this logical unit has, sorted, in their usual spelling.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.names.iter().map(ToString::to_string)
    }

    /// The serial number of VPD 80h.
    pub fn serial(&self) -> Option<&str> {
        self.serial.as_deref()
    }

    /// Bytes a logical block.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Bytes altogether.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Does it tell this logical unit from all others? Without a name and a serial number only its size is known.
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
        write!(
            f,
            "{} bytes in blocks of {}",
            self.size_bytes, self.block_bytes
        )
    }
}

#[cfg(test)]
mod tests {
    use iscsi::scsi::vpd::{Association, DesignatorKind};

    use super::super::limits::tests::info;
    use super::*;

    fn naa(association: Association, last: u8) -> Designator {
        let identifier = vec![0x60, 0, 0, 0, 0, 0, 0, last];
        Designator {
            association,
            code_set: 1,
            kind: DesignatorKind::NAA,
            identifier,
        }
    }

    #[test]
    fn the_path_and_the_order_do_not_matter() {
        let (one, two) = (
            naa(Association::LogicalUnit, 1),
            naa(Association::LogicalUnit, 2),
        );
        let here = LunInfo {
            designators: vec![one.clone(), two.clone(), naa(Association::TargetPort, 7)],
            ..info()
        };
        let there = LunInfo {
            designators: vec![naa(Association::TargetPort, 8), two, one],
            ..info()
        };
        assert_eq!(Identity::of(&here), Identity::of(&there));
    }

    #[test]
    fn another_name_serial_or_size_is_another_unit() {
        let one = LunInfo {
            designators: vec![naa(Association::LogicalUnit, 1)],
            ..info()
        };
        let identity = Identity::of(&one);
        let mut other = one.clone();
        other.designators = vec![naa(Association::LogicalUnit, 2)];
        assert_ne!(Identity::of(&other), identity);
        let mut other = one.clone();
        other.serial = Some("another".to_owned());
        assert_ne!(Identity::of(&other), identity);
        let mut other = one;
        other.capacity.end.0 += 1;
        assert_ne!(Identity::of(&other), identity);
    }

    #[test]
    fn it_prints_as_people_search_for_it() {
        let mut info = info();
        info.designators = vec![naa(Association::LogicalUnit, 1)];
        info.serial = Some("sn-1".to_owned());
        assert_eq!(
            Identity::of(&info).to_string(),
            "naa.6000000000000001, serial sn-1, 1048576 bytes in blocks of 512"
        );
        info.designators.clear();
        info.serial = None;
        assert!(!Identity::of(&info).is_distinct());
    }
}
