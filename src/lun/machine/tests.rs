//! Scripts in invented time: the machine is asked for commands and told their answers.

use bytes::BytesMut;
use iscsi::client::LunInfo;
use iscsi::scsi::mode::ModeParameters;
use iscsi::scsi::{BlockLength, Blocks, Status};
use proptest::prelude::*;

use std::time::Duration;

use super::super::limits::tests::{info, thin};
use super::*;

/// A machine, its clock, and the commands that are out.
struct Bed {
    machine: Machine,
    now: Instant,
    next_token: u64,
}

impl Bed {
    fn of(info: &LunInfo) -> Self {
        Self::with(info, &Losses::default())
    }

    /// A lane of a volume whose lanes share `losses`.
    fn with(info: &LunInfo, losses: &Losses) -> Self {
        let now = Instant::now();
        let machine = Machine::new(Limits::of(info, false), losses.clone(), now);
        Self {
            machine,
            now,
            next_token: 100,
        }
    }

    fn submit(&mut self, offset: u64, operation: Operation) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.machine
            .submit(Request {
                token,
                operation,
                offset,
            })
            .expect("a slot is free");
        token
    }

    fn read(&mut self, offset: u64, len: usize) -> u64 {
        self.submit(offset, Operation::Read(BytesMut::zeroed(len)))
    }

    fn write(&mut self, offset: u64, len: usize, fua: bool) -> u64 {
        let data = Bytes::from(vec![0xA5; len]);
        self.submit(offset, Operation::Write { data, fua })
    }

    fn command(&mut self) -> (u64, Command) {
        self.machine
            .poll_command(self.now)
            .expect("there is a command")
    }

    fn commands(&mut self) -> Vec<(u64, Command)> {
        std::iter::from_fn(|| self.machine.poll_command(self.now)).collect()
    }

    fn answer(&mut self, (token, command): (u64, Command), status: Status, sense: Option<Sense>) {
        let transferred = match &command.data {
            Data::None => 0,
            Data::Out(data) => data.len(),
            Data::In(data) => data.len(),
        };
        let transferred = u32::try_from(transferred).unwrap();
        let answer = Answer {
            token,
            status,
            sense,
            cdb: command.cdb,
            transferred,
            data: command.data,
        };
        self.machine
            .handle_completion(answer, "LUN 1 of a test", self.now);
    }

    fn good(&mut self, command: (u64, Command)) {
        self.answer(command, Status::GOOD, None);
    }

    fn check(&mut self, command: (u64, Command), key: SenseKey, asc: u8, ascq: u8) {
        let sense = Some(Sense::new(key, asc, ascq));
        self.answer(command, Status::CHECK_CONDITION, sense);
    }

    fn ended(&mut self) -> Option<(u64, Result<BytesMut, ErrorKind>)> {
        self.machine
            .poll_completion()
            .map(|done| (done.token, done.result))
    }

    fn ended_with(&mut self, token: u64, kind: ErrorKind) {
        assert_eq!(self.ended(), Some((token, Err(kind))));
    }

    fn ended_well(&mut self, token: u64) {
        assert_eq!(self.ended(), Some((token, Ok(BytesMut::new()))));
    }
}

/// Operation code, LBA, blocks.
fn range(command: &Command) -> (u8, u64, u32) {
    let cdb = command.cdb.0;
    let lba = u64::from_be_bytes(*cdb[2..].first_chunk().unwrap());
    (
        cdb[0],
        lba,
        u32::from_be_bytes(*cdb[10..].first_chunk().unwrap()),
    )
}

fn out(command: &Command) -> &[u8] {
    match &command.data {
        Data::Out(data) => data,
        Data::None | Data::In(_) => panic!("the command sends data"),
    }
}

const READ: u8 = 0x88;
const WRITE: u8 = 0x8A;
const SYNCHRONIZE_CACHE: u8 = 0x91;
const WRITE_SAME: u8 = 0x93;
const UNMAP: u8 = 0x42;
const PRE_FETCH: u8 = 0x90;
/// SERVICE ACTION IN(16).
const GET_LBA_STATUS: u8 = 0x9E;
const FLAG: u8 = 0x08;

