//! From a seed to a schedule: the wires, the target, the work and the faults.
//!
//! Invariants:
//! 1. A plan says whether I/O may fail, and when; unless it does, its faults are shorter than `replacement_timeout`.

use std::time::Duration;

use iscsi::io::Hazards;
use iscsi::proto::{DigestPolicy, Offers, Timeouts};

use super::dice::Dice;
use super::faults::{ComesBack, Fault};
use super::target::{Config, Keys};
use super::wires::{End, Way, Weather};
use super::world::Millis;

/// What kind of trouble a schedule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing goes wrong but what a healthy target may do.
    Calm,
    /// Connections are lost in all ways.
    Lossy,
    /// The target restarts.
    Restarts,
    /// Tasks take longer than any timeout, or are forgotten.
    Slow,
    /// Another volume comes back behind the LUN.
    Remapped,
    /// The volume comes back smaller.
    Shrunk,
    /// The target is away for longer than `replacement_timeout`.
    LongOutage,
    /// Reads are answered well without all of their bytes.
    ShortReads,
    /// Two portals of one portal group.
    Paths,
    /// Two portals of two groups: a login to one does not end the session at the other.
    PathsApart,
}

/// When a fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    At(Millis),
    /// With so many commands that move data at the target: in the middle of the work.
    Command(u64),
    /// With so many connections: in the middle of a login, an examination, a replay.
    Connection(usize),
}

/// One schedule.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) kind: Kind,
    pub(crate) weather: Weather,
    pub(crate) target: Config,
    pub(crate) blocks: u64,
    pub(crate) has_cache: bool,
    pub(crate) offers: Offers,
    pub(crate) timeouts: Timeouts,
    /// Quiet time before a ping, and how long its answer may take; seconds.
    pub(crate) noop: (u64, u64),
    pub(crate) replacement_timeout: Duration,
    pub(crate) faults: Vec<(When, Fault)>,
    pub(crate) work: Work,
    /// Within this time I/O may fail, half-open.
    pub(crate) may_fail: std::ops::Range<Millis>,
    /// Whether the volume can be read at the end.
    pub(crate) ends_well: bool,
    /// Guards of the initiator that are off.
    pub(crate) hazards: Hazards,
    /// The owner of the initiator believes a good status without counting bytes.
    pub(crate) trusts_status: bool,
}

/// What is asked of the volume.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) requests: usize,
    /// Most at once.
    pub(crate) depth: usize,
    /// Most blocks of one.
    pub(crate) blocks: u64,
    /// Between two requests.
    pub(crate) pause: (Millis, Millis),
    /// Percent of reads and of flushes; the rest are writes.
    pub(crate) reads: u64,
    pub(crate) flushes: u64,
}

