//! Rules one by one, and random lives of carriers against what is true of their paths.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use adit_protocol::{ids::CarrierNumber, ticket::Role};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;

const RELAY: CarrierKind = CarrierKind::Relayed { slot: 0 };
const BULK: CarrierKind = CarrierKind::Relayed { slot: 1 };
const V4: CarrierKind = CarrierKind::Direct { family: Family::V4 };
const V6: CarrierKind = CarrierKind::Direct { family: Family::V6 };

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A carrier's path as it really is.
#[derive(Clone, Copy, Debug)]
struct Truth {
    kind: CarrierKind,
    rtt: Duration,
    jitter_ms: u64,
    alive_since: Option<Instant>,
    dead_since: Option<Instant>,
    /// The peer's program does not read: data are not acknowledged, pings are.
    stuck: bool,
}

/// A chooser, and data sent over what it chooses, every 10 ms.
struct Life {
    chooser: PathChooser,
    truth: BTreeMap<u64, Truth>,
    t0: Instant,
    now: Instant,
    rng: StdRng,
    /// Acknowledgements under way: when, on which, how long it took.
    acks: Vec<(Instant, u64, Duration)>,
    events: Vec<PathEvent>,
    moves: usize,
    moved_at: Instant,
    checks: bool,
    sending: bool,
}

const TICK: Duration = ms(10);

impl Life {
    fn new(role: Role, seed: u64) -> Self {
        let now = Instant::now();
        Self {
            chooser: PathChooser::new(role, now),
            truth: BTreeMap::new(),
            t0: now,
            now,
            rng: StdRng::seed_from_u64(seed),
            acks: Vec::new(),
            events: Vec::new(),
            moves: 0,
            moved_at: now,
            checks: true,
            sending: true,
        }
    }

    fn up(&mut self, n: u64, kind: CarrierKind, rtt: u64) {
        let alive_since = Some(self.now);
        let (rtt, jitter_ms) = (ms(rtt), 0);
        let truth = Truth { kind, rtt, jitter_ms, alive_since, dead_since: None, stuck: false };
        self.truth.insert(n, truth);
        assert!(self.chooser.handle_carrier_up(CarrierNumber(n), kind, rtt, self.now));
        self.drain();
    }

    fn down(&mut self, n: u64) {
        self.truth.remove(&n);
        self.chooser.handle_carrier_down(CarrierNumber(n), self.now);
        self.drain();
    }

    fn kill(&mut self, n: u64) {
        let now = self.now;
        let truth = self.truth.get_mut(&n).unwrap();
        (truth.alive_since, truth.dead_since) = (None, Some(now));
        self.acks.retain(|(_, on, _)| *on != n);
    }

    /// What these carriers would bring comes when the pause is over, and in this order.
    fn pause(&mut self, carriers: &[u64], pause: Duration) {
        let over = self.now + pause;
        while self.now < over {
            let held = self.acks.iter_mut().filter(|(at, n, _)| carriers.contains(n) && *at < over);
            held.for_each(|(at, ..)| *at = over);
            self.tick();
        }
        self.acks.sort_by_key(|(_, n, _)| carriers.iter().position(|c| c == n));
    }

    fn heal(&mut self, n: u64) {
        let now = self.now;
        let truth = self.truth.get_mut(&n).unwrap();
        (truth.alive_since, truth.dead_since) = (Some(now), None);
    }

    fn used(&self) -> Option<(u64, u64)> {
        self.chooser.in_use().map(|(a, b)| (a.0, b.0))
    }

    fn drain(&mut self) {
        while let Some(event) = self.chooser.poll_event() {
            match event {
                PathEvent::Use { .. } => {
                    self.moves += 1;
                    self.moved_at = self.now;
                }
                PathEvent::Probe(n) => {
                    self.chooser.handle_activity(n, Activity::Sent, self.now);
                    self.reply(n.0);
                }
                _ => {}
            }
            self.events.push(event);
        }
    }

    fn reply(&mut self, n: u64) {
        let Some(truth) = self.truth.get(&n).filter(|t| t.alive_since.is_some()) else { return };
        let rtt = truth.rtt + ms(self.rng.random_range(0..=2 * truth.jitter_ms));
        let rtt = rtt.saturating_sub(ms(truth.jitter_ms));
        self.acks.push((self.now + rtt, n, rtt));
        if truth.stuck {
            // The transport acknowledges the probe, too, and is looked at later.
            self.acks.push((self.now + rtt + ms(50), n, rtt));
        }
    }

