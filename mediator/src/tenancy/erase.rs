//! The steps of an erasure.
//!
//! What was begun is a row of the table `erasure`; the mediator itself, or the same command again,
//! goes on with whatever is not finished, and records for whom. Each step finds out by itself what
//! is left to be done.

use std::time::{Duration, Instant};

use adit_ledger::{Event, Level};
use adit_protocol::{code::failure, ids::ComputerId};
use adit_runtime::{
    cli::{CliError, Exit},
    time::{format_ms, unix_ms},
};
use serde_json::{Value, json};

use super::{
    certificate,
    ledger::{self, Erased},
};
use crate::{
    admin::{
        AdminContext,
        actor::{self, Actor, LOCAL, not_found},
        handle::{self, bad_name},
    },
    audit::holds,
    core::{ending::CLIENT_ERASED, types::Affected},
    names,
    place::{STAGED, store_error},
    roles::Permission,
    store::{
        Store, StoreError, Writer, compact,
        erasures::{self, Counts, Erasure, Kind},
        fresh_id, locks, tenants,
    },
    vault::{VaultError, tenant::TenantKeys},
};

/// Time for live sessions to be ended and recorded.
const SESSIONS_DEADLINE: Duration = Duration::from_secs(10);
/// Time for devices to acknowledge those ends; who has not is cut off from what is erased.
const ACKNOWLEDGE_DEADLINE: Duration = Duration::from_secs(5);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Passes over the log: what was written while it was erased is found by the next.
const MAX_PASSES: usize = 5;
/// What stays, in every certificate.
const REMAINS: &str = "of entries of the audit log: sequence, time, kind of event, names of \
     partner and client, ids, outcome, numbers, hashes of what was deleted, and what is public there: \
     names of roles, conditions with their networks, names and issuers of identity providers, \
     fingerprints of devices. Of an erased client also what is its partner's: accounts of people, \
     groups and tags that roles are bound to, and entries that name no client, such as those of \
     accounts, of refusals, and of searches that found computers of several. Outside of the \
     mediator: copies of the log that were forwarded or exported before, and receipts that consoles \
     and agents keep themselves";
/// What old backups are worth, in every certificate.
const BACKUPS: &str = "copies of the database made before hold no key that opens the credentials \
     of the subject; only a copy of its files under \"tenants\" in the data directory made before \
     would, together with the wrapping key. Other data of the subject are in such copies until \
     they are deleted; restoring one with this mediator erases them again";

/// Why it was erased once more, or went on in another database.
pub(super) const AGAIN: &str = "a backup was restored";

/// What acts get.
type Who<'a> = (&'a AdminContext, &'a Actor);
/// Who goes on with an erasure; nobody: the mediator itself, for who began it.
type By<'a> = (&'a AdminContext, Option<&'a Actor>);

/// Erases a client by its path.
pub(crate) async fn client((context, actor): Who<'_>, path: &str) -> Result<Value, CliError> {
    let client = match handle::client(context, actor, path).await {
        Err(error) if error.exit == Exit::NotThere => {
            return go_on((context, actor), Kind::Client, path, error).await;
        }
        found => found?,
    };
    actor.may_client(context, &client, &[Permission::ManagePolicy]).await?;
    // Nothing brings it back.
    actor.must_be_fresh(context).await?;
    let _turn = context.erasing.take(&client.partner_id).await?;
    // What they may do can have changed while they waited.
    let actor = &actor.anew(context).await?;
    actor.may_client(context, &client, &[Permission::ManagePolicy]).await?;
    let new = Erasure {
        id: fresh_id().map_err(store_error)?,
        kind: Kind::Client,
        partner_id: client.partner_id.clone(),
        client_id: client.id.clone(),
        subject: client.path(),
        begun_by: Some(id_of(actor)),
        begun_ms: unix_ms(),
        finished_ms: None,
        counts: Counts::default(),
        certificate: String::new(),
    };
    let begun = begin((context, actor), new).await?;
    run((context, Some(actor)), begun).await
}

