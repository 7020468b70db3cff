//! The examination of a logical unit after a login: who is it, and is it the one that we left?
//!
//! ```text
//!   TEST UNIT READY -> INQUIRY VPD 00h -> VPD 83h -> VPD 80h -> READ CAPACITY(16) -> known, or a mismatch
//!        ^  |          (83h and 80h only if page 00h has them)
//!        +--+ unit attentions, free of charge; not ready: the same question later
//! ```
//!
//! A room of its own because the gate stands below the handles: whoever replays I/O after a new login asks by it,
//! and it knows neither sockets nor time. It asks no more than the identity needs; `client::probe` asks the rest.
//! Source: SPC-4 5.9 (TEST UNIT READY is answered with what is pending), 6.6; SAM-5 5.14.
//!
//! Invariants:
//! 1. Every question is one that changes nothing at the target.
//! 2. Pages are asked for by the same rule as `client::probe` does, else one unit would have two identities.
//! 3. A passing fault is never taken for a missing page: an identity is whole or there is none.

use super::identity::{Identity, Mismatch};
use super::sense::code;
use super::vpd::{self, Designator};
use super::{Attention, Capacity, Cdb, LunAddress, Sense, SenseKey, Status, Verdict, Violation};

/// The examination of one logical unit, without I/O: `poll_command`, then `handle_answer`, until it ends.
///
/// ```
/// use iscsi::scsi::examination::{Examination, Progress};
/// use iscsi::scsi::{LunAddress, Status};
///
/// let mut examination = Examination::new(LunAddress::from_number(1), None);
/// let (cdb, allocation_bytes) = examination.poll_command().expect("it has begun");
/// assert_eq!((cdb.operation_code(), allocation_bytes), (0x00, 0));
/// let progress = examination.handle_answer(Status::BUSY, None, &[]);
/// assert_eq!(progress, Ok(Progress::NotReady));
/// ```
#[derive(Clone, Debug)]
pub struct Examination {
    lun: LunAddress,
    expected: Option<Identity>,
    question: Option<Question>,
    /// Bytes asked for of the page at hand.
    allocation: u16,
    /// Repeats at once in a row, for unit attentions and aborted commands.
    repeats: u32,
    pages: Vec<u8>,
    designators: Vec<Designator>,
    serial: Option<String>,
    lost_power: bool,
}

/// How an examination goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// `poll_command` has a question now.
    Ask,
    /// The unit has no time or is becoming ready: `poll_command` has the same question again, to be sent after a pause.
    /// How long and how often is decided by whoever knows the time.
    NotReady,
    /// The end: this is the unit, and it is the expected one if one was.
    Known(Identity),
}

