//! Making a filesystem on a device that was proved blank.
//!
//! Source: mke2fs(8), mkfs.xfs(8), mkfs.btrfs(8).
//!
//! Invariant: mkfs is never forced: it refuses a device that is mounted, in use, or not blank in its own eyes, and so it
//! shall.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::tool::Tool;
use crate::volume::error::Cause;
use crate::volume::layout::{Fstype, MkfsOptions};

/// A mkfs as called here writes some MiB a TiB.
const LIMIT: Duration = Duration::from_mins(10);

/// Makes a filesystem on a device that was proved blank.
///
/// # Errors
/// mkfs is missing, failed, or took longer than any sane device needs.
pub(crate) async fn format(
    device: &Path,
    fstype: Fstype,
    options: &MkfsOptions,
) -> Result<(), Cause> {
    let (name, package, ours): (_, _, &[&str]) = match fstype {
        // Inode tables and journal are zeroed by the kernel after the mount: minutes on a large volume otherwise, and
        // Docker gives a mount two. No discard: the device was just proved blank. No reserve for root: it holds data only.
        Fstype::Ext4 => (
            "mkfs.ext4",
            "e2fsprogs",
            &[
                "-q",
                "-m",
                "0",
                "-E",
                "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
            ],
        ),
        Fstype::Xfs => ("mkfs.xfs", "xfsprogs", &["-q", "-K"]),
        Fstype::Btrfs => ("mkfs.btrfs", "btrfs-progs", &["-q", "-K"]),
    };
    let tool = Tool {
        name,
        package,
        limit: LIMIT,
    };
    let words = ours.iter().map(OsString::from);
    let words = words.chain(options.words().iter().map(OsString::from));
    tool.run(words.chain(["--".into(), device.into()])).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::blank;
    use crate::volume::platform::Content;

    #[tokio::test]
    async fn each_is_made_as_asked_on_what_is_blank_and_on_nothing_else() {
        for fstype in Fstype::ALL {
            let file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().set_len(1 << 30).unwrap();
            let options = MkfsOptions::parse("-L told", fstype).unwrap();
            format(file.path(), fstype, &options).await.unwrap();
            let found = blank::examine(file.path()).await.unwrap();
            assert_eq!(found, Content::Filesystem(fstype.as_str().to_owned()));
            let mut bytes = vec![0; 128 << 10];
            std::os::unix::fs::FileExt::read_exact_at(file.as_file(), &mut bytes, 0).unwrap();
            assert!(
                bytes.windows(4).any(|word| word == b"told"),
                "{fstype:?}: no label"
            );
        }
    }

    #[tokio::test]
    async fn a_failure_is_one_line_with_the_tools_own_words() {
        for fstype in Fstype::ALL {
            let file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().set_len(64 << 10).unwrap();
            let error = format(file.path(), fstype, &MkfsOptions::default())
                .await
                .unwrap_err();
            let text = error.to_string();
            assert!(text.contains("mkfs.") && !text.contains('\n'), "{text}");
        }
    }
}
