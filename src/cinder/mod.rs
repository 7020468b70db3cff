//! The cloud's API: Keystone authentication and Cinder's volumes and attachments.
//!
//! A room of its own, on `reqwest`, because what matters here is what general clients hide: which failures may have
//! taken effect, where a password is sent, and the server's own words (`ARCHITECTURE.md` has the comparison).
//!
//! Source: Identity API v3; Block Storage API v3, microversions 3.44 to 3.54.
//!
//! Invariants:
//! 1. Every request has a deadline and a limit of repetitions; HTTP is repeated nowhere above this room.
//! 2. Nothing that was reserved or made stays behind unknown (`attachments`, `volumes`).
//! 3. Errors are one line with cause and remedy, and hold no secret.
//!
//! Does not keep a record of attachments: that is `volume`'s journal.

mod attachments;
mod catalog;
mod connection;
mod error;
mod fault;
mod http;
mod keystone;
mod model;
mod pages;
mod qos;
#[doc(hidden)]
pub mod rehearsal;
mod session;
mod snapshots;
mod transfers;
mod upkeep;
mod volumes;
mod watch;

use std::net::IpAddr;
use std::sync::Arc;

pub use connection::ConnectionInfo;
pub use error::{Error, Holder, RequestId};
pub use model::{Connector, NewVolume, Volume, VolumeAttachment};
pub use snapshots::{NewSnapshot, Snapshot};
pub use transfers::{NewTransfer, Transfer};

use crate::config::CloudConfig;
use session::Session;

/// A client of one project of one cloud. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cinder {
    session: Arc<Session>,
}

impl Cinder {
    /// Authenticates and finds the endpoint.
    ///
    /// # Errors
    /// See `Error`; names what the catalog did hold.
    pub async fn connect(config: &CloudConfig) -> Result<Self, Error> {
        Ok(Self {
            session: Arc::new(Session::open(config).await?),
        })
    }

    /// The address of this host on the route to Cinder: for the connector, where none is configured.
    ///
    /// `None` where there is no route; nothing is sent.
    pub async fn local_ip(&self) -> Option<IpAddr> {
        let endpoint = self.session.endpoint();
        let host = endpoint
            .host_str()?
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let port = endpoint.port_or_known_default()?;
        for peer in tokio::net::lookup_host((host, port)).await.ok()? {
            let any = match peer {
                std::net::SocketAddr::V4(_) => "0.0.0.0:0",
                std::net::SocketAddr::V6(_) => "[::]:0",
            };
            let Ok(socket) = tokio::net::UdpSocket::bind(any).await else {
                continue;
            };
            if socket.connect(peer).await.is_ok() {
                return socket.local_addr().ok().map(|address| address.ip());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
