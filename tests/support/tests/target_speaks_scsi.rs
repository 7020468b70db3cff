//! The in-process target's SCSI: reservations, ALUA over several portals, compare and write, sense in both formats,
//! unit attentions, another volume behind a LUN, and a crash with a volatile cache.

use support::target::{Access, Builder, Disk, Fault, Raw, Target};

const IQN: &str = "iqn.2026-11.test:scsi";
const TEST_UNIT_READY: [u8; 6] = [0; 6];

#[test]
fn unit_attentions_of_all_kinds_are_told_once_to_each_session() {
    let target = plain().start_blocking();
    let mut sessions = [Raw::login(&target), Raw::try_login(&target, 2).expect("in")];
    let kinds = [(0x29, 0), (0x2a, 1), (0x2a, 9), (0x3f, 0x0e)];
    for (asc, ascq) in kinds {
        target.unit_attention(IQN, 1, asc, ascq);
    }
    for raw in &mut sessions {
        for (asc, ascq) in kinds {
            let (_, data) = raw.command(&TEST_UNIT_READY, 0);
            assert_eq!(sense(&data), (6, asc, ascq));
        }
        assert_eq!(raw.command(&TEST_UNIT_READY, 0).0[3], 0);
    }
}

#[test]
fn sense_comes_in_descriptor_format_and_deferred() {
    let target = plain().descriptor_sense(true).start_blocking();
    let mut raw = Raw::login(&target);
    target.inject(Fault::CheckCondition {
        nth: 1,
        key: 3,
        asc: 0x11,
        ascq: 1,
    });
    let (_, data) = raw.command(&TEST_UNIT_READY, 0);
    assert_eq!(data, [0, 8, 0x72, 3, 0x11, 1, 0, 0, 0, 0]);
    target.inject(Fault::DeferredError {
        nth: 1,
        key: 4,
        asc: 0x44,
        ascq: 0,
    });
    let (_, data) = raw.command(&TEST_UNIT_READY, 0);
    assert_eq!(data, [0, 8, 0x73, 4, 0x44, 0, 0, 0, 0, 0]);
    let target = plain().start_blocking();
    let mut raw = Raw::login(&target);
    target.inject(Fault::DeferredError {
        nth: 1,
        key: 4,
        asc: 0x44,
        ascq: 0,
    });
    let (_, data) = raw.command(&TEST_UNIT_READY, 0);
    assert_eq!((data[2], sense(&data)), (0x71, (4, 0x44, 0)));
}

#[test]
fn compare_and_write_writes_only_what_it_expected() {
    let target = plain().start_blocking();
    let mut raw = Raw::login(&target);
    let mut cdb = [0; 16];
    (cdb[0], cdb[13]) = (0x89, 1);
    let mut swap = |old: u8, new: u8| {
        let mut data = vec![old; 512];
        data[100] = 0;
        data.extend([new; 512]);
        raw.send_command(&cdb, 1024, &data);
        raw.receive().expect("an answer")
    };
    assert_eq!(swap(0, 5).0[3], 0);
    assert_eq!(first_byte(&target), 5);
    let (bhs, data) = swap(5, 6);
    assert_eq!((bhs[3], sense(&data)), (2, (0x0e, 0x1d, 0)));
    // INFORMATION: the offset of the first difference, valid.
    assert_eq!((data[2], &data[5..9]), (0xf0, &[0, 0, 0, 100][..]));
    assert_eq!(first_byte(&target), 5);
}

#[test]
fn lba_status_tells_what_was_never_written() {
    let target = plain().start_blocking();
    let mut raw = Raw::login(&target);
    raw.send_write(&[7; 512]);
    raw.receive().expect("an answer");
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[13]) = (0x9e, 0x12, 255);
    let (_, data) = raw.command(&cdb, 255);
    // Two extents: a chunk of 256 KiB mapped, the rest not.
    let extent = |at: usize| (&data[at + 8..at + 12], data[at + 12]);
    assert_eq!(extent(8), (&[0, 0, 2, 0][..], 0));
    assert_eq!(extent(24), (&[0, 0, 6, 0][..], 1));
}

