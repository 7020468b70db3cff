//! A unit that answers from a script.

use super::super::execute::tests::Script;
use super::*;
use crate::scsi::inquiry::{AsymmetricAccess, DeviceType, Inquiry, PeripheralQualifier};
use crate::scsi::lba_status::ProvisioningStatus;
use crate::scsi::mode::ModeParameters;
use crate::scsi::vpd::{BlockCharacteristics, BlockLimits, Provisioning};
use crate::scsi::{BlockLength, Capacity, Extent};

/// A unit of 65536 blocks that tells nothing but its size.
fn plain(block_bytes: u32) -> LunInfo {
    LunInfo {
        lun: 300.into(),
        inquiry: Inquiry {
            qualifier: PeripheralQualifier::Connected,
            device_type: DeviceType::DISK,
            version: 6,
            protect: false,
            asymmetric_access: AsymmetricAccess::None,
            vendor: String::new(),
            product: String::new(),
            revision: String::new(),
        },
        serial: None,
        designators: Vec::new(),
        limits: BlockLimits::default(),
        characteristics: BlockCharacteristics::default(),
        provisioning: Provisioning::default(),
        capacity: Capacity {
            end: Lba(65536),
            block_length: BlockLength::new(block_bytes).unwrap(),
            physical_exponent: 0,
            lowest_aligned: Lba(0),
            protection_type: None,
            provisioning: false,
            unmapped_reads_zero: false,
        },
        mode: None,
    }
}

/// The same with all that a good thin array has.
fn thin() -> LunInfo {
    LunInfo {
        limits: BlockLimits {
            transfer_max: Some(64),
            unmap_blocks_max: Some(100),
            unmap_descriptors_max: Some(2),
            unmap_granularity: Some(8),
            write_same_max: Some(128),
            compare_and_write_max: Some(1),
            ..BlockLimits::default()
        },
        provisioning: Provisioning {
            unmap: true,
            write_same_unmap: true,
            unmapped_reads_zero: true,
            ..Provisioning::default()
        },
        mode: Some(ModeParameters {
            write_protected: false,
            fua_supported: true,
            write_cache: Some(true),
        }),
        ..plain(512)
    }
}

/// A script that says GOOD so many times.
fn good(times: usize) -> Script {
    (0..times).fold(Script::default(), |script, _| script.good(&[]))
}

fn unit<'a>(
    carrier: &'a mut Script,
    info: &'a LunInfo,
    refusals: &'a Refusals,
) -> Unit<'a, &'a mut Script> {
    Unit {
        carrier,
        info,
        refusals,
    }
}

/// Operation code, byte 1, LBA and length of each command.
fn asked(script: &Script) -> Vec<(u8, u8, u64, u32)> {
    script
        .asked
        .iter()
        .map(|cdb| {
            let lba = u64::from_be_bytes(cdb.0[2..10].try_into().unwrap());
            let blocks = u32::from_be_bytes(cdb.0[10..14].try_into().unwrap());
            (cdb.0[0], cdb.0[1], lba, blocks)
        })
        .collect()
}

fn extent(lba: u64, blocks: u32) -> Extent {
    Extent {
        lba: Lba(lba),
        blocks: Blocks(blocks),
    }
}

#[test]
fn pieces_cover_the_range_once() {
    let cut = |lba, blocks, each| -> Vec<(u64, u32)> {
        pieces(Lba(lba), Blocks(blocks), Blocks(each))
            .map(|(lba, blocks)| (lba.0, blocks.0))
            .collect()
    };
    assert_eq!(cut(5, 10, 4), [(5, 4), (9, 4), (13, 2)]);
    assert_eq!(cut(5, 4, 4), [(5, 4)]);
    assert_eq!(cut(5, 0, 4), []);
    assert_eq!(
        cut(u64::MAX - 4, 4, 2),
        [(u64::MAX - 4, 2), (u64::MAX - 2, 2)]
    );
}

