//! `volume transfer create|list|accept|delete`.
//!
//! Invariant: the key is printed once, by `create`, on stdout; it is read from a file, never from the command line.

use anyhow::Context;
use serde_json::json;

use super::connect;
use crate::cinder::{NewTransfer, Transfer};
use crate::cli::arguments::{Show, TransferAccept, TransferVerb};
use crate::cli::output::{print, print_facts, print_json, print_table};
use crate::cli::secret;
use crate::config::Config;

pub(super) async fn run(config: &Config, verb: TransferVerb) -> anyhow::Result<()> {
    match verb {
        TransferVerb::Create(options) => {
            let made = async {
                let cinder = connect(config).await?;
                let volume = cinder.find(&options.volume).await?;
                anyhow::Ok(cinder.offer(&volume.id, options.name.as_deref()).await?)
            };
            let doing = format!("offering {}", options.volume);
            tell(made.await.context(doing)?, options.show)
        }
        TransferVerb::List(show) => list(config, show).await.context("listing offers"),
        TransferVerb::Accept(options) => {
            let doing = format!("accepting {}", options.transfer);
            accept(config, options).await.context(doing)
        }
        TransferVerb::Delete(options) => {
            let deleted = async {
                let cinder = connect(config).await?;
                let transfer = cinder.find_transfer(&options.transfer).await?;
                anyhow::Ok(cinder.withdraw(&transfer.id).await?)
            };
            let doing = format!("taking the offer {} back", options.transfer);
            deleted.await.context(doing)
        }
    }
}

fn tell(made: NewTransfer, show: Show) -> anyhow::Result<()> {
    let NewTransfer { transfer, auth_key } = made;
    if show.json {
        let mut shown = serde_json::to_value(&transfer)?;
        shown["auth_key"] = json!(auth_key.expose());
        return print_json(&shown);
    }
    print_facts(&[
        ("id", transfer.id),
        ("auth_key", auth_key.expose().to_owned()),
        ("volume", transfer.volume_id),
    ])
}

async fn list(config: &Config, show: Show) -> anyhow::Result<()> {
    let transfers = connect(config).await?.transfers().await?;
    if show.json {
        return print_json(&transfers);
    }
    let rows: Vec<Vec<String>> = transfers.iter().map(row).collect();
    print_table(&["ID", "NAME", "VOLUME", "OFFERED"], &rows, "no offers")
}

fn row(transfer: &Transfer) -> Vec<String> {
    vec![
        transfer.id.clone(),
        transfer.name.clone().unwrap_or_default(),
        transfer.volume_id.clone(),
        transfer.created_at.clone().unwrap_or_default(),
    ]
}

async fn accept(config: &Config, options: TransferAccept) -> anyhow::Result<()> {
    let key = secret::read("the file of the key", &options.auth_key_file)?;
    let cinder = connect(config).await?;
    let volume_id = cinder.accept(&options.transfer, &key).await?;
    if options.show.json {
        return print_json(&json!({"volume_id": volume_id}));
    }
    print(&volume_id)
}
