//! `docs/errors.md`, the section "iSCSI login and LUN": each of its lines happens, at targets that misbehave.

use std::time::Duration;

use iscsi::proto::{ChapCredentials, DigestPolicy, Isid, Secret};
use support::errors::{Section, in_one_line};
use support::target::{Builder, Disk, FINAL, Fault, Pdu, Script, Target, op};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const IQN: &str = "iqn.2026-11.test:lun";

fn spec(portal: &str) -> LunSpec {
    let name = "iqn.2026-11.org.cinder-nbd:test".parse().unwrap();
    let isid = Isid::random([7, 7, 7], 1);
    let mut session = SessionParams::new(portal.parse().unwrap(), name, isid);
    session.target_name = Some(IQN.parse().unwrap());
    session.login_timeout = Duration::from_secs(1);
    LunSpec::new(session, 1)
}

fn builder() -> Builder {
    Target::builder().iqn(IQN).lun(1, Disk::memory(1 << 20))
}

fn credentials(name: &str, secret: &str) -> ChapCredentials {
    ChapCredentials {
        name: name.to_owned(),
        secret: Secret::new(secret.to_owned()),
    }
}

async fn refused(spec: &LunSpec) -> Error {
    Lun::open(spec).await.map(drop).unwrap_err()
}

/// A name for each kind: one that is new does not compile here until it has one.
fn kind(error: &Error) -> &'static str {
    match error {
        Error::NoTargetName => "NoTargetName",
        Error::Login(_) => "Login",
        Error::NoSuchLun { .. } => "NoSuchLun",
        Error::Unusable { .. } => "Unusable",
    }
}

const KINDS: usize = 4;

/// Targets that say no.
async fn of_refusals() -> Vec<Error> {
    let target = builder().start().await;
    let statuses = [(2, 1), (2, 2), (2, 3), (2, 4), (2, 7), (3, 1), (2, 0)];
    let mut errors = Vec::new();
    for (class, detail) in statuses {
        target.clear_faults();
        target.inject(Fault::RefuseLogin { class, detail });
        errors.push(refused(&spec(&target.portal())).await);
    }
    errors
}

/// Ways that lead nowhere.
async fn of_ways() -> Vec<Error> {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = free.local_addr().unwrap().to_string();
    drop(free);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = builder().start().await;
    target.inject(Fault::CloseAtLogin);
    let mut errors = vec![
        refused(&spec(&closed)).await,
        refused(&spec(&silent.local_addr().unwrap().to_string())).await,
        refused(&spec(&target.portal())).await,
        of_no_target().await,
    ];
    let redirect = |to: &Target| Fault::Redirect {
        to: to.portal(),
        permanent: false,
    };
    target.clear_faults();
    target.inject(redirect(&target));
    errors.push(refused(&spec(&target.portal())).await);
    let mut chain = vec![builder().start().await];
    for _ in 0..6 {
        let next = builder().start().await;
        next.inject(redirect(chain.last().unwrap()));
        chain.push(next);
    }
    errors.push(refused(&spec(&chain.last().unwrap().portal())).await);
    errors
}

/// Of what takes a login for something else, and answers with nonsense.
async fn of_no_target() -> Error {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let spec = spec(&listener.local_addr().unwrap().to_string());
    let answering = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 48];
        stream.read_exact(&mut request).await.unwrap();
        // A NOP-Out, which only initiators send.
        stream.write_all(&[0; 48]).await.unwrap();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        error = refused(&spec) => error,
        () = answering => unreachable!("it stays"),
    }
}

