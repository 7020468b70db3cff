//! L: the login phase.

use std::time::Duration;

use iscsi::io::{Driver, discover};
use iscsi::proto::{LoginError, Retry, SessionParams, Violation};
use support::target::{CONTINUE, FINAL, Pdu, Peer, Script, op, text};

use crate::bed::{
    INITIATOR, IQN, connect, log_in, params, ready, refused, refused_with, run, session,
    session_with, stage, submit, target, to_operational,
};

/// What each login request of a login must be, whatever the target said.
fn check_requests(requests: &[Pdu]) {
    let first = &requests[0];
    let mut keys: Vec<String> = Vec::new();
    for request in requests {
        assert_eq!((request.bhs[2], request.bhs[3]), (0, 0), "version");
        assert!(request.immediate(), "{request:?}");
        assert_eq!(request.cmd_sn(), first.cmd_sn(), "CmdSN moved");
        assert_eq!(request.isid(), first.isid());
        assert_eq!(request.itt(), first.itt());
        let (now, next) = request.stages();
        if request.is_final() {
            assert!(next > now && next != 2, "from stage {now} to {next}");
            assert_eq!(request.flags() & CONTINUE, 0, "both T and C");
        }
        for (key, _) in request.keys() {
            assert!(!keys.contains(&key), "{key} is sent twice");
            keys.push(key);
        }
    }
}

fn violation(error: &LoginError) -> &Violation {
    if let LoginError::Violation(violation) = error {
        violation
    } else {
        panic!("no violation: {error}")
    }
}

/// How a login ends whose target answers the operational keys like this.
async fn answered(keys: &[(&str, &str)]) -> LoginError {
    refused(async |peer: &mut Peer| {
        peer.login_with(1, keys).await;
    })
    .await
}

// L1, L5, L8, L9
#[tokio::test]
async fn plain_login_goes_through_its_stages_one_request_at_a_time() {
    let script = Script::listen().await;
    let params = params(&script.portal());
    let (login, mut peer, seen) = log_in(&params, &script, async |peer: &mut Peer| {
        // A number that nobody guesses: who acknowledges it has waited for the answer.
        peer.stat_sn = 0x7a3b_9c51;
        peer.login().await
    })
    .await;
    let mut driver = login.expect("the login succeeds");
    check_requests(&seen.requests);
    let stages: Vec<_> = seen.requests.iter().map(Pdu::stages).collect();
    assert_eq!(stages, [(0, 1), (1, 3)]);
    assert_eq!(seen.requests[1].exp_stat_sn(), 0x7a3b_9c52);
    submit(&mut driver, 0, ready());
    let command = crate::bed::driven(&mut driver, peer.recv()).await;
    assert_eq!(command.opcode(), op::SCSI_COMMAND);
    assert_eq!(command.exp_stat_sn(), 0x7a3b_9c53);
    assert_eq!(
        command.cmd_sn(),
        seen.requests[0].cmd_sn(),
        "login requests are immediate"
    );
}

// L2
#[tokio::test]
async fn leading_login_asks_for_a_new_session_with_an_isid_of_a_legal_format() {
    let target = target().start().await;
    let driver = connect(&target).await;
    let requests = target.record().received(op::LOGIN);
    for request in &requests {
        assert_eq!(request.tsih(), 0);
        // 00b OUI, 01b enterprise number, 10b random; 11b is reserved.
        assert_ne!(request.isid()[0] >> 6, 0b11);
        assert_eq!(request.isid(), params(&target.portal()).isid.0);
    }
    driver.logout().await.expect("the logout is answered");
    assert_eq!(target.violations(), Vec::<String>::new());
}

// L3
#[tokio::test]
async fn login_that_ends_without_a_session_handle_has_failed() {
    let error = refused(async |peer: &mut Peer| {
        peer.login_with(0, &[]).await;
    })
    .await;
    assert_eq!(*violation(&error), Violation::TsihZero);
}

