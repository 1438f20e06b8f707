//! Compares what the two ends signed with each other and with the log: whoever hides, alters or
//! invents a session is found by either end's receipts.
//!
//! Give all receipts, then the entries of the log (at least the `session.granted` ones), then
//! [`Reconciler::finish`]. Holds the receipts in memory, at most [`MAX_RECEIPTS`]; the log only
//! passes by. Must never take an unsigned line for evidence.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Read},
};

use adit_protocol::ids::SessionId;

use crate::{
    Entry, MAX_LINE_LEN, Mismatch, Receipt,
    evidence::{GRANTED, targets_of},
    receipt::{Role, compare},
};

/// Receipts compared at a time.
pub const MAX_RECEIPTS: usize = 2_000_000;

/// One thing that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// A line that is no receipt, or not signed as it says.
    #[error("line {line}: no valid receipt")]
    Invalid {
        /// In the file.
        line: u64,
    },
    /// Signed receipts of a session that the log does not have.
    #[error("session {session}: in receipts, not in the log")]
    Hidden {
        /// Which.
        session: String,
    },
    /// Receipt and log differ.
    #[error("session {session}, channel {channel}: receipt and log differ in {what}")]
    Differs {
        /// Which.
        session: String,
        /// Which.
        channel: u64,
        /// In what.
        what: &'static str,
    },
    /// The two ends' receipts differ.
    #[error("session {session}, channel {channel}: {mismatch}")]
    Ends {
        /// Which.
        session: String,
        /// Which.
        channel: u64,
        /// In what.
        mismatch: Mismatch,
    },
    /// One end signed two stories.
    #[error("session {session}, channel {channel}: the {role} signed two different receipts")]
    TwoStories {
        /// Which.
        session: String,
        /// Which.
        channel: u64,
        /// Who.
        role: &'static str,
    },
    /// Bytes were moved and one end's receipt is not there.
    #[error("session {session}, channel {channel}: the {role}'s {kind} receipt is missing")]
    Missing {
        /// Which.
        session: String,
        /// Which.
        channel: u64,
        /// Whose.
        role: &'static str,
        /// `open` or `close`.
        kind: &'static str,
    },
    /// More than [`MAX_RECEIPTS`].
    #[error("more receipts than can be compared at once")]
    TooMany,
}

/// What was compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Receipts that are signed as they say.
    pub receipts: u64,
    /// Sessions with receipts.
    pub sessions: u64,
    /// Of these, those that the log has.
    pub logged: u64,
    /// Sessions whose personal fields were erased: device and target cannot be compared.
    pub erased: u64,
    /// All that does not fit, in no order of weight.
    pub findings: Vec<Finding>,
}

/// Findings told one by one.
const MAX_TOLD: usize = 100;

impl Reconciled {
    /// What programs print of it as JSON; of many findings the first ones.
    pub fn describe(&self) -> serde_json::Value {
        let told: Vec<_> = self.findings.iter().take(MAX_TOLD).map(ToString::to_string).collect();
        serde_json::json!({
            "receipts": self.receipts,
            "sessions": self.sessions,
            "sessions_in_log": self.logged,
            "sessions_erased": self.erased,
            "findings": told,
            "findings_count": self.findings.len(),
        })
    }
}

impl std::fmt::Display for Reconciled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { receipts, sessions, logged, .. } = self;
        write!(f, "{receipts} receipts of {sessions} sessions, {logged} of these in the log")
    }
}

/// A session as the log writes it.
fn name(session: [u8; 16]) -> String {
    SessionId(session).to_string()
}

/// Session, channel, closed: one pair of receipts.
type Key = ([u8; 16], u64, bool);

/// Reads receipts and entries.
#[derive(Debug, Default)]
pub struct Reconciler {
    lines: u64,
    receipts: BTreeMap<Key, (Option<Receipt>, Option<Receipt>)>,
    sessions: BTreeMap<[u8; 16], bool>,
    out: Reconciled,
}

impl Reconciler {
    /// With nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// All of a file of receipts.
    pub fn receipts(&mut self, file: impl BufRead) -> io::Result<()> {
        each_line(file, |line| {
            if !line.is_empty() {
                self.receipt(line);
            }
        })
    }

