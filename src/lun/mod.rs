//! A LUN as a block device: login, identity, geometry, splitting by the LUN's limits, sense to error. CONTRACT part:

use crate::block::{Backend, Completion, Geometry, Request};
use std::task::{Context, Poll};

/// Which logical unit, and how to reach it.
#[derive(Clone, Debug)]
pub struct LunSpec {
    /// Session parameters (portal, names, CHAP, ISID).
    pub session: iscsi::proto::SessionParams,
    /// The logical unit number at that target, 0..16384.
    pub lun: u16,
    /// Refuse writes.
    pub read_only: bool,
}

/// What a LUN is, so that it is known again (VPD 83h/80h, block size, capacity): the identity gate compares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    _private: (),
}

/// Why a LUN could not be opened; one line, with the remedy.
#[derive(Debug, thiserror::Error)]
#[error("contract")]
#[non_exhaustive]
pub enum Error {}

/// A logical unit that is logged in to.
#[derive(Debug)]
pub struct Lun {
    _private: (),
}

impl Lun {
    /// Logs in, asks INQUIRY/VPD/READ CAPACITY(16), records the identity.
    ///
    /// # Errors
    /// Login failed, no such LUN, not a disk, sizes out of range.
    #[expect(clippy::unused_async, reason = "contract")]
    pub async fn open(_spec: &LunSpec) -> Result<Self, Error> {
        unimplemented!()
    }
    /// The identity recorded at login.
    pub fn identity(&self) -> &Identity {
        unimplemented!()
    }
}

impl Backend for Lun {
    fn geometry(&self) -> &Geometry {
        unimplemented!()
    }
    fn free_slots(&self) -> usize {
        unimplemented!()
    }
    fn submit(&mut self, _request: Request) -> Result<(), Request> {
        unimplemented!()
    }
    fn poll_completion(&mut self, _cx: &mut Context<'_>) -> Poll<Completion> {
        unimplemented!()
    }
    async fn close(self) {}
}
