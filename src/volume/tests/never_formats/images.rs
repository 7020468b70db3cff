//! The images: made by the tools that people make them with, or by hand where a tool wants a device.
//!
//! Source of what is made by hand: the kernel's `raid/md_p.h`, `drbd_int.h`; LVM2's `lib/format_text/layout.h`; ZFS's
//! `sys/uberblock_impl.h`, `sys/vdev_impl.h`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An image, and how it is called by who refuses it.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) name: &'static str,
    mib: u64,
    pub(super) found: &'static str,
    fill: fn(&Path),
}

const fn row(name: &'static str, mib: u64, found: &'static str, fill: fn(&Path)) -> Row {
    Row {
        name,
        mib,
        found,
        fill,
    }
}

impl Row {
    /// Makes it in a directory of its own.
    pub(super) fn make(&self, directory: &Path) -> PathBuf {
        let image = directory.join("image");
        File::create(&image)
            .unwrap()
            .set_len(self.mib << 20)
            .unwrap();
        (self.fill)(&image);
        // Some tools make a file of their own length in its place.
        let file = File::options().write(true).open(&image).unwrap();
        file.set_len(self.mib << 20).unwrap();
        image
    }
}

pub(super) const BLANK: Row = row("blank", 1024, "", |_| {});

pub(super) const FILESYSTEMS: &[Row] = &[
    row("ext2", 64, "a ext2 filesystem", |image| {
        mkfs(image, "mkfs.ext2", &["-q", "-F"]);
    }),
    row("ext3", 64, "a ext3 filesystem", |image| {
        mkfs(image, "mkfs.ext3", &["-q", "-F"]);
    }),
    row("ext4", 64, "a ext4 filesystem", ext4),
    row("xfs", 320, "a xfs filesystem", xfs),
    row("btrfs", 128, "a btrfs filesystem", btrfs),
    row("f2fs", 64, "a f2fs filesystem", f2fs),
    row("vfat", 64, "vfat", vfat),
    row("exfat", 64, "exfat", exfat),
    row("ntfs", 64, "ntfs", ntfs),
    row("nilfs2", 129, "a nilfs2 filesystem", nilfs2),
    row("squashfs", 16, "a squashfs filesystem", squashfs),
    row("iso9660", 16, "a iso9660 filesystem", iso9660),
    row("udf", 16, "a udf filesystem", |image| {
        disc(image, &["-udf"]);
    }),
];

pub(super) const CONTAINERS: &[Row] = &[
    row("swap", 64, "swap (other)", |image| {
        tool("mkswap", &[], image);
    }),
    row("LUKS1", 64, "crypto_LUKS (crypto)", |image| {
        luks(image, "luks1", &[]);
    }),
    row("LUKS2", 64, "crypto_LUKS (crypto)", luks2),
    row("GPT", 64, "a gpt partition table", |image| {
        table(image, "gpt");
    }),
    row("MBR", 64, "a dos partition table", |image| {
        table(image, "dos");
    }),
    row("bcache backing device", 64, "bcache (other)", |image| {
        tool("make-bcache", &["-B"], image);
    }),
    row("bcache cache", 64, "bcache (other)", |image| {
        tool("make-bcache", &["-C"], image);
    }),
    row("md 0.90", 64, "linux_raid_member (raid)", |image| {
        put(&mut open(image), (64 << 20) - (64 << 10), &md_090());
    }),
    row("md 1.0", 64, "linux_raid_member (raid)", |image| {
        md_1(image, (64 << 20) - (8 << 10));
    }),
    row("md 1.1", 64, "linux_raid_member (raid)", |image| {
        md_1(image, 0);
    }),
    row("md 1.2", 64, "linux_raid_member (raid)", |image| {
        md_1(image, 4096);
    }),
    row("LVM2", 64, "LVM2_member (raid)", lvm2),
    row("ZFS", 64, "zfs_member", |image| zfs(image, &ZFS_LABELS)),
    row("DRBD", 64, "drbd", drbd),
    row("Intel firmware RAID", 64, "isw_raid_member", |image| {
        put(
            &mut open(image),
            (64 << 20) - 1024,
            b"Intel Raid ISM Cfg Sig. 1.1.00",
        );
    }),
    row("BlueStore", 64, "ceph_bluestore", |image| {
        put(&mut open(image), 0, b"bluestore block device\n");
    }),
    row("VDO", 64, "vdo", |image| {
        put(&mut open(image), 0, b"dmvdo001");
    }),
    row(
        "a filesystem over another",
        128,
        "several filesystems",
        |image| {
            // mkfs.btrfs clears what it finds, and so does nobody who copies with dd.
            btrfs(image);
            let superblock = ext4_superblock(image);
            put(&mut open(image), 1024, &superblock);
        },
    ),
];

