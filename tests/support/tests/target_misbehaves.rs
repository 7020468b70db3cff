//! The in-process target when it is told to misbehave, and where it must be strict: seen by an initiator made of
//! bare headers, so that nothing is hidden.

use std::time::{Duration, Instant};

use support::target::{Builder, Disk, Export, Fault, Raw, Target};

const IQN: &str = "iqn.2026-11.test:faulty";
const READ_CAPACITY: [u8; 10] = [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const TEST_UNIT_READY: [u8; 6] = [0; 6];

#[test]
fn logins_are_refused_redirected_and_cut() {
    let target = plain().start_blocking();
    target.inject(Fault::RefuseLogin {
        class: 3,
        detail: 1,
    });
    assert_eq!(
        Raw::try_login(&target, 1).unwrap_err(),
        (3, 1, String::new())
    );
    target.clear_faults();
    target.inject(Fault::Redirect {
        to: "127.0.0.1:9".into(),
        permanent: true,
    });
    assert_eq!(
        Raw::try_login(&target, 1).unwrap_err(),
        (1, 2, "TargetAddress=127.0.0.1:9".to_owned())
    );
    target.clear_faults();
    target.inject(Fault::CloseAtLogin);
    assert_eq!(
        Raw::try_login(&target, 1).unwrap_err(),
        (0, 0, "closed".to_owned())
    );
    target.clear_faults();
    Raw::try_login(&target, 1).unwrap();
    assert_eq!((target.logins(), target.violations()), (1, Vec::new()));
}

#[test]
fn counted_commands_get_what_was_injected() {
    let target = plain().start_blocking();
    let mut raw = Raw::login(&target);
    target.inject(Fault::CheckCondition {
        nth: 2,
        key: 3,
        asc: 0x11,
        ascq: 0,
    });
    target.inject(Fault::Status {
        nth: 3,
        status: 0x28,
    });
    target.inject(Fault::ShortRead {
        nth: 4,
        missing: 100,
    });
    target.inject(Fault::RejectCommand { nth: 5, reason: 9 });
    assert_eq!(raw.command(&TEST_UNIT_READY, 0).0[3], 0);
    let (bhs, data) = raw.command(&TEST_UNIT_READY, 0);
    assert_eq!((bhs[3], data[4] & 0xf, data[14]), (2, 3, 0x11));
    assert_eq!(raw.command(&TEST_UNIT_READY, 0).0[3], 0x28);
    let (bhs, data) = raw.command(&read_10(0, 1), 512);
    assert_eq!(
        (bhs[1] & 0x03, &bhs[44..48], data.len()),
        (3, &[0, 0, 0, 100][..], 412)
    );
    let (bhs, data) = raw.command(&TEST_UNIT_READY, 0);
    assert_eq!((bhs[0], bhs[2], data.len()), (0x3f, 9, 48));
    assert_eq!(raw.command(&TEST_UNIT_READY, 0).0[3], 0);
}

#[test]
fn dropped_command_is_executed_or_not_as_told() {
    let target = plain().start_blocking();
    for (executed, expected) in [(false, 0), (true, 7)] {
        let mut raw = Raw::login(&target);
        target.inject(Fault::DropAtCommand { nth: 1, executed });
        raw.send_write(&[7; 512]);
        assert!(raw.receive().is_none());
        let mut seen = [1; 512];
        target.disk(IQN, 1).unwrap().read(0, &mut seen).unwrap();
        assert_eq!(seen, [expected; 512]);
        target.wait_sessions(0);
    }
}

#[test]
fn connection_drops_after_its_share_of_pdus() {
    let target = plain().start_blocking();
    target.inject(Fault::DropAfterPdus(3));
    let mut raw = Raw::login(&target);
    assert_eq!(raw.command(&TEST_UNIT_READY, 0).0[3], 0);
    raw.send_command(&TEST_UNIT_READY, 0, &[]);
    assert!(raw.receive().is_none());
}

#[test]
fn silence_and_unanswered_commands_leave_the_connection_open() {
    let target = plain().start_blocking();
    let mut raw = Raw::login(&target);
    target.inject(Fault::NoAnswer { nth: 1 });
    raw.send_command(&TEST_UNIT_READY, 0, &[]);
    let answered = raw.command(&READ_CAPACITY, 8);
    assert_eq!(answered.0[0], 0x25);
    target.inject(Fault::Silent);
    raw.send_command(&TEST_UNIT_READY, 0, &[]);
    raw.stream
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    assert!(raw.receive_unsolicited().is_none());
    assert_eq!(target.sessions(), 1);
}

#[test]
fn window_closes_as_it_is_used_up_and_opens_when_cleared() {
    let target = plain().window(2).start_blocking();
    let mut raw = Raw::login(&target);
    target.inject(Fault::Window(0));
    assert_eq!(raw.receive_unsolicited().unwrap().0[0], 0x20);
    let first = raw.command(&TEST_UNIT_READY, 0).0;
    let second = raw.command(&TEST_UNIT_READY, 0).0;
    // What was granted stays granted, then MaxCmdSN is ExpCmdSN - 1.
    assert_eq!(word(&first, 32), word(&first, 28));
    assert_eq!(word(&second, 32), word(&second, 28).wrapping_sub(1));
    // Ignored in silence; the echo shows that it was looked at.
    raw.send_command(&TEST_UNIT_READY, 0, &[]);
    raw.echo();
    target.clear_faults();
    let (opened, _) = raw.receive_unsolicited().unwrap();
    assert_eq!(word(&opened, 28), word(&second, 28));
    assert_eq!(word(&opened, 32), word(&opened, 28).wrapping_add(1));
    assert_eq!(target.violations().len(), 1);
}

#[test]
fn the_same_isid_replaces_a_session_and_another_does_not() {
    let target = plain().start_blocking();
    let mut first = Raw::login(&target);
    let mut other = Raw::try_login(&target, 2).unwrap();
    assert_eq!(target.sessions(), 2);
    let mut again = Raw::login(&target);
    assert!(first.receive().is_none());
    assert_eq!(target.sessions(), 2);
    assert_eq!(again.command(&TEST_UNIT_READY, 0).0[3], 0);
    assert_eq!(other.command(&TEST_UNIT_READY, 0).0[3], 0);
}

#[test]
fn unit_attentions_are_told_once() {
    let target = plain().unit_attention(true).start_blocking();
    let mut raw = Raw::login(&target);
    let sense = |data: &[u8]| (data[4] & 0xf, data[14], data[15]);
    let (bhs, data) = raw.command(&TEST_UNIT_READY, 0);
    assert_eq!((bhs[3], sense(&data)), (2, (6, 0x29, 0)));
    assert_eq!(raw.command(&TEST_UNIT_READY, 0).0[3], 0);
    target.resize(IQN, 1, 1 << 19);
    let (_, data) = raw.command(&TEST_UNIT_READY, 0);
    assert_eq!(sense(&data), (6, 0x2a, 9));
    let (_, data) = raw.command(&READ_CAPACITY, 8);
    assert_eq!(data, [0, 0, 3, 255, 0, 0, 2, 0]);
    target.remove_lun(IQN, 1);
    let (_, data) = raw.command(&TEST_UNIT_READY, 0);
    assert_eq!(sense(&data), (5, 0x25, 0));
}

#[test]
fn pings_and_logout_requests_go_out_and_removal_cuts() {
    let target = plain().start_blocking();
    let mut raw = Raw::login(&target);
    target.ping();
    let (ping, _) = raw.receive_unsolicited().unwrap();
    assert_eq!((ping[0], word(&ping, 16)), (0x20, u32::MAX));
    let mut pong = [0; 48];
    (pong[0], pong[1]) = (0x40, 0x80);
    pong[16..20].fill(0xff);
    pong[20..24].copy_from_slice(&ping[20..24]);
    raw.send(pong, &[]);
    target.request_logout(7);
    let (asked, _) = raw.receive_unsolicited().unwrap();
    assert_eq!((asked[0], asked[36], asked[43]), (0x32, 1, 7));
    let deadline = Instant::now() + Duration::from_secs(5);
    while target.pongs() == 0 {
        assert!(Instant::now() < deadline, "the pong does not arrive");
        std::thread::sleep(Duration::from_millis(5));
    }
    target.add(Export::new("iqn.2026-11.test:more"));
    assert!(target.remove(IQN) && !target.remove(IQN));
    assert!(raw.receive_unsolicited().is_none());
    let refused = Raw::connect(target.address(), IQN, 1).unwrap_err();
    assert_eq!(refused.1, 3);
    assert_eq!(target.violations(), Vec::<String>::new());
}

#[test]
fn broken_rules_are_noted() {
    let target = plain().immediate_data(false).start_blocking();
    let mut raw = Raw::login(&target);
    raw.send_write(&[1; 512]);
    raw.receive().unwrap();
    raw.cmd_sn = raw.cmd_sn.wrapping_add(5);
    raw.send_command(&TEST_UNIT_READY, 0, &[]);
    assert!(raw.receive().is_none());
    target.wait_sessions(0);
    let violations = target.violations();
    assert!(
        violations[0].starts_with("immediate data although"),
        "{violations:?}"
    );
    assert!(violations[1].starts_with("CmdSN"), "{violations:?}");
}

fn plain() -> Builder {
    Target::builder()
        .iqn(IQN)
        .lun(1, Disk::memory(1 << 20))
        .unit_attention(false)
}

fn read_10(lba: u8, blocks: u8) -> [u8; 10] {
    [0x28, 0, 0, 0, 0, lba, 0, 0, blocks, 0]
}

fn word(bhs: &[u8; 48], at: usize) -> u32 {
    u32::from_be_bytes([bhs[at], bhs[at + 1], bhs[at + 2], bhs[at + 3]])
}
