//! `supervise`: runs the daemon, holds what it gives to be held, and starts it again when it dies.
//!
//! ```text
//!  supervise --NOTIFY_SOCKET, CINDER_NBD_HELD--> daemon
//!       ^------ READY, FDSTORE, FDSTOREREMOVE -----+
//! ```
//!
//! A room of its own because it must go on where everything else fails: it reads no configuration, opens no file and
//! knows nothing of volumes. What systemd is to its units it is to the daemon, where there is no systemd.
//!
//! Source: `sd_notify(3)`; `sys::holder`, `sys::inherited`.
//!
//! Invariants:
//! 1. What is held outlives any number of daemons; it goes with this process, or when a daemon says so.
//! 2. One daemon at a time: the next is started when the one before it has been seen to end.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context;
use rustix::io::FdFlags;
use rustix::process::{Pid, Resource, Rlimit, Signal};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::sys::holder::{Holder, Message};
use crate::sys::inherited;

/// A daemon that died before it served, or sooner than this, is not started again at once.
const EARLY: Duration = Duration::from_secs(1);
/// The first pause, doubled with each early death.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause; chosen freely, short beside the time for which the kernel holds I/O.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Two descriptors a lane, so this is a thousand volumes of two lanes; more are not held.
const HELD_MAX: usize = 4096;
/// As in our unit for systemd: among the last to be killed when memory is short, but not exempt.
const DAEMON_OOM_SCORE: &str = "-900";
/// Never: what is held goes with this process, and it needs next to nothing.
const OWN_OOM_SCORE: &str = "-1000";

/// Runs until it is told to end, and the daemon has ended.
pub(super) async fn run(config: Option<&Path>) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("finding our own program")?;
    let mut arguments: Vec<OsString> = Vec::new();
    if let Some(config) = config {
        arguments.extend(["--config".into(), config.into()]);
    }
    arguments.push("daemon".into());
    raise_limit();
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OWN_OOM_SCORE) {
        tracing::debug!(%error, "the system's choice of whom to kill stays");
    }
    Supervisor::new(program, arguments)?.run().await
}

struct Supervisor {
    program: PathBuf,
    arguments: Vec<OsString>,
    holder: Holder,
    /// Says when the holder has something to hear.
    bell: UnixDatagram,
    held: BTreeMap<String, Vec<OwnedFd>>,
    is_ready: bool,
    /// Early deaths in a row.
    early: u32,
}

/// Why a daemon is waited for no longer.
enum Outcome {
    Ended(ExitStatus),
    /// It has ended because we were told to end.
    Stopped(ExitStatus),
}

impl Supervisor {
    fn new(program: PathBuf, arguments: Vec<OsString>) -> anyhow::Result<Self> {
        // Nobody can take the name before us, nor guess it to be in the way of the next one.
        let name = format!("cinder-nbd/{}", uuid::Uuid::new_v4());
        let holder = Holder::bind(&name).context("listening for the daemon")?;
        let bell = UnixDatagram::from_std(holder.try_clone_socket()?)?;
        Ok(Self {
            program,
            arguments,
            holder,
            bell,
            held: BTreeMap::new(),
            is_ready: false,
            early: 0,
        })
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        let mut signals = Signals::new()?;
        loop {
            let born = Instant::now();
            self.is_ready = false;
            match self.spawn() {
                Ok(child) => match self.watch(child, &mut signals).await? {
                    Outcome::Stopped(status) => {
                        anyhow::ensure!(status.success(), "the daemon ended with {status}");
                        return Ok(());
                    }
                    Outcome::Ended(status) => {
                        tracing::warn!(%status, held = self.held.len(), "the daemon has ended; starting it again");
                    }
                },
                Err(error) => {
                    let program = self.program.display();
                    tracing::error!(%program, %error, "the daemon cannot be started; trying again");
                }
            }
            let pause = self.pause(born.elapsed());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                signal = signals.next() => if signal != Signal::HUP {
                    return Ok(());
                },
            }
        }
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let numbers = self
            .held
            .iter()
            .flat_map(|(name, fds)| fds.iter().map(|fd| (name.as_str(), fd.as_raw_fd())));
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .env("NOTIFY_SOCKET", self.holder.address())
            .env(
                inherited::HELD,
                inherited::tell(std::process::id(), numbers),
            )
            .env_remove("LISTEN_PID")
            .spawn()?;
        if let Some(pid) = child.id() {
            let path = format!("/proc/{pid}/oom_score_adj");
            if let Err(error) = std::fs::write(path, DAEMON_OOM_SCORE) {
                tracing::debug!(%error, "the system's choice of whom to kill stays");
            }
        }
        Ok(child)
    }

    async fn watch(&mut self, mut child: Child, signals: &mut Signals) -> anyhow::Result<Outcome> {
        let pid = child.id().context("a daemon without a process number")?;
        let mut is_stopping = false;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status.context("waiting for the daemon")?,
                ready = self.bell.readable() => {
                    ready?;
                    self.hear(pid)?;
                    // All was heard: the bell is to ring for the next one only.
                    let heard: std::io::Result<()> = self
                        .bell
                        .try_io(Interest::READABLE, || Err(std::io::ErrorKind::WouldBlock.into()));
                    drop(heard);
                }
                signal = signals.next() => {
                    is_stopping |= signal != Signal::HUP;
                    forward(pid, signal);
                }
            }
        };
        // What it said last is still to be heard; another process may get its number later.
        self.hear(pid)?;
        Ok(if is_stopping {
            Outcome::Stopped(status)
        } else {
            Outcome::Ended(status)
        })
    }

    /// All messages of the daemon that are there.
    fn hear(&mut self, pid: u32) -> anyhow::Result<()> {
        while let Some(message) = self.holder.receive(pid)? {
            self.heed(message);
        }
        Ok(())
    }

    fn heed(&mut self, message: Message) {
        if message.ready {
            self.is_ready = true;
            tracing::info!("the daemon serves");
        }
        if let Some(status) = message.status {
            tracing::debug!(status, "the daemon");
        }
        if let Some(name) = message.release {
            self.held.remove(&name);
        }
        if let Some((name, fds)) = message.hold {
            if !self.has_room(fds.len()) {
                tracing::warn!(
                    name,
                    limit = HELD_MAX,
                    "not held: there is too much already"
                );
                return;
            }
            for fd in &fds {
                // For the next daemon: it is the only process that we start.
                if let Err(error) = rustix::io::fcntl_setfd(fd, FdFlags::empty()) {
                    tracing::warn!(name, %error, "a descriptor will not be passed on");
                }
            }
            self.held.entry(name).or_default().extend(fds);
        }
    }

    fn has_room(&self, more: usize) -> bool {
        let count: usize = self.held.values().map(Vec::len).sum();
        count + more <= HELD_MAX
    }

    fn pause(&mut self, lived: Duration) -> Duration {
        if self.is_ready && lived >= EARLY {
            self.early = 0;
            return Duration::ZERO;
        }
        let pause = PAUSE_MIN.saturating_mul(1 << self.early.min(10));
        self.early = self.early.saturating_add(1);
        pause.min(PAUSE_MAX)
    }
}

