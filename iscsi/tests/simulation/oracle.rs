//! What each block may hold, and judgement of what it does hold.
//!
//! ```text
//!   writes of one block:   n1 ------ n2 ------ n3 ------ n4
//!                          answered  failed    answered  sent
//!   a read that began here . . . . . . . . . . n3 or n4
//! ```
//!
//! Finer than `support::stamp::Map`: a read in flight while others are answered may give what was true at any moment
//! from its sending to its answer, and what one read saw binds those that begin after it.
//!
//! Invariants:
//! 1. Writes of one block do not overlap in time: the workload does not do that, so their order is known.
//! 2. A write that failed has acted or not, once and for all: it may be found until it was seen not to have acted, or
//!    until a later write is answered.

use std::collections::BTreeMap;

use support::stamp::{self, Content};

use super::target::BLOCK;

/// A point in the order of what was sent and answered.
pub(crate) type Moment = u64;

/// All blocks.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    blocks: BTreeMap<u64, Vec<Entry>>,
    last: Moment,
}

/// A write on its way.
#[derive(Debug)]
pub(crate) struct Write {
    number: u64,
    lba: u64,
    blocks: u64,
    pub(crate) data: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Entry {
    content: Content,
    answered: Option<Moment>,
    failed: Option<Moment>,
    /// A read gave it.
    seen: Option<Moment>,
    /// It failed, and a read showed that it had not acted.
    dead: Option<Moment>,
}

impl Oracle {
    /// A read or a flush begins.
    pub(crate) fn begin(&mut self) -> Moment {
        self.last += 1;
        self.last
    }

    /// A write begins.
    pub(crate) fn write(&mut self, lba: u64, blocks: u64) -> Write {
        let number = self.begin();
        let range = lba..lba + blocks;
        for lba in range.clone() {
            let entries = self.blocks.entry(lba).or_insert_with(|| vec![UNTOUCHED]);
            entries.push(Entry {
                content: Content::Stamp(number),
                answered: None,
                ..UNTOUCHED
            });
        }
        let data = range
            .flat_map(|lba| stamp::stamp(lba, number, BLOCK))
            .collect();
        Write {
            number,
            lba,
            blocks,
            data,
        }
    }

    /// A write ended, well or not.
    pub(crate) fn written(&mut self, write: &Write, is_good: bool) {
        let now = self.begin();
        for lba in write.lba..write.lba + write.blocks {
            let entries = self.blocks.entry(lba).or_default();
            for entry in entries {
                if entry.content == Content::Stamp(write.number) {
                    let ended = if is_good {
                        &mut entry.answered
                    } else {
                        &mut entry.failed
                    };
                    *ended = Some(now);
                }
            }
        }
    }

    /// A read that began at `since` gave this.
    ///
    /// # Errors
    /// What is wrong with the first block that is.
    pub(crate) fn read(&mut self, lba: u64, data: &[u8], since: Moment) -> Result<(), String> {
        let now = self.begin();
        for (lba, block) in (lba..).zip(data.chunks(BLOCK)) {
            let found = stamp::look(lba, block).map_err(|mismatch| mismatch.to_string())?;
            let entries = self.blocks.entry(lba).or_insert_with(|| vec![UNTOUCHED]);
            let base = newest(entries, |entry| is_before(entry.settled(), since));
            let at = entries.iter().rposition(|entry| entry.content == found);
            let is_allowed = |at: &usize| *at >= base && !is_before(entries[*at].dead, since);
            let Some(at) = at.filter(is_allowed) else {
                return Err(complaint(lba, found, &entries[base..]));
            };
            entries[at].seen.get_or_insert(now);
            for entry in &mut entries[at + 1..] {
                if is_before(entry.failed, since) {
                    entry.dead.get_or_insert(now);
                }
            }
        }
        Ok(())
    }