#[test]
fn a_read_is_one_command_and_its_buffer_comes_back() {
    let mut bed = Bed::of(&info());
    let buffer = BytesMut::zeroed(4096);
    let place = buffer.as_ptr();
    let token = bed.submit(8192, Operation::Read(buffer));
    let command = bed.command();
    assert_eq!(range(&command.1), (READ, 16, 8));
    assert!(bed.machine.poll_command(bed.now).is_none());
    bed.good(command);
    let (answered, result) = bed.ended().unwrap();
    let buffer = result.unwrap();
    assert_eq!(
        (answered, buffer.len(), buffer.as_ptr()),
        (token, 4096, place)
    );
}

#[test]
fn a_long_read_is_split_and_joined_in_place_whatever_the_order() {
    let mut bed = Bed::of(&thin());
    let buffer = BytesMut::zeroed(160 * 512);
    let place = buffer.as_ptr();
    let token = bed.submit(0, Operation::Read(buffer));
    let mut commands = bed.commands();
    let ranges: Vec<_> = commands.iter().map(|(_, command)| range(command)).collect();
    assert_eq!(ranges, [(READ, 0, 64), (READ, 64, 64), (READ, 128, 32)]);
    for (_, command) in &mut commands {
        let (_, lba, _) = range(command);
        let Data::In(data) = &mut command.data else {
            panic!("a read")
        };
        data.fill(u8::try_from(lba).unwrap());
    }
    for at in [1, 1, 0] {
        assert_eq!(bed.ended(), None);
        let command = commands.remove(at);
        bed.good(command);
    }
    let (answered, result) = bed.ended().unwrap();
    let buffer = result.unwrap();
    assert_eq!(
        (answered, buffer.len(), buffer.as_ptr()),
        (token, 160 * 512, place)
    );
    assert_eq!(
        (buffer[0], buffer[64 * 512], buffer[160 * 512 - 1]),
        (0, 64, 128)
    );
}

#[test]
fn a_long_write_is_split_without_a_copy() {
    let mut bed = Bed::of(&thin());
    let data = Bytes::from((0..=255u8).cycle().take(100 * 512).collect::<Vec<u8>>());
    let token = bed.submit(
        512,
        Operation::Write {
            data: data.clone(),
            fua: false,
        },
    );
    let commands = bed.commands();
    assert_eq!(range(&commands[0].1), (WRITE, 1, 64));
    assert_eq!(range(&commands[1].1), (WRITE, 65, 36));
    assert_eq!(out(&commands[1].1).as_ptr(), data[64 * 512..].as_ptr());
    for command in commands {
        bed.good(command);
    }
    bed.ended_well(token);
}

#[test]
fn what_is_not_whole_or_not_on_the_medium_is_refused() {
    let mut bed = Bed::of(&info());
    for (offset, len, kind) in [
        (1, 512, ErrorKind::Invalid),
        (512, 513, ErrorKind::Invalid),
        (1 << 20, 512, ErrorKind::OutOfRange),
        ((1 << 20) - 512, 1024, ErrorKind::OutOfRange),
        (u64::MAX - 511, 512, ErrorKind::OutOfRange),
    ] {
        let token = bed.read(offset, len);
        bed.ended_with(token, kind);
    }
    let token = bed.read(1 << 20, 0);
    bed.ended_well(token);
    assert!(bed.commands().is_empty());
}

#[test]
fn a_read_only_unit_takes_no_writes() {
    let mut bed = Bed::of(&LunInfo {
        mode: Some(ModeParameters {
            write_protected: true,
            fua_supported: true,
            write_cache: Some(true),
        }),
        ..thin()
    });
    let token = bed.write(0, 512, false);
    bed.ended_with(token, ErrorKind::ReadOnly);
    let token = bed.submit(0, Operation::Trim { len: 512 });
    bed.ended_with(token, ErrorKind::ReadOnly);
    let token = bed.submit(
        0,
        Operation::WriteZeroes {
            len: 512,
            no_hole: false,
            fast: false,
            fua: false,
        },
    );
    bed.ended_with(token, ErrorKind::ReadOnly);
    bed.read(0, 512);
    bed.submit(0, Operation::Flush);
    assert_eq!(bed.commands().len(), 2);
}

