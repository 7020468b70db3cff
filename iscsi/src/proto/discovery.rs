//! `SendTargets`: the text exchange of a discovery session, over as many PDUs as the list needs.
//!
//! Source: RFC 7143 §11.10, §11.11, §13.3, Appendix C.
//!
//! Invariants:
//! 1. One text request is outstanding at a time.
//! 2. The list's bytes, targets and PDUs have limits.

use std::fmt;

use super::login::Established;
use super::negotiation::Agreed;
use super::{IscsiName, Portal, Violation};
use crate::wire::header::{self, Bhs, Opcode};
use crate::wire::logout::{LogoutReason, LogoutRequest, LogoutResponse};
use crate::wire::nop::{NopIn, NopOut};
use crate::wire::serial::{CmdSn, StatSn};
use crate::wire::tag::{InitiatorTaskTag, TargetTransferTag};
use crate::wire::text::{TextRequest, TextResponse};
use crate::wire::text_keys;

/// A target that a portal told us of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveredTarget {
    /// Its name.
    pub name: IscsiName,
    /// Where it is, in the order told.
    pub portals: Vec<DiscoveredPortal>,
}

/// One address of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveredPortal {
    /// The address.
    pub portal: Portal,
    /// Its portal group; absent where the target told no address and the asked portal stands for it.
    pub portal_group_tag: Option<u16>,
}

impl fmt::Display for DiscoveredPortal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.portal)?;
        match self.portal_group_tag {
            Some(tag) => write!(f, ",{tag}"),
            None => Ok(()),
        }
    }
}

/// The full feature phase of a discovery session.
#[derive(Debug)]
pub struct Discovery {
    asked: Portal,
    cmd_sn: CmdSn,
    exp_stat_sn: StatSn,
    recv_bytes_max: u32,
    text: Vec<u8>,
    rounds: u32,
    outgoing: Option<(Bhs, Vec<u8>)>,
    is_logging_out: bool,
}

/// What became of a PDU.
#[derive(Debug, PartialEq, Eq)]
pub enum DiscoveryStep {
    /// Look at `poll_transmit`, then read on.
    Continue,
    /// The list is complete; a logout is ready in `poll_transmit`.
    Found(Discovered),
    /// Logged out.
    Ended,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Discovered {
    /// The targets, in the order told.
    pub targets: Vec<DiscoveredTarget>,
    /// Names and addresses that are none, shortened; they are left out.
    pub left_out: Vec<String>,
}

/// Most text in one list: room for some ten thousand targets.
const TEXT_BYTES_MAX: usize = 4 << 20;
/// Most PDUs in one list: at 8 KiB each they hold `TEXT_BYTES_MAX`, with room for small ones.
const ROUNDS_MAX: u32 = 4096;
const TEXT_TAG: InitiatorTaskTag = InitiatorTaskTag(2);
const LOGOUT_TAG: InitiatorTaskTag = InitiatorTaskTag(3);

impl Discovery {
    /// Takes over from a discovery session's login; asks `asked` for all targets.
    pub fn new(asked: Portal, established: &Established) -> Self {
        let mut discovery = Self {
            asked,
            cmd_sn: established.cmd_sn,
            exp_stat_sn: established.exp_stat_sn,
            recv_bytes_max: recv_bytes_max(&established.agreed),
            text: Vec::new(),
            rounds: 0,
            outgoing: None,
            is_logging_out: false,
        };
        let mut text = Vec::new();
        // RFC 7143 Appendix C: All, in a discovery session
        text_keys::emit(&mut text, "SendTargets", "All");
        discovery.ask(TargetTransferTag::RESERVED, 0, text);
        discovery
    }

    /// The next PDU to send: header and data segment without padding.
    pub fn poll_transmit(&mut self) -> Option<(Bhs, Vec<u8>)> {
        self.outgoing.take()
    }

    /// Takes a PDU: its header and its data segment without padding.
    ///
    /// # Errors
    /// The target broke a rule.
    pub fn handle_pdu(&mut self, bhs: &Bhs, data: &[u8]) -> Result<DiscoveryStep, Violation> {
        let bytes = header::data_segment_bytes(bhs);
        if bytes > self.recv_bytes_max {
            return Err(Violation::SegmentTooLong {
                bytes,
                limit: self.recv_bytes_max,
            });
        }
        if header::ahs_bytes(bhs) != 0 {
            return Err(Violation::AdditionalHeader);
        }
        match header::opcode(bhs) {
            Opcode::TEXT_RESPONSE if !self.is_logging_out => self.handle_text(bhs, data),
            Opcode::NOP_IN => {
                self.handle_nop_in(&NopIn::parse(bhs), data);
                Ok(DiscoveryStep::Continue)
            }
            Opcode::LOGOUT_RESPONSE if self.is_logging_out => {
                let response = LogoutResponse::parse(bhs);
                if response.initiator_task_tag != LOGOUT_TAG {
                    return Err(Violation::UnknownTask(response.initiator_task_tag.0));
                }
                Ok(DiscoveryStep::Ended)
            }
            other => Err(Violation::Pdu(other)),
        }
    }

