//! One boot of the guest under qemu's own emulation.
//!
//! Read before changing:
//! - `-cpu max,-cx16`: qemu 7.2 spoils the flags of `cmpxchg16b`, newer kernels die of it.
//! - The output port is qemu's stdio; its stdin must never end, else the port closes and the guest blocks.
//! - `setpriv --pdeathsig`: a guest does not outlive us even when we are killed outright.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use super::Image;
use super::job::{Job, Outcome};
use crate::run::{Run, tail};

/// Boot, packing of the result and power-off, on a busy machine; the script has its own limit.
const SLACK: Duration = Duration::from_mins(2);
/// How much slower than its own clock a guest is whose time is counted; seen: 4 on a quiet host.
const COUNTED_SLOWNESS: u32 = 8;
/// Room for what the script leaves in `$OUT`; sparse.
const OUT_BYTES: u64 = 1 << 30;

/// Boots, waits for power-off, fetches the result.
pub(super) async fn boot(
    job: &Job,
    image: &Image,
    dir: &Path,
    mut sink: impl FnMut(&str),
) -> Result<Outcome> {
    let out = dir.join("out.tar");
    std::fs::File::create(&out)?.set_len(OUT_BYTES)?;
    let mut child = qemu(job, image, dir)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(dir.join("qemu.err"))?)
        .kill_on_drop(true)
        .spawn()
        .context("start qemu-system-x86_64")?;
    let _stdin_never_ends = child.stdin.take();
    let stdout = child.stdout.take().context("qemu without a stdout")?;
    let mut lines = BufReader::new(stdout).split(b'\n');
    let mut output = String::new();
    let until_off = async {
        while let Some(line) = lines.next_segment().await? {
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches('\r');
            output.push_str(line);
            output.push('\n');
            sink(line);
        }
        child.wait().await
    };
    let started = Instant::now();
    let limit = if job.is_counted {
        job.limit * COUNTED_SLOWNESS + SLACK
    } else {
        job.limit + SLACK
    };
    let ended = tokio::time::timeout(limit, until_off).await;
    // no-op unless the time was over: the disk must be still before it is read
    child.kill().await.context("end qemu")?;
    match fetch(job, dir, &out).await {
        Ok(status) => Ok(Outcome { status, output }),
        Err(error) => {
            let console = std::fs::read(dir.join("console")).unwrap_or_default();
            let complaint = std::fs::read_to_string(dir.join("qemu.err")).unwrap_or_default();
            bail!(
                "the VM gave no answer within {} s{} ({error:#}); its console:\n{}\n{complaint}",
                started.elapsed().as_secs(),
                if ended.is_err() { ", its limit" } else { "" },
                tail(&String::from_utf8_lossy(&console)),
            )
        }
    }
}

fn qemu(job: &Job, image: &Image, dir: &Path) -> Result<Command> {
    let mut command = image.emulator.command();
    command.process_group(0).env("TMPDIR", dir);
    let processor = if job.has_wide_copies {
        "max,-cx16,-erms,-fsrm"
    } else {
        "max,-cx16"
    };
    command.args(["-machine", "q35,usb=off", "-cpu", processor]);
    if job.is_counted {
        // with two processors it hangs
        command.args(["-accel", "tcg,thread=single", "-smp", "1"]);
        command.args(["-icount", "shift=1,sleep=off,align=off", "-rtc", "clock=vm"]);
    } else {
        command.args(["-accel", "tcg,thread=multi", "-smp", "2"]);
    }
    command.args(["-m", &job.memory_mib.to_string()]);
    command.args([
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-monitor",
        "none",
    ]);
    command
        .arg("-kernel")
        .arg(image.kernel())
        .arg("-initrd")
        .arg(image.initrd());
    command.args([
        "-append",
        "console=ttyS0 quiet panic=-1 nokaslr mitigations=off nowatchdog random.trust_cpu=on \
         net.ifnames=0 tsc=reliable",
    ]);
    command
        .arg("-serial")
        .arg(format!("file:{}", plain(&dir.join("console"))?));
    command.args(["-device", "virtio-serial-pci", "-device", "virtio-rng-pci"]);
    command.args([
        "-chardev",
        "stdio,id=port,signal=off",
        "-device",
        "virtserialport,chardev=port",
    ]);
    let disks = [
        ("root", image.root_disk(), "snapshot=on"),
        ("job", dir.join("job.tar"), "readonly=on"),
        ("out", dir.join("out.tar"), "snapshot=off"),
    ];
    for (id, path, mode) in disks {
        let path = plain(&path)?;
        command.arg("-drive").arg(format!(
            "file={path},format=raw,if=none,id={id},cache=unsafe,aio=threads,discard=unmap,{mode}"
        ));
        command
            .arg("-device")
            .arg(format!("virtio-blk-pci,drive={id}"));
    }
    if job.network {
        command.args([
            "-netdev",
            "user,id=net",
            "-device",
            "virtio-net-pci,netdev=net,romfile=",
        ]);
    } else {
        command.args(["-nic", "none"]);
    }
    Ok(command)
}

/// The script's status; what it left goes where the job wants it.
async fn fetch(job: &Job, dir: &Path, out: &Path) -> Result<i32> {
    let back = dir.join("back");
    std::fs::create_dir_all(&back)?;
    Run::new("tar", SLACK)
        .arg("-xf")
        .arg(out)
        .arg("-C")
        .arg(&back)
        .output(|_| {})
        .await?;
    let status =
        std::fs::read_to_string(back.join("bed/status")).context("no exit status came back")?;
    let status = status
        .trim()
        .parse()
        .with_context(|| format!("exit status {status:?}"))?;
    if let Some(keep) = &job.keep {
        std::fs::create_dir_all(keep)?;
        Run::new("cp", SLACK)
            .arg("-a")
            .arg(back.join("out/."))
            .arg(keep)
            .output(|_| {})
            .await?;
    }
    Ok(status)
}

/// qemu's option syntax gives the comma a meaning; a doubled one is a plain one.
fn plain(path: &Path) -> Result<String> {
    Ok(path
        .to_str()
        .context("a path that is not UTF-8")?
        .replace(',', ",,"))
}
