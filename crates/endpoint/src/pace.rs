//! How fast bulk may go while somebody types through the same relay, without IO.
//!
//! Both connections of a session share the queues on the way. Left to itself, TCP fills them, and
//! every keystroke waits behind a file. So the sender of bulk measures the round trip of the other
//! connection: what it takes beyond the least of late is queue. It sends as fast as was delivered
//! at best lately, a little faster while the queue is shorter than [`TARGET_US`] and a little slower
//! while it is longer. Only while there is interactive traffic: alone, bulk takes what it gets.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Queue that is aimed at, microseconds.
const TARGET_US: u64 = 4_000;
/// A queue so many times longer is drained quickly.
const FAR_TOO_LONG: u64 = 5;
/// How often the rate is set.
const INTERVAL: Duration = Duration::from_millis(100);
/// What was delivered is averaged over this, and at least over the second: acknowledgements come
/// in lumps.
const AVERAGE: (Duration, Duration) = (Duration::from_millis(1000), Duration::from_millis(400));
/// The best average of so long is what the way can carry.
const MEMORY: Duration = Duration::from_secs(4);
/// The least round trip is that of the last one or two of these.
const BASE_EPOCH: Duration = Duration::from_secs(30);
/// Below this bulk never goes: bytes per second.
const MIN_RATE: u64 = 64 * 1024;
/// Per mille that an empty queue adds to the rate, and one of twice the target takes away. With
/// more the rate would swing: what it does is seen a round trip later.
const GAIN: u64 = 20;
/// Per mille of what is delivered while the queue is far too long.
const DRAIN: u64 = 800;
/// A queue that is far too long for so long, whatever is done, is not ours.
const IN_VAIN: Duration = Duration::from_secs(3);
/// Samples of which the least counts: one that the machine delayed is no queue.
const SAMPLES: usize = 2;

