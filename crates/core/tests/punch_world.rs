//! Rules of punching one by one, in the simulated network.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test: its world is its own, an index is one of two sides"
)]

mod world;

use std::{net::SocketAddr, time::Duration};

use adit_core::punch::{
    BIRTHDAY_PASSES, BIRTHDAY_PROBES, BIRTHDAY_SOCKETS, BIRTHDAY_TOTAL_PROBES, Event,
    HARD_ROUND_GAPS, HARD_ROUND_MIN_GAP, MAX_PAIRS, Message, PACE, PREDICTED_PORTS,
    PREDICTION_AHEAD, PREDICTION_BEHIND, PREDICTIONS_PER_ROUND, PROBE_BURST, PROBE_INTERVAL,
    PairState, STRANGER_BURST, STRANGER_INTERVAL, TransactionId, UNVERIFIED_BURST,
    UNVERIFIED_INTERVAL, UNVERIFIED_RESERVE, WATCH_INTERVAL, WATCH_SILENCE, candidate_priority,
};
use adit_protocol::candidate::{Candidate, CandidateKind};

use world::{AGENT, CONSOLE, Cut, Kind, Plan, World, ms};

const EASY: Duration = Duration::from_secs(3);

/// Checks only.
fn quiet(kinds: [Kind; 2]) -> Plan {
    Plan { quiet: true, ..Plan::of(kinds) }
}

/// Runs until both ends are validated.
fn connected(kinds: [Kind; 2], seed: u64) -> World {
    let mut world = World::new(quiet(kinds), seed);
    world.run_until(EASY, |w| w.sides.iter().all(|s| s.validated_at().is_some()));
    assert!(world.sides.iter().all(|s| s.validated_at().is_some()), "{kinds:?}");
    world
}

#[test]
fn thirty_junk_interfaces_do_not_delay_the_right_pair() {
    for seed in 0..50 {
        let plan = Plan { junk: 30, ..quiet([Kind::PortRestricted, Kind::PortRestricted]) };
        let mut world = World::new(plan, seed);
        world.run_until(EASY, |w| w.sides.iter().all(|s| s.validated_at().is_some()));
        // Later candidate lists (23 ms), a round trip (40 ms), one lost first try, and pacing.
        let limit = ms(23 + 40 + 100 + 50);
        for side in &world.sides {
            assert!(side.validated_at().is_some_and(|at| at <= limit), "seed {seed}");
        }
    }
}

#[test]
fn an_end_that_rests_answers_a_late_one_at_once() {
    // Right after a round, and long after one.
    for signal_ms in [8_900, 10_500] {
        let plan = Plan { signal_ms, ..quiet([Kind::PortRestricted, Kind::PortRestricted]) };
        let mut world = World::new(plan, signal_ms);
        world.run_until(ms(signal_ms) + EASY, |w| {
            w.sides.iter().all(|s| s.validated_at().is_some())
        });
        // Two round trips: the late end's, and the other's in answer to it.
        let limit = ms(signal_ms + 20 + 2 * 40 + 20);
        for side in &world.sides {
            assert!(side.validated_at().is_some_and(|at| at <= limit), "{:?}", side.events);
        }
    }
}

#[test]
fn a_path_that_was_silent_for_a_while_is_back_within_5_s() {
    for seed in 0..30 {
        let mut world = connected([Kind::PortRestricted, Kind::PortRestricted], seed);
        world.udp_dead = true;
        world.run_until(Duration::from_secs(22), |_| false);
        world.udp_dead = false;
        for side in &mut world.sides {
            side.events.clear();
        }
        let valid = |w: &World| w.sides.iter().all(|s| s.validated_at().is_some());
        world.run_until(Duration::from_secs(27), valid);
        assert!(valid(&world), "seed {seed}");
    }
}

