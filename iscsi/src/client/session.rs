//! A session that many futures may use: a task owns the driver, handles send it commands.
//!
//! Invariants:
//! 1. The channel is bounded, and a command is taken from it only when the driver has a slot.
//! 2. A command that the task took is answered, or its caller is gone, or the session has ended.
//! 3. The task ends when the last handle is gone or the session is: it logs out in order if it can.

use std::future::poll_fn;
use std::sync::{Arc, OnceLock};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{Disk, Error, Execute};
use crate::io::{Command, Completion, Driver};
use crate::proto::{SessionError, SessionParams};

/// A normal session with a target, logged in.
///
/// `logout` ends it in order and waits for its task. A session that is merely dropped ends too, once all its disks
/// are dropped, but nobody learns how.
#[derive(Debug)]
pub struct Session {
    commands: Commands,
    task: JoinHandle<Result<(), Arc<SessionError>>>,
}

impl Session {
    /// Connects and logs in, and starts the task that drives the session on the current runtime.
    ///
    /// # Errors
    /// `Login` with the cause.
    ///
    /// # Cancel safety
    /// The connection is dropped; the target ends a half-made login by itself.
    pub async fn connect(params: &SessionParams) -> Result<Self, Error> {
        let driver = Driver::connect(params).await?;
        let (sender, receiver) = mpsc::channel(QUEUED_COMMANDS_MAX);
        let end = Arc::new(OnceLock::new());
        let task = tokio::spawn(Owner::new(driver, Arc::clone(&end)).run(receiver));
        Ok(Self {
            commands: Commands { sender, end },
            task,
        })
    }

    /// Probes a logical unit and gives a handle of it; many may exist at once.
    ///
    /// # Errors
    /// As `probe`.
    pub async fn disk(&self, lun: u16) -> Result<Disk, Error> {
        Disk::of(self.commands(), lun).await
    }

    /// A carrier for commands of one's own.
    pub fn commands(&self) -> Commands {
        self.commands.clone()
    }

    /// Waits for what is in flight, logs out and waits for the task. Disks of this session must be gone: as long as
    /// one is not, the session goes on and so does this wait.
    ///
    /// # Errors
    /// `Session` if it ended in another way.
    ///
    /// # Cancel safety
    /// The session ends all the same.
    pub async fn logout(self) -> Result<(), Error> {
        let Self { commands, task } = self;
        drop(commands);
        let during = "logging out";
        match task.await {
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

/// Sends commands to the task of a session. Cheap to clone.
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
        answered.await.map_err(|_| lost(self))
    }
}

/// A command and the one who waits for its answer.
#[derive(Debug)]
struct Order {
    command: Command,
    answer: oneshot::Sender<Completion>,
}

/// The task: it owns the driver.
#[derive(Debug)]
struct Owner {
    driver: Driver,
    /// Who waits, by the driver's token.
    waiting: Vec<Option<oneshot::Sender<Completion>>>,
    free: Vec<usize>,
    end: Arc<OnceLock<Arc<SessionError>>>,
}

/// What woke the task.
#[derive(Debug)]
enum Event {
    Order(Order),
    NoMoreOrders,
    Completion(Completion),
    Lost(SessionError),
}

impl Owner {
    fn new(driver: Driver, end: Arc<OnceLock<Arc<SessionError>>>) -> Self {
        Self {
            driver,
            waiting: Vec::new(),
            free: Vec::new(),
            end,
        }
    }

    async fn run(mut self, mut orders: mpsc::Receiver<Order>) -> Result<(), Arc<SessionError>> {
        let mut open = true;
        while open || self.free.len() < self.waiting.len() {
            match self.select(&mut orders, open).await {
                Event::Order(order) => self.submit(order),
                Event::NoMoreOrders => open = false,
                Event::Completion(completion) => self.answer(completion),
                Event::Lost(error) => {
                    let error = Arc::new(error);
                    // Before the senders go, so that whoever waits finds the reason.
                    let _ = self.end.set(Arc::clone(&error));
                    return Err(error);
                }
            }
        }
        self.driver.logout().await.map_err(Arc::new)
    }

    /// Awaits and changes nothing but what the driver does by itself.
    async fn select(&mut self, orders: &mut mpsc::Receiver<Order>, open: bool) -> Event {
        let has_slot = self.driver.free_slots() > 0;
        tokio::select! {
            polled = poll_fn(|cx| self.driver.poll_completion(cx)) => match polled {
                Ok(completion) => Event::Completion(completion),
                Err(error) => Event::Lost(error),
            },
            order = orders.recv(), if open && has_slot => {
                order.map_or(Event::NoMoreOrders, Event::Order)
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
        if self.driver.submit(token, order.command).is_ok() {
            self.waiting[slot] = Some(order.answer);
        } else {
            self.free.push(slot);
        }
    }

    fn answer(&mut self, completion: Completion) {
        let slot = usize::try_from(completion.token).unwrap_or(usize::MAX);
        if let Some(answer) = self.waiting.get_mut(slot).and_then(Option::take) {
            self.free.push(slot);
            // Whoever waited may have lost interest; the command was done all the same.
            let _ = answer.send(completion);
        }
    }
}

/// Waiting senders beyond it wait in `send`; as many as the driver has slots, so that one burst passes.
const QUEUED_COMMANDS_MAX: usize = 128;
