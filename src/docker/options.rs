//! The options of `docker volume create -o KEY=VALUE`.
//!
//! Invariant: an option that is not known is an error with the nearest right word. Silently dropped
//! options are how a volume ends up with the wrong size or filesystem.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::config::advice;
use crate::volume::{CreateRequest, Error};

/// Every option there is.
const KNOWN: [&str; 13] = [
    "size",
    "type",
    "fstype",
    "availability_zone",
    "snapshot_id",
    "source_volid",
    "image",
    "volume_id",
    "mount_opts",
    "description",
    "ro",
    "reclaim",
    "attached_elsewhere",
];

/// Reads the options of one call.
pub(super) fn parse(options: &BTreeMap<String, String>) -> Result<CreateRequest, String> {
    let mut request = CreateRequest::default();
    for (key, value) in options {
        let text = || Some(value.clone());
        match key.as_str() {
            "size" => request.size = Some(parsed(key, value)?),
            "fstype" => request.fstype = Some(parsed(key, value)?),
            "ro" => request.read_only = flag(value)?,
            "reclaim" => request.reclaim = Some(parsed(key, value)?),
            "attached_elsewhere" => request.elsewhere = Some(parsed(key, value)?),
            "type" => request.volume_type = text(),
            "availability_zone" => request.availability_zone = text(),
            "snapshot_id" => request.snapshot_id = text(),
            "source_volid" => request.source_volid = text(),
            "image" => request.image = text(),
            "volume_id" => request.volume_id = text(),
            "mount_opts" => request.mount_options = text(),
            "description" => request.description = text(),
            _ => return Err(format!("unknown option {key:?}: {}", advice(key, &KNOWN))),
        }
    }
    request.check().map_err(|error| error.to_string())?;
    Ok(request)
}

fn parsed<T: FromStr<Err = Error>>(key: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|error| format!("option {key}: {error}"))
}

/// `-o ro` arrives as an empty value.
fn flag(value: &str) -> Result<bool, String> {
    match value {
        "" | "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err(format!("option ro: {value:?} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<CreateRequest, String> {
        parse(
            &pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn every_known_option_is_taken() {
        for key in KNOWN {
            let value = match key {
                "size" => "3GiB",
                "fstype" => "ext4",
                "ro" => "",
                "reclaim" => "retain",
                "attached_elsewhere" => "wait=30",
                _ => "x",
            };
            assert!(read(&[(key, value)]).is_ok(), "{key}");
        }
    }

    #[test]
    fn a_wrong_word_is_answered_with_the_right_one() {
        let error = read(&[("sise", "1")]).unwrap_err();
        assert!(
            error.contains("\"sise\"") && error.contains("`size`"),
            "{error}"
        );
        let error = read(&[("fsType", "ext4")]).unwrap_err();
        assert!(error.contains("`fstype`"), "{error}");
    }

    #[test]
    fn wrong_values_name_their_option() {
        for (key, value) in [
            ("size", "big"),
            ("fstype", "xfs"),
            ("ro", "perhaps"),
            ("reclaim", "keep"),
            ("attached_elsewhere", "steal"),
            ("mount_opts", "bind"),
        ] {
            let error = read(&[(key, value)]).unwrap_err();
            assert!(error.contains(key) || error.contains(value), "{error}");
        }
    }
}