/// Erases a partner with all of its clients.
/// Over the network: the own one, by a person, who says its name once more.
pub(crate) async fn partner(
    (context, actor): Who<'_>,
    name: &str,
    confirm: Option<&str>,
) -> Result<Value, CliError> {
    may_erase_partner((context, actor)).await?;
    names::check(name).map_err(bad_name)?;
    let wanted = name.to_owned();
    let found = context
        .writer
        .write(move |tx| Box::pin(async move { tenants::partner(tx, &wanted).await }))
        .await
        .map_err(store_error)?;
    let Some(partner) = found.filter(|found| actor.reaches(&found.id)) else {
        return go_on((context, actor), Kind::Partner, name, not_found("partner")).await;
    };
    if let Some(remote) = actor.remote() {
        if remote.kind == actor::Kind::Key {
            let text = "an API key erases no partner: that is for people".to_owned();
            return Err(actor.refuse(context, "people-only", text).await?);
        }
        // Nothing brings it back.
        actor.must_be_fresh(context).await?;
        if confirm.map(tenants::name_key) != Some(tenants::name_key(&partner.name)) {
            let text = "the partner's name is expected once more, in the field partner";
            return Err(CliError::usage("usage", text));
        }
    }
    if context.home().await.map_err(store_error)? == partner.id {
        let text = "the first partner holds the installation's own log and cannot be erased";
        return Err(CliError::refused("home_partner", text)
            .hint("erase its clients one by one, or destroy the whole data directory"));
    }
    let _turn = context.erasing.take(&partner.id).await?;
    let actor = &actor.anew(context).await?;
    may_erase_partner((context, actor)).await?;
    let new = Erasure {
        id: fresh_id().map_err(store_error)?,
        kind: Kind::Partner,
        partner_id: partner.id,
        client_id: String::new(),
        subject: partner.name,
        begun_by: Some(id_of(actor)),
        begun_ms: unix_ms(),
        finished_ms: None,
        counts: Counts::default(),
        certificate: String::new(),
    };
    let begun = begin((context, actor), new).await?;
    run((context, Some(actor)), begun).await
}

async fn may_erase_partner((context, actor): Who<'_>) -> Result<(), CliError> {
    for permission in [Permission::ManagePolicy, Permission::ManageUsers] {
        actor.may_at_home(context, &[permission]).await?;
    }
    Ok(())
}

/// Goes on with all erasures that were interrupted; how many are done.
pub(crate) async fn resume(context: &AdminContext) -> Result<usize, CliError> {
    let pool = &context.store.readers;
    let mut count = 0;
    for known in erasures::left(pool).await.map_err(store_error)? {
        // Whoever has it goes on with it, or the next round does.
        let Ok(_turn) = context.erasing.take(&known.partner_id).await else { continue };
        // Somebody else had the turn, and may have gone on with it.
        let found = erasures::unfinished(pool, &known.id).await.map_err(store_error)?;
        let Some(erasure) = found else { continue };
        if holds::is_held(pool, &erasure.partner_id).await.map_err(store_error)? {
            continue;
        }
        let subject = erasure.subject.clone();
        tracing::info!(subject, "going on with an erasure");
        match run((context, None), erasure).await {
            Ok(_) => count += 1,
            Err(error) => tracing::error!(subject, %error, "an erasure could not go on"),
        }
    }
    Ok(count)
}

