//! What the tests, the demo and the benchmarks stand on: the other side of each wire, made by us and judged by others.
//!
//! A crate of its own, because the initiator's tests, the daemon's tests, `xtask` and `benches/` all use it. Its
//! constants are written from the standards and never imported from `iscsi` or `cinder-nbd`: a wrong number in the
//! product must meet a right one here.

pub mod cloud;
pub mod errors;
pub mod lio;
pub mod nbd;
pub mod proxy;
mod random;
pub mod stamp;
pub mod target;
pub mod tgt;
pub mod tls;

use std::sync::Arc;

/// A cloud with its target, both on loopback and gone when dropped.
#[derive(Debug)]
pub struct DemoBed {
    /// Keystone and Cinder.
    pub cloud: cloud::Cloud,
    /// What the volumes are exported through.
    pub target: Arc<target::Target>,
}

/// Starts a cloud and its target with defaults that suit a demonstration.
///
/// # Panics
/// If loopback cannot be listened on.
pub async fn demo_bed() -> DemoBed {
    let target = Arc::new(target::Target::builder().without_export().start().await);
    let cloud = cloud::Cloud::builder()
        .target(Arc::clone(&target))
        .start()
        .await;
    DemoBed { cloud, target }
}
