//! What each fuzz target does with its input: bytes of a hostile peer into the code that takes them apart.
//!
//! A file of its own because two use it: the targets of cargo-fuzz, and `tests/fuzz_corpora.rs`, which replays the
//! committed corpora without libFuzzer.
//!
//! Invariants, which every body checks by running:
//! 1. No input makes the code panic, loop for ever, or take memory by a length that the peer wrote.
//! 2. What is understood survives: written again and read again it is the same value.
//! 3. No placement lies outside of the buffer that was offered.

mod cinder;
mod connection;
mod docker;
mod settings;

use std::time::{Duration, Instant};

use bytes::BytesMut;
use cinder_nbd::block::{Extent, Geometry};
use cinder_nbd::nbd::handshake::{Handshake, Progress, Terms};
use cinder_nbd::nbd::transmission::{Agreed, Command, Next, Step, Transmission};
use iscsi::proto::chap::{CHANCE_BYTES, Challenge, OurChallenge};
use iscsi::proto::discovery::{Discovery, DiscoveryStep};
use iscsi::proto::login::{Established, Login, LoginStep};
use iscsi::proto::negotiation::{Negotiation, Role};
use iscsi::proto::session::{Direction, Event, Placement, Session, Settings};
use iscsi::proto::{ChapAlgorithm, ChapCredentials, Isid, Offers, Secret, SessionParams, Timeouts};
use iscsi::scsi::mode::ModeParameters;
use iscsi::scsi::reservation::{Capabilities, FullStatus, Keys, Reservation};
use iscsi::scsi::vpd::{self, BlockCharacteristics, BlockLimits, Provisioning};
use iscsi::scsi::{
    Blocks, Capacity, Cdb, Examination, Inquiry, Lba, LunAddress, Sense, Status, TargetPortGroups,
    lba_status,
};
use iscsi::wire::header::{ResponseNumbers, ahs_bytes, data_segment_bytes};
use iscsi::wire::logout::LogoutReason;
use iscsi::wire::serial::{CmdSn, StatSn};
use iscsi::wire::task_management::TaskManagementFunction;
use iscsi::wire::{BHS_BYTES, Bhs, FromTarget, binary, text_keys};

pub use cinder::cinder_answer;
pub use connection::connection;
pub use docker::docker_request;
pub use settings::settings;

/// A target's name and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All targets, by the names of their folders in `corpus/`.
pub const TARGETS: [Target; 16] = [
    ("chap_values", chap_values),
    ("cinder_answer", cinder_answer),
    ("connection", connection),
    ("docker_request", docker_request),
    ("examination", examination),
    ("login", login),
    ("nbd_options", nbd_options),
    ("nbd_requests", nbd_requests),
    ("pdu_headers", pdu_headers),
    ("scsi_data", scsi_data),
    ("sendtargets", sendtargets),
    ("sense", sense),
    ("session", session),
    ("session_in_time", session_in_time),
    ("settings", settings),
    ("text_keys", text_keys),
];

/// One header: what is understood survives a round trip.
pub fn pdu_headers(data: &[u8]) {
    let Some(bhs) = data.first_chunk::<BHS_BYTES>() else {
        return;
    };
    assert!(ahs_bytes(bhs) <= 255 * 4);
    assert!(data_segment_bytes(bhs) < 1 << 24);
    if let Ok(parsed) = FromTarget::parse(bhs) {
        assert_eq!(FromTarget::parse(&emit(&parsed)), Ok(parsed));
    }
}

/// The text of a login or text PDU.
pub fn text_keys(data: &[u8]) {
    let Ok(pairs) = text_keys::parse(data) else {
        return;
    };
    let mut again = Vec::new();
    for (key, value) in &pairs {
        text_keys::emit(&mut again, key, value);
    }
    assert_eq!(text_keys::parse(&again), Ok(pairs));
}