/// Rewrites the database without traces of what was deleted.
pub(crate) async fn compact((context, actor): Who<'_>) -> Result<Value, CliError> {
    actor.may_everywhere(context, &[Permission::ManagePolicy]).await?;
    // One that waits would only do again what the one that runs does.
    let place = compact::try_take(&context.store).ok_or_else(|| {
        CliError::failed(failure::BUSY, "the database is being rewritten already")
            .hint("give the same command again when that is done")
    })?;
    let home = context.home().await.map_err(store_error)?;
    let record = async |outcome: &'static str, whole: Option<&'static str>| {
        let (by, home) = (actor.clone(), home.clone());
        let recorded = context.writer.write(move |tx| {
            Box::pin(async move {
                let partner = tenants::partner_by_id(tx, &home).await?;
                let event = by.event("database.compacted", &partner.name).outcome(outcome);
                let event =
                    whole.into_iter().fold(event, |event, whole| event.extra("whole", whole));
                tx.append(&home, event).await.map(|_| ())
            })
        });
        recorded.await.map_err(store_error)
    };
    // It is not undone by a crash that comes before its end is recorded.
    record("begun", None).await?;
    let done = compact::run_in(place, &context.store, context.broker.is_none()).await;
    let outcome = if done.is_ok() { "done" } else { "failed" };
    record(outcome, Some(if matches!(done, Ok(true)) { "yes" } else { "no" })).await?;
    Ok(json!({"compacted": done.map_err(store_error)?}))
}

/// All certificates, newest first; or one. Those of partners that are gone are for those who answer
/// for the installation: nobody else is left.
pub(crate) async fn certificates(
    (context, actor): Who<'_>,
    only: Option<String>,
) -> Result<Vec<Value>, CliError> {
    actor.may_at_home(context, &[Permission::ManagePolicy, Permission::ReadAudit]).await?;
    let of_gone = actor.holds_everywhere(Permission::ManagePolicy);
    let all = erasures::all(&context.store.readers).await.map_err(store_error)?;
    let told: Vec<Value> = all
        .iter()
        .filter(|one| actor.reaches(&one.partner_id) || (of_gone && one.kind == Kind::Partner))
        .filter(|one| only.as_ref().is_none_or(|only| *only == one.id))
        .map(|one| {
            json!({
                "erasure": one.id,
                "kind": one.kind.name(),
                "subject": one.subject,
                "begun": format_ms(one.begun_ms),
                "finished": one.finished_ms.map(format_ms),
                "certificate": serde_json::from_str::<Value>(&one.certificate).ok(),
            })
        })
        .collect();
    if only.is_some() && told.is_empty() { Err(not_found("certificate")) } else { Ok(told) }
}

/// An erasure of that subject which was interrupted after its rows were gone; else what was found
/// instead.
async fn go_on(
    (context, actor): Who<'_>,
    kind: Kind,
    subject: &str,
    missing: CliError,
) -> Result<Value, CliError> {
    if actor.local_only().is_err() {
        return Err(missing);
    }
    let pool = &context.store.readers;
    let found = erasures::left(pool).await.map_err(store_error)?.into_iter().find(|one| {
        one.kind == kind && tenants::name_key(&one.subject) == tenants::name_key(subject)
    });
    let Some(known) = found else { return Err(missing) };
    let _turn = context.erasing.take(&known.partner_id).await?;
    match erasures::unfinished(pool, &known.id).await.map_err(store_error)? {
        Some(erasure) => run((context, Some(actor)), erasure).await,
        // Who had the turn finished it.
        None => Err(missing),
    }
}

