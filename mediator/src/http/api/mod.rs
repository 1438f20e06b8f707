//! The API: each operation is declared once, with its handler, its types and what it takes, and
//! both the route and its description come from that.
//!
//! [`Api::operation`] is the one way in: authentication, rate, body, unknown fields, repeated
//! requests and the record of reads are seen to before a handler runs. Handlers turn requests
//! into the acts of [`crate::admin`], which decide and record. Must never do an act by itself.

mod access;
mod audit;
mod backup;
mod credentials;
mod document;
mod kinds;
mod people;
mod places;
mod whole;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use adit_ledger::{Event, Level};
use axum::{
    Extension, Router,
    body::Body,
    extract::{FromRequestParts, RawPathParams, State},
    http::{HeaderValue, Request, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{self, MethodFilter},
};
use http_body_util::BodyExt;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use utoipa::ToSchema;

pub(crate) use audit::{Exports, Searches};
pub(crate) use backup::Backups;
pub(crate) use document::{Described, One};
pub(crate) use kinds::{Nothing, fuzz_bodies, fuzz_queries};

use super::{
    Problem, Web, WebState,
    auth::{authenticate, of_allowed_network},
    idempotent::{self, Begun},
    server::Client,
};
use crate::admin::{AdminRequest, actor::Actor, handle};

/// Where operations are. Not nested: proofs are for the whole path.
pub(crate) const BASE: &str = "/api/v1";
/// Items of a page, unless fewer are asked for.
const DEFAULT_PAGE: u32 = 100;
/// Most items of a page.
const MAX_PAGE: u32 = 1_000;
/// Reads of one kind by one principal are recorded this often at most.
const READS_EVERY: Duration = Duration::from_secs(60);
/// Kinds of reads remembered.
const MAX_READS: usize = 16_384;

/// A declared operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    pub(crate) method: Method,
    /// Below `/api/v1`.
    pub(crate) path: &'static str,
    pub(crate) id: &'static str,
    pub(crate) summary: &'static str,
    /// Permissions of which one is needed, and where; for people and tests.
    pub(crate) needs: &'static [&'static str],
}

/// Methods in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Post,
    Put,
    Delete,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::Put => "put",
            Self::Delete => "delete",
        }
    }

    fn filter(self) -> MethodFilter {
        match self {
            Self::Get => MethodFilter::GET,
            Self::Post => MethodFilter::POST,
            Self::Put => MethodFilter::PUT,
            Self::Delete => MethodFilter::DELETE,
        }
    }
}

/// What a handler gets.
pub(crate) struct Call<Q, B> {
    pub(crate) web: Arc<Web>,
    pub(crate) actor: Actor,
    path: BTreeMap<String, String>,
    pub(crate) query: Q,
    pub(crate) body: B,
}

impl<Q, B> Call<Q, B> {
    /// A part of the path.
    pub(crate) fn part(&self, name: &str) -> String {
        self.path.get(name).cloned().unwrap_or_default()
    }

    /// `PARTNER/CLIENT` of a path with both.
    pub(crate) fn client(&self) -> String {
        format!("{}/{}", self.part("partner"), self.part("client"))
    }

    /// Does an act as whoever asks.
    pub(crate) async fn act(&self, request: AdminRequest) -> Result<Vec<Value>, Problem> {
        Ok(handle(Arc::clone(&self.web.admin), self.actor.clone(), request).await?)
    }

    /// Does an act that gives one thing.
    pub(crate) async fn one<T: DeserializeOwned>(
        &self,
        request: AdminRequest,
    ) -> Result<T, Problem> {
        typed(self.act(request).await?.into_iter().next().unwrap_or_default())
    }

    /// Does an act that gives many, of which one page is shown, in the order of a field.
    pub(crate) async fn page<T: DeserializeOwned>(
        &self,
        request: AdminRequest,
        (limit, cursor): (Option<u32>, Option<&str>),
        key: &str,
    ) -> Result<Page<T>, Problem> {
        let found = self.act(request).await?;
        page(found, (limit, cursor), key)
    }
}

/// What an act told, as it is described.
pub(crate) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Problem> {
    serde_json::from_value(value).map_err(|error| {
        tracing::error!(%error, "an answer is not as described");
        Problem::internal()
    })
}

/// A part of a list.
#[derive(Debug, Serialize)]
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    /// For the next part; null at the end.
    pub(crate) next: Option<String>,
}

/// How many items a page has.
pub(crate) fn page_size(limit: Option<u32>) -> Result<u32, Problem> {
    match limit {
        None => Ok(DEFAULT_PAGE),
        Some(limit) if (1..=MAX_PAGE).contains(&limit) => Ok(limit),
        Some(_) => Err(Problem::bad_request(format!("limit: 1 to {MAX_PAGE} is expected"))),
    }
}

/// A cursor's text.
pub(crate) fn read_cursor(cursor: Option<&str>) -> Result<String, Problem> {
    let bad = || Problem::bad_request("cursor: give `next` of the page before, as it is");
    let Some(cursor) = cursor else { return Ok(String::new()) };
    let bytes = adit_protocol::dpop::from_base64url(cursor).map_err(|_| bad())?;
    String::from_utf8(bytes).map_err(|_| bad())
}