#[test]
fn a_failed_piece_ends_the_request_when_nothing_is_out() {
    let mut bed = Bed::of(&thin());
    bed.machine.pace.handle_full(3);
    let token = bed.write(0, 300 * 512, true);
    let commands = bed.commands();
    assert_eq!(commands.len(), 3);
    let mut commands = commands.into_iter();
    bed.check(commands.next().unwrap(), SenseKey::DataProtect, 0x27, 0x07);
    assert!(bed.machine.poll_command(bed.now).is_none());
    bed.good(commands.next().unwrap());
    assert_eq!(bed.ended(), None);
    bed.good(commands.next().unwrap());
    bed.ended_with(token, ErrorKind::NoSpace);
    // Nothing of it is left: the slot serves the next request.
    let token = bed.read(0, 512);
    let command = bed.command();
    assert!(bed.machine.poll_command(bed.now).is_none());
    bed.good(command);
    assert_eq!(bed.ended().unwrap().0, token);
}

#[test]
fn fewer_bytes_than_asked_are_an_error() {
    let mut bed = Bed::of(&info());
    for write in [false, true] {
        let token = if write {
            bed.write(0, 1024, false)
        } else {
            bed.read(0, 1024)
        };
        let (task, command) = bed.command();
        let answer = Answer {
            token: task,
            status: Status::GOOD,
            sense: None,
            cdb: command.cdb,
            transferred: 512,
            data: command.data,
        };
        bed.machine
            .handle_completion(answer, "LUN 1 of a test", bed.now);
        bed.ended_with(token, ErrorKind::Io);
    }
}

/// SAM-5 5.14: the command that a unit attention answers was not done.
#[test]
fn unit_attentions_are_repeated_at_once_and_not_for_ever() {
    let mut bed = Bed::of(&info());
    let token = bed.write(0, 512, false);
    for _ in 0..10 {
        let command = bed.command();
        assert_eq!(out(&command.1), [0xA5; 512]);
        bed.check(command, SenseKey::UnitAttention, 0x29, 0);
    }
    let command = bed.command();
    bed.check(command, SenseKey::UnitAttention, 0x29, 0);
    bed.ended_with(token, ErrorKind::Io);
}

#[test]
fn busy_is_repeated_after_a_pause() {
    let mut bed = Bed::of(&info());
    let token = bed.read(0, 512);
    let command = bed.command();
    bed.answer(command, Status::BUSY, None);
    assert!(bed.machine.poll_command(bed.now).is_none());
    assert_eq!(
        bed.machine.poll_deadline(),
        Some(bed.now + Duration::from_millis(10))
    );
    bed.now += Duration::from_millis(10);
    let command = bed.command();
    bed.answer(command, Status::BUSY, None);
    bed.now += Duration::from_millis(19);
    assert!(bed.machine.poll_command(bed.now).is_none());
    bed.now += Duration::from_millis(1);
    let command = bed.command();
    bed.good(command);
    assert!(
        bed.ended()
            .is_some_and(|(answered, result)| answered == token && result.is_ok())
    );
}

#[test]
fn busy_for_ever_is_an_error() {
    let mut bed = Bed::of(&info());
    let token = bed.read(0, 512);
    let begin = bed.now;
    while bed.machine.done.is_empty() {
        let command = bed.command();
        bed.answer(command, Status::BUSY, None);
        bed.now += Duration::from_millis(1280);
        assert!(bed.now < begin + Duration::from_mins(1));
    }
    bed.ended_with(token, ErrorKind::Io);
}

