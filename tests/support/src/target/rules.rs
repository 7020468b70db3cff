//! Rules on single PDUs that an initiator must keep: reserved fields, address methods, combinations of bits.
//!
//! Source: RFC 7143 §11; §11.1 wants reserved fields zero from the sender.
//!
//! Rules that need a session's state are where the state is: `session`, `connection`, `transfer`, `login`.

use super::pdu::{CONTINUE, FINAL, NO_TAG, Pdu, op};

/// What is wrong with a PDU, if anything.
pub(super) fn reserved(pdu: &Pdu) -> Option<String> {
    let name = || format!("{pdu:?}");
    if pdu.bhs[0] & 0x80 != 0 {
        return Some(format!("bit 7 of byte 0 is set: {}", name()));
    }
    if !pdu.ahs.is_empty() && pdu.opcode() != op::SCSI_COMMAND {
        return Some(format!("additional header segments: {}", name()));
    }
    let (mask, zero): (u8, &[(usize, usize)]) = match pdu.opcode() {
        op::SCSI_COMMAND => (0x18, &[(2, 4)]),
        op::DATA_OUT => (0x7f, &[(2, 4), (24, 28), (32, 36), (44, 48)]),
        op::NOP_OUT => (0x7f, &[(2, 4), (32, 48)]),
        op::TASK_MANAGEMENT => (0, &[(2, 4), (40, 48)]),
        op::TEXT => (0x3f, &[(2, 4), (32, 48)]),
        op::LOGOUT => (0, &[(2, 4), (8, 16), (22, 24), (32, 48)]),
        op::LOGIN => (0x30, &[(22, 24), (32, 48)]),
        _ => (0, &[]),
    };
    if pdu.flags() & mask != 0 {
        return Some(format!("reserved flags are set: {}", name()));
    }
    let set = |(from, to): &&(usize, usize)| pdu.bhs[*from..*to].iter().any(|byte| *byte != 0);
    if let Some((from, to)) = zero.iter().find(set) {
        return Some(format!(
            "reserved bytes {from}..{to} are not zero: {}",
            name()
        ));
    }
    special(pdu).map(|what| format!("{what}: {}", name()))
}

fn special(pdu: &Pdu) -> Option<&'static str> {
    match pdu.opcode() {
        op::SCSI_COMMAND => command(pdu),
        op::NOP_OUT | op::TASK_MANAGEMENT | op::LOGOUT if pdu.flags() & FINAL == 0 => {
            Some("bit 7 of byte 1 must be set")
        }
        op::NOP_OUT if pdu.itt() == NO_TAG && pdu.ttt() == NO_TAG && !pdu.immediate() => {
            Some("a NOP-Out that asks nothing must be immediate")
        }
        op::LOGIN if !pdu.immediate() => Some("a login request is immediate"),
        op::TASK_MANAGEMENT if !pdu.data.is_empty() => Some("task management has no data"),
        op::TEXT if pdu.is_final() && pdu.flags() & CONTINUE != 0 => Some("F and C are both set"),
        op::DATA_OUT if pdu.ttt() == NO_TAG && pdu.lun_bytes() != [0; 8] => {
            // RFC 7143 §11.7.4: the LUN goes along with a target tag only.
            Some("LUN of unsolicited data is reserved")
        }
        op::NOP_OUT | op::TASK_MANAGEMENT | op::TEXT | op::DATA_OUT | op::LOGOUT | op::LOGIN => {
            None
        }
        _ => Some("opcode is none of an initiator's"),
    }
}

fn command(pdu: &Pdu) -> Option<&'static str> {
    let (read, write) = (pdu.flags() & 0x40 != 0, pdu.flags() & 0x20 != 0);
    if pdu.flags() & 7 > 4 {
        return Some("task attribute is none");
    }
    if !pdu.is_final() && !write {
        return Some("F=0 on a command that sends no data");
    }
    if !read && !write && pdu.expected() != 0 {
        return Some("an expected length without direction");
    }
    if pdu.itt() == NO_TAG {
        return Some("a command with the reserved tag");
    }
    lun(pdu.lun_bytes())
}

/// SAM-5 §4.7.7: peripheral addressing up to 255, flat space addressing above, and nothing in the levels below.
fn lun(lun: [u8; 8]) -> Option<&'static str> {
    if lun[2..] != [0; 6] {
        return Some("LUN with a second level");
    }
    match lun[0] {
        // Peripheral device addressing, bus 0; flat space addressing.
        0 | 0x40..=0x7f => None,
        0x01..=0x3f => Some("LUN above 255 in peripheral addressing"),
        _ => Some("LUN address method that we do not offer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::pdu::{at, header, lun_bytes};

    fn bare(opcode: u8) -> Pdu {
        Pdu::new(header(opcode, 1), Vec::new())
    }

    #[test]
    fn a_reserved_bit_of_each_request_is_found() {
        let rows: [(u8, usize); 7] = [
            (op::SCSI_COMMAND, 2),
            (op::DATA_OUT, 24),
            (op::NOP_OUT, 32),
            (op::TASK_MANAGEMENT, 40),
            (op::TEXT, 47),
            (op::LOGOUT, 8),
            (op::LOGIN, 22),
        ];
        for (opcode, place) in rows {
            let sound = bare(opcode).with_byte(0, opcode | 0x40);
            assert_eq!(reserved(&sound), None);
            assert!(reserved(&sound.with_byte(place, 1)).is_some());
            assert!(reserved(&bare(opcode).with_byte(0, opcode | 0x80)).is_some());
        }
        assert!(reserved(&bare(op::NOP_OUT).with_byte(1, 0)).is_some());
        assert!(reserved(&bare(op::SCSI_COMMAND).with_byte(1, 0x88)).is_some());
        assert!(reserved(&bare(op::LOGIN)).is_some());
        assert!(reserved(&bare(0x1c)).is_some());
    }

    #[test]
    fn luns_and_directions_of_commands_are_judged() {
        let command = bare(op::SCSI_COMMAND);
        for number in [0, 255, 256, 0x3fff] {
            assert_eq!(reserved(&command.clone().with_lun(lun_bytes(number))), None);
        }
        for lun in [
            [1, 0, 0, 0, 0, 0, 0, 0],
            [0, 1, 0, 1, 0, 0, 0, 0],
            [0xc0; 8],
        ] {
            assert!(reserved(&command.clone().with_lun(lun)).is_some());
        }
        assert!(reserved(&command.clone().with(at::TTT, 512)).is_some());
        assert!(reserved(&command.clone().with_byte(1, 0x01)).is_some());
        assert!(reserved(&command.with_byte(1, 0x85)).is_some());
    }
}