/// Five lines: `CHAP_A`, `CHAP_I`, `CHAP_C`, and the target's own `CHAP_N` and `CHAP_R`.
pub fn chap_values(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut lines = text.splitn(5, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (algorithm, identifier, challenge) = (line(), line(), line());
    let (name, response) = (line(), line());
    for value in [challenge, response] {
        if let Some(bytes) = binary::parse(value) {
            assert_eq!(binary::parse(&binary::to_hex(&bytes)), Some(bytes));
        }
    }
    let offered = ChapAlgorithm::ALL;
    if let Ok(challenge) = Challenge::parse(&offered, algorithm, identifier, challenge) {
        // "0x" and two digits a byte: MD5 is the shortest, the others have up to 32 bytes.
        let length = challenge.response(&credentials()).len();
        assert!([34, 42, 66].contains(&length));
        let ours = OurChallenge::new(CHANCE);
        if ours.spell(&challenge).is_ok() {
            let own = credentials().secret;
            let picked = challenge.algorithm();
            let proved = ours.judge(picked, &targets_credentials(), &own, name, response);
            assert!(proved.is_err() || name == targets_credentials().name);
        }
    }
}

/// A target's side of a login, PDU after PDU. The initiator task tag of the first header says which login: bit 0 with
/// mutual CHAP, bit 1 a further connection, bit 2 with a list of algorithms.
pub fn login(data: &[u8]) {
    let kind = data.get(ITT).map_or(0, |tag| tag[0]);
    let mut params = params();
    params.chap = Some(credentials());
    if kind & 1 != 0 {
        params.mutual_chap = Some(targets_credentials());
    }
    if kind & 4 != 0 {
        params.chap_algorithms = ChapAlgorithm::ALL.to_vec();
    }
    let login = if kind & 2 != 0 {
        Login::further(&params, CmdSn(1), 9, 1)
    } else {
        Login::new(&params, CmdSn(1))
    };
    let Ok(mut login) = login.map(|login| login.with_chance(CHANCE)) else {
        return;
    };
    for (mut bhs, text) in Pdus(data) {
        while login.poll_transmit().is_some() {}
        bhs[ITT.start] = 0;
        match login.handle_response(&bhs, text) {
            Ok(LoginStep::Continue) => {}
            Ok(LoginStep::Established(established)) => {
                // A target that was to prove itself has; one that joined is in its session.
                assert_eq!(established.is_target_proved, kind & 1 != 0);
                assert!(kind & 2 == 0 || (established.tsih, established.cid) == (9, 1));
                return;
            }
            Ok(LoginStep::Redirect(_)) | Err(_) => return,
        }
    }
}

/// A target's side of a discovery session, PDU after PDU.
pub fn sendtargets(data: &[u8]) {
    let mut discovery = Discovery::new(params().portal, &established(Role::Discovery));
    for (bhs, text) in Pdus(data) {
        while discovery.poll_transmit().is_some() {}
        match discovery.handle_pdu(&bhs, text) {
            Ok(DiscoveryStep::Found(found)) => {
                assert!(
                    found
                        .targets
                        .iter()
                        .all(|target| !target.portals.is_empty())
                );
            }
            Ok(DiscoveryStep::Continue) => {}
            Ok(DiscoveryStep::Ended) | Err(_) => return,
        }
    }
}

/// A target's side of a session with a read and a write under way. The initiator task tag 0 or 1 of the input stands
/// for the tag of the read or the write, 2 for that of our last ping or function: a fuzzer does not guess 32 bits.
pub fn session(data: &[u8]) {
    run_session(data, 1, 0);
}

/// The same over several connections and in time. A byte before each PDU says on which connection it comes (its two
/// lowest bits), how much time passes before (the next four, in quarters of a minute), and what the owner does: the
/// highest bits are a reset of the LUN and the end of a connection.
pub fn session_in_time(data: &[u8]) {
    run_session(data, 3, 1);
}

fn run_session(data: &[u8], connections: u16, prefix: usize) {
    let begin = Instant::now();
    let mut run = Run::new(connections, begin);
    let mut rest = data;
    while rest.len() > prefix {
        let choice = if prefix == 0 { 0 } else { rest[0] };
        let mut pdus = Pdus(&rest[prefix..]);
        let Some((bhs, segment)) = pdus.next() else {
            return;
        };
        rest = pdus.0;
        if run.pass_time(choice).is_none() || run.take(choice, bhs, segment).is_none() {
            return;
        }
    }
}

/// A session, and what the fuzzer knows of it.
struct Run {
    session: Session,
    now: Instant,
    /// The slots of the read and the write.
    slots: [Option<u16>; 2],
    /// Tags of the read, the write, and the last control PDU.
    tags: [Option<[u8; 4]>; 3],
    ended: usize,
    open: [bool; 3],
}

impl Run {
    fn new(connections: u16, now: Instant) -> Self {
        let settings = Settings {
            tasks: 4,
            noop_interval: Duration::from_secs(5),
            noop_timeout: Duration::from_secs(10),
            timeouts: Timeouts::default(),
        };
        let mut session = Session::new(&established(Role::Leading), settings, now);
        for _ in 1..connections {
            session.join(&established(Role::Further), now);
        }
        let read = Cdb::read_16(Lba(0), Blocks(READ_BYTES / 512)).0;
        let write = Cdb::write_16(Lba(0), Blocks(WRITE_BYTES / 512), false).0;
        let lun = LunAddress::from_number(1).0;
        let slots = [
            session.submit(lun, read, Direction::Read(READ_BYTES)),
            session.submit(lun, write, Direction::Write(WRITE_BYTES)),
        ];
        let mut run = Self {
            session,
            now,
            slots,
            tags: [None; 3],
            ended: 0,
            open: std::array::from_fn(|cid| cid < usize::from(connections)),
        };
        run.transmit();
        run
    }

    /// Takes what leaves, on the last connection first, so that tasks are not all on the leading one.
    fn transmit(&mut self) {
        for cid in (0..3_u16).rev() {
            if !self.open[usize::from(cid)] {
                continue;
            }
            for _ in 0..PDUS_MAX {
                let Some(transmit) = self.session.poll_transmit(cid) else {
                    break;
                };
                let tag = transmit.header.get(ITT).and_then(|tag| tag.try_into().ok());
                match transmit.header[0] & 0x3F {
                    0x01 if self.tags[0].is_none() => self.tags[0] = tag,
                    0x01 => self.tags[1] = tag,
                    0x00 | 0x02 | 0x06 => self.tags[2] = tag,
                    _ => {}
                }
            }
        }
    }

    /// `None` if the session is over.
    fn pass_time(&mut self, choice: u8) -> Option<()> {
        self.now += Duration::from_secs(15) * u32::from(choice >> 2 & 0x0F);
        let lun = LunAddress::from_number(1).0;
        if choice & 0x80 != 0 {
            let _ = self.session.handle_task_management(
                TaskManagementFunction::LOGICAL_UNIT_RESET,
                lun,
                None,
            );
        }
        if choice & 0x40 != 0 {
            let cid = u16::from(choice & 3);
            let _ = self
                .session
                .handle_connection_logout(cid, LogoutReason::CLOSE_CONNECTION);
        }
        for _ in 0..STEPS_MAX {
            self.session.handle_timeout(self.now).ok()?;
            self.events();
            self.transmit();
        }
        // A deadline that stays in the past would keep a driver busy for ever.
        let due = self.session.poll_timeout();
        assert!(due.is_none_or(|due| due > self.now));
        Some(())
    }

    /// `None` if the session is over.
    fn take(&mut self, choice: u8, mut bhs: Bhs, segment: &[u8]) -> Option<()> {
        let cid = u16::from(choice & 3);
        if !self.open.get(usize::from(cid)).copied().unwrap_or(false) {
            return Some(());
        }
        if let [0, 0, 0, which @ 0..=2] = bhs[ITT]
            && let Some(tag) = self.tags[usize::from(which)]
        {
            bhs[ITT].copy_from_slice(&tag);
        }
        self.session.handle_heard(cid, self.now);
        let placement = self.session.handle_header(cid, &bhs, self.now).ok()?;
        let own = match placement {
            Placement::Task {
                slot,
                offset,
                bytes,
                ..
            } => {
                assert_eq!(Some(slot), self.slots[0], "data comes for the read only");
                assert!(u64::from(offset) + u64::from(bytes) <= u64::from(READ_BYTES));
                &[][..]
            }
            Placement::Own { .. } => segment,
        };
        let event = self.session.handle_segment(cid, own).ok()?;
        if let Some(event) = event {
            self.note(&event);
        }
        self.events();
        self.transmit();
        Some(())
    }

    fn events(&mut self) {
        while let Some(event) = self.session.poll_event() {
            self.note(&event);
        }
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::Completed(_) => {
                self.ended += 1;
                assert!(self.ended <= 2, "a command ended twice");
            }
            Event::ConnectionClosed { cid } => self.open[usize::from(*cid)] = false,
            Event::FunctionEnded { .. } | Event::Told(_) => {}
        }
    }
}

