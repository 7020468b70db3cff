//! The tap, the record and scripted connections of the in-process target: each thing that a test may do to a PDU.

use std::io::Read;
use std::time::Duration;

use support::target::{
    Builder, Direction, Disk, Gate, NO_TAG, Pdu, Raw, Script, Seen, Step, Target, Verdict, at,
    fixed_sense, op,
};

const IQN: &str = "iqn.2026-11.test:faulty";
const TEST_UNIT_READY: [u8; 6] = [0; 6];

#[test]
fn record_holds_all_pdus_in_order_and_wakes_who_waits() {
    let target = plain().record().start_blocking();
    let record = target.record();
    let mut raw = Raw::login(&target);
    raw.command(&TEST_UNIT_READY, 0);
    let told: Vec<_> = record
        .all()
        .iter()
        .map(|seen| (seen.direction, seen.pdu.opcode()))
        .collect();
    let (theirs, ours) = (Direction::FromInitiator, Direction::FromTarget);
    assert_eq!(
        told,
        [
            (theirs, op::LOGIN),
            (ours, op::LOGIN_RESPONSE),
            (theirs, op::SCSI_COMMAND),
            (ours, op::SCSI_RESPONSE)
        ]
    );
    let login = &record.received(op::LOGIN)[0];
    assert_eq!(login.key("TargetName").as_deref(), Some(IQN));
    assert_eq!(record.received(op::SCSI_COMMAND)[0].lun(), Some(1));
    let waiter = std::thread::spawn(move || record.wait(|seen| seen.received(op::NOP_OUT)));
    raw.echo();
    assert_eq!(waiter.join().unwrap().pdu.ttt(), NO_TAG);
    let record = target.record();
    drop(raw);
    record.wait_closed(1);
}

#[test]
fn pdus_are_changed_dropped_doubled_and_surrounded() {
    let target = plain().start_blocking();
    let mut raw = Raw::login(&target);
    target.strike(1, response, |seen| {
        Verdict::change(seen.pdu.clone().with_byte(3, 0x08))
    });
    assert_eq!(raw.command(&TEST_UNIT_READY, 0).0[3], 0x08);
    target.strike(1, response, |_| Verdict::drop());
    raw.send_command(&TEST_UNIT_READY, 0, &[]);
    // The next answer is that of the next command: its StatSN shows the gap.
    let dropped = raw.exp_stat_sn;
    let (bhs, _) = raw.command(&TEST_UNIT_READY, 0);
    assert_eq!(word(&bhs, 24), dropped + 1);
    target.strike(1, response, Verdict::twice);
    let (first, _) = raw.command(&TEST_UNIT_READY, 0);
    assert_eq!(raw.receive().unwrap().0, first);
    target.strike(1, response, |seen| Verdict::before(seen, Pdu::ping(7)));
    raw.send_command(&TEST_UNIT_READY, 0, &[]);
    assert_eq!(raw.receive_unsolicited().unwrap().0[0], op::NOP_IN);
    assert_eq!(raw.receive_unsolicited().unwrap().0[0], op::SCSI_RESPONSE);
    target.strike(2, response, |seen| Verdict::after(seen, Pdu::ping(7)));
    raw.command(&TEST_UNIT_READY, 0);
    raw.send_command(&TEST_UNIT_READY, 0, &[]);
    assert_eq!(raw.receive_unsolicited().unwrap().0[0], op::SCSI_RESPONSE);
    assert_eq!(raw.receive_unsolicited().unwrap().0[0], op::NOP_IN);
}

#[test]
fn held_pdu_is_overtaken_and_stalled_ones_keep_their_order() {
    let target = plain().start_blocking();
    let mut raw = Raw::login(&target);
    let gate = Gate::new();
    let theirs = gate.clone();
    target.strike(1, response, |_| Verdict::Hold(theirs));
    raw.send_command(&TEST_UNIT_READY, 0, &[]);
    let first = raw.itt;
    let (bhs, _) = raw.command(&TEST_UNIT_READY, 0);
    assert_eq!(word(&bhs, 16), first + 1);
    gate.open();
    assert_eq!(word(&raw.receive().unwrap().0, 16), first);

    let gate = Gate::new();
    let theirs = gate.clone();
    target.strike(1, response, move |seen| Verdict::stall(seen, &theirs));
    let record = target.record();
    for _ in 0..2 {
        raw.send_command(&TEST_UNIT_READY, 0, &[]);
    }
    record.wait_count(2, |seen| seen.received(op::SCSI_COMMAND));
    raw.stream
        .set_read_timeout(Some(Duration::from_millis(30)))
        .unwrap();
    assert_eq!(
        raw.stream.peek(&mut [0]).unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock
    );
    raw.stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    gate.open();
    for itt in [raw.itt - 1, raw.itt] {
        assert_eq!(word(&raw.receive().unwrap().0, 16), itt);
    }
}

#[test]
fn delayed_and_split_pdus_arrive_whole() {
    let target = plain().start_blocking();
    let mut raw = Raw::login(&target);
    target.strike(1, response, |seen| {
        Verdict::delay(seen, Duration::from_millis(5))
    });
    target.strike(2, response, |seen| Verdict::split(seen, 1));
    for _ in 0..3 {
        assert_eq!(raw.command(&TEST_UNIT_READY, 0).0[3], 0);
    }
}