    /// A flush that began at `since` was answered well: `durable` gives what a loss of power would leave.
    ///
    /// # Errors
    /// The first block that it did not cover.
    pub(crate) fn flushed<'a>(
        &self,
        since: Moment,
        durable: impl Fn(u64) -> &'a [u8],
    ) -> Result<(), String> {
        for (lba, entries) in &self.blocks {
            let base = newest(entries, |entry| is_before(entry.answered, since));
            let found = stamp::look(*lba, durable(*lba)).map_err(|wrong| wrong.to_string())?;
            if !entries[base..].iter().any(|entry| entry.content == found) {
                let what = complaint(*lba, found, &entries[base..]);
                return Err(format!("after a flush, on the medium: {what}"));
            }
        }
        Ok(())
    }

    /// Blocks that were ever written or read.
    pub(crate) fn touched(&self) -> Vec<u64> {
        self.blocks.keys().copied().collect()
    }
}

impl Entry {
    /// From when on nothing older may be read.
    fn settled(&self) -> Option<Moment> {
        match (self.answered, self.seen) {
            (Some(answered), Some(seen)) => Some(answered.min(seen)),
            (answered, seen) => answered.or(seen),
        }
    }
}

fn is_before(moment: Option<Moment>, since: Moment) -> bool {
    moment.is_some_and(|moment| moment < since)
}

fn newest(entries: &[Entry], which: impl Fn(&Entry) -> bool) -> usize {
    entries.iter().rposition(which).unwrap_or(0)
}

fn complaint(lba: u64, found: Content, allowed: &[Entry]) -> String {
    let allowed: Vec<Content> = allowed.iter().map(|entry| entry.content).collect();
    format!("block {lba} holds {found:?}, of {allowed:?} at most")
}

const UNTOUCHED: Entry = Entry {
    content: Content::Zero,
    answered: Some(0),
    failed: None,
    seen: None,
    dead: None,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_in_flight_may_be_older_than_what_was_answered_meanwhile() {
        let mut oracle = Oracle::default();
        let old = oracle.write(3, 1);
        oracle.written(&old, true);
        let read = oracle.begin();
        let new = oracle.write(3, 1);
        oracle.written(&new, true);
        assert_eq!(oracle.read(3, &old.data, read), Ok(()));
        let later = oracle.begin();
        assert!(oracle.read(3, &old.data, later).is_err());
        assert_eq!(oracle.read(3, &new.data, later), Ok(()));
    }

    #[test]
    fn what_was_seen_stays() {
        let mut oracle = Oracle::default();
        let write = oracle.write(0, 1);
        let first = oracle.begin();
        assert_eq!(oracle.read(0, &write.data, first), Ok(()));
        let second = oracle.begin();
        assert!(
            oracle.read(0, &[0; BLOCK], second).is_err(),
            "not answered, but seen"
        );
    }

    #[test]
    fn a_failed_write_that_was_seen_not_to_have_acted_never_does() {
        let mut oracle = Oracle::default();
        let write = oracle.write(0, 1);
        oracle.written(&write, false);
        let first = oracle.begin();
        assert_eq!(oracle.read(0, &[0; BLOCK], first), Ok(()));
        let second = oracle.begin();
        assert!(
            oracle.read(0, &write.data, second).is_err(),
            "it landed late"
        );
        // Had it not been seen, either would do.
        let mut oracle = Oracle::default();
        let write = oracle.write(0, 1);
        oracle.written(&write, false);
        let first = oracle.begin();
        assert_eq!(oracle.read(0, &write.data, first), Ok(()));
    }

    #[test]
    fn a_late_write_over_an_answered_one_is_found() {
        let mut oracle = Oracle::default();
        let old = oracle.write(0, 1);
        oracle.written(&old, true);
        let new = oracle.write(0, 1);
        oracle.written(&new, true);
        let read = oracle.begin();
        assert!(oracle.read(0, &old.data, read).is_err());
    }

    #[test]
    fn a_flush_covers_what_was_answered_before_it() {
        let mut oracle = Oracle::default();
        let old = oracle.write(0, 1);
        oracle.written(&old, true);
        let flush = oracle.begin();
        let new = oracle.write(0, 1);
        oracle.written(&new, true);
        assert_eq!(oracle.flushed(flush, |_| &old.data), Ok(()));
        assert_eq!(oracle.flushed(flush, |_| &new.data), Ok(()));
        assert!(oracle.flushed(flush, |_| &[0; BLOCK]).is_err());
    }
}
