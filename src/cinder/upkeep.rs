//! What the life of a volume asks beside making and attaching it: by name, by holder, larger, without a mark.
//!
//! Source: Block Storage API v3: `os-extend` (in use from 3.42 on), snapshots, metadata.

use std::time::Duration;

use serde_json::json;

use super::Cinder;
use super::error::{Error, Holder};
use super::model::Volume;
use super::session::Call;
use super::volumes::wrong_state;
use super::watch::Watch;

/// A backend that copies may take long; Cinder itself does not say.
const EXTEND_WAIT: Duration = Duration::from_mins(10);

impl Cinder {
    /// All volumes of exactly this name.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn named(&self, name: &str) -> Result<Vec<Volume>, Error> {
        let mut volumes = self.list_filtered(&[("name", name)]).await?;
        volumes.retain(|volume| volume.name.as_deref() == Some(name));
        Ok(volumes)
    }

    /// All rows of a volume, completed or not, as far as a member of the project may know of them.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn holders(&self, volume_id: &str) -> Result<Vec<Holder>, Error> {
        let volume = self.show(volume_id).await?;
        self.holders_of(&volume).await
    }

    /// Makes it larger, attached or not, and waits until that is done. A volume that has the size already is done.
    ///
    /// # Errors
    /// See `Error`; an extend that fails in the backend leaves `error_extending`.
    pub async fn extend(&self, id: &str, gib: u64) -> Result<(), Error> {
        let mut volume = self.show(id).await?;
        if volume.size >= gib {
            return Ok(());
        }
        if volume.status != "extending" {
            let body = json!({"os-extend": {"new_size": gib}});
            let path = ["volumes", id, "action"];
            self.session.call(Call::post(&path, body)).await?;
            volume = self.show(id).await?;
        }
        let mut watch = Watch::begin();
        // It goes to `extending` before it answers, so another state is the outcome.
        while volume.status == "extending" {
            if watch.has_lasted(EXTEND_WAIT) {
                return Err(Error::Slow {
                    kind: "volume",
                    id: volume.id,
                    status: volume.status,
                    seconds: EXTEND_WAIT.as_secs(),
                    remedy: "Cinder goes on with it; extend it again later".to_owned(),
                });
            }
            watch.pause().await;
            volume = self.show(id).await?;
        }
        if volume.size >= gib {
            return Ok(());
        }
        Err(wrong_state(volume))
    }

    /// Removes one metadata key. Absent is done, and so is a volume that is gone.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn remove_metadata(&self, volume_id: &str, key: &str) -> Result<(), Error> {
        let path = ["volumes", volume_id, "metadata", key];
        match self.session.call(Call::delete(&path)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }
}
