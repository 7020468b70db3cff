//! Scripts for the transmission phase: each request, each refusal, and streams cut at every byte.

use proptest::prelude::*;

use super::*;

const SIZE: u64 = 1 << 20;
const SIMPLE: Agreed = Agreed {
    structured_replies: false,
    base_allocation: false,
};
const ALL: Agreed = Agreed {
    structured_replies: true,
    base_allocation: true,
};

fn geometry() -> Geometry {
    Geometry {
        size_bytes: SIZE,
        block_bytes: 512,
        physical_block_bytes: 512,
        preferred_bytes: 4096,
        request_bytes_max: 64 << 10,
        read_only: false,
        write_cache: true,
        can_trim: true,
        can_write_zeroes: true,
        rotational: false,
    }
}

fn request(command: u16, flags: u16, offset: u64, length: u32) -> Request {
    Request {
        flags,
        command,
        cookie: 0xc0_0c1e,
        offset,
        length,
    }
}

fn errno(reply: &Reply) -> u32 {
    let [head, _] = reply.parts();
    assert_eq!(head[..4], [0x67, 0x44, 0x66, 0x98]);
    assert_eq!(head[8..], 0xc0_0c1e_u64.to_be_bytes());
    u32::from_be_bytes(head[4..8].try_into().unwrap())
}

fn bytes(length: u32) -> BytesMut {
    BytesMut::zeroed(usize::try_from(length).unwrap())
}

/// The step after one request, which must use the whole header up.
fn step(machine: &mut Transmission, request: Request) -> Step {
    let (used, step) = machine.handle_input(&request.emit()).unwrap();
    assert_eq!(used, REQUEST_BYTES);
    step
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "called on what was just made"
)]
fn submitted(step: Step) -> Accepted {
    let Step::Submit(accepted) = step else {
        panic!("{step:?} is no submission")
    };
    accepted
}

#[track_caller]
fn refused(machine: &mut Transmission, request: Request, expected: u32) {
    let Step::Reply(reply) = step(machine, request) else {
        panic!("{request:?} was not refused")
    };
    assert_eq!(errno(&reply), expected, "{request:?}");
    assert_eq!(machine.in_flight(), 0);
}

#[track_caller]
fn replied(next: Next, expected: u32) {
    let Next::Reply(reply) = next else {
        panic!("{next:?} is no reply")
    };
    assert_eq!(errno(&reply), expected);
}

#[test]
fn commands_arrive_with_their_flags() {
    use command_flag::{FUA, NO_HOLE};
    let mut machine = Transmission::new(&geometry(), SIMPLE);
    let table = [
        (
            request(command::READ, 0, 512, 1024),
            Command::Read {
                offset: 512,
                len: 1024,
            },
        ),
        (
            request(command::READ, FUA, 0, 512),
            Command::Read {
                offset: 0,
                len: 512,
            },
        ),
        (request(command::FLUSH, FUA, 0, 0), Command::Flush),
        (
            request(command::TRIM, 0, 512, 1 << 19),
            Command::Trim {
                offset: 512,
                len: 1 << 19,
            },
        ),
        (
            request(command::WRITE_ZEROES, FUA | NO_HOLE, 0, 1 << 20),
            Command::WriteZeroes {
                offset: 0,
                len: 1 << 20,
                no_hole: true,
                fast: false,
                fua: true,
            },
        ),
        (
            request(command::WRITE_ZEROES, 0, 0, 512),
            Command::WriteZeroes {
                offset: 0,
                len: 512,
                no_hole: false,
                fast: false,
                fua: false,
            },
        ),
    ];
    for (request, expected) in table {
        assert_eq!(submitted(step(&mut machine, request)).command, expected);
    }
    assert_eq!(machine.in_flight(), 6);
}

#[test]
fn a_write_waits_for_its_payload() {
    let mut machine = Transmission::new(&geometry(), SIMPLE);
    let Step::Payload(due) = step(&mut machine, request(command::WRITE, 1, 4096, 1024)) else {
        panic!("a write without payload");
    };
    assert_eq!(
        due.command,
        Command::Write {
            offset: 4096,
            len: 1024,
            fua: true
        }
    );
    assert_eq!(machine.handle_payload(), due);
    replied(machine.handle_completion(due.token, Ok(bytes(0))), 0);
    assert_eq!(machine.in_flight(), 0);
}

