//! What this end writes down when it does not believe an audit log.
//!
//! Two files. `forks.jsonl` holds what proves something: two heads, both signed by the
//! installation's log key, that were refused together. It never rotates, says each thing once and
//! is bounded; what came first stays. `alerts.jsonl` holds everything else, is paced, and
//! rotates. So nobody pushes evidence out by causing other alarms, and nobody fills the disk.
//! Must never drop evidence for want of pace.

use std::{
    fs,
    sync::PoisonError,
    time::{Duration, Instant},
};

use adit_ledger::SignedHead;
use serde_json::{Value, json};
use tracing::error;

use crate::keeper::{Keeper, append, read_all};

/// Bytes of the list of alerts; an older one is kept beside.
const MAX_ALERTS: u64 = 1024 * 1024;
/// Bytes of the list of forks: more than its lines can take.
const MAX_FORKS_BYTES: u64 = 4 * 1024 * 1024;
/// Forks kept that this end found.
const MAX_FORKS: usize = 256;
/// Forks kept that the other ends of sessions told of: theirs leave room for one's own.
const MAX_TOLD_FORKS: usize = 64;
/// Alarms without evidence written at once, and the time after which there is room for one more.
const BURST: u32 = 16;
const REFILL: Duration = Duration::from_secs(60);
const ALERTS: &str = "alerts.jsonl";
const ALERTS_BEFORE: &str = "alerts.1.jsonl";
const FORKS: &str = "forks.jsonl";
/// Code of what is no alert, but ends those before.
const ACCEPTED: &str = "accepted";

/// How much may still be written.
#[derive(Debug)]
pub(crate) struct Pace {
    left: u32,
    since: Option<Instant>,
    dropped: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { left: BURST, since: None, dropped: 0 }
    }
}

impl Pace {
    /// Is this one written? If so: how many were not, since the last that was.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let since = *self.since.get_or_insert(now);
        let refills = now.saturating_duration_since(since).as_secs() / REFILL.as_secs();
        if let Some(more) = u32::try_from(refills).ok().filter(|more| *more > 0) {
            self.left = self.left.saturating_add(more).min(BURST);
            self.since = Some(now);
        }
        if self.left == 0 {
            self.dropped = self.dropped.saturating_add(1);
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

/// Two heads that were refused together, both of this installation.
pub(crate) struct Fork<'a> {
    pub(crate) known: &'a SignedHead,
    pub(crate) shown: &'a SignedHead,
    /// The other end says so: what it shows was verified, that it was refused is its word.
    pub(crate) told: bool,
}

impl Fork<'_> {
    /// A log that is refused grows on: what was known and which tree is refused make it the same.
    fn key(&self) -> [String; 3] {
        let said = if self.told { "peer" } else { "own" };
        [self.known.root.to_string(), self.shown.tree.clone(), said.to_owned()]
    }
}

fn key_of(line: &str) -> Option<[String; 3]> {
    let json: Value = serde_json::from_str(line).ok()?;
    let head = |name: &str| SignedHead::parse(json.get(name)?.as_str()?.as_bytes()).ok();
    let told = json.get("found_by")? == "peer";
    Some(Fork { known: &head("known")?, shown: &head("shown")?, told }.key())
}

impl Keeper {
    /// Writes an alert down; `false` if there were too many of late.
    pub(crate) fn alert(&self, mut line: Value) -> bool {
        let taken = self.pace.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        let Some(others) = taken else { return false };
        if let (Some(object), true) = (line.as_object_mut(), others > 0) {
            object.insert("others".to_owned(), others.into());
        }
        let Some(directory) = self.directory() else { return true };
        let path = directory.join(ALERTS);
        let full = fs::metadata(&path).is_ok_and(|meta| meta.len() >= MAX_ALERTS);
        if full && let Err(error) = fs::rename(&path, directory.join(ALERTS_BEFORE)) {
            error!(%error, "old alerts cannot be put aside");
        }
        if let Err(error) = append(&path, format!("{line}\n").as_bytes()) {
            error!(%error, path = %path.display(), "alert cannot be written down");
        }
        true
    }

    /// Writes evidence down, unless it is there already; `false` if it is, or there is no room.
    pub(crate) fn fork(&self, fork: &Fork<'_>, line: &Value) -> bool {
        let Some(directory) = self.directory() else { return true };
        let _one_at_a_time = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let path = directory.join(FORKS);
        // What cannot be read is added to nevertheless.
        let text = read_all(&path, MAX_FORKS_BYTES).unwrap_or_default();
        let keys: Vec<_> = text.lines().filter_map(key_of).collect();
        let [.., said] = fork.key();
        let most = if fork.told { MAX_TOLD_FORKS } else { MAX_FORKS };
        let alike = keys.iter().filter(|[.., by]| *by == said).count();
        if keys.contains(&fork.key()) || alike >= most {
            return false;
        }
        if let Err(error) = append(&path, format!("{line}\n").as_bytes()) {
            error!(%error, path = %path.display(), "evidence cannot be written down");
        }
        true
    }

    /// Evidence and the last alerts, at most so many of each, oldest first.
    pub(crate) fn alerts(&self, count: usize) -> Vec<String> {
        let last = |mut lines: Vec<String>| lines.split_off(lines.len().saturating_sub(count));
        let mut told = last(self.lines(FORKS, MAX_FORKS_BYTES));
        told.extend(last(self.lines(ALERTS, 2 * MAX_ALERTS)));
        told
    }

