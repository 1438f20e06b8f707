//! An event with its place in the log, and its line.
//!
//! ```text
//! {"v":1,"seq":…,"time":…, public fields… ,"extra":{…},"actor":…, personal fields… ,"extra_personal":{…},"salt":"…","leaf":"…"}
//! └──────────────────── public ───────────────────┘ └───────────────── personal ───────────────────┘
//! ```
//!
//! The leaf is hashed over exactly these bytes, each part closed as an object:
//! `leaf = SHA-256(0x00 ‖ public ‖ "}" ‖ SHA-256(salt ‖ "{" ‖ personal ‖ "}"))`, the salt as 16
//! bytes. An erased entry has `null` in all personal fields and as salt, and `personal_hash`
//! before `leaf`. The order of keys is fixed (what people look for first comes first), so no
//! canonicalisation is left to a reader: it cuts the line at `,"actor":` and `,"salt":`.
//!
//! A run of entries that are not shown is one line with the hashes of the largest complete
//! subtrees that cover it: `{"omitted":{"from":3,"to":9,"hashes":[…]}}`, or `pruned` where
//! retention has deleted the contents.
//!
//! Must never accept two spellings of one entry: what was read is written again and compared.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, de};

use crate::{
    Event, Hash, Level, MAX_INTEGER, MAX_LINE_LEN, Value,
    hash::{self, LEAF_PREFIX, hex, unhex_array},
    json::Object,
    time::{MAX_TIME_MS, format_time, parse_time},
    tree::CompactRange,
};

/// Version of the line's fields.
const VERSION: u64 = 1;

/// Random bytes that keep personal fields from being guessed from their hash.
pub type Salt = [u8; 16];

/// Why a line is not an entry, gap or head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Longer than [`MAX_LINE_LEN`].
    #[error("line is longer than 65536 bytes")]
    TooLong,
    /// Not JSON with the right keys and types.
    #[error("line is not of the audit format")]
    Malformed,
    /// Made by a newer program.
    #[error("line is of a newer version of the audit format; use a newer program to verify it")]
    Version,
    /// The same values, but not the bytes that Adit writes.
    #[error("line is not in the one form that is written")]
    NotCanonical,
    /// The contents do not hash to the leaf.
    #[error("contents do not match the leaf hash")]
    LeafMismatch,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Personal {
    Kept(Salt),
    Erased(Hash),
}

/// A sealed event. Fields cannot change any more but by erasure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    seq: u64,
    time_ms: u64,
    event: Event,
    personal: Personal,
    leaf: Hash,
}

impl Entry {
    /// Gives an event its place and time. Fields out of bounds are cut or cleaned; `salt` must be
    /// fresh and random.
    pub fn seal(seq: u64, time_ms: u64, mut event: Event, salt: Salt) -> Self {
        event.normalise();
        let mut entry = Self {
            seq: seq.min(MAX_INTEGER),
            time_ms: time_ms.min(MAX_TIME_MS),
            event,
            personal: Personal::Kept(salt),
            leaf: Hash([0; 32]),
        };
        entry.leaf = entry.encode().1;
        entry
    }

    /// Reads a line (without line feed) and checks it against its leaf hash.
    pub fn parse(line: &[u8]) -> Result<Self, LineError> {
        if line.len() > MAX_LINE_LEN {
            return Err(LineError::TooLong);
        }
        let raw: RawEntry = serde_json::from_slice(line).map_err(|_| LineError::Malformed)?;
        if raw.v > VERSION {
            return Err(LineError::Version);
        }
        let stated: Hash = raw.leaf.parse().map_err(|_| LineError::Malformed)?;
        let mut entry = raw.into_entry().ok_or(LineError::Malformed)?;
        entry.event.normalise();
        let (written, leaf) = entry.encode();
        entry.leaf = leaf;
        if written.as_bytes() == line {
            return Ok(entry);
        }
        let differs_in_leaf_only = stated != leaf && {
            let end = line.len().saturating_sub(66 + "\"leaf\":".len());
            written.len() == line.len() && written.as_bytes().get(..end) == line.get(..end)
        };
        Err(if differs_in_leaf_only { LineError::LeafMismatch } else { LineError::NotCanonical })
    }

    /// The line, without line feed.
    pub fn to_line(&self) -> String {
        self.encode().0
    }