/// What no tool finds any more, though all but its signature is there; or finds by its second copy.
pub(super) const DAMAGED: &[Row] = &[
    row("ext4 without its superblock", 64, UNKNOWN, |image| {
        damaged(image, ext4, &[(1 << 10, 1 << 10)]);
    }),
    row("ext4, half of its superblock", 64, UNKNOWN, |image| {
        damaged(image, ext4, &[(1024, 512)]);
    }),
    row("ext4 without its head", 320, UNKNOWN, |image| {
        damaged(image, ext4, &[(0, 8 << 20)]);
    }),
    row("xfs without its head", 320, UNKNOWN, |image| {
        damaged(image, xfs, &[(0, 4 << 20)]);
    }),
    row("xfs, half of its first sector", 320, "", |image| {
        damaged(image, xfs, &[(0, 256)]);
    }),
    row("btrfs without its superblock", 128, UNKNOWN, |image| {
        damaged(image, btrfs, &[(64 << 10, 4096)]);
    }),
    row("f2fs without its superblocks", 64, UNKNOWN, |image| {
        damaged(image, f2fs, &[(0, 8 << 10)]);
    }),
    row("vfat without its boot sector", 64, UNKNOWN, |image| {
        damaged(image, vfat, &[(0, 512)]);
    }),
    row("exfat without its boot sector", 64, UNKNOWN, |image| {
        damaged(image, exfat, &[(0, 512)]);
    }),
    row("ntfs without its head", 64, UNKNOWN, |image| {
        damaged(image, ntfs, &[(0, 4 << 20)]);
    }),
    row(
        "nilfs2 without its head",
        129,
        "a nilfs2 filesystem",
        |image| damaged(image, nilfs2, &[(0, 1 << 20)]),
    ),
    row("squashfs without its superblock", 16, UNKNOWN, |image| {
        damaged(image, squashfs, &[(0, 96)]);
    }),
    row("iso9660 without its descriptors", 16, UNKNOWN, |image| {
        damaged(image, iso9660, &[(32 << 10, 8 << 10)]);
    }),
    row(
        "LUKS2 without its first header",
        64,
        "crypto_LUKS",
        |image| damaged(image, luks2, &[(0, 16 << 10)]),
    ),
    row("LUKS2 without its headers", 64, UNKNOWN, |image| {
        damaged(image, luks2, &[(0, 32 << 10)]);
    }),
    row("GPT without its head", 64, UNKNOWN, |image| {
        damaged(image, |image| table(image, "gpt"), &[(0, 34 * 512)]);
    }),
    row("GPT, the entries of its backup", 64, UNKNOWN, |image| {
        let headers = [(0, 34 * 512), ((64 << 20) - 512, 512)];
        damaged(image, |image| table(image, "gpt"), &headers);
    }),
    row("LVM2 without its label", 64, UNKNOWN, |image| {
        damaged(image, lvm2, &[(0, 4096)]);
    }),
    row("ZFS without its head", 64, "zfs_member", |image| {
        zfs(image, &ZFS_LABELS[2..]);
    }),
];

/// What never had a signature.
pub(super) const FOREIGN: &[Row] = &[
    row("text", 64, "at byte 0;", |image| {
        put(&mut open(image), 0, b"# my notes\n");
    }),
    row("random bytes all over", 64, "at byte 0;", |image| {
        let mut random = vec![0; 64 << 20];
        File::open("/dev/urandom")
            .unwrap()
            .read_exact(&mut random)
            .unwrap();
        // Not by chance what the row denies.
        random[0] = 0xa5;
        put(&mut open(image), 0, &random);
    }),
    row("ones all over", 64, "at byte 0;", |image| {
        put(&mut open(image), 0, &vec![0xff; 64 << 20]);
    }),
    row(
        "a file in the middle",
        1024,
        "without a known signature",
        |image| {
            // The samples of this size lie 8 MiB apart; this is as long.
            put(&mut open(image), 700 << 20, &vec![0x20; 8 << 20]);
        },
    ),
    row(
        "the last sector",
        1024,
        "without a known signature",
        |image| {
            put(&mut open(image), (1024 << 20) - 1, &[1]);
        },
    ),
];

const UNKNOWN: &str = "data without a known signature at byte ";

