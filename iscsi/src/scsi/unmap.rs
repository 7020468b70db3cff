//! UNMAP: its parameter list, and the commands that a wish to unmap becomes within a unit's limits.
//!
//! Source: SBC-4 5.35 (UNMAP), 6.6.4 (Block Limits: maxima, granularity, alignment).
//!
//! Invariants:
//! 1. The commands cover what was asked for once, and nothing else.
//! 2. A cut within an extent lies where a group of blocks begins, if the limits leave room for that: a unit may pass
//!    over parts of groups, so that a cut elsewhere would keep a group allocated.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{Blocks, Lba};

/// A range of blocks, `lba..lba + blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The first block.
    pub lba: Lba,
    /// How many.
    pub blocks: Blocks,
}

/// What a unit takes in one UNMAP command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnmapLimits {
    /// The most blocks, over all descriptors.
    pub blocks_max: Blocks,
    /// The most descriptors.
    pub descriptors_max: u32,
    /// Blocks are given back in groups of so many; at least one.
    pub granularity: u32,
    /// The first block of a group, below the granularity.
    pub alignment: u32,
}

impl UnmapLimits {
    /// The extents, command by command. Empty extents are passed over.
    ///
    /// # Panics
    /// Never: limits of zero are taken as one.
    pub fn commands(self, extents: &[Extent]) -> impl Iterator<Item = Vec<Extent>> {
        let mut wanted = extents
            .iter()
            .copied()
            .filter(|extent| extent.blocks.0 > 0)
            .collect::<std::collections::VecDeque<_>>();
        std::iter::from_fn(move || {
            let command = self.take_command(&mut wanted);
            (!command.is_empty()).then_some(command)
        })
    }

    fn take_command(self, wanted: &mut std::collections::VecDeque<Extent>) -> Vec<Extent> {
        let descriptors_max = usize::try_from(self.descriptors_max)
            .unwrap_or(usize::MAX)
            .clamp(1, DESCRIPTORS_MAX);
        let mut room = self.blocks_max.0.max(1);
        let mut command = Vec::new();
        while command.len() < descriptors_max
            && room > 0
            && let Some(extent) = wanted.pop_front()
        {
            let Some(piece) = self.piece(extent, room, command.is_empty()) else {
                wanted.push_front(extent);
                break;
            };
            command.push(Extent {
                blocks: piece,
                ..extent
            });
            room -= piece.0;
            let left = Blocks(extent.blocks.0 - piece.0);
            if left.0 > 0
                && let Some(lba) = extent.lba.checked_add(piece)
            {
                wanted.push_front(Extent { lba, blocks: left });
            }
        }
        command
    }

    /// How much of the extent goes into the room that is left; `None`: it had better begin the next command.
    fn piece(self, extent: Extent, room: u32, is_first: bool) -> Option<Blocks> {
        if extent.blocks.0 <= room {
            return Some(extent.blocks);
        }
        let granularity = u64::from(self.granularity.max(1));
        let end = extent.lba.0.saturating_add(u64::from(room));
        let alignment = u64::from(self.alignment) % granularity;
        // How far the cut lies behind the beginning of a group.
        let beyond = (end % granularity + granularity - alignment) % granularity;
        match u32::try_from(beyond) {
            Ok(beyond) if beyond < room => Some(Blocks(room - beyond)),
            // Not even one group ends within the room.
            Ok(_) | Err(_) => is_first.then_some(Blocks(room)),
        }
    }
}

/// The parameter list of UNMAP (SBC-4 5.35.2); at most `DESCRIPTORS_MAX` extents, more are left out.
pub fn list(extents: &[Extent]) -> Bytes {
    let extents = extents.get(..DESCRIPTORS_MAX).unwrap_or(extents);
    let bytes = list_bytes(extents);
    let mut list = BytesMut::with_capacity(usize::from(bytes));
    // UNMAP DATA LENGTH counts what follows it, UNMAP BLOCK DESCRIPTOR DATA LENGTH the descriptors.
    list.put_u16(bytes - 2);
    list.put_u16(bytes - HEADER_BYTES);
    list.put_u32(0);
    for Extent { lba, blocks } in extents {
        list.put_u64(lba.0);
        list.put_u32(blocks.0);
        list.put_u32(0);
    }
    list.freeze()
}

/// The length of `list`, for the CDB.
pub fn list_bytes(extents: &[Extent]) -> u16 {
    let descriptors = u16::try_from(extents.len().min(DESCRIPTORS_MAX)).unwrap_or(u16::MAX);
    HEADER_BYTES + descriptors * DESCRIPTOR_BYTES
}

/// As many as a list of 65535 bytes could hold are more than any unit takes; this keeps a list within 4 KiB, which
/// every target takes as immediate data.
pub const DESCRIPTORS_MAX: usize = 255;