    fn tick(&mut self) {
        self.now += TICK;
        if let Some((n, _)) = self.used().filter(|_| self.sending) {
            self.chooser.handle_activity(CarrierNumber(n), Activity::Sent, self.now);
            if self.truth.get(&n).is_some_and(|t| !t.stuck) {
                self.reply(n);
            }
        }
        let now = self.now;
        let due: Vec<_> = self.acks.extract_if(.., |(at, ..)| *at <= now).collect();
        for (_, n, rtt) in due {
            let outstanding = self.sending && self.used().is_some_and(|(used, _)| used == n);
            let is_stuck = self.truth.get(&n).is_some_and(|t| t.stuck);
            let acknowledged = match is_stuck {
                true => Activity::Answered { outstanding },
                false => Activity::Acknowledged { outstanding },
            };
            self.chooser.handle_rtt(CarrierNumber(n), rtt, now);
            self.chooser.handle_activity(CarrierNumber(n), acknowledged, now);
        }
        if self.checks && (now - self.t0).as_millis().is_multiple_of(1000) {
            for (n, truth) in &self.truth {
                if matches!(truth.kind, CarrierKind::Direct { .. }) {
                    let n = CarrierNumber(*n);
                    self.chooser.handle_check(n, truth.alive_since.is_some(), now);
                }
            }
        }
        if self.chooser.poll_timeout().is_some_and(|at| at <= now) {
            self.chooser.handle_timeout(now);
            assert!(self.chooser.poll_timeout().is_none_or(|at| at > now), "busy loop");
        }
        self.drain();
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.tick();
        }
    }
}

#[test]
fn direct_takes_over_and_relay_takes_back_in_time() {
    let mut life = Life::new(Role::Console, 1);
    life.up(1, RELAY, 20);
    life.up(2, BULK, 20);
    assert_eq!(life.used(), Some((1, 2)));
    life.run(ms(300));
    life.up(3, V4, 80);
    assert_eq!(life.used(), Some((3, 3)), "direct before relayed, at once");
    life.run(ms(2000));
    life.kill(3);
    life.run(ms(210));
    assert_eq!(life.used(), Some((3, 3)), "not before its answer is overdue");
    life.run(ms(50));
    assert_eq!(life.used(), Some((1, 2)));
    assert!(!life.events.contains(&PathEvent::Suspect(CarrierNumber(3))), "not left before 500 ms");
    life.run(ms(300));
    assert!(life.events.contains(&PathEvent::Suspect(CarrierNumber(3))));
    assert!(life.events.contains(&PathEvent::WantDirect));
    assert!(!life.events.contains(&PathEvent::Dead(CarrierNumber(3))));
    life.heal(3);
    life.run(ms(1200));
    assert_eq!(life.used(), Some((3, 3)), "left is not closed: it came back");
    life.kill(3);
    life.run(ms(32_000));
    assert!(life.events.contains(&PathEvent::Dead(CarrierNumber(3))));
    life.down(3);
    life.down(1);
    assert_eq!(life.used(), Some((2, 2)));
    life.down(2);
    assert_eq!(life.events.last(), Some(&PathEvent::Stranded));
}

#[test]
fn lost_checks_do_not_demote_while_data_flow() {
    let mut life = Life::new(Role::Console, 2);
    life.up(1, RELAY, 20);
    life.up(2, V4, 30);
    life.checks = false;
    for _ in 0..60 {
        life.chooser.handle_check(CarrierNumber(2), false, life.now);
        life.run(ms(500));
    }
    assert_eq!((life.used(), life.moves), (Some((2, 2)), 2));
    // Without data they are reason to ask.
    life.sending = false;
    life.run(ms(5000));
    assert_eq!((life.used(), life.moves), (Some((2, 2)), 2));
    life.kill(2);
    life.run(ms(3000));
    assert_eq!(life.used(), Some((1, 1)));
}

#[test]
fn a_receiver_that_does_not_read_is_not_a_dead_path() {
    let mut life = Life::new(Role::Console, 3);
    life.up(1, RELAY, 20);
    life.up(2, V4, 20);
    life.truth.get_mut(&2).unwrap().stuck = true;
    life.run(Duration::from_secs(30));
    assert_eq!((life.used(), life.moves), (Some((2, 2)), 2));
    // And whether it is alone in that.
    assert_eq!(life.chooser.beside(CarrierNumber(2), life.now), Some(CarrierNumber(1)));
    for carrier in [1, 2] {
        let probe = PathEvent::Probe(CarrierNumber(carrier));
        let probes = life.events.iter().filter(|e| **e == probe).count();
        assert!((10..=130).contains(&probes), "{carrier}: {probes}");
    }
}

