//! S: what SCSI says, and what is done about it. By the handle `client::Disk`, which repeats what is to be repeated, and
//! by the driver, which hands up what was said.

use bytes::Bytes;
use iscsi::client::{Disk, Error};
use iscsi::io::Completion;
use iscsi::scsi::{Blocks, Lba, Sense, SenseKey, Status};
use support::target::{Fault, Pdu, Seen, Target, fixed_sense, op};

use crate::bed::{BLOCK, IQN, LUN, completion, params, pattern, ready, session, submit, target};

/// SBC-4: READ(16) and WRITE(16).
const READ_16: u8 = 0x88;
const WRITE_16: u8 = 0x8a;
const READ_CAPACITY_16: u8 = 0x9e;
const TEST_UNIT_READY: u8 = 0x00;

/// SPC-4: sense keys.
const NOT_READY: u8 = 0x2;
const UNIT_ATTENTION: u8 = 0x6;
const ABORTED_COMMAND: u8 = 0xb;

async fn open(target: &Target) -> Disk {
    let disk = Disk::open(&params(&target.portal()), LUN).await;
    disk.expect("the disk opens")
}

fn check(key: u8, asc: u8, ascq: u8) -> Fault {
    Fault::CheckCondition {
        nth: 1,
        key,
        asc,
        ascq,
    }
}

fn sent(target: &Target, operation_code: u8) -> Vec<Pdu> {
    let which = move |seen: &Seen| seen.command(operation_code);
    target.record().pdus(which)
}

/// Writes a block whose first answer is the fault; gives the outcome and how often the command was sent.
async fn write_after(fault: Fault) -> (Result<(), Error>, Vec<Pdu>) {
    let target = target().start().await;
    let disk = open(&target).await;
    let data = pattern(BLOCK);
    target.inject(fault);
    let outcome = disk
        .write(Lba(3), Bytes::copy_from_slice(&data), false)
        .await;
    if outcome.is_ok() {
        let mut back = vec![0; BLOCK];
        let medium = target.disk(IQN, LUN).expect("it has one");
        medium.read(3 * 512, &mut back).expect("memory can be read");
        assert!(back == data);
    }
    let commands = sent(&target, WRITE_16);
    assert_eq!(target.violations(), Vec::<String>::new());
    (outcome, commands)
}

/// TEST UNIT READY, pages 00h, 83h and 80h, READ CAPACITY(16).
const EXAMINATION_COMMANDS: u32 = 5;

/// Each time the command is a new one: with a tag and a number of its own, and the same CDB and data.
fn check_repeats(commands: &[Pdu]) {
    for pair in commands.windows(2) {
        assert_ne!(pair[0].itt(), pair[1].itt());
        // The examination of a unit that reported a change may stand between.
        let later = pair[1].cmd_sn().wrapping_sub(pair[0].cmd_sn());
        assert!((1..=EXAMINATION_COMMANDS + 1).contains(&later), "{later}");
        assert_eq!(pair[0].cdb(), pair[1].cdb());
        assert_eq!(pair[0].data, pair[1].data);
    }
}

// S1, E5
#[tokio::test]
async fn data_mangled_on_the_way_is_sent_anew_as_a_new_command() {
    let (outcome, commands) = write_after(check(ABORTED_COMMAND, 0x47, 0x05)).await;
    outcome.expect("the second time it went well");
    assert_eq!(commands.len(), 2);
    check_repeats(&commands);
}

// S2
#[tokio::test]
async fn unsolicited_data_that_the_target_did_not_want_is_our_fault_and_handed_up() {
    for ascq in [0x0c, 0x0d] {
        let (outcome, commands) = write_after(check(ABORTED_COMMAND, 0x0c, ascq)).await;
        let error = outcome.expect_err("the same again would fail again");
        let Error::Refused { sense, .. } = &error else {
            panic!("{error}");
        };
        let sense = sense.expect("it came with sense data");
        assert_eq!((sense.asc, sense.ascq), (0x0c, ascq));
        assert_eq!(commands.len(), 1, "0C/{ascq:02X}");
    }
}

// S3, S4
#[tokio::test]
async fn busy_and_task_set_full_are_tried_again() {
    for status in [0x08, 0x28] {
        let (outcome, commands) = write_after(Fault::Status { nth: 1, status }).await;
        outcome.expect("the second time it went well");
        assert_eq!(commands.len(), 2, "{status:#04x}");
        check_repeats(&commands);
    }
}

// S5
#[tokio::test]
async fn reservation_conflict_is_not_tried_again() {
    let (outcome, commands) = write_after(Fault::Status {
        nth: 1,
        status: 0x18,
    })
    .await;
    let error = outcome.expect_err("somebody means it");
    let is_conflict = matches!(
        error,
        Error::Refused { status, .. } if status == Status::RESERVATION_CONFLICT
    );
    assert!(is_conflict, "{error}");
    assert_eq!(commands.len(), 1);
}