/// proto.md: Error values, and the sections of the commands.
#[test]
fn illegal_requests_are_refused_with_the_protocols_errors() {
    let mut machine = Transmission::new(&geometry(), SIMPLE);
    let table = [
        // Unknown commands, among them BLOCK_STATUS, which was not agreed on.
        (request(7, 0, 0, 512), 22),
        (request(999, 0, 0, 512), 22),
        // Flags that are unknown or belong to another command.
        (request(command::READ, 1 << 2, 0, 512), 22),
        (request(command::READ, 2, 0, 512), 22),
        (request(command::TRIM, 2, 0, 512), 22),
        (request(command::FLUSH, 0x8000, 0, 0), 22),
        (request(command::WRITE_ZEROES, 1 << 3, 0, 512), 22),
        (request(command::CACHE, 1 << 1, 0, 512), 22),
        // Past the end: EINVAL for what reads or forgets, ENOSPC for what would land there.
        (request(command::READ, 0, SIZE, 512), 22),
        (request(command::READ, 0, SIZE - 512, 1024), 22),
        (request(command::READ, 0, u64::MAX - 511, 512), 22),
        (request(command::TRIM, 0, SIZE, 512), 22),
        (request(command::CACHE, 0, SIZE, 512), 22),
        (request(command::WRITE_ZEROES, 0, SIZE, 512), 28),
        (request(command::WRITE_ZEROES, 0, u64::MAX - 511, 512), 28),
        // Off the block.
        (request(command::READ, 0, 1, 512), 22),
        (request(command::READ, 0, 0, 513), 22),
        (request(command::TRIM, 0, 256, 512), 22),
        (request(command::WRITE_ZEROES, 0, 0, 256), 22),
        // Too large for one request.
        (request(command::READ, 0, 0, (64 << 10) + 512), 22),
        // A flush of a range.
        (request(command::FLUSH, 0, 512, 0), 22),
        (request(command::FLUSH, 0, 0, 512), 22),
    ];
    for (request, expected) in table {
        refused(&mut machine, request, expected);
    }
}

#[test]
fn a_refused_write_is_skipped_to_its_last_byte() {
    let cases = [
        (request(command::WRITE, 0, SIZE, 512), 28),
        (request(command::WRITE, 0, SIZE - 512, 1024), 28),
        (request(command::WRITE, 0, 1, 512), 22),
        (request(command::WRITE, 2, 0, 512), 22),
        (request(command::WRITE, 0, 0, (64 << 10) + 512), 22),
    ];
    for (write, expected) in cases {
        let mut machine = Transmission::new(&geometry(), SIMPLE);
        assert_eq!(
            step(&mut machine, write),
            Step::NeedInput,
            "the payload comes first"
        );
        let mut left = usize::try_from(write.length).unwrap();
        while left > 300 {
            assert_eq!(
                machine.handle_input(&[0x25; 300]),
                Ok((300, Step::NeedInput))
            );
            left -= 300;
        }
        // The rest of the payload and the next request in one piece.
        let read = request(command::READ, 0, 0, 512);
        let tail = [&vec![0x25; left][..], &read.emit()].concat();
        let (used, refusal) = machine.handle_input(&tail).unwrap();
        assert_eq!(used, left);
        let Step::Reply(reply) = refusal else {
            panic!("{write:?} was not refused")
        };
        assert_eq!(errno(&reply), expected, "{write:?}");
        submitted(step(&mut machine, read));
    }
}

#[test]
fn a_write_beyond_reason_and_a_wrong_magic_close_the_connection() {
    let mut machine = Transmission::new(&geometry(), SIMPLE);
    let length = SKIP_BYTES_MAX + 1;
    assert_eq!(
        machine.handle_input(&request(command::WRITE, 0, 0, length).emit()),
        Err(Violation::WriteTooLarge(length))
    );
    assert!(matches!(
        machine.handle_input(&[0; 28]),
        Err(Violation::Magic(_))
    ));
}

