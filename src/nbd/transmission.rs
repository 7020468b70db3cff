//! The server's half of the transmission phase, as a machine: requests in, commands and replies out.
//!
//! A room of its own because all judgement of requests (flags, range, alignment, limits) stands here, and all
//! book-keeping of what is under way; sockets and backends are the lane's.
//! Source: `proto.md: Transmission`, `Request types`, `Error values`, `Ordering of messages and writes`.
//! Read before changing: `lane.rs`, which drives this machine.
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
//!    done, for it promises nothing.

use crate::block::{ErrorKind, Geometry};

use super::wire::{self, REQUEST_BYTES, Request, SIMPLE_REPLY_BYTES, command, command_flag};

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
        /// Stable before the answer.
        fua: bool,
    },
}

/// A command under way, and the number under which its completion comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The number, below [`REQUESTS_MAX`].
    pub token: usize,
    /// What to do.
    pub command: Command,
}

/// A simple reply, ready to be sent.
pub type Reply = [u8; SIMPLE_REPLY_BYTES];

/// What the driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send this; a successful read's data follow it.
    Reply(Reply),
    /// The request has another part.
    Submit(Accepted),
}

/// The machine.
#[derive(Debug)]
pub struct Transmission {
    limits: Limits,
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
        reply: Reply,
    },
    Disconnected,
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
struct Slot {
    cookie: u64,
    payload_bytes: u32,
    part: Part,
}

/// What is left of a request after the part that the backend has.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// Nothing; and a read's data must have this length.
    Last { read_bytes: u32 },
    /// More zeroes to write.
    Zeroes { offset: u64, len: u32, fua: bool },
    /// A flush, because the backend's trim knows no FUA.
    Flush,
}

