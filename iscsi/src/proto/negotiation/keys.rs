//! The table of the negotiated keys, and our offers.
//!
//! Source: RFC 7143 §13, each row by its section.

use std::ops::RangeInclusive;

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
}

/// How two values become one (RFC 7143 §6.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    And,
    Or,
    Minimum,
    Maximum,
}

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Boolean,
    /// Lowest and highest legal number.
    Number(u32, u32),
    Digest,
}

/// In which sessions a key has a use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Any,
    Normal,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) key: Key,
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) function: Function,
    pub(super) default: u32,
    pub(super) ours: u32,
    pub(super) scope: Scope,
}

/// What we take in one data segment. open-iscsi's value; larger segments gain nothing, as the
/// socket gives less at a time.
pub(super) const MAX_RECV_DATA_SEGMENT_BYTES: u32 = 262_144;
/// RFC 7143 §13.12: what a side takes that declares nothing.
pub(super) const MAX_RECV_DATA_SEGMENT_BYTES_DEFAULT: u32 = 8192;
/// RFC 7143 §13.12-§13.14: legal lengths of segments and bursts.
pub(super) const SEGMENT_RANGE: RangeInclusive<u32> = SEGMENT_LOW..=SEGMENT_HIGH;

const SEGMENT_LOW: u32 = 512;
const SEGMENT_HIGH: u32 = (1 << 24) - 1;
/// The largest multiple of 64 KiB below 2^24: some targets round 2^24 - 1 up and stumble.
const MAX_BURST_BYTES: u32 = 16_711_680;
/// A write of up to this size leaves without waiting for an R2T where the target lets it.
const FIRST_BURST_BYTES: u32 = 262_144;
/// The target may ask for the next burst while we send this one.
const MAX_OUTSTANDING_R2T: u32 = 4;
/// RFC 7143 §13.15: the default. Whoever reinstates waits as long as the target asks.
const TIME_2_WAIT_SECONDS: u32 = 2;
/// RFC 7143 §13.16: at error recovery level 0 the target need not keep our tasks at all.
const TIME_2_RETAIN_SECONDS: u32 = 0;

pub(super) const RULES: [Rule; 13] = [
    rule(
        Key::HeaderDigest,
        "HeaderDigest",
        Kind::Digest,
        Function::Minimum,
        0,
        0,
    )
    .any(),
    rule(
        Key::DataDigest,
        "DataDigest",
        Kind::Digest,
        Function::Minimum,
        0,
        0,
    )
    .any(),
    rule(
        Key::MaxConnections,
        "MaxConnections",
        Kind::Number(1, 65_535),
        Function::Minimum,
        1,
        1,
    ),
    rule(
        Key::InitialR2T,
        "InitialR2T",
        Kind::Boolean,
        Function::Or,
        1,
        0,
    ),
    rule(
        Key::ImmediateData,
        "ImmediateData",
        Kind::Boolean,
        Function::And,
        1,
        1,
    ),
    rule(
        Key::MaxBurstLength,
        "MaxBurstLength",
        Kind::Number(SEGMENT_LOW, SEGMENT_HIGH),
        Function::Minimum,
        262_144,
        MAX_BURST_BYTES,
    ),
    rule(
        Key::FirstBurstLength,
        "FirstBurstLength",
        Kind::Number(SEGMENT_LOW, SEGMENT_HIGH),
        Function::Minimum,
        65_536,
        FIRST_BURST_BYTES,
    ),
    rule(
        Key::DefaultTime2Wait,
        "DefaultTime2Wait",
        Kind::Number(0, 3600),
        Function::Maximum,
        2,
        TIME_2_WAIT_SECONDS,
    )
    .any(),
    rule(
        Key::DefaultTime2Retain,
        "DefaultTime2Retain",
        Kind::Number(0, 3600),
        Function::Minimum,
        20,
        TIME_2_RETAIN_SECONDS,
    )
    .any(),
    rule(
        Key::MaxOutstandingR2T,
        "MaxOutstandingR2T",
        Kind::Number(1, 65_535),
        Function::Minimum,
        1,
        MAX_OUTSTANDING_R2T,
    ),
    rule(
        Key::DataPDUInOrder,
        "DataPDUInOrder",
        Kind::Boolean,
        Function::Or,
        1,
        1,
    ),
    rule(
        Key::DataSequenceInOrder,
        "DataSequenceInOrder",
        Kind::Boolean,
        Function::Or,
        1,
        1,
    ),
    rule(
        Key::ErrorRecoveryLevel,
        "ErrorRecoveryLevel",
        Kind::Number(0, 2),
        Function::Minimum,
        0,
        0,
    )
    .any(),
];

/// RFC 7143 §6.1: a number is decimal, or hex behind `0x`.
pub(super) fn read_number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // `from_str_radix` would take a sign.
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

const fn rule(
    key: Key,
    name: &'static str,
    kind: Kind,
    function: Function,
    default: u32,
    ours: u32,
) -> Rule {
    Rule {
        key,
        name,
        kind,
        function,
        default,
        ours,
        scope: Scope::Normal,
    }
}

impl Rule {
    /// Of use in discovery sessions too.
    const fn any(mut self) -> Self {
        self.scope = Scope::Any;
        self
    }
}
