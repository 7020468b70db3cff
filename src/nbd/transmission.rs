//! The server's half of the transmission phase, as a machine: requests in, commands and replies out.
//!
//! A room of its own because all judgement of requests (flags, range, alignment, limits) stands here, and all
//! book-keeping of what is under way; sockets and backends are the lane's.
//! Source: `proto.md: Transmission`, `Request types`, `Error values`, `Ordering of messages and writes`.
//! Read before changing: `lane.rs`, which drives this machine; `reply.rs`, for what leaves.
//!
//! ```text
//!           +--> Submit (no payload) ------------------------------+
//!  Header --+--> Payload --> handle_payload (all of it is here) ---+--> handle_completion --> Reply | Submit (next part)
//!           +--> Skip (a refused write's payload) --> Reply (refused)
//! ```
//!
//! Invariants:
//! 1. Payload never enters the machine: it says whose bytes come next and how many.
//! 2. A request that is refused is consumed to its last byte, so the next header is where it should be; one whose
//!    payload is beyond `SKIP_BYTES_MAX` closes the connection instead.
//! 3. At most `REQUESTS_MAX` requests and `IN_FLIGHT_BYTES_MAX` bytes are under way; beyond that the machine takes no
//!    header (`Step::Full`) and the socket is not read. One request alone always fits.
//! 4. An accepted request is answered once, and `FLUSH` only by the backend: it covers what was answered before.
//! 5. `WRITE_ZEROES` and `TRIM` are answered whether offered or not: a kernel device keeps its limits from an
//!    earlier connection and may send them. Zeroes the backend cannot make are written; a trim it cannot do is
//!    done, for it promises nothing. Only zeroes that must be fast are refused instead.
//! 6. What was not agreed on in the handshake is not there: structured replies, and with them `DF` and `BLOCK_STATUS`.

use bytes::BytesMut;

use crate::block::{ErrorKind, Extent, Geometry, Operation};

use super::wire::{self, REQUEST_BYTES, Request, command, command_flag};

pub use super::reply::Reply;

/// Requests under way on one connection: the kernel's queue depth for one socket (`drivers/block/nbd.c`: 128).
pub const REQUESTS_MAX: usize = 128;
/// The largest read or write: what the protocol's clients assume when they are not told (proto.md: Block size
/// constraints), and the kernel's hardware limit.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// Bytes under way on one connection, in buffers of ours: one largest request, or 32 of the usual 1 MiB.
pub const IN_FLIGHT_BYTES_MAX: u64 = 32 << 20;
/// A refused write's payload is read and thrown away up to here; chosen freely, twice the largest write.
pub const SKIP_BYTES_MAX: u32 = 64 << 20;
/// Zeroes written at a time for a backend that cannot make them; chosen freely, a good size of I/O.
pub const ZERO_FILL_BYTES: u32 = 256 << 10;

/// The number of the context `base:allocation`, the only one.
pub const BASE_ALLOCATION: u32 = 1;

/// What the handshake agreed on beyond the export itself. The kernel's device agreed on nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Replies with data and errors are chunks.
    pub structured_replies: bool,
    /// The client chose `base:allocation`: it may ask for the block status.
    pub base_allocation: bool,
}

/// The largest read or write for this device, a multiple of its block.
pub fn payload_bytes_max(geometry: &Geometry) -> u32 {
    let largest = geometry.request_bytes_max.min(PAYLOAD_BYTES_MAX);
    (largest - largest % geometry.block_bytes).max(geometry.block_bytes)
}

/// A rule that the client broke in a way that leaves no next header to find; the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// No request where one was due.
    #[error("not a request: {0}")]
    Magic(#[from] wire::BadMagic),
    /// A write too large to be read and thrown away.
    #[error("a write of {0} bytes")]
    WriteTooLarge(u32),
}

