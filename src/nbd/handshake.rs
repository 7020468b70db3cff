//! The server's half of the handshake, as a machine: fixed newstyle, from the greeting to the first request.
//!
//! A room of its own because it is the one place where a stranger's words are judged before anything is opened.
//! Source: `proto.md: Newstyle negotiation`, `Fixed newstyle negotiation`, `Option types`, `Block size constraints`.
//! Read before changing: `wire.rs`.
//!
//! ```text
//!  ClientFlags --> Option <--------------------------+
//!                   |  |  \ unknown, malformed: reply |
//!                   |  |   +--> Skip -----------------+
//!                   |  +-----> Data --> replies ------+
//!                   |            | GO INFO EXPORT_NAME, first time: AwaitExport (the driver opens it)
//!                   |            v
//!                   +--------> Transmission | Ended
//! ```
//!
//! Invariants:
//! 1. An option that is refused is skipped to its last byte, so the next header is where it should be.
//! 2. Nothing is allocated by a length that the peer names: data are collected up to `OPTION_BYTES_MAX`.
//! 3. The export is opened when it is asked for and at most once a connection; `LIST` opens nothing.
//! 4. There is one export. The empty name is always its, and the one in the terms too.
//! 5. Where the terms demand TLS, nothing but `STARTTLS` and `ABORT` is done before it, and what was said before it is
//!    forgotten with it.
//!
//! What it does not do: read or write a socket, or open a backend (`export`).

use crate::block::Geometry;

use super::transmission::{Agreed, BASE_ALLOCATION, payload_bytes_max};
use super::wire::{
    self, EXPORT_NAME_PADDING_BYTES, OPTION_HEADER_BYTES, OptionHeader, STRING_BYTES_MAX,
    export_flags, handshake_flag, info, option, reply,
};

/// Options a connection may send. libnbd's tools send about ten; chosen freely above that.
pub const OPTIONS_MAX: u32 = 64;
/// Data of a known option: a longest name, and room for as many information requests as there are kinds, and more.
pub const OPTION_BYTES_MAX: u32 = STRING_BYTES_MAX + 1024;
/// Data of an option that is skipped; chosen freely, far above any real option and far below a nuisance.
pub const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;

/// A rule that the client broke in the handshake; the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// Flags that this server did not offer.
    #[error("client flags {0:#x} are not known")]
    ClientFlags(u32),
    /// No option where one was due.
    #[error("not an option: {0}")]
    Magic(#[from] wire::BadMagic),
    /// Too many options.
    #[error("more than {OPTIONS_MAX} options")]
    TooManyOptions,
    /// An option of absurd length.
    #[error("option {option} with {length} bytes of data")]
    OptionTooLong {
        /// Its number.
        option: u32,
        /// What the client said.
        length: u32,
    },
    /// An export that is not there, asked for in the way that has no answer for it.
    #[error("an export that does not exist was asked for by EXPORT_NAME")]
    UnknownExport,
    /// An option that only a fixed newstyle client may send.
    #[error("option {0} from a client that did not say it speaks fixed newstyle")]
    NotFixedNewstyle(u32),
    /// The export was asked for in the clear, in the way that has no answer for a refusal.
    #[error("the export was asked for by EXPORT_NAME, without TLS")]
    TlsRequired,
    /// Options that would be taken for the beginning of TLS, or that somebody in between put there.
    #[error("bytes between STARTTLS and its answer")]
    BytesBeforeTls,
}

/// What the export says of itself, and what it demands of its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Its name, at most [`STRING_BYTES_MAX`] bytes; by the empty one it is always found.
    pub name: String,
    /// A line for people.
    pub description: String,
    /// TLS is offered, and demanded.
    pub tls: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            name: String::new(),
            description: "block device served by cinder-nbd".to_owned(),
            tls: false,
        }
    }
}

