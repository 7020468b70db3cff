//! Descriptors that this process was started with: listening sockets, and what the process before it gave to be held.
//!
//! Source: `sd_listen_fds(3)`: `LISTEN_FDS` descriptors from 3 on, named by `LISTEN_FDNAMES`, if `LISTEN_PID` is us.
//! `cinder-nbd supervise` cannot know our number before we run, nor put descriptors in place without code between fork
//! and exec; it says `CINDER_NBD_HELD="PARENT NUMBER=NAME NUMBER=NAME..."` instead, and is our parent.
//!
//! Invariants:
//! 1. Each descriptor is taken once, by the first call, and closed in child processes from then on.
//! 2. The environment is hostile: a number that is no open descriptor, or below 3, is passed over.
//!
//! The variables stay in the environment: the process numbers in them tell every child that they are not for it.

use std::collections::BTreeMap;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::FdFlags;

/// A descriptor, and the name it was given.
#[derive(Debug)]
pub struct Inherited {
    /// As whoever holds it was told; `unknown` if it was told nothing.
    pub name: String,
    /// Ours now.
    pub fd: OwnedFd,
}

/// The first descriptor that is passed (`SD_LISTEN_FDS_START`).
pub const FIRST: RawFd = 3;
/// Where our own supervisor says what it holds for us.
pub const HELD: &str = "CINDER_NBD_HELD";
/// More is no honest environment: systemd's own limit of a store that a unit can ask for is far above what we ask for.
pub const COUNT_MAX: usize = 1 << 16;

/// Takes what we were started with; every later call gets nothing.
///
/// To be called before this process opens anything of its own.
pub fn take() -> Vec<Inherited> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let variable = |name| std::env::var(name).ok();
    let names = told(
        std::process::id(),
        variable("LISTEN_PID").as_deref(),
        variable("LISTEN_FDS").as_deref(),
        variable("LISTEN_FDNAMES").as_deref(),
    );
    let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get());
    let held = variable(HELD).map(|text| held_by(parent, &text));
    let numbered = (FIRST..).zip(names).chain(held.unwrap_or_default());
    let owned = numbered.filter_map(|(number, name)| {
        let fd = own(number)?;
        Some(Inherited { name, fd })
    });
    owned.collect()
}

/// The value of `CINDER_NBD_HELD` for a child of process `parent`.
pub fn tell<'a>(parent: u32, held: impl Iterator<Item = (&'a str, RawFd)>) -> String {
    let words = held.map(|(name, number)| format!("{number}={name}"));
    let words: Vec<String> = std::iter::once(parent.to_string()).chain(words).collect();
    words.join(" ")
}

/// What process `parent` holds for us, by number and name, each number once.
fn held_by(parent: Option<i32>, text: &str) -> Vec<(RawFd, String)> {
    let mut words = text.split(' ');
    let theirs: Option<i32> = words.next().and_then(|word| word.parse().ok());
    if theirs.is_none() || theirs != parent {
        return Vec::new();
    }
    let mut held = BTreeMap::new();
    for word in words {
        if let Some((number, name)) = word.split_once('=')
            && let Ok(number) = number.parse::<RawFd>()
            && number >= FIRST
        {
            held.entry(number).or_insert_with(|| name.to_owned());
        }
    }
    held.into_iter().collect()
}

/// The names of the descriptors from `FIRST` on that are meant for process `pid`.
fn told(pid: u32, theirs: Option<&str>, count: Option<&str>, names: Option<&str>) -> Vec<String> {
    let is_ours = theirs.and_then(|text| text.parse().ok()) == Some(pid);
    let count = count.and_then(|text| text.parse().ok()).unwrap_or(0);
    if !is_ours || count > COUNT_MAX {
        return Vec::new();
    }
    let mut names = names.unwrap_or_default().split(':');
    let mut next = || match names.next() {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => "unknown".to_owned(),
    };
    (0..count).map(|_| next()).collect()
}

#[expect(
    unsafe_code,
    reason = "a descriptor that came by number is made an owned one"
)]
fn own(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: only asked whether it is open and marked, neither of which takes it from anybody; the borrow ends here.
    let borrowed = unsafe { rustix::fd::BorrowedFd::borrow_raw(number) };
    let flags = rustix::io::fcntl_getfd(borrowed).ok()?;
    rustix::io::fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC).ok()?;
    // SAFETY: it is open, as was just seen, and whoever started us gave it to us by number (`LISTEN_PID` is ours), so
    // nobody else in this process owns it; `take` does this once.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn names_are_in_order_and_missing_ones_are_unknown() {
        let told = |names| told(7, Some("7"), Some("3"), names);
        assert_eq!(told(Some("a:b.0.socket:c")), ["a", "b.0.socket", "c"]);
        assert_eq!(told(Some("a")), ["a", "unknown", "unknown"]);
        assert_eq!(told(None), ["unknown", "unknown", "unknown"]);
        assert_eq!(told(Some("a:b:c:d")), ["a", "b", "c"]);
    }

    #[test]
    fn what_is_not_for_us_or_no_number_is_nothing() {
        for (pid, count) in [
            (None, Some("1")),
            (Some("8"), Some("1")),
            (Some("7"), None),
            (Some("7"), Some("-1")),
            (Some("7"), Some("99999999999999999999")),
            (Some("7"), Some("65537")),
            (Some("x"), Some("1")),
        ] {
            assert!(
                told(7, pid, count, Some("a")).is_empty(),
                "{pid:?} {count:?}"
            );
        }
    }

    #[test]
    fn what_a_parent_holds_is_told_and_understood() {
        let held = [("a.0.socket", 9), ("a.0.journal", 4)];
        let text = tell(41, held.into_iter());
        assert_eq!(text, "41 9=a.0.socket 4=a.0.journal");
        let understood = held_by(Some(41), &text);
        let expected = [(4, "a.0.journal".to_owned()), (9, "a.0.socket".to_owned())];
        assert_eq!(understood, expected);
        assert!(held_by(Some(42), &text).is_empty());
        assert!(held_by(None, &text).is_empty());
        let odd = "41 2=stderr x=a 5 =b 99999999999=c 7=d 7=e  ";
        assert_eq!(held_by(Some(41), odd), [(7, "d".to_owned())]);
        assert!(held_by(Some(41), "").is_empty());
    }

    #[test]
    fn a_number_that_is_not_open_is_passed_over_and_one_that_is_becomes_ours() {
        assert!(own(1 << 20).is_none());
        let file = std::fs::File::open("/dev/null").unwrap();
        let copy = rustix::io::fcntl_dupfd_cloexec(&file, 100).unwrap();
        rustix::io::fcntl_setfd(&copy, FdFlags::empty()).unwrap();
        // Given away by number, as an environment does.
        let number = std::os::fd::IntoRawFd::into_raw_fd(copy);
        let owned = own(number).unwrap();
        assert_eq!(owned.as_raw_fd(), number);
        let flags = rustix::io::fcntl_getfd(&owned).unwrap();
        assert!(flags.contains(FdFlags::CLOEXEC));
    }
}
