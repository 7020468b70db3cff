//! The `connection_info` of an attachment: where the LUN is and how to log in to it.
//!
//! Source: `cinder/volume/targets/iscsi.py`, `cinder/volume/manager.py`; flat in the attachments API.
//!
//! Invariants:
//! 1. Other transports, other authentications and encrypted volumes are refused by name: a LUN that is used wrongly is
//!    data lost.
//! 2. No error repeats a value of it but the transport's name and the volume's id: the CHAP secrets are among them.
//!
//! Block sizes, `discard` and `cacheable` are not read: the LUN itself tells them, and surely.

use iscsi::io::Path;
use iscsi::proto::{ChapCredentials, Secret};
use serde::Deserialize;
use serde_json::Value;

mod paths;

use super::error::Error;
use super::fault::word;
use super::http::Answer;
use super::qos;
use crate::block::Rates;

/// The iSCSI part of a `connection_info`; other transports are refused by name.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Portal, target name and LUN.
    pub first_path: Path,
    /// Further ways to the same logical unit.
    pub more_paths: Vec<Path>,
    /// CHAP, if asked.
    pub chap: Option<ChapCredentials>,
    /// What the driver gives for `SendTargets`: its target shows further portals to whoever asks with it.
    pub discovery_chap: Option<ChapCredentials>,
    /// `access_mode` is ro.
    pub read_only: bool,
    /// What the front end must keep to.
    pub rates: Rates,
}

/// The fields read here. Numbers may come as text and the reverse, by driver.
#[derive(Deserialize)]
struct Wire {
    driver_volume_type: Option<String>,
    #[serde(flatten)]
    paths: paths::Wire,
    auth_method: Option<String>,
    auth_username: Option<String>,
    auth_password: Option<String>,
    discovery_auth_method: Option<String>,
    discovery_auth_username: Option<String>,
    discovery_auth_password: Option<String>,
    access_mode: Option<String>,
    #[serde(default)]
    encrypted: Option<bool>,
    volume_id: Option<String>,
    #[serde(default)]
    qos_specs: Option<Value>,
}

/// From an answer that shows an attachment.
pub(super) fn of(answer: &Answer) -> Result<ConnectionInfo, Error> {
    let value: Value = answer.parse()?;
    parse(value.get("attachment").unwrap_or(&Value::Null))
}

/// From the attachment as `PUT /attachments/ID` answers it.
fn parse(attachment: &Value) -> Result<ConnectionInfo, Error> {
    let missing = |what: &str| Error::ConnectionInfo(format!("it has no {what}"));
    let info = attachment
        .get("connection_info")
        .filter(|info| info.is_object())
        .ok_or_else(|| missing("content"))?;
    let wire = Wire::deserialize(info).map_err(|_| {
        Error::ConnectionInfo("a field is of another type than iSCSI drivers send".to_owned())
    })?;
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
            volume: word(&wire.volume_id.unwrap_or_default()),
        });
    }
    let mode = |key: &str| attachment.get(key).and_then(Value::as_str);
    let (first_path, more_paths) = wire.paths.read()?;
    Ok(ConnectionInfo {
        first_path,
        more_paths,
        chap: chap(
            wire.auth_method.as_deref(),
            wire.auth_username,
            wire.auth_password,
        )?,
        discovery_chap: discovery_chap(
            wire.discovery_auth_method.as_deref(),
            wire.discovery_auth_username,
            wire.discovery_auth_password,
        ),
        rates: qos::parse(wire.qos_specs.as_ref())?,
        // Cinder answers `access_mode: rw` for an attachment of mode `ro`: either counts.
        read_only: wire.access_mode.as_deref() == Some("ro") || mode("attach_mode") == Some("ro"),
    })
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

/// Without it the volume can be used: what is wrong with it is a warning.
fn discovery_chap(
    method: Option<&str>,
    name: Option<String>,
    secret: Option<String>,
) -> Option<ChapCredentials> {
    chap(method, name, secret).unwrap_or_else(|_| {
        tracing::warn!("the credentials for discovery cannot be read and are left out");
        None
    })
}

