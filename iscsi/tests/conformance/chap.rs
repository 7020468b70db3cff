//! C: CHAP, one-way and mutual, and the choice of `AuthMethod` before it.

use iscsi::io::{Driver, discover};
use iscsi::proto::{
    ChapAlgorithm, ChapCredentials, LoginError, Misuse, Retry, Secret, SessionParams,
};
use md5::{Digest as _, Md5};
use support::target::{Export, Pdu, Peer, Script, op};

use crate::bed::{log_in, params, refused_with, stage, target};

const USER: &str = "initiator";
const SECRET: &str = "initiators-secret-16";
const TARGET_USER: &str = "target";
const TARGET_SECRET: &str = "targets-own-secret-17";
/// A challenge as an honest target sends it, with its algorithm and identifier.
const CHALLENGE: [(&str, &str); 3] = [
    ("CHAP_A", "5"),
    ("CHAP_I", "77"),
    ("CHAP_C", "0x000102030405060708090a0b0c0d0e0f"),
];

fn credentials(name: &str, secret: &str) -> ChapCredentials {
    ChapCredentials {
        name: name.to_owned(),
        secret: Secret::new(secret.to_owned()),
    }
}

fn one_way(portal: &str) -> SessionParams {
    let mut params = params(portal);
    params.chap = Some(credentials(USER, SECRET));
    params
}

fn mutual(portal: &str) -> SessionParams {
    let mut params = one_way(portal);
    params.mutual_chap = Some(credentials(TARGET_USER, TARGET_SECRET));
    params
}

/// RFC 1994 §4.1, in hex.
fn response(identifier: u8, secret: &str, challenge: &[u8]) -> String {
    let hash = Md5::new()
        .chain_update([identifier])
        .chain_update(secret)
        .chain_update(challenge)
        .finalize();
    hex(&hash)
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.strip_prefix("0x").expect("we speak hex");
    (0..digits.len() / 2)
        .map(|at| u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16).expect("two digits"))
        .collect()
}

fn owned(keys: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    keys.iter().map(owned).collect()
}

async fn say(peer: &mut Peer, request: &Pdu, flags: u8, keys: &[(String, String)]) {
    let keys: Vec<(&str, &str)> = keys
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let tsih = u16::from(flags == stage::OPERATIONAL_TO_FULL_FEATURE);
    peer.send(Pdu::login_response(request, flags, tsih, &keys))
        .await;
}

/// Chooses CHAP; gives the request with `CHAP_A`.
async fn to_algorithms(peer: &mut Peer) -> Pdu {
    let request = peer.expect(op::LOGIN).await;
    say(
        peer,
        &request,
        stage::SECURITY,
        &owned(&[("AuthMethod", "CHAP")]),
    )
    .await;
    peer.expect(op::LOGIN).await
}

/// Chooses CHAP and answers `CHAP_A` with these keys; gives the request with `CHAP_R`.
async fn challenge(peer: &mut Peer, keys: &[(&str, &str)]) -> Pdu {
    let request = to_algorithms(peer).await;
    say(peer, &request, stage::SECURITY, &owned(keys)).await;
    peer.expect(op::LOGIN).await
}

/// Lets the initiator in.
async fn welcome(peer: &mut Peer, request: &Pdu, proof: &[(String, String)]) {
    say(peer, request, stage::SECURITY_TO_OPERATIONAL, proof).await;
    let request = peer.expect(op::LOGIN).await;
    say(peer, &request, stage::OPERATIONAL_TO_FULL_FEATURE, &[]).await;
}

/// The proof that an honest target gives to what the initiator asks.
fn proof(request: &Pdu, name: &str, secret: &str) -> Vec<(String, String)> {
    let identifier = request.key("CHAP_I").expect("it asks");
    let asked = unhex(&request.key("CHAP_C").expect("it asks"));
    let response = response(identifier.parse().expect("a byte"), secret, &asked);
    vec![
        ("CHAP_N".to_owned(), name.to_owned()),
        ("CHAP_R".to_owned(), response),
    ]
}

/// How a login ends that is challenged like this.
async fn challenged(keys: &[(&str, &str)]) -> LoginError {
    let script = Script::listen().await;
    refused_with(
        &one_way(&script.portal()),
        &script,
        async |peer: &mut Peer| {
            let request = to_algorithms(peer).await;
            say(peer, &request, stage::SECURITY, &owned(keys)).await;
        },
    )
    .await
}

