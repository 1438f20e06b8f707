//! Backups over the network: the whole database, sealed for whom the asker names, piece by piece.
//!
//! One at a time: each takes as much room on the disk as the database until it has been read.

use std::{sync::Arc, time::Duration};

use adit_protocol::code::failure;
use adit_runtime::cli::CliError;
use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderValue, Request, header},
    response::{IntoResponse, Response},
    routing,
};
use tokio::sync::{Semaphore, mpsc};

use super::{Api, Method::Get, Operation, audit::pieces, kinds::BackupQuery};
use crate::{
    admin::backup,
    age::AgeError,
    http::{Problem, Web, WebState, auth::authenticate},
};

/// The operation.
const ID: &str = "backup.take";
/// So long an answer waits for the copy: what fails sooner is told, later the answer is cut off.
const COPY_WAIT: Duration = Duration::from_secs(20);
/// Steps that are sealed before anybody takes them.
const AHEAD: usize = 2;
/// After how many seconds to try again.
const AGAIN_S: u64 = 30;

pub(super) fn mount(api: &mut Api) {
    let take = Operation {
        method: Get,
        path: "/backup",
        id: ID,
        summary: "Take the database away, sealed for recipients; on the installation, with a fresh \
                  login",
        needs: &["policy.manage and audit.export"],
    };
    let kinds = ["application/octet-stream"];
    api.raw::<BackupQuery>((take, &kinds, false), routing::get(answer));
}

/// Those under way.
pub(crate) struct Backups(Arc<Semaphore>);

impl Default for Backups {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

async fn answer(State(web): WebState, request: Request<Body>) -> Response {
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
    let actor = authenticate(&web, &parts, ID).await?;
    let query: BackupQuery = serde_urlencoded::from_str(parts.uri.query().unwrap_or_default())
        .map_err(|error| Problem::bad_request(format!("query: {error}")))?;
    let texts: Vec<String> = query.recipients.split(',').map(str::to_owned).collect();
    let who = (&*web.admin, &actor);
    let recipients = backup::judge(who, &texts).await?;
    let place = Arc::clone(&web.backups.0).try_acquire_owned().map_err(|_| {
        let detail = "another backup is under way; try again when it is done".to_owned();
        Problem { detail, retry_after: Some(AGAIN_S), ..Problem::busy() }
    })?;
    backup::record(who, &recipients).await?;
    web.reads.note(&web, &actor, ID).await?;
    let admin = Arc::clone(&web.admin);
    let tasks = web.exports.tasks().clone();
    let mut copying = tasks.spawn(async move { backup::copy(&admin).await });
    let early = match tokio::time::timeout(COPY_WAIT, &mut copying).await {
        Ok(copied) => Some(copied.map_err(|_| Problem::internal())??),
        Err(_) => None,
    };
    let pieces = pieces::stream(&tasks, move |mut reader| async move {
        let _place = place;
        let stopped = |_| CliError::failed(failure::INTERNAL, "a backup stopped unexpectedly");
        let copy = match early {
            Some(copy) => copy,
            None => copying.await.map_err(stopped)??,
        };
        let (sender, mut sealed) = mpsc::channel(AHEAD);
        let sealing = tokio::task::spawn_blocking(move || {
            backup::seal(copy, &recipients, |bytes| {
                let gone = |_| AgeError::Io(std::io::ErrorKind::BrokenPipe.into());
                sender.blocking_send(Bytes::from(bytes)).map_err(gone)
            })
        });
        while let Some(bytes) = sealed.recv().await {
            reader.bytes(bytes).await?;
        }
        let sealed = sealing.await.map_err(stopped)?;
        sealed.map_err(|error| CliError::failed(failure::INTERNAL, error.to_string()))
    });
    let mut response = Body::from_stream(pieces).into_response();
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}