    /// The last alert that the owner has not accepted. Not by the time that they tell, which is
    /// another's: by what came after the acceptance, and beside the evidence that there was then.
    pub(crate) fn standing(&self) -> Option<String> {
        let (mut forks, mut alerts) =
            (self.lines(FORKS, MAX_FORKS_BYTES), self.lines(ALERTS, 2 * MAX_ALERTS));
        let accepted = |line: &String| {
            let line: Value = serde_json::from_str(line).ok()?;
            let forks = line.get("forks").and_then(Value::as_u64).unwrap_or(0);
            (line.get("code")? == ACCEPTED).then_some(forks)
        };
        if let Some((at, seen)) =
            alerts.iter().enumerate().rev().find_map(|(n, line)| Some((n, accepted(line)?)))
        {
            alerts.drain(..=at);
            forks.drain(..usize::try_from(seen).map_or(forks.len(), |seen| seen.min(forks.len())));
        }
        alerts.pop().or_else(|| forks.pop())
    }

    /// Writes down that the owner accepts what there is.
    pub(crate) fn accepted(&self, known: &[String], damaged: Option<&str>) {
        let forks = self.lines(FORKS, MAX_FORKS_BYTES).len();
        self.alert(json!({"code": ACCEPTED, "known": known, "damaged": damaged, "forks": forks}));
    }

    fn lines(&self, name: &str, max: u64) -> Vec<String> {
        let Some(directory) = self.directory() else { return Vec::new() };
        let text = read_all(&directory.join(name), max).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use adit_ledger::Hash;
    use adit_protocol::keys::SigningKey;

    use super::*;

    fn head(key: &SigningKey, tree: &str, size: u64) -> SignedHead {
        let root = Hash::of(format!("{tree} {size}").as_bytes());
        SignedHead::sign(key, tree, size, root, 1, None).unwrap()
    }

    fn note(keeper: &Keeper, known: &SignedHead, shown: &SignedHead, by: &str) -> bool {
        let line = json!({"code": "audit_forked", "found_by": by, "known": known.to_line(),
            "shown": shown.to_line()});
        keeper.fork(&Fork { known, shown, told: by == "peer" }, &line)
    }

    #[test]
    fn evidence_is_kept_whatever_else_is_alarmed() {
        let temporary = tempfile::tempdir().unwrap();
        let (keeper, _) = Keeper::start(Some(temporary.path().join("d"))).unwrap();
        let key = SigningKey::generate().unwrap();
        let (known, shown) = (head(&key, "a", 7), head(&key, "a", 5));
        assert!(note(&keeper, &known, &shown, "agent"));
        // The forged log grows, and the session is tried again and again.
        for size in 8..40 {
            assert!(!note(&keeper, &known, &head(&key, "a", size), "agent"));
        }
        // Somebody causes alarms without end, and a peer tells of whatever it likes.
        let text = "x".repeat(512);
        let written = (0..10_000).filter(|n| keeper.alert(json!({"n": n, "text": text}))).count();
        assert_eq!(written, BURST as usize);
        let told = (0..1000).filter(|n| {
            note(&keeper, &head(&key, "b", 1), &head(&key, &format!("p{n}"), 2), "peer")
        });
        assert_eq!(told.count(), MAX_TOLD_FORKS);
        let own = (0..1000).filter(|n| {
            note(&keeper, &head(&key, "b", 1), &head(&key, &format!("p{n}"), 2), "agent")
        });
        assert_eq!(own.count(), MAX_FORKS - 1);
        let path = temporary.path().join("d").join(FORKS);
        let first = fs::read_to_string(&path).unwrap();
        assert!(first.lines().next().unwrap().contains(&known.root.to_string()), "{first}");
        assert!(fs::metadata(path).unwrap().len() < MAX_FORKS_BYTES);
        assert_eq!(keeper.alerts(20).len(), 20 + BURST as usize);
    }

    /// Whatever the times are that alerts tell: nothing that comes later is hidden by an acceptance.
    #[test]
    fn what_the_owner_accepted_stands_no_more_and_what_comes_after_does() {
        let temporary = tempfile::tempdir().unwrap();
        let (keeper, _) = Keeper::start(Some(temporary.path().join("d"))).unwrap();
        let key = SigningKey::generate().unwrap();
        let is = |code: &str| keeper.standing().is_some_and(|line| line.contains(code));
        assert_eq!(keeper.standing(), None);
        assert!(note(&keeper, &head(&key, "a", 7), &head(&key, "a", 5), "agent"));
        assert!(is("audit_forked"));
        keeper.accepted(&[], None);
        assert_eq!(keeper.standing(), None);
        assert!(keeper.alerts(9).last().unwrap().contains(ACCEPTED));
        // Another fork is told before all alerts; it stands nevertheless.
        assert!(note(&keeper, &head(&key, "b", 7), &head(&key, "c", 5), "agent"));
        assert!(is("audit_forked"));
        assert!(keeper.alert(json!({"code": "audit_unproven"})) && is("audit_unproven"));
        keeper.accepted(&[], None);
        assert_eq!(keeper.standing(), None);
        // As versions wrote it that did not count: evidence stands rather than not.
        keeper.alert(json!({"code": ACCEPTED}));
        assert!(is("audit_forked"));
    }

    #[test]
    fn what_was_not_written_is_counted() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let taken = (0..100).filter(|_| pace.take(now).is_some()).count();
        assert_eq!(taken, BURST as usize);
        assert_eq!(pace.take(now + REFILL), Some(u64::from(100 - BURST)));
        assert_eq!(pace.take(now + REFILL), None);
    }
}
