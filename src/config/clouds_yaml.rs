//! clouds.yaml and secure.yaml: found in the places `openstacksdk` looks into, one entry taken out.
//!
//! Source: `openstacksdk`, "Configuring `OpenStack` SDK Applications". The first clouds.yaml wins; the first secure.yaml
//! is laid over it.
//!
//! Does not know vendors' profiles: an entry must carry its own `auth_url`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use iscsi::proto::Secret;
use serde_yaml_ng::Value;

use super::cloud::{Keys, Spelling, warn_if_readable_by_all};
use super::error::printed;
use super::file::one_line;
use super::{Environment, Error, nearest::advice};

/// The keys of the entry `name`.
pub(super) fn load(name: &str, environment: &Environment<'_>) -> Result<Keys, Error> {
    let clouds = locate(
        environment,
        "OS_CLIENT_CONFIG_FILE",
        &["clouds.yaml", "clouds.yml"],
    )?;
    let secure = locate(
        environment,
        "OS_CLIENT_SECURE_FILE",
        &["secure.yaml", "secure.yml"],
    )?;
    let Some(clouds) = clouds else {
        let looked: Vec<String> = directories(environment)
            .iter()
            .map(|path| path.join("clouds.yaml").display().to_string())
            .collect();
        return Err(Error::NoSuchCloud {
            name: printed(name),
            looked: looked.join(", "),
            advice: "write a clouds.yaml in one of these places, or set OS_CLIENT_CONFIG_FILE"
                .to_owned(),
        });
    };
    let mut keys = entry(name, &clouds, &text_of(&clouds)?)?;
    if keys.has_secret() {
        warn_if_readable_by_all(&clouds);
    }
    if let Some(secure) = secure
        && let Some(entry) = parse(&secure, &text_of(&secure)?)?.get(name)
    {
        flatten(entry, &mut keys.values);
        warn_if_readable_by_all(&secure);
    }
    Ok(keys)
}

/// The keys of the entry `name` in the text of a clouds.yaml.
pub(super) fn entry(name: &str, path: &Path, text: &str) -> Result<Keys, Error> {
    let mut values = BTreeMap::new();
    let entries = parse(path, text)?;
    let Some(entry) = entries.get(name) else {
        let known = entries.keys().filter_map(Value::as_str).map(printed);
        let known: Vec<String> = known.collect();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let advice = if known.is_empty() {
            "the file has no entry under `clouds`: write one".to_owned()
        } else {
            advice(name, &known)
        };
        return Err(Error::NoSuchCloud {
            name: printed(name),
            looked: path.display().to_string(),
            advice,
        });
    };
    flatten(entry, &mut values);
    Ok(Keys {
        place: format!("cloud `{}` in {}", printed(name), path.display()),
        spelling: Spelling::Key,
        values,
    })
}

/// The file the variable names, which must be there, or the first of the places that has one.
fn locate(
    environment: &Environment<'_>,
    variable: &str,
    names: &[&str],
) -> Result<Option<PathBuf>, Error> {
    if let Some(path) = environment.get(variable) {
        let path = PathBuf::from(path);
        if path.exists() {
            return Ok(Some(path));
        }
        let cause = format!("{variable} names it, but it is not there");
        return Err(Error::Read { path, cause });
    }
    Ok(directories(environment)
        .iter()
        .flat_map(|directory| names.iter().map(|name| directory.join(name)))
        .find(|path| path.is_file()))
}

fn directories(environment: &Environment<'_>) -> Vec<PathBuf> {
    let user = environment
        .get("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| {
            environment
                .get("HOME")
                .map(|home| Path::new(&home).join(".config"))
        });
    environment
        .current_dir
        .iter()
        .cloned()
        .chain(user.map(|path| path.join("openstack")))
        .chain([PathBuf::from("/etc/openstack")])
        .collect()
}

fn text_of(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|error| Error::Read {
        path: path.to_owned(),
        cause: error.to_string(),
    })
}

/// The mapping under `clouds`.
fn parse(path: &Path, text: &str) -> Result<serde_yaml_ng::Mapping, Error> {
    let document: Value = serde_yaml_ng::from_str(text).map_err(|error| Error::Syntax {
        path: path.to_owned(),
        line: error.location().map(|at| at.line()),
        cause: one_line(&error.to_string()),
    })?;
    match document.get("clouds") {
        Some(Value::Mapping(clouds)) => Ok(clouds.clone()),
        Some(_) | None => Err(Error::Syntax {
            path: path.to_owned(),
            line: None,
            cause: "there is no mapping `clouds` in it".to_owned(),
        }),
    }
}

/// The entry's own values and those under `auth`; what is neither text, number nor switch belongs to other programs.
fn flatten(entry: &Value, values: &mut BTreeMap<String, Secret>) {
    let Some(entry) = entry.as_mapping() else {
        return;
    };
    for (key, value) in entry {
        let Some(key) = key.as_str() else { continue };
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Bool(flag) => flag.to_string(),
            Value::Number(number) => number.to_string(),
            Value::Mapping(_) if key == "auth" => {
                flatten(value, values);
                continue;
            }
            Value::Null | Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => continue,
        };
        // The volume service's older names of the same key.
        let key = match key {
            "volume_endpoint_override" | "volumev3_endpoint_override" => {
                "block_storage_endpoint_override"
            }
            "endpoint_type" => "interface",
            other => other,
        };
        values.insert(key.to_owned(), Secret::new(text));
    }
}
