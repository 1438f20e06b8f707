//! What the figures say: tables for people, and the bars that decide the exit code.

use std::{
    fmt::{self, Write as _},
    fs,
};

use crate::{
    ssh,
    suite::{Figures, Opening, Sample},
};

/// The bars, as the project has promised them.
const RELAYED_CPU: f64 = 1.0;
const RELAYED_THROUGHPUT: f64 = 1.0;
const RELAY_CPU: f64 = 0.12;
const DIRECT_CPU: f64 = 1.1;
const DIRECT_THROUGHPUT: f64 = 0.9;
const ROUND_TRIP: f64 = 1.2;
const OPEN_MS: f64 = 50.0;
/// A machine with more runnable processes than that beside ours gives no fair throughput.
const CROWDED: f64 = 1.0;

const DIRECTIONS: [&str; 2] = ["up", "down"];

/// The written report.
pub(crate) struct Report {
    text: String,
    bars: Vec<Bar>,
}

struct Bar {
    what: String,
    limit: String,
    value: String,
    passed: bool,
}

/// Least, median, most.
#[derive(Clone, Copy)]
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let upper = *values.get(values.len() / 2)?;
        let lower = *values.get((values.len() - 1) / 2)?;
        Some(Self { least, median: f64::midpoint(lower, upper), most })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} ({:.3}–{:.3})", self.median, self.least, self.most)
    }
}

impl Sample {
    fn cpu_per_gb(&self) -> f64 {
        self.cpu.values().sum::<f64>() / self.gigabytes
    }

    fn throughput(&self) -> f64 {
        self.gigabytes * 8.0 / self.seconds
    }
}

impl Report {
    /// Makes the tables and judges the bars.
    pub(crate) fn new(figures: &Figures, rounds: u32, bytes: u64) -> Self {
        let mut report = Self { text: String::new(), bars: Vec::new() };
        // Writing to a string cannot fail.
        let _ = report.write(figures, rounds, bytes);
        report
    }

    /// Whether every bar that was measured was met.
    pub(crate) fn passed(&self) -> bool {
        self.bars.iter().all(|bar| bar.passed)
    }

    fn write(&mut self, figures: &Figures, rounds: u32, bytes: u64) -> fmt::Result {
        self.head(figures, rounds, bytes)?;
        if !figures.bulk.is_empty() {
            self.bulk(figures)?;
        }
        if !figures.ping.is_empty() {
            self.ping(figures)?;
        }
        if !figures.open.is_empty() {
            self.open(&figures.open)?;
        }
        self.relay_bar(figures);
        writeln!(self.text, "\n## Bars\n\n| Bar | Limit | Measured | |\n|---|---|---|---|")?;
        for bar in &self.bars {
            let verdict = if bar.passed { "pass" } else { "**FAIL**" };
            writeln!(self.text, "| {} | {} | {} | {verdict} |", bar.what, bar.limit, bar.value)?;
        }
        Ok(())
    }

    fn head(&mut self, figures: &Figures, rounds: u32, bytes: u64) -> fmt::Result {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let text = &mut self.text;
        writeln!(text, "# Adit, side by side\n")?;
        writeln!(text, "Linux {}, {}, {cores} cores. ", kernel.trim(), processor())?;
        let gb = bytes / 1_000_000;
        writeln!(
            text,
            "Two network namespaces, veth, MTU 1500, TCP cubic; {rounds} interleaved rounds of {gb} MB \
             each way; medians, in parentheses the least and the most. CPU seconds are those of all \
             processes of a tunnel; source and sink are not counted. {}.",
            ssh::version().unwrap_or_default()
        )?;
        let (Some(before), Some(after)) = figures.load else { return Ok(()) };
        writeln!(text, "\nLoad average before: {before:.1}, after: {after:.1}.")?;
        if before > CROWDED {
            writeln!(
                text,
                "**The machine was busy with other work:** throughput and round trips suffer from \
                 it, each contestant in its turn; CPU seconds less so."
            )?;
        }
        Ok(())
    }

    fn bulk(&mut self, figures: &Figures) -> fmt::Result {
        writeln!(
            self.text,
            "\n## Bulk\n\n| Carrier | | Gb/s | CPU s/GB | of it |\n|---|---|---|---|---|"
        )?;
        for ((name, direction), samples) in &figures.bulk {
            let rate = Spread::of(samples.iter().map(Sample::throughput));
            let cpu = Spread::of(samples.iter().map(Sample::cpu_per_gb));
            if let (Some(rate), Some(cpu)) = (rate, cpu) {
                let parts = parts(samples);
                writeln!(self.text, "| {name} | {direction} | {rate} | {cpu} | {parts} |")?;
            }
        }
        writeln!(
            self.text,
            "\n| Ratio, round by round | | Throughput | CPU s/GB |\n|---|---|---|---|"
        )?;
        self.compare(figures, "relayed", "ssh", (RELAYED_CPU, RELAYED_THROUGHPUT))?;
        self.compare(figures, "direct", "quinn", (DIRECT_CPU, DIRECT_THROUGHPUT))
    }

