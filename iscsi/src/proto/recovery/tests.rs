//! Schedules in invented time.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn policy(replacement: u64) -> RecoveryPolicy {
    RecoveryPolicy {
        replacement_timeout: ReplacementTimeout::After(
            SECOND * u32::try_from(replacement).unwrap(),
        ),
        ..RecoveryPolicy::default()
    }
}

/// Open over path 0 of `paths`, then lost.
fn lost(paths: usize, wait: Duration, now: Instant) -> Recovery {
    let mut recovery = Recovery::opened(policy(120), paths, 0, now);
    recovery.handle_lost(wait, now);
    recovery
}

// E8
#[test]
fn first_attempt_waits_for_what_the_target_asked_and_no_longer() {
    let now = Instant::now();
    let mut recovery = lost(1, 2 * SECOND, now);
    assert_eq!(recovery.poll_timeout(), Some(now + 2 * SECOND));
    assert_eq!(recovery.poll_attempt(now + SECOND), None);
    // RFC 7143 §13.15: not even if somebody is in a hurry
    recovery.cut_short(now + SECOND);
    assert_eq!(recovery.poll_attempt(now + SECOND), None);
    assert_eq!(recovery.poll_attempt(now + 2 * SECOND), Some(0));
    assert_eq!(
        recovery.poll_attempt(now + 2 * SECOND),
        None,
        "one at a time"
    );
}

#[test]
fn pauses_double_up_to_their_maximum_and_can_be_cut_short() {
    let mut now = Instant::now();
    let mut recovery = lost(1, Duration::ZERO, now);
    for expected in [1, 2, 4, 8, 16, 30, 30] {
        assert_eq!(recovery.poll_attempt(now), Some(0));
        recovery.handle_failed(Duration::ZERO, now, u32::MAX);
        let until = recovery.poll_timeout().unwrap();
        assert_eq!(until - now, expected * SECOND);
        now = until;
    }
    assert_eq!(recovery.poll_attempt(now), Some(0));
    recovery.handle_failed(Duration::ZERO, now, 0);
    assert_eq!(
        recovery.poll_timeout(),
        Some(now + 15 * SECOND),
        "half is chance"
    );
    recovery.cut_short(now);
    assert_eq!(recovery.poll_attempt(now), Some(0));
}

// E11
#[test]
fn held_io_fails_once_and_attempts_go_on() {
    let now = Instant::now();
    let mut recovery = Recovery::opened(policy(10), 1, 0, now);
    recovery.handle_lost(Duration::ZERO, now);
    assert_eq!(recovery.poll_attempt(now), Some(0));
    assert!(!recovery.handle_timeout(now + 9 * SECOND));
    assert_eq!(recovery.poll_timeout(), Some(now + 10 * SECOND));
    assert!(recovery.handle_timeout(now + 10 * SECOND));
    assert!(!recovery.handle_timeout(now + 11 * SECOND), "once");
    assert!(recovery.is_expired());
    recovery.handle_failed(Duration::ZERO, now + 11 * SECOND, 0);
    let next = recovery.poll_timeout().unwrap();
    assert_eq!(recovery.poll_attempt(next), Some(0));
    assert_eq!(
        recovery.handle_proved(Preference::Optimal, next),
        Proved::Open
    );
    assert!(!recovery.is_expired());
    assert_eq!((recovery.lost_at(), recovery.poll_timeout()), (None, None));
}

#[test]
fn zero_fails_at_once_and_never_does_not() {
    let now = Instant::now();
    let mut recovery = Recovery::opened(policy(0), 1, 0, now);
    recovery.handle_lost(2 * SECOND, now);
    assert!(recovery.handle_timeout(now));
    let patient = RecoveryPolicy {
        replacement_timeout: ReplacementTimeout::Never,
        ..RecoveryPolicy::default()
    };
    let mut recovery = Recovery::opened(patient, 1, 0, now);
    recovery.handle_lost(Duration::ZERO, now);
    assert!(!recovery.handle_timeout(now + 1_000_000 * SECOND));
}

