//! Relays: what dies with one, how fast the first byte is through one, and what it means to leave
//! one for a direct path.

use std::{
    fs,
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{AGAIN, Scene, Seen, scene};
use crate::{
    paths::world::{Felt, Place, RATE, World, in_background},
    peer,
    process::{Process, pause},
};

/// Time for another relay to take over (issue: 3 s).
const REPLACED: Duration = Duration::from_secs(3);
/// Networks between which nothing goes direct.
const RELAYED: &str = "symmetric+symmetric";
/// What a keystroke may take more beside a bulk transfer.
const KEYSTROKE_MORE_MS: f64 = 20.0;
/// End-to-end round trip of the first byte's laboratory, and how many of them it may take.
const FIRST_BYTE_RTT_MS: f64 = 100.0;
const FIRST_BYTE_RTTS: f64 = 3.5;
/// So often it is opened. Round trips are what is judged, and a busy processor only ever adds to
/// them: so the quickest must keep the bar. One round trip too many, now and then, would show in
/// the median, which may take half a round trip more.
const OPENS: usize = 5;
const MEDIAN_MORE_RTTS: f64 = 0.5;
/// What the direct path gives in the second after the first one, of what it gives later.
const SOON: f64 = 0.8;
/// And later at least this, in Mbit/s, also in programs that are not optimized and beside other
/// work: three times what the relays carry.
const MUCH: f64 = 60.0;
/// So many moves are made: the first is to sockets that no server has seen yet.
const MOVES: usize = 2;

pub(super) fn scenes() -> Vec<Scene> {
    vec![
        scene("relay-killed", "the relay in use is killed", |p| {
            relay_dies(p, |world, relay| world.site.kill(relay))
        }),
        scene("relay-silent", "the relay in use loses its network, without a word", |p| {
            relay_dies(p, |world, relay| {
                let host = if relay == "relay2" { "relay2" } else { "relay1" };
                world.ctl(&format!("set {host} off=1"))
            })
        }),
        scene("relay-near", "one relay is 60 ms nearer: it is taken", relay_choice),
        Scene {
            alone: true,
            ..scene("keystroke", "a keystroke beside a file copy, both relayed", keystroke)
        },
        Scene {
            alone: true,
            ..scene("first-byte", "the first byte through a relay, 100 ms round trip", |p| {
                first_byte(p, |_, _| Ok("console".to_owned()), false)
            })
        },
        Scene {
            alone: true,
            ..scene("first-byte-first", "the same from consoles that have only logged in", |p| {
                first_byte(p, newcomer, true)
            })
        },
        Scene {
            alone: true,
            ..scene(
                "to-direct",
                "a copy moves from 120 ms, 20 Mbit/s to 20 ms, 200 Mbit/s",
                to_direct,
            )
        },
    ]
}

fn relayed_world(place: &Place<'_>, scenario: &str) -> Result<World> {
    let mut world = World::start(place, scenario)?;
    world.open_until("relayed", Duration::from_secs(10))?;
    // Both relays are joined and measured.
    pause(Duration::from_secs(1));
    Ok(world)
}

fn relay_dies(place: &Place<'_>, kill: fn(&mut World, &str) -> Result<()>) -> Result<Seen> {
    let mut world = relayed_world(place, RELAYED)?;
    let flow = world.flow(RATE)?;
    pause(Duration::from_secs(1));
    let relay = world.relay_in_use()?;
    let since = Instant::now();
    kill(&mut world, relay)?;
    pause(Duration::from_secs(6));
    ensure!(world.relay_in_use()? != relay, "still at {relay}");
    let flowed = flow.finish()?;
    let felt = Felt {
        stall: flowed.stall_since(since),
        direct: None,
        bytes: flowed.bytes.0 + flowed.bytes.1,
    };
    world.close()?;
    Ok(Seen::felt(&felt, REPLACED, None))
}

/// To and fro, since one of two would often be the right one by chance.
fn relay_choice(place: &Place<'_>) -> Result<Seen> {
    let mut world = World::prepare(place, RELAYED, false)?;
    world.run_servers()?;
    for (near, far, used) in
        [("relay2", "relay1", "relay2"), ("relay1", "relay2", "relay")].repeat(2)
    {
        world.close_console()?;
        world.ctl(&format!("set {near} delay=0"))?;
        world.ctl(&format!("set {far} delay=15"))?;
        world.open_until("relayed", Duration::from_secs(10))?;
        pause(Duration::from_secs(3));
        world.use_it()?;
        let relay = world.relay_in_use()?;
        ensure!(relay == used, "{far} is slower, and in use after 3 s");
    }
    world.close()?;
    Ok(Seen::note("the nearer one within 3 s, four times"))
}

fn keystroke(place: &Place<'_>) -> Result<Seen> {
    let line = "symmetric:delay=10:rate=100:queue=10";
    let world = relayed_world(place, &format!("{line}+{line}"))?;
    let echo = |count| move |local| peer::echo(local, count, 16);
    let base = median(world.beside_console(echo(30))?);
    let local = World::local()?;
    let bulk = in_background(world.namespace("console")?, move || {
        peer::fetch(local, 8, 30_000_000, 0, |_| {})
    });
    pause(Duration::from_secs(2));
    let beside = median(world.beside_console(echo(60))?);
    let bulk = bulk.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    ensure!(bulk["intact"] == true, "{bulk}");
    let mbit = 30_000_000.0 * 8.0 / bulk["ms"].as_f64().context("ms")? / 1e3;
    let mut seen =
        Seen::note(format!("alone {base:.0} ms, beside a copy at {mbit:.0} Mbit/s {beside:.0} ms"));
    if beside > base + KEYSTROKE_MORE_MS {
        seen.problems.push(format!("a keystroke takes {beside:.0} ms instead of {base:.0} ms"));
    }
    world.close()?;
    Ok(seen)
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A console that never opened anything.
fn newcomer(world: &World, number: usize) -> Result<String> {
    let name = format!("console-new{number}");
    world.site.login(&name)?;
    Ok(name)
}

/// `who`: the console of each run. `first`: each of them must be a first contact.
fn first_byte(
    place: &Place<'_>,
    who: fn(&World, usize) -> Result<String>,
    first: bool,
) -> Result<Seen> {
    let line = "symmetric:delay=25";
    let mut world = World::start(place, &format!("{line}+{line}"))?;
    // Connections of mediator and relays to each other have settled.
    pause(Duration::from_secs(1));
    let mut times = Vec::new();
    for run in 0..OPENS {
        let instance = who(&world, run)?;
        let begin = Instant::now();
        let local = World::local()?;
        let byte = in_background(world.namespace("console")?, move || {
            peer::first_byte(local, Duration::from_secs(10))
        });
        world.open_as(&instance, &[])?;
        let at = byte.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        times.push((at - begin).as_secs_f64() * 1e3);
        let mut console: Process = world.console.take().context("no console")?;
        let events = console.events();
        let met = events.iter().any(|event| event["first_contact"] == true);
        ensure!(met || !first, "not a first contact: {events:?}");
        console.interrupt()?;
    }
    world.close()?;
    Ok(judge_opens(times))
}

/// See [`OPENS`].
fn judge_opens(times: Vec<f64>) -> Seen {
    let trips = |ms: f64| ms / FIRST_BYTE_RTT_MS;
    let least = times.iter().copied().fold(f64::INFINITY, f64::min);
    let median = median(times);
    let mut seen = Seen::note(format!(
        "{least:.0} ms: {:.2} round trips; {median:.0} ms in the median",
        trips(least)
    ));
    for (what, took, allowed) in [
        ("at best", least, FIRST_BYTE_RTTS),
        ("in the median", median, FIRST_BYTE_RTTS + MEDIAN_MORE_RTTS),
    ] {
        if trips(took) > allowed {
            let took = trips(took);
            seen.problems.push(format!("{took:.2} round trips {what}, allowed {allowed:.2}"));
        }
    }
    seen
}

/// Bytes that came, by time.
type Progress = Vec<(Instant, u64)>;

fn to_direct(place: &Place<'_>) -> Result<Seen> {
    let line = "port-restricted:delay=5:rate=200";
    let mut world = World::prepare(place, &format!("{line}+{line}"), false)?;
    for relay in ["relay1", "relay2"] {
        world.ctl(&format!("set {relay} delay=25 rate=20"))?;
    }
    world.ctl("set agent-nat allow=no-udp")?;
    world.run_servers()?;
    let mut moves: Vec<Move> = Vec::new();
    for number in 0..MOVES {
        if number > 0 {
            world.close_console()?;
            world.ctl("set agent-nat allow=no-udp")?;
        }
        let made = one_move(&mut world)?;
        let file = world.site.artifacts().join(format!("progress-{number}.txt"));
        fs::write(file, &made.progress)?;
        moves.push(made);
    }
    let told = |m: &Move| format!("{:.0} Mbit/s after 1 s, {:.0} later", m.soon, m.later);
    let mut seen = Seen::note(moves.iter().map(told).collect::<Vec<_>>().join("; "));
    seen.direct = moves.iter().map(|m| m.after).max();
    for slow in moves.iter().filter(|m| m.soon < SOON * m.later) {
        seen.problems.push(format!("less than 80 % a second after the move: {}", told(slow)));
    }
    for little in moves.iter().filter(|m| m.later < MUCH) {
        seen.problems.push(format!("no more than the relayed path gives: {}", told(little)));
    }
    if let Some(late) = seen.direct.filter(|after| *after > AGAIN) {
        seen.problems.push(format!("direct only {late:?} after UDP passed"));
    }
    world.close()?;
    Ok(seen)
}

/// What one move was like: the time to the direct carrier, and Mbit/s.
struct Move {
    after: Duration,
    soon: f64,
    later: f64,
    /// Milliseconds since UDP passes, and bytes.
    progress: String,
}

fn one_move(world: &mut World) -> Result<Move> {
    world.open_until("relayed", Duration::from_secs(10))?;
    let local = World::local()?;
    let came = std::sync::Arc::new(Mutex::new(Progress::new()));
    let told = std::sync::Arc::clone(&came);
    let bulk = in_background(world.namespace("console")?, move || {
        let tell = |bytes| {
            if let Ok(mut told) = told.lock() {
                told.push((Instant::now(), bytes));
            }
        };
        peer::fetch(local, 8, 150_000_000, 0, tell)
    });
    pause(Duration::from_secs(3));
    let since = Instant::now();
    world.ctl("set agent-nat allow=all")?;
    let Some(after) = world.direct_again(since, Duration::from_secs(30))? else {
        bail!("not direct within 30 s of UDP's return")
    };
    let done = bulk.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    ensure!(done["intact"] == true, "{done}");
    let came = came.lock().map_err(|_| anyhow::anyhow!("a thread panicked"))?.clone();
    let times: Vec<_> = came
        .iter()
        .filter_map(|(at, bytes)| Some((at.checked_duration_since(since)?.as_millis(), bytes)))
        .map(|(ms, bytes)| format!("{ms} {bytes}"))
        .collect();
    let second = |n: u32| {
        let at = |n| since + after + Duration::from_secs(1) * n;
        rate(&came, at(n), at(n + 1))
    };
    let soon = second(1).context("the copy was over within two seconds")?;
    let later = (2..=4).map_while(second).collect::<Vec<_>>();
    ensure!(!later.is_empty(), "the copy was over within three seconds");
    Ok(Move { after, soon, later: median(later), progress: times.join("\n") })
}

/// Mbit/s between two moments, if bytes came until then.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn rate(came: &Progress, from: Instant, to: Instant) -> Option<f64> {
    // Between two reports bytes came evenly, as far as anybody knows.
    let at = |moment: Instant| {
        let next = came.iter().position(|(at, _)| *at >= moment)?;
        let ((t0, b0), (t1, b1)) = (came.get(next.checked_sub(1)?)?, came.get(next)?);
        let part = (moment - *t0).as_secs_f64() / (*t1 - *t0).as_secs_f64();
        Some(*b0 as f64 + (*b1 - *b0) as f64 * part)
    };
    Some((at(to)? - at(from)?) * 8.0 / (to - from).as_secs_f64() / 1e6)
}