// L6
#[tokio::test]
async fn target_that_is_not_ready_is_asked_again() {
    let script = Script::listen().await;
    let params = params(&script.portal());
    let (login, _peer, requests) = log_in(&params, &script, async |peer: &mut Peer| {
        let mut requests = vec![to_operational(peer).await];
        for flags in [
            stage::OPERATIONAL,
            stage::OPERATIONAL,
            stage::OPERATIONAL_TO_FULL_FEATURE,
        ] {
            let request = requests.last().expect("one came");
            let response = Pdu::login_response(request, flags, 1, &[]);
            peer.send(response).await;
            if flags == stage::OPERATIONAL {
                requests.push(peer.expect(op::LOGIN).await);
            }
        }
        requests
    })
    .await;
    login.expect("the third answer ends the login");
    check_requests(&requests);
    assert!(requests.iter().all(Pdu::is_final), "it asks each time");
}

// L6
#[tokio::test]
async fn target_that_is_never_ready_is_given_up() {
    let script = Script::listen().await;
    let params = params(&script.portal());
    let (login, _peer, asked) = log_in(&params, &script, async |peer: &mut Peer| {
        let mut request = to_operational(peer).await;
        for asked in 1..1000 {
            let response = Pdu::login_response(&request, stage::OPERATIONAL, 0, &[]);
            peer.send(response).await;
            match peer.try_recv().await {
                Some(next) => request = next,
                None => return asked,
            }
        }
        panic!("there is no end");
    })
    .await;
    let error = login.expect_err("it ends");
    assert!(matches!(violation(&error), Violation::LoginRounds(_)));
    assert!(asked < 100, "{asked} rounds");
}

// L7
#[tokio::test]
async fn first_status_number_is_counted_from_whatever_it_is() {
    for first in [0, 1, 0x7fff_ffff, u32::MAX - 1, u32::MAX] {
        let script = Script::listen().await;
        let params = params(&script.portal());
        let (login, mut peer, seen) = log_in(&params, &script, async |peer: &mut Peer| {
            peer.stat_sn = first;
            peer.login().await
        })
        .await;
        let mut driver = login.expect("the login succeeds");
        let next = first.wrapping_add(1);
        assert_eq!(seen.requests[1].exp_stat_sn(), next, "after {first}");
        submit(&mut driver, 0, ready());
        let command = crate::bed::driven(&mut driver, peer.recv()).await;
        assert_eq!(command.exp_stat_sn(), next.wrapping_add(1), "after {first}");
    }
}

// L8
#[tokio::test]
async fn status_number_that_is_not_the_next_ends_the_login() {
    for skew in [1, u32::MAX] {
        let error = refused(async |peer: &mut Peer| {
            let request = to_operational(peer).await;
            peer.stat_sn = peer.stat_sn.wrapping_add(skew);
            let flags = stage::OPERATIONAL_TO_FULL_FEATURE;
            peer.send(Pdu::login_response(&request, flags, 1, &[]))
                .await;
        })
        .await;
        assert!(matches!(violation(&error), Violation::StatSn { .. }));
    }
}

// L9
#[tokio::test]
async fn key_that_comes_twice_in_one_answer_ends_the_login() {
    let error = refused(async |peer: &mut Peer| {
        let request = to_operational(peer).await;
        let keys = [("MaxBurstLength", "65536"), ("MaxBurstLength", "65536")];
        let flags = stage::OPERATIONAL;
        peer.send(Pdu::login_response(&request, flags, 0, &keys))
            .await;
    })
    .await;
    assert!(matches!(violation(&error), Violation::KeyRepeated(_)));
}

// L9
#[tokio::test]
async fn key_that_comes_again_in_a_later_answer_ends_the_login() {
    let error = refused(async |peer: &mut Peer| {
        let mut request = to_operational(peer).await;
        for again in [false, true] {
            let keys = [("MaxBurstLength", "65536")];
            let flags = stage::OPERATIONAL;
            peer.send(Pdu::login_response(&request, flags, 0, &keys))
                .await;
            if !again {
                request = peer.expect(op::LOGIN).await;
            }
        }
    })
    .await;
    assert!(matches!(violation(&error), Violation::KeyRepeated(_)));
}

