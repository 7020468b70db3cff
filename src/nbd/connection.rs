//! An NBD connection in its transmission phase: the front that reads requests from a stream socket and answers there.
//!
//! A room of its own because it joins the machine, the socket and the buffers; it decides nothing about requests
//! (`transmission` does).
//! Read before changing: `transmission.rs`; `front.rs`; `lane.rs`, which drives it.
//!
//! ```text
//!            read                     next_request
//!  stream ----------> input, due -+-----------> lane
//!         <---------- replies <---+------------
//!            write                    complete
//! ```
//!
//! Invariants:
//! 1. Every queue is bounded: `pending` and the buffers by the machine, `replies` by `REPLIES_MAX` and the machine.
//!    When they are full the socket is not read; it is read again when something ends.
//! 2. A large payload is read straight to its place; at most `INPUT_BYTES` of it are copied.
//! 3. A reply's header and data leave in one system call, as many replies a call as there are.
//!
//! Costs: a connection keeps up to 32 MiB under way and 32 MiB of idle buffers.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Sleep;

use crate::block::{Completion, Geometry, Operation, Request};

use super::front::Front;
use super::pool::Pool;
use super::stream::Stream;
use super::transmission::{
    Accepted, Agreed, Command, Next, REQUESTS_MAX, Reply, Step, Transmission, Violation,
};

/// Bytes read ahead of parsing: 2,300 requests without payload, or fifteen writes of 4 KiB.
const INPUT_BYTES: usize = 64 << 10;
/// Replies waiting to be sent, beyond which no request is taken: refusals cost nothing but their reply.
const REPLIES_MAX: usize = 2 * REQUESTS_MAX;
/// Parts of one `sendmsg`: two for each request that can be under way.
const SLICES_MAX: usize = 2 * REQUESTS_MAX;
/// How long a client that leaves, or that we leave, may take to fetch its last replies; chosen freely.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum End {
    /// The client said goodbye.
    #[error("the client disconnected")]
    Disconnected,
    /// The client closed the connection without a word.
    #[error("the client closed the connection")]
    Closed,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Lost(#[from] io::Error),
    /// The client broke a rule.
    #[error("the client broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// We were told to stop.
    #[error("shut down")]
    Shutdown,
}

/// The connection.
pub(super) struct Connection<S> {
    stream: S,
    /// It was seen to be readable, which the reactor may not know yet.
    is_readable: bool,
    machine: Transmission,
    input: Input,
    /// The write whose payload is being received.
    due: Option<Due>,
    /// Accepted, and not yet taken by the backend.
    pending: VecDeque<Request>,
    /// Payloads the backend has, by token: ours to use again when it is done.
    payloads: Vec<Option<Bytes>>,
    replies: VecDeque<Reply>,
    /// Bytes of the first reply that are sent already.
    sent: usize,
    pool: Pool,
    /// The input holds a request that cannot be taken now.
    stalled: bool,
    /// The stream may keep bytes of ours back.
    is_unflushed: bool,
    end: Option<End>,
    drain: Option<Pin<Box<Sleep>>>,
}

struct Due {
    buffer: BytesMut,
    filled: usize,
}

impl<S: Stream> Front for Connection<S> {
    type End = End;

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> bool {
        let moved = self.receive(cx);
        self.parse() || moved
    }

    fn next_request(&mut self) -> Option<Request> {
        self.pending.pop_front()
    }

    fn give_back(&mut self, request: Request) {
        self.pending.push_front(request);
    }

    /// A completion becomes a reply, or the next part of its request.
    fn complete(&mut self, Completion { token, result }: Completion) {
        let token = usize::try_from(token).expect("tokens are small and our own");
        if let Some(Ok(payload)) = self.payloads[token].take().map(Bytes::try_into_mut) {
            self.pool.put(payload);
        }
        match self.machine.handle_completion(token, result) {
            Next::Submit(accepted) => self.enqueue(accepted, Bytes::new()),
            Next::Reply(reply) => self.reply(reply),
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> bool {
        self.send(cx)
    }

    fn grow(&mut self, size_bytes: u64) {
        self.machine.grow(size_bytes);
    }

    /// What is under way is answered, what comes after is refused.
    fn stop(&mut self) {
        self.machine.stop();
        self.forget_payload();
        self.end.get_or_insert(End::Shutdown);
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        // What is not read stays readable, and would be waited for without end.
        if self.is_reading() {
            self.stream.descriptor()
        } else {
            None
        }
    }

    fn handle_readable(&mut self) {
        self.is_readable = true;
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if self.end.is_none() || !self.poll_drained(cx) {
            return Poll::Pending;
        }
        self.end.take().map_or(Poll::Pending, Poll::Ready)
    }
}

impl<S: Stream> Connection<S> {
    /// A connection whose handshake is over; `early` is what the client sent after it.
    pub(super) fn new(stream: S, early: &[u8], geometry: &Geometry, agreed: Agreed) -> Self {
        Self {
            stream,
            is_readable: false,
            machine: Transmission::new(geometry, agreed),
            input: Input::new(early),
            due: None,
            pending: VecDeque::with_capacity(REQUESTS_MAX),
            payloads: vec![None; REQUESTS_MAX],
            replies: VecDeque::with_capacity(REPLIES_MAX + REQUESTS_MAX),
            sent: 0,
            pool: Pool::default(),
            stalled: false,
            is_unflushed: false,
            end: None,
            drain: None,
        }
    }

    /// Whether everything is answered; replies that nobody fetches are given up after a while.
    fn poll_drained(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.replies.is_empty() || self.is_unflushed {
            let drain = self
                .drain
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(DRAIN_TIMEOUT)));
            if drain.as_mut().poll(cx).is_ready() {
                self.discard_replies();
            }
        }
        self.machine.in_flight() == 0 && self.replies.is_empty() && !self.is_unflushed
    }

