//! What a LUN can do and how much of it in one command, and the geometry that follows for the waist.
//!
//! Source: SBC-4 6.6.4 (Block Limits), 6.6.6 (Logical Block Provisioning), 5.20 (READ CAPACITY(16)), 6.5.1 (mode
//! parameter header).
//!
//! Invariants:
//! 1. Every limit is at least one block: a unit that reports less is taken at its word no further.
//! 2. Optimal lengths are hints: they never become limits (LIO once reported 8 blocks for a fast disk).

use iscsi::client::{LunInfo, WriteSameLimits};
use iscsi::scsi::unmap::UnmapLimits;
use iscsi::scsi::{BlockLength, Blocks, ByteCount, Lba, LunAddress};

use crate::block::Geometry;

/// What the machine must know of a LUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Where commands go.
    pub(super) lun: LunAddress,
    /// The unit of all addresses.
    pub(super) block_length: BlockLength,
    /// One past the last block.
    pub(super) end: Lba,
    /// The largest read or write in one command.
    pub(super) transfer_max: Blocks,
    /// The largest write of zeroes that are sent.
    pub(super) zeroes_max: Blocks,
    /// How a write becomes stable before its answer.
    pub(super) fua: Fua,
    /// WCE of the Caching page: is there a volatile cache? `None`: not told.
    pub(super) write_cache: Option<bool>,
    /// UNMAP, if the unit has it.
    pub(super) unmap: Option<UnmapLimits>,
    /// WRITE SAME(16), if the unit has it.
    pub(super) write_same: Option<WriteSameLimits>,
    /// No writes: the unit or we say so.
    pub(super) read_only: bool,
    /// GET LBA STATUS tells something; whether the unit has it shows when it is asked.
    pub(super) lba_status: bool,
    /// What is not mapped reads as zeroes.
    pub(super) unmapped_reads_zero: bool,
    /// PRE-FETCH(16); whether the unit has it shows when it is asked.
    pub(super) prefetch: bool,
}

/// How a write becomes stable before its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fua {
    /// DPOFUA: the FUA bit of WRITE(16).
    Bit,
    /// A SYNCHRONIZE CACHE(16) after the write.
    Flush,
    /// There is no volatile cache.
    Needless,
}

impl Limits {
    /// The limits that a probed unit told.
    pub(super) fn of(info: &LunInfo, read_only: bool) -> Self {
        let block_length = info.capacity.block_length;
        let at_most = |cap: ByteCount, told: Option<u32>| {
            let ours = block_length.blocks_within(cap).0;
            Blocks(told.map_or(ours, |told| told.min(ours)).max(1))
        };
        let transfer_max = at_most(TRANSFER_BYTES_MAX, info.limits.transfer_max);
        let write_cache = info.mode.and_then(|mode| mode.write_cache);
        let fua_bit = info.mode.is_some_and(|mode| mode.fua_supported);
        Self {
            lun: info.lun,
            block_length,
            end: info.capacity.end,
            transfer_max,
            zeroes_max: at_most(ZEROES_BYTES_MAX, Some(transfer_max.0)),
            fua: match (write_cache, fua_bit) {
                (Some(false), _) => Fua::Needless,
                (_, true) => Fua::Bit,
                (_, false) => Fua::Flush,
            },
            write_cache,
            unmap: info.unmap_limits(),
            write_same: info.write_same_limits(),
            read_only: read_only || info.mode.is_some_and(|mode| mode.write_protected),
            // SBC-4 5.20: LBPME; without it all blocks are mapped.
            lba_status: info.capacity.provisioning,
            unmapped_reads_zero: info.unmapped_reads_zero(),
            prefetch: true,
        }
    }
}

impl Limits {
    /// Zeroes that cost the unit next to nothing.
    pub(super) fn can_unmap_to_zeroes(&self) -> bool {
        self.write_same.is_some_and(|same| same.unmap)
    }

    /// Not told is taken for yes: a flush too many costs time, one too few costs data.
    pub(super) fn has_volatile_cache(&self) -> bool {
        self.write_cache != Some(false)
    }
}

