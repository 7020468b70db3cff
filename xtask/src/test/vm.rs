//! Tests on a real kernel: the guest has nbd, rights and a Docker engine whatever the host lacks.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Summary;
use crate::bench::target::{IQN, Tgtd};
use crate::host;
use crate::house::{self, Built};
use crate::ui::Stage;
use crate::vm::{Image, Job};

/// A shell and two commands; what is slow is the boot, which has its own allowance.
const BOOT_LIMIT: Duration = Duration::from_mins(1);
/// The device tests make file systems and write through them, under emulation.
const KERNEL_LIMIT: Duration = Duration::from_mins(15);
/// Queue settings, growth and udev: a dozen attaches, under emulation.
const DEVICE_LIMIT: Duration = Duration::from_mins(10);
/// Some GiB through a device whose every byte crosses the emulated network card.
const RECLAIM_LIMIT: Duration = Duration::from_mins(15);
/// A guest that is short of memory: a kernel without its caches takes a third of it.
const RECLAIM_MEMORY_MIB: u32 = 384;
/// Room for what is written there.
const RECLAIM_BYTES: u64 = 4 << 30;
/// The initiator against the guest kernel's own target; restarts of it under load take the most of it.
const LIO_LIMIT: Duration = Duration::from_mins(10);
/// Sixty rounds of a few seconds each, on a busy host.
const RESTART_LIMIT: Duration = Duration::from_mins(10);
/// A Docker engine needs 12 s to answer there, a container 5 s; a busy host several times that.
const VOLUME_LIMIT: Duration = Duration::from_mins(15);
/// Four starts of the engine and some twenty containers.
const DOCKER_LIMIT: Duration = Duration::from_mins(20);

/// The guest and the programs that go into it.
pub(super) struct Ground {
    pub(super) image: Image,
    pub(super) built: Built,
}

impl Ground {
    pub(super) async fn make(stage: &Stage) -> Result<Self> {
        let image = Image::ready().await?;
        let built = Built::all(stage).await?;
        Ok(Self { image, built })
    }

    /// `jobs/volume.sh` with the daemon.
    pub(super) fn volume(&self) -> Result<Job> {
        let job = Job::of_file("volume", VOLUME_LIMIT)?;
        Ok(job.program("cinder-nbd", &self.built.program("cinder-nbd")?))
    }
}

pub(super) async fn vm(summary: &mut Summary) {
    let stage = Stage::begin("ground of the VM tests");
    let ground = match Ground::make(&stage).await {
        Ok(ground) => ground,
        Err(error) => return summary.take(stage, Err(error)),
    };
    stage.quietly();
    boot(summary, &ground).await;
    kernel(summary, &ground).await;
    device(summary, &ground).await;
    reclaim(summary, &ground).await;
    lio(summary, &ground).await;
    restart(summary, &ground).await;
    let job = ground.volume();
    let job = job.and_then(|job| Ok(job.program("demo", &ground.built.program("demo")?)));
    volume(summary, "VM: volumes and Docker", &ground, job).await;
    docker(summary, &ground).await;
}

/// The bed itself, so that a broken one is not taken for a broken driver.
async fn boot(summary: &mut Summary, ground: &Ground) {
    let stage = Stage::begin("VM: boots and answers");
    let ended = async {
        let keep = house::bed_dir().await?.join("log/vm-boot");
        let job = Job::of_file("boot", BOOT_LIMIT)?.keep(keep.clone());
        let outcome = job.run(&ground.image, |line| stage.note(line)).await?;
        std::fs::read(keep.join("release")).context("what the job left did not come back")?;
        anyhow::Ok(outcome)
    };
    match ended.await {
        Ok(outcome) => summary.take_script(stage, &outcome.output, outcome.status),
        Err(error) => summary.take(stage, Err(error)),
    }
}

/// The kernel's device, and the command line on top of it, by the test programs that need one.
async fn kernel(summary: &mut Summary, ground: &Ground) {
    let stage = Stage::begin("VM: the kernel's device");
    let ended = async {
        let job = Job::of_file("kernel", KERNEL_LIMIT)?
            .program("nbd_kernel", &ground.built.test("nbd_kernel")?)
            .program("cli", &ground.built.test("cli")?)
            .program("cinder-nbd", &ground.built.program("cinder-nbd")?)
            .keep(house::bed_dir().await?.join("log/vm-kernel"));
        job.run(&ground.image, |line| stage.note(line)).await
    };
    match ended.await {
        Ok(outcome) => summary.take_tests(stage, &outcome.output, outcome.status == 0),
        Err(error) => summary.take(stage, Err(error)),
    }
}

