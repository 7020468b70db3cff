//! What is mounted and written to while its volume grows, and while a snapshot of it is taken.
//!
//! As `kernel`, these say so and end where the kernel has no nbd.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use support::cloud::Fault;

use crate::bed::wait_until;
use crate::kernel::Host;

/// Appends numbered records, each synced, until it is stopped.
struct Writer {
    written: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Writer {
    fn start(path: PathBuf) -> Self {
        let (written, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (theirs, stopped) = (Arc::clone(&written), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut file = File::create(path)?;
            while !stopped.load(Ordering::SeqCst) {
                let number = theirs.load(Ordering::SeqCst);
                writeln!(file, "{number}")?;
                file.sync_data()?;
                theirs.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        Self {
            written,
            stop,
            thread,
        }
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    /// Waits until it has written more than it has now.
    #[track_caller]
    fn wait_for_more(&self) {
        let before = self.written();
        wait_until("the writer goes on", || self.written() > before + 1);
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap().unwrap();
        self.written.load(Ordering::SeqCst)
    }
}

/// The records of a file, which must be whole and in order; how many.
#[track_caller]
fn records(path: &Path) -> u64 {
    let text = std::fs::read_to_string(path).unwrap();
    let mut expected = 0;
    for line in text.lines() {
        assert_eq!(line.parse::<u64>().ok(), Some(expected), "{line}");
        expected += 1;
    }
    expected
}

#[test]
fn what_is_mounted_grows_with_its_volume_while_it_is_written_to() {
    let Some(host) = Host::new() else { return };
    for fstype in ["ext4", "xfs", "btrfs"] {
        host.create(fstype, &format!(r#""fstype":"{fstype}","size":"1""#));
        let at = host.mount(fstype);
        let writer = Writer::start(at.join("records"));
        writer.wait_for_more();
        host.home.run(&["volume", "extend", fstype, "3"]).ok();
        writer.wait_for_more();
        let view = host.view(fstype);
        assert_eq!(view["device_bytes"].as_u64(), Some(3 << 30), "{view}");
        let bytes = view["filesystem_bytes"].as_u64().unwrap_or_default();
        // Less what a filesystem keeps for itself.
        assert!(bytes > 2_700_000_000, "{fstype}: {view}");
        let status = rustix::fs::statvfs(&at).unwrap();
        assert!(
            status.f_blocks * status.f_frsize > 2_700_000_000,
            "{fstype}"
        );
        let written = writer.end();
        host.unmount(fstype);
        let at = host.mount(fstype);
        assert!(records(&at.join("records")) >= written, "{fstype}");
        host.unmount(fstype);
    }
    host.assert_nothing_is_left();
}

#[test]
fn a_snapshot_of_what_is_written_to_is_at_rest_and_mounts_as_a_volume() {
    let Some(host) = Host::new() else { return };
    for fstype in ["ext4", "xfs", "btrfs"] {
        host.create(fstype, &format!(r#""fstype":"{fstype}""#));
        let at = host.mount(fstype);
        let writer = Writer::start(at.join("records"));
        writer.wait_for_more();
        let before = writer.written();
        let taken = ["volume", "snapshot", "create", fstype, "s1", "--json"];
        let taken = host.home.run(&taken).ok().stdout;
        let taken: serde_json::Value = serde_json::from_str(&taken).unwrap();
        assert_eq!(taken["consistency"], "filesystem", "{taken}");
        writer.wait_for_more();
        writer.end();
        host.unmount(fstype);
        let (copy, id) = (format!("{fstype}-copy"), &taken["snapshot"]["id"]);
        host.create(&copy, &format!(r#""snapshot_id":{id},"fstype":"{fstype}""#));
        if fstype == "ext4" {
            assert_at_rest(&host, &copy);
        }
        let at = host.mount(&copy);
        assert!(records(&at.join("records")) >= before, "{fstype}");
        host.unmount(&copy);
        let id = id.as_str().unwrap();
        host.home.run(&["volume", "snapshot", "delete", id]).ok();
    }
    host.assert_nothing_is_left();
}

/// No journal is to be replayed on it.
fn assert_at_rest(host: &Host, name: &str) {
    let device = host.home.run(&["attach", name]).ok().stdout;
    let told = Command::new("dumpe2fs")
        .args(["-h", device.trim()])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(
        told.contains("has_journal") && !told.contains("needs_recovery"),
        "{told}"
    );
    host.home.run(&["detach", name]).ok();
}

#[test]
fn writes_wait_no_longer_than_was_allowed_and_a_killed_daemon_thaws_at_its_return() {
    let Some(host) = Host::new() else { return };
    host.create("v1", "");
    let at = host.mount("v1");
    let writer = Writer::start(at.join("records"));
    writer.wait_for_more();
    // Cinder never takes it.
    host.cloud.inject(Fault::CreateHangs);
    let ask = |host: &Host, name: &str, limit: &str| {
        let words = ["volume", "snapshot", "create", "v1", name];
        let mut command = host.home.command(&words);
        command.args(["--freeze-limit", limit]).spawn().unwrap()
    };
    let mut asking = ask(&host, "s1", "2");
    wait_until("the snapshot is asked for", || {
        !host.cloud.snapshots().is_empty()
    });
    std::thread::sleep(Duration::from_secs(3));
    writer.wait_for_more();
    asking.kill().unwrap();
    asking.wait().unwrap();
    // And one that is to last: the daemon dies in it.
    host.cloud.inject(Fault::CreateHangs);
    let mut asking = ask(&host, "s2", "300");
    wait_until("the snapshot is asked for", || {
        host.cloud.snapshots().len() == 2
    });
    let frozen = writer.written();
    std::thread::sleep(Duration::from_secs(2));
    assert!(writer.written() <= frozen + 1, "it was not frozen");
    let host = host.with_another_daemon();
    asking.wait().unwrap();
    writer.wait_for_more();
    let written = writer.end();
    assert!(records(&at.join("records")) >= written);
    host.unmount("v1");
    host.assert_nothing_is_left();
}
