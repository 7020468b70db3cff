//! The kernel's device on a real kernel: run inside the VM of the test bed (`CINDER_NBD_IN_VM=1`), where a missing driver
//! is a failure. Elsewhere each test that needs the driver says that it cannot run.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and so do its helpers"
)]

#[path = "nbd_bed/adoption.rs"]
mod adoption;
mod nbd_bed;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cinder_nbd::block::ErrorKind;
use cinder_nbd::nbd::{DeviceParams, Error, KernelDevice};
use nbd_bed::{Medium, run, run_ok, wait_for};

const MIB: usize = 1 << 20;
/// Names the medium's identifier to the copy of this program that is to be killed.
const CHILD: &str = "CINDER_NBD_TEST_CHILD";

#[test]
fn a_kernel_without_nbd_is_told_in_one_line_with_the_remedy() {
    if Path::new("/sys/module/nbd").exists() {
        return eprintln!("CANNOT RUN HERE: this kernel has nbd");
    }
    let error = KernelDevice::probe().unwrap_err();
    assert!(matches!(error, Error::NoDriver), "{error}");
    assert_eq!(
        error.to_string(),
        "this kernel has no nbd driver: load it with 'modprobe nbd' or boot a kernel that has \
         CONFIG_BLK_DEV_NBD"
    );
    // Asked for a device all the same, it leaves nothing behind: the backend is closed.
    let medium = Medium::new(MIB);
    let error = try_connect(&medium, 1, "none").unwrap_err();
    assert!(matches!(error, Error::NoDriver), "{error}");
    assert_eq!((medium.counts().opened, medium.counts().closed), (1, 1));
}

#[test]
fn what_the_driver_cannot_show_is_refused_in_words_and_every_backend_closed() {
    let large = Medium::with(MIB, |geometry| geometry.block_bytes = 8192);
    let error = try_connect(&large, 2, "blocks").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the volume has blocks of 8192 bytes, the kernel's nbd driver takes 512 to 4096: use \
         'export' instead"
    );
    assert_eq!((large.counts().opened, large.counts().closed), (2, 2));

    let odd = Medium::with(MIB, |geometry| geometry.size_bytes = 1000);
    assert!(matches!(
        try_connect(&odd, 1, "odd"),
        Err(Error::SizeBytes(1000))
    ));
    assert!(matches!(try_connect(&odd, 0, "none"), Err(Error::NoLanes)));
    for identifier in ["", "a\nb", &"x".repeat(256)] {
        assert!(matches!(
            try_connect(&odd, 1, identifier),
            Err(Error::Identifier(_))
        ));
    }

    // Two lanes that do not reach the same volume.
    let (one, other) = (Medium::new(MIB), Medium::new(2 * MIB));
    let media = [one.clone(), other.clone()];
    let outcome = block_on(KernelDevice::connect_with(
        2,
        move |lane| {
            let backend = media[lane].open();
            async move { Ok(backend) }
        },
        DeviceParams::new("differ"),
    ));
    assert!(matches!(outcome, Err(Error::Geometry)), "{outcome:?}");
    assert_eq!((one.counts().closed, other.counts().closed), (1, 1));
}

#[test]
fn the_device_shows_what_the_backend_is() {
    if !kernel_is_here() {
        return;
    }
    for (block, read_only) in [(512, false), (4096, true)] {
        let medium = Medium::with(8 * MIB, |geometry| {
            geometry.block_bytes = block;
            geometry.read_only = read_only;
        });
        let device = connect(&medium, 1, "shows");
        assert!(device.is_served());
        assert_eq!(sysfs(&device, "size"), (8 * MIB / 512).to_string());
        assert_eq!(
            sysfs(&device, "queue/logical_block_size"),
            block.to_string()
        );
        assert_eq!(sysfs(&device, "ro"), u8::from(read_only).to_string());
        assert_eq!(sysfs(&device, "backend"), "shows");
        assert_eq!(sysfs(&device, "queue/max_sectors_kb"), "1024");
        assert!(sysfs(&device, "queue/scheduler").contains("[none]"));
        let cache = if read_only {
            "write through"
        } else {
            "write back"
        };
        assert_eq!(sysfs(&device, "queue/write_cache"), cache);
        assert_eq!(sysfs(&device, "queue/io_timeout"), "150000");
        let pid = sysfs_path(&device, "pid");
        assert!(pid.exists());
        disconnect(device);
        assert!(!pid.exists(), "nothing is left");
        assert_eq!(medium.counts().closed, 1);
    }
}

