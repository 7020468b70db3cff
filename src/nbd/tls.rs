//! TLS for an export: the server's certificate, the authority of its clients, and the stream after `STARTTLS`.
//!
//! A room of its own because nothing else here knows of certificates.
//! Source: `proto.md: TLS support` (FORCEDTLS: with a certificate nothing is served in the clear).
//!
//! Invariants:
//! 1. One cryptography in the daemon: the provider that `reqwest` brings.
//! 2. What a write took may lie in the session's buffer until `poll_flush`; the connection flushes when it has
//!    nothing more to write.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::stream::Stream;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file that cannot be read, or is no PEM.
    #[error("cannot read {what} from {}", file.display())]
    Pem {
        /// What it should hold.
        what: &'static str,
        /// Its name.
        file: PathBuf,
        /// What was wrong.
        source: pem::Error,
    },
    /// A file without what it should hold.
    #[error("{} holds no {what} in PEM", file.display())]
    Empty {
        /// What it should hold.
        what: &'static str,
        /// Its name.
        file: PathBuf,
    },
    /// A certificate that is none, or does not go with its key.
    #[error("certificate and key cannot be used for TLS")]
    Certificate(#[source] rustls::Error),
    /// An authority that is none.
    #[error("the authority of the clients cannot be used")]
    Authority(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A server's side of TLS, made once for all clients.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The configuration holds the private key.
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads a certificate (with those between it and its authority) and its key, and the authority that clients must
    /// be certified by, if they must; all in PEM.
    ///
    /// # Errors
    /// A file cannot be read, or what it holds cannot be used.
    pub fn load(
        certificate: &Path,
        key: &Path,
        client_authority: Option<&Path>,
    ) -> Result<Self, TlsError> {
        let chain = certificates(certificate)?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(|source| {
            if matches!(source, pem::Error::NoItemsFound) {
                TlsError::Empty {
                    what: "private key",
                    file: key.to_owned(),
                }
            } else {
                TlsError::Pem {
                    what: "a private key",
                    file: key.to_owned(),
                    source,
                }
            }
        })?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Certificate)?;
        let builder = match client_authority {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(file)? {
                    let refused = |source| TlsError::Authority(Box::new(source));
                    roots.add(certificate).map_err(refused)?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                    .build()
                    .map_err(|source| TlsError::Authority(Box::new(source)))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder
            .with_single_cert(chain, key)
            .map_err(TlsError::Certificate)?;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }

    /// The server's half of a TLS handshake.
    ///
    /// # Errors
    /// The client speaks no TLS that we speak, or does not prove who it is.
    pub(super) async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.acceptor.accept(stream).await
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::Pem {
        what: "certificates",
        file: file.to_owned(),
        source,
    };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(file)
        .map_err(failed)?
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    if certificates.is_empty() {
        return Err(TlsError::Empty {
            what: "certificate",
            file: file.to_owned(),
        });
    }
    Ok(certificates)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for TlsStream<S> {
    /// The session may hold bytes that are read already.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn read(&mut self, _parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        parts: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut got = 0;
        for part in parts.iter_mut().filter(|part| !part.is_empty()) {
            let wanted = part.len();
            let mut buffer = ReadBuf::new(part);
            match Pin::new(&mut *self).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if got == 0 => return Poll::Pending,
                Poll::Pending => break,
            }
            got += buffer.filled().len();
            if buffer.filled().len() < wanted {
                break;
            }
        }
        Poll::Ready(Ok(got))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write_vectored(cx, parts)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(self), cx)
    }
}
