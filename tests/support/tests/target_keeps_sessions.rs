//! Sessions of the in-process target: tasks that are held, ended and late, several connections, task management,
//! asynchronous messages, digests, and what an initiator does wrong there.

#![expect(
    clippy::unwrap_used,
    reason = "clippy takes the helpers of tests for something else"
)]

use support::target::{Builder, Disk, Fault, Pdu, Raw, Step, Target, Verdict, at, lun_bytes, op};

const IQN: &str = "iqn.2026-11.test:sessions";
const TEST_UNIT_READY: [u8; 6] = [0; 6];

#[test]
fn held_commands_are_overtaken_and_run_when_released() {
    let target = plain().start_blocking();
    let mut raw = Raw::login(&target);
    target.inject(Fault::HoldWrites);
    raw.send_write(&[7; 512]);
    let held = raw.itt;
    target.wait_held(1);
    assert_eq!(raw.command(&TEST_UNIT_READY, 0).0[3], 0);
    assert_eq!(first_byte(&target), 0);
    target.release();
    assert_eq!(word(&raw.receive().unwrap().0, at::ITT), held);
    assert_eq!(first_byte(&target), 7);
    target.clear_faults();
    target.inject(Fault::HoldCommand { nth: 1 });
    raw.send_command(&TEST_UNIT_READY, 0, &[]);
    target.wait_held(2);
    let held = raw.itt;
    let (bhs, _) = raw.command(&TEST_UNIT_READY, 0);
    assert_eq!(word(&bhs, at::ITT), held + 1);
    target.release();
    assert_eq!(word(&raw.receive().unwrap().0, at::ITT), held);
}

#[test]
fn delayed_commands_wait_and_answer_by_themselves() {
    let target = plain().start_blocking();
    let mut raw = Raw::login(&target);
    for seconds in [86_400, 0] {
        let time = std::time::Duration::from_secs(seconds);
        target.inject(Fault::DelayCommand { nth: 1, time });
        raw.send_command(&TEST_UNIT_READY, 0, &[]);
        let delayed = raw.itt;
        if seconds > 0 {
            raw.command(&TEST_UNIT_READY, 0);
            assert_eq!(raw.manage(1, delayed), 0);
        } else {
            assert_eq!(word(&raw.receive().unwrap().0, at::ITT), delayed);
        }
    }
}

#[test]
fn reinstatement_ends_held_writes_unless_told_to_let_them_land() {
    for late in [false, true] {
        let target = plain().start_blocking();
        target.inject(Fault::HoldCommand { nth: 1 });
        if late {
            target.inject(Fault::LateWrites);
        }
        let mut raw = Raw::login(&target);
        raw.send_write(&[7; 512]);
        target.wait_held(1);
        let mut again = Raw::login(&target);
        again.send_write(&[9; 512]);
        assert_eq!(again.receive().unwrap().0[3], 0);
        assert_eq!(target.release(), usize::from(late));
        assert_eq!(first_byte(&target), if late { 7 } else { 9 });
    }
}

#[test]
fn task_management_ends_what_it_names() {
    let target = plain().lun(2, Disk::memory(1 << 20)).start_blocking();
    for (function, lun, ends) in [
        (1, 1, true),
        (2, 1, true),
        (4, 1, true),
        (5, 1, true),
        (6, 1, true),
        (2, 2, false),
        (5, 2, false),
    ] {
        let mut raw = Raw::login(&target);
        drain_attention(&mut raw);
        target.inject(Fault::HoldCommand { nth: 1 });
        let before = target.held();
        raw.send_write(&[function; 512]);
        target.wait_held(before + 1);
        raw.lun = lun;
        let task = raw.itt;
        assert_eq!(raw.manage(function, task), 0, "{function}");
        raw.lun = 1;
        assert_eq!(raw.manage(1, task), u8::from(ends), "{function}");
        target.release();
        raw.echo();
        assert_ne!(first_byte(&target), function);
    }
    let mut raw = Raw::login(&target);
    assert_eq!(raw.manage(1, raw.itt + 1), 1);
    raw.lun = 9;
    assert_eq!(raw.manage(5, 0), 2);
    raw.lun = 0;
    assert_eq!((raw.manage(8, 0), raw.manage(77, 0)), (4, 5));
    // A cold reset takes the connections along.
    let mut other = Raw::try_login(&target, 2).unwrap();
    assert_eq!(raw.manage(7, 0), 0);
    assert!(raw.receive().is_none() && other.receive().is_none());
}