// L10
#[tokio::test]
async fn first_request_says_who_comes_and_what_for_and_none_says_it_again() {
    let target = target().start().await;
    let driver = connect(&target).await;
    let requests = target.record().received(op::LOGIN);
    check_requests(&requests);
    assert_eq!(requests[0].key("InitiatorName").as_deref(), Some(INITIATOR));
    assert_eq!(requests[0].key("TargetName").as_deref(), Some(IQN));
    assert_eq!(requests[0].key("SessionType").as_deref(), Some("Normal"));
    driver.logout().await.expect("the logout is answered");
}

// L10, L23
#[tokio::test]
async fn discovery_says_so_in_its_first_request_and_names_no_target() {
    let target = target().start().await;
    let found = discover(&params(&target.portal())).await;
    let found = found.expect("the target lists its targets");
    assert_eq!(found[0].name.as_str(), IQN);
    let record = target.record();
    let requests = record.received(op::LOGIN);
    check_requests(&requests);
    assert_eq!(requests[0].key("SessionType").as_deref(), Some("Discovery"));
    assert_eq!(requests[0].key("TargetName"), None);
    let later: Vec<u8> = record
        .initiators()
        .iter()
        .map(Pdu::opcode)
        .filter(|opcode| *opcode != op::LOGIN)
        .collect();
    assert_eq!(later, [op::TEXT, op::LOGOUT]);
    let text = &record.received(op::TEXT)[0];
    assert_eq!(text.keys(), [("SendTargets".to_owned(), "All".to_owned())]);
    assert_eq!(target.violations(), Vec::<String>::new());
}

// L23
#[tokio::test]
async fn discovery_bears_irrelevant_for_the_keys_of_sessions() {
    let script = Script::listen().await;
    let params = params(&script.portal());
    let keys = [
        "MaxConnections",
        "InitialR2T",
        "ImmediateData",
        "MaxBurstLength",
        "FirstBurstLength",
        "DefaultTime2Wait",
        "DefaultTime2Retain",
        "MaxOutstandingR2T",
        "DataPDUInOrder",
        "DataSequenceInOrder",
        "ErrorRecoveryLevel",
    ];
    let target = async {
        let mut peer = script.accept().await;
        let mut request = peer.expect(op::LOGIN).await;
        loop {
            let offered = request.keys();
            let mut answers = Vec::new();
            for (key, _) in &offered {
                if key == "AuthMethod" {
                    answers.push((key.as_str(), "None"));
                } else if keys.contains(&key.as_str()) {
                    answers.push((key.as_str(), "Irrelevant"));
                }
            }
            let flags = request.flags();
            peer.send(Pdu::login_response(&request, flags, 1, &answers))
                .await;
            if request.is_final() && request.stages().1 == 3 {
                break;
            }
            request = peer.expect(op::LOGIN).await;
        }
        let request = peer.expect(op::TEXT).await;
        let list = text(&[("TargetName", IQN)]);
        let tag = support::target::NO_TAG;
        peer.send(Pdu::text_response(&request, FINAL, tag, &list))
            .await;
        let request = peer.expect(op::LOGOUT).await;
        peer.send(Pdu::logout_response(&request, 0)).await;
        peer.until_closed().await
    };
    let (found, more) = tokio::join!(discover(&params), target);
    let found = found.expect("the list is complete");
    assert_eq!(found[0].name.as_str(), IQN);
    assert!(more.is_empty(), "{more:?}");
}

// L11
#[tokio::test]
async fn choice_that_was_not_offered_ends_the_login() {
    for keys in [[("HeaderDigest", "CRC64")], [("DataDigest", "CRC32C")]] {
        let error = answered(&keys).await;
        violation(&error);
    }
}

