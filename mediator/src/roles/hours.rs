//! Time windows: `mon-fri 07:00-19:00 Europe/Berlin`; several separated by commas; UTC if no
//! zone is named. A window may pass midnight (`22:00-06:00`): it belongs to the day it begins.

use std::{fmt, str::FromStr};

use jiff::{Timestamp, ToSpan, civil::Time, tz::TimeZone};

/// Windows in one condition.
const MAX_WINDOWS: usize = 16;
/// Bytes of the text.
pub(crate) const MAX_TEXT: usize = 256;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Why a text is no time window.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidHours {
    /// Not in the form.
    #[error("not a time window: \"{0}\"; write it like \"mon-fri 07:00-19:00 Europe/Berlin\"")]
    Form(String),
    /// Unknown zone.
    #[error("there is no time zone \"{0}\"")]
    Zone(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    /// By day of the week, from Monday.
    days: [bool; 7],
    /// Minutes since midnight.
    from: u16,
    /// Minutes since midnight, up to 2 × 1440 when it passes midnight.
    to: u16,
}

/// When something is allowed.
#[derive(Clone, Debug)]
pub(crate) struct Hours {
    windows: Vec<Window>,
    zone: TimeZone,
    text: String,
}

impl PartialEq for Hours {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}
impl Eq for Hours {}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Hours {
    /// If it is allowed at this time, until when (milliseconds since 1970).
    pub(crate) fn open_until(&self, at_ms: u64) -> Option<u64> {
        let at = Timestamp::from_millisecond(i64::try_from(at_ms).ok()?).ok()?;
        let local = at.to_zoned(self.zone.clone());
        let mut until: Option<u64> = None;
        // A window that passes midnight began yesterday.
        for back in [0, 1] {
            let Ok(day) = local.date().checked_sub(back.days()) else { continue };
            let weekday = usize::try_from(day.weekday().to_monday_zero_offset()).unwrap_or(0);
            for window in &self.windows {
                if !window.days.get(weekday).copied().unwrap_or(false) {
                    continue;
                }
                let moment = |minutes: u16| {
                    let start = day.to_datetime(Time::midnight());
                    let when = start.checked_add(i64::from(minutes).minutes()).ok()?;
                    let when = when.to_zoned(self.zone.clone()).ok()?;
                    u64::try_from(when.timestamp().as_millisecond()).ok()
                };
                if let (Some(from), Some(to)) = (moment(window.from), moment(window.to))
                    && (from..to).contains(&at_ms)
                {
                    until = until.max(Some(to));
                }
            }
        }
        until
    }
}

impl FromStr for Hours {
    type Err = InvalidHours;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || InvalidHours::Form(text.chars().take(64).collect());
        let lower = text.trim();
        if lower.len() > MAX_TEXT {
            return Err(form());
        }
        let (mut windows, mut zone) = (Vec::new(), None);
        for part in lower.split(',') {
            let mut words: Vec<&str> = part.split_whitespace().collect();
            if let Some(last) = words.last().copied()
                && last.contains(|c: char| c.is_ascii_alphabetic())
                && words.len() > 1
            {
                words.pop();
                let named = TimeZone::get(last).map_err(|_| InvalidHours::Zone(last.to_owned()))?;
                if zone.replace((named, last.to_owned())).is_some_and(|(_, old)| old != last) {
                    return Err(form());
                }
            }
            let (days, times) = match words.as_slice() {
                [times] => ([true; 7], *times),
                [days, times] => (parse_days(days).ok_or_else(form)?, *times),
                _ => return Err(form()),
            };
            windows.push(parse_times(days, times).ok_or_else(form)?);
        }
        if windows.is_empty() || windows.len() > MAX_WINDOWS {
            return Err(form());
        }
        let zone = zone.map_or(TimeZone::UTC, |(zone, _)| zone);
        let text = lower.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(Self { windows, zone, text })
    }
}

fn parse_days(text: &str) -> Option<[bool; 7]> {
    let index = |day: &str| DAYS.iter().position(|known| day.eq_ignore_ascii_case(known));
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (index(first)?, index(last)?);
    let mut days = [false; 7];
    for (n, day) in days.iter_mut().enumerate() {
        *day = if first <= last { (first..=last).contains(&n) } else { n >= first || n <= last };
    }
    Some(days)
}

fn parse_times(days: [bool; 7], text: &str) -> Option<Window> {
    let minutes = |text: &str| -> Option<u16> {
        let (hour, minute) = text.split_once(':')?;
        let plain = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
        if !plain(hour) || !plain(minute) {
            return None;
        }
        let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
        (hour < 24 && minute < 60 || (hour, minute) == (24, 0)).then_some(hour * 60 + minute)
    };
    let (from, to) = text.split_once('-')?;
    let (from, to) = (minutes(from)?, minutes(to)?);
    if from == to || from == 1440 {
        return None;
    }
    let to = if to < from { to + 1440 } else { to };
    Some(Window { days, from, to })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(time: &str) -> u64 {
        u64::try_from(time.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
    }

    #[test]
    fn windows_open_and_close_in_their_zone() {
        let week: Hours = "mon-fri 07:00-19:00 Europe/Berlin".parse().unwrap();
        // 2 March 2026 is a Monday; Berlin is an hour ahead, two from 29 March on.
        assert_eq!(week.open_until(ms("2026-03-02T05:59:59Z")), None);
        assert_eq!(week.open_until(ms("2026-03-02T06:00:00Z")), Some(ms("2026-03-02T18:00:00Z")));
        assert_eq!(week.open_until(ms("2026-03-02T18:00:00Z")), None);
        assert_eq!(week.open_until(ms("2026-03-30T05:00:00Z")), Some(ms("2026-03-30T17:00:00Z")));
        assert_eq!(week.open_until(ms("2026-03-01T10:00:00Z")), None);
        let night: Hours = "fri 22:00-06:00".parse().unwrap();
        assert_eq!(night.open_until(ms("2026-03-07T05:00:00Z")), Some(ms("2026-03-07T06:00:00Z")));
        assert_eq!(night.open_until(ms("2026-03-06T05:00:00Z")), None);
        let always: Hours = "00:00-24:00".parse().unwrap();
        assert_eq!(always.open_until(ms("2026-03-07T23:59:59Z")), Some(ms("2026-03-08T00:00:00Z")));
        let two: Hours = "mon 08:00-12:00, sat-sun 10:00-11:00".parse().unwrap();
        assert!(two.open_until(ms("2026-03-01T10:30:00Z")).is_some());
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "mon",
            "7-19",
            "mon 07:00",
            "mon-fri 7:00-19:00",
            "25:00-26:00",
            "08:00-08:00",
            "x 08:00-09:00",
            "08:00-09:00 Mars/Olympus",
            "24:00-08:00",
        ] {
            assert!(bad.parse::<Hours>().is_err(), "{bad}");
        }
    }
}
