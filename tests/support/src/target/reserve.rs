//! Persistent reservations of a logical unit.
//!
//! Source: SPC-4 §5.9 (model, table of conflicts), §6.15 (IN), §6.16 (OUT).
//!
//! Registrations are by nexus (initiator name and ISID). Not here: APTPL beyond accepting it, all target ports,
//! specified initiator ports.

use super::scsi::{Answer, INVALID_FIELD, PARAMETER_LIST_LENGTH, Sense, clipped, op};

/// An initiator port: name and ISID.
pub(super) type Nexus = (String, [u8; 6]);

#[derive(Debug, Default)]
pub(super) struct Reservations {
    registered: Vec<(Nexus, u64)>,
    /// Who holds it (for the types of all registrants: who made it), and its type.
    holder: Option<(Nexus, u8)>,
    generation: u32,
}

impl Reservations {
    /// Whether a command of a nexus meets RESERVATION CONFLICT.
    pub(super) fn conflicts(&self, nexus: &Nexus, cdb: &[u8; 16]) -> bool {
        let Some((holder, kind)) = &self.holder else {
            return false;
        };
        let registered = self.key(nexus).is_some();
        let exclusive = !matches!(
            *kind,
            kind::WRITE_EXCLUSIVE | kind::WRITE_EXCLUSIVE_REGISTRANTS | kind::WRITE_EXCLUSIVE_ALL
        );
        let free = if *kind < kind::WRITE_EXCLUSIVE_REGISTRANTS {
            holder == nexus
        } else {
            registered
        };
        if free {
            return false;
        }
        match cdb[0] {
            op::INQUIRY
            | op::REPORT_LUNS
            | op::REQUEST_SENSE
            | op::PERSISTENT_RESERVE_IN
            | op::PERSISTENT_RESERVE_OUT
            | op::TEST_UNIT_READY
            | op::MAINTENANCE_IN
            | op::READ_CAPACITY_10
            | op::SERVICE_ACTION_IN_16 => false,
            op::READ_6
            | op::READ_10
            | op::READ_12
            | op::READ_16
            | op::MODE_SENSE_6
            | op::MODE_SENSE_10 => exclusive,
            _ => true,
        }
    }

    /// PERSISTENT RESERVE IN.
    pub(super) fn read(&self, cdb: &[u8; 16]) -> Answer {
        let mut data = self.generation.to_be_bytes().to_vec();
        let body = match cdb[1] & 0x1f {
            READ_KEYS => {
                let keys = self.registered.iter();
                keys.flat_map(|(_, key)| key.to_be_bytes()).collect()
            }
            READ_RESERVATION => self.reservation(),
            READ_FULL_STATUS => self.full_status(),
            REPORT_CAPABILITIES => {
                // TMV, and the mask of all six types.
                let data = vec![0, 8, 0, 0x80, 0xea, 0x01, 0, 0];
                return Answer::good(clipped(data, length(cdb)));
            }
            _ => return Answer::check(INVALID_FIELD),
        };
        data.extend(u32::try_from(body.len()).unwrap_or(0).to_be_bytes());
        data.extend(body);
        Answer::good(clipped(data, length(cdb)))
    }

    /// PERSISTENT RESERVE OUT: the answer, and who is to be told what.
    pub(super) fn write(
        &mut self,
        nexus: &Nexus,
        cdb: &[u8; 16],
        data: &[u8],
    ) -> (Answer, Vec<(Nexus, Sense)>) {
        let mut told = Vec::new();
        let Some((own, new)) = keys(data) else {
            return (Answer::check(PARAMETER_LIST_LENGTH), told);
        };
        let (action, kind) = (cdb[1] & 0x1f, cdb[2] & 0x0f);
        let registers = matches!(action, REGISTER | REGISTER_AND_IGNORE);
        let known = self.key(nexus);
        let allowed = match (action, known) {
            (REGISTER_AND_IGNORE, _) => true,
            (REGISTER, None) => own == 0,
            (_, Some(key)) => key == own,
            (_, None) => false,
        };
        if !allowed {
            return (Answer::status(RESERVATION_CONFLICT), told);
        }
        let typed = matches!(action, RESERVE | RELEASE | PREEMPT | PREEMPT_AND_ABORT);
        // Scope: the logical unit only.
        if typed && (cdb[2] >> 4 != 0 || !matches!(kind, 1 | 3 | 5..=8)) {
            return (Answer::check(INVALID_FIELD), told);
        }
        let answer = match action {
            _ if registers => {
                self.register(nexus, new, &mut told);
                Answer::good(Vec::new())
            }
            RESERVE => self.reserve(nexus, kind),
            RELEASE => self.release(nexus, kind, &mut told),
            CLEAR => {
                self.tell_others(nexus, RESERVATIONS_PREEMPTED, &mut told);
                self.registered.clear();
                self.holder = None;
                self.generation = self.generation.wrapping_add(1);
                Answer::good(Vec::new())
            }
            PREEMPT | PREEMPT_AND_ABORT => self.preempt(nexus, kind, new, &mut told),
            _ => Answer::check(INVALID_FIELD),
        };
        (answer, told)
    }

