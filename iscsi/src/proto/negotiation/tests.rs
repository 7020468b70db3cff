//! Each key's ranges and result, written a second time from RFC 7143 §13.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::proto::DigestPolicy;

const LEADING_KEYS: [&str; 14] = [
    "HeaderDigest",
    "DataDigest",
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
    "MaxRecvDataSegmentLength",
];

fn leading() -> Negotiation {
    Negotiation::new(Role::Leading, &Offers::default())
}

fn offered(offers: &Offers) -> Negotiation {
    let mut negotiation = Negotiation::new(Role::Leading, offers);
    assert!(!negotiation.poll_offers().is_empty());
    assert_eq!(negotiation.poll_offers(), [], "a key is offered once");
    negotiation
}

fn answered_with(offers: &Offers, pairs: &[(&str, &str)]) -> Result<Agreed, Violation> {
    let mut negotiation = offered(offers);
    for (key, value) in pairs {
        assert_eq!(
            negotiation.handle(key, value)?,
            Reply::None,
            "{key}={value}"
        );
    }
    negotiation.finish()
}

fn answered(pairs: &[(&str, &str)]) -> Result<Agreed, Violation> {
    answered_with(&Offers::default(), pairs)
}

fn names(negotiation: &mut Negotiation) -> Vec<&'static str> {
    let offers = negotiation.poll_offers().into_iter();
    offers.map(|(key, _)| key).collect()
}

fn digests(policy: DigestPolicy) -> Offers {
    Offers {
        header_digest: policy,
        data_digest: policy,
        ..Offers::default()
    }
}

