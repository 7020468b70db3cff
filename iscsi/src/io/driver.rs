//! One connection in full feature phase, polled by its owner.
//!
//! ```text
//!   submit --> machine --> transmitter --writev--> socket
//!   completion <-- machine <-- receiver <--readv-- socket
//! ```
//!
//! Source: RFC 7143 §4.2.5; what is said on the wire is the machine's.
//!
//! Invariants:
//! 1. A slot of the machine and a slot of `Slots` are taken and freed together.
//! 2. Completions that came before an end are given before it.

use std::collections::VecDeque;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::connect::{self, Connected};
use super::network::{Network, Stream, Tcp};
use super::receiver::{Receiver, Step};
use super::slots::Slots;
use super::transmitter::Transmitter;
use super::{Command, Completion, Data, Digests};
use crate::proto::negotiation::Agreed;
use crate::proto::session::{self, Completed, Direction, Event, Session};
use crate::proto::{LoginError, Portal, SessionError, SessionParams};

/// How long a logout may take: the target has only to answer one PDU.
const LOGOUT_TIMEOUT: Duration = Duration::from_secs(5);

/// One iSCSI connection, driven by whoever polls it.
#[derive(Debug)]
pub struct Driver<S = TcpStream> {
    stream: S,
    session: Session,
    receiver: Receiver,
    transmitter: Transmitter,
    slots: Slots,
    /// Answers that were read and not yet taken, in order.
    done: VecDeque<Completion>,
    /// Fires at or before the machine's next deadline.
    timer: Option<Pin<Box<Sleep>>>,
    end: Option<SessionError>,
    portal: Portal,
}

impl Driver {
    /// Connects, logs in and enters full feature phase.
    ///
    /// # Errors
    /// By cause: unreachable, refused (status class and detail), rule broken by the target, misuse.
    ///
    /// # Cancel safety
    /// When dropped, the connection is closed and the target drops the session.
    pub async fn connect(params: &SessionParams) -> Result<Self, LoginError> {
        Self::connect_over(&Tcp, params).await
    }
}

impl<S: Stream> Driver<S> {
    /// As `connect`, over a network of the caller's.
    ///
    /// # Errors
    /// As `connect`.
    ///
    /// # Cancel safety
    /// As `connect`.
    pub async fn connect_over<N: Network<Stream = S>>(
        network: &N,
        params: &SessionParams,
    ) -> Result<Self, LoginError> {
        if params.target_name.is_none() {
            return Err(LoginError::Misuse(crate::proto::Misuse::NoTarget));
        }
        let Connected {
            stream,
            established,
            portal,
        } = connect::connect(network, params).await?;
        let settings = session::Settings {
            tasks: session::TASKS_MAX,
            noop_interval: params.noop_interval,
            noop_timeout: params.noop_timeout,
        };
        tracing::debug!(%portal, tsih = established.tsih, agreed = ?established.agreed, "logged in");
        let session = Session::new(&established, settings, now());
        let slots = session.free_slots();
        // RFC 7143 §13.1: from the first PDU of the full feature phase on
        let digests = Digests::of(session.agreed());
        let timer = session
            .poll_timeout()
            .map(|at| Box::pin(tokio::time::sleep_until(at.into())));
        Ok(Self {
            stream,
            session,
            receiver: Receiver::new(digests),
            transmitter: Transmitter::new(digests),
            slots: Slots::new(slots),
            done: VecDeque::with_capacity(slots),
            timer,
            end: None,
            portal,
        })
    }

    /// Queues a command. It leaves with the next `poll_completion` or `poll_flush`.
    ///
    /// # Errors
    /// Gives the command back when no slot is free, when the session has ended, or when its data is
    /// longer than a command can name.
    pub fn submit(&mut self, token: u64, command: Command) -> Result<(), Command> {
        let Some(direction) = direction(&command.data) else {
            return Err(command);
        };
        if self.end.is_some() {
            return Err(command);
        }
        match self.session.submit(command.lun.0, command.cdb.0, direction) {
            Some(slot) => {
                self.slots.insert(slot, token, command);
                Ok(())
            }
            None => Err(command),
        }
    }

    /// Writes what is queued, reads what is there, keeps the timers; one completion at a time.
    ///
    /// # Errors
    /// Final: the session is gone; `take_unfinished` says what was in flight. Later calls give the
    /// same error.
    pub fn poll_completion(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Completion, SessionError>> {
        loop {
            if let Some(completion) = self.done.pop_front() {
                return Poll::Ready(Ok(completion));
            }
            if let Some(end) = &self.end {
                return Poll::Ready(Err(end.clone()));
            }
            if let Err(end) = ready!(self.poll_turn(cx)) {
                self.end = Some(end);
            }
        }
    }

    /// Writes what is queued, without reading; `Ready` when all that may leave has left.
    ///
    /// # Errors
    /// Final, as with `poll_completion`.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SessionError>> {
        if let Some(end) = &self.end {
            return Poll::Ready(Err(end.clone()));
        }
        let flushed = ready!(self.poll_transmit(cx));
        if let Err(end) = &flushed {
            self.end = Some(end.clone());
        }
        Poll::Ready(flushed)
    }

    /// After an error: the commands that were not answered, in order of submission.
    pub fn take_unfinished(&mut self) -> Vec<(u64, Command)> {
        // Nothing leaves any more, so no buffer is needed here.
        self.end.get_or_insert(SessionError::LoggedOut);
        self.slots.drain()
    }

