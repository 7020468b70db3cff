//! Portals that misbehave, or that send us elsewhere: a listener of the test's own plays them, with
//! answers made by the test.

use std::future::poll_fn;

use iscsi::io::{Command, Data, Driver, discover};
use iscsi::proto::{
    ChapAlgorithm, ChapCredentials, DiscoveryError, Isid, LoginError, Secret, SessionError,
    SessionParams, Violation,
};
use iscsi::scsi::{Cdb, LunAddress};
use iscsi::wire::header::{ResponseNumbers, data_segment_bytes, set_data_segment_bytes};
use iscsi::wire::login::{LoginRequest, LoginResponse, LoginStatus, Stage};
use iscsi::wire::scsi_command::ScsiCommand;
use iscsi::wire::serial::{CmdSn, StatSn};
use iscsi::wire::{BHS_BYTES, Bhs};
use support::tgt::Tgtd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const IQN: &str = "iqn.2026-11.test:disk";

fn params(portal: &str) -> SessionParams {
    let portal = portal.parse().expect("a portal");
    let name = "iqn.2026-11.org.cinder-nbd:test".parse().expect("a name");
    let mut params = SessionParams::new(portal, name, Isid::random([1, 2, 3], 7));
    params.target_name = Some(IQN.parse().expect("a name"));
    params
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind(("127.0.0.1", 0))
        .await
        .expect("loopback has a free port");
    let portal = listener.local_addr().expect("it is bound").to_string();
    (listener, portal)
}

async fn read_pdu(stream: &mut TcpStream) -> Bhs {
    read_text(stream).await.0
}

async fn read_text(stream: &mut TcpStream) -> (Bhs, String) {
    let mut bhs = [0; BHS_BYTES];
    stream.read_exact(&mut bhs).await.expect("a header comes");
    let length = usize::try_from(data_segment_bytes(&bhs)).expect("few bytes");
    let mut data = vec![0; length.next_multiple_of(4)];
    stream.read_exact(&mut data).await.expect("a segment comes");
    data.truncate(length);
    (bhs, String::from_utf8(data).expect("keys are text"))
}

async fn write_pdu(stream: &mut TcpStream, mut bhs: Bhs, data: &[u8]) {
    set_data_segment_bytes(&mut bhs, u32::try_from(data.len()).expect("few bytes"));
    let mut pdu = [&bhs[..], data].concat();
    pdu.resize(pdu.len().next_multiple_of(4), 0);
    stream.write_all(&pdu).await.expect("the initiator listens");
}

fn answer(request: &LoginRequest, stat_sn: u32, status: LoginStatus) -> LoginResponse {
    LoginResponse {
        transit: request.transit,
        is_continued: false,
        current_stage: request.current_stage,
        next_stage: request.next_stage,
        version_max: 0,
        version_active: 0,
        isid: request.isid,
        tsih: u16::from(request.next_stage == Stage::FULL_FEATURE),
        initiator_task_tag: request.initiator_task_tag,
        numbers: ResponseNumbers {
            stat_sn: StatSn(stat_sn),
            exp_cmd_sn: request.cmd_sn,
            max_cmd_sn: CmdSn(request.cmd_sn.0 + 8),
        },
        status,
    }
}

/// Sends one login elsewhere.
async fn redirect(listener: &TcpListener, to: &str) {
    redirect_with(listener, to, LoginStatus::MOVED_TEMPORARILY).await;
}

async fn redirect_with(listener: &TcpListener, to: &str, status: LoginStatus) {
    let (mut stream, _) = listener.accept().await.expect("the initiator comes");
    let request = LoginRequest::parse(&read_pdu(&mut stream).await);
    let response = answer(&request, 0, status);
    write_pdu(
        &mut stream,
        response.emit(),
        format!("TargetAddress={to}\0").as_bytes(),
    )
    .await;
}

/// Takes one login to its end, with all keys at their defaults.
async fn accept(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().await.expect("the initiator comes");
    for (stat_sn, text) in [(0, &b"AuthMethod=None\0"[..]), (1, b"")] {
        let request = LoginRequest::parse(&read_pdu(&mut stream).await);
        let response = answer(&request, stat_sn, LoginStatus::SUCCESS);
        write_pdu(&mut stream, response.emit(), text).await;
    }
    stream
}

