//! Known agents: which key each computer showed first, or was pinned with.
//!
//! A computer is remembered by its id *and* by `client/name`. A new id or key under a known name,
//! or a new key under a known id, is a change, and only `console-tunnel trust` accepts one. Names
//! belong to an installation; ids are unique everywhere. What cannot be read is an error, never
//! an empty list: forgetting would make every machine a first contact.

use std::time::Duration;

use adit_protocol::{ids::ComputerId, keys::Fingerprint};
use adit_runtime::{
    cli::CliError,
    datadir::{DataDir, FileLock},
    time::now_rfc3339,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

const FILE: &str = "known_agents.toml";
/// Largest list that is read.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// How long another console may hold the lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);
const LOCK_RETRY: Duration = Duration::from_millis(20);
const HEADER: &str =
    "# Agents that this console has met. Change it with `console-tunnel trust`.\n\n";

/// One computer as somebody names it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presented<'a> {
    /// Installation whose mediator named it.
    pub installation: &'a str,
    /// Its id.
    pub computer: ComputerId,
    /// `partner/client`.
    pub client: &'a str,
    /// Its name there.
    pub name: &'a str,
    /// Fingerprint of its agent's identity.
    pub key: Fingerprint,
}

/// What is remembered about a computer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownAgent {
    /// Installation that the name belongs to.
    pub installation: String,
    /// Its id; unknown if it was pinned by name before anybody met it.
    pub computer: Option<ComputerId>,
    /// `partner/client`, or its end as given to `trust`.
    pub client: String,
    /// Its name there.
    pub name: String,
    /// Fingerprint of its agent's identity.
    pub key: Fingerprint,
    /// When it was first met or pinned.
    pub since: String,
    /// Pinned by a person.
    pub pinned: bool,
}

/// What the list says about a computer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The same id, name and key as before.
    Known,
    /// Never met under this name and not pinned.
    FirstContact,
    /// Known otherwise: refuse.
    Changed {
        /// The key it is known by.
        known: Fingerprint,
        /// Whether it is the id that changed under a known name (the key may be the same).
        new_id: bool,
    },
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownAgents {
    agents: Vec<KnownAgent>,
}

impl KnownAgents {
    /// Compares a computer with what is known.
    pub fn check(&self, seen: &Presented<'_>) -> Verdict {
        let mut known = false;
        for agent in &self.agents {
            let by_id = agent.computer == Some(seen.computer);
            let by_name = agent.is_named(seen);
            if (by_id || by_name) && agent.key != seen.key {
                let new_id = agent.computer.is_some_and(|id| id != seen.computer);
                return Verdict::Changed { known: agent.key, new_id };
            }
            if by_name && agent.computer.is_some_and(|id| id != seen.computer) {
                return Verdict::Changed { known: agent.key, new_id: true };
            }
            // A pin made by id alone has no name.
            known |= by_name || by_id && agent.name.is_empty();
        }
        if known { Verdict::Known } else { Verdict::FirstContact }
    }

    /// Remembers a computer that [`KnownAgents::check`] did not find changed. Tells whether
    /// there was anything new.
    pub fn remember(&mut self, seen: &Presented<'_>, now: &str) -> bool {
        // A pin made by name alone learns the id that goes with it.
        if let Some(agent) = self.agents.iter_mut().find(|agent| agent.is_named(seen)) {
            if agent.computer.is_some() {
                return false;
            }
            agent.computer = Some(seen.computer);
            agent.client = seen.client.to_owned();
            return true;
        }
        self.agents.push(KnownAgent {
            installation: seen.installation.to_owned(),
            computer: Some(seen.computer),
            client: seen.client.to_owned(),
            name: seen.name.to_owned(),
            key: seen.key,
            since: now.to_owned(),
            pinned: false,
        });
        true
    }

    /// Whether [`KnownAgents::remember`] has nothing to add.
    pub fn is_complete(&self, seen: &Presented<'_>) -> bool {
        self.agents.iter().any(|agent| agent.is_named(seen) && agent.computer.is_some())
    }

    /// Pins a key: whatever was known under this id or name is replaced.
    pub fn pin(&mut self, pinned: KnownAgent) {
        self.agents.retain(|agent| {
            let same_id = agent.computer.is_some() && agent.computer == pinned.computer;
            let same_name = agent.installation == pinned.installation
                && same(&agent.name, &pinned.name)
                && (client_matches(&agent.client, &pinned.client)
                    || client_matches(&pinned.client, &agent.client));
            !(same_id || same_name)
        });
        self.agents.push(pinned);
    }

