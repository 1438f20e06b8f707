//! Wall-clock time as the contract prints it: RFC 3339, UTC, milliseconds.
//! Never for measuring or expiry: that is what `Instant` and the mediator's time are for.

use jiff::Timestamp;

/// Now, e.g. `2026-03-01T12:00:00.250Z`.
pub fn now_rfc3339() -> String {
    format_ms(unix_ms())
}

/// Milliseconds since 1970-01-01 UTC; 0 for a clock set before that.
pub fn unix_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

/// RFC 3339 text of a Unix time; a time beyond the year 9999 shows as the last one that exists.
pub fn format_ms(unix_ms: u64) -> String {
    let time = i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or(Timestamp::MAX);
    time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_utc_with_milliseconds() {
        assert_eq!(format_ms(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(format_ms(1_772_366_400_250), "2026-03-01T12:00:00.250Z");
        assert_eq!(format_ms(u64::MAX), "9999-12-30T22:00:00.999Z");
        assert!(unix_ms() > 1_700_000_000_000);
    }
}
