//! F: the full feature phase: numbers, window, data both ways, pings, messages of the target, logout.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use iscsi::io::{Data, Driver, discover};
use iscsi::proto::{SessionError, Violation};
use iscsi::scsi::{Blocks, Cdb, Lba, LunAddress};
use support::target::{
    CONTINUE, Direction, FINAL, NO_TAG, Pdu, Peer, Script, Seen, Target, at, op, text,
};

use crate::bed::{
    BLOCK, IQN, LUN, bytes_in, command, completion, connect, driven, end, log_in, next, params,
    pattern, read, ready, run, session, session_with, submit, target, write,
};

const GOOD: u8 = 0x00;
const BUSY: u8 = 0x08;
/// Flags of a SCSI command.
const READS: u8 = 0x40;
const WRITES: u8 = 0x20;
const ATTRIBUTE: u8 = 0x07;
const SIMPLE: u8 = 0x01;

/// Keys of a target that takes no data unasked, 1024 bytes a PDU and 2 R2Ts a task.
const ASKS_FIRST: [(&str, &str); 4] = [
    ("ImmediateData", "No"),
    ("InitialR2T", "Yes"),
    ("MaxRecvDataSegmentLength", "1024"),
    ("MaxOutstandingR2T", "2"),
];

/// A session whose target grants so many commands at the login.
async fn session_of_window(window: u32) -> (Driver, Peer) {
    let script = Script::listen().await;
    let params = params(&script.portal());
    let (login, peer, _) = log_in(&params, &script, async |peer: &mut Peer| {
        peer.window = window;
        peer.login().await
    })
    .await;
    (login.expect("the login succeeds"), peer)
}

fn violation(error: &SessionError) -> &Violation {
    if let SessionError::Violation(violation) = error {
        violation
    } else {
        panic!("no violation: {error}")
    }
}

/// What the initiator sends before it answers a ping: all that it would send by itself has left by then.
async fn before_pong(peer: &mut Peer, tag: u32) -> (Vec<Pdu>, Pdu) {
    peer.send(Pdu::ping(tag)).await;
    let mut before = Vec::new();
    loop {
        let pdu = peer.recv().await;
        if pdu.opcode() == op::NOP_OUT && pdu.ttt() == tag {
            return (before, pdu);
        }
        before.push(pdu);
    }
}

// F1, F20
#[tokio::test]
async fn command_numbers_rise_by_one_in_the_order_of_the_wire() {
    let target = target().window(16).start().await;
    let mut driver = connect(&target).await;
    for token in 0..100 {
        submit(&mut driver, token, read(token, 1));
    }
    for _ in 0..100 {
        assert_eq!(completion(&mut driver).await.status.0, GOOD);
    }
    driver.logout().await.expect("the logout is answered");
    let record = target.record();
    let login = record.received(op::LOGIN)[0].cmd_sn();
    let numbers: Vec<u32> = record
        .received(op::SCSI_COMMAND)
        .iter()
        .map(Pdu::cmd_sn)
        .collect();
    assert!(
        numbers.iter().copied().eq(login..login + 100),
        "{numbers:?}"
    );
    assert_eq!(target.violations(), Vec::<String>::new());
}

// F2, F23
#[tokio::test]
async fn immediate_pdus_carry_the_next_number_and_use_none_up() {
    let (mut driver, mut peer) = session().await;
    submit(&mut driver, 0, ready());
    let first = driven(&mut driver, peer.recv()).await;
    let (before, pong) = driven(&mut driver, before_pong(&mut peer, 7)).await;
    assert!(before.is_empty(), "{before:?}");
    assert!(pong.immediate());
    assert_eq!(pong.cmd_sn(), first.cmd_sn() + 1);
    // The pong has no task tag and is not answered: nothing waits for that.
    submit(&mut driver, 1, ready());
    let second = driven(&mut driver, peer.recv()).await;
    assert_eq!(second.cmd_sn(), first.cmd_sn() + 1);
    let logout = async {
        for command in [&first, &second] {
            peer.send(Pdu::scsi_response(command, GOOD)).await;
        }
        let request = peer.expect(op::LOGOUT).await;
        peer.send(Pdu::logout_response(&request, 0)).await;
        request
    };
    let (ended, request) = tokio::join!(driver.logout(), logout);
    ended.expect("it is answered");
    assert!(request.immediate());
    assert_eq!(request.cmd_sn(), first.cmd_sn() + 2);
}

// F3
#[tokio::test]
async fn no_command_leaves_while_the_window_is_closed_and_a_nop_in_opens_it() {
    let (mut driver, mut peer) = session_of_window(0).await;
    submit(&mut driver, 0, ready());
    let (before, _) = driven(&mut driver, before_pong(&mut peer, 7)).await;
    assert!(before.is_empty(), "{before:?}");
    peer.window = 1;
    peer.send(Pdu::ping(NO_TAG)).await;
    let command = driven(&mut driver, peer.expect(op::SCSI_COMMAND)).await;
    assert_eq!(command.cmd_sn(), peer.exp_cmd_sn - 1);
}

// F4
#[tokio::test]
async fn wide_window_is_filled_and_not_one_command_more() {
    let (mut driver, mut peer) = session_of_window(24).await;
    for token in 0..40 {
        submit(&mut driver, token, ready());
    }
    // The window is told once and not renewed: MaxCmdSN stays where the login put it.
    let last = peer.exp_cmd_sn + 23;
    let commands = driven(&mut driver, async {
        let mut commands = Vec::new();
        for _ in 0..24 {
            commands.push(peer.expect(op::SCSI_COMMAND).await);
        }
        commands
    })
    .await;
    assert_eq!(commands[23].cmd_sn(), last);
    let ping = Pdu::ping(7)
        .with(at::STAT_SN, peer.stat_sn)
        .with(at::EXP_CMD_SN, peer.exp_cmd_sn)
        .with(at::MAX_CMD_SN, last);
    peer.send_raw(&ping).await;
    let next = driven(&mut driver, peer.recv()).await;
    assert_eq!(next.opcode(), op::NOP_OUT, "{next:?}");
}

