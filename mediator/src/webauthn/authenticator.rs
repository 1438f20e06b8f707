//! What the authenticator signs: site, flags, counter, and at registration its new public key
//! (§6.1, §6.5.1; keys in COSE, RFC 9053).

use adit_protocol::keys::sha256;
use ciborium::Value;

use super::{KeyError, MAX_CREDENTIAL_ID, MAX_PART};
use crate::signatures::VerifyKey;

/// Flags (§6.1): a person touched it; it may be copied, and was; a key follows; extensions follow.
const UP: u8 = 1;
const BE: u8 = 1 << 3;
const BS: u8 = 1 << 4;
const AT: u8 = 1 << 6;
const ED: u8 = 1 << 7;
/// Bytes of the site's hash, flags and counter.
const HEAD_LEN: usize = 37;
/// Bytes of the make's id.
const AAGUID_LEN: usize = 16;

/// COSE labels and values (RFC 9052 §7.1, RFC 9053 §7).
const KTY: i128 = 1;
const ALG: i128 = 3;
const KTY_OKP: i128 = 1;
const KTY_EC2: i128 = 2;
const KTY_RSA: i128 = 3;
const CRV_P256: i128 = 1;
const CRV_ED25519: i128 = 6;
/// Algorithms that the page asks for, too: `mediator/static/key.js` (IANA COSE registry).
const ED_DSA: i128 = -8;
const ES256: i128 = -7;
const RS256: i128 = -257;

/// Read data of an authenticator.
pub(super) struct AuthenticatorData {
    pub(super) counter: u32,
    /// At registration.
    pub(super) credential: Option<NewCredential>,
}

/// A credential that was made just now.
pub(super) struct NewCredential {
    pub(super) id: Vec<u8>,
    pub(super) key: VerifyKey,
}

/// Reads and checks it for this site; somebody must have touched the authenticator.
pub(super) fn read(bytes: &[u8], rp_id: &str) -> Result<AuthenticatorData, KeyError> {
    if bytes.len() > MAX_PART {
        return Err(KeyError::Malformed);
    }
    let (head, rest) = bytes.split_at_checked(HEAD_LEN).ok_or(KeyError::Malformed)?;
    let (hash, head) = head.split_at_checked(32).ok_or(KeyError::Malformed)?;
    let [flags, counter @ ..] = head else { return Err(KeyError::Malformed) };
    if hash != sha256(rp_id.as_bytes()) {
        return Err(KeyError::RelyingParty);
    }
    if flags & UP == 0 {
        return Err(KeyError::Presence);
    }
    if flags & BS != 0 && flags & BE == 0 {
        return Err(KeyError::Malformed);
    }
    let counter = counter.try_into().map(u32::from_be_bytes).map_err(|_| KeyError::Malformed)?;
    let (credential, mut rest) = match flags & AT {
        0 => (None, rest),
        _ => new_credential(rest).map(|(credential, rest)| (Some(credential), rest))?,
    };
    if flags & ED != 0 {
        // Extensions were not asked for; what is there is passed over.
        let _: Value = ciborium::from_reader(&mut rest).map_err(|_| KeyError::Malformed)?;
    }
    if !rest.is_empty() {
        return Err(KeyError::Malformed);
    }
    Ok(AuthenticatorData { counter, credential })
}

/// `authData` of an attestation object. The statement is not looked at.
pub(super) fn of_attestation(object: &[u8]) -> Result<Vec<u8>, KeyError> {
    if object.len() > MAX_PART {
        return Err(KeyError::Malformed);
    }
    let mut rest = object;
    let object: Value = ciborium::from_reader(&mut rest).map_err(|_| KeyError::Malformed)?;
    let data = object
        .as_map()
        .and_then(|map| map.iter().find(|(key, _)| key.as_text() == Some("authData")))
        .and_then(|(_, value)| value.as_bytes());
    data.filter(|_| rest.is_empty()).cloned().ok_or(KeyError::Malformed)
}

fn new_credential(bytes: &[u8]) -> Result<(NewCredential, &[u8]), KeyError> {
    let (_, rest) = bytes.split_at_checked(AAGUID_LEN).ok_or(KeyError::Malformed)?;
    let (length, rest) = rest.split_first_chunk::<2>().ok_or(KeyError::Malformed)?;
    let length = usize::from(u16::from_be_bytes(*length));
    if !(1..=MAX_CREDENTIAL_ID).contains(&length) {
        return Err(KeyError::Malformed);
    }
    let (id, mut rest) = rest.split_at_checked(length).ok_or(KeyError::Malformed)?;
    let key: Value = ciborium::from_reader(&mut rest).map_err(|_| KeyError::Malformed)?;
    Ok((NewCredential { id: id.to_vec(), key: cose_key(&key)? }, rest))
}

fn cose_key(value: &Value) -> Result<VerifyKey, KeyError> {
    let map = value.as_map().ok_or(KeyError::Malformed)?;
    let find = |label: i128| {
        let is = |key: &Value| key.as_integer().is_some_and(|number| i128::from(number) == label);
        map.iter().find(|(key, _)| is(key)).map(|(_, value)| value)
    };
    let number = |label| find(label).and_then(Value::as_integer).map(i128::from);
    let bytes =
        |label| find(label).and_then(Value::as_bytes).map(Vec::as_slice).ok_or(KeyError::Malformed);
    let algorithm = number(ALG).ok_or(KeyError::Malformed)?;
    let key = match (number(KTY), algorithm) {
        (Some(KTY_EC2), ES256) if number(-1) == Some(CRV_P256) => {
            VerifyKey::p256(bytes(-2)?, bytes(-3)?)
        }
        (Some(KTY_OKP), ED_DSA) if number(-1) == Some(CRV_ED25519) => {
            VerifyKey::ed25519(bytes(-2)?)
        }
        (Some(KTY_RSA), RS256) => VerifyKey::rsa(bytes(-1)?, bytes(-2)?),
        _ => return Err(KeyError::Algorithm),
    };
    key.map_err(|_| KeyError::Malformed)
}
