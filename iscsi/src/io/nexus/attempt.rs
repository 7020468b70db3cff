//! One attempt to open a nexus: connect, log in, end what the last path left behind, examine.
//!
//! Source: RFC 7143 §6.3.5; SPC-4 §5.15 (asymmetric logical unit access).
//!
//! Invariants:
//! 1. What it gives has passed: it is logged in, no write of the lost session can land any more, and the logical unit
//!    is the expected one.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;

use super::{NexusError, NexusParams, Path, preference, registration};
use crate::io::network::{Network, Stream};
use crate::io::{Command, Completion, Data, Driver};
use crate::proto::recovery::Preference;
use crate::proto::{FunctionError, IscsiName, Portal, SessionError};
use crate::scsi::Identity;
use crate::scsi::examination::{Examination, Progress};
use crate::wire::task_management::{TaskManagementFunction, TaskManagementOutcome};

/// What tells one I_T nexus of ours from another: with the same ISID, the same target portal group. A login to the
/// same one ends the session before (RFC 7143 §6.3.5), a login to another one does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NexusKey {
    target_name: IscsiName,
    portal_group_tag: Option<u16>,
}

/// Where writes may still be at work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unfenced {
    /// In a nexus of ours.
    Nexus(NexusKey),
    /// In one of a process before us: over which of the paths, nobody knows.
    Somewhere,
}

/// A session that may carry I/O.
#[derive(Debug)]
pub(super) struct Opened<S> {
    pub(super) driver: Driver<S>,
    pub(super) key: NexusKey,
    pub(super) identity: Identity,
    pub(super) preference: Preference,
    /// The unit said that its power was gone, or that it was reset inside.
    pub(super) lost_power: bool,
    /// The target has moved for good.
    pub(super) moved_to: Option<Portal>,
}

/// An attempt under way.
pub(super) struct Attempt<S>(Pin<Box<dyn Future<Output = Ended<S>> + Send>>);

type Ended<S> = Result<Opened<S>, NexusError>;

impl<S> Attempt<S> {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended<S>> {
        self.0.as_mut().poll(cx)
    }
}

impl<S> Future for Attempt<S> {
    type Output = Ended<S>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Self::poll(&mut self, cx)
    }
}

impl<S> fmt::Debug for Attempt<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Attempt")
    }
}

/// Begins an attempt over a path. `expected`: the identity that the unit must have; `unfenced`: where writes may still
/// be at work.
pub(super) fn begin<N: Network>(
    network: &N,
    params: &NexusParams,
    path: usize,
    expected: Option<&Identity>,
    unfenced: Option<&Unfenced>,
) -> Attempt<N::Stream> {
    let work = Work {
        network: network.clone(),
        path: params.paths[path].clone(),
        params: params.clone(),
        expected: expected.cloned(),
        unfenced: unfenced.cloned(),
    };
    Attempt(Box::pin(work.run()))
}

struct Work<N> {
    network: N,
    params: NexusParams,
    path: Path,
    expected: Option<Identity>,
    unfenced: Option<Unfenced>,
}