#[test]
fn task_set_full_lowers_the_depth() {
    let mut bed = Bed::of(&info());
    for _ in 0..17 {
        bed.read(0, 512);
    }
    let mut commands = bed.commands();
    assert_eq!(commands.len(), 17);
    let last = commands.pop().unwrap();
    bed.answer(last, Status::TASK_SET_FULL, None);
    bed.now += Duration::from_millis(10);
    // Sixteen fit, so twelve shall: nothing leaves until five are answered.
    for command in commands.drain(..4) {
        bed.good(command);
        assert!(bed.machine.poll_command(bed.now).is_none());
    }
    bed.good(commands.remove(0));
    assert_eq!(bed.commands().len(), 1);
}

#[test]
fn a_flush_is_the_whole_mediums() {
    let mut bed = Bed::of(&info());
    let token = bed.submit(0, Operation::Flush);
    let command = bed.command();
    assert_eq!(range(&command.1), (SYNCHRONIZE_CACHE, 0, 0));
    assert_eq!(command.1.cdb.0[1], 0);
    bed.good(command);
    bed.ended_well(token);
}

#[test]
fn fua_is_a_bit_where_the_unit_obeys_it() {
    let mut bed = Bed::of(&thin());
    let token = bed.write(0, 65 * 512, true);
    for command in bed.commands() {
        assert_eq!((command.1.cdb.0[0], command.1.cdb.0[1]), (WRITE, FLAG));
        bed.good(command);
    }
    bed.ended_well(token);
}

#[test]
fn fua_is_a_flush_after_all_its_writes_elsewhere() {
    let mut bed = Bed::of(&LunInfo {
        mode: None,
        ..thin()
    });
    let token = bed.write(0, 65 * 512, true);
    let mut commands = bed.commands();
    assert!(commands.iter().all(|(_, command)| command.cdb.0[1] == 0));
    bed.good(commands.pop().unwrap());
    assert!(bed.machine.poll_command(bed.now).is_none());
    bed.good(commands.pop().unwrap());
    assert_eq!(bed.ended(), None);
    let flush = bed.command();
    assert_eq!(range(&flush.1), (SYNCHRONIZE_CACHE, 0, 0));
    bed.check(flush, SenseKey::HardwareError, 0x44, 0);
    bed.ended_with(token, ErrorKind::Io);
}

#[test]
fn a_lost_write_is_told_by_the_next_flush_and_once() {
    let deferred = Sense {
        deferred: true,
        ..Sense::new(SenseKey::MediumError, 0x0C, 0x02)
    };
    let power_on = Sense::new(SenseKey::UnitAttention, 0x29, 0x01);
    for sense in [deferred, power_on] {
        let mut bed = Bed::of(&thin());
        let read = bed.read(0, 512);
        let command = bed.command();
        bed.answer(command, Status::CHECK_CONDITION, Some(sense));
        let command = bed.command();
        bed.good(command);
        assert_eq!(bed.ended().unwrap().0, read);
        let flush = bed.submit(0, Operation::Flush);
        let command = bed.command();
        bed.good(command);
        bed.ended_with(flush, ErrorKind::Io);
        let flush = bed.submit(0, Operation::Flush);
        let command = bed.command();
        bed.good(command);
        bed.ended_well(flush);
    }
}

#[test]
fn a_unit_without_a_cache_need_not_know_flushes() {
    for (write_cache, known) in [(None, false), (Some(false), false), (Some(true), true)] {
        let mode = write_cache.map(|cache| ModeParameters {
            write_protected: false,
            fua_supported: false,
            write_cache: Some(cache),
        });
        let mut bed = Bed::of(&LunInfo { mode, ..info() });
        let token = bed.submit(0, Operation::Flush);
        let command = bed.command();
        bed.check(command, SenseKey::IllegalRequest, 0x20, 0);
        if known {
            bed.ended_with(token, ErrorKind::Unsupported);
        } else {
            bed.ended_well(token);
        }
    }
}