#[cfg(test)]
mod tests {
    use iscsi::scsi::LunAddress;
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
            (
                info.first_path.portal.host.as_str(),
                info.first_path.portal.port
            ),
            ("127.0.0.1", 3261)
        );
        assert_eq!(info.first_path.lun, LunAddress::from_number(1));
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
        assert_eq!(
            with(&json!({"target_lun": "7"})).unwrap().first_path.lun,
            LunAddress::from_number(7)
        );
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
                .first_path
                .portal
                .port,
            3260
        );
        let lists = json!({"target_portal": "ABSENT", "target_portals": ["[fd00::1]:3260", "10.0.0.6:3260"],
            "logical_block_size": "512"});
        assert_eq!(with(&lists).unwrap().first_path.portal.host, "fd00::1");
        let mut attachment = recorded();
        attachment["attach_mode"] = "ro".into();
        assert!(parse(&attachment).unwrap().read_only);
    }

    #[test]
    fn further_paths_are_read_and_the_first_is_not_listed_twice() {
        let first = recorded()["connection_info"]["target_iqn"].clone();
        let info = with(&json!({
            "target_portals": ["127.0.0.1:3261", "10.0.0.6:3260,2", "no portal at all:x", "[fd00::1]:3260"],
            "target_iqns": [&first, "iqn.2010-10.org.openstack:b", "iqn.2010-10.org.openstack:c", &first],
            "target_luns": [1, "2", 3, 1],
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
                    info.first_path.target_name.to_string(),
                    LunAddress::from_number(1)
                ),
            ]
        );
        assert!(parse(&recorded()).unwrap().more_paths.is_empty());
    }

    #[test]
    fn what_has_no_list_is_that_of_the_first_path() {
        let portals =
            json!({"target_portals": ["127.0.0.1:3261", "10.0.0.6:3260"], "target_luns": null});
        let info = with(&portals).unwrap();
        let [second] = &info.more_paths[..] else {
            panic!("{:?}", info.more_paths);
        };
        assert_eq!(second.portal.to_string(), "10.0.0.6:3260");
        assert_eq!(second.target_name, info.first_path.target_name);
        assert_eq!(second.lun, info.first_path.lun);
    }

    #[test]
    fn a_lun_goes_out_as_the_driver_means_it() {
        // the two bytes on the wire, as os-brick's numbers come out of Linux
        for (mode, lun, bytes) in [
            (json!(null), 5, [0x00, 0x05]),
            (json!(null), 300, [0x01, 0x2C]),
            (json!("SAM"), 300, [0x01, 0x2C]),
            (json!("transparent"), 16_640, [0x41, 0x00]),
            (json!("SAM2"), 5, [0x00, 0x05]),
            (json!("SAM2"), 256, [0x41, 0x00]),
            (json!("SAM2"), 300, [0x41, 0x2C]),
            (json!("SAM3-flat"), 5, [0x40, 0x05]),
            (json!("SAM3-flat"), 300, [0x41, 0x2C]),
        ] {
            let portals = ["127.0.0.1:3261", "10.0.0.6:3260"];
            let changes =
                json!({"addressing_mode": mode, "target_lun": lun, "target_portals": portals});
            let info = with(&changes).unwrap();
            let wire = info.first_path.lun.to_bytes();
            assert_eq!(
                (&wire[..2], &wire[2..]),
                (&bytes[..], &[0; 6][..]),
                "{mode} {lun}"
            );
            assert_eq!(info.more_paths[0].lun, info.first_path.lun);
        }
    }

    #[test]
    fn credentials_for_discovery_are_kept_apart_and_never_printed() {
        let given = json!({"discovery_auth_method": "CHAP", "discovery_auth_username": "finder",
            "discovery_auth_password": "look-around-12"});
        let info = with(&given).unwrap();
        let discovery = info.discovery_chap.clone().unwrap();
        assert_eq!(
            (discovery.name.as_str(), discovery.secret.expose()),
            ("finder", "look-around-12")
        );
        assert_eq!(info.chap.clone().unwrap().name, "VTpi3BfTezTw8B2KE3Q9");
        assert!(!format!("{info:?}").contains("look-around-12"));
        let half = json!({"discovery_auth_method": "CHAP", "discovery_auth_username": "finder"});
        assert!(with(&half).unwrap().discovery_chap.is_none());
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
            (json!({"addressing_mode": "SAM4"}), "addressing_mode"),
            (
                json!({"addressing_mode": "SAM2", "target_lun": 16384}),
                "beyond 16383",
            ),
            (
                json!({"target_portals": ["10.0.0.5:1", "10.0.0.6:1"], "target_luns": [1]}),
                "target_portals has 2, target_iqns 0, target_luns 1",
            ),
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
