//! The table of tasks: a slot for each, named on the wire by its index and generation.
//!
//! ```text
//!  initiator task tag:  | generation, 16 bits | slot, 16 bits |
//! ```
//!
//! A late PDU for a task that is over finds another generation in the slot, and is caught. The last
//! generation that was aborted is remembered for each slot: the target may still speak of it.
//!
//! Source: RFC 7143 §11.2.1.8 (a tag is unique while its task lives), §4.2.5.1 (allegiance).

use std::time::Instant;

use super::Violation;
use super::transfer::{Read, Write};
use crate::wire::serial::CmdSn;
use crate::wire::tag::InitiatorTaskTag;

/// One SCSI command in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    generation: u16,
    state: TaskState,
    /// The last generation of the slot that was aborted.
    aborted: Option<u16>,
    /// The connection on which the task was sent, and on which all of it stays.
    pub(crate) cid: u16,
    /// Given as the command leaves.
    pub(crate) cmd_sn: CmdSn,
    pub(crate) lun: u64,
    pub(crate) cdb: [u8; 16],
    pub(crate) transfer: Transfer,
    pub(crate) watch: Watch,
}

/// What the ladder knows of a task from its last round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    /// Since when no byte moved; `None` before the first round.
    pub(crate) quiet_since: Option<Instant>,
    pub(crate) moved: u32,
    /// The target said that it ends the task.
    pub(crate) is_doomed: bool,
}

/// Which way a task's data goes, and how far it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transfer {
    None,
    Read(Read),
    Write(Write),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TaskState {
    Free,
    /// Waits for the window.
    Queued,
    /// The target knows it, or will.
    Sent,
}

/// All tasks of a session; the number of slots is fixed.
#[derive(Debug)]
pub(crate) struct Tasks {
    slots: Vec<Task>,
    free: Vec<u16>,
    sent: usize,
    /// The oldest command that ended since the ladder's last round.
    oldest_ended: Option<CmdSn>,
}

/// Slots end below the tags of pings and logouts.
pub(crate) const SLOTS_MAX: u16 = 0xff00;

const SLOT_MASK: u32 = 0xffff;
const GENERATION_SHIFT: u32 = 16;

impl Tasks {
    /// A table of `slots` free slots, at most `SLOTS_MAX`.
    pub(crate) fn new(slots: u16) -> Self {
        let slots = slots.min(SLOTS_MAX);
        let empty = Task {
            generation: 0,
            state: TaskState::Free,
            aborted: None,
            cid: 0,
            cmd_sn: CmdSn(0),
            lun: 0,
            cdb: [0; 16],
            transfer: Transfer::None,
            watch: Watch::NEW,
        };
        Self {
            slots: vec![empty; usize::from(slots)],
            free: (0..slots).rev().collect(),
            sent: 0,
            oldest_ended: None,
        }
    }

    /// Takes a slot for a task that waits to be sent.
    pub(crate) fn insert(&mut self, lun: u64, cdb: [u8; 16], transfer: Transfer) -> Option<u16> {
        let slot = self.free.pop()?;
        let task = &mut self.slots[usize::from(slot)];
        task.generation = task.generation.wrapping_add(1);
        task.state = TaskState::Queued;
        task.lun = lun;
        task.cdb = cdb;
        task.transfer = transfer;
        task.watch = Watch::NEW;
        Some(slot)
    }

    /// The task in a slot, now sent, and its tag.
    pub(crate) fn mark_sent(
        &mut self,
        slot: u16,
        cid: u16,
        cmd_sn: CmdSn,
    ) -> (InitiatorTaskTag, &mut Task) {
        self.sent += 1;
        let task = &mut self.slots[usize::from(slot)];
        // RFC 7143 §7.2.1 (E5): no task comes back from here, so that no command is sent twice in a session
        task.state = TaskState::Sent;
        task.cid = cid;
        task.cmd_sn = cmd_sn;
        (tag(slot, task.generation), task)
    }

    /// The sent task that a tag names.
    ///
    /// # Errors
    /// There is none: the tag is unknown, or of a task that is over or was never sent.
    pub(crate) fn find(&mut self, itt: InitiatorTaskTag) -> Result<(u16, &mut Task), Violation> {
        let unknown = Violation::UnknownTask(itt.0);
        let Ok(slot) = u16::try_from(itt.0 & SLOT_MASK) else {
            return Err(unknown);
        };
        match self.slots.get_mut(usize::from(slot)) {
            Some(task)
                if task.state == TaskState::Sent
                    && u32::from(task.generation) == itt.0 >> GENERATION_SHIFT =>
            {
                Ok((slot, task))
            }
            Some(_) | None => Err(unknown),
        }
    }

    /// The sent task that a tag names, on the connection where it was sent.
    ///
    /// # Errors
    /// As `find`; or it belongs to another connection.
    pub(crate) fn find_on(
        &mut self,
        cid: u16,
        itt: InitiatorTaskTag,
    ) -> Result<(u16, &mut Task), Violation> {
        let (slot, task) = self.find(itt)?;
        // RFC 7143 §4.2.5.1: all PDUs of a task pass over one connection
        if task.cid != cid {
            return Err(Violation::Allegiance {
                task: itt.0,
                expected: task.cid,
                seen: cid,
            });
        }
        Ok((slot, task))
    }

