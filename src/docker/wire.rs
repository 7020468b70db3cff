//! The bodies of the plugin protocol.
//!
//! Source: docker/cli `docs/extend/plugins_volume.md`; moby `daemon/volume/drivers/proxy.go` for
//! what may be absent.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::volume::View;

#[derive(Debug, Deserialize)]
pub(super) struct CreateBody {
    #[serde(rename = "Name", default)]
    pub(super) name: String,
    /// `null` when the user gave none.
    #[serde(rename = "Opts", default)]
    pub(super) opts: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct NameBody {
    #[serde(rename = "Name", default)]
    pub(super) name: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct MountBody {
    #[serde(rename = "Name", default)]
    pub(super) name: String,
    /// Old engines and podman may send none: then all callers are one.
    #[serde(rename = "ID", default)]
    pub(super) id: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Activated {
    #[serde(rename = "Implements")]
    pub(super) implements: [&'static str; 1],
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Success {
    #[serde(rename = "Err")]
    err: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct Failure {
    #[serde(rename = "Err")]
    pub(super) err: String,
}

#[derive(Debug, Serialize)]
pub(super) struct MountpointAnswer {
    #[serde(rename = "Mountpoint")]
    pub(super) mountpoint: PathBuf,
    #[serde(rename = "Err")]
    pub(super) err: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct GetAnswer {
    #[serde(rename = "Volume")]
    pub(super) volume: VolumeView,
    #[serde(rename = "Err")]
    pub(super) err: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct ListAnswer {
    #[serde(rename = "Volumes")]
    pub(super) volumes: Vec<VolumeView>,
    #[serde(rename = "Err")]
    pub(super) err: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct CapabilitiesAnswer {
    #[serde(rename = "Capabilities")]
    pub(super) capabilities: Capabilities,
    #[serde(rename = "Err")]
    pub(super) err: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct Capabilities {
    #[serde(rename = "Scope")]
    pub(super) scope: &'static str,
}

/// A volume as Docker shows it.
#[derive(Debug, Serialize)]
pub(super) struct VolumeView {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "Mountpoint", skip_serializing_if = "Option::is_none")]
    mountpoint: Option<PathBuf>,
    /// Left away rather than wrong: the engine drops the whole answer over a time it cannot parse.
    #[serde(rename = "CreatedAt", skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(rename = "Status", skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, serde_json::Value>,
}

impl VolumeView {
    /// For `docker volume ls`.
    pub(super) fn brief(view: &View) -> Self {
        Self {
            name: view.name.clone(),
            mountpoint: view.mountpoint.clone(),
            created_at: view.created_at.as_deref().and_then(rfc3339),
            status: BTreeMap::new(),
        }
    }

    /// For `docker volume inspect`: the status is the only place where a user looks.
    pub(super) fn full(view: &View) -> Self {
        let mut status: BTreeMap<&'static str, serde_json::Value> = BTreeMap::from([
            ("state", view.state.to_string().into()),
            ("created_by_cinder_nbd", view.created_by_us.into()),
            ("mounts", view.mounts.into()),
        ]);
        let texts = [
            ("volume_id", view.volume_id.clone()),
            ("type", view.volume_type.clone()),
            ("fstype", view.fstype.clone()),
            (
                "device",
                view.device.as_ref().map(|path| path.display().to_string()),
            ),
            ("target", view.target.clone()),
            ("portal", view.portal.clone()),
            ("lun_identity", view.identity.clone()),
            ("taken", view.taken.clone()),
            ("pending", view.pending.clone()),
            ("last_error", view.last_error.clone()),
        ];
        status.extend(
            texts
                .into_iter()
                .filter_map(|(key, text)| Some((key, text?.into()))),
        );
        let sizes = [
            ("size_gib", view.size_gib),
            ("device_bytes", view.device_bytes),
            ("filesystem_bytes", view.filesystem_bytes),
        ];
        status.extend(
            sizes
                .into_iter()
                .filter_map(|(key, size)| Some((key, size?.into()))),
        );
        Self {
            status,
            ..Self::brief(view)
        }
    }
}

/// Cinder's time as RFC 3339: it leaves the zone away, which is UTC. Nothing for what does not look
/// like a time.
fn rfc3339(text: &str) -> Option<String> {
    let begin = text.get(..19)?;
    let looks_right = begin
        .bytes()
        .zip("0000-00-00T00:00:00".bytes())
        .all(|(letter, form)| match form {
            b'0' => letter.is_ascii_digit(),
            _ => letter == form,
        });
    looks_right.then(|| format!("{begin}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_names_every_key_of_the_status() {
        let text = || Some("x".to_owned());
        let view = View {
            volume_id: text(),
            volume_type: text(),
            fstype: text(),
            device: Some("/dev/nbd0".into()),
            target: text(),
            portal: text(),
            identity: text(),
            taken: text(),
            pending: text(),
            last_error: text(),
            size_gib: Some(1),
            device_bytes: Some(1),
            filesystem_bytes: Some(1),
            ..View::default()
        };
        let document = include_str!("../../docs/docker.md");
        let begin = document.find("| key | what |").unwrap();
        let table: Vec<&str> = document[begin..].split("\n\n").take(1).collect();
        let status = VolumeView::full(&view).status;
        assert_eq!(status.len(), 16);
        for key in status.keys() {
            assert!(table[0].contains(&format!("`{key}`")), "{key}");
        }
    }

    #[test]
    fn times_are_rfc3339_or_absent() {
        for text in [
            "2026-11-22T20:30:00.000000",
            "2026-11-22T20:30:00Z",
            "2026-11-22T20:30:00",
        ] {
            assert_eq!(rfc3339(text).as_deref(), Some("2026-11-22T20:30:00Z"));
        }
        for text in ["", "yesterday", "2026-11-22 20:30:00", "2026-11-22T20:30"] {
            assert_eq!(rfc3339(text), None, "{text}");
        }
    }
}
