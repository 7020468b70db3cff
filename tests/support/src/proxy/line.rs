//! One connection through the proxy: two sockets, two flows, and what has been done to them.

use std::cell::Cell;
use std::io;

use rustix::net::{Shutdown, shutdown};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::{Fault, Order, Shared, Way};

/// The two sockets of a connection; both flows work on it by turns.
#[derive(Debug)]
pub(super) struct Line<'a> {
    shared: &'a Shared,
    client: TcpStream,
    target: TcpStream,
    /// Nothing goes either way before.
    stalled_until: Cell<Option<Instant>>,
    to_target: Flow,
    to_client: Flow,
}

#[derive(Debug, Default)]
struct Flow {
    carried: Cell<u64>,
    /// Its receiver has seen the end: what still comes is read and dropped.
    is_closed: Cell<bool>,
    /// The next byte is to lose a bit.
    is_corrupting: Cell<bool>,
}

/// The connection is over, both sockets with it.
#[derive(Debug)]
struct Killed;

impl<'a> Line<'a> {
    pub(super) fn new(shared: &'a Shared, client: TcpStream, target: TcpStream) -> Self {
        Self {
            shared,
            client,
            target,
            stalled_until: Cell::new(None),
            to_target: Flow::default(),
            to_client: Flow::default(),
        }
    }

    /// Carries both ways until both have ended, or the connection is killed.
    pub(super) async fn run(self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let both = async { tokio::try_join!(self.carry(Way::ToTarget), self.carry(Way::ToClient)) };
        let obeying = async {
            while let Some(order) = orders.recv().await {
                self.strike(order.fault)?;
            }
            // The proxy itself ends.
            Err(Killed)
        };
        let ended: Result<_, Killed> = tokio::select! {
            ended = both => ended.map(drop),
            ended = obeying => ended,
        };
        if let Err(Killed) = ended {
            for socket in [&self.client, &self.target] {
                // Then dropping it sends RST; it fails only if it is reset already.
                let _ = socket.set_zero_linger();
            }
        }
    }

    /// One way until its sender ends it.
    async fn carry(&self, way: Way) -> Result<(), Killed> {
        let (from, to) = match way {
            Way::ToTarget => (&self.client, &self.target),
            Way::ToClient => (&self.target, &self.client),
        };
        let flow = self.flow(way);
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let count = read(from, &mut buffer).await.map_err(|_| Killed)?;
            if count == 0 {
                self.unstalled().await;
                self.close(way);
                return Ok(());
            }
            let mut rest = &mut buffer[..count];
            while !rest.is_empty() {
                let (count, fault) = self.shared.take(way, flow.carried.get(), rest.len());
                let now;
                (now, rest) = rest.split_at_mut(count);
                self.pass(flow, to, now).await?;
                self.shared.count_bytes(way, count);
                if let Some(fault) = fault {
                    self.strike(fault)?;
                }
            }
        }
    }

    async fn pass(&self, flow: &Flow, to: &TcpStream, bytes: &mut [u8]) -> Result<(), Killed> {
        let Some(first) = bytes.first_mut() else {
            return Ok(());
        };
        self.unstalled().await;
        if flow.is_corrupting.take() {
            // Which bit does not matter: all of them are covered or none is.
            *first ^= 1 << (flow.carried.get() % 8);
        }
        let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        flow.carried.set(flow.carried.get() + count);
        let mut rest = &*bytes;
        while !rest.is_empty() && !flow.is_closed.get() {
            to.writable().await.map_err(|_| Killed)?;
            match to.try_write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // It closed its end, maybe because of us: the sender finds out as on any network.
                Err(_) if flow.is_closed.get() => {}
                Err(_) => return Err(Killed),
            }
        }
        Ok(())
    }

    fn strike(&self, fault: Fault) -> Result<(), Killed> {
        match fault {
            Fault::Kill => return Err(Killed),
            Fault::Close => {
                self.close(Way::ToTarget);
                self.close(Way::ToClient);
            }
            Fault::HalfClose(way) => self.close(way),
            Fault::Stall(pause) => self.stalled_until.set(Some(Instant::now() + pause)),
            Fault::Corrupt(way) => self.flow(way).is_corrupting.set(true),
            Fault::Refuse(pause) => {
                self.shared.refuse(pause);
                return Err(Killed);
            }
        }
        Ok(())
    }

    async fn unstalled(&self) {
        // Again, as another stall may have come meanwhile.
        while let Some(until) = self.stalled_until.get().filter(|it| *it > Instant::now()) {
            sleep_until(until.min(Instant::now() + STALL_STEP)).await;
        }
    }

    fn close(&self, way: Way) {
        self.flow(way).is_closed.set(true);
        let to = match way {
            Way::ToTarget => &self.target,
            Way::ToClient => &self.client,
        };
        // It fails only if the socket is closed already.
        let _ = shutdown(to, Shutdown::Write);
    }

    fn flow(&self, way: Way) -> &Flow {
        match way {
            Way::ToTarget => &self.to_target,
            Way::ToClient => &self.to_client,
        }
    }
}

async fn read(from: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        from.readable().await?;
        match from.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            ended => return ended,
        }
    }
}

/// Chosen freely: large enough that the proxy is not what a test waits for.
const CHUNK_BYTES: usize = 256 << 10;
/// A stall that is cut short by a shorter one is noticed after this.
const STALL_STEP: std::time::Duration = std::time::Duration::from_millis(10);
