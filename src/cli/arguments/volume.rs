//! The words after `volume`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Show;
use crate::volume::{Fstype, SizeGib};

/// `volume`.
#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    /// Create a volume and wait until it is available
    #[command(after_help = "Example:\n  cinder-nbd volume create data1 --size 10 --type fast")]
    Create(VolumeCreate),
    /// Make a new volume with the data of another
    #[command(after_help = "Example:\n  cinder-nbd volume clone data1 data2")]
    Clone(VolumeClone),
    /// Make a volume larger; what is mounted on this host grows with it
    #[command(
        long_about = "Makes a volume larger in Cinder. With a running daemon that has it attached, the device and the mounted \
            filesystem grow too, while they are used; else the filesystem grows at the next mount.",
        after_help = "Example:\n  cinder-nbd volume extend data1 20GiB"
    )]
    Extend(VolumeExtend),
    /// Make a filesystem, also on a volume that cinder-nbd would not format by itself
    #[command(
        long_about = "Makes a filesystem on a volume that nobody has attached or mounted. By itself cinder-nbd formats only blank \
            volumes of its own; this formats any that is blank. One that holds something is refused, with the name of what was \
            found: --destroy with that name erases it, and cannot be undone. What cannot be read is never formatted.",
        after_help = "Examples:\n  cinder-nbd volume format data1 --fstype xfs\n  cinder-nbd volume format data1 --destroy 'a \
            ext4 filesystem'"
    )]
    Format(VolumeFormat),
    /// Take, list, show and delete snapshots
    #[command(subcommand)]
    Snapshot(SnapshotVerb),
    /// Give a volume to another project
    #[command(subcommand)]
    Transfer(TransferVerb),
    /// List the project's volumes
    #[command(after_help = "Example:\n  cinder-nbd volume list --json")]
    List(Show),
    /// Show one volume
    #[command(after_help = "Example:\n  cinder-nbd volume show data1")]
    Show(VolumeShow),
    /// Delete a volume and wait until it is gone
    #[command(after_help = "Example:\n  cinder-nbd volume delete data1")]
    Delete(VolumeDelete),
}

/// `volume create`.
#[derive(Debug, Args)]
pub struct VolumeCreate {
    /// Name of the new volume
    pub name: String,
    /// Size in GiB, or with a unit; rounded up to whole GiB [default: the configuration's, else 1]
    #[arg(long, value_name = "SIZE")]
    pub size: Option<SizeGib>,
    /// Volume type
    #[arg(long = "type", value_name = "TYPE")]
    pub volume_type: Option<String>,
    /// Availability zone
    #[arg(long, value_name = "ZONE")]
    pub availability_zone: Option<String>,
    /// Description
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// Make it from this snapshot, by name or UUID
    #[arg(long, value_name = "SNAPSHOT", group = "origin")]
    pub snapshot: Option<String>,
    /// Make it from this volume, by name or UUID
    #[arg(long, value_name = "VOLUME", group = "origin")]
    pub source: Option<String>,
    /// Make it from this image
    #[arg(long, value_name = "ID", group = "origin")]
    pub image: Option<String>,
    /// Where Cinder is to put it, as in `same_host=UUID`; may be repeated
    #[arg(long = "hint", value_name = "NAME=VALUE", value_parser = hint)]
    pub hints: Vec<(String, String)>,
    /// How to print.
    #[command(flatten)]
    pub show: Show,
}

