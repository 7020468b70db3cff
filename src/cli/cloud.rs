//! `volume ...`: Cinder's volumes. The daemon is asked where it may have what is meant mounted, and is not needed.

mod snapshot;
mod transfer;

use std::collections::BTreeMap;

use anyhow::Context;

use super::arguments::{
    Show, VolumeClone, VolumeCreate, VolumeExtend, VolumeFormat, VolumeShow, VolumeVerb,
};
use super::control::client::Client;
use super::control::wire::{ExtendRequest, FormatRequest};
use super::output::{Waiting, print, print_facts, print_json, print_table};
use crate::cinder::{Cinder, NewVolume, Volume};
use crate::config::Config;
use crate::volume::{CREATED_BY, Error, SizeGib, View};

pub(super) async fn run(config: &Config, verb: VolumeVerb) -> anyhow::Result<()> {
    match verb {
        VolumeVerb::Create(options) => create(config, options).await,
        VolumeVerb::Clone(options) => {
            let doing = format!("cloning {} as {}", options.source, options.name);
            clone(config, options).await.context(doing)
        }
        VolumeVerb::Extend(options) => {
            let doing = format!("extending {} to {}", options.volume, options.size);
            extend(config, options).await.context(doing)
        }
        VolumeVerb::Format(options) => {
            let doing = format!("formatting {}", options.volume);
            format_once(config, options).await.context(doing)
        }
        VolumeVerb::Snapshot(verb) => snapshot::run(config, verb).await,
        VolumeVerb::Transfer(verb) => transfer::run(config, verb).await,
        VolumeVerb::List(show) => list(config, show).await.context("listing volumes"),
        VolumeVerb::Show(options) => show(config, &options).await,
        VolumeVerb::Delete(options) => {
            let doing = format!("deleting {}", options.volume);
            delete(config, &options.volume).await.context(doing)
        }
    }
}

async fn connect(config: &Config) -> anyhow::Result<Cinder> {
    let cloud = config.cloud.as_ref().ok_or(Error::NoCloud)?;
    Ok(Cinder::connect(cloud).await?)
}

async fn create(config: &Config, options: VolumeCreate) -> anyhow::Result<()> {
    let doing = format!("creating {}", options.name);
    let has_size_of_origin = options.snapshot.is_some() || options.source.is_some();
    let default_size = if has_size_of_origin {
        0
    } else {
        config.default_size
    };
    let created = async {
        let cinder = connect(config).await?;
        let snapshot_id = match &options.snapshot {
            Some(asked) => Some(cinder.find_snapshot(asked).await?.id),
            None => None,
        };
        let source_volid = match &options.source {
            Some(asked) => Some(cinder.find(asked).await?.id),
            None => None,
        };
        let new = NewVolume {
            name: options.name,
            size: options.size.map_or(default_size, SizeGib::get),
            volume_type: options.volume_type,
            availability_zone: options.availability_zone,
            description: options.description,
            snapshot_id,
            source_volid,
            image: options.image,
            scheduler_hints: options.hints.into_iter().collect(),
            metadata: BTreeMap::new(),
        };
        make(config, &cinder, new, options.show).await
    };
    created.await.context(doing)
}

async fn clone(config: &Config, options: VolumeClone) -> anyhow::Result<()> {
    let cinder = connect(config).await?;
    let source = cinder.find(&options.source).await?;
    let new = NewVolume {
        name: options.name,
        size: options.size.map_or(0, SizeGib::get),
        source_volid: Some(source.id),
        description: options.description,
        ..NewVolume::default()
    };
    make(config, &cinder, new, options.show).await
}

/// Creates, waits and tells.
async fn make(config: &Config, cinder: &Cinder, new: NewVolume, show: Show) -> anyhow::Result<()> {
    let waiting = Waiting::new(format!("creating {}", new.name));
    // Ours: the daemon may make a filesystem on it when Docker mounts it, if it is blank.
    let metadata = BTreeMap::from([(CREATED_BY.to_owned(), config.host.clone())]);
    let volume = cinder.create(&NewVolume { metadata, ..new }).await?;
    drop(waiting);
    if show.json {
        print_json(&volume)
    } else {
        print(&volume.id)
    }
}