// F4, F5
#[tokio::test]
async fn window_of_one_makes_commands_follow_each_other_and_a_response_can_close_it() {
    let (mut driver, mut peer) = session_of_window(1).await;
    for token in 0..3 {
        submit(&mut driver, token, ready());
    }
    let first = driven(&mut driver, peer.expect(op::SCSI_COMMAND)).await;
    // MaxCmdSN at the first command, which is done: closed.
    peer.window = 0;
    let answer = async {
        peer.send(Pdu::scsi_response(&first, GOOD)).await;
    };
    let (done, ()) = tokio::join!(completion(&mut driver), answer);
    assert_eq!(done.token, 0);
    let (before, _) = driven(&mut driver, before_pong(&mut peer, 7)).await;
    assert!(before.is_empty(), "{before:?}");
    peer.window = 1;
    peer.send(Pdu::ping(NO_TAG)).await;
    let second = driven(&mut driver, peer.expect(op::SCSI_COMMAND)).await;
    assert_eq!(second.cmd_sn(), first.cmd_sn() + 1);
    let (before, _) = driven(&mut driver, async {
        peer.window = 0;
        before_pong(&mut peer, 8).await
    })
    .await;
    assert!(before.is_empty(), "{before:?}");
}

// F6: what goes back is older, whatever the number's sign; below ExpCmdSN-1 it is nonsense
#[tokio::test]
async fn window_that_goes_back_is_passed_over() {
    let (mut driver, mut peer) = session_of_window(4).await;
    let next = peer.exp_cmd_sn;
    for (exp_cmd_sn, max_cmd_sn) in [
        (next, next),
        (next, next.wrapping_sub(1)),
        (next, next.wrapping_sub(2)),
        (next, next.wrapping_sub(0x7fff_ffff)),
        (next + 3, next + 1),
    ] {
        let tell = Pdu::ping(NO_TAG)
            .with(at::STAT_SN, peer.stat_sn)
            .with(at::EXP_CMD_SN, exp_cmd_sn)
            .with(at::MAX_CMD_SN, max_cmd_sn);
        peer.send_raw(&tell).await;
    }
    peer.window = 4;
    driven(&mut driver, before_pong(&mut peer, 7)).await;
    for token in 0..4 {
        submit(&mut driver, token, ready());
    }
    for _ in 0..4 {
        driven(&mut driver, peer.expect(op::SCSI_COMMAND)).await;
    }
}

/// Checks the Data-Outs of one sequence, and gives their bytes.
fn sequence(pdus: &[Pdu], command: &Pdu, tag: u32, offset: u32, segment_max: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, pdu) in pdus.iter().enumerate() {
        assert_eq!(pdu.opcode(), op::DATA_OUT, "{pdu:?}");
        assert_eq!((pdu.itt(), pdu.ttt()), (command.itt(), tag));
        // RFC 7143 §11.7.4: the LUN goes with the transfer tag; without one it is reserved.
        if tag != NO_TAG {
            assert_eq!(pdu.lun_bytes(), command.lun_bytes());
        }
        assert_eq!(usize::try_from(pdu.data_sn()), Ok(index));
        let at = offset + u32::try_from(bytes.len()).expect("few bytes");
        assert_eq!(pdu.offset(), at, "a gap before {pdu:?}");
        assert!(pdu.data.len() <= segment_max && !pdu.data.is_empty());
        assert_eq!(pdu.is_final(), index + 1 == pdus.len(), "{pdu:?}");
        assert_eq!(pdu.flags() & !FINAL, 0, "reserved bits");
        bytes.extend_from_slice(&pdu.data);
    }
    bytes
}

/// Receives a sequence up to its last PDU.
async fn receive_sequence(peer: &mut Peer) -> Vec<Pdu> {
    let mut pdus = vec![peer.recv().await];
    while !pdus.last().is_some_and(Pdu::is_final) {
        pdus.push(peer.recv().await);
    }
    pdus
}

// F7, F11, F12, F13, F14
#[tokio::test]
async fn data_out_covers_just_the_range_of_its_r2t() {
    let (mut driver, mut peer) = session_with(|_| {}, &ASKS_FIRST).await;
    let data = pattern(8 * BLOCK);
    submit(&mut driver, 0, write(5, &data));
    let target = async {
        let command = peer.expect(op::SCSI_COMMAND).await;
        assert!(command.data.is_empty() && command.is_final());
        let mut written = Vec::new();
        for (r2t_sn, (tag, offset, length)) in [(0x4711, 0, 2560), (0, 2560, 1024), (9, 3584, 512)]
            .into_iter()
            .enumerate()
        {
            let r2t_sn = u32::try_from(r2t_sn).expect("three of them");
            peer.send(Pdu::r2t(&command, tag, r2t_sn, offset, length))
                .await;
            let pdus = receive_sequence(&mut peer).await;
            written.extend(sequence(&pdus, &command, tag, offset, 1024));
        }
        peer.send(Pdu::scsi_response(&command, GOOD)).await;
        written
    };
    let (done, written) = tokio::join!(completion(&mut driver), target);
    assert_eq!(done.status.0, GOOD);
    assert!(written == data);
}

