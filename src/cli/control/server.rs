//! The daemon's end of the control socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use iscsi::proto::ChapCredentials;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::wire::{
    AttachRequest, DetachRequest, DoctorRequest, ExtendRequest, Failure, FormatRequest,
    SnapshotRequest, StaticAttachRequest,
};
use crate::sys::listener;
use crate::volume::{self, Engine, SizeGib, StaticTarget, line};

/// Why the control socket cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket cannot be made.
    #[error("listening on the control socket {}", path.display())]
    Listen {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The server broke.
    #[error("serving the control socket")]
    Serve(#[source] std::io::Error),
}

/// The control socket, listening.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Listens, so that calls wait from now on.
    ///
    /// # Errors
    /// Another process listens there; no right to the directory.
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let listen = |source| Error::Listen {
            path: path.to_owned(),
            source,
        };
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
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the control socket stays");
        }
        served.map_err(Error::Serve)
    }
}

fn router(engine: Engine) -> Router {
    Router::new()
        .route("/v1/volumes", get(volumes))
        .route("/v1/status", get(status))
        .route("/v1/attach", post(attach))
        .route("/v1/attach-static", post(attach_static))
        .route("/v1/detach", post(detach))
        .route("/v1/extend", post(extend))
        .route("/v1/format", post(format))
        .route("/v1/snapshot", post(snapshot))
        .route("/v1/doctor", post(doctor))
        .with_state(engine)
}

async fn volumes(State(engine): State<Engine>) -> Response {
    respond(engine.list().await.map_err(|error| failed(&error)))
}

async fn status(State(engine): State<Engine>) -> Response {
    respond(engine.status().await.map_err(|error| failed(&error)))
}

async fn attach(State(engine): State<Engine>, body: Bytes) -> Response {
    let result = async {
        let request: AttachRequest = parse(&body)?;
        let how = volume::AttachRequest {
            read_only: request.read_only,
            raw: request.raw,
            elsewhere: request.elsewhere,
        };
        engine
            .attach(&request.volume, how)
            .await
            .map_err(|error| failed(&error))
    };
    respond(result.await)
}

async fn attach_static(State(engine): State<Engine>, body: Bytes) -> Response {
    let result = async {
        let target = static_target(parse(&body)?)?;
        engine
            .attach_static(target)
            .await
            .map_err(|error| failed(&error))
    };
    respond(result.await)
}

async fn extend(State(engine): State<Engine>, body: Bytes) -> Response {
    let result = async {
        let request: ExtendRequest = parse(&body)?;
        let size = SizeGib::new(request.size_gib).ok_or_else(|| wrong("the size is 0 GiB"))?;
        let extended = engine.extend(&request.volume, size).await;
        extended.map_err(|error| failed(&error))
    };
    respond(result.await)
}

async fn format(State(engine): State<Engine>, body: Bytes) -> Response {
    let result = async {
        let request: FormatRequest = parse(&body)?;
        let how = volume::FormatRequest {
            fstype: request.fstype,
            mkfs_options: request.mkfs_options,
            destroy: request.destroy,
        };
        let formatted = engine.format(&request.volume, how).await;
        formatted.map_err(|error| failed(&error))
    };
    respond(result.await)
}

async fn snapshot(State(engine): State<Engine>, body: Bytes) -> Response {
    let result = async {
        let request: SnapshotRequest = parse(&body)?;
        if request.freeze_limit_s == Some(0) {
            return Err(wrong("a limit of 0 s leaves no time to freeze in"));
        }
        let how = volume::SnapshotRequest {
            name: request.name,
            description: request.description,
            freeze_limit: request
                .freeze_limit_s
                .map(|seconds| Duration::from_secs(seconds.into())),
        };
        let taken = engine.snapshot(&request.volume, how).await;
        taken.map_err(|error| failed(&error))
    };
    respond(result.await)
}

async fn doctor(State(engine): State<Engine>, body: Bytes) -> Response {
    let result = async {
        let request: DoctorRequest = parse(&body)?;
        let found = engine.doctor(request.repair).await;
        found.map_err(|error| failed(&error))
    };
    respond(result.await)
}

async fn detach(State(engine): State<Engine>, body: Bytes) -> Response {
    let result = async {
        let request: DetachRequest = parse(&body)?;
        engine
            .detach(&request.volume, request.force)
            .await
            .map_err(|error| failed(&error))
    };
    respond(result.await.map(|()| serde_json::json!({})))
}

/// An answer that is a failure.
type Refusal = (StatusCode, String);

fn failed(error: &volume::Error) -> Refusal {
    (StatusCode::INTERNAL_SERVER_ERROR, line(error))
}

fn wrong(error: impl std::fmt::Display) -> Refusal {
    (StatusCode::BAD_REQUEST, error.to_string())
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        // serde names place and kind; it quotes single values, and a secret must not be quoted.
        wrong(format!(
            "the request is not understood (line {}, column {})",
            error.line(),
            error.column()
        ))
    })
}

fn static_target(request: StaticAttachRequest) -> Result<StaticTarget, Refusal> {
    let chap = match (request.chap_user, request.chap_secret) {
        (Some(name), Some(secret)) => Some(ChapCredentials { name, secret }),
        (None, None) => None,
        _ => return Err(wrong("CHAP needs both a user and a secret")),
    };
    Ok(StaticTarget {
        portal: request.portal.parse().map_err(wrong)?,
        target: request.target.parse().map_err(wrong)?,
        lun: request.lun,
        chap,
        read_only: request.read_only,
    })
}

fn respond<T: Serialize>(result: Result<T, Refusal>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err((status, error)) => (status, Json(Failure { error })).into_response(),
    }
}