#[test]
fn a_trim_gives_back_whole_groups_within_the_limits() {
    let mut bed = Bed::of(&thin());
    // Groups of 8 that begin at 4: of 0..214 these are 4..212, at most 100 in a command.
    let token = bed.submit(0, Operation::Trim { len: 214 * 512 });
    let commands = bed.commands();
    let lists: Vec<&[u8]> = commands.iter().map(|(_, command)| out(command)).collect();
    for (list, (lba, blocks)) in lists.iter().zip([(4u64, 100u32), (104, 100), (204, 8)]) {
        assert_eq!(list[8..16], lba.to_be_bytes());
        assert_eq!(list[16..20], blocks.to_be_bytes());
    }
    assert_eq!(commands.len(), 3);
    for command in commands {
        assert_eq!(command.1.cdb.0[0], UNMAP);
        bed.good(command);
    }
    bed.ended_well(token);
    let token = bed.submit(0, Operation::Trim { len: 4 * 512 });
    bed.ended_well(token);
}

#[test]
fn a_trim_that_was_not_offered_does_nothing_and_one_that_fails_says_so() {
    let mut bed = Bed::of(&info());
    let token = bed.submit(0, Operation::Trim { len: 4096 });
    bed.ended_well(token);
    let mut bed = Bed::of(&thin());
    let token = bed.submit(0, Operation::Trim { len: 65536 });
    let command = bed.command();
    bed.check(command, SenseKey::IllegalRequest, 0x20, 0);
    bed.ended_with(token, ErrorKind::Unsupported);
}

#[test]
fn zeroes_are_one_block_repeated_where_the_unit_can() {
    for (no_hole, flags) in [(false, FLAG), (true, 0)] {
        let mut bed = Bed::of(&thin());
        let token = bed.submit(
            512,
            Operation::WriteZeroes {
                len: 200 * 512,
                no_hole,
                fast: false,
                fua: true,
            },
        );
        let commands = bed.commands();
        assert_eq!(range(&commands[0].1), (WRITE_SAME, 1, 128));
        assert_eq!(range(&commands[1].1), (WRITE_SAME, 129, 72));
        for command in commands {
            assert_eq!(command.1.cdb.0[1], flags);
            assert_eq!(out(&command.1), [0; 512]);
            bed.good(command);
        }
        let flush = bed.command();
        assert_eq!(range(&flush.1), (SYNCHRONIZE_CACHE, 0, 0));
        bed.good(flush);
        bed.ended_well(token);
    }
}

#[test]
fn zeroes_are_sent_where_write_same_turns_out_not_to_work() {
    let mut bed = Bed::of(&thin());
    let token = bed.submit(
        0,
        Operation::WriteZeroes {
            len: 200 * 512,
            no_hole: false,
            fast: false,
            fua: true,
        },
    );
    let mut commands = bed.commands();
    bed.check(commands.pop().unwrap(), SenseKey::IllegalRequest, 0x24, 0);
    assert!(bed.machine.poll_command(bed.now).is_none());
    bed.good(commands.pop().unwrap());
    let commands = bed.commands();
    let ranges: Vec<_> = commands.iter().map(|(_, command)| range(command)).collect();
    assert_eq!(
        ranges,
        [
            (WRITE, 0, 64),
            (WRITE, 64, 64),
            (WRITE, 128, 64),
            (WRITE, 192, 8)
        ]
    );
    assert!(
        commands
            .iter()
            .all(|(_, command)| out(command).iter().all(|byte| *byte == 0))
    );
    for command in commands {
        bed.good(command);
    }
    let flush = bed.command();
    assert_eq!(range(&flush.1), (SYNCHRONIZE_CACHE, 0, 0));
    bed.good(flush);
    bed.ended_well(token);
    // From now on they are sent at once.
    bed.submit(
        0,
        Operation::WriteZeroes {
            len: 512,
            no_hole: false,
            fast: false,
            fua: false,
        },
    );
    assert_eq!(range(&bed.command().1), (WRITE, 0, 1));
}

