//! Roles, conditions, approvals and their effect on live sessions, at the running mediator.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod common;

use std::time::{Duration, Instant};

use adit_net::identity::DeviceIdentity;
use adit_protocol::{
    code::failure,
    wire::{self, frame::Body},
};
use common::{
    Device, Mediator,
    api::{Web, Who, register},
    hello, identity, open, try_open,
};
use serde_json::{Value, json};

/// R25, R26: so soon must a live session end.
const AT_ONCE: Duration = Duration::from_secs(5);

impl Mediator {
    /// A user without any role, logged in.
    async fn user(&self, name: &str, partner: &[&str]) -> Device {
        let added = self.admin(&[&["user", "add", name, "--role", "none"], partner].concat());
        let me = identity();
        let device = self.connect(&me, hello(2, &me, &[])).await.unwrap();
        device.login(name, added[0]["password"].as_str().unwrap()).await.unwrap();
        device
    }

    /// Binds a role; gives the binding's id.
    fn bind(&self, role: &str, user: &str, more: &[&str]) -> String {
        let told = self.admin(&[&["role", "bind", role, "--user", user], more].concat());
        told[0]["binding"].as_str().unwrap().to_owned()
    }
}

async fn listed(console: &Device) -> Vec<String> {
    match console.ask(Body::ListComputers(wire::ListComputers::default())).await.unwrap() {
        Body::Computers(found) => found.computers.into_iter().map(|c| c.name).collect(),
        other => panic!("{other:?}"),
    }
}

/// Waits until the agent is told that a session is over; the reason.
async fn told_end(agent: &mut Device, since: Instant) -> String {
    let (body, responder) = agent.next().await.into_parts();
    responder.reply(Body::Done(wire::Done {}));
    assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    match body {
        Body::EndSession(end) => end.reason,
        other => panic!("{other:?}"),
    }
}

fn wish(n: u8, computer: &wire::Enrolled, agent: &DeviceIdentity) -> wire::Open {
    wire::Open { ticket: String::new(), ..open(n, computer, agent) }
}

#[tokio::test]
async fn without_a_role_there_is_nothing_and_each_condition_has_its_code() {
    let mediator = Mediator::start();
    let (mut agent, pc, key) = mediator.agent("pc").await;
    let console = mediator.user("jane", &[]).await;
    let mut n = 0;
    let mut attempt = async |reason: &str| {
        n += 1;
        let wish = wire::Open { reason: reason.into(), ..wish(n, &pc, &key) };
        try_open(&console, &mut agent, wish).await.map_err(|failure| failure.code)
    };
    assert_eq!(listed(&console).await, [""; 0]);
    assert_eq!(attempt("why").await.unwrap_err(), failure::NO_SUCH_COMPUTER);
    let auditor = mediator.bind("auditor", "jane", &["--client", "main/hq"]);
    assert_eq!(listed(&console).await, ["pc"]);
    assert_eq!(attempt("why").await.unwrap_err(), failure::NOT_PERMITTED);
    for (flags, reason, code) in [
        (["--require", "reason"], " ", failure::REASON_REQUIRED),
        (["--require", "ticket"], "why", failure::TICKET_REQUIRED),
        (["--require", "approval"], "why", failure::APPROVAL_REQUIRED),
        (["--mfa-within", "15m"], "why", failure::MFA_REQUIRED),
        (["--from", "192.0.2.0/24"], "why", failure::SOURCE_NOT_ALLOWED),
    ] {
        let binding = mediator.bind("technician", "jane", &flags);
        assert_eq!(attempt(reason).await.unwrap_err(), code);
        let refused = mediator.events_named("session.refused").pop().unwrap();
        assert!(refused["rule"].as_str().unwrap().contains(&binding), "{refused}");
        mediator.admin(&["role", "unbind", &binding]);
    }
    mediator.admin(&["role", "create", "web", "--permission", "launch", "--redirector", "http"]);
    mediator.bind("web", "jane", &[]);
    assert_eq!(attempt("why").await.unwrap_err(), failure::NOT_PERMITTED);
    let right = mediator.bind("technician", "jane", &["--require", "reason"]);
    attempt("why").await.unwrap();
    let granted = mediator.events_named("session.granted").pop().unwrap();
    assert_eq!(granted["rule"], format!("technician on partner ({right})"));
    mediator.admin(&["role", "unbind", &auditor]);
    assert_eq!(listed(&console).await, ["pc"]);
    let changes = mediator.events_named("role.bound").len();
    assert_eq!((changes, mediator.events_named("role.unbound").len()), (8, 6));
}

