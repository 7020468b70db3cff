//! The checklist of `checklist.txt`, line by line: what an initiator must show on the wire.
//!
//! The library is driven through its public face. The other side is `support::target`, which misbehaves as each test
//! tells it: by a tap on the honest target, or by a connection that the test plays itself, PDU by PDU. Constants of
//! the standard are the support crate's or stand in the test; none is the library's.
//!
//! The comment above a test's attribute names its lines; `docs/conformance.md` is made of these.

mod bed;
mod chap;
mod document;
mod full_feature;
mod login;
mod management;
mod recovery;
mod scsi;