#[test]
fn what_is_written_is_what_is_read() {
    if !kernel_is_here() {
        return;
    }
    let medium = Medium::new(32 * MIB);
    let device = connect(&medium, 1, "bytes");
    let path = device.path();
    let mut image = vec![0; 32 * MIB];
    File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut image)
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("image");
    std::fs::write(&source, &image).unwrap();
    let (from, to) = (
        format!("if={}", source.display()),
        format!("of={}", path.display()),
    );
    run_ok("dd", &[&from, &to, "bs=1M", "oflag=direct"]);
    assert!(
        medium.bytes(0..image.len()) == image,
        "direct writes arrive"
    );
    medium.fill(5 * MIB, &[0x5a; 4096]);
    image[5 * MIB..5 * MIB + 4096].fill(0x5a);
    let mut read = Vec::new();
    direct(&path, false).take_aligned(image.len(), &mut read);
    assert!(read == image, "direct reads see the medium");

    let before = medium.counts();
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(7 * 512)).unwrap();
    file.write_all(&[0x77; 512]).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert_eq!(medium.bytes(7 * 512..8 * 512), [0x77; 512]);
    assert!(medium.counts().flushes > before.flushes, "fsync is a flush");
    disconnect(device);
}

#[test]
fn a_filesystem_lives_on_it_and_keeps_it_from_being_disconnected() {
    if !kernel_is_here() {
        return;
    }
    let medium = Medium::new(64 * MIB);
    let device = connect(&medium, 1, "ext4");
    let path = device.path();
    let node = path.to_str().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().to_str().unwrap();
    run_ok("mkfs.ext4", &["-q", node]);
    run_ok("mount", &[node, at]);
    let mut content = vec![0; 3 * MIB + 77];
    File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut content)
        .unwrap();
    std::fs::write(directory.path().join("file"), &content).unwrap();

    let (device, error) = block_on(device.disconnect(false)).unwrap_err();
    let words = error.to_string();
    assert!(words.contains(&format!("a mount at {at}")), "{words}");
    assert!(
        words.starts_with(&format!("{node} is in use by ")),
        "{words}"
    );
    // It still works, with its cache dropped.
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    assert!(std::fs::read(directory.path().join("file")).unwrap() == content);

    run_ok("umount", &[at]);
    disconnect(device);
    let device = connect(&medium, 1, "ext4 again");
    let node = device.path().to_str().unwrap().to_owned();
    run_ok("e2fsck", &["-f", "-n", &node]);
    run_ok("mount", &[&node, at]);
    assert!(std::fs::read(directory.path().join("file")).unwrap() == content);
    run_ok("umount", &[at]);
    disconnect(device);
    let counts = medium.counts();
    assert_eq!((counts.opened, counts.closed), (2, 2));
}

#[test]
fn an_open_device_is_not_disconnected_but_by_force() {
    if !kernel_is_here() {
        return;
    }
    let medium = Medium::new(8 * MIB);
    let device = connect(&medium, 1, "open");
    let mut holder = Command::new("sleep")
        .arg("600")
        .stdin(Stdio::from(File::open(device.path()).unwrap()))
        .spawn()
        .unwrap();
    let (device, error) = block_on(device.disconnect(false)).unwrap_err();
    let words = error.to_string();
    assert!(
        words.contains(&format!("process {} sleep", holder.id())),
        "{words}"
    );
    assert!(device.is_served());
    let pid = sysfs_path(&device, "pid");
    block_on(device.disconnect(true))
        .map_err(|(_, error)| error)
        .unwrap();
    assert_eq!(medium.counts().closed, 1);
    // The kernel frees the number when the last user is gone.
    assert!(pid.exists());
    holder.kill().unwrap();
    holder.wait().unwrap();
    wait_for("the device to be free", || !pid.exists());
}

#[test]
fn a_failing_backend_gives_errors_and_the_device_survives_them() {
    if !kernel_is_here() {
        return;
    }
    let medium = Medium::new(8 * MIB);
    let device = connect(&medium, 1, "fails");
    let node = device.path();
    let node = node.to_str().unwrap();
    wait_for("the device to be readable", || run_dd(node));
    medium.fail(Some(ErrorKind::Io));
    assert!(!run_dd(node));
    medium.fail(None);
    assert!(run_dd(node));
    disconnect(device);
}

