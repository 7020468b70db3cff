//! The queue of a device: what the kernel shows of it compared with what it was told, and settings that suit a lane.
//!
//! A room of its own because the settings have reasons of their own, and outlive a connection: a device that was used
//! before keeps some of them.
//! Source: `Documentation/ABI/stable/sysfs-block`; `drivers/block/nbd.c` (`nbd_set_size`, `nbd_parse_flags`).
//!
//! Invariants:
//! 1. Every setting is written whether it looks right or not: newer kernels keep the limits that somebody wrote apart
//!    from those of the device, and show the smaller one.
//! 2. What would be wrong is compared after that, and refused; what would only be slow is a line in the log.
//!
//! A used device also keeps what `blockdev --setro` told the kernel of it: a writable volume is made writable again.
//!
//! What a used device keeps and nobody can set is its limit for `WRITE_ZEROES` (from another server on the same
//! number: we never offer it to the kernel). The lanes answer `WRITE_ZEROES` all the same, see `transmission`.

use std::path::Path;

use crate::block::Geometry;
use crate::nbd::Error;
use crate::nbd::transmission::payload_bytes_max;
use crate::nbd::wire::{transmission_flag, transmission_flags};
use crate::sys::blkdev;

use super::path_of;
use super::sysfs::Sysfs;

/// The kernel's requests are limited to this: more per request gains nothing and delays what waits behind it.
const REQUEST_KIB: u64 = 1024;
/// The kernel's discards are limited to this, so that a slow one ends in time.
const DISCARD_BYTES: u64 = 1 << 30;

/// Compares what the kernel shows with what it was told, and sets the queue up.
///
/// # Errors
/// A setting that would do harm is another than ours: the device must not be used.
pub(super) fn tune(index: u32, geometry: &Geometry, identifier: &str) -> Result<(), Error> {
    tune_at(&Sysfs::of(index), &path_of(index), geometry, identifier)
}

fn tune_at(
    sysfs: &Sysfs,
    device: &Path,
    geometry: &Geometry,
    identifier: &str,
) -> Result<(), Error> {
    let check = |what, found: Option<String>, expected: String| {
        let found = found.unwrap_or_else(|| "nothing".to_owned());
        if found == expected {
            return Ok(());
        }
        Err(Error::Settings {
            device: device.to_owned(),
            what,
            found,
            expected,
        })
    };
    let number = |value: Option<u64>| value.map(|value| value.to_string());
    check(
        "a size of",
        number(sysfs.size_bytes()),
        geometry.size_bytes.to_string(),
    )?;
    let block = sysfs.read("queue/logical_block_size");
    check("blocks of", block, geometry.block_bytes.to_string())?;
    check("the backend", sysfs.read("backend"), identifier.to_owned())?;
    if !geometry.read_only
        && sysfs.read("ro").as_deref() == Some("1")
        && let Err(error) = blkdev::allow_writes(device)
    {
        tracing::warn!("{} cannot be made writable: {error}", device.display());
    }
    let read_only = u8::from(geometry.read_only).to_string();
    check("read-only as", sysfs.read("ro"), read_only)?;

    let largest_kib = u64::from(payload_bytes_max(geometry)) / 1024;
    for (attribute, value) in settings(geometry, largest_kib) {
        sysfs.write(attribute, &value);
    }
    // Without it no flush would reach the target.
    let cache = sysfs.read("queue/write_cache");
    check("its cache as", cache, cache_of(geometry).to_owned())?;
    // The lanes refuse what is larger.
    let shown = sysfs.read_number("queue/max_sectors_kb");
    if shown.is_none_or(|shown| shown > largest_kib) {
        check(
            "requests (KiB) of up to",
            number(shown),
            largest_kib.to_string(),
        )?;
    }
    for (attribute, value) in settings(geometry, largest_kib) {
        let shown = sysfs.read(attribute).unwrap_or_default();
        if !shown
            .split_whitespace()
            .any(|word| word.trim_matches(['[', ']']) == value)
            && shown != value
        {
            tracing::debug!(
                "{} shows {attribute} {shown:?} instead of {value}",
                device.display()
            );
        }
    }
    Ok(())
}

