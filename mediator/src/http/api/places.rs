//! Partners, clients, computers, tokens, sessions, relays.

use super::{
    Api, Call,
    Method::{Delete, Get, Post, Put},
    Nothing, One, Operation, Page,
    kinds::*,
    page_size, read_cursor, typed, write_cursor,
};
use crate::{
    admin::{
        AdminRequest, access::AccessAct, accounts::AccountAct, relays::RelayAct, told_computer,
    },
    http::Problem,
    names,
    place::store_error,
    roles::Permission,
    store::{access::filter, computers, tenants},
};

type Answer<T> = Result<One<T>, Problem>;

/// Pages read to find computers that are online.
const MAX_PAGES_READ: usize = 50;
/// Bytes of a search text.
const MAX_QUERY: usize = 256;

const POLICY: &[&str] = &["policy.manage"];
const LOCK: &[&str] = &["policy.manage", "sessions.end"];
const SEE: &[&str] = &["computers.see"];
const LABEL: &[&str] = &["policy.manage", "roles.manage"];
const TOKENS: &[&str] = &["tokens.manage"];
const RELAYS: &[&str] = &["relays.manage"];

pub(super) fn mount(api: &mut Api) {
    let op = |method, path, id, summary, needs| Operation { method, path, id, summary, needs };
    api.operation(op(Get, "/partners", "partners.list", "List partners", &[]), partners);
    let text = "Add a partner with its owner; needs policy.manage on the installation";
    api.operation(op(Post, "/partners", "partners.add", text, POLICY), add_partner);
    let text = "Erase the own partner with its clients, computers, users and credentials; by a \
                person, with a fresh login";
    let needs = &["policy.manage and users.manage"];
    let path = "/partners/{partner}/erase";
    api.operation(op(Post, path, "partners.erase", text, needs), erase_partner);
    api.operation(op(Get, "/clients", "clients.list", "List clients", &[]), clients);
    api.operation(op(Post, "/clients", "clients.add", "Add a client", POLICY), add_client);
    let path = "/clients/{partner}/{client}";
    let text = "Delete a client with its computers and personal data";
    api.operation(op(Delete, path, "clients.erase", text, POLICY), erase);
    let text = "List erasures with their certificates";
    let needs = &["policy.manage", "audit.read"];
    api.operation(op(Get, "/certificates", "certificates.list", text, needs), certificates);
    let text = "Show an erasure with its certificate";
    let path = "/certificates/{erasure}";
    api.operation(op(Get, path, "certificates.show", text, needs), certificate);
    let path = "/clients/{partner}/{client}/lockdown";
    let text = "Lock a client down: live sessions end, none can be opened";
    api.operation(op(Put, path, "clients.lock", text, LOCK), lock);
    api.operation(op(Delete, path, "clients.unlock", "End a lockdown", LOCK), unlock);
    api.operation(op(Get, "/computers", "computers.list", "List computers", &[]), list_computers);
    let path = "/computers/{computer}";
    api.operation(op(Get, path, "computers.show", "Show a computer", SEE), computer);
    let text = "Remove a computer: its sessions end, its agent is not enrolled any more";
    api.operation(op(Delete, path, "computers.remove", text, POLICY), remove_computer);
    let path = "/computers/{computer}/name";
    let text = "Give a computer another name";
    api.operation(op(Put, path, "computers.rename", text, POLICY), rename_computer);
    let path = "/computers/{computer}/groups/{group}";
    api.operation(op(Put, path, "computers.group", "Give a computer a group", LABEL), group);
    let text = "Take a group from a computer";
    api.operation(op(Delete, path, "computers.ungroup", text, LABEL), ungroup);
    let path = "/computers/{computer}/tags/{tag}";
    api.operation(op(Put, path, "computers.tag", "Give a computer a tag", LABEL), tag);
    let text = "Take a tag from a computer";
    api.operation(op(Delete, path, "computers.untag", text, LABEL), untag);
    let text = "List tokens that are good";
    api.operation(op(Get, "/tokens", "tokens.list", text, &[]), tokens);
    let text = "Make a token that enrols agents of a client";
    api.operation(op(Post, "/tokens/agent", "tokens.agent", text, TOKENS), agent_token);
    let text = "Make a token that enrols a relay";
    api.operation(op(Post, "/tokens/relay", "tokens.relay", text, RELAYS), relay_token);
    let text = "Make a token worthless";
    api.operation(op(Delete, "/tokens/{token}", "tokens.revoke", text, TOKENS), revoke_token);
    let text = "List open sessions: the own, and those one may see";
    api.operation(op(Get, "/sessions", "sessions.list", text, &[]), sessions);
    let text = "End a session";
    let needs = &["sessions.end"];
    api.operation(op(Delete, "/sessions/{session}", "sessions.end", text, needs), end_session);
    api.operation(op(Get, "/relays", "relays.list", "List relays", RELAYS), relays);
    for (path, id, text, act) in RELAY_ACTS {
        api.operation(op(Post, path, id, text, RELAYS), move |call| relay(call, act));
    }
}

