//! What the disk says of itself: INQUIRY, vital product data, mode pages.
//!
//! Source: SPC-4 §6.4 (INQUIRY), §7.5 (mode pages), §7.8 (VPD 00h, 80h, 83h); SBC-3 §6.5 (VPD B0h, B1h, B2h).

use super::compare;
use super::disk::Disk;
use super::portals;
use super::scsi::{INVALID_FIELD, SAVING_NOT_SUPPORTED, Sense, TRANSFER_BYTES_MAX, clipped, op};

/// INQUIRY; without a disk, what a LUN that is not there says. `port`: the portal group's tag if there are several.
pub(super) fn inquiry(
    disk: Option<&Disk>,
    cdb: &[u8; 16],
    port: Option<u16>,
) -> Result<Vec<u8>, Sense> {
    let most = usize::from(u16::from_be_bytes([cdb[3], cdb[4]]));
    if cdb[1] & 1 == 0 {
        if cdb[2] != 0 {
            return Err(INVALID_FIELD);
        }
        let mut data = standard(disk.is_some());
        // TPGS: implicit asymmetric access.
        data[5] |= u8::from(port.is_some()) << 4;
        return Ok(clipped(data, most));
    }
    let Some(disk) = disk else {
        return Err(INVALID_FIELD);
    };
    let body = match cdb[2] {
        0x00 => PAGES.to_vec(),
        0x80 => disk.serial_number().as_bytes().to_vec(),
        0x83 => {
            let mut list = designators(disk);
            list.extend(port.map(portals::designators).unwrap_or_default());
            list
        }
        0xb0 => block_limits(disk),
        0xb1 => {
            let mut body = vec![0; 60];
            // Not rotating.
            body[1] = 1;
            body
        }
        // UNMAP, WRITE SAME(16) and (10) trim; trimmed blocks read as zero; thin.
        0xb2 => vec![0, 0xe4, 2, 0],
        _ => return Err(INVALID_FIELD),
    };
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut page = vec![0, cdb[2], length[0], length[1]];
    page.extend(body);
    Ok(clipped(page, most))
}

/// MODE SENSE(6) and (10): caching, control and informational exceptions pages, no block descriptor.
pub(super) fn mode_sense(disk: &Disk, cdb: &[u8; 16]) -> Result<Vec<u8>, Sense> {
    let control = cdb[2] >> 6;
    if control == 3 {
        return Err(SAVING_NOT_SUPPORTED);
    }
    if cdb[3] != 0 && cdb[3] != 0xff {
        return Err(INVALID_FIELD);
    }
    let mut body = Vec::new();
    for page in mode_pages() {
        if cdb[2] & 0x3f == page[0] || cdb[2] & 0x3f == 0x3f {
            if control == 1 {
                // Changeable values: none.
                body.extend([page[0], page[1]]);
                body.extend(vec![0; page.len() - 2]);
            } else {
                body.extend(page);
            }
        }
    }
    if body.is_empty() {
        return Err(INVALID_FIELD);
    }
    // WP, and DPOFUA: FUA is obeyed.
    let device = if disk.is_read_only() { 0x90 } else { 0x10 };
    if cdb[0] == op::MODE_SENSE_6 {
        let length = u8::try_from(body.len() + 3).unwrap_or(u8::MAX);
        let mut data = vec![length, 0, device, 0];
        data.extend(body);
        return Ok(clipped(data, usize::from(cdb[4])));
    }
    let length = u16::try_from(body.len() + 6)
        .unwrap_or(u16::MAX)
        .to_be_bytes();
    let mut data = vec![length[0], length[1], 0, device, 0, 0, 0, 0];
    data.extend(body);
    Ok(clipped(
        data,
        usize::from(u16::from_be_bytes([cdb[7], cdb[8]])),
    ))
}

/// Blocks in 4096 bytes: what a trim frees at least.
pub(super) fn granularity(disk: &Disk) -> u32 {
    (4096 / disk.block_size()).max(1)
}

/// The most that one UNMAP may trim; libiscsi's suite holds more than 2^20 for a mistake.
pub(super) fn unmap_blocks_max(disk: &Disk) -> u64 {
    u64::from((1 << 29) / disk.block_size())
}

