//! The guest's three files: kernel, initramfs, root disk. Made once, made anew when the recipe changes.
//!
//! mmdebstrap unpacks the packages; `tests/beds/vm/image.sh` makes the files out of the tree.
//! Packages come from the archives the host itself uses when it is Debian, else from Debian's own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::Emulator;
use crate::run::Run;
use crate::ui::Stage;
use crate::{host, house};

/// Sparse: what is not written costs nothing. Room for containers and test files of some GiB.
const DISK_SIZE: &str = "12G";
/// 160 MB of packages over a slow line, unpacked by a busy machine.
const LIMIT: Duration = Duration::from_mins(30);
/// What a host that is not Debian gets.
const FALLBACK_SUITE: &str = "bookworm";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// First part of the names of folders: of a boot, and of an image that is being made.
const RUN: &str = "run-";
const NEW: &str = "new-";

/// The folder of one boot; removed when dropped, locked until then.
pub(crate) struct RunDir {
    dir: tempfile::TempDir,
    _held: File,
}

impl RunDir {
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// A guest that can be booted.
#[derive(Clone)]
pub(crate) struct Image {
    dir: PathBuf,
    pub(crate) emulator: Emulator,
}

impl Image {
    /// The image of the present recipe; makes it when there is none yet.
    pub(crate) async fn ready() -> Result<Self> {
        if std::env::consts::ARCH != "x86_64" {
            bail!(
                "the VM bed is for x86-64 hosts, this is {}",
                std::env::consts::ARCH
            );
        }
        host::install(&[host::VM]).await?;
        let dir = house::bed_dir().await?.join("vm");
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let emulator = Emulator::ready().await?;
        let image = Self { dir, emulator };
        let waiting = image.clone();
        let _lock = tokio::task::spawn_blocking(move || waiting.locked()).await??;
        image.sweep();

        let suite = suite();
        let sources = sources(&suite).await?;
        let recipe = recipe(&sources)?;
        if std::fs::read_to_string(image.dir.join("recipe")).is_ok_and(|made| made == recipe) {
            return Ok(image);
        }
        image.make(&suite, &sources, &recipe).await?;
        Ok(image)
    }

    pub(crate) fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    pub(crate) fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }

    pub(crate) fn root_disk(&self) -> PathBuf {
        self.dir.join("rootfs.img")
    }

    /// A folder for one boot, removed with its handle.
    pub(crate) fn run_dir(&self) -> Result<RunDir> {
        let _lock = self.locked()?;
        let dir = tempfile::Builder::new().prefix(RUN).tempdir_in(&self.dir);
        let dir = dir.context("make a folder for the VM")?;
        let held = File::open(dir.path()).and_then(|folder| folder.lock().map(|()| folder));
        Ok(RunDir {
            _held: held.context("lock the VM's folder")?,
            dir,
        })
    }

    /// Held while the image is made or looked at.
    fn locked(&self) -> Result<File> {
        let lock = File::create(self.dir.join("lock"));
        let lock = lock.and_then(|lock| lock.lock().map(|()| lock));
        lock.context("lock the image's folder")
    }

