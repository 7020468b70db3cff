//! The table of tasks: a slot for each, named on the wire by its index and generation.
//!
//! ```text
//!  initiator task tag:  | generation, 16 bits | slot, 16 bits |
//! ```
//!
//! A late PDU for a task that is over finds another generation in the slot, and is caught.
//!
//! Source: RFC 7143 §11.2.1.8 (a tag is unique while its task lives).

use super::Violation;
use super::transfer::{Read, Write};
use crate::wire::tag::InitiatorTaskTag;

/// One SCSI command in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    generation: u16,
    state: TaskState,
    pub(crate) lun: u64,
    pub(crate) cdb: [u8; 16],
    pub(crate) transfer: Transfer,
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
            lun: 0,
            cdb: [0; 16],
            transfer: Transfer::None,
        };
        Self {
            slots: vec![empty; usize::from(slots)],
            free: (0..slots).rev().collect(),
            sent: 0,
        }
    }

    /// Takes a slot for a task that waits to be sent.
    pub(crate) fn insert(&mut self, lun: u64, cdb: [u8; 16], transfer: Transfer) -> Option<u16> {
        let slot = self.free.pop()?;
        let task = &mut self.slots[usize::from(slot)];
        *task = Task {
            generation: task.generation.wrapping_add(1),
            state: TaskState::Queued,
            lun,
            cdb,
            transfer,
        };
        Some(slot)
    }

    /// The task in a slot, now sent, and its tag.
    pub(crate) fn mark_sent(&mut self, slot: u16) -> (InitiatorTaskTag, &mut Task) {
        self.sent += 1;
        let task = &mut self.slots[usize::from(slot)];
        task.state = TaskState::Sent;
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

    /// Gives a sent task's slot back.
    pub(crate) fn remove(&mut self, slot: u16) {
        let task = &mut self.slots[usize::from(slot)];
        if task.state == TaskState::Sent {
            self.sent -= 1;
        }
        task.state = TaskState::Free;
        self.free.push(slot);
    }

    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// How many tasks the target knows.
    pub(crate) fn sent(&self) -> usize {
        self.sent
    }
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
        let (first, _) = tasks.mark_sent(slot);
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
        let (second, _) = tasks.mark_sent(slot);
        assert_eq!(second, queued);
        assert_ne!(first, second);
        assert!(tasks.find(InitiatorTaskTag::RESERVED).is_err());
    }
}