#[test]
fn truncated_pdu_is_followed_by_an_orderly_close() {
    let target = plain().record().start_blocking();
    let mut raw = Raw::login(&target);
    target.strike(1, response, |seen| Verdict::truncate(seen, 20));
    raw.send_command(&TEST_UNIT_READY, 0, &[]);
    let mut rest = Vec::new();
    // An error here would be a reset.
    raw.stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 20);
    // The session ends at once, the connection when the initiator has closed too.
    target.wait_sessions(0);
    drop(raw);
    target.record().wait_closed(1);
}

#[test]
fn connections_are_closed_and_reset_before_and_after() {
    let target = plain().start_blocking();
    let ends: [(Make, bool, bool); 4] = [
        (|_| Verdict::close(), false, false),
        (Verdict::close_after, true, false),
        (|_| Verdict::reset(), false, true),
        (Verdict::reset_after, true, true),
    ];
    for (verdict, answered, reset) in ends {
        let mut raw = Raw::login(&target);
        target.strike(1, response, verdict);
        raw.send_command(&TEST_UNIT_READY, 0, &[]);
        let mut rest = Vec::new();
        let result = raw.stream.read_to_end(&mut rest);
        assert_eq!(result.is_err(), reset, "{result:?}");
        // A reset may destroy what was not read yet.
        assert!(rest.len() == if answered { 48 } else { 0 } || reset && rest.is_empty());
    }
}

#[test]
fn pdus_of_the_initiator_are_swallowed_answered_and_held() {
    let target = plain().start_blocking();
    let mut raw = Raw::login(&target);
    target.strike(1, |seen| seen.command(0), |_| Verdict::drop());
    target.strike(
        1,
        |seen| seen.command(0x25),
        |seen| {
            let sense = fixed_sense(3, 0x11, 0);
            Verdict::Steps(vec![Step::Pdu(
                Pdu::check_condition(&seen.pdu, &sense).with(at::STAT_SN, 0x1001),
            )])
        },
    );
    raw.send_command(&TEST_UNIT_READY, 0, &[]);
    let (bhs, data) = raw.command(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8);
    assert_eq!((bhs[3], data[4], word(&bhs, 24)), (2, 3, 0x1001));
    target.clear_faults();

    let mut raw = Raw::login(&target);
    let gate = Gate::new();
    let theirs = gate.clone();
    target.strike(1, |seen| seen.command(0), |_| Verdict::Hold(theirs));
    raw.send_write(&[9; 512]);
    raw.receive().unwrap();
    let record = target.record();
    raw.send_command(&TEST_UNIT_READY, 0, &[]);
    raw.send_write(&[7; 512]);
    record.wait(|seen| seen.command(0));
    gate.open();
    for _ in 0..2 {
        assert_eq!(raw.receive().unwrap().0[3], 0);
    }
    let mut seen = [0; 512];
    target.disk(IQN, 1).unwrap().read(0, &mut seen).unwrap();
    assert_eq!(seen, [7; 512]);
}

#[test]
fn login_answers_pass_the_tap_too() {
    let target = plain()
        .tap(|seen| {
            if seen.sent(op::LOGIN_RESPONSE) {
                Verdict::change(seen.pdu.clone().with_byte(36, 2).with_byte(37, 3))
            } else {
                Verdict::Pass
            }
        })
        .start_blocking();
    let (class, detail, _) = Raw::try_login(&target, 1).unwrap_err();
    assert_eq!((class, detail), (2, 3));
}

#[test]
fn pdus_are_sent_on_demand() {
    let target = plain().start_blocking();
    let mut raw = Raw::login(&target);
    target.send(Pdu::async_message(255, 1, [2, 3, 4]), true);
    let (bhs, _) = raw.receive_unsolicited().unwrap();
    assert_eq!(
        (bhs[0], &bhs[36..44]),
        (op::ASYNC, &[255, 1, 0, 2, 0, 3, 0, 4][..])
    );
    assert_eq!(word(&bhs, 24), raw.exp_stat_sn - 1);
    target.send(Pdu::ping(NO_TAG).with(at::STAT_SN, 77), false);
    let (bhs, _) = raw.receive_unsolicited().unwrap();
    assert_eq!((bhs[0], word(&bhs, 24)), (op::NOP_IN, 77));
}

#[tokio::test]
async fn script_plays_login_commands_and_end() {
    let script = Script::listen().await;
    let address = script.address();
    let initiator = std::thread::spawn(move || {
        let mut raw = Raw::connect(address, IQN, 1).unwrap();
        let capacity = raw.command(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8).1;
        let refused = raw.command(&TEST_UNIT_READY, 0).0[3];
        (capacity, refused, raw.receive().is_none())
    });
    let mut peer = script.accept().await;
    let login = peer.login().await;
    assert_eq!(login.key("TargetName"), Some(IQN));
    let disk = Disk::memory(1 << 20);
    let asked = peer.answer_until(&disk, |pdu| pdu.cdb()[0] == 0).await;
    peer.send(Pdu::scsi_response(&asked, 0x18)).await;
    peer.close().await;
    let (capacity, refused, closed) = initiator.join().unwrap();
    assert_eq!(
        (capacity, refused, closed),
        (vec![0, 0, 7, 255, 0, 0, 2, 0], 0x18, true)
    );
    assert!(peer.until_closed().await.is_empty());
}

type Make = fn(&Seen) -> Verdict;

fn response(seen: &Seen) -> bool {
    seen.sent(op::SCSI_RESPONSE)
}

fn plain() -> Builder {
    Target::builder()
        .iqn(IQN)
        .lun(1, Disk::memory(1 << 20))
        .unit_attention(false)
}

fn word(bhs: &[u8; 48], at: usize) -> u32 {
    u32::from_be_bytes([bhs[at], bhs[at + 1], bhs[at + 2], bhs[at + 3]])
}