/// Where signatures stand, to the byte, beginning with what is before them; read in this order or not.
pub(super) fn places(size: u64) -> Vec<u64> {
    vec![
        0,
        // MBR, GPT, LVM2, ext, md 1.2, swap.
        510,
        512,
        536,
        1080,
        4096,
        4086,
        // LUKS2's second header, ISO 9660, btrfs, ZFS, f2fs's second checkpoint.
        16 << 10,
        32 << 10,
        (64 << 10) + 64,
        128 << 10,
        4 << 20,
        (8 << 20) - 1,
        // Copies: ext at 1, 2 and 4 KiB a block, btrfs.
        (8 << 20) + 1024 + 56,
        (32 << 20) + 56,
        (64 << 20) + 64,
        (128 << 20) + 56,
        // xfs: the groups behind the first.
        size / 4,
        size / 2,
        size / 4 * 3,
        // ZFS, md 0.90, md 1.0, DRBD, GPT.
        size - (4 << 20),
        size - (512 << 10),
        size - (64 << 10),
        size - (8 << 10),
        size - 4096 + 60,
        size - 512,
        size - 1,
    ]
}

// --- by their tools

fn mkfs(image: &Path, name: &str, words: &[&str]) {
    tool(name, words, image);
}

fn ext4(image: &Path) {
    tool("mkfs.ext4", &["-q", "-F"], image);
}

fn xfs(image: &Path) {
    tool("mkfs.xfs", &["-q"], image);
}

fn btrfs(image: &Path) {
    tool("mkfs.btrfs", &["-q"], image);
}

fn f2fs(image: &Path) {
    tool("mkfs.f2fs", &["-q"], image);
}

fn vfat(image: &Path) {
    tool("mkfs.vfat", &[], image);
}

fn exfat(image: &Path) {
    tool("mkfs.exfat", &[], image);
}

fn ntfs(image: &Path) {
    tool("mkfs.ntfs", &["-q", "-F", "-Q"], image);
}

fn nilfs2(image: &Path) {
    tool("mkfs.nilfs2", &["-q"], image);
}

/// A directory with a file, beside the image.
fn content(image: &Path) -> PathBuf {
    let directory = image.with_extension("content");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("file"), vec![0x5a; 64 << 10]).unwrap();
    directory
}

fn squashfs(image: &Path) {
    let content = content(image);
    std::fs::remove_file(image).unwrap();
    let image = image.to_str().unwrap();
    tool(
        "mksquashfs",
        [content.to_str().unwrap(), image, "-quiet", "-no-progress"].as_slice(),
        Path::new("-noappend"),
    );
}

fn iso9660(image: &Path) {
    disc(image, &[]);
}

fn disc(image: &Path, words: &[&str]) {
    let content = content(image);
    let image = image.to_str().unwrap();
    let words = [&["-quiet", "-o", image], words].concat();
    tool("genisoimage", &words, &content);
}

fn luks2(image: &Path) {
    luks(image, "luks2", &["--pbkdf", "pbkdf2"]);
}

fn luks(image: &Path, kind: &str, words: &[&str]) {
    let key = image.with_extension("key");
    std::fs::write(&key, "of no use to anybody").unwrap();
    let key = key.to_str().unwrap();
    // As few iterations as it takes: nobody opens it.
    let ours = [
        "-q",
        "luksFormat",
        "--type",
        kind,
        "--key-file",
        key,
        "--pbkdf-force-iterations",
        "1000",
    ];
    tool("cryptsetup", &[&ours, words].concat(), image);
}

fn table(image: &Path, label: &str) {
    let script = format!("label: {label}\n,16M\n,8M\n");
    feed("sfdisk", &["-q"], image, &script);
}

fn tool(name: &str, words: &[&str], image: &Path) {
    feed(name, words, image, "");
}

/// Runs a program to its end; it must succeed.
fn feed(name: &str, words: &[&str], last: &Path, input: &str) {
    let mut command = Command::new(name);
    command.args(words).arg(last).env("LC_ALL", "C");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| {
        panic!("{name}: {error}; 'cargo xtask test' installs it, or do so yourself: the packages are IMAGES in xtask/src/host.rs")
    });
    // One that ends without reading it is judged by how it ends.
    let _ = child
        .stdin
        .take()
        .expect("piped")
        .write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{name} {words:?}: {}: {said}",
        output.status
    );
}

// --- by hand

fn open(image: &Path) -> File {
    File::options().read(true).write(true).open(image).unwrap()
}

pub(super) fn put(file: &mut File, offset: u64, bytes: &[u8]) {
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(bytes).unwrap();
}

