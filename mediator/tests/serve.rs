//! The running mediator, seen from devices.

mod common;

use adit_protocol::{
    code::failure,
    grant::{Grant, Lease},
    ids::ComputerId,
    keys::{SigningKey, sha256},
    wire::{self, frame::Body, session_event},
};
use common::{Mediator, hello, identity, open, relay_listener};

fn session_event(event: session_event::Event) -> wire::SessionEvent {
    wire::SessionEvent { at_ms: 1, event: Some(event) }
}

#[tokio::test]
async fn a_session_is_opened_audited_renewed_and_ended_once() {
    let mediator = Mediator::start();
    let (mut agent, enrolled, agent_identity) = mediator.agent("pc").await;
    assert_eq!((enrolled.name.as_str(), enrolled.client.as_str()), ("pc", "main/hq"));
    let (console, console_identity, _) = mediator.console().await;

    let listed = console.ask(Body::ListComputers(wire::ListComputers::default())).await.unwrap();
    let Body::Computers(listed) = listed else { panic!("{listed:?}") };
    assert!(listed.computers[0].online && listed.computers[0].name == "pc");
    assert_eq!(listed.computers[0].redirectors.len(), 5);

    let wish = open(1, &enrolled, &agent_identity);
    let (name, client) = ("pc".into(), "main/hq".into());
    let wish = wire::Open { name, client, enrolment: true, ..wish };
    let msg1 = wish.noise_msg1.clone();
    let (granted, offer) = tokio::join!(console.ask(Body::Open(wish)), async {
        let (body, responder) = agent.next().await.into_parts();
        responder.reply(Body::Answer(wire::Answer { noise_msg2: vec![8; 100].into() }));
        let Body::Offer(offer) = body else { panic!("{body:?}") };
        offer
    });
    let Body::Granted(granted) = granted.unwrap() else { panic!() };
    assert_eq!(granted.grant, offer.grant);
    // The agent's enrolment is proved in the head that the grant's record is shown in.
    let root = agent.keys.root;
    let shown = granted.audit.as_ref().unwrap().head.clone();
    let proof = adit_ledger::Evidence::from_wire(granted.enrolment.as_ref()).unwrap();
    assert_eq!(proof.head.to_line().as_bytes(), &shown[..]);
    let id = ComputerId::from_slice(&enrolled.device_id).unwrap().to_string();
    proof.check_enrolment(root, &id, agent_identity.signing.public()).unwrap();
    assert!(proof.check_enrolment(root, &id, console_identity.signing.public()).is_err());
    // Each end learns where the other's control connection comes from.
    assert_eq!(
        (&granted.peer_seen[..], &offer.peer_seen[..]),
        (&[127, 0, 0, 1][..], &[127, 0, 0, 1][..])
    );
    let grant = Grant::open(agent.keys.grant, &offer.grant.unwrap()).unwrap();
    assert_eq!(grant.msg1_sha256, sha256(&msg1));
    assert_eq!(grant.console, console_identity.signing.public());
    assert_eq!((grant.user.as_str(), grant.reason.as_str()), ("admin", "a reason"));
    // The grant names the record of its own approval, which is there.
    let events = mediator.events();
    let record = events.iter().find(|e| e["seq"] == grant.audit_seq).unwrap();
    assert_eq!(record["event"], "session.granted");
    let leaf: String = grant.audit_leaf.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(record["leaf"], leaf);
    assert_eq!(record["target"], "127.0.0.1:22");

    let session_id = bytes::Bytes::from(vec![1; 16]);
    let renew = Body::Renew(wire::Renew { session_id: session_id.clone() });
    let Body::Renewed(renewed) = agent.ask(renew).await.unwrap() else { panic!() };
    assert!(Lease::open(agent.keys.grant, &renewed.lease.unwrap()).is_ok());

    let carrier = session_event(session_event::Event::Carrier(wire::CarrierChange {
        kind: "relayed".into(),
        state: "active".into(),
        ..Default::default()
    }));
    let end = session_event(session_event::Event::End(wire::SessionEnd {
        reason: "console_closed".into(),
        bytes_up: 10,
        bytes_down: 20,
        duration_ms: 30,
    }));
    let report = |events| wire::SessionReport { session_id: session_id.clone(), events };
    console.ask(Body::SessionReport(report(vec![carrier, end.clone()]))).await.unwrap();
    // The other end is told, and its own report changes nothing any more.
    let (body, responder) = agent.next().await.into_parts();
    assert!(matches!(body, Body::EndSession(_)), "{body:?}");
    responder.reply(Body::Done(wire::Done {}));
    let _ = agent.peer.request(Body::SessionReport(report(vec![end])), common::WAIT).await;
    let ended = mediator.events_named("session.ended");
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0]["end_reason"], "console_closed");
    assert_eq!((&ended[0]["bytes_up"], &ended[0]["bytes_down"]), (&10.into(), &20.into()));
    assert_eq!(ended[0]["carriers"], serde_json::json!(["relayed"]));
    assert_eq!(mediator.events_named("session.requested").len(), 1);
    mediator.admin(&["audit", "verify"]);
}

