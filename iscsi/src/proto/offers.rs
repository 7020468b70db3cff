//! What we offer in the operational stage of a login, and whether that can be offered at all.
//!
//! A file of its own because a caller fills it in: the table of keys (`negotiation`) knows what is
//! legal, this knows what we want.
//!
//! Source: RFC 7143 §13.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::Misuse;

/// Whether header or data are guarded by a digest (RFC 7143 §13.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DigestPolicy {
    /// No digest: offers and takes `None`.
    #[default]
    None,
    /// A digest where the target knows it: offers `CRC32C,None`.
    Prefer,
    /// No session without it: offers `CRC32C` alone.
    Require,
}

/// A text that is no digest policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be `none`, `prefer` or `require`")]
pub struct DigestPolicyError;

/// `none`, `prefer`, `require`.
impl FromStr for DigestPolicy {
    type Err = DigestPolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            "prefer" => Ok(Self::Prefer),
            "require" => Ok(Self::Require),
            _ => Err(DigestPolicyError),
        }
    }
}

impl fmt::Display for DigestPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Prefer => "prefer",
            Self::Require => "require",
        })
    }
}

/// The values that we bring to the negotiation; what comes of them is `Agreed`.
///
/// Discovery sessions have no digests, whatever stands here: their driver reads a list of names,
/// once, and a list that was damaged shows at the login that follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offers {
    /// `HeaderDigest`. Costs 4 bytes and a checksum of 48 bytes a PDU.
    pub header_digest: DigestPolicy,
    /// `DataDigest`. Costs a pass over all data, in both directions.
    pub data_digest: DigestPolicy,
    /// `InitialR2T`: true asks for no unsolicited Data-Out. Default false; the result is OR.
    pub initial_r2t: bool,
    /// `ImmediateData`: true asks for data with the command. Default true; the result is AND.
    pub immediate_data: bool,
    /// `MaxRecvDataSegmentLength`, what we take in one PDU: 512 to 2^24 - 1 bytes. Default 256 KiB.
    pub max_recv_data_segment_bytes: u32,
    /// `MaxBurstLength`: 512 to 2^24 - 1 bytes. Default 16,711,680; the result is the minimum.
    pub max_burst_bytes: u32,
    /// `FirstBurstLength`: 512 bytes to `max_burst_bytes`. Default 256 KiB; the result is the minimum.
    pub first_burst_bytes: u32,
    /// `MaxOutstandingR2T`: 1 to 65,535. Default 4; the result is the minimum.
    pub max_outstanding_r2t: u16,
    /// `MaxConnections` of the session: 1 to 65,535. Default 1; the result is the minimum.
    pub max_connections: u16,
    /// `DefaultTime2Wait`: 0 to 3600 s. Default 0; the result is the maximum.
    pub time_2_wait: u16,
    /// `DefaultTime2Retain`: 0 to 3600 s. Default 0; the result is the minimum.
    pub time_2_retain: u16,
}

/// open-iscsi's value too; larger segments gain nothing, as the socket gives less at a time.
const MAX_RECV_DATA_SEGMENT_BYTES: u32 = 262_144;
/// The largest multiple of 64 KiB below 2^24: some targets round 2^24 - 1 up and stumble.
const MAX_BURST_BYTES: u32 = 16_711_680;
/// A write of up to this size leaves without waiting for an R2T where the target lets it.
const FIRST_BURST_BYTES: u32 = 262_144;
/// The target may ask for the next burst while we send this one.
const MAX_OUTSTANDING_R2T: u16 = 4;
/// RFC 7143 §13.15: we need no pause before a reinstatement; a target that does says so, and is heard.
const TIME_2_WAIT_SECONDS: u16 = 0;

/// RFC 7143 §13.12-§13.14: legal lengths of segments and bursts.
pub(super) const SEGMENT_RANGE: RangeInclusive<u32> = 512..=(1 << 24) - 1;
/// RFC 7143 §13.2, §13.17.
pub(super) const COUNT_RANGE: RangeInclusive<u32> = 1..=65_535;
/// RFC 7143 §13.15, §13.16, seconds.
pub(super) const TIME_RANGE: RangeInclusive<u32> = 0..=3600;