// E11
#[test]
fn zeroes_that_must_be_fast_are_unmapped_or_refused() {
    let fast = |no_hole| Operation::WriteZeroes {
        len: 512,
        no_hole,
        fast: true,
        fua: false,
    };
    let mut bed = Bed::of(&thin());
    let token = bed.submit(0, fast(false));
    let command = bed.command();
    assert_eq!((command.1.cdb.0[0], command.1.cdb.0[1]), (WRITE_SAME, 0x08));
    bed.good(command);
    bed.ended_well(token);
    // What keeps its space is written block by block, wherever that is done.
    let token = bed.submit(0, fast(true));
    bed.ended_with(token, ErrorKind::NotFast);
    // It was told that the unit can, and it cannot.
    let token = bed.submit(0, fast(false));
    let command = bed.command();
    bed.check(command, SenseKey::IllegalRequest, 0x20, 0);
    bed.ended_with(token, ErrorKind::NotFast);
    let token = bed.submit(0, fast(false));
    bed.ended_with(token, ErrorKind::NotFast);
    let mut bed = Bed::of(&info());
    let token = bed.submit(0, fast(false));
    bed.ended_with(token, ErrorKind::NotFast);
}

#[test]
fn advice_to_read_ahead_is_passed_on_while_the_unit_knows_it() {
    let mut bed = Bed::of(&thin());
    let token = bed.submit(512, Operation::Cache { len: 65 * 512 });
    let commands = bed.commands();
    let ranges: Vec<_> = commands.iter().map(|(_, command)| range(command)).collect();
    assert_eq!(ranges, [(PRE_FETCH, 1, 64), (PRE_FETCH, 65, 1)]);
    let mut commands = commands.into_iter();
    bed.answer(commands.next().unwrap(), Status::CONDITION_MET, None);
    bed.check(commands.next().unwrap(), SenseKey::MediumError, 0x11, 0);
    bed.ended_well(token);
    let token = bed.submit(0, Operation::Cache { len: 512 });
    let command = bed.command();
    bed.check(command, SenseKey::IllegalRequest, 0x20, 0);
    bed.ended_well(token);
    let token = bed.submit(0, Operation::Cache { len: 512 });
    bed.ended_well(token);
}

/// The extents of an answer: blocks, hole, zero.
fn extents(bed: &mut Bed, token: u64) -> Vec<(u32, bool, bool)> {
    let (ended, result) = bed.ended().expect("it has ended");
    assert_eq!(ended, token);
    crate::block::Extent::unpack(&result.unwrap())
        .map(|extent| (extent.bytes / 512, extent.is_hole, extent.reads_zero))
        .collect()
}

#[test]
fn the_block_status_is_what_the_unit_tells_or_data() {
    let mut provisioned = thin();
    provisioned.capacity.provisioning = true;
    let mut bed = Bed::of(&provisioned);
    let status = |one| Operation::BlockStatus {
        len: 100 * 512,
        one,
    };
    for (one, expected) in [
        (false, vec![(8, false, false), (92, true, true)]),
        (true, vec![(8, false, false)]),
    ] {
        let token = bed.submit(8 * 512, status(one));
        let (task, mut command) = bed.command();
        assert_eq!(range(&command), (GET_LBA_STATUS, 8, 8 + 255 * 16));
        let Data::In(data) = &mut command.data else {
            panic!("a question")
        };
        data[3] = 4 + 32;
        data[15] = 8;
        data[19] = 8;
        data[31] = 16;
        data[34] = 1;
        data[36] = 1;
        bed.good((task, command));
        assert_eq!(extents(&mut bed, token), expected);
    }
    // An answer of nothing, and then no such command: not asked again.
    let token = bed.submit(0, status(false));
    let command = bed.command();
    bed.good(command);
    assert_eq!(extents(&mut bed, token), [(100, false, false)]);
    let token = bed.submit(0, status(false));
    let command = bed.command();
    bed.check(command, SenseKey::IllegalRequest, 0x20, 0);
    assert_eq!(extents(&mut bed, token), [(100, false, false)]);
    let token = bed.submit(0, status(false));
    assert_eq!(extents(&mut bed, token), [(100, false, false)]);
    // A unit that is not thin is never asked.
    let mut bed = Bed::of(&info());
    let token = bed.submit(0, status(false));
    assert_eq!(extents(&mut bed, token), [(100, false, false)]);
}

