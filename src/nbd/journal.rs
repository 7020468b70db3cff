//! The journal of one link to the kernel's driver: what was received, what is under way and what is being answered,
//! in memory that outlives the process.
//!
//! A room of its own because here stands what may be believed after a death at any instruction; the link that keeps it
//! (`link.rs`) and the one that takes it over see a queue of bytes and requests that are left.
//! Read before changing: `sys/memory.rs`; `link.rs`; ARCHITECTURE.md: Restart without loss.
//!
//! ```text
//!  words:  head | read under way | slots (one request each)       arena:  input | payloads of writes
//!
//!  stream   ............ parsed ............ received .......       positions since the first byte of the first link
//!              slots         |     input        |   in the socket
//! ```
//!
//! Invariants (a process may end between any two stores):
//! 1. `parsed` and `received` are positions in the stream; each is one word, and what depends on them is derived. A
//!    request is accepted by storing its slot first and `parsed` then: a slot whose request begins at `parsed` or later
//!    does not count. A write whose payload ends beyond `parsed` is the one that is being received; beyond `received`
//!    only as far as that.
//! 2. Before bytes are read, the place and number of the read are stored, and a *nonce* is written where the last of
//!    the bytes will come. A read takes exactly as many bytes as are known to be there, which the system call does
//!    wholly or not at all: so after a death the nonce says whether they came. (It is 64 bits of a keyed hash; a payload
//!    that happens to end in it costs a request its time, once in 2^64. A read of less than eight bytes has a shorter
//!    one; the kernel sends headers of 28 bytes and payloads of 512 and more, and the length of a read is chosen so
//!    that no short rest stays behind.)
//! 3. A slot is `SENDING` before the first byte of its answer can have left, in the order of `sequence`, and `FREE`
//!    only after the last has.
//! 4. Everything read from a predecessor's journal is checked before it is used: it may be of another version, or
//!    anything.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::sys::memory::{self, Arena, Block, Layout, Words};

use super::transmission::REQUESTS_MAX;
use super::wire::{REQUEST_BYTES, Request, command};

/// Bytes read ahead of parsing: 2,300 requests without payload, or fifteen writes of 4 KiB.
pub(super) const INPUT_BYTES: usize = 64 << 10;
/// Room for all that can lie in a socket whose link has ended (its buffer of 4 MiB counts half, see `sys/socket.rs`),
/// behind what was read ahead. It is address space until it is used.
const INPUT_AREA_BYTES: usize = (12 << 20) + INPUT_BYTES;
/// Address space for payloads: twice what may be under way, so that gaps between blocks rarely matter.
const PAYLOAD_AREA_BYTES: usize = 64 << 20;
/// Memory that a journal keeps when it is idle: the input, and payloads for the kernel's largest request and a set of
/// small ones.
const KEPT_BYTES: usize = INPUT_AREA_BYTES + (1 << 20) + (256 << 10);
/// Requests that may be under way, waiting to be answered, or both.
pub(super) const SLOTS: usize = 4 * REQUESTS_MAX;

/// "nbdjrnl" and the version of the layout; another version is not read.
const MAGIC: u64 = 0x6e62_646a_726e_6c01;

/// Words of the head.
mod head {
    pub(super) const MAGIC: usize = 0;
    pub(super) const RECEIVED: usize = 1;
    pub(super) const PARSED: usize = 2;
    /// The position of the input's first byte.
    pub(super) const ORIGIN: usize = 3;
    /// Up to here a refused payload is thrown away.
    pub(super) const SKIP_UNTIL: usize = 4;
    /// The read under way: `RECEIVED` before it (any other value: none), its bytes, the nonce, its place and length.
    pub(super) const READ_AT: usize = 5;
    pub(super) const READ_BYTES: usize = 6;
    pub(super) const NONCE: usize = 7;
    pub(super) const NONCE_PLACE: usize = 8;
    pub(super) const NONCE_BYTES: usize = 9;
    /// Not zero: the link's socket was shut down by us, and another one has not taken its place.
    pub(super) const ENDING: usize = 10;
    /// When the last bytes were received.
    pub(super) const RECEIVED_S: usize = 11;
    pub(super) const WORDS: usize = 16;
}