/// What surrounds the kernel's device, udev's links among it.
async fn device(summary: &mut Summary, ground: &Ground) {
    let stage = Stage::begin("VM: the device's surroundings");
    let ended = async {
        let job = Job::of_file("device", DEVICE_LIMIT)?
            .program("nbd_kernel_queue", &ground.built.test("nbd_kernel_queue")?)
            .file(
                "60-cinder-nbd.rules",
                &house::path("packaging/60-cinder-nbd.rules"),
            )
            .keep(house::bed_dir().await?.join("log/vm-device"));
        job.run(&ground.image, |line| stage.note(line)).await
    };
    match ended.await {
        Ok(outcome) => summary.take_tests(stage, &outcome.output, outcome.status == 0),
        Err(error) => summary.take(stage, Err(error)),
    }
}

/// A filesystem on our device in a small guest, under memory pressure; the target is on the host.
async fn reclaim(summary: &mut Summary, ground: &Ground) {
    let stage = Stage::begin("VM: short of memory");
    let ended = async {
        host::install(&[host::BENCH]).await?;
        let dir = tempfile::tempdir_in(house::bed_dir().await?)?;
        let target = Tgtd::start_on_file(dir.path(), RECLAIM_BYTES).await?;
        let environment = dir.path().join("target.env");
        let portal = target.portal_for_guests();
        std::fs::write(&environment, format!("PORTAL={portal}\nTARGET={IQN}\n"))?;
        let job = Job::of_file("reclaim", RECLAIM_LIMIT)?
            .program("cinder-nbd", &ground.built.program("cinder-nbd")?)
            .file("target.env", &environment)
            .network()
            .memory(RECLAIM_MEMORY_MIB)
            .keep(house::bed_dir().await?.join("log/vm-reclaim"));
        job.run(&ground.image, |line| stage.note(line)).await
    };
    match ended.await {
        Ok(outcome) => summary.take_script(stage, &outcome.output, outcome.status),
        Err(error) => summary.take(stage, Err(error)),
    }
}

/// The kernel's target, by the library's test program.
async fn lio(summary: &mut Summary, ground: &Ground) {
    let stage = Stage::begin("VM: the kernel's iSCSI target");
    let ended = async {
        let job = Job::of_file("lio", LIO_LIMIT)?
            .program("lio", &ground.built.test("lio")?)
            .keep(house::bed_dir().await?.join("log/vm-lio"));
        job.run(&ground.image, |line| stage.note(line)).await
    };
    match ended.await {
        Ok(outcome) => summary.take_tests(stage, &outcome.output, outcome.status == 0),
        Err(error) => summary.take(stage, Err(error)),
    }
}

/// A daemon that is killed fifty times beneath a filesystem, and what the pauses were.
async fn restart(summary: &mut Summary, ground: &Ground) {
    let job = || {
        let job = Job::of_file("restart", RESTART_LIMIT)?;
        Ok(job.program("cinder-nbd", &ground.built.program("cinder-nbd")?))
    };
    volume(summary, "VM: killed and restarted", ground, job()).await;
}

/// Engines that behave as they may: Docker and Podman, and the stand-in that is slow or away.
async fn docker(summary: &mut Summary, ground: &Ground) {
    let job = || {
        Ok(Job::of_file("docker", DOCKER_LIMIT)?
            .program("cinder-nbd", &ground.built.program("cinder-nbd")?)
            .program("demo", &ground.built.program("demo")?))
    };
    volume(summary, "VM: Docker and Podman", ground, job()).await;
}

/// One run of `jobs/volume.sh` or a job like it, whose lines that begin with `ok:` are its tests.
pub(super) async fn volume(summary: &mut Summary, name: &str, ground: &Ground, job: Result<Job>) {
    let stage = Stage::begin(name);
    let ended = async {
        let log = name
            .to_lowercase()
            .replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
        let job = job?.keep(house::bed_dir().await?.join("log").join(log));
        job.run(&ground.image, |line| stage.note(line)).await
    };
    match ended.await {
        Ok(outcome) => summary.take_script(stage, &outcome.output, outcome.status),
        Err(error) => summary.take(stage, Err(error)),
    }
}
