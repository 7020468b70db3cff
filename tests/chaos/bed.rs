//! What stands around the export: tgtd with a disk on a file, fio before it, and the seed of the run.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::tgt::Tgtd;

const TARGET: &str = "iqn.2026-11.test.cinder-nbd:chaos";
const DISK_BYTES: u64 = 128 << 20;
/// For anything that takes moments when it works at all, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// One run of fio, disturbed.
const LOAD_SECONDS: &str = "400";
/// Gives a run again.
const SEED: &str = "CINDER_NBD_CHAOS_SEED";

/// tgtd with one disk, and a folder for what the test makes.
pub(crate) struct Bed {
    pub(crate) tgtd: Tgtd,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) seed: u64,
}

impl Bed {
    pub(crate) fn new() -> Self {
        let given = std::env::var(SEED).ok().map(|seed| seed.parse().unwrap());
        let seed = given.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
        eprintln!("{SEED}={seed}");
        let tgtd = Tgtd::start();
        tgtd.add_target(TARGET).add_lun_file(1, DISK_BYTES);
        // The less we wait for each reconnect, the more of them meet commands in flight.
        set(&tgtd, "DefaultTime2Wait", "0");
        let dir = tempfile::tempdir().unwrap();
        Self { tgtd, dir, seed }
    }

    /// tgt refuses digests unless told otherwise.
    pub(crate) fn allow_digests(&self) {
        set(&self.tgtd, "HeaderDigest", "CRC32C");
        set(&self.tgtd, "DataDigest", "CRC32C");
    }

    /// A number for the `at`th use in this run.
    pub(crate) fn draw(&self, at: u64, range: Range<u64>) -> u64 {
        let mut word = self.seed ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word = (word ^ (word >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb);
        range.start + (word >> 8) % (range.end - range.start)
    }

    /// The program, as a user starts it, with its log in a file.
    pub(crate) fn export(&self, portal: &str, options: &[&str]) -> Export {
        let socket = self.dir.path().join("nbd.sock");
        let log = self.dir.path().join("log");
        let mut child = Command::new(env!("CARGO_BIN_EXE_cinder-nbd"))
            .args(["export", "--portal", portal, "--target", TARGET])
            .args(["--lun", "1", "--socket"])
            .arg(&socket)
            .args(options)
            .env("RUST_LOG", "info")
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        // The line on stdout says that the socket is there: nothing to poll.
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let export = Export { child, socket, log };
        assert!(!line.is_empty(), "no export:\n{}", export.tail());
        export
    }
}

/// A running `cinder-nbd export`.
pub(crate) struct Export {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Export {
    /// Ends it in order, and counts the reconnects that its log tells of.
    pub(crate) fn finish(mut self) -> u64 {
        let pid = self.child.id().to_string();
        let told = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert!(told.success(), "the export is gone:\n{}", self.tail());
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                Instant::now() < deadline,
                "the export does not end:\n{}",
                self.tail()
            );
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(status.success(), "{status}:\n{}", self.tail());
        let log = std::fs::read_to_string(&self.log).unwrap();
        let reconnects = log.lines().filter(|line| line.contains(RECONNECTED));
        u64::try_from(reconnects.count()).unwrap()
    }

    /// The end of its log.
    pub(crate) fn tail(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One run of fio over an export.
pub(crate) struct Load<'a> {
    child: Child,
    report: PathBuf,
    export: &'a Export,
}

impl<'a> Load<'a> {
    /// Mixed sizes, reads and writes mixed, then every block that was written is read and verified. Each run has its own
    /// seed, which stands in each block: one of an earlier run is found out.
    ///
    /// Not with `verify_backlog`, with which fio verifies a block soon and then never again; nor with `loops`, with
    /// which its verification of mixed sizes fails on a plain file (3.33). A block written twice in one session is the
    /// matter of stamped blocks (`iscsi/tests/lio/load.rs`, the simulation).
    pub(crate) fn start(bed: &Bed, export: &'a Export, pass: u64) -> Self {
        let report = bed.dir.path().join(format!("fio-{pass}"));
        let output = File::create(&report).unwrap();
        let child = Command::new("timeout")
            .args(["-k", "5", LOAD_SECONDS, "fio", "--name=chaos"])
            .args(["--ioengine=nbd", "--rw=randrw", "--rwmixread=30"])
            .args(["--bsrange=4k-256k", "--blockalign=4k", "--iodepth=16"])
            .args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"])
            .args(["--verify_state_save=0", "--fsync=64", "--randrepeat=0"])
            .arg(format!("--size={DISK_BYTES}"))
            .arg(format!("--randseed={}", bed.draw(pass, 1..1 << 40)))
            .arg(format!(
                "--uri=nbd+unix:///?socket={}",
                export.socket.display()
            ))
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self {
            child,
            report,
            export,
        }
    }

    /// Waits until tgtd has moved so many bytes more; `false` if fio ended before.
    pub(crate) fn wait_moved(&mut self, tgtd: &Tgtd, bytes: u64) -> bool {
        let start = moved(tgtd);
        let deadline = Instant::now() + PATIENCE;
        while moved(tgtd) < start + bytes {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            if Instant::now() > deadline {
                self.give_up("nothing moves");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn finish(&mut self) {
        let status = self.child.wait().unwrap();
        if !status.success() {
            self.give_up(&format!("fio: {status}"));
        }
        let report = std::fs::read_to_string(&self.report).unwrap();
        assert!(
            report.contains("err= 0") && !report.contains("verify:"),
            "{report}"
        );
    }

    pub(crate) fn give_up(&mut self, why: &str) -> ! {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let report = std::fs::read_to_string(&self.report).unwrap_or_default();
        panic!("{why}\n{report}\nthe export's log:\n{}", self.export.tail());
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A negotiated value as tgtd wants it; lost when it is restarted.
fn set(tgtd: &Tgtd, key: &str, value: &str) {
    tgtd.tgtadm(&[
        "--lld", "iscsi", "--op", "update", "--mode", "target", "--tid", "1", "--name", key,
        "--value", value,
    ]);
}

/// Bytes that tgtd has read and written since it was started, files and sockets together.
fn moved(tgtd: &Tgtd) -> u64 {
    let pid = tgtd.pid().unwrap();
    let path = Path::new("/proc").join(pid.to_string()).join("io");
    let text = std::fs::read_to_string(path).unwrap();
    let field = |name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    field("rchar:") + field("wchar:")
}

/// What the log says each time.
const RECONNECTED: &str = "the session is back";