/// What a write sent unasked: with the command, and in Data-Outs without transfer tag.
fn unasked(record: &[Pdu], command: &Pdu) -> (usize, usize) {
    let unsolicited = record
        .iter()
        .filter(|pdu| {
            pdu.opcode() == op::DATA_OUT && pdu.itt() == command.itt() && pdu.ttt() == NO_TAG
        })
        .map(|pdu| pdu.data.len())
        .sum();
    (command.data.len(), unsolicited)
}

// F8, F10, F12
#[tokio::test]
async fn each_pair_of_immediate_data_and_initial_r2t_sends_just_what_is_allowed() {
    const SEGMENT: usize = 4096;
    const FIRST_BURST: usize = 10240;
    for (immediate_data, initial_r2t) in
        [(true, true), (true, false), (false, true), (false, false)]
    {
        let target = target()
            .immediate_data(immediate_data)
            .initial_r2t(initial_r2t)
            .max_recv_data_segment(4096)
            .first_burst(10240)
            .max_burst(16384)
            .start()
            .await;
        let mut driver = connect(&target).await;
        let disk = target.disk(IQN, LUN).expect("it has one");
        for blocks in [1, 7, 8, 9, 20, 21, 32, 33, 100] {
            let data = pattern(blocks * BLOCK);
            target.record().clear();
            let done = run(&mut driver, write(64, &data)).await;
            assert_eq!(done.status.0, GOOD);
            let pdus = target.record().initiators();
            let command = pdus
                .iter()
                .find(|pdu| pdu.opcode() == op::SCSI_COMMAND)
                .expect("it was sent");
            let (immediate, unsolicited) = unasked(&pdus, command);
            let first = data.len().min(FIRST_BURST);
            let with_command = if immediate_data {
                first.min(SEGMENT)
            } else {
                0
            };
            let after = if initial_r2t { 0 } else { first - with_command };
            let pair = format!("{immediate_data} {initial_r2t}, {blocks} blocks");
            assert_eq!((immediate, unsolicited), (with_command, after), "{pair}");
            assert_eq!(command.is_final(), after == 0, "{pair}");
            let mut back = vec![0; data.len()];
            disk.read(64 * 512, &mut back).expect("memory can be read");
            assert!(back == data, "{pair}");
        }
        driver.logout().await.expect("the logout is answered");
        assert_eq!(target.violations(), Vec::<String>::new());
    }
}

// F9, F10
#[tokio::test]
async fn command_headers_have_each_field_in_its_place_and_nothing_in_reserved_ones() {
    let (mut driver, mut peer) = session().await;
    let data = pattern(BLOCK);
    let wide = iscsi::io::Command {
        lun: LunAddress::from_number(300),
        ..ready()
    };
    let rows = [
        (ready(), 0, 0, 0, lun(0, 1)),
        (read(3, 2), READS, 1024, 0, lun(0, 1)),
        (write(3, &data), WRITES, 512, 512, lun(0, 1)),
        // SAM-5 4.7.4: above 255 by flat space addressing.
        (wide, 0, 0, 0, lun(0x41, 0x2c)),
    ];
    for (token, (command, direction, expected, immediate, lun)) in (0..).zip(rows) {
        let cdb = command.cdb.0;
        submit(&mut driver, token, command);
        let pdu = driven(&mut driver, peer.recv()).await;
        assert_eq!(pdu.bhs[0], op::SCSI_COMMAND, "I and reserved bits");
        assert_eq!(pdu.flags(), FINAL | direction | SIMPLE);
        assert_eq!(pdu.bhs[2..5], [0; 3], "reserved, and no additional header");
        assert_eq!(pdu.lun_bytes(), lun);
        assert_eq!(pdu.expected(), expected);
        assert_eq!(pdu.data.len(), immediate);
        assert_eq!(pdu.cdb(), cdb);
        assert_ne!(pdu.itt(), NO_TAG);
        assert_eq!(pdu.exp_stat_sn(), peer.stat_sn);
    }
}

fn lun(first: u8, second: u8) -> [u8; 8] {
    [first, second, 0, 0, 0, 0, 0, 0]
}

// F10
#[tokio::test]
async fn transfer_of_no_bytes_sets_no_direction_with_bytes() {
    let (mut driver, mut peer) = session().await;
    let write = Cdb::write_16(Lba(0), Blocks(0), false);
    let read = Cdb::read_16(Lba(0), Blocks(0));
    for (token, (cdb, data)) in (0..).zip([
        (write, Data::Out(Bytes::new())),
        (read, Data::In(BytesMut::new())),
    ]) {
        submit(&mut driver, token, command(cdb, data));
        let pdu = driven(&mut driver, peer.recv()).await;
        assert!(pdu.is_final());
        assert_eq!(pdu.flags() & ATTRIBUTE, SIMPLE);
        assert_ne!(pdu.flags() & (READS | WRITES), READS | WRITES);
        assert_eq!((pdu.expected(), pdu.data.len()), (0, 0));
        peer.send(Pdu::scsi_response(&pdu, GOOD)).await;
        let done = completion(&mut driver).await;
        assert_eq!((done.status.0, done.transferred), (GOOD, 0));
    }
}

