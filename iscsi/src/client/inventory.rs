//! What a target has, asked by whoever can carry a command: logical units, and ports to reach them by.
//!
//! Source: SPC-4 6.33 (REPORT LUNS), 6.37 (REPORT TARGET PORT GROUPS).

use super::Error;
use super::execute::{Execute, ask_whole};
use crate::scsi::lun::{SelectReport, parse_report_luns, report_luns_told_bytes};
use crate::scsi::port_groups::{self, TargetPortGroups};
use crate::scsi::{Cdb, LunAddress, SenseKey, Violation};

/// The logical units that this nexus may use.
///
/// ```no_run
/// # async fn example(session: iscsi::client::Session) -> Result<(), iscsi::client::Error> {
/// use iscsi::scsi::lun::SelectReport;
///
/// let luns = iscsi::client::report_luns(&mut session.commands(), SelectReport::ADDRESSED).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// `Refused`, `Violation`, `NotReady`, `Session`.
///
/// # Cancel safety
/// Only a question is asked.
pub async fn report_luns(
    carrier: &mut impl Execute,
    select: SelectReport,
) -> Result<Vec<LunAddress>, Error> {
    let during = "REPORT LUNS";
    // SPC-4 6.33: LUN 0 answers it whether there is a unit or not.
    let lun = LunAddress::from_number(0);
    let cdb = |bytes| Cdb::report_luns_of(select, bytes);
    let data = ask_whole(carrier, during, lun, cdb, report_luns_told_bytes, BYTES_MAX).await?;
    parse_report_luns(&data).map_err(violation(during))
}

/// The target port groups of a logical unit, with the extended header if the unit knows it; `None` if it has no
/// asymmetric access to report.
///
/// # Errors
/// As `report_luns`.
///
/// # Cancel safety
/// Only a question is asked.
pub async fn target_port_groups(
    carrier: &mut impl Execute,
    lun: LunAddress,
) -> Result<Option<TargetPortGroups>, Error> {
    let during = "REPORT TARGET PORT GROUPS";
    for extended in [true, false] {
        let cdb = |bytes| Cdb::report_target_port_groups(extended, bytes);
        let told = port_groups::told_bytes;
        match ask_whole(carrier, during, lun, cdb, told, BYTES_MAX).await {
            Ok(data) => match TargetPortGroups::parse(&data) {
                Ok(groups) => return Ok(Some(groups)),
                // LIO (6.1) leaves the extended header's second word out of its count, and so cuts the last port.
                Err(_) if extended => {}
                Err(error) => return Err(violation(during)(error)),
            },
            // The format, or then the command, is not known.
            Err(Error::Refused {
                sense: Some(sense), ..
            }) if sense.key == SenseKey::IllegalRequest => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn violation(during: &'static str) -> impl FnOnce(Violation) -> Error {
    move |source| Error::Violation { during, source }
}

/// Room for the 16384 units that numbers of 14 bits address, and twice that.
const BYTES_MAX: u32 = 256 << 10;

#[cfg(test)]
mod tests {
    use super::super::execute::tests::Script;
    use super::*;
    use crate::scsi::port_groups::AccessState;

    fn list(numbers: std::ops::Range<u16>) -> Vec<u8> {
        let bytes = u32::try_from(numbers.len() * 8).unwrap();
        let mut data = bytes.to_be_bytes().to_vec();
        data.extend_from_slice(&[0; 4]);
        for number in numbers {
            data.extend_from_slice(&LunAddress::from_number(number).to_bytes());
        }
        data
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_list_is_asked_for_again() {
        let long = list(0..1000);
        let mut script = Script::default().good(&long[..1024]).good(&long);
        let luns = report_luns(&mut script, SelectReport::ALL).await.unwrap();
        assert_eq!(luns.len(), 1000);
        assert_eq!(luns[300].number(), Some(300));
        assert_eq!(script.asked[0].0[6..10], [0, 0, 4, 0]);
        assert_eq!(script.asked[1].0[6..10], 8008u32.to_be_bytes());
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_grows_for_ever_is_taken_at_the_third_question() {
        let mut absurd = list(0..4);
        absurd[..4].fill(0xFF);
        let mut script = Script::default().good(&absurd).good(&absurd);
        let luns = report_luns(&mut script, SelectReport::ADDRESSED).await;
        assert_eq!(luns.unwrap().len(), 4);
        assert_eq!(script.asked[1].0[6..10], [0, 4, 0, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_short_header_is_asked_for_where_the_extended_is_unknown() {
        let lun = LunAddress::from_number(300);
        let short = [0, 0, 0, 12, 0x82, 0x0F, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1];
        let mut script = Script::default()
            .check(SenseKey::IllegalRequest, 0x24, 0)
            .good(&short);
        let groups = target_port_groups(&mut script, lun).await.unwrap().unwrap();
        assert_eq!(groups.groups[0].state, AccessState::Standby);
        assert_eq!((script.asked[0].0[1], script.asked[1].0[1]), (0x2A, 0x0A));

        // LIO's answer: the extended header, whose second word is not counted, and so cut at the end.
        let cut = [0, 0, 0, 12, 0x10, 0, 0, 0, 0x82, 0x0F, 0, 1, 0, 0, 0, 1];
        let mut script = Script::default().good(&cut).good(&short);
        let groups = target_port_groups(&mut script, lun).await.unwrap().unwrap();
        assert_eq!(groups.groups[0].ports, [1]);

        let mut script = Script::default()
            .check(SenseKey::IllegalRequest, 0x24, 0)
            .check(SenseKey::IllegalRequest, 0x20, 0);
        assert_eq!(target_port_groups(&mut script, lun).await.unwrap(), None);
        let mut script = Script::default().check(SenseKey::HardwareError, 0x44, 0);
        assert!(target_port_groups(&mut script, lun).await.is_err());
    }
}
