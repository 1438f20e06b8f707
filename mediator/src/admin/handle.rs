//! Does what an [`AdminRequest`] asks.

use std::sync::Arc;

use adit_ledger::{Event, Level};
use adit_protocol::keys::Fingerprint;
use adit_runtime::{cli::CliError, datadir::DataDir, time::format_ms};
use serde_json::{Value, json};

use super::{AdminRequest, tokens, users};
use crate::{
    config::AccountSettings,
    core::{ending::CLIENT_ERASED, types::Affected},
    init::HOME_PARTNER,
    names,
    place::store_error,
    serve::{BrokerHandle, review::Rules},
    store::{Store, StoreError, WriteTx, Writer, tenants},
    vault::wrap::WrappingKeys,
};

/// Who acts, in the log.
pub(super) const ACTOR: &str = "local administrator";

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
    pub(crate) keys: WrappingKeys,
    pub(crate) dir: DataDir,
}

impl AdminContext {
    /// The partner whose log holds the installation's own events.
    pub(crate) async fn home(&self) -> Result<String, StoreError> {
        tenants::setting(&self.store.readers, HOME_PARTNER)
            .await?
            .ok_or(StoreError::Missing("home partner in the database"))
    }

    /// Ends live sessions after something that withdraws the right to them.
    pub(super) async fn end_sessions(&self, affected: Affected, reason: &'static str) -> usize {
        let Some(broker) = &self.broker else { return 0 };
        broker
            .ask(move |driver, now| driver.broker.handle_revoked(&affected, reason, now))
            .await
            .unwrap_or(0)
    }

    /// Live sessions are judged by the rules that hold now.
    pub(super) async fn rules_changed(&self) {
        if let Some(broker) = &self.broker {
            self.rules.changed(broker).await;
        }
    }

    fn running(&self) -> Result<&BrokerHandle, CliError> {
        self.broker.as_ref().ok_or_else(|| {
            CliError::not_there("not_running", "the mediator does not run: it has no sessions")
        })
    }
}

/// Does it; the replies are objects as the contract prints them.
pub(crate) async fn handle(
    context: Arc<AdminContext>,
    request: AdminRequest,
) -> Result<Vec<Value>, CliError> {
    match request {
        AdminRequest::ClientAdd { path } => client_add(&context, path).await,
        AdminRequest::ClientList => client_list(&context).await,
        AdminRequest::ClientErase { path } => client_erase(&context, path).await,
        AdminRequest::TokenAgent { client, uses, ttl_ms } => {
            tokens::agent(&context, client, uses, ttl_ms).await
        }
        AdminRequest::TokenRelay { region, uses, ttl_ms } => {
            tokens::relay(&context, region, uses, ttl_ms).await
        }
        AdminRequest::UserAdd { user, partner, role, mfa, password } => {
            users::add(&context, user, partner, (role, mfa), password).await
        }
        AdminRequest::UserList => users::list(&context).await,
        AdminRequest::UserDisable { user, disabled } => {
            users::disable(&context, user, disabled).await
        }
        AdminRequest::UserPassword { user, password } => {
            users::password(&context, user, password).await
        }
        AdminRequest::Accounts(act) => super::accounts::handle(&context, act).await,
        AdminRequest::Access(act) => super::access::handle(&context, act).await,
        AdminRequest::SessionEnd { session } => session_end(&context, &session).await,
        AdminRequest::SessionList => session_list(&context).await,
        AdminRequest::AuditRead { how } => audit_read(&context, how).await,
        AdminRequest::Audit(act) => {
            let (store, writer) = (&context.store, &context.writer);
            crate::audit::acts::handle(store, writer, context.retention_ms, ACTOR, act).await
        }
        AdminRequest::Backup { file } => backup(&context, file).await,
        AdminRequest::Status => status(&context).await,
    }
}

/// An event of the administrator's.
pub(super) fn event(name: &str, partner: &str) -> Event {
    Event::new(name, Level::Significant).partner(partner).actor(ACTOR).outcome("done")
}

pub(super) fn bad_name(error: names::InvalidName) -> CliError {
    CliError::usage("usage", error.to_string())
}

