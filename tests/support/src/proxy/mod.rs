//! A network that fails: a TCP proxy on loopback that cuts, stalls and corrupts what goes through it.
//!
//! Told one fault at a time (`make`), or to draw them from a seed (`begin`). It knows nothing of iSCSI: faults fall
//! where they fall, in the middle of a header as well as between two logins.
//!
//! Read before changing: `plan` (when), `Line` (what is done to a connection).
//!
//! Invariants:
//! 1. One thread of its own carries all connections; it ends with the `Proxy`, and they with it.
//! 2. Its port stays its own while nobody listens: a bound socket holds it.
//! 3. Every fault that was made is counted, at the moment it is made.

mod line;
mod plan;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep_until;

pub use plan::{Kind, Plan};

use line::Line;
use plan::Course;

/// A way through the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From whoever connected to us.
    ToTarget,
    /// From whom we connected to.
    ToClient,
}

/// What can be done to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Both peers get a reset.
    Kill,
    /// Both peers see the end of the stream; what they still send is swallowed.
    Close,
    /// The receiver of this way sees the end of the stream; the other way goes on.
    HalfClose(Way),
    /// Nothing goes either way for so long; then all of it comes.
    Stall(Duration),
    /// One bit of the next byte is turned over.
    Corrupt(Way),
    /// Nobody listens for so long, and all connections are killed.
    Refuse(Duration),
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were taken.
    pub connections: u64,
    /// Of them, those for which the target could not be reached; not a fault of ours.
    pub unreachable: u64,
    /// Bytes carried to the target.
    pub to_target_bytes: u64,
    /// Bytes carried to the client.
    pub to_client_bytes: u64,
    /// `Fault::Kill`.
    pub kills: u64,
    /// `Fault::Close`.
    pub closes: u64,
    /// `Fault::HalfClose`.
    pub half_closes: u64,
    /// `Fault::Stall`.
    pub stalls: u64,
    /// `Fault::Corrupt`.
    pub corruptions: u64,
    /// `Fault::Refuse`.
    pub refusals: u64,
}

impl Counts {
    /// All faults together.
    pub fn faults(&self) -> u64 {
        self.kills + self.closes + self.half_closes + self.stalls + self.corruptions + self.refusals
    }

    /// Faults that a connection cannot survive.
    pub fn cuts(&self) -> u64 {
        self.faults() - self.stalls - self.corruptions
    }

    fn count(&mut self, fault: Fault) {
        match fault {
            Fault::Kill => self.kills += 1,
            Fault::Close => self.closes += 1,
            Fault::HalfClose(_) => self.half_closes += 1,
            Fault::Stall(_) => self.stalls += 1,
            Fault::Corrupt(_) => self.corruptions += 1,
            Fault::Refuse(_) => self.refusals += 1,
        }
    }
}

/// A running proxy, honest until told otherwise.
///
/// ```no_run
/// use support::proxy::{Fault, Plan, Proxy};
/// let proxy = Proxy::start("127.0.0.1:3260");
/// println!("connect to {}", proxy.portal());
/// proxy.make(Fault::Kill);
/// proxy.begin(Plan::new(42).faults(200));
/// ```
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and carries what comes to `target` (`127.0.0.1:PORT`).
    ///
    /// # Panics
    /// If `target` is no address, or loopback cannot be listened on.
    pub fn start(target: &str) -> Self {
        let target = target.parse().expect("an address with a port");
        let shared = Arc::new(Shared::default());
        let (told, tell) = std::sync::mpsc::sync_channel(1);
        let carrying = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(move || carry_all(target, &carrying, &told))
            .expect("a thread can be started");
        let address = tell.recv().expect("loopback can be listened on");
        Self {
            address,
            shared,
            thread: Some(thread),
        }
    }

    /// `127.0.0.1:PORT` to connect to.
    pub fn portal(&self) -> String {
        self.address.to_string()
    }

    /// Does this to every connection that stands; it is done when this returns. Counts once.
    pub fn make(&self, fault: Fault) {
        let (done, all_done) = std::sync::mpsc::channel();
        self.shared.order(fault, &done);
        drop(done);
        // Nobody sends: the end comes when the last connection has dropped its order.
        let _ = all_done.recv();
    }

    /// From now on faults come by this plan; what is left of an earlier one is forgotten.
    pub fn begin(&self, plan: Plan) {
        let mut state = self.shared.lock();
        state.course = Some(Course::new(plan));
        state.is_paused = false;
    }

    /// No faults by the plan until `resume`.
    pub fn pause(&self) {
        self.shared.lock().is_paused = true;
    }

    /// The plan goes on where it was.
    pub fn resume(&self) {
        self.shared.lock().is_paused = false;
    }

    /// All faults of the plan were made, or there is none.
    pub fn is_done(&self) -> bool {
        self.shared
            .lock()
            .course
            .as_ref()
            .is_none_or(Course::is_done)
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.shared.lock().counts
    }

    /// Waits until the counts are as wished; `false` if they are not within the time.
    pub fn wait_until(&self, limit: Duration, is_reached: impl Fn(&Counts) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        while !is_reached(&state.counts) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        true
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.woken.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed already.
            let _ = thread.join();
        }
    }
}

