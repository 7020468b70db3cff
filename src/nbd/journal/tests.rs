//! Deaths at every step, and journals that nobody wrote.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

fn request(kind: u16, length: u32, cookie: u64) -> Request {
    Request {
        flags: 0,
        command: kind,
        cookie,
        offset: 4096 * cookie,
        length,
    }
}

fn write_of(length: u32, cookie: u64) -> Vec<u8> {
    let mut bytes = request(command::WRITE, length, cookie).emit().to_vec();
    bytes.extend((0..length).map(|index| u8::try_from(index % 251).unwrap()));
    bytes
}

/// Puts bytes where a read wants them.
fn fill(parts: &mut [io::IoSliceMut<'_>; 2], mut from: &[u8]) -> usize {
    let before = from.len();
    for part in parts {
        let count = part.len().min(from.len());
        part[..count].copy_from_slice(&from[..count]);
        from = &from[count..];
    }
    before - from.len()
}

fn receive(journal: &mut Journal, bytes: &[u8]) {
    let got = journal
        .receive(None, bytes.len(), false, |parts| Ok(fill(parts, bytes)))
        .unwrap();
    assert_eq!((got.payload, got.input), (0, bytes.len()));
}

/// The process ends here; its successor opens what is left.
fn die(journal: Journal) -> (Journal, Vec<Left>) {
    let file = journal.file().try_clone_to_owned().unwrap();
    drop(journal);
    Journal::open(file).unwrap()
}

#[test]
fn bytes_that_were_read_are_there_and_those_of_a_read_that_did_not_happen_are_not() {
    for is_read in [false, true] {
        for length in [28, 29, 5000, INPUT_BYTES - 28] {
            let mut journal = Journal::create().unwrap();
            receive(&mut journal, &request(command::FLUSH, 0, 1).emit());
            let bytes: Vec<_> = (0..length)
                .map(|index| u8::try_from(index % 256).unwrap())
                .collect();
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                journal.receive(None, bytes.len(), false, |parts| {
                    if is_read {
                        fill(parts, &bytes);
                    }
                    panic!("death in the middle of a read");
                })
            }));
            assert!(outcome.is_err());
            let (journal, left) = die(journal);
            assert!(left.is_empty());
            let expected = if is_read { 28 + length } else { 28 };
            assert_eq!(journal.unparsed().len(), expected);
            if is_read {
                assert_eq!(journal.unparsed()[28..], bytes);
            }
        }
    }
}

#[test]
fn a_request_counts_once_its_header_is_used_up() {
    let mut journal = Journal::create().unwrap();
    let asked = request(command::READ, 8192, 7);
    receive(&mut journal, &asked.emit());
    journal.begin(&asked, journal.position(), None);
    let (mut journal, left) = die(journal);
    assert!(left.is_empty());
    assert_eq!(journal.unparsed(), asked.emit());
    let slot = journal.begin(&asked, journal.position(), None);
    journal.consume(28);
    let (journal, left) = die(journal);
    assert!(journal.unparsed().is_empty());
    let [left] = &left[..] else {
        panic!("{left:?}")
    };
    assert_eq!(
        (left.slot, left.request, left.progress),
        (slot, asked, Progress::Taken)
    );
    assert!(now_s() - left.since_s < 60);
}

/// A write whose payload came in three pieces, with a death after each.
#[test]
fn a_payload_is_gone_on_with_where_it_ended() {
    let bytes = write_of(20_000, 3);
    let mut journal = Journal::create().unwrap();
    receive(&mut journal, &bytes[..1028]);
    let asked = request(command::WRITE, 20_000, 3);
    let mut block = journal.payload(20_000).unwrap();
    let slot = journal.begin(&asked, journal.position(), Some(&block));
    block.bytes_mut()[..1000].copy_from_slice(&bytes[28..1028]);
    journal.consume(1028);

    // Wholly noted.
    let got = journal.receive(Some((&mut block, 1000)), 4000, false, |parts| {
        Ok(fill(parts, &bytes[1028..5028]))
    });
    assert_eq!(
        got.unwrap(),
        Received {
            payload: 4000,
            input: 0
        }
    );
    drop(block);
    let (mut journal, mut left) = die(journal);
    assert_eq!(left[0].progress, Progress::Receiving { filled: 5000 });

    // Death between the call and its note, with the next request behind the payload.
    let mut block = left[0].payload.take().unwrap();
    let next = request(command::FLUSH, 0, 4).emit();
    let rest = [&bytes[5028..], &next].concat();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        journal.receive(Some((&mut block, 5000)), rest.len(), false, |parts| {
            fill(parts, &rest);
            panic!("death in the middle of a read");
        })
    }));
    assert!(outcome.is_err());
    drop(block);
    let (journal, left) = die(journal);
    assert_eq!((left[0].slot, left[0].progress), (slot, Progress::Taken));
    assert_eq!(left[0].payload.as_ref().unwrap().bytes(), &bytes[28..]);
    assert_eq!(journal.unparsed(), next);
}

