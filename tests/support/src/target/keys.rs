//! Operational text keys and what two offers come to.
//!
//! Source: RFC 7143 §6.2 (negotiation), §13 (each key with its range and result function).
//!
//! Invariants:
//! 1. Each key has the result function of its section; an answer is never an echo by accident.
//! 2. A value outside its range, or a key offered twice, ends the login: the initiator under test must not do it.

use std::collections::BTreeSet;

/// What this target offers.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) max_burst: u32,
    pub(super) first_burst: u32,
    pub(super) immediate_data: bool,
    pub(super) initial_r2t: bool,
    /// Our `MaxRecvDataSegmentLength`.
    pub(super) segment_bytes: u32,
    pub(super) outstanding_r2t: u32,
    pub(super) window: u32,
    pub(super) digests: bool,
    /// The first command of a session is answered with unit attention 29h/00h.
    pub(super) unit_attention: bool,
    pub(super) time_to_wait: u32,
    pub(super) time_to_retain: u32,
    /// Good status rides in the last Data-In.
    pub(super) status_in_data: bool,
    pub(super) challenge_bytes: usize,
    /// CHAP algorithms by their numbers in `CHAP_A`.
    pub(super) chap_algorithms: Vec<u8>,
    /// CHAP values go out in base64, not in hexadecimal.
    pub(super) chap_base64: bool,
    pub(super) connections: u16,
    pub(super) descriptor_sense: bool,
    /// The most text in one answer of a login, and of a text request.
    pub(super) login_text_bytes: Option<usize>,
    pub(super) text_bytes: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_burst: 262_144,
            first_burst: 65_536,
            immediate_data: true,
            initial_r2t: false,
            segment_bytes: 262_144,
            outstanding_r2t: 1,
            window: 128,
            digests: false,
            unit_attention: true,
            time_to_wait: 2,
            time_to_retain: 0,
            status_in_data: true,
            challenge_bytes: 32,
            chap_algorithms: vec![5],
            chap_base64: false,
            connections: 1,
            descriptor_sense: false,
            login_text_bytes: None,
            text_bytes: None,
        }
    }
}

/// What holds for a connection; begins as the defaults of the RFC.
#[derive(Clone, Debug)]
pub(super) struct Agreed {
    pub(super) header_digest: bool,
    pub(super) data_digest: bool,
    pub(super) initial_r2t: bool,
    pub(super) immediate_data: bool,
    pub(super) max_burst: u32,
    pub(super) first_burst: u32,
    pub(super) outstanding_r2t: u32,
    pub(super) connections_max: u16,
    /// The initiator's `MaxRecvDataSegmentLength`.
    pub(super) their_segment_bytes: u32,
}

impl Agreed {
    /// The values of a further connection of this one's session: digests and lengths are its own.
    pub(super) fn for_further(&self, further: &Self) -> Self {
        Self {
            header_digest: further.header_digest,
            data_digest: further.data_digest,
            their_segment_bytes: further.their_segment_bytes,
            ..self.clone()
        }
    }
}

impl Default for Agreed {
    fn default() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            initial_r2t: true,
            immediate_data: true,
            max_burst: 262_144,
            first_burst: 65_536,
            outstanding_r2t: 1,
            connections_max: 1,
            their_segment_bytes: 8192,
        }
    }
}

/// The state of one login's operational negotiation.
#[derive(Debug, Default)]
pub(super) struct Negotiation {
    pub(super) agreed: Agreed,
    pub(super) discovery: bool,
    /// A further connection of a session.
    pub(super) joining: bool,
    seen: BTreeSet<String>,
    asked: BTreeSet<&'static str>,
}

impl Negotiation {
    /// Notes a key of the login; an error if it came before (RFC 7143 §6.2: no key twice in a negotiation).
    pub(super) fn note(&mut self, key: &str) -> Result<(), String> {
        if self.asked.contains(key) || self.seen.insert(key.to_owned()) {
            return Ok(());
        }
        Err(format!("key {key} sent twice in one login"))
    }