/// Why an examination ended without success; it has no more questions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// Another logical unit, or the same one in another shape. Nothing must be written to it.
    #[error("it is not the logical unit that it was")]
    Mismatch(#[from] Mismatch),
    /// There is no logical unit behind this LUN now.
    #[error("there is no such logical unit")]
    NoSuchLun,
    /// The unit cannot be reached through this target port (standby, unavailable): try another path.
    #[error("the target port is not active for this logical unit")]
    OtherPath,
    /// The unit refused a question that every unit must answer, or reported one thing after another.
    #[error("{during}: {}", .sense.as_ref().map_or_else(|| .status.to_string(), ToString::to_string))]
    Refused {
        /// The command.
        during: &'static str,
        /// The status.
        status: Status,
        /// The sense data, if any came.
        sense: Option<Sense>,
    },
    /// An answer is not what the standard says.
    #[error("{during}: the target broke a rule")]
    Violation {
        /// The command.
        during: &'static str,
        /// Which rule.
        source: Violation,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Ready,
    Pages,
    Names,
    Serial,
    Capacity,
}

impl Examination {
    /// Of the unit at `lun`; `expected`: the identity that it must have.
    pub fn new(lun: LunAddress, expected: Option<Identity>) -> Self {
        Self {
            lun,
            expected,
            question: Some(Question::Ready),
            allocation: vpd::PAGE_BYTES_FIRST,
            repeats: 0,
            pages: Vec::new(),
            designators: Vec::new(),
            serial: None,
            lost_power: false,
        }
    }

    /// The question to be sent, and the bytes of data to be asked for (as the CDB does); the same one until
    /// `handle_answer` was called. `None` at the end.
    pub fn poll_command(&self) -> Option<(Cdb, u32)> {
        let page = |code| {
            let cdb = Cdb::inquiry_vpd(code, self.allocation);
            (cdb, u32::from(self.allocation))
        };
        Some(match self.question? {
            Question::Ready => (Cdb::test_unit_ready(), 0),
            Question::Pages => page(vpd::SUPPORTED_PAGES),
            Question::Names => page(vpd::DEVICE_IDENTIFICATION),
            Question::Serial => page(vpd::UNIT_SERIAL_NUMBER),
            Question::Capacity => (
                Cdb::read_capacity_16(Capacity::DATA_BYTES),
                Capacity::DATA_BYTES,
            ),
        })
    }

    /// The answer to the question that `poll_command` gave; `data`: the bytes that really came.
    ///
    /// # Errors
    /// `Failure`; the examination has ended. An answer after the end is ignored as `Progress::Ask`.
    pub fn handle_answer(
        &mut self,
        status: Status,
        sense: Option<&Sense>,
        data: &[u8],
    ) -> Result<Progress, Failure> {
        let Some(question) = self.question else {
            return Ok(Progress::Ask);
        };
        let refused = || Failure::Refused {
            during: question.name(),
            status,
            sense: sense.copied(),
        };
        self.lost_power |= sense
            .and_then(Attention::of)
            .is_some_and(Attention::lost_power);
        let result = match Verdict::of(status, sense) {
            Verdict::Good => self.take(question, data),
            Verdict::Busy | Verdict::BecomingReady | Verdict::TaskSetFull => Ok(Progress::NotReady),
            Verdict::UnitAttention | Verdict::DeferredError | Verdict::Aborted => {
                self.repeats += 1;
                if self.repeats <= REPEATS_MAX {
                    return Ok(Progress::Ask);
                }
                Err(refused())
            }
            Verdict::SwitchPath => Err(Failure::OtherPath),
            Verdict::Failed | Verdict::ReservationConflict | Verdict::OurFault => match sense {
                Some(sense) if says_no_such_lun(sense) => Err(Failure::NoSuchLun),
                Some(sense) if question.is_page() && sense.key == SenseKey::IllegalRequest => {
                    self.go_on(question);
                    Ok(Progress::Ask)
                }
                Some(_) | None => Err(refused()),
            },
        };
        match &result {
            Ok(Progress::Ask) => self.repeats = 0,
            Ok(Progress::NotReady) => {}
            Ok(Progress::Known(_)) | Err(_) => self.question = None,
        }
        result
    }

    /// Has the unit said on the way that it had lost power, or was reset inside? What a volatile cache held is gone then.
    pub fn lost_power(&self) -> bool {
        self.lost_power
    }

    /// The target port group of the port that was asked, if the unit told.
    pub fn target_port_group(&self) -> Option<u16> {
        self.designators
            .iter()
            .find_map(Designator::target_port_group)
    }

    /// Where the questions go.
    pub fn lun(&self) -> LunAddress {
        self.lun
    }

    fn take(&mut self, question: Question, data: &[u8]) -> Result<Progress, Failure> {
        let broken = |source| Failure::Violation {
            during: question.name(),
            source,
        };
        if let Some(code) = question.page() {
            let again = vpd::ask_again(data, code, self.allocation).map_err(broken)?;
            if let Some(allocation) = again {
                self.allocation = allocation;
                return Ok(Progress::Ask);
            }
        }
        match question {
            Question::Ready => {}
            Question::Pages => self.pages = vpd::parse_supported_pages(data).map_err(broken)?,
            Question::Names => self.designators = vpd::parse_designators(data).map_err(broken)?,
            Question::Serial => self.serial = vpd::parse_serial(data).map_err(broken)?,
            Question::Capacity => {
                return self.judge(&Capacity::parse(data).map_err(broken)?);
            }
        }
        self.go_on(question);
        Ok(Progress::Ask)
    }

    /// On to the next question, whatever there was to learn from this one.
    fn go_on(&mut self, question: Question) {
        self.allocation = vpd::PAGE_BYTES_FIRST;
        let mut next = question.next();
        while let Some(page) = next.page()
            && page != vpd::SUPPORTED_PAGES
            && !self.pages.contains(&page)
        {
            next = next.next();
        }
        self.question = Some(next);
    }

    fn judge(&self, capacity: &Capacity) -> Result<Progress, Failure> {
        let seen = Identity::new(&self.designators, self.serial.as_deref(), capacity);
        if let Some(expected) = &self.expected {
            expected.matches(&seen)?;
        }
        Ok(Progress::Known(seen))
    }
}

impl Question {
    /// The capacity is the last: its answer ends the examination, so nothing follows it but itself.
    fn next(self) -> Self {
        match self {
            Self::Ready => Self::Pages,
            Self::Pages => Self::Names,
            Self::Names => Self::Serial,
            Self::Serial | Self::Capacity => Self::Capacity,
        }
    }

    fn page(self) -> Option<u8> {
        match self {
            Self::Pages => Some(vpd::SUPPORTED_PAGES),
            Self::Names => Some(vpd::DEVICE_IDENTIFICATION),
            Self::Serial => Some(vpd::UNIT_SERIAL_NUMBER),
            Self::Ready | Self::Capacity => None,
        }
    }

    fn is_page(self) -> bool {
        self.page().is_some()
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ready => "TEST UNIT READY",
            Self::Pages => vpd::question_name(vpd::SUPPORTED_PAGES),
            Self::Names => vpd::question_name(vpd::DEVICE_IDENTIFICATION),
            Self::Serial => vpd::question_name(vpd::UNIT_SERIAL_NUMBER),
            Self::Capacity => "READ CAPACITY(16)",
        }
    }
}