    fn compare(
        &mut self,
        figures: &Figures,
        ours: &'static str,
        theirs: &'static str,
        (cpu_limit, rate_limit): (f64, f64),
    ) -> fmt::Result {
        for direction in DIRECTIONS {
            let (Some(a), Some(b)) =
                (figures.bulk.get(&(ours, direction)), figures.bulk.get(&(theirs, direction)))
            else {
                continue;
            };
            let pairs = || a.iter().zip(b);
            let cpu = Spread::of(pairs().map(|(a, b)| a.cpu_per_gb() / b.cpu_per_gb()));
            let rate = Spread::of(pairs().map(|(a, b)| a.throughput() / b.throughput()));
            let (Some(cpu), Some(rate)) = (cpu, rate) else { continue };
            writeln!(self.text, "| {ours} : {theirs} | {direction} | {rate} | {cpu} |")?;
            let what = |unit| format!("{ours}, {direction}: {unit} by {theirs}'s");
            self.at_most(what("CPU s/GB"), cpu.median, cpu_limit, "×");
            self.at_least(what("throughput"), rate.median, rate_limit, "×");
        }
        Ok(())
    }

    fn ping(&mut self, figures: &Figures) -> fmt::Result {
        writeln!(
            self.text,
            "\n## One byte there and back, µs\n\nAll processes on one processor: where the scheduler \
             puts them decides otherwise.\n\n| Carrier | Best round | Rounds |\n|---|---|---|"
        )?;
        let mut best = Vec::new();
        for (name, rounds) in &figures.ping {
            let Some(spread) = Spread::of(rounds.iter().copied()) else { continue };
            writeln!(self.text, "| {name} | {:.1} | {spread} |", spread.least)?;
            best.push((*name, spread.least));
        }
        let of = |name| best.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        let Some(ssh) = of("ssh") else { return Ok(()) };
        for carrier in ["relayed", "direct"] {
            if let Some(ours) = of(carrier) {
                let what = format!("{carrier}: round trip by ssh's");
                self.at_most(what, ours / ssh, ROUND_TRIP, "×");
            }
        }
        Ok(())
    }

    fn open(&mut self, openings: &[Opening]) -> fmt::Result {
        writeln!(
            self.text,
            "\n## Opening: start of the console to the first byte of the target, ms\n\n\
             | | |\n|---|---|"
        )?;
        type Value = fn(&Opening) -> f64;
        let rows: [(&str, Value); 6] = [
            ("whole, audit subtracted", |o| o.total - o.audit),
            ("by the console's own clock, audit subtracted", |o| o.own - o.audit),
            ("whole", |o| o.total),
            ("audit", |o| o.audit),
            ("granted, by the console's clock", |o| o.granted),
            ("connect to first byte", |o| o.connect),
        ];
        for (what, value) in rows {
            if let Some(spread) = Spread::of(openings.iter().map(value)) {
                writeln!(self.text, "| {what} | {spread} |")?;
            }
        }
        if let Some(spread) = Spread::of(openings.iter().map(|o| o.total - o.audit)) {
            self.at_most("open to first byte".to_owned(), spread.median, OPEN_MS, "ms");
        }
        Ok(())
    }

    fn relay_bar(&mut self, figures: &Figures) {
        for direction in DIRECTIONS {
            let samples = figures.bulk.get(&("relay alone", direction));
            let cpu = samples.and_then(|s| Spread::of(s.iter().map(Sample::cpu_per_gb)));
            if let Some(cpu) = cpu {
                let what = format!("relay alone, {direction}: CPU s/GB");
                self.at_most(what, cpu.median, RELAY_CPU, "s/GB");
            }
        }
    }

    fn at_most(&mut self, what: String, value: f64, limit: f64, unit: &str) {
        let passed = value <= limit;
        self.bars.push(Bar {
            what,
            limit: format!("≤ {limit} {unit}"),
            value: format!("{value:.3}"),
            passed,
        });
    }

    fn at_least(&mut self, what: String, value: f64, limit: f64, unit: &str) {
        let passed = value >= limit;
        self.bars.push(Bar {
            what,
            limit: format!("≥ {limit} {unit}"),
            value: format!("{value:.3}"),
            passed,
        });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Median CPU seconds per GB of each process.
fn parts(samples: &[Sample]) -> String {
    let Some(first) = samples.first() else { return String::new() };
    let part = |name| {
        let of = |s: &Sample| s.cpu.get(name).copied().unwrap_or_default() / s.gigabytes;
        Spread::of(samples.iter().map(of)).map(|s| format!("{name} {:.2}", s.median))
    };
    first.cpu.keys().copied().filter_map(part).collect::<Vec<_>>().join(", ")
}

fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|l| l.starts_with("model name"));
    line.and_then(|l| l.split(": ").nth(1)).unwrap_or("unknown processor").to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn sample(seconds: f64, cpu: f64) -> Sample {
        Sample { seconds, gigabytes: 1.0, cpu: BTreeMap::from([("all", cpu)]) }
    }

    #[test]
    fn a_bar_is_judged_by_the_median_of_the_rounds_ratios() {
        let mut figures = Figures::default();
        // A round in which the machine was slow for both does not decide.
        figures
            .bulk
            .insert(("relayed", "up"), vec![sample(1.0, 1.0), sample(9.0, 9.0), sample(1.0, 0.9)]);
        figures
            .bulk
            .insert(("ssh", "up"), vec![sample(1.1, 1.2), sample(9.9, 9.5), sample(1.1, 1.2)]);
        let report = Report::new(&figures, 3, 1_000_000_000);
        assert!(report.passed(), "{report}");
        figures
            .bulk
            .insert(("relayed", "up"), vec![sample(1.0, 1.3), sample(9.0, 9.6), sample(1.0, 0.9)]);
        let report = Report::new(&figures, 3, 1_000_000_000);
        assert!(!report.passed(), "{report}");
        assert!(report.to_string().contains("**FAIL**"));
    }
}
