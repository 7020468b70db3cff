//! `export`: a LUN as an NBD export, in the foreground: on sockets of its own, on those it was given, or for one client
//! on standard input and output.

use std::os::fd::AsFd;

use anyhow::{Context, bail};
use iscsi::io::Path;
use iscsi::proto::{IscsiName, SessionParams};
use iscsi::scsi::LunAddress;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::arguments::{Export, ExportPlace};
use super::output::{print, print_json};
use super::secret;
use crate::block::{Backend, Geometry};
use crate::config::Config;
use crate::lun::{Lun, LunSpec};
use crate::nbd::{self, Endpoint, ExportOptions, OpenError, Tls, serve_single};
use crate::sys::inherited;
use crate::volume::{lane_isid, session_params};

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
    nbd::set_busy_poll(config.busy_poll);
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
    // What is wrong with the certificates or the sockets is said before anybody logs in.
    let place = place(options)?;
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

    let open = move || {
        let mut spec = spec.clone();
        // Every connection is a session of its own, so it needs a name of its own.
        spec.session.isid = lane_isid(Uuid::new_v4(), 0);
        async move { Ok::<_, OpenError>(Lun::open(&spec).await?) }
    };
    if options.place.stdio {
        let both = (
            std::io::stdin().as_fd().try_clone_to_owned()?,
            std::io::stdout().as_fd().try_clone_to_owned()?,
        );
        return Ok(serve_single(place, both, open, shutdown.token()).await?);
    }
    // From here on a client can connect.
    let export = nbd::Export::bind(place).await?;
    announce(options, &export.uris(), &geometry)?;
    export.serve(open, shutdown.token()).await;
    Ok(())
}

/// Where and as what it is served.
fn place(options: &Export) -> anyhow::Result<ExportOptions> {
    let ExportPlace {
        socket,
        listen,
        socket_activation,
        ..
    } = &options.place;
    let mut endpoints = Vec::new();
    if *socket_activation {
        endpoints.extend(
            inherited::take()
                .into_iter()
                .map(|passed| Endpoint::Inherited(passed.fd)),
        );
        if endpoints.is_empty() {
            bail!(
                "no socket was passed (LISTEN_FDS, LISTEN_PID): start it by a systemd socket unit or systemd-socket-activate, or use --socket or --listen"
            );
        }
    }
    endpoints.extend(socket.iter().cloned().map(Endpoint::Socket));
    endpoints.extend(listen.iter().cloned().map(Endpoint::Tcp));
    let mut place = ExportOptions::at(endpoints);
    place.connections_max = usize::from(options.connections);
    place.name.clone_from(&options.export_name);
    place.description.clone_from(&options.export_description);
    let tls = &options.tls;
    if let (Some(certificate), Some(key)) = (&tls.tls_cert, &tls.tls_key) {
        place.tls = Some(Tls::load(certificate, key, tls.tls_client_ca.as_deref())?);
    }
    Ok(place)
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

fn announce(options: &Export, uris: &[String], geometry: &Geometry) -> anyhow::Result<()> {
    if options.show.json {
        return print_json(&json!({
            "uri": uris.first(),
            "uris": uris,
            "size_bytes": geometry.size_bytes,
            "block_bytes": geometry.block_bytes,
            "read_only": geometry.read_only,
        }));
    }
    print(&uris.join("\n"))
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
