//! Never formats: images with something on them, each asked for as a fresh volume of ours would be.
//!
//! All goes the daemon's own way, from the decision (`worker::mount`) to the real blkid and the real mkfs; only the device
//! is a file. What refuses names what it saw, the file stays as it was to the byte, and the blank one is formatted: so
//! it is what is on them that keeps the others.
//!
//! Files have no read errors: those come from the target of `support`, through the LUN that a device stands on. The
//! whole of it on a kernel's device is `tests/cli/filesystems.rs`.

mod images;
mod unreadable;

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;

use self::images::{BLANK, CONTAINERS, DAMAGED, FILESYSTEMS, FOREIGN, Row};
use super::*;
use crate::volume::blank;

/// What became of an image that was asked for.
struct Asked {
    error: Option<String>,
    formats: usize,
    /// Nothing is left of the attempt.
    is_clean: bool,
}

/// Mounts an image as a volume that a cinder-nbd has made and that never had a filesystem.
async fn ask(image: &Path, fstype: Fstype) -> Asked {
    let bed = Bed::new();
    let request = CreateRequest {
        fstype: Some(fstype),
        ..CreateRequest::default()
    };
    bed.engine.create("v1", request).await.unwrap();
    bed.world.set_image(&bed.world.volumes()[0].id, image);
    let mounted = bed.engine.mount("v1", "c1").await;
    Asked {
        error: mounted.err().map(|error| line(&error)),
        formats: bed.world.count("format"),
        is_clean: bed.world.is_clean() && bed.journal() == 0,
    }
}

/// Of the length and of all that is not zero, and where.
fn fingerprint(image: &Path) -> u64 {
    let mut file = File::open(image).unwrap();
    let mut hasher = DefaultHasher::new();
    file.metadata().unwrap().len().hash(&mut hasher);
    let (mut piece, zeroes) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for number in 0_u64.. {
        let bytes = file.read(&mut piece).unwrap();
        if bytes == 0 {
            break;
        }
        if piece[..bytes] != zeroes[..bytes] {
            (number, &piece[..bytes]).hash(&mut hasher);
        }
    }
    hasher.finish()
}

async fn assert_refused(rows: &[Row]) {
    let mut failures = Vec::new();
    for row in rows {
        let directory = tempfile::tempdir().unwrap();
        let image = row.make(directory.path());
        let before = fingerprint(&image);
        // One that is not on it, or there would be nothing to refuse.
        let fstype = if row.name == "ext4" {
            Fstype::Xfs
        } else {
            Fstype::Ext4
        };
        let asked = ask(&image, fstype).await;
        let error = asked.error.unwrap_or_default();
        eprintln!("{}: {error}", row.name);
        let is_named = error.contains(" holds ") && error.contains(row.found);
        let is_whole = fingerprint(&image) == before;
        if asked.formats > 0 || !is_whole || !is_named || !asked.is_clean {
            failures.push(format!(
                "{}: {} formats, unchanged: {is_whole}, nothing left: {}, wanted {:?} in {error:?}",
                row.name, asked.formats, asked.is_clean, row.found
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test]
async fn filesystems_of_others_are_named_and_left_alone() {
    assert_refused(FILESYSTEMS).await;
}

#[tokio::test]
async fn containers_and_partition_tables_are_named_and_left_alone() {
    assert_refused(CONTAINERS).await;
}

#[tokio::test]
async fn what_has_lost_its_signature_is_left_alone() {
    assert_refused(DAMAGED).await;
}

#[tokio::test]
async fn data_without_any_signature_is_left_alone() {
    assert_refused(FOREIGN).await;
}

#[tokio::test]
async fn one_byte_at_a_signatures_place_is_enough() {
    const SIZE: u64 = 1 << 30;
    let directory = tempfile::tempdir().unwrap();
    for offset in images::places(SIZE) {
        let image = directory.path().join("image");
        let mut file = File::create(&image).unwrap();
        file.set_len(SIZE).unwrap();
        images::put(&mut file, offset, &[1]);
        let before = fingerprint(&image);
        let asked = ask(&image, Fstype::Ext4).await;
        let error = asked.error.unwrap_or_default();
        assert_eq!(asked.formats, 0, "formatted over byte {offset}");
        assert!(error.contains(&format!("at byte {offset};")), "{error}");
        assert_eq!(fingerprint(&image), before, "byte {offset}");
    }
}

/// The other side of the table: without it, one that formats nothing at all would pass.
#[tokio::test]
async fn the_blank_one_is_formatted_as_asked() {
    for fstype in Fstype::ALL {
        let directory = tempfile::tempdir().unwrap();
        let image = BLANK.make(directory.path());
        let asked = ask(&image, fstype).await;
        assert_eq!(asked.error, None, "{fstype:?}");
        assert_eq!(asked.formats, 1, "{fstype:?}");
        let found = blank::examine(&image).await.unwrap();
        assert_eq!(found, Content::Filesystem(fstype.as_str().to_owned()));
    }
}

/// Of a volume whose record says that it never had one: mkfs is no way to mount it.
#[tokio::test]
async fn the_filesystem_that_was_asked_for_is_mounted_as_it_is() {
    for fstype in Fstype::ALL {
        let directory = tempfile::tempdir().unwrap();
        let row = FILESYSTEMS.iter().find(|row| row.name == fstype.as_str());
        let image = row.expect("a row of its own").make(directory.path());
        let before = fingerprint(&image);
        let asked = ask(&image, fstype).await;
        assert_eq!(asked.error, None, "{fstype:?}");
        assert_eq!(asked.formats, 0, "{fstype:?}");
        assert_eq!(fingerprint(&image), before, "{fstype:?}");
    }
}

#[test]
fn the_table_has_its_rows() {
    let tables = [FILESYSTEMS, CONTAINERS, DAMAGED, FOREIGN].concat();
    let names: std::collections::BTreeSet<&str> = tables.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), tables.len(), "two rows of one name");
    // Of the promise: at least 25 images.
    assert!(tables.len() >= 25, "{} rows", tables.len());
}