// L26: RFC 7143 §11.13.5: class 1
#[tokio::test]
async fn redirection_is_followed_to_a_real_target() {
    let tgtd = Tgtd::start();
    tgtd.add_target(IQN).add_lun_file(1, 1 << 20);
    let (listener, portal) = listen().await;
    let params = params(&portal);
    let real = tgtd.portal();
    let (driver, ()) = tokio::join!(Driver::connect(&params), redirect(&listener, &real));
    let driver = driver.expect("the login ends at tgtd");
    assert_eq!(driver.portal().to_string(), real);
    assert_eq!(tgtd.sessions(), 1);
    driver.logout().await.expect("the logout is answered");
}

// L26: a loop is seen when it closes
#[tokio::test]
async fn redirection_in_a_circle_ends() {
    let (first, first_portal) = listen().await;
    let (second, second_portal) = listen().await;
    let circle = async {
        redirect(&first, &second_portal).await;
        redirect(&second, &first_portal).await;
    };
    let params = params(&first_portal);
    let (login, ()) = tokio::join!(Driver::connect(&params), circle);
    let error = login.expect_err("there is no end");
    let LoginError::RedirectLoop { portal } = &error else {
        panic!("{error}")
    };
    assert_eq!(*portal, params.portal);
}

// L26: a chain that never comes back has an end too
#[tokio::test]
async fn redirections_without_end_are_given_up() {
    let mut listeners = Vec::new();
    for _ in 0..6 {
        listeners.push(listen().await);
    }
    let params = params(&listeners[0].1);
    let chain = async {
        for pair in listeners.windows(2) {
            redirect(&pair[0].0, &pair[1].1).await;
        }
    };
    let (login, ()) = tokio::join!(Driver::connect(&params), chain);
    let error = login.expect_err("there is no end");
    assert!(matches!(error, LoginError::TooManyRedirects(4)), "{error}");
}

// L26: later logins go where the target lives, not where it was sent for the moment
#[tokio::test]
async fn portal_is_remembered_as_far_as_the_target_has_moved_for_good() {
    let (temporary, permanent) = (
        LoginStatus::MOVED_TEMPORARILY,
        LoginStatus::MOVED_PERMANENTLY,
    );
    for (hops, kept) in [
        ([temporary, temporary], None),
        ([temporary, permanent], None),
        ([permanent, temporary], Some(1)),
        ([permanent, permanent], Some(2)),
    ] {
        let all = [listen().await, listen().await, listen().await];
        let target = async {
            redirect_with(&all[0].0, &all[1].1, hops[0]).await;
            redirect_with(&all[1].0, &all[2].1, hops[1]).await;
            accept(&all[2].0).await
        };
        let mut params = params(&all[0].1);
        // Discovery spoke of another portal than the one where this ends: nothing to warn of.
        params.expected_tpgt = Some(1);
        let (driver, _stream) = tokio::join!(Driver::connect(&params), target);
        let driver = driver.expect("the login ends at the third portal");
        assert_eq!(driver.portal().to_string(), all[2].1);
        let expected = kept.map(|at: usize| all[at].1.clone());
        assert_eq!(driver.permanent_portal().map(ToString::to_string), expected);
    }
}

/// What a target does that cannot read a list of algorithms.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    Status(LoginStatus),
    Reject,
    HangUp,
}

/// Plays two requests of the security stage; gives the stream and the list that it saw.
async fn hear_algorithms(listener: &TcpListener) -> (TcpStream, LoginRequest, String) {
    let (mut stream, _) = listener.accept().await.expect("the initiator comes");
    let request = LoginRequest::parse(&read_pdu(&mut stream).await);
    let response = answer(&request, 0, LoginStatus::SUCCESS);
    write_pdu(&mut stream, response.emit(), b"AuthMethod=CHAP\0").await;
    let (bhs, list) = read_text(&mut stream).await;
    (stream, LoginRequest::parse(&bhs), list)
}