#[test]
fn task_management_of_one_session_reaches_others() {
    let target = plain().start_blocking();
    let mut victim = Raw::login(&target);
    let mut raw = Raw::try_login(&target, 2).unwrap();
    for (function, attention) in [(4, 0), (5, 0x29)] {
        target.inject(Fault::HoldCommand { nth: 1 });
        let before = target.held();
        victim.send_write(&[7; 512]);
        target.wait_held(before + 1);
        assert_eq!(raw.manage(function, 0), 0);
        // The order reaches the other session with its next turn at the latest.
        victim.echo();
        target.release();
        let (bhs, data) = victim.command(&TEST_UNIT_READY, 0);
        assert_eq!(word(&bhs, at::ITT), victim.itt);
        assert_eq!(data.get(14).copied().unwrap_or(0), attention);
        assert_eq!(first_byte(&target), 0);
        drain_attention(&mut raw);
    }
}

#[test]
fn task_management_answers_as_told_or_not_at_all() {
    let target = plain().start_blocking();
    let mut raw = Raw::login(&target);
    for response in [1, 2, 3, 4, 5, 6, 255] {
        target.inject(Fault::TaskManagement { response });
        assert_eq!(raw.manage(5, 0), response);
        target.clear_faults();
        raw.receive_unsolicited().unwrap();
    }
    target.inject(Fault::NoTaskManagement);
    raw.send_manage(5, 0);
    raw.echo();
}

#[test]
fn commands_run_in_order_over_all_connections() {
    let target = plain().max_connections(4).record().start_blocking();
    let mut links = joined(&target, 4);
    // The last connection has the first number.
    let numbers: Vec<u32> = (0..4).map(|index| links[0].cmd_sn + 3 - index).collect();
    for (raw, number) in links.iter_mut().zip(&numbers) {
        raw.cmd_sn = *number;
        raw.itt = 100 + *number;
        raw.send_command(&TEST_UNIT_READY, 0, &[]);
        if number != numbers.last().unwrap() {
            raw.echo();
        }
    }
    for raw in &mut links {
        assert_eq!(raw.receive().unwrap().0[0], op::SCSI_RESPONSE);
    }
    let sent: Vec<u32> = target
        .record()
        .sent(op::SCSI_RESPONSE)
        .iter()
        .map(Pdu::itt)
        .collect();
    let expected: Vec<u32> = numbers.iter().rev().map(|number| 101 + number).collect();
    assert_eq!(sent, expected);
    assert_eq!(target.violations(), Vec::<String>::new());
    // Level 0: with one connection all are lost.
    drop(links.pop());
    for raw in &mut links {
        assert!(raw.receive().is_none());
    }
    target.wait_sessions(0);
}

