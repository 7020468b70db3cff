//! Settings out of text, without files and environment: for `fuzz/`, which reaches what is public only. No part of the
//! daemon uses it.

use std::path::Path;

use super::{CloudConfig, Config, Environment, Error, cloud, clouds_yaml, file};

/// The daemon's file, with its `[cloud]`.
///
/// # Errors
/// As `Config::load`.
pub fn file(text: &str) -> Result<Config, Error> {
    let (mut config, section) = file::parse(Path::new("config.toml"), text)?;
    let environment = Environment {
        variable: &|_| None,
        current_dir: None,
    };
    config.cloud = cloud::find(&environment, section.as_ref())?;
    Ok(config)
}

/// The entry `name` of a clouds.yaml.
///
/// # Errors
/// As `Config::load`.
pub fn clouds_yaml(name: &str, text: &str) -> Result<CloudConfig, Error> {
    clouds_yaml::entry(name, Path::new("clouds.yaml"), text)?.cloud()
}
