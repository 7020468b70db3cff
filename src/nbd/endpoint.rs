//! Where an export is served: Unix sockets, TCP addresses, sockets that somebody else made, standard input and output.
//!
//! A room of its own because who may reach an endpoint is judged here, before anybody is served.
//!
//! Invariants:
//! 1. What other hosts can reach is served with TLS or not at all.
//! 2. A socket's name in the file system is removed only while it is still ours; one that was passed to us is never.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::fs::FileType;
use rustix::net::{AddressFamily, sockopt};
use tokio::net::{TcpListener, UnixListener, lookup_host};

use super::Error;
use crate::sys::listener;

/// A place to listen at.
#[derive(Debug)]
pub enum Endpoint {
    /// A Unix socket for its owner alone (mode 0600); a stale one is replaced, a live one is an error.
    Socket(PathBuf),
    /// `HOST:PORT`, all addresses of the host; port 0 is any free one. Beyond loopback with TLS only.
    Tcp(String),
    /// A listening socket of either kind that this process was given.
    Inherited(OwnedFd),
}

/// A connection that no runtime has yet: it shall be driven by its lane's thread.
#[derive(Debug)]
pub(super) enum Socket {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
    /// From the client, and to it.
    Pipes(OwnedFd, OwnedFd),
}

impl Socket {
    /// What a process was started with: one stream socket, or two pipes.
    ///
    /// # Errors
    /// They are neither, or a connection from another host without TLS.
    pub(super) fn of_stdio(input: OwnedFd, output: OwnedFd, has_tls: bool) -> Result<Self, Error> {
        let not_ours = |source: rustix::io::Errno| Error::NoConnection(source.into());
        let kind = |fd: &OwnedFd| {
            let stat = rustix::fs::fstat(fd).map_err(not_ours)?;
            Ok(FileType::from_raw_mode(stat.st_mode))
        };
        match (kind(&input)?, kind(&output)?) {
            (FileType::Fifo, FileType::Fifo) => return Ok(Self::Pipes(input, output)),
            (FileType::Socket, _) => {}
            _ => return Err(not_ours(rustix::io::Errno::NOTSOCK)),
        }
        rustix::io::ioctl_fionbio(&input, true).map_err(not_ours)?;
        match family(&input).map_err(Error::NoConnection)? {
            AddressFamily::UNIX => Ok(Self::Unix(input.into())),
            AddressFamily::INET | AddressFamily::INET6 => {
                let stream = std::net::TcpStream::from(input);
                let address = stream.local_addr().map_err(Error::NoConnection)?;
                judge(address, has_tls)?;
                Self::of_tcp(stream).map_err(Error::NoConnection)
            }
            _ => Err(not_ours(rustix::io::Errno::AFNOSUPPORT)),
        }
    }

    fn of_tcp(stream: std::net::TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_PROBES)?;
        Ok(Self::Tcp(stream))
    }
}