/// A cursor after this text.
pub(crate) fn write_cursor(after: &str) -> String {
    adit_protocol::dpop::base64url(after.as_bytes())
}

fn page<T: DeserializeOwned>(
    mut found: Vec<Value>,
    (limit, cursor): (Option<u32>, Option<&str>),
    key: &str,
) -> Result<Page<T>, Problem> {
    let size = page_size(limit)? as usize;
    let after = read_cursor(cursor)?;
    let of = |value: &Value| value.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    found.sort_by_key(&of);
    let mut rest = found.into_iter().filter(|value| cursor.is_none() || of(value) > after);
    let shown: Vec<Value> = rest.by_ref().take(size).collect();
    let more = rest.next().is_some();
    let next = shown.last().filter(|_| more).map(|last| write_cursor(&of(last)));
    let items = shown.into_iter().map(typed).collect::<Result<_, _>>()?;
    Ok(Page { items, next })
}

/// All operations.
pub(crate) struct Api {
    router: Router<Arc<Web>>,
    document: document::Document,
}

/// Everything there is.
pub(crate) fn all() -> Api {
    let mut api = Api { router: Router::new(), document: document::Document::default() };
    people::mount(&mut api);
    places::mount(&mut api);
    access::mount(&mut api);
    audit::mount(&mut api);
    backup::mount(&mut api);
    whole::mount(&mut api);
    credentials::mount(&mut api);
    let open = |path, id, summary| Operation { method: Method::Get, path, id, summary, needs: &[] };
    let json = &["application/json"][..];
    let told = open("/openapi.json", "api.description", "This description");
    api.raw::<Nothing>((told, json, true), routing::get(openapi));
    let told = open("/version", "api.version", "Version of the mediator and of its API");
    api.raw::<Nothing>((told, json, true), routing::get(version));
    api
}

impl Api {
    /// The routes.
    pub(super) fn router(self) -> Router<Arc<Web>> {
        self.router
    }

    /// The description of all operations.
    pub(super) fn document(self) -> String {
        self.document.finish()
    }

    /// Declares one that answers by itself, in these forms. INVARIANT: there is no route that is
    /// not described: the tests of who may do what are made of the description.
    fn raw<Q: ToSchema>(
        &mut self,
        (operation, kinds, open): (Operation, &[&str], bool),
        handler: routing::MethodRouter<Arc<Web>>,
    ) {
        self.document.add_raw::<Q>(&operation, kinds, open);
        let router = std::mem::take(&mut self.router);
        self.router = router.route(&format!("{BASE}{}", operation.path), handler);
    }

    /// Declares an operation.
    pub(crate) fn operation<Q, B, R, F, Fut>(&mut self, operation: Operation, handler: F)
    where
        Q: DeserializeOwned + ToSchema + Send + 'static,
        B: DeserializeOwned + ToSchema + Send + 'static,
        R: Described + Serialize + Send + 'static,
        F: Fn(Call<Q, B>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<R, Problem>> + Send + 'static,
    {
        self.document.add::<Q, B, R>(&operation);
        let route = move |State(web): WebState, request: Request<Body>| async move {
            let nonce = web.proofs.nonce();
            let mut response = match run(web, operation, request, handler).await {
                Ok(response) => response,
                Err(problem) => problem.into_response(),
            };
            tell_nonce(&mut response, &nonce);
            response
        };
        let router = std::mem::take(&mut self.router);
        let path = format!("{BASE}{}", operation.path);
        self.router = router.route(&path, routing::on(operation.method.filter(), route));
    }
}

/// Every answer carries the nonce that the next proof needs (RFC 9449 §8.2).
fn tell_nonce(response: &mut Response, nonce: &str) {
    if let Ok(nonce) = HeaderValue::from_str(nonce) {
        response.headers_mut().insert("dpop-nonce", nonce);
    }
}

async fn run<Q, B, R, F, Fut>(
    web: Arc<Web>,
    operation: Operation,
    request: Request<Body>,
    handler: F,
) -> Result<Response, Problem>
where
    Q: DeserializeOwned,
    B: DeserializeOwned + ToSchema,
    R: Serialize,
    F: Fn(Call<Q, B>) -> Fut,
    Fut: Future<Output = Result<R, Problem>>,
{
    let (mut parts, body) = request.into_parts();
    let actor = authenticate(&web, &parts, operation.id).await?;
    let Some(remote) = actor.remote() else { return Err(Problem::internal()) };
    let principal = remote.holder.account.clone();
    let partner = remote.holder.partner.clone();
    let path = RawPathParams::from_request_parts(&mut parts, &())
        .await
        .map_err(|_| Problem::not_found())?
        .iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let query = serde_urlencoded::from_str(parts.uri.query().unwrap_or_default())
        .map_err(|error| Problem::bad_request(format!("query: {error}")))?;
    let bytes = body
        .collect()
        .await
        .map_err(|_| Problem::bad_request("the body is too long, or was cut off"))?
        .to_bytes();
    let body = read_body(&parts, &bytes)?;
    let begun = match operation.method {
        Method::Post => idempotent::begin(&web, (&principal, &partner), &parts, &bytes).await?,
        _ => Begun::Plain,
    };
    let repeatable = match begun {
        Begun::Again(status, body) => return Ok(again(status, body)),
        Begun::First(repeatable) => Some(repeatable),
        Begun::Plain => None,
    };
    let call = Call { web: Arc::clone(&web), actor: actor.clone(), path, query, body };
    let answer = handler(call)
        .await
        .and_then(|answer| serde_json::to_vec(&answer).map_err(|_| Problem::internal()));
    let recorded = async {
        match &answer {
            Err(problem)
                if [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&problem.status) =>
            {
                Ok(actor.refused(&web.admin, problem.code).await?)
            }
            _ => Ok(()),
        }
    };
    let settled = async {
        let Some(repeatable) = repeatable else { return Ok(()) };
        let kept = answer.as_ref().map(|body| (StatusCode::OK, &body[..])).map_err(|_| ());
        idempotent::end(&web, repeatable, kept).await
    };
    both(recorded, settled).await?;
    let answer = answer?;
    if operation.method == Method::Get {
        web.reads.note(&web, &actor, operation.id).await?;
    }
    Ok(json(StatusCode::OK, answer))
}

/// One after the other, also if the first fails: a refusal without its record is an error, but its
/// key must not stay "under way" for that.
async fn both(
    recorded: impl Future<Output = Result<(), Problem>>,
    settled: impl Future<Output = Result<(), Problem>>,
) -> Result<(), Problem> {
    let recorded = recorded.await;
    settled.await.and(recorded)
}

fn json(status: StatusCode, body: Vec<u8>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn again(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = json(status, body);
    response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    response
}

/// A body of the declared type; none for what takes none.
fn read_body<B: DeserializeOwned>(parts: &Parts, bytes: &[u8]) -> Result<B, Problem> {
    if bytes.is_empty() {
        // What takes a body says what is missing.
        return serde_json::from_str("null")
            .or_else(|_| serde_json::from_str("{}"))
            .map_err(|error| Problem::bad_request(format!("body: {error}")));
    }
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let text = "Content-Type: application/json is expected";
        let code = adit_protocol::code::failure::BAD_REQUEST;
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, code, text));
    }
    serde_json::from_slice(bytes).map_err(|error| Problem::bad_request(format!("body: {error}")))
}