    /// The answer to an offer; `None` where none is due.
    pub(super) fn offer(
        &mut self,
        key: &str,
        value: &str,
        ours: &Settings,
    ) -> Result<Option<String>, String> {
        if self.asked.remove(key) {
            return self.accept(key, value).map(|()| None);
        }
        let agreed = &mut self.agreed;
        // RFC 7143 §13: keys that say "irrelevant when SessionType=Discovery".
        if self.joining && LEADING_ONLY.contains(&key) {
            // RFC 7143 §13: "LO" keys are the leading connection's.
            return Err(format!("{key} on a further connection of a session"));
        }
        if self.discovery && SESSION_ONLY.contains(&key) {
            return Ok(Some("Irrelevant".into()));
        }
        let answer = match key {
            "HeaderDigest" | "DataDigest" => {
                let on = list(value, ours.digests)
                    .ok_or_else(|| format!("{key}={value} holds no known digest"))?;
                let place = if key == "HeaderDigest" {
                    &mut agreed.header_digest
                } else {
                    &mut agreed.data_digest
                };
                *place = on;
                if on { "CRC32C".into() } else { "None".into() }
            }
            "InitialR2T" => {
                agreed.initial_r2t = boolean(key, value)? || ours.initial_r2t;
                yes_no(agreed.initial_r2t)
            }
            "ImmediateData" => {
                agreed.immediate_data = boolean(key, value)? && ours.immediate_data;
                yes_no(agreed.immediate_data)
            }
            "MaxRecvDataSegmentLength" => {
                // Declared, one value a direction: ours is declared by `declaration`.
                agreed.their_segment_bytes = number(key, value, 512..=0xff_ffff)?;
                return Ok(None);
            }
            "MaxBurstLength" => {
                agreed.max_burst = number(key, value, 512..=0xff_ffff)?.min(ours.max_burst);
                agreed.max_burst.to_string()
            }
            "FirstBurstLength" => {
                agreed.first_burst = number(key, value, 512..=0xff_ffff)?.min(ours.first_burst);
                agreed.first_burst.to_string()
            }
            "MaxOutstandingR2T" => {
                agreed.outstanding_r2t = number(key, value, 1..=65535)?.min(ours.outstanding_r2t);
                agreed.outstanding_r2t.to_string()
            }
            "MaxConnections" => {
                let count = number(key, value, 1..=65535)?.min(u32::from(ours.connections));
                agreed.connections_max = u16::try_from(count).unwrap_or(1);
                count.to_string()
            }
            // The smaller of the offer and our 0.
            "ErrorRecoveryLevel" => number(key, value, 0..=2).map(|_| "0".into())?,
            "DefaultTime2Wait" => number(key, value, 0..=3600)?
                .max(ours.time_to_wait)
                .to_string(),
            "DefaultTime2Retain" => number(key, value, 0..=3600)?
                .min(ours.time_to_retain)
                .to_string(),
            // The result function is OR, and we would not know how to do without order.
            "DataPDUInOrder" | "DataSequenceInOrder" => yes_no(boolean(key, value)? || ORDERED),
            "TaskReporting" => "RFC3720".into(),
            "iSCSIProtocolLevel" => number(key, value, 0..=31)?.min(1).to_string(),
            // Obsolete keys: RFC 7143 §13.25 wants Reject, never NotUnderstood.
            "IFMarker" | "OFMarker" | "IFMarkInt" | "OFMarkInt" => "Reject".into(),
            "InitiatorName" | "InitiatorAlias" | "TargetName" | "SessionType" => return Ok(None),
            _ => "NotUnderstood".into(),
        };
        Ok(Some(answer))
    }

    /// Our own offers for keys that the initiator left alone although our limit is below the default.
    pub(super) fn proposals(&mut self, ours: &Settings) -> Vec<(&'static str, String)> {
        let mut list = Vec::new();
        if self.discovery || self.joining {
            return list;
        }
        let mut propose = |key: &'static str, wanted: bool, value: String| {
            if wanted && !self.seen.contains(key) {
                self.seen.insert(key.to_owned());
                self.asked.insert(key);
                list.push((key, value));
            }
        };
        propose("ImmediateData", !ours.immediate_data, "No".into());
        propose(
            "MaxBurstLength",
            ours.max_burst < 262_144,
            ours.max_burst.to_string(),
        );
        propose(
            "FirstBurstLength",
            ours.first_burst < 65_536,
            ours.first_burst.to_string(),
        );
        list
    }

    /// Whether an offer of ours waits for its answer.
    pub(super) fn is_waiting(&self) -> bool {
        !self.asked.is_empty()
    }

    /// RFC 7143 §13.14: `FirstBurstLength` must not exceed `MaxBurstLength`.
    pub(super) fn finish(&mut self) {
        self.agreed.first_burst = self.agreed.first_burst.min(self.agreed.max_burst);
    }

    fn accept(&mut self, key: &str, value: &str) -> Result<(), String> {
        let agreed = &mut self.agreed;
        match key {
            "ImmediateData" => agreed.immediate_data = boolean(key, value)?,
            "MaxBurstLength" => agreed.max_burst = number(key, value, 512..=0xff_ffff)?,
            _ => agreed.first_burst = number(key, value, 512..=0xff_ffff)?,
        }
        Ok(())
    }
}

