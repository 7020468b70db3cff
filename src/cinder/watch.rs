//! Looking again and again until Cinder has done something.
//!
//! Invariant: no look follows another at once, and none is further away than `PAUSE_MAX`.

use std::time::Duration;

use tokio::time::Instant;

/// Cinder needs 0.2 to 0.5 s when it has nothing else to do.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Since when it is looked at, and how long until the next look.
pub(super) struct Watch {
    started: Instant,
    pause: Duration,
}

impl Watch {
    pub(super) fn begin() -> Self {
        Self {
            started: Instant::now(),
            pause: PAUSE_FIRST,
        }
    }

    /// Whether it has been looked at for so long.
    pub(super) fn has_lasted(&self, patience: Duration) -> bool {
        self.started.elapsed() >= patience
    }

    /// Whether the next look comes within that time.
    pub(super) fn has_another(&self, patience: Duration) -> bool {
        self.started.elapsed() + self.pause <= patience
    }

    /// Until the next look; each pause is twice the one before.
    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}
