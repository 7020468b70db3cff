//! Tests against a real Keystone and Cinder with tgt and CHAP, all on loopback; from the host through the API,
//! from the VM as a user would: its loopback is led to the host's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Summary;
use super::vm::{self, Ground};
use crate::house;
use crate::run::{Run, tail};
use crate::ui::Stage;

/// Installing the packages of a whole cloud comes first.
const UP_LIMIT: Duration = Duration::from_mins(30);
const DOWN_LIMIT: Duration = Duration::from_mins(2);
/// The whole API against services of a real size, one test after the other.
const API_LIMIT: Duration = Duration::from_mins(15);
/// Runs the words behind it with the cloud's variables.
const WITH_CLOUD: &str = r#". "$0" && exec "$@""#;

pub(super) async fn cinder(summary: &mut Summary) {
    let stage = Stage::begin("ground of the VM tests");
    let ground = match Ground::make(&stage).await {
        Ok(ground) => ground,
        Err(error) => return summary.take(stage, Err(error)),
    };
    stage.quietly();
    let stage = Stage::begin("start Keystone and Cinder");
    let cloud = match Cloud::up(&stage).await {
        Ok(cloud) => cloud,
        Err(error) => return summary.take(stage, Err(error)),
    };
    stage.done("");
    api(summary, &ground, &cloud).await;
    // the same job as against the stand-in, with a real cloud on the host's side of the VM's network
    let job = ground
        .volume()
        .map(|job| job.file("cloud.env", &cloud.environment).network());
    vm::volume(summary, "real Cinder: from the VM", &ground, job).await;
    nothing_left(summary, &ground, &cloud).await;
    let stage = Stage::begin("stop Keystone and Cinder");
    if let Err(error) = cloud.keep_logs().await {
        summary.remark(format!(
            "the logs of Keystone and Cinder were not kept: {error:#}"
        ));
    }
    match cloud.down().await {
        Ok(()) => {
            stage.done("");
        }
        Err(error) => summary.take(stage, Err(error)),
    }
}

async fn api(summary: &mut Summary, ground: &Ground, cloud: &Cloud) {
    let stage = Stage::begin("real Cinder: the API");
    let ended = async {
        let tests = ground.built.test("cinder_real")?;
        let run = cloud
            .run(&tests, API_LIMIT)
            .args(["--show-output", "--test-threads", "1"]);
        run.dir(house::root()).ended(|line| stage.note(line)).await
    };
    match ended.await {
        Ok(ended) => summary.take_tests(stage, &ended.output, ended.status.success()),
        Err(error) => summary.take(stage, Err(error)),
    }
}

/// After all that, the project must be as empty as before.
async fn nothing_left(summary: &mut Summary, ground: &Ground, cloud: &Cloud) {
    let stage = Stage::begin("real Cinder: nothing left");
    let looked = async {
        let program = ground.built.program("cinder-nbd")?;
        let list = cloud
            .run(&program, Duration::from_mins(1))
            .args(["volume", "list", "--json"]);
        let left = list.output(|_| {}).await?;
        let volumes: serde_json::Value =
            serde_json::from_str(left.trim()).context("read the list of volumes")?;
        anyhow::ensure!(
            volumes.as_array().is_some_and(Vec::is_empty),
            "volumes are left: {left}"
        );
        anyhow::Ok(super::summary::Tally::one())
    };
    let result = looked.await;
    summary.take(stage, result);
}

/// The bed of `tests/beds/openstack`; taken down when dropped, so also on Ctrl-C.
struct Cloud {
    state: PathBuf,
    environment: PathBuf,
    is_up: bool,
    _dir: tempfile::TempDir,
}

impl Cloud {
    async fn up(stage: &Stage) -> Result<Self> {
        // not among the build products: Unix sockets below it must have short paths
        let dir = tempfile::Builder::new()
            .prefix("cinder-nbd-cloud-")
            .tempdir()?;
        let state = dir.path().join("state");
        let environment = dir.path().join("cloud.env");
        let cloud = Self {
            state,
            environment,
            is_up: true,
            _dir: dir,
        };
        let mut exports = String::new();
        Run::new(house::path("tests/beds/openstack/up"), UP_LIMIT)
            .arg(&cloud.state)
            .privileged()
            .leaves_daemons()
            .output(|line| {
                if line.starts_with("export ") {
                    exports.push_str(line);
                    exports.push('\n');
                } else {
                    stage.note(line);
                }
            })
            .await
            .context("start the cloud")?;
        anyhow::ensure!(
            !exports.is_empty(),
            "tests/beds/openstack/up printed no variables"
        );
        std::fs::write(&cloud.environment, exports)?;
        Ok(cloud)
    }

    /// A program with the variables that lead to the cloud.
    fn run(&self, program: &Path, limit: Duration) -> Run {
        Run::new("sh", limit)
            .env("CINDER_NBD_REAL_CINDER", &self.state)
            .args(["-c", WITH_CLOUD])
            .arg(&self.environment)
            .arg(program)
    }

    /// The services' logs, among those of the VM: `down` wipes all else.
    async fn keep_logs(&self) -> Result<()> {
        let keep = house::bed_dir().await?.join("log/cinder");
        std::fs::create_dir_all(&keep)?;
        let copy = Run::new("cp", DOWN_LIMIT)
            .arg("-r")
            .arg(self.state.join("log/."))
            .arg(&keep);
        copy.privileged().output(|_| {}).await?;
        Ok(())
    }

    async fn down(mut self) -> Result<()> {
        self.is_up = false;
        down(&self.state).privileged().output(|_| {}).await?;
        anyhow::ensure!(
            !self.state.exists(),
            "{} is still there",
            self.state.display()
        );
        Ok(())
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if !self.is_up {
            return;
        }
        eprintln!("xtask: taking the cloud down");
        let program = house::path("tests/beds/openstack/down");
        let mut command = if crate::host::is_root() {
            std::process::Command::new(&program)
        } else {
            let mut command = std::process::Command::new("sudo");
            command.arg("--").arg(&program);
            command
        };
        match command.arg(&self.state).output() {
            Ok(ended) if ended.status.success() => {}
            Ok(ended) => eprintln!("xtask: {}", tail(&String::from_utf8_lossy(&ended.stderr))),
            Err(error) => eprintln!("xtask: run {}: {error}", program.display()),
        }
    }
}

fn down(state: &Path) -> Run {
    Run::new(house::path("tests/beds/openstack/down"), DOWN_LIMIT).arg(state)
}
