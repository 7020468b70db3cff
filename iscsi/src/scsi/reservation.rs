//! Persistent reservations: the parameter data of PERSISTENT RESERVE IN and OUT.
//!
//! Source: SPC-4 5.12 (the model), 6.15 (PERSISTENT RESERVE IN), 6.16 (PERSISTENT RESERVE OUT), 7.6.4 (`TransportID`).
//!
//! Invariants:
//! 1. A list that is not whole is refused: whoever preempts by half of a list preempts the wrong one.

use std::fmt;

use super::Violation;
use super::field::{bit_at, u8_at, u16_at, u32_at, u64_at};
use super::inquiry::printable;

/// RESERVATION KEY: by which an initiator port is known to the unit; zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReservationKey(pub u64);

/// TYPE of a reservation, four bits; an open registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReservationType(pub u8);

/// Service action of PERSISTENT RESERVE IN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ReserveIn {
    /// All registered keys.
    ReadKeys = 0x00,
    /// The reservation, if there is one.
    ReadReservation = 0x01,
    /// What the unit can do.
    ReportCapabilities = 0x02,
    /// All registrations, each with the initiator port that made it.
    ReadFullStatus = 0x03,
}

/// Service action of PERSISTENT RESERVE OUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ReserveOut {
    /// Registers a key, changes it, or with a new key of zero removes it; the existing key must be right.
    Register = 0x00,
    /// Makes a reservation.
    Reserve = 0x01,
    /// Gives it up.
    Release = 0x02,
    /// Removes all registrations and the reservation.
    Clear = 0x03,
    /// Removes another's registrations, and takes the reservation if it was theirs.
    Preempt = 0x04,
    /// The same, and aborts the tasks of the preempted.
    PreemptAndAbort = 0x05,
    /// Registers a key whatever the existing one is.
    RegisterAndIgnoreExistingKey = 0x06,
}

impl ReserveIn {
    /// The five bits of the CDB.
    pub fn bits(self) -> u8 {
        self as u8
    }
}

impl ReserveOut {
    /// The five bits of the CDB.
    pub fn bits(self) -> u8 {
        self as u8
    }
}

impl ReservationType {
    /// Others may read; one holder.
    pub const WRITE_EXCLUSIVE: Self = Self(0x1);
    /// Others may do nothing; one holder.
    pub const EXCLUSIVE_ACCESS: Self = Self(0x3);
    /// All registrants may write, others read; one holder.
    pub const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: Self = Self(0x5);
    /// All registrants may do all, others nothing; one holder.
    pub const EXCLUSIVE_ACCESS_REGISTRANTS_ONLY: Self = Self(0x6);
    /// All registrants hold it and may write, others read.
    pub const WRITE_EXCLUSIVE_ALL_REGISTRANTS: Self = Self(0x7);
    /// All registrants hold it and may do all, others nothing.
    pub const EXCLUSIVE_ACCESS_ALL_REGISTRANTS: Self = Self(0x8);
}

impl fmt::Display for ReservationType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::WRITE_EXCLUSIVE => "write exclusive",
            Self::EXCLUSIVE_ACCESS => "exclusive access",
            Self::WRITE_EXCLUSIVE_REGISTRANTS_ONLY => "write exclusive, registrants only",
            Self::EXCLUSIVE_ACCESS_REGISTRANTS_ONLY => "exclusive access, registrants only",
            Self::WRITE_EXCLUSIVE_ALL_REGISTRANTS => "write exclusive, all registrants",
            Self::EXCLUSIVE_ACCESS_ALL_REGISTRANTS => "exclusive access, all registrants",
            Self(other) => return write!(f, "reservation type {other:X}h"),
        })
    }
}

