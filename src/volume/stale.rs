//! Finding and disconnecting a kernel device that a dead daemon has left: by what it says of itself, never by number.
//!
//! Source: kernel `drivers/block/nbd.c`, `backend` in sysfs; present while a device is configured over netlink.
//!
//! Invariant: a device is disconnected only if its backend identifier is exactly the one of the attachment. Numbers
//! are given to the next comer, identifiers are not.

use std::io;
use std::path::Path;

use super::error::{Cause, Error};
use crate::sys::netlink::NbdFamily;

/// Disconnects the device with this identifier. None is done. Blocks.
///
/// # Errors
/// sysfs cannot be read, or the driver refused.
pub(crate) fn disconnect(identifier: &str) -> Result<(), Cause> {
    let sysfs = Path::new("/sys/block");
    let found = find(sysfs, identifier).map_err(|error| Error::file("searching", sysfs, error))?;
    if let Some(index) = found {
        tracing::warn!(index, identifier, "disconnecting a device of an earlier run");
        NbdFamily::open()?.disconnect(index)?;
    }
    Ok(())
}

/// The number of the device whose `backend` is the identifier.
fn find(sysfs: &Path, identifier: &str) -> io::Result<Option<u32>> {
    for entry in std::fs::read_dir(sysfs)? {
        let entry = entry?;
        let name = entry.file_name();
        let index = name.to_str().and_then(|name| name.strip_prefix("nbd")?.parse().ok());
        let Some(index) = index else { continue };
        match std::fs::read_to_string(entry.path().join("backend")) {
            Ok(backend) if backend.trim_end_matches('\n') == identifier => return Ok(Some(index)),
            Ok(_) => {}
            // Not configured, or gone between the listing and the reading.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_exact_identifier() {
        let sysfs = tempfile::tempdir().unwrap();
        for (device, backend) in
            [("nbd0", None), ("nbd7", Some("cinder-nbd:a\n")), ("nbd11", Some("cinder-nbd:ab\n")), ("sda", None)]
        {
            std::fs::create_dir(sysfs.path().join(device)).unwrap();
            if let Some(backend) = backend {
                std::fs::write(sysfs.path().join(device).join("backend"), backend).unwrap();
            }
        }
        assert_eq!(find(sysfs.path(), "cinder-nbd:a").unwrap(), Some(7));
        assert_eq!(find(sysfs.path(), "cinder-nbd:ab").unwrap(), Some(11));
        assert_eq!(find(sysfs.path(), "cinder-nbd:").unwrap(), None);
        assert!(find(Path::new("/no/such/sysfs"), "x").is_err());
    }
}
