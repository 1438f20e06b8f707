//! Computers as the mediator described them when they were opened last: enough to ask for the next
//! session before the mediator has said anything.
//!
//! A convenience, never a decision: what is asked for by it is dropped unless the mediator's own
//! description, which comes first, is the same. A list that cannot be read counts as empty.

use adit_protocol::wire;
use adit_runtime::{cli::CliError, datadir::DataDir};
use prost::Message;
use serde::{Deserialize, Serialize};

use super::{KnownComputer, Selector};

const FILE: &str = "described.toml";
/// Largest list that is read.
const MAX_BYTES: u64 = 1024 * 1024;
/// Computers that are kept.
const MAX_DESCRIBED: usize = 100;
/// Largest description that is kept: many redirectors are not worth it.
const MAX_DESCRIPTION: usize = 8 * 1024;

#[derive(Default, Serialize, Deserialize)]
struct File {
    #[serde(default)]
    computer: Vec<Row>,
}

#[derive(Serialize, Deserialize, PartialEq)]
struct Row {
    installation: String,
    /// The mediator's message, in hexadecimal.
    description: String,
}

/// The computer that is meant, if it is the only one remembered that matches.
pub fn find(directory: &DataDir, installation: &str, selector: &Selector) -> Option<KnownComputer> {
    let of = load(directory).computer.into_iter().filter(|row| row.installation == installation);
    let mut matching =
        of.filter_map(|row| row.read()).filter(|computer| selector.matches(computer));
    let found = matching.next();
    found.filter(|_| matching.next().is_none())
}

/// Puts a computer in front if it is new or described otherwise. Whether that works changes
/// nothing for the session.
pub fn remember(directory: &DataDir, installation: &str, computer: &KnownComputer) {
    if let Err(error) = try_remember(directory, installation, computer) {
        tracing::debug!(%error, "description not remembered");
    }
}

fn try_remember(
    directory: &DataDir,
    installation: &str,
    computer: &KnownComputer,
) -> Result<(), CliError> {
    let mut file = load(directory);
    let encoded = computer.to_wire().encode_to_vec();
    let row = Row { installation: installation.to_owned(), description: hex(&encoded) };
    if file.computer.contains(&row) || encoded.len() > MAX_DESCRIPTION {
        return Ok(());
    }
    let older = |row: &Row| {
        row.installation == installation && row.read().is_none_or(|old| old.id == computer.id)
    };
    file.computer.retain(|row| !older(row));
    file.computer.insert(0, row);
    file.computer.truncate(MAX_DESCRIBED);
    let text = toml::to_string(&file)
        .map_err(|error| CliError::failed("internal", format!("cannot encode: {error}")))?;
    directory.write_atomic(FILE, text.as_bytes(), 0o600)
}

fn load(directory: &DataDir) -> File {
    let bytes = directory.read(FILE, MAX_BYTES).ok().flatten().unwrap_or_default();
    str::from_utf8(&bytes).ok().and_then(|text| toml::from_str(text).ok()).unwrap_or_default()
}

impl Row {
    fn read(&self) -> Option<KnownComputer> {
        let encoded = unhex(&self.description)?;
        KnownComputer::from_wire(wire::Computer::decode(encoded.as_slice()).ok()?)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: &u8| char::from(*c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::computer::tests::computer;

    #[test]
    fn what_was_described_is_found_unless_it_became_ambiguous() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = DataDir::open(temporary.path().join("d")).unwrap();
        let find = |text: &str| find(&directory, "i", &Selector::from(text));
        let pc = computer(1, "p/a", "pc");
        remember(&directory, "i", &pc);
        remember(&directory, "other", &computer(2, "p/a", "pc"));
        assert_eq!(find("pc").unwrap().to_wire(), pc.to_wire());
        assert!(find("a/pc").is_some() && find("b/pc").is_none());
        // Described otherwise: another key.
        let newer = computer(1, "p/a", "pc");
        remember(&directory, "i", &newer);
        assert_eq!(find("pc").unwrap().to_wire(), newer.to_wire());
        assert_ne!(newer.to_wire(), pc.to_wire());
        remember(&directory, "i", &computer(3, "p/b", "pc"));
        assert!(find("pc").is_none() && find("p/b/pc").is_some());
        for text in ["[[computer]]", "x = 1", "\u{0}"] {
            directory.write_atomic(FILE, text.as_bytes(), 0o600).unwrap();
            assert!(find("p/b/pc").is_none(), "{text}");
        }
        remember(&directory, "i", &pc);
        assert!(find("pc").is_some(), "a damaged list is made anew");
    }
}