/// What the driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    NeedInput,
    /// The export is asked for: open it and call [`Handshake::handle_export`].
    OpenExport,
    /// Send what there is to send, change to TLS, then call [`Handshake::handle_tls`].
    StartTls,
    /// The handshake is over; what follows in the input are requests.
    Transmission,
    /// The client left, or was told why not: send what there is to send, then close.
    Ended,
}

/// The machine.
#[derive(Debug)]
pub struct Handshake {
    terms: Terms,
    state: State,
    agreed: Agreed,
    /// TLS is on.
    is_secure: bool,
    fixed_newstyle: bool,
    no_zeroes: bool,
    options: u32,
    data: Vec<u8>,
    export: Option<Geometry>,
    output: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    ClientFlags,
    Option,
    Data(OptionHeader),
    Skip(u32),
    AwaitExport(OptionHeader),
    AwaitTls,
    Transmission,
    Ended,
}

impl Handshake {
    /// A new connection; the greeting is the first output.
    pub fn new(terms: Terms) -> Self {
        let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        Self {
            terms,
            state: State::ClientFlags,
            agreed: Agreed::default(),
            is_secure: false,
            fixed_newstyle: false,
            no_zeroes: false,
            options: 0,
            data: Vec::new(),
            export: None,
            output: wire::greeting(flags).to_vec(),
        }
    }

