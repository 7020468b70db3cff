//! A job for the guest: a script, what lies beside it, and its settings, packed as a tar.
//!
//! Programs built on the host bring the host's loader and libraries along, so the guest's libc does not matter.
//! They are made to name them (`patchelf`) rather than started through the loader: `/proc/self/exe` must be the
//! program, or one that starts itself again would start the loader.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Image;
use super::machine;
use crate::house;
use crate::run::Run;

/// The guest's own files that travel with each job.
const GUEST_FILES: &[&str] = &["init.sh", "lib.sh"];
/// Packing some hundred MB on a busy machine.
const PACK_LIMIT: Duration = Duration::from_mins(2);

/// What to run inside, built up field by field.
pub(crate) struct Job {
    pub(super) script: String,
    pub(super) programs: Vec<(String, PathBuf)>,
    pub(super) modules: Vec<(String, PathBuf)>,
    pub(super) files: Vec<(String, PathBuf)>,
    /// Where the libraries of programs are looked for first.
    libraries: Option<PathBuf>,
    pub(super) limit: Duration,
    pub(super) network: bool,
    pub(super) memory_mib: u32,
    pub(super) is_counted: bool,
    pub(super) has_wide_copies: bool,
    pub(super) keep: Option<PathBuf>,
}

/// How the script ended.
pub(crate) struct Outcome {
    /// The script's exit status; 124 or 143 when its time was over.
    pub(crate) status: i32,
    /// Its output.
    pub(crate) output: String,
}

impl Job {
    /// A shell script, run by the guest's busybox in `/job`. The limit is the script's own; boot comes on top.
    pub(crate) fn new(script: impl Into<String>, limit: Duration) -> Self {
        Self {
            script: script.into(),
            programs: Vec::new(),
            modules: Vec::new(),
            libraries: None,
            files: Vec::new(),
            limit,
            network: false,
            memory_mib: 3072,
            is_counted: false,
            has_wide_copies: false,
            keep: None,
        }
    }

