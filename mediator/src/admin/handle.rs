//! Does what an [`AdminRequest`] asks.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use adit_ledger::{Event, Level};
use adit_protocol::{
    ids::SessionId,
    keys::{Fingerprint, PublicKey},
};
use adit_runtime::{
    cli::{CliError, Exit},
    datadir::DataDir,
    time::format_ms,
};
use serde_json::{Value, json};

use super::{
    AdminRequest, Refusals,
    actor::{Actor, LOCAL, not_found},
    tokens, users,
};
use crate::{
    audit::acts::AuditAct,
    authz::Spot,
    config::AccountSettings,
    core::types::Affected,
    init::HOME_PARTNER,
    names,
    place::store_error,
    roles::{Act, Object, Permission},
    serve::{BrokerHandle, review::Rules},
    store::{
        LogSigner, Store, StoreError, WriteTx, Writer, access::filter, computers, locks, sessions,
        tenants,
    },
    tenancy::{erase, turns::Turns},
    vault::{Vault, wrap::WrappingKeys},
};

/// Sessions in one list.
const MAX_SESSIONS: u32 = 10_000;

/// What acts work on.
pub(crate) struct AdminContext {
    pub(crate) store: Store,
    pub(crate) writer: Writer,
    pub(crate) root: Fingerprint,
    /// Names and addresses for tokens.
    pub(crate) hosts: Vec<String>,
    /// Port for tokens, if it is known.
    pub(crate) port: Result<u16, CliError>,
    /// Live sessions, when the server runs.
    pub(crate) broker: Option<BrokerHandle>,
    /// Told of every change of rights.
    pub(crate) rules: Rules,
    pub(crate) accounts: AccountSettings,
    /// How long contents of the audit log are kept if nothing else is said.
    pub(crate) retention_ms: u64,
    /// Where copies of the log are written.
    pub(crate) export_dir: Option<PathBuf>,
    pub(crate) keys: WrappingKeys,
    pub(crate) vault: Vault,
    /// Signs certificates of destruction.
    pub(crate) signer: LogSigner,
    pub(crate) dir: DataDir,
    /// What was refused to whom over the network, of late.
    pub(crate) refusals: Refusals,
    /// Of the keys over stored secrets.
    pub(crate) rotation: super::vault::Rotation,
    /// One erasure of a partner at a time.
    pub(crate) erasing: Turns,
}

impl AdminContext {
    /// The partner whose log holds the installation's own events.
    pub(crate) async fn home(&self) -> Result<String, StoreError> {
        tenants::setting(&self.store.readers, HOME_PARTNER)
            .await?
            .ok_or(StoreError::Missing("home partner in the database"))
    }

    /// Ends live sessions after something that withdraws the right to them.
    pub(crate) async fn end_sessions(&self, affected: Affected, reason: &'static str) -> usize {
        let Some(broker) = &self.broker else { return 0 };
        broker
            .ask(move |driver, now| driver.broker.handle_revoked(&affected, reason, now))
            .await
            .unwrap_or(0)
    }

    /// Live sessions are judged by the rules that hold now.
    pub(crate) async fn rules_changed(&self) {
        if let Some(broker) = &self.broker {
            self.rules.changed(broker).await;
        }
    }

    /// By how much a device's clock is ahead, milliseconds, if the server runs and was told.
    pub(crate) fn clock_offset(&self, device: PublicKey) -> Option<i64> {
        self.broker.as_ref()?.clocks.offset(device)
    }

    /// Records something by itself, in its turn among everyday records.
    pub(crate) async fn record(&self, partner: &str, event: Event) -> Result<(), CliError> {
        let _room = self.writer.room(1).await.map_err(store_error)?;
        let partner = partner.to_owned();
        let written = self
            .writer
            .write(move |tx| Box::pin(async move { tx.append(&partner, event).await.map(|_| ()) }));
        written.await.map_err(store_error)
    }

    fn running(&self) -> Result<&BrokerHandle, CliError> {
        self.broker.as_ref().ok_or_else(|| {
            CliError::not_there("not_running", "the mediator does not run, and knows of no session")
                .hint(
                    "sessions that were open go on between console and computer for up to 15 \
                     minutes, or as the computer's owner says: agent-tunnel status there tells \
                     which; mediator serve takes them up again, and lists and ends them",
                )
        })
    }
}