#[test]
fn what_will_not_be_answered_fails_once_and_later_requests_go_on() {
    let mut bed = Bed::of(&thin());
    let out = bed.read(0, 512);
    let both = bed.write(0, 65 * 512, false);
    for (task, _) in bed.commands() {
        bed.machine.handle_failed(task);
    }
    let mut ended: Vec<u64> = std::iter::from_fn(|| bed.machine.poll_completion())
        .map(|done| {
            assert_eq!(done.result, Err(ErrorKind::Io));
            done.token
        })
        .collect();
    ended.sort_unstable();
    assert_eq!(ended, [out, both]);
    assert_eq!(bed.machine.free_slots(), REQUESTS_MAX);
    let later = bed.write(0, 512, false);
    let command = bed.command();
    bed.good(command);
    bed.ended_well(later);
}

#[test]
fn power_that_was_lost_meanwhile_is_told_by_the_next_flush() {
    let mut bed = Bed::of(&thin());
    bed.machine.handle_power_lost();
    let flush = bed.submit(0, Operation::Flush);
    let command = bed.command();
    bed.good(command);
    bed.ended_with(flush, ErrorKind::Io);
}

#[test]
fn what_one_lane_lost_fails_the_next_flush_of_each_lane_once() {
    let deferred = Sense {
        deferred: true,
        ..Sense::new(SenseKey::MediumError, 0x0C, 0x02)
    };
    let volume = Losses::default();
    let mut lanes = [Bed::with(&thin(), &volume), Bed::with(&thin(), &volume)];
    let mut other_volume = Bed::of(&thin());
    let read = lanes[0].read(0, 512);
    let command = lanes[0].command();
    lanes[0].answer(command, Status::CHECK_CONDITION, Some(deferred));
    let command = lanes[0].command();
    lanes[0].good(command);
    assert_eq!(lanes[0].ended().unwrap().0, read);
    // Opened afterwards, with nothing written before: there is nothing to tell.
    let mut late = Bed::with(&thin(), &volume);
    for lane in &mut lanes {
        for told in [false, true] {
            let flush = lane.submit(0, Operation::Flush);
            let command = lane.command();
            lane.good(command);
            if told {
                lane.ended_well(flush);
            } else {
                lane.ended_with(flush, ErrorKind::Io);
            }
        }
    }
    for unconcerned in [&mut late, &mut other_volume] {
        let flush = unconcerned.submit(0, Operation::Flush);
        let command = unconcerned.command();
        unconcerned.good(command);
        unconcerned.ended_well(flush);
    }
}

#[test]
fn a_full_table_gives_requests_back() {
    let mut bed = Bed::of(&info());
    for _ in 0..REQUESTS_MAX {
        bed.read(0, 512);
    }
    assert_eq!(bed.machine.free_slots(), 0);
    let request = Request {
        token: 7,
        operation: Operation::Flush,
        offset: 0,
    };
    assert_eq!(
        bed.machine.submit(request).map_err(|back| back.token),
        Err(7)
    );
}

#[test]
fn an_unsent_command_stays_to_be_sent() {
    let mut bed = Bed::of(&info());
    let token = bed.write(0, 512, false);
    let (task, command) = bed.command();
    bed.machine.handle_unsent(task, command, bed.now);
    let command = bed.command();
    assert_eq!(out(&command.1), [0xA5; 512]);
    bed.good(command);
    bed.ended_well(token);
}

/// A unit in memory that does what commands say.
struct Medium(Vec<u8>);

impl Medium {
    fn carry_out(&mut self, command: &mut Command) {
        let (operation, lba, blocks) = range(command);
        let from = usize::try_from(lba).unwrap() * 512;
        let bytes = usize::try_from(blocks).unwrap() * 512;
        match (operation, &mut command.data) {
            (READ, Data::In(data)) => data.copy_from_slice(&self.0[from..from + bytes]),
            (WRITE, Data::Out(data)) => self.0[from..from + bytes].copy_from_slice(data),
            (WRITE_SAME, Data::Out(data)) => {
                self.0[from..from + bytes]
                    .chunks_mut(512)
                    .for_each(|c| c.copy_from_slice(data));
            }
            (SYNCHRONIZE_CACHE, Data::None) | (UNMAP, Data::Out(_)) => {}
            other => panic!("no such command: {other:?}"),
        }
    }
}

