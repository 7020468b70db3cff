//! Reads of big-endian fields at a place in data of any length: what is not there reads as zero.
//!
//! SPC-4 4.2.5 lets a device server cut data short at the allocation length, and older standards have shorter
//! pages: a field that an old page lacks means "not reported", which all pages here write as zero.

/// The byte at `at`, or 0.
pub(super) fn u8_at(data: &[u8], at: usize) -> u8 {
    data.get(at).copied().unwrap_or(0)
}

/// Is the bit set in the byte at `at`? Absent bytes have none.
pub(super) fn bit_at(data: &[u8], at: usize, bit: u8) -> bool {
    u8_at(data, at) & (1 << bit) != 0
}

/// Two bytes, or 0 when one is missing.
pub(super) fn u16_at(data: &[u8], at: usize) -> u16 {
    array_at(data, at).map_or(0, u16::from_be_bytes)
}

/// Four bytes, or 0 when one is missing.
pub(super) fn u32_at(data: &[u8], at: usize) -> u32 {
    array_at(data, at).map_or(0, u32::from_be_bytes)
}

/// Eight bytes, or 0 when one is missing.
pub(super) fn u64_at(data: &[u8], at: usize) -> u64 {
    array_at(data, at).map_or(0, u64::from_be_bytes)
}

fn array_at<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..)?.first_chunk().copied()
}
