//! The lanes of a device: threads that open their backends, and wait for a link to the kernel.
//!
//! A room of its own because a new device and an adopted one begin in the same way, and differ in where the links come
//! from.
//! Read before changing: `lane.rs`; `thread.rs`.
//!
//! Invariants:
//! 1. All backends are open, and agree, before one lane is given a link.
//! 2. A lane that is given none closes its backend.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::block::{Backend, Geometry};
use crate::nbd::Error;
use crate::nbd::export::OpenError;
use crate::nbd::journal::Journal;
use crate::nbd::lane;
use crate::nbd::link::{Link, Relinker};
use crate::nbd::thread::LaneThread;
use crate::sys::socket;

use super::adopt::{Device, Slot};
use super::keep::{Keepsake, LaneRemains};
use super::resize::Growth;

/// Lanes that are started.
pub(super) struct Lanes {
    pub(super) threads: Vec<LaneThread<()>>,
    opened: Vec<oneshot::Receiver<Result<Geometry, OpenError>>>,
    links: Vec<oneshot::Sender<Begin>>,
    /// To begin when every lane has its link.
    pub(super) growth: Arc<Growth>,
}

/// What a lane begins with.
enum Begin {
    /// A socket that the kernel does not have yet.
    New(StdStream, Box<Journal>),
    /// What a predecessor left, and who waits for the link to stand.
    Resumed(LaneRemains, oneshot::Sender<()>),
}

impl Lanes {
    pub(super) fn start<B, F, O>(
        count: usize,
        open: &Arc<O>,
        device: &Arc<Device>,
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
            growth: Growth::new(count),
        };
        for number in 0..count {
            // On an error the lanes so far are given no link, and end.
            let (tell, opened) = oneshot::channel();
            let (link, linked) = oneshot::channel::<Begin>();
            let growth = Arc::clone(&lanes.growth);
            let (open, device, leave) = (Arc::clone(open), Arc::clone(device), leave.clone());
            let thread = LaneThread::spawn(format!("nbd-lane-{number}"), move || async move {
                let backend = match open(number).await {
                    Ok(backend) => backend,
                    Err(error) => return drop(tell.send(Err(error))),
                };
                let backend = growth.watch(number, backend);
                // Nobody waits for it if another lane failed before.
                let _ = tell.send(Ok(backend.geometry().clone()));
                let Ok(begin) = linked.await else {
                    return backend.close().await;
                };
                match begin.link(number, &device, backend.geometry()) {
                    Ok(link) => {
                        let end = lane::serve(link, backend, &leave).await;
                        tracing::debug!("lane {number}: {end}");
                    }
                    Err(error) => {
                        tracing::error!("lane {number} cannot begin: {error}");
                        backend.close().await;
                    }
                }
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
    pub(super) fn begin(&mut self, device: &Device) -> Result<Vec<StdStream>, Error> {
        let mut kernel_ends = Vec::new();
        for (number, link) in self.links.drain(..).enumerate() {
            let (ours, kernels) = socket::lane_pair().map_err(Error::Lane)?;
            let journal = Journal::create().map_err(Error::Lane)?;
            device.keep(number, Keepsake::Socket, ours.as_fd());
            device.keep(number, Keepsake::Journal, journal.file());
            // A lane that has panicked takes none; its end is seen when it is joined.
            let _ = link.send(Begin::New(ours, Box::new(journal)));
            kernel_ends.push(kernels);
        }
        Ok(kernel_ends)
    }

    /// Gives the next lane that has no link what its predecessor left; told when its link stands.
    pub(super) fn resume(&mut self, remains: LaneRemains) -> oneshot::Receiver<()> {
        let (standing, stands) = oneshot::channel();
        if !self.links.is_empty() {
            let _ = self.links.remove(0).send(Begin::Resumed(remains, standing));
        }
        stands
    }

    /// The threads, to be joined: lanes that were given no link end.
    pub(super) fn end(self) -> Vec<LaneThread<()>> {
        self.threads
    }
}

impl Begin {
    fn link(self, number: usize, device: &Arc<Device>, geometry: &Geometry) -> io::Result<Link> {
        let relinker: Arc<dyn Relinker> = Arc::new(Slot::new(number, Arc::clone(device)));
        match self {
            Self::New(stream, journal) => {
                let stream = UnixStream::from_std(stream)?;
                Ok(Link::new(Some(stream), *journal, geometry, relinker))
            }
            Self::Resumed(remains, standing) => {
                let mut socket = remains.socket.map(StdStream::from);
                let opened = remains.journal.map(Journal::open);
                let (journal, left) = match opened {
                    Some(Ok(opened)) => opened,
                    opened => {
                        if let Some(Err(error)) = opened {
                            tracing::warn!("the journal of lane {number} is not used: {error}");
                        }
                        // Without it nobody knows what in the socket is the beginning of a request.
                        if let Some(socket) = socket.take() {
                            end_socket(socket.as_fd());
                        }
                        let journal = Journal::create()?;
                        device.keep(number, Keepsake::Journal, journal.file());
                        (journal, Vec::new())
                    }
                };
                let link = Link::resume(socket, journal, left, geometry, relinker, standing);
                Ok(link)
            }
        }
    }
}

/// Ends a socket of which others may have duplicates.
fn end_socket(socket: BorrowedFd<'_>) {
    if let Err(error) = rustix::net::shutdown(socket, rustix::net::Shutdown::Both) {
        tracing::debug!("a socket cannot be shut down: {error}");
    }
}
