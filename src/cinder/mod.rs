//! OpenStack's API: Keystone authentication and Cinder's volumes and attachments. CONTRACT part:

use serde::{Deserialize, Serialize};

use crate::config::CloudConfig;

/// Why a call failed, by kind; `Display` is one line with cause and remedy (401 credentials, 404 absent,
/// 413 quota with its numbers, 503 unavailable, volume attached elsewhere...). Never a secret.
#[derive(Debug, thiserror::Error)]
#[error("contract")]
#[non_exhaustive]
pub enum Error {}

/// A volume as Cinder shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// UUID.
    pub id: String,
    /// Name; not unique.
    pub name: Option<String>,
    /// `available`, `in-use`, `error`, ...
    pub status: String,
    /// Size in GiB.
    pub size: u64,
    /// Type name.
    pub volume_type: Option<String>,
    /// Zone.
    pub availability_zone: Option<String>,
    /// RFC 3339, UTC.
    pub created_at: Option<String>,
    /// More than one attachment allowed.
    pub multiattach: bool,
    /// LUKS by the front end.
    pub encrypted: bool,
    /// Free-form.
    pub metadata: std::collections::BTreeMap<String, String>,
    /// Completed attachments.
    pub attachments: Vec<VolumeAttachment>,
}

/// A completed attachment as the volume lists it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeAttachment {
    /// The attachment's UUID.
    pub attachment_id: String,
    /// Null unless admin.
    pub host_name: Option<String>,
    /// The connector's `mountpoint`.
    pub device: Option<String>,
    /// RFC 3339, UTC.
    pub attached_at: Option<String>,
}

/// What to create.
#[derive(Clone, Debug, Default)]
pub struct NewVolume {
    /// Name.
    pub name: String,
    /// GiB, at least 1.
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
    /// Free-form.
    pub metadata: std::collections::BTreeMap<String, String>,
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

/// The iSCSI part of a `connection_info`; other transports are refused by name.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// First portal `host:port`.
    pub target_portal: iscsi::proto::Portal,
    /// Target name.
    pub target_iqn: iscsi::proto::IscsiName,
    /// LUN.
    pub target_lun: u16,
    /// CHAP, if asked.
    pub chap: Option<iscsi::proto::ChapCredentials>,
    /// `access_mode` is ro.
    pub read_only: bool,
}

/// A client of one project of one cloud. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cinder {
    _private: (),
}

#[expect(clippy::unused_async, reason = "contract")]
impl Cinder {
    /// Authenticates and finds the endpoint.
    ///
    /// # Errors
    /// See `Error`; names what the catalog did hold.
    pub async fn connect(_config: &CloudConfig) -> Result<Self, Error> {
        unimplemented!()
    }
    /// By UUID, or by exact name when only one has it.
    ///
    /// # Errors
    /// Absent, or several of that name (ids are listed).
    pub async fn find(&self, _id_or_name: &str) -> Result<Volume, Error> {
        unimplemented!()
    }
    /// All volumes of the project, paged through.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn list(&self) -> Result<Vec<Volume>, Error> {
        unimplemented!()
    }
    /// Creates and waits until `available`; a volume that ends in `error` is deleted again and the reason told.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn create(&self, _new: &NewVolume) -> Result<Volume, Error> {
        unimplemented!()
    }
    /// Deletes and waits until it is gone. Absent is done.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn delete(&self, _id: &str) -> Result<(), Error> {
        unimplemented!()
    }
    /// First step: reserves the volume; the attachment's id must be written down before the next step.
    ///
    /// # Errors
    /// `AttachedElsewhere` and others.
    pub async fn reserve(&self, _volume_id: &str, _read_only: bool) -> Result<String, Error> {
        unimplemented!()
    }
    /// Second step: exports to this connector.
    ///
    /// # Errors
    /// The caller deletes the attachment then.
    pub async fn connect_attachment(
        &self,
        _attachment_id: &str,
        _connector: &Connector,
    ) -> Result<ConnectionInfo, Error> {
        unimplemented!()
    }
    /// Last step: `in-use`.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn complete(&self, _attachment_id: &str) -> Result<(), Error> {
        unimplemented!()
    }
    /// Undo of all steps. 404 is done; 5xx is retried.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn delete_attachment(&self, _attachment_id: &str) -> Result<(), Error> {
        unimplemented!()
    }
    /// All attachments of a volume, completed or not: (id, status).
    ///
    /// # Errors
    /// See `Error`.
    pub async fn attachments(&self, _volume_id: &str) -> Result<Vec<(String, String)>, Error> {
        unimplemented!()
    }
    /// Merges metadata keys.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn set_metadata(
        &self,
        _volume_id: &str,
        _key: &str,
        _value: &str,
    ) -> Result<(), Error> {
        unimplemented!()
    }
}