#[test]
fn a_device_that_grows_takes_requests_up_to_its_new_end_and_never_shrinks() {
    let old = geometry().size_bytes;
    let mut machine = Transmission::new(&geometry(), SIMPLE);
    refused(&mut machine, request(command::READ, 0, old, 512), 22);
    machine.grow(old + 512);
    refused(&mut machine, request(command::READ, 0, old, 1024), 22);
    submitted(step(&mut machine, request(command::READ, 0, old, 512)));
    machine.grow(512);
    submitted(step(&mut machine, request(command::READ, 0, old, 512)));
}

#[test]
fn a_read_only_device_refuses_what_writes() {
    let mut machine = Transmission::new(
        &Geometry {
            read_only: true,
            ..geometry()
        },
        SIMPLE,
    );
    refused(&mut machine, request(command::TRIM, 0, 0, 512), 1);
    refused(&mut machine, request(command::WRITE_ZEROES, 0, 0, 512), 1);
    assert_eq!(
        step(&mut machine, request(command::WRITE, 0, 0, 512)),
        Step::NeedInput
    );
    let (used, refusal) = machine.handle_input(&[0; 512]).unwrap();
    let Step::Reply(reply) = refusal else {
        panic!("a write was not refused")
    };
    assert_eq!((used, errno(&reply)), (512, 1));
    submitted(step(&mut machine, request(command::READ, 0, 0, 512)));
}

#[test]
fn requests_of_no_length_are_done_at_once() {
    let mut machine = Transmission::new(&geometry(), SIMPLE);
    for command in [
        command::READ,
        command::WRITE,
        command::TRIM,
        command::WRITE_ZEROES,
        command::CACHE,
    ] {
        refused(&mut machine, request(command, 0, 512, 0), 0);
    }
}

#[test]
fn failures_of_the_backend_become_errnos() {
    let mut machine = Transmission::new(&geometry(), SIMPLE);
    for (kind, expected) in [
        (ErrorKind::Io, 5),
        (ErrorKind::NoSpace, 28),
        (ErrorKind::Shutdown, 108),
    ] {
        let accepted = submitted(step(&mut machine, request(command::READ, 0, 0, 512)));
        replied(
            machine.handle_completion(accepted.token, Err(kind)),
            expected,
        );
    }
    // A read that is too short fails: its data must not shift the stream.
    let accepted = submitted(step(&mut machine, request(command::READ, 0, 0, 1024)));
    replied(machine.handle_completion(accepted.token, Ok(bytes(512))), 5);
    assert_eq!(machine.in_flight(), 0);
    assert_eq!(machine.in_flight_bytes, 0);
}

#[test]
fn zeroes_the_backend_cannot_make_are_written_part_by_part() {
    let geometry = Geometry {
        can_write_zeroes: false,
        ..geometry()
    };
    let mut machine = Transmission::new(&geometry, SIMPLE);
    let len = 2 * ZERO_FILL_BYTES + 512;
    let first = submitted(step(
        &mut machine,
        request(command::WRITE_ZEROES, 1, 512, len),
    ));
    let fill = |offset, len| Command::ZeroFill {
        offset,
        len,
        fua: true,
    };
    assert_eq!(first.command, fill(512, ZERO_FILL_BYTES));
    let second = machine.handle_completion(first.token, Ok(bytes(0)));
    let at = 512 + u64::from(ZERO_FILL_BYTES);
    let token = first.token;
    assert_eq!(
        second,
        Next::Submit(Accepted {
            token,
            command: fill(at, ZERO_FILL_BYTES)
        })
    );
    let third = machine.handle_completion(first.token, Ok(bytes(0)));
    let at = at + u64::from(ZERO_FILL_BYTES);
    assert_eq!(
        third,
        Next::Submit(Accepted {
            token,
            command: fill(at, 512)
        })
    );
    replied(machine.handle_completion(first.token, Ok(bytes(0))), 0);

    // A failure ends it at once.
    let first = submitted(step(
        &mut machine,
        request(command::WRITE_ZEROES, 0, 0, len),
    ));
    replied(
        machine.handle_completion(first.token, Err(ErrorKind::Io)),
        5,
    );
    assert_eq!(machine.in_flight(), 0);
}

