//! Where a LUN is and how to log in to it, kept for the process that comes after us.
//!
//! ```text
//!  RUNTIME_DIR/sessions/ID.json     0600, on tmpfs: it holds the CHAP secret, and is of no use after a reboot
//! ```
//!
//! A room of its own because it is the one file with a secret: `journal`, which outlives reboots, has none.
//!
//! Invariants:
//! 1. A secret is in a file of mode 0600 beneath a directory of mode 0700, and in no log and no error.
//! 2. A file that cannot be understood is as good as none: Cinder is asked, or the error says what is missing.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use iscsi::proto::{ChapCredentials, IscsiName, Portal, Secret};
use iscsi::scsi::LunAddress;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::Error;
use super::journal::{remove, write};
use crate::block::Rates;
use crate::cinder::ConnectionInfo;

/// Where a LUN is, from whichever source.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) portal: Portal,
    pub(crate) target: IscsiName,
    pub(crate) lun: LunAddress,
    pub(crate) more_paths: Vec<iscsi::io::Path>,
    pub(crate) chap: Option<ChapCredentials>,
    pub(crate) read_only: bool,
    pub(crate) rates: Rates,
}

impl Address {
    /// As Cinder told it.
    pub(crate) fn of_cinder(info: ConnectionInfo, read_only: bool) -> Self {
        Self {
            portal: info.first_path.portal,
            target: info.first_path.target_name,
            lun: info.first_path.lun,
            more_paths: info.more_paths,
            chap: info.chap,
            read_only: read_only || info.read_only,
            rates: info.rates,
        }
    }
}

/// The directory.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    directory: PathBuf,
}

/// The layout of the file; another one is not read.
const VERSION: u32 = 2;
/// The one before: `lun` was the number.
const VERSION_OF_NUMBERS: u32 = 1;

/// A file. No `Debug`: it has a secret.
#[derive(Serialize, Deserialize)]
struct Saved {
    version: u32,
    portal: String,
    target: String,
    lun: u64,
    more_paths: Vec<SavedPath>,
    chap_name: Option<String>,
    chap_secret: Option<String>,
    read_only: bool,
    /// Not there in earlier releases.
    #[serde(default)]
    rates: Rates,
}

#[derive(Serialize, Deserialize)]
struct SavedPath {
    portal: String,
    target: String,
    lun: u64,
}

impl Addresses {
    /// Makes the directory beneath the runtime directory.
    pub(crate) fn open(runtime_dir: &Path) -> Result<Self, Error> {
        let directory = runtime_dir.join("sessions");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|error| Error::file("making the directory", &directory, error))?;
        Ok(Self { directory })
    }

    /// Keeps an address for the attachment.
    pub(crate) async fn save(&self, id: Uuid, address: &Address) -> Result<(), Error> {
        let saved = Saved::of(address);
        let text = serde_json::to_vec(&saved)
            .map_err(|error| Error::step("writing down an address", error))?;
        write(self.file(id), text).await
    }

    /// What was kept; `None` if there is nothing, or nothing that can be understood.
    pub(crate) async fn load(&self, id: Uuid) -> Option<Address> {
        let path = self.file(id);
        let text = match tokio::fs::read(&path).await {
            Ok(text) => text,
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "no address was kept");
                return None;
            }
        };
        // What is wrong with it is not said: it might be a part of the secret.
        let saved: Option<Saved> = serde_json::from_slice(&text).ok();
        let address = saved.and_then(Saved::into_address);
        if address.is_none() {
            tracing::warn!(path = %path.display(), "left alone: not understood");
        }
        address
    }

    /// Removes what was kept. Absent is done.
    pub(crate) async fn forget(&self, id: Uuid) -> Result<(), Error> {
        remove(self.file(id)).await
    }

    /// Attachments of which something is kept.
    pub(crate) fn ids(&self) -> Vec<Uuid> {
        let files = std::fs::read_dir(&self.directory).into_iter().flatten();
        let names = files.filter_map(|file| file.ok()?.path().file_stem()?.to_str()?.parse().ok());
        names.collect()
    }

    fn file(&self, id: Uuid) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }
}

impl Saved {
    fn of(address: &Address) -> Self {
        let more_paths = address.more_paths.iter().map(|path| SavedPath {
            portal: path.portal.to_string(),
            target: path.target_name.to_string(),
            lun: path.lun.0,
        });
        let chap = address.chap.as_ref();
        Self {
            version: VERSION,
            portal: address.portal.to_string(),
            target: address.target.to_string(),
            lun: address.lun.0,
            more_paths: more_paths.collect(),
            chap_name: chap.map(|chap| chap.name.clone()),
            chap_secret: chap.map(|chap| chap.secret.expose().to_owned()),
            read_only: address.read_only,
            rates: address.rates,
        }
    }