/// Sense data of both formats.
pub fn sense(data: &[u8]) {
    if let Some(sense) = Sense::parse(data) {
        assert!(sense.to_string().is_ascii());
    }
}

/// A unit's side of an examination: each answer is a status, whether sense data follows, a length, and so many bytes.
pub fn examination(data: &[u8]) {
    let mut examination = Examination::new(LunAddress::from_number(1), None);
    let mut rest = data;
    let mut questions = 0;
    while let Some((cdb, allocation)) = examination.poll_command() {
        let [status, has_sense, length, after @ ..] = rest else {
            return;
        };
        let (answer, after) = after.split_at(after.len().min(usize::from(*length)));
        rest = after;
        assert!(allocation <= 8192 && cdb.0[0] != 0x8A);
        let sense = Sense::parse(answer).filter(|_| has_sense & 1 != 0);
        let _ = examination.handle_answer(Status(*status), sense.as_ref(), answer);
        questions += 1;
        assert!(questions <= data.len());
    }
}

/// Answers to INQUIRY, READ CAPACITY(16), MODE SENSE, REPORT LUNS, REPORT TARGET PORT GROUPS, GET LBA STATUS and
/// PERSISTENT RESERVE IN.
pub fn scsi_data(data: &[u8]) {
    if let Ok(inquiry) = Inquiry::parse(data) {
        assert!(inquiry.vendor.is_ascii() && inquiry.product.is_ascii());
    }
    if let Ok(capacity) = Capacity::parse(data) {
        assert!(i64::try_from(capacity.bytes().0).is_ok());
    }
    let _ = ModeParameters::parse_6(data);
    let _ = ModeParameters::parse_10(data);
    if let Ok(luns) = iscsi::scsi::lun::parse_report_luns(data) {
        assert!(luns.len() <= data.len() / 8);
    }
    if let Ok(statuses) = lba_status::parse(data) {
        assert!(statuses.len() <= data.len() / 16);
    }
    if let Ok(groups) = TargetPortGroups::parse(data) {
        assert!(groups.groups.len() <= data.len() / 8);
    }
    let _ = Reservation::parse(data);
    let _ = Capabilities::parse(data);
    if let Ok(keys) = Keys::parse(data) {
        assert!(keys.keys.len() <= data.len() / 8);
    }
    if let Ok(status) = FullStatus::parse(data) {
        for registrant in status.registrants {
            let _ = registrant.initiator();
        }
    }
    let _ = vpd::parse_supported_pages(data);
    let _ = vpd::parse_serial(data);
    for designator in vpd::parse_designators(data).unwrap_or_default() {
        assert!(designator.to_string().is_ascii());
        let _ = (
            designator.target_port_group(),
            designator.relative_target_port(),
        );
    }
    let _ = BlockLimits::parse(data);
    let _ = BlockCharacteristics::parse(data);
    let _ = Provisioning::parse(data);
}

