//! Logins by script: the test is the target.

use super::*;
use crate::proto::{ChapCredentials, Isid, Secret};

const OPERATIONAL_ANSWERS: &[u8] = b"HeaderDigest=None\0DataDigest=None\0InitialR2T=Yes\0\
    ImmediateData=Yes\0MaxBurstLength=262144\0FirstBurstLength=65536\0MaxOutstandingR2T=1\0\
    MaxConnections=1\0DefaultTime2Wait=2\0DefaultTime2Retain=0\0ErrorRecoveryLevel=0\0\
    DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0MaxRecvDataSegmentLength=8192\0";
const CHALLENGE: &[u8] = b"CHAP_A=5\0CHAP_I=65\0CHAP_C=0x61626364\0";

fn params(chap: bool) -> SessionParams {
    let portal = "10.0.0.1".parse().unwrap();
    let name = "iqn.2026-11.org.cinder-nbd:test".parse().unwrap();
    let mut params = SessionParams::new(portal, name, Isid::random([1, 2, 3], 4));
    params.target_name = Some("iqn.2026-11.test:disk".parse().unwrap());
    params.chap = chap.then(|| ChapCredentials {
        name: "user".to_owned(),
        secret: Secret::new("0123456789abcdef".to_owned()),
    });
    params
}

/// A login and the target's numbers.
struct Script {
    login: Login,
    stat_sn: StatSn,
}

impl Script {
    fn new(params: &SessionParams) -> Self {
        let login = Login::new(params, CmdSn(u32::MAX)).unwrap();
        Self {
            login,
            stat_sn: StatSn(u32::MAX),
        }
    }

    /// The next request; checks what holds for all of them.
    fn request(&mut self) -> (LoginRequest, String) {
        let (bhs, text) = self.login.poll_transmit().expect("it is our turn");
        assert!(
            self.login.poll_transmit().is_none(),
            "one request is outstanding at a time"
        );
        assert_eq!(header::opcode(&bhs), Opcode::LOGIN_REQUEST);
        assert!(header::is_immediate(&bhs));
        assert_eq!(
            usize::try_from(header::data_segment_bytes(&bhs)).unwrap(),
            text.len()
        );
        let request = LoginRequest::parse(&bhs);
        // RFC 7143 §11.12.8: CmdSN is constant; §11.12.3: T never leads to stage 2 or back
        assert_eq!((request.cmd_sn, request.tsih), (CmdSn(u32::MAX), 0));
        assert_eq!(request.isid, [0x80, 1, 2, 3, 0, 4]);
        if request.transit {
            assert!(request.next_stage.0 > request.current_stage.0 && request.next_stage.0 != 2);
        }
        (request, String::from_utf8(text).unwrap().replace('\0', " "))
    }

    fn response(&mut self, request: &LoginRequest) -> LoginResponse {
        let stat_sn = self.stat_sn;
        self.stat_sn = stat_sn.next();
        LoginResponse {
            transit: request.transit,
            is_continued: false,
            current_stage: request.current_stage,
            next_stage: request.next_stage,
            version_max: 0,
            version_active: 0,
            isid: request.isid,
            tsih: if request.next_stage == Stage::FULL_FEATURE {
                9
            } else {
                0
            },
            initiator_task_tag: request.initiator_task_tag,
            numbers: ResponseNumbers {
                stat_sn,
                exp_cmd_sn: CmdSn(u32::MAX),
                max_cmd_sn: CmdSn(0),
            },
            status: LoginStatus::SUCCESS,
        }
    }

    fn give(&mut self, response: &LoginResponse, text: &[u8]) -> Result<LoginStep, LoginError> {
        self.login.handle_response(&response.emit(), text)
    }

    /// Takes a request and answers it in step.
    fn exchange(&mut self, text: &[u8]) -> Result<(String, LoginStep), LoginError> {
        let (request, said) = self.request();
        let response = self.response(&request);
        Ok((said, self.give(&response, text)?))
    }

    /// As `exchange`, with a change to the response.
    fn exchange_with(
        &mut self,
        text: &[u8],
        change: impl FnOnce(&mut LoginResponse),
    ) -> Result<LoginStep, LoginError> {
        let (request, _) = self.request();
        let mut response = self.response(&request);
        change(&mut response);
        self.give(&response, text)
    }
}

fn violation(result: Result<impl std::fmt::Debug, LoginError>) -> Violation {
    match result {
        Err(LoginError::Violation(violation)) => violation,
        other => panic!("not a violation: {other:?}"),
    }
}

fn established(step: LoginStep) -> Established {
    match step {
        LoginStep::Established(established) => *established,
        LoginStep::Continue | LoginStep::Redirect(_) => panic!("not established: {step:?}"),
    }
}

