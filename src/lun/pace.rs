//! How many commands may be out at once: fewer after TASK SET FULL, slowly more again.
//!
//! A storm of TASK SET FULL answers is what arrays give to initiators that only repeat (seen in the wild).
//! Source: SAM-5 5.3.1 (TASK SET FULL).

/// The depth that the target seems to bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    depth: usize,
    good: u32,
}

impl Pace {
    /// Begins with the full depth.
    pub(super) fn new() -> Self {
        Self {
            depth: DEPTH_MAX,
            good: 0,
        }
    }

    /// How many commands may be out.
    pub(super) fn depth(self) -> usize {
        self.depth
    }

    /// A command was done.
    pub(super) fn handle_good(&mut self) {
        if self.depth == DEPTH_MAX {
            return;
        }
        self.good += 1;
        if self.good >= GOOD_A_STEP {
            self.good = 0;
            self.depth += 1;
        }
    }

    /// The target had no room while so many others were out.
    pub(super) fn handle_full(&mut self, others: usize) {
        self.good = 0;
        // What was out besides the refused one is what fits; a quarter less leaves room for other initiators.
        self.depth = self.depth.min(others - others / 4).max(1);
    }
}

/// The library's driver has as many task slots.
pub(super) const DEPTH_MAX: usize = 128;
/// From a depth of one back to all in some eight thousand commands: under a second of a busy array.
const GOOD_A_STEP: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    // S4
    #[test]
    fn full_lowers_and_good_raises() {
        let mut pace = Pace::new();
        assert_eq!(pace.depth(), 128);
        pace.handle_full(32);
        assert_eq!(pace.depth(), 24);
        // A late answer from the time of the greater depth does not raise it.
        pace.handle_full(100);
        assert_eq!(pace.depth(), 24);
        for _ in 0..63 {
            pace.handle_good();
        }
        assert_eq!(pace.depth(), 24);
        pace.handle_good();
        assert_eq!(pace.depth(), 25);
    }

    #[test]
    fn one_command_is_always_let_out_and_the_maximum_is_kept() {
        let mut pace = Pace::new();
        pace.handle_full(0);
        assert_eq!(pace.depth(), 1);
        for _ in 0..100_000 {
            pace.handle_good();
        }
        assert_eq!(pace.depth(), DEPTH_MAX);
    }
}