impl Default for Offers {
    fn default() -> Self {
        Self {
            header_digest: DigestPolicy::None,
            data_digest: DigestPolicy::None,
            initial_r2t: false,
            immediate_data: true,
            max_recv_data_segment_bytes: MAX_RECV_DATA_SEGMENT_BYTES,
            max_burst_bytes: MAX_BURST_BYTES,
            first_burst_bytes: FIRST_BURST_BYTES,
            max_outstanding_r2t: MAX_OUTSTANDING_R2T,
            max_connections: 1,
            time_2_wait: TIME_2_WAIT_SECONDS,
            // At error recovery level 0 the target need not keep our tasks at all.
            time_2_retain: 0,
        }
    }
}

impl Offers {
    /// Whether all of it can be offered.
    ///
    /// # Errors
    /// The first value outside of its key's range, or a first burst longer than a burst.
    pub fn check(&self) -> Result<(), Misuse> {
        let values = [
            (
                "MaxRecvDataSegmentLength",
                self.max_recv_data_segment_bytes,
                SEGMENT_RANGE,
            ),
            ("MaxBurstLength", self.max_burst_bytes, SEGMENT_RANGE),
            ("FirstBurstLength", self.first_burst_bytes, SEGMENT_RANGE),
            (
                "MaxOutstandingR2T",
                u32::from(self.max_outstanding_r2t),
                COUNT_RANGE,
            ),
            (
                "MaxConnections",
                u32::from(self.max_connections),
                COUNT_RANGE,
            ),
            ("DefaultTime2Wait", u32::from(self.time_2_wait), TIME_RANGE),
            (
                "DefaultTime2Retain",
                u32::from(self.time_2_retain),
                TIME_RANGE,
            ),
        ];
        for (key, value, range) in values {
            if !range.contains(&value) {
                return Err(Misuse::Offer {
                    key,
                    low: *range.start(),
                    high: *range.end(),
                });
            }
        }
        // RFC 7143 §13.14 (L21): FirstBurstLength is never above MaxBurstLength, in an offer too
        if self.first_burst_bytes > self.max_burst_bytes {
            return Err(Misuse::FirstBurst);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_can_be_offered() {
        assert_eq!(Offers::default().check(), Ok(()));
    }

    // L12, L20, L21, L22: the ranges of RFC 7143 §13, written a second time
    #[test]
    fn offers_outside_of_their_range_are_misuse_by_key() {
        type Change = fn(&mut Offers, u32);
        let keys: [(&str, Change, u32, u32, u32); 3] = [
            (
                "MaxRecvDataSegmentLength",
                |offers, value| offers.max_recv_data_segment_bytes = value,
                512,
                16_777_215,
                16_777_216,
            ),
            (
                "MaxBurstLength",
                |offers, value| {
                    offers.max_burst_bytes = value;
                    offers.first_burst_bytes = 512;
                },
                512,
                16_777_215,
                16_777_216,
            ),
            (
                "FirstBurstLength",
                |offers, value| {
                    offers.max_burst_bytes = 16_777_215;
                    offers.first_burst_bytes = value;
                },
                512,
                16_777_215,
                16_777_216,
            ),
        ];
        for (key, change, low, high, beyond) in keys {
            for (value, is_legal) in [(low - 1, false), (low, true), (high, true), (beyond, false)]
            {
                let mut offers = Offers::default();
                change(&mut offers, value);
                let expected = if is_legal {
                    Ok(())
                } else {
                    Err(Misuse::Offer { key, low, high })
                };
                assert_eq!(offers.check(), expected, "{key}={value}");
            }
        }
    }

    #[test]
    fn counts_and_times_outside_of_their_range_are_misuse_by_key() {
        type Change = fn(&mut Offers);
        let cases: [(&str, Change, u32, u32); 4] = [
            (
                "MaxOutstandingR2T",
                |offers| offers.max_outstanding_r2t = 0,
                1,
                65_535,
            ),
            (
                "MaxConnections",
                |offers| offers.max_connections = 0,
                1,
                65_535,
            ),
            (
                "DefaultTime2Wait",
                |offers| offers.time_2_wait = 3601,
                0,
                3600,
            ),
            (
                "DefaultTime2Retain",
                |offers| offers.time_2_retain = 3601,
                0,
                3600,
            ),
        ];
        for (key, change, low, high) in cases {
            let mut offers = Offers::default();
            change(&mut offers);
            assert_eq!(offers.check(), Err(Misuse::Offer { key, low, high }));
        }
    }

    // L21
    #[test]
    fn first_burst_above_the_burst_is_misuse() {
        let offers = Offers {
            max_burst_bytes: 4096,
            first_burst_bytes: 4097,
            ..Offers::default()
        };
        assert_eq!(offers.check(), Err(Misuse::FirstBurst));
    }
}
