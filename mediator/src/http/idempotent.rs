//! `Idempotency-Key`: a POST that is repeated with the same key is done once, and answered again.
//!
//! Answers are kept for a day, sealed, because some hold a token or a password that is shown
//! once. What failed without effect is forgotten, so that it can be tried again.

use adit_protocol::{dpop::base64url, keys::sha256};
use adit_runtime::time::unix_ms;
use axum::http::{HeaderName, StatusCode, request::Parts};

use super::{Problem, Web};
use crate::{
    place::store_error,
    store::{StoreError, api},
    vault::wrap::Place,
};

/// The request's name for itself.
pub(super) static HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// How long answers are kept, milliseconds.
const KEPT_MS: u64 = 24 * 3_600_000;
/// Characters of a key.
const KEY_CHARS: std::ops::RangeInclusive<usize> = 8..=128;

/// A request with a key.
pub(super) struct Repeatable {
    principal: String,
    /// Hash of the key.
    name: String,
}

/// What becomes of it.
pub(super) enum Begun {
    /// It has no key.
    Plain,
    /// It is the first.
    First(Repeatable),
    /// It was answered before.
    Again(StatusCode, Vec<u8>),
}

impl Repeatable {
    fn place(&self) -> Place<'_> {
        Place { table: "api_reply", row: &self.name, tenant: &self.principal }
    }
}

fn conflict(text: &str) -> Problem {
    Problem::new(StatusCode::CONFLICT, CONFLICT, text)
}

/// Code of a key that is used for something else, or whose request is under way.
const CONFLICT: &str = adit_protocol::code::failure::IDEMPOTENCY_CONFLICT;

/// Looks whether it was done before, and notes that it begins.
pub(super) async fn begin(
    web: &Web,
    (principal, partner): (&str, &str),
    parts: &Parts,
    body: &[u8],
) -> Result<Begun, Problem> {
    let mut values = parts.headers.get_all(&HEADER).iter();
    let Some(value) = values.next() else { return Ok(Begun::Plain) };
    let key = value.to_str().ok().filter(|key| KEY_CHARS.contains(&key.len()));
    let Some(key) = key.filter(|_| values.next().is_none()) else {
        let text = "Idempotency-Key: one value of 8 to 128 visible characters is expected";
        return Err(Problem::bad_request(text));
    };
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    // With the key, of which only a hash is kept: bodies may hold passwords, and nobody who reads
    // the database can try them against this.
    let method = parts.method.as_str().as_bytes();
    let request = [key.as_bytes(), b"\0", method, b" ", target.as_bytes(), b"\n", body].concat();
    let request = base64url(&sha256(&request));
    let repeatable =
        Repeatable { principal: principal.to_owned(), name: base64url(&sha256(key.as_bytes())) };
    let (principal, partner) = (principal.to_owned(), partner.to_owned());
    let (name, asked) = (repeatable.name.clone(), request.clone());
    let since = unix_ms().saturating_sub(KEPT_MS);
    let known = web.admin.writer.write(move |tx| {
        Box::pin(
            async move { api::begin_reply(tx, (&principal, &partner), &name, &asked, since).await },
        )
    });
    let Some(known) = known.await.map_err(store_error)? else {
        return Ok(Begun::First(repeatable));
    };
    if known.request != request {
        return Err(conflict("this Idempotency-Key was used for another request"));
    }
    let status = u16::try_from(known.status).ok().and_then(|n| StatusCode::from_u16(n).ok());
    let Some(status) = status.filter(|_| known.status != 0) else {
        let text = "a request with this Idempotency-Key is under way, or was cut off: look \
                    whether it was done, and use another key if not";
        return Err(conflict(text));
    };
    let body = web.admin.keys.open(repeatable.place(), &known.body).map_err(|error| {
        tracing::error!(%error, "a kept answer cannot be opened");
        Problem::internal()
    })?;
    Ok(Begun::Again(status, body.to_vec()))
}

/// Keeps an answer, or forgets the request if it failed.
pub(super) async fn end(
    web: &Web,
    repeatable: Repeatable,
    answer: Result<(StatusCode, &[u8]), ()>,
) -> Result<(), Problem> {
    let sealed = match answer {
        Ok((status, body)) => {
            let sealed = web.admin.keys.seal(repeatable.place(), body).map_err(|error| {
                tracing::error!(%error, "an answer cannot be kept");
                Problem::internal()
            })?;
            Some((status.as_u16(), sealed))
        }
        Err(()) => None,
    };
    let Repeatable { principal, name, .. } = repeatable;
    let done = web.admin.writer.write(move |tx| {
        Box::pin(async move {
            match sealed {
                Some((status, body)) => api::keep_reply(tx, &principal, &name, status, body).await,
                None => api::forget_reply(tx, &principal, &name).await,
            }
        })
    });
    done.await.map_err(|error: StoreError| Problem::from(store_error(error)))
}