// L11
#[tokio::test]
async fn way_to_authenticate_that_was_not_offered_ends_the_login() {
    for method in ["KRB5", "CHAP", "none", "", "None,CHAP"] {
        let error = refused(async |peer: &mut Peer| {
            let request = peer.expect(op::LOGIN).await;
            let keys = [("AuthMethod", method)];
            let flags = stage::SECURITY_TO_OPERATIONAL;
            peer.send(Pdu::login_response(&request, flags, 0, &keys))
                .await;
        })
        .await;
        assert_eq!(error.retry(), Retry::Never, "AuthMethod={method}: {error}");
    }
}

// L12, L19
#[tokio::test]
async fn answer_that_a_key_cannot_have_ends_the_login() {
    for (key, value) in [
        ("FirstBurstLength", "511"),
        ("FirstBurstLength", "16777216"),
        ("MaxBurstLength", "511"),
        ("MaxBurstLength", "99999999999999999999"),
        ("MaxBurstLength", "-1"),
        ("MaxBurstLength", "0x"),
        ("MaxBurstLength", ""),
        ("MaxBurstLength", "65536 "),
        ("MaxRecvDataSegmentLength", "511"),
        ("MaxRecvDataSegmentLength", "16777216"),
        ("MaxOutstandingR2T", "0"),
        ("MaxOutstandingR2T", "65536"),
        ("MaxConnections", "0"),
        ("ErrorRecoveryLevel", "3"),
        ("DefaultTime2Wait", "3601"),
        ("DefaultTime2Retain", "Yes"),
        ("ImmediateData", "Maybe"),
        ("ImmediateData", "yes"),
        ("InitialR2T", "1"),
        ("DataPDUInOrder", "True"),
        ("DataSequenceInOrder", "YES"),
        ("TargetPortalGroupTag", "65536"),
    ] {
        // `login_with` takes an empty value for a key that is left out.
        let error = refused(async |peer: &mut Peer| {
            let request = to_operational(peer).await;
            let flags = stage::OPERATIONAL_TO_FULL_FEATURE;
            peer.send(Pdu::login_response(&request, flags, 1, &[(key, value)]))
                .await;
        })
        .await;
        assert!(
            matches!(error, LoginError::Violation(_)),
            "{key}={value}: {error}"
        );
    }
}

// L13
#[tokio::test]
async fn key_that_nobody_knows_is_answered_so_and_the_login_goes_on() {
    let replies = offered_by_target(&[("X-org.example.speed", "warp"), ("Colour", "red")]).await;
    assert_eq!(
        replies,
        [
            ("X-org.example.speed".to_owned(), "NotUnderstood".to_owned()),
            ("Colour".to_owned(), "NotUnderstood".to_owned()),
        ]
    );
}

// L18
#[tokio::test]
async fn keys_of_markers_are_refused_by_no_or_reject() {
    let replies = offered_by_target(&[
        ("IFMarker", "Yes"),
        ("OFMarker", "No"),
        ("IFMarkInt", "2048~8192"),
        ("OFMarkInt", "2048"),
    ])
    .await;
    assert_eq!(replies.len(), 4, "{replies:?}");
    for (key, value) in replies {
        assert!(value == "No" || value == "Reject", "{key}={value}");
    }
}

/// What the initiator says to keys that the target offers in a login that succeeds.
async fn offered_by_target(keys: &[(&str, &str)]) -> Vec<(String, String)> {
    let script = Script::listen().await;
    let params = params(&script.portal());
    let (login, _peer, replies) = log_in(&params, &script, async |peer: &mut Peer| {
        let request = to_operational(peer).await;
        peer.send(Pdu::login_response(&request, stage::OPERATIONAL, 0, keys))
            .await;
        let request = peer.expect(op::LOGIN).await;
        let flags = stage::OPERATIONAL_TO_FULL_FEATURE;
        peer.send(Pdu::login_response(&request, flags, 1, &[]))
            .await;
        request.keys()
    })
    .await;
    login.expect("the login goes on");
    replies
}

// L14
#[tokio::test]
async fn other_pdu_during_login_ends_it() {
    for strange in [
        Pdu::ping(7),
        Pdu::async_message(1, 0, [0, 0, 10]),
        // An opcode that no target has.
        Pdu::ping(7).with_byte(0, 0x3e),
    ] {
        let error = refused(async |peer: &mut Peer| {
            to_operational(peer).await;
            peer.send(strange.clone()).await;
        })
        .await;
        assert!(matches!(violation(&error), Violation::PduDuringLogin(_)));
    }
}