#[test]
fn reservations_keep_others_out_and_tell_them() {
    let target = plain().start_blocking();
    let mut owner = Raw::login(&target);
    let mut other = Raw::try_login(&target, 2).expect("in");
    assert_eq!(reserve_out(&mut owner, 0, 0, 0, 0xabc), 0);
    assert_eq!(reserve_out(&mut other, 0, 0, 0, 0xdef), 0);
    assert_eq!(reserve_out(&mut owner, 1, 3, 0xabc, 0), 0);
    let (_, keys) = owner.command(&[0x5e, 0, 0, 0, 0, 0, 0, 0, 255, 0], 255);
    assert_eq!(
        (keys[7], &keys[14..16], keys[23]),
        (16, &[0x0a, 0xbc][..], 0xef)
    );
    let (_, holder) = owner.command(&[0x5e, 1, 0, 0, 0, 0, 0, 0, 255, 0], 255);
    assert_eq!(
        (holder[7], &holder[14..16], holder[21]),
        (16, &[0x0a, 0xbc][..], 3)
    );
    other.send_write(&[9; 512]);
    assert_eq!(other.receive().expect("an answer").0[3], 0x18);
    assert_eq!(first_byte(&target), 0);
    assert_eq!(other.command(&TEST_UNIT_READY, 0).0[3], 0);
    // Preempted: the owner is told and shut out.
    assert_eq!(reserve_out(&mut other, 4, 3, 0xdef, 0xabc), 0);
    let (_, data) = owner.command(&TEST_UNIT_READY, 0);
    assert_eq!(sense(&data), (6, 0x2a, 5));
    owner.send_write(&[9; 512]);
    assert_eq!(owner.receive().expect("an answer").0[3], 0x18);
    other.send_write(&[8; 512]);
    assert_eq!(other.receive().expect("an answer").0[3], 0);
    assert_eq!(first_byte(&target), 8);
}

#[test]
fn portal_groups_have_states_of_their_own() {
    let target = plain().portal("127.0.0.1:0", 7).start_blocking();
    let portals = target.portals();
    assert_eq!(portals[1].1, 7);
    let second = portals[1].0.parse().expect("an address");
    let mut raw = Raw::connect(second, IQN, 1).expect("in");
    assert_eq!(target.session_list()[0].portal_group, 7);
    let (_, report) = raw.command(&[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0], 255);
    assert_eq!(report[..4], [0, 0, 0, 24]);
    assert_eq!(
        (report[4] & 0xf, report[7], report[16] & 0xf, report[19]),
        (0, 1, 0, 7)
    );
    for (access, ascq) in [
        (Access::Standby, 0x0b),
        (Access::Unavailable, 0x0c),
        (Access::Transitioning, 0x0a),
    ] {
        target.set_access(7, access);
        assert_eq!(sense(&raw.command(&TEST_UNIT_READY, 0).1), (6, 0x2a, 6));
        assert_eq!(sense(&raw.command(&TEST_UNIT_READY, 0).1), (2, 4, ascq));
        assert_eq!(raw.command(&[0x12, 0, 0, 0, 96, 0], 96).1[5] & 0x30, 0x10);
    }
    target.set_access(7, Access::NonOptimized);
    raw.command(&TEST_UNIT_READY, 0);
    let (_, report) = raw.command(&[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0], 255);
    assert_eq!((report[4] & 0xf, report[16] & 0xf), (0, 1));
    // VPD 83h ends with the port and its group.
    let (_, page) = raw.command(&[0x12, 1, 0x83, 0, 255, 0], 255);
    assert_eq!(page[page.len() - 8..], [0x51, 0x95, 0, 4, 0, 0, 0, 7]);
    // A session by the other portal with the same ISID is another session.
    let mut first = Raw::login(&target);
    assert_eq!(target.sessions(), 2);
    target.close_portal(7);
    assert!(raw.receive().is_none());
    assert!(Raw::connect(second, IQN, 1).is_err());
    first.echo();
    target.open_portal(7);
    assert!(Raw::connect(second, IQN, 1).is_ok());
}

