//! Task tags: the initiator's and the target's, types of their own so that they are never mixed.
//!
//! Source: RFC 7143 §11.2.1.8, §11.7.4.

/// Initiator Task Tag: names a task from request to response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InitiatorTaskTag(pub u32);

impl InitiatorTaskTag {
    /// No task (RFC 7143 §11.2.1.8).
    pub const RESERVED: Self = Self(u32::MAX);
}

/// Target Transfer Tag: names an R2T's burst, a target's ping, a text exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TargetTransferTag(pub u32);

impl TargetTransferTag {
    /// No transfer (RFC 7143 §11.7.4).
    pub const RESERVED: Self = Self(u32::MAX);
}
