//! What the tests of the command line stand on: the built program with an environment of the test's
//! making, its outcome, a daemon in directories of its own, an export in the foreground. All ended
//! by the test, all with deadlines.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// No command of these tests takes long; one that does hangs.
const DEADLINE: Duration = Duration::from_mins(1);

/// What a command did.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// The one line of a failure.
    #[track_caller]
    pub(crate) fn failure(&self) -> &str {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert_eq!(self.stdout, "", "a failure answers nothing");
        let line = self.stderr.trim_end_matches('\n');
        assert!(
            !line.contains('\n') && line.starts_with("cinder-nbd: "),
            "not one line: {self:?}"
        );
        line
    }

    /// The failure, which must contain all these words.
    #[track_caller]
    pub(crate) fn fails_with(&self, words: &[&str]) {
        let line = self.failure();
        for word in words {
            assert!(line.contains(word), "{word:?} is not in: {line}");
        }
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }
}

/// The program without what the developer's shell says about clouds.
pub(crate) fn program() -> Command {
    let mut command = Command::new(path_of_program());
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("OS_") || name.starts_with("CINDER_NBD_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Where the program is: beside the tests, or where the VM bed has put it.
fn path_of_program() -> PathBuf {
    let named = std::env::var_os("CINDER_NBD_PROGRAM").map(PathBuf::from);
    named.unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_cinder-nbd")))
}

/// Runs to the end.
pub(crate) fn run(mut command: Command) -> Outcome {
    let mut child = command.spawn().unwrap();
    let until = Instant::now() + DEADLINE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("did not end: {command:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Directories and a configuration file of one test.
pub(crate) struct Home {
    pub(crate) directory: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self::with_environment(Vec::new())
    }

    /// `environment` names a cloud.
    pub(crate) fn with_environment(environment: Vec<(String, String)>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().display();
        let text = format!(
            "runtime_dir = \"{at}/run\"\nstate_dir = \"{at}/state\"\ndocker_socket = \"{at}/docker.sock\"\n\
             host = \"testhost\"\n"
        );
        std::fs::write(directory.path().join("config.toml"), text).unwrap();
        Self {
            directory,
            environment,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = program();
        command.envs(self.environment.iter().cloned());
        command
            .arg("--config")
            .arg(self.path("config.toml"))
            .args(words);
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Outcome {
        run(self.command(words))
    }

    /// A secret in a file of its own.
    pub(crate) fn secret(&self, secret: &str) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path("secret");
        std::fs::write(&path, format!("{secret}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    }

    /// A call as Docker's engine makes it.
    pub(crate) fn docker(&self, call: &str, body: &str) -> serde_json::Value {
        let socket = self.path("docker.sock");
        let asked = async {
            let http = reqwest::Client::builder()
                .unix_socket(socket)
                .no_proxy()
                .build()
                .unwrap();
            let request = http
                .post(format!("http://plugin/{call}"))
                .body(body.to_owned());
            request.send().await.unwrap().bytes().await.unwrap()
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        serde_json::from_slice(&runtime.block_on(asked)).unwrap()
    }

    /// The number of attachments written down.
    pub(crate) fn journal(&self) -> usize {
        std::fs::read_dir(self.path("state/attachments"))
            .unwrap()
            .count()
    }

    /// That of the daemon that answers, if one does.
    pub(crate) fn pid_of_daemon(&self) -> Option<u32> {
        let answer = self.run(&["status", "--json"]).stdout;
        let status: serde_json::Value = serde_json::from_str(&answer).ok()?;
        u32::try_from(status["pid"].as_u64()?).ok()
    }

    /// A daemon that is started again when it dies.
    pub(crate) fn supervisor(&self) -> Running {
        self.serving("supervise")
    }

    pub(crate) fn daemon(&self) -> Running {
        self.serving("daemon")
    }

    fn serving(&self, verb: &str) -> Running {
        let daemon = Running::start(self.command(&[verb]));
        let socket = self.path("run/control.sock");
        wait_until("the daemon listens", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        daemon
    }
}

/// A program that runs until it is told to end.
pub(crate) struct Running {
    child: Child,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        Self {
            child: command.spawn().unwrap(),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first line it prints.
    pub(crate) fn first_line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        line.trim_end().to_owned()
    }

    /// Sends SIGTERM and waits for the end: exit code and log.
    pub(crate) fn terminate(mut self) -> (Option<i32>, String) {
        signal(self.child.id(), "TERM");
        let until = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "did not end on SIGTERM");
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut log = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut log)
            .unwrap();
        (status.code(), log)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already, mostly.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn signal(pid: u32, name: &str) {
    let done = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status()
        .unwrap();
    assert!(done.success());
}

pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < until, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether this kernel can make devices; then tests about kernels that cannot have nothing to test.
pub(crate) fn kernel_has_nbd() -> bool {
    Path::new("/sys/module/nbd").exists()
}