#[test]
fn another_volume_behind_the_lun_has_another_identity() {
    let target = plain().start_blocking();
    let mut raw = Raw::login(&target);
    let naa = [0x6e, 1, 2, 3, 4, 5, 6, 7];
    let other = Disk::memory(1 << 19)
        .block_bytes(4096)
        .serial("other")
        .naa(naa);
    target.set_lun(IQN, 1, other);
    let (_, page) = raw.command(&[0x12, 1, 0x80, 0, 255, 0], 255);
    assert_eq!(page[4..], b"other"[..]);
    let (_, page) = raw.command(&[0x12, 1, 0x83, 0, 255, 0], 255);
    assert_eq!(page[8..16], naa);
    let (_, capacity) = raw.command(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8);
    assert_eq!(capacity, [0, 0, 0, 127, 0, 0, 16, 0]);
}

#[test]
fn crash_loses_what_was_not_flushed_and_all_sessions() {
    let target = Target::builder()
        .iqn(IQN)
        .lun(1, Disk::memory(1 << 20).volatile_cache())
        .start_blocking();
    let mut raw = Raw::login(&target);
    assert_eq!(sense(&raw.command(&TEST_UNIT_READY, 0).1), (6, 0x29, 0));
    raw.send_write(&[7; 512]);
    raw.receive().expect("an answer");
    raw.command(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0);
    assert_eq!(reserve_out(&mut raw, 0, 0, 0, 1), 0);
    raw.send_write(&[9; 512]);
    raw.receive().expect("an answer");
    assert_eq!(target.crash(|_| true), 1);
    assert!(raw.receive().is_none());
    assert_eq!(first_byte(&target), 7);
    let mut raw = Raw::login(&target);
    assert_eq!(sense(&raw.command(&TEST_UNIT_READY, 0).1), (6, 0x29, 0));
    let (_, keys) = raw.command(&[0x5e, 0, 0, 0, 0, 0, 0, 0, 255, 0], 255);
    assert_eq!(keys, [0; 8]);
}

#[test]
fn luns_above_255_are_listed_and_reached_in_flat_addressing() {
    let target = plain()
        .lun(256, Disk::memory(1 << 20))
        .lun(0x3fff, Disk::memory(1 << 19))
        .start_blocking();
    let mut raw = Raw::login(&target);
    let (_, list) = raw.command(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0], 255);
    assert_eq!(list[3], 24);
    let entry = |index: usize| &list[8 + index * 8..10 + index * 8];
    assert_eq!(
        (entry(0), entry(1), entry(2)),
        (&[0, 1][..], &[0x41, 0][..], &[0x7f, 0xff][..])
    );
    let mut bhs = [0; 48];
    (bhs[0], bhs[1]) = (1, 0xc1);
    bhs[8..10].copy_from_slice(&[0x7f, 0xff]);
    bhs[19] = 200;
    bhs[23] = 8;
    bhs[24..28].copy_from_slice(&raw.cmd_sn.to_be_bytes());
    bhs[32] = 0x25;
    raw.send(bhs, &[]);
    assert_eq!(
        raw.receive().expect("an answer").1,
        [0, 0, 3, 255, 0, 0, 2, 0]
    );
    assert_eq!(target.violations(), Vec::<String>::new());
}

/// PERSISTENT RESERVE OUT with its action, type and two keys; gives the status.
fn reserve_out(raw: &mut Raw, action: u8, kind: u8, own: u64, new: u64) -> u8 {
    let list = [&own.to_be_bytes()[..], &new.to_be_bytes(), &[0; 8]].concat();
    raw.send_command(&[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], 24, &list);
    raw.receive().expect("an answer").0[3]
}

/// Key, code and qualifier of sense data in fixed format.
fn sense(data: &[u8]) -> (u8, u8, u8) {
    (data[4] & 0xf, data[14], data[15])
}

fn first_byte(target: &Target) -> u8 {
    let mut seen = [0; 512];
    let disk = target.disk(IQN, 1).expect("the LUN exists");
    disk.read(0, &mut seen).expect("it can be read");
    seen[0]
}

fn plain() -> Builder {
    Target::builder()
        .iqn(IQN)
        .lun(1, Disk::memory(1 << 20))
        .unit_attention(false)
}