#[test]
fn a_round_goes_over_all_paths_without_a_pause_beginning_with_the_last_good_one() {
    let now = Instant::now();
    let mut recovery = Recovery::opened(policy(120), 3, 1, now);
    recovery.handle_lost(Duration::ZERO, now);
    for path in [1, 2, 0] {
        assert_eq!(recovery.poll_attempt(now), Some(path));
        recovery.handle_failed(Duration::ZERO, now, u32::MAX);
    }
    assert_eq!(recovery.poll_timeout(), Some(now + SECOND));
    assert_eq!(recovery.poll_attempt(now + SECOND), Some(1));
}

#[test]
fn a_path_that_is_left_is_the_last_to_be_tried() {
    let now = Instant::now();
    let mut recovery = Recovery::opened(policy(120), 3, 1, now);
    recovery.handle_path_left(now);
    for path in [2, 0, 1] {
        assert_eq!(recovery.poll_attempt(now), Some(path));
        recovery.handle_failed(Duration::ZERO, now, 0);
    }
}

// SPC-4 §5.15: a path by a detour is taken only if there is no better one
#[test]
fn an_optimal_path_is_looked_for_before_a_usable_one_is_taken() {
    let now = Instant::now();
    let mut recovery = lost(3, Duration::ZERO, now);
    assert_eq!(recovery.poll_attempt(now), Some(0));
    assert_eq!(
        recovery.handle_proved(Preference::Usable, now),
        Proved::LookFurther
    );
    assert_eq!(recovery.poll_attempt(now), Some(1));
    recovery.handle_failed(Duration::ZERO, now, 0);
    assert_eq!(recovery.poll_attempt(now), Some(2));
    recovery.handle_failed(Duration::ZERO, now, 0);
    assert_eq!(
        recovery.poll_attempt(now),
        Some(0),
        "the best that was left"
    );
    assert_eq!(
        recovery.handle_proved(Preference::Usable, now),
        Proved::Open
    );

    let mut recovery = lost(2, Duration::ZERO, now);
    assert_eq!(recovery.poll_attempt(now), Some(0));
    assert_eq!(
        recovery.handle_proved(Preference::Usable, now),
        Proved::LookFurther
    );
    assert_eq!(recovery.poll_attempt(now), Some(1));
    assert_eq!(
        recovery.handle_proved(Preference::Optimal, now),
        Proved::Open
    );
}

#[test]
fn a_fallback_that_fails_too_ends_the_round() {
    let now = Instant::now();
    let mut recovery = lost(2, Duration::ZERO, now);
    assert_eq!(recovery.poll_attempt(now), Some(0));
    assert_eq!(
        recovery.handle_proved(Preference::Usable, now),
        Proved::LookFurther
    );
    assert_eq!(recovery.poll_attempt(now), Some(1));
    recovery.handle_failed(Duration::ZERO, now, 0);
    assert_eq!(recovery.poll_attempt(now), Some(0));
    recovery.handle_failed(Duration::ZERO, now, u32::MAX);
    assert_eq!(recovery.poll_timeout(), Some(now + SECOND));
}

#[test]
fn replacement_timeouts_are_read_and_written() {
    let after = |seconds| ReplacementTimeout::After(Duration::from_secs(seconds));
    for (text, timeout) in [
        ("0", after(0)),
        ("120", after(120)),
        ("604800", after(604_800)),
        ("never", ReplacementTimeout::Never),
    ] {
        assert_eq!(text.parse(), Ok(timeout));
        assert_eq!(timeout.to_string(), text);
    }
    for text in ["", "-1", "604801", "2m", "Never", "99999999999999999999"] {
        let error = text.parse::<ReplacementTimeout>().unwrap_err();
        assert!(error.to_string().starts_with("must be a number of seconds"));
    }
}

#[test]
fn a_failed_attempt_may_ask_for_a_longer_pause() {
    let now = Instant::now();
    let mut recovery = lost(2, Duration::ZERO, now);
    assert_eq!(recovery.poll_attempt(now), Some(0));
    recovery.handle_failed(2 * SECOND, now, 0);
    recovery.cut_short(now);
    assert_eq!(recovery.poll_attempt(now + SECOND), None);
    assert_eq!(recovery.poll_attempt(now + 2 * SECOND), Some(1));
}