    /// Takes what the client sent; says how many bytes were used up, and what is to be done.
    ///
    /// Bytes that were not used up are given again, with more behind them.
    ///
    /// # Errors
    /// The client broke a rule: close the connection.
    pub fn handle_input(&mut self, input: &[u8]) -> Result<(usize, Progress), Violation> {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            match self.state {
                State::ClientFlags => {
                    let Some((bytes, _)) = rest.split_first_chunk::<4>() else {
                        return Ok((used, Progress::NeedInput));
                    };
                    used += bytes.len();
                    self.handle_flags(u32::from_be_bytes(*bytes))?;
                }
                State::Option => {
                    let Some((bytes, _)) = rest.split_first_chunk::<OPTION_HEADER_BYTES>() else {
                        return Ok((used, Progress::NeedInput));
                    };
                    used += bytes.len();
                    self.handle_header(OptionHeader::parse(bytes)?)?;
                }
                State::Data(header) => {
                    let missing = usize_of(header.length) - self.data.len();
                    let take = missing.min(rest.len());
                    self.data.extend_from_slice(&rest[..take]);
                    used += take;
                    if take < missing {
                        return Ok((used, Progress::NeedInput));
                    }
                    self.handle_option(header)?;
                }
                State::Skip(missing) => {
                    let take = u32::try_from(rest.len()).unwrap_or(u32::MAX).min(missing);
                    used += usize_of(take);
                    if take < missing {
                        self.state = State::Skip(missing - take);
                        return Ok((used, Progress::NeedInput));
                    }
                    self.state = State::Option;
                }
                State::AwaitExport(_) => return Ok((used, Progress::OpenExport)),
                // What came in the clear must not be taken for what came through TLS.
                State::AwaitTls if !rest.is_empty() => return Err(Violation::BytesBeforeTls),
                State::AwaitTls => return Ok((used, Progress::StartTls)),
                State::Transmission => return Ok((used, Progress::Transmission)),
                State::Ended => return Ok((used, Progress::Ended)),
            }
        }
    }

    /// The export was opened, or could not be, with the cause in words for the client.
    ///
    /// # Errors
    /// The client asked in the way that has no answer for a failure: close the connection.
    ///
    /// # Panics
    /// The machine did not ask for it (a bug of the driver).
    pub fn handle_export(&mut self, opened: Result<&Geometry, &str>) -> Result<(), Violation> {
        let State::AwaitExport(header) = self.state else {
            panic!("an export was opened that nobody asked for");
        };
        match opened {
            Ok(geometry) => {
                self.export = Some(geometry.clone());
                self.handle_option(header)
            }
            Err(_) if header.option == option::EXPORT_NAME => Err(Violation::UnknownExport),
            Err(why) => {
                self.reply(header.option, reply::ERR_UNKNOWN, why.as_bytes());
                self.next_option();
                Ok(())
            }
        }
    }

    /// TLS is on: what the client said before is forgotten (proto.md: `NBD_OPT_STARTTLS`).
    ///
    /// # Panics
    /// The machine did not ask for it (a bug of the driver).
    pub fn handle_tls(&mut self) {
        assert_eq!(self.state, State::AwaitTls, "TLS that nobody asked for");
        self.is_secure = true;
        self.agreed = Agreed::default();
        self.next_option();
    }

    /// What was agreed on beyond the export.
    pub fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// What is to be sent; empty when there is nothing.
    pub fn poll_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    // proto.md: Newstyle negotiation, client flags.
    fn handle_flags(&mut self, flags: u32) -> Result<(), Violation> {
        let fixed = u32::from(handshake_flag::FIXED_NEWSTYLE);
        let no_zeroes = u32::from(handshake_flag::NO_ZEROES);
        if flags & !(fixed | no_zeroes) != 0 {
            return Err(Violation::ClientFlags(flags));
        }
        self.fixed_newstyle = flags & fixed != 0;
        self.no_zeroes = flags & no_zeroes != 0;
        self.state = State::Option;
        Ok(())
    }

    fn handle_header(&mut self, header: OptionHeader) -> Result<(), Violation> {
        let OptionHeader { option, length } = header;
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err(Violation::TooManyOptions);
        }
        if !self.fixed_newstyle && option != option::EXPORT_NAME {
            return Err(Violation::NotFixedNewstyle(option));
        }
        let too_long = Violation::OptionTooLong { option, length };
        let in_the_clear = self.terms.tls && !self.is_secure;
        match option {
            option::EXPORT_NAME if in_the_clear => return Err(Violation::TlsRequired),
            option::EXPORT_NAME if length > STRING_BYTES_MAX => return Err(too_long),
            _ if length > OPTION_SKIP_BYTES_MAX => return Err(too_long),
            // proto.md: TLS versions, FORCEDTLS.
            _ if in_the_clear && !matches!(option, option::STARTTLS | option::ABORT) => {
                let why = b"this server does nothing without TLS: begin with STARTTLS";
                self.reply(option, reply::ERR_TLS_REQD, why);
                self.state = State::Skip(length);
            }
            option::STARTTLS if !self.terms.tls => {
                self.refuse(option, length, b"this server has no TLS here");
            }
            option::EXPORT_NAME
            | option::ABORT
            | option::LIST
            | option::STARTTLS
            | option::INFO
            | option::GO
            | option::STRUCTURED_REPLY
            | option::LIST_META_CONTEXT
            | option::SET_META_CONTEXT => {
                if length > OPTION_BYTES_MAX {
                    self.reply(
                        option,
                        reply::ERR_TOO_BIG,
                        b"the option's data are too long",
                    );
                    self.state = State::Skip(length);
                } else {
                    self.data.clear();
                    self.state = State::Data(header);
                }
            }
            // Extended headers and whatever comes: this server does not have them.
            _ => self.refuse(option, length, b"this server does not have that option"),
        }
        Ok(())
    }

    /// The option's data are complete.
    fn handle_option(&mut self, header: OptionHeader) -> Result<(), Violation> {
        match header.option {
            option::EXPORT_NAME => return self.handle_export_name(header),
            option::INFO | option::GO => {
                self.handle_info(header);
                return Ok(());
            }
            option::ABORT => {
                self.reply(header.option, reply::ACK, &[]);
                self.state = State::Ended;
                return Ok(());
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                if let Err(why) = self.handle_meta_context(header.option) {
                    self.reply(header.option, reply::ERR_INVALID, why);
                }
            }
            // What is left are LIST, STARTTLS and STRUCTURED_REPLY.
            option if header.length > 0 => {
                self.reply(option, reply::ERR_INVALID, b"this option has no data");
            }
            option::LIST => {
                // proto.md: NBD_REP_SERVER, the name and then words for people.
                let mut server = string(self.terms.name.as_bytes());
                server.extend_from_slice(self.terms.description.as_bytes());
                self.reply(header.option, reply::SERVER, &server);
                self.reply(header.option, reply::ACK, &[]);
            }
            option::STARTTLS if self.is_secure => {
                self.reply(header.option, reply::ERR_INVALID, b"TLS is on already");
            }
            option::STARTTLS => {
                self.reply(header.option, reply::ACK, &[]);
                self.state = State::AwaitTls;
                return Ok(());
            }
            option => {
                self.agreed.structured_replies = true;
                self.reply(option, reply::ACK, &[]);
            }
        }
        self.next_option();
        Ok(())
    }

    /// proto.md: `NBD_OPT_LIST_META_CONTEXT`, `NBD_OPT_SET_META_CONTEXT`. There is one context.
    fn handle_meta_context(&mut self, option: u32) -> Result<(), &'static [u8]> {
        let is_set = option == option::SET_META_CONTEXT;
        // A choice that fails leaves none.
        self.agreed.base_allocation &= !is_set;
        if !self.agreed.structured_replies {
            return Err(b"contexts need structured replies: ask for them first");
        }
        let query =
            ContextQuery::parse(&self.data).ok_or(b"malformed name or queries".as_slice())?;
        if !self.is_ours(query.name) {
            self.unknown(option);
            return Ok(());
        }
        let whole = query.has(BASE_ALLOCATION_NAME);
        let found = if is_set {
            whole
        } else {
            // All contexts, all of a namespace, or one.
            query.queries.is_empty() || query.has(BASE_NAMESPACE) || whole
        };
        if found {
            let id = if is_set { BASE_ALLOCATION } else { 0 };
            let context = [&id.to_be_bytes()[..], BASE_ALLOCATION_NAME].concat();
            self.reply(option, reply::META_CONTEXT, &context);
        }
        self.agreed.base_allocation |= is_set && found;
        self.reply(option, reply::ACK, &[]);
        Ok(())
    }

    fn handle_export_name(&mut self, header: OptionHeader) -> Result<(), Violation> {
        if !self.is_ours(&self.data) {
            return Err(Violation::UnknownExport);
        }
        let Some(geometry) = &self.export else {
            self.state = State::AwaitExport(header);
            return Ok(());
        };
        self.output
            .extend_from_slice(&geometry.size_bytes.to_be_bytes());
        let flags = export_flags(geometry, self.agreed.structured_replies);
        self.output.extend_from_slice(&flags.to_be_bytes());
        if !self.no_zeroes {
            self.output
                .extend_from_slice(&[0; EXPORT_NAME_PADDING_BYTES]);
        }
        self.state = State::Transmission;
        Ok(())
    }

    fn handle_info(&mut self, header: OptionHeader) {
        let Some(query) = InfoQuery::parse(&self.data) else {
            self.reply(
                header.option,
                reply::ERR_INVALID,
                b"malformed name or information requests",
            );
            return self.next_option();
        };
        if !self.is_ours(query.name) {
            self.unknown(header.option);
            return self.next_option();
        }
        let Some(geometry) = self.export.clone() else {
            self.state = State::AwaitExport(header);
            return;
        };
        let (wants_name, wants_description) =
            (query.wants(info::NAME), query.wants(info::DESCRIPTION));

        let mut data = info::EXPORT.to_be_bytes().to_vec();
        data.extend_from_slice(&geometry.size_bytes.to_be_bytes());
        let flags = export_flags(&geometry, self.agreed.structured_replies);
        data.extend_from_slice(&flags.to_be_bytes());
        self.reply(header.option, reply::INFO, &data);
        // Sent whether asked for or not: requests off these limits are refused, so the client should know them.
        self.reply(header.option, reply::INFO, &block_size_info(&geometry));
        if wants_name {
            let name = [&info::NAME.to_be_bytes()[..], self.terms.name.as_bytes()].concat();
            self.reply(header.option, reply::INFO, &name);
        }
        if wants_description {
            let mut data = info::DESCRIPTION.to_be_bytes().to_vec();
            data.extend_from_slice(self.terms.description.as_bytes());
            self.reply(header.option, reply::INFO, &data);
        }
        self.reply(header.option, reply::ACK, &[]);
        if header.option == option::GO {
            self.state = State::Transmission;
        } else {
            self.next_option();
        }
    }

    fn next_option(&mut self) {
        self.state = State::Option;
    }

    fn is_ours(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.terms.name.as_bytes()
    }

    fn unknown(&mut self, option: u32) {
        let why = b"this server has one export: ask for the empty name, or list it";
        self.reply(option, reply::ERR_UNKNOWN, why);
    }

    // proto.md: Option types, NBD_REP_ERR_UNSUP.
    fn refuse(&mut self, option: u32, length: u32, why: &[u8]) {
        self.reply(option, reply::ERR_UNSUP, why);
        self.state = State::Skip(length);
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        // An error's text is a string of the protocol and as such limited.
        let data = &data[..data.len().min(usize_of(STRING_BYTES_MAX))];
        let length = u32::try_from(data.len()).expect("cut to a string's length above");
        self.output
            .extend_from_slice(&wire::option_reply(option, kind, length));
        self.output.extend_from_slice(data);
    }
}

