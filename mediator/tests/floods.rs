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
const ME: &str = "/api/v1/me";
const SEARCH: &str = "/api/v1/audit/events?person=flooder&event=audit.read&limit=1000";
const EXPORT: &str = "/api/v1/audit/export";

async fn person(mediator: &Mediator, name: &str, password: &str) -> Who {
    let me = identity();
    let device = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
    device.login(name, password).await.unwrap();
    Who::at(&device, &me).await
}

async fn admin(mediator: &Mediator) -> Who {
    mediator.admin(&["role", "bind", "owner", "--user", "admin", "--installation"]);
    person(mediator, "admin", &mediator.password).await
}

/// So many keys of one partner that read its log.
async fn auditors(web: &mut Web, by: &Who, count: usize) -> Vec<Who> {
    let mut keys = Vec::new();
    for n in 0..count {
        keys.push(register(web, by, &format!("flooder-{n}"), "auditor", &json!({})).await);
    }
    keys
}

/// A key of another partner's that reads its log.
async fn other_partner(mediator: &Mediator, web: &mut Web, root: &Who) -> Who {
    let wish = json!({"partner": "other", "owner": "other-owner"});
    let made = web.ask(root, "POST", "/api/v1/partners", Some(&wish)).await;
    let password = made.body["password"].as_str().unwrap();
    let owner = person(mediator, "other-owner", password).await;
    register(web, &owner, "other", "auditor", &json!({})).await
}