#[tokio::test]
async fn refusals_have_their_code_and_their_record() {
    let mediator = Mediator::start();
    let (agent, enrolled, agent_identity) = mediator.agent("pc").await;
    let (console, _, _) = mediator.console().await;
    let other = identity();
    let good = open(1, &enrolled, &agent_identity);
    let unknown = wire::Open { computer_id: vec![9; 16].into(), ..good.clone() };
    let stale = open(2, &enrolled, &other);
    let renamed = wire::Open { name: "pc".into(), client: "main/other".into(), ..good.clone() };
    let odd = wire::Open { redirector: "telnet".into(), ..good.clone() };
    let mut wrong_target = good.clone();
    wrong_target.targets[0].port = 23;
    for (wish, code) in [
        (unknown, failure::NO_SUCH_COMPUTER),
        (stale, failure::STALE_KEY),
        (renamed, failure::STALE_DESCRIPTION),
        (odd, failure::NO_SUCH_REDIRECTOR),
        (wrong_target, failure::BAD_REQUEST),
    ] {
        assert_eq!(console.ask(Body::Open(wish)).await.unwrap_err().code, code);
        assert_eq!(mediator.events_named("session.refused").last().unwrap()["end_reason"], code);
    }
    drop(agent);
    // The mediator notices a moment later that the agent is gone.
    let code = loop {
        let code = console.ask(Body::Open(good.clone())).await.unwrap_err().code;
        if code != failure::AGENT_TIMEOUT {
            break code;
        }
    };
    assert_eq!(code, failure::AGENT_OFFLINE);
    assert!(mediator.events_named("session.granted").len() <= 1);
}

#[tokio::test]
async fn an_agent_that_refuses_ends_the_session_with_its_words() {
    let mediator = Mediator::start();
    let (mut agent, enrolled, agent_identity) = mediator.agent("pc").await;
    let (console, _, _) = mediator.console().await;
    let wish = open(1, &enrolled, &agent_identity);
    let (refused, ()) = tokio::join!(console.ask(Body::Open(wish)), async {
        let (_, responder) = agent.next().await.into_parts();
        responder.fail(adit_control::failure(failure::POLICY_REFUSED, "port 22 is not allowed"));
    });
    let refused = refused.unwrap_err();
    assert_eq!(refused.code, failure::POLICY_REFUSED);
    assert_eq!(refused.message, "port 22 is not allowed");
    let record = mediator.events_named("session.refused");
    assert_eq!((record.len(), &record[0]["end_reason"]), (1, &failure::POLICY_REFUSED.into()));
}

