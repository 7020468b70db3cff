//! The proof that a device is blank, or the name of what is on it.
//!
//! A room of its own because the worst defect of this trade sits here: "the probe failed" taken for
//! "there is nothing", and somebody's data formatted away.
//!
//! Source: blkid(8), exit status and low-level probing; the places of signatures are listed at
//! `regions`.
//!
//! Invariants:
//! 1. `Content::Blank` needs two witnesses: libblkid probed and found nothing, *and* our own read
//!    of every region succeeded in full and every byte was zero.
//! 2. Any error, of either witness, is an error; blkid's status 2 alone ("nothing, or could not
//!    look") proves nothing.
//! 3. Nothing here writes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use super::error::{Cause, Error};
use super::platform::Content;
use crate::sys::blkdev;

/// Looks at the device with both witnesses.
///
/// # Errors
/// blkid is missing, was killed or reported a failure; the device could not be read.
pub(crate) async fn inspect(device: &Path) -> Result<Content, Cause> {
    let path = device.to_owned();
    tokio::task::spawn_blocking(move || blkdev::drop_cache(&File::open(path)?))
        .await?
        .map_err(|error| Error::file("dropping cached pages of", device, error))?;
    examine(device).await
}

/// As `inspect`, of what has no cache of its own to be dropped.
pub(super) async fn examine(device: &Path) -> Result<Content, Cause> {
    match probe(device).await? {
        Some(content) => Ok(content),
        None => read_all_regions(device).await,
    }
}

/// What libblkid says: none when it found nothing.
async fn probe(device: &Path) -> Result<Option<Content>, Cause> {
    let mut command = tokio::process::Command::new("blkid");
    command
        .args(["-p", "-o", "export", "--"])
        .arg(device)
        .env("LC_ALL", "C")
        .kill_on_drop(true);
    let output = tokio::time::timeout(PROBE_TIMEOUT, command.output())
        .await
        .map_err(|_| Error::Invalid {
            what: format!(
                "blkid did not end within {} s; the kernel's log tells whether the device answers",
                PROBE_TIMEOUT.as_secs()
            ),
        })?
        .map_err(|error| Error::step("running blkid (package util-linux)", error))?;
    judge_probe(&output)
}

/// Chosen freely: a probe reads a few MiB; this is a dead target, not a slow one.
const PROBE_TIMEOUT: Duration = Duration::from_mins(1);

pub(super) fn judge_probe(output: &Output) -> Result<Option<Content>, Cause> {
    match output.status.code() {
        Some(0) => Ok(Some(name_finding(&String::from_utf8_lossy(&output.stdout)))),
        // blkid(8): nothing was found, or it was impossible to look; hence the second witness.
        Some(2) => Ok(None),
        // blkid(8): ambivalent, signatures of several kinds.
        Some(8) => Ok(Some(Content::Other(
            "signatures of several filesystems at once".to_owned(),
        ))),
        status => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let what = match status {
                Some(code) => format!("blkid failed with status {code}: {said}"),
                None => format!("blkid was killed: {said}"),
            };
            Err(Error::Invalid { what }.into())
        }
    }
}

/// `TYPE=ext4`, `USAGE=filesystem`, or `PTTYPE=gpt`, a line each.
fn name_finding(text: &str) -> Content {
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(str::to_owned)
    };
    match (value("TYPE"), value("USAGE"), value("PTTYPE")) {
        // A table besides a filesystem: two owners, so none we know.
        (Some(fstype), _, Some(table)) => {
            Content::Other(format!("{fstype} and a {table} partition table"))
        }
        (Some(fstype), Some(usage), None) if usage == "filesystem" => Content::Filesystem(fstype),
        (Some(fstype), Some(usage), None) => Content::Other(format!("{fstype} ({usage})")),
        (Some(fstype), None, None) => Content::Other(fstype),
        (None, _, Some(table)) => Content::Other(format!("a {table} partition table")),
        (None, _, None) => {
            Content::Other("something that blkid recognises without a name for it".to_owned())
        }
    }
}

