//! The cloud of a test: rows, metadata, sizes.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::super::Cloud;
use super::super::error::Cause;
use super::{Row, World};
use crate::cinder::{ConnectionInfo, Connector, Holder, NewSnapshot, NewVolume, Snapshot, Volume};

impl Cloud for World {
    fn is_configured(&self) -> bool {
        true
    }

    fn local_ip(&self) -> BoxFuture<'_, Option<String>> {
        Box::pin(async { Some("192.0.2.7".to_owned()) })
    }

    fn find<'a>(&'a self, asked: &'a str) -> BoxFuture<'a, Result<Option<Volume>, Cause>> {
        Box::pin(async move {
            self.enter("find").await?;
            let inner = self.inner();
            let mut found = inner
                .volumes
                .iter()
                .filter(|volume| volume.id == asked || volume.name.as_deref() == Some(asked));
            let first = found.next().map(|volume| Self::shown(&inner, volume));
            if found.next().is_some() {
                return Err(format!("several volumes are named {asked}").into());
            }
            Ok(first)
        })
    }

    fn create(&self, new: NewVolume) -> BoxFuture<'_, Result<Volume, Cause>> {
        Box::pin(async move {
            self.enter("create").await?;
            let id = self.add(&new.name, new.metadata);
            let mut inner = self.inner();
            let volume = inner
                .volumes
                .iter_mut()
                .find(|volume| volume.id == id)
                .expect("just added");
            volume.size = new.size.max(1);
            let volume = volume.clone();
            inner.lun_gib.insert(id, volume.size);
            if inner.unanswered.contains("create") {
                return Err("the answer was lost".into());
            }
            Ok(volume)
        })
    }

    fn delete<'a>(&'a self, volume_id: &'a str) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("delete").await?;
            let is_free = self.rows(volume_id).is_empty();
            if !is_free {
                return Err("it is attached".into());
            }
            self.inner().volumes.retain(|volume| volume.id != volume_id);
            Ok(())
        })
    }

    fn reserve<'a>(&'a self, volume_id: &'a str, _: bool) -> BoxFuture<'a, Result<String, Cause>> {
        Box::pin(async move {
            self.enter("reserve").await?;
            self.pass("reserve", volume_id).await;
            let mut inner = self.inner();
            let volume = inner.volumes.iter().find(|volume| volume.id == volume_id);
            let is_shared = volume.ok_or("no such volume")?.multiattach;
            let mut rows = inner.attachments.values();
            if !is_shared && rows.any(|row| row.volume == volume_id) {
                return Err("attached elsewhere".into());
            }
            inner.numbers += 1;
            let id = format!("attachment-{}", inner.numbers);
            let row = Row {
                volume: volume_id.to_owned(),
                status: "reserved",
                tag: None,
                host: None,
            };
            inner.attachments.insert(id.clone(), row);
            Ok(id)
        })
    }

    fn connect_attachment<'a>(
        &'a self,
        attachment_id: &'a str,
        connector: Connector,
    ) -> BoxFuture<'a, Result<ConnectionInfo, Cause>> {
        Box::pin(async move {
            self.enter("connect_attachment").await?;
            assert_eq!(
                (connector.host.as_str(), connector.ip.as_str()),
                (self.host, "192.0.2.7")
            );
            let mut inner = self.inner();
            let row = inner.attachments.get_mut(attachment_id);
            let row = row.ok_or("no such attachment")?;
            row.status = "attaching";
            row.host = Some(connector.host);
            row.tag = Some(connector.mountpoint);
            drop(inner);
            self.info_of(attachment_id)
        })
    }

    fn connection_of<'a>(
        &'a self,
        attachment_id: &'a str,
    ) -> BoxFuture<'a, Result<ConnectionInfo, Cause>> {
        Box::pin(async move {
            self.enter("connection_of").await?;
            self.info_of(attachment_id)
        })
    }

    fn complete<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("complete").await?;
            let mut inner = self.inner();
            let row = inner.attachments.get_mut(id);
            row.ok_or("no such attachment")?.status = "attached";
            Ok(())
        })
    }

    fn delete_attachment<'a>(&'a self, attachment_id: &'a str) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("delete_attachment").await?;
            let mut inner = self.inner();
            let Some(row) = inner.attachments.remove(attachment_id) else {
                return Ok(());
            };
            let mut luns = inner.devices.values();
            let of_own_host = row.host.as_deref() == Some(self.host);
            let in_use = luns.any(|lun| lun.host == self.host && lun.key == row.volume);
            assert!(
                !(in_use && of_own_host),
                "an attachment was deleted beneath its device"
            );
            Ok(())
        })
    }

    fn holders<'a>(&'a self, volume_id: &'a str) -> BoxFuture<'a, Result<Vec<Holder>, Cause>> {
        Box::pin(async move {
            self.enter("holders").await?;
            let inner = self.inner();
            let rows = inner.attachments.iter();
            let rows = rows.filter(|(_, row)| row.volume == volume_id);
            Ok(rows
                .map(|(id, row)| Holder {
                    attachment_id: id.clone(),
                    status: row.status.to_owned(),
                    device: row.tag.clone().filter(|_| row.status == "attached"),
                    host: None,
                    server_id: None,
                    since: Some("2026-11-22T18:35:56Z".to_owned()),
                })
                .collect())
        })
    }

    fn named<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<Volume>, Cause>> {
        Box::pin(async move {
            self.enter("named").await?;
            let inner = self.inner();
            let volumes = inner.volumes.iter();
            let named = volumes.filter(|volume| volume.name.as_deref() == Some(name));
            Ok(named.map(|volume| Self::shown(&inner, volume)).collect())
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Volume>, Cause>> {
        Box::pin(async move {
            self.enter("list").await?;
            let inner = self.inner();
            let volumes = inner.volumes.iter();
            Ok(volumes.map(|volume| Self::shown(&inner, volume)).collect())
        })
    }

    fn snapshots<'a>(&'a self, volume_id: &'a str) -> BoxFuture<'a, Result<Vec<Snapshot>, Cause>> {
        Box::pin(async move {
            self.enter("snapshots").await?;
            let inner = self.inner();
            let ids = inner.snapshots.get(volume_id).into_iter().flatten();
            Ok(ids.map(|id| snapshot(id, volume_id, "available")).collect())
        })
    }

    fn begin_snapshot(&self, new: NewSnapshot) -> BoxFuture<'_, Result<Snapshot, Cause>> {
        Box::pin(async move {
            self.enter("begin_snapshot").await?;
            let mut inner = self.inner();
            let is_frozen = !inner.frozen.is_empty();
            inner.taken.push((new.name.clone(), is_frozen));
            let of_volume = inner.snapshots.entry(new.volume_id.clone()).or_default();
            of_volume.push(new.name.clone());
            Ok(snapshot(&new.name, &new.volume_id, "creating"))
        })
    }

    fn await_snapshot<'a>(
        &'a self,
        snapshot_id: &'a str,
        patience: Duration,
    ) -> BoxFuture<'a, Result<Snapshot, Cause>> {
        Box::pin(async move {
            let ended = tokio::time::timeout(patience, self.enter("await_snapshot")).await;
            let status = match ended {
                Ok(entered) => {
                    entered?;
                    "available"
                }
                Err(_) => "creating",
            };
            Ok(snapshot(snapshot_id, "", status))
        })
    }

    fn extend<'a>(&'a self, volume_id: &'a str, gib: u64) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("extend").await?;
            self.set_size(volume_id, gib);
            Ok(())
        })
    }

    fn remove_metadata<'a>(
        &'a self,
        volume_id: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("remove_metadata").await?;
            let is_there = self.volumes().iter().any(|volume| volume.id == volume_id);
            if is_there {
                self.mark(volume_id, key, None);
            }
            Ok(())
        })
    }

    fn set_metadata<'a>(
        &'a self,
        volume_id: &'a str,
        key: &'a str,
        value: &'a str,
    ) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(async move {
            self.enter("set_metadata").await?;
            self.mark(volume_id, key, Some(value));
            Ok(())
        })
    }
}

/// Its name is its id.
fn snapshot(id: &str, volume_id: &str, status: &str) -> Snapshot {
    Snapshot {
        id: id.to_owned(),
        name: Some(id.to_owned()),
        volume_id: volume_id.to_owned(),
        status: status.to_owned(),
        size: 1,
        created_at: None,
        description: None,
        metadata: BTreeMap::new(),
    }
}