/// By the daemon, if there is one: it alone knows what is mounted here.
async fn extend(config: &Config, options: VolumeExtend) -> anyhow::Result<()> {
    let VolumeExtend { volume, size, show } = options;
    let waiting = Waiting::new(format!("extending {volume} to {size}"));
    let (id, size_gib) = if Client::is_there(&config.control_socket) {
        let size_gib = size.get();
        let request = ExtendRequest { volume, size_gib };
        let client = Client::connect(&config.control_socket)?;
        let view: View = client.post("/v1/extend", &request).await?;
        (view.volume_id.unwrap_or_default(), view.size_gib)
    } else {
        let cinder = connect(config).await?;
        let found = cinder.find(&volume).await?;
        anyhow::ensure!(
            size.get() >= found.size,
            "it has {} GiB, and volumes do not shrink; give at least that",
            found.size
        );
        cinder.extend(&found.id, size.get()).await?;
        (found.id, Some(size.get()))
    };
    drop(waiting);
    if show.json {
        return print_json(&serde_json::json!({"id": id, "size_gib": size_gib}));
    }
    print(&id)
}

/// By the daemon: it attaches the volume for it.
async fn format_once(config: &Config, options: VolumeFormat) -> anyhow::Result<()> {
    let waiting = Waiting::new(format!("formatting {}", options.volume));
    let request = FormatRequest {
        volume: options.volume,
        fstype: options.fstype,
        mkfs_options: options.mkfs_options,
        destroy: options.destroy,
    };
    let client = Client::connect(&config.control_socket)?;
    let view: View = client.post("/v1/format", &request).await?;
    drop(waiting);
    if options.show.json {
        return print_json(&view);
    }
    print(&view.fstype.unwrap_or_default())
}

async fn list(config: &Config, show: Show) -> anyhow::Result<()> {
    let volumes = connect(config).await?.list().await?;
    if show.json {
        return print_json(&volumes);
    }
    let rows: Vec<Vec<String>> = volumes.iter().map(row).collect();
    print_table(
        &["ID", "NAME", "STATUS", "SIZE", "TYPE"],
        &rows,
        "no volumes in this project",
    )
}

fn row(volume: &Volume) -> Vec<String> {
    vec![
        volume.id.clone(),
        volume.name.clone().unwrap_or_default(),
        volume.status.clone(),
        format!("{} GiB", volume.size),
        volume.volume_type.clone().unwrap_or_default(),
    ]
}

async fn show(config: &Config, options: &VolumeShow) -> anyhow::Result<()> {
    let found = async { anyhow::Ok(connect(config).await?.find(&options.volume).await?) };
    let volume = found
        .await
        .with_context(|| format!("showing {}", options.volume))?;
    if options.show.json {
        return print_json(&volume);
    }
    let metadata: Vec<String> = volume
        .metadata
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let attachments: Vec<String> = volume.attachments.iter().map(attachment_in_words).collect();
    print_facts(&[
        ("id", volume.id),
        ("name", volume.name.unwrap_or_default()),
        ("status", volume.status),
        ("size", format!("{} GiB", volume.size)),
        ("type", volume.volume_type.unwrap_or_default()),
        ("zone", volume.availability_zone.unwrap_or_default()),
        ("created", volume.created_at.unwrap_or_default()),
        ("multiattach", volume.multiattach.to_string()),
        ("encrypted", volume.encrypted.to_string()),
        ("metadata", metadata.join(", ")),
        ("attached", attachments.join(", ")),
    ])
}

fn attachment_in_words(attachment: &crate::cinder::VolumeAttachment) -> String {
    let by = attachment
        .host_name
        .as_deref()
        .or(attachment.device.as_deref())
        .unwrap_or("somebody");
    let since = attachment
        .attached_at
        .as_deref()
        .unwrap_or("an unknown time");
    format!("{by} since {since} ({})", attachment.attachment_id)
}

async fn delete(config: &Config, asked: &str) -> anyhow::Result<()> {
    let _waiting = Waiting::new(format!("deleting {asked}"));
    let cinder = connect(config).await?;
    let volume = cinder.find(asked).await?;
    Ok(cinder.delete(&volume.id).await?)
}
