//! An NBD client of our own making, for what `nbdcopy` and `qemu-io` cannot be told to do: many requests in flight
//! by hand, illegal ones, and a hand on every byte.
//!
//! Source: `proto.md` of the NBD project. Blocking: a test reads from top to bottom.
//!
//! Invariants:
//! 1. Every number here is from the protocol's text, none from the server under test.
//! 2. A reply is matched to its request by cookie, in any order.

mod handshake;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub use handshake::{
    Export, Handshake, OptionReply, info, info_request, option, reply, transmission,
};

/// A socket to a server.
pub trait Stream: Read + Write + Send + std::fmt::Debug {}

impl<T: Read + Write + Send + std::fmt::Debug> Stream for T {}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket failed, or the server closed it.
    #[error("the connection is lost")]
    Lost(#[from] io::Error),
    /// The server answered with an error number of the protocol (5 EIO, 22 EINVAL, 28 ENOSPC, ...).
    #[error("the server answers error {0}")]
    Answered(u32),
    /// The server refused an option with this reply type.
    #[error("option refused with {0:#x}: {1}")]
    Refused(u32, String),
    /// The server broke the protocol.
    #[error("the server breaks the protocol: {0}")]
    Protocol(String),
}

/// A connection in transmission.
#[derive(Debug)]
pub struct Client {
    stream: Box<dyn Stream>,
    export: Export,
    cookie: u64,
    /// What is in flight: bytes that a good reply brings.
    pending: BTreeMap<u64, usize>,
}

/// An answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Which request.
    pub cookie: u64,
    /// Zero is success.
    pub error: u32,
    /// What was read.
    pub data: Vec<u8>,
}