/// The most that one WRITE SAME may write: no more than a WRITE, which libiscsi's suite compares it with.
pub(super) fn write_same_blocks_max(disk: &Disk) -> u64 {
    u64::try_from(TRANSFER_BYTES_MAX).unwrap_or(0) / u64::from(disk.block_size())
}

fn standard(present: bool) -> Vec<u8> {
    let mut data = vec![0; 96];
    // Qualifier 011b and type 1Fh: no such unit can be here.
    data[0] = if present { 0 } else { 0x7f };
    // SPC-4; hierarchical addresses, response format 2.
    data[2] = 6;
    data[3] = 0x12;
    data[4] = 91;
    // CMDQUE.
    data[7] = 2;
    data[8..16].copy_from_slice(VENDOR);
    data[16..32].copy_from_slice(PRODUCT);
    data[32..36].copy_from_slice(b"0001");
    // SAM-5, SPC-4, SBC-3, iSCSI, each without a version of the text.
    for (index, standard) in [0x00a0_u16, 0x0460, 0x04c0, 0x0960].iter().enumerate() {
        let at = 58 + index * 2;
        data[at..at + 2].copy_from_slice(&standard.to_be_bytes());
    }
    data
}

/// VPD 83h: NAA (locally assigned) and T10 vendor id, both from the serial number.
fn designators(disk: &Disk) -> Vec<u8> {
    let serial = disk.serial_number().as_bytes();
    let mut naa = disk.naa_designator();
    if naa == [0; 8] {
        naa = derived_naa(serial);
    }
    let mut body = vec![0x01, 0x03, 0, 8];
    body.extend(naa);
    let mut vendor = VENDOR.to_vec();
    vendor.extend(serial);
    vendor.truncate(255);
    body.extend([0x02, 0x01, 0, u8::try_from(vendor.len()).unwrap_or(u8::MAX)]);
    body.extend(vendor);
    body
}

/// NAA 3h, locally assigned.
fn derived_naa(serial: &[u8]) -> [u8; 8] {
    let low = crc32c::crc32c(serial).to_be_bytes();
    let high = crc32c::crc32c_append(0x5eed, serial).to_be_bytes();
    [
        0x30 | high[0] & 0x0f,
        high[1],
        high[2],
        high[3],
        low[0],
        low[1],
        low[2],
        low[3],
    ]
}

fn block_limits(disk: &Disk) -> Vec<u8> {
    let mut body = vec![0; 60];
    let blocks = u32::try_from(TRANSFER_BYTES_MAX).unwrap_or(u32::MAX) / disk.block_size();
    let granularity = granularity(disk);
    let low = u16::try_from(granularity).unwrap_or(1).to_be_bytes();
    body[1] = compare::BLOCKS_MAX;
    body[2..4].copy_from_slice(&low);
    body[4..8].copy_from_slice(&blocks.to_be_bytes());
    let trim = u32::try_from(unmap_blocks_max(disk)).unwrap_or(u32::MAX);
    body[16..20].copy_from_slice(&trim.to_be_bytes());
    let descriptors = u32::try_from(UNMAP_DESCRIPTORS_MAX).unwrap_or(1);
    body[20..24].copy_from_slice(&descriptors.to_be_bytes());
    body[24..28].copy_from_slice(&granularity.to_be_bytes());
    // UGAVALID with an alignment of zero.
    body[28] = 0x80;
    body[32..40].copy_from_slice(&write_same_blocks_max(disk).to_be_bytes());
    body
}

fn mode_pages() -> [Vec<u8>; 3] {
    let page = |code: u8, length: u8, byte_2: u8| {
        let mut page = vec![0; usize::from(length) + 2];
        (page[0], page[1], page[2]) = (code, length, byte_2);
        page
    };
    // Caching with WCE; control; informational exceptions.
    [
        page(0x08, 0x12, 0x04),
        page(0x0a, 0x0a, 0),
        page(0x1c, 0x0a, 0),
    ]
}

/// What one UNMAP may list; chosen freely.
pub(super) const UNMAP_DESCRIPTORS_MAX: usize = 256;
const PAGES: [u8; 6] = [0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2];
const VENDOR: &[u8; 8] = b"CNDRNBD ";
const PRODUCT: &[u8; 16] = b"SUPPORT TARGET  ";