/// What suits a lane and the medium behind it; the kernel may round.
fn settings(geometry: &Geometry, largest_kib: u64) -> [(&'static str, String); 6] {
    let request_kib = largest_kib.min(REQUEST_KIB);
    let discard = if geometry.can_trim { DISCARD_BYTES } else { 0 };
    [
        // One queue a lane, served in order by one thread: there is nothing for a scheduler to gain.
        ("queue/scheduler", "none".to_owned()),
        ("queue/max_sectors_kb", request_kib.to_string()),
        // One request is read by the user while the next one is fetched.
        ("queue/read_ahead_kb", (2 * request_kib).to_string()),
        (
            "queue/rotational",
            u8::from(geometry.rotational).to_string(),
        ),
        // A medium without trim would be asked in vain, and answer that it was done.
        ("queue/discard_max_bytes", discard.to_string()),
        ("queue/write_cache", cache_of(geometry).to_owned()),
    ]
}

/// As the driver shows it: whether it will send flushes.
fn cache_of(geometry: &Geometry) -> &'static str {
    if transmission_flags(geometry) & transmission_flag::SEND_FLUSH == 0 {
        "write through"
    } else {
        "write back"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry {
            request_bytes_max: 32 << 20,
            can_trim: true,
            can_write_zeroes: true,
            ..Geometry::plain()
        }
    }

    /// A device that was used by somebody else before: files take what is written, as the kernel would.
    fn used(root: &Path) -> Sysfs {
        std::fs::create_dir(root.join("queue")).unwrap();
        for (attribute, value) in [
            ("size", "2048"),
            ("backend", "ours"),
            ("ro", "0"),
            ("queue/logical_block_size", "512"),
            ("queue/scheduler", "mq-deadline"),
            ("queue/max_sectors_kb", "128"),
            ("queue/read_ahead_kb", "128"),
            ("queue/rotational", "1"),
            ("queue/discard_max_bytes", "0"),
            ("queue/write_cache", "write through"),
        ] {
            std::fs::write(root.join(attribute), value).unwrap();
        }
        Sysfs::at(root)
    }

    fn tuned(geometry: &Geometry) -> (tempfile::TempDir, Result<(), Error>) {
        let root = tempfile::tempdir().unwrap();
        let sysfs = used(root.path());
        let outcome = tune_at(&sysfs, Path::new("/dev/nbd7"), geometry, "ours");
        (root, outcome)
    }

    #[test]
    fn what_a_predecessor_left_is_set_to_what_suits() {
        let (root, outcome) = tuned(&geometry());
        outcome.unwrap();
        let shown = |attribute| std::fs::read_to_string(root.path().join(attribute)).unwrap();
        assert_eq!(shown("queue/scheduler"), "none");
        assert_eq!(shown("queue/max_sectors_kb"), "1024");
        assert_eq!(shown("queue/read_ahead_kb"), "2048");
        assert_eq!(shown("queue/rotational"), "0");
        assert_eq!(shown("queue/discard_max_bytes"), "1073741824");
        assert_eq!(shown("queue/write_cache"), "write back");
    }

    #[test]
    fn a_medium_without_trim_is_not_asked_for_it() {
        let mut plain = geometry();
        plain.can_trim = false;
        plain.rotational = true;
        plain.request_bytes_max = 64 << 10;
        let (root, outcome) = tuned(&plain);
        outcome.unwrap();
        let shown = |attribute| std::fs::read_to_string(root.path().join(attribute)).unwrap();
        assert_eq!(shown("queue/discard_max_bytes"), "0");
        assert_eq!(shown("queue/rotational"), "1");
        assert_eq!(shown("queue/max_sectors_kb"), "64");
    }

    #[test]
    fn what_would_do_harm_is_refused_in_words() {
        let mut other = geometry();
        other.read_only = true;
        let error = tuned(&other).1.unwrap_err();
        assert_eq!(
            error.to_string(),
            "/dev/nbd7 shows read-only as 0 instead of 1: not used, and disconnected again"
        );
        other = geometry();
        other.size_bytes = 4096;
        assert!(tuned(&other).1.is_err());
        other = geometry();
        other.block_bytes = 4096;
        assert!(tuned(&other).1.is_err());
    }
}
