//! The brake on a simulated link with a queue that drops what does not fit, and ends that are late
//! now and then.

#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use std::collections::VecDeque;

use super::*;

/// Bytes of a packet.
const PACKET: u64 = 1_400;
/// The first window, as quinn has it.
const FIRST: u64 = 12_000;
/// Packets acknowledged after a missing one until that counts as lost (RFC 9002 §6.1.1).
const REORDERING: u64 = 3;

/// Bytes a second, round trip in microseconds, queue in microseconds.
#[derive(Clone, Copy, Debug)]
struct Link {
    rate: u64,
    rtt: u64,
    queue: u64,
}

impl Link {
    fn bytes_in(self, micros: u64) -> u64 {
        self.rate * micros / 1_000_000
    }
}

/// What came of it.
#[derive(Debug, Default)]
struct Outcome {
    /// In each tenth of a second.
    acknowledged: Vec<u64>,
    lost: u64,
    window: u64,
}

impl Outcome {
    /// From one second on, for one second.
    fn soon(&self) -> u64 {
        self.acknowledged.iter().skip(10).take(10).sum()
    }
}

/// Two seconds of a sender that has `credit` bytes to send for each round trip. `late`: times at
/// which the receiver does not get to run, and for how long. After slow start the window
/// grows as in Reno.
fn run(
    link: Link,
    credit: u64,
    late: &[(u64, u64)],
    mut brake: Option<Brake>,
    t0: Instant,
) -> Outcome {
    let at = |micros| t0 + Duration::from_micros(micros);
    let mut out = Outcome { acknowledged: vec![0; 20], window: FIRST, ..Outcome::default() };
    let (mut now, mut free, mut in_flight, mut number, mut last_ack) = (0, 0, 0, 0, 0);
    // When they will be acknowledged, which, and when they were sent.
    let mut acks: VecDeque<(u64, u64, u64)> = VecDeque::new();
    let mut dropped: VecDeque<(u64, u64)> = VecDeque::new();
    let (mut slow_start, mut recovery) = (true, 0);
    while now < 2_000_000 {
        while in_flight + PACKET <= out.window.min(credit) {
            free = now.max(free);
            if free - now > link.queue {
                dropped.push_back((number, now));
            } else {
                free += PACKET * 1_000_000 / link.rate;
                let due = free + link.rtt;
                let due = late
                    .iter()
                    .find(|(from, d)| (*from..from + d).contains(&due))
                    .map_or(due, |(from, d)| from + d);
                last_ack = due.max(last_ack);
                acks.push_back((last_ack, number, now));
            }
            in_flight += PACKET;
            number += 1;
        }
        let Some((next, ..)) = acks.front() else { break };
        now = *next;
        let mut newest = 0;
        while let Some((_, which, sent)) = acks.pop_front_if(|(due, ..)| *due == now) {
            in_flight -= PACKET;
            newest = which;
            if let Some(tenth) = out.acknowledged.get_mut((now / 100_000) as usize) {
                *tenth += PACKET;
            }
            let growth = brake.as_mut().map_or(Growth::By(PACKET), |b| {
                b.handle_ack(at(now), at(sent), PACKET, out.window)
            });
            match growth {
                Growth::By(bytes) if slow_start => out.window += bytes,
                // As Reno does, which Cubic never does worse than.
                Growth::By(bytes) if sent >= recovery => out.window += bytes * PACKET / out.window,
                Growth::Full if slow_start => {
                    (slow_start, recovery) = (false, now);
                    out.window = out.window * 7 / 10;
                }
                _ => {}
            }
        }
        if let Some(brake) = &mut brake {
            brake.handle_end_of_acks(in_flight);
        }
        while let Some((_, sent)) = dropped.pop_front_if(|(n, _)| *n + REORDERING <= newest) {
            in_flight -= PACKET;
            out.lost += PACKET;
            if sent >= recovery {
                (slow_start, recovery) = (false, now);
                out.window = out.window * 7 / 10;
                brake.as_mut().map(Brake::handle_congestion);
            }
        }
    }
    out
}

/// A sequence that looks random and is the same in each run (xorshift).
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

const MBIT: u64 = 1_000_000 / 8;

#[test]
fn slow_start_ends_before_a_long_queue_overflows() {
    let t0 = Instant::now();
    for (mbit, rtt_ms, queue_ms) in
        [(20, 20, 100), (200, 20, 100), (50, 10, 60), (100, 40, 200), (20, 100, 500)]
    {
        let link = Link { rate: mbit * MBIT, rtt: rtt_ms * 1000, queue: queue_ms * 1000 };
        let plain = run(link, u64::MAX, &[], None, t0);
        let braked = run(link, u64::MAX, &[], Some(Brake::new(t0)), t0);
        // Left alone, more than the whole path holds is lost.
        assert!(plain.lost > link.bytes_in(link.rtt), "{link:?}: {plain:?}");
        assert!(braked.lost * 4 < plain.lost, "{link:?}: {braked:?}");
        assert!(braked.soon() * 100 >= link.rate * 95, "{link:?}: {braked:?}");
    }
}

/// Any link, ends that are late at any time: never more is lost than without a brake, and the
/// second second is as good.
#[test]
fn ends_that_are_late_do_not_end_slow_start_early() {
    let t0 = Instant::now();
    let mut lost = (0, 0);
    for seed in 1..=300_u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut pick = |of: &[u64]| of[(random(&mut state) % of.len() as u64) as usize];
        let link = Link {
            rate: pick(&[10, 20, 50, 100, 200]) * MBIT,
            rtt: pick(&[5, 10, 20, 50]) * 1000,
            queue: pick(&[10, 30, 100, 200]) * 1000,
        };
        let (every, most) = (pick(&[20, 50, 200]) * 1000, pick(&[1, 5, 20, 40]) * 1000);
        let (mut at, mut late) = (0, vec![]);
        while at < 2_000_000 {
            at += 1 + random(&mut state) % (2 * every);
            let long = random(&mut state) % most;
            late.push((at, long));
            at += long;
        }
        let plain = run(link, u64::MAX, &late, None, t0);
        let braked = run(link, u64::MAX, &late, Some(Brake::new(t0)), t0);
        let context = format!("seed {seed}, {link:?}, late {most}: {plain:?}, {braked:?}");
        assert!(braked.lost <= plain.lost, "{context}");
        assert!(braked.soon() * 100 >= plain.soon() * 90, "{context}");
        lost = (lost.0 + braked.lost, lost.1 + plain.lost);
    }
    assert!(lost.0 * 4 < lost.1, "{lost:?}");
}

/// A sender that has little to send keeps a window for that, not one that bursts.
#[test]
fn an_unused_window_does_not_grow() {
    let t0 = Instant::now();
    let link = Link { rate: 1_000 * MBIT, rtt: 20_000, queue: 100_000 };
    let credit = 200_000;
    let plain = run(link, credit, &[], None, t0);
    let braked = run(link, credit, &[], Some(Brake::new(t0)), t0);
    assert!(plain.window > 10 * credit, "{plain:?}");
    assert!(braked.window <= 2 * credit + PACKET, "{braked:?}");
    assert_eq!(braked.soon(), plain.soon());
}