#[derive(Clone, Debug)]
struct Step {
    kind: u8,
    block: u64,
    blocks: u32,
    fua: bool,
    fate: Vec<u8>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fate = proptest::collection::vec(any::<u8>(), 8);
    let step = (0u8..5, 0u64..2048, 1u32..400, any::<bool>(), fate).prop_map(
        |(kind, block, blocks, fua, fate)| {
            let blocks = blocks.min(u32::try_from(2048 - block).unwrap());
            Step {
                kind,
                block,
                blocks,
                fua,
                fate,
            }
        },
    );
    proptest::collection::vec(step, 1..40)
}

proptest! {
    /// Whatever the order and the passing faults of answers, one request after another leaves what it says.
    #[test]
    fn content_is_what_the_requests_say(steps in steps(), plain: bool) {
        let info = if plain { info() } else { thin() };
        let mut bed = Bed::of(&info);
        let mut medium = Medium(vec![0x11; 1 << 20]);
        let mut expected = medium.0.clone();
        for (number, step) in steps.iter().enumerate() {
            let offset = step.block * 512;
            let from = usize::try_from(offset).unwrap();
            let to = from + usize::try_from(step.blocks).unwrap() * 512;
            let (len, fua) = (step.blocks * 512, step.fua);
            let mark = u8::try_from(number).unwrap();
            let token = match step.kind {
                0 => bed.read(offset, to - from),
                1 => {
                    expected[from..to].fill(mark);
                    let data = Bytes::from(vec![mark; to - from]);
                    bed.submit(offset, Operation::Write { data, fua })
                }
                2 => {
                    expected[from..to].fill(0);
                    bed.submit(offset, Operation::WriteZeroes { len, no_hole: fua, fast: false, fua })
                }
                3 => bed.submit(offset, Operation::Trim { len }),
                _ => bed.submit(0, Operation::Flush),
            };
            let mut fates = step.fate.iter().cycle();
            let mut out = bed.commands();
            let mut faults = 0;
            while !out.is_empty() {
                let fate = *fates.next().unwrap();
                let (task, mut command) = out.swap_remove(usize::from(fate) % out.len());
                faults += 1;
                match fate % 6 {
                    0 if faults < 4 => bed.check((task, command), SenseKey::UnitAttention, 0x2A, 1),
                    1 if faults < 4 => bed.answer((task, command), Status::BUSY, None),
                    2 if faults < 4 => bed.answer((task, command), Status::TASK_SET_FULL, None),
                    3 if faults < 4 => bed.check((task, command), SenseKey::AbortedCommand, 0x47, 5),
                    _ => {
                        medium.carry_out(&mut command);
                        bed.good((task, command));
                    }
                }
                bed.now += Duration::from_millis(200);
                out.extend(bed.commands());
            }
            let (answered, result) = bed.ended().expect("it ended");
            prop_assert_eq!(answered, token);
            let data = result.expect("it ended well");
            if step.kind == 0 {
                prop_assert_eq!(&data[..], &expected[from..to]);
            }
            prop_assert!(bed.ended().is_none());
            prop_assert_eq!(bed.machine.free_slots(), REQUESTS_MAX);
            prop_assert_eq!(bed.machine.tasks_free.len(), DEPTH_MAX);
        }
        prop_assert!(medium.0 == expected);
    }
}

#[test]
fn a_block_of_zeroes_is_there_for_the_largest_blocks() {
    let mut info = thin();
    info.capacity.block_length = BlockLength::new(65536).unwrap();
    info.limits.transfer_max = None;
    let mut bed = Bed::of(&info);
    assert_eq!(bed.machine.limits.zeroes_max, Blocks(4));
    bed.submit(
        0,
        Operation::WriteZeroes {
            len: 1 << 20,
            no_hole: false,
            fast: false,
            fua: false,
        },
    );
    assert_eq!(out(&bed.command().1).len(), 65536);
}
