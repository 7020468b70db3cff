//! What goes over the control socket, besides the views of `volume`.

use iscsi::proto::Secret;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::volume::{Elsewhere, Fstype};

/// Attach a volume of the cloud.
#[derive(Debug, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Name or UUID.
    pub volume: String,
    /// Without the right to write.
    #[serde(default)]
    pub read_only: bool,
    /// Beside others that have it.
    #[serde(default)]
    pub raw: bool,
    /// If it is attached elsewhere.
    #[serde(default)]
    pub elsewhere: Option<Elsewhere>,
}

/// Look for leftovers.
#[derive(Debug, Serialize, Deserialize)]
pub struct DoctorRequest {
    /// And remove them.
    #[serde(default)]
    pub repair: bool,
}

/// Make a volume larger.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExtendRequest {
    /// Name or UUID.
    pub volume: String,
    /// To how many GiB.
    pub size_gib: u64,
}

/// Take a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub struct SnapshotRequest {
    /// Name or UUID of the volume.
    pub volume: String,
    /// Name of the snapshot.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
    /// How long writes may wait, in seconds; none does not freeze.
    #[serde(default)]
    pub freeze_limit_s: Option<u16>,
}

/// Attach a LUN that no cloud knows of.
#[derive(Debug, Serialize, Deserialize)]
pub struct StaticAttachRequest {
    /// `host:port`.
    pub portal: String,
    /// Target name.
    pub target: String,
    /// Logical unit.
    pub lun: u16,
    /// CHAP name.
    #[serde(default)]
    pub chap_user: Option<String>,
    /// CHAP secret: in clear on a socket that root alone may use, as no other place lies between
    /// file and daemon.
    #[serde(
        default,
        serialize_with = "write_secret",
        deserialize_with = "read_secret"
    )]
    pub chap_secret: Option<Secret>,
    /// Without the right to write.
    #[serde(default)]
    pub read_only: bool,
}

/// Make a filesystem, once.
#[derive(Debug, Serialize, Deserialize)]
pub struct FormatRequest {
    /// Name or UUID.
    pub volume: String,
    /// Which.
    #[serde(default)]
    pub fstype: Option<Fstype>,
    /// For mkfs.
    #[serde(default)]
    pub mkfs_options: Option<String>,
    /// What may be lost.
    #[serde(default)]
    pub destroy: Option<String>,
}

/// Detach a volume.
#[derive(Debug, Serialize, Deserialize)]
pub struct DetachRequest {
    /// Name, UUID or device.
    pub volume: String,
    /// Even if Docker is counted as using it.
    #[serde(default)]
    pub force: bool,
}

/// The answer to what failed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Failure {
    /// One line.
    pub error: String,
}

#[expect(clippy::ref_option, reason = "serde gives a reference to the field")]
fn write_secret<S: Serializer>(secret: &Option<Secret>, serializer: S) -> Result<S::Ok, S::Error> {
    secret.as_ref().map(Secret::expose).serialize(serializer)
}

fn read_secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(Secret::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_crosses_the_socket_and_shows_nowhere_else() {
        let request = StaticAttachRequest {
            portal: "127.0.0.1:3260".to_owned(),
            target: "iqn.2026-11.example:a".to_owned(),
            lun: 0,
            chap_user: Some("user".to_owned()),
            chap_secret: Some(Secret::new("hush".to_owned())),
            read_only: false,
        };
        assert!(!format!("{request:?}").contains("hush"));
        let text = serde_json::to_string(&request).unwrap();
        let back: StaticAttachRequest = serde_json::from_str(&text).unwrap();
        assert_eq!(back.chap_secret.unwrap().expose(), "hush");
        let none: StaticAttachRequest =
            serde_json::from_str(r#"{"portal":"a","target":"b","lun":1}"#).unwrap();
        assert!(none.chap_secret.is_none());
    }
}