impl Client {
    /// Connects to a Unix socket and goes to an export with `NBD_OPT_GO`.
    ///
    /// # Errors
    /// If there is nobody, or the export is refused.
    pub fn connect_unix(path: &Path, export: &str) -> Result<Self, Error> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Handshake::begin(Box::new(stream))?.go(export)
    }

    /// As `connect_unix`, with `NBD_OPT_EXPORT_NAME` as old clients do.
    ///
    /// # Errors
    /// If there is nobody; a refused export closes the connection.
    pub fn connect_unix_by_name(path: &Path, export: &str) -> Result<Self, Error> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Handshake::begin(Box::new(stream))?.export_name(export)
    }

    /// Connects over TCP.
    ///
    /// # Errors
    /// If there is nobody, or the export is refused.
    pub fn connect_tcp(address: &str, export: &str) -> Result<Self, Error> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Handshake::begin(Box::new(stream))?.go(export)
    }

    /// Goes into transmission over a socket whose handshake is done, or was never needed.
    pub fn over(stream: Box<dyn Stream>, export: Export) -> Self {
        Self {
            stream,
            export,
            cookie: 0,
            pending: BTreeMap::new(),
        }
    }

    /// Sends a request; `wait` or `receive` brings its reply.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn send(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> Result<u64, Error> {
        self.cookie += 1;
        let cookie = self.cookie;
        let mut bytes = Vec::with_capacity(28 + data.len());
        bytes.extend(REQUEST_MAGIC.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes)?;
        if command != command::DISCONNECT {
            let brings = if command == command::READ {
                size(length)
            } else {
                0
            };
            self.pending.insert(cookie, brings);
        }
        Ok(cookie)
    }

    /// The next reply, whichever it is.
    ///
    /// # Errors
    /// If the socket fails, or the reply belongs to no request.
    pub fn receive(&mut self) -> Result<Reply, Error> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        let word =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if word(0) != REPLY_MAGIC {
            return Err(Error::Protocol(format!("reply begins with {:#x}", word(0))));
        }
        let error = word(4);
        let cookie = u64::from(word(8)) << 32 | u64::from(word(12));
        let Some(brings) = self.pending.remove(&cookie) else {
            return Err(Error::Protocol(format!(
                "reply to no request, cookie {cookie}"
            )));
        };
        // A simple reply with an error has no data.
        let mut data = vec![0; if error == 0 { brings } else { 0 }];
        self.stream.read_exact(&mut data)?;
        Ok(Reply {
            cookie,
            error,
            data,
        })
    }

    /// The reply to this request, which must be the next.
    ///
    /// # Errors
    /// If the socket fails, another request is answered, or the answer is an error.
    pub fn wait(&mut self, cookie: u64) -> Result<Vec<u8>, Error> {
        let reply = self.receive()?;
        if reply.cookie != cookie {
            return Err(Error::Protocol(format!(
                "reply to {} in place of {cookie}",
                reply.cookie
            )));
        }
        if reply.error == 0 {
            Ok(reply.data)
        } else {
            Err(Error::Answered(reply.error))
        }
    }

    /// `NBD_CMD_READ`.
    ///
    /// # Errors
    /// As `wait`.
    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, Error> {
        let cookie = self.send(command::READ, 0, offset, length, &[])?;
        self.wait(cookie)
    }

    /// `NBD_CMD_WRITE`.
    ///
    /// # Errors
    /// As `wait`.
    ///
    /// # Panics
    /// For data of 4 GiB and more.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.write_flags(offset, data, 0)
    }

    /// `NBD_CMD_WRITE` with flags, `flag::FUA` for instance.
    ///
    /// # Errors
    /// As `wait`.
    ///
    /// # Panics
    /// For data of 4 GiB and more.
    pub fn write_flags(&mut self, offset: u64, data: &[u8], flags: u16) -> Result<(), Error> {
        let length = u32::try_from(data.len()).expect("a request is below 4 GiB");
        let cookie = self.send(command::WRITE, flags, offset, length, data)?;
        self.wait(cookie).map(drop)
    }

    /// `NBD_CMD_FLUSH`.
    ///
    /// # Errors
    /// As `wait`.
    pub fn flush(&mut self) -> Result<(), Error> {
        let cookie = self.send(command::FLUSH, 0, 0, 0, &[])?;
        self.wait(cookie).map(drop)
    }

    /// `NBD_CMD_TRIM`.
    ///
    /// # Errors
    /// As `wait`.
    pub fn trim(&mut self, offset: u64, length: u32) -> Result<(), Error> {
        let cookie = self.send(command::TRIM, 0, offset, length, &[])?;
        self.wait(cookie).map(drop)
    }

    /// `NBD_CMD_WRITE_ZEROES`; `flag::NO_HOLE` among the flags.
    ///
    /// # Errors
    /// As `wait`.
    pub fn write_zeroes(&mut self, offset: u64, length: u32, flags: u16) -> Result<(), Error> {
        let cookie = self.send(command::WRITE_ZEROES, flags, offset, length, &[])?;
        self.wait(cookie).map(drop)
    }

    /// `NBD_CMD_DISC`; the server answers what is in flight and closes.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn disconnect(mut self) -> Result<(), Error> {
        self.send(command::DISCONNECT, 0, 0, 0, &[])?;
        let mut rest = Vec::new();
        // A reset is a close too.
        let _ = self.stream.read_to_end(&mut rest);
        Ok(())
    }

    /// The socket itself, for bytes that no client would send.
    pub fn raw(&mut self) -> &mut dyn Stream {
        &mut *self.stream
    }

    /// What the server said of the export.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// How many requests wait for their replies.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }
}

/// Commands.
pub mod command {
    /// `NBD_CMD_READ`.
    pub const READ: u16 = 0;
    /// `NBD_CMD_WRITE`.
    pub const WRITE: u16 = 1;
    /// `NBD_CMD_DISC`.
    pub const DISCONNECT: u16 = 2;
    /// `NBD_CMD_FLUSH`.
    pub const FLUSH: u16 = 3;
    /// `NBD_CMD_TRIM`.
    pub const TRIM: u16 = 4;
    /// `NBD_CMD_WRITE_ZEROES`.
    pub const WRITE_ZEROES: u16 = 6;
}

/// Flags of a command.
pub mod flag {
    /// On stable storage before the reply.
    pub const FUA: u16 = 1;
    /// Zeroes that keep their room.
    pub const NO_HOLE: u16 = 2;
}

fn size(length: u32) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// A server under test that does not answer fails the test instead of hanging it.
const PATIENCE: Duration = Duration::from_secs(30);
