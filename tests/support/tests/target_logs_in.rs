//! The in-process target's login: CHAP in all its forms, answers in pieces, joining connections, and what it refuses.

#![expect(
    clippy::unwrap_used,
    reason = "clippy takes the helpers of tests for something else"
)]

use support::target::{Builder, Disk, Export, Fault, NO_TAG, Raw, Refused, Target, chap_response};

const IQN: &str = "iqn.2026-11.test:login";
const SECRET: &str = "a-secret-of-16-b";
const MUTUAL: &str = "another-of-16-by";

#[test]
fn chap_is_proved_both_ways_by_every_algorithm_in_both_alphabets() {
    for (algorithm, base64, bytes) in [
        (5, false, 1),
        (5, true, 1024),
        (6, false, 20),
        (7, true, 32),
        (8, false, 1024),
        (8, true, 17),
    ] {
        let target = plain()
            .chap("user", SECRET)
            .mutual_chap("target", MUTUAL)
            .chap_algorithms(&[algorithm])
            .chap_base64(base64)
            .challenge_bytes(bytes)
            .start_blocking();
        let answer = chap(&target, SECRET, "8,7,6,5", Some(b"their challenge")).unwrap();
        assert_eq!(value(&answer, "CHAP_N"), "target");
        let proof = binary(&value(&answer, "CHAP_R"));
        assert_eq!(
            proof,
            chap_response(algorithm, 77, MUTUAL, b"their challenge")
        );
        assert_eq!(target.violations(), Vec::<String>::new());
    }
}

#[test]
fn wrong_secrets_and_unknown_algorithms_are_refused() {
    let target = plain()
        .chap("user", SECRET)
        .chap_algorithms(&[7])
        .start_blocking();
    let refused = |secret, offer| chap(&target, secret, offer, None).unwrap_err();
    assert_eq!(refused("a-wrong-secret-16", "7,5"), (2, 1, String::new()));
    assert_eq!(refused(SECRET, "5"), (2, 1, String::new()));
    assert_eq!(target.violations(), Vec::<String>::new());
    chap(&target, SECRET, "5,7", None).unwrap();
    assert_eq!(refused(SECRET, "7").1, 1);
    assert!(target.violations()[0].contains("without MD5"));
}

#[test]
fn answers_come_in_pieces_and_are_whole_at_the_end() {
    let target = plain().login_text_bytes(10).start_blocking();
    let mut raw = Raw::open(target.address());
    let offer = format!("InitiatorName=iqn.2026-11.test:raw\0TargetName={IQN}\0InitialR2T=No\0");
    let (mut bhs, mut text) = raw.step(0x87, 1, 0, 0, &offer).unwrap();
    let mut pieces = 1;
    while bhs[1] & 0x40 != 0 {
        assert_eq!((bhs[1], text.len() % 10), (0x44, 0));
        let (next, more) = raw.step(0x87, 1, 0, 0, "").unwrap();
        bhs = next;
        text += &more;
        pieces += 1;
    }
    assert_eq!(bhs[1], 0x87);
    assert!(pieces > 3, "{pieces}");
    assert_eq!(value(&text, "InitialR2T"), "No");
    assert_eq!(value(&text, "TargetPortalGroupTag"), "1");
    assert_eq!(target.sessions(), 1);
    assert_eq!(target.violations(), Vec::<String>::new());
}

#[test]
fn target_lists_come_in_pieces_of_the_told_size() {
    let target = plain().text_bytes(64).start_blocking();
    for number in 0..5 {
        target.add(Export::new(&format!("iqn.2026-11.test:more-{number}")));
    }
    let mut raw = Raw::login(&target);
    let (mut bhs, mut text) = raw.text(NO_TAG, "SendTargets=All\0");
    while bhs[1] & 0x80 == 0 {
        let tag = u32::from_be_bytes([bhs[20], bhs[21], bhs[22], bhs[23]]);
        assert_eq!((text.len() % 64, tag == NO_TAG), (0, false));
        let (next, more) = raw.text(tag, "");
        bhs = next;
        text += &more;
    }
    assert_eq!(text.matches("TargetName=").count(), 6);
    assert!(text.len() > 128);
}

#[test]
fn connections_join_a_session_up_to_the_agreed_number() {
    let target = plain().max_connections(2).start_blocking();
    let (mut first, tsih) = leading(&target);
    let none = Raw::open(target.address()).enter(1, tsih + 1, 1, &target_name());
    assert_eq!(none.unwrap_err().1, 10);
    let other_isid = Raw::open(target.address()).enter(2, tsih, 1, &target_name());
    assert_eq!(other_isid.unwrap_err().1, 10);
    let mut second = Raw::open(target.address());
    second.cmd_sn = first.cmd_sn;
    let (answer, _) = second.enter(1, tsih, 1, &target_name()).unwrap();
    assert_eq!(answer[14..16], tsih.to_be_bytes());
    let many = Raw::open(target.address()).enter(1, tsih, 2, &target_name());
    assert_eq!(many.unwrap_err().1, 6);
    let keys = target_name() + "InitialR2T=No\0";
    assert!(
        Raw::open(target.address())
            .enter(1, tsih, 1, &keys)
            .is_err()
    );
    first.echo();
    second.echo();
    assert_eq!(target.sessions(), 1);
    let violations = target.violations();
    assert!(
        violations.last().unwrap().starts_with("InitialR2T"),
        "{violations:?}"
    );
}

