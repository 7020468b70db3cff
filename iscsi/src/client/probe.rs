//! What a logical unit is and can do: the one sequence of questions that is asked after a login.
//!
//! ```text
//!  INQUIRY -> TEST UNIT READY (until the unit attentions are gone and it is ready) -> INQUIRY VPD 00h
//!          -> VPD 80h, 83h, B0h, B1h, B2h (those of the list) -> READ CAPACITY(16) -> MODE SENSE(6)
//! ```
//!
//! Source: SPC-4 5.2, 6.6; SAM-5 4.7.1 (LUN 0 need not be a disk: only the given LUN is asked).
//!
//! Invariants:
//! 1. An optional page that the unit refuses with ILLEGAL REQUEST is "not there"; any other failure ends the probe,
//!    for a missing limit or identity must not come from a passing fault.
//! 2. No answer is taken for longer than it was.

use std::fmt;

use bytes::BytesMut;

use super::Error;
use super::execute::{Execute, ask};
use crate::scsi::inquiry::{DeviceType, PeripheralQualifier};
use crate::scsi::mode::{self, ModeParameters};
use crate::scsi::sense::code;
use crate::scsi::unmap::UnmapLimits;
use crate::scsi::vpd::{self, BlockCharacteristics, BlockLimits, Designator, Provisioning};
use crate::scsi::{
    Blocks, ByteCount, Capacity, Cdb, Identity, Inquiry, LunAddress, SenseKey, Violation,
};

/// What a logical unit is and can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LunInfo {
    /// Its number at the target.
    pub lun: LunAddress,
    /// Standard INQUIRY data.
    pub inquiry: Inquiry,
    /// VPD 80h; `None` if it has none.
    pub serial: Option<String>,
    /// VPD 83h, all designators; empty if it has none.
    pub designators: Vec<Designator>,
    /// VPD B0h; nothing reported if it has none.
    pub limits: BlockLimits,
    /// VPD B1h; nothing reported if it has none.
    pub characteristics: BlockCharacteristics,
    /// VPD B2h; nothing provided if it has none.
    pub provisioning: Provisioning,
    /// READ CAPACITY(16).
    pub capacity: Capacity,
    /// MODE SENSE; `None` if it has none.
    pub mode: Option<ModeParameters>,
}

/// How WRITE SAME(16) can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteSameLimits {
    /// The most in one command: what the unit told, and no more than is done well within any timeout.
    pub blocks_max: Blocks,
    /// With the UNMAP bit a range of zeroes is given back, and reads as zeroes.
    pub unmap: bool,
}

/// Asks the logical unit what it is, and waits until it is ready.
///
/// # Errors
/// `NoSuchLun`, `NotADisk`, `NotReady`; `Refused`, `Violation`, `Session` with the command's name.
///
/// # Cancel safety
/// Only questions are asked: nothing changes at the target.
pub async fn probe(
    carrier: &mut impl Execute,
    lun: impl Into<LunAddress>,
) -> Result<LunInfo, Error> {
    let lun = lun.into();
    let mut probe = Probe { carrier, lun };
    let inquiry = probe.inquiry().await?;
    probe.ready().await?;
    let pages = probe.supported_pages().await?;
    let mut vpd = Vpd {
        probe: &mut probe,
        pages,
    };
    let serial = vpd
        .page(vpd::UNIT_SERIAL_NUMBER, vpd::parse_serial)
        .await?
        .flatten();
    let designators = vpd
        .page(vpd::DEVICE_IDENTIFICATION, vpd::parse_designators)
        .await?;
    let limits = vpd.page(vpd::BLOCK_LIMITS, BlockLimits::parse).await?;
    let characteristics = vpd
        .page(
            vpd::BLOCK_DEVICE_CHARACTERISTICS,
            BlockCharacteristics::parse,
        )
        .await?;
    let provisioning = vpd
        .page(vpd::LOGICAL_BLOCK_PROVISIONING, Provisioning::parse)
        .await?;
    Ok(LunInfo {
        lun,
        inquiry,
        serial,
        designators: designators.unwrap_or_default(),
        limits: limits.unwrap_or_default(),
        characteristics: characteristics.unwrap_or_default(),
        provisioning: provisioning.unwrap_or_default(),
        capacity: probe.capacity().await?,
        mode: probe.mode().await?,
    })
}