    /// One of `tests/beds/vm/jobs`.
    pub(crate) fn of_file(name: &str, limit: Duration) -> Result<Self> {
        let path = house::path("tests/beds/vm/jobs").join(format!("{name}.sh"));
        let script =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self::new(script, limit))
    }

    /// A program built on the host; on the script's path under this name.
    pub(crate) fn program(mut self, name: &str, path: &Path) -> Self {
        self.programs.push((name.to_owned(), path.to_owned()));
        self
    }

    /// Libraries of programs and modules are looked for here before the host's own places.
    pub(crate) fn libraries(mut self, dir: &Path) -> Self {
        self.libraries = Some(dir.to_owned());
        self
    }

    /// A library that a program loads by itself: under `/job/host` at this place, what it needs beside it.
    pub(crate) fn module(mut self, name: &str, path: &Path) -> Self {
        self.modules.push((name.to_owned(), path.to_owned()));
        self
    }

    /// A file or folder, at this place under `/job`.
    pub(crate) fn file(mut self, name: &str, path: &Path) -> Self {
        self.files.push((name.to_owned(), path.to_owned()));
        self
    }

    /// A user-mode network: the host's loopback is 10.0.2.2.
    pub(crate) fn network(mut self) -> Self {
        self.network = true;
        self
    }

    /// Another amount of memory than three GiB. The job's files lie in it too.
    pub(crate) fn memory(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// The guest's time is a count of its instructions (two nanoseconds each) on its only processor: figures repeat
    /// whatever else the host does, and say nothing of caches. Four to six times slower than the clock.
    pub(crate) fn counted(mut self) -> Self {
        self.is_counted = true;
        self
    }

    /// The guest's processor lacks `erms`: its kernel copies by words of eight bytes, so that a counted copy costs an
    /// eighth. The emulator counts each step of a `rep` as an instruction.
    pub(crate) fn wide_copies(mut self) -> Self {
        self.has_wide_copies = true;
        self
    }

    /// Keeps what the script left in `$OUT`, and the guest's kernel log.
    pub(crate) fn keep(mut self, dir: PathBuf) -> Self {
        self.keep = Some(dir);
        self
    }

    /// Boots a guest for the job; `sink` sees the script's output line by line.
    ///
    /// # Errors
    /// The guest could not be started or gave no answer. A failed script is not an error here.
    pub(crate) async fn run(self, image: &Image, sink: impl FnMut(&str)) -> Result<Outcome> {
        let dir = image.run_dir()?;
        self.pack(dir.path()).await.context("pack the VM's job")?;
        machine::boot(&self, image, dir.path(), sink).await
    }

    /// Writes `job.tar`, a multiple of 1 MiB long: a disk has whole sectors.
    async fn pack(&self, dir: &Path) -> Result<()> {
        let stage = dir.join("job");
        for folder in ["bed", "bin", "host"] {
            std::fs::create_dir_all(stage.join(folder))?;
        }
        for name in GUEST_FILES {
            std::fs::copy(
                house::path("tests/beds/vm").join(name),
                stage.join("bed").join(name),
            )
            .with_context(|| format!("copy tests/beds/vm/{name}"))?;
        }
        std::fs::write(stage.join("run"), &self.script)?;
        std::fs::write(stage.join("bed/settings"), self.settings())?;
        for (name, path) in &self.files {
            let to = stage.join(name);
            std::fs::create_dir_all(to.parent().context("a file needs a name")?)?;
            Run::new("cp", PACK_LIMIT)
                .arg("-aL")
                .arg(path)
                .arg(&to)
                .output(|_| {})
                .await?;
        }
        for (name, path) in &self.programs {
            self.pack_program(&stage, name, path).await?;
        }
        for (name, path) in &self.modules {
            self.pack_libraries(&stage, path).await?;
            let to = stage.join("host").join(name);
            std::fs::create_dir_all(to.parent().context("a module needs a name")?)?;
            std::fs::copy(path, &to).with_context(|| format!("copy {}", path.display()))?;
        }
        let tar = dir.join("job.tar");
        Run::new("tar", PACK_LIMIT)
            .arg("-cf")
            .arg(&tar)
            .arg("-C")
            .arg(&stage)
            .arg(".")
            .output(|_| {})
            .await?;
        let file = std::fs::File::options().write(true).open(&tar)?;
        file.set_len(file.metadata()?.len().next_multiple_of(1 << 20))?;
        std::fs::remove_dir_all(&stage)?;
        Ok(())
    }

    /// The program without debug information, its libraries and loader.
    async fn pack_program(&self, stage: &Path, name: &str, path: &Path) -> Result<()> {
        let libraries = self.pack_libraries(stage, path).await?;
        let loader = libraries
            .iter()
            .filter_map(|library| library.file_name()?.to_str())
            .find(|name| name.starts_with("ld-linux"))
            .with_context(|| format!("{} is not a dynamic program", path.display()))?;
        let program = stage.join("bin").join(name);
        let strip = Run::new("strip", PACK_LIMIT)
            .arg("--strip-debug")
            .arg("-o")
            .arg(&program);
        strip.arg(path).output(|_| {}).await?;
        Run::new("patchelf", PACK_LIMIT)
            .args(["--set-interpreter", &format!("/job/host/{loader}")])
            .args(["--force-rpath", "--set-rpath", "/job/host"])
            .arg(&program)
            .output(|_| {})
            .await?;
        Ok(())
    }

    /// The host's libraries that a program or library needs, and the loader; which they are.
    async fn pack_libraries(&self, stage: &Path, path: &Path) -> Result<Vec<PathBuf>> {
        let mut ldd = Run::new("ldd", PACK_LIMIT).arg(path);
        if let Some(dir) = &self.libraries {
            ldd = ldd.env("LD_LIBRARY_PATH", dir);
        }
        let libraries = libraries(&ldd.output(|_| {}).await?);
        for library in &libraries {
            let name = library.file_name().context("a library without a name")?;
            let to = stage.join("host").join(name);
            if !to.exists() {
                std::fs::copy(library, &to)
                    .with_context(|| format!("copy {}", library.display()))?;
            }
        }
        Ok(libraries)
    }

    /// Shell assignments that the guest's init reads.
    fn settings(&self) -> String {
        format!(
            "BED_SECONDS={}\nBED_NETWORK={}\nBED_MODULES='nbd sd_mod'\n",
            self.limit.as_secs(),
            if self.network { "1" } else { "" }
        )
    }
}

/// The files that `ldd` names.
fn libraries(listing: &str) -> Vec<PathBuf> {
    let words = listing.lines().filter_map(|line| {
        let line = line.split(" (0x").next()?.trim();
        let path = line.split_once(" => ").map_or(line, |(_, path)| path);
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_names_libraries_and_the_loader_but_not_the_vdso() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffe)\n\
            \tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            libraries(listing),
            [
                PathBuf::from("/lib/x86_64-linux-gnu/libgcc_s.so.1"),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2")
            ]
        );
    }

    #[test]
    fn settings_are_plain_shell() {
        let job = Job::new("true", Duration::from_secs(7)).network();
        let expected = "BED_SECONDS=7\nBED_NETWORK=1\nBED_MODULES='nbd sd_mod'\n";
        assert_eq!(job.settings(), expected);
    }
}