    fn handle_text(&mut self, bhs: &Bhs, data: &[u8]) -> Result<DiscoveryStep, Violation> {
        let response = TextResponse::parse(bhs);
        if response.initiator_task_tag != TEXT_TAG {
            return Err(Violation::UnknownTask(response.initiator_task_tag.0));
        }
        let seen = response.numbers.stat_sn;
        if seen != self.exp_stat_sn {
            return Err(Violation::StatSn {
                expected: self.exp_stat_sn.0,
                seen: seen.0,
            });
        }
        self.exp_stat_sn = seen.next();
        if self.text.len() + data.len() > TEXT_BYTES_MAX {
            return Err(Violation::TextTooLong {
                limit: TEXT_BYTES_MAX,
            });
        }
        self.text.extend_from_slice(data);
        if response.is_final {
            // RFC 7143 §11.11.1: F excludes C
            if response.is_continued {
                return Err(Violation::TextExchange);
            }
            let found = parse_targets(&self.text, &self.asked)?;
            self.log_out();
            return Ok(DiscoveryStep::Found(found));
        }
        self.rounds += 1;
        // RFC 7143 §11.11.4: a response that is not the last has a tag to go on with
        let tag = response.target_transfer_tag;
        if tag == TargetTransferTag::RESERVED || self.rounds >= ROUNDS_MAX {
            return Err(Violation::TextExchange);
        }
        self.ask(tag, response.lun, Vec::new());
        Ok(DiscoveryStep::Continue)
    }

    fn handle_nop_in(&mut self, nop_in: &NopIn, data: &[u8]) {
        if nop_in.target_transfer_tag == TargetTransferTag::RESERVED {
            return;
        }
        // RFC 7143 §11.18: the target's ping comes back with its tag, LUN and data
        let nop_out = NopOut {
            immediate: true,
            lun: nop_in.lun,
            initiator_task_tag: InitiatorTaskTag::RESERVED,
            target_transfer_tag: nop_in.target_transfer_tag,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
        };
        self.queue(nop_out.emit(), data.to_vec());
    }

    fn ask(&mut self, tag: TargetTransferTag, lun: u64, text: Vec<u8>) {
        let request = TextRequest {
            immediate: false,
            is_final: true,
            is_continued: false,
            lun,
            initiator_task_tag: TEXT_TAG,
            target_transfer_tag: tag,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
        };
        self.cmd_sn = self.cmd_sn.next();
        self.queue(request.emit(), text);
    }

    fn log_out(&mut self) {
        self.is_logging_out = true;
        let request = LogoutRequest {
            immediate: true,
            reason: LogoutReason::CLOSE_SESSION,
            initiator_task_tag: LOGOUT_TAG,
            cid: 0,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
        };
        self.queue(request.emit(), Vec::new());
    }

