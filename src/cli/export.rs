//! `export`: a LUN as an NBD export on a Unix socket, in the foreground.

use anyhow::Context;
use futures_util::FutureExt;
use iscsi::io::Path;
use iscsi::proto::{IscsiName, SessionParams};
use iscsi::scsi::LunAddress;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::arguments::Export;
use super::output::{print, print_json};
use super::secret;
use crate::block::{Backend, Geometry};
use crate::config::Config;
use crate::lun::{Lun, LunSpec};
use crate::nbd::{ExportOptions, serve_export};
use crate::volume::{lane_isid, session_params};

/// qemu and nbdcopy open four; more than this is no client we know.
const CONNECTIONS_MAX: usize = 16;

pub(super) async fn run(config: &Config, options: Export) -> anyhow::Result<()> {
    let target = &options.target;
    let doing = format!(
        "exporting {} LUN {} at {}",
        target.target, target.lun, target.portal
    );
    serve(config, &options).await.context(doing)
}

async fn serve(config: &Config, options: &Export) -> anyhow::Result<()> {
    let target = &options.target;
    let initiator: IscsiName = config.initiator_name.parse()?;
    let session = session_params(
        target.portal.clone(),
        initiator,
        Some(target.target.clone()),
        secret::credentials(
            target.chap_user.as_deref(),
            target.chap_secret_file.as_deref(),
        )?,
        lane_isid(Uuid::new_v4(), 0),
    );
    let spec = spec(config, options, session)?;
    let shutdown = Shutdown::on_signals()?;

    // Once now, so that what is wrong is said at once and not to the first client.
    let geometry = tokio::select! {
        opened = Lun::open(&spec) => {
            let lun = opened?;
            let geometry = lun.geometry().clone();
            lun.close().await;
            geometry
        }
        () = shutdown.token.cancelled() => return Ok(()),
    };

    let served = serve_export(
        ExportOptions {
            socket: options.socket.clone(),
            connections_max: CONNECTIONS_MAX,
        },
        move || {
            let mut spec = spec.clone();
            // Every connection is a session of its own, so it needs a name of its own.
            spec.session.isid = lane_isid(Uuid::new_v4(), 0);
            async move { Ok(Lun::open(&spec).await?) }
        },
        shutdown.token(),
    );
    tokio::pin!(served);
    // The socket is bound in the first poll: after it, a client can connect or there is an error to
    // tell.
    if let Some(ended) = (&mut served).now_or_never() {
        return Ok(ended?);
    }
    announce(options, &geometry)?;
    Ok(served.await?)
}

/// What the options say, and the configuration where they say nothing.
fn spec(config: &Config, options: &Export, session: SessionParams) -> anyhow::Result<LunSpec> {
    let Export {
        target,
        session: how,
        ..
    } = options;
    let mut session = SessionParams {
        mutual_chap: secret::credentials(
            how.mutual_chap_user.as_deref(),
            how.mutual_chap_secret_file.as_deref(),
        )?,
        ..session
    };
    session.offers.header_digest = how.header_digest.unwrap_or(config.header_digest);
    session.offers.data_digest = how.data_digest.unwrap_or(config.data_digest);
    let mut spec = LunSpec::new(session, target.lun);
    spec.read_only = options.read_only;
    spec.recovery.replacement_timeout = how
        .replacement_timeout
        .unwrap_or(config.replacement_timeout);
    spec.more_paths = how
        .more_portal
        .iter()
        .map(|portal| Path {
            portal: portal.clone(),
            target_name: target.target.clone(),
            lun: LunAddress::from_number(target.lun),
        })
        .collect();
    Ok(spec)
}

fn announce(options: &Export, geometry: &Geometry) -> anyhow::Result<()> {
    let uri = format!("nbd+unix:///?socket={}", options.socket.display());
    if options.show.json {
        return print_json(&json!({
            "uri": uri,
            "size_bytes": geometry.size_bytes,
            "block_bytes": geometry.block_bytes,
            "read_only": geometry.read_only,
        }));
    }
    print(&uri)
}

/// The wish to end, told by SIGTERM or SIGINT; listened for until dropped.
struct Shutdown {
    token: CancellationToken,
    listener: JoinHandle<()>,
}

impl Shutdown {
    fn on_signals() -> anyhow::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let token = CancellationToken::new();
        let fired = token.clone();
        let listener = tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            fired.cancel();
        });
        Ok(Self { token, listener })
    }

    fn token(&self) -> CancellationToken {
        self.token.clone()
    }
}

impl Drop for Shutdown {
    fn drop(&mut self) {
        self.listener.abort();
    }
}
