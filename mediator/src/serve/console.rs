//! What consoles say. Everything but `Login` needs a login that holds at that moment.

use std::time::Duration;

use adit_control::{Responder, failure as fail};
use adit_ledger::{Event, Level};
use adit_protocol::{
    code::failure,
    ids::SessionId,
    target::{BUILTIN_REDIRECTORS, Target, Transport},
    wire::{self, frame::Body},
};
use adit_runtime::time::unix_ms;
use prost::Message;

use super::{
    agent, clocks, connection::Line, credentials, device, driver::Driver, logins, logins::Use,
    looks, mfa, open, refusals, requests,
};
use crate::{
    authz::{Decision, Holder, Spot},
    core::{
        ending::LOGGED_OUT,
        report::code_text,
        review::Live,
        types::{Affected, Device, EndAs, Refusal},
    },
    names,
    roles::{Act, Permission},
    store::{
        StoreError,
        access::{When, filter},
        accounts::{LoginId, LoginRow},
        computers, sessions as store_sessions,
    },
};

/// Computers in one page of a list; each takes about 600 bytes of a frame.
const MAX_PAGE: u32 = 200;
const DEFAULT_PAGE: u32 = 100;
/// Pages read to find computers that are online.
const MAX_PAGES_READ: usize = 50;
/// Bytes of a search text.
const MAX_QUERY: usize = 256;
/// What a console is told of the life of its tokens, milliseconds.
const API_TOKEN_LIFE_MS: u64 = 600_000;
/// Wrong passwords on one connection.
const MAX_LOGIN_FAILURES: u32 = 20;
/// Whoever is told that there is no room for a login is told so late: asking again is not cheaper
/// than waiting, and connecting anew costs both more.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(1);

/// The login that a console comes with, if it holds. Asked before the welcome, after which the
/// console may send at once what only those may who are logged in.
pub(super) async fn resume(line: &mut Line, hello: &wire::Hello) -> Option<LoginId> {
    if hello.session_token.is_empty() {
        return None;
    }
    let token = logins::token_id(&hello.session_token);
    let row = line.shared.logins.session(token, line.identity, Use::Upkeep).await.ok()?;
    line.proved(&row.account.partner_id);
    line.peer.trust();
    Some(token)
}

/// Serves a console.
pub(super) async fn serve(mut line: Line, noise: [u8; 32], mut login: Option<LoginId>) {
    let id = line.id;
    let broker = line.shared.broker.clone();
    let mut registered = false;
    let mut failures = 0;
    while failures < MAX_LOGIN_FAILURES {
        if login.is_some() && !std::mem::replace(&mut registered, true) {
            register(&line, noise).await;
        }
        let Some(request) = line.next().await else { break };
        let (body, responder) = request.into_parts();
        match body {
            Body::Login(wish) => match line.shared.logins.login(wish, line.from()).await {
                Ok((told, token)) => {
                    login = Some(token);
                    logged_in(&mut line, told, token, responder).await;
                }
                Err(refusal) if refusal.code == failure::BUSY => {
                    tokio::time::sleep(NO_ROOM_PAUSE).await;
                    refuse(responder, refusal);
                }
                Err(refusal) => {
                    failures += 1;
                    refuse(responder, refusal);
                }
            },
            Body::DeviceLogin(wish) => device::begin(&line, &wish, responder),
            Body::DeviceLoginPoll(wish) => match polled(&line, login, &wish).await {
                device::Answer::Again => match current(&line, login).await {
                    Some(row) => responder.reply(Body::Me(mfa::me_of(&line, &row))),
                    None => refuse(responder, not_logged_in()),
                },
                device::Answer::LoggedIn(told, token) => {
                    login = Some(token);
                    logged_in(&mut line, told, token, responder).await;
                }
                device::Answer::Pending => {
                    responder.reply(Body::DevicePending(wire::DevicePending {}));
                }
                device::Answer::Refused(refusal) => refuse(responder, refusal),
            },
            Body::Ping(_) => responder.reply(Body::Done(wire::Done {})),
            body => handle(&line, &mut login, body, responder).await,
        }
    }
    if registered {
        broker.act(move |driver, now| driver.disconnected(id, None, now)).await;
    }
}