// L17
#[tokio::test]
async fn names_leave_in_lower_case_and_ill_formed_ones_not_at_all() {
    let target = target().start().await;
    let mut params = params(&target.portal());
    params.initiator_name = "IQN.2026-11.Org.Example:HOST".parse().expect("a name");
    params.target_name = Some(IQN.to_uppercase().parse().expect("a name"));
    let driver = Driver::connect(&params).await.expect("it is the same name");
    let request = &target.record().received(op::LOGIN)[0];
    assert_eq!(
        request.key("InitiatorName").as_deref(),
        Some("iqn.2026-11.org.example:host")
    );
    assert_eq!(request.key("TargetName").as_deref(), Some(IQN));
    driver.logout().await.expect("the logout is answered");
    let long = format!("iqn.2026-11.org.example:{}", "x".repeat(200));
    for name in [
        "",
        "disk",
        "iqn.disk",
        "iqn.26-11.org.example",
        "eui.123",
        "naa.xyz",
        "iqn.2026-11.org.example:a b",
        &long,
    ] {
        name.parse::<iscsi::proto::IscsiName>()
            .expect_err("no iSCSI name");
    }
}

// L19, L16, L22: a result beyond what either side said is none
#[tokio::test]
async fn result_that_does_not_follow_from_our_offer_ends_the_login() {
    let beyond: fn(&mut SessionParams) = |params| {
        params.offers.initial_r2t = true;
        params.offers.immediate_data = false;
        params.offers.max_connections = 2;
        params.offers.max_outstanding_r2t = 2;
        params.offers.max_burst_bytes = 65536;
        params.offers.first_burst_bytes = 4096;
        params.offers.time_2_wait = 5;
        params.offers.time_2_retain = 20;
    };
    for (key, value) in [
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxConnections", "3"),
        ("MaxOutstandingR2T", "3"),
        ("MaxBurstLength", "65537"),
        ("FirstBurstLength", "4097"),
        ("DefaultTime2Wait", "4"),
        ("DefaultTime2Retain", "21"),
        ("ErrorRecoveryLevel", "1"),
        ("DataPDUInOrder", "No"),
        ("DataSequenceInOrder", "No"),
    ] {
        let script = Script::listen().await;
        let mut params = params(&script.portal());
        beyond(&mut params);
        let error = refused_with(&params, &script, async |peer: &mut Peer| {
            peer.login_with(1, &[(key, value)]).await;
        })
        .await;
        assert!(
            matches!(error, LoginError::Violation(_)),
            "{key}={value}: {error}"
        );
    }
}

// L16, L19, L21, L22
#[tokio::test]
async fn results_are_those_of_their_functions() {
    let (driver, _peer) = session_with(
        |params| params.offers.max_connections = 4,
        &[
            ("MaxConnections", "1"),
            ("InitialR2T", "Yes"),
            ("ImmediateData", "No"),
            ("MaxBurstLength", "131072"),
            ("FirstBurstLength", "16384"),
            ("MaxOutstandingR2T", "3"),
            ("DefaultTime2Wait", "7"),
            ("DefaultTime2Retain", "0"),
            ("ErrorRecoveryLevel", "0"),
        ],
    )
    .await;
    let agreed = driver.agreed();
    assert_eq!(agreed.max_connections, 1);
    assert!(agreed.initial_r2t && !agreed.immediate_data);
    assert_eq!(agreed.max_burst_bytes, 131_072);
    assert_eq!(agreed.first_burst_bytes, 16384);
    assert_eq!(agreed.max_outstanding_r2t, 3);
    assert_eq!((agreed.time_2_wait, agreed.time_2_retain), (7, 0));
}