    fn into_address(self) -> Option<Address> {
        let lun = match self.version {
            VERSION => LunAddress(self.lun),
            VERSION_OF_NUMBERS => LunAddress::from_number(u16::try_from(self.lun).ok()?),
            _ => return None,
        };
        let mut more_paths = Vec::new();
        for path in self.more_paths {
            more_paths.push(iscsi::io::Path {
                portal: path.portal.parse().ok()?,
                target_name: path.target.parse().ok()?,
                lun: LunAddress(path.lun),
            });
        }
        let chap = match (self.chap_name, self.chap_secret) {
            (Some(name), Some(secret)) => Some(ChapCredentials {
                name,
                secret: Secret::new(secret),
            }),
            (None, None) => None,
            _ => return None,
        };
        Some(Address {
            portal: self.portal.parse().ok()?,
            target: self.target.parse().ok()?,
            lun,
            more_paths,
            chap,
            read_only: self.read_only,
            rates: self.rates,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::block::Rate;

    fn address() -> Address {
        Address {
            portal: "[2001:db8::1]:3261".parse().unwrap(),
            target: "iqn.2026-11.example:a".parse().unwrap(),
            lun: LunAddress::raw(300),
            more_paths: vec![iscsi::io::Path {
                portal: "192.0.2.1:3260".parse().unwrap(),
                target_name: "iqn.2026-11.example:b".parse().unwrap(),
                lun: LunAddress::from_number(2),
            }],
            chap: Some(ChapCredentials {
                name: "me".to_owned(),
                secret: Secret::new("precious-word".to_owned()),
            }),
            read_only: true,
            rates: Rates {
                total_iops: Some(Rate {
                    per_second: 100,
                    burst: None,
                }),
                ..Rates::default()
            },
        }
    }

    #[tokio::test]
    async fn an_address_comes_back_with_its_secret_and_nobody_else_may_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let addresses = Addresses::open(directory.path()).unwrap();
        let id = Uuid::new_v4();
        assert!(addresses.load(id).await.is_none());
        addresses.save(id, &address()).await.unwrap();
        let back = addresses.load(id).await.unwrap();
        assert_eq!(back.portal, address().portal);
        assert_eq!((back.target, back.lun), (address().target, address().lun));
        assert_eq!(back.more_paths, address().more_paths);
        let chap = back.chap.unwrap();
        assert_eq!(
            (chap.name.as_str(), chap.secret.expose()),
            ("me", "precious-word")
        );
        assert!(back.read_only);
        assert_eq!(back.rates, address().rates);
        let file = addresses.file(id);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file), mode(&addresses.directory)), (0o600, 0o700));
        addresses.forget(id).await.unwrap();
        addresses.forget(id).await.unwrap();
        assert!(addresses.load(id).await.is_none());
    }

    #[tokio::test]
    async fn what_is_not_understood_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let addresses = Addresses::open(directory.path()).unwrap();
        let id = Uuid::new_v4();
        addresses.save(id, &address()).await.unwrap();
        let good = std::fs::read_to_string(addresses.file(id)).unwrap();
        for (from, to) in [
            ("\"version\":2", "\"version\":3"),
            ("iqn.2026-11.example:a", "no name"),
            ("192.0.2.1:3260", "192.0.2.1:port"),
            ("\"chap_name\":\"me\"", "\"chap_name\":null"),
            ("}", ""),
        ] {
            let text = good.replacen(from, to, 1);
            assert_ne!(text, good);
            std::fs::write(addresses.file(id), text).unwrap();
            assert!(addresses.load(id).await.is_none(), "{from}");
        }
    }

    #[tokio::test]
    async fn a_file_of_the_release_before_has_the_number() {
        let directory = tempfile::tempdir().unwrap();
        let addresses = Addresses::open(directory.path()).unwrap();
        let id = Uuid::new_v4();
        addresses.save(id, &address()).await.unwrap();
        let now = std::fs::read_to_string(addresses.file(id)).unwrap();
        let raw = format!("\"lun\":{}", address().lun.0);
        let before =
            now.replacen("\"version\":2", "\"version\":1", 1)
                .replacen(&raw, "\"lun\":300", 1);
        std::fs::write(addresses.file(id), before).unwrap();
        let back = addresses.load(id).await.unwrap();
        assert_eq!(back.lun, LunAddress::from_number(300));
    }
}