/// The geometry of the waist.
pub(super) fn geometry(info: &LunInfo, limits: &Limits) -> Geometry {
    let block_bytes = limits.block_length.bytes();
    let physical_block_bytes =
        block_bytes.saturating_mul(1 << u32::from(info.capacity.physical_exponent));
    let granularity = info
        .limits
        .optimal_granularity
        .unwrap_or(1)
        .saturating_mul(block_bytes);
    let preferred_bytes = [physical_block_bytes, granularity, PAGE_BYTES]
        .into_iter()
        .filter(|bytes| *bytes <= PREFERRED_BYTES_MAX)
        .max()
        .unwrap_or(block_bytes);
    Geometry {
        size_bytes: info.capacity.bytes().0,
        block_bytes,
        physical_block_bytes,
        preferred_bytes: preferred_bytes.max(block_bytes),
        request_bytes_max: REQUEST_BYTES_MAX,
        read_only: limits.read_only,
        write_cache: limits.has_volatile_cache(),
        can_trim: limits.unmap.is_some() && !limits.read_only,
        can_write_zeroes: limits.write_same.is_some() && !limits.read_only,
        rotational: info.characteristics.is_rotational(),
    }
}

/// Initiators in kernels send about as much in one command, so every target has met it; more gains nothing.
pub(super) const TRANSFER_BYTES_MAX: ByteCount = ByteCount(1 << 20);
/// Zeroes that must be sent: one buffer of this size is kept by each LUN.
pub(super) const ZEROES_BYTES_MAX: ByteCount = ByteCount(256 << 10);
/// The largest payload that NBD allows its clients without asking; the kernel sends no larger ones.
const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// The page cache works in these.
const PAGE_BYTES: u32 = 4096;
/// A hint above it is about bandwidth and not about what a small request should be a multiple of.
const PREFERRED_BYTES_MAX: u32 = 64 << 10;

#[cfg(test)]
pub(super) mod tests {
    use iscsi::scsi::Capacity;
    use iscsi::scsi::inquiry::{AsymmetricAccess, DeviceType, Inquiry, PeripheralQualifier};
    use iscsi::scsi::mode::ModeParameters;
    use iscsi::scsi::vpd::{BlockCharacteristics, BlockLimits, Provisioning};

    use super::*;

    /// A plain unit of 1 MiB that tells nothing but its size.
    pub(in crate::lun) fn info() -> LunInfo {
        LunInfo {
            lun: 1.into(),
            inquiry: Inquiry {
                qualifier: PeripheralQualifier::Connected,
                device_type: DeviceType::DISK,
                version: 6,
                protect: false,
                asymmetric_access: AsymmetricAccess::default(),
                vendor: "ACME".to_owned(),
                product: "VOLUME".to_owned(),
                revision: "1.0".to_owned(),
            },
            serial: None,
            designators: Vec::new(),
            limits: BlockLimits::default(),
            characteristics: BlockCharacteristics::default(),
            provisioning: Provisioning::default(),
            capacity: Capacity {
                end: Lba(2048),
                block_length: BlockLength::B512,
                physical_exponent: 0,
                lowest_aligned: Lba(0),
                protection_type: None,
                provisioning: false,
                unmapped_reads_zero: false,
            },
            mode: None,
        }
    }

