//! Shows what a logical unit is: `cargo run -p iscsi --example read_capacity -- HOST[:PORT] TARGET LUN`.

use std::error::Error;
use std::process::ExitCode;

use iscsi::client::Disk;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("read_capacity: {error}");
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

#[expect(clippy::print_stdout, reason = "the facts are what the example is for")]
async fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [portal, target, lun] = arguments.as_slice() else {
        return Err("usage: read_capacity HOST[:PORT] TARGET LUN".into());
    };
    let name = "iqn.2026-11.org.cinder-nbd:example".parse()?;
    let disk = Disk::builder(name, portal.parse()?, target.parse()?, lun.parse::<u16>()?)
        .open()
        .await?;
    let info = disk.info();
    println!("{info}");
    println!(
        "serial number: {}",
        info.serial.as_deref().unwrap_or("none")
    );
    println!("blocks: {} of {} bytes", disk.blocks(), disk.block_size());
    println!("thin: {}", info.capacity.provisioning);
    println!("limits: {:?}", info.limits);
    disk.close().await?;
    Ok(())
}
