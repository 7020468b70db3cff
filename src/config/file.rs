//! The daemon's TOML file: keys, defaults, and refusal of what is not a key.
//!
//! Read before changing: `docs/configuration.md` lists the same keys.

use std::path::{Path, PathBuf};
use std::time::Duration;

use iscsi::proto::DigestPolicy;
use iscsi::proto::recovery::{RecoveryPolicy, ReplacementTimeout};
use serde::Deserialize;

use super::error::printed;
use super::{Config, Error, nearest::advice};

/// The keys of the file, for suggestions. `RawFile` refuses what is not in it, a test holds both together.
const KEYS: &[&str] = &[
    "runtime_dir",
    "state_dir",
    "mount_dir",
    "control_socket",
    "docker_socket",
    "host",
    "initiator_name",
    "ip",
    "lanes",
    "replacement_timeout",
    "dead_conn_timeout",
    "header_digest",
    "data_digest",
    "default_size",
    "default_fstype",
    "attached_elsewhere",
    "busy_poll",
    "cloud",
];

/// Lanes share the target's sessions and the kernel's hardware queues; chosen freely, any value above the cores of a host works.
const LANES_MAX: usize = 64;
/// Lanes of a volume whose file says nothing: each costs a thread and a session at the target.
const LANES_DEFAULT_MAX: usize = 4;

/// Long enough for a package upgrade that goes wrong at first, short enough that a host whose daemon never comes back
/// gets errors instead of a hang for ever; chosen freely.
const DEAD_CONN_TIMEOUT_S: u64 = 600;

/// A week, as for `replacement_timeout`.
const DEAD_CONN_TIMEOUT_MAX_S: u64 = 604_800;

/// Cinder keeps sizes as a 32-bit number of GiB.
const SIZE_MAX: u64 = i32::MAX as u64;

/// The file's `[cloud]`: keys as in clouds.yaml, `auth` flattened or as a table; checked by `cloud`.
pub(super) struct CloudSection {
    pub(super) path: PathBuf,
    pub(super) table: toml::Table,
}

/// Reads a file that must be there.
pub(super) fn read(path: &Path) -> Result<(Config, Option<CloudSection>), Error> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::Read {
        path: path.to_owned(),
        cause: error.to_string(),
    })?;
    parse(path, &text)
}

/// Settings from the file's text; empty text gives the defaults.
pub(super) fn parse(path: &Path, text: &str) -> Result<(Config, Option<CloudSection>), Error> {
    let table: toml::Table = text.parse().map_err(|error| syntax(path, text, &error))?;
    if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(Error::UnknownKey {
            path: path.to_owned(),
            line: line_of_key(text, key),
            key: printed(key),
            advice: advice(key, KEYS),
        });
    }
    let raw: RawFile = toml::from_str(text).map_err(|error| syntax(path, text, &error))?;
    raw.into_config(path)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    runtime_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    mount_dir: Option<PathBuf>,
    control_socket: Option<PathBuf>,
    docker_socket: Option<PathBuf>,
    host: Option<String>,
    initiator_name: Option<String>,
    ip: Option<String>,
    lanes: Option<usize>,
    replacement_timeout: Option<toml::Value>,
    dead_conn_timeout: Option<u64>,
    header_digest: Option<String>,
    data_digest: Option<String>,
    default_size: Option<u64>,
    default_fstype: Option<String>,
    attached_elsewhere: Option<String>,
    busy_poll: Option<bool>,
    cloud: Option<toml::Table>,
}