#[test]
fn what_came_while_nobody_looked_is_not_late() {
    // Short round trips, looked at seldom: what is due then has long been answered.
    let mut life = Life::new(Role::Console, 15);
    life.up(1, RELAY, 20);
    life.up(2, V4, 2);
    life.sending = false;
    let number = CarrierNumber(2);
    for _ in 0..200 {
        life.now += ms(50);
        let answer = Some(Activity::Acknowledged { outstanding: true });
        let seen = Seen { rtt: Some(ms(2)), sent: true, received: true, answer };
        life.chooser.handle_seen([(number, seen)], life.now);
        life.chooser.handle_timeout(life.now);
        life.drain();
    }
    assert!(!life.events.iter().any(|e| matches!(e, PathEvent::Probe(_))));
    assert_eq!(life.moves, 2);
}

#[test]
fn answered_checks_do_not_bring_back_a_connection_that_is_stuck() {
    // The NAT gave this end another address: the pair works, the old connection never will.
    let mut life = Life::new(Role::Console, 10);
    life.up(1, RELAY, 20);
    life.up(2, V4, 30);
    life.run(ms(1000));
    life.kill(2);
    life.checks = false;
    for _ in 0..60 {
        life.run(ms(350));
        life.chooser.handle_check(CarrierNumber(2), true, life.now);
    }
    assert_eq!((life.used(), life.moves), (Some((1, 1)), 3));
}

#[test]
fn one_direction_dead_is_left_too() {
    let mut life = Life::new(Role::Console, 4);
    life.up(1, RELAY, 20);
    life.up(2, V4, 30);
    life.run(ms(1000));
    life.kill(2);
    for _ in 0..250 {
        life.chooser.handle_activity(CarrierNumber(2), Activity::Received, life.now);
        life.tick();
    }
    assert_eq!(life.used(), Some((1, 1)));
}

#[test]
fn jitter_between_equal_paths_moves_nothing_and_a_better_path_wins() {
    for seed in 0..20 {
        let mut life = Life::new(Role::Console, seed);
        life.up(1, V4, 30);
        life.up(2, V6, 30);
        life.up(3, V4, 30);
        for n in 1..=3 {
            life.truth.get_mut(&n).unwrap().jitter_ms = 5;
        }
        for _ in 0..600 {
            for n in 1..=3 {
                let sample = ms(life.rng.random_range(25..=35));
                life.chooser.handle_rtt(CarrierNumber(n), sample, life.now);
            }
            life.run(ms(100));
        }
        assert_eq!((life.used(), life.moves), (Some((1, 1)), 1), "seed {seed}");
        for _ in 0..40 {
            life.chooser.handle_rtt(CarrierNumber(2), ms(15), life.now);
            life.run(ms(100));
        }
        assert_eq!((life.used(), life.moves), (Some((2, 2)), 2), "seed {seed}");
    }
}

#[test]
fn a_queue_that_the_session_fills_is_no_reason_to_move() {
    for seed in 0..20 {
        let mut life = Life::new(Role::Console, seed);
        life.up(1, V4, 20);
        life.up(2, V4, 20);
        let tell = |life: &mut Life, tenths: u32, rtts: [std::ops::RangeInclusive<u64>; 2]| {
            for tenth in 0..tenths {
                let sample = ms(life.rng.random_range(rtts[0].clone()));
                life.chooser.handle_rtt(CarrierNumber(1), sample, life.now);
                // The one that carries nothing is measured seldom.
                if tenth % 20 == 0 {
                    let sample = ms(life.rng.random_range(rtts[1].clone()));
                    life.chooser.handle_rtt(CarrierNumber(2), sample, life.now);
                }
                life.run(ms(100));
            }
        };
        tell(&mut life, 10, [20..=24, 20..=24]);
        life.truth.get_mut(&1).unwrap().rtt = ms(60);
        tell(&mut life, 600, [30..=140, 40..=120]);
        assert_eq!((life.used(), life.moves), (Some((1, 1)), 1), "seed {seed}");
        // But a path that became longer is left.
        life.truth.get_mut(&1).unwrap().rtt = ms(100);
        tell(&mut life, 300, [90..=110, 20..=24]);
        assert_eq!((life.used(), life.moves), (Some((2, 2)), 2), "seed {seed}");
    }
}

