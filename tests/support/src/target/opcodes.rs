//! REPORT SUPPORTED OPERATION CODES: the list of what this disk understands.
//!
//! Source: SPC-4 §6.35.

use super::scsi::{INVALID_FIELD, Sense, clipped, length_32, op};

/// The answer, clipped to the allocation length.
pub(super) fn report(cdb: &[u8; 16]) -> Result<Vec<u8>, Sense> {
    let timeouts = cdb[2] & 0x80 != 0;
    let action = u16::from_be_bytes([cdb[4], cdb[5]]);
    let data = match cdb[2] & 7 {
        0 => all(timeouts),
        1 if has_actions(cdb[3]) => return Err(INVALID_FIELD),
        1 => one(find(cdb[3], None), timeouts),
        2 if !has_actions(cdb[3]) => return Err(INVALID_FIELD),
        2 => one(find(cdb[3], Some(action)), timeouts),
        3 if has_actions(cdb[3]) => one(find(cdb[3], Some(action)), timeouts),
        3 => one(find(cdb[3], None).filter(|_| action == 0), timeouts),
        _ => return Err(INVALID_FIELD),
    };
    Ok(clipped(data, length_32(cdb, 6)))
}

/// A command: its code, its service action, and which bits of its CDB are looked at.
struct Command {
    opcode: u8,
    action: Option<u16>,
    usage: &'static [u8],
}

fn all(timeouts: bool) -> Vec<u8> {
    let mut list = Vec::new();
    for command in COMMANDS {
        let action = command.action.unwrap_or(0).to_be_bytes();
        // SERVACTV and CTDP.
        let flags = u8::from(command.action.is_some()) | u8::from(timeouts) << 1;
        let length = cdb_bytes(command).to_be_bytes();
        list.extend([
            command.opcode,
            0,
            action[0],
            action[1],
            0,
            flags,
            length[0],
            length[1],
        ]);
        if timeouts {
            list.extend(NO_TIMEOUTS);
        }
    }
    let mut data = u32::try_from(list.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes()
        .to_vec();
    data.extend(list);
    data
}

fn one(command: Option<&Command>, timeouts: bool) -> Vec<u8> {
    let Some(command) = command else {
        // Not supported.
        return vec![0, 1, 0, 0];
    };
    let length = cdb_bytes(command).to_be_bytes();
    // Supported as the standard has it.
    let mut data = vec![0, 3 | u8::from(timeouts) << 7, length[0], length[1]];
    data.push(command.opcode);
    data.extend(command.usage);
    if let Some(action) = command.action.and_then(|action| u8::try_from(action).ok()) {
        data[5] = data[5] & 0xe0 | action;
    }
    if timeouts {
        data.extend(NO_TIMEOUTS);
    }
    data
}

fn find(opcode: u8, action: Option<u16>) -> Option<&'static Command> {
    COMMANDS
        .iter()
        .find(|known| known.opcode == opcode && known.action == action)
}

fn has_actions(opcode: u8) -> bool {
    COMMANDS
        .iter()
        .any(|known| known.opcode == opcode && known.action.is_some())
}

fn cdb_bytes(command: &Command) -> u16 {
    u16::try_from(command.usage.len() + 1).unwrap_or(16)
}

const fn plain(opcode: u8, usage: &'static [u8]) -> Command {
    Command {
        opcode,
        action: None,
        usage,
    }
}

const fn acting(opcode: u8, action: u16, usage: &'static [u8]) -> Command {
    Command {
        opcode,
        action: Some(action),
        usage,
    }
}

