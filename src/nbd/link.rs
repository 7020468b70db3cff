//! A link to the kernel's driver: the front that serves one of a device's sockets, writes down what is under way, and
//! takes a new socket when the old one is dead.
//!
//! A room of its own because the kernel is no stranger: it can be answered on another socket than the one it asked on,
//! and after this process is gone, by another one. Connections of strangers (`connection.rs`) have none of that.
//! Source: `drivers/block/nbd.c` (`nbd_handle_reply`, `nbd_send_cmd`, `recv_work`, `nbd_xmit_timeout`).
//! Read before changing: `journal.rs`; `front.rs`; `kernel/adopt.rs`; ARCHITECTURE.md: Restart without loss.
//!
//! What the driver does:
//! - a reply is taken on whatever socket has the slot now, if its cookie is that of a request in flight there; any other
//!   reply ends that socket's reader, so that nothing behind it is read;
//! - a request it could not send wholly it sends anew, elsewhere;
//! - what was in flight on a dead socket waits for its answer or its timer, whichever comes first.
//!
//! Invariants:
//! 1. An answer is given only for a request whose effect is known, and whose timer cannot have sent it anew: one that is
//!    older than `ADOPTION_S` when its link dies is not answered any more, and not begun again.
//! 2. A write that may have been answered is never done again: a newer one may have been sent upon the answer. One that
//!    was surely not answered may be done again at any time and in any order: whoever sent it knows no order between it
//!    and what else is in flight. The predecessor's own attempts are over before (`KernelDevice::adopt`).
//! 3. Answers that a predecessor may have given (*doubtful* ones) are given again before all others, the last first,
//!    each when the driver has read the one before. As they left in order, one that is refused proves that it and all that
//!    are left had arrived, unless a successor may have given it before. What is sent behind them is kept until it is
//!    read: a refusal is known later than it happens.
//! 4. What was sent in part only has not been answered, and is sent again.

mod lost;
mod replay;
mod resume;

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::block::{Completion, Geometry, Operation, Request as BackendRequest};
use crate::sys::memory::Block;
use crate::sys::socket;

use super::connection::End;
use super::front::Front;
use super::journal::{Journal, SLOTS};
use super::pool::Pool;
use super::reply::Reply;
use super::transmission::{Accepted, Agreed, Command, Next, REQUESTS_MAX, Step, Transmission};
use super::wire::{REQUEST_BYTES, Request, SIMPLE_REPLY_BYTES, simple_reply};

use self::replay::Replay;

/// How old a request may be, in seconds, that is answered on another link than its own. `NBD_ATTR_TIMEOUT` is so much
/// longer than a backend's patience: within both the kernel's timer does not send it anew.
pub(super) const ADOPTION_S: u64 = 60;
/// Replies waiting to be sent, beyond which no request is taken.
const REPLIES_MAX: usize = SLOTS / 2;
/// Parts of one `sendmsg`: two for each request that can be under way.
const SLICES_MAX: usize = 2 * REQUESTS_MAX;
/// Links in a row that bring nothing, beyond which the lane gives up; chosen freely.
const RELINKS_MAX: u32 = 20;

/// Gives the kernel a new socket for a slot that is dead.
pub(super) trait Relinker: Send + Sync {
    /// Our end of the new socket pair.
    fn relink(&self) -> Pin<Box<dyn Future<Output = io::Result<StdStream>> + Send>>;

    /// Whether the device is being disconnected, so that a dead link is its end.
    fn is_over(&self) -> bool;
}

/// A new link being made: our end of it, and whether the driver had read all that was sent over the old one.
type Relinking = Pin<Box<dyn Future<Output = (io::Result<StdStream>, bool)> + Send>>;

/// The link.
pub(super) struct Link {
    /// `None` while a new one is being made.
    stream: Option<UnixStream>,
    /// It was seen to be readable, which the reactor may not know yet.
    is_readable: bool,
    relinking: Option<Relinking>,
    relinker: Arc<dyn Relinker>,
    relinks: u32,
    /// Who waits for the link to stand, and for what is doubtful to be cleared.
    standing: Option<oneshot::Sender<()>>,
    machine: Transmission,
    journal: Journal,
    /// A write whose header is here, and for whose payload there is no place yet.
    waiting: Option<(Request, Accepted)>,
    /// The write whose payload is being received.
    due: Option<Due>,
    /// A write that was refused, whose payload is being thrown away.
    refused: Option<Request>,
    /// A predecessor refused a write, whose payload is not all here.
    skipping: bool,
    pending: VecDeque<BackendRequest>,
    /// By token.
    under_way: Vec<Option<UnderWay>>,
    replies: VecDeque<Outgoing>,
    /// Bytes of the first reply that are sent already.
    sent: usize,
    replay: Replay,
    pool: Pool,
    /// The input holds a request that cannot be taken now.
    stalled: bool,
    leaving: bool,
    end: Option<End>,
}