// RFC 7143 §6.3
#[test]
fn login_without_chap_takes_two_rounds() {
    let mut script = Script::new(&params(false));
    let (first, said) = script.request();
    assert_eq!(
        said,
        "InitiatorName=iqn.2026-11.org.cinder-nbd:test SessionType=Normal \
         TargetName=iqn.2026-11.test:disk AuthMethod=None "
    );
    assert!(first.transit && first.exp_stat_sn == StatSn(0));
    let response = script.response(&first);
    let step = script
        .give(&response, b"AuthMethod=None\0TargetPortalGroupTag=1\0")
        .unwrap();
    assert!(matches!(step, LoginStep::Continue));

    let (second, said) = script.request();
    // RFC 7143 §11.12.9: each request acknowledges the response before it; the number has wrapped
    assert_eq!(second.exp_stat_sn, StatSn(0));
    assert_eq!(
        (second.current_stage, second.next_stage),
        (Stage::OPERATIONAL, Stage::FULL_FEATURE)
    );
    assert!(
        !said.contains("InitiatorName") && said.contains("ImmediateData=Yes"),
        "{said}"
    );
    let response = script.response(&second);
    let end = established(script.give(&response, OPERATIONAL_ANSWERS).unwrap());
    assert_eq!(
        (end.tsih, end.cmd_sn, end.exp_stat_sn),
        (9, CmdSn(u32::MAX), StatSn(1))
    );
    assert_eq!(end.agreed.target_portal_group_tag, Some(1));
    assert!(script.login.poll_transmit().is_none());
}

// RFC 7143 §12.1.3
#[test]
fn login_with_chap_answers_the_challenge() {
    let mut script = Script::new(&params(true));
    let (said, _) = script.exchange(b"AuthMethod=CHAP\0").unwrap();
    assert!(said.ends_with("AuthMethod=CHAP,None "), "{said}");
    let (said, _) = script.exchange(CHALLENGE).unwrap();
    assert_eq!(said, "CHAP_A=5 ");
    let (request, said) = script.request();
    assert_eq!(
        said,
        "CHAP_N=user CHAP_R=0x1b07382da15416ba61f956eb507a98a3 "
    );
    assert!(request.transit);
    let response = script.response(&request);
    script.give(&response, b"").unwrap();
    let (_, step) = script.exchange(OPERATIONAL_ANSWERS).unwrap();
    established(step);
}

#[test]
fn offered_chap_need_not_be_taken() {
    let mut script = Script::new(&params(true));
    script.exchange(b"AuthMethod=None\0").unwrap();
    let (request, said) = script.request();
    assert!(request.transit && said.is_empty());
    let response = script.response(&request);
    script.give(&response, b"").unwrap();
    established(script.exchange(OPERATIONAL_ANSWERS).unwrap().1);
}

// RFC 7143 §6.3: T=0 of the target means: go on
#[test]
fn target_that_stays_in_a_stage_is_asked_again_but_not_for_ever() {
    let mut script = Script::new(&params(false));
    script.exchange(b"AuthMethod=None\0").unwrap();
    script
        .exchange_with(OPERATIONAL_ANSWERS, |response| response.transit = false)
        .unwrap();
    let (request, said) = script.request();
    assert!(request.transit && said.is_empty());
    let response = script.response(&request);
    established(script.give(&response, b"").unwrap());

    let mut endless = Script::new(&params(false));
    endless.exchange(b"AuthMethod=None\0").unwrap();
    let mut answers = OPERATIONAL_ANSWERS;
    let refused = loop {
        let stay = endless.exchange_with(answers, |response| response.transit = false);
        answers = b"";
        if stay.is_err() {
            break violation(stay);
        }
    };
    assert_eq!(refused, Violation::LoginRounds(ROUNDS_MAX));
}

// RFC 7143 §6.2: offers of the target are answered; unknown keys do no harm
#[test]
fn keys_of_the_target_are_answered_before_the_end() {
    let mut script = Script::new(&params(false));
    script.exchange(b"AuthMethod=None\0").unwrap();
    let more = [OPERATIONAL_ANSWERS, b"X-org.example=1\0IFMarker=Yes\0"].concat();
    script
        .exchange_with(&more, |response| response.transit = false)
        .unwrap();
    let (request, said) = script.request();
    assert_eq!(said, "X-org.example=NotUnderstood IFMarker=No ");
    let response = script.response(&request);
    established(script.give(&response, b"").unwrap());

    let mut script = Script::new(&params(false));
    script.exchange(b"AuthMethod=None\0").unwrap();
    let late = script.exchange(&[OPERATIONAL_ANSWERS, b"IFMarker=Yes\0"].concat());
    assert_eq!(
        violation(late),
        Violation::KeyOutOfPlace("IFMarker".to_owned())
    );
    let mut script = Script::new(&params(false));
    script.exchange(b"AuthMethod=None\0").unwrap();
    let (_, step) = script
        .exchange(&[OPERATIONAL_ANSWERS, b"X-org.example=1\0"].concat())
        .unwrap();
    established(step);
}

