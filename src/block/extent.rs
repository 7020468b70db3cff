//! A stretch of a device and how it is provisioned, and many of them packed into the buffer of a completion.
//!
//! A file of its own because the packing is the one thing of the waist that has a layout: both sides rely on it.
//! Source: `proto.md: Metadata querying, "base:" metadata context`: the packing is what goes on the wire.

use bytes::{BufMut, BytesMut};

/// A stretch of a device and how it is provisioned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, not zero.
    pub bytes: u32,
    /// No space is taken.
    pub is_hole: bool,
    /// It reads as zeroes.
    pub reads_zero: bool,
}

impl Extent {
    /// Length of one when packed: u32 length, u32 state, big-endian.
    pub const PACKED_BYTES: usize = 8;

    /// Adds it to those that are packed already; one of the same kind as the last makes that longer.
    pub fn pack(self, into: &mut BytesMut) {
        let last = into
            .len()
            .checked_sub(Self::PACKED_BYTES)
            .and_then(|at| Self::unpack(&into[at..]).next());
        if let Some(last) = last
            && last.state() == self.state()
            && let Some(bytes) = last.bytes.checked_add(self.bytes)
        {
            into.truncate(into.len() - Self::PACKED_BYTES);
            into.put_u32(bytes);
        } else {
            into.put_u32(self.bytes);
        }
        into.put_u32(self.state());
    }

    /// Those that are packed; bytes at the end that are no whole extent are left out.
    pub fn unpack(packed: &[u8]) -> impl Iterator<Item = Self> {
        let (extents, _) = packed.as_chunks::<{ Self::PACKED_BYTES }>();
        extents.iter().map(|&[a, b, c, d, .., state]| Self {
            bytes: u32::from_be_bytes([a, b, c, d]),
            is_hole: state & HOLE != 0,
            reads_zero: state & ZERO != 0,
        })
    }

    fn state(self) -> u32 {
        let bit = |set: bool, bit: u8| if set { u32::from(bit) } else { 0 };
        bit(self.is_hole, HOLE) | bit(self.reads_zero, ZERO)
    }
}

// proto.md: "base:allocation": NBD_STATE_HOLE and NBD_STATE_ZERO, in the last byte of four.
const HOLE: u8 = 1;
const ZERO: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(bytes: u32, is_hole: bool, reads_zero: bool) -> Extent {
        Extent {
            bytes,
            is_hole,
            reads_zero,
        }
    }

    #[test]
    fn extents_are_packed_as_the_protocol_lays_them_out() {
        let mut packed = BytesMut::new();
        let extents = [
            extent(512, false, false),
            extent(0x1_0000, true, true),
            extent(4096, false, true),
        ];
        for extent in extents {
            extent.pack(&mut packed);
        }
        assert_eq!(
            packed[..],
            [
                0, 0, 2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 3, 0, 0, 0x10, 0, 0, 0, 0, 2
            ]
        );
        assert!(Extent::unpack(&packed).eq(extents));
    }

    #[test]
    fn neighbours_of_one_kind_are_one() {
        let mut packed = BytesMut::new();
        extent(512, true, true).pack(&mut packed);
        extent(1024, true, true).pack(&mut packed);
        extent(512, true, false).pack(&mut packed);
        // A length that would not fit stays apart.
        extent(u32::MAX, true, false).pack(&mut packed);
        let unpacked: Vec<_> = Extent::unpack(&packed).map(|one| one.bytes).collect();
        assert_eq!(unpacked, [1536, 512, u32::MAX]);
        assert_eq!(Extent::unpack(&packed[..15]).count(), 1);
    }
}