struct Due {
    slot: usize,
    block: Block,
    filled: usize,
    request: Request,
}

struct UnderWay {
    slot: usize,
    cookie: u64,
    is_read: bool,
    since_s: u64,
    block: Option<Block>,
    /// It is not to be answered (invariant 1).
    is_mute: bool,
}

struct Outgoing {
    slot: usize,
    header: [u8; SIMPLE_REPLY_BYTES],
    errno: u32,
    data: BytesMut,
    since_s: u64,
    is_written_down: bool,
}

impl Outgoing {
    fn len(&self) -> usize {
        SIMPLE_REPLY_BYTES + self.data.len()
    }
}

/// Buffers for reads, taken and touched, so that a lane can work when memory is short: two of the kernel's largest
/// requests, and a page for every request that can be under way. Writes have theirs in the journal.
fn reserved() -> Pool {
    let mut pool = Pool::default();
    pool.reserve(RESERVED_BYTES, 2);
    pool.reserve(PAGE_BYTES, REQUESTS_MAX);
    pool
}

/// The kernel's requests are not larger (`kernel::queue`).
const RESERVED_BYTES: usize = 1 << 20;
/// What most small requests fit into.
const PAGE_BYTES: usize = 4096;

impl Front for Link {
    type End = End;

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = self.poll_relinking(cx);
        moved |= self.receive(cx);
        self.parse() || moved
    }

    fn next_request(&mut self) -> Option<BackendRequest> {
        self.pending.pop_front()
    }

    fn give_back(&mut self, request: BackendRequest) {
        self.pending.push_front(request);
    }

    /// A completion becomes a reply, or the next part of its request.
    fn complete(&mut self, Completion { token, result }: Completion) {
        let token = usize::try_from(token).expect("tokens are small and our own");
        match self.machine.handle_completion(token, result) {
            Next::Submit(accepted) => self.enqueue(accepted),
            Next::Reply(reply) => {
                let done = self.under_way[token].take();
                let done = done.expect("the backend completes what it was given, once");
                let errno = errno_of(&reply);
                self.finish(done, errno, reply.into_read_data().unwrap_or_default());
            }
        }
    }

    fn grow(&mut self, size_bytes: u64) {
        self.machine.grow(size_bytes);
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> bool {
        let cleared = self.poll_probation(cx);
        self.send(cx) || cleared
    }

    /// Nothing more is taken from the kernel; what it has sent stays in the socket and in the journal.
    fn stop(&mut self) {
        self.leaving = true;
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        // What is not read stays readable, and would be waited for without end.
        let stream = self.stream.as_ref().filter(|_| self.is_reading());
        stream.map(AsFd::as_fd)
    }

    fn handle_readable(&mut self) {
        self.is_readable = true;
    }

    fn poll_ended(&mut self, _cx: &mut Context<'_>) -> Poll<End> {
        if self.machine.in_flight() > usize::from(self.due.is_some() || self.waiting.is_some()) {
            return Poll::Pending;
        }
        if self.leaving && (self.replies.is_empty() || self.stream.is_none()) {
            return Poll::Ready(self.end.take().unwrap_or(End::Shutdown));
        }
        if self.replies.is_empty() {
            return self.end.take().map_or(Poll::Pending, Poll::Ready);
        }
        Poll::Pending
    }
}

