//! HTTP on the one TLS port: the API of docs/api.md and the pages for people.
//!
//! - [`server`]: HTTP/1.1 and HTTP/2 on connections whose handshake is complete
//! - [`guard`]: what holds for every request: limits, deadline, headers, no panic gets out
//! - [`auth`], [`dpop`], [`tokens`]: who asks, by proofs of possession
//! - [`api`]: the operations, and their description
//! - [`idempotent`]: requests that may be repeated
//! - [`problem`]: errors as RFC 9457 tells them, with the codes of docs/errors.md
//! - [`limit`]: how much a source or a principal may ask
//!
//! Pages are mounted in [`router`]; whatever is not mounted is not there. Must never answer with
//! the inside of an error, nor anything before the limits were asked.

pub(crate) mod api;
mod auth;
mod dpop;
mod guard;
mod idempotent;
mod limit;
mod problem;
mod server;
mod tokens;

use std::sync::Arc;

use axum::{Router, body::Bytes, extract::State};
use tokio_util::task::TaskTracker;

pub(crate) use dpop::fuzz_proof;
pub(crate) use limit::{Begun, Full, UnderWay};
pub(crate) use problem::Problem;
pub(crate) use server::{Client, Server};
pub(crate) use tokens::{KEY_PREFIX, Tokens};

use crate::{admin::AdminContext, bucket::Rate, serve::Shared};

/// Requests of one principal.
const PER_PRINCIPAL: Rate = Rate::per_second(50, 500);

/// What handlers work on.
pub(crate) struct Web {
    /// Store, writer, broker, rules and settings; what acts work on.
    pub(crate) admin: Arc<AdminContext>,
    /// What control connections share: logins, limits, the home partner.
    pub(crate) shared: Arc<Shared>,
    proofs: dpop::Proofs,
    failures: auth::Failures,
    reads: api::Reads,
    searches: api::Searches,
    exports: api::Exports,
    backups: api::Backups,
    principals: limit::Buckets<String>,
    /// The description of the API.
    document: Bytes,
}

impl Web {
    /// For all connections; `None` without randomness. `tasks`: what outlives a request.
    pub(crate) fn new(
        admin: Arc<AdminContext>,
        shared: Arc<Shared>,
        tasks: TaskTracker,
    ) -> Option<Self> {
        Some(Self {
            admin,
            shared,
            proofs: dpop::Proofs::new()?,
            failures: auth::Failures::default(),
            reads: api::Reads::default(),
            searches: api::Searches::default(),
            exports: api::Exports::new(tasks),
            backups: api::Backups::default(),
            principals: limit::Buckets::new(PER_PRINCIPAL),
            document: api::all().document().into(),
        })
    }
}

/// The state of all routes.
pub(crate) type WebState = State<Arc<Web>>;

/// Everything that is answered.
pub(crate) fn router(web: Arc<Web>) -> Router {
    Router::new()
        .merge(api::all().router())
        .merge(crate::pages::router())
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .with_state(web)
}