// F11, F15
#[tokio::test]
async fn several_r2ts_of_two_writes_are_served_without_being_mixed_up() {
    let (mut driver, mut peer) = session_with(|_| {}, &ASKS_FIRST).await;
    let datas = [pattern(8 * BLOCK), pattern(16 * BLOCK).split_off(8 * BLOCK)];
    submit(&mut driver, 0, write(0, &datas[0]));
    submit(&mut driver, 1, write(8, &datas[1]));
    let target = async {
        let commands = [
            peer.expect(op::SCSI_COMMAND).await,
            peer.expect(op::SCSI_COMMAND).await,
        ];
        // Two R2Ts each, before any of them is served.
        for (r2t_sn, offset) in [(0, 0), (1, 2048)] {
            for (which, command) in (0..).zip(&commands) {
                let tag = r2t_sn * 2 + which;
                peer.send(Pdu::r2t(command, tag, r2t_sn, offset, 2048))
                    .await;
            }
        }
        let mut written = [vec![0; 8 * BLOCK], vec![0; 8 * BLOCK]];
        let mut served = BTreeSet::new();
        for _ in 0..4 {
            let pdus = receive_sequence(&mut peer).await;
            let tag = pdus[0].ttt();
            let which = usize::try_from(tag % 2).expect("0 or 1");
            let (offset, start) = if tag < 2 { (0, 0) } else { (2048, 2048) };
            let bytes = sequence(&pdus, &commands[which], tag, offset, 1024);
            assert_eq!(bytes.len(), 2048);
            written[which][start..start + 2048].copy_from_slice(&bytes);
            assert!(served.insert(tag), "tag {tag} was served twice");
        }
        for command in commands.iter().rev() {
            peer.send(Pdu::scsi_response(command, GOOD)).await;
        }
        written
    };
    let done = async {
        let first = completion(&mut driver).await;
        (first, completion(&mut driver).await)
    };
    let ((second, first), written) = tokio::join!(done, target);
    assert_eq!((second.token, first.token), (1, 0));
    assert!(written == datas);
}

// F16
#[tokio::test]
async fn data_in_without_data_does_no_harm() {
    let (mut driver, mut peer) = session().await;
    let data = pattern(2 * BLOCK);
    submit(&mut driver, 0, read(0, 2));
    let target = async {
        let command = peer.expect(op::SCSI_COMMAND).await;
        peer.send(Pdu::data_in(&command, 0, 0, &[], false)).await;
        peer.send(Pdu::data_in(&command, 1, 0, &data[..BLOCK], false))
            .await;
        peer.send(Pdu::data_in(&command, 2, 512, &[], false)).await;
        peer.send(Pdu::data_in(&command, 3, 512, &data[BLOCK..], true))
            .await;
        peer.send(Pdu::data_in(&command, 4, 1024, &[], true).with_status(GOOD))
            .await;
    };
    let (done, ()) = tokio::join!(completion(&mut driver), target);
    assert_eq!(done.status.0, GOOD);
    assert!(bytes_in(&done) == data);
}

// F17, F20
#[tokio::test]
async fn status_in_the_last_data_in_ends_the_task_and_counts() {
    let (mut driver, mut peer) = session().await;
    let data = pattern(2 * BLOCK);
    submit(&mut driver, 0, read(0, 2));
    let before = peer.stat_sn;
    let target = async {
        let command = peer.expect(op::SCSI_COMMAND).await;
        peer.send(Pdu::data_in(&command, 0, 0, &data[..BLOCK], false))
            .await;
        let last = Pdu::data_in(&command, 1, 512, &data[BLOCK..], true);
        peer.send(last.with_status(GOOD)).await;
    };
    let (done, ()) = tokio::join!(completion(&mut driver), target);
    assert!(bytes_in(&done) == data);
    assert_eq!(done.transferred, 1024);
    submit(&mut driver, 1, ready());
    let command = driven(&mut driver, peer.recv()).await;
    assert_eq!(command.exp_stat_sn(), before + 1, "one status was sent");
}

// F18, E7
#[tokio::test]
async fn acknowledgement_asked_for_at_level_0_ends_the_session_and_sends_no_snack() {
    let (mut driver, mut peer) = session().await;
    submit(&mut driver, 0, read(0, 1));
    let target = async {
        let command = peer.expect(op::SCSI_COMMAND).await;
        let mut data_in = Pdu::data_in(&command, 0, 0, &pattern(BLOCK), true);
        data_in.bhs[1] |= 0x40;
        peer.send(data_in).await;
    };
    let (error, ()) = tokio::join!(end(&mut driver), target);
    assert_eq!(*violation(&error), Violation::Acknowledge);
    drop(driver);
    let more = peer.until_closed().await;
    assert!(more.iter().all(|pdu| pdu.opcode() != op::SNACK), "{more:?}");
}

/// A read of two blocks that is answered by these bytes, in one Data-In, and a response.
async fn answered_read(
    bytes: usize,
    response: impl FnOnce(Pdu) -> Pdu,
) -> Result<iscsi::io::Completion, SessionError> {
    let (mut driver, mut peer) = session().await;
    submit(&mut driver, 0, read(0, 2));
    let target = async {
        let command = peer.expect(op::SCSI_COMMAND).await;
        if bytes > 0 {
            peer.send(Pdu::data_in(&command, 0, 0, &pattern(bytes), true))
                .await;
        }
        peer.send(response(Pdu::scsi_response(&command, GOOD)))
            .await;
    };
    tokio::join!(next(&mut driver), target).0
}

// F19
#[tokio::test]
async fn residuals_are_checked_against_the_bytes_that_came() {
    let done = answered_read(512, |response| response.with_residual(false, 512)).await;
    let done = done.expect("an underflow is told");
    assert_eq!((done.status.0, done.transferred), (GOOD, 512));
    assert!(bytes_in(&done)[..512] == pattern(512));
    // There was more at the target than we asked for: all that we asked for came.
    let done = answered_read(1024, |response| response.with_residual(true, 512)).await;
    assert_eq!(done.expect("an overflow is told").transferred, 1024);
    let error = answered_read(1024, |response| response.with_residual(false, 2048)).await;
    let error = error.expect_err("more is missing than was asked for");
    assert!(matches!(violation(&error), Violation::Residual { .. }));
}