/// What the handle and the thread have in common.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// The counts are others than before.
    changed: Condvar,
    /// There is something new for the listener to look at.
    woken: Notify,
}

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    course: Option<Course>,
    is_paused: bool,
    /// One sender a connection, also of those that are over.
    lines: Vec<mpsc::UnboundedSender<Order>>,
    /// Nobody listens before.
    refused_until: Option<Instant>,
    is_over: bool,
}

impl State {
    fn order_all(&mut self, fault: Fault, done: &Done) {
        self.lines.retain(|line| {
            let order = Order {
                fault,
                _done: done.clone(),
            };
            line.send(order).is_ok()
        });
    }
}

/// A fault for one connection.
#[derive(Debug)]
struct Order {
    fault: Fault,
    /// Dropped with the order.
    _done: Done,
}

type Done = std::sync::mpsc::Sender<()>;

impl Shared {
    fn take(&self, way: Way, before: u64, count: usize) -> (usize, Option<Fault>) {
        let mut state = self.lock();
        if state.is_paused {
            return (count, None);
        }
        let Some(course) = &mut state.course else {
            return (count, None);
        };
        let (count, fault) = course.take(way, before, count);
        if let Some(fault) = fault {
            state.counts.count(fault);
            self.changed.notify_all();
        }
        (count, fault)
    }

    fn count_bytes(&self, way: Way, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        let mut state = self.lock();
        match way {
            Way::ToTarget => state.counts.to_target_bytes += count,
            Way::ToClient => state.counts.to_client_bytes += count,
        }
        self.changed.notify_all();
    }

    fn order(&self, fault: Fault, done: &Done) {
        let mut state = self.lock();
        state.counts.count(fault);
        self.changed.notify_all();
        let fault = match fault {
            Fault::Refuse(pause) => self.shut_door(&mut state, pause),
            Fault::Kill
            | Fault::Close
            | Fault::HalfClose(_)
            | Fault::Stall(_)
            | Fault::Corrupt(_) => fault,
        };
        state.order_all(fault, done);
    }

    fn refuse(&self, pause: Duration) {
        let mut state = self.lock();
        let fault = self.shut_door(&mut state, pause);
        state.order_all(fault, &std::sync::mpsc::channel().0);
    }

    /// What is left to do is to kill what stands.
    fn shut_door(&self, state: &mut State, pause: Duration) -> Fault {
        state.refused_until = Some(Instant::now() + pause);
        self.woken.notify_one();
        Fault::Kill
    }

    fn door(&self) -> Door {
        let state = self.lock();
        match state.refused_until {
            _ if state.is_over => Door::Over,
            Some(until) if until > Instant::now() => Door::ShutUntil(until),
            Some(_) | None => Door::Open,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the listener is to do.
#[derive(Clone, Copy, Debug)]
enum Door {
    Open,
    ShutUntil(Instant),
    Over,
}

/// The thread: one runtime, one task a connection.
fn carry_all(
    target: SocketAddr,
    shared: &Arc<Shared>,
    told: &std::sync::mpsc::SyncSender<SocketAddr>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made");
    LocalSet::new().block_on(&runtime, async {
        // Held until the end: invariant 2.
        let holder = hold(0).expect("loopback has a free port");
        let address = holder.local_addr().expect("a bound socket has an address");
        let listener = listen(address).expect("the held port can be listened on");
        // The receiver waits for exactly this.
        let _ = told.send(address);
        accept_all(listener, address, target, shared).await;
    });
}

async fn accept_all(
    first: TcpListener,
    address: SocketAddr,
    target: SocketAddr,
    shared: &Arc<Shared>,
) {
    let mut listener = Some(first);
    loop {
        match shared.door() {
            Door::Over => return,
            Door::ShutUntil(until) => {
                listener = None;
                tokio::select! {
                    () = sleep_until(until.into()) => {}
                    () = shared.woken.notified() => {}
                }
            }
            Door::Open => {
                let listening = listener.get_or_insert_with(|| {
                    listen(address).expect("the held port can be listened on")
                });
                tokio::select! {
                    // It fails only for a connection that is gone again.
                    taken = listening.accept() => if let Ok((client, _)) = taken {
                        let shared = Arc::clone(shared);
                        spawn_local(async move { carry(client, target, &shared).await });
                    },
                    () = shared.woken.notified() => {}
                }
            }
        }
    }
}

async fn carry(client: TcpStream, target: SocketAddr, shared: &Shared) {
    let reached = TcpStream::connect(target).await;
    let (sender, orders) = mpsc::unbounded_channel();
    {
        let mut state = shared.lock();
        state.counts.connections += 1;
        state.counts.unreachable += u64::from(reached.is_err());
        state.lines.retain(|line| !line.is_closed());
        state.lines.push(sender);
        shared.changed.notify_all();
    }
    let Ok(target) = reached else {
        // Dropping it then sends RST, which is next to what the target would have done.
        let _ = client.set_zero_linger();
        return;
    };
    for socket in [&client, &target] {
        // A delay here would be one more fault; it cannot fail on a socket that stands.
        let _ = socket.set_nodelay(true);
    }
    Line::new(shared, client, target).run(orders).await;
}

/// A socket that is bound and does not listen: connecting to it is refused, binding to it is not possible but for
/// those who share it as `listen` does.
fn hold(port: u16) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
    Ok(socket)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    hold(address.port())?.listen(BACKLOG)
}

/// Chosen freely; no test connects so often at once.
const BACKLOG: u32 = 64;

#[cfg(test)]
mod tests;
