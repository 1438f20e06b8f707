//! What was erased, in a file beside the database: ids, times and the names of partners and clients,
//! nothing of a person.
//!
//! A backup that was made before an erasure holds what was erased. `restore` erases it again
//! before the backup takes the database's place.

use std::{collections::BTreeMap, io::Write};

use adit_runtime::{cli::CliError, datadir::DataDir};
use serde::{Deserialize, Serialize};

use crate::store::erasures::{Counts, Erasure, Kind};

/// The file: one JSON object a line, only ever added to.
pub(crate) const ERASED: &str = "erased.jsonl";
/// Bytes of it: some hundred thousand lines.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// One erased tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Erased {
    /// client, partner
    pub(crate) kind: String,
    pub(crate) partner_id: String,
    /// Empty for a partner.
    pub(crate) client_id: String,
    /// `partner/client` or `partner`.
    pub(crate) subject: String,
    pub(crate) erasure: String,
    pub(crate) begun_ms: u64,
    /// Clients of a partner, by id: their keys go also where no row tells of them any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) clients: Vec<String>,
    /// Keys of these that there were.
    #[serde(default)]
    pub(crate) tenant_keys: u64,
}

impl Erased {
    /// What is noted of an erasure, and of the clients that there are.
    pub(super) fn of(erasure: &Erasure, clients: &[String]) -> Self {
        Self {
            kind: erasure.kind.name().to_owned(),
            partner_id: erasure.partner_id.clone(),
            client_id: erasure.client_id.clone(),
            subject: erasure.subject.clone(),
            erasure: erasure.id.clone(),
            begun_ms: erasure.begun_ms,
            clients: if erasure.kind == Kind::Partner { clients.into() } else { Vec::new() },
            tenant_keys: erasure.counts.tenant_keys,
        }
    }

    /// The erasure, for a database that does not know of it; `None`: of what a newer version
    /// erases.
    pub(super) fn erasure(&self) -> Option<Erasure> {
        Some(Erasure {
            id: self.erasure.clone(),
            kind: Kind::of(&self.kind)?,
            partner_id: self.partner_id.clone(),
            client_id: self.client_id.clone(),
            subject: self.subject.clone(),
            begun_by: None,
            begun_ms: self.begun_ms,
            finished_ms: None,
            counts: Counts::default(),
            certificate: String::new(),
        })
    }

    /// The same in each line of one erasure.
    fn key(&self) -> [String; 4] {
        [&self.erasure, &self.kind, &self.partner_id, &self.client_id].map(Clone::clone)
    }

    /// With what the other one knows of the same erasure.
    fn merge(&mut self, other: Self) {
        self.clients.extend(other.clients);
        self.clients.sort_unstable();
        self.clients.dedup();
        self.tenant_keys = self.tenant_keys.max(other.tenant_keys);
    }
}

/// All of them, each erasure once.
pub(crate) fn read(dir: &DataDir) -> Result<Vec<Erased>, CliError> {
    let Some(bytes) = dir.read(ERASED, MAX_BYTES)? else { return Ok(Vec::new()) };
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let (mut found, mut places) = (Vec::<Erased>::new(), BTreeMap::new());
    for line in lines {
        match serde_json::from_slice::<Erased>(line) {
            Ok(erased) => {
                let place = *places.entry(erased.key()).or_insert(found.len());
                match found.get_mut(place) {
                    Some(known) => known.merge(erased),
                    None => found.push(erased),
                }
            }
            // The last line of a crash while it was written: the erasure begins anew.
            Err(error) => tracing::warn!(%error, "a line of {ERASED} cannot be read"),
        }
    }
    Ok(found)
}

/// Adds one; on disk when this returns. Nothing if it is there already. What is known of it now,
/// which may be more than who goes on with it finds.
pub(crate) fn note(dir: &DataDir, erased: Erased) -> Result<Erased, CliError> {
    let known = read(dir)?.into_iter().find(|known| known.key() == erased.key());
    let mut all = erased;
    if let Some(known) = known {
        all.merge(known.clone());
        if all == known {
            return Ok(all);
        }
    }
    let path = dir.file(ERASED)?;
    let failed = |error: std::io::Error| {
        CliError::failed("data_dir_unwritable", format!("cannot write {}: {error}", path.display()))
            .hint("check owner, mode and free space; nothing was erased")
    };
    let text = serde_json::to_string(&all)
        .map_err(|error| CliError::failed("internal", error.to_string()))?;
    if !dir.has(ERASED) {
        dir.write_atomic(ERASED, b"", 0o600)?;
    }
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).map_err(failed)?;
    // After a line that was cut off, too.
    write!(file, "\n{text}\n").and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn erased(id: &str) -> Erased {
        Erased {
            kind: "client".into(),
            partner_id: "p".into(),
            client_id: id.into(),
            subject: "p/c".into(),
            erasure: "e".into(),
            begun_ms: 1,
            clients: Vec::new(),
            tenant_keys: 1,
        }
    }

    #[test]
    fn what_was_erased_is_remembered_also_behind_a_torn_line() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temporary.path().join("d")).unwrap();
        assert_eq!(read(&dir).unwrap(), []);
        note(&dir, erased("1")).unwrap();
        let path = dir.file(ERASED).unwrap();
        let once = std::fs::read(&path).unwrap();
        note(&dir, erased("1")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), once);
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"kind\":\"cl");
        std::fs::write(&path, text).unwrap();
        note(&dir, erased("2")).unwrap();
        assert_eq!(read(&dir).unwrap(), [erased("1"), erased("2")]);
    }

    /// Rows go before the erasure is done: whoever goes on finds fewer clients, or none.
    #[test]
    fn clients_that_were_noted_once_are_known_to_whoever_goes_on() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temporary.path().join("d")).unwrap();
        // As earlier versions wrote it.
        let old = "{\"kind\":\"partner\",\"partner_id\":\"p\",\"client_id\":\"\",\
                   \"subject\":\"p\",\"erasure\":\"e\",\"begun_ms\":1}\n";
        dir.write_atomic(ERASED, old.as_bytes(), 0o600).unwrap();
        let with = |clients: &[&str], tenant_keys| Erased {
            kind: "partner".into(),
            client_id: String::new(),
            subject: "p".into(),
            clients: clients.iter().map(ToString::to_string).collect(),
            tenant_keys,
            ..erased("")
        };
        assert_eq!(read(&dir).unwrap(), [with(&[], 0)]);
        assert_eq!(note(&dir, with(&["b", "a"], 2)).unwrap(), with(&["a", "b"], 2));
        assert_eq!(note(&dir, with(&["c"], 0)).unwrap(), with(&["a", "b", "c"], 2));
        assert_eq!(note(&dir, with(&[], 0)).unwrap(), with(&["a", "b", "c"], 2));
        assert_eq!(read(&dir).unwrap(), [with(&["a", "b", "c"], 2)]);
    }
}
