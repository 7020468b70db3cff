//! What the stand-in may be told to do wrong.
//!
//! A request is named by method and route: `POST /attachments`, `GET /volumes/{id}`, `POST /auth/tokens`,
//! `POST /volumes/{id}/action`; `*` is any.

use std::time::Duration;

/// A misbehaviour.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// This status in place of doing what was asked.
    Answer {
        /// Which request.
        request: String,
        /// The status; its body has the shape that clouds give it.
        status: u16,
        /// How often; `None` until cleared.
        times: Option<u32>,
    },
    /// This status, and a message with the token and the body of the request, as careless servers and proxies write it.
    Quote {
        /// Which request.
        request: String,
        /// The status.
        status: u16,
        /// How often; `None` until cleared.
        times: Option<u32>,
    },
    /// The connection closes without an answer.
    Lose {
        /// Which request.
        request: String,
        /// Whether it is carried out first.
        executed: bool,
        /// How often; `None` until cleared.
        times: Option<u32>,
    },
    /// The answer takes this long; a very long one is a server that hangs.
    Delay {
        /// Which request.
        request: String,
        /// How long.
        delay: Duration,
        /// How often; `None` until cleared.
        times: Option<u32>,
    },
    /// The next volume ends in `error`, and a message tells why.
    CreateFails,
    /// The next volume stays `creating`.
    CreateHangs,
    /// The next deletion ends in `error_deleting`.
    DeleteFails,
    /// The next connection fails with 500 and leaves its attachment `reserved`.
    ConnectFails,
    /// The next deletion of an attachment fails with 500; a repetition works.
    DetachFails,
}

impl Fault {
    /// This status for each such request until cleared.
    pub fn answer(request: &str, status: u16) -> Self {
        Self::Answer {
            request: request.to_owned(),
            status,
            times: None,
        }
    }

    /// This status once.
    pub fn answer_once(request: &str, status: u16) -> Self {
        Self::Answer {
            request: request.to_owned(),
            status,
            times: Some(1),
        }
    }

    /// This status once, with all that was sent.
    pub fn quote_once(request: &str, status: u16) -> Self {
        Self::Quote {
            request: request.to_owned(),
            status,
            times: Some(1),
        }
    }

    /// One such request is carried out, and its answer lost.
    pub fn lose_answer(request: &str) -> Self {
        Self::Lose {
            request: request.to_owned(),
            executed: true,
            times: Some(1),
        }
    }
}

/// What strikes a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Strike {
    Answer(u16),
    Quote(u16),
    Lose { executed: bool },
    Delay(Duration),
}

/// The faults of one stand-in.
#[derive(Debug, Default)]
pub(super) struct Faults {
    list: Vec<Fault>,
}

impl Faults {
    pub(super) fn inject(&mut self, fault: Fault) {
        self.list.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
    }

    /// The first fault for this request.
    pub(super) fn on_request(&mut self, name: &str) -> Option<Strike> {
        let index = self.list.iter().position(|fault| match fault {
            Fault::Answer { request, .. }
            | Fault::Quote { request, .. }
            | Fault::Lose { request, .. }
            | Fault::Delay { request, .. } => request == "*" || request == name,
            Fault::CreateFails
            | Fault::CreateHangs
            | Fault::DeleteFails
            | Fault::ConnectFails
            | Fault::DetachFails => false,
        })?;
        let (strike, times) = match &mut self.list[index] {
            Fault::Answer { status, times, .. } => (Strike::Answer(*status), times),
            Fault::Quote { status, times, .. } => (Strike::Quote(*status), times),
            Fault::Lose {
                executed, times, ..
            } => (
                Strike::Lose {
                    executed: *executed,
                },
                times,
            ),
            Fault::Delay { delay, times, .. } => (Strike::Delay(*delay), times),
            Fault::CreateFails
            | Fault::CreateHangs
            | Fault::DeleteFails
            | Fault::ConnectFails
            | Fault::DetachFails => return None,
        };
        if let Some(left) = times {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.list.remove(index);
            }
        }
        Some(strike)
    }

    /// Takes a driver's fault if it is there.
    pub(super) fn take(&mut self, fault: &Fault) -> bool {
        let index = self.list.iter().position(|known| known == fault);
        index.map(|index| self.list.remove(index)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_strike_their_request_as_often_as_told() {
        let mut faults = Faults::default();
        faults.inject(Fault::answer_once("POST /volumes", 503));
        faults.inject(Fault::answer("GET /volumes/{id}", 401));
        faults.inject(Fault::CreateFails);
        assert_eq!(faults.on_request("GET /volumes"), None);
        assert_eq!(
            faults.on_request("POST /volumes"),
            Some(Strike::Answer(503))
        );
        assert_eq!(faults.on_request("POST /volumes"), None);
        for _ in 0..3 {
            assert_eq!(
                faults.on_request("GET /volumes/{id}"),
                Some(Strike::Answer(401))
            );
        }
        assert!(faults.take(&Fault::CreateFails) && !faults.take(&Fault::CreateFails));
    }
}