/// Sets the rate of one session's bulk.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Least of this epoch and of the one before, and when this one began.
    base: (Duration, Option<Duration>, Instant),
    recent: VecDeque<Duration>,
    delivered: VecDeque<(Instant, u64)>,
    speeds: VecDeque<(Instant, u64)>,
    rate: Option<u64>,
    /// Since when the queue is far too long without a pause.
    long_since: Option<Instant>,
    next: Instant,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            base: (Duration::MAX, None, now),
            recent: VecDeque::new(),
            delivered: VecDeque::new(),
            speeds: VecDeque::new(),
            rate: None,
            long_since: None,
            next: now,
        }
    }

    /// A round trip of the connection that bulk does not use.
    pub(crate) fn handle_rtt(&mut self, rtt: Duration, now: Instant) {
        let (least, before, began) = &mut self.base;
        if now >= *began + BASE_EPOCH {
            (*before, *least, *began) = (Some(*least), Duration::MAX, now);
        }
        *least = rtt.min(*least);
        self.recent.push_back(rtt);
        if self.recent.len() > SAMPLES {
            self.recent.pop_front();
        }
    }

    /// Bulk goes over another connection now: what was delivered before says nothing of it.
    pub(crate) fn restart(&mut self) {
        self.delivered.clear();
        self.speeds.clear();
        self.rate = None;
        self.long_since = None;
    }

    /// `delivered`: bytes of bulk that the peer acknowledged, in all. Gives the rate, in bytes per
    /// second; to be asked also while nobody types, so that it is known when somebody does.
    pub(crate) fn handle_delivered(&mut self, delivered: u64, now: Instant) -> Option<u64> {
        if now < self.next {
            return self.rate;
        }
        self.next = now + INTERVAL;
        let (speed, link) = self.measure(delivered, now)?;
        let least = self.base.0.min(self.base.1.unwrap_or(Duration::MAX));
        let recent = self.recent.iter().min().copied()?;
        let queue = u64::try_from(recent.saturating_sub(least).as_micros()).unwrap_or(u64::MAX);
        let rate = if queue > FAR_TOO_LONG * TARGET_US {
            if now >= *self.long_since.get_or_insert(now) + IN_VAIN {
                // The way has become longer, or others fill the queue: giving way helps nobody.
                self.base = (recent, None, now);
                self.long_since = None;
            }
            speed.min(link) * DRAIN / 1000
        } else {
            self.long_since = None;
            link * (1000 + GAIN).saturating_sub(GAIN * queue / TARGET_US) / 1000
        };
        self.rate = Some(rate.max(MIN_RATE));
        self.rate
    }

    /// What is delivered now, and was at best lately, in bytes per second.
    fn measure(&mut self, delivered: u64, now: Instant) -> Option<(u64, u64)> {
        self.delivered.push_back((now, delivered));
        while self.delivered.get(1).is_some_and(|(at, _)| *at + AVERAGE.0 <= now) {
            self.delivered.pop_front();
        }
        let (since, before) = self.delivered.front().copied()?;
        let span = now.saturating_duration_since(since);
        if span < AVERAGE.1 {
            return None;
        }
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let speed = delivered.saturating_sub(before).saturating_mul(1000) / millis;
        self.speeds.push_back((now, speed));
        while self.speeds.front().is_some_and(|(at, _)| *at + MEMORY < now) {
            self.speeds.pop_front();
        }
        Some((speed, self.speeds.iter().map(|(_, speed)| *speed).max()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A link of that many bytes per second with a queue, everything seen a round trip later;
    /// every seventh sample is late by 20 ms for nothing. Gives mean throughput, and the 95th
    /// percentile of the queue after the first three seconds.
    fn run(link: u64, base: u32, seconds: u32) -> (u64, Duration) {
        let t0 = Instant::now();
        let mut pace = Pace::new(t0);
        pace.handle_rtt(MS * base, t0);
        let (mut queued, mut delivered, mut waits) = (link / 10, 0, vec![]);
        let mut past = VecDeque::from(vec![(Duration::ZERO, 0); (base / 10) as usize + 1]);
        let mut rate = link;
        for tick in 1..=seconds * 100 {
            let now = t0 + MS * 10 * tick;
            queued += rate / 100;
            let out = queued.min(link / 100);
            queued -= out;
            delivered += out;
            let wait = Duration::from_millis(queued * 1000 / link);
            past.push_back((wait, delivered));
            let (seen, acked) = past.pop_front().unwrap();
            if tick % (base / 10).max(10) == 0 {
                let noise = if tick % 7 == 0 { 20 } else { 0 };
                pace.handle_rtt(MS * base + seen + MS * noise, now);
            }
            if let Some(r) = pace.handle_delivered(acked, now) {
                rate = r;
            }
            if tick > 300 {
                waits.push(wait);
            }
        }
        waits.sort();
        (delivered / u64::from(seconds), waits[waits.len() * 95 / 100])
    }

    #[test]
    fn the_queue_stays_short_and_the_link_busy() {
        for link in [250_000, 2_500_000, 25_000_000] {
            for base in [10, 50, 100, 200] {
                let (speed, queue) = run(link, base, 40);
                assert!(speed > link * 90 / 100, "{speed} of {link} at {base} ms");
                assert!(queue < 20 * MS, "{queue:?} at {link}, {base} ms");
            }
        }
    }

    #[test]
    fn a_longer_way_is_not_a_queue_for_ever() {
        let t0 = Instant::now();
        let mut pace = Pace::new(t0);
        pace.handle_rtt(50 * MS, t0);
        let (mut delivered, mut rate, mut least) = (0, 1_000_000, 1_000_000);
        for tick in 1..=150 {
            let now = t0 + MS * 100 * tick;
            pace.handle_rtt(90 * MS, now);
            delivered += rate / 10;
            rate = pace.handle_delivered(delivered, now).unwrap_or(rate);
            least = least.min(rate);
        }
        assert!(least < 500_000 && rate > least * 6 / 5, "{least}, then {rate}");
    }
}