#[test]
fn a_trim_that_was_never_offered_is_done() {
    let mut machine = Transmission::new(
        &Geometry {
            can_trim: false,
            ..geometry()
        },
        SIMPLE,
    );
    refused(&mut machine, request(command::TRIM, 0, 0, 512), 0);
}

#[test]
fn a_trim_with_fua_is_followed_by_a_flush() {
    let mut machine = Transmission::new(&geometry(), SIMPLE);
    let trim = submitted(step(&mut machine, request(command::TRIM, 1, 0, 512)));
    let next = machine.handle_completion(trim.token, Ok(bytes(0)));
    assert_eq!(
        next,
        Next::Submit(Accepted {
            token: trim.token,
            command: Command::Flush
        })
    );
    replied(machine.handle_completion(trim.token, Ok(bytes(0))), 0);
}

#[test]
fn without_a_volatile_cache_a_flush_is_done_at_once() {
    let mut machine = Transmission::new(
        &Geometry {
            write_cache: false,
            ..geometry()
        },
        SIMPLE,
    );
    refused(&mut machine, request(command::FLUSH, 0, 0, 0), 0);
    submitted(step(&mut machine, request(command::TRIM, 1, 0, 512)));
}

#[test]
fn the_count_of_requests_is_limited() {
    let mut machine = Transmission::new(&geometry(), SIMPLE);
    let mut tokens = Vec::new();
    for _ in 0..REQUESTS_MAX {
        tokens.push(submitted(step(&mut machine, request(command::FLUSH, 0, 0, 0))).token);
    }
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), REQUESTS_MAX, "each has a number of its own");
    let flush = request(command::FLUSH, 0, 0, 0).emit();
    assert_eq!(machine.handle_input(&flush), Ok((0, Step::Full)));
    replied(machine.handle_completion(tokens[5], Ok(bytes(0))), 0);
    submitted(machine.handle_input(&flush).unwrap().1);
}

#[test]
fn the_bytes_under_way_are_limited_until_they_are_sent() {
    let geometry = Geometry {
        size_bytes: 1 << 40,
        request_bytes_max: PAYLOAD_BYTES_MAX,
        ..geometry()
    };
    let mut machine = Transmission::new(&geometry, SIMPLE);
    let half = PAYLOAD_BYTES_MAX / 2;
    let first = submitted(step(&mut machine, request(command::READ, 0, 0, half)));
    submitted(step(&mut machine, request(command::READ, 0, 0, half)));
    let small = request(command::READ, 0, 0, 512).emit();
    assert_eq!(machine.handle_input(&small), Ok((0, Step::Full)));
    // What has no data is not held up.
    submitted(step(&mut machine, request(command::FLUSH, 0, 0, 0)));
    replied(machine.handle_completion(first.token, Ok(bytes(half))), 0);
    assert_eq!(
        machine.handle_input(&small),
        Ok((0, Step::Full)),
        "not sent yet"
    );
    machine.handle_sent(usize::try_from(half).unwrap());
    submitted(machine.handle_input(&small).unwrap().1);
}

#[test]
fn disc_ends_and_nothing_after_it_counts() {
    let mut machine = Transmission::new(&geometry(), SIMPLE);
    let read = submitted(step(&mut machine, request(command::READ, 0, 0, 512)));
    assert_eq!(
        step(&mut machine, request(command::DISC, 0, 0, 0)),
        Step::Disconnect
    );
    assert_eq!(machine.handle_input(&[1, 2, 3]), Ok((3, Step::Disconnect)));
    replied(machine.handle_completion(read.token, Ok(bytes(512))), 0);
}

