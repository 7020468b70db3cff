//! Questions to a block device: its number, its size, whether somebody else has it, and the
//! dropping of its caches.
//!
//! Read before changing: `block/ioctl.c` and `block/bdev.c` of the kernel (what `O_EXCL` means for
//! a block device).
//!
//! Invariants:
//! 1. `is_free` never claims "free" on an error: only a successful exclusive open proves it.
//! 2. After `drop_cache` the next read comes from the device, not from a page that an earlier user
//!    left behind.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::mount::DeviceNumber;

/// The device number of a block special file.
///
/// # Errors
/// The file is absent, or is no block device.
pub fn number(path: &Path) -> io::Result<DeviceNumber> {
    let metadata = path.metadata()?;
    if !metadata.file_type().is_block_device() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a block device",
        ));
    }
    let raw = metadata.rdev();
    Ok(DeviceNumber {
        major: rustix::fs::major(raw),
        minor: rustix::fs::minor(raw),
    })
}

/// The size in bytes, of a block device or of an ordinary file.
///
/// # Errors
/// The end cannot be sought.
pub fn size_bytes(file: &mut File) -> io::Result<u64> {
    let size = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    Ok(size)
}

/// Whether nobody else holds the device: no mount in any namespace, no device-mapper or RAID on
/// top, no other exclusive opener. Plain openers (`dd`, `blkid`) do not count.
///
/// # Errors
/// Anything but "busy".
pub fn is_free(path: &Path) -> io::Result<bool> {
    // Read-only, so that closing does not wake udev's watch on written devices.
    match OpenOptions::new()
        .read(true)
        .custom_flags(exclusive_flag())
        .open(path)
    {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes back what is dirty and drops every clean page of the device from the page cache.
///
/// # Errors
/// The device refused a write-back, or this is no block device.
pub fn drop_cache(file: &File) -> io::Result<()> {
    file.sync_all()?;
    flush_buffers(file)
}

/// Takes back what somebody told the kernel of this device: that nobody may write to it.
///
/// # Errors
/// The device cannot be opened, or this is no block device; `CAP_SYS_ADMIN` is missing.
pub fn allow_writes(path: &Path) -> io::Result<()> {
    set_read_only(&File::open(path)?, 0)
}

/// `BLKROSET` (linux/fs.h): `_IO(0x12, 93)`.
const BLKROSET: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0x12, 93);

#[expect(
    unsafe_code,
    reason = "rustix has no wrapper for BLKROSET, and sysfs shows `ro` but takes none"
)]
fn set_read_only(file: &File, value: libc::c_int) -> io::Result<()> {
    // SAFETY: BLKROSET takes a pointer to one int, which `Setter` gives it and keeps alive for the call, and writes no
    // memory of ours; on a file that is no block device the kernel answers ENOTTY. The descriptor is borrowed for the
    // whole call.
    unsafe {
        rustix::ioctl::ioctl(
            file,
            rustix::ioctl::Setter::<BLKROSET, libc::c_int>::new(value),
        )
    }?;
    Ok(())
}

/// For an open that fails while somebody else holds the device exclusively.
pub(crate) fn exclusive_flag() -> i32 {
    i32::try_from(rustix::fs::OFlags::EXCL.bits()).expect("O_EXCL is a small constant")
}

/// `BLKFLSBUF` (linux/fs.h): `_IO(0x12, 97)`.
const BLKFLSBUF: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0x12, 97);

#[expect(
    unsafe_code,
    reason = "rustix has no wrapper for BLKFLSBUF, and no safe call drops a device's cache"
)]
fn flush_buffers(file: &File) -> io::Result<()> {
    // SAFETY: BLKFLSBUF takes no argument and writes no memory of ours, which is what `NoArg`
    // promises; on a file that is no block device the kernel answers ENOTTY. The descriptor is
    // borrowed for the whole call.
    unsafe { rustix::ioctl::ioctl(file, rustix::ioctl::NoArg::<BLKFLSBUF>::new())? };
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn an_ordinary_file_is_no_block_device() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(
            number(file.path()).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        assert!(drop_cache(file.as_file()).is_err());
    }

    #[test]
    fn the_size_is_that_of_the_end_and_the_position_is_restored() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 1234]).unwrap();
        assert_eq!(size_bytes(&mut file).unwrap(), 1234);
        assert_eq!(file.stream_position().unwrap(), 0);
    }

    #[test]
    fn an_absent_device_is_an_error_and_not_free() {
        assert!(is_free(Path::new("/dev/cinder-nbd-absent")).is_err());
    }
}