/// Words of a slot.
mod slot {
    pub(super) const STATE: usize = 0;
    pub(super) const SEQUENCE: usize = 1;
    pub(super) const COOKIE: usize = 2;
    /// Command, flags << 16, length << 32.
    pub(super) const REQUEST: usize = 3;
    pub(super) const OFFSET: usize = 4;
    /// Position of the header.
    pub(super) const AT: usize = 5;
    /// Offset of the payload's block in the arena.
    pub(super) const PLACE: usize = 6;
    /// Seconds of the monotonic clock at which it was received.
    pub(super) const SINCE: usize = 7;
    pub(super) const WORDS: usize = 8;
}

/// States of a slot, in its lowest byte; the errno of its answer is above them.
mod state {
    pub(super) const FREE: u64 = 0;
    /// Not answered; its outcome is unknown.
    pub(super) const TAKEN: u64 = 1;
    /// Its outcome is known.
    pub(super) const DONE: u64 = 2;
    /// Its answer has left, or not, or in part.
    pub(super) const SENDING: u64 = 3;
    /// The same, and it may have left a second time, alone.
    pub(super) const AGAIN: u64 = 4;
}

const LAYOUT: Layout = Layout {
    words: head::WORDS + SLOTS * slot::WORDS,
    arena_bytes: INPUT_AREA_BYTES + PAYLOAD_AREA_BYTES,
};

/// Why a predecessor's journal is not used; its requests come back by the kernel's timer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("{0}")]
    Memory(#[from] io::Error),
    #[error("it is of another version, or no journal")]
    Version,
    #[error("{0} make no sense")]
    Nonsense(&'static str),
}

/// How far a request got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// A write whose payload is here up to this length.
    Receiving { filled: usize },
    /// Not done, or it may have been.
    Taken,
    /// Done, with this errno.
    Done { errno: u32 },
    /// Done, and perhaps answered; answers left in order of `sequence`. `again`: perhaps twice.
    Sending {
        errno: u32,
        sequence: u64,
        again: bool,
    },
}

/// A request that a predecessor left.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) slot: usize,
    pub(super) request: Request,
    pub(super) progress: Progress,
    /// Position of its header: requests came in this order.
    pub(super) at: u64,
    /// When it was received, see [`now_s`].
    pub(super) since_s: u64,
    pub(super) payload: Option<Block>,
}

/// The journal.
#[derive(Debug)]
pub(super) struct Journal {
    words: Words,
    arena: Arena,
    input: Block,
    received: u64,
    parsed: u64,
    origin: u64,
    free: Vec<usize>,
    sequence: u64,
    nonces: RandomState,
    nonce_count: u64,
    now_s: u64,
    shrunk_s: u64,
}

impl Journal {
    /// An empty journal.
    ///
    /// # Errors
    /// No descriptor or address space left.
    pub(super) fn create() -> io::Result<Self> {
        let (words, mut arena) = memory::create("cinder-nbd-journal", LAYOUT)?;
        let input = arena
            .take(INPUT_AREA_BYTES)
            .expect("an empty arena has room for the input");
        let mut journal = Self::over(words, arena, input);
        // What the usual load needs is there before the first request: under memory pressure it might not come.
        journal.input.bytes_mut()[..INPUT_BYTES].fill(0);
        if let Some(mut payloads) = journal.arena.take(KEPT_BYTES - INPUT_AREA_BYTES) {
            payloads.bytes_mut().fill(0);
            journal.arena.put(payloads);
        }
        journal.words.set(head::READ_AT, u64::MAX);
        journal.words.set(head::MAGIC, MAGIC);
        Ok(journal)
    }

    /// What a predecessor left: the journal, and the requests in it, in no order.
    ///
    /// # Errors
    /// It is not one that this version understands, or contradicts itself.
    pub(super) fn open(file: OwnedFd) -> Result<(Self, Vec<Left>), Unusable> {
        let (words, mut arena) = memory::open(file, LAYOUT)?;
        if words.get(head::MAGIC) != MAGIC {
            return Err(Unusable::Version);
        }
        let input = arena
            .take_at(0, INPUT_AREA_BYTES)
            .ok_or(Unusable::Nonsense("its places"))?;
        let mut journal = Self::over(words, arena, input);
        journal.recover_positions()?;
        let left = journal.recover_slots()?;
        Ok((journal, left))
    }

