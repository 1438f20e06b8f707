//! Floods of the HTTPS port: whoever asks too much waits, others are served, and memory stays
//! bounded (R16, R42).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use adit_protocol::{
    code::failure,
    wire::{self, frame::Body},
};
use common::{
    Mediator,
    api::{Answer, Web, Who, register},
    hello, identity,
    provider::Provider,
};
use serde_json::json;
use tokio::task::JoinSet;

/// Connections of one flood.
const CONNECTIONS: usize = 8;
/// Until a flood must have met its bound, also on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// An answer to somebody else must not take longer in a flood: far above what it takes, far below
/// what waiting for the flood's end would.
const SERVED_WITHIN: Duration = Duration::from_secs(5);

async fn admin(mediator: &Mediator) -> Who {
    mediator.admin(&["role", "bind", "owner", "--user", "admin", "--installation"]);
    let me = identity();
    let device = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
    device.login("admin", &mediator.password).await.unwrap();
    Who::at(&device, &me).await
}

async fn ask(web: &mut Web, who: &Who) -> Answer {
    read(web, who, "/api/v1/me").await
}

async fn read(web: &mut Web, who: &Who, target: &str) -> Answer {
    let proof = web.proof(who, "GET", target);
    let headers = [("authorization", format!("DPoP {}", who.token)), ("dpop", proof)];
    web.send("GET", target, &headers, None).await
}

fn is_told_to_wait(answer: &Answer) -> bool {
    let wait = answer.headers.get("retry-after").and_then(|wait| wait.to_str().ok());
    let told = answer.status == 429 && answer.code() == failure::RATE_LIMITED;
    told && wait.is_some_and(|wait| (1..=60).contains(&wait.parse::<u64>().unwrap()))
}