impl LunInfo {
    /// What it is known again by: the same value that an `Examination` of it gives.
    pub fn identity(&self) -> Identity {
        Identity::new(&self.designators, self.serial.as_deref(), &self.capacity)
    }

    /// How UNMAP can be used, if it can: it needs LBPU and both maxima of page B0h (SBC-4 6.6.4: a maximum of zero
    /// says that it is not implemented).
    pub fn unmap_limits(&self) -> Option<UnmapLimits> {
        let limits = &self.limits;
        let blocks_max = limits
            .unmap_blocks_max
            .filter(|_| self.provisioning.unmap)?;
        let granularity = limits.unmap_granularity.unwrap_or(1);
        Some(UnmapLimits {
            blocks_max: Blocks(blocks_max),
            descriptors_max: limits.unmap_descriptors_max?,
            granularity,
            alignment: limits.unmap_alignment.unwrap_or(0) % granularity,
        })
    }

    /// How WRITE SAME(16) can be used, if it can: page B0h limits it, or page B2h lets it unmap.
    pub fn write_same_limits(&self) -> Option<WriteSameLimits> {
        let told = self.limits.write_same_max;
        if told.is_none() && !self.provisioning.write_same_unmap {
            return None;
        }
        let length = self.capacity.block_length;
        let ours = length.blocks_within(WRITE_SAME_BYTES_MAX).0;
        let blocks = told.map_or(ours, |told| u32::try_from(told).unwrap_or(ours).min(ours));
        Some(WriteSameLimits {
            blocks_max: Blocks(blocks.max(1)),
            unmap: self.provisioning.write_same_unmap && self.unmapped_reads_zero(),
        })
    }

    /// Unmapped blocks read as zeroes, as B2h or READ CAPACITY(16) say.
    pub fn unmapped_reads_zero(&self) -> bool {
        self.provisioning.unmapped_reads_zero || self.capacity.unmapped_reads_zero
    }
}

/// `IET VIRTUAL-DISK 0001, 1073741824 bytes in blocks of 512 bytes, naa.3000000100000001`.
impl fmt::Display for LunInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inquiry {
            vendor,
            product,
            revision,
            ..
        } = &self.inquiry;
        let bytes = self.capacity.bytes().0;
        write!(
            f,
            "{vendor} {product} {revision}, {bytes} bytes in blocks of "
        )?;
        write!(f, "{}", self.capacity.block_length)?;
        self.designators
            .iter()
            .filter(|designator| designator.is_unit_name())
            .try_for_each(|designator| write!(f, ", {designator}"))
    }
}

#[derive(Debug)]
struct Probe<'a, E> {
    carrier: &'a mut E,
    lun: LunAddress,
}

