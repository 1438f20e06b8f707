//! Two ends punching in a simulated network, against what theory says of their NATs.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test: its world is its own, an index is one of two sides"
)]

mod world;

use std::{net::SocketAddr, time::Duration};

use adit_core::punch::{
    Event, Message, PairState, UNVERIFIED_BURST, UNVERIFIED_INTERVAL, candidate_priority,
};
use adit_protocol::candidate::{Candidate, CandidateKind};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use world::{Plan, World, nat::Kind};

const SEEDS: u64 = 2000;
const EASY: Duration = Duration::from_secs(3);
const HOPELESS: Duration = Duration::from_secs(60);

fn random_plan(seed: u64) -> Plan {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
    let mut kind = || Kind::ALL[rng.random_range(0..Kind::ALL.len())];
    let kinds = [kind(), kind()];
    // Sometimes one end is long between two rounds when the other begins.
    let longest_skew = if rng.random_range(0..4) == 0 { 4000 } else { 400 };
    Plan {
        kinds,
        same_lan: rng.random_range(0..10) == 0,
        v6: rng.random_range(0..5) == 0,
        junk: if rng.random() { rng.random_range(0..=30) } else { 0 },
        delay_ms: rng.random_range(1..=150),
        jitter_ms: rng.random_range(0..=60),
        loss_percent: rng.random_range(0..=8),
        skew_ms: rng.random_range(0..=longest_skew),
        trickle_ms: if rng.random() { rng.random_range(1..=400) } else { 0 },
    }
}

/// Independent of the filter's own code: what no end may ever send to.
fn forbidden(addr: SocketAddr, plan: &Plan) -> bool {
    let text = addr.ip().to_string();
    let within = |prefixes: &[&str]| prefixes.iter().any(|p| text.starts_with(p));
    within(&["127.", "169.254.", "224.", "10.", "::1", "fe80:"])
        || (within(&["192.168."]) && !plan.same_lan)
        || (within(&["172.17.", "fd00:"]) && addr.port() < 1024)
}

fn run_seed(seed: u64) {
    let plan = random_plan(seed);
    let possible = plan.possible();
    let deadline = Duration::from_millis(plan.skew_ms + plan.trickle_ms) + EASY;
    let mut world = World::new(plan.clone(), seed);
    if possible {
        world.run_until(deadline, |w| w.sides.iter().all(|s| s.validated_at().is_some()));
    } else {
        world.run_until(HOPELESS, |_| false);
    }
    for side in &world.sides {
        let valid = side.validated_at();
        assert_eq!(valid.is_some(), possible, "seed {seed}: {plan:#?} {:#?}", side.punch.pairs());
        let admitted = side.events.iter().any(|(_, e)| matches!(e, Event::AddressAdmitted(_)));
        assert_eq!(admitted, possible, "seed {seed}");
        for (_, to, _) in &side.sent {
            assert!(!forbidden(*to, &plan), "seed {seed}: sent to {to}");
        }
        let requests =
            side.sent.iter().filter(|(_, _, m)| matches!(m, Message::Request { .. })).count();
        let seconds = world.elapsed().as_secs() as usize + 1;
        let allowed = UNVERIFIED_BURST as usize
            + seconds * (1000 / UNVERIFIED_INTERVAL.as_millis() as usize)
            + 40;
        assert!(requests <= allowed, "seed {seed}: {requests} requests in {seconds} s");
        if !possible {
            let exhausted =
                side.events.iter().filter(|(_, e)| matches!(e, Event::Exhausted { .. })).count();
            assert_eq!(exhausted, 1, "seed {seed}: {plan:#?}");
        }
    }
}

#[test]
fn easy_pairs_connect_within_3_s_and_impossible_ones_never() {
    for seed in 0..SEEDS {
        run_seed(seed);
    }
}

/// Runs until both ends are validated.
fn connected(kinds: [Kind; 2], seed: u64) -> World {
    let mut world = World::new(Plan::of(kinds), seed);
    world.run_until(EASY, |w| w.sides.iter().all(|s| s.validated_at().is_some()));
    assert!(world.sides.iter().all(|s| s.validated_at().is_some()), "{kinds:?}");
    world
}

#[test]
fn thirty_junk_interfaces_do_not_delay_the_right_pair() {
    for seed in 0..50 {
        let plan = Plan { junk: 30, ..Plan::of([Kind::PortRestricted, Kind::PortRestricted]) };
        let mut world = World::new(plan, seed);
        world.run_until(EASY, |w| w.sides.iter().all(|s| s.validated_at().is_some()));
        // Later candidate lists (40 ms), a round trip (40 ms), one lost first try, and pacing.
        let limit = Duration::from_millis(40 + 40 + 100 + 50);
        for side in &world.sides {
            assert!(side.validated_at().is_some_and(|at| at <= limit), "seed {seed}");
        }
    }
}

#[test]
fn an_end_that_rests_answers_a_late_one_at_once() {
    // Right after a round, and long after one.
    for skew_ms in [8_900, 10_500] {
        let plan = Plan { skew_ms, ..Plan::of([Kind::PortRestricted, Kind::PortRestricted]) };
        let mut world = World::new(plan, skew_ms);
        world.run_until(Duration::from_millis(skew_ms) + EASY, |w| {
            w.sides.iter().all(|s| s.validated_at().is_some())
        });
        // Two round trips: the late end's, and the other's in answer to it.
        let limit = Duration::from_millis(skew_ms + 2 * 40 + 20);
        for side in &world.sides {
            assert!(side.validated_at().is_some_and(|at| at <= limit), "{:?}", side.events);
        }
    }
}

