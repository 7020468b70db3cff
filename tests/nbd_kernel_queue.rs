//! What surrounds the kernel's device, on a real kernel: queue settings of a used device, read-only, growth under a
//! mounted filesystem, udev's links. Run inside the VM of the test bed (`CINDER_NBD_IN_VM=1`), where a missing driver is
//! a failure. Elsewhere each test says that it cannot run.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and so do its helpers"
)]

#[expect(dead_code, reason = "other tests need more of the bed")]
mod nbd_bed;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use cinder_nbd::block::{Backend, Completion, Geometry, Request};
use cinder_nbd::nbd::{DeviceParams, KernelDevice};
use nbd_bed::{Medium, MemoryBackend, run, run_ok, wait_for};

const MIB: usize = 1 << 20;

/// Limits of the queue outlive a connection: what comes after must have its own.
#[test]
fn a_used_device_gets_the_limits_of_its_new_medium() {
    if !kernel_is_here() {
        return;
    }
    let mut paths = Vec::new();
    for (can_trim, rotational, request_kib) in [
        (true, false, 1024),
        (false, true, 64),
        (true, false, 1024),
        (false, false, 512),
    ] {
        let medium = Medium::with(8 * MIB, |geometry| {
            geometry.can_trim = can_trim;
            geometry.rotational = rotational;
            geometry.request_bytes_max = request_kib << 10;
        });
        let device = connect(&medium, "used");
        paths.push(device.path());
        let discard = if can_trim { "1073741824" } else { "0" };
        assert_eq!(sysfs(&device, "queue/discard_max_bytes"), discard);
        assert_eq!(
            sysfs(&device, "queue/rotational"),
            u8::from(rotational).to_string()
        );
        let kib = request_kib.to_string();
        assert_eq!(sysfs(&device, "queue/max_sectors_kb"), kib);
        let ahead = (2 * request_kib).to_string();
        assert_eq!(sysfs(&device, "queue/read_ahead_kb"), ahead);
        assert!(sysfs(&device, "queue/scheduler").contains("[none]"));
        assert_eq!(sysfs(&device, "queue/write_cache"), "write back");
        // Somebody turns a knob; the next attach does not inherit it.
        std::fs::write(sysfs_path(&device, "queue/read_ahead_kb"), "4").unwrap();
        let discarded = run("blkdiscard", &[text(&device.path())]).status.success();
        assert_eq!(
            (discarded, medium.counts().trims > 0),
            (can_trim, can_trim),
            "trim is done where it can be, and refused by the kernel where not"
        );
        disconnect(device);
    }
    assert!(
        paths.windows(2).all(|two| two[0] == two[1]),
        "the number was used again: {paths:?}"
    );
}

#[test]
fn read_only_is_honoured_by_the_kernel_and_by_us() {
    if !kernel_is_here() {
        return;
    }
    // A filesystem is made while it may be written.
    let medium = Medium::new(32 * MIB);
    let device = connect(&medium, "writable");
    run_ok("mkfs.ext4", &["-q", text(&device.path())]);
    disconnect(device);
    let before = medium.bytes(0..32 * MIB);

    let open = {
        let medium = medium.clone();
        move |_| {
            let backend = Growing::new(medium.open(), |geometry| geometry.read_only = true);
            async move { Ok(backend) }
        }
    };
    let device = block_on(KernelDevice::connect_with(1, open, params("read only"))).unwrap();
    let node = device.path();
    assert_eq!(sysfs(&device, "ro"), "1");
    assert_eq!(run_ok("blockdev", &["--getro", text(&node)]).trim(), "1");
    let write = |node: &str| {
        let to = format!("of={node}");
        let input = ["if=/dev/zero", &to, "bs=4k", "count=1", "oflag=direct"];
        run("dd", &input).status.success()
    };
    assert!(!write(text(&node)));
    let directory = tempfile::tempdir().unwrap();
    let at = text(directory.path());
    assert!(
        !run("mount", &["-o", "rw", text(&node), at])
            .status
            .success()
            || run("findmnt", &["-n", "-o", "OPTIONS", at])
                .stdout
                .starts_with(b"ro"),
        "it is not mounted for writing"
    );
    let _ = run("umount", &[at]);
    run_ok("mount", &["-o", "ro", text(&node), at]);
    assert!(directory.path().join("lost+found").exists());
    run_ok("umount", &[at]);
    // Root may tell the kernel otherwise (BLKROSET); then the lane refuses.
    run_ok("blockdev", &["--setrw", text(&node)]);
    assert!(!write(text(&node)));
    run_ok("blockdev", &["--setro", text(&node)]);
    disconnect(device);
    assert!(
        medium.bytes(0..32 * MIB) == before,
        "not one byte was changed"
    );
}

