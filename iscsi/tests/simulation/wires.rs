//! Connections of invented wires: latency, bandwidth, and all that can befall a connection.
//!
//! ```text
//!   initiator  --write--> [ up:   flying | arrived ] --> target
//!   initiator  <--read--- [ down: arrived | flying ] <-- target
//! ```
//!
//! Invariants:
//! 1. What arrives is a prefix of what was sent, in order: a wire loses its end, never its middle.
//! 2. Bytes that a black hole swallowed still fill the sender's window, as with TCP.

use std::collections::VecDeque;
use std::task::Waker;

use super::world::{Env, Event, Millis};

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the target.
    Up,
    /// To the initiator.
    Down,
}

/// How a direction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Fin,
    Reset,
}

/// One direction.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    /// What was sent and has not arrived, in order; for each there is an event.
    under_way: VecDeque<Sent>,
    /// Bytes of that.
    flying: usize,
    /// Bytes that arrived and were not read (down only: the target reads at once).
    pub(crate) arrived: VecDeque<u8>,
    /// Bytes that ever arrived.
    passed: u64,
    /// When the last byte on its way is due.
    busy_until: Millis,
    /// Nothing arrives before.
    pub(crate) stalled_until: Millis,
    /// Nothing arrives any more, and nobody is told.
    pub(crate) is_black_hole: bool,
    /// The next packet has a byte that was another one.
    pub(crate) is_corrupting: bool,
    pub(crate) was_corrupted: bool,
    /// After so many bytes the direction ends so.
    pub(crate) cut: Option<(u64, End)>,
    /// How it ended, for the reader.
    pub(crate) end: Option<End>,
    pub(crate) waker: Option<Waker>,
}

#[derive(Debug)]
enum Sent {
    Packet(Vec<u8>),
    End(End),
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) portal: usize,
    pub(crate) up: Pipe,
    pub(crate) down: Pipe,
    /// Bytes that may be under way to the target.
    window: usize,
    /// Whether the initiator let go of it.
    pub(crate) is_left: bool,
    /// Whether the target let go of it: what comes is answered by a reset.
    pub(crate) is_closed: bool,
}

/// How the wires of a schedule are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    pub(crate) latency: (Millis, Millis),
    /// Bytes a millisecond.
    pub(crate) bandwidth: u64,
    /// Most bytes under way to the target, as a socket buffer has.
    pub(crate) window: usize,
    /// Percent of reads, writes and packets that are cut at a random place.
    pub(crate) splits: u64,
    /// Whether a socket that was let go sends on what it has, as closed ones do.
    pub(crate) lingers: bool,
}

impl Pipe {
    fn is_over(&self) -> bool {
        self.end.is_some() || self.is_black_hole
    }

    /// So many bytes from here the direction ends.
    pub(crate) fn cut_after(&mut self, bytes: u64, end: End) {
        self.cut = Some((self.passed + bytes, end));
    }

    pub(crate) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Wire {
    pub(crate) fn new(portal: usize, weather: &Weather) -> Self {
        Self {
            portal,
            up: Pipe::default(),
            down: Pipe::default(),
            window: weather.window,
            is_left: false,
            is_closed: false,
        }
    }

    pub(crate) fn pipe(&mut self, way: Way) -> &mut Pipe {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }

    /// Room in the initiator's socket buffer.
    pub(crate) fn room(&self) -> usize {
        self.window.saturating_sub(self.up.flying)
    }

    /// Whether somebody at both ends still believes in it.
    pub(crate) fn is_alive(&self) -> bool {
        !self.is_left && !self.is_closed && self.up.end.is_none() && self.down.end.is_none()
    }
}

impl Env {
    /// Puts bytes on a wire, in one packet or several.
    pub(crate) fn send(&mut self, wire: usize, way: Way, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let is_cut = bytes.len() > 1 && self.dice.is_within_percent(self.weather.splits);
            let length = if is_cut {
                self.dice.index(bytes.len() - 1) + 1
            } else {
                bytes.len()
            };
            let (packet, rest) = bytes.split_at(length);
            bytes = rest;
            let count = u64::try_from(length).expect("lengths fit");
            let at = self.due(wire, way, count / self.weather.bandwidth);
            let packet = Sent::Packet(packet.to_vec());
            let pipe = self.wires[wire].pipe(way);
            pipe.flying += length;
            pipe.under_way.push_back(packet);
            self.schedule(at, Event::Arrival { wire, way });
        }
    }