#[test]
fn after_stop_requests_are_told_of_the_shutdown() {
    let mut machine = Transmission::new(&geometry(), SIMPLE);
    let read = submitted(step(&mut machine, request(command::READ, 0, 0, 512)));
    machine.stop();
    let Step::Reply(reply) = step(&mut machine, request(command::READ, 0, 0, 512)) else {
        panic!("taken after the stop");
    };
    assert_eq!(errno(&reply), 108);
    replied(machine.handle_completion(read.token, Ok(bytes(512))), 0);
}

#[test]
fn an_abandoned_payload_leaves_nothing_behind() {
    let mut machine = Transmission::new(&geometry(), SIMPLE);
    step(&mut machine, request(command::WRITE, 0, 0, 1024));
    machine.abandon_payload();
    assert_eq!((machine.in_flight(), machine.in_flight_bytes), (0, 0));
}

#[test]
fn zeroes_that_must_be_fast_are_made_by_the_backend_or_not_at_all() {
    let fast = request(command::WRITE_ZEROES, command_flag::FAST_ZERO, 0, 512);
    let mut machine = Transmission::new(&geometry(), SIMPLE);
    let zeroes = submitted(step(&mut machine, fast));
    let Command::WriteZeroes { fast: true, .. } = zeroes.command else {
        panic!("{zeroes:?}")
    };
    let slow = Err(ErrorKind::NotFast);
    replied(machine.handle_completion(zeroes.token, slow), 95);
    let geometry = Geometry {
        can_write_zeroes: false,
        ..geometry()
    };
    let mut machine = Transmission::new(&geometry, SIMPLE);
    refused(&mut machine, fast, 95);
}

#[test]
fn advice_and_status_arrive_with_their_ranges() {
    let mut machine = Transmission::new(&geometry(), ALL);
    let cache = submitted(step(&mut machine, request(command::CACHE, 0, 512, 1 << 19)));
    assert_eq!(
        cache.command,
        Command::Cache {
            offset: 512,
            len: 1 << 19
        }
    );
    replied(machine.handle_completion(cache.token, Ok(bytes(0))), 0);
    for (flags, one) in [(0, false), (command_flag::REQ_ONE, true)] {
        let status = request(command::BLOCK_STATUS, flags, 512, 1024);
        let status = submitted(step(&mut machine, status));
        assert_eq!(
            status.command,
            Command::BlockStatus {
                offset: 512,
                len: 1024,
                one
            }
        );
    }
}

/// What follows the header of the only chunk, whose type must be this one.
#[track_caller]
fn chunk_of(next: Next, kind: u16) -> Vec<u8> {
    let Next::Reply(reply) = next else {
        panic!("{next:?} is no reply")
    };
    chunk_in(&reply, kind)
}

#[track_caller]
fn chunk_in(reply: &Reply, kind: u16) -> Vec<u8> {
    let bytes = reply.parts().concat();
    let (header, payload) = bytes.split_at(20);
    let length = u32::try_from(payload.len()).unwrap();
    let cookie = 0xc0_0c1e_u64;
    let expected = [
        &[0x66, 0x8e, 0x33, 0xef, 0, 1][..],
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &length.to_be_bytes(),
    ];
    assert_eq!(header, expected.concat());
    payload.to_vec()
}

