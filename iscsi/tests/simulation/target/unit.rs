//! A logical unit: who it is, what it holds, and the commands that move no user data.
//!
//! Source: SPC-4 §6.6 (INQUIRY), §7.8 (VPD), SBC-4 §5.16 (READ CAPACITY), §6.5.5 (caching page).
//!
//! Invariant: a block is written whole or not at all.

use std::collections::BTreeMap;

/// Bytes of a logical block.
pub(crate) const BLOCK: usize = 512;

/// One logical unit.
#[derive(Debug)]
pub(crate) struct Unit {
    /// Tells it from all others: serial number and the end of its NAA name.
    pub(crate) identity: u32,
    pub(crate) blocks: u64,
    has_cache: bool,
    medium: BTreeMap<u64, Vec<u8>>,
    /// Blocks that are not on the medium yet.
    cache: BTreeMap<u64, Vec<u8>>,
}

/// What a command ends with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Good(Vec<u8>),
    Check(Sense),
    Status(u8),
}

/// Sense key, ASC and ASCQ.
pub(super) type Sense = (u8, u8, u8);

impl Unit {
    pub(crate) fn new(identity: u32, blocks: u64, has_cache: bool) -> Self {
        Self {
            identity,
            blocks,
            has_cache,
            medium: BTreeMap::new(),
            cache: BTreeMap::new(),
        }
    }

    /// What a read gives.
    pub(crate) fn block(&self, lba: u64) -> &[u8] {
        self.cache
            .get(&lba)
            .map_or_else(|| self.durable(lba), Vec::as_slice)
    }

    /// What a loss of power leaves.
    pub(crate) fn durable(&self, lba: u64) -> &[u8] {
        self.medium.get(&lba).map_or(&[0; BLOCK], Vec::as_slice)
    }

    pub(super) fn write(&mut self, lba: u64, block: &[u8], is_forced: bool) {
        if self.has_cache && !is_forced {
            self.cache.insert(lba, block.to_vec());
        } else {
            self.cache.remove(&lba);
            self.medium.insert(lba, block.to_vec());
        }
    }

    pub(super) fn flush(&mut self) {
        self.medium.append(&mut self.cache);
    }

    /// Commands without user data.
    pub(super) fn answer(&mut self, cdb: &[u8; 16]) -> Outcome {
        match cdb[0] {
            TEST_UNIT_READY => Outcome::Good(Vec::new()),
            INQUIRY => self.inquire(cdb),
            MODE_SENSE_6 => {
                let mut data = vec![0, 0, 0, 0];
                data.extend(self.caching_page(cdb[2]));
                data[0] = u8::try_from(data.len() - 1).expect("one page");
                Outcome::Good(clip(data, usize::from(cdb[4])))
            }
            MODE_SENSE_10 => {
                let mut data = vec![0; 8];
                data.extend(self.caching_page(cdb[2]));
                data[1] = u8::try_from(data.len() - 2).expect("one page");
                Outcome::Good(clip(data, number(&cdb[7..9])))
            }
            SERVICE_ACTION_IN if cdb[1] & 0x1f == READ_CAPACITY => {
                let mut data = (self.blocks - 1).to_be_bytes().to_vec();
                data.extend(u32::try_from(BLOCK).expect("512").to_be_bytes());
                data.resize(32, 0);
                Outcome::Good(clip(data, number(&cdb[10..14])))
            }
            SYNCHRONIZE_CACHE_10 | SYNCHRONIZE_CACHE_16 => {
                self.flush();
                Outcome::Good(Vec::new())
            }
            _ => Outcome::Check(INVALID_OPERATION_CODE),
        }
    }

    fn inquire(&self, cdb: &[u8; 16]) -> Outcome {
        let allocation = number(&cdb[3..5]);
        let serial = format!("model-{:08x}", self.identity).into_bytes();
        let page = match (cdb[1] & 1, cdb[2]) {
            (0, _) => {
                let mut data = vec![0, 0, 6, 2, 31, 0, 0, 2];
                data.extend(b"MODEL   INVENTED DISK   0001");
                return Outcome::Good(clip(data, allocation));
            }
            (_, 0x00) => vec![0x00, 0x80, 0x83],
            (_, 0x80) => serial,
            (_, 0x83) => {
                let mut naa = vec![0x01, 0x03, 0, 8, 0x50, 0, 0, 0];
                naa.extend(self.identity.to_be_bytes());
                naa
            }
            _ => return Outcome::Check(INVALID_FIELD_IN_CDB),
        };
        let mut data = vec![0, cdb[2], 0, u8::try_from(page.len()).expect("short")];
        data.extend(page);
        Outcome::Good(clip(data, allocation))
    }