impl Transmission {
    /// A connection whose handshake is over.
    pub fn new(geometry: &Geometry) -> Self {
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
            State::Skip { missing, reply } => return Ok(self.skip(missing, reply, input)),
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
        if let State::Skip { missing, reply } = self.state {
            let (skipped, step) = self.skip(missing, reply, &input[REQUEST_BYTES..]);
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

    /// The backend completed a command; for a read `Ok` carries the length of its data.
    ///
    /// A read's bytes stay counted until [`Self::handle_sent`].
    ///
    /// # Panics
    /// The token is not under way (a bug of the backend).
    pub fn handle_completion(&mut self, token: usize, result: Result<usize, ErrorKind>) -> Next {
        let slot = self.slots[token].expect("the backend completes what it was given, once");
        let error = match (result, slot.part) {
            (Ok(_), Part::Zeroes { offset, len, fua }) => {
                return Next::Submit(self.zero_fill(token, offset, len, fua));
            }
            (Ok(_), Part::Flush) => {
                self.set_part(token, Part::Last { read_bytes: 0 });
                return Next::Submit(Accepted {
                    token,
                    command: Command::Flush,
                });
            }
            (Ok(bytes), Part::Last { read_bytes }) => {
                // Data of the wrong length, or after a write, would shift the stream: better a failed request.
                let whole = u32::try_from(bytes) == Ok(read_bytes);
                if whole { 0 } else { ErrorKind::Io.errno() }
            }
            (Err(kind), Part::Last { .. } | Part::Zeroes { .. } | Part::Flush) => kind.errno(),
        };
        self.release(token);
        let Part::Last { read_bytes } = slot.part else {
            return Next::Reply(wire::simple_reply(slot.cookie, error));
        };
        if error != 0 || read_bytes == 0 {
            self.release_bytes(slot.payload_bytes);
        }
        Next::Reply(wire::simple_reply(slot.cookie, error))
    }

    /// A read's data are sent, or thrown away with the connection.
    ///
    /// # Panics
    /// More is released than was taken (a bug of the driver).
    pub fn handle_sent(&mut self, bytes: usize) {
        self.release_bytes(u32::try_from(bytes).expect("a read is limited to PAYLOAD_BYTES_MAX"));
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
        if let Err(kind) = self.judge(request) {
            let reply = wire::simple_reply(request.cookie, kind.errno());
            if request.command != command::WRITE || request.length == 0 {
                return Ok(Step::Reply(reply));
            }
            if request.length > SKIP_BYTES_MAX {
                return Err(Violation::WriteTooLarge(request.length));
            }
            // Not before the payload: libnbd knows no cookie of a request that it is still sending.
            self.state = State::Skip {
                missing: request.length,
                reply,
            };
            return Ok(Step::NeedInput);
        }
        Ok(self.accept(request))
    }

    /// Throws a refused payload away, as far as it is here.
    fn skip(&mut self, missing: u32, reply: Reply, input: &[u8]) -> (usize, Step) {
        let take = u32::try_from(input.len()).unwrap_or(u32::MAX).min(missing);
        let used = usize::try_from(take).expect("not more than the input's length");
        if take < missing {
            self.state = State::Skip {
                missing: missing - take,
                reply,
            };
            return (used, Step::NeedInput);
        }
        self.state = State::Header;
        (used, Step::Reply(reply))
    }

    /// The one place where a request is judged; the first rule that fails names the error.
    fn judge(&self, request: &Request) -> Result<(), ErrorKind> {
        let limits = &self.limits;
        let writes = match request.command {
            command::READ | command::FLUSH => false,
            command::WRITE | command::TRIM | command::WRITE_ZEROES => true,
            // proto.md: an unknown command is EINVAL.
            _ => return Err(ErrorKind::Invalid),
        };
        if self.stopped {
            return Err(ErrorKind::Shutdown);
        }
        // proto.md: Command flags. FUA is legal on any command once it was offered; NO_HOLE on WRITE_ZEROES.
        let mut known = if limits.read_only {
            0
        } else {
            command_flag::FUA
        };
        if request.command == command::WRITE_ZEROES {
            known |= command_flag::NO_HOLE;
        }
        if request.flags & !known != 0 {
            return Err(ErrorKind::Invalid);
        }
        // proto.md: EPERM for a write to a read-only export.
        if writes && limits.read_only {
            return Err(ErrorKind::ReadOnly);
        }
        if request.command == command::FLUSH {
            // proto.md: NBD_CMD_FLUSH, offset and length are zero.
            let zero = request.offset == 0 && request.length == 0;
            return if zero {
                Ok(())
            } else {
                Err(ErrorKind::Invalid)
            };
        }
        let end = request.offset.checked_add(u64::from(request.length));
        if end.is_none_or(|end| end > limits.size_bytes) {
            // proto.md: ENOSPC where data would land past the end, EINVAL for READ and TRIM.
            return Err(match request.command {
                command::WRITE | command::WRITE_ZEROES => ErrorKind::NoSpace,
                _ => ErrorKind::OutOfRange,
            });
        }
        let block = limits.block_bytes;
        if !request.offset.is_multiple_of(u64::from(block)) || !request.length.is_multiple_of(block)
        {
            return Err(ErrorKind::Invalid);
        }
        let has_data = matches!(request.command, command::READ | command::WRITE);
        if has_data && request.length > limits.payload_bytes_max {
            return Err(ErrorKind::Invalid);
        }
        Ok(())
    }

    /// A legal request becomes a command, or is done at once.
    fn accept(&mut self, request: &Request) -> Step {
        let &Request {
            cookie,
            offset,
            length: len,
            ..
        } = request;
        let fua = request.flags & command_flag::FUA != 0;
        let last = Part::Last { read_bytes: 0 };
        let done = Step::Reply(wire::simple_reply(cookie, 0));
        // proto.md leaves requests of no length open; there is nothing to do, and nothing to fail.
        if len == 0 && request.command != command::FLUSH {
            return done;
        }
        match request.command {
            command::READ => {
                let token = self.take(cookie, len, Part::Last { read_bytes: len });
                Step::Submit(Accepted {
                    token,
                    command: Command::Read { offset, len },
                })
            }
            command::WRITE => {
                let token = self.take(cookie, len, last);
                let accepted = Accepted {
                    token,
                    command: Command::Write { offset, len, fua },
                };
                self.state = State::Payload(accepted);
                Step::Payload(accepted)
            }
            command::TRIM if !self.limits.can_trim => done,
            command::TRIM => {
                let flush = fua && self.limits.write_cache;
                let token = self.take(cookie, 0, if flush { Part::Flush } else { last });
                Step::Submit(Accepted {
                    token,
                    command: Command::Trim { offset, len },
                })
            }
            command::WRITE_ZEROES if self.limits.can_write_zeroes => {
                let no_hole = request.flags & command_flag::NO_HOLE != 0;
                let token = self.take(cookie, 0, last);
                let command = Command::WriteZeroes {
                    offset,
                    len,
                    no_hole,
                    fua,
                };
                Step::Submit(Accepted { token, command })
            }
            command::WRITE_ZEROES => {
                let token = self.take(cookie, 0, last);
                Step::Submit(self.zero_fill(token, offset, len, fua))
            }
            // Only FLUSH is left: everything else was judged unknown. Without a volatile cache what was answered
            // is stable already.
            _ if !self.limits.write_cache => done,
            _ => {
                let token = self.take(cookie, 0, last);
                Step::Submit(Accepted {
                    token,
                    command: Command::Flush,
                })
            }
        }
    }

    /// The next stretch of zeroes; what is left after it is remembered.
    fn zero_fill(&mut self, token: usize, offset: u64, len: u32, fua: bool) -> Accepted {
        let now = len.min(ZERO_FILL_BYTES.max(self.limits.block_bytes));
        let rest = len - now;
        let part = if rest == 0 {
            Part::Last { read_bytes: 0 }
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

    fn take(&mut self, cookie: u64, payload_bytes: u32, part: Part) -> usize {
        let token = self.free.pop().expect("has_room was asked before");
        self.slots[token] = Some(Slot {
            cookie,
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
