//! GET LBA STATUS parameter data: which blocks are mapped.
//!
//! Source: SBC-4 5.6.2. Many targets do not know the command: whoever asks remembers that (`client::Disk`).

use super::field::{u8_at, u32_at, u64_at};
use super::unmap::Extent;
use super::{Blocks, Lba, Violation};

/// One LBA status descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LbaStatus {
    /// The blocks that it speaks of.
    pub extent: Extent,
    /// What they are.
    pub provisioning: ProvisioningStatus,
}

/// PROVISIONING STATUS, four bits; an open registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProvisioningStatus(pub u8);

impl ProvisioningStatus {
    /// The blocks hold data, or it is not told.
    pub const MAPPED: Self = Self(0x0);
    /// They are unmapped.
    pub const DEALLOCATED: Self = Self(0x1);
    /// They hold no data and have their space.
    pub const ANCHORED: Self = Self(0x2);
}

/// The descriptors, as many whole ones as came, without those of no blocks.
///
/// # Errors
/// `TooShort` if the header is not whole.
pub fn parse(data: &[u8]) -> Result<Vec<LbaStatus>, Violation> {
    let list = data.get(HEADER_BYTES..).ok_or(Violation::TooShort {
        what: "the GET LBA STATUS data",
        have: data.len(),
        need: HEADER_BYTES,
    })?;
    // PARAMETER DATA LENGTH counts from byte 4; it may exceed what the allocation length let through.
    let told = usize::try_from(u32_at(data, 0)).unwrap_or(usize::MAX);
    let told = told.saturating_sub(HEADER_BYTES - LENGTH_BYTES);
    let list = list.get(..told).unwrap_or(list);
    Ok(list
        .chunks_exact(DESCRIPTOR_BYTES)
        .map(|descriptor| LbaStatus {
            extent: Extent {
                lba: Lba(u64_at(descriptor, 0)),
                blocks: Blocks(u32_at(descriptor, 8)),
            },
            provisioning: ProvisioningStatus(u8_at(descriptor, 12) & 0x0F),
        })
        .filter(|status| status.extent.blocks.0 > 0)
        .collect())
}

/// PARAMETER DATA LENGTH.
const LENGTH_BYTES: usize = 4;
/// The length and four bytes of which we read none.
const HEADER_BYTES: usize = 8;
const DESCRIPTOR_BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn data() -> Vec<u8> {
        let mut data = vec![0, 0, 0, 36, 0, 0, 0, 0];
        data.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0, 0]);
        data.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 10, 0, 0, 1, 0, 0xF1, 0, 0, 0]);
        data
    }

    #[test]
    fn descriptors_are_read_from_their_places() {
        let extent = |lba, blocks| Extent {
            lba: Lba(lba),
            blocks: Blocks(blocks),
        };
        assert_eq!(
            parse(&data()).unwrap(),
            [
                LbaStatus {
                    extent: extent(0x1_0000_0002, 8),
                    provisioning: ProvisioningStatus::MAPPED
                },
                LbaStatus {
                    extent: extent(0x1_0000_000A, 256),
                    provisioning: ProvisioningStatus::DEALLOCATED
                },
            ]
        );
    }

    #[test]
    fn lengths_that_lie_are_endured() {
        // Cut off by the allocation length.
        assert_eq!(parse(&data()[..39]).unwrap().len(), 1);
        // The length hides the second.
        let mut hidden = data();
        hidden[3] = 20;
        assert_eq!(parse(&hidden).unwrap().len(), 1);
        hidden[..4].fill(0xFF);
        assert_eq!(parse(&hidden).unwrap().len(), 2);
        hidden[..4].fill(0);
        assert_eq!(parse(&hidden).unwrap(), []);
        // A descriptor of no blocks would have its reader ask for ever.
        let mut empty = data();
        empty[8 + 8..8 + 12].fill(0);
        assert_eq!(parse(&empty).unwrap().len(), 1);
        assert!(parse(&data()[..7]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_endured(data in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(statuses) = parse(&data) {
                prop_assert!(statuses.len() <= data.len() / DESCRIPTOR_BYTES);
            }
        }
    }
}
