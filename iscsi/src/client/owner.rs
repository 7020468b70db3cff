//! The task behind a handle: it owns what carries commands, and many futures send it theirs.
//!
//! Invariants:
//! 1. The channel is bounded, and a command is taken from it only when the carrier has a slot.
//! 2. A command that the task took is answered, or its caller is gone, or the session has ended.
//! 3. The task ends when the last handle is gone or the session is: it logs out in order if it can.

use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{Error, Execute};
use crate::io::{Command, Completion, Driver, Event, Network, Nexus, NexusError, Stream};
use crate::proto::SessionError;

/// Sends commands to the task that owns a session. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Commands {
    sender: mpsc::Sender<Order>,
    /// Set once, by the task, when the session was lost.
    end: Arc<OnceLock<Arc<SessionError>>>,
}

impl Execute for Commands {
    async fn execute(
        &mut self,
        during: &'static str,
        command: Command,
    ) -> Result<Completion, Error> {
        let (answer, answered) = oneshot::channel();
        // Both errors mean that the task has ended; `end` says why, if it was not in order.
        let lost = |commands: &Self| Error::Session {
            during,
            source: commands.end.get().cloned(),
        };
        self.sender
            .send(Order { command, answer })
            .await
            .map_err(|_| lost(self))?;
        answered
            .await
            .map_err(|_| lost(self))?
            .map_err(|source| Error::Nexus { during, source })
    }
}

/// The task of a session, awaited by whoever holds this.
#[derive(Debug)]
pub(super) struct Task(JoinHandle<Result<(), Arc<SessionError>>>);

impl Task {
    /// Waits until the last `Commands` is gone, what was in flight is answered, and the logout is done.
    ///
    /// # Errors
    /// `Session` if it ended in another way.
    ///
    /// # Cancel safety
    /// The task ends all the same.
    pub(super) async fn ended(self) -> Result<(), Error> {
        let during = "logging out";
        match self.0.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(Error::Session {
                during,
                source: Some(source),
            }),
            // Cancelled with its runtime, or a bug of ours that has been reported by the panic itself.
            Err(_) => Err(Error::Session {
                during,
                source: None,
            }),
        }
    }
}

/// Starts the task on the current runtime.
pub(super) fn start(carrier: impl Carrier) -> (Commands, Task) {
    let (sender, receiver) = mpsc::channel(QUEUED_COMMANDS_MAX);
    let end = Arc::new(OnceLock::new());
    let task = tokio::spawn(Owner::new(carrier, Arc::clone(&end)).run(receiver));
    (Commands { sender, end }, Task(task))
}

/// What carries commands: a session, or a nexus that outlives sessions.
pub(super) trait Carrier: fmt::Debug + Send + 'static {
    /// Takes a command; there was a free slot.
    fn take(&mut self, token: u64, command: Command) -> Result<(), Command>;
    /// How many more it takes.
    fn slots(&self) -> usize;
    /// Drives it.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Carried>;
    /// Ends it in order.
    fn end(self) -> impl Future<Output = Result<(), SessionError>> + Send;
}

/// What a carrier brings.
#[derive(Debug)]
pub(super) enum Carried {
    Answer(Completion),
    /// It will not be answered.
    Failure(u64, Arc<NexusError>),
    /// Something that no caller waits for.
    News,
    /// There will be no answer to anything.
    Lost(SessionError),
}

impl<S: Stream> Carrier for Driver<S> {
    fn take(&mut self, token: u64, command: Command) -> Result<(), Command> {
        self.submit(token, command)
    }

    fn slots(&self) -> usize {
        self.free_slots()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Carried> {
        self.poll_completion(cx).map(|polled| match polled {
            Ok(completion) => Carried::Answer(completion),
            Err(error) => Carried::Lost(error),
        })
    }

    async fn end(self) -> Result<(), SessionError> {
        self.logout().await
    }
}

impl<N: Network> Carrier for Nexus<N> {
    fn take(&mut self, token: u64, command: Command) -> Result<(), Command> {
        self.submit(token, command)
    }

