//! The options of `docker volume create -o KEY=VALUE`.
//!
//! Invariant: an option that is not known is an error with the nearest right word. Silently dropped
//! options are how a volume ends up with the wrong size or filesystem.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::config::advice;
use crate::volume::{CreateRequest, Error, SizeGib, parse_mode, parse_subdir};

/// Every option there is, and what it takes.
const OPTIONS: [(&str, &str); 20] = [
    (
        "size",
        "GiB, or with a unit: 10, 512MiB, 2TiB; rounded up to whole GiB",
    ),
    ("type", "Cinder's volume type"),
    ("fstype", "ext4, xfs or btrfs"),
    ("availability_zone", "Cinder's availability zone"),
    ("snapshot_id", "make it from this snapshot"),
    ("source_volid", "make it from this volume"),
    ("image", "make it from this image"),
    ("volume_id", "take this volume, by UUID or name, as it is"),
    (
        "mkfs_opts",
        "for mkfs, when the filesystem is made: -O ^has_journal -m 1",
    ),
    ("mount_opts", "as after mount -o: noatime,discard"),
    ("uid", "owner of the new filesystem's top directory"),
    ("gid", "its group"),
    ("mode", "its permissions, in octal: 0770"),
    (
        "subdir",
        "hand out this directory of the volume; made with the filesystem",
    ),
    ("ro", "attach and mount without the right to write"),
    (
        "scheduler_hints",
        "for Cinder: same_host=UUID,different_host=UUID,...",
    ),
    ("description", "shown by Cinder"),
    (
        "reclaim",
        "retain or delete: what docker volume rm does with the volume in Cinder",
    ),
    (
        "attached_elsewhere",
        "refuse, wait=SECONDS, take or take-without-fence",
    ),
    ("help", "this list"),
];

/// What other drivers call it.
const ALIASES: [(&str, &str); 27] = [
    ("size_gb", "size"),
    ("volumesize", "size"),
    ("volume_type", "type"),
    ("volumetype", "type"),
    ("profile", "type"),
    ("fs", "fstype"),
    ("filesystem", "fstype"),
    ("filesystemtype", "fstype"),
    ("zone", "availability_zone"),
    ("availabilityzone", "availability_zone"),
    ("az", "availability_zone"),
    ("from", "source_volid"),
    ("cloneof", "source_volid"),
    ("clone-from", "source_volid"),
    ("fromsnapshot", "snapshot_id"),
    ("fromsnap", "snapshot_id"),
    ("snapshot", "snapshot_id"),
    ("imageref", "image"),
    ("image_id", "image"),
    ("importvol", "volume_id"),
    ("volumeid", "volume_id"),
    ("volumename", "volume_id"),
    ("o", "mount_opts"),
    ("mountoptions", "mount_opts"),
    ("fsowner", "uid"),
    ("fsmode", "mode"),
    ("delete-on-remove", "reclaim"),
];

/// Reads the options of one call.
pub(super) fn parse(options: &BTreeMap<String, String>) -> Result<CreateRequest, String> {
    if options.contains_key("help") {
        return Err(help());
    }
    let mut request = CreateRequest::default();
    for (key, value) in options {
        set(&mut request, key, value)?;
    }
    request.check().map_err(|error| error.to_string())?;
    Ok(request)
}

fn set(request: &mut CreateRequest, key: &str, value: &str) -> Result<(), String> {
    let text = || Some(value.to_owned());
    let told = |error: Error| format!("option {key}: {error}");
    match key {
        "size" => request.size = Some(size(value).map_err(told)?),
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
        "mkfs_opts" => request.mkfs_options = text(),
        "mount_opts" => request.mount_options = text(),
        "uid" => request.top.uid = Some(id(key, value)?),
        "gid" => request.top.gid = Some(id(key, value)?),
        "mode" => request.top.mode = Some(parse_mode(value).map_err(told)?),
        "subdir" => request.top.subdir = Some(parse_subdir(value).map_err(told)?),
        "scheduler_hints" => request.scheduler_hints = hints(value)?,
        "description" => request.description = text(),
        "multiattach" => {
            return Err(
                "option multiattach: a volume has it from its type; give that as `type`".to_owned(),
            );
        }
        _ => return Err(unknown(key)),
    }
    Ok(())
}

fn unknown(key: &str) -> String {
    let lower = key.to_ascii_lowercase();
    let said_elsewhere = ALIASES.iter().find(|(alias, _)| *alias == lower);
    let advice = match said_elsewhere {
        Some((_, ours)) => format!("here it is `{ours}`"),
        None => advice(key, &OPTIONS.map(|(name, _)| name)),
    };
    format!("unknown option {key:?}: {advice}; -o help lists all")
}

/// The engine shows an error as it is, so the list is one.
fn help() -> String {
    let lines = OPTIONS
        .iter()
        .map(|(name, takes)| format!("  {name}: {takes}"));
    format!(
        "the options of docker volume create -d cinder, each as -o NAME=VALUE:\n{}",
        lines.collect::<Vec<_>>().join("\n")
    )
}