/// What the backend is to do; lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read into a buffer of `len` bytes.
    Read {
        /// First byte.
        offset: u64,
        /// Length.
        len: u32,
    },
    /// Write the payload.
    Write {
        /// First byte.
        offset: u64,
        /// Length.
        len: u32,
        /// Stable before the answer.
        fua: bool,
    },
    /// Write `len` zeroes, at most [`ZERO_FILL_BYTES`]; there is no payload.
    ZeroFill {
        /// First byte.
        offset: u64,
        /// Length.
        len: u32,
        /// Stable before the answer.
        fua: bool,
    },
    /// Make stable what was answered.
    Flush,
    /// The range is no longer needed.
    Trim {
        /// First byte.
        offset: u64,
        /// Length.
        len: u32,
    },
    /// The range shall read as zeroes.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Length.
        len: u32,
        /// Keep the range allocated.
        no_hole: bool,
        /// Only if that is faster than writing zeroes.
        fast: bool,
        /// Stable before the answer.
        fua: bool,
    },
    /// The range will soon be read.
    Cache {
        /// First byte.
        offset: u64,
        /// Length.
        len: u32,
    },
    /// Which parts of the range hold data.
    BlockStatus {
        /// First byte.
        offset: u64,
        /// Length.
        len: u32,
        /// The first extent is enough.
        one: bool,
    },
}

impl Command {
    /// The operation of a command that moves no data of its own, and where it begins.
    ///
    /// # Panics
    /// The command moves data: its buffer is the driver's to find.
    pub(super) fn without_data(self) -> (u64, Operation) {
        match self {
            Self::Read { .. } | Self::Write { .. } | Self::ZeroFill { .. } => {
                panic!("a command with data was taken for one without")
            }
            Self::Flush => (0, Operation::Flush),
            Self::Trim { offset, len } => (offset, Operation::Trim { len }),
            Self::WriteZeroes {
                offset,
                len,
                no_hole,
                fast,
                fua,
            } => {
                let operation = Operation::WriteZeroes {
                    len,
                    no_hole,
                    fast,
                    fua,
                };
                (offset, operation)
            }
            Self::Cache { offset, len } => (offset, Operation::Cache { len }),
            Self::BlockStatus { offset, len, one } => (offset, Operation::BlockStatus { len, one }),
        }
    }
}

/// A command under way, and the number under which its completion comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The number, below [`REQUESTS_MAX`].
    pub token: usize,
    /// What to do.
    pub command: Command,
}

/// What the driver does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes are needed.
    NeedInput,
    /// A header is here, but no request can be taken before another one has ended.
    Full,
    /// Give this to the backend.
    Submit(Accepted),
    /// A write whose payload is next in the stream: place it, then call [`Transmission::handle_payload`].
    Payload(Accepted),
    /// Send this.
    Reply(Reply),
    /// The client leaves: finish what is under way, then close.
    Disconnect,
}

/// What follows from a completion.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send this.
    Reply(Reply),
    /// The request has another part.
    Submit(Accepted),
}

/// The machine.
#[derive(Debug)]
pub struct Transmission {
    limits: Limits,
    agreed: Agreed,
    state: State,
    stopped: bool,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    in_flight_bytes: u64,
}

/// What the device allows.
#[derive(Clone, Copy, Debug)]
struct Limits {
    size_bytes: u64,
    block_bytes: u32,
    payload_bytes_max: u32,
    read_only: bool,
    write_cache: bool,
    can_trim: bool,
    can_write_zeroes: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    /// The driver places the payload of this token.
    Payload(Accepted),
    /// Bytes of a refused write, and what is said after them.
    Skip {
        missing: u32,
        cookie: u64,
        refusal: Refusal,
    },
    Disconnected,
}

/// Why a request is not done.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    kind: ErrorKind,
    why: &'static str,
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
struct Slot {
    cookie: u64,
    offset: u64,
    payload_bytes: u32,
    part: Part,
}

/// What is left of a request after the part that the backend has.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// Nothing.
    Last,
    /// Nothing; the data must have this length.
    Read { bytes: u32 },
    /// Nothing; the extents must lie in this length.
    Status { bytes: u32 },
    /// More zeroes to write.
    Zeroes { offset: u64, len: u32, fua: bool },
    /// A flush, because the backend's trim knows no FUA.
    Flush,
}

