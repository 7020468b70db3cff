//! A thin-provisioned disk as SCSI commands see it: a CDB becomes a plan, data makes the plan an answer.
//!
//! Source: SPC-4 (INQUIRY, MODE SENSE, REPORT LUNS, REQUEST SENSE), SBC-3 (the rest), SAM-5 §5.3 (status).
//!
//! Invariants:
//! 1. A CDB is judged whole before any data is asked for, so an error costs no R2T.
//! 2. A range that does not fit is refused whole: nothing of it is written.
//!
//! Unit attentions, residuals and data transfer are `session`'s; what pages say is `pages`'.

use super::disk::Disk;
use super::{compare, opcodes, pages};

/// What a command turns out to be.
#[derive(Debug)]
pub(super) enum Plan {
    /// Answered without the medium.
    Done(Answer),
    /// Bytes of the medium for the initiator.
    Read { at: u64, bytes: usize },
    /// Wants so many bytes from the initiator, then `finish`.
    Take { bytes: usize },
}

/// A status with what goes along.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u8,
    pub(super) sense: Option<Sense>,
    /// It is about an earlier command.
    pub(super) deferred: bool,
    /// The INFORMATION field.
    pub(super) information: Option<u32>,
    pub(super) data: Vec<u8>,
}

impl Answer {
    pub(super) fn good(data: Vec<u8>) -> Self {
        Self {
            status: GOOD,
            sense: None,
            deferred: false,
            information: None,
            data,
        }
    }

    pub(super) fn check(sense: Sense) -> Self {
        Self {
            status: CHECK_CONDITION,
            sense: Some(sense),
            deferred: false,
            information: None,
            data: Vec::new(),
        }
    }

    pub(super) fn status(status: u8) -> Self {
        Self {
            status,
            sense: None,
            deferred: false,
            information: None,
            data: Vec::new(),
        }
    }

    /// Sense data as it goes out, in fixed or in descriptor format.
    pub(super) fn sense_bytes(&self, descriptor: bool) -> Vec<u8> {
        let Some(sense) = self.sense else {
            return Vec::new();
        };
        let mut bytes = if descriptor {
            sense.descriptor_bytes().to_vec()
        } else {
            sense.bytes().to_vec()
        };
        bytes[0] |= u8::from(self.deferred);
        if let Some(information) = self.information {
            let information = information.to_be_bytes();
            if descriptor {
                // SPC-4 §4.5.2.2: information descriptor, VALID.
                bytes[7] = 12;
                bytes.extend([0, 10, 0x80, 0, 0, 0, 0, 0]);
                bytes.extend(information);
            } else {
                bytes[0] |= 0x80;
                bytes[3..7].copy_from_slice(&information);
            }
        }
        bytes
    }
}

/// Key, additional code, qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sense(pub(super) u8, pub(super) u8, pub(super) u8);

impl Sense {
    /// Fixed format, SPC-4 §4.5.3.
    pub(super) fn bytes(self) -> [u8; 18] {
        let mut bytes = [0; 18];
        bytes[0] = 0x70;
        bytes[2] = self.0;
        bytes[7] = 10;
        bytes[12] = self.1;
        bytes[13] = self.2;
        bytes
    }

    /// Descriptor format without descriptors, SPC-4 §4.5.2.
    fn descriptor_bytes(self) -> [u8; 8] {
        [0x72, self.0, self.1, self.2, 0, 0, 0, 0]
    }
}