impl<N: Network> Work<N> {
    async fn run(self) -> Ended<N::Stream> {
        #[cfg_attr(
            not(feature = "hazards"),
            expect(unused_mut, reason = "for hazards alone")
        )]
        let mut session = self.params.session_over(&self.path);
        #[cfg(feature = "hazards")]
        if self.params.hazards.fresh_isid && self.expected.is_some() {
            let qualifier = self.network.random().to_be_bytes();
            session.isid =
                crate::proto::Isid::random([qualifier[0], qualifier[1], qualifier[2]], 1);
        }
        let mut driver = Driver::connect_over(&self.network, &session).await?;
        let proved = tokio::time::timeout(PROOF_TIMEOUT, self.prove(&mut driver))
            .await
            .unwrap_or(Err(NexusError::NotReady {
                waited: PROOF_TIMEOUT,
            }));
        match proved {
            Ok(proof) => Ok(Opened {
                key: self.key(&driver),
                moved_to: driver.permanent_portal().cloned(),
                driver,
                identity: proof.identity,
                preference: proof.preference,
                lost_power: proof.lost_power,
            }),
            Err(error) => {
                // What was met is what there is to tell; the logout is a courtesy to the target.
                let _ = driver.logout().await;
                Err(error)
            }
        }
    }

    async fn prove(&self, driver: &mut Driver<N::Stream>) -> Result<Proof, NexusError> {
        if self
            .expected
            .as_ref()
            .is_some_and(|identity| !identity.is_distinct())
        {
            return Err(NexusError::Unprovable);
        }
        self.fence(driver).await?;
        let (identity, examination) = self.examine(driver).await?;
        if let Some(key) = self.params.registration {
            registration::renew(driver, self.path.lun, key).await?;
        }
        let preference = if self.params.paths.len() > 1 {
            preference::of_path(driver, self.path.lun, examination.target_port_group()).await?
        } else {
            Preference::Optimal
        };
        Ok(Proof {
            identity,
            preference,
            lost_power: examination.lost_power(),
        })
    }

    /// Ends what the lost session may have left at work, unless the login has done so.
    async fn fence(&self, driver: &mut Driver<N::Stream>) -> Result<(), NexusError> {
        let Some(unfenced) = &self.unfenced else {
            return Ok(());
        };
        // RFC 7143 §6.3.5: a login with the same names, ISID and portal group has ended the session before
        let is_ended = match unfenced {
            Unfenced::Nexus(key) => *key == self.key(driver),
            // One path that leads where it says is the one that the process before us had, too.
            Unfenced::Somewhere => {
                self.params.paths.len() == 1 && *driver.portal() == self.path.portal
            }
        };
        if is_ended {
            return Ok(());
        }
        #[cfg(feature = "hazards")]
        if self.params.hazards.no_fence {
            return Ok(());
        }
        // SAM-5: it ends all tasks of the unit, whichever nexus they came by
        let function = TaskManagementFunction::LOGICAL_UNIT_RESET;
        let asked = driver.task_management(function, self.path.lun, None);
        match asked.await {
            Ok(TaskManagementOutcome::COMPLETE) => Ok(()),
            Ok(outcome) => Err(NexusError::Fence {
                answer: outcome.to_string(),
            }),
            Err(FunctionError::Session(error)) => Err(error.into()),
            Err(FunctionError::Misuse(misuse)) => Err(NexusError::Fence {
                answer: misuse.to_string(),
            }),
        }
    }

    /// The gate: who is behind the LUN?
    // (E10): the same names may lead to another unit by now
    async fn examine(
        &self,
        driver: &mut Driver<N::Stream>,
    ) -> Result<(Identity, Examination), NexusError> {
        // RFC 7143 §6.3.5 (E10): another unit behind the same LUN gets nothing
        let mut examination = Examination::new(self.path.lun, self.expected.clone());
        #[cfg(feature = "hazards")]
        if self.params.hazards.no_gate
            && let Some(expected) = &self.expected
        {
            return Ok((expected.clone(), examination));
        }
        while let Some((cdb, bytes)) = examination.poll_command() {
            let length = usize::try_from(bytes).unwrap_or_default();
            let data = match length {
                0 => Data::None,
                length => Data::In(BytesMut::zeroed(length)),
            };
            let lun = self.path.lun;
            let answer = ask(driver, Command { lun, cdb, data }).await?;
            let came = answer.data.filled(answer.transferred);
            match examination
                .handle_answer(answer.status, answer.sense.as_ref(), came)
                .map_err(NexusError::Gate)?
            {
                Progress::Ask => {}
                Progress::NotReady => tokio::time::sleep(POLL_INTERVAL).await,
                Progress::Known(identity) => return Ok((identity, examination)),
            }
        }
        // An examination ends with one of the answers above.
        Err(NexusError::Unprovable)
    }

    fn key(&self, driver: &Driver<N::Stream>) -> NexusKey {
        NexusKey {
            target_name: self.path.target_name.clone(),
            portal_group_tag: driver.agreed().target_portal_group_tag,
        }
    }
}

struct Proof {
    identity: Identity,
    preference: Preference,
    lost_power: bool,
}

/// One command, on a driver that nobody else uses yet.
pub(super) async fn ask<S: Stream>(
    driver: &mut Driver<S>,
    command: Command,
) -> Result<Completion, SessionError> {
    // A driver that was just made has slots, so a refusal means that its session has ended: polling says why.
    let _ = driver.submit(0, command);
    poll_fn(|cx| driver.poll_completion(cx)).await
}

/// A unit that takes longer to become ready is not ready for I/O either; the next attempt asks again.
const PROOF_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two questions to a unit that is not ready.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(500);
