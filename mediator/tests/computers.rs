//! Computers one by one: removed, renamed, and two that are one by a copied data directory.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails"
)]

mod common;

use std::time::Duration;

use adit_protocol::{
    code::failure,
    wire::{self, frame::Body},
};
use common::{
    Device, Mediator, WAIT,
    api::{Web, Who, register},
    hello, open, try_open,
};
use serde_json::json;
use tokio::task::JoinSet;

/// Acknowledges everything until the connection ends; why sessions ended.
async fn answers(mut device: Device) -> Vec<String> {
    let mut ended = Vec::new();
    while let Some(request) = device.incoming.recv().await {
        let (body, responder) = request.into_parts();
        if let Body::EndSession(end) = body {
            ended.push(end.reason);
        }
        responder.reply(Body::Done(wire::Done {}));
    }
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_computer_is_cut_off_for_good_and_its_name_is_free() {
    let mut mediator = Mediator::start();
    let (mut agent, enrolled, key) = mediator.agent("pc").await;
    let (console, _, _) = mediator.console().await;
    try_open(&console, &mut agent, open(1, &enrolled, &key)).await.unwrap();
    mediator.admin(&["computer", "group", "main/hq/pc", "desks"]);
    mediator.admin(&["role", "bind", "auditor", "--user", "admin", "--computer", "main/hq/pc"]);
    let backup = mediator.dir.path().with_extension("backup");
    mediator.admin(&["backup", backup.to_str().unwrap()]);

    // Nothing is done before somebody says yes.
    let (code, told) = mediator.try_admin(&["computer", "remove", "main/hq/pc"], "");
    assert_eq!((code, told[0]["error"]["code"].as_str()), (2, Some("usage")));
    assert_eq!(mediator.admin(&["session", "list"]).len(), 1);

    let mut ends = JoinSet::new();
    let console_peer = console.peer.clone();
    ends.spawn(answers(agent));
    ends.spawn(answers(console));
    let told = mediator.admin(&["computer", "remove", "main/hq/pc", "--yes"]).remove(0);
    assert_eq!((&told["removed"], &told["sessions_ended"]), (&true.into(), &1.into()), "{told}");
    // The agent is disconnected, once it knows.
    let ended = tokio::time::timeout(WAIT, ends.join_next()).await.unwrap().unwrap().unwrap();
    // Told again if its answer is slower than the record: an end is the same however often it comes.
    assert!(!ended.is_empty() && ended.iter().all(|why| why == "computer_removed"), "{ended:?}");
    assert!(!console_peer.is_closed(), "the console was cut off, too");
    assert_eq!(mediator.events_named("session.ended")[0]["end_reason"], "computer_removed");
    let record = mediator.events_named("computer.removed").remove(0);
    assert_eq!((record["client"].as_str(), record["computer"].as_str()), {
        (Some("main/hq"), Some("pc"))
    });
    assert_eq!(record["extra"]["identity"], key.signing.public().fingerprint().to_string());
    let back = mediator.connect(&key, hello(1, &key, &enrolled.device_id)).await.err().unwrap();
    assert_eq!(back.failure().unwrap().code, failure::NOT_ENROLLED);
    let (code, told) = mediator.try_admin(&["computer", "remove", "main/hq/pc", "--yes"], "");
    assert_eq!((code, told[0]["error"]["code"].as_str()), (4, Some("no_such_computer")));

    // Another computer may have the name, and inherits nothing.
    let (_new, anew, _) = mediator.agent("pc").await;
    assert_ne!(anew.device_id, enrolled.device_id);
    let listed = mediator.admin(&["computer", "list"]);
    assert_eq!((listed.len(), listed[0]["groups"].as_array().unwrap().len()), (1, 0), "{listed:?}");
    let fingerprint = mediator.fingerprint.clone();
    let verified = mediator.admin(&["audit", "verify", "--key", &fingerprint]);
    assert_eq!(verified[0]["valid"], true);
    let enrolments = mediator.events_named("enroll.succeeded");
    assert_eq!(enrolments.len(), 2, "the entry of the enrolment stays");

    // No backup brings it back.
    mediator.stop();
    mediator.admin(&["restore", backup.to_str().unwrap()]);
    mediator.serve();
    let back = mediator.connect(&key, hello(1, &key, &enrolled.device_id)).await.err().unwrap();
    assert_eq!(back.failure().unwrap().code, failure::NOT_ENROLLED);
    std::fs::remove_file(backup).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn computers_are_renamed_and_removed_over_the_network_within_ones_rules() {
    let mediator = Mediator::start();
    let (mut agent, enrolled, key) = mediator.agent("pc").await;
    let (console, me, _) = mediator.console().await;
    try_open(&console, &mut agent, open(1, &enrolled, &key)).await.unwrap();
    let (owner, mut web) = (Who::at(&console, &me).await, Web::connect(&mediator).await);
    let technician = register(&mut web, &owner, "t", "technician", &json!({})).await;
    let (pc, name) = ("/api/v1/computers/main%2Fhq%2Fpc", json!({"name": "reception"}));
    for (method, path, body) in
        [("DELETE", pc.to_owned(), None), ("PUT", format!("{pc}/name"), Some(&name))]
    {
        let refused = web.ask(&technician, method, &path, body).await;
        assert_eq!((refused.status, refused.code()), (403, failure::NOT_PERMITTED));
    }
    let bad = web.ask(&owner, "PUT", &format!("{pc}/name"), Some(&json!({"name": "a/b"}))).await;
    assert_eq!(bad.status, 400, "{bad:?}");
    let renamed = web.ask(&owner, "PUT", &format!("{pc}/name"), Some(&name)).await;
    assert_eq!((renamed.status, &renamed.body["was"]), (200, &json!("pc")), "{renamed:?}");
    assert_eq!(web.ask(&owner, "DELETE", pc, None).await.status, 404);
    let mut ends = JoinSet::new();
    ends.spawn(answers(agent));
    ends.spawn(answers(console));
    let reception = "/api/v1/computers/main%2Fhq%2Freception";
    let removed = web.ask(&owner, "DELETE", reception, None).await;
    assert_eq!((removed.status, &removed.body["sessions_ended"]), (200, &json!(1)), "{removed:?}");
    let ended = tokio::time::timeout(WAIT, ends.join_next()).await.unwrap().unwrap().unwrap();
    // Told again if its answer is slower than the record: an end is the same however often it comes.
    assert!(!ended.is_empty() && ended.iter().all(|why| why == "computer_removed"), "{ended:?}");
    for event in ["computer.renamed", "computer.removed"] {
        let record = mediator.events_named(event).remove(0);
        assert_eq!(record["actor"], "admin");
        assert_eq!(record["device"], me.signing.public().fingerprint().to_string());
    }
    assert_eq!(web.ask(&owner, "DELETE", reception, None).await.status, 404);
}

#[tokio::test]
async fn what_was_removed_while_no_mediator_ran_has_no_session_afterwards() {
    let mut mediator = Mediator::start();
    let (mut agent, enrolled, key) = mediator.agent("pc").await;
    let (console, _, _) = mediator.console().await;
    try_open(&console, &mut agent, open(1, &enrolled, &key)).await.unwrap();
    mediator.stop();
    mediator.admin(&["computer", "remove", "pc", "--yes"]);
    mediator.serve();
    let deadline = tokio::time::Instant::now() + WAIT;
    while mediator.events_named("session.ended").is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "the session goes on");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(mediator.events_named("session.ended")[0]["end_reason"], "computer_removed");
}

#[tokio::test]
async fn a_renamed_computer_goes_on_under_its_new_name() {
    let mediator = Mediator::start();
    let (mut agent, enrolled, key) = mediator.agent("pc").await;
    let (_other, _, _) = mediator.agent("taken").await;
    let (code, told) = mediator.try_admin(&["computer", "rename", "main/hq/pc", "Taken"], "");
    assert_eq!((code, told[0]["error"]["code"].as_str()), (1, Some("name_taken")));
    assert!(told[0]["error"]["message"].as_str().unwrap().contains("main/hq"), "{told:?}");
    let told = mediator.admin(&["computer", "rename", "main/hq/pc", "reception"]).remove(0);
    assert_eq!((&told["computer"], &told["was"]), (&"reception".into(), &"pc".into()), "{told}");
    let record = mediator.events_named("computer.renamed").remove(0);
    assert_eq!(record["computer"], "pc");
    assert_eq!(record["extra_personal"]["name"], "reception");
    assert_eq!(mediator.admin(&["computer", "list", "main/hq/reception"]).len(), 1);
    assert_eq!(mediator.admin(&["computer", "list", "main/hq/pc"]).len(), 0);
    // The same computer, agent and key; who has its old name looks again.
    let (console, _, _) = mediator.console().await;
    let named = |session, name: &str| wire::Open {
        name: name.to_owned(),
        client: "main/hq".to_owned(),
        ..open(session, &enrolled, &key)
    };
    let stale = console.ask(Body::Open(named(1, "pc"))).await.unwrap_err();
    assert_eq!(stale.code, failure::STALE_DESCRIPTION);
    try_open(&console, &mut agent, named(2, "reception")).await.unwrap();
    assert_eq!(mediator.admin(&["session", "list"])[0]["computer"], "reception");
}

#[tokio::test]
async fn two_living_agents_with_one_identity_are_noticed_and_told() {
    let mediator = Mediator::start();
    let (mut first, enrolled, key) = mediator.agent("pc").await;
    let again = async || mediator.connect(&key, hello(1, &key, &enrolled.device_id)).await.unwrap();
    // They take turns; each is told as it goes.
    for _ in 0..3 {
        let second = again().await;
        let told = first.next().await;
        let Body::Failure(why) = &told.body else { panic!("{:?}", told.body) };
        assert_eq!(why.code, failure::IDENTITY_IN_USE);
        told.reply(Body::Done(wire::Done {}));
        tokio::time::timeout(WAIT, first.peer.closed()).await.unwrap();
        assert!(!second.peer.is_closed());
        first = second;
    }
    let deadline = tokio::time::Instant::now() + WAIT;
    let events = loop {
        let events = mediator.events_named("agent.identity_in_use");
        if !events.is_empty() {
            break events;
        }
        assert!(tokio::time::Instant::now() < deadline, "nothing is recorded");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(events.len(), 1, "once a minute");
    assert_eq!((events[0]["computer"].as_str(), events[0]["client"].as_str()), {
        (Some("pc"), Some("main/hq"))
    });
}

#[tokio::test]
async fn an_agent_that_lost_its_connection_is_no_twin_of_itself() {
    let mediator = Mediator::start();
    // Nobody answers on it any more; the mediator does not know that yet.
    let (dead, enrolled, key) = mediator.agent("pc").await;
    let new = mediator.connect(&key, hello(1, &key, &enrolled.device_id)).await.unwrap();
    tokio::time::timeout(WAIT, dead.peer.closed()).await.unwrap();
    assert!(!new.peer.is_closed());
    assert_eq!(mediator.events_named("agent.identity_in_use").len(), 0);
}
