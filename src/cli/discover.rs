//! `discover`: the targets behind a portal (`SendTargets`).

use anyhow::Context;
use iscsi::proto::IscsiName;
use serde_json::json;
use uuid::Uuid;

use super::arguments::Discover;
use super::output::{print_json, print_table};
use super::secret;
use crate::config::Config;
use crate::volume::{lane_isid, session_params};

pub(super) async fn run(config: &Config, options: Discover) -> anyhow::Result<()> {
    let doing = format!("discovering targets at {}", options.portal);
    discover(config, &options).await.context(doing)
}

async fn discover(config: &Config, options: &Discover) -> anyhow::Result<()> {
    let initiator: IscsiName = config.initiator_name.parse()?;
    let chap = secret::credentials(
        options.chap_user.as_deref(),
        options.chap_secret_file.as_deref(),
    )?;
    let isid = lane_isid(Uuid::new_v4(), 0);
    let session = session_params(options.portal.clone(), initiator, None, chap, isid);
    let targets = iscsi::client::discover(&session).await?;
    if options.show.json {
        let values: Vec<serde_json::Value> = targets
            .iter()
            .map(|target| {
                let portals: Vec<String> = target
                    .portals
                    .iter()
                    .map(|found| found.portal.to_string())
                    .collect();
                json!({ "target": target.name.to_string(), "portals": portals })
            })
            .collect();
        return print_json(&values);
    }
    let rows: Vec<Vec<String>> = targets
        .iter()
        .flat_map(|target| {
            target
                .portals
                .iter()
                .map(|portal| vec![target.name.to_string(), portal.portal.to_string()])
        })
        .collect();
    print_table(
        &["TARGET", "PORTAL"],
        &rows,
        "the portal shows no targets to us",
    )
}