// S6
#[tokio::test]
async fn unit_attention_is_taken_once_and_the_command_repeated() {
    for (asc, ascq) in [
        (0x29, 0x00),
        (0x29, 0x07),
        (0x2a, 0x01),
        (0x2a, 0x06),
        (0x3f, 0x03),
        (0x3f, 0x0e),
        (0x38, 0x07),
        (0x7f, 0x7f),
    ] {
        let (outcome, commands) = write_after(check(UNIT_ATTENTION, asc, ascq)).await;
        outcome.unwrap_or_else(|error| panic!("{asc:02x}/{ascq:02x}: {error}"));
        assert_eq!(commands.len(), 2, "{asc:02x}/{ascq:02x}");
        check_repeats(&commands);
    }
}

// S7
#[tokio::test]
async fn becoming_ready_and_transitions_are_waited_for_and_standby_is_not() {
    for ascq in [0x01, 0x0a] {
        let (outcome, commands) = write_after(check(NOT_READY, 0x04, ascq)).await;
        outcome.unwrap_or_else(|error| panic!("04/{ascq:02x}: {error}"));
        assert_eq!(commands.len(), 2, "04/{ascq:02x}");
    }
    // Standby, unavailable; manual intervention required; format in progress would take hours.
    for ascq in [0x0b, 0x0c, 0x03] {
        let (outcome, commands) = write_after(check(NOT_READY, 0x04, ascq)).await;
        outcome.expect_err("waiting does not help");
        assert_eq!(commands.len(), 1, "04/{ascq:02x}");
    }
}

/// What becomes of TEST UNIT READY after this answer.
async fn answered(answer: impl FnOnce(&Pdu) -> Pdu) -> Completion {
    let (mut driver, mut peer) = session().await;
    submit(&mut driver, 0, ready());
    let target = async {
        let command = peer.expect(op::SCSI_COMMAND).await;
        assert_eq!(command.cdb()[0], TEST_UNIT_READY);
        peer.send(answer(&command)).await;
    };
    tokio::join!(completion(&mut driver), target).0
}

fn told(sense: Option<Sense>) -> Option<(SenseKey, u8, u8)> {
    sense.map(|sense| (sense.key, sense.asc, sense.ascq))
}

// S8: SPC-4 4.5.2 and 4.5.3
#[tokio::test]
async fn sense_data_of_either_format_is_understood() {
    let fixed = fixed_sense(0x3, 0x11, 0x04);
    let mut deferred = fixed;
    deferred[0] = 0x71;
    let descriptor = [0x72, 0x03, 0x11, 0x04, 0, 0, 0, 0];
    let mut deferred_descriptor = descriptor;
    deferred_descriptor[0] = 0x73;
    for (sense, is_deferred) in [
        (&fixed[..], false),
        (&deferred, true),
        (&descriptor, false),
        (&deferred_descriptor, true),
        // Some send more than the length within says, some less than 18 bytes.
        (&fixed[..14], false),
    ] {
        let done = answered(|command| Pdu::check_condition(command, sense)).await;
        assert_eq!(done.status, Status::CHECK_CONDITION);
        let understood = told(done.sense);
        assert_eq!(understood, Some((SenseKey::MediumError, 0x11, 0x04)));
        assert_eq!(done.sense.map(|sense| sense.deferred), Some(is_deferred));
    }
}

// S8
#[tokio::test]
async fn sense_data_that_is_short_missing_or_none_is_still_an_error() {
    let fixed = fixed_sense(0x3, 0x11, 0x04);
    let lies: [Vec<u8>; 6] = [
        Vec::new(),
        vec![0],
        vec![0, 0],
        // A length without its bytes, and one beyond them.
        vec![0, 18],
        [&[0xff, 0xff][..], &fixed].concat(),
        [&[0, 3][..], &fixed[..3]].concat(),
    ];
    for data in lies {
        let shown = format!("{data:02x?}");
        let done = answered(|command| Pdu::scsi_response(command, 0x02).with_data(data)).await;
        assert_eq!(done.status, Status::CHECK_CONDITION, "{shown}");
    }
}

// S8
#[tokio::test]
async fn response_of_a_failed_target_is_never_a_success() {
    for response in [0x01, 0x80, 0xff] {
        // The status has no meaning then, whatever it looks like.
        let done = answered(|command| Pdu::scsi_response(command, 0x00).with_byte(2, response));
        assert_ne!(done.await.status, Status::GOOD, "{response:#04x}");
    }
}

// S6, S8: the first answer after a login is a unit attention at most targets
#[tokio::test]
async fn disk_opens_reads_and_writes_behind_a_unit_attention() {
    let target = target().unit_attention(true).start().await;
    let disk = open(&target).await;
    let data = pattern(4 * BLOCK);
    disk.write(Lba(8), Bytes::copy_from_slice(&data), true)
        .await
        .expect("it is written");
    let back = disk.read(Lba(8), Blocks(4)).await.expect("it is read");
    assert!(back[..] == data[..]);
    disk.flush().await.expect("it is flushed");
    assert!(!sent(&target, READ_CAPACITY_16).is_empty());
    assert_eq!(sent(&target, READ_16).len(), 1);
    disk.close().await.expect("the logout is answered");
    assert_eq!(target.violations(), Vec::<String>::new());
}
