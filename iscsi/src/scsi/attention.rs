//! Unit attentions: what happened to a logical unit since we last asked, told once instead of an answer.
//!
//! A room of its own because `Verdict` says the same for all of them (repeat the command), while what has to be asked
//! or told afterwards differs.
//! Source: SAM-5 5.14; SPC-4 annex D (29h, 2Ah, 2Fh, 38h, 3Fh).

use super::{Sense, SenseKey};

/// What a unit attention is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attention {
    /// 29h/01h: the power came on; what a volatile cache held is gone.
    PowerOn,
    /// 29h/04h: the device was reset inside; likewise.
    InternalReset,
    /// 29h/07h: the `I_T` nexus was lost; reservations may be gone, data is not.
    NexusLoss,
    /// Other 29h: a reset, of which kind the target does not say.
    Reset,
    /// 2Ah/09h: ask READ CAPACITY(16) again.
    CapacityChanged,
    /// 2Ah/01h: mode parameters, among them write protection and the cache, may be others.
    ModeParametersChanged,
    /// 2Ah/06h and 07h: ask REPORT TARGET PORT GROUPS again.
    AccessStateChanged,
    /// 2Ah/03h to 05h: somebody preempted, released or cleared reservations or registrations.
    ReservationsChanged,
    /// 3Fh/0Eh: ask REPORT LUNS again.
    LunsChanged,
    /// 3Fh/03h and 05h: INQUIRY data or the device identifier changed. The identity must be examined again.
    IdentityChanged,
    /// 38h/07h: a thin-provisioned unit is running out of space.
    SpaceThreshold,
    /// 2Fh: another initiator cleared our commands; they were not done.
    CommandsCleared,
    /// Anything else.
    Other,
}

impl Attention {
    /// What the sense data reports, if it is a unit attention.
    pub fn of(sense: &Sense) -> Option<Self> {
        if sense.key != SenseKey::UnitAttention {
            return None;
        }
        // SAM-5: unit attention conditions are reported once to each nexus
        Some(match (sense.asc, sense.ascq) {
            (0x29, 0x01) => Self::PowerOn,
            (0x29, 0x04) => Self::InternalReset,
            (0x29, 0x07) => Self::NexusLoss,
            (0x29, _) => Self::Reset,
            (0x2A, 0x01) => Self::ModeParametersChanged,
            (0x2A, 0x03..=0x05) => Self::ReservationsChanged,
            (0x2A, 0x06 | 0x07) => Self::AccessStateChanged,
            (0x2A, 0x09) => Self::CapacityChanged,
            (0x2F, _) => Self::CommandsCleared,
            (0x38, 0x07) => Self::SpaceThreshold,
            (0x3F, 0x03 | 0x05) => Self::IdentityChanged,
            (0x3F, 0x0E) => Self::LunsChanged,
            // The registry of additional sense codes is open.
            (_, _) => Self::Other,
        })
    }

    /// Is what a volatile cache held gone? 29h/00h says nothing of the kind: targets report it after every login.
    pub fn lost_power(self) -> bool {
        match self {
            Self::PowerOn | Self::InternalReset => true,
            Self::NexusLoss
            | Self::Reset
            | Self::CapacityChanged
            | Self::ModeParametersChanged
            | Self::AccessStateChanged
            | Self::ReservationsChanged
            | Self::LunsChanged
            | Self::IdentityChanged
            | Self::SpaceThreshold
            | Self::CommandsCleared
            | Self::Other => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // S6
    #[test]
    fn each_code_has_its_meaning() {
        for (asc, ascq, attention) in [
            (0x29, 0x00, Attention::Reset),
            (0x29, 0x01, Attention::PowerOn),
            (0x29, 0x02, Attention::Reset),
            (0x29, 0x03, Attention::Reset),
            (0x29, 0x04, Attention::InternalReset),
            (0x29, 0x07, Attention::NexusLoss),
            (0x2A, 0x00, Attention::Other),
            (0x2A, 0x01, Attention::ModeParametersChanged),
            (0x2A, 0x03, Attention::ReservationsChanged),
            (0x2A, 0x04, Attention::ReservationsChanged),
            (0x2A, 0x05, Attention::ReservationsChanged),
            (0x2A, 0x06, Attention::AccessStateChanged),
            (0x2A, 0x07, Attention::AccessStateChanged),
            (0x2A, 0x09, Attention::CapacityChanged),
            (0x2F, 0x00, Attention::CommandsCleared),
            (0x38, 0x07, Attention::SpaceThreshold),
            (0x3F, 0x01, Attention::Other),
            (0x3F, 0x03, Attention::IdentityChanged),
            (0x3F, 0x05, Attention::IdentityChanged),
            (0x3F, 0x0E, Attention::LunsChanged),
            (0x5D, 0x00, Attention::Other),
        ] {
            let sense = Sense::new(SenseKey::UnitAttention, asc, ascq);
            assert_eq!(Attention::of(&sense), Some(attention), "{sense}");
            let lost = matches!((asc, ascq), (0x29, 0x01 | 0x04));
            assert_eq!(attention.lost_power(), lost, "{sense}");
        }
    }

    #[test]
    fn no_other_key_is_one() {
        for bits in (0..16).filter(|bits| *bits != 0x6) {
            let sense = Sense::new(SenseKey::from_bits(bits), 0x29, 0);
            assert_eq!(Attention::of(&sense), None, "{sense}");
        }
    }
}