/// Does it; the replies are objects as the contract prints them.
pub(crate) async fn handle(
    context: Arc<AdminContext>,
    actor: Actor,
    request: AdminRequest,
) -> Result<Vec<Value>, CliError> {
    let who = (&*context, &actor);
    match request {
        AdminRequest::ClientAdd { path } => client_add(who, path).await,
        AdminRequest::ClientList => client_list(who).await,
        AdminRequest::ClientErase { path } => {
            erase::client(who, &path).await.map(|told| vec![told])
        }
        AdminRequest::PartnerErase { partner, confirm } => {
            let confirm = confirm.as_deref();
            erase::partner(who, &partner, confirm).await.map(|told| vec![told])
        }
        AdminRequest::Compact => erase::compact(who).await.map(|told| vec![told]),
        AdminRequest::CertificateList { only } => erase::certificates(who, only).await,
        AdminRequest::Credentials(act) => super::credentials::handle(who, act).await,
        AdminRequest::TokenAgent { client, uses, ttl_ms } => {
            tokens::agent(who, client, uses, ttl_ms).await
        }
        AdminRequest::TokenRelay { region, uses, ttl_ms } => {
            tokens::relay(who, region, uses, ttl_ms).await
        }
        AdminRequest::UserAdd { user, partner, role, mfa, password } => {
            users::add(who, user, partner, (role, mfa), password).await
        }
        AdminRequest::UserList { only } => users::list(who, only.as_deref()).await,
        AdminRequest::UserDisable { user, disabled } => users::disable(who, user, disabled).await,
        AdminRequest::UserPassword { user, password } => users::password(who, user, password).await,
        AdminRequest::Accounts(act) => super::accounts::handle(who, act).await,
        AdminRequest::Oidc(act) => super::oidc::handle(who, act).await,
        AdminRequest::Access(act) => super::access::handle(who, act).await,
        AdminRequest::SessionEnd { session } => session_end(who, &session).await,
        AdminRequest::TokenList => tokens::list(who).await,
        AdminRequest::TokenRevoke { token } => tokens::revoke(who, &token).await,
        AdminRequest::PartnerList => super::partners::list(who).await,
        AdminRequest::PartnerAdd { partner, owner } => {
            super::partners::add(who, partner, owner).await
        }
        AdminRequest::ApiKeys(act) => super::api_keys::handle(who, act).await,
        AdminRequest::Relays(act) => super::relays::handle(who, act).await,
        AdminRequest::SessionList => session_list(who).await,
        AdminRequest::AuditRead { how } => audit_read(who, how).await,
        AdminRequest::Audit(act) => {
            may_change_audit(who, &act).await?;
            let (store, writer) = (&context.store, &context.writer);
            crate::audit::acts::handle(store, writer, context.retention_ms, &actor, act).await
        }
        AdminRequest::Backup { file, recipients } => {
            super::backup::to_file(who, file, recipients).await
        }
        AdminRequest::Status => status(who).await,
    }
}

/// Retention, holds and levels are the partner's own.
async fn may_change_audit((context, actor): Who<'_>, act: &AuditAct) -> Result<(), CliError> {
    match act {
        // Over the network of the own partner.
        AuditAct::Retention | AuditAct::Forwarding => {
            let may = [Permission::ManagePolicy, Permission::ReadAudit];
            return actor.may_at_home(context, &may).await;
        }
        AuditAct::SetRetention { partner, .. } | AuditAct::Hold { partner, .. } => {
            actor.may_at_home(context, &[Permission::ManagePolicy]).await?;
            super::access::partner(context, actor, Some(partner.clone())).await.map(|_| ())
        }
        AuditAct::SetLevel { user, .. } => users::managed(context, actor, user).await.map(|_| ()),
    }?;
    // What is not kept, or not recorded, is gone. A hold that begins only keeps more.
    match act {
        AuditAct::Hold { hold: true, .. } => Ok(()),
        _ => actor.must_be_fresh(context).await,
    }
}

