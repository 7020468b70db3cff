//! `volume create|list|show|delete`: Cinder's volumes, without the daemon.

use std::collections::BTreeMap;

use anyhow::Context;

use super::arguments::{Show, VolumeCreate, VolumeShow, VolumeVerb};
use super::output::{Waiting, print, print_facts, print_json, print_table};
use crate::cinder::{Cinder, NewVolume, Volume};
use crate::config::Config;
use crate::volume::{CREATED_BY, Error};

pub(super) async fn run(config: &Config, verb: VolumeVerb) -> anyhow::Result<()> {
    match verb {
        VolumeVerb::Create(options) => create(config, options).await,
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
    let waiting = Waiting::new(doing.clone());
    let new = NewVolume {
        name: options.name,
        size: options
            .size
            .map_or(config.default_size, crate::volume::SizeGib::get),
        volume_type: options.volume_type,
        availability_zone: options.availability_zone,
        description: options.description,
        snapshot_id: options.snapshot,
        source_volid: options.source,
        image: options.image,
        scheduler_hints: options.hints.into_iter().collect(),
        // Blank, and ours: the daemon may make a filesystem on it when Docker mounts it.
        metadata: BTreeMap::from([(CREATED_BY.to_owned(), config.host.clone())]),
    };
    let created = async { anyhow::Ok(connect(config).await?.create(&new).await?) };
    let volume = created.await.context(doing)?;
    drop(waiting);
    if options.show.json {
        print_json(&volume)
    } else {
        print(&volume.id)
    }
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
