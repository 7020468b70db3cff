//! The fixed structures of the NBD protocol: bytes to values and back.
//!
//! A room of its own so that the machines speak in values and the byte offsets stand once.
//! Source: `proto.md: Newstyle negotiation`, `Option haggling`, `Request message`, `Simple reply message`.
//!
//! Invariants:
//! 1. All numbers on the wire are big-endian.
//! 2. `parse` takes an array of the structure's exact length, so that there is no length to check; only a magic
//!    number can be wrong.
//! 3. Unknown commands, options and flags survive a round trip: refusing them is the machines' matter.

use crate::block::Geometry;

/// What a magic number should have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("magic number {found:#x} instead of {expected:#x}")]
pub struct BadMagic {
    /// The protocol's.
    pub expected: u64,
    /// The peer's.
    pub found: u64,
}

/// The server's first words: two magic numbers and the handshake flags.
pub const GREETING_BYTES: usize = 18;
/// Length of an option's header.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Length of the header of an option's reply.
pub const OPTION_REPLY_BYTES: usize = 20;
/// Length of a request without its payload.
pub const REQUEST_BYTES: usize = 28;
/// Length of a simple reply without its data.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Length of the header of a chunk of a structured reply.
pub const CHUNK_BYTES: usize = 20;
/// The zeroes after the answer to `EXPORT_NAME`, unless both sides said `NO_ZEROES`.
pub const EXPORT_NAME_PADDING_BYTES: usize = 124;
/// The longest string of the protocol, in bytes (proto.md: Values).
pub const STRING_BYTES_MAX: u32 = 4096;

const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags of server and client; both sides use the same two bits.
pub mod handshake_flag {
    /// Options other than `EXPORT_NAME` may be sent.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// No padding after the answer to `EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Numbers of options.
pub mod option {
    /// Begin transmission with this export; the answer has no room for an error.
    pub const EXPORT_NAME: u32 = 1;
    /// Leave.
    pub const ABORT: u32 = 2;
    /// Name the exports.
    pub const LIST: u32 = 3;
    /// Change to TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and begin transmission with it.
    pub const GO: u32 = 7;
    /// Structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Name the metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Kinds of replies to options.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// The name of an export.
    pub const SERVER: u32 = 2;
    /// A piece of information on an export.
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    /// The option's data are malformed, or this is not its time.
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    /// Not before TLS.
    pub const ERR_TLS_REQD: u32 = (1 << 31) + 5;
    /// No such export, or it cannot be opened.
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    /// The option's data are too long.
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
}

/// Pieces of information on an export.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Its canonical name.
    pub const NAME: u16 = 1;
    /// A line for people.
    pub const DESCRIPTION: u16 = 2;
    /// Least, preferred and largest block.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub mod transmission_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` is known.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The flag `FUA` is known.
    pub const SEND_FUA: u16 = 1 << 3;
    /// A spinning medium.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// `TRIM` is known.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` is known.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The flag `DF` is known.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers what was answered on all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `CACHE` is known.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The flag `FAST_ZERO` is known.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Numbers of commands.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write; the payload follows the request.
    pub const WRITE: u16 = 1;
    /// Leave; not answered.
    pub const DISC: u16 = 2;
    /// Make stable what was answered.
    pub const FLUSH: u16 = 3;
    /// The range is no longer needed.
    pub const TRIM: u16 = 4;
    /// The range will soon be read.
    pub const CACHE: u16 = 5;
    /// The range shall read as zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// Which parts of the range hold data.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
pub mod command_flag {
    /// Stable before the answer.
    pub const FUA: u16 = 1;
    /// Zeroes, but no hole.
    pub const NO_HOLE: u16 = 1 << 1;
    /// A read's data in one chunk.
    pub const DF: u16 = 1 << 2;
    /// The first extent is enough.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Zeroes only where that is faster than writing them.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Types of chunks.
pub mod chunk {
    /// Nothing but the end.
    pub const NONE: u16 = 0;
    /// An offset and the data from there on.
    pub const OFFSET_DATA: u16 = 1;
    /// A context's number and extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// An error and its text.
    pub const ERROR: u16 = (1 << 15) + 1;
    /// An error, its text, and where it happened.
    pub const ERROR_OFFSET: u16 = (1 << 15) + 2;
}

/// The server's first words (proto.md: Newstyle negotiation).
pub fn greeting(flags: u16) -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..8].copy_from_slice(&INIT_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..].copy_from_slice(&flags.to_be_bytes());
    bytes
}