impl fmt::Display for ReservationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// The basic parameter list of PERSISTENT RESERVE OUT (SPC-4 table 216).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReserveOutParameters {
    /// RESERVATION KEY: the one under which we are registered.
    pub key: ReservationKey,
    /// SERVICE ACTION RESERVATION KEY: the new one, or that of whom to preempt.
    pub service_action_key: ReservationKey,
    /// APTPL: registrations outlive a loss of power.
    pub persist: bool,
    /// `ALL_TG_PT`: register at all target ports.
    pub all_target_ports: bool,
}

impl ReserveOutParameters {
    /// The length of the list, for the CDB.
    pub const BYTES: u32 = 24;

    /// The list. `SPEC_I_PT` stays clear: we register nobody but ourselves.
    pub fn to_bytes(self) -> [u8; 24] {
        let mut list = [0; 24];
        list[..8].copy_from_slice(&self.key.0.to_be_bytes());
        list[8..16].copy_from_slice(&self.service_action_key.0.to_be_bytes());
        list[20] = u8::from(self.persist) | (u8::from(self.all_target_ports) << 2);
        list
    }
}

/// READ KEYS: who is registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// PRGENERATION: rises with each change of the registrations.
    pub generation: u32,
    /// The keys; one may be there several times.
    pub keys: Vec<ReservationKey>,
}

impl Keys {
    /// Takes the data apart.
    ///
    /// # Errors
    /// `TooShort`, `LengthBeyondEnd`.
    pub fn parse(data: &[u8]) -> Result<Self, Violation> {
        let list = additional(data, "the READ KEYS data")?;
        Ok(Self {
            generation: u32_at(data, 0),
            keys: list
                .chunks_exact(KEY_BYTES)
                .map(|key| ReservationKey(u64_at(key, 0)))
                .collect(),
        })
    }
}

/// READ RESERVATION: who holds the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// PRGENERATION.
    pub generation: u32,
    /// The holder; `None` if there is no reservation. Zero is the key if all registrants hold it.
    pub holder: Option<(ReservationKey, ReservationType)>,
}

impl Reservation {
    /// Takes the data apart.
    ///
    /// # Errors
    /// `TooShort`, `LengthBeyondEnd`.
    pub fn parse(data: &[u8]) -> Result<Self, Violation> {
        let what = "the READ RESERVATION data";
        let held = additional(data, what)?;
        if !held.is_empty() && held.len() < RESERVATION_BYTES {
            return Err(Violation::TooShort {
                what,
                have: held.len(),
                need: RESERVATION_BYTES,
            });
        }
        // SCOPE is not looked at: a logical unit is the only one that there is.
        let holder = (
            ReservationKey(u64_at(held, 0)),
            ReservationType(u8_at(held, 13) & 0x0F),
        );
        Ok(Self {
            generation: u32_at(data, 0),
            holder: (!held.is_empty()).then_some(holder),
        })
    }
}

/// REPORT CAPABILITIES: what the unit can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// CRH: RESERVE(6) and RELEASE(6) get on with it.
    pub compatible: bool,
    /// `SIP_C`: `SPEC_I_PT` is known.
    pub specify_initiator_ports: bool,
    /// `ATP_C`: `ALL_TG_PT` is known.
    pub all_target_ports: bool,
    /// `PTPL_C`: registrations can outlive a loss of power.
    pub can_persist: bool,
    /// `PTPL_A`: they do now.
    pub persists: bool,
    /// PERSISTENT RESERVATION TYPE MASK; `None` if not valid (TMV).
    type_mask: Option<u16>,
}

impl Capabilities {
    /// Bytes of parameter data, to be asked for in the CDB.
    pub const DATA_BYTES: u16 = 8;