/// An NBD client's side of the handshake. The first byte says how the rest is cut into pieces.
pub fn nbd_options(data: &[u8]) {
    let Some((cut, data)) = data.split_first() else {
        return;
    };
    // Its upper bits are the terms.
    let mut handshake = Handshake::new(Terms {
        name: if cut & 0x40 == 0 { "" } else { "v1" }.to_owned(),
        tls: cut & 0x80 != 0,
        ..Terms::default()
    });
    let mut waiting = Vec::new();
    for piece in data.chunks(usize::from(*cut) + 1) {
        waiting.extend_from_slice(piece);
        loop {
            let Ok((used, progress)) = handshake.handle_input(&waiting) else {
                return;
            };
            waiting.drain(..used);
            // An answer never grows with what was asked for: the longest text of the protocol bounds it.
            assert!(handshake.poll_output().len() <= (data.len() + 1) * 4096);
            match progress {
                Progress::NeedInput => break,
                Progress::OpenExport => {
                    let opened = if waiting.len().is_multiple_of(2) {
                        Ok(&GEOMETRY)
                    } else {
                        Err("there is no such export")
                    };
                    if handshake.handle_export(opened).is_err() {
                        return;
                    }
                }
                Progress::StartTls => {
                    handshake.handle_tls();
                    assert_eq!(handshake.agreed(), Agreed::default());
                }
                Progress::Transmission => {
                    let Agreed {
                        structured_replies,
                        base_allocation,
                    } = handshake.agreed();
                    assert!(structured_replies || !base_allocation);
                    return;
                }
                Progress::Ended => return,
            }
        }
    }
}