impl Transmission {
    /// A connection whose handshake is over.
    pub fn new(geometry: &Geometry, agreed: Agreed) -> Self {
        Self {
            limits: Limits {
                size_bytes: geometry.size_bytes,
                block_bytes: geometry.block_bytes,
                payload_bytes_max: payload_bytes_max(geometry),
                read_only: geometry.read_only,
                write_cache: geometry.write_cache,
                can_trim: geometry.can_trim,
                can_write_zeroes: geometry.can_write_zeroes,
            },
            agreed,
            state: State::Header,
            stopped: false,
            slots: vec![None; REQUESTS_MAX],
            free: (0..REQUESTS_MAX).rev().collect(),
            in_flight_bytes: 0,
        }
    }

    /// Takes what the client sent; says how many bytes were used up, and what is to be done.
    ///
    /// Bytes that were not used up are given again, with more behind them. While a payload is due
    /// ([`Step::Payload`]) the bytes are the driver's to place, and this must not be called.
    ///
    /// # Errors
    /// The client broke a rule: close the connection.
    ///
    /// # Panics
    /// A payload is due (a bug of the driver).
    pub fn handle_input(&mut self, input: &[u8]) -> Result<(usize, Step), Violation> {
        match self.state {
            State::Header => {}
            State::Skip { .. } => return Ok(self.skip(input)),
            State::Disconnected => return Ok((input.len(), Step::Disconnect)),
            State::Payload(_) => panic!("the payload that is due was given as a header"),
        }
        let Some((header, _)) = input.split_first_chunk::<REQUEST_BYTES>() else {
            return Ok((0, Step::NeedInput));
        };
        let request = Request::parse(header)?;
        if !self.has_room(&request) {
            return Ok((0, Step::Full));
        }
        let step = self.handle_request(&request)?;
        if let State::Skip { .. } = self.state {
            let (skipped, step) = self.skip(&input[REQUEST_BYTES..]);
            return Ok((REQUEST_BYTES + skipped, step));
        }
        Ok((REQUEST_BYTES, step))
    }

    /// The payload that was due is in place; the command to submit.
    ///
    /// # Panics
    /// None was due (a bug of the driver).
    pub fn handle_payload(&mut self) -> Accepted {
        let State::Payload(accepted) = self.state else {
            panic!("no payload was due")
        };
        self.state = State::Header;
        accepted
    }

    /// The client is gone in the middle of a payload: the write was never complete, and is forgotten.
    pub fn abandon_payload(&mut self) {
        if let State::Payload(accepted) = self.state {
            self.state = State::Disconnected;
            let slot = self.release(accepted.token);
            self.release_bytes(slot.payload_bytes);
        }
    }

    /// The stream has ended and another one takes its place: what was not whole is forgotten, what is under way stays.
    pub fn begin_anew(&mut self) {
        if let State::Payload(accepted) = self.state {
            let slot = self.release(accepted.token);
            self.release_bytes(slot.payload_bytes);
        }
        self.state = State::Header;
    }

    /// The backend completed a command, with what [`crate::block::Completion`] carries.
    ///
    /// A read's bytes stay counted until [`Self::handle_sent`].
    ///
    /// # Panics
    /// The token is not under way (a bug of the backend).
    pub fn handle_completion(&mut self, token: usize, result: Result<BytesMut, ErrorKind>) -> Next {
        let slot = self.slots[token].expect("the backend completes what it was given, once");
        let data = match result {
            Ok(data) => data,
            Err(kind) => return self.fail(token, kind),
        };
        let has_length = |bytes: u32| u32::try_from(data.len()) == Ok(bytes);
        let structured = self.agreed.structured_replies;
        let Slot { cookie, offset, .. } = slot;
        match slot.part {
            Part::Zeroes { offset, len, fua } => {
                Next::Submit(self.zero_fill(token, offset, len, fua))
            }
            Part::Flush => {
                self.set_part(token, Part::Last);
                Next::Submit(Accepted {
                    token,
                    command: Command::Flush,
                })
            }
            Part::Read { bytes } if has_length(bytes) => {
                self.release(token);
                Next::Reply(if structured {
                    Reply::offset_data(cookie, offset, data)
                } else {
                    Reply::data(cookie, data)
                })
            }
            Part::Status { bytes } if self.are_extents_of(&data, bytes) => {
                self.release(token);
                Next::Reply(Reply::block_status(cookie, BASE_ALLOCATION, data))
            }
            // What was never asked for would shift the stream: better a failed request.
            Part::Last if data.is_empty() => {
                self.release(token);
                self.release_bytes(slot.payload_bytes);
                Next::Reply(Reply::simple(cookie, 0))
            }
            Part::Read { .. } | Part::Status { .. } | Part::Last => self.fail(token, ErrorKind::Io),
        }
    }

