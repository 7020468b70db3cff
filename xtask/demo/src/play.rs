//! The main job, shown: a volume by hand, a volume as Docker does it, and an empty house at the end.

use std::ffi::OsStr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::bed::Bed;
use crate::daemon::{Daemon, tool};
use crate::plugin::Plugin;
use crate::story::{chapter, no_more, step};
use crate::traces::Before;

/// What is written and must come back. More than any cache on the way would hold back by chance.
const FILE_MIB: usize = 16;

pub(crate) async fn play(program: &Path) -> Result<()> {
    let before = Before::look()?;
    let dir = tempfile::Builder::new()
        .prefix("cinder-nbd-demo-")
        .tempdir()?;
    chapter("The ground");
    let bed = step(
        "a Keystone, a Cinder and an iSCSI target, in this process:",
        Bed::start(),
        Bed::describe,
    )
    .await?;
    let daemon = step(
        "$ cinder-nbd daemon",
        Daemon::start(program, bed.environment(), dir.path()),
        no_more,
    )
    .await?;

    chapter("A volume by hand");
    by_hand(&daemon, dir.path()).await?;
    chapter("A volume as Docker does it");
    as_docker(&daemon).await?;

    chapter("The end");
    step(
        "SIGTERM to the daemon: it ends in order",
        daemon.stop(),
        no_more,
    )
    .await?;
    let path = dir.path().to_owned();
    let empty = async {
        bed.nothing_left().await?;
        before.nothing_new(&path)?;
        drop(bed);
        dir.close().context("remove the demo's folder")?;
        ensure!(!path.exists(), "{} is still there", path.display());
        Ok(())
    };
    step(
        "no volume, attachment, session, device, mount, process or file is left",
        empty,
        no_more,
    )
    .await
}

async fn by_hand(daemon: &Daemon, dir: &Path) -> Result<()> {
    let create = daemon.cli(&["volume", "create", "demo", "--size", "1", "--json"]);
    step("$ cinder-nbd volume create demo --size 1", create, |said| {
        status(said)
    })
    .await?;
    let device = attach(daemon).await?;
    let mkfs = [OsStr::new("-q"), device.as_os_str()];
    step(
        &format!("$ mkfs.ext4 -q {}", device.display()),
        tool("mkfs.ext4", &mkfs),
        no_more,
    )
    .await?;
    let mounted = Mounted::on(&device, &dir.join("mnt")).await?;
    let data = data(1);
    let file = mounted.place.join("data");
    step(
        &format!("write {FILE_MIB} MiB and fsync"),
        write(file.clone(), data.clone()),
        no_more,
    )
    .await?;
    mounted.off().await?;
    detach(daemon).await?;
    let device = attach(daemon).await?;
    let mounted = Mounted::on(&device, &dir.join("mnt")).await?;
    step("read it back and compare", compare(file, data), no_more).await?;
    mounted.off().await?;
    detach(daemon).await?;
    let delete = daemon.cli(&["volume", "delete", "demo"]);
    step("$ cinder-nbd volume delete demo", delete, no_more).await?;
    Ok(())
}

async fn attach(daemon: &Daemon) -> Result<PathBuf> {
    let attach = async {
        let said = daemon.cli(&["attach", "demo", "--json"]).await?;
        let facts: Value =
            serde_json::from_str(&said).with_context(|| format!("no JSON: {said}"))?;
        let device = facts["device"]
            .as_str()
            .with_context(|| format!("no device in {said}"))?;
        Ok(PathBuf::from(device))
    };
    step("$ cinder-nbd attach demo", attach, |device| {
        device.display().to_string()
    })
    .await
}

async fn detach(daemon: &Daemon) -> Result<()> {
    let detach = async {
        daemon.cli(&["detach", "demo"]).await?;
        daemon.cli(&["volume", "show", "demo", "--json"]).await
    };
    let said = step("$ cinder-nbd detach demo", detach, |said| status(said)).await?;
    ensure!(
        status(&said) == "available",
        "the volume is not available again: {said}"
    );
    Ok(())
}

