//! The lanes of a device: threads that open their backends, and wait for a link to the kernel.
//!
//! A room of its own because a new device and an adopted one begin in the same way, and differ in where the links come
//! from.
//! Read before changing: `lane.rs`; `thread.rs`.
//!
//! Invariants:
//! 1. All backends are open, and agree, before one lane is given a link.
//! 2. A lane that is given none closes its backend.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::block::{Backend, Geometry};
use crate::nbd::Error;
use crate::nbd::connection::Connection;
use crate::nbd::export::OpenError;
use crate::nbd::lane;
use crate::nbd::thread::LaneThread;
use crate::sys::socket;

use super::keep::{DeviceParams, Keepsake};

/// Lanes that are started.
pub(super) struct Lanes {
    pub(super) threads: Vec<LaneThread<()>>,
    opened: Vec<oneshot::Receiver<Result<Geometry, OpenError>>>,
    links: Vec<oneshot::Sender<StdStream>>,
}

impl Lanes {
    pub(super) fn start<B, F, O>(
        count: usize,
        open: &Arc<O>,
        leave: &CancellationToken,
    ) -> Result<Self, Error>
    where
        B: Backend + Send + 'static,
        F: Future<Output = Result<B, OpenError>> + Send,
        O: Fn(usize) -> F + Send + Sync + 'static,
    {
        let mut lanes = Self {
            threads: Vec::new(),
            opened: Vec::new(),
            links: Vec::new(),
        };
        for number in 0..count {
            // On an error the lanes so far are given no link, and end.
            let (tell, opened) = oneshot::channel();
            let (link, linked) = oneshot::channel();
            let (open, leave) = (Arc::clone(open), leave.clone());
            let thread = LaneThread::spawn(format!("nbd-lane-{number}"), move || async move {
                let backend = match open(number).await {
                    Ok(backend) => backend,
                    Err(error) => return drop(tell.send(Err(error))),
                };
                // Nobody waits for it if another lane failed before.
                let _ = tell.send(Ok(backend.geometry().clone()));
                let stream = match linked.await.map(UnixStream::from_std) {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => {
                        tracing::error!("lane {number} cannot use its socket: {error}");
                        return backend.close().await;
                    }
                    Err(_) => return backend.close().await,
                };
                let connection = Connection::new(stream, &[], backend.geometry());
                let end = lane::serve(connection, backend, &leave).await;
                tracing::debug!("lane {number}: {end}");
            });
            lanes.threads.push(thread.map_err(Error::Lane)?);
            lanes.opened.push(opened);
            lanes.links.push(link);
        }
        Ok(lanes)
    }

    /// The geometry that all lanes agree on, once all are open.
    pub(super) async fn geometry(&mut self) -> Result<Geometry, Error> {
        let mut agreed: Option<Geometry> = None;
        for opened in self.opened.drain(..) {
            let geometry = opened
                .await
                .map_err(|_| Error::LaneLost)?
                .map_err(Error::Backend)?;
            if agreed.as_ref().is_some_and(|agreed| *agreed != geometry) {
                return Err(Error::Geometry);
            }
            agreed = Some(geometry);
        }
        agreed.ok_or(Error::NoLanes)
    }

    /// Every lane serves a new link; the ends of their sockets that the kernel gets.
    pub(super) fn begin(&mut self, params: &DeviceParams) -> Result<Vec<StdStream>, Error> {
        let mut kernel_ends = Vec::new();
        for (number, link) in self.links.drain(..).enumerate() {
            let (ours, kernels) = socket::lane_pair().map_err(Error::Lane)?;
            if let Some(keeper) = &params.keeper
                && let Err(error) = keeper.keep(number, Keepsake::Socket, ours.as_fd())
            {
                tracing::warn!("the socket of lane {number} is not kept: {error}");
            }
            // A lane that has panicked takes none; its end is seen when it is joined.
            let _ = link.send(ours);
            kernel_ends.push(kernels);
        }
        Ok(kernel_ends)
    }

    /// Gives a link to the next lane that has none.
    pub(super) fn give(&mut self, stream: StdStream) {
        if !self.links.is_empty() {
            let _ = self.links.remove(0).send(stream);
        }
    }

    /// The threads, to be joined: lanes that were given no link end.
    pub(super) fn end(self) -> Vec<LaneThread<()>> {
        self.threads
    }
}