/// Rounded up, which is said.
fn size(value: &str) -> Result<SizeGib, Error> {
    let size: SizeGib = value.parse()?;
    // Of smaller units Cinder knows nothing.
    if value.contains(['k', 'K', 'm', 'M']) {
        tracing::info!(
            asked = value,
            gib = size.get(),
            "Cinder's sizes are whole GiB"
        );
    }
    Ok(size)
}

fn id(key: &str, value: &str) -> Result<u32, String> {
    // The largest means "leave it" to chown(2).
    let id = value.parse().ok().filter(|id| *id < u32::MAX);
    id.ok_or_else(|| format!("option {key}: {value:?} is no numeric id; names are the container's own, so write the number"))
}

/// `same_host=UUID,query=...`
fn hints(value: &str) -> Result<BTreeMap<String, String>, String> {
    const KNOWN: [&str; 4] = ["same_host", "different_host", "local_to_instance", "query"];
    let pair = |pair: &str| {
        let (name, hint) = pair.split_once('=').ok_or_else(|| {
            format!("option scheduler_hints: {pair:?} is no NAME=VALUE; write same_host=UUID, a comma between two")
        })?;
        if !KNOWN.contains(&name) {
            return Err(format!(
                "option scheduler_hints: unknown hint {name:?}: {}",
                advice(name, &KNOWN)
            ));
        }
        Ok((name.to_owned(), hint.to_owned()))
    };
    value.split(',').map(pair).collect()
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
        _ => Err(format!(
            "option ro: {value:?} is neither true nor false; write one of them, or ro alone"
        )),
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
        for (key, _) in OPTIONS {
            let value = match key {
                "size" => "3GiB",
                "fstype" => "xfs",
                "ro" => "",
                "reclaim" => "retain",
                "attached_elsewhere" => "wait=30",
                "uid" | "gid" => "1000",
                "mode" => "0770",
                "mkfs_opts" => "-L data",
                "scheduler_hints" => "same_host=2d3a,different_host=77ab",
                _ => "x",
            };
            assert_eq!(read(&[(key, value)]).is_ok(), key != "help", "{key}");
        }
    }

    #[test]
    fn the_document_has_the_same_list() {
        let document = include_str!("../../docs/docker.md");
        let list = document.split("| option | takes |\n|---|---|\n").nth(1);
        let rows = list.unwrap().lines().take_while(|line| !line.is_empty());
        let ours = OPTIONS.map(|(name, takes)| format!("| `{name}` | {takes} |"));
        assert_eq!(rows.collect::<Vec<_>>(), ours);
    }

    #[test]
    fn what_is_asked_for_arrives() {
        let request = read(&[
            ("uid", "999"),
            ("mode", "0700"),
            ("subdir", "db"),
            ("scheduler_hints", "same_host=2d3a"),
        ])
        .unwrap();
        assert_eq!(
            (request.top.uid, request.top.gid, request.top.mode),
            (Some(999), None, Some(0o700))
        );
        assert_eq!(
            request.top.subdir.as_deref(),
            Some(std::path::Path::new("db"))
        );
        assert_eq!(request.scheduler_hints["same_host"], "2d3a");
    }

    #[test]
    fn help_lists_every_option() {
        let text = read(&[("help", "")]).unwrap_err();
        assert!(
            OPTIONS
                .iter()
                .all(|(name, _)| text.contains(&format!("\n  {name}: "))),
            "{text}"
        );
    }

    #[test]
    fn a_wrong_word_is_answered_with_the_right_one() {
        let error = read(&[("sise", "1")]).unwrap_err();
        assert!(
            error.contains("\"sise\"") && error.contains("`size`"),
            "{error}"
        );
        for (alias, ours) in ALIASES {
            let error = read(&[(alias, "x")]).unwrap_err();
            assert!(error.contains(&format!("`{ours}`")), "{error}");
            assert!(OPTIONS.iter().any(|(name, _)| *name == ours), "{ours}");
        }
        let error = read(&[("fsType", "ext4")]).unwrap_err();
        assert!(error.contains("`fstype`"), "{error}");
        let error = read(&[("multiattach", "true")]).unwrap_err();
        assert!(error.contains("`type`"), "{error}");
    }

    #[test]
    fn wrong_values_name_their_option() {
        for (key, value) in [
            ("size", "big"),
            ("fstype", "zfs"),
            ("ro", "perhaps"),
            ("uid", "postgres"),
            ("gid", "4294967295"),
            ("mode", "rwx"),
            ("subdir", "../etc"),
            ("scheduler_hints", "near=x"),
            ("scheduler_hints", "same_host"),
            ("reclaim", "keep"),
            ("attached_elsewhere", "steal"),
            ("mount_opts", "bind"),
        ] {
            let error = read(&[(key, value)]).unwrap_err();
            assert!(error.contains(key) || error.contains(value), "{error}");
        }
    }
}