#[tokio::test]
async fn live_sessions_end_when_the_right_to_them_does() {
    let mediator = Mediator::start();
    let (mut agent, pc, key) = mediator.agent("pc").await;
    let console = mediator.user("jane", &[]).await;
    let mut n = 0;
    let mut session = async |agent: &mut Device| {
        n += 1;
        try_open(&console, agent, wish(n, &pc, &key)).await.unwrap();
    };
    // A binding that ends.
    let binding = mediator.bind("technician", "jane", &[]);
    session(&mut agent).await;
    let since = Instant::now();
    mediator.admin(&["role", "unbind", &binding]);
    assert_eq!(told_end(&mut agent, since).await, "permission_withdrawn");
    // A role that loses the redirector; another change leaves the session alone.
    let make = ["role", "create", "shell", "--permission", "launch"];
    mediator.admin(&make);
    mediator.bind("shell", "jane", &["--computers", "servers"]);
    mediator.admin(&["computer", "group", "pc", "servers"]);
    session(&mut agent).await;
    mediator.admin(&["role", "bind", "auditor", "--user", "admin"]);
    let changed = [&make[..], &["--replace", "--redirector", "rdp"]].concat();
    let since = Instant::now();
    mediator.admin(&changed);
    assert_eq!(told_end(&mut agent, since).await, "permission_withdrawn");
    // A computer that leaves the group, a longest time that is over.
    mediator.admin(&[&make[..], &["--replace"]].concat());
    session(&mut agent).await;
    let since = Instant::now();
    mediator.admin(&["computer", "group", "pc", "servers", "--remove"]);
    assert_eq!(told_end(&mut agent, since).await, "permission_withdrawn");
    mediator.bind("technician", "jane", &["--max-length", "1s"]);
    session(&mut agent).await;
    assert_eq!(told_end(&mut agent, Instant::now()).await, failure::TIME_LIMIT);
    let reasons: Vec<Value> =
        mediator.events_named("session.ended").iter().map(|e| e["end_reason"].clone()).collect();
    assert_eq!(reasons.len(), 4);
    assert_eq!(reasons[3], failure::TIME_LIMIT);
    mediator.admin(&["audit", "verify"]);
}

#[tokio::test]
async fn access_is_asked_for_approved_by_another_and_taken_back() {
    let mediator = Mediator::start();
    let (mut agent, pc, key) = mediator.agent("pc").await;
    let (jane, client) = (mediator.user("jane", &[]).await, mediator.user("rep", &[]).await);
    let stranger = mediator.user("stranger", &[]).await;
    let ask = || {
        Body::RequestAccess(wire::RequestAccess {
            computer_id: pc.device_id.clone(),
            redirector: "ssh".into(),
            reason: "disk is full".into(),
            length_ms: 600_000,
            ..Default::default()
        })
    };
    assert_eq!(jane.ask(ask()).await.unwrap_err().code, failure::NO_SUCH_COMPUTER);
    mediator.bind("technician", "jane", &["--require", "approval"]);
    mediator.bind("client-representative", "jane", &[]);
    mediator.bind("client-representative", "rep", &["--client", "main/hq"]);
    let Body::AccessRequest(asked) = jane.ask(ask()).await.unwrap() else { panic!() };
    assert_eq!((asked.state.as_str(), asked.user.as_str()), ("pending", "jane"));
    // Asked twice it is the same request; in other words it would be a second one to decide.
    let Body::AccessRequest(same) = jane.ask(ask()).await.unwrap() else { panic!() };
    assert_eq!(same.request_id, asked.request_id);
    let Body::RequestAccess(mut worded) = ask() else { panic!() };
    worded.reason = "disk is still full".into();
    let refused = jane.ask(Body::RequestAccess(worded)).await.unwrap_err();
    assert_eq!(refused.code, "request_pending");
    assert!(refused.message.contains(&asked.request_id) && !refused.hint.is_empty());
    let list = || Body::ListRequests(wire::ListRequests { pending: true });
    for (who, count) in [(&jane, 1), (&client, 1), (&stranger, 0)] {
        let Body::AccessRequests(found) = who.ask(list()).await.unwrap() else { panic!() };
        assert_eq!(found.requests.len(), count);
    }
    let decide = |approve| {
        let request_id = asked.request_id.clone();
        Body::DecideRequest(wire::DecideRequest { request_id, approve, ..Default::default() })
    };
    let own = jane.ask(decide(true)).await.unwrap_err();
    assert_eq!(own.code, failure::NOT_PERMITTED);
    assert!(own.hint.contains("somebody else"), "{own:?}");
    assert_eq!(stranger.ask(decide(true)).await.unwrap_err().code, failure::NO_SUCH_REQUEST);
    let refused = try_open(&jane, &mut agent, wish(1, &pc, &key)).await.unwrap_err();
    assert_eq!(refused.code, failure::APPROVAL_REQUIRED);
    let Body::AccessRequest(done) = client.ask(decide(true)).await.unwrap() else { panic!() };
    assert_eq!((done.state.as_str(), done.decided_by.as_str()), ("approved", "rep"));
    // The approval is for one redirector.
    let mut other = wish(2, &pc, &key);
    other.redirector = "rdp".into();
    other.targets[0].port = 3389;
    let refused = try_open(&jane, &mut agent, other).await.unwrap_err();
    assert_eq!(refused.code, failure::APPROVAL_REQUIRED);
    try_open(&jane, &mut agent, wish(3, &pc, &key)).await.unwrap();
    let since = Instant::now();
    client.ask(decide(false)).await.unwrap();
    assert_eq!(told_end(&mut agent, since).await, failure::APPROVAL_REQUIRED);
    // The machine's administrator approves for a moment.
    let Body::AccessRequest(again) = jane.ask(ask()).await.unwrap() else { panic!() };
    mediator.admin(&["request", "approve", &again.request_id, "--for", "1s"]);
    try_open(&jane, &mut agent, wish(4, &pc, &key)).await.unwrap();
    assert_eq!(told_end(&mut agent, Instant::now()).await, failure::APPROVAL_REQUIRED);
    for (name, count) in [
        ("request.made", 2),
        ("request.approved", 2),
        ("request.denied", 1),
        ("request.decision_refused", 2),
    ] {
        assert_eq!(mediator.events_named(name).len(), count, "{name}");
    }
}

