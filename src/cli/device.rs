//! `attach`, `detach`, `list` and `status`: what the daemon does, asked for through the control
//! socket.

use anyhow::Context;

use super::arguments::{Attach, Detach, Show};
use super::control::client::Client;
use super::control::wire::{AttachRequest, DetachRequest, StaticAttachRequest};
use super::output::{Waiting, print, print_facts, print_json, print_table};
use super::secret;
use crate::config::Config;
use crate::volume::{State, View};

pub(super) async fn attach(config: &Config, options: Attach) -> anyhow::Result<()> {
    let Attach {
        volume,
        target,
        read_only,
        raw,
        elsewhere,
        show,
    } = options;
    let view: View = match (volume, target) {
        (Some(volume), _) => {
            let doing = format!("attaching {volume}");
            let client = Client::connect(&config.control_socket).context(doing.clone())?;
            let _waiting = Waiting::new(doing.clone());
            client
                .post(
                    "/v1/attach",
                    &AttachRequest {
                        volume,
                        read_only,
                        raw,
                        elsewhere,
                    },
                )
                .await
                .context(doing)?
        }
        (None, Some(target)) => {
            let doing = format!(
                "attaching {} LUN {} at {}",
                target.target, target.lun, target.portal
            );
            let chap = secret::credentials(
                target.chap_user.as_deref(),
                target.chap_secret_file.as_deref(),
            )
            .context(doing.clone())?;
            let client = Client::connect(&config.control_socket).context(doing.clone())?;
            let _waiting = Waiting::new(doing.clone());
            let request = StaticAttachRequest {
                portal: target.portal.to_string(),
                target: target.target.to_string(),
                lun: target.lun,
                chap_user: chap.as_ref().map(|chap| chap.name.clone()),
                chap_secret: chap.map(|chap| chap.secret),
                read_only,
            };
            client
                .post("/v1/attach-static", &request)
                .await
                .context(doing)?
        }
        (None, None) => {
            anyhow::bail!("attaching: name a volume, or a target with --portal, --target and --lun")
        }
    };
    if show.json {
        return print_json(&view);
    }
    print(
        &view
            .device
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
    )
}

pub(super) async fn detach(config: &Config, options: Detach) -> anyhow::Result<()> {
    let Some(volume) = options.volume else {
        return detach_all(config, options.force).await;
    };
    let doing = format!("detaching {volume}");
    let client = Client::connect(&config.control_socket).context(doing.clone())?;
    let _waiting = Waiting::new(doing);
    detach_one(&client, volume, options.force).await
}

async fn detach_one(client: &Client, volume: String, force: bool) -> anyhow::Result<()> {
    let doing = format!("detaching {volume}");
    let request = DetachRequest { volume, force };
    client
        .post::<_, serde_json::Value>("/v1/detach", &request)
        .await
        .context(doing)?;
    Ok(())
}

/// Each in turn; what could not be detached is named, and does not keep the others.
async fn detach_all(config: &Config, force: bool) -> anyhow::Result<()> {
    let doing = "detaching everything";
    let client = Client::connect(&config.control_socket).context(doing)?;
    let _waiting = Waiting::new(doing.to_owned());
    let views: Vec<View> = client.get("/v1/volumes").await.context(doing)?;
    let attached = views
        .into_iter()
        .filter(|view| view.state != State::Detached);
    let mut failures = Vec::new();
    for view in attached {
        if let Err(error) = detach_one(&client, view.name, force).await {
            failures.push(format!("{error:#}"));
        }
    }
    anyhow::ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

pub(super) async fn list(config: &Config, show: Show) -> anyhow::Result<()> {
    let client = Client::connect(&config.control_socket).context("listing")?;
    let views: Vec<View> = client.get("/v1/volumes").await.context("listing")?;
    if show.json {
        return print_json(&views);
    }
    let rows: Vec<Vec<String>> = views.iter().map(row).collect();
    let heading = [
        "NAME",
        "STATE",
        "DEVICE",
        "SIZE",
        "MOUNTS",
        "MOUNTPOINT",
        "VOLUME OR TARGET",
    ];
    print_table(
        &heading,
        &rows,
        "no volumes; 'cinder-nbd attach' or Docker make some known",
    )
}

fn row(view: &View) -> Vec<String> {
    let path = |path: &Option<std::path::PathBuf>| {
        path.as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default()
    };
    vec![
        view.name.clone(),
        view.state.to_string(),
        path(&view.device),
        view.size_gib
            .map(|size| format!("{size} GiB"))
            .unwrap_or_default(),
        view.mounts.to_string(),
        path(&view.mountpoint),
        view.volume_id
            .clone()
            .or_else(|| view.target.clone())
            .unwrap_or_default(),
    ]
}

pub(super) async fn status(config: &Config, show: Show) -> anyhow::Result<()> {
    let client = Client::connect(&config.control_socket).context("asking for the status")?;
    let status: crate::volume::Status = client
        .get("/v1/status")
        .await
        .context("asking for the status")?;
    if show.json {
        return print_json(&status);
    }
    print_facts(&[
        ("version", status.version),
        ("pid", status.pid.to_string()),
        ("up", format!("{} s", status.uptime_s)),
        ("host", status.host),
        ("initiator", status.initiator_name),
        (
            "cloud",
            if status.cloud { "configured" } else { "none" }.to_owned(),
        ),
        ("kernel nbd", status.kernel),
        (
            "volumes",
            format!(
                "{} known, {} attached, {} mounted",
                status.volumes, status.attached, status.mounted
            ),
        ),
    ])
}
