//! What asks a backend for I/O, as a lane sees it: NBD connections today, another interface of the kernel tomorrow.
//!
//! A room of its own because the lane must not know who asks, as it does not know who serves (`block::Backend`).
//! Read before changing: `lane.rs`, which drives it; `connection.rs` and `link.rs`, which are two.
//!
//! Invariants:
//! 1. No task, thread, channel or lock: whoever polls the front drives it.
//! 2. Every request that `next_request` gave comes back once, in `complete` or in `give_back`.
//! 3. The front bounds what is under way; a lane takes what it is given.

use std::os::fd::BorrowedFd;
use std::task::{Context, Poll};

use crate::block::{Completion, Request};

/// A source of requests, and the sink of their answers.
pub(super) trait Front {
    /// Why it ended.
    type End;

    /// Takes in what its users sent, as far as it goes without waiting. Whether anything moved; if not, the waker is
    /// registered.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> bool;

    /// The next request for the backend, if there is one.
    fn next_request(&mut self) -> Option<Request>;

    /// The backend had no room: the request is the next one again.
    fn give_back(&mut self, request: Request);

    /// The backend has done it.
    fn complete(&mut self, completion: Completion);

    /// Sends answers, as far as it goes without waiting. As for `poll_receive`.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> bool;

    /// The backend has grown: requests may go up to there from now on.
    fn grow(&mut self, size_bytes: u64);

    /// From now on nothing new is taken; what is under way is finished.
    fn stop(&mut self);

    /// What can be read when its users have sent something, if it is one descriptor and `poll_receive` would read it now.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// That descriptor was seen to be readable: the next `poll_receive` need not wait for the reactor to say so.
    fn handle_readable(&mut self);

    /// Ready when it has ended, or was stopped, and nothing is under way: then it is polled no more.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Self::End>;
}