/// The first look at a command. `pending` is the unit attention that REQUEST SENSE would report, `port` the tag of the
/// portal group if there are several.
pub(super) fn plan(disk: &Disk, cdb: &[u8; 16], pending: Option<Sense>, port: Option<u16>) -> Plan {
    let done = |answer: Result<Vec<u8>, Sense>| {
        Plan::Done(answer.map_or_else(Answer::check, Answer::good))
    };
    match cdb[0] {
        op::TEST_UNIT_READY | op::SYNCHRONIZE_CACHE_10 | op::SYNCHRONIZE_CACHE_16 => {
            done(flush(disk, cdb))
        }
        op::REQUEST_SENSE => {
            // SPC-4 §6.39: DESC asks for descriptor format.
            let sense = Answer::check(pending.unwrap_or(Sense(0, 0, 0)));
            let sense = sense.sense_bytes(cdb[1] & 1 != 0);
            done(Ok(clipped(sense, usize::from(cdb[4]))))
        }
        op::INQUIRY => done(pages::inquiry(Some(disk), cdb, port)),
        op::MODE_SENSE_6 | op::MODE_SENSE_10 => done(pages::mode_sense(disk, cdb)),
        op::READ_CAPACITY_10 => done(capacity_10(disk, cdb)),
        op::SERVICE_ACTION_IN_16 if cdb[1] & 0x1f == op::READ_CAPACITY_16 => {
            done(Ok(clipped(capacity_16(disk), length_32(cdb, 10))))
        }
        op::SERVICE_ACTION_IN_16 if cdb[1] & 0x1f == op::GET_LBA_STATUS => {
            done(compare::lba_status(disk, cdb))
        }
        op::COMPARE_AND_WRITE => match writable(disk).and_then(|()| compare::range(disk, cdb)) {
            Ok((_, bytes)) => Plan::Take { bytes: bytes * 2 },
            Err(sense) => done(Err(sense)),
        },
        op::PERSISTENT_RESERVE_OUT => Plan::Take {
            bytes: length_32(cdb, 5),
        },
        op::MAINTENANCE_IN if cdb[1] & 0x1f == op::REPORT_SUPPORTED_OPERATION_CODES => {
            done(opcodes::report(cdb))
        }
        op::READ_6 | op::READ_10 | op::READ_12 | op::READ_16 => match checked(disk, cdb) {
            Ok((at, bytes)) => Plan::Read { at, bytes },
            Err(sense) => done(Err(sense)),
        },
        op::WRITE_6 | op::WRITE_10 | op::WRITE_12 | op::WRITE_16 => {
            match writable(disk).and_then(|()| checked(disk, cdb)) {
                Ok((_, bytes)) => Plan::Take { bytes },
                Err(sense) => done(Err(sense)),
            }
        }
        op::WRITE_SAME_10 | op::WRITE_SAME_16 => {
            match writable(disk).and_then(|()| same_range(disk, cdb)) {
                Ok(_) if has_no_data(cdb) => Plan::Done(finish(disk, cdb, &[])),
                Ok(_) => Plan::Take { bytes: block(disk) },
                Err(sense) => done(Err(sense)),
            }
        }
        // SBC-3 5.28: the anchor bit needs ANC_SUP, which VPD B2h denies.
        op::UNMAP if cdb[1] & 1 != 0 => done(Err(INVALID_FIELD)),
        op::UNMAP => match writable(disk) {
            Ok(()) => Plan::Take {
                bytes: usize::from(u16::from_be_bytes([cdb[7], cdb[8]])),
            },
            Err(sense) => done(Err(sense)),
        },
        _ => done(Err(INVALID_OPCODE)),
    }
}

/// What a LUN that is not there says (SPC-4 §6.4.1: INQUIRY answers, qualifier 011b), and the list of those that are.
pub(super) fn plan_absent(cdb: &[u8; 16], luns: &[u16]) -> Plan {
    let answer = match cdb[0] {
        op::INQUIRY => pages::inquiry(None, cdb, None),
        op::REPORT_LUNS => report_luns(luns, cdb),
        op::REQUEST_SENSE => Ok(clipped(NO_SUCH_LUN.bytes().to_vec(), usize::from(cdb[4]))),
        _ => Err(NO_SUCH_LUN),
    };
    Plan::Done(answer.map_or_else(Answer::check, Answer::good))
}