fn says_no_such_lun(sense: &Sense) -> bool {
    sense.key == SenseKey::IllegalRequest && sense.is(code::LOGICAL_UNIT_NOT_SUPPORTED)
}

/// As many as `client::Patience` lets pass: one nexus has a few conditions queued at most.
pub(crate) const REPEATS_MAX: u32 = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const READY: (u8, Vec<u8>) = (0x00, Vec::new());

    fn page(code: u8, content: &[u8]) -> Vec<u8> {
        let mut page = vec![0, code];
        page.extend_from_slice(&u16::try_from(content.len()).unwrap().to_be_bytes());
        page.extend_from_slice(content);
        page
    }

    fn names(last: u8) -> Vec<u8> {
        page(0x83, &[1, 3, 0, 8, 0x60, 0, 0, 0, 0, 0, 0, last])
    }

    fn capacity(blocks: u32) -> Vec<u8> {
        let mut data = vec![0, 0, 0, 0];
        data.extend_from_slice(&(blocks - 1).to_be_bytes());
        data.extend_from_slice(&[0, 0, 2, 0]);
        data.resize(32, 0);
        data
    }

    fn begun(expected: Option<Identity>) -> Examination {
        Examination::new(LunAddress::from_number(300), expected)
    }

    /// Answers all questions in order with GOOD; each must be the one that the operation or page code names.
    fn run(examination: &mut Examination, answers: &[(u8, Vec<u8>)]) -> Result<Progress, Failure> {
        let mut progress = Ok(Progress::Ask);
        for (asked, data) in answers {
            assert_eq!(progress, Ok(Progress::Ask));
            let (cdb, allocation) = examination.poll_command().unwrap();
            let question = if cdb.0[0] == 0x12 { cdb.0[2] } else { cdb.0[0] };
            assert_eq!(question, *asked);
            let came = data.len().min(usize::try_from(allocation).unwrap());
            progress = examination.handle_answer(Status::GOOD, None, &data[..came]);
        }
        progress
    }

    fn whole(last: u8, serial: &[u8], blocks: u32) -> [(u8, Vec<u8>); 5] {
        [
            READY,
            // INQUIRY of page 00h has the operation code of nothing else here but TEST UNIT READY's zero.
            (0x00, page(0x00, &[0x00, 0x80, 0x83, 0xB0])),
            (0x83, names(last)),
            (0x80, page(0x80, serial)),
            (0x9E, capacity(blocks)),
        ]
    }

    fn known(last: u8, serial: &[u8], blocks: u32) -> Identity {
        match run(&mut begun(None), &whole(last, serial, blocks)) {
            Ok(Progress::Known(identity)) => identity,
            other => panic!("{other:?}"),
        }
    }

    fn check(key: SenseKey, asc: u8, ascq: u8) -> Sense {
        Sense::new(key, asc, ascq)
    }

    #[test]
    fn a_unit_is_known_and_known_again() {
        let identity = known(1, b"sn-1", 2048);
        assert_eq!(
            identity.to_string(),
            "naa.6000000000000001, serial sn-1, 1048576 bytes in blocks of 512"
        );
        let mut again = begun(Some(identity.clone()));
        let progress = run(&mut again, &whole(1, b"sn-1", 2048));
        assert_eq!(progress, Ok(Progress::Known(identity.clone())));
        assert_eq!(again.poll_command(), None);
        // Grown while we were away.
        let progress = run(&mut begun(Some(identity)), &whole(1, b"sn-1", 4096));
        assert!(matches!(progress, Ok(Progress::Known(_))), "{progress:?}");
    }

    #[test]
    fn another_unit_under_the_same_lun_is_refused() {
        for answers in [
            whole(2, b"sn-1", 2048),
            whole(1, b"sn-2", 2048),
            whole(1, b"sn-1", 2047),
        ] {
            let mut examination = begun(Some(known(1, b"sn-1", 2048)));
            let progress = run(&mut examination, &answers);
            assert!(
                matches!(progress, Err(Failure::Mismatch(_))),
                "{progress:?}"
            );
            assert_eq!(examination.poll_command(), None);
        }
    }

    #[test]
    fn a_page_that_has_vanished_is_a_mismatch() {
        let mut examination = begun(Some(known(1, b"sn-1", 2048)));
        let answers = [
            READY,
            (0x00, page(0x00, &[0x00, 0x83])),
            (0x83, names(1)),
            (0x9E, capacity(2048)),
        ];
        assert_eq!(
            run(&mut examination, &answers),
            Err(Failure::Mismatch(Mismatch::Serial {
                was: Some("sn-1".to_owned()),
                is: None
            }))
        );
        // Refused although it is on the list: the same.
        let mut examination = begun(Some(known(1, b"sn-1", 2048)));
        let _ = run(&mut examination, &whole(1, b"", 1)[..2]);
        let refusal = check(SenseKey::IllegalRequest, 0x24, 0);
        let progress = examination.handle_answer(Status::CHECK_CONDITION, Some(&refusal), &[]);
        assert_eq!(progress, Ok(Progress::Ask));
        let progress = run(&mut examination, &whole(1, b"sn-1", 2048)[3..]);
        assert!(matches!(
            progress,
            Err(Failure::Mismatch(Mismatch::Names { .. }))
        ));
    }

    // S6: 29h, 2Ah and 3Fh alike.
    #[test]
    fn unit_attentions_are_free_of_charge_and_have_a_limit() {
        let mut examination = begun(None);
        for (asc, ascq) in [(0x29, 0x01), (0x2A, 0x09), (0x3F, 0x0E)] {
            let sense = check(SenseKey::UnitAttention, asc, ascq);
            let progress = examination.handle_answer(Status::CHECK_CONDITION, Some(&sense), &[]);
            assert_eq!(progress, Ok(Progress::Ask));
            assert_eq!(
                examination.poll_command(),
                Some((Cdb::test_unit_ready(), 0))
            );
        }
        let sense = check(SenseKey::UnitAttention, 0x29, 0);
        let failure = std::iter::from_fn(|| {
            Some(examination.handle_answer(Status::CHECK_CONDITION, Some(&sense), &[]))
        })
        .take(20)
        .find_map(Result::err);
        assert_eq!(
            failure.map(|failure| failure.to_string()).as_deref(),
            Some(
                "TEST UNIT READY: unit attention: power on, reset, or bus device reset occurred (6h/29h/00h)"
            )
        );
        assert_eq!(examination.poll_command(), None);
    }

    // S3, S7: the same question later.
    #[test]
    fn a_unit_that_is_not_ready_is_asked_again() {
        let mut examination = begun(None);
        let becoming = check(SenseKey::NotReady, 0x04, 0x01);
        for (status, sense) in [
            (Status::BUSY, None),
            (Status::TASK_SET_FULL, None),
            (Status::CHECK_CONDITION, Some(&becoming)),
        ] {
            let progress = examination.handle_answer(status, sense, &[]);
            assert_eq!(progress, Ok(Progress::NotReady));
        }
        let progress = run(&mut examination, &whole(1, b"sn-1", 2048));
        assert!(matches!(progress, Ok(Progress::Known(_))));
    }

    #[test]
    fn faults_are_not_taken_for_missing_pages() {
        let mut examination = begun(None);
        let _ = run(&mut examination, &whole(1, b"", 1)[..2]);
        let broken = check(SenseKey::HardwareError, 0x44, 0);
        let progress = examination.handle_answer(Status::CHECK_CONDITION, Some(&broken), &[]);
        assert!(matches!(progress, Err(Failure::Refused { .. })));

        let standby = check(SenseKey::NotReady, 0x04, 0x0B);
        let progress = begun(None).handle_answer(Status::CHECK_CONDITION, Some(&standby), &[]);
        assert_eq!(progress, Err(Failure::OtherPath));

        let absent = check(SenseKey::IllegalRequest, 0x25, 0);
        let progress = begun(None).handle_answer(Status::CHECK_CONDITION, Some(&absent), &[]);
        assert_eq!(progress, Err(Failure::NoSuchLun));

        let progress = run(&mut begun(None), &[READY, (0x00, page(0x80, &[]))]);
        assert!(matches!(progress, Err(Failure::Violation { .. })));
    }

    #[test]
    fn a_long_page_is_asked_for_again() {
        let mut content = Vec::new();
        for number in 0..40 {
            content.extend_from_slice(&[1, 3, 0, 8, 0x60, 0, 0, 0, 0, 0, 0, number]);
        }
        let long = page(0x83, &content);
        let mut answers = whole(1, b"sn-1", 2048).to_vec();
        answers[2].1.clone_from(&long);
        answers.insert(2, (0x83, long));
        let Ok(Progress::Known(identity)) = run(&mut begun(None), &answers) else {
            panic!("not known");
        };
        assert_eq!(identity.names().count(), 40);
    }

    proptest! {
        /// Whatever comes, it ends or goes on, and never asks for more than its limit.
        #[test]
        fn any_answers_are_endured(
            answers in proptest::collection::vec(
                (any::<u8>(), proptest::collection::vec(any::<u8>(), 0..64)), 0..40,
            ),
        ) {
            let mut examination = begun(None);
            for (status, data) in answers {
                let Some((cdb, allocation)) = examination.poll_command() else {
                    break;
                };
                prop_assert!(allocation <= 8192);
                let mut data = data;
                if let Some(code) = data.get_mut(1) {
                    *code = cdb.0[2];
                }
                let sense = Sense::parse(&data);
                let status = Status(status & 0x0A);
                let _ = examination.handle_answer(status, sense.as_ref(), &data);
            }
        }
    }
}