/// The data of `INFO` and `GO`: u32 length, name, u16 count, count times u16.
struct InfoQuery<'a> {
    name: &'a [u8],
    kinds: &'a [u8],
}

impl<'a> InfoQuery<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        let (name, rest) = split_string(data)?;
        let (count, kinds) = rest.split_first_chunk::<2>()?;
        (kinds.len() == 2 * usize::from(u16::from_be_bytes(*count))).then_some(Self { name, kinds })
    }

    fn wants(&self, kind: u16) -> bool {
        self.kinds
            .chunks_exact(2)
            .any(|bytes| bytes == kind.to_be_bytes())
    }
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`: name, u32 count, count queries; name and queries are strings.
struct ContextQuery<'a> {
    name: &'a [u8],
    queries: Vec<&'a [u8]>,
}

impl<'a> ContextQuery<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        let (name, rest) = split_string(data)?;
        let (count, mut rest) = rest.split_first_chunk::<4>()?;
        // Each query takes four bytes at least, so that this ends however many were announced.
        let mut queries = Vec::new();
        for _ in 0..u32::from_be_bytes(*count) {
            let (query, after) = split_string(rest)?;
            queries.push(query);
            rest = after;
        }
        rest.is_empty().then_some(Self { name, queries })
    }

    fn has(&self, query: &[u8]) -> bool {
        self.queries.contains(&query)
    }
}

/// A string of the protocol: u32 length and bytes; and what follows it.
fn split_string(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    rest.split_at_checked(usize_of(u32::from_be_bytes(*length)))
}

fn string(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("our strings are short");
    [&length.to_be_bytes()[..], bytes].concat()
}

// proto.md: Metadata querying: namespace and leaf.
const BASE_NAMESPACE: &[u8] = b"base:";
const BASE_ALLOCATION_NAME: &[u8] = b"base:allocation";

// proto.md: Block size constraints. Least and preferred are powers of two, the largest a multiple of the least.
fn block_size_info(geometry: &Geometry) -> Vec<u8> {
    let largest = payload_bytes_max(geometry);
    let wanted = geometry
        .preferred_bytes
        .max(geometry.physical_block_bytes)
        .max(512);
    // Rounded down to a power of two, so that it never exceeds the largest.
    let preferred = (1 << wanted.min(largest).ilog2()).max(geometry.block_bytes);
    let mut data = info::BLOCK_SIZE.to_be_bytes().to_vec();
    for value in [geometry.block_bytes, preferred, largest] {
        data.extend_from_slice(&value.to_be_bytes());
    }
    data
}

fn usize_of(length: u32) -> usize {
    usize::try_from(length).expect("the daemon runs on machines of 32 bits and more")
}

#[cfg(test)]
mod tests;