/// Carries out what was planned, with the initiator's data. Less data than planned (the initiator said so in the
/// expected transfer length) writes the whole blocks that came.
pub(super) fn finish(disk: &Disk, cdb: &[u8; 16], data: &[u8]) -> Answer {
    let result = match cdb[0] {
        op::WRITE_SAME_10 | op::WRITE_SAME_16 => write_same(disk, cdb, data),
        op::UNMAP => unmap(disk, data),
        op::COMPARE_AND_WRITE => return compare::compare_and_write(disk, cdb, data),
        _ => write(disk, cdb, data),
    };
    match result {
        Ok(()) => Answer::good(Vec::new()),
        Err(sense) => Answer::check(sense),
    }
}

/// Whether a command reports a waiting unit attention instead of running (SAM-5 §5.14).
pub(super) fn reports_attention(opcode: u8) -> bool {
    !matches!(opcode, op::INQUIRY | op::REPORT_LUNS | op::REQUEST_SENSE)
}

/// Whether a command may want data from the initiator.
pub(super) fn takes_data(cdb: &[u8; 16]) -> bool {
    match cdb[0] {
        op::WRITE_SAME_16 => !has_no_data(cdb),
        opcode => matches!(
            opcode,
            op::WRITE_6
                | op::WRITE_10
                | op::WRITE_12
                | op::WRITE_16
                | op::WRITE_SAME_10
                | op::UNMAP
                | op::COMPARE_AND_WRITE
                | op::PERSISTENT_RESERVE_OUT
        ),
    }
}

/// Whether a command must find exactly the data that it wants: lists have no part that could be obeyed.
pub(super) fn wants_all(opcode: u8) -> bool {
    matches!(
        opcode,
        op::WRITE_SAME_10 | op::WRITE_SAME_16 | op::COMPARE_AND_WRITE | op::PERSISTENT_RESERVE_OUT
    )
}

pub(super) fn clipped(mut data: Vec<u8>, most: usize) -> Vec<u8> {
    data.truncate(most);
    data
}

pub(super) fn length_32(cdb: &[u8; 16], at: usize) -> usize {
    let length = u32::from_be_bytes([cdb[at], cdb[at + 1], cdb[at + 2], cdb[at + 3]]);
    usize::try_from(length).unwrap_or(usize::MAX)
}

fn block(disk: &Disk) -> usize {
    usize::try_from(disk.block_size()).unwrap_or(usize::MAX)
}

fn writable(disk: &Disk) -> Result<(), Sense> {
    if disk.is_read_only() {
        Err(WRITE_PROTECTED)
    } else {
        Ok(())
    }
}

fn flush(disk: &Disk, cdb: &[u8; 16]) -> Result<Vec<u8>, Sense> {
    if cdb[0] != op::TEST_UNIT_READY {
        let (lba, blocks) = extent(cdb);
        in_range(disk, lba, blocks)?;
        disk.flush().map_err(|_| MEDIUM_ERROR)?;
    }
    Ok(Vec::new())
}

/// The range of a READ or WRITE in bytes.
fn checked(disk: &Disk, cdb: &[u8; 16]) -> Result<(u64, usize), Sense> {
    let six = matches!(cdb[0], op::READ_6 | op::WRITE_6);
    // RDPROTECT, WRPROTECT: the disk is not formatted with protection information.
    if !six && cdb[1] >> 5 != 0 {
        return Err(INVALID_FIELD);
    }
    let (lba, blocks) = extent(cdb);
    in_range(disk, lba, blocks)?;
    let bytes = usize::try_from(blocks)
        .unwrap_or(usize::MAX)
        .saturating_mul(block(disk));
    if bytes > TRANSFER_BYTES_MAX {
        return Err(INVALID_FIELD);
    }
    Ok((lba * u64::from(disk.block_size()), bytes))
}