#[test]
fn a_connection_may_leave_and_data_may_not_stray() {
    let target = plain()
        .max_connections(2)
        .initial_r2t(true)
        .start_blocking();
    let mut links = joined(&target, 2);
    let mut write = [0; 48];
    (write[0], write[1], write[9]) = (op::SCSI_COMMAND, 0xa1, 1);
    write[16..20].copy_from_slice(&500_u32.to_be_bytes());
    write[20..24].copy_from_slice(&512_u32.to_be_bytes());
    write[24..28].copy_from_slice(&links[0].cmd_sn.to_be_bytes());
    write[32..42].copy_from_slice(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    links[0].send(write, &[]);
    let (r2t, _) = links[0].receive().unwrap();
    let mut data = [0; 48];
    (data[0], data[1]) = (op::DATA_OUT, 0x80);
    data[8..24].copy_from_slice(&r2t[8..24]);
    links[1].send(data, &[5; 512]);
    let (bhs, _) = links[0].receive().unwrap();
    assert_eq!((bhs[0], bhs[3]), (op::SCSI_RESPONSE, 2));
    assert!(
        target
            .violations()
            .last()
            .unwrap()
            .contains("another connection")
    );
    // Logout for reason 1 with the CID of the other connection.
    let mut logout = [0; 48];
    (logout[0], logout[1], logout[21]) = (0x46, 0x81, 1);
    links[0].cmd_sn += 1;
    logout[24..28].copy_from_slice(&links[0].cmd_sn.to_be_bytes());
    links[0].send(logout, &[]);
    assert_eq!(links[0].receive().unwrap().0[2], 0);
    assert!(links[1].receive().is_none());
    links[0].echo();
    assert_eq!(target.sessions(), 1);
}

#[test]
fn asynchronous_messages_are_sent_and_done() {
    let target = plain().start_blocking();
    let mut raw = Raw::login(&target);
    for (event, parameters) in [
        (0, [0; 3]),
        (1, [0, 0, 3]),
        (4, [0, 0, 3]),
        (255, [1, 2, 3]),
    ] {
        target.announce(Pdu::async_message(event, 0, parameters));
        let (bhs, _) = raw.receive_unsolicited().unwrap();
        assert_eq!(
            (bhs[0], bhs[36], bhs[43]),
            (op::ASYNC, event, parameters[2].to_be_bytes()[1])
        );
    }
    target.inject(Fault::HoldCommand { nth: 1 });
    raw.send_write(&[7; 512]);
    target.wait_held(1);
    target.announce(Pdu::async_message(5, 0, [0; 3]).with_lun(lun_bytes(1)));
    assert_eq!(raw.receive_unsolicited().unwrap().0[36], 5);
    assert_eq!(raw.manage(1, raw.itt), 1);
    for (event, isid) in [(2, 1), (3, 2)] {
        let mut raw = Raw::try_login(&target, isid).unwrap();
        target.announce(Pdu::async_message(event, 0, [0, 2, 20]));
        assert_eq!(raw.receive_unsolicited().unwrap().0[36], event);
        assert!(raw.receive().is_none());
        target.wait_sessions(0);
    }
}

#[test]
fn pings_carry_what_they_are_told_and_wrong_pongs_are_noted() {
    let target = plain().start_blocking();
    let mut raw = Raw::login(&target);
    target.ping_with(lun_bytes(1), b"data");
    let (ping, data) = raw.receive_unsolicited().unwrap();
    assert_eq!((ping[9], &data[..]), (1, &b"data"[..]));
    let mut pong = [0; 48];
    (pong[0], pong[1]) = (0x40, 0x80);
    pong[16..20].fill(0xff);
    pong[20..24].copy_from_slice(&ping[20..24]);
    pong[24..28].copy_from_slice(&raw.cmd_sn.to_be_bytes());
    raw.send(pong, &data);
    pong[8..16].copy_from_slice(&ping[8..16]);
    raw.send(pong, &data);
    raw.echo();
    let violations = target.violations();
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert!(violations[0].starts_with("NOP-Out answers no ping"));
    assert_eq!(target.pongs(), 2);
}

#[test]
fn digests_are_made_and_made_wrong() {
    let target = plain().digests(true).start_blocking();
    let login = || {
        let mut raw = Raw::open(target.address());
        let keys = format!("TargetName={IQN}\0HeaderDigest=CRC32C\0DataDigest=CRC32C\0");
        raw.enter(1, 0, 0, &keys).unwrap();
        raw
    };
    for (fault, header, data) in [
        (None, true, true),
        (Some(Fault::WrongHeaderDigest { nth: 1 }), false, true),
        (Some(Fault::WrongDataDigest { nth: 1 }), true, false),
    ] {
        let mut raw = login();
        if let Some(fault) = fault {
            target.inject(fault);
        }
        let mut bhs = [0; 48];
        (bhs[0], bhs[1]) = (0x40, 0x80);
        bhs[20..24].fill(0xff);
        bhs[24..28].copy_from_slice(&raw.cmd_sn.to_be_bytes());
        bhs[28..32].copy_from_slice(&raw.exp_stat_sn.to_be_bytes());
        let ping = Pdu::new(bhs, &b"abcde"[..]).encode(true, true);
        std::io::Write::write_all(&mut raw.stream, &ping).unwrap();
        let mut answer = [0; 48 + 4 + 8 + 4];
        std::io::Read::read_exact(&mut raw.stream, &mut answer).unwrap();
        let right = |from: usize, to: usize| {
            crc32c::crc32c(&answer[from..to]).to_le_bytes() == answer[to..to + 4]
        };
        assert_eq!((right(0, 48), right(52, 60)), (header, data));
        target.clear_faults();
    }
}

#[test]
fn rejects_of_every_reason_carry_the_header() {
    let target = plain().start_blocking();
    for reason in 2..=0x0c {
        let mut raw = Raw::login(&target);
        target.strike(
            1,
            |seen| seen.sent(op::SCSI_RESPONSE),
            move |seen| {
                let rejected = Pdu::new([reason; 48], Vec::new());
                let reject = Pdu::reject(&rejected, reason).with(at::STAT_SN, seen.pdu.stat_sn());
                Verdict::Steps(vec![Step::Pdu(reject)])
            },
        );
        let (bhs, data) = raw.command(&TEST_UNIT_READY, 0);
        assert_eq!(
            (bhs[0], bhs[2], &data[..]),
            (op::REJECT, reason, &[reason; 48][..])
        );
    }
}

#[test]
fn several_r2ts_are_open_at_once_and_tiny_limits_hold() {
    let target = plain()
        .initial_r2t(true)
        .immediate_data(false)
        .max_outstanding_r2t(3)
        .max_burst(512)
        .first_burst(512)
        .max_recv_data_segment(512)
        .start_blocking();
    let mut raw = Raw::open(target.address());
    let keys = format!(
        "TargetName={IQN}\0MaxOutstandingR2T=8\0MaxBurstLength=512\0FirstBurstLength=512\0ImmediateData=No\0"
    );
    raw.enter(1, 0, 0, &keys).unwrap();
    let mut write = [0; 48];
    (write[0], write[1], write[9]) = (op::SCSI_COMMAND, 0xa1, 1);
    write[16..20].copy_from_slice(&500_u32.to_be_bytes());
    write[20..24].copy_from_slice(&2048_u32.to_be_bytes());
    write[24..28].copy_from_slice(&raw.cmd_sn.to_be_bytes());
    write[32..42].copy_from_slice(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 4, 0]);
    raw.send(write, &[]);
    let mut r2ts: Vec<_> = (0..3).map(|_| raw.receive().unwrap().0).collect();
    for index in 0..4_u32 {
        let r2t = r2ts[usize::try_from(index).unwrap()];
        assert_eq!(
            (r2t[0], word(&r2t, 36), word(&r2t, 40)),
            (op::R2T, index, index * 512)
        );
        let mut data = [0; 48];
        (data[0], data[1]) = (op::DATA_OUT, 0x80);
        data[8..24].copy_from_slice(&r2t[8..24]);
        data[40..44].copy_from_slice(&r2t[40..44]);
        raw.send(data, &[9; 512]);
        if index == 0 {
            r2ts.push(raw.receive().unwrap().0);
        }
    }
    assert_eq!(raw.receive().unwrap().0[0], op::SCSI_RESPONSE);
    assert_eq!(first_byte(&target), 9);
    assert_eq!(target.violations(), Vec::<String>::new());
}