#[tokio::test]
async fn only_good_tokens_enrol_and_only_as_often_as_they_say() {
    let mediator = Mediator::start();
    let foreign = Mediator::start();
    let token = mediator.token(&["agent", "--client", "main/hq"]);
    let me = identity();
    let fail = async |token: &_, kind, who: &_, name: &str| {
        mediator.enroll(who, token, kind, name).await.unwrap_err().code
    };
    assert_eq!(fail(&token, 3, &me, "r").await, failure::TOKEN_WRONG_ROLE);
    let elsewhere = foreign.token(&["agent", "--client", "main/hq"]);
    assert_eq!(fail(&elsewhere, 1, &me, "pc").await, failure::TOKEN_INVALID);
    let mut forged = mediator.token(&["agent", "--client", "main/hq"]);
    forged.seed = SigningKey::generate().unwrap().seed().clone();
    assert_eq!(fail(&forged, 1, &me, "pc").await, failure::TOKEN_INVALID);
    let short = mediator.token(&["agent", "--client", "main/hq", "--ttl", "1ms"]);
    assert_eq!(fail(&short, 1, &me, "pc").await, failure::TOKEN_EXPIRED);

    let first = mediator.enroll(&me, &token, 1, "pc").await.unwrap();
    // The answer may have been lost: the same device gets it again.
    assert_eq!(mediator.enroll(&me, &token, 1, "pc").await.unwrap(), first);
    // Whoever holds a token that is worth nothing does not fill the log with it.
    for _ in 0..4 {
        assert_eq!(fail(&token, 1, &identity(), "pc2").await, failure::TOKEN_SPENT);
    }
    let spent = mediator.events_named("enroll.refused");
    let spent = spent.iter().filter(|event| event["end_reason"] == failure::TOKEN_SPENT);
    assert_eq!(spent.count(), 1);
    let again = mediator.token(&["agent", "--client", "main/hq"]);
    assert_eq!(fail(&again, 1, &identity(), "PC").await, failure::NAME_TAKEN);
    let refused = mediator.events_named("enroll.refused");
    assert_eq!(refused.last().unwrap()["end_reason"], failure::NAME_TAKEN);
    assert_eq!(refused.last().unwrap()["client"], "main/hq");
    // A refused name costs no use.
    assert!(mediator.enroll(&identity(), &again, 1, "pc2").await.is_ok());

    let enrolled = mediator.events_named("enroll.succeeded");
    assert_eq!(enrolled.len(), 2);
    let fingerprint = me.signing.public().fingerprint().to_string();
    assert_eq!(enrolled[0]["extra"]["identity"], fingerprint);
    // Another identity under an enrolled id gets nothing but a failure.
    let other = identity();
    let error = mediator.connect(&other, hello(1, &other, &first.device_id)).await.err().unwrap();
    assert_eq!(error.failure().unwrap().code, failure::NOT_ENROLLED);
}

/// R24: what is good once is so for two that come at the same moment.
#[tokio::test]
async fn of_many_that_show_a_token_at_once_one_enrols() {
    let mediator = Mediator::start();
    let token = mediator.token(&["agent", "--client", "main/hq"]);
    let names: Vec<String> = (0..8).map(|n| format!("pc{n}")).collect();
    let ids: Vec<_> = names.iter().map(|_| identity()).collect();
    let tries = ids.iter().zip(&names).map(|(id, name)| mediator.enroll(id, &token, 1, name));
    let tries = futures_util::future::join_all(tries).await;
    assert_eq!(tries.iter().filter(|tried| tried.is_ok()).count(), 1, "{tries:?}");
    let refused = tries.iter().filter_map(|tried| tried.as_ref().err());
    assert!(refused.into_iter().all(|refused| refused.code == failure::TOKEN_SPENT), "{tries:?}");
    assert_eq!(mediator.events_named("enroll.succeeded").len(), 1);
}

