//! Times of the week: `mon-fri 07:00-19:00`, `22:00-06:00`, `sat,sun`, several after `;`.
//! Local time is given; nothing here reads a clock.

use std::fmt;

/// Minutes of a day.
const DAY: u16 = 24 * 60;
/// As the file writes them; the order is also the one of [`LocalTime::weekday`].
const NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
/// Spans in one text.
const MAX_SPANS: usize = 32;

/// A moment of the week on the computer's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTime {
    /// 0 is Monday.
    pub weekday: u8,
    /// Minute of the day.
    pub minute: u16,
}

impl LocalTime {
    /// What the computer's clock shows.
    pub fn now() -> Self {
        Self::of(&jiff::Zoned::now())
    }

    fn of(time: &jiff::Zoned) -> Self {
        let number = |n: i8| u16::from(n.unsigned_abs());
        Self {
            weekday: time.weekday().to_monday_zero_offset().unsigned_abs(),
            minute: number(time.hour()) * 60 + number(time.minute()),
        }
    }

    fn yesterday(self) -> u8 {
        (self.weekday + 6) % 7
    }
}

/// When an entry holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hours {
    spans: Vec<Span>,
}

/// On the days of the mask from `start` to `end` (minutes of the day, end excluded); with
/// `end <= start` until `end` of the following day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    days: u8,
    start: u16,
    end: u16,
}

impl Hours {
    /// Reads the text of the file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let explain = |reason: String| {
            format!(
                "\"{}\": {reason}; write hours like \"mon-fri 07:00-19:00\"",
                text.escape_debug()
            )
        };
        let spans = text.split(';').map(Span::parse).collect::<Result<Vec<_>, _>>();
        let spans = spans.map_err(explain)?;
        if spans.len() > MAX_SPANS {
            return Err(explain(format!("more than {MAX_SPANS} times")));
        }
        Ok(Self { spans })
    }

    /// Do they include this moment?
    pub fn contains(&self, now: LocalTime) -> bool {
        self.spans.iter().any(|span| span.contains(now))
    }
}

impl Span {
    fn parse(text: &str) -> Result<Self, String> {
        let text = text.to_ascii_lowercase();
        let mut words = text.split_whitespace();
        let (first, second) = (words.next().ok_or("no time is given")?, words.next());
        if words.next().is_some() {
            return Err("more than days and times".to_owned());
        }
        let is_time = |word: &str| word.starts_with(|c: char| c.is_ascii_digit());
        let (days, times) = match second {
            Some(times) => (parse_days(first)?, Some(times)),
            None if is_time(first) => (0x7F, Some(first)),
            None => (parse_days(first)?, None),
        };
        let Some(times) = times else { return Ok(Self { days, start: 0, end: DAY }) };
        let (start, end) = times.split_once('-').ok_or("a time is from-to")?;
        let (start, end) = (parse_time(start)?, parse_time(end)?);
        if start == end || start == DAY {
            return Err("a time ends where it begins: for whole days write 00:00-24:00".to_owned());
        }
        Ok(Self { days, start, end })
    }

    fn contains(self, now: LocalTime) -> bool {
        let on = |day: u8| self.days & (1 << day) != 0;
        if self.start < self.end {
            on(now.weekday) && (self.start..self.end).contains(&now.minute)
        } else {
            (on(now.weekday) && now.minute >= self.start)
                || (on(now.yesterday()) && now.minute < self.end)
        }
    }
}

fn parse_days(text: &str) -> Result<u8, String> {
    let day = |name: &str| {
        let position = NAMES.iter().position(|known| *known == name);
        let unknown = || format!("\"{}\" is not a day (mon, tue, … sun)", name.escape_debug());
        position.and_then(|p| u8::try_from(p).ok()).ok_or_else(unknown)
    };
    let mut days = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut at, last) = (day(first)?, day(last)?);
        days |= 1 << at;
        // "sat-mon" goes over the end of the week.
        while at != last {
            at = (at + 1) % 7;
            days |= 1 << at;
        }
    }
    Ok(days)
}

fn parse_time(text: &str) -> Result<u16, String> {
    let wrong = || format!("\"{}\" is not a time like 07:00", text.escape_debug());
    let number = |digits: &str| -> Option<u16> {
        let plain = digits.bytes().all(|b| b.is_ascii_digit()) && digits.len() <= 2;
        digits.parse().ok().filter(|_| plain)
    };
    let (hour, minute) = text.split_once(':').ok_or_else(wrong)?;
    let (hour, minute) = number(hour).zip(number(minute)).ok_or_else(wrong)?;
    let time = hour * 60 + minute;
    if minute < 60 && time <= DAY { Ok(time) } else { Err(wrong()) }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, span) in self.spans.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            let names = NAMES.iter().enumerate().filter(|(day, _)| span.days & (1 << day) != 0);
            let names: Vec<&str> = names.map(|(_, name)| *name).collect();
            let time = |t: u16| format!("{:02}:{:02}", t / 60, t % 60);
            write!(f, "{} {}-{}", names.join(","), time(span.start), time(span.end))?;
        }
        Ok(())
    }
}
