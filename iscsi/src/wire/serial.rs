//! Serial numbers: `CmdSN`, `StatSN`, `DataSN`, `R2TSN`, each a type of its own.
//!
//! They are no plain integers because they wrap at 2^32, so `<` is wrong on them: they do not
//! implement `Ord`, and `precedes` is the only comparison.
//!
//! Source: RFC 7143 §4.2.2.1 with RFC 1982 (`SERIAL_BITS` = 32).

macro_rules! serial_number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub u32);

        impl $name {
            /// The number after this one; after 2^32 - 1 comes 0.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.wrapping_add(1))
            }

            /// The number before this one.
            #[must_use]
            pub fn previous(self) -> Self {
                Self(self.0.wrapping_sub(1))
            }

            /// Whether this number comes before `other`. For two numbers exactly 2^31 apart, where
            /// RFC 1982 §3.2 leaves the order undefined, it is false both ways.
            pub fn precedes(self, other: Self) -> bool {
                let ahead = other.0.wrapping_sub(self.0);
                ahead != 0 && ahead < HALF
            }

            /// How many steps lead from this number to `other`, modulo 2^32.
            pub fn steps_to(self, other: Self) -> u32 {
                other.0.wrapping_sub(self.0)
            }
        }
    };
}

serial_number! {
    /// Number of a command in a session (RFC 7143 §4.2.2.1).
    CmdSn
}
serial_number! {
    /// Number of a response on a connection (RFC 7143 §4.2.2.2).
    StatSn
}
serial_number! {
    /// Number of a data PDU in its sequence, or of a Data-In in its command (RFC 7143 §4.2.2.4).
    DataSn
}
serial_number! {
    /// Number of an R2T in its command (RFC 7143 §11.8.3).
    R2tSn
}

/// Half of the number space: what lies less than this ahead comes later.
const HALF: u32 = 1 << 31;

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 7143 §4.2.2.1: serial arithmetic
    #[test]
    fn order_holds_across_the_wrap() {
        assert!(CmdSn(u32::MAX).precedes(CmdSn(0)));
        assert!(CmdSn(u32::MAX - 5).precedes(CmdSn(100)));
        assert!(!CmdSn(0).precedes(CmdSn(u32::MAX)));
        assert!(!CmdSn(7).precedes(CmdSn(7)));
        assert_eq!(CmdSn(u32::MAX).next(), CmdSn(0));
        assert_eq!(CmdSn(0).previous(), CmdSn(u32::MAX));
        assert_eq!(CmdSn(u32::MAX).steps_to(CmdSn(2)), 3);
    }

    #[test]
    fn numbers_half_the_space_apart_have_no_order() {
        assert!(!StatSn(0).precedes(StatSn(1 << 31)));
        assert!(!StatSn(1 << 31).precedes(StatSn(0)));
    }
}
