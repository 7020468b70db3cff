//! Snapshots: take, find, list, delete.
//!
//! Source: Block Storage API v3, snapshots; `cinder/api/v3/snapshots.py` (`force` is needed below 3.66 for a volume in
//! use, and refused with false from there on; ours is 3.54).
//!
//! Invariants:
//! 1. Taking one whose answer is lost takes it once: it carries a mark by which it is found again.
//! 2. What it holds is what had reached the volume when Cinder took it: whoever wants more freezes before.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Cinder;
use super::error::{Error, RequestId};
use super::model::{label, plain, time};
use super::pages::the_one;
use super::session::Call;
use super::volumes::MARK;
use super::watch::Watch;

/// A backend that copies; Cinder itself does not say.
const DELETE_WAIT: Duration = Duration::from_mins(5);

/// A snapshot as Cinder shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// UUID.
    #[serde(deserialize_with = "plain")]
    pub id: String,
    /// Name; not unique.
    #[serde(default)]
    pub name: Option<String>,
    /// Of which volume: its UUID.
    #[serde(deserialize_with = "plain")]
    pub volume_id: String,
    /// `creating`, `available`, `deleting`, `error`...
    #[serde(deserialize_with = "plain")]
    pub status: String,
    /// Of its volume when it was taken, in GiB.
    pub size: u64,
    /// RFC 3339, UTC.
    #[serde(default, deserialize_with = "time")]
    pub created_at: Option<String>,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
    /// Free-form.
    #[serde(default)]
    pub metadata: std::collections::BTreeMap<String, String>,
}

impl Snapshot {
    /// The name, or the id where there is none that can be printed: for messages.
    pub fn label(&self) -> &str {
        label(self.name.as_deref(), &self.id)
    }
}

