//! Values as targets send them; digests from `algorithm`'s tests.

use proptest::prelude::*;

use super::*;

const OFFERED: [ChapAlgorithm; 1] = [ChapAlgorithm::Md5];
const OURS: &str = "0123456789abcdef";
const THEIRS: &str = "fedcba9876543210";

fn credentials(name: &str, secret: &str) -> ChapCredentials {
    ChapCredentials {
        name: name.to_owned(),
        secret: Secret::new(secret.to_owned()),
    }
}

fn parse(identifier: &str, challenge: &str) -> Result<Challenge, Violation> {
    Challenge::parse(&OFFERED, "5", identifier, challenge)
}

fn params(ours: Option<ChapCredentials>, theirs: Option<ChapCredentials>) -> SessionParams {
    let portal = "10.0.0.1".parse().unwrap();
    let name = "iqn.2026-11.org.cinder-nbd:test".parse().unwrap();
    let mut params = SessionParams::new(portal, name, crate::proto::Isid::random([1, 2, 3], 4));
    params.chap = ours;
    params.mutual_chap = theirs;
    params
}

// C5: RFC 1994 §4.1
#[test]
fn response_is_the_hash_over_identifier_secret_and_challenge() {
    let challenge = parse("65", "0x61626364").unwrap();
    for same in [
        "0bYWJjZA==",
        "0B YWJjZA==".replace(' ', "").as_str(),
        "0X61626364",
    ] {
        assert_eq!(parse("0x41", same), Ok(challenge.clone()));
    }
    assert_eq!(
        *challenge.response(&credentials("user", OURS)),
        "0x1b07382da15416ba61f956eb507a98a3"
    );
}

// C1, C2: only what was offered
#[test]
fn algorithm_that_was_not_offered_is_refused() {
    for picked in ["7", "4", "MD5", "5,7", ""] {
        assert_eq!(
            Challenge::parse(&OFFERED, picked, "1", "0x61"),
            Err(Violation::ChapAlgorithm(picked.to_owned()))
        );
    }
    let picked = Challenge::parse(&ChapAlgorithm::ALL, "7", "1", "0x61").unwrap();
    assert_eq!(picked.algorithm(), ChapAlgorithm::Sha256);
    assert_eq!(offer(&ChapAlgorithm::ALL), "8,7,6,5");
}

// C3
#[test]
fn identifier_is_one_byte() {
    for identifier in ["256", "-1", "+1", "", "x", "0x100", "0x", "1 "] {
        assert_eq!(parse(identifier, "0x61"), Err(Violation::ChapIdentifier));
    }
    for identifier in ["0", "255", "0xff", "0Xfe"] {
        assert!(parse(identifier, "0x61").is_ok(), "{identifier}");
    }
}

// C5, C6
#[test]
fn challenges_of_1_to_1024_bytes_are_taken_and_no_others() {
    for length in [1, 16, 255, 256, 1023, 1024] {
        let text = binary::to_hex(&vec![0xa5; length]);
        assert_eq!(parse("0", &text).unwrap().bytes.len(), length);
        assert_eq!(parse("0", &text.to_uppercase()), parse("0", &text));
    }
    assert_eq!(parse("0", "0xabc").unwrap().bytes, [0x0a, 0xbc]);
    let too_long = binary::to_hex(&[0; 1025]);
    for challenge in ["", "0x", "abcd", "0b!", "0b", too_long.as_str()] {
        assert_eq!(parse("1", challenge), Err(Violation::ChapChallenge));
    }
}

// C9: names of 1 to 255 bytes
#[test]
fn credentials_that_cannot_be_spoken_are_misuse() {
    let with = |name: &str, secret| check(&params(Some(credentials(name, secret)), None));
    assert_eq!(with("", OURS), Err(Misuse::ChapName));
    assert_eq!(with(&"x".repeat(256), OURS), Err(Misuse::ChapName));
    assert_eq!(with("a\0b", OURS), Err(Misuse::ChapName));
    assert_eq!(with("user", ""), Err(Misuse::ChapSecret));
    assert_eq!(with(&"x".repeat(255), OURS), Ok(()));
    assert_eq!(with("u", OURS), Ok(()));
}

