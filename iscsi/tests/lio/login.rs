//! Logging in to LIO: CHAP, its absence, and what is refused.

use iscsi::io::{Driver, discover};
use iscsi::proto::{ChapAlgorithm, LoginError, Retry, SessionParams};
use iscsi::wire::login::LoginStatus;
use support::lio::{Lio, Medium};

use crate::bed::{chap, connect, lio_is_here, params};

const SECRET: &str = "a-secret-of-16-b";

async fn refused(params: &SessionParams) -> LoginStatus {
    let error = Driver::connect(params).await.expect_err("it is refused");
    let LoginError::Refused { status } = &error else {
        panic!("{error}")
    };
    assert!(!format!("{error} {error:?}").contains("secret-of"));
    *status
}

#[tokio::test]
async fn login_without_chap_and_logout() {
    if !lio_is_here() {
        return;
    }
    let mut lio = Lio::start("plain");
    lio.add_lun(0, Medium::Ramdisk, 8);
    let driver = connect(&params(&lio), 0).await;
    driver.logout().await.unwrap();
}

#[tokio::test]
async fn chap_one_way_is_taken_and_the_wrong_refused() {
    if !lio_is_here() {
        return;
    }
    let mut lio = Lio::start("chap");
    lio.add_lun(0, Medium::Ramdisk, 8).chap("user", SECRET);
    let mut params = params(&lio);
    for wrong in [chap("user", "another-secret-b"), chap("other", SECRET)] {
        params.chap = Some(wrong);
        assert_eq!(refused(&params).await, LoginStatus::AUTHENTICATION_FAILURE);
    }
    // Where no method is left, LIO closes the connection without an answer.
    params.chap = None;
    let error = Driver::connect(&params).await.unwrap_err();
    assert!(matches!(error, LoginError::Lost { .. }), "{error}");
    params.chap = Some(chap("user", SECRET));
    connect(&params, 0).await.logout().await.unwrap();
}

#[tokio::test]
async fn an_unknown_target_and_a_disabled_one_are_refused_for_now() {
    if !lio_is_here() {
        return;
    }
    let mut lio = Lio::start("known");
    lio.add_lun(0, Medium::Ramdisk, 8);
    let mut other = params(&lio);
    other.target_name = Some("iqn.2026-11.test.lio:unknown".parse().unwrap());
    // LIO does not tell them apart: a target may be made at any moment.
    assert_eq!(refused(&other).await, LoginStatus::SERVICE_UNAVAILABLE);
    lio.disable();
    let error = Driver::connect(&params(&lio)).await.unwrap_err();
    assert_eq!(error.retry(), Retry::AfterReconnect, "{error}");
    lio.enable();
    connect(&params(&lio), 0).await.logout().await.unwrap();
}

#[tokio::test]
async fn discovery_lists_the_target_with_the_portals_of_its_groups() {
    if !lio_is_here() {
        return;
    }
    let mut lio = Lio::start("discovered");
    lio.add_lun(0, Medium::Ramdisk, 8);
    lio.add_group().add_lun_again(0);
    let found = discover(&params(&lio)).await.unwrap();
    let target = found
        .iter()
        .find(|target| target.name.as_str() == lio.iqn())
        .unwrap();
    let mut portals: Vec<String> = target.portals.iter().map(ToString::to_string).collect();
    portals.sort();
    let mut expected = [1, 2].map(|tag| format!("{},{tag}", lio.portal_of(tag)));
    expected.sort();
    assert_eq!(portals, expected);
}

// C10
#[tokio::test]
async fn mutual_chap_wants_the_proof_of_both() {
    if !lio_is_here() {
        return;
    }
    let mut lio = Lio::start("mutual");
    lio.add_lun(0, Medium::Ramdisk, 8)
        .chap("user", SECRET)
        .mutual_chap("target", "another-secret-b");
    let mut params = params(&lio);
    params.chap = Some(chap("user", SECRET));
    params.mutual_chap = Some(chap("target", "another-secret-b"));
    connect(&params, 0).await.logout().await.unwrap();

    for wrong in [
        chap("target", "no-secret-of-its"),
        chap("user", "another-secret-b"),
    ] {
        params.mutual_chap = Some(wrong);
        let error = Driver::connect(&params).await.unwrap_err();
        assert_eq!(error.retry(), Retry::Never, "{error}");
        assert!(error.to_string().contains("target"), "{error}");
    }
    // One that need not prove itself may.
    params.mutual_chap = None;
    connect(&params, 0).await.logout().await.unwrap();
}

// C12, L24
#[tokio::test]
async fn a_target_that_cannot_prove_itself_is_left() {
    if !lio_is_here() {
        return;
    }
    let mut lio = Lio::start("unproved");
    lio.add_lun(0, Medium::Ramdisk, 8).chap("user", SECRET);
    let mut params = params(&lio);
    params.chap = Some(chap("user", SECRET));
    params.mutual_chap = Some(chap("target", "another-secret-b"));
    assert!(Driver::connect(&params).await.is_err());
    // Nor one that asks for nothing.
    let mut open = Lio::start("open");
    open.add_lun(0, Medium::Ramdisk, 8);
    params.portal = open.portal().parse().unwrap();
    params.target_name = Some(open.iqn().parse().unwrap());
    assert!(Driver::connect(&params).await.is_err());
}

// C1: the target picks one of a list; which, LIO does not tell
#[tokio::test]
async fn lists_of_algorithms_beyond_md5_lead_to_a_login() {
    if !lio_is_here() {
        return;
    }
    let mut lio = Lio::start("algorithms");
    lio.add_lun(0, Medium::Ramdisk, 8).chap("user", SECRET);
    let mut params = params(&lio);
    params.chap = Some(chap("user", SECRET));
    for algorithm in [
        ChapAlgorithm::Sha1,
        ChapAlgorithm::Sha256,
        ChapAlgorithm::Sha3_256,
    ] {
        params.chap_algorithms = vec![algorithm, ChapAlgorithm::Md5];
        connect(&params, 0).await.logout().await.unwrap();
    }
}