// F19, E4
#[tokio::test]
async fn read_with_fewer_bytes_than_told_is_never_good() {
    for (bytes, underflow) in [(0, 0), (512, 0), (512, 256), (1020, 0)] {
        let error = answered_read(bytes, |response| {
            if underflow == 0 {
                response
            } else {
                response.with_residual(false, underflow)
            }
        })
        .await
        .expect_err("bytes are missing");
        assert!(
            matches!(violation(&error), Violation::ShortTransfer { .. }),
            "{error}"
        );
    }
}

// F20
#[tokio::test]
async fn gap_in_the_status_numbers_ends_the_session() {
    for skew in [1, 1000, 0x8000_0000, u32::MAX] {
        let (mut driver, mut peer) = session().await;
        submit(&mut driver, 0, ready());
        let target = async {
            let command = peer.expect(op::SCSI_COMMAND).await;
            peer.stat_sn = peer.stat_sn.wrapping_add(skew);
            peer.send(Pdu::scsi_response(&command, GOOD)).await;
        };
        let (error, ()) = tokio::join!(end(&mut driver), target);
        assert!(matches!(violation(&error), Violation::StatSn { .. }));
        assert_eq!(driver.take_unfinished().len(), 1);
    }
}

// F21, F23
#[tokio::test]
async fn ping_is_answered_with_its_tag_lun_and_data() {
    let (mut driver, mut peer) = session().await;
    for (tag, data) in [
        (7, Vec::new()),
        (0, pattern(13)),
        (0xffff_fffe, pattern(4096)),
    ] {
        let lun = lun(0, 9);
        peer.send(Pdu::ping(tag).with_lun(lun).with_data(data.clone()))
            .await;
        let pong = driven(&mut driver, peer.expect(op::NOP_OUT)).await;
        assert!(pong.immediate());
        assert_eq!((pong.itt(), pong.ttt()), (NO_TAG, tag));
        assert_eq!(pong.lun_bytes(), lun);
        assert!(pong.data == data);
        assert_eq!(pong.flags(), FINAL);
    }
    // Nobody answers those, and the session goes on.
    submit(&mut driver, 0, ready());
    let command = driven(&mut driver, peer.expect(op::SCSI_COMMAND)).await;
    peer.send(Pdu::scsi_response(&command, GOOD)).await;
    assert_eq!(completion(&mut driver).await.status.0, GOOD);
}

// F22
#[tokio::test]
async fn our_ping_has_a_tag_of_its_own_and_silence_after_it_ends_the_session() {
    let (mut driver, mut peer) = session_with(
        |params| {
            params.noop_interval = Duration::from_millis(20);
            params.noop_timeout = Duration::from_secs(1);
        },
        &[],
    )
    .await;
    let mut tags = BTreeSet::new();
    let target = async {
        for _ in 0..3 {
            let ping = peer.expect(op::NOP_OUT).await;
            assert_eq!(ping.ttt(), NO_TAG);
            assert_ne!(ping.itt(), NO_TAG);
            assert!(tags.insert(ping.itt()), "the tag was used before");
            peer.send(Pdu::nop_in(&ping)).await;
        }
        peer.expect(op::NOP_OUT).await
    };
    let (error, _) = tokio::join!(end(&mut driver), target);
    assert!(matches!(error, SessionError::Silent { .. }), "{error}");
}

// F22
#[tokio::test]
async fn answer_to_a_ping_that_was_never_sent_ends_the_session() {
    let (mut driver, mut peer) = session().await;
    let strange = Pdu::ping(NO_TAG).with(at::ITT, 0x1234_ff00);
    peer.send(strange).await;
    let error = end(&mut driver).await;
    assert!(matches!(violation(&error), Violation::UnknownTask(_)));
}

// F24
#[tokio::test]
async fn nop_in_without_transfer_tag_gets_no_answer() {
    let (mut driver, mut peer) = session().await;
    for _ in 0..3 {
        peer.send(Pdu::ping(NO_TAG)).await;
    }
    let (before, _) = driven(&mut driver, before_pong(&mut peer, 7)).await;
    assert!(before.is_empty(), "{before:?}");
}

// F25
#[tokio::test]
async fn asked_to_log_out_we_start_nothing_new_and_log_out_when_the_rest_is_done() {
    let (mut driver, mut peer) = session().await;
    submit(&mut driver, 0, ready());
    let first = driven(&mut driver, peer.expect(op::SCSI_COMMAND)).await;
    peer.send(Pdu::async_message(1, 0, [0, 0, 10])).await;
    let (before, _) = driven(&mut driver, before_pong(&mut peer, 7)).await;
    assert!(before.is_empty(), "a command is under way: {before:?}");
    submit(&mut driver, 1, ready());
    let (before, _) = driven(&mut driver, before_pong(&mut peer, 8)).await;
    assert!(before.is_empty(), "no command follows: {before:?}");
    peer.send(Pdu::scsi_response(&first, GOOD)).await;
    assert_eq!(completion(&mut driver).await.token, 0);
    let target = async {
        let request = peer.expect(op::LOGOUT).await;
        // 0: close the session, 1: this connection.
        assert!(request.flags() & 0x7f <= 1, "{request:?}");
        peer.send(Pdu::logout_response(&request, 0)).await;
        request
    };
    let (error, request) = tokio::join!(end(&mut driver), target);
    assert!(
        matches!(error, SessionError::LogoutRequested { .. }),
        "{error}"
    );
    assert_eq!(request.cid(), 0);
    let unfinished = driver.take_unfinished();
    assert_eq!(unfinished.len(), 1);
    assert_eq!(unfinished[0].0, 1);
}