    /// Removes what runs left that were killed outright: their folders are locked by nobody.
    fn sweep(&self) {
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let is_run = name
                .to_str()
                .is_some_and(|name| name.starts_with(RUN) || name.starts_with(NEW));
            if is_run && File::open(entry.path()).is_ok_and(|folder| folder.try_lock().is_ok()) {
                // what cannot be removed costs space, nothing else
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }

    async fn make(&self, suite: &str, sources: &str, recipe: &str) -> Result<()> {
        let stage = Stage::begin("make the guest image");
        let new = tempfile::Builder::new().prefix(NEW).tempdir_in(&self.dir)?;
        let new_path = new.path().to_owned();
        let list = new_path.join("sources.list");
        std::fs::write(&list, sources)?;
        let hook = format!(
            "sh {} \"$1\" {} {DISK_SIZE}",
            quoted(&house::path("tests/beds/vm/image.sh"))?,
            quoted(&new_path)?
        );
        Run::new("mmdebstrap", LIMIT)
            // the unpacked tree (600 MB) does not belong on a small /tmp
            .env("TMPDIR", &new_path)
            .args([
                "--variant=essential",
                "--mode=root",
                "--format=null",
                "--architectures=amd64",
            ])
            .arg("--aptopt=APT::Install-Recommends \"false\"")
            .arg("--aptopt=Acquire::Languages \"none\"")
            .arg("--aptopt=Acquire::Retries \"3\"")
            .arg(format!("--include={}", packages()?.join(",")))
            .arg(format!("--customize-hook={hook}"))
            .arg(suite)
            .arg("/dev/null")
            .arg(&list)
            .privileged()
            .output(|line| stage.note(line))
            .await
            .context("make the guest image")?;
        for name in ["vmlinuz", "initrd", "rootfs.img"] {
            std::fs::rename(new_path.join(name), self.dir.join(name))
                .with_context(|| format!("keep {name}"))?;
        }
        std::fs::write(self.dir.join("recipe"), recipe).context("keep the recipe")?;
        stage.done(&format!("Debian {suite}, kept in {}", self.dir.display()));
        Ok(())
    }
}

/// All that the image is made from: when it differs, the image is made anew.
fn recipe(sources: &str) -> Result<String> {
    let mut text = format!("{DISK_SIZE}\n{sources}\n");
    for name in ["packages", "image.sh", "initramfs.sh"] {
        let path = house::path("tests/beds/vm").join(name);
        text +=
            &std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    }
    Ok(text)
}

fn packages() -> Result<Vec<String>> {
    let path = house::path("tests/beds/vm/packages");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    Ok(lines
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect())
}

fn suite() -> String {
    let debian = host::os_release("ID").is_some_and(|id| id == "debian");
    let codename = host::os_release("VERSION_CODENAME").filter(|_| debian);
    codename.unwrap_or_else(|| FALLBACK_SUITE.to_owned())
}

/// One-line apt sources of the suite.
async fn sources(suite: &str) -> Result<String> {
    let output = Run::new("apt-get", Duration::from_mins(1))
        .args([
            "indextargets",
            "--format",
            "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)",
        ])
        .arg("Created-By: Packages")
        .output(|_| {})
        .await?;
    let mut lines = debian_sources(&output, suite);
    if !lines
        .iter()
        .any(|line| line.contains(&format!(" {suite} ")))
    {
        lines = vec![
            source("http://deb.debian.org/debian", suite),
            source(
                "http://deb.debian.org/debian-security",
                &format!("{suite}-security"),
            ),
        ];
    }
    Ok(lines.join("\n") + "\n")
}

fn debian_sources(targets: &str, suite: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for target in targets.lines() {
        let fields: Vec<&str> = target.split('|').collect();
        let &["Debian", uri, release, "main"] = fields.as_slice() else {
            continue;
        };
        let wanted = release.strip_prefix(suite);
        if wanted.is_some_and(|rest| matches!(rest, "" | "-updates" | "-security")) {
            lines.push(source(uri, release));
        }
    }
    lines.dedup();
    lines
}

fn source(uri: &str, release: &str) -> String {
    format!("deb [signed-by={KEYRING}] {uri} {release} main")
}

fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().context("a path that is not UTF-8")?;
    Ok(format!("'{}'", text.replace('\'', "'\\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debian_main_of_the_suite_is_taken() {
        let targets = "Debian|http://m/debian/|bookworm|main\n\
            Debian|http://m/debian/|bookworm|contrib\n\
            Debian|http://m/debian/|bookworm-backports|main\n\
            Debian|http://m/debian-security/|bookworm-security|main\n\
            Node Source|https://n/|nodistro|main\n";
        assert_eq!(
            debian_sources(targets, "bookworm"),
            [
                source("http://m/debian/", "bookworm"),
                source("http://m/debian-security/", "bookworm-security")
            ]
        );
    }

    #[test]
    fn the_package_list_has_no_comments_left() {
        let packages = packages().unwrap();
        assert!(packages.contains(&"docker.io".to_owned()));
        assert!(
            packages
                .iter()
                .all(|name| !name.contains(char::is_whitespace))
        );
    }

    #[test]
    fn a_quote_in_a_path_survives_the_shell() {
        assert_eq!(quoted(Path::new("/a'b")).unwrap(), "'/a'\\''b'");
    }
}
