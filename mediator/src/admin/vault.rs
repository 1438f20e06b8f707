//! Other wrapping keys over all that is sealed: by one at a time, told of while it runs.
//!
//! Recorded when it begins and when it is done. Killed in between nothing is lost: what is not
//! sealed anew opens with the keys of before, and the same act does the rest.

use std::sync::{Arc, Mutex, PoisonError};

use adit_protocol::code::failure;
use adit_runtime::{
    cli::CliError,
    time::{format_ms, unix_ms},
};
use serde_json::{Value, json};

use super::{actor::Actor, handle::Who};
use crate::{
    place::store_error,
    roles::Permission,
    store::tenants,
    vault::{VaultError, rotate::Rotated, tenant::Skipped},
};

/// The rotation that runs, or ran last since the start.
#[derive(Clone, Default)]
pub(crate) struct Rotation(Arc<Mutex<Standing>>);

#[derive(Clone, Default)]
struct Standing {
    state: State,
    begun_ms: u64,
    finished_ms: u64,
    done: Rotated,
    /// Code of what went wrong.
    error: Option<&'static str>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// None since the start.
    #[default]
    None,
    Running,
    Done,
    Failed,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

impl Rotation {
    fn with<T>(&self, change: impl FnOnce(&mut Standing) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn begin(&self) -> Option<Running> {
        self.with(|now| {
            if now.state == State::Running {
                return None;
            }
            *now = Standing { state: State::Running, begun_ms: unix_ms(), ..Standing::default() };
            Some(Running(self.clone()))
        })
    }

    /// How far it is.
    pub(crate) fn tell(&self) -> Value {
        let now = self.with(|now| now.clone());
        let at = |ms: u64| (ms > 0).then(|| format_ms(ms));
        let mut told = told(&now.done);
        if let Some(object) = told.as_object_mut() {
            object.insert("state".to_owned(), now.state.name().into());
            object.insert("begun".to_owned(), json!(at(now.begun_ms)));
            object.insert("finished".to_owned(), json!(at(now.finished_ms)));
            object.insert("clients".to_owned(), now.done.clients.into());
            object.insert("error".to_owned(), json!(now.error));
        }
        told
    }
}

/// The one that runs. Dropped before its end, it failed.
pub(crate) struct Running(Rotation);

impl Running {
    fn end(&self, state: State, error: Option<&'static str>) {
        self.0.with(|now| {
            (now.state, now.error, now.finished_ms) = (state, error, unix_ms());
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.with(|now| now.state == State::Running) {
            self.end(State::Failed, Some(failure::INTERNAL));
        }
    }
}

fn told(done: &Rotated) -> Value {
    json!({
        "key": done.key,
        "secrets_resealed": done.factors,
        "tenant_keys_resealed": done.tenant_keys,
        "data_keys_made": done.data_keys,
        "credentials_resealed": done.credentials,
        "resumed": done.resumed,
        "skipped": done.skipped.iter().map(|one| {
            json!({"client": one.client, "file": one.file, "error": one.error})
        }).collect::<Vec<_>>(),
    })
}

/// Everything else has the new key; these have the one of before, which therefore stays.
fn skipped(done: &Rotated) -> CliError {
    let one = |skipped: &Skipped| {
        format!("{} of the client {} ({})", skipped.file, skipped.client, skipped.error)
    };
    let mut named: Vec<String> = done.skipped.iter().take(MAX_NAMED).map(one).collect();
    if let Some(more) = done.skipped.len().checked_sub(MAX_NAMED).filter(|more| *more > 0) {
        named.push(format!("and {more} more"));
    }
    let text = format!("the rotation is not done: damaged is {}", named.join(", "));
    CliError::failed("tenant_key_damaged", text).hint(
        "all else has the new key. Put that file back from your copy of the folder tenants and give \
         the same command again, which goes on with the same wrapping key; until then keep \
         wrapping.keys as it is. Without a copy what the file sealed is lost: move it out of the \
         folder first",
    )
}

/// Files that an error names.
const MAX_NAMED: usize = 10;

const MAY: &[Permission] = &[Permission::ManagePolicy];

/// Decides and records; `None` if one runs already.
pub(crate) async fn begin(
    (context, actor): Who<'_>,
    data_keys: bool,
) -> Result<Option<Running>, CliError> {
    actor.may_everywhere(context, MAY).await?;
    actor.must_be_fresh(context).await?;
    let Some(running) = context.rotation.begin() else { return Ok(None) };
    let (home, by) = (context.home().await.map_err(store_error)?, actor.clone());
    let recorded = context.writer.write(move |tx| {
        Box::pin(async move {
            let partner = tenants::partner_by_id(tx, &home).await?;
            let event = by.event("vault.rotation_begun", &partner.name);
            tx.append(&home, event.extra("data_keys", if data_keys { "new" } else { "kept" }))
                .await
                .map(|_| ())
        })
    });
    recorded.await.map_err(store_error)?;
    Ok(Some(running))
}

/// Does it.
pub(crate) async fn run(
    (context, actor): Who<'_>,
    running: Running,
    data_keys: bool,
) -> Result<Rotated, CliError> {
    let all = async {
        let another = context.vault.another_wrapping_key(&context.dir).await;
        let resumed = another.map_err(VaultError::cli)?;
        let home = context.home().await.map_err(store_error)?;
        let progress =
            |done: &Rotated| running.0.with(|now| now.done = Rotated { resumed, ..done.clone() });
        let done = context.vault.reseal(&home, actor, data_keys, &progress).await;
        let done = Rotated { resumed, ..done.map_err(VaultError::cli)? };
        running.0.with(|now| now.done = done.clone());
        if done.skipped.is_empty() { Ok(done) } else { Err(skipped(&done)) }
    };
    let done = all.await;
    match &done {
        Ok(_) => running.end(State::Done, None),
        Err(error) => running.end(State::Failed, Some(error.code)),
    }
    done
}

/// How far it is, for those who may begin one.
pub(crate) async fn standing((context, actor): Who<'_>) -> Result<Value, CliError> {
    actor.may_everywhere(context, MAY).await?;
    Ok(context.rotation.tell())
}

/// All of it, for the machine's administrator, who waits for its end.
pub(super) async fn rotate(
    (context, actor): Who<'_>,
    data_keys: bool,
) -> Result<Vec<Value>, CliError> {
    actor.local_only()?;
    let running = begin((context, actor), data_keys).await?.ok_or_else(|| {
        CliError::failed(failure::BUSY, "the keys are being rotated already")
            .hint("console-tunnel admin vault status shows how far it is")
    })?;
    let done = run((context, &Actor::Local), running, data_keys).await?;
    Ok(vec![told(&done)])
}