    /// Position in the tree.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// When, in milliseconds since 1970.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// What happened.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Hash of the leaf.
    pub fn leaf(&self) -> Hash {
        self.leaf
    }

    /// Were the personal fields deleted?
    pub fn is_erased(&self) -> bool {
        matches!(self.personal, Personal::Erased(_))
    }

    /// Deletes salt and personal fields; the leaf stays.
    pub fn erase(&mut self) {
        if let Personal::Kept(salt) = self.personal {
            let mut line = self.public();
            let cut = line.len();
            self.push_personal(&mut line);
            self.personal = Personal::Erased(personal_hash(&salt, line.as_str(), cut));
            self.event.erase_personal();
        }
    }

    /// Line and leaf hash.
    fn encode(&self) -> (String, Hash) {
        let mut line = self.public();
        let cut = line.len();
        self.push_personal(&mut line);
        let personal = match &self.personal {
            Personal::Kept(salt) => {
                let personal = personal_hash(salt, line.as_str(), cut);
                line.string("salt", &hex(salt));
                personal
            }
            Personal::Erased(personal) => {
                line.raw("salt", "null").string("personal_hash", &hex(&personal.0));
                *personal
            }
        };
        let public = line.as_str().get(..cut).unwrap_or_default();
        let leaf = Hash::of_parts(&[&LEAF_PREFIX, public.as_bytes(), b"}", &personal.0]);
        line.string("leaf", &hex(&leaf.0));
        (line.finish(), leaf)
    }

    fn public(&self) -> Object {
        let event = &self.event;
        let mut out = Object::with_capacity(1024);
        out.integer("v", VERSION)
            .integer("seq", self.seq)
            .string("time", &format_time(self.time_ms))
            .integer("level", event.level as u64)
            .string("event", &event.name)
            .optional("outcome", event.outcome.as_deref())
            .optional("partner", event.partner.as_deref())
            .optional("client", event.client.as_deref())
            .optional("computer_id", event.computer_id.as_deref())
            .optional("session_id", event.session_id.as_deref())
            .optional("redirector", event.redirector.as_deref())
            .optional("viewer", event.viewer.as_deref())
            .optional("rule", event.rule.as_deref())
            .optional("mfa", event.mfa.as_deref())
            .optional("credential_id", event.credential_id.as_deref())
            .optional("relay", event.relay.as_deref())
            .strings("carriers", event.carriers.iter().map(String::as_str))
            .optional_integer("bytes_up", event.bytes_up)
            .optional_integer("bytes_down", event.bytes_down)
            .optional_integer("duration_ms", event.duration_ms)
            .optional("end_reason", event.end_reason.as_deref())
            .raw("extra", &extras(&event.extra));
        out
    }

    fn push_personal(&self, out: &mut Object) {
        let event = &self.event;
        out.optional("actor", event.actor.as_deref())
            .optional("device", event.device.as_deref())
            .optional("source", event.source.as_deref())
            .optional("computer", event.computer.as_deref())
            .optional("target", event.target.as_deref())
            .optional("reason", event.reason.as_deref())
            .optional("ticket", event.ticket.as_deref())
            .optional("pair", event.pair.as_deref());
        if self.is_erased() {
            out.raw("extra_personal", "null");
        } else {
            out.raw("extra_personal", &extras(&event.extra_personal));
        }
    }
}

/// Hash of the personal part, which begins with a comma at `cut`.
fn personal_hash(salt: &Salt, line: &str, cut: usize) -> Hash {
    let personal = line.get(cut.saturating_add(1)..).unwrap_or_default();
    Hash::of_parts(&[salt, b"{", personal.as_bytes(), b"}"])
}

pub(crate) fn extras(map: &BTreeMap<String, Value>) -> String {
    let mut out = Object::new();
    for (key, value) in map {
        match value {
            Value::Text(text) => out.string(key, text),
            Value::Integer(number) => out.signed(key, *number),
        };
    }
    out.finish()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    v: u64,
    seq: u64,
    time: String,
    level: u64,
    event: String,
    outcome: Option<String>,
    partner: Option<String>,
    client: Option<String>,
    computer_id: Option<String>,
    session_id: Option<String>,
    redirector: Option<String>,
    viewer: Option<String>,
    rule: Option<String>,
    mfa: Option<String>,
    credential_id: Option<String>,
    relay: Option<String>,
    carriers: Vec<String>,
    bytes_up: Option<u64>,
    bytes_down: Option<u64>,
    duration_ms: Option<u64>,
    end_reason: Option<String>,
    extra: BTreeMap<String, Value>,
    actor: Option<String>,
    device: Option<String>,
    source: Option<String>,
    computer: Option<String>,
    target: Option<String>,
    reason: Option<String>,
    ticket: Option<String>,
    pair: Option<String>,
    extra_personal: Option<BTreeMap<String, Value>>,
    salt: Option<String>,
    personal_hash: Option<String>,
    leaf: String,
}

