//! What the engine asks of Cinder, and the client that is made when it is first needed.
//!
//! A boundary of its own for the same reason as `platform`: failures at every step are scripted in
//! tests.
//!
//! Invariant: the daemon starts, lists and unmounts without a cloud; only what needs Cinder fails
//! while it is away.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;

use super::error::{Cause, Error};
use crate::cinder::{
    Cinder, ConnectionInfo, Connector, Holder, NewSnapshot, NewVolume, Snapshot, Volume,
};
use crate::config::CloudConfig;

/// Cinder as the engine uses it; the meaning of each call is that of `cinder::Cinder`.
pub trait Cloud: Debug + Send + Sync + 'static {
    /// Whether there is one at all.
    fn is_configured(&self) -> bool;

    /// The address of this host on the route to the cloud.
    fn local_ip(&self) -> BoxFuture<'_, Option<String>>;

    /// By UUID or exact name. None: it is certain that there is none.
    fn find<'a>(&'a self, id_or_name: &'a str) -> BoxFuture<'a, Result<Option<Volume>, Cause>>;

    /// Creates, and waits until available.
    fn create(&self, new: NewVolume) -> BoxFuture<'_, Result<Volume, Cause>>;

    /// Deletes, and waits until gone.
    fn delete<'a>(&'a self, volume_id: &'a str) -> BoxFuture<'a, Result<(), Cause>>;

    /// First step of an attachment: its id.
    fn reserve<'a>(
        &'a self,
        volume_id: &'a str,
        read_only: bool,
    ) -> BoxFuture<'a, Result<String, Cause>>;

    /// Second step: how to reach it.
    fn connect_attachment<'a>(
        &'a self,
        attachment_id: &'a str,
        connector: Connector,
    ) -> BoxFuture<'a, Result<ConnectionInfo, Cause>>;

    /// The answer of the second step once more, for a process that has lost it.
    fn connection_of<'a>(
        &'a self,
        attachment_id: &'a str,
    ) -> BoxFuture<'a, Result<ConnectionInfo, Cause>>;

    /// Last step.
    fn complete<'a>(&'a self, attachment_id: &'a str) -> BoxFuture<'a, Result<(), Cause>>;

    /// Undo of all steps.
    fn delete_attachment<'a>(&'a self, attachment_id: &'a str) -> BoxFuture<'a, Result<(), Cause>>;

    /// All rows of a volume, completed or not.
    fn holders<'a>(&'a self, volume_id: &'a str) -> BoxFuture<'a, Result<Vec<Holder>, Cause>>;

    /// All volumes of exactly this name.
    fn named<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<Volume>, Cause>>;

    /// All volumes of the project.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Volume>, Cause>>;

    /// A volume's snapshots.
    fn snapshots<'a>(&'a self, volume_id: &'a str) -> BoxFuture<'a, Result<Vec<Snapshot>, Cause>>;

    /// Has a snapshot taken; it may be `creating` still.
    fn begin_snapshot(&self, new: NewSnapshot) -> BoxFuture<'_, Result<Snapshot, Cause>>;

    /// Waits until it is no longer `creating`, or the time is over.
    fn await_snapshot<'a>(
        &'a self,
        snapshot_id: &'a str,
        patience: Duration,
    ) -> BoxFuture<'a, Result<Snapshot, Cause>>;

    /// Makes a volume larger, attached or not, and waits until that is done; GiB.
    fn extend<'a>(&'a self, volume_id: &'a str, gib: u64) -> BoxFuture<'a, Result<(), Cause>>;

    /// Adds or changes one key.
    fn set_metadata<'a>(
        &'a self,
        volume_id: &'a str,
        key: &'a str,
        value: &'a str,
    ) -> BoxFuture<'a, Result<(), Cause>>;

    /// Removes one key. Absent is done.
    fn remove_metadata<'a>(
        &'a self,
        volume_id: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<(), Cause>>;
}

/// The configured cloud; authenticated at the first use that succeeds.
#[derive(Debug)]
pub struct ConfiguredCloud {
    config: Option<CloudConfig>,
    client: OnceCell<Cinder>,
}

impl ConfiguredCloud {
    /// Nothing is contacted yet.
    pub fn new(config: Option<CloudConfig>) -> Self {
        Self {
            config,
            client: OnceCell::new(),
        }
    }

