//! Attachments: reserve, connect, complete, and the undo of all three.
//!
//! Source: Block Storage API v3, attachments (3.44, `mode` from 3.54).
//!
//! Invariants:
//! 1. Two steps: a one-shot create whose backend fails leaves a reserved volume with an attachment whose id nobody knows.
//! 2. `instance_uuid` is never sent: with it Cinder asks Nova before it lets the attachment go, and lets a second host in.
//! 3. An attachment whose answer was lost is looked for, and deleted if it can only be ours.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Cinder;
use super::connection::{self, ConnectionInfo};
use super::error::{Error, Holder};
use super::http::Answer;
use super::model::{Connector, Volume, plain, time};
use super::session::{Call, Repeat};
use super::volumes::wrong_state;

/// cinder-api waits 60 s for cinder-volume before it answers 500.
const BACKEND_DEADLINE: Duration = Duration::from_secs(90);

/// As Nova does: a backend that failed to let go usually does so the second time.
const DELETE_ATTEMPTS: u32 = 5;

/// Between them; five take half a minute at most beside the backend's own time.
const DELETE_PAUSE: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
struct Listed {
    attachments: Vec<Row>,
}

/// A row of `GET /attachments/detail`, without its secrets.
#[derive(Deserialize)]
pub(super) struct Row {
    #[serde(deserialize_with = "plain")]
    id: String,
    #[serde(deserialize_with = "plain")]
    status: String,
    #[serde(default, deserialize_with = "time")]
    attached_at: Option<String>,
    /// Only whether there is something in it.
    #[serde(default)]
    connection_info: Option<Filled>,
}

/// An object of which only the number of keys is kept.
struct Filled(bool);

impl<'de> Deserialize<'de> for Filled {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let keys =
            std::collections::BTreeMap::<String, serde::de::IgnoredAny>::deserialize(deserializer)?;
        Ok(Self(!keys.is_empty()))
    }
}

impl Cinder {
    /// First step: reserves the volume; the attachment's id must be written down before the next step.
    ///
    /// # Errors
    /// `AttachedElsewhere` and others. Nothing is left reserved, unless the cloud cannot be asked any more.
    pub async fn reserve(&self, volume_id: &str, read_only: bool) -> Result<String, Error> {
        let before = self.rows(volume_id).await?;
        let mut attachment = json!({"volume_uuid": volume_id});
        if self.session.microversion().has_mode() {
            attachment["mode"] = mode(read_only).into();
        }
        let body = json!({"attachment": attachment});
        match self
            .session
            .call(Call::post(&["attachments"], body).deadline(BACKEND_DEADLINE))
            .await
        {
            Ok(answer) => {
                #[derive(Deserialize)]
                struct Made {
                    attachment: Id,
                }
                #[derive(Deserialize)]
                struct Id {
                    id: String,
                }
                Ok(answer.parse::<Made>()?.attachment.id)
            }
            Err(error @ Error::Rejected { .. }) => {
                Err(self.explain_reserve(volume_id, error).await)
            }
            Err(error) if error.is_uncertain() => {
                self.sweep(volume_id, &before).await;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Second step: exports to this connector.
    ///
    /// # Errors
    /// The caller deletes the attachment then.
    pub async fn connect_attachment(
        &self,
        attachment_id: &str,
        connector: &Connector,
    ) -> Result<ConnectionInfo, Error> {
        let body = json!({"attachment": {"connector": connector_json(connector)}});
        let path = ["attachments", attachment_id];
        let answer = self
            .session
            .call(Call::put(&path, body).deadline(BACKEND_DEADLINE))
            .await?;
        connection::of(&answer)
    }

    /// What the second step answered, once more.
    ///
    /// # Errors
    /// See `Error`; not found if the attachment was deleted meanwhile.
    pub async fn connection_of(&self, attachment_id: &str) -> Result<ConnectionInfo, Error> {
        let path = ["attachments", attachment_id];
        let answer = self.session.call(Call::get(&path)).await?;
        connection::of(&answer)
    }

    /// Last step: `in-use`.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn complete(&self, attachment_id: &str) -> Result<(), Error> {
        let path = ["attachments", attachment_id, "action"];
        // A second one is 204 as well.
        let call = Call::post(&path, json!({"os-complete": {}})).repeat(Repeat::Always);
        self.session.call(call).await.map(|_| ())
    }

    /// Undo of all steps. 404 is done; 5xx is retried.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn delete_attachment(&self, attachment_id: &str) -> Result<(), Error> {
        let path = ["attachments", attachment_id];
        let mut attempt = 1;
        loop {
            let call = Call::delete(&path).deadline(BACKEND_DEADLINE);
            let error = match self.session.call(call).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => error,
            };
            // 502 to 504 and lost connections were repeated below already.
            if !matches!(error, Error::Backend { .. }) || attempt == DELETE_ATTEMPTS {
                return Err(error);
            }
            tracing::debug!(%error, attempt, "the attachment is deleted again");
            tokio::time::sleep(DELETE_PAUSE * attempt).await;
            attempt += 1;
        }
    }