/// Whatever way and whoever it is: one decision, and after it only the taking back of an approval.
#[tokio::test]
async fn a_request_is_decided_once_and_an_approval_can_only_be_taken_back() {
    let mediator = Mediator::start();
    let (_agent, _pc, _) = mediator.agent("pc").await;
    let jane = mediator.user("jane", &[]).await;
    let (first, second) = (mediator.user("first", &[]).await, mediator.user("second", &[]).await);
    mediator.bind("technician", "jane", &["--require", "approval"]);
    for approver in ["first", "second"] {
        mediator.bind("client-representative", approver, &["--client", "main/hq"]);
    }
    let decide = |id: &str, approve, length_ms| {
        let (request_id, note) = (id.to_owned(), String::new());
        Body::DecideRequest(wire::DecideRequest { request_id, approve, length_ms, note })
    };
    let list = async || {
        let all = Body::ListRequests(wire::ListRequests { pending: false });
        let Body::AccessRequests(found) = first.ask(all).await.unwrap() else { panic!() };
        found.requests
    };
    // Refused for everybody, by each way, and nothing is changed.
    let stays = async |id: &str, by: &[(&Device, bool)], local: &[&str]| {
        let before = list().await;
        for (who, approve) in by {
            let refused = who.ask(decide(id, *approve, 0)).await.unwrap_err();
            assert_eq!(refused.code, failure::ALREADY_DECIDED, "{refused:?}");
            assert!(refused.message.contains(id) && refused.hint.contains("nothing was changed"));
        }
        for what in local {
            let (code, told) = mediator.try_admin(&["request", what, id], "");
            assert_eq!((code, &told[0]["error"]["code"]), (3, &json!(failure::ALREADY_DECIDED)));
        }
        assert_eq!(list().await, before);
    };
    // Two at once: one of them has decided.
    let asked = ask_for_ssh(&jane).await;
    let (one, other) = tokio::join!(
        first.ask(decide(&asked, true, 60_000)),
        second.ask(decide(&asked, true, 600_000))
    );
    let (done, refused) = match (one, other) {
        (Ok(done), Err(refused)) | (Err(refused), Ok(done)) => (done, refused),
        both => panic!("{both:?}"),
    };
    assert_eq!(refused.code, failure::ALREADY_DECIDED);
    let Body::AccessRequest(done) = done else { panic!() };
    assert!(refused.message.contains(&done.decided_by), "{refused:?}");
    assert_eq!(list().await, std::slice::from_ref(&done));
    stays(&asked, &[(&first, true), (&second, true)], &["approve"]).await;
    // Taken back, by whoever asked, too; and that is the end of it.
    jane.ask(decide(&asked, false, 0)).await.unwrap();
    let all = [(&first, true), (&second, false), (&jane, false)];
    stays(&asked, &all, &["approve", "deny"]).await;
    // Denied, or over.
    let denied = ask_for_ssh(&jane).await;
    first.ask(decide(&denied, false, 0)).await.unwrap();
    stays(&denied, &all, &["approve", "deny"]).await;
    let over = ask_for_ssh(&jane).await;
    first.ask(decide(&over, true, 1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    stays(&over, &all, &["approve", "deny"]).await;
    for (name, count) in [("request.approved", 2), ("request.denied", 2)] {
        assert_eq!(mediator.events_named(name).len(), count, "{name}");
    }
    let refused = mediator.events_named("request.decision_refused");
    assert_eq!(refused.len(), 1 + 3 + 3 * 5, "{refused:?}");
    assert!(refused.iter().all(|event| event["end_reason"] == failure::ALREADY_DECIDED));
}

#[tokio::test]
async fn nobody_approves_an_own_request_with_a_key_or_another_account_on_the_same_device() {
    let mediator = Mediator::start();
    let (_agent, pc, _) = mediator.agent("pc").await;
    let ann = mediator.admin(&["user", "add", "ann", "--role", "none"]);
    let me = identity();
    let console = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
    console.login("ann", ann[0]["password"].as_str().unwrap()).await.unwrap();
    mediator.bind("technician", "ann", &["--require", "approval"]);
    // She manages the partner, too, and so may register keys and add users.
    mediator.bind("administrator", "ann", &["--require", "approval"]);
    let wish = wire::RequestAccess {
        computer_id: pc.device_id.clone(),
        redirector: "ssh".into(),
        reason: "disk is full".into(),
        length_ms: 600_000,
        ..Default::default()
    };
    let Body::AccessRequest(asked) = console.ask(Body::RequestAccess(wish)).await.unwrap() else {
        panic!()
    };
    let decide = |approve: bool| {
        let request_id = asked.request_id.clone();
        Body::DecideRequest(wire::DecideRequest { request_id, approve, ..Default::default() })
    };
    // Another console of hers.
    let second = identity();
    let elsewhere = mediator.connect(&second, hello(2, &second, &[])).await.unwrap();
    elsewhere.login("ann", ann[0]["password"].as_str().unwrap()).await.unwrap();
    assert_eq!(elsewhere.ask(decide(true)).await.unwrap_err().code, failure::NOT_PERMITTED);
    // A key, whoever registered it.
    let root = identity();
    let admin = mediator.connect(&root, hello(2, &root, &[])).await.unwrap();
    admin.login("admin", &mediator.password).await.unwrap();
    let (root, mut web) = (Who::at(&admin, &root).await, Web::connect(&mediator).await);
    let key = register(&mut web, &root, "k", "administrator", &serde_json::json!({})).await;
    let target = format!("/api/v1/requests/{}/approve", asked.request_id);
    let refused = web.ask(&key, "POST", &target, Some(&serde_json::json!({}))).await;
    assert_eq!((refused.status, refused.code()), (403, failure::NOT_PERMITTED), "{refused:?}");
    // Another account on a device of hers.
    let rep = mediator.admin(&["user", "add", "rep", "--role", "administrator"]);
    for (device, good) in [(&second, false), (&identity(), true)] {
        let console = mediator.connect(device, hello(2, device, &[])).await.unwrap();
        console.login("rep", rep[0]["password"].as_str().unwrap()).await.unwrap();
        match console.ask(decide(true)).await {
            Ok(Body::AccessRequest(done)) => assert!(good && done.state == "approved"),
            Err(refused) => assert!(!good && refused.code == failure::NOT_PERMITTED),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(mediator.events_named("request.decision_refused").len(), 3);
    assert_eq!(mediator.events_named("request.approved").len(), 1);
}

/// `mon-sun HH:MM-HH:MM` from the minute before now to the end of one that is to come, and when.
fn hours_until(minute: u64) -> String {
    let clock = |minute: u64| format!("{:02}:{:02}", minute / 60 % 24, minute % 60);
    format!("mon-sun {}-{} UTC", clock(minute - 2), clock(minute))
}

/// Hours, a second factor's age, the longest time and a binding's end: what is met opens, and what
/// ends while somebody works ends the work.
#[tokio::test]
async fn conditions_that_are_met_open_and_those_that_end_end_live_sessions() {
    let mediator = Mediator::start();
    let (mut agent, pc, key) = mediator.agent("pc").await;
    let console = mediator.user("jane", &[]).await;
    let now_s = || common::api::now_s();
    let today = |days: u64| {
        let days = (now_s() / 86_400 + days) % 7;
        ["thu", "fri", "sat", "sun", "mon", "tue", "wed"][usize::try_from(days).unwrap()]
    };
    let mut n = 0;
    let mut attempt = async |agent: &mut Device| {
        n += 1;
        let wish = wire::Open { ticket: "T-1".into(), ..wish(n, &pc, &key) };
        try_open(&console, agent, wish).await.map_err(|failure| failure.code)
    };
    // Not today, nor in what is left of it where today ends before long.
    let hours = format!("{} 00:00-23:59 UTC", today(3));
    let closed = mediator.bind("technician", "jane", &["--hours", &hours]);
    assert_eq!(attempt(&mut agent).await.unwrap_err(), failure::OUTSIDE_HOURS);
    mediator.admin(&["role", "unbind", &closed]);
    for flags in [
        &["--hours", &format!("{}-{} 00:00-24:00 UTC", today(6), today(1))][..],
        &["--from", "127.0.0.0/8"],
        &["--require", "reason,ticket"],
        &["--max-length", "1h"],
        &["--until", "2100-01-01T00:00:00Z"],
    ] {
        let met = mediator.bind("technician", "jane", flags);
        attempt(&mut agent).await.unwrap_or_else(|code| panic!("{flags:?}: {code}"));
        let since = Instant::now();
        mediator.admin(&["role", "unbind", &met]);
        assert_eq!(told_end(&mut agent, since).await, "permission_withdrawn");
    }
    // The end of a binding.
    let end = jiff::Timestamp::from_second(i64::try_from(now_s() + 3).unwrap()).unwrap();
    mediator.bind("technician", "jane", &["--until", &end.to_string()]);
    attempt(&mut agent).await.unwrap();
    assert_eq!(told_end(&mut agent, Instant::now()).await, "permission_withdrawn");
    assert!(attempt(&mut agent).await.is_err());
    // The end of a time window, to the minute.
    let minute = (now_s() + 5) / 60 + 1;
    mediator.bind("technician", "jane", &["--hours", &hours_until(minute % 1440 + 1440)]);
    attempt(&mut agent).await.unwrap();
    let left = (minute * 60).saturating_sub(now_s());
    let ended = tokio::time::timeout(Duration::from_secs(left + 5), agent.incoming.recv());
    let (body, responder) = ended.await.unwrap().unwrap().into_parts();
    responder.reply(Body::Done(wire::Done {}));
    assert!(now_s() + 1 >= minute * 60, "ended before its time");
    let Body::EndSession(told) = body else { panic!("{body:?}") };
    assert_eq!(told.reason, failure::OUTSIDE_HOURS);
    assert_eq!(attempt(&mut agent).await.unwrap_err(), failure::OUTSIDE_HOURS);
}

/// A request for the only computer that there is; its id.
async fn ask_for_ssh(console: &Device) -> String {
    let Body::Computers(found) =
        console.ask(Body::ListComputers(wire::ListComputers::default())).await.unwrap()
    else {
        panic!()
    };
    let wish = wire::RequestAccess {
        computer_id: found.computers[0].computer_id.clone(),
        redirector: "ssh".into(),
        reason: "why".into(),
        ..Default::default()
    };
    let Body::AccessRequest(asked) = console.ask(Body::RequestAccess(wish)).await.unwrap() else {
        panic!()
    };
    asked.request_id
}

/// The rule that allows lacks nothing, and each other one what it lacks: an approval that holds
/// counts for all of them, now and as of then.
#[tokio::test]
async fn what_each_rule_lacks_fits_the_decision() {
    let mediator = Mediator::start();
    mediator.agent("pc").await;
    let jane = mediator.user("jane", &[]).await;
    let allows = mediator.bind("technician", "jane", &["--require", "approval"]);
    let lacks = mediator.bind("technician", "jane", &["--require", "approval,ticket"]);
    let explain = |more: &[&str]| {
        let ask = [&["explain", "jane", "main/hq/pc", "ssh"], more].concat();
        let told = mediator.admin(&ask).remove(0);
        let missing = |id: &str| {
            let rules = told["rules"].as_array().unwrap().iter();
            let mut found = rules.filter(|rule| rule["rule"].as_str().unwrap().contains(id));
            found.next().unwrap()["missing"].clone()
        };
        let missing = [missing(&allows), missing(&lacks)];
        (told, missing)
    };
    let (before, missing) = explain(&[]);
    assert_eq!((&before["allowed"], &before["missing"]), (&json!(false), &missing[0]));
    assert_eq!(missing[0], json!([failure::APPROVAL_REQUIRED]));
    assert_eq!(missing[1], json!([failure::TICKET_REQUIRED, failure::APPROVAL_REQUIRED]));
    tokio::time::sleep(Duration::from_millis(20)).await;
    let asked = ask_for_ssh(&jane).await;
    mediator.admin(&["request", "approve", &asked]);
    let (then, missing) = explain(&[]);
    assert_eq!(then["allowed"], true, "{then}");
    assert!(then["rule"].as_str().unwrap().contains(&allows), "{then}");
    assert_eq!(missing, [json!([]), json!([failure::TICKET_REQUIRED])], "{then}");
    // An approval of that redirector is none of another one.
    let other = mediator.admin(&["explain", "jane", "main/hq/pc", "rdp"]).remove(0);
    assert_eq!(other["code"], failure::APPROVAL_REQUIRED, "{other}");
    tokio::time::sleep(Duration::from_millis(20)).await;
    mediator.admin(&["request", "deny", &asked]);
    assert_eq!(explain(&[]).1[0], json!([failure::APPROVAL_REQUIRED]));
    for (at, was) in [(&before, before["allowed"].clone()), (&then, then["allowed"].clone())] {
        let (past, missing) = explain(&["--at", at["at"].as_str().unwrap()]);
        assert_eq!((&past["allowed"], &past["rules"]), (&was, &at["rules"]), "{past}");
        assert_eq!(missing[0] == json!([]), was == json!(true));
    }
}

/// Rules that allow any redirector make none of what no computer has.
#[tokio::test]
async fn what_no_computer_has_is_told_as_such() {
    let mediator = Mediator::start();
    mediator.agent("pc").await;
    mediator.user("jane", &[]).await;
    mediator.bind("technician", "jane", &[]);
    let explain =
        |redirector: &str| mediator.admin(&["explain", "jane", "main/hq/pc", redirector]).remove(0);
    for redirector in ["ssh", "tcp", "udp", "socks"] {
        let told = explain(redirector);
        assert_eq!((&told["known"], &told["allowed"]), (&json!(true), &json!(true)), "{told}");
    }
    let told = explain("nonsense");
    assert_eq!((&told["known"], &told["allowed"]), (&json!(false), &json!(false)), "{told}");
    assert_eq!(told["code"], failure::NO_SUCH_REDIRECTOR);
    assert!(told["message"].as_str().unwrap().contains("rdp, vnc, ssh"), "{told}");
    // What the rules would say is there.
    assert_eq!(told["rules"][0]["permits"], true);
    assert_eq!(told["rules"][0]["missing"], json!([]));
    // A role may name it, and whoever makes it is told.
    let create = ["role", "create", "odd", "--permission", "launch", "--redirector"];
    let made = mediator.admin(&[&create[..], &["nonsense", "--redirector", "ssh"]].concat());
    assert_eq!(made[0]["unknown_redirectors"], json!(["nonsense"]));
    let made = mediator.admin(&[&create[..], &["ssh", "--replace"]].concat());
    assert_eq!(made[0]["unknown_redirectors"], json!([]));
}

/// Whatever changed since: the role's content, groups of users and computers, approvals, bindings.
#[tokio::test]
async fn each_thing_that_changed_since_is_explained_as_it_was() {
    let mediator = Mediator::start();
    mediator.agent("pc").await;
    let jane = mediator.user("jane", &[]).await;
    let shell = ["role", "create", "shell", "--permission", "launch", "--redirector"];
    mediator.admin(&[&shell[..], &["ssh"]].concat());
    mediator.admin(&["user", "group", "jane", "ops"]);
    mediator.admin(&["computer", "group", "pc", "servers"]);
    mediator.admin(&["computer", "tag", "pc", "site=hq"]);
    let bind = |more: &[&str]| {
        let told =
            mediator.admin(&[&["role", "bind", "shell", "--user-group", "ops"], more].concat());
        told[0]["binding"].as_str().unwrap().to_owned()
    };
    let explain = |at: &str| {
        let ask = ["explain", "jane", "main/hq/pc", "ssh", "--reason"];
        let at = if at.is_empty() { &[][..] } else { &["--at", at][..] };
        mediator.admin(&[&ask[..], at].concat()).remove(0)
    };
    // Undone, it is denied now and was allowed then; done again, the same in its turn.
    let check = async |undo: &[&str], redo: &[&str]| {
        let then = explain("");
        assert_eq!(then["allowed"], true, "before {undo:?}: {then}");
        tokio::time::sleep(Duration::from_millis(20)).await;
        mediator.admin(undo);
        let now = explain("");
        assert_eq!(now["allowed"], false, "after {undo:?}: {now}");
        let past = explain(then["at"].as_str().unwrap());
        let same = ["allowed", "rule", "code", "missing", "rules"];
        assert!(same.iter().all(|field| past[field] == then[field]), "{undo:?}: {past} {then}");
        let denied = explain(now["at"].as_str().unwrap());
        assert_eq!(denied["allowed"], false, "{denied}");
        tokio::time::sleep(Duration::from_millis(20)).await;
        if !redo.is_empty() {
            mediator.admin(redo);
        }
    };
    let group = bind(&["--computers", "servers"]);
    let other = [&shell[..], &["rdp", "--replace"]].concat();
    check(&other, &[&shell[..], &["ssh", "--replace"]].concat()).await;
    let ops = ["user", "group", "jane", "ops"];
    check(&[&ops[..], &["--remove"]].concat(), &ops).await;
    let servers = ["computer", "group", "pc", "servers"];
    check(&[&servers[..], &["--remove"]].concat(), &[]).await;
    bind(&["--tag", "site=hq"]);
    check(&["computer", "tag", "pc", "site=hq", "--remove"], &[]).await;
    mediator.admin(&["role", "unbind", &group]);
    let binding = bind(&["--client", "main/hq", "--require", "approval"]);
    let asked = ask_for_ssh(&jane).await;
    mediator.admin(&["request", "approve", &asked]);
    check(&["request", "deny", &asked], &[]).await;
    // What was decided stays so: it is asked for anew.
    let asked = ask_for_ssh(&jane).await;
    mediator.admin(&["request", "approve", &asked]);
    check(&["role", "unbind", &binding], &[]).await;
}

/// By no way over the network does a partner end without somebody who can put it right.
#[tokio::test]
async fn the_last_manager_loses_nothing_to_a_request_from_afar() {
    let mediator = Mediator::start();
    let (admin, root, _) = mediator.console().await;
    let (owner, mut web) = (Who::at(&admin, &root).await, Web::connect(&mediator).await);
    let manages = ["users.manage", "roles.manage", "computers.see"];
    let keeper = |permissions: &[&str]| serde_json::json!({"permissions": permissions});
    // Whoever acts holds all of it, and may act on it: the last one is somebody else.
    let mut create = vec!["role", "create", "keeper"];
    manages.iter().for_each(|name| create.extend(["--permission", name]));
    mediator.admin(&create);
    mediator.admin(&["role", "bind", "keeper", "--user-group", "keepers"]);
    let _kim = mediator.user("kim", &[]).await;
    mediator.admin(&["user", "group", "kim", "keepers"]);
    let spare = mediator.bind("administrator", "kim", &["--until", "2100-01-01T00:00:00Z"]);
    let bound = web.ask(&owner, "GET", "/api/v1/bindings", None).await.body;
    let of = |role: &str, name: &str| {
        let found = bound["items"].as_array().unwrap().iter();
        let mut found = found.filter(|b| b["role"] == role && b["name"] == name);
        found.next().unwrap()["binding"].as_str().unwrap().to_owned()
    };
    let unbind = |binding: &str| format!("/api/v1/bindings/{binding}");
    let less = keeper(&["roles.manage"]);
    // One of two may go. A key holds as much, but is nobody who could log in.
    let key = register(&mut web, &owner, "k", "owner", &serde_json::json!({})).await;
    let (groups, own) = (unbind(&of("keeper", "keepers")), unbind(&of("owner", "admin")));
    assert_eq!(web.ask(&key, "DELETE", &own, None).await.status, 200);
    for (method, path, body) in [
        ("DELETE", groups.as_str(), None),
        ("DELETE", "/api/v1/roles/keeper", None),
        ("PUT", "/api/v1/roles/keeper", Some(&less)),
        ("DELETE", "/api/v1/users/kim/groups/keepers", None),
        ("POST", "/api/v1/users/kim/disable", None),
    ] {
        let answer = web.ask(&key, method, path, body).await;
        let told = (answer.status, answer.code());
        assert_eq!(told, (403, "last_manager"), "{method} {path}: {answer:?}");
        assert!(answer.body["hint"].as_str().unwrap().contains("machine"), "{answer:?}");
    }
    let refused = mediator.events_named("act.refused");
    assert_eq!(refused.len(), 5);
    assert!(refused.iter().all(|e| e["rule"] == "last-administrator"), "{refused:?}");
    // What is not for good is nobody's last; what changes nothing for the last is done.
    assert_eq!(web.ask(&key, "DELETE", &unbind(&spare), None).await.status, 200);
    let same = keeper(&manages[..2]);
    assert_eq!(web.ask(&key, "PUT", "/api/v1/roles/keeper", Some(&same)).await.status, 200);
    // With another for good it is done, too; and on the mediator's machine whatever is asked for.
    mediator.bind("owner", "admin", &[]);
    let answer = web.ask(&key, "DELETE", "/api/v1/roles/keeper", None).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    mediator.admin(&["user", "disable", "admin"]);
}

/// Whoever may only from some network, at some hours or with another's word may never get in again.
#[tokio::test]
async fn the_last_manager_is_one_whom_no_condition_keeps_out() {
    let mediator = Mediator::start();
    let (admin, root, _) = mediator.console().await;
    let (owner, mut web) = (Who::at(&admin, &root).await, Web::connect(&mediator).await);
    let key = register(&mut web, &owner, "k", "owner", &json!({})).await;
    let manages = ["--permission", "users.manage", "--permission", "roles.manage"];
    mediator.admin(&[&["role", "create", "keeper"], &manages[..]].concat());
    for user in ["kim", "net", "night", "asks"] {
        mediator.admin(&["user", "add", user, "--role", "none"]);
    }
    let kim = mediator.bind("keeper", "kim", &[]);
    let net = mediator.bind("owner", "net", &["--from", "192.0.2.0/24"]);
    let night = mediator.bind("owner", "night", &["--hours", "mon 03:00-03:01"]);
    let asks = mediator.bind("owner", "asks", &["--require", "approval"]);
    let unbind = |binding: &str| format!("/api/v1/bindings/{binding}");
    mediator.admin(&["user", "disable", "admin"]);
    let content = |conditions: serde_json::Value| json!({"permissions": ["users.manage", "roles.manage"], "conditions": conditions});
    let (hours, nets) = (
        content(json!({"hours": "mon 03:00-03:01"})),
        content(json!({"networks": ["192.0.2.0/24"]})),
    );
    let approval = content(json!({"approval": true}));
    for (method, path, body) in [
        ("DELETE", unbind(&kim), None),
        ("POST", "/api/v1/users/kim/disable".to_owned(), None),
        ("PUT", "/api/v1/roles/keeper".to_owned(), Some(&hours)),
        ("PUT", "/api/v1/roles/keeper".to_owned(), Some(&nets)),
        ("PUT", "/api/v1/roles/keeper".to_owned(), Some(&approval)),
    ] {
        let answer = web.ask(&key, method, &path, body).await;
        assert_eq!(
            (answer.status, answer.code()),
            (403, "last_manager"),
            "{method} {path}: {answer:?}"
        );
    }
    // A condition that its holder can always meet keeps nobody out.
    let reason = content(json!({"reason": true, "mfa_age_ms": 900_000}));
    let answer = web.ask(&key, "PUT", "/api/v1/roles/keeper", Some(&reason)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    // Where there is no better, those with conditions are the last.
    mediator.admin(&["role", "unbind", &kim]);
    for (binding, wanted) in [(&net, 200), (&night, 200), (&asks, 403)] {
        let answer = web.ask(&key, "DELETE", &unbind(binding), None).await;
        assert_eq!(answer.status, wanted, "{answer:?}");
    }
}

#[tokio::test]
async fn another_partner_has_nothing_and_learns_nothing() {
    let mediator = Mediator::start();
    let (mut agent, pc, key) = mediator.agent("pc").await;
    mediator.admin(&["client", "add", "other/branch"]);
    let other = ["--partner", "other"];
    let console = mediator.user("eve", &other).await;
    mediator.bind("owner", "eve", &["--installation"]);
    let (code, _) =
        mediator.try_admin(&["role", "bind", "owner", "--user", "eve", "--client", "main/hq"], "");
    assert_eq!(code, 4);
    // A tag that no computer can have would give nothing, and say nothing of it.
    let (code, told) =
        mediator.try_admin(&["role", "bind", "owner", "--user", "eve", "--tag", "foo"], "");
    assert_eq!((code, told[0]["error"]["code"].as_str()), (2, Some("tag_invalid")));
    // But one that agents bring, whatever is in it.
    mediator.bind("owner", "eve", &["--tag", "path=/dc1/r2"]);
    let (admin, _, _) = mediator.console().await;
    try_open(&admin, &mut agent, wish(1, &pc, &key)).await.unwrap();
    assert_eq!(listed(&console).await, [""; 0]);
    let refused = try_open(&console, &mut agent, wish(2, &pc, &key)).await.unwrap_err();
    assert_eq!(refused.code, failure::NO_SUCH_COMPUTER);
    let sessions = console.ask(Body::ListSessions(wire::ListSessions {})).await.unwrap();
    assert!(matches!(sessions, Body::Sessions(found) if found.sessions.is_empty()));
    let end = wire::EndSession { session_id: vec![1; 16].into(), reason: String::new() };
    let refused = console.ask(Body::EndSession(end)).await.unwrap_err();
    assert_eq!(refused.code, failure::NO_SUCH_SESSION);
    let record = mediator.events_named("session.end_refused").pop().unwrap();
    assert_eq!((&record["partner"], &record["rule"]), (&"other".into(), &"not-visible".into()));
    let ask = wire::RequestAccess {
        computer_id: pc.device_id.clone(),
        redirector: "ssh".into(),
        reason: "why".into(),
        ..Default::default()
    };
    let refused = console.ask(Body::RequestAccess(ask)).await.unwrap_err();
    assert_eq!(refused.code, failure::NO_SUCH_COMPUTER);
}

/// Whoever has a session in a list is told that ending it is what they may not; for whoever has not
/// there is none.
#[tokio::test]
async fn who_sees_a_session_is_told_that_they_may_not_end_it() {
    let mediator = Mediator::start();
    let (mut agent, pc, key) = mediator.agent("pc").await;
    mediator.admin(&["client", "add", "other/branch"]);
    for (role, permission) in
        [("watcher", "sessions.see"), ("finder", "computers.see"), ("keeper", "credentials.use")]
    {
        mediator.admin(&["role", "create", role, "--permission", permission]);
    }
    let add = ["credential", "add", "main/hq", "c", "--computer", "pc"];
    let (_, credential) = mediator.try_admin(&add, "a secret of this test");
    let credential = credential[0]["credential_id"].as_str().unwrap();
    let credential = format!("/api/v1/credentials/{credential}");
    let (admin, _, _) = mediator.console().await;
    try_open(&admin, &mut agent, wish(1, &pc, &key)).await.unwrap();
    let session = mediator.admin(&["session", "list"])[0]["session_id"].clone();
    let target = format!("/api/v1/sessions/{}", session.as_str().unwrap());
    let (hidden, told) = (failure::NO_SUCH_SESSION, failure::NOT_PERMITTED);
    // The same holds of a credential that one may use, and not change.
    for (role, partner, listed, wire, api, change) in [
        ("auditor", "main", 1, told, (403, told), 403),
        ("watcher", "main", 1, told, (403, told), 404),
        ("finder", "main", 0, hidden, (403, told), 403),
        ("keeper", "main", 0, hidden, (404, hidden), 403),
        ("owner", "other", 0, hidden, (404, hidden), 404),
    ] {
        let (name, me) = (format!("{role}-1"), identity());
        let add = ["user", "add", &name, "--partner", partner, "--role", "none"];
        let added = mediator.admin(&add);
        mediator.bind(role, &name, &[]);
        let console = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
        console.login(&name, added[0]["password"].as_str().unwrap()).await.unwrap();
        let seen = console.ask(Body::ListSessions(wire::ListSessions {})).await.unwrap();
        let Body::Sessions(seen) = seen else { panic!("{seen:?}") };
        assert_eq!(seen.sessions.len(), listed, "{role}");
        let end = wire::EndSession { session_id: vec![1; 16].into(), reason: String::new() };
        let refused = console.ask(Body::EndSession(end)).await.unwrap_err();
        assert_eq!(refused.code, wire, "{role}: {refused:?}");
        let (who, mut web) = (Who::at(&console, &me).await, Web::connect(&mediator).await);
        let refused = web.ask(&who, "DELETE", &target, None).await;
        assert_eq!((refused.status, refused.code()), api, "{role}: {refused:?}");
        let refused = web.ask(&who, "PUT", &credential, Some(&json!({"user": "x"}))).await;
        assert_eq!(refused.status, change, "{role}: {refused:?}");
    }
    assert_eq!(mediator.admin(&["session", "list"]).len(), 1);
}

#[tokio::test]
async fn a_past_decision_is_explained_and_nobody_grants_beyond_the_own_rules() {
    let mediator = Mediator::start();
    mediator.agent("pc").await;
    mediator.user("jane", &[]).await;
    mediator.user("boss", &[]).await;
    let right = mediator.bind("technician", "jane", &["--require", "reason"]);
    let ask = |more: &[&str]| {
        let told = mediator.admin(&[&["explain", "jane", "main/hq/pc", "ssh"], more].concat());
        told.into_iter().next().unwrap()
    };
    let then = ask(&["--reason"]);
    assert_eq!((&then["allowed"], &then["rules"][0]["covers"]), (&true.into(), &true.into()));
    let bare = ask(&[]);
    assert_eq!(bare["code"], failure::REASON_REQUIRED);
    mediator.admin(&["role", "unbind", &right]);
    let now = ask(&["--reason"]);
    assert_eq!((&now["allowed"], &now["code"]), (&false.into(), &"no_such_computer".into()));
    let past = ask(&["--reason", "--at", then["at"].as_str().unwrap()]);
    assert_eq!((&past["allowed"], &past["rule"]), (&true.into(), &then["rule"]));

    mediator.bind("administrator", "boss", &["--client", "main/hq", "--require", "reason"]);
    for (role, more, code) in [
        ("technician", &["--client", "main/hq", "--require", "reason"][..], 0),
        ("technician", &["--client", "main/hq"], 3),
        ("technician", &["--require", "reason"], 3),
        ("owner", &["--client", "main/hq", "--require", "reason"], 3),
        ("technician", &["--computer", "pc", "--require", "reason,approval"], 0),
    ] {
        let args = [&["role", "bind", role, "--user", "jane", "--as", "boss"], more].concat();
        assert_eq!(mediator.try_admin(&args, "").0, code, "{args:?}");
    }
    let bound = mediator.events_named("role.bound").pop().unwrap();
    assert_eq!(bound["actor"], "boss");
}
