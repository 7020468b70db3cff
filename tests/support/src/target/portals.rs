//! Portal groups: where the target listens, under which tag, and in which ALUA state each group's ports are.
//!
//! Source: RFC 7143 §4.2 (portal groups), §13.8, §13.9; SPC-4 §5.16 (states), §6.38 (REPORT TARGET PORT GROUPS).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::scsi::{Sense, clipped, length_32, op};

/// How a port group reaches the logical units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Active/optimized.
    Optimized,
    /// Active/non-optimized: works, and another is better.
    NonOptimized,
    /// Standby: NOT READY 04h/0Bh.
    Standby,
    /// Unavailable: NOT READY 04h/0Ch.
    Unavailable,
    /// Transitioning: NOT READY 04h/0Ah.
    Transitioning,
}

/// A portal group with its one portal.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) tag: u16,
    pub(super) address: SocketAddr,
    access: AtomicU8,
    open: AtomicBool,
}

impl Group {
    pub(super) fn new(tag: u16, address: SocketAddr) -> Self {
        Self {
            tag,
            address,
            access: AtomicU8::new(0),
            open: AtomicBool::new(true),
        }
    }

    pub(super) fn set_access(&self, access: Access) {
        let code = match access {
            Access::Optimized => 0,
            Access::NonOptimized => 1,
            Access::Standby => 2,
            Access::Unavailable => 3,
            Access::Transitioning => 15,
        };
        self.access.store(code, Ordering::SeqCst);
    }

    pub(super) fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::SeqCst);
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// Why a command is not carried out by this group's ports.
    pub(super) fn refuses(&self, cdb: &[u8; 16]) -> Option<Sense> {
        let ascq = match self.access.load(Ordering::Relaxed) {
            0 | 1 => return None,
            2 => 0x0b,
            3 => 0x0c,
            _ => 0x0a,
        };
        // SPC-4 §5.16.2.4: what works in every state.
        let always = matches!(
            cdb[0],
            op::INQUIRY | op::REPORT_LUNS | op::REQUEST_SENSE | op::MAINTENANCE_IN
        );
        (!always).then_some(Sense(2, 0x04, ascq))
    }
}

/// REPORT TARGET PORT GROUPS, length-only header: one port a group, its relative identifier that of the group.
pub(super) fn report(groups: &[Group], cdb: &[u8; 16]) -> Vec<u8> {
    let mut list = Vec::new();
    for group in groups {
        let tag = group.tag.to_be_bytes();
        let access = group.access.load(Ordering::SeqCst);
        // All states but offline are supported.
        list.extend([access, 0x8f, tag[0], tag[1], 0, 0, 0, 1]);
        list.extend([0, 0, tag[0], tag[1]]);
    }
    let mut data = u32::try_from(list.len())
        .unwrap_or(0)
        .to_be_bytes()
        .to_vec();
    data.extend(list);
    clipped(data, length_32(cdb, 6))
}

/// The designators of a port in VPD 83h: relative target port, target port group.
pub(super) fn designators(tag: u16) -> Vec<u8> {
    let tag = tag.to_be_bytes();
    let mut list = Vec::new();
    for kind in [4, 5] {
        // PIV, association: target port; protocol iSCSI.
        list.extend([0x51, 0x90 | kind, 0, 4, 0, 0, tag[0], tag[1]]);
    }
    list
}