/// LBA and count, by the four lengths of CDB.
fn extent(cdb: &[u8; 16]) -> (u64, u64) {
    let short = u64::from(u32::from_be_bytes([cdb[2], cdb[3], cdb[4], cdb[5]]));
    match cdb[0] >> 5 {
        0 => {
            let lba = u32::from_be_bytes([0, cdb[1] & 0x1f, cdb[2], cdb[3]]);
            let count = if cdb[4] == 0 { 256 } else { u64::from(cdb[4]) };
            (u64::from(lba), count)
        }
        1 | 2 => (short, u64::from(u16::from_be_bytes([cdb[7], cdb[8]]))),
        5 => (
            short,
            u64::from(u32::from_be_bytes([cdb[6], cdb[7], cdb[8], cdb[9]])),
        ),
        _ => {
            let high = u64::from(u32::from_be_bytes([cdb[2], cdb[3], cdb[4], cdb[5]])) << 32;
            let low = u64::from(u32::from_be_bytes([cdb[6], cdb[7], cdb[8], cdb[9]]));
            let count = u32::from_be_bytes([cdb[10], cdb[11], cdb[12], cdb[13]]);
            (high | low, u64::from(count))
        }
    }
}

fn in_range(disk: &Disk, lba: u64, blocks: u64) -> Result<(), Sense> {
    match lba.checked_add(blocks) {
        Some(end) if end <= disk.blocks() => Ok(()),
        Some(_) | None => Err(LBA_OUT_OF_RANGE),
    }
}

fn write(disk: &Disk, cdb: &[u8; 16], data: &[u8]) -> Result<(), Sense> {
    // Checked again: the disk may have shrunk while the data was on its way.
    let (at, bytes) = checked(disk, cdb)?;
    let whole = data.len().min(bytes) / block(disk) * block(disk);
    disk.write(at, &data[..whole]).map_err(|_| MEDIUM_ERROR)?;
    if cdb[0] != op::WRITE_6 && cdb[1] & FUA != 0 {
        disk.flush_range(at, u64::try_from(whole).unwrap_or(u64::MAX));
    }
    Ok(())
}

fn same_range(disk: &Disk, cdb: &[u8; 16]) -> Result<(u64, u64), Sense> {
    let (lba, blocks) = extent(cdb);
    // WRPROTECT, ANCHOR, PBDATA and LBDATA are not supported.
    if cdb[1] & 0xf6 != 0 {
        return Err(INVALID_FIELD);
    }
    in_range(disk, lba, blocks)?;
    // SBC-3 5.42: a count of zero is all to the end.
    let blocks = if blocks == 0 {
        disk.blocks() - lba
    } else {
        blocks
    };
    if blocks > pages::write_same_blocks_max(disk) {
        return Err(INVALID_FIELD);
    }
    Ok((lba, blocks))
}

/// NDOB, SBC-4: WRITE SAME(16) without a data-out buffer writes zeroes.
fn has_no_data(cdb: &[u8; 16]) -> bool {
    cdb[0] == op::WRITE_SAME_16 && cdb[1] & 1 != 0
}

fn write_same(disk: &Disk, cdb: &[u8; 16], data: &[u8]) -> Result<(), Sense> {
    let (lba, blocks) = same_range(disk, cdb)?;
    let size = u64::from(disk.block_size());
    let zeroes = data.iter().all(|byte| *byte == 0);
    if zeroes {
        return disk
            .zero(lba * size, blocks * size)
            .map_err(|_| MEDIUM_ERROR);
    }
    for lba in lba..lba + blocks {
        disk.write(lba * size, data).map_err(|_| MEDIUM_ERROR)?;
    }
    Ok(())
}

