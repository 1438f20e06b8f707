//! The audit log: search, export, heads and proofs, retention.
//!
//! Searches and exports stay within what the rules cover, and are recorded each.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use adit_protocol::code::failure;
use adit_runtime::cli::CliError;
use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderValue, Request, header},
    response::{IntoResponse, Response},
    routing,
};
use futures_util::stream;
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio_util::task::TaskTracker;

use super::{
    Api, Call,
    Method::{Get, Put},
    Nothing, One, Operation, Page,
    access::time,
    kinds::*,
    page_size,
};
use crate::{
    admin::{
        AdminRequest,
        actor::Actor,
        export::{self, Format, Out, Selection},
    },
    audit::{
        acts::AuditAct,
        search::{self, BadSearch, Filter, Reach},
    },
    http::{
        Problem, Web, WebState,
        auth::authenticate,
        limit::{self, UnderWay},
    },
    place::store_error,
    roles::Permission,
    store::StoreError,
};

type Answer<T> = Result<One<T>, Problem>;

/// Pieces of an export that wait for the reader, and bytes of one.
const PIECES: usize = 2;
const MAX_PIECE: usize = 64 * 1024;
/// Exports at a time, and of one principal.
const MAX_EXPORTS: usize = 8;
const MAX_EXPORTS_EACH: usize = 2;
/// Searches that run or wait, in all and of one principal. So many run as there are processors to
/// spare, and never on more than half of the reading connections.
const MAX_SEARCHES: usize = 64;
const MAX_SEARCHES_EACH: usize = 2;
const MAX_SEARCHES_RUNNING: usize = 2;
/// How long a search waits for those before it, and how long it may take itself.
const SEARCH_WAIT: Duration = Duration::from_secs(5);
const SEARCH_DEADLINE: Duration = Duration::from_secs(10);
/// How long a reader may read nothing.
const READER_DEADLINE: Duration = Duration::from_secs(30);

const READ: &[&str] = &["audit.read"];
const EXPORT: &[&str] = &["audit.export"];
const POLICY: &[&str] = &["policy.manage"];
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
    let text = "Set how long the log is kept";
    api.operation(op(Put, "/audit/retention", "audit.retention", text, POLICY), retention);
    let text = "Begin or end a legal hold";
    api.operation(op(Put, "/audit/hold", "audit.hold", text, POLICY), hold);
    let text = "Set up to which level a user's events are kept";
    api.operation(op(Put, "/users/{user}/audit-level", "audit.level", text, USERS), level);
    let text = "Take the log away, as far as the rules cover; needs a fresh login";
    let take = op(Get, "/audit/export", "audit.export", text, EXPORT);
    let kinds = ["application/x-ndjson", "text/csv", "text/plain"];
    api.raw::<ExportQuery>((take, &kinds, false), routing::get(export));
}

fn bad(error: BadSearch) -> Problem {
    Problem::bad_request(error.to_string())
}

fn filter(query: AuditQuery) -> Result<Filter, Problem> {
    let list = |value: Option<String>| value.into_iter().collect::<Vec<_>>();
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
    let _place = web.searches.begin(principal(&call.actor)?).await?;
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

async fn retention(call: Call<Nothing, Keep>) -> Answer<Kept> {
    let (partner, days) = (own_partner(&call)?, call.body.days);
    call.one(AdminRequest::Audit(AuditAct::SetRetention { partner, days })).await.map(One)
}

async fn hold(call: Call<Nothing, Hold>) -> Answer<Held> {
    let (partner, Hold { hold, reason }) = (own_partner(&call)?, call.body.clone());
    call.one(AdminRequest::Audit(AuditAct::Hold { partner, hold, reason })).await.map(One)
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
    let ExportQuery { format, person, computer, client, redirector, session, event, since, until } =
        query;
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
    let place = web.exports.begin(principal(&actor)?)?;
    note(&web, &actor, "export").await?;
    let partner = actor.remote().map(|remote| remote.partner.clone());
    let selection = Selection { format, filter, partner, heads: Vec::new() };
    let mut response = Body::from_stream(pieces(web, selection, place)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

fn principal(actor: &Actor) -> Result<&str, Problem> {
    actor.remote().map(|remote| remote.holder.account.as_str()).ok_or_else(Problem::internal)
}

/// Searches under way: each may read thousands of rows.
pub(crate) struct Searches {
    under_way: Arc<UnderWay<String>>,
    running: Semaphore,
}

/// A search that may run, until this is dropped.
struct Searching<'a>(
    #[expect(dead_code, reason = "held")] limit::Begun<String>,
    #[expect(dead_code, reason = "held")] SemaphorePermit<'a>,
);

impl Default for Searches {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new((processors / 2).clamp(1, MAX_SEARCHES_RUNNING))
    }
}

impl Searches {
    fn new(running: usize) -> Self {
        let under_way = Arc::new(UnderWay::new(MAX_SEARCHES, MAX_SEARCHES_EACH));
        Self { under_way, running: Semaphore::new(running) }
    }

    /// Waits for those before it; or the answer that there is no room.
    async fn begin(&self, principal: &str) -> Result<Searching<'_>, Problem> {
        let begun = self.under_way.begin(principal.to_owned());
        let begun = begun.ok_or_else(|| {
            let text = "your other searches are still under way; wait for their answers";
            Problem { detail: text.to_owned(), ..Problem::rate_limited(1) }
        })?;
        match tokio::time::timeout(SEARCH_WAIT, self.running.acquire()).await {
            Ok(Ok(running)) => Ok(Searching(begun, running)),
            _ => {
                let text = "too many people search the log at the moment; try again";
                Err(Problem { detail: text.to_owned(), ..Problem::busy() })
            }
        }
    }
}