/// The login that this console has, if it may be kept up.
async fn current(line: &Line, login: Option<LoginId>) -> Option<LoginRow> {
    let logins = &line.shared.logins;
    logins.session(login?, line.identity, Use::Upkeep).await.ok()
}

fn not_logged_in() -> Refusal {
    Refusal::new(failure::NOT_LOGGED_IN, "not logged in")
}

async fn polled(
    line: &Line,
    login: Option<LoginId>,
    wish: &wire::DeviceLoginPoll,
) -> device::Answer {
    let has = current(line, login).await;
    device::poll(line, wish, has.as_ref()).await
}

/// The broker learns of a console once somebody is logged in there: strangers cost it nothing.
/// Done before the next request is read, so nothing comes to the broker from an unknown one.
async fn register(line: &Line, noise: [u8; 32]) {
    let (id, peer, identity) = (line.id, line.peer.clone(), line.identity);
    let (device, source) = (Device::Console { identity, noise }, line.source.ip());
    let connected = move |driver: &mut Driver, now| {
        driver.connected(id, device, (peer, source), now);
    };
    line.shared.broker.act(connected).await;
    if let Some(proved) = &line.proved {
        clocks::compare(line, line.clock, &proved.partner_id, |event| event).await;
    }
}

async fn logged_in(line: &mut Line, told: wire::LoggedIn, token: LoginId, responder: Responder) {
    let row = line.shared.logins.session(token, line.identity, Use::Act).await;
    let partner = row.map_or_else(|_| line.shared.home.clone(), |row| row.account.partner_id);
    line.proved(&partner);
    line.peer.trust();
    responder.reply(Body::LoggedIn(told));
}

fn refuse(responder: Responder, refusal: Refusal) {
    responder.fail(fail(refusal.code, refusal.message));
}

async fn handle(line: &Line, login: &mut Option<LoginId>, body: Body, responder: Responder) {
    let shared = &line.shared;
    let asked_ms = unix_ms();
    let for_what = if mfa::is_upkeep(&body) { Use::Upkeep } else { Use::Act };
    let session = match *login {
        Some(token) => shared.logins.session(token, line.identity, for_what).await,
        None => Err(not_logged_in()),
    };
    let row = match session {
        Ok(row) => row,
        Err(refusal) => return refuse(responder, refusal),
    };
    if row.is_limited(shared.logins.settings.mfa) && !mfa::is_for_limited(&body) {
        return mfa::refuse_limited(line, &row, responder).await;
    }
    if let Some(look) = looks::at(&body)
        && let Err(refusal) = looks::record(line, &row, look).await
    {
        return refuse(responder, refusal);
    }
    match body {
        Body::WhoAmI(_)
        | Body::Reauthenticate(_)
        | Body::MfaStatus(_)
        | Body::TotpEnroll(_)
        | Body::TotpConfirm(_)
        | Body::RecoveryRenew(_)
        | Body::FactorRemove(_) => mfa::handle(line, &row, body, responder).await,
        Body::Logout(_) => match shared.logins.logout(&row, line.from()).await {
            Ok(()) => {
                *login = None;
                let affected = Affected::Login(row.id);
                shared
                    .broker
                    .act(move |driver, now| {
                        driver.broker.handle_revoked(&affected, LOGGED_OUT, now);
                    })
                    .await;
                responder.reply(Body::Done(wire::Done {}));
            }
            Err(refusal) => refuse(responder, refusal),
        },
        Body::ListComputers(wish) => match list(line, &row, &wish).await {
            Ok(found) => responder.reply(Body::Computers(found)),
            Err(error) => {
                tracing::error!(%error, "cannot list computers");
                responder.fail(fail(failure::INTERNAL, "computers cannot be read"));
            }
        },
        Body::Open(wish) => open::open(line, &row, asked_ms, wish, responder).await,
        Body::HeadRequest(asked) => {
            agent::prove(line, &row.account.partner_id, asked, responder).await;
        }
        Body::Receipts(told) => {
            let names = (row.account.partner_id.clone(), row.account.partner.clone());
            agent::receipts(line, names, told, responder).await;
        }
        Body::ReceiptRequest(asked) => {
            agent::counterparts(line, &row.account.partner_id, asked, responder).await;
        }
        Body::EnrolmentRequest(asked) => open::enrolment(line, &row, asked, responder).await,
        Body::ConsoleRefusal(told) => refusals::refused(line, &row, told, responder).await,
        Body::ListSessions(_) => match sessions(line, &row).await {
            Ok(found) => responder.reply(Body::Sessions(found)),
            Err(error) => {
                tracing::error!(%error, "cannot list sessions");
                responder.fail(fail(failure::INTERNAL, "sessions cannot be read"));
            }
        },
        Body::RequestAccess(_) | Body::ListRequests(_) | Body::DecideRequest(_) => {
            requests::handle(line, &row, body, responder).await;
        }
        Body::UseCredential(wish) => {
            credentials::use_in_session(line, &row, wish, responder).await;
        }
        Body::EndSession(wish) => end(line, &row, &wish, responder).await,
        Body::ApiTokenRequest(_) => match shared.api_tokens.issue(row.id, line.identity) {
            Some(token) => responder.reply(Body::ApiToken(wire::ApiToken {
                token: token.to_string(),
                expires_ms: asked_ms.saturating_add(API_TOKEN_LIFE_MS),
                now_ms: unix_ms(),
            })),
            None => responder.fail(fail(failure::INTERNAL, "the system gives no randomness")),
        },
        body => agent::of_session(line, body, responder).await,
    }
}