/// The backend answers nothing any more: by force its users are freed, and the lane still waits for the backend.
#[test]
fn force_frees_those_who_wait_for_a_silent_backend() {
    if !kernel_is_here() {
        return;
    }
    let medium = Medium::new(8 * MIB);
    let device = connect(&medium, 1, "silent");
    let node = device.path().to_str().unwrap().to_owned();
    wait_for("the device to be readable", || run_dd(&node));
    medium.hold(true);
    let reader = std::thread::spawn(move || run_dd(&node));
    let force = std::thread::spawn(move || {
        block_on(device.disconnect(true))
            .map_err(|(_, error)| error)
            .unwrap();
    });
    assert!(!reader.join().unwrap(), "the read failed");
    assert_eq!(
        medium.counts().closed,
        0,
        "what the backend was given is waited for"
    );
    medium.hold(false);
    force.join().unwrap();
    assert_eq!(medium.counts().closed, 1);
}

#[test]
fn dirty_pages_are_written_before_it_goes() {
    if !kernel_is_here() {
        return;
    }
    let medium = Medium::new(16 * MIB);
    let device = connect(&medium, 1, "dirty");
    std::fs::write(device.path(), vec![0x3c; 8 * MIB]).unwrap();
    disconnect(device);
    assert!(medium.bytes(0..8 * MIB).iter().all(|byte| *byte == 0x3c));
    assert!(medium.counts().flushes > 0);
}

