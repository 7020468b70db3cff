//! Invented time and the queue of what happens in it.
//!
//! ```text
//!   initiator --(wires)--> queue of events, by time --> target, faults, wires --(wakers)--> initiator
//! ```
//!
//! Invariants:
//! 1. Everything that happens outside of the initiator is an event; events of one moment happen in the order in which
//!    they were scheduled, a few at a time, so that the initiator acts in between.
//! 2. All chance is of the seed's dice, so one seed is one story.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::dice::Dice;
use super::faults::Fault;
use super::network::Connecting;
use super::plan::When;
use super::target::{Due, Target, Unit};
use super::trace::Trace;
use super::wires::{End, Way, Weather, Wire};

/// Moments are counted from the beginning of the schedule. Tokio's clock has this grain too.
pub(crate) type Millis = u64;

/// The world, as the parts of a schedule share it. All run in one task: nobody waits for the lock.
#[derive(Clone, Debug)]
pub(crate) struct Shared(Arc<Mutex<World>>);

/// All but the initiator.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) env: Env,
    pub(crate) target: Target,
    pub(crate) connecting: Vec<Connecting>,
    /// Until when connects to each portal are refused.
    pub(crate) refuses_until: Vec<Millis>,
    /// Until when the target does nothing.
    pub(crate) hung_until: Millis,
    /// What goes wrong when something else happens.
    pub(crate) lurking: Vec<(When, Fault)>,
    /// The unit that another one took the place of.
    pub(crate) set_aside: Option<Unit>,
    /// Until when connects to each portal are not answered at all.
    pub(crate) ignores_until: Vec<Millis>,
}

/// What events act on besides the target.
#[derive(Debug)]
pub(crate) struct Env {
    pub(crate) now: Millis,
    start: Instant,
    queue: BTreeMap<(Millis, u64), Event>,
    scheduled: u64,
    pub(crate) dice: Dice,
    pub(crate) weather: Weather,
    pub(crate) wires: Vec<Wire>,
    trace: Trace,
    /// Whom to wake when something earlier than `armed` is scheduled.
    waker: Option<Waker>,
    armed: Millis,
}

/// Something that happens.
#[derive(Debug)]
pub(crate) enum Event {
    Connect {
        request: usize,
        portal: usize,
    },
    /// The first of what is under way.
    Arrival {
        wire: usize,
        way: Way,
    },
    Ended {
        wire: usize,
        way: Way,
        end: End,
    },
    Due(Due),
    Fault(Fault),
}

impl Event {
    fn is_for_target(&self) -> bool {
        match self {
            Self::Arrival { way, .. } | Self::Ended { way, .. } => *way == Way::Up,
            Self::Due(_) => true,
            Self::Connect { .. } | Self::Fault(_) => false,
        }
    }
}