    /// Whether commands must be asked about at all.
    pub(super) fn is_held(&self) -> bool {
        self.holder.is_some()
    }

    fn key(&self, nexus: &Nexus) -> Option<u64> {
        let found = self.registered.iter().find(|(known, _)| known == nexus);
        found.map(|(_, key)| *key)
    }

    fn is_holder(&self, nexus: &Nexus) -> bool {
        self.holder.as_ref().is_some_and(|(holder, kind)| {
            holder == nexus || *kind >= kind::WRITE_EXCLUSIVE_ALL && self.key(nexus).is_some()
        })
    }

    fn reservation(&self) -> Vec<u8> {
        let Some((holder, kind)) = &self.holder else {
            return Vec::new();
        };
        let key = if *kind >= kind::WRITE_EXCLUSIVE_ALL {
            0
        } else {
            self.key(holder).unwrap_or(0)
        };
        let mut body = key.to_be_bytes().to_vec();
        body.extend([0, 0, 0, 0, 0, *kind, 0, 0]);
        body
    }

    /// A descriptor for each registration, with the initiator port as an iSCSI `TransportID` (SPC-4 §7.6.4.6).
    fn full_status(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for (nexus, key) in &self.registered {
            let held = self.holder.as_ref().filter(|_| self.is_holder(nexus));
            body.extend(key.to_be_bytes());
            body.extend([0, 0, 0, 0, u8::from(held.is_some())]);
            body.push(held.map_or(0, |(_, kind)| *kind));
            body.extend([0, 0, 0, 0, 0, 1]);
            let isid: Vec<String> = nexus.1.iter().map(|byte| format!("{byte:02x}")).collect();
            let mut name = format!("{},i,0x{}", nexus.0, isid.concat()).into_bytes();
            name.resize((name.len() + 1).next_multiple_of(4), 0);
            let name_bytes = u16::try_from(name.len()).unwrap_or(0);
            body.extend(u32::from(name_bytes + 4).to_be_bytes());
            body.extend([0x45, 0]);
            body.extend(name_bytes.to_be_bytes());
            body.extend(name);
        }
        body
    }

    fn register(&mut self, nexus: &Nexus, key: u64, told: &mut Vec<(Nexus, Sense)>) {
        self.generation = self.generation.wrapping_add(1);
        let was_holder = self.is_holder(nexus);
        self.registered.retain(|(known, _)| known != nexus);
        if key != 0 {
            self.registered.push((nexus.clone(), key));
            return;
        }
        if let Some((_, kind)) = self.holder.clone().filter(|_| was_holder) {
            let all = kind >= kind::WRITE_EXCLUSIVE_ALL;
            if !all || self.registered.is_empty() {
                self.holder = None;
                if matches!(kind, 5 | 6) {
                    self.tell_others(nexus, RESERVATIONS_RELEASED, told);
                }
            }
        }
    }

    fn reserve(&mut self, nexus: &Nexus, kind: u8) -> Answer {
        if let Some((_, held)) = &self.holder {
            if self.is_holder(nexus) && *held == kind {
                return Answer::good(Vec::new());
            }
            return Answer::status(RESERVATION_CONFLICT);
        }
        self.holder = Some((nexus.clone(), kind));
        Answer::good(Vec::new())
    }

    fn release(&mut self, nexus: &Nexus, kind: u8, told: &mut Vec<(Nexus, Sense)>) -> Answer {
        if !self.is_holder(nexus) {
            return Answer::good(Vec::new());
        }
        if self.holder.as_ref().is_some_and(|(_, held)| *held != kind) {
            return Answer::check(INVALID_RELEASE);
        }
        self.holder = None;
        if kind >= kind::WRITE_EXCLUSIVE_REGISTRANTS {
            self.tell_others(nexus, RESERVATIONS_RELEASED, told);
        }
        Answer::good(Vec::new())
    }