    /// All attachments of a volume, completed or not: (id, status).
    ///
    /// # Errors
    /// See `Error`.
    pub async fn attachments(&self, volume_id: &str) -> Result<Vec<(String, String)>, Error> {
        Ok(self
            .rows(volume_id)
            .await?
            .into_iter()
            .map(|row| (row.id, row.status))
            .collect())
    }

    /// Who holds the volume, as far as a member of the project may know.
    pub(super) async fn attached_elsewhere(&self, volume: &Volume) -> Error {
        let holders = self.holders_of(volume).await;
        elsewhere(volume, holders.unwrap_or_else(|_| completed(volume)))
    }

    /// Its rows: what the volume says of the completed ones, and the others.
    pub(super) async fn holders_of(&self, volume: &Volume) -> Result<Vec<Holder>, Error> {
        Ok(holders_among(self.rows(&volume.id).await?, volume))
    }

    async fn rows(&self, volume_id: &str) -> Result<Vec<Row>, Error> {
        let query = [("volume_id", volume_id)];
        let path = ["attachments", "detail"];
        rows_in(&self.session.call(Call::get(&path).query(&query)).await?)
    }

    /// A refused reservation, by the volume's state: the status is 400 for all of them.
    async fn explain_reserve(&self, volume_id: &str, error: Error) -> Error {
        let Ok(volume) = self.show(volume_id).await else {
            return error;
        };
        match volume.status.as_str() {
            "in-use" | "reserved" | "attaching" | "detaching" => {
                self.attached_elsewhere(&volume).await
            }
            // Free by now: someone else's attachment has just ended.
            "available" => {
                error.with_remedy("its state has changed meanwhile: try again".to_owned())
            }
            _ => wrong_state(volume),
        }
    }

    /// After a lost answer: deletes the attachment that appeared meanwhile, is only reserved and exported to nobody.
    ///
    /// Another host's, reserved in the same moment, would look alike: its next step then fails with 404, and no data
    /// is at risk. The other way round, to take it for ours and use it, there would be two writers.
    async fn sweep(&self, volume_id: &str, before: &[Row]) {
        let known: BTreeSet<&str> = before.iter().map(|row| row.id.as_str()).collect();
        let rows = match self.rows(volume_id).await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(volume_id, %error, "a reservation may be left: look at the volume's attachments");
                return;
            }
        };
        for row in rows {
            let is_exported = row.connection_info.is_some_and(|info| info.0);
            if known.contains(row.id.as_str()) || row.status != "reserved" || is_exported {
                continue;
            }
            match self.delete_attachment(&row.id).await {
                Ok(()) => {
                    tracing::info!(
                        attachment = row.id,
                        "deleted a reservation whose answer was lost"
                    );
                }
                Err(error) => {
                    tracing::warn!(attachment = row.id, %error, "a reservation is left: delete it by hand");
                }
            }
        }
    }
}

/// The rows of an answer.
pub(super) fn rows_in(answer: &Answer) -> Result<Vec<Row>, Error> {
    Ok(answer.parse::<Listed>()?.attachments)
}

/// What the volume says of the completed ones, and the other rows.
pub(super) fn holders_among(rows: Vec<Row>, volume: &Volume) -> Vec<Holder> {
    let mut holders = completed(volume);
    let known: BTreeSet<String> = holders
        .iter()
        .map(|holder| holder.attachment_id.clone())
        .collect();
    for row in rows {
        if !known.contains(&row.id) {
            holders.push(Holder {
                attachment_id: row.id,
                status: row.status,
                device: None,
                host: None,
                server_id: None,
                // Not completed: the volume's last change is when it was taken.
                since: row.attached_at.or_else(|| volume.updated_at.clone()),
            });
        }
    }
    holders
}