/// proto.md: Structured replies. Data, errors and extents are chunks; what has none of them is answered simply.
#[test]
fn structured_replies_are_chunks() {
    let mut machine = Transmission::new(&geometry(), ALL);
    let read = request(command::READ, command_flag::DF, 1024, 512);
    let token = submitted(step(&mut machine, read)).token;
    let data = chunk_of(machine.handle_completion(token, Ok(bytes(512))), 1);
    assert_eq!(data[..8], 1024_u64.to_be_bytes());
    assert_eq!(data.len(), 8 + 512);
    machine.handle_sent(512);
    let token = submitted(step(&mut machine, read)).token;
    let error = chunk_of(machine.handle_completion(token, Err(ErrorKind::Io)), 0x8002);
    let told = [
        &5_u32.to_be_bytes()[..],
        &18_u16.to_be_bytes(),
        b"input/output error",
        &1024_u64.to_be_bytes(),
    ];
    assert_eq!(error, told.concat());

    let Step::Reply(reply) = step(&mut machine, request(command::READ, 0, 0, 0)) else {
        panic!("a read of nothing")
    };
    assert_eq!(chunk_in(&reply, 0), b"");
    let Step::Reply(reply) = step(&mut machine, request(command::TRIM, 0, SIZE, 512)) else {
        panic!("a trim past the end")
    };
    let told = [
        &22_u32.to_be_bytes()[..],
        &26_u16.to_be_bytes(),
        b"past the end of the export",
    ];
    assert_eq!(chunk_in(&reply, 0x8001), told.concat());

    let flush = submitted(step(&mut machine, request(command::FLUSH, 0, 0, 0))).token;
    replied(machine.handle_completion(flush, Ok(bytes(0))), 0);
    let flush = submitted(step(&mut machine, request(command::FLUSH, 0, 0, 0))).token;
    let error = chunk_of(machine.handle_completion(flush, Err(ErrorKind::Io)), 0x8001);
    assert_eq!(error[..4], 5_u32.to_be_bytes());
    assert_eq!((machine.in_flight(), machine.in_flight_bytes), (0, 0));
}

#[test]
fn extents_are_sent_if_they_keep_the_promise() {
    let mut machine = Transmission::new(&geometry(), ALL);
    let status = request(command::BLOCK_STATUS, 0, 1024, 2048);
    let token = submitted(step(&mut machine, status)).token;
    let told = extents(&[(512, false, false), (1024, true, true)]);
    let payload = chunk_of(machine.handle_completion(token, Ok(told)), 5);
    assert_eq!(
        payload,
        [0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 3]
    );
    for broken in [
        bytes(0),
        bytes(7),
        bytes(8),
        extents(&[(100, true, true)]),
        extents(&[(1024, true, true), (1536, false, false)]),
    ] {
        let token = submitted(step(&mut machine, status)).token;
        let error = chunk_of(machine.handle_completion(token, Ok(broken)), 0x8001);
        assert_eq!(error[..4], 5_u32.to_be_bytes());
    }
    assert_eq!(machine.in_flight(), 0);
}

#[test]
fn what_was_not_agreed_on_is_not_known() {
    let status = request(command::BLOCK_STATUS, 0, 0, 512);
    let no_length = request(command::BLOCK_STATUS, 0, 0, 0);
    let only_structured = Agreed {
        structured_replies: true,
        ..SIMPLE
    };
    for (agreed, request) in [(only_structured, status), (ALL, no_length)] {
        let mut machine = Transmission::new(&geometry(), agreed);
        let Step::Reply(reply) = step(&mut machine, request) else {
            panic!("{request:?} was not refused")
        };
        assert_eq!(chunk_in(&reply, 0x8001)[..4], 22_u32.to_be_bytes());
    }
    let mut machine = Transmission::new(&geometry(), SIMPLE);
    refused(&mut machine, status, 22);
    refused(
        &mut machine,
        request(command::READ, command_flag::DF, 0, 512),
        22,
    );
}

/// What a stream of requests led to: commands with their payload, and replies.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Command(Command, Vec<u8>),
    Reply(Vec<u8>),
    Disconnect,
    Violation(Violation),
}

/// Ends a command as a good backend does, and sends the reply.
fn complete(machine: &mut Transmission, accepted: Accepted) -> Vec<u8> {
    let data = match accepted.command {
        Command::Read { len, .. } => bytes(len),
        Command::BlockStatus { len, .. } => extents(&[(len, true, true)]),
        Command::Write { .. }
        | Command::ZeroFill { .. }
        | Command::Flush
        | Command::Trim { .. }
        | Command::WriteZeroes { .. }
        | Command::Cache { .. } => bytes(0),
    };
    match machine.handle_completion(accepted.token, Ok(data)) {
        Next::Submit(next) => complete(machine, next),
        Next::Reply(reply) => {
            let sent = reply.parts().concat();
            if let Some(data) = reply.into_read_data() {
                machine.handle_sent(data.len());
            }
            sent
        }
    }
}