// L20
#[tokio::test]
async fn receive_lengths_are_each_sides_own_and_8192_where_none_is_told() {
    let declare: fn(&mut SessionParams) = |params| {
        params.offers.max_recv_data_segment_bytes = 65536;
    };
    let (driver, _peer) = session_with(declare, &[("MaxRecvDataSegmentLength", "4096")]).await;
    assert_eq!(driver.agreed().ours_max_recv_data_segment_bytes, 65536);
    assert_eq!(driver.agreed().theirs_max_recv_data_segment_bytes, 4096);
    let (driver, _peer) = session().await;
    assert_eq!(driver.agreed().theirs_max_recv_data_segment_bytes, 8192);
}

// L21
#[tokio::test]
async fn first_burst_is_never_longer_than_a_burst() {
    // The target left its own FirstBurstLength at the default and answers with both.
    let error = answered(&[("MaxBurstLength", "4096"), ("FirstBurstLength", "65536")]).await;
    violation(&error);
    let target = target().start().await;
    let _driver = connect(&target).await;
    let offers: Vec<_> = target
        .record()
        .received(op::LOGIN)
        .iter()
        .flat_map(Pdu::keys)
        .collect();
    let offer = |name: &str| -> u32 {
        let (_, value) = offers
            .iter()
            .find(|(key, _)| key == name)
            .expect("it is offered");
        value.parse().expect("a number")
    };
    assert!(offer("MaxBurstLength") >= offer("FirstBurstLength"));
}

// L24: without credentials there is nothing but None to offer
#[tokio::test]
async fn initiator_without_credentials_offers_none_alone() {
    let target = target().start().await;
    let _driver = connect(&target).await;
    let request = &target.record().received(op::LOGIN)[0];
    assert_eq!(request.key("AuthMethod").as_deref(), Some("None"));
}

// L25
#[tokio::test]
async fn portal_group_is_taken_whatever_it_is_and_another_than_expected_is_no_failure() {
    for (told, expected) in [("0", None), ("65535", None), ("2", Some(1)), ("1", Some(1))] {
        let (driver, _peer) = session_with(
            |params| params.expected_tpgt = expected,
            &[("TargetPortalGroupTag", told)],
        )
        .await;
        let tag = driver.agreed().target_portal_group_tag;
        assert_eq!(tag, told.parse().ok());
    }
}

/// Sends a login elsewhere.
async fn send_on(script: &Script, detail: u8, to: &str) -> Pdu {
    let mut peer = script.accept().await;
    let request = peer.expect(op::LOGIN).await;
    // Serials of a response that ends the login mean nothing.
    let answer = Pdu::login_refusal(&request, 1, detail, &[("TargetAddress", to)]);
    peer.send_raw(&answer).await;
    assert!(peer.until_closed().await.is_empty());
    request
}

// L26
#[tokio::test]
async fn redirection_is_followed_with_a_fresh_login() {
    for detail in [1, 2] {
        let (here, there) = (Script::listen().await, Script::listen().await);
        let params = params(&here.portal());
        let to = there.portal();
        let target = async {
            let first = send_on(&here, detail, &to).await;
            let mut peer = there.accept().await;
            (first, peer.login().await, peer)
        };
        let (login, (first, seen, _peer)) = tokio::join!(Driver::connect(&params), target);
        let driver = login.expect("the login ends there");
        assert_eq!(driver.portal().to_string(), to);
        check_requests(&seen.requests);
        let again = &seen.requests[0];
        assert_eq!(again.tsih(), 0);
        assert_eq!(again.exp_stat_sn(), 0);
        assert_eq!(again.keys(), first.keys());
        assert_eq!(again.isid(), first.isid());
        // 2: moved permanently, so that later logins go there at once.
        let permanent = driver.permanent_portal().map(ToString::to_string);
        assert_eq!(permanent, (detail == 2).then_some(to));
    }
}

