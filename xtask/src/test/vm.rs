//! Tests on a real kernel: the guest has nbd, rights and a Docker engine whatever the host lacks.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Summary;
use crate::house;
use crate::ui::Stage;
use crate::vm::{Image, Job};

/// A shell and two commands; what is slow is the boot, which has its own allowance.
const BOOT_LIMIT: Duration = Duration::from_mins(1);
/// The device tests make file systems and write through them, under emulation.
const KERNEL_LIMIT: Duration = Duration::from_mins(15);
/// A Docker engine needs 12 s to answer there, a container 5 s; a busy host several times that.
pub(super) const VOLUME_LIMIT: Duration = Duration::from_mins(15);

/// The guest and the programs that go into it.
pub(super) struct Ground {
    pub(super) image: Image,
    pub(super) daemon: PathBuf,
    pub(super) demo: PathBuf,
    device_tests: PathBuf,
}

impl Ground {
    pub(super) async fn make(stage: &Stage) -> Result<Self> {
        let image = Image::ready().await?;
        let built = house::build(
            &["build", "-p", "cinder-nbd", "-p", "demo", "--bins"],
            stage,
        )
        .await?;
        let tests = [
            "test",
            "-p",
            "cinder-nbd",
            "--no-run",
            "--test",
            "nbd_kernel",
        ];
        let tests = house::build(&tests, stage).await?;
        Ok(Self {
            image,
            daemon: house::executable(&built, "cinder-nbd")?,
            demo: house::executable(&built, "demo")?,
            device_tests: house::executable(&tests, "nbd_kernel")?,
        })
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
    let job = Job::of_file("volume", VOLUME_LIMIT);
    let job = job.map(|job| {
        job.program("cinder-nbd", &ground.daemon)
            .program("demo", &ground.demo)
    });
    volume(summary, "VM: volumes and Docker", &ground, job).await;
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

/// The kernel's device, by the test program that needs one.
async fn kernel(summary: &mut Summary, ground: &Ground) {
    let stage = Stage::begin("VM: the kernel's device");
    let ended = async {
        let job = Job::of_file("kernel", KERNEL_LIMIT)?
            .program("nbd_kernel", &ground.device_tests)
            .keep(house::bed_dir().await?.join("log/vm-kernel"));
        job.run(&ground.image, |line| stage.note(line)).await
    };
    match ended.await {
        Ok(outcome) => summary.take_tests(stage, &outcome.output, outcome.status == 0),
        Err(error) => summary.take(stage, Err(error)),
    }
}

/// One run of `jobs/volume.sh`, whose lines that begin with `ok:` are its tests.
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