#[tokio::test]
async fn logins_are_checked_recorded_and_bound_to_the_device() {
    let mediator = Mediator::start();
    let me = identity();
    let device = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
    let who = || Body::WhoAmI(wire::WhoAmI {});
    assert_eq!(device.ask(who()).await.unwrap_err().code, failure::NOT_LOGGED_IN);
    let wrong = device.login("admin", "wrong").await.unwrap_err();
    let unknown = device.login("nobody", "wrong").await.unwrap_err();
    assert_eq!(wrong, unknown);
    assert_eq!(wrong.code, failure::LOGIN_FAILED);
    let told = device.login("ADMIN", &mediator.password).await.unwrap();
    assert!(matches!(device.ask(who()).await, Ok(Body::Me(me)) if me.user == "admin"));

    let mut again = hello(2, &me, &[]);
    again.session_token = told.session_token.clone();
    let second = mediator.connect(&me, again).await.unwrap();
    assert!(second.ask(who()).await.is_ok());
    let thief = identity();
    let mut stolen = hello(2, &thief, &[]);
    stolen.session_token = told.session_token.clone();
    let stolen = mediator.connect(&thief, stolen).await.unwrap();
    assert_eq!(stolen.ask(who()).await.unwrap_err().code, failure::NOT_LOGGED_IN);

    second.ask(Body::Logout(wire::Logout {})).await.unwrap();
    assert_eq!(device.ask(who()).await.unwrap_err().code, failure::NOT_LOGGED_IN);
    let names: Vec<_> = mediator
        .events()
        .iter()
        .filter(|e| e["event"].as_str().unwrap().starts_with("log"))
        .map(|e| e["event"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["login.failed", "login.failed", "login.succeeded", "logout"]);
    let database = std::fs::read(mediator.database()).unwrap();
    let token = told.session_token.as_bytes();
    assert!(!database.windows(token.len()).any(|window| window == token));
}

#[tokio::test]
async fn disabling_a_user_ends_sessions_at_both_ends() {
    let mediator = Mediator::start();
    let (mut agent, enrolled, agent_identity) = mediator.agent("pc").await;
    let (mut console, _, _) = mediator.console().await;
    let (granted, ()) =
        tokio::join!(console.ask(Body::Open(open(1, &enrolled, &agent_identity))), async {
            let (_, responder) = agent.next().await.into_parts();
            responder.reply(Body::Answer(wire::Answer { noise_msg2: vec![8; 100].into() }));
        });
    granted.unwrap();
    let done = mediator.admin(&["user", "disable", "admin"]);
    assert_eq!(done[0]["sessions_ended"], 1);
    for device in [&mut agent, &mut console] {
        let (body, responder) = device.next().await.into_parts();
        assert!(
            matches!(&body, Body::EndSession(end) if end.reason == "user_disabled"),
            "{body:?}"
        );
        responder.reply(Body::Done(wire::Done {}));
    }
    let renew = Body::Renew(wire::Renew { session_id: vec![1; 16].into() });
    assert_eq!(agent.ask(renew).await.unwrap_err().code, failure::NO_SUCH_SESSION);
    assert_eq!(
        console.login("admin", &mediator.password).await.unwrap_err().code,
        failure::LOGIN_FAILED
    );
    assert_eq!(mediator.events_named("session.ended")[0]["end_reason"], "user_disabled");
}

#[tokio::test]
async fn relays_register_and_both_ends_get_tickets_for_their_own_keys() {
    let mediator = Mediator::start();
    let relay_identity = identity();
    let token = mediator.token(&["relay", "--region", "eu"]);
    let relay = mediator.enroll(&relay_identity, &token, 3, "").await.unwrap();
    let mut first = hello(3, &relay_identity, &relay.device_id);
    let (here, _answering) = relay_listener(&relay_identity).await;
    let (elsewhere, _another) = relay_listener(&identity()).await;
    first.relay = Some(wire::RelayInfo {
        addresses: vec![elsewhere.clone(), here.clone()],
        ..wire::RelayInfo::default()
    });
    let mut relay = mediator.connect(&relay_identity, first).await.unwrap();
    // Where another one answers, nobody is sent.
    let unconfirmed = &relay.welcome.unconfirmed;
    assert!(unconfirmed.len() == 1 && unconfirmed[0].starts_with(&elsewhere), "{unconfirmed:?}");
    let (mut agent, enrolled, agent_identity) = mediator.agent("pc").await;
    assert_eq!(agent.welcome.relays[0].region, "eu");
    assert_eq!(agent.welcome.relays[0].addresses, [here]);
    let (console, console_identity, _) = mediator.console().await;
    let (granted, offer) =
        tokio::join!(console.ask(Body::Open(open(1, &enrolled, &agent_identity))), async {
            let (body, responder) = agent.next().await.into_parts();
            responder.reply(Body::Answer(wire::Answer { noise_msg2: vec![8; 100].into() }));
            let Body::Offer(offer) = body else { panic!("{body:?}") };
            offer
        });
    let Body::Granted(granted) = granted.unwrap() else { panic!() };
    for (grants, noise) in [
        (&granted.relays, console_identity.noise.public),
        (&offer.relays, agent_identity.noise.public),
    ] {
        let signed = grants[0].ticket.as_ref().unwrap();
        let ticket = adit_protocol::ticket::Ticket::open(agent.keys.ticket, signed).unwrap();
        assert_eq!(ticket.joiner, noise);
        assert_eq!(ticket.relay, relay_identity.signing.public());
    }
    // An ended session is cut at the relay.
    let end = wire::EndSession { session_id: vec![1; 16].into(), reason: "done".into() };
    let (ended, cut) = tokio::join!(console.ask(Body::EndSession(end)), async {
        let (body, responder) = relay.next().await.into_parts();
        responder.reply(Body::Done(wire::Done {}));
        body
    });
    ended.unwrap();
    assert!(matches!(cut, Body::RelayCut(_)), "{cut:?}");
}

/// The relay answers as late as it likes where its address is tried; meanwhile it is disabled, or
/// drained.
#[tokio::test]
async fn a_relay_that_is_disabled_or_drained_while_it_connects_does_not_slip_in() {
    let mediator = Mediator::start();
    let relay_identity = identity();
    let token = mediator.token(&["relay"]);
    let relay = mediator.enroll(&relay_identity, &token, 3, "r").await.unwrap();
    let (behind, _answering) = relay_listener(&relay_identity).await;
    let again = || hello(3, &relay_identity, &relay.device_id);
    for act in ["disable", "drain"] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut first = hello(3, &relay_identity, &relay.device_id);
        first.relay =
            Some(wire::RelayInfo { addresses: vec![address], ..wire::RelayInfo::default() });
        let (connected, _tried) = tokio::join!(mediator.connect(&relay_identity, first), async {
            let asked = tokio::time::timeout(common::WAIT, listener.accept()).await;
            let (mut asked, _) = asked.unwrap().unwrap();
            mediator.admin(&["relay", act, "r"]);
            let mut tasks = tokio::task::JoinSet::new();
            let behind = behind.clone();
            tasks.spawn(async move {
                let mut relay = tokio::net::TcpStream::connect(behind).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut asked, &mut relay).await;
            });
            tasks
        });
        // Closed before or after it was welcomed.
        if let Ok(connected) = connected {
            let closed = tokio::time::timeout(common::WAIT, connected.peer.closed()).await;
            assert!(closed.is_ok(), "{act}: it stays connected");
        }
        let (agent, _, _) = mediator.agent(act).await;
        assert!(agent.welcome.relays.is_empty(), "{act}: {:?}", agent.welcome.relays);
        let listed = mediator.admin(&["relay", "list"]);
        assert_eq!(listed[0]["online"], false, "{act}: {listed:?}");
        if act == "disable" {
            assert!(mediator.connect(&relay_identity, again()).await.is_err());
            mediator.admin(&["relay", "enable", "r"]);
        }
    }
    // Drained, it may come, and is told so.
    let back = mediator.connect(&relay_identity, again()).await.unwrap();
    assert!(back.welcome.drained);
}

