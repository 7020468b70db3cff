//! `cargo xtask demo`: builds everything and shows the main job, on this kernel or in a VM of our own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::host;
use crate::house::Built;
use crate::run::Run;
use crate::ui::{self, Stage};
use crate::vm::{Image, Job};

/// Everything the demo shows, on an emulated processor of a busy machine.
const LIMIT: Duration = Duration::from_mins(15);
/// The demo undoes what it did when it is told to end; then it is killed.
const GRACE: Duration = Duration::from_secs(45);

pub(crate) async fn perform(always_vm: bool) -> Result<()> {
    host::install(&[host::BUILD]).await?;
    let stage = Stage::begin("build the release");
    let built = Built::release(&stage).await?;
    stage.done("");
    let daemon = built.program("cinder-nbd")?;
    let demo = built.program("demo")?;
    if always_vm {
        ui::line("As asked, in a small VM.");
        return in_vm(&daemon, &demo).await;
    }
    match kernel_has_nbd().await {
        Ok(()) => {
            ui::line("This kernel has nbd: the demo runs right here.");
            on_host(&daemon, &demo).await
        }
        Err(reason) => {
            ui::line(&format!(
                "{reason}: the demo runs in a small VM, which this command makes."
            ));
            in_vm(&daemon, &demo).await
        }
    }
}

async fn on_host(daemon: &Path, demo: &Path) -> Result<()> {
    host::install(&[host::DEMO]).await?;
    Run::new(demo, LIMIT)
        .arg("play")
        .arg("--daemon")
        .arg(daemon)
        .privileged()
        .grace(GRACE)
        .output(ui::line)
        .await?;
    Ok(())
}

async fn in_vm(daemon: &Path, demo: &Path) -> Result<()> {
    let image = Image::ready().await?;
    let stage = Stage::begin("boot the VM (emulated)");
    let job = Job::new("exec demo play --daemon /job/bin/cinder-nbd", LIMIT)
        .program("demo", demo)
        .program("cinder-nbd", daemon);
    let mut booting = Some(stage);
    let outcome = job
        .run(&image, |line| {
            if let Some(stage) = booting.take() {
                stage.done("");
            }
            ui::line(line);
        })
        .await?;
    if outcome.status != 0 {
        bail!("the demo failed in the VM with status {}", outcome.status);
    }
    ui::line("The VM is gone; its image is kept for the next time.");
    Ok(())
}

/// # Errors
/// Why the demo cannot run on this kernel, for people.
async fn kernel_has_nbd() -> Result<(), &'static str> {
    if !host::is_root() && !host::has_program("sudo") {
        return Err("We are not root, and there is no sudo");
    }
    let is_there = || Path::new("/sys/module/nbd").exists() && Path::new("/dev/nbd0").exists();
    if !is_there() {
        // it may fail for many reasons, all with the same result
        let load = Run::new("modprobe", Duration::from_secs(30))
            .arg("nbd")
            .privileged();
        let _ = load.ended(|_| {}).await;
    }
    if is_there() {
        Ok(())
    } else {
        Err("This kernel has no nbd")
    }
}