// C1: some targets cannot read a list: one login more, with MD5 alone
#[tokio::test]
async fn list_of_algorithms_is_taken_back_once() {
    for refusal in [
        Refusal::Status(LoginStatus::AUTHENTICATION_FAILURE),
        Refusal::Status(LoginStatus::INITIATOR_ERROR),
        Refusal::Reject,
        Refusal::HangUp,
    ] {
        let (listener, portal) = listen().await;
        let target = async {
            let (mut stream, request, list) = hear_algorithms(&listener).await;
            assert_eq!(list, "CHAP_A=7,5\0");
            let (status, text) = match refusal {
                Refusal::Status(status) => (status, &b""[..]),
                Refusal::Reject => (LoginStatus::SUCCESS, &b"CHAP_A=Reject\0"[..]),
                Refusal::HangUp => (LoginStatus::SUCCESS, &b""[..]),
            };
            if !matches!(refusal, Refusal::HangUp) {
                write_pdu(&mut stream, answer(&request, 1, status).emit(), text).await;
            }
            drop(stream);
            let (mut stream, request, list) = hear_algorithms(&listener).await;
            assert_eq!(list, "CHAP_A=5\0");
            let failed = answer(&request, 1, LoginStatus::AUTHENTICATION_FAILURE);
            write_pdu(&mut stream, failed.emit(), b"").await;
        };
        let mut params = params(&portal);
        params.chap_algorithms = vec![ChapAlgorithm::Sha256, ChapAlgorithm::Md5];
        params.chap = Some(ChapCredentials {
            name: "user".to_owned(),
            secret: Secret::new("a-secret-of-16-b".to_owned()),
        });
        let (login, ()) = tokio::join!(Driver::connect(&params), target);
        let error = login.expect_err("the second is the last");
        assert!(
            matches!(error, LoginError::Refused { .. }),
            "{refusal:?}: {error}"
        );
    }
}

#[tokio::test]
async fn portal_that_is_no_iscsi_is_refused() {
    let (listener, portal) = listen().await;
    let web = async {
        let (mut stream, _) = listener.accept().await.expect("the initiator comes");
        read_pdu(&mut stream).await;
        let page = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        stream
            .write_all(page.as_bytes())
            .await
            .expect("the initiator listens");
    };
    let params = params(&portal);
    let (login, ()) = tokio::join!(Driver::connect(&params), web);
    let error = login.expect_err("this is no target");
    assert!(matches!(error, LoginError::Violation(_)), "{error}");
}

#[tokio::test]
async fn connection_cut_in_a_header_is_lost_and_the_command_unfinished() {
    let (listener, portal) = listen().await;
    let params = params(&portal);
    let cut = async {
        let mut stream = accept(&listener).await;
        let command = ScsiCommand::parse(&read_pdu(&mut stream).await);
        assert_eq!(command.cdb, Cdb::test_unit_ready().0);
        stream
            .write_all(&[0x21; 20])
            .await
            .expect("the initiator listens");
    };
    let client = async {
        let mut driver = Driver::connect(&params).await.expect("the login succeeds");
        let lun = LunAddress::from_number(0);
        let command = Command {
            lun,
            cdb: Cdb::test_unit_ready(),
            data: Data::None,
        };
        driver.submit(3, command).expect("a slot is free");
        let end = poll_fn(|cx| driver.poll_completion(cx))
            .await
            .expect_err("it was cut");
        assert!(matches!(end, SessionError::Lost { .. }), "{end}");
        assert_eq!(driver.take_unfinished().len(), 1);
        assert!(driver.logout().await.is_err());
    };
    tokio::join!(client, cut);
}

#[tokio::test]
async fn pdu_that_breaks_a_rule_ends_the_session_by_its_name() {
    let (listener, portal) = listen().await;
    let params = params(&portal);
    let target = async {
        let mut stream = accept(&listener).await;
        let mut bhs = [0; BHS_BYTES];
        bhs[0] = 0x25;
        write_pdu(&mut stream, bhs, &[0; 512]).await;
        // Until the initiator hangs up: what it does not read would reset the connection.
        let _ = stream.read(&mut [0]).await;
    };
    let client = async {
        let mut driver = Driver::connect(&params).await.expect("the login succeeds");
        let end = poll_fn(|cx| driver.poll_completion(cx))
            .await
            .expect_err("nobody asked");
        assert!(
            matches!(end, SessionError::Violation(Violation::UnknownTask(0))),
            "{end}"
        );
    };
    tokio::join!(client, target);
}

#[tokio::test]
async fn discovery_cut_short_says_so() {
    let (listener, portal) = listen().await;
    let params = params(&portal);
    let cut = async {
        let mut stream = accept(&listener).await;
        read_pdu(&mut stream).await;
    };
    let (found, ()) = tokio::join!(discover(&params), cut);
    let error = found.expect_err("there was no list");
    assert!(matches!(error, DiscoveryError::Session { .. }), "{error}");
    assert!(error.to_string().contains(&portal), "{error}");
}