/// What is done to a relay.
#[derive(Clone, Copy)]
enum Done {
    Drain(bool),
    Disable(bool),
}

type Declared = (&'static str, &'static str, &'static str, Done);

const RELAY_ACTS: [Declared; 4] = [
    ("/relays/{relay}/drain", "relays.drain", "Give a relay nothing new", Done::Drain(true)),
    ("/relays/{relay}/resume", "relays.resume", "Use a relay again", Done::Drain(false)),
    (
        "/relays/{relay}/disable",
        "relays.disable",
        "Let a relay not connect any more",
        Done::Disable(true),
    ),
    ("/relays/{relay}/enable", "relays.enable", "Let a relay connect again", Done::Disable(false)),
];

async fn partners(call: Call<Paging, Nothing>) -> Result<Page<Partner>, Problem> {
    call.page(AdminRequest::PartnerList, call.query.page(), "partner").await
}

async fn add_partner(call: Call<Nothing, NewPartner>) -> Answer<AddedPartner> {
    let NewPartner { partner, owner } = call.body.clone();
    call.one(AdminRequest::PartnerAdd { partner, owner }).await.map(One)
}

async fn clients(call: Call<Paging, Nothing>) -> Result<Page<Client>, Problem> {
    call.page(AdminRequest::ClientList, call.query.page(), "client").await
}

async fn add_client(call: Call<Nothing, NewClient>) -> Answer<AddedClient> {
    call.one(AdminRequest::ClientAdd { path: call.body.client.clone() }).await.map(One)
}

async fn erase(call: Call<Nothing, Nothing>) -> Answer<Destruction> {
    call.one(AdminRequest::ClientErase { path: call.client() }).await.map(One)
}

async fn erase_partner(call: Call<Nothing, Confirmed>) -> Answer<Destruction> {
    let (partner, confirm) = (call.part("partner"), Some(call.body.partner.clone()));
    call.one(AdminRequest::PartnerErase { partner, confirm }).await.map(One)
}

async fn certificates(call: Call<Paging, Nothing>) -> Result<Page<Erasure>, Problem> {
    let all = AdminRequest::CertificateList { only: None };
    call.page(all, call.query.page(), "erasure").await
}

async fn certificate(call: Call<Nothing, Nothing>) -> Answer<Erasure> {
    let only = Some(call.part("erasure"));
    call.one(AdminRequest::CertificateList { only }).await.map(One)
}

async fn lock(call: Call<Nothing, Reason>) -> Answer<Locked> {
    let (path, reason) = (call.client(), call.body.reason.clone());
    call.one(AdminRequest::Accounts(AccountAct::ClientLock { path, locked: true, reason }))
        .await
        .map(One)
}

async fn unlock(call: Call<Nothing, Nothing>) -> Answer<Locked> {
    let (path, reason) = (call.client(), String::new());
    call.one(AdminRequest::Accounts(AccountAct::ClientLock { path, locked: false, reason }))
        .await
        .map(One)
}

async fn list_computers(call: Call<ComputerQuery, Nothing>) -> Result<Page<Computer>, Problem> {
    let remote = call.actor.remote().ok_or_else(Problem::internal)?;
    let query = &call.query;
    let size = page_size(query.limit)?;
    if query.query.len() > MAX_QUERY {
        return Err(Problem::bad_request("query: at most 256 bytes"));
    }
    let mut after = read_cursor(query.cursor.as_deref())?;
    let mut page = Page { items: Vec::new(), next: None };
    let client = match &query.client {
        None => None,
        Some(path) => match names::client_path(path) {
            Ok((partner, client))
                if tenants::name_key(partner) == tenants::name_key(&remote.partner) =>
            {
                Some(client.to_owned())
            }
            // Another partner's clients do not exist.
            _ => return Ok(page),
        },
    };
    let holder = &remote.holder;
    let mut visible = holder.filter(Permission::SeeComputers, remote.facts(), &filter::COMPUTER);
    for (kind, label) in [("group", &query.group), ("tag", &query.tag)] {
        if let Some(label) = label {
            filter::labelled(&mut visible, kind, label);
        }
    }
    let (admin, broker) = (&call.web.admin, &call.web.shared.broker);
    for _ in 0..MAX_PAGES_READ {
        let pool = &admin.store.readers;
        let found =
            computers::list(pool, &visible, &query.query, client.as_deref(), &after, size).await;
        let found = found.map_err(store_error)?;
        let full = found.len() >= size as usize;
        for row in found {
            after = row.cursor();
            let online = broker.is_online(row.id);
            if query.online && !online {
                continue;
            }
            let mut told = told_computer(admin, &row).await?;
            if let Some(object) = told.as_object_mut() {
                object.insert("online".to_owned(), online.into());
            }
            page.items.push(typed(told)?);
            if page.items.len() >= size as usize {
                page.next = Some(write_cursor(&after));
                return Ok(page);
            }
        }
        if !full {
            return Ok(page);
        }
    }
    page.next = Some(write_cursor(&after));
    Ok(page)
}

async fn computer(call: Call<Nothing, Nothing>) -> Answer<Computer> {
    let act = AccessAct::ComputerList { query: call.part("computer") };
    let mut told =
        call.act(AdminRequest::Access(act)).await?.into_iter().next().unwrap_or_default();
    let id = told.get("computer_id").and_then(|id| id.as_str()).and_then(|id| id.parse().ok());
    let online = id.is_some_and(|id| call.web.shared.broker.is_online(id));
    if let Some(object) = told.as_object_mut() {
        object.insert("online".to_owned(), online.into());
    }
    typed(told).map(One)
}

async fn remove_computer(call: Call<Nothing, Nothing>) -> Answer<RemovedComputer> {
    let act = AccessAct::ComputerRemove { computer: call.part("computer") };
    call.one(AdminRequest::Access(act)).await.map(One)
}

async fn rename_computer(call: Call<Nothing, NewName>) -> Answer<RenamedComputer> {
    let (computer, name) = (call.part("computer"), call.body.name.clone());
    call.one(AdminRequest::Access(AccessAct::ComputerRename { computer, name })).await.map(One)
}

async fn label(
    call: &Call<Nothing, Nothing>,
    group: Option<String>,
    tag: Option<String>,
    remove: bool,
) -> Answer<Labelled> {
    let computer = call.part("computer");
    let act = AccessAct::ComputerLabel { computer, group, tag, remove };
    call.one(AdminRequest::Access(act)).await.map(One)
}

async fn group(call: Call<Nothing, Nothing>) -> Answer<Labelled> {
    label(&call, Some(call.part("group")), None, false).await
}

async fn ungroup(call: Call<Nothing, Nothing>) -> Answer<Labelled> {
    label(&call, Some(call.part("group")), None, true).await
}

async fn tag(call: Call<Nothing, Nothing>) -> Answer<Labelled> {
    label(&call, None, Some(call.part("tag")), false).await
}

async fn untag(call: Call<Nothing, Nothing>) -> Answer<Labelled> {
    label(&call, None, Some(call.part("tag")), true).await
}

async fn tokens(call: Call<Paging, Nothing>) -> Result<Page<Token>, Problem> {
    call.page(AdminRequest::TokenList, call.query.page(), "token_id").await
}

async fn agent_token(call: Call<Nothing, NewAgentToken>) -> Answer<MadeToken> {
    let NewAgentToken { client, uses, ttl_ms } = call.body.clone();
    call.one(AdminRequest::TokenAgent { client, uses, ttl_ms }).await.map(One)
}

async fn relay_token(call: Call<Nothing, NewRelayToken>) -> Answer<MadeToken> {
    let NewRelayToken { region, uses, ttl_ms } = call.body.clone();
    call.one(AdminRequest::TokenRelay { region, uses, ttl_ms }).await.map(One)
}

async fn revoke_token(call: Call<Nothing, Nothing>) -> Answer<RevokedToken> {
    call.one(AdminRequest::TokenRevoke { token: call.part("token") }).await.map(One)
}

async fn sessions(call: Call<Paging, Nothing>) -> Result<Page<Session>, Problem> {
    call.page(AdminRequest::SessionList, call.query.page(), "session_id").await
}

async fn end_session(call: Call<Nothing, Nothing>) -> Answer<EndedSession> {
    call.one(AdminRequest::SessionEnd { session: call.part("session") }).await.map(One)
}

async fn relays(call: Call<Paging, Nothing>) -> Result<Page<Relay>, Problem> {
    call.page(AdminRequest::Relays(RelayAct::List), call.query.page(), "relay_id").await
}

async fn relay(call: Call<Nothing, Nothing>, done: Done) -> Answer<ChangedRelay> {
    let relay = call.part("relay");
    let act = match done {
        Done::Drain(draining) => RelayAct::Drain { relay, draining },
        Done::Disable(disabled) => RelayAct::Disable { relay, disabled },
    };
    call.one(AdminRequest::Relays(act)).await.map(One)
}