    /// A read's data are sent, or thrown away with the connection.
    ///
    /// # Panics
    /// More is released than was taken (a bug of the driver).
    pub fn handle_sent(&mut self, bytes: usize) {
        self.release_bytes(u32::try_from(bytes).expect("a read is limited to PAYLOAD_BYTES_MAX"));
    }

    /// The device has grown: from now on requests up to there are accepted. One that has shrunk keeps its size.
    pub fn grow(&mut self, size_bytes: u64) {
        self.limits.size_bytes = self.limits.size_bytes.max(size_bytes);
    }

    /// From now on requests are refused with `ESHUTDOWN`.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// How many requests are under way.
    pub fn in_flight(&self) -> usize {
        REQUESTS_MAX - self.free.len()
    }

    fn has_room(&self, request: &Request) -> bool {
        let bytes = match request.command {
            command::READ | command::WRITE => request.length.min(self.limits.payload_bytes_max),
            _ => 0,
        };
        !self.free.is_empty()
            && (self.in_flight_bytes == 0
                || self.in_flight_bytes + u64::from(bytes) <= IN_FLIGHT_BYTES_MAX)
    }

    fn handle_request(&mut self, request: &Request) -> Result<Step, Violation> {
        if request.command == command::DISC {
            self.state = State::Disconnected;
            return Ok(Step::Disconnect);
        }
        if let Err(refusal) = self.judge(request) {
            if request.command != command::WRITE || request.length == 0 {
                return Ok(Step::Reply(self.refused(request.cookie, refusal)));
            }
            if request.length > SKIP_BYTES_MAX {
                return Err(Violation::WriteTooLarge(request.length));
            }
            // Not before the payload: libnbd knows no cookie of a request that it is still sending.
            self.state = State::Skip {
                missing: request.length,
                cookie: request.cookie,
                refusal,
            };
            return Ok(Step::NeedInput);
        }
        Ok(self.accept(request))
    }

    /// Throws a refused payload away, as far as it is here.
    fn skip(&mut self, input: &[u8]) -> (usize, Step) {
        let State::Skip {
            missing,
            cookie,
            refusal,
        } = &mut self.state
        else {
            unreachable!("called in this state only");
        };
        let take = u32::try_from(input.len()).unwrap_or(u32::MAX).min(*missing);
        let used = usize::try_from(take).expect("not more than the input's length");
        *missing -= take;
        if *missing > 0 {
            return (used, Step::NeedInput);
        }
        let (cookie, refusal) = (*cookie, *refusal);
        self.state = State::Header;
        (used, Step::Reply(self.refused(cookie, refusal)))
    }

