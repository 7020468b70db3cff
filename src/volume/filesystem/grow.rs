//! Growing a filesystem while it is used.
//!
//! Source: `resize2fs(8)`, `xfs_growfs(8)`, `btrfs-filesystem(8)`.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use super::tool::Tool;
use crate::volume::error::Cause;
use crate::volume::layout::Fstype;

/// Growing writes a few blocks for each 128 MiB.
const LIMIT: Duration = Duration::from_mins(10);

/// Makes the mounted filesystem as large as its device. One that is so large is done.
///
/// # Errors
/// The tool is missing, failed, or took longer than a growth does.
pub(crate) async fn grow(device: &Path, mountpoint: &Path, fstype: Fstype) -> Result<(), Cause> {
    let (name, package) = match fstype {
        Fstype::Ext4 => ("resize2fs", "e2fsprogs"),
        Fstype::Xfs => ("xfs_growfs", "xfsprogs"),
        Fstype::Btrfs => ("btrfs", "btrfs-progs"),
    };
    tracing::debug!(device = %device.display(), at = %mountpoint.display(), tool = name, "growing");
    let words: &[&OsStr] = match fstype {
        Fstype::Ext4 => &[device.as_ref()],
        Fstype::Xfs => &[mountpoint.as_ref()],
        Fstype::Btrfs => &[
            "filesystem".as_ref(),
            "resize".as_ref(),
            "max".as_ref(),
            mountpoint.as_ref(),
        ],
    };
    let tool = Tool {
        name,
        package,
        limit: LIMIT,
    };
    tool.run(words).await
}