#[tokio::test(start_paused = true)]
async fn reads_are_split_and_joined_whatever_the_block_length() {
    for block_bytes in [512, 4096, 65536] {
        let info = LunInfo {
            limits: BlockLimits {
                transfer_max: Some(2),
                ..BlockLimits::default()
            },
            ..plain(block_bytes)
        };
        let block = usize::try_from(block_bytes).unwrap();
        let mut script = Script::default()
            .good(&vec![1; 2 * block])
            .good(&vec![2; block]);
        let data = unit(&mut script, &info, &Refusals::default())
            .read(Lba(7), Blocks(3))
            .await
            .unwrap();
        assert_eq!(data[..2 * block], vec![1; 2 * block]);
        assert_eq!(data[2 * block..], vec![2; block]);
        assert_eq!(asked(&script), [(0x88, 0, 7, 2), (0x88, 0, 9, 1)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_is_short_is_an_error() {
    let info = plain(512);
    let mut script = Script::default().good(&[1; 511]);
    let error = unit(&mut script, &info, &Refusals::default())
        .read(Lba(0), Blocks(1))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Short {
                moved: 511,
                asked: 512,
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn fua_is_the_bit_or_a_flush() {
    let data = Bytes::from(vec![7; 512]);
    let (with_bit, without) = (thin(), plain(512));
    let mut script = good(1);
    let written = unit(&mut script, &with_bit, &Refusals::default())
        .write(Lba(1), data.clone(), true)
        .await;
    assert!(written.is_ok());
    assert_eq!(asked(&script), [(0x8A, 0x08, 1, 1)]);

    let mut script = good(2);
    let written = unit(&mut script, &without, &Refusals::default())
        .write(Lba(1), data, true)
        .await;
    assert!(written.is_ok());
    assert_eq!(asked(&script), [(0x8A, 0, 1, 1), (0x91, 0, 0, 0)]);
}

#[tokio::test(start_paused = true)]
async fn only_a_unit_with_a_cache_must_know_how_to_flush() {
    let unknown = || Script::default().check(SenseKey::IllegalRequest, 0x20, 0);
    let (cached, untold) = (thin(), plain(512));
    let flushed = unit(&mut unknown(), &untold, &Refusals::default())
        .flush(Lba(0), Blocks(0))
        .await;
    assert!(flushed.is_ok());
    let flushed = unit(&mut unknown(), &cached, &Refusals::default())
        .flush(Lba(0), Blocks(0))
        .await;
    assert!(matches!(flushed, Err(Error::Refused { .. })), "{flushed:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_beyond_the_end_is_not_sent() {
    let info = thin();
    let refusals = Refusals::default();
    let mut script = Script::default();
    let mut misuses = Vec::new();
    let (beyond, block) = (Lba(65536), Bytes::from(vec![0; 512]));
    misuses.extend(
        unit(&mut script, &info, &refusals)
            .read(beyond, Blocks(1))
            .await
            .err(),
    );
    misuses.extend(
        unit(&mut script, &info, &refusals)
            .write(beyond, block.clone(), false)
            .await
            .err(),
    );
    misuses.extend(
        unit(&mut script, &info, &refusals)
            .write(Lba(0), block.slice(1..), false)
            .await
            .err(),
    );
    misuses.extend(
        unit(&mut script, &info, &refusals)
            .unmap(&[extent(0, 1), extent(65535, 2)])
            .await
            .err(),
    );
    misuses.extend(
        unit(&mut script, &info, &refusals)
            .write_zeroes(Lba(65530), Blocks(7), true)
            .await
            .err(),
    );
    misuses.extend(
        unit(&mut script, &info, &refusals)
            .lba_status(beyond)
            .await
            .err(),
    );
    let compared = unit(&mut script, &info, &refusals)
        .compare_and_write(beyond, &block, &block, false)
        .await;
    misuses.extend(compared.err());
    assert_eq!(misuses.len(), 7);
    assert!(
        misuses
            .iter()
            .all(|error| matches!(error, Error::Misuse(_))),
        "{misuses:?}"
    );
    assert_eq!(asked(&script), []);
}

#[tokio::test(start_paused = true)]
async fn unmap_obeys_the_limits() {
    let info = thin();
    let mut script = good(2);
    unit(&mut script, &info, &Refusals::default())
        .unmap(&[extent(0, 8), extent(64, 128)])
        .await
        .unwrap();
    let lists: Vec<&[u8]> = script.sent.iter().map(|list| &list[..]).collect();
    // 8 of the first and 88 of the second: the cut lies between groups of 8.
    assert_eq!(lists[0][..8], [0, 38, 0, 32, 0, 0, 0, 0]);
    assert_eq!(lists[0][16..20], 8u32.to_be_bytes());
    assert_eq!(lists[0][32..36], 88u32.to_be_bytes());
    assert_eq!(lists[1][8..16], 152u64.to_be_bytes());
    assert_eq!(lists[1][16..20], 40u32.to_be_bytes());
    assert_eq!(script.asked[0].0[7..9], [0, 40]);
    let error = unit(&mut script, &plain(512), &Refusals::default())
        .unmap(&[extent(0, 8)])
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "the logical unit does not support UNMAP");
}

#[tokio::test(start_paused = true)]
async fn zeroes_are_written_by_write_same() {
    let info = thin();
    let mut script = good(2);
    unit(&mut script, &info, &Refusals::default())
        .write_zeroes(Lba(5), Blocks(200), true)
        .await
        .unwrap();
    assert_eq!(asked(&script), [(0x93, 8, 5, 128), (0x93, 8, 133, 72)]);
    assert!(script.sent.iter().all(|block| block[..] == [0; 512]));
    let mut script = good(1);
    unit(&mut script, &info, &Refusals::default())
        .write_zeroes(Lba(5), Blocks(1), false)
        .await
        .unwrap();
    assert_eq!(asked(&script), [(0x93, 0, 5, 1)]);
    // Unmapped blocks that may read as anything are no zeroes.
    let mut info = thin();
    info.provisioning.unmapped_reads_zero = false;
    let mut script = good(1);
    unit(&mut script, &info, &Refusals::default())
        .write_zeroes(Lba(5), Blocks(1), true)
        .await
        .unwrap();
    assert_eq!(asked(&script), [(0x93, 0, 5, 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_unit_that_refuses_write_same_gets_zeroes_and_is_not_asked_again() {
    let (info, refusals) = (thin(), Refusals::default());
    for code in [(0x20, 0), (0x24, 0)] {
        let refusals = Refusals::default();
        let mut script = Script::default()
            .check(SenseKey::IllegalRequest, code.0, code.1)
            .good(&[])
            .good(&[]);
        let zeroed = unit(&mut script, &info, &refusals)
            .write_zeroes(Lba(0), Blocks(70), true)
            .await;
        assert!(zeroed.is_ok(), "{zeroed:?}");
        assert_eq!(
            asked(&script),
            [(0x93, 8, 0, 70), (0x8A, 0, 0, 64), (0x8A, 0, 64, 6)]
        );
        let mut script = good(1);
        let zeroed = unit(&mut script, &info, &refusals)
            .write_zeroes(Lba(0), Blocks(1), true)
            .await;
        assert!(zeroed.is_ok(), "{zeroed:?}");
        assert_eq!(asked(&script), [(0x8A, 0, 0, 1)]);
    }
    // A failure is a failure, and no reason to do the same in another way.
    let mut script = Script::default().check(SenseKey::MediumError, 0x0C, 0);
    let zeroed = unit(&mut script, &info, &refusals)
        .write_zeroes(Lba(0), Blocks(1), true)
        .await;
    assert!(matches!(zeroed, Err(Error::Refused { .. })), "{zeroed:?}");
}

#[tokio::test(start_paused = true)]
async fn compare_and_write_says_what_it_found() {
    let info = thin();
    let (old, new) = (vec![1; 512], vec![2; 512]);
    let mut script = good(1);
    let compared = unit(&mut script, &info, &Refusals::default())
        .compare_and_write(Lba(9), &old, &new, true)
        .await;
    assert_eq!(compared.unwrap(), Compared::Equal);
    assert_eq!(asked(&script), [(0x89, 0x08, 9, 1)]);
    assert_eq!(script.sent[0][..], [old.clone(), new.clone()].concat());

    let mut script = Script::default().check(SenseKey::Miscompare, 0x1D, 0);
    if let Some((_, Some(sense), _)) = script.answers.front_mut() {
        sense.information = Some(17);
    }
    let compared = unit(&mut script, &info, &Refusals::default())
        .compare_and_write(Lba(9), &old, &new, false)
        .await;
    assert_eq!(compared.unwrap(), Compared::Differs { offset: Some(17) });

    let mut script = Script::default().check(SenseKey::IllegalRequest, 0x20, 0);
    let compared = unit(&mut script, &info, &Refusals::default())
        .compare_and_write(Lba(9), &old, &new, false)
        .await;
    assert!(
        matches!(compared, Err(Error::Unsupported(_))),
        "{compared:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn compare_and_write_is_one_step_or_none() {
    let info = thin();
    let (plain, refusals) = (plain(512), Refusals::default());
    let two = vec![1; 1024];
    let mut script = Script::default();
    let mut results = Vec::new();
    for (info, old, new) in [
        (&info, &two[..], &two[..]),
        (&info, &two[..512], &two[..]),
        (&info, &[], &[]),
        (&plain, &two[..512], &two[..512]),
    ] {
        let unit = unit(&mut script, info, &refusals);
        let result = unit.compare_and_write(Lba(0), old, new, false).await;
        results.push(matches!(result, Err(Error::Misuse(_))));
    }
    assert_eq!(results, [true, true, true, false]);
    assert_eq!(asked(&script), []);
    // Given up by the target: perhaps it was done, so it is not done again.
    let mut script = Script::default().check(SenseKey::AbortedCommand, 0x47, 0x05);
    let result = unit(&mut script, &info, &Refusals::default())
        .compare_and_write(Lba(0), &two[..512], &two[..512], false)
        .await;
    assert!(matches!(result, Err(Error::Refused { .. })), "{result:?}");
    assert_eq!(script.asked.len(), 1);
}

// b6 pitfall: a unit that lacks GET LBA STATUS is asked once.
#[tokio::test(start_paused = true)]
async fn lba_status_is_asked_for_until_it_is_refused() {
    let (info, refusals) = (thin(), Refusals::default());
    let mut data = vec![0, 0, 0, 20, 0, 0, 0, 0];
    data.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 9, 1, 0, 0, 0]);
    let mut script = Script::default()
        .good(&data)
        .check(SenseKey::IllegalRequest, 0x20, 0);
    let status = unit(&mut script, &info, &refusals).lba_status(Lba(3)).await;
    let status = status.unwrap().unwrap();
    assert_eq!(status[0].extent, extent(3, 9));
    assert_eq!(status[0].provisioning, ProvisioningStatus::DEALLOCATED);
    for _ in 0..3 {
        let status = unit(&mut script, &info, &refusals).lba_status(Lba(3)).await;
        assert_eq!(status.unwrap(), None);
    }
    assert_eq!(script.asked.len(), 2);
    assert_eq!(script.asked[0].0[10..14], 4088u32.to_be_bytes());
}