// L26: an IPv6 address stands in brackets; a host without port means 3260
#[tokio::test]
async fn redirection_to_ipv6_is_understood() {
    let here = Script::listen().await;
    let there = Script::listen_at("[::1]:0").await;
    let params = params(&here.portal());
    let to = there.portal();
    let target = async {
        send_on(&here, 1, &to).await;
        let mut peer = there.accept().await;
        peer.login().await;
        peer
    };
    let (login, _peer) = tokio::join!(Driver::connect(&params), target);
    assert_eq!(login.expect("the login ends there").portal().host, "::1");
    let portal: iscsi::proto::Portal = "[2001:db8::1]".parse().expect("a portal");
    assert_eq!((portal.host.as_str(), portal.port), ("2001:db8::1", 3260));
}

// L26
#[tokio::test]
async fn redirections_without_address_or_without_end_are_given_up() {
    for to in ["", "nowhere:port", "[::1", "1.2.3.4:99999"] {
        let script = Script::listen().await;
        let params = params(&script.portal());
        let (login, _) = tokio::join!(Driver::connect(&params), send_on(&script, 1, to));
        let error = login.expect_err("there is nowhere to go");
        assert_eq!(*violation(&error), Violation::RedirectAddress, "{to}");
    }
    let script = Script::listen().await;
    let params = params(&script.portal());
    let to = script.portal();
    let (login, _) = tokio::join!(Driver::connect(&params), send_on(&script, 1, &to));
    let error = login.expect_err("it leads back");
    assert!(matches!(error, LoginError::RedirectLoop { .. }), "{error}");
}

// L26
#[tokio::test]
async fn chain_of_redirections_has_an_end() {
    let mut scripts = Vec::new();
    for _ in 0..40 {
        scripts.push(Script::listen().await);
    }
    let params = params(&scripts[0].portal());
    let chain = async {
        for pair in scripts.windows(2) {
            send_on(&pair[0], 1, &pair[1].portal()).await;
        }
    };
    tokio::select! {
        login = Driver::connect(&params) => {
            let error = login.expect_err("there is no end");
            assert!(matches!(error, LoginError::TooManyRedirects(_)), "{error}");
        }
        () = chain => panic!("it was followed 39 times"),
    }
}

// L27
#[tokio::test]
async fn refusals_are_final_or_pass_by_their_class_and_their_serials_do_not_count() {
    for (class, detail, retry) in [
        (2, 0x00, Retry::Never),
        (2, 0x01, Retry::Never),
        (2, 0x02, Retry::Never),
        (2, 0x03, Retry::Never),
        (2, 0x0b, Retry::Never),
        (2, 0xee, Retry::Never),
        (3, 0x00, Retry::AfterReconnect),
        (3, 0x01, Retry::AfterReconnect),
        (3, 0x02, Retry::AfterReconnect),
        (3, 0xee, Retry::AfterReconnect),
        (9, 0x01, Retry::Never),
    ] {
        let error = refused(async |peer: &mut Peer| {
            let request = to_operational(peer).await;
            let answer = Pdu::login_refusal(&request, class, detail, &[]);
            peer.send_raw(&answer.with(24, 0xdead_beef)).await;
        })
        .await;
        let LoginError::Refused { status } = &error else {
            panic!("{class:02x}{detail:02x}: {error}");
        };
        assert_eq!((status.class, status.detail), (class, detail));
        assert_eq!(error.retry(), retry, "{error}");
    }
}

// L28: the answer is cut in the middle of a key's name
#[tokio::test]
async fn text_over_several_pdus_is_fetched_by_empty_requests_and_joined() {
    let script = Script::listen().await;
    let params = params(&script.portal());
    let (login, _peer, requests) = log_in(&params, &script, async |peer: &mut Peer| {
        let mut request = to_operational(peer).await;
        let whole = text(&[("MaxBurstLength", "65536"), ("FirstBurstLength", "4096")]);
        let (first, second) = whole.split_at(25);
        let mut requests = Vec::new();
        let last = stage::OPERATIONAL_TO_FULL_FEATURE;
        for (flags, piece) in [(stage::OPERATIONAL | CONTINUE, first), (last, second)] {
            let response = Pdu::login_response(&request, flags, 1, &[]);
            peer.send(response.with_data(piece.to_vec())).await;
            if flags != last {
                request = peer.expect(op::LOGIN).await;
                requests.push(request.clone());
            }
        }
        requests
    })
    .await;
    let driver = login.expect("the login succeeds");
    assert_eq!(driver.agreed().max_burst_bytes, 65536);
    assert_eq!(driver.agreed().first_burst_bytes, 4096);
    assert_eq!(requests.len(), 1);
    assert!(requests[0].data.is_empty(), "{:?}", requests[0]);
    assert_eq!(requests[0].stages().0, 1);
}