/// Two lanes, of which one hears of the growth; a filesystem in use, whose writer goes on.
#[test]
fn a_device_grows_under_a_mounted_filesystem_and_its_writer_sees_no_error() {
    if !kernel_is_here() {
        return;
    }
    let medium = Medium::new(96 * MIB);
    let found = Arc::new(AtomicU64::new(0));
    let open = {
        let found = Arc::clone(&found);
        move |_| {
            let mut backend = Growing::new(medium.open(), |geometry| {
                geometry.size_bytes = bytes(48 * MIB);
            });
            backend.found = Arc::clone(&found);
            async move { Ok(backend) }
        }
    };
    let device = block_on(KernelDevice::connect_with(2, open, params("grows"))).unwrap();
    let node = device.path();
    run_ok("mkfs.ext4", &["-q", text(&node)]);
    let directory = tempfile::tempdir().unwrap();
    let at = text(directory.path()).to_owned();
    run_ok("mount", &[text(&node), &at]);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (stop, file) = (Arc::clone(&stop), directory.path().join("written"));
        std::thread::spawn(move || {
            let mut rounds = 0_u32;
            while !stop.load(Ordering::SeqCst) || rounds < 3 {
                std::fs::write(&file, vec![0x42; 2 * MIB]).unwrap();
                std::fs::File::open(&file).unwrap().sync_all().unwrap();
                rounds += 1;
            }
        })
    };
    for size in [64 * MIB, 96 * MIB] {
        found.store(bytes(size), Ordering::SeqCst);
        let size = size.to_string();
        wait_for("the device to be larger", || {
            run_ok("blockdev", &["--getsize64", text(&node)]).trim() == size
        });
        run_ok("resize2fs", &[text(&node)]);
    }
    stop.store(true, Ordering::SeqCst);
    writer.join().unwrap();
    let blocks = run_ok("stat", &["-f", "-c", "%b", &at]);
    let block = run_ok("stat", &["-f", "-c", "%S", &at]);
    let size = blocks.trim().parse::<usize>().unwrap() * block.trim().parse::<usize>().unwrap();
    assert!(size > 72 * MIB, "the filesystem has {size} bytes");
    // What is behind the old end can be used.
    std::fs::write(directory.path().join("large"), vec![0x17; 56 * MIB]).unwrap();
    run_ok("umount", &[&at]);
    run_ok("e2fsck", &["-f", "-n", text(&node)]);
    disconnect(device);
}