async fn as_docker(daemon: &Daemon) -> Result<()> {
    let activate = Plugin::activate(daemon.docker_socket());
    let plugin = step("POST /Plugin.Activate", activate, no_more).await?;
    let create = json!({"Name": "demo-docker", "Opts": {"size": "1"}});
    call(&plugin, "Create", create, |_| "size=1".to_owned()).await?;
    let data = data(2);
    let file = mount(&plugin, "first").await?.join("data");
    step(
        &format!("write {FILE_MIB} MiB and fsync"),
        write(file, data.clone()),
        no_more,
    )
    .await?;
    let by = |id: &str| json!({"Name": "demo-docker", "ID": id});
    call(&plugin, "Unmount", by("first"), |_| String::new()).await?;
    let file = mount(&plugin, "second").await?.join("data");
    step("read it back and compare", compare(file, data), no_more).await?;
    call(&plugin, "Unmount", by("second"), |_| String::new()).await?;
    call(&plugin, "Remove", json!({"Name": "demo-docker"}), |_| {
        String::new()
    })
    .await?;
    let list = call(&plugin, "List", json!({}), |answer| {
        answer["Volumes"].to_string()
    })
    .await?;
    ensure!(
        list["Volumes"].as_array().is_none_or(Vec::is_empty),
        "volumes are left: {list}"
    );
    Ok(())
}

async fn mount(plugin: &Plugin, id: &str) -> Result<PathBuf> {
    let place = |answer: &Value| answer["Mountpoint"].as_str().unwrap_or_default().to_owned();
    let answer = call(
        plugin,
        "Mount",
        json!({"Name": "demo-docker", "ID": id}),
        place,
    )
    .await?;
    let place = place(&answer);
    ensure!(
        Path::new(&place).is_absolute(),
        "Mount named no place: {answer}"
    );
    Ok(place.into())
}

async fn call(
    plugin: &Plugin,
    method: &str,
    body: Value,
    more: impl FnOnce(&Value) -> String,
) -> Result<Value> {
    let method = format!("VolumeDriver.{method}");
    step(&format!("POST /{method}"), plugin.call(&method, body), more).await
}

/// A mount of ours; unmounted when dropped, so also when the demo is interrupted.
struct Mounted {
    place: PathBuf,
    is_mounted: bool,
}

impl Mounted {
    async fn on(device: &Path, place: &Path) -> Result<Self> {
        std::fs::create_dir_all(place).context("make the mount point")?;
        let mount = [device.as_os_str(), place.as_os_str()];
        step(
            &format!("$ mount {} {}", device.display(), place.display()),
            tool("mount", &mount),
            no_more,
        )
        .await?;
        Ok(Self {
            place: place.to_owned(),
            is_mounted: true,
        })
    }

    async fn off(mut self) -> Result<()> {
        let umount = [self.place.as_os_str()];
        step(
            &format!("$ umount {}", self.place.display()),
            tool("umount", &umount),
            no_more,
        )
        .await?;
        self.is_mounted = false;
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_mounted {
            // the demo has failed already; what cannot be undone the daemon's log tells
            let _ = std::process::Command::new("umount")
                .arg(&self.place)
                .status();
        }
    }
}

/// Bytes that differ everywhere and between seeds (a linear congruential generator: quality does not matter).
fn data(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()
    });
    words.take(FILE_MIB << 17).flatten().collect()
}

async fn write(path: PathBuf, data: Vec<u8>) -> Result<()> {
    let work = tokio::task::spawn_blocking(move || {
        let file = std::fs::File::create(&path)?;
        file.write_all_at(&data, 0)?;
        file.sync_all()
    });
    work.await?.context("write the file")
}

async fn compare(path: PathBuf, data: Vec<u8>) -> Result<()> {
    let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await?;
    if read.context("read the file back")? != data {
        bail!("the data came back different");
    }
    Ok(())
}

/// The status in what `volume ... --json` prints.
fn status(said: &str) -> String {
    let facts: Option<Value> = serde_json::from_str(said).ok();
    facts
        .and_then(|facts| facts["status"].as_str().map(str::to_owned))
        .unwrap_or_default()
}