/// How a login with mutual CHAP ends whose target gives this proof.
async fn proved(proof: impl Fn(&Pdu) -> Vec<(String, String)>) -> LoginError {
    let script = Script::listen().await;
    refused_with(
        &mutual(&script.portal()),
        &script,
        async |peer: &mut Peer| {
            let request = challenge(peer, &CHALLENGE).await;
            let flags = stage::SECURITY_TO_OPERATIONAL;
            say(peer, &request, flags, &proof(&request)).await;
        },
    )
    .await
}

fn is_violation(error: &LoginError) -> bool {
    matches!(error, LoginError::Violation(_))
}

// L24, C1
#[tokio::test]
async fn methods_and_algorithms_are_lists_in_order_of_preference() {
    type Change = fn(&mut SessionParams);
    let required: Change = |params| params.require_authentication = true;
    let all: Change = |params| {
        params.chap_algorithms = ChapAlgorithm::ALL.to_vec();
    };
    let rows: [(Change, &str, &str); 3] = [
        (|_| {}, "CHAP,None", "5"),
        (required, "CHAP", "5"),
        (all, "CHAP,None", "8,7,6,5"),
    ];
    for (change, methods, algorithms) in rows {
        let script = Script::listen().await;
        let mut params = one_way(&script.portal());
        change(&mut params);
        let (login, _peer, offered) = log_in(&params, &script, async |peer: &mut Peer| {
            let first = peer.expect(op::LOGIN).await;
            say(
                peer,
                &first,
                stage::SECURITY,
                &owned(&[("AuthMethod", "CHAP")]),
            )
            .await;
            let second = peer.expect(op::LOGIN).await;
            say(peer, &second, stage::SECURITY, &owned(&CHALLENGE)).await;
            let third = peer.expect(op::LOGIN).await;
            welcome(peer, &third, &[]).await;
            (first.key("AuthMethod"), second.key("CHAP_A"))
        })
        .await;
        login.expect("MD5 is in each list");
        assert_eq!(
            offered,
            (Some(methods.to_owned()), Some(algorithms.to_owned()))
        );
    }
    let script = Script::listen().await;
    let (_login, _peer, first) = log_in(
        &mutual(&script.portal()),
        &script,
        async |peer: &mut Peer| {
            let first = peer.expect(op::LOGIN).await;
            peer.close().await;
            first
        },
    )
    .await;
    assert_eq!(first.key("AuthMethod").as_deref(), Some("CHAP"));
}

// L24, C12
#[tokio::test]
async fn target_that_wants_no_proof_is_refused_where_one_is_required() {
    let strict: fn(&str) -> SessionParams = |portal| {
        let mut params = one_way(portal);
        params.require_authentication = true;
        params
    };
    let none = [("AuthMethod", "None")];
    for (params, keys) in [
        (strict as fn(&str) -> SessionParams, &none[..]),
        (strict, &[]),
        (mutual, &none),
        (mutual, &[]),
    ] {
        for flags in [stage::SECURITY, stage::SECURITY_TO_OPERATIONAL] {
            let script = Script::listen().await;
            let params = params(&script.portal());
            let error = refused_with(&params, &script, async |peer: &mut Peer| {
                let request = peer.expect(op::LOGIN).await;
                say(peer, &request, flags, &owned(keys)).await;
            })
            .await;
            assert_eq!(error.retry(), Retry::Never, "{keys:?}: {error}");
        }
    }
}

// C1, C2
#[tokio::test]
async fn algorithm_that_was_not_offered_ends_the_login() {
    for algorithm in ["7", "6", "0", "255", "MD5", "", "5,7", "05x", "-5"] {
        let mut keys = CHALLENGE;
        keys[0].1 = algorithm;
        let error = challenged(&keys).await;
        assert!(is_violation(&error), "CHAP_A={algorithm}: {error}");
    }
}