#[tokio::test]
async fn what_a_console_refuses_by_itself_is_recorded_without_naming_what_it_may_not_see() {
    let mediator = Mediator::start();
    mediator.admin(&["client", "add", "rival/lab"]);
    let (_agent, enrolled, _) = mediator.agent("pc").await;
    let token = mediator.token(&["agent", "--client", "rival/lab"]);
    let foreign = mediator.enroll(&identity(), &token, 1, "secret-pc").await.unwrap();
    let (console, console_identity, _) = mediator.console().await;
    let told = |computer_id: &bytes::Bytes| wire::ConsoleRefusal {
        computer_id: computer_id.clone(),
        computer: "as typed".into(),
        redirector: "ssh".into(),
        code: "agent_key_changed".into(),
        targets: vec![wire::Target { host: "127.0.0.1".into(), port: 22, protocol: 6 }],
        ..wire::ConsoleRefusal::default()
    };
    for (id, computer, client) in [
        (&enrolled.device_id, "pc", serde_json::json!("main/hq")),
        (&foreign.device_id, "as typed", serde_json::Value::Null),
        (&bytes::Bytes::new(), "as typed", serde_json::Value::Null),
    ] {
        let done = console.ask(Body::ConsoleRefusal(told(id))).await.unwrap();
        assert!(matches!(done, Body::Done(_)), "{done:?}");
        let record = mediator.events_named("session.refused").pop().unwrap();
        assert_eq!((&record["computer"], &record["client"]), (&computer.into(), &client));
        assert_eq!(record["end_reason"], "agent_key_changed");
        assert_eq!(record["extra"]["reported_by"], "console");
        assert_eq!((&record["actor"], &record["outcome"]), (&"admin".into(), &"refused".into()));
        assert_eq!(record["device"], console_identity.signing.public().fingerprint().to_string());
        assert_eq!(
            (&record["target"], &record["partner"]),
            (&"127.0.0.1:22".into(), &"main".into())
        );
    }
    for odd in [
        wire::ConsoleRefusal { code: "no such code".into(), ..told(&enrolled.device_id) },
        wire::ConsoleRefusal { code: String::new(), ..told(&enrolled.device_id) },
        wire::ConsoleRefusal { computer: "x".repeat(513), ..told(&enrolled.device_id) },
        wire::ConsoleRefusal { session_id: vec![1; 3].into(), ..told(&enrolled.device_id) },
    ] {
        let failed = console.ask(Body::ConsoleRefusal(odd)).await.unwrap_err();
        assert_eq!(failed.code, failure::BAD_REQUEST);
    }
    let stranger = identity();
    let stranger = mediator.connect(&stranger, hello(2, &stranger, &[])).await.unwrap();
    let failed = stranger.ask(Body::ConsoleRefusal(told(&enrolled.device_id))).await.unwrap_err();
    assert_eq!(failed.code, failure::NOT_LOGGED_IN);
    assert_eq!(mediator.events_named("session.refused").len(), 3);
}

