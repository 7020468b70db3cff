//! One command at a time: whoever can carry one, and the repeats that SCSI expects of every initiator.
//! How often, is `Patience`'s to say.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::BytesMut;

use super::{Error, Patience};
use crate::io::{Command, Completion, Data, Driver, Event, Network, Nexus, Stream};
use crate::scsi::{Cdb, LunAddress, Verdict, Violation};

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
                | Event::Examined(_)
                | Event::Expired(_) => {}
            }
        }
    }
}

impl<E: Execute> Execute for &mut E {
    async fn execute(
        &mut self,
        during: &'static str,
        command: Command,
    ) -> Result<Completion, Error> {
        E::execute(self, during, command).await
    }
}

/// Sends a question and gives the bytes that really came, at most as many as were asked for.
///
/// # Errors
/// As `perform`.
pub(super) async fn ask(
    carrier: &mut impl Execute,
    during: &'static str,
    lun: LunAddress,
    cdb: Cdb,
    bytes: u32,
) -> Result<BytesMut, Error> {
    let data = match usize::try_from(bytes).unwrap_or(usize::MAX) {
        0 => Data::None,
        length => Data::In(BytesMut::zeroed(length)),
    };
    let completion = perform(carrier, during, Command { lun, cdb, data }).await?;
    let Data::In(mut data) = completion.data else {
        return Ok(BytesMut::new());
    };
    data.truncate(usize::try_from(completion.transferred).unwrap_or(usize::MAX));
    Ok(data)
}

/// The same for an answer whose beginning tells how long it is: asked for three times at most, and for no more than
/// `bytes_max` bytes.
///
/// # Errors
/// As `perform`; `Violation` from `told`.
pub(super) async fn ask_whole(
    carrier: &mut impl Execute,
    during: &'static str,
    lun: LunAddress,
    cdb: impl Fn(u32) -> Cdb,
    told: impl Fn(&[u8]) -> Result<u64, Violation>,
    bytes_max: u32,
) -> Result<BytesMut, Error> {
    let mut asked = ANSWER_BYTES_FIRST;
    loop {
        let data = ask(carrier, during, lun, cdb(asked), asked).await?;
        let told = told(&data).map_err(|source| Error::Violation { during, source })?;
        if told <= u64::from(asked) || asked >= bytes_max {
            return Ok(data);
        }
        asked = match u32::try_from(told) {
            Ok(told) if asked == ANSWER_BYTES_FIRST => told.min(bytes_max),
            // It grows from question to question, or is absurd.
            Ok(_) | Err(_) => bytes_max,
        };
    }
}

/// Executes the command until it is done, repeating it as its answers ask.
///
/// # Errors
/// `Refused` if it failed, `NotReady` if it was to be repeated too often; as `Execute::execute`. That there is an answer
/// at all is the carrier's care: a session has a ladder of timeouts, a nexus its replacement timeout.
pub(super) async fn perform(
    carrier: &mut impl Execute,
    during: &'static str,
    command: Command,
) -> Result<Completion, Error> {
    let (lun, cdb) = (command.lun, command.cdb);
    let mut command = command;
    let mut patience = Patience::default();
    loop {
        let completion = carrier.execute(during, command).await?;
        let (status, sense) = (completion.status, completion.sense);
        let verdict = Verdict::of(status, sense.as_ref());
        match verdict {
            Verdict::Good => return Ok(completion),
            // An earlier write is lost: whoever asked must hear of it, for no other answer will tell.
            Verdict::Failed
            | Verdict::DeferredError
            | Verdict::SwitchPath
            | Verdict::ReservationConflict
            | Verdict::OurFault => {
                if verdict == Verdict::OurFault {
                    let cause = sense.as_ref().map(ToString::to_string);
                    tracing::error!(
                        during,
                        cause,
                        "the target says that this initiator sent data wrongly"
                    );
                }
                return Err(Error::Refused {
                    during,
                    status,
                    sense,
                });
            }
            // Perhaps it was done: done again, it would do something else.
            Verdict::Aborted if !cdb.is_idempotent() => {
                return Err(Error::Refused {
                    during,
                    status,
                    sense,
                });
            }
            Verdict::UnitAttention
            | Verdict::Busy
            | Verdict::BecomingReady
            | Verdict::TaskSetFull
            | Verdict::Aborted => {
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
/// What most answers fit in.
const ANSWER_BYTES_FIRST: u32 = 1024;

#[cfg(test)]
pub(super) mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::scsi::{Sense, SenseKey, Status};

    /// Answers commands from a script, in order, and writes down what was asked.
    #[derive(Debug, Default)]
    pub(in crate::client) struct Script {
        pub(in crate::client) answers: VecDeque<(Status, Option<Sense>, Vec<u8>)>,
        pub(in crate::client) asked: Vec<Cdb>,
        /// The data of those that carry some to the target.
        pub(in crate::client) sent: Vec<Bytes>,
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
            if let Data::Out(data) = &command.data {
                self.sent.push(data.clone());
            }
            let Some((status, sense, answer)) = self.answers.pop_front() else {
                // The script's end is a target that stays silent.
                return std::future::pending().await;
            };
            let mut data = command.data;
            let mut transferred = match &data {
                Data::Out(data) if status == Status::GOOD => u32::try_from(data.len()).unwrap(),
                Data::Out(_) | Data::In(_) | Data::None => 0,
            };
            if let Data::In(buffer) = &mut data {
                let moved = answer.len().min(buffer.len());
                buffer[..moved].copy_from_slice(&answer[..moved]);
                transferred = u32::try_from(moved).unwrap();
            }
            Ok(Completion {
                cdb: command.cdb,
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

    // S6
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

    // S3, S7
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

    // S1: with the same data, as a new command each time.
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
    async fn a_failure_is_not_repeated() {
        let (result, asked, _) = run(Script::default().check(SenseKey::MediumError, 0x11, 0)).await;
        assert!(matches!(result, Err(Error::Refused { .. })));
        assert_eq!(asked, 1);
    }
}