#[test]
fn several_lanes_serve_one_device() {
    if !kernel_is_here() {
        return;
    }
    let medium = Medium::new(64 * MIB);
    let device = connect(&medium, 2, "lanes");
    let node = device.path();
    assert!(device.is_served());
    let writers: Vec<_> = (0..4_u8)
        .map(|number| {
            let node = node.clone();
            std::thread::spawn(move || {
                let mut file = direct(&node, true);
                file.put_aligned(usize::from(number) * 16 * MIB, number + 1, 16 * MIB);
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    for number in 0..4_u8 {
        let at = usize::from(number) * 16 * MIB;
        assert!(
            medium
                .bytes(at..at + 16 * MIB)
                .iter()
                .all(|byte| *byte == number + 1)
        );
    }
    disconnect(device);
    let counts = medium.counts();
    assert_eq!((counts.opened, counts.closed), (2, 2));
}

/// A device that was used before keeps limits of its queue: what comes after must work whatever came before.
#[test]
fn a_recycled_device_works_with_other_abilities() {
    if !kernel_is_here() {
        return;
    }
    for abilities in [true, false, true] {
        let medium = Medium::with(16 * MIB, |geometry| {
            geometry.can_trim = abilities;
            geometry.can_write_zeroes = abilities;
        });
        medium.fill(0, &vec![0xff; 16 * MIB]);
        let device = connect(&medium, 1, "recycled");
        let node = device.path();
        let node = node.to_str().unwrap();
        run_ok(
            "blkdiscard",
            &["-z", "--offset", "1048576", "--length", "4194304", node],
        );
        assert!(medium.bytes(MIB..5 * MIB).iter().all(|byte| *byte == 0));
        assert_eq!(medium.bytes(5 * MIB..5 * MIB + 512), [0xff; 512]);
        let discarded = run(
            "blkdiscard",
            &["--offset", "8388608", "--length", "1048576", node],
        );
        if abilities {
            assert!(discarded.status.success());
            assert_eq!(medium.counts().trims, 1);
        } else {
            assert_eq!(medium.counts().trims, 0);
        }
        disconnect(device);
    }
}

#[test]
fn a_killed_server_leads_to_errors_and_what_it_left_is_found_and_removed() {
    if !kernel_is_here() {
        return;
    }
    let identifier = "killed";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "child_that_serves_until_it_is_killed",
            "--nocapture",
        ])
        .env(CHILD, identifier)
        .spawn()
        .unwrap();
    let mut node = None;
    wait_for("the child's device", || {
        node = node_of(identifier);
        node.is_some()
    });
    let node = node.unwrap();
    // The first open reads the partition table; it must be over before the child is killed.
    wait_for("the device to be readable", || run_dd(&node));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("reads to fail", || !run_dd(&node));
    assert_eq!(
        node_of(identifier).as_deref(),
        Some(&*node),
        "it is still configured"
    );
    KernelDevice::disconnect_stale(identifier).unwrap();
    assert_eq!(node_of(identifier), None);
    KernelDevice::disconnect_stale(identifier).unwrap();
}

/// Not a test by itself: the process that the one above kills.
#[test]
fn child_that_serves_until_it_is_killed() {
    let Ok(identifier) = std::env::var(CHILD) else {
        return;
    };
    let medium = Medium::new(8 * MIB);
    let _device = connect(&medium, 1, &identifier);
    std::thread::sleep(Duration::from_mins(1));
}

/// Whether the kernel's part can be tested; if not, says so loudly, and in the VM fails.
fn kernel_is_here() -> bool {
    match KernelDevice::probe() {
        Ok(()) => true,
        Err(error) => {
            assert!(
                std::env::var_os("CINDER_NBD_IN_VM").is_none(),
                "in the VM there is: {error}"
            );
            eprintln!("CANNOT RUN HERE: {error}; cargo xtask test runs this in a VM");
            false
        }
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn try_connect(medium: &Medium, lanes: usize, identifier: &str) -> Result<KernelDevice, Error> {
    let medium = medium.clone();
    let open = move |_| {
        let backend = medium.open();
        async move { Ok(backend) }
    };
    block_on(KernelDevice::connect_with(
        lanes,
        open,
        DeviceParams::new(identifier),
    ))
}

#[track_caller]
fn connect(medium: &Medium, lanes: usize, identifier: &str) -> KernelDevice {
    try_connect(medium, lanes, identifier).unwrap()
}

#[track_caller]
fn disconnect(device: KernelDevice) {
    block_on(device.disconnect(false))
        .map_err(|(_, error)| error)
        .unwrap();
}

fn sysfs_path(device: &KernelDevice, attribute: &str) -> PathBuf {
    let path = device.path();
    Path::new("/sys/block")
        .join(path.file_name().unwrap())
        .join(attribute)
}

#[track_caller]
fn sysfs(device: &KernelDevice, attribute: &str) -> String {
    let path = sysfs_path(device, attribute);
    std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .trim()
        .into()
}

/// The device that sysfs shows under an identifier.
fn node_of(identifier: &str) -> Option<String> {
    std::fs::read_dir("/sys/block").unwrap().find_map(|entry| {
        let entry = entry.unwrap();
        let backend = std::fs::read_to_string(entry.path().join("backend")).ok()?;
        let name = entry.file_name().into_string().unwrap();
        (backend.trim() == identifier && entry.path().join("pid").exists())
            .then(|| format!("/dev/{name}"))
    })
}

fn run_dd(node: &str) -> bool {
    let source = format!("if={node}");
    run(
        "dd",
        &[&source, "of=/dev/null", "bs=4k", "count=1", "iflag=direct"],
    )
    .status
    .success()
}

/// Direct I/O, whose buffers must be aligned: pieces of 64 KiB in a buffer that is.
struct Direct(File);

fn direct(path: &Path, write: bool) -> Direct {
    let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap();
    Direct(
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(flags)
            .open(path)
            .unwrap(),
    )
}

impl Direct {
    const PIECE: usize = 64 << 10;

    fn take_aligned(&mut self, length: usize, into: &mut Vec<u8>) {
        let mut space = vec![0; 2 * Self::PIECE];
        let start = space.as_ptr().align_offset(4096);
        while into.len() < length {
            self.0
                .read_exact(&mut space[start..start + Self::PIECE])
                .unwrap();
            into.extend_from_slice(&space[start..start + Self::PIECE]);
        }
    }

    fn put_aligned(&mut self, at: usize, byte: u8, length: usize) {
        let space = vec![byte; 2 * Self::PIECE];
        let start = space.as_ptr().align_offset(4096);
        self.0
            .seek(SeekFrom::Start(u64::try_from(at).unwrap()))
            .unwrap();
        for _ in 0..length / Self::PIECE {
            self.0
                .write_all(&space[start..start + Self::PIECE])
                .unwrap();
        }
    }
}
