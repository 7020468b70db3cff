//! The fixed newstyle handshake from the client's side, step by step, so that a test can stop or stray at any point.
//!
//! Source: `proto.md`: Fixed newstyle negotiation, Option types, Option reply types.

use super::{Client, Error, Stream, size};

/// What a server says of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Export {
    /// Bytes.
    pub size: u64,
    /// Transmission flags, `transmission` names them.
    pub flags: u16,
    /// Minimum, preferred and maximum block size, if told.
    pub block_sizes: Option<(u32, u32, u32)>,
    /// Its canonical name, if told.
    pub name: Option<String>,
    /// Its description, if told.
    pub description: Option<String>,
}

impl Export {
    /// Whether a transmission flag is set.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A connection before transmission.
#[derive(Debug)]
pub struct Handshake {
    stream: Box<dyn Stream>,
    /// The server's handshake flags.
    server_flags: u16,
    no_zeroes: bool,
}

/// A reply to an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// The option it is for.
    pub option: u32,
    /// Its type; bit 31 is set for errors.
    pub kind: u32,
    /// What goes along.
    pub data: Vec<u8>,
}

impl OptionReply {
    /// Whether it ends the option.
    pub fn is_last(&self) -> bool {
        self.kind == reply::ACK || self.is_error()
    }

    /// Whether the option is refused.
    pub fn is_error(&self) -> bool {
        self.kind & reply::ERROR != 0
    }
}

impl Handshake {
    /// Reads the server's greeting and answers it, asking for no zeroes if offered.
    ///
    /// # Errors
    /// If the socket fails, or the server is none of fixed newstyle.
    pub fn begin(stream: Box<dyn Stream>) -> Result<Self, Error> {
        Self::begin_with(stream, FIXED_NEWSTYLE | NO_ZEROES)
    }

    /// As `begin`, with these client flags, whatever the server offers.
    ///
    /// # Errors
    /// If the socket fails, or the server is none of fixed newstyle.
    pub fn begin_with(mut stream: Box<dyn Stream>, flags: u32) -> Result<Self, Error> {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if greeting[..8] != *b"NBDMAGIC" || greeting[8..16] != *b"IHAVEOPT" {
            return Err(Error::Protocol(format!("greeting {greeting:02x?}")));
        }
        let server_flags = u16::from_be_bytes([greeting[16], greeting[17]]);
        if u32::from(server_flags) & FIXED_NEWSTYLE == 0 {
            return Err(Error::Protocol("not fixed newstyle".into()));
        }
        stream.write_all(&flags.to_be_bytes())?;
        let no_zeroes = u32::from(server_flags) & flags & NO_ZEROES != 0;
        Ok(Self {
            stream,
            server_flags,
            no_zeroes,
        })
    }

    /// Sends an option.
    ///
    /// # Errors
    /// If the socket fails.
    ///
    /// # Panics
    /// For data of 4 GiB and more.
    pub fn send(&mut self, option: u32, data: &[u8]) -> Result<(), Error> {
        let length = u32::try_from(data.len()).expect("an option is below 4 GiB");
        self.send_head(option, length)?;
        self.stream.write_all(data)?;
        Ok(())
    }

