//! What goes wrong: each fault at its moment.

use super::target::Unit;
use super::wires::{End, Way};
use super::world::{Env, Event, Millis, World};

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Both ends, or the initiator alone, see a reset now: the target goes on in the latter case.
    Reset { is_seen_by_target: bool },
    /// A direction ends after so many more bytes, in the middle of a PDU as a rule.
    Cut { way: Way, bytes: u64, end: End },
    /// The target's direction ends; what the initiator sent arrives all the same.
    HalfClose,
    /// Bytes vanish and nobody is told.
    BlackHole { up: bool, down: bool },
    /// Bytes are late.
    Stall { way: Way, lasts: Millis },
    /// A byte is changed on its way, on a connection with both digests.
    Corrupt { way: Way },
    /// Connects are refused.
    Refuse { portal: usize, lasts: Millis },
    /// Connects are not answered.
    Ignore { portal: usize, lasts: Millis },
    /// All that goes over a portal falls silent, old connections for good.
    Outage { portal: usize, lasts: Millis },
    /// The target process ends and comes back.
    Restart {
        lasts: Millis,
        is_silent: bool,
        comes_back: ComesBack,
    },
    /// The target process does nothing for a while; its system answers for it.
    Hang { lasts: Millis },
    /// For a while after a start the target does not know its volumes.
    WarmUp { lasts: Millis },
    /// The target starts again; part of `Restart`.
    Start { comes_back: ComesBack },
    /// An asynchronous message.
    Async { event: u8, parameters: [u16; 3] },
    /// The target's ping.
    Ping,
    /// The unit grows, and says so.
    Grow,
    /// A unit attention on each session.
    Attention { asc: u8, ascq: u8 },
}

/// What is behind the LUN after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ComesBack {
    Same,
    /// Somebody else's volume.
    Another,
    /// The same volume with fewer blocks.
    Shrunk,
    /// What was there first.
    Original,
}

impl World {
    pub(crate) fn befall(&mut self, fault: Fault) {
        self.env.tell(format_args!("FAULT {fault:?}"));
        match fault {
            Fault::Refuse { portal, lasts } => {
                self.refuses_until[portal] = self.env.now + lasts;
            }
            Fault::Ignore { portal, lasts } => {
                self.ignores_until[portal] = self.env.now + lasts;
            }
            Fault::Outage { portal, lasts } => {
                self.ignores_until[portal] = self.env.now + lasts;
                for wire in &mut self.env.wires {
                    if wire.portal == portal {
                        wire.up.is_black_hole = true;
                        wire.down.is_black_hole = true;
                    }
                }
            }
            Fault::Restart {
                lasts,
                is_silent,
                comes_back,
            } => {
                self.target.stop(&mut self.env, is_silent);
                let at = self.env.now + lasts;
                self.env
                    .schedule(at, Event::Fault(Fault::Start { comes_back }));
            }
            Fault::Corrupt { way } => {
                let guarded = self.target.guarded_wires();
                if !guarded.is_empty() {
                    let wire = self.env.dice.pick(&guarded);
                    self.env.wires[wire].pipe(way).is_corrupting = true;
                }
            }
            Fault::Hang { lasts } => self.hung_until = self.env.now + lasts,
            Fault::WarmUp { lasts } => self.target.cold_until = self.env.now + lasts,
            Fault::Start { comes_back } => {
                self.change_unit(comes_back);
                self.target.start(&mut self.env);
            }
            Fault::Async { event, parameters } => {
                self.target.notify(&mut self.env, event, parameters);
            }
            Fault::Ping => self.target.ping(&mut self.env),
            Fault::Grow => {
                self.target.unit.blocks *= 2;
                self.target.announce((0x06, 0x2a, 0x09));
            }
            Fault::Attention { asc, ascq } => self.target.announce((0x06, asc, ascq)),
            Fault::Reset { .. }
            | Fault::Cut { .. }
            | Fault::HalfClose
            | Fault::BlackHole { .. }
            | Fault::Stall { .. } => self.env.befall_wire(fault),
        }
    }

    fn change_unit(&mut self, comes_back: ComesBack) {
        match comes_back {
            ComesBack::Same => {}
            ComesBack::Another => {
                let other = Unit::new(ANOTHER, self.target.unit.blocks, false);
                self.set_aside = Some(std::mem::replace(&mut self.target.unit, other));
            }
            ComesBack::Shrunk => self.target.unit.blocks /= 2,
            ComesBack::Original => {
                if let Some(original) = self.set_aside.take() {
                    self.target.unit = original;
                }
            }
        }
    }
}

impl Env {
    /// A fault of one connection that lives; none may.
    fn befall_wire(&mut self, fault: Fault) {
        let alive: Vec<usize> = (0..self.wires.len())
            .filter(|wire| self.wires[*wire].is_alive())
            .collect();
        if alive.is_empty() {
            return;
        }
        let wire = self.dice.pick(&alive);
        let now = self.now;
        self.tell(format_args!("wire {wire}: hit"));
        match fault {
            Fault::Reset { is_seen_by_target } => {
                let end = End::Reset;
                for way in [Way::Down, Way::Up] {
                    if way == Way::Down || is_seen_by_target {
                        self.schedule(now, Event::Ended { wire, way, end });
                    }
                }
                // What the initiator says from now on reaches nobody; what it said before may.
                if !is_seen_by_target && self.dice.is_within_percent(50) {
                    self.wires[wire].up.is_black_hole = true;
                }
            }
            Fault::Cut { way, bytes, end } => self.wires[wire].pipe(way).cut_after(bytes, end),
            Fault::HalfClose => {
                let (way, end) = (Way::Down, End::Fin);
                self.schedule(now, Event::Ended { wire, way, end });
            }
            Fault::BlackHole { up, down } => {
                self.wires[wire].up.is_black_hole |= up;
                self.wires[wire].down.is_black_hole |= down;
            }
            Fault::Stall { way, lasts } => {
                let until = now + lasts;
                let pipe = self.wires[wire].pipe(way);
                pipe.stalled_until = pipe.stalled_until.max(until);
            }
            Fault::Refuse { .. }
            | Fault::Ignore { .. }
            | Fault::Outage { .. }
            | Fault::Restart { .. }
            | Fault::Start { .. }
            | Fault::Hang { .. }
            | Fault::Corrupt { .. }
            | Fault::WarmUp { .. }
            | Fault::Async { .. }
            | Fault::Ping
            | Fault::Grow
            | Fault::Attention { .. } => {}
        }
    }
}

/// The identity of the volume that takes the place of ours.
const ANOTHER: u32 = 0x0bad_cafe;
