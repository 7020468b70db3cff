//! A tgtd of our own for the comparison: tgt's null backend, so that the bridges are what is measured. On a file for a
//! test whose data must come back.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::run::{Background, Run};

pub(crate) const IQN: &str = "iqn.2026-11.org.cinder-nbd:bench";
pub(super) const LUN: &str = "1";
/// For the table's caption.
pub(super) const ABOUT: &str = "tgtd on loopback, null backend";

/// How often another port is tried: somebody may take it between our look and tgtd's.
const TRIES: u32 = 5;

/// A running tgtd with one LUN; killed when dropped.
pub(crate) struct Tgtd {
    port: u16,
    _process: Background,
}

impl Tgtd {
    pub(super) async fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, "null", "1G").await
    }

    /// With a sparse file of so many bytes, in `dir`.
    pub(crate) async fn start_on_file(dir: &Path, bytes: u64) -> Result<Self> {
        let file = dir.join("lun");
        std::fs::File::create(&file)?.set_len(bytes)?;
        let file = file.to_str().context("a path that is not UTF-8")?;
        Self::start_with(dir, "rdwr", file).await
    }

    async fn start_with(dir: &Path, kind: &str, store: &str) -> Result<Self> {
        let mut last = None;
        for _ in 0..TRIES {
            match Self::try_start(dir, kind, store).await {
                Ok(target) => return Ok(target),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no try at all")?).context("start tgtd")
    }

    pub(super) fn portal(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// As a guest sees it: the host's loopback has another name there.
    pub(crate) fn portal_for_guests(&self) -> String {
        format!("10.0.2.2:{}", self.port)
    }

    async fn try_start(dir: &Path, kind: &str, store: &str) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        // tgtd takes numbers below 2^15 here; one in use fails, and another port is tried
        let control = (port % (1 << 15)).to_string();
        let mut process = Run::new("tgtd", Duration::MAX)
            .args([
                "-f",
                "-C",
                &control,
                "--iscsi",
                &format!("portal=127.0.0.1:{port}"),
            ])
            .background(&dir.join("tgtd.log"))?;
        let tgtadm = |words: &str| {
            Run::new("tgtadm", Duration::from_secs(10))
                .args(["-C", &control, "--lld", "iscsi"])
                .args(words.split_whitespace())
        };
        for attempt in 0.. {
            process.is_alive()?;
            if tgtadm("--op show --mode sys").output(|_| {}).await.is_ok() {
                break;
            }
            if attempt == 100 {
                bail!("tgtd does not answer");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for words in [
            format!("--op new --mode target --tid 1 -T {IQN}"),
            format!(
                "--op new --mode logicalunit --tid 1 --lun {LUN} --bstype {kind} --backing-store {store}"
            ),
            "--op bind --mode target --tid 1 -I ALL".to_owned(),
        ] {
            tgtadm(&words).output(|_| {}).await?;
        }
        Ok(Self {
            port,
            _process: process,
        })
    }
}