/// An NBD client's side of the transmission phase. The first byte says which answers the backend gives, and what was
/// agreed on.
pub fn nbd_requests(data: &[u8]) {
    let Some((mode, mut data)) = data.split_first() else {
        return;
    };
    let agreed = Agreed {
        structured_replies: mode & 0x40 != 0,
        base_allocation: mode & 0x80 != 0,
    };
    let mut transmission = Transmission::new(&GEOMETRY, agreed);
    let mut under_way = Vec::new();
    loop {
        let Ok((used, step)) = transmission.handle_input(data) else {
            return;
        };
        data = &data[used..];
        match step {
            Step::NeedInput | Step::Disconnect => break,
            Step::Full => {
                let Some(first) = under_way.pop() else {
                    panic!("full with nothing under way")
                };
                complete(&mut transmission, first, *mode);
            }
            Step::Submit(accepted) => {
                check_range(accepted.command);
                under_way.push(accepted);
            }
            Step::Payload(accepted) => {
                check_range(accepted.command);
                let Command::Write { len, .. } = accepted.command else {
                    panic!("only a write has a payload")
                };
                let Some(rest) = usize::try_from(len).ok().and_then(|len| data.get(len..)) else {
                    transmission.abandon_payload();
                    break;
                };
                data = rest;
                under_way.push(transmission.handle_payload());
            }
            Step::Reply(_) => {}
        }
    }
    for accepted in under_way {
        complete(&mut transmission, accepted, *mode);
    }
    assert_eq!(transmission.in_flight(), 0);
}

/// Ends a request, all its parts.
fn complete(
    transmission: &mut Transmission,
    accepted: cinder_nbd::nbd::transmission::Accepted,
    mode: u8,
) {
    let mut accepted = accepted;
    loop {
        let mut data = BytesMut::new();
        match accepted.command {
            Command::Read { len, .. } => data.resize(usize::try_from(len).unwrap_or_default(), 0),
            Command::BlockStatus { len, .. } => Extent {
                bytes: len,
                is_hole: mode & 1 != 0,
                reads_zero: true,
            }
            .pack(&mut data),
            Command::Write { .. }
            | Command::ZeroFill { .. }
            | Command::Flush
            | Command::Trim { .. }
            | Command::WriteZeroes { .. }
            | Command::Cache { .. } => {}
        }
        let result = match mode % 3 {
            0 => Err(cinder_nbd::block::ErrorKind::Io),
            _ => Ok(data),
        };
        match transmission.handle_completion(accepted.token, result) {
            Next::Submit(next) => {
                check_range(next.command);
                accepted = next;
            }
            Next::Reply(reply) => {
                let bytes: usize = reply.parts().iter().map(|part| part.len()).sum();
                assert_eq!(bytes, reply.bytes());
                if let Some(data) = reply.into_read_data() {
                    transmission.handle_sent(data.len());
                }
                return;
            }
        }
    }
}

