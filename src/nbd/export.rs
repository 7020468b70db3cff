//! An export on a Unix socket: the listener, and the life of one client's connection.
//!
//! A room of its own because it is the only part of `nbd` that deals with strangers: limits on connections and on the
//! time of a handshake stand here.
//! Read before changing: `handshake.rs`, `lane.rs`.
//!
//! Invariants:
//! 1. A client has a thread, a runtime and a backend of its own; nothing that befalls it touches another client.
//! 2. The backend is opened when the client asks for the export, on the client's thread, and closed by the lane, or
//!    here if the client leaves before transmission.
//! 3. A client that says nothing is dropped after `HANDSHAKE_TIMEOUT`; the time in which we open the backend is not
//!    the client's.
//! 4. Every thread is awaited before `serve_export` returns, and the socket's name is gone.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::block::Backend;
use crate::sys::listener;

use super::Error;
use super::connection::{Connection, End};
use super::handshake::{self, Handshake, Progress};
use super::lane;
use super::thread::LaneThread;

/// How long a client may take for its half of the handshake; the value that qemu-nbd uses.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept (no descriptors left, say) we wait before the next; chosen freely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Handshake bytes read at a time; chosen freely, a whole handshake fits.
const HANDSHAKE_READ_BYTES: usize = 4096;

/// Settings of an export on a Unix socket.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// Where to listen; a stale socket is replaced, a live one is an error.
    pub socket: PathBuf,
    /// Connections at once; more are closed at once. Default 16.
    pub connections_max: usize,
}

impl ExportOptions {
    /// The defaults, on this socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            connections_max: 16,
        }
    }
}

/// What `open` of [`serve_export`] may fail with; its words go to the client.
pub type OpenError = Box<dyn std::error::Error + Send + Sync>;

/// Serves an export until `shutdown` fires: each client connection is a lane with a backend of its own.
///
/// `open` is called on the lane's thread when a client asks for the export. The socket may be used by its owner only
/// (mode 0600). On shutdown: no new connections, requests in flight are answered, backends are flushed and closed, and
/// the socket is removed.
///
/// # Errors
/// The socket cannot be made. What befalls one client ends that client only, and is logged.
///
/// # Cancel safety
/// Dropped, it leaves the clients' threads running unobserved: cancel `shutdown` instead.
pub async fn serve_export<B, F, O>(
    options: ExportOptions,
    open: O,
    shutdown: CancellationToken,
) -> Result<(), Error>
where
    B: Backend + Send + 'static,
    F: Future<Output = Result<B, OpenError>> + Send,
    O: Fn() -> F + Send + Sync + 'static,
{
    let failed = |source| Error::Listen {
        socket: options.socket.clone(),
        source,
    };
    let listener = listener::bind(&options.socket, 0o600).map_err(failed)?;
    let name = SocketName::of(&options.socket).map_err(failed)?;
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    let open = Arc::new(open);
    let mut clients = FuturesUnordered::new();
    let mut number = 0_u64;
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = clients.next(), if !clients.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot accept a client: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if clients.len() >= options.connections_max {
            tracing::warn!(
                "a client was turned away: {} connections are open",
                clients.len()
            );
            continue;
        }
        number += 1;
        match start_client(stream, number, Arc::clone(&open), shutdown.clone()) {
            Ok(thread) => clients.push(thread.join()),
            Err(error) => tracing::warn!("cannot serve a client: {error}"),
        }
    }
    drop(listener);
    name.remove();
    while clients.next().await.is_some() {}
    Ok(())
}

/// The socket's name in the file system, which is removed only while it is still ours.
struct SocketName {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketName {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = path.symlink_metadata()?;
        Ok(Self {
            path: path.to_owned(),
            inode: (metadata.dev(), metadata.ino()),
        })
    }

