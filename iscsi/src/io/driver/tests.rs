//! Drivers over wires that the test writes: what a target says is a list of bytes, cut anywhere.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};

use super::*;
use crate::proto::login::Established;
use crate::proto::negotiation::{Negotiation, Role};
use crate::proto::{Isid, Offers, Timeouts};
use crate::scsi::{Cdb, Status};
use crate::wire::async_message::{AsyncEvent, AsyncMessage};
use crate::wire::data_in::{DataIn, DataInStatus};
use crate::wire::digest;
use crate::wire::header::{self, BHS_BYTES, Bhs, Opcode, ResponseNumbers};
use crate::wire::nop::NopIn;
use crate::wire::scsi_command::ScsiCommand;
use crate::wire::scsi_response::Residual;
use crate::wire::serial::{CmdSn, DataSn, StatSn};
use crate::wire::tag::TargetTransferTag;
use crate::wire::task_management::{TaskManagementRequest, TaskManagementResponse};

const LUN: LunAddress = LunAddress(0x0001_0000_0000_0000);

/// Both ends of a wire.
#[derive(Clone, Debug, Default)]
struct Wire(Arc<Mutex<Ends>>);

#[derive(Debug, Default)]
struct Ends {
    to_driver: VecDeque<u8>,
    /// How many bytes the driver gets at once.
    piece: usize,
    from_driver: Vec<u8>,
}

impl Wire {
    fn new(piece: usize) -> Self {
        let wire = Self::default();
        wire.0.lock().unwrap().piece = piece;
        wire
    }

    fn give(&self, bytes: &[u8]) {
        self.0.lock().unwrap().to_driver.extend(bytes);
    }

    /// The headers of all PDUs that left since the last call; none has data.
    fn take(&self, digests: bool) -> Vec<Bhs> {
        let sent = std::mem::take(&mut self.0.lock().unwrap().from_driver);
        let bytes = BHS_BYTES + if digests { 4 } else { 0 };
        let headers = sent.chunks_exact(bytes);
        assert!(headers.remainder().is_empty());
        headers
            .map(|pdu| {
                let bhs: Bhs = *pdu.first_chunk().unwrap();
                if digests {
                    assert_eq!(pdu[BHS_BYTES..], digest::of(&bhs));
                }
                bhs
            })
            .collect()
    }
}

impl Stream for Wire {
    fn poll_read_vectored(
        &mut self,
        _: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut ends = self.0.lock().unwrap();
        let mut left = ends.piece.min(ends.to_driver.len());
        if left == 0 {
            return Poll::Pending;
        }
        let mut read = 0;
        for buffer in buffers {
            let bytes = buffer.len().min(left);
            for (to, from) in buffer.iter_mut().zip(ends.to_driver.drain(..bytes)) {
                *to = from;
            }
            left -= bytes;
            read += bytes;
        }
        Poll::Ready(Ok(read))
    }

    fn poll_write_vectored(
        &mut self,
        _: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut ends = self.0.lock().unwrap();
        for buffer in buffers {
            ends.from_driver.extend_from_slice(buffer);
        }
        Poll::Ready(Ok(buffers.iter().map(|buffer| buffer.len()).sum()))
    }
}

/// A driver over as many wires as it has connections.
struct Bed {
    driver: Driver<Wire>,
    wires: Vec<Wire>,
    stat_sns: Vec<u32>,
    digests: bool,
}

fn connected<S>(stream: S, digests: bool) -> Connected<S> {
    let negotiation = Negotiation::new(Role::Leading, &Offers::default());
    let mut agreed = negotiation.finish().unwrap();
    (agreed.header_digest, agreed.data_digest) = (digests, digests);
    let established = Established {
        agreed,
        tsih: 1,
        cid: 0,
        is_target_proved: false,
        warnings: Vec::new(),
        cmd_sn: CmdSn(1),
        exp_stat_sn: StatSn(100),
        numbers: numbers(99),
    };
    Connected {
        stream,
        established: Box::new(established),
        portal: "192.0.2.1".parse().unwrap(),
        permanent_portal: None,
    }
}

