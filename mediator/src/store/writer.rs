//! The one writer: waiting jobs share a transaction and its fsync (group commit).
//!
//! A job is a closure over [`WriteTx`]: any statements and any audit entries, which stand or
//! fall together. A job's failure undoes that job only (savepoint). Nobody is told of success
//! before the transaction, its tree frontiers and its signed heads included, is on disk.
//!
//! INVARIANT: the trees in memory are those of the last commit whenever no batch runs; after a
//! failed commit they are read from the database again before anything else is written.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use sqlx::{AnyConnection, Connection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    Store, StoreError,
    audit::{Appended, LogSigner, Trees},
};
use crate::proof::{Forest, Grove};

/// Jobs that may wait.
pub(crate) const MAX_WAITING_JOBS: usize = 1024;
/// Records of everyday reports that may wait: less than half of the queue, so that no flood of
/// them keeps grants and ends out, and few enough to be written within a moment.
pub(crate) const MAX_ROUTINE: usize = 512;
/// Jobs in one transaction.
pub(crate) const MAX_BATCH: usize = 256;
/// How long a caller waits for room in the queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// Rest before the database is tried again after it failed.
const REOPEN_PAUSE: Duration = Duration::from_millis(200);

/// What a job works on.
pub(crate) struct WriteTx {
    connection: AnyConnection,
    trees: Trees,
    /// Inner nodes and heads for proofs.
    grove: Grove,
    now_ms: u64,
}

impl WriteTx {
    /// For statements.
    pub(crate) fn sql(&mut self) -> &mut AnyConnection {
        &mut self.connection
    }

    /// Time of this batch.
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Another clock for the rest of the batch.
    #[cfg(test)]
    pub(crate) fn set_now(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    /// Adds an entry to the log of a partner (id).
    pub(crate) async fn append(
        &mut self,
        partner: &str,
        event: adit_ledger::Event,
    ) -> Result<Appended, StoreError> {
        // Whoever reads that somebody did something must read how it ended (R33). Events that
        // tests make up need not say.
        let says = event.actor.is_none() || event.outcome.is_some();
        debug_assert!(cfg!(test) || says, "no outcome: {}", event.name);
        let listed = crate::audit::names::is_known(&event.name);
        debug_assert!(cfg!(test) || listed, "not in audit/names.rs: {}", event.name);
        self.grove.touch(partner);
        self.trees.append(&mut self.connection, partner, event, self.now_ms).await
    }

    /// Adds an entry unless the level of the user who acted leaves it out: the one place where
    /// audit levels take effect. Access and security events are never left out.
    pub(crate) async fn record(
        &mut self,
        partner: &str,
        event: adit_ledger::Event,
    ) -> Result<Option<Appended>, StoreError> {
        if crate::audit::levels::keeps(&mut self.connection, &event).await? {
            return self.append(partner, event).await.map(Some);
        }
        Ok(None)
    }

    /// Gives a new partner its log.
    pub(crate) async fn start_tree(
        &mut self,
        partner: &str,
        name: &str,
        previous: Option<&adit_ledger::SignedHead>,
    ) -> Result<(), StoreError> {
        self.grove.touch(partner);
        self.trees.start(&mut self.connection, partner, name, previous, self.now_ms).await
    }
}

type Finish = Box<dyn FnOnce(Result<(), Arc<str>>) + Send>;
type Job = Box<dyn for<'a> FnOnce(&'a mut WriteTx) -> BoxFuture<'a, (bool, Finish)> + Send>;

/// A result to come.
pub(crate) struct Pending<T>(oneshot::Receiver<Result<T, StoreError>>);

impl<T> Pending<T> {
    /// Waits until it is durable or failed.
    pub(crate) async fn wait(self) -> Result<T, StoreError> {
        self.0.await.unwrap_or_else(|_| Err(StoreError::Unavailable("it failed or stops".into())))
    }
}

/// Hands jobs to the writing task.
#[derive(Clone)]
pub(crate) struct Writer {
    jobs: mpsc::Sender<Job>,
    routine: Arc<Semaphore>,
    forest: Forest,
}

/// Room in the queue for everyday records, until it is dropped.
pub(crate) struct Room(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

impl Writer {
    /// Reads and checks the trees, and gives the task that has to run.
    pub(crate) async fn start(
        store: &Store,
        signer: LogSigner,
        stop: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), StoreError> {
        let mut connection = store.connect().await?;
        let trees = Trees::load(&mut connection, signer).await?;
        let (jobs, queue) = mpsc::channel(MAX_WAITING_JOBS);
        let grove = Grove::load(&mut connection, store.readers.clone()).await?;
        let forest = grove.forest();
        let tx = WriteTx { connection, trees, grove, now_ms: 0 };
        let task = Task { store: store.clone(), tx, queue, healthy: true };
        let routine = Arc::new(Semaphore::new(MAX_ROUTINE));
        Ok((Self { jobs, routine, forest }, task.run(stop)))
    }

    /// Heads and proofs of what is on disk.
    pub(crate) fn forest(&self) -> &Forest {
        &self.forest
    }

    /// Room for so many records of what devices report every day; whoever asks first gets it
    /// first. Must be held until they are durable.
    pub(crate) async fn room(&self, records: usize) -> Result<Room, StoreError> {
        let records = u32::try_from(records.clamp(1, MAX_ROUTINE / 4)).unwrap_or(1);
        let room = Arc::clone(&self.routine).acquire_many_owned(records);
        match tokio::time::timeout(QUEUE_TIMEOUT, room).await {
            Ok(Ok(permit)) => Ok(Room(permit)),
            _ => Err(StoreError::Unavailable("too much waits to be written".into())),
        }
    }

    /// Does `job` and waits until it is durable.
    pub(crate) async fn write<T, F>(&self, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'a> FnOnce(&'a mut WriteTx) -> BoxFuture<'a, Result<T, StoreError>> + Send + 'static,
    {
        let (job, pending) = package(job);
        self.jobs
            .send_timeout(job, QUEUE_TIMEOUT)
            .await
            .map_err(|_| StoreError::Unavailable("too much waits to be written".into()))?;
        pending.wait().await
    }

    /// Queues `job` at once, in the order of calls, or fails if too much waits.
    pub(crate) fn submit<T, F>(&self, job: F) -> Result<Pending<T>, StoreError>
    where
        T: Send + 'static,
        F: for<'a> FnOnce(&'a mut WriteTx) -> BoxFuture<'a, Result<T, StoreError>> + Send + 'static,
    {
        let (job, pending) = package(job);
        self.jobs
            .try_send(job)
            .map_err(|_| StoreError::Unavailable("too much waits to be written".into()))?;
        Ok(pending)
    }
}

