//! Login Request and Response, and the status words of a login.
//!
//! Source: RFC 7143 §11.12, §11.13.

use std::fmt;

use super::header::{
    self, Bhs, CONTINUE, FINAL, Opcode, ResponseNumbers, bit, field, flag, put_u16, put_u32,
    u16_at, u32_at,
};
use super::serial::{CmdSn, StatSn};
use super::tag::InitiatorTaskTag;

/// A stage of login, two bits (RFC 7143 §11.12.3). The value 2 is reserved and survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stage(pub u8);

impl Stage {
    /// Security negotiation.
    pub const SECURITY: Self = Self(0);
    /// Operational negotiation.
    pub const OPERATIONAL: Self = Self(1);
    /// Full feature phase.
    pub const FULL_FEATURE: Self = Self(3);

    const MASK: u8 = 0x03;
}

/// Login Request header; always for immediate delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginRequest {
    /// T: we are ready to leave the stage.
    pub transit: bool,
    /// C: the keys go on in the next request.
    pub is_continued: bool,
    /// The stage we are in.
    pub current_stage: Stage,
    /// The stage we want; 0 on the wire where `transit` is not set.
    pub next_stage: Stage,
    /// Highest version we speak.
    pub version_max: u8,
    /// Lowest version we speak.
    pub version_min: u8,
    /// Our half of the session's identity.
    pub isid: [u8; 6],
    /// The target's half; 0 asks for a new session.
    pub tsih: u16,
    /// Names the login.
    pub initiator_task_tag: InitiatorTaskTag,
    /// The connection.
    pub cid: u16,
    /// Command number, constant through a login.
    pub cmd_sn: CmdSn,
    /// The next status number we expect; 0 in a first request.
    pub exp_stat_sn: StatSn,
}

const CURRENT_STAGE_SHIFT: u8 = 2;
const CID: std::ops::Range<usize> = 20..22;

impl LoginRequest {
    /// Reads the header.
    pub fn parse(bhs: &Bhs) -> Self {
        let mut isid = [0; 6];
        isid.copy_from_slice(&bhs[field::ISID]);
        Self {
            transit: flag(bhs[1], FINAL),
            is_continued: flag(bhs[1], CONTINUE),
            current_stage: Stage((bhs[1] >> CURRENT_STAGE_SHIFT) & Stage::MASK),
            next_stage: Stage(bhs[1] & Stage::MASK),
            version_max: bhs[2],
            version_min: bhs[3],
            isid,
            tsih: u16_at(bhs, field::TSIH),
            initiator_task_tag: InitiatorTaskTag(u32_at(bhs, field::INITIATOR_TASK_TAG)),
            cid: u16_at(bhs, CID),
            cmd_sn: CmdSn(u32_at(bhs, field::WORD_24)),
            exp_stat_sn: StatSn(u32_at(bhs, field::WORD_28)),
        }
    }

    /// Writes the header; the data segment's length is left 0.
    pub fn emit(&self) -> Bhs {
        let mut bhs = header::new(Opcode::LOGIN_REQUEST, true);
        bhs[1] = stage_byte(
            self.transit,
            self.is_continued,
            self.current_stage,
            self.next_stage,
        );
        bhs[2] = self.version_max;
        bhs[3] = self.version_min;
        bhs[field::ISID].copy_from_slice(&self.isid);
        put_u16(&mut bhs, field::TSIH, self.tsih);
        put_u32(
            &mut bhs,
            field::INITIATOR_TASK_TAG,
            self.initiator_task_tag.0,
        );
        put_u16(&mut bhs, CID, self.cid);
        put_u32(&mut bhs, field::WORD_24, self.cmd_sn.0);
        put_u32(&mut bhs, field::WORD_28, self.exp_stat_sn.0);
        bhs
    }
}

/// Login Response header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginResponse {
    /// T: the target leaves the stage too.
    pub transit: bool,
    /// C: the keys go on in the next response.
    pub is_continued: bool,
    /// The stage the target is in.
    pub current_stage: Stage,
    /// The stage that follows, where `transit` is set.
    pub next_stage: Stage,
    /// Highest version the target speaks.
    pub version_max: u8,
    /// The version in use.
    pub version_active: u8,
    /// Our half of the session's identity.
    pub isid: [u8; 6],
    /// The target's half; given in the last response.
    pub tsih: u16,
    /// Names the login.
    pub initiator_task_tag: InitiatorTaskTag,
    /// Numbers; `StatSN` counts.
    pub numbers: ResponseNumbers,
    /// How it goes.
    pub status: LoginStatus,
}

