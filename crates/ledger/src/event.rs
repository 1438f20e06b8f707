//! What happened: the fields of an audit event, before it has a place in the log.
//!
//! *Public* fields stay for ever: ids, numbers, outcomes. *Personal* fields can be erased later
//! without breaking the tree; whatever tells of a person or was typed by one belongs there.
//! Must never hold a secret: of a credential only its id is written.

use std::collections::BTreeMap;

use crate::{MAX_INTEGER, json};

/// Bytes that a text field may take when escaped.
pub const MAX_TEXT_LEN: usize = 1024;
/// Bytes of an event name, and of a key of the extra maps.
pub const MAX_NAME_LEN: usize = 64;
/// Entries of each extra map.
pub const MAX_EXTRAS: usize = 16;
/// Bytes that an extra text may take when escaped.
pub const MAX_EXTRA_LEN: usize = 1024;
/// Carriers listed.
pub const MAX_CARRIERS: usize = 32;
/// Bytes of one carrier's text when escaped.
pub const MAX_CARRIER_LEN: usize = 128;
/// Ends a text that was cut.
const CUT_MARK: &str = "…[cut]";

/// How important an event is; a user's audit level says which ones are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum Level {
    /// Kept even at the lowest setting.
    Nothing = 0,
    /// Something is wrong or under attack.
    Critical = 1,
    /// Access given or refused, rights changed.
    Significant = 2,
    /// Part of the story of an access.
    #[default]
    Informational = 3,
    /// Everyday acts.
    Normal = 4,
    /// Every look.
    Everything = 5,
}

impl Level {
    /// From its number.
    pub fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::Nothing,
            1 => Self::Critical,
            2 => Self::Significant,
            3 => Self::Informational,
            4 => Self::Normal,
            5 => Self::Everything,
            _ => return None,
        })
    }

    /// Its name in settings and readable exports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Critical => "critical",
            Self::Significant => "significant",
            Self::Informational => "informational",
            Self::Normal => "normal",
            Self::Everything => "everything",
        }
    }
}

/// Value of an event-specific detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(String),
    /// An integer; beyond ±(2^53−1) it is clamped.
    Integer(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Integer(number.into())
    }
}

/// An audit event. Unknown fields stay `None` and appear as `null`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Event {
    /// How important it is.
    pub level: Level,
    /// Like `session.granted`: lower-case words, dots, underscores, hyphens.
    pub name: String,
    /// May be left out where the user's audit level is below the event's. Not written. Access
    /// and security events must never set it.
    pub optional: bool,

    /// `granted`, `refused`, `failed`, …: a code, no free text.
    pub outcome: Option<String>,
    /// Partner id.
    pub partner: Option<String>,
    /// Client id or path.
    pub client: Option<String>,
    /// Computer id.
    pub computer_id: Option<String>,
    /// Session id.
    pub session_id: Option<String>,
    /// Redirector.
    pub redirector: Option<String>,
    /// Viewer that was to be launched.
    pub viewer: Option<String>,
    /// Rule that allowed or denied.
    pub rule: Option<String>,
    /// State of the second factor: a code.
    pub mfa: Option<String>,
    /// Id of the credential used, never its value.
    pub credential_id: Option<String>,
    /// Relay used.
    pub relay: Option<String>,
    /// Kinds of carriers in the order of their use: `relayed`, `direct`.
    pub carriers: Vec<String>,
    /// Bytes console to target.
    pub bytes_up: Option<u64>,
    /// Bytes target to console.
    pub bytes_down: Option<u64>,
    /// How long it lasted, milliseconds.
    pub duration_ms: Option<u64>,
    /// Why it ended: a code, no free text.
    pub end_reason: Option<String>,
    /// Event-specific details that are not personal.
    pub extra: BTreeMap<String, Value>,

    /// Who did it. Personal.
    pub actor: Option<String>,
    /// With which device. Personal.
    pub device: Option<String>,
    /// From which address. Personal.
    pub source: Option<String>,
    /// Name of the computer. Personal.
    pub computer: Option<String>,
    /// `host:port`. Personal.
    pub target: Option<String>,
    /// Why, as the technician put it. Personal.
    pub reason: Option<String>,
    /// Ticket number. Personal.
    pub ticket: Option<String>,
    /// Chosen address pair. Personal.
    pub pair: Option<String>,
    /// Event-specific details that are personal.
    pub extra_personal: BTreeMap<String, Value>,
}

