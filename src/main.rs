//! The roof: wires the rooms and does nothing else.
//!
//! The daemon is joined here because the control socket and the Docker plugin do not know each
//! other. It goes down in the order faces, volumes, journal: no new calls, then everything off this
//! host, bounded in time.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cinder_nbd::cli::arguments::{Arguments, Verb};
use cinder_nbd::cli::control::server::Control;
use cinder_nbd::config::Config;
use cinder_nbd::docker::Plugin;
use cinder_nbd::nbd;
use cinder_nbd::telemetry::{self, Speaker};
use cinder_nbd::volume::{ConfiguredCloud, Engine, Host, Settings, line};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let is_daemon = matches!(arguments.verb, Verb::Daemon);
    telemetry::start(if is_daemon {
        Speaker::Daemon
    } else {
        Speaker::Command
    });
    let result = run(arguments);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cinder-nbd: {}", line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    // The control plane: one thread; what blocks has threads of its own, and so has every lane.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = if matches!(arguments.verb, Verb::Daemon) {
        let config = Config::load(arguments.config.as_deref())?;
        runtime.block_on(Box::pin(daemon(&config)))
    } else {
        runtime.block_on(Box::pin(cinder_nbd::cli::run(arguments)))
    };
    // A system call that hangs on a dead device must not keep the process from ending.
    runtime.shutdown_timeout(BLOCKING_PATIENCE);
    result
}

/// For calls that are being answered when the faces close.
const FACES_PATIENCE: Duration = Duration::from_secs(5);
/// For busy volumes to be given up by their users; the whole stays below systemd's 90 s.
const VOLUMES_PATIENCE: Duration = Duration::from_secs(20);
/// For threads in system calls.
const BLOCKING_PATIENCE: Duration = Duration::from_secs(2);

async fn daemon(config: &Config) -> anyhow::Result<()> {
    nbd::prepare_process();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let cloud = Arc::new(ConfiguredCloud::new(config.cloud.clone()));
    let (engine, running) = Engine::start(Settings::try_from(config)?, cloud, Arc::new(Host))?;
    let shutdown = CancellationToken::new();
    let served = match faces(config, &engine, &shutdown) {
        Ok(faces) => {
            tokio::pin!(faces);
            let ended = tokio::select! {
                ended = &mut faces => Some(ended),
                _ = terminate.recv() => None,
                _ = interrupt.recv() => None,
            };
            tracing::info!("stopping");
            shutdown.cancel();
            match ended {
                Some(ended) => ended,
                // Whoever is cut off here sees a closed connection and, later, a daemon that has
                // undone its call.
                None => tokio::time::timeout(FACES_PATIENCE, faces)
                    .await
                    .unwrap_or(Ok(())),
            }
        }
        Err(error) => Err(error),
    };
    drop(engine);
    running.stop(VOLUMES_PATIENCE).await;
    served
}

/// Both sockets, listening from now on; the future serves them.
fn faces(
    config: &Config,
    engine: &Engine,
    shutdown: &CancellationToken,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>>> {
    let control = Control::bind(&config.control_socket)?;
    let plugin = Plugin::bind(&config.docker_socket)?;
    tracing::info!(
        control = %config.control_socket.display(),
        docker = %config.docker_socket.display(),
        "ready"
    );
    let control = control.serve(engine.clone(), shutdown.clone());
    let plugin = plugin.serve(engine.clone(), shutdown.clone());
    Ok(async move {
        tokio::try_join!(
            async { control.await.map_err(anyhow::Error::from) },
            async { plugin.await.map_err(anyhow::Error::from) }
        )?;
        Ok(())
    })
}