    /// Sends an option's head alone, with any length.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn send_head(&mut self, option: u32, length: u32) -> Result<(), Error> {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        self.stream.write_all(&bytes)?;
        Ok(())
    }

    /// The next reply to an option.
    ///
    /// # Errors
    /// If the socket fails, or the reply is none.
    pub fn receive(&mut self) -> Result<OptionReply, Error> {
        let mut head = [0; 20];
        self.stream.read_exact(&mut head)?;
        let word =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if head[..8] != OPTION_REPLY_MAGIC.to_be_bytes() {
            return Err(Error::Protocol(format!(
                "option reply begins with {:02x?}",
                &head[..8]
            )));
        }
        let length = word(16);
        if length > REPLY_BYTES_MAX {
            return Err(Error::Protocol(format!("option reply of {length} bytes")));
        }
        let mut data = vec![0; size(length)];
        self.stream.read_exact(&mut data)?;
        Ok(OptionReply {
            option: word(8),
            kind: word(12),
            data,
        })
    }

    /// Sends an option and gives all replies to it, the last being an acknowledgement or an error.
    ///
    /// # Errors
    /// If the socket fails, or a reply is for another option.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Result<Vec<OptionReply>, Error> {
        self.send(option, data)?;
        let mut replies = Vec::new();
        loop {
            let reply = self.receive()?;
            if reply.option != option {
                return Err(Error::Protocol(format!("reply to option {}", reply.option)));
            }
            let last = reply.is_last();
            replies.push(reply);
            if last {
                return Ok(replies);
            }
        }
    }

    /// Names of all exports, `NBD_OPT_LIST`.
    ///
    /// # Errors
    /// If the socket fails, or the option is refused.
    pub fn list(&mut self) -> Result<Vec<String>, Error> {
        let replies = self.option(option::LIST, &[])?;
        accepted(&replies)?;
        let names = replies.iter().filter(|reply| reply.kind == reply::SERVER);
        Ok(names
            .map(|reply| text(reply.data.get(4..).unwrap_or_default()))
            .collect())
    }

    /// What an export is, without going there, `NBD_OPT_INFO`.
    ///
    /// # Errors
    /// If the socket fails, or the option is refused.
    pub fn info(&mut self, export: &str) -> Result<Export, Error> {
        let replies = self.option(option::INFO, &info_request(export))?;
        accepted(&replies)?;
        told(&replies)
    }

    /// Goes to an export, `NBD_OPT_GO`.
    ///
    /// # Errors
    /// If the socket fails, or the export is refused.
    pub fn go(mut self, export: &str) -> Result<Client, Error> {
        let replies = self.option(option::GO, &info_request(export))?;
        accepted(&replies)?;
        let export = told(&replies)?;
        Ok(Client::over(self.stream, export))
    }

    /// Goes to an export, `NBD_OPT_EXPORT_NAME`.
    ///
    /// # Errors
    /// If the socket fails, as it does for an unknown export.
    pub fn export_name(mut self, export: &str) -> Result<Client, Error> {
        self.send(option::EXPORT_NAME, export.as_bytes())?;
        let mut answer = vec![0; if self.no_zeroes { 10 } else { 134 }];
        self.stream.read_exact(&mut answer)?;
        if answer[10..].iter().any(|byte| *byte != 0) {
            return Err(Error::Protocol("the 124 zeroes are none".into()));
        }
        let export = sized(&answer).ok_or_else(|| Error::Protocol("short answer".into()))?;
        Ok(Client::over(self.stream, export))
    }

    /// Leaves, `NBD_OPT_ABORT`; a server may acknowledge or just close.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn abort(mut self) -> Result<(), Error> {
        self.send(option::ABORT, &[])?;
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest);
        Ok(())
    }

    /// The socket itself.
    pub fn raw(&mut self) -> &mut dyn Stream {
        &mut *self.stream
    }

    /// The server's handshake flags.
    pub fn server_flags(&self) -> u16 {
        self.server_flags
    }
}