/// The volume is theirs.
pub(super) fn elsewhere(volume: &Volume, holders: Vec<Holder>) -> Error {
    let delete = match holders.first() {
        Some(holder) => format!(
            "`openstack --os-volume-api-version 3.44 volume attachment delete {}`",
            holder.attachment_id
        ),
        None => "`cinder reset-state` (operators only)".to_owned(),
    };
    let remedy = match volume.status.as_str() {
        "in-use" => format!("detach it there first, or, if that host is surely dead, {delete}"),
        _ => format!("wait until that attachment is done, or, if nobody is at it, {delete}"),
    };
    Error::AttachedElsewhere {
        volume: volume.label().to_owned(),
        status: volume.status.clone(),
        holders,
        remedy,
    }
}

fn completed(volume: &Volume) -> Vec<Holder> {
    let holder = |attachment: &super::model::VolumeAttachment| Holder {
        attachment_id: attachment.attachment_id.clone(),
        status: "attached".to_owned(),
        device: attachment.device.clone(),
        host: attachment.host_name.clone(),
        server_id: attachment.server_id.clone(),
        since: attachment.attached_at.clone(),
    };
    volume.attachments.iter().map(holder).collect()
}

fn mode(read_only: bool) -> &'static str {
    if read_only { "ro" } else { "rw" }
}

/// os-brick's dictionary, the part that iSCSI drivers read.
fn connector_json(connector: &Connector) -> Value {
    json!({
        "initiator": connector.initiator,
        "host": connector.host,
        "ip": connector.ip,
        "mountpoint": connector.mountpoint,
        "mode": mode(connector.read_only),
        "platform": std::env::consts::ARCH,
        "os_type": std::env::consts::OS,
        // The daemon goes from one path to another by itself.
        "multipath": true,
        "enforce_multipath": false,
        "do_local_attach": false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connector_has_what_drivers_read_and_no_instance() {
        let connector = Connector {
            initiator: "iqn.2026-11.org.cinder-nbd:h".into(),
            host: "h".into(),
            ip: "10.0.0.1".into(),
            mountpoint: "cinder-nbd:h".into(),
            read_only: true,
        };
        let value = connector_json(&connector);
        assert_eq!(
            (&value["initiator"], &value["host"], &value["ip"]),
            (
                &json!("iqn.2026-11.org.cinder-nbd:h"),
                &json!("h"),
                &json!("10.0.0.1")
            )
        );
        assert_eq!(
            (&value["mode"], &value["multipath"], &value["os_type"]),
            (&json!("ro"), &json!(true), &json!("linux"))
        );
        assert!(!value.to_string().contains("instance"));
    }

    #[test]
    fn rows_are_read_as_recorded() {
        let listed: Listed = serde_json::from_str(r#"{"attachments": [
            {"id": "59ce18c9", "status": "reserved", "instance": null, "volume_id": "7bf4", "attached_at": "", "detached_at": "", "attach_mode": null, "connection_info": null},
            {"id": "6c61865e", "status": "reserved", "attached_at": "", "attach_mode": "null", "connection_info": {}},
            {"id": "b9faac7c", "status": "attached", "attached_at": "2026-11-22T18:35:56.000000", "connection_info": {"auth_password": "x"}}]}"#).unwrap();
        let facts: Vec<(Option<&str>, bool)> = listed
            .attachments
            .iter()
            .map(|row| {
                (
                    row.attached_at.as_deref(),
                    row.connection_info.as_ref().is_some_and(|info| info.0),
                )
            })
            .collect();
        assert_eq!(
            facts,
            [
                (None, false),
                (None, false),
                (Some("2026-11-22T18:35:56Z"), true)
            ]
        );
    }

    #[test]
    fn a_holder_is_told_as_far_as_it_is_known() {
        let holder = Holder {
            attachment_id: "a1".into(),
            status: "attached".into(),
            device: Some("cinder-nbd:web1".into()),
            host: None,
            server_id: None,
            since: Some("2026-11-22T18:35:56Z".into()),
        };
        assert_eq!(
            holder.to_string(),
            "attachment a1 is attached as cinder-nbd:web1 since 2026-11-22T18:35:56Z"
        );
        let holder = Holder {
            device: Some("na".into()),
            host: Some("h".into()),
            since: None,
            ..holder
        };
        assert_eq!(holder.to_string(), "attachment a1 is attached on host h");
    }
}
