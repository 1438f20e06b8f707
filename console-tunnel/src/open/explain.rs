//! `explain COMPUTER`: opens a session without a channel, watches how its paths come about, tells
//! what it saw, and ends it. Nothing is carried and nothing local listens.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use adit_protocol::code::failure as codes;
use adit_runtime::{
    cli::{CliError, escape_text},
    shutdown::Shutdown,
};

use super::{Opening, Start, ended, no_path};
use crate::{
    cli::{Carrier, ExplainArgs, SessionArgs},
    config::Context,
    events::ms,
    explain::{Finding, is_settled, is_tried},
    link::Caller,
    session::{Explanation, SHUTDOWN, Session, SessionEvent, Wanted},
};

/// The viewer's name in the audit record: nobody looked at anything.
const VIEWER: &str = "explain";
/// How often the session is asked.
const LOOK: Duration = Duration::from_millis(250);
/// Time for its answer.
const ANSWER: Duration = Duration::from_secs(1);
/// After a direct path is there: for figures of the second relay and other pairs to come in.
const AFTERWARDS: Duration = Duration::from_millis(750);
/// Time to measure the relays from here.
const MEASURE: Duration = Duration::from_secs(3);
/// How often a person is told that it goes on.
const PROGRESS: Duration = Duration::from_secs(3);
/// Redirectors that are tried.
const MAX_TRIES: usize = 5;

/// `explain COMPUTER`.
pub async fn run(
    context: &Context,
    args: &ExplainArgs,
    shutdown: &Shutdown,
) -> Result<(), CliError> {
    let caller = Caller::load(context)?;
    let options = SessionArgs {
        reason: args.reason.clone(),
        ticket: args.ticket.clone(),
        carrier: Carrier::Auto,
    };
    let start = Start { context, given: &args.computer, options: &options, shutdown };
    let mut opening = Opening::start(start, caller, &|_, _| None).await?;
    let looked = look_at(&mut opening, args, &options, shutdown).await;
    let ended = looked.as_ref().map_or("failed", |_| "explained");
    let Opening { sessions, computer, .. } = opening;
    sessions.shutdown(ended, SHUTDOWN).await;
    let (redirector, seen) = looked?;
    let finding = Finding { computer: &computer, redirector: &redirector, seen: &seen };
    finding.tell(context.global.output())?;
    if seen.said.carrier.is_none() {
        return Err(no_path::error(Carrier::Auto, Some(&seen.said)));
    }
    Ok(())
}

/// What was seen of a session.
pub struct Seen {
    /// What it said last.
    pub said: Explanation,
    /// How long it was watched.
    pub waited: Duration,
    /// The outcome was known then.
    pub settled: bool,
}

async fn look_at(
    opening: &mut Opening<'_>,
    args: &ExplainArgs,
    options: &SessionArgs,
    shutdown: &Shutdown,
) -> Result<(String, Seen), CliError> {
    let (session, redirector) = open_any(opening, args, options).await?;
    opening.remember().await?;
    let path = escape_text(&opening.computer.path());
    let redirector_text = escape_text(&redirector);
    progress(&format!("session with {path} ({redirector_text}); watching how paths come about"));
    let interrupt = shutdown.token();
    let measuring = tokio::time::timeout(MEASURE, opening.sessions.measure_relays());
    let both = async { tokio::join!(watch(session, args.wait), measuring) };
    let (seen, measured) = tokio::select! {
        both = both => both,
        () = interrupt.cancelled() => return Err(CliError::interrupted()),
    };
    let mut seen = seen?;
    // What the session did not need to know itself.
    for (name, rtt) in measured.into_iter().flatten() {
        let relay = seen.said.relays.iter_mut().find(|relay| relay.name == name);
        if let Some(relay) = relay.filter(|relay| relay.own_rtt_ms.is_none()) {
            relay.own_rtt_ms = Some(ms(rtt));
        }
    }
    Ok((redirector, seen))
}

/// Opens a session for the redirector that was named, or for the first that may be opened.
async fn open_any(
    opening: &mut Opening<'_>,
    args: &ExplainArgs,
    options: &SessionArgs,
) -> Result<(Session, String), CliError> {
    let names = match &args.redirector {
        Some(name) => vec![name.clone()],
        None => opening.computer.redirector_names(),
    };
    let mut refused = None;
    for name in names.into_iter().take(MAX_TRIES) {
        let redirector = opening.redirector(&name).await?;
        let wanted = Wanted {
            redirector: &redirector.name,
            targets: vec![redirector.target.clone()],
            any_target: false,
            viewer: VIEWER.to_owned(),
            options,
        };
        match opening.ask_unless_interrupted(&wanted).await {
            Ok((session, _)) => return Ok((session, redirector.name)),
            // Another one may be permitted.
            Err(error) if [codes::NOT_PERMITTED, codes::POLICY_REFUSED].contains(&error.code) => {
                refused.get_or_insert(error);
            }
            Err(error) => return Err(opening.refused(error, &wanted).await),
        }
    }
    Err(refused.unwrap_or_else(|| {
        CliError::not_there("no_such_redirector", "the computer has nothing that could be opened")
    }))
}

/// Watches until it is known what comes of punching, or the time is over.
async fn watch(session: Session, wait: Duration) -> Result<Seen, CliError> {
    let Session { handle, mut events, .. } = session;
    let began = Instant::now();
    let mut told = began;
    let mut until = began + wait;
    let mut last: Option<Explanation> = None;
    loop {
        let over = tokio::select! {
            event = events.recv() => match event {
                Some(SessionEvent::Closed { reason, .. }) => Some(reason),
                Some(_) => None,
                None => Some("lost".to_owned()),
            },
            () = tokio::time::sleep(LOOK) => {
                let said = tokio::time::timeout(ANSWER, handle.explain()).await;
                last = said.ok().flatten().or(last);
                None
            }
        };
        if let Some(reason) = over {
            return match (reason.as_str(), last) {
                // That is what it is all about.
                ("no_path" | "no_carrier", Some(said)) => {
                    Ok(Seen { said, waited: began.elapsed(), settled: true })
                }
                _ => Err(ended::by_others(&reason)),
            };
        }
        let now = Instant::now();
        let settled = last.as_ref().is_some_and(is_settled);
        if settled {
            until = until.min(now.max(began + AFTERWARDS));
        }
        if now >= until
            && let Some(said) = last.take()
        {
            handle.close("explained");
            let settled = settled || is_tried(&said);
            return Ok(Seen { said, waited: began.elapsed(), settled });
        }
        if now.duration_since(told) >= PROGRESS {
            told = now;
            let kind = last.as_ref().and_then(|said| said.carrier).unwrap_or("no path yet");
            let left = until.saturating_duration_since(now).as_secs();
            progress(&format!("{kind}; looking for a direct path for {left} s more at most"));
        }
    }
}

/// On stderr. If nobody can read it, nobody misses it.
fn progress(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