fn numbers(stat_sn: u32) -> ResponseNumbers {
    ResponseNumbers {
        stat_sn: StatSn(stat_sn),
        exp_cmd_sn: CmdSn(1),
        max_cmd_sn: CmdSn(64),
    }
}

impl Bed {
    fn new(connections: usize, piece: usize, digests: bool) -> Self {
        let portal: Portal = "192.0.2.1".parse().unwrap();
        let name = "iqn.2026-11.test:host".parse().unwrap();
        let mut params = SessionParams::new(portal, name, Isid::random([1, 2, 3], 4));
        params.timeouts = Timeouts::OFF;
        let wires: Vec<Wire> = (0..connections).map(|_| Wire::new(piece)).collect();
        let mut driver = Driver::of(connected(wires[0].clone(), digests), &params);
        for wire in &wires[1..] {
            driver.join(connected(wire.clone(), digests));
        }
        Self {
            driver,
            wires,
            stat_sns: vec![100; connections],
            digests,
        }
    }

    fn submit(&mut self, token: u64, data: Data) {
        let cdb = Cdb::test_unit_ready();
        let command = Command {
            lun: LUN,
            cdb,
            data,
        };
        self.driver.submit(token, command).unwrap();
    }

    /// Lets the driver do all that it can; what it completes.
    async fn drive(&mut self) -> Result<Vec<Completion>, SessionError> {
        let mut done = Vec::new();
        std::future::poll_fn(|cx| {
            loop {
                match self.driver.poll_completion(cx) {
                    Poll::Ready(Ok(completion)) => done.push(completion),
                    Poll::Ready(Err(end)) => return Poll::Ready(Err(end)),
                    Poll::Pending => return Poll::Ready(Ok(())),
                }
            }
        })
        .await?;
        Ok(done)
    }

    /// The commands that left on a connection.
    fn commands(&self, cid: usize) -> Vec<ScsiCommand> {
        let headers = self.wires[cid].take(self.digests);
        headers.iter().map(ScsiCommand::parse).collect()
    }

    fn give(&self, cid: usize, mut bhs: Bhs, data: &[u8]) {
        header::set_data_segment_bytes(&mut bhs, u32::try_from(data.len()).unwrap());
        let mut padded = data.to_vec();
        padded.resize(data.len().next_multiple_of(4), 0);
        let mut pdu = bhs.to_vec();
        if self.digests {
            pdu.extend_from_slice(&digest::of(&bhs));
        }
        pdu.extend_from_slice(&padded);
        if self.digests && !data.is_empty() {
            pdu.extend_from_slice(&digest::of(&padded));
        }
        self.wires[cid].give(&pdu);
    }

    fn numbers(&mut self, cid: usize) -> ResponseNumbers {
        let numbers = numbers(self.stat_sns[cid]);
        self.stat_sns[cid] += 1;
        numbers
    }

    /// Data for a read, with good status if `is_last`.
    fn give_data(&mut self, cid: usize, command: &ScsiCommand, at: (u32, u32), data: &[u8]) {
        let end = at.1 + u32::try_from(data.len()).unwrap();
        let is_last = end == command.expected_data_transfer_bytes;
        let status = is_last.then_some(DataInStatus {
            status: 0,
            residual: Residual::None,
        });
        let numbers = if is_last {
            self.numbers(cid)
        } else {
            numbers(0)
        };
        let data_in = DataIn {
            is_final: is_last,
            acknowledge: false,
            status,
            lun: 0,
            initiator_task_tag: command.initiator_task_tag,
            target_transfer_tag: TargetTransferTag::RESERVED,
            numbers,
            data_sn: DataSn(at.0),
            buffer_offset: at.1,
        };
        self.give(cid, data_in.emit(), data);
    }
}

fn read(bytes: usize) -> Data {
    Data::In(BytesMut::zeroed(bytes))
}

fn pattern(bytes: usize, seed: u8) -> Vec<u8> {
    (0..251)
        .cycle()
        .map(|byte: u8| byte ^ seed)
        .take(bytes)
        .collect()
}