#[test]
fn a_dead_path_turns_silent_expires_and_comes_back() {
    for seed in 0..30 {
        let mut world = connected([Kind::PortRestricted, Kind::PortRestricted], seed);
        let has = |w: &World, want: fn(&Event) -> bool| {
            w.sides.iter().all(|s| s.events.iter().any(|(_, e)| want(e)))
        };
        let silent = |e: &Event| matches!(e, Event::Silent { .. });
        let expired = |e: &Event| matches!(e, Event::Expired { revoked: true, .. });
        world.run_until(Duration::from_secs(300), |_| false);
        assert!(!world.sides.iter().any(|s| s.events.iter().any(|(_, e)| silent(e))));
        world.udp_dead = true;
        let died = world.elapsed();
        world.run_until(died + Duration::from_secs(8), |w| has(w, silent));
        assert!(has(&world, silent), "seed {seed}");
        world.run_until(died + Duration::from_secs(38), |w| has(w, expired));
        assert!(has(&world, expired), "seed {seed}");
        world.udp_dead = false;
        for side in &mut world.sides {
            side.events.clear();
        }
        // Both ends want it back and tell each other their candidates again.
        let back = world.elapsed();
        for side in [0, 1] {
            world.announce(side);
        }
        let valid = |w: &World| w.sides.iter().all(|s| s.validated_at().is_some());
        world.run_until(back + EASY, valid);
        assert!(valid(&world), "seed {seed}: {:#?}", world.sides[0].punch.pairs());
    }
}

#[test]
fn a_rebound_mapping_is_found_again() {
    for seed in 0..30 {
        // The other filters by port: it has to be told. It misses answers, and asks.
        let mut world = connected([Kind::PortRestricted, Kind::PortRestricted], seed);
        world.run_until(Duration::from_secs(10), |_| false);
        world.sides[0].outer().forget();
        let since = world.elapsed();
        let found = |w: &World| w.sides[0].count(|e| matches!(e, Event::Rebound { .. })) > 0;
        world.run_until(since + Duration::from_secs(9), found);
        assert!(found(&world), "seed {seed}");

        // The other does not filter: the next check tells both.
        let mut world = connected([Kind::PortRestricted, Kind::Open], seed);
        world.sides[0].outer().forget();
        world.sides[1].events.clear();
        let since = world.elapsed();
        let rebound = |w: &World| {
            w.sides[0].events.iter().any(|(_, e)| matches!(e, Event::Rebound { .. }))
                && w.sides[1].validated_at().is_some()
        };
        world.run_until(since + Duration::from_secs(7), rebound);
        assert!(rebound(&world), "seed {seed}");
    }
}

#[test]
fn acknowledged_data_keep_consent_without_checks() {
    let mut world = connected([Kind::Open, Kind::Open], 1);
    world.udp_dead = true; // for checks, in this test
    let remote = world.sides[0].punch.pairs()[0].remote;
    for second in 1..120 {
        world.run_until(Duration::from_secs(second), |_| false);
        let now = world.now;
        world.sides[0].punch.handle_acknowledged(world::V4, remote, now);
    }
    let expired =
        |s: usize| world.sides[s].events.iter().any(|(_, e)| matches!(e, Event::Expired { .. }));
    assert!(!expired(0) && expired(1));
    assert_eq!(world.sides[0].punch.pairs()[0].state, PairState::Silent);
}

/// Numbered as the peer does.
fn id(number: u32) -> TransactionId {
    let mut id = [9; 12];
    id[..4].copy_from_slice(&number.to_be_bytes());
    id
}

