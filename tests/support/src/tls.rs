//! A TLS server with a certificate made for the test: of an own authority, of another name, of another time. The other
//! side is `openssl s_server`.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A TLS server; it ends when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// `https://127.0.0.1:PORT`.
    pub url: String,
    /// What a client must trust.
    pub authority: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes a certificate and its key, beside it as `.key`; signed by another, or by itself.
///
/// # Panics
/// If there is no openssl.
pub fn certificate(
    directory: &Path,
    name: &str,
    extension: &str,
    signer: Option<&Path>,
) -> PathBuf {
    let path = directory.join(format!("{name}.pem"));
    let mut command = Command::new("openssl");
    command
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ])
        .args(["-days", "2", "-subj"])
        .arg(format!("/CN={name}"))
        .args(["-addext", extension, "-keyout"])
        .arg(path.with_extension("key"))
        .arg("-out")
        .arg(&path);
    if let Some(signer) = signer {
        command
            .args(["-addext", "basicConstraints=CA:FALSE", "-CA"])
            .arg(signer);
        command.arg("-CAkey").arg(signer.with_extension("key"));
    }
    let made = command.stderr(Stdio::null()).status().expect(INSTALL);
    assert!(made.success());
    path
}

/// A server's certificate, and that of the authority made for it.
fn signed(directory: &Path, subject: &str) -> (PathBuf, PathBuf) {
    let authority = certificate(
        directory,
        "authority",
        "keyUsage=critical,keyCertSign",
        None,
    );
    let subject = format!("subjectAltName={subject}");
    let certificate = certificate(directory, "server", &subject, Some(&authority));
    (certificate, authority)
}

impl Server {
    /// With a certificate for `subject`, signed by an authority of its own.
    ///
    /// # Panics
    /// If there is no openssl 3.
    pub fn start(directory: &Path, subject: &str) -> Self {
        let (certificate, authority) = signed(directory, subject);
        Self::serve(&certificate, authority)
    }

    /// As `start`; only for clients that show a certificate of the same authority.
    ///
    /// # Panics
    /// If there is no openssl 3.
    pub fn start_asking(directory: &Path, subject: &str) -> Self {
        let (certificate, authority) = signed(directory, subject);
        let asking = ["-Verify", "2", "-verify_return_error", "-CAfile"].map(OsString::from);
        let asking = asking.into_iter().chain([authority.clone().into()]);
        Self::run(&certificate, authority, asking)
    }

    /// With this certificate.
    ///
    /// # Panics
    /// If there is no openssl 3.
    pub fn serve(certificate: &Path, authority: PathBuf) -> Self {
        Self::run(certificate, authority, [])
    }

    fn run(
        certificate: &Path,
        authority: PathBuf,
        more: impl IntoIterator<Item = OsString>,
    ) -> Self {
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-www", "-cert"])
            .arg(certificate)
            .arg("-key")
            .arg(certificate.with_extension("key"))
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .expect(INSTALL);
        // It prints `ACCEPT 127.0.0.1:PORT`.
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let address = lines
            .find_map(|line| line.ok()?.strip_prefix("ACCEPT ").map(str::to_owned))
            .expect("openssl 3 tells the port it was given");
        let port = address.rsplit(':').next().expect("a piece");
        // Its further lines must have somewhere to go.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            url: format!("https://127.0.0.1:{port}"),
            authority,
        }
    }
}

/// Makes a certificate of 127.0.0.1, signed by the authority, that holds from one time to another (`YYYYMMDDHHMMSSZ`).
///
/// # Panics
/// If there is no openssl.
pub fn dated(directory: &Path, authority: &Path, from: &str, until: &str) -> PathBuf {
    // `openssl req` knows no dates but now before version 3.4; `openssl ca` wants its files.
    let path = |name: &str| directory.join(name);
    let settings = format!(
        "[ca]\ndefault_ca=c\n[c]\ndatabase={}\nnew_certs_dir={}\ndefault_md=sha256\npolicy=p\nrand_serial=yes\n\
         x509_extensions=e\n[p]\ncommonName=supplied\n[e]\nbasicConstraints=CA:FALSE\nsubjectAltName=IP:127.0.0.1\n",
        path("index").display(),
        directory.display()
    );
    std::fs::write(path("index"), "").expect("the directory can be written to");
    std::fs::write(path("ca.cnf"), settings).expect("the directory can be written to");
    let run = |command: &mut Command| {
        let ended = command.stderr(Stdio::null()).status().expect(INSTALL);
        assert!(ended.success(), "{command:?}");
    };
    run(Command::new("openssl")
        .args(["req", "-newkey", "ec", "-pkeyopt"])
        .args([
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            "/CN=dated",
        ])
        .arg("-keyout")
        .arg(path("dated.key"))
        .arg("-out")
        .arg(path("dated.csr")));
    run(Command::new("openssl")
        .args([
            "ca",
            "-batch",
            "-notext",
            "-startdate",
            from,
            "-enddate",
            until,
        ])
        .arg("-config")
        .arg(path("ca.cnf"))
        .arg("-cert")
        .arg(authority)
        .arg("-keyfile")
        .arg(authority.with_extension("key"))
        .arg("-in")
        .arg(path("dated.csr"))
        .arg("-out")
        .arg(path("dated.pem")));
    path("dated.pem")
}

const INSTALL: &str = "install openssl (apt-get install openssl); cargo xtask test does it";