impl RawFile {
    fn into_config(self, path: &Path) -> Result<(Config, Option<CloudSection>), Error> {
        self.check(path)?;
        let host = self.host.unwrap_or_else(host_name);
        let runtime_dir = self.runtime_dir.unwrap_or_else(|| "/run/cinder-nbd".into());
        let state_dir = self
            .state_dir
            .unwrap_or_else(|| "/var/lib/cinder-nbd".into());
        let config = Config {
            mount_dir: self.mount_dir.unwrap_or_else(|| state_dir.join("mnt")),
            control_socket: self
                .control_socket
                .unwrap_or_else(|| runtime_dir.join("control.sock")),
            docker_socket: self
                .docker_socket
                .unwrap_or_else(|| "/run/docker/plugins/cinder.sock".into()),
            runtime_dir,
            state_dir,
            initiator_name: self
                .initiator_name
                .unwrap_or_else(|| default_initiator_name(&host)),
            host,
            ip: self.ip,
            lanes: self.lanes.unwrap_or_else(default_lanes),
            replacement_timeout: self
                .replacement_timeout
                .as_ref()
                .and_then(replacement_timeout)
                .unwrap_or_else(|| RecoveryPolicy::default().replacement_timeout),
            dead_conn_timeout: Duration::from_secs(
                self.dead_conn_timeout.unwrap_or(DEAD_CONN_TIMEOUT_S),
            ),
            header_digest: digest(self.header_digest.as_ref()).unwrap_or_default(),
            data_digest: digest(self.data_digest.as_ref()).unwrap_or_default(),
            default_size: self.default_size.unwrap_or(1),
            default_fstype: self.default_fstype.unwrap_or_else(|| "ext4".to_owned()),
            busy_poll: self.busy_poll.unwrap_or(true),
            attached_elsewhere: self
                .attached_elsewhere
                .unwrap_or_else(|| "refuse".to_owned()),
            cloud: None,
        };
        let section = self.cloud.map(|table| CloudSection {
            path: path.to_owned(),
            table,
        });
        Ok((config, section))
    }

    /// Every value that is given must be of use; the first that is not is named.
    fn check(&self, path: &Path) -> Result<(), Error> {
        let is_relative =
            |path: &Option<PathBuf>| path.as_ref().is_some_and(|path| !path.is_absolute());
        let is_host =
            |host: &String| (1..=255).contains(&host.len()) && !host.contains(char::is_whitespace);
        let is_beyond =
            |value: Option<u64>, max| value.is_some_and(|value| !(1..=max).contains(&value));
        let absolute = "must be an absolute path, beginning with /";
        let is_no_policy =
            |policy: &Option<String>| policy.is_some() && digest(policy.as_ref()).is_none();
        let policy = "must be none, prefer or require";
        let rules: [(&str, bool, &str); 14] = [
            ("runtime_dir", is_relative(&self.runtime_dir), absolute),
            ("state_dir", is_relative(&self.state_dir), absolute),
            ("mount_dir", is_relative(&self.mount_dir), absolute),
            (
                "control_socket",
                is_relative(&self.control_socket),
                absolute,
            ),
            ("docker_socket", is_relative(&self.docker_socket), absolute),
            (
                "lanes",
                self.lanes
                    .is_some_and(|lanes| !(1..=LANES_MAX).contains(&lanes)),
                "must be 1 to 64",
            ),
            ("header_digest", is_no_policy(&self.header_digest), policy),
            ("data_digest", is_no_policy(&self.data_digest), policy),
            (
                "replacement_timeout",
                self.replacement_timeout
                    .as_ref()
                    .is_some_and(|value| replacement_timeout(value).is_none()),
                "must be a number of seconds up to 604800, 0 to fail at once, or \"never\"",
            ),
            (
                "dead_conn_timeout",
                is_beyond(self.dead_conn_timeout, DEAD_CONN_TIMEOUT_MAX_S),
                "must be a number of seconds from 1 to 604800",
            ),
            (
                "default_size",
                is_beyond(self.default_size, SIZE_MAX),
                "must be a number of GiB, at least 1",
            ),
            (
                "ip",
                self.ip
                    .as_ref()
                    .is_some_and(|ip| ip.parse::<std::net::IpAddr>().is_err()),
                "must be an IPv4 or IPv6 address of this host",
            ),
            (
                "host",
                self.host.as_ref().is_some_and(|host| !is_host(host)),
                "must be 1 to 255 characters without spaces",
            ),
            (
                "initiator_name",
                self.initiator_name
                    .as_ref()
                    .is_some_and(|name| !is_iscsi_name(name)),
                "must be an iSCSI name: iqn.YYYY-MM.reversed.domain:name, eui. or naa.",
            ),
        ];
        match rules.iter().find(|(_, is_wrong, _)| *is_wrong) {
            Some((key, _, problem)) => Err(wrong_value(path, key, problem)),
            None => Ok(()),
        }
    }
}

