//! The `connection_info` of an attachment: where the LUN is and how to log in to it.
//!
//! Source: `cinder/volume/targets/iscsi.py`, `cinder/volume/manager.py`; flat in the attachments API.
//!
//! Invariants:
//! 1. Other transports, other authentications and encrypted volumes are refused by name: a LUN that is used wrongly is
//!    data lost.
//! 2. No error repeats a value of it but the transport's name: the CHAP secret is among them.
//!
//! Several portals (`target_portals`, `target_iqns`, `target_luns`) are paths to one logical unit; a further one that
//! cannot be read is left out with a warning, as the volume can be used without it. `addressing_mode` is not read.

use iscsi::io::Path;
use iscsi::proto::{ChapCredentials, IscsiName, Portal, Secret};
use iscsi::scsi::LunAddress;
use serde::Deserialize;
use serde_json::Value;

use super::error::Error;
use super::qos;
use crate::block::Rates;

/// The iSCSI part of a `connection_info`; other transports are refused by name.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// First portal `host:port`.
    pub target_portal: Portal,
    /// Target name.
    pub target_iqn: IscsiName,
    /// LUN.
    pub target_lun: u16,
    /// Further ways to the same logical unit.
    pub more_paths: Vec<Path>,
    /// CHAP, if asked.
    pub chap: Option<ChapCredentials>,
    /// `access_mode` is ro.
    pub read_only: bool,
    /// What the front end must keep to.
    pub rates: Rates,
}

/// The fields read here. Numbers may come as text and the reverse, by driver.
#[derive(Deserialize)]
struct Wire {
    driver_volume_type: Option<String>,
    target_portal: Option<String>,
    target_iqn: Option<String>,
    target_lun: Option<Value>,
    #[serde(default)]
    target_portals: Vec<String>,
    #[serde(default)]
    target_iqns: Vec<String>,
    #[serde(default)]
    target_luns: Vec<Value>,
    auth_method: Option<String>,
    auth_username: Option<String>,
    auth_password: Option<String>,
    access_mode: Option<String>,
    #[serde(default)]
    encrypted: Option<bool>,
    volume_id: Option<String>,
    #[serde(default)]
    qos_specs: Option<Value>,
}

/// From the attachment as `PUT /attachments/ID` answers it.
pub(super) fn parse(attachment: &Value) -> Result<ConnectionInfo, Error> {
    let missing = |what: &str| Error::ConnectionInfo(format!("it has no {what}"));
    let info = attachment
        .get("connection_info")
        .filter(|info| info.is_object())
        .ok_or_else(|| missing("content"))?;
    let wire = Wire::deserialize(info).map_err(|_| {
        Error::ConnectionInfo("a field is of another type than iSCSI drivers send".to_owned())
    })?;
    let listed = listed_paths(&wire);
    let transport = wire
        .driver_volume_type
        .ok_or_else(|| missing("driver_volume_type"))?;
    if transport != "iscsi" {
        // A word of the server's, printed: shortened to what names look like.
        let transport = transport
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c))
            .take(32)
            .collect();
        return Err(Error::Transport { transport });
    }
    if wire.encrypted.unwrap_or(false) {
        return Err(Error::Encrypted {
            volume: wire.volume_id.unwrap_or_default(),
        });
    }
    let portal = wire
        .target_portal
        .or_else(|| wire.target_portals.first().cloned());
    let iqn = wire
        .target_iqn
        .or_else(|| wire.target_iqns.first().cloned());
    let lun = wire
        .target_lun
        .as_ref()
        .or_else(|| wire.target_luns.first());
    let mode = |key: &str| attachment.get(key).and_then(Value::as_str);
    let portal = portal.ok_or_else(|| missing("target_portal"))?;
    let target_portal = read_portal(&portal)
        .ok_or_else(|| Error::ConnectionInfo("target_portal is not host:port".to_owned()))?;
    let target_iqn: IscsiName = iqn
        .ok_or_else(|| missing("target_iqn"))?
        .parse()
        .map_err(|_| Error::ConnectionInfo("target_iqn is not an iSCSI name".to_owned()))?;
    let target_lun = number(lun.ok_or_else(|| missing("target_lun"))?)
        .ok_or_else(|| Error::ConnectionInfo("target_lun is not a number of 16 bits".to_owned()))?;
    let first = Path {
        portal: target_portal.clone(),
        target_name: target_iqn.clone(),
        lun: LunAddress::from_number(target_lun),
    };
    Ok(ConnectionInfo {
        more_paths: listed.into_iter().filter(|path| *path != first).collect(),
        target_portal,
        target_iqn,
        target_lun,
        chap: chap(
            wire.auth_method.as_deref(),
            wire.auth_username,
            wire.auth_password,
        )?,
        rates: qos::parse(wire.qos_specs.as_ref())?,
        // Cinder answers `access_mode: rw` for an attachment of mode `ro`: either counts.
        read_only: wire.access_mode.as_deref() == Some("ro") || mode("attach_mode") == Some("ro"),
    })
}

