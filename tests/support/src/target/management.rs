//! Task management: what each function does to the tasks of a session, and to those of others.
//!
//! Source: RFC 7143 §11.5 (functions), §11.6 (responses), §4.2.3.3 (which tasks).

use super::pdu::{NO_TAG, Pdu, header, later, op};
use super::scsi;
use super::session::Session;
use super::shared::Order;

impl Session {
    pub(super) fn on_task_management(&mut self, at: usize, pdu: &Pdu) {
        self.check_task_management(pdu);
        if self.shared.faults.ignores_management() {
            return;
        }
        let response = match self.shared.faults.management_response() {
            Some(response) => response,
            None => self.manage(pdu),
        };
        let mut bhs = header(op::TASK_MANAGEMENT_RESPONSE, pdu.itt());
        bhs[2] = response;
        self.send(at, bhs, &[]);
    }

    fn manage(&mut self, pdu: &Pdu) -> u8 {
        let lun = pdu.lun_bytes();
        let unit = self.unit(lun);
        match pdu.flags() & 0x7f {
            function::ABORT_TASK => {
                let tag = pdu.ttt();
                let found = self.transfers.abort(tag) | self.held.abort(tag);
                if found { COMPLETE } else { NO_SUCH_TASK }
            }
            function::ABORT_TASK_SET
            | function::CLEAR_TASK_SET
            | function::CLEAR_ACA
            | function::LOGICAL_UNIT_RESET
                if unit.is_none() =>
            {
                NO_SUCH_LUN
            }
            function::ABORT_TASK_SET => {
                self.abort_lun(lun);
                COMPLETE
            }
            function::CLEAR_TASK_SET => {
                self.abort_lun(lun);
                // The tasks of all initiators.
                self.shared.order_others(&Order::AbortLun(lun), &self.nexus);
                COMPLETE
            }
            function::LOGICAL_UNIT_RESET => {
                self.abort_lun(lun);
                // SAM-5: all tasks of the unit, also those whose nexus is gone.
                self.shared.drop_orphans(unit.as_ref());
                self.shared.order_others(&Order::AbortLun(lun), &self.nexus);
                if let Some(unit) = unit {
                    unit.announce(scsi::RESET);
                }
                COMPLETE
            }
            function::TARGET_WARM_RESET | function::TARGET_COLD_RESET => {
                self.reset_target();
                if pdu.flags() & 0x7f == function::TARGET_COLD_RESET {
                    // It takes the sessions with it (RFC 7143 §11.5.1).
                    for at in self.slots() {
                        self.on(at).closing = true;
                    }
                    self.shared.order_others(&Order::Close, &self.nexus);
                }
                COMPLETE
            }
            function::TASK_REASSIGN => REASSIGNMENT_NOT_SUPPORTED,
            _ => NOT_SUPPORTED,
        }
    }

    pub(super) fn abort_lun(&mut self, lun: [u8; 8]) {
        self.transfers.abort_where(|task| task.lun == lun);
        self.held.abort_where(|job| job.lun() == lun);
    }

    fn reset_target(&mut self) {
        self.transfers.abort_where(|_| true);
        self.held.abort_where(|_| true);
        self.shared.order_others(&Order::AbortAll, &self.nexus);
        if let Some(export) = &self.export {
            for unit in export.numbers().iter().filter_map(|lun| export.unit(*lun)) {
                unit.announce(scsi::RESET);
            }
        }
    }

    fn check_task_management(&self, pdu: &Pdu) {
        let function = pdu.flags() & 0x7f;
        let tag = pdu.ttt();
        // RFC 7143 §11.5.5, §11.5.6: the task's tag and number with ABORT TASK (and REASSIGN), reserved with others.
        match function {
            function::ABORT_TASK => {
                let number = pdu.word(32);
                if !later(pdu.cmd_sn(), number) && number != pdu.cmd_sn() {
                    self.broke(format!("RefCmdSN {number} is not before {}", pdu.cmd_sn()));
                }
            }
            function::TASK_REASSIGN => {}
            _ if tag != NO_TAG => {
                self.broke(format!("referenced tag {tag:#x} with function {function}"));
            }
            _ => {}
        }
    }
}

mod function {
    pub(super) const ABORT_TASK: u8 = 1;
    pub(super) const ABORT_TASK_SET: u8 = 2;
    pub(super) const CLEAR_ACA: u8 = 3;
    pub(super) const CLEAR_TASK_SET: u8 = 4;
    pub(super) const LOGICAL_UNIT_RESET: u8 = 5;
    pub(super) const TARGET_WARM_RESET: u8 = 6;
    pub(super) const TARGET_COLD_RESET: u8 = 7;
    pub(super) const TASK_REASSIGN: u8 = 8;
}

// RFC 7143 §11.6.1.
const COMPLETE: u8 = 0;
const NO_SUCH_TASK: u8 = 1;
const NO_SUCH_LUN: u8 = 2;
const REASSIGNMENT_NOT_SUPPORTED: u8 = 4;
const NOT_SUPPORTED: u8 = 5;
