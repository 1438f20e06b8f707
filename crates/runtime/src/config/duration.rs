//! Durations as people write them: `15m`, `1h30m`, `500ms`, `0`.

use std::time::Duration;

/// Units, longest first, in milliseconds.
const UNITS: &[(&str, u64)] =
    &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads one or more numbers with units `d`, `h`, `m`, `s`, `ms`, each unit at most once and in
/// falling order; `0` needs none. The error says what is wrong.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const EXAMPLES: &str = "write it like 15m, 1h30m or 500ms";
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut units = UNITS.iter();
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (digits, after) = split(rest, |character| character.is_ascii_digit());
        let (unit, after) = split(after, |character| character.is_ascii_alphabetic());
        let number: u64 =
            digits.parse().map_err(|_| format!("\"{text}\" is not a duration: {EXAMPLES}"))?;
        let (_, factor) = units
            .find(|(name, _)| *name == unit)
            .ok_or_else(|| format!("\"{text}\" has a wrong or misplaced unit: {EXAMPLES}"))?;
        total = number
            .checked_mul(*factor)
            .and_then(|milliseconds| total.checked_add(milliseconds))
            .ok_or_else(|| format!("\"{text}\" is too long a time"))?;
        rest = after;
    }
    if text.is_empty() {
        Err(format!("empty: {EXAMPLES}"))
    } else {
        Ok(Duration::from_millis(total))
    }
}

/// [`parse_duration`] for options where no time at all makes no sense.
pub fn parse_some_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("must be more than nothing".to_owned()),
        time => Ok(time),
    }
}

/// Writes a duration so that [`parse_duration`] reads it; parts of a millisecond are cut.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, factor) in UNITS {
        if rest >= *factor {
            text.push_str(&format!("{}{unit}", rest / factor));
            rest %= factor;
        }
    }
    if text.is_empty() { "0".to_owned() } else { text }
}

fn split(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    let end = text.find(|character| !belongs(character)).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_the_forms_of_the_contract() {
        for (text, milliseconds) in
            [("15m", 900_000), ("1h30m", 5_400_000), ("500ms", 500), ("0", 0), ("1d2s", 86_402_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)));
            assert_eq!(format_duration(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn refuses_what_could_be_misread() {
        for text in ["", "15", "m", "1m1h", "5m5m", "1.5h", "-1s", "1 m", "99999999999999d", "1é"]
        {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