fn wrong_value(path: &Path, key: &str, problem: &str) -> Error {
    Error::Value {
        place: path.display().to_string(),
        key: key.to_owned(),
        problem: problem.to_owned(),
    }
}

/// A number of seconds, or a word.
fn replacement_timeout(value: &toml::Value) -> Option<ReplacementTimeout> {
    match value {
        toml::Value::Integer(seconds) => seconds.to_string().parse().ok(),
        toml::Value::String(text) => text.parse().ok(),
        toml::Value::Float(_)
        | toml::Value::Boolean(_)
        | toml::Value::Datetime(_)
        | toml::Value::Array(_)
        | toml::Value::Table(_) => None,
    }
}

fn is_iscsi_name(name: &str) -> bool {
    let mut kinds = ["iqn.", "eui.", "naa."].iter();
    kinds.any(|kind| name.starts_with(kind))
}

fn digest(policy: Option<&String>) -> Option<DigestPolicy> {
    policy?.parse().ok()
}

/// A lane is a thread: more than there are cores gain nothing.
fn default_lanes() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.min(LANES_DEFAULT_MAX)
}

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// RFC 3722: an iSCSI name holds lower-case letters, digits, `-`, `.` and `:`; a host name may hold others.
fn default_initiator_name(host: &str) -> String {
    let host: String = host
        .to_lowercase()
        .chars()
        .map(|c| {
            if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' {
                c
            } else {
                '-'
            }
        })
        .collect();
    // RFC 7143 §4.2.7.1: at most 223 bytes in all.
    let host: String = host.chars().take(190).collect();
    format!("iqn.2026-11.org.cinder-nbd:{host}")
}

fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map(|span| {
        let start = span.start.min(text.len());
        text.bytes()
            .take(start)
            .filter(|byte| *byte == b'\n')
            .count()
            + 1
    });
    Error::Syntax {
        path: path.to_owned(),
        line,
        cause: one_line(error.message()),
    }
}

