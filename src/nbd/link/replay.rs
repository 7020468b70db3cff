//! Answers that a predecessor may have given: in which order they are given again, and when they are done with.
//!
//! A room of its own because the argument has many cases and hardly a system call.
//! Read before changing: the invariants of `link.rs`.
//!
//! ```text
//!  order, ready --> head of the replies --> asked (sent) --> done, once the driver has read it
//!                                                              |  all of them
//!                    sure answers --> kept (sent) ------------>+--> done, once the driver has read them
//! ```
//!
//! The answers of a process left in order of their sequence. At its death those up to some k had arrived, the others had
//! not. Given again from the last down to k + 1 they are accepted, and k is refused, which ends the link. One at a time,
//! because a successor may die as well: then one answer at most may have been given twice (*again*), and only that one's
//! refusal says nothing of those below it.
//!
//! What the driver has read is done with, whether it was taken or refused. If the link ends, then because of the one that
//! was read last: behind a refused answer nothing is read, nor are its own data. (If it ended for another reason, some requests may be taken
//! for answered that are not: the kernel's timer brings them back.)

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

use crate::sys::socket;

use super::{Link, Outgoing};

/// Between two looks whether the driver has read everything.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// Nothing behind the doubtful answers proves that the last was taken: then silence does, after so many looks.
const LOOKS_MAX: u32 = 50;

/// A doubtful answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Doubt {
    pub(super) slot: usize,
    /// A successor may have given it already.
    pub(super) again: bool,
}

/// The state.
#[derive(Default)]
pub(super) struct Replay {
    /// What is to be given again, the next first.
    order: VecDeque<Doubt>,
    /// Of these, the answers that are ready.
    ready: Vec<Outgoing>,
    /// It is at the head of the replies, or a part of it has left.
    sending: Option<Doubt>,
    /// It has left.
    asked: Option<(Doubt, Outgoing)>,
    /// It was read wholly, and is the last of this link that was; whether it had data.
    read: Option<(Doubt, bool)>,
    /// Sure answers that left behind doubtful ones.
    kept: VecDeque<Outgoing>,
    look: Option<Pin<Box<Sleep>>>,
    looks: u32,
}

impl Replay {
    /// These are doubtful, to be given again in this order.
    pub(super) fn expect(&mut self, order: VecDeque<Doubt>) {
        self.order = order;
    }

    /// Nothing is doubtful.
    pub(super) fn is_clear(&self) -> bool {
        !self.is_waiting() && self.read.is_none()
    }

    /// Whether it matters what the driver has read.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.asked.is_some() || !self.kept.is_empty()
    }

    /// The next reply is a doubtful one.
    pub(super) fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// How many of the replies may leave in the next call.
    pub(super) fn admitted(&self) -> usize {
        if self.sending.is_some() {
            1
        } else if self.is_waiting() || !self.kept.is_empty() {
            0
        } else {
            usize::MAX
        }
    }

    /// Keeps a doubtful answer until its turn; gives others back.
    pub(super) fn admit(&mut self, outgoing: Outgoing) -> Option<Outgoing> {
        if !self.order.iter().any(|doubt| doubt.slot == outgoing.slot) {
            return Some(outgoing);
        }
        self.ready.push(outgoing);
        None
    }

    /// An answer has left; it comes back if it is done with.
    pub(super) fn sent(&mut self, outgoing: Outgoing) -> Option<Outgoing> {
        if let Some(doubt) = self.sending.take() {
            self.asked = Some((doubt, outgoing));
            return None;
        }
        if self.read.is_none() {
            return Some(outgoing);
        }
        self.kept.push_back(outgoing);
        None
    }

    /// A doubtful answer will not come.
    pub(super) fn forget(&mut self, slot: usize) {
        self.order.retain(|doubt| doubt.slot != slot);
    }

    /// Gives up the doubtful answers that are ready and too old.
    pub(super) fn take_old(&mut self, is_old: impl Fn(u64) -> bool) -> Vec<Outgoing> {
        let all = std::mem::take(&mut self.ready);
        let (old, ready): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|outgoing| is_old(outgoing.since_s));
        self.ready = ready;
        for outgoing in &old {
            self.forget(outgoing.slot);
        }
        old
    }

    fn is_waiting(&self) -> bool {
        !self.order.is_empty() || self.sending.is_some() || self.asked.is_some()
    }

    /// It is not on its way any more, and is the next again.
    fn put_back(&mut self, doubt: Doubt, outgoing: Outgoing) {
        self.order.push_front(doubt);
        self.ready.push(outgoing);
    }
}

