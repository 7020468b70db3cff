//! One command at a time: whoever can carry one, and the repeats that SCSI expects of every initiator.
//! How often, is `Patience`'s to say.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use super::{Error, Patience};
use crate::io::{Command, Completion, Driver, Event, Network, Nexus, Stream};
use crate::scsi::Verdict;

/// Carries one SCSI command to the target and brings its answer.
pub trait Execute: Send {
    /// Sends the command and waits for its answer, whatever its status is.
    ///
    /// # Errors
    /// `Session` if the session is gone.
    ///
    /// # Cancel safety
    /// A command that was sent goes on; its answer and its buffer are dropped when they come.
    fn execute(
        &mut self,
        during: &'static str,
        command: Command,
    ) -> impl Future<Output = Result<Completion, Error>> + Send;
}

/// For a driver that nobody else submits to meanwhile: answers to other commands are dropped.
impl<S: Stream> Execute for Driver<S> {
    async fn execute(
        &mut self,
        during: &'static str,
        command: Command,
    ) -> Result<Completion, Error> {
        let mut waiting = Some(command);
        loop {
            if let Some(command) = waiting.take() {
                waiting = self.submit(TOKEN, command).err();
            }
            // A refused submit means a full table or a session that has ended: polling tells which, and helps.
            let completion = poll_fn(|cx| self.poll_completion(cx))
                .await
                .map_err(|source| Error::Session {
                    during,
                    source: Some(Arc::new(source)),
                })?;
            if waiting.is_none() && completion.token == TOKEN {
                return Ok(completion);
            }
        }
    }
}

/// For a nexus that nobody else submits to meanwhile: what else it tells is dropped, its log says it.
impl<N: Network> Execute for Nexus<N> {
    async fn execute(
        &mut self,
        during: &'static str,
        command: Command,
    ) -> Result<Completion, Error> {
        let mut waiting = Some(command);
        loop {
            if let Some(command) = waiting.take() {
                waiting = self.submit(TOKEN, command).err();
            }
            match poll_fn(|cx| self.poll_event(cx)).await {
                Event::Completed(completion) if waiting.is_none() && completion.token == TOKEN => {
                    return Ok(completion);
                }
                Event::Failed(failed) if waiting.is_none() && failed.token == TOKEN => {
                    return Err(Error::Nexus {
                        during,
                        source: failed.cause,
                    });
                }
                Event::Completed(_)
                | Event::Failed(_)
                | Event::Lost(_)
                | Event::Reinstated(_)
                | Event::Expired(_) => {}
            }
        }
    }
}

/// Executes the command until it is done, repeating it as its answers ask.
///
/// # Errors
/// `Refused` if it failed, `NotReady` if it was to be repeated too often, `TimedOut`, `Session`.
pub(super) async fn perform(
    carrier: &mut impl Execute,
    during: &'static str,
    command: Command,
) -> Result<Completion, Error> {
    let (lun, cdb) = (command.lun, command.cdb);
    let mut command = command;
    let mut patience = Patience::default();
    loop {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, carrier.execute(during, command));
        let completion = answer.await.map_err(|_| Error::TimedOut {
            during,
            waited: ANSWER_TIMEOUT,
        })??;
        let (status, sense) = (completion.status, completion.sense);
        let verdict = Verdict::of(status, sense.as_ref());
        match verdict {
            Verdict::Good => return Ok(completion),
            // An earlier write is lost: whoever asked must hear of it, for no other answer will tell.
            Verdict::Failed | Verdict::DeferredError => {
                return Err(Error::Refused {
                    during,
                    status,
                    sense,
                });
            }
            Verdict::UnitAttention | Verdict::Busy | Verdict::TaskSetFull | Verdict::Aborted => {
                let waited = patience.waited();
                let pause = patience.pause(verdict).ok_or(Error::NotReady {
                    during,
                    waited,
                    status,
                    sense,
                })?;
                tokio::time::sleep(pause).await;
            }
        }
        command = Command {
            lun,
            cdb,
            data: completion.data,
        };
    }
}

/// Nobody else submits, so one number is enough.
const TOKEN: u64 = 0;
/// Longer than any healthy unit needs for these short commands, a cache flush of a slow NAS included.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);

#[cfg(test)]
pub(super) mod tests {
    use std::collections::VecDeque;

    use bytes::Bytes;

    use super::*;
    use crate::io::Data;
    use crate::scsi::{Cdb, LunAddress, Sense, SenseKey, Status};