/// Status of a login: class and detail; an open registry (RFC 7143 §11.13.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LoginStatus {
    /// 0 success, 1 redirection, 2 the initiator's fault, 3 the target's fault.
    pub class: u8,
    /// Within the class.
    pub detail: u8,
}

impl LoginStatus {
    /// Go on.
    pub const SUCCESS: Self = Self {
        class: 0,
        detail: 0,
    };
    /// The target is elsewhere for now.
    pub const MOVED_TEMPORARILY: Self = Self {
        class: 1,
        detail: 1,
    };
    /// The target is elsewhere for good.
    pub const MOVED_PERMANENTLY: Self = Self {
        class: 1,
        detail: 2,
    };
    /// The initiator did something wrong.
    pub const INITIATOR_ERROR: Self = Self {
        class: 2,
        detail: 0,
    };
    /// The initiator could not be authenticated.
    pub const AUTHENTICATION_FAILURE: Self = Self {
        class: 2,
        detail: 1,
    };
    /// The initiator may not use the target.
    pub const AUTHORIZATION_FAILURE: Self = Self {
        class: 2,
        detail: 2,
    };
    /// No such target here.
    pub const NOT_FOUND: Self = Self {
        class: 2,
        detail: 3,
    };
    /// The target does not run now.
    pub const SERVICE_UNAVAILABLE: Self = Self {
        class: 3,
        detail: 1,
    };
}

impl fmt::Display for LoginStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // RFC 7143 §11.13.5: the details of classes 2 and 3
        let words = match (self.class, self.detail) {
            (1, _) => "the target has moved",
            (2, 0) => "the target found a fault in the login",
            (2, 1) => "authentication failed: the target refused the CHAP name or secret",
            (2, 2) => "not allowed: the target does not admit this initiator name",
            (2, 3) => "no such target at this portal",
            (2, 4) => "the target was removed",
            (2, 5) => "the target does not speak this iSCSI version",
            (2, 6) => "the session takes no further connection",
            (2, 7) => "the target misses a parameter of the login",
            (2, 8) => "the session takes no connection at this portal",
            (2, 9) => "the target does not support this session type",
            (2, 10) => "the session does not exist",
            (2, 11) => "the target found the login request out of place",
            (2, _) => "the target refused the login",
            (3, 1) => "the target's service is unavailable",
            (3, 2) => "the target is out of resources",
            (3, _) => "the target failed",
            (_, _) => "the target answered with an unknown status",
        };
        write!(f, "{words} (status {:02x}{:02x})", self.class, self.detail)
    }
}

const STATUS_CLASS: usize = 36;
const STATUS_DETAIL: usize = 37;

impl LoginResponse {
    /// Reads the header.
    pub fn parse(bhs: &Bhs) -> Self {
        let mut isid = [0; 6];
        isid.copy_from_slice(&bhs[field::ISID]);
        Self {
            transit: flag(bhs[1], FINAL),
            is_continued: flag(bhs[1], CONTINUE),
            current_stage: Stage((bhs[1] >> CURRENT_STAGE_SHIFT) & Stage::MASK),
            next_stage: Stage(bhs[1] & Stage::MASK),
            version_max: bhs[2],
            version_active: bhs[3],
            isid,
            tsih: u16_at(bhs, field::TSIH),
            initiator_task_tag: InitiatorTaskTag(u32_at(bhs, field::INITIATOR_TASK_TAG)),
            numbers: ResponseNumbers::parse(bhs),
            status: LoginStatus {
                class: bhs[STATUS_CLASS],
                detail: bhs[STATUS_DETAIL],
            },
        }
    }

    /// Writes the header; the data segment's length is left 0.
    pub fn emit(&self) -> Bhs {
        let mut bhs = header::new(Opcode::LOGIN_RESPONSE, false);
        bhs[1] = stage_byte(
            self.transit,
            self.is_continued,
            self.current_stage,
            self.next_stage,
        );
        bhs[2] = self.version_max;
        bhs[3] = self.version_active;
        bhs[field::ISID].copy_from_slice(&self.isid);
        put_u16(&mut bhs, field::TSIH, self.tsih);
        put_u32(
            &mut bhs,
            field::INITIATOR_TASK_TAG,
            self.initiator_task_tag.0,
        );
        self.numbers.emit(&mut bhs);
        bhs[STATUS_CLASS] = self.status.class;
        bhs[STATUS_DETAIL] = self.status.detail;
        bhs
    }
}

fn stage_byte(transit: bool, is_continued: bool, current: Stage, next: Stage) -> u8 {
    bit(transit, FINAL)
        | bit(is_continued, CONTINUE)
        | ((current.0 & Stage::MASK) << CURRENT_STAGE_SHIFT)
        | (next.0 & Stage::MASK)
}
