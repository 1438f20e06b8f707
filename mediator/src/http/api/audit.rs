//! The audit log: search, export, heads and proofs, retention.
//!
//! Searches and exports stay within what the rules cover, and are recorded each.

pub(super) mod pieces;
mod turns;

use std::{sync::Arc, time::Duration};

use adit_protocol::wire::SeenHead;
use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, Request, header},
    response::{IntoResponse, Response},
    routing,
};
use serde_json::Value;

pub(crate) use turns::{Exports, Searches};

use super::{
    Api, Call,
    Method::{Get, Put},
    Nothing, One, Operation, Page,
    access::time,
    kinds::*,
    page, page_size,
};
use crate::{
    admin::{
        AdminRequest,
        actor::Actor,
        export::{Format, Selection},
    },
    audit::{
        acts::AuditAct,
        names,
        search::{self, BadSearch, Filter, Reach},
    },
    http::{Problem, Web, WebState, auth::authenticate},
    place::store_error,
    roles::Permission,
    store::StoreError,
};

type Answer<T> = Result<One<T>, Problem>;

/// How long a search may take.
const SEARCH_DEADLINE: Duration = Duration::from_secs(10);

/// Heads with which one export can be compared: as many as the length of a query allows.
const MAX_HELD: usize = 32;

const READ: &[&str] = &["audit.read"];
const EXPORT: &[&str] = &["audit.export"];
const POLICY: &[&str] = &["policy.manage"];
const KEPT: &[&str] = &["policy.manage", "audit.read"];
const USERS: &[&str] = &["users.manage"];

pub(super) fn mount(api: &mut Api) {
    let op = |method, path, id, summary, needs| Operation { method, path, id, summary, needs };
    let text = "Search the log, newest first, within what the rules cover";
    api.operation(op(Get, "/audit/events", "audit.search", text, READ), events);
    let text = "Heads of the log's trees as they are signed";
    api.operation(op(Get, "/audit/heads", "audit.heads", text, READ), heads);
    let text = "Prove that one size of the log goes on from another";
    api.operation(op(Get, "/audit/consistency", "audit.consistency", text, READ), consistency);
    let text = "Prove that an entry is in the log";
    api.operation(op(Get, "/audit/inclusion", "audit.inclusion", text, READ), inclusion);
    let text = "How long the log is kept, and which legal holds keep it";
    api.operation(op(Get, "/audit/retention", "audit.retention_show", text, KEPT), kept);
    let text = "How far receivers of the log are: of the own log, on the installation of all";
    api.operation(op(Get, "/audit/forwarding", "audit.forwarding", text, KEPT), forwarding);
    let text = "Set how long the log is kept";
    api.operation(op(Put, "/audit/retention", "audit.retention", text, POLICY), retention);
    let text = "Begin a legal hold beside others, or end one";
    api.operation(op(Put, "/audit/hold", "audit.hold", text, POLICY), hold);
    let text = "Set up to which level a user's events are kept";
    api.operation(op(Put, "/users/{user}/audit-level", "audit.level", text, USERS), level);
    let text = "Take the log away, as far as the rules cover; people need a fresh login";
    let take = op(Get, "/audit/export", "audit.export", text, EXPORT);
    let kinds = ["application/x-ndjson", "text/csv", "text/plain"];
    api.raw::<ExportQuery>((take, &kinds, false), routing::get(export));
}

fn bad(error: BadSearch) -> Problem {
    Problem::bad_request(error.to_string())
}

fn filter(query: AuditQuery) -> Result<Filter, Problem> {
    // Several with commas between them, as on the command line.
    let list = |value: Option<String>| {
        value.iter().flat_map(|value| value.split(',')).map(str::to_owned).collect::<Vec<_>>()
    };
    let filter = Filter {
        persons: list(query.person),
        computers: list(query.computer),
        clients: list(query.client),
        redirectors: list(query.redirector),
        sessions: list(query.session),
        events: list(query.event),
        since_ms: time("since", query.since.as_deref())?,
        until_ms: time("until", query.until.as_deref())?,
    };
    filter.check().map_err(bad)?;
    Ok(filter)
}