// F25
#[tokio::test]
async fn asked_to_log_out_we_do_so_in_time_whatever_is_under_way() {
    let (mut driver, mut peer) = session().await;
    submit(&mut driver, 0, ready());
    driven(&mut driver, peer.expect(op::SCSI_COMMAND)).await;
    let asked = std::time::Instant::now();
    peer.send(Pdu::async_message(1, 0, [0, 0, 1])).await;
    let target = async {
        let request = peer.expect(op::LOGOUT).await;
        let after = asked.elapsed();
        peer.send(Pdu::logout_response(&request, 0)).await;
        after
    };
    let (error, after) = tokio::join!(end(&mut driver), target);
    assert!(
        matches!(error, SessionError::LogoutRequested { .. }),
        "{error}"
    );
    // That much the target asked for; the wait of `expect` bounds it from above.
    assert!(after < Duration::from_secs(9), "{after:?}");
}

// F26
#[tokio::test]
async fn drop_notices_end_the_session_with_the_times_that_they_tell() {
    for event in [2, 3] {
        let (mut driver, mut peer) = session().await;
        submit(&mut driver, 0, ready());
        let target = async {
            peer.expect(op::SCSI_COMMAND).await;
            peer.send(Pdu::async_message(event, 0, [0, 5, 60])).await;
        };
        let (error, ()) = tokio::join!(end(&mut driver), target);
        let SessionError::Dropped { wait, retain, .. } = error else {
            panic!("event {event}: {error}");
        };
        assert_eq!((wait, retain), (5, 60));
        assert_eq!(driver.take_unfinished().len(), 1);
    }
}

// F27
#[tokio::test]
async fn asked_to_negotiate_we_log_out_or_send_a_text_request() {
    let (mut driver, mut peer) = session().await;
    peer.send(Pdu::async_message(4, 0, [0, 0, 3])).await;
    let target = async {
        let request = peer.recv().await;
        let opcode = request.opcode();
        assert!(opcode == op::LOGOUT || opcode == op::TEXT, "{request:?}");
        if opcode == op::LOGOUT {
            peer.send(Pdu::logout_response(&request, 0)).await;
        }
        opcode
    };
    let (said, opcode) = tokio::join!(next(&mut driver), target);
    if opcode == op::LOGOUT {
        let error = said.expect_err("we logged out");
        assert!(
            matches!(error, SessionError::LogoutRequested { .. }),
            "{error}"
        );
    }
}

// L30: the write that is under way keeps to what was agreed at the login
#[tokio::test]
async fn what_was_agreed_holds_on_when_the_target_wants_to_talk_it_over() {
    let (mut driver, mut peer) = session_with(|_| {}, &ASKS_FIRST).await;
    let data = pattern(4 * BLOCK);
    submit(&mut driver, 0, write(0, &data));
    let target = async {
        let command = peer.expect(op::SCSI_COMMAND).await;
        peer.send(Pdu::async_message(4, 0, [0, 0, 3])).await;
        peer.send(Pdu::r2t(&command, 1, 0, 0, 2048)).await;
        let pdus = receive_sequence(&mut peer).await;
        let bytes = sequence(&pdus, &command, 1, 0, 1024);
        peer.send(Pdu::scsi_response(&command, GOOD)).await;
        bytes
    };
    let (done, bytes) = tokio::join!(completion(&mut driver), target);
    assert_eq!(done.status.0, GOOD);
    assert!(bytes == data);
    assert_eq!(driver.agreed().theirs_max_recv_data_segment_bytes, 1024);
}

// F28
#[tokio::test]
async fn events_that_are_news_or_unheard_of_are_no_end() {
    let (mut driver, mut peer) = session().await;
    // A SCSI event with its sense data (REPORTED LUNS DATA HAS CHANGED), a vendor's, and one of the future.
    let sense = support::target::fixed_sense(6, 0x3f, 0x0e);
    let mut data = vec![0, 18];
    data.extend(sense);
    for message in [
        Pdu::async_message(0, 0, [0; 3]).with_data(data),
        Pdu::async_message(0, 0, [0; 3]),
        Pdu::async_message(255, 9, [1, 2, 3]).with_data(pattern(100)),
        Pdu::async_message(77, 0, [0; 3]),
    ] {
        peer.send(message).await;
    }
    // Whoever answers this has read the others.
    driven(&mut driver, before_pong(&mut peer, 7)).await;
    submit(&mut driver, 0, ready());
    let command = driven(&mut driver, peer.expect(op::SCSI_COMMAND)).await;
    assert_eq!(command.exp_stat_sn(), peer.stat_sn, "all of them count");
    peer.send(Pdu::scsi_response(&command, GOOD)).await;
    assert_eq!(completion(&mut driver).await.status.0, GOOD);
}

// F29
#[tokio::test]
async fn nothing_follows_a_logout_and_its_answer_ends_the_connection() {
    let (mut driver, mut peer) = session().await;
    submit(&mut driver, 0, ready());
    let target = async {
        let mut pdus = Vec::new();
        while pdus.last().map(Pdu::opcode) != Some(op::LOGOUT) {
            pdus.push(peer.recv().await);
        }
        let request = pdus.pop().expect("it is the last");
        // 0: close the session.
        assert_eq!(request.flags(), FINAL);
        peer.send(Pdu::logout_response(&request, 0)).await;
        peer.until_closed().await
    };
    let (ended, more) = tokio::join!(driver.logout(), target);
    ended.expect("it is answered");
    assert!(more.is_empty(), "{more:?}");
}

// F29
#[tokio::test]
async fn target_that_closes_in_place_of_an_answer_to_the_logout_is_no_failure() {
    let (driver, mut peer) = session().await;
    let target = async {
        peer.expect(op::LOGOUT).await;
        peer.close().await;
    };
    let (ended, ()) = tokio::join!(driver.logout(), target);
    ended.expect("the session is closed either way");
}