async fn list(
    line: &Line,
    row: &LoginRow,
    wish: &wire::ListComputers,
) -> Result<wire::Computers, StoreError> {
    let mut found = wire::Computers::default();
    let client = match wish.client.as_str() {
        "" => None,
        path => match names::client_path(path) {
            Ok((partner, client)) if same_name(partner, &row.account.partner) => Some(client),
            // Another partner's clients do not exist.
            _ => return Ok(found),
        },
    };
    if wish.query.len() > MAX_QUERY || wish.after.len() > 4 * MAX_QUERY {
        return Ok(found);
    }
    let holder = holder(line, row).await?;
    let facts = mfa::facts(line, row);
    let visible = holder.filter(Permission::SeeComputers, facts, &filter::COMPUTER);
    let limit = match wish.limit {
        0 => DEFAULT_PAGE,
        limit => limit.min(MAX_PAGE),
    };
    let mut after = wish.after.clone();
    for _ in 0..MAX_PAGES_READ {
        let page = computers::list(
            &line.shared.store.readers,
            &visible,
            &wish.query,
            client,
            &after,
            limit,
        )
        .await?;
        let full = page.len() >= limit as usize;
        for computer in page {
            after = computer.cursor();
            let online = line.shared.broker.is_online(computer.id);
            if online || !wish.online {
                found.computers.push(computer_info(computer, online));
            }
            if found.computers.len() >= limit as usize {
                found.next = after;
                return Ok(found);
            }
        }
        if !full {
            return Ok(found);
        }
    }
    found.next = after;
    Ok(found)
}

fn same_name(a: &str, b: &str) -> bool {
    a.to_lowercase() == b.to_lowercase()
}

fn computer_info(row: computers::ComputerRow, online: bool) -> wire::Computer {
    let redirectors = BUILTIN_REDIRECTORS.iter().filter_map(|known| {
        let target = Target::new("127.0.0.1", known.port, Transport::Tcp).ok()?;
        Some(wire::Redirector {
            name: known.name.to_owned(),
            target: Some(target.to_wire()),
            viewer: known.viewer.to_owned(),
        })
    });
    wire::Computer {
        computer_id: row.id.to_bytes(),
        client: row.client_path(),
        name: row.name,
        partner_id: row.partner_id,
        online,
        os: row.os,
        last_seen_ms: row.last_seen_ms,
        identity: row.identity.to_bytes(),
        noise_cert: wire::Signed::decode(row.noise_cert.as_slice()).ok(),
        redirectors: redirectors.collect(),
    }
}

/// Own sessions, and those of others that a role lets this person see: filtered in SQL, with
/// what the broker knows of them.
async fn sessions(line: &Line, row: &LoginRow) -> Result<wire::Sessions, StoreError> {
    let holder = holder(line, row).await?;
    let facts = mfa::facts(line, row);
    let clause = holder.filter(Permission::SeeSessions, facts, &filter::SESSION);
    let pool = &line.shared.store.readers;
    let visible = store_sessions::visible(pool, &row.account.id, clause, MAX_PAGE * 4).await?;
    let listed = line.shared.broker.ask(move |driver, _| {
        let open = visible.into_iter().filter_map(|id| driver.broker.open_session(id));
        open.map(|session| wire::Session {
            session_id: session.id.to_bytes(),
            user: session.who.account.clone(),
            computer: session.place.computer.clone(),
            client: session.place.client.clone(),
            redirector: session.redirector.clone(),
            started_ms: session.started_ms,
            carrier: session.kinds().last().cloned().unwrap_or_default(),
        })
        .collect()
    });
    Ok(wire::Sessions { sessions: listed.await.unwrap_or_default() })
}