pub(crate) fn bad_name(error: names::InvalidName) -> CliError {
    CliError::usage("usage", error.to_string())
}

/// What acts get.
pub(super) type Who<'a> = (&'a AdminContext, &'a Actor);

/// A client that this actor may know of, by `PARTNER/CLIENT`.
pub(crate) async fn client(
    context: &AdminContext,
    actor: &Actor,
    path: &str,
) -> Result<tenants::Client, CliError> {
    let (partner, client) = names::client_path(path).map_err(bad_name)?;
    let found = tenants::find_client(&context.store.readers, partner, client).await;
    let found = found.map_err(store_error)?;
    found.filter(|found| actor.reaches(&found.partner_id)).ok_or_else(|| no_such_client(path))
}

/// There is no such client, or it is not for this one: in the same words, whatever its name looks
/// like where it is.
pub(super) fn no_such_client(path: &str) -> CliError {
    let text = format!("there is no client {}", tenants::name_key(path));
    CliError::not_there("not_found", text).hint("client list shows what there is")
}

/// The client of that id.
pub(super) async fn client_of_id(
    context: &AdminContext,
    id: &str,
) -> Result<tenants::Client, CliError> {
    let clients = tenants::clients(&context.store.readers).await.map_err(store_error)?;
    let found = clients.into_iter().map(|(client, _)| client).find(|client| client.id == id);
    found.ok_or_else(|| not_found("client"))
}

async fn client_add((context, actor): Who<'_>, path: String) -> Result<Vec<Value>, CliError> {
    let (partner, client) = names::client_path(&path).map_err(bad_name)?;
    if let Some(remote) = actor.remote() {
        if tenants::name_key(&remote.partner) != tenants::name_key(partner) {
            return Err(not_found("partner"));
        }
        actor.may_at_home(context, &[Permission::ManagePolicy]).await?;
    }
    let (partner, client, by) = (partner.to_owned(), client.to_owned(), actor.clone());
    let added = context
        .writer
        .write(move |tx| Box::pin(async move { add_client(tx, &by, &partner, &client).await }))
        .await;
    let (client, new_partner) = added.map_err(store_error)?;
    Ok(vec![json!({
        "client": client.path(),
        "client_id": client.id,
        "new_partner": new_partner,
    })])
}

async fn add_client(
    tx: &mut WriteTx,
    by: &Actor,
    partner: &str,
    client: &str,
) -> Result<(tenants::Client, bool), StoreError> {
    let found = tenants::partner(tx, partner).await?;
    let new_partner = found.is_none();
    let partner = match found {
        Some(partner) => partner,
        None => {
            let partner = tenants::create_partner(tx, partner).await?;
            tx.append(&partner.id, by.event("partner.added", &partner.name)).await?;
            partner
        }
    };
    let client = tenants::create_client(tx, &partner, client).await?;
    let added = by.event("client.added", &partner.name).client(client.path());
    tx.append(&partner.id, added).await?;
    Ok((client, new_partner))
}

/// Clients that this actor may see, or of which it may see a computer.
async fn client_list((context, actor): Who<'_>) -> Result<Vec<Value>, CliError> {
    let pool = &context.store.readers;
    let mut clients = tenants::clients(pool).await.map_err(store_error)?;
    if let Some(remote) = actor.remote() {
        let holder = &remote.holder;
        let visible = holder.filter(Permission::SeeComputers, remote.facts(), &filter::COMPUTER);
        let with_computers = computers::clients(pool, &visible).await.map_err(store_error)?;
        clients.retain(|(client, _)| {
            let (partner, id) = (client.partner_id.clone(), client.id.clone());
            let object = Object::Client { partner, client: id };
            let act = Act::of(Permission::SeeComputers);
            actor.reaches(&client.partner_id)
                && (with_computers.contains(&client.id)
                    || holder.decide(act, &object, remote.facts()).is_allowed())
        });
    }
    let mut told = Vec::new();
    for (client, computers) in clients {
        let locked = locks::client(pool, &client.id).await.map_err(store_error)?;
        told.push(json!({
            "client": client.path(),
            "client_id": client.id,
            "computers": computers,
            "locked": locked,
        }));
    }
    Ok(told)
}

