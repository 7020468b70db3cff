//! Settings: the daemon's TOML file, or, behind a byte with its lowest bit set, a clouds.yaml.
//!
//! Invariants, beside those of `lib`:
//! 1. An error is one line.
//! 2. What exists as settings is complete and in range.

use cinder_nbd::config::{Auth, CloudConfig, Config, Error, rehearsal};

/// Reads them.
pub fn settings(data: &[u8]) {
    let Some((kind, text)) = data.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    if kind & 1 == 0 {
        match rehearsal::file(text) {
            Ok(config) => check_config(&config),
            Err(error) => check_error(&error),
        }
    } else {
        match rehearsal::clouds_yaml("shop", text) {
            Ok(cloud) => check_cloud(&cloud),
            Err(error) => check_error(&error),
        }
    }
}

fn check_config(config: &Config) {
    let paths = [
        &config.runtime_dir,
        &config.state_dir,
        &config.mount_dir,
        &config.control_socket,
        &config.docker_socket,
    ];
    assert!(paths.iter().all(|path| path.is_absolute()));
    assert!((1..=64).contains(&config.lanes) && config.default_size > 0);
    assert!(!config.host.is_empty() && !config.host.contains(char::is_whitespace));
    if let Some(cloud) = &config.cloud {
        check_cloud(cloud);
    }
}

fn check_cloud(cloud: &CloudConfig) {
    let is_without_keystone = matches!(cloud.auth, Auth::None { .. });
    assert!(is_without_keystone || cloud.auth_url.starts_with("http"));
    assert!(!is_without_keystone || cloud.endpoint_override.is_some());
    assert!((1..=3600).contains(&cloud.request_timeout.as_secs()));
}

fn check_error(error: &Error) {
    let line = error.to_string();
    assert!(
        !line.is_empty() && !line.chars().any(char::is_control),
        "{line:?}"
    );
}
