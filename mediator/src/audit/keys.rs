//! What an entry is found by: copies of some of its fields, in columns with indexes.
//!
//! Must never hold what the line does not say: whoever erases or prunes a line replaces the keys
//! with those of what is left.

use adit_ledger::{Event, Value};

/// Entries in one block of [`crate::store::audit`]'s table of times.
pub(crate) const BLOCK: u64 = 1024;

/// The detail that names the user an event is about.
const SUBJECT: &str = "user";

/// The searchable fields of an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Keys {
    pub(crate) actor: Option<String>,
    pub(crate) subject: Option<String>,
    pub(crate) computer: Option<String>,
    pub(crate) computer_id: Option<String>,
    pub(crate) client: Option<String>,
    pub(crate) redirector: Option<String>,
    pub(crate) session: Option<String>,
}

impl Keys {
    /// Of an event as it was sealed.
    pub(crate) fn of(event: &Event) -> Self {
        let folded = |text: &Option<String>| text.as_deref().map(fold);
        let subject = match event.extra_personal.get(SUBJECT) {
            Some(Value::Text(name)) => Some(fold(name)),
            _ => None,
        };
        Self {
            actor: folded(&event.actor),
            subject,
            computer: folded(&event.computer),
            computer_id: event.computer_id.clone(),
            client: folded(&event.client),
            redirector: event.redirector.clone(),
            session: event.session_id.clone(),
        }
    }
}

/// By which names are compared.
pub(crate) fn fold(text: &str) -> String {
    text.to_lowercase()
}
