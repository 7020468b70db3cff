//! Settings: the daemon's TOML file, `OS_*`, clouds.yaml.
//!
//! Source: `docs/configuration.md` is the user's view; names of the cloud's keys are those of `openstacksdk`.
//!
//! Invariants:
//! 1. All settings are read and checked once, here; what exists as a `Config` is usable.
//! 2. Credentials come from one place only, never mixed: `OS_CLOUD`, else `OS_AUTH_URL` and kin, else the file's `[cloud]`.
//! 3. Secrets are `Secret`s from the moment they are read.
//!
//! Does not talk to any cloud: that is `cinder`.

mod cloud;
mod clouds_yaml;
mod error;
mod file;
mod nearest;
#[doc(hidden)]
pub mod rehearsal;

use std::path::{Path, PathBuf};
use std::time::Duration;

use iscsi::proto::DigestPolicy;
use iscsi::proto::recovery::ReplacementTimeout;

pub use cloud::{Auth, ClientCertificate, CloudConfig, Domain, Interface, Project, Tls, User};
pub use error::Error;
pub use nearest::{advice, nearest};

/// Where the file is when no other is named; it may be absent.
pub const DEFAULT_PATH: &str = "/etc/cinder-nbd/cinder-nbd.toml";

/// The daemon's settings, with defaults for all; `/etc/cinder-nbd/cinder-nbd.toml` unless told otherwise.
#[derive(Clone, Debug)]
pub struct Config {
    /// Secrets and sockets, on tmpfs, mode 0700. Default `/run/cinder-nbd`, or `/run/cinder-nbd-<driver>` where the file names
    /// a `driver`; so with the others.
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
    /// Address in the connector. Default: that of the route to the cloud (`Cinder::local_ip`), else 127.0.0.1.
    pub ip: Option<String>,
    /// NBD connections (lanes) a volume. Default one for each core, at most 4.
    pub lanes: usize,
    /// How long I/O waits for a target that is away before it fails. Default 120 s.
    pub replacement_timeout: ReplacementTimeout,
    /// How long the kernel holds the I/O of a device whose daemon is gone before it fails. Default 600 s.
    pub dead_conn_timeout: Duration,
    /// CRC32C behind each iSCSI header. Default none.
    pub header_digest: DigestPolicy,
    /// CRC32C behind all iSCSI data. Default none.
    pub data_digest: DigestPolicy,
    /// Whether lanes look for what is due within microseconds before they sleep. Default true.
    pub busy_poll: bool,
    /// GiB when `size` is not given. Default 1.
    pub default_size: u64,
    /// Default `ext4`.
    pub default_fstype: String,
    /// When a volume is attached elsewhere: refuse, wait=SECONDS, take or take-without-fence. Default refuse.
    pub attached_elsewhere: String,
    /// The cloud; `None` when only static targets are used.
    pub cloud: Option<CloudConfig>,
}

impl Config {
    /// Reads the file and the cloud's settings.
    ///
    /// # Errors
    /// A file that was named and is not there, unknown keys, values out of range, half a set of credentials.
    pub fn load(path: Option<&Path>) -> Result<Self, Error> {
        Self::load_from(path, &Environment::of_process())
    }

    /// As `load`, without looking for a cloud: for the verbs that need none, so that half a set of `OS_*`
    /// variables in the shell does not stand in the way of a static target.
    ///
    /// # Errors
    /// As `load`, but for the cloud.
    pub fn load_local(path: Option<&Path>) -> Result<Self, Error> {
        Ok(Self::read_file(path)?.0)
    }

    fn load_from(path: Option<&Path>, environment: &Environment<'_>) -> Result<Self, Error> {
        let (mut config, section) = Self::read_file(path)?;
        config.cloud = cloud::find(environment, section.as_ref())?;
        Ok(config)
    }

    fn read_file(path: Option<&Path>) -> Result<(Self, Option<file::CloudSection>), Error> {
        match path {
            Some(path) => file::read(path),
            None if Path::new(DEFAULT_PATH).exists() => file::read(Path::new(DEFAULT_PATH)),
            None => file::parse(Path::new(DEFAULT_PATH), ""),
        }
    }
}

/// What of the process decides: variables and the current directory. A value, so that tests need not change their process.
struct Environment<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    current_dir: Option<PathBuf>,
}

impl Environment<'static> {
    fn of_process() -> Self {
        Self {
            variable: &|name| std::env::var(name).ok(),
            current_dir: std::env::current_dir().ok(),
        }
    }
}

impl Environment<'_> {
    /// The variable, unless unset or empty: openrc files set empty ones.
    fn get(&self, name: &str) -> Option<String> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests;