/// A client that vanished without a word gives its place back two minutes later; chosen freely.
const KEEPALIVE_IDLE: Duration = Duration::from_mins(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 6;

/// An endpoint at which clients can connect.
#[derive(Debug)]
pub(super) enum Listener {
    Unix(UnixListener, Option<SocketName>),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens.
    ///
    /// # Errors
    /// The system refuses, or strangers would be served in the clear.
    pub(super) async fn bind(endpoint: Endpoint, has_tls: bool) -> Result<Vec<Self>, Error> {
        match endpoint {
            Endpoint::Socket(path) => {
                let failed = |source| failed_at(&path.display(), source);
                let listener = listener::bind(&path, 0o600).map_err(failed)?;
                let name = SocketName::of(&path).map_err(failed)?;
                let listener = UnixListener::from_std(listener).map_err(failed)?;
                Ok(vec![Self::Unix(listener, Some(name))])
            }
            Endpoint::Tcp(text) => {
                let failed = |source| failed_at(&text, source);
                let addresses: Vec<_> = lookup_host(&text).await.map_err(failed)?.collect();
                for address in &addresses {
                    judge(*address, has_tls)?;
                }
                let mut listeners = Vec::new();
                for address in addresses {
                    listeners.push(Self::Tcp(TcpListener::bind(address).await.map_err(failed)?));
                }
                Ok(listeners)
            }
            Endpoint::Inherited(fd) => Ok(vec![Self::inherited(fd, has_tls)?]),
        }
    }

    fn inherited(fd: OwnedFd, has_tls: bool) -> Result<Self, Error> {
        let failed = |source| failed_at(&"the socket that was passed", source);
        let is_listening = sockopt::socket_acceptconn(&fd).map_err(|errno| failed(errno.into()))?;
        if !is_listening {
            return Err(failed(io::Error::other("it is a connection: use stdio")));
        }
        rustix::io::ioctl_fionbio(&fd, true).map_err(|errno| failed(errno.into()))?;
        if family(&fd).map_err(failed)? == AddressFamily::UNIX {
            let listener = UnixListener::from_std(fd.into()).map_err(failed)?;
            return Ok(Self::Unix(listener, None));
        }
        let listener = TcpListener::from_std(fd.into()).map_err(failed)?;
        judge(listener.local_addr().map_err(failed)?, has_tls)?;
        Ok(Self::Tcp(listener))
    }

    /// The next client.
    pub(super) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Socket>> {
        match self {
            Self::Unix(listener, _) => listener
                .poll_accept(cx)
                .map(|accepted| Ok(Socket::Unix(accepted?.0.into_std()?))),
            Self::Tcp(listener) => listener
                .poll_accept(cx)
                .map(|accepted| Socket::of_tcp(accepted?.0.into_std()?)),
        }
    }

    /// Where a client finds the export of this name; nothing if it has no name that a URI can hold.
    pub(super) fn uri(&self, export: &str, has_tls: bool) -> Option<String> {
        let scheme = if has_tls { "nbds" } else { "nbd" };
        let export = escape(export.as_bytes());
        match self {
            Self::Unix(listener, _) => {
                let address = listener.local_addr().ok()?;
                // What was renamed into its place was bound under another name.
                let path = match self.name() {
                    Some(name) => name.path.clone(),
                    None => address.as_pathname()?.to_owned(),
                };
                let path = escape(path.as_os_str().as_encoded_bytes());
                Some(format!("{scheme}+unix:///{export}?socket={path}"))
            }
            Self::Tcp(listener) => {
                let address = listener.local_addr().ok()?;
                Some(format!("{scheme}://{address}/{export}"))
            }
        }
    }

    /// No more clients.
    pub(super) fn close(self) {
        if let Self::Unix(listener, name) = self {
            drop(listener);
            if let Some(name) = name {
                name.remove();
            }
        }
    }

    fn name(&self) -> Option<&SocketName> {
        match self {
            Self::Unix(_, name) => name.as_ref(),
            Self::Tcp(_) => None,
        }
    }
}

/// The socket's name in the file system, which is removed only while it is still ours.
#[derive(Debug)]
pub(super) struct SocketName {
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

/// May strangers be served there?
fn judge(address: SocketAddr, has_tls: bool) -> Result<(), Error> {
    if has_tls || address.ip().to_canonical().is_loopback() {
        Ok(())
    } else {
        Err(Error::TlsRequired(address))
    }
}

fn family(fd: &OwnedFd) -> io::Result<AddressFamily> {
    Ok(rustix::net::getsockname(fd)?.address_family())
}

fn failed_at(place: &dyn std::fmt::Display, source: io::Error) -> Error {
    Error::Listen {
        place: place.to_string(),
        source,
    }
}

/// Percent-encoding of all that has a meaning in a URI, but for the slash, which is read as it is where we put it.
fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        // RFC 3986 §2.3: unreserved characters.
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("a string takes everything");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(listener: &Listener) -> SocketAddr {
        match listener {
            Listener::Tcp(listener) => listener.local_addr().unwrap(),
            Listener::Unix(..) => panic!("no TCP"),
        }
    }

    #[tokio::test]
    async fn strangers_are_not_served_in_the_clear() {
        for place in ["0.0.0.0:0", "[::]:0"] {
            let refused = Listener::bind(Endpoint::Tcp(place.into()), false).await;
            let error = refused.unwrap_err();
            assert!(matches!(error, Error::TlsRequired(_)), "{error}");
            assert!(error.to_string().contains("give it a certificate"));
            let listener = std::net::TcpListener::bind(place).unwrap();
            let refused = Listener::bind(Endpoint::Inherited(listener.into()), false).await;
            assert!(matches!(refused, Err(Error::TlsRequired(_))));
        }
        assert!(
            Listener::bind(Endpoint::Tcp("0.0.0.0:0".into()), true)
                .await
                .is_ok()
        );
        let bound = Listener::bind(Endpoint::Tcp("127.0.0.1:0".into()), false)
            .await
            .unwrap();
        assert_ne!(address(&bound[0]).port(), 0);
        let mapped = "[::ffff:127.0.0.1]:1".parse().unwrap();
        assert!(judge(mapped, false).is_ok());
        let mapped = "[::ffff:192.0.2.1]:1".parse().unwrap();
        assert!(judge(mapped, false).is_err());
    }

    #[tokio::test]
    async fn clients_over_tcp_are_not_delayed_and_their_death_is_noticed() {
        let bound = Listener::bind(Endpoint::Tcp("127.0.0.1:0".into()), false)
            .await
            .unwrap();
        let _client = std::net::TcpStream::connect(address(&bound[0])).unwrap();
        let accepted = std::future::poll_fn(|cx| bound[0].poll_accept(cx))
            .await
            .unwrap();
        let Socket::Tcp(stream) = accepted else {
            panic!("{accepted:?}")
        };
        assert!(stream.nodelay().unwrap());
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepcnt(&stream).unwrap(), KEEPALIVE_PROBES);
    }

    #[tokio::test]
    async fn uris_name_the_place_and_the_export() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a socket");
        let bound = Listener::bind(Endpoint::Socket(path.clone()), false)
            .await
            .unwrap();
        assert_eq!(
            bound[0].uri("", false).unwrap(),
            format!(
                "nbd+unix:///?socket={}/a%20socket",
                directory.path().display()
            )
        );
        for listener in bound {
            listener.close();
        }
        assert!(!path.exists());
        let bound = Listener::bind(Endpoint::Tcp("127.0.0.1:0".into()), true)
            .await
            .unwrap();
        assert_eq!(
            bound[0].uri("disk 1?", true).unwrap(),
            format!("nbds://{}/disk%201%3F", address(&bound[0]))
        );
    }

    #[test]
    fn what_is_no_connection_is_refused() {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert!(matches!(
            Socket::of_stdio(null(), null(), false),
            Err(Error::NoConnection(_))
        ));
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(matches!(
            Socket::of_stdio(ours.into(), null(), false),
            Ok(Socket::Unix(_))
        ));
    }

    #[tokio::test]
    async fn a_connection_is_no_listener() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let refused = Listener::bind(Endpoint::Inherited(ours.into()), true).await;
        assert!(matches!(refused, Err(Error::Listen { .. })));
    }
}
