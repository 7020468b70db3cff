//! Asks a portal for its targets: `cargo run -p iscsi --example discover -- 127.0.0.1:3260`.
//!
//! With CHAP: set `CHAP_USER`, and put the secret into `CHAP_SECRET` rather than onto the command line.

use std::error::Error;
use std::process::ExitCode;

use iscsi::client::discover;
use iscsi::proto::{ChapCredentials, Isid, Secret, SessionParams};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("discover: {error}");
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

#[expect(clippy::print_stdout, reason = "the list is what the example is for")]
async fn run() -> Result<(), Box<dyn Error>> {
    let portal = std::env::args()
        .nth(1)
        .ok_or("usage: discover HOST[:PORT]")?;
    let name = "iqn.2026-11.org.cinder-nbd:example".parse()?;
    let mut params = SessionParams::new(portal.parse()?, name, Isid::random([0, 0, 1], 0));
    if let (Ok(name), Ok(secret)) = (std::env::var("CHAP_USER"), std::env::var("CHAP_SECRET")) {
        params.chap = Some(ChapCredentials {
            name,
            secret: Secret::new(secret),
        });
    }
    for target in discover(&params).await? {
        println!("{}", target.name);
        for portal in target.portals {
            println!("    {}", portal.portal);
        }
    }
    Ok(())
}
