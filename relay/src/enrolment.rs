//! What `relay join` leaves in the data directory: who the mediator is and who we are to it.
//! Holds no secret; keys are in files of their own.

use adit_protocol::{
    ids::{RelayId, TokenId},
    keys::Fingerprint,
};
use adit_runtime::{cli::CliError, datadir::DataDir};
use serde::{Deserialize, Serialize};

/// File in the data directory.
const FILE: &str = "enrolment.json";
/// Far more than it ever is.
const MAX_BYTES: u64 = 64 * 1024;

/// As stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    relay_id: String,
    name: String,
    root: String,
    mediators: Vec<String>,
    token_id: String,
    advertise: Vec<String>,
    region: String,
}

/// A relay's place in an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// Given by the mediator.
    pub relay: RelayId,
    /// Given by the mediator.
    pub name: String,
    /// The installation.
    pub root: Fingerprint,
    /// Mediator addresses, `host:port`.
    pub mediators: Vec<String>,
    /// The token that was redeemed.
    pub token: TokenId,
    /// Addresses given to `join`, `host:port`; none: those that are bound.
    pub advertise: Vec<String>,
    /// Region given to `join`.
    pub region: String,
}

impl Enrolment {
    /// Reads it, if the relay has joined.
    pub fn load(dir: &DataDir) -> Result<Option<Self>, CliError> {
        let Some(bytes) = dir.read(FILE, MAX_BYTES)? else { return Ok(None) };
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|e| damaged(dir, &e))?;
        let read = || -> Result<Self, Box<dyn std::error::Error>> {
            Ok(Self {
                relay: stored.relay_id.parse()?,
                name: stored.name.clone(),
                root: stored.root.parse()?,
                mediators: stored.mediators.clone(),
                token: stored.token_id.parse()?,
                advertise: stored.advertise.clone(),
                region: stored.region.clone(),
            })
        };
        read().map(Some).map_err(|e| damaged(dir, &e))
    }

    /// Writes it, whole or not at all.
    pub fn save(&self, dir: &DataDir) -> Result<(), CliError> {
        let stored = Stored {
            relay_id: self.relay.to_string(),
            name: self.name.clone(),
            root: self.root.to_string(),
            mediators: self.mediators.clone(),
            token_id: self.token.to_string(),
            advertise: self.advertise.clone(),
            region: self.region.clone(),
        };
        let mut bytes = serde_json::to_vec_pretty(&stored)
            .map_err(|e| CliError::failed("internal", format!("cannot encode: {e}")))?;
        bytes.push(b'\n');
        dir.write_atomic(FILE, &bytes, 0o600)
    }
}

fn damaged(dir: &DataDir, error: &dyn std::fmt::Display) -> CliError {
    let path = dir.path().join(FILE);
    CliError::failed("enrolment_damaged", format!("{} is damaged: {error}", path.display()))
        .hint("restore it from a backup, or join again with a new token and data directory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_and_reports_damage() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path().join("d")).unwrap();
        assert!(Enrolment::load(&dir).unwrap().is_none());
        let enrolment = Enrolment {
            relay: RelayId([1; 16]),
            name: "r".into(),
            root: Fingerprint([2; 32]),
            mediators: vec!["m.example:443".into()],
            token: TokenId([3; 16]),
            advertise: vec![],
            region: "eu".into(),
        };
        enrolment.save(&dir).unwrap();
        assert_eq!(Enrolment::load(&dir).unwrap(), Some(enrolment));
        for bad in [&b"{}"[..], b"{\"relay_id\":", b"\xff"] {
            std::fs::write(dir.path().join(FILE), bad).unwrap();
            assert_eq!(Enrolment::load(&dir).unwrap_err().code, "enrolment_damaged");
        }
    }
}