/// Proofs and checksums that do not come to be.
async fn of_proofs() -> Vec<Error> {
    let secret = "a secret of theirs";
    let asking = builder().chap("me", secret).start().await;
    let with = |target: &Target, change: &dyn Fn(&mut SessionParams)| {
        let mut spec = spec(&target.portal());
        change(&mut spec.session);
        spec
    };
    let named = |session: &mut SessionParams| session.chap = Some(credentials("me", secret));
    let mutual = builder()
        .chap("me", secret)
        .mutual_chap("it", "another secret");
    let mutual = mutual.start().await;
    let specs = [
        with(&mutual, &|session| {
            named(session);
            session.mutual_chap = Some(credentials("it", "a wrong secret"));
        }),
        with(&asking, &|session| {
            session.chap = Some(credentials("", "s"));
        }),
        with(&asking, &|session| {
            session.chap = Some(credentials("me", ""));
        }),
        with(&asking, &|session| {
            named(session);
            session.mutual_chap = Some(credentials("it", secret));
        }),
        with(&asking, &|session| {
            session.mutual_chap = Some(credentials("it", secret));
        }),
    ];
    let mut errors = vec![
        played(&[("AuthMethod", "Reject")], |_| ()).await,
        played(&[("AuthMethod", "CHAP"), ("CHAP_A", "Reject")], named).await,
        played(&[("HeaderDigest", "Reject")], |session| {
            session.offers.header_digest = DigestPolicy::Require;
        })
        .await,
    ];
    for spec in specs {
        errors.push(refused(&spec).await);
    }
    errors
}

/// Of a target that answers these keys so, and to every other with what was offered.
async fn played(keys: &[(&str, &str)], change: impl Fn(&mut SessionParams)) -> Error {
    let script = Script::listen().await;
    let mut spec = spec(&script.portal());
    change(&mut spec.session);
    let answering = async {
        let mut peer = script.accept().await;
        loop {
            let request = peer.expect(op::LOGIN).await;
            let offered = request.keys();
            let is_told = |key: &str| !key.starts_with("Initiator") && !TOLD.contains(&key);
            let answers = offered.iter().filter(|(key, _)| is_told(key));
            let answers = answers.map(|(key, value)| {
                let ours = keys.iter().find(|(known, _)| known == key);
                (key.as_str(), ours.map_or(value.as_str(), |(_, ours)| ours))
            });
            let tag = [("TargetPortalGroupTag", "1")].into_iter();
            let is_first = offered.iter().any(|(key, _)| key == "InitiatorName");
            let pairs: Vec<_> = answers.chain(tag.filter(|_| is_first)).collect();
            let flags = request.flags() & (FINAL | 0x0f);
            // A new session gets its handle with the last answer.
            let tsih = u16::from(request.is_final() && request.stages().1 == 3);
            let answer = Pdu::login_response(&request, flags, tsih, &pairs);
            peer.send(answer).await;
        }
    };
    tokio::select! {
        // First: it closes when it has its error, and the other must not see that.
        biased;
        error = refused(&spec) => error,
        () = answering => unreachable!("it stays"),
    }
}

/// RFC 7143 §13: keys that say something, and are not answered.
const TOLD: [&str; 2] = ["SessionType", "TargetName"];

/// Units that are not there, or cannot be used.
async fn of_units() -> Vec<Error> {
    let target = builder().start().await;
    let mut absent = spec(&target.portal());
    absent.lun = 9.into();
    let mut unnamed = spec(&target.portal());
    unnamed.session.target_name = None;
    let mut errors = vec![refused(&absent).await, refused(&unnamed).await];
    // SPC-4: HARDWARE ERROR, INTERNAL TARGET FAILURE.
    target.inject(Fault::CheckCondition {
        nth: 1,
        key: 4,
        asc: 0x44,
        ascq: 0,
    });
    errors.push(refused(&spec(&target.portal())).await);
    errors
}

#[tokio::test]
async fn every_error_of_a_login_happens_and_stands_in_the_document() {
    let mut errors = of_refusals().await;
    errors.extend(of_ways().await);
    errors.extend(of_proofs().await);
    errors.extend(of_units().await);
    let kinds: std::collections::BTreeSet<_> = errors.iter().map(kind).collect();
    assert_eq!(kinds.len(), KINDS, "not all kinds happened: {kinds:?}");
    let texts: Vec<String> = errors.iter().map(|error| in_one_line(error)).collect();
    Section::read("iSCSI login and LUN").assert_is_of(&texts);
}
