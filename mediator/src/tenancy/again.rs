//! What was erased, or begun to be, in a backup that takes the database's place.
//!
//! What was begun is not undone, whoever knows of it: the backup, the database that was there, or
//! `erased.jsonl` beside it. Its rows and entries go from the copy before that is used, and its keys
//! with them. What is certified keeps its certificate; the rest stays a row of the copy, which the
//! next start finishes and certifies. Must never take anything that is under a legal hold in the copy
//! or was in the database that was there: of that the tenant is locked, and all else waits.

use std::collections::{BTreeMap, BTreeSet};

use adit_ledger::{Event, Level};

use super::{
    erase::{self, AGAIN, Pass},
    ledger::Erased,
};
use crate::{
    admin::actor::LOCAL,
    audit::holds,
    core::ending::CLIENT_ERASED,
    store::{
        Store, StoreError, Writer,
        erasures::{self, Counts, Erasure, Kind},
        locks,
    },
    vault::tenant::TenantKeys,
};

/// What the database that was there knows of erasures; nothing, where it cannot be read.
#[derive(Default)]
pub(crate) struct Known {
    /// Newest first.
    erasures: Vec<Erasure>,
    /// Partners under a legal hold.
    held: BTreeSet<String>,
}

impl Known {
    pub(crate) async fn of(store: &Store) -> Result<Self, StoreError> {
        let holds = holds::all(&store.readers).await?;
        Ok(Self {
            erasures: erasures::all(&store.readers).await?,
            held: holds.into_iter().map(|hold| hold.partner_id).collect(),
        })
    }
}

/// A backup that is made ready to be used.
pub(crate) struct Copy<'a> {
    pub(crate) store: &'a Store,
    pub(crate) writer: &'a Writer,
    /// Beside it.
    pub(crate) keys: &'a TenantKeys,
    /// The partner that holds the installation's log.
    pub(crate) home: &'a str,
}

/// An erasure that the copy does not know, or not as done.
struct Due {
    /// As far as the copy has come.
    erasure: Erasure,
    /// The copy knows it.
    is_there: bool,
    /// A partner's clients as they were noted.
    clients: Vec<String>,
    /// As the database that was there has it, if it is done there.
    certified: Option<Erasure>,
}

/// Erases in the copy what was erased, and notes what is left to be done; of how many it had
/// something.
pub(crate) async fn again(
    copy: &Copy<'_>,
    known: &Known,
    noted: &[Erased],
) -> Result<u64, StoreError> {
    let in_copy = erasures::all(&copy.store.readers).await?;
    let mut count = 0;
    for due in all_due(&in_copy, known, noted) {
        count += u64::from(copy.erase(due, known).await?);
    }
    Ok(count)
}

fn all_due(in_copy: &[Erasure], known: &Known, noted: &[Erased]) -> Vec<Due> {
    let by_id = |all: &[Erasure]| -> BTreeMap<String, Erasure> {
        all.iter().map(|one| (one.id.clone(), one.clone())).collect()
    };
    let (there, elsewhere) = (by_id(in_copy), by_id(&known.erasures));
    let lines: BTreeMap<&str, &Erased> =
        noted.iter().map(|line| (line.erasure.as_str(), line)).collect();
    // What is done has nothing to be done, unless it is noted: then a backup may bring it back.
    let begun = in_copy.iter().chain(&known.erasures).filter(|one| one.finished_ms.is_none());
    let ids =
        begun.map(|one| one.id.as_str()).chain(noted.iter().map(|line| line.erasure.as_str()));
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for id in ids.filter(|id| seen.insert(*id)) {
        let (in_copy, elsewhere, line) = (there.get(id), elsewhere.get(id), lines.get(id));
        // A backup that was made after an erasure holds nothing of it, but perhaps a new client of
        // the same name.
        if in_copy.is_some_and(|one| one.finished_ms.is_some()) {
            continue;
        }
        let row = in_copy.cloned().or_else(|| {
            // Nothing of it is done in the copy.
            let bare = |one: &Erasure| Erasure {
                finished_ms: None,
                counts: Counts::default(),
                certificate: String::new(),
                ..one.clone()
            };
            elsewhere.map(bare).or_else(|| line?.erasure())
        });
        let Some(mut erasure) = row else {
            tracing::warn!(erasure = id, "erased by a newer version: not known what");
            continue;
        };
        // Counted when it began; later there are fewer.
        let keys = [elsewhere.map(|one| one.counts.tenant_keys), line.map(|line| line.tenant_keys)];
        erasure.counts.tenant_keys =
            keys.into_iter().flatten().fold(erasure.counts.tenant_keys, u64::max);
        // It was another file.
        erasure.counts.rewritten = None;
        erasure.counts.again = true;
        // What nobody notes any more comes back with the next backup: no certificate says else.
        let certified = elsewhere.filter(|one| line.is_some() && one.finished_ms.is_some());
        all.push(Due {
            erasure,
            is_there: in_copy.is_some(),
            clients: line.map(|line| line.clients.clone()).unwrap_or_default(),
            certified: certified.cloned(),
        });
    }
    all.sort_by_key(|one| one.erasure.begun_ms);
    all
}