// RFC 7143 §6.2: C, split in the middle of a key
#[test]
fn continued_response_is_put_together() {
    let mut script = Script::new(&params(false));
    script.exchange(b"AuthMethod=None\0").unwrap();
    let (head, tail) = OPERATIONAL_ANSWERS.split_at(25);
    let (request, _) = script.request();
    let mut response = script.response(&request);
    response.transit = false;
    response.is_continued = true;
    script.give(&response, head).unwrap();
    let (request, said) = script.request();
    assert!(said.is_empty(), "an empty request fetches the rest");
    let response = script.response(&request);
    established(script.give(&response, tail).unwrap());
}

// RFC 7143 §6.2: C the other way
#[test]
fn long_request_leaves_in_pieces() {
    let mut script = Script::new(&params(false));
    script.exchange(b"AuthMethod=None\0").unwrap();
    let mut offers = OPERATIONAL_ANSWERS.to_vec();
    for number in 0..300 {
        text_keys::emit(
            &mut offers,
            &format!("X-org.example.some-long-name-{number}"),
            "1",
        );
    }
    script
        .exchange_with(&offers, |response| response.transit = false)
        .unwrap();
    let (first, said) = script.request();
    assert_eq!(said.len(), 8192);
    assert!(first.is_continued && !first.transit);
    let response = script.response(&first);
    script.give(&response, b"").unwrap();
    let (second, rest) = script.request();
    assert!(!second.is_continued && second.transit);
    assert_eq!((said + &rest).matches("=NotUnderstood ").count(), 300);
}

#[test]
fn text_beyond_the_limit_is_refused() {
    let mut script = Script::new(&params(false));
    let mut refused = None;
    while refused.is_none() {
        let (request, _) = script.request();
        let mut response = script.response(&request);
        response.transit = false;
        response.is_continued = true;
        refused = script.give(&response, &[b'x'; 8192]).err();
    }
    let limit = RESPONSE_TEXT_BYTES_MAX;
    assert!(matches!(
        refused,
        Some(LoginError::Violation(Violation::TextTooLong { limit: at })) if at == limit
    ));
}

// RFC 7143 §11.13.5: each class, with serial numbers that mean nothing
#[test]
fn refusals_end_the_login_by_class() {
    for (class, detail, words) in [
        (2, 1, "authentication failed"),
        (2, 2, "not allowed"),
        (2, 3, "no such target"),
        (2, 99, "refused the login"),
        (3, 1, "service is unavailable"),
        (3, 77, "the target failed"),
        (9, 9, "unknown status"),
    ] {
        let mut script = Script::new(&params(false));
        let error = script
            .exchange_with(b"", |response| {
                response.status = LoginStatus { class, detail };
                response.numbers.stat_sn = StatSn(12345);
                response.initiator_task_tag = InitiatorTaskTag(77);
            })
            .unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        let LoginError::Refused { status } = error else {
            panic!("{error}")
        };
        assert_eq!((status.class, status.detail), (class, detail));
    }
}

// RFC 7143 §11.13.5, §13.8
#[test]
fn redirections_are_told_with_their_kind() {
    for (detail, is_permanent) in [(1, false), (2, true)] {
        let mut script = Script::new(&params(true));
        let step = script
            .exchange_with(b"TargetAddress=[fe80::1]:3261\0", |response| {
                response.status = LoginStatus { class: 1, detail };
            })
            .unwrap();
        let LoginStep::Redirect(redirect) = step else {
            panic!("{step:?}")
        };
        assert_eq!(redirect.portal.to_string(), "[fe80::1]:3261");
        assert_eq!(redirect.is_permanent, is_permanent);
    }
    for address in [&b""[..], b"TargetAddress=\0", b"TargetAddress=[::1\0"] {
        let mut script = Script::new(&params(false));
        let step = script.exchange_with(address, |response| {
            response.status = LoginStatus::MOVED_TEMPORARILY;
        });
        assert_eq!(violation(step), Violation::RedirectAddress);
    }
}

