//! What is under test, behind the one face that the workload knows.

use std::task::{Context, Poll};
use std::time::Duration;

use iscsi::io::{Command, Completion, Event, Nexus, NexusParams, Path};
use iscsi::proto::recovery::ReplacementTimeout;
use iscsi::proto::{Isid, SessionParams};
use iscsi::scsi::LunAddress;

use super::network::{self, Wires};
use super::plan::Plan;

/// What becomes of a command, or of the way to the target.
#[derive(Debug)]
pub(crate) enum Answer {
    Completed(Completion),
    Failed { token: u64, cause: String },
    News(String),
}

/// An initiator, polled by its owner.
pub(crate) trait Subject {
    /// Gives the command back when there is no room.
    fn submit(&mut self, token: u64, command: Command) -> Result<(), Command>;
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Answer>;
    async fn close(self);
}

/// The I_T nexus that outlives its sessions.
#[derive(Debug)]
pub(crate) struct Lasting(Nexus<Wires>);

impl Lasting {
    pub(crate) async fn open(wires: &Wires, plan: &Plan) -> Result<Self, String> {
        Nexus::open_over(wires.clone(), nexus_params(plan))
            .await
            .map(Self)
            .map_err(|error| error.to_string())
    }
}

impl Subject for Lasting {
    fn submit(&mut self, token: u64, command: Command) -> Result<(), Command> {
        self.0.submit(token, command)
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Answer> {
        self.0.poll_event(cx).map(|event| match event {
            Event::Completed(completion) => Answer::Completed(completion),
            Event::Failed(failed) => Answer::Failed {
                token: failed.token,
                cause: failed.cause.to_string(),
            },
            Event::Lost(cause) => Answer::News(format!("lost: {cause}")),
            Event::Expired(cause) => Answer::News(format!("expired: {cause}")),
            Event::Examined(unit) => Answer::News(format!("examined: {unit}")),
            Event::Reinstated(how) => Answer::News(format!(
                "reinstated at {} after {:?} and {} attempts, {} held",
                how.portal, how.after, how.attempts, how.held
            )),
        })
    }

    async fn close(self) {
        // How the logout goes is not what is looked at here.
        let _ = self.0.logout().await;
    }
}

fn nexus_params(plan: &Plan) -> NexusParams {
    let lun = LunAddress::from_number(plan.target.lun);
    let session = session_params(plan);
    let mut params = NexusParams::new(session, lun).expect("the target has a name");
    let first = params.paths[0].clone();
    params.paths = (0..plan.portals())
        .map(|number| Path {
            portal: network::portal(number),
            ..first.clone()
        })
        .collect();
    params.policy.replacement_timeout = ReplacementTimeout::After(plan.replacement_timeout);
    params.hazards = plan.hazards;
    params
}

/// For all sessions of a schedule.
fn session_params(plan: &Plan) -> SessionParams {
    let name = "iqn.2026-11.org.cinder-nbd.test:simulation";
    let mut params = SessionParams::new(
        network::portal(0),
        name.parse().expect("a name"),
        Isid::random([1, 2, 3], 0),
    );
    params.offers = plan.offers.clone();
    params.timeouts = plan.timeouts;
    params.noop_interval = Duration::from_secs(plan.noop.0);
    params.noop_timeout = Duration::from_secs(plan.noop.1);
    params.target_name = Some(plan.target.name.parse().expect("a name"));
    params
}