impl Shared {
    /// A world at its first moment; must be called where tokio's clock runs.
    pub(crate) fn new(
        dice: Dice,
        weather: Weather,
        target: Target,
        portals: usize,
        trace: Trace,
    ) -> Self {
        let env = Env {
            now: 0,
            start: Instant::now(),
            queue: BTreeMap::new(),
            scheduled: 0,
            dice,
            weather,
            wires: Vec::new(),
            trace,
            waker: None,
            armed: 0,
        };
        Self(Arc::new(Mutex::new(World {
            env,
            target,
            connecting: Vec::new(),
            refuses_until: vec![0; portals],
            ignores_until: vec![0; portals],
            hung_until: 0,
            lurking: Vec::new(),
            set_aside: None,
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("no part of a schedule panics on")
    }

    /// Lets events happen in their time, for ever.
    pub(crate) async fn run(&self) -> Infallible {
        let mut sleep = Box::pin(tokio::time::sleep(Duration::ZERO));
        poll_fn(|cx| self.lock().poll(cx, sleep.as_mut())).await
    }

    pub(crate) fn tell(&self, what: fmt::Arguments<'_>) {
        self.lock().env.tell(what);
    }
}

impl World {
    fn poll(&mut self, cx: &mut Context<'_>, mut sleep: Pin<&mut Sleep>) -> Poll<Infallible> {
        self.env.waker = None;
        self.env.refresh();
        for _ in 0..self.env.dice.between(1, EVENTS_AT_ONCE) {
            let Some(event) = self.env.take_due() else {
                break;
            };
            self.happen(event);
        }
        self.env.armed = Millis::MAX;
        if let Some(at) = self.env.next_at() {
            self.env.armed = at;
            sleep.as_mut().reset(self.env.instant(at));
            if sleep.poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        self.env.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn happen(&mut self, event: Event) {
        if self.hung_until > self.env.now && event.is_for_target() {
            self.env.schedule(self.hung_until, event);
            return;
        }
        match event {
            Event::Connect { request, portal } => self.answer_connect(request, portal),
            Event::Arrival { wire, way } => {
                let arrived = self.env.arrive(wire, way);
                if way == Way::Up && !arrived.is_empty() {
                    self.target.handle_bytes(&mut self.env, wire, &arrived);
                    self.stir();
                }
            }
            Event::Ended { wire, way, end } => {
                if self.env.end(wire, way, end) && way == Way::Up {
                    self.target.handle_end(&mut self.env, wire);
                }
            }
            Event::Due(due) => self.target.handle_due(&mut self.env, due),
            Event::Fault(fault) => self.befall(fault),
        }
    }

    /// Faults whose occasion has come.
    fn stir(&mut self) {
        let (commands, connections) = (self.target.commands, self.env.wires.len());
        let mut woken = Vec::new();
        self.lurking.retain(|(when, fault)| {
            let is_due = match *when {
                When::At(at) => at <= self.env.now,
                When::Command(number) => number <= commands,
                When::Connection(number) => number <= connections,
            };
            if is_due {
                woken.push(*fault);
            }
            !is_due
        });
        for fault in woken {
            self.befall(fault);
        }
    }

    fn answer_connect(&mut self, request: usize, portal: usize) {
        if self.ignores_until[portal] > self.env.now {
            // As with TCP, the next try of the initiator's system may be heard.
            let at = self.env.now + SYN_RETRY;
            self.env.schedule(at, Event::Connect { request, portal });
            return;
        }
        let Connecting::Waiting(waker) = &mut self.connecting[request] else {
            return;
        };
        let waker = waker.take();
        let is_refused = self.refuses_until[portal] > self.env.now || !self.target.is_up();
        let result = if is_refused {
            self.env
                .tell(format_args!("portal {portal}: refuses to connect"));
            Err(std::io::ErrorKind::ConnectionRefused.into())
        } else {
            let wire = self.env.wires.len();
            self.env.wires.push(Wire::new(portal, &self.env.weather));
            self.env
                .tell(format_args!("wire {wire}: connected to portal {portal}"));
            self.target.handle_connected(wire, portal);
            Ok(wire)
        };
        self.connecting[request] = Connecting::Done(result);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Env {
    pub(crate) fn schedule(&mut self, at: Millis, event: Event) {
        self.scheduled += 1;
        self.queue.insert((at, self.scheduled), event);
        if at < self.armed
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
    }

    pub(crate) fn schedule_due(&mut self, at: Millis, due: Due) {
        self.schedule(at, Event::Due(due));
    }

    pub(crate) fn tell(&mut self, what: fmt::Arguments<'_>) {
        self.trace.tell(self.now, what);
    }

    pub(crate) fn trace(&mut self) -> &mut Trace {
        &mut self.trace
    }

    /// The clock stands between the polls of the world; whoever asks from outside refreshes it.
    pub(crate) fn refresh(&mut self) {
        let elapsed = self.start.elapsed().as_millis();
        self.now = Millis::try_from(elapsed).expect("a schedule does not last for ages");
    }

    fn take_due(&mut self) -> Option<Event> {
        let first = self.queue.first_entry()?;
        (first.key().0 <= self.now).then(|| first.remove())
    }

    fn next_at(&self) -> Option<Millis> {
        self.queue.keys().next().map(|(at, _)| *at)
    }

    fn instant(&self, at: Millis) -> Instant {
        self.start + Duration::from_millis(at)
    }
}

/// Events between two turns of the initiator: few, so that it meets half of a moment too.
const EVENTS_AT_ONCE: u64 = 4;
/// How often a connect that nobody answers is tried again.
const SYN_RETRY: Millis = 1000;