// C2, C3, C6
#[tokio::test]
async fn challenge_that_lacks_a_part_or_comes_out_of_turn_ends_the_login() {
    for left in 0..CHALLENGE.len() {
        let keys: Vec<_> = (0..CHALLENGE.len())
            .filter(|index| *index != left)
            .map(|index| CHALLENGE[index])
            .collect();
        let error = challenged(&keys).await;
        assert!(is_violation(&error), "{keys:?}: {error}");
    }
    // Before it was asked for: in the answer to AuthMethod.
    for early in CHALLENGE {
        let script = Script::listen().await;
        let params = one_way(&script.portal());
        let error = refused_with(&params, &script, async |peer: &mut Peer| {
            let request = peer.expect(op::LOGIN).await;
            let keys = [("AuthMethod", "CHAP"), early];
            say(peer, &request, stage::SECURITY, &owned(&keys)).await;
        })
        .await;
        assert!(is_violation(&error), "{early:?}: {error}");
    }
    // After it was answered.
    for late in CHALLENGE {
        let script = Script::listen().await;
        let params = one_way(&script.portal());
        let error = refused_with(&params, &script, async |peer: &mut Peer| {
            let request = challenge(peer, &CHALLENGE).await;
            say(peer, &request, stage::SECURITY, &owned(&[late])).await;
        })
        .await;
        assert!(is_violation(&error), "{late:?}: {error}");
    }
}

// C3
#[tokio::test]
async fn identifier_is_a_byte() {
    for identifier in ["256", "-1", "x", "", "0x100", "1.0", "99999999999"] {
        let mut keys = CHALLENGE;
        keys[1].1 = identifier;
        let error = challenged(&keys).await;
        assert!(is_violation(&error), "CHAP_I={identifier}: {error}");
    }
    for (identifier, byte) in [("0", 0), ("255", 255), ("0x4d", 0x4d)] {
        let mut keys = CHALLENGE;
        keys[1].1 = identifier;
        answers_with(&keys, byte, &unhex(CHALLENGE[2].1)).await;
    }
}

/// Checks the response to a challenge.
async fn answers_with(keys: &[(&str, &str)], identifier: u8, challenge_bytes: &[u8]) {
    let script = Script::listen().await;
    let params = one_way(&script.portal());
    let (login, _peer, request) = log_in(&params, &script, async |peer: &mut Peer| {
        let request = challenge(peer, keys).await;
        welcome(peer, &request, &[]).await;
        request
    })
    .await;
    login.expect("the target is content");
    assert_eq!(request.key("CHAP_N").as_deref(), Some(USER));
    let told = request.key("CHAP_R").map(|text| text.to_lowercase());
    let right = response(identifier, SECRET, challenge_bytes);
    assert_eq!(told, Some(right), "to {keys:?}");
    assert_eq!(request.key("CHAP_C"), None, "nobody asked us to ask");
}

// C5
#[tokio::test]
async fn challenges_of_every_length_and_spelling_are_answered() {
    let long: Vec<u8> = (0..=255).cycle().take(1024).collect();
    let lower = hex(&long);
    let upper = format!("0X{}", lower[2..].to_uppercase());
    let base64 = format!("0b{}", base64(&long));
    for (text, bytes) in [
        ("0xa5", &[0xa5][..]),
        ("0xA5", &[0xa5]),
        ("0bpQ==", &[0xa5]),
        ("0BpQ==", &[0xa5]),
        // An odd number of digits: the first byte has but one.
        ("0x123", &[0x01, 0x23]),
        ("0xf", &[0x0f]),
        (&lower, &long),
        (&upper, &long),
        (&base64, &long),
    ] {
        let mut keys = CHALLENGE;
        keys[2].1 = text;
        answers_with(&keys, 77, bytes).await;
    }
}

/// RFC 4648 §4, for whole groups and one byte over.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word = group
            .iter()
            .fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
        let word = word << (8 * (3 - group.len()));
        for place in 0..4 {
            let index = usize::try_from(word >> (18 - 6 * place) & 0x3f).expect("six bits");
            text.push(if place <= group.len() {
                char::from(LETTERS[index])
            } else {
                '='
            });
        }
    }
    text
}

// C6
#[tokio::test]
async fn challenge_that_is_empty_too_long_or_no_binary_value_ends_the_login() {
    let long = hex(&[0x5a; 1025]);
    let long_base64 = format!("0b{}", base64(&[0x5a; 1026]));
    for text in [
        "",
        "0x",
        "0b",
        "abcd",
        "0xyz",
        "0b!!!!",
        "0bpQ",
        "77",
        &long,
        &long_base64,
    ] {
        let mut keys = CHALLENGE;
        keys[2].1 = text;
        let error = challenged(&keys).await;
        assert!(is_violation(&error), "CHAP_C={text}: {error}");
    }
}