#[test]
fn redirects_take_any_form_of_address() {
    let target = plain().start_blocking();
    for to in [
        "127.0.0.1:9",
        "[::1]:3260",
        "[fe80::1]",
        "storage.example:860",
    ] {
        for permanent in [false, true] {
            target.inject(Fault::Redirect {
                to: to.into(),
                permanent,
            });
            let (class, detail, text) = Raw::try_login(&target, 1).unwrap_err();
            assert_eq!((class, detail), (1, 1 + u8::from(permanent)));
            assert_eq!(text, format!("TargetAddress={to}"));
            target.clear_faults();
        }
    }
}

#[test]
fn broken_logins_are_noted() {
    let target = plain().start_blocking();
    let offer = format!("InitiatorName=iqn.2026-11.test:raw\0TargetName={IQN}\0");
    // A key twice.
    let twice = offer.clone() + "InitialR2T=No\0InitialR2T=No\0";
    assert!(
        Raw::open(target.address())
            .step(0x87, 1, 0, 0, &twice)
            .is_err()
    );
    // Another ISID in the second request.
    let mut raw = Raw::open(target.address());
    raw.step(0x04, 1, 0, 0, &offer).unwrap();
    assert!(raw.step(0x87, 2, 0, 0, "").is_err());
    // Two requests at once.
    let mut raw = Raw::open(target.address());
    let mut bhs = [0; 48];
    (bhs[0], bhs[1], bhs[8]) = (0x43, 0x04, 0x80);
    let both = support::target::Pdu::new(bhs, offer.into_bytes());
    let bytes = [both.encode(false, false), both.encode(false, false)].concat();
    std::io::Write::write_all(&mut raw.stream, &bytes).unwrap();
    raw.receive().unwrap();
    let violations = target.violations();
    for what in [
        "key InitialR2T sent twice",
        "ISID, TSIH, tag",
        "a PDU after a login",
    ] {
        let found = violations.iter().any(|known| known.starts_with(what));
        assert!(found, "{what}: {violations:?}");
    }
}

/// A login with CHAP to the end of the security stage; gives the target's last text.
fn chap(
    target: &Target,
    secret: &str,
    algorithms: &str,
    mutual: Option<&[u8]>,
) -> Result<String, Refused> {
    let mut raw = Raw::open(target.address());
    let offer =
        format!("InitiatorName=iqn.2026-11.test:raw\0TargetName={IQN}\0AuthMethod=CHAP,None\0");
    let (_, text) = raw.step(0x00, 1, 0, 0, &offer)?;
    assert_eq!(value(&text, "AuthMethod"), "CHAP");
    let (_, text) = raw.step(0x00, 1, 0, 0, &format!("CHAP_A={algorithms}\0"))?;
    let algorithm = value(&text, "CHAP_A").parse().unwrap();
    let identifier = value(&text, "CHAP_I").parse().unwrap();
    let challenge = binary(&value(&text, "CHAP_C"));
    let response = chap_response(algorithm, identifier, secret, &challenge);
    let mut answer = format!("CHAP_N=user\0CHAP_R={}\0", hex(&response));
    if let Some(challenge) = mutual {
        answer.push_str(&["CHAP_I=77\0CHAP_C=", &hex(challenge), "\0"].concat());
    }
    Ok(raw.step(0x81, 1, 0, 0, &answer)?.1)
}

/// A session with the offer of four connections, and its TSIH.
fn leading(target: &Target) -> (Raw, u16) {
    let mut raw = Raw::open(target.address());
    let keys = target_name() + "MaxConnections=4\0";
    let (bhs, text) = raw.enter(1, 0, 0, &keys).unwrap();
    assert_eq!(value(&text, "MaxConnections"), "2");
    (raw, u16::from_be_bytes([bhs[14], bhs[15]]))
}

fn target_name() -> String {
    format!("TargetName={IQN}\0")
}

fn value(text: &str, key: &str) -> String {
    let found = text
        .split('\0')
        .find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    found
        .unwrap_or_else(|| panic!("no {key} in {text:?}"))
        .to_owned()
}

fn hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
    format!("0x{}", digits.concat())
}

/// Hexadecimal by hand, base64 by the tool that every system has.
fn binary(text: &str) -> Vec<u8> {
    if let Some(digits) = text.strip_prefix("0x") {
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        return (0..digits.len()).step_by(2).map(byte).collect();
    }
    let digits = text.strip_prefix("0b").unwrap();
    let command = format!("printf %s '{digits}' | base64 -d");
    let output = std::process::Command::new("sh")
        .args(["-c", &command])
        .output()
        .unwrap();
    assert!(output.status.success());
    output.stdout
}

fn plain() -> Builder {
    Target::builder()
        .iqn(IQN)
        .lun(1, Disk::memory(1 << 20))
        .unit_attention(false)
}