/// The second witness.
async fn read_all_regions(device: &Path) -> Result<Content, Cause> {
    let path = device.to_owned();
    let nonzero = tokio::task::spawn_blocking(move || {
        let mut file = File::open(path)?;
        let size = blkdev::size_bytes(&mut file)?;
        first_nonzero(&mut file, size)
    })
    .await?
    .map_err(|error| Error::file("reading the signature areas of", device, error))?;
    Ok(match nonzero {
        None => Content::Blank,
        Some(offset) => Content::Other(format!("data without a known signature at byte {offset}")),
    })
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The head: boot sectors, GPT, ext, xfs, btrfs (64 KiB), LVM, LUKS1 and LUKS2 with its second header (which begins at up
/// to 4 MiB), ZFS labels 0 and 1, md 1.1 and 1.2, swap, f2fs with its second checkpoint (it begins at 4 MiB).
const HEAD_BYTES: u64 = 8 * MIB;
/// The tail: backup GPT, md 0.90 and 1.0, ZFS labels 2 and 3, DDF and vendors' RAID metadata,
/// DRBD's.
const TAIL_BYTES: u64 = 4 * MIB;
/// Backups that outlive a lost head: ext's second superblock for block sizes 1, 2 and 4 KiB (the
/// first block of group 1), btrfs's mirrors.
const BACKUPS: [u64; 5] = [8 * MIB, 32 * MIB, 64 * MIB, 128 * MIB, 256 * GIB];
const BACKUP_BYTES: u64 = 64 * KIB;
/// Samples across the whole, for what has lost its signature: the groups of XFS begin at fourths of the device, and other
/// data lies anywhere. Chosen freely; costs 16 MiB of reading. What fills less than the distance of two of them, has no
/// signature and lies between them is not seen.
const SAMPLES: u64 = 128;
/// A sample begins below its place, and ends behind it: xfs rounds the begin of a group up, by a few blocks.
const SAMPLE_ALIGN: u64 = 64 * KIB;
const SAMPLE_BYTES: u64 = 2 * SAMPLE_ALIGN;

/// The ranges to read, half-open, clipped to the device.
pub(super) fn regions(size: u64) -> Vec<(u64, u64)> {
    let mut regions = vec![(0, HEAD_BYTES), (size.saturating_sub(TAIL_BYTES), size)];
    regions.extend(BACKUPS.iter().map(|begin| (*begin, begin + BACKUP_BYTES)));
    regions.extend((0..SAMPLES).map(|n| {
        // The n-th part of the whole, to the byte: a rounded step would miss by ever more.
        let place = size / SAMPLES * n + size % SAMPLES * n / SAMPLES;
        let begin = place / SAMPLE_ALIGN * SAMPLE_ALIGN;
        (begin, begin + SAMPLE_BYTES)
    }));
    regions
        .into_iter()
        .map(|(begin, end)| (begin.min(size), end.min(size)))
        .filter(|(begin, end)| begin < end)
        .collect()
}

/// The offset of the first byte that is not zero, in the order of `regions`.
///
/// # Errors
/// Any read failed or ended early: what cannot be read is not blank. So is a device without bytes.
pub(super) fn first_nonzero<F: Read + Seek>(file: &mut F, size: u64) -> io::Result<Option<u64>> {
    if size == 0 {
        return Err(io::Error::other("the device has no size"));
    }
    let mut buffer = vec![0; usize::try_from(MIB).expect("a MiB fits")];
    for (begin, end) in regions(size) {
        let mut offset = begin;
        while offset < end {
            let length = usize::try_from((end - offset).min(MIB)).expect("at most a MiB");
            let piece = &mut buffer[..length];
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(piece)?;
            if let Some(at) = piece.iter().position(|byte| *byte != 0) {
                return Ok(Some(offset + u64::try_from(at).expect("an index fits")));
            }
            offset += u64::try_from(length).expect("at most a MiB");
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::super::MkfsOptions;
    use super::*;

    fn output(wait_status: i32, stdout: &str) -> Output {
        let status = ExitStatus::from_raw(wait_status);
        Output {
            status,
            stdout: stdout.into(),
            stderr: b"said".to_vec(),
        }
    }

    fn sparse(size: u64, writes: &[u64]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for offset in writes {
            file.seek(SeekFrom::Start(*offset)).unwrap();
            file.write_all(&[0x53]).unwrap();
        }
        file
    }

    #[test]
    fn a_zeroed_device_is_blank() {
        for size in [512, 4 * MIB, 5 * MIB + 512, GIB, 300 * GIB] {
            assert_eq!(
                first_nonzero(&mut sparse(size, &[]), size).unwrap(),
                None,
                "{size}"
            );
        }
    }

    #[test]
    fn one_byte_in_any_signature_area_is_found() {
        let size = 300 * GIB;
        for offset in [
            0,
            510,
            1080,
            64 * KIB,
            4 * MIB - 1,
            8 * MIB + 1024 + 56,
            32 * MIB + 56,
            64 * MIB,
            128 * MIB + 56,
            256 * GIB,
            size - 512,
            size - 8 * KIB,
            size - 4 * MIB,
        ] {
            assert_eq!(
                first_nonzero(&mut sparse(size, &[offset]), size).unwrap(),
                Some(offset),
                "{offset}"
            );
        }
    }

    #[test]
    fn a_device_that_cannot_be_read_to_its_end_is_an_error() {
        assert!(first_nonzero(&mut sparse(MIB, &[]), 2 * MIB).is_err());
        assert!(first_nonzero(&mut sparse(0, &[]), 0).is_err());
    }

    #[test]
    fn only_status_two_of_blkid_leaves_the_question_open() {
        assert_eq!(judge_probe(&output(2 << 8, "")).unwrap(), None);
        let found = judge_probe(&output(
            0,
            "DEVNAME=/dev/nbd0\nTYPE=ext4\nUSAGE=filesystem\n",
        ))
        .unwrap();
        assert_eq!(found, Some(Content::Filesystem("ext4".to_owned())));
        assert!(matches!(
            judge_probe(&output(8 << 8, "")).unwrap(),
            Some(Content::Other(_))
        ));
        for broken in [1 << 8, 4 << 8, 127 << 8, 9] {
            assert!(judge_probe(&output(broken, "")).is_err(), "{broken}");
        }
    }

    #[test]
    fn what_is_no_filesystem_is_named() {
        let named = |text: &str| match name_finding(text) {
            Content::Other(words) => words,
            Content::Blank | Content::Filesystem(_) => panic!("named something else: {text}"),
        };
        assert_eq!(
            named("TYPE=crypto_LUKS\nUSAGE=crypto\n"),
            "crypto_LUKS (crypto)"
        );
        assert_eq!(
            named("TYPE=LVM2_member\nUSAGE=raid\n"),
            "LVM2_member (raid)"
        );
        assert_eq!(named("PTTYPE=gpt\n"), "a gpt partition table");
        assert_eq!(
            named("TYPE=vfat\nUSAGE=filesystem\nPTTYPE=dos\n"),
            "vfat and a dos partition table"
        );
    }

    /// The real blkid on ordinary files, which it probes like devices.
    #[tokio::test]
    async fn blkid_finds_a_real_filesystem_and_nothing_on_zeroes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(16 * MIB).unwrap();
        assert_eq!(probe(file.path()).await.unwrap(), None);
        assert_eq!(read_all_regions(file.path()).await.unwrap(), Content::Blank);
        super::super::filesystem::format(
            file.path(),
            super::super::Fstype::Ext4,
            &MkfsOptions::default(),
        )
        .await
        .unwrap();
        let found = probe(file.path()).await.unwrap();
        assert_eq!(found, Some(Content::Filesystem("ext4".to_owned())));
    }

    fn run(tool: &str, words: &[&str], file: &Path) {
        let output = std::process::Command::new(tool)
            .args(words)
            .arg(file)
            .output();
        let output =
            output.unwrap_or_else(|error| panic!("{tool}: {error}; cargo xtask test installs it"));
        assert!(
            output.status.success(),
            "{tool}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// The class of kubernetes#140376: the head is destroyed, blkid sees nothing, the data is still
    /// there.
    #[tokio::test]
    async fn a_filesystem_whose_head_was_lost_is_not_blank() {
        const EXT4: (&str, &[&str]) = ("mkfs.ext4", &["-q"]);
        const XFS: (&str, &[&str]) = ("mkfs.xfs", &["-q"]);
        const BTRFS: (&str, &[&str]) = ("mkfs.btrfs", &["-q"]);
        const F2FS: (&str, &[&str]) = ("mkfs.f2fs", &["-q"]);
        // Sizes at which the groups of XFS begin at no round place, and Cinder's own.
        for ((tool, words), sizes_mib, lost_mib) in [
            (EXT4, &[256, 1024, 3072][..], 8),
            (XFS, &[301, 333, 399, 513, 577, 1001, 1024, 3072, 5120], 8),
            (BTRFS, &[128, 1024], 8),
            (F2FS, &[64, 200, 512, 1024, 3072, 5120], 4),
        ] {
            for size_mib in sizes_mib {
                let mut file = tempfile::NamedTempFile::new().unwrap();
                file.as_file().set_len(size_mib * MIB).unwrap();
                run(tool, words, file.path());
                file.write_all(&vec![0; lost_mib << 20]).unwrap();
                let found = read_all_regions(file.path()).await.unwrap();
                assert!(
                    matches!(found, Content::Other(_)),
                    "{tool}, {size_mib} MiB: {found:?}"
                );
            }
        }
    }
}
