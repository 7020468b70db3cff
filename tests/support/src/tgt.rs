//! A real `tgtd` of a test's own: the target that Cinder's LVM driver uses by default.
//!
//! Each fixture has its own loopback port, control socket and folder, so any number run beside each other and
//! beside the machine's own `tgtd`. Everything is configured through `tgtadm`, as Cinder does.
//!
//! Source: `tgtd(8)`, `tgtadm(8)`; `TGT_IPC_SOCKET` moves the control socket (seen with 1.0.85).
//!
//! Invariants:
//! 1. `tgtd` ignores SIGTERM, so it is killed; what was configured is remembered here and set again by `restart`.
//! 2. The process dies with the fixture.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A running `tgtd`, killed on drop.
///
/// ```no_run
/// let tgtd = support::tgt::Tgtd::start();
/// tgtd.add_target("iqn.2026-11.test:disk")
///     .add_lun_file(1, 64 << 20)
///     .add_chap("user", "a-secret-of-16-b");
/// println!("{} {}", tgtd.portal(), tgtd.sessions());
/// ```
#[derive(Debug)]
pub struct Tgtd {
    dir: TempDir,
    port: u16,
    state: Mutex<State>,
}

impl Tgtd {
    /// Starts a `tgtd` without targets on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// If tgt is not installed, or does not start.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("tgtd-")
            .tempdir()
            .expect("a temporary folder can be made");
        // Another process may take the port between our look and tgtd's bind: then look again.
        for _ in 0..PORT_TRIES {
            let port = free_port();
            if let Some(child) = spawn(dir.path(), port) {
                let state = Mutex::new(State {
                    child: Some(child),
                    targets: Vec::new(),
                });
                return Self { dir, port, state };
            }
        }
        panic!("tgtd did not start: {}", log_tail(dir.path()));
    }

    /// Adds a target that any initiator may log in to. LUN 0 is tgt's own controller; disks begin at 1.
    ///
    /// # Panics
    /// If tgtd refuses.
    pub fn add_target(&self, iqn: &str) -> &Self {
        let mut state = self.lock();
        let target = Target {
            tid: state
                .targets
                .iter()
                .map(|target| target.tid)
                .max()
                .unwrap_or(0)
                + 1,
            iqn: iqn.to_owned(),
            luns: Vec::new(),
            accounts: Vec::new(),
        };
        self.create(&target);
        state.targets.push(target);
        self
    }

    /// Adds a LUN on a new sparse file to the target added last.
    ///
    /// # Panics
    /// If there is no target yet, or tgtd refuses.
    pub fn add_lun_file(&self, lun: u16, bytes: u64) -> &Self {
        self.add_lun(lun, Some(bytes))
    }

    /// Adds a LUN of 1 TB that throws writes away and reads nothing, for measuring, to the target added last.
    ///
    /// # Panics
    /// If there is no target yet, or tgtd refuses.
    pub fn add_lun_null(&self, lun: u16) -> &Self {
        self.add_lun(lun, None)
    }

    /// Lets only this user log in to the target added last (one-way CHAP, MD5).
    ///
    /// # Panics
    /// If there is no target yet, or tgtd refuses.
    pub fn add_chap(&self, user: &str, secret: &str) -> &Self {
        let mut state = self.lock();
        let target = state.last();
        let account = Account {
            user: user.to_owned(),
            secret: secret.to_owned(),
        };
        self.bind_account(target.tid, &account);
        target.accounts.push(account);
        self
    }

    /// Removes a target; its sessions are cut, as when Cinder deletes an attachment.
    ///
    /// # Panics
    /// If there is no such target, or tgtd refuses.
    pub fn remove_target(&self, iqn: &str) {
        let mut state = self.lock();
        let at = state
            .targets
            .iter()
            .position(|target| target.iqn == iqn)
            .expect("the target was added");
        let tid = state.targets.remove(at).tid.to_string();
        self.must(&[
            "--lld", "iscsi", "--op", "delete", "--mode", "target", "--tid", &tid, "--force",
        ]);
    }

    /// Removes a LUN of a target; sessions stay.
    ///
    /// # Panics
    /// If there is no such target or LUN, or tgtd refuses.
    pub fn remove_lun(&self, iqn: &str, lun: u16) {
        let mut state = self.lock();
        let target = state
            .targets
            .iter_mut()
            .find(|target| target.iqn == iqn)
            .expect("the target was added");
        target.luns.retain(|known| known.number != lun);
        let (tid, lun) = (target.tid.to_string(), lun.to_string());
        self.must(&[
            "--lld",
            "iscsi",
            "--op",
            "delete",
            "--mode",
            "logicalunit",
            "--tid",
            &tid,
            "--lun",
            &lun,
        ]);
    }

    /// Kills tgtd with SIGKILL: connections are reset, the port is closed.
    pub fn kill(&self) {
        if let Some(mut child) = self.lock().child.take() {
            // Both fail only if it is already dead.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills tgtd if it runs, and starts it again with the same port, targets, LUNs and data.
    ///
    /// # Panics
    /// If it does not come up again.
    pub fn restart(&self) {
        self.kill();
        let mut state = self.lock();
        let child = spawn(self.dir.path(), self.port)
            .unwrap_or_else(|| panic!("tgtd did not restart: {}", log_tail(self.dir.path())));
        state.child = Some(child);
        for target in &state.targets {
            self.create(target);
            for lun in &target.luns {
                self.create_lun(target.tid, lun);
            }
            for account in &target.accounts {
                self.bind_account(target.tid, account);
            }
        }
    }

    /// Stops tgtd as SIGSTOP does: sockets stay open and nobody answers.
    ///
    /// # Panics
    /// If it does not run.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Undoes `freeze`.
    ///
    /// # Panics
    /// If it does not run.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    /// `127.0.0.1:PORT`.
    pub fn portal(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port alone.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// tgtd's process, `None` while killed.
    pub fn pid(&self) -> Option<u32> {
        self.lock().child.as_ref().map(Child::id)
    }

    /// How many normal sessions are logged in, over all targets (discovery sessions are not counted).
    ///
    /// # Panics
    /// If tgtd does not answer.
    pub fn sessions(&self) -> usize {
        self.show()
            .lines()
            .filter(|line| line.trim_start().starts_with("I_T nexus: "))
            .count()
    }

    /// Waits until `sessions` is as told: tgtd learns of a closed socket a moment later than we.
    ///
    /// # Panics
    /// If it is not so within 5 s.
    pub fn wait_sessions(&self, count: usize) {
        let deadline = Instant::now() + START_TIMEOUT;
        while self.sessions() != count {
            assert!(
                Instant::now() < deadline,
                "tgtd has {} sessions, not {count}:\n{}",
                self.sessions(),
                self.show()
            );
            std::thread::sleep(POLL);
        }
    }

    /// What `tgtadm --op show --mode target` prints.
    ///
    /// # Panics
    /// If tgtd does not answer.
    pub fn show(&self) -> String {
        self.must(&["--lld", "iscsi", "--op", "show", "--mode", "target"])
    }

    /// The file behind a LUN made by `add_lun_file`.
    pub fn lun_path(&self, iqn: &str, lun: u16) -> Option<PathBuf> {
        let state = self.lock();
        let target = state.targets.iter().find(|target| target.iqn == iqn)?;
        let known = target.luns.iter().find(|known| known.number == lun)?;
        known.file.then(|| known.path.clone())
    }

    /// Runs `tgtadm` against this tgtd, for what the fixture has no method for; gives its standard output.
    ///
    /// # Panics
    /// If it fails.
    pub fn tgtadm(&self, args: &[&str]) -> String {
        self.must(args)
    }

    fn add_lun(&self, lun: u16, bytes: Option<u64>) -> &Self {
        let mut state = self.lock();
        let target = state.last();
        let path = self.dir.path().join(format!("disk-{}-{lun}", target.tid));
        let file = File::create(&path).expect("a file can be made in the own folder");
        file.set_len(bytes.unwrap_or(0))
            .expect("a file can be made sparse");
        let lun = Lun {
            number: lun,
            file: bytes.is_some(),
            path,
        };
        self.create_lun(target.tid, &lun);
        target.luns.push(lun);
        self
    }

    fn create(&self, target: &Target) {
        let tid = target.tid.to_string();
        let iqn = &target.iqn;
        self.must(&[
            "--lld", "iscsi", "--op", "new", "--mode", "target", "--tid", &tid, "-T", iqn,
        ]);
        self.must(&[
            "--lld", "iscsi", "--op", "bind", "--mode", "target", "--tid", &tid, "-I", "ALL",
        ]);
    }

    fn create_lun(&self, tid: u32, lun: &Lun) {
        let (tid, number) = (tid.to_string(), lun.number.to_string());
        let path = lun.path.to_str().expect("the own folder's name is ASCII");
        let kind = if lun.file { "rdwr" } else { "null" };
        self.must(&[
            "--lld",
            "iscsi",
            "--op",
            "new",
            "--mode",
            "logicalunit",
            "--tid",
            &tid,
            "--lun",
            &number,
            "--bstype",
            kind,
            "-b",
            path,
        ]);
    }

    fn bind_account(&self, tid: u32, account: &Account) {
        let tid = tid.to_string();
        let (user, secret) = (&account.user, &account.secret);
        // Known already when two targets share a user; a failure shows at the bind.
        let _ = self.run(&[
            "--lld",
            "iscsi",
            "--op",
            "new",
            "--mode",
            "account",
            "--user",
            user,
            "--password",
            secret,
        ]);
        self.must(&[
            "--lld", "iscsi", "--op", "bind", "--mode", "account", "--tid", &tid, "--user", user,
        ]);
    }

    fn must(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(
            output.status.success(),
            "tgtadm {} failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn run(&self, args: &[&str]) -> Output {
        tgtadm(self.dir.path(), args)
    }

    fn signal(&self, signal: &str) {
        let pid = self.pid().expect("tgtd runs").to_string();
        let done = Command::new("kill").args([signal, &pid]).status();
        assert!(
            done.is_ok_and(|status| status.success()),
            "kill {signal} {pid} failed"
        );
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Tgtd {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Debug)]
struct State {
    child: Option<Child>,
    targets: Vec<Target>,
}

impl State {
    fn last(&mut self) -> &mut Target {
        self.targets.last_mut().expect("add_target comes first")
    }
}

#[derive(Debug)]
struct Target {
    tid: u32,
    iqn: String,
    luns: Vec<Lun>,
    accounts: Vec<Account>,
}

#[derive(Debug)]
struct Lun {
    number: u16,
    file: bool,
    path: PathBuf,
}

#[derive(Debug)]
struct Account {
    user: String,
    secret: String,
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .expect("loopback has a free port")
        .port()
}

/// `None` if it exited again (port taken); a panic if it is not installed.
fn spawn(dir: &Path, port: u16) -> Option<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .expect("the own folder can be written");
    let log_too = log.try_clone().expect("a file handle can be doubled");
    let child = Command::new("tgtd")
        .args(["-f", "-C", CONTROL, "--iscsi"])
        .arg(format!("portal=127.0.0.1:{port}"))
        .env("TGT_IPC_SOCKET", dir.join("socket"))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => panic!("{MISSING}"),
        Err(error) => panic!("tgtd cannot be started: {error}"),
    };
    let portal = format!("127.0.0.1:{port},");
    let deadline = Instant::now() + START_TIMEOUT;
    while Instant::now() < deadline {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return None;
        }
        let shown = tgtadm(dir, &["--lld", "iscsi", "--op", "show", "--mode", "portal"]);
        if shown.status.success() && String::from_utf8_lossy(&shown.stdout).contains(&portal) {
            return Some(child);
        }
        std::thread::sleep(POLL);
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

fn tgtadm(dir: &Path, args: &[&str]) -> Output {
    Command::new("tgtadm")
        .args(["-C", CONTROL])
        .args(args)
        .env("TGT_IPC_SOCKET", dir.join("socket"))
        .output()
        .unwrap_or_else(|error| panic!("{MISSING} ({error})"))
}

fn log_tail(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("log")).unwrap_or_default()
}

const MISSING: &str = "install tgt (apt-get install tgt); cargo xtask test does it";
/// The control socket is in the own folder, so its number need not be unique.
const CONTROL: &str = "0";
/// Chosen freely: two processes racing for the same port more than once is already unlikely.
const PORT_TRIES: usize = 5;
/// tgtd is up within 50 ms on an idle machine; any value far above works.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// Chosen freely.
const POLL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_run_side_by_side_and_a_restart_keeps_targets_and_data() {
        let one = Tgtd::start();
        let two = Tgtd::start();
        assert_ne!(one.portal(), two.portal());
        one.add_target("iqn.2026-11.test:a")
            .add_lun_file(1, 1 << 20)
            .add_chap("user", "0123456789abcdef");
        one.add_target("iqn.2026-11.test:b").add_lun_null(1);
        assert_eq!(one.sessions(), 0);
        assert!(!two.show().contains("iqn.2026-11.test:a"));

        let path = one.lun_path("iqn.2026-11.test:a", 1).unwrap();
        std::fs::write(&path, [7_u8; 4096]).unwrap();
        one.restart();

        let shown = one.show();
        assert!(shown.contains("iqn.2026-11.test:a") && shown.contains("iqn.2026-11.test:b"));
        assert!(shown.contains("user"));
        assert_eq!(std::fs::read(&path).unwrap()[..4096], [7_u8; 4096]);
        one.remove_target("iqn.2026-11.test:a");
        assert!(!one.show().contains("iqn.2026-11.test:a"));
    }

    #[test]
    fn killed_tgtd_refuses_connections() {
        let tgtd = Tgtd::start();
        assert!(std::net::TcpStream::connect(tgtd.portal()).is_ok());
        tgtd.kill();
        assert!(std::net::TcpStream::connect(tgtd.portal()).is_err());
        assert_eq!(tgtd.pid(), None);
    }
}
