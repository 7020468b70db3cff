//! What is written down of a device that stands, so that the next process can serve it: which unit it is, how many
//! lanes it has, how it was attached.
//!
//! A room of its own because it is read as hostile: a file of another version, or one that somebody has edited, must
//! never make a process serve the wrong unit.
//!
//! Invariant: what comes out of `Unit::identity` is whole, or nothing comes out.

use iscsi::scsi::vpd::{Association, Designator, DesignatorKind};
use iscsi::scsi::{BlockLength, ByteCount, Identity};
use serde::{Deserialize, Serialize};

/// A device of the kernel that we serve, or have served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    /// Connections; the kernel keeps their number for the device's life.
    pub(crate) lanes: usize,
    /// What the unit said it is at the first login.
    pub(crate) unit: Unit,
    /// Attached without the right to write.
    pub(crate) read_only: bool,
    /// Where it was first reached, for people.
    pub(crate) portal: String,
    /// What was asked for there, for people.
    pub(crate) target: String,
    /// Cinder's metadata said so when it was attached.
    #[serde(default)]
    pub(crate) created_by_us: bool,
    /// Cinder's metadata said so when it was attached.
    #[serde(default)]
    pub(crate) formatted: bool,
}

/// An identity as a file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unit {
    names: Vec<Name>,
    serial: Option<String>,
    block_bytes: u32,
    size_bytes: u64,
}

/// A designator of the logical unit (SPC-4 7.8.6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Name {
    code_set: u8,
    kind: u8,
    /// In hexadecimal digits.
    identifier: String,
}

impl Unit {
    /// To be written down.
    pub(crate) fn of(identity: &Identity) -> Self {
        let names = identity.designators().iter().map(|name| Name {
            code_set: name.code_set,
            kind: name.kind.0,
            identifier: to_hex(&name.identifier),
        });
        Self {
            names: names.collect(),
            serial: identity.serial().map(str::to_owned),
            block_bytes: identity.block_bytes(),
            size_bytes: identity.size_bytes(),
        }
    }

    /// As it was; `None` if any part of it cannot be.
    pub(crate) fn identity(&self) -> Option<Identity> {
        let mut names = Vec::new();
        for name in &self.names {
            let designator = Designator {
                association: Association::LogicalUnit,
                code_set: name.code_set,
                kind: DesignatorKind(name.kind),
                identifier: from_hex(&name.identifier)?,
            };
            if !designator.is_unit_name() {
                return None;
            }
            names.push(designator);
        }
        let block_length = BlockLength::new(self.block_bytes)?;
        if self.size_bytes == 0 || !self.size_bytes.is_multiple_of(u64::from(self.block_bytes)) {
            return None;
        }
        let size = ByteCount(self.size_bytes);
        Some(Identity::recorded(
            names,
            self.serial.clone(),
            block_length,
            size,
        ))
    }
}

fn to_hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or_default();
    let pairs = bytes
        .iter()
        .map(|byte| [digit(byte >> 4), digit(byte & 0xf)]);
    pairs.flatten().collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| u8::try_from(digit.to_digit(16)?).ok())
        .collect();
    let digits = digits?;
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| high << 4 | low);
    rest.is_empty().then(|| bytes.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let name = |kind, identifier: &[u8]| Designator {
            association: Association::LogicalUnit,
            code_set: 1,
            kind,
            identifier: identifier.to_vec(),
        };
        Identity::recorded(
            vec![
                name(DesignatorKind::NAA, &[0x60, 0x01, 0x40, 0x5f]),
                name(DesignatorKind::T10_VENDOR, b"LIO-ORG disk"),
            ],
            Some("sn-1".to_owned()),
            BlockLength::new(4096).unwrap(),
            ByteCount(1 << 30),
        )
    }

    #[test]
    fn an_identity_survives_the_file() {
        let text = serde_json::to_string(&Unit::of(&identity())).unwrap();
        let unit: Unit = serde_json::from_str(&text).unwrap();
        assert_eq!(unit.identity(), Some(identity()));
    }

    #[test]
    fn what_cannot_be_an_identity_is_none() {
        let good = Unit::of(&identity());
        let mut odd = good.clone();
        odd.names[0].identifier.pop();
        let mut no_hex = good.clone();
        no_hex.names[0].identifier = "zz".to_owned();
        let mut no_name = good.clone();
        no_name.names[0].identifier = String::new();
        let mut other_kind = good.clone();
        other_kind.names[0].kind = DesignatorKind::TARGET_PORT_GROUP.0;
        let mut block = good.clone();
        block.block_bytes = 1000;
        let mut size = good.clone();
        size.size_bytes += 1;
        let mut empty = good.clone();
        empty.size_bytes = 0;
        for unit in [odd, no_hex, no_name, other_kind, block, size, empty] {
            assert_eq!(unit.identity(), None, "{unit:?}");
        }
        assert!(good.identity().is_some());
    }
}
