//! Portals, target names and LUNs of a `connection_info`: the ways to one logical unit.
//!
//! Source: `cinder/volume/targets/iscsi.py`; os-brick, `initiator/connectors/iscsi.py` (what is repeated when a list is
//! missing) and `initiator/linuxscsi.py` (`addressing_mode`).
//!
//! Invariants:
//! 1. Lists that are there are of one length: which LUN belongs to which portal is never guessed.
//! 2. A LUN goes out in the form that the driver means, or not at all.
//!
//! A further path that cannot be read is left out with a warning, as the volume can be used without it.

use iscsi::io::Path;
use iscsi::proto::{IscsiName, Portal};
use iscsi::scsi::LunAddress;
use serde::Deserialize;
use serde_json::Value;

use crate::cinder::error::Error;

/// The fields read here. Numbers may come as text, by driver.
#[derive(Deserialize)]
pub(super) struct Wire {
    target_portal: Option<String>,
    target_iqn: Option<String>,
    target_lun: Option<Value>,
    target_portals: Option<Vec<String>>,
    target_iqns: Option<Vec<String>>,
    target_luns: Option<Vec<Value>>,
    addressing_mode: Option<String>,
}

/// Arrays have four to sixteen portals; each is one more to try when the volume is away.
const PATHS_MAX: usize = 16;

/// How the driver means its LUNs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Addressing {
    /// The number as it stands: what `SAM` and `transparent` say, and what is meant where nothing is said.
    Raw,
    /// Peripheral below 256, flat from there on.
    Sam2,
    /// Flat.
    Sam3Flat,
}

impl Wire {
    /// The first path, and the further ones without it.
    pub(super) fn read(self) -> Result<(Path, Vec<Path>), Error> {
        let addressing = Addressing::parse(self.addressing_mode.as_deref())?;
        let lists = Lists {
            portals: self.target_portals.unwrap_or_default(),
            names: self.target_iqns.unwrap_or_default(),
            luns: self.target_luns.unwrap_or_default(),
        };
        lists.check()?;
        let missing = |what: &str| Error::ConnectionInfo(format!("it has no {what}"));
        let portal = self
            .target_portal
            .as_ref()
            .or_else(|| lists.portals.first());
        let name = self.target_iqn.as_ref().or_else(|| lists.names.first());
        let lun = self.target_lun.as_ref().or_else(|| lists.luns.first());
        let portal = portal.ok_or_else(|| missing("target_portal"))?;
        let name = name.ok_or_else(|| missing("target_iqn"))?;
        let lun = lun.ok_or_else(|| missing("target_lun"))?;
        let first = Path {
            portal: read_portal(portal).ok_or_else(|| {
                Error::ConnectionInfo("target_portal is not host:port".to_owned())
            })?,
            target_name: read_name(name).ok_or_else(|| {
                Error::ConnectionInfo("target_iqn is not an iSCSI name".to_owned())
            })?,
            lun: addressing.address(lun)?,
        };
        let more = lists.paths(name, lun, addressing);
        let more = more.into_iter().filter(|path| *path != first).collect();
        Ok((first, more))
    }
}

/// The parallel lists; each may be missing.
struct Lists {
    portals: Vec<String>,
    names: Vec<String>,
    luns: Vec<Value>,
}

impl Lists {
    fn check(&self) -> Result<(), Error> {
        let lengths = [self.portals.len(), self.names.len(), self.luns.len()];
        let mut there = lengths.into_iter().filter(|length| *length > 0);
        let first = there.next();
        if there.all(|length| Some(length) == first) {
            return Ok(());
        }
        let [portals, names, luns] = lengths;
        Err(Error::ConnectionInfo(format!(
            "its lists do not belong together: target_portals has {portals}, target_iqns {names}, target_luns {luns}"
        )))
    }

    /// All of them, each once; a name or a number that has no list is that of the first path.
    fn paths(&self, name: &str, lun: &Value, addressing: Addressing) -> Vec<Path> {
        let paths = self.portals.iter().enumerate().map(|(at, portal)| {
            let name = self.names.get(at).map_or(name, String::as_str);
            let lun = self.luns.get(at).unwrap_or(lun);
            Some(Path {
                portal: read_portal(portal)?,
                target_name: read_name(name)?,
                lun: addressing.address(lun).ok()?,
            })
        });
        let mut read: Vec<Path> = Vec::new();
        for (at, path) in paths.enumerate().take(PATHS_MAX) {
            match path {
                Some(path) if !read.contains(&path) => read.push(path),
                Some(_) => {}
                None => tracing::warn!(
                    at,
                    "a path in the volume's connection_info cannot be read and is left out"
                ),
            }
        }
        read
    }
}

impl Addressing {
    fn parse(word: Option<&str>) -> Result<Self, Error> {
        match word.unwrap_or_default() {
            "" | "SAM" | "transparent" => Ok(Self::Raw),
            "SAM2" => Ok(Self::Sam2),
            "SAM3-flat" => Ok(Self::Sam3Flat),
            _ => Err(Error::ConnectionInfo(
                "its addressing_mode is none of SAM, transparent, SAM2 and SAM3-flat".to_owned(),
            )),
        }
    }

    fn address(self, lun: &Value) -> Result<LunAddress, Error> {
        let invalid = |what: &str| Error::ConnectionInfo(format!("target_lun is {what}"));
        let number = number(lun).ok_or_else(|| invalid("not a number of 16 bits"))?;
        let address = match self {
            Self::Raw => Some(LunAddress::raw(number)),
            Self::Sam2 if number < 256 => Some(LunAddress::raw(number)),
            Self::Sam2 | Self::Sam3Flat => LunAddress::flat(number),
        };
        address.ok_or_else(|| invalid("beyond 16383, which flat addressing cannot say"))
    }
}

/// Some drivers write the portal group's tag behind the port.
fn read_portal(text: &str) -> Option<Portal> {
    Some(Portal::from_target_address(text).ok()?.0)
}

fn read_name(text: &str) -> Option<IscsiName> {
    text.parse().ok()
}

fn number(value: &Value) -> Option<u16> {
    let number = value
        .as_u64()
        .or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()))?;
    u16::try_from(number).ok()
}
