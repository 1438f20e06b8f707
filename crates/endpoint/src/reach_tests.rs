//! The order of attempts at a relay: when each begins, which one wins, and that the others end. On a
//! virtual clock, over many seeds; and once with sockets.

use std::{
    cell::{Cell, RefCell},
    net::Ipv4Addr,
};

use adit_net::noise::join::JoinResponder;
use adit_protocol::code::JoinStatus;
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
    time::sleep,
};

use super::*;

const SEEDS: u64 = 2000;
/// Nothing in these tests takes as long.
const PATIENCE: Duration = Duration::from_secs(20);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("r{n}.example:443")).collect()
}

#[test]
fn raw_begins_and_tls_follows_unless_it_was_needed_here() {
    let times = |needs_tls| -> Vec<_> {
        let plan = plan(&names(3), needs_tls);
        plan.into_iter().map(|(at, way, (host, _))| (at.as_millis(), way.as_str(), host)).collect()
    };
    let expect = |of: [(u128, &'static str, &str); 6]| -> Vec<_> {
        of.into_iter().map(|(at, way, host)| (at, way, format!("{host}.example"))).collect()
    };
    let usual = [
        (0, "raw", "r0"),
        (250, "raw", "r1"),
        (250, "tls", "r0"),
        (500, "raw", "r2"),
        (500, "tls", "r1"),
        (750, "tls", "r2"),
    ];
    assert_eq!(times(false), expect(usual));
    let needed = [
        (0, "raw", "r0"),
        (0, "tls", "r0"),
        (250, "raw", "r1"),
        (250, "tls", "r1"),
        (500, "raw", "r2"),
        (500, "tls", "r2"),
    ];
    assert_eq!(times(true), expect(needed));
    assert!(plan(&["".to_owned(), ":".to_owned()], false).is_empty());
}

/// What comes of an attempt, and after what time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Joined(Duration),
    Failed(Duration),
    Refused(Duration),
    /// Nobody answers.
    Silent,
}

/// What was seen of one.
#[derive(Clone, Copy, Debug)]
struct Made {
    began: Duration,
    fate: Fate,
}

impl Made {
    fn end(&self) -> Option<Duration> {
        match self.fate {
            Fate::Joined(after) | Fate::Failed(after) | Fate::Refused(after) => {
                Some(self.began + after)
            }
            Fate::Silent => None,
        }
    }
}

/// Counts what is under way.
struct Running<'a>(&'a Cell<usize>);

impl<'a> Running<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn fate(&mut self) -> Fate {
        let after = ms(1 + self.below(1200));
        match self.below(10) {
            0..=2 => Fate::Joined(after),
            3..=6 => Fate::Failed(after),
            7 => Fate::Refused(after),
            _ => Fate::Silent,
        }
    }
}

/// Races attempts with these fates, in the order of the plan; what was made of them, the result,
/// and when it came.
async fn play(
    plan: &[Planned],
    fates: &[Fate],
) -> (Vec<Made>, Option<Result<usize, bool>>, Duration) {
    let (began, running) = (Instant::now(), Cell::new(0));
    let made = RefCell::new(Vec::new());
    let attempt = |way, address: (String, u16)| {
        let n = made.borrow().len();
        assert_eq!((way, &address), (plan[n].1, &plan[n].2), "another order");
        let fate = fates[n];
        made.borrow_mut().push(Made { began: began.elapsed(), fate });
        let guard = Running::new(&running);
        async move {
            let _guard = guard;
            match fate {
                Fate::Joined(after) => sleep(after).await,
                Fate::Failed(after) | Fate::Refused(after) => sleep(after).await,
                Fate::Silent => std::future::pending().await,
            }
            match fate {
                Fate::Refused(_) => Err(JoinError::Refused(JoinStatus::Draining).into()),
                Fate::Failed(_) => Err(ReachError::Tls(io::ErrorKind::TimedOut.into())),
                _ => Ok(n),
            }
        }
    };
    // Attempts have deadlines of their own: a silent one ends some time.
    let result = timeout(ms(60_000), race(plan.to_vec(), attempt)).await.ok();
    assert_eq!(running.get(), 0, "a loser is still under way");
    let result = result.map(|result| result.map_err(|error| error.is_refusal()));
    (made.into_inner(), result, began.elapsed())
}

