//! Reads `policy.toml`. Strict: an unknown key, a wrong type or a missing list makes the whole
//! file invalid, because a policy that is half understood opens what its owner did not mean.

use std::{collections::BTreeSet, time::Duration};

use adit_protocol::{keys::Fingerprint, limits::OFFLINE_GRACE, target::Transport};
use adit_runtime::config::{format_duration, parse_duration};
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use super::{Allow, Hours, Policy, PolicyError, PortRange, TargetRule};

/// `[[allow]]` entries in one file.
pub(super) const MAX_ENTRIES: usize = 256;
/// Items of one list.
const MAX_ITEMS: usize = 1024;

const TOP_KEYS: &[&str] = &["offline_grace", "trust", "allow"];
const TRUST_KEYS: &[&str] = &["consoles"];
const ALLOW_KEYS: &[&str] = &["targets", "ports", "protocols", "hours", "consent"];

type Item<'i> = Spanned<DeValue<'i>>;
type Read<T> = Result<T, PolicyError>;

impl Policy {
    /// Reads the text of a policy file.
    pub fn parse(text: &str) -> Read<Self> {
        let reader = Reader { text };
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            reader.error(at, error.message().to_owned())
        })?;
        reader.policy(table.get_ref())
    }
}

struct Reader<'t> {
    text: &'t str,
}

impl Reader<'_> {
    fn policy(&self, table: &DeTable<'_>) -> Read<Policy> {
        let mut policy = Policy { offline_grace: OFFLINE_GRACE, consoles: None, allow: Vec::new() };
        self.only(table, TOP_KEYS)?;
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "offline_grace" => policy.offline_grace = self.grace(value)?,
                "trust" => {
                    let trust = self.table(value, "[trust]")?;
                    self.only(trust, TRUST_KEYS)?;
                    if let Some(list) = trust.get("consoles") {
                        policy.consoles = Some(self.consoles(list)?);
                    }
                }
                _ => policy.allow = self.entries(value)?,
            }
        }
        Ok(policy)
    }

    fn grace(&self, value: &Item<'_>) -> Read<Duration> {
        let grace = match value.get_ref() {
            DeValue::String(text) => parse_duration(text).map_err(|e| self.at(value, e))?,
            DeValue::Integer(number) if number.as_str() == "0" => Duration::ZERO,
            _ => return Err(self.at(value, "offline_grace is a time like \"15m\", or 0")),
        };
        if grace > OFFLINE_GRACE {
            let most = format_duration(OFFLINE_GRACE);
            return Err(self.at(value, format!("offline_grace is at most \"{most}\"")));
        }
        Ok(grace)
    }

    fn consoles(&self, value: &Item<'_>) -> Read<BTreeSet<Fingerprint>> {
        let mut consoles = BTreeSet::new();
        for item in self.list(value, "consoles")? {
            let text = self.string(item, "consoles")?;
            consoles.insert(text.parse().map_err(|e| self.at(item, format!("consoles: {e}")))?);
        }
        Ok(consoles)
    }

    fn entries(&self, value: &Item<'_>) -> Read<Vec<Allow>> {
        let entries = match value.get_ref() {
            DeValue::Array(entries) => entries,
            _ => return Err(self.at(value, "allow is a list: write [[allow]] before each entry")),
        };
        if entries.len() > MAX_ENTRIES {
            return Err(self.at(value, format!("more than {MAX_ENTRIES} [[allow]] entries")));
        }
        entries.iter().map(|entry| self.entry(entry)).collect()
    }

    fn entry(&self, value: &Item<'_>) -> Read<Allow> {
        let table = self.table(value, "allow")?;
        self.only(table, ALLOW_KEYS)?;
        let needed = |key: &str| {
            table.get(key).ok_or_else(|| self.at(value, format!("this [[allow]] has no {key}")))
        };
        let mut allow = Allow {
            targets: Vec::new(),
            ports: Vec::new(),
            transports: BTreeSet::from([Transport::Tcp]),
            hours: None,
            consent: false,
        };
        for item in self.list(needed("targets")?, "targets")? {
            let text = self.string(item, "targets")?;
            let rules = TargetRule::parse(text).map_err(|e| self.at(item, e))?;
            allow.targets.extend(rules);
        }
        for item in self.list(needed("ports")?, "ports")? {
            allow.ports.push(self.port(item)?);
        }
        if let Some(list) = table.get("protocols") {
            allow.transports = self.transports(list)?;
        }
        if let Some(hours) = table.get("hours") {
            let text = self.string(hours, "hours")?;
            allow.hours = Some(Hours::parse(text).map_err(|e| self.at(hours, e))?);
        }
        if let Some(consent) = table.get("consent") {
            allow.consent = match consent.get_ref() {
                DeValue::Boolean(yes) => *yes,
                _ => return Err(self.at(consent, "consent is true or false")),
            };
        }
        Ok(allow)
    }

    fn port(&self, item: &Item<'_>) -> Read<PortRange> {
        let range = match item.get_ref() {
            DeValue::Integer(n) => i64::from_str_radix(n.as_str(), n.radix())
                .map_err(|_| format!("{n} is not a port: 1 to 65535"))
                .and_then(PortRange::from_number),
            DeValue::String(text) => PortRange::parse(text),
            _ => Err("ports are numbers, or ranges like \"5900-5910\"".to_owned()),
        };
        range.map_err(|reason| self.at(item, reason))
    }

    fn transports(&self, value: &Item<'_>) -> Read<BTreeSet<Transport>> {
        let read = |item: &Item<'_>| match item.get_ref() {
            DeValue::String(text) if text == "tcp" => Ok(Transport::Tcp),
            DeValue::String(text) if text == "udp" => Ok(Transport::Udp),
            _ => Err(self.at(item, "protocols are \"tcp\" and \"udp\"")),
        };
        self.list(value, "protocols")?.iter().map(read).collect()
    }

    fn table<'v, 'i>(&self, value: &'v Item<'i>, name: &str) -> Read<&'v DeTable<'i>> {
        match value.get_ref() {
            DeValue::Table(table) => Ok(table),
            _ => Err(self.at(value, format!("{name} is a table"))),
        }
    }

    fn list<'v, 'i>(&self, value: &'v Item<'i>, key: &str) -> Read<&'v DeArray<'i>> {
        match value.get_ref() {
            DeValue::Array(list) if list.len() <= MAX_ITEMS => Ok(list),
            DeValue::Array(_) => {
                Err(self.at(value, format!("{key} has more than {MAX_ITEMS} items")))
            }
            _ => Err(self.at(value, format!("{key} is a list: write [ and ] around it"))),
        }
    }

    fn string<'v>(&self, value: &'v Item<'_>, key: &str) -> Read<&'v str> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text),
            _ => Err(self.at(value, format!("{key}: a text in quotes is expected"))),
        }
    }

    /// No other keys than these.
    fn only(&self, table: &DeTable<'_>, known: &[&str]) -> Read<()> {
        for (key, _) in table {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let nearest = known.iter().min_by_key(|k| strsim::damerau_levenshtein(k, name));
            let nearest = nearest.copied().unwrap_or_default();
            let shown = name.escape_debug();
            let reason = format!("unknown key \"{shown}\": did you mean \"{nearest}\"?");
            return Err(self.error(key.span().start, reason));
        }
        Ok(())
    }

    fn at(&self, value: &Item<'_>, reason: impl Into<String>) -> PolicyError {
        self.error(value.span().start, reason.into())
    }

    fn error(&self, offset: usize, reason: String) -> PolicyError {
        let line = self.text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1;
        PolicyError::Invalid { line, reason }
    }
}
