//! Two commands that look at what is stored: COMPARE AND WRITE, GET LBA STATUS.
//!
//! Source: SBC-3 §5.2 (COMPARE AND WRITE), §5.7 (GET LBA STATUS).

use super::disk::Disk;
use super::scsi::{
    Answer, INVALID_FIELD, LBA_OUT_OF_RANGE, MEDIUM_ERROR, Sense, clipped, length_32,
};

/// The range of a COMPARE AND WRITE: first byte, bytes.
pub(super) fn range(disk: &Disk, cdb: &[u8; 16]) -> Result<(u64, usize), Sense> {
    let lba = lba(cdb);
    let blocks = u64::from(cdb[13]);
    if lba
        .checked_add(blocks)
        .is_none_or(|end| end > disk.blocks())
    {
        return Err(LBA_OUT_OF_RANGE);
    }
    if cdb[1] >> 5 != 0 || cdb[13] > BLOCKS_MAX {
        return Err(INVALID_FIELD);
    }
    let size = u64::from(disk.block_size());
    let bytes = usize::try_from(blocks * size).unwrap_or(usize::MAX);
    Ok((lba * size, bytes))
}

/// Compares with the first half of the data and writes the second, as one.
pub(super) fn compare_and_write(disk: &Disk, cdb: &[u8; 16], data: &[u8]) -> Answer {
    let (at, bytes) = match range(disk, cdb) {
        Ok(range) => range,
        Err(sense) => return Answer::check(sense),
    };
    if data.len() != bytes * 2 {
        return Answer::check(INVALID_FIELD);
    }
    let (expected, new) = data.split_at(bytes);
    match disk.exchange(at, expected, new) {
        Ok(None) => Answer::good(Vec::new()),
        Ok(Some(offset)) => {
            let mut answer = Answer::check(MISCOMPARE);
            answer.information = Some(u32::try_from(offset).unwrap_or(u32::MAX));
            answer
        }
        Err(_) => Answer::check(MEDIUM_ERROR),
    }
}

/// Extents from an LBA on, mapped or deallocated.
pub(super) fn lba_status(disk: &Disk, cdb: &[u8; 16]) -> Result<Vec<u8>, Sense> {
    let mut lba = lba(cdb);
    if lba >= disk.blocks() {
        return Err(LBA_OUT_OF_RANGE);
    }
    let most = length_32(cdb, 10);
    let mut list = Vec::new();
    while lba < disk.blocks() && list.len() + 24 <= most.max(24) {
        let (blocks, mapped) = disk.extent(lba);
        let blocks = blocks.min(u64::from(u32::MAX));
        list.extend(lba.to_be_bytes());
        list.extend(u32::try_from(blocks).unwrap_or(u32::MAX).to_be_bytes());
        list.extend([u8::from(!mapped), 0, 0, 0]);
        lba += blocks;
    }
    let length = u32::try_from(list.len() + 4).unwrap_or(u32::MAX);
    let mut data = length.to_be_bytes().to_vec();
    data.extend([0; 4]);
    data.extend(list);
    Ok(clipped(data, most))
}

fn lba(cdb: &[u8; 16]) -> u64 {
    let mut lba = [0; 8];
    lba.copy_from_slice(&cdb[2..10]);
    u64::from_be_bytes(lba)
}

/// What VPD B0h promises; chosen freely.
pub(super) const BLOCKS_MAX: u8 = 64;
const MISCOMPARE: Sense = Sense(0x0e, 0x1d, 0);