impl Link {
    /// A link that begins now; `None`: whose socket comes later.
    pub(super) fn new(
        stream: Option<UnixStream>,
        journal: Journal,
        geometry: &Geometry,
        relinker: Arc<dyn Relinker>,
    ) -> Self {
        Self {
            stream,
            is_readable: false,
            relinking: None,
            relinker,
            relinks: 0,
            standing: None,
            machine: Transmission::new(geometry, Agreed::default()),
            journal,
            waiting: None,
            due: None,
            refused: None,
            skipping: false,
            pending: VecDeque::with_capacity(REQUESTS_MAX),
            under_way: (0..REQUESTS_MAX).map(|_| None).collect(),
            replies: VecDeque::with_capacity(SLOTS),
            sent: 0,
            replay: Replay::default(),
            pool: reserved(),
            stalled: false,
            leaving: false,
            end: None,
        }
    }

    /// Whether what comes is read: not after the end, nor while the input holds a request that cannot be taken.
    fn is_reading(&self) -> bool {
        let is_busy = self.waiting.is_some() || (self.stalled && self.due.is_none());
        self.end.is_none() && !self.leaving && !is_busy
    }

    /// Reads once, what is there: the rest of a payload straight to its place, and what follows it into the input.
    fn receive(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.is_reading() {
            return false;
        }
        let Some(stream) = &self.stream else {
            return false;
        };
        let outcome = loop {
            if !std::mem::take(&mut self.is_readable) {
                match stream.poll_read_ready(cx) {
                    Poll::Pending => return false,
                    Poll::Ready(Err(error)) => break Err(error),
                    Poll::Ready(Ok(())) => {}
                }
            }
            match available(stream) {
                Ok(0) => break Ok(0),
                Ok(there) => {
                    let due = self.due.as_mut().map(|due| (&mut due.block, due.filled));
                    let read = |parts: &mut [io::IoSliceMut<'_>; 2]| {
                        rustix::io::readv(stream, parts).map_err(io::Error::from)
                    };
                    let got = self.journal.receive(due, there, false, read);
                    if let (Ok(got), Some(due)) = (&got, &mut self.due) {
                        due.filled += got.payload;
                    }
                    let got = got.map(|got| got.payload + got.input);
                    // The input is full of what is still to be parsed.
                    if got.as_ref().is_ok_and(|got| *got == 0) {
                        return false;
                    }
                    if got.as_ref().is_ok_and(|got| *got == there) {
                        // The socket is empty: tokio is told, so that it waits for the next event.
                        let _: io::Result<()> = stream
                            .try_io(Interest::READABLE, || Err(io::ErrorKind::WouldBlock.into()));
                    }
                    break got;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => break Err(error),
            }
        };
        match outcome {
            Ok(0) => self.lose_link("the kernel closed it"),
            Ok(_) => self.relinks = 0,
            Err(error) => self.lose_link(&error.to_string()),
        }
        true
    }

    /// Requests become commands or refusals, until the input is used up or no more can be taken.
    fn parse(&mut self) -> bool {
        let mut moved = false;
        self.stalled = false;
        while self.end.is_none() && !self.leaving {
            if self.waiting.is_some() && !self.place_payload() {
                break;
            }
            if let Some(due) = self.due.take_if(|due| due.filled == due.block.len()) {
                let accepted = self.machine.handle_payload();
                self.begin(accepted, due.slot, &due.request, Some(due.block));
                moved = true;
            }
            if self.due.is_some() {
                break;
            }
            if self.skipping {
                self.skipping = self.journal.skip();
                if self.skipping {
                    break;
                }
            }
            if self.replies.len() >= REPLIES_MAX || !self.journal.has_room() {
                self.stalled = true;
                break;
            }
            match self.step() {
                Some(used) => moved |= used,
                None => break,
            }
        }
        moved
    }

    /// Deals with the next request; `None` when that is not possible now, else whether bytes were used up.
    fn step(&mut self) -> Option<bool> {
        let at = self.journal.position();
        let input = self.journal.unparsed();
        let request = match (self.refused, input.first_chunk::<REQUEST_BYTES>()) {
            (Some(refused), _) => refused,
            (None, Some(header)) => match Request::parse(header) {
                Ok(request) => request,
                Err(error) => {
                    tracing::error!("the kernel sent no request: {error}");
                    self.lose_link("the stream is out of step");
                    return None;
                }
            },
            (None, None) => return None,
        };
        let (used, step) = match self.machine.handle_input(input) {
            Ok(step) => step,
            Err(violation) => {
                tracing::error!("the kernel broke the protocol: {violation}");
                self.lose_link("the stream is out of step");
                return None;
            }
        };
        match step {
            Step::NeedInput => {
                if used > 0 && self.refused.replace(request).is_none() {
                    let end = at + wide(REQUEST_BYTES) + u64::from(request.length);
                    self.journal.skip_until(end);
                }
                self.journal.consume(used);
                None
            }
            Step::Full => {
                self.stalled = true;
                None
            }
            Step::Submit(accepted) => {
                let slot = self.journal.begin(&request, at, None);
                self.journal.consume(used);
                self.begin(accepted, slot, &request, None);
                Some(true)
            }
            // Its header counts as parsed when there is a place for its payload.
            Step::Payload(accepted) => {
                self.waiting = Some((request, accepted));
                Some(true)
            }
            Step::Reply(reply) => {
                self.refused = None;
                let errno = errno_of(&reply);
                let slot = self.journal.begin(&request, at, None);
                self.journal.done(slot, errno);
                self.journal.consume(used);
                let since_s = self.journal.received_s();
                self.reply(slot, request.cookie, errno, BytesMut::new(), since_s);
                Some(true)
            }
            Step::Disconnect => {
                // The driver has given up what it still waits for.
                self.end.get_or_insert(End::Disconnected);
                self.drop_replies();
                None
            }
        }
    }

    /// A place for the payload of the write that waits for one; whether there is.
    fn place_payload(&mut self) -> bool {
        let Some((request, _)) = self.waiting else {
            return true;
        };
        let length = narrow(request.length);
        let Some(mut block) = self.journal.payload(length) else {
            return false;
        };
        self.waiting = None;
        let at = self.journal.position();
        let slot = self.journal.begin(&request, at, Some(&block));
        let input = self.journal.unparsed();
        let filled = (input.len() - REQUEST_BYTES).min(length);
        block.bytes_mut()[..filled].copy_from_slice(&input[REQUEST_BYTES..REQUEST_BYTES + filled]);
        self.journal.consume(REQUEST_BYTES + filled);
        self.due = Some(Due {
            slot,
            block,
            filled,
            request,
        });
        true
    }

    /// A request is whole and goes to the backend.
    fn begin(&mut self, accepted: Accepted, slot: usize, request: &Request, block: Option<Block>) {
        self.under_way[accepted.token] = Some(UnderWay {
            slot,
            cookie: request.cookie,
            is_read: matches!(accepted.command, Command::Read { .. }),
            since_s: self.journal.received_s(),
            block,
            is_mute: false,
        });
        self.enqueue(accepted);
    }

    /// A command gets its buffer and waits for the backend.
    fn enqueue(&mut self, Accepted { token, command }: Accepted) {
        let (offset, operation) = match command {
            Command::Read { offset, len } => (offset, Operation::Read(self.pool.take(narrow(len)))),
            Command::Write { offset, fua, .. } => {
                let under_way = self.under_way[token].as_ref();
                let block = under_way.and_then(|under_way| under_way.block.as_ref());
                let data = block.expect("a write has its payload").share();
                (offset, Operation::Write { data, fua })
            }
            Command::ZeroFill { offset, len, fua } => {
                let data = self.pool.zeroes(len);
                (offset, Operation::Write { data, fua })
            }
            Command::Flush
            | Command::Trim { .. }
            | Command::WriteZeroes { .. }
            | Command::Cache { .. }
            | Command::BlockStatus { .. } => command.without_data(),
        };
        self.pending.push_back(BackendRequest {
            token: wide(token),
            operation,
            offset,
        });
    }

    /// The backend has done a request.
    fn finish(&mut self, done: UnderWay, errno: u32, data: BytesMut) {
        if done.is_mute {
            self.journal.end(done.slot);
            self.replay.forget(done.slot);
            self.next_doubtful();
        } else if !done.is_read {
            // Before its payload's place is given to another: it is not to be done again.
            self.journal.done(done.slot, errno);
        }
        if let Some(block) = done.block {
            self.journal.put_payload(block);
        }
        if self.machine.in_flight() == 0 {
            self.journal.shrink();
        }
        // A failed reply has no data, whatever the backend gave back.
        let data = if errno == 0 { data } else { BytesMut::new() };
        if done.is_mute {
            self.release(data);
        } else {
            self.reply(done.slot, done.cookie, errno, data, done.since_s);
        }
    }

    fn reply(&mut self, slot: usize, cookie: u64, errno: u32, data: BytesMut, since_s: u64) {
        let outgoing = Outgoing {
            slot,
            header: simple_reply(cookie, errno),
            errno,
            data,
            since_s,
            is_written_down: false,
        };
        // Nobody is left who could be answered.
        if self.end.is_some() {
            return self.recycle(outgoing);
        }
        match self.replay.admit(outgoing) {
            Some(outgoing) => self.replies.push_back(outgoing),
            None => self.next_doubtful(),
        }
    }

    /// Sends once, as many replies as one call takes.
    fn send(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(stream) = &self.stream else {
            return false;
        };
        // The doubtful ones go first, each alone.
        let is_doubtful = self.replay.is_sending();
        let admitted = self.replay.admitted().min(self.replies.len());
        if admitted == 0 {
            return false;
        }
        match stream.poll_write_ready(cx) {
            Poll::Pending => return false,
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                self.lose_link(&error.to_string());
                return true;
            }
        }
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let (mut count, mut wanted, mut skip) = (0, 0, self.sent);
        for reply in self.replies.iter_mut().take(admitted.min(SLICES_MAX / 2)) {
            if is_doubtful {
                self.journal.again(reply.slot, reply.errno);
            } else if !reply.is_written_down {
                reply.is_written_down = true;
                self.journal.sending(reply.slot, reply.errno);
            }
            for part in [&reply.header[..], &reply.data[..]] {
                let skipped = skip.min(part.len());
                skip -= skipped;
                if skipped < part.len() {
                    slices[count] = IoSlice::new(&part[skipped..]);
                    wanted += part.len() - skipped;
                    count += 1;
                }
            }
        }
        let mut gone = 0;
        let outcome = stream.try_io(Interest::WRITABLE, || {
            let mut control = SendAncillaryBuffer::default();
            let slices = &slices[..count];
            gone = rustix::net::sendmsg(stream, slices, &mut control, SendFlags::NOSIGNAL)?;
            // After a short write the socket takes no more now: tokio is told.
            if gone < wanted {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        match outcome {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.lose_link(&error.to_string()),
        }
        self.advance(gone);
        true
    }

    /// So many more bytes of the replies are sent.
    fn advance(&mut self, bytes: usize) {
        self.sent += bytes;
        while let Some(first) = self.replies.front() {
            let length = first.len();
            if self.sent < length {
                break;
            }
            self.sent -= length;
            if let Some(outgoing) = self.replies.pop_front()
                && let Some(outgoing) = self.replay.sent(outgoing)
            {
                self.recycle(outgoing);
            }
        }
    }

    /// A request is answered, or is not to be.
    fn recycle(&mut self, outgoing: Outgoing) {
        self.journal.end(outgoing.slot);
        self.release(outgoing.data);
    }

    fn release(&mut self, data: BytesMut) {
        if !data.is_empty() {
            self.machine.handle_sent(data.len());
            self.pool.put(data);
        }
    }

    fn drop_replies(&mut self) {
        self.sent = 0;
        while let Some(outgoing) = self.replies.pop_front() {
            self.recycle(outgoing);
        }
    }
}

/// How many bytes are there to be read; zero at the stream's end.
fn available(stream: &UnixStream) -> io::Result<usize> {
    let there = socket::readable_bytes(stream)?;
    if there > 0 {
        return Ok(there);
    }
    // Nothing is there, or there is nothing any more: to look at a byte tells the two apart.
    stream.try_io(Interest::READABLE, || {
        let mut byte = [0; 1];
        let (got, _) = rustix::net::recv(stream, &mut byte, RecvFlags::PEEK)?;
        // A byte that came in between is read with the others at the next turn.
        if got > 0 {
            return socket::readable_bytes(stream);
        }
        Ok(0)
    })
}

/// proto.md: Simple reply message: magic, error, cookie. The kernel agrees on nothing else.
fn errno_of(reply: &Reply) -> u32 {
    let [header, _] = reply.parts();
    let error = header.get(4..8).and_then(|bytes| bytes.try_into().ok());
    u32::from_be_bytes(error.expect("a simple reply has an error in its header"))
}

fn wide(length: usize) -> u64 {
    u64::try_from(length).expect("an address space fits in 64 bits")
}

fn narrow(length: u32) -> usize {
    usize::try_from(length).expect("the daemon runs on machines of 32 bits and more")
}

#[cfg(test)]
mod tests;