fn judge(plan: &[Planned], made: &[Made], result: Option<Result<usize, bool>>, took: Duration) {
    for (n, (one, (planned, ..))) in made.iter().zip(plan).enumerate() {
        // Never late; early only where nothing that had begun was left.
        assert!(one.began <= *planned, "{n} late");
        let left = made[..n].iter().any(|m| m.end().is_none_or(|end| end > one.began));
        assert!(one.began == *planned || !left, "{n} early");
        assert!(n == 0 || made[n - 1].began <= one.began, "{n} out of turn");
        assert!(one.began <= took, "{n} after the end");
    }
    // Whatever was due by then was tried.
    let due = plan.iter().filter(|(at, ..)| *at < took).count();
    assert!(made.len() >= due, "only {} of {due}", made.len());
    let decisive = |m: &&Made| matches!(m.fate, Fate::Joined(_) | Fate::Refused(_));
    let first = made.iter().filter(decisive).filter_map(Made::end).min();
    match result {
        Some(Ok(winner)) => {
            assert!(matches!(made[winner].fate, Fate::Joined(_)));
            assert_eq!((made[winner].end(), Some(took)), (first, first), "another was first");
        }
        Some(Err(true)) => assert_eq!(first, Some(took), "a refusal that was not the first word"),
        Some(Err(false)) => {
            assert!(first.is_none() && made.len() == plan.len(), "given up too early");
            assert_eq!(made.iter().filter_map(Made::end).max(), Some(took));
        }
        None => assert!(first.is_none() && made.iter().any(|m| m.fate == Fate::Silent)),
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_are_staggered_the_first_that_is_joined_wins_and_the_others_end() {
    let mut won = [0; 2];
    for seed in 0..SEEDS {
        let mut chance = Chance(seed);
        let addresses = 1 + usize::try_from(chance.below(4)).unwrap();
        let plan = plan(&names(addresses), chance.below(2) == 0);
        assert_eq!(plan.len(), 2 * addresses);
        let fates: Vec<_> = plan.iter().map(|_| chance.fate()).collect();
        let (made, result, took) = play(&plan, &fates).await;
        let verdict = std::panic::catch_unwind(|| judge(&plan, &made, result, took));
        assert!(verdict.is_ok(), "seed {seed}: {plan:?} {made:#?} {result:?} after {took:?}");
        if let Some(Ok(winner)) = result {
            won[usize::from(plan[winner].1 == Way::Tls)] += 1;
        }
    }
    assert!(won.iter().all(|n| *n > 100), "{won:?}");
}

#[tokio::test(start_paused = true)]
async fn where_only_tls_passes_it_is_joined_a_head_start_later_and_at_once_the_next_time() {
    let passes = Fate::Joined(ms(40));
    let plan_of = |needs_tls| plan(&names(2), needs_tls);
    for (needs_tls, took) in [(false, 290), (true, 40)] {
        let plan = plan_of(needs_tls);
        let fate = |way| if way == Way::Tls { passes } else { Fate::Silent };
        let fates: Vec<_> = plan.iter().map(|(_, way, _)| fate(*way)).collect();
        let (_, result, after) = play(&plan, &fates).await;
        let winner = &plan[result.unwrap().unwrap()];
        assert_eq!((winner.1, winner.2.0.as_str()), (Way::Tls, "r0.example"));
        assert_eq!(after, ms(took));
    }
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_is_there_but_unknown_says_more_than_a_way_that_is_closed() {
    let attempt = |way, _| async move {
        sleep(ms(10)).await;
        Err::<(), _>(match way {
            Way::Raw => ReachError::Join(JoinError::Timeout),
            Way::Tls => ReachError::Tls(io::ErrorKind::ConnectionReset.into()),
        })
    };
    let error = race(plan(&names(2), false), attempt).await.unwrap_err();
    assert!(matches!(error, ReachError::Join(JoinError::Timeout)), "{error}");
    let error = race(Vec::new(), attempt).await.unwrap_err();
    assert!(matches!(error, ReachError::NoAddress), "{error}");
}

/// Accepts connections and says nothing; reads each to its end.
async fn mute(listener: TcpListener, ended: &Cell<usize>) {
    let mut streams = Vec::new();
    for _ in 0..2 {
        streams.push(listener.accept().await.unwrap().0);
    }
    for mut stream in streams {
        let mut heard = Vec::new();
        // Reset or closed: it is over.
        let _ = stream.read_to_end(&mut heard).await;
        assert!(!heard.is_empty(), "nothing was begun");
        ended.set(ended.get() + 1);
    }
}

/// The relay's side of one join.
async fn accept_one(listener: TcpListener, identity: Arc<DeviceIdentity>) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut responder = JoinResponder::new(&identity.noise).unwrap();
    let mut message = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut message).await.unwrap();
    responder.handle_message1(&message).unwrap();
    let reply = responder.reply(JoinStatus::Accepted).unwrap();
    stream.write_u16(u16::try_from(reply.len()).unwrap()).await.unwrap();
    stream.write_all(&reply).await.unwrap();
    stream
}

#[tokio::test]
async fn connections_that_lost_are_closed() {
    let any = (Ipv4Addr::LOCALHOST, 0);
    let silent = TcpListener::bind(any).await.unwrap();
    let working = TcpListener::bind(any).await.unwrap();
    let [first, second] = [&silent, &working].map(|l| l.local_addr().unwrap());
    let (own, theirs) =
        (DeviceIdentity::generate(1).unwrap(), DeviceIdentity::generate(1).unwrap());
    let relay = Relay {
        key: theirs.signing.public().0,
        id: Bytes::new(),
        name: "relay".to_owned(),
        addresses: vec![first.to_string(), second.to_string()],
        noise_key: theirs.noise.public,
        ticket: adit_protocol::wire::Signed::default(),
    };
    let dialer = Arc::new(Dialer::direct());
    let memory = Memory::new(Arc::clone(&dialer), None, "m.example:443".to_owned());
    memory.set_relays(&[], Some(first));
    let reach = Reach { dialer, identity: Arc::new(own), memory };

    let ended = Cell::new(0);
    let mut relays = JoinSet::new();
    relays.spawn(accept_one(working, Arc::new(theirs)));
    let joined = async {
        let reached = reach.join(&relay, 0, None).await.unwrap();
        assert_eq!(reached.way, Way::Raw);
        assert_eq!(reached.stream.peer_addr(), Some(second));
        reached
    };
    // One raw, one inside TLS, to the address that says nothing: both are over once the join is
    // accepted at the other.
    let both = async { tokio::join!(joined, mute(silent, &ended)) };
    let (reached, ()) = timeout(PATIENCE, both).await.expect("a loser is still open");
    assert_eq!(ended.get(), 2);
    assert!(relays.join_next().await.unwrap().is_ok());
    drop(reached);
}
