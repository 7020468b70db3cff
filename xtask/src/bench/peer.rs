//! qemu-nbd with its iSCSI driver, as the peer of the comparison.
//!
//! The driver is a package of its own (`qemu-block-extra`) and must be of qemu-nbd's version to the letter. Where
//! the machine has another qemu than its archives offer, apt refuses it; then one version of both is unpacked
//! into a folder of ours, and nothing of the machine's is touched.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::run::Run;
use crate::ui::Stage;
use crate::{host, house};

const PACKAGES: &[&str] = &["qemu-utils", "qemu-block-extra"];
/// What the driver is linked with beyond what qemu-utils brings.
const LIBRARY: &str = "libiscsi7";

/// A qemu-nbd that can speak iSCSI.
pub(super) struct QemuNbd {
    program: PathBuf,
    /// Where the private copy was unpacked.
    root: Option<PathBuf>,
    pub(super) version: String,
}

impl QemuNbd {
    pub(super) async fn ready() -> Result<Self> {
        let mut found = Self {
            program: "qemu-nbd".into(),
            root: None,
            version: String::new(),
        };
        if let Err(refused) = host::install(&[PACKAGES]).await {
            let stage = Stage::begin("unpack a qemu-nbd of our own");
            let root = house::target_dir().await?.join("tools/qemu");
            let unpacked = unpack(&root, &stage).await;
            unpacked.with_context(|| format!("after apt refused its own: {refused:#}"))?;
            stage.done(&root.display().to_string());
            found.program = root.join("usr/bin/qemu-nbd");
            found.root = Some(root);
        }
        let said = found
            .run_for(Duration::from_secs(10))
            .arg("--version")
            .output(|_| {})
            .await?;
        said.lines()
            .next()
            .unwrap_or_default()
            .clone_into(&mut found.version);
        Ok(found)
    }

    /// A command that runs until it is stopped.
    pub(super) fn run(&self) -> Run {
        self.run_for(Duration::MAX)
    }

    /// The program itself.
    pub(super) fn path(&self) -> Result<PathBuf> {
        if self.root.is_some() {
            return Ok(self.program.clone());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|dir| dir.join(&self.program))
            .find(|path| path.is_file())
            .context("qemu-nbd is installed but not on the path")
    }

    /// The driver, which the program loads by itself.
    pub(super) fn driver(&self) -> Result<PathBuf> {
        let root = self.root.as_deref().unwrap_or_else(|| Path::new("/"));
        let driver = libraries(root).join("qemu/block-iscsi.so");
        anyhow::ensure!(driver.is_file(), "no {}", driver.display());
        Ok(driver)
    }

    /// Where what it is linked with lies, unless that is where the machine's is.
    pub(super) fn libraries(&self) -> Option<PathBuf> {
        self.root.as_deref().map(libraries)
    }

    fn run_for(&self, limit: Duration) -> Run {
        let run = Run::new(&self.program, limit);
        match &self.root {
            None => run,
            Some(root) => run
                .env("QEMU_MODULE_DIR", libraries(root).join("qemu"))
                .env("LD_LIBRARY_PATH", libraries(root)),
        }
    }
}

fn libraries(root: &Path) -> PathBuf {
    root.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH))
}

async fn unpack(root: &Path, stage: &Stage) -> Result<()> {
    if libraries(root).join("qemu/block-iscsi.so").exists() {
        return Ok(());
    }
    std::fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
    let policy = Run::new("apt-cache", Duration::from_mins(1)).args(["madison", PACKAGES[1]]);
    let policy = policy.output(|_| {}).await?;
    let version = policy
        .lines()
        .find_map(|line| line.split('|').nth(1))
        .map(str::trim);
    let version = version.context("the archives have no qemu-block-extra")?;
    let mut wanted: Vec<String> = PACKAGES
        .iter()
        .map(|name| format!("{name}={version}"))
        .collect();
    wanted.push(LIBRARY.to_owned());
    Run::new("apt-get", Duration::from_mins(10))
        .dir(root)
        .arg("download")
        .args(&wanted)
        .output(|line| stage.note(line))
        .await?;
    for entry in std::fs::read_dir(root)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let unpack = Run::new("dpkg-deb", Duration::from_mins(2))
                .arg("-x")
                .arg(&path)
                .arg(root);
            unpack.output(|_| {}).await?;
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}
