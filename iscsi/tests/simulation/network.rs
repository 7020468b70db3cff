//! What the initiator sees of the invented wires: `Network` and `Stream`.

use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::task::{Context, Poll};

use iscsi::io::{Network, Stream};
use iscsi::proto::Portal;

use super::wires::{End, Way};
use super::world::{Event, Shared};

/// All portals of the schedule.
#[derive(Clone, Debug)]
pub(crate) struct Wires(pub(crate) Shared);

/// The initiator's end of one wire.
#[derive(Debug)]
pub(crate) struct WireEnd {
    world: Shared,
    wire: usize,
}

/// A connect under way; the wire, once there is one, is left with it.
struct Request {
    world: Shared,
    number: usize,
    is_taken: bool,
}

/// Portals listen at `192.0.2.1`, `192.0.2.2` and so on.
pub(crate) fn portal(number: usize) -> Portal {
    format!("192.0.2.{}:3260", number + 1)
        .parse()
        .expect("a portal")
}

impl Network for Wires {
    type Stream = WireEnd;

    async fn connect(&self, portal: &Portal) -> io::Result<WireEnd> {
        let last = portal.host.rsplit('.').next().unwrap_or_default();
        let number = last.parse::<usize>().map_err(io::Error::other)? - 1;
        let mut request = Request {
            world: self.0.clone(),
            number: self.0.lock().connect(number),
            is_taken: false,
        };
        poll_fn(|cx| {
            let mut world = request.world.lock();
            world.poll_connected(request.number, cx)
        })
        .await
        .map(|wire| {
            request.is_taken = true;
            WireEnd {
                world: self.0.clone(),
                wire,
            }
        })
    }

    fn random(&self) -> u32 {
        let word = self.0.lock().env.dice.next();
        u32::try_from(word >> 32).expect("half of it")
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.is_taken {
            self.world.lock().give_up(self.number);
        }
    }
}

impl Stream for WireEnd {
    fn poll_read_vectored(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let world = &mut *self.world.lock();
        let env = &mut world.env;
        let down = &mut env.wires[self.wire].down;
        if down.arrived.is_empty() {
            return match down.end {
                Some(End::Fin) => Poll::Ready(Ok(0)),
                Some(End::Reset) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                None => {
                    down.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        let mut wanted = down.arrived.len();
        if wanted > 1 && env.dice.is_within_percent(env.weather.splits) {
            wanted = env.dice.index(wanted - 1) + 1;
        }
        let arrived = &mut env.wires[self.wire].down.arrived;
        let mut read = 0;
        for buffer in buffers {
            let length = buffer.len().min(wanted - read);
            for (place, byte) in buffer[..length].iter_mut().zip(arrived.drain(..length)) {
                *place = byte;
            }
            read += length;
        }
        Poll::Ready(Ok(read))
    }

    fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let world = &mut *self.world.lock();
        let env = &mut world.env;
        let wire = &mut env.wires[self.wire];
        if wire.down.end == Some(End::Reset) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let offered: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let mut length = offered.min(wire.room());
        if length == 0 {
            wire.up.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if length > 1 && env.dice.is_within_percent(env.weather.splits) {
            length = env.dice.index(length - 1) + 1;
        }
        let mut bytes = Vec::with_capacity(length);
        for buffer in buffers {
            let rest = length - bytes.len();
            bytes.extend_from_slice(&buffer[..buffer.len().min(rest)]);
        }
        env.send(self.wire, Way::Up, &bytes);
        Poll::Ready(Ok(length))
    }
}

impl Drop for WireEnd {
    fn drop(&mut self) {
        let mut world = self.world.lock();
        let env = &mut world.env;
        env.tell(format_args!("wire {}: left by the initiator", self.wire));
        env.abort(self.wire);
    }
}

/// A connect that waits for its answer.
#[derive(Debug)]
pub(crate) enum Connecting {
    Waiting(Option<std::task::Waker>),
    Done(io::Result<usize>),
    Gone,
}

impl super::world::World {
    fn connect(&mut self, portal: usize) -> usize {
        let (low, high) = self.env.weather.latency;
        let at = self.env.now + 2 * self.env.dice.between(low, high);
        let request = self.connecting.len();
        self.connecting.push(Connecting::Waiting(None));
        self.env.schedule(at, Event::Connect { request, portal });
        request
    }

    fn poll_connected(&mut self, request: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match std::mem::replace(&mut self.connecting[request], Connecting::Gone) {
            Connecting::Waiting(_) => {
                self.connecting[request] = Connecting::Waiting(Some(cx.waker().clone()));
                Poll::Pending
            }
            Connecting::Done(result) => Poll::Ready(result),
            Connecting::Gone => panic!("a connect is polled after its end"),
        }
    }

    fn give_up(&mut self, request: usize) {
        let state = std::mem::replace(&mut self.connecting[request], Connecting::Gone);
        if let Connecting::Done(Ok(wire)) = state {
            self.env.abort(wire);
        }
    }
}
