//! `doctor`: what is left over of us on this host and in the cloud, told and, on request, removed.
//!
//! With a daemon, it is the daemon that looks, as only it knows what it is about; without one, its lock is taken.

use std::sync::Arc;

use anyhow::Context;

use super::arguments::Doctor;
use super::control::client::Client;
use super::control::wire::DoctorRequest;
use super::output::{Waiting, print_json, print_table};
use crate::config::Config;
use crate::volume::{ConfiguredCloud, Finding, Host, Settings, examine_alone};

pub(super) async fn run(config: &Config, options: Doctor) -> anyhow::Result<()> {
    let doing = if options.repair {
        "repairing"
    } else {
        "examining"
    };
    let waiting = Waiting::new(doing.to_owned());
    let findings: Vec<Finding> = if Client::is_there(&config.control_socket) {
        let client = Client::connect(&config.control_socket).context(doing)?;
        let request = DoctorRequest {
            repair: options.repair,
        };
        client.post("/v1/doctor", &request).await.context(doing)?
    } else {
        let cloud = Arc::new(ConfiguredCloud::new(config.cloud.clone()));
        let host = Arc::new(Host::new(None, Vec::new()));
        examine_alone(Settings::try_from(config)?, cloud, host, options.repair)
            .await
            .context(doing)?
    };
    drop(waiting);
    if options.show.json {
        print_json(&findings)?;
    } else {
        let rows: Vec<Vec<String>> = findings.iter().map(row).collect();
        let heading = ["WHAT", "WHICH", "VOLUME", "REMEDY OR OUTCOME"];
        print_table(&heading, &rows, "nothing is left over")?;
    }
    let failed = |finding: &&Finding| matches!(finding.outcome, Some(Err(_)));
    let failures = findings.iter().filter(failed).count();
    anyhow::ensure!(
        failures == 0,
        "{doing}: {failures} of {} leftovers could not be removed; the table says why",
        findings.len()
    );
    Ok(())
}

fn row(finding: &Finding) -> Vec<String> {
    let outcome = match &finding.outcome {
        Some(Ok(())) => "done".to_owned(),
        Some(Err(error)) => format!("failed: {error}"),
        None if finding.is_repairable => format!("--repair: {}", finding.remedy),
        None => finding.remedy.clone(),
    };
    vec![
        finding.kind.to_string(),
        finding.what.clone(),
        finding.volume.clone().unwrap_or_default(),
        outcome,
    ]
}
