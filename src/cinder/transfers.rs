//! Transfers: a volume goes to another project, whose member shows the key that was told once.
//!
//! Source: Block Storage API v3, `os-volume-transfer` (there is `volume-transfers` from 3.55 on, above the microversion
//! that is used here; what it has more is a word about snapshots).
//!
//! Invariant: the key is in one answer and in what the owner prints of it; in no log and no error.

use iscsi::proto::Secret;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Cinder;
use super::error::Error;
use super::http::Answer;
use super::model::{plain, time};
use super::pages::the_one;
use super::session::{Call, Repeat};

/// An offer as Cinder shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Transfer {
    /// UUID.
    #[serde(deserialize_with = "plain")]
    pub id: String,
    /// Name; not unique.
    #[serde(default)]
    pub name: Option<String>,
    /// Of which volume: its UUID.
    #[serde(deserialize_with = "plain")]
    pub volume_id: String,
    /// RFC 3339, UTC.
    #[serde(default, deserialize_with = "time")]
    pub created_at: Option<String>,
}

/// An offer just made.
#[derive(Clone, Debug)]
pub struct NewTransfer {
    /// The offer.
    pub transfer: Transfer,
    /// Who shows it gets the volume. Told once.
    pub auth_key: Secret,
}

#[derive(Deserialize)]
struct One {
    transfer: Transfer,
}

const PATH: &str = "os-volume-transfer";

impl Cinder {
    /// Offers a volume, which must be `available`; it is `awaiting-transfer` then.
    ///
    /// # Errors
    /// See `Error`. An answer that is lost takes the key with it: the offer is withdrawn then, as far as possible.
    pub async fn offer(&self, volume_id: &str, name: Option<&str>) -> Result<NewTransfer, Error> {
        let before = self.transfers().await?;
        let body = json!({"transfer": {"volume_id": volume_id, "name": name}});
        match self.session.call(Call::post(&[PATH], body)).await {
            Ok(answer) => offer_in(&answer),
            Err(error) if error.is_uncertain() => {
                let mut offers = self.transfers().await.unwrap_or_default();
                offers.retain(|offer| {
                    offer.volume_id == volume_id && before.iter().all(|old| old.id != offer.id)
                });
                for offer in &offers {
                    if let Err(error) = self.withdraw(&offer.id).await {
                        tracing::warn!(transfer = offer.id, %error, "an offer whose key is lost stays");
                    }
                }
                Err(error)
            }
            Err(error) => {
                Err(error.with_remedy("only a volume that is available can be offered".to_owned()))
            }
        }
    }

    /// Takes an offered volume into this project; its UUID.
    ///
    /// # Errors
    /// See `Error`; the wrong key is refused.
    pub async fn accept(&self, transfer_id: &str, auth_key: &Secret) -> Result<String, Error> {
        let body = json!({"accept": {"auth_key": auth_key.expose()}});
        let path = [PATH, transfer_id, "accept"];
        match self.session.call(Call::post(&path, body).secret(auth_key)).await {
            Ok(answer) => Ok(answer.parse::<One>()?.transfer.volume_id),
            Err(error) => Err(error.with_remedy(
                "check id and key: the key was shown when the offer was made, and holds for one acceptance".to_owned(),
            )),
        }
    }

    /// By UUID, or by exact name when only one has it.
    ///
    /// # Errors
    /// Absent, or several of that name (ids are listed).
    pub async fn find_transfer(&self, id_or_name: &str) -> Result<Transfer, Error> {
        let mut listed = self.transfers().await?;
        match listed.iter().position(|one| one.id == id_or_name) {
            Some(at) => Ok(listed.swap_remove(at)),
            None => the_one("transfer", id_or_name, listed, |one| {
                (&one.id, one.name.as_deref())
            }),
        }
    }

    /// The project's offers.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn transfers(&self) -> Result<Vec<Transfer>, Error> {
        self.all("transfers", &[PATH, "detail"], &[]).await
    }

    /// Takes an offer back. Absent is done.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn withdraw(&self, transfer_id: &str) -> Result<(), Error> {
        let path = [PATH, transfer_id];
        match self
            .session
            .call(Call::delete(&path).repeat(Repeat::Always))
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The offer that an answer tells, with its key.
pub(super) fn offer_in(answer: &Answer) -> Result<NewTransfer, Error> {
    #[derive(Deserialize)]
    struct Made {
        transfer: Keyed,
    }
    #[derive(Deserialize)]
    struct Keyed {
        auth_key: String,
        #[serde(flatten)]
        transfer: Transfer,
    }
    let made: Made = answer.parse()?;
    Ok(NewTransfer {
        transfer: made.transfer.transfer,
        auth_key: Secret::new(made.transfer.auth_key),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_not_printed() {
        let transfer: Transfer = serde_json::from_str(
            r#"{"id": "t", "name": null, "volume_id": "v", "created_at": "2026-11-27T01:02:03.000000", "links": []}"#,
        )
        .unwrap();
        let new = NewTransfer {
            transfer,
            auth_key: Secret::new("9266c59563c84664".to_owned()),
        };
        assert!(!format!("{new:?}").contains("9266c59563c84664"));
    }
}