    /// The target has nothing more to say.
    pub(crate) fn finish(&mut self, wire: usize) {
        self.close(wire, Way::Down, End::Fin);
    }

    /// The initiator lets go: what a stalled wire has not taken from its socket is gone.
    pub(crate) fn abort(&mut self, wire: usize) {
        self.wires[wire].is_left = true;
        let now = self.now;
        let up = &mut self.wires[wire].up;
        if up.stalled_until > now && !self.weather.lingers {
            up.under_way.clear();
            up.flying = 0;
        }
        self.close(wire, Way::Up, End::Reset);
    }

    fn close(&mut self, wire: usize, way: Way, end: End) {
        let at = self.due(wire, way, 0);
        self.wires[wire]
            .pipe(way)
            .under_way
            .push_back(Sent::End(end));
        self.schedule(at, Event::Arrival { wire, way });
    }

    /// When something that is sent now arrives.
    fn due(&mut self, wire: usize, way: Way, busy: Millis) -> Millis {
        let (low, high) = self.weather.latency;
        let latency = self.dice.between(low, high);
        let at = self.now + latency + busy;
        let pipe = self.wires[wire].pipe(way);
        pipe.busy_until = pipe.busy_until.max(at);
        pipe.busy_until
    }

    /// The time of what was sent first has come: gives the bytes that reach the other end.
    pub(crate) fn arrive(&mut self, wire: usize, way: Way) -> Vec<u8> {
        let now = self.now;
        let pipe = self.wires[wire].pipe(way);
        if pipe.is_over() {
            return Vec::new();
        }
        if pipe.stalled_until > now {
            let at = pipe.stalled_until;
            self.schedule(at, Event::Arrival { wire, way });
            return Vec::new();
        }
        let mut packet = match pipe.under_way.pop_front() {
            Some(Sent::Packet(packet)) => packet,
            Some(Sent::End(end)) => {
                self.schedule(now, Event::Ended { wire, way, end });
                return Vec::new();
            }
            None => return Vec::new(),
        };
        pipe.flying -= packet.len();
        if std::mem::take(&mut pipe.is_corrupting) {
            pipe.was_corrupted = true;
            let at = self.dice.index(packet.len());
            packet[at] ^= 1 << self.dice.between(0, 7);
            self.tell(format_args!("wire {wire}: a byte going {way:?} is changed"));
        }
        let pipe = self.wires[wire].pipe(way);
        let count = u64::try_from(packet.len()).expect("lengths fit");
        let mut ends = None;
        if let Some((at, end)) = pipe.cut
            && pipe.passed + count >= at
        {
            packet.truncate(usize::try_from(at.saturating_sub(pipe.passed)).expect("a length"));
            ends = Some(end);
        }
        pipe.passed += u64::try_from(packet.len()).expect("lengths fit");
        match way {
            Way::Up => pipe.wake(),
            Way::Down => {
                pipe.arrived.extend(&packet);
                pipe.wake();
            }
        }
        if let Some(end) = ends {
            self.tell(format_args!("wire {wire}: {way:?} ends with {end:?}"));
            match end {
                End::Fin => self.schedule(now, Event::Ended { wire, way, end }),
                End::Reset => {
                    for way in [Way::Up, Way::Down] {
                        self.schedule(now, Event::Ended { wire, way, end });
                    }
                }
            }
        }
        packet
    }

    /// The end of a direction arrives; whether it is news to its reader.
    pub(crate) fn end(&mut self, wire: usize, way: Way, end: End) -> bool {
        let pipe = self.wires[wire].pipe(way);
        if pipe.is_over() {
            return false;
        }
        pipe.end = Some(end);
        pipe.wake();
        if end == End::Reset && way == Way::Down {
            // A reset discards what was not read, or comes after it was.
            if self.dice.is_within_percent(50) {
                self.wires[wire].down.arrived.clear();
            }
            self.wires[wire].up.wake();
        }
        true
    }
}