    fn queue(&mut self, mut bhs: Bhs, data: Vec<u8>) {
        let length = u32::try_from(data.len()).expect("own texts and pings below 2^24 bytes");
        header::set_data_segment_bytes(&mut bhs, length);
        self.outgoing = Some((bhs, data));
    }
}

fn recv_bytes_max(agreed: &Agreed) -> u32 {
    agreed.ours_max_recv_data_segment_bytes
}

/// Reads a `SendTargets` answer: a name begins a record, addresses follow.
fn parse_targets(text: &[u8], asked: &Portal) -> Result<Discovered, Violation> {
    let mut found = Discovered::default();
    // Whether addresses belong to the last of `targets`, or to a name that was left out.
    let mut is_record_open = false;
    for (key, value) in text_keys::parse(text)? {
        match key {
            "TargetName" => {
                let name = value.parse();
                is_record_open = name.is_ok();
                if let Ok(name) = name {
                    let portals = Vec::new();
                    found.targets.push(DiscoveredTarget { name, portals });
                } else {
                    found.left_out.push(super::violation::excerpt(value));
                }
            }
            "TargetAddress" => {
                let record = found.targets.last_mut().filter(|_| is_record_open);
                match (record, Portal::from_target_address(value)) {
                    (Some(target), Ok((portal, portal_group_tag))) => {
                        target.portals.push(DiscoveredPortal {
                            portal,
                            portal_group_tag,
                        });
                    }
                    (Some(_), Err(_)) => found.left_out.push(super::violation::excerpt(value)),
                    (None, _) if found.left_out.is_empty() => {
                        // RFC 7143 Appendix C: an address belongs to the name before it
                        return Err(Violation::KeyOutOfPlace(key.to_owned()));
                    }
                    (None, _) => {}
                }
            }
            // RFC 7143 Appendix C: other keys of a record are to be passed over
            _ => {}
        }
    }
    for target in found
        .targets
        .iter_mut()
        .filter(|target| target.portals.is_empty())
    {
        // RFC 7143 Appendix C: without an address the target is where we asked
        target.portals.push(DiscoveredPortal {
            portal: asked.clone(),
            portal_group_tag: None,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Offers;
    use crate::proto::negotiation::{Negotiation, Role};
    use crate::wire::header::ResponseNumbers;

    fn discovery() -> Discovery {
        let established = Established {
            agreed: Negotiation::new(Role::Discovery, &Offers::default())
                .finish()
                .unwrap(),
            tsih: 1,
            cid: 0,
            is_target_proved: false,
            warnings: Vec::new(),
            cmd_sn: CmdSn(7),
            exp_stat_sn: StatSn(100),
            numbers: ResponseNumbers::default(),
        };
        Discovery::new("10.0.0.1".parse().unwrap(), &established)
    }

    fn response(stat_sn: u32, is_final: bool, tag: u32, text: &[u8]) -> (Bhs, Vec<u8>) {
        let response = TextResponse {
            is_final,
            is_continued: !is_final,
            lun: 0,
            initiator_task_tag: TEXT_TAG,
            target_transfer_tag: TargetTransferTag(tag),
            numbers: ResponseNumbers {
                stat_sn: StatSn(stat_sn),
                ..Default::default()
            },
        };
        let mut bhs = response.emit();
        header::set_data_segment_bytes(&mut bhs, u32::try_from(text.len()).unwrap());
        (bhs, text.to_vec())
    }

    // L23: RFC 7143 §11.10, §11.11: the list goes on while F is not set, the tag is echoed
    #[test]
    fn list_over_several_pdus_is_put_together_even_when_split_in_a_key() {
        let mut discovery = discovery();
        let (bhs, text) = discovery.poll_transmit().unwrap();
        let first = TextRequest::parse(&bhs);
        assert_eq!(text, b"SendTargets=All\0");
        assert_eq!(first.target_transfer_tag, TargetTransferTag::RESERVED);
        assert_eq!((first.cmd_sn, first.exp_stat_sn), (CmdSn(7), StatSn(100)));
        assert!(discovery.poll_transmit().is_none());

        let (bhs, text) = response(
            100,
            false,
            0x55,
            b"TargetName=iqn.2010-10.org.a:1\0TargetAddr",
        );
        assert_eq!(
            discovery.handle_pdu(&bhs, &text),
            Ok(DiscoveryStep::Continue)
        );
        let (bhs, text) = discovery.poll_transmit().unwrap();
        let second = TextRequest::parse(&bhs);
        assert_eq!(second.target_transfer_tag, TargetTransferTag(0x55));
        assert_eq!((second.cmd_sn, second.exp_stat_sn), (CmdSn(8), StatSn(101)));
        assert!(text.is_empty());

        let tail = b"ess=[fe80::1]:3261,2\0TargetAddress=10.0.0.9:3260,1\0TargetName=iqn.2010-10.org.a:2\0";
        let (bhs, text) = response(101, true, u32::MAX, tail);
        let Ok(DiscoveryStep::Found(found)) = discovery.handle_pdu(&bhs, &text) else {
            panic!("the list is complete");
        };
        let portals: Vec<_> = found
            .targets
            .iter()
            .flat_map(|target| &target.portals)
            .map(|portal| (portal.portal.to_string(), portal.portal_group_tag))
            .collect();
        assert_eq!(
            portals,
            [
                ("[fe80::1]:3261".to_owned(), Some(2)),
                ("10.0.0.9:3260".to_owned(), Some(1)),
                ("10.0.0.1:3260".to_owned(), None),
            ]
        );
        assert_eq!(
            header::opcode(&discovery.poll_transmit().unwrap().0),
            Opcode::LOGOUT_REQUEST
        );
    }

    #[test]
    fn illegal_names_are_left_out_with_their_addresses() {
        let text =
            b"TargetName=disk 1\0TargetAddress=10.0.0.9:3260,1\0TargetName=iqn.2010-10.org.a:2\0";
        let found = parse_targets(text, &"10.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(found.left_out, ["disk 1"]);
        assert_eq!(found.targets.len(), 1);
        assert_eq!(found.targets[0].portals.len(), 1);
        assert_eq!(
            parse_targets(b"TargetAddress=10.0.0.9\0", &"10.0.0.1".parse().unwrap()),
            Err(Violation::KeyOutOfPlace("TargetAddress".to_owned()))
        );
    }

    // L23: RFC 7143 §13.8: host names, IPv4 and IPv6, with and without port, tag and brackets
    #[test]
    fn addresses_of_all_forms_are_read() {
        let forms = [
            ("10.0.0.9", "10.0.0.9:3260"),
            ("10.0.0.9,1", "10.0.0.9:3260,1"),
            ("10.0.0.9:860,65535", "10.0.0.9:860,65535"),
            ("storage.example:3261,0", "storage.example:3261,0"),
            ("[fd00::1],0x2", "[fd00::1]:3260,2"),
            ("[fd00::1]:3261,2", "[fd00::1]:3261,2"),
            ("fd00::1,2", "[fd00::1]:3260,2"),
        ];
        let mut text = b"TargetName=iqn.2010-10.org.a:1\0".to_vec();
        for (address, _) in forms {
            text_keys::emit(&mut text, "TargetAddress", address);
        }
        text_keys::emit(&mut text, "TargetAddress", "[fd00::1");
        let found = parse_targets(&text, &"10.0.0.1".parse().unwrap()).unwrap();
        let portals = found.targets[0].portals.iter().map(ToString::to_string);
        assert!(portals.eq(forms.map(|(_, shown)| shown)));
        assert_eq!(found.left_out, ["[fd00::1"]);
    }

    // L28: a list has a limit too
    #[test]
    fn list_beyond_the_limit_is_refused() {
        let mut endless = discovery();
        let mut stat_sn = 100;
        let refused = loop {
            let (bhs, text) = response(stat_sn, false, 1, &vec![b'x'; 65_536]);
            if let Err(violation) = endless.handle_pdu(&bhs, &text) {
                break violation;
            }
            stat_sn += 1;
        };
        assert_eq!(
            refused,
            Violation::TextTooLong {
                limit: TEXT_BYTES_MAX
            }
        );
        assert!(usize::try_from(stat_sn - 100).unwrap() <= TEXT_BYTES_MAX / 65_536);
    }

    #[test]
    fn exchange_that_leads_nowhere_is_refused() {
        let (bhs, text) = response(100, false, u32::MAX, b"");
        assert_eq!(
            discovery().handle_pdu(&bhs, &text),
            Err(Violation::TextExchange)
        );
        let (bhs, text) = response(99, true, u32::MAX, b"");
        assert_eq!(
            discovery().handle_pdu(&bhs, &text),
            Err(Violation::StatSn {
                expected: 100,
                seen: 99
            })
        );
        let mut endless = discovery();
        let mut stat_sn = 100;
        let refused = loop {
            let (bhs, text) = response(stat_sn, false, 1, b"");
            if let Err(violation) = endless.handle_pdu(&bhs, &text) {
                break violation;
            }
            stat_sn += 1;
        };
        assert_eq!(refused, Violation::TextExchange);
    }

    // RFC 7143 §11.18
    #[test]
    fn ping_during_discovery_is_answered() {
        let mut discovery = discovery();
        discovery.poll_transmit().unwrap();
        let nop_in = NopIn {
            lun: 3,
            initiator_task_tag: InitiatorTaskTag::RESERVED,
            target_transfer_tag: TargetTransferTag(9),
            numbers: ResponseNumbers::default(),
        };
        assert_eq!(
            discovery.handle_pdu(&nop_in.emit(), b"abc"),
            Ok(DiscoveryStep::Continue)
        );
        let (bhs, data) = discovery.poll_transmit().unwrap();
        let nop_out = NopOut::parse(&bhs);
        assert_eq!(
            (nop_out.lun, nop_out.target_transfer_tag),
            (3, TargetTransferTag(9))
        );
        assert_eq!(data, b"abc");
    }
}