const KINDS: [Kind; 20] = [
    Kind::Calm,
    Kind::Calm,
    Kind::Lossy,
    Kind::Lossy,
    Kind::Lossy,
    Kind::Lossy,
    Kind::Lossy,
    Kind::Lossy,
    Kind::Restarts,
    Kind::Restarts,
    Kind::Slow,
    Kind::Slow,
    Kind::Remapped,
    Kind::Remapped,
    Kind::Shrunk,
    Kind::LongOutage,
    Kind::ShortReads,
    Kind::Paths,
    Kind::PathsApart,
    Kind::PathsApart,
];

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let kind = Dice::new(seed, 1).pick(&KINDS);
        Self::of_kind(seed, kind)
    }

    pub(crate) fn of_kind(seed: u64, kind: Kind) -> Self {
        let mut dice = Dice::new(seed, 2);
        let work = work(&mut dice);
        let mut plan = Self {
            seed,
            kind,
            weather: weather(&mut dice),
            target: target(&mut dice, kind),
            blocks: dice.pick(&[16, 48, 128]),
            has_cache: dice.is_within_percent(50),
            offers: offers(&mut dice),
            timeouts: timeouts(&mut dice, kind),
            noop: dice.pick(&[(5, 10), (2, 3), (15, 20)]),
            replacement_timeout: Duration::from_mins(2),
            faults: Vec::new(),
            work,
            may_fail: 0..0,
            ends_well: true,
            hazards: Hazards::default(),
            trusts_status: false,
        };
        // All requests are sent within this time if nothing holds them up.
        let span = u64::try_from(work.requests).expect("a count") * work.pause.1 + 100;
        plan.add_pleasantries(&mut dice, span);
        match kind {
            Kind::Calm => {}
            Kind::Lossy => plan.add_losses(&mut dice, span, 6),
            Kind::Restarts => plan.add_restarts(&mut dice, span),
            Kind::Slow => plan.add_losses(&mut dice, span, 1),
            Kind::Remapped => plan.add_replacement(&mut dice, span, ComesBack::Another),
            Kind::Shrunk => plan.add_replacement(&mut dice, span, ComesBack::Shrunk),
            Kind::LongOutage => plan.add_long_outage(&mut dice, span),
            Kind::ShortReads => plan.may_fail = 0..Millis::MAX,
            Kind::PathsApart if dice.is_within_percent(50) => {
                plan.noop = (2, 3);
                plan.add_stalled_path(&mut dice);
            }
            Kind::Paths | Kind::PathsApart => {
                plan.add_losses(&mut dice, span, 3);
                plan.add_outages(&mut dice, span);
            }
        }
        plan
    }

    pub(crate) fn portals(&self) -> usize {
        self.target.groups.len()
    }

    fn add(&mut self, at: Millis, fault: Fault) {
        self.faults.push((When::At(at), fault));
    }

    /// What healthy targets do.
    fn add_pleasantries(&mut self, dice: &mut Dice, span: Millis) {
        for _ in 0..dice.between(0, 3) {
            let at = dice.between(0, span);
            let fault = match dice.between(0, 5) {
                0 | 1 => Fault::Ping,
                2 => Fault::Grow,
                // Mode parameters, inquiry data, and something of a vendor's.
                3 => Fault::Attention {
                    asc: 0x2a,
                    ascq: 0x01,
                },
                4 => Fault::Async {
                    event: 0,
                    parameters: [0; 3],
                },
                _ => Fault::Async {
                    event: 255,
                    parameters: [1, 2, 3],
                },
            };
            self.add(at, fault);
        }
    }

    fn add_losses(&mut self, dice: &mut Dice, span: Millis, most: u64) {
        for _ in 0..dice.between(1, most) {
            let requests = u64::try_from(self.work.requests).expect("a count");
            let when = match dice.between(0, 5) {
                0 => When::At(dice.between(0, span)),
                1 => When::Connection(dice.index(3) + 1),
                _ => When::Command(dice.between(1, requests)),
            };
            let way = dice.pick(&[Way::Up, Way::Down]);
            let fault = match dice.between(0, 11) {
                0 => Fault::Reset {
                    is_seen_by_target: true,
                },
                1 | 2 => Fault::Reset {
                    is_seen_by_target: false,
                },
                3 => Fault::Cut {
                    way,
                    bytes: dice.between(1, 2000),
                    end: dice.pick(&[End::Fin, End::Reset]),
                },
                4 => Fault::HalfClose,
                5 | 6 => {
                    let up = dice.is_within_percent(60);
                    Fault::BlackHole {
                        up,
                        down: !up || dice.is_within_percent(60),
                    }
                }
                7 => Fault::Stall {
                    way,
                    lasts: dice.between(100, 20_000),
                },
                8 => Fault::Hang {
                    // Several of them may follow one another.
                    lasts: dice.between(1000, 60_000 / most),
                },
                9 => Fault::Corrupt { way },
                10 => Fault::Async {
                    event: dice.pick(&[1, 4]),
                    parameters: [0, 0, 5],
                },
                _ => Fault::Async {
                    event: dice.pick(&[2, 3]),
                    parameters: [0, 1, 0],
                },
            };
            self.faults.push((when, fault));
            let portal = dice.index(self.portals());
            let lasts = dice.between(10, 8000);
            match dice.between(0, 5) {
                0 => self.faults.push((when, Fault::Refuse { portal, lasts })),
                1 => self.faults.push((when, Fault::Ignore { portal, lasts })),
                _ => {}
            }
        }
    }

    fn add_restarts(&mut self, dice: &mut Dice, span: Millis) {
        for _ in 0..dice.between(1, 3) {
            let at = dice.between(0, span);
            self.add(
                at,
                Fault::Restart {
                    lasts: dice.between(10, 15_000),
                    is_silent: dice.is_within_percent(40),
                    comes_back: ComesBack::Same,
                },
            );
            let lasts = dice.between(0, 20_000);
            self.add(at, Fault::WarmUp { lasts });
        }
    }

    fn add_replacement(&mut self, dice: &mut Dice, span: Millis, comes_back: ComesBack) {
        let at = dice.between(0, span);
        let lasts = dice.between(10, 15_000);
        self.add(
            at,
            Fault::Restart {
                lasts,
                is_silent: dice.is_within_percent(40),
                comes_back,
            },
        );
        if comes_back == ComesBack::Another && dice.is_within_percent(50) {
            let at_last = at + lasts + dice.between(5000, 200_000);
            let lasts = dice.between(10, 5000);
            self.add(
                at_last,
                Fault::Restart {
                    lasts,
                    is_silent: dice.is_within_percent(40),
                    comes_back: ComesBack::Original,
                },
            );
            self.may_fail = at..at_last + lasts + UNTIL_FOUND;
        } else {
            self.may_fail = at..Millis::MAX;
            self.ends_well = false;
        }
    }

    fn add_long_outage(&mut self, dice: &mut Dice, span: Millis) {
        self.replacement_timeout = Duration::from_secs(dice.between(5, 40));
        let at = dice.between(0, span);
        let timeout = Millis::try_from(self.replacement_timeout.as_millis()).expect("seconds");
        let lasts = timeout + dice.between(20_000, 90_000);
        let fault = if dice.is_within_percent(50) {
            Fault::Outage { portal: 0, lasts }
        } else {
            Fault::Restart {
                lasts,
                is_silent: dice.is_within_percent(50),
                comes_back: ComesBack::Same,
            }
        };
        self.add(at, fault);
        self.may_fail = at..at + lasts + UNTIL_FOUND;
    }

    /// The connection at work stalls for longer than the pings wait, and heals when I/O goes over the other path.
    fn add_stalled_path(&mut self, dice: &mut Dice) {
        let requests = u64::try_from(self.work.requests).expect("a count");
        let when = When::Command(dice.between(1, requests / 2));
        let lasts = dice.between(8000, 40_000);
        for way in [Way::Up, Way::Down] {
            self.faults.push((when, Fault::Stall { way, lasts }));
        }
        self.faults.push((when, Fault::Ignore { portal: 0, lasts }));
    }

    fn add_outages(&mut self, dice: &mut Dice, span: Millis) {
        // The other one is well meanwhile, so it may last for longer than any patience.
        let portal = dice.index(self.portals());
        for _ in 0..dice.between(1, 2) {
            let at = dice.between(0, span);
            let lasts = dice.between(1000, 300_000);
            self.add(at, Fault::Outage { portal, lasts });
        }
    }
}