macro_rules! text_setters {
    ($($name:ident),*) => {$(
        #[doc = concat!("Sets `", stringify!($name), "`.")]
        #[must_use]
        pub fn $name(mut self, value: impl Into<String>) -> Self {
            self.$name = Some(value.into());
            self
        }
    )*};
}

macro_rules! number_setters {
    ($($name:ident),*) => {$(
        #[doc = concat!("Sets `", stringify!($name), "`.")]
        #[must_use]
        pub fn $name(mut self, value: u64) -> Self {
            self.$name = Some(value);
            self
        }
    )*};
}

impl Event {
    /// An event that nobody can switch off.
    pub fn new(name: impl Into<String>, level: Level) -> Self {
        Self { name: name.into(), level, ..Self::default() }
    }

    text_setters!(
        outcome,
        partner,
        client,
        computer_id,
        session_id,
        redirector,
        viewer,
        rule,
        mfa,
        credential_id,
        relay,
        end_reason,
        actor,
        device,
        source,
        computer,
        target,
        reason,
        ticket,
        pair
    );
    number_setters!(bytes_up, bytes_down, duration_ms);

    /// Adds a carrier kind.
    #[must_use]
    pub fn carrier(mut self, kind: impl Into<String>) -> Self {
        self.carriers.push(kind.into());
        self
    }

    /// Adds a detail that is not personal.
    #[must_use]
    pub fn extra(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.extra.insert(key.into(), value.into());
        self
    }

    /// Adds a personal detail.
    #[must_use]
    pub fn extra_personal(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.extra_personal.insert(key.into(), value.into());
        self
    }

    /// Lets users with a lower audit level leave the event out.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// Is the event kept for a user with this audit level?
    pub fn is_kept_at(&self, user_level: Level) -> bool {
        !self.optional || self.level <= user_level
    }

    /// The first event of a tree that follows another one, such as after restoring a backup.
    pub fn tree_started(previous: Option<&crate::SignedHead>) -> Self {
        let event = Self::new("tree.started", Level::Significant);
        match previous {
            None => event,
            Some(head) => event
                .extra("previous_tree", head.tree.as_str())
                .extra("previous_size", head.size)
                .extra("previous_root", head.root.to_string()),
        }
    }

    /// Brings every field within its bounds. Idempotent, so a reader can tell bounded events.
    pub(crate) fn normalise(&mut self) {
        self.optional = false;
        self.name = clean_name(&self.name);
        let bound = |text: &mut Option<String>| {
            if let Some(text) = text {
                cut(text, MAX_TEXT_LEN);
            }
        };
        self.public_texts_mut().into_iter().for_each(bound);
        self.personal_texts_mut().into_iter().for_each(bound);
        self.carriers.truncate(MAX_CARRIERS);
        self.carriers.iter_mut().for_each(|carrier| cut(carrier, MAX_CARRIER_LEN));
        for number in [&mut self.bytes_up, &mut self.bytes_down, &mut self.duration_ms] {
            *number = number.map(|n| n.min(MAX_INTEGER));
        }
        clean_extras(&mut self.extra);
        clean_extras(&mut self.extra_personal);
    }

    /// Deletes what is personal.
    pub(crate) fn erase_personal(&mut self) {
        self.personal_texts_mut().into_iter().for_each(|text| *text = None);
        self.extra_personal.clear();
    }

    fn public_texts_mut(&mut self) -> [&mut Option<String>; 12] {
        [
            &mut self.outcome,
            &mut self.partner,
            &mut self.client,
            &mut self.computer_id,
            &mut self.session_id,
            &mut self.redirector,
            &mut self.viewer,
            &mut self.rule,
            &mut self.mfa,
            &mut self.credential_id,
            &mut self.relay,
            &mut self.end_reason,
        ]
    }

    fn personal_texts_mut(&mut self) -> [&mut Option<String>; 8] {
        [
            &mut self.actor,
            &mut self.device,
            &mut self.source,
            &mut self.computer,
            &mut self.target,
            &mut self.reason,
            &mut self.ticket,
            &mut self.pair,
        ]
    }
}

