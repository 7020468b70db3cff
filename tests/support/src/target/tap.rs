//! The tap: what a test may do to each PDU of either side, at any point of a connection's life.
//!
//! A room of its own, so that the honest target knows nothing of it: `link` asks here for each PDU, and only while a
//! tap or the record is on.
//!
//! Invariants:
//! 1. Without tap and record a PDU costs one relaxed load here.
//! 2. Taps are asked in the order in which they were set; the first that does not pass a PDU decides.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::pdu::{Pdu, op};
use super::record::Record;

/// Who sent a PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The initiator under test.
    FromInitiator,
    /// This target.
    FromTarget,
}

/// A PDU on its way.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Connections of a target are counted from 1 as they are accepted.
    pub connection: u64,
    /// Who sent it.
    pub direction: Direction,
    /// Itself, numbered and stamped.
    pub pdu: Pdu,
}

impl Seen {
    /// Whether the initiator sent it, with this opcode.
    pub fn received(&self, opcode: u8) -> bool {
        self.direction == Direction::FromInitiator && self.pdu.opcode() == opcode
    }

    /// Whether the target sent it, with this opcode.
    pub fn sent(&self, opcode: u8) -> bool {
        self.direction == Direction::FromTarget && self.pdu.opcode() == opcode
    }

    /// Whether it is a SCSI command with this operation code.
    pub fn command(&self, operation_code: u8) -> bool {
        self.received(op::SCSI_COMMAND) && self.pdu.bhs[32] == operation_code
    }
}

/// Something that a test opens, once, and that others wait for.
#[derive(Clone, Debug, Default)]
pub struct Gate(CancellationToken);

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens it for good.
    pub fn open(&self) {
        self.0.cancel();
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        self.0.is_cancelled()
    }

    pub(super) fn wait(&self) -> impl Future<Output = ()> + Send + use<> {
        self.0.clone().cancelled_owned()
    }
}

/// What happens to a PDU.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Nothing.
    Pass,
    /// In its place these leave the target, in this order. None drops it; for a PDU of the initiator that is: the
    /// target does not see it, and answers with the steps.
    Steps(Vec<Step>),
    /// It leaves when the gate opens; what comes later overtakes it. For a PDU of the initiator: the target looks at
    /// nothing more of this connection, and stops reading, until then.
    Hold(Gate),
}

/// A piece of what leaves the target.
#[derive(Clone, Debug)]
pub enum Step {
    /// A PDU as it is, with lengths, padding and digests made for it.
    Pdu(Pdu),
    /// The same with a wrong header digest (if one is agreed upon).
    BadHeaderDigest(Pdu),
    /// The same with a wrong data digest (if one is agreed upon and there is data).
    BadDataDigest(Pdu),
    /// The first bytes of a PDU.
    Part(Pdu, usize),
    /// A PDU in segments of so many bytes, each a write of its own.
    Segments(Pdu, usize),
    /// Bytes as they are.
    Bytes(Vec<u8>),
    /// Nothing leaves for so long.
    Wait(Duration),
    /// Nothing leaves before the gate opens.
    Until(Gate),
    /// The connection is closed in an orderly way (FIN).
    Close,
    /// The connection is reset (RST).
    Reset,
}

impl Verdict {
    /// It is lost.
    pub fn drop() -> Self {
        Self::Steps(Vec::new())
    }

    /// Another leaves in its place.
    pub fn change(pdu: Pdu) -> Self {
        Self::Steps(vec![Step::Pdu(pdu)])
    }

    /// Others leave in its place.
    pub fn replace(pdus: impl IntoIterator<Item = Pdu>) -> Self {
        Self::Steps(pdus.into_iter().map(Step::Pdu).collect())
    }

    /// It leaves twice.
    pub fn twice(seen: &Seen) -> Self {
        Self::replace([seen.pdu.clone(), seen.pdu.clone()])
    }