// C4, C7, C8
#[tokio::test]
async fn what_we_ask_is_fresh_each_time_and_not_made_of_what_we_are_asked() {
    let mut asked = Vec::new();
    for _ in 0..16 {
        let script = Script::listen().await;
        let params = mutual(&script.portal());
        let (login, _peer, request) = log_in(&params, &script, async |peer: &mut Peer| {
            // The same challenge each time: the answer is to be the same, what we ask is not.
            let request = challenge(peer, &CHALLENGE).await;
            welcome(peer, &request, &proof(&request, TARGET_USER, TARGET_SECRET)).await;
            request
        })
        .await;
        login.expect("the target has proved itself");
        let right = response(77, SECRET, &unhex(CHALLENGE[2].1));
        assert_eq!(request.key("CHAP_R"), Some(right));
        let identifier = request.key("CHAP_I").expect("we ask");
        let bytes = unhex(&request.key("CHAP_C").expect("we ask"));
        assert!((16..=1024).contains(&bytes.len()), "{} bytes", bytes.len());
        assert_ne!(bytes, unhex(CHALLENGE[2].1));
        asked.push((identifier, bytes));
    }
    let identifiers: std::collections::BTreeSet<_> = asked.iter().map(|(id, _)| id).collect();
    let challenges: std::collections::BTreeSet<_> = asked.iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(challenges.len(), asked.len());
    // All sixteen alike by chance: once in 256 to the 15th.
    assert!(identifiers.len() > 1, "{identifiers:?}");
}

// C8, C11: a target without the secret opens a second connection to have its own question answered there
#[tokio::test]
async fn our_own_response_does_not_prove_the_target() {
    let (first, second) = (Script::listen().await, Script::listen().await);
    let (here, there) = (mutual(&first.portal()), mutual(&second.portal()));
    let attack = async {
        let mut victim = first.accept().await;
        let request = challenge(&mut victim, &CHALLENGE).await;
        let (identifier, asked) = (request.key("CHAP_I"), request.key("CHAP_C"));
        let (identifier, asked) = (identifier.expect("we ask"), asked.expect("we ask"));
        let mut oracle = second.accept().await;
        let keys = [("CHAP_A", "5"), ("CHAP_I", &identifier), ("CHAP_C", &asked)];
        let answered = challenge(&mut oracle, &keys).await;
        let stolen = vec![
            ("CHAP_N".to_owned(), TARGET_USER.to_owned()),
            (
                "CHAP_R".to_owned(),
                answered.key("CHAP_R").expect("we answer"),
            ),
        ];
        let flags = stage::SECURITY_TO_OPERATIONAL;
        say(&mut victim, &request, flags, &stolen).await;
        assert!(victim.until_closed().await.is_empty());
        oracle.close().await;
    };
    let (login, _, ()) = tokio::join!(Driver::connect(&here), Driver::connect(&there), attack);
    let error = login.expect_err("the target has proved nothing");
    assert!(matches!(error, LoginError::TargetUnproved(_)), "{error}");
    assert_eq!(error.retry(), Retry::Never);
}

// C9
#[tokio::test]
async fn names_of_1_to_255_bytes_are_spoken_and_longer_ones_refused_before_anything_is_sent() {
    for bytes in [1, 255] {
        let name = "n".repeat(bytes);
        let target = target().chap(&name, SECRET).start().await;
        let mut params = one_way(&target.portal());
        params.chap = Some(credentials(&name, SECRET));
        let driver = Driver::connect(&params).await.expect("the name is known");
        driver.logout().await.expect("the logout is answered");
        assert_eq!(target.violations(), Vec::<String>::new());
    }
    for name in [String::new(), "n".repeat(256), "a\0b".to_owned()] {
        let mut params = one_way("127.0.0.1:1");
        params.chap = Some(credentials(&name, SECRET));
        let error = Driver::connect(&params).await.expect_err("no CHAP name");
        let is_name = matches!(error, LoginError::Misuse(Misuse::ChapName));
        assert!(is_name, "{error}");
    }
}