// F30
#[tokio::test]
async fn text_requests_follow_their_tags_one_at_a_time() {
    let script = Script::listen().await;
    let params = params(&script.portal());
    let target = async {
        let mut peer = script.accept().await;
        peer.login().await;
        let mut list = Vec::new();
        for number in 0..50 {
            let name = format!("{IQN}-{number}");
            list.extend(text(&[
                ("TargetName", &name),
                ("TargetAddress", "192.0.2.1:3260,1"),
            ]));
        }
        // Cut wherever: in names, values, and between.
        let pieces: Vec<&[u8]> = list.chunks(331).collect();
        let mut tag = NO_TAG;
        let mut itt = BTreeSet::new();
        for (index, piece) in (0..).zip(&pieces) {
            let request = peer.expect(op::TEXT).await;
            assert_eq!(request.ttt(), tag);
            assert_eq!(request.exp_stat_sn(), peer.stat_sn);
            assert_ne!(request.itt(), NO_TAG);
            itt.insert(request.itt());
            assert_eq!(request.data.is_empty(), index > 0);
            let last = index + 1 == pieces.len();
            tag = if last {
                NO_TAG
            } else {
                0x100 + u32::try_from(index).expect("few")
            };
            let flags = if last { FINAL } else { CONTINUE };
            peer.send(Pdu::text_response(&request, flags, tag, piece))
                .await;
        }
        let request = peer.expect(op::LOGOUT).await;
        assert!(!itt.contains(&request.itt()));
        peer.send(Pdu::logout_response(&request, 0)).await;
    };
    let (found, ()) = tokio::join!(discover(&params), target);
    assert_eq!(found.expect("the list is complete").len(), 50);
}

/// How a session with a read of one block and a write of one under way ends after these PDUs.
async fn end_after(
    keys: &[(&str, &str)],
    pdus: impl FnOnce(&Pdu, &Pdu) -> Vec<Pdu>,
) -> SessionError {
    let (mut driver, mut peer) = session_with(|_| {}, keys).await;
    submit(&mut driver, 0, read(0, 1));
    submit(&mut driver, 1, write(8, &pattern(BLOCK)));
    let target = async {
        let read = peer.expect(op::SCSI_COMMAND).await;
        let write = peer.expect(op::SCSI_COMMAND).await;
        for pdu in pdus(&read, &write) {
            peer.send(pdu).await;
        }
    };
    let (error, ()) = tokio::join!(
        async {
            loop {
                match next(&mut driver).await {
                    Ok(_) => {}
                    Err(error) => return error,
                }
            }
        },
        target
    );
    drop(driver);
    let more = peer.until_closed().await;
    assert!(
        more.iter().all(|pdu| pdu.opcode() != op::LOGOUT),
        "{more:?}"
    );
    error
}

// F34
#[tokio::test]
async fn tag_unheard_of_or_used_up_drops_the_connection() {
    let rows: [fn(&Pdu, &Pdu) -> Vec<Pdu>; 6] = [
        |read, _| vec![Pdu::scsi_response(read, GOOD).with(at::ITT, 0x0bad_cafe)],
        |read, _| vec![Pdu::scsi_response(read, GOOD).with(at::ITT, NO_TAG)],
        |read, _| vec![Pdu::data_in(read, 0, 0, &[0; 512], true).with(at::ITT, 0x0bad_cafe)],
        |_, write| vec![Pdu::r2t(write, 1, 0, 0, 512).with(at::ITT, 0x0bad_cafe)],
        // An answer that comes twice.
        |_, write| {
            vec![
                Pdu::scsi_response(write, BUSY),
                Pdu::scsi_response(write, BUSY),
            ]
        },
        |read, _| {
            let data_in = Pdu::data_in(read, 0, 0, &[7; 512], true).with_status(GOOD);
            vec![data_in.clone(), data_in]
        },
    ];
    for pdus in rows {
        let error = end_after(&ASKS_FIRST, pdus).await;
        assert!(
            matches!(violation(&error), Violation::UnknownTask(_)),
            "{error}"
        );
    }
}

// F34
#[tokio::test]
async fn pdu_that_does_not_fit_its_task_drops_the_connection() {
    let rows: [fn(&Pdu, &Pdu) -> Vec<Pdu>; 5] = [
        |read, _| vec![Pdu::r2t(read, 1, 0, 0, 512)],
        |_, write| vec![Pdu::data_in(write, 0, 0, &[0; 512], true)],
        |read, _| vec![Pdu::nop_in(read)],
        |read, _| vec![Pdu::text_response(read, FINAL, NO_TAG, b"")],
        |read, _| vec![Pdu::logout_response(read, 0)],
    ];
    for pdus in rows {
        let error = end_after(&ASKS_FIRST, pdus).await;
        violation(&error);
    }
}

// F34
#[tokio::test]
async fn data_or_r2t_beyond_the_buffer_or_out_of_order_drops_the_connection() {
    let rows: [fn(&Pdu, &Pdu) -> Vec<Pdu>; 12] = [
        |read, _| vec![Pdu::data_in(read, 0, 0, &[0; 516], true)],
        |read, _| vec![Pdu::data_in(read, 0, 4, &[0; 508], true)],
        |read, _| vec![Pdu::data_in(read, 0, 512, &[0; 4], true)],
        |read, _| vec![Pdu::data_in(read, 0, u32::MAX - 3, &[0; 512], true)],
        |read, _| vec![Pdu::data_in(read, 1, 0, &[0; 512], true)],
        |_, write| vec![Pdu::r2t(write, 1, 0, 0, 513)],
        |_, write| vec![Pdu::r2t(write, 1, 0, 0, u32::MAX)],
        |_, write| vec![Pdu::r2t(write, 1, 0, u32::MAX - 255, 512)],
        |_, write| vec![Pdu::r2t(write, 1, 0, 0, 0)],
        |_, write| vec![Pdu::r2t(write, 1, 1, 0, 512)],
        |_, write| vec![Pdu::r2t(write, NO_TAG, 0, 0, 512)],
        |_, write| vec![Pdu::r2t(write, 1, 0, 0, 512), Pdu::r2t(write, 2, 1, 0, 512)],
    ];
    for (index, pdus) in rows.into_iter().enumerate() {
        let error = end_after(&ASKS_FIRST, pdus).await;
        assert!(
            matches!(error, SessionError::Violation(_)),
            "row {index}: {error}"
        );
    }
}