    fn slots(&self) -> usize {
        self.free_slots()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Carried> {
        self.poll_event(cx).map(|event| match event {
            Event::Completed(completion) => Carried::Answer(completion),
            Event::Failed(failed) => Carried::Failure(failed.token, failed.cause),
            // The nexus has told its log.
            Event::Lost(_) | Event::Reinstated(_) | Event::Examined(_) | Event::Expired(_) => {
                Carried::News
            }
        })
    }

    async fn end(self) -> Result<(), SessionError> {
        self.logout().await
    }
}

/// How a command ended, for whoever sent it.
type Answer = Result<Completion, Arc<NexusError>>;

/// A command and the one who waits for its answer.
#[derive(Debug)]
struct Order {
    command: Command,
    answer: oneshot::Sender<Answer>,
}

/// The task: it owns the carrier.
#[derive(Debug)]
struct Owner<C> {
    carrier: C,
    /// Who waits, by the carrier's token.
    waiting: Vec<Option<oneshot::Sender<Answer>>>,
    free: Vec<usize>,
    end: Arc<OnceLock<Arc<SessionError>>>,
}

/// What woke the task.
#[derive(Debug)]
enum Wake {
    Order(Order),
    NoMoreOrders,
    Carried(Carried),
}

impl<C: Carrier> Owner<C> {
    fn new(carrier: C, end: Arc<OnceLock<Arc<SessionError>>>) -> Self {
        Self {
            carrier,
            waiting: Vec::new(),
            free: Vec::new(),
            end,
        }
    }

    async fn run(mut self, mut orders: mpsc::Receiver<Order>) -> Result<(), Arc<SessionError>> {
        let mut open = true;
        while open || self.free.len() < self.waiting.len() {
            match self.select(&mut orders, open).await {
                Wake::Order(order) => self.submit(order),
                Wake::NoMoreOrders => open = false,
                Wake::Carried(Carried::Answer(completion)) => {
                    self.answer(completion.token, Ok(completion));
                }
                Wake::Carried(Carried::Failure(token, cause)) => self.answer(token, Err(cause)),
                Wake::Carried(Carried::News) => {}
                Wake::Carried(Carried::Lost(error)) => {
                    let error = Arc::new(error);
                    // Before the senders go, so that whoever waits finds the reason.
                    let _ = self.end.set(Arc::clone(&error));
                    return Err(error);
                }
            }
        }
        self.carrier.end().await.map_err(Arc::new)
    }

    /// Awaits and changes nothing but what the carrier does by itself.
    async fn select(&mut self, orders: &mut mpsc::Receiver<Order>, open: bool) -> Wake {
        let has_slot = self.carrier.slots() > 0;
        tokio::select! {
            // In order, so that a run in invented time repeats itself.
            biased;
            carried = poll_fn(|cx| self.carrier.poll(cx)) => Wake::Carried(carried),
            order = orders.recv(), if open && has_slot => {
                order.map_or(Wake::NoMoreOrders, Wake::Order)
            }
        }
    }

    fn submit(&mut self, order: Order) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.waiting.push(None);
            self.waiting.len() - 1
        });
        // A slot was free, so a refusal means that the session has ended: the next poll says so, and the sender is
        // dropped with the rest.
        let token = u64::try_from(slot).unwrap_or(u64::MAX);
        if self.carrier.take(token, order.command).is_ok() {
            self.waiting[slot] = Some(order.answer);
        } else {
            self.free.push(slot);
        }
    }

    fn answer(&mut self, token: u64, answer: Answer) {
        let slot = usize::try_from(token).unwrap_or(usize::MAX);
        if let Some(waiting) = self.waiting.get_mut(slot).and_then(Option::take) {
            self.free.push(slot);
            // Whoever waited may have lost interest; the command was done all the same.
            let _ = waiting.send(answer);
        }
    }
}

/// Waiting senders beyond it wait in `send`; as many as a session has slots, so that one burst passes.
const QUEUED_COMMANDS_MAX: usize = 128;