#[test]
fn outcomes_and_the_order_of_answers_are_kept_and_what_is_answered_is_gone() {
    let mut journal = Journal::create().unwrap();
    let mut slots = Vec::new();
    for cookie in 0..5 {
        let asked = request(command::FLUSH, 0, cookie);
        receive(&mut journal, &asked.emit());
        slots.push(journal.begin(&asked, journal.position(), None));
        journal.consume(28);
    }
    journal.done(slots[1], 28);
    journal.done(slots[2], 0);
    journal.sending(slots[3], 5);
    journal.sending(slots[2], 0);
    journal.end(slots[4]);
    let (mut journal, mut left) = die(journal);
    left.sort_by_key(|left| left.at);
    let progress: Vec<_> = left.iter().map(|left| left.progress).collect();
    let sending = |errno, sequence| Progress::Sending {
        errno,
        sequence,
        again: false,
    };
    assert_eq!(
        progress,
        [
            Progress::Taken,
            Progress::Done { errno: 28 },
            sending(0, 2),
            sending(5, 1)
        ]
    );
    // What is sent from now on is later than all that.
    journal.sending(slots[0], 0);
    let (journal, left) = die(journal);
    let last = left.iter().find(|left| left.slot == slots[0]).unwrap();
    assert_eq!(last.progress, sending(0, 3));
    let (mut journal, _) = die(journal);
    journal.again(slots[3], 5);
    let (_, left) = die(journal);
    let again = left.iter().find(|left| left.slot == slots[3]).unwrap();
    let expected = Progress::Sending {
        errno: 5,
        sequence: 1,
        again: true,
    };
    assert_eq!(again.progress, expected);
}

#[test]
fn what_is_not_whole_when_a_link_ends_is_forgotten_and_the_next_link_goes_on_behind_what_is() {
    let whole = [
        &write_of(512, 1)[..],
        &request(command::READ, 512, 2).emit(),
    ]
    .concat();
    for torn in [
        &[][..],
        &write_of(512, 3)[..10],
        &write_of(512, 3)[..28],
        &write_of(512, 3)[..500],
    ] {
        let mut journal = Journal::create().unwrap();
        receive(&mut journal, &[&whole, torn].concat());
        journal.end_link(None);
        assert_eq!(journal.unparsed(), whole);
        let (mut journal, _) = die(journal);
        receive(&mut journal, &write_of(1024, 4));
        assert_eq!(
            journal.unparsed(),
            [&whole[..], &write_of(1024, 4)].concat()
        );
    }
    // In the middle of a payload.
    let bytes = write_of(2048, 5);
    let mut journal = Journal::create().unwrap();
    receive(&mut journal, &bytes[..28]);
    let block = journal.payload(2048).unwrap();
    let slot = journal.begin(&request(command::WRITE, 2048, 5), 0, Some(&block));
    journal.consume(28);
    journal.end_link(Some(slot));
    journal.put_payload(block);
    receive(&mut journal, &bytes);
    let (journal, left) = die(journal);
    assert!(left.is_empty());
    assert_eq!(journal.unparsed(), bytes);
}

#[test]
fn a_refused_payload_is_thrown_away_across_a_death() {
    let bytes = write_of(1000, 1);
    let mut journal = Journal::create().unwrap();
    receive(&mut journal, &bytes[..500]);
    journal.skip_until(1028);
    journal.consume(500);
    let (mut journal, _) = die(journal);
    assert!(journal.skip());
    receive(&mut journal, &[&bytes[500..], &[9; 28]].concat());
    assert!(!journal.skip());
    assert_eq!(journal.unparsed(), [9; 28]);
}

#[test]
fn reads_leave_no_rest_that_is_too_short_for_a_nonce() {
    assert_eq!(read_length(28, 0, 65536), 28);
    assert_eq!(read_length(100, 512, 65536), 100);
    assert_eq!(read_length(515, 512, 65536), 512);
    assert_eq!(read_length(65540, 0, 65536), 65528);
    assert_eq!(read_length(70_000, 0, 65536), 65536);
}

#[test]
fn memory_of_an_unusual_load_is_given_back_when_it_is_over() {
    let mut journal = Journal::create().unwrap();
    let blocks = |journal: &Journal| rustix::fs::fstat(journal.file()).unwrap().st_blocks;
    let idle = blocks(&journal);
    let mut block = journal.payload(32 << 20).unwrap();
    block.bytes_mut().fill(1);
    journal.put_payload(block);
    assert!(blocks(&journal) > idle);
    journal.now_s += 2;
    journal.shrink();
    assert_eq!(blocks(&journal), idle);
}

/// Words of a good journal replaced by anything: it is refused, or what it says can be used without harm.
#[test]
fn a_journal_that_contradicts_itself_is_refused_or_harmless() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let (mut refused, mut taken) = (0, 0);
    for _ in 0..1000 {
        let mut journal = Journal::create().unwrap();
        receive(&mut journal, &write_of(3000, 1)[..1500]);
        let block = journal.payload(3000).unwrap();
        journal.begin(&request(command::WRITE, 3000, 1), 0, Some(&block));
        journal.consume(1500);
        for _ in 0..=random() % 3 {
            let word = usize::try_from(random() % 32).unwrap();
            let values = [
                0,
                1,
                2,
                3,
                0xff,
                u64::MAX,
                1 << 63,
                4096,
                random(),
                random() % 70_000,
            ];
            let value = values[usize::try_from(random() % 10).unwrap()];
            journal.words.set(word, value);
        }
        let file = journal.file().try_clone_to_owned().unwrap();
        drop((journal, block));
        let Ok((mut journal, left)) = Journal::open(file) else {
            refused += 1;
            continue;
        };
        taken += 1;
        journal.skip();
        let used = whole_requests(journal.unparsed());
        journal.consume(used);
        for left in left {
            if let Some(block) = left.payload {
                assert_eq!(
                    block.bytes().len(),
                    usize::try_from(left.request.length).unwrap()
                );
                journal.put_payload(block);
            }
            journal.end(left.slot);
        }
        journal.end_link(None);
        receive(&mut journal, &[1; 100]);
        assert_eq!(journal.unparsed(), [1; 100]);
    }
    assert!(refused > 100 && taken > 100, "{refused} {taken}");
    let foreign = memory::create("foreign", LAYOUT).unwrap().0;
    let file = foreign.file().try_clone_to_owned().unwrap();
    assert!(matches!(Journal::open(file), Err(Unusable::Version)));
}