    /// Reads the list.
    pub fn load(directory: &DataDir) -> Result<Self, CliError> {
        let Some(bytes) = directory.read(FILE, MAX_BYTES)? else {
            return Ok(Self::default());
        };
        let path = directory.path().join(FILE);
        let damaged = |reason: String| {
            CliError::failed("state_damaged", format!("{} is damaged: {reason}", path.display()))
                .hint("restore it; removing it makes every computer a first contact")
        };
        let text = str::from_utf8(&bytes).map_err(|error| damaged(error.to_string()))?;
        let file: File =
            toml::from_str(text).map_err(|error| damaged(error.message().to_owned()))?;
        let agents = file.agent.into_iter().map(Row::read).collect::<Result<_, _>>();
        Ok(Self { agents: agents.map_err(damaged)? })
    }

    /// Reads the list, changes it and writes it, with no other console in between.
    pub async fn update<T>(
        directory: &DataDir,
        change: impl FnOnce(&mut Self) -> T,
    ) -> Result<T, CliError> {
        let _lock = lock(directory).await?;
        let mut known = Self::load(directory)?;
        let before = known.clone();
        let out = change(&mut known);
        if known != before {
            let file = File { agent: known.agents.iter().map(Row::from).collect() };
            let text = toml::to_string(&file)
                .map_err(|error| CliError::failed("internal", format!("cannot encode: {error}")))?;
            directory.write_atomic(
                FILE,
                format!("{HEADER}{}\n", text.trim_end()).as_bytes(),
                0o600,
            )?;
        }
        Ok(out)
    }
}

impl KnownAgent {
    /// A pin made by a person, now.
    pub fn pinned(installation: &str, client: &str, name: &str, key: Fingerprint) -> Self {
        Self {
            installation: installation.to_owned(),
            computer: None,
            client: client.to_owned(),
            name: name.to_owned(),
            key,
            since: now_rfc3339(),
            pinned: true,
        }
    }

    fn is_named(&self, seen: &Presented<'_>) -> bool {
        self.installation == seen.installation
            && same(&self.name, seen.name)
            && client_matches(seen.client, &self.client)
    }
}

/// Whether `given` is a client path or its end: `acme/berlin` or `berlin`.
pub fn client_matches(client: &str, given: &str) -> bool {
    same(client, given)
        || client
            .len()
            .checked_sub(given.len())
            .filter(|at| *at > 0 && !given.is_empty())
            .and_then(|at| client.split_at_checked(at))
            .is_some_and(|(front, end)| front.ends_with('/') && same(end, given))
}

/// Names differ in more than case, here as at the mediator.
pub fn same(a: &str, b: &str) -> bool {
    a == b || a.to_lowercase() == b.to_lowercase()
}

