//! An export of a medium in memory that runs on a thread of its own.

use std::path::PathBuf;
use std::thread::JoinHandle;

use cinder_nbd::nbd::{self, ExportOptions};
use tokio_util::sync::CancellationToken;

use crate::nbd_bed::{Medium, wait_for};

/// An export of a medium, served by a thread until it is stopped.
pub(crate) struct Export {
    pub(crate) socket: PathBuf,
    shutdown: CancellationToken,
    thread: Option<JoinHandle<Result<(), nbd::Error>>>,
    _directory: tempfile::TempDir,
}

impl Export {
    pub(crate) fn of(medium: &Medium) -> Self {
        Self::with(medium, |_| {})
    }

    pub(crate) fn with(medium: &Medium, change: impl FnOnce(&mut ExportOptions)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("export.sock");
        let mut options = ExportOptions::new(&socket);
        change(&mut options);
        let shutdown = CancellationToken::new();
        let (medium, token) = (medium.clone(), shutdown.clone());
        let thread = std::thread::spawn(move || serve(options, medium, token));
        let export = Self {
            socket,
            shutdown,
            thread: Some(thread),
            _directory: directory,
        };
        wait_for("the export's socket", || export.socket.exists());
        export
    }

    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// Asks for the end, without waiting for it.
    pub(crate) fn cancel(&self) {
        self.shutdown.cancel();
    }

    pub(crate) fn stop(mut self) {
        self.shutdown.cancel();
        self.thread.take().unwrap().join().unwrap().unwrap();
        assert!(!self.socket.exists(), "the socket is removed at the end");
    }
}

/// `serve_export` on a runtime of its own.
pub(crate) fn serve(
    options: ExportOptions,
    medium: Medium,
    shutdown: CancellationToken,
) -> Result<(), nbd::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(nbd::serve_export(
        options,
        move || {
            let backend = medium.open();
            async move { Ok::<_, nbd::OpenError>(backend) }
        },
        shutdown,
    ))
}
