//! Volumes: make, find, list, delete; each waits until Cinder has done it.
//!
//! Source: Block Storage API v3, volumes and messages; states as observed on Cinder 21.3.1.
//!
//! Invariants:
//! 1. Making a volume whose answer is lost makes it once: it carries a mark by which it is found again.
//! 2. A volume that ends in `error` is not left behind.
//! 3. A name is compared here, byte for byte: a server's filter may be wider.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Cinder;
use super::error::{Error, listed};
use super::fault::from_text;
use super::http::Answer;
use super::model::{NewVolume, Volume, plain};
use super::pages::the_one;
use super::session::{Call, Repeat};
use super::watch::Watch;

/// An empty volume: below the 120 s that Docker's engine waits, so that it hears our reason.
const CREATE_WAIT: Duration = Duration::from_secs(100);

/// From an image, snapshot or volume all data may be copied.
const COPY_WAIT: Duration = Duration::from_hours(1);

/// A backend may wipe; Docker's engine waits 60 s.
const DELETE_WAIT: Duration = Duration::from_mins(5);

/// What ended in error has mostly nothing to be wiped.
const UNDO_WAIT: Duration = Duration::from_secs(30);

/// The mark of a request, in the metadata of what it makes.
pub(super) const MARK: &str = "cinder-nbd.request";

#[derive(Deserialize)]
pub(super) struct One {
    pub(super) volume: Volume,
}

#[derive(Deserialize)]
struct Messages {
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    user_message: String,
}

impl Cinder {
    /// By UUID, or by exact name when only one has it.
    ///
    /// # Errors
    /// Absent, or several of that name (ids are listed).
    pub async fn find(&self, id_or_name: &str) -> Result<Volume, Error> {
        if Uuid::try_parse(id_or_name).is_ok() {
            match self.show(id_or_name).await {
                Err(error) if error.is_not_found() => {} // It may be a name.
                result => return result,
            }
        }
        let named = self.list_filtered(&[("name", id_or_name)]).await?;
        the_one("volume", id_or_name, named, |volume| {
            (&volume.id, volume.name.as_deref())
        })
    }