/// Notes it in the database; nobody gets to the tenant's computers any more.
async fn begin((context, actor): Who<'_>, new: Erasure) -> Result<Erasure, CliError> {
    let left = erasures::left(&context.store.readers).await.map_err(store_error)?;
    let same = |one: &Erasure| one.partner_id == new.partner_id && one.client_id == new.client_id;
    if let Some(known) = left.into_iter().find(same) {
        return Ok(known);
    }
    let (clients, by) = (clients_of(context, &new).await?, actor.clone());
    let home = context.home().await.map_err(store_error)?;
    // Counted before any of them goes: whoever goes on finds fewer.
    let keys = context.vault.keys.clients()?;
    let count = clients.iter().filter(|client| keys.contains(client)).count();
    let mut new = new;
    new.counts.tenant_keys = u64::try_from(count).unwrap_or(u64::MAX);
    let begun = context.writer.write(move |tx| {
        Box::pin(async move {
            // Who had the turn before may have erased it.
            if !erasures::is_there(tx, &new).await? {
                return Err(StoreError::Missing(new.kind.name()));
            }
            if holds::is_held_in(tx, &new.partner_id).await? {
                return Ok(None);
            }
            erasures::begin(tx, &new).await?;
            for client in clients {
                locks::lock_client(tx, &client, CLIENT_ERASED).await?;
            }
            if new.kind == Kind::Partner {
                erasures::close_accounts(tx, &new.partner_id).await?;
            }
            tx.append(&new.partner_id, of(&by, &new, "erasure_begun")).await?;
            if new.kind == Kind::Partner {
                // The partner's own log is emptied and closed: this one says who began it.
                tx.append(&home, of_whom(Some(&by), &new, "erasure_begun")).await?;
            }
            Ok(Some(new))
        })
    });
    // Nothing of a partner is erased while its log is kept for a court.
    begun.await.map_err(store_error)?.ok_or_else(|| {
        CliError::refused("legal_hold", "a legal hold is on the partner: nothing of it is erased")
            .hint(
                "audit retention show lists each hold; audit retention release ends one, once \
                 nothing needs it any more, and the last of them must be over",
            )
    })
}

/// A hold came when it had begun.
fn held_midway() -> CliError {
    let text = "a legal hold is on the partner: the erasure has begun and waits, and what is left \
                is not erased";
    CliError::refused("legal_hold", text).hint(
        "audit retention show lists each hold, audit retention release ends one; when the last \
             is over, the mediator goes on by itself",
    )
}

/// Holds come at any time: asked before the first step, and by each step that takes something for
/// good, in its turn to write.
async fn heed_hold(context: &AdminContext, erasure: &Erasure) -> Result<(), CliError> {
    let is_held = holds::is_held(&context.store.readers, &erasure.partner_id).await;
    if is_held.map_err(store_error)? { Err(held_midway()) } else { Ok(()) }
}

async fn clients_of(context: &AdminContext, erasure: &Erasure) -> Result<Vec<String>, CliError> {
    match erasure.kind {
        Kind::Client => Ok(vec![erasure.client_id.clone()]),
        Kind::Partner => erasures::clients(&context.store.readers, &erasure.partner_id)
            .await
            .map_err(store_error),
    }
}

/// Who it is, without a name: names are erased, or stay where what they name is erased.
fn id_of(actor: &Actor) -> String {
    match actor.remote() {
        None => LOCAL.to_owned(),
        Some(remote) => {
            let kind = if remote.kind == actor::Kind::Key { "API key" } else { "account" };
            format!("{kind} {}", remote.holder.account)
        }
    }
}

/// Who erased an own partner is erased with it: what the log that goes on says of them is their id.
/// Who began it is told whoever finished it.
fn of_whom(actor: Option<&Actor>, erasure: &Erasure, what: &str) -> Event {
    let bare = || about(Event::new(named(erasure, what), Level::Significant), erasure);
    let event = match actor {
        Some(actor) if actor.remote().is_some() && erasure.kind == Kind::Partner => {
            bare().actor(id_of(actor))
        }
        Some(actor) => of(actor, erasure, what),
        None => match &erasure.begun_by {
            Some(by) => bare().actor(by.as_str()).extra("resumed", "by the mediator"),
            None => bare().extra("resumed", "by the mediator"),
        },
    };
    let event = match &erasure.begun_by {
        Some(by) => event.extra("begun_by", by.as_str()),
        None => event,
    };
    if erasure.counts.again { event.extra("again", AGAIN) } else { event }
}