    /// Takes the data apart; flags beyond what came read as zero.
    ///
    /// # Errors
    /// `TooShort` if not even the length came.
    pub fn parse(data: &[u8]) -> Result<Self, Violation> {
        if data.len() < 2 {
            return Err(Violation::TooShort {
                what: "the REPORT CAPABILITIES data",
                have: data.len(),
                need: 2,
            });
        }
        let data = data.get(..usize::from(u16_at(data, 0))).unwrap_or(data);
        Ok(Self {
            compatible: bit_at(data, 2, 4),
            specify_initiator_ports: bit_at(data, 2, 3),
            all_target_ports: bit_at(data, 2, 2),
            can_persist: bit_at(data, 2, 0),
            persists: bit_at(data, 3, 0),
            type_mask: bit_at(data, 3, 7).then(|| u16_at(data, 4)),
        })
    }

    /// Does the unit know this type? `None` if it does not tell.
    pub fn knows(&self, kind: ReservationType) -> Option<bool> {
        // SPC-4 table 211: types 1 to 7 are the bits of the first byte, type 8 is bit 0 of the second.
        let bit = match kind.0 {
            bit @ 1..=7 => 8 + u32::from(bit),
            8 => 0,
            _ => return Some(false),
        };
        self.type_mask.map(|mask| (mask >> bit) & 1 != 0)
    }
}

/// READ FULL STATUS: all registrations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullStatus {
    /// PRGENERATION.
    pub generation: u32,
    /// The registrations.
    pub registrants: Vec<Registrant>,
}

/// One registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registrant {
    /// Its key.
    pub key: ReservationKey,
    /// It holds the reservation, which is of this type.
    pub holds: Option<ReservationType>,
    /// At which target port; `None`: at all.
    pub relative_target_port: Option<u16>,
    /// `TransportID` of the initiator port, as it came.
    pub transport_id: Vec<u8>,
}

impl FullStatus {
    /// Takes the data apart.
    ///
    /// # Errors
    /// `TooShort`, `LengthBeyondEnd`.
    pub fn parse(data: &[u8]) -> Result<Self, Violation> {
        let what = "the READ FULL STATUS data";
        let beyond = Violation::LengthBeyondEnd { what };
        let mut rest = additional(data, what)?;
        let mut registrants = Vec::new();
        while !rest.is_empty() {
            // ADDITIONAL DESCRIPTOR LENGTH.
            let more = usize::try_from(u32_at(rest, 20)).unwrap_or(usize::MAX);
            let (descriptor, after) = rest
                .split_at_checked(STATUS_BYTES.saturating_add(more))
                .ok_or(beyond)?;
            registrants.push(Registrant::of(descriptor));
            rest = after;
        }
        Ok(Self {
            generation: u32_at(data, 0),
            registrants,
        })
    }
}

impl Registrant {
    fn of(descriptor: &[u8]) -> Self {
        let kind = ReservationType(u8_at(descriptor, 13) & 0x0F);
        Self {
            key: ReservationKey(u64_at(descriptor, 0)),
            holds: bit_at(descriptor, 12, 0).then_some(kind),
            relative_target_port: (!bit_at(descriptor, 12, 1)).then(|| u16_at(descriptor, 18)),
            transport_id: descriptor.get(STATUS_BYTES..).unwrap_or_default().to_vec(),
        }
    }

    /// The iSCSI name of the initiator port, with `,i,0x` and its ISID if that is told; printable. `None` for other
    /// transports.
    pub fn initiator(&self) -> Option<String> {
        let id = &self.transport_id;
        if u8_at(id, 0) & 0x0F != PROTOCOL_ISCSI {
            return None;
        }
        let told = usize::from(u16_at(id, 2));
        let name = id.get(4..)?;
        Some(printable(name.get(..told).unwrap_or(name)))
    }
}

/// The length of the whole answer to READ KEYS, READ RESERVATION or READ FULL STATUS, as its header tells it.
///
/// # Errors
/// `TooShort` if the header is not whole.
pub fn told_bytes(data: &[u8]) -> Result<u64, Violation> {
    if data.len() < HEADER_BYTES {
        return Err(Violation::TooShort {
            what: "the PERSISTENT RESERVE IN data",
            have: data.len(),
            need: HEADER_BYTES,
        });
    }
    Ok(8 + u64::from(u32_at(data, 4)))
}

