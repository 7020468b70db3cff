//! The examination of a unit while its session stands: the target has said that something about it is another now.
//!
//! A LUN can be mapped to another volume under a session that goes on. What leaves from here on is held until the unit
//! has shown who it is; if it is not the same one any more, the session is given up, and the gate decides.
//!
//! Source: SAM-5 §5.14 (unit attention); RFC 7143 §11.9 (SCSI asynchronous event).

use bytes::BytesMut;

use super::{Event, Link, Nexus, NexusError};
use crate::io::network::Network;
use crate::io::{Command, Completion, Data};
use crate::proto::session::TargetEvent;
use crate::scsi::examination::{Examination, Progress};
use crate::scsi::{Attention, Identity, LunAddress, Sense};

/// An examination under way.
#[derive(Debug)]
pub(super) struct Check {
    examination: Examination,
    /// Its question has left.
    is_asked: bool,
    /// The target reported a change since it began: what the answers say may be from before, and all is asked again.
    is_outdated: bool,
}

impl Check {
    fn new(lun: LunAddress, identity: &Identity) -> Self {
        Self {
            examination: Examination::new(lun, Some(identity.clone())),
            is_asked: false,
            is_outdated: false,
        }
    }
}

/// The driver's token of an examination's question; `Nexus::submit` does not take it from others.
pub(super) const TOKEN: u64 = u64::MAX;

impl<N: Network> Nexus<N> {
    /// Whether what the sense data reports makes the unit's identity or size doubtful; then it is examined.
    pub(super) fn heed(&mut self, sense: Option<&Sense>) {
        // S6: 2Ah/09h has the capacity read anew; after 3Fh nobody knows which unit it is
        let is_doubtful = matches!(
            sense.and_then(Attention::of),
            Some(Attention::CapacityChanged | Attention::LunsChanged | Attention::IdentityChanged)
        );
        if let Link::Up { path, .. } = &self.link
            && is_doubtful
        {
            tracing::info!(unit = %self.identity, ?sense, "the target reports a change; the logical unit is examined");
            if let Some(check) = &mut self.check {
                // A question is out, or its answer is used already: the examination begins anew after the next answer.
                check.is_outdated = true;
                return;
            }
            let lun = self.params.paths[*path].lun;
            self.check = Some(Box::new(Check::new(lun, &self.identity)));
        }
    }

    /// What the target said unasked.
    pub(super) fn heed_events(&mut self) {
        while let Link::Up { driver, .. } = &mut self.link
            && let Some(event) = driver.take_event()
        {
            if let TargetEvent::ScsiEvent { sense, .. } = event {
                self.heed(sense.as_ref());
            }
        }
    }

    /// Sends the next question, if there is one and the driver has a slot.
    pub(super) fn ask_check(&mut self) {
        let (Some(check), Link::Up { driver, .. }) = (&mut self.check, &mut self.link) else {
            return;
        };
        let Some((cdb, bytes)) = check.examination.poll_command().filter(|_| !check.is_asked)
        else {
            return;
        };
        let data = match usize::try_from(bytes).unwrap_or_default() {
            0 => Data::None,
            length => Data::In(BytesMut::zeroed(length)),
        };
        let lun = check.examination.lun();
        check.is_asked = driver.submit(TOKEN, Command { lun, cdb, data }).is_ok();
    }

    /// Whether a question waits to be sent, and can be.
    pub(super) fn is_check_due(&self) -> bool {
        let is_open = |check: &Check| !check.is_asked;
        self.check.as_deref().is_some_and(is_open) && self.free_driver_slots() > 0
    }

    fn free_driver_slots(&self) -> usize {
        match &self.link {
            Link::Up { driver, .. } => driver.free_slots(),
            Link::Attempt { .. } | Link::Down => 0,
        }
    }

    /// The answer to a question of an examination.
    pub(super) fn conclude_check(&mut self, answer: &Completion) {
        let Some(mut check) = self.check.take() else {
            return;
        };
        if check.is_outdated {
            *check = Check::new(check.examination.lun(), &self.identity);
            self.check = Some(check);
            return;
        }
        let (status, sense) = (answer.status, answer.sense.as_ref());
        let data = answer.data.filled(answer.transferred);
        match check.examination.handle_answer(status, sense, data) {
            Ok(Progress::Ask) => {
                check.is_asked = false;
                self.check = Some(check);
            }
            Ok(Progress::Known(identity)) => {
                tracing::info!(unit = %identity, "the logical unit is the same one");
                self.identity = identity.clone();
                self.events.push_back(Event::Examined(Box::new(identity)));
            }
            // A new login polls it with patience.
            Ok(Progress::NotReady) => self.lose(NexusError::Doubtful),
            Err(failure) => self.lose(NexusError::Gate(failure)),
        }
    }
}
