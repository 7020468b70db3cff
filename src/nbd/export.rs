//! An export for strangers: its listeners, and the life of one client's connection.
//!
//! A room of its own because it is the only part of `nbd` that deals with strangers: limits on connections and on the
//! time of a handshake stand here.
//! Read before changing: `endpoint.rs`, `handshake.rs`, `tls.rs`, `lane.rs`.
//!
//! Invariants:
//! 1. A client has a thread, a runtime and a backend of its own; nothing that befalls it touches another client.
//! 2. The backend is opened when the client asks for the export, on the client's thread, and closed by the lane, or
//!    here if the client leaves before transmission. So each new client sees the size of its day.
//! 3. A client that says nothing is dropped after `HANDSHAKE_TIMEOUT`, TLS included; the time in which we open the
//!    backend is not the client's.
//! 4. Every thread is awaited before `serve` returns, and the socket's name is gone.

use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::pipe;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::block::Backend;
use crate::sys::socket::enlarge_send_buffer;

use super::Error;
use super::connection::{Connection, End};
use super::endpoint::{Endpoint, Listener, Socket};
use super::handshake::{self, Handshake, Progress, Terms};
use super::lane;
use super::stream::Stream;
use super::thread::LaneThread;
use super::tls::Tls;

/// How long a client may take for its half of the handshake; the value that qemu-nbd uses.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept (no descriptors left, say) we wait before the next; chosen freely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Handshake bytes read at a time; chosen freely, a whole handshake fits.
const HANDSHAKE_READ_BYTES: usize = 4096;
/// The longest name or description; the protocol would allow 4096 bytes, of which some are for what stands around it.
const TEXT_BYTES_MAX: usize = 1024;

/// Settings of an export.
#[derive(Debug)]
pub struct ExportOptions {
    /// Where to listen.
    pub endpoints: Vec<Endpoint>,
    /// Connections at once; more are closed at once. Default 16.
    pub connections_max: usize,
    /// The export's name; by the empty one, the default, it is always found.
    pub name: String,
    /// A line for people; a default one if it is absent.
    pub description: Option<String>,
    /// TLS, which is then demanded of every client.
    pub tls: Option<Tls>,
}

impl ExportOptions {
    /// The defaults, on this Unix socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self::at(vec![Endpoint::Socket(socket.into())])
    }

    /// The defaults, on these endpoints.
    pub fn at(endpoints: Vec<Endpoint>) -> Self {
        Self {
            endpoints,
            connections_max: 16,
            name: String::new(),
            description: None,
            tls: None,
        }
    }

    fn server(&mut self) -> Result<Server, Error> {
        let mut terms = Terms {
            name: std::mem::take(&mut self.name),
            tls: self.tls.is_some(),
            ..Terms::default()
        };
        if let Some(description) = self.description.take() {
            terms.description = description;
        }
        for text in [&terms.name, &terms.description] {
            if text.len() > TEXT_BYTES_MAX {
                return Err(Error::TextTooLong {
                    bytes: text.len(),
                    most: TEXT_BYTES_MAX,
                });
            }
        }
        let tls = self.tls.take();
        Ok(Server { terms, tls })
    }
}

/// What `open` of [`Export::serve`] may fail with; its words go to the client.
pub type OpenError = Box<dyn std::error::Error + Send + Sync>;

/// What is the same for all clients.
#[derive(Debug)]
struct Server {
    terms: Terms,
    tls: Option<Tls>,
}

/// An export at which clients can connect, and which serves them when told to.
#[derive(Debug)]
pub struct Export {
    listeners: Vec<Listener>,
    connections_max: usize,
    server: Arc<Server>,
}