#[test]
fn forged_answers_and_replayed_requests_move_nothing() {
    let mut world = World::new(quiet([Kind::Open, Kind::Open]), 7);
    world.udp_dead = true; // but for what the attacker sends
    world.run_until(ms(500), |_| false);
    let peer: SocketAddr = world.sides[0].punch.pairs()[0].remote;
    let console = world.sides[1].punch.pairs()[0].remote;
    let attacker: SocketAddr = "198.51.100.66:6666".parse().unwrap();
    let victim: SocketAddr = "198.51.100.67:6667".parse().unwrap();
    let sent = world.sides[0].sent.first().copied();
    let Some(Message::Request { id: known, .. }) = sent.map(|s| s.message) else {
        panic!("no check was sent")
    };
    // The right transaction from the wrong address, the wrong one from the right address.
    world.deliver(attacker, console, Message::Response { id: known, mapped: console });
    world.deliver(peer, console, Message::Response { id: [7; 12], mapped: console });
    world.drain();
    assert_eq!(world.sides[0].count(|e| matches!(e, Event::AddressAdmitted(_))), 0);
    let to = |w: &World, addr| w.sides[0].sent.iter().filter(|s| s.to == addr).count();
    // A request that was recorded, sent again from elsewhere: soon, and long after.
    let request = |n| Message::Request { id: id(n), priority: 1 };
    let before = to(&world, peer);
    for n in 1000..5000 {
        world.deliver(peer, console, request(n));
        if n % 50 == 0 {
            world.run_until(world.elapsed() + ms(300), |_| false);
        }
    }
    assert!(to(&world, peer) > before);
    for n in 1000..5000 {
        world.deliver(attacker, console, request(n));
    }
    world.run_until(world.elapsed() + EASY, |_| false);
    assert_eq!(to(&world, attacker), 0);
    // One that this end never got, held back by the attacker: it is worth one answer, and the
    // checks of one address that was heard from.
    world.deliver(victim, console, request(5001));
    for _ in 0..1000 {
        world.deliver(victim, console, request(5001));
    }
    world.run_until(world.elapsed() + Duration::from_secs(60), |_| false);
    let answers =
        |s: &&world::Sent| s.to == victim && matches!(s.message, Message::Response { .. });
    assert_eq!(world.sides[0].sent.iter().filter(answers).count(), 1);
    assert!(to(&world, victim) <= 20, "{}", to(&world, victim));
}

#[test]
fn requests_are_answered_at_a_bounded_rate_and_never_to_forbidden_sources() {
    let mut world = World::new(quiet([Kind::Open, Kind::Open]), 7);
    world.udp_dead = true; // but for what is delivered here
    world.run_until(ms(100), |_| false);
    let console = world.sides[1].punch.pairs()[0].remote;
    let mut number = 1000;
    let mut request = || {
        number += 1;
        Message::Request { id: id(number), priority: 1 }
    };
    let start = world.elapsed();
    for n in 0..1000u16 {
        for from in ["198.51.100.77:7777", "127.0.0.1:7777", "192.168.9.9:7777"] {
            world.deliver(from.parse().unwrap(), console, request());
        }
        // Ever new sources: bounded by the table and by the budget for unverified addresses.
        let from = SocketAddr::new("198.51.100.99".parse().unwrap(), 2000 + n);
        world.deliver(from, console, request());
        world.run_until(world.elapsed() + ms(2), |_| false);
    }
    let to = |ip: &str| {
        let ip: std::net::IpAddr = ip.parse().unwrap();
        world.sides[0].sent.iter().filter(|s| s.to.ip() == ip).count()
    };
    assert!((1..=90).contains(&to("198.51.100.77")), "{}", to("198.51.100.77"));
    assert_eq!(to("127.0.0.1") + to("192.168.9.9"), 0);
    let took = (world.elapsed() - start).as_millis() / STRANGER_INTERVAL.as_millis();
    let is_answer = |s: &&world::Sent| matches!(s.message, Message::Response { .. });
    let answers = world.sides[0].sent.iter().filter(is_answer).count();
    assert!(answers <= STRANGER_BURST as usize + took as usize + 1, "{answers}");
    assert!(world.sides[0].punch.pairs().len() <= 100);
}

#[test]
fn a_hostile_peer_cannot_make_a_flood_by_announcing() {
    let mut world = World::new(quiet([Kind::Open, Kind::Blocked]), 3);
    let mut port = 1024u16;
    for second in 0..60 {
        for _ in 0..10 {
            let now = world.now;
            let victims: Vec<_> = (0..32)
                .map(|_| {
                    port = port.checked_add(1).unwrap_or(1024);
                    let addr = SocketAddr::new("198.51.100.200".parse().unwrap(), port);
                    let kind = CandidateKind::ServerReflexive;
                    Candidate { kind, addr, priority: candidate_priority(kind, 65535) }
                })
                .collect();
            world.sides[0].punch.handle_remote_candidates(&victims, true, now);
        }
        world.run_until(Duration::from_secs(second + 1), |_| false);
    }
    let rate = 1000 / UNVERIFIED_INTERVAL.as_millis() as usize;
    let sent = world.sides[0].sent.len();
    assert!(sent <= UNVERIFIED_BURST as usize + 60 * rate + 1, "{sent}");
}

/// Addresses of the peer to which each birthday socket sends at most.
const TARGETS: usize = 2;