fn package<T, F>(job: F) -> (Job, Pending<T>)
where
    T: Send + 'static,
    F: for<'a> FnOnce(&'a mut WriteTx) -> BoxFuture<'a, Result<T, StoreError>> + Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    let job: Job = Box::new(move |tx| {
        Box::pin(async move {
            let result = job(tx).await;
            let good = result.is_ok();
            let finish: Finish = Box::new(move |commit| {
                let result = match commit {
                    // A job that failed had no effect, whatever became of the others.
                    Err(reason) if good => Err(StoreError::Unavailable(reason.to_string())),
                    _ => result,
                };
                // Whoever asked may have gone; what is written stays written.
                let _ = sender.send(result);
            });
            (good, finish)
        })
    });
    (job, Pending(receiver))
}

struct Task {
    store: Store,
    tx: WriteTx,
    queue: mpsc::Receiver<Job>,
    healthy: bool,
}

impl Task {
    async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        loop {
            let got = tokio::select! {
                biased;
                got = self.queue.recv_many(&mut batch, MAX_BATCH) => got,
                () = stop.cancelled() => {
                    // What was queued before the stop is still written.
                    self.queue.close();
                    self.queue.recv_many(&mut batch, MAX_BATCH).await
                }
            };
            if got == 0 {
                break;
            }
            self.batch(&mut batch).await;
        }
        // Closing moves what is in the write-ahead log into the database file.
        if let Err(error) = self.tx.connection.close().await {
            tracing::warn!(%error, "database not closed cleanly");
        }
    }

    async fn batch(&mut self, jobs: &mut Vec<Job>) {
        if let Err(error) = self.recover().await {
            tracing::error!(%error, "database does not take writes");
            // Dropping a job tells its caller.
            jobs.clear();
            tokio::time::sleep(REOPEN_PAUSE).await;
            return;
        }
        let mut finish = Vec::with_capacity(jobs.len());
        let outcome = self.transaction(jobs, &mut finish).await;
        let outcome = match outcome {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::error!(%error, "transaction failed");
                self.healthy = false;
                // Else it keeps the lock until the next job, also from whoever repairs the file.
                let _ = execute(self.tx.sql(), "ROLLBACK").await;
                Err(Arc::from(error.to_string()))
            }
        };
        for finish in finish {
            finish(outcome.clone());
        }
        // Those that never began: dropping a job tells its caller.
        jobs.clear();
    }

    async fn transaction(
        &mut self,
        jobs: &mut Vec<Job>,
        finish: &mut Vec<Finish>,
    ) -> Result<(), StoreError> {
        self.tx.now_ms = adit_runtime::time::unix_ms();
        self.tx.grove.begin();
        execute(self.tx.sql(), "BEGIN IMMEDIATE").await?;
        for job in jobs.drain(..) {
            execute(self.tx.sql(), "SAVEPOINT job").await?;
            let (good, done) = job(&mut self.tx).await;
            finish.push(done);
            if good {
                self.tx.trees.keep();
            } else {
                self.tx.trees.undo();
                execute(self.tx.sql(), "ROLLBACK TO job").await?;
            }
            execute(self.tx.sql(), "RELEASE job").await?;
        }
        let tx = &mut self.tx;
        tx.grove.gather(&mut tx.connection).await?;
        tx.trees.sign(&mut tx.connection, tx.now_ms).await?;
        tx.grove.signed(&mut tx.connection).await?;
        execute(self.tx.sql(), "COMMIT").await?;
        self.tx.trees.committed();
        self.tx.grove.committed();
        Ok(())
    }

    /// After a failure: a fresh connection (the old one may hold a broken transaction) and the
    /// trees as they are on disk.
    async fn recover(&mut self) -> Result<(), StoreError> {
        if self.healthy {
            return Ok(());
        }
        let mut connection = self.store.connect().await?;
        let trees = Trees::load(&mut connection, self.tx.trees.signer()).await?;
        self.tx.grove.reload(&mut connection).await?;
        (self.tx.connection, self.tx.trees, self.tx.now_ms) = (connection, trees, 0);
        self.healthy = true;
        tracing::info!("database takes writes again");
        Ok(())
    }
}

async fn execute(
    connection: &mut AnyConnection,
    statement: &'static str,
) -> Result<(), StoreError> {
    sqlx::query(statement).execute(connection).await?;
    Ok(())
}
