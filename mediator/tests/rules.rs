//! Rules of docs/security-rules.md that devices of the tests' own can check.

mod common;

use std::time::{Duration, Instant};

use adit_protocol::{
    code::failure,
    wire::{self, frame::Body},
};
use common::{Mediator, hello, identity, open};
use tokio::task::JoinSet;

#[tokio::test]
async fn coming_from_the_mediators_own_machine_proves_nothing() {
    let mediator = Mediator::start();
    let (_agent, enrolled, agent_identity) = mediator.agent("pc").await;
    let me = identity();
    let stranger = mediator.connect(&me, hello(2, &me, &[])).await.unwrap();
    let session_id = bytes::Bytes::from(vec![1; 16]);
    for body in [
        Body::Open(open(1, &enrolled, &agent_identity)),
        Body::ListComputers(wire::ListComputers::default()),
        Body::ListSessions(wire::ListSessions::default()),
        Body::ListRequests(wire::ListRequests::default()),
        Body::RequestAccess(wire::RequestAccess::default()),
        Body::DecideRequest(wire::DecideRequest::default()),
        Body::AuditExport(wire::AuditExport::default()),
        Body::WhoAmI(wire::WhoAmI {}),
        Body::Logout(wire::Logout {}),
        Body::EndSession(wire::EndSession { session_id: session_id.clone(), ..Default::default() }),
        Body::SessionReport(wire::SessionReport { session_id: session_id.clone(), events: vec![] }),
        Body::Renew(wire::Renew { session_id: session_id.clone() }),
        Body::TicketRequest(wire::TicketRequest::default()),
        Body::TargetRequest(wire::TargetRequest::default()),
        Body::CheckIn(wire::CheckIn::default()),
        Body::RelayReport(wire::RelayReport::default()),
    ] {
        let answer = stranger.ask(body.clone()).await;
        let refused = answer.as_ref().is_err_and(|f| {
            [failure::NOT_LOGGED_IN, failure::BAD_REQUEST, failure::NO_SUCH_SESSION]
                .contains(&f.code.as_str())
        });
        assert!(refused, "{body:?}: {answer:?}");
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
