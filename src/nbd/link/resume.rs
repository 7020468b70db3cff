//! What a predecessor left becomes a link: requests are done again or only answered, as its journal says.
//!
//! A room of its own because it runs once, before the link serves.
//! Read before changing: `journal.rs`: invariants; `link.rs`: invariants 1 to 3.

use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::block::Geometry;
use crate::nbd::journal::{Journal, Left, Progress, now_s};
use crate::nbd::transmission::Step;
use crate::nbd::wire::{REQUEST_BYTES, command};
use crate::sys::socket;

use super::replay::Doubt;
use super::{ADOPTION_S, Due, Link, Relinker, UnderWay, errno_of, wide};

impl Link {
    /// Goes on where a predecessor ended. `standing` is told when the driver has the link and what was doubtful is
    /// cleared; it is dropped when that does not come.
    ///
    /// A socket on which no answer can have left in part goes on as it is; else the driver gets a new one.
    pub(in crate::nbd) fn resume(
        socket: Option<StdStream>,
        journal: Journal,
        mut left: Vec<Left>,
        geometry: &Geometry,
        relinker: Arc<dyn Relinker>,
        standing: oneshot::Sender<()>,
    ) -> Self {
        let mut link = Self::new(None, journal, geometry, relinker);
        link.standing = Some(standing);
        left.sort_by_key(|left| left.at);
        let mut doubtful: Vec<_> = left
            .iter()
            .filter_map(|left| match left.progress {
                Progress::Sending {
                    sequence, again, ..
                } => Some((sequence, left.slot, again)),
                Progress::Receiving { .. } | Progress::Taken | Progress::Done { .. } => None,
            })
            .collect();
        doubtful.sort_unstable_by(|one, other| other.cmp(one));
        let is_torn = !doubtful.is_empty();
        let order = doubtful.into_iter();
        link.replay.expect(
            order
                .map(|(_, slot, again)| Doubt { slot, again })
                .collect(),
        );
        let now = now_s();
        let count = left.len();
        let has_old = left
            .iter()
            .any(|left| now.saturating_sub(left.since_s) > ADOPTION_S);
        link.skipping = true;
        for left in left {
            link.take_up(left, now);
        }
        link.next_doubtful();
        let is_alive = socket
            .as_ref()
            .is_some_and(|socket| !socket::has_hung_up(socket).unwrap_or(true));
        tracing::info!(
            "a link goes on with {count} requests of its predecessor, on {} socket",
            if is_alive && !is_torn {
                "the same"
            } else {
                "a new"
            }
        );
        match socket {
            Some(socket) if is_alive && !is_torn => match UnixStream::from_std(socket) {
                Ok(stream) => {
                    link.stream = Some(stream);
                    link.journal.set_ending(false);
                    link.tell_standing();
                }
                Err(error) => {
                    tracing::warn!("a socket cannot be gone on with: {error}");
                    link.relink_first();
                }
            },
            Some(socket) => {
                // From a link that the kernel's timer ended there may be requests that it has sent anew.
                // But not if the predecessor was still at work a while ago, or ended the link itself.
                let silent_s = now.saturating_sub(link.journal.predecessor_received_s());
                let is_believed =
                    is_alive || link.journal.is_ending() || (silent_s <= ADOPTION_S && !has_old);
                link.take_in(&socket, is_believed);
                drop(socket);
                link.relink_first();
            }
            None => {
                link.forget_stream(true);
                link.relink_first();
            }
        }
        link
    }

    fn relink_first(&mut self) {
        let relinker = Arc::clone(&self.relinker);
        self.relinking = Some(Box::pin(async move { (relinker.relink().await, false) }));
    }

    fn take_up(&mut self, left: Left, now: u64) {
        let is_old = now.saturating_sub(left.since_s) > ADOPTION_S;
        let is_read = left.request.command == command::READ;
        match left.progress {
            Progress::Receiving { filled } => self.go_on_receiving(left, filled),
            Progress::Taken | Progress::Done { .. } | Progress::Sending { .. } if is_old => {
                self.drop_left(left);
            }
            Progress::Taken => self.do_again(left),
            Progress::Sending { .. } if is_read => self.do_again(left),
            Progress::Done { errno } | Progress::Sending { errno, .. } => {
                let (cookie, since_s) = (left.request.cookie, left.since_s);
                self.reply(left.slot, cookie, errno, BytesMut::new(), since_s);
            }
        }
    }

    fn do_again(&mut self, left: Left) {
        let step = self.machine.handle_input(&left.request.emit());
        let accepted = match step {
            Ok((_, Step::Submit(accepted))) => accepted,
            Ok((_, Step::Payload(_))) => self.machine.handle_payload(),
            Ok((_, Step::Reply(header))) => {
                let errno = errno_of(&header);
                self.journal.done(left.slot, errno);
                if let Some(block) = left.payload {
                    self.journal.put_payload(block);
                }
                let (cookie, since_s) = (left.request.cookie, left.since_s);
                return self.reply(left.slot, cookie, errno, BytesMut::new(), since_s);
            }
            Ok((_, Step::NeedInput | Step::Full | Step::Disconnect)) | Err(_) => {
                tracing::warn!("a request of the predecessor is left to the kernel's timer");
                self.machine.begin_anew();
                return self.drop_left(left);
            }
        };
        self.under_way[accepted.token] = Some(UnderWay {
            slot: left.slot,
            cookie: left.request.cookie,
            is_read: left.request.command == command::READ,
            since_s: left.since_s,
            block: left.payload,
            is_mute: false,
        });
        self.enqueue(accepted);
    }

    fn go_on_receiving(&mut self, mut left: Left, filled: usize) {
        let step = self.machine.handle_input(&left.request.emit());
        match (step, left.payload.take()) {
            (Ok((_, Step::Payload(_))), Some(block)) => {
                self.due = Some(Due {
                    slot: left.slot,
                    block,
                    filled,
                    request: left.request,
                });
            }
            (_, payload) => {
                // Refused now: the rest of its payload is thrown away, and the kernel's timer brings it back.
                self.machine.begin_anew();
                let end = left.at + wide(REQUEST_BYTES) + u64::from(left.request.length);
                self.journal.skip_until(end);
                left.payload = payload;
                self.drop_left(left);
            }
        }
    }

    /// A request that is not answered: the kernel's timer brings it back.
    fn drop_left(&mut self, left: Left) {
        self.replay.forget(left.slot);
        if let Some(block) = left.payload {
            self.journal.put_payload(block);
        }
        self.journal.end(left.slot);
    }
}