impl Link {
    /// The next doubtful answer is put before all replies, if it is ready and its turn has come.
    pub(super) fn next_doubtful(&mut self) {
        let replay = &mut self.replay;
        if replay.sending.is_some() || replay.asked.is_some() || self.sent > 0 {
            return;
        }
        let Some(&doubt) = replay.order.front() else {
            return;
        };
        let ready = replay
            .ready
            .iter()
            .position(|outgoing| outgoing.slot == doubt.slot);
        if let Some(index) = ready {
            replay.order.pop_front();
            replay.sending = Some(doubt);
            self.replies.push_front(replay.ready.swap_remove(index));
        }
    }

    /// Looks whether the driver has read what was sent; whether that changed something.
    pub(super) fn poll_probation(&mut self, cx: &mut Context<'_>) -> bool {
        let replay = &mut self.replay;
        let is_idle = replay.read.is_some() && !replay.is_waiting() && self.replies.is_empty();
        if !replay.is_in_doubt() && !is_idle {
            return false;
        }
        let Some(stream) = &self.stream else {
            return false;
        };
        if socket::is_all_read(stream).unwrap_or(false) {
            if let Some((doubt, outgoing)) = replay.asked.take() {
                let had_data = !outgoing.data.is_empty();
                (replay.read, replay.looks) = (Some((doubt, had_data)), 0);
                self.recycle(outgoing);
                self.next_doubtful();
                return true;
            }
            // Sure ones were read: nothing before them was refused. Or nothing is to be heard of a refusal.
            if !replay.kept.is_empty() || replay.looks >= LOOKS_MAX {
                (replay.read, replay.look) = (None, None);
                for outgoing in std::mem::take(&mut replay.kept) {
                    self.recycle(outgoing);
                }
                self.tell_standing();
                return true;
            }
        }
        // A refusal ends the link, and is not heard of by who does not read: a lane that leaves, or whose input waits.
        if socket::has_hung_up(stream).unwrap_or(true) {
            self.lose_link("the kernel closed it");
            return true;
        }
        let look = replay
            .look
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK_PAUSE)));
        if look.as_mut().poll(cx) == Poll::Pending {
            return false;
        }
        replay.look = None;
        replay.looks += 1;
        // Looked at again in the next pass.
        true
    }

    /// The link has died: a doubtful answer that had not left wholly is the next on another link.
    pub(super) fn take_back_doubtful(&mut self) {
        if let Some(doubt) = self.replay.sending.take()
            && let Some(outgoing) = self.replies.pop_front()
        {
            if self.sent > 0 && !outgoing.data.is_empty() {
                // Its header may have been refused while its data were on their way.
                self.replay.asked = Some((doubt, outgoing));
            } else {
                self.replay.put_back(doubt, outgoing);
            }
        }
        self.sent = 0;
    }

    /// What the link's death says of what was sent and not known to be read.
    pub(super) fn judge_probation(&mut self, is_all_read: bool) {
        let replay = &mut self.replay;
        (replay.looks, replay.look) = (0, None);
        let read = replay.read.take();
        // Of a refused answer the driver reads the header only: one whose data were read was taken.
        let mut refused = read
            .filter(|(_, had_data)| !had_data)
            .map(|(doubt, _)| doubt);
        if let Some((doubt, outgoing)) = replay.asked.take() {
            let is_itself = is_all_read || (!outgoing.data.is_empty() && refused.is_none());
            if is_itself {
                refused = Some(doubt);
                self.recycle(outgoing);
            } else {
                // Either it was refused, or the one before it.
                replay.put_back(doubt, outgoing);
            }
        }
        for outgoing in std::mem::take(&mut self.replay.kept).into_iter().rev() {
            if is_all_read {
                refused = None;
                self.recycle(outgoing);
            } else {
                self.replies.push_front(outgoing);
            }
        }
        if refused.is_some_and(|doubt| !doubt.again) {
            // All that are left had arrived.
            for doubt in std::mem::take(&mut self.replay.order) {
                for under_way in self.under_way.iter_mut().flatten() {
                    under_way.is_mute |= under_way.slot == doubt.slot;
                }
            }
            for outgoing in std::mem::take(&mut self.replay.ready) {
                self.recycle(outgoing);
            }
        }
        self.next_doubtful();
    }
}