/// A timeouts descriptor that promises nothing.
const NO_TIMEOUTS: [u8; 12] = [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const RESERVE_OUT: [u8; 9] = [0x1f, F, 0, 0, F, F, F, F, 0];
const F: u8 = 0xff;
const COMMANDS: &[Command] = &[
    plain(op::TEST_UNIT_READY, &[0, 0, 0, 0, 0]),
    plain(op::REQUEST_SENSE, &[0, 0, 0, F, 0]),
    plain(op::READ_6, &[0x1f, F, F, F, 0]),
    plain(op::WRITE_6, &[0x1f, F, F, F, 0]),
    plain(op::INQUIRY, &[1, F, F, F, 0]),
    plain(op::MODE_SENSE_6, &[8, F, F, F, 0]),
    plain(op::READ_CAPACITY_10, &[0, F, F, F, F, 0, 0, 1, 0]),
    plain(op::READ_10, &[0xf8, F, F, F, F, 0, F, F, 0]),
    plain(op::WRITE_10, &[0xf8, F, F, F, F, 0, F, F, 0]),
    plain(op::SYNCHRONIZE_CACHE_10, &[2, F, F, F, F, 0, F, F, 0]),
    plain(op::WRITE_SAME_10, &[0xf8, F, F, F, F, 0, F, F, 0]),
    plain(op::UNMAP, &[1, 0, 0, 0, 0, 0, F, F, 0]),
    acting(
        op::PERSISTENT_RESERVE_IN,
        0,
        &[0x1f, 0, 0, 0, 0, 0, F, F, 0],
    ),
    acting(
        op::PERSISTENT_RESERVE_IN,
        1,
        &[0x1f, 0, 0, 0, 0, 0, F, F, 0],
    ),
    acting(
        op::PERSISTENT_RESERVE_IN,
        2,
        &[0x1f, 0, 0, 0, 0, 0, F, F, 0],
    ),
    acting(
        op::PERSISTENT_RESERVE_IN,
        3,
        &[0x1f, 0, 0, 0, 0, 0, F, F, 0],
    ),
    acting(op::PERSISTENT_RESERVE_OUT, 0, &RESERVE_OUT),
    acting(op::PERSISTENT_RESERVE_OUT, 1, &RESERVE_OUT),
    acting(op::PERSISTENT_RESERVE_OUT, 2, &RESERVE_OUT),
    acting(op::PERSISTENT_RESERVE_OUT, 3, &RESERVE_OUT),
    acting(op::PERSISTENT_RESERVE_OUT, 4, &RESERVE_OUT),
    acting(op::PERSISTENT_RESERVE_OUT, 5, &RESERVE_OUT),
    acting(op::PERSISTENT_RESERVE_OUT, 6, &RESERVE_OUT),
    plain(
        op::COMPARE_AND_WRITE,
        &[0xf8, F, F, F, F, F, F, F, F, 0, 0, 0, F, 0, 0],
    ),
    plain(op::MODE_SENSE_10, &[8, F, F, 0, 0, 0, F, F, 0]),
    plain(
        op::READ_16,
        &[0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
    ),
    plain(
        op::WRITE_16,
        &[0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
    ),
    plain(
        op::SYNCHRONIZE_CACHE_16,
        &[2, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
    ),
    plain(
        op::WRITE_SAME_16,
        &[0xf9, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
    ),
    acting(
        op::SERVICE_ACTION_IN_16,
        0x10,
        &[0x1f, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0],
    ),
    acting(
        op::SERVICE_ACTION_IN_16,
        0x12,
        &[0x1f, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
    ),
    acting(
        op::MAINTENANCE_IN,
        0x0a,
        &[0x1f, 0, 0, 0, 0, F, F, F, F, 0, 0],
    ),
    plain(op::REPORT_LUNS, &[0, F, 0, 0, 0, F, F, F, F, 0, 0]),
    acting(
        op::MAINTENANCE_IN,
        0x0c,
        &[0x1f, 0x87, F, F, F, F, F, F, F, 0, 0],
    ),
    plain(op::READ_12, &[0xf8, F, F, F, F, F, F, F, F, 0, 0]),
    plain(op::WRITE_12, &[0xf8, F, F, F, F, F, F, F, F, 0, 0]),
];