/// The person of a login with the rules that hold now.
pub(super) async fn holder(line: &Line, row: &LoginRow) -> Result<Holder, StoreError> {
    let pool = &line.shared.store.readers;
    Holder::load(pool, &row.account.partner_id, &row.account.id, When::Now).await
}

/// May this person end that session of another? Whoever may not see it is not told that there is
/// one: then there is no refusal.
async fn may_end(
    line: &Line,
    row: &LoginRow,
    session: SessionId,
) -> Result<Result<(), Option<Refusal>>, StoreError> {
    let found = line.shared.broker.ask(move |driver, now| driver.broker.live(session, now));
    let Some(live) = found.await.flatten() else { return Ok(Err(None)) };
    if live.who.account_id == row.account.id {
        return Ok(Ok(()));
    }
    let holder = holder(line, row).await?;
    let spot = Spot::of_place(&live.who.partner_id, &live.place);
    let facts = mfa::facts(line, row);
    let act = Act::of(Permission::EndSessions);
    let pool = &line.shared.store.readers;
    match holder.computer(pool, act, &spot, facts, When::Now).await? {
        Decision::Allow { .. } => Ok(Ok(())),
        Decision::Deny { rule, refusal, .. } => {
            refused_end(line, row, &live, (&rule, refusal.code)).await?;
            let see = Act::of(Permission::SeeSessions);
            let facts = mfa::facts(line, row);
            let seen = holder.computer(pool, see, &spot, facts, When::Now).await?.is_allowed();
            Ok(Err(seen.then_some(refusal)))
        }
    }
}

/// Denials stand in the log, too: of the session what was asked for, and the client, so that it goes
/// when that is erased.
async fn refused_end(
    line: &Line,
    row: &LoginRow,
    live: &Live,
    (rule, code): (&str, &str),
) -> Result<(), StoreError> {
    let event = Event::new("session.end_refused", Level::Significant)
        .partner(&row.account.partner)
        .client(&live.place.client)
        .session_id(live.session.to_string())
        .actor(&row.account.name)
        .device(line.identity.fingerprint().to_string())
        .source(line.source.to_string())
        .outcome("refused")
        .end_reason(code)
        .rule(rule);
    let partner = row.account.partner_id.clone();
    let _room = line.shared.writer.room(1).await?;
    let write = line
        .shared
        .writer
        .write(move |tx| Box::pin(async move { tx.append(&partner, event).await.map(|_| ()) }));
    write.await
}

async fn end(line: &Line, row: &LoginRow, wish: &wire::EndSession, responder: Responder) {
    let Ok(session) = SessionId::from_slice(&wish.session_id) else {
        return responder.fail(fail(failure::NO_SUCH_SESSION, "there is no such session"));
    };
    let reason = match code_text(&wish.reason).as_str() {
        "other" => "ended_by_user".to_owned(),
        reason => reason.to_owned(),
    };
    let may = match may_end(line, row, session).await {
        Ok(may) => may,
        Err(error) => {
            tracing::error!(%error, "cannot read rules");
            return responder.fail(fail(failure::INTERNAL, "your permissions cannot be read"));
        }
    };
    let by = EndAs::Account {
        partner_id: row.account.partner_id.clone(),
        account_id: row.account.id.clone(),
        account: row.account.name.clone(),
        all: may.is_ok(),
    };
    let id = line.id;
    line.shared
        .broker
        .act(move |driver, now| {
            // The console that holds the session needs not be told.
            let by = match (driver.broker.speaks_for(id, session), may) {
                (true, _) => EndAs::End(id),
                (false, Err(Some(refusal))) => return refuse(responder, refusal),
                (false, _) => by,
            };
            let request = driver.request(responder);
            driver.broker.handle_end(request, session, &reason, &by, now);
        })
        .await;
}
