//! How many STUN requests are answered: per source prefix, and in all.
//!
//! A bounded table of token buckets without a clock of its own. It must never grow with the
//! number of sources that somebody makes up.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

/// Answers a second for one prefix; a NAT with a few hundred users behind it stays below.
const PREFIX_RATE: u32 = 200;
/// Answers a prefix may have at once after silence.
const PREFIX_BURST: u32 = 400;
/// Answers a second in all: what one core does, not more than a 100 Mbit/s line carries.
const TOTAL_RATE: u32 = 100_000;
/// Prefixes remembered; those beyond share one bucket.
const MAX_PREFIXES: usize = 16_384;
/// Full buckets are forgotten at most this often, because that walks the table.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

/// Token buckets by prefix.
#[derive(Debug)]
pub(super) struct RateLimit {
    prefixes: HashMap<IpAddr, Bucket>,
    /// For prefixes that found the table full.
    others: Bucket,
    total: Bucket,
    swept: Instant,
}

impl RateLimit {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            prefixes: HashMap::new(),
            others: Bucket::full(PREFIX_BURST, now),
            total: Bucket::full(TOTAL_RATE, now),
            swept: now,
        }
    }

    /// Whether a request from `source` is to be answered.
    pub(super) fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        let prefix = prefix(source);
        if self.prefixes.len() >= MAX_PREFIXES && !self.prefixes.contains_key(&prefix) {
            self.sweep(now);
        }
        let bucket = if self.prefixes.len() < MAX_PREFIXES || self.prefixes.contains_key(&prefix) {
            self.prefixes.entry(prefix).or_insert_with(|| Bucket::full(PREFIX_BURST, now))
        } else {
            &mut self.others
        };
        // The prefix pays first: a flooder must not empty the bucket of all.
        bucket.take(PREFIX_RATE, PREFIX_BURST, now) && self.total.take(TOTAL_RATE, TOTAL_RATE, now)
    }

    fn sweep(&mut self, now: Instant) {
        if now.saturating_duration_since(self.swept) >= SWEEP_INTERVAL {
            self.swept = now;
            let refill = Duration::from_secs_f64(f64::from(PREFIX_BURST) / f64::from(PREFIX_RATE));
            self.prefixes.retain(|_, b| now.saturating_duration_since(b.filled) < refill);
        }
    }
}

/// What one subscriber can send from: an IPv4 address, an IPv6 /56 (RFC 6177).
fn prefix(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(ip) => Ipv4Addr::into(ip),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 72)).into(),
    }
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn full(burst: u32, now: Instant) -> Self {
        Self { tokens: f64::from(burst), filled: now }
    }

    fn take(&mut self, rate: u32, burst: u32, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.filled).as_secs_f64() * f64::from(rate);
        self.tokens = (self.tokens + gained).min(f64::from(burst));
        self.filled = self.filled.max(now);
        let allowed = self.tokens >= 1.0;
        if allowed {
            self.tokens -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "test data")]
mod tests {
    use super::*;

    #[test]
    fn a_flooder_is_capped_and_others_are_served() {
        let now = Instant::now();
        let mut limit = RateLimit::new(now);
        let flooder: IpAddr = "192.0.2.1".parse().unwrap();
        let answered = (0..10_000).filter(|_| limit.allow(flooder, now)).count();
        assert_eq!(answered, PREFIX_BURST as usize);
        assert!(limit.allow("192.0.2.2".parse().unwrap(), now));
        assert!(limit.allow(flooder, now + Duration::from_millis(10)));
    }

    #[test]
    fn one_ipv6_subscriber_is_one_source() {
        let now = Instant::now();
        let mut limit = RateLimit::new(now);
        let answered = (0..10_000u128)
            .filter(|n| {
                let ip = Ipv6Addr::from_bits(0x2001_0db8_0000_0000_0000_0000_0000_0000 | n << 32);
                limit.allow(ip.into(), now)
            })
            .count();
        assert_eq!(answered, PREFIX_BURST as usize);
    }

    #[test]
    fn the_table_is_bounded_and_recovers() {
        let now = Instant::now();
        let mut limit = RateLimit::new(now);
        for n in 0..MAX_PREFIXES as u32 + 5_000 {
            limit.allow(Ipv4Addr::from_bits(0x0100_0000 + n).into(), now);
        }
        assert_eq!(limit.prefixes.len(), MAX_PREFIXES);
        let later = now + Duration::from_secs(5);
        assert!(limit.allow("198.51.100.9".parse().unwrap(), later));
        assert!(limit.prefixes.len() < 10);
    }
}
