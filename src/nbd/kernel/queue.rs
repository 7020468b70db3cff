//! The queue of a device: what the kernel shows of it compared with what it was told, and settings that suit a lane.
//!
//! A room of its own because the settings have reasons of their own, and outlive a connection: a device that was used
//! before keeps some of them.
//! Source: `Documentation/ABI/stable/sysfs-block`; `drivers/block/nbd.c` (`nbd_set_size`).

use crate::block::Geometry;
use crate::nbd::Error;
use crate::nbd::transmission::payload_bytes_max;

use super::path_of;
use super::sysfs::Sysfs;

/// The kernel's requests are limited to this: more per request gains nothing and delays what waits behind it.
const REQUEST_KIB: u64 = 1024;
/// The kernel's discards are limited to this, so that a slow one ends in time.
const DISCARD_BYTES: u64 = 1 << 30;

/// Compares what the kernel shows with what it was told, and sets the queue up.
pub(super) fn tune(index: u32, geometry: &Geometry, identifier: &str) -> Result<(), Error> {
    let sysfs = Sysfs::of(index);
    let check = |what, found: Option<String>, expected: String| {
        let found = found.unwrap_or_else(|| "nothing".to_owned());
        if found == expected {
            return Ok(());
        }
        Err(Error::Settings {
            device: path_of(index),
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

    // One queue a lane, served in order by one thread: there is nothing for a scheduler to gain.
    sysfs.write("queue/scheduler", "none");
    let largest_kib = u64::from(payload_bytes_max(geometry)) / 1024;
    sysfs.write(
        "queue/max_sectors_kb",
        &largest_kib.min(REQUEST_KIB).to_string(),
    );
    if sysfs
        .read_number("queue/discard_max_bytes")
        .is_some_and(|bytes| bytes > DISCARD_BYTES)
    {
        sysfs.write("queue/discard_max_bytes", &DISCARD_BYTES.to_string());
    }
    // A hint that failed is slower; this one would be wrong: the lanes refuse what is larger.
    let shown = sysfs.read_number("queue/max_sectors_kb");
    if shown.is_none_or(|shown| shown > largest_kib) {
        check(
            "requests (KiB) of up to",
            number(shown),
            largest_kib.to_string(),
        )?;
    }
    Ok(())
}