// L15, E13: two reads side by side, an event and a ping, in pieces of every length
#[tokio::test]
async fn stream_may_be_cut_anywhere() {
    let mut pieces: Vec<usize> = (1..=200).collect();
    pieces.push(1 << 20);
    for (piece, digests) in pieces
        .into_iter()
        .flat_map(|piece| [(piece, false), (piece, true)])
    {
        let mut bed = Bed::new(1, piece, digests);
        bed.submit(1, read(103));
        bed.submit(2, read(64));
        assert!(bed.drive().await.unwrap().is_empty());
        let commands = bed.commands(0);
        bed.give_data(0, &commands[0], (0, 0), &pattern(103, 1)[..50]);
        bed.give_data(0, &commands[1], (0, 0), &pattern(64, 2));
        let message = AsyncMessage {
            lun: LUN.0,
            numbers: bed.numbers(0),
            event: AsyncEvent::VENDOR,
            vendor_code: 7,
            parameter_1: 0,
            parameter_2: 0,
            parameter_3: 0,
        };
        bed.give(0, message.emit(), b"words of its own");
        let nop_in = NopIn {
            lun: LUN.0,
            initiator_task_tag: InitiatorTaskTag::RESERVED,
            target_transfer_tag: TargetTransferTag(5),
            numbers: numbers(0),
        };
        bed.give(0, nop_in.emit(), b"");
        bed.give_data(0, &commands[0], (1, 50), &pattern(103, 1)[50..]);
        let done = bed.drive().await.unwrap();
        let tokens: Vec<u64> = done.iter().map(|completion| completion.token).collect();
        assert_eq!(tokens, [2, 1], "pieces of {piece}");
        for (completion, seed, bytes) in [(&done[0], 2, 64), (&done[1], 1, 103)] {
            let Data::In(buffer) = &completion.data else {
                panic!("the buffer comes back")
            };
            assert!(*buffer == pattern(bytes, seed), "pieces of {piece}");
        }
        let told = bed.driver.take_event();
        assert_eq!(told, Some(TargetEvent::Vendor { code: 7 }));
        let pong = bed.wires[0].take(digests);
        assert_eq!(header::opcode(&pong[0]), Opcode::NOP_OUT);
    }
}

// E1, E2: RFC 7143 §7.8
#[tokio::test]
async fn wrong_digest_ends_the_session_before_anything_is_answered() {
    for (byte, expected) in [(20, Violation::HeaderDigest), (60, Violation::DataDigest)] {
        let mut bed = Bed::new(1, 1 << 20, true);
        bed.submit(1, read(64));
        bed.drive().await.unwrap();
        let command = bed.commands(0)[0];
        bed.give_data(0, &command, (0, 0), &pattern(64, 1));
        bed.wires[0].0.lock().unwrap().to_driver[byte] ^= 0x10;
        let end = bed.drive().await.unwrap_err();
        assert!(
            matches!(&end, SessionError::Violation(violation) if *violation == expected),
            "{end:?}"
        );
        assert_eq!(bed.driver.take_unfinished().len(), 1);
    }
}

// F1: commands go where the queue is shortest, and their numbers follow the wire
#[tokio::test]
async fn commands_are_spread_over_all_connections() {
    let mut bed = Bed::new(3, 1 << 20, false);
    for token in 0..6 {
        bed.submit(token, read(512));
    }
    bed.drive().await.unwrap();
    let mut numbers = Vec::new();
    for cid in 0..3 {
        let commands = bed.commands(cid);
        assert_eq!(commands.len(), 2, "connection {cid}");
        for command in commands {
            numbers.push(command.cmd_sn.0);
            bed.give_data(cid, &command, (0, 0), &pattern(512, 3));
        }
    }
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
    assert_eq!(bed.drive().await.unwrap().len(), 6);
}