    /// Another leaves before it.
    pub fn before(seen: &Seen, first: Pdu) -> Self {
        Self::replace([first, seen.pdu.clone()])
    }

    /// Another leaves after it.
    pub fn after(seen: &Seen, then: Pdu) -> Self {
        Self::replace([seen.pdu.clone(), then])
    }

    /// It, and all behind it, leaves so much later.
    pub fn delay(seen: &Seen, time: Duration) -> Self {
        Self::Steps(vec![Step::Wait(time), Step::Pdu(seen.pdu.clone())])
    }

    /// It, and all behind it, leaves when the gate opens.
    pub fn stall(seen: &Seen, gate: &Gate) -> Self {
        Self::Steps(vec![Step::Until(gate.clone()), Step::Pdu(seen.pdu.clone())])
    }

    /// Only its first bytes leave, then the connection is closed.
    pub fn truncate(seen: &Seen, bytes: usize) -> Self {
        Self::Steps(vec![Step::Part(seen.pdu.clone(), bytes), Step::Close])
    }

    /// It leaves in segments of so many bytes.
    pub fn split(seen: &Seen, bytes: usize) -> Self {
        Self::Steps(vec![Step::Segments(seen.pdu.clone(), bytes)])
    }

    /// The connection is closed in place of it.
    pub fn close() -> Self {
        Self::Steps(vec![Step::Close])
    }

    /// The connection is closed after it.
    pub fn close_after(seen: &Seen) -> Self {
        Self::Steps(vec![Step::Pdu(seen.pdu.clone()), Step::Close])
    }

    /// The connection is reset in place of it.
    pub fn reset() -> Self {
        Self::Steps(vec![Step::Reset])
    }

    /// The connection is reset after it; the initiator may or may not still read it.
    pub fn reset_after(seen: &Seen) -> Self {
        Self::Steps(vec![Step::Pdu(seen.pdu.clone()), Step::Reset])
    }
}

type Tap = Box<dyn FnMut(&Seen) -> Verdict + Send>;

/// All that watches the wires of a target.
#[derive(Default)]
pub(super) struct Wire {
    on: AtomicBool,
    taps: Mutex<Vec<Tap>>,
    pub(super) record: Record,
}

impl Wire {
    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    pub(super) fn record(&self) -> Record {
        self.record.begin();
        self.on.store(true, Ordering::Relaxed);
        self.record.clone()
    }

    pub(super) fn tap(&self, tap: Tap) {
        self.taps().push(tap);
        self.on.store(true, Ordering::Relaxed);
    }

    /// A tap that strikes the nth PDU (from 1) for which `which` holds.
    pub(super) fn strike(
        &self,
        nth: u64,
        which: impl Fn(&Seen) -> bool + Send + 'static,
        make: impl FnOnce(&Seen) -> Verdict + Send + 'static,
    ) {
        let mut left = nth;
        let mut make = Some(make);
        self.tap(Box::new(move |seen| {
            if left == 0 || !which(seen) {
                return Verdict::Pass;
            }
            left -= 1;
            match make.take_if(|_| left == 0) {
                Some(make) => make(seen),
                None => Verdict::Pass,
            }
        }));
    }

    pub(super) fn clear(&self) {
        self.taps().clear();
        self.on.store(self.record.is_on(), Ordering::Relaxed);
    }

    /// What is to become of a PDU; recorded as it leaves or arrives.
    pub(super) fn judge(&self, seen: &Seen) -> Verdict {
        let verdict = self
            .taps()
            .iter_mut()
            .map(|tap| tap(seen))
            .find(|verdict| !matches!(verdict, Verdict::Pass))
            .unwrap_or(Verdict::Pass);
        if seen.direction == Direction::FromInitiator {
            self.record.add(seen.clone());
        }
        verdict
    }

    fn taps(&self) -> MutexGuard<'_, Vec<Tap>> {
        self.taps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire")
            .field("on", &self.on)
            .field("record", &self.record)
            .finish_non_exhaustive()
    }
}