    fn over(words: Words, arena: Arena, input: Block) -> Self {
        let received = words.get(head::RECEIVED);
        let parsed = words.get(head::PARSED);
        let origin = words.get(head::ORIGIN);
        let now_s = now_s();
        Self {
            words,
            arena,
            input,
            received,
            parsed,
            origin,
            free: (0..SLOTS).rev().collect(),
            sequence: 0,
            nonces: RandomState::new(),
            nonce_count: 0,
            now_s,
            shrunk_s: now_s,
        }
    }

    /// The memory, to be kept for a successor.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.words.file()
    }

    /// Bytes that are received and not yet parsed.
    pub(super) fn unparsed(&self) -> &[u8] {
        let begin = self.index(self.parsed);
        let end = self.index(self.received).max(begin);
        &self.input.bytes()[begin..end]
    }

    /// The position of the next byte to parse.
    pub(super) fn position(&self) -> u64 {
        self.parsed
    }

    /// So many bytes of the input are dealt with: what their slots say now counts.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.parsed += wide(bytes);
        debug_assert!(
            self.parsed <= self.received,
            "no more is used than there was"
        );
        self.words.set(head::PARSED, self.parsed);
    }

    /// Where in the input the next bytes go that follow `missing` ones of a payload, and how many may.
    fn input_room(&mut self, missing: usize, drain: bool) -> (usize, usize) {
        // With a payload due all of the input is parsed: what follows the payload begins it anew.
        if missing > 0 {
            self.set_origin(self.parsed + wide(missing));
        } else {
            self.compact();
        }
        let end = self.index(self.received.max(self.origin));
        let begin = self.index(self.parsed.max(self.origin));
        let limit = if drain {
            INPUT_AREA_BYTES
        } else {
            (begin + INPUT_BYTES).min(INPUT_AREA_BYTES)
        };
        (end, limit.saturating_sub(end))
    }

    /// Reads up to `available` bytes, which must be there: the rest of a payload to its place, what follows it into the
    /// input. `read` is given the parts and makes one system call. `drain`: the link has ended, everything is taken in.
    ///
    /// Gives the number of bytes that came for `payload`.
    ///
    /// # Errors
    /// `read`'s own.
    pub(super) fn receive<R>(
        &mut self,
        payload: Option<(&mut Block, usize)>,
        available: usize,
        drain: bool,
        read: R,
    ) -> io::Result<Received>
    where
        R: FnOnce(&mut [io::IoSliceMut<'_>; 2]) -> io::Result<usize>,
    {
        self.now_s = now_s();
        self.words.set(head::RECEIVED_S, self.now_s);
        let missing = payload
            .as_ref()
            .map_or(0, |(block, filled)| block.len() - filled);
        let (end, room) = self.input_room(missing, drain);
        let bytes = read_length(available, missing, room);
        if bytes == 0 {
            return Ok(Received {
                payload: 0,
                input: 0,
            });
        }
        let (to_payload, to_input) = (bytes.min(missing), bytes.saturating_sub(missing));

        self.nonce_count += 1;
        let nonce = self.nonces.hash_one(self.nonce_count).to_le_bytes();
        let input = &mut self.input.bytes_mut()[end..end + to_input];
        let (place, part) = match payload {
            Some((block, filled)) => {
                let place = if to_input > 0 {
                    end
                } else {
                    block.offset() + filled
                };
                (place, &mut block.bytes_mut()[filled..filled + to_payload])
            }
            None => (end, &mut [][..]),
        };
        let last = if to_input > 0 {
            &mut *input
        } else {
            &mut *part
        };
        let marked = last.len().min(nonce.len());
        let mark = last.len() - marked;
        last[mark..].copy_from_slice(&nonce[..marked]);
        self.words.set(head::READ_BYTES, wide(bytes));
        self.words.set(head::NONCE, u64::from_le_bytes(nonce));
        self.words.set(head::NONCE_PLACE, wide(place + mark));
        self.words.set(head::NONCE_BYTES, wide(marked));
        self.words.set(head::READ_AT, self.received);
        let mut parts = [io::IoSliceMut::new(part), io::IoSliceMut::new(input)];
        let outcome = read(&mut parts);
        let got = match outcome {
            Ok(got) => got,
            Err(error) => {
                self.words.set(head::READ_AT, u64::MAX);
                return Err(error);
            }
        };
        self.received += wide(got);
        self.words.set(head::RECEIVED, self.received);
        let to_payload = got.min(missing);
        if to_payload > 0 {
            self.parsed += wide(to_payload);
            self.words.set(head::PARSED, self.parsed);
        }
        Ok(Received {
            payload: to_payload,
            input: got - to_payload,
        })
    }

    /// A block for a write's payload; `None` until another one has ended.
    pub(super) fn payload(&mut self, length: usize) -> Option<Block> {
        self.arena.take(length)
    }

    /// Takes a payload's block back.
    pub(super) fn put_payload(&mut self, block: Block) {
        self.arena.put(block);
    }

    /// Whether another request can be written down.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Writes a request down whose header is next in the input; it counts once [`Self::consume`] has gone beyond that.
    ///
    /// # Panics
    /// There is no room (a bug: [`Self::has_room`] was to be asked).
    pub(super) fn begin(&mut self, request: &Request, at: u64, payload: Option<&Block>) -> usize {
        let number = self.free.pop().expect("has_room was asked before");
        let place = payload.map_or(0, Block::offset);
        let packed = u64::from(request.command)
            | u64::from(request.flags) << 16
            | u64::from(request.length) << 32;
        for (word, value) in [
            (slot::COOKIE, request.cookie),
            (slot::REQUEST, packed),
            (slot::OFFSET, request.offset),
            (slot::AT, at),
            (slot::PLACE, wide(place)),
            (slot::SINCE, self.now_s),
            (slot::STATE, state::TAKEN),
        ] {
            self.words.set(word_of(number, word), value);
        }
        number
    }

    /// The request's outcome is known, and is not to be had a second time: a write, a flush, a refusal.
    pub(super) fn done(&mut self, number: usize, errno: u32) {
        let word = word_of(number, slot::STATE);
        self.words.set(word, state::DONE | u64::from(errno) << 8);
    }

    /// From now on the answer may leave at any time.
    pub(super) fn sending(&mut self, number: usize, errno: u32) {
        self.sequence += 1;
        let sequence = word_of(number, slot::SEQUENCE);
        self.words.set(sequence, self.sequence);
        let word = word_of(number, slot::STATE);
        self.words.set(word, state::SENDING | u64::from(errno) << 8);
    }

    /// A doubtful answer leaves once more; it keeps its place in the order of those that left first.
    pub(super) fn again(&mut self, number: usize, errno: u32) {
        let word = word_of(number, slot::STATE);
        self.words.set(word, state::AGAIN | u64::from(errno) << 8);
    }

    /// The request is answered, or is not to be.
    pub(super) fn end(&mut self, number: usize) {
        self.words.set(word_of(number, slot::STATE), state::FREE);
        self.free.push(number);
    }

    /// A refused payload is thrown away up to this position.
    pub(super) fn skip_until(&mut self, position: u64) {
        self.words.set(head::SKIP_UNTIL, position);
    }

    /// Throws away what is here of a payload that a predecessor refused; whether there is more to come.
    pub(super) fn skip(&mut self) -> bool {
        let until = self.words.get(head::SKIP_UNTIL);
        if self.parsed >= until {
            return false;
        }
        self.parsed = until.min(self.received);
        self.words.set(head::PARSED, self.parsed);
        self.parsed < until
    }

    /// The link has ended, and everything that came over it is received: what is not whole was never sent whole, and
    /// the kernel sends it anew. `receiving`: the slot of the write whose payload is not here.
    pub(super) fn end_link(&mut self, receiving: Option<usize>) {
        if let Some(number) = receiving {
            self.end(number);
        }
        if self.skip() {
            self.words.set(head::SKIP_UNTIL, 0);
        }
        // First: `received` may go back to where a read began.
        self.words.set(head::READ_AT, u64::MAX);
        let whole = whole_requests(self.unparsed());
        self.received = self.parsed + wide(whole);
        self.words.set(head::RECEIVED, self.received);
        if whole == 0 {
            self.set_origin(self.parsed);
        }
    }

    /// We shut the link's socket down, or: another one has taken its place.
    pub(super) fn set_ending(&mut self, is_ending: bool) {
        self.words.set(head::ENDING, u64::from(is_ending));
    }

    /// When a predecessor received bytes last, see [`now_s`].
    pub(super) fn predecessor_received_s(&self) -> u64 {
        self.words.get(head::RECEIVED_S)
    }

    /// Whether a socket that has hung up did so because of us.
    pub(super) fn is_ending(&self) -> bool {
        self.words.get(head::ENDING) != 0
    }

    /// What is received and not parsed may be older than the kernel's patience: it is not begun.
    pub(super) fn drop_input(&mut self) {
        self.words.set(head::READ_AT, u64::MAX);
        self.received = self.parsed;
        self.words.set(head::RECEIVED, self.received);
    }

    /// When the last bytes came, see [`now_s`].
    pub(super) fn received_s(&self) -> u64 {
        self.now_s
    }

    /// Gives back memory that an unusual load took; to be called when nothing is under way.
    pub(super) fn shrink(&mut self) {
        // Once in a second: giving back and taking again costs more than keeping.
        if self.arena.high() > KEPT_BYTES && self.now_s > self.shrunk_s {
            self.shrunk_s = self.now_s;
            self.arena.shrink(KEPT_BYTES);
        }
    }

    /// The place of a position in the input.
    fn index(&self, position: u64) -> usize {
        narrow(position.saturating_sub(self.origin))
    }

    fn set_origin(&mut self, position: u64) {
        self.origin = position;
        self.words.set(head::ORIGIN, position);
    }

    /// Moves what is unparsed to the input's beginning, where the two do not overlap: a death in between leaves either
    /// what was, or the copy.
    fn compact(&mut self) {
        let (begin, end) = (self.index(self.parsed), self.index(self.received));
        if begin > 0 && end - begin <= begin {
            self.input.bytes_mut().copy_within(begin..end, 0);
            self.set_origin(self.parsed);
        }
    }

    /// Positions after a death: whether the read under way was done, and what follows.
    fn recover_positions(&mut self) -> Result<(), Unusable> {
        let words = &self.words;
        if words.get(head::READ_AT) == self.received {
            let place = usize::try_from(words.get(head::NONCE_PLACE));
            let length = usize::try_from(words.get(head::NONCE_BYTES));
            let bytes = words.get(head::READ_BYTES);
            let (Ok(place), Ok(length @ 1..=8)) = (place, length) else {
                return Err(Unusable::Nonsense("its last read"));
            };
            let nonce = words.get(head::NONCE).to_le_bytes();
            let found = self.bytes_at(place, length);
            let found = found.ok_or(Unusable::Nonsense("its last read"))?;
            if found != nonce[..length] {
                self.received = self
                    .received
                    .checked_add(bytes)
                    .ok_or(Unusable::Nonsense("its last read"))?;
                self.words.set(head::RECEIVED, self.received);
            }
        }
        self.words.set(head::READ_AT, u64::MAX);
        Ok(())
    }

    /// A copy of a few bytes anywhere in the arena.
    fn bytes_at(&mut self, place: usize, length: usize) -> Option<Vec<u8>> {
        let end = place.checked_add(length)?;
        if let Some(bytes) = self.input.bytes().get(place..end) {
            return Some(bytes.to_vec());
        }
        let page = place / 4096 * 4096;
        let block = self.arena.take_at(page, end - page)?;
        let bytes = block
            .bytes()
            .get(place - page..end - page)
            .map(<[u8]>::to_vec);
        self.arena.put(block);
        bytes
    }

    /// The requests that count.
    fn recover_slots(&mut self) -> Result<Vec<Left>, Unusable> {
        let mut left = Vec::new();
        let mut receiving = None;
        self.free.clear();
        for number in (0..SLOTS).rev() {
            let word = |word| self.words.get(word_of(number, word));
            let packed = word(slot::STATE);
            let at = word(slot::AT);
            if packed & 0xff == state::FREE || at >= self.parsed {
                self.words.set(word_of(number, slot::STATE), state::FREE);
                self.free.push(number);
                continue;
            }
            let errno = low_u32(packed >> 8);
            let request = word(slot::REQUEST);
            let request = Request {
                command: low_u16(request),
                flags: low_u16(request >> 16),
                length: low_u32(request >> 32),
                cookie: word(slot::COOKIE),
                offset: word(slot::OFFSET),
            };
            let (sequence, since_s) = (word(slot::SEQUENCE), word(slot::SINCE));
            let mut progress = match packed & 0xff {
                state::TAKEN => Progress::Taken,
                state::DONE => Progress::Done { errno },
                sending @ (state::SENDING | state::AGAIN) => Progress::Sending {
                    errno,
                    sequence,
                    again: sending == state::AGAIN,
                },
                _ => return Err(Unusable::Nonsense("its requests")),
            };
            self.sequence = self.sequence.max(sequence);
            let place = word(slot::PLACE);
            let mut payload = None;
            if progress == Progress::Taken && request.command == command::WRITE {
                let block = self.recover_payload(place, request.length);
                payload = Some(block.ok_or(Unusable::Nonsense("its payloads"))?);
                let end = at
                    .checked_add(wide(REQUEST_BYTES) + u64::from(request.length))
                    .ok_or(Unusable::Nonsense("its requests"))?;
                if end > self.parsed {
                    if receiving.replace((number, end)).is_some() {
                        return Err(Unusable::Nonsense("its requests"));
                    }
                    progress = Progress::Receiving { filled: 0 };
                }
            }
            left.push(Left {
                slot: number,
                request,
                progress,
                at,
                since_s,
                payload,
            });
        }
        if let Some((number, end)) = receiving {
            self.recover_receiving(&mut left, number, end);
        }
        if self.parsed == self.received {
            self.set_origin(self.parsed);
        }
        if self.has_sane_positions() {
            Ok(left)
        } else {
            Err(Unusable::Nonsense("its positions"))
        }
    }

    /// No link moves so many bytes: sums of positions and lengths stay far from the end of their numbers.
    fn has_sane_positions(&self) -> bool {
        self.received < 1 << 62
            && self.parsed <= self.received
            && self.origin <= self.parsed
            && self.received - self.origin <= wide(INPUT_AREA_BYTES)
    }

    fn recover_payload(&mut self, place: u64, length: u32) -> Option<Block> {
        let place = usize::try_from(place).ok()?;
        let length = usize::try_from(length).ok()?;
        self.arena.take_at(place, length)
    }

    /// The write whose payload was being received: what was read straight to its place counts as parsed.
    fn recover_receiving(&mut self, left: &mut [Left], number: usize, end: u64) {
        self.parsed = self.received.min(end).max(self.parsed);
        self.words.set(head::PARSED, self.parsed);
        for left in left.iter_mut().filter(|left| left.slot == number) {
            let missing = narrow(end - self.parsed);
            let length = left.payload.as_ref().map_or(0, Block::len);
            left.progress = if missing == 0 {
                Progress::Taken
            } else {
                Progress::Receiving {
                    filled: length.saturating_sub(missing),
                }
            };
        }
    }
}

/// What one read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    /// Bytes of the payload that is due.
    pub(super) payload: usize,
    /// Bytes of what follows.
    pub(super) input: usize,
}