const HEADER_BYTES: u16 = 8;
const DESCRIPTOR_BYTES: u16 = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extent(lba: u64, blocks: u32) -> Extent {
        Extent {
            lba: Lba(lba),
            blocks: Blocks(blocks),
        }
    }

    fn limits(blocks: u32, descriptors: u32, granularity: u32, alignment: u32) -> UnmapLimits {
        UnmapLimits {
            blocks_max: Blocks(blocks),
            descriptors_max: descriptors,
            granularity,
            alignment,
        }
    }

    fn commands(limits: UnmapLimits, extents: &[Extent]) -> Vec<Vec<(u64, u32)>> {
        limits
            .commands(extents)
            .map(|command| {
                command
                    .iter()
                    .map(|extent| (extent.lba.0, extent.blocks.0))
                    .collect()
            })
            .collect()
    }

    /// Written from SBC-4 table 106.
    #[test]
    fn the_list_counts_itself() {
        assert_eq!(list(&[]), [0, 6, 0, 0, 0, 0, 0, 0][..]);
        let two = list(&[extent(0x0102_0304_0506_0708, 0x1112_1314), extent(1, 2)]);
        assert_eq!(
            two[..],
            [
                0, 38, 0, 32, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0, 0, 0,
                0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0
            ]
        );
        assert_eq!(list_bytes(&[extent(0, 1); 2]), 40);
        let many = list(&[extent(0, 1); 300]);
        assert_eq!(many.len(), 8 + 255 * 16);
        assert_eq!(many[..4], [0x0F, 0xF6, 0x0F, 0xF0]);
    }

    #[test]
    fn descriptors_share_a_command_within_both_maxima() {
        let asked = [
            extent(0, 10),
            extent(100, 10),
            extent(200, 0),
            extent(300, 10),
        ];
        assert_eq!(
            commands(limits(1000, 2, 1, 0), &asked),
            [vec![(0, 10), (100, 10)], vec![(300, 10)]]
        );
        assert_eq!(
            commands(limits(15, 10, 1, 0), &asked),
            [vec![(0, 10), (100, 5)], vec![(105, 5), (300, 10)]]
        );
        assert_eq!(commands(limits(15, 10, 1, 0), &[]), Vec::<Vec<_>>::new());
    }

    #[test]
    fn cuts_lie_between_groups() {
        // Groups begin at 4, 12, 20, ...
        assert_eq!(
            commands(limits(20, 1, 8, 4), &[extent(1, 40)]),
            [vec![(1, 19)], vec![(20, 16)], vec![(36, 5)]]
        );
        // What does not fit any more begins the next command whole.
        assert_eq!(
            commands(limits(10, 4, 8, 0), &[extent(0, 8), extent(64, 8)]),
            [vec![(0, 8)], vec![(64, 8)]]
        );
        // A group that is larger than a command may be is cut all the same.
        assert_eq!(
            commands(limits(4, 1, 8, 0), &[extent(1, 7)]),
            [vec![(1, 4)], vec![(5, 3)]]
        );
    }

    #[test]
    fn absurd_limits_still_end() {
        assert_eq!(
            commands(limits(0, 0, 0, 7), &[extent(5, 2)]),
            [vec![(5, 1)], vec![(6, 1)]]
        );
        let whole = commands(
            limits(u32::MAX, u32::MAX, u32::MAX, 0),
            &[extent(u64::MAX - 8, 8), extent(0, u32::MAX)],
        );
        assert_eq!(
            whole
                .iter()
                .flatten()
                .map(|(_, blocks)| u64::from(*blocks))
                .sum::<u64>(),
            u64::from(u32::MAX) + 8
        );
    }

    proptest! {
        #[test]
        fn commands_cover_the_extents_once_within_the_limits(
            blocks_max in 1u32..100,
            descriptors_max in 1u32..5,
            granularity in 0u32..20,
            alignment in 0u32..20,
            extents in proptest::collection::vec((0u64..1 << 40, 0u32..300), 0..6),
        ) {
            let limits = limits(blocks_max, descriptors_max, granularity, alignment);
            let asked: Vec<Extent> = extents.iter().map(|(lba, blocks)| extent(*lba, *blocks)).collect();
            let mut covered = Vec::new();
            for command in limits.commands(&asked) {
                prop_assert!(command.len() <= usize::try_from(descriptors_max).unwrap());
                let blocks: u32 = command.iter().map(|extent| extent.blocks.0).sum();
                prop_assert!(blocks > 0 && blocks <= blocks_max);
                covered.extend(command.iter().flat_map(|extent| {
                    (0..u64::from(extent.blocks.0)).map(|at| extent.lba.0 + at)
                }));
            }
            let wanted: Vec<u64> = asked
                .iter()
                .flat_map(|extent| (0..u64::from(extent.blocks.0)).map(|at| extent.lba.0 + at))
                .collect();
            prop_assert_eq!(covered, wanted);
        }
    }
}
