//! One session in full feature phase, on one connection or several, polled by its owner.
//!
//! ```text
//!                      /--> transmitter --writev--> socket of connection 0
//!   submit --> machine ---> transmitter --writev--> socket of connection 1 ...
//!   completion <-- machine <-- receiver <--readv-- each of them
//! ```
//!
//! A command leaves on the connection with the least in its queue. All connections are driven by the
//! one task that polls; if one is lost, so is the session.
//!
//! Source: RFC 7143 §4.2.5; what is said on the wire is the machine's.
//!
//! Invariants:
//! 1. A slot of the machine and a slot of `Slots` are taken and freed together.
//! 2. Completions that came before an end are given before it.

use std::collections::VecDeque;
use std::future::Future as _;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::connect::{self, Aim, Connected};
use super::line::Line;
use super::network::{Network, Stream, Tcp};
use super::receiver::Step;
use super::slots::Slots;
use super::{Command, Completion, Data, Digests};
use crate::proto::negotiation::Agreed;
use crate::proto::session::{self, Completed, Direction, Event, Session, TargetEvent};
use crate::proto::{
    FunctionError, LoginError, Misuse, Portal, SessionError, SessionParams, Violation,
};
use crate::scsi::LunAddress;
use crate::wire::logout::LogoutReason;
use crate::wire::tag::InitiatorTaskTag;
use crate::wire::task_management::{TaskManagementFunction, TaskManagementOutcome};

/// How long a logout may take: the target has only to answer one PDU.
const LOGOUT_TIMEOUT: Duration = Duration::from_secs(5);
/// Most events that are kept for the owner; older ones make room, as each calls for the same look.
const EVENTS_MAX: usize = 64;