/// Seconds of the clock that all processes of this boot share, and that stands while the machine sleeps, as the
/// kernel's timers do.
pub(super) fn now_s() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    u64::try_from(now.tv_sec).unwrap_or(0)
}

/// How many bytes to read of those that are there, so that neither they nor the rest are too short for a nonce.
fn read_length(available: usize, missing: usize, room: usize) -> usize {
    const NONCE_BYTES: usize = 8;
    let mut bytes = available.min(missing + room);
    if bytes > missing && bytes - missing < NONCE_BYTES && missing >= NONCE_BYTES {
        bytes = missing;
    }
    let rest = available - bytes;
    if rest > 0
        && rest < NONCE_BYTES
        && bytes >= 3 * NONCE_BYTES
        && bytes > missing + 2 * NONCE_BYTES
    {
        bytes -= NONCE_BYTES;
    }
    bytes
}

/// The length of the whole requests at the beginning of these bytes.
fn whole_requests(mut bytes: &[u8]) -> usize {
    let before = bytes.len();
    while let Some((header, rest)) = bytes.split_first_chunk::<REQUEST_BYTES>() {
        let Ok(request) = Request::parse(header) else {
            break;
        };
        let payload = if request.command == command::WRITE {
            request.length
        } else {
            0
        };
        let Some(rest) = usize::try_from(payload)
            .ok()
            .and_then(|payload| rest.get(payload..))
        else {
            break;
        };
        bytes = rest;
    }
    before - bytes.len()
}

fn word_of(number: usize, word: usize) -> usize {
    head::WORDS + number * slot::WORDS + word
}

fn wide(length: usize) -> u64 {
    u64::try_from(length).expect("an address space fits in 64 bits")
}

fn narrow(length: u64) -> usize {
    usize::try_from(length).expect("lengths were compared with those of memory")
}

fn low_u32(word: u64) -> u32 {
    u32::try_from(word & 0xffff_ffff).expect("masked")
}

fn low_u16(word: u64) -> u16 {
    u16::try_from(word & 0xffff).expect("masked")
}

#[cfg(test)]
mod tests;