#[test]
fn candidates_announced_again_start_the_other_end_again() {
    // Only the agent's packets can get through, and only after the console's have gone out.
    let skew_ms = 14_000;
    let plan = Plan { skew_ms, ..Plan::of([Kind::Restricted, Kind::Symmetric]) };
    let mut world = World::new(plan, 1);
    world.run_until(Duration::from_millis(skew_ms), |_| false);
    world.announce(0, Duration::from_millis(50), Duration::ZERO);
    let valid = |w: &World| w.sides.iter().all(|s| s.validated_at().is_some());
    world.run_until(Duration::from_millis(skew_ms) + EASY, valid);
    assert!(valid(&world), "{:#?}", world.sides[1].punch.pairs());
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
            world.announce(side, Duration::from_millis(50), Duration::ZERO);
        }
        let valid = |w: &World| w.sides.iter().all(|s| s.validated_at().is_some());
        world.run_until(back + EASY, valid);
        assert!(valid(&world), "seed {seed}: {:#?}", world.sides[0].punch.pairs());
    }
}

#[test]
fn a_rebound_mapping_is_found_again() {
    for seed in 0..30 {
        // The other filters by port: it has to learn the new address from candidates.
        let mut world = connected([Kind::PortRestricted, Kind::PortRestricted], seed);
        world.run_until(Duration::from_secs(10), |_| false);
        world.sides[0].gateway.forget();
        world.sides[1].events.clear();
        let since = world.elapsed();
        let silent =
            |w: &World| w.sides[0].events.iter().any(|(_, e)| matches!(e, Event::Silent { .. }));
        world.run_until(since + Duration::from_secs(9), silent);
        assert!(silent(&world), "seed {seed}");
        let since = world.elapsed();
        world.announce(0, Duration::from_millis(50), Duration::ZERO);
        world.run_until(since + EASY, |w| w.sides[1].validated_at().is_some());
        assert!(world.sides[1].validated_at().is_some(), "seed {seed}");

        // The other does not filter: the next check tells both.
        let mut world = connected([Kind::PortRestricted, Kind::Open], seed);
        world.sides[0].gateway.forget();
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

#[test]
fn forged_answers_and_replayed_requests_move_nothing() {
    let mut world = World::new(Plan::of([Kind::Open, Kind::Open]), 7);
    world.udp_dead = true; // but for what the attacker sends
    world.run_until(Duration::from_millis(500), |_| false);
    let peer: SocketAddr = world.sides[0].punch.pairs()[0].remote;
    let console = world.sides[1].punch.pairs()[0].remote;
    let attacker: SocketAddr = "198.51.100.66:6666".parse().unwrap();
    let Some((_, _, Message::Request { id, .. })) = world.sides[0].sent.first().copied() else {
        panic!("no check was sent")
    };
    // The right transaction from the wrong address, the wrong one from the right address.
    world.deliver(attacker, console, Message::Response { id, mapped: console }, false);
    world.deliver(peer, console, Message::Response { id: [7; 12], mapped: console }, false);
    world.drain();
    assert!(world.sides[0].events.iter().all(|(_, e)| matches!(e, Event::Exhausted { .. })));
    // A request that was recorded, sent again from elsewhere.
    let request = Message::Request { id: [9; 12], priority: 1 };
    let before = world.sides[0].sent.len();
    world.deliver(peer, console, request, false);
    world.drain();
    assert_eq!(world.sides[0].sent.len(), before + 1);
    world.deliver(attacker, console, request, false);
    world.run_until(Duration::from_secs(5), |_| false);
    assert!(world.sides[0].sent.iter().all(|(_, to, _)| *to != attacker));
}

#[test]
fn requests_are_answered_at_a_bounded_rate_and_never_to_forbidden_sources() {
    let mut world = World::new(Plan::of([Kind::Open, Kind::Open]), 7);
    world.udp_dead = true; // but for what is delivered here
    world.run_until(Duration::from_millis(100), |_| false);
    let console = world.sides[1].punch.pairs()[0].remote;
    for n in 0..1000u16 {
        let mut id = [0; 12];
        id[..2].copy_from_slice(&n.to_be_bytes());
        let request = Message::Request { id, priority: 1 };
        for from in ["198.51.100.77:7777", "127.0.0.1:7777", "192.168.9.9:7777"] {
            world.deliver(from.parse().unwrap(), console, request, false);
        }
        // Ever new sources: bounded by the table and by the budget for unverified addresses.
        let from = SocketAddr::new("198.51.100.99".parse().unwrap(), 2000 + n);
        id[11] = 1;
        world.deliver(from, console, Message::Request { id, priority: 1 }, false);
        world.drain();
    }
    let to = |ip: &str| {
        let ip: std::net::IpAddr = ip.parse().unwrap();
        world.sides[0].sent.iter().filter(|(_, to, _)| to.ip() == ip).count()
    };
    assert!((1..=40).contains(&to("198.51.100.77")), "{}", to("198.51.100.77"));
    assert_eq!(to("127.0.0.1") + to("192.168.9.9"), 0);
    assert!(world.sides[0].punch.pairs().len() <= 100);
}

#[test]
fn a_hostile_peer_cannot_make_a_flood_by_announcing() {
    let mut world = World::new(Plan::of([Kind::Open, Kind::Blocked]), 3);
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