    /// The same with everything that a good thin array has.
    pub(in crate::lun) fn thin() -> LunInfo {
        LunInfo {
            limits: BlockLimits {
                transfer_max: Some(64),
                unmap_blocks_max: Some(100),
                unmap_descriptors_max: Some(1),
                unmap_granularity: Some(8),
                unmap_alignment: Some(4),
                write_same_max: Some(128),
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
            ..info()
        }
    }

    #[test]
    fn a_unit_that_tells_nothing_is_treated_with_care() {
        let limits = Limits::of(&info(), false);
        assert_eq!(limits.transfer_max, Blocks(2048));
        assert_eq!(limits.zeroes_max, Blocks(512));
        assert_eq!(limits.fua, Fua::Flush);
        assert_eq!((limits.unmap, limits.write_same), (None, None));
        let geometry = geometry(&info(), &limits);
        assert_eq!(
            geometry,
            Geometry {
                size_bytes: 1 << 20,
                block_bytes: 512,
                physical_block_bytes: 512,
                preferred_bytes: 4096,
                request_bytes_max: 32 << 20,
                read_only: false,
                write_cache: true,
                can_trim: false,
                can_write_zeroes: false,
                rotational: false,
            }
        );
    }

    #[test]
    fn what_a_thin_unit_tells_is_obeyed() {
        let limits = Limits::of(&thin(), false);
        assert_eq!(limits.transfer_max, Blocks(64));
        assert_eq!(limits.zeroes_max, Blocks(64));
        assert_eq!(limits.fua, Fua::Bit);
        assert_eq!(
            limits.unmap,
            Some(UnmapLimits {
                blocks_max: Blocks(100),
                descriptors_max: 1,
                granularity: 8,
                alignment: 4
            })
        );
        assert_eq!(
            limits.write_same,
            Some(WriteSameLimits {
                blocks_max: Blocks(128),
                unmap: true
            })
        );
        let geometry = geometry(&thin(), &limits);
        assert!(geometry.can_trim && geometry.can_write_zeroes && geometry.write_cache);
    }

    #[test]
    fn hints_are_no_limits() {
        let mut info = info();
        info.limits.optimal_transfer = Some(1);
        info.limits.optimal_granularity = Some(16);
        let limits = Limits::of(&info, false);
        assert_eq!(limits.transfer_max, Blocks(2048));
        assert_eq!(geometry(&info, &limits).preferred_bytes, 8192);
        info.limits.optimal_granularity = Some(65535);
        assert_eq!(geometry(&info, &limits).preferred_bytes, 4096);
    }

    #[test]
    fn large_blocks_keep_their_size() {
        let mut info = info();
        info.capacity.block_length = BlockLength::new(65536).unwrap();
        info.capacity.physical_exponent = 15;
        let limits = Limits::of(&info, false);
        assert_eq!(limits.transfer_max, Blocks(16));
        let geometry = geometry(&info, &limits);
        assert_eq!(geometry.physical_block_bytes, 1 << 31);
        assert_eq!(geometry.preferred_bytes, 65536);
    }

    #[test]
    fn no_cache_needs_no_fua() {
        let mut info = thin();
        info.mode = Some(ModeParameters {
            write_protected: false,
            fua_supported: false,
            write_cache: Some(false),
        });
        let limits = Limits::of(&info, false);
        assert_eq!(limits.fua, Fua::Needless);
        assert!(!geometry(&info, &limits).write_cache);
    }

    #[test]
    fn write_protection_is_obeyed_whoever_wants_it() {
        let mut info = thin();
        assert!(Limits::of(&info, true).read_only);
        info.mode = info.mode.map(|mode| ModeParameters {
            write_protected: true,
            ..mode
        });
        let limits = Limits::of(&info, false);
        let geometry = geometry(&info, &limits);
        assert!(geometry.read_only && !geometry.can_trim && !geometry.can_write_zeroes);
    }

    #[test]
    fn unmap_without_its_limits_is_not_there() {
        let mut info = thin();
        info.limits.unmap_descriptors_max = None;
        assert_eq!(Limits::of(&info, false).unmap, None);
        let mut info = thin();
        info.provisioning.unmap = false;
        assert_eq!(Limits::of(&info, false).unmap, None);
    }

    #[test]
    fn zeroes_are_unmapped_only_where_unmapped_reads_as_zeroes() {
        let mut info = thin();
        info.provisioning.unmapped_reads_zero = false;
        assert_eq!(
            Limits::of(&info, false).write_same.map(|same| same.unmap),
            Some(false)
        );
        info.limits.write_same_max = None;
        info.provisioning.write_same_unmap = false;
        assert_eq!(Limits::of(&info, false).write_same, None);
    }
}
