//! Backups over the network: the whole database, sealed for whom the asker names, piece by piece.
//!
//! One at a time: each takes as much room on the disk as the database until it has been read. What
//! was begun is one, whether or not its asker is still there.

use std::{fs::File, sync::Arc, time::Duration};

use adit_protocol::code::failure;
use adit_runtime::cli::CliError;
use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderValue, Request, header},
    response::{IntoResponse, Response},
    routing,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_util::task::TaskTracker;

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

impl Backups {
    /// The place of one, if there is none.
    fn take(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.0).try_acquire_owned().map_err(|_| {
            let detail = "another backup is under way; try again when it is done".to_owned();
            Problem { detail, retry_after: Some(AGAIN_S), ..Problem::busy() }
        })
    }
}

/// A copy, and its place.
type Copied = Result<(File, OwnedSemaphorePermit), CliError>;

/// Makes it. INVARIANT: the place is the copy's, not the answer's: an asker that goes away ends the
/// answer at once, but not what the database does.
fn start(
    tasks: &TaskTracker,
    place: OwnedSemaphorePermit,
    copy: impl Future<Output = Result<File, CliError>> + Send + 'static,
) -> JoinHandle<Copied> {
    tasks.spawn(async move { Ok((copy.await?, place)) })
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
    let place = web.backups.take()?;
    backup::record(who, &recipients).await?;
    web.reads.note(&web, &actor, ID).await?;
    let admin = Arc::clone(&web.admin);
    let tasks = web.exports.tasks().clone();
    let copy = async move { backup::copy(&admin.store, &admin.dir).await };
    let mut copying = start(&tasks, place, copy);
    let early = match tokio::time::timeout(COPY_WAIT, &mut copying).await {
        Ok(copied) => Some(copied.map_err(|_| Problem::internal())??),
        Err(_) => None,
    };
    let pieces = pieces::stream(&tasks, move |mut reader| async move {
        let stopped = |_| CliError::failed(failure::INTERNAL, "a backup stopped unexpectedly");
        let (copy, _place) = match early {
            Some(copied) => copied,
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

#[cfg(test)]
mod tests {
    use adit_runtime::datadir::DataDir;
    use tokio::sync::oneshot;

    use super::*;
    use crate::store::tests::Fixture;

    /// Who asks and goes away, again and again, has one copy made at a time.
    #[tokio::test]
    async fn a_copy_whose_asker_has_gone_keeps_its_place_until_it_is_made() {
        let fixture = Fixture::new();
        let running = fixture.open().await.unwrap();
        let temporary = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temporary.path().join("d")).unwrap();
        let left = {
            let dir = dir.clone();
            move || std::fs::read_dir(dir.path()).unwrap().count()
        };
        let before = left();
        let (backups, tasks) = (Backups::default(), TaskTracker::new());
        let (begun, begins) = oneshot::channel();
        let (go_on, waits) = oneshot::channel::<()>();
        let store = running.store.clone();
        let copy = async move {
            let _ = begun.send(());
            let _ = waits.await;
            backup::copy(&store, &dir).await
        };
        let mut copying = start(&tasks, backups.take().unwrap(), copy);
        // As the answer waits for it, until its connection ends.
        tokio::select! {
            _ = &mut copying => panic!("it is not done"),
            begun = begins => begun.unwrap(),
        }
        drop(copying);
        for _ in 0..4 {
            tokio::task::yield_now().await;
            let refused = backups.take().err().unwrap();
            assert_eq!((refused.code, refused.retry_after), (failure::BUSY, Some(AGAIN_S)));
        }
        go_on.send(()).unwrap();
        tasks.close();
        tasks.wait().await;
        drop(backups.take().unwrap());
        assert_eq!(left(), before);
        running.close().await;
    }
}