/// Data of `NBD_OPT_INFO` and `NBD_OPT_GO`: the name, and a wish for each kind of information.
pub fn info_request(export: &str) -> Vec<u8> {
    let mut data = u32::try_from(export.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes()
        .to_vec();
    data.extend(export.as_bytes());
    let kinds = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];
    data.extend(3_u16.to_be_bytes());
    data.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

fn accepted(replies: &[OptionReply]) -> Result<(), Error> {
    match replies.last() {
        Some(last) if last.is_error() => Err(Error::Refused(last.kind, text(&last.data))),
        Some(_) | None => Ok(()),
    }
}

fn told(replies: &[OptionReply]) -> Result<Export, Error> {
    let mut export = None;
    let mut more = Export::default();
    for reply in replies.iter().filter(|reply| reply.kind == reply::INFO) {
        let Some((kind, data)) = reply.data.split_first_chunk::<2>() else {
            return Err(Error::Protocol("information without a type".into()));
        };
        match u16::from_be_bytes(*kind) {
            info::EXPORT => export = sized(data),
            info::NAME => more.name = Some(text(data)),
            info::DESCRIPTION => more.description = Some(text(data)),
            info::BLOCK_SIZE => {
                let (words, rest) = data.as_chunks::<4>();
                if let ([least, preferred, most], []) = (words, rest) {
                    let word = |bytes: &[u8; 4]| u32::from_be_bytes(*bytes);
                    more.block_sizes = Some((word(least), word(preferred), word(most)));
                }
            }
            _ => {}
        }
    }
    let export = export.ok_or_else(|| Error::Protocol("no size was told".into()))?;
    Ok(Export {
        size: export.size,
        flags: export.flags,
        ..more
    })
}

/// Size and flags, as `NBD_INFO_EXPORT` and the old answer have them.
fn sized(data: &[u8]) -> Option<Export> {
    let (size, rest) = data.split_first_chunk::<8>()?;
    let flags = rest.first_chunk::<2>()?;
    Some(Export {
        size: u64::from_be_bytes(*size),
        flags: u16::from_be_bytes(*flags),
        ..Export::default()
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Options.
pub mod option {
    /// `NBD_OPT_EXPORT_NAME`.
    pub const EXPORT_NAME: u32 = 1;
    /// `NBD_OPT_ABORT`.
    pub const ABORT: u32 = 2;
    /// `NBD_OPT_LIST`.
    pub const LIST: u32 = 3;
    /// `NBD_OPT_STARTTLS`.
    pub const STARTTLS: u32 = 5;
    /// `NBD_OPT_INFO`.
    pub const INFO: u32 = 6;
    /// `NBD_OPT_GO`.
    pub const GO: u32 = 7;
    /// `NBD_OPT_STRUCTURED_REPLY`.
    pub const STRUCTURED_REPLY: u32 = 8;
}

/// Types of replies to options.
pub mod reply {
    /// `NBD_REP_ACK`.
    pub const ACK: u32 = 1;
    /// `NBD_REP_SERVER`.
    pub const SERVER: u32 = 2;
    /// `NBD_REP_INFO`.
    pub const INFO: u32 = 3;
    /// The bit of all errors.
    pub const ERROR: u32 = 1 << 31;
    /// `NBD_REP_ERR_UNSUP`.
    pub const UNSUPPORTED: u32 = ERROR | 1;
    /// `NBD_REP_ERR_POLICY`.
    pub const POLICY: u32 = ERROR | 2;
    /// `NBD_REP_ERR_INVALID`.
    pub const INVALID: u32 = ERROR | 3;
    /// `NBD_REP_ERR_UNKNOWN`.
    pub const UNKNOWN: u32 = ERROR | 6;
    /// `NBD_REP_ERR_TOO_BIG`.
    pub const TOO_BIG: u32 = ERROR | 9;
}

/// Types of information.
pub mod info {
    /// `NBD_INFO_EXPORT`.
    pub const EXPORT: u16 = 0;
    /// `NBD_INFO_NAME`.
    pub const NAME: u16 = 1;
    /// `NBD_INFO_DESCRIPTION`.
    pub const DESCRIPTION: u16 = 2;
    /// `NBD_INFO_BLOCK_SIZE`.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub mod transmission {
    /// `NBD_FLAG_HAS_FLAGS`, always set.
    pub const HAS_FLAGS: u16 = 1;
    /// `NBD_FLAG_READ_ONLY`.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `NBD_FLAG_SEND_FLUSH`.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// `NBD_FLAG_SEND_FUA`.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `NBD_FLAG_ROTATIONAL`.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// `NBD_FLAG_SEND_TRIM`.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `NBD_FLAG_SEND_WRITE_ZEROES`.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// `NBD_FLAG_CAN_MULTI_CONN`.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

const FIXED_NEWSTYLE: u32 = 1;
const NO_ZEROES: u32 = 2;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Far above any honest reply.
const REPLY_BYTES_MAX: u32 = 1 << 20;