fn of(actor: &Actor, erasure: &Erasure, what: &str) -> Event {
    about(actor.sign(Event::new(named(erasure, what), Level::Significant)), erasure)
}

fn named(erasure: &Erasure, what: &str) -> String {
    format!("{}.{what}", erasure.kind.name())
}

fn about(event: Event, erasure: &Erasure) -> Event {
    let partner = erasure.subject.split('/').next().unwrap_or_default();
    let event = event.partner(partner).outcome("done").extra("erasure", erasure.id.as_str());
    match erasure.kind {
        Kind::Client => event.client(&erasure.subject),
        Kind::Partner => event.extra("partner_id", erasure.partner_id.as_str()),
    }
}

/// Does what is left to be done, in the partner's turn.
async fn run((context, actor): By<'_>, erasure: Erasure) -> Result<Value, CliError> {
    let kind = erasure.kind;
    let done = steps((context, actor), erasure).await;
    done.map_err(|error| stopped((context, actor), kind, error))
}

/// What is true for who asked when an erasure that has begun stopped midway: there is no way back,
/// and for who came over the network perhaps no way to ask again.
fn stopped((context, actor): By<'_>, kind: Kind, error: CliError) -> CliError {
    if error.code == "legal_hold" {
        return error;
    }
    if actor.and_then(Actor::remote).is_none() {
        let hint = match context.broker {
            Some(_) => "it has begun: the mediator goes on by itself, or give the command again",
            None => "it has begun: give the same command again, or start the mediator",
        };
        return if error.hint.is_none() { error.hint(hint) } else { error };
    }
    tracing::error!(code = error.code, %error, "an erasure stopped midway");
    let text = match kind {
        Kind::Client => {
            "the erasure has begun and is not finished yet: the mediator goes on by itself; \
             certificate list has the certificate when it is done"
        }
        Kind::Partner => {
            "the erasure has begun and is not finished yet: the mediator goes on by itself; who \
             answers for the installation has the certificate when it is done"
        }
    };
    CliError::failed("erasure_unfinished", text)
}

async fn steps((context, actor): By<'_>, mut erasure: Erasure) -> Result<Value, CliError> {
    heed_hold(context, &erasure).await?;
    let mut clients = clients_of(context, &erasure).await?;
    let ended = end_sessions(context, &erasure, &clients).await?;
    heed_hold(context, &erasure).await?;
    // Of those whose rows are gone there may still be keys.
    let noted = ledger::note(&context.dir, Erased::of(&erasure, &clients))?;
    clients.extend(noted.clients);
    clients.sort_unstable();
    clients.dedup();
    for client in &clients {
        destroy_key(context, &erasure, client).await?;
    }
    erasure.counts = delete_rows(context, &erasure, clients.clone()).await?;
    for client in &clients {
        // Who added a credential while the rows still stood had one made anew.
        let destroyed = context.vault.keys.destroy(client).map_err(VaultError::from);
        destroyed.map_err(VaultError::cli)?;
    }
    // What was permitted before, and recorded behind the rows.
    end_sessions(context, &erasure, &clients).await?;
    for _ in 0..MAX_PASSES {
        let before = erasure.counts.entries;
        let pass = Pass { store: &context.store, writer: &context.writer, erasure: &erasure };
        let counts = pass.run().await.map_err(store_error)?;
        erasure.counts = counts.ok_or_else(held_midway)?;
        if erasure.counts.entries == before {
            break;
        }
    }
    finish((context, actor), erasure, ended).await
}

async fn destroy_key(
    context: &AdminContext,
    erasure: &Erasure,
    client: &str,
) -> Result<(), CliError> {
    destroy_key_of((&context.writer, &context.vault.keys), &erasure.partner_id, client).await
}