/// What the asker may read, or the recorded denial.
async fn reach(web: &Web, actor: &Actor, permission: Permission) -> Result<Reach, Problem> {
    let Some(remote) = actor.remote() else { return Err(Problem::internal()) };
    let pool = &web.admin.store.readers;
    let reach = Reach::of(pool, &remote.holder, permission, remote.facts()).await;
    if let Ok(reach) = reach.map_err(store_error)? {
        return Ok(reach);
    }
    actor.may_at_home(&web.admin, &[permission]).await?;
    Err(Problem::internal())
}

/// Nobody takes a mistyped event for one that never happened.
async fn known(web: &Web, reach: &Reach, filter: &Filter) -> Result<(), Problem> {
    let known = names::check(&web.admin.store.readers, reach, filter);
    let known = tokio::time::timeout(SEARCH_DEADLINE, known).await.map_err(|_| too_long())?;
    known.map_err(store_error)?.map_err(|error| Problem {
        hint: Some(error.hint()),
        ..Problem::bad_request(error.to_string())
    })
}

/// Records that the log was read.
async fn note(web: &Web, actor: &Actor, how: &str) -> Result<(), Problem> {
    let Some(remote) = actor.remote() else { return Err(Problem::internal()) };
    let event = actor.event("audit.read", &remote.partner).extra("how", how);
    web.admin.record(&remote.holder.partner, event).await.map_err(Problem::from)
}

async fn events(call: Call<AuditQuery, Nothing>) -> Result<Page<AuditEntry>, Problem> {
    let (web, query) = (&call.web, call.query.clone());
    let limit = page_size(query.limit)?.min(search::MAX_PAGE);
    let after = query.cursor.as_deref().map(str::parse).transpose().map_err(bad)?;
    let filter = filter(query)?;
    let reach = reach(web, &call.actor, Permission::ReadAudit).await?;
    let _place = web.searches.begin(asker(&call.actor)?).await?;
    known(web, &reach, &filter).await?;
    note(web, &call.actor, "search").await?;
    let page = search::Page { after, limit };
    let found = search::search(&web.admin.store.readers, &reach, &filter, page);
    let found = tokio::time::timeout(SEARCH_DEADLINE, found).await.map_err(|_| too_long())?;
    let found = found.map_err(store_error)?;
    let entry = |hit: search::Hit| {
        let entry = serde_json::from_str::<Value>(&hit.line).map_err(|_| {
            Problem::from(store_error(StoreError::Corrupt("audit entry".to_owned())))
        })?;
        Ok::<_, Problem>(AuditEntry { tree: hit.tree, seq: hit.seq, entry })
    };
    let items = found.hits.into_iter().map(entry).collect::<Result<_, _>>()?;
    Ok(Page { items, next: found.next.map(|next| next.to_string()) })
}

/// The trees of the asker's partner.
async fn trees<Q>(call: &Call<Q, Nothing>) -> Result<Vec<AuditHead>, Problem> {
    let Some(remote) = call.actor.remote() else { return Err(Problem::internal()) };
    call.actor.may_at_home(&call.web.admin, &[Permission::ReadAudit]).await?;
    let pool = &call.web.admin.store.readers;
    let all = crate::store::audit::trees(pool).await.map_err(store_error)?;
    let own = all.into_iter().filter(|tree| tree.partner == remote.partner);
    Ok(own
        .map(|tree| AuditHead { tree: tree.id, size: tree.head.size, line: tree.head.to_line() })
        .collect())
}

async fn heads(call: Call<Nothing, Nothing>) -> Result<Page<AuditHead>, Problem> {
    Ok(Page { items: trees(&call).await?, next: None })
}

/// The tree, if it is the asker's partner's and has that size.
async fn own_tree<Q>(call: &Call<Q, Nothing>, id: &str, size: u64) -> Result<String, Problem> {
    let own = trees(call).await?;
    let found = own.into_iter().find(|tree| tree.tree == id && size <= tree.size);
    found.map(|tree| tree.tree).ok_or_else(Problem::not_found)
}

