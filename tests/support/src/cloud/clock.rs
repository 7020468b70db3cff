//! Times as `OpenStack` writes them: UTC, microseconds, with `Z` at Keystone and without at Cinder.

use std::time::{SystemTime, UNIX_EPOCH};

/// `2026-11-22T18:35:54.000000`; with `micros`, the fraction too.
pub(super) fn text(time: SystemTime, micros: bool) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let fraction = if micros { since.subsec_micros() } else { 0 };
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{fraction:06}",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Days since 1970-01-01 as a date of the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    let mut year = 1970;
    let mut left = days;
    while left >= days_of(year) {
        left -= days_of(year);
        year += 1;
    }
    let mut month = 1;
    for length in months(year) {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

fn days_of(year: u64) -> u64 {
    months(year).iter().sum()
}

fn months(year: u64) -> [u64; 12] {
    [
        31,
        28 + u64::from(is_leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn seconds_since_1970_become_dates() {
        // date -u -d @N
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000"),
            (951_782_399, "2000-02-28T23:59:59.000000"),
            (951_782_400, "2000-02-29T00:00:00.000000"),
            (1_795_372_554, "2026-11-22T18:35:54.000000"),
            (4_107_542_400, "2100-03-01T00:00:00.000000"),
        ] {
            assert_eq!(
                text(UNIX_EPOCH + Duration::from_secs(seconds), false),
                expected
            );
        }
        let time = UNIX_EPOCH + Duration::from_micros(5);
        assert_eq!(text(time, true), "1970-01-01T00:00:00.000005");
    }
}
