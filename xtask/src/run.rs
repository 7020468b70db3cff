//! Running other programs: with a time limit, their output streamed, and nobody left behind.
//!
//! Invariants:
//! 1. A program runs in a process group of its own, and what is left of the group is killed when the run ends in
//!    any way: by itself, by the time limit, by Ctrl-C (the future is dropped). Only `leaves_daemons` that
//!    succeeds keeps them.
//! 2. Programs under `sudo` stay in our own group: we could not kill them, but the terminal's Ctrl-C reaches them.

use std::ffi::{OsStr, OsString};
use std::io::PipeReader;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};

use crate::host;

/// How long output may still come after the program has ended; what it left in the background may hold the
/// pipe open for ever.
const DRAIN: Duration = Duration::from_millis(500);
/// Lines of a failed program's output that an error shows.
const TAIL_LINES: usize = 60;

/// One program to run.
pub(crate) struct Run {
    program: OsString,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
    limit: Duration,
    privileged: bool,
    leaves_daemons: bool,
    grace: Duration,
}

/// How a program ended, and all that it said on stdout and stderr.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) output: String,
}

impl Run {
    /// The time limit is part of every call: nothing here may hang for ever.
    pub(crate) fn new(program: impl AsRef<OsStr>, limit: Duration) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            envs: Vec::new(),
            dir: None,
            limit,
            privileged: false,
            leaves_daemons: false,
            grace: Duration::ZERO,
        }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.envs
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    pub(crate) fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Through `sudo` when we are not root ourselves.
    pub(crate) fn privileged(mut self) -> Self {
        self.privileged = true;
        self
    }

    /// What it started in the background lives on if it succeeds; somebody else takes that down.
    pub(crate) fn leaves_daemons(mut self) -> Self {
        self.leaves_daemons = true;
        self
    }

    /// Before it is killed it is told to end, and given this time to undo what it did.
    pub(crate) fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Runs to the end; `sink` sees each line as it comes. A failed program is not an error here.
    pub(crate) async fn ended(self, mut sink: impl FnMut(&str)) -> Result<Ended> {
        let title = self.title();
        let limit = self.limit;
        let leaves_daemons = self.leaves_daemons;
        let (mut child, group, mut lines) = self.start()?;
        let mut output = String::new();
        let mut take = |line: &str| {
            output.push_str(line);
            output.push('\n');
            sink(line);
        };
        let whole = async {
            let status = loop {
                tokio::select! {
                    line = lines.next_line() => match line? {
                        Some(line) => take(&line),
                        None => break child.wait().await?,
                    },
                    status = child.wait() => break status?,
                }
            };
            while let Ok(Ok(Some(line))) = tokio::time::timeout(DRAIN, lines.next_line()).await {
                take(&line);
            }
            Ok::<_, std::io::Error>(status)
        };
        let Ok(status) = tokio::time::timeout(limit, whole).await else {
            bail!(
                "{title}: no end after {} s; its last lines:\n{}",
                limit.as_secs(),
                tail(&output)
            );
        };
        let status = status.with_context(|| format!("wait for {title}"))?;
        if leaves_daemons && status.success() {
            std::mem::forget(group);
        }
        Ok(Ended { status, output })
    }

    /// Runs to the end and wants success; the error carries the end of the output.
    pub(crate) async fn output(self, sink: impl FnMut(&str)) -> Result<String> {
        let title = self.title();
        let ended = self.ended(sink).await?;
        if !ended.status.success() {
            bail!("{title}: {}\n{}", ended.status, tail(&ended.output));
        }
        Ok(ended.output)
    }

    /// Starts a program that runs beside us until the handle is dropped; its output goes to `log`.
    pub(crate) fn background(self, log: &Path) -> Result<Background> {
        let title = self.title();
        let file =
            std::fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
        let mut command = self.command();
        command.stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("start {title}"))?;
        let group = Group::of(&child, Duration::ZERO);
        Ok(Background {
            child,
            log: log.to_owned(),
            title,
            _group: group,
        })
    }

    fn start(self) -> Result<(Child, Option<Group>, Lines<BufReader<Receiver>>)> {
        let title = self.title();
        let own_group = !self.through_sudo();
        let (reader, writer) = std::io::pipe().context("make a pipe")?;
        let mut command = self.command();
        command.stdout(writer.try_clone()?).stderr(writer);
        let child = command.spawn().with_context(|| {
            format!("start {title} (is it installed? `cargo xtask test` installs what it needs)")
        })?;
        drop(command); // holds the pipe's writing end
        let group = if own_group {
            Group::of(&child, self.grace)
        } else {
            None
        };
        Ok((child, group, lines(reader)?))
    }

    fn command(&self) -> Command {
        let mut command = if self.through_sudo() {
            let mut command = Command::new("sudo");
            command.arg("--");
            if !self.envs.is_empty() {
                command.arg("env");
                for (name, value) in &self.envs {
                    let mut pair = name.clone();
                    pair.push("=");
                    pair.push(value);
                    command.arg(pair);
                }
            }
            command.arg(&self.program);
            command
        } else {
            let mut command = Command::new(&self.program);
            command
                .envs(self.envs.iter().map(|(name, value)| (name, value)))
                .process_group(0);
            command
        };
        command
            .args(&self.args)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command
    }

    fn through_sudo(&self) -> bool {
        self.privileged && !host::is_root()
    }

    fn title(&self) -> String {
        let mut words = vec![
            Path::new(&self.program)
                .file_name()
                .unwrap_or(&self.program),
        ];
        words.extend(self.args.iter().take(2).map(OsString::as_os_str));
        words.join(OsStr::new(" ")).to_string_lossy().into_owned()
    }
}