fn proof(tree: String, path: &[adit_ledger::Hash]) -> AuditProof {
    AuditProof { tree, path: path.iter().map(ToString::to_string).collect() }
}

async fn consistency(call: Call<ConsistencyQuery, Nothing>) -> Answer<AuditProof> {
    let ConsistencyQuery { tree, old_size, new_size } = call.query.clone();
    let tree = own_tree(&call, &tree, new_size).await?;
    let partner = call.actor.partner_id().unwrap_or_default();
    let forest = call.web.admin.writer.forest();
    let found = forest.consistency((partner, &tree), old_size, new_size).await;
    let found = found.map_err(store_error)?;
    Ok(One(proof(tree, &found.path)))
}

async fn inclusion(call: Call<InclusionQuery, Nothing>) -> Answer<AuditProof> {
    let InclusionQuery { tree, seq, size } = call.query.clone();
    let tree = own_tree(&call, &tree, size).await?;
    let partner = call.actor.partner_id().unwrap_or_default();
    let forest = call.web.admin.writer.forest();
    let found = forest.inclusion((partner, &tree), seq, size).await.map_err(store_error)?;
    Ok(One(proof(tree, &found.path)))
}

fn own_partner<Q, B>(call: &Call<Q, B>) -> Result<String, Problem> {
    call.actor.remote().map(|remote| remote.partner.clone()).ok_or_else(Problem::internal)
}

async fn kept(call: Call<Nothing, Nothing>) -> Answer<Retention> {
    call.one(AdminRequest::Audit(AuditAct::Retention)).await.map(One)
}

async fn forwarding(call: Call<Paging, Nothing>) -> Result<Page<Receiver>, Problem> {
    let mut found = call.act(AdminRequest::Audit(AuditAct::Forwarding)).await?;
    for one in &mut found {
        // A receiver has a cursor in each tree: pages need a name for both.
        let name = format!("{}/{}", text(one, "target"), text(one, "tree"));
        if let Some(object) = one.as_object_mut() {
            object.insert("receiver".to_owned(), name.into());
        }
    }
    page(found, call.query.page(), "receiver")
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

async fn retention(call: Call<Nothing, Keep>) -> Answer<Kept> {
    let (partner, days) = (own_partner(&call)?, call.body.days);
    call.one(AdminRequest::Audit(AuditAct::SetRetention { partner, days })).await.map(One)
}

async fn hold(call: Call<Nothing, Hold>) -> Answer<Held> {
    let (partner, Hold { hold, reason, hold_id }) = (own_partner(&call)?, call.body.clone());
    call.one(AdminRequest::Audit(AuditAct::Hold { partner, hold, reason, hold_id })).await.map(One)
}

async fn level(call: Call<Nothing, AuditLevel>) -> Answer<SetLevel> {
    let (user, level) = (call.part("user"), call.body.level);
    call.one(AdminRequest::Audit(AuditAct::SetLevel { user, level })).await.map(One)
}

/// An export, piece by piece.
async fn export(State(web): WebState, request: Request<Body>) -> Response {
    let nonce = web.proofs.nonce();
    let mut response = match begin(web, request).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    };
    super::tell_nonce(&mut response, &nonce);
    response
}