/// What guessing may send in one round: an end may have to take both parts.
fn guesses_per_round() -> usize {
    let predicted = PREDICTION_AHEAD + PREDICTION_BEHIND + 1 + PREDICTED_PORTS;
    BIRTHDAY_PROBES
        + BIRTHDAY_PASSES.len() * BIRTHDAY_SOCKETS * TARGETS
        + PREDICTIONS_PER_ROUND as usize * usize::try_from(predicted).unwrap()
}

/// Rounds of guessing that have begun by then, if nothing changes.
fn rounds(elapsed: Duration) -> usize {
    let starts = HARD_ROUND_GAPS.iter().scan(Duration::ZERO, |at, gap| {
        *at += *gap;
        Some(*at)
    });
    1 + starts.filter(|at| *at <= elapsed).count()
}

/// The same whatever happens.
fn most_rounds(elapsed: Duration) -> usize {
    times(elapsed, HARD_ROUND_MIN_GAP) + 1
}

/// How often it may have looked by then as if UDP had come back.
fn most_restarts(elapsed: Duration) -> usize {
    times(elapsed, WATCH_INTERVAL * (WATCH_SILENCE + 1)) + 1
}

fn times(elapsed: Duration, every: Duration) -> usize {
    usize::try_from(elapsed.as_micros() / every.as_micros()).unwrap()
}

/// Ordinary checks that an end may have sent by then to addresses that never answered.
fn checks_in_vain(elapsed: Duration) -> usize {
    UNVERIFIED_BURST as usize + times(elapsed, UNVERIFIED_INTERVAL) + 1
}

/// The most that an end sent in any second.
fn most_in_a_second(side: &world::end::End) -> usize {
    let mut from = 0;
    let of = |(n, sent): (usize, &world::Sent)| {
        while side.sent[from].at + ms(1000) <= sent.at {
            from += 1;
        }
        n + 1 - from
    };
    side.sent.iter().enumerate().map(of).max().unwrap_or(0)
}

/// Whatever happens: guessing and paced checks, each at its rate, and the openers of new pairs.
fn judge_rate(world: &World, what: &str) {
    let in_a_second = |every: Duration| usize::try_from(1_000_000 / every.as_micros()).unwrap() + 1;
    let late = usize::try_from(PROBE_BURST.as_micros() / PROBE_INTERVAL.as_micros()).unwrap();
    let allowed = TARGETS * (in_a_second(PROBE_INTERVAL) + late) + in_a_second(PACE) + MAX_PAIRS;
    for side in &world.sides {
        let most = most_in_a_second(side);
        assert!(most <= allowed, "{what}: {most} packets in a second, allowed {allowed}");
    }
}

/// What the scenes `worst-case` and `worst-case-10m` look at, as a limit and over many seeds.
#[test]
fn guessing_in_vain_never_exceeds_its_caps() {
    let symmetric = Kind::ALL.into_iter().filter(|kind| kind.is_symmetric()).collect::<Vec<_>>();
    let mut most = [0; 3];
    for seed in 0..40u64 {
        let s = symmetric[usize::try_from(seed).unwrap() % symmetric.len()];
        let mut kinds = [Kind::PortRestricted, s];
        if seed % 2 == 1 {
            kinds.reverse();
        }
        let random = Plan::random(seed);
        // Two requests to servers that are lost in a row look like a network that comes back.
        let lossy = seed % 4 >= 2 && random.loss_percent > 0;
        let plan = Plan {
            kinds,
            same_lan: false,
            v6: false,
            change: None,
            quiet: true,
            loss_percent: if lossy { random.loss_percent } else { 0 },
            ..random
        };
        let both = !plan.filtering_known;
        let mut world = World::new(plan, seed);
        world.udp_dead = true;
        for (n, until) in [40, 600, 1800].map(Duration::from_secs).into_iter().enumerate() {
            world.run_until(until, |_| false);
            for (i, side) in world.sides.iter().enumerate() {
                let guessed = usize::try_from(side.punch.report().hard.probes).unwrap();
                let sequential = s == Kind::SymmetricSeq;
                let per_round = if kinds[i] == Kind::PortRestricted && !both && !sequential {
                    BIRTHDAY_PROBES
                } else {
                    guesses_per_round()
                };
                let (mut rounds, mut allowed) = (rounds(until), checks_in_vain(until));
                if lossy {
                    rounds = most_rounds(until);
                    allowed += most_restarts(until) * UNVERIFIED_RESERVE as usize;
                }
                let most_guesses = (rounds * per_round)
                    .min(usize::try_from(BIRTHDAY_TOTAL_PROBES).unwrap() + TARGETS);
                assert!(guessed <= most_guesses, "seed {seed}: {guessed} guesses in {until:?}");
                let others = side.sent.len() - guessed;
                assert!(others <= allowed, "seed {seed}: {others} checks in {until:?}");
                most[n] = most[n].max(side.sent.len());
            }
        }
        judge_rate(&world, &format!("seed {seed}"));
    }
    println!("an end sent in vain at most {most:?} packets in 40 s, 10 minutes, half an hour");
}