    /// Logs out in order (reason 0, close the session) and closes the socket; bounded by a few
    /// seconds. Commands in flight are lost: whoever needs them awaits them before.
    ///
    /// # Errors
    /// The connection was lost or the target broke a rule meanwhile; the session is gone anyway.
    ///
    /// # Cancel safety
    /// When dropped, the connection is closed and the target drops the session.
    pub async fn logout(mut self) -> Result<(), SessionError> {
        if let Some(end) = self.end.take() {
            return Err(end);
        }
        self.session.handle_logout();
        let ended = std::future::poll_fn(|cx| {
            loop {
                if let Err(end) = ready!(self.poll_turn(cx)) {
                    return Poll::Ready(end);
                }
            }
        });
        match tokio::time::timeout(LOGOUT_TIMEOUT, ended).await {
            // The answer to a logout that the target had asked for is as good.
            Ok(SessionError::LoggedOut | SessionError::LogoutRequested { .. }) => Ok(()),
            Ok(end) => Err(end),
            Err(_) => Err(SessionError::LogoutTimeout {
                after: LOGOUT_TIMEOUT,
            }),
        }
    }

    /// How many more commands `submit` takes now (task slots; the window is the machine's matter).
    pub fn free_slots(&self) -> usize {
        self.session.free_slots()
    }

    /// What the login agreed on.
    pub fn agreed(&self) -> &Agreed {
        self.session.agreed()
    }

    /// The portal at which the login ended: the asked one, or where the target sent us.
    pub fn portal(&self) -> &Portal {
        &self.portal
    }

    /// Transmits, then reads once and acts on it. `Ready(Ok)` means: something came.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SessionError>> {
        // Pending here registers for room in the socket; reading goes on all the same.
        if let Poll::Ready(Err(end)) = self.poll_transmit(cx) {
            return Poll::Ready(Err(end));
        }
        match self
            .receiver
            .poll_read(&mut self.stream, cx, &mut self.slots)
        {
            Poll::Ready(Ok(0)) => {
                let cause = io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the target closed the connection",
                );
                Poll::Ready(Err(SessionError::lost(cause)))
            }
            Poll::Ready(Ok(_)) => Poll::Ready(self.handle_received()),
            Poll::Ready(Err(cause)) => Poll::Ready(Err(SessionError::lost(cause))),
            Poll::Pending => self.poll_timer(cx),
        }
    }

    /// Fills the transmitter from the machine and writes, until nothing may leave any more.
    fn poll_transmit(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SessionError>> {
        loop {
            while self.transmitter.has_room() {
                let Some(transmit) = self.session.poll_transmit() else {
                    break;
                };
                self.transmitter.push(transmit, &self.slots);
            }
            if self.transmitter.is_empty() {
                return Poll::Ready(Ok(()));
            }
            ready!(
                self.transmitter
                    .poll_write(&mut self.stream, cx, &self.slots)
            )
            .map_err(SessionError::lost)?;
        }
    }

    /// `Ready(Ok)` means: something is due to be transmitted.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SessionError>> {
        let Some(deadline) = self.session.poll_timeout() else {
            return Poll::Pending;
        };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
        // Deadlines move back with every PDU, and the timer is not moved along each time; it moves
        // when it has fired, or when a deadline is earlier than it.
        if deadline < timer.deadline().into_std() {
            timer.as_mut().reset(deadline.into());
        }
        ready!(timer.as_mut().poll(cx));
        self.session.handle_timeout(now())?;
        if let Some(deadline) = self.session.poll_timeout() {
            timer.as_mut().reset(deadline.into());
        } else {
            self.timer = None;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes all PDUs that are here whole.
    fn handle_received(&mut self) -> Result<(), SessionError> {
        let now = now();
        self.session.handle_heard(now);
        loop {
            let event = match self.receiver.next(&mut self.slots)? {
                Step::Header(bhs) => {
                    let placement = self.session.handle_header(&bhs, now)?;
                    self.receiver.place(placement);
                    None
                }
                Step::Segment(data) => self.session.handle_segment(data)?,
                Step::More => return Ok(()),
            };
            match event {
                None => {}
                Some(Event::Completed(completed)) => self.complete(&completed),
                Some(Event::ScsiEvent { lun, sense }) => {
                    tracing::info!(lun, ?sense, "the target reports a SCSI event");
                }
                Some(Event::UnknownEvent { code }) => {
                    tracing::info!(code, "the target reports an event that means nothing to us");
                }
            }
        }
    }

    fn complete(&mut self, completed: &Completed) {
        let Some((token, command)) = self.slots.remove(completed.slot) else {
            return;
        };
        self.receiver.forget(completed.slot);
        if let Data::Out(data) = &command.data
            && !self.transmitter.is_empty()
        {
            self.transmitter.forget(completed.slot, data);
        }
        self.done.push_back(Completion {
            token,
            status: completed.status,
            sense: completed.sense,
            transferred: completed.transferred,
            data: command.data,
        });
    }
}

/// `None` for more data than a command can name.
fn direction(data: &Data) -> Option<Direction> {
    match data {
        Data::None => Some(Direction::None),
        Data::Out(data) => u32::try_from(data.len()).ok().map(Direction::Write),
        Data::In(buffer) => u32::try_from(buffer.len()).ok().map(Direction::Read),
    }
}

/// The clock of the whole crate: tokio's, so that tests can stop it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