fn unmap(disk: &Disk, data: &[u8]) -> Result<(), Sense> {
    if data.is_empty() {
        return Ok(());
    }
    let Some(header) = data.first_chunk::<8>() else {
        return Err(PARAMETER_LIST_LENGTH);
    };
    let listed = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let list = &data[8..data.len().min(8 + listed / 16 * 16)];
    let (descriptors, _) = list.as_chunks::<16>();
    if descriptors.len() > pages::UNMAP_DESCRIPTORS_MAX {
        return Err(INVALID_PARAMETER);
    }
    let mut ranges = Vec::new();
    for descriptor in descriptors {
        let (lba, rest) = descriptor
            .split_first_chunk::<8>()
            .ok_or(INVALID_PARAMETER)?;
        let blocks = u64::from(u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]));
        let lba = u64::from_be_bytes(*lba);
        in_range(disk, lba, blocks)?;
        ranges.push((lba, blocks));
    }
    let total: u64 = ranges.iter().map(|(_, blocks)| blocks).sum();
    if total > pages::unmap_blocks_max(disk) {
        return Err(INVALID_PARAMETER);
    }
    let size = u64::from(disk.block_size());
    for (lba, blocks) in ranges {
        disk.zero(lba * size, blocks * size)
            .map_err(|_| MEDIUM_ERROR)?;
    }
    Ok(())
}

fn capacity_10(disk: &Disk, cdb: &[u8; 16]) -> Result<Vec<u8>, Sense> {
    // SBC-3 5.15: without PMI the LBA must be zero.
    if cdb[8] & 1 == 0 && cdb[2..6] != [0; 4] {
        return Err(INVALID_FIELD);
    }
    let last = u32::try_from(disk.blocks().saturating_sub(1)).unwrap_or(u32::MAX);
    let mut data = last.to_be_bytes().to_vec();
    data.extend(disk.block_size().to_be_bytes());
    Ok(data)
}

fn capacity_16(disk: &Disk) -> Vec<u8> {
    let mut data = vec![0; 32];
    data[..8].copy_from_slice(&disk.blocks().saturating_sub(1).to_be_bytes());
    data[8..12].copy_from_slice(&disk.block_size().to_be_bytes());
    // Logical blocks in a physical one of 4096 bytes, as a power of two.
    data[13] = u8::try_from(pages::granularity(disk).trailing_zeros()).unwrap_or(0);
    // LBPME and LBPRZ: thin, and trimmed blocks read as zero.
    data[14] = 0xc0;
    data
}

fn report_luns(luns: &[u16], cdb: &[u8; 16]) -> Result<Vec<u8>, Sense> {
    // Select report 00h, 01h (well-known only: none here) and 02h.
    if cdb[2] > 2 {
        return Err(INVALID_FIELD);
    }
    let luns = if cdb[2] == 1 { &[] } else { luns };
    let length = u32::try_from(luns.len() * 8).unwrap_or(u32::MAX);
    let mut data = length.to_be_bytes().to_vec();
    data.extend([0; 4]);
    for lun in luns {
        data.extend(super::pdu::lun_bytes(*lun));
    }
    Ok(clipped(data, length_32(cdb, 6)))
}

pub(super) const GOOD: u8 = 0x00;
pub(super) const CHECK_CONDITION: u8 = 0x02;
pub(super) const RESERVATION_CONFLICT: u8 = 0x18;
/// What VPD B0h promises; chosen freely, above all that an initiator here sends at once.
pub(super) const TRANSFER_BYTES_MAX: usize = 16 << 20;
const FUA: u8 = 0x08;