// L9
#[test]
fn offers_are_ours_and_legal() {
    let offers = leading().poll_offers();
    assert_eq!(offers.len(), LEADING_KEYS.len());
    for (key, value) in [
        ("HeaderDigest", "None"),
        ("DataDigest", "None"),
        ("MaxConnections", "1"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "16711680"),
        ("FirstBurstLength", "262144"),
        ("DefaultTime2Wait", "0"),
        ("DefaultTime2Retain", "0"),
        ("MaxOutstandingR2T", "4"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
        ("ErrorRecoveryLevel", "0"),
        ("MaxRecvDataSegmentLength", "262144"),
    ] {
        assert!(offers.contains(&(key, value.to_owned())), "{key}={value}");
    }
}

// L15, L16, L20, L21, L22: what the caller set is what is offered
#[test]
fn offers_of_the_caller_leave_as_they_are() {
    let offers = Offers {
        header_digest: DigestPolicy::Prefer,
        data_digest: DigestPolicy::Require,
        initial_r2t: true,
        immediate_data: true,
        max_recv_data_segment_bytes: 65_536,
        max_burst_bytes: 131_072,
        first_burst_bytes: 4096,
        max_outstanding_r2t: 7,
        max_connections: 3,
        time_2_wait: 9,
        time_2_retain: 60,
    };
    let said = Negotiation::new(Role::Leading, &offers).poll_offers();
    for (key, value) in [
        ("HeaderDigest", "CRC32C,None"),
        ("DataDigest", "CRC32C"),
        ("MaxConnections", "3"),
        ("InitialR2T", "Yes"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "131072"),
        ("FirstBurstLength", "4096"),
        ("DefaultTime2Wait", "9"),
        ("DefaultTime2Retain", "60"),
        ("MaxOutstandingR2T", "7"),
        ("MaxRecvDataSegmentLength", "65536"),
    ] {
        assert!(said.contains(&(key, value.to_owned())), "{key}={value}");
    }
}

// RFC 7143 §13.14: irrelevant where all data is asked for
#[test]
fn first_burst_is_not_offered_where_no_data_comes_unasked() {
    let offers = Offers {
        initial_r2t: true,
        immediate_data: false,
        ..Offers::default()
    };
    let mut negotiation = Negotiation::new(Role::Leading, &offers);
    assert!(!names(&mut negotiation).contains(&"FirstBurstLength"));
}

// L23: RFC 7143 §13: keys of normal sessions have no place in a discovery session
#[test]
fn discovery_offers_only_what_it_has_a_use_for() {
    let mut negotiation = Negotiation::new(Role::Discovery, &digests(DigestPolicy::Require));
    let offers = negotiation.poll_offers();
    assert!(offers.contains(&("HeaderDigest", "None".to_owned())));
    let names: Vec<_> = offers.into_iter().map(|(key, _)| key).collect();
    assert_eq!(
        names,
        [
            "HeaderDigest",
            "DataDigest",
            "DefaultTime2Wait",
            "DefaultTime2Retain",
            "ErrorRecoveryLevel",
            "MaxRecvDataSegmentLength"
        ]
    );
    for (key, value) in [
        ("MaxConnections", "4"),
        ("InitialR2T", "Yes"),
        ("ImmediateData", "No"),
        ("MaxBurstLength", "512"),
        ("FirstBurstLength", "512"),
        ("MaxOutstandingR2T", "1"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
        ("TaskReporting", "RFC3720"),
        ("iSCSIProtocolLevel", "1"),
    ] {
        assert_eq!(
            negotiation.handle(key, value),
            Ok(Reply::Value("Irrelevant".to_owned())),
            "{key}"
        );
    }
    // L23: and the target may say so of what we offered
    for key in [
        "DefaultTime2Wait",
        "DefaultTime2Retain",
        "ErrorRecoveryLevel",
    ] {
        assert_eq!(negotiation.handle(key, "Irrelevant"), Ok(Reply::None));
    }
}

// L4: RFC 7143 §13: "leading only"
#[test]
fn further_connection_offers_and_takes_only_what_is_its_own() {
    let offers = digests(DigestPolicy::Prefer);
    let mut negotiation = Negotiation::new(Role::Further, &offers);
    assert_eq!(
        names(&mut negotiation),
        ["HeaderDigest", "DataDigest", "MaxRecvDataSegmentLength"]
    );
    for (key, value) in [
        ("MaxConnections", "1"),
        ("InitialR2T", "Yes"),
        ("ErrorRecoveryLevel", "0"),
        ("TaskReporting", "RFC3720"),
        ("DefaultTime2Wait", "Irrelevant"),
    ] {
        assert_eq!(
            negotiation.handle(key, value),
            Err(Violation::KeyOutOfPlace(key.to_owned()))
        );
    }
    negotiation.handle("HeaderDigest", "CRC32C").unwrap();
    negotiation
        .handle("MaxRecvDataSegmentLength", "4096")
        .unwrap();
    let session = answered(&[("MaxBurstLength", "65536"), ("FirstBurstLength", "512")]).unwrap();
    let agreed = negotiation.finish().unwrap().in_session_of(&session);
    assert!(agreed.header_digest && !agreed.data_digest);
    assert_eq!(agreed.theirs_max_recv_data_segment_bytes, 4096);
    assert_eq!(
        (agreed.max_burst_bytes, agreed.first_burst_bytes),
        (65_536, 512)
    );
}

#[test]
fn answers_of_tgt_are_agreed() {
    let agreed = answered(&[
        ("HeaderDigest", "None"),
        ("DataDigest", "None"),
        ("InitialR2T", "Yes"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "262144"),
        ("FirstBurstLength", "65536"),
        ("MaxOutstandingR2T", "1"),
        ("MaxConnections", "1"),
        ("DefaultTime2Wait", "2"),
        ("DefaultTime2Retain", "0"),
        ("ErrorRecoveryLevel", "0"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
        ("MaxRecvDataSegmentLength", "8192"),
        ("TargetPortalGroupTag", "0"),
        ("TargetAlias", "disks"),
        ("X#NodeArchitecture", "tgt"),
    ])
    .unwrap();
    assert!(agreed.initial_r2t && agreed.immediate_data);
    assert!(!agreed.header_digest && !agreed.data_digest);
    assert_eq!(
        (agreed.max_burst_bytes, agreed.first_burst_bytes),
        (262_144, 65_536)
    );
    // L20: one length for each direction
    assert_eq!(agreed.theirs_max_recv_data_segment_bytes, 8192);
    assert_eq!(agreed.ours_max_recv_data_segment_bytes, 262_144);
    assert_eq!((agreed.max_outstanding_r2t, agreed.max_connections), (1, 1));
    // L25: zero is a tag
    assert_eq!(agreed.target_portal_group_tag, Some(0));
    assert_eq!(agreed.target_alias.as_deref(), Some("disks"));
}

// L20: RFC 7143 §13: defaults, for keys that were not answered or answered with no value
#[test]
fn silence_and_refusal_leave_the_defaults() {
    let silent = answered(&[]).unwrap();
    let refused = answered(&[
        ("InitialR2T", "Reject"),
        ("ImmediateData", "NotUnderstood"),
        ("MaxBurstLength", "Irrelevant"),
        ("FirstBurstLength", "Irrelevant"),
        ("MaxOutstandingR2T", "Reject"),
        ("MaxConnections", "Irrelevant"),
        ("HeaderDigest", "Reject"),
    ])
    .unwrap();
    assert_eq!(silent, refused);
    assert!(silent.initial_r2t && silent.immediate_data && !silent.header_digest);
    assert_eq!(
        (silent.max_burst_bytes, silent.first_burst_bytes),
        (262_144, 65_536)
    );
    assert_eq!(silent.theirs_max_recv_data_segment_bytes, 8192);
    assert_eq!(
        (
            silent.max_outstanding_r2t,
            silent.max_connections,
            silent.time_2_wait,
            silent.time_2_retain
        ),
        (1, 1, 2, 20)
    );
}

// RFC 7143 §6.2.2: AND with No, OR with Yes need no answer
#[test]
fn offer_that_decides_alone_needs_no_answer() {
    let offers = Offers {
        immediate_data: false,
        ..Offers::default()
    };
    assert!(!answered_with(&offers, &[]).unwrap().immediate_data);
    // A target that says it does not know the key has not decided.
    let unknown = answered_with(&offers, &[("ImmediateData", "NotUnderstood")]);
    assert!(unknown.unwrap().immediate_data);
}

// L12: RFC 7143 §6.2, §13: values outside the range or the words of the key
#[test]
fn illegal_values_are_refused_by_key() {
    for (key, value) in [
        ("ImmediateData", "Maybe"),
        ("InitialR2T", "yes"),
        ("MaxBurstLength", "511"),
        ("MaxBurstLength", "16777216"),
        ("MaxBurstLength", "+600"),
        ("MaxBurstLength", ""),
        ("FirstBurstLength", "many"),
        ("MaxOutstandingR2T", "0"),
        ("MaxConnections", "65536"),
        ("DefaultTime2Wait", "3601"),
        ("ErrorRecoveryLevel", "3"),
        ("HeaderDigest", "CRC64"),
        ("HeaderDigest", "None,CRC32C"),
        ("MaxRecvDataSegmentLength", "511"),
        ("MaxRecvDataSegmentLength", "0x1000000"),
        ("TargetPortalGroupTag", "65536"),
        ("TargetPortalGroupTag", "one"),
    ] {
        assert_eq!(
            answered(&[(key, value)]),
            Err(Violation::value(key, value)),
            "{key}={value}"
        );
    }
}

// L11, L12, L16, L21, L22: RFC 7143 §6.2.2: the answer must follow from the offer
#[test]
fn answers_that_do_not_follow_from_our_offer_are_refused() {
    for (key, value, offer) in [
        ("MaxConnections", "2", "1"),
        ("MaxBurstLength", "16777215", "16711680"),
        ("FirstBurstLength", "262145", "262144"),
        ("DefaultTime2Retain", "20", "0"),
        ("ErrorRecoveryLevel", "1", "0"),
        ("DataPDUInOrder", "No", "Yes"),
        ("DataSequenceInOrder", "No", "Yes"),
        ("MaxOutstandingR2T", "5", "4"),
        ("DataDigest", "CRC32C", "None"),
    ] {
        assert_eq!(
            answered(&[(key, value)]),
            Err(Violation::answer(key, value, offer)),
            "{key}"
        );
    }
}

// L22: RFC 7143 §13.15: the longer wait, so no answer is below our offer
#[test]
fn time_to_wait_below_our_offer_is_refused() {
    let offers = Offers {
        time_2_wait: 2,
        ..Offers::default()
    };
    assert_eq!(
        answered_with(&offers, &[("DefaultTime2Wait", "1")]),
        Err(Violation::answer("DefaultTime2Wait", "1", "2"))
    );
}

// L15: RFC 7143 §13.1
#[test]
fn digest_is_what_both_take() {
    use DigestPolicy::{None, Prefer, Require};
    for (policy, answer, result) in [
        (None, "None", Some(false)),
        (Prefer, "CRC32C", Some(true)),
        (Prefer, "None", Some(false)),
        (Prefer, "Reject", Some(false)),
        (Require, "CRC32C", Some(true)),
        // Whether that will do is for the login to say.
        (Require, "Reject", Some(false)),
        (Require, "None", Some(false)),
        (None, "CRC32C", Option::None),
    ] {
        let pairs = [("HeaderDigest", answer), ("DataDigest", answer)];
        let agreed = answered_with(&digests(policy), &pairs).ok();
        let seen = agreed.map(|agreed| (agreed.header_digest, agreed.data_digest));
        assert_eq!(seen, result.map(|is_on| (is_on, is_on)), "{policy:?}");
    }
    // The target offers first: the first of its words that we take.
    for (policy, offer, answer) in [
        (None, "CRC32C,None", "None"),
        (Prefer, "None,CRC32C", "None"),
        (Prefer, "CRC32C,None", "CRC32C"),
        (Prefer, "Y-own,CRC32C", "CRC32C"),
        (Require, "None,CRC32C", "CRC32C"),
        (Require, "None", "Reject"),
        (None, "CRC32C", "Reject"),
    ] {
        let mut negotiation = Negotiation::new(Role::Leading, &digests(policy));
        let reply = negotiation.handle("DataDigest", offer);
        assert_eq!(
            reply,
            Ok(Reply::Value(answer.to_owned())),
            "{policy:?} {offer}"
        );
        let agreed = negotiation.finish().unwrap();
        assert_eq!(agreed.data_digest, answer == "CRC32C");
    }
}

// L21: RFC 7143 §13.14
#[test]
fn first_burst_above_max_burst_is_refused_as_answer_and_cut_as_default() {
    assert_eq!(
        answered(&[("MaxBurstLength", "65536"), ("FirstBurstLength", "131072")]),
        Err(Violation::value("FirstBurstLength", "131072"))
    );
    assert_eq!(
        answered(&[("MaxBurstLength", "4096")])
            .unwrap()
            .first_burst_bytes,
        4096
    );
}

// L9: RFC 7143 §6.3: once in a login, answered or declared or unknown
#[test]
fn second_answer_is_refused() {
    for (key, value) in [
        ("MaxBurstLength", "4096"),
        ("MaxRecvDataSegmentLength", "4096"),
        ("TargetAlias", "disk"),
        ("TargetAddress", "10.0.0.1"),
        ("X#NodeArchitecture", "a"),
        ("X-org.example.key", "Reject"),
    ] {
        assert_eq!(
            answered(&[(key, value), (key, value)]),
            Err(Violation::KeyRepeated(key.to_owned()))
        );
    }
    let mut negotiation = leading();
    assert_eq!(
        negotiation.handle("MaxBurstLength", "4096"),
        Ok(Reply::Value("4096".to_owned()))
    );
    assert_eq!(
        negotiation.handle("MaxBurstLength", "4096"),
        Err(Violation::KeyRepeated("MaxBurstLength".to_owned()))
    );
}

// L25
#[test]
fn portal_group_tag_is_any_16_bits_and_may_be_said_again_but_not_otherwise() {
    for (text, tag) in [("0", 0), ("65535", 65_535), ("0x10", 16)] {
        let agreed = answered(&[("TargetPortalGroupTag", text); 2]).unwrap();
        assert_eq!(agreed.target_portal_group_tag, Some(tag));
    }
    assert_eq!(
        answered(&[("TargetPortalGroupTag", "1"), ("TargetPortalGroupTag", "2")]),
        Err(Violation::KeyRepeated("TargetPortalGroupTag".to_owned()))
    );
}

// L13, L18, L19, L22: RFC 7143 §6.2: the target may offer first
#[test]
fn offers_of_the_target_are_answered_with_the_result() {
    for (key, value, answer) in [
        ("MaxConnections", "4", "1"),
        ("InitialR2T", "Yes", "Yes"),
        ("InitialR2T", "No", "No"),
        ("ImmediateData", "No", "No"),
        ("MaxBurstLength", "0x1000", "4096"),
        ("DefaultTime2Wait", "10", "10"),
        ("DefaultTime2Retain", "60", "0"),
        ("DataPDUInOrder", "No", "Yes"),
        ("ErrorRecoveryLevel", "2", "0"),
        ("HeaderDigest", "CRC32C,None", "None"),
        ("TaskReporting", "FastAbort,RFC3720", "RFC3720"),
        ("TaskReporting", "FastAbort", "Reject"),
        ("iSCSIProtocolLevel", "2", "1"),
        ("iSCSIProtocolLevel", "0", "0"),
        ("IFMarker", "Yes", "No"),
        ("OFMarker", "No", "No"),
        ("OFMarkInt", "2048", "Reject"),
        ("IFMarkInt", "1~8192", "Reject"),
    ] {
        let mut negotiation = leading();
        let reply = negotiation.handle(key, value).unwrap();
        assert_eq!(reply, Reply::Value(answer.to_owned()), "{key}={value}");
        assert!(!names(&mut negotiation).contains(&key));
    }
    let mut negotiation = leading();
    assert_eq!(
        negotiation.handle("X-org.example.key", "1"),
        Ok(Reply::NotUnderstood)
    );
    assert_eq!(
        negotiation.handle("X-org.example.other", "NotUnderstood"),
        Ok(Reply::None)
    );
    assert_eq!(
        negotiation.handle("CHAP_A", "5"),
        Err(Violation::KeyOutOfPlace("CHAP_A".to_owned()))
    );
}

#[test]
fn unknown_keys_without_end_are_refused() {
    let mut negotiation = leading();
    let mut number = 0;
    let refused = loop {
        if let Err(violation) = negotiation.handle(&format!("X-{number}"), "1") {
            break violation;
        }
        number += 1;
    };
    assert_eq!(refused, Violation::KeysTooMany(OTHER_KEYS_MAX));
}

// L30: values come whole and at the end, so a negotiation that breaks off leaves the earlier ones
#[test]
fn negotiation_that_breaks_off_changes_nothing_that_was_agreed() {
    let mut negotiation = offered(&Offers::default());
    negotiation.handle("MaxBurstLength", "65536").unwrap();
    let before = negotiation.finish().unwrap();
    assert!(negotiation.handle("FirstBurstLength", "none").is_err());
    assert_eq!(negotiation.finish(), Ok(before));
}

/// A key, an offer of ours for it, and the result as RFC 7143 has it.
#[derive(Clone, Copy, Debug)]
struct Row {
    name: &'static str,
    low: u32,
    high: u32,
    set: fn(&mut Offers, u32),
    seen: fn(&Agreed) -> u32,
    result: fn(u32, u32) -> u32,
}

fn narrow(value: u32) -> u16 {
    u16::try_from(value).unwrap()
}

fn rows() -> [Row; 6] {
    [
        Row {
            name: "MaxConnections",
            low: 1,
            high: 65_535,
            set: |offers, value| offers.max_connections = narrow(value),
            seen: |agreed| u32::from(agreed.max_connections),
            result: u32::min,
        },
        Row {
            name: "MaxBurstLength",
            low: 512,
            high: 16_777_215,
            set: |offers, value| {
                offers.max_burst_bytes = value;
                offers.first_burst_bytes = 512;
            },
            seen: |agreed| agreed.max_burst_bytes,
            result: u32::min,
        },
        Row {
            name: "FirstBurstLength",
            low: 512,
            high: 262_144,
            set: |offers, value| offers.first_burst_bytes = value,
            seen: |agreed| agreed.first_burst_bytes,
            result: u32::min,
        },
        Row {
            name: "DefaultTime2Wait",
            low: 0,
            high: 3600,
            set: |offers, value| offers.time_2_wait = narrow(value),
            seen: |agreed| u32::from(agreed.time_2_wait),
            result: u32::max,
        },
        Row {
            name: "DefaultTime2Retain",
            low: 0,
            high: 3600,
            set: |offers, value| offers.time_2_retain = narrow(value),
            seen: |agreed| u32::from(agreed.time_2_retain),
            result: u32::min,
        },
        Row {
            name: "MaxOutstandingR2T",
            low: 1,
            high: 65_535,
            set: |offers, value| offers.max_outstanding_r2t = narrow(value),
            seen: |agreed| u32::from(agreed.max_outstanding_r2t),
            result: u32::min,
        },
    ]
}

fn any_numbers() -> impl Strategy<Value = (Row, u32, u32, bool)> {
    select(rows().to_vec()).prop_flat_map(|row| {
        let range = row.low..=row.high;
        (Just(row), range.clone(), range, any::<bool>())
    })
}

proptest! {
    // L16, L21, L22: every legal pair of a numerical key, whoever offers first, in both spellings
    #[test]
    fn numbers_become_the_result((row, ours, theirs, is_hex) in any_numbers()) {
        let mut offers = Offers::default();
        (row.set)(&mut offers, ours);
        prop_assert_eq!(offers.check(), Ok(()));
        let spell = |value: u32| if is_hex { format!("0x{value:x}") } else { value.to_string() };
        let result = (row.result)(ours, theirs);

        let mut first = Negotiation::new(Role::Leading, &offers);
        let reply = first.handle(row.name, &spell(theirs));
        prop_assert_eq!(reply, Ok(Reply::Value(result.to_string())));
        let mut second = offered(&offers);
        let reply = second.handle(row.name, &spell(result));
        prop_assert_eq!(reply, Ok(Reply::None));
        for negotiation in [first, second] {
            // The row for FirstBurstLength ends where MaxBurstLength's default begins to cut it.
            prop_assert_eq!((row.seen)(&negotiation.finish().unwrap()), result);
        }
    }

    // L19: every pair of the boolean keys
    #[test]
    fn booleans_become_the_result(ours in any::<[bool; 2]>(), theirs in any::<[bool; 2]>()) {
        let offers = Offers { initial_r2t: ours[0], immediate_data: ours[1], ..Offers::default() };
        let word = |is_set: bool| if is_set { "Yes" } else { "No" };
        let (or, and) = (ours[0] || theirs[0], ours[1] && theirs[1]);
        let mut first = Negotiation::new(Role::Leading, &offers);
        for (key, offer, result) in [("InitialR2T", theirs[0], or), ("ImmediateData", theirs[1], and)] {
            let reply = first.handle(key, word(offer));
            prop_assert_eq!(reply, Ok(Reply::Value(word(result).to_owned())));
        }
        let pairs = [("InitialR2T", word(or)), ("ImmediateData", word(and))];
        for agreed in [first.finish(), answered_with(&offers, &pairs)] {
            let agreed = agreed.unwrap();
            prop_assert_eq!((agreed.initial_r2t, agreed.immediate_data), (or, and));
        }
    }

    // L12: an answer that no target could come to is refused, any other is the result
    #[test]
    fn answers_beyond_the_offer_are_refused((row, ours, theirs, _) in any_numbers()) {
        let mut offers = Offers::default();
        (row.set)(&mut offers, ours);
        let is_result = (row.result)(ours, theirs) == theirs;
        let answer = offered(&offers).handle(row.name, &theirs.to_string());
        prop_assert_eq!(answer.is_ok(), is_result);
    }

    // Invariant 2: whatever is answered, what is agreed is legal and within our offer
    #[test]
    fn agreed_values_are_legal(
        pairs in proptest::collection::vec(
            (select(LEADING_KEYS.to_vec()), "[0-9]{1,9}|Yes|No|None|Reject|CRC32C"),
            0..12,
        )
    ) {
        let mut negotiation = offered(&Offers::default());
        for (key, value) in &pairs {
            let _ = negotiation.handle(key, value);
        }
        if let Ok(agreed) = negotiation.finish() {
            prop_assert!(agreed.first_burst_bytes <= agreed.max_burst_bytes);
            prop_assert!((512..=16_711_680).contains(&agreed.max_burst_bytes));
            prop_assert!((1..=4).contains(&agreed.max_outstanding_r2t));
            prop_assert!(!agreed.header_digest && agreed.max_connections == 1);
        }
    }

    #[test]
    fn any_keys_are_answered(
        role in select(vec![Role::Leading, Role::Further, Role::Discovery]),
        pairs in proptest::collection::vec((select(LEADING_KEYS.to_vec()), ".{0,12}"), 0..8),
        other in "[A-Za-z#.-]{1,20}",
    ) {
        let mut negotiation = Negotiation::new(role, &digests(DigestPolicy::Prefer));
        for (key, value) in &pairs {
            let _ = negotiation.handle(key, value);
        }
        let _ = negotiation.handle(&other, "1");
        negotiation.poll_offers();
        let _ = negotiation.finish();
    }
}