#[test]
fn a_flapping_path_is_used_less_and_less() {
    let mut life = Life::new(Role::Console, 5);
    life.up(1, RELAY, 20);
    life.up(2, V4, 30);
    for _ in 0..60 {
        life.run(ms(1000));
        life.kill(2);
        life.run(ms(1000));
        life.heal(2);
    }
    assert!(life.moves < 20, "{} moves in 2 minutes", life.moves);
    life.run(Duration::from_secs(61));
    assert_eq!(life.used(), Some((2, 2)), "but it is forgiven");
}

#[test]
fn new_carriers_over_a_flapping_path_do_not_flap_either() {
    let mut life = Life::new(Role::Console, 6);
    life.up(1, RELAY, 20);
    for n in 2..62 {
        life.up(n, V4, 30);
        life.run(ms(1000));
        life.kill(n);
        life.run(ms(1000));
        life.down(n);
    }
    assert!(life.moves < 20, "{} moves in 2 minutes", life.moves);
    let wants = life.events.iter().filter(|e| **e == PathEvent::WantDirect).count();
    assert!(wants <= 25, "{wants}");
}

#[test]
fn the_agent_suspects_but_does_not_choose() {
    let mut life = Life::new(Role::Agent, 7);
    life.up(1, RELAY, 20);
    life.up(2, V4, 30);
    life.chooser.handle_activity(CarrierNumber(2), Activity::Sent, life.now);
    life.kill(2);
    life.run(ms(600));
    // What killed one may have killed the other.
    let [one, two] = [1, 2].map(CarrierNumber);
    let probes = [PathEvent::Probe(one), PathEvent::Probe(two)];
    let expected = [&probes[..], &[PathEvent::Overdue(two), PathEvent::Suspect(two)]].concat();
    assert_eq!(life.events, expected);
    // The console believes it, if it has another.
    let mut life = Life::new(Role::Console, 8);
    life.up(2, V4, 30);
    life.chooser.handle_suspect(CarrierNumber(2), life.now);
    assert_eq!(life.used(), Some((2, 2)));
    life.up(1, RELAY, 20);
    life.chooser.handle_suspect(CarrierNumber(2), life.now);
    assert_eq!(life.used(), Some((1, 1)));
    // It asks, too. What comes in does not say that the peer was wrong, an acknowledgement does.
    life.chooser.handle_activity(CarrierNumber(2), Activity::Received, life.now);
    life.tick();
    assert_eq!(life.used(), Some((1, 1)));
    life.run(ms(100));
    assert_eq!(life.used(), Some((2, 2)));
    // Told twice, it is left at once.
    life.kill(2);
    life.chooser.handle_suspect(CarrierNumber(2), life.now);
    life.chooser.handle_suspect(CarrierNumber(2), life.now);
    life.tick();
    assert!(life.events.contains(&PathEvent::WantDirect));
}

#[test]
fn a_peer_that_complains_without_end_does_not_make_the_session_flap() {
    let mut life = Life::new(Role::Console, 14);
    life.up(1, RELAY, 20);
    life.up(2, V4, 30);
    for _ in 0..1200 {
        life.chooser.handle_suspect(CarrierNumber(2), life.now);
        life.run(ms(100));
    }
    assert!(life.moves < 30, "{} moves in 2 minutes", life.moves);
}

/// However often it says so before it can have an answer.
#[test]
fn nor_does_one_that_complains_at_every_moment_make_it_ask_at_every_answer() {
    let mut life = Life::new(Role::Console, 15);
    life.up(1, RELAY, 20);
    life.up(2, V4, 20);
    for _ in 0..12_000 {
        for _ in 0..10 {
            life.chooser.handle_suspect(CarrierNumber(2), life.now);
        }
        life.tick();
    }
    let count = |event| life.events.iter().filter(|e| **e == event).count();
    let two = CarrierNumber(2);
    let (left, asked) = (count(PathEvent::Suspect(two)), count(PathEvent::Probe(two)));
    // What it answers each second anyway, a probe and a check, may be believed each time.
    assert!(left <= 240 && asked <= 240, "left {left}, asked {asked} times in 2 minutes");
    assert!(life.moves < 30, "{} moves in 2 minutes", life.moves);
}