/// Makes an image and then zeroes pieces of it: offset and length.
fn damaged(image: &Path, fill: fn(&Path), lost: &[(u64, usize)]) {
    fill(image);
    for (offset, length) in lost {
        put(&mut open(image), *offset, &vec![0; *length]);
    }
}

fn ext4_superblock(beside: &Path) -> Vec<u8> {
    let other = beside.with_extension("other");
    File::create(&other).unwrap().set_len(64 << 20).unwrap();
    ext4(&other);
    let mut superblock = vec![0; 1024];
    let mut file = open(&other);
    file.seek(SeekFrom::Start(1024)).unwrap();
    file.read_exact(&mut superblock).unwrap();
    superblock
}

fn put_32(block: &mut [u8], at: usize, value: u32) {
    block[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The sum of its words, with the carry added again.
fn md_sum(block: &[u8]) -> u32 {
    let (words, _) = block.as_chunks::<4>();
    let sum: u64 = words
        .iter()
        .map(|word| u64::from(u32::from_le_bytes(*word)))
        .sum();
    u32::try_from((sum & 0xffff_ffff) + (sum >> 32)).unwrap()
}

const MD_MAGIC: u32 = 0xa92b_4efc;

/// `mdp_super_t`: words of 32 bits in the host's order; a mirror of two.
fn md_090() -> Vec<u8> {
    let mut block = vec![0; 4096];
    let words = [
        (0, MD_MAGIC),
        // Version 0.90.0, and a UUID in four pieces.
        (2, 90),
        (5, 0x1111_1111),
        (7, 1),
        (9, 2),
        (10, 2),
        (13, 0x2222_2222),
        (14, 0x3333_3333),
        (15, 0x4444_4444),
    ];
    for (word, value) in words {
        put_32(&mut block, word * 4, value);
    }
    let sum = md_sum(&block);
    put_32(&mut block, 38 * 4, sum);
    block
}

/// `struct mdp_superblock_1`, which says where it stands.
fn md_1(image: &Path, offset: u64) {
    let mut block = vec![0; 256];
    put_32(&mut block, 0, MD_MAGIC);
    put_32(&mut block, 4, 1);
    block[16..32].copy_from_slice(b"a set of its own");
    block[32..36].copy_from_slice(b"name");
    put_32(&mut block, 72, 1);
    put_32(&mut block, 92, 2);
    block[144..152].copy_from_slice(&(offset / 512).to_le_bytes());
    let sum = md_sum(&block);
    put_32(&mut block, 216, sum);
    put(&mut open(image), offset, &block);
}

/// A label in the second sector, as pvcreate puts it there, and the text of a volume group behind it.
fn lvm2(image: &Path) {
    let mut label = vec![0; 512];
    label[..8].copy_from_slice(b"LABELONE");
    label[8] = 1;
    put_32(&mut label, 20, 32);
    label[24..32].copy_from_slice(b"LVM2 001");
    label[32..64].copy_from_slice(b"0123456789abcdefghijABCDEFGHIJ42");
    let crc = lvm2_crc(&label[20..]);
    put_32(&mut label, 16, crc);
    put(&mut open(image), 512, &label);
    put(
        &mut open(image),
        4608,
        b"vg0 {\nid = \"0123456789\"\nseqno = 1\n}\n",
    );
}

/// The CRC-32 of Ethernet with a beginning of its own, and not inverted in the end.
fn lvm2_crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xf597_a6cf, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

/// On an image of 64 MiB; 256 KiB each.
const ZFS_LABELS: [u64; 4] = [
    0,
    256 << 10,
    (64 << 20) - (512 << 10),
    (64 << 20) - (256 << 10),
];

/// The ring of uberblocks in the second half of each label.
fn zfs(image: &Path, labels: &[u64]) {
    let mut uberblock = vec![0; 1024];
    uberblock[..8].copy_from_slice(&0x00ba_b10c_u64.to_le_bytes());
    uberblock[8..16].copy_from_slice(&5000_u64.to_le_bytes());
    for label in labels {
        for number in 0..8 {
            put(
                &mut open(image),
                label + (128 << 10) + number * 1024,
                &uberblock,
            );
        }
    }
}

/// Internal metadata in the last 4 KiB, big-endian: sizes and UUIDs, flags, and the magic of 8.x.
fn drbd(image: &Path) {
    let mut block = vec![0; 4096];
    block[..8].copy_from_slice(&(100_000_u64).to_be_bytes());
    block[40..48].copy_from_slice(b"\x11\x22\x33\x44\x55\x66\x77\x88");
    block[60..64].copy_from_slice(&0x8374_026b_u32.to_be_bytes());
    put(&mut open(image), (64 << 20) - 4096, &block);
}
