//! What a console refused by itself, for the record: a changed agent key, an unknown computer, a
//! handshake with another key.
//!
//! Nobody else sees these refusals. The console's word is recorded as the console's word; it
//! changes nothing, and tells the console nothing.

use adit_ledger::{Event, Level};
use adit_protocol::{ids::SessionId, target::Target, ticket::Role};

use super::{
    broker::{Broker, Purpose},
    events,
    session::target_text,
    types::*,
};

/// A refusal as a console tells it, its fields checked.
#[derive(Clone, Debug)]
pub(crate) struct ConsoleRefusal {
    pub(crate) request: RequestId,
    pub(crate) connection: ConnectionId,
    pub(crate) who: Who,
    pub(crate) session: Option<SessionId>,
    /// None if there is none that this technician may know of.
    pub(crate) place: Option<Place>,
    /// As told, for the record.
    pub(crate) computer_id: String,
    /// As the technician named it.
    pub(crate) computer: String,
    pub(crate) redirector: String,
    pub(crate) code: String,
    pub(crate) targets: Vec<Target>,
    pub(crate) any_target: bool,
}

impl Broker {
    /// Records what a console refused.
    pub(crate) fn handle_console_refusal(&mut self, told: &ConsoleRefusal) {
        let known = told.session.and_then(|id| self.sessions.get(&id));
        let own = known.filter(|session| {
            self.role_of(told.connection, session.id) == Some(Role::Console)
                && session.who.account_id == told.who.account_id
        });
        let event = match (own, known) {
            (Some(session), _) => {
                events::of_session("session.refused", Level::Significant, session)
            }
            // Somebody else's session is nothing that this record may name.
            (None, Some(_)) => of_told(told),
            (None, None) => {
                let mut event = of_told(told);
                event.session_id = told.session.map(|id| id.to_string());
                event
            }
        };
        let event = event.outcome("refused").end_reason(&told.code).extra("reported_by", "console");
        let partner = told.who.partner_id.clone();
        self.audit(partner, vec![event], Effect::None, Purpose::Done(told.request));
    }
}

fn of_told(told: &ConsoleRefusal) -> Event {
    let mut event = Event::new("session.refused", Level::Significant)
        .partner(&told.who.partner)
        .actor(&told.who.account)
        .device(told.who.device.fingerprint().to_string())
        .source(&told.who.source);
    event = events::with_targets(event, &target_text(&told.targets, told.any_target));
    event.redirector = some(&told.redirector);
    match &told.place {
        Some(place) => event
            .client(&place.client)
            .computer(&place.computer)
            .computer_id(place.computer_id.to_string()),
        // As with attempts: not even a hint whether it exists elsewhere.
        None => {
            event.computer = some(&told.computer);
            event.computer_id = some(&told.computer_id);
            event
        }
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