impl RawEntry {
    fn into_entry(self) -> Option<Entry> {
        let personal = match (&self.salt, &self.personal_hash) {
            (Some(salt), None) => Personal::Kept(unhex_array(salt)?),
            (None, Some(hash)) => Personal::Erased(hash.parse().ok()?),
            _ => return None,
        };
        let mut event = Event {
            level: Level::from_number(self.level)?,
            name: self.event,
            optional: false,
            outcome: self.outcome,
            partner: self.partner,
            client: self.client,
            computer_id: self.computer_id,
            session_id: self.session_id,
            redirector: self.redirector,
            viewer: self.viewer,
            rule: self.rule,
            mfa: self.mfa,
            credential_id: self.credential_id,
            relay: self.relay,
            carriers: self.carriers,
            bytes_up: self.bytes_up,
            bytes_down: self.bytes_down,
            duration_ms: self.duration_ms,
            end_reason: self.end_reason,
            extra: self.extra,
            actor: self.actor,
            device: self.device,
            source: self.source,
            computer: self.computer,
            target: self.target,
            reason: self.reason,
            ticket: self.ticket,
            pair: self.pair,
            extra_personal: self.extra_personal.unwrap_or_default(),
        };
        if matches!(personal, Personal::Erased(_)) {
            // Nothing vouches for personal fields beside a personal hash.
            event.erase_personal();
        }
        (self.seq <= MAX_INTEGER).then_some(Entry {
            seq: self.seq,
            time_ms: parse_time(&self.time)?,
            event,
            personal,
            leaf: Hash([0; 32]),
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text or an integer")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
                Ok(Value::Text(text.to_owned()))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Value, E> {
                Ok(Value::Integer(number))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Value, E> {
                i64::try_from(number).map(Value::Integer).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Why entries are not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapKind {
    /// The export was asked for others.
    Omitted,
    /// Retention deleted their contents.
    Pruned,
}

impl GapKind {
    fn key(self) -> &'static str {
        match self {
            Self::Omitted => "omitted",
            Self::Pruned => "pruned",
        }
    }
}

/// A run of entries that are not shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub kind: GapKind,
    /// Which, with what stands for them.
    pub range: CompactRange,
}

impl Gap {
    /// Reads a line (without line feed).
    pub fn parse(line: &[u8]) -> Result<Self, LineError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct RawGap {
            from: u64,
            to: u64,
            hashes: Vec<String>,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            omitted: Option<RawGap>,
            pruned: Option<RawGap>,
        }
        if line.len() > MAX_LINE_LEN {
            return Err(LineError::TooLong);
        }
        let raw: Raw = serde_json::from_slice(line).map_err(|_| LineError::Malformed)?;
        let (kind, raw) = match (raw.omitted, raw.pruned) {
            (Some(gap), None) => (GapKind::Omitted, gap),
            (None, Some(gap)) => (GapKind::Pruned, gap),
            _ => return Err(LineError::Malformed),
        };
        let hashes: Option<Vec<_>> =
            raw.hashes.iter().map(|h| hash::unhex_array(h).map(Hash)).collect();
        let gap = hashes
            .and_then(|hashes| CompactRange::from_hashes(raw.from, raw.to, hashes))
            .filter(|range| range.begin() < range.end())
            .map(|range| Self { kind, range })
            .ok_or(LineError::Malformed)?;
        if gap.to_line().as_bytes() == line { Ok(gap) } else { Err(LineError::NotCanonical) }
    }

    /// The line, without line feed.
    pub fn to_line(&self) -> String {
        let hashes: Vec<_> = self.range.hashes().iter().map(Hash::to_string).collect();
        let mut inner = Object::new();
        inner
            .integer("from", self.range.begin())
            .integer("to", self.range.end())
            .strings("hashes", hashes.iter().map(String::as_str));
        let mut out = Object::new();
        out.raw(self.kind.key(), &inner.finish());
        out.finish()
    }
}
