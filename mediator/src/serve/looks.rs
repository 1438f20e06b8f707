//! Looks at lists, recorded for the users whose audit level says so (5, everything).
//!
//! Must never show a list before the look at it is durable, where it is to be kept.

use adit_ledger::{Event, Level};
use adit_protocol::{code::failure, wire::frame::Body};

use super::connection::Line;
use crate::{
    audit::levels,
    core::types::Refusal,
    names,
    store::{StoreError, accounts::LoginRow, computers, tenants},
};

/// Bytes of what was searched for.
const MAX_QUERY: usize = 256;

/// A look at a list.
pub(super) struct Look {
    event: &'static str,
    /// What was searched for, which may name people.
    query: String,
    client: String,
}

/// Whether a message asks for a list.
pub(super) fn at(body: &Body) -> Option<Look> {
    let look = |event, query: &str, client: &str| {
        let cut = |text: &str| {
            let end = text.floor_char_boundary(MAX_QUERY);
            text.get(..end).unwrap_or_default().to_owned()
        };
        Some(Look { event, query: cut(query), client: cut(client) })
    };
    match body {
        Body::ListComputers(wish) => look("computers.listed", &wish.query, &wish.client),
        Body::ListSessions(_) => look("sessions.listed", "", ""),
        Body::ListRequests(_) => look("requests.listed", "", ""),
        _ => None,
    }
}

/// Records the look, if it is to be kept.
pub(super) async fn record(line: &Line, row: &LoginRow, look: Look) -> Result<(), Refusal> {
    write(line, row, look).await.map_err(|error| {
        tracing::error!(%error, "a look is not recorded");
        let text = "this look could not be recorded, as your audit level wants";
        Refusal::new(failure::AUDIT_UNAVAILABLE, text)
    })
}

async fn write(line: &Line, row: &LoginRow, look: Look) -> Result<(), StoreError> {
    // Asked first: for nearly everybody nothing is written.
    if !levels::reaches(&line.shared.store.readers, &row.account.id, Level::Everything).await? {
        return Ok(());
    }
    let client = client_of(line, row, &look).await?;
    let mut event = Event::new(look.event, Level::Everything)
        .partner(&row.account.partner)
        .actor(&row.account.name)
        .device(line.identity.fingerprint().to_string())
        .source(line.source.to_string())
        .mfa(row.proof.mfa.as_str())
        .outcome("granted")
        .optional();
    event.client = client;
    if !look.query.is_empty() {
        event = event.extra_personal("query", look.query);
    }
    if !look.client.is_empty() {
        event = event.extra_personal("client", look.client);
    }
    let partner = row.account.partner_id.clone();
    let _room = line.shared.writer.room(1).await?;
    let write = line
        .shared
        .writer
        .write(move |tx| Box::pin(async move { tx.record(&partner, event).await.map(|_| ()) }));
    write.await
}

/// The one client that the look was at, so that its record goes when that is erased.
async fn client_of(line: &Line, row: &LoginRow, look: &Look) -> Result<Option<String>, StoreError> {
    let (pool, partner) = (&line.shared.store.readers, &row.account.partner_id);
    match (look.client.as_str(), look.query.as_str()) {
        ("", "") => Ok(None),
        ("", query) => computers::only_client(pool, partner, query).await,
        (path, _) => match names::client_path(path) {
            Ok((of, name)) if tenants::name_key(of) == tenants::name_key(&row.account.partner) => {
                tenants::client_path(pool, partner, name).await
            }
            // Another partner's clients do not exist.
            _ => Ok(None),
        },
    }
}

#[cfg(test)]
mod tests {
    use adit_protocol::wire;

    use super::*;

    #[test]
    fn every_list_is_a_look_and_acts_are_none() {
        let list = |query: &str| {
            Body::ListComputers(wire::ListComputers {
                query: query.to_owned(),
                ..wire::ListComputers::default()
            })
        };
        assert_eq!(at(&list("é".repeat(300).as_str())).unwrap().query.len(), 256);
        assert_eq!(at(&Body::ListSessions(Default::default())).unwrap().event, "sessions.listed");
        assert_eq!(at(&Body::ListRequests(Default::default())).unwrap().event, "requests.listed");
        assert!(at(&Body::WhoAmI(Default::default())).is_none());
    }
}