/// In a turn to write: no hold comes between the look and the deed.
pub(super) async fn destroy_key_of(
    (writer, keys): (&Writer, &TenantKeys),
    partner: &str,
    client: &str,
) -> Result<(), CliError> {
    let (keys, partner, client) = (keys.clone(), partner.to_owned(), client.to_owned());
    let done = writer.write(move |tx| {
        Box::pin(async move {
            let is_held = holds::is_held_in(tx, &partner).await?;
            Ok((!is_held).then(|| keys.destroy(&client)))
        })
    });
    let done = done.await.map_err(store_error)?.ok_or_else(held_midway)?;
    done.map(drop).map_err(VaultError::from).map_err(VaultError::cli)
}

/// Live sessions end, their ends are recorded, and the broker forgets them.
async fn end_sessions(
    context: &AdminContext,
    erasure: &Erasure,
    clients: &[String],
) -> Result<usize, CliError> {
    let mut ended = 0;
    for client in clients {
        ended += context.end_sessions(Affected::Client(client.clone()), CLIENT_ERASED).await;
    }
    if erasure.kind == Kind::Partner {
        let accounts = erasures::accounts(&context.store.readers, &erasure.partner_id).await;
        for account in accounts.map_err(store_error)? {
            ended += context.end_sessions(Affected::Account(account), CLIENT_ERASED).await;
        }
    }
    let Some(broker) = &context.broker else { return Ok(ended) };
    let begun = Instant::now();
    loop {
        let (clients, partner) = (clients.to_vec(), erasure.partner_id.clone());
        let whole = erasure.kind == Kind::Partner;
        let patient = begun.elapsed() < ACKNOWLEDGE_DEADLINE;
        let left = broker.ask(move |driver, _| {
            driver.broker.forget_tenant(&clients, whole.then_some(partner.as_str()), patient)
        });
        match left.await {
            Some(0) | None => return Ok(ended),
            Some(_) if begun.elapsed() > SESSIONS_DEADLINE => {
                let text = "the ends of live sessions could not be recorded";
                return Err(CliError::failed("audit_unavailable", text));
            }
            Some(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

async fn delete_rows(
    context: &AdminContext,
    erasure: &Erasure,
    clients: Vec<String>,
) -> Result<Counts, CliError> {
    let deleted = delete_rows_of(&context.writer, erasure, clients).await.map_err(store_error)?;
    let (counts, computers) = deleted.ok_or_else(held_midway)?;
    if let Some(broker) = &context.broker {
        broker.act(move |driver, _| driver.broker.handle_unenrolled(&computers)).await;
    }
    context.rules_changed().await;
    Ok(counts)
}

/// The counts with what is gone, and computers that are not enrolled any more; `None`: a hold came.
pub(super) async fn delete_rows_of(
    writer: &Writer,
    erasure: &Erasure,
    clients: Vec<String>,
) -> Result<Option<(Counts, Vec<ComputerId>)>, StoreError> {
    let (one, mut counts) = (erasure.clone(), erasure.counts.clone());
    let deleted = writer.write(move |tx| {
        Box::pin(async move {
            if holds::is_held_in(tx, &one.partner_id).await? {
                return Ok(None);
            }
            let mut computers = Vec::new();
            for client in clients {
                computers.extend(erasures::delete_client(tx, &client, &mut counts).await?);
            }
            if one.kind == Kind::Partner {
                erasures::delete_partner(tx, &one.partner_id, &mut counts).await?;
            }
            erasures::note(tx, &one.id, &counts).await?;
            Ok(Some((counts, computers)))
        })
    });
    deleted.await
}

/// One pass over a partner's logs, in which entries lose what was personal.
pub(super) struct Pass<'a> {
    pub(super) store: &'a Store,
    pub(super) writer: &'a Writer,
    pub(super) erasure: &'a Erasure,
}

impl Pass<'_> {
    /// The counts with what it erased, noted with each step; `None`: a hold came.
    pub(super) async fn run(&self) -> Result<Option<Counts>, StoreError> {
        let Self { store, writer, erasure } = *self;
        let (id, partner) = (&erasure.id, &erasure.partner_id);
        let mut counts = erasure.counts.clone();
        // Entries name a client by its path, so those of a newer one of that name are told apart.
        let client = (erasure.kind == Kind::Client).then_some(erasure.subject.as_str());
        let newer = match client {
            Some(path) => {
                erasures::namesake(&store.readers, partner, &erasure.client_id, path).await?
            }
            None => None,
        };
        for (tree, number) in erasures::logs(&store.readers, partner).await? {
            let mut next = Some(0);
            while let Some(from) = next {
                let (found, more) = erasures::telling(&store.readers, &tree, from, client).await?;
                next = more;
                let is_newer = |(seq, time_ms): &(u64, u64)| {
                    newer.as_ref().is_some_and(|newer| newer.owns(number, *seq, *time_ms))
                };
                let entries: Vec<u64> =
                    found.into_iter().filter(|one| !is_newer(one)).map(|(seq, _)| seq).collect();
                if entries.is_empty() {
                    continue;
                }
                let (tree, client) = (tree.clone(), client.map(str::to_owned));
                let (id, partner) = (id.clone(), partner.clone());
                let step = writer.write(move |tx| {
                    Box::pin(async move {
                        if holds::is_held_in(tx, &partner).await? {
                            return Ok(None);
                        }
                        counts.entries +=
                            erasures::forget_entries(tx, &tree, &entries, client.as_deref())
                                .await?;
                        // Whoever goes on certifies these, too.
                        erasures::note(tx, &id, &counts).await?;
                        Ok(Some(counts))
                    })
                });
                let Some(so_far) = step.await? else { return Ok(None) };
                counts = so_far;
            }
        }
        Ok(Some(counts))
    }
}

/// The log that goes on: an erased partner's is closed with it, and a backup that is older than the
/// partner has none.
pub(super) async fn log_of(
    store: &Store,
    erasure: &Erasure,
    home: &str,
) -> Result<String, StoreError> {
    let own = match erasure.kind {
        Kind::Client => erasures::logs(&store.readers, &erasure.partner_id).await?,
        Kind::Partner => Vec::new(),
    };
    Ok(if own.is_empty() { home.to_owned() } else { erasure.partner_id.clone() })
}

/// Records it, takes the traces out of the files, certifies it.
async fn finish(
    (context, actor): By<'_>,
    mut erasure: Erasure,
    sessions_ended: usize,
) -> Result<Value, CliError> {
    let home = context.home().await.map_err(store_error)?;
    let compacted = rewrite(context, &mut erasure).await?;
    let finished_ms = unix_ms();
    let Counts {
        clients, computers, accounts, credentials, sessions, tenant_keys, entries, ..
    } = erasure.counts.clone();
    let mut told = json!({
        "kind": erasure.kind.name(),
        "subject": erasure.subject,
        "erasure": erasure.id,
        "partner_id": erasure.partner_id,
        "client_id": erasure.client_id,
        "begun": format_ms(erasure.begun_ms),
        "finished": format_ms(finished_ms),
        "finished_ms": finished_ms,
        "clients_deleted": clients,
        "computers_deleted": computers,
        "accounts_deleted": accounts,
        "accounts_without_rights": erasure.counts.accounts_without_rights,
        "credentials_destroyed": credentials,
        "tenant_keys_destroyed": tenant_keys,
        "sessions_deleted": sessions,
        "entries_erased": entries,
        "compacted": compacted,
        "copies_kept": kept_copies(context, &erasure).await?,
        "remains": REMAINS,
        "backups": BACKUPS,
    });
    if let (true, Some(told)) = (erasure.counts.again, told.as_object_mut()) {
        told.insert("again".to_owned(), AGAIN.into());
    }
    let log = log_of(&context.store, &erasure, &home).await.map_err(store_error)?;
    let (signer, one, record) = (context.signer.clone(), erasure.clone(), told.clone());
    let by = actor.cloned();
    let done = context.writer.write(move |tx| {
        Box::pin(async move {
            let event = of_whom(by.as_ref(), &one, "erased")
                .extra("entries_erased", entries)
                .extra("credentials_destroyed", credentials)
                .extra("computers_deleted", computers);
            let entry = tx.append(&log, event).await?;
            let mut inner = record.as_object().cloned().unwrap_or_default();
            inner.insert("recorded_seq".to_owned(), entry.seq.into());
            inner.insert("recorded_leaf".to_owned(), entry.leaf.to_string().into());
            let text = certificate::sign(&signer, inner);
            let print = adit_ledger::Hash(adit_protocol::keys::sha256(text.as_bytes()));
            let issued = of_whom(by.as_ref(), &one, "certified")
                .extra("certificate_sha256", print.to_string());
            tx.append(&log, issued).await?;
            erasures::finish(tx, &one.id, finished_ms, &text).await?;
            Ok(text)
        })
    });
    let text = done.await.map_err(store_error)?;
    let mut reply = told;
    if let Some(object) = reply.as_object_mut() {
        // What earlier versions told.
        object.insert("sessions_ended".to_owned(), sessions_ended.into());
        let key = erasure.kind.name().to_owned();
        object.insert(key, erasure.subject.into());
        let certificate = serde_json::from_str::<Value>(&text).unwrap_or_default();
        object.insert("certificate".to_owned(), certificate);
    }
    Ok(reply)
}

/// Rewrites the database; whether that was done. Tried once for an erasure, which is noted first:
/// without room for it the certificate says that it was not done, and begun again and again it would
/// take what room is left from everybody.
async fn rewrite(context: &AdminContext, erasure: &mut Erasure) -> Result<bool, CliError> {
    let note = async |erasure: &Erasure| {
        let (id, counts) = (erasure.id.clone(), erasure.counts.clone());
        let noted = context
            .writer
            .write(move |tx| Box::pin(async move { erasures::note(tx, &id, &counts).await }));
        noted.await.map_err(store_error)
    };
    if let Some(done) = erasure.counts.rewritten {
        return Ok(done);
    }
    erasure.counts.rewritten = Some(false);
    note(erasure).await?;
    match compact::run(&context.store, context.broker.is_none()).await {
        Ok(done) => erasure.counts.rewritten = Some(done),
        Err(error) => {
            tracing::error!(%error, "the database could not be rewritten after an erasure");
        }
    }
    Ok(erasure.counts.rewritten == Some(true))
}

/// Copies that the mediator itself made and that still hold what was erased: databases that
/// `restore` has put aside or was working on, and exports of the partner's logs.
async fn kept_copies(context: &AdminContext, erasure: &Erasure) -> Result<Vec<String>, CliError> {
    let prefix = format!("{}.before-restore", crate::place::DATABASE);
    let mut found = names_in(context.dir.path()).unwrap_or_default();
    found.retain(|name| name.starts_with(&prefix) || name.starts_with(STAGED));
    found.sort();
    let Some(dir) = &context.export_dir else { return Ok(found) };
    let Ok(exported) = names_in(dir) else {
        found.push("files in audit.export_dir, which cannot be read".to_owned());
        return Ok(found);
    };
    let logs = erasures::logs(&context.store.readers, &erasure.partner_id).await;
    for (tree, _) in logs.map_err(store_error)? {
        let start = format!("audit-{tree}-");
        // One of each log, not one of each day.
        match exported.iter().filter(|name| name.starts_with(&start)).count() {
            0 => {}
            count => found.push(format!("{start}*.jsonl in audit.export_dir ({count})")),
        }
    }
    Ok(found)
}

fn names_in(folder: &std::path::Path) -> std::io::Result<Vec<String>> {
    let entries = std::fs::read_dir(folder)?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

#[cfg(test)]
pub(super) mod tests;