/// Those that are the daemon's as well.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.hang_up.recv() => Signal::HUP,
        }
    }
}

fn forward(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let sent = pid.map(|pid| rustix::process::kill_process(pid, signal));
    if let Some(Err(error)) = sent {
        tracing::debug!(%error, "the daemon has ended before it could be told to");
    }
}

/// As many descriptors as we may have.
fn raise_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::notify::Notifier;

    fn of_shell(script: &str) -> Supervisor {
        let arguments = vec!["-c".into(), script.into()];
        Supervisor::new("/bin/sh".into(), arguments).unwrap()
    }

    #[tokio::test]
    async fn what_is_held_is_passed_to_the_next_daemon_until_it_is_released() {
        let directory = tempfile::tempdir().unwrap();
        let seen = directory.path().join("seen");
        // The parent's number, then NUMBER=NAME: the daemon reads what lies in the pipe.
        let script = format!(
            "set -- $CINDER_NBD_HELD; [ $# = 2 ] || exit 3; n=${{2%%=*}}; \
             {{ echo \"${{2#*=}} $1 $PPID\"; head -c 4 /proc/self/fd/$n; }} >{}",
            seen.display()
        );
        let mut supervisor = of_shell(&script);
        let notifier = Notifier::connect(supervisor.holder.address().as_bytes()).unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"kept").unwrap();
        notifier.hold("v.0.journal", reader.as_fd()).unwrap();
        notifier.hold("v.1.journal", reader.as_fd()).unwrap();
        notifier.release("v.1.journal").unwrap();
        drop(reader);
        supervisor.hear(std::process::id()).unwrap();
        assert_eq!(supervisor.held.len(), 1);
        let status = supervisor.spawn().unwrap().wait().await.unwrap();
        assert!(status.success(), "{status}");
        let own = std::process::id();
        assert_eq!(
            std::fs::read_to_string(&seen).unwrap(),
            format!("v.0.journal {own} {own}\nkept")
        );
        notifier.release("v.0.journal").unwrap();
        supervisor.hear(own).unwrap();
        let status = supervisor.spawn().unwrap().wait().await.unwrap();
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn a_daemon_that_served_is_started_again_at_once_and_others_ever_later() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _inside = runtime.enter();
        let mut supervisor = of_shell("true");
        let short = Duration::from_millis(10);
        let pauses: Vec<u128> = (0..9)
            .map(|_| supervisor.pause(short).as_millis())
            .collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000]);
        supervisor.is_ready = true;
        assert_eq!(supervisor.pause(EARLY), Duration::ZERO);
        assert_eq!(supervisor.pause(short), PAUSE_MIN);
        supervisor.is_ready = false;
        // Alive for long, but never at work.
        assert_eq!(supervisor.pause(EARLY * 60), PAUSE_MIN * 2);
    }

    #[tokio::test]
    async fn there_is_a_limit_to_what_is_held() {
        let mut supervisor = of_shell("true");
        assert!(supervisor.has_room(HELD_MAX));
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        supervisor.heed(Message {
            hold: Some(("a".to_owned(), vec![null])),
            ..Message::default()
        });
        assert!(supervisor.has_room(HELD_MAX - 1));
        assert!(!supervisor.has_room(HELD_MAX));
    }
}
