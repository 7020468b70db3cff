//! What the lanes of one volume know together: that written data was lost.
//!
//! A room of its own because it is the one thing that two lanes share. A flush on one lane covers the writes that were
//! answered on all of them (`CAN_MULTI_CONN`), so a loss that one session hears of must fail the flushes of the others too.
//!
//! Invariants:
//! 1. It only counts up: each lane remembers up to where it has told its front.
//!
//! Costs: an atomic read a flush, nothing a read or a write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How often data that had been answered was lost, shared by all that were cloned from one.
#[derive(Clone, Debug, Default)]
pub struct Losses(Arc<AtomicU64>);

impl Losses {
    /// One more.
    pub(super) fn note(&self) {
        // The answer to a flush that left after the loss was reported comes later than the report, on whatever thread.
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// How many so far.
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Whether both count the same.
    #[cfg(test)]
    pub(crate) fn is_shared_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