    fn preempt(
        &mut self,
        nexus: &Nexus,
        kind: u8,
        victim: u64,
        told: &mut Vec<(Nexus, Sense)>,
    ) -> Answer {
        let all = self
            .holder
            .as_ref()
            .is_some_and(|(_, held)| *held >= kind::WRITE_EXCLUSIVE_ALL);
        let takes = match &self.holder {
            Some(_) if all => victim == 0,
            Some((holder, _)) => self.key(holder) == Some(victim),
            None => false,
        };
        let gone =
            |(known, key): &(Nexus, u64)| known != nexus && (*key == victim || all && victim == 0);
        if !takes
            && !self
                .registered
                .iter()
                .any(|entry| gone(entry) || entry.1 == victim)
        {
            return Answer::status(RESERVATION_CONFLICT);
        }
        for (known, _) in self.registered.extract_if(.., |entry| gone(entry)) {
            told.push((known, REGISTRATIONS_PREEMPTED));
        }
        if takes {
            self.holder = Some((nexus.clone(), kind));
        }
        self.generation = self.generation.wrapping_add(1);
        Answer::good(Vec::new())
    }

    fn tell_others(&self, nexus: &Nexus, sense: Sense, told: &mut Vec<(Nexus, Sense)>) {
        let others = self.registered.iter().filter(|(known, _)| known != nexus);
        told.extend(others.map(|(known, _)| (known.clone(), sense)));
    }
}

/// Reservation key and service action key of a parameter list of 24 bytes.
fn keys(data: &[u8]) -> Option<(u64, u64)> {
    let list = data.first_chunk::<24>().filter(|_| data.len() == 24)?;
    let (own, rest) = list.split_first_chunk::<8>()?;
    let new = rest.first_chunk::<8>()?;
    Some((u64::from_be_bytes(*own), u64::from_be_bytes(*new)))
}

fn length(cdb: &[u8; 16]) -> usize {
    usize::from(u16::from_be_bytes([cdb[7], cdb[8]]))
}

mod kind {
    pub(super) const WRITE_EXCLUSIVE: u8 = 1;
    pub(super) const WRITE_EXCLUSIVE_REGISTRANTS: u8 = 5;
    pub(super) const WRITE_EXCLUSIVE_ALL: u8 = 7;
}

const READ_KEYS: u8 = 0;
const READ_RESERVATION: u8 = 1;
const REPORT_CAPABILITIES: u8 = 2;
const READ_FULL_STATUS: u8 = 3;
const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const REGISTER_AND_IGNORE: u8 = 6;
const RESERVATION_CONFLICT: u8 = 0x18;
const INVALID_RELEASE: Sense = Sense(5, 0x26, 4);
const RESERVATIONS_PREEMPTED: Sense = Sense(6, 0x2a, 3);
const RESERVATIONS_RELEASED: Sense = Sense(6, 0x2a, 4);
const REGISTRATIONS_PREEMPTED: Sense = Sense(6, 0x2a, 5);

#[cfg(test)]
mod tests {
    use super::*;

    fn out(action: u8, kind: u8) -> [u8; 16] {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[2], cdb[8]) = (op::PERSISTENT_RESERVE_OUT, action, kind, 24);
        cdb
    }

    fn list(own: u64, new: u64) -> Vec<u8> {
        [&own.to_be_bytes()[..], &new.to_be_bytes(), &[0; 8]].concat()
    }

    #[test]
    fn exclusive_reservation_is_held_preempted_and_told() {
        let (a, b) = (("a".to_owned(), [0; 6]), ("b".to_owned(), [0; 6]));
        let mut unit = Reservations::default();
        let mut act = |nexus: &Nexus, action, kind, own, new| {
            let (answer, told) = unit.write(nexus, &out(action, kind), &list(own, new));
            let mut write = [0; 16];
            write[0] = op::WRITE_10;
            (
                answer.status,
                told,
                unit.conflicts(&a, &write),
                unit.conflicts(&b, &write),
            )
        };
        assert_eq!(act(&a, RESERVE, 1, 0, 0).0, RESERVATION_CONFLICT);
        assert_eq!(act(&a, REGISTER, 0, 0, 1).0, 0);
        assert_eq!(act(&b, REGISTER, 0, 7, 2).0, RESERVATION_CONFLICT);
        assert_eq!(act(&b, REGISTER, 0, 0, 2).0, 0);
        let held = act(&a, RESERVE, 3, 1, 0);
        assert_eq!((held.0, held.2, held.3), (0, false, true));
        assert_eq!(act(&b, RESERVE, 3, 2, 0).0, RESERVATION_CONFLICT);
        let taken = act(&b, PREEMPT, 3, 2, 1);
        assert_eq!((taken.0, taken.2, taken.3), (0, true, false));
        assert_eq!(taken.1, [(a.clone(), REGISTRATIONS_PREEMPTED)]);
        assert_eq!(act(&b, CLEAR, 0, 2, 0).0, 0);
        assert_eq!(act(&b, RELEASE, 3, 2, 0).0, RESERVATION_CONFLICT);
    }
}