    /// By UUID.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn show(&self, id: &str) -> Result<Volume, Error> {
        let one: One = self
            .session
            .call(Call::get(&["volumes", id]))
            .await?
            .parse()?;
        Ok(one.volume)
    }

    /// All volumes of the project, paged through.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn list(&self) -> Result<Vec<Volume>, Error> {
        self.list_filtered(&[]).await
    }

    /// Creates and waits until `available`; a volume that ends in `error` is deleted again and the reason told.
    ///
    /// # Errors
    /// See `Error`.
    ///
    /// # Cancel safety
    /// Dropped while waiting, the volume stays and goes on being made.
    pub async fn create(&self, new: &NewVolume) -> Result<Volume, Error> {
        let mark = Uuid::new_v4().to_string();
        let body = create_body(new, &mark)?;
        let volume = match self.session.call(Call::post(&["volumes"], body)).await {
            Ok(answer) => answer.parse::<One>()?.volume,
            Err(error) if error.is_uncertain() => self.find_marked(&new.name, &mark, error).await?,
            Err(error) => return Err(self.explain_create(new, error).await),
        };
        let is_copy =
            new.snapshot_id.is_some() || new.source_volid.is_some() || new.image.is_some();
        let wait = if is_copy { COPY_WAIT } else { CREATE_WAIT };
        let volume = self.wait_created(volume, wait).await?;
        match volume.status.as_str() {
            "available" => Ok(volume),
            "error" => Err(self.undo_create(&volume).await),
            _ => Err(Error::Slow {
                remedy: "Cinder may have lost the request (its operators can reset the state); else wait, and delete it \
                         by its id"
                    .to_owned(),
                kind: "volume",
                id: volume.id,
                status: volume.status,
                seconds: wait.as_secs(),
            }),
        }
    }

    /// Deletes and waits until it is gone. Absent is done.
    ///
    /// # Errors
    /// See `Error`.
    ///
    /// # Cancel safety
    /// Dropped while waiting, the deletion goes on.
    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        match self.session.call(Call::delete(&["volumes", id])).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => return Ok(()),
            // "must be available or error or ... and must not be attached": only its state tells which.
            Err(error @ Error::Rejected { .. }) => match self.show(id).await {
                Err(gone) if gone.is_not_found() => return Ok(()),
                Ok(volume) if volume.status == "deleting" => {}
                Ok(volume) => return Err(self.explain_delete(volume, error).await),
                Err(_) => return Err(error),
            },
            Err(error) => return Err(error),
        }
        self.wait_deleted(id, DELETE_WAIT).await
    }

    /// Merges metadata keys.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn set_metadata(&self, volume_id: &str, key: &str, value: &str) -> Result<(), Error> {
        let body = json!({"metadata": {key: value}});
        let path = ["volumes", volume_id, "metadata"];
        self.session
            .call(Call::post(&path, body).repeat(Repeat::Always))
            .await
            .map(|_| ())
    }

    pub(super) async fn list_filtered(
        &self,
        filter: &[(&str, &str)],
    ) -> Result<Vec<Volume>, Error> {
        self.all("volumes", &["volumes", "detail"], filter).await
    }

    /// After an answer that was lost: the volume, if it was made nevertheless.
    async fn find_marked(&self, name: &str, mark: &str, error: Error) -> Result<Volume, Error> {
        let made = self.list_filtered(&[("name", name)]).await;
        let found = made.ok().and_then(|volumes| {
            volumes
                .into_iter()
                .find(|volume| volume.metadata.get(MARK).is_some_and(|found| found == mark))
        });
        found.ok_or(error)
    }

    async fn wait_created(&self, mut volume: Volume, wait: Duration) -> Result<Volume, Error> {
        let mut watch = Watch::begin();
        // `downloading`: from an image.
        while ["creating", "downloading"].contains(&volume.status.as_str())
            && !watch.has_lasted(wait)
        {
            watch.pause().await;
            volume = self.show(&volume.id).await?;
        }
        Ok(volume)
    }

    async fn wait_deleted(&self, id: &str, wait: Duration) -> Result<(), Error> {
        let mut watch = Watch::begin();
        loop {
            let volume = match self.show(id).await {
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => return Err(error),
                Ok(volume) => volume,
            };
            if volume.status != "deleting" {
                let reason = self.reason(id).await;
                return Err(Error::WrongState {
                    volume: volume.id,
                    status: volume.status,
                    remedy: format!(
                        "the backend could not delete it ({reason}); its operators must (os-reset_status)"
                    ),
                });
            }
            if watch.has_lasted(wait) {
                return Err(Error::Slow {
                    kind: "volume",
                    id: volume.id,
                    status: volume.status,
                    seconds: wait.as_secs(),
                    remedy: "Cinder goes on with it; look again with `cinder-nbd volume list`"
                        .to_owned(),
                });
            }
            watch.pause().await;
        }
    }

    async fn undo_create(&self, volume: &Volume) -> Error {
        let reason = self.reason(&volume.id).await;
        let undone = match self
            .session
            .call(Call::delete(&["volumes", &volume.id]))
            .await
        {
            Ok(_) => self.wait_deleted(&volume.id, UNDO_WAIT).await,
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        };
        let outcome = match undone {
            Ok(()) => {
                "nothing is left of it; try another type or zone, or ask the cloud's operators"
                    .to_owned()
            }
            Err(error) => format!("delete volume {} by hand ({error})", volume.id),
        };
        Error::CreateFailed {
            name: volume.label().to_owned(),
            reason,
            outcome,
        }
    }

    /// What Cinder tells users about a failure; its newest words first, the same words once.
    pub(super) async fn reason(&self, id: &str) -> String {
        let query = [("resource_uuid", id)];
        let call = Call::get(&["messages"]).query(&query);
        let answer = self.session.call(call).await;
        let words = answer.and_then(|answer| reason_in(&answer));
        words
            .ok()
            .flatten()
            .unwrap_or_else(|| "Cinder gives no reason".to_owned())
    }

    /// A refused creation with the words that would have been right.
    async fn explain_create(&self, new: &NewVolume, error: Error) -> Error {
        if !error.is_not_found() {
            return error;
        }
        let names_type =
            matches!(&error, Error::NotFound { message, .. } if message.contains("type"));
        if new.volume_type.is_none() || !names_type {
            return error.with_remedy("check the id, and that it is of this project".to_owned());
        }
        let known = self.type_names().await;
        error.with_remedy(if known.is_empty() {
            "ask the cloud's operators for its volume types".to_owned()
        } else {
            format!("the types here are {}", listed(&known))
        })
    }

    async fn type_names(&self) -> Vec<String> {
        #[derive(Deserialize)]
        struct Type {
            #[serde(deserialize_with = "plain")]
            name: String,
        }
        let listed = self.all::<Type>("volume_types", &["types"], &[]).await;
        let listed = listed.unwrap_or_default().into_iter();
        let mut names: Vec<String> = listed.map(|kind| kind.name).collect();
        names.retain(|name| name != "__DEFAULT__");
        names.sort();
        names
    }

    async fn explain_delete(&self, volume: Volume, error: Error) -> Error {
        match volume.status.as_str() {
            "in-use" | "reserved" | "attaching" | "detaching" => {
                self.attached_elsewhere(&volume).await
            }
            "available" | "error" => error
                .with_remedy("delete its snapshots first, or take it out of its group".to_owned()),
            _ => wrong_state(volume),
        }
    }
}

