//! What happened, as a number to compare runs by and, if asked, as lines to read.
//!
//! Invariant: all that is told goes into the number, lines or not.

use std::fmt::{self, Write as _};

/// The story of one schedule.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    lines: Option<Vec<String>>,
    line: String,
}

impl Trace {
    pub(crate) fn new(is_kept: bool) -> Self {
        Self {
            hash: FNV_OFFSET,
            lines: is_kept.then(Vec::new),
            line: String::new(),
        }
    }

    pub(crate) fn tell(&mut self, now: u64, what: fmt::Arguments<'_>) {
        self.line.clear();
        let (seconds, millis) = (now / 1000, now % 1000);
        write!(self.line, "{seconds:>5}.{millis:03}  {what}").expect("strings take all");
        for byte in self.line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        }
        if let Some(lines) = &mut self.lines {
            lines.push(self.line.clone());
        }
    }

    /// The same for two runs if and only if they told the same.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn take_lines(&mut self) -> Vec<String> {
        self.lines.take().unwrap_or_default()
    }
}

/// FNV-1a, 64 bits: enough to tell runs apart, and it needs no crate.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;