/// Some drivers write the portal group's tag behind the port.
fn read_portal(text: &str) -> Option<Portal> {
    Some(Portal::from_target_address(text).ok()?.0)
}

/// The parallel lists; where a name or a number is missing, that of the first path holds.
fn listed_paths(wire: &Wire) -> Vec<Path> {
    let paths = wire.target_portals.iter().enumerate().map(|(at, portal)| {
        let name = wire.target_iqns.get(at).or(wire.target_iqn.as_ref());
        let lun = wire.target_luns.get(at).or(wire.target_lun.as_ref());
        let path = Path {
            portal: read_portal(portal)?,
            target_name: name?.parse().ok()?,
            lun: LunAddress::from_number(number(lun?)?),
        };
        Some(path)
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

/// Arrays have four to sixteen portals; each is one more to try when the volume is away.
const PATHS_MAX: usize = 16;

fn number(value: &Value) -> Option<u16> {
    let number = value
        .as_u64()
        .or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()))?;
    u16::try_from(number).ok()
}

fn chap(
    method: Option<&str>,
    name: Option<String>,
    secret: Option<String>,
) -> Result<Option<ChapCredentials>, Error> {
    let missing = |what: &str| Error::ConnectionInfo(format!("it asks for CHAP without {what}"));
    match method.map(str::to_uppercase).as_deref() {
        None | Some("" | "NONE") => Ok(None),
        Some("CHAP") => {
            let name = name
                .filter(|name| !name.is_empty())
                .ok_or_else(|| missing("auth_username"))?;
            let secret = secret
                .filter(|secret| !secret.is_empty())
                .ok_or_else(|| missing("auth_password"))?;
            Ok(Some(ChapCredentials {
                name,
                secret: Secret::new(secret),
            }))
        }
        Some(_) => Err(Error::ConnectionInfo(
            "its auth_method is neither CHAP nor none".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As recorded from Cinder 21.3.1 with tgt.
    fn recorded() -> Value {
        json!({"id": "b9faac7c-11fa-4db1-8c4c-b1fd4e8b1ce2", "status": "reserved", "attach_mode": "rw",
            "connection_info": {
                "target_discovered": false, "target_portal": "127.0.0.1:3261",
                "target_iqn": "iqn.2010-10.org.openstack:volume-26cb1c15-fc9f-4d27-958e-d0c32bbaeb92",
                "target_lun": 1, "volume_id": "26cb1c15-fc9f-4d27-958e-d0c32bbaeb92",
                "auth_method": "CHAP", "auth_username": "VTpi3BfTezTw8B2KE3Q9", "auth_password": "r2R2WDpJd4EdcEDU",
                "encrypted": false, "qos_specs": null, "access_mode": "rw", "cacheable": false,
                "driver_volume_type": "iscsi", "attachment_id": "b9faac7c-11fa-4db1-8c4c-b1fd4e8b1ce2"}})
    }

    fn with(changes: &Value) -> Result<ConnectionInfo, Error> {
        let mut attachment = recorded();
        let info = attachment["connection_info"].as_object_mut().unwrap();
        for (key, value) in changes.as_object().unwrap() {
            info.insert(key.clone(), value.clone());
        }
        info.retain(|_, value| value != "ABSENT");
        parse(&attachment)
    }

    #[test]
    fn a_recorded_answer_is_read() {
        let info = parse(&recorded()).unwrap();
        assert_eq!(
            (info.target_portal.host.as_str(), info.target_portal.port),
            ("127.0.0.1", 3261)
        );
        assert_eq!(info.target_lun, 1);
        assert!(!info.read_only);
        let chap = info.chap.clone().unwrap();
        assert_eq!(
            (chap.name.as_str(), chap.secret.expose()),
            ("VTpi3BfTezTw8B2KE3Q9", "r2R2WDpJd4EdcEDU")
        );
        assert!(!format!("{info:?}").contains("r2R2WDpJd4EdcEDU"));
    }

    #[test]
    fn drivers_ways_of_writing_are_understood() {
        assert_eq!(with(&json!({"target_lun": "7"})).unwrap().target_lun, 7);
        assert!(with(&json!({"auth_method": null})).unwrap().chap.is_none());
        assert!(
            with(&json!({"auth_method": "ABSENT"}))
                .unwrap()
                .chap
                .is_none()
        );
        assert!(with(&json!({"access_mode": "ro"})).unwrap().read_only);
        assert_eq!(
            with(&json!({"target_portal": "10.0.0.5:3260,1"}))
                .unwrap()
                .target_portal
                .port,
            3260
        );
        let lists = json!({"target_portal": "ABSENT", "target_portals": ["[fd00::1]:3260", "10.0.0.6:3260"],
            "logical_block_size": "512"});
        assert_eq!(with(&lists).unwrap().target_portal.host, "fd00::1");
        let mut attachment = recorded();
        attachment["attach_mode"] = "ro".into();
        assert!(parse(&attachment).unwrap().read_only);
    }

    #[test]
    fn further_paths_are_read_and_the_first_is_not_listed_twice() {
        let first = recorded()["connection_info"]["target_iqn"].clone();
        let info = with(&json!({
            "target_portals": ["127.0.0.1:3261", "10.0.0.6:3260,2", "no portal at all:x", "[fd00::1]:3260"],
            "target_iqns": [first, "iqn.2010-10.org.openstack:b", "iqn.2010-10.org.openstack:c"],
            "target_luns": [1, "2"],
        }))
        .unwrap();
        let read: Vec<_> = info
            .more_paths
            .iter()
            .map(|path| {
                (
                    path.portal.to_string(),
                    path.target_name.to_string(),
                    path.lun,
                )
            })
            .collect();
        assert_eq!(
            read,
            [
                (
                    "10.0.0.6:3260".to_owned(),
                    "iqn.2010-10.org.openstack:b".to_owned(),
                    LunAddress::from_number(2)
                ),
                (
                    "[fd00::1]:3260".to_owned(),
                    info.target_iqn.to_string(),
                    LunAddress::from_number(1)
                ),
            ]
        );
        assert!(parse(&recorded()).unwrap().more_paths.is_empty());
    }

    #[test]
    fn what_is_not_for_us_is_refused_by_name() {
        for kind in ["rbd", "fibre_channel", "nvmeof", "nfs", "iser"] {
            let error = with(&json!({"driver_volume_type": kind})).unwrap_err();
            assert!(
                error
                    .to_string()
                    .contains(&format!("speaks `{kind}`, and only iscsi")),
                "{error}"
            );
        }
        assert!(
            with(&json!({"encrypted": true}))
                .unwrap_err()
                .to_string()
                .contains("(LUKS)")
        );
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_and_no_value_is_printed() {
        for (changes, word) in [
            (
                json!({"driver_volume_type": "ABSENT"}),
                "driver_volume_type",
            ),
            (json!({"target_portal": "ABSENT"}), "target_portal"),
            (json!({"target_iqn": "ABSENT"}), "target_iqn"),
            (json!({"target_iqn": "volume-1"}), "target_iqn"),
            (json!({"target_lun": "ABSENT"}), "target_lun"),
            (json!({"target_lun": 65536}), "target_lun"),
            (json!({"target_lun": -1}), "target_lun"),
            (json!({"auth_username": "ABSENT"}), "auth_username"),
            (json!({"auth_password": ""}), "auth_password"),
            (json!({"auth_method": "KRB5"}), "auth_method"),
            (json!({"target_portals": "x"}), "another type"),
        ] {
            let text = with(&changes).unwrap_err().to_string();
            assert!(
                text.contains(word) && !text.contains("r2R2WDpJd4EdcEDU"),
                "{changes}: {text}"
            );
        }
        assert!(parse(&json!({"connection_info": null})).is_err());
        assert!(parse(&json!({})).is_err());
    }
}
