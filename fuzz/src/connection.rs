//! A whole driver over an invented connection: bytes in, time in.
//!
//! The login is honest and the same each time. Then the input is a list of steps, a byte and what belongs to it: 00h to
//! 0xEF hands over so many bytes and one more, 0xF0 to 0xFF lets time pass. At its end the target closes.
//!
//! Invariants, beside those of `lib`:
//! 1. Each command has one end: a completion, or a place among the unfinished.

use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use iscsi::io::{Command, Data, Driver, Network, Stream};
use iscsi::proto::Portal;
use iscsi::scsi::{Blocks, Cdb, Lba, LunAddress};
use tokio::time::Sleep;

/// Runs the steps against a read, a write and a command without data.
pub fn connection(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be made");
    let network = Wires(Bytes::copy_from_slice(data));
    runtime.block_on(async {
        let mut params = super::params();
        params.login_timeout = Duration::from_secs(1);
        let mut driver = Driver::connect_over(&network, &params)
            .await
            .expect("the login is honest");
        let commands = commands();
        let submitted = commands.len();
        for (token, command) in (0..).zip(commands) {
            driver.submit(token, command).expect("a slot is free");
        }
        let mut ended = vec![false; submitted];
        let mut end = |token: u64| {
            let token = usize::try_from(token).expect("a token of ours");
            assert!(!ended[token], "command {token} ended twice");
            ended[token] = true;
        };
        while let Ok(completion) = poll_fn(|cx| driver.poll_completion(cx)).await {
            end(completion.token);
        }
        for (token, _) in driver.take_unfinished() {
            end(token);
        }
        assert!(ended.iter().all(|ended| *ended), "a command has no end");
    });
}

fn commands() -> [Command; 3] {
    let command = |cdb, data| Command {
        lun: LunAddress::from_number(1),
        cdb,
        data,
    };
    let bytes = |blocks: u32| usize::try_from(blocks).expect("few") * 512;
    [
        command(
            Cdb::read_16(Lba(0), Blocks(READ_BLOCKS)),
            Data::In(BytesMut::zeroed(bytes(READ_BLOCKS))),
        ),
        command(
            Cdb::write_16(Lba(0), Blocks(WRITE_BLOCKS), false),
            Data::Out(Bytes::from(vec![7; bytes(WRITE_BLOCKS)])),
        ),
        command(Cdb::test_unit_ready(), Data::None),
    ]
}

/// A network with one target, which plays the steps.
#[derive(Clone, Debug)]
struct Wires(Bytes);

impl Network for Wires {
    type Stream = Wire;

    async fn connect(&self, _: &Portal) -> io::Result<Wire> {
        Ok(Wire {
            steps: self.0.clone(),
            ready: BytesMut::new(),
            asked: Vec::new(),
            logins: 0,
            pause: None,
        })
    }

    fn random(&self) -> u32 {
        // As chosen as any.
        4
    }
}

/// The target's end.
#[derive(Debug)]
struct Wire {
    /// What is left of the input.
    steps: Bytes,
    /// Bytes that the initiator may read now.
    ready: BytesMut,
    /// Bytes of the login that the initiator wrote.
    asked: Vec<u8>,
    logins: u8,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Wire {
    /// Answers what has come whole of the login.
    fn answer(&mut self) {
        while usize::from(self.logins) < ANSWERS.len() && self.asked.len() >= 48 {
            let length = usize::from(self.asked[6]) << 8 | usize::from(self.asked[7]);
            let whole = 48 + length.next_multiple_of(4);
            if self.asked.len() < whole {
                return;
            }
            let request: Vec<u8> = self.asked.drain(..whole).collect();
            let (flags, text) = ANSWERS[usize::from(self.logins)];
            let mut answer = [0; 48];
            // Login Response; ISID and task tag as asked; StatSN, ExpCmdSN, MaxCmdSN.
            (answer[0], answer[1]) = (0x23, flags);
            answer[8..14].copy_from_slice(&request[8..14]);
            answer[15] = u8::from(flags == FULL_FEATURE);
            answer[16..20].copy_from_slice(&request[16..20]);
            answer[27] = FIRST_STAT_SN + self.logins;
            answer[28..32].copy_from_slice(&request[24..28]);
            answer[35] = 100;
            answer[7] = u8::try_from(text.len()).expect("short");
            self.ready.extend_from_slice(&answer);
            self.ready.extend_from_slice(text);
            self.logins += 1;
        }
    }

    /// Takes a step; false at the end of the input.
    fn step(&mut self) -> bool {
        if self.steps.is_empty() {
            return false;
        }
        let step = self.steps.split_to(1)[0];
        if step >= PAUSES {
            let pause = Duration::from_millis(10 << (step - PAUSES));
            self.pause = Some(Box::pin(tokio::time::sleep(pause)));
        } else {
            let bytes = (usize::from(step) + 1).min(self.steps.len());
            self.ready.extend_from_slice(&self.steps.split_to(bytes));
        }
        true
    }
}

impl Stream for Wire {
    fn poll_read_vectored(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            if !self.ready.is_empty() {
                break;
            }
            if usize::from(self.logins) < ANSWERS.len() {
                // The next request is what wakes: it is written by the same task.
                return Poll::Pending;
            }
            if !self.step() {
                return Poll::Ready(Ok(0));
            }
        }
        let mut read = 0;
        for buffer in buffers {
            let bytes = buffer.len().min(self.ready.len());
            buffer[..bytes].copy_from_slice(&self.ready.split_to(bytes));
            read += bytes;
        }
        Poll::Ready(Ok(read))
    }

    fn poll_write_vectored(
        &mut self,
        _: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut written = 0;
        for buffer in buffers {
            written += buffer.len();
            if usize::from(self.logins) < ANSWERS.len() {
                self.asked.extend_from_slice(buffer);
            }
        }
        self.answer();
        Poll::Ready(Ok(written))
    }
}

const READ_BLOCKS: u32 = 16;
const WRITE_BLOCKS: u32 = 256;
/// Steps from here on let time pass: 10 ms for the first, twice as long for each further.
const PAUSES: u8 = 0xF0;
const FIRST_STAT_SN: u8 = 100;
/// T, from the operational stage to full feature phase.
const FULL_FEATURE: u8 = 0x87;
/// Flags and keys of both login responses, each a multiple of four bytes long.
const ANSWERS: [(u8, &[u8]); 2] = [
    (0x81, b"AuthMethod=None\0"),
    (FULL_FEATURE, b"InitialR2T=No\0ImmediateData=Yes\0"),
];
