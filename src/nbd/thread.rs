//! A thread with a runtime of its own, for one lane.
//!
//! A room of its own because the export and the kernel's device want the same thing: everything a lane touches, the
//! socket, the timers and the backend's session, is driven by the one thread that the lane runs on.
//!
//! Invariants:
//! 1. The future is made and polled on its own thread, so that whatever it opens belongs to that thread's reactor.
//! 2. Every thread is awaited by whoever started it; a panic ends that thread's lane only and is reported.

use std::io;
use std::thread::{Builder, JoinHandle};

use tokio::sync::oneshot;

/// A running thread.
#[derive(Debug)]
pub(super) struct LaneThread<T> {
    name: String,
    ended: oneshot::Receiver<T>,
    handle: JoinHandle<()>,
}

impl<T: Send + 'static> LaneThread<T> {
    /// Starts a thread; `run` makes the future that is the thread's whole life.
    ///
    /// The thread is marked as one that writes back dirty memory, where we have the right to (`CAP_SYS_RESOURCE`):
    /// the kernel may need it to free memory, and then must not wait for it.
    ///
    /// # Errors
    /// The system has no thread or no event queue left.
    pub(super) fn spawn<R, F>(name: String, run: R) -> io::Result<Self>
    where
        R: FnOnce() -> F + Send + 'static,
        F: Future<Output = T>,
    {
        let (tell, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = Builder::new().name(name.clone()).spawn(move || {
            if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
                tracing::debug!(
                    "this thread is no I/O flusher, for want of CAP_SYS_RESOURCE: {error}"
                );
            }
            let outcome = runtime.block_on(async move { run().await });
            // Sockets are gone before anybody hears of the end.
            drop(runtime);
            // Nobody may be waiting any more; then nobody wants to know.
            let _ = tell.send(outcome);
        })?;
        Ok(Self {
            name,
            ended,
            handle,
        })
    }

    /// Waits for the end; `None` if the thread panicked.
    ///
    /// # Cancel safety
    /// The thread goes on, unobserved.
    pub(super) async fn join(self) -> Option<T> {
        let outcome = self.ended.await.ok();
        if outcome.is_none() {
            tracing::error!(
                "lane thread {} panicked: a bug; its connection is lost",
                self.name
            );
        }
        outcome
    }

    /// Whether it is still at work.
    pub(super) fn is_running(&self) -> bool {
        !self.handle.is_finished()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_outcome_is_told_and_a_panic_is_none() {
        let thread = LaneThread::spawn("nbd-test".into(), || async {
            std::thread::current().name().map(str::to_owned)
        });
        assert_eq!(
            thread.unwrap().join().await,
            Some(Some("nbd-test".to_owned()))
        );
        let thread: io::Result<LaneThread<()>> = LaneThread::spawn("nbd-panic".into(), || async {
            panic!("as the test wants it")
        });
        assert_eq!(thread.unwrap().join().await, None);
    }
}
