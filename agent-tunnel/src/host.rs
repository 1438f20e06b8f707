//! What this computer says about itself. Only hints for people: nothing is decided by it.

use adit_protocol::{limits::MAX_TEXT, wire};
use adit_runtime::cli::escape_text;
use sysinfo::System;

/// Its name, made fit for a computer's name.
pub fn name() -> String {
    let name = System::host_name().unwrap_or_default();
    let name: String = escape_text(&name).replace('/', "-").chars().take(64).collect();
    if name.trim().is_empty() { "computer".to_owned() } else { name.trim().to_owned() }
}

/// Its system, e.g. `Debian GNU/Linux 13`: the same in every list, whoever tells it when.
pub fn os() -> String {
    let name = System::name().unwrap_or_else(|_| std::env::consts::OS.to_owned());
    let version = System::os_version().unwrap_or_default();
    bounded(format!("{name} {version}").trim().to_owned())
}

/// A check-in as far as it is about the computer.
pub fn check_in() -> wire::CheckIn {
    wire::CheckIn {
        os: os(),
        os_version: bounded(System::os_version().unwrap_or_default()),
        arch: std::env::consts::ARCH.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hostname: bounded(System::host_name().unwrap_or_default()),
        load_permille: load_permille(),
        uptime_s: System::uptime().unwrap_or(0),
        ..wire::CheckIn::default()
    }
}

/// One-minute load average per processor, in thousandths.
fn load_permille() -> u32 {
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    let load = System::load_average().map_or(0.0, |load| load.one) / processors as f64 * 1000.0;
    #[expect(clippy::cast_possible_truncation, reason = "clamped to the range of u32 just before")]
    let permille = load.clamp(0.0, 1_000_000.0) as u32;
    permille
}

fn bounded(text: String) -> String {
    text.chars().take(MAX_TEXT / 4).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn says_something_within_bounds() {
        assert!(!super::name().is_empty() && super::name().len() <= 256);
        let report = super::check_in();
        assert_eq!(report.os, super::os(), "two names for one system");
        assert!(!report.os.is_empty() && !report.arch.is_empty());
        assert!(report.load_permille <= 1_000_000);
    }
}
