//! `volume snapshot create|list|show|delete`.
//!
//! A snapshot of what this host has mounted is taken by the daemon, which freezes the filesystem meanwhile; any other by
//! Cinder alone.

use std::time::Duration;

use anyhow::Context;

use super::connect;
use crate::cinder::{Cinder, NewSnapshot, Snapshot};
use crate::cli::arguments::{SnapshotCreate, SnapshotList, SnapshotVerb};
use crate::cli::control::client::Client;
use crate::cli::control::wire::SnapshotRequest;
use crate::cli::output::{Waiting, print, print_facts, print_json, print_table};
use crate::config::Config;
use crate::volume::{Consistency, Taken};

/// A backend may copy all of it.
const TAKE_WAIT: Duration = Duration::from_hours(1);

pub(super) async fn run(config: &Config, verb: SnapshotVerb) -> anyhow::Result<()> {
    match verb {
        SnapshotVerb::Create(options) => {
            let doing = format!("taking snapshot {} of {}", options.name, options.volume);
            let waiting = Waiting::new(doing.clone());
            let taken = create(config, &options).await.context(doing)?;
            drop(waiting);
            tell(&taken, options.show.json)
        }
        SnapshotVerb::List(options) => list(config, &options).await.context("listing snapshots"),
        SnapshotVerb::Show(options) => {
            let found = async {
                anyhow::Ok(
                    connect(config)
                        .await?
                        .find_snapshot(&options.snapshot)
                        .await?,
                )
            };
            let doing = format!("showing snapshot {}", options.snapshot);
            show(found.await.context(doing)?, options.show.json)
        }
        SnapshotVerb::Delete(options) => {
            let doing = format!("deleting snapshot {}", options.snapshot);
            let _waiting = Waiting::new(doing.clone());
            let deleted = async {
                let cinder = connect(config).await?;
                let snapshot = cinder.find_snapshot(&options.snapshot).await?;
                anyhow::Ok(cinder.delete_snapshot(&snapshot.id).await?)
            };
            deleted.await.context(doing)
        }
    }
}

async fn create(config: &Config, options: &SnapshotCreate) -> anyhow::Result<Taken> {
    let cinder = connect(config).await?;
    let begun = if Client::is_there(&config.control_socket) {
        let request = SnapshotRequest {
            volume: options.volume.clone(),
            name: options.name.clone(),
            description: options.description.clone(),
            freeze_limit_s: (!options.no_freeze).then_some(options.freeze_limit),
        };
        let client = Client::connect(&config.control_socket)?;
        client.post("/v1/snapshot", &request).await?
    } else {
        without_daemon(&cinder, options).await?
    };
    let snapshot = cinder.await_snapshot(&begun.snapshot.id, TAKE_WAIT).await?;
    if snapshot.status != "available" {
        return Err(cinder.snapshot_failure(&snapshot).await.into());
    }
    Ok(Taken { snapshot, ..begun })
}

async fn without_daemon(cinder: &Cinder, options: &SnapshotCreate) -> anyhow::Result<Taken> {
    let volume = cinder.find(&options.volume).await?;
    let consistency = if volume.status == "available" {
        Consistency::Unused
    } else {
        Consistency::Crash
    };
    let new = NewSnapshot {
        volume_id: volume.id,
        name: options.name.clone(),
        description: options.description.clone(),
    };
    let snapshot = cinder.begin_snapshot(&new).await?;
    Ok(Taken {
        snapshot,
        consistency,
    })
}

fn tell(taken: &Taken, is_json: bool) -> anyhow::Result<()> {
    if is_json {
        return print_json(taken);
    }
    if taken.consistency == Consistency::Crash {
        tracing::warn!("{}", taken.consistency);
    }
    print(&taken.snapshot.id)
}

async fn list(config: &Config, options: &SnapshotList) -> anyhow::Result<()> {
    let cinder = connect(config).await?;
    let volume = match &options.volume {
        Some(asked) => Some(cinder.find(asked).await?.id),
        None => None,
    };
    let snapshots = cinder.snapshots(volume.as_deref()).await?;
    if options.show.json {
        return print_json(&snapshots);
    }
    let rows: Vec<Vec<String>> = snapshots.iter().map(row).collect();
    let heading = ["ID", "NAME", "STATUS", "SIZE", "VOLUME", "TAKEN"];
    print_table(&heading, &rows, "no snapshots")
}

fn row(snapshot: &Snapshot) -> Vec<String> {
    vec![
        snapshot.id.clone(),
        snapshot.name.clone().unwrap_or_default(),
        snapshot.status.clone(),
        format!("{} GiB", snapshot.size),
        snapshot.volume_id.clone(),
        snapshot.created_at.clone().unwrap_or_default(),
    ]
}

fn show(snapshot: Snapshot, is_json: bool) -> anyhow::Result<()> {
    if is_json {
        return print_json(&snapshot);
    }
    print_facts(&[
        ("id", snapshot.id),
        ("name", snapshot.name.unwrap_or_default()),
        ("status", snapshot.status),
        ("size", format!("{} GiB", snapshot.size)),
        ("volume", snapshot.volume_id),
        ("taken", snapshot.created_at.unwrap_or_default()),
        ("description", snapshot.description.unwrap_or_default()),
    ])
}
