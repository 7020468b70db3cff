//! The table of the negotiated keys.
//!
//! Source: RFC 7143 §13, each row by its section.

use std::ops::RangeInclusive;

use crate::proto::offers::{COUNT_RANGE, DigestPolicy, Offers, SEGMENT_RANGE, TIME_RANGE};

/// A key that is negotiated by offer and answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// RFC 7143 §13.1.
    HeaderDigest,
    /// RFC 7143 §13.1.
    DataDigest,
    /// RFC 7143 §13.2.
    MaxConnections,
    /// RFC 7143 §13.10.
    InitialR2T,
    /// RFC 7143 §13.11.
    ImmediateData,
    /// RFC 7143 §13.13.
    MaxBurstLength,
    /// RFC 7143 §13.14.
    FirstBurstLength,
    /// RFC 7143 §13.15.
    DefaultTime2Wait,
    /// RFC 7143 §13.16.
    DefaultTime2Retain,
    /// RFC 7143 §13.17.
    MaxOutstandingR2T,
    /// RFC 7143 §13.18.
    DataPDUInOrder,
    /// RFC 7143 §13.19.
    DataSequenceInOrder,
    /// RFC 7143 §13.20.
    ErrorRecoveryLevel,
    /// RFC 7143 §13.23.
    TaskReporting,
    /// RFC 7144 §7.1.1.
    ISCSIProtocolLevel,
}

/// How two values become one (RFC 7143 §6.2.1, §6.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    And,
    Or,
    Minimum,
    Maximum,
    /// The first of the offered list that the other side takes.
    First,
}

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Boolean,
    /// Lowest and highest legal number.
    Number(u32, u32),
    /// Words, each standing for its place in the slice.
    Words(&'static [&'static str]),
}

/// Where a key has a use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Each connection for itself, in all sessions.
    Connection,
    /// The session: on its leading connection only, discovery or not.
    Session,
    /// The session, and irrelevant in a discovery session.
    NormalSession,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) key: Key,
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) function: Function,
    pub(super) default: u32,
    pub(super) scope: Scope,
}

/// RFC 7143 §13.12: what a side takes that declares nothing.
pub(super) const MAX_RECV_DATA_SEGMENT_BYTES_DEFAULT: u32 = 8192;
/// RFC 7143 §13.1: the algorithms; others are private ones (`Y-`).
const DIGESTS: Kind = Kind::Words(&["None", "CRC32C"]);
const NO_DIGEST: u32 = 0;
pub(super) const CRC32C: u32 = 1;
/// RFC 7143 §13.23.
const TASK_REPORTING: Kind = Kind::Words(&["RFC3720", "ResponseFence", "FastAbort"]);
const RFC3720: u32 = 0;

const SEGMENT: Kind = number(SEGMENT_RANGE);
const COUNT: Kind = number(COUNT_RANGE);
const TIME: Kind = number(TIME_RANGE);
const LEVEL: Kind = Kind::Number(0, 2);
/// RFC 7144 §7.1.1.
const PROTOCOL: Kind = Kind::Number(0, 31);

const YES: u32 = 1;

/// RFC 7143 §13, RFC 7144 §7.1.1: the keys, as one table.
#[rustfmt::skip]
pub(super) const RULES: [Rule; 15] = {
    use Function::{And, First, Maximum, Minimum, Or};
    use Kind::Boolean;
    use Scope::{Connection, NormalSession, Session};
    [
        rule(Key::HeaderDigest, "HeaderDigest", DIGESTS, First, NO_DIGEST, Connection),
        rule(Key::DataDigest, "DataDigest", DIGESTS, First, NO_DIGEST, Connection),
        rule(Key::MaxConnections, "MaxConnections", COUNT, Minimum, 1, NormalSession),
        rule(Key::InitialR2T, "InitialR2T", Boolean, Or, YES, NormalSession),
        rule(Key::ImmediateData, "ImmediateData", Boolean, And, YES, NormalSession),
        rule(Key::MaxBurstLength, "MaxBurstLength", SEGMENT, Minimum, 262_144, NormalSession),
        rule(Key::FirstBurstLength, "FirstBurstLength", SEGMENT, Minimum, 65_536, NormalSession),
        rule(Key::DefaultTime2Wait, "DefaultTime2Wait", TIME, Maximum, 2, Session),
        rule(Key::DefaultTime2Retain, "DefaultTime2Retain", TIME, Minimum, 20, Session),
        rule(Key::MaxOutstandingR2T, "MaxOutstandingR2T", COUNT, Minimum, 1, NormalSession),
        rule(Key::DataPDUInOrder, "DataPDUInOrder", Boolean, Or, YES, NormalSession),
        rule(Key::DataSequenceInOrder, "DataSequenceInOrder", Boolean, Or, YES, NormalSession),
        rule(Key::ErrorRecoveryLevel, "ErrorRecoveryLevel", LEVEL, Minimum, 0, Session),
        rule(Key::TaskReporting, "TaskReporting", TASK_REPORTING, First, RFC3720, NormalSession),
        rule(Key::ISCSIProtocolLevel, "iSCSIProtocolLevel", PROTOCOL, Minimum, 1, NormalSession),
    ]
};

/// What we bring to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ours {
    /// A boolean or a number.
    Value(u32),
    /// Words, in the order of our preference.
    Words(&'static [u32]),
}

impl Ours {
    pub(super) fn of(key: Key, offers: &Offers, has_digests: bool) -> Self {
        let digest = |policy| match policy {
            DigestPolicy::Prefer if has_digests => Self::Words(&[CRC32C, NO_DIGEST]),
            DigestPolicy::Require if has_digests => Self::Words(&[CRC32C]),
            DigestPolicy::None | DigestPolicy::Prefer | DigestPolicy::Require => {
                Self::Words(&[NO_DIGEST])
            }
        };
        match key {
            Key::HeaderDigest => digest(offers.header_digest),
            Key::DataDigest => digest(offers.data_digest),
            Key::MaxConnections => Self::Value(u32::from(offers.max_connections)),
            Key::InitialR2T => Self::Value(u32::from(offers.initial_r2t)),
            Key::ImmediateData => Self::Value(u32::from(offers.immediate_data)),
            Key::MaxBurstLength => Self::Value(offers.max_burst_bytes),
            Key::FirstBurstLength => Self::Value(offers.first_burst_bytes),
            Key::DefaultTime2Wait => Self::Value(u32::from(offers.time_2_wait)),
            Key::DefaultTime2Retain => Self::Value(u32::from(offers.time_2_retain)),
            Key::MaxOutstandingR2T => Self::Value(u32::from(offers.max_outstanding_r2t)),
            // Data out of order has no use for us, and no target needs it.
            Key::DataPDUInOrder | Key::DataSequenceInOrder => Self::Value(YES),
            // A broken connection is reinstated whole: nothing is recovered within one.
            Key::ErrorRecoveryLevel => Self::Value(0),
            // We speak the older of each.
            Key::TaskReporting => Self::Words(&[RFC3720]),
            Key::ISCSIProtocolLevel => Self::Value(1),
        }
    }
}

const fn number(range: RangeInclusive<u32>) -> Kind {
    Kind::Number(*range.start(), *range.end())
}

const fn rule(
    key: Key,
    name: &'static str,
    kind: Kind,
    function: Function,
    default: u32,
    scope: Scope,
) -> Rule {
    Rule {
        key,
        name,
        kind,
        function,
        default,
        scope,
    }
}
