//! How good a path is: the access state of the target port group through which it leads.
//!
//! Source: SPC-4 §5.15.2 (asymmetric logical unit access), §6.37 (REPORT TARGET PORT GROUPS).

use bytes::BytesMut;

use super::NexusError;
use super::attempt::ask;
use crate::io::network::Stream;
use crate::io::{Command, Data, Driver};
use crate::proto::SessionError;
use crate::proto::recovery::Preference;
use crate::scsi::port_groups::{AccessState, TargetPortGroups};
use crate::scsi::{Cdb, LunAddress, Verdict};

/// Asks for the state of the port group that the examination found the port in. A target that knows no groups, or
/// answers what cannot be read, has paths that are all alike.
///
/// # Errors
/// `PortGroup` if it takes no I/O now; `Session`.
pub(super) async fn of_path<S: Stream>(
    driver: &mut Driver<S>,
    lun: LunAddress,
    group: Option<u16>,
) -> Result<Preference, NexusError> {
    let Some(group) = group else {
        return Ok(Preference::Optimal);
    };
    let groups = report(driver, lun).await?;
    let Some(group) = groups.as_ref().and_then(|groups| groups.group(group)) else {
        return Ok(Preference::Optimal);
    };
    match group.state {
        AccessState::ActiveOptimized | AccessState::LogicalBlockDependent => {
            Ok(Preference::Optimal)
        }
        AccessState::ActiveNonOptimized => Ok(Preference::Usable),
        state @ (AccessState::Standby
        | AccessState::Unavailable
        | AccessState::Offline
        | AccessState::Transitioning
        | AccessState::Reserved(_)) => Err(NexusError::PortGroup {
            state: state.to_string(),
        }),
    }
}

async fn report<S: Stream>(
    driver: &mut Driver<S>,
    lun: LunAddress,
) -> Result<Option<TargetPortGroups>, SessionError> {
    for _ in 0..QUESTIONS_MAX {
        let command = Command {
            lun,
            cdb: Cdb::report_target_port_groups(false, REPORT_BYTES),
            data: Data::In(BytesMut::zeroed(
                usize::try_from(REPORT_BYTES).unwrap_or_default(),
            )),
        };
        let answer = ask(driver, command).await?;
        match (
            Verdict::of(answer.status, answer.sense.as_ref()),
            answer.data,
        ) {
            (Verdict::Good, Data::In(buffer)) => {
                let came = usize::try_from(answer.transferred).unwrap_or_default();
                let came = came.min(buffer.len());
                return Ok(TargetPortGroups::parse(&buffer[..came]).ok());
            }
            // Told in place of the answer, which comes the next time.
            (Verdict::UnitAttention, _) => {}
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// Room for more than a hundred groups of a port each; arrays have two or four.
const REPORT_BYTES: u32 = 2048;
/// As many conditions as may be queued for a nexus.
const QUESTIONS_MAX: usize = 4;
