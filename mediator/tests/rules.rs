//! Rules of docs/security-rules.md that devices of the tests' own can check.

mod common;
#[path = "rules/injection.rs"]
mod injection;
#[path = "rules/lost.rs"]
mod lost;
#[path = "rules/web.rs"]
mod web;

use std::{
    io::{Read, Write},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use std::collections::BTreeSet;

use adit_ledger::{
    Hash, Receipt,
    receipt::{Role, Statement},
};
use adit_protocol::{
    code::failure,
    keys::SigningKey,
    wire::{self, frame::Body},
};
use common::{
    Mediator,
    api::{Web, Who, key_pair},
    hello, identity, open, try_open,
};
use serde_json::{Value, json};
use sqlx::Connection;
use tokio::task::JoinSet;

#[tokio::test]
async fn coming_from_the_mediators_own_machine_proves_nothing() {
    let mediator = Mediator::start();
    let (_agent, enrolled, agent_identity) = mediator.agent("pc").await;
    let me = identity();
    let stranger = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
    let session_id = bytes::Bytes::from(vec![1; 16]);
    let computer_id = enrolled.device_id.clone();
    let access = wire::RequestAccess {
        computer_id: computer_id.clone(),
        redirector: "ssh".to_owned(),
        reason: "why".to_owned(),
        length_ms: 600_000,
        ..Default::default()
    };
    let request_id = "00000000-0000-7000-8000-000000000002".to_owned();
    let decide = wire::DecideRequest { request_id, ..Default::default() };
    // Whatever a user can ask for, well-formed, so that nothing but the login is missing.
    for body in [
        Body::Open(open(1, &enrolled, &agent_identity)),
        Body::ListComputers(wire::ListComputers::default()),
        Body::ListSessions(wire::ListSessions::default()),
        Body::ListRequests(wire::ListRequests::default()),
        Body::RequestAccess(access),
        Body::DecideRequest(decide),
        Body::AuditExport(wire::AuditExport::default()),
        Body::WhoAmI(wire::WhoAmI {}),
        Body::Logout(wire::Logout {}),
        Body::TotpEnroll(wire::TotpEnroll { name: "phone".to_owned() }),
        Body::ApiTokenRequest(wire::ApiTokenRequest {}),
        Body::EndSession(wire::EndSession { session_id: session_id.clone(), ..Default::default() }),
        Body::Renew(wire::Renew { session_id: session_id.clone() }),
    ] {
        let refused = stranger.ask(body.clone()).await.map_err(|failure| failure.code);
        assert_eq!(refused, Err(failure::NOT_LOGGED_IN.to_owned()), "{body:?}");
    }
    // What is not a console's to say at all, or about sessions that it does not have.
    for body in [
        Body::SessionReport(wire::SessionReport { session_id: session_id.clone(), events: vec![] }),
        Body::TicketRequest(wire::TicketRequest { session_id, ..Default::default() }),
        Body::TargetRequest(wire::TargetRequest::default()),
        Body::CheckIn(wire::CheckIn::default()),
        Body::RelayReport(wire::RelayReport::default()),
    ] {
        let refused = stranger.ask(body.clone()).await.map_err(|failure| failure.code);
        let codes = [failure::NOT_LOGGED_IN, failure::BAD_REQUEST, failure::NO_SUCH_SESSION];
        assert!(
            refused.as_ref().is_err_and(|code| codes.contains(&&**code)),
            "{body:?} {refused:?}"
        );
    }
    // Nor is somebody an agent or a relay because of it, with an id of somebody's or of nobody's.
    for (role, id) in [(1, &computer_id[..]), (1, &[9; 16]), (3, &[9; 16]), (3, &[])] {
        let me = identity();
        let come = mediator.connect(&me, hello(role, &me, id)).await;
        assert!(come.is_err(), "taken for role {role}");
    }
    assert!(mediator.events_named("session.granted").is_empty());
}

#[tokio::test]
async fn unknown_and_disabled_users_cost_the_time_of_known_ones() {
    /// A user that is found at once, without the work of a password, takes a twentieth.
    const MAX_RATIO: f64 = 1.5;
    let mediator = Mediator::start();
    mediator.admin(&["user", "add", "gone"]);
    mediator.admin(&["user", "disable", "gone"]);
    let users = ["admin", "nobody", "gone"];
    let mut times = [const { Vec::new() }; 3];
    // In turn, so that whatever else the machine does falls on all alike.
    for _ in 0..15 {
        for (user, times) in users.iter().zip(&mut times) {
            let me = identity();
            let device = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
            let start = Instant::now();
            let refused = device.login(user, "a wrong password of theirs").await.unwrap_err();
            times.push(start.elapsed().as_secs_f64());
            assert_eq!(refused.code, failure::LOGIN_FAILED);
        }
    }
    let medians = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    for (user, median) in users.iter().zip(medians) {
        let ratio = (median / medians[0]).max(medians[0] / median);
        assert!(ratio < MAX_RATIO, "{user}: {medians:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_logins_leaves_others_their_answers() {
    /// Far above what the answer takes, far below what all those logins take.
    const PROMPT: Duration = Duration::from_secs(2);
    let mediator = Mediator::start();
    let (console, _, _) = mediator.console().await;
    let mut flood = JoinSet::new();
    for _ in 0..40 {
        let me = identity();
        let device = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
        flood.spawn(async move {
            let mut codes = Vec::new();
            for _ in 0..5 {
                codes.push(device.login("admin", "a wrong password of theirs").await.unwrap_err());
            }
            codes
        });
    }
    for _ in 0..20 {
        let start = Instant::now();
        console.ask(Body::WhoAmI(wire::WhoAmI {})).await.unwrap();
        assert!(start.elapsed() < PROMPT, "after {:?}", start.elapsed());
    }
    let answers: Vec<_> = flood.join_all().await.into_iter().flatten().collect();
    let busy = answers.iter().filter(|f| f.code == failure::BUSY).count();
    assert!(busy > 0, "all {} logins were worked on", answers.len());
    assert!(answers.iter().all(|f| [failure::BUSY, failure::LOGIN_FAILED].contains(&&*f.code)));
}

/// R46: what an operator sees of it, from a console's, an agent's and a relay's clock.
#[tokio::test]
async fn a_clock_that_is_off_is_shown_and_recorded_once_and_so_when_it_is_right_again() {
    const DAY_MS: u64 = 86_400_000;
    /// A device's changes are recorded this often at most.
    const ONCE_IN: Duration = Duration::from_secs(60);
    let now_ms = || {
        u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
    };
    let metrics = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut mediator = Mediator::init();
    let file = mediator.dir.path().join("mediator.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text}\n[metrics]\nlisten = \"{metrics}\"\n")).unwrap();
    mediator.serve();
    mediator.admin(&["client", "add", "main/hq"]);
    let (agent, pc, key) = mediator.agent("pc").await;
    let computer = || mediator.admin(&["computer", "list"]).remove(0);
    let offset = |told: &Value| told["clock_offset_ms"].as_i64();
    agent.ask(Body::Ping(wire::Ping {})).await.unwrap();
    assert!(offset(&computer()).unwrap().abs() < 30_000, "{}", computer());
    assert!(mediator.events_named("clock.off").is_empty());

    // It jumps while it is connected, and says so with each check-in.
    let wrong_since = Instant::now();
    for _ in 0..3 {
        let now_ms = now_ms() + DAY_MS;
        agent.ask(Body::CheckIn(wire::CheckIn { now_ms, ..Default::default() })).await.unwrap();
    }
    assert!(offset(&computer()).unwrap() > 86_000_000, "{}", computer());
    // An agent of an earlier version says nothing, which is no sign that all is well.
    agent.ask(Body::CheckIn(wire::CheckIn::default())).await.unwrap();
    assert!(offset(&computer()).unwrap() > 86_000_000, "{}", computer());
    let recorded = mediator.events_named("clock.off");
    assert_eq!(recorded.len(), 1, "{recorded:?}");
    assert_eq!(recorded[0]["computer"], "pc");
    assert!(recorded[0]["extra"]["offset_ms"].as_i64().unwrap() > 86_000_000, "{recorded:?}");
    let gauge = || {
        let mut metrics = std::net::TcpStream::connect(metrics).unwrap();
        let wish = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        metrics.write_all(wish).unwrap();
        let mut told = String::new();
        metrics.read_to_string(&mut told).unwrap();
        let line = told.lines().find(|line| line.starts_with("adit_clocks_off "));
        line.unwrap_or_else(|| panic!("{told}")).ends_with(" 1")
    };
    let since = Instant::now();
    while !gauge() {
        assert!(since.elapsed() < common::WAIT);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // A console's is told in the partner's log once somebody logged in; a relay's in the first.
    let me = identity();
    let behind = wire::Hello { now_ms: now_ms() - 3_600_000, ..hello(2, &me, &[]) };
    let console = mediator.connect(&me, behind).await.unwrap();
    assert_eq!(mediator.events_named("clock.off").len(), 1, "a stranger's is nobody's business");
    console.login("admin", &mediator.password).await.unwrap();
    console.ask(Body::WhoAmI(wire::WhoAmI {})).await.unwrap();
    let token = mediator.token(&["relay"]);
    let relay_key = identity();
    let enrolled = mediator.enroll(&relay_key, &token, 3, "r").await.unwrap();
    let late = wire::Hello {
        now_ms: now_ms() - 2 * 3_600_000,
        relay: Some(wire::RelayInfo::default()),
        ..hello(3, &relay_key, &enrolled.device_id)
    };
    let relay = mediator.connect(&relay_key, late).await.unwrap();
    relay.ask(Body::Ping(wire::Ping {})).await.unwrap();
    let relays = mediator.admin(&["relay", "list"]);
    assert!(offset(&relays[0]).unwrap() < -7_000_000, "{relays:?}");
    let recorded = mediator.events_named("clock.off");
    assert_eq!(recorded.len(), 3, "{recorded:?}");
    let of_console = me.signing.public().fingerprint().to_string();
    assert_eq!(recorded[1]["device"], of_console.as_str(), "{recorded:?}");
    assert_eq!(recorded[2]["extra"]["relay_id"], relays[0]["relay_id"], "{recorded:?}");

    // Right again, which is shown at once, and recorded when it next tells after a minute.
    let again = mediator.connect(&key, hello(1, &key, &pc.device_id)).await.unwrap();
    again.ask(Body::CheckIn(wire::CheckIn::default())).await.unwrap();
    assert!(offset(&computer()).unwrap().abs() < 30_000, "{}", computer());
    assert!(mediator.events_named("clock.right").is_empty());
    tokio::time::sleep((ONCE_IN + Duration::from_secs(1)).saturating_sub(wrong_since.elapsed()))
        .await;
    for _ in 0..2 {
        let check_in = wire::CheckIn { now_ms: now_ms(), ..Default::default() };
        again.ask(Body::CheckIn(check_in)).await.unwrap();
    }
    let right = mediator.events_named("clock.right");
    assert_eq!(right.len(), 1, "{right:?}");
    let [off, right] = [&mediator.events_named("clock.off")[0], &right[0]];
    for field in ["computer", "computer_id", "device", "partner", "client"] {
        assert!(off[field].is_string() && off[field] == right[field], "{field}: {off} {right}");
    }
    assert_eq!((&off["outcome"], &right["outcome"]), (&"reported".into(), &"reported".into()));
    assert!(right["extra"]["offset_ms"].as_i64().unwrap().abs() < 30_000, "{right}");
    assert!(right["source"].as_str().unwrap().starts_with("127.0.0.1:"), "{right}");
}

/// Whose key nobody needs.
const RECIPIENT: &str = "age19y0nwc82gvch79erwkeyzv9yrzguu25hhckgdt2x5d60y6c43pnsa6clzz";

fn new_provider(name: &str) -> Value {
    json!({"provider": name, "issuer": "https://id.example", "client_id": "c", "secret": "s"})
}

/// R27: whoever sits down at a console that was left open gains nothing that lasts, takes nothing
/// away and destroys nothing.
#[tokio::test]
async fn a_login_that_is_not_fresh_reveals_exports_gives_and_destroys_nothing() {
    let mediator = Mediator::start();
    mediator.admin(&["role", "bind", "owner", "--user", "admin", "--installation"]);
    mediator.admin(&["user", "add", "jane"]);
    let provider = ["--issuer", "https://id.example", "--client-id", "c"];
    mediator.admin(&[&["oidc", "add", "dir"], &provider[..]].concat());
    let (_agent, pc, _) = mediator.agent("pc").await;
    let pc = adit_protocol::ids::ComputerId::from_slice(&pc.device_id).unwrap();
    let pc = format!("/api/v1/computers/{pc}");
    let backup = format!("/api/v1/backup?recipients={RECIPIENT}");
    let add = ["credential", "add", "main/hq", "root", "--user", "root"];
    let (code, told) = mediator.try_admin(&add, "a secret of this test\n");
    assert_eq!(code, 0, "{told:?}");
    let secret =
        format!("/api/v1/credentials/{}/secret", told[0]["credential_id"].as_str().unwrap());
    let role = json!({"role": "own", "permissions": ["launch"]});
    let (console, me, _) = mediator.console().await;
    let who = Who::at(&console, &me).await;
    let mut web = Web::connect(&mediator).await;
    assert_eq!(web.ask(&who, "POST", "/api/v1/roles", Some(&role)).await.status, 200);
    assert_eq!(web.ask(&who, "GET", "/api/v1/audit/export", None).await.status, 200);

    let key = json!({"name": "k", "public_key": key_pair().1, "role": "owner"});
    let acts = [
        ("GET", "/api/v1/audit/export", None),
        ("GET", "/api/v1/audit/export?format=csv&event=login.failed", None),
        ("POST", "/api/v1/users", Some(json!({"user": "mole", "role": "owner"}))),
        ("POST", "/api/v1/partners", Some(json!({"partner": "mine", "owner": "mole"}))),
        ("POST", "/api/v1/api-keys", Some(key)),
        ("POST", "/api/v1/bindings", Some(json!({"role": "owner", "user": "jane"}))),
        ("PUT", "/api/v1/roles/own", Some(json!({"permissions": ["policy.manage"]}))),
        ("POST", "/api/v1/users/jane/password", Some(json!({}))),
        ("POST", "/api/v1/users/jane/mfa/reset", None),
        ("PUT", "/api/v1/audit/retention", Some(json!({"days": 120}))),
        ("PUT", "/api/v1/audit/hold", Some(json!({"hold": false}))),
        ("PUT", "/api/v1/users/jane/audit-level", Some(json!({"level": 0}))),
        ("DELETE", "/api/v1/clients/main/hq", None),
        ("DELETE", &pc, None),
        ("POST", "/api/v1/partners/main/erase", Some(json!({"partner": "main"}))),
        ("POST", "/api/v1/identity-providers", Some(new_provider("mine"))),
        ("PUT", "/api/v1/users/jane/links/dir", Some(json!({"subject": "mole"}))),
        ("POST", "/api/v1/vault/rotation", Some(json!({}))),
        ("GET", &backup, None),
    ];
    // As if ten minutes and a second had passed.
    let database = format!("sqlite:{}", mediator.database().display());
    let mut database = sqlx::SqliteConnection::connect(&database).await.unwrap();
    let aged = "UPDATE login SET authenticated_ms = authenticated_ms - 601000, \
                mfa_ms = mfa_ms - 601000";
    assert_eq!(sqlx::query(aged).execute(&mut database).await.unwrap().rows_affected(), 1);
    for (method, target, body) in &acts {
        let answer = web.ask(&who, method, target, body.as_ref()).await;
        assert_eq!(answer.status, 403, "{method} {target}: {answer:?}");
        assert_eq!(answer.code(), failure::REAUTHENTICATION_REQUIRED, "{target}: {answer:?}");
    }
    // One without any second factor sees no secret at all.
    let answer = web.ask(&who, "GET", &secret, None).await;
    assert_eq!((answer.status, answer.code()), (403, failure::MFA_REQUIRED), "{answer:?}");
    // Nor does it set itself a second factor up, with which all of that would be open.
    let own = Body::TotpEnroll(wire::TotpEnroll { name: "mine".to_owned() });
    let refused = console.ask(own).await.unwrap_err();
    assert_eq!(refused.code, failure::REAUTHENTICATION_REQUIRED);
    // All is recorded, nothing done.
    let refused = mediator.events_named("act.refused");
    let named = refused.iter().filter(|e| e["end_reason"] == failure::REAUTHENTICATION_REQUIRED);
    // Each operation once: the second export within a minute is counted.
    let named: BTreeSet<_> = named.filter_map(|e| e["extra"]["operation"].as_str()).collect();
    assert_eq!(named.len(), acts.len() - 1, "{refused:?}");
    for done in [
        "audit.read",
        "user.added",
        "role.bound",
        "role.changed",
        "api_key.created",
        "client.erased",
        "computer.removed",
        "partner.erasure_begun",
        "oidc.provider_added",
        "user.linked",
        "vault.rotation_begun",
        "backup.made",
    ] {
        let by_admin = |event: &&Value| event["device"].is_string();
        let found: Vec<Value> = mediator.events_named(done);
        let before = usize::from(done == "audit.read");
        assert_eq!(found.iter().filter(by_admin).count(), before, "{done}: {found:?}");
    }
    // What ends access needs none of it: it must be quick.
    for (method, target) in [
        ("POST", "/api/v1/users/jane/logout"),
        ("POST", "/api/v1/users/jane/disable"),
        ("PUT", "/api/v1/clients/main/hq/lockdown"),
    ] {
        let body = target.ends_with("lockdown").then(|| json!({"reason": "x"}));
        let answer = web.ask(&who, method, target, body.as_ref()).await;
        assert_eq!(answer.status, 200, "{method} {target}: {answer:?}");
    }
    // Whoever shows again who they are goes on.
    let shown = wire::Reauthenticate { password: mediator.password.clone(), ..Default::default() };
    console.ask(Body::Reauthenticate(shown)).await.unwrap();
    let answer = web.ask(&who, "GET", "/api/v1/audit/export", None).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// What an end of a session says of one of its channels.
fn receipt(
    role: Role,
    (console, agent): (&SigningKey, &SigningKey),
    handshake: &[u8],
) -> bytes::Bytes {
    let statement = Statement {
        role,
        session: [1; 16],
        grant_hash: Hash::of(b"grant"),
        handshake_hash: Hash::of(handshake),
        console: console.public().fingerprint(),
        agent: agent.public().fingerprint(),
        redirector: "ssh".into(),
        target: "127.0.0.1:22".into(),
        channel: 2,
        time_ms: 1,
        close: None,
    };
    let signer = if role == Role::Console { console } else { agent };
    Receipt::sign(signer, statement).to_line().into()
}

/// R45: what an auditor asks for is there by itself: who has access, who gave and who took it, who
/// approved and who denied, what alarmed, and of every tunnel technician, endpoint and application.
#[tokio::test]
async fn auditors_find_access_approvals_and_every_tunnel_with_who_where_and_what() {
    let mediator = Mediator::start();
    let (mut agent, pc, key) = mediator.agent("pc").await;
    let (mut people, mut bound) = (Vec::new(), Vec::new());
    for (name, role, more) in [
        ("jane", "technician", &["--require", "approval"][..]),
        ("rep", "client-representative", &["--client", "main/hq"]),
        ("aud", "auditor", &[]),
    ] {
        let added = mediator.admin(&["user", "add", name, "--role", "none"]);
        let bind = [&["role", "bind", role, "--user", name][..], more].concat();
        bound.push(mediator.admin(&bind)[0]["binding"].as_str().unwrap().to_owned());
        let me = identity();
        let device = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
        device.login(name, added[0]["password"].as_str().unwrap()).await.unwrap();
        people.push((device, me));
    }
    let (jane, rep, auditor) = (&people[0].0, &people[1].0, &people[2]);
    let wish = wire::RequestAccess {
        computer_id: pc.device_id.clone(),
        redirector: "ssh".into(),
        reason: "disk is full".into(),
        ticket: "T-1".into(),
        length_ms: 600_000,
    };
    let desktop = wire::RequestAccess { redirector: "rdp".into(), ..wish.clone() };
    for (wish, approve, note) in [(wish, true, "until noon"), (desktop, false, "not that one")] {
        let Body::AccessRequest(asked) = jane.ask(Body::RequestAccess(wish)).await.unwrap() else {
            panic!("no request");
        };
        let (request_id, note) = (asked.request_id.clone(), note.to_owned());
        let decided = wire::DecideRequest { request_id, approve, note, ..Default::default() };
        rep.ask(Body::DecideRequest(decided)).await.unwrap();
    }
    try_open(jane, &mut agent, open(1, &pc, &key)).await.unwrap();
    // Somebody is in between: the ends' handshakes are not the same.
    let keys = (&people[0].1.signing, &key.signing);
    for (end, role, handshake) in
        [(jane, Role::Console, b"one".as_slice()), (&agent, Role::Agent, b"other")]
    {
        let lines = vec![receipt(role, keys, handshake)];
        end.ask(Body::Receipts(wire::Receipts { lines })).await.unwrap();
    }

    // All by the auditor's own means.
    let who = Who::at(&auditor.0, &auditor.1).await;
    let mut web = Web::connect(&mediator).await;
    let mut all = async |target: &str| {
        let answer = web.ask(&who, "GET", target, None).await;
        assert_eq!(answer.status, 200, "{target}: {answer:?}");
        answer.body["items"].as_array().unwrap_or_else(|| panic!("{answer:?}")).clone()
    };
    let bindings = all("/api/v1/bindings").await;
    for (name, role, scope) in [
        ("jane", "technician", "partner"),
        ("rep", "client-representative", "client"),
        ("aud", "auditor", "partner"),
    ] {
        let held = bindings.iter().find(|line| line["name"] == name);
        let held = held.unwrap_or_else(|| panic!("{name}: {bindings:?}"));
        assert_eq!((&held["role"], &held["scope"]), (&role.into(), &scope.into()), "{held}");
    }
    assert!(all("/api/v1/roles").await.iter().any(|role| role["role"] == "technician"));
    let mut found = async |event: &str| {
        let entries = all(&format!("/api/v1/audit/events?event={event}")).await;
        assert!(!entries.is_empty(), "no {event}");
        entries[0]["entry"].clone()
    };
    for (event, actor) in [
        ("role.bound", "local administrator"),
        ("request.made", "jane"),
        ("request.approved", "rep"),
        ("request.denied", "rep"),
        ("session.granted", "jane"),
    ] {
        let entry = found(event).await;
        assert_eq!(entry["actor"], actor, "{entry}");
        assert_eq!(entry["outcome"].as_str().map(str::is_empty), Some(false), "{entry}");
        if !event.starts_with("role") {
            assert_eq!((&entry["computer"], &entry["client"]), (&"pc".into(), &"main/hq".into()));
        }
        match event {
            "request.denied" => {
                assert_eq!(
                    (&entry["redirector"], &entry["reason"]),
                    (&"rdp".into(), &"not that one".into())
                );
                assert_eq!(entry["extra_personal"]["user"], "jane", "{entry}");
            }
            "session.granted" | "request.approved" => {
                assert_eq!(entry["redirector"], "ssh", "{entry}");
            }
            _ => {}
        }
    }
    let granted = found("session.granted").await;
    for (field, value) in [
        ("viewer", "ssh"),
        ("target", "127.0.0.1:22"),
        ("reason", "a reason"),
        ("ticket", "T-1"),
        ("mfa", "none"),
    ] {
        assert_eq!(granted[field], value, "{granted}");
    }
    let alarm = found("receipt.mismatch").await;
    for field in ["session_id", "client", "redirector", "target"] {
        assert_eq!(alarm[field], granted[field], "{field}: {alarm}");
    }
    assert_eq!(alarm["extra"]["agent"], key.signing.public().fingerprint().to_string(), "{alarm}");
    assert!(alarm["extra"]["difference"].as_str().unwrap().contains("handshakes"), "{alarm}");
    // Access that is taken away is there with who took it, and which it was.
    mediator.admin(&["role", "unbind", &bound[0]]);
    let taken = found("role.unbound").await;
    assert_eq!(
        (&taken["actor"], &taken["outcome"]),
        (&"local administrator".into(), &"done".into())
    );
    assert_eq!(taken["extra"]["binding"], bound[0].as_str(), "{taken}");
    // And it is there for 120 days, unless somebody wants it longer.
    let kept = mediator.admin(&["audit", "retention", "show"]);
    assert!(kept.iter().any(|line| line["days"] == 120), "{kept:?}");
    let longer = ["audit", "retention", "set", "main", "--days", "119"];
    assert_ne!(mediator.try_admin(&longer, "").0, 0, "less than 120 days");
}

/// R33, R34: whatever people do through the API, done or refused, says who, with what, from where,
/// to whose, when and how it ended.
#[tokio::test]
async fn every_act_from_afar_is_recorded_with_who_from_where_when_and_outcome() {
    let mediator = Mediator::start();
    mediator.admin(&["role", "bind", "owner", "--user", "admin", "--installation"]);
    let (_agent, pc, _) = mediator.agent("pc").await;
    let pc = adit_protocol::ids::ComputerId::from_slice(&pc.device_id).unwrap();
    let tess = mediator.admin(&["user", "add", "tess", "--role", "technician"]);
    let (console, me, _) = mediator.console().await;
    let who = Who::at(&console, &me).await;
    let low = identity();
    let device = mediator.connect(&low, hello(2, &low, &[])).await.unwrap();
    device.login("tess", tess[0]["password"].as_str().unwrap()).await.unwrap();
    let low = Who::at(&device, &low).await;
    let mut web = Web::connect(&mediator).await;
    let other = identity().signing.public().fingerprint().to_string();
    let everywhere = format!("/installation/devices/{other}");
    mediator.admin(&["client", "add", "main/gone"]);
    let gone = mediator.admin(&["client", "erase", "main/gone", "--yes"]);
    let gone = gone[0]["erasure"].as_str().unwrap();
    let acts = [
        ("POST", "/users".to_owned(), json!({"user": "joe", "role": "technician"}), "user.added"),
        ("PUT", "/users/joe/groups/night".into(), Value::Null, "user.grouped"),
        ("PUT", format!("/computers/{pc}/groups/servers"), Value::Null, "computer.labelled"),
        ("PUT", "/users/joe/audit-level".into(), json!({"level": 5}), "user.audit_level"),
        ("POST", "/users/joe/password".into(), json!({}), "user.password_set"),
        ("POST", "/users/joe/disable".into(), Value::Null, "user.disabled"),
        ("POST", "/users/joe/enable".into(), Value::Null, "user.enabled"),
        ("POST", "/roles".into(), json!({"role": "r", "permissions": ["launch"]}), "role.created"),
        ("POST", "/bindings".into(), json!({"role": "r", "user": "joe"}), "role.bound"),
        ("PUT", "/roles/r".into(), json!({"permissions": ["audit.read"]}), "role.changed"),
        ("DELETE", "/roles/r".into(), Value::Null, "role.deleted"),
        ("POST", "/clients".into(), json!({"client": "main/b"}), "client.added"),
        ("PUT", "/clients/main/b/lockdown".into(), json!({"reason": "x"}), "client.locked"),
        ("DELETE", "/clients/main/b/lockdown".into(), Value::Null, "client.unlocked"),
        ("POST", format!("/devices/{other}/disable"), json!({"reason": "x"}), "device.disabled"),
        ("POST", "/tokens/agent".into(), json!({"client": "main/b"}), "token.created"),
        ("PUT", "/audit/retention".into(), json!({"days": 365}), "audit.retention_set"),
        ("GET", "/audit/events".into(), Value::Null, "audit.read"),
        ("GET", "/audit/export".into(), Value::Null, "audit.read"),
        ("DELETE", "/clients/main/b".into(), Value::Null, "client.erased"),
        ("POST", "/identity-providers".into(), new_provider("dir"), "oidc.provider_added"),
        ("PUT", "/users/joe/links/dir".into(), json!({"subject": "s"}), "user.linked"),
        ("DELETE", "/users/joe/links/dir".into(), Value::Null, "user.unlinked"),
        ("GET", "/identity-providers".into(), Value::Null, "api.read"),
        ("DELETE", "/identity-providers/dir".into(), Value::Null, "oidc.provider_removed"),
        ("POST", format!("{everywhere}/disable"), json!({"reason": "x"}), "device.disabled"),
        ("POST", format!("{everywhere}/enable"), Value::Null, "device.enabled"),
        ("GET", "/audit/retention".into(), Value::Null, "api.read"),
        ("GET", "/audit/forwarding".into(), Value::Null, "api.read"),
        ("GET", format!("/certificates/{gone}"), Value::Null, "api.read"),
        ("GET", "/status".into(), Value::Null, "api.read"),
        ("POST", "/vault/rotation".into(), json!({}), "vault.rotation_begun"),
        ("GET", "/vault/rotation".into(), Value::Null, "api.read"),
        ("GET", format!("/backup?recipients={RECIPIENT}"), Value::Null, "backup.made"),
        ("POST", "/compact".into(), Value::Null, "database.compacted"),
        ("DELETE", format!("/computers/{pc}"), Value::Null, "computer.removed"),
        // Under which nothing is erased.
        ("PUT", "/audit/hold".into(), json!({"hold": true, "reason": "x"}), "audit.hold_set"),
    ];
    let (mut wrong, mut of_low) = (Vec::new(), 0);
    let from = mediator.events().len();
    for (method, path, body, event) in &acts {
        let body = (!body.is_null()).then_some(body);
        let target = format!("/api/v1{path}");
        // Whoever may not is recorded as well.
        let refused = web.ask(&low, method, &target, body).await;
        let denied = mediator.events().split_off(from);
        let by_low = |e: &&Value| e["event"] == "act.refused" && e["actor"] == "tess";
        let refusals = denied.iter().filter(by_low).count();
        if ![403, 404].contains(&refused.status) || refusals != of_low + 1 {
            wrong
                .push(format!("{method} {path} by a technician: {refused:?}, {refusals} refusals"));
        }
        of_low = refusals;
        let before = denied.iter().filter(|e| e["event"] == *event).count();
        let answer = web.ask(&who, method, &target, body).await;
        let since = mediator.events().split_off(from);
        let found: Vec<&Value> = since.iter().filter(|e| e["event"] == *event).collect();
        if answer.status != 200 || found.len() <= before {
            let names: Vec<_> = since.iter().rev().take(4).map(|e| e["event"].clone()).collect();
            wrong.push(format!("{method} {path}: {}, no {event} in {names:?}", answer.status));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let by_mediator = ["client.certified", "audit.pruned"];
    let by_command = |e: &Value| e["actor"] == "local administrator";
    for event in mediator.events().split_off(from) {
        let name = event["event"].as_str().unwrap();
        // Of the erased client's entries the personal fields are gone, as they should be.
        let erased = event["salt"].is_null();
        if by_mediator.contains(&name) || by_command(&event) || erased {
            continue;
        }
        for field in ["actor", "device", "source", "partner", "outcome", "time"] {
            assert!(event[field].as_str().is_some_and(|v| !v.is_empty()), "no {field}: {event}");
        }
        assert!(event["time"].as_str().unwrap().ends_with('Z'), "{event}");
    }
}

/// R20: not even the configuration makes logins last longer.
#[test]
fn no_configuration_makes_logins_last_longer_than_the_rule_allows() {
    let mediator = Mediator::init();
    let file = mediator.dir.path().join("mediator.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    for (line, code) in [
        ("session_life = \"24h\"", 0),
        ("session_life = \"25h\"", 2),
        ("session_idle = \"1h\"", 0),
        ("session_idle = \"61m\"", 2),
        ("session_idle = \"0s\"", 2),
    ] {
        std::fs::write(&file, format!("{before}\n{line}\n")).unwrap();
        let (got, told) = mediator.try_admin(&["config", "check"], "");
        assert_eq!(got, code, "{line}: {told:?}");
    }
}