/// What to take.
#[derive(Clone, Debug, Default)]
pub struct NewSnapshot {
    /// Of which volume: its UUID.
    pub volume_id: String,
    /// Name.
    pub name: String,
    /// For people.
    pub description: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct One {
    pub(super) snapshot: Snapshot,
}

impl Cinder {
    /// Has one taken, also of a volume in use. It is `creating` when this returns.
    ///
    /// # Errors
    /// See `Error`; over quota among them.
    pub async fn begin_snapshot(&self, new: &NewSnapshot) -> Result<Snapshot, Error> {
        let mark = Uuid::new_v4().to_string();
        let body = create_body(new, &mark);
        match self.session.call(Call::post(&["snapshots"], body)).await {
            Ok(answer) => Ok(answer.parse::<One>()?.snapshot),
            Err(error) if error.is_uncertain() => {
                let taken = self.snapshots(Some(&new.volume_id)).await.ok();
                let mut taken = taken.into_iter().flatten();
                let is_ours = |one: &Snapshot| one.metadata.get(MARK) == Some(&mark);
                taken.find(is_ours).ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until it is no longer `creating`, or the time is over: the caller looks at its status.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn await_snapshot(&self, id: &str, patience: Duration) -> Result<Snapshot, Error> {
        let mut watch = Watch::begin();
        loop {
            let snapshot = self.show_snapshot(id).await?;
            if snapshot.status != "creating" || !watch.has_another(patience) {
                return Ok(snapshot);
            }
            watch.pause().await;
        }
    }

    /// Why a snapshot that is in error is so, as far as Cinder tells.
    pub async fn snapshot_failure(&self, snapshot: &Snapshot) -> Error {
        Error::SnapshotFailed {
            name: snapshot.label().to_owned(),
            reason: self.reason(&snapshot.id).await,
            remedy: format!(
                "delete it: cinder-nbd volume snapshot delete {}",
                snapshot.id
            ),
        }
    }

    /// By UUID, or by exact name when only one has it.
    ///
    /// # Errors
    /// Absent, or several of that name (ids are listed).
    pub async fn find_snapshot(&self, id_or_name: &str) -> Result<Snapshot, Error> {
        if Uuid::try_parse(id_or_name).is_ok() {
            match self.show_snapshot(id_or_name).await {
                Err(error) if error.is_not_found() => {} // It may be a name.
                result => return result,
            }
        }
        let filter = [("name", id_or_name)];
        let named: Vec<Snapshot> = self
            .all("snapshots", &["snapshots", "detail"], &filter)
            .await?;
        the_one("snapshot", id_or_name, named, |one| {
            (&one.id, one.name.as_deref())
        })
    }

    /// By UUID.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn show_snapshot(&self, id: &str) -> Result<Snapshot, Error> {
        let answer = self.session.call(Call::get(&["snapshots", id])).await?;
        Ok(answer.parse::<One>()?.snapshot)
    }

    /// Those of a volume (its UUID), or of the project.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn snapshots(&self, volume_id: Option<&str>) -> Result<Vec<Snapshot>, Error> {
        let filter: Vec<_> = volume_id.map(|id| ("volume_id", id)).into_iter().collect();
        self.all("snapshots", &["snapshots", "detail"], &filter)
            .await
    }

    /// Deletes and waits until it is gone. Absent is done.
    ///
    /// # Errors
    /// See `Error`.
    ///
    /// # Cancel safety
    /// Dropped while waiting, the deletion goes on.
    pub async fn delete_snapshot(&self, id: &str) -> Result<(), Error> {
        match self.session.call(Call::delete(&["snapshots", id])).await {
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => {
                let remedy = "it must be available or in error, and no volume may still be being made from it";
                return Err(error.with_remedy(remedy.to_owned()));
            }
            Ok(_) => {}
        }
        let mut watch = Watch::begin();
        loop {
            let snapshot = match self.show_snapshot(id).await {
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => return Err(error),
                Ok(snapshot) => snapshot,
            };
            if snapshot.status != "deleting" {
                return Err(self.not_deleted(&snapshot).await);
            }
            if watch.has_lasted(DELETE_WAIT) {
                return Err(Error::Slow {
                    kind: "snapshot",
                    id: snapshot.id,
                    status: snapshot.status,
                    seconds: DELETE_WAIT.as_secs(),
                    remedy:
                        "Cinder goes on with it; look again with `cinder-nbd volume snapshot list`"
                            .to_owned(),
                });
            }
            watch.pause().await;
        }
    }

    async fn not_deleted(&self, snapshot: &Snapshot) -> Error {
        let reason = self.reason(&snapshot.id).await;
        Error::Rejected {
            status: 409,
            message: format!(
                "snapshot {} is {} and not deleted: {reason}",
                snapshot.id, snapshot.status
            ),
            request: RequestId(None),
            remedy: "delete the volumes made from it first, or ask the cloud's operators"
                .to_owned(),
        }
    }
}

fn create_body(new: &NewSnapshot, mark: &str) -> Value {
    let mut snapshot = json!({
        "volume_id": new.volume_id,
        "name": new.name,
        "force": true,
        "metadata": {MARK: mark},
    });
    if let Some(description) = &new.description {
        snapshot["description"] = description.as_str().into();
    }
    json!({"snapshot": snapshot})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_snapshot_is_read() {
        // As recorded from Cinder 21.3.1.
        let snapshot: Snapshot = serde_json::from_str(
            r#"{"id": "b1323cda-8e4b-41c1-afc5-2fc791809c8c", "created_at": "2026-11-27T01:02:03.000000", "updated_at": null,
                "name": "s1", "description": null, "volume_id": "26cb1c15-fc9f-4d27-958e-d0c32bbaeb92", "status": "creating",
                "size": 1, "metadata": {"cinder-nbd.request": "m"}, "user_id": "u", "group_snapshot_id": null}"#,
        )
        .unwrap();
        assert_eq!((snapshot.label(), snapshot.size), ("s1", 1));
        assert_eq!(snapshot.created_at.as_deref(), Some("2026-11-27T01:02:03Z"));
    }

    #[test]
    fn one_of_a_volume_in_use_is_forced_and_marked() {
        let new = NewSnapshot {
            volume_id: "v".into(),
            name: "s".into(),
            description: None,
        };
        let expected = json!({"snapshot": {"volume_id": "v", "name": "s", "force": true, "metadata": {MARK: "m"}}});
        assert_eq!(create_body(&new, "m"), expected);
    }
}