/// Keys that an extra map must not use: the line's own, so that a reader who cuts the line at
/// `,"actor":` and `,"salt":` cannot be misled.
const RESERVED: [&str; 36] = [
    "v",
    "seq",
    "time",
    "level",
    "event",
    "outcome",
    "partner",
    "client",
    "computer_id",
    "session_id",
    "redirector",
    "viewer",
    "rule",
    "mfa",
    "credential_id",
    "relay",
    "carriers",
    "bytes_up",
    "bytes_down",
    "duration_ms",
    "end_reason",
    "extra",
    "actor",
    "device",
    "source",
    "computer",
    "target",
    "reason",
    "ticket",
    "pair",
    "extra_personal",
    "salt",
    "personal_hash",
    "leaf",
    "head",
    "omitted",
];

fn clean_extras(extras: &mut BTreeMap<String, Value>) {
    let bounded = |key: &String, value: &Value| {
        clean_name(key) == *key
            && !RESERVED.contains(&key.as_str())
            && match value {
                Value::Text(text) => fits(text, MAX_EXTRA_LEN),
                Value::Integer(number) => number.unsigned_abs() <= MAX_INTEGER,
            }
    };
    if extras.len() <= MAX_EXTRAS && extras.iter().all(|(key, value)| bounded(key, value)) {
        return;
    }
    let mut cleaned = BTreeMap::new();
    for (key, mut value) in std::mem::take(extras) {
        let mut key = clean_name(&key);
        if RESERVED.contains(&key.as_str()) {
            key.insert_str(0, "x_");
        }
        match &mut value {
            Value::Text(text) => cut(text, MAX_EXTRA_LEN),
            Value::Integer(number) => {
                let bound = i64::try_from(MAX_INTEGER).unwrap_or(i64::MAX);
                *number = (*number).clamp(-bound, bound);
            }
        }
        if cleaned.len() < MAX_EXTRAS {
            cleaned.insert(key, value);
        }
    }
    *extras = cleaned;
}

/// Lower-case letters, digits and `._-`; others become `_`.
fn clean_name(name: &str) -> String {
    let allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-');
    let mut out: String = name
        .chars()
        .take(MAX_NAME_LEN)
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if allowed(c) { c } else { '_' })
        .collect();
    if out.is_empty() {
        out.push('_');
    }
    out
}

fn fits(text: &str, limit: usize) -> bool {
    // No character takes more than six bytes per byte.
    text.len().saturating_mul(6) <= limit
        || text.chars().map(json::escaped_len).sum::<usize>() <= limit
}

/// Shortens a text to a number of escaped bytes, on a character boundary, with a mark.
pub(crate) fn cut(text: &mut String, limit: usize) {
    if fits(text, limit) {
        return;
    }
    let room = limit.saturating_sub(CUT_MARK.len());
    let mut used = 0;
    let end = text
        .char_indices()
        .find(|(_, c)| {
            used += json::escaped_len(*c);
            used > room
        })
        .map_or(text.len(), |(index, _)| index);
    text.truncate(end);
    text.push_str(CUT_MARK);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_on_a_character_with_a_mark() {
        for unit in ["x", "é", "🚪", "\u{1}", "\""] {
            let mut text = unit.repeat(5000);
            cut(&mut text, MAX_TEXT_LEN);
            let escaped: usize = text.chars().map(json::escaped_len).sum();
            assert!(escaped <= MAX_TEXT_LEN && escaped > MAX_TEXT_LEN - 7, "{escaped}");
            assert!(text.ends_with(CUT_MARK));
            let once = text.clone();
            cut(&mut text, MAX_TEXT_LEN);
            assert_eq!(text, once);
        }
    }

    #[test]
    fn security_events_are_kept_at_every_level() {
        let event = Event::new("session.granted", Level::Everything);
        assert!(event.is_kept_at(Level::Nothing));
        assert!(!event.clone().optional().is_kept_at(Level::Normal));
        assert!(event.optional().is_kept_at(Level::Everything));
    }

    #[test]
    fn reserved_and_odd_extra_keys_are_renamed() {
        let mut event = Event::new("A B", Level::Normal)
            .extra("actor", "mallory")
            .extra("x\",\"y", 1_u64)
            .extra("big", u64::MAX);
        event.normalise();
        assert_eq!(event.name, "a_b");
        let keys: Vec<_> = event.extra.keys().map(String::as_str).collect();
        assert_eq!(keys, ["big", "x___y", "x_actor"]);
        let once = event.clone();
        event.normalise();
        assert_eq!(event, once);
    }
}
