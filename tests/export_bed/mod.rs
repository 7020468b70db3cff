//! What the judges of the export stand on: a tgtd with CHAP, the binary as a user runs it, certificates, programs with
//! a deadline.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use support::tgt::Tgtd;

/// A tgtd with one CHAP target, and a folder for what the test makes.
pub(crate) struct Bed {
    pub(crate) tgtd: Tgtd,
    pub(crate) dir: tempfile::TempDir,
}

impl Bed {
    pub(crate) fn new(bytes: u64) -> Self {
        let tgtd = Tgtd::start();
        tgtd.add_target(TARGET)
            .add_lun_file(1, bytes)
            .add_chap(USER, SECRET);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), format!("{SECRET}\n")).unwrap();
        Self { tgtd, dir }
    }

    /// The LUN becomes a thin one.
    pub(crate) fn thin(self) -> Self {
        self.tgtd.tgtadm(&[
            "--lld",
            "iscsi",
            "--op",
            "update",
            "--mode",
            "logicalunit",
            "--tid",
            "1",
            "--lun",
            "1",
            "--params",
            "thin_provisioning=1",
        ]);
        self
    }

    /// The words of `cinder-nbd export`, without where to listen.
    pub(crate) fn words(&self) -> Vec<String> {
        let secret = self.dir.path().join("secret");
        let words = [
            env!("CARGO_BIN_EXE_cinder-nbd"),
            "export",
            "--portal",
            &self.tgtd.portal(),
            "--target",
            TARGET,
            "--lun",
            "1",
            "--chap-user",
            USER,
            "--chap-secret-file",
            secret.to_str().unwrap(),
        ];
        words.map(str::to_owned).to_vec()
    }

    pub(crate) fn command(&self, more: &[&str]) -> Command {
        let words = self.words();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(more);
        command
    }

    /// On a Unix socket.
    pub(crate) fn export(&self, more: &[&str]) -> Export {
        let socket = self.dir.path().join("nbd.sock");
        let mut words = vec!["--socket", socket.to_str().unwrap()];
        words.extend(more);
        let export = self.export_at(&words);
        assert!(
            export.uri().contains(socket.to_str().unwrap()),
            "{}",
            export.uri()
        );
        export
    }

    /// Where the words say.
    pub(crate) fn export_at(&self, words: &[&str]) -> Export {
        let mut child = self
            .command(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The line on stdout says that clients can connect: nothing to poll.
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let bytes = out.read_line(&mut line).unwrap();
        assert_ne!(bytes, 0, "the export ended: {:?}", child.wait_with_output());
        let uri = line.trim().to_owned();
        Export { child, uri }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }
}

pub(crate) struct Export {
    child: Child,
    uri: String,
}

impl Export {
    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// The port of one that listens on TCP.
    pub(crate) fn port(&self) -> &str {
        let (_, rest) = self.uri.rsplit_once(':').unwrap();
        rest.split('/').next().unwrap()
    }

    /// SIGTERM, and what the export printed until it ended.
    pub(crate) fn stop(mut self) -> Output {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        let mut stderr = Vec::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_end(&mut stderr)
            .unwrap();
        let status = self.child.wait().unwrap();
        Output {
            status,
            stdout: Vec::new(),
            stderr,
        }
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a stranger's tool; a missing one is a failure that says what to install.
pub(crate) fn run(command: &mut Command) -> Output {
    let program = command.get_program().to_owned();
    let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    Command::new("timeout")
        .args(["-k", "5", "300"])
        .arg(&program)
        .args(args)
        .output()
        .map_or_else(
            |error| panic!("{error}"),
            |output| {
                assert!(
                    output.status.code() != Some(127),
                    "{} is missing: cargo xtask test installs it",
                    program.display()
                );
                output
            },
        )
}

pub(crate) fn assert_success(output: &Output, what: &str) {
    assert!(
        output.status.success(),
        "{what}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

pub(crate) fn random_image(path: &Path, bytes: u64) {
    let mut random = std::fs::File::open("/dev/urandom").unwrap().take(bytes);
    let mut file = std::fs::File::create(path).unwrap();
    assert_eq!(std::io::copy(&mut random, &mut file).unwrap(), bytes);
}

pub(crate) const TARGET: &str = "iqn.2026-11.test.cinder-nbd:export";
const USER: &str = "exporter";
const SECRET: &str = "sixteen-bytes-ok";

/// Runs and must succeed; gives its standard output.
#[track_caller]
pub(crate) fn run_ok(program: &str, arguments: &[&str]) -> String {
    let output = run(Command::new(program).args(arguments));
    assert_success(&output, &format!("{program} {arguments:?}"));
    String::from_utf8(output.stdout).unwrap()
}

/// libnbd's shell. It is a script for the first python3 of the path, which may not be the one that the package is for.
#[track_caller]
pub(crate) fn nbdsh(arguments: &[&str]) -> String {
    let arguments = [&["-m", "nbd"], arguments].concat();
    run_ok("/usr/bin/python3", &arguments)
}

/// An authority, a server's certificate for localhost, and a client's, under the names that libnbd and qemu look for.
pub(crate) struct Certificates {
    pub(crate) folder: PathBuf,
}

impl Certificates {
    pub(crate) fn new(bed: &Bed, folder: &str) -> Self {
        let folder = bed.dir.path().join(folder);
        std::fs::create_dir(&folder).unwrap();
        let made = Self { folder };
        made.make("ca", "keyUsage=critical,keyCertSign", false);
        made.make("server", "subjectAltName=DNS:localhost,IP:127.0.0.1", true);
        made.make("client", "extendedKeyUsage=clientAuth", true);
        made
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    fn make(&self, name: &str, extension: &str, is_signed: bool) {
        let mut command = Command::new("openssl");
        command
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
            .args(["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", &format!("/CN={name}"), "-addext", extension])
            .args(["-keyout", &self.file(&format!("{name}-key.pem"))])
            .args(["-out", &self.file(&format!("{name}-cert.pem"))]);
        if is_signed {
            command
                .args(["-addext", "basicConstraints=CA:FALSE"])
                .args(["-CA", &self.file("ca-cert.pem")])
                .args(["-CAkey", &self.file("ca-key.pem")]);
        }
        assert_success(&run(&mut command), "openssl");
    }
}
