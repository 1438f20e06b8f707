//! The signature: a DSSE envelope (secure-systems-lab/dsse v1.0), one or more signatures over type
//! and payload together.

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::key::{PublicKey, SigningKey};

/// in-toto's name for its statements (in-toto attestation framework, "Envelope").
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// Signs a statement.
pub(crate) fn sign(payload: &[u8], key: &SigningKey) -> Result<String> {
    let envelope = json!({
        "payloadType": PAYLOAD_TYPE,
        "payload": STANDARD.encode(payload),
        "signatures": [{
            "keyid": key.public()?.fingerprint(),
            "sig": STANDARD.encode(key.sign(&signed_bytes(payload))),
        }],
    });
    Ok(format!("{envelope:#}\n"))
}

/// Gives the payload if the key signed it. `keyid` is a hint for people and decides nothing.
pub(crate) fn open(text: &str, key: &PublicKey) -> Result<Vec<u8>> {
    let envelope: Value = serde_json::from_str(text).context("is no JSON")?;
    let field = |value: &Value, name: &str| -> Result<String> {
        let field = value.get(name).and_then(Value::as_str);
        field.map(str::to_owned).with_context(|| format!("{name} is missing"))
    };
    ensure!(field(&envelope, "payloadType")? == PAYLOAD_TYPE, "is about something else");
    let payload =
        STANDARD.decode(field(&envelope, "payload")?).ok().context("payload is no base64")?;
    let signatures = envelope.get("signatures").and_then(Value::as_array);
    let bytes = signed_bytes(&payload);
    let good = signatures.into_iter().flatten().any(|signature| {
        let decoded = field(signature, "sig").map(|sig| STANDARD.decode(sig));
        matches!(decoded, Ok(Ok(decoded)) if key.verify(&bytes, &decoded))
    });
    ensure!(good, "is not signed by {}", key.fingerprint());
    Ok(payload)
}

/// DSSE's pre-authentication encoding.
fn signed_bytes(payload: &[u8]) -> Vec<u8> {
    let (kind, length) = (PAYLOAD_TYPE.len(), payload.len());
    let head = format!("DSSEv1 {kind} {PAYLOAD_TYPE} {length} ");
    [head.as_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key;

    #[test]
    fn only_what_was_signed_opens_and_only_with_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let made = |name: &str| {
            let file = dir.path().join(name);
            (key::generate(&file).unwrap(), SigningKey::load(&file).unwrap())
        };
        let ((public, private), (other, _)) = (made("a"), made("b"));
        let text = sign(b"{}", &private).unwrap();
        assert_eq!(open(&text, &public).unwrap(), b"{}");
        let error = open(&text, &other).unwrap_err().to_string();
        assert!(error.contains(&other.fingerprint()), "{error}");
        for (from, to) in [
            (STANDARD.encode(b"{}"), STANDARD.encode(b"[]")),
            (PAYLOAD_TYPE.to_owned(), "text/plain".to_owned()),
            ("\"sig\": \"".to_owned(), "\"sig\": \"AAAA".to_owned()),
            ("signatures".to_owned(), "nothing".to_owned()),
        ] {
            assert!(text.contains(&from) && open(&text.replace(&from, &to), &public).is_err());
        }
    }

    /// The example of the specification.
    #[test]
    fn what_is_signed_is_type_and_payload_with_their_lengths() {
        let bytes = signed_bytes(b"hello world");
        assert_eq!(bytes, b"DSSEv1 28 application/vnd.in-toto+json 11 hello world");
    }
}
