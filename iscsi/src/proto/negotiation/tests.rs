//! Each key's ranges and result, written a second time from RFC 7143 §13.

use proptest::prelude::*;

use super::*;

fn offered() -> Negotiation {
    let mut negotiation = Negotiation::new(false);
    assert_eq!(negotiation.poll_offers().len(), 14);
    assert_eq!(negotiation.poll_offers(), []);
    negotiation
}

fn answered(pairs: &[(&str, &str)]) -> Result<Agreed, Violation> {
    let mut negotiation = offered();
    for (key, value) in pairs {
        assert_eq!(
            negotiation.handle(key, value)?,
            Reply::None,
            "{key}={value}"
        );
    }
    negotiation.finish()
}

#[test]
fn offers_are_ours_and_legal() {
    let offers = Negotiation::new(false).poll_offers();
    for (key, value) in [
        ("HeaderDigest", "None"),
        ("DataDigest", "None"),
        ("MaxConnections", "1"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "16711680"),
        ("FirstBurstLength", "262144"),
        ("DefaultTime2Wait", "2"),
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

// RFC 7143 §13: keys of normal sessions have no place in a discovery session
#[test]
fn discovery_offers_only_what_it_has_a_use_for() {
    let mut negotiation = Negotiation::new(true);
    let names: Vec<_> = negotiation
        .poll_offers()
        .into_iter()
        .map(|(key, _)| key)
        .collect();
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
    let reply = negotiation.handle("MaxBurstLength", "512").unwrap();
    assert_eq!(reply, Reply::Value("Irrelevant".to_owned()));
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
    ])
    .unwrap();
    assert!(agreed.initial_r2t && agreed.immediate_data);
    assert_eq!(
        (agreed.max_burst_bytes, agreed.first_burst_bytes),
        (262_144, 65_536)
    );
    assert_eq!(agreed.theirs_max_recv_data_segment_bytes, 8192);
    assert_eq!(agreed.max_outstanding_r2t, 1);
    assert_eq!(agreed.target_portal_group_tag, Some(0));
}

// RFC 7143 §13: defaults, for keys that were not answered or answered with no value
#[test]
fn silence_and_refusal_leave_the_defaults() {
    let silent = answered(&[]).unwrap();
    let refused = answered(&[
        ("InitialR2T", "Reject"),
        ("ImmediateData", "NotUnderstood"),
        ("MaxBurstLength", "Irrelevant"),
        ("FirstBurstLength", "Irrelevant"),
        ("MaxOutstandingR2T", "Reject"),
        ("HeaderDigest", "Reject"),
    ])
    .unwrap();
    assert_eq!(silent, refused);
    assert!(silent.initial_r2t && silent.immediate_data);
    assert_eq!(
        (silent.max_burst_bytes, silent.first_burst_bytes),
        (262_144, 65_536)
    );
    assert_eq!(silent.theirs_max_recv_data_segment_bytes, 8192);
    assert_eq!(
        (
            silent.max_outstanding_r2t,
            silent.time_2_wait,
            silent.time_2_retain
        ),
        (1, 2, 20)
    );
}

// RFC 7143 §6.2, §13: values outside the range or the words of the key
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
        ("TargetPortalGroupTag", "65536"),
    ] {
        assert_eq!(
            answered(&[(key, value)]),
            Err(Violation::value(key, value)),
            "{key}={value}"
        );
    }
}

// RFC 7143 §6.2.2: the answer must follow from the offer
#[test]
fn answers_that_do_not_follow_from_our_offer_are_refused() {
    for (key, value, offer) in [
        ("MaxConnections", "2", "1"),
        ("MaxBurstLength", "16777215", "16711680"),
        ("FirstBurstLength", "262145", "262144"),
        ("DefaultTime2Wait", "1", "2"),
        ("DefaultTime2Retain", "20", "0"),
        ("ErrorRecoveryLevel", "1", "0"),
        ("DataPDUInOrder", "No", "Yes"),
        ("DataSequenceInOrder", "No", "Yes"),
        ("MaxOutstandingR2T", "5", "4"),
    ] {
        assert_eq!(
            answered(&[(key, value)]),
            Err(Violation::answer(key, value, offer)),
            "{key}"
        );
    }
    assert_eq!(
        answered(&[("DataDigest", "CRC32C")]),
        Err(Violation::value("DataDigest", "CRC32C"))
    );
}

// RFC 7143 §13.14
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

// RFC 7143 §6.3: once in a login
#[test]
fn second_answer_is_refused() {
    for key in ["MaxBurstLength", "MaxRecvDataSegmentLength"] {
        assert_eq!(
            answered(&[(key, "4096"), (key, "4096")]),
            Err(Violation::KeyRepeated(key.to_owned()))
        );
    }
}

// RFC 7143 §6.2: the target may offer first
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
        ("iSCSIProtocolLevel", "2", "1"),
        ("IFMarker", "Yes", "No"),
        ("OFMarkInt", "2048", "Reject"),
    ] {
        let mut negotiation = Negotiation::new(false);
        let reply = negotiation.handle(key, value).unwrap();
        assert_eq!(reply, Reply::Value(answer.to_owned()), "{key}={value}");
        assert!(
            !negotiation
                .poll_offers()
                .iter()
                .any(|(offered, _)| *offered == key)
        );
    }
    let mut negotiation = Negotiation::new(false);
    assert_eq!(
        negotiation.handle("X-org.example.key", "1"),
        Ok(Reply::NotUnderstood)
    );
    assert_eq!(
        negotiation.handle("X-org.example.key", "NotUnderstood"),
        Ok(Reply::None)
    );
    assert_eq!(
        negotiation.handle("CHAP_A", "5"),
        Err(Violation::KeyOutOfPlace("CHAP_A".to_owned()))
    );
}

proptest! {
    // Invariant 2: whatever is answered, what is agreed is legal and within our offer
    #[test]
    fn agreed_values_are_legal(
        pairs in proptest::collection::vec(
            (proptest::sample::select(keys::RULES.map(|rule| rule.name).to_vec()), "[0-9]{1,9}|Yes|No|None|Reject"),
            0..12,
        )
    ) {
        let mut negotiation = offered();
        for (key, value) in &pairs {
            let _ = negotiation.handle(key, value);
        }
        if let Ok(agreed) = negotiation.finish() {
            prop_assert!(agreed.first_burst_bytes <= agreed.max_burst_bytes);
            prop_assert!((512..=16_711_680).contains(&agreed.max_burst_bytes));
            prop_assert!((1..=4).contains(&agreed.max_outstanding_r2t));
        }
    }
}
