//! Certificates of destruction: `{"destruction":{…},"log_key":…,"signature":…,"key_cert":{…}}` on
//! one line.
//!
//! The signature is the log key's, over the bytes of the inner object, in a context of its own;
//! the root's certificate of the log key goes along. There is one spelling of a certificate: what
//! was read is written again and compared. The certificate says what this mediator did and when;
//! that nobody kept a copy elsewhere nobody can certify.

use std::sync::PoisonError;

use adit_ledger::RootCert;
use adit_protocol::{
    keys::{Fingerprint, KeyCert, PublicKey, Purpose, context},
    wire,
};
use serde_json::{Map, Value, json};

use crate::store::LogSigner;

/// Version of the fields.
const VERSION: u64 = 1;
/// Bytes of a certificate.
pub(crate) const MAX_BYTES: usize = 64 * 1024;

/// Why a certificate is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CertificateError {
    /// Not the one spelling.
    #[error("this is no certificate of destruction, or was altered")]
    Malformed,
    /// Of a later version.
    #[error("the certificate is of a newer version; use a newer program to verify it")]
    Version,
    /// Signature.
    #[error("the certificate's signature does not verify")]
    BadSignature,
    /// The log key is not certified by the root that it names.
    #[error("the certificate's key is not certified by its root for the time of the destruction")]
    BadKey,
    /// Neither key nor root is a trusted one.
    #[error("the certificate is of another installation than the trusted one")]
    OtherKey,
}

/// What was verified.
#[derive(Clone, Debug)]
pub(crate) struct Verified {
    /// The inner object.
    pub(crate) destruction: Value,
    /// A trusted key was given, and signed it.
    pub(crate) trusted: bool,
    pub(crate) root: Fingerprint,
}

/// Signs what was destroyed.
pub(crate) fn sign(signer: &LogSigner, mut destruction: Map<String, Value>) -> String {
    destruction.insert("v".to_owned(), VERSION.into());
    let destruction = Value::Object(destruction);
    let signature = signer.key.sign(context::DESTRUCTION, destruction.to_string().as_bytes());
    let held = signer.cert.read().unwrap_or_else(PoisonError::into_inner).clone();
    let RootCert { root, cert } = held;
    json!({
        "destruction": destruction,
        "log_key": hex(&signer.key.public().0),
        "signature": hex(&signature),
        "key_cert": {
            "root": hex(&root.0),
            "payload": hex(&cert.payload),
            "signature": hex(&cert.signature),
        },
    })
    .to_string()
}

/// Checks a certificate; with trusted fingerprints (of the root or the log key) also whose it is.
pub(crate) fn verify(text: &str, trusted: &[Fingerprint]) -> Result<Verified, CertificateError> {
    use CertificateError::{BadKey, BadSignature, Malformed, OtherKey, Version};
    let text = text.trim_end_matches(['\n', '\r']);
    if text.len() > MAX_BYTES {
        return Err(Malformed);
    }
    let read: Value = serde_json::from_str(text).map_err(|_| Malformed)?;
    let canonical = read.to_string();
    if canonical != text {
        return Err(Malformed);
    }
    let destruction = read.get("destruction").filter(|inner| inner.is_object()).ok_or(Malformed)?;
    match destruction.get("v").and_then(Value::as_u64) {
        Some(VERSION) => {}
        Some(_) => return Err(Version),
        None => return Err(Malformed),
    }
    let bytes = |value: Option<&Value>| value?.as_str().and_then(unhex);
    let field = |name: &str| bytes(read.get(name)).ok_or(Malformed);
    let of_cert = |name: &str| {
        let cert = read.get("key_cert").ok_or(Malformed)?;
        bytes(cert.get(name)).ok_or(Malformed)
    };
    let log_key = PublicKey::from_slice(&field("log_key")?).map_err(|_| Malformed)?;
    log_key
        .verify(context::DESTRUCTION, destruction.to_string().as_bytes(), &field("signature")?)
        .map_err(|_| BadSignature)?;
    let root = PublicKey::from_slice(&of_cert("root")?).map_err(|_| Malformed)?;
    let signed = wire::Signed {
        payload: of_cert("payload")?.into(),
        signature: of_cert("signature")?.into(),
    };
    let cert = KeyCert::open(root, Purpose::Log, &signed).map_err(|_| BadKey)?;
    let finished = destruction.get("finished_ms").and_then(Value::as_u64).ok_or(Malformed)?;
    if cert.key != log_key || cert.check_time(finished).is_err() {
        return Err(BadKey);
    }
    let ours = [root.fingerprint(), log_key.fingerprint()];
    let known = trusted.iter().any(|key| ours.contains(key));
    if !trusted.is_empty() && !known {
        return Err(OtherKey);
    }
    Ok(Verified { destruction: destruction.clone(), trusted: known, root: root.fingerprint() })
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, RwLock};

    use adit_protocol::keys::SigningKey;

    use super::*;

    fn signer(root: &SigningKey) -> LogSigner {
        let key = SigningKey::generate().unwrap();
        let cert = KeyCert { key: key.public(), not_before_ms: 0, not_after_ms: 1000 };
        let cert = KeyCert::issue(root, Purpose::Log, &cert);
        let cert = RootCert { root: root.public(), cert };
        LogSigner { key: Arc::new(key), cert: Arc::new(RwLock::new(cert)) }
    }

    #[test]
    fn any_change_of_a_certificate_is_found_and_another_installations_is_not_ours() {
        let (root, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let destruction = |finished: u64| {
            let value = json!({"subject": "main/hq", "finished_ms": finished});
            value.as_object().unwrap().clone()
        };
        let signer = signer(&root);
        let text = sign(&signer, destruction(500));
        let root_print = root.public().fingerprint();
        let verified = verify(&format!("{text}\n"), &[root_print]).unwrap();
        assert!(verified.trusted && verified.root == root_print);
        assert_eq!(verified.destruction["subject"], "main/hq");
        assert!(verify(&text, &[signer.key.public().fingerprint()]).unwrap().trusted);
        assert!(!verify(&text, &[]).unwrap().trusted);
        let foreign = other.public().fingerprint();
        assert_eq!(verify(&text, &[foreign]).unwrap_err(), CertificateError::OtherKey);
        let late = sign(&signer, destruction(2000));
        assert_eq!(verify(&late, &[]).unwrap_err(), CertificateError::BadKey);
        for at in 0..text.len() {
            let mut bad = text.clone().into_bytes();
            bad[at] ^= 1;
            if let Ok(bad) = String::from_utf8(bad) {
                assert!(verify(&bad, &[root_print]).is_err(), "byte {at}");
            }
            assert!(verify(&text[..at], &[root_print]).is_err(), "length {at}");
        }
        let twice = text.replacen('{', "{\"destruction\":{},", 1);
        assert_eq!(verify(&twice, &[]).unwrap_err(), CertificateError::Malformed);
    }
}
