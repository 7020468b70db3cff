//! The lane: one front and one backend, driven by one task. This is the hot path.
//!
//! A room of its own because it alone joins the two; it decides nothing about requests (the front does) and nothing
//! about media (`block` and below do).
//! Read before changing: `front.rs`; `block::Backend`.
//!
//! ```text
//!          poll_receive, next_request            submit
//!  front ------------------------------> lane -------------> backend
//!        <------------------------------      <-------------
//!           complete, poll_send                poll_completion
//! ```
//!
//! A pass moves everything as far as it goes without waiting; passes repeat until none moves anything, so that every
//! source has its waker registered when the task sleeps.
//!
//! Invariants:
//! 1. No channel, no lock, no other thread: what is in the lane is the lane's.
//! 2. What the backend was given is waited for, whatever happens to the front.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};

use tokio_util::sync::CancellationToken;

use crate::block::{Backend, Operation, Request};

use super::courtesy::Courtesy;
use super::front::Front;
use super::transmission::REQUESTS_MAX;
use super::vigil::Vigil;

/// Passes before others (timers, the shutdown) get their turn; chosen freely.
const PASSES_MAX: usize = 32;
/// The number of the flush at the end; no request has it.
const LAST_FLUSH: u64 = u64::MAX;

/// Serves a front until it ends or `shutdown` fires; then finishes what is under way, flushes and closes the backend.
///
/// # Cancel safety
/// None: a lane that is dropped abandons its backend without a logout.
pub(super) async fn serve<F: Front, B: Backend>(
    front: F,
    backend: B,
    shutdown: &CancellationToken,
) -> F::End {
    let mut lane = Lane {
        front,
        backend,
        under_way: 0,
        vigil: Vigil::new(),
        courtesy: Courtesy::default(),
    };
    let end = lane.run(shutdown).await;
    lane.finish().await;
    end
}

struct Lane<F, B> {
    front: F,
    backend: B,
    /// Requests that the backend has.
    under_way: usize,
    vigil: Vigil,
    courtesy: Courtesy,
}

impl<F: Front, B: Backend> Lane<F, B> {
    async fn run(&mut self, shutdown: &CancellationToken) -> F::End {
        let mut cancelled = pin!(shutdown.cancelled());
        let mut stopping = false;
        loop {
            tokio::select! {
                biased;
                () = &mut cancelled, if !stopping => {
                    stopping = true;
                    self.front.stop();
                }
                end = poll_fn(|cx| self.poll_turn(cx)) => return end,
            }
        }
    }

    /// Flushes and closes the backend: what was answered is stable when the lane is gone.
    async fn finish(mut self) {
        let geometry = self.backend.geometry();
        if geometry.write_cache && !geometry.read_only {
            let flush = Request {
                token: LAST_FLUSH,
                operation: Operation::Flush,
                offset: 0,
            };
            if self.backend.submit(flush).is_err() {
                tracing::warn!("the backend took no last flush");
            } else {
                let completion = poll_fn(|cx| self.backend.poll_completion(cx)).await;
                if let Err(kind) = completion.result {
                    tracing::warn!("the last flush of a connection failed: {kind}");
                }
            }
        }
        self.backend.close().await;
    }

    /// Ready when the front has ended and nothing is under way.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<F::End> {
        self.courtesy.give_way(self.under_way);
        for _ in 0..PASSES_MAX {
            let mut moved = self.collect(cx);
            moved |= self.front.poll_receive(cx);
            moved |= self.submit();
            moved |= self.front.poll_send(cx);
            if let Poll::Ready(end) = self.front.poll_ended(cx) {
                return Poll::Ready(end);
            }
            if !moved {
                if self.wait_awake() {
                    continue;
                }
                return Poll::Pending;
            }
            self.vigil.end();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether something came while we waited awake.
    fn wait_awake(&mut self) -> bool {
        let descriptors = [self.front.descriptor(), self.backend.descriptor()];
        let [front, backend] = self.vigil.keep(self.under_way, descriptors);
        if front {
            self.front.handle_readable();
        }
        if backend {
            self.backend.handle_readable();
        }
        front || backend
    }

    /// Hands the backend's completions to the front.
    fn collect(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        for _ in 0..REQUESTS_MAX {
            let Poll::Ready(completion) = self.backend.poll_completion(cx) else {
                break;
            };
            moved = true;
            self.under_way -= 1;
            self.front.complete(completion);
        }
        // Before anything else is received: who asks for more than there was has heard of it from us.
        if let Some(size_bytes) = self.backend.take_growth() {
            self.front.grow(size_bytes);
        }
        moved
    }

    fn submit(&mut self) -> bool {
        let mut moved = false;
        while self.backend.free_slots() > 0 {
            let Some(request) = self.front.next_request() else {
                break;
            };
            if let Err(request) = self.backend.submit(request) {
                self.front.give_back(request);
                break;
            }
            self.under_way += 1;
            moved = true;
        }
        moved
    }
}