/// With udev running and our rule installed: the job of the VM sees to both, and says so.
#[test]
fn udev_makes_links_by_volume_and_name_and_takes_them_away() {
    if std::env::var_os("CINDER_NBD_UDEV").is_none() {
        return eprintln!("CANNOT RUN HERE: udev with our rule runs in the VM only");
    }
    assert!(kernel_is_here());
    let medium = Medium::new(32 * MIB);
    // One partition from 1 MiB on, 16 MiB long, of type Linux: the table of an MBR.
    let mut entry = [0; 16];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&2048_u32.to_le_bytes());
    entry[12..16].copy_from_slice(&32768_u32.to_le_bytes());
    medium.fill(446, &entry);
    medium.fill(510, &[0x55, 0xaa]);
    let volume = "6f2a7c1e-0d35-4d0e-9f6b-b1a5c8a0d001";
    let by_id = PathBuf::from(format!("/dev/disk/by-id/cinder-nbd-{volume}"));
    let by_name = PathBuf::from("/dev/cinder-nbd/data_1");
    let part = |link: &Path| PathBuf::from(format!("{}-part1", link.display()));
    let leads_to = |link: &Path, node: &str| {
        std::fs::canonicalize(link).is_ok_and(|found| found == Path::new(node))
    };
    let is_gone = |link: &Path| std::fs::symlink_metadata(link).is_err();
    // Twice: the second attach finds what the first one left of it, nothing.
    for entry in ["one", "two"] {
        let device = connect(&medium, &format!("cinder-nbd:{entry}:{volume}:data_1"));
        let node = text(&device.path()).to_owned();
        for link in [&by_id, &by_name] {
            wait_for("the link of the device", || leads_to(link, &node));
            wait_for("the link of its partition", || {
                leads_to(&part(link), &format!("{node}p1"))
            });
        }
        disconnect(device);
        for link in [&by_id, &by_name] {
            wait_for("the links to go", || is_gone(link) && is_gone(&part(link)));
        }
    }
    // A target that no cloud knows: its name alone. And what is not ours gets nothing.
    let name = "iqn.2010-10.org.example:v1-lun-1";
    let device = connect(&medium, &format!("cinder-nbd:three::{name}"));
    let link = Path::new("/dev/cinder-nbd").join(name);
    wait_for("the link of a static target", || {
        leads_to(&link, text(&device.path()))
    });
    disconnect(device);
    let device = connect(&medium, "somebody:else::data");
    run_ok("udevadm", &["settle"]);
    assert!(is_gone(Path::new("/dev/cinder-nbd/data")));
    disconnect(device);
}

/// A backend in memory that is told what it is, and that it has grown.
struct Growing {
    backend: MemoryBackend,
    geometry: Geometry,
    /// A size that the first backend to look takes for its own finding.
    found: Arc<AtomicU64>,
}

impl Growing {
    fn new(backend: MemoryBackend, change: impl FnOnce(&mut Geometry)) -> Self {
        let mut geometry = backend.geometry().clone();
        change(&mut geometry);
        Self {
            backend,
            geometry,
            found: Arc::default(),
        }
    }
}

impl Backend for Growing {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }
    fn free_slots(&self) -> usize {
        self.backend.free_slots()
    }
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        self.backend.submit(request)
    }
    fn poll_completion(&mut self, cx: &mut Context<'_>) -> Poll<Completion> {
        self.backend.poll_completion(cx)
    }
    fn take_growth(&mut self) -> Option<u64> {
        let found = self.found.swap(0, Ordering::SeqCst);
        self.handle_growth(found);
        (found > 0).then_some(found)
    }
    fn handle_growth(&mut self, size_bytes: u64) {
        self.geometry.size_bytes = self.geometry.size_bytes.max(size_bytes);
    }
    fn close(self) -> impl Future<Output = ()> + Send {
        self.backend.close()
    }
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

fn params(identifier: &str) -> DeviceParams {
    DeviceParams::new(identifier)
}

#[track_caller]
fn connect(medium: &Medium, identifier: &str) -> KernelDevice {
    let medium = medium.clone();
    let open = move |_| {
        let backend = medium.open();
        async move { Ok(backend) }
    };
    block_on(KernelDevice::connect_with(1, open, params(identifier))).unwrap()
}

#[track_caller]
fn disconnect(device: KernelDevice) {
    block_on(device.disconnect(false))
        .map_err(|(_, error)| error)
        .unwrap();
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn sysfs_path(device: &KernelDevice, attribute: &str) -> PathBuf {
    Path::new("/sys/block")
        .join(device.path().file_name().unwrap())
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

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn bytes(size: usize) -> u64 {
    u64::try_from(size).unwrap()
}
