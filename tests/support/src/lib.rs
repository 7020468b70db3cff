//! What the tests, the demo and the benchmarks stand on: the other side of each wire, made by us and judged by others.
//!
//! A crate of its own, because the initiator's tests, the daemon's tests, `xtask` and `benches/` all use it. Its
//! constants are written from the standards and never imported from `iscsi` or `cinder-nbd`: a wrong number in the
//! product must meet a right one here.

mod random;
pub mod target;
pub mod tgt;
