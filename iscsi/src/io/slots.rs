//! The commands in flight, by the slot that the machine gave them.

use super::{Command, Data};

/// The commands in flight.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Option<InFlight>>,
    submitted: u64,
}

#[derive(Debug)]
struct InFlight {
    token: u64,
    command: Command,
    /// Order of submission.
    number: u64,
}

impl Slots {
    pub(super) fn new(slots: usize) -> Self {
        Self {
            slots: std::iter::repeat_with(|| None).take(slots).collect(),
            submitted: 0,
        }
    }

    pub(super) fn insert(&mut self, slot: u16, token: u64, command: Command) {
        let number = self.submitted;
        self.submitted += 1;
        self.slots[usize::from(slot)] = Some(InFlight {
            token,
            command,
            number,
        });
    }

    pub(super) fn remove(&mut self, slot: u16) -> Option<(u64, Command)> {
        let in_flight = self.slots.get_mut(usize::from(slot))?.take()?;
        Some((in_flight.token, in_flight.command))
    }

    /// The slot of the command with this token; the oldest, if several have it.
    pub(super) fn find(&self, token: u64) -> Option<u16> {
        (0_u16..)
            .zip(&self.slots)
            .filter_map(|(slot, in_flight)| Some((slot, in_flight.as_ref()?)))
            .filter(|(_, in_flight)| in_flight.token == token)
            .min_by_key(|(_, in_flight)| in_flight.number)
            .map(|(slot, _)| slot)
    }

    /// All commands, in order of submission.
    pub(super) fn drain(&mut self) -> Vec<(u64, Command)> {
        let mut all: Vec<_> = self.slots.iter_mut().filter_map(Option::take).collect();
        all.sort_by_key(|in_flight| in_flight.number);
        all.into_iter()
            .map(|in_flight| (in_flight.token, in_flight.command))
            .collect()
    }

    /// The data of a write; empty for any other slot.
    pub(super) fn outgoing(&self, slot: u16) -> &[u8] {
        match self.slots.get(usize::from(slot)) {
            Some(Some(InFlight {
                command:
                    Command {
                        data: Data::Out(data),
                        ..
                    },
                ..
            })) => data,
            Some(_) | None => &[],
        }
    }

    /// The buffer of a read; empty for any other slot.
    pub(super) fn incoming(&mut self, slot: u16) -> &mut [u8] {
        match self.slots.get_mut(usize::from(slot)) {
            Some(Some(InFlight {
                command:
                    Command {
                        data: Data::In(buffer),
                        ..
                    },
                ..
            })) => buffer,
            Some(_) | None => &mut [],
        }
    }
}
