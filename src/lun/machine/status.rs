//! GET LBA STATUS data as extents of the waist.
//!
//! A file of its own because a target's answer is judged here: it may begin early, have gaps, and end where it likes.
//! Source: SBC-4 5.6 (GET LBA STATUS), 4.7.4 (what reads of unmapped blocks give).

use bytes::BytesMut;
use iscsi::scsi::lba_status::{self, ProvisioningStatus};
use iscsi::scsi::{Blocks, Lba};

use crate::block::Extent;
use crate::lun::limits::Limits;

/// The header and 255 descriptors: within a page, and more than most questions need.
pub(super) const STATUS_BYTES: u32 = 8 + 255 * 16;
/// The same, for a buffer.
pub(super) const IN_MEMORY: usize = 8 + 255 * 16;

/// What the answer says of the range from its begin on, up to the first gap; perhaps nothing.
pub(super) fn extents(answer: &[u8], begin: Lba, blocks: Blocks, limits: &Limits) -> BytesMut {
    let mut packed = BytesMut::new();
    let mut at = begin.0;
    let end = begin.0 + u64::from(blocks.0);
    for told in lba_status::parse(answer).unwrap_or_default() {
        let from = told.extent.lba.0;
        let until = from
            .saturating_add(u64::from(told.extent.blocks.0))
            .min(end);
        if from > at || at == end {
            break;
        }
        let Some(blocks) = until.checked_sub(at).filter(|blocks| *blocks > 0) else {
            continue;
        };
        // An open registry: what we do not know is taken for data.
        let is_unmapped = matches!(
            told.provisioning,
            ProvisioningStatus::DEALLOCATED | ProvisioningStatus::ANCHORED
        );
        Extent {
            bytes: bytes_of(u32::try_from(blocks).unwrap_or(u32::MAX), limits),
            is_hole: told.provisioning == ProvisioningStatus::DEALLOCATED,
            reads_zero: is_unmapped && limits.unmapped_reads_zero,
        }
        .pack(&mut packed);
        at = until;
    }
    packed
}

/// One extent of data.
pub(super) fn assume_allocated(packed: &mut BytesMut, blocks: Blocks, limits: &Limits) {
    packed.clear();
    Extent {
        bytes: bytes_of(blocks.0, limits),
        is_hole: false,
        reads_zero: false,
    }
    .pack(packed);
}

/// The waist's ranges have at most `u32::MAX` bytes.
fn bytes_of(blocks: u32, limits: &Limits) -> u32 {
    let bytes = limits.block_length.bytes_of(Blocks(blocks)).0;
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lun::limits::tests::{info, thin};

    /// PARAMETER DATA LENGTH, and descriptors of LBA, blocks and status.
    fn answer(descriptors: &[(u64, u32, u8)]) -> Vec<u8> {
        let length = u32::try_from(4 + 16 * descriptors.len()).unwrap();
        let mut data = [&length.to_be_bytes()[..], &[0; 4]].concat();
        for (lba, blocks, status) in descriptors {
            data.extend_from_slice(&lba.to_be_bytes());
            data.extend_from_slice(&blocks.to_be_bytes());
            data.extend_from_slice(&[*status, 0, 0, 0]);
        }
        data
    }

    fn told(descriptors: &[(u64, u32, u8)], limits: &Limits) -> Vec<(u32, bool, bool)> {
        let packed = extents(&answer(descriptors), Lba(10), Blocks(20), limits);
        Extent::unpack(&packed)
            .map(|extent| (extent.bytes / 512, extent.is_hole, extent.reads_zero))
            .collect()
    }

    #[test]
    fn an_answer_is_cut_to_the_range_and_joined() {
        let limits = Limits::of(&thin(), false);
        assert_eq!(
            told(&[(0, 12, 0), (12, 4, 1), (16, 2, 1), (18, 100, 2)], &limits),
            [(2, false, false), (6, true, true), (12, false, true)]
        );
        // What is unmapped need not read as zeroes; an unknown status is data.
        let limits = Limits::of(&info(), false);
        assert_eq!(
            told(&[(10, 4, 1), (14, 6, 9)], &limits),
            [(4, true, false), (6, false, false)]
        );
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_believed_up_to_there() {
        let limits = Limits::of(&thin(), false);
        assert_eq!(told(&[], &limits), []);
        assert_eq!(told(&[(11, 4, 1)], &limits), [], "a gap at the begin");
        assert_eq!(
            told(&[(10, 4, 1), (16, 4, 1)], &limits),
            [(4, true, true)],
            "a gap"
        );
        assert_eq!(
            told(&[(0, 10, 1), (10, u32::MAX, 0), (30, 5, 1)], &limits),
            [(20, false, false)]
        );
        assert_eq!(told(&[(u64::MAX, u32::MAX, 1)], &limits), []);
        assert!(extents(&[1, 2], Lba(0), Blocks(1), &limits).is_empty());
    }
}