/// What stands behind PRGENERATION and ADDITIONAL LENGTH.
fn additional<'a>(data: &'a [u8], what: &'static str) -> Result<&'a [u8], Violation> {
    let told = usize::try_from(told_bytes(data)?).unwrap_or(usize::MAX);
    data.get(HEADER_BYTES..told)
        .ok_or(Violation::LengthBeyondEnd { what })
}

const HEADER_BYTES: usize = 8;
const KEY_BYTES: usize = 8;
const RESERVATION_BYTES: usize = 16;
/// A full status descriptor without its `TransportID`.
const STATUS_BYTES: usize = 24;
/// PROTOCOL IDENTIFIER of iSCSI.
const PROTOCOL_ISCSI: u8 = 0x5;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn listed(list: &[u8]) -> Vec<u8> {
        let mut data = vec![0, 0, 1, 2];
        data.extend_from_slice(&u32::try_from(list.len()).unwrap().to_be_bytes());
        data.extend_from_slice(list);
        data
    }

    /// A registration by iSCSI name and ISID that holds the reservation, and one at all ports that holds none.
    fn full_status() -> Vec<u8> {
        let mut list = vec![
            0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0x01, 0x05, 0, 0, 0, 0, 0, 3,
        ];
        list.extend_from_slice(&[0, 0, 0, 40, 0x45, 0, 0, 36]);
        list.extend_from_slice(b"iqn.2026-11.test:a,i,0x800001020003\0");
        list.extend_from_slice(&[
            0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 0, 0, 9,
        ]);
        list.extend_from_slice(&[0, 0, 0, 0]);
        listed(&list)
    }

    /// SPC-4 tables 202 and 213, written down a second time.
    #[test]
    fn codes_are_those_of_the_standard() {
        assert_eq!(
            [
                ReserveIn::ReadKeys,
                ReserveIn::ReadReservation,
                ReserveIn::ReportCapabilities,
                ReserveIn::ReadFullStatus
            ]
            .map(ReserveIn::bits),
            [0, 1, 2, 3]
        );
        assert_eq!(
            [
                ReserveOut::Register,
                ReserveOut::Reserve,
                ReserveOut::Release,
                ReserveOut::Clear,
                ReserveOut::Preempt,
                ReserveOut::PreemptAndAbort,
                ReserveOut::RegisterAndIgnoreExistingKey
            ]
            .map(ReserveOut::bits),
            [0, 1, 2, 3, 4, 5, 6]
        );
        for (code, name) in [
            (1, "write exclusive"),
            (3, "exclusive access"),
            (5, "write exclusive, registrants only"),
            (6, "exclusive access, registrants only"),
            (7, "write exclusive, all registrants"),
            (8, "exclusive access, all registrants"),
            (2, "reservation type 2h"),
        ] {
            assert_eq!(ReservationType(code).to_string(), name);
        }
    }

    #[test]
    fn the_parameter_list_has_the_bytes_of_the_standard() {
        let list = ReserveOutParameters {
            key: ReservationKey(0x0102_0304_0506_0708),
            service_action_key: ReservationKey(0x1112_1314_1516_1718),
            persist: true,
            all_target_ports: true,
        };
        assert_eq!(
            list.to_bytes(),
            [
                1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0, 0, 0, 0,
                0x05, 0, 0, 0
            ]
        );
        assert_eq!(ReserveOutParameters::default().to_bytes(), [0; 24]);
    }

    #[test]
    fn keys_are_read() {
        let keys = Keys::parse(&listed(&[
            0, 0, 0, 0, 0, 0, 0, 1, 0xFF, 0, 0, 0, 0, 0, 0, 2,
        ]))
        .unwrap();
        assert_eq!(keys.generation, 0x0102);
        assert_eq!(
            keys.keys,
            [ReservationKey(1), ReservationKey(0xFF00_0000_0000_0002)]
        );
        assert_eq!(keys.keys[0].to_string(), "0x0000000000000001");
        assert_eq!(Keys::parse(&listed(&[])).unwrap().keys, []);
    }

    #[test]
    fn the_holder_is_read() {
        let mut held = [0; 16];
        held[7] = 9;
        held[13] = 0x05;
        let kind = ReservationType::WRITE_EXCLUSIVE_REGISTRANTS_ONLY;
        let reservation = Reservation::parse(&listed(&held)).unwrap();
        assert_eq!(reservation.holder, Some((ReservationKey(9), kind)));
        assert_eq!(Reservation::parse(&listed(&[])).unwrap().holder, None);
        assert!(Reservation::parse(&listed(&held[..15])).is_err());
    }

    #[test]
    fn capabilities_are_read_from_their_places() {
        let capabilities = Capabilities::parse(&[0, 8, 0x1D, 0x81, 0xEA, 0x01, 0, 0]).unwrap();
        assert!(capabilities.compatible && capabilities.specify_initiator_ports);
        assert!(capabilities.all_target_ports && capabilities.can_persist && capabilities.persists);
        for kind in [1, 3, 5, 6, 7, 8] {
            assert_eq!(
                capabilities.knows(ReservationType(kind)),
                Some(true),
                "{kind}"
            );
        }
        let one = Capabilities::parse(&[0, 8, 0, 0x80, 0x02, 0, 0, 0]).unwrap();
        assert_eq!(one.knows(ReservationType::WRITE_EXCLUSIVE), Some(true));
        assert_eq!(
            one.knows(ReservationType::EXCLUSIVE_ACCESS_ALL_REGISTRANTS),
            Some(false)
        );
        assert_eq!(one.knows(ReservationType(2)), Some(false));
        assert_eq!(one.knows(ReservationType(9)), Some(false));
        let untold = Capabilities::parse(&[0, 8, 0, 0, 0xEA, 1]).unwrap();
        assert_eq!(untold.knows(ReservationType::WRITE_EXCLUSIVE), None);
        assert!(Capabilities::parse(&[0]).is_err());
    }

    #[test]
    fn full_status_names_the_registrants() {
        let status = FullStatus::parse(&full_status()).unwrap();
        let [first, second] = &status.registrants[..] else {
            panic!("{status:?}");
        };
        assert_eq!(
            first.holds,
            Some(ReservationType::WRITE_EXCLUSIVE_REGISTRANTS_ONLY)
        );
        assert_eq!(first.relative_target_port, Some(3));
        assert_eq!(
            first.initiator().as_deref(),
            Some("iqn.2026-11.test:a,i,0x800001020003")
        );
        assert_eq!((second.key, second.holds), (ReservationKey(8), None));
        assert_eq!(second.relative_target_port, None);
        assert_eq!(second.initiator(), None);
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let data = full_status();
        for length in 0..data.len() {
            assert!(FullStatus::parse(&data[..length]).is_err(), "{length}");
        }
        // A descriptor longer than the list.
        let mut beyond = data;
        beyond[8 + 20..8 + 24].fill(0xFF);
        assert!(FullStatus::parse(&beyond).is_err());
        let keys = listed(&[0; 16]);
        assert!(Keys::parse(&keys[..keys.len() - 1]).is_err());
        assert!(told_bytes(&keys[..7]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_endured(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut data = data;
            for whole in [false, true] {
                if whole && data.len() >= 8 {
                    let length = u32::try_from(data.len() - 8).unwrap();
                    data[4..8].copy_from_slice(&length.to_be_bytes());
                }
                let _ = Keys::parse(&data);
                let _ = Reservation::parse(&data);
                let _ = Capabilities::parse(&data);
                if let Ok(status) = FullStatus::parse(&data) {
                    for registrant in status.registrants {
                        let _ = registrant.initiator();
                    }
                }
            }
        }
    }
}