fn too_long() -> Problem {
    let text = "the search took too long; name a time (since, until) or try again later";
    Problem { detail: text.to_owned(), ..Problem::busy() }
}

/// Exports under way: each reads much, and lasts as long as its reader takes.
pub(crate) struct Exports {
    under_way: Arc<UnderWay<String>>,
    tasks: TaskTracker,
}

impl Exports {
    /// Each is a task of this tracker.
    pub(crate) fn new(tasks: TaskTracker) -> Self {
        Self { under_way: Arc::new(UnderWay::new(MAX_EXPORTS, MAX_EXPORTS_EACH)), tasks }
    }

    /// A place for one more; or the answer that there is none.
    fn begin(&self, principal: &str) -> Result<limit::Begun<String>, Problem> {
        let wait = READER_DEADLINE.as_secs();
        self.under_way.begin(principal.to_owned()).ok_or_else(|| Problem::rate_limited(wait))
    }
}

type Piece = Result<Bytes, std::io::Error>;

/// The reader at the other end of a connection, which is not waited for without end.
struct Reader {
    sender: mpsc::Sender<Bytes>,
    deadline: Duration,
}

impl Out for Reader {
    async fn piece(&mut self, text: String) -> Result<(), CliError> {
        let gone = |text| CliError::failed(failure::INTERNAL, text);
        let mut rest = Bytes::from(text);
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(MAX_PIECE));
            match tokio::time::timeout(self.deadline, self.sender.send(piece)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(gone("the reader has gone")),
                Err(_) => return Err(gone("the reader reads nothing")),
            }
        }
        Ok(())
    }
}

/// Reads as fast as the reader takes it, and ends when that has gone or takes nothing.
fn pieces(
    web: Arc<Web>,
    selection: Selection,
    place: limit::Begun<String>,
) -> impl stream::Stream<Item = Piece> {
    let (sender, receiver) = mpsc::channel(PIECES);
    let complete = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&complete);
    let tasks = web.exports.tasks.clone();
    tasks.spawn(async move {
        // Held by who reads the log, not by the answer, which lies where nobody fetches it.
        let _place = place;
        let store = &web.admin.store;
        let all = async |reader| export::export(store, &selection, reader).await.map(|_| ());
        send(sender, &complete, all).await;
    });
    answer(receiver, told)
}

/// Sends what `all` makes. INVARIANT: the answer ends only after it is known whether that was all.
async fn send(
    sender: mpsc::Sender<Bytes>,
    complete: &AtomicBool,
    all: impl AsyncFnOnce(Reader) -> Result<(), CliError>,
) {
    let reader = Reader { sender: sender.clone(), deadline: READER_DEADLINE };
    match all(reader).await {
        Ok(()) => complete.store(true, Ordering::Release),
        Err(error) => tracing::warn!(%error, "an export was cut off"),
    }
    drop(sender);
}