    /// Whether what comes is read: not after the end, nor while the input holds a request that cannot be taken.
    fn is_reading(&self) -> bool {
        self.end.is_none() && (!self.stalled || self.due.is_some())
    }

    /// Reads once: the rest of a payload straight to its place, and what follows it into the input.
    fn receive(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.is_reading() {
            return false;
        }
        let payload = match &mut self.due {
            Some(due) => &mut due.buffer[due.filled..],
            None => &mut [],
        };
        let missing = payload.len();
        let room = self.input.room();
        let mut parts = [IoSliceMut::new(payload), IoSliceMut::new(room)];
        let is_seen = std::mem::take(&mut self.is_readable);
        let got = match self.stream.poll_read_seen(cx, &mut parts, is_seen) {
            Poll::Pending => return false,
            Poll::Ready(Ok(0)) => return self.lose(End::Closed),
            Poll::Ready(Ok(got)) => got,
            Poll::Ready(Err(error)) => return self.lose(End::Lost(error)),
        };
        let placed = got.min(missing);
        if let Some(due) = &mut self.due {
            due.filled += placed;
        }
        self.input.filled(got - placed);
        true
    }

    /// Requests become commands or refusals, until the input is used up or no more can be taken.
    fn parse(&mut self) -> bool {
        let mut moved = false;
        self.stalled = false;
        while self
            .end
            .as_ref()
            .is_none_or(|end| matches!(end, End::Shutdown))
        {
            if let Some(due) = self.due.take_if(|due| due.filled == due.buffer.len()) {
                let accepted = self.machine.handle_payload();
                self.enqueue(accepted, due.buffer.freeze());
                moved = true;
            }
            if self.due.is_some() {
                break;
            }
            if self.replies.len() >= REPLIES_MAX {
                self.stalled = true;
                break;
            }
            let (used, step) = match self.machine.handle_input(self.input.unparsed()) {
                Ok(step) => step,
                Err(violation) => return self.lose(End::Violation(violation)),
            };
            self.input.consume(used);
            moved |= used > 0;
            match step {
                Step::NeedInput => break,
                Step::Full => {
                    self.stalled = true;
                    break;
                }
                Step::Submit(accepted) => self.enqueue(accepted, Bytes::new()),
                Step::Payload(accepted) => self.begin_payload(accepted),
                Step::Reply(reply) => self.reply(reply),
                Step::Disconnect => {
                    self.end.get_or_insert(End::Disconnected);
                    break;
                }
            }
        }
        moved
    }

    fn begin_payload(&mut self, accepted: Accepted) {
        let Command::Write { len, .. } = accepted.command else {
            unreachable!("only writes have a payload");
        };
        let mut buffer = self.pool.take(usize_of(len));
        let early = self.input.unparsed();
        let filled = early.len().min(buffer.len());
        buffer[..filled].copy_from_slice(&early[..filled]);
        self.input.consume(filled);
        self.due = Some(Due { buffer, filled });
    }

