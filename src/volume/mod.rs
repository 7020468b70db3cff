//! The life of a volume on this host: create, attach, format, mount, and all the way back.
//!
//! A room of its own because order matters here and nowhere else: `cinder`, `lun`, `nbd` and `sys`
//! each do one step well; this room knows which step comes next, writes it down before, and undoes
//! it when a later one fails.
//!
//! Read before changing: `step` (the table of steps, and what a death in each leaves), `attachment` (their order and
//! undoing), `takeover` (what is another host's), `worker` (what keeps a mount alive), `blank` (what may be formatted),
//! `journal` (what survives a crash).
//!
//! What it does not do: speak to users. `docker` and `cli` do, and decide nothing.

mod address;
mod attachment;
mod blank;
mod cloud;
mod context;
mod doctor;
mod engine;
mod erase;
mod error;
mod fence;
mod filesystem;
mod host;
mod journal;
mod kept;
mod lanes;
mod layout;
mod outside;
mod platform;
mod portals;
mod recover;
mod request;
mod standing;
mod step;
mod takeover;
mod worker;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use iscsi::proto::DigestPolicy;
use iscsi::proto::recovery::ReplacementTimeout;

use crate::config::Config;

pub use cloud::{Cloud, ConfiguredCloud};
pub use doctor::{Finding, FindingKind, examine_alone};
pub use engine::{Engine, Parting, Running};
pub use error::{Cause, Error, line};
pub use host::Host;
pub use lanes::{lane_isid, session_params};
pub use layout::{Fstype, MkfsOptions, Top, parse_mode, parse_subdir};
pub use platform::{
    Content, Device, DeviceSpec, Disconnected, Handing, MountOptions, MountUser, Platform, Release,
    Sizes,
};
pub use request::{
    AttachRequest, Consistency, CreateRequest, Elsewhere, FormatRequest, Reclaim, SizeGib,
    SnapshotRequest, State, StaticTarget, Status, Taken, View, VolumeName,
};

/// Key in a volume's metadata: the host of the cinder-nbd that created it. Deleting and formatting
/// need it.
pub const CREATED_BY: &str = "cinder-nbd.created_by";
/// Key in a volume's metadata: the mark of the one creation that made it, by which it is found when the answer was lost.
pub const CREATED_FOR: &str = "cinder-nbd.created_for";
/// Key in a volume's metadata: the filesystem that a cinder-nbd made on it. From then on it is
/// never formatted again.
pub const FORMATTED: &str = "cinder-nbd.formatted";

/// What the engine needs of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Sockets, on tmpfs.
    pub runtime_dir: PathBuf,
    /// Records and the journal.
    pub state_dir: PathBuf,
    /// Where volumes are mounted.
    pub mount_dir: PathBuf,
    /// Our name in connectors.
    pub host: String,
    /// Our IQN.
    pub initiator_name: String,
    /// Our address in connectors; that on the route to the cloud when absent.
    pub ip: Option<String>,
    /// Connections a volume.
    pub lanes: usize,
    /// How long I/O waits for a target that is away.
    pub replacement_timeout: ReplacementTimeout,
    /// How long the kernel holds the I/O of a device that no daemon serves.
    pub dead_conn_timeout: Duration,
    /// CRC32C behind each iSCSI header.
    pub header_digest: DigestPolicy,
    /// CRC32C behind all iSCSI data.
    pub data_digest: DigestPolicy,
    /// GiB.
    pub default_size: u64,
    /// Made on blank volumes of ours.
    pub default_fstype: Fstype,
    /// What is done when a volume is attached elsewhere, unless it says so itself.
    pub elsewhere: Elsewhere,
}

impl TryFrom<&Config> for Settings {
    type Error = Error;

    fn try_from(config: &Config) -> Result<Self, Error> {
        let of = |key: &'static str| {
            move |error: Error| Error::Invalid {
                what: format!("{key} of the configuration: {error}"),
            }
        };
        Ok(Self {
            runtime_dir: config.runtime_dir.clone(),
            state_dir: config.state_dir.clone(),
            mount_dir: config.mount_dir.clone(),
            host: config.host.clone(),
            initiator_name: config.initiator_name.clone(),
            ip: config.ip.clone(),
            lanes: config.lanes,
            replacement_timeout: config.replacement_timeout,
            dead_conn_timeout: config.dead_conn_timeout,
            header_digest: config.header_digest,
            data_digest: config.data_digest,
            default_size: config.default_size,
            default_fstype: config
                .default_fstype
                .parse()
                .map_err(of("default_fstype"))?,
            elsewhere: config
                .attached_elsewhere
                .parse()
                .map_err(of("attached_elsewhere"))?,
        })
    }
}
