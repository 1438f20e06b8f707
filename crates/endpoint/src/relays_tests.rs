//! The choice of relays: the least sum of both ends' round trips, steadily.

use super::*;

const A: RelayKey = [1; 32];
const B: RelayKey = [2; 32];
const C: RelayKey = [3; 32];
const D: RelayKey = [4; 32];
const MS: Duration = Duration::from_millis(1);

fn ends(session: u8, now: Instant) -> (Relays, Relays) {
    let id = SessionId([session; 16]);
    (Relays::new(Role::Console, id, now), Relays::new(Role::Agent, id, now))
}

fn steps(relays: &mut Relays) -> Vec<Step> {
    std::iter::from_fn(|| relays.poll_step()).collect()
}

fn rtts(of: &[(RelayKey, u32)]) -> Vec<(RelayKey, Duration)> {
    of.iter().map(|(key, ms)| (*key, MS * *ms)).collect()
}

/// A console with A and B joined and up.
fn settled(now: Instant) -> Relays {
    let (mut console, _) = ends(0, now);
    let (own, peer) = (rtts(&[(A, 10), (B, 20), (C, 30)]), rtts(&[(A, 10), (B, 20), (C, 30)]));
    console.begin(&[A, B, C], &own, &peer, now);
    assert_eq!(steps(&mut console), [Step::Join(A, 0), Step::Join(B, 0)]);
    console.handle_up(&A, 0, CarrierNumber(1), now);
    console.handle_up(&B, 0, CarrierNumber(2), now);
    assert_eq!(steps(&mut console), []);
    console
}

#[test]
fn both_ends_join_the_same_two_however_they_are_offered() {
    let now = Instant::now();
    for session in 0..50 {
        let (mut console, mut agent) = ends(session, now);
        let (c, a) = (rtts(&[(A, 40), (B, 1), (D, 30)]), rtts(&[(A, 10), (C, 300), (B, 90)]));
        console.begin(&[A, B, C, D], &c, &a, now);
        agent.begin(&[D, C, B, A], &a, &c, now);
        assert_eq!(steps(&mut console), [Step::Join(A, 0), Step::Join(B, 0)]);
        assert_eq!(steps(&mut agent), [Step::Join(A, 0), Step::Join(B, 0)]);
        // Without figures too.
        let (mut console, mut agent) = ends(session, now);
        console.begin(&[A, B, C, D], &[], &[], now);
        agent.begin(&[C, D, A, B], &[], &[], now);
        assert_eq!(steps(&mut console), steps(&mut agent));
    }
}

#[test]
fn a_relay_that_dies_is_replaced_and_left() {
    let t0 = Instant::now();
    let mut console = settled(t0);
    console.handle_down(CarrierNumber(1), t0);
    assert_eq!(steps(&mut console), [], "it may come back");
    console.handle_timeout(t0 + 1000 * MS);
    assert_eq!(steps(&mut console), [Step::TellJoin(tag(&C), 0), Step::Join(C, 0)]);
    console.handle_timeout(t0 + 1500 * MS);
    assert_eq!(steps(&mut console), []);
    console.handle_up(&C, 0, CarrierNumber(3), t0 + 1600 * MS);
    assert_eq!(steps(&mut console), [Step::TellLeave(tag(&A)), Step::Leave(A)]);
    // The next one to die has no successor: others are asked for, at growing gaps.
    console.handle_silent(CarrierNumber(2), true, t0 + 2000 * MS);
    console.handle_timeout(t0 + 3000 * MS);
    assert_eq!(steps(&mut console), [Step::AskOthers]);
    console.handle_timeout(t0 + 4000 * MS);
    assert_eq!(steps(&mut console), []);
    console.handle_offered(&[D], t0 + 4100 * MS);
    assert_eq!(steps(&mut console), [Step::TellJoin(tag(&D), 0), Step::Join(D, 0)]);
    // Heard of again in time: three, and the worst goes.
    console.handle_silent(CarrierNumber(2), false, t0 + 4200 * MS);
    console.handle_up(&D, 0, CarrierNumber(4), t0 + 4300 * MS);
    assert_eq!(steps(&mut console), [Step::TellLeave(tag(&D)), Step::Leave(D)]);
}

#[test]
fn a_clearly_better_relay_is_gone_over_to_and_a_little_better_one_not() {
    let t0 = Instant::now();
    let mut console = settled(t0);
    console.handle_rtts(true, &rtts(&[(C, 6)]), t0);
    assert_eq!(steps(&mut console), [], "36 instead of 40");
    console.handle_rtts(false, &rtts(&[(C, 9)]), t0);
    assert_eq!(steps(&mut console), [Step::TellJoin(tag(&C), 0), Step::Join(C, 0)]);
    console.handle_up(&C, 0, CarrierNumber(3), t0);
    assert_eq!(steps(&mut console), [Step::TellLeave(tag(&B)), Step::Leave(B)]);
    console.handle_rtts(true, &rtts(&[(B, 1)]), t0);
    console.handle_rtts(false, &rtts(&[(B, 1)]), t0);
    assert_eq!(steps(&mut console), [], "it was left a moment ago, and is no better by much");
}

#[test]
fn ends_without_any_carrier_join_everything() {
    let t0 = Instant::now();
    let mut console = settled(t0);
    console.handle_down(CarrierNumber(1), t0);
    console.handle_down(CarrierNumber(2), t0);
    console.handle_stranded(true, t0);
    assert_eq!(steps(&mut console), []);
    console.handle_timeout(t0 + 500 * MS);
    assert_eq!(steps(&mut console), [Step::Join(C, 0), Step::AskOthers]);
    console.handle_up(&B, 0, CarrierNumber(4), t0 + 900 * MS);
    console.handle_stranded(false, t0 + 900 * MS);
    console.handle_up(&C, 0, CarrierNumber(5), t0 + 950 * MS);
    console.handle_timeout(t0 + 2000 * MS);
    assert_eq!(steps(&mut console), [Step::TellLeave(tag(&A)), Step::Leave(A)]);
}

#[test]
fn the_agent_follows_and_asks_for_relays_that_it_does_not_know() {
    let t0 = Instant::now();
    let (_, mut agent) = ends(0, t0);
    agent.begin(&[A, B], &[], &[], t0);
    steps(&mut agent);
    agent.handle_up(&A, 0, CarrierNumber(1), t0);
    agent.handle_peer_join(tag(&C), 0, t0);
    assert_eq!(steps(&mut agent), [Step::AskOthers]);
    agent.handle_offered(&[D, C], t0);
    assert_eq!(steps(&mut agent), [Step::Join(C, 0)]);
    agent.handle_peer_join(tag(&A), 1, t0);
    agent.handle_peer_join(tag(&A), 2, t0);
    assert_eq!(steps(&mut agent), [Step::Join(A, 1)], "there are two slots");
    agent.handle_peer_leave(tag(&A), t0);
    assert_eq!(steps(&mut agent), [Step::Leave(A)]);
    agent.handle_up(&C, 0, CarrierNumber(2), t0);
    agent.handle_timeout(t0 + UNVISITED);
    assert_eq!(steps(&mut agent), [Step::Leave(B)], "the console never came");
}

#[test]
fn what_is_known_stays_bounded() {
    let t0 = Instant::now();
    let mut console = settled(t0);
    for n in 10..100 {
        console.handle_offered(&[[n; 32]], t0);
    }
    assert_eq!(console.view().len(), MAX_KNOWN);
    assert!(console.view().iter().filter(|v| v.in_hand).count() == 2);
}