/// Takes the list's lock, waiting a moment for another console.
async fn lock(directory: &DataDir) -> Result<FileLock, CliError> {
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match directory.lock("known_agents") {
            Err(error) if error.code == "already_running" && Instant::now() < deadline => {
                tokio::time::sleep(LOCK_RETRY).await;
            }
            other => return other,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    agent: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    installation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    computer_id: Option<String>,
    client: String,
    name: String,
    key: String,
    since: String,
    pinned: bool,
}

impl Row {
    fn read(self) -> Result<KnownAgent, String> {
        let computer = self.computer_id.map(|id| id.parse()).transpose();
        Ok(KnownAgent {
            installation: self.installation,
            computer: computer.map_err(|error| format!("{error}"))?,
            client: self.client,
            name: self.name,
            key: self.key.parse().map_err(|error| format!("{error}"))?,
            since: self.since,
            pinned: self.pinned,
        })
    }
}

impl From<&KnownAgent> for Row {
    fn from(agent: &KnownAgent) -> Self {
        Self {
            installation: agent.installation.clone(),
            computer_id: agent.computer.map(|id| id.to_string()),
            client: agent.client.clone(),
            name: agent.name.clone(),
            key: agent.key.to_string(),
            since: agent.since.clone(),
            pinned: agent.pinned,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00.000Z";

    fn seen(id: u8, client: &'static str, name: &'static str, key: u8) -> Presented<'static> {
        Presented {
            installation: "i",
            computer: ComputerId([id; 16]),
            client,
            name,
            key: Fingerprint([key; 32]),
        }
    }

    fn changed(key: u8, new_id: bool) -> Verdict {
        Verdict::Changed { known: Fingerprint([key; 32]), new_id }
    }

    #[test]
    fn changes_of_id_name_and_key() {
        let mut known = KnownAgents::default();
        let first = seen(1, "p/c", "pc", 10);
        assert_eq!(known.check(&first), Verdict::FirstContact);
        assert!(known.remember(&first, NOW));
        assert!(!known.remember(&first, NOW));
        for (now, verdict) in [
            (first, Verdict::Known),
            (seen(1, "P/C", "PC", 10), Verdict::Known),
            // a new key: reinstalled, or somebody in between
            (seen(1, "p/c", "pc", 11), changed(10, false)),
            // a new id under a known name, with a new key and with the same
            (seen(2, "p/c", "pc", 11), changed(10, true)),
            (seen(2, "p/c", "pc", 10), changed(10, true)),
            // moved or renamed: the name is new, the key must be the same
            (seen(1, "p/d", "pc", 10), Verdict::FirstContact),
            (seen(1, "p/c", "other", 10), Verdict::FirstContact),
            (seen(1, "p/c", "other", 11), changed(10, false)),
            // another computer
            (seen(2, "p/c", "other", 11), Verdict::FirstContact),
            (seen(2, "q/c", "pc", 11), Verdict::FirstContact),
            (seen(2, "xp/c", "pc", 11), Verdict::FirstContact),
        ] {
            assert_eq!(known.check(&now), verdict, "{now:?}");
        }
        // Another installation has names of its own, but ids are unique.
        let elsewhere = Presented { installation: "j", ..seen(2, "p/c", "pc", 11) };
        assert_eq!(known.check(&elsewhere), Verdict::FirstContact);
        let elsewhere = Presented { installation: "j", ..seen(1, "p/c", "pc", 11) };
        assert_eq!(known.check(&elsewhere), changed(10, false));
    }

    #[test]
    fn a_renamed_computer_keeps_its_old_name_too() {
        let mut known = KnownAgents::default();
        known.remember(&seen(1, "p/c", "old", 10), NOW);
        known.remember(&seen(1, "p/c", "new", 10), NOW);
        assert_eq!(known.check(&seen(2, "p/c", "old", 11)), changed(10, true));
    }

    #[test]
    fn pins_hold_before_first_contact_and_replace_what_was_known() {
        for client in ["p/c", "c"] {
            let mut known = KnownAgents::default();
            known.pin(KnownAgent::pinned("i", client, "pc", Fingerprint([10; 32])));
            assert_eq!(known.check(&seen(1, "p/c", "pc", 11)), changed(10, false));
            assert_eq!(known.check(&seen(1, "p/c", "pc", 10)), Verdict::Known);
            assert!(known.remember(&seen(1, "p/c", "pc", 10), NOW));
            assert_eq!(known.check(&seen(2, "p/c", "pc", 10)), changed(10, true));

            let pin = KnownAgent::pinned("i", "p/c", "pc", Fingerprint([12; 32]));
            known.pin(KnownAgent { computer: Some(ComputerId([2; 16])), ..pin });
            assert_eq!(known.check(&seen(2, "p/c", "pc", 12)), Verdict::Known);
            assert_eq!(known.check(&seen(1, "p/c", "pc", 10)), changed(12, true));
        }
    }

    #[tokio::test]
    async fn list_survives_on_disk_and_damage_is_never_forgetting() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = DataDir::open(temporary.path().join("d")).unwrap();
        let change = |known: &mut KnownAgents| {
            known.remember(&seen(1, "p/c", "pc\u{1b}\"", 10), NOW);
            known.pin(KnownAgent::pinned("i", "c", "x", Fingerprint([3; 32])));
            known.clone()
        };
        let written = KnownAgents::update(&directory, change).await.unwrap();
        assert_eq!(KnownAgents::load(&directory).unwrap(), written);
        for text in ["[[agent]]", "agent = 3", "[[agents]]", "\u{0}"] {
            directory.write_atomic(FILE, text.as_bytes(), 0o600).unwrap();
            assert_eq!(KnownAgents::load(&directory).unwrap_err().code, "state_damaged");
            assert!(KnownAgents::update(&directory, |_| ()).await.is_err());
        }
    }
}
