//! What enrolment left behind: who we are to which installation. Written whole, once, and only
//! after the mediator accepted; never holds a secret of the token.

use std::fmt;

use adit_protocol::{
    ids::{ComputerId, TokenId},
    keys::Fingerprint,
    limits::MAX_TEXT,
};
use adit_runtime::{cli::CliError, datadir::DataDir};
use serde::{Deserialize, Serialize};

use crate::settings::PROGRAM;

/// File in the data directory.
pub const ENROLLMENT_FILE: &str = "enrollment.json";
const MAX_FILE_BYTES: u64 = 64 * 1024;
const FORMAT: u32 = 1;

/// An enrolment.
#[derive(Clone, PartialEq, Eq)]
pub struct Enrollment {
    /// Who we are there.
    pub computer: ComputerId,
    /// Our name there.
    pub name: String,
    /// `partner/client`.
    pub client: String,
    /// Name of the partner.
    pub partner: String,
    /// Partner id, the tenant of grants: no other partner's log is believed. `None`: enrolled by a
    /// version that did not remember it, and no session since.
    pub partner_id: Option<String>,
    /// Mediator addresses, `host:port`.
    pub hosts: Vec<String>,
    /// The installation's root key.
    pub root: Fingerprint,
    /// Our own identity, to notice when it was exchanged.
    pub agent_key: Fingerprint,
    /// The token that was redeemed.
    pub token: TokenId,
    /// Proxy given at enrolment; may hold a password.
    pub proxy: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    computer_id: String,
    name: String,
    client: String,
    partner: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    partner_id: Option<String>,
    hosts: Vec<String>,
    root: String,
    agent_key: String,
    token_id: String,
    proxy: Option<String>,
}

impl Enrollment {
    /// Reads it; `None` if this directory is not enrolled.
    pub fn load(dir: &DataDir) -> Result<Option<Self>, CliError> {
        let Some(bytes) = dir.read(ENROLLMENT_FILE, MAX_FILE_BYTES)? else { return Ok(None) };
        let stored = serde_json::from_slice::<Stored>(&bytes).ok();
        match stored.and_then(Self::from_stored) {
            Some(enrollment) => Ok(Some(enrollment)),
            None => Err(damaged(dir)),
        }
    }

    /// Reads it; an error if this directory is not enrolled.
    pub fn require(dir: &DataDir) -> Result<Self, CliError> {
        Self::load(dir)?.ok_or_else(|| {
            let message = format!("{} is not enrolled", dir.path().display());
            CliError::not_there("not_enrolled", message).hint(format!(
                "with a token from the mediator's administrator: {}",
                PROGRAM.command_line("enroll TOKEN", dir.path())
            ))
        })
    }

    /// Writes it, whole or not at all.
    pub fn save(&self, dir: &DataDir) -> Result<(), CliError> {
        let stored = Stored {
            format: FORMAT,
            computer_id: self.computer.to_string(),
            name: self.name.clone(),
            client: self.client.clone(),
            partner: self.partner.clone(),
            partner_id: self.partner_id.clone(),
            hosts: self.hosts.clone(),
            root: self.root.to_string(),
            agent_key: self.agent_key.to_string(),
            token_id: self.token.to_string(),
            proxy: self.proxy.clone(),
        };
        let mut bytes = serde_json::to_vec_pretty(&stored).map_err(|error| {
            CliError::failed("output_failed", format!("cannot encode the enrolment: {error}"))
        })?;
        bytes.push(b'\n');
        dir.write_atomic(ENROLLMENT_FILE, &bytes, 0o600)
    }

    fn from_stored(stored: Stored) -> Option<Self> {
        let texts = [&stored.name, &stored.client, &stored.partner];
        let id_fits = stored.partner_id.as_ref().is_none_or(|id| is_partner_id(id));
        let fits = id_fits && texts.iter().all(|text| text.len() <= MAX_TEXT);
        if stored.format != FORMAT || stored.hosts.is_empty() || !fits {
            return None;
        }
        Some(Self {
            computer: stored.computer_id.parse().ok()?,
            root: stored.root.parse().ok()?,
            agent_key: stored.agent_key.parse().ok()?,
            token: stored.token_id.parse().ok()?,
            name: stored.name,
            client: stored.client,
            partner: stored.partner,
            partner_id: stored.partner_id,
            hosts: stored.hosts,
            proxy: stored.proxy,
        })
    }
}

/// What can be a partner's id.
pub fn is_partner_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TEXT && !text.contains(char::is_whitespace)
}

impl fmt::Debug for Enrollment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enrollment")
            .field("computer", &self.computer)
            .field("hosts", &self.hosts)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

fn damaged(dir: &DataDir) -> CliError {
    let path = dir.path().join(ENROLLMENT_FILE);
    CliError::failed("state_damaged", format!("{} is damaged", path.display()))
        .hint("restore it from a backup, or remove it and enrol again with a new token")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Enrollment {
        Enrollment {
            computer: ComputerId([1; 16]),
            name: "pc".into(),
            client: "p/c".into(),
            partner: "p".into(),
            partner_id: Some("p1".into()),
            hosts: vec!["mediator.example:443".into()],
            root: Fingerprint([2; 32]),
            agent_key: Fingerprint([3; 32]),
            token: TokenId([4; 16]),
            proxy: Some("http://u:secret@proxy:3128".into()),
        }
    }

    #[test]
    fn reads_back_privately_and_shows_no_password() {
        let outer = tempfile::tempdir().unwrap();
        let dir = DataDir::open(outer.path()).unwrap();
        assert_eq!(Enrollment::load(&dir).unwrap(), None);
        assert_eq!(Enrollment::require(&dir).unwrap_err().code, "not_enrolled");
        sample().save(&dir).unwrap();
        assert_eq!(Enrollment::require(&dir).unwrap(), sample());
        assert!(!format!("{:?}", sample()).contains("secret"));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(outer.path().join(ENROLLMENT_FILE)).unwrap();
            assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn an_enrolment_of_before_partners_were_remembered_reads_back() {
        let outer = tempfile::tempdir().unwrap();
        let dir = DataDir::open(outer.path()).unwrap();
        let before = Enrollment { partner_id: None, ..sample() };
        before.save(&dir).unwrap();
        let text = std::fs::read_to_string(outer.path().join(ENROLLMENT_FILE)).unwrap();
        assert!(!text.contains("partner_id"), "{text}");
        assert_eq!(Enrollment::require(&dir).unwrap(), before);
    }

    #[test]
    fn any_damage_is_a_clear_error_and_never_not_enrolled() {
        let outer = tempfile::tempdir().unwrap();
        let dir = DataDir::open(outer.path()).unwrap();
        sample().save(&dir).unwrap();
        let whole = std::fs::read(outer.path().join(ENROLLMENT_FILE)).unwrap();
        for cut in 0..whole.len() - 2 {
            std::fs::write(outer.path().join(ENROLLMENT_FILE), &whole[..cut]).unwrap();
            assert_eq!(Enrollment::load(&dir).unwrap_err().code, "state_damaged", "{cut}");
        }
        let text = String::from_utf8(whole).unwrap();
        for (from, to) in [("\"format\": 1", "\"format\": 2"), ("sha256:02", "sha256:zz")] {
            let changed = text.replace(from, to);
            assert_ne!(changed, text);
            std::fs::write(outer.path().join(ENROLLMENT_FILE), changed).unwrap();
            assert_eq!(Enrollment::load(&dir).unwrap_err().code, "state_damaged", "{to}");
        }
    }
}