/// An answer that was cut must not look complete.
fn answer(
    receiver: mpsc::Receiver<Bytes>,
    complete: Arc<AtomicBool>,
) -> impl stream::Stream<Item = Piece> {
    stream::unfold(Some(receiver), move |receiver| {
        let complete = Arc::clone(&complete);
        async move {
            let mut receiver = receiver?;
            match receiver.recv().await {
                Some(piece) => Some((Ok(piece), Some(receiver))),
                None if complete.load(Ordering::Acquire) => None,
                None => Some((Err(std::io::Error::other("cut off")), None)),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn searches_are_few_in_all_and_for_each_asker_and_wait_their_turn() {
        let searches = Searches::new(1);
        let running = searches.begin("a").await.unwrap();
        let mut second = std::pin::pin!(searches.begin("a"));
        assert!((&mut second).now_or_never().is_none(), "two run at a time");
        let third = searches.begin("a").await.map(|_| ()).unwrap_err();
        assert!(third.detail.contains("your other searches"));
        let third = third.into_response();
        assert_eq!(third.status(), 429);
        assert_eq!(third.headers()[header::RETRY_AFTER], "1");
        // Another waits, first behind who came first; not without end.
        let mut other = std::pin::pin!(searches.begin("b"));
        assert!((&mut other).now_or_never().is_none());
        drop(running);
        let second = second.await.unwrap();
        let late = other.await.map(|_| ()).unwrap_err().into_response();
        assert_eq!(late.status(), 503);
        drop(second);
        searches.begin("b").await.unwrap();
    }

    #[tokio::test]
    async fn exports_are_few_in_all_and_for_each_asker() {
        let exports = Exports::new(TaskTracker::new());
        let mut held = vec![exports.begin("a").unwrap(), exports.begin("a").unwrap()];
        let refused = exports.begin("a").map(|_| ()).unwrap_err().into_response();
        assert_eq!(refused.status(), 429);
        assert_eq!(refused.headers()[header::RETRY_AFTER], "30");
        held.extend((0..6).map(|n| exports.begin(&n.to_string()).unwrap()));
        assert!(exports.begin("b").is_err());
        held.pop();
        exports.begin("b").unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_reads_nothing_is_given_up_and_its_answer_is_not_complete() {
        let (sender, receiver) = mpsc::channel(PIECES);
        let deadline = Duration::from_millis(20);
        let mut reader = Reader { sender, deadline };
        let whole = "x".repeat(PIECES * MAX_PIECE);
        reader.piece(whole.clone()).await.unwrap();
        reader.piece("more".to_owned()).await.unwrap_err();
        drop(reader);
        let mut told = std::pin::pin!(answer(receiver, Arc::new(AtomicBool::new(false))));
        let mut got = 0;
        while let Some(Ok(piece)) = told.next().await {
            assert!(piece.len() <= MAX_PIECE);
            got += piece.len();
        }
        assert_eq!(got, whole.len());
        let (sender, receiver) = mpsc::channel(PIECES);
        drop(Reader { sender, deadline });
        assert_eq!(answer(receiver, Arc::new(AtomicBool::new(true))).count().await, 0);
        let (sender, receiver) = mpsc::channel(PIECES);
        drop(Reader { sender, deadline });
        let told: Vec<_> = answer(receiver, Arc::new(AtomicBool::new(false))).collect().await;
        assert!(matches!(told.as_slice(), [Err(_)]));
    }
    #[tokio::test]
    async fn an_answer_does_not_end_before_it_is_known_to_be_complete() {
        for good in [true, false] {
            let (sender, receiver) = mpsc::channel(PIECES);
            let complete = Arc::new(AtomicBool::new(false));
            let mut told = std::pin::pin!(answer(receiver, Arc::clone(&complete)));
            let mut sent = std::pin::pin!(send(sender, &complete, async |mut reader: Reader| {
                reader.piece("all".to_owned()).await?;
                drop(reader);
                // As when another thread looks in between.
                tokio::task::yield_now().await;
                good.then_some(()).ok_or_else(|| CliError::failed(failure::INTERNAL, "cut"))
            }));
            assert!((&mut sent).now_or_never().is_none());
            assert!(matches!(told.next().await, Some(Ok(_))));
            assert!(told.next().now_or_never().is_none(), "ended too early");
            sent.await;
            let end = told.next().await;
            assert!(if good { end.is_none() } else { matches!(end, Some(Err(_))) });
        }
    }
}
