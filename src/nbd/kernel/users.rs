//! Who uses a device: mounts, devices on top, processes that have it open.
//!
//! A room of its own because it is a question to the kernel with many places to ask, and one answer in words.
//!
//! Invariants:
//! 1. That nobody is named proves nothing: only the exclusive open proves that a device is free. This finds the words
//!    for a refusal, and the plain openers that an exclusive open tolerates.
//! 2. No file is opened and none is looked up by a process's path: a user on a dead network filesystem must not hang
//!    the question.

use std::collections::BTreeSet;
use std::path::Path;

use crate::sys::{blkdev, mount};

use super::sysfs::Sysfs;

/// Users named in one refusal; the rest is counted.
const NAMED_MAX: usize = 4;

/// Processes that have a device or one of its partitions open, `own` (a descriptor of ours) aside; `ID NAME` each.
pub(super) fn openers(device: &str, own: i32) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return found;
    };
    let ours = std::process::id();
    for process in processes.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // Gone meanwhile, or not ours to look into: then it is not named.
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let uses = descriptors.flatten().any(|descriptor| {
            let is_own = pid == ours && descriptor.file_name().to_str() == Some(&own.to_string());
            !is_own
                && std::fs::read_link(descriptor.path()).is_ok_and(|target| is_of(device, &target))
        });
        if uses {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.insert(
                format!("process {pid} {}", name.trim_end())
                    .trim_end()
                    .to_owned(),
            );
        }
    }
    found
}

/// All that can be said about who uses the device, in words.
pub(super) fn describe(index: u32) -> String {
    let sysfs = Sysfs::of(index);
    let whole = format!("nbd{index}");
    let mut users = BTreeSet::new();
    for name in std::iter::once(whole.clone()).chain(sysfs.partitions()) {
        let Ok(number) = blkdev::number(&Path::new("/dev").join(name)) else {
            continue;
        };
        for user in mount::users(number).unwrap_or_default() {
            let place = user.mountpoint.display().to_string();
            users.insert(if user.own_namespace {
                format!("a mount at {place}")
            } else {
                format!("a mount at {place} of process {}", user.pid)
            });
        }
    }
    users.extend(
        sysfs
            .holders()
            .into_iter()
            .map(|holder| format!("device {holder}")),
    );
    users.extend(openers(&whole, -1));
    in_words(&users)
}

pub(super) fn in_words(users: &BTreeSet<String>) -> String {
    if users.is_empty() {
        return "somebody the kernel does not name".to_owned();
    }
    let mut words: Vec<_> = users.iter().take(NAMED_MAX).cloned().collect();
    if users.len() > NAMED_MAX {
        words.push(format!("{} more", users.len() - NAMED_MAX));
    }
    words.join(", ")
}

/// Whether a descriptor's target is the device or one of its partitions.
fn is_of(device: &str, target: &Path) -> bool {
    let name = target.strip_prefix("/dev").ok().and_then(Path::to_str);
    name.and_then(|name| name.strip_prefix(device))
        .is_some_and(|rest| {
            rest.is_empty()
                || rest
                    .strip_prefix('p')
                    .is_some_and(|part| part.parse::<u32>().is_ok())
        })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn partitions_belong_to_their_device_and_longer_numbers_do_not() {
        for (target, expected) in [
            ("/dev/nbd1", true),
            ("/dev/nbd1p3", true),
            ("/dev/nbd10", false),
            ("/dev/nbd1px", false),
            ("/tmp/nbd1", false),
            ("socket:[1]", false),
        ] {
            assert_eq!(is_of("nbd1", Path::new(target)), expected, "{target}");
        }
    }

    #[test]
    fn an_opener_is_named_unless_it_is_our_own_descriptor() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let own = openers("null", -1);
        let name = format!("process {} ", std::process::id());
        assert!(own.iter().any(|user| user.starts_with(&name)), "{own:?}");
        // Other threads of this test may have it open too, but not under a name that is no device.
        assert!(openers("no-such-device", file.as_raw_fd()).is_empty());
    }

    #[test]
    fn many_users_are_counted() {
        let users: BTreeSet<_> = (0..6).map(|n| format!("u{n}")).collect();
        assert_eq!(in_words(&users), "u0, u1, u2, u3, 2 more");
        assert_eq!(
            in_words(&BTreeSet::new()),
            "somebody the kernel does not name"
        );
    }
}