async fn session_end((context, actor): Who<'_>, session: &str) -> Result<Vec<Value>, CliError> {
    let missing = || CliError::not_there("no_such_session", "there is no such open session");
    let id: SessionId = session.parse().map_err(|_| match actor {
        Actor::Local => {
            CliError::usage("usage", "a session id is expected, as session list prints it")
        }
        Actor::Remote(_) => missing(),
    })?;
    let broker = context.running()?;
    let ended = match actor {
        Actor::Local => {
            broker
                .ask(move |driver, now| driver.broker.handle_ended_by_administrator(id, now))
                .await
        }
        Actor::Remote(remote) => {
            let found = broker.ask(move |driver, now| driver.broker.live(id, now)).await.flatten();
            let live = found.filter(|live| actor.reaches(&live.who.partner_id));
            let live = live.ok_or_else(missing)?;
            if live.who.account_id != remote.holder.account {
                let spot = Spot::of_place(&live.who.partner_id, &live.place);
                let ends = actor.may_spot(context, &spot, &[Permission::EndSessions]).await;
                ends.map_err(|error| if error.exit == Exit::NotThere { missing() } else { error })?;
            }
            let name = remote.name.clone();
            broker.ask(move |driver, now| driver.broker.handle_ended_by_person(id, name, now)).await
        }
    };
    match ended {
        Some(true) => Ok(vec![json!({"session_id": session, "ended": true})]),
        _ => Err(missing()),
    }
}

async fn session_list((context, actor): Who<'_>) -> Result<Vec<Value>, CliError> {
    // An empty list would say that nobody is connected.
    let broker = context.running()?;
    let visible = match actor.remote() {
        None => None,
        Some(remote) => {
            let holder = &remote.holder;
            let clause = holder.filter(Permission::SeeSessions, remote.facts(), &filter::SESSION);
            let pool = &context.store.readers;
            let found = sessions::visible(pool, &holder.account, clause, MAX_SESSIONS).await;
            Some(found.map_err(store_error)?.into_iter().collect::<BTreeSet<_>>())
        }
    };
    let sessions = broker
        .ask(move |driver, _| {
            let line = |session: &crate::core::session::Session| {
                json!({
                    "session_id": session.id.to_string(),
                    "user": session.who.account,
                    "computer": session.place.computer,
                    "client": session.place.client,
                    "redirector": session.redirector,
                    "target": session.target,
                    "started": format_ms(session.started_ms),
                    "carrier": session.kinds().last(),
                })
            };
            let shown = |session: &&crate::core::session::Session| {
                visible.as_ref().is_none_or(|visible| visible.contains(&session.id))
            };
            driver.broker.open_sessions().filter(shown).map(line).collect::<Vec<_>>()
        })
        .await;
    Ok(sessions.unwrap_or_default())
}

async fn audit_read((context, actor): Who<'_>, how: String) -> Result<Vec<Value>, CliError> {
    actor.local_only()?;
    let home = context.home().await.map_err(store_error)?;
    context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let read = Event::new("audit.read", Level::Significant)
                    .actor(LOCAL)
                    .outcome("done")
                    .extra("how", how);
                tx.append(&home, read).await
            })
        })
        .await
        .map_err(store_error)?;
    Ok(vec![json!({"recorded": true})])
}

async fn status((context, actor): Who<'_>) -> Result<Vec<Value>, CliError> {
    let may = [Permission::ManagePolicy, Permission::ManageRelays];
    actor.may_everywhere(context, &may).await?;
    let Some(broker) = &context.broker else { return Ok(vec![json!({"state": "stopped"})]) };
    let counts = broker.ask(|driver, _| driver.broker.counts()).await.unwrap_or_default();
    Ok(vec![json!({
        "state": "running",
        "port": context.port.as_ref().ok(),
        "agents": counts.agents,
        "consoles": counts.consoles,
        "relays": counts.relays,
        "sessions": counts.sessions,
        "pending_revocations": counts.pending,
    })])
}