async fn openapi(State(web): WebState, Extension(client): Extension<Client>) -> Response {
    if let Err(problem) = of_allowed_network(&web, client.address, "api.description").await {
        return problem.into_response();
    }
    // Shared, not copied: readers may be slow and many.
    let kind = [(header::CONTENT_TYPE, "application/json")];
    let mut response = (StatusCode::OK, kind, web.document.clone()).into_response();
    tell_nonce(&mut response, &web.proofs.nonce());
    response
}

async fn version(State(web): WebState, Extension(client): Extension<Client>) -> Response {
    if let Err(problem) = of_allowed_network(&web, client.address, "api.version").await {
        return problem.into_response();
    }
    let told = serde_json::json!({"api": "v1", "version": env!("CARGO_PKG_VERSION")});
    json(StatusCode::OK, told.to_string().into_bytes())
}

/// Who read what: recorded once a minute for each kind of read, with their number.
#[derive(Default)]
pub(crate) struct Reads(Mutex<HashMap<Reading, (Instant, u64)>>);

/// Principal and operation.
type Reading = (String, &'static str);

impl Reads {
    fn count(&self, principal: &str, operation: &'static str) -> Option<u64> {
        let now = Instant::now();
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= MAX_READS {
            table.retain(|_, (at, _)| now.duration_since(*at) < READS_EVERY);
        }
        let (at, unrecorded) = match table.get_mut(&(principal.to_owned(), operation)) {
            Some(entry) => entry,
            None => {
                table.insert((principal.to_owned(), operation), (now, 0));
                return Some(1);
            }
        };
        if now.duration_since(*at) < READS_EVERY {
            *unrecorded += 1;
            return None;
        }
        *at = now;
        Some(std::mem::take(unrecorded) + 1)
    }

    async fn note(&self, web: &Web, actor: &Actor, operation: &'static str) -> Result<(), Problem> {
        let Some(remote) = actor.remote() else { return Ok(()) };
        let Some(count) = self.count(&remote.holder.account, operation) else { return Ok(()) };
        let event = Event::new("api.read", Level::Everything)
            .partner(&remote.partner)
            .outcome("granted")
            .extra("operation", operation)
            .extra("count", count);
        web.admin.record(&remote.holder.partner, actor.sign(event)).await.map_err(Problem::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refusal_that_cannot_be_recorded_leaves_no_key_under_way() {
        let mut forgotten = false;
        let recorded = async { Err(Problem::internal()) };
        let settled = async {
            forgotten = true;
            Ok(())
        };
        assert!(both(recorded, settled).await.is_err());
        assert!(forgotten);
        assert!(both(async { Ok(()) }, async { Err(Problem::internal()) }).await.is_err());
    }
}