    fn caching_page(&self, page: u8) -> Vec<u8> {
        if !matches!(page & 0x3f, 0x08 | 0x3f) {
            return Vec::new();
        }
        let mut data = vec![0; 20];
        data[0] = 0x08;
        data[1] = 18;
        data[2] = u8::from(self.has_cache) << 2;
        data
    }
}

/// REPORT LUNS of a target with one unit.
pub(super) fn report_luns(cdb: &[u8; 16], lun: u16) -> Outcome {
    let mut data = vec![0, 0, 0, 8, 0, 0, 0, 0];
    data.extend(lun.to_be_bytes());
    data.resize(16, 0);
    Outcome::Good(clip(data, number(&cdb[6..10])))
}

/// First block and number of blocks of READ(16) and WRITE(16).
pub(super) fn range(cdb: &[u8; 16]) -> (u64, u64) {
    let lba = cdb[2..10]
        .iter()
        .fold(0, |lba, byte| lba << 8 | u64::from(*byte));
    let blocks = u64::try_from(number(&cdb[10..14])).expect("32 bits");
    (lba, blocks)
}

/// Whether a command reads, writes or flushes user data.
pub(super) fn is_medium_access(cdb: &[u8; 16]) -> bool {
    matches!(
        cdb[0],
        READ_16 | WRITE_16 | SYNCHRONIZE_CACHE_10 | SYNCHRONIZE_CACHE_16 | UNMAP | WRITE_SAME_16
    )
}

/// SPC-4 §5.3.6, SAM-5 §5.14: these pass a pending unit attention by.
pub(super) fn passes_attention(cdb: &[u8; 16]) -> bool {
    matches!(cdb[0], INQUIRY | REPORT_LUNS | REQUEST_SENSE)
}

fn number(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | usize::from(*byte))
}

fn clip(mut data: Vec<u8>, allocation: usize) -> Vec<u8> {
    data.truncate(allocation);
    data
}

pub(super) const TEST_UNIT_READY: u8 = 0x00;
pub(super) const REQUEST_SENSE: u8 = 0x03;
pub(super) const INQUIRY: u8 = 0x12;
pub(super) const MODE_SENSE_6: u8 = 0x1a;
pub(super) const SYNCHRONIZE_CACHE_10: u8 = 0x35;
pub(super) const UNMAP: u8 = 0x42;
pub(super) const MODE_SENSE_10: u8 = 0x5a;
pub(super) const READ_16: u8 = 0x88;
pub(super) const WRITE_16: u8 = 0x8a;
pub(super) const SYNCHRONIZE_CACHE_16: u8 = 0x91;
pub(super) const WRITE_SAME_16: u8 = 0x93;
pub(super) const SERVICE_ACTION_IN: u8 = 0x9e;
pub(super) const REPORT_LUNS: u8 = 0xa0;
/// Service action of READ CAPACITY(16).
const READ_CAPACITY: u8 = 0x10;

pub(super) const INVALID_OPERATION_CODE: Sense = (0x05, 0x20, 0x00);
pub(super) const LBA_OUT_OF_RANGE: Sense = (0x05, 0x21, 0x00);
pub(super) const INVALID_FIELD_IN_CDB: Sense = (0x05, 0x24, 0x00);
pub(super) const UNIT_NOT_SUPPORTED: Sense = (0x05, 0x25, 0x00);
pub(super) const POWER_ON_OCCURRED: Sense = (0x06, 0x29, 0x00);
pub(super) const BECOMING_READY: Sense = (0x02, 0x04, 0x01);
pub(super) const COMMAND_PHASE_ERROR: Sense = (0x0b, 0x4a, 0x00);
pub(super) const BUSY: u8 = 0x08;
pub(super) const TASK_SET_FULL: u8 = 0x28;