#[test]
fn what_waits_on_a_dead_path_goes_on_over_another_soon() {
    for (direct, relay, within) in [(5, 10, 110), (20, 60, 160), (60, 90, 260), (140, 40, 440)] {
        let mut life = Life::new(Role::Console, 11);
        life.up(1, RELAY, relay);
        life.up(2, V4, direct);
        for _ in 0..3 {
            life.run(ms(1500));
            assert_eq!(life.used(), Some((2, 2)), "{direct} {relay}");
            life.kill(2);
            life.run(ms(within));
            assert_eq!(life.used(), Some((1, 1)), "{direct} {relay}");
            life.heal(2);
            life.run(Duration::from_secs(100));
        }
    }
}

#[test]
fn a_path_that_pauses_is_left_alone_after_a_few() {
    let mut life = Life::new(Role::Console, 12);
    life.up(1, RELAY, 20);
    life.up(2, V4, 20);
    let (mut direct, mut all) = (0, 0);
    for _ in 0..200 {
        life.pause(&[2], ms(180));
        for _ in 0..40 {
            life.run(TICK);
            (direct, all) = (direct + u32::from(life.used() == Some((2, 2))), all + 1);
        }
    }
    assert!(life.moves <= 20, "{} moves in 2 minutes", life.moves);
    assert!(direct * 100 >= all * 90, "{direct} of {all}");
    assert!(!life.events.contains(&PathEvent::Suspect(CarrierNumber(2))));
}

#[test]
fn a_peer_that_paused_moves_nothing() {
    let mut life = Life::new(Role::Console, 13);
    life.up(1, RELAY, 20);
    life.up(2, V4, 30);
    life.run(ms(1000));
    let moves = life.moves;
    for pause in (50..450).step_by(20) {
        // A busy machine: all its answers come late, the relay's first.
        life.pause(&[1, 2], ms(pause));
        life.run(ms(1000));
        assert_eq!((life.moves, life.used()), (moves, Some((2, 2))), "{pause} {:?}", life.events);
    }
}

#[test]
fn asks_for_punching_at_growing_intervals() {
    let mut life = Life::new(Role::Console, 9);
    life.up(1, RELAY, 20);
    life.run(Duration::from_secs(1200));
    let wants = life.events.iter().filter(|e| **e == PathEvent::WantDirect).count();
    assert!((5..=8).contains(&wants), "{wants}");
}

/// Longest that data may wait on a dead path while another is known to work.
fn limit(truth: &Truth) -> Duration {
    let rtt = truth.rtt + ms(truth.jitter_ms);
    ms(500).max(rtt * 3) + rtt + TICK * 2
}

fn random_life(seed: u64) {
    let mut life = Life::new(Role::Console, seed);
    let mut next = 1;
    for step in 0..1500 {
        match life.rng.random_range(0..120) {
            0 | 1 if life.truth.len() < 6 => {
                let kind = [RELAY, BULK, V4, V6][life.rng.random_range(0..4)];
                let rtt = life.rng.random_range(1..300);
                life.up(next, kind, rtt);
                life.truth.get_mut(&next).unwrap().jitter_ms = life.rng.random_range(0..5).min(rtt);
                next += 1;
            }
            action @ 2..=6 if !life.truth.is_empty() => {
                let at = life.rng.random_range(0..life.truth.len());
                let n = *life.truth.keys().nth(at).unwrap();
                match action {
                    2 => life.down(n),
                    3 | 4 if life.truth[&n].dead_since.is_none() => life.kill(n),
                    _ if life.truth[&n].dead_since.is_some() => life.heal(n),
                    _ => {}
                }
            }
            _ => {}
        }
        life.tick();
        let Some((used, bulk)) = life.used() else {
            assert!(life.truth.is_empty(), "seed {seed} step {step}: nothing chosen");
            continue;
        };
        assert!(life.truth.contains_key(&bulk), "seed {seed} step {step}: bulk is closed");
        let truth = life.truth.get(&used);
        let truth = truth.unwrap_or_else(|| panic!("seed {seed} step {step}: chosen is closed"));
        let Some(dead_since) = truth.dead_since else { continue };
        // Each dead one has its time to be found out.
        let over = life.now - dead_since.max(life.moved_at) > limit(truth);
        // Alive so long that it must be known, held or not: probes come every second.
        let alternative = life
            .truth
            .iter()
            .find(|(_, t)| t.alive_since.is_some_and(|at| life.now - at > ms(1500) + t.rtt * 2));
        if over {
            assert_eq!(
                alternative.map(|(n, _)| n),
                None,
                "seed {seed} step {step}: {used} is dead: {:#?}",
                life.truth
            );
        }
    }
}

#[test]
fn never_stays_on_a_dead_carrier_while_another_lives() {
    for seed in 0..300 {
        random_life(seed);
    }
}
