//! A link that is dead: what its socket still holds is taken in, and the kernel is given another one.
//!
//! A room of its own because it decides which requests may still be answered.
//! Read before changing: `link.rs`: invariants 1, 3 and 4.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::UnixStream;

use crate::nbd::connection::End;
use crate::nbd::journal::now_s;
use crate::sys::socket;

use super::{ADOPTION_S, Link, RELINKS_MAX};

/// How often, and how long, it is looked whether the driver has read what was sent.
const VERDICT_LOOKS: u32 = 50;
const VERDICT_PAUSE: Duration = Duration::from_millis(1);

impl Link {
    /// The socket is dead, or useless: what it still holds is taken in, and the kernel is given another.
    pub(super) fn lose_link(&mut self, why: &str) {
        let Some(stream) = self.stream.take() else {
            return;
        };
        if self.end.is_some() {
            return self.drop_replies();
        }
        self.relinks += 1;
        if self.relinker.is_over() || self.relinks > RELINKS_MAX {
            self.end = Some(End::Closed);
            return self.drop_replies();
        }
        if self.leaving {
            return;
        }
        tracing::warn!("a link to the kernel is lost ({why}): it gets another");
        self.take_back_doubtful();
        // What waited longer in the socket may have been sent anew.
        let waited_s = now_s().saturating_sub(self.journal.received_s());
        let is_stuck = self.stalled || self.waiting.is_some();
        self.take_in(&stream, !is_stuck || waited_s <= ADOPTION_S);
        self.sent = 0;
        self.silence_old();
        let doubt = self.replay.is_in_doubt();
        let relinker = Arc::clone(&self.relinker);
        self.relinking = Some(Box::pin(async move {
            // What was sent last may be on its way to the driver, or is never read.
            let mut is_all_read = false;
            for _ in 0..if doubt { VERDICT_LOOKS } else { 0 } {
                is_all_read = socket::is_all_read(&stream).unwrap_or(false);
                if is_all_read {
                    break;
                }
                tokio::time::sleep(VERDICT_PAUSE).await;
            }
            drop(stream);
            (relinker.relink().await, is_all_read)
        }));
    }

    /// Takes in all that lies in a socket, and ends what came over it. Not believed: the kernel may have sent it anew.
    pub(super) fn take_in<F: AsFd>(&mut self, socket: &F, is_believed: bool) {
        self.journal.set_ending(is_believed);
        if let Err(error) = rustix::net::shutdown(socket, rustix::net::Shutdown::Both) {
            tracing::debug!("a socket cannot be shut down: {error}");
        }
        loop {
            let there = socket::readable_bytes(socket).unwrap_or(0);
            if there == 0 || !is_believed {
                break;
            }
            let due = self.due.as_mut().map(|due| (&mut due.block, due.filled));
            let read = |parts: &mut [io::IoSliceMut<'_>; 2]| {
                rustix::io::readv(socket, parts).map_err(io::Error::from)
            };
            match self.journal.receive(due, there, true, read) {
                Ok(got) if got.payload + got.input > 0 => {
                    if let Some(due) = &mut self.due {
                        due.filled += got.payload;
                    }
                }
                // No room, or an error: the rest comes back by the kernel's timer.
                Ok(_) | Err(_) => break,
            }
        }
        self.forget_stream(is_believed);
    }

    /// What is not whole of the stream was not sent wholly.
    pub(super) fn forget_stream(&mut self, is_believed: bool) {
        if let Some(due) = self.due.take_if(|due| due.filled == due.block.len()) {
            let accepted = self.machine.handle_payload();
            self.begin(accepted, due.slot, &due.request, Some(due.block));
        }
        self.machine.begin_anew();
        (self.waiting, self.refused, self.skipping) = (None, None, false);
        let receiving = self.due.take();
        if !is_believed {
            self.journal.drop_input();
        }
        self.journal
            .end_link(receiving.as_ref().map(|due| due.slot));
        if let Some(due) = receiving {
            self.journal.put_payload(due.block);
        }
    }

    /// Requests whose timer may send them anew are not answered any more.
    fn silence_old(&mut self) {
        let now = now_s();
        let is_old = |since_s: u64| now.saturating_sub(since_s) > ADOPTION_S;
        for under_way in self.under_way.iter_mut().flatten() {
            under_way.is_mute |= is_old(under_way.since_s);
        }
        for _ in 0..self.replies.len() {
            match self.replies.pop_front() {
                Some(reply) if is_old(reply.since_s) => self.recycle(reply),
                Some(reply) => self.replies.push_back(reply),
                None => break,
            }
        }
        for outgoing in self.replay.take_old(is_old) {
            self.recycle(outgoing);
        }
        self.next_doubtful();
    }

    pub(super) fn poll_relinking(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(relinking) = &mut self.relinking else {
            return false;
        };
        let Poll::Ready((outcome, is_all_read)) = relinking.as_mut().poll(cx) else {
            return false;
        };
        self.relinking = None;
        self.judge_probation(is_all_read);
        self.silence_old();
        match outcome.and_then(UnixStream::from_std) {
            Ok(stream) => {
                self.stream = Some(stream);
                self.journal.set_ending(false);
                if self.replay.is_clear() {
                    self.tell_standing();
                }
            }
            Err(error) => {
                tracing::error!("a lane is lost: the kernel takes no new socket: {error}");
                self.end.get_or_insert(End::Lost(error));
                self.drop_replies();
            }
        }
        true
    }

    pub(super) fn tell_standing(&mut self) {
        if let Some(standing) = self.standing.take() {
            // Nobody waits for it any more: then nobody wants to know.
            let _ = standing.send(());
        }
    }
}