fn proved(web: &Web, who: &Who, target: &str) -> [(&'static str, String); 2] {
    let proof = web.proof(who, "GET", target);
    [("authorization", format!("DPoP {}", who.token)), ("dpop", proof)]
}

async fn read(web: &mut Web, who: &Who, target: &str) -> Answer {
    let headers = proved(web, who, target);
    web.send("GET", target, &headers, None).await
}

fn is_told_to_wait(answer: &Answer) -> bool {
    let wait = answer.headers.get("retry-after").and_then(|wait| wait.to_str().ok());
    let told = answer.status == 429 && answer.code() == failure::RATE_LIMITED;
    told && wait.is_some_and(|wait| (1..=60).contains(&wait.parse::<u64>().unwrap()))
}

/// Connections that ask without end.
#[derive(Default)]
struct Flood {
    /// How often they were told to wait, for what this flood is about.
    waits: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Flood {
    /// One more. `about`: said where it is told to wait for that.
    fn join(
        &mut self,
        mut web: Web,
        who: Option<Arc<Who>>,
        target: &'static str,
        about: &'static str,
    ) {
        let (waits, over) = (Arc::clone(&self.waits), Arc::clone(&self.over));
        self.tasks.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let answer = match &who {
                    Some(who) => read(&mut web, who, target).await,
                    None => web.send("GET", target, &[], None).await,
                };
                if answer.status == 200 {
                    continue;
                }
                assert!(is_told_to_wait(&answer), "{answer:?}");
                let detail = answer.body["detail"].as_str().unwrap();
                waits.fetch_add(u64::from(detail.contains(about)), Ordering::Relaxed);
                if who.is_some() {
                    // So that the address itself stays within its bound.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        });
    }

    /// Asks as another until the flood was told to wait often enough; then ends it.
    async fn leaves_to(mut self, web: &mut Web, who: &Who, target: &str) {
        let (begun, mut slowest, mut after) = (Instant::now(), Duration::ZERO, 0);
        while after < 20 {
            assert!(begun.elapsed() < PATIENCE, "the flood met no bound");
            let asked = Instant::now();
            let answer = read(web, who, target).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            slowest = slowest.max(asked.elapsed());
            after += u32::from(self.waits.load(Ordering::Relaxed) > 0);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.over.store(true, Ordering::Relaxed);
        while let Some(done) = self.tasks.join_next().await {
            done.unwrap();
        }
        assert!(slowest < SERVED_WITHIN, "{slowest:?}");
        let waits = self.waits.load(Ordering::Relaxed);
        println!("told to wait {waits} times; slowest other answer {slowest:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_floods_waits_and_others_at_the_same_address_are_served() {
    let mediator = Mediator::start();
    let root = admin(&mediator).await;
    let mut web = Web::connect(&mediator).await;
    let flooder = Arc::new(register(&mut web, &root, "flooder", "auditor", &json!({})).await);
    let other = register(&mut web, &root, "other", "auditor", &json!({})).await;
    let mut flood = Flood::default();
    for _ in 0..CONNECTIONS {
        flood.join(Web::connect(&mediator).await, Some(Arc::clone(&flooder)), ME, "");
    }
    flood.leaves_to(&mut web, &other, ME).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_floods_waits_and_other_sources_are_served() {
    let mediator = Mediator::start();
    let root = admin(&mediator).await;
    let mut web = Web::connect(&mediator).await;
    let mut flood = Flood::default();
    for _ in 0..CONNECTIONS {
        let web = Web::connect_from(&mediator, "127.0.0.9").await;
        flood.join(web, None, "/api/v1/version", "");
    }
    flood.leaves_to(&mut web, &root, ME).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_searches_without_end_waits_and_others_find_what_they_search() {
    let mediator = Mediator::start();
    let root = admin(&mediator).await;
    let mut web = Web::connect(&mediator).await;
    let flooder = Arc::new(register(&mut web, &root, "flooder", "auditor", &json!({})).await);
    let other = register(&mut web, &root, "other", "auditor", &json!({})).await;
    let mut flood = Flood::default();
    for _ in 0..CONNECTIONS {
        let web = Web::connect(&mediator).await;
        flood.join(web, Some(Arc::clone(&flooder)), SEARCH, "your other searches");
    }
    // From an address of its own: searches are so quick that together they meet its bound.
    let mut web = Web::connect_from(&mediator, "127.0.0.8").await;
    flood.leaves_to(&mut web, &other, "/api/v1/audit/events?person=admin").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partner_that_searches_with_many_keys_waits_and_other_partners_find_what_they_search() {
    let mediator = Mediator::start();
    let root = admin(&mediator).await;
    let mut web = Web::connect(&mediator).await;
    let other = other_partner(&mediator, &mut web, &root).await;
    let mut flood = Flood::default();
    // Of each key no more than it may.
    for key in auditors(&mut web, &root, 9).await {
        let key = Arc::new(key);
        for _ in 0..2 {
            let web = Web::connect(&mediator).await;
            flood.join(web, Some(Arc::clone(&key)), SEARCH, "your partner's other searches");
        }
    }
    let mut web = Web::connect_from(&mediator, "127.0.0.8").await;
    flood.leaves_to(&mut web, &other, "/api/v1/audit/events?person=other-owner").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partner_that_begins_exports_with_many_keys_leaves_other_partners_theirs() {
    const HELD: usize = 3;
    let mediator = Mediator::start();
    let root = admin(&mediator).await;
    let mut web = Web::connect(&mediator).await;
    let other = other_partner(&mediator, &mut web, &root).await;
    let keys = auditors(&mut web, &root, HELD + 2).await;
    // A log of more than what lies on the way to a reader who does not read.
    for n in 0..900 {
        let wish = json!({"hold": n % 2 == 0, "reason": "\u{1f512}".repeat(500)});
        let held = web.ask(&root, "PUT", "/api/v1/audit/hold", Some(&wish)).await;
        assert_eq!(held.status, 200, "{held:?}");
    }
    let mut held = Vec::new();
    for key in &keys {
        let mut narrow = Web::connect_narrow(&mediator).await;
        let headers = proved(&narrow, key, EXPORT);
        let answer = narrow.begin("GET", EXPORT, &headers, None).await;
        match answer.status().as_u16() {
            200 => held.push((narrow, answer)),
            status => assert_eq!((status, held.len()), (429, HELD)),
        }
    }
    assert_eq!(held.len(), HELD);
    let refused = read(&mut web, &keys[HELD], EXPORT).await;
    let detail = refused.body["detail"].as_str().unwrap();
    assert!(is_told_to_wait(&refused) && detail.contains("your partner's"), "{refused:?}");
    let asked = Instant::now();
    let taken = read(&mut web, &other, EXPORT).await;
    assert!(taken.status == 200 && asked.elapsed() < SERVED_WITHIN, "{:?}", asked.elapsed());
    // When those who read nothing go, the partner has its places again.
    drop(held);
    while read(&mut web, &keys[HELD], EXPORT).await.status != 200 {
        assert!(asked.elapsed() < PATIENCE, "a place was lost");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
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

/// Is sent to a provider, and comes back to an address with what is good for nothing.
async fn comes_back(web: &mut Web, provider: &str, at: &str) -> Answer {
    let sent = web.send("GET", &format!("/login/oidc?provider={provider}"), &[], None).await;
    let cookie = sent.headers["set-cookie"].to_str().unwrap();
    let cookie = [("cookie", cookie.split(';').next().unwrap().to_owned())];
    let back = format!("/login/oidc/finish?at={at}&code=x&state={}", state_of(&sent));
    web.send("GET", &back, &cookie, None).await
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
            let told = comes_back(&mut web, &id, at).await;
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

/// Strangers have as many addresses as they like.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_from_everywhere_do_not_fill_a_partners_log_by_its_provider() {
    const STRANGERS: u8 = 100;
    /// Sources of a provider that are told apart, and all others.
    const RECORDED: usize = 64 + 1;
    let mediator = Mediator::start();
    let provider = Provider::start().await;
    let ids = ["Directory", "Second"].map(|name| provider.add_to(&mediator, name));
    let begun = Instant::now();
    for number in 1..=STRANGERS {
        let mut web = Web::connect_from(&mediator, &format!("127.0.2.{number}")).await;
        assert_eq!(comes_back(&mut web, &ids[0], "x").await.status, 403);
    }
    let count = mediator.events_named("login.failed").len();
    if begun.elapsed() < Duration::from_secs(60) {
        assert_eq!(count, RECORDED);
    }
    // Each minute anew, and never one for each of them.
    let minutes = 1 + usize::try_from(begun.elapsed().as_secs() / 60).unwrap();
    assert!((RECORDED..=RECORDED * minutes).contains(&count), "{count}");
    // That hides nothing of another provider.
    let mut web = Web::connect_from(&mediator, "127.0.3.1").await;
    assert_eq!(comes_back(&mut web, &ids[1], "x").await.status, 403);
    let failed = mediator.events_named("login.failed");
    let of_second = failed.iter().filter(|event| event["extra"]["provider"] == "Second");
    assert_eq!(of_second.count(), 1, "{failed:?}");
    // Nor how many there were: the next record of those that were only counted tells it.
    tokio::time::sleep(Duration::from_secs(61)).await;
    let mut web = Web::connect_from(&mediator, "127.0.3.2").await;
    assert_eq!(comes_back(&mut web, &ids[0], "x").await.status, 403);
    let failed = mediator.events_named("login.failed");
    let of_first: Vec<_> =
        failed.iter().filter(|e| e["extra"]["provider"] == "Directory").collect();
    let others: u64 = of_first.iter().filter_map(|event| event["extra"]["others"].as_u64()).sum();
    let all = others + u64::try_from(of_first.len()).unwrap();
    assert_eq!(all, u64::from(STRANGERS) + 1, "{of_first:?}");
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