    fn remove(&self) {
        if Self::of(&self.path).is_ok_and(|now| now.inode == self.inode)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn start_client<B, F, O>(
    stream: UnixStream,
    number: u64,
    open: Arc<O>,
    shutdown: CancellationToken,
) -> io::Result<LaneThread<()>>
where
    B: Backend + Send + 'static,
    F: Future<Output = Result<B, OpenError>> + Send,
    O: Fn() -> F + Send + Sync + 'static,
{
    // The socket changes its reactor: it shall be driven by its lane's thread.
    let stream = stream.into_std()?;
    LaneThread::spawn(format!("nbd-client-{number}"), move || async move {
        match serve_client(stream, open.as_ref(), &shutdown, HANDSHAKE_TIMEOUT).await {
            Ok(end) => tracing::debug!("client {number}: {end}"),
            Err(error) => tracing::warn!("client {number}: {error}"),
        }
    })
}

/// Why a client never came to transmission.
#[derive(Debug, thiserror::Error)]
enum ClientError {
    #[error("the client broke the handshake: {0}")]
    Handshake(#[from] handshake::Violation),
    #[error("the connection failed in the handshake: {0}")]
    Lost(#[from] io::Error),
    #[error("the client did not finish its handshake in time")]
    Timeout,
}

async fn serve_client<B, F, O>(
    stream: StdStream,
    open: &O,
    shutdown: &CancellationToken,
    timeout: Duration,
) -> Result<End, ClientError>
where
    B: Backend,
    F: Future<Output = Result<B, OpenError>>,
    O: Fn() -> F,
{
    let mut stream = UnixStream::from_std(stream)?;
    let mut backend = None;
    let mut early = Vec::new();
    let outcome = tokio::select! {
        outcome = shake_hands(&mut stream, &mut early, &mut backend, open, timeout) => outcome,
        () = shutdown.cancelled() => Ok(Some(End::Shutdown)),
    };
    match (outcome, backend) {
        (Ok(None), Some(backend)) => {
            let connection = Connection::new(stream, &early, backend.geometry());
            Ok(lane::serve(connection, backend, shutdown).await)
        }
        (outcome, backend) => {
            if let Some(backend) = backend {
                backend.close().await;
            }
            Ok(outcome?.unwrap_or(End::Disconnected))
        }
    }
}

/// Drives the handshake; `None`: transmission begins, with `early` as its first bytes.
async fn shake_hands<B, F, O>(
    stream: &mut UnixStream,
    input: &mut Vec<u8>,
    backend: &mut Option<B>,
    open: &O,
    timeout: Duration,
) -> Result<Option<End>, ClientError>
where
    B: Backend,
    F: Future<Output = Result<B, OpenError>>,
    O: Fn() -> F,
{
    let mut machine = Handshake::new();
    let mut deadline = Instant::now() + timeout;
    loop {
        let outcome = machine.handle_input(input);
        let output = machine.poll_output();
        tokio::time::timeout_at(deadline, stream.write_all(&output))
            .await
            .map_err(|_| ClientError::Timeout)??;
        let (used, progress) = outcome?;
        input.drain(..used);
        match progress {
            Progress::Transmission => return Ok(None),
            Progress::Ended => return Ok(Some(End::Disconnected)),
            Progress::OpenExport => {
                let began = Instant::now();
                match open().await {
                    Ok(opened) => {
                        let geometry = opened.geometry().clone();
                        *backend = Some(opened);
                        machine.handle_export(Ok(&geometry))?;
                    }
                    Err(error) => {
                        let why = chain(error.as_ref());
                        tracing::warn!("the export cannot be opened: {why}");
                        machine.handle_export(Err(&why))?;
                    }
                }
                deadline += began.elapsed();
            }
            Progress::NeedInput => {
                let mut bytes = [0; HANDSHAKE_READ_BYTES];
                let read = tokio::time::timeout_at(deadline, stream.read(&mut bytes)).await;
                match read.map_err(|_| ClientError::Timeout)?? {
                    0 => return Ok(Some(End::Closed)),
                    count => input.extend_from_slice(&bytes[..count]),
                }
            }
        }
    }
}

/// An error and its causes in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll};

    use super::*;
    use crate::block::{Completion, Geometry, Request};

    /// These clients never come to transmission: the backend is opened at most, and closed.
    struct Unused;

    impl Backend for Unused {
        fn geometry(&self) -> &Geometry {
            const {
                &Geometry {
                    size_bytes: 512,
                    block_bytes: 512,
                    physical_block_bytes: 512,
                    preferred_bytes: 512,
                    request_bytes_max: 512,
                    read_only: true,
                    write_cache: false,
                    can_trim: false,
                    can_write_zeroes: false,
                    rotational: false,
                }
            }
        }
        fn free_slots(&self) -> usize {
            0
        }
        fn submit(&mut self, request: Request) -> Result<(), Request> {
            Err(request)
        }
        fn poll_completion(&mut self, _cx: &mut Context<'_>) -> Poll<Completion> {
            Poll::Pending
        }
        async fn close(self) {}
    }

    async fn serve(bytes: &[u8], timeout: Duration) -> Result<End, ClientError> {
        let (ours, theirs) = StdStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut client = UnixStream::from_std(theirs).unwrap();
        client.write_all(bytes).await.unwrap();
        let open = || async { Ok::<_, OpenError>(Unused) };
        // The client stays connected, or the end would be that it left.
        serve_client(ours, &open, &CancellationToken::new(), timeout).await
    }

    #[tokio::test]
    async fn a_client_that_stops_talking_is_dropped() {
        let short = Duration::from_millis(30);
        for bytes in [&b""[..], &[0, 0, 0, 3], b"\0\0\0\x03IHAVEOPT\0\0"] {
            let outcome = serve(bytes, short).await;
            assert!(matches!(outcome, Err(ClientError::Timeout)), "{outcome:?}");
        }
        // Even after the export was opened for it, by INFO.
        let info = b"\0\0\0\x03IHAVEOPT\0\0\0\x06\0\0\0\x06\0\0\0\0\0\0";
        assert!(matches!(
            serve(info, short).await,
            Err(ClientError::Timeout)
        ));
    }

    #[tokio::test]
    async fn a_client_that_breaks_the_handshake_is_dropped_at_once() {
        let outcome = serve(&[0xff; 4], Duration::from_mins(1)).await;
        assert!(
            matches!(outcome, Err(ClientError::Handshake(_))),
            "{outcome:?}"
        );
    }

    #[test]
    fn causes_stand_in_one_line() {
        let error = Error::Listen {
            socket: "/run/x".into(),
            source: io::Error::other("no room"),
        };
        assert_eq!(chain(&error), "cannot listen on /run/x: no room");
    }
}