/// The key pairs of a data segment.
pub(super) fn pairs(text: &[u8]) -> Result<Vec<(String, String)>, String> {
    text.split(|byte| *byte == 0)
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let pair = std::str::from_utf8(pair).map_err(|_| "a key is not UTF-8".to_owned())?;
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("key without value: {pair}"))?;
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Appends a pair as it goes on the wire.
pub(super) fn put(text: &mut Vec<u8>, key: &str, value: &str) {
    text.extend(key.as_bytes());
    text.push(b'=');
    text.extend(value.as_bytes());
    text.push(0);
}

/// First of the initiator's list that we support: true for CRC32C.
fn list(value: &str, digests: bool) -> Option<bool> {
    value.split(',').find_map(|name| match name {
        "CRC32C" if digests => Some(true),
        "None" => Some(false),
        _ => None,
    })
}

fn boolean(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "Yes" => Ok(true),
        "No" => Ok(false),
        _ => Err(format!("{key}={value} is neither Yes nor No")),
    }
}

fn number(key: &str, value: &str, legal: std::ops::RangeInclusive<u32>) -> Result<u32, String> {
    let parsed = match value
        .strip_prefix("0x")
        .or_else(|| value.strip_prefix("0X"))
    {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => value.parse(),
    };
    parsed
        .ok()
        .filter(|number| legal.contains(number))
        .ok_or_else(|| format!("{key}={value} is out of its range"))
}

fn yes_no(value: bool) -> String {
    if value { "Yes".into() } else { "No".into() }
}

const ORDERED: bool = true;
const LEADING_ONLY: [&str; 13] = [
    "MaxConnections",
    "InitialR2T",
    "ImmediateData",
    "MaxBurstLength",
    "FirstBurstLength",
    "MaxOutstandingR2T",
    "DataPDUInOrder",
    "DataSequenceInOrder",
    "DefaultTime2Wait",
    "DefaultTime2Retain",
    "ErrorRecoveryLevel",
    "TaskReporting",
    "iSCSIProtocolLevel",
];
const SESSION_ONLY: [&str; 8] = [
    "MaxConnections",
    "InitialR2T",
    "ImmediateData",
    "MaxBurstLength",
    "FirstBurstLength",
    "MaxOutstandingR2T",
    "DataPDUInOrder",
    "DataSequenceInOrder",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_functions_are_those_of_their_sections() {
        let ours = Settings {
            initial_r2t: true,
            immediate_data: false,
            max_burst: 131_072,
            first_burst: 32_768,
            ..Settings::default()
        };
        let rows = [
            ("InitialR2T", "No", Some("Yes")),
            ("ImmediateData", "Yes", Some("No")),
            ("MaxBurstLength", "262144", Some("131072")),
            ("FirstBurstLength", "16384", Some("16384")),
            ("MaxConnections", "4", Some("1")),
            ("ErrorRecoveryLevel", "2", Some("0")),
            ("DefaultTime2Wait", "0", Some("2")),
            ("DefaultTime2Retain", "60", Some("0")),
            ("DataPDUInOrder", "No", Some("Yes")),
            ("HeaderDigest", "CRC32C,None", Some("None")),
            ("MaxRecvDataSegmentLength", "65536", None),
            ("IFMarker", "No", Some("Reject")),
            ("X-com.example", "1", Some("NotUnderstood")),
        ];
        let mut negotiation = Negotiation::default();
        for (key, value, answer) in rows {
            negotiation.note(key).unwrap();
            let given = negotiation.offer(key, value, &ours).unwrap();
            assert_eq!(given.as_deref(), answer, "{key}={value}");
        }
        assert!(negotiation.note("InitialR2T").is_err());
        for (key, value) in [("ImmediateData", "Maybe"), ("MaxBurstLength", "511")] {
            assert!(
                negotiation.offer(key, value, &ours).is_err(),
                "{key}={value}"
            );
        }
    }

    #[test]
    fn limits_below_the_defaults_are_proposed_to_a_silent_initiator() {
        let ours = Settings {
            max_burst: 4096,
            ..Settings::default()
        };
        let mut negotiation = Negotiation::default();
        assert_eq!(
            negotiation.proposals(&ours),
            [("MaxBurstLength", "4096".to_owned())]
        );
        assert!(negotiation.is_waiting());
        negotiation.note("MaxBurstLength").unwrap();
        assert_eq!(negotiation.offer("MaxBurstLength", "2048", &ours), Ok(None));
        negotiation.finish();
        assert_eq!(
            (negotiation.agreed.max_burst, negotiation.agreed.first_burst),
            (2048, 2048)
        );
    }
}