    /// A command gets its buffer and waits for the backend.
    fn enqueue(&mut self, Accepted { token, command }: Accepted, payload: Bytes) {
        let (offset, operation) = match command {
            Command::Read { offset, len } => {
                (offset, Operation::Read(self.pool.take(usize_of(len))))
            }
            Command::Write { offset, fua, .. } => {
                self.payloads[token] = Some(payload.clone());
                (offset, Operation::Write { data: payload, fua })
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
        let token = u64::try_from(token).expect("tokens are below REQUESTS_MAX");
        self.pending.push_back(Request {
            token,
            operation,
            offset,
        });
    }

    fn reply(&mut self, reply: Reply) {
        // The client is gone: the reply is done with as if it had been sent.
        if self.is_unheard() {
            self.recycle(reply);
        } else {
            self.replies.push_back(reply);
        }
    }

    /// Sends once, as many replies as one call takes.
    fn send(&mut self, cx: &mut Context<'_>) -> bool {
        if self.replies.is_empty() {
            return self.flush(cx);
        }
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        let mut skip = self.sent;
        for part in self.replies.iter().flat_map(Reply::parts) {
            let skipped = skip.min(part.len());
            skip -= skipped;
            if skipped < part.len() {
                slices[count] = IoSlice::new(&part[skipped..]);
                count += 1;
            }
            if count == SLICES_MAX {
                break;
            }
        }
        match self.stream.poll_write(cx, &slices[..count]) {
            Poll::Pending => return false,
            Poll::Ready(Ok(gone)) => {
                self.is_unflushed = true;
                self.advance(gone);
                if self.replies.is_empty() {
                    self.flush(cx);
                }
            }
            Poll::Ready(Err(error)) => return self.lose(End::Lost(error)),
        }
        true
    }

    /// Sends on what the stream keeps in buffers of its own, once there is nothing more to give it.
    fn flush(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.is_unflushed {
            return false;
        }
        match self.stream.poll_flush(cx) {
            Poll::Pending => false,
            Poll::Ready(Ok(())) => {
                self.is_unflushed = false;
                true
            }
            Poll::Ready(Err(error)) => self.lose(End::Lost(error)),
        }
    }

    /// So many more bytes of the replies are sent.
    fn advance(&mut self, bytes: usize) {
        self.sent += bytes;
        while let Some(first) = self.replies.front() {
            let length = first.bytes();
            if self.sent < length {
                break;
            }
            self.sent -= length;
            if let Some(reply) = self.replies.pop_front() {
                self.recycle(reply);
            }
        }
    }

    fn recycle(&mut self, reply: Reply) {
        if let Some(data) = reply.into_read_data() {
            self.machine.handle_sent(data.len());
            self.pool.put(data);
        }
    }

    /// There is nobody left to answer.
    fn lose(&mut self, why: End) -> bool {
        self.forget_payload();
        // A client that said goodbye may close before it has heard everything.
        match self.end {
            Some(End::Disconnected | End::Shutdown) => {}
            Some(End::Closed | End::Lost(_) | End::Violation(_)) | None => self.end = Some(why),
        }
        self.discard_replies();
        true
    }

    fn forget_payload(&mut self) {
        if self.due.take().is_some() {
            self.machine.abandon_payload();
        }
    }

    fn discard_replies(&mut self) {
        self.sent = 0;
        self.is_unflushed = false;
        while let Some(reply) = self.replies.pop_front() {
            self.recycle(reply);
        }
    }

    fn is_unheard(&self) -> bool {
        matches!(
            self.end,
            Some(End::Closed | End::Lost(_) | End::Violation(_))
        )
    }
}

/// Bytes that are read and not yet parsed.
struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    fn new(early: &[u8]) -> Self {
        let mut bytes = vec![0; INPUT_BYTES.max(early.len())].into_boxed_slice();
        bytes[..early.len()].copy_from_slice(early);
        Self {
            bytes,
            start: 0,
            end: early.len(),
        }
    }

    fn unparsed(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        debug_assert!(self.start <= self.end, "no more is used than there was");
    }

    /// Where to read to; what is unparsed (less than a header, or the lane would be stalled) moves to the front.
    fn room(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        &mut self.bytes[self.end..]
    }

    fn filled(&mut self, bytes: usize) {
        self.end += bytes;
    }
}

fn usize_of(length: u32) -> usize {
    usize::try_from(length).expect("the daemon runs on machines of 32 bits and more")
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::net::UnixStream;

    use super::*;
    use crate::nbd::wire;

    /// As a lane turns it, with nothing for the backend to do.
    fn turn(connection: &mut Connection<UnixStream>) {
        let mut cx = Context::from_waker(Waker::noop());
        while connection.poll_receive(&mut cx) | connection.poll_send(&mut cx) {}
    }

    /// A lane would wait for it awake, and it would stay readable.
    #[tokio::test]
    async fn a_connection_that_does_not_read_has_no_descriptor_to_wait_for() {
        let (ours, client) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours, &[], &Geometry::plain(), Agreed::default());
        assert!(connection.descriptor().is_some());
        // Refused, at the cost of a reply each, which the client does not fetch.
        let nonsense = wire::Request {
            flags: 0,
            command: 99,
            cookie: 1,
            offset: 0,
            length: 0,
        };
        let requests = nonsense.emit().repeat(100);
        while !connection.stalled {
            let mut sent = 0;
            while sent < requests.len() && !connection.stalled {
                sent += client.try_write(&requests[sent..]).unwrap_or(0);
                turn(&mut connection);
                tokio::task::yield_now().await;
            }
        }
        assert!(connection.descriptor().is_none(), "stalled");
        let mut replies = vec![0; 1 << 16];
        while connection.stalled {
            while client.try_read(&mut replies).is_ok() {}
            turn(&mut connection);
            tokio::task::yield_now().await;
        }
        assert!(connection.descriptor().is_some(), "goes on");
        connection.stop();
        assert!(connection.descriptor().is_none(), "stopped");
    }
}
