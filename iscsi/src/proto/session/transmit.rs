//! What a session sends, and in which order.
//!
//! Source: RFC 7143 §4.2.2.1 (numbers), §4.2.5.2 (order of data), §11.3, §11.7, §11.18.

use super::connection::{Control, State};
use super::{Payload, Session, Transmit};
use crate::proto::task::Transfer;
use crate::proto::transfer::{self, Sequence};
use crate::wire::data_out::DataOut;
use crate::wire::header;
use crate::wire::nop::NopOut;
use crate::wire::scsi_command::{ScsiCommand, TaskAttribute};
use crate::wire::tag::{InitiatorTaskTag, TargetTransferTag};

impl Session {
    /// The next PDU to leave on a connection.
    pub fn poll_transmit(&mut self, cid: u16) -> Option<Transmit> {
        self.poll_urgent(cid).or_else(|| self.poll_command(cid))
    }

    /// The next PDU that waits for no window: control first, then data that the target waits for.
    #[inline]
    pub fn poll_urgent(&mut self, cid: u16) -> Option<Transmit> {
        let connection = self.at(cid);
        if connection.control.is_empty() && connection.sequences.is_empty() {
            return None;
        }
        self.transmit_urgent(cid)
    }

    /// The next command, to leave on this connection; its unsolicited data is `poll_urgent`'s, and
    /// must leave before the next command does.
    pub fn poll_command(&mut self, cid: u16) -> Option<Transmit> {
        if !self.has_command() || self.at(cid).state != State::LoggedIn {
            return None;
        }
        // RFC 7143 §4.2.2.1: the target ignores commands beyond MaxCmdSN, so none may leave. One
        // number for all connections, given in the order in which commands leave.
        let cmd_sn = self.window.take()?;
        let slot = self.ready.pop_front()?;
        let (itt, task) = self.tasks.mark_sent(slot, cid, cmd_sn);
        let (read, write, length, unasked) = match &task.transfer {
            Transfer::None => (false, false, 0, None),
            Transfer::Read(_) => (true, false, task.transfer.progress().1, None),
            Transfer::Write(write) => {
                let unasked = transfer::unasked(write.length(), &self.agreed);
                (false, true, write.length(), Some(unasked))
            }
        };
        let (lun, cdb) = (task.lun, task.cdb);
        let connection = self.at(cid);
        connection.sent += 1;
        let immediate = unasked.map_or(0, |unasked| unasked.immediate);
        let follows = unasked.filter(|unasked| unasked.end > unasked.immediate);
        let command = ScsiCommand {
            immediate: false,
            // RFC 7143 §11.3.1: F if and only if no unsolicited data follows
            is_final: follows.is_none(),
            read,
            write,
            attribute: TaskAttribute::SIMPLE,
            lun,
            initiator_task_tag: itt,
            expected_data_transfer_bytes: length,
            cmd_sn,
            exp_stat_sn: connection.tell_stat_sn(),
            cdb,
        };
        let mut header = command.emit();
        header::set_data_segment_bytes(&mut header, immediate);
        if let Some(unasked) = follows {
            let sequence = Sequence::unsolicited(itt, unasked);
            connection.sequences.push_back(sequence);
        }
        let payload = if immediate == 0 {
            Payload::None
        } else {
            Payload::Task {
                slot,
                offset: 0,
                bytes: immediate,
                is_data_out: false,
            }
        };
        Some(Transmit { header, payload })
    }

    /// Whether a command waits that may leave as far as the session is concerned; the window may
    /// still be closed.
    pub fn has_command(&self) -> bool {
        // RFC 7143 §11.14 (F29): after a logout request no command follows
        !self.ready.is_empty() && !self.is_ending && !self.holds_commands()
    }

    /// Whether commands may leave on a connection, and how many of its tasks are in flight.
    pub fn load(&self, cid: u16) -> Option<usize> {
        let connection = &self.connections[usize::from(cid)];
        // RFC 7143 §11.9.1 (F25): nor after a logout was asked for
        (connection.state == State::LoggedIn).then_some(connection.sent)
    }