// C9, C10
#[tokio::test]
async fn proof_with_another_name_or_another_response_is_none() {
    let change = |key: &'static str, value: fn(&str) -> String| {
        move |request: &Pdu| {
            let mut proof = proof(request, TARGET_USER, TARGET_SECRET);
            for (known, told) in &mut proof {
                if known == key {
                    *told = value(told);
                }
            }
            proof
        }
    };
    let names: [fn(&str) -> String; 3] = [
        |_| "somebody".to_owned(),
        |_| USER.to_owned(),
        |name| format!("{name}x"),
    ];
    for name in names {
        let error = proved(change("CHAP_N", name)).await;
        assert!(matches!(error, LoginError::TargetUnproved(_)), "{error}");
    }
    let responses: [fn(&str) -> String; 4] = [
        |_| hex(&[0; 16]),
        // The last digit is another one.
        |right| {
            format!(
                "{}{}",
                &right[..33],
                if right.ends_with('0') { '1' } else { '0' }
            )
        },
        |right| right[..32].to_owned(),
        |right| format!("{right}00"),
    ];
    for response in responses {
        let error = proved(change("CHAP_R", response)).await;
        assert!(matches!(error, LoginError::TargetUnproved(_)), "{error}");
    }
    let long: fn(&str) -> String = |_| hex(&[7; 1025]);
    proved(change("CHAP_R", long)).await;
    let none: fn(&str) -> String = |_| String::new();
    proved(change("CHAP_N", none)).await;
    proved(|request| proof(request, TARGET_USER, SECRET)).await;
}

// C12
#[tokio::test]
async fn target_that_was_to_prove_itself_and_does_not_is_refused() {
    let whole = |request: &Pdu| proof(request, TARGET_USER, TARGET_SECRET);
    let error = proved(|_| Vec::new()).await;
    assert!(matches!(error, LoginError::TargetUnproved(_)), "{error}");
    for half in 0..2 {
        let error = proved(|request| vec![whole(request).swap_remove(half)]).await;
        assert_eq!(error.retry(), Retry::Never, "{error}");
    }
}

// C9, C12: a name or a proof that nobody asked for
#[tokio::test]
async fn proof_out_of_turn_ends_the_login() {
    let script = Script::listen().await;
    let params = one_way(&script.portal());
    let error = refused_with(&params, &script, async |peer: &mut Peer| {
        let request = challenge(peer, &CHALLENGE).await;
        let keys = [("CHAP_N", TARGET_USER), ("CHAP_R", "0x00")];
        say(
            peer,
            &request,
            stage::SECURITY_TO_OPERATIONAL,
            &owned(&keys),
        )
        .await;
    })
    .await;
    assert!(is_violation(&error), "{error}");
}

// C11
#[tokio::test]
async fn equal_secrets_both_ways_are_refused_before_anything_is_sent() {
    let mut params = one_way("127.0.0.1:1");
    params.mutual_chap = Some(credentials(TARGET_USER, SECRET));
    let error = Driver::connect(&params)
        .await
        .expect_err("one secret for two");
    let is_equal = matches!(error, LoginError::Misuse(Misuse::EqualSecrets));
    assert!(is_equal, "{error}");
}

// C10, C12: the honest case of all that is refused above
#[tokio::test]
async fn mutual_chap_with_an_honest_target_succeeds() {
    for bytes in [1, 16, 1024] {
        let target = target()
            .chap(USER, SECRET)
            .mutual_chap(TARGET_USER, TARGET_SECRET)
            .challenge_bytes(bytes)
            .start()
            .await;
        let driver = Driver::connect(&mutual(&target.portal())).await;
        let driver = driver.expect("both prove themselves");
        driver.logout().await.expect("the logout is answered");
        assert_eq!(target.violations(), Vec::<String>::new());
    }
}

// C13: the portal wants CHAP for the disk and none for discovery, or the other way round
#[tokio::test]
async fn discovery_takes_the_credentials_that_it_is_given_and_no_others() {
    let script = Script::listen().await;
    let params = params(&script.portal());
    let target = async {
        let mut peer = script.accept().await;
        let request = peer.expect(op::LOGIN).await;
        peer.close().await;
        request
    };
    let (found, request) = tokio::join!(discover(&params), target);
    found.expect_err("the portal closed");
    assert_eq!(request.key("AuthMethod").as_deref(), Some("None"));
    let target = target_with_two().await;
    let mut found = one_way(&target.portal());
    found.chap = Some(credentials("discoverer", "another-secret-of-22b"));
    discover(&found).await.expect("discovery is open to all");
    let login = Driver::connect(&found).await;
    login.expect_err("the disk has another account");
    Driver::connect(&one_way(&target.portal()))
        .await
        .expect("the disk's own account");
}

async fn target_with_two() -> support::target::Target {
    let other = Export::new("iqn.2026-11.test:other").chap("other", "others-secret-of-20b");
    target().chap(USER, SECRET).export(other).start().await
}
