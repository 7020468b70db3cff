//! The daemon as a child process with a configuration in a folder of its own, and the command line beside it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::process::{Child, Command};

/// The longest any single command may take; emulated processors are slow.
const LIMIT: Duration = Duration::from_mins(3);
/// How long the daemon may take to undo what is left when it is told to end.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A running daemon. Dropped, it is told to end, waited for, and killed if it does not.
pub(crate) struct Daemon {
    program: PathBuf,
    config: PathBuf,
    environment: Vec<(String, String)>,
    docker_socket: PathBuf,
    log: PathBuf,
    child: Child,
}

impl Daemon {
    /// Writes the configuration below `dir`, starts the daemon, waits until it listens.
    pub(crate) async fn start(
        program: &Path,
        environment: Vec<(String, String)>,
        dir: &Path,
    ) -> Result<Self> {
        let config = dir.join("cinder-nbd.toml");
        let docker_socket = dir.join("cinder.sock");
        let control_socket = dir.join("run/control.sock");
        let settings = [
            ("runtime_dir", dir.join("run")),
            ("state_dir", dir.join("state")),
            ("control_socket", control_socket.clone()),
            ("docker_socket", docker_socket.clone()),
            ("host", "demo".into()),
        ];
        // a JSON string is a TOML string
        let lines = settings.map(|(key, value)| format!("{key} = {}\n", json!(value)));
        let text = lines.concat();
        std::fs::write(&config, text).context("write the daemon's configuration")?;
        let log = dir.join("daemon.log");
        let file = std::fs::File::create(&log).context("make the daemon's log")?;
        let child = Command::new(program)
            .args([
                OsStr::new("--config"),
                config.as_os_str(),
                OsStr::new("daemon"),
            ])
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let program = program.to_owned();
        let mut daemon = Self {
            program,
            config,
            environment,
            docker_socket,
            log,
            child,
        };
        let started = Instant::now();
        while !(daemon.docker_socket.exists() && control_socket.exists()) {
            if let Some(status) = daemon.child.try_wait()? {
                bail!("the daemon ended at once: {status}\n{}", daemon.said());
            }
            if started.elapsed() > LIMIT {
                bail!("the daemon does not listen\n{}", daemon.said());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(daemon)
    }

    /// `cinder-nbd WORDS...` as a user types it; gives back its stdout.
    pub(crate) async fn cli(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&self.config).args(words);
        command.envs(self.environment.iter().cloned());
        run(command).await.with_context(|| {
            format!(
                "cinder-nbd {}\nthe daemon's log:\n{}",
                words.join(" "),
                self.said()
            )
        })
    }

    /// Where Docker would speak to it.
    pub(crate) fn docker_socket(&self) -> &Path {
        &self.docker_socket
    }

    /// SIGTERM, as a service manager does it; the end must be in order.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.signal()?;
        let status = tokio::time::timeout(STOP_LIMIT, self.child.wait()).await;
        let status = status.with_context(|| {
            format!(
                "no end {} s after SIGTERM\n{}",
                STOP_LIMIT.as_secs(),
                self.said()
            )
        })??;
        if !status.success() {
            bail!("the daemon ended with {status}\n{}", self.said());
        }
        Ok(())
    }

    fn signal(&self) -> Result<()> {
        let pid = self
            .child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw);
        kill_process(pid.context("the daemon has ended by itself")?, Signal::TERM)?;
        Ok(())
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.signal().is_err() {
            return; // ended already
        }
        let started = Instant::now();
        while started.elapsed() < STOP_LIMIT {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.start_kill();
    }
}

/// Any other program, by name; gives back its stdout.
pub(crate) fn tool(program: &str, args: &[&OsStr]) -> impl Future<Output = Result<String>> + use<> {
    let mut command = Command::new(program);
    command.args(args);
    let program = program.to_owned();
    async move { run(command).await.context(program) }
}

async fn run(mut command: Command) -> Result<String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(LIMIT, command.output()).await;
    let ended = ended.with_context(|| format!("no end within {} s", LIMIT.as_secs()))??;
    if !ended.status.success() {
        bail!(
            "{}: {}",
            ended.status,
            String::from_utf8_lossy(&ended.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&ended.stdout).trim().to_owned())
}