/// Asks as another until the flood was told to wait often enough; the slowest answer.
async fn meanwhile(web: &mut Web, who: &Who, waits: &AtomicU64) -> Duration {
    let (begun, mut slowest, mut after) = (Instant::now(), Duration::ZERO, 0);
    while after < 20 {
        assert!(begun.elapsed() < PATIENCE, "the flood met no bound");
        let asked = Instant::now();
        let answer = ask(web, who).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        slowest = slowest.max(asked.elapsed());
        after += u32::from(waits.load(Ordering::Relaxed) > 0);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    slowest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_floods_waits_and_others_at_the_same_address_are_served() {
    let mediator = Mediator::start();
    let root = admin(&mediator).await;
    let mut web = Web::connect(&mediator).await;
    let flooder = Arc::new(register(&mut web, &root, "flooder", "auditor", &json!({})).await);
    let other = register(&mut web, &root, "other", "auditor", &json!({})).await;
    let (waits, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut flood = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let mut web = Web::connect(&mediator).await;
        let (flooder, waits, over) = (Arc::clone(&flooder), Arc::clone(&waits), Arc::clone(&over));
        flood.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let answer = ask(&mut web, &flooder).await;
                if answer.status != 200 {
                    assert!(is_told_to_wait(&answer), "{answer:?}");
                    waits.fetch_add(1, Ordering::Relaxed);
                    // So that the address itself stays within its bound.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        });
    }
    let slowest = meanwhile(&mut web, &other, &waits).await;
    over.store(true, Ordering::Relaxed);
    assert_served(flood, slowest, &waits).await;
}

/// The flood went as it should, and others did not wait for it.
async fn assert_served(mut flood: JoinSet<()>, slowest: Duration, waits: &AtomicU64) {
    while let Some(done) = flood.join_next().await {
        done.unwrap();
    }
    assert!(slowest < SERVED_WITHIN, "{slowest:?}");
    println!(
        "told to wait {} times; slowest other answer {slowest:?}",
        waits.load(Ordering::Relaxed)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_floods_waits_and_other_sources_are_served() {
    let mediator = Mediator::start();
    let root = admin(&mediator).await;
    let mut web = Web::connect(&mediator).await;
    let (waits, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut flood = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let mut web = Web::connect_from(&mediator, "127.0.0.9").await;
        let (waits, over) = (Arc::clone(&waits), Arc::clone(&over));
        flood.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let answer = web.send("GET", "/api/v1/version", &[], None).await;
                if answer.status != 200 {
                    assert!(is_told_to_wait(&answer), "{answer:?}");
                    waits.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    let slowest = meanwhile(&mut web, &root, &waits).await;
    over.store(true, Ordering::Relaxed);
    assert_served(flood, slowest, &waits).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_searches_without_end_waits_and_others_find_what_they_search() {
    const SEARCH: &str = "/api/v1/audit/events?person=flooder&event=audit.read&limit=1000";
    let mediator = Mediator::start();
    let root = admin(&mediator).await;
    let mut web = Web::connect(&mediator).await;
    let flooder = Arc::new(register(&mut web, &root, "flooder", "auditor", &json!({})).await);
    let other = register(&mut web, &root, "other", "auditor", &json!({})).await;
    let (waits, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut flood = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let mut web = Web::connect(&mediator).await;
        let (flooder, waits, over) = (Arc::clone(&flooder), Arc::clone(&waits), Arc::clone(&over));
        flood.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let answer = read(&mut web, &flooder, SEARCH).await;
                if answer.status != 200 {
                    assert!(is_told_to_wait(&answer), "{answer:?}");
                    let detail = answer.body["detail"].as_str().unwrap();
                    // Beside what anybody may ask: searches of one's own that are under way.
                    waits.fetch_add(u64::from(detail.contains("searches")), Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        });
    }
    let (begun, mut slowest) = (Instant::now(), Duration::ZERO);
    for _ in 0..20 {
        while waits.load(Ordering::Relaxed) == 0 {
            assert!(begun.elapsed() < PATIENCE, "the flood met no bound");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let asked = Instant::now();
        let answer = read(&mut web, &other, "/api/v1/audit/events?person=admin").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        slowest = slowest.max(asked.elapsed());
    }
    over.store(true, Ordering::Relaxed);
    assert_served(flood, slowest, &waits).await;
}

/// Beyond what a plain thread takes at once, so that those are needed which take what others
/// leave; and those get nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_on_a_machine_whose_processors_are_busy_are_answered() {
    /// As long as a console waits for an answer.
    const ANSWERED_WITHIN: Duration = Duration::from_secs(15);
    let mediator = Mediator::start();
    let over = Arc::new(AtomicBool::new(false));
    let busy: Vec<_> = (0..std::thread::available_parallelism().unwrap().get())
        .map(|_| {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for _ in 0..12 {
        let me = identity();
        let device = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
        let asked = Instant::now();
        let told = tokio::time::timeout(ANSWERED_WITHIN, device.login("admin", &mediator.password));
        let told = told.await.map(|told| told.map(|_| ()));
        slowest = slowest.max(asked.elapsed());
        if !matches!(told, Ok(Ok(()))) {
            over.store(true, Ordering::Relaxed);
            panic!("{told:?} after {slowest:?}");
        }
    }
    over.store(true, Ordering::Relaxed);
    for thread in busy {
        thread.join().unwrap();
    }
    println!("slowest login {slowest:?}");
}

/// Sources of a flood from many.
const SOURCES: u8 = 48;
/// Rounds of each.
const EACH: usize = 40;
/// Browsers that are sent to an identity provider in a round: in all more than are remembered.
const SENT_THERE: usize = 3;
/// What strangers may make the mediator keep: connections, browsers, consoles that wait, failures.
const MAY_KEEP_KB: u64 = 48 * 1024;

fn resident_kb(mediator: &Mediator) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", mediator.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What a browser that is sent to an identity provider must bring back.
fn state_of(sent: &Answer) -> String {
    let page = sent.body.as_str().unwrap_or_default();
    let Some((_, state)) = page.split_once("state=") else { panic!("not sent: {sent:?}") };
    let is_state = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    state.chars().take_while(is_state).collect()
}

/// Whoever is sent to an identity provider may come back with anything, as often as they like.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_do_not_fill_a_partners_log_by_what_they_bring_from_its_provider() {
    const TIMES: usize = 30;
    let mediator = Mediator::start();
    let provider = Provider::start().await;
    let id = provider.add_to(&mediator, "Directory");
    let begun = Instant::now();
    for source in ["127.0.0.7", "127.0.0.8"] {
        let mut web = Web::connect_from(&mediator, source).await;
        for turn in 0..TIMES {
            // To another's address; and with a code that is good for nothing.
            let at = if turn % 2 == 0 { "x" } else { "directory" };
            let sent = format!("/login/oidc?provider={id}");
            let sent = web.send("GET", &sent, &[], None).await;
            let cookie = sent.headers["set-cookie"].to_str().unwrap();
            let cookie = [("cookie", cookie.split(';').next().unwrap().to_owned())];
            let back = format!("/login/oidc/finish?at={at}&code=x&state={}", state_of(&sent));
            let told = web.send("GET", &back, &cookie, None).await;
            let page = told.body.as_str().unwrap();
            assert!(told.status == 403 && page.contains("did not let you in"), "{told:?}");
        }
    }
    let failed = mediator.events_named("login.failed");
    let of = |source: &str| {
        let from =
            |event: &&serde_json::Value| event["source"].as_str().unwrap().starts_with(source);
        failed.iter().filter(from).count()
    };
    // Each source once a minute.
    let most = 1 + usize::try_from(begun.elapsed().as_secs() / 60).unwrap();
    for source in ["127.0.0.7:", "127.0.0.8:"] {
        assert!((1..=most).contains(&of(source)), "{failed:?}");
    }
    assert_eq!(failed[0]["end_reason"], "identity_provider");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_do_not_fill_the_memory() {
    let mediator = Mediator::start();
    let mut web = Web::connect(&mediator).await;
    web.send("GET", "/login", &[], None).await;
    let provider = Provider::start().await;
    let id = provider.add_to(&mediator, "Directory");
    let device = "B".repeat(3_000);
    let sent_there = Arc::new(format!("/login/oidc?provider={id}&code={device}"));
    state_of(&web.send("GET", &sent_there, &[], None).await);
    let before = resident_kb(&mediator);
    let port = mediator.port;
    let mediator = Arc::new(mediator);
    let mut flood = JoinSet::new();
    for number in 1..=SOURCES {
        let (mediator, sent_there) = (Arc::clone(&mediator), Arc::clone(&sent_there));
        flood.spawn(async move {
            let source = format!("127.0.1.{number}");
            let mut web = Web::connect_from(&mediator, &source).await;
            // As much as a form may have, with a token of nobody's.
            let form = format!("csrf={}", "x".repeat(30 * 1024));
            let origin = format!("https://127.0.0.1:{port}");
            let stolen = "adit-api-0123456789012345678901234567890123456789012";
            for _ in 0..EACH {
                // Each time another browser.
                assert_eq!(web.send("GET", "/login", &[], None).await.status, 200);
                for _ in 0..SENT_THERE {
                    // Each is remembered until it comes back.
                    state_of(&web.send("GET", &sent_there, &[], None).await);
                }
                let headers = [("origin", origin.clone())];
                assert!(web.send("POST", "/login", &headers, Some(&form)).await.status >= 400);
                let headers = [("authorization", format!("DPoP {stolen}"))];
                let refused = web.send("POST", "/api/v1/users", &headers, Some(&form)).await;
                assert_eq!(refused.status, 401);
            }
        });
    }
    // Consoles that wait to be logged in, each with a key of its own.
    let mut waiting = Vec::new();
    for _ in 0..64 {
        let me = identity();
        let device = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
        let wish = wire::DeviceLogin { name: "x".repeat(1_000) };
        let _ = device.ask(Body::DeviceLogin(wish)).await;
        waiting.push(device);
    }
    while let Some(done) = flood.join_next().await {
        done.unwrap();
    }
    let grown = resident_kb(&mediator).saturating_sub(before);
    println!("{grown} KB more after {} requests", usize::from(SOURCES) * EACH * (3 + SENT_THERE));
    assert!(grown < MAY_KEEP_KB, "{grown} KB");
    // The connection of before was idle for too long.
    let mut web = Web::connect(&mediator).await;
    assert_eq!(web.send("GET", "/api/v1/version", &[], None).await.status, 200);
}