// C11, C12, L24: what cannot be asked for together
#[test]
fn authentication_that_cannot_be_had_is_misuse() {
    let ours = || Some(credentials("user", OURS));
    let theirs = |secret| Some(credentials("target", secret));
    assert_eq!(check(&params(None, None)), Ok(()));
    assert_eq!(check(&params(ours(), theirs(THEIRS))), Ok(()));
    assert_eq!(
        check(&params(ours(), theirs(OURS))),
        Err(Misuse::EqualSecrets)
    );
    assert_eq!(
        check(&params(None, theirs(THEIRS))),
        Err(Misuse::MutualAlone)
    );
    assert_eq!(check(&params(ours(), theirs(""))), Err(Misuse::ChapSecret));
    let mut strict = params(None, None);
    strict.require_authentication = true;
    assert_eq!(check(&strict), Err(Misuse::NoCredentials));
    for list in [vec![], vec![ChapAlgorithm::Md5; 2]] {
        let mut params = params(ours(), None);
        params.chap_algorithms = list;
        assert_eq!(check(&params), Err(Misuse::ChapAlgorithms));
    }
}

// RFC 7143 §9.2.1: 96 bits
#[test]
fn secret_below_96_bits_is_short() {
    assert!(is_short(&Secret::new("elevenbytes".to_owned())));
    assert!(!is_short(&Secret::new("twelve bytes".to_owned())));
}

const CHANCE: [u8; CHANCE_BYTES] = *b"Aabcdabcdabcdabcd";

fn judge(name: &str, response: &str) -> Result<TargetProved, Unproved> {
    let own = Secret::new(OURS.to_owned());
    let expected = credentials("target", THEIRS);
    OurChallenge::new(CHANCE).judge(ChapAlgorithm::Md5, &expected, &own, name, response)
}

fn digest(secret: &str) -> Zeroizing<Vec<u8>> {
    let secret = Secret::new(secret.to_owned());
    ChapAlgorithm::Md5.hash(CHANCE[0], &secret, &CHANCE[1..])
}

// C4, C7, C8
#[test]
fn our_challenge_is_our_chance_and_never_theirs() {
    let ours = OurChallenge::new(CHANCE);
    let theirs = parse("65", "0x61").unwrap();
    assert_eq!(
        ours.spell(&theirs),
        Ok((
            "65".to_owned(),
            "0x61626364616263646162636461626364".to_owned()
        ))
    );
    let reflected = parse("1", "0x61626364616263646162636461626364").unwrap();
    assert_eq!(ours.spell(&reflected), Err(Unproved::Reflected));
}

// C9, C10, C11
#[test]
fn target_is_proved_by_the_right_name_and_response_alone() {
    let right = binary::to_hex(&digest(THEIRS));
    assert!(judge("target", &right).is_ok());
    assert!(judge("target", &right.to_uppercase()).is_ok());
    assert_eq!(
        judge("other", &right),
        Err(Unproved::Name("other".to_owned()))
    );
    let own = binary::to_hex(&digest(OURS));
    assert_eq!(judge("target", &own), Err(Unproved::Reflected));
    assert_eq!(judge("other", &own), Err(Unproved::Reflected));
    let mut wrong = digest(THEIRS);
    wrong[15] ^= 1;
    let short = &right[..right.len() - 2];
    let long = format!("{right}00");
    for response in [
        binary::to_hex(&wrong).as_str(),
        short,
        &long,
        "",
        "0x",
        "abc",
    ] {
        assert_eq!(
            judge("target", response),
            Err(Unproved::Response),
            "{response}"
        );
    }
}

// C13
#[test]
fn nothing_of_a_challenge_or_a_secret_prints() {
    let printed = format!(
        "{:?} {:?}",
        OurChallenge::new(CHANCE),
        credentials("user", OURS)
    );
    assert!(
        !printed.contains("abcd") && !printed.contains("97"),
        "{printed}"
    );
}

proptest! {
    #[test]
    fn any_values_are_answered(values in proptest::collection::vec(".{0,40}", 4)) {
        let _ = Challenge::parse(&ChapAlgorithm::ALL, &values[0], &values[1], &values[2]);
        let _ = judge(&values[0], &values[3]);
    }

    // Whatever secret the target has, only the expected one proves it.
    #[test]
    fn another_secret_never_proves(secret in "[a-z0-9]{1,20}") {
        prop_assume!(secret != THEIRS);
        prop_assert!(judge("target", &binary::to_hex(&digest(&secret))).is_err());
    }
}
