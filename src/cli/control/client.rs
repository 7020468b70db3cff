//! The verbs' end of the control socket.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::Failure;

/// A client of a daemon that was there a moment ago.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
}

impl Client {
    /// Whether a daemon listens.
    pub fn is_there(socket: &Path) -> bool {
        UnixStream::connect(socket).is_ok()
    }

    /// Makes sure that a daemon listens.
    ///
    /// # Errors
    /// It does not, or we may not speak to it; says what to do.
    pub fn connect(socket: &Path) -> anyhow::Result<Self> {
        let at = socket.display();
        match UnixStream::connect(socket) {
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) =>
            {
                bail!(
                    "the daemon is not running (nothing listens on {at}); start it with 'systemctl start cinder-nbd' \
                 or 'cinder-nbd daemon'"
                )
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                bail!("no right to speak to the daemon on {at}; run this as root")
            }
            Err(error) => {
                return Err(error).with_context(|| format!("connecting to the daemon on {at}"));
            }
        }
        // No deadline: an attach takes as long as cloud and target take, and their rooms have
        // deadlines of their own.
        let http = reqwest::Client::builder()
            .unix_socket(socket)
            .no_proxy()
            .build()?;
        Ok(Self { http })
    }

    /// Asks for something.
    ///
    /// # Errors
    /// What the daemon says, or that it went away.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        receive(self.http.get(url(path))).await
    }

    /// Has something done.
    ///
    /// # Errors
    /// What the daemon says, or that it went away.
    pub async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> anyhow::Result<T> {
        receive(self.http.post(url(path)).json(body)).await
    }
}

fn url(path: &str) -> String {
    format!("http://cinder-nbd{path}")
}

async fn receive<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> anyhow::Result<T> {
    let lost = "the daemon went away before it answered; see its log";
    // The URL means nothing to the user, it only names the socket.
    let response = request
        .send()
        .await
        .map_err(reqwest::Error::without_url)
        .context(lost)?;
    let status = response.status();
    let body = response
        .bytes()
        .await
        .map_err(reqwest::Error::without_url)
        .context(lost)?;
    if status.is_success() {
        return serde_json::from_slice(&body)
            .context("the daemon's answer is not understood; is it another version?");
    }
    match serde_json::from_slice::<Failure>(&body) {
        Ok(failure) => Err(anyhow!(failure.error)),
        Err(_) => Err(anyhow!(
            "the daemon answered {status}; is it another version?"
        )),
    }
}
