//! The end of what is on a device, when somebody has asked for it in so many words.
//!
//! A room of its own because it is the one place that destroys: whoever calls it has been told what is there, and the
//! proof that nothing is left is made afterwards, by `blank`, as for any other device.
//!
//! Invariant: a device that somebody has mounted, or holds exclusively, is not touched.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use super::blank;
use super::error::{Cause, Error};
use super::filesystem::tool::Tool;
use crate::sys::blkdev;

/// Chosen freely: some MiB are read and written.
const WIPE_LIMIT: Duration = Duration::from_mins(2);
const PIECE_BYTES: u64 = 1 << 20;

/// Writes zeroes wherever `blank` looks, and has wipefs take away what else libblkid knows.
///
/// # Errors
/// Somebody uses the device; it cannot be written; wipefs is missing or failed.
pub(crate) async fn erase(device: &Path) -> Result<(), Cause> {
    let path = device.to_owned();
    tokio::task::spawn_blocking(move || zero_regions(&path))
        .await?
        .map_err(|error| Error::file("writing zeroes over", device, error))?;
    let wipefs = Tool {
        name: "wipefs",
        package: "util-linux",
        limit: WIPE_LIMIT,
    };
    wipefs
        .run(["--all".as_ref(), "--".as_ref(), device.as_os_str()])
        .await
}

fn zero_regions(device: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(blkdev::exclusive_flag())
        .open(device)?;
    let size = blkdev::size_bytes(&mut file)?;
    for (begin, end) in blank::regions(size) {
        zero(&mut file, begin, end)?;
    }
    file.sync_all()
}

fn zero(file: &mut File, begin: u64, end: u64) -> io::Result<()> {
    let zeroes = vec![0; usize::try_from(PIECE_BYTES).expect("a MiB fits")];
    file.seek(SeekFrom::Start(begin))?;
    let mut left = end - begin;
    while left > 0 {
        let length = left.min(PIECE_BYTES);
        file.write_all(&zeroes[..usize::try_from(length).expect("at most a MiB")])?;
        left -= length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::filesystem;
    use crate::volume::layout::{Fstype, MkfsOptions};
    use crate::volume::platform::Content;

    #[tokio::test]
    async fn what_was_there_is_gone_and_that_is_proved_as_ever() {
        for fstype in Fstype::ALL {
            let file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().set_len(1 << 30).unwrap();
            let options = MkfsOptions::default();
            filesystem::format(file.path(), fstype, &options)
                .await
                .unwrap();
            erase(file.path()).await.unwrap();
            let found = blank::examine(file.path()).await.unwrap();
            assert_eq!(found, Content::Blank, "{fstype:?}");
        }
    }

    #[tokio::test]
    async fn a_device_that_is_not_there_or_cannot_be_written_is_named() {
        let error = erase(Path::new("/nonexistent/nbd0")).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("/nonexistent/nbd0"), "{text}");
        let empty = tempfile::NamedTempFile::new().unwrap();
        erase(empty.path()).await.unwrap();
    }
}