fn extents(told: &[(u32, bool, bool)]) -> BytesMut {
    let mut packed = BytesMut::new();
    for &(bytes, is_hole, reads_zero) in told {
        Extent {
            bytes,
            is_hole,
            reads_zero,
        }
        .pack(&mut packed);
    }
    packed
}

/// Drives the machine as a lane does, over a stream cut into pieces; every command completes at once.
fn drive(stream: &[u8], pieces: &[usize], agreed: Agreed) -> Vec<Event> {
    let mut machine = Transmission::new(&geometry(), agreed);
    let mut events = Vec::new();
    let (mut given, mut used) = (0, 0);
    let mut pieces = pieces.iter().cycle();
    let mut due: Option<(Accepted, Vec<u8>, usize)> = None;
    loop {
        if let Some((accepted, mut payload, length)) = due.take() {
            let take = (length - payload.len()).min(given - used);
            payload.extend_from_slice(&stream[used..used + take]);
            used += take;
            if payload.len() == length {
                assert_eq!(machine.handle_payload(), accepted);
                events.push(Event::Command(accepted.command, payload));
                machine.handle_completion(accepted.token, Ok(bytes(0)));
                continue;
            }
            due = Some((accepted, payload, length));
        } else {
            match machine.handle_input(&stream[used..given]) {
                Err(violation) => {
                    events.push(Event::Violation(violation));
                    return events;
                }
                Ok((taken, step)) => {
                    used += taken;
                    match step {
                        Step::NeedInput => {}
                        Step::Full => panic!("full with nothing under way"),
                        Step::Submit(accepted) => {
                            events.push(Event::Command(accepted.command, Vec::new()));
                            let reply = complete(&mut machine, accepted);
                            events.push(Event::Reply(reply));
                            continue;
                        }
                        Step::Payload(accepted) => {
                            let Command::Write { len, .. } = accepted.command else {
                                panic!()
                            };
                            due = Some((accepted, Vec::new(), usize::try_from(len).unwrap()));
                            continue;
                        }
                        Step::Reply(reply) => {
                            events.push(Event::Reply(reply.parts().concat()));
                            continue;
                        }
                        Step::Disconnect => {
                            events.push(Event::Disconnect);
                            return events;
                        }
                    }
                }
            }
        }
        if given == stream.len() {
            return events;
        }
        given = (given + pieces.next().unwrap()).min(stream.len());
    }
}

fn any_request() -> impl Strategy<Value = (Request, Vec<u8>)> {
    let offset = prop_oneof![
        (0_u64..40).prop_map(|n| n * 512),
        any::<u64>(),
        Just(SIZE),
        0..SIZE
    ];
    let length = prop_oneof![(0_u32..4).prop_map(|n| n * 512), 0_u32..3000];
    (0_u16..9, 0_u16..32, any::<u64>(), offset, length).prop_map(
        |(command, flags, cookie, offset, length)| {
            let request = Request {
                flags,
                command,
                cookie,
                offset,
                length,
            };
            let payload = if command == command::WRITE { length } else { 0 };
            (request, vec![0x77; usize::try_from(payload).unwrap()])
        },
    )
}

proptest! {
    /// However the stream is cut, even at every byte, the same comes out.
    #[test]
    fn cuts_do_not_matter(
        requests in prop::collection::vec(any_request(), 1..12),
        pieces in prop::collection::vec(1_usize..700, 1..6),
    ) {
        let stream: Vec<u8> = requests
            .iter()
            .flat_map(|(request, payload)| [&request.emit()[..], payload].concat())
            .collect();
        for agreed in [SIMPLE, ALL] {
            let whole = drive(&stream, &[stream.len()], agreed);
            prop_assert_eq!(&drive(&stream, &pieces, agreed), &whole);
            prop_assert_eq!(&drive(&stream, &[1], agreed), &whole);
        }
    }

    /// Nothing a client can say makes the machine panic.
    #[test]
    fn any_bytes_are_judged(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        drive(&bytes, &[13, 28, 1], SIMPLE);
        drive(&[&[0x25, 0x60, 0x95, 0x13, 0, 0, 0][..], &bytes].concat(), &[28], ALL);
    }
}
