//! The emulator: the machine's own, or one that is unpacked into the bed and installed nowhere.
//!
//! Debian's qemu-system-x86 cannot stand beside a newer qemu-utils, and what somebody else has put on this machine stays:
//! so the package is not installed, and where there is none it is fetched with what it needs and only unpacked.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use crate::run::Run;
use crate::ui::Stage;
use crate::{host, house};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// Where Debian's packages have libraries, and in the first of them what qemu loads while it runs. Unpacked, the two are not
/// one, as they are where such packages are installed.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
const FIRMWARE: [&str; 3] = ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];
/// 30 MB over a slow line.
const LIMIT: Duration = Duration::from_mins(15);

/// How the emulator is called.
#[derive(Clone, Debug)]
pub(crate) struct Emulator {
    program: PathBuf,
    environment: Vec<(&'static str, OsString)>,
    arguments: Vec<OsString>,
}

impl Emulator {
    pub(crate) async fn ready() -> Result<Self> {
        if host::has_program(PROGRAM) {
            return Ok(Self {
                program: PROGRAM.into(),
                environment: Vec::new(),
                arguments: Vec::new(),
            });
        }
        let bed = house::bed_dir().await?;
        let lock = File::create(bed.join("qemu.lock")).context("lock the emulator")?;
        let _lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
        let root = bed.join("qemu");
        if !root.is_dir() {
            unpack(&root).await?;
        }
        Ok(Self::of_tree(&root))
    }

    /// Its program, which does not outlive us even when we are killed outright.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        command.arg(&self.program).args(&self.arguments);
        command.envs(self.environment.iter().cloned());
        command
    }

    fn of_tree(root: &Path) -> Self {
        let libraries = LIBRARIES.map(|part| root.join(part));
        let mut searched = libraries[0].clone().into_os_string();
        searched.push(":");
        searched.push(&libraries[1]);
        let firmware = FIRMWARE.map(|part| root.join(part));
        Self {
            program: root.join("usr/bin").join(PROGRAM),
            environment: vec![
                ("QEMU_MODULE_DIR", libraries[0].join("qemu").into()),
                ("LD_LIBRARY_PATH", searched),
            ],
            arguments: firmware
                .into_iter()
                .flat_map(|path| [OsString::from("-L"), path.into()])
                .collect(),
        }
    }
}

/// What apt would install for it, fetched and unpacked; `root` appears when all of it is there.
async fn unpack(root: &Path) -> Result<()> {
    let stage = Stage::begin("unpack the emulator");
    let beside = root.parent().context("the bed has a folder")?;
    let new = tempfile::Builder::new()
        .prefix("qemu-")
        .tempdir_in(beside)?;
    let packages = if let Ok(packages) = wanted().await {
        packages
    } else {
        // no package lists yet
        host::update_lists(&stage).await?;
        wanted().await?
    };
    if fetch(new.path(), &packages, &stage).await.is_err() {
        // stale ones: what they name is not there any more
        host::update_lists(&stage).await?;
        fetch(new.path(), &wanted().await?, &stage).await?;
    }
    let tree = new.path().join("root");
    for entry in std::fs::read_dir(new.path())? {
        let file = entry?.path();
        if file.extension().is_some_and(|end| end == "deb") {
            let unpacked = Run::new("dpkg-deb", LIMIT).arg("-x").arg(&file).arg(&tree);
            unpacked.output(|_| {}).await?;
        }
    }
    std::fs::rename(&tree, root).context("put the emulator in its place")?;
    stage.done(&format!("{} packages", packages.len()));
    Ok(())
}

/// `NAME=VERSION` of all that this machine lacks for it.
///
/// apt plans for an empty machine: with what is installed here, as a newer qemu-utils, it may see no way.
async fn wanted() -> Result<Vec<String>> {
    let planned = Run::new("apt-get", LIMIT)
        .args(["install", "-s", "-y", "--no-install-recommends"])
        .args(["-o", "Dir::State::status=/dev/null", PACKAGE])
        .env("LC_ALL", "C")
        .output(|_| {})
        .await?;
    let present = Run::new("dpkg-query", LIMIT)
        .args(["-W", "-f", "${db:Status-Status} ${Package}\\n"])
        .output(|_| {})
        .await?;
    let packages = lacking(&planned, &present);
    ensure!(
        !packages.is_empty(),
        "apt-get does not say how it would install {PACKAGE}"
    );
    Ok(packages)
}

/// What is planned and not present; the emulator's own parts in any case, as they must be of one version.
fn lacking(planned: &str, present: &str) -> Vec<String> {
    let present: HashSet<&str> = present
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .collect();
    let needed =
        |name: &str| name.starts_with("qemu-") || name == "seabios" || !present.contains(name);
    let parts = planned.lines().filter_map(part);
    let lacking = parts.filter(|(name, _)| needed(name));
    lacking
        .map(|(name, version)| format!("{name}={version}"))
        .collect()
}

/// Name and version of `Inst seabios [1.1] (1.16.2-1 Debian:12.15/oldstable [all])`.
fn part(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
    let version = rest.split_once('(')?.1.split(' ').next()?;
    Some((name, version))
}

async fn fetch(dir: &Path, packages: &[String], stage: &Stage) -> Result<()> {
    let fetched = Run::new("apt-get", LIMIT)
        // Root's apt hands files to a user who cannot write here.
        .args(["download", "-q", "-o", "APT::Sandbox::User=root"])
        .args(packages)
        .dir(dir)
        .output(|line| stage.note(line))
        .await;
    fetched.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_plans_is_read() {
        assert_eq!(
            part("Inst libfdt1 (1.6.1-4+b1 Debian:12.15/oldstable [amd64])"),
            Some(("libfdt1", "1.6.1-4+b1"))
        );
        assert_eq!(
            part("Inst seabios [1.1] (1.16.2-1 Debian:12.15/oldstable [all])"),
            Some(("seabios", "1.16.2-1"))
        );
        assert_eq!(
            part("Remv qemu-utils [1:10.0.2+ds-2+deb13u1~bpo12+1]"),
            None
        );
    }

    #[test]
    fn what_is_present_is_not_fetched_but_for_the_emulators_own_parts() {
        let planned = "Inst libc6 (2.36 Debian [amd64])\nInst libfdt1 (1.6 Debian [amd64])\n\
                       Inst qemu-system-common (1:7.2 Debian [amd64])\nConf libc6 (2.36 Debian [amd64])\n";
        let present = "installed libc6\ninstalled qemu-system-common\nconfig-files libfdt1\ninstalled zlib1g\n";
        assert_eq!(
            lacking(planned, present),
            ["libfdt1=1.6", "qemu-system-common=1:7.2"]
        );
    }
}
