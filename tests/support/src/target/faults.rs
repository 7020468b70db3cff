//! What a target may be told to do wrong, and when.
//!
//! A room of its own so that each new misbehaviour is one variant and one question, and the honest code asks but
//! never decides. Lasting faults stay until cleared; those with `nth` strike once, at the nth SCSI command from the
//! moment of injection (1 is the next one, over all sessions).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::scsi::Sense;

/// A misbehaviour.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Every login ends with this status (RFC 7143 §11.13.5: class 2 is the initiator's fault, 3 the target's).
    RefuseLogin {
        /// Status class.
        class: u8,
        /// Status detail.
        detail: u8,
    },
    /// Every login to a target is sent elsewhere.
    Redirect {
        /// `host:port` there.
        to: String,
        /// Detail 2 instead of 1.
        permanent: bool,
    },
    /// Connections are closed at their first login request.
    CloseAtLogin,
    /// Each connection is closed after it received this many PDUs, login included.
    DropAfterPdus(u64),
    /// The connection is closed instead of answering.
    DropAtCommand {
        /// Which command.
        nth: u64,
        /// Whether the command is carried out first.
        executed: bool,
    },
    /// CHECK CONDITION with this sense.
    CheckCondition {
        /// Which command.
        nth: u64,
        /// Sense key.
        key: u8,
        /// Additional sense code.
        asc: u8,
        /// Its qualifier.
        ascq: u8,
    },
    /// CHECK CONDITION with a deferred error: it is about an earlier command, and this one is not carried out.
    DeferredError {
        /// Which command.
        nth: u64,
        /// Sense key.
        key: u8,
        /// Additional sense code.
        asc: u8,
        /// Its qualifier.
        ascq: u8,
    },
    /// A SCSI status without sense: 08h BUSY, 28h TASK SET FULL, 18h RESERVATION CONFLICT.
    Status {
        /// Which command.
        nth: u64,
        /// The status.
        status: u8,
    },
    /// A Reject PDU (RFC 7143 §11.17.1) in place of the answer.
    RejectCommand {
        /// Which command.
        nth: u64,
        /// The reason.
        reason: u8,
    },
    /// Good status, but the last bytes of a read are missing and told as residual underflow.
    ShortRead {
        /// Which command.
        nth: u64,
        /// How many bytes.
        missing: u32,
    },
    /// Every read of one of these blocks, half-open, ends with MEDIUM ERROR, on every LUN. Writes to them are taken and
    /// do not mend them.
    BadBlocks {
        /// The first LBA.
        begin: u64,
        /// The LBA behind the last.
        end: u64,
    },
    /// The command is never answered; later ones are.
    NoAnswer {
        /// Which command.
        nth: u64,
    },
    /// The command is carried out so much later; others overtake it.
    DelayCommand {
        /// Which command.
        nth: u64,
        /// How long.
        time: Duration,
    },
    /// The command is carried out when the test says so (`Target::release`); others overtake it.
    HoldCommand {
        /// Which command.
        nth: u64,
    },
    /// Every command that takes data is held until `Target::release`; its data is asked for and taken.
    HoldWrites,
    /// Every command is held until `Target::release`.
    HoldAll,
    /// Held writes are not ended with their session: they land with `Target::release`, however late. The hazard that
    /// RFC 7143 §6.3.5 forbids.
    LateWrites,
    /// Nothing is answered after login.
    Silent,
    /// Each command is carried out so much later.
    Delay(Duration),
    /// Task management is answered with this response (RFC 7143 §11.6.1) and not done.
    TaskManagement {
        /// The response.
        response: u8,
    },
    /// Task management is neither done nor answered.
    NoTaskManagement,
    /// The header digest of a PDU of ours is wrong.
    WrongHeaderDigest {
        /// Which PDU in full feature phase.
        nth: u64,
    },
    /// The data digest of a PDU of ours is wrong.
    WrongDataDigest {
        /// Which PDU with data in full feature phase.
        nth: u64,
    },
    /// The command window is this wide; 0 is closed. A window once granted is not taken back, only not renewed.
    Window(u32),
}

/// The faults of one target.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Whether there is any: asked per command, where a lock would show in a benchmark.
    any: AtomicBool,
    list: Mutex<Vec<(Fault, u64)>>,
}

/// What strikes a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Strike {
    Drop { executed: bool },
    CheckCondition(Sense),
    Deferred(Sense),
    Delay(Duration),
    Hold,
    Status(u8),
    Reject(u8),
    ShortRead(u32),
    NoAnswer,
}

impl Faults {
    pub(super) fn inject(&self, fault: Fault) {
        let countdown = match fault {
            Fault::DropAtCommand { nth, .. }
            | Fault::CheckCondition { nth, .. }
            | Fault::DeferredError { nth, .. }
            | Fault::Status { nth, .. }
            | Fault::RejectCommand { nth, .. }
            | Fault::ShortRead { nth, .. }
            | Fault::DelayCommand { nth, .. }
            | Fault::HoldCommand { nth }
            | Fault::WrongHeaderDigest { nth }
            | Fault::WrongDataDigest { nth }
            | Fault::NoAnswer { nth } => nth,
            Fault::RefuseLogin { .. }
            | Fault::Redirect { .. }
            | Fault::CloseAtLogin
            | Fault::DropAfterPdus(_)
            | Fault::BadBlocks { .. }
            | Fault::HoldWrites
            | Fault::HoldAll
            | Fault::LateWrites
            | Fault::TaskManagement { .. }
            | Fault::NoTaskManagement
            | Fault::Silent
            | Fault::Delay(_)
            | Fault::Window(_) => 0,
        };
        self.lock().push((fault, countdown));
        self.any.store(true, Ordering::Release);
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
        self.any.store(false, Ordering::Release);
    }