/// A program that runs beside us; dropping it kills it and all that it started.
pub(crate) struct Background {
    child: Child,
    log: PathBuf,
    title: String,
    _group: Option<Group>,
}

impl Background {
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Fails when the program has ended already; the error carries its output.
    pub(crate) fn is_alive(&mut self) -> Result<()> {
        match self
            .child
            .try_wait()
            .with_context(|| format!("look at {}", self.title))?
        {
            None => Ok(()),
            Some(status) => {
                let said = std::fs::read_to_string(&self.log).unwrap_or_default();
                bail!("{}: {status}\n{}", self.title, tail(&said))
            }
        }
    }
}

/// A process group that is ended when its owner goes.
struct Group {
    pid: Pid,
    grace: Duration,
}

impl Group {
    fn of(child: &Child, grace: Duration) -> Option<Self> {
        let pid = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)?;
        Some(Self { pid, grace })
    }

    /// Has the first of them ended? Nobody has waited for it yet, so its number is still its own.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.pid), options), Ok(None))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.grace.is_zero() && kill_process_group(self.pid, Signal::TERM).is_ok() {
            let started = Instant::now();
            while !self.has_ended() && started.elapsed() < self.grace {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        // ESRCH is the usual answer: all of them have ended
        let _ = kill_process_group(self.pid, Signal::KILL);
    }
}

/// The last lines of a text.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

fn lines(reader: PipeReader) -> Result<Lines<BufReader<Receiver>>> {
    let receiver = Receiver::from_owned_fd(OwnedFd::from(reader)).context("watch a pipe")?;
    Ok(BufReader::new(receiver).lines())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(task: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(task)
    }

    fn shell(script: &str, limit: Duration) -> Run {
        Run::new("sh", limit).args(["-c", script])
    }

    /// Waits for a process of a test to go; a zombie that somebody else has yet to reap counts as gone.
    fn assert_gone(pid: &str) {
        let is_there = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        let started = Instant::now();
        while is_there() {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "process {pid} is still there"
            );
            std::thread::yield_now();
        }
    }

    #[test]
    fn both_streams_are_heard_and_the_status_told() {
        let mut seen = Vec::new();
        let run = shell("echo out; echo err >&2; exit 3", Duration::from_secs(30));
        let ended = block_on(run.ended(|line| seen.push(line.to_owned()))).unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(ended.output, "out\nerr\n");
        assert_eq!(seen, ["out", "err"]);
    }

    #[test]
    fn a_failure_carries_the_end_of_the_output() {
        let run = shell("echo the reason; false", Duration::from_secs(30));
        let error = block_on(run.output(|_| {})).unwrap_err();
        assert!(error.to_string().contains("the reason"), "{error}");
    }

    #[test]
    fn the_time_limit_ends_the_whole_group() {
        let run = shell("sleep 1000 & echo $!; wait", Duration::from_millis(300));
        let mut child = String::new();
        let error = block_on(run.ended(|line| line.clone_into(&mut child)))
            .map(|_| ())
            .unwrap_err();
        assert!(error.to_string().contains("no end after"), "{error}");
        assert_gone(&child);
    }

    #[test]
    fn what_a_program_leaves_behind_neither_holds_us_nor_stays() {
        let run = shell("sleep 1000 & echo $!", Duration::from_mins(1));
        let ended = block_on(run.ended(|_| {})).unwrap();
        assert!(ended.status.success());
        assert_gone(&ended.output);
    }

    #[test]
    fn daemons_stay_when_they_are_meant_to() {
        let run = shell("sleep 1000 & echo $!", Duration::from_mins(1)).leaves_daemons();
        let ended = block_on(run.ended(|_| {})).unwrap();
        let pid = ended
            .output
            .trim()
            .parse()
            .ok()
            .and_then(Pid::from_raw)
            .unwrap();
        rustix::process::kill_process(pid, Signal::KILL).expect("it is still there");
    }

    #[test]
    fn a_program_with_grace_may_undo_what_it_did() {
        let dir = tempfile::tempdir().unwrap();
        let trace = dir.path().join("undone");
        let script = format!(
            "trap 'touch {}; exit' TERM; echo ready; sleep 1000 & wait",
            trace.display()
        );
        let run = shell(&script, Duration::from_mins(1)).grace(Duration::from_secs(20));
        block_on(async {
            let ready = tokio::sync::Notify::new();
            tokio::select! {
                ended = run.ended(|_| ready.notify_one()) => panic!("ended: {:?}", ended.map(|e| e.output)),
                () = ready.notified() => {}
            }
        });
        assert!(trace.exists());
    }

    #[test]
    fn a_background_program_that_died_says_why() {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let run = shell("echo broken >&2; exit 1", Duration::from_secs(30));
            let mut background = run.background(&dir.path().join("log")).unwrap();
            let error = loop {
                match background.is_alive() {
                    Ok(()) => tokio::task::yield_now().await,
                    Err(error) => break error,
                }
            };
            assert!(error.to_string().contains("broken"), "{error}");
        });
    }
}
