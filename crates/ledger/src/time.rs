//! RFC 3339 times in UTC with milliseconds, the one form that audit lines use.
//!
//! Total functions over years 1970 to 9999; must never read a clock or a time zone.

const MS_PER_DAY: u64 = 86_400_000;
/// 9999-12-31T23:59:59.999Z, the last time that RFC 3339 can say.
pub const MAX_TIME_MS: u64 = 253_402_300_799_999;
/// Length of `2026-01-31T12:00:00.000Z`.
const LEN: usize = 24;

/// Formats milliseconds since 1970; later than year 9999 becomes [`MAX_TIME_MS`].
pub fn format_time(time_ms: u64) -> String {
    let time_ms = time_ms.min(MAX_TIME_MS);
    let (year, month, day) = civil_from_days(time_ms / MS_PER_DAY);
    let ms = time_ms % MS_PER_DAY;
    let mut out = String::with_capacity(LEN);
    for (value, width, after) in [
        (year, 4, '-'),
        (month, 2, '-'),
        (day, 2, 'T'),
        (ms / 3_600_000, 2, ':'),
        (ms / 60_000 % 60, 2, ':'),
        (ms / 1000 % 60, 2, '.'),
        (ms % 1000, 3, 'Z'),
    ] {
        push_padded(&mut out, value, width);
        out.push(after);
    }
    out
}

fn push_padded(out: &mut String, value: u64, width: u32) {
    for place in (0..width).rev() {
        let digit = value / 10_u64.pow(place) % 10;
        out.extend(u32::try_from(digit).ok().and_then(|d| char::from_digit(d, 10)));
    }
}

/// Reads what [`format_time`] writes, and nothing else.
pub fn parse_time(text: &str) -> Option<u64> {
    if text.len() != LEN || !text.is_ascii() {
        return None;
    }
    let number = |from: usize, len: usize| {
        let digits = text.get(from..from + len)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok())?
    };
    let days = days_from_civil(number(0, 4)?, number(5, 2)?, number(8, 2)?)?;
    let seconds = number(11, 2)? * 3600 + number(14, 2)? * 60 + number(17, 2)?;
    let time_ms = days * MS_PER_DAY + seconds * 1000 + number(20, 3)?;
    // Also rejects wrong separators, hours over 23, and days that a month does not have.
    (format_time(time_ms) == text).then_some(time_ms)
}

// Proleptic Gregorian calendar in 400-year eras that begin on 1 March, so that the leap day is
// the last of its year.
const DAYS_PER_ERA: u64 = 146_097;
const DAYS_TO_1970: u64 = 719_468;

fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let days = days + DAYS_TO_1970;
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn days_from_civil(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = year - u64::from(month <= 2);
    let (era, year_of_era) = (year / 400, year % 400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * DAYS_PER_ERA + day_of_era).checked_sub(DAYS_TO_1970)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times_read_back() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (2_147_483_648_001, "2038-01-19T03:14:08.001Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (MAX_TIME_MS, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(format_time(ms), text);
            assert_eq!(parse_time(text), Some(ms));
        }
        assert_eq!(format_time(u64::MAX), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in [
            "2026-02-29T00:00:00.000Z",
            "2026-01-01T24:00:00.000Z",
            "2026-01-01T00:00:60.000Z",
            "2026-01-01t00:00:00.000Z",
            "2026-01-01T00:00:00.000+",
            "2026-01-01T00:00:00.00éZ",
            "+026-01-01T00:00:00.000Z",
            "1969-12-31T23:59:59.999Z",
            "",
        ] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_time_reads_back_and_order_is_kept(a in 0..=MAX_TIME_MS, b in 0..=MAX_TIME_MS) {
            proptest::prop_assert_eq!(parse_time(&format_time(a)), Some(a));
            proptest::prop_assert_eq!(format_time(a).cmp(&format_time(b)), a.cmp(&b));
        }
    }
}