    /// The one place where a request is judged; the first rule that fails names the error.
    fn judge(&self, request: &Request) -> Result<(), Refusal> {
        let refused = |kind, why| Err(Refusal { kind, why });
        let invalid = |why| refused(ErrorKind::Invalid, why);
        let limits = &self.limits;
        let Some(mut known) = self.flags_of(request.command) else {
            // proto.md: an unknown command is EINVAL.
            return invalid("the command is not known, or was not agreed on");
        };
        if self.stopped {
            return refused(ErrorKind::Shutdown, "the server is shutting down");
        }
        // proto.md: Command flags. FUA is legal on any command once it was offered.
        if !limits.read_only {
            known |= command_flag::FUA;
        }
        if request.flags & !known != 0 {
            return invalid("a flag that is not known for this command");
        }
        // proto.md: EPERM for a write to a read-only export.
        let is_write = matches!(
            request.command,
            command::WRITE | command::TRIM | command::WRITE_ZEROES
        );
        if is_write && limits.read_only {
            return refused(ErrorKind::ReadOnly, "the export is read-only");
        }
        if request.command == command::FLUSH {
            // proto.md: NBD_CMD_FLUSH, offset and length are zero.
            let zero = request.offset == 0 && request.length == 0;
            return if zero {
                Ok(())
            } else {
                invalid("a flush has no offset and no length")
            };
        }
        self.judge_range(request)?;
        let fast = request.flags & command_flag::FAST_ZERO != 0;
        if fast && !limits.can_write_zeroes {
            return refused(ErrorKind::NotFast, "zeroes would be written one by one");
        }
        Ok(())
    }

    /// The flags of a command besides FUA; none if it is not known here.
    fn flags_of(&self, command: u16) -> Option<u16> {
        match command {
            command::READ if self.agreed.structured_replies => Some(command_flag::DF),
            command::READ | command::WRITE | command::FLUSH | command::TRIM | command::CACHE => {
                Some(0)
            }
            command::WRITE_ZEROES => Some(command_flag::NO_HOLE | command_flag::FAST_ZERO),
            // proto.md: NBD_CMD_BLOCK_STATUS, only after a context was chosen.
            command::BLOCK_STATUS if self.agreed.base_allocation => Some(command_flag::REQ_ONE),
            _ => None,
        }
    }

    fn judge_range(&self, request: &Request) -> Result<(), Refusal> {
        let invalid = |why| {
            let kind = ErrorKind::Invalid;
            Err(Refusal { kind, why })
        };
        let limits = &self.limits;
        let end = request.offset.checked_add(u64::from(request.length));
        if end.is_none_or(|end| end > limits.size_bytes) {
            // proto.md: ENOSPC where data would land past the end, EINVAL for READ and TRIM.
            let kind = match request.command {
                command::WRITE | command::WRITE_ZEROES => ErrorKind::NoSpace,
                _ => ErrorKind::OutOfRange,
            };
            let why = "past the end of the export";
            return Err(Refusal { kind, why });
        }
        let block = limits.block_bytes;
        if !request.offset.is_multiple_of(u64::from(block)) || !request.length.is_multiple_of(block)
        {
            return invalid("offset or length is no multiple of the smallest block");
        }
        let has_data = matches!(request.command, command::READ | command::WRITE);
        if has_data && request.length > limits.payload_bytes_max {
            return invalid("longer than the largest block");
        }
        if request.command == command::BLOCK_STATUS && request.length == 0 {
            return invalid("the status of no bytes");
        }
        Ok(())
    }

    fn refused(&self, cookie: u64, Refusal { kind, why }: Refusal) -> Reply {
        if self.agreed.structured_replies {
            Reply::error(cookie, kind.errno(), why, None)
        } else {
            Reply::simple(cookie, kind.errno())
        }
    }

    /// A request that was begun ends with an error.
    fn fail(&mut self, token: usize, kind: ErrorKind) -> Next {
        let slot = self.release(token);
        self.release_bytes(slot.payload_bytes);
        Next::Reply(if self.agreed.structured_replies {
            // Of a read no byte is told, so from its first on nothing can be relied on.
            let place = matches!(slot.part, Part::Read { .. }).then_some(slot.offset);
            Reply::error(slot.cookie, kind.errno(), &kind.to_string(), place)
        } else {
            Reply::simple(slot.cookie, kind.errno())
        })
    }

    /// What a client may rely on: at least one extent, none empty, none off the block, all within the request.
    fn are_extents_of(&self, packed: &[u8], bytes: u32) -> bool {
        let block = self.limits.block_bytes;
        let mut sum = 0_u64;
        let whole = packed.len().is_multiple_of(Extent::PACKED_BYTES);
        whole
            && Extent::unpack(packed).all(|extent| {
                sum += u64::from(extent.bytes);
                extent.bytes > 0 && extent.bytes.is_multiple_of(block)
            })
            && (1..=u64::from(bytes)).contains(&sum)
    }

