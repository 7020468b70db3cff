//! Copies a logical unit into a file, four reads at once:
//! `cargo run --release -p iscsi --example copy -- HOST[:PORT] TARGET LUN FILE`.

use std::error::Error;
use std::process::ExitCode;

use iscsi::client::Disk;
use iscsi::scsi::{Blocks, Lba};
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("copy: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprint!(": {error}");
                cause = error.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [portal, target, lun, file] = arguments.as_slice() else {
        return Err("usage: copy HOST[:PORT] TARGET LUN FILE".into());
    };
    let name = "iqn.2026-11.org.cinder-nbd:example".parse()?;
    let disk = Disk::builder(name, portal.parse()?, target.parse()?, lun.parse::<u16>()?)
        .open()
        .await?;
    let mut file = File::create(file).await?;
    let each = Blocks(CHUNK_BYTES / disk.block_size());
    let mut next = Lba(0);
    while next.0 < disk.blocks() {
        // Four ranges are under way together; their futures are only awaited as one.
        let [a, b, c, d] = std::array::from_fn(|_| take(&disk, &mut next, each));
        let (a, b, c, d) = tokio::try_join!(
            disk.read(a.0, a.1),
            disk.read(b.0, b.1),
            disk.read(c.0, c.1),
            disk.read(d.0, d.1),
        )?;
        for data in [a, b, c, d] {
            file.write_all(&data).await?;
        }
    }
    file.sync_all().await?;
    disk.close().await?;
    Ok(())
}

/// The next range of at most `each` blocks; empty at the end of the disk.
fn take(disk: &Disk, next: &mut Lba, each: Blocks) -> (Lba, Blocks) {
    let begin = *next;
    let left = disk.blocks().saturating_sub(begin.0);
    let blocks = Blocks(u32::try_from(left).unwrap_or(u32::MAX).min(each.0));
    *next = begin.checked_add(blocks).unwrap_or(begin);
    (begin, blocks)
}

/// Large enough for the network, small enough that four of them are no burden.
const CHUNK_BYTES: u32 = 1 << 20;
