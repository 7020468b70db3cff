//! `docs/errors.md`, the section of this room: each of its lines happens, and each kind of error has its line.

use support::errors::Section;

use super::*;

/// A name for each kind: one that is new does not compile here until it has one.
fn kind(error: &Error) -> &'static str {
    match error {
        Error::Read { .. } => "Read",
        Error::Syntax { .. } => "Syntax",
        Error::UnknownKey { .. } => "UnknownKey",
        Error::Value { .. } => "Value",
        Error::Missing { .. } => "Missing",
        Error::NoSuchCloud { .. } => "NoSuchCloud",
    }
}

const KINDS: usize = 6;

/// What is wrong with the daemon's own keys.
fn of_file() -> Vec<Error> {
    let shell = Shell::new(&[]);
    let wrong = |text: &str| shell.cloud(text).unwrap_err();
    let mut errors = vec![
        Config::load_local(Some(Path::new("/nonexistent/x.toml"))).unwrap_err(),
        wrong("lanes = 'two'"),
        wrong("lane = 2"),
        wrong("compression = 'zstd'"),
    ];
    let values = [
        "driver = 'A'",
        "runtime_dir = 'r'",
        "lanes = 0",
        "header_digest = 'CRC32C'",
        "replacement_timeout = 'soon'",
        "dead_conn_timeout = 0",
        "default_size = 0",
        "ip = 'example.org'",
        "host = 'a b'",
        "initiator_name = 'me'",
    ];
    errors.extend(values.map(wrong));
    errors
}

/// What is wrong with the cloud's keys, wherever they stand.
fn of_cloud() -> Vec<Error> {
    let shell = Shell::new(&[]);
    let base = "[cloud]\nauth_url = 'https://k'\ntoken = 't'\n";
    let lines = [
        "auth-url = 'x'",
        "region_name = ['x']",
        "interface = 'outside'",
        "auth_type = 'v3totp'",
        "insecure = 'perhaps'",
        "api_timeout = 0",
        "block_storage_endpoint_override = 'cinder:8776'",
    ];
    let errors = lines.map(|line| shell.cloud(&format!("{base}{line}")).unwrap_err());
    let absent = ["OS_USERNAME", "OS_PASSWORD", "OS_PROJECT_NAME"];
    let absent = absent.map(|name| without(name).cloud("").unwrap_err());
    errors.into_iter().chain(absent).collect()
}

/// What is wrong with clouds.yaml.
fn of_clouds_yaml() -> Vec<Error> {
    let shell = Shell::new(&[("OS_CLOUD", "prodd")]);
    let mut errors = vec![shell.cloud("").unwrap_err()];
    for text in [
        "clouds:\n  prod: {}\n",
        "clouds:\n  lab: {}\n",
        "clouds: {}\n",
        "cloud: {}\n",
        "clouds: [\n  x: {\n",
    ] {
        shell.write("clouds.yaml", text);
        errors.push(shell.cloud("").unwrap_err());
    }
    let named = ("OS_CLIENT_CONFIG_FILE", "/nonexistent/c.yaml");
    let shell = Shell::new(&[("OS_CLOUD", "x"), named]);
    errors.push(shell.cloud("").unwrap_err());
    errors
}

#[test]
fn every_error_of_the_settings_happens_and_stands_in_the_document() {
    let mut errors = of_file();
    errors.extend(of_cloud());
    errors.extend(of_clouds_yaml());
    let kinds: std::collections::BTreeSet<_> = errors.iter().map(kind).collect();
    assert_eq!(kinds.len(), KINDS, "not all kinds happened: {kinds:?}");
    let texts: Vec<String> = errors.iter().map(Error::to_string).collect();
    Section::read("Configuration").assert_is_of(&texts);
}