// L28
#[tokio::test]
async fn text_without_end_is_given_up() {
    let script = Script::listen().await;
    let params = params(&script.portal());
    let (login, _peer, bytes) = log_in(&params, &script, async |peer: &mut Peer| {
        let mut request = to_operational(peer).await;
        let piece = vec![b'x'; 8192];
        for pieces in 1..1000 {
            let flags = stage::OPERATIONAL | CONTINUE;
            let response = Pdu::login_response(&request, flags, 0, &[]);
            peer.send(response.with_data(piece.clone())).await;
            match peer.try_recv().await {
                Some(next) => request = next,
                None => return pieces * piece.len(),
            }
        }
        panic!("there is no end");
    })
    .await;
    let error = login.expect_err("it ends");
    assert!(matches!(violation(&error), Violation::TextTooLong { .. }));
    assert!(bytes <= 128 * 1024, "{bytes} bytes were taken");
}

// L29
#[tokio::test]
async fn login_that_is_not_answered_ends_with_a_closed_socket() {
    let script = Script::listen().await;
    let mut params = params(&script.portal());
    params.login_timeout = Duration::from_millis(50);
    let error = refused_with(&params, &script, async |peer: &mut Peer| {
        to_operational(peer).await;
    })
    .await;
    assert!(matches!(error, LoginError::Timeout { .. }), "{error}");
    assert_eq!(error.retry(), Retry::AfterReconnect);
}

// L29: of such a PDU nothing but the header is waited for
#[tokio::test]
async fn login_answer_of_false_length_ends_with_a_closed_socket() {
    for (ahs, length) in [(0, [0xff, 0xff, 0xff]), (0, [0, 0x20, 0x01]), (1, [0; 3])] {
        let error = refused(async |peer: &mut Peer| {
            let request = to_operational(peer).await;
            let flags = stage::OPERATIONAL_TO_FULL_FEATURE;
            let mut bhs = Pdu::login_response(&request, flags, 1, &[]).bhs;
            bhs[24..28].copy_from_slice(&peer.stat_sn.to_be_bytes());
            bhs[4] = ahs;
            bhs[5..8].copy_from_slice(&length);
            peer.send_bytes(&bhs).await;
        })
        .await;
        violation(&error);
    }
}

// L29
#[tokio::test]
async fn portal_that_closes_during_login_is_lost_and_tried_again_later() {
    let error = refused(async |peer: &mut Peer| {
        to_operational(peer).await;
        peer.close().await;
    })
    .await;
    assert!(matches!(error, LoginError::Lost { .. }), "{error}");
    assert_eq!(error.retry(), Retry::AfterReconnect);
}

// L5: a target cannot send us to a stage that we did not ask for
#[tokio::test]
async fn answer_for_another_stage_ends_the_login() {
    for flags in [0x83, 0x80, stage::SECURITY | CONTINUE | FINAL] {
        let error = refused(async |peer: &mut Peer| {
            let request = to_operational(peer).await;
            peer.send(Pdu::login_response(&request, flags, 1, &[]))
                .await;
        })
        .await;
        violation(&error);
    }
}

// L7, L8: after an honest login the target has nothing to complain of
#[tokio::test]
async fn honest_target_finds_no_fault_in_a_login_and_a_command() {
    let target = target().start().await;
    let mut driver = connect(&target).await;
    assert_eq!(run(&mut driver, ready()).await.status.0, 0);
    driver.logout().await.expect("the logout is answered");
    assert_eq!(target.violations(), Vec::<String>::new());
}