/// One iSCSI session, driven by whoever polls it.
#[derive(Debug)]
pub struct Driver<S = TcpStream> {
    /// By CID; `None` where a connection was closed in order.
    lines: Vec<Option<Line<S>>>,
    session: Session,
    slots: Slots,
    /// Answers that were read and not yet taken, in order.
    done: VecDeque<Completion>,
    /// What the target said unasked, and the owner has not taken yet.
    events: VecDeque<TargetEvent>,
    /// How task management functions ended, until whoever waits takes it.
    functions: Vec<(InitiatorTaskTag, TaskManagementOutcome)>,
    /// Fires at or before the machine's next deadline.
    timer: Option<Pin<Box<Sleep>>>,
    end: Option<SessionError>,
    portal: Portal,
    permanent_portal: Option<Portal>,
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
            return Err(LoginError::Misuse(Misuse::NoTarget));
        }
        let connected = connect::connect(network, params, Aim::Leading).await?;
        let tsih = connected.established.tsih;
        let agreed = &connected.established.agreed;
        let connections = params
            .offers
            .max_connections
            .min(agreed.max_connections)
            .min(session::CONNECTIONS_MAX);
        tracing::debug!(portal = %connected.portal, tsih, ?agreed, "logged in");
        let mut driver = Self::of(connected, params);
        if connections > 1 {
            driver
                .open_further(network, params, tsih, connections)
                .await;
        }
        Ok(driver)
    }

    /// The driver of a leading connection that is logged in.
    fn of(connected: Connected<S>, params: &SessionParams) -> Self {
        let Connected {
            stream,
            established,
            portal,
            permanent_portal,
        } = connected;
        let settings = session::Settings {
            tasks: session::TASKS_MAX,
            noop_interval: params.noop_interval,
            noop_timeout: params.noop_timeout,
            timeouts: params.timeouts,
        };
        let session = Session::new(&established, settings, now());
        let slots = session.free_slots();
        let timer = session
            .poll_timeout()
            .map(|at| Box::pin(tokio::time::sleep_until(at.into())));
        // RFC 7143 §13.1 (L15): from the first PDU of the full feature phase on
        let digests = Digests::of(&established.agreed);
        Self {
            lines: vec![Some(Line::new(stream, digests))],
            session,
            slots: Slots::new(slots),
            done: VecDeque::with_capacity(slots),
            events: VecDeque::new(),
            functions: Vec::new(),
            timer,
            end: None,
            portal,
            permanent_portal,
        }
    }

    /// Opens connections 1 to `count` of the session `tsih`, where the leading one ended. One that
    /// cannot be opened is no failure: the session works with those that it has.
    async fn open_further<N: Network<Stream = S>>(
        &mut self,
        network: &N,
        params: &SessionParams,
        tsih: u16,
        count: u16,
    ) {
        let mut params = params.clone();
        params.portal = self.portal.clone();
        for cid in 1..count {
            let cmd_sn = self.session.cmd_sn();
            let aim = Aim::Further { cmd_sn, tsih, cid };
            match connect::connect(network, &params, aim).await {
                Ok(connected) => self.join(connected),
                Err(cause) => {
                    tracing::warn!(cid, %cause, "no further connection could be opened");
                    return;
                }
            }
        }
    }

    /// A further connection that is logged in to the same session.
    fn join(&mut self, connected: Connected<S>) {
        self.session.join(&connected.established, now());
        let digests = Digests::of(&connected.established.agreed);
        self.lines.push(Some(Line::new(connected.stream, digests)));
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

    /// Answers that have come and were not taken: of a session that its owner gives up, they are as good as any.
    pub(super) fn take_answered(&mut self) -> VecDeque<Completion> {
        std::mem::take(&mut self.done)
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

    /// Asks the target for a task management function, and drives the session until it is answered;
    /// completions meanwhile are kept for `poll_completion`. `token` names the command to abort, for
    /// ABORT TASK only. Commands that the function ended complete with `Status::TASK_ABORTED`.
    ///
    /// # Errors
    /// `Misuse`: TASK REASSIGN, which needs error recovery level 2; ABORT TASK without a token; too many
    /// functions at once. `Session`: the session ended before the answer.
    ///
    /// # Cancel safety
    /// A function that was sent goes on; its outcome is dropped, its effects are not.
    pub async fn task_management(
        &mut self,
        function: TaskManagementFunction,
        lun: LunAddress,
        token: Option<u64>,
    ) -> Result<TaskManagementOutcome, FunctionError> {
        if let Some(end) = &self.end {
            return Err(end.clone().into());
        }
        let slot = token.map(|token| self.slots.find(token));
        if let Some(None) = slot {
            // Answered already, or never submitted.
            return Ok(TaskManagementOutcome::TASK_DOES_NOT_EXIST);
        }
        let slot = slot.flatten();
        let asked = self.session.handle_task_management(function, lun.0, slot)?;
        // What was waited for by somebody who has gone is of no use.
        self.functions.clear();
        self.apply_events();
        let is_asked = |(tag, _): &(InitiatorTaskTag, _)| *tag == asked;
        self.drive_until(|driver| driver.functions.iter().any(is_asked))
            .await?;
        let ended = self.functions.iter().find(|ended| is_asked(ended));
        Ok(ended.map_or(TaskManagementOutcome::REJECTED, |(_, outcome)| *outcome))
    }

    /// Logs one connection of several out (reason 1, close the connection), after its commands have
    /// ended; the others go on. With one connection left it logs the session out.
    ///
    /// # Errors
    /// `Misuse`: there is no such connection. `Session`: the session ended, in order or not.
    ///
    /// # Cancel safety
    /// The logout goes on with the next polls.
    pub async fn close_connection(&mut self, cid: u16) -> Result<(), FunctionError> {
        if let Some(end) = &self.end {
            return Err(end.clone().into());
        }
        self.session
            .handle_connection_logout(cid, LogoutReason::CLOSE_CONNECTION)?;
        self.drive_until(|driver| driver.lines[usize::from(cid)].is_none())
            .await?;
        Ok(())
    }

    /// The next thing that the target said unasked, oldest first. To be asked after
    /// `poll_completion`, also when that is pending: events do not end its wait.
    pub fn take_event(&mut self) -> Option<TargetEvent> {
        self.events.pop_front()
    }

    /// Whether `take_event` has something to give.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// What can be read when the target has sent something: for an owner that looks for it before it goes to sleep.
    /// `None` with several connections, and over a network that has no descriptors.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.lines[..] {
            [Some(line)] => line.descriptor(),
            _ => None,
        }
    }

    /// The owner saw that `descriptor` can be read: the next poll reads without waiting for the reactor to say so.
    pub fn handle_readable(&mut self) {
        if let [Some(line)] = &mut self.lines[..] {
            line.handle_readable();
        }
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.session.connections()
    }

    /// How many more commands `submit` takes now (task slots; the window is the machine's matter).
    pub fn free_slots(&self) -> usize {
        self.session.free_slots()
    }

    /// What the login agreed on.
    pub fn agreed(&self) -> &Agreed {
        self.session.agreed()
    }

    /// Where the target has moved for good, as it said at the login: later logins go there at once.
    pub fn permanent_portal(&self) -> Option<&Portal> {
        self.permanent_portal.as_ref()
    }

    /// The portal at which the login ended: the asked one, or where the target sent us.
    pub fn portal(&self) -> &Portal {
        &self.portal
    }

    /// Drives the session until `is_done`.
    async fn drive_until(&mut self, is_done: impl Fn(&Self) -> bool) -> Result<(), SessionError> {
        std::future::poll_fn(|cx| {
            while !is_done(self) {
                if let Err(end) = ready!(self.poll_turn(cx)) {
                    self.end = Some(end.clone());
                    return Poll::Ready(Err(end));
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Transmits, then reads each connection once and acts on it. `Ready(Ok)` means: something came.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SessionError>> {
        // Pending here registers for room in the sockets; reading goes on all the same.
        if let Poll::Ready(Err(end)) = self.poll_transmit(cx) {
            return Poll::Ready(Err(end));
        }
        let mut came = false;
        for cid in cids(&self.lines) {
            let Some(line) = &mut self.lines[usize::from(cid)] else {
                continue;
            };
            let acted = match line.poll_read(cx, &mut self.slots) {
                Poll::Ready(Ok(0)) => self.session.handle_closed(cid),
                Poll::Ready(Ok(_)) => self.handle_received(cid),
                Poll::Ready(Err(cause)) => Err(SessionError::lost(cause)),
                Poll::Pending => continue,
            };
            came = true;
            self.apply_events();
            acted?;
        }
        if came {
            Poll::Ready(Ok(()))
        } else {
            self.poll_timer(cx)
        }
    }

    /// Fills the transmitters from the machine and writes, until nothing may leave any more.
    fn poll_transmit(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SessionError>> {
        loop {
            self.fill();
            let (mut wrote, mut is_blocked) = (false, false);
            for line in self.lines.iter_mut().flatten() {
                if line.transmitter.is_empty() {
                    continue;
                }
                match line.poll_write(cx, &self.slots) {
                    Poll::Ready(written) => written.map_err(SessionError::lost)?,
                    Poll::Pending => {
                        is_blocked = true;
                        continue;
                    }
                }
                wrote = true;
            }
            if !wrote && is_blocked {
                return Poll::Pending;
            }
            if !wrote {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Takes from the machine what the transmitters have room for: what waits for no window first,
    /// then commands, each for the connection with the shortest queue.
    fn fill(&mut self) {
        for cid in cids(&self.lines) {
            self.fill_urgent(cid);
        }
        while self.session.has_command() {
            let Some(cid) = self.shortest() else { return };
            let Some(command) = self.session.poll_command(cid) else {
                return;
            };
            if let Some(line) = &mut self.lines[usize::from(cid)] {
                line.transmitter.push(command, &self.slots);
            }
            // RFC 7143 §4.2.5.2: unsolicited data in the order of the commands
            self.fill_urgent(cid);
        }
    }

    fn fill_urgent(&mut self, cid: u16) {
        let Some(line) = &mut self.lines[usize::from(cid)] else {
            return;
        };
        while line.transmitter.has_room() {
            let Some(transmit) = self.session.poll_urgent(cid) else {
                return;
            };
            line.transmitter.push(transmit, &self.slots);
        }
    }

    /// The connection with the fewest bytes before its socket, of several the one with the fewest
    /// commands in flight.
    fn shortest(&self) -> Option<u16> {
        (0_u16..)
            .zip(&self.lines)
            .filter_map(|(cid, line)| {
                let transmitter = &line.as_ref()?.transmitter;
                let in_flight = self.session.load(cid)?;
                let has_room = transmitter.has_room();
                has_room.then(|| ((transmitter.bytes(), in_flight), cid))
            })
            .min()
            .map(|(_, cid)| cid)
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
        self.apply_events();
        Poll::Ready(Ok(()))
    }

    /// Takes all PDUs that are here whole.
    fn handle_received(&mut self, cid: u16) -> Result<(), SessionError> {
        let now = now();
        self.session.handle_heard(cid, now);
        while let Some(line) = &mut self.lines[usize::from(cid)] {
            match line.receiver.next(&mut self.slots) {
                Step::Header(bhs) => {
                    let placement = self.session.handle_header(cid, &bhs, now)?;
                    line.receiver.place(placement);
                }
                Step::Segment(data) => match self.session.handle_segment(cid, data)? {
                    None => {}
                    Some(Event::Completed(completed)) => self.complete(&completed),
                    Some(event) => self.apply(event),
                },
                Step::More => break,
                Step::Corrupt(corrupt) => return Err(Violation::from(corrupt).into()),
            }
        }
        Ok(())
    }

    /// Acts on what the machine has to tell besides the answers to PDUs.
    fn apply_events(&mut self) {
        while let Some(event) = self.session.poll_event() {
            self.apply(event);
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Completed(completed) => self.complete(&completed),
            Event::FunctionEnded { tag, outcome } => self.functions.push((tag, outcome)),
            Event::ConnectionClosed { cid } => self.lines[usize::from(cid)] = None,
            Event::Told(event) => {
                tracing::info!(?event, "the target reports an event");
                if self.events.len() == EVENTS_MAX {
                    self.events.pop_front();
                }
                self.events.push_back(event);
            }
        }
    }

    fn complete(&mut self, completed: &Completed) {
        let Some((token, command)) = self.slots.remove(completed.slot) else {
            return;
        };
        for line in self.lines.iter_mut().flatten() {
            line.forget(completed, &command.data);
        }
        if completed.overflow > 0 {
            // Our own fault: whoever built the CDB asked for more than the buffer holds.
            let overflow = completed.overflow;
            tracing::warn!(overflow, cdb = ?command.cdb, "the target had more data than was expected");
        }
        self.done.push_back(Completion {
            token,
            status: completed.status,
            sense: completed.sense,
            transferred: completed.transferred,
            cdb: command.cdb,
            data: command.data,
        });
    }
}

fn cids<S>(lines: &[Option<Line<S>>]) -> std::ops::Range<u16> {
    0..u16::try_from(lines.len()).unwrap_or(u16::MAX)
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

#[cfg(test)]
mod tests;