async fn begin(web: Arc<Web>, request: Request<Body>) -> Result<Response, Problem> {
    let (parts, _) = request.into_parts();
    let actor = authenticate(&web, &parts, "audit.export").await?;
    let query: ExportQuery = serde_urlencoded::from_str(parts.uri.query().unwrap_or_default())
        .map_err(|error| Problem::bad_request(format!("query: {error}")))?;
    let ExportQuery {
        format,
        person,
        computer,
        client,
        redirector,
        session,
        event,
        since,
        until,
        heads,
    } = query;
    let heads = held(heads.as_deref())?;
    let (format, kind) = match format.as_deref().unwrap_or("jsonl") {
        "jsonl" => (Format::Jsonl, "application/x-ndjson"),
        "csv" => (Format::Csv, "text/csv; charset=utf-8"),
        "cef" => (Format::Cef, "text/plain; charset=utf-8"),
        "ocsf" => (Format::Ocsf, "application/x-ndjson"),
        _ => return Err(Problem::bad_request("format: jsonl, csv, cef or ocsf")),
    };
    let query = AuditQuery {
        person,
        computer,
        client,
        redirector,
        session,
        event,
        since,
        until,
        ..AuditQuery::default()
    };
    let filter = filter(query)?;
    let reach = reach(&web, &actor, Permission::ExportAudit).await?;
    actor.must_be_fresh(&web.admin).await?;
    let Some(filter) = reach.narrow(filter) else {
        let text = "your roles do not cover that part of the log".to_owned();
        return Err(actor.refuse(&web.admin, "default-deny", text).await?.into());
    };
    let place = web.exports.begin(asker(&actor)?)?;
    known(&web, &reach, &filter).await?;
    note(&web, &actor, "export").await?;
    let partner = actor.remote().map(|remote| remote.partner.clone());
    let selection = Selection { format, filter, partner, heads };
    let mut response = Body::from_stream(pieces::pieces(web, selection, place)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

/// Heads of which no gap of an export may run across. One that is of no tree of the asker's parts
/// nothing, and so tells nothing.
fn held(query: Option<&str>) -> Result<Vec<SeenHead>, Problem> {
    let bad = || Problem::bad_request(format!("heads: TREE:SIZE, at most {MAX_HELD}, with commas"));
    let one = |text: &str| {
        let (tree, size) = text.rsplit_once(':').filter(|(tree, _)| !tree.is_empty())?;
        Some(SeenHead { tree: tree.to_owned(), size: size.parse().ok()? })
    };
    let heads: Vec<_> = query.iter().flat_map(|text| text.split(',')).take(MAX_HELD + 1).collect();
    if heads.len() > MAX_HELD {
        return Err(bad());
    }
    heads.into_iter().map(|text| one(text).ok_or_else(bad)).collect()
}

fn asker(actor: &Actor) -> Result<turns::Asker<'_>, Problem> {
    let remote = actor.remote().ok_or_else(Problem::internal)?;
    Ok((&remote.holder.account, &remote.holder.partner))
}

fn too_long() -> Problem {
    let text = "the search took too long; name a time (since, until) or try again later";
    Problem { detail: text.to_owned(), ..Problem::busy() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_values_of_one_filter_stand_with_commas_between_them() {
        let query =
            |event: &str| AuditQuery { event: Some(event.to_owned()), ..AuditQuery::default() };
        let events = |text: &str| filter(query(text)).map(|filter| filter.events);
        assert_eq!(
            events("login.failed,session.refused").ok().unwrap(),
            ["login.failed", "session.refused"]
        );
        assert_eq!(events("login.failed").ok().unwrap(), ["login.failed"]);
        for bad in ["", "login.failed,", &"a.b,".repeat(20)] {
            assert!(events(bad).is_err(), "{bad}");
        }
        assert!(filter(AuditQuery::default()).ok().unwrap().events.is_empty());
    }

    #[test]
    fn heads_are_named_by_tree_and_size_and_are_few() {
        let told = |text: &str| {
            held(Some(text)).ok().map(|heads| {
                heads.into_iter().map(|head| (head.tree, head.size)).collect::<Vec<_>>()
            })
        };
        assert_eq!(held(None).ok().unwrap(), []);
        let two = [("a:b".to_owned(), 7), ("c".to_owned(), u64::MAX)];
        assert_eq!(told(&format!("a:b:7,c:{}", u64::MAX)).unwrap(), two);
        assert_eq!(told(&["t:1"; MAX_HELD].join(",")).unwrap().len(), MAX_HELD);
        for bad in ["", "t", ":1", "t:", "t:-1", "t:1,", "t:18446744073709551616"] {
            assert!(told(bad).is_none(), "{bad}");
        }
        assert!(told(&["t:1"; MAX_HELD + 1].join(",")).is_none());
    }
}