/// The fixed part of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Its number, see [`option`].
    pub option: u32,
    /// How many bytes of data follow.
    pub length: u32,
}

impl OptionHeader {
    /// Takes a header apart.
    ///
    /// # Errors
    /// The magic number is not that of an option.
    pub fn parse(bytes: &[u8; OPTION_HEADER_BYTES]) -> Result<Self, BadMagic> {
        let found = u64::from_be_bytes(field(bytes, 0));
        if found != OPTION_MAGIC {
            return Err(BadMagic {
                expected: OPTION_MAGIC,
                found,
            });
        }
        Ok(Self {
            option: u32::from_be_bytes(field(bytes, 8)),
            length: u32::from_be_bytes(field(bytes, 12)),
        })
    }

    /// Puts a header together.
    pub fn emit(&self) -> [u8; OPTION_HEADER_BYTES] {
        let mut bytes = [0; OPTION_HEADER_BYTES];
        bytes[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.option.to_be_bytes());
        bytes[12..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// The fixed part of the reply to an option; `length` bytes of data follow it.
pub fn option_reply(option: u32, kind: u32, length: u32) -> [u8; OPTION_REPLY_BYTES] {
    let mut bytes = [0; OPTION_REPLY_BYTES];
    bytes[..8].copy_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    bytes[8..12].copy_from_slice(&option.to_be_bytes());
    bytes[12..16].copy_from_slice(&kind.to_be_bytes());
    bytes[16..].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// A request without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// See [`command_flag`].
    pub flags: u16,
    /// See [`command`].
    pub command: u16,
    /// The client's mark, given back with the answer.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Length in bytes; for a write also that of the payload.
    pub length: u32,
}

impl Request {
    /// Takes a request apart (proto.md: Request message).
    ///
    /// # Errors
    /// The magic number is not that of a request.
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, BadMagic> {
        let found = u32::from_be_bytes(field(bytes, 0));
        if found != REQUEST_MAGIC {
            return Err(BadMagic {
                expected: u64::from(REQUEST_MAGIC),
                found: u64::from(found),
            });
        }
        Ok(Self {
            flags: u16::from_be_bytes(field(bytes, 4)),
            command: u16::from_be_bytes(field(bytes, 6)),
            cookie: u64::from_be_bytes(field(bytes, 8)),
            offset: u64::from_be_bytes(field(bytes, 16)),
            length: u32::from_be_bytes(field(bytes, 24)),
        })
    }

    /// Puts a request together.
    pub fn emit(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// A simple reply; a read's data follow it when `error` is 0 (proto.md: Simple reply message).
pub fn simple_reply(cookie: u64, error: u32) -> [u8; SIMPLE_REPLY_BYTES] {
    let mut bytes = [0; SIMPLE_REPLY_BYTES];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// The header of the only, and so the last, chunk of a structured reply; `length` bytes follow it.
pub fn last_chunk(kind: u16, cookie: u64, length: u32) -> [u8; CHUNK_BYTES] {
    const DONE: u16 = 1;
    let mut bytes = [0; CHUNK_BYTES];
    bytes[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&DONE.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// The transmission flags of a device as a network export: what the device can do, and what we do for it.
pub fn export_flags(geometry: &Geometry, structured_replies: bool) -> u16 {
    use transmission_flag as flag;
    let mut flags = transmission_flags(geometry) | flag::SEND_CACHE;
    if structured_replies {
        flags |= flag::SEND_DF;
    }
    if !geometry.read_only {
        // Zeroes that the device cannot make are written by us, or refused if they were to be fast.
        flags |= flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
    }
    flags
}

/// The transmission flags of what the device itself can do; several connections may share it.
pub fn transmission_flags(geometry: &Geometry) -> u16 {
    use transmission_flag as flag;
    // Each connection has its own session to the one device, and the device's cache is common to all sessions:
    // a flush on any covers them all (proto.md: NBD_FLAG_CAN_MULTI_CONN).
    let mut flags = flag::HAS_FLAGS | flag::CAN_MULTI_CONN;
    if geometry.rotational {
        flags |= flag::ROTATIONAL;
    }
    if geometry.read_only {
        return flags | flag::READ_ONLY;
    }
    flags |= flag::SEND_FLUSH | flag::SEND_FUA;
    if geometry.can_trim {
        flags |= flag::SEND_TRIM;
    }
    if geometry.can_write_zeroes {
        flags |= flag::SEND_WRITE_ZEROES;
    }
    flags
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N]
        .try_into()
        .expect("constant offsets lie inside a header of constant length")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes written by hand from proto.md's layout, not by the code under test.
    #[test]
    fn a_request_is_laid_out_as_the_protocol_says() {
        let request = Request {
            flags: command_flag::FUA,
            command: command::WRITE,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1000,
            length: 0x200,
        };
        let bytes = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0,
            0, 0, 2, 0,
        ];
        assert_eq!(request.emit(), bytes);
        assert_eq!(Request::parse(&bytes), Ok(request));
    }

    #[test]
    fn replies_and_greeting_are_laid_out_as_the_protocol_says() {
        assert_eq!(&greeting(3)[..], b"NBDMAGICIHAVEOPT\x00\x03");
        assert_eq!(
            simple_reply(9, 5),
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9]
        );
        assert_eq!(
            option_reply(option::GO, reply::ERR_UNKNOWN, 4),
            [
                0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 7, 0x80, 0, 0, 6, 0, 0, 0, 4
            ]
        );
    }

    #[test]
    fn a_chunk_is_laid_out_as_the_protocol_says() {
        assert_eq!(
            last_chunk(chunk::ERROR_OFFSET, 9, 0x102),
            [
                0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 2, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 1, 2
            ]
        );
    }

    #[test]
    fn a_wrong_magic_number_is_named() {
        let mut bytes = Request {
            flags: 0,
            command: 0,
            cookie: 0,
            offset: 0,
            length: 0,
        }
        .emit();
        bytes[0] ^= 0xff;
        assert_eq!(
            Request::parse(&bytes).unwrap_err().to_string(),
            "magic number 0xda609513 instead of 0x25609513"
        );
        assert!(OptionHeader::parse(&[0; OPTION_HEADER_BYTES]).is_err());
    }

    #[test]
    fn a_read_only_device_offers_nothing_that_writes() {
        let geometry = Geometry {
            size_bytes: 1 << 20,
            block_bytes: 512,
            physical_block_bytes: 4096,
            preferred_bytes: 4096,
            request_bytes_max: 1 << 20,
            read_only: true,
            write_cache: true,
            can_trim: true,
            can_write_zeroes: true,
            rotational: true,
        };
        assert_eq!(transmission_flags(&geometry), 0b1_0001_0011);
        assert_eq!(
            transmission_flags(&Geometry {
                read_only: false,
                ..geometry
            }),
            0b1_0111_1101
        );
        assert_eq!(export_flags(&geometry, true), 0b101_1001_0011);
        let writable = Geometry {
            read_only: false,
            can_trim: false,
            can_write_zeroes: false,
            ..geometry
        };
        assert_eq!(export_flags(&writable, false), 0b1101_0101_1101);
    }

    proptest! {
        #[test]
        fn requests_survive_a_round_trip(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) {
            let request = Request { flags, command, cookie, offset, length };
            prop_assert_eq!(Request::parse(&request.emit()), Ok(request));
        }

        #[test]
        fn options_survive_a_round_trip(option: u32, length: u32) {
            let header = OptionHeader { option, length };
            prop_assert_eq!(OptionHeader::parse(&header.emit()), Ok(header));
        }
    }
}
