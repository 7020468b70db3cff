//! Trust: a certificate of an own authority, of another name, and the settings that help; the other side is `openssl s_server`.
#![expect(
    clippy::unwrap_used,
    reason = "what does not hold ends the test, in its helpers too"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cinder_nbd::cinder::{Cinder, Error};
use cinder_nbd::config::{Auth, CloudConfig, Interface, Tls};
use iscsi::proto::Secret;

/// A TLS server whose certificate is for one name.
struct Server {
    child: Child,
    url: String,
    /// What a client must trust.
    authority: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes a certificate and its key; signed by another, or by itself.
fn certificate(directory: &Path, name: &str, extension: &str, signer: Option<&Path>) -> PathBuf {
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
    let made = command
        .stderr(Stdio::null())
        .status()
        .expect("install openssl (apt-get install openssl); cargo xtask test does it");
    assert!(made.success());
    path
}

impl Server {
    /// With a certificate for `subject`, signed by an authority of its own.
    fn start(directory: &Path, subject: &str) -> Self {
        let authority = certificate(
            directory,
            "authority",
            "keyUsage=critical,keyCertSign",
            None,
        );
        let subject = format!("subjectAltName={subject}");
        let certificate = certificate(directory, "server", &subject, Some(&authority));
        Self::serve(&certificate, authority)
    }

    fn serve(certificate: &Path, authority: PathBuf) -> Self {
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-www", "-cert"])
            .arg(certificate)
            .arg("-key")
            .arg(certificate.with_extension("key"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        // It prints `ACCEPT 127.0.0.1:PORT`.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines
            .find_map(|line| line.unwrap().strip_prefix("ACCEPT ").map(str::to_owned))
            .expect("openssl 3 tells the port it was given");
        let port = address.rsplit(':').next().unwrap();
        // Its further lines must have somewhere to go.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            url: format!("https://127.0.0.1:{port}"),
            authority,
        }
    }

    async fn refused(&self, tls: Tls) -> Error {
        let config = CloudConfig {
            place: "the environment".into(),
            auth_url: self.url.clone(),
            auth: Auth::Token {
                token: Secret::new("t".into()),
                project: None,
            },
            region: None,
            interface: Interface::Public,
            endpoint_override: None,
            tls,
            request_timeout: Duration::from_secs(2),
        };
        // There is no Keystone behind it: what matters is how far it comes.
        Cinder::connect(&config).await.unwrap_err()
    }
}

#[tokio::test]
async fn an_unknown_authority_is_named_and_cacert_helps() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), "IP:127.0.0.1");
    let error = server.refused(Tls::default()).await;
    let text = error.to_string();
    assert!(matches!(error, Error::Tls { .. }), "{text}");
    assert!(
        text.starts_with(&format!("no secure connection to {}: ", server.url)),
        "{text}"
    );
    assert!(
        text.ends_with("set cacert (OS_CACERT) to the PEM file of the authority that signed it"),
        "{text}"
    );

    let trusted = Tls {
        cacert: Some(server.authority.clone()),
        insecure: false,
    };
    let error = server.refused(trusted).await;
    assert!(
        !matches!(error, Error::Tls { .. } | Error::Unreachable { .. }),
        "{error}"
    );
    let error = server
        .refused(Tls {
            cacert: None,
            insecure: true,
        })
        .await;
    assert!(
        !matches!(error, Error::Tls { .. } | Error::Unreachable { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_certificate_of_another_name_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), "DNS:elsewhere.example");
    let trusted = Tls {
        cacert: Some(server.authority.clone()),
        insecure: false,
    };
    let error = server.refused(trusted).await;
    let text = error.to_string();
    assert!(matches!(error, Error::Tls { .. }), "{text}");
    assert!(
        text.ends_with("the address must use a name that the certificate holds"),
        "{text}"
    );
}

#[tokio::test]
async fn a_self_signed_authority_as_server_is_explained() {
    let directory = tempfile::tempdir().unwrap();
    let own = certificate(directory.path(), "own", "subjectAltName=IP:127.0.0.1", None);
    let server = Server::serve(&own, own.clone());
    let trusted = Tls {
        cacert: Some(server.authority.clone()),
        insecure: false,
    };
    let text = server.refused(trusted).await.to_string();
    assert!(
        text.ends_with("it needs one signed by that authority (CA:FALSE)"),
        "{text}"
    );
}