// F34, F15: one R2T more than was agreed
#[tokio::test]
async fn more_r2ts_than_agreed_drop_the_connection() {
    let (mut driver, mut peer) = session_with(|_| {}, &ASKS_FIRST).await;
    submit(&mut driver, 0, write(0, &pattern(8 * BLOCK)));
    // All three are there before the first is served.
    let target = async {
        let command = peer.expect(op::SCSI_COMMAND).await;
        let mut bytes = Vec::new();
        for r2t_sn in 0..3 {
            let r2t = Pdu::r2t(&command, r2t_sn, r2t_sn, r2t_sn * 512, 512)
                .with(at::EXP_CMD_SN, peer.exp_cmd_sn)
                .with(at::MAX_CMD_SN, peer.exp_cmd_sn);
            bytes.extend(r2t.encode(false, false));
        }
        peer.send_bytes(&bytes).await;
    };
    let (error, ()) = tokio::join!(end(&mut driver), target);
    assert!(
        matches!(violation(&error), Violation::R2tTooMany(_)),
        "{error}"
    );
}

/// A target with digests, and a session on it.
async fn with_digests() -> (Target, Driver) {
    let target = target().digests(true).start().await;
    let mut params = params(&target.portal());
    params.offers.header_digest = iscsi::proto::DigestPolicy::Require;
    params.offers.data_digest = iscsi::proto::DigestPolicy::Require;
    let driver = Driver::connect(&params).await;
    (target, driver.expect("the target knows CRC32C"))
}

// L15
#[tokio::test]
async fn agreed_digests_are_there_from_the_first_pdu_of_full_feature_phase_on() {
    let (target, mut driver) = with_digests().await;
    let agreed = driver.agreed();
    assert!(agreed.header_digest && agreed.data_digest);
    // The target checks each digest of ours, and the padding under it (RFC 7143 §13.1).
    for blocks in [1, 3, 129] {
        let data = pattern(blocks * BLOCK);
        let done = run(&mut driver, write(0, &data)).await;
        assert_eq!(done.status.0, GOOD);
        let blocks = u32::try_from(blocks).expect("few");
        let done = run(&mut driver, read(0, blocks)).await;
        assert!(bytes_in(&done) == data);
    }
    let inquiry = command(Cdb::inquiry(255), Data::In(BytesMut::zeroed(255)));
    let done = run(&mut driver, inquiry).await;
    assert!(done.transferred > 35, "{done:?}");
    driver.logout().await.expect("the logout is answered");
    let record = target.record();
    let offered = record.received(op::LOGIN);
    for key in ["HeaderDigest", "DataDigest"] {
        let offer = offered.iter().find_map(|request| request.key(key));
        assert_eq!(offer.as_deref(), Some("CRC32C"));
    }
    assert_eq!(target.violations(), Vec::<String>::new());
}

// L15
#[tokio::test]
async fn digests_are_offered_as_lists_of_legal_names() {
    use iscsi::proto::DigestPolicy::{None, Prefer, Require};
    for (policy, list) in [(None, "None"), (Prefer, "CRC32C,None"), (Require, "CRC32C")] {
        let target = target().digests(true).start().await;
        let mut params = params(&target.portal());
        params.offers.header_digest = policy;
        params.offers.data_digest = policy;
        let driver = Driver::connect(&params).await.expect("all are legal");
        assert_eq!(driver.agreed().header_digest, policy != None);
        let requests = target.record().received(op::LOGIN);
        for key in ["HeaderDigest", "DataDigest"] {
            let offer = requests.iter().find_map(|request| request.key(key));
            assert_eq!(offer.as_deref(), Some(list));
        }
    }
}

// F1, F7, F11, F12: all of it at once, and an honest target finds no fault
#[tokio::test]
async fn honest_target_finds_no_fault_in_a_full_window_of_reads_and_writes() {
    let target = target()
        .window(8)
        .initial_r2t(true)
        .max_recv_data_segment(2048)
        .first_burst(8192)
        .max_burst(8192)
        .max_outstanding_r2t(3)
        .start()
        .await;
    let mut driver = connect(&target).await;
    let datas: Vec<Vec<u8>> = (0..24)
        .map(|index| pattern((index % 7 + 1) * 8 * BLOCK))
        .collect();
    for (index, data) in (0..).zip(&datas) {
        submit(&mut driver, index, write(index * 64, data));
    }
    for _ in &datas {
        assert_eq!(completion(&mut driver).await.status.0, GOOD);
    }
    for (index, data) in (0..).zip(&datas) {
        let blocks = u32::try_from(data.len() / BLOCK).expect("few");
        let done = run(&mut driver, read(index * 64, blocks)).await;
        assert!(bytes_in(&done) == data);
    }
    driver.logout().await.expect("the logout is answered");
    assert_eq!(target.violations(), Vec::<String>::new());
    let from_us = |seen: &Seen| seen.direction == Direction::FromInitiator;
    assert!(
        target
            .record()
            .pdus(from_us)
            .iter()
            .all(|pdu| pdu.data.len() <= 2048)
    );
}