fn hint(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair.ok_or("write NAME=VALUE, as in same_host=UUID")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// `volume show`.
#[derive(Debug, Args)]
pub struct VolumeShow {
    /// Name or UUID
    pub volume: String,
    /// How to print.
    #[command(flatten)]
    pub show: Show,
}

/// `volume delete`.
#[derive(Debug, Args)]
pub struct VolumeDelete {
    /// Name or UUID
    pub volume: String,
}

/// `volume clone`.
#[derive(Debug, Args)]
pub struct VolumeClone {
    /// Name or UUID of the volume whose data it gets
    pub source: String,
    /// Name of the new volume
    pub name: String,
    /// Size in GiB, or with a unit [default: that of the source]
    #[arg(long, value_name = "SIZE")]
    pub size: Option<SizeGib>,
    /// Description
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub show: Show,
}

/// `volume extend`.
#[derive(Debug, Args)]
pub struct VolumeExtend {
    /// Name or UUID
    pub volume: String,
    /// The new size in GiB, or with a unit; rounded up to whole GiB
    pub size: SizeGib,
    /// How to print.
    #[command(flatten)]
    pub show: Show,
}

/// `volume format`.
#[derive(Debug, Args)]
pub struct VolumeFormat {
    /// Name or UUID
    pub volume: String,
    /// ext4, xfs or btrfs [default: the volume's, else the configuration's]
    #[arg(long, value_name = "FSTYPE")]
    pub fstype: Option<Fstype>,
    /// Options for mkfs, as in '-L data'
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    pub mkfs_options: Option<String>,
    /// What may be lost, in the words in which it was named
    #[arg(long, value_name = "FOUND")]
    pub destroy: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub show: Show,
}

/// `volume snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotVerb {
    /// Take a snapshot and wait until it is available
    #[command(
        long_about = "Takes a snapshot, also of a volume in use, and waits until it is available. Where a running daemon has \
            the volume mounted on this host, the filesystem is frozen meanwhile: writes wait, and all that had been written \
            is in the snapshot. They wait no longer than --freeze-limit; a snapshot that is not taken by then is kept, and \
            told to be as after a loss of power.",
        after_help = "Examples:\n  cinder-nbd volume snapshot create data1 before-upgrade\n  cinder-nbd volume create \
            data2 --snapshot before-upgrade"
    )]
    Create(SnapshotCreate),
    /// List the snapshots of the project, or of one volume
    List(SnapshotList),
    /// Show one snapshot
    Show(SnapshotShow),
    /// Delete a snapshot and wait until it is gone
    Delete(SnapshotDelete),
}

/// `volume snapshot create`.
#[derive(Debug, Args)]
pub struct SnapshotCreate {
    /// Name or UUID of the volume
    pub volume: String,
    /// Name of the snapshot
    pub name: String,
    /// Description
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// How long writes may wait for it
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=300))]
    pub freeze_limit: u16,
    /// Do not freeze what is mounted here
    #[arg(long, conflicts_with = "freeze_limit")]
    pub no_freeze: bool,
    /// How to print.
    #[command(flatten)]
    pub show: Show,
}

/// `volume snapshot list`.
#[derive(Debug, Args)]
pub struct SnapshotList {
    /// Name or UUID of a volume
    pub volume: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub show: Show,
}

/// `volume snapshot show`.
#[derive(Debug, Args)]
pub struct SnapshotShow {
    /// Name or UUID of the snapshot
    pub snapshot: String,
    /// How to print.
    #[command(flatten)]
    pub show: Show,
}

/// `volume snapshot delete`.
#[derive(Debug, Args)]
pub struct SnapshotDelete {
    /// Name or UUID of the snapshot
    pub snapshot: String,
}

/// `volume transfer`.
#[derive(Debug, Subcommand)]
pub enum TransferVerb {
    /// Offer a volume, and print id and key of the offer
    #[command(
        long_about = "Offers an available volume to whoever has the key that is printed, once. The volume cannot be used until \
            the offer is accepted or deleted.",
        after_help = "Example:\n  cinder-nbd volume transfer create data1"
    )]
    Create(TransferCreate),
    /// List the project's offers
    List(Show),
    /// Take an offered volume into this project, and print its id
    #[command(
        after_help = "Example:\n  cinder-nbd volume transfer accept 8f9a... --auth-key-file key"
    )]
    Accept(TransferAccept),
    /// Take an offer back
    Delete(TransferDelete),
}

/// `volume transfer create`.
#[derive(Debug, Args)]
pub struct TransferCreate {
    /// Name or UUID of the volume
    pub volume: String,
    /// Name of the offer
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub show: Show,
}

/// `volume transfer accept`.
#[derive(Debug, Args)]
pub struct TransferAccept {
    /// UUID of the offer
    pub transfer: String,
    /// File with the key; `-` reads it from standard input
    #[arg(long, value_name = "FILE")]
    pub auth_key_file: PathBuf,
    /// How to print.
    #[command(flatten)]
    pub show: Show,
}

/// `volume transfer delete`.
#[derive(Debug, Args)]
pub struct TransferDelete {
    /// Name or UUID of the offer
    pub transfer: String,
}
