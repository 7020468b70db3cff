//! The other side of the demo: an iSCSI target and a small Keystone and Cinder from `support`, in this process.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::faults;

/// How long a session may take to go after the last command: logout is asynchronous on the target's side.
const SETTLE: Duration = Duration::from_secs(10);

/// A running stand-in; its files go with it.
pub(crate) struct Bed {
    inner: support::DemoBed,
}

impl Bed {
    pub(crate) async fn start() -> Result<Self> {
        let inner = support::demo_bed().await;
        Ok(Self { inner })
    }

    /// The variables that lead to it.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        self.inner.cloud.env()
    }

    /// Where it listens.
    pub(crate) fn describe(&self) -> String {
        let environment = self.environment();
        let url = environment.iter().find(|(name, _)| name == "OS_AUTH_URL");
        let url = url.map_or("", |(_, url)| url);
        format!("{url}, iscsi://{}", self.inner.target.portal())
    }

    /// # Errors
    /// Names what the cloud or the target still hold.
    pub(crate) async fn nothing_left(&self) -> Result<()> {
        let volumes = self.inner.cloud.volumes();
        ensure!(volumes.is_empty(), "volumes are left: {volumes:?}");
        let attachments = self.inner.cloud.attachments();
        ensure!(
            attachments.is_empty(),
            "attachments are left: {attachments:?}"
        );
        let all_gone = async {
            while self.inner.target.sessions() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let gone = tokio::time::timeout(SETTLE, all_gone).await;
        ensure!(
            gone.is_ok(),
            "iSCSI sessions are left: {}",
            self.inner.target.sessions()
        );
        Ok(())
    }
}

/// Serves until it is dropped; the file appears whole when all is ready.
pub(crate) async fn serve(environment: &Path, faults: Option<&Path>) -> Result<()> {
    let bed = Bed::start().await?;
    let mut text = String::new();
    for (name, value) in bed.environment() {
        writeln!(text, "export {name}='{}'", value.replace('\'', "'\\''"))?;
    }
    let unfinished = environment.with_extension("new");
    std::fs::write(&unfinished, text)
        .and_then(|()| std::fs::rename(&unfinished, environment))
        .with_context(|| format!("write {}", environment.display()))?;
    match faults {
        Some(pipe) => faults::obey(pipe, &bed.inner.cloud).await,
        None => std::future::pending().await,
    }
}
