//! Logins by script: the test is the target.

use super::*;
use crate::proto::chap::Unproved;
use crate::proto::{ChapCredentials, Isid, Secret};

const OPERATIONAL_ANSWERS: &[u8] = b"HeaderDigest=None\0DataDigest=None\0InitialR2T=Yes\0\
    ImmediateData=Yes\0MaxBurstLength=262144\0FirstBurstLength=65536\0MaxOutstandingR2T=1\0\
    MaxConnections=1\0DefaultTime2Wait=2\0DefaultTime2Retain=0\0ErrorRecoveryLevel=0\0\
    DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0MaxRecvDataSegmentLength=8192\0";
/// The session that the target makes.
const SESSION: u16 = 9;
/// Our random bytes: `CHAP_I=65`, and "abcd" four times as `CHAP_C`.
const CHANCE: &[u8; CHANCE_BYTES] = b"Aabcdabcdabcdabcd";
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
    tsih: u16,
    stat_sn: StatSn,
}

impl Script {
    fn new(params: &SessionParams) -> Self {
        Self::of(Login::new(params, CmdSn(u32::MAX)).unwrap())
    }

    fn of(login: Login) -> Self {
        Self {
            tsih: login.tsih,
            login: login.with_chance(*CHANCE),
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
        // L2, L5, L8: RFC 7143 §11.12.8: CmdSN is constant; §11.12.3: T never leads to stage 2 or back
        assert_eq!((request.cmd_sn, request.tsih), (CmdSn(u32::MAX), self.tsih));
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
                SESSION
            } else {
                self.tsih
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
        let mut bhs = response.emit();
        header::set_data_segment_bytes(&mut bhs, u32::try_from(text.len()).unwrap());
        self.login.handle_response(&bhs, text)
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

// L1, L7, L8, L10: RFC 7143 §6.3
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
        (end.tsih, end.cid, end.cmd_sn, end.exp_stat_sn),
        (SESSION, 0, CmdSn(u32::MAX), StatSn(1))
    );
    assert!(!end.is_target_proved && end.warnings.is_empty());
    assert_eq!(end.agreed.target_portal_group_tag, Some(1));
    assert!(script.login.poll_transmit().is_none());
}

// C1, L24: RFC 7143 §12.1.3
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

// L6: RFC 7143 §6.3: T=0 of the target means: go on
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

// L13, L18: RFC 7143 §6.2: offers of the target are answered; unknown keys do no harm
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

// L28: RFC 7143 §6.2: C, split in the middle of a key
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

// L28: RFC 7143 §6.2: C the other way
#[test]
fn long_request_leaves_in_pieces() {
    let mut script = Script::new(&params(false));
    script.exchange(b"AuthMethod=None\0").unwrap();
    let mut offers = OPERATIONAL_ANSWERS.to_vec();
    for number in 0..200 {
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
    assert_eq!((said + &rest).matches("=NotUnderstood ").count(), 200);
}

// L28
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

// L27: RFC 7143 §11.13.5: each class, with serial numbers that mean nothing
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

// L26: RFC 7143 §11.13.5, §13.8: with and without port, tag and brackets
#[test]
fn redirections_are_told_with_their_kind() {
    for (detail, address, portal) in [
        (1, "[fe80::1]:3261", "[fe80::1]:3261"),
        (2, "[fe80::1]", "[fe80::1]:3260"),
        (1, "10.0.0.9", "10.0.0.9:3260"),
        (2, "10.0.0.9:3261,7", "10.0.0.9:3261"),
        (1, "storage.example:860,0x7", "storage.example:860"),
        // A detail of the class that nobody knows.
        (9, "[fe80::1],1", "[fe80::1]:3260"),
    ] {
        let mut script = Script::new(&params(true));
        let step = script
            .exchange_with(
                format!("TargetAddress={address}\0").as_bytes(),
                |response| {
                    response.status = LoginStatus { class: 1, detail };
                    // Numbers of such a response mean nothing.
                    response.numbers.stat_sn = StatSn(77);
                },
            )
            .unwrap();
        let LoginStep::Redirect(redirect) = step else {
            panic!("{step:?}")
        };
        assert_eq!(redirect.portal.to_string(), portal);
        assert_eq!(redirect.is_permanent, detail == 2);
        assert!(script.login.poll_transmit().is_none());
    }
    for address in [&b""[..], b"TargetAddress=\0", b"TargetAddress=[::1\0"] {
        let mut script = Script::new(&params(false));
        let step = script.exchange_with(address, |response| {
            response.status = LoginStatus::MOVED_TEMPORARILY;
        });
        assert_eq!(violation(step), Violation::RedirectAddress);
    }
}

// L3, L5, L8
#[test]
fn broken_rules_end_the_login_by_name() {
    type Change = fn(&mut LoginResponse);
    let cases: [(Change, Violation); 7] = [
        (|response| response.isid[5] ^= 1, Violation::Isid),
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

// L14, L29
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
    let mut script = Script::new(&params(false));
    let step = script.exchange(&[b'a'; 8193]);
    let (bytes, limit) = (8193, 8192);
    assert_eq!(violation(step), Violation::SegmentTooLong { bytes, limit });
}

// L11, C2, C3, C6: RFC 7143 §12.1, §12.1.3
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

// L10, L23
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

/// Parameters with mutual CHAP; the target is to be `target` with another secret than ours.
fn mutual() -> SessionParams {
    let mut params = params(true);
    params.mutual_chap = Some(ChapCredentials {
        name: "target".to_owned(),
        secret: Secret::new("fedcba9876543210".to_owned()),
    });
    params
}

/// A login with mutual CHAP, up to our challenge.
fn challenged(params: &SessionParams) -> (Script, LoginRequest) {
    let mut script = Script::new(params);
    script.exchange(b"AuthMethod=CHAP\0").unwrap();
    script.exchange(CHALLENGE).unwrap();
    let (request, said) = script.request();
    assert_eq!(
        said,
        "CHAP_N=user CHAP_R=0x1b07382da15416ba61f956eb507a98a3 CHAP_I=65 \
         CHAP_C=0x61626364616263646162636461626364 "
    );
    assert!(request.transit);
    (script, request)
}

/// md5sum of "A", the target's secret and our challenge.
const PROOF: &[u8] = b"CHAP_N=target\0CHAP_R=0x7816ebad9c99a0eb5d4c81c0121ae2ee\0";

// C4, C9, C10: RFC 7143 §12.1.3
#[test]
fn mutual_chap_ends_with_a_target_that_proved_itself() {
    let (mut script, request) = challenged(&mutual());
    let response = script.response(&request);
    script.give(&response, PROOF).unwrap();
    let end = established(script.exchange(OPERATIONAL_ANSWERS).unwrap().1);
    assert!(end.is_target_proved);

    // L6: also where the target stays in the stage for one more round
    let (mut script, request) = challenged(&mutual());
    let mut response = script.response(&request);
    response.transit = false;
    script.give(&response, PROOF).unwrap();
    script.exchange(b"").unwrap();
    let end = established(script.exchange(OPERATIONAL_ANSWERS).unwrap().1);
    assert!(end.is_target_proved);
}

// L24: what would not be accepted is not offered
#[test]
fn none_is_neither_offered_nor_taken_where_authentication_is_required() {
    let mut strict = params(true);
    strict.require_authentication = true;
    for params in [strict, mutual()] {
        let (_, said) = Script::new(&params).request();
        assert!(said.ends_with("AuthMethod=CHAP "), "{said}");
        for (answer, expected) in [
            (
                &b"AuthMethod=None\0"[..],
                Violation::answer("AuthMethod", "None", "CHAP"),
            ),
            (b"", Violation::KeyMissing("AuthMethod")),
        ] {
            let refused = Script::new(&params).exchange(answer);
            assert_eq!(violation(refused), expected);
        }
    }
}

// C9, C10, C11, C12: before any I/O, and told apart from a refusal of the target's
#[test]
fn target_that_does_not_prove_itself_is_refused() {
    let unproved = |text: &[u8], transit: bool| {
        let (mut script, request) = challenged(&mutual());
        let mut response = script.response(&request);
        response.transit = transit;
        let error = script.give(&response, text).unwrap_err();
        assert!(script.login.poll_transmit().is_none(), "nothing follows");
        assert!(
            error
                .to_string()
                .starts_with("the target did not prove itself"),
            "{error}"
        );
        let LoginError::TargetUnproved(unproved) = error else {
            panic!("{error}")
        };
        unproved
    };
    for transit in [true, false] {
        assert_eq!(unproved(b"", transit), Unproved::Silent);
        assert_eq!(
            unproved(b"CHAP_N=target\0CHAP_R=0x00\0", transit),
            Unproved::Response
        );
        // Our own secret over our challenge, by md5sum.
        let reflected = b"CHAP_N=target\0CHAP_R=0x752467bd3fd36d98151e6665e7a81ca6\0";
        assert_eq!(unproved(reflected, transit), Unproved::Reflected);
        let other = b"CHAP_N=other\0CHAP_R=0x7816ebad9c99a0eb5d4c81c0121ae2ee\0";
        assert_eq!(unproved(other, transit), Unproved::Name("other".to_owned()));
    }
    for half in [&b"CHAP_N=target\0"[..], b"CHAP_R=0x00\0"] {
        let (mut script, request) = challenged(&mutual());
        let response = script.response(&request);
        let error = violation(script.give(&response, half));
        assert!(matches!(error, Violation::KeyMissing(_)), "{error}");
    }
}

// C8: our own challenge from the target's mouth
#[test]
fn reflected_challenge_is_refused() {
    let mut script = Script::new(&mutual());
    script.exchange(b"AuthMethod=CHAP\0").unwrap();
    let error = script
        .exchange(b"CHAP_A=5\0CHAP_I=1\0CHAP_C=0x61626364616263646162636461626364\0")
        .unwrap_err();
    assert!(
        matches!(error, LoginError::TargetUnproved(Unproved::Reflected)),
        "{error}"
    );
}

// C2, C3, C6, C9: keys of another step
#[test]
fn chap_keys_out_of_order_are_refused() {
    let steps: [&[u8]; 3] = [b"AuthMethod=CHAP\0", CHALLENGE, b""];
    for (at, key) in [
        (0, "CHAP_I"),
        (0, "CHAP_N"),
        (1, "CHAP_N"),
        (1, "CHAP_R"),
        (1, "AuthMethod"),
        (2, "CHAP_A"),
        (2, "CHAP_C"),
        (2, "AuthMethod"),
        // One-way: nobody asked the target for a proof.
        (2, "CHAP_N"),
    ] {
        let mut script = Script::new(&params(true));
        for step in &steps[..at] {
            script.exchange(step).unwrap();
        }
        let text = [steps[at], format!("{key}=0x01\0").as_bytes()].concat();
        assert_eq!(
            violation(script.exchange(&text)),
            Violation::KeyOutOfPlace(key.to_owned()),
            "{key} in step {at}"
        );
    }
}

// C1: a list in our order; one of it comes back, and holds for both directions
#[test]
fn stronger_algorithms_are_offered_and_used() {
    let proofs = [
        (
            "6",
            "ad891a75ebb20a0ea6b63e95fc046206c731466d",
            "40a0237cd3b494e49cb3d7355d91565b34cb3973",
        ),
        (
            "7",
            "d2eb217b73fd59c32ba8a75df7f415c85b5a15569e945311c93bd1e487847bd6",
            "bd4d7119e65fa4ec1da3f4de162a918b9bdb40915a22dcaabc0fdf36707ec946",
        ),
        (
            "8",
            "40e8b4817aa71440f876c420a39a49b4f016d3e59bc57ea2ce93ba08225c4327",
            "15f1209aea89881348b48dcf6d3235680c5d90f3a38f99e5ee9f46f63ee41b76",
        ),
    ];
    for (number, ours, theirs) in proofs {
        let mut params = mutual();
        params.chap_algorithms = ChapAlgorithm::ALL.to_vec();
        let mut script = Script::new(&params);
        script.exchange(b"AuthMethod=CHAP\0").unwrap();
        // The target asks what we shall ask, but for one byte.
        let challenge =
            format!("CHAP_A={number}\0CHAP_I=65\0CHAP_C=0x6162636461626364616263646162636400\0");
        let (said, _) = script.exchange(challenge.as_bytes()).unwrap();
        assert_eq!(said, "CHAP_A=8,7,6,5 ");
        let (request, _) = script.request();
        let response = script.response(&request);
        let proof = format!("CHAP_N=target\0CHAP_R=0x{theirs}\0");
        script.give(&response, proof.as_bytes()).unwrap();
        let end = established(script.exchange(OPERATIONAL_ANSWERS).unwrap().1);
        assert!(end.is_target_proved);

        let (mut script, request) = challenged_with(&params, number);
        let response = script.response(&request);
        let own = format!("CHAP_N=target\0CHAP_R=0x{ours}\0");
        let error = script.give(&response, own.as_bytes()).unwrap_err();
        assert!(matches!(error, LoginError::TargetUnproved(_)), "{error}");
    }
}

fn challenged_with(params: &SessionParams, algorithm: &str) -> (Script, LoginRequest) {
    let mut script = Script::new(params);
    script.exchange(b"AuthMethod=CHAP\0").unwrap();
    let challenge = format!("CHAP_A={algorithm}\0CHAP_I=1\0CHAP_C=0x00\0");
    script.exchange(challenge.as_bytes()).unwrap();
    let (request, _) = script.request();
    (script, request)
}

// C1: some targets cannot read a list at all, or mean something else by a number
#[test]
fn failure_over_the_list_leaves_a_login_with_md5_to_try() {
    use ChapAlgorithm::{Md5, Sha1, Sha256};
    let answers: [&[u8]; 3] = [
        b"AuthMethod=CHAP\0",
        b"CHAP_A=7\0CHAP_I=1\0CHAP_C=0x00\0",
        b"",
    ];
    for (algorithms, may) in [
        (vec![Sha256, Md5], [false, true, true, false]),
        (vec![Sha256, Sha1], [false; 4]),
        (vec![Sha256], [false; 4]),
    ] {
        for (at, may) in may.into_iter().enumerate() {
            let mut params = params(true);
            params.chap_algorithms.clone_from(&algorithms);
            let mut script = Script::new(&params);
            for answer in &answers[..at] {
                script.exchange(answer).unwrap();
            }
            for (detail, may) in [(0, may), (1, may), (2, false)] {
                let status = LoginStatus { class: 2, detail };
                let error = LoginError::Refused { status };
                assert_eq!(script.login.may_try_md5(&error), may, "{at} {error}");
            }
        }
    }
    // MD5 was picked and read: it is the secret that is wrong.
    let mut params = params(true);
    params.chap_algorithms = vec![Sha256, Md5];
    let (script, _) = challenged_with(&params, "5");
    let status = LoginStatus::AUTHENTICATION_FAILURE;
    assert!(!script.login.may_try_md5(&LoginError::Refused { status }));

    let mut script = Script::new(&params);
    script.exchange(b"AuthMethod=CHAP\0").unwrap();
    let error = script.exchange(b"CHAP_A=Reject\0").unwrap_err();
    assert!(matches!(error, LoginError::ChapAlgorithm { .. }), "{error}");
    assert!(script.login.may_try_md5(&error));
}

#[test]
fn mutual_chap_without_random_bytes_is_misuse() {
    let mut script = Script::new(&mutual());
    script.login.challenge = None;
    script.exchange(b"AuthMethod=CHAP\0").unwrap();
    let error = script.exchange(CHALLENGE).unwrap_err();
    assert!(
        matches!(error, LoginError::Misuse(Misuse::NoChance)),
        "{error}"
    );
}

// L15
#[test]
fn login_without_a_required_digest_fails() {
    let mut params = params(false);
    params.offers.data_digest = DigestPolicy::Require;
    for (answer, is_refused) in [("CRC32C", false), ("Reject", true), ("None", true)] {
        let mut script = Script::new(&params);
        script.exchange(b"AuthMethod=None\0").unwrap();
        let answers = format!("HeaderDigest=None\0DataDigest={answer}\0");
        let end = script.exchange(answers.as_bytes());
        match end {
            Ok((said, step)) => {
                assert!(said.contains("DataDigest=CRC32C "), "{said}");
                assert!(established(step).agreed.data_digest && !is_refused);
            }
            Err(error) => assert!(
                is_refused && matches!(error, LoginError::DigestRefused { key: "DataDigest" }),
                "{error}"
            ),
        }
    }
}

// L3, L4: RFC 7143 §6.3.1
#[test]
fn further_connection_joins_its_session() {
    let join = || Login::further(&params(false), CmdSn(u32::MAX), SESSION, 3).unwrap();
    let mut script = Script::of(join());
    let (request, said) = script.request();
    assert_eq!(
        said,
        "InitiatorName=iqn.2026-11.org.cinder-nbd:test TargetName=iqn.2026-11.test:disk \
         AuthMethod=None "
    );
    assert_eq!((request.tsih, request.cid), (SESSION, 3));
    let response = script.response(&request);
    script.give(&response, b"AuthMethod=None\0").unwrap();
    let (said, step) = script
        .exchange(b"HeaderDigest=None\0DataDigest=None\0")
        .unwrap();
    assert_eq!(
        said,
        "HeaderDigest=None DataDigest=None MaxRecvDataSegmentLength=262144 "
    );
    let end = established(step);
    assert_eq!((end.tsih, end.cid), (SESSION, 3));

    for (tsih, expected) in [
        (0, Violation::TsihZero),
        (
            8,
            Violation::Tsih {
                expected: SESSION,
                seen: 8,
            },
        ),
    ] {
        let mut script = Script::of(join());
        script.exchange(b"AuthMethod=None\0").unwrap();
        let step = script.exchange_with(b"", |response| response.tsih = tsih);
        assert_eq!(violation(step), expected);
    }
    let mut no_session = params(false);
    let zero = Login::further(&no_session, CmdSn(1), 0, 1);
    assert_eq!(zero.unwrap_err(), Misuse::NoSession);
    no_session.target_name = None;
    let discovery = Login::further(&no_session, CmdSn(1), SESSION, 1);
    assert_eq!(discovery.unwrap_err(), Misuse::NoSession);
}

// L25: RFC 7143 §9.2.1
#[test]
fn what_is_no_failure_is_told_as_a_warning() {
    let mut params = params(true);
    params.chap.as_mut().unwrap().secret = Secret::new("elevenbytes".to_owned());
    params.expected_tpgt = Some(1);
    for (text, warnings) in [
        (
            &b"AuthMethod=None\0TargetPortalGroupTag=0\0"[..],
            vec![
                LoginWarning::PortalGroup {
                    expected: 1,
                    seen: 0,
                },
                LoginWarning::ShortSecret { is_targets: false },
            ],
        ),
        (
            b"AuthMethod=None\0TargetPortalGroupTag=1\0",
            vec![LoginWarning::ShortSecret { is_targets: false }],
        ),
    ] {
        let mut script = Script::new(&params);
        script.exchange(text).unwrap();
        script.exchange(b"").unwrap();
        let end = established(script.exchange(OPERATIONAL_ANSWERS).unwrap().1);
        assert_eq!(end.warnings, warnings);
        let told: Vec<_> = end.warnings.iter().map(ToString::to_string).collect();
        assert!(!told.concat().contains("elevenbytes"));
    }
}

#[test]
fn offers_are_checked_before_anything_leaves() {
    let mut params = params(false);
    params.offers.max_connections = 0;
    assert_eq!(
        Login::new(&params, CmdSn(1)).unwrap_err(),
        Misuse::Offer {
            key: "MaxConnections",
            low: 1,
            high: 65_535
        }
    );
}

// C13: neither in the machine's own words nor in its errors
#[test]
fn secrets_do_not_print() {
    let (script, _) = challenged(&mutual());
    let printed = format!("{:?}", script.login);
    for secret in ["0123456789abcdef", "fedcba9876543210", "abcdabcd"] {
        assert!(!printed.contains(secret), "{printed}");
    }
    assert!(printed.contains("[secret]"));
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        // L14, L28, L29: whatever a target says, a login ends without a panic, and never in full feature
        // phase before the target has proved itself.
        #[test]
        fn any_target_is_borne(
            pieces in proptest::collection::vec(
                (any::<[u8; 3]>(), "(AuthMethod|CHAP_[AICNR]|[A-Z]{1,3})=[0-9a-zA-Z,]{0,6}\0|[a-z]{0,8}"),
                0..12,
            ),
            is_further in any::<bool>(),
        ) {
            let params = mutual();
            let login = if is_further {
                Login::further(&params, CmdSn(u32::MAX), SESSION, 1)
            } else {
                Login::new(&params, CmdSn(u32::MAX))
            };
            let mut script = Script::of(login.unwrap());
            for ([flags, class, jump], text) in pieces {
                let step = script.exchange_with(text.as_bytes(), |response| {
                    if flags & 1 != 0 {
                        response.transit = flags & 2 != 0;
                    }
                    response.is_continued = flags & 0b1100 == 0b1100;
                    if flags & 0xf0 == 0xf0 {
                        response.status = LoginStatus { class: class % 5, detail: jump };
                        response.tsih = u16::from(jump);
                    }
                });
                match step {
                    Ok(LoginStep::Continue) => {}
                    Ok(LoginStep::Established(_)) => {
                        panic!("the proof cannot be guessed")
                    }
                    Ok(LoginStep::Redirect(_)) | Err(_) => break,
                }
            }
        }
    }
}