impl Export {
    /// Listens.
    ///
    /// # Errors
    /// An endpoint cannot be made, or other hosts could reach it and there is no TLS.
    ///
    /// # Cancel safety
    /// A Unix socket may be left in its place.
    pub async fn bind(mut options: ExportOptions) -> Result<Self, Error> {
        let server = options.server()?;
        let mut listeners = Vec::new();
        for endpoint in options.endpoints {
            listeners.extend(Listener::bind(endpoint, server.tls.is_some()).await?);
        }
        if listeners.is_empty() {
            return Err(Error::NoEndpoints);
        }
        Ok(Self {
            listeners,
            connections_max: options.connections_max,
            server: Arc::new(server),
        })
    }

    /// Where clients find it.
    pub fn uris(&self) -> Vec<String> {
        let Server { terms, tls } = self.server.as_ref();
        let uri = |listener: &Listener| listener.uri(&terms.name, tls.is_some());
        self.listeners.iter().filter_map(uri).collect()
    }

    /// Serves until `shutdown` fires: each client connection is a lane with a backend of its own.
    ///
    /// `open` is called on the lane's thread when a client asks for the export. On shutdown: no new connections,
    /// requests in flight are answered, backends are flushed and closed, and Unix sockets that we made are removed.
    /// What befalls one client ends that client only, and is logged.
    ///
    /// # Cancel safety
    /// Dropped, it leaves the clients' threads running unobserved: cancel `shutdown` instead.
    pub async fn serve<B, F, O>(self, open: O, shutdown: CancellationToken)
    where
        B: Backend + Send + 'static,
        F: Future<Output = Result<B, OpenError>> + Send,
        O: Fn() -> F + Send + Sync + 'static,
    {
        let open = Arc::new(open);
        let mut clients = FuturesUnordered::new();
        let mut number = 0_u64;
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = clients.next(), if !clients.is_empty() => continue,
                accepted = poll_fn(|cx| self.poll_accept(cx)) => accepted,
            };
            let socket = match accepted {
                Ok(socket) => socket,
                Err(error) => {
                    tracing::warn!("cannot accept a client: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if clients.len() >= self.connections_max {
                let open = clients.len();
                tracing::warn!("a client was turned away: {open} connections are open");
                continue;
            }
            number += 1;
            let server = Arc::clone(&self.server);
            match start_client(socket, number, server, Arc::clone(&open), shutdown.clone()) {
                Ok(thread) => clients.push(thread.join()),
                Err(error) => tracing::warn!("cannot serve a client: {error}"),
            }
        }
        for listener in self.listeners {
            listener.close();
        }
        while clients.next().await.is_some() {}
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Socket>> {
        self.listeners
            .iter()
            .map(|listener| listener.poll_accept(cx))
            .find(Poll::is_ready)
            .unwrap_or(Poll::Pending)
    }
}

/// [`Export::bind`] and [`Export::serve`] in one.
///
/// # Errors
/// Those of the former.
///
/// # Cancel safety
/// That of the latter.
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
    Export::bind(options).await?.serve(open, shutdown).await;
    Ok(())
}

/// Serves one client, who is at the other end of this process's standard input and output: a stream socket that is
/// both, or two pipes. The endpoints of the options are not looked at.
///
/// # Errors
/// They are no connection, or the client did not come through the handshake.
///
/// # Cancel safety
/// As [`Export::serve`].
pub async fn serve_single<B, F, O>(
    mut options: ExportOptions,
    (input, output): (OwnedFd, OwnedFd),
    open: O,
    shutdown: CancellationToken,
) -> Result<(), Error>
where
    B: Backend + Send + 'static,
    F: Future<Output = Result<B, OpenError>> + Send,
    O: Fn() -> F + Send + Sync + 'static,
{
    let server = options.server()?;
    let socket = Socket::of_stdio(input, output, server.tls.is_some())?;
    let thread = start_client(socket, 1, Arc::new(server), Arc::new(open), shutdown);
    match thread.map_err(Error::Lane)?.join().await {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(Error::Client(error.to_string())),
        None => Err(Error::LaneLost),
    }
}