pub(super) const INVALID_FIELD: Sense = Sense(5, 0x24, 0);
pub(super) const INVALID_OPCODE: Sense = Sense(5, 0x20, 0);
pub(super) const SAVING_NOT_SUPPORTED: Sense = Sense(5, 0x39, 0);
pub(super) const NO_SUCH_LUN: Sense = Sense(5, 0x25, 0);
/// Bus device reset function occurred.
pub(super) const RESET: Sense = Sense(6, 0x29, 3);
/// Power on, reset or bus device reset occurred.
pub(super) const POWER_ON: Sense = Sense(6, 0x29, 0);
/// Capacity data has changed.
pub(super) const CAPACITY_CHANGED: Sense = Sense(6, 0x2a, 9);
/// Asymmetric access state changed.
pub(super) const ACCESS_CHANGED: Sense = Sense(6, 0x2a, 6);
/// RFC 7143 §11.4.7.2: data that was lost or out of order.
pub(super) const PROTOCOL_CRC: Sense = Sense(0xb, 0x47, 5);
const INVALID_PARAMETER: Sense = Sense(5, 0x26, 0);
pub(super) const PARAMETER_LIST_LENGTH: Sense = Sense(5, 0x1a, 0);
pub(super) const LBA_OUT_OF_RANGE: Sense = Sense(5, 0x21, 0);
const WRITE_PROTECTED: Sense = Sense(7, 0x27, 0);
pub(super) const MEDIUM_ERROR: Sense = Sense(3, 0x11, 0);

pub(super) mod op {
    pub(in super::super) const TEST_UNIT_READY: u8 = 0x00;
    pub(in super::super) const REQUEST_SENSE: u8 = 0x03;
    pub(in super::super) const READ_6: u8 = 0x08;
    pub(in super::super) const WRITE_6: u8 = 0x0a;
    pub(in super::super) const INQUIRY: u8 = 0x12;
    pub(in super::super) const MODE_SENSE_6: u8 = 0x1a;
    pub(in super::super) const READ_CAPACITY_10: u8 = 0x25;
    pub(in super::super) const READ_10: u8 = 0x28;
    pub(in super::super) const WRITE_10: u8 = 0x2a;
    pub(in super::super) const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub(in super::super) const WRITE_SAME_10: u8 = 0x41;
    pub(in super::super) const UNMAP: u8 = 0x42;
    pub(in super::super) const PERSISTENT_RESERVE_IN: u8 = 0x5e;
    pub(in super::super) const PERSISTENT_RESERVE_OUT: u8 = 0x5f;
    pub(in super::super) const COMPARE_AND_WRITE: u8 = 0x89;
    pub(in super::super) const GET_LBA_STATUS: u8 = 0x12;
    pub(in super::super) const REPORT_TARGET_PORT_GROUPS: u8 = 0x0a;
    pub(in super::super) const MODE_SENSE_10: u8 = 0x5a;
    pub(in super::super) const READ_16: u8 = 0x88;
    pub(in super::super) const WRITE_16: u8 = 0x8a;
    pub(in super::super) const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    pub(in super::super) const WRITE_SAME_16: u8 = 0x93;
    pub(in super::super) const SERVICE_ACTION_IN_16: u8 = 0x9e;
    pub(in super::super) const READ_CAPACITY_16: u8 = 0x10;
    pub(in super::super) const REPORT_LUNS: u8 = 0xa0;
    pub(in super::super) const MAINTENANCE_IN: u8 = 0xa3;
    pub(in super::super) const REPORT_SUPPORTED_OPERATION_CODES: u8 = 0x0c;
    pub(in super::super) const READ_12: u8 = 0xa8;
    pub(in super::super) const WRITE_12: u8 = 0xaa;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_from_all_four_lengths_of_cdb() {
        let cdbs: [(&[u8], u64, u64); 4] = [
            (&[op::READ_6, 0xe1, 2, 3, 0], 0x01_0203, 256),
            (&[op::READ_10, 0, 1, 2, 3, 4, 0, 5, 6], 0x0102_0304, 0x0506),
            (
                &[op::READ_12, 0, 1, 2, 3, 4, 0, 5, 6, 7],
                0x0102_0304,
                0x05_0607,
            ),
            (
                &[op::READ_16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 0, 8, 9, 10],
                0x0001_0203_0405_0607,
                0x08_090a,
            ),
        ];
        for (bytes, lba, blocks) in cdbs {
            let mut cdb = [0; 16];
            cdb[..bytes.len()].copy_from_slice(bytes);
            assert_eq!(extent(&cdb), (lba, blocks), "{bytes:x?}");
        }
    }
}
