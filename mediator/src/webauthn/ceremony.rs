//! Registering a key (§7.1) and showing it (§7.2).

use adit_protocol::keys::sha256;
use serde::{Deserialize, Serialize};

use super::{
    KeyError, MAX_PART, RelyingParty,
    authenticator::{self, AuthenticatorData},
    client, from_base64, to_base64,
};
use crate::signatures::{Form, VerifyKey};

/// What a browser sends after a registration; all in base64url.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Registration {
    pub(crate) client_data: String,
    pub(crate) attestation: String,
}

/// What a browser sends when a key was shown; all in base64url.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Assertion {
    pub(crate) id: String,
    pub(crate) client_data: String,
    pub(crate) authenticator_data: String,
    pub(crate) signature: String,
}

/// A registered key, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Credential {
    /// base64url.
    pub(crate) id: String,
    key: StoredKey,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "alg", deny_unknown_fields)]
enum StoredKey {
    #[serde(rename = "ES256")]
    Es256 { point: String },
    #[serde(rename = "EdDSA")]
    EdDsa { key: String },
    #[serde(rename = "RS256")]
    Rs256 { n: String, e: String },
}

impl Credential {
    fn new(id: &[u8], key: &VerifyKey) -> Self {
        let key = match key {
            VerifyKey::Es256(point) => StoredKey::Es256 { point: to_base64(point) },
            VerifyKey::EdDsa(key) => StoredKey::EdDsa { key: to_base64(key) },
            VerifyKey::Rs256 { n, e } => StoredKey::Rs256 { n: to_base64(n), e: to_base64(e) },
        };
        Self { id: to_base64(id), key }
    }

    /// For the store.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// From the store.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    fn key(&self) -> Option<VerifyKey> {
        Some(match &self.key {
            StoredKey::Es256 { point } => VerifyKey::Es256(from_base64(point)?),
            StoredKey::EdDsa { key } => VerifyKey::EdDsa(from_base64(key)?),
            StoredKey::Rs256 { n, e } => {
                VerifyKey::Rs256 { n: from_base64(n)?, e: from_base64(e)? }
            }
        })
    }
}

/// Checks a registration that answers this challenge; gives the key and its counter.
pub(crate) fn register(
    answer: &Registration,
    challenge: &[u8],
    party: &RelyingParty,
) -> Result<(Credential, u32), KeyError> {
    let client_data = part(&answer.client_data)?;
    client::check(&client_data, client::CREATE, challenge, party)?;
    let data = authenticator::of_attestation(&part(&answer.attestation)?)?;
    let AuthenticatorData { counter, credential } = authenticator::read(&data, &party.id)?;
    let made = credential.ok_or(KeyError::Malformed)?;
    Ok((Credential::new(&made.id, &made.key), counter))
}

/// Checks that this key was shown for this challenge; gives its counter now. `last`: the counter
/// of the last time.
pub(crate) fn shown(
    answer: &Assertion,
    challenge: &[u8],
    party: &RelyingParty,
    credential: &Credential,
    last: u64,
) -> Result<u32, KeyError> {
    if answer.id != credential.id {
        return Err(KeyError::Credential);
    }
    let client_data = part(&answer.client_data)?;
    client::check(&client_data, client::GET, challenge, party)?;
    let data = part(&answer.authenticator_data)?;
    let read = authenticator::read(&data, &party.id)?;
    let key = credential.key().ok_or(KeyError::Malformed)?;
    let signed = [&data[..], &sha256(&client_data)].concat();
    if !key.verify(Form::Asn1, &signed, &part(&answer.signature)?) {
        return Err(KeyError::Signature);
    }
    // §6.1.1: zero on both sides means that the authenticator does not count.
    if (read.counter != 0 || last != 0) && u64::from(read.counter) <= last {
        return Err(KeyError::Counter);
    }
    Ok(read.counter)
}

fn part(text: &str) -> Result<Vec<u8>, KeyError> {
    from_base64(text).filter(|bytes| bytes.len() <= MAX_PART).ok_or(KeyError::Malformed)
}
