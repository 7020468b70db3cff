//! Docker's volume plugin protocol on a Unix socket: eight endpoints and `Plugin.Activate`.
//!
//! Source: docker/cli `docs/extend/plugins_volume.md`, `plugin_api.md`; moby
//! `pkg/plugins/client.go`, `daemon/volume/drivers`.
//!
//! Invariants:
//! 1. Any content type and an empty body are taken: engines, podman and old clients differ in both.
//! 2. Every answer is JSON. A failure is status 500 with `Err`, one line; the engine shows it to
//!    the user.
//! 3. `Get` of an absent volume answers "no such volume", so that the engine goes on to `Create`.
//!    `List`, `Get` and `Path` of what is known here ask nobody else: an `Err` there makes the
//!    engine forget the volume.
//! 4. Nothing here decides; `volume` does.

mod options;
#[doc(hidden)]
pub mod rehearsal;
#[cfg(test)]
mod tests;
mod wire;

use std::path::Path;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::sys::listener;
use crate::volume::{CreateRequest, Engine, View, line};
use wire::{
    Activated, Capabilities, CapabilitiesAnswer, CreateBody, Failure, GetAnswer, ListAnswer,
    MountBody, MountpointAnswer, NameBody, Success, VolumeView,
};

/// Why the plugin cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket cannot be made.
    #[error("listening on the Docker plugin socket {}", path.display())]
    Listen {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The server broke.
    #[error("serving the Docker plugin")]
    Serve(#[source] std::io::Error),
}

/// The plugin's socket, listening.
#[derive(Debug)]
pub struct Plugin {
    listener: UnixListener,
    path: std::path::PathBuf,
}

impl Plugin {
    /// Listens, so that calls wait from now on.
    ///
    /// # Errors
    /// Another process listens there; no right to the directory.
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let listen = |source| Error::Listen {
            path: path.to_owned(),
            source,
        };
        // 0600: the engine is root, and whoever may speak here may have any volume mounted.
        let listener = listener::bind(path, 0o600).map_err(listen)?;
        let listener = UnixListener::from_std(listener).map_err(listen)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Serves until `shutdown`; calls that are being served then are answered first.
    ///
    /// # Errors
    /// The listener broke.
    pub async fn serve(self, engine: Engine, shutdown: CancellationToken) -> Result<(), Error> {
        let served = axum::serve(self.listener, router(engine))
            .with_graceful_shutdown(shutdown.cancelled_owned())
            .await;
        // A socket that stays would make the engine wait for an answer at each of its tries.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the plugin socket stays");
        }
        served.map_err(Error::Serve)
    }
}

fn router(engine: Engine) -> Router {
    Router::new()
        .route("/Plugin.Activate", post(activate))
        .route("/VolumeDriver.Create", post(create))
        .route("/VolumeDriver.Remove", post(remove))
        .route("/VolumeDriver.Mount", post(mount))
        .route("/VolumeDriver.Unmount", post(unmount))
        .route("/VolumeDriver.Path", post(path))
        .route("/VolumeDriver.Get", post(get))
        .route("/VolumeDriver.List", post(list))
        .route("/VolumeDriver.Capabilities", post(capabilities))
        .fallback(unknown)
        .with_state(engine)
}

async fn activate() -> Response {
    answer(
        StatusCode::OK,
        &Activated {
            implements: ["VolumeDriver"],
        },
    )
}

async fn capabilities() -> Response {
    // global: Swarm creates a volume once, and any node may mount it.
    let capabilities = Capabilities { scope: "global" };
    answer(
        StatusCode::OK,
        &CapabilitiesAnswer {
            capabilities,
            err: "",
        },
    )
}

async fn create(State(engine): State<Engine>, body: Bytes) -> Response {
    let result = async {
        let (name, request) = parse_create(&body)?;
        engine
            .create(&name, request)
            .await
            .map_err(|error| line(&error))
    };
    respond(result.await.map(|_| Success::default()))
}

async fn remove(State(engine): State<Engine>, body: Bytes) -> Response {
    let result = async {
        let body: NameBody = parse(&body)?;
        engine
            .remove(&body.name)
            .await
            .map_err(|error| line(&error))
    };
    respond(result.await.map(|()| Success::default()))
}

async fn mount(State(engine): State<Engine>, body: Bytes) -> Response {
    let result = async {
        let body: MountBody = parse(&body)?;
        engine
            .mount(&body.name, &body.id)
            .await
            .map_err(|error| line(&error))
    };
    respond(result.await.map(|mountpoint| MountpointAnswer {
        mountpoint,
        err: "",
    }))
}

async fn unmount(State(engine): State<Engine>, body: Bytes) -> Response {
    let result = async {
        let body: MountBody = parse(&body)?;
        engine
            .unmount(&body.name, &body.id)
            .await
            .map_err(|error| line(&error))
    };
    respond(result.await.map(|()| Success::default()))
}

async fn path(State(engine): State<Engine>, body: Bytes) -> Response {
    let found = find(&engine, &body).await;
    respond(found.map(|view| MountpointAnswer {
        mountpoint: view.mountpoint.unwrap_or_default(),
        err: "",
    }))
}

async fn get(State(engine): State<Engine>, body: Bytes) -> Response {
    let found = find(&engine, &body).await;
    respond(found.map(|view| GetAnswer {
        volume: VolumeView::full(&view),
        err: "",
    }))
}

async fn list(State(engine): State<Engine>) -> Response {
    let listed = engine.list().await.map_err(|error| line(&error));
    respond(listed.map(|views| {
        ListAnswer {
            // A static target is attached by hand and has no name that Docker could use.
            volumes: views
                .iter()
                .filter(|view| view.volume_id.is_some())
                .map(VolumeView::brief)
                .collect(),
            err: "",
        }
    }))
}

async fn unknown(uri: axum::http::Uri) -> Response {
    let err = format!(
        "{} is no call of a volume plugin; this socket is for Docker's engine",
        uri.path()
    );
    answer(StatusCode::NOT_FOUND, &Failure { err })
}

async fn find(engine: &Engine, body: &Bytes) -> Result<View, String> {
    let body: NameBody = parse(body)?;
    engine.get(&body.name).await.map_err(|error| line(&error))
}

fn parse_create(body: &[u8]) -> Result<(String, CreateRequest), String> {
    let body: CreateBody = parse(body)?;
    let request = options::parse(&body.opts.unwrap_or_default())?;
    Ok((body.name, request))
}

/// An empty body is an empty object; the content type is not looked at.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    let text: &[u8] = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(text).map_err(|error| format!("the call is not understood: {error}"))
}

fn respond<T: Serialize>(result: Result<T, String>) -> Response {
    match result {
        Ok(body) => answer(StatusCode::OK, &body),
        Err(err) => answer(StatusCode::INTERNAL_SERVER_ERROR, &Failure { err }),
    }
}

fn answer<T: Serialize>(status: StatusCode, body: &T) -> Response {
    match serde_json::to_vec(body) {
        Ok(text) => (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        // A path that is not UTF-8: ours are made of checked names beneath a configured directory.
        Err(error) => {
            let text = format!(
                "{{\"Err\":\"the answer cannot be written as JSON: {}\"}}",
                error.line()
            );
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                [(header::CONTENT_TYPE, CONTENT_TYPE)],
                text,
            )
                .into_response()
        }
    }
}

const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";