#[test]
fn broken_serials_and_fields_are_noted() {
    let target = plain().start_blocking();
    let mut raw = Raw::login(&target);
    raw.command(&TEST_UNIT_READY, 0);
    raw.exp_stat_sn = 0x1000;
    raw.echo();
    let mut odd = [0; 48];
    (odd[0], odd[1], odd[47]) = (0x40, 0x80, 1);
    odd[16..20].copy_from_slice(b"oddp");
    odd[20..24].fill(0xff);
    odd[24..28].copy_from_slice(&raw.cmd_sn.to_be_bytes());
    raw.send(odd, &[]);
    raw.receive_unsolicited().unwrap();
    let violations = target.violations();
    assert_eq!(violations.len(), 2, "{violations:?}");
    assert!(
        violations[0].starts_with("ExpStatSN 4096 after 4097"),
        "{violations:?}"
    );
    assert!(
        violations[1].starts_with("reserved bytes 32..48"),
        "{violations:?}"
    );
}

/// A session of so many connections.
fn joined(target: &Target, count: u16) -> Vec<Raw> {
    let mut links: Vec<Raw> = Vec::new();
    let mut tsih = 0;
    for cid in 0..count {
        let mut raw = Raw::open(target.address());
        let more = if cid == 0 { "MaxConnections=4\0" } else { "" };
        let keys = format!("TargetName={IQN}\0{more}");
        let (bhs, _) = raw.enter(1, tsih, cid, &keys).unwrap();
        tsih = u16::from_be_bytes([bhs[14], bhs[15]]);
        links.push(raw);
    }
    links
}

fn drain_attention(raw: &mut Raw) {
    while raw.command(&TEST_UNIT_READY, 0).0[3] != 0 {}
}

fn first_byte(target: &Target) -> u8 {
    let mut seen = [0; 512];
    target.disk(IQN, 1).unwrap().read(0, &mut seen).unwrap();
    seen[0]
}

fn word(bhs: &[u8; 48], at: usize) -> u32 {
    u32::from_be_bytes([bhs[at], bhs[at + 1], bhs[at + 2], bhs[at + 3]])
}

fn plain() -> Builder {
    Target::builder()
        .iqn(IQN)
        .lun(1, Disk::memory(1 << 20))
        .unit_attention(false)
}