    /// A legal request becomes a command, or is done at once.
    fn accept(&mut self, request: &Request) -> Step {
        let &Request {
            cookie,
            offset,
            length: len,
            ..
        } = request;
        let has = |flag: u16| request.flags & flag != 0;
        let fua = has(command_flag::FUA);
        // proto.md leaves requests of no length open; there is nothing to do, and nothing to fail.
        if len == 0 && request.command != command::FLUSH {
            let structured = self.agreed.structured_replies && request.command == command::READ;
            return Step::Reply(if structured {
                Reply::done(cookie)
            } else {
                Reply::simple(cookie, 0)
            });
        }
        let (payload_bytes, part, command) = match request.command {
            command::READ => (
                len,
                Part::Read { bytes: len },
                Command::Read { offset, len },
            ),
            command::WRITE => (len, Part::Last, Command::Write { offset, len, fua }),
            command::TRIM if !self.limits.can_trim => return Step::Reply(Reply::simple(cookie, 0)),
            command::TRIM if fua && self.limits.write_cache => {
                (0, Part::Flush, Command::Trim { offset, len })
            }
            command::TRIM => (0, Part::Last, Command::Trim { offset, len }),
            command::WRITE_ZEROES if self.limits.can_write_zeroes => {
                let command = Command::WriteZeroes {
                    offset,
                    len,
                    no_hole: has(command_flag::NO_HOLE),
                    fast: has(command_flag::FAST_ZERO),
                    fua,
                };
                (0, Part::Last, command)
            }
            command::WRITE_ZEROES => {
                let token = self.take(request, 0, Part::Last);
                return Step::Submit(self.zero_fill(token, offset, len, fua));
            }
            command::CACHE => (0, Part::Last, Command::Cache { offset, len }),
            command::BLOCK_STATUS => {
                let one = has(command_flag::REQ_ONE);
                let command = Command::BlockStatus { offset, len, one };
                (0, Part::Status { bytes: len }, command)
            }
            // Only FLUSH is left: everything else was judged unknown. Without a volatile cache what was answered
            // is stable already.
            _ if !self.limits.write_cache => return Step::Reply(Reply::simple(cookie, 0)),
            _ => (0, Part::Last, Command::Flush),
        };
        let token = self.take(request, payload_bytes, part);
        let accepted = Accepted { token, command };
        if request.command == command::WRITE {
            self.state = State::Payload(accepted);
            return Step::Payload(accepted);
        }
        Step::Submit(accepted)
    }

    /// The next stretch of zeroes; what is left after it is remembered.
    fn zero_fill(&mut self, token: usize, offset: u64, len: u32, fua: bool) -> Accepted {
        let now = len.min(ZERO_FILL_BYTES.max(self.limits.block_bytes));
        let rest = len - now;
        let part = if rest == 0 {
            Part::Last
        } else {
            Part::Zeroes {
                offset: offset + u64::from(now),
                len: rest,
                fua,
            }
        };
        self.set_part(token, part);
        Accepted {
            token,
            command: Command::ZeroFill {
                offset,
                len: now,
                fua,
            },
        }
    }

    fn take(&mut self, request: &Request, payload_bytes: u32, part: Part) -> usize {
        let token = self.free.pop().expect("has_room was asked before");
        self.slots[token] = Some(Slot {
            cookie: request.cookie,
            offset: request.offset,
            payload_bytes,
            part,
        });
        self.in_flight_bytes += u64::from(payload_bytes);
        token
    }

    fn set_part(&mut self, token: usize, part: Part) {
        self.slots[token].as_mut().expect("the slot was taken").part = part;
    }

    fn release(&mut self, token: usize) -> Slot {
        self.free.push(token);
        self.slots[token].take().expect("a slot is released once")
    }

    fn release_bytes(&mut self, bytes: u32) {
        let left = self.in_flight_bytes.checked_sub(u64::from(bytes));
        self.in_flight_bytes = left.expect("bytes are released as often as they were taken");
    }
}

#[cfg(test)]
mod tests;
