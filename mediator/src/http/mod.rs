//! HTTP on the one TLS port: the API of docs/api.md and the pages for people.
//!
//! - [`server`]: HTTP/1.1 and HTTP/2 on connections whose handshake is complete
//! - [`guard`]: what holds for every request: limits, deadline, headers, no panic gets out
//! - [`problem`]: errors as RFC 9457 tells them, with the codes of docs/errors.md
//! - [`limit`]: how much a source or a principal may ask
//!
//! Pages are mounted in [`router`]; whatever is not mounted is not there. Must never answer with
//! the inside of an error, nor anything before the limits were asked.

mod guard;
mod limit;
mod problem;
mod server;

use std::sync::Arc;

use axum::{Json, Router, extract::State, routing::get};
use serde_json::{Value, json};

pub(crate) use problem::Problem;
pub(crate) use server::{Client, Server};

use crate::{admin::AdminContext, serve::Shared};

/// What handlers work on.
pub(crate) struct Web {
    /// Store, writer, broker, rules and settings; what acts work on.
    pub(crate) admin: Arc<AdminContext>,
    /// What control connections share: logins, limits, the home partner.
    pub(crate) shared: Arc<Shared>,
}

/// The state of all routes.
pub(crate) type WebState = State<Arc<Web>>;

/// Everything that is answered.
pub(crate) fn router(web: Arc<Web>) -> Router {
    Router::new()
        .route("/api/v1/version", get(version))
        // Pages are merged here.
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .with_state(web)
}

async fn version(State(_): WebState) -> Json<Value> {
    Json(json!({"api": "v1", "version": env!("CARGO_PKG_VERSION")}))
}