fn start_client<B, F, O>(
    socket: Socket,
    number: u64,
    server: Arc<Server>,
    open: Arc<O>,
    shutdown: CancellationToken,
) -> io::Result<LaneThread<Result<(), ClientError>>>
where
    B: Backend + Send + 'static,
    F: Future<Output = Result<B, OpenError>> + Send,
    O: Fn() -> F + Send + Sync + 'static,
{
    LaneThread::spawn(format!("nbd-client-{number}"), move || async move {
        let client = Client {
            server: &server,
            open: open.as_ref(),
            shutdown: &shutdown,
            timeout: HANDSHAKE_TIMEOUT,
        };
        match client.serve(socket).await {
            Ok(end) => {
                tracing::debug!("client {number}: {end}");
                Ok(())
            }
            Err(error) => {
                tracing::warn!("client {number}: {error}");
                Err(error)
            }
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
    #[error("TLS could not be agreed on: {0}")]
    Tls(#[source] io::Error),
    #[error("the client did not finish its handshake in time")]
    Timeout,
}

/// What a client is served with.
struct Client<'a, O> {
    server: &'a Server,
    open: &'a O,
    shutdown: &'a CancellationToken,
    timeout: Duration,
}

/// A client's handshake, which goes on over another stream after `STARTTLS`.
struct Shaking<B> {
    machine: Handshake,
    /// What was read and not used up.
    input: Vec<u8>,
    backend: Option<B>,
    deadline: Instant,
}

/// Where a handshake stops.
enum Shaken {
    Transmission,
    StartTls,
    Over(End),
}

impl<B, F, O> Client<'_, O>
where
    B: Backend,
    F: Future<Output = Result<B, OpenError>>,
    O: Fn() -> F,
{
    async fn serve(&self, socket: Socket) -> Result<End, ClientError> {
        match socket {
            Socket::Unix(stream) => {
                enlarge_send_buffer(&stream);
                Box::pin(self.serve_on(UnixStream::from_std(stream)?)).await
            }
            Socket::Tcp(stream) => Box::pin(self.serve_on(TcpStream::from_std(stream)?)).await,
            Socket::Pipes(input, output) => {
                let input = pipe::Receiver::from_owned_fd(input)?;
                let output = pipe::Sender::from_owned_fd(output)?;
                Box::pin(self.serve_on(tokio::io::join(input, output))).await
            }
        }
    }

    async fn serve_on<S>(&self, mut stream: S) -> Result<End, ClientError>
    where
        S: Stream + AsyncRead + AsyncWrite + Unpin,
    {
        let mut shaking = Shaking {
            machine: Handshake::new(self.server.terms.clone()),
            input: Vec::new(),
            backend: None,
            deadline: Instant::now() + self.timeout,
        };
        let outcome = self.shake_hands(&mut stream, &mut shaking).await;
        if !matches!(outcome, Ok(Shaken::StartTls)) {
            return self.go_on(stream, shaking, outcome).await;
        }
        let tls = self
            .server
            .tls
            .as_ref()
            .expect("the terms have it only then");
        let accepted = tokio::select! {
            accepted = timeout_at(shaking.deadline, tls.accept(stream)) => accepted,
            () = self.shutdown.cancelled() => return Ok(End::Shutdown),
        };
        let mut stream = accepted
            .map_err(|_| ClientError::Timeout)?
            .map_err(ClientError::Tls)?;
        shaking.machine.handle_tls();
        let outcome = self.shake_hands(&mut stream, &mut shaking).await;
        self.go_on(stream, shaking, outcome).await
    }

    /// After the handshake: the lane, or the end.
    async fn go_on<S: Stream>(
        &self,
        stream: S,
        shaking: Shaking<B>,
        outcome: Result<Shaken, ClientError>,
    ) -> Result<End, ClientError> {
        let Shaking {
            machine,
            input,
            backend,
            ..
        } = shaking;
        match (outcome, backend) {
            (Ok(Shaken::Transmission), Some(backend)) => {
                let agreed = machine.agreed();
                let connection = Connection::new(stream, &input, backend.geometry(), agreed);
                Ok(lane::serve(connection, backend, self.shutdown).await)
            }
            (outcome, backend) => {
                if let Some(backend) = backend {
                    backend.close().await;
                }
                match outcome? {
                    Shaken::Over(end) => Ok(end),
                    Shaken::Transmission | Shaken::StartTls => Ok(End::Disconnected),
                }
            }
        }
    }

    /// Drives the handshake until something else is to be done with the stream, or it is over.
    async fn shake_hands<S: Stream>(
        &self,
        stream: &mut S,
        shaking: &mut Shaking<B>,
    ) -> Result<Shaken, ClientError> {
        tokio::select! {
            outcome = self.shake_on(stream, shaking) => outcome,
            () = self.shutdown.cancelled() => Ok(Shaken::Over(End::Shutdown)),
        }
    }

    async fn shake_on<S: Stream>(
        &self,
        stream: &mut S,
        shaking: &mut Shaking<B>,
    ) -> Result<Shaken, ClientError> {
        loop {
            let outcome = shaking.machine.handle_input(&shaking.input);
            let output = shaking.machine.poll_output();
            timeout_at(shaking.deadline, write_all(stream, &output))
                .await
                .map_err(|_| ClientError::Timeout)??;
            let (used, progress) = outcome?;
            shaking.input.drain(..used);
            match progress {
                Progress::Transmission => return Ok(Shaken::Transmission),
                Progress::Ended => return Ok(Shaken::Over(End::Disconnected)),
                Progress::StartTls => return Ok(Shaken::StartTls),
                Progress::OpenExport => self.open_export(shaking).await?,
                Progress::NeedInput => {
                    let mut bytes = [0; HANDSHAKE_READ_BYTES];
                    let read =
                        poll_fn(|cx| stream.poll_read(cx, &mut [IoSliceMut::new(&mut bytes)]));
                    let read = timeout_at(shaking.deadline, read).await;
                    match read.map_err(|_| ClientError::Timeout)?? {
                        0 => return Ok(Shaken::Over(End::Closed)),
                        count => shaking.input.extend_from_slice(&bytes[..count]),
                    }
                }
            }
        }
    }

    async fn open_export(&self, shaking: &mut Shaking<B>) -> Result<(), ClientError> {
        let began = Instant::now();
        match (self.open)().await {
            Ok(opened) => {
                let geometry = opened.geometry().clone();
                shaking.backend = Some(opened);
                shaking.machine.handle_export(Ok(&geometry))?;
            }
            Err(error) => {
                let why = chain(error.as_ref());
                tracing::warn!("the export cannot be opened: {why}");
                shaking.machine.handle_export(Err(&why))?;
            }
        }
        shaking.deadline += began.elapsed();
        Ok(())
    }
}

async fn write_all<S: Stream>(stream: &mut S, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let gone = poll_fn(|cx| stream.poll_write(cx, &[IoSlice::new(bytes)])).await?;
        bytes = &bytes[gone..];
    }
    poll_fn(|cx| stream.poll_flush(cx)).await
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
    use tokio::io::AsyncWriteExt as _;

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
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut theirs = theirs;
        theirs.write_all(bytes).await.unwrap();
        serve_on(ours.into_std().unwrap(), timeout, None).await
    }

    async fn serve_on(
        ours: std::os::unix::net::UnixStream,
        timeout: Duration,
        tls: Option<Tls>,
    ) -> Result<End, ClientError> {
        let terms = Terms {
            tls: tls.is_some(),
            ..Terms::default()
        };
        let client = Client {
            server: &Server { terms, tls },
            open: &|| async { Ok::<_, OpenError>(Unused) },
            shutdown: &CancellationToken::new(),
            timeout,
        };
        // The client stays connected, or the end would be that it left.
        client.serve(Socket::Unix(ours)).await
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
            place: "/run/x".into(),
            source: io::Error::other("no room"),
        };
        assert_eq!(chain(&error), "cannot listen on /run/x: no room");
    }
}