    fn transmit_urgent(&mut self, cid: u16) -> Option<Transmit> {
        while let Some(control) = self.at(cid).control.pop_front() {
            if let Some(transmit) = self.transmit_control(cid, control) {
                return Some(transmit);
            }
        }
        self.transmit_data_out(cid)
    }

    /// `None` if there is nothing to be said any more.
    fn transmit_control(&mut self, cid: u16, control: Control) -> Option<Transmit> {
        // RFC 7143 §11.2.1.1, §4.2.2.1: immediate PDUs carry the next CmdSN and do not consume it
        let cmd_sn = self.window.peek();
        let exp_stat_sn = self.at(cid).tell_stat_sn();
        let nop_out = |initiator_task_tag, target_transfer_tag, lun| NopOut {
            immediate: true,
            lun,
            initiator_task_tag,
            target_transfer_tag,
            cmd_sn,
            exp_stat_sn,
        };
        let (header, payload) = match control {
            Control::Ping(itt) => {
                self.at(cid).pings += 1;
                let ping = nop_out(itt, TargetTransferTag::RESERVED, 0);
                (ping.emit(), Payload::None)
            }
            Control::Pong { lun, ttt, data } => {
                // RFC 7143 §11.18 (F21): tag, LUN and data come back; no answer to the answer
                let mut header = nop_out(InitiatorTaskTag::RESERVED, ttt, lun).emit();
                let length = u32::try_from(data.len()).expect("below our MaxRecvDataSegmentLength");
                header::set_data_segment_bytes(&mut header, length);
                (header, Payload::Own(data))
            }
            // RFC 7143 §11.18 (F23): without either tag it tells the status number and asks for nothing
            Control::Acknowledge { lun } => {
                let (itt, ttt) = (InitiatorTaskTag::RESERVED, TargetTransferTag::RESERVED);
                (nop_out(itt, ttt, lun).emit(), Payload::None)
            }
            Control::Function(tag) => {
                let request = self.function_request(tag, cmd_sn, exp_stat_sn)?;
                (request.emit(), Payload::None)
            }
            Control::Logout(reason) => {
                let request = Self::logout_request(cid, reason, cmd_sn, exp_stat_sn);
                (request.emit(), Payload::None)
            }
        };
        Some(Transmit { header, payload })
    }

    fn transmit_data_out(&mut self, cid: u16) -> Option<Transmit> {
        let connection = &mut self.connections[usize::from(cid)];
        loop {
            let sequence = connection.sequences.front_mut()?;
            let Ok((slot, task)) = self.tasks.find(sequence.itt) else {
                // The task ended early: nobody waits for the rest.
                connection.sequences.pop_front();
                continue;
            };
            let Transfer::Write(write) = &mut task.transfer else {
                connection.sequences.pop_front();
                continue;
            };
            let piece = sequence.next_piece(self.agreed.theirs_max_recv_data_segment_bytes);
            write.note_sent(&piece, sequence.ttt != TargetTransferTag::RESERVED);
            let data_out = DataOut {
                is_final: piece.is_final,
                // RFC 7143 §11.7.4, §11.8.5: LUN and tag as the R2T has them
                lun: sequence.lun,
                initiator_task_tag: sequence.itt,
                target_transfer_tag: sequence.ttt,
                exp_stat_sn: connection.exp_stat_sn,
                data_sn: piece.data_sn,
                buffer_offset: piece.offset,
            };
            connection.tell_stat_sn();
            if piece.is_final {
                connection.sequences.pop_front();
            }
            let mut header = data_out.emit();
            header::set_data_segment_bytes(&mut header, piece.bytes);
            let payload = Payload::Task {
                slot,
                offset: piece.offset,
                bytes: piece.bytes,
                is_data_out: true,
            };
            return Some(Transmit { header, payload });
        }
    }
}
