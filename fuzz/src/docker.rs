//! A call of Docker's engine: a line with its path, then its body.
//!
//! Invariants, beside those of `lib`:
//! 1. A call that is refused is told so in one line and in JSON that says just that.
//! 2. What is understood is harmless: a name needs no escaping, a size is not below what was asked for, a directory
//!    stays beneath the volume's top.

use std::collections::BTreeMap;
use std::path::Component;

use cinder_nbd::docker::rehearsal::{Asked, call, refusal};
use cinder_nbd::volume::{CreateRequest, Fstype, MkfsOptions, VolumeName};
use serde_json::Value;

/// Takes the call apart and looks at what it asks.
pub fn docker_request(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n');
    let (path, body) = data.split_at(end.unwrap_or(data.len()));
    let body = body.get(1..).unwrap_or_default();
    let Ok(path) = std::str::from_utf8(path) else {
        return;
    };
    match call(path, body) {
        None | Some(Ok(Asked::Nothing)) => {}
        Some(Ok(Asked::Of(name) | Asked::Mount(name, _))) => check_name(&name),
        Some(Ok(Asked::Create(name, request))) => {
            check_name(&name);
            check_request(&request, &options_of(body));
        }
        Some(Err(reason)) => check_refusal(&reason, body),
    }
}

fn check_name(name: &str) {
    match name.parse::<VolumeName>() {
        Ok(parsed) => {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
            assert!(parsed.as_str() == name && name.chars().all(is_plain));
            assert!(name.len() <= 128 && !name.starts_with(['.', '-']));
        }
        Err(error) => check_line(&error.to_string(), name.len()),
    }
}

fn check_request(request: &CreateRequest, options: &BTreeMap<String, String>) {
    if let (Some(size), Some(asked)) = (request.size, options.get("size")) {
        let asked = bytes_of(asked).expect("a size that is understood is a number and a unit");
        let given = u128::from(size.get()) << 30;
        assert!(asked <= given && given - asked < 1 << 30, "{asked} {given}");
    }
    let sources = [
        &request.snapshot_id,
        &request.source_volid,
        &request.image,
        &request.volume_id,
    ];
    assert!(sources.iter().filter(|source| source.is_some()).count() <= 1);
    assert!(request.top.mode.is_none_or(|mode| mode <= 0o7777));
    assert!(request.top.uid != Some(u32::MAX) && request.top.gid != Some(u32::MAX));
    if let Some(subdir) = &request.top.subdir {
        let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        assert!(subdir.components().count() > 0 && subdir.components().all(is_plain));
    }
    // What system calls and programs are told ends at no zero byte.
    let subdir = request.top.subdir.as_ref().and_then(|path| path.to_str());
    let told = [request.mount_options.as_deref(), subdir];
    assert!(!told.iter().flatten().any(|text| text.contains('\0')));
    let asked = request.mkfs_options.as_ref().map_or(0, String::len);
    for fstype in Fstype::ALL {
        match request.mkfs_options(fstype) {
            Ok(options) => check_mkfs(&options),
            Err(error) => check_line(&error.to_string(), asked),
        }
    }
}

/// Flags and values in turn: none is a file, none has a value that looks like a flag.
fn check_mkfs(options: &MkfsOptions) {
    for pair in options.words().chunks(2) {
        assert!(pair.len() == 2 && pair[0].starts_with('-') && !pair[1].starts_with('-'));
        assert!(!pair[1].contains(['/', ' ', '\0']));
    }
}

fn check_refusal(reason: &str, body: &[u8]) {
    let options = options_of(body);
    if reason.starts_with("the options of docker volume create") {
        assert!(reason.lines().count() > 10, "{reason}");
    } else {
        check_line(reason, body.len());
    }
    let answer: Value = serde_json::from_slice(&refusal(reason.to_owned())).expect("JSON");
    assert_eq!(answer, serde_json::json!({ "Err": reason }));
    // The only option, and a slip of the pen: its advice is the right word.
    // A member that is there twice is refused before its options are looked at.
    if options.len() == 1
        && !reason.starts_with("the call is not understood")
        && let Some((slip, right)) = SLIPS.iter().find(|(slip, _)| options.contains_key(*slip))
    {
        assert!(
            reason.contains(&format!("`{right}`")),
            "{slip} is not answered with {right}: {reason}"
        );
    }
}

/// One line, and no longer than what was sent gives reason for: `{:?}` writes a byte as up to eight.
fn check_line(text: &str, sent: usize) {
    assert!(
        !text.is_empty() && !text.chars().any(char::is_control),
        "{text:?}"
    );
    assert!(text.len() <= 8 * sent + 1024, "{} of {sent}", text.len());
}

/// The options as JSON has them, read another way than the plugin does.
fn options_of(body: &[u8]) -> BTreeMap<String, String> {
    let body: Value = serde_json::from_str(&String::from_utf8_lossy(body)).unwrap_or_default();
    let options = body.get("Opts").and_then(Value::as_object);
    let options = options.into_iter().flatten();
    let texts = options.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
    texts.collect()
}

/// `10`, `10G`, `512 MiB`: what is asked for in bytes.
fn bytes_of(text: &str) -> Option<u128> {
    let digits: String = text
        .trim()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let shift = match text.trim()[digits.len()..].trim().chars().next() {
        Some('k' | 'K') => 10,
        Some('m' | 'M') => 20,
        None | Some('g' | 'G') => 30,
        Some('t' | 'T') => 40,
        Some(_) => return None,
    };
    digits.parse::<u128>().ok()?.checked_shl(shift)
}

const SLIPS: [(&str, &str); 6] = [
    ("sise", "size"),
    ("Size", "size"),
    ("fs_type", "fstype"),
    ("mkfs_opt", "mkfs_opts"),
    ("size_gb", "size"),
    ("multiattach", "type"),
];