fn work(dice: &mut Dice) -> Work {
    Work {
        requests: dice.index(40) + 10,
        depth: dice.pick(&[1, 2, 4, 8, 16]),
        blocks: dice.pick(&[1, 4, 16]),
        pause: (0, dice.pick(&[5, 50, 500, 3000])),
        reads: dice.pick(&[20, 45, 70]),
        flushes: dice.pick(&[0, 5, 15]),
    }
}

fn offers(dice: &mut Dice) -> Offers {
    let max_burst_bytes = dice.pick(&[2048, 65_536, 16_711_680]);
    Offers {
        header_digest: digest(dice),
        data_digest: digest(dice),
        initial_r2t: dice.is_within_percent(30),
        immediate_data: dice.is_within_percent(70),
        max_recv_data_segment_bytes: dice.pick(&[512, 3000, 262_144]),
        max_burst_bytes,
        first_burst_bytes: dice.pick(&[512, 262_144]).min(max_burst_bytes),
        max_outstanding_r2t: dice.pick(&[1, 4]),
        time_2_wait: dice.pick(&[0, 0, 3]),
        ..Offers::default()
    }
}

fn digest(dice: &mut Dice) -> DigestPolicy {
    dice.pick(&[
        DigestPolicy::None,
        DigestPolicy::Prefer,
        DigestPolicy::Prefer,
        DigestPolicy::Require,
    ])
}

