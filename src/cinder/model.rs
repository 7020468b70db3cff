//! Volumes and attachments as this room hands them out.
//!
//! Source: Block Storage API v3 at microversion 3.54; `cinder/api/schemas/volumes.py`.
//!
//! Invariants:
//! 1. Times are RFC 3339 in UTC: Cinder's own lack the zone and have microseconds only sometimes.
//! 2. What ends up in messages (ids, states, holders) is one line and short; names, which are compared, are as they are.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::fault::word;

/// A volume as Cinder shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// UUID.
    #[serde(deserialize_with = "plain")]
    pub id: String,
    /// Name; not unique.
    #[serde(default)]
    pub name: Option<String>,
    /// `available`, `in-use`, `error`, ...
    #[serde(deserialize_with = "plain")]
    pub status: String,
    /// Size in GiB.
    pub size: u64,
    /// Type name.
    #[serde(default)]
    pub volume_type: Option<String>,
    /// Zone.
    #[serde(default)]
    pub availability_zone: Option<String>,
    /// RFC 3339, UTC.
    #[serde(default, deserialize_with = "time")]
    pub created_at: Option<String>,
    /// RFC 3339, UTC; moves with the status.
    #[serde(default, deserialize_with = "time")]
    pub updated_at: Option<String>,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
    /// More than one attachment allowed.
    #[serde(default)]
    pub multiattach: bool,
    /// LUKS by the front end.
    #[serde(default)]
    pub encrypted: bool,
    /// Free-form.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Completed attachments.
    #[serde(default)]
    pub attachments: Vec<VolumeAttachment>,
}

impl Volume {
    /// The name, or the id where there is none that can be printed: for messages.
    pub fn label(&self) -> &str {
        label(self.name.as_deref(), &self.id)
    }
}

/// A completed attachment as the volume lists it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeAttachment {
    /// The attachment's UUID.
    #[serde(deserialize_with = "plain")]
    pub attachment_id: String,
    /// Null unless admin.
    #[serde(default, deserialize_with = "plain_if_any")]
    pub host_name: Option<String>,
    /// The connector's `mountpoint`.
    #[serde(default, deserialize_with = "plain_if_any")]
    pub device: Option<String>,
    /// A Nova server's UUID, if one has it.
    #[serde(default, deserialize_with = "plain_if_any")]
    pub server_id: Option<String>,
    /// RFC 3339, UTC.
    #[serde(default, deserialize_with = "time")]
    pub attached_at: Option<String>,
}

/// What to create.
#[derive(Clone, Debug, Default)]
pub struct NewVolume {
    /// Name.
    pub name: String,
    /// GiB, at least 1; 0 takes the size of the snapshot or volume it is made from.
    pub size: u64,
    /// Type name or id.
    pub volume_type: Option<String>,
    /// Zone.
    pub availability_zone: Option<String>,
    /// Description.
    pub description: Option<String>,
    /// From a snapshot.
    pub snapshot_id: Option<String>,
    /// From a volume.
    pub source_volid: Option<String>,
    /// From an image.
    pub image: Option<String>,
    /// Where the scheduler is to put it; none by default.
    pub scheduler_hints: BTreeMap<String, String>,
    /// Free-form.
    pub metadata: BTreeMap<String, String>,
}

/// Who attaches (os-brick's connector dictionary, the part that iSCSI drivers read).
#[derive(Clone, Debug)]
pub struct Connector {
    /// Our own IQN.
    pub initiator: String,
    /// Our own host name.
    pub host: String,
    /// An address of ours.
    pub ip: String,
    /// Shown to all members as the attachment's device; our owner tag.
    pub mountpoint: String,
    /// `rw` or `ro`.
    pub read_only: bool,
}

/// The name, if it can be printed as it is.
pub(super) fn label<'a>(name: Option<&'a str>, id: &'a str) -> &'a str {
    let is_plain = |name: &&str| !name.is_empty() && word(name) == **name;
    name.filter(is_plain).unwrap_or(id)
}

/// A word of the server's, fit to be printed.
pub(super) fn plain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(word(&String::deserialize(deserializer)?))
}

/// The same where there may be none.
pub(super) fn plain_if_any<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    Ok(text.as_deref().map(word))
}

/// Cinder's `2026-11-22T18:35:54.000000` as `2026-11-22T18:35:54Z`; the empty text, which means never, as nothing.
pub(super) fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(plain_if_any(deserializer)?
        .filter(|text| !text.is_empty())
        .map(|text| match text.find(['.', 'Z', '+']) {
            Some(end) => format!("{}Z", &text[..end]),
            None => format!("{text}Z"),
        }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As recorded from Cinder 21.3.1 (Zed), shortened by the links.
    const RECORDED: &str = r#"{"id": "26cb1c15-fc9f-4d27-958e-d0c32bbaeb92", "status": "in-use", "size": 1,
        "availability_zone": "nova", "created_at": "2026-11-22T18:35:54.000000", "updated_at": "2026-11-22T18:35:55.123456",
        "name": "check-1", "description": null, "volume_type": "filetgt", "snapshot_id": null, "metadata": {"owner": "check"},
        "bootable": "false", "encrypted": false, "multiattach": false, "attachments": [
            {"id": "26cb1c15-fc9f-4d27-958e-d0c32bbaeb92", "attachment_id": "b9faac7c-11fa-4db1-8c4c-b1fd4e8b1ce2",
             "volume_id": "26cb1c15-fc9f-4d27-958e-d0c32bbaeb92", "server_id": null, "host_name": null, "device": "na",
             "attached_at": "2026-11-22T18:35:56.000000"}]}"#;

    #[test]
    fn a_recorded_volume_is_read_with_times_of_the_standard() {
        let volume: Volume = serde_json::from_str(RECORDED).unwrap();
        assert_eq!(volume.created_at.as_deref(), Some("2026-11-22T18:35:54Z"));
        assert_eq!(volume.updated_at.as_deref(), Some("2026-11-22T18:35:55Z"));
        assert_eq!(
            volume.attachments[0].attachment_id,
            "b9faac7c-11fa-4db1-8c4c-b1fd4e8b1ce2"
        );
        assert_eq!(volume.label(), "check-1");
        // What was written by us is read by us as the same.
        let again: Volume = serde_json::from_str(&serde_json::to_string(&volume).unwrap()).unwrap();
        assert_eq!(again.created_at, volume.created_at);
    }

    #[test]
    fn words_of_a_hostile_server_stay_one_line() {
        let text = r#"{"id": "i", "name": "v\u001b[2J", "status": "a\nb", "size": 3, "updated_at": "1\r2",
            "attachments": [{"attachment_id": "c\nd", "device": "e\u0000f"}]}"#;
        let volume: Volume = serde_json::from_str(text).unwrap();
        assert_eq!((volume.label(), volume.status.as_str()), ("i", "a b"));
        assert_eq!(volume.updated_at.as_deref(), Some("1 2Z"));
        let attachment = &volume.attachments[0];
        assert_eq!(attachment.attachment_id, "c d");
        assert_eq!(attachment.device.as_deref(), Some("e f"));
        // Names are compared byte for byte.
        assert_eq!(volume.name.as_deref(), Some("v\u{1b}[2J"));
    }

    #[test]
    fn a_volume_may_have_no_name_and_few_fields() {
        let volume: Volume =
            serde_json::from_str(r#"{"id": "i", "name": "", "status": "creating", "size": 3}"#)
                .unwrap();
        assert_eq!((volume.label(), volume.created_at.as_deref()), ("i", None));
    }
}