/// A parser's message on one line.
pub(super) fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The first line on which the key is given a value or opens a table.
fn line_of_key(text: &str, key: &str) -> Option<usize> {
    text.lines()
        .position(|line| {
            let line = line.trim_start().trim_start_matches(['[', '"', '\'']);
            line.strip_prefix(key).is_some_and(|rest| {
                rest.trim_start_matches(['"', '\'', ' ', '\t'])
                    .starts_with(['=', ']', '.'])
            })
        })
        .map(|index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Config, Error> {
        parse(Path::new("/etc/x.toml"), text).map(|(config, _)| config)
    }

    #[test]
    fn nothing_gives_the_documented_defaults() {
        let config = parse_text("").unwrap();
        assert_eq!(config.runtime_dir, Path::new("/run/cinder-nbd"));
        assert_eq!(config.state_dir, Path::new("/var/lib/cinder-nbd"));
        assert_eq!(config.mount_dir, Path::new("/var/lib/cinder-nbd/mnt"));
        assert_eq!(
            config.control_socket,
            Path::new("/run/cinder-nbd/control.sock")
        );
        assert_eq!(
            config.docker_socket,
            Path::new("/run/docker/plugins/cinder.sock")
        );
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        assert_eq!((config.lanes, config.default_size), (cores.min(4), 1));
        assert_eq!(config.replacement_timeout.to_string(), "120");
        assert_eq!(config.dead_conn_timeout, Duration::from_mins(10));
        let patient = parse_text("replacement_timeout = 'never'").unwrap();
        assert_eq!(patient.replacement_timeout, ReplacementTimeout::Never);
        assert_eq!(config.default_fstype, "ext4");
        assert!(
            config
                .initiator_name
                .starts_with("iqn.2026-11.org.cinder-nbd:")
        );
    }

    #[test]
    fn derived_paths_follow_their_parents() {
        let config = parse_text("state_dir = '/srv/s'\nruntime_dir = '/srv/r'").unwrap();
        assert_eq!(config.mount_dir, Path::new("/srv/s/mnt"));
        assert_eq!(config.control_socket, Path::new("/srv/r/control.sock"));
    }

    #[test]
    fn every_listed_key_is_a_field_and_the_reverse() {
        for key in KEYS {
            let text = match *key {
                "lanes" | "default_size" | "replacement_timeout" | "dead_conn_timeout" => {
                    format!("{key} = 1")
                }
                "header_digest" | "data_digest" => format!("{key} = 'prefer'"),
                "cloud" => "[cloud]".to_owned(),
                "busy_poll" => "busy_poll = false".to_owned(),
                "ip" => "ip = '10.0.0.1'".to_owned(),
                "initiator_name" => "initiator_name = 'iqn.2026-11.org.x:y'".to_owned(),
                _ => format!("{key} = '/x'"),
            };
            parse_text(&text).unwrap();
        }
    }

    #[test]
    fn unknown_key_names_line_and_the_right_word() {
        let error = parse_text("lanes = 1\n\nstate-dir = '/x'").unwrap_err();
        assert_eq!(
            error.to_string(),
            "/etc/x.toml line 3: unknown key `state-dir`; did you mean `state_dir`?"
        );
        let error = parse_text("[clouds]\nname = 'x'").unwrap_err();
        assert_eq!(
            error.to_string(),
            "/etc/x.toml line 1: unknown key `clouds`; did you mean `cloud`?"
        );
    }

    #[test]
    fn broken_toml_and_wrong_types_name_the_line_on_one_line() {
        let error = parse_text("lanes = 1\nhost = ").unwrap_err().to_string();
        assert!(error.starts_with("/etc/x.toml line 2: "), "{error}");
        assert!(!error.contains('\n'), "{error}");
        let error = parse_text("\nlanes = 'two'").unwrap_err().to_string();
        assert!(error.starts_with("/etc/x.toml line 2: "), "{error}");
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        for (text, key) in [
            ("lanes = 0", "lanes"),
            ("lanes = 65", "lanes"),
            ("default_size = 0", "default_size"),
            ("data_digest = 'CRC32C'", "data_digest"),
            ("replacement_timeout = -1", "replacement_timeout"),
            ("replacement_timeout = 'soon'", "replacement_timeout"),
            ("dead_conn_timeout = 0", "dead_conn_timeout"),
            ("dead_conn_timeout = 604801", "dead_conn_timeout"),
            ("state_dir = 'relative'", "state_dir"),
            ("ip = 'example.org'", "ip"),
            ("host = 'a b'", "host"),
            ("initiator_name = 'my-host'", "initiator_name"),
        ] {
            let error = parse_text(text).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("/etc/x.toml: {key} must be")),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn initiator_name_holds_only_what_the_standard_allows() {
        // RFC 3722: lower case, no underscore.
        assert_eq!(
            default_initiator_name("Web_01.Example"),
            "iqn.2026-11.org.cinder-nbd:web-01.example"
        );
        assert!(default_initiator_name(&"x".repeat(300)).len() <= 223);
    }

    #[test]
    fn an_absent_file_that_was_named_is_an_error() {
        let error = Config::load_local(Some(Path::new("/nonexistent/x.toml")))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("cannot read /nonexistent/x.toml: "),
            "{error}"
        );
    }
}
