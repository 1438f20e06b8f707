//! Changes of rights reach live sessions: the task that judges anew what the broker names.
//!
//! Woken by every change of the rules, and by the clock for rights that end. Sessions of one
//! account are judged with one reading of its rules. Must never end a session because something
//! could not be read: it is named again, and an unjudged end of a right ends it in the broker.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use adit_runtime::time::unix_ms;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::BrokerHandle;
use crate::{
    authz::Holder,
    core::review::Live,
    store::{Store, StoreError, access::When},
};

/// Sessions judged in one go.
const BATCH: usize = 512;
/// How often rights that have ended are looked for.
const TICK: Duration = Duration::from_millis(500);

/// Which rules hold, as a number that grows with each change.
#[derive(Clone, Default)]
pub(crate) struct Rules {
    generation: Arc<AtomicU64>,
    changed: Arc<Notify>,
}

impl Rules {
    /// To be read before the rules are.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// A change is durable: every live session is judged anew.
    pub(crate) async fn changed(&self, broker: &BrokerHandle) {
        let generation = self.generation.fetch_add(1, Ordering::SeqCst) + 1;
        broker.ask(move |driver, _| driver.broker.handle_rules_changed(generation)).await;
        self.changed.notify_one();
    }
}

/// Judges until told to stop.
pub(super) async fn run(rules: Rules, store: Store, broker: BrokerHandle, stop: CancellationToken) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = rules.changed.notified() => {}
            _ = tick.tick() => {}
        }
        loop {
            let named = broker.ask(|driver, now| match driver.broker.has_reviews() {
                true => driver.broker.take_reviews(BATCH, now),
                false => Vec::new(),
            });
            let Some(batch) = named.await.filter(|batch| !batch.is_empty()) else { break };
            match judge(&store, batch).await {
                Ok(judged) => {
                    let told = broker.ask(move |driver, now| {
                        for (live, outcome) in judged {
                            let broker = &mut driver.broker;
                            broker.handle_reviewed(live.session, live.generation, outcome, now);
                        }
                    });
                    if told.await.is_none() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "rights of live sessions cannot be read");
                    break;
                }
            }
        }
    }
}

type Judged = Vec<(Live, Result<u64, &'static str>)>;

async fn judge(store: &Store, batch: Vec<Live>) -> Result<Judged, StoreError> {
    let pool = &store.readers;
    let mut holders: BTreeMap<String, Holder> = BTreeMap::new();
    let mut judged = Vec::with_capacity(batch.len());
    for live in batch {
        let account = live.who.account_id.clone();
        if !holders.contains_key(&account) {
            let holder = Holder::load(pool, &live.who.partner_id, &account, When::Now).await?;
            holders.insert(account.clone(), holder);
        }
        let Some(holder) = holders.get(&account) else { continue };
        let outcome = holder.goes_on(pool, &live, unix_ms()).await?;
        if let Err(reason) = outcome {
            tracing::info!(session = %live.session, reason, "right to a session has ended");
        }
        judged.push((live, outcome));
    }
    Ok(judged)
}