async fn client_add(context: &AdminContext, path: String) -> Result<Vec<Value>, CliError> {
    let (partner, client) = names::client_path(&path).map_err(bad_name)?;
    let (partner, client) = (partner.to_owned(), client.to_owned());
    let added = context
        .writer
        .write(move |tx| Box::pin(async move { add_client(tx, &partner, &client).await }))
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
    partner: &str,
    client: &str,
) -> Result<(tenants::Client, bool), StoreError> {
    let found = tenants::partner(tx, partner).await?;
    let new_partner = found.is_none();
    let partner = match found {
        Some(partner) => partner,
        None => {
            let partner = tenants::create_partner(tx, partner).await?;
            tx.append(&partner.id, event("partner.added", &partner.name)).await?;
            partner
        }
    };
    let client = tenants::create_client(tx, &partner, client).await?;
    let added = event("client.added", &partner.name).client(client.path());
    tx.append(&partner.id, added).await?;
    Ok((client, new_partner))
}

async fn client_list(context: &AdminContext) -> Result<Vec<Value>, CliError> {
    let clients = tenants::clients(&context.store.readers).await.map_err(store_error)?;
    Ok(clients
        .iter()
        .map(|(client, computers)| {
            json!({"client": client.path(), "client_id": client.id, "computers": computers})
        })
        .collect())
}

async fn client_erase(context: &AdminContext, path: String) -> Result<Vec<Value>, CliError> {
    let (partner, client) = names::client_path(&path).map_err(bad_name)?;
    let (partner, client) = (partner.to_owned(), client.to_owned());
    // Nothing may go on at the client's computers while their data go.
    let (partner_name, client_name) = (partner.clone(), client.clone());
    let found = context
        .writer
        .write(move |tx| {
            Box::pin(async move { tenants::client(tx, &partner_name, &client_name).await })
        })
        .await
        .map_err(store_error)?;
    let affected = Affected::Client(found.id.clone());
    let ended = context.end_sessions(affected, CLIENT_ERASED).await;
    let (erased, computers) = context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let client = tenants::client(tx, &partner, &client).await?;
                let (entries, computers) = tenants::erase_client(tx, &client).await?;
                let done = event("client.erased", &client.partner)
                    .client(client.path())
                    .extra("entries_erased", entries);
                tx.append(&client.partner_id, done).await?;
                Ok((entries, computers))
            })
        })
        .await
        .map_err(store_error)?;
    let deleted = computers.len();
    if let Some(broker) = &context.broker {
        broker.act(move |driver, _| driver.broker.handle_unenrolled(&computers)).await;
    }
    Ok(vec![
        json!({"client": path, "computers_deleted": deleted, "entries_erased": erased, "sessions_ended": ended}),
    ])
}

async fn session_end(context: &AdminContext, session: &str) -> Result<Vec<Value>, CliError> {
    let id = session.parse().map_err(|_| {
        CliError::usage("usage", "a session id is expected, as session list prints it")
    })?;
    let ended = context
        .running()?
        .ask(move |driver, now| driver.broker.handle_ended_by_administrator(id, now))
        .await;
    match ended {
        Some(true) => Ok(vec![json!({"session_id": session, "ended": true})]),
        _ => Err(CliError::not_there("no_such_session", "there is no such open session")),
    }
}

async fn session_list(context: &AdminContext) -> Result<Vec<Value>, CliError> {
    let Some(broker) = &context.broker else { return Ok(Vec::new()) };
    let sessions = broker
        .ask(|driver, _| {
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
            driver.broker.open_sessions().map(line).collect::<Vec<_>>()
        })
        .await;
    Ok(sessions.unwrap_or_default())
}

async fn audit_read(context: &AdminContext, how: String) -> Result<Vec<Value>, CliError> {
    let home = context.home().await.map_err(store_error)?;
    context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let read = Event::new("audit.read", Level::Significant)
                    .actor(ACTOR)
                    .outcome("done")
                    .extra("how", how);
                tx.append(&home, read).await
            })
        })
        .await
        .map_err(store_error)?;
    Ok(vec![json!({"recorded": true})])
}

async fn backup(context: &AdminContext, file: String) -> Result<Vec<Value>, CliError> {
    let path = std::path::PathBuf::from(&file);
    if !path.is_absolute() {
        return Err(CliError::usage("usage", "the path of a backup must be absolute"));
    }
    // Recorded first: the copy then shows that it was made.
    let home = context.home().await.map_err(store_error)?;
    context
        .writer
        .write(move |tx| {
            Box::pin(async move {
                let done =
                    Event::new("backup.made", Level::Significant).actor(ACTOR).outcome("done");
                tx.append(&home, done).await
            })
        })
        .await
        .map_err(store_error)?;
    super::export::copy_database(&context.store, &path).await?;
    Ok(vec![json!({"file": file, "keys": false})])
}

async fn status(context: &AdminContext) -> Result<Vec<Value>, CliError> {
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