    /// Whether a tag names the last task of its slot that was aborted.
    pub(crate) fn is_aborted(&self, itt: InitiatorTaskTag) -> bool {
        let slot = usize::try_from(itt.0 & SLOT_MASK).unwrap_or(usize::MAX);
        self.slots
            .get(slot)
            .is_some_and(|task| task.aborted.map(u32::from) == Some(itt.0 >> GENERATION_SHIFT))
    }

    /// Gives a task's slot back.
    pub(crate) fn remove(&mut self, slot: u16) {
        let task = &mut self.slots[usize::from(slot)];
        if task.state == TaskState::Sent {
            self.sent -= 1;
            if self
                .oldest_ended
                .is_none_or(|oldest| task.cmd_sn.precedes(oldest))
            {
                self.oldest_ended = Some(task.cmd_sn);
            }
        }
        task.state = TaskState::Free;
        self.free.push(slot);
    }

    /// Gives an aborted task's slot back, and remembers its tag.
    pub(crate) fn abort(&mut self, slot: u16) {
        let task = &mut self.slots[usize::from(slot)];
        task.aborted = Some(task.generation);
        self.remove(slot);
    }

    /// Whether the task in a slot waits to be sent.
    pub(crate) fn is_queued(&self, slot: u16) -> bool {
        self.slots
            .get(usize::from(slot))
            .is_some_and(|task| task.state == TaskState::Queued)
    }

    /// The tag of the task in a slot, if it was sent.
    pub(crate) fn sent_tag(&self, slot: u16) -> Option<InitiatorTaskTag> {
        let task = self.slots.get(usize::from(slot))?;
        (task.state == TaskState::Sent).then(|| tag(slot, task.generation))
    }

    /// The slots of all tasks that were sent.
    pub(crate) fn sent_slots(&self) -> impl Iterator<Item = u16> {
        (0_u16..)
            .zip(&self.slots)
            .filter(|(_, task)| task.state == TaskState::Sent)
            .map(|(slot, _)| slot)
    }

    /// The task in a slot, whatever its state.
    pub(crate) fn task(&self, slot: u16) -> &Task {
        &self.slots[usize::from(slot)]
    }

    pub(crate) fn task_mut(&mut self, slot: u16) -> &mut Task {
        &mut self.slots[usize::from(slot)]
    }

    /// The oldest command that ended since this was asked last.
    pub(crate) fn take_oldest_ended(&mut self) -> Option<CmdSn> {
        self.oldest_ended.take()
    }

    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// How many tasks the target knows.
    pub(crate) fn sent(&self) -> usize {
        self.sent
    }

    /// Whether no slot is taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }
}

impl Watch {
    const NEW: Self = Self {
        quiet_since: None,
        moved: 0,
        is_doomed: false,
    };
}

fn tag(slot: u16, generation: u16) -> InitiatorTaskTag {
    InitiatorTaskTag(u32::from(generation) << GENERATION_SHIFT | u32::from(slot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_of_a_task_that_is_over_finds_nothing() {
        let mut tasks = Tasks::new(1);
        let slot = tasks.insert(0, [0; 16], Transfer::None).unwrap();
        assert!(tasks.insert(0, [0; 16], Transfer::None).is_none());
        let (first, _) = tasks.mark_sent(slot, 0, CmdSn(1));
        assert_eq!(tasks.sent(), 1);
        assert!(tasks.find(first).is_ok());
        tasks.remove(slot);
        assert_eq!((tasks.sent(), tasks.free()), (0, 1));
        assert!(tasks.find(first).is_err());

        let slot = tasks.insert(0, [0; 16], Transfer::None).unwrap();
        let queued = tag(slot, 2);
        assert!(
            tasks.find(queued).is_err(),
            "a task that was not sent cannot be answered"
        );
        let (second, _) = tasks.mark_sent(slot, 0, CmdSn(1));
        assert_eq!(second, queued);
        assert_ne!(first, second);
        assert!(tasks.find(InitiatorTaskTag::RESERVED).is_err());
    }

    // E12
    #[test]
    fn aborted_tag_is_remembered_until_the_next_abort_in_its_slot() {
        let mut tasks = Tasks::new(1);
        let slot = tasks.insert(0, [0; 16], Transfer::None).unwrap();
        let (first, _) = tasks.mark_sent(slot, 0, CmdSn(1));
        assert!(!tasks.is_aborted(first));
        tasks.abort(slot);
        assert!(tasks.is_aborted(first) && tasks.find(first).is_err());

        let slot = tasks.insert(0, [0; 16], Transfer::None).unwrap();
        let (second, _) = tasks.mark_sent(slot, 0, CmdSn(2));
        assert!(tasks.is_aborted(first) && !tasks.is_aborted(second));
        tasks.abort(slot);
        assert!(!tasks.is_aborted(first) && tasks.is_aborted(second));
        assert!(!tasks.is_aborted(InitiatorTaskTag::RESERVED));
    }

    // RFC 7143 §4.2.5.1
    #[test]
    fn task_is_found_on_its_own_connection_only() {
        let mut tasks = Tasks::new(1);
        let slot = tasks.insert(0, [0; 16], Transfer::None).unwrap();
        let (itt, _) = tasks.mark_sent(slot, 1, CmdSn(1));
        assert!(tasks.find_on(1, itt).is_ok());
        let expected = Violation::Allegiance {
            task: itt.0,
            expected: 1,
            seen: 0,
        };
        assert_eq!(tasks.find_on(0, itt).unwrap_err(), expected);
    }
}
