//! The command window: which command numbers the target takes now.
//!
//! Source: RFC 7143 §4.2.2.1.
//!
//! ```text
//!   ExpCmdSN .......... CmdSN .......... MaxCmdSN
//!   acknowledged <- |   ours next |  may leave -> | closed
//! ```

use crate::wire::header::ResponseNumbers;
use crate::wire::serial::CmdSn;

/// The command numbers of a session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    next: CmdSn,
    expected: CmdSn,
    maximum: CmdSn,
}

impl Window {
    /// A window as the last login response left it; `next` is the login's own `CmdSN`, which an
    /// immediate PDU does not consume.
    pub(crate) fn new(next: CmdSn, numbers: &ResponseNumbers) -> Self {
        // A login response that breaks the rule below leaves the window closed: the first regular
        // response opens it.
        let mut window = Self {
            next,
            expected: next,
            maximum: next.previous(),
        };
        window.update(numbers);
        window
    }

    /// Takes over what a response says.
    pub(crate) fn update(&mut self, numbers: &ResponseNumbers) {
        let (expected, maximum) = (numbers.exp_cmd_sn, numbers.max_cmd_sn);
        // RFC 7143 §4.2.2.1: with MaxCmdSN below ExpCmdSN - 1 both are to be ignored
        if maximum.precedes(expected.previous()) {
            return;
        }
        // RFC 7143 §4.2.2.1: only later numbers move the window
        if self.maximum.precedes(maximum) {
            self.maximum = maximum;
        }
        if self.expected.precedes(expected) {
            self.expected = expected;
        }
    }

    /// The number for the next command, consumed; `None` while the window is closed.
    pub(crate) fn take(&mut self) -> Option<CmdSn> {
        if !self.is_open() {
            return None;
        }
        let number = self.next;
        // RFC 7143 §4.2.2.1: CmdSN rises by one for each non-immediate command
        self.next = number.next();
        Some(number)
    }

    /// Whether the next command may leave.
    pub(crate) fn is_open(&self) -> bool {
        !self.maximum.precedes(self.next)
    }

    /// The number for an immediate PDU: the next one, not consumed.
    pub(crate) fn peek(&self) -> CmdSn {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::serial::StatSn;

    fn numbers(expected: u32, maximum: u32) -> ResponseNumbers {
        ResponseNumbers {
            stat_sn: StatSn(0),
            exp_cmd_sn: CmdSn(expected),
            max_cmd_sn: CmdSn(maximum),
        }
    }

    // RFC 7143 §4.2.2.1
    #[test]
    fn closed_window_gives_no_number_until_it_opens() {
        let mut window = Window::new(CmdSn(5), &numbers(5, 6));
        assert_eq!(window.take(), Some(CmdSn(5)));
        assert_eq!(window.take(), Some(CmdSn(6)));
        assert_eq!(window.take(), None);
        window.update(&numbers(7, 6));
        assert_eq!(window.take(), None);
        window.update(&numbers(7, 7));
        assert_eq!(window.take(), Some(CmdSn(7)));
        assert_eq!(window.peek(), CmdSn(8));
    }

    // RFC 7143 §4.2.2.1
    #[test]
    fn numbers_wrap_at_two_to_the_32() {
        let mut window = Window::new(CmdSn(u32::MAX), &numbers(u32::MAX, 1));
        assert_eq!(window.take(), Some(CmdSn(u32::MAX)));
        assert_eq!(window.take(), Some(CmdSn(0)));
        assert_eq!(window.take(), Some(CmdSn(1)));
        assert_eq!(window.take(), None);
        window.update(&numbers(2, 2));
        assert_eq!(window.take(), Some(CmdSn(2)));
    }

    // RFC 7143 §4.2.2.1
    #[test]
    fn older_and_contradictory_numbers_are_ignored() {
        let mut window = Window::new(CmdSn(1), &numbers(1, 10));
        window.update(&numbers(1, 4));
        window.update(&numbers(100, 50));
        for number in 1..=10 {
            assert_eq!(window.take(), Some(CmdSn(number)));
        }
        assert_eq!(window.take(), None);
    }
}