// E12: a buffer that is half read goes back to its owner, and the rest goes nowhere
#[tokio::test]
async fn task_that_is_reset_in_the_middle_of_its_data_gives_its_buffer_back() {
    let mut bed = Bed::new(2, 1 << 20, false);
    bed.submit(0, read(512));
    bed.submit(1, read(4096));
    bed.drive().await.unwrap();
    let (first, second) = (bed.commands(0)[0], bed.commands(1)[0]);
    bed.give_data(0, &first, (0, 0), &pattern(512, 1));
    assert_eq!(bed.drive().await.unwrap().len(), 1);

    // Half of the second read's only PDU, then the answer to a reset on the other connection.
    bed.give_data(1, &second, (0, 0), &pattern(4096, 1));
    let rest = bed.wires[1].0.lock().unwrap().to_driver.split_off(2000);
    assert!(bed.drive().await.unwrap().is_empty());
    let wire = bed.wires[0].clone();
    let numbers = bed.numbers(0);
    let reset = TaskManagementFunction::LOGICAL_UNIT_RESET;
    {
        let asked = bed.driver.task_management(reset, LUN, None);
        let answered = async {
            loop {
                tokio::task::yield_now().await;
                if let Some(bhs) = wire.take(false).first() {
                    return TaskManagementRequest::parse(bhs);
                }
            }
        };
        let mut asked = std::pin::pin!(asked);
        let request = tokio::select! {
            biased;
            _ = &mut asked => panic!("not answered yet"),
            request = answered => request,
        };
        let response = TaskManagementResponse {
            response: TaskManagementOutcome::COMPLETE,
            initiator_task_tag: request.initiator_task_tag,
            numbers,
        };
        wire.give(&response.emit());
        assert_eq!(asked.await.unwrap(), TaskManagementOutcome::COMPLETE);
    }

    let done = bed.drive().await.unwrap();
    assert_eq!((done[0].token, done[0].status), (1, Status::TASK_ABORTED));
    // The slot has a new owner when the rest comes.
    bed.submit(2, read(4096));
    bed.drive().await.unwrap();
    bed.wires[1].give(&rest.into_iter().collect::<Vec<u8>>());
    assert!(bed.drive().await.unwrap().is_empty());
    let next = [bed.commands(0), bed.commands(1)].concat()[0];
    assert_ne!(next.initiator_task_tag, second.initiator_task_tag);
}

#[tokio::test]
async fn abort_of_a_command_that_is_over_needs_no_target() {
    let mut bed = Bed::new(1, 1 << 20, false);
    let abort = TaskManagementFunction::ABORT_TASK;
    let outcome = bed
        .driver
        .task_management(abort, LUN, Some(7))
        .await
        .unwrap();
    assert_eq!(outcome, TaskManagementOutcome::TASK_DOES_NOT_EXIST);
    let no_task = bed.driver.task_management(abort, LUN, None).await;
    assert!(matches!(
        no_task,
        Err(FunctionError::Misuse(Misuse::NoTask))
    ));
}

// E8
#[tokio::test]
async fn loss_of_one_connection_is_the_loss_of_the_session() {
    #[derive(Debug)]
    struct Closed;
    impl Stream for Closed {
        fn poll_read_vectored(
            &mut self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(0))
        }

        fn poll_write_vectored(
            &mut self,
            _: &mut Context<'_>,
            buffers: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buffers.iter().map(|buffer| buffer.len()).sum()))
        }
    }
    let portal: Portal = "192.0.2.1".parse().unwrap();
    let name = "iqn.2026-11.test:host".parse().unwrap();
    let params = SessionParams::new(portal, name, Isid::random([1, 2, 3], 4));
    let mut driver = Driver::of(connected(Closed, false), &params);
    driver.join(connected(Closed, false));
    for token in [3, 1, 2] {
        let command = Command {
            lun: LUN,
            cdb: Cdb::test_unit_ready(),
            data: Data::Out(Bytes::from_static(b"data")),
        };
        driver.submit(token, command).unwrap();
    }
    let end = std::future::poll_fn(|cx| driver.poll_completion(cx)).await;
    assert!(matches!(end, Err(SessionError::Lost { .. })));
    let unfinished = driver.take_unfinished();
    let tokens: Vec<u64> = unfinished.iter().map(|(token, _)| *token).collect();
    assert_eq!(tokens, [3, 1, 2]);
}
