//! The rules that a target can break, each by its name.
//!
//! A target's own words in an error are cut and escaped: they end up in logs and on terminals.

use crate::wire::header::Opcode;
use crate::wire::text_keys::TextError;

/// A rule that the target broke. It ends the login or the session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// Keys that are no text.
    #[error("{0}")]
    Text(#[from] TextError),
    /// More text than we hold.
    #[error("text of more than {limit} bytes")]
    TextTooLong {
        /// What we hold.
        limit: usize,
    },
    /// A key came twice, or was answered twice.
    #[error("key {0} came twice in one login")]
    KeyRepeated(String),
    /// More keys that we do not know than any target has.
    #[error("more than {0} unknown keys in one login")]
    KeysTooMany(usize),
    /// A value outside what the key may have.
    #[error("key {key} has the illegal value {value:?}")]
    KeyValue {
        /// The key.
        key: String,
        /// What came, shortened.
        value: String,
    },
    /// A value that the key may have, but not as an answer to what we offered.
    #[error(
        "key {key} was answered with {value:?}, which does not follow from our offer {offer:?}"
    )]
    KeyAnswer {
        /// The key.
        key: String,
        /// What came, shortened.
        value: String,
        /// What we had offered.
        offer: String,
    },
    /// A key was missing where it must come.
    #[error("key {0} is missing")]
    KeyMissing(&'static str),
    /// A key came where it has no place.
    #[error("key {0} is out of place")]
    KeyOutOfPlace(String),
    /// A PDU that has no place in a login.
    #[error("PDU with opcode {:#04x} during login", .0.0)]
    PduDuringLogin(Opcode),
    /// A version other than 0.
    #[error("iSCSI version {0} in use, we speak version 0")]
    Version(u8),
    /// A login response of another stage, or to a stage that we did not ask for.
    #[error("login response with the wrong stage")]
    LoginStage,
    /// A login response for another login.
    #[error("login response with the wrong task tag")]
    LoginTag,
    /// The last login response names no session.
    #[error("login ended without a session handle (TSIH 0)")]
    TsihZero,
    /// The login of a further connection ended in another session.
    #[error("login ended in session {seen:#06x}, it was for session {expected:#06x}")]
    Tsih {
        /// Of the session that the connection was to join.
        expected: u16,
        /// What came.
        seen: u16,
    },
    /// A login response for another initiator port.
    #[error("login response with the wrong ISID")]
    Isid,
    /// The login went on without getting anywhere.
    #[error("login did not end after {0} rounds")]
    LoginRounds(u32),
    /// A redirection without an address.
    #[error("redirection without a legal TargetAddress")]
    RedirectAddress,
    /// A status number that is not the next one.
    #[error("StatSN {seen} where {expected} was due")]
    StatSn {
        /// What was due.
        expected: u32,
        /// What came.
        seen: u32,
    },
    /// A header whose digest does not fit.
    #[error("header digest does not fit")]
    HeaderDigest,
    /// A data segment whose digest does not fit.
    #[error("data digest does not fit")]
    DataDigest,
    /// An opcode that no target may send, or not now.
    #[error("PDU with opcode {:#04x} in full feature phase", .0.0)]
    Pdu(Opcode),
    /// An additional header segment in a target's PDU.
    #[error("additional header segment in a PDU from the target")]
    AdditionalHeader,
    /// A data segment longer than we declared to take, or than its PDU may have.
    #[error("data segment of {bytes} bytes, at most {limit} were due")]
    SegmentTooLong {
        /// What came.
        bytes: u32,
        /// What was allowed.
        limit: u32,
    },
    /// A task tag that names nothing in flight, or something of another kind.
    #[error("PDU for the unknown task {0:#010x}")]
    UnknownTask(u32),
    /// A PDU of a task on another connection than the task's own.
    #[error("PDU for task {task:#010x} on connection {seen}, it belongs to connection {expected}")]
    Allegiance {
        /// The task's tag.
        task: u32,
        /// Where it was sent.
        expected: u16,
        /// Where the PDU came.
        seen: u16,
    },
    /// A write that is said to be good although a part of its data was rejected.
    #[error("good status for a write whose data was rejected")]
    GoodAfterReject,
    /// A data or R2T number that is not the next one.
    #[error("data number {seen} where {expected} was due")]
    DataSn {
        /// What was due.
        expected: u32,
        /// What came.
        seen: u32,
    },
    /// Data or R2T for a place other than the next one.
    #[error("buffer offset {seen} where {expected} was due")]
    BufferOffset {
        /// What was due.
        expected: u32,
        /// What came.
        seen: u32,
    },
    /// Data or R2T beyond the task's buffer.
    #[error("transfer of {bytes} bytes at {offset} beyond the buffer's {length}")]
    BeyondBuffer {
        /// Where.
        offset: u32,
        /// How many.
        bytes: u32,
        /// The buffer's length.
        length: u32,
    },
    /// A sequence longer than `MaxBurstLength`.
    #[error("sequence of {bytes} bytes, MaxBurstLength is {limit}")]
    BurstTooLong {
        /// What came.
        bytes: u64,
        /// What was agreed.
        limit: u32,
    },
    /// An R2T for nothing.
    #[error("R2T for no bytes")]
    R2tEmpty,
    /// An R2T whose data could not be told from unsolicited data.
    #[error("R2T with the reserved transfer tag")]
    R2tTag,
    /// More R2Ts open than `MaxOutstandingR2T`.
    #[error("more than {0} R2Ts outstanding")]
    R2tTooMany(u16),
    /// A data acknowledgement asked for at error recovery level 0.
    #[error("data acknowledgement asked for at error recovery level 0")]
    Acknowledge,
    /// A status in a Data-In that does not end its sequence.
    #[error("status in a Data-In without the F bit")]
    StatusWithoutFinal,
    /// A residual larger than the transfer.
    #[error("residual of {residual} bytes in a transfer of {length}")]
    Residual {
        /// What came.
        residual: u32,
        /// The transfer's length.
        length: u32,
    },
    /// A command that is said to be good, but moved too few bytes.
    #[error("good status after {moved} of {length} bytes, with a residual of {residual}")]
    ShortTransfer {
        /// Bytes that were moved.
        moved: u32,
        /// The transfer's length.
        length: u32,
        /// What the target said was not moved.
        residual: u32,
    },
    /// More pings than we can answer.
    #[error("more than {0} pings waiting for an answer")]
    TooManyPings(usize),
    /// A text response that leads nowhere.
    #[error("text exchange out of order")]
    TextExchange,
    /// A CHAP algorithm that we did not offer.
    #[error("CHAP_A={0:?} was not offered")]
    ChapAlgorithm(String),
    /// A CHAP identifier that is no byte.
    #[error("CHAP_I is not a number from 0 to 255")]
    ChapIdentifier,
    /// A challenge that is no binary value of 1 to 1024 bytes.
    #[error("CHAP_C is not a binary value of 1 to 1024 bytes")]
    ChapChallenge,
}

/// Most characters of a target's text in an error.
const EXCERPT_CHARS_MAX: usize = 64;

impl Violation {
    pub(crate) fn value(key: &str, value: &str) -> Self {
        Self::KeyValue {
            key: key.to_owned(),
            value: excerpt(value),
        }
    }

    pub(crate) fn answer(key: &str, value: &str, offer: &str) -> Self {
        Self::KeyAnswer {
            key: key.to_owned(),
            value: excerpt(value),
            offer: offer.to_owned(),
        }
    }
}

/// The first characters of what a target said.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(EXCERPT_CHARS_MAX).collect()
}
