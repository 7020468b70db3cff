//! Settings: the daemon's TOML file, `OS_*`, clouds.yaml. CONTRACT part:

use std::path::PathBuf;

/// Which cloud, and how to authenticate: made from `OS_*`, clouds.yaml (`OS_CLOUD`) or the file's `[cloud]`.
#[derive(Clone, Debug)]
pub struct CloudConfig {
    _private: (),
}

/// The daemon's settings, with defaults for all; `/etc/cinder-nbd/cinder-nbd.toml` unless told otherwise.
#[derive(Clone, Debug)]
pub struct Config {
    /// Secrets and sockets, on tmpfs, mode 0700. Default `/run/cinder-nbd`.
    pub runtime_dir: PathBuf,
    /// Records that outlive a reboot. Default `/var/lib/cinder-nbd`.
    pub state_dir: PathBuf,
    /// Where volumes are mounted. Default `<state_dir>/mnt`.
    pub mount_dir: PathBuf,
    /// Default `<runtime_dir>/control.sock`.
    pub control_socket: PathBuf,
    /// Default `/run/docker/plugins/cinder.sock`.
    pub docker_socket: PathBuf,
    /// Our name in the connector. Default: the host name.
    pub host: String,
    /// Our IQN. Default `iqn.2026-11.org.cinder-nbd:<host>`.
    pub initiator_name: String,
    /// Address in the connector. Default: that of the route to the cloud, else 127.0.0.1.
    pub ip: Option<String>,
    /// NBD connections (lanes) a volume. Default 1 in this release.
    pub lanes: usize,
    /// GiB when `size` is not given. Default 1.
    pub default_size: u64,
    /// Default `ext4`.
    pub default_fstype: String,
    /// The cloud; `None` when only static targets are used.
    pub cloud: Option<CloudConfig>,
}