/// What reaches the backend lies on the device and is whole blocks.
fn check_range(command: Command) {
    let (offset, len) = match command {
        Command::Flush => return,
        Command::Read { offset, len }
        | Command::Write { offset, len, .. }
        | Command::ZeroFill { offset, len, .. }
        | Command::Trim { offset, len }
        | Command::WriteZeroes { offset, len, .. }
        | Command::Cache { offset, len }
        | Command::BlockStatus { offset, len, .. } => (offset, u64::from(len)),
    };
    assert!(offset + len <= GEOMETRY.size_bytes);
    assert!((offset | len).is_multiple_of(u64::from(GEOMETRY.block_bytes)));
}

/// Input as PDUs: 48 bytes of header, then as much of its data segment as is there, without padding.
struct Pdus<'a>(&'a [u8]);

impl<'a> Iterator for Pdus<'a> {
    type Item = (Bhs, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (bhs, rest) = self.0.split_first_chunk::<BHS_BYTES>()?;
        let told = usize::try_from(data_segment_bytes(bhs)).unwrap_or(usize::MAX);
        let (segment, rest) = rest.split_at(told.min(rest.len()));
        self.0 = rest;
        // A driver hands over whole segments only.
        let mut bhs = *bhs;
        iscsi::wire::header::set_data_segment_bytes(
            &mut bhs,
            u32::try_from(segment.len()).unwrap_or(u32::MAX),
        );
        Some((bhs, segment))
    }
}

fn emit(parsed: &FromTarget) -> Bhs {
    match parsed {
        FromTarget::NopIn(pdu) => pdu.emit(),
        FromTarget::ScsiResponse(pdu) => pdu.emit(),
        FromTarget::TaskManagementResponse(pdu) => pdu.emit(),
        FromTarget::LoginResponse(pdu) => pdu.emit(),
        FromTarget::TextResponse(pdu) => pdu.emit(),
        FromTarget::DataIn(pdu) => pdu.emit(),
        FromTarget::LogoutResponse(pdu) => pdu.emit(),
        FromTarget::R2t(pdu) => pdu.emit(),
        FromTarget::AsyncMessage(pdu) => pdu.emit(),
        FromTarget::Reject(pdu) => pdu.emit(),
    }
}

fn credentials() -> ChapCredentials {
    ChapCredentials {
        name: "user".to_owned(),
        secret: Secret::new("a-secret-of-16-b".to_owned()),
    }
}

fn targets_credentials() -> ChapCredentials {
    ChapCredentials {
        name: "target".to_owned(),
        secret: Secret::new("the-targets-secret".to_owned()),
    }
}

fn params() -> SessionParams {
    let portal = "192.0.2.1:3260".parse().expect("a legal portal");
    let name = "iqn.2026-11.org.cinder-nbd:fuzz"
        .parse()
        .expect("a legal name");
    let mut params = SessionParams::new(portal, name, Isid::random([1, 2, 3], 4));
    params.target_name = Some("iqn.2026-11.test:target".parse().expect("a legal name"));
    params
}

fn established(role: Role) -> Established {
    Established {
        agreed: Negotiation::new(role, &Offers::default())
            .finish()
            .expect("the defaults agree"),
        tsih: 1,
        cid: 0,
        is_target_proved: false,
        warnings: Vec::new(),
        cmd_sn: CmdSn(7),
        exp_stat_sn: StatSn(100),
        numbers: ResponseNumbers {
            stat_sn: StatSn(99),
            exp_cmd_sn: CmdSn(7),
            max_cmd_sn: CmdSn(38),
        },
    }
}

/// Where every header has its initiator task tag.
const ITT: std::ops::Range<usize> = 16..20;
/// More than can be due at one time: a ping, a step of the ladder, a logout.
const STEPS_MAX: usize = 4;
/// More than any state of the session can have ready to leave.
const PDUS_MAX: usize = 4096;
/// What stands for the random bytes of a login with mutual CHAP.
const CHANCE: [u8; CHANCE_BYTES] = *b"Irandom-challenge";
const READ_BYTES: u32 = 8192;
const WRITE_BYTES: u32 = 131_072;

const GEOMETRY: Geometry = Geometry {
    size_bytes: 1 << 20,
    block_bytes: 512,
    physical_block_bytes: 4096,
    preferred_bytes: 4096,
    request_bytes_max: 1 << 16,
    read_only: false,
    write_cache: true,
    can_trim: true,
    can_write_zeroes: false,
    rotational: false,
};