    /// Answers commands from a script, in order, and writes down what was asked.
    #[derive(Debug, Default)]
    pub(in crate::client) struct Script {
        pub(in crate::client) answers: VecDeque<(Status, Option<Sense>, Vec<u8>)>,
        pub(in crate::client) asked: Vec<Cdb>,
    }

    impl Script {
        pub(in crate::client) fn good(mut self, data: &[u8]) -> Self {
            self.answers.push_back((Status::GOOD, None, data.to_vec()));
            self
        }

        pub(in crate::client) fn status(mut self, status: Status) -> Self {
            self.answers.push_back((status, None, Vec::new()));
            self
        }

        pub(in crate::client) fn check(mut self, key: SenseKey, asc: u8, ascq: u8) -> Self {
            let sense = Some(Sense::new(key, asc, ascq));
            self.answers
                .push_back((Status::CHECK_CONDITION, sense, Vec::new()));
            self
        }
    }

    impl Execute for Script {
        async fn execute(
            &mut self,
            _during: &'static str,
            command: Command,
        ) -> Result<Completion, Error> {
            self.asked.push(command.cdb);
            let Some((status, sense, answer)) = self.answers.pop_front() else {
                // The script's end is a target that stays silent.
                return std::future::pending().await;
            };
            let mut data = command.data;
            let mut transferred = 0;
            if let Data::In(buffer) = &mut data {
                let moved = answer.len().min(buffer.len());
                buffer[..moved].copy_from_slice(&answer[..moved]);
                transferred = u32::try_from(moved).unwrap();
            }
            Ok(Completion {
                token: 0,
                status,
                sense,
                transferred,
                data,
            })
        }
    }

    fn ready() -> Command {
        Command {
            lun: LunAddress::from_number(1),
            cdb: Cdb::test_unit_ready(),
            data: Data::Out(Bytes::from_static(b"kept")),
        }
    }

    async fn run(script: Script) -> (Result<Completion, Error>, usize, Duration) {
        let mut script = script;
        let begin = tokio::time::Instant::now();
        let result = perform(&mut script, "TEST UNIT READY", ready()).await;
        (result, script.asked.len(), begin.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn unit_attentions_are_repeated_at_once_and_have_a_limit() {
        let mut script = Script::default();
        for _ in 0..10 {
            script = script.check(SenseKey::UnitAttention, 0x29, 0);
        }
        let (result, asked, took) = run(script.good(&[])).await;
        assert!(matches!(result.unwrap().data, Data::Out(data) if data == "kept"));
        assert_eq!((asked, took.as_secs()), (11, 0));

        let mut script = Script::default();
        for _ in 0..11 {
            script = script.check(SenseKey::UnitAttention, 0x29, 0);
        }
        let (result, asked, _) = run(script).await;
        assert!(matches!(result, Err(Error::NotReady { .. })), "{result:?}");
        assert_eq!(asked, 11);
    }

    #[tokio::test(start_paused = true)]
    async fn busy_is_repeated_with_growing_pauses_until_the_limit() {
        let script = Script::default()
            .status(Status::BUSY)
            .status(Status::TASK_SET_FULL)
            .check(SenseKey::NotReady, 0x04, 0x01)
            .good(&[]);
        let (result, asked, took) = run(script).await;
        assert!(result.is_ok());
        assert_eq!((asked, took.as_millis() / 10), (4, 7));

        let mut script = Script::default();
        for _ in 0..100 {
            script = script.status(Status::BUSY);
        }
        let (result, asked, took) = run(script).await;
        assert!(matches!(
            result,
            Err(Error::NotReady {
                status: Status::BUSY,
                ..
            })
        ));
        assert!(
            asked < 40 && took <= Duration::from_secs(31),
            "{asked} {took:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn aborted_commands_are_repeated_three_times() {
        let mut script = Script::default();
        for _ in 0..4 {
            script = script.check(SenseKey::AbortedCommand, 0x47, 0x05);
        }
        let (result, asked, _) = run(script).await;
        assert!(matches!(result, Err(Error::NotReady { .. })));
        assert_eq!(asked, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn failure_and_silence_are_told_apart() {
        let (result, asked, _) = run(Script::default().check(SenseKey::MediumError, 0x11, 0)).await;
        assert!(matches!(result, Err(Error::Refused { .. })));
        assert_eq!(asked, 1);

        let (result, _, took) = run(Script::default()).await;
        assert!(matches!(result, Err(Error::TimedOut { .. })));
        assert_eq!(took.as_secs(), 60);
    }
}