#[test]
fn broken_rules_end_the_login_by_name() {
    type Change = fn(&mut LoginResponse);
    let cases: [(Change, Violation); 6] = [
        (
            |response| response.version_active = 1,
            Violation::Version(1),
        ),
        (
            |response| response.initiator_task_tag.0 ^= 1,
            Violation::LoginTag,
        ),
        (
            |response| response.current_stage = Stage::OPERATIONAL,
            Violation::LoginStage,
        ),
        (
            |response| response.next_stage = Stage::FULL_FEATURE,
            Violation::LoginStage,
        ),
        (
            |response| response.next_stage = Stage(2),
            Violation::LoginStage,
        ),
        (
            |response| response.is_continued = true,
            Violation::LoginStage,
        ),
    ];
    for (change, expected) in cases {
        let mut script = Script::new(&params(false));
        assert_eq!(
            violation(script.exchange_with(b"AuthMethod=None\0", change)),
            expected
        );
    }
    // RFC 7143 §11.13.3: the last response names the session
    let mut script = Script::new(&params(false));
    script.exchange(b"AuthMethod=None\0").unwrap();
    let zero = script.exchange_with(OPERATIONAL_ANSWERS, |response| response.tsih = 0);
    assert_eq!(violation(zero), Violation::TsihZero);
    // RFC 7143 §11.13.4: status numbers rise by one
    let mut script = Script::new(&params(false));
    script.exchange(b"AuthMethod=None\0").unwrap();
    let jump = script.exchange_with(b"", |response| response.numbers.stat_sn = StatSn(5));
    assert_eq!(
        violation(jump),
        Violation::StatSn {
            expected: 0,
            seen: 5
        }
    );
}

#[test]
fn transit_without_being_asked_is_refused() {
    let mut script = Script::new(&params(true));
    let step = script.exchange_with(b"AuthMethod=CHAP\0", |response| {
        response.transit = true;
        response.next_stage = Stage::OPERATIONAL;
    });
    assert_eq!(violation(step), Violation::LoginStage);
}

#[test]
fn other_pdus_and_additional_headers_are_refused() {
    let mut script = Script::new(&params(false));
    script.request();
    let mut bhs = [0; 48];
    bhs[0] = 0x20;
    let step = script.login.handle_response(&bhs, b"");
    assert_eq!(violation(step), Violation::PduDuringLogin(Opcode::NOP_IN));
    let mut script = Script::new(&params(false));
    let (request, _) = script.request();
    let mut bhs = script.response(&request).emit();
    bhs[4] = 1;
    assert_eq!(
        violation(script.login.handle_response(&bhs, b"")),
        Violation::AdditionalHeader
    );
}

// RFC 7143 §12.1, §12.1.3
#[test]
fn bad_security_answers_are_refused_by_name() {
    let answers: [(bool, &[u8], Violation); 5] = [
        (
            false,
            b"AuthMethod=CHAP\0",
            Violation::answer("AuthMethod", "CHAP", "None"),
        ),
        (
            true,
            b"AuthMethod=KRB5\0",
            Violation::answer("AuthMethod", "KRB5", "CHAP,None"),
        ),
        (true, b"", Violation::KeyMissing("AuthMethod")),
        (
            true,
            b"AuthMethod=CHAP\0AuthMethod=None\0",
            Violation::KeyRepeated("AuthMethod".to_owned()),
        ),
        (
            true,
            b"CHAP_A=5\0AuthMethod=CHAP\0",
            Violation::KeyOutOfPlace("CHAP_A".to_owned()),
        ),
    ];
    for (chap, answer, expected) in answers {
        assert_eq!(
            violation(Script::new(&params(chap)).exchange(answer)),
            expected
        );
    }
    let error = Script::new(&params(true))
        .exchange(b"AuthMethod=Reject\0")
        .unwrap_err();
    assert!(
        matches!(
            error,
            LoginError::Authentication {
                offered: "CHAP,None"
            }
        ),
        "{error}"
    );

    let challenges: [(&[u8], Violation); 5] = [
        (
            b"CHAP_A=7\0CHAP_I=1\0CHAP_C=0x00\0",
            Violation::ChapAlgorithm("7".to_owned()),
        ),
        (
            b"CHAP_A=5\0CHAP_I=256\0CHAP_C=0x00\0",
            Violation::ChapIdentifier,
        ),
        (b"CHAP_A=5\0CHAP_I=1\0CHAP_C=0x\0", Violation::ChapChallenge),
        (b"CHAP_A=5\0CHAP_I=1\0", Violation::KeyMissing("CHAP_C")),
        (b"CHAP_I=1\0CHAP_C=0x00\0", Violation::KeyMissing("CHAP_A")),
    ];
    for (challenge, expected) in challenges {
        let mut script = Script::new(&params(true));
        script.exchange(b"AuthMethod=CHAP\0").unwrap();
        assert_eq!(violation(script.exchange(challenge)), expected);
    }
}

#[test]
fn discovery_session_names_no_target() {
    let mut params = params(false);
    params.target_name = None;
    let (_, said) = Script::new(&params).request();
    assert!(
        said.contains("SessionType=Discovery") && !said.contains("TargetName"),
        "{said}"
    );
}

#[test]
fn credentials_are_checked_before_anything_leaves() {
    let mut params = params(true);
    params.chap.as_mut().unwrap().name = String::new();
    assert_eq!(Login::new(&params, CmdSn(1)).unwrap_err(), Misuse::ChapName);
}
