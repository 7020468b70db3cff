//! Machines without I/O: negotiation, login, CHAP, discovery, window, tasks, transfer, keepalive,
//! session.
//!
//! Inputs are `handle_*`, outputs `poll_*`; the time is an argument, and there is no randomness.
//! Headers go in and *placements* come out: payload never enters, but for the few bytes that the
//! machines must read themselves (keys, sense data, pings).
//!
//! Source: RFC 7143 §4.2, §6, §7, §8, §10-§13.
//!
//! Invariants:
//! 1. No clock, no chance, no allocation by a size that the peer names; all counts have named limits.
//! 2. What breaks a rule of the standard ends the login or the session with the rule's name
//!    (`Violation`): at error recovery level 0 there is nothing to repair in place.
//!
//! Sockets, buffers and timers are `io`'s.

pub mod chap;
pub mod discovery;
pub mod login;
pub mod negotiation;
pub mod recovery;
pub mod session;

mod error;
mod isid;
mod keepalive;
mod name;
mod offers;
mod params;
mod portal;
mod secret;
mod task;
mod timeouts;
mod transfer;
mod violation;
mod window;

pub use chap::ChapAlgorithm;
pub use discovery::{DiscoveredPortal, DiscoveredTarget};
pub use error::{Attempt, DiscoveryError, FunctionError, LoginError, Misuse, Retry, SessionError};
pub use isid::Isid;
pub use name::{IscsiName, NameError};
pub use offers::{DigestPolicy, DigestPolicyError, Offers};
pub use params::{ChapCredentials, SessionParams};
pub use portal::{Portal, PortalError};
pub use secret::Secret;
pub use timeouts::Timeouts;
pub use violation::Violation;