impl Copy<'_> {
    /// Whether there was anything of it.
    async fn erase(&self, due: Due, known: &Known) -> Result<bool, StoreError> {
        let Due { mut erasure, is_there, mut clients, certified } = due;
        let (pool, partner) = (&self.store.readers, erasure.partner_id.clone());
        let is_held = holds::is_held(pool, &partner).await?;
        if !is_held && known.held.contains(&partner) {
            // The copy has no such partner, so no hold on it either: it must not finish this.
            tracing::warn!(subject = erasure.subject, "under a legal hold, and not in the backup");
            return Ok(false);
        }
        let of_row = match erasure.kind {
            Kind::Client => vec![erasure.client_id.clone()],
            Kind::Partner => erasures::clients(pool, &partner).await?,
        };
        clients.extend(of_row);
        clients.sort_unstable();
        clients.dedup();
        self.count_keys(&mut erasure, &clients);
        let tell = !is_there && (is_held || certified.is_none());
        self.carry_over(&erasure, is_there, tell).await?;
        if is_held {
            return Ok(false);
        }
        let shredded = self.destroy_keys(&partner, &clients).await;
        let before = erasure.counts.clone();
        let deleted = erase::delete_rows_of(self.writer, &erasure, clients).await?;
        let Some((counts, _)) = deleted else { return Ok(false) };
        erasure.counts = counts;
        let pass = Pass { store: self.store, writer: self.writer, erasure: &erasure };
        let Some(counts) = pass.run().await? else { return Ok(false) };
        let found = counts != before;
        if let Some(done) = certified.filter(|_| shredded) {
            self.keep(done, found).await?;
        }
        Ok(found)
    }

    /// Who wrote the line of an earlier version did not count them.
    fn count_keys(&self, erasure: &mut Erasure, clients: &[String]) {
        let keys = self.keys.clients().unwrap_or_default();
        let there = clients.iter().filter(|client| keys.contains(client)).count();
        let counted = &mut erasure.counts.tenant_keys;
        *counted = u64::try_from(there).map_or(*counted, |there| there.max(*counted));
    }

    /// As it begins: a row, and nobody gets to the tenant any more.
    async fn carry_over(
        &self,
        erasure: &Erasure,
        is_there: bool,
        tell: bool,
    ) -> Result<(), StoreError> {
        let clients = erasures::clients(&self.store.readers, &erasure.partner_id).await?;
        let log = erase::log_of(self.store, erasure, self.home).await?;
        let one = erasure.clone();
        let done = self.writer.write(move |tx| {
            Box::pin(async move {
                match is_there {
                    true => erasures::note(tx, &one.id, &one.counts).await?,
                    false => erasures::begin(tx, &one).await?,
                }
                let whole = one.kind == Kind::Partner;
                for client in clients.iter().filter(|id| whole || **id == one.client_id) {
                    locks::lock_client(tx, client, CLIENT_ERASED).await?;
                }
                if whole {
                    erasures::close_accounts(tx, &one.partner_id).await?;
                }
                if tell {
                    tx.append(&log, event(&one, "erasure_begun")).await?;
                }
                Ok(())
            })
        });
        done.await
    }

    /// Whether none of them is left. A disk that fails is no reason to restore nothing: the next
    /// start tries again.
    async fn destroy_keys(&self, partner: &str, clients: &[String]) -> bool {
        let mut all = true;
        for client in clients {
            let of = (self.writer, self.keys);
            if let Err(error) = erase::destroy_key_of(of, partner, client).await {
                tracing::error!(client, %error, "a key of an erased client cannot be destroyed");
                all = false;
            }
        }
        all
    }

    /// Keeps its certificate: what it says stays true.
    async fn keep(&self, done: Erasure, found: bool) -> Result<(), StoreError> {
        let log = erase::log_of(self.store, &done, self.home).await?;
        let kept = self.writer.write(move |tx| {
            Box::pin(async move {
                erasures::keep(tx, &done).await?;
                if found {
                    tx.append(&log, event(&done, "erased")).await?;
                }
                Ok(())
            })
        });
        kept.await
    }
}

/// Without a client: of what tells of it the next time would find this, too.
fn event(erasure: &Erasure, what: &str) -> Event {
    Event::new(format!("{}.{what}", erasure.kind.name()), Level::Significant)
        .actor(LOCAL)
        .partner(erasure.subject.split('/').next().unwrap_or_default())
        .outcome("done")
        .extra("erasure", erasure.id.as_str())
        .extra("subject", erasure.subject.as_str())
        .extra("again", AGAIN)
}

#[cfg(test)]
mod tests;