fn timeouts(dice: &mut Dice, kind: Kind) -> Timeouts {
    if kind != Kind::Slow || dice.is_within_percent(50) {
        return Timeouts::default();
    }
    Timeouts {
        command: Duration::from_secs(6),
        slow: Duration::from_secs(12),
        abort: Duration::from_secs(3),
        lu_reset: Duration::from_secs(5),
    }
}

fn weather(dice: &mut Dice) -> Weather {
    let low = dice.between(0, 5);
    Weather {
        latency: (low, low + dice.pick(&[0, 2, 20])),
        bandwidth: dice.pick(&[100, 2000, 1_000_000]),
        window: dice.pick(&[600, 5000, 300_000]),
        splits: dice.pick(&[0, 20, 70]),
        lingers: false,
    }
}

fn target(dice: &mut Dice, kind: Kind) -> Config {
    let max_burst = dice.pick(&[512, 1500, 4096, 262_144]);
    let groups = match kind {
        Kind::Paths => vec![1, 1],
        Kind::PathsApart => vec![1, 2],
        Kind::Calm
        | Kind::Lossy
        | Kind::Restarts
        | Kind::Slow
        | Kind::Remapped
        | Kind::Shrunk
        | Kind::LongOutage
        | Kind::ShortReads => vec![1],
    };
    let is_slow = kind == Kind::Slow;
    let percent = |dice: &mut Dice, most| dice.between(0, most);
    Config {
        name: TARGET.to_owned(),
        lun: dice.pick(&[0, 1, 300]),
        groups,
        window: dice.pick(&[1, 2, 4, 32, 128]).try_into().expect("small"),
        keys: Keys {
            max_recv: dice.pick(&[512, 1000, 8192, 262_144]),
            max_burst,
            first_burst: dice.pick(&[512, 2048, 65_536]).min(max_burst),
            initial_r2t: dice.is_within_percent(50),
            immediate_data: dice.is_within_percent(50),
            max_outstanding_r2t: dice.pick(&[1, 2, 4]),
            header_digest: dice.is_within_percent(50),
            data_digest: dice.is_within_percent(50),
        },
        work: (0, dice.pick(&[0, 10, 300])),
        answer: (0, dice.pick(&[0, 10, 300])),
        login: (0, dice.pick(&[0, 10, 2000])),
        troubles: if is_slow { TROUBLES_MAX } else { u64::MAX },
        refuses: if is_slow { 0 } else { dice.pick(&[0, 0, 5]) },
        // It must be known when I/O goes on after a long outage.
        refuses_logins: if matches!(kind, Kind::LongOutage | Kind::Remapped) {
            0
        } else {
            dice.pick(&[0, 0, 25])
        },
        redirects: if kind == Kind::Paths {
            dice.pick(&[0, 30])
        } else {
            0
        },
        forgets: if is_slow { percent(dice, 15) } else { 0 },
        // A task may outlive its session in any schedule: that is the late-write hazard.
        dawdles: percent(dice, 15),
        slow: if is_slow {
            (5000, 150_000)
        } else {
            (1000, 25_000)
        },
        ignores_management: if is_slow { percent(dice, 40) } else { 0 },
        shortens: if kind == Kind::ShortReads { 25 } else { 0 },
    }
}

/// A target that is back is found after a login that times out and the longest pause between two attempts, twice.
const UNTIL_FOUND: Millis = 100_000;
/// An owner repeats an aborted command three times, and a reset of the unit aborts all: so many tasks may need one.
const TROUBLES_MAX: u64 = 3;
/// The target of all schedules.
const TARGET: &str = "iqn.2026-11.org.cinder-nbd.test:model";