impl<E: Execute> Probe<'_, E> {
    async fn inquiry(&mut self) -> Result<Inquiry, Error> {
        let during = "INQUIRY";
        let cdb = Cdb::inquiry(INQUIRY_BYTES);
        let data = self.ask(during, cdb, u32::from(INQUIRY_BYTES)).await?;
        let inquiry = Inquiry::parse(&data).map_err(violation(during))?;
        match inquiry.qualifier {
            PeripheralQualifier::Connected => {}
            // 001b too: nothing is there now, so there is no volume to serve.
            PeripheralQualifier::NotConnected
            | PeripheralQualifier::NotCapable
            | PeripheralQualifier::Other(_) => return Err(Error::NoSuchLun { lun: self.lun }),
        }
        match inquiry.device_type {
            DeviceType::DISK => Ok(inquiry),
            DeviceType::NONE => Err(Error::NoSuchLun { lun: self.lun }),
            found => Err(Error::NotADisk {
                lun: self.lun,
                found,
            }),
        }
    }

    async fn ready(&mut self) -> Result<(), Error> {
        self.ask("TEST UNIT READY", Cdb::test_unit_ready(), 0)
            .await
            .map(drop)
    }

    async fn supported_pages(&mut self) -> Result<Vec<u8>, Error> {
        let data = self.vpd(vpd::SUPPORTED_PAGES).await?;
        data.map_or_else(
            || Ok(Vec::new()),
            |data| {
                vpd::parse_supported_pages(&data)
                    .map_err(violation(vpd::question_name(vpd::SUPPORTED_PAGES)))
            },
        )
    }

    async fn capacity(&mut self) -> Result<Capacity, Error> {
        let during = "READ CAPACITY(16)";
        let cdb = Cdb::read_capacity_16(Capacity::DATA_BYTES);
        let data = self.ask(during, cdb, Capacity::DATA_BYTES).await?;
        Capacity::parse(&data).map_err(violation(during))
    }

    /// The Caching page first; some units have it only when all pages are asked for.
    async fn mode(&mut self) -> Result<Option<ModeParameters>, Error> {
        let during = "MODE SENSE(6)";
        for page in [mode::PAGE_CACHING, mode::PAGE_ALL] {
            let cdb = Cdb::mode_sense_6(page, MODE_BYTES);
            if let Some(data) = self
                .ask_optional(during, cdb, u32::from(MODE_BYTES))
                .await?
            {
                return ModeParameters::parse_6(&data)
                    .map(Some)
                    .map_err(violation(during));
            }
        }
        Ok(None)
    }

    /// The whole page, asked for again if it was longer than thought; `None` if the unit has it not.
    async fn vpd(&mut self, code: u8) -> Result<Option<BytesMut>, Error> {
        let during = vpd::question_name(code);
        let mut asked = vpd::PAGE_BYTES_FIRST;
        loop {
            let cdb = Cdb::inquiry_vpd(code, asked);
            let Some(data) = self.ask_optional(during, cdb, u32::from(asked)).await? else {
                return Ok(None);
            };
            match vpd::ask_again(&data, code, asked).map_err(violation(during))? {
                Some(longer) => asked = longer,
                None => return Ok(Some(data)),
            }
        }
    }

    /// As `ask`; `None` if the unit says that it does not know the command or the page.
    async fn ask_optional(
        &mut self,
        during: &'static str,
        cdb: Cdb,
        bytes: u32,
    ) -> Result<Option<BytesMut>, Error> {
        match self.ask(during, cdb, bytes).await {
            Ok(data) => Ok(Some(data)),
            Err(Error::Refused {
                sense: Some(sense), ..
            }) if sense.key == SenseKey::IllegalRequest => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends the question and gives the bytes that really came.
    async fn ask(&mut self, during: &'static str, cdb: Cdb, bytes: u32) -> Result<BytesMut, Error> {
        ask(self.carrier, during, self.lun, cdb, bytes)
            .await
            .map_err(|error| {
                if says_no_such_lun(&error) {
                    Error::NoSuchLun { lun: self.lun }
                } else {
                    error
                }
            })
    }
}

/// Asks for the pages of the list only: a page that is not there may upset an old unit.
#[derive(Debug)]
struct Vpd<'a, 'b, E> {
    probe: &'a mut Probe<'b, E>,
    pages: Vec<u8>,
}

impl<E: Execute> Vpd<'_, '_, E> {
    async fn page<T>(
        &mut self,
        code: u8,
        parse: impl FnOnce(&[u8]) -> Result<T, Violation>,
    ) -> Result<Option<T>, Error> {
        if !self.pages.contains(&code) {
            return Ok(None);
        }
        let Some(data) = self.probe.vpd(code).await? else {
            return Ok(None);
        };
        parse(&data)
            .map(Some)
            .map_err(violation(vpd::question_name(code)))
    }
}

fn says_no_such_lun(error: &Error) -> bool {
    matches!(error, Error::Refused { sense: Some(sense), .. }
        if sense.key == SenseKey::IllegalRequest && sense.is(code::LOGICAL_UNIT_NOT_SUPPORTED))
}

fn violation(during: &'static str) -> impl FnOnce(Violation) -> Error {
    move |source| Error::Violation { during, source }
}

/// Zeroing takes a target real time where it cannot unmap: so much is done well within any timeout.
const WRITE_SAME_BYTES_MAX: ByteCount = ByteCount(32 << 20);
/// Up to the version descriptors, which nobody here reads.
const INQUIRY_BYTES: u16 = 96;
/// Some units answer no other lengths than those that other initiators use; this one is the most common.
const MODE_BYTES: u8 = 192;

#[cfg(test)]
mod tests {
    use super::super::execute::tests::Script;
    use super::*;
    use crate::scsi::examination::{Examination, Progress};
    use crate::scsi::{Lba, Status};

    fn inquiry(first: u8) -> Vec<u8> {
        let mut data = vec![first, 0, 5, 2, 31, 0, 0, 2];
        data.extend_from_slice(b"ACME    VOLUME          1.0 ");
        data
    }

    fn page(code: u8, content: &[u8]) -> Vec<u8> {
        let mut page = vec![0, code];
        page.extend_from_slice(&u16::try_from(content.len()).unwrap().to_be_bytes());
        page.extend_from_slice(content);
        page
    }

    fn capacity() -> Vec<u8> {
        let mut data = vec![0, 0, 0, 0, 0, 0, 0x0F, 0xFF, 0, 0, 2, 0, 0, 0, 0xC0, 0];
        data.resize(32, 0);
        data
    }

    fn designator(identifier: &[u8]) -> Vec<u8> {
        let mut content = vec![1, 3, 0, u8::try_from(identifier.len()).unwrap()];
        content.extend_from_slice(identifier);
        content
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_featured_unit_is_described() {
        let mut script = Script::default()
            .good(&inquiry(0))
            .check(SenseKey::UnitAttention, 0x29, 0)
            .good(&[])
            .good(&page(0x00, &[0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2]))
            .good(&page(0x80, b"  sn-1"))
            .good(&page(0x83, &designator(&[0x60, 1, 2, 3, 4, 5, 6, 7])))
            .good(&page(0xB0, &[0, 0, 0, 8, 0, 0, 16, 0]))
            .good(&page(0xB1, &[0, 1]))
            .good(&page(0xB2, &[0, 0xC4, 2, 0]))
            .good(&capacity())
            .good(&[6, 0, 0x10, 0, 0x08, 0x12, 0x04]);
        let info = probe(&mut script, 300).await.unwrap();
        assert_eq!(info.lun, LunAddress::from_number(300));
        assert_eq!(info.serial.as_deref(), Some("sn-1"));
        assert_eq!(info.limits.transfer_max, Some(4096));
        assert!(info.provisioning.unmap && info.unmapped_reads_zero());
        assert_eq!(info.capacity.end, Lba(4096));
        let mode = info.mode.unwrap();
        assert!(mode.fua_supported && mode.write_cache == Some(true));
        assert_eq!(
            info.to_string(),
            "ACME VOLUME 1.0, 2097152 bytes in blocks of 512 bytes, naa.6001020304050607"
        );
    }

    /// The gate compares what one saw with what the other recorded.
    #[tokio::test(start_paused = true)]
    async fn probe_and_examination_see_the_same_identity() {
        for pages in [&[0x00, 0x80, 0x83][..], &[0x00, 0x80], &[0x00, 0x83], &[]] {
            let mut script = Script::default()
                .good(&inquiry(0))
                .good(&[])
                .good(&page(0x00, pages));
            if pages.contains(&0x80) {
                script = script.good(&page(0x80, b" sn-1 "));
            }
            if pages.contains(&0x83) {
                script = script.good(&page(0x83, &designator(&[0x60, 1, 2, 3, 4, 5, 6, 7])));
            }
            let mut script = script.good(&capacity()).good(&[3, 0, 0, 0]);
            let identity = probe(&mut script, 1).await.unwrap().identity();

            let mut examination = Examination::new(LunAddress::from_number(1), Some(identity));
            let mut progress = Progress::Ask;
            while let Some((cdb, _)) = examination.poll_command() {
                let data = match (cdb.0[0], cdb.0[2]) {
                    (0x12, 0x00) => page(0x00, pages),
                    (0x12, 0x80) => page(0x80, b" sn-1 "),
                    (0x12, _) => page(0x83, &designator(&[0x60, 1, 2, 3, 4, 5, 6, 7])),
                    (0x9E, _) => capacity(),
                    _ => Vec::new(),
                };
                let answer = examination.handle_answer(Status::GOOD, None, &data);
                progress = answer.unwrap();
            }
            assert!(matches!(progress, Progress::Known(_)), "{pages:02X?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_plain_unit_is_asked_nothing_that_it_lacks() {
        let mut script = Script::default()
            .good(&inquiry(0))
            .good(&[])
            .check(SenseKey::IllegalRequest, 0x24, 0)
            .good(&capacity())
            .check(SenseKey::IllegalRequest, 0x24, 0)
            .check(SenseKey::IllegalRequest, 0x20, 0);
        let info = probe(&mut script, 1).await.unwrap();
        assert_eq!((info.serial, info.mode), (None, None));
        assert_eq!(info.limits, BlockLimits::default());
        let operations: Vec<u8> = script.asked.iter().map(Cdb::operation_code).collect();
        assert_eq!(operations, [0x12, 0x00, 0x12, 0x9E, 0x1A, 0x1A]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_unit_that_is_not_there_is_named() {
        let absent: [Script; 4] = [
            Script::default().good(&inquiry(0x7F)),
            Script::default().good(&inquiry(0x20)),
            Script::default().check(SenseKey::IllegalRequest, 0x25, 0),
            Script::default()
                .good(&inquiry(0))
                .check(SenseKey::IllegalRequest, 0x25, 0),
        ];
        for mut script in absent {
            let error = probe(&mut script, 9).await.unwrap_err();
            assert!(
                matches!(error, Error::NoSuchLun { lun } if lun == 9.into()),
                "{error:?}"
            );
        }
        let error = probe(&mut Script::default().good(&inquiry(0x0C)), 0)
            .await
            .unwrap_err();
        assert!(
            matches!(error, Error::NotADisk { lun, .. } if lun == 0.into()),
            "{error:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_page_is_asked_for_again() {
        let mut content = Vec::new();
        for number in 0..40 {
            content.extend_from_slice(&designator(&[0x60, 0, 0, 0, 0, 0, 0, number]));
        }
        let long = page(0x83, &content);
        let mut script = Script::default()
            .good(&inquiry(0))
            .good(&[])
            .good(&page(0x00, &[0x00, 0x83]))
            .good(&long)
            .good(&long)
            .good(&capacity())
            .good(&[3, 0, 0x80, 0]);
        let info = probe(&mut script, 1).await.unwrap();
        assert_eq!(info.designators.len(), 40);
        assert!(info.mode.unwrap().write_protected);
        assert_eq!(script.asked[4].0[3..5], [0x01, 0xE4]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_passing_fault_is_not_taken_for_a_missing_page() {
        let mut script =
            Script::default()
                .good(&inquiry(0))
                .good(&[])
                .check(SenseKey::HardwareError, 0x44, 0);
        let error = probe(&mut script, 1).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_break_rules_are_named() {
        let mut script = Script::default()
            .good(&inquiry(0))
            .good(&[])
            .good(&page(0x00, &[]))
            .good(&capacity()[..8]);
        let error = probe(&mut script, 1).await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Violation {
                    during: "READ CAPACITY(16)",
                    ..
                }
            ),
            "{error:?}"
        );
        let mut script = Script::default()
            .good(&inquiry(0))
            .status(Status::RESERVATION_CONFLICT);
        assert!(matches!(
            probe(&mut script, 1).await,
            Err(Error::Refused { .. })
        ));
    }
}