/// What an answer's messages say, if anything: the first words of them, the same words once.
pub(super) fn reason_in(answer: &Answer) -> Result<Option<String>, Error> {
    /// Chosen freely: what a driver says of one failure is in one or two.
    const WORDS_MAX: usize = 3;
    let mut words: Vec<String> = Vec::new();
    for message in answer.parse::<Messages>()?.messages {
        let text = from_text(&message.user_message);
        if words.len() < WORDS_MAX && !text.is_empty() && !words.contains(&text) {
            words.push(text);
        }
    }
    Ok(Some(words.join(", ")).filter(|words| !words.is_empty()))
}

/// A volume that is neither free nor used.
pub(super) fn wrong_state(volume: Volume) -> Error {
    Error::WrongState {
        volume: volume.label().to_owned(),
        remedy: state_remedy(&volume.status).to_owned(),
        status: volume.status,
    }
}

/// What helps a volume out of a state that is neither free nor used.
fn state_remedy(status: &str) -> &'static str {
    match status {
        "creating" | "downloading" | "deleting" | "extending" | "retyping" | "backing-up"
        | "restoring-backup" | "uploading" | "reverting" | "detaching" => {
            "wait until Cinder has finished with it"
        }
        "maintenance" => "it is being migrated: wait until Cinder has finished with it",
        "awaiting-transfer" => "accept or delete the transfer first",
        "error" => "look at `cinder-nbd volume show`, and delete it or ask the cloud's operators",
        _ => "ask the cloud's operators to reset its state",
    }
}

fn create_body(new: &NewVolume, mark: &str) -> Result<Value, Error> {
    let has_size_of_source = new.snapshot_id.is_some() || new.source_volid.is_some();
    if new.size == 0 && !has_size_of_source {
        return Err(Error::Misuse(
            "the size is 0; a volume has at least 1 GiB".to_owned(),
        ));
    }
    let mut metadata = new.metadata.clone();
    metadata.insert(MARK.to_owned(), mark.to_owned());
    let mut volume = json!({"name": new.name, "metadata": metadata});
    if new.size > 0 {
        volume["size"] = new.size.into();
    }
    let optional = [
        ("volume_type", &new.volume_type),
        ("availability_zone", &new.availability_zone),
        ("description", &new.description),
        ("snapshot_id", &new.snapshot_id),
        ("source_volid", &new.source_volid),
        ("imageRef", &new.image),
    ];
    for (key, value) in optional {
        if let Some(value) = value {
            volume[key] = value.as_str().into();
        }
    }
    let mut body = json!({"volume": volume});
    if !new.scheduler_hints.is_empty() {
        body["OS-SCH-HNT:scheduler_hints"] = json!(new.scheduler_hints);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn size_nought_is_refused_unless_the_source_has_one() {
        let new = NewVolume {
            name: "v".into(),
            ..NewVolume::default()
        };
        assert!(matches!(create_body(&new, "m"), Err(Error::Misuse(_))));
        let new = NewVolume {
            snapshot_id: Some("s".into()),
            ..new
        };
        let body = create_body(&new, "m").unwrap();
        assert_eq!(
            body["volume"],
            json!({"name": "v", "snapshot_id": "s", "metadata": {MARK: "m"}})
        );
    }

    #[test]
    fn hints_stand_beside_the_volume() {
        let new = NewVolume {
            name: "v".into(),
            size: 1,
            scheduler_hints: BTreeMap::from([("same_host".to_owned(), "u".to_owned())]),
            ..NewVolume::default()
        };
        let body = create_body(&new, "m").unwrap();
        assert_eq!(
            body["OS-SCH-HNT:scheduler_hints"],
            json!({"same_host": "u"})
        );
        assert!(body["volume"].get("scheduler_hints").is_none());
    }

    #[test]
    fn only_what_is_asked_is_sent() {
        // From 3.53 unknown keys, and nulls of some, are 400.
        let new = NewVolume {
            name: "v".into(),
            size: 2,
            volume_type: Some("fast".into()),
            image: Some("i".into()),
            ..NewVolume::default()
        };
        let expected = json!({"volume": {"name": "v", "size": 2, "volume_type": "fast", "imageRef": "i", "metadata": {MARK: "m"}}});
        assert_eq!(create_body(&new, "m").unwrap(), expected);
    }
}