/// Not even if something seems to change again and again, as where UDP comes and goes.
#[test]
fn a_network_that_comes_and_goes_does_not_lift_the_caps_on_guessing() {
    for seed in 0..8u64 {
        let kinds = [Kind::PortRestricted, Kind::Symmetric];
        let mut world = World::new(quiet(kinds), seed);
        world.udp_dead = true;
        let until = Duration::from_secs(1800);
        while world.elapsed() < until {
            let side = if seed % 2 == 0 { CONSOLE } else { AGENT };
            world.sides[side].cut = Some(Cut::Outside);
            world.run_until(world.elapsed() + ms(5000 + 200 * seed), |_| false);
            world.sides[side].cut = None;
            world.run_until(world.elapsed() + ms(2500), |_| false);
        }
        for side in &world.sides {
            let hard = side.punch.report().hard;
            let guessed = usize::try_from(hard.probes).unwrap();
            let rounds = usize::try_from(hard.rounds).unwrap();
            assert!(rounds > 4, "seed {seed}: {rounds} rounds: nothing was tried again");
            assert!(rounds <= most_rounds(until), "seed {seed}: {rounds} rounds");
            assert!(hard.probes < BIRTHDAY_TOTAL_PROBES + TARGETS as u64, "seed {seed}: {guessed}");
            let allowed =
                checks_in_vain(until) + most_restarts(until) * UNVERIFIED_RESERVE as usize;
            let others = side.sent.len() - guessed;
            assert!(others <= allowed, "seed {seed}: {others} checks, allowed {allowed}");
        }
        judge_rate(&world, &format!("seed {seed}"));
    }
}

/// The peer's NAT ends mappings, and it shows one more of its mappings a moment before it brings a
/// fresh one: the one before is left before it ends, not when it has ended.
#[test]
fn a_mapping_that_was_young_when_the_next_came_retires_a_little_later() {
    let mut world = connected([Kind::Open, Kind::Open], 4);
    world.run_until(Duration::from_secs(10), |_| false);
    let first = world.sides[CONSOLE].punch.pairs()[0].remote;
    let console = world.sides[AGENT].punch.pairs()[0].remote;
    let another = |world: &mut World, n: u16| {
        let from = SocketAddr::new(first.ip(), n);
        world.deliver(from, console, Message::Request { id: id(u32::from(n)), priority: 1 });
        world.run_until(world.elapsed() + ms(100), |_| false);
        let asked = world.sides[CONSOLE].sent.iter().rev().filter(|s| s.to == from);
        let check = asked.map(|s| s.message).find_map(|m| match m {
            Message::Request { id, .. } => Some(id),
            Message::Response { .. } => None,
        });
        world.deliver(from, console, Message::Response { id: check.unwrap(), mapped: console });
        world.drain();
        from
    };
    let retired = |world: &World| -> Vec<_> {
        let events = world.sides[CONSOLE].events.iter();
        let told = events.filter_map(|(_, e)| match e {
            Event::Retiring { remote, .. } => Some(*remote),
            _ => None,
        });
        told.collect()
    };
    let second = another(&mut world, 7001);
    assert_eq!(retired(&world), [first]);
    world.run_until(world.elapsed() + ms(2700), |_| false);
    another(&mut world, 7002);
    assert_eq!(retired(&world), [first]);
    world.run_until(world.elapsed() + ms(300), |_| false);
    assert_eq!(retired(&world), [first, second]);
}