    /// Counts a command; at most one fault strikes it.
    pub(super) fn on_command(&self) -> Option<Strike> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut list = self.lock();
        let mut struck = None;
        list.retain_mut(|(fault, countdown)| {
            if *countdown == 0 {
                return true;
            }
            *countdown -= 1;
            if *countdown > 0 {
                return true;
            }
            struck = strike(fault);
            false
        });
        struck
    }

    /// Status class and detail for every login.
    pub(super) fn refusal(&self) -> Option<(u8, u8)> {
        self.find(|fault| {
            if let Fault::RefuseLogin { class, detail } = fault {
                Some((*class, *detail))
            } else {
                None
            }
        })
    }

    /// Where logins are sent, and whether for good.
    pub(super) fn redirect(&self) -> Option<(String, bool)> {
        self.find(|fault| {
            if let Fault::Redirect { to, permanent } = fault {
                Some((to.clone(), *permanent))
            } else {
                None
            }
        })
    }

    /// After how many PDUs a connection is closed.
    pub(super) fn pdus_max(&self) -> Option<u64> {
        self.find(|fault| {
            if let Fault::DropAfterPdus(most) = fault {
                Some(*most)
            } else {
                None
            }
        })
    }

    /// The first block of a range, half-open, that cannot be read.
    pub(super) fn bad_block(&self, begin: u64, end: u64) -> Option<u64> {
        self.find(|fault| {
            if let Fault::BadBlocks {
                begin: bad,
                end: good,
            } = *fault
            {
                let first = begin.max(bad);
                (first < end.min(good)).then_some(first)
            } else {
                None
            }
        })
    }

    /// How long a command waits.
    pub(super) fn delay(&self) -> Option<Duration> {
        self.find(|fault| {
            if let Fault::Delay(delay) = fault {
                Some(*delay)
            } else {
                None
            }
        })
    }

    /// The width to tell in place of our own.
    pub(super) fn window(&self) -> Option<u32> {
        self.find(|fault| {
            if let Fault::Window(width) = fault {
                Some(*width)
            } else {
                None
            }
        })
    }

    /// Whether there is any fault at all.
    pub(super) fn is_any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    pub(super) fn closes_at_login(&self) -> bool {
        self.has(&Fault::CloseAtLogin)
    }

    pub(super) fn is_silent(&self) -> bool {
        self.has(&Fault::Silent)
    }

    /// Whether commands that take data, or that take none, are held.
    pub(super) fn holds(&self, takes_data: bool) -> bool {
        self.has(&Fault::HoldAll) || takes_data && self.has(&Fault::HoldWrites)
    }

    pub(super) fn writes_late(&self) -> bool {
        self.has(&Fault::LateWrites)
    }

    pub(super) fn ignores_management(&self) -> bool {
        self.has(&Fault::NoTaskManagement)
    }

    pub(super) fn management_response(&self) -> Option<u8> {
        self.find(|fault| {
            if let Fault::TaskManagement { response } = fault {
                Some(*response)
            } else {
                None
            }
        })
    }

    fn has(&self, fault: &Fault) -> bool {
        self.find(|known| (known == fault).then_some(())).is_some()
    }

    fn find<T>(&self, ask: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        self.lock().iter().find_map(|(fault, _)| ask(fault))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Fault, u64)>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn strike(fault: &Fault) -> Option<Strike> {
    match *fault {
        Fault::DropAtCommand { executed, .. } => Some(Strike::Drop { executed }),
        Fault::CheckCondition { key, asc, ascq, .. } => {
            Some(Strike::CheckCondition(Sense(key, asc, ascq)))
        }
        Fault::DeferredError { key, asc, ascq, .. } => {
            Some(Strike::Deferred(Sense(key, asc, ascq)))
        }
        Fault::Status { status, .. } => Some(Strike::Status(status)),
        Fault::RejectCommand { reason, .. } => Some(Strike::Reject(reason)),
        Fault::ShortRead { missing, .. } => Some(Strike::ShortRead(missing)),
        Fault::NoAnswer { .. } => Some(Strike::NoAnswer),
        Fault::DelayCommand { time, .. } => Some(Strike::Delay(time)),
        Fault::HoldCommand { .. } => Some(Strike::Hold),
        Fault::RefuseLogin { .. }
        | Fault::Redirect { .. }
        | Fault::CloseAtLogin
        | Fault::DropAfterPdus(_)
        | Fault::BadBlocks { .. }
        | Fault::HoldWrites
        | Fault::HoldAll
        | Fault::LateWrites
        | Fault::TaskManagement { .. }
        | Fault::NoTaskManagement
        | Fault::WrongHeaderDigest { .. }
        | Fault::WrongDataDigest { .. }
        | Fault::Silent
        | Fault::Delay(_)
        | Fault::Window(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_faults_strike_once_and_lasting_ones_stay() {
        let faults = Faults::default();
        faults.inject(Fault::Status { nth: 2, status: 8 });
        faults.inject(Fault::Silent);
        assert_eq!(faults.on_command(), None);
        assert_eq!(faults.on_command(), Some(Strike::Status(8)));
        assert_eq!(faults.on_command(), None);
        assert!(faults.is_silent());
        faults.clear();
        assert!(!faults.is_silent());
    }

    #[test]
    fn bad_blocks_are_met_by_the_reads_that_touch_them() {
        let faults = Faults::default();
        faults.inject(Fault::BadBlocks { begin: 8, end: 10 });
        assert_eq!(faults.bad_block(0, 8), None);
        assert_eq!(faults.bad_block(0, 9), Some(8));
        assert_eq!(faults.bad_block(9, 20), Some(9));
        assert_eq!(faults.bad_block(10, 20), None);
    }
}
