//! The roof: wires the rooms and does nothing else.
//!
//! The daemon is joined here because the control socket and the Docker plugin do not know each
//! other. It goes down in the order faces, volumes, journal: no new calls, then everything off this
//! host or left to the next daemon, bounded in time.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cinder_nbd::cli::arguments::{Arguments, Verb};
use cinder_nbd::cli::control::server::Control;
use cinder_nbd::config::Config;
use cinder_nbd::docker::Plugin;
use cinder_nbd::nbd;
use cinder_nbd::sys::inherited::{self, Inherited};
use cinder_nbd::sys::notify::Notifier;
use cinder_nbd::telemetry::{self, Speaker};
use cinder_nbd::volume::{ConfiguredCloud, Engine, Host, Parting, Settings, line};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Before anything is opened: a number that is passed over must not have become something else. What an export was
    // passed are its sockets, and it takes them itself.
    let inherited = if matches!(arguments.verb, Verb::Daemon) {
        inherited::take()
    } else {
        Vec::new()
    };
    let is_daemon = matches!(arguments.verb, Verb::Daemon | Verb::Supervise);
    telemetry::start(if is_daemon {
        Speaker::Daemon
    } else {
        Speaker::Command
    });
    let result = run(arguments, inherited);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cinder-nbd: {}", line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments, inherited: Vec<Inherited>) -> anyhow::Result<()> {
    // The control plane: one thread; what blocks has threads of its own, and so has every lane.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = if matches!(arguments.verb, Verb::Daemon) {
        let config = Config::load(arguments.config.as_deref())?;
        runtime.block_on(Box::pin(daemon(&config, inherited)))
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

async fn daemon(config: &Config, inherited: Vec<Inherited>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let holder = holder();
    let cloud = Arc::new(ConfiguredCloud::new(config.cloud.clone()));
    let host = Arc::new(Host::new(holder.clone(), inherited));
    let (engine, running) = Engine::start(Settings::try_from(config)?, cloud, host)?;
    // Nothing of the engine has run yet. A daemon that cannot start has one line to say, and not also what it lacks.
    nbd::prepare_process();
    nbd::set_busy_poll(config.busy_poll);
    let shutdown = CancellationToken::new();
    let mut parting = Parting::LeaveUsed;
    let served = match faces(config, &engine, &shutdown) {
        Ok(faces) => {
            tokio::pin!(faces);
            tell(holder.as_deref(), |holder| holder.ready("serving"));
            let ended = tokio::select! {
                ended = &mut faces => Some(ended),
                _ = terminate.recv() => {
                    parting = at_terminate(holder.is_some()).await;
                    None
                }
                _ = interrupt.recv() => {
                    parting = Parting::TakeOff;
                    None
                }
                _ = hang_up.recv() => None,
            };
            tracing::info!(?parting, "stopping");
            tell(holder.as_deref(), |holder| holder.stopping("stopping"));
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
    running.stop(VOLUMES_PATIENCE, parting).await;
    served
}

/// Whoever runs us and holds descriptors for us.
fn holder() -> Option<Arc<Notifier>> {
    let found = Notifier::from_environment();
    if let Err(error) = &found {
        tracing::warn!(%error, "whoever started us cannot be spoken to; after a crash I/O waits for the kernel's timers");
    }
    found.ok().flatten().map(Arc::new)
}

fn tell(holder: Option<&Notifier>, say: impl FnOnce(&Notifier) -> std::io::Result<()>) {
    if let Some(Err(error)) = holder.map(say) {
        tracing::warn!(%error, "whoever started us does not answer");
    }
}

/// With a holder there is a next daemon, unless the host itself goes down.
async fn at_terminate(is_held: bool) -> Parting {
    if is_held && !Host::is_stopping().await {
        Parting::LeaveUsed
    } else {
        Parting::TakeOff
    }
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