#[tokio::test]
async fn a_strangers_guesses_do_not_keep_a_user_out_who_logged_in_before() {
    let mediator = Mediator::start();
    let (known, _, _) = mediator.console().await;
    let stranger = identity();
    let stranger = mediator.connect(&stranger, hello(2, &stranger, &[])).await.unwrap();
    for _ in 0..12 {
        let refused = stranger.login("admin", "a wrong password of theirs").await.unwrap_err();
        assert_eq!(refused.code, failure::LOGIN_FAILED);
    }
    // What the user has goes on.
    let who = || known.ask(Body::WhoAmI(wire::WhoAmI {}));
    assert!(matches!(who().await, Ok(Body::Me(me)) if me.user == "admin"));
    // The stranger is delayed, even with the right password.
    let refused = stranger.login("admin", &mediator.password).await.unwrap_err();
    assert_eq!(refused.code, failure::LOGIN_FAILED);
    assert_eq!(mediator.events_named("login.failed").last().unwrap()["end_reason"], "delayed");
    known.login("admin", &mediator.password).await.unwrap();
    // A known console is no way to guess without end.
    for _ in 0..12 {
        known.login("admin", "a wrong password of theirs").await.unwrap_err();
    }
    let refused = known.login("admin", &mediator.password).await.unwrap_err();
    assert_eq!(refused.code, failure::LOGIN_FAILED);
    assert_eq!(mediator.events_named("login.failed").last().unwrap()["end_reason"], "delayed");
    assert!(who().await.is_ok());
}