    async fn client(&self) -> Result<&Cinder, Cause> {
        let config = self.config.as_ref().ok_or(Error::NoCloud)?;
        Ok(self
            .client
            .get_or_try_init(|| Cinder::connect(config))
            .await?)
    }
}

impl Cloud for ConfiguredCloud {
    fn is_configured(&self) -> bool {
        self.config.is_some()
    }

    fn local_ip(&self) -> BoxFuture<'_, Option<String>> {
        Box::pin(async move {
            let address = self.client().await.ok()?.local_ip().await?;
            Some(address.to_string())
        })
    }

    fn find<'a>(&'a self, id_or_name: &'a str) -> BoxFuture<'a, Result<Option<Volume>, Cause>> {
        Box::pin(async move {
            match self.client().await?.find(id_or_name).await {
                Ok(volume) => Ok(Some(volume)),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn create(&self, new: NewVolume) -> BoxFuture<'_, Result<Volume, Cause>> {
        Box::pin(async move { Ok(self.client().await?.create(&new).await?) })
    }

    fn delete<'a>(&'a self, volume_id: &'a str) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move { Ok(self.client().await?.delete(volume_id).await?) })
    }

    fn reserve<'a>(
        &'a self,
        volume_id: &'a str,
        read_only: bool,
    ) -> BoxFuture<'a, Result<String, Cause>> {
        Box::pin(async move { Ok(self.client().await?.reserve(volume_id, read_only).await?) })
    }

    fn connect_attachment<'a>(
        &'a self,
        attachment_id: &'a str,
        connector: Connector,
    ) -> BoxFuture<'a, Result<ConnectionInfo, Cause>> {
        Box::pin(async move {
            Ok(self
                .client()
                .await?
                .connect_attachment(attachment_id, &connector)
                .await?)
        })
    }

    fn connection_of<'a>(
        &'a self,
        attachment_id: &'a str,
    ) -> BoxFuture<'a, Result<ConnectionInfo, Cause>> {
        Box::pin(async move { Ok(self.client().await?.connection_of(attachment_id).await?) })
    }

    fn complete<'a>(&'a self, attachment_id: &'a str) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move { Ok(self.client().await?.complete(attachment_id).await?) })
    }

    fn delete_attachment<'a>(&'a self, attachment_id: &'a str) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            Ok(self
                .client()
                .await?
                .delete_attachment(attachment_id)
                .await?)
        })
    }

    fn holders<'a>(&'a self, volume_id: &'a str) -> BoxFuture<'a, Result<Vec<Holder>, Cause>> {
        Box::pin(async move { Ok(self.client().await?.holders(volume_id).await?) })
    }

    fn named<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<Volume>, Cause>> {
        Box::pin(async move { Ok(self.client().await?.named(name).await?) })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Volume>, Cause>> {
        Box::pin(async move { Ok(self.client().await?.list().await?) })
    }

    fn snapshots<'a>(&'a self, volume_id: &'a str) -> BoxFuture<'a, Result<Vec<Snapshot>, Cause>> {
        Box::pin(async move { Ok(self.client().await?.snapshots(Some(volume_id)).await?) })
    }

    fn begin_snapshot(&self, new: NewSnapshot) -> BoxFuture<'_, Result<Snapshot, Cause>> {
        Box::pin(async move { Ok(self.client().await?.begin_snapshot(&new).await?) })
    }

    fn await_snapshot<'a>(
        &'a self,
        snapshot_id: &'a str,
        patience: Duration,
    ) -> BoxFuture<'a, Result<Snapshot, Cause>> {
        Box::pin(async move {
            Ok(self
                .client()
                .await?
                .await_snapshot(snapshot_id, patience)
                .await?)
        })
    }

    fn extend<'a>(&'a self, volume_id: &'a str, gib: u64) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move { Ok(self.client().await?.extend(volume_id, gib).await?) })
    }

    fn remove_metadata<'a>(
        &'a self,
        volume_id: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move { Ok(self.client().await?.remove_metadata(volume_id, key).await?) })
    }

    fn set_metadata<'a>(
        &'a self,
        volume_id: &'a str,
        key: &'a str,
        value: &'a str,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            Ok(self
                .client()
                .await?
                .set_metadata(volume_id, key, value)
                .await?)
        })
    }
}