    /// An export of the log, looked at while it is read by what verifies it: both see the same
    /// bytes, whoever can write the file.
    pub fn watching<R: Read>(&mut self, log: R) -> Watching<'_, R> {
        Watching { reconciler: self, log, line: Vec::new() }
    }

    /// A line of a file of receipts.
    pub fn receipt(&mut self, line: &[u8]) {
        self.lines += 1;
        let receipt = Receipt::parse(line).ok().filter(|receipt| receipt.verify().is_ok());
        let Some(receipt) = receipt else {
            return self.out.findings.push(Finding::Invalid { line: self.lines });
        };
        if self.receipts.len() >= MAX_RECEIPTS {
            if self.out.findings.last() != Some(&Finding::TooMany) {
                self.out.findings.push(Finding::TooMany);
            }
            return;
        }
        let said = &receipt.statement;
        let (session, channel, role) = (said.session, said.channel, said.role);
        let pair = self.receipts.entry((session, channel, said.close.is_some())).or_default();
        let slot = match role {
            Role::Console => &mut pair.0,
            Role::Agent => &mut pair.1,
        };
        match slot {
            // Both ends keep both: the same one comes twice.
            Some(known) if *known == receipt => return,
            Some(_) => {
                let session = name(session);
                let role = role.name();
                return self.out.findings.push(Finding::TwoStories { session, channel, role });
            }
            None => *slot = Some(receipt),
        }
        self.out.receipts += 1;
        self.sessions.insert(session, false);
    }

    /// Sessions that there are receipts of, as the log writes them.
    pub fn sessions(&self) -> impl Iterator<Item = String> {
        self.sessions.keys().map(|session| name(*session))
    }

    /// An entry of the log.
    pub fn entry(&mut self, entry: &Entry) {
        let event = entry.event();
        if event.name != GRANTED {
            return;
        }
        let id = event.session_id.as_deref().and_then(|id| id.parse().ok());
        let Some(SessionId(session)) = id else { return };
        let Some(logged) = self.sessions.get_mut(&session) else { return };
        *logged = true;
        self.out.erased += u64::from(entry.is_erased());
        let targets = targets_of(event);
        let any = event.extra.contains_key("any_target");
        let agent = match event.extra.get("agent") {
            Some(crate::Value::Text(agent)) => Some(agent.as_str()),
            _ => None,
        };
        let range = (session, 0, false)..=(session, u64::MAX, true);
        for ((_, channel, _), (console, computer)) in self.receipts.range(range) {
            for receipt in [console, computer].into_iter().flatten() {
                let said = &receipt.statement;
                let device = said.console.to_string();
                let facts = [
                    (event.redirector.as_deref() == Some(&said.redirector), "redirector"),
                    (agent.is_none_or(|agent| agent == said.agent.to_string()), "agent"),
                    (entry.is_erased() || event.device == Some(device), "console"),
                    (entry.is_erased() || any || targets.contains(&said.target), "target"),
                ];
                if let Some((_, what)) = facts.into_iter().find(|(holds, _)| !holds) {
                    let (session, channel) = (name(session), *channel);
                    self.out.findings.push(Finding::Differs { session, channel, what });
                }
            }
        }
    }

    /// What was found.
    pub fn finish(mut self) -> Reconciled {
        for (session, logged) in &self.sessions {
            self.out.sessions += 1;
            self.out.logged += u64::from(*logged);
            if !logged {
                self.out.findings.push(Finding::Hidden { session: name(*session) });
            }
        }
        for ((session, channel, closed), pair) in &self.receipts {
            let (session, channel) = (name(*session), *channel);
            let kind = if *closed { "close" } else { "open" };
            let (role, only) = match pair {
                (Some(console), Some(agent)) => {
                    if let Err(mismatch) = compare(console, agent) {
                        self.out.findings.push(Finding::Ends { session, channel, mismatch });
                    }
                    continue;
                }
                (Some(only), None) => ("agent", only),
                (None, Some(only)) => ("console", only),
                (None, None) => continue,
            };
            // What was refused or never got through leaves one end without a word. An open one
            // counts when its close tells of bytes.
            let key = (only.statement.session, only.statement.channel, true);
            let close = self.receipts.get(&key).and_then(|(console, agent)| {
                let own = if role == "agent" { console } else { agent };
                own.as_ref().and_then(|receipt| receipt.statement.close.as_ref())
            });
            if close.is_some_and(|close| close.delivered > 0 || close.acknowledged > 0) {
                self.out.findings.push(Finding::Missing { session, channel, role, kind });
            }
        }
        self.out
    }
}

/// Lines of bounded length; what is longer comes in pieces, which are nothing.
/// See [`Reconciler::watching`].
#[derive(Debug)]
pub struct Watching<'a, R> {
    reconciler: &'a mut Reconciler,
    log: R,
    /// What was read of a line that has not ended.
    line: Vec<u8>,
}

impl<R: Read> Read for Watching<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.log.read(buf)?;
        for part in buf.get(..read).unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
            // No entry is longer.
            if self.line.len() <= MAX_LINE_LEN {
                self.line.extend_from_slice(part);
            }
            if part.ends_with(b"\n") {
                let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
                if let Ok(entry) = Entry::parse(line) {
                    self.reconciler.entry(&entry);
                }
                self.line.clear();
            }
        }
        Ok(read)
    }
}

fn each_line(mut file: impl BufRead, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = MAX_LINE_LEN as u64 + 1;
        if file.by_ref().take(limit).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        each(line.strip_suffix(b"\n").unwrap_or(&line));
    }
}
